"""How the axes of a cube lie in a file: which axis is which, and (B, H, W) views of a stored array to read and to write."""
from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np

from utility.cubes.companions import long_axes, times
from utility.cubes.cube import CubeWriter, LazyCube, Shape, Stored, Target, native, slowest_of
from utility.system.errors import Unclear, UserError

LAYOUTS = [*("".join(p) for p in permutations("BHW")), "pixels", "pixels.T"]
"""The axes of a stored array in the order in which Python shows them (MATLAB shows the axes of a v7.3 file in reverse).
"pixels" is 2-D, bands x pixels; the pixels run down the image's columns. "pixels.T" is its transpose."""


SENSORS = {31, 48, 102, 103, 144, 156, 162, 176, 188, 189, 191, 198, 200, 204, 205, 210, 220, 224, 242, 285}
"""Numbers of bands of the usual sensors and benchmark scenes (CAVE, Houston, ROSIS, HYDICE, AVIRIS, Hyperion, EMIT)."""


def spelled(layout: str) -> str:
    """The layout in the spelling of LAYOUTS, whatever its case.

    Raises:
        UserError: the layout is unknown.
    """
    for known in LAYOUTS:
        if known.lower() == layout.lower():
            return known
    raise UserError(f"The layout '{layout}' is unknown; choose one of {', '.join(LAYOUTS)} with --layout.")


def reversed_layout(layout: str) -> str:
    """The layout of the same array with its axes in reverse order."""
    return {"pixels": "pixels.T", "pixels.T": "pixels"}.get(layout, layout[::-1])


# -------------------------------------------------------------------------------------------------- which axis is which

def resolve(stored: Stored, layout: str | None, bands: int | None, size: tuple[int, int] | None,
            where: str) -> tuple[str, str]:
    """The layout of a stored array, and what decided it; from what is certain first, never a guess between equals.

    In this order: the layout or the number of bands asked for, wavelengths, a 2-D array of the image's size beside the
    cube, the shape and the numbers of bands of usual sensors.

    Args:
        layout, bands, size: what was asked for or what the file states; None where nothing was.
        where: the file and its key, for messages.

    Raises:
        UserError: the layout is not clear, or contradicts the array.
    """
    shape, mirrored = stored.array.shape, stored.mirrored
    if len(shape) == 2:
        return _resolve_pixels(stored, layout, bands, size, where), "the number of pixels of the image"
    if layout in ("pixels", "pixels.T"):
        raise UserError(f"{where} is {times(shape)}, where layout {layout} expects 2 dimensions; leave --layout out.")
    if layout:
        if bands is not None and shape[layout.index("B")] != bands:
            # MATLAB shows the axes of a v7.3 file in reverse, and so may whoever named the layout
            if mirrored and shape[layout[::-1].index("B")] == bands:
                return layout[::-1], "the number of bands expected"
            raise UserError(f"{where} is {times(shape)}, which in layout {layout} has {shape[layout.index('B')]} bands, where "
                            f"{bands} were expected.")
        return layout, "the layout that is stated"
    axis, reason = _band_axis(stored, bands, where)
    if axis is None:
        common = [name[::-1] if mirrored else name for name in ("HWB", "BHW", "HBW")]
        choices = ", ".join(f"{n} ({shape[n.index('B')]} bands)" for n in common)
        raise Unclear(f"{where} is {times(shape)}, and which axis holds the bands is not clear; say so with --layout: "
                        f"{choices}.")
    name = ("BHW", "HBW", "HWB")[axis]
    return name[::-1] if mirrored else name, reason


def _band_axis(stored: Stored, bands: int | None, where: str) -> tuple[int | None, str]:
    """Which axis of a 3-D array, as its author wrote it, holds the bands, None where that is not clear; and what decided it.

    By its shape alone: the odd axis of a square image, the first or last axis if at most half as long as the others, or the
    one axis as long as a usual sensor has bands; None where two of these disagree.
    """
    shape = stored.array.shape[::-1] if stored.mirrored else stored.array.shape
    if bands is not None:
        fitting = [i for i in range(3) if shape[i] == bands]
        if not fitting:
            raise UserError(f"{where} is {times(stored.array.shape)}, and none of its axes has the {bands} bands expected.")
        outer = fitting if len(fitting) == 1 else [i for i in fitting if i != 1]
        return outer[0] if len(outer) == 1 else None, "the number of bands expected"
    wavelengths, size = next(iter(stored.vectors), ()), stored.size
    planes = {tuple(plane[::-1]) if stored.mirrored else tuple(plane) for plane in stored.planes} | ({size} if size else set())
    for fitting, reason in (([i for i in range(3) if shape[i] == len(wavelengths)], "the number of wavelengths beside it"),
                            ([i for i in range(3) if shape[:i] + shape[i + 1:] in planes], "the size of an image beside it")):
        if len(fitting) == 1:
            return fitting[0], reason
    a, b, c = shape
    if len({a, b, c}) == 2 and a != c:
        return 2 if a == b else 0, "its shape: a square image"
    smallest = [i for i in (0, 2) if 2 * shape[i] <= min(shape[:i] + shape[i + 1:])]
    usual = [i for i in range(3) if shape[i] in SENSORS]
    decided = {*smallest, *(usual if len(usual) == 1 else ())}
    reason = "its shape: one axis is much shorter" if smallest else "the number of bands of a usual sensor"
    return decided.pop() if len(decided) == 1 else None, reason


