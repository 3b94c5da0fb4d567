"""Cubes that were made small without a blur: how they are known, and what becomes of them."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from makers import ALIASED, SMOOTH, made_small

import hsi_test
from data.rendering import render_scene
from utility.degradation import Degradation
from utility.scenes import read_scene
from utility.superres.aliasing import ALIASED as LIMIT
from utility.superres.aliasing import SHARP, for_aliasing, softness
from utility.superres.noise import with_noise
from utility.superres.problem import Problem

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def truth():
    """A rendered scene with the sharp edges of roofs and roads."""
    return render_scene("overhead", seed=4242, number=4, bands=12, side=160)


@pytest.fixture(scope="module")
def aliased(truth):
    return made_small("cv2 INTER_CUBIC", truth, 4).clip(0, 1)


def psnr(cube, truth):
    return float(np.mean(-10 * np.log10(np.square(cube - truth).mean((1, 2)))))


def enlarge(low, *options):
    np.savez("low.npz", cube=low)
    hsi_test.main(["--input", "low.npz", "--output", "high.npz", "--scale", "4", "--force",
                   "--layout", "BHW", "--keep-range", *options])
    return read_scene("high.npz", layout="BHW").cube


@pytest.mark.parametrize("kind", ["mtf 0.08", "mtf 0.3", "mtf 0.5", "area", "bicubic", "gaussian"])
@pytest.mark.parametrize("snr", [None, 25.0])
def test_the_cube_of_a_sensor_is_not_aliased(truth, kind, snr):
    low = Degradation.of(4, kind).down(torch.from_numpy(truth)).numpy()
    assert softness(low if snr is None else with_noise(low, snr, 0)[0]) > LIMIT


def test_softness_depends_on_neither_gain_nor_turns_and_missing_pixels_have_no_part(aliased):
    found = softness(aliased)
    assert found < LIMIT
    for same in (5 + 3000 * aliased, aliased[:, ::-1, ::-1], aliased.transpose(0, 2, 1)):
        assert softness(same) == pytest.approx(found, abs=1e-6)
    missing = np.zeros(aliased.shape[1:], bool)
    missing[10:20, 5:12] = True
    spoiled = [np.where(missing, value, aliased) for value in (0, 1e6, np.nan)]
    first, *others = (softness(cube, missing) for cube in spoiled)
    assert others == [pytest.approx(first, abs=1e-6)] * 2
    assert first == pytest.approx(found, abs=0.05)


@pytest.mark.parametrize("cube", [np.zeros((3, 40, 40)), np.ones((1, 8, 8)), np.ones((2, 4, 1)),
                                  np.random.default_rng(0).random((5, 64, 64))],
                         ids=["constant", "small", "a column", "noise"])
def test_of_a_cube_without_steps_nothing_is_told(cube):
    assert softness(cube) is None
    problem = Problem(4, "mtf 0.7", mtf_known=False, aliased=None)
    assert for_aliasing(problem, cube) == replace(problem, aliased=False)
    assert softness(cube, np.ones(cube.shape[1:], bool)) is None


def test_an_aliased_cube_gets_the_interpolation_and_all_say_so(aliased, capsys):
    result = enlarge(aliased, "--report")
    plain = Degradation.of(4, "area").up(torch.from_numpy(aliased)).numpy()
    np.testing.assert_allclose(result, plain, atol=1e-5)
    said = capsys.readouterr()
    assert "this cube is aliased; interpolation is used" in said.err and "--mtf M" in said.err
    assert "takes the cube for aliased" in said.out and "weights" not in said.err
    summary = json.loads(Path("high_report/summary.json").read_text())
    assert summary["aliased"] and summary["method"] == "interpolation"
    assert summary["arch"] is summary["checkpoint"] is summary["weights_sha256"] is None
    assert "this cube is aliased" in Path("high_report/report.html").read_text()


def test_the_file_of_a_result_says_that_its_input_is_aliased(aliased):
    with rasterio.open("low.tif", "w", driver="GTiff", count=12, height=40, width=40,
                       dtype="float32") as file:
        file.write(aliased)
    hsi_test.main(["--input", "low.tif", "--output", "high.tif", "--scale", "4", "--quiet"])
    with rasterio.open("high.tif") as file:
        text = file.tags()["TIFFTAG_IMAGEDESCRIPTION"]
    assert "by interpolation, the cube is aliased" in text and "degradation" not in text


@pytest.mark.parametrize("options", [["--mtf", "0.7"], ["--method", "network"],
                                     ["--degradation", "area"]])
def test_whoever_insists_gets_the_network(aliased, options, capsys):
    result = enlarge(aliased, *options)
    assert "aliased" not in capsys.readouterr().err
    plain = Degradation.of(4, "area").up(torch.from_numpy(aliased)).numpy()
    assert np.abs(result - plain).max() > 0.01


def test_what_is_for_a_network_is_left_out_of_an_aliased_cubes_result(aliased, capsys):
    plain = enlarge(aliased)
    assert np.array_equal(enlarge(aliased, "--self-ensemble", "--backproject", "2"), plain)
    assert not Path("high_spread.npz").exists()


def test_a_sharp_cube_is_taken_for_that_of_a_sharp_sensor_and_is_told_so(truth, capsys):
    low = Degradation.of(4, "mtf 0.8").down(torch.from_numpy(truth)).numpy()
    assert LIMIT < softness(low) < SHARP
    result = enlarge(low, "--report")
    assert "takes the sensor's MTF for 0.95" in capsys.readouterr().out
    summary = json.loads(Path("high_report/summary.json").read_text())
    assert summary["sharp"] and summary["method"] == "network"
    assert summary["degradation"] == "mtf 0.95"
    assert np.array_equal(result, enlarge(low, "--mtf", "0.95"))
    assert psnr(result, truth) > psnr(enlarge(low, "--method", "network"), truth)


def test_info_says_whether_a_cube_is_aliased(aliased, truth, capsys):
    smooth = made_small("MATLAB imresize", truth, 4)
    for low, words in ((aliased, "aliased, as where every n-th pixel was taken"),
                       (smooth, "not aliased")):
        np.savez("low.npz", cube=low)
        hsi_test.main(["--info", "low.npz", "--scale", "4", "--layout", "BHW"])
        line, = (one for one in capsys.readouterr().out.splitlines() if one.startswith("blur"))
        assert words in line


def test_at_x2_a_softer_cube_counts_as_aliased_and_as_sharp():
    at_2 = Problem(2, "mtf 0.7", mtf_known=False, aliased=None)
    at_4 = replace(at_2, scale=4)
    first, other = (render_scene("natural", seed=4242, number=number, bands=8, side=160)
                    for number in (4, 0))
    low = made_small("cv2 INTER_CUBIC", first, 2)
    assert for_aliasing(at_2, low).aliased and for_aliasing(at_4, low).sharp
    low = made_small("cv2 INTER_CUBIC", other, 2)
    assert for_aliasing(at_2, low).sharp and for_aliasing(at_4, low) == replace(at_4, aliased=False)
    for blur in ("area", "mtf 0.5", "mtf 0.3"):
        low = Degradation.of(2, blur).down(torch.from_numpy(first)).numpy()
        assert for_aliasing(at_2, low) == replace(at_2, aliased=False)


def test_every_maker_has_a_place_in_the_order_of_softness(truth):
    found = {maker: softness(made_small(maker, truth, 4)) for maker in SMOOTH | ALIASED}
    assert max(found[maker] for maker in ALIASED) < min(found[maker] for maker in SMOOTH)
