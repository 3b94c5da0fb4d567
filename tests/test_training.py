"""Training: what it learns, what it repeats exactly, what it leaves, and what it refuses."""
from __future__ import annotations

import csv
import json
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comparing import events, same
from limits import room_for
from scipy.ndimage import gaussian_filter

from models import create_model
from models.lowgrid import LowGrid
from utility import runs, training
from utility.configuration import LOSSES, RECIPES, TrainingConfig, configure
from utility.errors import UserError
from utility.indexes import evaluate
from utility.lmdb_dataset import writing_database
from utility.loader import validation_loader
from utility.plan import prepare
from utility.runs import Board, Losses, RunFolder
from utility.state import State
from utility.training import seconds_per_step, train


def make_database(path: Path, count: int = 13, shape: tuple[int, int, int] = (5, 16, 16), validation: int = 4,
                  seed: int = 0, sources: Sequence[dict] = (), **facts: str) -> str:
    """Patches of sharp regions of smooth spectra."""
    rng = np.random.default_rng(seed)
    bands, height, width = shape
    with writing_database(path) as writer:
        for _ in range(count):
            regions = gaussian_filter(rng.normal(size=(3, height, width)), (0, 2, 2)).argmax(0)
            spectra = gaussian_filter(rng.random((3, bands)), (0, 1))
            writer.write(spectra[regions].transpose(2, 0, 1)[None])
        writer.finish(validation=validation, sources=list(sources), **facts)
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return make_database(tmp_path_factory.mktemp("data") / "small.lmdb")


@pytest.fixture(autouse=True)
def _draws_no_curve(monkeypatch):
    monkeypatch.setattr(runs, "training_curve_figure", lambda path, *_, **__: path.touch())


def config(data: str, **changes) -> TrainingConfig:
    """A training of seconds: 3 epochs of 3 steps."""
    small = {"arch": "biqrnn_4_2", "batch": 3, "epochs": 3, "tensorboard": False, "quiet": True, "data": data}
    return configure(small | changes)


def contents(path: str | Path) -> dict:
    return torch.load(path, weights_only=True)


