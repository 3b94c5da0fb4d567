"""What a result carries from its input, whatever their containers, in other libraries' eyes."""

from __future__ import annotations

import json
from itertools import product as pairs
from pathlib import Path

import h5py
import numpy as np
import products as made
import pytest
import rasterio
import rasterio.shutil
import scipy.io
import spectral.io.envi as envi
from products import COLUMNS, ROWS, corner, netcdf, physical
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

import hsi_test
from utility.cubes.cube import Scene
from utility.cubes.ortho import Ground, Lookup
from utility.scenes import open_scene, read_scene, write_scene
from utility.superres.place import scaled
from utility.system.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
SUFFIXES = (".tif", ".hdr", ".nc", ".h5", ".mat", ".npz")
NM = np.array([450.5, 550.25, 700.125, 900.0])
UTM = rasterio.crs.CRS.from_epsg(32633).to_wkt()


def scene_of(**facts: object) -> Scene:
    cube = np.rint(made.field(NM) * 10000).astype("i2")
    cube[:, corner()] = -9999
    usual = {"wavelengths": NM, "fwhm": np.array([9.5, 9.75, 10, 12.25]),
             "good": np.array([1, 1, 0, 1], bool), "nodata": -9999, "gain": np.full(4, 1e-4),
             "offset": np.full(4, 0.01), "band_names": ["blue", "green, dark", "red", "nir"],
             "crs": UTM, "transform": (30.0, 0.0, 5e5, 0.0, -30.0, 5e6), "key": "cube"}
    return Scene(cube, "a", **usual | facts)


def enlarge(source: str | Path, target: str | Path, *options: str) -> None:
    hsi_test.main(["--input", str(source), "--output", str(target), "--method", "interpolation",
                   "--scale", "2", "--quiet", "--force", *options])


@pytest.mark.parametrize(("first", "second"), pairs(SUFFIXES, repeat=2))
def test_the_meaning_of_values_and_all_facts_survive_every_pair_of_containers(first: str,
                                                                              second: str) -> None:
    source = scene_of()
    write_scene(f"a{first}", source)
    write_scene(f"b{second}", read_scene(f"a{first}"))
    again = read_scene(f"b{second}")
    np.testing.assert_allclose(physical(again), physical(source), rtol=1e-6)
    np.testing.assert_allclose(again.wavelengths, NM, rtol=1e-9)
    np.testing.assert_allclose(again.fwhm, source.fwhm, rtol=1e-9)
    assert again.good.tolist() == source.good.tolist()
    assert again.transform == pytest.approx(source.transform)
    assert rasterio.crs.CRS.from_wkt(again.crs).to_epsg() == 32633
    if ".nc" not in (first, second):
        comma = ";" if ".hdr" in (first, second) else ","
        assert again.band_names == ["blue", f"green{comma} dark", "red", "nir"]


def by_another_reader(path: str) -> dict[str, object]:
    """What a library that is not this project finds in a result: stored values (B, H, W), the value
    of missing pixels, wavelengths in nm, GDAL's six numbers of the grid, EPSG code."""
    if path.endswith((".tif", ".hdr", ".nc")):
        name = {"tif": path, "hdr": path.replace(".hdr", ".img"), "nc": f"netcdf:{path}:cube"}
        with rasterio.open(name[path.rpartition(".")[2]]) as file:
            seen = {"cube": file.read(), "nodata": file.nodata, "epsg": file.crs.to_epsg(),
                    "grid": file.transform.to_gdal()}
            nm = [file.tags(i).get("wavelength") for i in file.indexes]
        if path.endswith(".hdr"):
            image = envi.open(path)
            nm = image.bands.centers
            np.testing.assert_array_equal(np.moveaxis(image.asarray(), 2, 0), seen["cube"])
        if path.endswith(".nc"):
            with netcdf(path) as file:
                nm = file["wavelength"][:]
        return seen | {"nm": np.asarray(nm, float)}
    if path.endswith(".h5"):
        with h5py.File(path) as file:
            said = {name: item[()] for name, item in file.items()} | dict(file["cube"].attrs)
    elif path.endswith(".mat"):
        said = {name: value for name, value in scipy.io.loadmat(path).items()
                if isinstance(value, np.ndarray)}
        for name, value in said.items():
            if value.dtype.kind == "U" and value.size == 1:
                said[name] = value.item()
    else:
        said = dict(np.load(path))
    layout = str(said["layout"])
    cube = said["cube"].transpose([layout.index(axis) for axis in "BHW"])
    return {"cube": cube, "nodata": float(np.squeeze(said["nodata"])),
            "nm": np.ravel(said["wavelengths"]), "grid": tuple(np.ravel(said["geotransform"])),
            "epsg": rasterio.crs.CRS.from_wkt(str(said["crs_wkt"])).to_epsg()}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_container_says_place_wavelengths_and_missing_pixels_to_other_readers(
    suffix: str
) -> None:
    write_scene("a.tif", scene_of(gain=None, offset=None))
    enlarge("a.tif", f"b{suffix}")
    seen = by_another_reader(f"b{suffix}")
    np.testing.assert_array_equal(seen["cube"], read_scene(f"b{suffix}").cube)
    assert seen["nodata"] == -9999 and seen["epsg"] == 32633
    np.testing.assert_array_equal(np.all(seen["cube"] == -9999, axis=0),
                                  corner().repeat(2, 0).repeat(2, 1))
    np.testing.assert_allclose(seen["nm"], NM, rtol=1e-9)
    np.testing.assert_allclose(seen["grid"], (5e5, 15, 0, 5e6, 0, -15), atol=1e-6)


