"""How the axes of a cube lie in a file, and (B, H, W) views of a stored array."""
from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np

from utility.cubes.companions import long_axes, times
from utility.cubes.cube import CubeWriter, LazyCube, Shape, Stored, Target, native, slowest_of
from utility.system.errors import Unclear, UserError

PIXELS = ["pixels", "pixels.T", "pixels-columns", "pixels-columns.T", "pixels-rows",
          "pixels-rows.T"]
LAYOUTS = [*("".join(p) for p in permutations("BHW")), *PIXELS]
"""The axes of a stored array in the order in which Python shows them (MATLAB shows the axes of a
v7.3 file in reverse). "pixels" is 2-D, bands x pixels, and with .T its transpose. Its pixels run
down the image's columns, as MATLAB's `reshape` has them ("pixels-columns"), or along its rows, as
NumPy's has them ("pixels-rows"). Asked for without either, the values decide; the layout of a scene
is then "pixels" for columns."""

CLEAR = 0.57
"""Share of pixels whose neighbour in one order is nearer in value than in the other order, from
which the order is clear."""


SENSORS = {31, 48, 102, 103, 144, 156, 162, 176, 188, 189, 191, 198, 200, 204, 205, 210, 220, 224,
           242, 285}
"""Numbers of bands of usual scenes (CAVE, Houston, ROSIS, HYDICE, AVIRIS, Hyperion, EMIT)."""


def spelled(layout: str) -> str:
    """The layout in the spelling of LAYOUTS, whatever its case. Raises UserError: the layout is
    unknown."""
    for known in LAYOUTS:
        if known.lower() == layout.lower():
            return known
    raise UserError(
        f"The layout '{layout}' is unknown; choose one of {', '.join(LAYOUTS)} with --layout.")


def reversed_layout(layout: str) -> str:
    """The layout of the same array with its axes in reverse order."""
    if layout.startswith("pixels"):
        return layout.removesuffix(".T") if layout.endswith(".T") else f"{layout}.T"
    return layout[::-1]


# ------------------------------------------------------------------------------ which axis is which

def resolve(stored: Stored, layout: str | None, bands: int | None, size: tuple[int, int] | None,
            where: str) -> tuple[str, str]:
    """The layout of a stored array, and what decided it; from what is certain first, never a guess
    between equals.

    In this order: the layout or the number of bands asked for, wavelengths, a 2-D array of the
    image's size beside the cube, the shape and the numbers of bands of usual sensors.

    Args:
        layout, bands, size: what was asked for or what the file states; None where nothing was.
        where: the file and its key, for messages.

    Raises UserError: the layout is not clear, or contradicts the array.
    """
    shape, mirrored = stored.array.shape, stored.mirrored
    if len(shape) == 2:
        return _resolve_pixels(stored, layout, bands, size, where)
    if layout in PIXELS:
        raise UserError(f"{where} is {times(shape)}, where layout {layout} expects 2 dimensions; "
                        "leave --layout out.")
    if layout:
        if bands is not None and shape[layout.index("B")] != bands:
            # MATLAB shows the axes of a v7.3 file in reverse, and so may whoever named the layout
            if mirrored and shape[layout[::-1].index("B")] == bands:
                return layout[::-1], "the number of bands expected"
            raise UserError(f"{where} is {times(shape)}, which in layout {layout} has "
                            f"{shape[layout.index('B')]} bands, where {bands} were expected.")
        return layout, "the layout that is stated"
    axis, reason = _band_axis(stored, bands, where)
    if axis is None:
        common = [name[::-1] if mirrored else name for name in ("HWB", "BHW", "HBW")]
        choices = ", ".join(f"{n} ({shape[n.index('B')]} bands)" for n in common)
        raise Unclear(f"{where} is {times(shape)}, and which axis holds the bands is not clear; "
                      f"say so with --layout: {choices}.")
    name = ("BHW", "HBW", "HWB")[axis]
    return name[::-1] if mirrored else name, reason


