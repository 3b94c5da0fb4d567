"""Scenes: which key and layout are taken, which bands refused, how values come back."""
from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import scipy.io
from made import geotiff

from utility.cubes.bands import clean, find_bad_bands, parse_bands, select_bands
from utility.cubes.cube import LazyCube, Scene, Shelf
from utility.cubes.values import band_statistics, from_unit_range, unit_range, value_range
from utility.scenes import describe, list_scenes, open_scene, read_scene, write_scene
from utility.superres.place import bounds_distance, scaled
from utility.system.errors import UserError


def cube_of(bands: int = 6, rows: int = 20, columns: int = 15, dtype: str = "uint16") -> np.ndarray:
    return np.random.default_rng(bands * rows + columns).integers(
        1, 1000, (bands, rows, columns)).astype(dtype)


def save_v73(path: Path, **arrays: np.ndarray) -> Path:
    """Arrays as MATLAB's save -v7.3 lays them: axes reversed, a user block, the class."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = array.T
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
    with open(path, "r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


def saved(folder: Path, kind: str, **arrays: np.ndarray) -> Path:
    """Arrays as scientists leave them: mat5, mat7.3, npz, npy (of one) or h5 (in chunks)."""
    path = folder / f"a.{'mat' if kind.startswith('mat') else kind}"
    if kind == "mat7.3":
        return save_v73(path, **arrays)
    if kind == "h5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, chunks=True)
    elif kind == "mat5":
        scipy.io.savemat(path, arrays)
    else:
        np.savez(path, **arrays) if kind == "npz" else np.save(path, *arrays.values())
    return path


# --------------------------------------------------------------------------------- keys and layouts

@pytest.mark.parametrize(("shape", "layout"),
                         [((30, 30, 189), "HWB"), ((24, 24, 10), "HWB"), ((61, 34, 10), "HWB"),
                          ((31, 70, 79), "BHW"), ((102, 34, 34), "BHW"), ((204, 50, 44), "BHW"),
                          ((44, 50, 204), "HWB"), ((50, 102, 44), "HBW"), ((60, 51, 31), "HWB"),
                          ((200, 80, 31), "HWB")])
def test_the_band_axis_of_an_array_is_found_from_its_shape(
        tmp_path: Path, shape: tuple[int, ...], layout: str) -> None:
    array = cube_of(*shape)
    scipy.io.savemat(tmp_path / "a.mat", {"data": array})
    np.save(tmp_path / "a.npy", array)
    for name in ("a.mat", "a.npy"):
        scene = read_scene(tmp_path / name)
        assert scene.layout == layout
        np.testing.assert_array_equal(scene.cube, array.transpose([layout.index(a) for a in "BHW"]))
        assert scene.cube.flags.c_contiguous and scene.cube.dtype == np.uint16


@pytest.mark.parametrize("shape",
                         [(30, 12, 40), (30, 12, 30), (20, 20, 20), (20, 25, 30), (51, 22, 20),
                          (20, 22, 51), (200, 90, 40)])
def test_an_unclear_layout_is_refused_with_the_choices(tmp_path: Path,
                                                       shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "unclear.npy", np.zeros(shape))
    with pytest.raises(UserError,
                       match=fr"unclear.npy is {shape[0]} x .*--layout.*HWB \({shape[2]} bands\)"):
        read_scene(tmp_path / "unclear.npy")
    assert (read_scene(tmp_path / "unclear.npy", layout="hbw").cube.shape
            == (shape[1], shape[0], shape[2]))
    with pytest.raises(UserError, match=r"'XYZ' is unknown.*HWB"):
        read_scene(tmp_path / "unclear.npy", layout="XYZ")


def test_the_expected_number_of_bands_settles_the_layout_or_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((30, 12, 40)))
    assert read_scene(tmp_path / "a.npy", bands=12).layout == "HBW"
    assert read_scene(tmp_path / "a.npy", bands=40).layout == "HWB"
    assert read_scene(tmp_path / "a.npy", bands=30).layout == "BHW"
    with pytest.raises(UserError, match="31 bands"):
        read_scene(tmp_path / "a.npy", bands=31)
    with pytest.raises(UserError, match="40 bands, where 30"):
        read_scene(tmp_path / "a.npy", bands=30, layout="HWB")


def test_a_map_or_wavelengths_beside_the_cube_settle_its_layout(tmp_path: Path) -> None:
    array = np.zeros((30, 12, 40))
    scipy.io.savemat(tmp_path / "map.mat", {"data": array, "map": np.zeros((30, 12))})
    assert read_scene(tmp_path / "map.mat").layout == "HWB"
    scipy.io.savemat(tmp_path / "wl.mat", {"data": array, "wavelengths": np.linspace(400, 700, 30)})
    scene = read_scene(tmp_path / "wl.mat")
    assert scene.layout == "BHW"
    assert scene.wavelengths[-1] == 700


def test_icvls_layout_is_read_with_rows_and_columns_in_place(tmp_path: Path) -> None:
    cube = cube_of(5, 12, 9, "float64")
    save_v73(tmp_path / "icvl.mat", rad=cube.transpose(1, 2, 0),
             bands=np.linspace(400, 700, 5)[None])
    scene = read_scene(tmp_path / "icvl.mat")
    assert (scene.format, scene.key, scene.layout) == ("mat7.3", "rad", "BWH")
    np.testing.assert_array_equal(scene.cube, cube)
    np.testing.assert_array_equal(scene.wavelengths, np.linspace(400, 700, 5))
    np.testing.assert_array_equal(read_scene(tmp_path / "icvl.mat", bands=5, layout="HWB").cube,
                                  cube)


NM = np.array([400.5, 450, 600, 700, 900])


@pytest.mark.parametrize("kind", ["mat5", "mat7.3", "npz"])
@pytest.mark.parametrize(("name", "values", "unit"), [
    ("lambda_um", NM / 1000, "micrometres"), ("wavelength_um", NM / 1000, "micrometres"),
    ("wvl", NM, "nm"), ("Wavelength_nm", NM[::-1], "nm"), ("centers", NM, "nm"),
    ("band_centres", NM / 1000, "micrometres"), ("wl", NM, "nm")])
def test_a_vector_is_wavelengths_by_its_name_and_its_unit_is_told(
        tmp_path: Path, kind: str, name: str, values: np.ndarray, unit: str) -> None:
    path = saved(tmp_path, kind, cube=cube_of(5, 12, 9), **{name: values[None]})
    scene = read_scene(path, bands=5)
    np.testing.assert_allclose(scene.wavelengths, NM[::-1] if name == "Wavelength_nm" else NM)
    assert scene.wavelengths_by == f"{name}, in {unit}" and not scene.notes


@pytest.mark.parametrize("kind", ["mat5", "mat7.3", "npz"])
def test_a_vector_of_another_name_is_told_where_it_looks_like_wavelengths(
        tmp_path: Path, kind: str) -> None:
    others = {"centers": NM[::-1], "weights": np.array([0.1, 0.5, 0.2, 0.1, 0.1]),
              "rows": np.arange(400.0, 412), "lambda_min": NM - 5, "numbers": np.arange(400.0, 405)}
    path = saved(tmp_path, kind, cube=cube_of(5, 12, 9),
                 **{name: values[None] for name, values in ({"axis": NM} | others).items()})
    scene = read_scene(path, bands=5)
    assert scene.wavelengths is None and [note.split(" ")[0] for note in scene.notes] == [
        "'axis'", "'lambda_min'"]
    assert scene.notes[0] == ("'axis' looks like wavelengths (400.5 .. 900 nm), and its name does "
                              "not say so; call it wavelengths to have it taken")


def test_wavelengths_in_a_struct_are_found_by_their_name(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"S": {"cube": cube_of(5, 12, 9), "lambda_nm": NM}})
    np.testing.assert_allclose(read_scene(tmp_path / "a.mat", layout="BHW").wavelengths, NM)


def test_plain_hdf5_is_taken_as_it_stands_and_nested_keys_are_found(tmp_path: Path) -> None:
    cube = cube_of(5, 12, 14)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["scene/radiance"] = cube
        file["scene/label"] = np.zeros((12, 14))
    scene = read_scene(tmp_path / "a.h5")
    assert (scene.format, scene.key, scene.layout) == ("hdf5", "scene/radiance", "BHW")
    np.testing.assert_array_equal(scene.cube, cube)


def ramp(bands: int, rows: int, columns: int) -> np.ndarray:
    """A cube whose neighbouring pixels are alike."""
    b, y, x = np.mgrid[:bands, :rows, :columns].astype(float)
    return 100 * b + np.sin(y / 3) + np.cos(x / 4 + b)


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize(("kind", "size"),
                         [("mat5", (24, 36)), ("mat7.3", (25, 24)), ("npz", (30, 60)),
                          ("npy", (23, 24)), ("h5", (40, 17))])
def test_the_order_of_pixels_is_that_in_which_neighbours_are_alike(
        tmp_path: Path, kind: str, size: tuple, order: str) -> None:
    cube = ramp(7, *size) + 0.1 * np.random.default_rng(0).random((7, *size))
    flat = (cube if order == "rows" else cube.transpose(0, 2, 1)).reshape(7, -1).T
    path = saved(tmp_path, kind, Y=flat)
    np.testing.assert_array_equal(read_scene(path, size=size).cube, cube)
    scene = open_scene(path, layout="pixels" if kind == "mat7.3" else "pixels.T", size=size)
    assert (
        ("-rows" in scene.layout) == (order == "rows") and f"along its {order}" in scene.layout_by)
    np.testing.assert_array_equal(scene.cube[2:5, 3:11, 4:8], cube[2:5, 3:11, 4:8])
    write_scene(tmp_path / "again.npz", scene)
    again = read_scene(tmp_path / "again.npz")
    np.testing.assert_array_equal(again.cube, cube)
    assert ("-rows" in again.layout) == (order == "rows"), "the order is stated in the file"


def test_pixels_whose_order_their_values_do_not_tell_are_refused_until_it_is_given(
        tmp_path: Path) -> None:
    cube = np.random.default_rng(0).random((5, 30, 40))
    np.save(tmp_path / "noise.npy", cube.reshape(5, -1))
    with pytest.raises(
            UserError,
            match=r"whether the pixels run along the rows.*--layout pixels-rows or pixels-col"):
        read_scene(tmp_path / "noise.npy", size=(30, 40))
    np.testing.assert_array_equal(
        read_scene(tmp_path / "noise.npy", layout="pixels-rows", size=(30, 40)).cube, cube)
    other = read_scene(tmp_path / "noise.npy", layout="pixels-columns", size=(30, 40)).cube
    np.testing.assert_array_equal(other, cube.reshape(5, 40, 30).transpose(0, 2, 1))


def test_a_square_image_of_pixels_is_read_by_the_habit_of_its_format_and_a_note_says_so(
        tmp_path: Path) -> None:
    cube = ramp(5, 12, 12)
    scipy.io.savemat(tmp_path / "a.mat", {"Y": cube.transpose(0, 2, 1).reshape(5, -1)})
    np.save(tmp_path / "a.npy", cube.reshape(5, -1))
    for name in ("a.mat", "a.npy"):
        scene = read_scene(tmp_path / name, size=(12, 12))
        np.testing.assert_array_equal(scene.cube, cube)
        assert "the image is square" in scene.notes[0]


@pytest.mark.parametrize("kind", ["mat5", "mat7.3", "npz"])
def test_bands_by_pixels_take_their_size_from_the_file(tmp_path: Path, kind: str) -> None:
    cube = ramp(7, 12, 9)
    flat = cube.transpose(0, 2, 1).reshape(7, -1)  # pixels run down the columns
    beside = {"nRow": np.array([[12.0]]), "nCol": np.array([[9.0]]),
              "SlectBands": np.arange(7.0)[:, None]}
    path = saved(tmp_path, kind, Y=flat, **beside)
    scene = read_scene(path, bands=7)
    assert scene.layout == ("pixels.T" if kind == "mat7.3" else "pixels")
    np.testing.assert_array_equal(scene.cube, cube)
    np.testing.assert_array_equal(open_scene(path).cube[2:5, 3:11, 4:8], cube[2:5, 3:11, 4:8])
    # MATLAB says 7 x 108, and Python sees 108 x 7
    for layout in ("pixels", "pixels.T") if kind == "mat7.3" else ():
        np.testing.assert_array_equal(read_scene(path, layout=layout, bands=7, size=(12, 9)).cube,
                                      cube)
    with pytest.raises(UserError, match="8 bands were expected"):
        read_scene(path, bands=8)


def test_a_single_band_is_called_one_before_and_after_its_size_is_given(tmp_path):
    np.save(tmp_path / "band.npy", np.zeros((36, 32), np.float32))
    with pytest.raises(UserError, match=r"36 x 32\. If that is an image, it has one band, and a "
                                        r"cube needs at least 2.* bands x pixels.*--size ROWS"):
        open_scene(tmp_path / "band.npy")
    for size in ((36, 32), (32, 36)):
        with pytest.raises(UserError, match="36 x 32, an image of that size with one band"):
            open_scene(tmp_path / "band.npy", size=size)


def test_a_2d_array_without_a_size_is_refused_and_takes_one(tmp_path: Path) -> None:
    cube = ramp(7, 12, 9)
    np.save(tmp_path / "flat.npy", cube.transpose(0, 2, 1).reshape(7, -1))
    with pytest.raises(UserError,
                       match=r"flat.npy is a 2-D array of 7 x 108.*nRow.*--size.*size=\(H, W\)"):
        read_scene(tmp_path / "flat.npy")
    np.testing.assert_array_equal(
        read_scene(tmp_path / "flat.npy", layout="pixels", size=(12, 9)).cube, cube)
    with pytest.raises(UserError, match="no axis of 100 pixels"):
        read_scene(tmp_path / "flat.npy", size=(10, 10))


def test_several_cubes_are_listed_and_a_key_is_asked_for(tmp_path: Path) -> None:
    arrays = {"before": cube_of(), "after": cube_of(7)}
    scipy.io.savemat(tmp_path / "two.mat", arrays)
    save_v73(tmp_path / "two73.mat", **arrays)
    np.savez(tmp_path / "two.npz", **arrays)
    for name, shape in (("two.mat", "6 x 20 x 15"), ("two73.mat", "15 x 20 x 6"),
                        ("two.npz", "6 x 20 x 15")):
        with pytest.raises(UserError, match=rf"{name}.*before \({shape}\).*--key"):
            read_scene(tmp_path / name)
        assert read_scene(tmp_path / name, key="after", bands=7).key == "after"
        with pytest.raises(UserError,
                           match=r"no array 'befor' \(nearest: before\).*before "
                           fr"\({shape}\).*--key"):
            read_scene(tmp_path / name, key="befor")


def save_struct(path: Path, kind: str, fields: dict) -> Path:
    """A variable S of MATLAB whose fields these are, one of them possibly a struct again."""
    if kind != "mat7.3":
        scipy.io.savemat(path, {"S": fields, "date": "2024"}, do_compression=kind == "compressed")
        return path
    flat = {f"S/{name}": value for name, value in fields.items() if not isinstance(value, dict)}
    for name, inner in fields.items():
        if isinstance(inner, dict):
            flat |= {f"S/{name}/{part}": value for part, value in inner.items()}
    return save_v73(path, **flat)


@pytest.mark.parametrize("kind", ["plain", "compressed", "mat7.3"])
def test_fields_of_a_struct_are_arrays_with_what_stands_beside_them(
    tmp_path: Path, kind: str
) -> None:
    cube, nm = cube_of(), np.array([[410.0, 470, 520, 600, 650, 700]])
    path = save_struct(tmp_path / "s.mat", kind,
                       {"empty": np.empty((0, 0)), "data": cube.transpose(1, 2, 0),
                        "wavelength": nm, "odd": np.ones((1, 3), "u1")})
    scene = read_scene(path)
    np.testing.assert_array_equal(scene.cube, cube)
    np.testing.assert_array_equal(scene.wavelengths, nm[0])
    assert scene.key == "S/data" and list_scenes(tmp_path) == [path]
    np.testing.assert_array_equal(read_scene(path, key="data").cube, cube)
    for target in ("a.mat", "a.h5", "a.npz", "a.nc"):
        write_scene(tmp_path / target, scene)
        np.testing.assert_array_equal(read_scene(tmp_path / target).cube, cube)


@pytest.mark.parametrize("kind", ["plain", "compressed", "mat7.3"])
def test_cubes_in_several_fields_are_listed_and_named_by_their_field(
    tmp_path: Path, kind: str
) -> None:
    vnir, swir = cube_of(), cube_of(9, 11, 13)
    path = save_struct(tmp_path / "s.mat", kind,
                       {"first": vnir.transpose(1, 2, 0),
                        "more": {"second": swir.transpose(1, 2, 0)}})
    with pytest.raises(UserError, match=r"first \(.*second \(.*--key"):
        read_scene(path)
    np.testing.assert_array_equal(read_scene(path, key="first", bands=6).cube, vnir)
    np.testing.assert_array_equal(read_scene(path, key="more/second", bands=9).cube, swir)


def test_a_field_counts_where_no_variable_is_a_cube(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"data": cube_of(6, 9, 9),
                                          "info": {"psf": cube_of(5, 7, 7), "pixel": 2.0}})
    assert read_scene(tmp_path / "a.mat").key == "data"
    assert read_scene(tmp_path / "a.mat", key="psf").cube.shape == (5, 7, 7)


def test_a_struct_that_is_damaged_is_refused_by_name(tmp_path: Path) -> None:
    for compressed in (False, True):
        path = save_struct(tmp_path / "s.mat", "compressed" if compressed else "plain",
                           {"data": cube_of().transpose(1, 2, 0), "x": {"y": 1.0}})
        sound = path.read_bytes()
        for at in range(200, min(len(sound), 520), 3):
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 255]) + sound[at + 1:])
            with suppress(UserError):
                read_scene(path)
        path.write_bytes(sound[:-40])
        with pytest.raises(UserError, match="truncated or damaged"):
            read_scene(path)


@pytest.mark.parametrize("kind", ["mat5", "mat7.3", "npz", "h5"])
def test_of_a_cube_and_copies_of_it_the_finest_is_the_scene_and_the_others_are_told(
    tmp_path: Path, kind: str) -> None:
    gt = cube_of(6, 32, 40)
    arrays = {"ms": gt[:, ::4, ::4], "ms_bicubic": gt[:, ::-1], "gt": gt}
    arrays = {name: value.transpose(1, 2, 0) for name, value in arrays.items()}
    path = saved(tmp_path, kind, **arrays)
    scene = read_scene(path)
    np.testing.assert_array_equal(scene.cube, gt)
    (told,) = scene.notes
    assert "'gt'" in told and "ms (" in told and "--key" in told
    np.testing.assert_array_equal(read_scene(path, key="ms", bands=6).cube,
                                  gt[:, ::4, ::4])
    assert not read_scene(path, key="ms", bands=6).notes
    del arrays["ms_bicubic"]
    scipy.io.savemat(tmp_path / "b.mat", {"X": arrays["gt"], "Y": arrays["ms"]})
    assert read_scene(tmp_path / "b.mat").key == "X"  # the only one of that size


def test_maps_texts_structures_and_vectors_are_no_candidates(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat",
                     {"data": cube_of(6, 9, 9), "map": np.ones((9, 9)), "note": "text",
                      "info": {"sensor": "x"}, "list": np.arange(5.0)})
    assert read_scene(tmp_path / "a.mat").key == "data"
    scipy.io.savemat(tmp_path / "none.mat", {"note": "text", "list": np.arange(5.0)})
    with pytest.raises(UserError, match=r"none.mat holds no cube"):
        read_scene(tmp_path / "none.mat")


def test_a_single_band_and_complex_values_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros((1, 20, 20)))
    with pytest.raises(UserError, match="at least 2 bands"):
        read_scene(tmp_path / "one.npy")
    scipy.io.savemat(tmp_path / "complex.mat", {"data": cube_of().astype(complex)})
    with pytest.raises(UserError, match="complex"):
        read_scene(tmp_path / "complex.mat")


def test_big_endian_arrays_arrive_in_native_order(tmp_path: Path) -> None:
    np.save(tmp_path / "big.npy", cube_of().astype(">i2"))
    scene = read_scene(tmp_path / "big.npy", bands=6)
    assert scene.cube.dtype == np.dtype("int16") and scene.cube.dtype.isnative
    block = open_scene(tmp_path / "big.npy", bands=6).cube[:, 2:4]
    assert block.dtype.isnative
    np.testing.assert_array_equal(block, scene.cube[:, 2:4])


def test_a_scene_is_described_in_one_line(tmp_path: Path) -> None:
    cube = cube_of(31, 64, 64)
    cube.flat[:2] = 0, 65535
    scipy.io.savemat(tmp_path / "cloth.mat", {"NRD": cube.transpose(1, 2, 0)})
    line = describe(read_scene(tmp_path / "cloth.mat"))
    assert line.endswith(
        "cloth.mat: key 'NRD', stored H x W x B, 31 bands, 64 x 64, uint16, 0 .. 65535")


def test_a_folder_lists_its_scenes_by_content_and_what_is_named_like_one_and_cannot_be_read(
        tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", cube_of())
    scipy.io.savemat(tmp_path / "a.mat", {"data": cube_of()})
    np.save(tmp_path / "hidden.npy", cube_of())
    (tmp_path / "hidden.npy").rename(tmp_path / "renamed.bin")
    (tmp_path / ".c.npy").write_bytes((tmp_path / "b.npy").read_bytes())
    (tmp_path / "notes.txt").write_text("no scene")
    (tmp_path / "fake.mat").write_text("no scene")
    (tmp_path / "empty.mat").touch()
    write_scene(tmp_path / "d.hdr", Scene(cube_of(), "d"))
    found = [p.name for p in list_scenes([tmp_path, tmp_path / "b.npy"])]
    assert found == ["a.mat", "b.npy", "d.hdr", "empty.mat", "fake.mat", "renamed.bin"]


def test_a_folder_without_scenes_names_its_folders(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"no scene in it.*\(train\)"):
        list_scenes(tmp_path)
    with pytest.raises(UserError, match="nowhere does not exist"):
        list_scenes(tmp_path / "nowhere")


# ---------------------------------------------------------------------------------------- bad bands

def spoiled() -> Scene:
    cube = cube_of(8, 10, 12, "float32")
    cube[1] = 7                      # constant
    cube[3, 2, 3] = np.nan           # single pixels
    cube[3, 2, 4] = np.inf
    cube[4] = np.nan                 # dead
    cube[6, :, 0] = -9999            # no-data
    return Scene(cube, "spoiled", wavelengths=np.linspace(400, 470, 8), nodata=-9999,
                 metadata={"header": {"fwhm": [str(i) for i in range(8)], "map info": ["UTM"] * 8}})


def test_bad_bands_are_found_with_their_reasons() -> None:
    scene = spoiled()
    found = {b.index: b.reason for b in find_bad_bands(scene.cube, scene.nodata)}
    assert found == {1: "constant (7)", 3: "2 NaN or infinite pixels", 4: "dead (no valid pixel)",
                     6: "10 no-data (-9999) pixels"}


def test_a_band_of_no_data_alone_is_dead_and_integers_have_no_data_too() -> None:
    cube = cube_of(4, 5, 6, "int16")
    cube[2] = -1
    cube[3, 0, 0] = -1
    found = find_bad_bands(cube, -1)
    assert [(b.index, b.pixels, b.fillable) for b in found] == [(2, 30, False), (3, 1, True)]
    assert find_bad_bands(cube_of(4), 0.5) == [] == find_bad_bands(cube_of(4), -1)


def test_bad_bands_are_refused_by_number_unless_dropping_is_asked_for() -> None:
    found = (r"4 bad bands .*from 0\): 1 constant.*3 2 NaN.*4 dead.*6 10 no-data.*"
             "--drop-bad-bands.*--fill-nodata")
    with pytest.raises(UserError, match=found):
        clean(spoiled())
    kept = clean(spoiled(), drop_bad_bands=True)
    assert kept.cube.shape == (4, 10, 12)
    np.testing.assert_array_equal(kept.wavelengths, np.linspace(400, 470, 8)[[0, 2, 5, 7]])
    assert kept.metadata["header"]["fwhm"] == ["0", "2", "5", "7"]
    assert kept.metadata["header"]["map info"] == ["UTM"] * 8
    assert kept.metadata["source_bands"] == [0, 2, 5, 7]


@pytest.mark.parametrize("gone", [-9999, np.nan])
def test_bands_that_the_file_declares_bad_are_left_out_with_a_note(gone: float) -> None:
    cube = cube_of(6, 10, 12, "float32")
    cube[2], cube[4] = gone, -0.01  # no-data alone; a constant that the file marks
    scene = Scene(cube, "told", nodata=gone, good=np.array([1, 1, 1, 1, 0, 0], bool))
    left = clean(scene)
    assert left.metadata["source_bands"] == [0, 1, 3]
    (told,) = left.notes
    assert "3 of its bands" in told and "2 dead" in told and "4-5 marked as bad in the file" in told
    one = Scene(cube[[0, 1, 3]], "one", good=np.array([1, 1, 0], bool))
    assert clean(one).notes[0].startswith("1 of its bands (counted from 0) is left out")
    assert not scene.notes and clean(scene, keep_bad=True).metadata["bad_bands"] == [2, 4, 5]
    with pytest.raises(UserError, match=r"1 bad band .*4 constant \(-0.01\)"):
        clean(Scene(cube, "not told", nodata=gone))
    with pytest.raises(UserError, match="too few to work on"):
        clean(Scene(cube, "nothing left", nodata=gone, good=np.eye(6, dtype=bool)[0]))


def test_filled_pixels_take_the_nearest_valid_value_and_dead_bands_still_go() -> None:
    scene = spoiled()
    with pytest.raises(UserError, match="2 bad bands"):
        clean(scene, fill_nodata=True)
    filled = clean(scene, drop_bad_bands=True, fill_nodata=True)
    assert filled.metadata["source_bands"] == [0, 2, 3, 5, 6, 7]
    assert not find_bad_bands(filled.cube, scene.nodata)
    np.testing.assert_array_equal(filled.cube[4][:, 0], scene.cube[6][:, 1])
    np.testing.assert_array_equal(filled.cube[0], scene.cube[0])
    assert np.isnan(scene.cube[3, 2, 3]), "the scene given is not changed"


@pytest.mark.parametrize("gone", [-1, np.nan])
def test_pixels_without_data_in_all_bands_are_masked_and_missing_again_at_the_new_size(
        gone: float) -> None:
    cube = cube_of(4, 6, 6, "float32")
    cube[:, 0] = gone
    cube[2] = gone  # a dead band says nothing about pixels
    scene = clean(Scene(cube, "border", nodata=-1 if gone == -1 else None), drop_bad_bands=True)
    assert scene.metadata["source_bands"] == [0, 1, 3] and scene.missing.sum() == 6
    np.testing.assert_array_equal(scene.cube[:, 0], cube[[0, 1, 3], 1])
    result = np.full((3, 12, 12), 5, "float32")
    again = scaled(scene, result, 2)
    np.testing.assert_array_equal(again.cube[:, :2], np.full((3, 2, 12), gone))
    assert (again.cube[:, 2:] == 5).all() and (result == 5).all()
    assert scaled(scene, scene.cube, 2).cube is scene.cube, "a cube of another size is not copied"


def test_bands_that_the_header_marks_are_bad_and_bad_bands_can_be_kept_and_named() -> None:
    scene = spoiled()
    scene.good = np.array([1, 1, 0, 1, 0, 1, 1, 1], bool)
    with pytest.raises(UserError, match=r"3 bad bands .*: 1 constant"):  # 2 and 4 are told by it
        clean(scene)
    assert clean(scene, drop_bad_bands=True).metadata["source_bands"] == [0, 5, 7]
    kept = clean(scene, keep_bad=True)
    assert kept.cube.shape == scene.cube.shape and kept.metadata["bad_bands"] == [1, 2, 3, 4, 6]
    assert np.isfinite(kept.cube[3]).all(), "single pixels are filled"
    assert clean(scene, drop_bad_bands=True, keep_bad=True).metadata["source_bands"] == [0, 5, 7]


def test_advice_about_bad_bands_never_ends_in_a_dead_end() -> None:
    holes = cube_of(3, 6, 6, "float32")
    holes[range(3), range(3), range(3)] = np.nan
    dead = np.full((3, 6, 6), np.nan)
    for cube, advice in ((holes, "give --fill-nodata"),
                         (dead, "too few to work on; use another scene")):
        for drop in (False, True):
            with pytest.raises(UserError, match=f"3 bad bands .*{advice}") as refusal:
                clean(Scene(cube, "holes"), drop_bad_bands=drop)
            assert "--drop-bad-bands" not in str(refusal.value)
    assert clean(Scene(holes, "holes"), fill_nodata=True).cube.shape == (3, 6, 6)


def test_a_large_scene_on_disk_is_filled_on_disk(tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    cube = cube_of(3, 16, 12, "int16")
    cube[:, 4:6, 3] = cube[1, 9, 9] = -1
    np.save(tmp_path / "a.npy", cube)
    expected = clean(Scene(cube, "a", nodata=-1), fill_nodata=True)
    monkeypatch.setattr("utility.cubes.cube.SCRATCH", 100)
    scene = open_scene(tmp_path / "a.npy", layout="BHW")
    scene.nodata = -1
    filled = clean(scene, fill_nodata=True)
    assert isinstance(filled.cube, Shelf) and not isinstance(expected.cube, Shelf)
    np.testing.assert_array_equal(filled.cube, expected.cube)
    np.testing.assert_array_equal(filled.missing, expected.missing)


def test_a_clean_scene_passes_unchanged() -> None:
    scene = Scene(cube_of(), "fine")
    assert clean(scene) is scene


def test_bands_are_chosen_and_dropped_by_text() -> None:
    assert parse_bands("0-2,5, 4", 6) == [0, 1, 2, 4, 5]
    scene = Scene(cube_of(), "x", band_names=list("abcdef"))
    assert clean(scene, bands="1-4", drop="2").band_names == ["b", "d", "e"]
    for text, reason in (("0-6", "band 6"), ("-1", "no list"), ("a", "no list"),
                         ("4-2", "backwards"), ("", "no band"), ("0-99999999999", "band 6")):
        with pytest.raises(UserError, match=reason):
            parse_bands(text, 6)
    with pytest.raises(UserError, match="1 of its 6 bands"):
        clean(scene, bands="3")


def test_bands_are_chosen_from_a_cube_on_disk_without_reading_it(tmp_path: Path) -> None:
    cube = cube_of()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["cube"] = cube
    scene = open_scene(tmp_path / "a.h5", layout="BHW")
    chosen = select_bands(scene, [0, 3, 4])
    assert isinstance(chosen.cube, LazyCube)
    np.testing.assert_array_equal(chosen.cube[1:, 2:5, 3], cube[[3, 4], 2:5, 3])
    np.testing.assert_array_equal(np.asarray(clean(scene, drop="1-2").cube), cube[[0, 3, 4, 5]])


# ------------------------------------------------------------------------------------------- values

def test_statistics_of_a_cube_on_disk_equal_those_in_memory(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utility.cubes.values.blocks",
                        lambda cube: ((slice(None), slice(r, r + 3), slice(None))
                                      for r in range(0, cube.shape[1], 3)))
    scene = spoiled()
    statistics = band_statistics(scene.cube, scene.nodata)
    for band, values in enumerate(scene.cube):
        valid = values[np.isfinite(values) & (values != -9999)]
        expected = (valid.min(), valid.max()) if valid.size else (np.nan, np.nan)
        np.testing.assert_array_equal((statistics.low[band], statistics.high[band]), expected)
    assert statistics.not_finite.tolist() == [0, 0, 0, 2, 120, 0, 0, 0]
    assert statistics.missing.tolist() == [0, 0, 0, 0, 0, 0, 10, 0]


def test_min_max_is_taken_in_float64_and_comes_back_exactly() -> None:
    cube = cube_of(4, 9, 9, "int32") + 2_000_000_000  # neighbours that float32 cannot tell apart
    unit, low, high = unit_range(cube)
    assert unit.dtype == np.float32 and unit.min() == 0 and unit.max() == 1
    assert (low, high) == (cube.min(), cube.max())
    np.testing.assert_array_equal(from_unit_range(unit, low, high, "int32"), cube)


def test_the_range_of_a_scene_is_its_own_or_the_unit_range_and_others_are_refused_by_name() -> None:
    unit = Scene(np.array([[[0.25, 0.5]], [[0.75, 0.5]]]), "unit")
    assert value_range(unit) == (0.25, 0.75) and value_range(unit, keep=True) == (0, 1)
    with pytest.raises(
            UserError,
            match=r"big holds values from 5 to 7, and --keep-range expects them in \[0, 1\]"):
        value_range(Scene(np.array([[[5, 7]]]), "big"), keep=True)
    with pytest.raises(UserError, match=r"flat is constant \(5\)"):
        value_range(Scene(np.full((2, 1, 2), 5), "flat"))
    with pytest.raises(UserError, match="holey has 1 values that are NaN"):
        value_range(Scene(np.array([[[1, 2, np.nan]]]), "holey"))


@pytest.mark.parametrize(("lowest", "below", "expected"), [
    (1, 0, 0),                  # near above 0
    (3, 0, 3),                  # farther
    (0, 0, 0),
    (-5, 1, -5),                # near below 0
    (-100, 1, 0), (-2000, 50, 0),
    (-100, 60, -100),           # more than outliers
])
def test_of_an_own_cube_0_takes_the_place_of_a_least_value_near_it_or_of_outliers_below_it(
        lowest: int, below: int, expected: int) -> None:
    cube = np.full((2, 20, 25), 500, "int16")
    cube[0, 0, 0] = 1000
    cube.reshape(-1)[100:100 + max(1, below)] = lowest
    scene = Scene(cube, "own")
    assert value_range(scene, own=True) == (expected, 1000)
    assert value_range(scene) == (lowest, 1000)
    hidden = np.zeros((20, 25), bool)
    hidden.reshape(-1)[100:200] = True
    assert value_range(replace(scene, filled=hidden), own=True) == (500, 1000)


def test_given_limits_are_used_and_negative_values_kept() -> None:
    unit, low, high = unit_range(np.array([[[-5, 0, 10]]], "int16"), low=0, high=5)
    np.testing.assert_array_equal(unit, [[[-1, 0, 2]]])
    assert (low, high) == (0.0, 5.0)


@pytest.mark.parametrize(("value", "reason"),
                         [(3.0, "no contrast"), (np.nan, "NaN"), (np.inf, "NaN or infinite")])
def test_a_cube_without_a_range_is_refused(value: float, reason: str) -> None:
    cube = np.full((2, 3, 3), value)
    if not np.isfinite(value):
        cube[0] = 1
    with pytest.raises(UserError, match=reason):
        unit_range(cube)


def test_overflow_on_the_way_back_is_refused_or_clipped_as_asked() -> None:
    cube = np.array([-0.1, 0.5, 1.1])
    with pytest.raises(UserError, match=r"2 values .* do not fit uint8 \(0 .. 255\)"):
        from_unit_range(cube, 0, 255, "uint8")
    np.testing.assert_array_equal(from_unit_range(cube, 0, 255, "uint8", on_overflow="clip"),
                                  [0, 128, 255])
    np.testing.assert_array_equal(from_unit_range(np.array([0.299, 0.999]), 0, 10, "int16"),
                                  [3, 10])
    with pytest.raises(UserError, match="float16"):
        from_unit_range(cube, 0, 1e6, "float16")
    assert np.isfinite(from_unit_range(cube, 0, 1e6, "float16", on_overflow="clip")).all()
    with pytest.raises(UserError, match="NaN"):
        from_unit_range(np.array([np.nan]), 0, 1, "int16", on_overflow="clip")
    top = from_unit_range(np.array([2.0, -1.0]), 0, 2.0**63, "int64", on_overflow="clip")
    assert top.tolist() == [2**63 - 1, -(2**63)]
    for dtype, top in (("int64", 2**63), ("uint64", 2**64)):  # float64 rounds the largest number up
        assert from_unit_range(np.array([1.0]), 0, float(top), dtype).tolist() == [top - 1]


@pytest.mark.parametrize(("epsg", "moved", "expected"), [
    (32633, (3, 4), (5, "m")),                      # metres
    (2225, (100, 0), (30.480061, "m")),             # US survey feet
    (4326, (0, 0.001), (111.19, "m")),              # degrees
    (None, (3, 4), (5, "map units")),
])
def test_the_distance_between_two_scenes_bounds_is_in_metres(epsg, moved, expected):
    crs = rasterio.crs.CRS.from_epsg(epsg).to_wkt() if epsg else None
    low = Scene(np.zeros((2, 4, 6)), "low", crs=crs, transform=(2, 0, 10, 0, -2, 50))
    high = Scene(np.zeros((2, 8, 12)), "high", crs=crs,
                 transform=(1, 0, 10 + moved[0], 0, -1, 50 + moved[1]))
    assert bounds_distance(low, high) == (pytest.approx(expected[0], rel=1e-3), expected[1])
    assert bounds_distance(low, Scene(np.zeros((2, 4, 6)), "nowhere")) is None


# --------------------------------------------------------------------------- pixels nobody measured

@pytest.mark.parametrize("how", ["mask", "alpha"])
def test_pixels_that_a_mask_or_an_alpha_band_declares_missing_are_missing(
        tmp_path: Path, how: str) -> None:
    cube = cube_of(4, 6, 8, "uint16") + 1
    gone = np.zeros((6, 8), bool)
    gone[:, 5:] = True
    cube[:, gone] = 0
    expected = clean(Scene(cube, "declared", nodata=0))
    says = {"alpha": np.where(gone, 0, 65535)} if how == "alpha" else {"mask": ~gone}
    scene = clean(read_scene(geotiff(tmp_path / "a.tif", cube, **says)))
    assert scene.cube.shape == (4, 6, 8), "an alpha band is no band"
    np.testing.assert_array_equal(scene.missing, gone)
    np.testing.assert_array_equal(scene.cube, expected.cube)
    assert scene.nodata == 0, "a result can say again which pixels are missing"
    np.testing.assert_array_equal(
        scaled(scene, scene.cube.repeat(2, 1).repeat(2, 2), 2).cube[:, :, 10:], 0)


def test_a_fourth_band_that_gdal_calls_alpha_and_that_holds_values_is_a_band(
        tmp_path: Path) -> None:
    cube = (np.random.default_rng(0).random((4, 12, 12)) * 255).astype(np.uint8)
    scene = read_scene(geotiff(tmp_path / "rgbn.tif", cube))
    np.testing.assert_array_equal(scene.cube, cube)
    assert scene.missing is None


def test_a_mask_beside_a_raster_that_is_no_tiff_is_not_opened(tmp_path: Path) -> None:
    path = geotiff(tmp_path / "a.tif", cube_of(4, 6, 8, "uint16"))
    (tmp_path / "a.tif.msk").write_text('<VRTDataset rasterXSize="8" rasterYSize="6"></VRTDataset>')
    assert read_scene(path).missing is None


def test_every_band_has_its_own_no_data_value(tmp_path: Path) -> None:
    cube = cube_of(3, 6, 8, "int16") + 1
    cube[:, 2, 3] = -9999, -1, -9999
    path = geotiff(tmp_path / "a.tif", cube)
    band = '<PAMRasterBand band="{}"><NoDataValue>{}</NoDataValue></PAMRasterBand>'
    bands = "".join(band.format(b, v) for b, v in ((1, -9999), (2, -1), (3, -9999)))
    (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
    scene = clean(read_scene(path))
    assert scene.missing.sum() == 1 and scene.missing[2, 3]


def test_a_value_made_up_in_one_band_is_remembered_and_those_of_all_bands_are_missing() -> None:
    cube = cube_of(4, 6, 6, "float32")
    cube[:, 0, 0] = cube[1, 3, 3] = np.nan
    scene = clean(Scene(cube, "a"), fill_nodata=True)
    assert (scene.missing.sum() == 1 and scene.filled.sum() == 2 and scene.filled[3, 3]
            and np.isfinite(scene.cube).all())
    kept = clean(Scene(cube, "a"), keep_bad=True)
    assert (kept.filled.sum() == 1 and kept.metadata["bad_bands"] == [1]
            and kept.metadata["bad_pixels"][1].sum() == 2)
