"""How well a result, degraded again, agrees with the cube that it was made from."""
from __future__ import annotations

import numpy as np

from utility.indexes import PSNR_CAP

AT_ONCE = 1 << 17
"""Pixels of a band that are compared at a time."""


class Agreement:
    """PSNR and spectral angle between two cubes (B, h, w) given in parts, of bands or rows.

    Sums over bands are kept for each pixel, so no cube is held.

    Args:
        shape: (B, h, w).
        counted: (h, w) bool, the pixels that count; None: all.
        zero: the value from which spectral angles are taken.
    """

    def __init__(self, shape: tuple[int, int, int], counted: np.ndarray | None = None,
                 zero: float = 0.0) -> None:
        self.shape, self.zero = shape, zero
        self.counted = np.ones(shape[1:], bool) if counted is None else counted
        self._squares = np.zeros(shape[0])
        self._product, self._again, self._given = (np.zeros(shape[1:]) for _ in range(3))

    def add(self, bands: slice, rows: slice, again: np.ndarray, given: np.ndarray) -> None:
        """Two parts (n, m, w) in the given bands and rows; every value is to be given once."""
        numbers, first = range(*bands.indices(self.shape[0])), rows.indices(self.shape[1])[0]
        step = max(1, AT_ONCE // self.shape[2])
        for top in range(0, again.shape[1], step):
            place = slice(first + top, first + min(top + step, again.shape[1]))
            sums = [plane[place] for plane in (self._product, self._again, self._given)]
            for k, band in enumerate(numbers):
                a, b = (np.asarray(cube[k, top:top + step], np.float64) - self.zero
                        for cube in (again, given))
                for total, value in zip(sums, (a * b, a * a, b * b), strict=True):
                    total += value
                self._squares[band] += np.square(a - b).sum(where=self.counted[place])

    def found(self) -> dict[str, float | None]:
        """`psnr` in dB, mean over bands; `sam` in degrees, mean over pixels that are not zero."""
        mse = np.maximum(self._squares / self.counted.sum(), np.finfo(float).tiny)
        angles, count = 0.0, 0
        # a row of pixels each
        for inside, *row in zip(self.counted, self._product, self._again, self._given, strict=True):
            product, again, given = (values[inside] for values in row)
            norms = np.sqrt(again * given)
            cosine = product[norms > 0] / norms[norms > 0]
            angles, count = (angles + np.degrees(np.arccos(cosine.clip(-1, 1))).sum(),
                             count + cosine.size)
        return {"psnr": float(np.minimum(-10 * np.log10(mse), PSNR_CAP).mean()),
                "sam": float(angles / count) if count else None}
