"""hsi_test.py --adapt: one scene, its weights, its test, its result."""
import json
import re
import signal
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

import hsi_test
from models import create_model
from utility import adapt, weights
from utility.adapt import divide
from utility.checkpoints import save_checkpoint
from utility.cubes.cube import Scene
from utility.datasets.rectangles import largest_rectangle, training_rectangles
from utility.system.errors import UserError
from utility.system.files import locked
from utility.training import loop as training


def scene(path, size=75, bands=4, nodata=None):
    rng = np.random.default_rng(0)
    coarse = rng.random((bands, size // 5, size // 5)).repeat(5, 1).repeat(5, 2)
    values = (1000 * (coarse + 0.1 * rng.random((bands, size, size)))).astype(np.uint16) + 1
    if nodata is not None:
        values[:, :3] = nodata
    with rasterio.open(path, "w", driver="GTiff", count=bands, height=size, width=size,
                       dtype="uint16", crs="EPSG:32633",
                       transform=rasterio.Affine(30, 0, 500_000, 0, -30, 5_100_000),
                       nodata=nodata) as file:
        file.write(values)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder with weights that make their start image a little worse, and a scene."""
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "shipped")
    monkeypatch.setattr(adapt, "seconds_per_step", lambda plan: 60.0)
    torch.manual_seed(0)
    net = create_model("biqrnn_2_1")
    net.initialise("fast")
    with torch.no_grad():
        net.reconstructor.conv.deconv.weight.normal_(0, 0.01)
    save_checkpoint("given.pth",
                    {"net": net.state_dict(), "arch": "biqrnn_2_1", "scale": 4,
                     "degradation": "gaussian", "start": "backprojection", "epoch": 3,
                     "iteration": 40})
    scene("low.tif")


def run(*arguments):
    hsi_test.main(["-rp", "given.pth", "--adapt", "low.tif", "--output", "high.tif", "--minutes",
                   "10", "--no-cuda", *map(str, arguments)])
    return json.loads(Path("high_adapted/adapt.json").read_text())


def test_the_best_on_the_part_held_out_makes_the_whole_scene_also_after_an_interruption(
        monkeypatch, capsys):
    real = training.train_step

    def train_step(state, *rest):
        real(state, *rest)
        if state.iteration == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training, "train_step", train_step)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert capsys.readouterr().out.count("the same command goes on") == 1
    assert not Path("high.tif").exists()
    monkeypatch.setattr(training, "train_step", real)
    with locked(Path("high_adapted")), pytest.raises(UserError, match="written by another process"):
        run()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(adapt, "write_report", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        run()
    assert Path("high.tif").exists()
    state = run()
    assert (
        state["steps"] > 3 and "resumed from" in Path("high_adapted/training/log.txt").read_text())
    assert state["delivered"] == max(state["psnr"], key=state["psnr"].get)
    assert sorted(state["psnr"]) == ["backprojection", "network", "unadapted"]
    assert (state["why"] in capsys.readouterr().out
            and state["why"][12:] in Path("high_adapted/report.html").read_text())
    metrics = json.loads(Path("high_adapted/test/metrics.json").read_text())
    assert not any("trained on" in text for text in metrics["warnings"])
    assert [metrics["images"][0][key] for key in ("height", "width")] == [36, 36]
    with rasterio.open("low.tif") as low, rasterio.open("high.tif") as high:
        assert (high.height, high.width, high.count, high.crs) == (300, 300, 4, low.crs)
        assert high.bounds == low.bounds
    assert sorted(path.name for path in Path("high_adapted").iterdir()) == [
        "adapt.json", "report.html", "result", "test", "training"]
    with pytest.raises(UserError, match="exists already"):
        run()


def test_the_estimate_of_adapt_is_printed_before_its_training(monkeypatch, capsys):
    def started(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(adapt, "train", started)
    with pytest.raises(KeyboardInterrupt):
        run()
    said = capsys.readouterr().out
    assert re.search(r"time +\S.* in all: .* until here, training about .*, test and whole", said)


def test_an_interruption_before_the_training_says_that_the_same_command_begins_again(
        monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(adapt.evaluation, "run",
                      lambda *_, **__: signal.raise_signal(signal.SIGINT))
        run()
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "nothing was trained yet; the same command begins again"


def test_back_projection_is_delivered_where_it_is_the_best_and_missing_pixels_are_in_no_part(
        monkeypatch, capsys):
    scene("low.tif", nodata=0)
    # the given weights stay worse than their start image
    monkeypatch.setattr(adapt, "RECIPE", {**adapt.RECIPE, "lr": 1e-9})
    state = run()
    assert state["delivered"] == "backprojection"
    assert "delivered: back-projection" in capsys.readouterr().out
    assert json.loads(Path("high_adapted/result/summary.json").read_text())[
        "method"] == "backprojection"
    top, _, height, _ = state["division"]["test"]
    assert top + height == 72  # of the 75 rows, 3 are missing
    with rasterio.open("high.tif") as high:
        assert (high.read()[:, :12] == 0).all() and (high.read()[:, 12:] > 0).all()


def test_a_scene_too_small_to_divide_gets_the_better_of_given_weights_and_back_projection(
        capsys):
    scene("low.tif", 60)
    state = run()
    assert state["division"] is None and sorted(state["psnr"]) == ["backprojection", "unadapted"]
    assert "60 x 60 pixels are too few" in capsys.readouterr().err and Path("high.tif").exists()


def test_what_is_adapted_on_has_the_range_of_the_cube_that_is_made_finer():
    values = np.random.default_rng(0).uniform(5, 1000, (3, 60, 60))
    values[1, 3, 4], values[0, 0, 0] = -200, 1000
    cut = adapt._part(Scene(values, "own"), keep_range=False).cube
    np.testing.assert_allclose(cut, values / 1000, atol=1e-7)


@pytest.mark.parametrize(("arguments", "words"),
                         [(["--input", "low.tif"], "leave --input"),
                          (["--method", "backprojection"], "--method"),
                          (["--minutes", "0"], "--minutes"), (["--output", "high.xyz"], "high.xyz"),
                          (["--dtype", "int7"], "int7"), (["--out", "."], "lies in")])
def test_what_cannot_be_is_refused_before_anything_is_written(arguments, words):
    before = sorted(Path().iterdir())
    with pytest.raises(UserError, match=words):
        run(*arguments)
    assert sorted(Path().iterdir()) == before


def test_a_type_too_coarse_for_the_values_is_refused_before_the_training():
    np.save("unit.npy", np.random.default_rng(0).random((6, 80, 80), np.float32))
    with pytest.raises(UserError, match=r"unit\.npy holds float32.*int16 has steps of 1"):
        run("--adapt", "unit.npy", "--dtype", "int16")
    assert not list(Path().glob("high*/*"))


@pytest.mark.parametrize("size", [(72, 72), (100, 145), (500, 90), (900, 1200)])
def test_the_parts_of_a_scene_share_no_pixel_and_hold_patches(size):
    division = divide(*size, 4)
    seen = np.zeros(size, int)
    rectangles = [division.test, division.validation,
                  *training_rectangles(size, division.test, division.validation)]
    for top, left, height, width in rectangles:
        seen[top:top + height, left:left + width] += 1
    assert (seen == 1).all()
    assert all(
        min(rectangle[2:]) >= division.patch for rectangle in (division.test, division.validation))
    assert any(min(rectangle[2:]) >= division.patch for rectangle in rectangles[2:])


def test_the_largest_rectangle_without_missing_pixels_is_found():
    for seed in range(20):
        free = np.random.default_rng(seed).random((7, 9)) > 0.3
        top, left, height, width = largest_rectangle(free)
        assert free[top:top + height, left:left + width].all()
        rows, columns = combinations(range(8), 2), list(combinations(range(10), 2))
        whole = [(b - t) * (r - c)
                 for (t, b), (c, r) in product(rows, columns) if free[t:b, c:r].all()]
        assert height * width == max(whole)
