"""The sample scenes: ICVL's format, plausible spectra, something to learn, repeatable."""
from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from typed import typed

from utility.cubes.bands import find_bad_bands
from utility.datasets.cards import load_card
from utility.datasets.regions import parts
from utility.degradation import degrade, downsample
from utility.scenes import read_scene
from utility.system.errors import UserError

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))
import make_samples as maker


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples") / "sample"
    maker.make_samples(folder, train=2, test=1, side=96, remote=(160, 128))
    return folder


def natural(folder: Path) -> list[Path]:
    return sorted(folder.glob("natural/*/*.mat"))


def test_the_files_are_where_the_cards_look_for_them(folder):
    assert [path.relative_to(folder).as_posix() for path in natural(folder)] == [
        "natural/test/natural_03.mat", "natural/train/natural_01.mat",
        "natural/train/natural_02.mat"]
    for name in ("sample", "sample_remote"):
        for source in (load_card(name).source, load_card(name).test_source):
            assert any((folder / Path(source).relative_to("data/sample")).glob("*.mat"))


def test_the_village_as_flown_covers_the_same_ground_at_a_quarter_of_the_resolution(folder):
    low, village = (read_scene(folder / "own" / "village_16m.tif"),
                    read_scene(folder / "remote" / "village.mat"))
    assert (low.cube.shape == (103, 40, 32) and low.transform[0] * 32 == 4 * 128
            and "UTM zone 33N" in low.crs)
    expected = downsample(torch.from_numpy(village.cube.astype(np.float64)), 4, "mtf 0.3").numpy()
    assert np.abs(low.cube - expected).max() <= 0.5


def test_a_natural_scene_is_a_v7_3_file_like_icvls_stored_bands_columns_rows(tmp_path):
    path, cube = tmp_path / "s.mat", np.arange(31 * 6 * 4, dtype=np.float32).reshape(31, 6, 4)
    maker.write_as_icvl(path, cube)
    assert path.read_bytes()[:10] == b"MATLAB 7.3" and path.read_bytes()[124:128] == b"\x00\x02IM"
    with pytest.raises(NotImplementedError, match="HDF reader"):
        scipy.io.loadmat(path)
    with h5py.File(path) as file:
        assert file.userblock_size == 512 and file["rad"].attrs["MATLAB_class"] == b"single"
        assert np.array_equal(file["rad"], cube.transpose(0, 2, 1))
    card = load_card("sample")
    assert np.array_equal(read_scene(path, key=card.key, layout=card.layout, bands=card.bands).cube,
                          cube)


def test_the_scenes_are_read_without_being_told_how(folder):
    for path in natural(folder):
        scene = read_scene(path)
        assert scene.cube.shape == (31, 96, 96) and scene.key == "rad"
        np.testing.assert_allclose(scene.wavelengths, load_card("sample").wavelengths)
    scene = read_scene(folder / "remote" / "village.mat")
    assert scene.cube.shape == (103, 160, 128) and scene.cube.dtype == np.uint16
    np.testing.assert_allclose(scene.wavelengths, load_card("sample_remote").wavelengths)


def test_the_scenes_hold_counts_of_a_12_bit_sensor_and_no_bad_band(folder):
    for path in [*natural(folder), folder / "remote" / "village.mat"]:
        cube = read_scene(path).cube
        assert (
            cube.min() >= 0 and 2500 < cube.max() <= 4095 and np.array_equal(cube, np.round(cube)))
        assert not find_bad_bands(cube)


def test_spectra_are_smooth_and_water_absorbs(folder):
    cube = read_scene(natural(folder)[0]).cube
    steps = np.abs(np.diff(cube.astype(np.float64).mean((1, 2)))) / cube.mean()
    assert steps.max() < 0.3
    village = read_scene(folder / "remote" / "village.mat")
    mean = dict(zip(village.wavelengths.tolist(), village.cube.mean((1, 2)), strict=True))
    for dip, shoulder in [(940, 860), (1140, 1060), (1380, 1260), (1860, 1660)]:
        assert mean[dip] < 0.85 * mean[shoulder]


def test_interpolation_leaves_something_to_learn(folder):
    for path in natural(folder):
        cube = parts(load_card("sample"), read_scene(path), "training")[0].cube
        low = degrade(torch.from_numpy(cube), 4, "bicubic").numpy()
        psnr = np.mean(10 * np.log10(1 / ((low - cube) ** 2).mean((1, 2))))
        assert 23 < psnr < 36


def test_the_same_seed_gives_the_same_scenes_and_another_seed_others():
    for name, seed in (("first", 2021), ("again", 2021), ("other", 7)):
        maker.make_samples(name, seed, train=1, test=0, side=48, remote=(48, 48))
    for part in ("natural/train/natural_01.mat", "remote/village.mat"):
        first, again, other = (
            read_scene(Path(name, part)).cube for name in ("first", "again", "other"))
        assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_no_two_scenes_are_alike(folder):
    first, second, third = (
        read_scene(path).cube.astype(np.float64).ravel() for path in natural(folder))
    assert np.abs(np.corrcoef([first, second, third])[np.triu_indices(3, 1)]).max() < 0.8


def test_a_folder_of_something_else_is_not_replaced_even_by_force(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis").write_text("thesis")
    done = typed("data/make_samples.py --out precious --force")
    assert (
        done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1)
    assert [path.name for path in (tmp_path / "precious").iterdir()] == ["thesis"]


def test_samples_are_replaced_by_force_alone(tmp_path):
    small = {"train": 1, "test": 0, "side": 16, "remote": (16, 16)}
    folder = tmp_path / "sample"
    folder.mkdir()
    maker.make_samples(folder, overwrite=True, **small)
    (folder / "natural" / "stale").touch()
    with pytest.raises(UserError, match="exists already"):
        maker.make_samples(folder)
    assert (folder / "natural" / "stale").exists()
    maker.make_samples(folder, overwrite=True, **small)
    assert not (folder / "natural" / "stale").exists() and len(natural(folder)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]
