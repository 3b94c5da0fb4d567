"""What was measured as tables, against what was promised, and as one figure."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from utility.figures import BACKPROJECTION, DPI, INTERPOLATION, NETWORK, STYLE, WIDTH
from utility.files import replacing

Results = dict[str, Any]
COLOURS = {"released": INTERPOLATION, "fast": NETWORK, "fast bf16": BACKPROJECTION}


# --- tables -----------------------------------------------------------------------------------------------------------

def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns as wide as they must be; those of numbers to the right."""
    widths = [max(len(line[k]) for line in [header, *rows]) for k in range(len(header))]
    numeric = [header[k] != "size" and all(not row[k] or row[k][0] in "-+.0123456789" for row in rows)
               for k in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        parts = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric, strict=True))
        return "  " + "  ".join(parts).rstrip()

    return "\n".join([title, line(header), *map(line, rows)])


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms" if value >= 1e-3 else f"{1e6 * value:.0f} us"


def size(value: float) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def _get(show: Callable[[Any], str], *keys: str) -> Callable[[dict[str, Any]], str]:
    """The value under nested keys, shown; empty where there is none."""

    def cell(row: dict[str, Any]) -> str:
        value: Any = row
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return "" if value is None else show(value)

    return cell


def percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2f} %"


TIME = ("time", _get(seconds, "seconds", "median"))
SPREAD = ("spread", _get(percent, "seconds", "spread"))
COUNT = ("n", _get(str, "seconds", "n"))


def _word(key: str) -> Callable[[dict[str, Any]], str]:
    return _get(str, key)


def _times(key: str) -> Callable[[dict[str, Any]], str]:
    return _get(lambda v: f"{v:.2f}", key, "ratio")


def _error(key: str) -> Callable[[dict[str, Any]], str]:
    return _get(lambda v: f"{v:.1e}", key)


def _range(row: dict[str, Any]) -> str:
    found = row.get("speedup")
    return f"{found['low']:.2f}-{found['high']:.2f}" if found else ""


NETWORK_COLUMNS = [("size", _word("size")), ("variant", _word("variant")), TIME, SPREAD, COUNT, ("faster", _times("speedup")),
                   ("quartiles", _range), ("same precision", _times("same_precision")), ("over floor", _times("over_floor"))]
COLUMNS: dict[str, tuple[str, list[tuple[str, Callable[[dict[str, Any]], str]]]]] = {
    "inference": ("Inference (released = the loop over bands in default layout, fp32)", NETWORK_COLUMNS),
    "training": ("Training step: degrade, forward, MSE, backward, Adam", NETWORK_COLUMNS),
    "memory": ("Peak memory beyond weights and input, a fresh process each", [
        ("work", _word("work")), ("size", _word("size")), ("variant", _word("variant")), ("peak", _get(size, "peak")),
        ("of released", _get(percent, "share")), ("process", _get(size, "process"))]),
    "pooling": ("Pooling alone: ideal traffic (forward 3C + C, backward 4C + 3C) a second", [
        ("work", _word("work")), ("type", _word("dtype")), ("variant", _word("variant")), TIME, SPREAD,
        ("faster", _times("speedup")), ("GB/s", _get("{:.1f}".format, "gb_per_s")), ("of a copy", _get(percent, "of_copy"))]),
    "growth": ("Growth with bands, and with pixels", [
        ("axis", _word("axis")), ("size", _word("size")), ("variant", _word("variant")),
        ("ns a voxel", _get(lambda v: f"{v:.0f}" if v >= 100 else f"{v:.2f}", "ns_per_voxel")), ("faster", _times("speedup"))]),
    "tiles": ("A scene in tiles", [
        ("", _word("work")), TIME, SPREAD, COUNT, ("Mvoxel/s", _get("{:.2f}".format, "mvoxel_per_s")),
        ("of whole", _get(percent, "share"))]),
    "degradation": ("Degradation of a batch, as a share of its forward pass", [
        ("", _word("work")), TIME, SPREAD, ("share", _get(percent, "share"))]),
    "data": ("Loader, an epoch of a warm database", [
        ("", _word("work")), TIME, SPREAD, ("patches/s", _get("{:.0f}".format, "patches_per_s"))]),
    "waiting": ("A short training", [
        ("", _word("work")), ("patches/s", _get("{:.0f}".format, "patches_per_s")), ("GPU waits", _get(percent, "share"))]),
    "accuracy": ("Relative error against the loop in float64", [
        ("variant", _word("variant")), ("output", _error("output")), ("without input", _error("residual")),
        ("gradients", _error("gradients")), ("worst parameter", _error("worst_gradient"))]),
    "profile": ("Largest costs of the fast network, own time", [
        ("work", _word("work")), ("variant", _word("variant")), ("operator", _word("operator")),
        ("time", _get(seconds, "seconds")), ("share", _get(percent, "share")), ("calls", _word("calls"))]),
}


