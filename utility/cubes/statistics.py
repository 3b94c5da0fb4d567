"""What the values of a cube are: lowest and highest of each band, what is missing, the limits of a data type."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from utility.cubes.cube import blocks


@dataclass
class BandStatistics:
    """Per band, over its valid pixels: lowest and highest value (NaN where none is valid), and counts of the others."""
    low: np.ndarray         # (B,) float64
    high: np.ndarray        # (B,) float64
    not_finite: np.ndarray  # (B,) pixels that are NaN or infinite
    missing: np.ndarray     # (B,) pixels that hold the no-data value, or are declared missing


def band_statistics(cube: Any, nodata: float | None = None, missing: np.ndarray | None = None) -> BandStatistics:
    """One pass over a cube in memory or on disk, in blocks.

    Args:
        nodata: the value of pixels that nobody measured.
        missing: (H, W), True where nobody measured, whatever the value.
    """
    count = cube.shape[0]
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    not_finite, lost = np.zeros(count, np.int64), np.zeros(count, np.int64)
    marker = marker_of(cube.dtype, nodata)
    for index in blocks(cube):
        block = np.asarray(cube[index])
        at = index[0]
        least, most = block.min((1, 2)), block.max((1, 2))
        if marker is not None or missing is not None or not np.isfinite(least).all() or not np.isfinite(most).all():
            finite = np.isfinite(block)
            gone = block == marker if marker is not None else np.zeros_like(finite)
            if missing is not None:
                gone |= missing[index[1:]]
            not_finite[at] += (~finite & ~gone).sum((1, 2))
            lost[at] += gone.sum((1, 2))
            valid = finite & ~gone
            limits = limits_of(block.dtype)
            least = np.where(valid.any((1, 2)), block.min((1, 2), where=valid, initial=limits.max), np.inf)
            most = np.where(valid.any((1, 2)), block.max((1, 2), where=valid, initial=limits.min), -np.inf)
        low[at], high[at] = np.minimum(low[at], least), np.maximum(high[at], most)
    empty = low > high
    low[empty] = high[empty] = np.nan
    return BandStatistics(low, high, not_finite, lost)


def limits_of(dtype: np.dtype) -> np.finfo | np.iinfo:
    """Smallest and largest number of a type, as `min` and `max`."""
    return np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)


def marker_of(dtype: np.dtype, nodata: float | None) -> Any:
    """The no-data value as the cube's own type stores it; None where the type cannot hold it, or there is none."""
    dtype = np.dtype(dtype)
    if nodata is None or math.isnan(nodata):
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(nodata)
    limits = np.iinfo(dtype)
    return dtype.type(int(nodata)) if float(nodata).is_integer() and limits.min <= nodata <= limits.max else None
