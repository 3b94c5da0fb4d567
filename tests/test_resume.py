"""Resuming: a run that was stopped or killed anywhere goes on to the same numbers.

On a processor: some kernels of a GPU add in an order of their own.
"""
from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from comparing import same
from made import make_database
from trained import Killed, after_step, config, contents, history, interrupt_at, killed_at, tags

from models import create_model
from utility.system.errors import UserError
from utility.training import loop as training
from utility.training.configuration import configure
from utility.training.loop import train
from utility.training.plan import prepare
from utility.training.runs import RunFolder
from utility.training.state import State


def test_one_seed_gives_one_checkpoint_whatever_the_number_of_workers(data):
    for name, changes in {"a": {}, "b": {"threads": 2}, "c": {"seed": 2022}}.items():
        train(config(data, epochs=2, run_dir=name, cuda=False, **changes))
    a, b, c = (contents(f"{name}/last.pth") for name in "abc")
    a["config"], b["config"] = (d["config"] | {"threads": None} for d in (a, b))
    assert same(a, b)
    assert not same(a["net"], c["net"])


@pytest.mark.parametrize(("stop", "changes"),
                         [(3, {"recipe": "released", "epochs": 2}),
                          (5,
                           {"recipe": "fast", "scales": (2, 4), "scale_order": "random",
                            "augment": "spectral", "epochs": 2, "noise": 0.01, "crop": 8}),
                          (4,
                           {"recipe": "fast", "iterations": 9, "weights": (2, 1),
                            "band_window": 4}),
                          (5,
                           {"recipe": "fast", "arch": "lowgrid_2_1_sensor", "degradation": "mtf",
                            "unknown": 0.3, "snr": 20, "shade": 0.5, "band_window": 2,
                            "band_spacing": 2, "epochs": 2})],
                         ids=["released", "scales", "databases", "sensors"])
def test_an_interrupted_run_that_is_resumed_ends_as_one_that_was_not(
        data, tmp_path, monkeypatch, changes, stop):
    changes = {"tensorboard": True} | changes
    if "weights" in changes:
        data = data, make_database(tmp_path / "more.lmdb", shape=(7, 8, 12))
    whole = train(config(data, run_dir="whole", cuda=False, **changes))
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop)
        first = train(config(data, run_dir="parts", cuda=False, **changes))
    assert first.interrupted and first.iteration == stop
    second = train(configure({"resume": "parts/last.pth"}))
    assert (
        second.run == first.run and not second.interrupted and second.iteration == whole.iteration)
    for name in ("last.pth", "best.pth"):
        assert same(contents(f"whole/{name}"), contents(f"parts/{name}"))
    assert tags("whole") == tags("parts")
    whole_rows, rows = history("whole"), history("parts")
    assert all(float(row.pop("seconds")) > 0 and float(row.pop("processor_seconds")) > 0
               for row in rows + whole_rows)
    for row in rows + whole_rows:
        del row["patches_per_s"], row["data_wait"]
    assert rows == whole_rows


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


def test_a_finished_run_goes_on_when_more_is_asked_for(data):
    train(config(data, run_dir="long", epochs=4, cuda=False, tensorboard=True))
    train(config(data, run_dir="r", epochs=2, cuda=False, tensorboard=True))
    with pytest.raises(UserError, match="larger -n"):
        train(configure({"resume": "r/last.pth"}))
    train(configure({"resume": "r/last.pth", "epochs": 4}))
    assert same(contents("long/last.pth"), contents("r/last.pth")) and tags("long") == tags("r")


def test_a_released_checkpoint_goes_on_with_its_optimizer(data):
    net = create_model("biqrnn_4_2")
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-5)
    net(torch.rand(1, 1, 5, 8, 8)).sum().backward()
    optimizer.step()
    torch.save({"net": {f"module.{k}": v for k, v in net.state_dict().items()},
                "optimizer": optimizer.state_dict(), "psnr": np.float64(30),
                "loss": np.float64(0.1), "epoch": 1, "iteration": 7}, "released.pth")
    result = train(configure(
        {"resume": "released.pth", "data": data, "batch": 5, "epochs": 2, "tensorboard": False}))
    saved = contents(result.last)
    assert (saved["epoch"], saved["iteration"]) == (2, 9)
    assert {int(s["step"]) for s in saved["optimizer"]["state"].values()} == {3}
    assert saved["history"][0]["lr"] == 3e-5


# --- stops and kills ------------------------------------------------------------------------------

