"""Shipped weights: what a card says, which file is taken, what each computes."""
from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from made import make_database

import hsi_sr
import hsi_test
from models import create_model
from utility import weights
from utility.checkpoints import load_checkpoint, model_from_checkpoint
from utility.system.errors import UserError

SHIPPED = weights.shipped()


@pytest.mark.parametrize("one", SHIPPED, ids=[one.path.stem for one in SHIPPED])
def test_a_shipped_file_is_whole_and_computes_what_its_card_says(one):
    one.check()
    net, info = model_from_checkpoint(one.path)
    card = one.card
    assert (info.arch, list(info.scales), info.degradation) == (
        card["arch"], one.scales, card["degradation"])
    probe = weights.probe(net, one.scales[0], card["degradation"],
                          card.get("start", "interpolation"))
    assert probe == pytest.approx(card["probe"], rel=1e-3)
    assert (one.path.stat().st_size < 20e6
            and all(w.dtype == torch.float32 for w in net.state_dict().values()))
    for row in card["metrics"]:
        assert {"interpolation", "network"} <= set(row)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A run of biqrnn_1_1, x2, and a test of it."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_database("patches.lmdb", 5, (3, 16, 16), validation=1)
        np.save("scene.npy", np.random.default_rng(0).random((20, 24, 3)))
        hsi_sr.main(["-a", "biqrnn_1_1", "--data", "patches.lmdb", "--scale", "2", "--degradation",
                     "bicubic", "-n", "2", "-b", "2", "--run-dir", "run", "--quiet", "--no-log",
                     "--no-cuda"])
        hsi_test.main(["-rp", "run/last.pth", "--data", "scene.npy", "--out", "tested",
                       "--no-figures", "--quiet", "--no-cuda"])
    return folder


@pytest.fixture
def shelf(work, tmp_path, monkeypatch) -> Path:
    """An empty folder of shipped weights; the working folder is that of the run."""
    monkeypatch.chdir(work)
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    return tmp_path


def ship(name: str = "tiny", order: int = 1, **more) -> weights.Shipped:
    return weights.export(Path("run/last.pth"), name, order=order, about="tests", **more)


def test_an_exported_file_holds_the_network_alone_and_a_card_with_what_the_run_and_its_test_say(
        shelf):
    weights.main(["export", "run/last.pth", "tiny", "--order", "1", "--about", "tests", "--metrics",
                  "tested/metrics.json"])
    saved, (one,) = load_checkpoint(shelf / "tiny.pth"), weights.shipped()
    run = load_checkpoint("run/last.pth")
    assert ("optimizer" not in saved
            and all(torch.equal(saved["net"][key], run["net"][key]) for key in run["net"]))
    card = one.card
    assert (card["arch"], card["scale"], card["degradation"]) == ("biqrnn_1_1", 2, "bicubic")
    assert (card["about"], card["order"], card["licence"]) == ("tests", 1, "Apache-2.0")
    training = card["training"]
    assert (training["steps"], training["recipe"], training["seed"]) == (
        run["iteration"], "released", 2021)
    assert training["hours"] >= 0 and training["device"]
    (row,), (tested,) = (card["metrics"],
                         json.loads(Path("tested/metrics.json").read_text())["images"])
    assert (row["image"], row["bands"], row["scale"]) == ("scene", 3, 2)
    for method in ("interpolation", "network"):
        assert row[method]["psnr"] == pytest.approx(tested[method]["psnr"], abs=1e-4)
    one.check()
    net, _ = model_from_checkpoint(one.path)
    assert (weights.probe(net, 2, "bicubic") == pytest.approx(card["probe"], rel=1e-6)
            and card["probe"] > 1e-4)


def test_a_card_repeats_how_the_weights_were_trained_that_a_run_started_from(shelf):
    ship("tiny")
    parent = weights.shipped()[0].card["training"]
    hsi_sr.main(["--init", str(shelf / "tiny.pth"), "--data", "patches.lmdb", "--iterations", "3",
                 "--run-dir", str(shelf / "next"), "--quiet", "--no-log", "--no-cuda"])
    weights.export(shelf / "next" / "last.pth", "more", order=2, about="tests")
    training = next(one for one in weights.shipped() if one.path.stem == "more").card["training"]
    assert (training["steps"], training["before"]) == (3, [parent])