def test_npy_has_its_values_and_says_that_it_has_nothing_else() -> None:
    write_scene("a.tif", scene_of())
    enlarge("a.tif", "b.npy")
    enlarge("a.tif", "b.tif")
    with rasterio.open("b.tif") as file:
        np.testing.assert_array_equal(np.load("b.npy"), file.read())


@pytest.mark.parametrize("suffix", [".tif", ".hdr"])
def test_gdal_gives_the_same_physical_values_for_input_and_result(suffix: str) -> None:
    for first in (".tif", ".hdr"):
        write_scene(f"a{first}", scene_of())
        enlarge(f"a{first}", f"b{suffix}")
        with rasterio.open(f"b{suffix}".replace(".hdr", ".img")) as result:
            values = result.read(1, masked=True) * result.scales[0] + result.offsets[0]
        before = physical(scene_of())[0]
        assert abs(values.mean() - np.nanmean(before)) < 0.002


@pytest.mark.parametrize("suffix", [".tif", ".hdr", ".nc", ".h5"])
def test_values_in_unit_range_have_no_gain(suffix: str) -> None:
    for first in (".tif", ".hdr"):
        write_scene(f"a{first}", scene_of())
        enlarge(f"a{first}", f"b{suffix}", "--unit-range")
        result = read_scene(f"b{suffix}")
        assert result.gain is None and result.offset is None
        assert "reflectance scale factor" not in result.metadata.get("header", {})
        assert np.nanmax(physical(result)) < 1.2


def test_a_reflectance_scale_factor_is_a_gain_elsewhere_and_stays_itself_in_envi() -> None:
    write_scene("a.hdr", scene_of(gain=None, offset=None))
    Path("a.hdr").write_text(Path("a.hdr").read_text() + "reflectance scale factor = 10000\n")
    enlarge("a.hdr", "b.tif")
    enlarge("a.hdr", "b.hdr")
    with rasterio.open("b.tif") as result:
        assert result.scales == pytest.approx((1e-4,) * 4)
    header = envi.read_envi_header("b.hdr")
    assert header["reflectance scale factor"] == "10000" and "data gain values" not in header
    # Spectral Python divides by it as it loads, no-data too: the same numbers for both files.
    before, after = (np.asarray(envi.open(name).load()) for name in ("a.hdr", "b.hdr"))
    assert before.min() == after.min() == np.float32(-0.9999)
    assert after.max() == pytest.approx(np.max(open_scene("b.hdr").cube) / 1e4)


# ------------------------------------------------------------------------------------------- netCDF


