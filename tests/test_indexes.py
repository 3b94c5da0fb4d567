"""The quality indexes: the formulas of each preset, what they leave out, what they refuse."""
from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from benchmarks.other_metrics import PAGE, number, own_row
from utility.indexes import (
    METRICS,
    PRESETS,
    Comparison,
    Metric,
    band_psnr,
    evaluate,
    sam_map,
)
from utility.report.tables import result_table
from utility.system.errors import UserError


def pair(bands: int = 3, height: int = 20, width: int = 27,
         seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gt = rng.random((bands, height, width))
    return np.clip(gt + 0.1 * rng.standard_normal(gt.shape), 0, 1), gt


def direct_ssim(x: np.ndarray, y: np.ndarray, window: np.ndarray, data_range: float,
                unbiased: bool) -> float:
    """SSIM written out window by window."""
    n = len(window)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    scale = n * n / (n * n - 1) if unbiased else 1.0
    values = []
    for i in range(x.shape[0] - n + 1):
        for j in range(x.shape[1] - n + 1):
            u, v = x[i:i + n, j:j + n], y[i:i + n, j:j + n]
            mu, mv = (window * u).sum(), (window * v).sum()
            suu, svv = (scale * (window * (a - m) ** 2).sum() for a, m in ((u, mu), (v, mv)))
            suv = scale * (window * (u - mu) * (v - mv)).sum()
            values.append(
                (2 * mu * mv + c1) * (2 * suv + c2) / ((mu**2 + mv**2 + c1) * (suu + svv + c2)))
    return float(np.mean(values))


def gaussian_window() -> np.ndarray:
    r = np.arange(11) - 5
    window = np.exp(-(r[:, None] ** 2 + r[None] ** 2) / (2 * 1.5**2))
    return window / window.sum()


@pytest.mark.parametrize(("preset", "window", "data_range", "unbiased"),
                         [("standard", gaussian_window(), 1.0, False),
                          ("reference", np.full((7, 7), 1 / 49), 2.0, True),
                          ("sspsr", np.full((7, 7), 1 / 49), 1.0, True)])
def test_ssim_of_each_preset_equals_the_sum_over_windows_written_out(
        preset, window, data_range, unbiased):
    sr, gt = pair()
    expected = [direct_ssim(x, y, window, data_range, unbiased)
                for x, y in zip(sr, gt, strict=True)]
    np.testing.assert_allclose(Comparison(sr, gt, preset=preset).band_indexes()["ssim"], expected,
                               rtol=1e-10)
    assert evaluate(sr, gt, 4, preset)["ssim"] == pytest.approx(np.mean(expected), rel=1e-10)


def test_ssim_does_not_depend_on_the_strips_it_is_computed_in(monkeypatch):
    sr, gt = pair(1, 61, 30)
    whole = evaluate(sr, gt, 4)["ssim"]
    monkeypatch.setattr("utility.indexes.STRIP_ROWS", 7)
    assert evaluate(sr, gt, 4)["ssim"] == pytest.approx(whole, rel=1e-12)


def test_psnr_is_the_mean_over_bands_and_cube_psnr_is_of_the_mean_error():
    gt = np.full((2, 12, 12), 0.5)
    sr = gt + np.array([0.1, 0.01])[:, None, None]
    row = evaluate(sr, gt, 2)
    np.testing.assert_allclose(band_psnr(sr, gt), [20, 40], rtol=1e-9)
    assert row["psnr"] == pytest.approx(30)
    assert row["cube_psnr"] == pytest.approx(-10 * math.log10((1e-2 + 1e-4) / 2))
    assert row["rmse"] == pytest.approx(math.sqrt((1e-2 + 1e-4) / 2))


def test_ergas_equals_the_value_worked_out_by_hand():
    gt = np.empty((2, 12, 12))
    gt[0], gt[1] = 0.5, 0.25
    sr = gt + np.array([0.05, 0.05])[:, None, None]
    # relative errors .05/.5 = .1 and .05/.25 = .2: sqrt((.01 + .04)/2) = .158114
    assert evaluate(sr, gt, 4)["ergas"] == pytest.approx(25 * 0.15811388, rel=1e-7)
    assert evaluate(sr, gt, 8)["ergas"] == pytest.approx(12.5 * 0.15811388, rel=1e-7)


@pytest.mark.parametrize("dark", [0.0, 1e-6])
def test_ergas_leaves_out_and_names_the_bands_whose_mean_is_near_zero(dark):
    gt = np.full((3, 12, 12), 0.5)
    gt[1] = dark
    row = evaluate(gt + 0.05, gt, 1)
    assert row["ergas"] == pytest.approx(10)  # with band 1 it would be above 3 million, or infinite
    assert Comparison(gt, gt).dark.tolist() == [False, True, False]
    assert evaluate(gt, np.zeros_like(gt), 1)["ergas"] is None
    gt[1] = 0.1
    assert not Comparison(gt, gt).dark.any()


def test_q_equals_the_sum_over_windows_written_out():
    sr, gt = pair(2)
    values = []
    for x, y in zip(sr, gt, strict=True):
        for i in range(x.shape[0] - 7):
            for j in range(x.shape[1] - 7):
                u, v = x[i:i + 8, j:j + 8].ravel(), y[i:i + 8, j:j + 8].ravel()
                (suu, suv), (_, svv) = np.cov(u, v)
                values.append(
                    4 * suv * u.mean() * v.mean() / ((suu + svv) * (u.mean() ** 2 + v.mean() ** 2)))
    assert evaluate(sr, gt, 4)["q"] == pytest.approx(np.mean(values), rel=1e-10)


def test_q_compares_means_alone_where_both_are_flat_and_is_none_without_a_window():
    flat = np.full((1, 12, 12), 0.5)
    assert evaluate(flat, flat, 4)["q"] == evaluate(0 * flat, 0 * flat, 4)["q"] == 1
    assert evaluate(0.5 * flat, flat, 4)["q"] == pytest.approx(2 * 0.5 * 0.25 / (0.5**2 + 0.25**2))
    sr, gt = pair(1, 7, 7)
    assert evaluate(sr, gt, 4, "reference")["q"] is None


def test_the_fixed_pair_has_the_figures_of_other_libraries_and_of_the_page():
    """But for `psnr` and `q` of scikit-image 0.26.0, torchmetrics 1.9.0 or sewar 0.4.10."""
    entry = own_row()
    expected = {"psnr": 33.8203, "ssim": 0.810248, "sam": 2.69266, "ergas": 1.22566, "q": 0.690839}
    assert entry["row"] == pytest.approx(expected, rel=5e-6)
    facts = dict(entry["facts"])
    assert facts["PSNR of the whole cube"] == pytest.approx(32.7733, rel=5e-6)
    assert facts["SAM in radians"] == pytest.approx(0.0469959, rel=5e-6)
    assert facts["SSIM, 7 x 7 uniform window (`sspsr`)"] == pytest.approx(0.824171, rel=5e-6)
    page = PAGE.read_text(encoding="utf-8")
    cells = " | ".join(number(value) for value in entry["row"].values())
    assert f"| this project | {cells} |" in page
    for question, value in facts.items():
        assert f"| this project | {question} | {number(value)} |" in page


def test_values_outside_of_0_to_1_are_counted_and_named():
    gt = np.full((2, 12, 12), 0.5)
    sr = gt.copy()
    sr[0, 0, :3], sr[1, 5, 5] = -0.01, 1.01
    assert evaluate(sr, gt, 4)["outside_values"] == 4 and evaluate(gt, gt, 4)["outside_values"] == 0


def test_cc_is_pearsons_r_and_leaves_out_constant_bands_of_the_ground_truth():
    sr, gt = pair()
    expected = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(sr, gt, strict=True)]
    assert evaluate(sr, gt, 2)["cc"] == pytest.approx(np.mean(expected), rel=1e-10)
    gt[0] = 0.3
    assert evaluate(sr, gt, 2)["cc"] == pytest.approx(np.mean(expected[1:]), rel=1e-10)
    sr[1] = 0.3  # a constant prediction of a band that varies explains nothing of it
    assert evaluate(sr, gt, 2)["cc"] == pytest.approx(expected[2] / 2, rel=1e-10)