def test_what_was_not_tested_or_trained_here_is_not_shipped(shelf, tmp_path):
    other = json.loads(Path("tested/metrics.json").read_text()) | {"iteration": 7}
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"other\.json is a test of run/last\.pth after 7 steps"):
        ship(metrics=[tmp_path / "other.json"])
    (tmp_path / "odd.json").write_text("[1]")
    with pytest.raises(UserError, match=r"not a metrics\.json"):
        ship(metrics=[tmp_path / "odd.json"])
    torch.save({"net": create_model("biqrnn_1_1").state_dict()}, tmp_path / "bare.pth")
    with pytest.raises(UserError, match="does not say how it was trained"):
        weights.export(tmp_path / "bare.pth", "tiny", order=1, about="")
    torch.save(torch.load("run/last.pth", weights_only=True), tmp_path / "astray.pth")
    with pytest.raises(UserError, match=r"history\.csv"):
        weights.export(tmp_path / "astray.pth", "tiny", order=1, about="")
    assert (not list(shelf.glob("*.toml"))
            and [p.name for p in shelf.glob("*.pth")] == ["astray.pth", "bare.pth"])


def test_the_smallest_order_that_fits_is_taken(shelf):
    assert weights.choose() is None and weights.listing().endswith("holds no weights")
    ship("second", order=2)
    ship("first", order=1)
    assert (weights.choose().path.stem == weights.choose("biqrnn_1_1", 2, "bicubic").path.stem
            == "first")
    card = dict(weights.shipped()[0].card, degradation="mtf", scale=[2, 3])
    served = weights.Shipped(weights.shipped()[0].path, card)
    assert all(served.fits(None, 3, kind)
               for kind in (None, "mtf 0.3", "mtf 0.3,0.2", "area", "gaussian", "bicubic"))
    assert not served.fits(None, 2, "spatial") and not served.fits(None, 4, "mtf 0.3")
    assert "any MTF" in served.describe()
    assert weights.choose(scale=4) is weights.choose(kind="gaussian") is weights.choose(
        "vdsr") is None
    assert "first (biqrnn_1_1, x2, bicubic), second" in weights.listing()
    with pytest.raises(UserError, match=r"first\.pth"):
        ship("first")


def test_the_command_lists_what_ships_a_line_each_and_what_it_is_for(shelf, capsys):
    weights.main([])
    ship("first", order=1)
    ship("second", order=2)
    card = shelf / "first.toml"
    card.write_text(card.read_text().replace('about = "tests"', 'about = "own cubes, x2. By me"'))
    weights.main([])
    assert capsys.readouterr().out.splitlines()[1:] == [
        "first (biqrnn_1_1, x2, bicubic)", "    own cubes, x2", "second (biqrnn_1_1, x2, bicubic)",
        "    tests"]


def test_a_file_that_is_not_the_card_s_is_refused(shelf):
    one = ship()
    one.path.write_bytes(one.path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"tiny\.pth is not the file that tiny\.toml describes"):
        weights.choose()
    one.path.unlink()
    with pytest.raises(UserError, match="is missing"):
        weights.choose()
    one.path.with_suffix(".toml").write_text("arch =")
    with pytest.raises(UserError, match=r"tiny\.toml cannot be read"):
        weights.choose()


def test_torch_hub_gives_networks_by_name(shelf):
    ship()
    load = partial(torch.hub.load, str(Path(weights.__file__).parents[1]), source="local")
    net = load("biqrnn_1_1", pretrained=True, scale=2, degradation="bicubic")
    run = load_checkpoint("run/last.pth")["net"]
    assert (not net.training
            and all(torch.equal(value, run[key]) for key, value in net.state_dict().items()))
    assert load("tiny", pooling="loop").state_dict().keys() == net.state_dict().keys()
    assert load("qrnn_16_5", long_skip=True).long_skip
    with pytest.raises(ValueError, match="no shipped weights of vdsr fit x4"):
        load("vdsr", pretrained=True)


def test_a_name_that_is_not_shipped_is_answered_with_those_that_are():
    assert weights.named("lowgrid_x4") == str(weights.FOLDER / "lowgrid_x4.pth")
    assert weights.named("none.pth") == "none.pth"
    names = ", ".join(one.path.stem for one in SHIPPED)
    for command, option in ((hsi_test.main, "-rp"), (hsi_sr.main, "--init")):
        with pytest.raises(UserError, match=f"no checkpoint lowgrid_x5, .* or one of {names}\\.$"):
            command([option, "lowgrid_x5"])
