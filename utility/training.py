"""Training: from a configuration to a run folder with checkpoints, read top to bottom in the order in which it runs.

    config = configure({"data": "data/lmdb/sample.lmdb", "recipe": "fast", "iterations": 300})
    result = train(config)                                # result.best is the checkpoint to test

Every random draw is keyed: weights by the seed, the order of an epoch by (seed, epoch), an augmentation by (seed, epoch,
patch), a random scale by (seed, iteration). With the state saved whole, a run that is resumed from any of its checkpoints,
one made inside an epoch too, gives the numbers of a run that was never interrupted: on a processor, with the same number of
threads, to the last bit. On a GPU some kernels add in an order of their own (the gradient of the upsampling, and convolutions
among which cuDNN chooses by trying), so that there two runs draw the same and agree but for rounding.
"""
from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm

from models import QRNN3D, initialise_fast
from utility.augment import MODES
from utility.checkpoints import build_network, describe_checkpoint, load_checkpoint, load_weights, save_checkpoint
from utility.degradation import crop_to_multiple, degrade, downsample
from utility.devices import AMP, choose_device, device_name
from utility.errors import UserError
from utility.figures import composite
from utility.files import shown
from utility.indexes import PSNR_CAP
from utility.lmdb_dataset import LMDBDataset
from utility.loader import DeviceBatches, stopped_at_the_end, training_loader, validation_loader
from utility.runs import Board, RunFolder, new_run_folder

# What a recipe sets where the configuration does not.
RECIPES: dict[str, dict[str, Any]] = {
    "released": {"batch": 16, "lr": 1e-4, "min_lr": 5e-5, "last_lr": 1.0, "warmup": 0},
    "fast": {"batch": 4, "lr": 1e-3, "min_lr": 0.0, "last_lr": 0.005, "warmup": 30},
}
LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss}


@dataclass
class TrainingConfig:
    """The whole configuration of a run. What is None is set by the recipe, or by the machine."""

    # the network
    arch: str = "biqrnn_16_5"
    long_skip: bool = False                 # alternating networks add their input twice, as the released code does
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
    info = describe_checkpoint(checkpoint, source, given.get("arch"), given.get("long_skip"))
    base: dict[str, Any] = {"arch": info.arch, "long_skip": info.long_skip}
    if info.scales and info.degradation:
        base |= {"scales": info.scales, "degradation": info.degradation}
    if given.get("resume"):
        known = {field.name for field in fields(TrainingConfig)}
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


@dataclass
class Plan:
    """A configuration that was checked against the machine and the data; see `prepare`."""

    config: TrainingConfig
    device: torch.device
    training: Sequence[np.ndarray]
    validation: Sequence[np.ndarray]
    shape: tuple[int, int, int]        # (B, h, w) of a patch as it is used
    meta: Mapping[str, Any]            # of the database
    net: QRNN3D
    batch: int
    notes: list[str]

    @property
    def multiple(self) -> int:
        """Patches are cropped to multiples of this."""
        return math.lcm(self.net.multiple, *self.config.scales)

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return len(self.training) // self.batch

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.config.iterations or self.config.epochs * self.steps

    def describe(self) -> list[str]:
        """What will run, in lines."""
        c = self.config
        parameters = sum(p.numel() for p in self.net.parameters())
        scales = ", ".join(f"x{s}" for s in c.scales) + (f" ({c.scale_order})" if len(c.scales) > 1 else "")
        rate = (f"{c.warmup} steps of warm-up to lr {c.lr:g}, a cosine to {c.min_lr:g}" if c.recipe == "fast" else
                f"lr {c.lr:g}, divided by 10 on a plateau of the validation loss, down to {c.min_lr:g}")
        epochs = math.ceil(self.total / self.steps)
        how = [f"pooling {c.pooling}", *([f"amp {c.amp}"] if c.amp != "off" else []), *(["TF32"] if c.tf32 else []),
               *(["compiled"] if c.compile else []), *(["activations recomputed"] if c.checkpoint_activations else [])]
        start = f"resumed from {c.resume}" if c.resume else f"weights from {c.init}" if c.init else f"seed {c.seed}"
        return [
            f"network   {c.arch}, {parameters:,} parameters, {start}",
            f"device    {self.device} ({device_name(self.device)}), {', '.join(how)}",
            f"data      {c.data}: {len(self.training):,} patches of {'x'.join(map(str, self.shape))} for training, "
            f"{len(self.validation):,} for validation",
            f"problem   {scales}, degradation {c.degradation}, augmentation {c.augment}",
            f"recipe    {c.recipe}: {c.loss} loss, Adam, batch {self.batch}, {rate}"
            + (f", {c.last_lr:g} of it for the reconstructor" if c.last_lr != 1 else "")
            + (f", weight decay {c.wd:g}" if c.wd else "") + (f", gradient norm at most {c.clip:g}" if c.clip else ""),
            f"length    {self.total:,} iterations, {epochs:,} epochs of {self.steps:,} steps",
            *(f"note      {note}" for note in self.notes),
        ]


