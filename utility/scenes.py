"""Scenes in files: a hyperspectral cube (bands, rows, columns) and what its file says.

    scene = read_scene("paviaU.mat")                # finds the key and the layout, or asks for them
    print(describe(scene))
    cube, low, high = unit_range(clean(scene, drop_bad_bands=True).cube)

`read_scene` loads the cube; `open_scene` leaves the cube on disk and reads the blocks that are
sliced. `write_scene` and `create_scene` are their opposites. Values are as stored;
`utility.cubes.values` scales them.
"""
from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from utility.cubes import containers
from utility.cubes.axes import readable, resolve, spelled, squeezed
from utility.cubes.bands import clean
from utility.cubes.companions import times
from utility.cubes.cube import (
    BY_PRODUCT,
    PER_BAND,
    CubeWriter,
    Facts,
    Scene,
    Stored,
    at_hand,
    load,
    native,
    read_from,
)
from utility.cubes.formats import rasters
from utility.cubes.products import product_of
from utility.cubes.values import marker_of
from utility.system.errors import UserError
from utility.system.memory import require_memory
from utility.system.progress import note, warn


def open_scene(path: str | os.PathLike[str], key: str | None = None, layout: str | None = None,
               bands: int | None = None, size: tuple[int, int] | None = None) -> Scene:
    """Open a scene, its cube on disk: ``scene.cube[b0:b1, r0:r1, c0:c1]`` reads that block.

    The cube is a memory map (ENVI, .npy, HDF5 and v7.3 without chunks) or a LazyCube
    (with chunks, rasters); MATLAB v5 and .npz are loaded. Arguments and errors are those of
    `read_scene`.
    """
    path = _one_scene(Path(path))
    layout = None if layout is None else spelled(layout)
    stored, container = containers.open_stored(path, key)
    array = stored.array = squeezed(stored.array)
    where = f"{path}, key '{stored.key}'," if stored.key else f"{path}"
    kind = np.dtype(array.dtype)
    if kind.kind not in "iuf":
        is_complex = kind.kind == "c" or set(kind.names or ()) in ({"real", "imag"}, {"r", "i"})
        found = "complex numbers" if is_complex else f"values of type {kind}"
        raise UserError(f"{where} holds {found}, where integers or real numbers were expected; "
                        "store their magnitude.")
    if len(array.shape) not in (2, 3) or 0 in array.shape:
        raise UserError(f"{where} holds an array of shape {times(array.shape)}, where a cube of 3 "
                        "dimensions or bands x pixels was expected.")
    if container.fixed_axes or stored.layout_by == BY_PRODUCT:
        layout, reason = stored.layout, "the format"
    else:
        size = size or stored.size
        layout, reason = resolve(stored, layout or stored.layout, bands=bands, size=size,
                                 where=where)
    cube = readable(array, layout, size)
    if bands is not None and cube.shape[0] != bands:
        raise UserError(f"{where} has {cube.shape[0]} bands, where {bands} were expected.")
    if cube.shape[0] < 2:
        raise UserError(
            f"{where} has {cube.shape[0]} band, and a hyperspectral cube needs at least 2 bands.")
    if layout == stored.layout and stored.layout_by:
        reason = stored.layout_by
    return Scene(cube, path.stem, path,
                 **_facts(stored, cube.shape) | {"layout": layout, "layout_by": reason})


def _facts(stored: Stored, shape: tuple[int, int, int]) -> dict[str, Any]:
    """The facts beside a cube of `shape` (B, H, W); what is there for another number of bands or
    pixels is left out."""
    facts = {fact.name: getattr(stored, fact.name) for fact in dataclasses.fields(Facts)}
    for name in PER_BAND:
        if facts[name] is not None and len(facts[name]) != shape[0]:
            facts[name] = None
    if facts["wavelengths"] is None:
        facts["wavelengths_by"], facts["wavelengths"] = next(
            (item for item in stored.vectors.items() if len(item[1]) == shape[0]), ("", None))
    for name, nm in stored.likely.items() if facts["wavelengths"] is None else ():
        if len(nm) == shape[0]:
            facts["notes"].append(f"'{name}' looks like wavelengths ({nm.min():g} .. {nm.max():g} "
                                  "nm), and its name does not say so; call it wavelengths to have "
                                  "it taken")
    if facts["lonlat"] is not None and facts["lonlat"][0].shape != shape[1:]:
        facts["lonlat"] = None
    return facts


def read_scene(path: str | os.PathLike[str], key: str | None = None, layout: str | None = None,
               bands: int | None = None, size: tuple[int, int] | None = None) -> Scene:
    """Read a scene into memory as it is stored: the file's type and values, in native byte order.

    Args:
        path: MATLAB v5 or v7.3, HDF5, netCDF-4, .npy, .npz, ENVI (header or data file), GeoTIFF or
            JPEG 2000; or the folder of a product.
        key: the array's name; needed where the file holds several arrays that may be the cube.
        layout: one of `layouts.LAYOUTS`; by default found from the array's shape.
        bands: the number of bands expected. It settles the layout; another number is refused.
        size: (rows, columns) of a 2-D bands x pixels array whose file has no nRow and nCol.

    Returns: A Scene whose cube is a C-contiguous (B, H, W) array; its `layout` is the one that was
    taken.

    Raises UserError: the file cannot be read, its key or layout is not clear, or it holds no
    real-valued cube.
    """
    scene = open_scene(path, key, layout, bands, size)
    require_memory(math.prod(scene.cube.shape) * scene.cube.dtype.itemsize, path)
    with read_from(path):  # damage may lie in the data, behind a sound header
        scene.cube = load(scene.cube)
    return scene


