"""The table of containers, from which sniffing, reading, writing, suffixes and messages follow.

A new container is one file with a reader and a writer, and one row here; or one call of `register`
from anywhere.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from utility.cubes.axes import reversed_layout
from utility.cubes.cube import CubeWriter, Scene, Shape, Stored, Target, read_from
from utility.cubes.formats import envi, hdf5, header, matlab, netcdf, numpy_files, rasters
from utility.cubes.products import belongs, product_of
from utility.system.errors import UserError
from utility.system.files import require_file

PICTURES = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP"}
"""First bytes of files whose three colours are no spectrum."""

OTHERS = {b"CDF\x01": "a netCDF-3 file (nccopy -k nc4 makes it netCDF-4)",
          b"CDF\x02": "a netCDF-3 file (nccopy -k nc4 makes it netCDF-4)",
          b"\x0e\x03\x13\x01": "an HDF4 file (h4toh5 makes it HDF5)"}
"""First bytes of files of data that are not read, and what makes them readable."""

NUMBERS = frozenset({"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
                     "float32", "float64"})


CAMERA = ("ground control points", "RPCs")
FACTS: dict[str, Callable[[Scene], Any]] = {"wavelengths": lambda like: like.wavelengths,
                                            "band names": lambda like: like.band_names,
                                            "the no-data value": lambda like: like.nodata,
                                            "CRS and transform": lambda like: like.transform,
                                            "gain and offset": lambda like: like.gain,
                                            "longitudes and latitudes": lambda like: like.lonlat,
                                            CAMERA[0]: lambda like: like.metadata.get("gcps"),
                                            CAMERA[1]: lambda like: like.metadata.get("rpcs")}
"""What a scene knows beside its values, in words."""


@dataclass(frozen=True)
class Container:
    """One kind of file that holds a cube, with its reader and its writer."""
    name: str                                                          # the `format` of its scenes
    title: str                                                         # for messages
    suffixes: tuple[str, ...]  # of files written, the usual one first
    sniff: Callable[[Path, bytes], bool]  # path and first 512 bytes -> is a file one?
    open: Callable[[Path, str | None], Stored]  # path and key -> what the file holds
    # the file takes its name when the context ends
    create: Callable[[Target], AbstractContextManager[CubeWriter]]
    types: frozenset[str] | None = None  # names of data types that it can hold; None: any
    fixed_axes: bool = False  # the container says which axis is which
    mirrored: bool = False  # Python shows the axes in reverse order
    usual_layout: str = "BHW"  # for scenes from a container of fixed axes
    # scene and bytes -> may be written?
    suits: Callable[[Scene, int], bool] = lambda like, size: True
    # is a file in a folder a scene of its own?
    is_scene: Callable[[Path], bool] = lambda path: True
    # other files that reading or writing may involve
    files: Callable[[Path], Iterable[Path]] = lambda path: ()
    lacks: tuple[str, ...] = CAMERA  # of FACTS: what its files have no room for


TABLE = [Container("mat5", "MATLAB v5", (".mat",),
                   lambda path, head: head.startswith(b"MATLAB 5.0"), matlab.open_mat5,
                   matlab.create_mat5, NUMBERS, usual_layout="HWB",
                   suits=lambda like, size: like.format != "mat7.3" and size <= matlab.LIMIT,
                   is_scene=matlab.holds_cube),
         Container("mat7.3", "MATLAB v7.3", (".mat",),
                   lambda path, head: head.startswith(b"MATLAB 7.3"), hdf5.open_hdf5,
                   hdf5.create_hdf5, NUMBERS, mirrored=True, usual_layout="HWB"),
         Container("netcdf", "netCDF", (".nc",), hdf5.is_netcdf_file, hdf5.open_hdf5,
                   netcdf.create_netcdf, NUMBERS),
         Container("hdf5", "HDF5", (".h5", ".hdf5"), lambda path, head: h5py.is_hdf5(path),
                   hdf5.open_hdf5, hdf5.create_hdf5),
         Container("npy", ".npy", (".npy",), lambda path, head: head.startswith(b"\x93NUMPY"),
                   numpy_files.open_npy, numpy_files.create_npy,
                   is_scene=numpy_files.npy_holds_cube, lacks=tuple(FACTS)),
         Container("npz", ".npz", (".npz",),
                   lambda path, head: head.startswith(b"PK\x03\x04") and numpy_files.is_npz(path),
                   numpy_files.open_npz, numpy_files.create_npz),
         Container("envi", "ENVI", (".hdr", ".img", ".dat", ".bsq", ".bil", ".bip"),
                   lambda path, head: header.is_header(path)
                   or (not rasters.driver_of(head) and bool(header.header_of(path))),
                   envi.open_envi, envi.create_envi, NUMBERS - {"int8"}, fixed_axes=True,
                   is_scene=envi.is_scene, files=envi.files_of),
         Container("raster", "GeoTIFF or JPEG 2000", (".tif", ".tiff"),
                   lambda path, head: rasters.driver_of(head) is not None, rasters.open_raster,
                   rasters.create_raster, NUMBERS, fixed_axes=True, is_scene=rasters.is_scene,
                   lacks=())]


def register(container: Container) -> None:
    """Add a container; its `sniff` is asked before those of the others."""
    TABLE.insert(0, container)


def known() -> str:
    """The containers in words, for messages."""
    return ", ".join(container.title for container in TABLE)


def named(name: str) -> Container | None:
    """The container of a scene's `format`; None for a scene that was never in a file."""
    return next((container for container in TABLE if container.name == name), None)


