"""Small files in the layouts of real products; each function writes one and returns its path.

All show the same field: smooth, with a bright rectangle off the centre, so that turned axes are
seen; the pixels of `corner` are missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.transform import from_origin

ROWS, COLUMNS = 24, 28


def netcdf(path: Path | str, mode: str = "r") -> Any:
    """A netCDF file, by the library of its makers; a test skips where that is not installed."""
    return pytest.importorskip("netCDF4").Dataset(path, mode)


def corner() -> np.ndarray:
    """(H, W), True for the missing pixels."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    return rows + columns < 6


def field(wavelengths: Any) -> np.ndarray:
    """Reflectance (B, H, W) in about 0.05 to 0.5."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    plane = 0.5 + 0.2 * np.sin(rows / 4) + 0.3 * columns / COLUMNS
    plane[5:11, 15:24] += 0.4
    spectrum = 0.1 + 0.2 * np.sin(np.asarray(wavelengths, float) / 300) ** 2
    return spectrum[:, None, None] * plane


def physical(scene: Any) -> np.ndarray:
    """The physical values of a scene, (B, H, W), NaN where missing."""
    cube = np.array(scene.cube, np.float64)
    cube[cube == scene.nodata] = np.nan
    gain = 1 if scene.gain is None else np.asarray(scene.gain)[:, None, None]
    return cube * gain + (0 if scene.offset is None else np.asarray(scene.offset)[:, None, None])


def _nc_dimensions(file: Any, **sizes: int) -> None:
    for name, size in sizes.items():
        file.createDimension(name, size)


def _nc(group: Any, name: str, dimensions: tuple[str, ...], values: Any, fill: Any = None,
        **said: Any) -> Any:
    values = np.asarray(values)
    item = group.createVariable(name, values.dtype, dimensions, fill_value=fill)
    item.set_auto_maskandscale(False)
    item[:] = values
    item.setncatts(said)
    return item


EMIT = 381.0 + 25.0 * np.arange(12)


def emit(path: Path) -> Path:
    """Reflectance rows x columns x bands, two bands bad, a lookup table turned by 90 degrees."""
    cube = field(EMIT)
    cube[4:6] = -0.01
    cube[:, corner()] = -9999
    with netcdf(path, "w") as file:
        _nc_dimensions(file, downtrack=ROWS, crosstrack=COLUMNS, bands=12, ortho_y=COLUMNS,
                       ortho_x=ROWS)
        file.geotransform, file.spatial_ref = ([9.0, 0.001, 0.0, 45.0, 0.0, -0.001],
                                               rasterio.crs.CRS.from_epsg(4326).to_wkt())
        axes = ("downtrack", "crosstrack", "bands")
        _nc(file, "reflectance", axes, cube.transpose(1, 2, 0).astype("f4"), np.float32(-9999),
            units="unitless")
        group = file.createGroup("sensor_band_parameters")
        _nc(group, "wavelengths", ("bands",), EMIT.astype("f4"), units="nm")
        _nc(group, "fwhm", ("bands",), np.full(12, 8.5, "f4"), units="nm")
        _nc(group, "good_wavelengths", ("bands",), (~np.isin(np.arange(12), (4, 5))).astype("u1"))
        # Column c of the sensor is row c of the map, row r of the sensor is column r: no pixel in
        # the first cell.
        rows, columns = np.mgrid[:COLUMNS, :ROWS]
        group = file.createGroup("location")
        glt_x, glt_y = rows + 1, columns + 1
        glt_x[0, 0] = glt_y[0, 0] = 0
        _nc(group, "glt_x", ("ortho_y", "ortho_x"), glt_x.astype("i4"), np.int32(0))
        _nc(group, "glt_y", ("ortho_y", "ortho_x"), glt_y.astype("i4"), np.int32(0))
        row, column = np.mgrid[:ROWS, :COLUMNS]
        _nc(group, "lon", axes[:2], 9.0 + 0.001 * (row + 0.5), -9999.0)
        _nc(group, "lat", axes[:2], 45.0 - 0.001 * (column + 0.5), -9999.0)
    return path


AVIRIS = 400.0 + 100.0 * np.arange(8)


def aviris3(path: Path, wkt: bool = True) -> Path:
    """Reflectance bands x rows x columns on CF's UTM grid; one dimension has no variable."""
    cube = field(AVIRIS)
    cube[:, corner()] = -9999
    with netcdf(path, "w") as file:
        _nc_dimensions(file, wavelength=8, northing=ROWS, easting=COLUMNS)
        _nc(file, "northing", ("northing",), 4000000.0 - 5 * (np.arange(ROWS) + 0.5), units="m",
            standard_name="projection_y_coordinate")
        _nc(file, "easting", ("easting",), 300000.0 + 5 * (np.arange(COLUMNS) + 0.5), units="m",
            standard_name="projection_x_coordinate")
        said: dict[str, Any] = {"grid_mapping_name": "transverse_mercator",
                                "longitude_of_central_meridian": -117.0,
                                "latitude_of_projection_origin": 0.0,
                                "scale_factor_at_central_meridian": 0.9996,
                                "false_easting": 500000.0, "false_northing": 0.0,
                                "semi_major_axis": 6378137.0, "inverse_flattening": 298.257223563}
        if wkt:
            said["crs_wkt"] = rasterio.crs.CRS.from_epsg(32611).to_wkt()
        _nc(file, "transverse_mercator", (), np.int32(0), **said)
        group = file.createGroup("reflectance")
        _nc(group, "reflectance", ("wavelength", "northing", "easting"), cube.astype("f4"),
            np.float32(-9999), grid_mapping="transverse_mercator")
        _nc(group, "wavelength", ("wavelength",), AVIRIS.astype("f4"), units="nanometers")
        _nc(group, "fwhm", ("wavelength",), np.full(8, 7.5, "f4"), units="nanometers")
    return path


