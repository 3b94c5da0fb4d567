"""Tables and a figure of the measurements."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utility.figures import BACKPROJECTION, INTERPOLATION, NETWORK, STYLE, WIDTH, saved

Results = dict[str, list[dict[str, Any]]]
COLOURS = {"released": INTERPOLATION, "fast": NETWORK, "fast bf16": BACKPROJECTION}


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms" if value >= 1e-3 else f"{1e6 * value:.0f} us"


def size(value: float) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2f} %"


SHOW: dict[str, Callable[[Any], str]] = {
    "time": seconds, "n": str, "calls": str, "quartiles": lambda pair: f"{pair[0]:.2f}-{pair[1]:.2f}", "PSNR": "{:.4f}".format,
    "change": "{:+.5f}".format, "GB/s": "{:.1f}".format, "patches/s": "{:.0f}".format, "ns a voxel": "{:.4g}".format,
    **dict.fromkeys(("peak", "process", "moved"), size), "GFLOP": "{:.1f}".format,
    **dict.fromkeys(("spread", "share", "of released", "of a copy", "of whole", "GPU waits"), percent),
    **dict.fromkeys(("output", "without input", "gradients", "worst parameter"), "{:.1e}".format),
    **dict.fromkeys(("faster", "same precision", "over floor", "Mvoxel/s"), "{:.2f}".format),
}
"""How each column of numbers is printed; other columns hold words."""


def table(title: str, rows: list[dict[str, Any]]) -> str:
    """The rows of a section as text, numbers to the right; below them what failed."""
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "failed"]
    cells = [columns, *[["" if row.get(key) is None else SHOW.get(key, str)(row[key]) for key in columns] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.rjust(width) if key in SHOW else cell.ljust(width)
                       for key, cell, width in zip(columns, line, widths, strict=True)).rstrip() for line in cells]
    failed = [f"failed: {row.get('variant', row.get('work'))}: {row['failed']}" for row in rows if "failed" in row]
    return "\n  ".join([title, *lines, *failed])


def draw(path: Path, machine: dict[str, Any], results: Results) -> Figure:
    """Left: time and peak memory, the released way being 1; right: time a voxel against bands and pixels."""
    with rc_context(STYLE):
        fig = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        grid = fig.add_gridspec(2, 2, width_ratios=(1.9, 1))
        _bars(fig.add_subplot(grid[:, 0]), results)
        for k, axis in enumerate(("bands", "pixels")):
            _growth(fig.add_subplot(grid[k, 1]), results, axis)
        fig.suptitle(f"{machine['title']}: the same network, computed the released way and this way", fontsize=8)
        return saved(fig, path)


def _bars(ax: Axes, results: Results) -> None:
    """For every size, time and memory of the fast variants as a share of the released way's."""
    groups: dict[str, dict[tuple[str, str], tuple[float, str]]] = {}
    for work in ("inference", "training step"):
        for row in results.get(work.split()[0], []):
            if row["variant"] in ("fast", "fast bf16") and "faster" in row:
                bars = groups.setdefault(f"{work}\n{row['size']}", {})
                bars["time", row["variant"]] = 1 / row["faster"], f"{row['faster']:.1f}x"
        for row in results.get("memory", []):
            bars = groups.get(f"{work}\n{row['size']}", {})
            if row["work"] == work and ("time", row["variant"]) in bars and row.get("of released"):
                bars["peak memory", row["variant"]] = row["of released"], f"{100 * row['of released']:.0f} %"
    width = 0.88 / max(map(len, groups.values()), default=1)
    labels: set[str] = set()
    for k, bars in enumerate(groups.values()):
        order = sorted(bars.items(), key=lambda bar: (bar[0][0] != "time", bar[0]))
        for j, ((what, variant), (value, note)) in enumerate(order):
            x = k + (j - (len(bars) - 1) / 2) * width
            label = f"{what}, {'bf16' if 'bf16' in variant else 'fp32'}"
            ax.bar(x, value, 0.92 * width, color=COLOURS[variant], alpha=1.0 if what == "time" else 0.45,
                   label=None if label in labels else label)
            labels.add(label)
            ax.text(x, value + 0.01, note, ha="center", va="bottom", fontsize=5.5, in_layout=False)
    ax.axhline(1, color=COLOURS["released"], linewidth=1, label="released way")
    ax.set_xticks(range(len(groups)), list(groups), fontsize=6.5)
    ax.set_ylim(0, max([1.3, *(1.15 * value for bars in groups.values() for value, _ in bars.values())]))
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    ax.set_ylabel("of the released way's (label: times faster)")
    ax.legend(loc="upper left", ncols=3)
    _clean(ax)


def _growth(ax: Axes, results: Results, axis: str) -> None:
    rows = [row for row in results.get("growth", []) if row["axis"] == axis]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        chosen = [row for row in rows if row["variant"] == variant]
        ax.plot([int(row["size"].split("x")[axis == "pixels"]) for row in chosen], [row["ns a voxel"] for row in chosen],
                marker="o", markersize=3, color=COLOURS.get(variant), label=variant)
    if rows:
        bands, rows_of_image, _ = rows[0]["size"].split("x")
        ticks = sorted({int(row["size"].split("x")[axis == "pixels"]) for row in rows})
        ax.set_xscale("log")
        ax.set_xticks(ticks, [f"{t}²" if axis == "pixels" else str(t) for t in ticks])
        ax.set_xticks([], minor=True)
        ax.set_ylim(0, 1.15 * max(row["ns a voxel"] for row in rows))
        ax.set_xlabel(f"bands at {rows_of_image}²" if axis == "bands" else f"pixels at {bands} bands")
    if axis == "bands" and rows:
        ax.legend(loc="lower right", ncols=2)
    ax.set_ylabel("ns a voxel")
    _clean(ax)


def _clean(ax: Axes) -> None:
    ax.grid(True, axis="y")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
