"""The noise of a low-resolution cube, by band: as stated, and as estimated."""
from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from data.rendering import render_scene
from utility.degradation import downsample
from utility.superres.noise import (
    AT_ONCE,
    FEWEST,
    OF_FEW,
    estimated_noise,
    noise_of_snr,
    quiet,
    snr_of,
    told_noise,
)


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
    assert snr_of(low, estimated_noise(low)) > quiet(len(low)) == 40


def test_the_estimate_is_the_residual_of_a_regression_and_holds_few_rows_at_a_time():
    rng = np.random.default_rng(0)
    cube = rng.random((40, 300, 300), np.float32) + 3 * rng.random((300, 300), np.float32)
    missing = np.zeros((300, 300), bool)
    missing[250:] = True
    pixels = cube[:, ~missing].astype(np.float64)
    expected = np.sqrt(75000 / 74960 / np.diag(np.linalg.inv(np.cov(pixels))))
    cube[:, missing] = np.nan
    tracemalloc.start()
    try:
        found = estimated_noise(cube, missing)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(estimated_noise(cube), expected, rtol=1e-9)
    assert peak < 4 * AT_ONCE < 3 * pixels.nbytes


def few_of(cube, bands):
    """Some of its bands in even steps."""
    return cube[np.linspace(0, len(cube) - 1, bands).round().astype(int)]


@pytest.mark.parametrize("bands", [2, 3, 4, 5, 8, 12, 20])
def test_few_bands_without_noise_count_as_quiet(low, bands):
    assert told_noise(few_of(low, bands), "auto") is None


@pytest.mark.parametrize(("bands", "snr"), [(4, 18), (5, 20), (8, 25), (12, 25), (20, 30)])
def test_few_bands_tell_their_noise_where_it_is_clear(low, bands, snr):
    cube, level = noisy(few_of(low, bands), snr)
    found = told_noise(cube, "auto")
    assert snr_of(cube, found) == pytest.approx(snr, abs=2)
    assert np.median(np.abs(20 * np.log10(found / level))) < 2


def test_two_or_three_bands_tell_nothing(low):
    for bands in (2, 3):
        assert bands < FEWEST and estimated_noise(noisy(few_of(low, bands), 15)[0]) is None


def test_of_few_bands_the_noise_is_that_of_a_large_cube_or_a_holed_one():
    rng = np.random.default_rng(0)
    cube = rng.standard_normal((5, 700, 400)) + np.linspace(0, 40, 400)
    assert cube[0].size > 4 * OF_FEW
    assert np.allclose(estimated_noise(cube), 1, rtol=0.03)
    small = cube[:, :64, :64].copy()
    missing = np.zeros((64, 64), bool)
    missing[:20] = True
    small[:, missing] = 1e4
    small[2, 40, 40] = np.nan
    assert np.allclose(estimated_noise(small, missing), 1, rtol=0.1)


def test_few_pixels_are_compared_with_a_run_of_bands(low):
    cube, _ = noisy(low, 25)
    assert snr_of(cube, estimated_noise(cube[:, :16, :16])) == pytest.approx(25, abs=3)
    assert estimated_noise(cube[:, :2, :2]) is None and estimated_noise(cube[:1]) is None
    assert estimated_noise(cube[:8, :2, :2]) is None and estimated_noise(cube[:8, :7, :7]) is None


def test_constant_bands_and_missing_pixels_do_not_disturb_it(low):
    cube, _ = noisy(low, 25)
    before = estimated_noise(cube)
    holed = cube.copy()
    holed[3, 5, 5] = holed[:, 7, 9] = np.nan
    assert np.allclose(estimated_noise(holed), before, rtol=0.05)
    flat = np.concatenate([cube, np.full((1, *cube.shape[1:]), 0.2)])
    assert (np.allclose(estimated_noise(flat)[:-1], before, rtol=0.05)
            and estimated_noise(flat)[-1] < 1e-5)
