"""The values of a result as its file holds them: their type, their limits, no-data, bad bands."""
from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utility.cubes.bands import select_bands
from utility.cubes.cube import Scene
from utility.cubes.values import band_statistics, from_unit_range, limits_of
from utility.superres.problem import Problem
from utility.superres.tiling import Source, interpolated
from utility.system.errors import UserError

COARSE = 50
"""Steps of 1 in the range of a band, below which an integer type is refused for values that are no
integers: each band would be a few flat levels."""


@dataclass(frozen=True)
class Writing:
    """How the result is written; the defaults are the input's own."""

    dtype: str | None = None        # a NumPy type's name
    on_overflow: str = "clip"       # or "refuse": values that the type cannot hold
    # in [0, 1] as float32, instead of the input's values; what lies outside is clipped
    unit_range: bool = False
    overwrite: bool = False
    cog: bool = False               # a cloud-optimised GeoTIFF, with overviews
    ortho: bool = False             # on the map grid of the lookup table that comes with the scene


def values_of_bad_bands(whole: Scene, bad: list[int], problem: Problem, values: Values, low: float,
                        high: float) -> Source:
    """The values of bad bands in a result: interpolated in space; a constant or dead band stays as
    it is, and so do pixels that have no value."""
    cube = select_bands(whole, bad).cube
    statistics = band_statistics(cube, whole.nodata)
    flat, dead = ~(statistics.low < statistics.high), np.isnan(statistics.low)
    constant = (np.where(dead, low, statistics.low) - low) / (high - low)
    constant = from_unit_range(constant, *values.ends, values.dtype, "clip")
    constant[dead] = (
        values.nodata if values.nodata is not None else np.nan if values.dtype.kind == "f" else 0)
    read = interpolated(cube, problem.scale, problem.degradation, low, high)
    invalid_pixels = {
        bad.index(b): invalid for b, invalid in whole.metadata.get("bad_pixels", {}).items()}

    def source(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        block = read(top, bottom, left, right)
        block[flat] = 0
        block = block.clip(0, 1) if values.unit_range else block
        raw = from_unit_range(block, *values.ends, values.dtype, "clip")
        raw[flat] = constant[flat, None, None]
        for k, invalid in invalid_pixels.items():
            values.masked(raw[k:k + 1], top, left, invalid)
        return values.masked(raw, top, left, values.missing)

    return source


class Values:
    """The values of a result as its file holds them: scaled back, rounded, clipped, with the
    no-data pixels of the input."""

    def __init__(self, scene: Scene, target: Path, writing: Writing, ends: tuple[float, float],
                 scale: int, view: tuple[int, int, int, int]) -> None:
        """`ends` are the values of 0 and 1, `view` the preview: top, bottom, left, right."""
        self.dtype = dtype_of(writing, scene.cube.dtype)
        self.nodata = _nodata(scene, self.dtype)
        self.target, self.refuse, self.ends, self.scale, self.view = (
            target, writing.on_overflow == "refuse", ends, scale, view)
        self.missing, self.unit_range = scene.missing, writing.unit_range
        self.clipped = 0
        self.preview = np.empty((scene.cube.shape[0], view[1] - view[0], view[3] - view[2]),
                                dtype=np.float32)

    def of(self, top: int, left: int, block: np.ndarray) -> np.ndarray:
        """The values of a block in [0, 1]. Raises UserError: overflow, where that is refused."""
        shown = block.clip(0, 1) if self.unit_range else block
        _copy_part(self.preview, self.view, shown, top, left)
        if self.nodata is not None and self.missing is not None:
            # their values are not written, so none of them can lie outside
            block = np.where(self._on_grid(self.missing, top, left, block.shape), np.float32(0),
                             block)
        if self.unit_range:
            outside = int(((block < 0) | (block > 1)).sum())
        else:
            outside = sum(_overflowing(band, *self.ends, self.dtype) for band in block)
        if outside and self.refuse:
            where, cure = ("lie outside [0, 1]", "leave --unit-range out") if self.unit_range else (
                f"do not fit {self.dtype}", "give --dtype float32")
            raise UserError(f"{outside} values of the result {where}, so {self.target} is not "
                            f"written; {cure}, or leave --on-overflow refuse out to have them "
                            "clipped.")
        self.clipped += outside
        block = block.clip(0, 1) if self.unit_range else block
        values = np.empty(block.shape, self.dtype)
        # a band's part stays in the processor's cache
        for band, into in zip(block, values, strict=True):
            into[:] = from_unit_range(band, *self.ends, self.dtype, "clip")
            if self.nodata is not None:
                into[into == self.nodata] = _beside(self.nodata, self.ends[1])
        return self.masked(values, top, left, self.missing)

    def masked(self, values: np.ndarray, top: int, left: int,
               missing: np.ndarray | None) -> np.ndarray:
        """`values`, changed in place: no-data where `missing`, on the input's grid, is True."""
        if self.nodata is not None and missing is not None:
            values[:, self._on_grid(missing, top, left, values.shape)] = self.nodata
        return values

    def _on_grid(self, missing: np.ndarray, top: int, left: int,
                 shape: tuple[int, ...]) -> np.ndarray:
        """A mask on the grid of the input, brought to a block of the result."""
        rows, columns = (np.arange(first, first + n) // self.scale
                         for first, n in zip((top, left), shape[1:], strict=True))
        return missing[np.ix_(rows, columns)]


def dtype_of(writing: Writing, own: np.dtype) -> np.dtype:
    """The type of the result; `own` is the input's."""
    if writing.unit_range:
        return np.dtype(np.float32)
    if writing.dtype is None:
        return np.dtype(own).newbyteorder("=")
    try:
        dtype = np.dtype(writing.dtype)
    except (TypeError, ValueError, SyntaxError):  # numpy parses lists of fields too
        dtype = None
    if dtype is None or dtype.kind not in "iuf":
        raise UserError(f"The data type {writing.dtype!r} is not one that a cube can have; give "
                        "uint8, int16, uint16, int32, float32 or float64.")
    return dtype


def refuse_coarse(scene: Scene, writing: Writing) -> None:
    """Raise UserError where the values of a scene are no integers, and those of the result, as
    integers, would be fewer than COARSE in the range of most bands."""
    dtype = dtype_of(writing, scene.cube.dtype)
    if dtype.kind == "f" or scene.cube.dtype.kind != "f":
        return
    ends = band_statistics(scene.cube, scene.nodata, scene.filled)
    ranges = ends.high - ends.low
    if np.isfinite(ranges).any() and (span := float(np.nanmedian(ranges))) < COARSE:
        raise UserError(f"{scene} holds {scene.cube.dtype} values that span {span:.3g} in a band "
                        f"(the median), and {dtype} has steps of 1: each band would be a few flat "
                        "levels; give --dtype float32, or multiply the values first, reflectance "
                        "for example by 10000.")


def _nodata(scene: Scene, dtype: np.dtype) -> np.generic | None:
    """The scene's no-data value as the result holds it; None where there is none, or the scene
    itself cannot hold it."""
    if scene.nodata is None or not _holds(scene.cube.dtype, scene.nodata):
        return None
    if not _holds(dtype, scene.nodata):
        raise UserError(f"{scene.path} has the no-data value {scene.nodata:g}, which {dtype} "
                        "cannot hold; give --dtype float32 or another type that does.")
    return dtype.type(scene.nodata)


def _holds(dtype: np.dtype, value: float) -> bool:
    limits = limits_of(dtype)
    inside = limits.min <= value <= limits.max
    return (inside and float(value).is_integer() if dtype.kind in "iu"
            else inside or not math.isfinite(value))


def _beside(nodata: np.generic, high: float) -> np.generic:
    """What a valid value becomes that is the no-data value: the next towards valid ones."""
    down = nodata >= high
    if nodata.dtype.kind in "iu":
        return nodata - nodata.dtype.type(1) if down else nodata + nodata.dtype.type(1)
    return np.nextafter(nodata, nodata.dtype.type(-np.inf if down else np.inf))


def _overflowing(block: np.ndarray, low: float, high: float, dtype: np.dtype) -> int:
    """How many values of a block in [0, 1] do not fit `dtype` when they run from low to high."""
    whole = dtype.kind in "iu"
    limits = limits_of(dtype)

    def outside(values: np.ndarray) -> int:
        raw = values.astype(np.float64) * (high - low) + low
        raw = np.rint(raw, out=raw) if whole else raw
        return int(((raw < float(limits.min)) | (raw > float(limits.max))).sum())

    return outside(block) if outside(np.array([block.min(), block.max()])) else 0


def _copy_part(view: np.ndarray, place: tuple[int, int, int, int], block: np.ndarray, top: int,
               left: int) -> None:
    """Copy into `view`, which lies at `place`, what `block` at (top, left) shares with it."""
    t, b = max(place[0], top), min(place[1], top + block.shape[1])
    first, last = max(place[2], left), min(place[3], left + block.shape[2])
    if t < b and first < last:
        into = view[:, t - place[0]:b - place[0], first - place[2]:last - place[2]]
        into[:] = block[:, t - top:b - top, first - left:last - left]