def history(run: str | Path) -> list[dict[str, str]]:
    with open(Path(run) / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def tags(run: str | Path) -> list[tuple[int, str]]:
    """Steps and names of all values, those that measure time included."""
    return sorted((event.step, value.tag) for event in events(run) for value in event.summary.value)


def interrupt_at(monkeypatch, iteration: int, number: int = signal.SIGINT) -> None:
    """Ctrl-C reaches the process while this iteration runs."""
    after_step(monkeypatch, lambda state: state.iteration == iteration and signal.raise_signal(number))


def after_step(monkeypatch, action) -> None:
    """`action(state)` runs after each step."""
    real = training.train_step

    def train_step(state, *rest):
        real(state, *rest)
        action(state)

    monkeypatch.setattr(training, "train_step", train_step)


def first_validation(plan) -> dict[str, float]:
    """Of the network that has made no step."""
    return training.validate(plan.state(), {"one": validation_loader(plan.sources[0].validation, 4)})[0]


def validating(monkeypatch, *rows: dict[str, float]) -> None:
    """The validations find these rows, one after the other; the last one for ever."""
    left = list(rows)
    plain = {"val_loss": 1.0, "psnr": 20.0, "interpolation_psnr": 20.0, "gain": 0.0, "backprojection_gain": 0.0}
    monkeypatch.setattr(training, "validate", lambda *_: (
        plain | (left.pop(0) if len(left) > 1 else left[0]), np.zeros((1, 1, 3), np.uint8)))


# --- what it learns ---------------------------------------------------------------------------------------------------

def test_the_fast_recipe_passes_the_interpolation_on_patches_it_has_not_seen(data):
    result = train(config(data, recipe="fast", arch="biqrnn_4_1", iterations=30, lr=3e-2, scales=(2,), degradation="spatial",
                          record_interval=99))
    assert result.psnr > result.interpolation_psnr + 0.1


@pytest.mark.parametrize(("start", "other"), [("interpolation", "backprojection"), ("backprojection", "interpolation")])
def test_the_fast_recipe_starts_as_the_start_image(data, start, other):
    row = first_validation(prepare(config(data, recipe="fast", start=start)))
    assert row["psnr"] == row[f"{start}_psnr"] > 10 and row["psnr"] != row[f"{other}_psnr"]


def test_back_projection_is_the_start_of_every_recipe_but_the_released_one(data):
    assert [config(data, recipe=name).start for name in RECIPES] == ["interpolation", "backprojection", "backprojection"]


def test_noise_spoils_the_back_projection_more_than_the_interpolation_and_is_drawn_by_the_seed(data):
    plain, noisy, again, other = (first_validation(prepare(config(data, recipe="fast", **changes))) for changes in (
        {}, {"noise": 0.05}, {"noise": 0.05}, {"noise": 0.05, "seed": 1}))
    lost = {name: plain[f"{name}_psnr"] - noisy[f"{name}_psnr"] for name in ("interpolation", "backprojection")}
    assert lost["backprojection"] > lost["interpolation"] + 1 and lost["interpolation"] > 0
    assert noisy == again and noisy["psnr"] != other["psnr"]


def test_noise_differs_from_step_to_step(data, monkeypatch):
    real, drawn = training.add_noise, []
    monkeypatch.setattr(training, "add_noise", lambda low, *how, **place: (
        drawn.append(real(low, *how, **place) - low), drawn[-1] + low)[1])
    train(config(data, noise=0.1, iterations=2))
    assert not torch.equal(drawn[0], drawn[1]) and drawn[0].std() == pytest.approx(0.1, rel=0.2)


def test_the_released_recipe_lowers_its_loss(data):
    train(config(data, epochs=4, lr=5e-3, run_dir="r"))
    losses = [row["loss"] for row in contents("r/last.pth")["history"]]
    assert losses[-1] < 0.5 * losses[0]


def test_the_released_recipe_lowers_its_rate_on_a_plateau_down_to_the_lowest(data, monkeypatch):
    validating(monkeypatch, {})
    train(config(data, arch="biqrnn_1_1", epochs=8, batch=10, run_dir="r"))
    rates = [row["lr"] for row in contents("r/last.pth")["history"]]
    assert rates[0] == 1e-4 and rates[-1] == 5e-5


def test_the_fast_rate_warms_up_and_falls_to_zero(data, monkeypatch):
    rates = []
    after_step(monkeypatch, lambda state: rates.append(state.lr))
    train(config(data, recipe="fast", arch="biqrnn_1_1", warmup=5, lr=1e-3, iterations=50, val_batches=1, record_interval=99))
    assert rates[0] == pytest.approx(1e-3 / 5) and max(rates) > 0.97e-3 and rates[-1] < 2e-6
    assert rates.index(max(rates)) == 4


def test_psnr_of_the_validation_is_the_one_of_the_indexes():
    rng = np.random.default_rng(3)
    gt = rng.random((2, 5, 12, 12), dtype=np.float32)
    sr = (gt + 0.1 * rng.normal(size=gt.shape)).astype(np.float32)
    sr[0, 0] = gt[0, 0]  # an identical band, capped
    mine = training.psnr(torch.from_numpy(sr), torch.from_numpy(gt))
    assert mine.tolist() == pytest.approx([evaluate(a, b, 4)["psnr"] for a, b in zip(sr, gt, strict=True)], abs=1e-9)


# --- what it repeats exactly: on a processor, since some kernels of a GPU add in an order of their own -----------------

def test_one_seed_gives_one_checkpoint_whatever_the_number_of_workers(data):
    for name, changes in {"a": {}, "b": {"threads": 2}, "c": {"seed": 2022}}.items():
        train(config(data, epochs=2, run_dir=name, cuda=False, **changes))
    a, b, c = (contents(f"{name}/last.pth") for name in "abc")
    a["config"], b["config"] = (d["config"] | {"threads": None} for d in (a, b))
    assert same(a, b)
    assert not same(a["net"], c["net"])


@pytest.mark.parametrize(("stop", "changes"), [
    (1, {"recipe": "fast", "iterations": 5}),
    (3, {"recipe": "released", "epochs": 2}),
    (5, {"recipe": "fast", "scales": (2, 4), "scale_order": "random", "augment": "spectral", "epochs": 2, "noise": 0.01,
         "crop": 8}),
    (4, {"recipe": "fast", "iterations": 9, "weights": (2, 1), "band_window": 4}),
], ids=["fast", "released", "scales", "databases"])
def test_an_interrupted_run_that_is_resumed_ends_as_one_that_was_not(data, tmp_path, monkeypatch, changes, stop):
    changes = {"tensorboard": True} | changes
    if "weights" in changes:
        data = data, make_database(tmp_path / "more.lmdb", shape=(7, 8, 12))
    whole = train(config(data, run_dir="whole", cuda=False, **changes))
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop)
        first = train(config(data, run_dir="parts", cuda=False, **changes))
    assert first.interrupted and first.iteration == stop
    second = train(configure({"resume": "parts/last.pth"}))
    assert second.run == first.run and not second.interrupted and second.iteration == whole.iteration
    for name in ("last.pth", "best.pth"):
        assert same(contents(f"whole/{name}"), contents(f"parts/{name}"))
    assert tags("whole") == tags("parts")
    whole_rows, rows = history("whole"), history("parts")
    assert all(float(row.pop("seconds")) > 0 and float(row.pop("processor_seconds")) > 0 for row in rows + whole_rows)
    for row in rows + whole_rows:
        del row["patches_per_s"], row["data_wait"]
    assert rows == whole_rows


def test_a_crop_shows_the_network_squares_and_the_statistics_of_the_whole_patches(data, monkeypatch):
    seen, forward = [], LowGrid.forward

    def record(self, x, low, statistics):
        if torch.is_grad_enabled():
            seen.append((x, low, statistics))
        return forward(self, x, low, statistics)

    monkeypatch.setattr(LowGrid, "forward", record)
    for name, crop in (("crop", 8), ("whole", None)):
        train(config(data, arch="lowgrid_2_1", recipe="fast", iterations=6, crop=crop, run_dir=name, cuda=False))
    for (x, low, statistics), (whole_x, whole_low, whole_statistics) in zip(seen[:6], seen[6:], strict=True):
        assert torch.equal(statistics, whole_statistics)
        places = [(i, j) for i in (0, 1, 2) for j in (0, 1, 2)
                  if torch.equal(low, whole_low[..., i:i + 2, j:j + 2])
                  and torch.equal(x, whole_x[..., 4 * i:4 * i + 8, 4 * j:4 * j + 8])]
        assert len(places) == 1
    with pytest.raises(UserError, match="takes a multiple of 4"):
        train(config(data, arch="lowgrid_2_1", crop=6))


