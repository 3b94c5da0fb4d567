#!/bin/sh
# Guess: a float array written to a uint16 GeoTIFF is rounded and limited to 0 .. 65535, as GDAL
# converts types.
# Found: rasterio casts with NumPy before GDAL sees the values: 70000 becomes 4464, -5 becomes
# 65531, 3.7 becomes 3, NaN becomes 0, with a warning for NaN alone. Reading is limited by GDAL:
# 300 read as uint8 is 255. h5py limits on writing too, netCDF4 and Spectral Python wrap. So one
# cube, written by four libraries into uint16, is two cubes.
exec sh "$(dirname "$0")/alone.sh" h5py==3.16.0 netCDF4==1.7.5.1.post1 \
    numpy==2.4.6 rasterio==1.4.4 spectral==0.25 <<'PYTHON'
import warnings

import h5py
import netCDF4
import numpy as np
import rasterio
import spectral

warnings.simplefilter("ignore")  # of NaN, and of files without a place on the ground
print("rasterio", rasterio.__version__, "GDAL", rasterio.__gdal_version__, "h5py",
      h5py.__version__, "netCDF4", netCDF4.__version__, "spectral", spectral.__version__)
values = np.array([70000, -5, 3.7, np.nan, 300], "f4")
size = {"driver": "GTiff", "count": 1, "height": 1, "width": 5, "dtype": "uint16"}
with rasterio.open("cube.tif", "w", **size) as file:
    file.write(values[None], 1)
with rasterio.open("cube.tif") as file:
    by_rasterio, as_bytes = file.read(1)[0], file.read(1, out_dtype="uint8")[0]
with h5py.File("cube.h5", "w") as file:
    by_h5py = file.create_dataset("cube", data=values, dtype="uint16")[:]
with netCDF4.Dataset("cube.nc", "w") as file:
    file.createDimension("x", 5)
    variable = file.createVariable("cube", "u2", ("x",))
    variable[:] = values
    variable.set_auto_mask(False)
    by_netcdf = variable[:]
spectral.envi.save_image("cube.hdr", values.reshape(1, 5, 1), dtype="uint16")
by_spectral = np.asarray(spectral.open_image("cube.hdr").open_memmap()).ravel()
wrapped, limited = [4464, 65531, 3, 0, 300], [65535, 0, 3, 0, 300]
print("written        ", values.tolist())
for name, found, expected in (("rasterio", by_rasterio, wrapped), ("netCDF4", by_netcdf, wrapped),
                              ("spectral", by_spectral, wrapped), ("h5py", by_h5py, limited)):
    print(f"read, {name:9}", found.tolist())
    assert found.tolist() == expected, f"{name} converts in another way now"
print("rasterio, read as uint8:", as_bytes.tolist())
assert as_bytes.tolist() == [255, 255, 3, 0, 255], "reading converts in another way now"
PYTHON
