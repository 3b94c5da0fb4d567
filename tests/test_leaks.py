"""What validates shares no pixel with what trains; what is lost by it is said."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made import smooth

from utility.datasets.building import build_database
from utility.datasets.cards import generic_card
from utility.datasets.regions import GAP
from utility.lmdb_dataset import LMDBDataset
from utility.system.errors import UserError
from utility.training.configuration import TrainingConfig
from utility.training.plan import prepare


def scenes(folder: Path, count: int, size: tuple[int, int] = (40, 44)) -> list[Path]:
    """Scenes of which no two spectra are alike."""
    rng = np.random.default_rng(0)
    paths = [folder / f"scene{k}.npy" for k in range(count)]
    for path in paths:
        np.save(path, rng.random((5, *size), np.float32))
    return paths


def shared(path: Path) -> tuple[int, int, int]:
    """Training patches, validation patches, how many of these have a spectrum of the others."""
    def spectra(patch):
        return {spectrum.tobytes() for spectrum in patch.reshape(len(patch), -1).T.copy()}

    train, validation = (list(map(spectra, LMDBDataset(path, split)))
                         for split in ("train", "validation"))
    seen = set().union(*train)
    return len(train), len(validation), sum(bool(seen & patch) for patch in validation)


@pytest.mark.parametrize(("count", "strides", "augment"), [
    (1, (16,), 1), (2, (4,), 1), (2, (16,), 8), (1, (5,), 3), (5, (8,), 2), (10, (16,), 1)])
def test_no_pixel_that_validates_is_trained_on(tmp_path, capfd, count, strides, augment):
    card = generic_card(12)
    card = type(card)(**{**card.__dict__, "strides": strides})
    build_database(tmp_path / "a.lmdb", scenes(tmp_path, count), card, augment=augment)
    training, validation, leaks = shared(tmp_path / "a.lmdb")
    assert training and validation and not leaks
    said = capfd.readouterr().err
    last = f"scene{count - 1}.npy"
    assert (f"{last}: validates as a whole" in said if count >= 5
            else f"of {last} validate, and up to {GAP} pixels" in said)


def test_copies_of_scenes_at_other_zooms_hold_no_pixel_of_validation(tmp_path):
    path = tmp_path / "scene.npy"
    cube = smooth(3, 96, 100)
    # the lower right corner, which validates, and nothing else, has this value
    cube[:, 70:, 70:] = 5
    np.save(path, cube)
    card = generic_card(16)
    card = type(card)(**{**card.__dict__, "strides": (8, 4), "zooms": (1.0, 0.5)})
    meta = build_database(tmp_path / "a.lmdb", [path], card)
    top, left, height, width = meta["sources"][-1]["regions"][0]
    held = np.zeros((96, 100), bool)
    held[max(top - GAP, 0):top + height, max(left - GAP, 0):left + width] = True
    for first, start, h, w in meta["sources"][0]["regions"]:
        assert not held[first:first + h, start:start + w].any()


def test_the_last_patches_are_taken_when_asked_for_and_what_they_share_is_said(tmp_path, capfd):
    card = generic_card(16)
    card = type(card)(**{**card.__dict__, "strides": (4,)})
    build_database(tmp_path / "a.lmdb", scenes(tmp_path, 1), card, val_last=5)
    assert shared(tmp_path / "a.lmdb")[1:] == (5, 5)
    assert ("5 of the last 5 patches, which validate, share pixels with patches that train"
            in capfd.readouterr().err)
    build_database(tmp_path / "b.lmdb", scenes(tmp_path, 1), generic_card(20), val_last=1)
    assert (
        shared(tmp_path / "b.lmdb")[1:] == (1, 0) and "share pixels" not in capfd.readouterr().err)
    build_database(tmp_path / "c.lmdb", scenes(tmp_path, 2), generic_card(20), val_last=3,
                   augment=2)
    assert (shared(tmp_path / "c.lmdb")[1:] == (3, 1)
            and "1 of the last 3 patches" in capfd.readouterr().err)


def test_no_validation_means_none(tmp_path):
    build_database(tmp_path / "a.lmdb", scenes(tmp_path, 2), generic_card(16), val_last=0)
    assert [len(LMDBDataset(tmp_path / "a.lmdb", split)) for split in ("train", "validation")] == [
        8, 0]
    with pytest.raises(UserError, match="holds no validation patches"):
        prepare(TrainingConfig(arch="biqrnn_2_1", data=str(tmp_path / "a.lmdb")))
    build_database(tmp_path / "b.lmdb", scenes(tmp_path, 1), generic_card(16))
    plan = prepare(TrainingConfig(arch="biqrnn_2_1",
                                  data=(str(tmp_path / "a.lmdb"), str(tmp_path / "b.lmdb"))))
    assert any("all of its 8 train" in text for text in plan.notes)


def test_a_scene_too_small_to_divide_is_said_to_hold_out_nothing(tmp_path, capfd):
    build_database(tmp_path / "a.lmdb", scenes(tmp_path, 1, (18, 20)), generic_card(16))
    assert "no room for a patch that validates" in capfd.readouterr().err
    build_database(tmp_path / "b.lmdb", scenes(tmp_path, 2, (18, 20)), generic_card(16))
    assert (shared(tmp_path / "b.lmdb") == (1, 1, 0)
            and "scene1.npy: validates as a whole" in capfd.readouterr().err)


def test_the_corner_that_is_held_out_has_measured_pixels(tmp_path):
    path, = scenes(tmp_path, 1, (40, 80))
    cube = np.load(path)
    cube[:, :, 40:] = np.nan
    np.save(path, cube)
    build_database(tmp_path / "a.lmdb", [path], generic_card(12))
    training, validation, leaks = shared(tmp_path / "a.lmdb")
    assert training and validation and not leaks


def test_the_same_scene_under_two_names_is_in_one_part_alone(tmp_path):
    first, second = scenes(tmp_path, 2)
    second.write_bytes(first.read_bytes())
    with pytest.raises(UserError, match=r"scene1\.npy holds the very pixels of .*scene0\.npy"):
        build_database(tmp_path / "a.lmdb", [first, second], generic_card(12),
                       val_scenes=["scene1"])
    with pytest.raises(UserError, match="very pixels"):
        build_database(tmp_path / "a.lmdb", [first, second], generic_card(12))
    build_database(tmp_path / "a.lmdb", [first, second], generic_card(12), val_last=0)


def test_scenes_of_one_name_in_folders_of_their_own_are_told_apart(tmp_path, capfd):
    paths = []
    for number, path in enumerate(scenes(tmp_path, 6)):
        (tmp_path / str(number)).mkdir()
        paths.append(path.rename(tmp_path / str(number) / "cube.npy"))
    build_database(tmp_path / "a.lmdb", [tmp_path], generic_card(12))
    training, validation, leaks = shared(tmp_path / "a.lmdb")
    assert (training, validation, leaks) == (45, 9, 0)
    assert "cube.npy: validates as a whole" in capfd.readouterr().err


def test_a_scene_that_was_to_validate_and_cannot_be_read_is_said(tmp_path, capfd):
    paths = scenes(tmp_path, 2)
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    build_database(tmp_path / "a.lmdb", paths, generic_card(12), failed=[])
    assert "scene1.npy was to validate, and could not be used" in capfd.readouterr().err


def test_stored_variants_are_made_of_training_patches_alone(tmp_path):
    counts = {}
    for augment in (1, 8):
        build_database(tmp_path / f"{augment}.lmdb", scenes(tmp_path, 2), generic_card(12),
                       augment=augment)
        counts[augment] = shared(tmp_path / f"{augment}.lmdb")
    training, validation, _ = counts[1]
    assert counts[8] == (8 * training, validation, 0)