def test_a_run_ends_when_its_minutes_are_over_with_a_validation_of_what_it_has(data, monkeypatch):
    now = [0.0]
    after_step(monkeypatch, lambda state: now.append(60.0 * state.iteration))
    monkeypatch.setattr(training, "time", SimpleNamespace(
        monotonic=lambda: now[-1], perf_counter=time.perf_counter, process_time=time.process_time))
    result = train(config(data, minutes=4.0))
    assert (result.iteration, result.interrupted) == (4, False) and result.best
    assert [int(row["iteration"]) for row in history(result.run)] == [3, 4]


def test_the_time_of_a_step_is_measured_without_changing_the_network(data):
    plan = prepare(config(data))
    before = {name: weight.clone() for name, weight in plan.net.state_dict().items()}
    assert seconds_per_step(plan) > 0
    assert same(before, plan.net.state_dict())


def test_an_interruption_while_validating_is_resumed_there(data, monkeypatch):
    train(config(data, run_dir="whole", cuda=False))
    real = training.validate

    def validate(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "validate", validate)
        assert train(config(data, run_dir="parts", cuda=False)).interrupted
    assert contents("parts/last.pth")["step"] == 3
    train(configure({"resume": "parts/last.pth"}))
    assert same(contents("whole/last.pth"), contents("parts/last.pth"))


def test_a_kept_checkpoint_is_resumed_in_a_new_folder_and_ends_the_same(data):
    train(config(data, run_dir="whole", record_interval=1, cuda=False))
    before = Path("whole/last.pth").read_bytes()
    again = train(configure({"resume": "whole/epoch_002.pth"}))
    assert again.run.parent == Path("runs") and Path("whole/last.pth").read_bytes() == before
    assert same(contents("whole/last.pth"), contents(again.last))


def test_recomputed_activations_change_nothing(data):
    plain = train(config(data, epochs=1, cuda=False))
    lean = train(config(data, epochs=1, checkpoint_activations=True, run_dir="lean", cuda=False))
    assert same(contents(plain.last)["net"], contents(lean.last)["net"])


# --- what it leaves ---------------------------------------------------------------------------------------------------

def test_a_run_folder_holds_what_made_it_and_what_it_did(data, capsys):
    result = train(config(data, prefix="mine", quiet=False, tensorboard=True, record_interval=2))
    run = result.run
    assert run.parent == Path("runs") and run.name.startswith("mine_")
    assert {p.name for p in run.iterdir() if not p.name.startswith("events")} == {
        "config.json", "environment.json", "log.txt", "history.csv", "steps.csv", "training.json", "training.png", "last.pth",
        "last.prev.pth", "best.pth", "epoch_002.pth"}
    recorded = json.loads((run / "config.json").read_text())
    assert recorded["batch"] == 3 and recorded["lr"] == 1e-4 and recorded["run_dir"] == str(run)
    assert json.loads((run / "environment.json").read_text())["torch"] == torch.__version__
    printed, log = capsys.readouterr().out, (run / "log.txt").read_text()
    assert printed.splitlines() == [line for line in log.splitlines() if not line.startswith("warning: ")]
    assert log.count("data wait") == 3 and log.rstrip().endswith(f"python hsi_test.py -r -rp {run}/best.pth")
    rows = history(run)
    assert [row["iteration"] for row in rows] == ["3", "6", "9"]
    assert float(rows[-1]["gain"]) == pytest.approx(float(rows[-1]["psnr"]) - float(rows[-1]["interpolation_psnr"]))
    assert all(0 <= float(row["data_wait"]) < 1 and float(row["patches_per_s"]) > 0 for row in rows)


def test_tensorboard_gets_every_epoch_its_picture_and_the_steps(data):
    run = train(config(data, tensorboard=True, epochs=2, scales=(2, 4))).run
    values = [(event.step, value) for event in events(run) for value in event.summary.value]
    scalars = {(step, value.tag): value.simple_value for step, value in values if value.HasField("simple_value")}
    rows = history(run)
    for row in rows:
        step = int(row["iteration"])
        for name in ("loss", "val_loss", "psnr", "interpolation_psnr", "backprojection_psnr", "gain", "backprojection_gain",
                     "gain_x2", "gain_x4", "lr", "data_wait"):
            assert scalars[step, f"epoch/{name}"] == pytest.approx(float(row[name]), rel=1e-5)
    assert {step for step, tag in scalars if tag == "step/lr"} >= {3, 6}
    assert all(float(row["gain"]) == pytest.approx((float(row["gain_x2"]) + float(row["gain_x4"])) / 2) for row in rows)
    images = [(step, value.image) for step, value in values if value.HasField("image")]
    assert [step for step, _ in images] == [3, 6]
    assert all((image.height, image.width, image.colorspace) == (16, 3 * 16, 3) for _, image in images)


def test_tensorboard_gets_the_same_by_the_documented_class_alone(tmp_path, monkeypatch):
    picture, found = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8), []
    for part in ("private", "public"):
        run = RunFolder(tmp_path / part)
        run.open_board(5)
        run.add_scalars("epoch", {"loss": 0.25, "lr": None}, 6)
        run.add_image("picture", picture, 6)
        run.flush()
        run.close()
        found.append([(event.step, value.tag, value.simple_value, value.image.encoded_image_string)
                      for event in events(tmp_path / part) for value in event.summary.value])
        monkeypatch.setattr("utility.runs.EventsWriter", None)
    assert found[0] == found[1] and len(found[0]) == 2


@pytest.mark.parametrize(("card", "words"), [
    ("sample", ""), ("indian_pines", " --dataset indian_pines"), ("rendered", " --data YOUR_SCENES")])
