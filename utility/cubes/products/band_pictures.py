"""A folder of pictures, one for each band: CAVE (31 PNGs, 400 to 700 nm) and sets like it.

CAVE's bands are grey pictures of 16 bits, but for scenes whose pictures have colour channels or 8
bits: there all channels are equal. Reflectance is the value divided by the largest one of the type.
"""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from utility.cubes.cube import Stored
from utility.cubes.formats import rasters
from utility.cubes.formats.header import quiet
from utility.cubes.product import Product

NAME = re.compile(r"(?P<stem>.*?)[_-]?(?P<band>\d+)\.(png)", re.I)
FEWEST = 5
"""Pictures at least: fewer are colours, or different scenes."""
CAVE = 31


def bands_in(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their gapless numbers; none if they are no bands."""
    found: dict[str, dict[int, Path]] = {}
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith(".") and (name := NAME.fullmatch(path.name)):
            found.setdefault(name["stem"], {})[int(name["band"])] = path
    if len(found) != 1:
        return []
    (stem, bands), = found.items()
    numbers = sorted(bands)
    whole = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    if not stem or len(numbers) < FEWEST or not whole:
        return []
    return [bands[number] for number in numbers]


def _folder(path: Path) -> Path | None:
    """The folder of a scene's pictures: `path`, or the only folder in it, as CAVE is packed."""
    if bands_in(path):
        return path
    inside = [other for other in path.iterdir() if not other.name.startswith(".")]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() and bands_in(inside[0]) else None


def scene(path: Path) -> Path | None:
    if path.is_dir():
        return path if _folder(path) else None
    return path.parent if NAME.fullmatch(path.name) and path in bands_in(path.parent) else None


def open_pictures(path: Path, key: str | None) -> Stored:
    files = bands_in(_folder(path))
    bands = [(file, str(file.absolute())) for file in files]
    stored = rasters.open_stack(path, bands, "PNG", f"{len(files)} pictures are the bands")
    stored.gain = np.full(len(files), 1 / np.iinfo(stored.array.dtype).max)
    stored.units = "reflectance"
    channels = _channels(files[0])
    if channels > 1 or stored.array.dtype == np.uint8:
        bits = 8 * stored.array.dtype.itemsize
        several = "s" * (channels > 1)
        stored.notes.append(f"its pictures have {channels} channel{several} of {bits} bits"
                            + ", of which the first is taken" * (channels > 1))
    if len(files) == CAVE and "_ms" in files[0].stem:
        stored.wavelengths = np.linspace(400.0, 700.0, CAVE)
        stored.wavelengths_by = "the camera of CAVE"
    return stored


def _channels(file: Path) -> int:
    try:
        with quiet(), rasterio.open(file.absolute(), driver="PNG") as picture:
            return picture.count
    except (RasterioError, OSError):
        return 1


PRODUCT = Product("pictures of bands (CAVE)", open_pictures, scene=scene,
                  files=lambda path: bands_in(_folder(path)),
                  belongs=lambda path: scene(path) is not None, suffix=".tif")