def suffix_of(format: str) -> str:
    """The suffix for writing what was read from a container."""
    return named(format).suffixes[0]


def sniff(path: Path) -> Container | None:
    """The container of a file, by its content and never by its name; None for anything else."""
    with open(path, "rb") as file:
        head = file.read(512)
    return next((container for container in TABLE if container.sniff(path, head)), None)


def is_scene(path: Path) -> bool:
    """Whether a file in a folder is a scene; pictures, one-band rasters and ENVI data are not.

    A file that is named like a scene and cannot be read is one, unless it belongs to another:
    nothing is left out silently.
    """
    if belongs(path):
        return False
    container = _readable(path)
    if container:
        found = product_of(path) if container.fixed_axes else None
        return bool(found and found[1] == path) or container.is_scene(path)
    return (path.suffix.lower() in {".jp2", *suffixes()}
            and not any(
                other.stem == path.stem and _readable(other) for other in path.parent.iterdir()))


def without_cube(path: Path) -> bool:
    """Whether a file in a folder holds data, but no cube: a mask, classes, a spectral library."""
    container = _readable(path)
    if (container is None or belongs(path)
            or (container.name == "envi" and not envi.stands_alone(path))):
        return False
    return not container.is_scene(path)


def _readable(path: Path) -> Container | None:
    """`sniff`; None also for what is no file or cannot be opened."""
    with suppress(OSError):
        return sniff(path)
    return None


def result_suffix(path: Path) -> str:
    """The suffix of a result in the container of the scene in `path`; the suffix of `path` if the
    scene cannot be read, or is an HDF5 file that is named as netCDF."""
    found = product_of(path)
    if found and found[0].suffix:
        return found[0].suffix
    container = _readable(path)
    if container is named("hdf5") and path.suffix.lower() in named("netcdf").suffixes:
        return path.suffix
    return container.suffixes[0] if container else path.suffix


