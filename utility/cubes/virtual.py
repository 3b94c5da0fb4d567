"""Cubes made of stored arrays as they are read: unpacked, put together; the arrays stay on disk."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from utility.cubes.axes import readable
from utility.cubes.companions import times
from utility.cubes.conventions import Packing
from utility.cubes.cube import BY_PRODUCT, LazyCube, Stored, native, slowest_of
from utility.cubes.values import marker_of
from utility.system.errors import UserError

MISSING = -9999.0
"""The value of missing pixels in unpacked cubes, which hold reflectance or radiance."""


def unpacked(array: Any, packing: Packing) -> tuple[Any, float | None]:
    """The physical values of a stored array, and their no-data value; an array that needs no change
    is returned as it is.

    Values that a file declares as missing, or that lie outside its valid range, become one value:
    the first of those that are declared; MISSING where values are packed; where none is declared,
    one outside the valid range.
    """
    dtype = native(array.dtype)
    fills = [marker for value in packing.fills if (marker := marker_of(dtype, value)) is not None]
    declared = next((value for value in packing.fills if np.isnan(value)
                     or marker_of(dtype, value) is not None), None)
    ranged = packing.low is not None or packing.high is not None
    if packing.packed:
        wide = dtype.itemsize > (4 if dtype.kind == "f" else 2)
        nodata = MISSING if fills or ranged else declared
        return _mapped(array, np.dtype(np.float64 if wide else np.float32), packing, fills,
                       MISSING), nodata
    nodata = _outside(dtype, packing) if declared is None and ranged else declared
    if nodata is None or (len(fills) <= 1 and not ranged):
        return array, nodata
    return _mapped(array, dtype, packing, fills, nodata), nodata


def _outside(dtype: np.dtype, packing: Packing) -> float | None:
    """A value of a type that lies outside the valid range; None where all of them lie inside."""
    if dtype.kind == "f":
        others = (math.nan,)
    else:
        others = np.iinfo(dtype).min, np.iinfo(dtype).max
    low, high = (end if end is not None else infinite
                 for end, infinite in ((packing.low, -math.inf), (packing.high, math.inf)))
    held = (value for value in (MISSING, *map(float, others))
            if math.isnan(value) or marker_of(dtype, value) is not None)
    return next((value for value in held if not low <= value <= high), None)


def _mapped(array: Any, result: np.dtype, packing: Packing, fills: Sequence[Any],
            nodata: float) -> LazyCube:
    def read(*index: slice) -> np.ndarray:
        stored = array[index]
        missing = np.zeros(stored.shape, bool)
        for marker in fills:
            missing |= stored == marker
        if packing.low is not None:
            missing |= stored < packing.low
        if packing.high is not None:
            missing |= stored > packing.high
        if packing.packed:
            stored = stored * np.float64(packing.scale) + packing.offset
        values = stored.astype(result)
        values[missing] = nodata
        return values

    return LazyCube(array.shape, result, read, slowest_of(array), getattr(array, "grain", 1))


def joined(cubes: Sequence[Any], order: Sequence[int] | np.ndarray) -> LazyCube:
    """Cubes (B, H, W) of one size, one after the other, with their bands in the given order.

    Args:
        order: for each band of the result, its index among the bands of all cubes; an index that is
            left out is dropped.
    """
    cubes, order = list(cubes), np.asarray(order, dtype=int)
    starts = np.cumsum([0, *(cube.shape[0] for cube in cubes)])
    dtype = np.result_type(*(native(cube.dtype) for cube in cubes))

    def read(b: slice, r: slice, c: slice) -> np.ndarray:
        wanted = order[b]
        block = np.empty((len(wanted), r.stop - r.start, c.stop - c.start), dtype)
        for cube, start, stop in zip(cubes, starts, starts[1:], strict=False):
            here = np.flatnonzero((wanted >= start) & (wanted < stop))
            if here.size:
                inside = wanted[here] - start
                first = inside.min()
                block[here] = cube[first:inside.max() + 1, r, c][inside - first]
        return block

    slowest = slowest_of(cubes[0])
    return LazyCube((len(order), *cubes[0].shape[1:]), dtype, read, slowest,
                    getattr(cubes[0], "grain", 1))


def joined_arms(arms: Mapping[str, Stored]) -> Stored:
    """The cube of a sensor whose arms are arrays of their own: all bands, sorted by wavelength
    where that is known.

    Args:
        arms: name -> its array, of three axes with a layout; a band whose wavelength is NaN is dead
            and left out.

    Raises UserError: the arms are of different sizes.
    """
    cubes = {name: readable(arm.array, arm.layout) for name, arm in arms.items()}
    if len({cube.shape[1:] for cube in cubes.values()}) > 1:
        sizes = ", ".join(f"{name} {times(cube.shape[1:])}" for name, cube in cubes.items())
        raise UserError(f"The arms of the sensor differ in their size ({sizes}), so that they are "
                        "no one cube; choose one of them with --key.")
    first = next(iter(arms.values()))
    nm = [arm.wavelengths for arm in arms.values()]
    known = all(values is not None for values in nm)
    centres = np.concatenate([np.full(len(cube), math.inf) if values is None else values
                              for values, cube in zip(nm, cubes.values(), strict=True)])
    alive = np.flatnonzero(~np.isnan(centres))
    order = alive[np.argsort(centres[alive], kind="stable")] if known else alive
    widths = [arm.fwhm for arm in arms.values()]
    stored = Stored(joined(list(cubes.values()), order), format=first.format, layout="BHW",
                    layout_by=BY_PRODUCT, key=first.key if len(arms) == 1 else None,
                    nodata=first.nodata, units=first.units, crs=first.crs,
                    transform=first.transform, lonlat=first.lonlat, metadata=dict(first.metadata))
    packings = {name: arm.metadata.get("packing", str(arm.array.dtype))
                for name, arm in arms.items()}
    if len({*packings.values()}) > 1:
        stored.metadata["packing"] = ", ".join(f"{packing} ({name})"
                                               for name, packing in packings.items())
    stored.notes = _about_arms({name: values for name, values in zip(arms, nm, strict=True)},
                               len(centres) - len(alive))
    if known:
        stored.wavelengths = centres[order]
        stored.wavelengths_by = ", ".join(arm.wavelengths_by for arm in arms.values())
    if all(values is not None for values in widths):
        stored.fwhm = np.concatenate(widths)[order]
    return stored


def _about_arms(wavelengths: Mapping[str, np.ndarray | None], dead: int) -> list[str]:
    """What became of the arms: their order, overlaps, bands left out."""
    notes = []
    if unknown := [name for name, nm in wavelengths.items() if nm is None]:
        order = f", so the bands stand in the order {', '.join(wavelengths)}"
        notes.append(f"the wavelengths of {' and '.join(unknown)} are not in the file"
                     + order * (len(wavelengths) > 1))
    elif len(wavelengths) > 1:
        notes.append(f"{', '.join(wavelengths)} are one cube, sorted by wavelength")
        ranges = sorted((np.nanmin(nm), np.nanmax(nm), name) for name, nm in wavelengths.items())
        for (_, end, one), (begin, _, other) in pairwise(ranges):
            if begin < end:
                notes.append(f"{one} ends at {end:.1f} nm and {other} begins at {begin:.1f} nm: "
                             "their bands alternate there")
    if dead:
        notes.append(f"{dead} dead bands (wavelength 0) are left out")
    return notes