TANAGER = 376.4 + 90.0 * np.arange(9)


def tanager(path: Path, grid: bool = True) -> Path:
    """Reflectance on a grid of HDF-EOS, or radiance on a swath, described by attributes."""
    cube = field(TANAGER)
    cube[:, corner()] = -9999
    name, kind = ("surface_reflectance", "GRIDS") if grid else ("toa_radiance", "SWATHS")
    with h5py.File(path, "w") as file:
        base = f"HDFEOS/{kind}/HYP"
        item = file.create_dataset(f"{base}/Data Fields/{name}", data=cube.astype("f4"),
                                   chunks=(3, 8, 8))
        item.attrs.update({"wavelengths": TANAGER, "fwhm": np.full(9, 5.5),
                           "_FillValue": np.float32(-9999)})
        for beside in ("beta_cloud_mask", "nodata_pixels", "sun_zenith"):
            file[f"{base}/Data Fields/{beside}"] = np.zeros((ROWS, COLUMNS), "f4")
        last = f"({500000 + 30 * COLUMNS}.0,{4990000 - 30 * ROWS}.0)"
        corners = f"(500000.0,4990000.0)\n\t\tLowerRightMtrs={last}"
        file["HDFEOS INFORMATION/StructMetadata.0"] = np.bytes_(
            'GROUP=GridStructure\n\tGROUP=GRID_1\n\t\tGridName="HYP"\n'
            f"\t\tXDim={COLUMNS}\n\t\tYDim={ROWS}\n\t\tUpperLeftPointMtrs={corners}\n"
            "\t\tProjection=HE5_GCTP_UTM\n\t\tZoneCode=37\n\tEND_GROUP=GRID_1\n"
        )
        if grid:
            item.attrs["good_wavelengths"] = (np.arange(9) != 3).astype("u1")
            file[f"{base}/Data Fields/{name}_uncertainty"] = np.full(cube.shape, 0.01, "f4")
            file[base].attrs["epsg_code"] = np.int64(32637)
        else:
            row, column = np.mgrid[:ROWS, :COLUMNS]
            file[f"{base}/Geolocation Fields/Latitude"] = 45 - 0.001 * row
            file[f"{base}/Geolocation Fields/Longitude"] = 9 + 0.001 * column
    return path


PACE = 350.0 + 12.5 * np.arange(10)


