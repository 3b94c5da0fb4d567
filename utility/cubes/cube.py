"""A cube (bands, rows, columns), where it lies, and what its file says about it."""
from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np

from utility.system.errors import UserError
from utility.system.files import write_failure
from utility.system.memory import require_memory

BLOCK = 32 << 20
"""Bytes moved at a time: a few blocks fit in any machine's memory."""

SCRATCH = 64 << 20
"""Bytes above which `scratch` uses a temporary file instead of memory."""

Shape = tuple[int, int, int]


@dataclass(kw_only=True)
class Facts:
    """What a file says about its cube."""
    format: str = ""                              # name of the container, see `containers`
    key: str | None = None                        # name of the array in its file
    layout: str | None = None  # one of `layouts.LAYOUTS`; None: the file does not say
    layout_by: str = ""                           # what decided it
    product: str = ""  # of an agency or a laboratory, in words; see `products`
    wavelengths: np.ndarray | None = None         # nm, (B,)
    wavelengths_by: str = ""                      # where they stand
    fwhm: np.ndarray | None = None                # nm, (B,)
    good: np.ndarray | None = None  # (B,) bool, False where the file marks a band as bad
    gain: np.ndarray | None = None  # (B,) of the physical value, gain x value + offset
    offset: np.ndarray | None = None              # (B,)
    units: str = ""                               # of the physical value
    band_names: list[str] | None = None
    nodata: float | None = None
    # (H, W) bool, True where a mask or an alpha band says that nobody measured
    missing: np.ndarray | None = None
    # (H, W) bool, True where `bands.clean` made up a value, in a band at least
    filled: np.ndarray | None = None
    # a cube without a bad band, and its `values.BandStatistics`: those of a scene with this cube
    counted: tuple[Any, Any] | None = None
    # the values are in [0, 1] of a scene's range, and are not scaled again
    normalised: bool = False
    crs: str | None = None                        # WKT
    # affine a..f: x = a column + b row + c, y = d column + e row + f
    transform: tuple[float, ...] | None = None
    # degrees, (H, W), of pixel centres on a sensor's own grid
    lonlat: tuple[np.ndarray, np.ndarray] | None = None
    # what a user should know of how the file was understood
    notes: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


BY_PRODUCT = "the product"
"""`Facts.layout_by` where a product's reader has put the axes in order, so that no option can."""

PER_BAND = ("wavelengths", "fwhm", "good", "gain", "offset", "band_names")
"""The facts that have a value for each band."""


@dataclass
class Stored(Facts):
    """The result of a reader: the array with its axes in Python's order, and its facts."""
    array: Any                                    # np.ndarray, np.memmap or LazyCube, 2-D or 3-D
    mirrored: bool = False  # MATLAB v7.3 wrote the file: the axes appear in reverse order
    # (rows, columns) of the image, as scalars of the same file say
    size: tuple[int, int] | None = None
    # vectors of the same file that may be wavelengths, in nm, by where they stand
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    # others that look like wavelengths, whose names do not say so
    likely: dict[str, np.ndarray] = field(default_factory=dict)
    # shapes of the 2-D arrays of the same file
    planes: list[tuple[int, ...]] = field(default_factory=list)


@dataclass
class Scene(Facts):
    """A cube of raw values, (B, H, W), and what its file says about the cube."""
    cube: Any                                     # np.ndarray, a read-only np.memmap, or a LazyCube
    name: str
    path: Path | None = None
    layout: str = field(default="BHW", kw_only=True)  # how the cube lies, or will lie, in its file

    def __str__(self) -> str:
        """Path or name, for messages."""
        return str(self.path or self.name)


