"""Values of missing pixels that no file declares."""
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from utility.cubes.values import BandStatistics

USUAL = (-9999.0, -99999.0, -999.0, -32768.0, -32767.0, 65535.0, 9.969209968386869e36, 1e20,
         -3.4028234663852886e38)
"""What agencies, netCDF and GIS programs write where nothing was measured."""
LEAST = 0.001
"""Share of the pixels at least."""


class Fill(NamedTuple):
    """A value that is likely to stand for missing pixels, and its share of a band's pixels."""

    value: float
    share: float


def likely_fill(cube: Any, statistics: BandStatistics) -> Fill | None:
    """A usual fill value in more than `LEAST` of the pixels, at the border, far from all others.

    Args:
        cube: (B, H, W), without a declared no-data value; one of its bands is read where an end of
            its range is such a value.
    """
    for value in USUAL:
        at_end = np.isclose(statistics.low, value, rtol=1e-3, atol=0) | np.isclose(
            statistics.high, value, rtol=1e-3, atol=0)
        if 2 * at_end.sum() < len(at_end):
            continue
        band = np.asarray(cube[int(np.flatnonzero(at_end)[0])], dtype=np.float64)
        filled = np.isclose(band, value, rtol=1e-3, atol=0)
        border = filled[[0, -1]].any() or filled[:, [0, -1]].any()
        rest = band[~filled & np.isfinite(band)]
        if filled.mean() <= LEAST or not border or not rest.size:
            continue
        distance = max(rest.min() - value, value - rest.max())
        if distance > rest.max() - rest.min():
            return Fill(float(band[filled][0]), float(filled.mean()))
    return None
