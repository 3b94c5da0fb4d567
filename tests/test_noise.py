"""The noise of a low-resolution cube, by band: as stated, and as estimated."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from data.rendering import render_scene
from utility.degradation import downsample
from utility.superres.noise import QUIET, estimated_noise, noise_of_snr, snr_of


@pytest.fixture(scope="module", params=[("natural", 31), ("overhead", 120)],
                ids=["31 bands", "120 bands"])
def low(request):
    """A rendered scene of 128 x 128 pixels at half its resolution, by a sensor of MTF 0.3."""
    kind, bands = request.param
    cube = torch.from_numpy(render_scene(kind, seed=7, number=0, bands=bands))
    return downsample(cube, 2, "mtf 0.3").numpy()


def noisy(cube, snr):
    level = noise_of_snr(cube, snr)
    return cube + np.random.default_rng(0).standard_normal(cube.shape) * level[:, None, None], level


def test_a_stated_ratio_is_that_of_each_band():
    cube = np.random.default_rng(0).random((3, 40, 50)) * np.array([1, 0.1, 0.01])[:, None, None]
    level = noise_of_snr(cube, 20)
    assert np.allclose(level, np.sqrt((cube**2).mean((1, 2))) / 10)
    assert snr_of(cube, level) == pytest.approx(20)


@pytest.mark.parametrize("snr", [20, 25, 30])
def test_the_estimate_is_within_two_decibels_of_the_noise_that_was_added(low, snr):
    cube, level = noisy(low, snr)
    found = estimated_noise(cube)
    assert snr_of(cube, found) == pytest.approx(snr, abs=2)
    assert np.median(np.abs(20 * np.log10(found / level))) < 2


def test_a_cube_without_noise_counts_as_quiet(low):
    assert snr_of(low, estimated_noise(low)) > QUIET


def test_few_pixels_are_compared_with_a_run_of_bands(low):
    cube, _ = noisy(low, 25)
    assert snr_of(cube, estimated_noise(cube[:, :16, :16])) == pytest.approx(25, abs=3)
    assert estimated_noise(cube[:, :2, :2]) is None and estimated_noise(cube[:1]) is None


def test_constant_bands_and_missing_pixels_do_not_disturb_it(low):
    cube, _ = noisy(low, 25)
    before = estimated_noise(cube)
    holed = cube.copy()
    holed[3, 5, 5] = holed[:, 7, 9] = np.nan
    assert np.allclose(estimated_noise(holed), before, rtol=0.05)
    flat = np.concatenate([cube, np.full((1, *cube.shape[1:]), 0.2)])
    assert (np.allclose(estimated_noise(flat)[:-1], before, rtol=0.05)
            and estimated_noise(flat)[-1] < 1e-5)
