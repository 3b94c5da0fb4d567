"""AVIRIS-3 and AVIRIS-5 (NASA, netCDF-4): a group `reflectance` or `radiance` that holds the cube
of that name and its wavelengths, and CF's grid mapping at the top."""
from __future__ import annotations

import h5py

from utility.cubes.conventions import item_at
from utility.cubes.product import Product


def holds(file: h5py.File) -> bool:
    def has(path: str) -> bool:
        return item_at(file, path) is not None

    return any(has(f"{name}/{name}") and has(f"{name}/wavelength")
               for name in ("reflectance", "radiance"))


PRODUCT = Product("AVIRIS-3", holds=holds)