def test_the_line_printed_last_tests_what_the_card_holds_out(tmp_path, capsys, card, words):
    made = make_database(tmp_path / "carded.lmdb", card=card)
    result = train(config(made, epochs=1, run_dir="r", quiet=False))
    assert f"test with:   python hsi_test.py -r -rp r/best.pth{words}\n" in capsys.readouterr().out
    assert contents(result.best)["cards"] == [card]


def test_few_steps_of_the_released_recipe_are_remarked_on(data):
    assert any("makes 9 steps" in note for note in prepare(config(data)).notes)
    assert not any("steps" in note for changes in ({"recipe": "fast"}, {"epochs": 400})
                   for note in prepare(config(data, **changes)).notes)


def test_a_checkpoint_says_what_was_trained(data):
    result = train(config(data, epochs=1, scales=(2,), degradation="bicubic", start="backprojection", noise=0.01))
    saved = contents(result.best)
    assert {"net", "optimizer", "psnr", "loss", "epoch", "iteration"} <= set(saved)
    assert (saved["arch"], saved["scale"], saved["degradation"], saved["bands"]) == ("biqrnn_4_2", 2, "bicubic", 5)
    assert (saved["start"], saved["noise"]) == ("backprojection", 0.01)
    assert (saved["epoch"], saved["iteration"], saved["psnr"]) == (1, 3, result.psnr)
    again = configure({"init": str(result.best)})
    assert (again.scales, again.degradation, again.start, again.noise) == ((2,), "bicubic", "backprojection", 0.01)
    del saved["start"], saved["noise"]  # as in checkpoints from before there was a choice
    torch.save(saved, "old.pth")
    assert (configure({"init": "old.pth"}).start, configure({"init": "old.pth"}).noise) == ("interpolation", 0.0)
    assert create_model("biqrnn_4_2").load_state_dict(saved["net"])


@pytest.mark.parametrize(("recipe", "best"), [("released", 1), ("fast", 2)])
def test_the_released_recipe_picks_the_best_by_its_loss_and_others_by_psnr(data, monkeypatch, recipe, best):
    rows = [{"psnr": 21.0, "val_loss": 0.1}, {"psnr": 23.0, "val_loss": 0.2}, {"psnr": 22.0, "val_loss": 0.3}]
    validating(monkeypatch, *rows)
    train(config(data, run_dir="r", recipe=recipe))
    assert contents("r/best.pth")["epoch"] == best and contents("r/last.pth")["epoch"] == 3
    assert contents("r/last.pth")["best_psnr"] == rows[best - 1]["psnr"]


@pytest.mark.parametrize(("stop", "tested"), [(2, "last"), (5, "best")])
def test_an_interrupted_run_leaves_its_last_state_and_the_best_of_whole_epochs(data, monkeypatch, capsys, stop, tested):
    interrupt_at(monkeypatch, stop)
    result = train(config(data, run_dir="r", quiet=False))
    assert result.last == Path("r/last.pth") and contents(result.last)["iteration"] == stop
    assert (result.best is None) == (tested == "last") and (stop < 3 or contents(result.best)["epoch"] == 1)
    said = capsys.readouterr().out
    assert "python hsi_sr.py -r -rp r/last.pth" in said and f"python hsi_test.py -r -rp r/{tested}.pth" in said


def test_a_second_interruption_stops_at_once_and_keeps_what_was_saved(data, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    after_step(monkeypatch, lambda state: state.iteration == 4 and [signal.raise_signal(signal.SIGINT) for _ in "ab"])
    result = train(config(data, run_dir="r"))
    assert result.interrupted and contents("r/last.pth")["iteration"] == 3
    assert signal.getsignal(signal.SIGINT) is before


class Killed(BaseException):
    """As SIGKILL, nothing is written after it."""


def killed_at(monkeypatch, iteration: int) -> None:
    def kill(state):
        if state.iteration == iteration:
            raise Killed

    after_step(monkeypatch, kill)


def test_the_state_is_saved_inside_an_epoch_too_and_goes_on_from_there(data, monkeypatch):
    train(config(data, run_dir="whole", cuda=False))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, 3)
        train(config(data, run_dir="parts", cuda=False, save_minutes=1e-9))
    assert contents("parts/last.pth")["iteration"] == 2
    train(configure({"resume": "parts/last.pth", "save_minutes": 10}))
    assert same(contents("whole/last.pth")["net"], contents("parts/last.pth")["net"])
    steps = Path("whole/steps.csv").read_text()
    assert Path("parts/steps.csv").read_text() == steps and len(steps.splitlines()) == 1 + 9


def test_the_losses_of_a_long_run_are_means_of_as_many_steps_as_keep_the_file_short(tmp_path):
    losses = Losses(tmp_path / "steps.csv")
    for iteration in range(1, 5 * Losses.MOST + 1):
        losses.add(iteration, 1, float(iteration))
    losses.write()
    again = Losses(losses.path)
    again.load(100)
    assert len(losses.rows) == 5 * Losses.MOST / 8 and losses.rows[-1][0] == 5 * Losses.MOST
    assert all(loss == iteration - (steps - 1) / 2 and steps == 8 for iteration, steps, loss in losses.rows)
    assert again.rows == losses.rows[:12]


