"""Hyperion L1T and L1Gst (USGS): a folder of GeoTIFFs, one for each of 242 bands.

Bands 8 to 57 and 77 to 224 are calibrated; the others hold zeros and are left out. Radiance is DN /
40 in the first arm and DN / 80 in the second. The centres are the nominal ones: 355.59 + 10.1754 (n
- 1) nm up to band 70, then 851.92 + 10.0887 (n - 71).
"""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from utility.cubes.cube import Stored
from utility.cubes.formats import rasters
from utility.cubes.product import Product

NAME = re.compile(r"(?P<stem>EO1H\w*?)_B(?P<band>\d{3})(?P<level>_\w+)?\.tiff?", re.I)
CALIBRATED = {*range(8, 58), *range(77, 225)}
LAST_VNIR = 70


def bands_in(folder: Path) -> dict[int, Path]:
    """Number -> file of the bands of a folder's scene; nothing if it has several, or none."""
    found = [(name, path) for path in folder.iterdir() if (name := NAME.fullmatch(path.name))]
    if len({name["stem"] for name, _ in found}) != 1:
        return {}
    return {int(name["band"]): path for name, path in found}


def scene(path: Path) -> Path | None:
    folder = path if path.is_dir() else path.parent
    if path.is_file() and not NAME.fullmatch(path.name):
        return None
    return folder if len(bands_in(folder)) >= 2 else None


def open_hyperion(path: Path, key: str | None) -> Stored:
    bands = bands_in(path)
    numbers = sorted(CALIBRATED & bands.keys()) or sorted(bands)
    opened = [(bands[number], str(bands[number].absolute())) for number in numbers]
    left_out = len(bands) - len(numbers)
    stored = rasters.open_stack(path, opened, "GTiff", f"{len(numbers)} files are the bands; "
                                f"{left_out} bands that are not calibrated are left out")
    n = np.array(numbers)
    vnir = n <= LAST_VNIR
    stored.wavelengths = np.where(vnir, 355.59 + 10.1754 * (n - 1), 851.92 + 10.0887 * (n - 71))
    stored.wavelengths_by = "the nominal centres of Hyperion"
    stored.gain, stored.units = np.where(vnir, 1 / 40, 1 / 80), "W/(m^2 sr um)"
    stored.band_names = [f"B{number:03d}" for number in numbers]
    corners = stored.array[:, ::stored.array.shape[1] - 1, ::stored.array.shape[2] - 1]
    # Zeros lie around a scene that was turned to the north.
    if stored.nodata is None and np.any(np.all(corners == 0, axis=0)):
        stored.nodata = 0.0
    return stored


PRODUCT = Product("Hyperion", open_hyperion, scene=scene,
                  files=lambda path: bands_in(path).values(),
                  belongs=lambda path: bool(NAME.fullmatch(path.name)) and scene(path) is not None,
                  suffix=".tif")