def _band_axis(stored: Stored, bands: int | None, where: str) -> tuple[int | None, str]:
    """Which axis of a 3-D array, as its author wrote it, holds the bands, None where that is not
    clear; and what decided it.

    By its shape alone: the odd axis of a square image, the first or last axis if at most half as
    long as the others, or the one axis as long as a usual sensor has bands; None where two of these
    disagree.
    """
    shape = stored.array.shape[::-1] if stored.mirrored else stored.array.shape
    if bands is not None:
        fitting = [i for i in range(3) if shape[i] == bands]
        if not fitting:
            raise UserError(f"{where} is {times(stored.array.shape)}, and none of its axes has the "
                            f"{bands} bands expected.")
        outer = fitting if len(fitting) == 1 else [i for i in fitting if i != 1]
        return outer[0] if len(outer) == 1 else None, "the number of bands expected"
    wavelengths, size = next(iter(stored.vectors.values()), ()), stored.size
    planes = ({tuple(plane[::-1]) if stored.mirrored else tuple(plane) for plane in stored.planes}
              | ({size} if size else set()))
    for fitting, reason in (([i for i in range(3) if shape[i] == len(wavelengths)],
                             "the number of wavelengths beside it"),
                            ([i for i in range(3) if shape[:i] + shape[i + 1:] in planes],
                             "the size of an image beside it")):
        if len(fitting) == 1:
            return fitting[0], reason
    a, b, c = shape
    if len({a, b, c}) == 2 and a != c:
        return 2 if a == b else 0, "its shape: a square image"
    smallest = [i for i in (0, 2) if 2 * shape[i] <= min(shape[:i] + shape[i + 1:])]
    usual = [i for i in range(3) if shape[i] in SENSORS]
    decided = {*smallest, *(usual if len(usual) == 1 else ())}
    reason = ("its shape: one axis is much shorter" if smallest
              else "the number of bands of a usual sensor")
    return decided.pop() if len(decided) == 1 else None, reason


def _resolve_pixels(stored: Stored, layout: str | None, bands: int | None,
                    size: tuple[int, int] | None, where: str) -> tuple[str, str]:
    shape, mirrored = stored.array.shape, stored.mirrored
    if layout and not layout.startswith("pixels"):
        raise UserError(f"{where} is {times(shape)}, where layout {layout} expects 3 axes; use "
                        "pixels and the size.")
    if size is None:
        raise Unclear(f"{where} is a 2-D array of {times(shape)}. If that is an image, it has one "
                      "band, and a cube needs at least 2; give a cube. If it is a table of bands x "
                      "pixels, no image size (nRow, nCol) stands beside it; give it with --size "
                      "ROWS COLUMNS, or in Python read_scene(.., layout='pixels', size=(H, W)).")
    if sorted(size) == sorted(shape):
        raise UserError(f"{where} is {times(shape)}, an image of that size with one band, and a "
                        "hyperspectral cube needs at least 2 bands; give a cube.")
    names = ["pixels.T", "pixels"] if mirrored else ["pixels", "pixels.T"]
    order = "columns" if layout and layout == stored.layout else None  # as this project writes it
    if layout and "-" in layout:
        order, layout = (layout.removesuffix(".T").partition("-")[2],
                         f"pixels{'.T' * layout.endswith('.T')}")
    # MATLAB shows the axes of a v7.3 file in reverse, and so may whoever named the layout
    if layout:
        names = [layout,
                 *(name for name in names if name != layout and mirrored and bands is not None)]
    for name in names:
        count, pixels = shape if name == "pixels" else shape[::-1]
        if pixels == math.prod(size):
            if bands is not None and count != bands:
                raise UserError(f"{where} is {times(shape)}, {count} bands of {times(size)} "
                                f"pixels, where {bands} bands were expected.")
            reason = "the number of pixels of the image"
            if order is None:
                order, found = _pixel_order(stored, name, size, where)
                reason = f"{reason}, {found}"
            return name if order == "columns" else name.replace("pixels", "pixels-rows"), reason
    raise UserError(f"{where} is {times(shape)}, and has no axis of {math.prod(size)} pixels for "
                    f"an image of {times(size)}; correct the size (rows, columns).")


def _pixel_order(stored: Stored, name: str, size: tuple[int, int], where: str) -> tuple[str, str]:
    """Whether the pixels run down the "columns" or along the "rows" of the image, by its values;
    and what decided it.

    In the right order the pixel below, or to the right, is h or w places on, and alike. Raises
    Unclear: neither is more so.
    """
    (h, w), rows = size, "rows"
    # either order gives the image or its transpose, in which the same pixels are neighbours
    if h == w:
        order = "columns" if stored.format.startswith("mat") else rows
        stored.notes.append("the image is square, so its values cannot tell in which order its "
                            f"pixels are; they are read along its {order}, and --layout "
                            f"{name.replace('pixels', 'pixels-rows')} or "
                            f"{name.replace('pixels', 'pixels-columns')} says it")
        return order, "and the habit of the format, for a square image"
    if min(h, w) == 1:
        return rows, "whose order is all the same for one line"
    array, far, nearer = stored.array, max(h, w), np.zeros(2)
    bands = array.shape[name.endswith(".T")]
    for band in np.unique(np.linspace(0, bands - 1, 7).astype(int)[1:-1] if bands > 2 else [0]):
        for first in np.unique(np.linspace(0, max(0, h * w - far - 4096), 8).astype(int)):
            run = slice(int(first), min(int(first) + far + 4096, h * w))
            one = slice(int(band), int(band) + 1)
            values = np.asarray(array[run, one] if name.endswith(".T") else array[one, run],
                                np.float64).ravel()
            along, down = (
                np.abs(values[lag:] - values[:-lag])[:len(values) - far] for lag in (w, h))
            nearer += (along < down).sum(), (down < along).sum()
    share = nearer / max(nearer.sum(), 1)
    if share.max() < CLEAR:
        raise Unclear(f"{where} is {times(array.shape)}, and its values do not tell whether the "
                      "pixels run along the rows of the image, as NumPy flattens it, or down its "
                      "columns, as MATLAB does; say so with --layout "
                      f"{name.replace('pixels', 'pixels-rows')} or "
                      f"{name.replace('pixels', 'pixels-columns')}.")
    order = rows if share[0] > share[1] else "columns"
    return order, f"and along its {order}, for neighbours are alike there"