def test_netcdf_is_read_by_the_netcdf_library_and_by_gdal_as_cf_says() -> None:
    write_scene("a.tif", scene_of())
    enlarge("a.tif", "b.nc")
    with netcdf("b.nc") as file:
        cube = file["cube"]
        assert (cube.dimensions == ("band", "y", "x") and cube.grid_mapping == "crs"
                and file.Conventions == "CF-1.8")
        values = cube[:]  # unpacked and masked by the library
        assert values.mask[:, corner().repeat(2, 0).repeat(2, 1)].all()
        assert abs(values[0].mean() - np.nanmean(physical(scene_of())[0])) < 0.002
        np.testing.assert_allclose(file["wavelength"][:], NM)
        assert file["wavelength"].units == "nm" and "wavelength" in cube.coordinates
        np.testing.assert_allclose(file["x"][:2], [5e5 + 7.5, 5e5 + 22.5])
        np.testing.assert_allclose(file["y"][:2], [5e6 - 7.5, 5e6 - 22.5])
        assert "computed" in file.title.lower() or file.title
    with rasterio.open("netcdf:b.nc:cube") as file:
        assert file.crs.to_epsg() == 32633
        assert tuple(file.transform)[:6] == pytest.approx((15, 0, 5e5, 0, -15, 5e6))
        assert file.nodata == -9999 and file.count == 4


def test_what_lies_beside_a_result_is_not_replaced_and_is_refused_before_the_work(
    tmp_path: Path,
) -> None:
    Path("b_lonlat.tif").write_text("mine")
    with pytest.raises(UserError, match=r"b_lonlat\.tif exists already"):
        hsi_test.main(["--input", str(made.emit(tmp_path / "E.nc")), "--output", "b.tif", "--quiet",
                       "--method", "interpolation", "--scale", "2"])
    assert Path("b_lonlat.tif").read_text() == "mine" and not Path("b.tif").exists()


def test_netcdf_of_a_swath_has_longitudes_and_latitudes_of_its_finer_pixels(tmp_path: Path) -> None:
    enlarge(made.emit(tmp_path / "EMIT.nc"), "b.nc")
    with netcdf("b.nc") as file:
        assert {"longitude", "latitude"} <= set(file["reflectance"].coordinates.split())
        rows = np.arange(2 * ROWS) + 0.5
        np.testing.assert_allclose(file["longitude"][:, 0], 9 + 0.001 * rows / 2, atol=1e-9)
        assert file["longitude"].units == "degrees_east"
        assert file["good_wavelengths"][:].tolist() == [1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("suffix", [".tif", ".hdr"])
def test_a_raster_of_a_swath_has_longitudes_and_latitudes_beside_it(
    tmp_path: Path, suffix: str
) -> None:
    enlarge(made.emit(tmp_path / "EMIT.nc"), f"b{suffix}")
    beside = read_scene(f"b_lonlat{suffix}")
    assert beside.band_names == ["longitude", "latitude"] and beside.cube.shape == (2, 2 * ROWS,
                                                                                    2 * COLUMNS)
    np.testing.assert_allclose(beside.cube[1, 0], 45 - 0.001 * (np.arange(2 * COLUMNS) + 0.5) / 2,
                               atol=1e-9)


# ------------------------------------------------------------------------------------------- places


def test_control_points_and_camera_coefficients_are_carried_in_finer_pixels(
    capsys: pytest.CaptureFixture[str]) -> None:
    cube = np.asarray(scene_of().cube)
    points = [GroundControlPoint(0, 0, 11.0, 48.0), GroundControlPoint(ROWS, COLUMNS, 11.1, 47.9),
              GroundControlPoint(6.5, 3.25, 11.02, 47.97)]
    ones = [1.0] + [0.0] * 19
    rpcs = RPC(0.0, 1.0, 48.0, 0.1, ones, ones, 11.5, 12.0, 11.0, 0.1, ones, ones, 13.5, 14.0)
    with rasterio.open("a.tif", "w", driver="GTiff", count=4, height=ROWS, width=COLUMNS,
                       dtype="int16") as file:
        file.write(cube)
        file.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
        file.rpcs = rpcs
    hsi_test.main(["--input", "a.tif", "--output", "b.tif", "--method", "interpolation", "--scale",
                   "4", "--quiet"])
    with rasterio.open("b.tif") as result:
        found, crs = result.gcps
        assert crs.to_epsg() == 4326
        assert [(p.row, p.col, p.x, p.y) for p in found] == [
            (4 * p.row, 4 * p.col, p.x, p.y) for p in points]
        # Lines count from the centre of the first one: the middle of the input stays in the middle.
        assert (result.rpcs.line_off, result.rpcs.line_scale) == pytest.approx((4 * 12 - 0.5, 48))
        assert (result.rpcs.samp_off, result.rpcs.samp_scale) == pytest.approx((4 * 14 - 0.5, 56))
    capsys.readouterr()
    hsi_test.main(["--input", "a.tif", "--output", "b.hdr", "--method", "interpolation", "--scale",
                   "4"])
    assert "cannot hold ground control points, RPCs: they are gone" in capsys.readouterr().err


def test_npy_says_what_it_cannot_hold(capsys: pytest.CaptureFixture[str]) -> None:
    write_scene("a.tif", scene_of())
    hsi_test.main(["--input", "a.tif", "--output", "b.npy", "--method", "interpolation", "--scale",
                   "2"])
    assert (
        "b.npy cannot hold wavelengths, band names, the no-data value, CRS and transform, "
        "gain and offset: they are gone "
        "from the result; .npz keeps them" in capsys.readouterr().err
    )


def test_latitude_and_longitude_come_back_from_envi_as_they_went() -> None:
    write_scene("a.hdr",
                scene_of(crs=rasterio.crs.CRS.from_epsg(4326).to_wkt(),
                         transform=(0.001, 0, 11, 0, -0.001, 48)))
    with rasterio.open("a.img") as file:
        assert file.crs.to_epsg() == 4326


# -------------------------------------------------------------------------------------------- ortho


def test_ortho_puts_each_pixel_into_its_cell_and_makes_none_up(tmp_path: Path) -> None:
    source = made.emit(tmp_path / "EMIT.nc")
    enlarge(source, "sensor.npz")
    enlarge(source, "map.tif", "--ortho")
    sensor = read_scene("sensor.npz").cube
    with rasterio.open("map.tif") as result:
        assert result.crs.to_epsg() == 4326 and result.shape == (2 * COLUMNS, 2 * ROWS)
        assert tuple(result.transform)[:6] == pytest.approx((0.0005, 0, 9, 0, -0.0005, 45))
        on_map = result.read()
    assert np.all(on_map[:, :2, :2] == -9999)  # the cell without a pixel
    expected = sensor.transpose(0, 2, 1).copy()  # the sensor's rows are the map's columns
    expected[:, :2, :2] = -9999
    np.testing.assert_array_equal(on_map, expected)


def test_the_size_that_is_told_of_a_result_on_a_map_grid_is_the_file_s(tmp_path, capsys) -> None:
    enlarge(made.emit(tmp_path / "EMIT.nc"), "map.tif", "--ortho", "--report")
    with rasterio.open("map.tif") as result:
        size = [result.count, *result.shape]
    assert size[1:] == [2 * COLUMNS, 2 * ROWS]
    assert json.loads(Path("map_report/summary.json").read_text())["shape"] == size
    hsi_test.main(["--input", "EMIT.nc", "--output", "map.tif", "--method", "interpolation",
                   "--scale", "2", "--force", "--ortho"])
    assert f"map.tif: {' x '.join(map(str, size))} float32" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".npy"])
