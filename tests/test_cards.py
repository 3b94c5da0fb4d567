"""Every card can be read and says what it must; tests share no pixel with training."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import products
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typed import ROOT

from utility import lmdb_data
from utility.cubes.cube import Scene
from utility.datasets.cards import generic_card, list_cards, load_card, locate, split
from utility.datasets.patches import count_patches
from utility.datasets.rectangles import training_rectangles
from utility.datasets.regions import divide, parts
from utility.lmdb_dataset import LMDBDataset
from utility.scenes import Reading, open_as
from utility.system.errors import UserError

FACTS = {  # key, bands, size, patch, strides, zooms
    "icvl": ("rad", 31, (1392, 1300), 64, (64, 32, 32), (1.0, 0.5, 0.25)),
    "pavia_center": ("pavia", 102, (1096, 715), 64, (64,), (1.0,)),
    "pavia_university": ("paviaU", 103, (610, 340), 64, (64,), (1.0,)),
    "salinas": ("salinas_corrected", 204, (512, 217), 64, (32,), (1.0,)),
    "indian_pines": ("indian_pines_corrected", 200, (145, 145), 36, (18,), (1.0,)),
    "urban": ("Y", 162, (307, 307), 64, (32,), (1.0,)),
    "cave": (None, 31, (512, 512), 64, (32, 32), (1.0, 0.5)),
    "harvard": ("ref", 31, (1040, 1392), 64, (64, 32), (1.0, 0.5)),
    "kaist": ("HSI", 31, (2704, 3376), 64, (64, 64), (0.5, 0.25)),
    "foster": ("reflectances", 33, None, 64, (64, 64), (1.0, 0.5)),
    "arad_1k": ("cube", 31, (482, 512), 64, (64,), (1.0,)),
    "chikusei": ("chikusei", 128, (2517, 2335), 64, (64,), (1.0,)),
    "houston_2013": (None, 144, (349, 1905), 64, (32,), (1.0,)),
    "houston_2018": (None, 50, (601, 2384), 64, (32,), (1.0,)),
    "dc_mall": (None, 191, (1280, 307), 64, (32,), (1.0,)),
    "hyspecnet_11k": (None, 224, (128, 128), 64, (64,), (1.0,)),
}
ONE_SCENE = [name for name in list_cards() if load_card(name).test_region]
MINIMAL = 'title = "t"\npatch = 8\nstrides = [8]\n'


def ramp(size: tuple[int, int], bands: int = 2) -> Scene:
    """A scene whose first band holds each pixel's number, so that pixels can be told apart."""
    numbers = np.arange(size[0] * size[1], dtype=np.float64).reshape(size)
    return Scene(np.stack([numbers] + [np.zeros(size)] * (bands - 1)), "ramp")


def card_file(tmp_path, text: str):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_cards_are_all_there():
    assert (set(FACTS)
            | {"sample", "sample_remote", "rendered", "rendered_overhead"} == set(list_cards()))


# of which each scene has another sensor
@pytest.mark.parametrize("name", sorted({*list_cards()} - {"rendered_overhead"}))
def test_a_card_has_a_wavelength_for_each_band_and_shows_red_green_and_blue(name):
    card = load_card(name)
    assert card.name == name and card.title and card.publisher
    assert len(card.wavelengths) == card.bands
    red, green, blue = card.wavelengths[list(card.rgb)]
    assert 600 < red < 700 and 500 < green < 600 and 400 < blue < 500


@pytest.mark.parametrize("name", FACTS)
def test_a_card_holds_the_published_facts(name):
    card = load_card(name)
    assert (card.key, card.bands, card.size, card.patch, card.strides, card.zooms) == FACTS[name]


def test_icvl_trains_on_the_centre_of_the_normalised_scene_and_tests_on_a_normalised_centre():
    card = replace(load_card("icvl"), crop=(8, 8), test_crop=(4, 4), patch=4)
    scene = ramp((16, 20))
    (training,), (test,) = parts(card, scene, "training"), parts(card, scene, "test")
    whole = (scene.cube / (16 * 20 - 1)).astype(np.float32)
    np.testing.assert_allclose(training.cube, whole[:, 4:12, 6:14], atol=1e-7)
    assert (training.region, training.low, training.high, training.over) == (
        (4, 6, 8, 8), 0, 319, "scene")
    assert test.cube.shape == (2, 4, 4) and test.cube.min() == 0 and test.cube.max() == 1
    assert (test.name, test.region, test.over) == ("ramp", (6, 8, 4, 4), "crop")
    assert (load_card("icvl").crop, load_card("icvl").test_crop) == ((1024, 1024), (512, 512))


