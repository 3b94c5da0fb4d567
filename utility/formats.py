"""Hyperspectral containers, one reader and one writer each: MATLAB v5 and v7.3, HDF5, .npy/.npz, ENVI, rasters.

A reader looks into the file, never at its name, and returns a `Stored`: the array as it lies there, plus whatever the
file says about it. A writer is a context manager that yields a `CubeWriter`; the file takes its name when it is whole.
Which axis is which is decided in `utility.scenes`.
"""
from __future__ import annotations

import difflib
import errno
import math
import os
import re
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import rasterio
import scipy.io
from rasterio.windows import Window
from spectral.io import envi

from utility.errors import UserError
from utility.files import replacing

if TYPE_CHECKING:
    from utility.scenes import Scene

MAT5_LIMIT = 2**31 - 1
"""Bytes above which a .mat is written as v7.3: a v5 variable's size is a signed 32-bit number in many readers."""

BLOCK = 32 << 20
"""Bytes moved at a time; a few of these must fit in the processor's cache and in any machine's memory."""

KNOWN = "MATLAB v5 or v7.3, HDF5, .npy, .npz, ENVI, GeoTIFF or another raster"
SUFFIXES = {".mat": "mat", ".h5": "hdf5", ".hdf5": "hdf5", ".npy": "npy", ".npz": "npz", ".hdr": "envi", ".img": "envi",
            ".dat": "envi", ".bsq": "envi", ".bil": "envi", ".bip": "envi", ".tif": "raster", ".tiff": "raster"}
INTERLEAVES = {"bsq": "BHW", "bil": "HBW", "bip": "HWB"}
Shape = tuple[int, int, int]

SCRATCH = 64 << 20
"""Bytes above which an intermediate cube lies in a temporary file, not in memory."""

PICTURES = {"PNG", "JPEG", "GIF", "BMP", "WEBP"}