def test_a_result_that_has_its_input_s_place_is_said_to_cover_the_same_ground(
        suffix: str, capsys) -> None:
    write_scene("a.tif", scene_of(wavelengths=None))
    hsi_test.main(["--input", "a.tif", "--output", f"b{suffix}", "--method", "interpolation",
                   "--scale", "2"])
    said = "the result covers the same ground as the input" in capsys.readouterr().out
    assert said == (suffix != ".npy")


@pytest.mark.parametrize("flip", [1, -1])
def test_finer_cells_take_the_finer_pixel_nearest_to_them(flip: int) -> None:
    rows, columns = np.mgrid[:6, :7].astype(np.int32)
    row, column = np.mgrid[:6, :7]
    lonlat = (column + 0.5, -flip * (row + 0.5))  # flip: the first line is in the south
    lookup = Lookup(rows[::flip], columns, (1, 0, 0, 0, -1, 0 if flip > 0 else 6), None)
    assert lookup.fits(Ground.of(lonlat))
    fine = lookup.finer(3, Ground.of(lonlat))
    np.testing.assert_array_equal(fine.rows, np.arange(18)[::flip][:, None].repeat(21, 1))
    np.testing.assert_array_equal(fine.columns, np.arange(21)[None].repeat(18, 0))


def test_ortho_is_refused_where_there_is_no_lookup_table() -> None:
    write_scene("a.tif", scene_of())
    with pytest.raises(UserError, match=r"--ortho .* has none"):
        enlarge("a.tif", "b.tif", "--ortho")
    assert not Path("b.tif").exists()