def test_the_same_command_starts_again_after_a_kill_before_the_first_checkpoint(data, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, 2)
        train(config(data, run_dir="r", tensorboard=True))
    train(config(data, run_dir="r", tensorboard=True, epochs=1))
    assert contents("r/last.pth")["iteration"] == 3 and {step for step, tag in tags("r") if tag == "step/lr"} == {1, 2, 3}
    with pytest.raises(UserError, match="r exists already"):
        train(config(data, run_dir="r"))


@pytest.mark.parametrize("left", [{"log.txt": ""}, {"log.txt": "a", "config.json": "{}", ".last.0-1-2.partial.pth": "half"}])
def test_a_run_that_was_killed_before_its_first_checkpoint_was_whole_starts_again(tmp_path, left):
    (tmp_path / "r").mkdir()
    for name, text in left.items():
        (tmp_path / "r" / name).write_text(text)
    RunFolder(tmp_path / "r").close()


@pytest.mark.parametrize("epochs", [2, 3])
def test_a_history_that_a_kill_left_an_epoch_behind_is_brought_up_to_date(data, monkeypatch, epochs):
    train(config(data, run_dir="r", epochs=2))
    lines = Path("r/history.csv").read_text().splitlines(keepends=True)
    Path("r/history.csv").write_text("".join(lines[:-1]))
    if epochs == 2:
        with pytest.raises(UserError, match="larger -n"):
            train(configure({"resume": "r/last.pth"}))
    else:
        interrupt_at(monkeypatch, 7)
        train(configure({"resume": "r/last.pth", "epochs": 3}))
    assert [row["epoch"] for row in history("r")] == ["1", "2"]
    assert Path("r/history.csv").read_text().splitlines()[1] == lines[1].strip()


def test_events_are_on_the_disk_before_the_checkpoint_that_follows_them(data, monkeypatch):
    real, seen = State.save, []
    monkeypatch.setattr(State, "save", lambda state, path: (seen.append((path.name, tags(path.parent))), real(state, path)))
    train(config(data, run_dir="r", epochs=1, tensorboard=True))
    assert [name for name, _ in seen] == ["best.pth", "last.pth"]
    assert all((3, "epoch/psnr") in found and (3, "step/loss") in found for _, found in seen)


def test_a_network_far_below_its_start_image_is_warned_of_at_every_epoch(data, monkeypatch, capsys):
    validating(monkeypatch, {"gain": -5.0})
    train(config(data, run_dir="r"))
    assert capsys.readouterr().err.count("the network is 5.0 dB below its start image") == 3
    validating(monkeypatch, {"gain": -2.0})
    train(config(data, run_dir="s"))
    assert "start image" not in capsys.readouterr().err


@pytest.mark.parametrize("start", ["interpolation", "backprojection"])
def test_a_training_whose_best_is_not_above_back_projection_says_so_everywhere(data, monkeypatch, capsys, start):
    drawn = []
    monkeypatch.setattr("utility.runs.training_curve_figure", lambda *_, note="", **__: drawn.append(note))
    validating(monkeypatch, {"gain": 0.7, "backprojection_gain": -4.3})
    train(config(data, run_dir="r", start=start, quiet=True))
    words = "is 0.70 dB above the interpolation and 4.30 dB below back-projection on the validation patches"
    assert capsys.readouterr().err.splitlines()[-1].startswith("warning: the best network") and words in drawn[-1]
    assert words in json.loads(Path("r/training.json").read_text())["warnings"][0] and words in Path("r/log.txt").read_text()
    validating(monkeypatch, {"gain": 0.7, "backprojection_gain": 0.1})
    train(config(data, run_dir="s", start=start))
    assert "warning" not in capsys.readouterr().err and json.loads(Path("s/training.json").read_text())["warnings"] == []


# --- fine-tuning ------------------------------------------------------------------------------------------------------

@pytest.fixture
def pretrained(data) -> str:
    """A network as it starts under the fast recipe: its start image."""
    return str(train(config(data, recipe="fast", iterations=1, lr=1e-9, run_dir="pretrained")).best)


def test_a_fine_tuning_never_ends_below_where_it_started(pretrained, tmp_path, capsys):
    scene = make_database(tmp_path / "scene.lmdb", count=9, shape=(5, 32, 32), validation=2)
    result = train(configure({"init": pretrained, "data": scene, "lr": 0.5, "last_lr": 1.0, "epoch_steps": 3, "patience": 2,
                              "run_dir": "tuned", "tensorboard": False}))
    rows, best = contents(result.last)["history"], contents(result.best)
    assert [row["epoch"] for row in rows] == [0, 1, 2] and contents(result.last)["config"]["iterations"] == 1000
    assert rows[1]["psnr"] < rows[0]["psnr"] == best["psnr"] and best["epoch"] == 0
    assert same(dict(best["net"]), dict(contents(pretrained)["net"]))
    assert "before any step" in (result.run / "log.txt").read_text()
    with pytest.raises(UserError, match="larger --patience"):
        train(configure({"resume": "tuned/last.pth"}))


def test_fine_tuning_is_counted_in_steps_and_leaves_no_patch_out(pretrained, data):
    plan = prepare(configure({"init": pretrained, "data": data}))
    assert (plan.config.recipe, plan.total, plan.steps) == ("finetune", 1000, 27)  # 9 passes of 3 steps
    assert plan.config.batch <= 4 and plan.config.last_lr > 0.1 and plan.config.lr == 5e-5
    assert prepare(configure({"init": pretrained, "data": data, "epochs": 2})).total == 54


