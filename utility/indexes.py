"""Quality indexes of a cube against its ground truth, and the presets of papers.

    from utility.indexes import evaluate
    row = evaluate(sr, gt, scale=4)       # (B, H, W) in [0, 1] -> {"psnr": 38.2, "ssim": .961, ...}

`METRICS` has one row per index; a new index is one more row. Every preset gives every index;
presets differ in SSIM and SAM:

| preset    | SSIM                                                | SAM                            |
|-----------|-----------------------------------------------------|--------------------------------|
| standard  | 11x11 Gaussian window, sigma 1.5, data range 1      | degrees, zero spectra left out |
| reference | 7x7 uniform window, sample covariance, data range 2 | radians, eps 1e-8, none is     |
| sspsr     | 7x7 uniform window, sample covariance, data range 1 | degrees, zero spectra left out |

`reference` is what the method's released code computes (old scikit-image took a data range of 2 for
floats); `sspsr` is the metrics script of SSPSR (Jiang et al., IEEE TCI 2020), which the field
copies most. A number means something only with its preset, unit and border; the tables of
`utility.report.tables` have them.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.ndimage import correlate1d

from utility.system.errors import UserError

PSNR_CAP = 100.0  # dB; an identical band has no finite PSNR, and a mean over bands needs one
DARK = 0.01  # of the cube's mean: a band below it is left out of ERGAS, and named
# rows of a band filtered at a time, so that the temporaries of SSIM are small whatever the scene
STRIP_ROWS = 128

_GAUSSIAN = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
_GAUSSIAN /= _GAUSSIAN.sum()
_UNIFORM = np.full(7, 1 / 7)


@dataclass(frozen=True)
class Preset:
    """How one community computes SSIM and SAM; the other indexes are the same for all."""

    taps: np.ndarray          # one axis of the SSIM window, sums to 1
    sample_covariance: bool   # variances divided by n-1 rather than n
    data_range: float
    degrees: bool  # SAM in degrees, zero-norm pixels skipped; else in radians with an epsilon


PRESETS = {"standard": Preset(_GAUSSIAN, sample_covariance=False, data_range=1.0, degrees=True),
           "reference": Preset(_UNIFORM, sample_covariance=True, data_range=2.0, degrees=False),
           "sspsr": Preset(_UNIFORM, sample_covariance=True, data_range=1.0, degrees=True)}


class Comparison:
    """A super-resolved cube and its ground truth, checked; what several indexes need is computed
    once, in float64.

    No cube is copied as a whole: every index reads one band at a time.

    Attributes:
        counted: (H, W) bool, the pixels that count, without the border; None: all.
        pixels: how many these are.
    """

    def __init__(self, sr: Any, gt: Any, scale: float = 1, preset: str = "standard",
                 border: int = 0, counted: np.ndarray | None = None) -> None:
        """Arguments and errors as `evaluate`."""
        if not scale > 0:
            raise UserError(f"The scale is {scale}; give the super-resolution factor, a positive "
                            "number such as 4.")
        self.how, self.scale = _preset(preset), scale
        self.sr, self.gt, self.counted = _cubes(sr, gt, border, counted)
        self.pixels = (
            math.prod(self.gt.shape[1:]) if self.counted is None else int(self.counted.sum()))
        if not self.pixels:
            raise UserError("No pixel is left that was measured and has a degraded copy; use a "
                            "scene with fewer missing pixels, or a smaller border.")
        self._per_band: dict[str, np.ndarray] = {}
        for b in range(len(self)):
            _check_band(b, *self.values(b))

    def __len__(self) -> int:
        return len(self.gt)

    def band(self, b: int) -> tuple[np.ndarray, np.ndarray]:
        """Band `b` of both cubes, (H, W) float64, 0 at pixels that do not count."""
        x, y = (np.ascontiguousarray(cube[b], dtype=np.float64) for cube in (self.sr, self.gt))
        if self.counted is None:
            return x, y
        return np.where(self.counted, x, 0), np.where(self.counted, y, 0)

    def values(self, b: int) -> tuple[np.ndarray, np.ndarray]:
        """The values of band `b` of both cubes at the pixels that count, float64, in one shape."""
        x, y = self.sr[b], self.gt[b]
        if self.counted is not None:
            x, y = x[self.counted], y[self.counted]
        return np.ascontiguousarray(x, dtype=np.float64), np.ascontiguousarray(y, dtype=np.float64)

    def bands(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`values` of each band."""
        return map(self.values, range(len(self)))

    def per_band(self, metric: Metric) -> np.ndarray:
        """The values of an index by band, (B,); NaN for a band without a value."""
        if metric.name not in self._per_band:
            self._per_band[metric.name] = np.array(
                [metric.of_band(self, b) for b in range(len(self))])
        return self._per_band[metric.name]

    def indexes(self) -> dict[str, Any]:
        """See `evaluate`."""
        return {**{name: metric.value(self) for name, metric in METRICS.items()},
                "counted_pixels": self.pixels,
                "skipped_pixels": int(np.isnan(self.angles).sum()) - self.angles.size + self.pixels,
                "outside_values": sum(int(((x < 0) | (x > 1)).sum()) for x, _ in self.bands())}

    def band_indexes(self) -> dict[str, np.ndarray]:
        """The indexes of each band: {name: (B,)}, NaN for a band without a value.

        psnr, ssim, cc, rmse and q are those of the band. `ergas` is (100 / s) sqrt(MSE_b) /
        mean_b(gt): the root mean square over bands is the cube's. A band has no spectral angle;
        `sam` is its part in that angle (see `_angle_part`).
        """
        return {name: self.per_band(metric) for name, metric in METRICS.items() if metric.of_band}

    @cached_property
    def mse(self) -> np.ndarray:
        """(B,)"""
        return np.array([np.mean((x - y) ** 2) for x, y in self.bands()])

    @cached_property
    def means(self) -> np.ndarray:
        """Mean of each band of the ground truth, (B,)."""
        return np.array([y.mean() for _, y in self.bands()])

    @cached_property
    def dark(self) -> np.ndarray:
        """Whether the ground truth's mean is below 1 % of the cube's, (B,): dividing by it says
        nothing of the result."""
        return self.means <= DARK * self.means.mean()

    @cached_property
    def _products(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x.y, |x| and |y| of the spectra of every pixel, each (H, W)."""
        xy, xx, yy = (np.zeros(self.gt.shape[1:]) for _ in range(3))
        for x, y in map(self.band, range(len(self))):
            xy += x * y
            xx += x * x
            yy += y * y
        return xy, np.sqrt(xx), np.sqrt(yy)

    @cached_property
    def angles(self) -> np.ndarray:
        """Spectral angle of every pixel in the preset's unit, (H, W); NaN for a pixel that does not
        count, or that the preset skips."""
        xy, x, y = self._products
        if self.how.degrees:
            cosine = np.divide(xy, x * y, out=np.full_like(xy, np.nan), where=x * y > 0)
            return np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        eps = 1e-8
        angles = np.arccos(np.clip((xy + eps) / (x + eps) / (y + eps), -1, 1))
        return angles if self.counted is None else np.where(self.counted, angles, np.nan)


# The indexes --------------------------------------------------------------------------------------

def psnr_of(mse: np.ndarray | float) -> np.ndarray:
    return -10 * np.log10(np.maximum(mse, 10 ** (-PSNR_CAP / 10)))


def _defined_mean(values: np.ndarray) -> float | None:
    """Mean of the values that are not NaN; None when there is none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None


def _ergas(c: Comparison) -> float | None:
    """(100 / s) sqrt(mean_b(MSE_b / mean_b(gt)^2)) (Wald, 2000), but for `Comparison.dark`."""
    used = ~c.dark
    return (100 / c.scale * math.sqrt(np.mean(c.mse[used] / c.means[used] ** 2)) if used.any()
            else None)


def _angle_part(c: Comparison, b: int) -> float:
    """The part of a band in the spectral angle, in the angle's unit: rms over pixels of x_b / |x| -
    y_b / |y|.

    The squares of all bands add up to the mean over pixels of |x / |x| - y / |y||^2 = (2
    sin(angle / 2))^2, in radians. NaN where no pixel has two spectra that are not zero.
    """
    (x, y), (_, norm_x, norm_y) = c.band(b), c._products
    used = norm_x * norm_y > 0
    if not used.any():
        return math.nan
    part = math.sqrt(np.mean((x[used] / norm_x[used] - y[used] / norm_y[used]) ** 2))
    return math.degrees(part) if c.how.degrees else part


def _pearson(c: Comparison, b: int) -> float:
    """Pearson's r; NaN where the ground truth is constant, 0 where the result alone is."""
    x, y = c.values(b)
    if y.min() == y.max():
        return math.nan
    if x.min() == x.max():
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))


