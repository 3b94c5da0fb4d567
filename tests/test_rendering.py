"""Rendered scenes: each by (seed, number), of any bands; a stopped run goes on."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data.rendering import KINDS, render_scene, render_scenes, wavelengths
from figs.draw_rendered import COLUMNS, statistics
from utility import lmdb_data
from utility.degradation import degrade
from utility.lmdb_dataset import LMDBDataset


@pytest.mark.parametrize(("kind", "bands"), [("natural", 31), ("overhead", 10), ("overhead", 224)])
def test_a_scene_fills_0_to_1_and_follows_from_seed_and_number_alone(kind, bands):
    scene = render_scene(kind, seed=1, number=3, bands=bands, side=48)
    assert scene.shape == (bands, 48, 48) and scene.dtype == np.float32
    assert scene.min() == 0 and scene.max() == 1
    assert np.array_equal(scene, render_scene(kind, seed=1, number=3, bands=bands, side=48))
    assert not np.array_equal(scene, render_scene(kind, seed=1, number=4, bands=bands, side=48))


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_have_detail_that_interpolation_loses_and_bands_that_agree(kind):
    for number in range(4):
        scene = torch.from_numpy(render_scene(kind, seed=2, number=number, bands=31,
                                              side=64)).double()
        lost = (scene - degrade(scene, 4, "gaussian")).std((1, 2)) / scene.std((1, 2))
        assert 0.05 < lost.median() < 0.95
        flat = scene.flatten(1) - scene.flatten(1).mean(1, keepdim=True)
        flat = flat / flat.norm(dim=1, keepdim=True)
        assert (flat[1:] * flat[:-1]).sum(1).median() > 0.9


def test_sensors_differ_and_their_bands_ascend():
    sensors = [wavelengths(np.random.default_rng(seed), 100) for seed in range(5)]
    assert all((np.diff(nm) >= 0).all() and nm[0] > 350 and nm[-1] < 2600 for nm in sensors)
    assert len({nm[-1] for nm in sensors}) == 5


def test_a_stopped_rendering_goes_on_and_the_database_follows():
    kept = Path("data/rendered/natural/natural_2021_00002.npy")
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"kept as it is")
    files = render_scenes(kept.parent, "natural", bands=31, count=3, side=64, workers=1)
    assert files[2] == kept and kept.read_bytes() == b"kept as it is"
    expected = render_scene("natural", seed=2021, number=1, bands=31, side=64)
    assert np.abs(np.load(files[1]) / 65535 - expected).max() <= 0.5 / 65535
    lmdb_data.main(["--dataset", "rendered", "--scenes", "2", "--quiet"])
    assert LMDBDataset("data/lmdb/rendered.lmdb").shape == (31, 64, 64)


def test_the_table_tells_noise_from_edges():
    noise = torch.rand(6, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edge = torch.zeros_like(noise)
    edge[:, :, 32:] = torch.arange(1.0, 7.0, dtype=torch.float64).view(6, 1, 1) / 6
    of = {name: pair
          for name, *pair in zip(COLUMNS, statistics(noise), statistics(edge), strict=True)}
    assert abs(of["gradient"][0] - 2**0.5) < 0.05 and of["gradient"][1] < 0.5
    assert of["tails"][0] < 4 < of["tails"][1]
    assert abs(of["neighbours"][0]) < 0.1 and of["neighbours"][1] > 0.99
    assert all(of[name][0] > of[name][1] for name in ("lost x4", "after bp"))
    assert of["darkest"][1] == pytest.approx(1 / 12)
