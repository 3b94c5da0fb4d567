"""Containers: what each holds goes in and comes out, for other libraries too, or is refused."""
from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import scipy.io
import spectral.io.envi as envi
from limits import room_for
from rasterio.transform import from_origin

from utility.cubes import containers
from utility.cubes import cube as cubes
from utility.cubes.bands import clean
from utility.cubes.cube import LazyCube, Scene, Shelf
from utility.cubes.formats import matlab, rasters
from utility.scenes import create_scene, open_as, open_scene, read_scene, write_scene
from utility.superres.place import scaled
from utility.system.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

WRITTEN = [("mat5", "a.mat"), ("mat7.3", "a.mat"), ("hdf5", "a.h5"), ("npy", "a.npy"),
           ("npz", "a.npz"), ("envi", "a.hdr"), ("envi", "a.bil"), ("envi", "a.bip"),
           ("raster", "a.tif")]


def cube_of(bands: int = 5, rows: int = 24, columns: int = 18, dtype: str = "int16") -> np.ndarray:
    return np.random.default_rng(bands * rows + columns).integers(
        -300, 9000, (bands, rows, columns)).astype(dtype)


@pytest.fixture
def geotiff(tmp_path: Path) -> Path:
    """A GeoTIFF by rasterio's own writer."""
    path = tmp_path / "scene.tif"
    with rasterio.open(path, "w", driver="GTiff", count=5, height=24, width=18, dtype="int16",
                       crs="EPSG:32633", transform=from_origin(500000, 5200000, 30, 30),
                       nodata=-9999, interleave="pixel") as target:
        target.write(cube_of())
        target.update_tags(sensor="imager")
        for band in range(1, 6):
            target.set_band_description(band, f"band {band}")
            target.update_tags(band, wavelength=str(0.4 + band / 10),
                               wavelength_units="Micrometers")
    return path


def save_envi(path: Path, cube: np.ndarray, interleave: str = "bsq", order: str = "little",
              **fields: object) -> Path:
    """An ENVI file by spectral's own writer."""
    metadata = ({"map info": ["UTM", "1.5", "2", "500000", "5200000", "30", "20", "33", "North",
                              "WGS-84", "units=Meters"], "wavelength units": "Micrometers",
                 "wavelength": [0.4 + b / 10 for b in range(len(cube))],
                 "band names": [f"b{b}" for b in range(len(cube))], "fwhm": [0.01] * len(cube),
                 "bbl": [1] * len(cube), "data ignore value": -9999} | fields)
    envi.save_image(str(path), cube.transpose(1, 2, 0), interleave=interleave, byteorder=order,
                    dtype=cube.dtype, metadata={k: v for k, v in metadata.items() if v is not None},
                    ext="img", force=True)
    return path


# ---------------------------------------------------------------------------------------- both ways

def scene_for(kind: str, name: str, cube: np.ndarray, **facts: object) -> Scene:
    """A scene as that container lays it."""
    layout = {"mat7.3": "BWH", "mat5": "HWB", "a.bil": "HBW", "a.bip": "HWB"}.get(
        name if kind == "envi" else kind, "BHW")
    return Scene(cube, "a", format="" if kind in ("envi", "raster") else kind, layout=layout,
                 **facts)


@pytest.mark.parametrize(("kind", "name"), WRITTEN)
def test_a_scene_comes_back_from_every_container_whole_and_by_blocks(
        tmp_path: Path, kind: str, name: str) -> None:
    cube = cube_of()
    source = scene_for(kind, name, cube, key="rad", wavelengths=np.linspace(400, 700, 5),
                       nodata=-9999)
    with create_scene(tmp_path / name, source) as writer:
        for row in range(0, 24, 7):
            for column in range(0, 18, 5):
                writer[:, row:row + 7, column:column + 5] = cube[:, row:row + 7, column:column + 5]
        assert not (tmp_path / name).exists()
    scene, lazy = read_scene(tmp_path / name, bands=5), open_scene(tmp_path / name, bands=5)
    np.testing.assert_array_equal(scene.cube, cube)
    assert (scene.format, scene.layout, scene.cube.dtype) == (kind, source.layout, cube.dtype)
    assert scene.key == (None if kind in ("npy", "envi", "raster") else "rad")
    if kind != "npy":
        np.testing.assert_array_equal(scene.wavelengths, source.wavelengths)
        assert scene.nodata == -9999
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]
    if kind not in ("mat5", "npz"):
        assert isinstance(lazy.cube, LazyCube | np.memmap)
    for index in (np.s_[1:3, 4:20, 5:9], np.s_[2], np.s_[..., 3], np.s_[::2, -5:, ::3],
                  np.s_[1, 2, 3], np.s_[:, 4:4]):
        np.testing.assert_array_equal(lazy.cube[index], cube[index])
    np.testing.assert_array_equal(np.asarray(lazy.cube), cube)