def _window_mean(x: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Weighted mean over every window that lies inside: (h, w) -> (h - n + 1, w - n + 1)."""
    inside = slice(len(taps) // 2, -((len(taps) - 1) // 2))
    return correlate1d(correlate1d(x, taps, axis=0)[inside], taps, axis=1)[:, inside]


def _mean_over_windows(c: Comparison, b: int, taps: np.ndarray,
                       value: Callable[..., np.ndarray]) -> float:
    """Mean of value(means of x, y, x^2 + y^2, x y) over the windows that lie wholly inside.

    A window with a pixel that does not count is left out; NaN where none is left.
    """
    x, y = c.band(b)
    size, rows, total, count = len(taps), x.shape[0] - len(taps) + 1, 0.0, 0
    for top in range(0, rows, STRIP_ROWS):
        strip = np.s_[top:min(top + STRIP_ROWS, rows) + size - 1]
        u, v = x[strip], y[strip]
        found = value(*(_window_mean(part, taps) for part in (u, v, u * u + v * v, u * v)))
        if c.counted is not None:
            found = found[_window_mean((~c.counted[strip]).astype(np.float64),
                                       np.full(size, 1 / size)) < 0.5 / size**2]
        total, count = total + found.sum(), count + found.size
    return total / count if count else math.nan


def _ssim(c: Comparison, b: int) -> float:
    """SSIM (Wang et al., IEEE TIP 2004), the mean over pixels with their whole window inside, of

    (2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sx^2 + sy^2 + C2)), C1 = (.01 L)^2, C2 =
    (.03 L)^2, L the data range.

    "standard" has the authors' window, as scikit-image has with `gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False`; the uniform 7x7 window with n-1 is scikit-image's default.
    """
    how, (height, width) = c.how, c.gt.shape[1:]
    size = len(how.taps)
    if min(height, width) < size:
        raise UserError(f"The image is {height}x{width} pixels without its border, smaller than "
                        f"the {size}x{size} window of SSIM; give a larger image or a smaller "
                        "border.")
    c1, c2 = (0.01 * how.data_range) ** 2, (0.03 * how.data_range) ** 2
    norm = size**2 / (size**2 - 1) if how.sample_covariance else 1.0

    def value(mu: np.ndarray, mv: np.ndarray, power: np.ndarray, cross: np.ndarray) -> np.ndarray:
        means, product = mu * mu + mv * mv, mu * mv
        return (2 * product + c1) * (2 * norm * (cross - product) + c2) / (
            (means + c1) * (norm * (power - means) + c2))

    return _mean_over_windows(c, b, how.taps, value)


def _uiqi(c: Comparison, b: int) -> float:
    """Universal image quality index (Wang and Bovik, IEEE SPL 2002), the mean over 8x8 windows of

    4 sxy mx my / ((sx^2 + sy^2)(mx^2 + my^2)); without the first factor where both windows are
    flat, and 1 where both are zero, as the authors' code has it. NaN for an image smaller than the
    window.
    """
    def value(mu: np.ndarray, mv: np.ndarray, power: np.ndarray, cross: np.ndarray) -> np.ndarray:
        means, product = mu * mu + mv * mv, mu * mv
        variances, covariance = power - means, cross - product
        # above rounding
        contrast = np.divide(2 * covariance, variances, out=np.ones_like(means),
                             where=variances > 1e-12)
        return (
            contrast * np.divide(2 * product, means, out=np.ones_like(means), where=means > 1e-12))

    return (_mean_over_windows(c, b, np.full(8, 1 / 8), value) if min(c.gt.shape[1:]) >= 8
            else math.nan)


@dataclass(frozen=True)
class Metric:
    """One index: how it is called, printed, ordered and computed.

    `of_cube` gives the index of a whole cube, `of_band` that of one band. Without `of_cube` the
    index of a cube is the mean over its bands, bands without a value (NaN) left out.
    """

    name: str
    label: str
    unit: str
    decimals: int
    higher_is_better: bool
    of_cube: Callable[[Comparison], float | None] | None = None
    of_band: Callable[[Comparison, int], float] | None = None

    def value(self, comparison: Comparison) -> float | None:
        return (
            self.of_cube(comparison) if self.of_cube else _defined_mean(comparison.per_band(self)))

    def unit_in(self, preset: str) -> str:
        """The unit under a preset; empty where the index has none."""
        return "rad" if self.name == "sam" and not _preset(preset).degrees else self.unit

    def header(self, preset: str) -> str:
        """Column title: label, unit and the better direction, e.g. "SAM [deg] ↓"."""
        unit = f" [{unit}]" if (unit := self.unit_in(preset)) else ""
        return f"{self.label}{unit} {'↑' if self.higher_is_better else '↓'}"

    def format(self, value: float | None) -> str:
        """A value with the decimals that the index is quoted with; "-" where it is undefined."""
        return "-" if value is None else f"{value:.{self.decimals}f}"

    def best(self, values: Sequence[float | None]) -> list[bool]:
        """Which values are the best as printed: all of a tie; none if no two differ."""
        shown = [self.format(v) for v in values]
        known = [v for v in values if v is not None]
        if len(set(shown)) == 1 or len(known) < 2:
            return [False] * len(shown)
        winner = self.format((max if self.higher_is_better else min)(known))
        return [text == winner for text in shown]


def _ergas_of_band(c: Comparison, b: int) -> float:
    return math.nan if c.dark[b] else 100 / c.scale * math.sqrt(c.mse[b]) / c.means[b]


_METRICS = (
    Metric("psnr", "PSNR", "dB", 3, True, of_band=lambda c, b: float(psnr_of(c.mse[b]))),
    Metric("cube_psnr", "cube PSNR", "dB", 3, True, of_cube=lambda c: float(psnr_of(c.mse.mean()))),
    Metric("ssim", "SSIM", "", 4, True, of_band=_ssim),
    Metric("sam", "SAM", "deg", 3, False, of_cube=lambda c: _defined_mean(c.angles),
           of_band=_angle_part),
    Metric("ergas", "ERGAS", "", 3, False, of_cube=_ergas, of_band=_ergas_of_band),
    Metric("cc", "CC", "", 4, True, of_band=_pearson),
    Metric("rmse", "RMSE", "", 5, False, of_cube=lambda c: math.sqrt(c.mse.mean()),
           of_band=lambda c, b: math.sqrt(c.mse[b])),
    Metric("q", "Q", "", 4, True, of_band=_uiqi))
METRICS: dict[str, Metric] = {metric.name: metric for metric in _METRICS}


# what `evaluate` counts beside the indexes
COUNTS = ("counted_pixels", "skipped_pixels", "outside_values")


def evaluate(sr: Any, gt: Any, scale: float, preset: str = "standard", border: int = 0,
             counted: np.ndarray | None = None) -> dict[str, Any]:
    """All indexes of one super-resolved cube, computed in float64.

    Args:
        sr, gt: (B, H, W) arrays or tensors; `gt` within [0, 1], `sr` finite (it is not clipped).
        scale: the super-resolution factor s, which ERGAS needs.
        preset: "standard", "reference" or "sspsr".
        border: pixels cut from each of the four edges before anything is computed.
        counted: (H, W) bool, False for pixels that nobody measured: they are in no index, whatever
            their values.

    Returns:
        psnr        dB, mean over bands of 10 log10(1 / MSE_b), each band capped at 100 dB
        cube_psnr   dB, 10 log10(1 / MSE of the whole cube), capped likewise
        ssim        mean over bands
        sam         mean spectral angle, degrees ("reference": radians)
        ergas       see `_ergas`
        cc          mean over bands of Pearson's r; bands whose ground truth is constant are left
                    out, and a constant band of `sr` has r = 0
        rmse        sqrt of the MSE of the whole cube
        q           mean over bands of the universal image quality index, see `_uiqi`
        counted_pixels   pixels inside the border that count
        skipped_pixels   of these, pixels that SAM left out because one of the two spectra is zero
                    ("reference": always 0)
        outside_values   values of `sr` below 0 or above 1, which a file of integers would clip

        An index that is left with no pixel or no band is None (`null` in JSON).

    Raises UserError: unknown preset, shapes that differ, NaN or infinity, a ground truth outside
    [0, 1], or an image smaller than the SSIM window after the border is cut.
    """
    return Comparison(sr, gt, scale, preset, border, counted).indexes()


def band_psnr(sr: Any, gt: Any, counted: np.ndarray | None = None) -> np.ndarray:
    """PSNR of each band in dB, (B,): 10 log10(1 / MSE_b), capped at 100 dB."""
    return psnr_of(Comparison(sr, gt, counted=counted).mse)


def sam_map(sr: Any, gt: Any, counted: np.ndarray | None = None) -> np.ndarray:
    """Spectral angle of each pixel in degrees, (H, W): arccos(x.y / (|x| |y|)), cosine clipped
    (Kruse et al., 1993).

    NaN where one of the two spectra is zero: such a pixel has no angle. NaN, too, for a pixel that
    does not count.
    """
    return Comparison(sr, gt, counted=counted).angles


# Checks -------------------------------------------------------------------------------------------

def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise UserError(
            f"The metric preset {name!r} is not known; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def _cubes(sr: Any, gt: Any, border: int,
           counted: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The two cubes as arrays (not copied, not converted) and the pixels that count, checked, with
    the border cut."""
    sr, gt = (np.asarray(x.detach().cpu() if hasattr(x, "detach") else x) for x in (sr, gt))
    if sr.ndim != 3 or sr.shape != gt.shape or 0 in gt.shape:
        raise UserError(f"The super-resolved cube has shape {sr.shape} and the ground truth "
                        f"{gt.shape}; both must be the same (bands, height, width).")
    if border < 0 or 2 * border >= min(gt.shape[1:]):
        raise UserError(f"A border of {border} pixels leaves nothing of "
                        f"{gt.shape[1]}x{gt.shape[2]}; give 0 or less than half of the image.")
    inside = np.s_[border:gt.shape[1] - border, border:gt.shape[2] - border]
    if counted is None or counted.all():
        return sr[:, *inside], gt[:, *inside], None
    return sr[:, *inside], gt[:, *inside], np.ascontiguousarray(counted[inside])


def _check_band(b: int, x: np.ndarray, y: np.ndarray) -> None:
    for what, band in (("super-resolved cube", x), ("ground truth", y)):
        if not np.isfinite(band).all():
            raise UserError(f"Band {b} of the {what} holds NaN or infinite values; drop that band "
                            "or repair it first.")
    low, high = y.min(), y.max()
    if low < -1e-6 or high > 1 + 1e-6:
        raise UserError(f"Band {b} of the ground truth ranges from {low:.4g} to {high:.4g}; the "
                        "indexes are defined on [0, 1], so scale both cubes by the scene's minimum "
                        "and maximum first.")