# --------------------------------------------------------------------------------------------- ENVI


def header(old: str = "", new: str = "", more: str = "") -> Path:
    write_scene("a.hdr", scene_of(gain=None, offset=None, band_names=["a", "b", "c", "d"]))
    text = Path("a.hdr").read_text()
    assert old in text
    Path("a.hdr").write_text(text.replace(old, new) + more)
    return Path("a.hdr")


@pytest.mark.parametrize(("old", "new", "fact", "note"),
                         [("900 }", "900 , }", "wavelengths", None),
                          ("450.5 ,", "450.5 nm ,", "wavelengths", None),
                          ("450.5 ,", "", None, "'wavelength' lists 3 values"),
                          ("450.5 ,", "blue ,", None, "'wavelength' lists something other"),
                          ("{ a , b , c , d }", '{ "a, x" , b , c , d }', "band_names", None),
                          ("byte order = 0\n", "", "wavelengths", "byte order"),
                          ("data ignore value = -9999", "data ignore value = none", "wavelengths",
                           "'data ignore value'"),
                          ("{ a , b , c , d }", "{ a , b , c }", None,
                           "'band names' lists 3 values"),
                          ("ENVI\n", "\ufeffENVI\n", "wavelengths", None)])
def test_a_header_with_an_odd_optional_field_is_read_and_the_field_is_told(
    old: str, new: str, fact: str | None, note: str | None
) -> None:
    scene = read_scene(header(old, new))
    np.testing.assert_array_equal(scene.cube, scene_of().cube)
    if fact:
        assert getattr(scene, fact) is not None
    assert (note is None and not scene.notes) or note in scene.notes[0]
    if fact == "band_names":
        assert scene.band_names[0] == "a, x"


def test_a_unit_of_wavelengths_goes_with_a_list_that_does_not_fit(tmp_path: Path) -> None:
    write_scene("a.hdr", scene_of(fwhm=None))
    text = Path("a.hdr").read_text()
    Path("a.hdr").write_text(text.replace("450.5 ,", ""))
    assert read_scene("a.hdr").notes[0] == ("'wavelength' lists 3 values for 4 bands, and is left "
                                            "out; give one number for each band")
    enlarge("a.hdr", "b.hdr")
    assert "wavelength units" in text and "wavelength" not in Path("b.hdr").read_text()


@pytest.mark.parametrize("suffix", [".tif", ".hdr"])
def test_a_wavelength_in_float32_is_written_in_the_fewest_digits_that_give_it_again(
        suffix: str) -> None:
    nm = np.array([406.9, 550.25, 700.1, 900.0], np.float32)
    write_scene(f"a{suffix}", scene_of(wavelengths=nm.astype(float), fwhm=nm.astype(float) / 32))
    again = read_scene(f"a{suffix}")
    assert again.wavelengths.tolist() == [406.9, 550.25, 700.1, 900.0]
    np.testing.assert_array_equal(again.wavelengths.astype(np.float32), nm)
    np.testing.assert_array_equal(again.fwhm.astype(np.float32), nm / 32)
    write_scene(f"b{suffix}", scene_of(wavelengths=NM + 1 / 3))  # more digits are kept
    np.testing.assert_allclose(read_scene(f"b{suffix}").wavelengths, NM + 1 / 3, rtol=1e-11)


def test_band_names_with_commas_are_read_from_what_rasterio_itself_writes() -> None:
    """The header then lists 8 values for 4 bands."""
    names = [f"B{number}, {nm} nm" for number, nm in enumerate(NM)]
    shape = {"count": 4, "height": ROWS, "width": COLUMNS, "dtype": "int16"}
    with rasterio.open("a.img", "w", driver="ENVI", **shape) as file:
        file.write(np.asarray(scene_of().cube))
        for band, name in enumerate(names, 1):
            file.set_band_description(band, name)
    for path in ("a.hdr", "a.img"):
        scene = read_scene(path)
        assert scene.band_names == names and not scene.notes
        np.testing.assert_allclose(scene.wavelengths, NM)


@pytest.mark.parametrize(("name", "driver"), [("b.img", "ENVI"), ("b.tif", "GTiff")])
def test_wavelengths_survive_gdals_copy_of_an_envi_file(name: str, driver: str) -> None:
    """GDAL drops the list from the header, and rounds the IMAGERY domain to whole nanometres."""
    write_scene("a.hdr", scene_of(gain=None, offset=None))
    rasterio.shutil.copy("a.img", name, driver=driver)
    if driver == "ENVI":
        assert not {"wavelength", "fwhm", "bbl"} & envi.read_envi_header("b.hdr").keys()
    np.testing.assert_allclose(read_scene(name).wavelengths, NM)


