"""Where a cube lies on the ground, as HDF5 and netCDF files say it, and where finer pixels lie."""
from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np
from rasterio.crs import CRS
from rasterio.errors import CRSError

from utility.cubes import conventions

Affine = tuple[float, ...]
"""a..f: x = a column + b row + c, y = d column + e row + f, of the corners of pixels."""

PROJECTIONS = {"latitude_longitude": "longlat", "transverse_mercator": "tmerc", "mercator": "merc",
               "sinusoidal": "sinu", "lambert_azimuthal_equal_area": "laea",
               "lambert_conformal_conic": "lcc", "albers_conical_equal_area": "aea",
               "polar_stereographic": "stere", "stereographic": "stere",
               "azimuthal_equidistant": "aeqd", "lambert_cylindrical_equal_area": "cea",
               "orthographic": "ortho"}
"""`grid_mapping_name` of CF -> projection of PROJ."""

PARAMETERS = {"latitudeofprojectionorigin": "lat_0", "longitudeofcentralmeridian": "lon_0",
              "longitudeofprojectionorigin": "lon_0", "straightverticallongitudefrompole": "lon_0",
              "scalefactoratcentralmeridian": "k_0", "scalefactoratprojectionorigin": "k_0",
              "falseeasting": "x_0", "falsenorthing": "y_0", "semimajoraxis": "a",
              "semiminoraxis": "b", "inverseflattening": "rf"}

LAT, LON = re.compile(r"^lat(itude)?s?($|_)"), re.compile(r"^lon(gitude)?s?($|_)")


@dataclass(frozen=True)
class Points:
    """Ground control points: (row, column, x, y, z) of each, rows and columns from the corner of
    the first pixel."""
    rows: tuple[tuple[float, ...], ...]
    crs: str | None                           # WKT


# ------------------------------------------------------------------------------------------ reading

def place_of(dataset: h5py.Dataset, layout: str) -> tuple[str | None, Affine | None]:
    """CRS (WKT) and transform of an array with a map grid, by CF or HDF-EOS; (None, None) for one
    without."""
    for found in (_cf_place, _eos_place):
        with suppress(CRSError, KeyError, ValueError, IndexError, TypeError):
            crs, transform = found(dataset, layout)
            if transform is not None:
                return crs, tuple(map(float, transform))
    return None, None


def crs_of(said: Mapping[str, Any]) -> str | None:
    """The CRS of a grid mapping's attributes: WKT, an EPSG code, or CF's own parameters."""
    for name in ("epsgcode", "epsg", "crswkt", "spatialref", "proj4", "proj4text"):
        value = said.get(name)
        if value is None or not np.size(value) or str(value).strip() == "":
            continue
        with suppress(CRSError, ValueError):
            text = str(np.ravel(value)[0]).strip()
            if name.startswith("epsg"):
                return CRS.from_epsg(int(float(text.upper().removeprefix("EPSG:")))).to_wkt()
            return known_crs(CRS.from_string(text)).to_wkt()
    projection = PROJECTIONS.get(str(said.get("gridmappingname", "")))
    if projection is None:
        return None
    proj: dict[str, Any] = {"proj": projection}
    for name, parameter in PARAMETERS.items():
        if (value := conventions.numbers(said.get(name, ""))) is not None:
            proj[parameter] = float(value[0])
    if (parallels := conventions.numbers(said.get("standardparallel", ""))) is not None:
        if projection in ("stere", "merc", "cea"):
            proj["lat_ts"] = parallels[0]
        else:
            proj |= {"lat_1": parallels[0], "lat_2": parallels[-1]}
    if not {"a", "b"} & proj.keys():
        proj["datum"] = "WGS84"
    return known_crs(CRS.from_dict(proj)).to_wkt()


def known_crs(crs: CRS) -> CRS:
    """The CRS by its EPSG code where it is a zone of UTM or degrees on WGS 84; else as it is."""
    if crs.to_epsg() or not crs.is_valid:
        return crs
    said = crs.to_dict()
    wgs84 = said.get("datum", said.get("ellps", "")) == "WGS84" or (
        said.get("a") == 6378137.0
        and abs(float(said.get("rf", 298.257223563)) - 298.257223563) < 1e-6)
    if said.get("proj") == "longlat" and wgs84:
        return CRS.from_epsg(4326)
    if said.get("proj") == "utm" and wgs84 and "zone" in said:
        return CRS.from_epsg((32700 if said.get("south") else 32600) + int(said["zone"]))
    zone = (float(said.get("lon_0", 0)) + 183) / 6
    usual = [float(said.get(name, default))
             for name, default in (("lat_0", 0), ("k", said.get("k_0", 1)), ("x_0", 0))]
    north = float(said.get("y_0", 0))
    tmerc = said.get("proj") == "tmerc" and wgs84
    if tmerc and zone.is_integer() and usual == [0, 0.9996, 5e5] and north in (0, 1e7):
        return CRS.from_epsg((32700 if north else 32600) + int(zone))
    return crs


