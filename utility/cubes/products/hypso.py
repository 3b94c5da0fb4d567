"""HYPSO-1 and -2 L1b and later (NTNU, netCDF-4): `products/Lt`, whose attributes hold the
wavelengths."""
from __future__ import annotations

import h5py

from utility.cubes.conventions import attributes, item_at
from utility.cubes.product import Product


def holds(file: h5py.File) -> bool:
    cube = item_at(file, "products/Lt")
    return cube is not None and any(name.startswith("wavelength") for name in attributes(cube))


PRODUCT = Product("HYPSO", holds=holds)