def test_the_same_cube_makes_the_same_file_at_another_time(tmp_path: Path) -> None:
    made = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        time.sleep(1.1 if made else 0)  # files tell seconds
        folder.mkdir()
        for kind, name in (*dict(WRITTEN).items(), ("netcdf", "a.nc")):
            like = scene_for(kind, name, cube_of(), wavelengths=np.arange(400.0, 900, 100),
                             metadata={"provenance": {"software": "s", "description": "d"}})
            write_scene(folder / f"{kind}_{name}", like)
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert [name for name in made[0] if made[0][name] != made[1][name]] == []
    assert len(made[0]) == len(made[1]) == 9  # of 8 kinds, one of which has its header beside it


@pytest.mark.parametrize(("stored", "mapped"),
                         [("as it is", True), ("chunked", False), ("with 24 bits", False)])
def test_an_array_of_hdf5_is_mapped_where_the_file_holds_it_as_memory_does(
        tmp_path: Path, stored: str, mapped: bool) -> None:
    cube, kind = (-np.arange(5 * 24 * 18, dtype=np.int32).reshape(5, 24, 18),
                  h5py.h5t.STD_I32LE.copy())
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if stored == "with 24 bits":
        kind.set_precision(24)  # of four bytes, so that the sign is not where numpy looks for it
    if stored == "chunked":
        plan.set_chunk((1, 24, 18))
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=512) as file:
        h5py.h5d.create(file.id, b"cube", kind, h5py.h5s.create_simple(cube.shape), plan)
        file["cube"][...] = cube
    scene = open_scene(tmp_path / "a.h5", layout="BHW")
    assert isinstance(scene.cube, np.memmap) == mapped
    np.testing.assert_array_equal(np.asarray(scene.cube), cube)


@pytest.mark.parametrize(("kind", "layout"),
                         [("mat5", "pixels"), ("mat5", "pixels.T"), ("mat7.3", "pixels.T"),
                          ("hdf5", "pixels"), ("npz", "pixels.T"), ("hdf5", "pixels-rows"),
                          ("hdf5", "pixels-rows.T"), ("npz", "pixels-rows")])
def test_bands_by_pixels_are_written_as_such(tmp_path: Path, kind: str, layout: str) -> None:
    path = tmp_path / {"hdf5": "a.h5", "npz": "a.npz"}.get(kind, "a.mat")
    cube = cube_of()
    with create_scene(path, Scene(cube, "a", format=kind, layout=layout, key="Y")) as writer:
        writer[:, :10] = cube[:, :10]
        writer[:, 10:, :7] = cube[:, 10:, :7]
        writer[:, 10:, 7:] = cube[:, 10:, 7:]
    scene = read_scene(path)
    assert (scene.key, scene.layout) == ("Y", layout)
    np.testing.assert_array_equal(scene.cube, cube)


def test_a_v73_file_becomes_v5_and_back_with_matlabs_axes(tmp_path: Path) -> None:
    source = Scene(cube_of(), "a", format="mat7.3", layout="BWH", key="rad")
    write_scene(tmp_path / "a.mat", source)
    with h5py.File(tmp_path / "a.mat") as file:
        assert file["rad"].shape == (5, 18, 24)
        assert file["rad"].attrs["MATLAB_class"] == b"int16"
    assert (tmp_path / "a.mat").read_bytes()[:10] == b"MATLAB 7.3"
    write_scene(tmp_path / "b.npz", source)
    assert np.load(tmp_path / "b.npz")["rad"].shape == (24, 18, 5)


def test_an_array_too_large_for_v5_is_written_as_v73(tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matlab, "LIMIT", 1000)
    write_scene(tmp_path / "a.mat", Scene(cube_of(), "a", format="mat5", layout="HWB", key="data"))
    scene = read_scene(tmp_path / "a.mat")
    assert (scene.format, scene.layout, scene.key) == ("mat7.3", "BWH", "data")
    np.testing.assert_array_equal(scene.cube, cube_of())


def test_the_content_decides_not_the_name(tmp_path: Path, geotiff: Path) -> None:
    for kind, name in WRITTEN[:5]:
        path = tmp_path / name
        write_scene(path, scene_for(kind, name, cube_of()), overwrite=True)
        path.rename(tmp_path / "a.dat")
        assert read_scene(tmp_path / "a.dat").format == kind
    geotiff.rename(tmp_path / "scene.mat")
    assert read_scene(tmp_path / "scene.mat").format == "raster"


# --------------------------------------------------------------------------------------------- ENVI

@pytest.mark.parametrize(("dtype", "interleave", "order"),
                         [("uint8", "bsq", "little"), ("int16", "bil", "big"),
                          ("uint16", "bip", "little"), ("int32", "bsq", "big"),
                          ("uint32", "bil", "little"), ("float32", "bip", "big"),
                          ("float64", "bsq", "big"), ("int64", "bil", "little"),
                          ("uint64", "bip", "big")])