def _cf_place(dataset: h5py.Dataset, layout: str) -> tuple[str | None, Affine | None]:
    said = conventions.attributes(dataset)
    mapping = _nearby(dataset, str(said.get("gridmapping", "")).split(":")[0].strip())
    mapped = conventions.attributes(mapping) if mapping is not None else {}
    rows, columns = (_coordinate(dataset, layout.index(axis)) for axis in "HW")
    crs = crs_of(mapped) if mapped else None
    if rows is None or columns is None:
        values = conventions.numbers(mapped.get("geotransform", ""))
        return crs, gdal_transform(values) if values is not None and values.size == 6 else None
    (top, down, degrees), (left, across, _) = rows, columns
    if crs is None and degrees:
        crs = CRS.from_epsg(4326).to_wkt()
    if crs is None and mapping is None:
        return None, None  # two axes with numbers and no map: counts of pixels
    return crs, (across, 0.0, left - across / 2, 0.0, down, top - down / 2)


def _nearby(dataset: h5py.Dataset, name: str) -> Any:
    """What a variable refers to by name: in its own group, or in one of those above."""
    group = dataset.parent
    while name:
        if (item := conventions.item_at(group, name)) is not None:
            return item
        if group.name == "/":
            break
        group = group.parent
    return None


def _coordinate(dataset: h5py.Dataset, axis: int) -> tuple[float, float, bool] | None:
    """First value and step of an axis with even coordinates, and whether they are degrees; None
    where it has none."""
    scale = conventions.scales(dataset)[axis]
    if scale is None:
        return None
    if conventions.is_dimension(scale):
        scale = _nearby(dataset, scale.name.rpartition("/")[2])
    if scale is None or conventions.is_dimension(scale) or scale.ndim != 1:
        return None
    if scale.size != dataset.shape[axis] or scale.size < 2:
        return None
    values, said = np.asarray(scale[()], np.float64), conventions.attributes(scale)
    factor = (conventions.numbers(said.get("scalefactor", 1.0))[0],
              (conventions.numbers(said.get("addoffset", 0.0)))[0])
    values = values * factor[0] + factor[1]
    step = (values[-1] - values[0]) / (len(values) - 1)
    even = values[0] + step * np.arange(len(values))
    if not np.isfinite(step) or step == 0 or np.abs(values - even).max() > 0.01 * abs(step):
        return None
    units = str(said.get("units", "")).lower()
    metres = 1000.0 if re.fullmatch(r"km|kilomet(er|re)s?", units) else 1.0
    return values[0] * metres, step * metres, units.startswith("degree")


def _eos_place(dataset: h5py.Dataset, layout: str) -> tuple[str | None, Affine | None]:
    """The grid of HDF-EOS 5: its corners are the outer edges of the first and the last pixel."""
    found = re.search(r"/GRIDS/([^/]+)/", dataset.name)
    if not found:
        return None, None
    text = conventions.eos_structure(dataset.file)
    grids = re.split(r"GROUP=GRID_\d+\s", text)
    block = next((grid for grid in grids if f'GridName="{found.group(1)}"' in grid), "")

    def point(name: str) -> list[float]:
        inside = re.search(rf"{name}=\(([^)]*)\)", block)
        return [float(part) for part in inside.group(1).split(",")] if inside else []

    first, last = point("UpperLeftPointMtrs"), point("LowerRightMtrs")
    if len(first) != 2 or len(last) != 2:
        return None, None
    geographic = "HE5_GCTP_GEO" in block
    if geographic:
        first, last = list(map(_packed_degrees, first)), list(map(_packed_degrees, last))
    (left, top), (right, bottom) = first, last
    rows, columns = (dataset.shape[layout.index(axis)] for axis in "HW")
    crs = None
    group = dataset.parent
    while crs is None and group.name != "/":
        crs, group = crs_of(conventions.attributes(group)), group.parent
    zone = re.search(r"ZoneCode=(-?\d+)", block)
    if crs is None and geographic:
        crs = CRS.from_epsg(4326).to_wkt()
    elif crs is None and zone and "HE5_GCTP_UTM" in block:
        number = int(zone.group(1))
        crs = CRS.from_epsg((32600 if number > 0 else 32700) + abs(number)).to_wkt()
    return crs, ((right - left) / columns, 0.0, left, 0.0, (bottom - top) / rows, top)


