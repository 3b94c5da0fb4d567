"""The studies: a small form of each runs to tables and figures, and trains nothing twice."""
from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from makers import made_small

from data.rendering import render_scene
from studies import aliased, estimate_mtf, mismatch, run
from utility import weights
from utility.checkpoints import model_from_checkpoint
from utility.superres.aliasing import softness
from utility.superres.methods import methods
from utility.superres.noise import told_noise
from utility.superres.problem import Problem, for_noise
from utility.system.errors import UserError

STUDIES = sorted(path.stem for path in run.HERE.glob("*.toml"))


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Rendered scenes (noise, so that nothing is rendered here) and stand-ins for the real ones."""
    folder, rng = tmp_path_factory.mktemp("studies"), np.random.default_rng(0)
    for kind, bands in (("natural", 31), ("overhead", 128)):
        (folder / "data/rendered" / kind).mkdir(parents=True)
        for number in range(2):
            cube = rng.integers(0, 65535, (bands, 128, 128), dtype=np.uint16)
            np.save(folder / f"data/rendered/{kind}/{kind}_2021_{number:05d}.npy", cube)
    (folder / "real").mkdir()
    for name in ("feathers_crop150", "jasperRidge2_R198"):
        cube = rng.random((24, 28, 5))
        cube[3, 4] = np.nan
        np.save(folder / f"real/{name}.npy", cube)
    np.savez(folder / "real/HYDICE_data.npz", data=rng.random((100, 80, 4)))
    return folder


@pytest.mark.parametrize("study", STUDIES)
def test_a_small_form_of_each_study_runs_and_is_drawn(study, work, monkeypatch):
    monkeypatch.chdir(work)
    # slow, and of no study
    monkeypatch.setattr("utility.training.runs.training_curve_figure", lambda *_, **__: None)
    run.main([study, "--quick", "--scenes", "real", "--out", "out"])
    results = sorted(Path("out/results", study).glob("*.json"))
    todo = list(run.trainings(run.read_study(study), quick=True))
    assert (
        {path.stem for path in results} == {training.name for training in todo} and len(todo) >= 3)
    for path in results:
        result = json.loads(path.read_text())
        assert result["steps"] == 2 and result["processor_seconds"] > 0 and result["images"]
        assert all(image["network"]["psnr"] > 0 for image in result["images"])
        for image in result["images"]:  # whole scenes lack a pixel
            counted = image["network"]["counted_pixels"]
            assert counted < 24 * 28 if image["bands"] == 5 else counted > 0
    text = Path(f"out/results/{study}.md").read_text()
    assert all(arm["name"] in text for arm in run.read_study(study)["arms"])
    assert all(
        Path(f"out/results/{study}.{suffix}").stat().st_size for suffix in ("csv", "tex", "png"))
    if "errors" in run.read_study(study):
        assert Path(f"out/results/{study}_errors.png").exists()


def test_a_training_that_has_a_result_is_left_alone_and_a_scene_that_is_missing_is_named(
        work, monkeypatch):
    monkeypatch.chdir(work)
    indexes = dict.fromkeys(run.INDEXES, 1.0)
    image = {"name": "scene", "bands": 3, "preset": "standard", "problem": "x4 gaussian",
             **dict.fromkeys(("interpolation", "backprojection", "network"), indexes)}
    Path("done/results/variety").mkdir(parents=True)
    for training in run.trainings(run.read_study("variety"), quick=True):
        result = {"name": training.name, "arm": training.arm["name"], "budget": "", "part": None,
                  "seed": 1, "arch": "a", "parameters": 1, "steps": 2, "processor_seconds": 1.0,
                  "device": "cpu", "threads": 1, "images": [image]}
        Path("done/results/variety", f"{training.name}.json").write_text(json.dumps(result))
    run.main(["variety", "--quick", "--out", "done"])
    assert not Path("done/variety").exists() and Path("done/results/variety.md").exists()
    with pytest.raises(UserError, match=r"The scene feathers_crop150 is not under real/none"):
        run.main(["start", "--quick", "--scenes", "real/none", "--out", "lost"])
    with pytest.raises(UserError, match="no study 'nothing'; choose of contestants"):
        run.main(["nothing"])
    with pytest.raises(UserError, match="holds no result"):
        run.main(["start", "--table", "--results", "none"])


def test_shipped_weights_are_trained_again_by_their_cards(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    run.main(["weights", "--quick", "--out", "out"])
    said = capsys.readouterr().out
    for one in weights.shipped():
        training = one.card["training"]
        trainings = [*training.get("before", []), training]
        if any(not set(each["data"]) <= set(" ".join(each.get("databases", [])).split())
               for each in trainings):
            assert f"{one.path.stem}: left out" in said and f"{one.path.stem}: python" not in said
            continue
        start = f"{one.path.stem}: 1 of {training['steps']} steps; probe"
        line = next(line for line in said.splitlines() if line.startswith(start))
        last = run.load_checkpoint(line.split("-rp ")[1])
        assert last["arch"] == one.card["arch"]


def test_the_mismatch_study_counts_each_scene_and_blur(tmp_path, capsys):
    for number, name in enumerate((*mismatch.SCENES, *mismatch.DARK)):
        cube = render_scene("natural", seed=3, number=number, bands=4, side=64)
        np.save(tmp_path / f"{name}.npy", cube[:, :16, :24])
    mismatch.main(["--scenes", str(tmp_path), "--scale", "4", "--cases", "known", "gaussian",
                   "--results", str(tmp_path / "results")])
    own, test = json.loads((tmp_path / "results" / "mismatch.json").read_text())["summary"]
    assert own["weights"] == "lowgrid_x4" and set(own["cases"]) == {"known"}
    assert test["weights"] == "lowgrid_x4_gaussian" and set(test["cases"]) == {"gaussian"}
    known = own["cases"]["known"]
    assert known["count"] == 9 * 7 and known["sam_count"] == 11 * 7
    rows = list(csv.DictReader((tmp_path / "results" / "mismatch.csv").open()))
    own = [row for row in rows
           if row["assumed"] == "known" and row["scene"] in mismatch.SCENES]
    gains = [float(row["network_psnr"]) - float(row["backprojection_psnr"]) for row in own]
    assert known["over_backprojection"]["mean"] == pytest.approx(np.mean(gains))
    assert known["over_backprojection"]["below"] == sum(gain < 0 for gain in gains)
    assert "| lowgrid_x4, x4 | known |" in capsys.readouterr().out
    (tmp_path / "abu-urban-2.npy").unlink()
    with pytest.raises(UserError, match="holds no scene abu-urban-2"):
        mismatch.main(["--scenes", str(tmp_path)])


@pytest.mark.parametrize("mtf", [0.15, 0.35, 0.6])
def test_noise_that_went_through_a_blur_tells_its_mtf_and_noise_of_the_sensor_hides_it(mtf):
    rng = np.random.default_rng(0)
    scene = render_scene("natural", seed=3, number=0, bands=24, side=96)
    noisy = scene + 0.05 * rng.standard_normal(scene.shape)
    low = estimate_mtf.low(noisy, 2, mtf)
    assert estimate_mtf.noise_mtf(low) == pytest.approx(mtf, abs=0.06)
    sensed = low + 0.2 * rng.standard_normal(low.shape)
    assert estimate_mtf.noise_mtf(sensed) > 0.6


def test_the_study_of_estimators_counts_each_scene_and_blur(tmp_path, capsys):
    for number, name in enumerate((*estimate_mtf.SCENES, estimate_mtf.FIT[0])):
        cube = render_scene("natural", seed=3, number=number, bands=12, side=48)
        np.save(tmp_path / f"{name}.npy", cube.transpose(1, 2, 0))
    estimate_mtf.main(["--scenes", str(tmp_path), "--rendered", "1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == 2 * 2 * 2 * 2  # estimators, groups, scale factors, noises
    assert all(f" of {(9 if '| real |' in line else 2) * 6} |" in line for line in lines)
    (tmp_path / "abu-urban-2.npy").unlink()
    with pytest.raises(UserError, match="hold no scene abu-urban-2"):
        estimate_mtf.main(["--scenes", str(tmp_path)])


def test_the_study_of_aliased_cubes_counts_what_is_taken_for_aliased_and_what_it_costs(
        tmp_path, monkeypatch, capsys):
    scenes = [render_scene("overhead", seed=4242, number=number, bands=6, side=96)
              for number in (0, 4)]
    for number, scene in enumerate(scenes):
        np.savez(tmp_path / f"{number}.npz", cube=scene)
    monkeypatch.setattr(aliased, "makers", lambda: {
        name: partial(made_small, name) for name in ("block mean", "every s-th pixel")})
    aliased.main(["--scenes", str(tmp_path), "--scale", "4"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    found = {row[0]: row[1:] for row in rows if len(row) == 5}
    net, info = model_from_checkpoint(weights.choose(None, 4, "mtf 0.7").path)
    for maker, many in (("block mean", 0), ("every s-th pixel", 1)):
        counts, gains = [0, 0], []
        for scene in scenes:
            low = made_small(maker, scene, 4)
            steps = softness(low)
            counts[0] += steps < 0.18
            counts[1] += 0.18 <= steps < 0.26
            noise = told_noise(low, "auto")
            made = {}
            for mtf in (0.7, 0.95):
                problem = Problem(4, f"mtf {mtf}", info.start, tile=0, mtf_known=mtf == 0.95)
                made[mtf] = methods(net, low, for_noise(problem, noise), noise=noise)
            compared = made[0.7]["interpolation"], made[0.7]["network"], made[0.95]["network"]
            errors = [np.square(method.cube() - scene).mean((1, 2)) for method in compared]
            plain, own, sharp = (float(np.mean(-10 * np.log10(error))) for error in errors)
            default = plain if steps < 0.18 else sharp if steps < 0.26 else own
            gains.append((default - plain, own - plain))
        assert counts[0] >= many and found[maker][:2] == list(map(str, counts))
        for cell, gain in zip(found[maker][2:], np.transpose(gains), strict=True):
            mean, worst, below = map(float, cell.split(", "))
            assert (mean, worst) == pytest.approx((gain.mean(), gain.min()), abs=0.006)
            assert below == (gain < -0.05).sum()
    aliased.main(["--scenes", str(tmp_path), "--counts"])
    row = " | ".join(("every s-th pixel", *found["every s-th pixel"][:2]))
    assert f"| {row} |" in capsys.readouterr().out.splitlines()
