"""Quality indexes of a super-resolved cube against its ground truth, and the presets under which papers quote them.

    from utility.indexes import evaluate, format_table, mean_of
    row = evaluate(sr, gt, scale=4)                      # (B, H, W) in [0, 1] -> {"psnr": 38.2, "ssim": .961, ...}

Every preset gives every index; they differ in SSIM and SAM alone:

| preset    | SSIM                                                        | SAM                              |
|-----------|-------------------------------------------------------------|----------------------------------|
| standard  | 11x11 Gaussian window, sigma 1.5, data range 1              | degrees, zero-norm pixels skipped |
| reference | 7x7 uniform window, sample covariance, data range 2         | radians, eps 1e-8, no pixel skipped |
| sspsr     | 7x7 uniform window, sample covariance, data range 1         | degrees, zero-norm pixels skipped |

`reference` is what the method's released code computes (2 is the data range that older scikit-image took for floats);
`sspsr` is the metrics script of SSPSR (Jiang et al., IEEE TCI 2020), the most copied of the field. A number means
something only with its preset, unit and border beside it: `describe` and `format_table` print them.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import correlate1d

from utility.errors import UserError

INDEXES = ("psnr", "cube_psnr", "ssim", "sam", "ergas", "cc", "rmse")
LABELS = {"psnr": "PSNR", "cube_psnr": "cube PSNR", "ssim": "SSIM", "sam": "SAM", "ergas": "ERGAS", "cc": "CC",
          "rmse": "RMSE"}
UNITS = {"psnr": "dB", "cube_psnr": "dB", "ssim": "", "sam": "deg", "ergas": "", "cc": "", "rmse": "",
         "skipped_pixels": "pixels"}
DECIMALS = {"psnr": 3, "cube_psnr": 3, "ssim": 4, "sam": 3, "ergas": 3, "cc": 4, "rmse": 5}
HIGHER_IS_BETTER = {"psnr": True, "cube_psnr": True, "ssim": True, "sam": False, "ergas": False, "cc": True,
                    "rmse": False}
PSNR_CAP = 100.0  # dB; an identical band has no finite PSNR, and a mean over bands needs one
STRIP_ROWS = 128  # rows of a band filtered at a time, so that the temporaries of SSIM are small whatever the scene

_GAUSSIAN = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
_GAUSSIAN /= _GAUSSIAN.sum()
_UNIFORM = np.full(7, 1 / 7)


@dataclass(frozen=True)
class Preset:
    """How one community computes SSIM and SAM; the other indexes are the same for all."""

    taps: np.ndarray          # one axis of the SSIM window, sums to 1
    sample_covariance: bool   # variances divided by n-1 rather than n
    data_range: float
    degrees: bool             # SAM in degrees, zero-norm pixels skipped; else in radians with an epsilon


PRESETS = {
    "standard": Preset(_GAUSSIAN, sample_covariance=False, data_range=1.0, degrees=True),
    "reference": Preset(_UNIFORM, sample_covariance=True, data_range=2.0, degrees=False),
    "sspsr": Preset(_UNIFORM, sample_covariance=True, data_range=1.0, degrees=True),
}


def evaluate(sr: Any, gt: Any, scale: float, preset: str = "standard", border: int = 0) -> dict[str, Any]:
    """All indexes of one super-resolved cube, computed in float64, band by band.

    Args:
        sr, gt: (B, H, W) arrays or tensors; `gt` within [0, 1], `sr` finite (it is not clipped).
        scale: the super-resolution factor s, which ERGAS needs.
        preset: "standard", "reference" or "sspsr".
        border: pixels cut from each of the four edges before anything is computed.

    Returns:
        psnr        dB, mean over bands of 10 log10(1 / MSE_b), each band capped at 100 dB
        cube_psnr   dB, 10 log10(1 / MSE of the whole cube), capped likewise
        ssim        mean over bands (see `band_ssim`)
        sam         mean spectral angle, degrees ("reference": radians) (see `sam_map`)
        ergas       (100 / s) sqrt(mean_b(MSE_b / mean_b(gt)^2)) (Wald, 2000); bands whose ground truth has mean zero
                    are left out
        cc          mean over bands of Pearson's r; bands whose ground truth is constant are left out, and a constant
                    band of `sr` has r = 0
        rmse        sqrt of the MSE of the whole cube
        skipped_pixels   pixels that SAM left out because one of the two spectra is zero ("reference": always 0)

        An index that is left with no pixel or no band is None (`null` in JSON).

    Raises:
        UserError: unknown preset, shapes that differ, NaN or infinity, a ground truth outside [0, 1], or an image
            smaller than the SSIM window after the border is cut.
    """
    how = _preset(preset)
    sr, gt = _cubes(sr, gt, border)
    if not scale > 0:
        raise UserError(f"The scale is {scale}; give the super-resolution factor, a positive number such as 4.")
    bands, height, width = gt.shape
    mse, relative, correlation, similarity = np.empty(bands), [], [], np.empty(bands)
    angle = _SpectralAngle((height, width))
    for b in range(bands):
        x, y = _band(sr, gt, b)
        error = x - y
        mse[b] = np.mean(error * error)
        mean = y.mean()
        if mean != 0:
            relative.append(mse[b] / mean**2)
        if y.min() != y.max():
            correlation.append(_pearson(x, y))
        similarity[b] = _ssim(x, y, how)
        angle.add(x, y)
    sam, skipped = angle.mean(how)
    return {
        "psnr": float(_psnr(mse).mean()),
        "cube_psnr": float(_psnr(mse.mean())),
        "ssim": float(similarity.mean()),
        "sam": sam,
        "ergas": 100 / scale * math.sqrt(np.mean(relative)) if relative else None,
        "cc": float(np.mean(correlation)) if correlation else None,
        "rmse": math.sqrt(mse.mean()),
        "skipped_pixels": skipped,
    }


def band_psnr(sr: Any, gt: Any, border: int = 0) -> np.ndarray:
    """PSNR of each band in dB, (B,): 10 log10(1 / MSE_b), capped at 100 dB (what an identical band gets)."""
    sr, gt = _cubes(sr, gt, border)
    return _psnr(np.array([np.mean((x - y) ** 2) for x, y in (_band(sr, gt, b) for b in range(len(gt)))]))


def band_ssim(sr: Any, gt: Any, preset: str = "standard", border: int = 0) -> np.ndarray:
    """SSIM of each band, (B,) (Wang et al., IEEE TIP 2004).

    The mean, over the pixels whose window lies wholly inside the image, of
    (2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sx^2 + sy^2 + C2)), C1 = (.01 L)^2, C2 = (.03 L)^2, L the data
    range. "standard" is the authors' window, and scikit-image's `gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False`; the uniform 7x7 window with n-1 is scikit-image's default. Both leave out the same
    edge pixels there as here (5 and 3).
    """
    how = _preset(preset)
    sr, gt = _cubes(sr, gt, border)
    return np.array([_ssim(*_band(sr, gt, b), how) for b in range(len(gt))])


def sam_map(sr: Any, gt: Any) -> np.ndarray:
    """Spectral angle of each pixel in degrees, (H, W): arccos(x.y / (|x| |y|)), cosine clipped (Kruse et al., 1993).

    NaN where one of the two spectra is zero: such a pixel has no angle.
    """
    sr, gt = _cubes(sr, gt, 0)
    angle = _SpectralAngle(gt.shape[1:])
    for b in range(len(gt)):
        angle.add(*_band(sr, gt, b))
    return angle.degrees()


def mean_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of each index over images, undefined values (None) left out; `skipped_pixels` is the sum."""
    if not rows:
        raise UserError("There is no image to take the mean of; give at least one ground-truth cube.")
    mean: dict[str, Any] = {}
    for key in rows[0]:
        values = [row[key] for row in rows if row[key] is not None]
        if key == "skipped_pixels":
            mean[key] = int(sum(values))
        else:
            mean[key] = float(np.mean(values)) if values else None
    return mean


