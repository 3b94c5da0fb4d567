"""Which bands a network computes, and what the others get."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from made import filled

from models import create_model
from utility.degradation import Degradation
from utility.superres.agreement import Agreement
from utility.superres.methods import methods
from utility.superres.problem import Problem
from utility.superres.spectrum import Spectrum, band_step, choose_supports

EVEN = np.ones(40)


def test_by_count_the_supports_are_evenly_spaced_with_both_ends():
    found = choose_supports(4, EVEN, Spectrum())
    assert found.bands[[0, -1]].tolist() == [0, 39] and len(found.bands) == 11
    assert set(np.diff(found.bands)) <= {3, 4}
    assert np.array_equal(found.shares[found.bands], np.eye(11, dtype=np.float32))
    assert np.allclose(found.shares.sum(1), 1) and ((found.shares > 0).sum(1) <= 2).all()
    assert np.allclose(found.shares @ found.bands, np.arange(40), atol=1e-5)  # linear between them


def test_every_band_is_computed_at_a_step_of_one_and_where_no_band_lies_between():
    assert choose_supports(1, EVEN, Spectrum()) is None
    assert choose_supports(3, EVEN[:2], Spectrum()) is None
    assert choose_supports(3, EVEN[:4], Spectrum(np.array([400, 410, 900, 910]))) is None


def test_what_is_added_is_in_deviations_of_each_band():
    deviations = np.linspace(1, 3, 9)
    shares = choose_supports(8, deviations, Spectrum()).shares
    assert np.allclose(shares[4], [0.5 * 2 / 1, 0.5 * 2 / 3])


@pytest.mark.parametrize("spectrum", [
    Spectrum(np.r_[400 + 10.0 * np.arange(20), 900 + 10.0 * np.arange(20)]),
    # the next detector begins before the end
    Spectrum(np.r_[400 + 10.0 * np.arange(20), 560 + 10.0 * np.arange(20)]),
    Spectrum(places=[*range(20), *range(25, 45)])],
    ids=["gap in nm", "two detectors", "bands left out"])
def test_nothing_is_interpolated_over_a_gap(spectrum):
    found = choose_supports(6, EVEN, spectrum)
    assert {0, 19, 20, 39} <= set(found.bands.tolist())
    assert (not found.shares[:20, found.bands >= 20].any()
            and not found.shares[20:, found.bands < 20].any())


def test_by_wavelength_supports_are_as_far_apart_as_steps_of_the_usual_width():
    nm = np.r_[400 + 5.0 * np.arange(30), 550 + 10.0 * np.arange(30)]  # bands become twice as wide
    found = choose_supports(4, np.ones(60), Spectrum(nm))
    assert np.diff(nm[found.bands]).max() <= 4 * 10 and len(found.bands) < 60 / 2
    assert np.allclose(found.shares @ nm[found.bands], nm, atol=1e-2)


def test_a_spectrum_from_long_to_short_is_thinned_as_well():
    nm = np.r_[400 + 10.0 * np.arange(20), 900 + 10.0 * np.arange(20)]
    forward, back = (choose_supports(6, EVEN, Spectrum(way)) for way in (nm, nm[::-1]))
    assert (
        len(back.bands) == len(forward.bands) < 20 and {0, 19, 20, 39} <= set(back.bands.tolist()))
    assert np.allclose(back.shares @ nm[::-1][back.bands], nm[::-1], atol=1e-2)


def test_a_dark_band_supports_no_other():
    deviations = EVEN.copy()
    deviations[[13, 14]] = 0.01
    found = choose_supports(13, deviations, Spectrum())
    assert not {13, 14} & set(found.bands.tolist()) and {0, 39} <= set(found.bands.tolist())
    assert choose_supports(13, EVEN, Spectrum()).bands.tolist() == [0, 13, 26, 39]


@pytest.mark.parametrize(("name", "bands", "step"),
                         [("lowgrid_4_2", 31, 1), ("lowgrid_4_2", 71, 1), ("lowgrid_4_2", 103, 2),
                          ("lowgrid_4_2", 224, 6), ("scaled_biqrnn_1_1", 200, 5),
                          ("biqrnn_1_1", 200, 1)])
def test_automatic_is_all_of_few_bands_and_36_or_more_of_many(name, bands, step):
    assert band_step(create_model(name), Problem(4), bands) == step
    assert band_step(create_model(name), Problem(4, bands_step=3), bands) == 3
    assert band_step(create_model(name), Problem(4, bands_step=3, bandwise=True), bands) == 1


def cubes(bands=12, side=48):
    low = np.random.default_rng(0).random((bands, side, side - 12), dtype=np.float32)
    return low * np.linspace(0.2, 1, bands, dtype=np.float32)[:, None, None]


@pytest.mark.parametrize("ensemble", [False, True])
def test_the_network_runs_on_the_supports_and_the_others_get_what_lies_between(ensemble):
    net, low = filled("lowgrid_4_2"), cubes()
    problem = Problem(4, "gaussian", start="backprojection", bands_step=4, self_ensemble=ensemble,
                      tile=0)
    made = methods(net, low, problem)
    found, start = made["network"].cube(), made["backprojection"].cube()
    supports = made["network"].supports
    assert made["network"].computed == len(supports.bands) == 4
    alone = methods(net, low[supports.bands],
                    Problem(4, "gaussian", start="backprojection", bands_step=1, tile=0,
                            self_ensemble=ensemble))["network"].cube()
    assert np.abs(found[supports.bands] - alone).max() < 1e-5
    added = alone - start[supports.bands]
    assert np.abs(added).max() > 0.01
    assert np.abs(found - start - np.tensordot(supports.shares, added, 1)).max() < 1e-5
    again = Degradation.of(4, "gaussian").down(torch.from_numpy(found)).numpy()
    expected = Agreement(low.shape)
    expected.add(slice(None), slice(None), again, low)
    assert made["network"].agreement()["network"] == pytest.approx(expected.found(), rel=1e-4)


@pytest.mark.parametrize("tile", [32, "auto"])
def test_tiles_give_the_whole_scene_s_result(monkeypatch, tile):
    net, low, spreads = filled("lowgrid_4_2"), cubes(), {}
    # what little a tile over the width takes
    monkeypatch.setattr("utility.system.memory.free_memory", lambda: 0)

    def result(tile):
        problem = Problem(4, "gaussian", bands_step=3, tile=tile, self_ensemble=True)
        spreads[tile] = np.empty((192, 144), np.float32)

        def take(top, left, plane):
            spreads[tile][top:top + plane.shape[0], left:left + plane.shape[1]] = plane

        return methods(net, low, problem)["network"].cube(spread=take)

    whole = result(0)
    assert np.abs(result(tile) - whole).max() < 1e-5
    assert np.abs(spreads[tile] - spreads[0]).max() < 1e-6 and spreads[0].min() > 0