def _packed_degrees(value: float) -> float:
    """Degrees of GCTP's DDDMMMSSS.SS."""
    size = abs(value)
    degrees, rest = divmod(size, 1e6)
    minutes, seconds = divmod(rest, 1e3)
    return float(np.copysign(degrees + minutes / 60 + seconds / 3600, value))


def gdal_transform(values: Sequence[float]) -> Affine:
    """The transform of GDAL's six numbers: x0, dx, rotation, y0, rotation, dy."""
    left, a, b, top, d, e = map(float, values)
    return a, b, left, d, e, top


def map_info_transform(fields: Sequence[str]) -> Affine:
    """The transform of ENVI's map info: projection, reference pixel (from 1, at its corner), its
    place, pixel size."""
    x, y, east, north, width, height = (float(part) for part in fields[1:7])
    return width, 0.0, east - (x - 1) * width, 0.0, -height, north + (y - 1) * height


def lonlat_of(file: h5py.File, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Longitude and latitude of the pixels (H, W), NaN where missing: arrays of the image's size,
    in any group."""
    found: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or item.shape != shape or item.dtype.kind != "f":
            return
        last = name.rpartition("/")[2].lower()
        for key, pattern in (("lat", LAT), ("lon", LON)):
            if pattern.search(last) and key not in found:
                said = conventions.attributes(item)
                values = np.asarray(item[()], np.float64)
                fill = conventions.numbers(said.get("fillvalue", ""))
                values[~(np.abs(values) <= 360) if fill is None else values == fill[0]] = np.nan
                found[key] = values

    file.visititems(visit)
    return (found["lon"], found["lat"]) if len(found) == 2 else None


# ------------------------------------------------------------------------------------- finer pixels

def finer_transform(transform: Affine, across: tuple[float, float],
                    down: tuple[float, float]) -> Affine:
    """The transform of pixels of another size: (size, first edge) on each axis, in the pixels of
    `transform`."""
    a, b, c, d, e, f = transform
    (width, left), (height, top) = across, down
    corner = c + a * left + b * top, f + d * left + e * top
    return a * width, b * height, corner[0], d * width, e * height, corner[1]


def finer_points(points: Points, across: tuple[float, float], down: tuple[float, float]) -> Points:
    """The same points in finer pixels; `across` and `down` as for `finer_transform`."""
    (width, left), (height, top) = across, down
    return replace(points, rows=tuple(((row - top) / height, (column - left) / width, *place)
                                      for row, column, *place in points.rows))


def finer_rpcs(rpcs: Any, across: tuple[float, float], down: tuple[float, float]) -> Any:
    """The rational polynomial coefficients of finer pixels, whose lines and samples count from the
    centre of the first."""
    (width, left), (height, top) = across, down
    finer = copy.copy(rpcs)
    finer.line_off = (rpcs.line_off + 0.5 - top) / height - 0.5
    finer.samp_off = (rpcs.samp_off + 0.5 - left) / width - 0.5
    finer.line_scale, finer.samp_scale = rpcs.line_scale / height, rpcs.samp_scale / width
    return finer


def finer_lonlat(lonlat: tuple[np.ndarray, np.ndarray], shape: tuple[int, int],
                 across: tuple[float, float],
                 down: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude at the centres of finer pixels: linear between the given centres, and
    beyond the outer ones.

    Args:
        shape: (H, W) of the finer pixels.
        across, down: as for `finer_transform`.
    """
    (width, left), (height, top) = across, down
    # Finer centres, counted in the centres of the given pixels.
    rows = (np.arange(shape[0]) + 0.5) * height + top - 0.5
    columns = (np.arange(shape[1]) + 0.5) * width + left - 0.5

    def enlarged(values: np.ndarray) -> np.ndarray:
        for axis, at in ((0, rows), (1, columns)):
            before = np.clip(np.floor(at).astype(int), 0, max(values.shape[axis] - 2, 0))
            after = np.minimum(before + 1, values.shape[axis] - 1)
            share = (at - before).reshape((-1, 1) if axis == 0 else (1, -1))
            values = values.take(before, axis) * (1 - share) + values.take(after, axis) * share
        return values

    lon, lat = lonlat
    base = np.nanmin(lon) if np.isfinite(lon).any() else 0.0
    wrapped = lon - 360 * np.round((lon - base) / 360)  # no seam at the date line inside a scene
    fine = enlarged(wrapped)
    return np.where(fine > 180, fine - 360, np.where(fine < -180, fine + 360, fine)), enlarged(lat)
