"""netCDF-4 files in the conventions of CF, written; `hdf5` reads them.

The cube is a variable (band, y, x) with a coordinate for each dimension, a grid mapping where the
scene has a map grid, and two-dimensional longitudes and latitudes where it has none and the
sensor's are known.
"""
from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from rasterio.crs import CRS

from utility.cubes.axes import stored_shape
from utility.cubes.companions import matlab_name
from utility.cubes.cube import CubeWriter, Scene, Target
from utility.cubes.formats.hdf5 import created, early

DIMENSIONS = {"B": "band", "H": "y", "W": "x"}
MAPPING = "crs"


def create_netcdf(target: Target) -> AbstractContextManager[CubeWriter]:
    # GDAL takes the last two dimensions for rows and columns, whatever their names.
    return created(replace(target, layout="BHW"), matlab_name(target.like), _prepare)


def _prepare(path: Path, target: Target, name: str) -> None:
    """Write a file that lacks only the values of its cube."""
    like, shape = target.like, dict(zip("BHW", target.shape, strict=True))
    with h5py.File(path, "w", track_order=True) as file:
        file.attrs["Conventions"] = np.bytes_("CF-1.8")
        for key, text in like.metadata.get("provenance", {}).items():
            file.attrs["title" if key == "description" else key] = text
        coordinates = _coordinates(like, target.shape)
        for axis, dimension in DIMENSIONS.items():
            index = np.arange(shape[axis], dtype=np.int32), {"long_name": f"{dimension} index"}
            values, said = coordinates.get(axis, index)
            _variable(file, dimension, values, said).make_scale(dimension)
        early(file, name, stored_shape(target.layout, target.shape), target.dtype, like.nodata)
        cube = file[name]
        for place, axis in enumerate(target.layout):
            cube.dims[place].attach_scale(file[DIMENSIONS[axis]])
        cube.attrs.update(_about(like, target.dtype))
        cube.attrs["layout"] = target.layout
        if like.transform is not None:
            cube.attrs["grid_mapping"] = np.bytes_(MAPPING)
            item = file.create_dataset(MAPPING, data=np.int32(0))
            item.attrs.update(_grid_mapping(like))
        by_band = like.gain is not None and not _shared_gain(like)
        beside = [("wavelength", "B", like.wavelengths,
                   {"units": "nm", "standard_name": "radiation_wavelength"}),
                  ("fwhm", "B", like.fwhm, {"units": "nm"}),
                  ("good_wavelengths", "B", like.good, {"long_name": "1 is good"}),
                  ("band_gain", "B", like.gain if by_band else None, {}),
                  ("band_offset", "B", _offsets(like) if by_band else None, {})]
        if like.lonlat is not None:
            lon, lat = like.lonlat
            beside += [("longitude", "HW", lon,
                        {"units": "degrees_east", "standard_name": "longitude"}),
                       ("latitude", "HW", lat,
                        {"units": "degrees_north", "standard_name": "latitude"})]
        for beside_name, axes, values, said in beside:
            if values is not None:
                values = np.asarray(values)
                item = _variable(file, beside_name, values.astype(np.uint8) if values.dtype == bool
                                 else values, said)
                for place, axis in enumerate(axes):
                    item.dims[place].attach_scale(file[DIMENSIONS[axis]])
        aside = [one for one, _, values, _ in beside if values is not None
                 and one in ("wavelength", "longitude", "latitude")]
        if aside:
            cube.attrs["coordinates"] = np.bytes_(" ".join(aside))


def _variable(file: h5py.File, name: str, values: np.ndarray, said: dict[str, str]) -> h5py.Dataset:
    item = file.create_dataset(name, data=values)
    item.attrs.update({key: np.bytes_(text) for key, text in said.items()})
    return item


def _about(like: Scene, dtype: np.dtype) -> dict[str, Any]:
    """The attributes of the cube: fill, scale and offset where all bands share them, units, names,
    range."""
    said: dict[str, Any] = {}
    if like.nodata is not None:
        said["_FillValue"] = np.array([like.nodata], dtype)
    if like.gain is not None and _shared_gain(like):
        said |= {"scale_factor": np.array([like.gain[0]]),
                 "add_offset": np.array([_offsets(like)[0]])}
    if like.units and (like.gain is None or _shared_gain(like)):  # of physical values
        said["units"] = np.bytes_(like.units)
    if like.band_names:
        said["band_names"] = "\n".join(like.band_names)
    if like.normalised:
        said["normalised"] = 1.0
    return said


def _shared_gain(like: Scene) -> bool:
    """Whether all bands have one gain and one offset, as CF's attributes of a variable say it."""
    return len({*zip(like.gain, _offsets(like), strict=True)}) == 1


def _offsets(like: Scene) -> np.ndarray:
    return np.zeros(len(like.gain)) if like.offset is None else np.asarray(like.offset)


def _coordinates(like: Scene,
                 shape: tuple[int, int, int]) -> dict[str, tuple[np.ndarray, dict[str, str]]]:
    """Coordinates of the centres of rows and columns of a grid that is not turned."""
    if like.transform is None or like.transform[1] or like.transform[3]:
        return {}
    a, _, c, _, e, f = like.transform
    geographic = bool(like.crs) and CRS.from_wkt(like.crs).is_geographic
    names = ("projection_y_coordinate", "projection_x_coordinate")
    names = ("latitude", "longitude") if geographic else names
    units = ("degrees_north", "degrees_east") if geographic else ("m", "m")
    centres = f + e * (np.arange(shape[1]) + 0.5), c + a * (np.arange(shape[2]) + 0.5)
    found = {}
    for axis, values, name, unit in zip("HW", centres, names, units, strict=True):
        said = {"standard_name": name, "units": unit} if like.crs else {"long_name": name}
        found[axis] = values, said
    return found


def _grid_mapping(like: Scene) -> dict[str, Any]:
    """The CRS as WKT, which GDAL, xarray and QGIS read, and GDAL's transform."""
    a, b, c, d, e, f = like.transform
    six = " ".join(repr(float(v)) for v in (c, a, b, f, d, e))
    said: dict[str, Any] = {"GeoTransform": np.bytes_(six)}
    if like.crs:
        crs = CRS.from_wkt(like.crs)
        said |= {"crs_wkt": np.bytes_(crs.to_wkt()), "spatial_ref": np.bytes_(crs.to_wkt()),
                 "grid_mapping_name": np.bytes_("latitude_longitude" if crs.is_geographic
                                                else _mapping_name(crs))}
    return said


def _mapping_name(crs: CRS) -> str:
    names = {"utm": "transverse_mercator", "tmerc": "transverse_mercator",
             "laea": "lambert_azimuthal_equal_area", "lcc": "lambert_conformal_conic",
             "aea": "albers_conical_equal_area", "stere": "polar_stereographic", "merc": "mercator",
             "sinu": "sinusoidal"}
    return names.get(str(crs.to_dict().get("proj", "")), "unknown")