@dataclass
class Stored:
    """What a file holds: the array with its axes as Python's reader shows them, and what stands beside it."""
    format: str
    array: Any                                   # np.ndarray, np.memmap, h5py.Dataset, or LazyCube when layout is known
    key: str | None = None
    layout: str | None = None                    # when the container says which axis is which
    mirrored: bool = False                       # MATLAB wrote it: the axes appear in reverse order (v7.3)
    beside: dict[str, Any] = field(default_factory=dict)          # small arrays and texts of the same file, by name
    planes: list[tuple[int, ...]] = field(default_factory=list)   # shapes of the 2-D arrays of the same file
    wavelengths: np.ndarray | None = None
    band_names: list[str] | None = None
    nodata: float | None = None
    crs: str | None = None
    transform: tuple[float, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


class LazyCube:
    """A (B, H, W) cube that stays on disk: ``cube[b0:b1, r0:r1, c0:c1]`` reads that block, in native byte order.

    Args:
        shape: (B, H, W).
        dtype: of the blocks.
        read: called with three slices of step 1 (bands, rows, columns); returns the block.
        slowest: 0, 1 or 2, the axis along which neighbouring blocks lie one after the other on disk.
        grain: thickness along `slowest` below which disk blocks would be read more than once.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, read: Callable[[slice, slice, slice], np.ndarray],
                 slowest: int = 0, grain: int = 1) -> None:
        self.shape, self.dtype, self.slowest, self.grain = tuple(map(int, shape)), native(dtype), slowest, grain
        self.ndim, self._read = 3, read

    size = property(lambda self: math.prod(self.shape))
    nbytes = property(lambda self: self.size * self.dtype.itemsize)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        index = list(index) if isinstance(index, tuple) else [index]
        if Ellipsis in index:
            at = index.index(Ellipsis)
            index[at:at + 1] = [slice(None)] * (4 - len(index))
        index += [slice(None)] * (3 - len(index))
        ranges, inner = [], []
        for item, n in zip(index, self.shape, strict=True):
            if isinstance(item, slice):
                start, stop, step = item.indices(n)
                if step < 1:
                    raise IndexError("a cube on disk is sliced forwards; reverse the block once it is read")
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
        cube = load(self)
        return cube if dtype is None else cube.astype(dtype, copy=False)


def native(dtype: Any) -> np.dtype:
    """`dtype` in this machine's byte order."""
    return np.dtype(dtype).newbyteorder("=")


def blocks(cube: Any, axis: int | None = None, target: int | None = None) -> Iterator[tuple[slice, slice, slice]]:
    """Indices that cover a (B, H, W) cube in blocks of about `target` bytes (BLOCK), in the order in which it lies on disk.

    A block is a slab across `axis`, or some rows of a slab where already one band is larger than that.
    """
    target = target or BLOCK
    if axis is None:
        axis = cube.slowest if isinstance(cube, LazyCube) else int(np.argmax(np.abs(cube.strides)))
    slab = math.prod(cube.shape) // max(1, cube.shape[axis]) * np.dtype(cube.dtype).itemsize
    grain = getattr(cube, "grain", 1)
    step = max(1, math.ceil(target / max(1, slab) / grain)) * grain
    for start in range(0, cube.shape[axis], step):
        index = [slice(0, n) for n in cube.shape]
        index[axis] = slice(start, min(start + step, cube.shape[axis]))
        if axis or slab <= target:
            yield tuple(index)
            continue
        rows = max(256, target * cube.shape[1] // (slab * step) // 256 * 256)  # whole tiles of a raster
        for top in range(0, cube.shape[1], rows):
            yield index[0], slice(top, min(top + rows, cube.shape[1])), index[2]


def load(cube: Any) -> np.ndarray:
    """The cube in memory, C-contiguous, in native byte order; an array that is already so is returned as it is."""
    if type(cube) is np.ndarray and cube.flags.c_contiguous and cube.dtype.isnative:
        return cube
    whole = np.empty(cube.shape, native(cube.dtype))
    for index in blocks(cube, target=4 << 20 if isinstance(cube, np.ndarray) else BLOCK):
        whole[index] = cube[index]
    return whole


def scratch(shape: tuple[int, ...], dtype: Any, folder: Path | None = None) -> np.ndarray:
    """An array of zeros to work in; a large one is a memory map of a file without a name, which goes when the array does.

    Args:
        folder: of that file; by default where temporary files go (TMPDIR), which some systems keep in memory.

    Raises:
        UserError: the disk is full or not writable.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= SCRATCH:
        return np.zeros(shape, dtype)
    folder = Path(folder or tempfile.gettempdir())
    with _writing(folder), tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, and would be a crash when a page is written
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype, "w+", shape=shape)


# ----------------------------------------------------------------------------------------------------------- sniffing

def sniff(path: Path) -> str | None:
    """The container of the file by its content: mat5, mat7.3, hdf5, npy, npz, envi, raster; None for anything else."""
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"MATLAB 5.0"):
        return "mat5"
    if head.startswith(b"MATLAB 7.3"):
        return "mat7.3"
    if h5py.is_hdf5(path):
        return "hdf5"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"PK\x03\x04") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return "npz" if any(n.endswith(".npy") for n in archive.namelist()) else None
    if head.startswith(b"ENVI"):
        return "envi"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "raster"
    if envi_header_of(path):
        return "envi"
    return "raster" if _raster_bands(path) is not None else None


def _raster_bands(path: Path) -> tuple[str, int] | None:
    try:
        with _quiet(), rasterio.open(path) as source:
            return source.driver, source.count
    except (rasterio.errors.RasterioError, OSError, ValueError):
        return None


def is_scene(path: Path) -> bool:
    """Whether a file found in a folder is a scene: a known container; pictures, single-band rasters and the data file
    of an ENVI header are not."""
    try:
        kind = sniff(path)
        if kind == "raster":
            driver, count = _raster_bands(path) or ("", 0)
            return count >= 2 and driver not in PICTURES
        return kind is not None and not (kind == "envi" and envi_header_of(path))
    except OSError:
        return False


def open_stored(path: Path, key: str | None = None) -> Stored:
    """Open a file with the reader its content asks for.

    Raises:
        UserError: it is missing, a folder, empty, of no known container, damaged, or its key is unknown or ambiguous.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; give the path of a scene ({KNOWN}).")
    if path.is_dir():
        raise UserError(f"{path} is a folder, where the file of a scene was expected; name one file in it.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes), where a scene was expected; copy or download it again.")
    try:
        kind = sniff(path)
        if kind is None:
            raise UserError(f"{path} is not a scene that can be read: its content is not {KNOWN}.")
        return _READERS[kind](path, key)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # scipy, h5py, numpy and GDAL raise a dozen types on damaged files
        raise damaged(path, error) from error


def files_of(path: Path) -> list[Path]:
    """The files that exist among those that reading a scene from `path`, or writing one there, involves.

    An ENVI scene has a header and data, whichever of them was named; a raster may have any number of files (a VRT its
    sources).
    """
    found = {path}
    if SUFFIXES.get(path.suffix.lower()) == "envi":
        found |= set(_envi_pair(path))
    try:
        kind = sniff(path) if path.is_file() else None
        if kind == "envi":
            header = envi_header_of(path) or path
            found |= {header, *_envi_data_names(header, *INTERLEAVES)}
        elif kind == "raster":
            with _quiet(), rasterio.open(path) as source:
                found |= set(map(Path, source.files))
    except (OSError, ValueError, rasterio.errors.RasterioError):
        pass  # what cannot be read is refused by its reader
    return sorted(p for p in found if p.exists())


def shared_file(first: Path, second: Path) -> Path | None:
    """A file that the scenes `first` and `second` both involve, by its name in `first`; links are followed."""
    others = files_of(second)
    return next((file for file in files_of(first) if any(file.samefile(other) for other in others)), None)


def damaged(path: Path | str, error: BaseException) -> UserError:
    """The refusal of a file whose container is known, but whose content cannot be read."""
    if isinstance(error, PermissionError):
        return UserError(f"{path} may not be read ({error.strerror}); change its permissions.")
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(f"{path} cannot be read; it is truncated or damaged ({reason}); copy or download it again.")


# --------------------------------------------------------------------------------------------------------------- keys

def choose_key(path: Path, shapes: dict[str, tuple[int, ...]], key: str | None,
               size: tuple[int, int] | None = None, others: str = "") -> str:
    """The key of the cube among numeric arrays: the one asked for, else the only candidate.

    A 3-D array is preferred to 2-D ones (ground-truth maps, endmembers); when there is none, a 2-D array is a candidate
    unless it is a vector, and when the image's size is known it must have that many pixels.
    """
    listing = ", ".join(f"{name} ({' x '.join(map(str, shape))})" for name, shape in shapes.items())
    if key is not None:
        if key in shapes:
            return key
        near = difflib.get_close_matches(key, shapes, 1, 0.4)
        hint = f" (nearest: {near[0]})" if near else ""
        raise UserError(f"{path} has no array '{key}'{hint}; it holds {listing or 'no numeric array'}; "
                        f"choose one of these with --key.")
    cubes = [name for name, shape in shapes.items() if len(shape) == 3 and min(shape) > 0]
    if not cubes:
        cubes = [name for name, shape in shapes.items() if len(shape) == 2 and min(shape) > 1]
        if size:
            cubes = [name for name in cubes if math.prod(size) in shapes[name]] or cubes
    if not cubes:
        raise UserError(f"{path} holds no cube: a numeric array of 3 dimensions, or of bands x pixels, was expected, "
                        f"and it holds {listing or others or 'no numeric array'}.")
    if len(cubes) > 1:
        raise UserError(f"{path} holds several arrays that may be the cube: {listing}; choose one with --key KEY.")
    return cubes[0]


ROWS, COLUMNS = ("nrow", "nrows", "rows", "lines", "height"), ("ncol", "ncols", "cols", "columns", "samples", "width")


def find_size(beside: dict[str, Any]) -> tuple[int, int] | None:
    """(rows, columns) of the image from scalars such as nRow and nCol beside the cube."""
    scalars = {}
    for name, value in beside.items():
        value = np.asarray(value)
        if value.size == 1 and value.dtype.kind in "iuf" and float(value.flat[0]).is_integer():
            scalars[name.lower()] = int(value.flat[0])
    rows = next((scalars[n] for n in ROWS if scalars.get(n, 0) > 0), None)
    columns = next((scalars[n] for n in COLUMNS if scalars.get(n, 0) > 0), None)
    return (rows, columns) if rows and columns else None


def find_wavelengths(beside: dict[str, Any], count: int | None = None) -> np.ndarray | None:
    """Wavelengths in nm from a vector beside the cube; micrometres are converted, band numbers not taken for them."""
    for name, value in beside.items():
        if name.lower() not in ("wavelength", "wavelengths", "wl", "wavs", "lambda", "bands"):
            continue
        value = np.asarray(value)
        if value.dtype.kind not in "iuf" or value.size < 2 or value.size != max(value.shape):
            continue
        value = value.astype(np.float64).ravel()
        if (count is None or value.size == count) and np.all(np.isfinite(value)):
            if value.min() >= 100:
                return value
            if value.min() >= 0.1 and value.max() < 100 and not np.all(value == np.rint(value)):
                return value * 1000
    return None


def nanometres(values: Any, units: str | None) -> np.ndarray | None:
    """Wavelengths in nm; without units, values below 100 are micrometres. None for units that are not a length."""
    values = np.asarray(values, np.float64)
    factor = unit_in_nm(units) if (units or "").strip().lower() not in ("", "unknown") else (
        1000.0 if values.size and values.max() < 100 else 1.0)
    return None if factor is None else values * factor


def unit_in_nm(units: str | None) -> float | None:
    """How many nm one of `units` is; None when it is not a unit of length."""
    return {"nanometers": 1.0, "nanometres": 1.0, "nanometer": 1.0, "nm": 1.0, "micrometers": 1e3, "micrometres": 1e3,
            "micrometer": 1e3, "microns": 1e3, "micron": 1e3, "um": 1e3, "µm": 1e3, "μm": 1e3, "angstroms": 0.1,
            "millimeters": 1e6, "centimeters": 1e7, "meters": 1e9}.get((units or "").strip().lower())


# ----------------------------------------------------------------------------------------------------------- MATLAB v5

def _read_mat5(path: Path, key: str | None) -> Stored:
    listed = scipy.io.whosmat(str(path), appendmat=False)
    numeric = {"double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"}
    shapes = {name: tuple(shape) for name, shape, kind in listed if kind in numeric}
    texts = [name for name, shape, kind in listed if kind == "char" and name == "layout"]
    small = [name for name, shape in shapes.items() if 0 < math.prod(shape) == max(shape) <= 1 << 16]
    beside = scipy.io.loadmat(str(path), variable_names=[*small, *texts], appendmat=False) if small or texts else {}
    beside = {name: value for name, value in beside.items() if not name.startswith("__")}
    arrays = {name: shape for name, shape in shapes.items() if name not in small}
    others = ", ".join(f"{name} ({kind}, {' x '.join(map(str, shape))})" for name, shape, kind in listed)
    key = choose_key(path, arrays, key, find_size(beside), others)
    array = scipy.io.loadmat(str(path), variable_names=[key], appendmat=False)[key]
    return Stored("mat5", array, key, _said(beside.pop("layout", None)), beside=beside,
                  planes=[s for n, s in shapes.items() if len(s) == 2 and n != key and min(s) > 1],
                  nodata=_scalar(beside.get("nodata")))


def _said(text: Any) -> str | None:
    """A layout that the file itself states."""
    if text is None:
        return None
    text = text.decode() if isinstance(text, bytes) else str(np.asarray(text).flat[0] if np.size(text) else "")
    return text if sorted(text) == list("BHW") or text in ("pixels", "pixels.T") else None


def _scalar(value: Any) -> float | None:
    return None if value is None or np.size(value) != 1 else float(np.asarray(value).flat[0])


# ---------------------------------------------------------------------------------------------- MATLAB v7.3 and HDF5

def _read_hdf5(path: Path, key: str | None) -> Stored:
    file = h5py.File(path, "r")
    try:
        with open(path, "rb") as raw:
            matlab = raw.read(10) == b"MATLAB 7.3"
        arrays: dict[str, h5py.Dataset] = {}
        small: dict[str, h5py.Dataset] = {}

        def visit(name: str, item: Any) -> None:
            hidden = any(part.startswith("#") for part in name.split("/"))
            if hidden or not isinstance(item, h5py.Dataset) or item.dtype.kind not in "iufcV" or item.shape is None:
                return
            if _matlab_class(item) in ("char", "logical", "cell", "struct", "function_handle"):
                return
            if 0 < item.size == max(item.shape, default=1) <= 1 << 16 and item.dtype.kind in "iuf":
                small[name] = item
            elif item.ndim in (2, 3) and item.size:
                arrays[name] = item

        file.visititems(visit)
        around = {name: dataset[()] for name, dataset in small.items()}
        size = find_size({name.rsplit("/", 1)[-1]: value for name, value in around.items()})
        key = choose_key(path, {n: d.shape for n, d in arrays.items()}, key.strip("/") if key else None, size)
        dataset = arrays[key]
        folder = key.rpartition("/")[0]
        beside = {name.rpartition("/")[2]: value for name, value in around.items()
                  if name.rpartition("/")[0] in ("", folder)}
        matlab = matlab or _matlab_class(dataset) is not None
        return Stored("mat7.3" if matlab else "hdf5", dataset, key, _said(dataset.attrs.get("layout")), matlab, beside,
                      [d.shape for n, d in arrays.items() if d.ndim == 2 and n != key],
                      nodata=_scalar(dataset.attrs.get("nodata")))
    except BaseException:
        file.close()
        raise


def _matlab_class(dataset: h5py.Dataset) -> str | None:
    value = dataset.attrs.get("MATLAB_class")
    return value.decode() if isinstance(value, bytes) else value


# ---------------------------------------------------------------------------------------------------------- .npy, .npz

def _read_npy(path: Path, key: str | None) -> Stored:
    return Stored("npy", np.load(path, mmap_mode="r", allow_pickle=False))


def _read_npz(path: Path, key: str | None) -> Stored:
    shapes, small = {}, []
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith(".npy"):
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else \
                        np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(file)
                if dtype.kind in "iufc" and len(shape) in (2, 3) and math.prod(shape) != max(shape):
                    shapes[member[:-4]] = shape
                elif dtype.kind in "iufU" and math.prod(shape) <= 1 << 16:
                    small.append(member[:-4])
    with np.load(path, allow_pickle=False) as archive:
        beside = {name: archive[name] for name in small}
        key = choose_key(path, shapes, key, find_size(beside))
        return Stored("npz", archive[key], key, _said(beside.pop("layout", None)), beside=beside,
                      planes=[s for n, s in shapes.items() if len(s) == 2 and n != key],
                      nodata=_scalar(beside.get("nodata")))


# ---------------------------------------------------------------------------------------------------------------- ENVI

def envi_header_of(path: Path) -> Path | None:
    """The ENVI header that belongs to the data file `path`; None when it has none."""
    for name in (f"{path.name}.hdr", f"{path.name}.HDR", f"{path.stem}.hdr", f"{path.stem}.HDR"):
        header = path.with_name(name)
        if header != path and header.is_file():
            with open(header, "rb") as file:
                if file.read(4) == b"ENVI":
                    return header
    return None


def _envi_data_of(header: Path, interleave: str, expected: int) -> Path:
    """The data file of a header: its name without .hdr, or with a usual extension; the one of the right size first."""
    found = [p for p in _envi_data_names(header, interleave) if p.is_file() and p != header]
    if not found:
        stem = header.with_suffix("")
        raise UserError(f"{header} has no data file beside it: {stem.name}, {stem.name}.img, {stem.name}.dat or "
                        f"{stem.name}.{interleave} was expected; put it there, or give the data file's own path.")
    return next((p for p in found if p.stat().st_size == expected), found[0])


def _envi_data_names(header: Path, *interleaves: str) -> list[Path]:
    """Names that the data file of a header may have, the usual ones first."""
    stem = header.with_suffix("")
    endings = [*envi.KNOWN_EXTS, *interleaves]
    return [stem, *(stem.with_name(f"{stem.name}.{e}") for e in [*endings, *(e.upper() for e in endings)])]


def _envi_pair(path: Path) -> tuple[Path, Path]:
    """Header and data of an ENVI scene that is written to `path`, the name of either."""
    return path.with_suffix(".hdr"), path.with_suffix(".img") if path.suffix.lower() == ".hdr" else path


def _envi_fields(header: Path) -> dict[str, Any]:
    content = header.read_bytes()
    with _quiet():
        if content.isascii():
            return envi.read_envi_header(str(header))
        # spectral reads in the locale's encoding alone; the fields are ASCII, and descriptions come in any code page
        with tempfile.NamedTemporaryFile(suffix=".hdr") as copy:
            copy.write(content.decode("ascii", "replace").encode("ascii", "replace"))
            copy.flush()
            return envi.read_envi_header(copy.name)


def _read_envi(path: Path, key: str | None) -> Stored:
    with open(path, "rb") as file:
        header = path if file.read(4) == b"ENVI" else envi_header_of(path)
    assert header is not None
    try:
        fields = _envi_fields(header)
    except (envi.EnviException, OSError, UnicodeError) as error:
        raise UserError(f"{header} is not a readable ENVI header (a brace is not closed, or it is no text); "
                        f"correct or copy it again.") from error
    missing = [n for n in ("samples", "lines", "bands", "data type", "interleave", "byte order") if n not in fields]
    if missing:
        raise UserError(f"{header} lacks the field{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}, without "
                        f"which its data cannot be read; add them to the header.")
    numbers = {}
    for name in ("samples", "lines", "bands", "byte order", "header offset"):
        try:
            numbers[name] = int(fields.get(name, 0))
        except (TypeError, ValueError):
            raise UserError(f"{header} says '{name} = {fields[name]}', where a whole number was expected.") from None
    columns, rows, bands, order, offset = numbers.values()
    interleave = str(fields["interleave"]).lower()
    if interleave not in INTERLEAVES:
        raise UserError(f"{header} says 'interleave = {fields['interleave']}', where bsq, bil or bip was expected.")
    if str(fields["data type"]) not in envi.envi_to_dtype:
        known = ", ".join(f"{code} {np.dtype(d).name}" for code, d in envi.envi_to_dtype.items())
        raise UserError(f"{header} says 'data type = {fields['data type']}', which is unknown; known are {known}.")
    if order not in (0, 1):
        raise UserError(f"{header} says 'byte order = {order}', where 0 (little endian) or 1 (big) was expected.")
    if str(fields.get("file compression", "0")) not in ("0", ""):
        raise UserError(f"{header} says that its data file is compressed, which is not read; write it uncompressed.")
    if min(columns, rows, bands) < 1 or offset < 0:
        raise UserError(f"{header} says {rows} lines, {columns} samples, {bands} bands and header offset {offset}; "
                        f"correct it.")
    if envi._has_frame_offset(fields):
        raise UserError(f"{header} has frame offsets, which are not read here; write the cube without them.")
    dtype = np.dtype(envi.envi_to_dtype[str(fields["data type"])]).newbyteorder("<>"[order])
    expected = offset + rows * columns * bands * dtype.itemsize
    data = path if path != header else _envi_data_of(header, interleave, expected)
    size = data.stat().st_size
    if size != expected:
        raise UserError(f"{header} describes {expected} bytes ({bands} bands x {rows} lines x {columns} samples of "
                        f"{dtype.itemsize} bytes{f' after {offset}' if offset else ''}), but its data file {data.name} "
                        f"has {size}; correct the header, or copy the data again.")
    layout = INTERLEAVES[interleave]
    extent = {"B": bands, "H": rows, "W": columns}
    array = np.memmap(data, dtype, "r", offset, tuple(extent[letter] for letter in layout))

    def values(name: str, convert: Callable[[str], Any]) -> list[Any] | None:
        listed = fields.pop(name, None)
        if listed is None:
            return None
        listed = [listed] if isinstance(listed, str) else listed
        if len(listed) != bands:
            raise UserError(f"{header} lists {len(listed)} values under '{name}' for {bands} bands; correct it.")
        try:
            return [convert(v) for v in listed]
        except ValueError:
            raise UserError(f"{header} lists something other than numbers under '{name}'; correct it.") from None

    centres, units = values("wavelength", float), fields.get("wavelength units")
    names = values("band names", str)
    nodata = fields.pop("data ignore value", None)
    try:
        nodata = None if nodata is None else float(nodata)
    except ValueError:
        raise UserError(f"{header} says 'data ignore value = {nodata}', where a number was expected.") from None
    crs, transform = _georeference(data)
    for name in ("samples", "lines", "bands", "header offset", "data type", "interleave", "byte order", "file type"):
        fields.pop(name, None)
    return Stored("envi", array, None, layout, wavelengths=None if centres is None else nanometres(centres, units),
                  band_names=names, nodata=nodata, crs=crs, transform=transform,
                  metadata={"header": fields, "interleave": interleave, "byte order": order,
                            **({"wavelength": centres} if centres else {})})


def _georeference(data: Path) -> tuple[str | None, tuple[float, ...] | None]:
    """CRS and transform as GDAL, and so every GIS built on it, understands the header's map info."""
    try:
        with _quiet(), rasterio.open(data, driver="ENVI") as source:
            transform = None if source.transform.is_identity else tuple(v + 0.0 for v in tuple(source.transform)[:6])
            return source.crs.to_wkt() if source.crs else None, transform
    except (rasterio.errors.RasterioError, OSError, ValueError):
        return None, None


# ------------------------------------------------------------------------------------------------------------- rasters

def _read_raster(path: Path, key: str | None) -> Stored:
    with _quiet():
        source = rasterio.open(path)
    if source.count < 2:
        inside = f" of its own and {len(source.subdatasets)} subdatasets" if source.subdatasets else ""
        raise UserError(f"{path} is a raster with {source.count} band{'s' * (source.count != 1)}{inside}, and a "
                        f"hyperspectral cube needs at least 2 bands; give a raster of all bands.")
    if len(set(source.dtypes)) > 1:
        raise UserError(f"{path} has bands of different data types ({', '.join(sorted(set(source.dtypes)))}), where "
                        f"one was expected; convert it to one type.")
    declared = {"nan" if math.isnan(v) else v for v in source.nodatavals if v is not None}
    if len(declared) > 1:
        raise UserError(f"{path} declares different no-data values in its bands ({', '.join(map(str, declared))}), "
                        f"where one was expected; give all bands the same.")
    nodata = next((v for v in source.nodatavals if v is not None), None)
    shape = (source.count, source.height, source.width)
    height = source.block_shapes[0][0]
    by_pixel = source.interleaving is not None and source.interleaving.value == "PIXEL"

    def read(b: slice, r: slice, c: slice) -> np.ndarray:
        try:
            return source.read(range(b.start + 1, b.stop + 1),
                               window=Window(c.start, r.start, c.stop - c.start, r.stop - r.start))
        except (rasterio.errors.RasterioError, OSError) as error:
            raise damaged(path, error) from error

    tags = [source.tags(i) for i in source.indexes]
    descriptions = [d or "" for d in source.descriptions]
    keep = {"driver": source.driver, "tags": source.tags(),
            "band_tags": tags, "imagery": [source.tags(i, ns="IMAGERY") for i in source.indexes],
            "scales": list(source.scales), "offsets": list(source.offsets)}
    return Stored("raster", LazyCube(shape, np.dtype(source.dtypes[0]), read, *((1, height) if by_pixel else (0, 1))),
                  None, "BHW", wavelengths=_raster_wavelengths(tags, keep["imagery"], descriptions),
                  band_names=descriptions if any(descriptions) else None, nodata=nodata,
                  crs=source.crs.to_wkt() if source.crs else None,
                  transform=None if source.transform.is_identity else tuple(source.transform)[:6], metadata=keep)


def _raster_wavelengths(tags: list[dict], imagery: list[dict], descriptions: list[str]) -> np.ndarray | None:
    """Centre wavelengths in nm from band tags, GDAL's IMAGERY domain, or band names such as '550.5 nm'; all or none."""
    found, units = [], []
    for tag, image, text in zip(tags, imagery, descriptions, strict=True):
        lower = {k.lower(): v for k, v in tag.items()}
        named = re.search(r"(\d+(?:\.\d+)?)\s*(nm|nanometers|nanometres|um|µm|micrometers|microns)\b", text, re.I)
        if "wavelength" in lower:
            value, unit = lower["wavelength"], lower.get("wavelength_units") or lower.get("wavelength_unit", "")
        elif "CENTRAL_WAVELENGTH_UM" in image:
            value, unit = image["CENTRAL_WAVELENGTH_UM"], "um"
        elif named:
            value, unit = named.groups()
        else:
            return None
        try:
            found.append(float(value))
        except ValueError:
            return None
        units.append(unit.lower())
    return nanometres(found, units[0]) if len(set(units)) == 1 else None


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rasters without georeference and headers with capitals are both usual
        yield


_READERS: dict[str, Callable[[Path, str | None], Stored]] = {
    "mat5": _read_mat5, "mat7.3": _read_hdf5, "hdf5": _read_hdf5, "npy": _read_npy, "npz": _read_npz,
    "envi": _read_envi, "raster": _read_raster}


# ------------------------------------------------------------------------------------------------------------ writing

class CubeWriter:
    """A (B, H, W) cube being written: ``writer[b0:b1, r0:r1, c0:c1] = block``, with slices of step 1."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype,
                 write: Callable[[slice, slice, slice, np.ndarray], None], slowest: int = 0, grain: int = 1) -> None:
        self.shape, self.dtype, self.slowest, self.grain = tuple(map(int, shape)), native(dtype), slowest, grain
        self._path, self._write = path, write

    def __setitem__(self, index: Any, block: Any) -> None:
        index = index if isinstance(index, tuple) else (index,)
        index = (*index, *[slice(None)] * (3 - len(index)))
        ranges = [slice(*item.indices(n)[:2]) for item, n in zip(index, self.shape, strict=True)]
        block = np.asarray(block)
        expected = tuple(r.stop - r.start for r in ranges)
        if block.shape != expected:
            raise ValueError(f"a block of shape {block.shape} was written where {expected} was expected")
        if not np.can_cast(block.dtype, self.dtype, "same_kind"):
            raise TypeError(f"a block of {block.dtype} was written to a cube of {self.dtype}; convert it first")
        with _writing(self._path):
            self._write(*ranges, block)

    def blocks(self) -> Iterator[tuple[slice, slice, slice]]:
        """Indices that cover the cube in the order in which it will lie on disk."""
        return blocks(self, self.slowest)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what a library raises when a write fails into one sentence."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except (OSError, RuntimeError, rasterio.errors.RasterioError, scipy.io.matlab.MatWriteError, SystemError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200] or type(error).__name__
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in reason
        what = "the disk is full" if full else reason
        advice = "choose a writable place" if isinstance(error, PermissionError) else "free some space or choose another place"
        raise UserError(f"Writing {path} failed ({what}), and nothing was left there; {advice}, and run again.") from error


@contextmanager
def create(path: Path, like: Scene, shape: Shape, dtype: np.dtype, overwrite: bool) -> Iterator[CubeWriter]:
    """The writer for the container that the suffix of `path` names; see `utility.scenes.create_scene`."""
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path} does not say by its suffix how to write the scene; use one of {', '.join(SUFFIXES)}.")
    if kind == "mat":
        kind = "mat7.3" if like.format == "mat7.3" or math.prod(shape) * dtype.itemsize > MAT5_LIMIT else "mat5"
    holds = {"mat5": "iu1248 f48", "mat7.3": "iu1248 f48", "envi": "i248 u1248 f48", "raster": "iu1248 f48"}.get(kind)
    if holds and f"{dtype.itemsize}" not in "".join(part for part in holds.split() if dtype.kind in part):
        raise UserError(f"{path} cannot hold values of type {dtype}; write float32, or choose .npy or .h5.")
    with _WRITERS[kind](path, like, shape, dtype, overwrite) as writer:
        yield writer


def _stored_layout(like: Scene, kind: str) -> str:
    """The layout for a container: the source's own, seen through MATLAB's reversal of axes in v7.3 on either side."""
    layout = like.layout
    if like.format in ("envi", "raster"):
        layout = "HWB" if kind.startswith("mat") else "BHW"  # what readers of MATLAB files and of arrays expect
    if (like.format == "mat7.3") != (kind == "mat7.3"):
        layout = {"pixels": "pixels.T", "pixels.T": "pixels"}.get(layout, layout[::-1])
    return layout


def _stored_shape(layout: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    b, h, w = shape
    if layout.startswith("pixels"):
        return (b, h * w) if layout == "pixels" else (h * w, b)
    return tuple({"B": b, "H": h, "W": w}[a] for a in layout)


def _as_cube(array: np.ndarray, layout: str, shape: tuple[int, ...]) -> np.ndarray:
    """A writable (B, H, W) view of an array in its stored layout."""
    b, h, w = shape
    if layout == "pixels":
        return array.reshape(b, w, h).transpose(0, 2, 1)
    if layout == "pixels.T":
        return array.reshape(w, h, b).transpose(2, 1, 0)
    return array.transpose([layout.index(a) for a in "BHW"])


def _view_writer(path: Path, view: np.ndarray) -> CubeWriter:
    def write(b: slice, r: slice, c: slice, block: np.ndarray) -> None:
        view[b, r, c] = block

    return CubeWriter(path, view.shape, view.dtype, write, int(np.argmax(np.abs(view.strides))))


def _reserve(path: Path, size: int | None = None) -> None:
    """Claim the disk blocks of a file (of its holes): a full disk is an error now, not a crash in a library later."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b" if path.exists() else "w+b") as file:
            os.posix_fallocate(file.fileno(), 0, size or os.fstat(file.fileno()).st_size)


def _key(like: Scene) -> str:
    """A MATLAB variable name from the scene's key."""
    key = (like.key or "").rpartition("/")[2]
    return key if re.fullmatch(r"[A-Za-z]\w{0,62}", key) else "cube"


def _companions(like: Scene, layout: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """The small variables that stand beside a cube in a .mat, .npz or .h5."""
    beside: dict[str, Any] = {}
    if layout.startswith("pixels"):
        beside.update(nRow=float(shape[1]), nCol=float(shape[2]))
    if like.wavelengths is not None:
        beside["wavelengths"] = np.asarray(like.wavelengths, np.float64)
    if like.nodata is not None:
        beside["nodata"] = float(like.nodata)
    return beside


@contextmanager
def _create_mat5(path: Path, like: Scene, shape: Shape, dtype: np.dtype, overwrite: bool) -> Iterator[CubeWriter]:
    with replacing(path, overwrite) as temporary:
        layout = _stored_layout(like, "mat5")
        array = np.zeros(_stored_shape(layout, shape), dtype, order="F")  # as MATLAB lays it
        # a reshaped F-ordered array would be a copy, so pixels are addressed through the transpose
        view = _as_cube(array, layout, shape) if not layout.startswith("pixels") else \
            _as_cube(array.T, "pixels" if layout == "pixels.T" else "pixels.T", shape)
        yield _view_writer(path, view)
        with _writing(path):
            scipy.io.savemat(temporary, {_key(like): array, "layout": layout, **_companions(like, layout, shape)},
                             appendmat=False)


@contextmanager
def _create_npz(path: Path, like: Scene, shape: Shape, dtype: np.dtype, overwrite: bool) -> Iterator[CubeWriter]:
    with replacing(path, overwrite) as temporary:
        layout = _stored_layout(like, "npz")
        array = np.zeros(_stored_shape(layout, shape), dtype)
        yield _view_writer(path, _as_cube(array, layout, shape))
        with _writing(path):
            np.savez(temporary, **{_key(like): array, "layout": np.array(layout)}, **_companions(like, layout, shape))


@contextmanager
def _create_npy(path: Path, like: Scene, shape: Shape, dtype: np.dtype, overwrite: bool) -> Iterator[CubeWriter]:
    with replacing(path, overwrite) as temporary:
        layout = _stored_layout(like, "npy")
        with _writing(path):
            array = np.lib.format.open_memmap(temporary, "w+", dtype, _stored_shape(layout, shape))
            _reserve(temporary)
        yield _view_writer(path, _as_cube(array, layout, shape))
        with _writing(path):
            array.flush()
        del array


@contextmanager
def _create_hdf5(path: Path, like: Scene, shape: Shape, dtype: np.dtype, overwrite: bool) -> Iterator[CubeWriter]:
    matlab = path.suffix.lower() == ".mat"
    layout = _stored_layout(like, "mat7.3" if matlab else "hdf5")
    stored = _stored_shape(layout, shape)
    key = _key(like) if matlab else like.key or "cube"
    with replacing(path, overwrite) as temporary:
        with _writing(path):
            # HDF5 may crash the process when its own writes fail: nothing is left for it to allocate
            _reserve(temporary, math.prod(stored) * dtype.itemsize + (1 << 20))
            _prepare_hdf5(temporary, key, stored, dtype, layout, like, _companions(like, layout, shape), matlab)
            _reserve(temporary)
            file = h5py.File(temporary, "r+")
        array = file[key]

        def write(b: slice, r: slice, c: slice, block: np.ndarray) -> None:
            if not layout.startswith("pixels"):
                index = {"B": b, "H": r, "W": c}
                array[tuple(index[a] for a in layout)] = block.transpose(["BHW".index(a) for a in layout])
                return
            rows = shape[1]
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

        try:
            slowest = {"pixels": 0, "pixels.T": 2}.get(layout, "BHW".find(layout[0]))
            yield CubeWriter(path, shape, dtype, write, slowest)
        finally:
            with _writing(path):
                file.close()


def _prepare_hdf5(path: Path, key: str, shape: tuple[int, ...], dtype: np.dtype, layout: str, like: Scene,
                  beside: dict[str, Any], matlab: bool) -> None:
    """An HDF5 file that is whole but for the values of its cube; for MATLAB, with its header in a user block."""
    with h5py.File(path, "w", userblock_size=512 if matlab else 0) as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        folder = file.require_group(key.rpartition("/")[0] or "/")
        h5py.h5d.create(folder.id, key.rpartition("/")[2].encode(), h5py.h5t.py_create(dtype, logical=True),
                        h5py.h5s.create_simple(shape), plan)
        file[key].attrs["layout"] = layout
        if like.nodata is not None:
            file[key].attrs["nodata"] = float(like.nodata)
        for name, value in beside.items():
            if name != "nodata" and name not in file:
                file[name] = np.reshape(value, (1, -1))  # a column to MATLAB
        if matlab:
            for item in file.values():
                item.attrs["MATLAB_class"] = np.bytes_(
                    {"f4": "single", "f8": "double"}.get(item.dtype.str[1:], item.dtype.name))
    if matlab:
        text = f"MATLAB 7.3 MAT-file, Platform: {sys.platform}, Created on: {time.ctime()} HDF5 schema 1.00 ."
        with open(path, "r+b") as raw:
            raw.write(text[:116].ljust(116).encode() + b"\0" * 8 + b"\x00\x02IM")


@contextmanager
def _create_envi(path: Path, like: Scene, shape: Shape, dtype: np.dtype, overwrite: bool) -> Iterator[CubeWriter]:
    suffix = path.suffix.lower()
    header_path, data_path = _envi_pair(path)
    interleave = suffix[1:] if suffix[1:] in INTERLEAVES else str(like.metadata.get("interleave", "bsq"))
    order = int(like.metadata.get("byte order", sys.byteorder == "big"))
    fields = _envi_header(like, shape, path)
    fields |= {"samples": shape[2], "lines": shape[1], "bands": shape[0], "header offset": 0, "interleave": interleave,
               "file type": "ENVI Standard", "data type": envi.dtype_to_envi[dtype.char], "byte order": order}
    placed = False
    try:
        with replacing(header_path, overwrite) as header:
            with replacing(data_path, overwrite) as data:
                layout = INTERLEAVES[interleave]
                with _writing(path):
                    array = np.memmap(data, dtype.newbyteorder("<>"[order]), "w+", shape=_stored_shape(layout, shape))
                    _reserve(data)
                yield _view_writer(path, _as_cube(array, layout, shape))
                with _writing(path):
                    array.flush()
                    envi.write_envi_header(str(header), fields)
                del array
            placed = True
    except BaseException:
        if placed:  # data without its header would be half a scene
            data_path.unlink(missing_ok=True)
            header_path.unlink(missing_ok=True)
        raise


def _envi_header(like: Scene, shape: tuple[int, ...], path: Path) -> dict[str, Any]:
    """The descriptive fields: those the source's header had, completed from what the scene knows."""
    fields: dict[str, Any] = {}
    for name, value in like.metadata.get("header", {}).items():
        # spectral would put a space around, and a dash for, the commas of WKT
        wkt = name == "coordinate system string" and isinstance(value, list)
        fields[name] = f"{{{','.join(value)}}}" if wkt else value
    if like.wavelengths is not None:
        unit = unit_in_nm(fields.get("wavelength units"))
        if "wavelength" in like.metadata:
            fields["wavelength"] = [repr(float(v)) for v in like.metadata["wavelength"]]
        else:
            fields["wavelength"] = [repr(float(v) / (unit or 1.0)) for v in like.wavelengths]
            fields.setdefault("wavelength units", "Nanometers")
    if like.band_names:
        fields["band names"] = list(like.band_names)
    if like.nodata is not None:
        fields["data ignore value"] = int(like.nodata) if float(like.nodata).is_integer() else float(like.nodata)
    if "map info" not in fields and like.transform is not None:
        a, b, c, d, e, f = like.transform
        if b or d or a <= 0 or e >= 0:
            raise UserError(f"{path} would be an ENVI file, whose map info cannot hold a rotated or flipped grid like "
                            f"that of {like.name}; write a GeoTIFF (.tif).")
        name, more = _envi_projection(like.crs)
        fields["map info"] = [name, "1", "1", *(repr(float(v)) for v in (c, f, a, -e)), *more]
    if like.crs and "coordinate system string" not in fields:
        fields["coordinate system string"] = f"{{{rasterio.crs.CRS.from_wkt(like.crs).to_wkt(version='WKT1_ESRI')}}}"
    return fields


def _envi_projection(crs: str | None) -> tuple[str, list[str]]:
    """The projection's name and what follows the pixel size in map info; other CRSs stand in their own WKT field."""
    found = rasterio.crs.CRS.from_wkt(crs) if crs else None
    code = found.to_epsg() if found else None
    if code and code // 100 in (326, 327):
        return "UTM", [str(code % 100), "North" if code // 100 == 326 else "South", "WGS-84", "units=Meters"]
    if code == 4326:
        return "Geographic Lat/Lon", ["WGS-84", "units=Degrees"]
    return "Arbitrary", []


@contextmanager
def _create_raster(path: Path, like: Scene, shape: Shape, dtype: np.dtype, overwrite: bool) -> Iterator[CubeWriter]:
    profile: dict[str, Any] = {
        "driver": "GTiff", "count": shape[0], "height": shape[1], "width": shape[2], "dtype": dtype.name,
        "nodata": like.nodata, "interleave": "band", "BIGTIFF": "IF_SAFER"}
    if min(shape[1:]) >= 256:
        profile.update(tiled=True, blockxsize=256, blockysize=256)
    if like.transform is not None:
        profile["transform"] = rasterio.Affine(*like.transform)
    if like.crs:
        profile["crs"] = rasterio.crs.CRS.from_wkt(like.crs)
    tile = 256 if "tiled" in profile else 1
    whole = shape[0] * math.prod(math.ceil(n / tile) * tile for n in shape[1:]) * dtype.itemsize
    with replacing(path, overwrite) as temporary:
        with _writing(path), _quiet():
            _reserve(temporary, whole)  # GDAL reports a full disk late or never, so it is tried first
            temporary.unlink()
            target = rasterio.open(temporary, "w", **profile)
        try:
            with _writing(path):
                _describe_raster(target, like)

            def write(b: slice, r: slice, c: slice, block: np.ndarray) -> None:
                target.write(block.astype(dtype, copy=False), indexes=range(b.start + 1, b.stop + 1),
                             window=Window(c.start, r.start, c.stop - c.start, r.stop - r.start))

            yield CubeWriter(path, shape, dtype, write)
            with _writing(path):
                target.close()
                if temporary.stat().st_size < whole:
                    raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            if not target.closed:
                with suppress(OSError, rasterio.errors.RasterioError):  # the failure that led here is the one to report
                    target.close()


def _describe_raster(target: Any, like: Scene) -> None:
    count, metadata = target.count, like.metadata if like.format == "raster" else {}
    target.update_tags(**metadata.get("tags", {}))
    tags = metadata.get("band_tags") or [{} for _ in range(count)]
    imagery = metadata.get("imagery") or [{} for _ in range(count)]
    fwhm = like.metadata.get("header", {}).get("fwhm")
    unit = like.metadata.get("header", {}).get("wavelength units", "Nanometers")
    for band in range(count):
        own = {k: v for k, v in tags[band].items() if not k.startswith("STATISTICS_")}
        if like.wavelengths is not None and not any(k.lower() == "wavelength" for k in own):
            own |= {"wavelength": repr(float(like.wavelengths[band])), "wavelength_units": "Nanometers"}
        if isinstance(fwhm, list) and len(fwhm) == count:
            own |= {"fwhm": fwhm[band], "fwhm_units": unit}
        target.update_tags(band + 1, **own)
        if imagery[band]:
            target.update_tags(band + 1, ns="IMAGERY", **imagery[band])
        if like.band_names:
            target.set_band_description(band + 1, like.band_names[band])
    for name in ("scales", "offsets"):
        values = metadata.get(name)
        if values and set(values) != ({1.0} if name == "scales" else {0.0}):
            setattr(target, name, values)


_WRITERS: dict[str, Callable[..., Any]] = {
    "mat5": _create_mat5, "mat7.3": _create_hdf5, "hdf5": _create_hdf5, "npy": _create_npy, "npz": _create_npz,
    "envi": _create_envi, "raster": _create_raster}
