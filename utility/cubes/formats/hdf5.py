"""HDF5 files: plain ones, and MATLAB's v7.3 (.mat), which show their axes in reverse."""
from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from utility.cubes.axes import stored_shape, writer_into
from utility.cubes.companions import (
    NAMES,
    SMALL,
    TEXTS,
    VECTORS,
    choose_key,
    companions,
    facts_in,
    find_size,
    matlab_name,
    stated_layout,
    times,
)
from utility.cubes.conventions import (
    Packing,
    bands_of,
    dimension_names,
    is_companion,
    is_dimension,
    item_at,
    layout_of,
    packing_of,
)
from utility.cubes.cube import CubeWriter, LazyCube, Stored, Target, read_from, reserve, writing
from utility.cubes.ground import lonlat_of, place_of
from utility.cubes.virtual import unpacked
from utility.system.errors import UserError
from utility.system.files import replacing
from utility.system.memory import require_memory

NO_ARRAYS = ("char", "logical", "cell", "struct", "function_handle")
"""Classes of MATLAB that cannot hold a cube."""


@dataclass
class Contents:
    """The numeric arrays of an open HDF5 file."""
    path: Path
    file: h5py.File
    arrays: dict[str, h5py.Dataset]           # of 2 or 3 axes, besides axes of length 1
    small: dict[str, h5py.Dataset]            # vectors and scalars
    others: dict[str, tuple[int, ...]]        # shapes of arrays of other numbers of axes


def contents_of(path: Path) -> Contents:
    """Open a file and list its arrays. Raises UserError: values in other files, a huge chunk."""
    found = Contents(path, h5py.File(path, "r"), {}, {}, {})

    def visit(name: str, item: Any) -> None:
        hidden = any(part.startswith("#") for part in name.split("/"))
        if hidden or not isinstance(item, h5py.Dataset):
            return
        plan = item.id.get_create_plist()  # before the shape, for which HDF5 opens the other files
        if plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count():
            raise UserError(f"{path} holds the array '{name}', whose values lie in other files, "
                            "and these are not opened; copy the values into one file.")
        if item.dtype.kind not in "iufcV" or item.shape is None or _matlab_class(item) in NO_ARRAYS:
            return
        require_memory(math.prod(item.chunks or ()) * item.dtype.itemsize,
                       f"{path}, one chunk of '{name}',")
        if 0 < item.size == max(item.shape, default=1) <= SMALL and item.dtype.kind in "iuf":
            found.small[name] = item
        elif item.size and (item.ndim == 2 or len(_axes(item)) == 3):
            found.arrays[name] = item
        elif item.size and item.ndim > 2:
            found.others[name] = item.shape

    try:
        found.file.visititems(visit)
    except BaseException:
        found.file.close()
        raise
    return found


def open_hdf5(path: Path, key: str | None, layout: str | None = None) -> Stored:
    """The cube of a file; `layout` as for `stored_array`."""
    contents = contents_of(path)
    try:
        beside = _named(contents, "")
        shapes = {name: tuple(item.shape[axis] for axis in _axes(item))
                  for name, item in contents.arrays.items()}
        companions = {name for name, item in contents.arrays.items() if is_companion(name, item)}
        listing = ", ".join(f"{name} ({times(shape)})" for name, shape in contents.others.items())
        notes: list[str] = []
        key = choose_key(path, shapes, key.strip("/") if key else None, find_size(beside), listing,
                         companions, notes)
        stored = stored_array(contents, key, layout=layout)
        stored.notes += notes
        return stored
    except BaseException:
        contents.file.close()
        raise


def stored_array(contents: Contents, key: str, packing: Packing | None = None,
                 layout: str | None = None) -> Stored:
    """An array of an open file with all that the file says about it.

    Args:
        packing: of its values, where a product knows better than the array's attributes.
        layout: of the product's arrays, for an array whose dimensions have no names.
    """
    dataset, path = contents.arrays[key], contents.path
    _check_chunks(dataset, path)
    with open(path, "rb") as raw:
        matlab = raw.read(10) == b"MATLAB 7.3" or _matlab_class(dataset) is not None
    beside = _named(contents, key.rpartition("/")[0], dataset.shape if matlab else ())
    beside |= {name: dataset.attrs[name] for name in (*TEXTS, *VECTORS, "nodata")
               if name in dataset.attrs}
    packing = packing or packing_of(dataset)
    array, nodata = unpacked(_squeezed(_on_disk(dataset, path), _axes(dataset)), packing)
    usual = layout
    layout, reason = stated_layout(dataset.attrs.get("layout")), ""
    kind = "mat7.3" if matlab else "netcdf" if is_netcdf(contents.file) else "hdf5"
    planes = [d.shape for n, d in contents.arrays.items() if d.ndim == 2 and n != key]
    stored = Stored(array, format=kind, key=key, mirrored=matlab, planes=planes, **facts_in(beside))
    stored.nodata, stored.units = stored.nodata if nodata is None else nodata, packing.units
    if packing.packed:
        added = f" + {packing.offset:g}" if packing.offset else ""
        stored.metadata["packing"] = f"{dataset.dtype} x {packing.scale:g}{added}"
    if len(array.shape) == 3 and not matlab:
        if not layout:
            layout, reason = _layout_of(contents, dataset, usual)
        if layout:
            _describe(contents, dataset, stored, layout)
    stored.layout, stored.layout_by = layout, reason
    return stored


