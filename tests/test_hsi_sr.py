"""The training command as it is typed."""
from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from limits import HUNG
from typed import ROOT, typed

import hsi_sr
from utility.system.errors import UserError
from utility.training.configuration import configure


def test_without_a_flag_it_is_the_released_recipe():
    config = configure(hsi_sr.parse([]))
    assert (config.arch, config.recipe, config.loss, config.batch, config.epochs) == (
        "biqrnn_16_5", "released", "mse", 16, 50)
    assert (config.lr, config.min_lr, config.wd, config.seed, config.scales) == (
        1e-4, 5e-5, 0, 2021, (4,))
    assert (config.degradation, config.augment, config.data) == (
        "gaussian", "spatial", ("data/lmdb/sample.lmdb",))


def test_the_flags_of_the_released_scripts_are_understood():
    short = ["-a", "qrnn_16_5", "-p", "mine", "-b", "8", "-n", "7", "-mlr", "1e-5"]
    long = ["--arch", "qrnn_16_5", "--prefix", "mine", "--batchSize", "8", "--nEpochs", "7",
            "--min-lr", "1e-5"]
    rest = ["--lr", "1e-3", "--ri", "2", "--wd", "0.1", "--no-cuda", "--no-log", "--threads", "3",
            "--seed", "5", "--gpu-ids", "0,1"]
    config = configure(hsi_sr.parse(short + rest))
    expected = {"arch": "qrnn_16_5", "prefix": "mine", "batch": 8, "epochs": 7, "lr": 1e-3,
                "min_lr": 1e-5, "record_interval": 2, "wd": 0.1, "cuda": False,
                "tensorboard": False, "threads": 3, "seed": 5, "gpu_ids": (0, 1)}
    assert {name: getattr(config, name) for name in expected} == expected
    assert configure(hsi_sr.parse(long + rest)) == config


def test_a_recipe_sets_what_no_flag_does_and_several_scales_are_given_by_commas():
    assert configure(hsi_sr.parse(["--recipe", "fast"])).batch == 4
    config = configure(hsi_sr.parse(["--recipe", "fast", "-b", "6", "--scale", "2,4,8"]))
    assert (config.batch, config.scales) == (6, (2, 4, 8))


def test_resuming_without_a_path_goes_on_with_the_newest_run(tmp_path):
    with pytest.raises(UserError, match=r"no last\.pth in the folders under runs"):
        hsi_sr.parse(["-r"])
    for age, name in enumerate(["new", "old"]):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "last.pth").touch()
        os.utime(tmp_path / "runs" / name / "last.pth", (1e9 - age, 1e9 - age))
    assert hsi_sr.parse(["-r"])["resume"] == "runs/new/last.pth"
    assert hsi_sr.parse(["-r", "--run-dir", "runs/old"])["resume"] == "runs/old/last.pth"
    assert hsi_sr.parse(["-r", "-rp", "x.pth"])["resume"] == "x.pth"
    with pytest.raises(UserError, match="without -r"):
        hsi_sr.parse(["-rp", "x.pth"])


def test_a_dry_run_says_what_would_run_and_writes_nothing(data, tmp_path, capsys):
    assert hsi_sr.main(["-a", "biqrnn_4_2", "--data", data, "-b", "3", "-n", "5", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert ("8,427 parameters" in said
            and "9 patches of 5x16x16 for training, 4 for validation" in said)
    assert "15 iterations, 5 epochs of 3 steps" in said
    assert re.search(r"^time      \d+ s for 15 steps of [\d.e-]+ s \(two were timed\); validations "
                     r"come on top$", said, re.M)
    assert json.loads(said[said.index("{"):])["batch"] == 3
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_terminated_exits_130_and_what_it_prints_goes_on_with_it(data, tmp_path):
    words = ["-a", "biqrnn_2_1", "--data", data, "-b", "4", "-n", "99999", "--no-log", "--threads",
             "1", "--run-dir", "run"]
    process = subprocess.Popen([sys.executable, str(ROOT / "hsi_sr.py"), *words],
                               env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    deadline = time.monotonic() + HUNG
    while (not (tmp_path / "run" / "history.csv").exists() and time.monotonic() < deadline
            and process.poll() is None):
        time.sleep(0.05)
    # as a terminal, or `timeout`, does: the loader's workers get it too
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=HUNG)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "the state is saved" in err
    assert ("python hsi_test.py -r -rp run/best.pth" in out
            and (tmp_path / "run" / "best.pth").exists())
    resume = re.search(r"python hsi_sr.py (-r -rp \S+)", out).group(1).split()
    made = torch.load(tmp_path / "run" / "last.pth", weights_only=True)["epoch"]
    assert hsi_sr.main([*resume, "-n", str(made + 1)]) == 0
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["epoch"] == made + 1


@pytest.mark.parametrize("words", [("--scale", "2,x"), ("--scale", ""), ("--gpu-ids", "first")])
def test_what_is_no_number_is_said_in_words(words, capsys):
    with pytest.raises(SystemExit) as ended:
        hsi_sr.main(words)
    said = capsys.readouterr().err
    assert (ended.value.code == 2
            and f"argument {words[0]}: {words[1]!r} is not a whole number" in said
            and "_whole" not in said)


def test_bad_input_is_one_line_and_exit_2(tmp_path):
    done = typed("hsi_sr.py --data none.lmdb")
    assert done.returncode == 2
    assert (done.stderr.startswith("error: ") and "none.lmdb" in done.stderr
            and done.stderr.count("\n") == 1)
    assert list(tmp_path.iterdir()) == []