def unit(index: str, preset: str = "standard") -> str:
    """Unit of an index under a preset; empty when it has none."""
    return "rad" if index == "sam" and not _preset(preset).degrees else UNITS[index]


def describe(preset: str, scale: float, border: int = 0) -> str:
    """The words that go beside every number: preset, scale, border and whether pixels were skipped."""
    _preset(preset)
    return f"preset {preset}, scale x{scale:g}, border {border} px, data in [0, 1]"


def header(index: str, preset: str = "standard") -> str:
    """Column title: name, unit, and which way is better, e.g. "SAM [deg] ↓"."""
    text, arrow = unit(index, preset), "↑" if HIGHER_IS_BETTER[index] else "↓"
    return f"{LABELS[index]} [{text}] {arrow}" if text else f"{LABELS[index]} {arrow}"


def format_value(index: str, value: float | None) -> str:
    """A value with the decimals its index is quoted with; "-" when it is undefined."""
    return "-" if value is None else f"{value:.{DECIMALS[index]}f}"


def better(index: str, first: float | None, second: float | None) -> tuple[bool, bool]:
    """Which of two values of an index is the better one as they are printed; neither on a tie or a missing value."""
    if first is None or second is None or format_value(index, first) == format_value(index, second):
        return False, False
    wins = (first > second) == HIGHER_IS_BETTER[index]
    return wins, not wins


