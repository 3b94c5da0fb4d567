"""Figures of a result: composites with zoomed crops, error maps, spectra, per-band curves.

Cubes are (B, H, W) arrays with any number of bands, in memory or memory-mapped. Errors need values
in [0, 1]; figures show them times 255, the field's unit. Every function draws without a display and
without global state, and returns the `Figure`. It saves the figure, whole or not at all, when
`path` is given (PNG, or PDF by suffix). All panels of a figure share their stretch and their colour
scale. Scales, crops and pixels come from the ground truth or the input, never from a method.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import uniform_filter

from utility.indexes import METRICS
from utility.system.errors import UserError
from utility.system.files import replacing

WIDTH = 7.16  # inches: both columns of an IEEE page
DPI = 200
SMALLEST = 6.5  # points: letters that are easily read on a printed page
ERROR_MAX = 20.0  # of 255: the end of the colour scale of the field's error maps
# Okabe and Ito's colours are told apart with any colour vision.
TRUTH, INTERPOLATION, BACKPROJECTION, NETWORK = "black", "#D55E00", "#009E73", "#0072B2"
OTHERS = ("#CC79A7", "#56B4E9", "#E69F00", "#999999")
# nm shown as red, green, blue
TRUE_COLOUR, FALSE_COLOUR = (640.0, 550.0, 460.0), (860.0, 650.0, 550.0)
GAMMA = 1.6
STYLE = {"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7,
         "ytick.labelsize": 7, "legend.fontsize": 7, "font.family": "DejaVu Sans",
         "axes.linewidth": 0.6, "axes.titlepad": 4, "xtick.major.width": 0.6,
         "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
         "grid.linewidth": 0.4, "grid.color": "0.88", "lines.linewidth": 1.2,
         "legend.frameon": False, "pdf.fonttype": 42, "savefig.facecolor": "white"}

class Units(NamedTuple):
    """What values in [0, 1] stand for in a spectrum: `factor` times them, and `offset` added."""

    factor: Any = 1.0  # a number, or one for each band
    offset: Any = 0.0
    label: str = "Values in [0, 1] of\nthe scene's range"


UNIT_RANGE = Units()

# What is shown of a cube --------------------------------------------------------------------------

def display_bands(bands: int, wavelengths: Sequence[float] | None = None,
                  rgb: Sequence[int] | None = None) -> tuple[tuple[int, int, int], str]:
    """The band indices shown as red, green and blue, and words for the caption.

    True colour (640, 550, 460 nm) when the wavelengths cover it, else near infrared, red, green
    (860, 650, 550 nm), else the `rgb` bands of a card, else three bands evenly spread with the last
    as red.
    """
    if bands == 1:
        return (0, 0, 0), "single band"
    if wavelengths is not None:
        nm = np.asarray(wavelengths, dtype=float)
        for targets, words, reach in ((TRUE_COLOUR, "true colour", 30),
                                      (FALSE_COLOUR, "false colour", 45)):
            nearest = [int(np.argmin(np.abs(nm - t))) for t in targets]
            if (len(set(nearest)) == 3
                    and all(abs(nm[b] - t) <= reach
                            for b, t in zip(nearest, targets, strict=True))):
                return tuple(nearest), f"{words} ({', '.join(f'{nm[b]:.0f}' for b in nearest)} nm)"
    if rgb is None or not all(0 <= b < bands for b in rgb):
        rgb = [round(f * (bands - 1)) for f in (5 / 6, 1 / 2, 1 / 6)]
    return tuple(int(b) for b in rgb), f"bands {', '.join(str(b) for b in rgb)} as red, green, blue"


def composite(cube: np.ndarray, wavelengths: Sequence[float] | None = None,
              rgb: Sequence[int] | None = None, reference: np.ndarray | None = None) -> np.ndarray:
    """Colour image of a cube, (H, W, 3) uint8.

    Each channel is stretched between the 1st and 99th percentile of that channel of `reference`
    (default: the cube), so that panels with one reference can be compared. Gamma correction
    follows: linear light looks black on a screen. NaN is black. `display_bands` chooses the bands.
    """
    _check_cube(cube)
    bands, _ = display_bands(len(cube), wavelengths, rgb)
    reference = cube if reference is None else reference
    if len(reference) != len(cube):
        raise UserError(f"The reference of a composite has {len(reference)} bands and the cube "
                        f"{len(cube)}; give cubes of the same bands.")
    image = np.empty((*cube.shape[1:], 3), np.uint8)
    # percentiles of a large scene from a regular sample of it
    step = max(1, max(reference.shape[1:]) // 512)
    for channel, b in enumerate(bands):
        sample = np.asarray(reference[b, ::step, ::step], dtype=np.float32)
        low, high = (np.percentile(sample[np.isfinite(sample)], (1, 99))
                     if np.isfinite(sample).any() else (0, 1))
        x = (np.asarray(cube[b], dtype=np.float32) - low) / max(high - low, 1e-12)
        x = np.clip(np.nan_to_num(x), 0, 1) ** (1 / GAMMA)
        image[..., channel] = np.round(x * 255)
    return image


def choose_crop(cube: np.ndarray) -> tuple[int, int, int, int]:
    """The window (top, left, height, width), a quarter of each side, that holds the most gradient
    energy."""
    bands, height, width = cube.shape
    # at least 12 pixels, in the shape of the image
    fraction = min(1.0, max(0.25, 12 / min(height, width)))
    h, w = (max(1, round(fraction * n)) for n in (height, width))
    energy = np.zeros((height, width))
    for b in np.unique(np.linspace(0.1, 0.9, 5) * (bands - 1) + 0.5).astype(int):
        x = np.asarray(cube[b], dtype=np.float64)
        variance = np.var(x[np.isfinite(x)]) if np.isfinite(x).any() else 0.0
        for axis in (0, 1):
            if x.shape[axis] > 1:
                energy += np.nan_to_num(np.gradient(x, axis=axis) ** 2 / (variance + 1e-12))
    # a few dead or glinting pixels must not decide
    energy = np.minimum(energy, np.percentile(energy, 98))
    table = np.pad(energy.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    score = table[h:, w:] - table[:-h, w:] - table[h:, :-w] + table[:-h, :-w]
    top, left = np.unravel_index(int(score.argmax()), score.shape)
    return int(top), int(left), h, w


def choose_pixels(cube: np.ndarray, crop: tuple[int, int, int, int]) -> list[tuple[int, int]]:
    """Two pixels (row, column) of different materials: a bright one in the crop, one outside.

    The second is brighter than the median, and its spectral angle to the first is at the 98th
    percentile, not the largest: the largest is often a faulty pixel.
    """
    height, width = cube.shape[1:]
    step = max(1, max(height, width) // 96)
    sample = slice(step // 2, None, step)
    rows, columns = np.arange(height)[sample], np.arange(width)[sample]
    grid = np.stack([np.asarray(band[sample, sample], dtype=np.float64) for band in cube])
    measured = np.isfinite(grid).all(0)
    measured |= not measured.any()
    grid = np.nan_to_num(grid)
    if min(grid.shape[1:]) > 2:
        grid = uniform_filter(grid, (0, 3, 3))  # a spot, not the noise of one pixel
    bright = np.sqrt((grid**2).mean(0))
    top, left, h, w = crop
    r, c = rows[:, None], columns[None]
    margin_r, margin_c = height // 20, width // 20
    inside = (r >= top) & (r < top + h) & (c >= left) & (c < left + w)
    central = ((r >= margin_r) & (r < height - margin_r) & (c >= margin_c) & (c < width - margin_c))
    inner = (r >= top + h // 6) & (r < top + h - h // 6) & (c >= left + w // 6) & (
        c < left + w - w // 6)
    region = next(
        region for region in (inner & measured, inside & measured, measured) if region.any())
    first = np.unravel_index(int(np.where(region, bright, -1).argmax()), bright.shape)
    region = next(region for region in (~inside & central & measured, measured) if region.any())
    lit = region & (bright >= np.median(bright[region]))
    spectrum = grid[:, first[0], first[1]]
    cosine = np.einsum("b,bij->ij", spectrum, grid) / (
        np.linalg.norm(spectrum) * np.linalg.norm(grid, axis=0) + 1e-12)
    order = np.argsort(np.where(lit, 1 - cosine, -1), axis=None)[::-1]
    second = np.unravel_index(int(order[round(0.02 * (lit.sum() - 1))]), cosine.shape)
    return [(int(rows[p[0]]), int(columns[p[1]])) for p in (first, second)]


# Figures ------------------------------------------------------------------------------------------

@rc_context(STYLE)
def comparison_figure(path: str | Path | None, gt: np.ndarray, methods: Mapping[str, np.ndarray], *,
                      wavelengths: Sequence[float] | None = None, rgb: Sequence[int] | None = None,
                      metrics: Mapping[str, Mapping[str, Any]] | None = None, name: str = "",
                      scale: float | None = None, preset: str = "standard", border: int = 0,
                      pixels: Sequence[tuple[int, int]] | None = None, note: str = "") -> Figure:
    """One image at a glance: composites, zoomed crops, error maps on one colour scale, numbers,
    spectra of two pixels.

    Args:
        gt: (B, H, W) in [0, 1].
        methods: {label: cube of the same shape}, in the order in which they are drawn.
        metrics: {label: what `indexes.evaluate` gave under `preset` and `border`}.
        pixels: the (row, column) of the spectra; chosen from the ground truth when not given.
        note: words after the title, such as a warning.
    """
    _check_same(gt, methods)
    cubes = {"Ground truth": gt, **methods}
    colours = method_colours(len(methods))
    crop = choose_crop(gt)
    pixels = choose_pixels(gt, crop) if pixels is None else _check_pixels(gt, pixels)
    numbers = 0.19 * (len(methods) + 2) if metrics else 0.0
    page = _Page(gt.shape[1:], len(cubes), rows=3, below=numbers + 2.3)
    fig = page.figure
    words = display_bands(len(gt), wavelengths, rgb)[1]
    page.title(name, scale, f"{words}; {note}" if note else words)
    _pictures(page, cubes, gt, (TRUTH, *colours), crop, pixels, wavelengths, rgb)

    errors = [_mean_error(cube, gt) for cube in methods.values()]
    mappable, remark = _error_scale(errors)
    for k, (error, colour) in enumerate(zip(errors, colours, strict=True), start=1):
        ax = page.axes(k, 2)
        _show(ax, error, cmap=mappable.cmap, norm=mappable.norm)
        ax.set_title(title := f"mean error {np.nanmean(error):.2f} / 255",
                     size=_fitting([title], page.width), color=colour)
    # The error of the ground truth is zero by definition: its place holds the colour bar.
    x, y = page.corner(0, 2)
    bar = _axes(fig, x + 0.08 * page.width, y + 0.45 * page.height, 0.84 * page.width, 0.09)
    _colour_bar(bar, mappable,
                f"Mean |error|{' ' if page.width > 1.5 else chr(10)}over bands (×255){remark}",
                horizontal=True)

    if metrics:
        ax = _axes(fig, 0.1, page.below, page.page_width - 0.2, numbers)
        _metric_table(ax, {label: metrics[label] for label in methods}, colours, preset, border)
    _spectra_row(page, page.below + numbers, cubes, (TRUTH, *colours), pixels, wavelengths)
    return saved(fig, path)


@rc_context(STYLE)
def no_truth_figure(path: str | Path | None, low: np.ndarray, results: Mapping[str, np.ndarray], *,
                    wavelengths: Sequence[float] | None = None, name: str = "",
                    scale: float | None = None, note: str = "", units: Units = UNIT_RANGE,
                    colours: Sequence[str] | None = None, corner: tuple[int, int] = (0, 0),
                    grid: str = "of the result") -> Figure:
    """A cube without ground truth: the input and the results, with crops and spectra.

    Args:
        low: (B, h, w), the input; shown with its pixels as squares.
        results: {label: (B, H, W)}, H and W the same multiple of h and w, in the order in which
            they are drawn.
        note: a line under the title, such as how well the result agrees with the input.
        units: of the spectra.
        colours: of the results; by default those of `method_colours`.
        corner: row and column of these results in the whole one, whose `grid` the pixels of the
            spectra are named on.
    """
    first = next(iter(results.values()))
    _check_same(first, results)
    _check_cube(low)
    height, width = first.shape[1:]
    ratio = (height / low.shape[1], width / low.shape[2])
    if len(low) != len(first) or ratio[0] != ratio[1] or ratio[0] % 1:
        raise UserError(f"The input has shape {low.shape} and its super-resolved cube "
                        f"{first.shape}; the bands must be the same and the size a whole multiple.")
    factor = int(ratio[0])
    top, left, h, w = choose_crop(low)
    crop = (top * factor, left * factor, h * factor, w * factor)
    pixels = [(r * factor + factor // 2, c * factor + factor // 2)
              for r, c in choose_pixels(low, (top, left, h, w))]
    page = _Page((height, width), 1 + len(results), rows=2, below=2.3)
    words = display_bands(len(low), wavelengths)[1]
    page.title(name, scale or factor, f"{words}; {note}" if note else words)
    colours = (TRUTH, *(colours or method_colours(len(results))))
    _pictures(page, {"Input (enlarged pixels)": low, **results}, low, colours, crop, pixels,
              wavelengths, None)
    _spectra_row(page, page.below, {"Input": _Enlarged(low, factor), **results}, colours, pixels,
                 wavelengths, units, corner, f" {grid}")
    return saved(page.figure, path)


@rc_context(STYLE)
def error_figure(path: str | Path | None, gt: np.ndarray, methods: Mapping[str, np.ndarray],
                 band: int, wavelengths: Sequence[float] | None = None, name: str = "") -> Figure:
    """|error| x 255 of each method at one band, beside that band itself: all maps have one colour
    bar, from 0 to 20, or to less where that would show next to nothing."""
    _check_same(gt, methods)
    if not -len(gt) <= band < len(gt):
        raise UserError(f"Band {band} was asked for an error map of {name or 'a cube'} with "
                        f"{len(gt)} bands; give a band from 0 to {len(gt) - 1}.")
    band %= len(gt)
    where = f"band {band}" + ("" if wavelengths is None else f", {wavelengths[band]:.0f} nm")
    page = _Page(gt.shape[1:], 1 + len(methods), bar=True)
    page.title(name, None, f"absolute error at {where}")
    truth = np.asarray(gt[band], dtype=np.float32)
    ax = page.axes(0)
    low, high = np.nanpercentile(truth, (1, 99))
    _show(ax, truth, cmap="gray", norm=Normalize(low, max(high, low + 1e-12)))
    errors = {label: np.abs(np.asarray(cube[band], dtype=np.float32) - truth) * 255
              for label, cube in methods.items()}
    mappable, remark = _error_scale(errors.values())
    titles = [f"{label}: mean {np.nanmean(error):.2f} / 255" for label, error in errors.items()]
    ax.set_title(f"Ground truth, {where}", size=_fitting(titles, page.width))
    for k, (error, title) in enumerate(zip(errors.values(), titles, strict=True), start=1):
        ax = page.axes(k)
        _show(ax, error, cmap=mappable.cmap, norm=mappable.norm)
        ax.set_title(title, size=_fitting(titles, page.width))
    _colour_bar(page.bar_axes(), mappable, f"|error| (×255){remark}")
    return saved(page.figure, path)


@rc_context(STYLE)
def map_figure(path: str | Path | None, maps: Mapping[str, np.ndarray], title: str, label: str,
               unit: str = "", name: str = "") -> Figure:
    """A map of one number a pixel, such as an angle: a panel per method; NaN is grey.

    Args:
        maps: {label: (H, W)}.
        title, label, unit: of the figure, of the colour bar, of the means.
    """
    page = _Page(next(iter(maps.values())).shape, len(maps), bar=True)
    finite = np.concatenate([m[np.isfinite(m)].ravel() for m in maps.values()])
    mappable = ScalarMappable(
        Normalize(0, _round_up(np.percentile(finite, 99.5) if finite.size else 1.0)), "viridis")
    page.title(name, None, title)
    titles = []
    for method, values in maps.items():
        mean = f": mean {np.nanmean(values):.4g}{unit}" if np.isfinite(values).any() else ""
        titles.append(f"{method}{mean}")
    for k, (values, title) in enumerate(zip(maps.values(), titles, strict=True)):
        ax = page.axes(k)
        ax.set_facecolor("0.7")
        _show(ax, np.ma.masked_invalid(values), cmap=mappable.cmap, norm=mappable.norm)
        ax.set_title(title, size=_fitting(titles, page.width))
    _colour_bar(page.bar_axes(), mappable, label)
    return saved(page.figure, path)


@rc_context(STYLE)
def spectra_figure(path: str | Path | None, cubes: Mapping[str, np.ndarray],
                   pixels: Sequence[tuple[int, int]], wavelengths: Sequence[float] | None = None,
                   name: str = "") -> Figure:
    """Spectra of chosen pixels, one panel per pixel, one line per cube (the first is the ground
    truth)."""
    pixels = _check_pixels(next(iter(cubes.values())), pixels)
    columns = min(len(pixels), 2)
    rows = math.ceil(len(pixels) / columns)
    fig = Figure(figsize=(WIDTH if columns == 2 else WIDTH / 2 + 0.3, 0.1 + 2.4 * rows))
    top = 0.5 + _title(fig, name, None, "")
    width = (fig.get_figwidth() - 0.65 * columns) / columns
    colours = (TRUTH, *method_colours(len(cubes) - 1))
    for k, (pixel, letter) in enumerate(zip(pixels, cycle(ascii_uppercase), strict=False)):
        row, column = divmod(k, columns)
        ax = _axes(fig, 0.55 + column * (width + 0.62), top + row * 2.4, width, 1.6)
        _spectrum(ax, cubes, colours, pixel, wavelengths, legend=k == 0)
        ax.set_title(f"{letter}: row {pixel[0]}, column {pixel[1]}")
    return saved(fig, path)


@rc_context(STYLE)
def band_psnr_figure(path: str | Path | None, curves: Mapping[str, np.ndarray],
                     wavelengths: Sequence[float] | None = None, name: str = "") -> Figure:
    """PSNR of each band, a line per method: {label: (B,) dB}, interpolation first."""
    fig = Figure(figsize=(WIDTH * 0.62, 2.7))
    top = 0.4 + _title(fig, name, None, "PSNR of each band")
    ax = _axes(fig, 0.6, top, WIDTH * 0.62 - 0.75, 1.8)
    for (label, psnr), colour in zip(curves.items(), method_colours(len(curves)), strict=True):
        _curve(ax, wavelengths, np.asarray(psnr), color=colour,
               label=f"{label} (mean {np.mean(psnr):.2f} dB)",
               linestyle="--" if colour == INTERPOLATION else "-")
    _band_axis(ax, wavelengths, len(psnr))
    ax.set_ylabel("PSNR (dB)")
    ax.margins(y=0.18)
    ax.legend(loc="best")
    return saved(fig, path)


@rc_context(STYLE)
def training_curve_figure(path: str | Path | None, rows: Sequence[Mapping[str, Any]],
                          name: str = "", loss: str = "MSE",
                          steps: Sequence[tuple[int, int, float]] = (), note: str = "") -> Figure:
    """Loss and validation PSNR over iterations.

    Args:
        rows: dicts with "iteration" and any of "loss", "psnr", "interpolation_psnr",
            "backprojection_psnr" (dB); a curve leaves out what is missing or None.
        loss: what the loss is, for the label of its axis.
        steps: (iteration, number of steps, their mean loss), drawn behind the means of the epochs.
        note: a warning, for the title.
    """
    fig = Figure(figsize=(WIDTH, 2.6))
    top = 0.42 + _title(fig, name, None, f"WARNING: {note}" if note else "training")
    loss_ax, psnr_ax = (_axes(fig, left, top, 2.65, 1.65) for left in (0.82, 4.32))
    if steps:
        loss_ax.plot([row[0] for row in steps], [row[2] for row in steps], color=NETWORK,
                     alpha=0.35, linewidth=0.6, label="Steps")
    for ax, key, colour, label in ((loss_ax, "loss", NETWORK, "Mean of an epoch"),
                                   (psnr_ax, "psnr", NETWORK, "Network"),
                                   (psnr_ax, "interpolation_psnr", INTERPOLATION, "Interpolation"),
                                   (psnr_ax, "backprojection_psnr", BACKPROJECTION,
                                    "Back-projection")):
        points = np.array(
            [(row["iteration"], row[key]) for row in rows if row.get(key) is not None], dtype=float)
        if not len(points) and key != "loss":
            continue
        few = 0 < len(points) < 25 and colour == NETWORK
        ax.plot(*points.reshape(-1, 2).T, color=colour, label=label,
                linestyle="-" if colour == NETWORK else "--", marker="o" if few else "",
                markersize=2.5)
    if all(line.get_ydata().size and np.nanmin(line.get_ydata()) > 0 for line in loss_ax.lines):
        loss_ax.set_yscale("log")
    loss_ax.set_ylabel(f"Training loss ({loss})" if len(loss) < 8 else f"Training loss\n({loss})")
    if steps:
        loss_ax.legend(loc="best")
    psnr_ax.set_ylabel("Validation PSNR (dB)")
    if psnr_ax.lines:
        psnr_ax.legend(loc="best")
    for ax in (loss_ax, psnr_ax):
        ax.set_xlabel("Iteration")
        _clean(ax)
    return saved(fig, path)


# Page layout, in inches from the top left corner --------------------------------------------------

class _Page:
    """Equal picture panels of the images' shape, at most five side by side; room for a colour bar,
    and for plots below.

    Each of the `count` things shown has `rows` panels, one under the other.
    """

    top, gap_x, gap_y, side = 0.5, 0.08, 0.27, 0.06

    def __init__(self, shape: tuple[int, int], count: int, rows: int = 1, bar: bool = False,
                 below: float = 0.0) -> None:
        self.columns, self.rows = count if count < 6 else 4, rows
        right = 0.62 if bar else 0.0
        self.width = (WIDTH - 2 * self.side - right
                      - self.gap_x * (self.columns - 1)) / self.columns
        self.width = min(self.width, 2.6)
        # The panel of a very long image is shorter than the image, which sits centred in it: the
        # page stays readable.
        self.height = self.width * min(max(shape[0] / shape[1], 0.45), 1.25)
        self.page_width = max(2 * self.side + right + self.columns * self.width
                              + (self.columns - 1) * self.gap_x, 3.4)
        self.below = self.top + rows * math.ceil(count / self.columns) * (self.height + self.gap_y)
        self.figure = Figure(
            figsize=(self.page_width, self.below + (below or self.side - self.gap_y)))

    def title(self, name: str, scale: float | None, words: str) -> None:
        """Before any panel is placed."""
        extra = _title(self.figure, name, scale, words)
        self.top, self.below = self.top + extra, self.below + extra

    def corner(self, k: int, row: int = 0) -> tuple[float, float]:
        """Left and top edge of panel `row` of the k-th thing."""
        block, column = divmod(k, self.columns)
        return (self.side + column * (self.width + self.gap_x),
                self.top + (block * self.rows + row) * (self.height + self.gap_y))

    def axes(self, k: int, row: int = 0) -> Axes:
        return _axes(self.figure, *self.corner(k, row), self.width, self.height)

    def bar_axes(self) -> Axes:
        """Right of the panels."""
        left = self.side + self.columns * (self.width + self.gap_x)
        return _axes(self.figure, left, self.top, 0.11, self.height)


def _axes(fig: Figure, left: float, top: float, width: float, height: float) -> Axes:
    w, h = fig.get_size_inches()
    return fig.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def _title(fig: Figure, name: str, scale: float | None, words: str) -> float:
    """A bold name with the scale factor, and grey `words` beside it. Words that do not fit there at
    a readable size get lines of their own. A name wider than the page loses its middle.

    Call it before axes are placed: it makes the figure higher by those lines.

    Returns: the inches that the figure became higher.
    """
    page, step = fig.get_figwidth() - 0.12, 0.15  # inches
    saved_as = Figure((1, 1), dpi=DPI)  # letters have another width at another resolution
    renderer = FigureCanvasAgg(saved_as).get_renderer()

    def inches(text: str, **font: Any) -> float:
        drawn = saved_as.text(0, 0, text, parse_math=False, **font)
        return drawn.get_window_extent(renderer).width / DPI

    bold, grey = {"weight": "bold", "size": 9}, {"color": "0.35", "size": 7.5}
    factor = f" ×{scale:g}" if scale else ""
    head = _shortened(name, lambda text: inches(text + factor, **bold) <= page) + factor
    start = inches(head.strip(), **bold) + 0.1 if head else 0.0
    beside = min(1.0, (page - start) / max(inches(words, **grey), 1e-6))
    lines, extra = [words], 0.0
    if beside * grey["size"] >= SMALLEST:
        grey["size"] *= beside
    else:
        lines = _wrapped(words, lambda text: inches(text, **grey) <= page)
        start, extra = 0.0, step * len(lines) + 0.02
    height = fig.get_figheight() + extra
    fig.set_figheight(height)
    first = 0.16 + (step + 0.02 if extra else 0)
    texts = [(head.strip(), 0.0, 0.16, bold),
             *((line, start, first + k * step, grey) for k, line in enumerate(lines))]
    for text, left, top, font in texts:
        fig.text((0.06 + left) / fig.get_figwidth(), 1 - top / height, text, va="center",
                 parse_math=False, **font)
    return extra


def _shortened(text: str, fits: Callable[[str], bool]) -> str:
    """`text`, without as much of its middle as it takes to fit."""
    for kept in range(len(text), 1, -1):
        short = text if kept == len(text) else f"{text[:-(-kept // 2)]}…{text[-(kept // 2):]}"
        if fits(short):
            return short
    return text


def _wrapped(text: str, fits: Callable[[str], bool]) -> list[str]:
    """The words of `text` in lines that fit."""
    lines: list[str] = []
    for word in text.split():
        if lines and fits(f"{lines[-1]} {word}"):
            lines[-1] += f" {word}"
        else:
            lines.append(_shortened(word, fits))
    return lines


def _fitting(titles: Iterable[str], width: float) -> float:
    """One size of letters that lets each title fit a panel `width` inches wide."""
    return 8 * min(1, 15 * width / max(map(len, titles)))


def _show(ax: Axes, image: np.ndarray, **how: Any) -> None:
    # Small images show their own pixels; large ones are averaged down to the page's.
    ax.imshow(image, interpolation="nearest" if max(image.shape[:2]) <= 512 else "antialiased",
              **how)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_anchor("C")
    for spine in ax.spines.values():
        spine.set_linewidth(0.4)


def _pictures(page: _Page, cubes: Mapping[str, np.ndarray], reference: np.ndarray,
              colours: Sequence[str], crop: tuple[int, int, int, int],
              pixels: Sequence[tuple[int, int]], wavelengths: Sequence[float] | None,
              rgb: Sequence[int] | None) -> None:
    """Two rows of composites: whole images with the crop's box and the pixels marked, and the
    crops.

    The crop and the pixels are in the grid of the last cube; a cube of a coarser grid is drawn at
    the same place.
    """
    top, left, h, w = crop
    height, width = list(cubes.values())[-1].shape[1:]
    finer = height // next(iter(cubes.values())).shape[1]
    crops = [f"Crop: {h // finer} × {w // finer} {'input ' * (finer > 1)}pixels"]
    crops += [f"{h} × {w} pixels at ×{finer}"] * (finer > 1)
    for column, ((label, cube), colour) in enumerate(zip(cubes.items(), colours, strict=True)):
        factor = height // cube.shape[1]
        # a page holds no more; the composite of a huge scene stays small
        step = max(1, max(cube.shape[1:]) // 1500)
        ax = page.axes(column)
        _show(ax, composite(cube[:, ::step, ::step], wavelengths, rgb, reference),
              extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        ax.set_title(label, size=_fitting(cubes, page.width), color=colour, weight="bold")
        for line, edge in ((2.4, "black"), (1.2, "white")):
            ax.add_patch(Rectangle((left - 0.5, top - 0.5), w, h, fill=False, edgecolor=edge,
                                   linewidth=line))
        for (r, c), letter in zip(pixels, cycle(ascii_uppercase), strict=False):
            outline = [withStroke(linewidth=2, foreground="black")]
            ax.plot(c, r, "+", color="white", ms=6, mew=1.2, path_effects=outline)
            right = c < 0.85 * width
            ax.annotate(letter, (c, r), (3 if right else -3, 3 if r > 0.1 * height else -9),
                        color="white", size=8, weight="bold", textcoords="offset points",
                        ha="left" if right else "right", path_effects=outline)
        ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        ax = page.axes(column, 1)
        inside = np.s_[:, top // factor:(top + h) // factor, left // factor:(left + w) // factor]
        _show(ax, composite(cube[inside], wavelengths, rgb, reference))
        if column < len(crops):
            ax.set_title(crops[column], size=_fitting(crops, page.width), color="0.35")


def _metric_table(ax: Axes, rows: Mapping[str, Mapping[str, Any]], colours: Sequence[str],
                  preset: str, border: int) -> None:
    """One line of numbers per method, the best of each column bold."""
    ax.set_axis_off()
    ax.set(xlim=(0, 1), ylim=(len(rows) + 2, 0))
    shown = [METRICS[key] for key in ("psnr", "ssim", "sam", "ergas", "cc")]
    ends = np.linspace(0.44, 1, len(shown))
    ax.text(0, 0.6, f"preset {preset}, border {border} px", color="0.35", size=6.5, va="center")
    ax.plot((0, 1), (1.1, 1.1), color="0.6", linewidth=0.6)
    for line, (label, colour) in enumerate(zip(rows, colours, strict=True)):
        ax.text(0, line + 1.6, label, color=colour, weight="bold",
                size=min(7.5, 7.5 * 36 / len(label)), va="center")
    for x, metric in zip(ends, shown, strict=True):
        ax.text(x, 0.6, metric.header(preset), ha="right", size=7.5, va="center")
        values = [row[metric.name] for row in rows.values()]
        for line, (value, best) in enumerate(zip(values, metric.best(values), strict=True)):
            ax.text(x, line + 1.6, metric.format(value), ha="right", size=7.5, va="center",
                    weight="bold" if best else "normal")


def _colour_bar(ax: Axes, mappable: ScalarMappable, label: str, horizontal: bool = False) -> None:
    """One bar for all maps of the page."""
    bar = ax.figure.colorbar(mappable, cax=ax, extend="max",
                             orientation="horizontal" if horizontal else "vertical")
    bar.locator = MaxNLocator(5)
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(labelsize=6.5, pad=1.5)
    height = ax.get_position().height * ax.figure.get_figheight()
    bar.set_label(label, size=7 if horizontal or height > 1.7 else 5.5)


def _spectra_row(page: _Page, top: float, cubes: Mapping[str, Any], colours: Sequence[str],
                 pixels: Sequence[tuple[int, int]], wavelengths: Sequence[float] | None,
                 units: Units = UNIT_RANGE, corner: tuple[int, int] = (0, 0), grid: str = ""
                 ) -> None:
    width = (page.page_width - 0.65 * 2) / 2
    for k, (pixel, letter) in enumerate(zip(pixels, "AB", strict=False)):
        ax = _axes(page.figure, 0.57 + k * (width + 0.65), top + 0.08, width, 1.75)
        _spectrum(ax, cubes, colours, pixel, wavelengths, legend=k == 0, units=units)
        row, column = (first + n for first, n in zip(corner, pixel, strict=True))
        ax.set_title(f"{letter}: row {row}, column {column}{grid}")


def _spectrum(ax: Axes, cubes: Mapping[str, Any], colours: Sequence[str], pixel: tuple[int, int],
              wavelengths: Sequence[float] | None, legend: bool, units: Units = UNIT_RANGE) -> None:
    r, c = pixel
    for k, ((label, cube), colour) in enumerate(zip(cubes.items(), colours, strict=True)):
        spectrum = units.factor * np.asarray(cube[:, r, c], dtype=np.float64) + units.offset
        _curve(ax, wavelengths, spectrum, color=colour, label=label,
               linewidth=1.6 if k == 0 else 1.1, zorder=2 + k,
               linestyle="--" if colour == INTERPOLATION else "-")
    _band_axis(ax, wavelengths, len(spectrum))
    ax.set_ylabel(units.label, size=7, linespacing=1.0, labelpad=2, parse_math=False)
    ax.ticklabel_format(axis="y", scilimits=(-3, 4))
    if legend:
        ax.legend(loc="best", handlelength=2.2)


def _curve(ax: Axes, wavelengths: Sequence[float] | None, y: np.ndarray, **how: Any) -> None:
    """A line over bands, broken where bands were removed (water vapour); few bands get markers."""
    x = (np.arange(len(y), dtype=float) if wavelengths is None
         else np.asarray(wavelengths, dtype=float))
    order = np.argsort(x, kind="stable")
    x, y = x[order], np.asarray(y, dtype=float)[order]
    if len(x) > 2:
        steps = np.diff(x)
        gaps = np.flatnonzero(steps > 4 * np.median(steps)) + 1
        x, y = np.insert(x, gaps, np.nan), np.insert(y, gaps, np.nan)
    ax.plot(x, y, marker="o" if len(y) < 12 else "", markersize=3, **how)


def _band_axis(ax: Axes, wavelengths: Sequence[float] | None, bands: int) -> None:
    ax.set_xlabel("Band" if wavelengths is None else "Wavelength (nm)")
    if bands == 1:
        ax.set_xticks([0 if wavelengths is None else wavelengths[0]])
    elif wavelengths is None:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0.02 if bands > 1 else 0.5)
    _clean(ax)


def _clean(ax: Axes) -> None:
    ax.grid(True)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def saved(fig: Figure, path: str | Path | None) -> Figure:
    """Write the figure to `path`, whole or not at all; None writes nothing. Returns the figure."""
    FigureCanvasAgg(fig)
    if path is not None:
        with replacing(path) as temporary:
            fig.savefig(temporary, dpi=DPI)
    return fig


# Small helpers ------------------------------------------------------------------------------------

class _Enlarged:
    """A low-resolution cube read at the pixels of a grid `factor` times finer."""

    def __init__(self, cube: np.ndarray, factor: int) -> None:
        self.cube, self.factor = cube, factor

    def __getitem__(self, index: tuple[Any, int, int]) -> np.ndarray:
        bands, r, c = index
        return self.cube[bands, r // self.factor, c // self.factor]


def _error_scale(errors: Iterable[np.ndarray]) -> tuple[ScalarMappable, str]:
    """The one colour scale of several maps of |error| x 255, and what its bar says of it.

    The scale is the field's, from 0 to `ERROR_MAX`. It leaves the maps of a dark band almost black.
    So it ends at the largest error where that is below half of `ERROR_MAX`.
    """
    finite = [error[np.isfinite(error)] for error in errors]
    largest = max((float(np.percentile(one, 99.5)) for one in finite if one.size), default=0.0)
    small = 0 < largest < ERROR_MAX / 2
    end = _round_up(largest) if small else ERROR_MAX
    remark = f"\nsmall errors: to {end:g}, not {ERROR_MAX:g}" * small
    return ScalarMappable(Normalize(0, end), "inferno"), remark


def _mean_error(cube: np.ndarray, gt: np.ndarray) -> np.ndarray:
    total = np.zeros(gt.shape[1:], np.float32)
    for x, y in zip(cube, gt, strict=True):
        total += np.abs(np.asarray(x, dtype=np.float32) - np.asarray(y, dtype=np.float32))
    return total * (255 / len(gt))


def method_colours(count: int) -> list[str]:
    """Interpolation, back-projection, network, then others: the order of methods."""
    colours = (INTERPOLATION, BACKPROJECTION, NETWORK, *OTHERS)
    return [colours[k % len(colours)] for k in range(count)]


def _round_up(value: float) -> float:
    """A round end of a colour bar: 1, 1.5, 2, 3, 4, 5, 6, 8 or 10 times a power of ten."""
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power
                for m in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if m * power >= value * (1 - 1e-9))


def _check_cube(cube: np.ndarray) -> None:
    if cube.ndim != 3 or 0 in cube.shape:
        raise UserError(
            f"An array of shape {cube.shape} cannot be drawn; give a cube (bands, height, width).")


def _check_same(gt: np.ndarray, methods: Mapping[str, np.ndarray]) -> None:
    _check_cube(gt)
    for label, cube in methods.items():
        if cube.shape != gt.shape:
            raise UserError(f"The cube of {label} has shape {cube.shape} and is compared with one "
                            f"of shape {gt.shape}; give cubes of one shape.")


def _check_pixels(cube: np.ndarray, pixels: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    height, width = cube.shape[1:]
    for r, c in pixels:
        if not (0 <= r < height and 0 <= c < width):
            raise UserError(f"The pixel ({r}, {c}) lies outside of an image of {height} rows and "
                            f"{width} columns; give ROW,COLUMN inside of the image.")
    if not pixels:
        raise UserError("No pixel was given to draw spectra of; give at least one as ROW,COLUMN.")
    return [(int(r), int(c)) for r, c in pixels]