def test_pavia_center_tests_on_its_centre():
    assert load_card("pavia_center").test_region == ((1096 - 256) // 2, (715 - 256) // 2, 256, 256)


@pytest.mark.parametrize("name", ONE_SCENE)
def test_training_validation_and_test_share_no_pixel_and_every_patch_fits(name):
    card = load_card(name)
    assert all(n % 8 == 0 for n in card.test_region[2:])
    scene, covered = ramp(card.size), np.zeros(card.size, int)
    for use in ("training", "validation", "test"):
        found = parts(card, scene, use)
        for part in found:
            top, left, h, w = part.region
            covered[top : top + h, left : left + w] += 1
            assert part.cube[0, 0, 0] * (scene.cube[0].size - 1) == pytest.approx(
                scene.cube[0, top, left], rel=1e-5)
        patches = sum(count_patches(part.cube.shape[1:], card.patch, card.strides, card.zooms)
                      for part in found)
        assert patches >= {"training": 24, "validation": 3, "test": 1}[use]
    assert covered.max() == 1


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_training_rectangles_cover_what_the_others_leave_exactly_once(data):
    height, width = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))

    def rectangle():
        h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
        return data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w)), h, w

    held, covered, expected = ([rectangle(), rectangle()], np.zeros((height, width), int),
                               np.ones((height, width), int))
    for t, le, rows, columns in held:
        expected[t : t + rows, le : le + columns] = 0
    for t, le, rows, columns in training_rectangles((height, width), *held):
        covered[t : t + rows, le : le + columns] += 1
    assert (covered == expected).all()


def test_without_a_card_the_whole_scene_trains_and_tests():
    scene = ramp((6, 7))
    (training,), (test,) = (parts(generic_card(4), scene, "training"),
                            parts(generic_card(4), scene, "test"))
    assert training.cube.dtype == np.float32 and training.cube.shape == scene.cube.shape
    assert np.array_equal(training.cube, test.cube)


def test_an_unknown_card_is_answered_with_the_near_ones():
    with pytest.raises(UserError, match=r"'indian_pine'.*did you mean indian_pines"):
        load_card("indian_pine")


def test_a_card_of_ones_own_is_read_by_path(tmp_path):
    card = load_card(card_file(tmp_path, MINIMAL + "wavelengths = [500, 600.5]\nbands = 2\n"))
    assert (card.name, card.patch, card.zooms, list(card.wavelengths)) == (
        "mine", 8, (1.0,), [500, 600.5])


def test_removed_channels_are_counted_from_1(tmp_path):
    text = (MINIMAL + "bands = 3\nwavelengths = { first = 400, last = 900, count = 6, removed = "
            "[[1, 2], [6, 6]] }\n")
    assert list(load_card(card_file(tmp_path, text)).wavelengths) == [600, 700, 800]


REGION = MINIMAL + "size = [20, 20]\n"


@pytest.mark.parametrize(("text", "field"),
                         [('patch = 8\nstrides = [8]\n', "title"),
                          ('title = "t"\nstrides = [8]\n', "patch"),
                          (MINIMAL + "pach = 3\n", "pach.*did you mean 'patch'"),
                          (MINIMAL.replace("8\n", '"8"\n', 1), "patch"),
                          (MINIMAL + "bands = true\n", "bands"), (MINIMAL + "bands = 0\n", "bands"),
                          (MINIMAL + 'layout = "WHB?"\n', "layout"),
                          (MINIMAL + 'normalise = "band"\n', "normalise"),
                          (MINIMAL + "zooms = [2.0]\n", "zooms"),
                          (MINIMAL + "zooms = []\n", "zooms"),
                          (MINIMAL + "zooms = [1.0, 0.5]\n", "strides.*expected 2"),
                          (MINIMAL + "crop = [8]\n", "crop"), (MINIMAL + "rgb = [0, 1]\n", "rgb"),
                          (MINIMAL + "bands = 3\nrgb = [0, 1, 3]\n", "rgb.*below the 3 bands"),
                          (MINIMAL + "bands = 3\nwavelengths = [400, 500]\n",
                           "wavelengths.*2 values"),
                          (MINIMAL + "wavelengths = { first = 400, last = 700 }\n", "wavelengths"),
                          (MINIMAL + "bands = 3\nwavelengths = { from = 400, last = 700 }\n",
                           "wavelengths"),
                          (MINIMAL + "test_region = [0, 0, 8, 8]\n", "size.*is missing"),
                          (REGION + "test_region = [16, 0, 8, 8]\n", "test_region.*inside"),
                          (REGION + "test_region = [0, 0, 16, 16]\n", "test_region.*room"),
                          (REGION + "test_region = [0, 0, 8, 8]\ncrop = [9, 9]\n",
                           "test_region.*either"),
                          (REGION + "test_region = [0, 0, 8, 0]\n", "test_region"),
                          (REGION + "validation_region = [0, 0, 7, 9]\n",
                           "validation_region.*room for a patch"),
                          (REGION + "test_region = [0, 0, 8, 8]\nvalidation_region = [7, 0, 8, "
                           "8]\n", "validation_region.*no pixel"),
                          (REGION + "test_region = [0, 0, 8, 20]\nvalidation_region = [8, 0, 8, "
                           "20]\n", "validation_region.*training patch")])
def test_a_wrong_card_is_refused_by_file_and_field(tmp_path, text, field):
    with pytest.raises(UserError, match=rf"mine\.toml: the field '?{field}"):
        load_card(card_file(tmp_path, text))


