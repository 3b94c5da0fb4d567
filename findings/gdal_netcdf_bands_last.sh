#!/bin/sh
# Guess: GDAL takes the last two axes of a netCDF variable (rows, columns, bands) for rows and
# columns, so every row of the scene becomes a band, as GDAL's HDF5 driver does.
# Found: the netCDF driver moves the last axis to the front where its dimension is called `band`
# or `bands`, and only then. With `wavelength`, `channel` or `spectral` the same cube has as many
# bands as the scene has rows. Renaming a dimension changes the shape of the image.
exec sh "$(dirname "$0")/alone.sh" numpy==2.4.6 netCDF4==1.7.5.1.post1 rasterio==1.4.4 <<'PYTHON'
import warnings

import netCDF4
import numpy as np
import rasterio

warnings.simplefilter("ignore")  # of files without a place on the ground
print("rasterio", rasterio.__version__, "GDAL", rasterio.__gdal_version__, "netCDF4",
      netCDF4.__version__)


def shape(*dimensions, driver="{}"):
    """The shape in which GDAL reads a variable of 12 rows, 14 columns and 31 bands."""
    with netCDF4.Dataset("cube.nc", "w") as file:
        for name, size in zip(dimensions, (12, 14, 31)):
            file.createDimension(name, size)
        file.createVariable("cube", "f4", dimensions)[:] = np.zeros((12, 14, 31), "f4")
    with rasterio.open(driver.format("cube.nc")) as file:
        return file.count, file.height, file.width


for dimensions, expected in (
        (("downtrack", "crosstrack", "bands"), (31, 12, 14)),
        (("row", "col", "band"), (31, 12, 14)),
        (("y", "x", "wavelength"), (12, 14, 31)), (("y", "x", "channel"), (12, 14, 31)),
        (("y", "x", "spectral"), (12, 14, 31))):
    found = shape(*dimensions)
    print(f"{', '.join(dimensions):30} bands, rows, columns: {found}")
    assert found == expected, "the axes have changed"
found = shape("downtrack", "crosstrack", "bands", driver="HDF5:{}://cube")
print(f"{'the first, by the HDF5 driver':30} bands, rows, columns: {found}")
assert found == (12, 14, 31), "the HDF5 driver has changed"
PYTHON
