"""EMIT L1B radiance and L2A reflectance (NASA, netCDF-4), on the sensor's grid.

`location/glt_x` and `glt_y` say which pixel lies in each cell of a map grid, from 1, with 0 for
none; the file's attributes `geotransform` and `spatial_ref` are that grid's.
"""
from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from utility.cubes.conventions import attributes, item_at, numbers
from utility.cubes.cube import Stored
from utility.cubes.formats import hdf5
from utility.cubes.ground import crs_of, gdal_transform
from utility.cubes.ortho import Lookup
from utility.cubes.product import Product


def holds(file: h5py.File) -> bool:
    cubes = [item_at(file, name) for name in ("reflectance", "radiance")]
    return item_at(file, "sensor_band_parameters/wavelengths") is not None and any(
        isinstance(cube, h5py.Dataset) for cube in cubes)


def open_emit(path: Path, key: str | None) -> Stored:
    stored = hdf5.open_hdf5(path, key)
    try:
        with h5py.File(path, "r") as file:
            if item_at(file, "location/glt_x") is None:
                stored.notes.append("it has no lookup table (GLT), so --ortho is not possible")
                return stored
            said = attributes(file)
            values = numbers(said.get("geotransform", ""))
            across, down = (np.asarray(file[f"location/glt_{axis}"][()], np.int32) for axis in "xy")
            stored.metadata["lookup"] = Lookup(down - 1, across - 1, gdal_transform(values),
                                               crs_of(said))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:80]
        stored.notes.append(f"its lookup table (GLT) cannot be read ({reason}), so --ortho is not "
                            "possible")
    return stored


PRODUCT = Product("EMIT", open_emit, holds)
