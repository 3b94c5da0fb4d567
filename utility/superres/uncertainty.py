"""What is not certain in a result: halos, and the spread of a self-ensemble's results."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from utility.cubes.containers import files_of
from utility.cubes.cube import Scene
from utility.degradation import Degradation
from utility.scenes import write_scene

ROUNDING = 1e-6
"""Of values in [0, 1]: no halo lies this near to the range of its neighbours."""
FAR, MUCH = 0.1, 0.02
"""A value is far out that lies outside its band's range in the input by more than `FAR` of that
range; more than `MUCH` of them are warned of. Of the true high-resolution cubes of five real scenes
0.4 to 1.3 % are far out, at x2 and x4. Of their back-projections it is 2.5 to 8.7 % where
`gaussian` at x2 takes a cube for blurred that is not, and below 0.7 % at x4."""
PLACE = ("map info", "projection info", "coordinate system string", "pixel size", "sensor type",
         "acquisition time")
"""Fields of an ENVI header that hold for a raster of other bands and values too."""


class Halo:
    """Counts the values of a result, given block by block, outside the range of the 3 x 3
    low-resolution pixels around them, and those far outside the range of the band (see `FAR`).

    Args:
        low: (B, h, w) in [0, 1].
        scale, kind: of the grid of the result, see `degradation.grid`.
        missing: (h, w), True for pixels that do not count.
    """

    def __init__(self, low: np.ndarray, scale: int, kind: str,
                 missing: np.ndarray | None = None) -> None:
        self.low, self.missing, self.count, self.far, self.total = low, missing, 0, 0, 0
        self._ranges = [(float(band.min()), float(band.max())) for band in low]
        self._places = [Degradation.of(scale, kind).nearest(n) for n in low.shape[1:]]

    def add(self, top: int, left: int, block: np.ndarray) -> None:
        """Count a block (B, rows, columns) in [0, 1] at (top, left)."""
        rows, columns = (where[first:first + n] for where, first, n in
                         zip(self._places, (top, left), block.shape[1:], strict=True))
        counts = None if self.missing is None else ~self.missing[np.ix_(rows, columns)]
        first = max(rows[0] - 1, 0), max(columns[0] - 1, 0)
        around = np.asarray(self.low[:, first[0]:rows[-1] + 2, first[1]:columns[-1] + 2])
        limits = (_of_neighbours(np.maximum, around) + np.float32(ROUNDING),
                  _of_neighbours(np.minimum, around) - np.float32(ROUNDING))
        rows, columns = rows - first[0], columns - first[1]
        for band, most, least, (lowest, highest) in zip(block, *limits, self._ranges, strict=True):
            most, least = (limit.take(columns, 1).take(rows, 0) for limit in (most, least))
            self.count += _counted(band > most, counts) + _counted(band < least, counts)
            margin = np.float32(FAR * (highest - lowest) + ROUNDING)
            if band.max() > highest + margin or band.min() < lowest - margin:
                self.far += (_counted(band > highest + margin, counts)
                             + _counted(band < lowest - margin, counts))
        self.total += len(block) * (block[0].size if counts is None else int(counts.sum()))

    @property
    def share(self) -> float:
        return self.count / max(self.total, 1)

    @property
    def far_share(self) -> float:
        return self.far / max(self.total, 1)


def _of_neighbours(most: np.ufunc, cube: np.ndarray) -> np.ndarray:
    """The highest (or lowest) of the 3 x 3 pixels around each, those outside (B, h, w) left out."""
    for axis in (1, 2):
        x = np.moveaxis(cube, axis, 0)
        cube = cube.copy()
        out = np.moveaxis(cube, axis, 0)
        most(out[1:], x[:-1], out=out[1:])
        most(out[:-1], x[1:], out=out[:-1])
    return cube


def _counted(found: np.ndarray, counts: np.ndarray | None) -> int:
    return int(np.count_nonzero(found if counts is None else found & counts))


class Spread:
    """The standard deviation over the results of a self-ensemble, mean over bands: a raster of one
    band beside the result.

    As a context: a failure inside takes the raster, if it was written, with it.

    Args:
        target: the file of the result; the raster is NAME_spread.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f"{target.stem}_spread{target.suffix}")
        self.values, self._written = np.empty((1, 0, 0), np.float32), False

    def __enter__(self) -> Spread:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        for file in files_of(self.path) if failure and self._written else ():
            file.unlink(missing_ok=True)

    def begin(self, shape: tuple[int, int]) -> None:
        """`shape` is that of the result, (H, W)."""
        self.values = np.zeros((1, *shape), np.float32)

    def take(self, top: int, left: int, plane: np.ndarray) -> None:
        """A part (rows, columns), of values in [0, 1]."""
        self.values[0, top:top + plane.shape[0], left:left + plane.shape[1]] = plane

    def write(self, like: Scene, span: float, missing: np.ndarray | None,
              overwrite: bool) -> dict[str, Any]:
        """Write it in the values of the result `like`; where `missing` (h, w) is True, it is NaN.

        Args:
            span: the difference of the values of 1 and 0.

        Returns: for the summary: `file`, `mean` in those values, `mean_of_range` in the range.

        Raises UserError: the file exists, or cannot be written.
        """
        self.values *= span
        gone = missing is not None and missing.any()
        if gone:
            scale = self.values.shape[1] // missing.shape[0]
            self.values[0, missing.repeat(scale, 0).repeat(scale, 1)] = np.nan
        made = dict(like.metadata["provenance"])
        made["description"] = ("Standard deviation of the 8 results of a self-ensemble, mean over "
                               f"bands. {made['description']}")
        header = {name: value
                  for name, value in like.metadata.get("header", {}).items()
                  if name.lower() in PLACE}
        kept = {name: like.metadata[name]
                for name in {"compression", "interleave", "byte order",
                             "cog"} & like.metadata.keys()}
        write_scene(self.path,
                    replace(like, cube=self.values, key="spread", wavelengths=None,
                            normalised=False, band_names=["spread"], fwhm=None, good=None,
                            gain=None, offset=None, lonlat=None, nodata=np.nan if gone else None,
                            metadata={**kept, "header": header, "provenance": made}), overwrite)
        self._written = True
        mean = float(np.nanmean(self.values, dtype=np.float64))
        return {"file": str(self.path), "mean": mean, "mean_of_range": mean / span}