def section_table(name: str, result: Results) -> str:
    """The rows of a section, and what was noted of them."""
    title, columns = COLUMNS[name]
    rows = result["rows"]
    if name == "profile":
        rows = [row for row in rows if row["rank"] <= 3]
    shown = [[cell(row) or ("FAILED" if "failed" in row and head == "time" else "") for head, cell in columns] for row in rows]
    used = [k for k in range(len(columns)) if any(line[k] for line in shown)]
    where = f" ({result['size']})" if "size" in result else ""
    lines = [table(title + where, [columns[k][0] for k in used], [[line[k] for k in used] for line in shown])]
    lines += [f"  failed: {row.get('variant')}: {row['failed']}" for row in rows if "failed" in row]
    lines += [f"  failed: {work}: {why}" for work, why in result.get("failed", {}).items()]
    if "note" in result:
        lines.append(f"  {result['note']}")
    if built := result.get("database"):
        lines.append(f"  database of {built['patches']} patches from {built['scene']}: {seconds(built['seconds'])}, "
                     f"{built['patches'] / built['seconds']:.0f} patches/s, {size(built['process'])} resident at most")
    if found := result.get("psnr"):
        lines.append(table(f"PSNR (dB) of {found['checkpoint']}, x{found['scale']}, {found['images']} images",
                           ["variant", "PSNR", "change"],
                           [[row["variant"], f"{row['psnr']:.4f}", f"{row['change']:+.5f}"] for row in found["rows"]]))
    return "\n".join(lines)


# --- promised and measured --------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Promise:
    """One number that has to be reached, on one kind of device."""

    device: str                         # "cpu", "cuda"
    what: str
    limit: float
    section: str
    find: Callable[[Results], float | None]
    least: bool = False                 # the limit is a lower one
    show: Callable[[float], str] = "{:.2f}".format
    missing: str = "not available here"

    def row(self, results: Results, here: str, why: dict[str, str], judged: bool) -> dict[str, Any]:
        """`why` says of a section why it was not measured; `judged` is False where sizes are not the promised ones."""
        promised = f"{'>=' if self.least else '<='} {self.show(self.limit)}"
        row: dict[str, Any] = {"device": "CPU" if self.device == "cpu" else "GPU", "what": self.what, "promised": promised,
                               "limit": self.limit, "measured": None}
        if self.device != here:
            return row | {"verdict": f"not measured: {why[self.device]}"}
        value = self.find(results[self.section]) if self.section in results else None
        if value is None:
            return row | {"verdict": f"not measured: {why.get(self.section, self.missing)}"}
        row |= {"measured": value, "shown": self.show(value)}
        if not judged:
            return row | {"verdict": "not judged: --quick"}
        kept = value >= self.limit if self.least else value <= self.limit
        return row | {"verdict": "ok" if kept else "short"}


def _value(*keys: str, **labels: str) -> Callable[[Results], float | None]:
    """The value under `keys` of the first row that has these labels."""

    def find(result: Results) -> float | None:
        for row in result["rows"]:
            if all(row.get(key) == wanted for key, wanted in labels.items()):
                for key in keys:
                    row = row.get(key) if isinstance(row, dict) else None
                return row
        return None

    return find


def _worst(key: str, *, most: bool = True, **labels: Any) -> Callable[[Results], float | None]:
    """The largest (or smallest) value of `key` among the rows that have these labels."""

    def find(result: Results) -> float | None:
        values = [row[key] for row in result["rows"] if row.get(key) is not None
                  and all(wanted(row.get(label)) if callable(wanted) else row.get(label) == wanted
                          for label, wanted in labels.items())]
        if any(math.isnan(value) for value in values):
            return math.nan
        return (max if most else min)(values) if values else None

    return find


def _psnr(variant: str) -> Callable[[Results], float | None]:
    def find(result: Results) -> float | None:
        rows = result.get("psnr", {}).get("rows", [])
        return next((abs(row["change"]) for row in rows if row["variant"] == variant), None)

    return find


def _fast(name: Any) -> bool:
    return isinstance(name, str) and name.startswith("fast")


