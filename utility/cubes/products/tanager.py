"""Tanager (Planet, HDF-EOS 5): orthorectified reflectance on a grid, basic radiance on a swath;
attributes say the rest."""
from __future__ import annotations

import h5py

from utility.cubes.conventions import item_at
from utility.cubes.product import Product


def holds(file: h5py.File) -> bool:
    return any(item_at(file, f"HDFEOS/{kind}/HYP") is not None for kind in ("GRIDS", "SWATHS"))


PRODUCT = Product("Tanager", holds=holds)
