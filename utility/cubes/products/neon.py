"""NEON AOP (HDF5): SITE/Reflectance/Reflectance_Data, whose reflectance is DN / `Scale_Factor`, or
SITE/Radiance/RadianceIntegerPart and RadianceDecimalPart, whose radiance is their sum after the
decimals are divided by 50000; rows x columns x bands. Wavelengths and place stand in sister groups,
and attributes of the group name windows in which air is opaque."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from utility.cubes.conventions import Packing, attributes, item_at, numbers, packing_of
from utility.cubes.cube import LazyCube, Stored, slowest_of
from utility.cubes.formats import hdf5
from utility.cubes.ground import crs_of, map_info_transform
from utility.cubes.product import Product

REFLECTANCE, RADIANCE = "Reflectance/Reflectance_Data", "Radiance/RadianceIntegerPart"
DECIMALS = 50000.0


def _cube(file: h5py.File) -> str | None:
    """The name of the cube, or of its part before the point."""
    return next((f"{site}/{name}" for name in (REFLECTANCE, RADIANCE) for site in file
                 if item_at(file, f"{site}/{name}") is not None), None)


def open_neon(path: Path, key: str | None) -> Stored:
    contents = hdf5.contents_of(path)
    name = _cube(contents.file)
    if (key and not f"/{name}".endswith(f"/{key.strip('/')}")) or name not in contents.arrays:
        contents.file.close()
        return hdf5.open_hdf5(path, key)
    if name.endswith(RADIANCE):
        stored = _radiance(contents, name)
    else:
        packing = packing_of(contents.arrays[name])
        divisor = numbers(attributes(contents.arrays[name]).get("scalefactor", ""))
        if divisor is not None and divisor[0] > 0:
            packing.scale, packing.units = 1 / float(divisor[0]), "reflectance"
        stored = hdf5.stored_array(contents, name, packing, "HWB")
    group = name.rpartition("/")[0]
    stored.crs, stored.transform = _place(contents.file, f"{group}/Metadata/Coordinate_System")
    windows = [numbers(value) for part, value in attributes(contents.file[group]).items()
               if part.startswith("bandwindow")]
    windows = [ends for ends in windows if ends is not None and ends.size == 2]
    if stored.wavelengths is not None and windows and stored.good is None:
        stored.good = ~np.any([(stored.wavelengths >= low) & (stored.wavelengths <= high)
                               for low, high in windows], axis=0)
    return stored


def _radiance(contents: hdf5.Contents, name: str) -> Stored:
    """The sum of the part before the point and the part behind it."""
    packing = packing_of(contents.arrays[name])
    stored = hdf5.stored_array(contents, name, Packing(packing.fills, units=packing.units), "HWB")
    behind = name.replace("Integer", "Decimal")
    if behind not in contents.arrays or contents.arrays[behind].shape != stored.array.shape:
        stored.notes.append("its decimal part is not in the file, so radiance is whole numbers")
        return stored
    whole, part = stored.array, hdf5.stored_array(contents, behind, Packing(), "HWB").array

    def read(*index: slice) -> np.ndarray:
        values = whole[index].astype(np.float32)
        missing = values == stored.nodata
        values += part[index] / np.float32(DECIMALS)
        values[missing] = stored.nodata
        return values

    stored.array = LazyCube(whole.shape, np.float32, read, slowest_of(whole),
                            getattr(whole, "grain", 1))
    return stored


def _place(file: h5py.File, group: str) -> tuple[str | None, tuple[float, ...] | None]:
    def text(name: str) -> str:
        item: Any = item_at(file, f"{group}/{name}")
        value = item[()] if isinstance(item, h5py.Dataset) and item.size == 1 else ""
        value = value.flat[0] if isinstance(value, np.ndarray) else value
        return value.decode() if isinstance(value, bytes) else str(value)

    try:
        transform = map_info_transform(text("Map_Info").strip("{} ").split(","))
    except (ValueError, IndexError):
        return None, None
    crs = {"epsgcode": text("EPSG Code"), "crswkt": text("Coordinate_System_String"),
           "proj4": text("Proj4")}
    return crs_of(crs), transform


PRODUCT = Product("NEON AOP", open_neon, lambda file: _cube(file) is not None)