def test_frozen_parts_keep_their_weights_also_when_resumed(pretrained, data):
    tuned = {"init": pretrained, "data": data, "freeze": ("encoder", "feature_extractor"), "epochs": 1, "epoch_steps": 1,
             "tensorboard": False, "run_dir": "r"}
    train(configure(tuned))
    train(configure({"resume": "r/last.pth", "epochs": 2}))
    before, after = contents(pretrained)["net"], contents("r/last.pth")["net"]
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "reconstructor"}
    with pytest.raises(UserError, match=r"no part encodr.*encoder"):
        prepare(configure(tuned | {"freeze": ("encodr",)}))


def test_a_checkpoint_names_all_scenes_that_its_weights_have_seen(tmp_path):
    first, second = ({"file": f"{name}.mat", "sha256": name, "regions": [[0, 0, 8, 8]]} for name in "ab")
    one = make_database(tmp_path / "one.lmdb", sources=[first])
    both = make_database(tmp_path / "both.lmdb", sources=[first, second])
    small = {"tensorboard": False, "arch": "biqrnn_1_1"}
    train(config(one, run_dir="r", epochs=1, **small))
    assert contents("r/last.pth")["trained_on"] == [first]
    train(configure({"init": "r/last.pth", "data": both, "iterations": 1, "run_dir": "s", "tensorboard": False}))
    assert contents("s/last.pth")["trained_on"] == [first, second]
    train(configure({"resume": "s/last.pth", "data": one, "iterations": 2}))
    assert contents("s/last.pth")["trained_on"] == [first, second]


# --- starting from weights --------------------------------------------------------------------------------------------

def test_init_takes_weights_network_and_problem_and_starts_anew_on_any_bands(data, tmp_path):
    train(config(data, epochs=1, scales=(2,), degradation="gaussian", run_dir="first"))
    other = make_database(tmp_path / "other.lmdb", shape=(9, 16, 16))
    plan = prepare(configure({"init": "first/best.pth", "data": other, "recipe": "fast"}))
    assert (plan.config.arch, plan.config.scales, plan.config.degradation) == ("biqrnn_4_2", (2,), "gaussian")
    assert same(dict(plan.net.state_dict()), dict(contents("first/best.pth")["net"]))
    result = train(configure({"init": "first/best.pth", "data": other, "epochs": 1, "batch": 5, "run_dir": "second",
                              "scales": (4,), "tensorboard": False, "quiet": True, "recipe": "released"}))
    saved = contents(result.last)
    assert (saved["epoch"], saved["iteration"], saved["bands"], saved["scale"]) == (1, 2, 9, 4)
    assert {int(s["step"]) for s in saved["optimizer"]["state"].values()} == {2}


def test_a_released_checkpoint_goes_on_with_its_optimizer(data):
    net = create_model("biqrnn_4_2")
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-5)
    net(torch.rand(1, 1, 5, 8, 8)).sum().backward()
    optimizer.step()
    torch.save({"net": {f"module.{k}": v for k, v in net.state_dict().items()}, "optimizer": optimizer.state_dict(),
                "psnr": np.float64(30), "loss": np.float64(0.1), "epoch": 1, "iteration": 7}, "released.pth")
    result = train(configure({"resume": "released.pth", "data": data, "batch": 5, "epochs": 2, "tensorboard": False}))
    saved = contents(result.last)
    assert (saved["epoch"], saved["iteration"]) == (2, 9)
    assert {int(s["step"]) for s in saved["optimizer"]["state"].values()} == {3}
    assert saved["history"][0]["lr"] == 3e-5


def test_a_finished_run_goes_on_when_more_is_asked_for(data):
    train(config(data, run_dir="long", epochs=4, cuda=False, tensorboard=True))
    train(config(data, run_dir="r", epochs=2, cuda=False, tensorboard=True))
    with pytest.raises(UserError, match="larger -n"):
        train(configure({"resume": "r/last.pth"}))
    train(configure({"resume": "r/last.pth", "epochs": 4}))
    assert same(contents("long/last.pth"), contents("r/last.pth")) and tags("long") == tags("r")


def test_a_resumed_run_never_goes_on_in_the_folder_of_another(data):
    for name in ("mine", "other"):
        train(config(data, run_dir=name, epochs=1))
    before = {path: path.read_bytes() for path in Path("other").iterdir()}
    with pytest.raises(UserError, match="other exists already, and every run has its own folder"):
        train(configure({"resume": "mine/last.pth", "run_dir": "other", "epochs": 2}))
    assert {path: path.read_bytes() for path in Path("other").iterdir()} == before
    for folder in ("mine/../mine", "fresh"):
        train(configure({"resume": "mine/last.pth", "run_dir": folder, "epochs": contents("mine/last.pth")["epoch"] + 1}))
        assert contents(f"{folder}/last.pth")["epoch"] in (2, 3)


def test_a_released_alternating_network_is_noted_when_nothing_says_how_it_adds_its_input(data):
    torch.save({"net": create_model("qrnn_4_2").state_dict()}, "released.pth")
    start = {"init": "released.pth", "data": data, "batch": 2}
    assert "does not say long_skip" in prepare(configure(start)).notes[0]
    note, = prepare(configure(start | {"options": {"long_skip": True}})).notes
    assert "does not say which scenes it was trained on" in note