def prepare(config: TrainingConfig) -> Plan:
    """Choose the device, open the data, build the network; writes nothing.

    Raises:
        UserError: no such device, database, network or checkpoint, or they do not fit one another.
    """
    notes: list[str] = []
    device = _device(config, notes)
    net = _network(config, notes)
    whole, training, validation = (LMDBDataset(config.data, split) for split in (None, "train", "validation"))
    if not whole.meta["validation"]:
        notes.append(f"the database has no validation patches: the last {len(validation)} of its {len(whole)} are held out")
    if not len(training) or not len(validation):
        raise UserError(f"{config.data} holds {len(whole)} patches, too few to train on some and validate on others; build a "
                        "larger one with utility/lmdb_data.py.")
    if config.val_batches:
        validation = Subset(validation, range(min(len(validation), config.val_batches * config.batch)))
    batch = min(config.batch, len(training))
    if batch < config.batch:
        notes.append(f"the batch is {batch} patches instead of {config.batch}: there are no more for training")

    bands, height, width = whole.shape
    plan = Plan(config, device, training, validation, whole.shape, whole.meta, net, batch, notes)
    m = plan.multiple
    plan.shape = (bands, height - height % m, width - width % m)
    if config.amp == "bf16" and device.type == "cpu" and bands == 2:
        # torch 2.13 on processors with bf16 instructions: the weight gradient of exactly 2 bands is uninitialised memory.
        raise UserError(f"{config.data} holds patches of 2 bands, which torch cannot train on in bf16 on a processor; leave "
                        "--amp out.")
    if 0 in plan.shape:
        raise UserError(f"{config.data} holds patches of {height}x{width} pixels, and {config.arch} at scale "
                        f"{', '.join(map(str, config.scales))} needs at least {m}x{m}; build one with larger patches.")
    if plan.shape != whole.shape:
        notes.append(f"patches of {height}x{width} are cropped to {plan.shape[1]}x{plan.shape[2]}, multiples of {m}")
    return plan


def _device(config: TrainingConfig, notes: list[str]) -> torch.device:
    device = choose_device(config.cuda, config.gpu_ids, config.amp, config.pooling)
    if device.type == "cuda" and len(config.gpu_ids or ()) > 1:
        notes.append(f"a run uses one GPU: {device} alone of the {len(config.gpu_ids)} that were named")
    return device


