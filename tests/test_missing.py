"""Pixels that nobody measured: in no number, range, figure or patch; no-data in results."""
from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from made import envi, network, smooth
from made import geotiff as raster

import hsi_test
from models import create_model
from utility.checkpoints import save_checkpoint
from utility.cubes.bands import marked_bad
from utility.datasets.building import build_database
from utility.datasets.cards import generic_card, load_card
from utility.datasets.patches import extract_patches
from utility.degradation import Degradation
from utility.indexes import Comparison, evaluate, sam_map
from utility.lmdb_dataset import LMDBDataset
from utility.names import DEGRADATIONS
from utility.report.figures import choose_crop, choose_pixels, composite
from utility.scenes import Reading, Scene, open_as, read_scene
from utility.superres.methods import methods
from utility.superres.noise import told_noise
from utility.superres.problem import Problem
from utility.system.errors import UserError

ROWS, COLUMNS, SEAM = 48, 80, 40
"""A scene whose columns from SEAM on are missing."""


def scene() -> np.ndarray:
    return np.rint(smooth(6, ROWS, COLUMNS) * 5000).astype(np.int16) + 100


def half(value: float, dtype: str = "int16") -> np.ndarray:
    cube = scene().astype(dtype)
    cube[:, :, SEAM:] = value
    return cube


GONE = np.zeros((ROWS, COLUMNS), bool)
GONE[:, SEAM:] = True
MADE = {"int16, declared": lambda p: raster(p / "half.tif", half(-9999), -9999),
        "float32, declared": lambda p: raster(p / "half.tif", half(-9999, "float32"), -9999),
        "NaN": lambda p: raster(p / "half.tif", half(np.nan, "float32")),
        "mask": lambda p: raster(p / "half.tif", half(3000), mask=~GONE),
        "alpha": lambda p: raster(p / "half.tif", half(3000), alpha=np.where(GONE, 0, 255)),
        "ENVI": lambda p: envi(p / "half.hdr", half(-9999), "-9999")}
"""How a file says it -> that file, in a folder."""


def run(*arguments: object) -> None:
    assert hsi_test.main(["--scale", "4", *map(str, arguments)]) in (None, 0)


def results_of(out: str, *arguments: object) -> dict:
    run("--out", out, "--no-figures", *arguments)
    return json.loads(Path(out, "metrics.json").read_text())


def given(path: Path) -> None:
    """Weights that change their start image a little."""
    save_checkpoint(path,
                    {"net": network(0.01, "biqrnn_2_1").state_dict(), "arch": "biqrnn_2_1",
                     "scale": 4, "degradation": "gaussian", "start": "backprojection", "epoch": 3,
                     "iteration": 40})


@pytest.fixture
def made(tmp_path, request):
    return MADE[request.param](tmp_path)


# -------------------------------------------------------------------------------------- the indexes

@pytest.mark.parametrize("preset", ["standard", "reference", "sspsr"])
def test_no_index_depends_on_the_values_of_pixels_that_do_not_count(preset):
    rng = np.random.default_rng(0)
    gt = rng.random((4, 30, 40))
    sr = np.clip(gt + 0.05 * rng.standard_normal(gt.shape), 0, 1)
    counted = np.ones((30, 40), bool)
    counted[:, 25:] = False
    spoiled, truth = sr.copy(), gt.copy()
    spoiled[:, :, 25:], truth[:, :, 25:] = np.nan, -7
    alone, among = (evaluate(sr[:, :, :25], gt[:, :, :25], 4, preset),
                    evaluate(spoiled, truth, 4, preset, counted=counted))
    assert alone.pop("counted_pixels") == among.pop("counted_pixels") == 750
    assert among == pytest.approx(alone, rel=1e-9)
    bands = Comparison(spoiled, truth, 4, preset, counted=counted).band_indexes()
    for name, values in Comparison(sr[:, :, :25], gt[:, :, :25], 4, preset).band_indexes().items():
        np.testing.assert_allclose(bands[name], values, rtol=1e-9)
    assert np.isnan(sam_map(spoiled, truth, counted)[:, 25:]).all()
    bordered = evaluate(spoiled, truth, 4, preset, border=5, counted=counted)
    assert bordered["counted_pixels"] == 20 * 20
    assert bordered["psnr"] == pytest.approx(
        evaluate(sr[:, 5:25, 5:25], gt[:, 5:25, 5:25], 4, preset)["psnr"])
    with pytest.raises(UserError, match="No pixel is left"):
        evaluate(spoiled, truth, 4, preset, counted=np.zeros((30, 40), bool))