def test_every_interleave_byte_order_and_type_of_spectral_is_read(
        tmp_path: Path, dtype: str, interleave: str, order: str) -> None:
    cube = np.abs(cube_of()).astype(dtype)
    header = save_envi(tmp_path / "a.hdr", cube, interleave, order)
    for path in (header, tmp_path / "a.img"):
        scene = read_scene(path)
        np.testing.assert_array_equal(scene.cube, cube)
        assert scene.cube.dtype == np.dtype(dtype) and scene.cube.dtype.isnative
    np.testing.assert_array_equal(open_scene(header).cube[1:3, 4:6, 7:], cube[1:3, 4:6, 7:])


@pytest.mark.parametrize(("interleave", "order"),
                         [("bsq", "big"), ("bil", "little"), ("bip", "big")])
def test_an_envi_file_is_written_as_it_was_read(tmp_path: Path, interleave: str,
                                                order: str) -> None:
    scene = read_scene(save_envi(tmp_path / "a.hdr", cube_of(), interleave, order))
    write_scene(tmp_path / "b.hdr", scene)
    image = envi.open(str(tmp_path / "b.hdr"))
    np.testing.assert_array_equal(image.open_memmap(interleave="bip"), cube_of().transpose(1, 2, 0))
    before, after = (envi.read_envi_header(str(tmp_path / n)) for n in ("a.hdr", "b.hdr"))
    assert after["byte order"] == "0"  # some readers take every file for little endian
    for name in ("interleave", "data type", "map info", "wavelength units", "band names", "fwhm",
                 "bbl", "data ignore value"):
        assert after[name] == before[name], name
    assert [float(w) for w in after["wavelength"]] == [float(w) for w in before["wavelength"]]


def test_envi_wavelengths_come_in_nanometres_whatever_their_unit(tmp_path: Path) -> None:
    for units in ("Micrometers", "um", None):
        scene = read_scene(save_envi(tmp_path / "a.hdr", cube_of(), **{"wavelength units": units}))
        np.testing.assert_allclose(scene.wavelengths, [400, 500, 600, 700, 800])
    nm = [400.5, 500, 600, 700, 800]
    scene = read_scene(save_envi(tmp_path / "a.hdr", cube_of(),
                                 **{"wavelength units": "Nanometers", "wavelength": nm}))
    np.testing.assert_allclose(scene.wavelengths, nm)
    assert scene.band_names == ["b0", "b1", "b2", "b3", "b4"]
    assert scene.nodata == -9999


def test_a_super_resolved_envi_file_covers_the_same_ground(tmp_path: Path) -> None:
    scale, path = 4, save_envi(tmp_path / "a.hdr", cube_of())
    scene = read_scene(path)
    with rasterio.open(tmp_path / "a.img") as source:
        bounds, crs = source.bounds, source.crs
        assert bounds.left == 500000 - 15 and bounds.top == 5200000 + 20
    fine = scaled(scene, cube_of().repeat(scale, 1).repeat(scale, 2), scale)
    write_scene(tmp_path / "fine.hdr", fine)
    write_scene(tmp_path / "fine.tif", fine)
    for name in ("fine.img", "fine.tif"):
        with rasterio.open(tmp_path / name) as target:
            assert target.bounds == pytest.approx(bounds)
            assert target.crs == crs and target.crs.to_epsg() == 32633
            assert target.res == pytest.approx((30 / scale, 20 / scale))
            assert target.nodata == -9999
    again = read_scene(tmp_path / "fine.hdr")
    assert again.band_names == scene.band_names
    assert again.metadata["header"]["fwhm"] == scene.metadata["header"]["fwhm"]
    assert again.transform == pytest.approx(fine.transform)


def test_dropped_bands_leave_the_envi_header_too(tmp_path: Path) -> None:
    scene = read_scene(save_envi(tmp_path / "a.hdr", cube_of(), fwhm=list("12345"),
                                 **{"default bands": ["5", "3", "2"]}))
    write_scene(tmp_path / "b.hdr", clean(scene, drop="0"))
    header = envi.read_envi_header(str(tmp_path / "b.hdr"))
    assert header["bands"] == "4"
    assert header["band names"] == ["b1", "b2", "b3", "b4"]
    assert header["fwhm"] == list("2345")
    assert header["default bands"] == ["4", "2", "1"]
    assert len(header["wavelength"]) == 4


def test_a_header_in_another_code_page_or_with_an_offset_is_read(tmp_path: Path) -> None:
    save_envi(tmp_path / "a.hdr", cube_of())
    text = (tmp_path / "a.hdr").read_text().replace("header offset = 0", "header offset = 64")
    (tmp_path / "a.hdr").write_bytes(
        (text + "\ndescription = {20 \xb5m, \xb0C}\n").encode("latin-1"))
    (tmp_path / "a.img").write_bytes(b"\0" * 64 + (tmp_path / "a.img").read_bytes())
    np.testing.assert_array_equal(read_scene(tmp_path / "a.hdr").cube, cube_of())


