#!/bin/sh
# Guess: GDAL ignores `_Unsigned`, so counts stored as int16 read as negative numbers.
# Found: GDAL's netCDF driver gives netCDF's default fill of the type as no-data: 65535 of
# uint16, the value of a saturated pixel; masked reading drops those pixels. It does honour
# `_Unsigned`, and then turns the default fill of int16 into 32769, an ordinary count. netCDF4
# masks 65535 as well; xarray and GDAL's HDF5 driver mask nothing, and the HDF5 driver ignores
# `_Unsigned`.
exec sh "$(dirname "$0")/alone.sh" numpy==2.4.6 netCDF4==1.7.5.1.post1 \
    rasterio==1.4.4 xarray==2026.9.0 <<'PYTHON'
import warnings

import netCDF4
import numpy as np
import rasterio
import xarray

warnings.simplefilter("ignore")  # of files without a place on the ground
print("rasterio", rasterio.__version__, "GDAL", rasterio.__gdal_version__, "netCDF4",
      netCDF4.__version__, "xarray", xarray.__version__)
counts = np.array([[[1, 32769, 65535, 40000]]], "u2")
found = {}
for case, kind, attributes in (("uint16", "u2", {}), ("int16, _Unsigned", "i2",
                                                      {"_Unsigned": "true"})):
    with netCDF4.Dataset("cube.nc", "w") as file:
        for name, size in zip(("band", "y", "x"), counts.shape):
            file.createDimension(name, size)
        variable = file.createVariable("cube", kind, ("band", "y", "x"))
        variable.setncatts(attributes)
        variable.set_auto_maskandscale(False)
        variable[:] = counts.view(kind)
    with rasterio.open("cube.nc") as file:
        found[case, "GDAL netCDF"] = file.nodata, file.read(1, masked=True)[0].tolist()
    with rasterio.open("HDF5:cube.nc://cube") as file:
        found[case, "GDAL HDF5"] = file.nodata, file.read(1, masked=True)[0].tolist()
    with netCDF4.Dataset("cube.nc") as file:
        found[case, "netCDF4"] = None, file["cube"][0, 0].tolist()
    with xarray.open_dataset("cube.nc", engine="netcdf4") as file:
        found[case, "xarray"] = None, file.cube.values[0, 0].tolist()
for (case, reader), (nodata, values) in found.items():
    print(f"{case:17} {reader:12} no-data {nodata}, values {values}")
plain = [1, 32769, 65535, 40000]
assert found["uint16", "GDAL netCDF"] == (65535.0, [1, 32769, None, 40000])
assert found["uint16", "GDAL HDF5"] == found["uint16", "xarray"] == (None, plain)
assert found["uint16", "netCDF4"] == (None, [1, 32769, None, 40000])
assert found["int16, _Unsigned", "GDAL netCDF"] == (32769.0, [1, None, 65535, 40000])
assert found["int16, _Unsigned", "GDAL HDF5"] == (None, [1, -32767, -1, -25536])
assert found["int16, _Unsigned", "xarray"] == (None, plain)
PYTHON
