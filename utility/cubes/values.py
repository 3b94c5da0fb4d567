"""The values of a cube: their range, what is missing, [0, 1] and back, and their hash."""
from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from utility.cubes.cube import Scene, blocks
from utility.system.errors import UserError

NEAR_ZERO, FAR_BELOW, OUTLIERS = 0.002, 0.01, 0.05
"""Of a cube without ground truth. The first two are shares of its highest value: a smallest value
above 0 counts as 0 up to the first, and one below 0 is far from it beyond the second. The third is
the share of all values that may lie below 0 and still be outliers."""


def value_range(scene: Scene, keep: bool = False, own: bool = False) -> tuple[float, float]:
    """Smallest and largest value of a scene in float64, read in blocks: what becomes 0 and 1.

    (0, 1) for a scene that is normalised already.

    Args:
        keep: the user says that the values are in [0, 1] already; the range is (0, 1) then.
        own: the scene has no ground truth. Spectral angles depend on where the zero of the values
            is, and so do networks. So 0 takes the place of the smallest value where that is within
            `NEAR_ZERO` above it, or is an outlier: farther than `FAR_BELOW` below it, with at most
            `OUTLIERS` of all values below 0. These stay below 0.

    Raises UserError: the scene holds NaN or infinite values or is constant; with `keep`, a value
    lies outside [0, 1].
    """
    if scene.normalised:
        return 0.0, 1.0
    cube, statistics = scene.counted or (None, None)
    if cube is not scene.cube:
        statistics = band_statistics(scene.cube, missing=scene.filled)
    if not keep:
        low, high = _limits(statistics, scene, scene.filled)
        outlier = (low < -FAR_BELOW * high
                   and statistics.negative.sum() <= OUTLIERS * math.prod(scene.cube.shape))
        return 0.0 if own and (0 <= low <= NEAR_ZERO * high or outlier) else low, high
    low, high = float(np.nanmin(statistics.low)), float(np.nanmax(statistics.high))
    if not (low >= 0 and high <= 1):
        raise UserError(f"{scene} holds values from {low:g} to {high:g}, and --keep-range expects "
                        "them in [0, 1]; leave it out to scale them by their minimum and maximum.")
    return 0.0, 1.0


def _limits(statistics: BandStatistics, place: Scene | str,
            filled: np.ndarray | None = None) -> tuple[float, float]:
    """The lowest and highest value; the pixels of `filled` (H, W) are in neither."""
    if filled is not None and filled.all():
        raise UserError(f"{place} has no pixel that was measured in all its bands; leave it out.")
    if statistics.not_finite.any():
        raise UserError(f"{place} has {int(statistics.not_finite.sum())} values that are NaN or "
                        "infinite, where numbers were expected; drop those bands or fill them "
                        "first (--drop-bad-bands, --fill-nodata).")
    low, high = float(statistics.low.min()), float(statistics.high.max())
    if not high > low:
        raise UserError(
            f"{place} is constant ({low:g}), and has no contrast to work on; leave it out.")
    return low, high


def without_gain(scene: Scene) -> Scene:
    """The scene for values that are no longer those of its file: without gain, offset and units."""
    gains = ("data gain values", "data offset values", "reflectance scale factor")
    header = {name: value for name, value in scene.metadata.get("header", {}).items()
              if name not in gains}
    metadata = scene.metadata | ({"header": header} if "header" in scene.metadata else {})
    return replace(scene, gain=None, offset=None, units="", metadata=metadata)


def content_hash(cube: Any) -> str:
    """SHA-256 of a cube's shape and values as float32, whatever file and layout held them."""
    digest = hashlib.sha256(repr(tuple(cube.shape)).encode())
    for index in blocks(cube, axis=0):
        digest.update(np.ascontiguousarray(cube[index], "<f4"))
    return digest.hexdigest()


def unit_range(cube: Any, low: float | None = None,
               high: float | None = None) -> tuple[np.ndarray, float, float]:
    """``(cube - low) / (high - low)`` in float64, returned as float32, with the low and high used.

    Without low or high they are the cube's own minimum and maximum, and the result lies in [0, 1];
    values outside given limits are left outside.

    Raises UserError: the cube is constant, or holds NaN or infinite values.
    """
    if low is None or high is None:
        least, most = _limits(band_statistics(cube), "The cube")
        low, high = least if low is None else low, most if high is None else high
    span = float(high) - float(low)
    if not span > 0 or not math.isfinite(span):
        raise UserError(f"The cube's values run from {low:g} to {high:g}, where a range was "
                        "expected; it has no contrast to work on.")
    unit = np.empty(cube.shape, np.float32)
    for index in blocks(cube, target=4 << 20):
        unit[index] = (np.asarray(cube[index]).astype(np.float64) - low) / span
    return unit, float(low), float(high)