def edit_header(tmp_path: Path, old: str, new: str) -> Path:
    path = save_envi(tmp_path / "a.hdr", cube_of())
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(("old", "new"), [
    ("interleave = bsq", 'interleave = "bsq"'), ("samples = 18", "samples = 18.0"),
    ("data type = 2", "data type = 2.0"), ("byte order = 0", "byte order = {0}")])
def test_a_header_that_spells_a_value_in_another_way_is_read(tmp_path: Path, old: str,
                                                             new: str) -> None:
    np.testing.assert_array_equal(read_scene(edit_header(tmp_path, old, new)).cube, cube_of())


@pytest.mark.parametrize(("old", "new", "reason"), [
    ("lines = 24", "lines = 25", r"a.hdr describes 4500 bytes .*a.img has 4320"),
    ("interleave = bsq", "interleave = bsx", "interleave = bsx.*bsq, bil or bip"),
    ("data type = 2", "data type = 77", "data type = 77.*12 uint16"),
    ("data type = 2", "data type = 6", "describes 17280 bytes"),
    ("byte order = 0", "byte order = 3", "byte order = 3.*0 .*or 1"),
    ("bands = 5\n", "", "lacks the field 'bands', .*; add it to the header"),
    ("samples = 18", "samples = many", "samples = many.*whole number"),
    ("bands = 5", "bands = 0", "0 bands"),
    ("b4 }", "b4", "a.hdr is not a readable ENVI header")])
def test_a_header_that_is_wrong_or_disagrees_with_its_data_is_refused(
        tmp_path: Path, old: str, new: str, reason: str) -> None:
    path = edit_header(tmp_path, old, new)
    if new == "b4":  # an open brace swallows the rest
        path.write_text(path.read_text().replace("}", ""))
    with pytest.raises(UserError, match=reason):
        read_scene(path)
    (tmp_path / "a.img").unlink()
    with pytest.raises(UserError,
                       match=r"a\.hdr (has no data file.*a\.img|says|lacks|lists|is not)"):
        read_scene(path)


def test_a_turned_grid_goes_into_map_info_where_gdal_reads_it_back(tmp_path: Path) -> None:
    turned = rasterio.Affine.translation(5e5, 5e6) * rasterio.Affine.rotation(
        -30) * rasterio.Affine.scale(5, -5)
    crs = rasterio.crs.CRS.from_epsg(32633).to_wkt()
    write_scene(tmp_path / "a.hdr", Scene(cube_of(), "a", transform=tuple(turned)[:6], crs=crs))
    with rasterio.open(tmp_path / "a.img", driver="ENVI") as image:
        for corner in ((0, 0), (18, 0), (0, 24), (18, 24)):
            assert np.allclose(image.transform * corner, turned * corner, rtol=0, atol=1e-5)


@pytest.mark.parametrize("transform", [(2, 0.5, 0, 0.5, -1, 0), (30, 0, 5e5, 0, 30, 5e6)],
                         ids=["oblong", "flipped"])
def test_a_grid_that_map_info_cannot_hold_is_refused(tmp_path: Path,
                                                     transform: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"flipped.*turned.*GeoTIFF"):
        write_scene(tmp_path / "a.hdr", Scene(cube_of(), "a", transform=transform))
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------ rasters

def test_a_geotiffs_place_bands_and_no_data_are_read(geotiff: Path) -> None:
    scene = read_scene(geotiff)
    np.testing.assert_array_equal(scene.cube, cube_of())
    assert (scene.format, scene.layout, scene.nodata) == ("raster", "BHW", -9999)
    assert rasterio.crs.CRS.from_wkt(scene.crs).to_epsg() == 32633
    assert scene.transform == (30, 0, 500000, 0, -30, 5200000)
    assert scene.band_names == [f"band {b}" for b in range(1, 6)]
    np.testing.assert_allclose(scene.wavelengths, [500, 600, 700, 800, 900])


@pytest.mark.parametrize("epsg", [4326, 32733, 3035])
def test_any_crs_survives_the_way_through_envi(tmp_path: Path, epsg: int) -> None:
    crs = rasterio.crs.CRS.from_epsg(epsg)
    write_scene(tmp_path / "a.hdr",
                Scene(cube_of(), "a", crs=crs.to_wkt(), transform=(0.5, 0, 10, 0, -0.25, 50)))
    with rasterio.open(tmp_path / "a.img") as source:
        assert source.crs.to_proj4() == crs.to_proj4()
        assert source.transform == rasterio.Affine(0.5, 0, 10, 0, -0.25, 50)
    scene = read_scene(tmp_path / "a.hdr")
    write_scene(tmp_path / "b.hdr", scaled(scene, scene.cube.repeat(2, 1).repeat(2, 2), 2))
    with rasterio.open(tmp_path / "b.img") as source:
        assert source.crs.to_proj4() == crs.to_proj4()
        assert source.res == (0.25, 0.125)