def first_line(scene: Any) -> str:
    """Bands and size of a scene's cube, in the fewest words."""
    return "read as: {} bands, {} x {}".format(*scene.cube.shape)


def stored_as(scene: Scene) -> str:
    """The key and the axes of a scene's array, in words."""
    stored = " x ".join(scene.layout)
    if scene.layout.startswith("pixels"):
        stored = "pixels x bands" if scene.layout.endswith(".T") else "bands x pixels"
        stored += ", along rows" if "-rows" in scene.layout else ", down columns"
    return f"key '{scene.key}', " * bool(scene.key) + f"stored {stored}"


def describe(scene: Scene, bad: int = 0) -> str:
    """One line about a scene; the range of a cube on disk would need a whole read. `bad` counts the
    bands that its file has beside those of the scene."""
    b, h, w = scene.cube.shape
    count = f"{b + bad} bands" + f", {bad} of them bad" * bool(bad)
    parts = [stored_as(scene), count, f"{h} x {w}", str(scene.cube.dtype)]
    if type(scene.cube) is np.ndarray:
        low, high = scene.cube.min(), scene.cube.max()
        parts.append(f"{low:g} .. {high:g}" if scene.cube.dtype.kind == "f" else f"{low} .. {high}")
    if scene.wavelengths is not None:
        parts.append(f"{min(scene.wavelengths):g} .. {max(scene.wavelengths):g} nm")
    return f"{scene}: {', '.join(parts)}"


@contextmanager
def create_scene(path: str | os.PathLike[str], like: Scene,
                 shape: tuple[int, int, int] | None = None, dtype: Any = None,
                 overwrite: bool = False) -> Iterator[CubeWriter]:
    """A writer for a cube of `shape` (B, H, W): ``writer[:, r0:r1, c0:c1] = block``; the file
    appears when the context ends.

    The suffix chooses the container: .mat (v7.3 when `like` is, or above 2 GB; else v5), .nc,
    .h5/.hdf5, .npy, .npz, .hdr or the name of an ENVI data file, .tif. Key, layout, interleave,
    byte order and all metadata are those of `like`. Blocks go to disk as they come; for v5 .mat and
    .npz they are collected in memory.

    Raises UserError: the suffix is unknown, the file exists and `overwrite` is False, the container
    cannot hold `dtype`, or the disk is full or not writable. Nothing is left under the final name
    then.
    """
    shape = tuple(like.cube.shape if shape is None else shape)
    dtype = native(like.cube.dtype if dtype is None else dtype)
    with containers.create(Path(path), like, shape, dtype, overwrite=overwrite) as writer:
        yield writer


def write_scene(path: str | os.PathLike[str], scene: Scene, overwrite: bool = False) -> None:
    """Write a scene as `create_scene` says; reading it gives the same cube, key, layout, facts."""
    with create_scene(path, scene, overwrite=overwrite) as writer:
        for index in writer.blocks():
            writer[index] = scene.cube[index]


def list_scenes(paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> list[Path]:
    """List scenes: each file as given; of a folder the scene that it is, else those in it, by name.

    A scene in a folder is a file, or a folder of its own as some products are delivered. Where a
    folder has neither, the scenes of the folders in it count.

    Raises UserError: a path does not exist, or a folder has no scene in it.
    """
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | os.PathLike) else paths):
        if path.is_dir():
            scenes = _scenes_in(path)
            if not scenes:
                folders = [inside.name for inside in sorted(path.iterdir()) if inside.is_dir()][:8]
                also = f", nor have its folders ({', '.join(folders)})" if folders else ""
                raise UserError(
                    f"{path} has no scene in it ({containers.known()}){also}; name another folder.")
            found += scenes
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path} does not exist; give a scene or a folder of scenes.")
    return list(dict.fromkeys(found))


def _is_product(folder: Path) -> bool:
    """Whether the files of a folder are one scene together."""
    found = product_of(folder)
    return found is not None and found[1] == folder


def _one_scene(path: Path) -> Path:
    """The scene that a path names: a folder that is none names the only one in it. Raises
    UserError: it has several."""
    if not path.is_dir() or _is_product(path):
        return path
    scenes = _scenes_in(path)
    if len(scenes) > 1:
        names = ", ".join(str(scene.relative_to(path)) for scene in scenes[:8])
        raise UserError(f"{path} is a folder of {len(scenes)} scenes, where one was expected; name "
                        f"one of them: {names}{' and more' * (len(scenes) > 8)}.")
    return scenes[0] if scenes else path


