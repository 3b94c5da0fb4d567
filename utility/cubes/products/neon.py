"""NEON AOP (HDF5): SITE/Reflectance/Reflectance_Data, whose reflectance is DN / `Scale_Factor`;
wavelengths and place stand in sister groups, and attributes of the group name windows in which air
is opaque."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from utility.cubes.conventions import attributes, item_at, numbers, packing_of
from utility.cubes.cube import BY_PRODUCT, Stored
from utility.cubes.formats import hdf5
from utility.cubes.ground import crs_of, map_info_transform
from utility.cubes.product import Product


def _site(file: h5py.File) -> str | None:
    return next((name for name in file
                 if item_at(file, f"{name}/Reflectance/Reflectance_Data") is not None), None)


def open_neon(path: Path, key: str | None) -> Stored:
    contents = hdf5.contents_of(path)
    group = f"{_site(contents.file)}/Reflectance"
    name = f"{group}/Reflectance_Data"
    if (key and not f"/{name}".endswith(f"/{key.strip('/')}")) or name not in contents.arrays:
        contents.file.close()
        return hdf5.open_hdf5(path, key)
    packing = packing_of(contents.arrays[name])
    divisor = numbers(attributes(contents.arrays[name]).get("scalefactor", ""))
    if divisor is not None and divisor[0] > 0:
        packing.scale, packing.units = 1 / float(divisor[0]), "reflectance"
    stored = hdf5.stored_array(contents, name, packing)
    if stored.layout is None:
        stored.layout, stored.layout_by = "HWB", BY_PRODUCT
    stored.crs, stored.transform = _place(contents.file, f"{group}/Metadata/Coordinate_System")
    windows = [ends for part, value in attributes(contents.file[group]).items()
               if part.startswith("bandwindow") and (ends := numbers(value)) is not None
               and ends.size == 2]
    if stored.wavelengths is not None and windows and stored.good is None:
        stored.good = ~np.any([(stored.wavelengths >= low) & (stored.wavelengths <= high)
                               for low, high in windows], axis=0)
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


PRODUCT = Product("NEON AOP", open_neon, lambda file: _site(file) is not None)
