"""What an option promises is done, or refused in a sentence; one bad scene stops no other."""
from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import scipy.io
import torch
from made import geotiff as tif
from made import network, smooth

import hsi_sr
import hsi_test
from utility import lmdb_data, weights
from utility.checkpoints import load_checkpoint, model_from_checkpoint, save_checkpoint
from utility.lmdb_dataset import LMDBDataset
from utility.system.errors import UserError
from utility.training.remarks import without_gain


@pytest.fixture
def scene(tmp_path):
    return tif(tmp_path / "scene.tif", (1000 * smooth(5, 24, 28)).astype(np.uint16))


def enlarge(scene, *arguments):
    return hsi_test.main(["--input", str(scene), "--output", "high.tif", "--scale", "2", "--method",
                          "backprojection", "--degradation", "gaussian", *map(str, arguments)])


# ------------------------------------------------------------------------------------------ options

def test_unit_range_writes_values_in_0_to_1(scene, capfd):
    enlarge(scene, "--unit-range", "--snr", "none")
    with rasterio.open("high.tif") as file:
        values = file.read()
    assert values.dtype == np.float32 and values.min() == 0 and values.max() == 1
    assert "lay outside [0, 1] and were clipped" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"lie outside \[0, 1\]"):
        enlarge(scene, "--unit-range", "--snr", "none", "--on-overflow", "refuse", "--force")


@pytest.mark.parametrize(("arguments", "words"),
                         [(["--nodata", "-9999"], "uint16, none of which can be -9999"),
                          (["--key", "cube"], "no name, and --key"),
                          (["--layout", "BHW"], "says which axis is which; leave --layout"),
                          (["--size", "24", "28"], "leave --size out"),
                          (["--border", "3"], "--border is for tests"),
                          (["--preset", "sspsr"], "--preset is for tests"),
                          (["--no-figures"], "--no-figures is for tests"),
                          (["--minutes", "3"], "--minutes is for --adapt")])
def test_an_option_without_effect_on_a_result_is_refused(scene, arguments, words):
    with pytest.raises(UserError, match=words):
        enlarge(scene, *arguments)
    assert not Path("high.tif").exists()


@pytest.mark.parametrize(("arguments", "words"),
                         [(["--nodata", "-9999"], "uint16, none of which can be -9999"),
                          (["--key", "cube"], "no name, and --key"),
                          (["--drop-bad-bands"], "--drop-bad-bands changes nothing"),
                          (["--data", "scene.tif"], "--data changes nothing"),
                          (["--unit-range"], "--unit-range changes nothing")])
def test_an_option_without_effect_on_what_info_says_is_refused(scene, arguments, words):
    with pytest.raises(UserError, match=words):
        hsi_test.main(["--info", str(scene), "--scale", "2", *arguments])


@pytest.mark.parametrize("card", [(), ("--dataset", "mine.toml")])
def test_a_no_data_value_that_no_value_can_be_is_refused_for_a_database_too(scene, card):
    Path("mine.toml").write_text('title = "Mine"\npatch = 8\nstrides = [8]\n')
    with pytest.raises(UserError, match="uint16, none of which can be -9999"):
        lmdb_data.main(["--source", str(scene), "--patch", "8", "--nodata", "-9999", *card, "--out",
                        "a.lmdb"])
    assert not Path("a.lmdb").exists()


@pytest.mark.parametrize(
        "arguments",
        [["--dtype", "float32"], ["--unit-range"], ["--cog"], ["--on-overflow", "refuse"]])
def test_an_option_without_effect_on_a_test_is_refused(scene, arguments):
    with pytest.raises(UserError, match=f"{arguments[0]} is for the result"):
        hsi_test.main(
            ["--data", str(scene), "--method", "interpolation", "--scale", "2", *arguments])


def test_the_help_says_how_each_preset_computes(capsys):
    with pytest.raises(SystemExit):
        hsi_test.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for words in ("standard: SSIM by the authors' 11x11 Gaussian window",
                  "reference: the released code's, SSIM by 7x7",
                  "sspsr: as the field's most copied script"):
        assert words in said


# ----------------------------------------------------------------------------------- several scenes