@pytest.mark.parametrize(("stop", "tested"), [(2, "last"), (5, "best")])
def test_an_interrupted_run_leaves_its_last_state_and_the_best_of_whole_epochs(
        data, monkeypatch, capsys, stop, tested):
    interrupt_at(monkeypatch, stop)
    result = train(config(data, run_dir="r"))
    assert result.last == Path("r/last.pth") and contents(result.last)["iteration"] == stop
    assert ((result.best is None) == (tested == "last")
            and (stop < 3 or contents(result.best)["epoch"] == 1))
    said = capsys.readouterr().out
    assert ("python hsi_sr.py -r -rp r/last.pth" in said
            and f"python hsi_test.py -r -rp r/{tested}.pth" in said)


def test_a_second_interruption_stops_at_once_and_keeps_what_was_saved(data, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    after_step(
        monkeypatch,
        lambda state: state.iteration == 4 and [signal.raise_signal(signal.SIGINT) for _ in "ab"])
    result = train(config(data, run_dir="r"))
    assert result.interrupted and contents("r/last.pth")["iteration"] == 3
    assert signal.getsignal(signal.SIGINT) is before


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


def test_the_same_command_starts_again_after_a_kill_before_the_first_checkpoint(data, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_at(patch, 2)
        train(config(data, run_dir="r", tensorboard=True))
    train(config(data, run_dir="r", tensorboard=True, epochs=1))
    assert (contents("r/last.pth")["iteration"] == 3
            and {step for step, tag in tags("r") if tag == "step/lr"} == {1, 2, 3})
    with pytest.raises(UserError, match="r exists already"):
        train(config(data, run_dir="r"))


def test_a_run_that_was_killed_before_its_first_checkpoint_was_whole_starts_again(tmp_path):
    (tmp_path / "r").mkdir()
    for name in ("log.txt", "config.json", ".last.0-1-2.partial.pth"):
        (tmp_path / "r" / name).write_text("half")
    RunFolder(tmp_path / "r").close()


@pytest.mark.parametrize("epochs", [2, 3])
def test_a_history_that_a_kill_left_an_epoch_behind_is_brought_up_to_date(
        data, monkeypatch, epochs):
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
    monkeypatch.setattr(
        State, "save",
        lambda state, path: (seen.append((path.name, tags(path.parent))), real(state, path)))
    train(config(data, run_dir="r", epochs=1, tensorboard=True))
    assert [name for name, _ in seen] == ["best.pth", "last.pth"]
    assert all((3, "epoch/psnr") in found and (3, "step/loss") in found for _, found in seen)


# --- what is refused ------------------------------------------------------------------------------

def test_a_resumed_run_never_goes_on_in_the_folder_of_another(data):
    for name in ("mine", "other"):
        train(config(data, run_dir=name, epochs=1))
    before = {path: path.read_bytes() for path in Path("other").iterdir()}
    with pytest.raises(UserError, match="other exists already, and every run has its own folder"):
        train(configure({"resume": "mine/last.pth", "run_dir": "other", "epochs": 2}))
    assert {path: path.read_bytes() for path in Path("other").iterdir()} == before
    for folder in ("mine/../mine", "fresh"):
        train(configure({"resume": "mine/last.pth", "run_dir": folder,
                         "epochs": contents("mine/last.pth")["epoch"] + 1}))
        assert contents(f"{folder}/last.pth")["epoch"] in (2, 3)


def test_a_second_resume_of_a_run_is_refused_while_the_first_one_goes_on(data):
    train(config(data, run_dir="r"))
    first = RunFolder(Path("r"), resume=True)
    with pytest.raises(UserError, match="r is being written by another process"):
        train(configure({"resume": "r/last.pth", "epochs": 4}))
    first.close()
    train(configure({"resume": "r/last.pth", "epochs": 4}))


def test_a_resumed_run_keeps_its_recipe_and_inside_an_epoch_its_batch_size(data, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        train(config(data, run_dir="r"))
    for change, words in (({"batch": 2}, "inside an epoch"), ({"recipe": "fast"}, "--init")):
        with pytest.raises(UserError, match=words):
            train(configure({"resume": "r/last.pth"} | change))


# --- other data -----------------------------------------------------------------------------------

def rebuilt(path: str, **changes) -> str:
    shutil.rmtree(path, ignore_errors=True)
    return make_database(path, **changes)


@pytest.mark.parametrize(("changes", "words"),
                         [({"seed": 1}, "as many patches, with other values"),
                          ({"count": 16}, "it holds 16 patches of 5x16x16, 4 of them for "
                           "validation, and that one held 13 patches of 5x16x16"),
                          ({"path": "other.lmdb", "seed": 1}, "other.lmdb is not the one")],
                         ids=["values", "count", "path"])
def test_a_run_that_goes_on_with_other_patches_says_so_and_counts_its_best_anew(
        monkeypatch, capsys, changes, words):
    monkeypatch.setattr(training, "validate", lambda state, *_: (
        {"val_loss": 1 + state.iteration / 100, "psnr": 40 - state.iteration, "gain": 1.0,
         "backprojection_gain": 1.0}, np.zeros((2, 2, 3))))
    data = rebuilt("d.lmdb")
    train(config(data, run_dir="r", epochs=2, cuda=False))
    assert contents("r/best.pth")["epoch"] == 1
    capsys.readouterr()
    other = rebuilt(**{"path": data} | changes)
    plan = prepare(configure({"resume": "r/last.pth", "epochs": 3, "data": other}))
    assert words in plan.changed
    train(plan.config, plan)
    said = capsys.readouterr().err
    assert words in said and "counts anew" in said and "is not the one this run was trained" in said
    report = json.loads(Path("r/training.json").read_text())
    assert contents("r/best.pth")["epoch"] == report["best"]["epoch"] == 3
    assert contents("r/best.prev.pth")["epoch"] == 1 and words in report["warnings"][0]
    assert words in Path("r/log.txt").read_text()
    # once is enough: the best is of these patches now
    train(configure({"resume": "r/last.pth", "epochs": 4}))
    assert "counts anew" not in capsys.readouterr().err
    report = json.loads(Path("r/training.json").read_text())
    assert report["best"]["epoch"] == 3 and words in report["warnings"][0]


def test_a_database_that_is_built_the_same_again_or_moved_is_the_same(capsys):
    train(config(rebuilt("d.lmdb"), run_dir="whole", epochs=2, cuda=False))
    train(config(rebuilt("d.lmdb"), run_dir="r", epochs=1, cuda=False))
    shutil.copytree("d.lmdb", "moved.lmdb")
    rebuilt("d.lmdb")
    capsys.readouterr()
    for folder in ("d.lmdb", "moved.lmdb"):
        assert prepare(configure({"resume": "r/last.pth", "data": folder})).changed is None
    train(configure({"resume": "r/last.pth", "epochs": 2}))
    assert "database" not in capsys.readouterr().err
    assert same(contents("whole/last.pth"), contents("r/last.pth"))


@pytest.mark.parametrize("databases", [None, "three", [3]], ids=str)
def test_a_checkpoint_that_does_not_say_its_databases_goes_on_with_any(data, capsys, databases):
    train(config(data, run_dir="r", epochs=1))
    saved = contents("r/last.pth")
    del saved["databases"]
    if databases:
        saved["databases"] = databases
    torch.save(saved, "r/last.pth")
    capsys.readouterr()
    other = make_database("other.lmdb", seed=1)
    train(configure({"resume": "r/last.pth", "epochs": 2, "data": other}))
    assert "counts anew" not in capsys.readouterr().err


def test_a_run_that_goes_on_with_another_problem_says_so_and_counts_its_best_anew(
        data, monkeypatch, capsys):
    monkeypatch.setattr(training, "validate", lambda state, *_: (
        {"val_loss": 1 + state.iteration / 100, "psnr": 40 - state.iteration, "gain": 1.0,
         "backprojection_gain": 1.0}, np.zeros((2, 2, 3))))
    train(config(data, run_dir="r", epochs=2, cuda=False, scales=(4,)))
    capsys.readouterr()
    train(configure({"resume": "r/last.pth", "epochs": 3, "scales": (2, 4), "val_batches": 1}))
    assert ("this run goes on with scales 2, 4 instead of 4 and val_batches 1 instead of unset"
            in capsys.readouterr().err)
    assert contents("r/best.pth")["epoch"] == 3 and contents("r/best.prev.pth")["epoch"] == 1
    train(configure({"resume": "r/last.pth", "epochs": 4}))
    assert "counts anew" not in capsys.readouterr().err and contents("r/best.pth")["epoch"] == 3


def test_a_run_that_goes_on_with_fewer_of_its_databases_says_so(data):
    more = make_database("more.lmdb", seed=1)
    train(config((data, more), run_dir="r", epochs=1))
    plan = prepare(configure({"resume": "r/last.pth", "epochs": 2, "data": more}))
    assert "trained on 2 databases, of which 1 is given" in plan.changed


# --- how long a resumed run is --------------------------------------------------------------------

LENGTHS = [
    # the first run, what is given when it is resumed, and the steps and epochs that it makes then;
    # a pass has 3 steps
    # an epoch of 2 steps, two whole ones, and what is left of three passes
    ({"iterations": 2}, {"epochs": 3}, 9, 4),
    ({"iterations": 3}, {"epochs": 3}, 9, 3),
    ({"iterations": 4}, {"epochs": 2}, 6, 3),
    ({"iterations": 2}, {"iterations": 7}, 7, 3),
    ({"epochs": 1}, {"epochs": 3}, 9, 3),
    ({"epochs": 1}, {"iterations": 5}, 5, 2),
    ({"epochs": 2}, {"iterations": 7, "epochs": 9}, 7, 3),  # steps take the place of passes
    ({"epochs": 1}, {"epochs": 3, "batch": 9}, 5, 3),       # two more passes, of one step each
    # 4 of 3 steps are 1 1/3 passes: 1 2/3 are left
    ({"iterations": 4}, {"epochs": 3, "batch": 9}, 6, 4),
    ({"epochs": 2, "batch": 9}, {"epochs": 3, "batch": 3}, 5, 3),
    ({"recipe": "finetune", "init": True, "iterations": 2}, {"epochs": 1, "epoch_steps": 1}, 3, 2),
    ({"epochs": 3}, {"epochs": 3}, None, None), ({"epochs": 2}, {"epochs": 1}, None, None),
    ({"iterations": 4}, {"iterations": 4}, None, None),
    ({"epochs": 2}, {"iterations": 5}, None, None),
    ({"iterations": 6}, {"epochs": 2}, None, None),
]


@pytest.mark.parametrize(("first", "then", "steps", "epochs"), LENGTHS, ids=str)
def test_a_resumed_run_is_as_long_as_is_printed_and_its_rate_ends_there(
        data, capsys, first, then, steps, epochs):
    given = {"recipe": "fast", "epochs": None} | first
    if given.pop("init", False):
        train(config(data, run_dir="start", iterations=1, epochs=None))
        given["init"] = "start/best.pth"
    train(config(data, run_dir="r", cuda=False, **given))
    capsys.readouterr()
    again = configure({"resume": "r/last.pth"} | then)
    if steps is None:
        with pytest.raises(UserError, match="all that were asked for"):
            train(again)
        return
    result = train(again)
    saved = contents(result.last)
    printed = f"length    {steps} iterations, {epochs} epoch{'s' * (epochs > 1)}"
    assert printed in capsys.readouterr().out
    assert (result.iteration, saved["epoch"]) == (steps, epochs)
    # The last step has the rate of the cosine one step before its end.
    lr, low = again.lr, again.min_lr
    warm = min(1.0, steps / again.warmup)
    part = 0.5 * (1 + np.cos(np.pi * (steps - 1) / steps))
    assert saved["history"][-1]["lr"] == pytest.approx(warm * (low + (lr - low) * part))


PASS = {3: 3, 9: 1}
"""Patches of a step -> steps of a pass over the nine patches."""
FIRST = [{"epochs": 1}, {"epochs": 2}, {"iterations": 2}, {"iterations": 4},
         {"epochs": 2, "batch": 9}, {"iterations": 2, "batch": 9}]
THEN = [{"epochs": 3}, {"iterations": 7}, {"epochs": 3, "iterations": 7},
        {"epochs": 3, "batch": 9}, {"epochs": 3, "batch": 3}, {"iterations": 7, "batch": 9},
        {"iterations": 7, "batch": 3}, {"epochs": 3, "patience": 2},
        {"iterations": 7, "patience": 2}, {"epochs": 3, "minutes": 5},
        {"iterations": 7, "minutes": 5}, {"epochs": 1}, {"iterations": 2}]


@pytest.mark.parametrize("first", FIRST, ids=str)
def test_every_pair_of_options_of_length_gives_the_steps_or_passes_that_were_asked_for(
        data, first):
    train(config(data, run_dir="r", cuda=False, recipe="fast", **{"epochs": None} | first))
    batch = first.get("batch", 3)
    made = first.get("iterations") or first["epochs"] * PASS[batch]
    for then in THEN:
        steps = then.get("iterations")
        if not steps:  # what is left of the passes, made of whole steps
            left = then["epochs"] - made / PASS[batch]
            steps = made + round(left * PASS[then.get("batch", batch)])
        plan = prepare(configure({"resume": "r/last.pth", "cuda": False} | then))
        assert plan.total == steps, then
        assert any(f"length    {steps} iterations" in line for line in plan.describe()), then
        if steps <= made:
            with pytest.raises(UserError, match="all that were asked for"):
                train(plan.config, plan)