# --------------------------------------------------------------------------------- reading, writing

def squeezed(array: Any) -> Any:
    """An array in memory or a memory map of more than 3 axes without those of length 1; others as
    they are."""
    if isinstance(array, np.ndarray) and array.ndim > 3:
        return array.reshape(shape) if len(shape := long_axes(array.shape)) == 3 else array
    return array


def stored_shape(layout: str, shape: Shape) -> tuple[int, ...]:
    """The shape of the stored array of a cube of `shape` (B, H, W)."""
    b, h, w = shape
    if layout.startswith("pixels"):
        return (h * w, b) if layout.endswith(".T") else (b, h * w)
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
    if "-rows" in layout:
        return (array.reshape(h, w, -1).transpose(2, 0, 1) if layout.endswith(".T")
                else array.reshape(-1, h, w))
    return (array.reshape(w, h, -1).transpose(2, 1, 0) if layout.endswith(".T")
            else array.reshape(-1, w, h).transpose(0, 2, 1))


def readable(array: Any, layout: str, size: tuple[int, int] | None = None) -> Any:
    """`as_cube` in native byte order; for an array that stays on disk or has to be swapped, a
    LazyCube."""
    if isinstance(array, np.ndarray):
        view = as_cube(array, layout, size)
        if view.dtype.isnative:
            return view
        return LazyCube(view.shape, view.dtype,
                        lambda b, r, c: view[b, r, c].astype(native(view.dtype)), slowest_of(view))
    if not layout.startswith("pixels"):
        order = [layout.index(axis) for axis in "BHW"]

        def read(*index: slice) -> np.ndarray:
            return array[tuple(index["BHW".index(axis)] for axis in layout)].transpose(order)

        return LazyCube(tuple(array.shape[i] for i in order), array.dtype, read, _slowest(layout),
                        array.grain)
    (h, w), upright = size, layout.endswith(".T")

    def pixels(b: slice, first: int, last: int) -> np.ndarray:
        return array[first:last, b].T if upright else array[b, first:last]

    def read_pixels(b: slice, r: slice, c: slice) -> np.ndarray:
        if "-rows" in layout:
            flat = pixels(b, r.start * w, r.stop * w)
            return flat.reshape(len(flat), r.stop - r.start, w)[:, :, c]
        flat = pixels(b, c.start * h, c.stop * h)
        return flat.reshape(len(flat), c.stop - c.start, h).transpose(0, 2, 1)[:, r]

    return LazyCube((array.shape[int(upright)], h, w), array.dtype, read_pixels, _slowest(layout))


def writer_into(array: Any, target: Target) -> CubeWriter:
    """A writer of (B, H, W) blocks into `array`, which is stored in the target's layout."""
    layout, (_, rows, columns) = target.layout, target.shape

    def write(b: slice, r: slice, c: slice, block: np.ndarray) -> None:
        index, order = (b, r, c), ["BHW".index(axis) for axis in layout]
        array[tuple(index[i] for i in order)] = block.transpose(order)

    def write_pixels(b: slice, r: slice, c: slice, block: np.ndarray) -> None:
        # Lines of pixels that follow one another in the file: columns of the image, or its rows.
        long, inside, lines = rows, r, c
        if "-rows" in layout:
            long, inside, lines = columns, c, r
        else:
            block = block.transpose(0, 2, 1)
        if inside == slice(0, long):  # whole lines are one run of pixels
            runs = [(slice(lines.start * long, lines.stop * long), block.reshape(len(block), -1))]
        else:
            begins = [j * long for j in range(lines.start, lines.stop)]
            runs = [(slice(begin + inside.start, begin + inside.stop), block[:, k])
                    for k, begin in enumerate(begins)]
        for run, values in runs:
            if layout.endswith(".T"):
                array[run, b] = values.T
            else:
                array[b, run] = values

    return CubeWriter(target.path, target.shape, target.dtype,
                      write_pixels if layout.startswith("pixels") else write, _slowest(layout))


def _slowest(layout: str) -> int:
    if layout.startswith("pixels"):
        return 0 if not layout.endswith(".T") else 1 if "-rows" in layout else 2
    return "BHW".find(layout[0])