def test_a_large_raster_is_tiled_and_written_block_by_block(tmp_path: Path) -> None:
    cube = cube_of(3, 300, 280)
    with create_scene(tmp_path / "a.tif", Scene(cube, "a")) as writer:
        for row in range(0, 300, 64):
            writer[:, row:row + 64] = cube[:, row:row + 64]
    with rasterio.open(tmp_path / "a.tif") as source:
        assert source.block_shapes[0] == (256, 256)
    np.testing.assert_array_equal(read_scene(tmp_path / "a.tif").cube, cube)


def test_a_raster_that_is_not_compressed_takes_no_room_for_parts_of_tiles(tmp_path: Path) -> None:
    cube = cube_of(3, 320, 360)
    scene = Scene(cube, "a", format="raster", metadata={"compression": None})
    write_scene(tmp_path / "a.tif", scene)
    assert (tmp_path / "a.tif").stat().st_size < 1.05 * cube.nbytes
    np.testing.assert_array_equal(read_scene(tmp_path / "a.tif").cube, cube)


def test_wavelengths_are_read_from_band_names_and_from_gdals_own_tags(tmp_path: Path) -> None:
    for way in ("names", "imagery"):
        with rasterio.open(tmp_path / f"{way}.tif", "w", driver="GTiff", count=2, height=4, width=4,
                           dtype="uint8") as target:
            for band, centre in ((1, 450.5), (2, 550.0)):
                if way == "names":
                    target.set_band_description(band, f"Band {band} ({centre} Nanometers)")
                else:
                    target.update_tags(band, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=str(centre / 1000))
        np.testing.assert_allclose(read_scene(tmp_path / f"{way}.tif").wavelengths, [450.5, 550])


def test_jpeg_2000_is_read_and_not_written(tmp_path: Path) -> None:
    cube = abs(cube_of(dtype="uint16"))
    with rasterio.open(tmp_path / "a.jp2", "w", "JP2OpenJPEG", 18, 24, 5, dtype="uint16",
                       quality="100", reversible="yes") as file:
        file.write(cube)
    scene = read_scene(tmp_path / "a.jp2")
    np.testing.assert_array_equal(scene.cube, cube)
    with pytest.raises(UserError, match=r"b\.jp2 does not say by its suffix"):
        write_scene(tmp_path / "b.jp2", scene)


# ---------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize(("kind", "name"), [w for w in WRITTEN if w[0] != "envi"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name
    write_scene(path, scene_for(kind, name, cube_of(rows=40, columns=40)))
    content = path.read_bytes()
    for kept in (0.02, 0.3, 0.9):
        path.write_bytes(content[:int(len(content) * kept)])
        with pytest.raises(UserError,
                           match=fr"{name} (cannot be read|is not a scene|holds no cube)"):
            read_scene(path)


def test_damage_in_the_data_behind_a_sound_header_is_refused_by_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("cube", data=cube_of(), chunks=(1, 24, 18), compression="gzip")
        offset = file["cube"].id.get_chunk_info(3).byte_offset
    with open(tmp_path / "a.h5", "r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * 200)
    with pytest.raises(UserError, match=r"a\.h5 cannot be read; it is truncated or damaged"):
        read_scene(tmp_path / "a.h5")


def test_what_is_no_scene_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mat").write_text("not a scene")
    (tmp_path / "empty.mat").touch()
    np.save(tmp_path / "text.npy", np.array([[["a", "b"]]]))
    for name, reason in (("text.mat", "is not a scene"), ("empty.mat", r"is empty \(0 bytes\)"),
                         ("missing.mat", "does not exist"), (".", "is a folder"),
                         ("text.npy", "where integers or real numbers")):
        with pytest.raises(UserError, match=reason):
            read_scene(tmp_path / name)


@pytest.mark.parametrize(("kind", "name"), WRITTEN)
def test_an_existing_file_is_not_replaced_unless_asked(tmp_path: Path, kind: str,
                                                       name: str) -> None:
    scene = Scene(cube_of(), "a", format=kind, layout="BHW")
    write_scene(tmp_path / name, scene)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match="exists already"):
        write_scene(tmp_path / name, scene)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    write_scene(tmp_path / name, Scene(cube_of(4), "a", format=kind, layout="BHW"), overwrite=True)
    assert read_scene(tmp_path / name, bands=4).cube.shape[0] == 4


def test_all_files_of_a_scene_are_known(tmp_path: Path, geotiff: Path) -> None:
    """Header and data of an ENVI scene, by either name, read or written; links by their target."""
    save_envi(tmp_path / "low.hdr", cube_of())
    (tmp_path / "low.img").rename(tmp_path / "low.dat")
    save_envi(tmp_path / "low.hdr", cube_of())
    (tmp_path / "low.img").rename(tmp_path / "scene.img")
    (tmp_path / "low.hdr").rename(tmp_path / "scene.img.hdr")
    save_envi(tmp_path / "low.hdr", cube_of())
    (tmp_path / "link.tif").symlink_to(geotiff)
    (tmp_path / "other.tif").symlink_to(geotiff)

    def names(name: str) -> set[str]:
        return {p.name for p in containers.files_of(tmp_path / name)}

    assert names("low.hdr") == names("low.img") | {"low.dat"} == {"low.hdr", "low.img", "low.dat"}
    assert (names("scene.img") == {"scene.img", "scene.img.hdr"}
            and names("scene.hdr") == {"scene.img"})
    assert names("low.npy") == set()
    for first, second, shared in (("low.npy", "low.hdr", None), ("low.img", "low.hdr", "low.dat"),
                                  ("scene.hdr", "scene.img", "scene.img"),
                                  ("link.tif", "other.tif", "link.tif"),
                                  ("low.hdr", "scene.img", None)):
        found = containers.shared_file(tmp_path / first, tmp_path / second)
        assert (found and found.name) == shared


