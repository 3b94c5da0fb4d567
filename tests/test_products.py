"""Products as delivered: values, bands, missing pixels and place, from file to result."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import products as made
import pytest
import rasterio
from products import COLUMNS, ROWS, corner, netcdf, physical

import hsi_test
from utility import lmdb_data
from utility.lmdb_dataset import LMDBDataset
from utility.scenes import list_scenes, open_scene, read_scene
from utility.system.errors import Unclear, UserError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@dataclass
class Row:
    """What is right for a product."""

    title: str
    make: Callable[[Path], Path]
    name: str  # of the file or folder
    wavelengths: np.ndarray
    values: np.ndarray  # (B, H, W), physical
    tolerance: float
    missing: bool = True  # the corner is
    bad: list[int] = field(default_factory=list)
    epsg: int | None = None
    transform: tuple[float, ...] | None = None
    lonlat: bool = False
    fwhm: float | None = None


_emit = made.field(made.EMIT)
_emit[4:6] = -0.01
_pace = 0.02 * made.field(made.PACE)
_arms = np.sort(np.concatenate(list(made.PACE_ARMS.values())))
_hyperion = [band for band in made.HYPERION if 8 <= band <= 57 or 77 <= band <= 224]
_hyperion_nm = [355.59 + 10.1754 * (b - 1) if b < 71 else 851.92 + 10.0887 * (b - 71)
                for b in _hyperion]
_radiance = np.stack([made.field([400 + b])[0] * 8000 / (40 if b < 71 else 80) for b in _hyperion])
DLR_PLACE = (30.0, 0.0, 364095.0, 0.0, -30.0, 5809965.0)

TABLE = {"EMIT": Row("EMIT", made.emit, "EMIT_L2A_RFL_001.nc", made.EMIT, _emit, 1e-6, bad=[4, 5],
                     lonlat=True, fwhm=8.5),
         "AVIRIS-3": Row("AVIRIS-3", made.aviris3, "AV320231008t151820_RFL_ORT.nc", made.AVIRIS,
                         made.field(made.AVIRIS), 1e-6, epsg=32611,
                         transform=(5, 0, 300000, 0, -5, 4000000), fwhm=7.5),
         "AVIRIS-3 by parameters": Row("AVIRIS-3", lambda path: made.aviris3(path, wkt=False),
                                       "a.nc", made.AVIRIS, made.field(made.AVIRIS), 1e-6,
                                       epsg=32611, transform=(5, 0, 300000, 0, -5, 4000000)),
         "Tanager ortho": Row("Tanager", made.tanager, "ortho_sr.h5", made.TANAGER,
                              made.field(made.TANAGER), 1e-6, bad=[3], epsg=32637,
                              transform=(30, 0, 500000, 0, -30, 4990000), fwhm=5.5),
         "Tanager basic": Row("Tanager", lambda path: made.tanager(path, grid=False),
                              "basic_radiance.h5", made.TANAGER, made.field(made.TANAGER), 1e-6,
                              lonlat=True, fwhm=5.5),
         "PACE L2": Row("PACE OCI", made.pace_l2, "PACE_OCI.L2.OC_AOP.nc", made.PACE, _pace, 2e-6,
                        lonlat=True),
         "PACE L1B": Row("PACE OCI", made.pace_l1b, "PACE_OCI.L1B.nc", _arms, made.field(_arms),
                         1e-6, missing=False),
         "PRISMA L2D": Row("PRISMA", made.prisma, "PRS_L2D_STD.he5", made.PRISMA_NM,
                           made.field(made.PRISMA_NM), 2e-5, epsg=32632,
                           transform=(30, 0, 500010, 0, -30, 5000040), fwhm=11),
         "PRISMA L1": Row("PRISMA", lambda path: made.prisma(path, "L1"), "PRS_L1_STD.he5",
                          made.PRISMA_NM, 50 * made.field(made.PRISMA_NM) - 0.5, 0.006,
                          missing=False, lonlat=True, fwhm=11),
         "EnMAP": Row("EnMAP", lambda path: made.dlr(path, "enmap"), "enmap", made.DLR,
                      made.field(made.DLR), 6e-5, bad=[3], epsg=32633, transform=DLR_PLACE,
                      fwhm=6.5),
         "DESIS": Row("DESIS", lambda path: made.dlr(path, "desis"), "desis", made.DLR,
                      made.field(made.DLR), 6e-5, epsg=32633, transform=DLR_PLACE, fwhm=6.5),
         "HYPSO": Row("HYPSO", made.hypso, "hypso1-l1b.nc", made.HYPSO, 50 * made.field(made.HYPSO),
                      1e-6, missing=False, lonlat=True),
         "NEON": Row("NEON AOP", made.neon, "NEON_D02_SERC_DP3_reflectance.h5", made.NEON,
                     made.field(made.NEON), 6e-5, bad=[3], epsg=32618,
                     transform=(1, 0, 364000, 0, -1, 4305000), fwhm=5.8),
         "NEON radiance": Row("NEON AOP", made.neon_radiance, "NEON_D02_SERC_DP1_radiance.h5",
                              made.NEON, 30 * made.field(made.NEON), 2e-5, bad=[3], epsg=32618,
                              transform=(1, 0, 364000, 0, -1, 4305000), fwhm=5.8),
         "Hyperion": Row("Hyperion", made.hyperion, "EO1H1230332013164110KF",
                         np.array(_hyperion_nm), _radiance, 0.02, epsg=32633, transform=DLR_PLACE),
         "CAVE": Row("pictures of bands (CAVE)", made.cave, "balloons_ms", made.CAVE,
                     made.field(made.CAVE), 2e-5, missing=False),
         "CAVE in colour": Row("pictures of bands (CAVE)",
                               lambda path: made.cave(path, colour=True), "watercolors_ms",
                               made.CAVE, made.field(made.CAVE), 4e-3, missing=False)}
"""Each product, in the layout that its agency documents; `products` makes the files."""


@pytest.fixture(params=TABLE)
def row(request: pytest.FixtureRequest) -> Row:
    return TABLE[request.param]


@pytest.fixture
def path(tmp_path: Path, row: Row) -> Path:
    return row.make(tmp_path / row.name)


def test_values_axes_bands_missing_pixels_and_place_are_those_of_the_product(
    row: Row, path: Path
) -> None:
    scene = read_scene(path)
    assert scene.product == row.title
    found, dead = physical(scene), [3] if row.title == "EnMAP" else []
    assert found.shape == row.values.shape
    gone = corner() if row.missing else np.zeros_like(corner())
    living = [b for b in range(len(found)) if b not in dead]
    assert np.isnan(found[dead]).all() and np.isnan(found[living][:, gone]).all()
    outside = np.isnan(found[living][:, ~gone])
    assert outside.sum() == (
        row.title == "PACE OCI" and row.missing
    )  # the one value outside the valid range
    np.testing.assert_allclose(np.where(np.isnan(found), row.values, found)[living][:, ~gone],
                               row.values[living][:, ~gone], rtol=0, atol=row.tolerance)
    np.testing.assert_allclose(scene.wavelengths, row.wavelengths, rtol=1e-6)
    assert scene.wavelengths_by
    if row.fwhm:
        np.testing.assert_allclose(scene.fwhm, row.fwhm)
    if row.title != "EnMAP":
        assert [
            i for i, good in enumerate([] if scene.good is None else scene.good) if not good
        ] == row.bad
    assert (rasterio.crs.CRS.from_wkt(scene.crs).to_epsg() if scene.crs else None) == row.epsg
    assert scene.transform == (None if row.transform is None else pytest.approx(row.transform))
    assert (scene.lonlat is not None) == row.lonlat


def test_a_result_lies_where_the_product_lies_and_means_what_it_means(row: Row, path: Path) -> None:
    hsi_test.main(["--input", str(path), "--output", "x2.tif", "--method", "interpolation",
                   "--scale", "2", "--quiet"])
    with rasterio.open("x2.tif") as result:
        values = np.ma.masked_invalid(result.read(masked=True).astype(float))
        values = (values * np.array(result.scales)[:, None, None]
                  + np.array(result.offsets)[:, None, None])
        assert (result.crs.to_epsg() if result.crs else None) == row.epsg
        if row.transform:
            assert tuple(result.transform)[:6] == pytest.approx(
                [v / 2 if i in (0, 1, 3, 4) else v for i, v in enumerate(row.transform)], abs=1e-6)
        np.testing.assert_allclose([float(result.tags(i)["wavelength"]) for i in result.indexes],
                                   row.wavelengths, rtol=1e-6)
    gone = (corner() if row.missing else np.zeros_like(corner())).repeat(2, 0).repeat(2, 1)
    mask = np.ma.getmaskarray(values)
    assert mask[:, gone].all()
    living = [b for b in range(len(row.values)) if b not in row.bad]
    inner = np.zeros_like(gone)
    inner[12:-12, 16:-12] = True  # far from what is missing
    assert not mask[living][:, inner].any() or row.title == "PACE OCI"
    blocks = values[living].reshape(len(living), ROWS, 2, COLUMNS, 2).mean((2, 4))[:, 7:-7, 9:-7]
    assert (np.abs(blocks - row.values[living][:, 7:-7, 9:-7]).mean()
            < 0.04 * row.values[living].max())


def test_info_shows_what_was_understood(
    row: Row, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hsi_test.main(["--info", str(path), "--scale", "3"])
    said = {line[:12].strip(): line[12:] for line in capsys.readouterr().out.splitlines()[1:]}
    assert said["product"] == row.title
    assert said["wavelengths"].startswith(
        f"{row.wavelengths.min():g} .. {row.wavelengths.max():g} nm"
    )
    assert "; from " in said["wavelengths"]
    place = f"EPSG:{row.epsg}" if row.epsg else "longitude" if row.lonlat else "no georeference"
    assert place in said["place"]
    if row.missing:
        assert f"{int(corner().sum())} of {ROWS * COLUMNS} pixels" in said["no-data"]


def test_a_database_holds_the_product_and_nothing_that_nobody_measured(
    row: Row, path: Path
) -> None:
    lmdb_data.main(["--source", str(path), "--out", "a.lmdb", "--patch", "8", "--fill-nodata",
                    "--quiet"])
    patches = LMDBDataset("a.lmdb")
    bands = len(row.values) - len(row.bad)
    assert patches[0].shape == (bands, 8, 8)
    cube = np.stack([patches[i] for i in range(len(patches))])
    assert cube.min() >= -1e-6 and cube.max() <= 1 + 1e-6
    assert cube.mean() > 0.15  # a fill value that counts as data leaves the rest near one end


# ----------------------------------------------------------------------------- one product, its own


def test_a_folder_of_enmap_or_desis_is_one_scene_without_its_quick_looks(tmp_path: Path) -> None:
    for product in ("enmap", "desis"):
        folder = made.dlr(tmp_path / product, product)
        (image,) = folder.glob("*SPECTRAL_IMAGE.TIF")
        assert list_scenes(folder) == [image]
        assert read_scene(next(folder.glob("*METADATA.XML"))).cube.shape == (5, ROWS, COLUMNS)
    assert len(list_scenes(tmp_path)) == 2


def test_a_scene_without_its_xml_is_read_and_what_is_not_known_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made.dlr(tmp_path / "enmap", "enmap", xml=False)
    hsi_test.main(["--info", str(folder), "--scale", "3"])
    out = capsys.readouterr().out
    assert ("read as: 5 bands" in out
            and "METADATA.XML is not beside it, so wavelengths and gain are not known" in out)


def test_an_xml_that_is_damaged_or_of_other_bands_is_left_out_with_a_note(tmp_path: Path) -> None:
    folder = made.dlr(tmp_path / "enmap", "enmap")
    xml = next(folder.glob("*METADATA.XML"))
    for text, words in (("<level_X><bandID>", "cannot be read"),
                        ("<?xml version='1.0' encoding='UTN-8'?><level_X/>", "cannot be read"),
                        ("<a><expectedChannelsList>1,two</expectedChannelsList></a>",
                         "cannot be read"),
                        ("<a><b><wavelengthCenterOfBand>4</wavelengthCenterOfBand></b></a>",
                         "1 bands where the image has 5")):
        xml.write_text(text)
        scene = read_scene(folder)
        assert scene.cube.shape == (5, ROWS, COLUMNS) and scene.wavelengths is None
        assert words in scene.notes[0]


def test_folders_of_pictures_are_scenes_at_any_depth_as_cave_is_packed(tmp_path: Path) -> None:
    made.cave(tmp_path / "CAVE" / "balloons_ms")
    made.cave(tmp_path / "CAVE" / "beads_ms")
    assert [scene.name for scene in list_scenes(tmp_path / "CAVE")] == ["balloons_ms", "beads_ms"]
    hsi_test.main(["--input", str(tmp_path / "CAVE"), "--output", "made", "--method",
                   "interpolation", "--scale", "2", "--quiet"])
    assert sorted(path.name for path in Path("made").iterdir()) == ["balloons_ms_x2.tif",
                                                                    "beads_ms_x2.tif"]


def test_pictures_of_colours_are_told(tmp_path: Path) -> None:
    assert "4 channels of 8 bits" in " ".join(
        open_scene(made.cave(tmp_path / "watercolors_ms", colour=True)).notes
    )
    assert "channel" not in " ".join(open_scene(made.cave(tmp_path / "balloons_ms")).notes)


def test_pages_of_a_tiff_are_bands_in_a_folder_too(tmp_path: Path) -> None:
    scene = read_scene(made.pages(tmp_path / "stack.tif"))
    np.testing.assert_array_equal(scene.cube, np.rint(made.field(made.CAVE) * 60000))
    assert list_scenes(tmp_path) == [tmp_path / "stack.tif"]


def test_an_arm_of_prisma_may_be_named_by_its_last_name(tmp_path: Path) -> None:
    scene = read_scene(made.prisma(tmp_path / "a.he5"), key="VNIR_Cube")
    np.testing.assert_allclose(scene.wavelengths, [407, 600, 800, 970])
    np.testing.assert_allclose(scene.cube[:, ~corner()],
                               made.field([407, 600, 800, 970])[:, ~corner()], atol=2e-5)


def test_arms_whose_wavelengths_overlap_are_told(tmp_path: Path) -> None:
    notes = " ".join(read_scene(made.pace_l1b(tmp_path / "a.nc")).notes)
    assert "blue ends at 605.0 nm and red begins at 600.0 nm" in notes
    assert "2 dead bands" in " ".join(read_scene(made.prisma(tmp_path / "a.he5")).notes)


@pytest.mark.parametrize("container", ["BSQ", "BIL", "BIP", "JP2"])
def test_enmap_in_its_other_containers_is_one_scene_too(tmp_path: Path, container: str) -> None:
    folder = made.dlr(tmp_path / "enmap", "enmap", container=container)
    (image,) = folder.glob(f"*SPECTRAL_IMAGE.{container}")
    for path in (folder, image, *folder.glob("*METADATA.XML"), *folder.glob("*IMAGE.HDR")):
        scene = read_scene(path)
        assert scene.product == "EnMAP" and scene.nodata == -32768
        np.testing.assert_array_equal(scene.wavelengths, made.DLR)
        assert rasterio.crs.CRS.from_wkt(scene.crs).to_epsg() == 32633
        np.testing.assert_allclose(
            physical(scene)[:3, ~corner()], made.field(made.DLR)[:3, ~corner()], atol=6e-5)
        assert np.isnan(physical(scene)[:, corner()]).all()
    made.dlr(tmp_path / "desis", "desis")
    assert list_scenes(folder) == [image] and len(list_scenes(tmp_path)) == 2
    for other in (tmp_path / "desis").iterdir():  # scenes of several folders put into one
        other.rename(folder / other.name)
    assert len(list_scenes(folder)) == 2


def test_a_folder_of_one_scene_is_that_scene_and_of_several_they_are_named(tmp_path: Path) -> None:
    made.prisma(tmp_path / "one.he5")
    (tmp_path / "readme.txt").write_text("x")
    assert read_scene(tmp_path).product == "PRISMA"
    made.emit(tmp_path / "two.nc")
    with pytest.raises(UserError, match=r"folder of 2 scenes, .* of them: one\.he5, two\.nc"):
        read_scene(tmp_path)


def test_products_whose_bands_are_as_many_as_rows_have_their_own_axes(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).random((9, 9, 12)).astype("f4")
    for name, product, axes in (("HDFEOS/GRIDS/HYP/Data Fields/sr", "Tanager", "BHW"),
                                ("products/rhot", "HYPSO", "HWB"),
                                ("SERC/Reflectance/Reflectance_Data", "NEON AOP", "HWB")):
        path = tmp_path / f"{product}.h5"
        with h5py.File(path, "w") as file:
            file[name] = cube.transpose(["BHW".index(axis) for axis in axes])
            file[name].attrs["wavelengths"] = 400 + 10.0 * np.arange(9)
        scene = read_scene(path)
        assert scene.product == product and scene.layout_by == "the product"
        np.testing.assert_array_equal(scene.cube, cube)
        assert scene.wavelengths is not None


@pytest.mark.parametrize(("gone", "words"), [("location", "no lookup table (GLT)"),
                                             ("geotransform", "(GLT) cannot be read")])
def test_emit_without_a_readable_lookup_table_is_read_and_that_is_told(
        tmp_path: Path, gone: str, words: str) -> None:
    path, whole = made.emit(tmp_path / "EMIT.nc"), read_scene(made.emit(tmp_path / "whole.nc"))
    with h5py.File(path, "r+") as file:
        del (file if gone == "location" else file.attrs)[gone]
    scene = read_scene(path)
    assert scene.product == "EMIT" and (scene.lonlat is None) == (gone == "location")
    assert words in " ".join(scene.notes)
    np.testing.assert_array_equal(scene.cube, whole.cube)


def test_prisma_l2b_is_radiance(tmp_path: Path) -> None:
    path = made.prisma(tmp_path / "a.he5")
    assert read_scene(path).units == "reflectance"
    with h5py.File(path, "r+") as file:
        file.attrs["Processing_Level"] = np.bytes_("2B")
    assert read_scene(path).units.startswith("W/")


@pytest.mark.parametrize(("offset", "told"), [(-0.0, "int16 x 0.01"), (0.5, "int16 x 0.01 + 0.5")])
def test_an_offset_is_told_where_there_is_one(tmp_path: Path, offset: float, told: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cube"] = np.arange(5 * 20 * 30, dtype="i2").reshape(5, 20, 30)
        file["cube"].attrs.update(scale_factor=0.01, add_offset=offset)
    assert read_scene(tmp_path / "a.h5").metadata["packing"] == told


def test_widths_are_in_their_own_unit(tmp_path: Path) -> None:
    path = made.aviris3(tmp_path / "a.nc")
    with netcdf(path, "r+") as file:
        for name in ("wavelength", "fwhm"):
            item = file[f"reflectance/{name}"]
            item[:] = item[:] / 1000
            item.units = "micrometers"
    scene = read_scene(path)
    np.testing.assert_allclose(scene.wavelengths, made.AVIRIS, rtol=1e-6)
    np.testing.assert_allclose(scene.fwhm, 7.5, rtol=1e-6)


def test_a_scene_of_more_files_than_stay_open_keeps_the_facts_of_the_first(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for band in range(8, 58):
        plane = np.full((1, ROWS, COLUMNS), band, "i2")
        made._tif(tmp_path / f"EO1H1230332013164110KF_B{band:03d}_L1T.TIF", plane)
        made._tif(tmp_path / f"EO1H1230332013164110KF_B{band + 100:03d}_L1T.TIF", plane + 100)
    scene = read_scene(tmp_path)
    assert scene.cube[:, 0, 0].tolist() == [*range(8, 58), *range(108, 158)]
    assert rasterio.crs.CRS.from_wkt(scene.crs).to_epsg() == 32633
    assert "ERROR" not in capfd.readouterr().err


# -------------------------------------------------------------------------------------- conventions


def test_a_dimension_without_a_variable_is_nobodys_wavelengths(tmp_path: Path) -> None:
    with h5py.File(made.aviris3(tmp_path / "a.nc")) as file:
        assert not np.any(file["wavelength"][()])  # to h5py it is a data set of zeros
    np.testing.assert_allclose(read_scene(tmp_path / "a.nc").wavelengths, made.AVIRIS)


def test_candidates_are_listed_with_their_shortest_names_and_without_companions(
    tmp_path: Path,
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, bands in (("a/first/cube", 5), ("a/second/cube", 6), ("a/spectra", 7)):
            file[name] = np.zeros((bands, 20, 24), "f4")
        file["a/cloud_mask"], file["a/rgb"] = np.zeros((5, 20, 24), "u1"), np.zeros((20, 24, 3))
    with pytest.raises(
        Unclear,
        match=r"cube: first/cube \(5 x 20 x 24\), second/cube \(6 x 20 x 24\), "
        r"spectra \(7 x 20 x 24\);",
    ):
        read_scene(tmp_path / "a.h5")
    assert read_scene(tmp_path / "a.h5", key="second/cube").cube.shape == (6, 20, 24)
    with pytest.raises(Unclear, match="several arrays 'cube': first/cube"):
        read_scene(tmp_path / "a.h5", key="cube")
    with pytest.raises(UserError, match=r"no array 'spectrum'.*nearest: .*spectra"):
        read_scene(tmp_path / "a.h5", key="spectrum")


@pytest.mark.parametrize(("names", "order"),
                         [(("y", "x", "band"), "HWB"), (("lines", "samples", "bands"), "HWB"),
                          (("easting", "northing", "wavelength"), "WHB"),
                          (("channel", "lat", "lon"), "BHW"),
                          (("row", "spectral", "column"), "HBW"),
                          (("crosstrack", "bands", "downtrack"), "WBH")])
def test_the_names_of_dimensions_decide_the_axes_where_shapes_cannot(
    tmp_path: Path, names: tuple[str, ...], order: str
) -> None:
    cube = np.random.default_rng(0).random((9, 9, 9))
    with netcdf(tmp_path / "a.nc", "w") as file:
        made._nc_dimensions(file, **dict.fromkeys(names, 9))
        made._nc(file, "data", names, cube.transpose(["BHW".index(axis) for axis in order]))
    np.testing.assert_array_equal(read_scene(tmp_path / "a.nc").cube, cube)


@pytest.mark.parametrize("name", ["_FillValue", "missing_value", "Data_Ignore_Value", "nodata"])
def test_missing_values_are_known_by_every_usual_attribute(tmp_path: Path, name: str) -> None:
    cube = np.random.default_rng(0).random((5, 12, 14)).astype("f4")
    cube[:, :2] = -7777
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cube"] = cube
        file["cube"].attrs[name] = np.float32(-7777)
    assert read_scene(tmp_path / "a.h5").nodata == -7777


def test_several_fill_values_and_a_valid_range_become_one_no_data_value(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).random((5, 12, 14)).astype("f4")
    cube[:, 0], cube[:, 1], cube[:, 2, :3] = -9999, -8888, 5
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cube"] = cube
        file["cube"].attrs.update({"_FillValue": np.float32(-9999),
                                   "missing_value": np.float32(-8888),
                                   "valid_range": np.array([0, 1], "f4")})
    scene = read_scene(tmp_path / "a.h5")
    assert scene.nodata == -9999 and (scene.cube == -9999).sum() == 5 * (14 + 14 + 3)


def test_optional_facts_that_are_odd_leave_the_cube_readable(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).random((5, 12, 14)).astype("f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cube"] = cube
        file["cube"].attrs.update({"wavelengths": "red, green", "fwhm": np.zeros(3),
                                   "_FillValue": "none", "scale_factor": "x",
                                   "grid_mapping": "nowhere", "valid_range": np.zeros(5)})
        file["wavelength"] = np.arange(5)
    np.testing.assert_array_equal(read_scene(tmp_path / "a.h5").cube, cube)


def test_an_undeclared_fill_value_is_warned_of_by_name_and_not_answered_with_another_degradation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cube = np.rint(made.field(made.CAVE) * 3000).astype("i2")
    cube[:, corner()] = -9999
    np.save("a.npy", cube)
    hsi_test.main(["--input", "a.npy", "--output", "b.npy", "--method", "backprojection", "--scale",
                   "2"])
    said = capsys.readouterr().err
    assert "--nodata -9999" in said and "--degradation" not in said
    lmdb_data.main(["--source", "a.npy", "--out", "a.lmdb", "--patch", "8", "--nodata", "-9999",
                    "--quiet"])
    assert "--nodata" not in capsys.readouterr().err
    assert min(LMDBDataset("a.lmdb")[i].mean() for i in range(len(LMDBDataset("a.lmdb")))) < 0.8


@pytest.mark.parametrize(("value", "kind"),
                         [(-9999, "i2"), (-9999, "f4"), (-32768, "i2"), (65535, "u2"),
                          (9.969209968386869e36, "f4"), (9.969209968386869e36, "f8")])
def test_the_option_that_a_warning_of_a_likely_fill_names_makes_these_pixels_missing(
    value: float, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    cube = np.rint(made.field(made.CAVE) * 3000).astype(kind)
    cube[:, corner()] = value
    np.save("a.npy", cube)
    command = ["--input", "a.npy", "--method", "interpolation", "--scale", "2", "--output"]
    hsi_test.main([*command, "b.npz"])
    said = capsys.readouterr().err
    named = re.search(r"--nodata (\S+) does", said).group(1)
    assert "--degradation" not in said
    hsi_test.main([*command, "c.npz", f"--nodata={named}"])
    said = capsys.readouterr().err
    assert "which looks like" not in said and f"{corner().sum()} of {ROWS * COLUMNS} pixels" in said
    result = read_scene("c.npz")
    gone = corner().repeat(2, 0).repeat(2, 1)
    assert (np.asarray(result.cube)[:, gone] == result.nodata).all()
    assert np.abs(np.asarray(result.cube, float)[:, ~gone]).max() < 4000


@pytest.mark.parametrize(("value", "share", "likely"),
                         [(-9999, 0.05, True), (-9999, 0.0002, False), (-32768, 0.05, True),
                          (7, 0.05, False)])
def test_a_fill_value_is_likely_where_it_is_usual_frequent_and_far(value: int, share: float,
                                                                   likely: bool) -> None:
    from utility.cubes.fills import likely_fill
    from utility.cubes.values import band_statistics

    cube = np.random.default_rng(0).integers(100, 3000, (3, 100, 100)).astype("i2")
    cube.reshape(3, -1)[:, : int(share * 10000)] = value
    found = likely_fill(cube, band_statistics(cube))
    assert (found is not None) == likely and (not likely or found.value == value)


def test_an_image_of_one_detector_takes_its_bands_of_the_xml(tmp_path: Path) -> None:
    folder = made.dlr(tmp_path / "enmap", "enmap")
    image, xml = next(folder.glob("*SPECTRAL_IMAGE.TIF")), next(folder.glob("*METADATA.XML"))
    image.rename(image.with_name(image.name.replace("IMAGE.TIF", "IMAGE_VNIR.TIF")))
    bands = "".join(f"<b><wavelengthCenterOfBand>{nm}</wavelengthCenterOfBand></b>"
                    for nm in range(400, 1200, 100))
    xml.write_text(f"<a><expectedChannelsList>1,3,4,6,8</expectedChannelsList>{bands}</a>")
    np.testing.assert_array_equal(read_scene(folder).wavelengths, [400, 600, 700, 900, 1100])


@pytest.mark.parametrize(("head", "name"),
                         [(b"CDF\x01", "netCDF-3"), (b"\x0e\x03\x13\x01", "HDF4")])
def test_files_of_older_formats_are_named_with_what_makes_them_readable(tmp_path: Path, head: bytes,
                                                                        name: str) -> None:
    (tmp_path / "a.nc").write_bytes(head + bytes(64))
    with pytest.raises(UserError, match=f"{name} file .* makes it"):
        read_scene(tmp_path / "a.nc")
