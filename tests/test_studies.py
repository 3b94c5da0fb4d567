"""The studies: a small form of each runs, its results are tables and figures, and what has a result is not trained again."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from studies import run

STUDIES = sorted(path.stem for path in run.HERE.glob("*.toml"))


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Rendered scenes (noise, so that nothing is rendered here) and stand-ins for the real ones."""
    folder, rng = tmp_path_factory.mktemp("studies"), np.random.default_rng(0)
    for kind, bands in (("natural", 31), ("overhead", 128)):
        (folder / "data/rendered" / kind).mkdir(parents=True)
        for number in range(2):
            cube = rng.integers(0, 65535, (bands, 64, 64), dtype=np.uint16)
            np.save(folder / f"data/rendered/{kind}/{kind}_2021_{number:05d}.npy", cube)
    (folder / "real").mkdir()
    for name in ("feathers_crop150", "jasperRidge2_R198"):
        np.save(folder / f"real/{name}.npy", rng.random((24, 28, 5)))
    np.savez(folder / "real/HYDICE_data.npz", data=rng.random((100, 80, 4)))
    return folder


@pytest.mark.parametrize("study", STUDIES)
def test_a_small_form_of_each_study_runs_and_is_drawn(study, work, monkeypatch):
    monkeypatch.chdir(work)
    run.main([study, "--quick", "--scenes", "real", "--out", "out"])
    results = sorted(Path("out/results", study).glob("*.json"))
    todo = list(run.trainings(run.read_study(study), quick=True))
    assert {path.stem for path in results} == {training.name for training in todo} and len(todo) >= 3
    for path in results:
        result = json.loads(path.read_text())
        assert result["steps"] == 2 and result["processor_seconds"] > 0 and result["images"]
        assert all(image["network"]["psnr"] > 0 for image in result["images"])
    text = Path(f"out/results/{study}.md").read_text()
    assert all(arm["name"] in text for arm in run.read_study(study)["arms"])
    assert all(Path(f"out/results/{study}.{suffix}").stat().st_size for suffix in ("csv", "tex", "png"))