def promises() -> list[Promise]:
    """The targets. "faster" is against the released way."""
    return [*_promises_of_cpu(), *_promises_of_gpu()]


def _promises_of_cpu() -> list[Promise]:
    found = []
    for section, what, faster in (("inference", "inference 31x256x256", 1.6), ("training", "training step 4x31x64x64", 1.4)):
        found.append(Promise("cpu", f"{what}, fp32: times faster", faster, section,
                             _value("speedup", "ratio", variant="fast"), least=True))
        found.append(Promise("cpu", f"{what}, fp32: time over the floor", 1.25, section,
                             _value("over_floor", "ratio", variant="fast")))
    return found + _memory_promises("cpu", 0.45, 0.60) + _promises_of_both("cpu")


def _promises_of_gpu() -> list[Promise]:
    found = []
    for section, what in (("inference", "inference 31x512x512"), ("training", "training step 16x31x64x64")):
        for variant, key, precision, faster in (("fast", "speedup", "fp32", 3.0),
                                                ("fast TF32", "same_precision", "TF32 against TF32", 3.0),
                                                ("fast bf16", "speedup", "bf16 against fp32", 5.0)):
            found.append(Promise("cuda", f"{what}, {precision}: times faster", faster, section,
                                 _value(key, "ratio", variant=variant), least=True))
        for variant, precision in (("fast", "fp32"), ("fast TF32", "TF32"), ("fast bf16", "bf16")):
            found.append(Promise("cuda", f"{what}, {precision}: time over the floor", 1.2, section,
                                 _value("over_floor", "ratio", variant=variant)))
    for dtype in ("float32", "bfloat16"):
        find = _worst("of_copy", most=False, work="forward", dtype=dtype, variant=lambda name: name.startswith("triton"))
        found.append(Promise("cuda", f"pooling kernel forward, {dtype}, slower layout: of copy bandwidth", 0.5, "pooling", find,
                             least=True, show=percent))
    return found + _memory_promises("cuda", 0.35, 0.50) + _promises_of_both("cuda")


def _memory_promises(device: str, inference: float, training: float) -> list[Promise]:
    return [Promise(device, f"peak memory, {work}, fp32{', worst size' * (work == 'inference')}: of released", limit, "memory",
                    _worst("share", work=work, variant="fast"), show=percent)
            for work, limit in (("inference", inference), ("training", training))]


def _promises_of_both(device: str) -> list[Promise]:
    found = []
    for precision, variant, error, change in (("fp32", "fast", 1e-5, 0.01), ("bf16", "fast bf16", 2e-2, 0.05)):
        for key in ("output", "gradients"):
            found.append(Promise(device, f"relative error of {key}, {precision}", error, "accuracy",
                                 _worst(key, precision=precision, variant=_fast), show="{:.1e}".format))
        found.append(Promise(device, f"PSNR change of a trained network, {precision} (dB)", change, "accuracy",
                             _psnr(variant), show="{:.5f}".format, missing="give --checkpoint"))
    return [
        *found,
        Promise(device, "degradation of a batch: of its forward pass", 0.05, "degradation", _value("share", work="spatial"),
                show=percent),
        Promise(device, "speed in tiles of 256: of the whole scene's", 0.6, "tiles", _first_tile, least=True, show=percent),
        Promise(device, "loader, one worker: patches/s", 500, "data", _value("patches_per_s", work="one worker"), least=True,
                show="{:.0f}".format),
        Promise(device, "database from 31x1024x1024", 20, "data", lambda r: r["database"]["seconds"], show=seconds),
        Promise(device, "database, memory of the process", 2.5e9, "data", lambda r: r["database"]["process"], show=size),
    ]


def _first_tile(result: Results) -> float | None:
    return next((row["share"] for row in result["rows"] if row["work"] != "whole"), None)


def judge(results: Results, here: str, why: dict[str, str], judged: bool) -> list[dict[str, Any]]:
    """The final table: one row a promise, those of the device that is `here` first.

    Args:
        why: what to say of a device ("cpu", "cuda") or a section that was not measured.
    """
    rows = [promise.row(results, here, why, judged) for promise in promises()]
    return sorted(rows, key=lambda row: (row["device"] == "CPU") != (here == "cpu"))


def verdict_table(rows: Sequence[dict[str, Any]]) -> str:
    return table("Promised and measured", ["on", "what", "promised", "measured", "verdict"],
                 [[row["device"], row["what"], row["promised"], row.get("shown", "-"), row["verdict"]] for row in rows])


