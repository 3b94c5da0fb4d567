"""Testing against ground truth: what is computed, and what is left in the results folder."""
import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from made import network, smooth

from utility.checkpoints import CheckpointInfo
from utility.cubes.values import unit_range
from utility.datasets.building import build_database
from utility.datasets.cards import generic_card, load_card
from utility.datasets.regions import sources_of
from utility.degradation import Degradation, add_noise, degrade, downsample, upsample
from utility.indexes import COUNTS, METRICS, evaluate
from utility.names import UNTRAINED
from utility.report.tables import format_table, mean_of
from utility.scenes import Reading, read_scene, write_scene
from utility.superres import methods
from utility.superres.place import scaled
from utility.superres.problem import Problem
from utility.superres.tiling import super_resolve_cube
from utility.system.errors import UserError
from utility.testing import evaluation
from utility.testing.evaluation import Outputs
from utility.testing.images import read_images

INFO = CheckpointInfo(path=Path("best.pth"), arch="biqrnn_2_2", options={}, unsaid=None,
                      scales=(4,), degradation="gaussian", bands=4, epoch=1, iteration=2, psnr=30.0)
NUMBERS_ONLY = Outputs(cubes=False, figures=False)
ROWS = ["interpolation", "backprojection", "network"]


def scene(*shape, seed=0):
    return 1000 * smooth(*shape, seed)


@pytest.fixture
def folder(tmp_path):
    """Two scenes, (H, W, B) as MATLAB users keep them; the first is not a multiple of any scale."""
    (tmp_path / "scenes").mkdir()
    for name, cube in (("first", scene(4, 33, 38)), ("second", scene(4, 24, 28, seed=1))):
        scipy.io.savemat(tmp_path / "scenes" / f"{name}.mat", {"rad": cube.transpose(1, 2, 0)})
    return tmp_path


def images(folder, **reading):
    return read_images(sorted((folder / "scenes").iterdir()), Reading(**reading))


def run(folder, found=None, problem=None, outputs=NUMBERS_ONLY, net=True, out="out", **more):
    """Test `network()`, another one, or with None no network."""
    net = network() if net is True else net
    return evaluation.run(net, INFO if net else None, images(folder) if found is None else found,
                          problem or Problem(4, "gaussian"), folder / out, outputs=outputs,
                          **more)