def from_unit_range(cube: np.ndarray, low: float, high: float, dtype: Any,
                    on_overflow: str = "refuse") -> np.ndarray:
    """``low + cube * (high - low)`` in float64, rounded for integers; undoes `unit_range`.

    Args:
        cube: any shape, about [0, 1].
        low, high: as `unit_range` returned them.
        dtype: of the result.
        on_overflow: what happens to values that `dtype` cannot hold: "refuse" or "clip".

    Raises UserError: values overflow `dtype` and on_overflow is "refuse", or NaN is to become an
    integer.
    """
    if on_overflow not in ("refuse", "clip"):
        raise ValueError(f"on_overflow is {on_overflow!r}, expected 'refuse' or 'clip'")
    dtype = np.dtype(dtype)
    values = np.array(cube, np.float64)
    values *= float(high) - float(low)
    values += float(low)
    least, most = limits_of(dtype).min, limits_of(dtype).max
    if dtype.kind != "f":
        np.rint(values, out=values)
    if values.size and float(least) <= values.min() and values.max() <= float(most) == most:
        return values.astype(dtype)
    if dtype.kind != "f" and np.isnan(values).any():
        raise UserError(f"The result holds NaN, which {dtype} cannot; write a floating-point type.")
    above, below = values > float(most), values < float(least)
    outside = int(above.sum() + below.sum())
    if outside and on_overflow == "refuse":
        raise UserError(f"{outside} values of the result ({values.min():g} .. {values.max():g}) do "
                        f"not fit {dtype} ({least} .. {most}); clip them, or write a wider type.")
    # float64 rounds a limit of 64 bits up, and the rounded limit would wrap
    if float(most) != most:
        above = values >= float(most)
    if not (above.any() or below.any()):
        return values.astype(dtype)
    clipped = np.where(above | below, 0, values).astype(dtype)
    clipped[above], clipped[below] = most, least
    return clipped


@dataclass
class BandStatistics:
    """Per band, over its valid pixels: lowest and highest value (NaN where none is valid), and
    counts of the others."""
    low: np.ndarray         # (B,) float64
    high: np.ndarray        # (B,) float64
    not_finite: np.ndarray  # (B,) pixels that are NaN or infinite
    missing: np.ndarray     # (B,) pixels that hold the no-data value, or are declared missing
    negative: np.ndarray    # (B,) valid pixels below 0


def band_statistics(cube: Any, nodata: float | None = None,
                    missing: np.ndarray | None = None) -> BandStatistics:
    """One pass over a cube in memory or on disk, in blocks.

    Args:
        nodata: the value of pixels that nobody measured.
        missing: (H, W), True where nobody measured, whatever the value.
    """
    count = cube.shape[0]
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    not_finite, lost, negative = (np.zeros(count, np.int64) for _ in range(3))
    marker = marker_of(cube.dtype, nodata)
    for index in blocks(cube):
        block = np.asarray(cube[index])
        at, valid = index[0], True
        least, most = block.min((1, 2)), block.max((1, 2))
        if (marker is not None or missing is not None or not np.isfinite(least).all()
                or not np.isfinite(most).all()):
            finite = np.isfinite(block)
            gone = block == marker if marker is not None else np.zeros_like(finite)
            if missing is not None:
                gone |= missing[index[1:]]
            not_finite[at] += (~finite & ~gone).sum((1, 2))
            lost[at] += gone.sum((1, 2))
            valid = finite & ~gone
            limits = limits_of(block.dtype)
            least = np.where(valid.any((1, 2)), block.min((1, 2), where=valid, initial=limits.max),
                             np.inf)
            most = np.where(valid.any((1, 2)), block.max((1, 2), where=valid, initial=limits.min),
                            -np.inf)
        if (least < 0).any():
            negative[at] += (block < 0).sum((1, 2), where=valid)
        low[at], high[at] = np.minimum(low[at], least), np.maximum(high[at], most)
    empty = low > high
    low[empty] = high[empty] = np.nan
    return BandStatistics(low, high, not_finite, lost, negative)


def limits_of(dtype: np.dtype) -> np.finfo | np.iinfo:
    """Smallest and largest number of a type, as `min` and `max`."""
    return np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)


def marker_of(dtype: np.dtype, nodata: float | None) -> Any:
    """The no-data value as the cube's type stores it; None where it cannot, or there is none."""
    dtype = np.dtype(dtype)
    if nodata is None or math.isnan(nodata):
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(nodata)
    limits = np.iinfo(dtype)
    return (dtype.type(int(nodata))
            if float(nodata).is_integer() and limits.min <= nodata <= limits.max else None)
