"""HDF5 files: plain ones, and MATLAB's v7.3 (.mat), which show their axes in reverse."""
from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from utility.cubes.axes import stored_shape, writer_into
from utility.cubes.companions import NAMES, SMALL, choose_key, companions, facts_in, find_size, matlab_name, stated_layout
from utility.cubes.cube import CubeWriter, LazyCube, Stored, Target, damaged, reserve, writing
from utility.system.errors import UserError
from utility.system.files import replacing
from utility.system.memory import require_memory

NO_ARRAYS = ("char", "logical", "cell", "struct", "function_handle")
"""Classes of MATLAB that cannot hold a cube."""


def open_hdf5(path: Path, key: str | None) -> Stored:
    file = h5py.File(path, "r")
    try:
        arrays: dict[str, h5py.Dataset] = {}
        small: dict[str, np.ndarray] = {}

        def visit(name: str, item: Any) -> None:
            hidden = any(part.startswith("#") for part in name.split("/"))
            if hidden or not isinstance(item, h5py.Dataset):
                return
            plan = item.id.get_create_plist()  # before the shape, for which HDF5 opens the other files
            if plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count():
                raise UserError(f"{path} holds the array '{name}', whose values lie in other files, and these are not opened; "
                                "copy the values into one file.")
            if item.dtype.kind not in "iufcV" or item.shape is None or _matlab_class(item) in NO_ARRAYS:
                return
            require_memory(math.prod(item.chunks or ()) * item.dtype.itemsize, f"{path}, one chunk of '{name}',")
            if 0 < item.size == max(item.shape, default=1) <= SMALL and item.dtype.kind in "iuf":
                if name.rpartition("/")[2].lower() in NAMES:
                    small[name] = item[()]
            elif item.ndim in (2, 3) and item.size:
                arrays[name] = item

        file.visititems(visit)
        size = find_size({name.rsplit("/", 1)[-1]: value for name, value in small.items()})
        key = choose_key(path, {n: d.shape for n, d in arrays.items()}, key.strip("/") if key else None, size)
        dataset = arrays[key]
        _check_chunks(dataset, path)
        folders = "", key.rpartition("/")[0]
        beside = {n.rpartition("/")[2]: v for n, v in small.items() if n.rpartition("/")[0] in folders}
        beside |= {name: dataset.attrs[name] for name in ("nodata",) if name in dataset.attrs}
        with open(path, "rb") as raw:
            matlab = raw.read(10) == b"MATLAB 7.3" or _matlab_class(dataset) is not None
        return Stored(_on_disk(dataset, path), format="mat7.3" if matlab else "hdf5", key=key,
                      layout=stated_layout(dataset.attrs.get("layout")), mirrored=matlab,
                      planes=[d.shape for n, d in arrays.items() if d.ndim == 2 and n != key], **facts_in(beside))
    except BaseException:
        file.close()
        raise


def _check_chunks(dataset: h5py.Dataset, path: Path) -> None:
    """Raise UserError where a chunk holds less than its checksum, which ends the process in HDF5."""
    least = 4 * dataset.fletcher32
    if dataset.chunks and dataset.id.chunk_iter(lambda chunk: True if chunk.size <= least else None):
        raise UserError(f"{path} is damaged: a chunk of '{dataset.name}' is empty; copy it again.")


def _on_disk(dataset: h5py.Dataset, path: Path) -> np.memmap | LazyCube:
    start = dataset.id.get_offset()  # None where the values lie in chunks
    same = dataset.id.get_type() == h5py.h5t.py_create(dataset.dtype)
    if start is not None and same and start + dataset.nbytes <= os.path.getsize(path):  # half the time of HDF5
        return np.memmap(str(path), dataset.dtype, "r", start, dataset.shape)

    def read(*index: slice) -> np.ndarray:
        try:
            return dataset[index]
        except (OSError, RuntimeError) as error:
            raise damaged(dataset.file.filename, error) from error

    return LazyCube(dataset.shape, dataset.dtype, read, grain=dataset.chunks[0] if dataset.chunks else 1)


def _matlab_class(dataset: h5py.Dataset) -> str | None:
    value = dataset.attrs.get("MATLAB_class")
    return value.decode() if isinstance(value, bytes) else value


@contextmanager
def create_hdf5(target: Target) -> Iterator[CubeWriter]:
    matlab = target.path.suffix.lower() == ".mat"
    key = matlab_name(target.like) if matlab else target.like.key or "cube"
    with replacing(target.path, target.overwrite) as temporary:
        with writing(target.path):
            # HDF5 may crash the process when its own writes fail: nothing is left for HDF5 to allocate
            size = math.prod(stored_shape(target.layout, target.shape)) * target.dtype.itemsize
            reserve(temporary, size + (1 << 20))
            _prepare(temporary, target, key, matlab)
            reserve(temporary)
            file = h5py.File(temporary, "r+")
        try:
            yield writer_into(file[key], target)
        finally:
            with writing(target.path):
                file.close()


def _prepare(path: Path, target: Target, key: str, matlab: bool) -> None:
    """Write an HDF5 file that lacks only the values of its cube; for MATLAB, with MATLAB's header in a user block."""
    with h5py.File(path, "w", userblock_size=512 if matlab else 0) as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        folder, _, name = key.rpartition("/")
        h5py.h5d.create(file.require_group(folder or "/").id, name.encode(), h5py.h5t.py_create(target.dtype, logical=True),
                        h5py.h5s.create_simple(stored_shape(target.layout, target.shape)), plan)
        file[key].attrs["layout"] = target.layout
        for name, value in companions(target).items():
            if name == "nodata" or isinstance(value, str):
                file[key].attrs[name] = value
            if name not in file and matlab and isinstance(value, str):
                file[name] = np.frombuffer(value.encode("utf-16-le"), "<u2")[:, None]  # a row to MATLAB
                file[name].attrs.update({"MATLAB_class": np.bytes_("char"), "MATLAB_int_decode": np.int32(2)})
            elif name not in file and name not in file[key].attrs:
                file[name] = np.reshape(value, (1, -1))  # a column to MATLAB
        for item in file.values() if matlab else ():
            item.attrs.setdefault("MATLAB_class", np.bytes_(
                {"f4": "single", "f8": "double"}.get(item.dtype.str[1:], item.dtype.name)))
    if matlab:
        text = f"MATLAB 7.3 MAT-file, Platform: {sys.platform}, Created on: {time.ctime()} HDF5 schema 1.00 ."
        with open(path, "r+b") as raw:
            raw.write(text[:116].ljust(116).encode() + b"\0" * 8 + b"\x00\x02IM")
