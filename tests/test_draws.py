"""What a network is given in training: sensors drawn for each patch, told a little off."""
from __future__ import annotations

import pytest
import torch

from utility.degradation import Degradation
from utility.names import SAFE_MTF
from utility.system.errors import UserError
from utility.training.configuration import TrainingConfig
from utility.training.draws import CLEAREST, HIGHEST, LOWEST, QUIET, _sensor, given, random, shaded


def config(**changes) -> TrainingConfig:
    return TrainingConfig(**{"degradation": "mtf", "recipe": "fast", **changes})


def patches(count=6, bands=5, side=48) -> torch.Tensor:
    return torch.rand(count, bands, side, side, generator=torch.Generator().manual_seed(0))


def sensors(count=400, **changes):
    return [_sensor(config(**changes), 4, random(2021, k)) for k in range(count)]


def test_every_patch_has_a_sensor_of_its_own():
    drawn = sensors()
    assert sum(one.true.kind == "area" for one in drawn) == pytest.approx(40, abs=20)
    rows = torch.tensor([one.true.mtf[0] for one in drawn if one.true.mtf])
    assert (
        rows.min() >= LOWEST and rows.max() <= HIGHEST and rows.min() < 0.12 and rows.max() > 0.75)
    assert 0.1 < sum(len(set(one.true.mtf or (0,))) > 1 for one in drawn) / len(drawn) < 0.35
    assert all(one.known and one.noise == 0 for one in drawn)


def test_the_network_is_told_an_mtf_a_little_off_and_of_a_share_none():
    drawn = [one for one in sensors(unknown=0.25) if one.true.mtf]
    unknown = [one for one in drawn if not one.known]
    assert len(unknown) / len(drawn) == pytest.approx(0.25, abs=0.08)
    assert {one.told.mtf for one in unknown} == {(SAFE_MTF, SAFE_MTF)}
    off = torch.tensor([one.told.mtf[0] - one.true.mtf[0] for one in drawn if one.known])
    assert off.std() == pytest.approx(0.03, abs=0.01) and abs(off.mean()) < 0.01


def test_noise_is_drawn_by_patch_and_band_and_told_a_little_off():
    drawn = sensors(snr=20)
    loud = torch.tensor([one.noise for one in drawn if one.told_noise])
    quiet = torch.tensor([one.noise for one in drawn if not one.told_noise])
    assert len(loud) / len(drawn) == pytest.approx(0.5, abs=0.08)
    assert loud.min() >= 10 ** (-CLEAREST / 20) and loud.max() <= 0.1
    assert 10 ** (-QUIET[1] / 20) <= quiet.min() and quiet.max() <= 10 ** (-QUIET[0] / 20)
    made = [given(config(snr=20), patches(), 4, key, starts=("backprojection",))
            for key in range(2)]
    told = torch.cat([one.told for one in made])
    variance, mtf, known = told.unbind(1)
    # bands differ where there is noise
    assert (variance.std(1) > 0).sum() == (variance.sum(1) > 0).sum() > 0
    assert (mtf[:, :1] == mtf).all() and (known == 1).all()


def test_draws_depend_on_the_key_and_the_number_of_the_patch_alone():
    c, gt = config(unknown=0.2, snr=20, shade=0.5), patches()
    whole = given(c, gt, 4, 7, starts=("interpolation", "backprojection"))
    last = given(c, gt[4:], 4, 7, starts=("interpolation", "backprojection"), before=4)
    assert torch.equal(whole.low[4:], last.low) and torch.equal(whole.told[4:], last.told)
    for start, image in last.starts.items():
        assert torch.equal(whole.starts[start][4:], image)
    assert torch.equal(shaded(c, gt, 7)[4:], shaded(c, gt[4:], 7, before=4))
    assert not torch.equal(given(c, gt, 4, 8, starts=()).low, whole.low)


def test_a_low_resolution_cube_is_what_its_sensor_makes_of_the_patch():
    c, gt = config(), patches(3)
    for k in range(3):
        sensor = _sensor(c, 4, random(c.seed, 5, k))
        made = given(c, gt, 4, 5, starts=("interpolation", "backprojection"))
        assert torch.equal(made.low[k], sensor.true.down(gt[k]))
        assert torch.equal(made.starts["interpolation"][k], sensor.told.up(made.low[k]))
        assert torch.allclose(made.starts["backprojection"][k],
                              sensor.told.backproject(made.low[k]), atol=1e-6)


def test_a_share_of_the_patches_has_a_part_in_shade():
    gt = torch.ones(60, 2, 32, 32)
    dark = shaded(config(shade=0.5), gt, 1)
    changed = (dark.amin((1, 2, 3)) < 0.4).sum()
    assert 20 <= changed <= 40 and dark.min() > 0.005 and dark.max() <= 1
    assert torch.equal(dark[:, 0], dark[:, 1])  # the spectrum of a pixel keeps its shape
    assert shaded(config(), gt, 1) is gt


def test_back_projection_stops_where_a_band_agrees_to_within_its_noise():
    degradation = Degradation.of(4, "mtf 0.2")
    truth = torch.nn.functional.avg_pool2d(patches(1, 3, 68)[0], 5, 1)
    low = degradation.down(truth)
    noise = torch.tensor([0.0, 0.005, 0.5])
    z = degradation.prefilter(low, noise=noise)
    assert torch.allclose(z[0], degradation.prefilter(low)[0], atol=1e-6)
    assert torch.allclose(z[2], low[2], atol=1e-6)
    left = (low - degradation.round_trip(z)).square().mean((1, 2)).sqrt()
    before = (low - degradation.round_trip(low)).square().mean((1, 2)).sqrt()
    assert left[1] <= 0.005 < before[1]


@pytest.mark.parametrize(("changes", "words"), [
    ({"unknown": 1.5}, "unknown is 1.5; give a share of the patches, from 0 to 1"),
    ({"shade": -0.1}, "shade is -0.1; give a share"),
    ({"degradation": "gaussian", "snr": 20}, "drawn with --degradation mtf, and it is gaussian")])
def test_what_cannot_be_drawn_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        config(**changes)