def _network(config: TrainingConfig, notes: list[str]) -> QRNN3D:
    """On the CPU, with its first weights: of the seed, or of the checkpoint to start from."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        net = build_network(config.arch, config.long_skip, pooling=config.pooling,
                            checkpoint=config.checkpoint_activations)
    if source := config.resume or config.init:
        checkpoint = load_checkpoint(source)
        load_weights(net, checkpoint, source)
        if not describe_checkpoint(checkpoint, source, config.arch, config.long_skip or None).long_skip_known:
            notes.append(f"{source} does not say whether {config.arch} adds its input twice; once is taken, and --long-skip is "
                         "for released checkpoints")
    elif config.recipe == "fast":
        initialise_fast(net, torch.Generator().manual_seed(config.seed))
    return net


class State:
    """Everything a training needs to go on; saved and loaded whole.

    Attributes:
        epoch, batch: finished epochs, and steps made in the next one.
        iteration: steps made in all.
        psnr, loss: of the last validation (dB, training loss function); best_psnr of the best.
        lr: of the optimizer. Adam moves every weight by about lr a step, and the reconstructor sums 27 of them for each of
            its channels, all of one sign at first: its output moves by hundreds of lr, so it has a share of lr of its own.
        tally: on the device, of this epoch: sum of the finite losses, and how many were not finite.
        history: one dict an epoch.
    """

    def __init__(self, plan: Plan) -> None:
        config = plan.config
        self.net = plan.net.to(plan.device)
        weights, last = list(self.net.parameters()), len(list(self.net.reconstructor.parameters()))
        groups = [{"params": weights, "share": 1.0}]
        if config.last_lr != 1:
            groups = [{"params": weights[:-last], "share": 1.0}, {"params": weights[-last:], "share": config.last_lr}]
        self.optimizer = torch.optim.Adam(groups, lr=config.lr, weight_decay=config.wd,
                                          fused=True if plan.device.type == "cuda" else None)
        self.lr = config.lr
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, factor=0.1, patience=5,
                                                                  min_lr=config.min_lr)
        self.scaler = torch.amp.GradScaler(plan.device.type, enabled=config.amp == "fp16")
        self.epoch = self.batch = self.iteration = 0
        self.psnr = self.loss = self.best_psnr = None
        self.tally = torch.zeros(2, dtype=torch.float64, device=plan.device)
        self.history: list[dict[str, Any]] = []

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value * group["share"]

    def is_finite(self) -> bool:
        return all(bool(torch.isfinite(p).all()) for p in self.net.parameters())

    def state_dict(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(),
            "scheduler": self.plateau.state_dict(), "scaler": self.scaler.state_dict(),
            "epoch": self.epoch, "batch": self.batch, "iteration": self.iteration, "psnr": self.psnr, "loss": self.loss,
            "best_psnr": self.best_psnr, "tally": self.tally, "history": self.history,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Everything but the weights, which the network has already. Of a released checkpoint, what it has.

        Raises:
            ValueError, KeyError: the optimizer's state is of another network.
        """
        here = [{name: group[name] for name in ("fused", "share")} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(saved["optimizer"])
        for group, values in zip(self.optimizer.param_groups, here, strict=True):
            group |= values  # of this machine and run, not of those that saved it
        for part, name in ((self.plateau, "scheduler"), (self.scaler, "scaler")):
            if saved.get(name):
                part.load_state_dict(saved[name])
        self.epoch, self.iteration = int(saved["epoch"]), int(saved["iteration"])
        self.batch = int(saved.get("batch", 0))
        self.psnr, self.loss = saved.get("psnr"), saved.get("loss")
        self.best_psnr = saved.get("best_psnr", self.psnr)
        self.history = list(saved.get("history", []))
        if "tally" in saved:
            self.tally.copy_(saved["tally"])


@dataclass(frozen=True)
class Result:
    """What a training leaves: checkpoints that exist, and the last validation."""

    run: Path
    best: Path | None
    last: Path | None
    iteration: int
    psnr: float | None                 # dB
    interpolation_psnr: float | None
    interrupted: bool


def train(config: TrainingConfig, plan: Plan | None = None) -> Result:
    """Train as `config` says (`plan` is `prepare(config)`, where that was done already).

    Ctrl-C, or SIGTERM, lets the step end and saves the state; a second one stops at once.

    Raises:
        UserError: bad input as in `prepare`, a run folder that holds another run, a network that cannot be compiled, a loss
            that is no longer finite, a GPU without enough memory, a full disk.
    """
    plan = plan or prepare(config)
    if plan.device.type == "cuda":
        torch.cuda.set_device(plan.device)
    state = State(plan)
    if config.resume:
        _resume(state, plan)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    torch.backends.cudnn.benchmark = True  # every batch has one shape

    path = Path(config.run_dir or new_run_folder(config.prefix or config.arch))
    own = config.resume is not None and path.resolve() == Path(config.resume).resolve().parent
    run = RunFolder(path, own, config.quiet)
    run.write_origin(asdict(config) | {"run_dir": str(run.path)}, plan.device)
    for line in plan.describe():
        run.say(line)
    run.say(f"run       {shown(run.path)}")
    board = Board(run.path, state.iteration or None) if config.tensorboard else None
    stop = Interruption()
    try:
        with stop:
            _run_epochs(state, plan, run, board, stop)
    except KeyboardInterrupt:
        stop.requested = True
        run.say("stopped at once; what follows the last checkpoint is lost")
    except torch.OutOfMemoryError as error:
        raise UserError(f"The GPU has too little memory for a batch of {plan.batch} patches of "
                        f"{'x'.join(map(str, plan.shape))}; give a smaller -b, or --checkpoint-activations.") from error
    except RuntimeError as error:
        if config.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = str(error).strip().splitlines() or [""]
            raise UserError(f"{config.arch} cannot be compiled here ({type(error).__name__}: {reason[0].rstrip('.')}); leave "
                            "--compile out, or install a C++ compiler.") from error
        raise
    finally:
        if board:
            board.close()
        last, best = (path if path.exists() else None for path in (run.path / "last.pth", run.path / "best.pth"))
        for line in _what_is_next(run, best, last, stop.requested):
            with suppress(UserError):  # a log that cannot be written must not hide what ended the run
                run.say(line, loud=True)
        run.close()
    interpolation = state.history[-1]["interpolation_psnr"] if state.history else None
    return Result(run.path, best, last, state.iteration, state.psnr, interpolation, stop.requested)


def _resume(state: State, plan: Plan) -> None:
    config, path = plan.config, plan.config.resume
    saved = load_checkpoint(path, plan.device)
    try:
        state.load_state_dict(saved)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be resumed: its optimizer or position is missing or of another network; take "
                        "its weights alone with --init.") from error
    position = saved.get("position")
    if state.batch and position != _position(plan):
        raise UserError(f"{path} was saved inside an epoch, with {position}, and this run has {_position(plan)}; give "
                        "the same, or resume a checkpoint made at the end of an epoch.")
    if _finished(state, config):
        raise UserError(f"{path} has made {state.iteration} iterations ({state.epoch} epochs), all that were asked for; "
                        f"give a larger {'--iterations' if config.iterations else '-n'}.")
    if "config" in saved and config.lr != saved["config"]["lr"]:
        state.lr = config.lr
    state.plateau.min_lrs = [config.min_lr] * len(state.plateau.min_lrs)


