"""A run folder: what a training leaves in it and says, also on a full disk."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from comparing import events
from limits import room_for
from made import make_database
from trained import config, contents, history, validating

from models import create_model
from utility.system.errors import UserError
from utility.training.configuration import configure
from utility.training.loop import train
from utility.training.runs import Board, Losses, RunFolder


def test_a_run_folder_holds_what_made_it_and_what_it_did(data, capsys):
    result = train(config(data, prefix="mine", tensorboard=True, record_interval=2))
    run = result.run
    assert run.parent == Path("runs") and run.name.startswith("mine_")
    assert {p.name for p in run.iterdir() if not p.name.startswith("events")} == {
        "config.json", "environment.json", "log.txt", "history.csv", "steps.csv", "training.json",
        "training.png", "last.pth", "last.prev.pth", "best.pth", "epoch_002.pth"}
    recorded = json.loads((run / "config.json").read_text())
    assert recorded["batch"] == 3 and recorded["lr"] == 1e-4 and recorded["run_dir"] == str(run)
    assert json.loads((run / "environment.json").read_text())["torch"] == torch.__version__
    printed, log = capsys.readouterr().out, (run / "log.txt").read_text()
    assert printed.splitlines() == [
        line for line in log.splitlines() if not line.startswith("warning: ")]
    assert (log.count("data wait") == 3
            and log.rstrip().endswith(f"python hsi_test.py -r -rp {run}/best.pth"))
    rows = history(run)
    assert [row["iteration"] for row in rows] == ["3", "6", "9"]
    assert float(rows[-1]["gain"]) == pytest.approx(
        float(rows[-1]["psnr"]) - float(rows[-1]["interpolation_psnr"]))
    assert all(0 <= float(row["data_wait"]) < 1 and float(row["patches_per_s"]) > 0 for row in rows)


def test_tensorboard_gets_every_epoch_its_picture_and_the_steps(data):
    run = train(config(data, tensorboard=True, epochs=2, scales=(2, 4))).run
    values = [(event.step, value) for event in events(run) for value in event.summary.value]
    scalars = {(step, value.tag): value.simple_value
               for step, value in values if value.HasField("simple_value")}
    rows = history(run)
    for row in rows:
        step = int(row["iteration"])
        for name in ("loss", "val_loss", "psnr", "interpolation_psnr", "backprojection_psnr",
                     "gain", "backprojection_gain", "gain_x2", "gain_x4", "lr", "data_wait"):
            assert scalars[step, f"epoch/{name}"] == pytest.approx(float(row[name]), rel=1e-5)
    assert {step for step, tag in scalars if tag == "step/lr"} >= {3, 6}
    assert all(float(row["gain"]) == pytest.approx(
        (float(row["gain_x2"]) + float(row["gain_x4"])) / 2) for row in rows)
    images = [(step, value.image) for step, value in values if value.HasField("image")]
    assert [step for step, _ in images] == [3, 6]
    assert all(
        (image.height, image.width, image.colorspace) == (16, 3 * 16, 3) for _, image in images)


def test_tensorboard_gets_the_same_by_the_documented_class_alone(tmp_path, monkeypatch):
    picture, found = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8), []
    for part in ("private", "public"):
        run = RunFolder(tmp_path / part)
        run.open_board(5)
        run.add_scalars("epoch", {"loss": 0.25, "lr": None}, 6)
        run.add_image("picture", picture, 6)
        run.flush()
        run.close()
        values = [(event.step, value)
                  for event in events(tmp_path / part) for value in event.summary.value]
        found.append([(step, value.tag, value.simple_value, value.image.encoded_image_string)
                      for step, value in values])
        monkeypatch.setattr("utility.training.runs.EventsWriter", None)
    assert found[0] == found[1] and len(found[0]) == 2


@pytest.mark.parametrize(("card", "words"),
                         [("sample", ""), ("indian_pines", " --dataset indian_pines"),
                          ("rendered", " --data YOUR_SCENES")])
def test_the_line_printed_last_tests_what_the_card_holds_out(tmp_path, capsys, card, words):
    made = make_database(tmp_path / "carded.lmdb", card=card)
    result = train(config(made, epochs=1, run_dir="r"))
    assert f"test with:   python hsi_test.py -r -rp r/best.pth{words}\n" in capsys.readouterr().out
    assert contents(result.best)["cards"] == [card]


def test_a_checkpoint_says_what_was_trained(data):
    result = train(config(data, epochs=1, scales=(2,), degradation="bicubic",
                          start="backprojection", noise=0.01))
    saved = contents(result.best)
    assert {"net", "optimizer", "psnr", "loss", "epoch", "iteration"} <= set(saved)
    assert (saved["arch"], saved["scale"], saved["degradation"], saved["bands"]) == (
        "biqrnn_2_1", 2, "bicubic", 5)
    assert (saved["start"], saved["noise"]) == ("backprojection", 0.01)
    assert (saved["epoch"], saved["iteration"], saved["psnr"]) == (1, 3, result.psnr)
    again = configure({"init": str(result.best)})
    assert (again.scales, again.degradation, again.start, again.noise) == (
        (2,), "bicubic", "backprojection", 0.01)
    del saved["start"], saved["noise"]  # as in checkpoints from before there was a choice
    torch.save(saved, "old.pth")
    assert (configure({"init": "old.pth"}).start, configure({"init": "old.pth"}).noise) == (
        "interpolation", 0.0)
    assert create_model("biqrnn_2_1").load_state_dict(saved["net"])


def test_the_losses_of_a_long_run_are_means_of_as_many_steps_as_keep_the_file_short(tmp_path):
    losses = Losses(tmp_path / "steps.csv")
    for iteration in range(1, 5 * Losses.MOST + 1):
        losses.add(iteration, 1, float(iteration))
    losses.write()
    again = Losses(losses.path)
    again.load(100)
    assert len(losses.rows) == 5 * Losses.MOST / 8 and losses.rows[-1][0] == 5 * Losses.MOST
    assert all(loss == iteration - (steps - 1) / 2 and steps == 8
               for iteration, steps, loss in losses.rows)
    assert again.rows == losses.rows[:12]


def test_a_network_far_below_its_start_image_is_warned_of_at_every_epoch(data, monkeypatch, capsys):
    validating(monkeypatch, {"gain": -5.0})
    train(config(data, run_dir="r"))
    assert capsys.readouterr().err.count("the network is 5.0 dB below its start image") == 3
    validating(monkeypatch, {"gain": -2.0})
    train(config(data, run_dir="s"))
    assert "start image" not in capsys.readouterr().err


@pytest.mark.parametrize("start", ["interpolation", "backprojection"])
def test_a_training_whose_best_is_not_above_back_projection_says_so_everywhere(
        data, monkeypatch, capsys, start):
    drawn = []
    monkeypatch.setattr("utility.training.runs.training_curve_figure",
                        lambda *_, note="", **__: drawn.append(note))
    validating(monkeypatch, {"gain": 0.7, "backprojection_gain": -4.3})
    train(config(data, run_dir="r", start=start))
    words = ("is 0.70 dB above the interpolation and 4.30 dB below back-projection on the "
             "validation patches")
    assert (capsys.readouterr().err.splitlines()[-1].startswith("warning: the best network")
            and words in drawn[-1])
    assert (words in json.loads(Path("r/training.json").read_text())["warnings"][0]
            and words in Path("r/log.txt").read_text())
    validating(monkeypatch, {"gain": 0.7, "backprojection_gain": 0.1})
    train(config(data, run_dir="s", start=start))
    assert ("warning" not in capsys.readouterr().err
            and json.loads(Path("s/training.json").read_text())["warnings"] == [])


# --- a full disk ----------------------------------------------------------------------------------

@pytest.mark.parametrize(("room", "name"), [(100, "config.json"), (6000, "best.pth")])
def test_a_full_disk_ends_the_run_with_one_sentence(data, room, name):
    with (room_for(room),
          pytest.raises(UserError, match=f"disk is full while writing r/{name}") as error):
        train(config(data, run_dir="r", arch="biqrnn_1_1"))
    assert "\n" not in str(error.value) and not list(Path("r").glob("*.p*"))


def test_events_that_cannot_be_written_end_the_run_and_do_not_hang_it(tmp_path, capfd):
    board, picture = (Board(tmp_path),
                      np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    with room_for(5000):
        with pytest.raises(UserError, match=r"disk is full while writing .*events"):
            for step in range(1000):
                board.add_image("noise", picture, step)
        board.close()
    board.close()  # as tensorboardX does at exit
    assert "Traceback" not in capfd.readouterr().err


def test_a_log_or_history_that_cannot_be_written_is_said_once_and_lines_are_still_printed(
        tmp_path, capsys):
    run = RunFolder(tmp_path / "r")
    with room_for(10), pytest.raises(UserError, match=r"disk is full while writing .*history\.csv"):
        run.write_history([{"epoch": 1, "iteration": 3, "loss": 0.1}])
    assert not list(run.path.glob("history.csv"))
    with room_for(10):
        with pytest.raises(UserError, match=r"disk is full while writing .*log\.txt"):
            run.say("a line that is longer than the room")
        run.say("another line")
        run.close()
    assert capsys.readouterr().out == "a line that is longer than the room\nanother line\n"
