"""What a product is to the readers: how it is known, and how its cube is read."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py

from utility.cubes.cube import Stored
from utility.cubes.formats import hdf5


@dataclass(frozen=True)
class Product:
    """One product; a file in `utility/cubes/products/` defines one as PRODUCT."""
    title: str
    """For messages."""
    open: Callable[[Path, str | None], Stored] = hdf5.open_hdf5
    """Scene and key -> the cube and its facts."""
    holds: Callable[[h5py.File], bool] = lambda file: False
    """Is an HDF5 or netCDF file one?"""
    scene: Callable[[Path], Path | None] = lambda path: None
    """File or folder -> the scene that it is, or is of."""
    files: Callable[[Path], Iterable[Path]] = lambda path: (path,)
    """All files of a scene."""
    belongs: Callable[[Path], bool] = lambda path: False
    """Is a file in a folder about a scene beside it?"""
    suffix: str | None = None
    """Of results; None: as of the scene's container."""