def test_sam_in_degrees_skips_and_counts_zero_spectra():
    gt = np.zeros((2, 12, 12))
    gt[0] = 1.0
    sr = gt.copy()
    sr[:, :6] = np.array([1.0, 1.0])[:, None, None]  # 45 degrees in half of the image
    assert evaluate(sr, gt, 2)["sam"] == pytest.approx(22.5)
    gt[:, 6:] = 0
    row = evaluate(sr, gt, 2)
    assert row["sam"] == pytest.approx(45)
    assert row["skipped_pixels"] == 72
    angles = sam_map(sr, gt)
    assert angles.shape == (12, 12)
    assert np.isnan(angles[6:]).all()
    np.testing.assert_allclose(angles[:6], 45)


def test_sam_of_the_reference_is_in_radians_with_its_epsilon_and_counts_every_pixel():
    sr, gt = pair(5)
    sr[:, 3, 4] = 0
    x, y = sr.reshape(5, -1), gt.reshape(5, -1)
    eps = 1e-8
    cosine = ((x * y).sum(0) + eps) / (np.linalg.norm(x, axis=0) + eps) / (
        np.linalg.norm(y, axis=0) + eps)
    row = evaluate(sr, gt, 4, "reference")
    assert row["sam"] == pytest.approx(np.arccos(np.clip(cosine, -1, 1)).mean(), rel=1e-10)
    assert row["skipped_pixels"] == 0
    assert METRICS["sam"].unit_in("reference") == "rad"
    assert METRICS["sam"].unit_in("standard") == "deg"


