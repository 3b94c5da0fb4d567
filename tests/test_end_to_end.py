"""From scenes to results: the scripts one after the other, as they are typed."""
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from comparing import same
from limits import HUNG
from typed import ROOT, typed

import hsi_sr
import hsi_test
from data.make_samples import make_samples
from utility import lmdb_data
from utility.datasets.cards import load_card
from utility.lmdb_dataset import LMDBDataset
from utility.system.devices import ask_deterministic


def test_the_three_scripts_work_in_order_and_the_network_beats_back_projection():
    make_samples("data/sample", train=3, test=1, side=96, remote=(16, 16))
    subprocess.run([sys.executable, ROOT / "utility/lmdb_data.py", "--quiet"], check=True,
                   timeout=HUNG)
    trained = typed("python hsi_sr.py -a lowgrid_8_2 --recipe fast -b 2 --iterations 160 --lr 5e-3 "
                    "--last-lr 1 --loss band --clip 1")
    command = next(line for line in trained.stdout.splitlines() if "hsi_test.py" in line)
    assert (trained.returncode,
            typed(command[command.index("python"):] + " --out results/t").returncode) == (0, 0)
    results = json.loads(Path("results/t/metrics.json").read_text())
    sources = {source["file"] for source in LMDBDataset("data/lmdb/sample.lmdb").meta["sources"]}
    assert not sources & {image["file"] for image in results["images"]}
    assert results["mean"]["network"]["psnr"] > results["mean"]["backprojection"]["psnr"]
    assert all(Path("results/t", f"{image['name']}.png").stat().st_size > 10_000
               for image in results["images"])


def train_a_step(database: str) -> str:
    hsi_sr.main(["-a", "biqrnn_2_2", "--data", database, "-b", "1", "--iterations", "1",
                 "--run-dir", "run", "--no-log", "--val-batches", "1", "--quiet", "--no-cuda"])
    assert torch.load("run/last.pth", weights_only=True)["iteration"] == 1
    return "run/last.pth"


def score(out: str, *arguments: str) -> dict:
    hsi_test.main(
        ["-rp", "run/last.pth", *arguments, "--out", out, "--no-cuda", "--no-figures", "--quiet"])
    image, = json.loads(Path(out, "metrics.json").read_text())["images"]
    return image


def test_the_real_indian_pines_of_a_package_gives_the_same_digits_by_card_and_by_file():
    pytest.importorskip("tensorly", reason="its wheel holds the scene")
    lmdb_data.main(["--dataset", "indian_pines", "--out", "db.lmdb", "--quiet"])
    database, card = LMDBDataset("db.lmdb"), load_card("indian_pines")
    assert database.shape == (200, 36, 36) and len(database) == 24 + 3
    assert database.meta["card"] == "indian_pines"
    training, validation = database.meta["sources"]
    assert training["size"] == [145, 145] and len(training["sha256"]) == 64
    assert (training["part"], training["patches"]) == ("training", 24)
    assert (validation["part"], validation["patches"]) == ("validation", 3)
    assert (validation["regions"] == [list(card.validation_region)]
            and database.meta["validation"] == 3)
    train_a_step("db.lmdb")
    by_card = score("card", "--dataset", "indian_pines")
    by_file = score("file", "--data", "data/test/indian_pines/Indian_pines_corrected_test.mat")
    assert (by_card["bands"], by_card["height"], by_card["width"]) == (200, 72, 72)
    for method in ("network", "interpolation"):
        assert by_card[method] == by_file[method]


def test_urban_s_bands_by_pixels_go_through_database_training_step_and_test():
    card = load_card("urban")
    height, width = card.size
    cube = np.random.default_rng(0).integers(0, 5000, (height, width, card.bands), dtype=np.int16)
    scipy.io.savemat(
        "scene.mat",
        {"Y": cube.transpose(1, 0, 2).reshape(-1, card.bands).T, "nRow": height, "nCol": width})
    lmdb_data.main(["--dataset", "urban", "--source", "scene.mat", "--out", "db.lmdb", "--quiet"])
    train_a_step("db.lmdb")
    image = score("out", "--dataset", "urban")
    assert image["file"].startswith("data/test/urban")
    assert (image["bands"], image["height"], image["width"]) == (card.bands, *card.test_region[2:])
    top, left, rows, columns = card.test_region
    region = cube[top:top + rows, left:left + columns].astype(np.float64)
    written = scipy.io.loadmat(next(Path("data/test").rglob("*.mat")))["gt"]
    assert np.allclose(written, (region - cube.min()) / (int(cube.max()) - int(cube.min())),
                       atol=1e-6)


def test_two_whole_paths_with_one_seed_agree_to_the_last_bit(tmp_path, monkeypatch):
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        np.save("scene.npy", np.random.default_rng(0).random((4, 32, 32), np.float32))
        lmdb_data.main(["--source", "scene.npy", "--patch", "16", "--out", "db.lmdb", "--augment",
                        "2", "--quiet"])
        hsi_sr.main(["-a", "biqrnn_2_2", "--data", "db.lmdb", "-b", "2", "--iterations", "5",
                     "--recipe", "fast", "--seed", "7", "--noise", "0.01", "--run-dir", "run",
                     "--no-log", "--quiet", "--no-cuda"])
        hsi_test.main(["-rp", "run/last.pth", "--data", "scene.npy", "--out", "results",
                       "--no-figures", "--quiet", "--no-cuda"])
        data = LMDBDataset("db.lmdb")
        found.append({"patches": [torch.from_numpy(data[i]) for i in range(len(data))],
                      "checkpoint": torch.load("run/last.pth", weights_only=True),
                      "metrics": json.loads(Path("results/metrics.json").read_text())["mean"],
                      "cube": Path("results/cubes/scene_x4.npy").read_bytes()})
    assert same(*found)


def test_a_kernel_that_is_not_deterministic_is_named(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)
    ask_deterministic()
    warnings.showwarning(
        "upsample_backward_cuda does not have a deterministic implementation, but ...", UserWarning,
        "", 1)
    assert capsys.readouterr().err.startswith("note: upsample_backward_cuda is not deterministic")