@pytest.fixture
def mixed(tmp_path, scene):
    """A folder of a scene, another one, a map of classes and a truncated file."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    scene.rename(folder / "a.tif")
    scipy.io.savemat(folder / "b.mat", {"b": smooth(5, 24, 28, 1).transpose(1, 2, 0)})
    scipy.io.savemat(folder / "b_gt.mat",
                     {"b_gt": np.arange(24 * 28, dtype=np.uint8).reshape(24, 28) % 7})
    (folder / "c.tif").write_bytes((folder / "a.tif").read_bytes()[:400])
    return folder


def test_a_folder_is_taken_alike_by_all_commands(mixed, capfd):
    commands = {"test": lambda: hsi_test.main(["--data", str(mixed), "--method", "interpolation",
                                               "--scale", "2", "--out", "test", "--no-figures"]),
                "result": lambda: hsi_test.main(["--input", str(mixed), "--output", "made",
                                                 "--method", "interpolation", "--scale", "2"]),
                "database": lambda: lmdb_data.main(
                    ["--source", str(mixed), "--patch", "8", "--out", "a.lmdb"])}
    for name, command in commands.items():
        assert command() == 1, name
        said = capfd.readouterr().err
        assert "left out, for they hold no cube: b_gt.mat" in said, name
        assert "failed: " in said and "c.tif" in said.splitlines()[-1], name
    results = json.loads(Path("test/metrics.json").read_text())
    assert ([row["name"] for row in results["images"]] == ["a", "b"]
            and "c.tif" in results["failed"][0])
    assert sorted(path.name for path in Path("made").iterdir()) == ["a_x2.tif", "b_x2.mat"]
    assert {source["file"] for source in LMDBDataset("a.lmdb").meta["sources"]} == {
        "a.tif", "b.mat"}


def test_one_scene_that_cannot_be_used_is_refused_at_once(mixed):
    for arguments in (["--data", str(mixed / "c.tif")],
                      ["--input", str(mixed / "c.tif"), "--output", "high.tif"]):
        with pytest.raises(UserError, match=r"c\.tif"):
            hsi_test.main([*arguments, "--method", "interpolation", "--scale", "2"])
    with pytest.raises(UserError, match=r"c\.tif"):
        lmdb_data.main(["--source", str(mixed / "c.tif"), "--out", "a.lmdb"])
    assert not Path("a.lmdb").exists()


# ------------------------------------------------------------------------------------------ weights

PLACES = {"bare": lambda w: w, "an ordered dict": lambda w: OrderedDict(w),
          "params": lambda w: {"params": w},
          "params_ema": lambda w: {"params": {k: v * 0 for k, v in w.items()}, "params_ema": w},
          "state_dict": lambda w: {"state_dict": {f"model.{k}": v for k, v in w.items()},
                                   "epoch": 3, "global_step": 7,
                                   "optimizer_states": [{"state": {}}]},
          "with a loss": lambda w: {"state_dict": {**{f"net.{k}": v for k, v in w.items()},
                                                   "loss.weight": torch.ones(3)}},
          "model": lambda w: {"model": {f"module.{k}": v for k, v in w.items()}, "scale": 4},
          "model_state_dict": lambda w: {"model_state_dict": w, "loss": "l1"}}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["biqrnn_2_1", "lowgrid_8_1"])
def test_weights_load_from_where_other_programs_keep_them(place, name):
    net = network(name="biqrnn_2_1") if name == "biqrnn_2_1" else None
    if net is None:
        from models import create_model

        torch.manual_seed(0)
        net = create_model(name)
    torch.save(PLACES[place](dict(net.state_dict())), "theirs.pth")
    loaded, info = model_from_checkpoint("theirs.pth", None if name == "biqrnn_2_1" else name)
    assert info.arch == name
    for key, value in net.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value)


def test_tensors_that_are_no_network_of_ours_are_refused_with_what_they_hold():
    torch.save({"a": torch.ones(3), "b": torch.ones(2)}, "theirs.pth")
    with pytest.raises(UserError, match="it holds a dict with a, b"):
        load_checkpoint("theirs.pth")


def test_shipped_weights_are_known_by_their_names(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "shipped")
    weights.FOLDER.mkdir()
    save_checkpoint(weights.FOLDER / "mine_x4.pth",
                    {"net": network(name="biqrnn_2_1").state_dict(), "arch": "biqrnn_2_1",
                     "scale": 4, "degradation": "gaussian", "iteration": 3})
    (weights.FOLDER / "mine_x4.toml").write_text(
        f'arch = "biqrnn_2_1"\nscale = 4\ndegradation = "gaussian"\norder = 1\n'
        f'sha256 = "{weights.sha256(weights.FOLDER / "mine_x4.pth")}"\n')
    assert hsi_test.parse(["-rp", "mine_x4"]).resumePath == str(weights.FOLDER / "mine_x4.pth")
    assert hsi_sr.parse(["--init", "mine_x4"])["init"] == str(weights.FOLDER / "mine_x4.pth")
    with pytest.raises(UserError, match=r"no shipped weights have that name; .* one of mine_x4"):
        weights.named("yours_x4")
    (weights.FOLDER / "mine_x4.pth").write_bytes(b"other")
    with pytest.raises(UserError, match="its hash is another"):
        hsi_test.parse(["-rp", "mine_x4"])


# ----------------------------------------------------------------------------------------- messages

@pytest.mark.parametrize(("recipe", "advised"),
                         [("released", True), ("fast", False), ("finetune", False)])
def test_a_recipe_is_advised_to_those_who_did_not_take_it(recipe, advised):
    row = {"psnr": 20.0, "val_loss": 1.0, "iteration": 5, "gain": -1.0, "backprojection_gain": -2.0}

    state = SimpleNamespace(counted=[row], score=lambda row: row["psnr"],
                            config=SimpleNamespace(recipe=recipe))
    text, = without_gain(state)
    assert ("--recipe fast" in text) == advised and "train longer" in text


def test_zooms_at_which_no_patch_fits_are_named(scene):
    with pytest.raises(UserError,
                       match=r"No patch of 16 pixels fits into the 1 scenes at zooms 0\.1"):
        lmdb_data.main(
            ["--source", str(scene), "--patch", "16", "--zooms", "0.1", "--out", "a.lmdb"])
