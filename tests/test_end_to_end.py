"""From scenes to results: the scripts one after the other, as they are typed."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

import hsi_sr
import hsi_test
from utility import lmdb_data
from utility.cards import load_card
from utility.lmdb_dataset import LMDBDataset

ROOT = Path(__file__).resolve().parent.parent


def type_command(folder: Path, line: str) -> str:
    """Run a line from the README in `folder`; returns what it printed."""
    script, *arguments = line.removeprefix("python ").split()
    done = subprocess.run([sys.executable, ROOT / script, *arguments], cwd=folder, capture_output=True, text=True,
                          timeout=600, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_three_scripts_work_in_order_and_the_network_beats_the_interpolation(tmp_path):
    type_command(tmp_path, "python utility/lmdb_data.py")
    said = type_command(tmp_path, "python hsi_sr.py -a biqrnn_8_3 --recipe fast --iterations 80")
    command = next(line for line in said.splitlines() if "hsi_test.py" in line)
    type_command(tmp_path, command[command.index("python"):].strip() + " --out results/t")
    results = json.loads((tmp_path / "results/t/metrics.json").read_text())
    trained = {source["file"] for source in LMDBDataset(tmp_path / "data/lmdb/sample.lmdb").meta["sources"]}
    assert not trained & {image["file"] for image in results["images"]}
    assert results["mean"]["network"]["psnr"] > results["mean"]["interpolation"]["psnr"]
    assert all((tmp_path / "results/t" / f"{image['name']}.png").stat().st_size > 10_000 for image in results["images"])


@pytest.mark.parametrize("name", ["indian_pines", "salinas", "urban"])
def test_a_remote_sensing_scene_of_its_real_size_goes_through_database_training_step_and_test(name, tmp_path, monkeypatch):
    """Indian Pines 145x145x200, Salinas 512x217x204, and Urban's 162 bands x 94249 pixels."""
    monkeypatch.chdir(tmp_path)
    card = load_card(name)
    height, width = card.size
    rng = np.random.default_rng(0)
    cube = rng.integers(0, 5000, (height, width, card.bands), dtype=np.int16)
    if card.layout == "pixels":
        stored = {card.key: cube.transpose(1, 0, 2).reshape(-1, card.bands).T, "nRow": height, "nCol": width}
    else:
        stored = {card.key: cube}
    scipy.io.savemat("scene.mat", stored)
    lmdb_data.main(["--dataset", name, "--source", "scene.mat", "--out", "db.lmdb", "--quiet"])
    assert LMDBDataset("db.lmdb").shape == (card.bands, card.patch, card.patch)
    hsi_sr.main(["-a", "biqrnn_2_2", "--data", "db.lmdb", "-b", "2", "--iterations", "1", "--run-dir", "run", "--no-log",
                 "--val-batches", "1", "--quiet", "--no-cuda"])
    assert torch.load("run/last.pth", weights_only=True)["iteration"] == 1
    hsi_test.main(["-r", "-rp", "run/last.pth", "--dataset", name, "--data", "scene.mat", "--out", "out", "--no-cuda",
                   "--no-figures", "--quiet"])
    image, = json.loads(Path("out/metrics.json").read_text())["images"]
    assert image["bands"] == card.bands and (image["height"], image["width"]) == tuple(card.test_region[2:])
    top, left, rows, columns = card.test_region
    region = cube[top:top + rows, left:left + columns].astype(np.float64)
    written = scipy.io.loadmat(next(Path("data/test").rglob("*.mat")))["gt"]
    assert np.allclose(written, (region - cube.min()) / (int(cube.max()) - int(cube.min())), atol=1e-6)
