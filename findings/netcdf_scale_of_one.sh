#!/bin/sh
# Guess: a packed int16 variable with a float64 `scale_factor` is float64 after reading, whatever
# the factor, in netCDF4 as in xarray.
# Found: netCDF4 does not scale where `scale_factor` is 1 and gives int16; xarray gives float64.
# So a granule whose factor happens to be 1 has another type than its neighbours, and integer
# arithmetic: the difference of two of its bands wraps around. xarray packs int32 with a float32
# factor into float32, netCDF4 into float64.
exec sh "$(dirname "$0")/alone.sh" numpy==2.4.6 netCDF4==1.7.5.1.post1 xarray==2026.9.0 <<'PYTHON'
import warnings

import netCDF4
import numpy as np
import xarray

warnings.simplefilter("ignore")  # of the difference that wraps around
print("netCDF4", netCDF4.__version__, "xarray", xarray.__version__)
counts = np.array([[30000, -30000]], "i2")


def types(kind, factor):
    """The types, by netCDF4 and by xarray, and the two values by netCDF4."""
    with netCDF4.Dataset("cube.nc", "w") as file:
        file.createDimension("band", 1)
        file.createDimension("x", 2)
        variable = file.createVariable("cube", kind, ("band", "x"))
        variable.scale_factor = factor
        variable.set_auto_maskandscale(False)
        variable[:] = counts
    with netCDF4.Dataset("cube.nc") as file:
        values = np.asarray(file["cube"][:])
    with xarray.open_dataset("cube.nc", engine="netcdf4") as file:
        return values.dtype.name, file.cube.dtype.name, values


for kind, factor, expected in (("i2", np.float64(0.5), ("float64", "float64")),
                               ("i2", np.float64(1), ("int16", "float64")),
                               ("i2", np.float32(0.5), ("float32", "float32")),
                               ("i4", np.float32(0.5), ("float64", "float32"))):
    by_netcdf, by_xarray, values = types(kind, factor)
    print(f"{kind}, scale_factor {factor!r}: netCDF4 {by_netcdf}, xarray {by_xarray}; "
          f"the difference of the two values {values[0, 0] - values[0, 1]}")
    assert (by_netcdf, by_xarray) == expected, "the types have changed"
PYTHON