def _resolve_pixels(stored: Stored, layout: str | None, bands: int | None, size: tuple[int, int] | None, where: str) -> str:
    shape, mirrored = stored.array.shape, stored.mirrored
    if layout and not layout.startswith("pixels"):
        raise UserError(f"{where} is {times(shape)}, where layout {layout} expects 3 axes; use pixels and the size.")
    if size is None:
        raise Unclear(f"{where} is a 2-D array of {times(shape)}, and no image size (nRow, nCol) stands beside it; "
                        f"give it with --size ROWS COLUMNS, or in Python read_scene(.., layout='pixels', size=(H, W)).")
    names = ["pixels.T", "pixels"] if mirrored else ["pixels", "pixels.T"]
    if layout:  # MATLAB shows the axes of a v7.3 file in reverse, and so may whoever named the layout
        names = [layout, *(name for name in names if name != layout and mirrored and bands is not None)]
    for name in names:
        count, pixels = shape if name == "pixels" else shape[::-1]
        if pixels == math.prod(size):
            if bands is not None and count != bands:
                raise UserError(f"{where} is {times(shape)}, {count} bands of {times(size)} pixels, where {bands} "
                                f"bands were expected.")
            return name
    raise UserError(f"{where} is {times(shape)}, and has no axis of {math.prod(size)} pixels for an image of "
                    f"{times(size)}; correct the size (rows, columns).")


# ------------------------------------------------------------------------------------------------------ reading, writing

def squeezed(array: Any) -> Any:
    """An array in memory or a memory map of more than 3 axes without those of length 1; others as they are."""
    if isinstance(array, np.ndarray) and array.ndim > 3:
        return array.reshape(shape) if len(shape := long_axes(array.shape)) == 3 else array
    return array


def stored_shape(layout: str, shape: Shape) -> tuple[int, ...]:
    """The shape of the stored array of a cube of `shape` (B, H, W)."""
    b, h, w = shape
    if layout.startswith("pixels"):
        return (b, h * w) if layout == "pixels" else (h * w, b)
    return tuple({"B": b, "H": h, "W": w}[axis] for axis in layout)


def as_cube(array: np.ndarray, layout: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """A (B, H, W) view of a stored array; writing to the view writes to the array.

    Args:
        array: C-ordered or Fortran-ordered, in memory or a memory map.
        size: (H, W), needed for a layout of pixels.
    """
    if array.flags.f_contiguous:  # a reshaped Fortran-ordered array would be a copy
        array, layout = array.T, reversed_layout(layout)
    if not layout.startswith("pixels"):
        return array.transpose([layout.index(axis) for axis in "BHW"])
    h, w = size
    return array.reshape(-1, w, h).transpose(0, 2, 1) if layout == "pixels" else array.reshape(w, h, -1).transpose(2, 1, 0)


def readable(array: Any, layout: str, size: tuple[int, int] | None = None) -> Any:
    """`as_cube` in native byte order; for an array that stays on disk or has to be swapped, a LazyCube."""
    if isinstance(array, np.ndarray):
        view = as_cube(array, layout, size)
        if view.dtype.isnative:
            return view
        return LazyCube(view.shape, view.dtype, lambda b, r, c: view[b, r, c].astype(native(view.dtype)), slowest_of(view))
    if not layout.startswith("pixels"):
        order = [layout.index(axis) for axis in "BHW"]

        def read(*index: slice) -> np.ndarray:
            return array[tuple(index["BHW".index(axis)] for axis in layout)].transpose(order)

        return LazyCube(tuple(array.shape[i] for i in order), array.dtype, read, _slowest(layout), array.grain)
    h, w = size

    def read_pixels(b: slice, r: slice, c: slice) -> np.ndarray:
        run = slice(c.start * h, c.stop * h)
        flat = array[b, run] if layout == "pixels" else array[run, b].T
        return flat.reshape(len(flat), c.stop - c.start, h).transpose(0, 2, 1)[:, r]

    return LazyCube((array.shape[0 if layout == "pixels" else 1], h, w), array.dtype, read_pixels, _slowest(layout))


def writer_into(array: Any, target: Target) -> CubeWriter:
    """A writer of (B, H, W) blocks into `array`, which takes blocks by index and is stored in the target's layout."""
    layout, rows = target.layout, target.shape[1]

    def write(b: slice, r: slice, c: slice, block: np.ndarray) -> None:
        index, order = (b, r, c), ["BHW".index(axis) for axis in layout]
        array[tuple(index[i] for i in order)] = block.transpose(order)

    def write_pixels(b: slice, r: slice, c: slice, block: np.ndarray) -> None:
        if r == slice(0, rows):  # whole columns are one run of pixels
            runs = [(slice(c.start * rows, c.stop * rows), block.transpose(0, 2, 1).reshape(len(block), -1))]
        else:
            runs = [(slice(j * rows + r.start, j * rows + r.stop), block[:, :, j - c.start])
                    for j in range(c.start, c.stop)]
        for run, values in runs:
            if layout == "pixels":
                array[b, run] = values
            else:
                array[run, b] = values.T

    return CubeWriter(target.path, target.shape, target.dtype, write_pixels if layout.startswith("pixels") else write,
                      _slowest(layout))


def _slowest(layout: str) -> int:
    return {"pixels": 0, "pixels.T": 2}.get(layout, "BHW".find(layout[0]))