def _scenes_in(folder: Path, depth: int = 3) -> list[Path]:
    """The scenes of a folder, as `list_scenes` finds them, `depth` folders down at most."""
    if _is_product(folder):
        return [folder]
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [path for path in inside if path.is_dir()]
    scenes = [path for path in inside if path.is_file() and containers.is_scene(path)]
    scenes += [found[1] for path in folders if (found := product_of(path))]
    others = [path for path in inside if path.is_file() and path not in scenes
              and containers.without_cube(path)]
    if others and scenes:
        note(f"{folder}: left out, for they hold no cube: "
             f"{', '.join(path.name for path in others[:8])}" + " and more" * (len(others) > 8))
    if not scenes and depth:
        scenes = [scene for path in folders for scene in _scenes_in(path, depth - 1)]
    if not scenes:
        # reading says what they hold
        scenes = [path for path in others if not rasters.is_raster(path)]
    return sorted(scenes)


FEWEST = 4
"""Rows and columns of a scene at least: with fewer, every pixel is an edge."""


@dataclass(frozen=True)
class Reading:
    """How scene files are read; by default the file or the card says."""

    key: str | None = None
    layout: str | None = None
    size: tuple[int, int] | None = None
    bands: str | None = None
    drop_bands: str | None = None
    drop_bad_bands: bool = False
    fill_nodata: bool = False
    keep_range: bool = False
    nodata: float | None = None  # where the file declares none, or a wrong one
    expected: int | None = None  # bands in the file; another number is refused
    # nm, where the file has none
    wavelengths: np.ndarray | None = field(default=None, compare=False)
    by_card: bool = False        # a card completed it: what a file does not need is no mistake then


def refuse_without_effect(scene: Scene, reading: Reading) -> None:
    """Raise UserError for an option of reading that changes nothing in this scene's file."""
    dtype, nodata = scene.cube.dtype, reading.nodata
    if nodata is not None and dtype.kind != "f" and marker_of(dtype, nodata) is None:
        raise UserError(f"{scene} holds {dtype}, none of which can be {nodata:g}; give --nodata a "
                        "value that is in the file, or leave it out.")
    if reading.by_card or not (reading.key or reading.layout or reading.size):
        return
    container = containers.named(scene.format)
    title = container.title if container else "the file"
    if reading.key and scene.key is None:
        raise UserError(
            f"{scene} is {title}, whose cube has no name, and --key names one; leave --key out.")
    if reading.layout and container and container.fixed_axes:
        raise UserError(f"{scene} is {title}, which says which axis is which; leave --layout out.")
    if reading.size and not scene.layout.startswith("pixels"):
        raise UserError(f"{scene} holds rows and columns of its own, and --size is for an array of "
                        "bands x pixels; leave --size out.")


def open_as(path: Path, reading: Reading | None = None, *, in_memory: bool = True,
            keep_bad: bool = False, folder: Path | None = None) -> Scene:
    """The scene in a file, with the bands that a network can take.

    A note on stderr says how many pixels are missing in all bands.

    Args:
        in_memory: read the cube; else leave it on disk (see `open_scene`), or where it must be
            decoded in a temporary file in `folder`.
        keep_bad: keep bad bands and list them (see `clean`).

    Raises UserError: the file cannot be read, its number of bands is not the expected one, or bands
    are bad (see `clean`).
    """
    reading = reading or Reading()
    opened = read_scene if in_memory else open_scene
    scene = opened(path, reading.key, reading.layout, reading.expected, reading.size)
    with read_from(path):  # it may lie in the data, behind a sound header
        scene.cube = at_hand(scene.cube, folder)
    if scene.wavelengths is None:
        scene.wavelengths = reading.wavelengths
    refuse_without_effect(scene, reading)
    if reading.nodata is not None:
        scene = replace(scene, nodata=reading.nodata)
    scene = clean(scene, reading.drop_bad_bands, reading.fill_nodata, reading.bands,
                  reading.drop_bands, keep_bad=keep_bad)
    for text in scene.notes:
        note(f"{path}: {text}")
    if fill := scene.metadata.get("likely_fill"):
        warn(f"{path}: {fill.share:.1%} of the pixels are {fill.value:g}, far from all others, and "
             f"the file does not say that they are missing; --nodata {fill.value:.17g} does")
    count, gone, made_up = scene.cube.shape[1] * scene.cube.shape[2], *(
        0 if mask is None else int(mask.sum()) for mask in (scene.missing, scene.filled))
    if gone:
        note(f"{path}: {gone} of {count} pixels are missing in all bands; they are left out of "
             "all figures, and stay no-data in a result")
    if made_up > gone:
        note(f"{path}: {made_up - gone} of {count} pixels have values of their neighbours in a "
             "band at least; no number of a test counts them")
    bands, *size = scene.cube.shape
    if min(size) < FEWEST:
        raise UserError(f"{path} is {size[0]} x {size[1]} pixels, and at least {FEWEST} x {FEWEST} "
                        "are needed; use a larger scene.")
    if bands == 3:
        note(f"{path} has 3 bands, as a colour picture has; what is here is made for spectra of "
             "many bands")
    return scene