class LazyCube:
    """An array on disk: ``cube[b0:b1, r0:r1, c0:c1]`` reads that block, in native byte order, and
    ``cube[numbers, r0:r1, c0:c1]`` that of some bands.

    Args:
        shape: (B, H, W); any number of axes for an array whose layout is not known yet.
        dtype: of the blocks.
        read: called with one slice of step 1 for each axis; returns the block.
        slowest: the axis along which neighbouring blocks lie one after the other on disk.
        grain: a block thinner than this along `slowest` reads disk blocks more than once.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, read: Callable[..., np.ndarray],
                 slowest: int = 0, grain: int = 1) -> None:
        self.shape, self.dtype, self.slowest, self.grain = (
            tuple(map(int, shape)), native(dtype), slowest, grain)
        self.ndim, self._read = len(self.shape), read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        ranges, inner = [], []
        first, *rest = _full_index(index, self.ndim)
        if isinstance(first, np.ndarray):
            return np.stack([self[(int(number), *rest)] for number in first])
        for item, n in zip((first, *rest), self.shape, strict=True):
            if isinstance(item, slice):
                start, stop, step = item.indices(n)
                if step < 1:
                    raise IndexError(
                        "a cube on disk is sliced forwards; reverse the block after reading")
                ranges.append(slice(start, max(start, stop)))
                inner.append(slice(None, None, step))
            else:
                at = range(n)[item]
                ranges.append(slice(at, at + 1))
                inner.append(0)
        if any(r.stop == r.start for r in ranges):
            return np.empty([r.stop - r.start for r in ranges], self.dtype)[tuple(inner)]
        return self._read(*ranges)[tuple(inner)].astype(self.dtype, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return load(self).astype(dtype or self.dtype, copy=False)


class Shelf(LazyCube):
    """A (B, H, W) array in a file of its own: blocks are read as from any `LazyCube`, and
    ``shelf[b0:b1, r0:r1, c0:c1] = block`` writes one.

    Nothing is mapped, so the array takes neither memory nor address space.

    Args:
        file: opened for reading and writing, as large as the array.
    """

    def __init__(self, shape: Shape, dtype: Any, file: IO[bytes]) -> None:
        self._move = move = partial(_move, file, Lock(), shape)

        def read(*place: slice) -> np.ndarray:
            return move(place, np.empty([r.stop - r.start for r in place], native(dtype)), False)

        super().__init__(shape, dtype, read)

    def __setitem__(self, index: Any, block: Any) -> None:
        place = []
        for item, n in zip(_full_index(index, 3), self.shape, strict=True):
            item = slice(item, item + 1) if isinstance(item, int) else item
            place.append(slice(*item.indices(n)[:2]))
        given = np.asarray(block, self.dtype)
        self._move(place, np.broadcast_to(given, [r.stop - r.start for r in place]), True)


def _move(file: IO[bytes], alone: Lock, shape: Shape, place: Sequence[slice], block: np.ndarray,
          write: bool) -> np.ndarray:
    """Read `block` from its place in the file of an array, or write it: some rows of one band at a
    time. `alone` is held meanwhile, for another thread may read ahead."""
    bands, rows, columns = place
    part = np.empty((rows.stop - rows.start, shape[2]), block.dtype)
    whole = part.shape == block.shape[1:]
    for band, plane in zip(range(bands.start, bands.stop), block, strict=True):
        start = (band * shape[1] + rows.start) * shape[2] * block.itemsize
        with alone:
            if not (write and whole):
                file.seek(start)
                file.readinto(plane if whole else part)
            if write:
                part[:, columns] = plane
                file.seek(start)
                file.write(part)
        if not (write or whole):
            plane[:] = part[:, columns]
    return block


class CubeWriter:
    """A (B, H, W) cube being written: ``writer[b0:b1, r0:r1, c0:c1] = block``, with slices of step
    1.

    Args:
        path: the final name, for messages.
        write: called with three slices and the block.
        slowest: as for `LazyCube`.
    """

    def __init__(self, path: Path, shape: Shape, dtype: Any,
                 write: Callable[[slice, slice, slice, np.ndarray], None],
                 slowest: int = 0) -> None:
        self.shape, self.dtype, self.slowest = tuple(map(int, shape)), native(dtype), slowest
        self._path, self._write = path, write

    @classmethod
    def into(cls, path: Path, view: np.ndarray) -> CubeWriter:
        """A writer that puts its blocks into a (B, H, W) array."""
        return cls(path, view.shape, view.dtype,
                   lambda b, r, c, block: view.__setitem__((b, r, c), block), slowest_of(view))

    def __setitem__(self, index: Any, block: Any) -> None:
        ranges = [slice(*item.indices(n)[:2])
                  for item, n in zip(_full_index(index, 3), self.shape, strict=True)]
        block, expected = np.asarray(block), tuple(r.stop - r.start for r in ranges)
        if block.shape != expected:
            raise ValueError(
                f"a block of shape {block.shape} was written where {expected} was expected")
        if not np.can_cast(block.dtype, self.dtype, "same_kind"):
            raise TypeError(
                f"a block of {block.dtype} was written to a cube of {self.dtype}; convert it first")
        with writing(self._path):
            self._write(*ranges, block)

    def blocks(self) -> Iterator[tuple[slice, slice, slice]]:
        """Indices that cover the cube in the order in which it will lie on disk."""
        return blocks(self)


def _full_index(index: Any, ndim: int) -> list[Any]:
    """One item for each axis."""
    index = list(index) if isinstance(index, tuple) else [index]
    at = next((axis for axis, item in enumerate(index) if item is Ellipsis), None)
    if at is not None:
        index[at:at + 1] = [slice(None)] * (ndim + 1 - len(index))
    return index + [slice(None)] * (ndim - len(index))


@dataclass(frozen=True)
class Target:
    """A cube to be written: file, shape (B, H, W), type, and the scene whose facts it keeps."""
    path: Path
    like: Scene
    shape: Shape
    dtype: np.dtype
    layout: str                                   # of the array in the file
    overwrite: bool


def native(dtype: Any) -> np.dtype:
    """`dtype` in this machine's byte order."""
    return np.dtype(dtype).newbyteorder("=")