def _position(plan: Plan) -> dict[str, int]:
    """What a place inside an epoch depends on."""
    return {"seed": plan.config.seed, "batch": plan.batch, "training patches": len(plan.training)}


def _finished(state: State, config: TrainingConfig) -> bool:
    if config.iterations:
        return _reached(state, config) and state.batch == 0
    return state.epoch >= config.epochs


def _reached(state: State, config: TrainingConfig) -> bool:
    """Whether the steps asked for are made; the epoch ends there."""
    return config.iterations is not None and state.iteration >= config.iterations


def _run_epochs(state: State, plan: Plan, run: RunFolder, board: Board | None, stop: Interruption) -> None:
    config, gpu = plan.config, plan.device.type == "cuda"
    threads = config.threads
    if threads is None:  # a step on a processor takes a thousand times as long as reading its patches
        threads = min(4, os.cpu_count() or 1) if gpu else 0
    loader = training_loader(plan.training, plan.batch, config.seed, config.augment, threads, pin=gpu)
    validation = validation_loader(plan.validation, plan.batch, min(threads, 2), pin=gpu)
    # Without gradients the network runs in blocks of rows, which a compiled one cannot: it is for the steps alone.
    net = torch.compile(state.net) if config.compile else state.net

    with stopped_at_the_end(loader), stopped_at_the_end(validation):
        while not _finished(state, config):
            speed = _train_epoch(state, plan, net, loader, run, board, stop)
            if not stop.requested:
                row, picture = validate(state.net, validation, plan, stop)
            if stop.requested:
                if not state.is_finite():
                    raise _diverged(state, run)
                _save(state, plan, run.path / "last.pth")
                return
            row = {"epoch": state.epoch + 1, "iteration": state.iteration, "loss": _checked_loss(state, plan, run), **row,
                   "lr": state.lr}
            if not math.isfinite(row["val_loss"]):
                raise _diverged(state, run)
            if config.recipe == "released":
                state.plateau.step(row["val_loss"])
            better = state.best_psnr is None or row["psnr"] > state.best_psnr or not (run.path / "best.pth").exists()
            state.epoch, state.batch = state.epoch + 1, 0
            state.tally.zero_()
            state.psnr, state.loss = row["psnr"], row["val_loss"]
            state.best_psnr = row["psnr"] if better else state.best_psnr
            state.history.append(row)

            kept = [f"epoch_{state.epoch:03d}"] if state.epoch % config.record_interval == 0 else []
            for name in [*kept, *(["best"] if better else []), "last"]:  # last last: what it says of the best is then there
                _save(state, plan, run.path / f"{name}.pth")
            run.write_history(state.history, speed, config.loss)
            run.say(_epoch_line(row, speed, config))
            if board:
                for name, value in {**row, **speed}.items():
                    if name not in ("epoch", "iteration"):
                        board.add_scalar(f"epoch/{name}", value, state.iteration)
                board.add_image("truth, interpolation, network", picture, state.iteration)
            if stop.requested:
                return


