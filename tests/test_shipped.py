"""The shipped weights on cubes of any sensor: where the MTF is not known, nothing is made worse."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from makers import ALIASED, SMOOTH, made_small

from data.rendering import render_scene
from hsi_test import main
from utility import weights
from utility.degradation import Degradation
from utility.indexes import sam_map
from utility.names import ANY
from utility.scenes import read_scene

ANY_MTF = [one for one in weights.shipped() if one.card["degradation"] == ANY]


def psnr(cube, truth):
    return float(np.mean(-10 * np.log10(np.square(cube - truth).mean((1, 2)))))


@pytest.fixture(scope="module")
def truth():
    """A rendered scene that trained nothing: the shipped weights took other seeds."""
    return render_scene("natural", seed=4242, number=3, bands=12, side=96)


def super_resolved(folder, low, *options):
    """What the command makes of a cube of [0, 1]."""
    np.savez(folder / "low.npz", cube=low)
    main(["--input", str(folder / "low.npz"), "--output", str(folder / "high.npz"), "--force",
          "--layout", "BHW", "--keep-range", *options])
    return read_scene(folder / "high.npz", layout="BHW").cube


@pytest.mark.parametrize("one", ANY_MTF, ids=lambda one: one.path.stem)
@pytest.mark.parametrize("blur", ["mtf 0.08", "mtf 0.3", "mtf 0.75", "area"])
def test_a_cube_of_an_unknown_sensor_is_never_below_the_interpolation(tmp_path, truth, one, blur,
                                                                      capsys):
    sensor = Degradation.of(one.scales[0], blur)
    low = sensor.down(torch.from_numpy(truth))
    result = super_resolved(tmp_path, low.numpy(), "-rp", str(one.path))
    said = capsys.readouterr().out
    assert "assumes a sensor's MTF of 0.7" in said or "its steps are sharp" in said
    assert "--mtf M gains detail" in said
    assert psnr(result, truth) >= psnr(sensor.up(low).numpy(), truth) - 0.05


@pytest.mark.parametrize("one", weights.shipped(), ids=lambda one: one.path.stem)
def test_a_card_offers_its_weights_for_own_cubes_where_they_serve_any_sensor(one):
    about = one.card["about"]
    assert ("own cubes of any number of bands" in about) == (one.card["degradation"] == ANY)
    assert ("it knows this blur alone" in about) == ("first_for" in one.card)


def test_every_scale_has_weights_for_any_sensor_and_they_come_first():
    for scale in (2, 4, 8):
        for kind in (None, "mtf 0.3", "area", "bicubic"):
            assert weights.choose(None, scale, kind).card["degradation"] == ANY
    # tests by the default degradation, which these files know alone
    for scale in (2, 4):
        assert weights.choose(None, scale, "gaussian").path.stem == f"lowgrid_x{scale}_gaussian"
    assert weights.choose(None, 8, "gaussian").path.stem == "lowgrid_x8"
    assert weights.choose(None, 4, None).path.stem == "lowgrid_x4"
    # and without a scale factor x4, as for a cube without ground truth
    assert weights.choose(None, None, "gaussian").path.stem == "lowgrid_x4_gaussian"
    for kind in (None, "mtf 0.3", "bicubic"):
        assert weights.choose(None, None, kind).path.stem == "lowgrid_x4"


def test_telling_the_mtf_of_a_blurred_sensor_gains_over_not_knowing_it(tmp_path, truth, capsys):
    low = Degradation.of(4, "mtf 0.15").down(torch.from_numpy(truth)).numpy()
    known = psnr(super_resolved(tmp_path, low, "--scale", "4", "--mtf", "0.15"), truth)
    assert "takes the sensor's MTF for 0.15" in capsys.readouterr().out
    assert known > psnr(super_resolved(tmp_path, low, "--scale", "4"), truth) + 0.5


def test_one_negative_value_changes_no_spectrum_far_from_it_and_stays_negative(tmp_path, truth):
    """As corrections for the atmosphere leave it."""
    low = Degradation.of(4, "mtf 0.3").down(torch.from_numpy(truth)).numpy()
    spoiled = low.copy()
    spoiled[5, 12, 12] = -0.1 * low.max()
    results = []
    for name, values in (("clean", low), ("spoiled", spoiled)):
        np.save(tmp_path / f"{name}.npy", values * 3000)
        main(["--input", str(tmp_path / f"{name}.npy"), "--output", str(tmp_path / "high.npy"),
              "--force", "--layout", "BHW", "--scale", "4", "--mtf", "0.3"])
        results.append(np.load(tmp_path / "high.npy").astype(np.float64))
    far = np.ones(truth.shape[1:], bool)
    far[22:78, 22:78] = False
    clean, spoiled = results
    assert abs(sam_map(spoiled, truth)[far].mean() - sam_map(clean, truth)[far].mean()) < 0.03
    block = spoiled[5, 48:52, 48:52]
    assert block.mean() < -150 * low.max()
    assert block.min() == pytest.approx(-300 * low.max())  # no lower than its input


@pytest.mark.parametrize("kind", ["natural", "overhead"])
@pytest.mark.parametrize("maker", SMOOTH | ALIASED)
def test_a_cube_that_another_program_made_small_is_never_below_the_interpolation(tmp_path, maker,
                                                                                 kind):
    """By default; of x4. Where a blur came first, the network adds detail."""
    number = {"natural": 6, "overhead": 4}[kind]
    truth = render_scene(kind, seed=4242, number=number, bands=12, side=160)
    low = made_small(maker, truth, 4).clip(0, 1)  # a cubic kernel overshoots
    result = super_resolved(tmp_path, low, "--scale", "4")
    plain = Degradation.of(4, "area").up(torch.from_numpy(low)).numpy()
    gain = psnr(result, truth) - psnr(plain, truth)
    assert gain > 0.1 if maker in SMOOTH else gain >= -0.05