def pace_l2(path: Path) -> Path:
    """Rrs as packed integers, rows x columns x bands."""
    cube = 0.02 * field(PACE)
    stored = np.rint((cube - 0.05) / 2e-6).astype("i2")
    stored[:, corner()] = -32767
    stored[3, 20, 20] = -32768  # outside the valid range
    with netcdf(path, "w") as file:
        _nc_dimensions(file, number_of_lines=ROWS, pixels_per_line=COLUMNS, wavelength_3d=10)
        group = file.createGroup("geophysical_data")
        _nc(group, "Rrs", ("number_of_lines", "pixels_per_line", "wavelength_3d"),
            stored.transpose(1, 2, 0), np.int16(-32767), scale_factor=np.float32(2e-6),
            add_offset=np.float32(0.05), units="sr^-1", valid_min=np.int16(-30000),
            valid_max=np.int16(25000))
        _nc(group, "Rrs_unc", ("number_of_lines", "pixels_per_line", "wavelength_3d"),
            stored.transpose(1, 2, 0) * 0)
        _nc(group, "l2_flags", ("number_of_lines", "pixels_per_line"),
            np.zeros((ROWS, COLUMNS), "i4"))
        group = file.createGroup("sensor_band_parameters")
        _nc(group, "wavelength_3d", ("wavelength_3d",), PACE, units="nm")
        _nc(group, "wavelength", ("wavelength_3d",), np.rint(PACE).astype("i4"))
        row, column = np.mgrid[:ROWS, :COLUMNS]
        group = file.createGroup("navigation_data")
        _nc(group, "latitude", ("number_of_lines", "pixels_per_line"),
            (40 - 0.01 * row).astype("f4"), np.float32(-32767))
        _nc(group, "longitude", ("number_of_lines", "pixels_per_line"),
            (-75 + 0.01 * column).astype("f4"), np.float32(-32767))
    return path


PACE_ARMS = {"blue": np.array([340.0, 450, 560, 605]), "red": np.array([600.0, 700, 860]),
             "SWIR": np.array([940.0, 1250, 1248])}


def pace_l1b(path: Path) -> Path:
    """Three arms, bands x rows x columns."""
    with netcdf(path, "w") as file:
        _nc_dimensions(file, scans=ROWS, pixels=COLUMNS,
                       **{f"{arm}_bands": len(nm) for arm, nm in PACE_ARMS.items()})
        data, bands = (file.createGroup("observation_data"),
                       file.createGroup("sensor_band_parameters"))
        for arm, nm in PACE_ARMS.items():
            axes = (f"{arm}_bands", "scans", "pixels")
            _nc(data, f"rhot_{arm}", axes, field(nm).astype("f4"), np.float32(-32767), units="1")
            _nc(data, f"qual_{arm}", axes, np.zeros((len(nm), ROWS, COLUMNS), "u1"))
            _nc(bands, f"{arm}_wavelength", axes[:1], nm.astype("f4"), np.float32(-32767),
                units="nm")
    return path


PRISMA = {"Vnir": np.array([0.0, 970, 800, 600, 407]),
          "Swir": np.array([2400.0, 1700, 1200, 945, 0])}
PRISMA_NM = np.array([407.0, 600, 800, 945, 970, 1200, 1700, 2400])


def prisma(path: Path, level: str = "L2D") -> Path:
    """Two arms, rows x bands x columns, the longest wavelength first, a dead band in each."""
    with h5py.File(path, "w") as file:
        swath = f"HDFEOS/SWATHS/PRS_{level}_HCO"
        for arm, nm in PRISMA.items():
            cube = field(nm)
            high = {"Vnir": 1.2, "Swir": 0.9}[arm]
            stored = np.rint(cube / high * 65535 if level == "L2D" else cube * 5000)
            stored[nm == 0] = 0
            if level == "L2D":
                stored[:, corner()] = 0
                file.attrs[f"L2Scale{arm}Min"], file.attrs[f"L2Scale{arm}Max"] = (np.float32(0),
                                                                                  np.float32(high))
            else:
                file.attrs[f"ScaleFactor_{arm}"], file.attrs[f"Offset_{arm}"] = (np.float32(100),
                                                                                 np.float32(0.5))
            file[f"{swath}/Data Fields/{arm.upper()}_Cube"] = stored.astype("u2").transpose(1, 0, 2)
            file[f"{swath}/Data Fields/{arm.upper()}_PIXEL_SAT_ERR_MATRIX"] = np.zeros(
                (ROWS, 5, COLUMNS), "u1")
            file.attrs[f"List_Cw_{arm}"] = nm.astype("f4")
            file.attrs[f"List_Fwhm_{arm}"] = np.where(nm > 0, 11, 0).astype("f4")
        file[f"HDFEOS/SWATHS/PRS_{level}_PCO/Data Fields/Cube"] = np.ones((6 * ROWS, 6 * COLUMNS),
                                                                          "u2")
        row, column = np.mgrid[:ROWS, :COLUMNS]
        file[f"{swath}/Geolocation Fields/Latitude"] = (45 - 0.001 * row).astype("f4")
        file[f"{swath}/Geolocation Fields/Longitude"] = (9 + 0.001 * column).astype("f4")
        if level == "L2D":
            ends = {"ULcorner_easting": 500025.0, "ULcorner_northing": 5000025.0,
                    "LRcorner_easting": 500025.0 + 30 * (COLUMNS - 1),
                    "LRcorner_northing": 5000025.0 - 30 * (ROWS - 1)}
            for name, value in ends.items():
                file.attrs[f"Product_{name}"] = np.float32(value)
            file.attrs["Epsg_Code"] = np.int32(32632)
    return path