def test_blocks_cover_a_cube_once_and_split_bands_that_are_too_large() -> None:
    for shape, axis, target in (((3, 700, 50), 0, 1000), ((3, 700, 50), 0, 40_000),
                                ((3, 700, 50), 1, 1000), ((9, 40, 50), 0, 9000)):
        count = np.zeros(shape, np.uint8)
        sizes = []
        for index in cubes.blocks(count, axis, target):
            count[index] += 1
            sizes.append(count[index].size)
        assert (count == 1).all()
        assert max(sizes) <= max(2 * target, 256 * 50 if axis == 0 else 150)


def test_room_to_work_in_is_memory_or_a_file_that_leaves_nothing(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(cubes.scratch((2, 3, 4), np.float32)) is np.ndarray
    monkeypatch.setattr(cubes, "SCRATCH", 1000)
    array = cubes.scratch((4, 20, 25), np.int16, tmp_path)
    assert isinstance(array, Shelf) and not list(tmp_path.iterdir())
    assert not np.asarray(array).any()
    array[2] = 7
    assert np.asarray(array).sum() == 7 * 500
    with room_for(1000), pytest.raises(UserError, match=f"disk is full while writing {tmp_path}"):
        cubes.scratch((4, 20, 25), np.int16, tmp_path)


def test_a_file_to_work_in_gives_the_blocks_that_were_written(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubes, "SCRATCH", 0)
    array = np.zeros((5, 9, 11), np.float32)
    shelf = cubes.scratch(array.shape, array.dtype, tmp_path)
    rng = np.random.default_rng(0)
    for index in (np.s_[:, 2:5], np.s_[1:3, :, 4:7], np.s_[3], np.s_[:, 8:, 10:], np.s_[2:2],
                  np.s_[:, 4:4], np.s_[..., 5:8]):
        shelf[index] = array[index] = rng.random(array[index].shape)
        shelf[index] += np.float32(1)
        array[index] += np.float32(1)
        np.testing.assert_array_equal(shelf, array)
    for index in (np.s_[np.array([4, 0, 2]), 1:8, 3:], np.s_[:, ::2, ::3], np.s_[::2, 1:4],
                  np.s_[-1], np.s_[1:1]):
        np.testing.assert_array_equal(shelf[index], array[index])
    assert len(list(shelf)) == 5


@pytest.mark.parametrize(("kind", "name"), WRITTEN)
def test_nothing_is_left_when_there_is_no_room_or_the_work_stops(
        tmp_path: Path, kind: str, name: str) -> None:
    scene = Scene(cube_of(20, 100, 100), "a", format=kind, layout="BHW")
    with room_for(100_000), pytest.raises(UserError, match=rf"disk is full while writing .*{name}"):
        write_scene(tmp_path / name, scene)
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt), create_scene(tmp_path / name, scene) as writer:
        writer[:, :5] = scene.cube[:, :5]
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_failed_header_takes_its_data_with_it(tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if str(target).endswith(".hdr"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("utility.system.files.os.replace", fail)
    with pytest.raises(UserError, match="disk is full"):
        write_scene(tmp_path / "a.hdr", Scene(cube_of(), "a"))
    assert not list(tmp_path.iterdir())


def test_an_unknown_suffix_or_a_type_that_the_format_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.xyz does not say by its suffix.*\.mat"):
        write_scene(tmp_path / "a.xyz", Scene(cube_of(), "a"))
    for name, dtype in (("a.hdr", "int8"), ("a.mat", "float16"), ("a.tif", "float16")):
        with pytest.raises(UserError, match=f"cannot hold values of type {dtype}"):
            write_scene(tmp_path / name, Scene(cube_of().astype(dtype), "a"))
    assert not list(tmp_path.iterdir())


def test_a_block_of_a_type_that_would_lose_its_values_is_an_error(tmp_path: Path) -> None:
    with (pytest.raises(TypeError, match="float64"),
          create_scene(tmp_path / "a.npy", Scene(cube_of(), "a")) as writer):
        writer[:] = cube_of(dtype="float64")


def test_band_names_cannot_say_anything_else_in_an_envi_header(tmp_path: Path) -> None:
    names = ["a}\nbands = 99", "b {", "c\rsamples = 1", "d", "e"]
    scene = Scene(cube_of(), "x", band_names=names,
                  metadata={"header": {"sensor type": "x\nlines = 7", "description": "{a}"}})
    write_scene(tmp_path / "a.hdr", scene)
    again = read_scene(tmp_path / "a.hdr")
    np.testing.assert_array_equal(again.cube, scene.cube)
    assert again.band_names == ["a) bands = 99", "b (", "c samples = 1", "d", "e"]


def test_no_two_envi_files_that_do_not_belong_together_ever_stand_side_by_side(
        tmp_path: Path, monkeypatch) -> None:
    """Whatever rename of an overwrite is the last, what can be read is the old or the new scene."""
    old, new = cube_of(), cube_of() + 1
    real = os.replace
    for last in range(3):
        write_scene(tmp_path / "a.hdr", Scene(old, "x", metadata={"interleave": "bsq"}),
                    overwrite=True)
        # which ends as if it was killed, before its rename number `last`
        if (child := os.fork()) == 0:
            left = iter(range(last))

            def replaced(*names, left=left):
                return os._exit(9) if next(left, None) is None else real(*names)

            os.replace = replaced
            write_scene(tmp_path / "a.hdr", Scene(new, "x", metadata={"interleave": "bip"}),
                        overwrite=True)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (9 if last < 2 else 0)
        if (tmp_path / "a.hdr").exists() and (tmp_path / "a.img").exists():
            found = read_scene(tmp_path / "a.hdr").cube
            assert np.array_equal(found, old) or np.array_equal(found, new)
        elif (tmp_path / "a.img").exists():
            with pytest.raises(UserError, match=r"a\.img is not a scene.* no header beside it"):
                read_scene(tmp_path / "a.img")


@pytest.mark.parametrize(("kind", "name"), WRITTEN)
def test_a_file_says_that_its_pixels_are_computed(tmp_path: Path, kind: str, name: str) -> None:
    made = {"software": "bi3dqrnn 1", "description": "Computed {pixels}, ü"}
    scene = Scene(cube_of(), "a", format=kind, layout="BHW", key="gt",
                  metadata={"provenance": made})
    write_scene(tmp_path / name, scene)
    if name.endswith(".npy"):
        return  # which holds an array and nothing else
    if kind == "raster":
        with rasterio.open(tmp_path / name) as file:
            said = [file.tags()["TIFFTAG_SOFTWARE"], file.tags()["TIFFTAG_IMAGEDESCRIPTION"]]
    elif kind == "envi":
        header = envi.read_envi_header(str((tmp_path / name).with_suffix(".hdr")))
        said, made["description"] = ([header["software"], header["description"]],
                                     "Computed (pixels), ü")
    elif kind in ("mat7.3", "hdf5"):
        with h5py.File(tmp_path / name) as file:
            said = [file["gt"].attrs[key] for key in made]
            if kind == "mat7.3":
                assert (file["description"].attrs["MATLAB_class"] == b"char"
                        and file["description"].dtype == np.uint16)
                assert "".join(map(chr, file["description"][:, 0])) == made["description"]
    else:
        file = (scipy.io.loadmat if kind == "mat5" else np.load)(tmp_path / name)
        said = [str(np.asarray(file[key]).flat[0]) for key in made]
    assert said == list(made.values())
    np.testing.assert_array_equal(read_scene(tmp_path / name).cube, scene.cube)


def test_a_geotiff_is_compressed_as_its_input_was_and_has_overviews_where_they_are_asked_for(
        tmp_path: Path) -> None:
    cube = np.tile(np.arange(600, dtype=np.uint16), (2, 520, 1))
    found = {}
    for own, cog in (("none given", False), (None, False), ("LZW", True), ("JPEG", False)):
        more = {"cog": cog} | ({"compression": own} if own != "none given" else {})
        scene = Scene(cube, "a", format="raster" if "compression" in more else "npy", metadata=more)
        write_scene(tmp_path / "a.tif", scene, overwrite=True)
        with rasterio.open(tmp_path / "a.tif") as file:
            found[own] = file.compression and file.compression.value, file.overviews(2)
            predictor = file.tags(ns="IMAGE_STRUCTURE").get("PREDICTOR")
            assert (file.block_shapes == [(64, 600) if own is None else (256, 256)] * 2
                    and predictor == (None if own is None else "2"))
            np.testing.assert_array_equal(file.read(), cube)
            if cog:  # overviews lie before the pixels: the file can be read from a server in parts
                places = [int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1, ovr=k))
                          for k in (1, 0, None)]
                assert places == sorted(places)
    assert (found
            == {"none given": ("DEFLATE", []), None: (None, []), "LZW": ("LZW", [2, 4]),
                "JPEG": ("DEFLATE", [])})
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.parametrize(("dtype", "compressed"),
                         [("uint8", True), ("int16", False), ("float32", True), ("float64", False),
                          ("uint64", True)])
