"""A training of seconds, and what the tests of several subjects ask of it."""
from __future__ import annotations

import csv
import signal
from pathlib import Path

import numpy as np
import torch
from comparing import events

from utility.training import loop as training
from utility.training.configuration import TrainingConfig, configure
from utility.training.loader import validation_loader


def config(data: str, **changes) -> TrainingConfig:
    """A training of seconds: 3 epochs of 3 steps."""
    small = {"arch": "biqrnn_2_1", "batch": 3, "epochs": 3, "tensorboard": False,
             "data": data}
    return configure(small | changes)


def contents(path: str | Path) -> dict:
    return torch.load(path, weights_only=True)


def history(run: str | Path) -> list[dict[str, str]]:
    with open(Path(run) / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def tags(run: str | Path) -> list[tuple[int, str]]:
    """Steps and names of all values, those that measure time included."""
    return sorted((event.step, value.tag) for event in events(run) for value in event.summary.value)


def after_step(monkeypatch, action) -> None:
    """`action(state)` runs after each step."""
    real = training.train_step

    def train_step(state, *rest):
        real(state, *rest)
        action(state)

    monkeypatch.setattr(training, "train_step", train_step)


def interrupt_at(monkeypatch, iteration: int, number: int = signal.SIGINT) -> None:
    """Ctrl-C reaches the process while this iteration runs."""
    after_step(monkeypatch,
               lambda state: state.iteration == iteration and signal.raise_signal(number))


class Killed(BaseException):
    """As SIGKILL, nothing is written after it."""


def killed_at(monkeypatch, iteration: int) -> None:
    def kill(state):
        if state.iteration == iteration:
            raise Killed

    after_step(monkeypatch, kill)


def first_validation(plan) -> dict[str, float]:
    """Of the network that has made no step."""
    return training.validate(plan.state(),
                             {"one": validation_loader(plan.sources[0].validation, 4)})[0]


def validating(monkeypatch, *rows: dict[str, float]) -> None:
    """The validations find these rows, one after the other; the last one for ever."""
    left = list(rows)
    plain = {"val_loss": 1.0, "psnr": 20.0, "interpolation_psnr": 20.0, "gain": 0.0,
             "backprojection_gain": 0.0}
    monkeypatch.setattr(training, "validate", lambda *_: (
        plain | (left.pop(0) if len(left) > 1 else left[0]), np.zeros((1, 1, 3), np.uint8)))
