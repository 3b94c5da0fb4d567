"""HYPSO-1 and -2 L1b and later (NTNU, netCDF-4): a cube in the group `products` (`Lt`, radiance),
lines x samples x bands, whose attributes hold the wavelengths."""
from __future__ import annotations

from functools import partial

import h5py

from utility.cubes.conventions import attributes, item_at
from utility.cubes.formats import hdf5
from utility.cubes.product import Product


def holds(file: h5py.File) -> bool:
    group = item_at(file, "products")
    if not isinstance(group, h5py.Group):
        return False
    cubes = [item for name in group if isinstance(item := item_at(group, name), h5py.Dataset)]
    return any(name.startswith("wavelength") for cube in cubes if cube.ndim == 3
               for name in attributes(cube))


PRODUCT = Product("HYPSO", partial(hdf5.open_hdf5, layout="HWB"), holds)