def is_netcdf(file: h5py.File) -> bool:
    """Whether netCDF's library wrote a file, or another program in its way: it has dimensions."""
    tops = (item_at(file, name) for name in file)
    return "_NCProperties" in file.attrs or any(
        isinstance(item, h5py.Dataset) and is_dimension(item) for item in tops)


def is_netcdf_file(path: Path, head: bytes) -> bool:
    """Whether a file with these first bytes is one that `is_netcdf` means."""
    if not h5py.is_hdf5(path) or head.startswith(b"MATLAB"):
        return False
    with h5py.File(path, "r") as file:
        return is_netcdf(file)


def _layout_of(contents: Contents, dataset: h5py.Dataset,
               usual: str | None) -> tuple[str | None, str]:
    """The layout of a 3-D array by the names of its dimensions, else by wavelengths that fit one
    axis alone, else the usual one of the product."""
    axes = _axes(dataset)
    names = dimension_names(dataset)
    if layout := layout_of([names[axis] for axis in axes]):
        return layout, "the names of its dimensions"
    fitting = [place for place, axis in enumerate(axes)
               if bands_of(dataset, axis, contents.small).wavelengths is not None]
    if len(fitting) != 1:
        return usual, "the product" if usual else ""
    return ("BHW", "HBW", "HWB")[fitting[0]], "the number of wavelengths beside it"


def _describe(contents: Contents, dataset: h5py.Dataset, stored: Stored, layout: str) -> None:
    """Wavelengths, marks of bands, place: facts without which a cube can be read, so that an odd
    one is left out."""
    whole = ["."] * dataset.ndim
    for axis, name in zip(_axes(dataset), layout, strict=True):
        whole[axis] = name
    whole_layout = "".join(whole)
    try:
        bands = bands_of(dataset, whole_layout.index("B"), contents.small)
        stored.fwhm = bands.fwhm if stored.fwhm is None else stored.fwhm
        stored.good = bands.good if stored.good is None else stored.good
        if stored.wavelengths is None and bands.wavelengths is not None:
            stored.wavelengths, stored.wavelengths_by = bands.wavelengths, bands.by
        if stored.transform is None:
            crs, stored.transform = place_of(dataset, whole_layout)
            stored.crs = stored.crs or crs
        if stored.transform is None:
            size = tuple(stored.array.shape[layout.index(axis)] for axis in "HW")
            stored.lonlat = lonlat_of(contents.file, size)
    except (KeyError, TypeError, ValueError, OSError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:100]
        stored.notes.append(f"what stands beside the cube was not understood ({reason})")


def _named(contents: Contents, folder: str,
           lengths: Collection[int] = ()) -> dict[str, np.ndarray]:
    """The small arrays of known names, and vectors of these lengths, beside a cube in a folder of
    the file, and at its top."""
    found: dict[str, np.ndarray] = {}
    for name, item in contents.small.items():
        place, _, last = name.rpartition("/")
        # Widths with a unit are `conventions`' to read.
        plain = last.lower() in NAMES and not (last.lower() == "fwhm" and "units" in item.attrs)
        if (plain or 1 < item.size in lengths) and place in ("", folder) and not is_dimension(item):
            found[last] = item[()]
    return found | _texts(contents, folder)


def _texts(contents: Contents, folder: str) -> dict[str, str]:
    """Texts beside a cube of MATLAB: rows of characters."""
    found = {}
    for name in TEXTS:
        item = contents.file.get(f"{folder}/{name}" if folder else name)
        text = isinstance(item, h5py.Dataset) and _matlab_class(item) == "char"
        if text and item.dtype.kind == "u" and item.size <= SMALL:
            found[name] = item[()].astype("<u2").tobytes().decode("utf-16-le", "replace")
    return found


def _axes(dataset: h5py.Dataset) -> list[int]:
    """The axes of an array that count: all of three; of more, those that are longer than 1."""
    return [axis for axis, n in enumerate(dataset.shape) if dataset.ndim <= 3 or n > 1]


