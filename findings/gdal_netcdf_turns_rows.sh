#!/bin/sh
# Guess: a netCDF cube without coordinate variables is read by GDAL in the order of its rows.
# Found: GDAL's netCDF driver takes the first row of a variable for the southern one unless
# coordinates with CF attributes say otherwise, so the image is upside down against netCDF4,
# xarray and h5py. Coordinate variables `y` and `x` alone do not help; `standard_name`, `axis`
# and units do. GDAL's HDF5 driver reads the same file the other way round from its netCDF
# driver.
exec sh "$(dirname "$0")/alone.sh" numpy==2.4.6 netCDF4==1.7.5.1.post1 rasterio==1.4.4 <<'PYTHON'
import warnings

import netCDF4
import numpy as np
import rasterio

warnings.simplefilter("ignore")  # of files without a place on the ground
print("rasterio", rasterio.__version__, "GDAL", rasterio.__gdal_version__, "netCDF4",
      netCDF4.__version__)
cube = np.random.default_rng(0).random((5, 6, 7), np.float32)


def order(name, y=None, attributes=False, driver="netcdf:{}:cube"):
    """Write (band, y, x), read it with GDAL: "as stored" or "upside down"."""
    with netCDF4.Dataset(name, "w") as file:
        for axis, size in zip(("band", "y", "x"), cube.shape):
            file.createDimension(axis, size)
        for axis, values in (("y", y), ("x", np.arange(7.0) * 30)) if y is not None else ():
            variable = file.createVariable(axis, "f8", (axis,))
            variable[:] = values
            if attributes:
                variable.standard_name = f"projection_{axis}_coordinate"
                variable.units, variable.axis = "m", axis.upper()
        file.createVariable("cube", "f4", ("band", "y", "x"))[:] = cube
    with rasterio.open(driver.format(name)) as file:
        read = file.read()
    return "as stored" if np.array_equal(read, cube) else (
        "upside down" if np.array_equal(read, cube[:, ::-1]) else "something else")


north_first = np.arange(6.0)[::-1] * 30
found = {
    "no coordinates": order("a.nc"),
    "y falls, no attributes": order("b.nc", north_first),
    "y falls, CF attributes": order("c.nc", north_first, True),
    "y rises, CF attributes": order("d.nc", north_first[::-1], True),
    "no coordinates, HDF5 driver": order("e.nc", driver="HDF5:{}://cube"),
}
for case, result in found.items():
    print(f"{case:28} {result}")
assert list(found.values()) == ["upside down", "upside down", "as stored", "upside down",
                                "as stored"], "the order of rows has changed"
PYTHON
