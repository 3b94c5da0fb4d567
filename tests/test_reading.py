"""Opening as options and card say: database, test and own cube see the same scene."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from utility.cubes import bands, values
from utility.cubes.cube import Scene
from utility.cubes.formats import rasters
from utility.datasets.building import build_database
from utility.datasets.cards import generic_card, load_card
from utility.scenes import Reading, open_as, read_scene, write_scene
from utility.superres.cube_file import apply_to_file
from utility.superres.problem import Problem
from utility.superres.written_values import Writing
from utility.system.errors import UserError
from utility.testing.images import read_images


def card_of(folder: Path, text: str = ""):
    path = folder / "mine.toml"
    path.write_text(f'title = "Mine"\npatch = 8\nstrides = [8]\n{text}')
    return load_card(path)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """5 bands of 16 x 20 pixels, the third one dead."""
    cube = np.random.default_rng(0).random((5, 16, 20), np.float32)
    cube[2] = np.nan
    np.savez(tmp_path / "scene.npz", cube=cube, other=cube[:4], layout="BHW")
    return tmp_path / "scene.npz"


def test_a_raster_is_decoded_once_and_its_statistics_are_computed_once(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cube = np.random.default_rng(0).integers(0, 999, (5, 16, 20)).astype(np.uint16)
    write_scene(tmp_path / "a.tif", Scene(cube, "a"))
    lazy, statistics, decoded, counted = rasters.LazyCube, values.band_statistics, [], []

    def counting(shape, dtype, read, **more):
        def noted(*block):
            found = read(*block)
            decoded.append(found.size)
            return found

        return lazy(shape, dtype, noted, **more)

    def counted_statistics(cube, *more, **how):
        counted.append(cube.shape)
        return statistics(cube, *more, **how)

    monkeypatch.setattr(rasters, "LazyCube", counting)
    for module in (values, bands):
        monkeypatch.setattr(module, "band_statistics", counted_statistics)
    for use in (lambda: apply_to_file(None, tmp_path / "a.tif", tmp_path / "b.npy",
                                      Problem(2, "area", method="interpolation"), Reading(),
                                      Writing()),
                lambda: list(read_images([tmp_path / "a.tif"], Reading())),
                lambda: build_database(tmp_path / "a.lmdb", [tmp_path / "a.tif"],
                                       generic_card(8), val_last=0)):
        decoded.clear()
        counted.clear()
        use()
        assert sum(decoded) == cube.size and counted == [cube.shape]


def test_wavelengths_of_a_card_follow_the_bands_that_are_kept(tmp_path: Path, scene: Path) -> None:
    card = card_of(tmp_path, 'key = "cube"\nwavelengths = [400, 500, 600, 700, 800]\n')
    tested = open_as(scene, card.completed(Reading(drop_bad_bands=True)))
    built = build_database(tmp_path / "a.lmdb", [scene], card, drop_bad_bands=True)
    assert tested.wavelengths.tolist() == built["wavelengths"] == [400, 500, 700, 800]


def test_a_card_with_another_number_of_wavelengths_is_refused_by_all(
        tmp_path: Path, scene: Path) -> None:
    card = card_of(tmp_path, 'key = "cube"\nwavelengths = [400, 500, 600, 700]\n')
    with pytest.raises(UserError, match=r"scene\.npz.*4 were expected"):
        open_as(scene, card.completed(Reading(drop_bad_bands=True)))
    with pytest.raises(UserError, match=r"scene\.npz.*4 were expected"):
        build_database(tmp_path / "a.lmdb", [scene], card, drop_bad_bands=True)


def test_options_go_before_the_card_and_the_card_before_the_file(
        tmp_path: Path, scene: Path) -> None:
    card = card_of(tmp_path, 'key = "cube"\n')
    assert open_as(scene, card.completed(Reading(drop_bands="2"))).cube.shape == (4, 16, 20)
    assert open_as(scene, card.completed(Reading(key="other", bands="0-1"))).key == "other"
    with pytest.raises(UserError, match="choose one with --key"):
        open_as(scene)
    assert open_as(scene, Reading(key="cube", fill_nodata=True, drop_bad_bands=True),
                   in_memory=False).cube.shape[0] == 4


def test_the_size_of_a_card_is_for_pixels_and_an_option_goes_first(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).random((3, 8, 6))
    np.save(tmp_path / "flat.npy", cube.transpose(0, 2, 1).reshape(3, -1))
    card = card_of(tmp_path, 'layout = "pixels-columns"\nsize = [8, 6]\n')
    np.testing.assert_array_equal(open_as(tmp_path / "flat.npy", card.completed(Reading())).cube,
                                  cube)
    assert (open_as(tmp_path / "flat.npy", card.completed(Reading(size=(6, 8)))).cube.shape
            == (3, 6, 8))
    columns = read_scene(tmp_path / "flat.npy", layout="pixels-columns", size=(8, 6))
    np.testing.assert_array_equal(columns.cube, cube)


def test_the_note_on_missing_pixels_says_what_becomes_of_them(tmp_path: Path, capsys) -> None:
    cube = np.random.default_rng(0).random((5, 16, 20), np.float32)
    cube[:, :2] = -9999
    write_scene(tmp_path / "a.tif", Scene(cube, "a", nodata=-9999))
    open_as(tmp_path / "a.tif")
    assert ("40 of 320 pixels are missing in all bands; they are left out of all figures, and stay "
            "no-data in a result") in capsys.readouterr().err


def test_a_picture_a_scene_of_a_few_pixels_and_one_of_three_bands_are_told_apart(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(UserError, match=r"a\.png is a PNG picture.*or a folder of PNG"):
        open_as(tmp_path / "a.png")
    np.save(tmp_path / "few.npy", np.random.default_rng(0).random((20, 3, 5)))
    with pytest.raises(UserError, match=r"few\.npy is 3 x 5 pixels, and at least 4 x 4 are needed"):
        open_as(tmp_path / "few.npy", Reading(layout="BHW"))
    np.save(tmp_path / "rgb.npy", np.random.default_rng(0).random((9, 8, 3)))
    open_as(tmp_path / "rgb.npy", Reading(layout="HWB"))
    assert "rgb.npy has 3 bands, as a colour picture has" in capsys.readouterr().err