def _train_epoch(state: State, plan: Plan, net: nn.Module, loader: Any, run: RunFolder, board: Board | None,
                 stop: Interruption) -> dict[str, float]:
    """The steps that are left of an epoch; returns patches/s, the share of time spent waiting for data, and seconds."""
    config = plan.config
    every = 25 if plan.device.type == "cuda" else 1  # reading the loss makes a GPU wait for the host
    gain = f", gain {state.history[-1]['gain']:+.2f} dB" if state.history else ""
    first = state.batch
    loader.batch_sampler.set_position(state.epoch, first)
    batches = DeviceBatches(loader, plan.device)
    begin = time.perf_counter()
    bar = tqdm(total=plan.steps, initial=first, desc=f"epoch {state.epoch + 1}", unit="step", leave=False,
               disable=True if config.quiet else None)
    with bar:
        if first < plan.steps and not _reached(state, config):
            for gt in batches:
                _step(state, plan, net, gt)
                bar.update()
                if state.batch % every == 0:
                    loss = _checked_loss(state, plan, run)
                    rate = (state.batch - first) * plan.batch / (time.perf_counter() - begin)
                    bar.set_postfix_str(f"loss {loss:.3g}, lr {state.lr:.2g}{gain}, {rate:.1f} patches/s", refresh=False)
                    if board:
                        board.add_scalar("step/loss", loss, state.iteration)
                        board.add_scalar("step/lr", state.lr, state.iteration)
                if stop.requested or _reached(state, config):
                    break
        _checked_loss(state, plan, run)
        waited, seconds = batches.waited(), time.perf_counter() - begin
    rate = (state.batch - first) * plan.batch / seconds
    return {"patches_per_s": rate, "data_wait": waited / seconds, "seconds": seconds}


def _step(state: State, plan: Plan, net: nn.Module, gt: Tensor) -> None:
    """One step on (N, B, h, w); nothing here makes a GPU wait for the host."""
    config = plan.config
    gt = crop_to_multiple(gt, plan.multiple)
    if config.recipe == "fast":
        state.lr = _cosine(config, state.iteration, plan.total)
    x = degrade(gt, _scale(config, state.iteration), config.degradation)
    with torch.autocast(plan.device.type, AMP[config.amp], enabled=config.amp != "off"):
        out = net(x[:, None])
    loss = LOSSES[config.loss](out[:, 0].float(), gt)
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss).backward()
    if config.clip:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.net.parameters(), config.clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    loss = loss.detach()
    state.tally += torch.stack([torch.where(loss.isfinite(), loss, 0), ~loss.isfinite()])
    state.batch += 1
    state.iteration += 1


def _cosine(config: TrainingConfig, iteration: int, total: int) -> float:
    """Warm-up to lr, then half a cosine to min_lr at the last step."""
    warm = min(1.0, (iteration + 1) / max(1, config.warmup))
    return warm * (config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, iteration / total))))


def _scale(config: TrainingConfig, iteration: int) -> int:
    if config.scale_order == "random":
        return config.scales[np.random.default_rng((config.seed, iteration)).integers(len(config.scales))]
    return config.scales[iteration % len(config.scales)]


def _checked_loss(state: State, plan: Plan, run: RunFolder) -> float:
    """The mean loss of this epoch so far; makes a GPU wait for the host.

    A GradScaler leaves out the steps that overflow, which are few; any other loss that is not finite is the end.
    """
    total, lost = state.tally.tolist()
    if lost and (plan.config.amp != "fp16" or lost > max(20, state.batch / 2)):
        raise _diverged(state, run)
    return total / max(1, state.batch - lost)


def _diverged(state: State, run: RunFolder) -> UserError:
    last = run.path / "last.pth"
    kept = f"{shown(last)} holds the state before that" if last.exists() else "nothing was saved yet"
    return UserError(f"The loss became NaN or infinite by iteration {state.iteration} (epoch {state.epoch + 1}), and "
                     f"training stopped; {kept}; try a lower --lr, --clip 1, or --amp off.")


