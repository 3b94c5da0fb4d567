"""Tables and a figure of the measurements."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.measure import Rows
from utility.report.figures import BACKPROJECTION, INTERPOLATION, NETWORK, STYLE, WIDTH, saved

COLOURS = {"released": INTERPOLATION, "fast": NETWORK, "fast bf16": BACKPROJECTION}


def seconds(value: float) -> str:
    return (f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms" if value >= 1e-3
            else f"{1e6 * value:.0f} us")


def size(value: float) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2f} %"


SHOW: dict[str, Callable[[Any], str]] = {"time": seconds, "processor": seconds, "n": str,
                                         "calls": str,
                                         "quartiles": lambda pair: f"{pair[0]:.2f}-{pair[1]:.2f}",
                                         "PSNR": "{:.4f}".format, "change": "{:+.5f}".format,
                                         "SAM": "{:.4f}".format, "told": seconds,
                                         "change of SAM": "{:+.5f}".format, "found": str,
                                         "GB/s": "{:.1f}".format, "patches/s": "{:.0f}".format,
                                         "ns a voxel": "{:.4g}".format,
                                         **dict.fromkeys(("peak", "process", "moved"), size),
                                         "GFLOP": "{:.1f}".format,
                                         **dict.fromkeys((
                                             "spread", "share", "of released", "of a copy",
                                             "of whole", "of theirs", "of told", "GPU waits"),
                                                         percent),
                                         **dict.fromkeys((
                                             "output", "without input", "gradients",
                                             "worst parameter"), "{:.1e}".format),
                                         **dict.fromkeys((
                                             "faster", "same precision", "over floor", "Mvoxel/s"),
                                                         "{:.2f}".format)}
"""How each column of numbers is printed; other columns hold words."""


def table(title: str, rows: Rows) -> str:
    """The rows of a section as text, numbers to the right."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns,
             *[["" if row.get(key) is None else SHOW.get(key, str)(row[key]) for key in columns]
               for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line in cells:
        padded = []
        for key, cell, width in zip(columns, line, widths, strict=True):
            padded.append(cell.rjust(width) if key in SHOW else cell.ljust(width))
        lines.append("  ".join(padded).rstrip())
    return "\n  ".join([title, *lines])


def draw(path: Path, title: str, results: dict[str, Rows]) -> Figure:
    """Left: time and peak memory, the released way being 1; right: time a voxel against bands and
    pixels."""
    with rc_context(STYLE):
        fig = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        grid = fig.add_gridspec(2, 2, width_ratios=(1.9, 1))
        _bars(fig.add_subplot(grid[:, 0]), results)
        for k, axis in enumerate(("bands", "pixels")):
            _growth(fig.add_subplot(grid[k, 1]), axis,
                    [row for row in results.get("growth", []) if row["axis"] == axis])
        for ax in fig.axes:
            ax.grid(True, axis="y")
            ax.set_axisbelow(True)
            ax.spines[["top", "right"]].set_visible(False)
        fig.suptitle(f"{title}: the same network, computed the released way and this way",
                     fontsize=8)
        return saved(fig, path)


def _bars(ax: Axes, results: dict[str, Rows]) -> None:
    """For every size, time and memory of the fast variants as a share of the released way's."""
    # (what, variant): {group: (height, label)}
    bars: dict[tuple[str, str], dict[str, tuple[float, str]]] = {}
    rows = [{"work": work} | row for work in ("inference", "training step")
            for row in results.get(work.split()[0], [])]
    for row in [*rows, *results.get("memory", [])]:
        what, share, label = (("time", 1 / row["faster"], f"{row['faster']:.1f}x")
                              if "faster" in row
                              else ("peak memory", row.get("of released"),
                                    f"{100 * (row.get('of released') or 0):.0f} %"))
        if row["variant"] in ("fast", "fast bf16") and share:
            bars.setdefault((what, row["variant"]), {})[f"{row['work']}\n{row['size']}"] = (
                share, label)
    groups = list(dict.fromkeys(group for found in bars.values() for group in found))
    width = 0.88 / max(1, len(bars))
    for k, ((what, variant), found) in enumerate(bars.items()):
        places = [groups.index(group) + (k - (len(bars) - 1) / 2) * width for group in found]
        heights, labels = zip(*found.values(), strict=True)
        drawn = ax.bar(places, heights, 0.92 * width, color=COLOURS[variant],
                       alpha=1.0 if what == "time" else 0.45,
                       label=f"{what}, {'bf16' if 'bf16' in variant else 'fp32'}")
        ax.bar_label(drawn, labels, fontsize=5.5)
    ax.axhline(1, color=COLOURS["released"], linewidth=1, label="released way")
    ax.set_xticks(range(len(groups)), groups, fontsize=6.5)
    ax.set_ylim(0, max(1.3, 1.15 * ax.dataLim.ymax))
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    ax.set_ylabel("of the released way's (label: times faster)")
    ax.legend(loc="upper left", ncols=3)


def _growth(ax: Axes, axis: str, rows: Rows) -> None:
    for variant in dict.fromkeys(row["variant"] for row in rows):
        chosen = [row for row in rows if row["variant"] == variant]
        ax.plot([int(row["size"].split("x")[axis == "pixels"]) for row in chosen],
                [row["ns a voxel"] for row in chosen], marker="o", markersize=3,
                color=COLOURS[variant], label=variant)
    if not rows:
        return
    bands, side, _ = rows[0]["size"].split("x")
    ticks = sorted({int(row["size"].split("x")[axis == "pixels"]) for row in rows})
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{tick}²" if axis == "pixels" else str(tick) for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set_ylim(bottom=0)
    ax.set_xlabel(f"bands at {side}²" if axis == "bands" else f"pixels at {bands} bands")
    ax.set_ylabel("ns a voxel")
    if axis == "bands":
        ax.legend(loc="lower right", ncols=2)