def test_windows_of_ssim_and_q_with_a_hole_are_left_out():
    gt = np.random.default_rng(0).random((1, 24, 24))
    sr, counted = gt.copy(), np.ones((24, 24), bool)
    sr[0, 12, 12], counted[12, 12] = 5, False
    row = evaluate(sr, gt, 4, counted=counted)
    assert row["ssim"] == pytest.approx(1) and row["q"] == pytest.approx(1) and row["psnr"] == 100


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_a_degraded_pixel_is_missing_that_a_missing_one_has_a_part_in(kind):
    degradation = Degradation(4, kind, (0.3, 0.2) if kind == "mtf" else None)
    missing = np.zeros((40, 48), bool)
    missing[17, 30] = missing[:3, :2] = True
    weights = degradation.down(
        torch.from_numpy(missing[None] * np.random.default_rng(0).random((40, 48)))).numpy()[0]
    lost, unseen = degradation.unseen(missing)
    assert (lost >= (np.abs(weights) > 1e-5)).all(), "each pixel that the missing ones change"
    assert (lost <= (np.abs(weights) > 1e-13)).all() and not lost.all()
    assert (unseen >= missing).all() and unseen.sum() >= 16 * lost.sum() * degradation.block_grid


# ----------------------------------------------------------------------------- against ground truth

@pytest.mark.parametrize("made", MADE, indirect=True)
def test_the_numbers_of_a_scene_half_of_which_is_missing_are_those_of_its_other_half(
        made, tmp_path):
    valid = raster(tmp_path / "valid.tif", scene()[:, :, :SEAM])
    results = results_of("out", "--data", valid, made, "--method", "interpolation")
    alone, among = (row["interpolation"] for row in results["images"])
    assert (results["images"][1]["missing_pixels"] == ROWS * SEAM
            and results["images"][0]["missing_pixels"] == 0)
    # Two low-resolution columns' taps reach over the seam: the blocks beside it are not compared.
    assert among["counted_pixels"] == ROWS * (SEAM - 4) and alone["counted_pixels"] == ROWS * SEAM
    assert (among["psnr"] == pytest.approx(alone["psnr"], abs=0.3)
            and among["sam"] == pytest.approx(alone["sam"], rel=0.08))
    assert [results["images"][k]["low"] for k in (0, 1)] == [results["images"][0]["low"]] * 2
    assert results["mean"]["interpolation"]["counted_pixels"] == ROWS * (2 * SEAM - 4)
    with open("out/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["counted_pixels"] for row in rows[:4:2]] == [
        str(ROWS * SEAM), str(ROWS * (SEAM - 4))]
    with open("out/metrics_bands.csv", newline="") as file:
        assert {row["pixels"] for row in csv.DictReader(file)} == {
            str(ROWS * SEAM), str(ROWS * (SEAM - 4))}


def test_the_cube_of_a_test_has_no_data_where_nothing_was_compared(tmp_path, monkeypatch, capsys):
    path = raster(tmp_path / "half.tif", half(-9999), -9999)
    given(tmp_path / "given.pth")
    run("-rp", tmp_path / "given.pth", "--data", path, "--out", "out", "--border", 2,
        "--no-figures")
    with rasterio.open("out/cubes/half_x4.tif") as file:
        cube = file.read()
        assert (file.nodata == -9999 and (cube[:, :, SEAM - 4:] == -9999).all()
                and (cube[:, :, :SEAM - 4] != -9999).all())
    assert f"{ROWS * SEAM} pixels are missing" in capsys.readouterr().out
    row, = json.loads(Path("out/metrics.json").read_text())["images"]
    assert row["network"]["counted_pixels"] == (ROWS - 4) * (SEAM - 6)


def test_made_up_values_of_single_bands_are_not_scored(tmp_path):
    cube = scene().astype(np.float32)
    cube[2, 10:14, 20:24] = np.nan
    path = raster(tmp_path / "holes.tif", cube)
    row, = results_of("out", "--data", path, "--method", "interpolation", "--fill-nodata")["images"]
    assert (row["missing_pixels"] == 16
            and row["interpolation"]["counted_pixels"] < ROWS * COLUMNS - 16)
    whole = results_of("dropped", "--data", path, "--method", "interpolation", "--drop-bad-bands")[
        "images"][0]
    assert whole["missing_pixels"] == 0 and whole["bands"] == 5


