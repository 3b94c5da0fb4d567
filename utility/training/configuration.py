"""The configuration of a training: fields, recipes, what is kept of an earlier checkpoint."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from utility.checkpoints import describe_checkpoint, load_checkpoint
from utility.datasets.augment import MODES
from utility.degradation import Degradation
from utility.names import ANY, DEFAULT_KIND, SAFE_MTF, STARTS
from utility.system.devices import AMP
from utility.system.errors import UserError
from utility.system.files import default_path
from utility.training.losses import LOSSES
from utility.training.recipes import RECIPES

CHOICES: dict[str, Any] = {"recipe": RECIPES, "loss": LOSSES, "amp": AMP, "augment": MODES,
                           "start": (*STARTS, None), "scale_order": ("turn", "random")}
"""The values of a field that has few."""

LOWEST: dict[tuple[float, bool], tuple[str, ...]] = {
    (1, False): ("batch", "epochs", "iterations", "val_batches", "record_interval", "epoch_steps",
                 "crop", "band_window", "accumulate", "band_spacing"),
    (0, False): ("threads", "warmup", "seed", "min_lr", "wd", "clip", "noise", "patience"),
    (0, True): ("lr", "last_lr", "weights", "save_minutes", "minutes"),
    (-math.inf, True): ("snr",)}
"""{(lowest value, whether a field must be above it): fields}."""


@dataclass
class TrainingConfig:
    """The whole configuration of a run. The recipe or the machine sets the fields that are None."""

    # the network
    arch: str = "biqrnn_16_5"
    options: dict[str, Any] = field(default_factory=dict)  # of the network; see `Network.options`
    freeze: tuple[str, ...] = ()            # top-level parts of the network that keep their weights
    resume: str | None = None  # checkpoint to go on from: weights, optimizer, schedule, position
    init: str | None = None                 # checkpoint of which the weights alone are taken
    # the problem
    scales: tuple[int, ...] = (4,)
    scale_order: str = "turn"               # with several scales: in turn, or at random
    degradation: str = DEFAULT_KIND
    noise: float = 0.0                      # standard deviation, of the low-resolution cube
    # share of the patches whose MTF the network is not told; but for `mtf`, 0 or 1
    unknown: float = 0.0
    snr: float | None = None                # with `mtf`: dB of the noisiest patches; see `draws`
    shade: float = 0.0  # share of the patches that have a part in deep shade; see `draws.shaded`
    start: str | None = None  # the image that the network gets and adds its residual to
    # the data
    data: tuple[str, ...] = field(
        default_factory=lambda: (str(default_path("data/lmdb/sample.lmdb")),))
    # share of the steps that each database gets; None: by its patches
    weights: tuple[float, ...] | None = None
    augment: str = "spatial"
    crop: int | None = None  # side of the square of the patches that the network sees; None: all
    band_window: int | None = None  # neighbouring bands of a patch that are taken; None: all
    band_spacing: int = 1                   # of those, every k-th: k is drawn from 1 to this
    val_batches: int | None = None          # validate on this many batches of each database at most
    threads: int | None = None              # loader processes; None: 0 on a CPU, else up to 4
    # the recipe
    recipe: str = "released"
    batch: int | None = None                # patches of a step, in all processes together
    accumulate: int = 1  # a process computes its patches of a step in this many pieces: less memory
    epochs: int | None = None
    iterations: int | None = None           # steps; takes the place of `epochs`
    # an epoch is as many passes over the data as have this many steps
    epoch_steps: int | None = None
    # epochs without a better validation after which the run ends; 0: never
    patience: int | None = None
    minutes: float | None = None  # wall time after which the run ends, as if all steps were made
    lr: float | None = None
    min_lr: float | None = None
    last_lr: float | None = None            # of the last layer, as a share of lr (see `State`)
    warmup: int | None = None               # steps (not in the released recipe)
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
    deterministic: bool = False
    compile: bool = False
    checkpoint_activations: bool = False
    # the run folder
    prefix: str | None = None
    run_dir: str | None = None              # None: runs/<prefix or arch>_<time>
    record_interval: int = 5                # epochs between kept checkpoints
    save_minutes: float = 10.0              # last.pth is also saved inside an epoch, this often
    tensorboard: bool = True

    def __post_init__(self) -> None:
        """Fill in the fields of the recipe. Raises UserError: a value that no run can have."""
        self.data = (self.data,) if isinstance(self.data, str) else self.data
        for name in ("scales", "data", "freeze", "weights", "gpu_ids"):
            if (value := getattr(self, name)) is not None:
                setattr(self, name, tuple(value))
        self._check_choices()
        for name, value in RECIPES[self.recipe].items():
            counted = name == "iterations" and self.epochs is not None
            if getattr(self, name) is None and not counted:
                setattr(self, name, value)
        self._check_numbers()
        self._check_problem()
        if not self.data or len(set(self.data)) < len(self.data):
            raise UserError(f"The databases are {', '.join(self.data) or 'none'}; give one or "
                            "several different ones.")
        if self.weights and len(self.weights) != len(self.data):
            raise UserError(f"There are {len(self.weights)} weights for {len(self.data)} "
                            "databases; give one for each.")
        if self.resume and self.init:
            raise UserError("Both --resume and --init were given; the first goes on with a run, "
                            "the second starts one from another's weights: choose.")

    def _check_choices(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; choose one of "
                                f"{', '.join(filter(None, choices))}.")

    def _check_numbers(self) -> None:
        """That every number, and each of several, is as large as it has to be, and finite."""
        for (low, above), names in LOWEST.items():
            for name in names:
                value = getattr(self, name)
                numbers = value if isinstance(value, tuple) else [] if value is None else [value]
                for number in numbers:
                    large = number > low if above else number >= low
                    if not (large and number < math.inf):
                        raise UserError(f"{name} is {number}; give a number "
                                        f"{'above' if above else 'of at least'} {low}.")
        if (self.threads or 0) > 1024:
            raise UserError(f"threads is {self.threads}; give 1024 loader processes at most.")
        for name in ("unknown", "shade"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise UserError(f"{name} is {value}; give a share of the patches, from 0 to 1.")

    def _check_problem(self) -> None:
        if not self.scales or len(set(self.scales)) < len(self.scales):
            raise UserError(f"The scales are {list(self.scales)}; give one or several different "
                            "ones, such as 2,4,8.")
        if self.degradation != ANY and (self.unknown % 1 or self.snr is not None):
            raise UserError(f"unknown and snr are drawn with --degradation {ANY}, and it is "
                            f"{self.degradation}.")
        name = f"{ANY} {SAFE_MTF}" if self.degradation == ANY else self.degradation
        for scale in self.scales:
            try:
                Degradation.of(scale, name)
            except ValueError as error:
                raise UserError(f"A low-resolution cube cannot be made: {error}.") from error


def configure(given: Mapping[str, Any]) -> TrainingConfig:
    """The configuration of a run, from the given fields.

    A resumed run keeps its own configuration but for what is given, and goes on in its folder if
    the checkpoint is its last one. A run that takes over weights keeps their network and problem
    but for what is given, and its recipe is `finetune` unless another is given. Everything else is
    `TrainingConfig`'s default.

    Raises UserError: a value, or a combination, that cannot be; a checkpoint that cannot be read.
    """
    source = given.get("resume") or given.get("init")
    if not source:
        return TrainingConfig(**given)
    checkpoint = load_checkpoint(source)
    info = describe_checkpoint(checkpoint, source, given.get("arch"), given.get("options"))
    # A checkpoint without a start is of the time when there was one.
    base: dict[str, Any] = {"arch": info.arch, "options": {} if info.unsaid else info.options,
                            "start": checkpoint.get("start", STARTS[0]),
                            "noise": checkpoint.get("noise", 0.0)}
    if info.scales and info.degradation:
        base |= {"scales": info.scales, "degradation": info.degradation}
    if given.get("init"):
        base["recipe"] = "finetune"
    else:
        known = {known.name for known in fields(TrainingConfig)}
        base |= {
            name: value for name, value in checkpoint.get("config", {}).items() if name in known}
        base["init"] = None
        if "epochs" in given:
            base["iterations"] = None  # which would take their place
        if "recipe" in base and given.get("recipe", base["recipe"]) != base["recipe"]:
            raise UserError(f"{source} was trained by the recipe {base['recipe']}, and a resumed "
                            "run keeps its recipe; take its weights alone with --init to begin "
                            "another.")
        folder = Path(source).parent
        if Path(source).name in ("last.pth", "last.prev.pth") and (folder / "config.json").exists():
            # from an earlier checkpoint a new folder, so that nothing is overwritten
            base["run_dir"] = str(folder)
    try:
        return TrainingConfig(**{**base, **given})
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source} has a configuration that cannot be used ({error}); take its "
                        "weights alone with --init.") from error