def format_table(images: Sequence[Mapping[str, Any]], preset: str, scale: float, border: int = 0,
                 labels: tuple[str, str] = ("interpolation", "network")) -> str:
    """The results as text for a terminal: two rows per image, network above interpolation, then their means.

    Args:
        images: as in `metrics.json`: dicts with "name", "network" and "interpolation", the last two from `evaluate`.
        labels: what interpolation and network are called, in this order.
    """
    groups = [(str(image["name"]), image["network"], image["interpolation"]) for image in images]
    groups.append((f"mean of {len(images)}", mean_of([g[1] for g in groups]), mean_of([g[2] for g in groups])))
    lines = [["image", "method", *(header(key, preset) for key in INDEXES)]]
    for name, *rows in groups:
        for shown, label, row in zip((name, ""), labels[::-1], rows, strict=True):
            lines.append([shown, label, *(format_value(key, row[key]) for key in INDEXES)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = "  ".join("-" * w for w in widths)
    text = ["  ".join([*map(str.ljust, line[:2], widths[:2]), *map(str.rjust, line[2:], widths[2:])]) for line in lines]
    notes = [describe(preset, scale, border)]
    skipped = groups[-1][1]["skipped_pixels"]
    if skipped:
        notes.append(f"SAM leaves out {skipped} pixels whose spectrum is zero")
    return "\n".join([text[0], rule, *text[1:-2], rule, *text[-2:], f"({'; '.join(notes)})"])


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise UserError(f"The metric preset {name!r} is not known; choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def _cubes(sr: Any, gt: Any, border: int) -> tuple[np.ndarray, np.ndarray]:
    """The two cubes as arrays (not copied, not converted), checked for shape, with the border cut."""
    sr, gt = (np.asarray(x.detach().cpu() if hasattr(x, "detach") else x) for x in (sr, gt))
    if sr.ndim != 3 or sr.shape != gt.shape or 0 in gt.shape:
        raise UserError(f"The super-resolved cube has shape {sr.shape} and the ground truth {gt.shape}; "
                        "both must be the same (bands, height, width).")
    if border < 0 or 2 * border >= min(gt.shape[1:]):
        raise UserError(f"A border of {border} pixels leaves nothing of {gt.shape[1]}x{gt.shape[2]}; give 0 or "
                        "less than half of the image.")
    inside = np.s_[:, border:gt.shape[1] - border, border:gt.shape[2] - border]
    return sr[inside], gt[inside]


def _band(sr: np.ndarray, gt: np.ndarray, b: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.ascontiguousarray(sr[b], dtype=np.float64), np.ascontiguousarray(gt[b], dtype=np.float64)
    for what, band in (("super-resolved cube", x), ("ground truth", y)):
        if not np.isfinite(band).all():
            raise UserError(f"Band {b} of the {what} holds NaN or infinite values; drop that band or repair it first.")
    low, high = y.min(), y.max()
    if low < -1e-6 or high > 1 + 1e-6:
        raise UserError(f"Band {b} of the ground truth ranges from {low:.4g} to {high:.4g}; the indexes are defined on "
                        "[0, 1], so scale both cubes by the scene's minimum and maximum first.")
    return x, y


def _psnr(mse: np.ndarray | float) -> np.ndarray:
    return -10 * np.log10(np.maximum(mse, 10 ** (-PSNR_CAP / 10)))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if x.min() == x.max():
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))


def _window_mean(x: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Weighted mean over the window of every pixel whose window lies inside: (h, w) -> (h - n + 1, w - n + 1)."""
    pad = len(taps) // 2
    x = correlate1d(x, taps, axis=0)[pad:-pad]
    return correlate1d(x, taps, axis=1)[:, pad:-pad]


def _ssim(x: np.ndarray, y: np.ndarray, how: Preset) -> float:
    size = len(how.taps)
    if min(x.shape) < size:
        raise UserError(f"The image is {x.shape[0]}x{x.shape[1]} pixels without its border, smaller than the "
                        f"{size}x{size} window of SSIM; give a larger image or a smaller border.")
    c1, c2 = (0.01 * how.data_range) ** 2, (0.03 * how.data_range) ** 2
    norm = size**2 / (size**2 - 1) if how.sample_covariance else 1.0
    rows = x.shape[0] - size + 1
    total = 0.0
    for top in range(0, rows, STRIP_ROWS):
        strip = np.s_[top:min(top + STRIP_ROWS, rows) + size - 1]
        u, v = x[strip], y[strip]
        mu, mv = _window_mean(u, how.taps), _window_mean(v, how.taps)
        power = _window_mean(u * u + v * v, how.taps)
        cross = _window_mean(u * v, how.taps)
        means, product = mu * mu + mv * mv, mu * mv
        total += ((2 * product + c1) * (2 * norm * (cross - product) + c2)
                  / ((means + c1) * (norm * (power - means) + c2))).sum()
    return total / (rows * (x.shape[1] - size + 1))


class _SpectralAngle:
    """Sums x.y, x.x and y.y of every pixel as the bands go by, so that no second cube is ever made."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.xy, self.xx, self.yy = (np.zeros(shape) for _ in range(3))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        self.xy += x * y
        self.xx += x * x
        self.yy += y * y

    def degrees(self) -> np.ndarray:
        norm = np.sqrt(self.xx) * np.sqrt(self.yy)
        cosine = np.divide(self.xy, norm, out=np.full_like(norm, np.nan), where=norm > 0)
        return np.degrees(np.arccos(np.clip(cosine, -1, 1)))

    def mean(self, how: Preset) -> tuple[float | None, int]:
        """Mean angle in the preset's unit, and the number of pixels left out."""
        if how.degrees:
            angle = self.degrees()
            skipped = int(np.isnan(angle).sum())
            return (float(np.nanmean(angle)) if skipped < angle.size else None), skipped
        eps = 1e-8
        cosine = (self.xy + eps) / (np.sqrt(self.xx) + eps) / (np.sqrt(self.yy) + eps)
        return float(np.arccos(np.clip(cosine, -1, 1)).mean()), 0