def test_a_card_that_is_not_toml_or_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"mine\.toml is not TOML"):
        load_card(card_file(tmp_path, "title = "))
    with pytest.raises(UserError, match=r"gone\.toml.*No such file"):
        load_card(tmp_path / "gone.toml")


def test_a_scene_of_another_size_or_too_small_is_refused_by_name_and_sizes():
    with pytest.raises(UserError, match=r"ramp is 100x145 pixels.*145x145"):
        parts(load_card("indian_pines"), ramp((100, 145)), "training")
    with pytest.raises(UserError, match=r"ramp is 600x1400 pixels.*1024x1024"):
        parts(load_card("icvl"), ramp((600, 1400)), "training")
    with pytest.raises(UserError, match=r"ramp is 20x40 pixels, smaller than a patch of 32x32"):
        divide(generic_card(32), ramp((20, 40)))


# --- where the scenes are -------------------------------------------------------------------------

def test_icvl_s_lists_hold_100_and_101_scenes_and_the_validating_ones_are_of_training():
    card = load_card("icvl")
    files = [Path(f"{line}") for name in (card.scenes, card.test_scenes)
             for line in (card.folder / name).read_text().split()]
    training, test = split(card, files, "training"), split(card, files, "test")
    assert (len(training[0]), len(test[0])) == (100, 101) and not training[1] and not test[1]
    assert not set(training[0]) & set(test[0])
    assert set(card.validation_scenes) <= {file.stem for file in training[0]}


def test_missing_and_extra_scenes_are_named(tmp_path):
    (tmp_path / "training.txt").write_text("a.mat\nb.mat\n\n")
    (tmp_path / "test.txt").write_text("c.mat\n")
    card = load_card(
        card_file(tmp_path, MINIMAL + 'scenes = "training.txt"\ntest_scenes = "test.txt"\n'))
    files = [Path("c.mat"), Path("b.mat"), Path("other.mat")]
    notes = ["1 of the 2 training scenes of mine are missing: a",
             "no list of mine names these files, so they are left out: other"]
    assert split(card, files, "training") == ([Path("b.mat")], notes)
    with pytest.raises(UserError, match=r"None of the 1 test scenes.*called c"):
        split(card, files[1:], "test")
    with pytest.raises(UserError, match=r"gone\.txt, which cannot be read"):
        split(replace(card, scenes="gone.txt"), files, "training")


def test_a_scene_is_found_in_an_installed_package_or_the_way_to_it_is_said(tmp_path, monkeypatch):
    (tmp_path / "toyscenes" / "data").mkdir(parents=True)
    (tmp_path / "toyscenes" / "__init__.py").write_text("raise RuntimeError('must not be run')")
    card = load_card(card_file(
        tmp_path,
        MINIMAL + f'source = "{tmp_path}/here"\npackage = ["toyscenes", "data/cube.npy"]\n'))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError,
                       match=r"training scenes of mine are not in .*here; pip install toyscenes"):
        locate(card, "training")
    (tmp_path / "toyscenes" / "data" / "cube.npy").touch()
    assert locate(card, "test") == tmp_path / "toyscenes" / "data" / "cube.npy"
    (tmp_path / "here").mkdir()
    assert locate(card, "training") == tmp_path / "here"


def test_a_folder_of_pictures_as_cave_is_delivered_trains_by_the_lists_of_the_card(tmp_path):
    for i, name in enumerate(("beads_ms", "cloth_ms", "paints_ms", "hairs_ms", "mine_ms")):
        products.cave(tmp_path / "CAVE" / name, light=1 - i / 10)
    lmdb_data.main(["--dataset", "cave", "--source", str(tmp_path / "CAVE"), "--out", "a.lmdb",
                    "--patch", "8", "--zooms", "1", "--stride", "8", "--quiet"])
    meta = LMDBDataset("a.lmdb").meta
    assert sorted(source["name"] for source in meta["sources"]) == [
        "beads_ms", "cloth_ms", "paints_ms"]
    assert {source["name"] for source in meta["sources"] if source["part"] == "validation"} == {
        "beads_ms", "paints_ms"}
    assert meta["shape"][0] == 31 and meta["wavelengths"][-1] == 700
    lists = [set(Path(ROOT, "data/splits", f"cave_{use}.txt").read_text().split())
             for use in ("train", "test")]
    assert [len(names) for names in lists] == [20, 12] and not lists[0] & lists[1]


def test_a_card_takes_the_bands_that_hold_a_spectrum(tmp_path):
    card = replace(load_card("houston_2018"), size=(24, 28), test_region=None,
                   validation_region=None)
    cube = np.random.default_rng(0).random((50, 24, 28)).astype("f4")
    cube[48:] = 0
    np.save(tmp_path / "a.npy", cube)
    scene = open_as(tmp_path / "a.npy", card.completed(Reading(layout="BHW")))
    np.testing.assert_array_equal(scene.cube, cube[:48])
    assert len(scene.wavelengths) == 48 and scene.wavelengths[-1] == pytest.approx(1050.1, abs=0.1)
