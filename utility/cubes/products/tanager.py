"""Tanager (Planet, HDF-EOS 5): orthorectified reflectance or radiance on a grid, basic ones on a
swath, bands x rows x columns; attributes say the rest."""
from __future__ import annotations

from functools import partial

import h5py

from utility.cubes.conventions import item_at
from utility.cubes.formats import hdf5
from utility.cubes.product import Product


def holds(file: h5py.File) -> bool:
    return any(item_at(file, f"HDFEOS/{kind}/HYP") is not None for kind in ("GRIDS", "SWATHS"))


PRODUCT = Product("Tanager", partial(hdf5.open_hdf5, layout="BHW"), holds)