def truth(folder, name="first"):
    """The ground truth as it is compared, its sides multiples of 4."""
    cube = unit_range(read_scene(folder / "scenes" / f"{name}.mat").cube)[0]
    return np.ascontiguousarray(cube[:, :cube.shape[1] // 4 * 4, :cube.shape[2] // 4 * 4])


# -------------------------------------------------------------------------------------- the numbers

@pytest.mark.parametrize("problem", [
    Problem(4, "gaussian", border=2, self_ensemble=True), Problem(4, "gaussian", backproject=3),
    Problem(4, "bicubic", "backprojection", noise=0.01, seed=7, preset="reference", border=2),
    Problem(4, "spatial", "backprojection", preset="sspsr"), Problem(4, "reference", noise=0.02)],
    ids=["ensemble", "backproject", "bicubic", "spatial", "reference"])
def test_three_rows_are_those_of_the_degraded_and_super_resolved_cube(folder, problem):
    results = run(folder, problem=problem)
    gt, kind = truth(folder), problem.degradation
    low = add_noise(downsample(torch.from_numpy(gt), 4, kind), problem.noise, problem.seed, "first")
    cubes = {"interpolation": upsample(low, 4, kind).numpy(),
             "backprojection": Degradation.of(4, kind).backproject(low, 10).numpy()}
    cubes["network"] = super_resolve_cube(network(), cubes[problem.start], tile=0,
                                          self_ensemble=problem.self_ensemble)
    if problem.backproject:
        cubes["network"] = Degradation.of(4, kind).backproject(
            low, problem.backproject, torch.from_numpy(cubes["network"])).numpy()
    row = results["images"][0]
    assert (row["name"], row["bands"], row["height"], row["width"]) == ("first", 4, 32, 36)
    assert (row["start"], row["noise"], row["border"]) == (
        problem.start, problem.noise, problem.border)
    for method, cube in cubes.items():
        for index, value in evaluate(cube, gt, 4, problem.preset, problem.border).items():
            assert row[method][index] == (None if value is None
                                          else pytest.approx(value, rel=1e-4)), (method, index)


def test_metrics_json_holds_the_contract_and_the_csv_the_same_numbers(folder):
    results = run(folder, facts={"command": "python"})
    written = json.loads((folder / "out" / "metrics.json").read_text())
    assert written == results and results["command"] == "python"
    assert [written[key] for key in ("preset", "scale", "degradation", "arch")] == [
        "standard", 4, "gaussian", "biqrnn_2_2"]
    assert [row["name"] for row in written["images"]] == ["first", "second"]
    assert list(written["methods"]) == list(written["mean"]) == ROWS
    for method in ROWS:
        assert written["mean"][method] == mean_of([row[method] for row in written["images"]])
        assert set(METRICS) <= set(written["mean"][method])
    with (folder / "out" / "metrics.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:7] == ["image", "method", "preset", "scale", "degradation", "noise", "border_px"]
    assert header[7:12] == ["psnr [dB]", "cube_psnr [dB]", "ssim", "sam [deg]", "ergas"]
    groups = [*written["images"], {"name": "mean", **written["mean"]}]
    assert [(r[0], r[1]) for r in rows] == [
        (group["name"], method) for group in groups for method in ROWS]
    for row, values in zip(rows, (group[method] for group in groups for method in ROWS),
                           strict=True):
        assert row[7:] == [f"{values[index]:.6g}" for index in (*METRICS, *COUNTS)]


def test_a_network_below_an_untrained_method_is_never_silent(folder):
    results = run(folder, net=network(0.5), outputs=Outputs(report=True))
    psnr = {key: results["mean"][key]["psnr"] for key in ROWS}
    assert psnr["network"] < psnr["interpolation"] < psnr["backprojection"]
    for (key, words), warning in zip(UNTRAINED.items(), results["warnings"], strict=True):
        assert warning == (f"the network is below the {words} on 2 of 2 images (mean PSNR "
                           f"{psnr['network']:.2f} dB against {psnr[key]:.2f} dB)")
    assert [row["above_network"] for row in results["images"]] == [ROWS[:2]] * 2
    assert "the network is below the back-projection" in (
        folder / "out" / "report.html").read_text()
    assert run(folder, net=network(0), problem=Problem(4, start="backprojection"), out="even")[
        "warnings"] == []


def test_sizes_that_reference_darkens_are_said_once(folder):
    for name in ("third", "fourth"):
        scipy.io.savemat(folder / "scenes" / f"{name}.mat",
                         {"rad": scene(4, 32, 32).transpose(1, 2, 0)})
    warnings = run(folder, problem=Problem(2, "reference"), net=None)["warnings"]
    assert sum("32 x 32 images black" in text for text in warnings) == 1
    assert run(folder, problem=Problem(2, "spatial"), net=None, out="none")["warnings"] == []


def test_bandwise_gives_the_network_one_band_at_a_time(folder):
    alone = run(folder, problem=Problem(4, "gaussian", bandwise=True))["images"][0]["network"]
    together = run(folder, out="together")["images"][0]["network"]
    gt = truth(folder)
    interpolation = degrade(torch.from_numpy(gt), 4, "gaussian")
    with torch.no_grad():
        # bands in the place of a batch
        sr = network()(interpolation[:, None, None])[:, 0, 0].numpy()
    assert alone["psnr"] == pytest.approx(evaluate(sr, gt, 4)["psnr"], abs=1e-4)
    assert abs(alone["psnr"] - together["psnr"]) > 1e-3


# ---------------------------------------------------------------------------------- cubes of others

def test_cubes_of_other_programs_get_rows_of_their_own(folder):
    run(folder, outputs=Outputs(figures=False))
    for name, folder_of in (("first", "theirs"), ("second", "theirs")):
        (folder / folder_of).mkdir(exist_ok=True)
        (folder / "out" / "cubes" / f"{name}_x4.mat").rename(folder / folder_of / f"{name}.mat")
    results = run(folder, net=None, compare={"theirs": folder / "theirs"},
                  outputs=Outputs(report=True), out="compared")
    ours = run(folder, out="again")
    assert list(results["mean"]) == [*ROWS[:2], "theirs"]
    for row, own in zip(results["images"], ours["images"], strict=True):
        assert row["theirs"]["psnr"] == pytest.approx(own["network"]["psnr"], abs=1e-3)
    with pytest.raises(UserError, match="called bands, which means something else"):
        run(folder, net=None, compare={"bands": folder / "theirs"}, out="no")
    np.save(folder / "theirs" / "second.npy", scene(4, 24, 28))
    with pytest.raises(UserError,
                       match=r"theirs holds 2 cubes named second or second_x4, and one is needed"):
        run(folder, net=None, compare={"theirs": folder / "theirs"}, out="no")
    (folder / "theirs" / "second.mat").unlink()
    np.save(folder / "theirs" / "second.npy", scene(4, 24, 24))
    with pytest.raises(UserError,
                       match=r"second\.npy is 4 x 24 x 24, and the image second is 4 x 24 x 28"):
        run(folder, net=None, compare={"theirs": folder / "theirs"}, out="no")
    np.save(folder / "theirs" / "second.npy", truth(folder, "second"))
    with pytest.raises(
            UserError,
            match=r"second\.npy holds values up to 1, and the image second has values from \d"):
        run(folder, net=None, compare={"theirs": folder / "theirs"}, out="no")


@pytest.mark.parametrize("values, words",
                         [(lambda cube: (cube - cube.min()) / np.ptp(cube) * 255,
                           r"the linear fit \d.* v [+-]\d.* of its values"),
                          (lambda cube: 5 + 3 * cube,
                           r"the linear fit 0\.33\d* v [+-]\d.* of its values"),
                          (lambda cube: cube * np.array([0.5, 0.8, 1.2, 1.5])[:, None, None],
                           "a linear fit of the values of each band")],
                         ids=["0 to 255", "counts", "each band"])
def test_a_cube_that_was_scaled_is_named_with_the_psnr_that_its_own_values_would_have(
        folder, values, words):
    (folder / "good").mkdir()
    (folder / "scaled").mkdir()
    for image in images(folder):
        noise = 0.02 * np.random.default_rng(0).standard_normal(image.cube.shape)
        sr = image.low + (image.high - image.low) * (image.cube + noise)
        np.save(folder / "good" / f"{image.name}.npy", sr)
        np.save(folder / "scaled" / f"{image.name}.npy", values(sr))
    results = run(folder, net=None, compare={name: folder / name for name in ("good", "scaled")})
    assert len(results["warnings"]) == 2  # no word on the cubes in the values of their images
    for row, warning in zip(results["images"], results["warnings"], strict=True):
        good, scaled = row["good"]["psnr"], row["scaled"]["psnr"]
        before, after = map(float,
                            re.search(r"raises PSNR from (\S+) to (\S+) dB", warning).groups())
        assert re.match(f"scaled of {row['name']}: {words}", warning)
        assert (before == pytest.approx(scaled, abs=0.01) and after == pytest.approx(good, abs=0.5)
                and scaled < good - 3)
        assert f"has values from {row['low']:g} to {row['high']:g}" in warning


def test_a_cube_of_another_scene_is_bad_and_not_scaled(folder):
    (folder / "theirs").mkdir()
    for name, shape, seed in (("first", (4, 32, 36), 5), ("second", (4, 24, 28), 6)):
        np.save(folder / "theirs" / f"{name}.npy", scene(*shape, seed=seed))
    assert not run(folder, net=None, compare={"theirs": folder / "theirs"})["warnings"]


# ------------------------------------------------------------------------------- where it came from

def test_every_image_says_where_it_came_from_and_how_it_was_scaled(folder):
    cube = scene(4, 40, 48)
    path = folder / "whole.mat"
    scipy.io.savemat(path, {"rad": cube.transpose(1, 2, 0)})
    results = run(folder, read_images([path], Reading(layout="HWB"), card(folder)))
    row, = results["images"]
    assert [row[key] for key in ("name", "file", "card", "region")] == [
        "whole_test", str(path), "mine", [8, 12, 16, 20]]
    assert [row[key] for key in ("low", "high", "scaled_over")] == [cube.min(), cube.max(), "scene"]
    row, = run(folder, read_images([path], Reading(layout="HWB")), out="whole")["images"]
    assert [row[key] for key in ("card", "region", "scaled_over")] == [
        None, [0, 0, 40, 48], "scene"]


def test_cubes_are_named_after_their_sources_and_score_the_same_when_read_again(folder):
    results = run(folder, outputs=Outputs(figures=False))
    assert sorted(p.name for p in (folder / "out" / "cubes").iterdir()) == [
        "first_x4.mat", "second_x4.mat"]
    for row in results["images"]:
        source = read_scene(row["file"])
        scene = read_scene(folder / "out" / row["cube"])
        assert (scene.key, scene.layout, scene.cube.dtype) == (
            source.key, source.layout, np.float32)
        gt, low, high = unit_range(source.cube)
        gt = gt[:, :row["height"], :row["width"]]
        again = evaluate(unit_range(scene.cube, low, high)[0], gt, 4)
        assert again["psnr"] == pytest.approx(row["network"]["psnr"], abs=1e-4)


def test_images_of_one_name_from_two_folders_are_both_kept(folder):
    (folder / "other").mkdir()
    other = folder / "other" / "first.mat"
    scipy.io.savemat(other, {"rad": scene(4, 20, 20, seed=3).transpose(1, 2, 0)})
    paths = [folder / "scenes" / "first.mat", other]
    results = run(folder, read_images(paths, Reading()), outputs=Outputs())
    names = [row["name"] for row in results["images"]]
    assert names == ["first", "first_2"]
    assert {p.name for p in (folder / "out" / "cubes").iterdir()} == {
        "first_x4.mat", "first_2_x4.mat"}
    assert {p.name for p in (folder / "out").glob("*.png")} == {"first.png", "first_2.png"}


def test_a_very_long_name_is_cut_so_that_its_files_can_be_written(folder):
    path = folder / f"{'ü' * 120}.mat"
    scipy.io.savemat(path, {"rad": scene(4, 20, 20).transpose(1, 2, 0)})
    results = run(folder, read_images([path], Reading()), outputs=Outputs(report=True))
    assert results["images"][0]["file"] == str(path)
    assert (folder / "out" / results["images"][0]["cube"]).exists()


def card(folder, text=""):
    path = folder / "mine.toml"
    path.write_text('title = "Mine"\nkey = "rad"\nbands = 4\nsize = [40, 48]\npatch = 16\nstrides '
                    '= [16]\ntest_region = [8, 12, 16, 20]\nwavelengths = [450, 550, 650, '
                    f'750]\nrgb = [3, 2, 1]\n{text}')
    return load_card(path)


def test_colours_of_a_card_are_not_taken_when_bands_were_left_out(folder):
    path = folder / "whole.mat"
    scipy.io.savemat(path, {"rad": scene(4, 40, 48).transpose(1, 2, 0)})
    image, = read_images([path], Reading(drop_bands="3"), card(folder))
    assert len(image.cube) == 3 and image.rgb is None
    results = run(folder, iter([image]), Problem(2, "bicubic"), Outputs())
    assert results["images"][0]["bands"] == 3


@pytest.mark.parametrize(("shape", "words"), [
    ((4, 8, 9), "tiny.npy cannot be compared. The image is 8x8 pixels .* 11x11 window of SSIM"),
    ((4, 3, 20), "tiny.npy is 3 x 20 pixels, and at least 4 x 4 are needed")])
def test_an_image_too_small_to_compare_is_refused_by_name(folder, shape, words):
    np.save(folder / "tiny.npy", scene(*shape))
    found = read_images([folder / "tiny.npy"], Reading(layout="BHW"))
    with pytest.raises(UserError, match=words):
        run(folder, found)
    assert not (folder / "out").exists()


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir())


def test_nothing_is_left_when_a_test_breaks_off_at_its_second_image(folder, monkeypatch):
    before, calls, real = leftovers(folder), [], methods.super_resolve

    def broken(*args, **more):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError
        return real(*args, **more)

    monkeypatch.setattr(methods, "super_resolve", broken)
    with pytest.raises(RuntimeError):
        run(folder, outputs=Outputs())
    assert len(calls) == 2 and leftovers(folder) == before


def test_earlier_results_are_kept_unless_replaced_whole(folder):
    run(folder, outputs=Outputs(figures=False))
    with pytest.raises(UserError, match="exists already"):
        run(folder)
    assert "cubes" in leftovers(folder / "out")
    run(folder, overwrite=True)
    assert leftovers(folder / "out") == ["metrics.csv", "metrics.json", "metrics_bands.csv"]


def test_no_image_at_all_is_refused(folder):
    with pytest.raises(UserError, match="no image to test on"):
        run(folder, iter(()))
    assert not (folder / "out").exists()


def test_an_image_that_shares_pixels_with_the_training_is_warned_of_by_name_and_marked(folder):
    (folder / "mine.toml").write_text('title = "Mine"\nkey = "rad"\nsize = [33, 38]\npatch = '
                                      '8\nstrides = [8]\ntest_region = [8, 12, 16, '
                                      '20]\nvalidation_region = [0, 0, 8, 16]\n')
    card, first = load_card(folder / "mine.toml"), folder / "scenes" / "first.mat"
    sources = build_database(folder / "a.lmdb", [first], card)["sources"]
    info = replace(INFO, trained_on=tuple(sources))
    np.savez(folder / "renamed.npz", cube=read_scene(first).cube.astype(np.float64), layout="BHW")
    for paths, of_card, trained in (([first], None, [["first.mat"]]),
                                    ([folder / "renamed.npz"], None, [["first.mat"]]),
                                    ([first], card, [[]]),
                                    ([folder / "scenes" / "second.mat"], None, [[]])):
        found = read_images(paths, Reading(), of_card)
        results = evaluation.run(network(), info, found, Problem(2, "gaussian"), folder / "out",
                                 outputs=NUMBERS_ONLY, overwrite=True)
        assert [row["trained_on"] for row in results["images"]] == trained
        warned = any("the network was trained on pixels of" in text and "first.mat" in text
                     for text in results["warnings"])
        assert warned == any(trained[0])
        printed = format_table(results["images"], results["methods"], "standard", 2, 0)
        assert (f"{results['images'][0]['name']} *" in printed) == warned


def test_a_checkpoint_that_does_not_say_its_scenes_is_not_said_to_know_none(folder):
    results = evaluation.run(network(), replace(INFO, trained_on=None), images(folder), Problem(4),
                             folder / "out", outputs=NUMBERS_ONLY)
    assert [row["trained_on"] for row in results["images"]] == [None, None]
    assert "does not say which scenes" in format_table(results["images"], results["methods"],
                                                       "standard", 4)


def test_a_test_cube_knows_the_pixels_of_its_scene(folder):
    (folder / "mine.toml").write_text('title = "Mine"\nkey = "rad"\nsize = [33, 38]\npatch = '
                                      '8\nstrides = [8]\ntest_region = [8, 12, 16, 20]\n')
    first, cut = folder / "scenes" / "first.mat", folder / "test" / "first_test.mat"
    beside = build_database(folder / "a.lmdb", [first], load_card(folder / "mine.toml"),
                            test_out=folder / "test")
    whole, same = (build_database(folder / f"{path.stem}.lmdb", [path], generic_card(8))
                   for path in (first, cut))
    read = read_scene(cut)
    (folder / "moved").mkdir()
    for suffix in (".mat", ".npz", ".h5"):
        write_scene(folder / "moved" / f"cut{suffix}", read)
    for path in (cut, *(folder / "moved").iterdir()):
        found = [sources_of(read_scene(path), (0, 0, 16, 20), meta["sources"])
                 for meta in (beside, whole, same)]
        assert found == [[], ["first.mat"], ["first_test.mat"]]
    assert "origin" not in scaled(read, read.cube, 2).metadata