def test_a_v5_file_is_read_as_scipy_reads_it(tmp_path: Path, dtype: str, compressed: bool) -> None:
    cube = (abs(cube_of(4)).transpose(1, 2, 0) * 3).astype(dtype)
    variables = {"first": [[1, 2], [3, 4]], "cube": cube, "text": "abc",
                 "cell": np.array([1, "b"], object), "tiny": 7, "struct": {"a": 1},
                 "sparse": scipy.sparse.eye(3).tocsc(), "wavelengths": np.arange(400.0, 404)}
    scipy.io.savemat(tmp_path / "a.mat", variables, do_compression=compressed)
    scene = read_scene(tmp_path / "a.mat", key="cube")
    expected = scipy.io.loadmat(tmp_path / "a.mat")["cube"].transpose(2, 0, 1)
    assert scene.cube.dtype == expected.dtype and np.array_equal(scene.cube, expected)
    assert list(scene.wavelengths) == [400, 401, 402, 403]


def test_damage_in_a_compressed_v5_file_is_noticed(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"cube": cube_of().transpose(1, 2, 0)},
                     do_compression=True)
    sound = (tmp_path / "a.mat").read_bytes()
    for at in range(136, len(sound), 19):
        damaged = bytearray(sound)
        damaged[at] ^= 16
        (tmp_path / "b.mat").write_bytes(damaged)
        with pytest.raises(UserError, match="truncated or damaged"):
            read_scene(tmp_path / "b.mat")