# --- the figure -------------------------------------------------------------------------------------------------------

def draw(path: Path, machine: dict[str, Any], results: Results) -> Figure:
    """Left: time and peak memory, the released way being 1; right: time a voxel against bands and pixels."""
    with rc_context(STYLE):
        fig = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        FigureCanvasAgg(fig)
        grid = fig.add_gridspec(2, 2, width_ratios=(1.9, 1))
        _bars(fig.add_subplot(grid[:, 0]), results)
        for k, (axis, label) in enumerate((("bands", "bands"), ("pixels", "pixels"))):
            _growth(fig.add_subplot(grid[k, 1]), results, axis, label, legend=k == 0)
        fig.suptitle(f"{machine['title']}: the same network, computed the released way and this way", fontsize=8)
        with replacing(path) as temporary:
            fig.savefig(temporary, dpi=DPI)
    return fig


def _bars(ax: Axes, results: Results) -> None:
    """For every size, time and memory of the fast variants as a share of the released way's."""
    groups: list[tuple[str, list[tuple[str, str, float, str]]]] = []
    peaks = {(row["work"], row["size"], row["variant"]): row for row in results.get("memory", {}).get("rows", [])}
    timed = [(section, row) for section in ("inference", "training") for row in results.get(section, {}).get("rows", [])]
    for section, row in timed:
        if row["variant"] not in ("fast", "fast bf16") or "speedup" not in row:
            continue
        label = f"{section if section == 'inference' else 'training step'}\n{row['size']}"
        if not groups or groups[-1][0] != label:
            groups.append((label, []))
        faster = row["speedup"]["ratio"]
        groups[-1][1].append((row["variant"], "time", 1 / faster, f"{faster:.1f}x"))
        if share := peaks.get((section, row["size"], row["variant"]), {}).get("share"):
            groups[-1][1].append((row["variant"], "memory", share, f"{100 * share:.0f} %"))
    width = 0.88 / max((len(bars) for _, bars in groups), default=1)
    labelled = set()
    for k, (_, bars) in enumerate(groups):
        for j, (variant, what, value, note) in enumerate(sorted(bars, key=lambda bar: (bar[1] != "time", bar[0]))):
            x = k + (j - (len(bars) - 1) / 2) * width
            name = f"{'time' if what == 'time' else 'peak memory'}, {'bf16' if 'bf16' in variant else 'fp32'}"
            ax.bar(x, value, 0.92 * width, color=COLOURS[variant], alpha=1.0 if what == "time" else 0.45,
                   label=None if name in labelled else name)
            labelled.add(name)
            ax.text(x, value + 0.01, note, ha="center", va="bottom", fontsize=5.5, in_layout=False)
    ax.axhline(1, color=COLOURS["released"], linewidth=1, label="released way")
    ax.set_xticks(range(len(groups)), [label for label, _ in groups], fontsize=6.5)
    ax.set_ylim(0, max([1.3, *(1.15 * value for _, bars in groups for *_, value, _ in bars)]))
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    ax.set_ylabel("of the released way's (label: times faster)")
    ax.legend(loc="upper left", ncols=3)
    _clean(ax)


def _growth(ax: Axes, results: Results, axis: str, label: str, legend: bool) -> None:
    rows = [row for row in results.get("growth", {}).get("rows", []) if row["axis"] == axis]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        points = sorted((row[axis], row["ns_per_voxel"]) for row in rows if row["variant"] == variant)
        ax.plot(*zip(*points, strict=True), marker="o", markersize=3, color=COLOURS.get(variant), label=variant)
    ticks = sorted({row[axis] for row in rows})
    if ticks:
        ax.set_xscale("log")
        ax.set_xticks(ticks, [str(t) if axis == "bands" else f"{round(t ** 0.5)}²" for t in ticks])
        ax.set_xticks([], minor=True)
        ax.set_ylim(0, 1.15 * max(row["ns_per_voxel"] for row in rows))
    if legend and rows:
        ax.legend(loc="lower right", ncols=2)
    others = {row["size"] for row in rows}
    fixed = f" at {next(iter(others)).split('x', 1)[1]}" if axis == "bands" and others else \
        f" at {next(iter(others)).split('x')[0]} bands" if others else ""
    ax.set_xlabel(label + fixed)
    ax.set_ylabel("ns a voxel")
    _clean(ax)


def _clean(ax: Axes) -> None:
    ax.grid(True, axis="y")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