def test_cubes_of_others_are_compared_where_they_and_the_truth_have_pixels(tmp_path, capfd):
    path = raster(tmp_path / "half.tif", half(-9999), -9999)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    cube = half(-9999, "float32")
    cube[:, :, :SEAM] += 50
    cube[:, :, :4] = -9999
    raster(theirs / "half.tif", cube, -9999)
    row, = results_of("out", "--data", path, "--method", "interpolation", "--compare",
                      f"theirs={theirs}")["images"]
    assert (row["theirs"]["counted_pixels"] == row["interpolation"]["counted_pixels"] == ROWS
            * (SEAM - 8))
    span = row["high"] - row["low"]
    assert row["theirs"]["rmse"] == pytest.approx(50 / span, rel=1e-5)
    assert f"half.tif lacks {4 * ROWS} pixels" in capfd.readouterr().err
    cube[cube == -9999] = np.nan
    raster(theirs / "half.tif", cube)
    with pytest.raises(UserError,
                       match=fr"theirs/half\.tif holds {6 * 4 * ROWS} values that are NaN"):
        results_of("no", "--data", path, "--method", "interpolation", "--compare",
                   f"theirs={theirs}")


@pytest.mark.parametrize("name", ["lowgrid_8_1", "scaled_biqrnn_2_1"])
def test_a_network_s_statistics_of_the_scene_leave_missing_pixels_out(name):
    torch.manual_seed(0)
    net = create_model(name).eval()
    seen = []
    real = net.statistics
    object.__setattr__(net, "statistics", lambda low: seen.append(real(low)) or seen[-1])
    low = np.random.default_rng(0).random((5, 12, 16), np.float32)
    missing = np.zeros((12, 16), bool)
    missing[:, 10:] = True
    missing[0, :3] = True
    methods(net, low, Problem(4), missing=missing)["network"].cube()
    expected = real(torch.from_numpy(low[:, ~missing])[None, None, :, None])
    torch.testing.assert_close(sum(seen), expected)


# --------------------------------------------------------------------------- a cube without a truth

@pytest.mark.parametrize("made", ["NaN", "alpha", "ENVI"], indirect=True)
def test_a_result_has_no_data_where_its_input_has_none_and_its_agreement_is_of_the_others(
        made, tmp_path):
    target = tmp_path / f"high{made.suffix}"
    run("--input", made, "--output", target, "--method", "backprojection", "--report", "--out",
        "page")
    result = read_scene(target)
    assert result.cube.shape == (6, 4 * ROWS, 4 * COLUMNS), "an alpha band is no band"
    gone = np.isnan(result.cube) if np.isnan(result.nodata) else result.cube == result.nodata
    np.testing.assert_array_equal(gone.all(0), GONE.repeat(4, 0).repeat(4, 1))
    np.testing.assert_array_equal(gone.any(0), gone.all(0))
    summary = json.loads(Path("page/summary.json").read_text())
    assert ROWS * (SEAM - 3) <= summary["compared_pixels"] <= ROWS * (SEAM - 1)
    assert f"at the {summary['compared_pixels']} of {ROWS * COLUMNS} pixels" in summary["agreement"]


def test_the_result_is_the_same_by_tiles(tmp_path):
    given(tmp_path / "given.pth")
    path = raster(tmp_path / "half.tif", half(-9999), -9999)
    for tile in (0, 64):
        run("-rp", tmp_path / "given.pth", "--input", path, "--output", f"tile_{tile}.tif",
            "--tile", tile)
    one, other = (read_scene(f"tile_{tile}.tif").cube.astype(int) for tile in (0, 64))
    assert np.abs(one - other).max() <= 1 and ((one == -9999) == (other == -9999)).all()


def test_pixels_that_a_bad_band_lacks_are_no_data_in_that_band_of_a_result(tmp_path):
    cube = scene()
    cube[2, 10:14, 20:24] = -9999
    run("--input", raster(tmp_path / "low.tif", cube, -9999), "--output", "high.tif", "--method",
        "interpolation")
    gone = read_scene("high.tif").cube == -9999
    assert gone[2, 40:56, 80:96].all() and gone.sum() == 256


def test_no_scale_of_a_figure_is_of_missing_pixels():
    cube = smooth(4, 32, 40).astype(np.float32)
    spoiled = cube.copy()
    spoiled[:, :, 24:] = np.nan
    np.testing.assert_array_equal(composite(spoiled)[:, :24], composite(cube[:, :, :24]))
    assert (composite(spoiled)[:, 24:] == 0).all()
    _, left, _, width = crop = choose_crop(spoiled)
    assert left + width / 2 <= 24, "the edge of what is missing is no detail"
    assert all(column < 24 for _, column in choose_pixels(spoiled, crop))