DLR = np.array([420.0, 550, 700, 1400, 2200])


def _tif(path: Path, cube: np.ndarray, nodata: float | None = None) -> None:
    with rasterio.open(path, "w", driver="GTiff", count=len(cube), height=ROWS, width=COLUMNS,
                       dtype=cube.dtype, nodata=nodata, crs="EPSG:32633",
                       transform=from_origin(364095, 5809965, 30, 30)) as file:
        file.write(cube)


def _image(path: Path, cube: np.ndarray) -> None:
    """The image of a product of DLR in the container that its suffix names."""
    if path.suffix == ".TIF":
        return _tif(path, cube, -32768)
    if path.suffix == ".JP2":
        _tif(path.with_suffix(".TIF"), cube)
        rasterio.shutil.copy(path.with_suffix(".TIF"), path, driver="JP2OpenJPEG", QUALITY="100",
                             REVERSIBLE="YES")
        return path.with_suffix(".TIF").unlink()
    axes = {".BSQ": "BHW", ".BIL": "HBW", ".BIP": "HWB"}[path.suffix]
    cube.transpose(["BHW".index(axis) for axis in axes]).astype("<i2").tofile(path)
    path.with_suffix(".HDR").write_text(
        f"ENVI\nsamples = {COLUMNS}\nlines = {ROWS}\nbands = {len(cube)}\nheader offset = 0\n"
        f"file type = ENVI Standard\ndata type = 2\ninterleave = {path.suffix[1:].lower()}\n"
        "byte order = 0\nmap info = {UTM, 1, 1, 364095.0, 5809965.0, 30, 30, 33, North, WGS-84, "
        "units=Meters}\n")
    return None


def dlr(folder: Path, product: str, xml: bool = True, container: str = "TIF") -> Path:
    """A folder of EnMAP or DESIS; one band of EnMAP is all no-data."""
    folder.mkdir()
    stem = {"enmap": "ENMAP01-____L2A-DT0000001867_20220724T104526Z_008_V010302_20230628T165614Z",
            "desis": "DESIS-HSI-L2A-DT1203190212_025-20191203T021128-V0210"}[product]
    cube = np.rint(field(DLR) * 10000).astype("i2")
    cube[:, corner()] = -32768
    if product == "enmap":
        cube[3] = -32768
    _image(folder / f"{stem}-SPECTRAL_IMAGE.{container}", cube)
    _tif(folder / f"{stem}-QL_PIXELMASK.TIF", np.zeros((5, ROWS, COLUMNS), "u1"))
    _tif(folder / f"{stem}-QL_VNIR.TIF", np.ones((3, ROWS, COLUMNS), "u1"))
    _tif(folder / f"{stem}-QL_QUALITY_CLASSES.TIF", np.ones((1, ROWS, COLUMNS), "u1"))
    width, gain = {"enmap": ("FWHMOfBand", "GainOfBand"),
                   "desis": ("wavelengthWidthOfBand", "gainOfBand")}[product]
    facts = f"<{width}>6.5</{width}><{gain}>0.0001</{gain}>"
    bands = ""
    for i, nm in enumerate(DLR, 1):
        bands += (f'<bandID number="{i}"><wavelengthCenterOfBand>{nm}</wavelengthCenterOfBand>'
                  f"{facts}</bandID>")
    if xml:
        (folder / f"{stem}-METADATA.XML").write_text(
            f'<?xml version="1.0"?><level_X><specific><bandCharacterisation>{bands}'
            "</bandCharacterisation></specific></level_X>"
        )
    if product == "desis":
        (folder / f"{stem}-SPECTRAL_IMAGE.hdr").write_text(
            f"ENVI\nsamples = {COLUMNS}\nlines = {ROWS}\nbands = 5\nheader offset = 0\n"
            "file type = TIFF\ndata type = 2\n"
            "interleave = bsq\nbyte order = 0\n"
        )
    return folder


HYPSO = 400.0 + 50.0 * np.arange(9)