@pytest.mark.parametrize("units", ["Wavenumber", "Index", "GHz"])
def test_units_that_are_no_length_stay_with_their_list(units: str) -> None:
    source = header("wavelength units = Nanometers", f"wavelength units = {units}")
    scene = read_scene(source)
    assert scene.wavelengths is None
    enlarge(source, "b.hdr")
    again = envi.read_envi_header("b.hdr")
    assert (again["wavelength units"] == units and [float(v) for v in again["wavelength"]]
            == NM.tolist())


def test_wavelengths_in_the_band_names_of_an_envi_file_count() -> None:
    write_scene("a.hdr",
                scene_of(wavelengths=None, fwhm=None, gain=None,
                         band_names=[f"B{i} {nm} nm" for i, nm in enumerate(NM)]))
    np.testing.assert_allclose(read_scene("a.hdr").wavelengths, NM)


def test_a_big_endian_file_with_an_offset_gives_a_result_that_plain_readers_read() -> None:
    source = header("byte order = 0", "byte order = 1")
    Path("a.hdr").write_text(source.read_text().replace("header offset = 0", "header offset = 100"))
    Path("a.img").write_bytes(b"\0" * 100 + np.fromfile("a.img", "<i2").astype(">i2").tobytes())
    enlarge(source, "b.hdr")
    fields = envi.read_envi_header("b.hdr")
    assert (fields["byte order"], fields["header offset"]) == ("0", "0")
    np.testing.assert_array_equal(np.fromfile("b.img", "<i2").reshape(4, 2 * ROWS, 2 * COLUMNS),
                                  open_scene("b.hdr").cube)


def test_a_header_beside_a_geotiff_says_what_the_bands_are_and_is_no_scene_of_its_own() -> None:
    with rasterio.open("scene.tif", "w", driver="GTiff", count=4, height=ROWS, width=COLUMNS,
                       dtype="int16") as file:
        file.write(np.asarray(scene_of().cube))
    write_scene("a.hdr", scene_of())
    text = Path("a.hdr").read_text().replace("ENVI Standard", "TIFF")
    for name in ("a.hdr", "a.img"):
        Path(name).unlink()
    Path("scene.hdr").write_text(text)
    for name in ("scene.tif", "scene.hdr"):
        scene = read_scene(name)
        np.testing.assert_allclose(scene.wavelengths, NM)
        assert scene.good.tolist() == [True, True, False, True] and scene.nodata == -9999
        assert scene.gain == pytest.approx([1e-4] * 4)
    from utility.scenes import list_scenes

    assert list_scenes(".") == [Path("scene.tif")]


def test_the_envi_domain_goes_before_gdals_rounded_one() -> None:
    with rasterio.open("a.tif", "w", driver="GTiff", count=4, height=ROWS, width=COLUMNS,
                       dtype="int16") as file:
        file.write(np.asarray(scene_of().cube))
        file.update_tags(ns="ENVI", wavelength="{450.5, 550.25, 700.125, 900}",
                         wavelength_units="Nanometers", bbl="{1,1,0,1}")
        for band in range(1, 5):
            file.update_tags(band, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=f"{NM[band - 1] / 1000:.3f}",
                             FWHM_UM="0.010")
    scene = read_scene("a.tif")
    np.testing.assert_allclose(scene.wavelengths, NM)
    assert scene.good.tolist() == [True, True, False, True] and scene.fwhm == pytest.approx(
        [10] * 4)


def test_a_finer_scene_has_finer_longitudes_without_a_seam_at_the_date_line() -> None:
    lon = np.array([[179.9, -179.9], [179.9, -179.9]])
    scene = Scene(np.zeros((2, 2, 2)), "a", lonlat=(lon, np.array([[1.0, 1], [0, 0]])))
    fine = scaled(scene, np.zeros((2, 4, 4)), 2)
    np.testing.assert_allclose(fine.lonlat[0][0], [179.85, 179.95, -179.95, -179.85])
    np.testing.assert_allclose(fine.lonlat[1][:, 0], [1.25, 0.75, 0.25, -0.25])