def test_the_noise_of_a_cube_is_that_of_its_measured_pixels():
    cube = smooth(4, 60, 60).astype(np.float32)
    missing = np.zeros((60, 60), bool)
    missing[:, 30:] = True
    spoiled = np.where(missing, np.float32(7), cube)
    for snr in (20.0, "auto"):
        expected = told_noise(cube[:, :, :30], snr)
        found = told_noise(spoiled, snr, missing)
        assert (found is None) == (expected is None)
        if found is not None:
            np.testing.assert_allclose(found, expected, rtol=1e-5)


# ---------------------------------------------------------------------------------------- databases

@pytest.mark.parametrize("made", ["int16, declared", "NaN", "mask"], indirect=True)
def test_no_patch_of_a_database_has_a_missing_pixel_and_those_left_out_are_counted(
        made, tmp_path, capfd):
    meta = build_database(tmp_path / "a.lmdb", [made], generic_card(8), val_last=2)
    data, cube = LMDBDataset(tmp_path / "a.lmdb"), open_as(made).cube
    low, high = cube.min(), cube.max()
    expected = (scene()[:, :, :SEAM].astype(float) - low) / (high - low)
    found = np.stack([data[i] for i in range(len(data))])
    np.testing.assert_allclose(found,
                               np.concatenate(list(extract_patches(expected, 8, [8], [1.0]))),
                               atol=1e-6)
    assert (meta["sources"][0]["left_out"] == 30
            and "30 patches with a pixel that nobody measured" in capfd.readouterr().err)
    with pytest.raises(UserError, match="has a pixel that nobody measured"):
        build_database(tmp_path / "b.lmdb", [made], generic_card(48), val_last=0)


def test_a_patch_of_a_smaller_copy_is_made_of_measured_pixels_alone():
    cube, filled = smooth(3, 64, 64), np.zeros((64, 64), bool)
    filled[30, 30] = True
    found = np.concatenate(list(extract_patches(cube, 8, [4], [0.5], filled)))
    spoiled = cube.copy()
    spoiled[:, 30, 30] = 1e3
    again = np.concatenate(list(extract_patches(spoiled, 8, [4], [0.5], filled)))
    assert 0 < len(found) < 49
    np.testing.assert_allclose(again, found, atol=2e-3)


def test_a_test_cube_that_is_cut_from_a_scene_keeps_its_missing_pixels(tmp_path):
    (tmp_path / "mine.toml").write_text(f'title = "Mine"\nsize = [{ROWS}, {COLUMNS}]\npatch = '
                                        '8\nstrides = [8]\ntest_region = [16, 32, 16, '
                                        '16]\nnormalise = "crop"\n')
    path = raster(tmp_path / "half.tif", half(-9999), -9999)
    build_database(tmp_path / "a.lmdb", [path], load_card(tmp_path / "mine.toml"),
                   test_out=tmp_path / "test", val_last=2)
    cut = read_scene(tmp_path / "test" / "half_test.mat")
    assert np.isnan(cut.nodata) and (np.isnan(cut.cube) == GONE[16:32, 32:48]).all()
    assert (np.nanmin(cut.cube) == 0
            and np.nanmax(cut.cube) == 1), "the range of a crop is of its own pixels"
    again = open_as(tmp_path / "test" / "half_test.mat", Reading())
    np.testing.assert_array_equal(again.filled, GONE[16:32, 32:48])


def test_nothing_is_adapted_to_pixels_that_nobody_measured(tmp_path, capfd):
    given(Path("given.pth"))
    cube = np.rint(smooth(4, 80, 80) * 1000).astype(np.int16) + 1
    cube[:, ::20] = -1  # no square of 36 pixels is whole
    run("-rp", "given.pth", "--adapt", raster(tmp_path / "low.tif", cube, -1), "--output",
        "high.tif", "--no-cuda")
    assert "too few" in capfd.readouterr().err
    row, = json.loads(Path("high_adapted/test/metrics.json").read_text())["images"]
    assert row["missing_pixels"] == 4 * 80 and row["network"]["counted_pixels"] < 80 * 76
    assert (read_scene("high.tif").cube[:, 80:84] == -1).all()


def test_the_bands_that_a_file_marks_as_bad_are_told_but_for_the_known_ones():
    scene = Scene(np.zeros((4, 2, 2)), "marked", good=np.array([1, 0, 1, 0]))
    assert marked_bad(scene) == [1, 3] and marked_bad(scene, {3}) == [1]
    assert marked_bad(Scene(np.zeros((4, 2, 2)), "silent")) == []