@torch.no_grad()
def validate(net: QRNN3D, loader: Iterable[Tensor], plan: Plan,
             stop: Interruption | None = None) -> tuple[dict[str, float], np.ndarray | None]:
    """Mean over patches and scales of loss and PSNR, of the network and of the interpolation it starts from.

    Returns:
        val_loss, psnr, interpolation_psnr, gain (dB), and with several scales gain_x2 and so on; and the first patch as
        an image (h, 3w, 3): truth, interpolation, network.
    """
    config = plan.config
    sums = torch.zeros(len(config.scales), 3, dtype=torch.float64, device=plan.device)
    picture, count = None, 0
    for gt in DeviceBatches(loader, plan.device):
        gt = crop_to_multiple(gt, plan.multiple)
        for k, scale in enumerate(config.scales):
            x = degrade(gt, scale, config.degradation)
            with torch.autocast(plan.device.type, AMP[config.amp], enabled=config.amp != "off"):
                out = net(x[:, None])[:, 0]
            out = out.float()
            loss = LOSSES[config.loss](out, gt).double() * len(gt)
            sums[k] += torch.stack([loss, psnr(out, gt).sum(), psnr(x, gt).sum()])
            if picture is None:
                picture = _picture(gt[0], x[0], out[0], plan.meta.get("wavelengths"))
        count += len(gt)
        if stop and stop.requested:
            break
    mean = (sums / count).tolist()
    loss, network, interpolation = (sum(column) / len(mean) for column in zip(*mean, strict=True))
    row = {"val_loss": loss, "psnr": network, "interpolation_psnr": interpolation, "gain": network - interpolation}
    if len(mean) > 1:
        row |= {f"gain_x{scale}": m[1] - m[2] for scale, m in zip(config.scales, mean, strict=True)}
    return row, picture


def psnr(x: Tensor, gt: Tensor) -> Tensor:
    """PSNR of each image in dB, (N, B, h, w) -> (N,): as `indexes.evaluate` has it, mean over bands, each capped."""
    mse = (x.double() - gt.double()).square().mean(dim=(-2, -1))
    return (-10 * mse.log10()).clamp(max=PSNR_CAP).mean(dim=-1)


def _picture(gt: Tensor, x: Tensor, out: Tensor, wavelengths: Sequence[float] | None) -> np.ndarray:
    truth, *others = (cube.float().cpu().numpy() for cube in (gt, x, out))
    return np.concatenate([composite(cube, wavelengths, reference=truth) for cube in (truth, *others)], axis=1)


def _save(state: State, plan: Plan, path: Path) -> None:
    config = asdict(plan.config)
    scales = list(config["scales"])
    here = {"resume": None, "run_dir": None}  # where a run goes on, and from what, is no part of what it computes
    save_checkpoint(path, {
        **state.state_dict(),
        **{name: config[name] for name in ("arch", "long_skip", "degradation", "recipe", "seed")},
        "scale": scales[0] if len(scales) == 1 else scales, "bands": plan.shape[0], "normalisation": "minmax",
        "position": _position(plan), "config": config | here,
    })


def _epoch_line(row: Mapping[str, Any], speed: Mapping[str, float], config: TrainingConfig) -> str:
    scales = "".join(f", x{s} {row[f'gain_x{s}']:+.2f}" for s in config.scales if f"gain_x{s}" in row)
    return (f"epoch {row['epoch']:>3}  iteration {row['iteration']:>6}  loss {row['loss']:.3e}  "
            f"PSNR {row['psnr']:.3f} dB, interpolation {row['interpolation_psnr']:.3f}, gain {row['gain']:+.3f}{scales}  "
            f"lr {row['lr']:.1e}  {speed['patches_per_s']:.1f} patches/s  data wait {100 * speed['data_wait']:.1f} %")


def _what_is_next(run: RunFolder, best: Path | None, last: Path | None, interrupted: bool) -> list[str]:
    if not (best or last):
        return [f"no checkpoint was saved in {shown(run.path)}"]
    return [
        *([f"go on with:  python hsi_sr.py -r -rp {shown(last)}"] if interrupted and last else []),
        *([] if best else ["no epoch has finished, so there is no best.pth; last.pth holds the state as it was"]),
        f"test with:   python hsi_test.py -r -rp {shown(best or last)}",
    ]


class Interruption:
    """Makes the first Ctrl-C (or SIGTERM) a wish that the loop sees between two steps; a second one stops at once.

    A step that is cut in two leaves weights and optimizer that belong to no iteration.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        os.write(2, b"\ninterrupted: this step ends and the state is saved; once more stops at once\n")
