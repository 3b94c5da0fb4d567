#!/bin/sh
# Guess: making a cloud-optimised GeoTIFF computes its overviews anew, by the resampling asked
# for.
# Found: where the source has overviews, GDAL's COG driver copies them and `OVERVIEW_RESAMPLING`
# is ignored. They may be nearest neighbour, or older than the pixels: bands that were corrected
# after the overviews were built keep the old values there, and a viewer, or rasterio's decimated
# read, shows those. `OVERVIEWS=IGNORE_EXISTING` helps.
exec sh "$(dirname "$0")/alone.sh" numpy==2.4.6 rasterio==1.4.4 <<'PYTHON'
import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.shutil import copy

print("rasterio", rasterio.__version__, "GDAL", rasterio.__gdal_version__)
size = {"driver": "GTiff", "count": 2, "height": 1100, "width": 1100, "dtype": "uint16",
        "transform": rasterio.Affine(30, 0, 0, 0, -30, 0)}
with rasterio.open("scene.tif", "w", **size) as file:
    file.write(np.full((2, 1100, 1100), 1000, "u2"))
with rasterio.open("scene.tif", "r+") as file:
    file.build_overviews([2, 4], Resampling.nearest)
    file.write(np.full((2, 1100, 1100), 2000, "u2"))  # the correction
copy("scene.tif", "kept.tif", driver="COG", overview_resampling="average")
copy("scene.tif", "new.tif", driver="COG", overview_resampling="average",
     overviews="IGNORE_EXISTING")
found = {}
for name in ("scene.tif", "kept.tif", "new.tif"):
    with rasterio.open(name) as file:
        whole, small = file.read(1).mean(), file.read(1, out_shape=(275, 275)).mean()
    found[name] = whole, small
    print(f"{name:10} mean of the pixels {whole:.0f}, of a read at a quarter size {small:.0f}")
assert found["kept.tif"] == (2000, 1000), "overviews are computed anew now"
assert found["new.tif"] == (2000, 2000)
PYTHON