def hypso(path: Path) -> Path:
    """Radiance rows x columns x bands; the wavelengths are an attribute."""
    with netcdf(path, "w") as file:
        _nc_dimensions(file, lines=ROWS, samples=COLUMNS, bands=9)
        group = file.createGroup("products")
        _nc(group, "Lt", ("lines", "samples", "bands"), 50 * field(HYPSO).transpose(1, 2, 0),
            units="W/m2/sr/um", wavelengths=HYPSO)
        group = file.createGroup("navigation")
        _nc(group, "latitude", ("lines", "samples"), np.full((ROWS, COLUMNS), 60.0))
        _nc(group, "longitude", ("lines", "samples"), np.full((ROWS, COLUMNS), 10.0))
    return path


NEON = 380.0 + 300.0 * np.arange(7)


def neon(path: Path) -> Path:
    """Reflectance as integers, rows x columns x bands; wavelengths and place in sister groups."""
    stored = np.rint(field(NEON) * 10000).astype("i2")
    stored[:, corner()] = -9999
    with h5py.File(path, "w") as file:
        item = file.create_dataset("SERC/Reflectance/Reflectance_Data",
                                   data=stored.transpose(1, 2, 0))
        item.attrs.update({"Data_Ignore_Value": -9999.0, "Scale_Factor": 10000.0,
                           "Dimension_Labels": "Line, Sample, Wavelength"})
        group = file["SERC/Reflectance"]
        group.attrs["Band_Window_1_Nanometers"] = [1200, 1300]
        group["Metadata/Spectral_Data/Wavelength"], group["Metadata/Spectral_Data/FWHM"] = (
            NEON, np.full(7, 5.8))
        group["Metadata/Spectral_Data/Wavelength"].attrs["Units"] = "nanometers"
        place = group.create_group("Metadata/Coordinate_System")
        place["Map_Info"] = (
            "UTM,  1.000,  1.000,   364000.00,   4305000.0,  1.0000000,  1.0000000, 18, North, "
            "WGS-84, units=Meters"
        )
        place["EPSG Code"] = "32618"
        group["Metadata/Ancillary_Imagery/Haze_Cloud_Water_Map"] = np.zeros((ROWS, COLUMNS), "u1")
    return path


def neon_radiance(path: Path) -> Path:
    """Radiance as two arrays of whole numbers: before the point, and behind it times 50000."""
    cube = 30 * field(NEON)
    whole = np.floor(cube)
    behind = np.rint((cube - whole) * 50000)
    whole[:, corner()] = -9999
    with h5py.File(neon(path), "r+") as file:
        file.move("SERC/Reflectance", "SERC/Radiance")
        group = file["SERC/Radiance"]
        del group["Reflectance_Data"]
        for name, values, kind in (("Integer", whole, "i2"), ("Decimal", behind, "u2")):
            group[f"Radiance{name}Part"] = values.transpose(1, 2, 0).astype(kind)
        group["RadianceIntegerPart"].attrs["Data_Ignore_Value"] = -9999.0
    return path


HYPERION = (7, 8, 57, 58, 76, 77, 150, 224, 225)


def hyperion(folder: Path) -> Path:
    """A GeoTIFF for each of some bands; those that are not calibrated hold zeros."""
    folder.mkdir()
    for band in HYPERION:
        good = 8 <= band <= 57 or 77 <= band <= 224
        plane = (np.rint(field([400 + band])[0] * 8000).astype("i2") if good
                 else np.zeros((ROWS, COLUMNS), "i2"))
        plane[corner()] = 0
        _tif(folder / f"EO1H1230332013164110KF_B{band:03d}_L1T.TIF", plane[None])
    (folder / "EO1H1230332013164110KF_MTL_L1T.TXT").write_text("GROUP = L1_METADATA_FILE\n")
    return folder


CAVE = np.linspace(400, 700, 31)


def cave(folder: Path, colour: bool = False, light: float = 1.0) -> Path:
    """A folder in a folder of 31 PNGs: grey of 16 bits, or in colours of 8 bits."""
    import cv2

    inside = folder / folder.name
    inside.mkdir(parents=True)
    for i, plane in enumerate(light * field(CAVE)):
        grey = np.rint(plane * (255 if colour else 65535)).astype("u1" if colour else "u2")
        cv2.imwrite(str(inside / f"{folder.name}_{i + 1:02d}.png"),
                    np.dstack([grey] * 3 + [np.full_like(grey, 255)]) if colour else grey)
    cv2.imwrite(str(inside / "picture_RGB.bmp"), np.zeros((ROWS, COLUMNS, 3), "u1"))
    return folder


def pages(path: Path) -> Path:
    """A TIFF of one page a band."""
    import cv2

    cv2.imwritemulti(str(path), [np.rint(plane * 60000).astype("u2") for plane in field(CAVE)])
    return path
