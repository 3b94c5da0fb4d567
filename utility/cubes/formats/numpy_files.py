"""NumPy's own files: .npy, one array and nothing else, and .npz, arrays by name."""
from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utility.cubes.axes import as_cube, stored_shape
from utility.cubes.companions import (
    NAMES,
    SMALL,
    choose_key,
    companions,
    facts_in,
    find_size,
    long_axes,
    matlab_name,
    stated_layout,
    times,
)
from utility.cubes.cube import CubeWriter, Stored, Target, reserve, writing
from utility.system.errors import UserError
from utility.system.files import replacing
from utility.system.memory import require_memory


def open_npy(path: Path, key: str | None) -> Stored:
    with open(path, "rb") as file:
        _, dtype = _header(file)
    if dtype.hasobject:
        raise UserError(f"{path} holds Python objects, where numbers were expected, and objects "
                        "are not opened, for they may run code; save the array of numbers in them.")
    return Stored(np.load(str(path), mmap_mode="r", allow_pickle=False), format="npy")


@contextmanager
def create_npy(target: Target) -> Iterator[CubeWriter]:
    with replacing(target.path, target.overwrite) as temporary:
        with writing(target.path):
            array = np.lib.format.open_memmap(temporary, "w+", target.dtype,
                                              stored_shape(target.layout, target.shape))
            reserve(temporary)
        yield CubeWriter.into(target.path, as_cube(array, target.layout, target.shape[1:]))
        with writing(target.path):
            array.flush()
        del array


def _header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array that begins here."""
    old = np.lib.format.read_magic(file) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def is_npz(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def npy_holds_cube(path: Path) -> bool:
    """Whether a .npy has more than the two axes of a map; a damaged one may."""
    try:
        with open(path, "rb") as file:
            return len(long_axes(_header(file)[0])) > 2
    except (OSError, ValueError):
        return True


def open_npz(path: Path, key: str | None) -> Stored:
    shapes, sizes, small, others = {}, {}, [], []
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith(".npy"):
                with archive.open(member) as packed:  # the header alone: a cube is large
                    file = io.BytesIO(packed.read(SMALL))
                    shape, dtype = _header(file)
                if (dtype.kind in "iufc" and len(long_axes(shape)) in (2, 3)
                        and math.prod(shape) != max(shape)):
                    shapes[member[:-4]] = shape
                    sizes[member[:-4]] = math.prod(shape) * dtype.itemsize
                    continue
                known = member[:-4].lower() in NAMES
                read = (dtype.kind in ("iufU" if known else "iuf")
                        and math.prod(shape) * dtype.itemsize <= 8 * SMALL)
                if read:
                    small.append(member[:-4])
                if not (read and known):
                    kind = "Python objects, which are not opened" if dtype.hasobject else str(dtype)
                    others.append(f"{member[:-4]} ({kind}, {times(shape)})")
    with np.load(path, allow_pickle=False) as archive:
        beside = {name: archive[name] for name in small}
        notes: list[str] = []
        key = choose_key(path, shapes, key, find_size(beside), ", ".join(others), notes=notes)
        require_memory(sizes[key], path)
        return Stored(archive[key], format="npz", key=key, notes=notes,
                      layout=stated_layout(beside.pop("layout", None)),
                      planes=[s for n, s in shapes.items() if len(s) == 2 and n != key],
                      **facts_in(beside))


@contextmanager
def create_npz(target: Target) -> Iterator[CubeWriter]:
    with replacing(target.path, target.overwrite) as temporary:
        array = np.zeros(stored_shape(target.layout, target.shape), target.dtype)
        yield CubeWriter.into(target.path, as_cube(array, target.layout, target.shape[1:]))
        with writing(target.path):
            np.savez(temporary,
                     **{matlab_name(target.like): array, "layout": np.array(target.layout)},
                     **companions(target))
