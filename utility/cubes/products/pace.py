"""PACE OCI (NASA, netCDF-4): L2 has one cube; L1B has three, whose wavelengths overlap."""
from __future__ import annotations

from pathlib import Path

import h5py

from utility.cubes.conventions import item_at
from utility.cubes.cube import Stored
from utility.cubes.formats import hdf5
from utility.cubes.product import Product
from utility.cubes.virtual import joined_arms

ARMS = ("blue", "red", "SWIR")


def _l1b(file: h5py.File) -> list[str]:
    """The cubes of L1B, reflectance before radiance."""
    for quantity in ("rhot", "Lt"):
        names = [f"observation_data/{quantity}_{arm}" for arm in ARMS]
        if found := [name for name in names if item_at(file, name) is not None]:
            return found
    return []


def holds(file: h5py.File) -> bool:
    level2 = "geophysical_data", "sensor_band_parameters/wavelength_3d"
    return None not in [item_at(file, name) for name in level2] or bool(_l1b(file))


def open_pace(path: Path, key: str | None) -> Stored:
    contents = hdf5.contents_of(path)
    names = [name for name in _l1b(contents.file) if name in contents.arrays]
    if key or not names:
        contents.file.close()
        return hdf5.open_hdf5(path, key)
    return joined_arms({name.rpartition("_")[2]: hdf5.stored_array(contents, name)
                        for name in names})


PRODUCT = Product("PACE OCI", open_pace, holds)
