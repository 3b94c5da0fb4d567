"""The state of a training: network, optimizer, schedule, position; saved and loaded whole."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from models import Network
from utility.checkpoints import load_checkpoint, save_checkpoint
from utility.system.errors import UserError
from utility.training.configuration import TrainingConfig


def patch_multiple(config: TrainingConfig, net: Network) -> int:
    """Rows and columns of a patch are cropped to multiples of this."""
    return math.lcm(*(net.patch_multiple(scale) for scale in config.scales))


class State:
    """Everything a training needs to go on.

    Args:
        config, net, device: the network moves to the device.
        total: steps of the whole run; the rate of the fast recipe falls until then.
        facts: what else a checkpoint records; of these, `position` says what a place inside an
            epoch depends on.

    Attributes:
        epoch, step: finished epochs, and steps made in the next one.
        iteration: steps made in all.
        psnr, loss: of the last validation (dB, training loss function); best_psnr, best_loss of the
            best.
        lr: of the optimizer. Adam moves every weight by about lr a step. The last layer sums 27 of
            them for each of its channels, all of one sign at first, and its output moves by
            hundreds of lr. So the last layer has a share of lr.
        multiple: see `patch_multiple`.
        tally: on the device, of this epoch: sum of the finite losses, and how many were not finite.
        history: one dict an epoch.
        counted_from: row of the history from which on the best is looked for (see `count_anew`).
        changes: sentences on what changed when the run went on.
    """

    def __init__(self, config: TrainingConfig, net: Network, device: torch.device, total: int = 1,
                 facts: Mapping[str, Any] | None = None) -> None:
        self.config, self.net, self.device, self.total = config, net.to(device), device, total
        self.facts, self.multiple = dict(facts or {}), patch_multiple(config, net)
        for part in config.freeze:
            net.get_submodule(part).requires_grad_(False)
        last = {id(p) for p in net.last_layer()} if config.last_lr != 1 else set()
        groups = []
        for of_last, share in ((False, 1.0), (True, config.last_lr)):
            trained = (p for p in net.parameters() if p.requires_grad)
            if params := [p for p in trained if (id(p) in last) == of_last]:
                groups.append({"params": params, "share": share})
        self.optimizer = torch.optim.Adam(groups, lr=config.lr, weight_decay=config.wd,
                                          fused=True if device.type == "cuda" else None)
        self.lr = config.lr
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=0.1, patience=5, min_lr=config.min_lr)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
        self.epoch = self.step = self.iteration = 0
        self.psnr = self.loss = self.best_psnr = self.best_loss = None
        self.tally = torch.zeros(2, dtype=torch.float64, device=device)
        self.history: list[dict[str, Any]] = []
        self.counted_from = 0
        self.changes: list[str] = []

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value * group["share"]

    @property
    def reached(self) -> bool:
        """Whether all requested steps are made; the epoch ends then."""
        return self.iteration >= self.total

    @property
    def finished(self) -> bool:
        """Whether the run is complete; never inside an epoch."""
        return self.step == 0 and (self.reached or self.gave_up)

    @property
    def gave_up(self) -> bool:
        """Whether the validation became no better for `patience` epochs."""
        scores = [self.score(row) for row in self.counted]
        return (
            0 < self.config.patience < len(scores) - scores.index(max(scores)) if scores else False)

    @property
    def counted(self) -> list[dict[str, Any]]:
        """The rows of the history that compare with those to come."""
        return self.history[self.counted_from:]

    def count_anew(self, change: str) -> None:
        """Forget the best, which was measured in another way; `change` is a sentence on that."""
        if self.counted:
            change += "; the best so far does not compare with what follows, and counts anew"
            self.counted_from = len(self.history)
        self.best_psnr = self.best_loss = None
        self.plateau.best, self.plateau.num_bad_epochs = math.inf, 0
        self.changes.append(change)

    def score(self, row: Mapping[str, float]) -> float:
        """Score of a validation `row`, higher is better: by the loss in the released recipe, by the
        PSNR in others."""
        return -row["val_loss"] if self.config.recipe == "released" else row["psnr"]

    def add(self, row: dict[str, Any]) -> bool:
        """Note the validation of a whole epoch; returns whether it is the best."""
        best = {"val_loss": self.best_loss, "psnr": self.best_psnr}
        better = None in best.values() or self.score(row) > self.score(best)
        self.psnr, self.loss = row["psnr"], row["val_loss"]
        if better:
            self.best_psnr, self.best_loss = self.psnr, self.loss
        self.epoch, self.step = row["epoch"], 0
        self.tally.zero_()
        self.history.append(row)
        return better

    def is_finite(self) -> bool:
        return all(bool(torch.isfinite(p).all()) for p in self.net.parameters())

    def save(self, path: Path) -> None:
        """Write a checkpoint. Raises UserError if it cannot be written."""
        config = asdict(self.config)
        scales = list(config["scales"])
        # the place and the origin of a run do not change what it computes
        here = {"resume": None, "run_dir": None}
        # the best that does not compare is kept beside
        first_of_others = (path.name == "best.pth" and self.counted_from > 0
                           and len(self.counted) == 1)
        save_checkpoint(path,
                        {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(),
                         "scheduler": self.plateau.state_dict(), "scaler": self.scaler.state_dict(),
                         "epoch": self.epoch, "step": self.step, "iteration": self.iteration,
                         "psnr": self.psnr, "loss": self.loss, "best_psnr": self.best_psnr,
                         "best_loss": self.best_loss, "tally": self.tally, "history": self.history,
                         "counted_from": self.counted_from, "changes": self.changes,
                         **{name: config[name]
                            for name in ("arch", "degradation", "noise", "start", "recipe",
                                         "seed")}, **self.net.options,
                         "scale": scales[0] if len(scales) == 1 else scales,
                         "normalisation": "minmax", **self.facts, "config": config | here},
                        keep=path.name == "last.pth" or first_of_others)

    def resume(self, path: str | Path) -> None:
        """Load all but the weights, which the network has; of a released checkpoint what it holds.
        Raises UserError: the optimizer's state is missing or of another network, or the place
        inside an epoch is of another run."""
        saved = load_checkpoint(path, self.device)
        try:
            self._load(saved)
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            raise UserError(f"{path} cannot be resumed: its optimizer or position is missing or of "
                            "another network; take its weights alone with --init.") from error
        if self.step and saved.get("position") != self.facts.get("position"):
            raise UserError(f"{path} was saved inside an epoch, with {saved.get('position')}, and "
                            f"this run has {self.facts.get('position')}; give the same, or resume "
                            "a checkpoint made at the end of an epoch.")
        if "config" in saved and self.config.lr != saved["config"]["lr"]:
            self.lr = self.config.lr
        self.plateau.min_lrs = [self.config.min_lr] * len(self.plateau.min_lrs)

    def _load(self, saved: Mapping[str, Any]) -> None:
        # Of this machine and run, not of those that saved it. They say where Adam counts its steps,
        # before it loads the count.
        here = [{name: group[name] for name in ("fused", "capturable", "share")}
                for group in self.optimizer.param_groups]
        groups = [group | own
                  for group, own in zip(saved["optimizer"]["param_groups"], here, strict=True)]
        self.optimizer.load_state_dict({**saved["optimizer"], "param_groups": groups})
        for weight, kept in self.optimizer.state.items():
            if any(torch.is_tensor(moment) and moment.ndim and moment.shape != weight.shape
                   for moment in kept.values()):
                raise ValueError("a moment of another shape than its weight")
        for part, name in ((self.plateau, "scheduler"), (self.scaler, "scaler")):
            if saved.get(name):
                part.load_state_dict(saved[name])
        self.epoch, self.iteration = int(saved["epoch"]), int(saved["iteration"])
        # older checkpoints call it "batch"
        self.step = int(saved.get("step", saved.get("batch", 0)))
        self.psnr, self.loss = (
            None if saved.get(name) is None else float(saved[name]) for name in ("psnr", "loss"))
        self.best_psnr = saved.get("best_psnr", self.psnr)
        self.history = list(saved.get("history", []))
        self.counted_from = int(saved.get("counted_from", 0))
        self.changes = [str(text) for text in saved.get("changes", [])]
        self.best_loss = saved.get("best_loss",
                                   min((row["val_loss"] for row in self.history),
                                       default=self.loss))
        if "tally" in saved:
            self.tally.copy_(saved["tally"])