@pytest.mark.parametrize(("height", "width"), [(520, 300), (70, 300)])
def test_a_compressed_geotiff_holds_each_tile_once_in_whatever_order_blocks_come(
        tmp_path: Path, height, width) -> None:
    cube = np.random.default_rng(0).integers(0, 9, (3, height, width)).astype(np.int16)
    plain = Scene(cube, "a", format="raster", metadata={"compression": None})
    write_scene(tmp_path / "plain.tif", plain)
    np.testing.assert_array_equal(read_scene(tmp_path / "plain.tif").cube, cube)
    scene = Scene(cube, "a", format="npy")
    write_scene(tmp_path / "whole.tif", scene)
    for name, rows, columns in (("strips", 24, width), ("tiles", 100, 90)):
        with create_scene(tmp_path / f"{name}.tif", scene) as writer:
            for top in range(0, height, rows):
                for left in range(0, width, columns):
                    writer[:, top:top + rows, left:left + columns] = cube[
                        :, top:top + rows, left:left + columns]
        np.testing.assert_array_equal(read_scene(tmp_path / f"{name}.tif").cube, cube)
        assert ((tmp_path / f"{name}.tif").stat().st_size < 1.02
                * (tmp_path / "whole.tif").stat().st_size)


def test_a_floating_point_geotiff_has_no_predictor_so_that_other_readers_open_it(
        tmp_path: Path) -> None:
    cube = np.random.default_rng(0).random((2, 300, 260), dtype=np.float32)
    write_scene(tmp_path / "a.tif", Scene(cube, "a", format="npy"))
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.compression.value == "DEFLATE"
        assert file.tags(ns="IMAGE_STRUCTURE").get("PREDICTOR") is None


def test_a_compressed_geotiff_that_lost_its_last_tiles_is_not_given_its_name(
        tmp_path: Path, monkeypatch) -> None:
    real = rasters._is_whole

    def cut(path: Path, size: int) -> bool:
        os.truncate(path, path.stat().st_size - 9)
        return real(path, size)

    monkeypatch.setattr(rasters, "_is_whole", cut)
    with pytest.raises(UserError, match="disk is full"):
        write_scene(tmp_path / "a.tif",
                    Scene(np.random.default_rng(0).random((2, 300, 260)), "a", format="npy"))
    assert not list(tmp_path.iterdir())


def test_a_cube_that_must_be_decoded_is_read_once(tmp_path: Path, monkeypatch) -> None:
    np.save(tmp_path / "a.npy", cube_of())
    reads, stored = [], open_scene(tmp_path / "a.npy", layout="BHW")

    def read(*index: slice) -> np.ndarray:
        reads.append(index)
        return cube_of()[index]

    lazy = LazyCube(stored.cube.shape, stored.cube.dtype, read)
    monkeypatch.setattr("utility.scenes.open_scene", lambda *_: replace(stored, cube=lazy))
    scene = open_as(tmp_path / "a.npy", in_memory=False)
    np.testing.assert_array_equal(scene.cube, cube_of())
    assert len(reads) == 1


def test_the_result_of_an_hdf5_file_that_is_named_as_netcdf_keeps_that_name(tmp_path: Path) -> None:
    for name in ("a.nc", "a.h5", "a.hdf5"):
        with h5py.File(tmp_path / name, "w") as file:
            file["reflectance"] = cube_of()
            file["wavelength"] = np.linspace(400, 900, 5)
            file["wavelength"].make_scale("wavelength")
    assert [containers.result_suffix(tmp_path / name) for name in ("a.nc", "a.h5", "a.hdf5")] == [
        ".nc", ".h5", ".h5"]