def _squeezed(array: np.memmap | LazyCube, axes: list[int]) -> np.memmap | LazyCube:
    if len(axes) == len(array.shape):
        return array
    shape = tuple(array.shape[axis] for axis in axes)
    if isinstance(array, np.ndarray):
        return array.reshape(shape)

    def read(*index: slice) -> np.ndarray:
        whole = [slice(0, 1)] * len(array.shape)
        for axis, part in zip(axes, index, strict=True):
            whole[axis] = part
        block = array[tuple(whole)]
        return block.reshape([block.shape[axis] for axis in axes])

    return LazyCube(shape, array.dtype, read, grain=array.grain if axes[0] == 0 else 1)


def _check_chunks(dataset: h5py.Dataset, path: Path) -> None:
    """Raise UserError where a chunk holds less than its checksum, which ends the process."""
    least = 4 * dataset.fletcher32
    empty = dataset.chunks and dataset.id.chunk_iter(
        lambda chunk: True if chunk.size <= least else None)
    if empty:
        raise UserError(f"{path} is damaged: a chunk of '{dataset.name}' is empty; copy it again.")


def _on_disk(dataset: h5py.Dataset, path: Path) -> np.memmap | LazyCube:
    start = dataset.id.get_offset()  # None where the values lie in chunks
    same = dataset.id.get_type() == h5py.h5t.py_create(dataset.dtype)
    if start is not None and same and start + dataset.nbytes <= os.path.getsize(path):
        # Half the time of HDF5.
        return np.memmap(str(path), dataset.dtype, "r", start, dataset.shape)

    def read(*index: slice) -> np.ndarray:
        with read_from(dataset.file.filename, OSError, RuntimeError):
            return dataset[index]

    grain = dataset.chunks[0] if dataset.chunks else 1
    return LazyCube(dataset.shape, dataset.dtype, read, grain=grain)


def _matlab_class(dataset: h5py.Dataset) -> str | None:
    value = dataset.attrs.get("MATLAB_class")
    return value.decode() if isinstance(value, bytes) else value


@contextmanager
def create_hdf5(target: Target) -> Iterator[CubeWriter]:
    matlab = target.path.suffix.lower() == ".mat"
    key = matlab_name(target.like) if matlab else target.like.key or "cube"
    with created(target, key, partial(_prepare, matlab=matlab)) as writer:
        yield writer


@contextmanager
def created(target: Target, key: str,
            prepare: Callable[[Path, Target, str], None]) -> Iterator[CubeWriter]:
    """A writer of the cube `key` in an HDF5 file, all else of which `prepare` writes.

    HDF5 may crash the process when its own writes fail, so nothing is left for it to allocate.
    """
    with replacing(target.path, target.overwrite) as temporary:
        with writing(target.path):
            reserve(temporary, math.prod(target.shape) * target.dtype.itemsize + (1 << 20))
            prepare(temporary, target, key)
            reserve(temporary)
            file = h5py.File(temporary, "r+")
        try:
            yield writer_into(file[key], target)
        finally:
            with writing(target.path):
                file.close()


def early(file: h5py.File, key: str, shape: tuple[int, ...], dtype: np.dtype,
          fill: float | None = None) -> None:
    """Make a data set whose room in the file is taken at once, and whose values are left to be
    written."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)  # the same cube makes the same file
    if fill is not None:
        plan.set_fill_value(np.array(fill, dtype))
    folder, _, name = key.rpartition("/")
    h5py.h5d.create(file.require_group(folder or "/").id, name.encode(),
                    h5py.h5t.py_create(dtype, logical=True), h5py.h5s.create_simple(shape), plan)


def _prepare(path: Path, target: Target, key: str, matlab: bool) -> None:
    """Write all of an HDF5 file but its cube; for MATLAB with its header in a user block."""
    with h5py.File(path, "w", userblock_size=512 if matlab else 0) as file:
        early(file, key, stored_shape(target.layout, target.shape), target.dtype)
        file[key].attrs["layout"] = target.layout
        for name, value in companions(target).items():
            if name == "nodata" or isinstance(value, str):
                file[key].attrs[name] = value
            if name not in file and matlab and isinstance(value, str):
                codes = np.frombuffer(value.encode("utf-16-le"), "<u2")
                file[name] = codes[:, None]  # a row to MATLAB
                file[name].attrs.update({"MATLAB_class": np.bytes_("char"),
                                         "MATLAB_int_decode": np.int32(2)})
            elif name not in file and name not in file[key].attrs:
                plane = np.ndim(value) == 2
                # A vector is a column to MATLAB.
                value = np.asarray(value) if plane else np.reshape(value, (1, -1))
                file[name] = value.T if plane and matlab else value
        for item in file.values() if matlab else ():
            item.attrs.setdefault("MATLAB_class", np.bytes_(
                {"f4": "single", "f8": "double"}.get(item.dtype.str[1:], item.dtype.name)))
    if matlab:
        text = f"MATLAB 7.3 MAT-file, Platform: {sys.platform} HDF5 schema 1.00 ."
        with open(path, "r+b") as raw:
            raw.write(text[:116].ljust(116).encode() + b"\0" * 8 + b"\x00\x02IM")