def slowest_of(cube: Any) -> int:
    """The axis along which the blocks of a cube follow one another on disk."""
    return cube.slowest if hasattr(cube, "slowest") else int(np.argmax(np.abs(cube.strides)))


def blocks(cube: Any, axis: int | None = None,
           target: int | None = None) -> Iterator[tuple[slice, slice, slice]]:
    """Indices that cover a (B, H, W) cube in blocks of about `target` bytes, in the disk's order.

    A block is a slab across `axis`. Where one band is larger than `target`, a block is some rows of
    a band.
    """
    target = target or BLOCK
    axis = slowest_of(cube) if axis is None else axis
    slab = math.prod(cube.shape) // max(1, cube.shape[axis]) * np.dtype(cube.dtype).itemsize
    grain = getattr(cube, "grain", 1)
    step = max(1, math.ceil(target / max(1, slab) / grain)) * grain
    for start in range(0, cube.shape[axis], step):
        index = [slice(0, n) for n in cube.shape]
        index[axis] = slice(start, min(start + step, cube.shape[axis]))
        if axis or slab <= target:
            require_memory(slab * step, "A block of the scene")
            yield tuple(index)
            continue
        # whole tiles of a raster
        rows = max(256, target * cube.shape[1] // (slab * step) // 256 * 256)
        for top in range(0, cube.shape[1], rows):
            yield index[0], slice(top, min(top + rows, cube.shape[1])), index[2]


def load(cube: Any) -> np.ndarray:
    """The cube in memory, C-contiguous, in native byte order; such an array is returned as it
    is."""
    if isinstance(cube, np.ndarray) and cube.flags.c_contiguous and cube.dtype.isnative:
        return cube if type(cube) is np.ndarray else np.array(cube)  # a memory map in one move
    whole = np.empty(cube.shape, native(cube.dtype))
    for index in blocks(cube, target=4 << 20 if isinstance(cube, np.ndarray) else BLOCK):
        whole[index] = cube[index]
    return whole


def scratch(shape: Shape, dtype: Any, folder: Path | None = None) -> np.ndarray | Shelf:
    """Zeros (B, H, W) to work in; a large array is a `Shelf` in a nameless file that goes with it.

    Args:
        folder: of that file, or the nearest folder above that exists; by default the system's
            folder for temporary files (TMPDIR), which may lie in memory.

    Raises UserError: the disk is full or not writable.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= SCRATCH:
        return np.zeros(shape, dtype)
    folder = Path(folder or tempfile.gettempdir()).resolve()
    folder = next(place for place in (folder, *folder.parents) if place.exists())
    with writing(folder):
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (the array closes it)
        file.truncate(size)
        _claim(file, size)
    return Shelf(shape, dtype, file)


def at_hand(cube: Any, folder: Path | None = None) -> Any:
    """The cube, read once: one that every read decodes (a `LazyCube`) as `scratch` in `folder`."""
    if not isinstance(cube, LazyCube):
        return cube
    copy = scratch(cube.shape, cube.dtype, folder)
    for index in blocks(cube):
        copy[index] = cube[index]
    return copy


def reserve(path: Path, size: int | None = None) -> None:
    """Claim the disk blocks of a file, so that a full disk is an error now and not a crash in a
    library later.

    Args:
        path: made if it does not exist.
        size: in bytes; by default the file's own, which claims its holes.
    """
    with open(path, "r+b" if path.exists() else "w+b") as file:
        _claim(file, size or os.fstat(file.fileno()).st_size)


def _claim(file: IO[bytes], size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)


@contextmanager
def writing(path: Path, *more: type[Exception]) -> Iterator[None]:
    """Turn the errors that libraries raise when a write to `path` fails into a UserError; `more`
    names further types."""
    try:
        yield
    except (OSError, RuntimeError, SystemError, *more) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200] or type(error).__name__
        code = (getattr(error, "errno", None)
                or (errno.ENOSPC if "No space left" in reason else errno.EIO))
        raise write_failure(path,
                            OSError(code, getattr(error, "strerror", None) or reason)) from error


@contextmanager
def read_from(path: Path | str, *errors: type[Exception]) -> Iterator[None]:
    """Turn what libraries raise while they read `path` into a UserError that calls it damaged.

    Args:
        errors: their types; by default all, for scipy, h5py, numpy and GDAL raise a dozen.
    """
    known = errors or (Exception,)
    try:
        yield
    except (UserError, MemoryError):
        raise
    except known as error:
        raise damaged(path, error) from error


def damaged(path: Path | str, error: BaseException) -> UserError:
    """The refusal of a file whose container is known and whose content cannot be read."""
    if isinstance(error, PermissionError):
        return UserError(f"{path} may not be read ({error.strerror}); change its permissions.")
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(
        f"{path} cannot be read; it is truncated or damaged ({reason}); copy or download it again.")
