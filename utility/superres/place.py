"""Where a result lies: the place and size of its pixels, and how far its bounds are from the input's."""
from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from rasterio.crs import CRS

from utility.cubes.cube import Scene
from utility.cubes.formats import envi
from utility.cubes.values import marker_of
from utility.degradation import grid
from utility.names import DEFAULT_KIND


def scaled(scene: Scene, cube: Any, scale: int, kind: str = DEFAULT_KIND) -> Scene:
    """The Scene of `cube`, which is `scene` on the finer grid of `degradation.upsample` at this scale factor and kind.

    CRS, wavelengths, names and other metadata are kept. Transform and map info get the place and size of the new pixels
    (`degradation.grid`): on a block grid the corner stays and the pixels are `scale` times smaller. Missing pixels are
    no-data again where the scene has a no-data value and `cube` is in memory and of the finer grid. `cube` itself is not
    changed.
    """
    metadata = dict(scene.metadata)
    for name in ("origin", "bad_pixels"):
        metadata.pop(name, None)
    marker, missing = None, scene.missing
    if type(cube) is np.ndarray and scene.nodata is not None:
        marker = np.nan if np.isnan(scene.nodata) and cube.dtype.kind == "f" else marker_of(cube.dtype, scene.nodata)
    finer = missing is not None and cube.shape[1:] == tuple(n * scale for n in missing.shape)
    if finer and missing.any() and marker is not None:
        cube = cube.copy()
        cube[:, missing.repeat(scale, 0).repeat(scale, 1)] = marker
    down, across = (grid(n, scale, kind) for n in scene.cube.shape[1:])
    if "header" in metadata:
        metadata["header"] = envi.finer(metadata["header"], across, down)
    transform = scene.transform
    if transform is not None:
        a, b, c, d, e, f = transform
        (width, left), (height, top) = across, down
        transform = (a * width, b * height, c + a * left + b * top, d * width, e * height, f + d * left + e * top)
    return dataclasses.replace(scene, cube=cube, transform=transform, metadata=metadata, missing=None, filled=None)


def bounds_distance(first: Scene, second: Scene) -> tuple[float, str] | None:
    """The largest distance on the ground between the corners of two scenes, and its unit; None for a scene without a place.

    The unit is the metre where the CRS says how long its own unit is (of degrees, on a sphere of 6371 km radius).
    """
    if first.transform is None or second.transform is None:
        return None
    corners = []
    for scene in (first, second):
        a, b, c, d, e, f = scene.transform
        _, rows, columns = scene.cube.shape
        corners.append([(c + a * x + b * y, f + d * x + e * y) for x in (0, columns) for y in (0, rows)])
    (across, down), unit = (1.0, 1.0), "m"
    crs = CRS.from_wkt(first.crs) if first.crs else None
    if crs and crs.is_geographic:
        down = math.radians(6_371_000)
        across = down * math.cos(math.radians(corners[0][0][1]))
    elif crs and crs.is_projected:
        across = down = crs.linear_units_factor[1]
    else:
        unit = "map units"
    return max(math.hypot(across * (x - u), down * (y - v)) for (x, y), (u, v) in zip(*corners, strict=True)), unit