def test_presets_differ_in_ssim_and_sam_alone():
    sr, gt = pair(4)
    rows = {name: evaluate(sr, gt, 4, name) for name in PRESETS}
    for key in ("psnr", "cube_psnr", "ergas", "cc", "rmse"):
        assert len({row[key] for row in rows.values()}) == 1
    assert len({row["ssim"] for row in rows.values()}) == 3
    assert rows["standard"]["sam"] == rows["sspsr"]["sam"]
    assert rows["standard"]["sam"] == pytest.approx(math.degrees(rows["reference"]["sam"]),
                                                    rel=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_an_identical_cube_is_perfect_and_still_json(preset):
    _, gt = pair()
    row = evaluate(gt, gt, 4, preset)
    json.dumps(row, allow_nan=False)
    assert row["psnr"] == row["cube_psnr"] == 100
    assert row["ssim"] == pytest.approx(1)
    assert row["cc"] == pytest.approx(1)
    assert row["sam"] == pytest.approx(0, abs=1e-3)  # the reference's epsilon does not cancel
    assert row["rmse"] == row["ergas"] == 0


def test_constant_and_empty_cubes_give_json_without_nan():
    zero = np.zeros((3, 12, 12))
    row = evaluate(zero, zero, 4)
    json.dumps(row, allow_nan=False)
    assert row["sam"] is None
    assert row["ergas"] is None
    assert row["cc"] is None
    assert row["skipped_pixels"] == 144


def test_flips_rotations_and_band_order_change_nothing():
    sr, gt = pair(6)
    row = evaluate(sr, gt, 4)
    for move in (lambda x: x[:, ::-1], lambda x: x[:, :, ::-1], lambda x: np.rot90(x, axes=(1, 2)),
                 lambda x: x[::-1]):
        moved = evaluate(move(sr), move(gt), 4)
        for key in METRICS:
            assert moved[key] == pytest.approx(row[key], rel=1e-10), key


def test_more_noise_is_worse_in_every_index():
    rng = np.random.default_rng(1)
    gt = 0.2 + 0.6 * rng.random((4, 30, 30))
    noise = rng.standard_normal(gt.shape)
    good, bad = evaluate(gt + 0.02 * noise, gt, 4), evaluate(gt + 0.06 * noise, gt, 4)
    for name, metric in METRICS.items():
        assert (good[name] > bad[name]) == metric.higher_is_better, name


def test_a_border_is_cut_from_all_four_edges():
    sr, gt = pair(2, 30, 33)
    sr[:, 0] = sr[:, -1] = 1
    sr[:, :, 0] = sr[:, :, -1] = 0
    assert evaluate(sr, gt, 4, border=3) == evaluate(sr[:, 3:-3, 3:-3], gt[:, 3:-3, 3:-3], 4)


def test_tensors_float32_and_strided_views_are_taken():
    sr, gt = pair(3)
    sr, gt = sr.astype(np.float32), gt.astype(np.float32)
    row = evaluate(sr, gt, 4)
    assert evaluate(torch.from_numpy(sr).requires_grad_(), torch.from_numpy(gt), 4) == row
    last = [np.ascontiguousarray(x.transpose(1, 2, 0)).transpose(2, 0, 1) for x in (sr, gt)]
    assert evaluate(*last, 4) == row
    # float32 data, float64 arithmetic
    assert row == evaluate(sr.astype(np.float64), gt.astype(np.float64), 4)


def test_what_cannot_be_compared_is_refused_in_one_sentence():
    sr, gt = pair()
    nan = gt.copy()
    nan[1, 2, 3] = np.nan
    for arguments, words in (((sr[:2], gt, 4), "shape"),
                             ((sr[0], gt[0], 4), "bands, height, width"),
                             ((nan, gt, 4), "Band 1 of the super-resolved cube holds NaN"),
                             ((sr, nan, 4), "Band 1 of the ground truth holds NaN"),
                             ((sr, gt * 255, 4), r"\[0, 1\]"), ((sr, gt, 0), "scale"),
                             ((sr, gt, 4, "paper"), "standard, reference, sspsr"),
                             ((sr, gt, 4, "standard", 5), "window"),
                             ((sr, gt, 4, "standard", 10), "border")):
        with pytest.raises(UserError, match=words) as refusal:
            evaluate(*arguments)
        assert "\n" not in str(refusal.value)


def test_the_best_of_any_number_of_values_is_known_as_printed_and_ties_share_it():
    best = METRICS["psnr"].best
    assert best([30.0, 32.0, 31.0]) == [False, True, False]
    assert best([30.0, 32.00001, 32.00002]) == [False, True, True]
    assert best([30.00001, 30.00002]) == [False, False]  # nothing stands out
    assert METRICS["sam"].best([3.0, 4.0, None]) == [True, False, False]
    assert METRICS["cc"].best([None, 0.5]) == [False, False]  # no rival


def test_a_metric_is_one_row(monkeypatch):
    monkeypatch.setitem(METRICS, "mae",
                        Metric("mae", "MAE", "%", 2, False,
                               of_band=lambda c, b: 100 * np.abs(np.subtract(*c.band(b))).mean()))
    gt = np.full((2, 12, 12), 0.5)
    row = evaluate(gt + np.array([0.1, 0.2])[:, None, None], gt, 4)
    assert row["mae"] == pytest.approx(15)
    np.testing.assert_allclose(Comparison(gt + 0.1, gt).band_indexes()["mae"], 10)
    images = [{"name": "a", "x": row, "y": evaluate(gt, gt, 4)}]
    header, groups = result_table(images, {"x": "ours", "y": "theirs"}, "standard")
    assert header[-2] == "MAE [%] ↓" and [line[-2] for line in groups[0]] == ["15.00", "0.00"]


def test_the_bands_of_a_cube_make_up_its_indexes():
    sr, gt = pair(5)
    gt[2] *= 1e-3  # too dark for ERGAS
    row, bands = evaluate(sr, gt, 4), Comparison(sr, gt, 4).band_indexes()
    assert (set(bands) == set(METRICS) - {"cube_psnr"}
            and {len(values) for values in bands.values()} == {5})
    for name in ("psnr", "ssim", "cc", "q"):
        assert bands[name].mean() == pytest.approx(row[name])
    np.testing.assert_allclose(bands["psnr"], band_psnr(sr, gt))
    assert row["rmse"] == pytest.approx(math.sqrt(np.mean(bands["rmse"] ** 2)))
    assert np.isnan(bands["ergas"]).tolist() == [False, False, True, False, False]
    assert row["ergas"] == pytest.approx(math.sqrt(np.nanmean(bands["ergas"] ** 2)))
    chord = 2 * np.sin(np.radians(sam_map(sr, gt)) / 2)
    assert np.sum(np.radians(bands["sam"]) ** 2) == pytest.approx(np.mean(chord**2))
    np.testing.assert_allclose(Comparison(sr, gt, 4, "reference").band_indexes()["sam"],
                               np.radians(bands["sam"]))
