"""The configuration of a training: its fields, what a recipe sets, and what a run keeps of the checkpoint it starts from."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from utility.augment import MODES
from utility.checkpoints import describe_checkpoint, load_checkpoint
from utility.degradation import downsample
from utility.devices import AMP
from utility.errors import UserError
from utility.losses import band_loss

# What a recipe sets where the configuration does not.
RECIPES: dict[str, dict[str, Any]] = {
    "released": {"batch": 16, "lr": 1e-4, "min_lr": 5e-5, "last_lr": 1.0, "warmup": 0},
    "fast": {"batch": 4, "lr": 1e-3, "min_lr": 0.0, "last_lr": 0.005, "warmup": 30},
}
LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss, "band": band_loss}


@dataclass
class TrainingConfig:
    """The whole configuration of a run. What is None is set by the recipe, or by the machine."""

    # the network
    arch: str = "biqrnn_16_5"
    options: dict[str, Any] = field(default_factory=dict)  # of the network; see `Network.options`
    resume: str | None = None               # checkpoint to go on from: weights, optimizer, schedule, position
    init: str | None = None                 # checkpoint of which the weights alone are taken
    # the problem
    scales: tuple[int, ...] = (4,)
    scale_order: str = "turn"               # with several scales: in turn, or at random
    degradation: str = "spatial"
    # the data
    data: str = "data/lmdb/sample.lmdb"
    augment: str = "spatial"
    val_batches: int | None = None          # validate on this many batches at most
    threads: int | None = None              # loader processes; None: 0 on a CPU, else up to 4
    # the recipe
    recipe: str = "released"
    batch: int | None = None                # patches
    epochs: int = 50
    iterations: int | None = None           # steps; takes the place of `epochs`
    lr: float | None = None
    min_lr: float | None = None
    last_lr: float | None = None            # of the reconstructor, as a share of lr (see `State`)
    warmup: int | None = None               # steps (fast)
    wd: float = 0.0
    clip: float = 0.0                       # largest norm of the gradient; 0: any
    loss: str = "mse"
    seed: int = 2021
    # how it is computed
    cuda: bool = True                       # where there is a GPU
    gpu_ids: tuple[int, ...] | None = None  # None: GPU 0 if there is one; otherwise they must exist
    pooling: str = "auto"
    amp: str = "off"
    tf32: bool = False
    compile: bool = False
    checkpoint_activations: bool = False
    # the run folder
    prefix: str | None = None
    run_dir: str | None = None              # None: runs/<prefix or arch>_<time>
    record_interval: int = 5                # epochs between kept checkpoints
    tensorboard: bool = True
    quiet: bool = False

    def __post_init__(self) -> None:
        """Set what the recipe sets; refuse values that no run can have (UserError)."""
        for name, choices in (("recipe", RECIPES), ("loss", LOSSES), ("amp", AMP), ("augment", MODES),
                              ("scale_order", ("turn", "random"))):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        for name, value in RECIPES[self.recipe].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.scales = tuple(self.scales)
        self.gpu_ids = None if self.gpu_ids is None else tuple(self.gpu_ids)
        for names, low, above in (
            (("batch", "epochs", "iterations", "val_batches", "record_interval"), 1, False),
            (("threads", "warmup", "seed", "min_lr", "wd", "clip"), 0, False),
            (("lr", "last_lr"), 0, True),
        ):
            for name in names:
                value = getattr(self, name)
                if value is not None and not (low < value < math.inf if above else low <= value < math.inf):
                    raise UserError(f"{name} is {value}; give a number {'above' if above else 'of at least'} {low}.")
        if not self.scales or len(set(self.scales)) < len(self.scales):
            raise UserError(f"The scales are {list(self.scales)}; give one or several different ones, such as 2,4,8.")
        for scale in self.scales:
            try:
                downsample(torch.zeros(1, 24, 24), scale, self.degradation)
            except ValueError as error:
                raise UserError(f"{str(error)[0].upper()}{str(error)[1:].rstrip('.')}.") from error
        if self.resume and self.init:
            raise UserError("Both --resume and --init were given; the first goes on with a run, the second starts one from "
                            "another's weights: choose.")


def configure(given: Mapping[str, Any]) -> TrainingConfig:
    """The configuration of a run from the fields that were given.

    A resumed run keeps its own configuration but for what is given, and goes on in its folder if the checkpoint is its
    last one; a run that takes over weights keeps their network, scale and degradation but for what is given. Everything
    else is `TrainingConfig`'s default.

    Raises:
        UserError: a value, or a combination, that cannot be; a checkpoint that cannot be read.
    """
    source = given.get("resume") or given.get("init")
    if not source:
        return TrainingConfig(**given)
    checkpoint = load_checkpoint(source)
    info = describe_checkpoint(checkpoint, source, given.get("arch"), given.get("options"))
    base: dict[str, Any] = {"arch": info.arch, "options": {} if info.unsaid else info.options}
    if info.scales and info.degradation:
        base |= {"scales": info.scales, "degradation": info.degradation}
    if given.get("resume"):
        known = {known.name for known in fields(TrainingConfig)}
        base |= {name: value for name, value in checkpoint.get("config", {}).items() if name in known}
        base["init"] = None
        if "epochs" in given:
            base["iterations"] = None  # which would take their place
        if "recipe" in base and given.get("recipe", base["recipe"]) != base["recipe"]:
            raise UserError(f"{source} was trained by the recipe {base['recipe']}, and a resumed run keeps its recipe; "
                            "take its weights alone with --init to begin another.")
        folder = Path(source).parent
        if Path(source).name == "last.pth" and (folder / "config.json").exists():
            base["run_dir"] = str(folder)  # from an earlier checkpoint a new folder, so that nothing is overwritten
    return TrainingConfig(**{**base, **given})
