"""The shipped weights on cubes of any sensor: what is not known is assumed so that nothing is made worse."""
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hsi_test import main

from data.rendering import render_scene
from utility import weights
from utility.degradation import Degradation
from utility.names import ANY
from utility.scenes import read_scene

ANY_MTF = [one for one in weights.shipped() if one.card["degradation"] == ANY]
BLURS = ("mtf 0.08", "mtf 0.15", "mtf 0.25", "mtf 0.35", "mtf 0.5", "mtf 0.75", "area")


def psnr(cube, truth):
    return float(np.mean(-10 * np.log10(np.square(cube - truth).mean((1, 2)))))


@pytest.fixture(scope="module")
def truth():
    """A rendered scene that trained nothing: the shipped weights took other seeds."""
    return render_scene("natural", seed=4242, number=3, bands=12, side=96)


@pytest.mark.parametrize("one", ANY_MTF, ids=lambda one: one.path.stem)
@pytest.mark.parametrize("blur", BLURS)
def test_a_cube_of_an_unknown_sensor_is_never_below_the_interpolation(tmp_path, truth, one, blur, capsys):
    scale = one.scales[0]
    low = Degradation.of(scale, blur).down(torch.from_numpy(truth)).numpy()
    np.savez(tmp_path / "low.npz", cube=low)
    main(["--input", str(tmp_path / "low.npz"), "--layout", "BHW", "--output", str(tmp_path / "high.npz"), "-rp", str(one.path),
          "--scale", str(scale), "--keep-range", "--out", str(tmp_path / "report")])
    said = capsys.readouterr().out
    assert "assumes a sensor's MTF of 0.7" in said and "--mtf M gains detail" in said
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["degradation"] == "mtf 0.7" and summary["mtf_known"] is False
    result = read_scene(tmp_path / "high.npz", layout="BHW").cube
    plain = Degradation.of(scale, blur).up(torch.from_numpy(low)).numpy()
    assert psnr(result, truth) >= psnr(plain, truth) - 0.05


def test_every_scale_has_weights_for_any_sensor_and_they_come_first():
    for scale in (2, 4, 8):
        for kind in (None, "mtf 0.3", "area", "gaussian", "bicubic"):
            assert weights.choose(None, scale, kind).card["degradation"] == ANY


def test_the_mtf_that_is_given_is_the_one_that_is_taken(tmp_path, truth, capsys):
    """Telling the sensor's MTF gains over not knowing it, where the sensor is blurred."""
    one, scores = next(one for one in ANY_MTF if one.scales == [4]), {}
    low = Degradation.of(4, "mtf 0.15").down(torch.from_numpy(truth)).numpy()
    np.savez(tmp_path / "low.npz", cube=low)
    for name, more in {"known": ["--mtf", "0.15"], "assumed": []}.items():
        main(["--input", str(tmp_path / "low.npz"), "--layout", "BHW", "--output", str(tmp_path / f"{name}.npz"),
              "-rp", str(one.path), "--keep-range", *more])
        scores[name] = psnr(read_scene(tmp_path / f"{name}.npz", layout="BHW").cube, truth)
    assert "takes the sensor's MTF for 0.15" in capsys.readouterr().out
    assert scores["known"] > scores["assumed"] + 0.5