def test_a_place_inside_an_epoch_holds_for_its_own_batch_size(data, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        train(config(data, run_dir="r"))
    with pytest.raises(UserError, match="inside an epoch"):
        train(configure({"resume": "r/last.pth", "batch": 2}))


def test_a_resumed_run_keeps_its_recipe(data):
    train(config(data, run_dir="r", epochs=1))
    with pytest.raises(UserError, match="--init"):
        configure({"resume": "r/last.pth", "recipe": "fast"})


# --- the problem ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("order", ["turn", "random"])
def test_several_scales_alternate_or_are_drawn_by_iteration(data, monkeypatch, order):
    real, scales = training.start_image, []
    monkeypatch.setattr(training, "start_image", lambda low, scale, *how: (scales.append(scale), real(low, scale, *how))[1])
    validating(monkeypatch, {})
    small = {"arch": "biqrnn_1_1", "batch": 1, "epochs": 1, "scales": (2, 4, 8), "scale_order": order}
    train(config(data, **small))
    first, scales = scales, []
    train(config(data, run_dir="again", **small))
    assert first == scales and set(scales) == {2, 4, 8}
    assert (scales == [2, 4, 8] * 3) == (order == "turn")


def test_a_database_without_validation_holds_out_its_last_patches(tmp_path):
    plan = prepare(config(make_database(tmp_path / "whole.lmdb", count=20, validation=0)))
    assert (len(plan.sources[0].training), len(plan.sources[0].validation)) == (18, 2)
    assert "held out" in plan.notes[0]


def test_a_pass_takes_every_patch_also_those_that_do_not_fill_a_batch(data, monkeypatch):
    real, sizes = training.train_step, []
    monkeypatch.setattr(training, "train_step", lambda state, net, gt, whole: (sizes.append(len(gt)), real(state, net, gt)))
    train(config(data, batch=4, epochs=1))
    assert sizes == [4, 4, 1] and prepare(config(data, batch=64)).steps == 1


def test_patches_are_cropped_to_what_scale_and_network_need(tmp_path):
    odd = make_database(tmp_path / "odd.lmdb", shape=(3, 18, 21), validation=2)
    result = train(config(odd, epochs=1))
    assert "cropped to 16x20" in (result.run / "log.txt").read_text()


def test_patches_that_reference_darkens_are_said_once(tmp_path):
    data = tuple(make_database(tmp_path / f"{k}.lmdb", shape=(3, 32, 32), count=4, validation=2) for k in range(2))
    said = [prepare(config(data, scales=(2,), degradation=kind, recipe="fast")).notes for kind in ("reference", "spatial")]
    assert said[1] == [] and len(said[0]) == 1 and "26 or 34 instead of 32 pixels" in said[0][0]


def test_several_databases_of_other_bands_train_the_same_weights_and_each_is_validated(data, tmp_path):
    more = make_database(tmp_path / "more.lmdb", shape=(9, 8, 8), seed=1, count=9, validation=3)
    result = train(config((data, more), scales=(2,), epochs=1, run_dir="r", quiet=False, cuda=False))
    row = contents(result.last)["history"][0]
    assert result.iteration == 3 + 2
    assert row["gain"] == pytest.approx((row["gain_small"] + row["gain_more"]) / 2)
    assert "more +" in (result.run / "log.txt").read_text() or "more -" in (result.run / "log.txt").read_text()
    assert contents(result.last)["bands"] == [5, 9]
    alone = first_validation(prepare(configure({"init": "r/last.pth", "data": data})))
    assert alone["gain"] == pytest.approx(row["gain_small"])


def test_weights_share_the_steps_of_several_databases(data, tmp_path, monkeypatch):
    more = make_database(tmp_path / "more.lmdb", shape=(9, 8, 8), count=9, validation=3)
    bands = []
    real = training.train_step
    monkeypatch.setattr(training, "train_step", lambda state, net, gt, whole: (bands.append(gt.shape[1]), real(state, net, gt)))
    validating(monkeypatch, {})
    train(config((data, more), scales=(2,), iterations=12, weights=(1, 3), arch="biqrnn_1_1"))
    assert bands.count(5) == 3 and bands[:4].count(5) == 1
    with pytest.raises(UserError, match="2 weights for 1 databases"):
        config(data, weights=(1, 3))


def test_validation_can_be_limited(data):
    assert len(prepare(config(data, val_batches=1)).sources[0].validation) == 3


def test_bfloat16_trains_to_nearly_the_same(data):
    full = train(config(data, epochs=1, recipe="fast"))
    half = train(config(data, epochs=1, recipe="fast", amp="bf16", run_dir="half"))
    assert half.psnr == pytest.approx(full.psnr, abs=0.1) and half.psnr != full.psnr


# --- what it refuses --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("epoch", [0, 1])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(data, monkeypatch, epoch):
    real = LOSSES["mse"]
    calls = iter(range(10**6))
    monkeypatch.setitem(LOSSES, "mse", lambda a, b: real(a, b) * (float("nan") if next(calls) > 7 * epoch else 1))
    with pytest.raises(UserError) as error:
        train(config(data, run_dir="r"))
    assert "\n" not in str(error.value) and f"epoch {epoch + 1}" in str(error.value)
    if epoch:
        assert "r/last.pth holds the state before" in str(error.value)
        saved = contents("r/last.pth")
        assert saved["epoch"] == 1 and all(torch.isfinite(w).all() for w in saved["net"].values())
    else:
        assert "nothing was saved" in str(error.value) and not list(Path("r").glob("*.pth"))


def test_weights_that_became_nan_are_not_saved_by_an_interruption(data, monkeypatch):
    def spoil(state):
        if state.iteration == 4:
            next(state.net.parameters()).data[0] = float("nan")
            signal.raise_signal(signal.SIGINT)

    after_step(monkeypatch, spoil)
    with pytest.raises(UserError, match="NaN"):
        train(config(data, run_dir="r"))
    assert contents("r/last.pth")["iteration"] == 3


@pytest.mark.parametrize(("changes", "words"), [
    ({"arch": "biqrnn_16"}, "did you mean"),
    ({"scales": (5,)}, "scale factor 5"),
    ({"scales": (3,), "degradation": "gaussian"}, "even"),
    ({"scales": (4, 4)}, "different"),
    ({"degradation": "blur"}, "'blur'"),
    ({"recipe": "slow"}, "released, fast"),
    ({"batch": 0}, "batch is 0"),
    ({"lr": 0.0}, "lr is 0"),
    ({"lr": float("nan")}, "lr is nan"),
    ({"seed": -1}, "seed is -1"),
    ({"resume": "none.pth"}, "none.pth"),
    ({"init": "none.pth"}, "none.pth"),
    ({"data": "none.lmdb"}, "none.lmdb"),
    ({"amp": "fp16", "cuda": False}, "needs a GPU"),
    ({"pooling": "cuda"}, "choose one of auto"),
    ({"run_dir": "."}, "choose another --run-dir"),
])
def test_bad_input_is_one_sentence_and_leaves_nothing(data, tmp_path, changes, words):
    Path("something").touch()
    with pytest.raises(UserError) as error:
        train(config(**({"data": data} | changes)))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["something"]


def test_more_loader_processes_than_a_machine_can_take_are_refused():
    with pytest.raises(UserError, match="1024 loader processes at most"):
        config("none.lmdb", threads=1025)  # a configuration alone: it starts none


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_when_it_was_asked_for(data):
    with pytest.raises(UserError, match="--no-cuda"):
        prepare(config(data, gpu_ids=(0,)))
    assert prepare(config(data)).device.type == prepare(config(data, gpu_ids=(0,), cuda=False)).device.type == "cpu"


def test_patches_too_small_for_the_scale_are_refused(tmp_path):
    with pytest.raises(UserError, match="at least 8x8"):
        prepare(config(make_database(tmp_path / "tiny.lmdb", shape=(3, 6, 6)), scales=(8,)))


def test_two_bands_in_bf16_on_a_processor_are_refused(tmp_path):
    with pytest.raises(UserError, match="2 bands"):
        prepare(config(make_database(tmp_path / "two.lmdb", shape=(2, 16, 16)), amp="bf16", cuda=False))


# --- a disk that is full ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("room", "name"), [(100, "config.json"), (6000, "best.pth")])
def test_a_full_disk_ends_the_run_with_one_sentence(data, room, name):
    with room_for(room), pytest.raises(UserError, match=f"disk is full while writing r/{name}") as error:
        train(config(data, run_dir="r", arch="biqrnn_1_1"))
    assert "\n" not in str(error.value) and not list(Path("r").glob("*.p*"))


def test_events_that_cannot_be_written_end_the_run_and_do_not_hang_it(tmp_path, capfd):
    board, picture = Board(tmp_path), np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    with room_for(5000):
        with pytest.raises(UserError, match=r"disk is full while writing .*events"):
            for step in range(1000):
                board.add_image("noise", picture, step)
        board.close()
    board.close()  # as tensorboardX does at exit
    assert "Traceback" not in capfd.readouterr().err


def test_a_log_that_cannot_be_written_is_said_once_and_lines_are_still_printed(tmp_path, capsys):
    run = RunFolder(tmp_path / "r")
    with room_for(10):
        with pytest.raises(UserError, match=r"disk is full while writing .*log\.txt"):
            run.say("a line that is longer than the room")
        run.say("another line")
        run.close()
    assert capsys.readouterr().out == "a line that is longer than the room\nanother line\n"


def test_a_history_that_cannot_be_written_is_said_in_one_sentence(tmp_path):
    run = RunFolder(tmp_path / "r")
    with room_for(10), pytest.raises(UserError, match=r"disk is full while writing .*history\.csv"):
        run.write_history([{"epoch": 1, "iteration": 3, "loss": 0.1}])
    assert not list(run.path.glob("history.csv"))


# --- a compiled network -----------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
def test_a_compiled_network_is_trained_to_nearly_the_same(data, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    small = {"arch": "biqrnn_1_1", "iterations": 3, "recipe": "fast", "cuda": False}
    plain, compiled = (train(config(data, compile=on, run_dir=f"compile_{on}", **small)) for on in (False, True))
    assert list((tmp_path / "inductor").rglob("*.so"))  # it was compiled indeed
    assert compiled.iteration == 3 and compiled.psnr == pytest.approx(plain.psnr, abs=1e-3)
    assert contents(compiled.last)["net"].keys() == contents(plain.last)["net"].keys()


def test_a_network_that_cannot_be_compiled_ends_the_run_with_one_sentence(data, monkeypatch):
    def compiled(net):
        def call(*inputs):
            raise type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})("no compiler.\nand more")
        return call

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(UserError, match=r"^biqrnn_4_2 cannot be compiled here \(InductorError: no compiler\); leave --compile"):
        train(config(data, compile=True))


def test_a_second_resume_of_a_run_is_refused_while_the_first_one_goes_on(data):
    train(config(data, run_dir="r"))
    first = RunFolder(Path("r"), resume=True)
    with pytest.raises(UserError, match="r is being written by another process"):
        train(configure({"resume": "r/last.pth", "epochs": 4}))
    first.close()
    train(configure({"resume": "r/last.pth", "epochs": 4}))