def open_stored(path: Path, key: str | None = None) -> tuple[Stored, Container]:
    """Open a file by the reader of its container: the stored array with its facts; the container.
    Raises UserError: the file is missing, a folder of no product, empty, of no known container or
    damaged, or the key is unknown or ambiguous."""
    if not path.exists():
        raise UserError(f"{path} does not exist; give the path of a scene ({known()}).")
    if found := product_of(path):
        product, scene = found
        with read_from(scene):
            stored = product.open(scene, key)
        stored.product = product.title
        return stored, named(stored.format)
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, where the file of a scene was expected; name one file in it.")
    require_file(path)
    if path.stat().st_size == 0:
        raise UserError(
            f"{path} is empty (0 bytes), where a scene was expected; copy or download it again.")
    with read_from(path):
        if (container := sniff(path)) is None:
            raise _unknown(path)
        return container.open(path, key), container


def _unknown(path: Path) -> UserError:
    """The refusal of a file of no known container."""
    lone = (", and there is no header beside it"
            if path.suffix.lower() in named("envi").suffixes else "")
    with open(path, "rb") as file:
        head = file.read(8)
    if picture := next((name for start, name in PICTURES.items() if head.startswith(start)), ""):
        return UserError(f"{path} is a {picture} picture, whose colours are no spectrum; give a "
                         f"cube ({known()}), or a folder of PNG pictures that are its bands, "
                         "numbered without a gap as NAME_01.png.")
    other = next((f"{name}, and " for start, name in OTHERS.items() if head.startswith(start)), "")
    return UserError(f"{path} is {other}not a scene that can be read: its content is not "
                     f"{known()}{lone}.")


def suffixes() -> list[str]:
    """The suffixes of all containers that can be written."""
    return list(dict.fromkeys(suffix for container in TABLE for suffix in container.suffixes))


def writers_of(path: Path) -> list[Container]:
    """The containers that the suffix of `path` names. Raises UserError: there is none."""
    fitting = [container for container in TABLE if path.suffix.lower() in container.suffixes]
    if not fitting:
        raise UserError(f"{path} does not say by its suffix how to write the scene; use one of "
                        f"{', '.join(suffixes())}.")
    return fitting


def create(path: Path, like: Scene, shape: Shape, dtype: np.dtype, *,
           overwrite: bool) -> AbstractContextManager[CubeWriter]:
    """The writer of the container that the suffix of `path` names; see `scenes.create_scene`."""
    container = next(c
                     for c in writers_of(path) if c.suits(like, math.prod(shape) * dtype.itemsize))
    if container.types is not None and dtype.name not in container.types:
        raise UserError(
            f"{path} cannot hold values of type {dtype}; write float32, or choose .npy or .h5.")
    source, layout = named(like.format), like.layout
    if source and source.fixed_axes:
        layout = (container.usual_layout if not container.mirrored
                  else reversed_layout(container.usual_layout))
    elif bool(source and source.mirrored) != container.mirrored:
        layout = reversed_layout(layout)
    return container.create(Target(path, like, shape, dtype, layout, overwrite))


def left_out(path: Path, like: Scene) -> str | None:
    """What the file `path` will not hold of a scene, and which suffix does; None: it holds all."""
    container = writers_of(path)[0]
    lost = [name for name in container.lacks if FACTS[name](like) is not None]
    if not lost:
        return None
    camera = bool({*CAMERA} & {*lost})
    other = named("raster" if camera else "npz").suffixes[0]
    gone = "they are gone from the result" + ", and its georeference with them" * camera
    return f"{path} cannot hold {', '.join(lost)}: {gone}; {other} keeps them"


def files_of(path: Path) -> list[Path]:
    """The existing files that a read or a write of the scene `path` involves."""
    found = {path}
    if product := product_of(path):
        found |= set(product[0].files(product[1]))
    with suppress(OSError, ValueError):  # the reader refuses what cannot be read
        by_content = sniff(path) if path.is_file() else None
        for container in TABLE:
            if container is by_content or path.suffix.lower() in container.suffixes:
                found |= set(container.files(path))
    return sorted(p for p in found if p.exists())


def shared_file(first: Path, second: Path) -> Path | None:
    """A file that belongs to both scenes, by its name in `first`; follows links."""
    others = files_of(second)
    return next((file for file in files_of(first) if any(file.samefile(other) for other in others)),
                None)
