"""What other MTFs of the sensor would change in the result of a user's own cube."""
from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import hsi_test
from data.rendering import render_scene
from utility.degradation import downsample
from utility.superres.assumptions import MTFS, SIDE, middle, other_mtfs, under_other_mtfs
from utility.superres.problem import Problem, sensor_in_words

SAFE = Problem(4, "mtf 0.7", "backprojection", mtf_known=False, method="backprojection")


@pytest.fixture(scope="module")
def low() -> np.ndarray:
    cube = render_scene("natural", seed=5, number=1)
    return downsample(torch.from_numpy(cube), 4, "mtf 0.3").numpy()


def test_the_taken_mtf_is_not_another_one():
    assert other_mtfs(SAFE) == [m for m in MTFS if m != 0.7]
    assert other_mtfs(Problem(4, "mtf 0.26", method="backprojection")) == [0.15, 0.5, 0.7]


@pytest.mark.parametrize("kind, method", [("bicubic", "backprojection"),
                                          ("mtf 0.3", "interpolation")])
def test_there_is_none_where_no_mtf_is_assumed(low, kind, method):
    problem = Problem(4, kind, method=method)
    assert under_other_mtfs(None, low, problem) == ([], {})


def test_the_softer_the_sensor_the_more_a_result_changes(low):
    rows, cubes = under_other_mtfs(None, low, SAFE)
    assert [row["mtf"] for row in rows] == [0.15, 0.3, 0.5]
    for first, second in pairwise(rows):
        assert first["differs"] > second["differs"] > 0 and first["halo"] > second["halo"]
    own, *others = cubes.values()
    for row, cube in zip(rows, others, strict=True):
        assert row["differs"] == pytest.approx(np.sqrt(np.square(cube - own).mean()), rel=1e-4)


def test_what_nobody_measured_does_not_count(low):
    holed = low.copy()
    holed[:, :, low.shape[2] // 2:] = np.nan
    rows, cubes = under_other_mtfs(None, holed, SAFE)
    whole, _ = under_other_mtfs(None, np.where(np.isnan(holed), 1e3, holed), SAFE)
    assert all(0 < row["differs"] < 0.1 for row in rows)
    assert all(row["differs"] > 1 for row in whole)
    missing = np.isnan(middle(holed)).repeat(4, 1).repeat(4, 2)
    assert len(cubes) == 4
    assert all(np.array_equal(np.isnan(cube), missing) for cube in cubes.values())


def test_the_middle_is_no_larger_than_its_side():
    assert middle(np.zeros((2, 200, 30))).shape == (2, SIDE, 30)


def test_the_report_of_a_cube_shows_them(tmp_path, monkeypatch, low):
    monkeypatch.chdir(tmp_path)
    np.save("low.npy", low)
    assert not hsi_test.main(["--input", "low.npy", "--layout", "BHW", "--output", "high.npy",
                              "--method", "backprojection", "--scale", "4", "--report", "--quiet"])
    summary = json.loads(Path("high_report/summary.json").read_text())
    assert [row["mtf"] for row in summary["other_mtfs"]] == [0.15, 0.3, 0.5]
    page = Path("high_report/report.html").read_text()
    assert "--mtf 0.15 changes the values by" in page
    assert "assumes a sensor&#x27;s MTF of 0.7" in page
    assert Path("high_report/assumptions.png").stat().st_size > 10_000


def test_an_interpolation_is_said_to_take_no_account_of_a_sensor():
    words = sensor_in_words(Problem(4, "mtf 0.7", mtf_known=False, method="interpolation"), 20.0)
    assert words == "interpolates, whatever the sensor's MTF is; its agreement is that of 0.7"
    assert "20 dB" in sensor_in_words(SAFE, 20.0)
