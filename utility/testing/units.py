"""Whether a cube that another program made is in other values than its ground truth."""
from __future__ import annotations

import numpy as np

from utility.indexes import Comparison, psnr_of

GAIN = 3.0
"""dB of PSNR; interpolation and back-projection of 17 real scenes, x4 and x8, gain 0.26 at most."""
CORRELATION = 0.9
"""Below it the cube is no image of the same scene, and a fit says nothing of its values."""


def other_values(compared: Comparison, low: float, high: float) -> str | None:
    """A sentence where a linear fit of the values raises PSNR by `GAIN` or more, else None.

    The fit is one for the whole cube, or else one for each band.

    Args:
        compared: the cube and its ground truth, both scaled by the ground truth's `low` and `high`.
        low, high: the values of the image that are 0 and 1 in `compared`.
    """
    x, y, xx, xy, yy = np.transpose([_moments(*band) for band in compared.bands()])
    before = _psnr(xx - 2 * xy + yy + (x - y) ** 2)
    # Moments of all bands together, each of shape (1,).
    u, v = x.mean(keepdims=True), y.mean(keepdims=True)
    # covariance of all pixels: mean of those within bands, and that of the bands' means
    between = [np.mean(a * b) - np.mean(a) * np.mean(b) for a, b in ((x, x), (x, y), (y, y))]
    uu, uv, vv = (np.mean(within, keepdims=True) + more
                  for within, more in zip((xx, xy, yy), between, strict=True))
    slope = _slopes(uu, uv)
    offset = v - slope * u
    whole = _psnr(slope**2 * xx - 2 * slope * xy + yy + (slope * x + offset - y) ** 2)
    banded = _psnr(yy - _slopes(xx, xy) * xy)
    if whole - before >= GAIN and _correlation(uu, uv, vv) >= CORRELATION:
        # The same line in the values of the image, in which 0 and 1 are `low` and `high`.
        shift = low * (1 - slope) + offset * (high - low)
        how, after = f"the linear fit {slope.item():.4g} v {shift.item():+.4g} of its values", whole
    elif banded - before >= GAIN and _correlation(xx, xy, yy) >= CORRELATION:
        how, after = "a linear fit of the values of each band", banded
    else:
        return None
    return (f"{how} raises PSNR from {before:.2f} to {after:.2f} dB. So the cube was scaled, for "
            "example by its own minimum and maximum, or is in another unit, such as 0 to 255. The "
            f"image has values from {low:g} to {high:g}; give the cube in these values")


def _moments(x: np.ndarray, y: np.ndarray) -> tuple[float, ...]:
    """Means, variance of x, covariance and variance of y."""
    u, v = x - x.mean(), y - y.mean()
    return x.mean(), y.mean(), np.mean(u * u), np.mean(u * v), np.mean(v * v)


def _slopes(xx: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Of the best lines y = slope x + offset; 0 where x is constant."""
    return np.divide(xy, xx, out=np.zeros_like(xx), where=xx > 0)


def _correlation(xx: np.ndarray, xy: np.ndarray, yy: np.ndarray) -> float:
    """The mean of Pearson's r, without bands in which x or y is constant; 0 without a band."""
    varies = (xx > 0) & (yy > 0)
    xx, xy, yy = xx[varies], xy[varies], yy[varies]
    return float(np.mean(xy / np.sqrt(xx * yy))) if varies.any() else 0.0


def _psnr(mse: np.ndarray) -> float:
    """The mean over bands, as the index of that name."""
    return float(np.mean(psnr_of(mse)))
