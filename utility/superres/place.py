"""The place and size of a result's pixels, and how far its bounds are from the input's."""
from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.crs import CRS

from utility.cubes import ground
from utility.cubes.containers import named, writers_of
from utility.cubes.cube import BLOCK, Scene
from utility.cubes.formats import envi
from utility.cubes.ortho import Ground, Lookup
from utility.cubes.values import marker_of
from utility.degradation import Degradation, grid
from utility.names import DEFAULT_KIND
from utility.scenes import write_scene
from utility.system.errors import UserError


def scaled(scene: Scene, cube: Any, scale: int, kind: str = DEFAULT_KIND) -> Scene:
    """The Scene of `cube`, which is `scene` on the finer grid of `degradation.upsample` at this
    scale factor and kind.

    CRS, wavelengths, names and other metadata are kept. Transform and map info get the place and
    size of the new pixels (`degradation.grid`): on a block grid the corner stays and the pixels are
    `scale` times smaller. Missing pixels are no-data again where the scene has a no-data value and
    `cube` is in memory and of the finer grid. `cube` itself is not changed.
    """
    dropped = ("origin", "bad_pixels")
    metadata = {name: value for name, value in scene.metadata.items() if name not in dropped}
    marker, missing = None, scene.missing
    if type(cube) is np.ndarray and scene.nodata is not None:
        marker = (np.nan if np.isnan(scene.nodata) and cube.dtype.kind == "f"
                  else marker_of(cube.dtype, scene.nodata))
    gone = None if missing is None else missing.repeat(scale, 0).repeat(scale, 1)
    if marker is not None and gone is not None and gone.shape == cube.shape[1:] and gone.any():
        cube = cube.copy()
        cube[:, gone] = marker
    down, across = (grid(n, scale, kind) for n in scene.cube.shape[1:])
    if "header" in metadata:
        metadata["header"] = envi.finer(metadata["header"], across, down)
    for name, finer in (("gcps", ground.finer_points), ("rpcs", ground.finer_rpcs)):
        if name in metadata:
            metadata[name] = finer(metadata[name], across, down)
    if "lookup" in metadata:
        metadata["lonlat of the input"] = scene.lonlat
    size, transform, lonlat = scene.cube.shape[1:], scene.transform, scene.lonlat
    shape = tuple(n * scale for n in size)
    if lonlat is not None and lonlat[0].shape != size:
        lonlat = None  # of a whole of which the scene is a part
    return dataclasses.replace(
        scene, cube=cube, metadata=metadata, missing=None, filled=None,
        transform=None if transform is None else ground.finer_transform(transform, across, down),
        lonlat=None if lonlat is None else ground.finer_lonlat(lonlat, shape, across, down))


def lonlat_path(target: Path, like: Scene) -> Path | None:
    """The file for longitudes and latitudes beside a raster without a map grid; None: no need."""
    if like.lonlat is None or not {named("raster"), named("envi")} & {*writers_of(target)}:
        return None
    return target.with_name(f"{target.stem}_lonlat{target.suffix}")


def write_lonlat(path: Path, like: Scene, overwrite: bool) -> None:
    """Longitude and latitude of each pixel of a result, in degrees, as a raster of two bands."""
    write_scene(path, Scene(np.stack(like.lonlat), path.stem, band_names=["longitude", "latitude"],
                            nodata=np.nan, units="degrees"), overwrite)


@dataclasses.dataclass(frozen=True)
class OnMap:
    """A result that is put on the map grid of a lookup table."""
    lookup: Lookup                                     # of the input's pixels
    ground: Ground | None                              # of these pixels, where it fits the table
    scale: int
    like: Scene                                        # of the file to write

    def write(self, cube: np.ndarray, writer: Any) -> None:
        """Write `cube` (B, H, W), on the sensor's grid, to `writer` by rows of the map."""
        rows, columns = self.lookup.rows.shape
        row = len(cube) * columns * self.scale ** 2 * cube.itemsize
        step = max(1, BLOCK // row)
        for top in range(0, rows, step):
            part = self.lookup.rows_of(top, min(top + step, rows)).finer(self.scale, self.ground)
            block = part.take(cube, 0, len(part.rows), self.like.nodata)
            writer[:, top * self.scale:top * self.scale + block.shape[1], :] = block


def on_map_grid(like: Scene, scale: int, kind: str, dtype: np.dtype) -> OnMap:
    """How a result on the sensor's grid, whose scene is `like`, goes on the map grid of its lookup
    table."""
    lookup = like.metadata.get("lookup")
    if lookup is None:
        raise UserError("--ortho puts a result on the map grid of the lookup table (GLT) that "
                        f"comes with a scene, and {like} has none; leave --ortho out.")
    if not Degradation.of(scale, kind).block_grid:
        raise UserError("--ortho needs pixels that are parts of the input's, and degradation "
                        f"{kind} has a grid of its own; choose another --degradation.")
    if like.nodata is None and dtype.kind != "f":
        raise UserError("--ortho needs a value for cells without a pixel; name one with --nodata, "
                        "or give --dtype float32.")
    lonlat = like.metadata.get("lonlat of the input")
    ground = None if lonlat is None else Ground.of(lonlat)
    on_map = lookup.rows_of(0, 1).finer(scale)
    return OnMap(lookup, ground if ground and lookup.fits(ground) else None, scale,
                 dataclasses.replace(like, transform=on_map.transform, crs=lookup.crs, lonlat=None,
                                     nodata=np.nan if like.nodata is None else like.nodata))


def written_size(like: Scene, scale: int) -> tuple[int, int]:
    """Rows and columns of a result on the map grid of its lookup table; see `on_map_grid`."""
    rows, columns = like.metadata["lookup"].rows.shape
    return rows * scale, columns * scale


def bounds_distance(first: Scene, second: Scene) -> tuple[float, str] | None:
    """The largest distance on the ground between the corners of two scenes, and its unit; None for
    a scene without a place.

    The unit is the metre where the CRS says how long its own unit is (of degrees, on a sphere of
    6371 km radius).
    """
    if first.transform is None or second.transform is None:
        return None
    corners = []
    for scene in (first, second):
        a, b, c, d, e, f = scene.transform
        _, rows, columns = scene.cube.shape
        corners.append(
            [(c + a * x + b * y, f + d * x + e * y) for x in (0, columns) for y in (0, rows)])
    (across, down), unit = (1.0, 1.0), "m"
    crs = CRS.from_wkt(first.crs) if first.crs else None
    if crs and crs.is_geographic:
        down = math.radians(6_371_000)
        across = down * math.cos(math.radians(corners[0][0][1]))
    elif crs and crs.is_projected:
        across = down = crs.linear_units_factor[1]
    else:
        unit = "map units"
    return (max(math.hypot(across * (x - u), down * (y - v))
                for (x, y), (u, v) in zip(*corners, strict=True)), unit)
