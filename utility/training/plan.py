"""What a training needs before its first step: device, patches, a network that fits them."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from models import Network
from utility.checkpoints import (
    build_network,
    check_problem,
    describe_checkpoint,
    load_checkpoint,
    load_weights,
)
from utility.degradation import dark_note
from utility.lmdb_dataset import LMDBDataset
from utility.names import ANY
from utility.system.devices import choose_device, device_name
from utility.system.distributed import own_gpus, size
from utility.system.errors import UserError
from utility.system.progress import duration
from utility.training import draws
from utility.training.comparable import other_data, other_problem
from utility.training.configuration import TrainingConfig
from utility.training.state import State, patch_multiple

ENOUGH = 1000
"""Steps of the released recipe below which a user is told that they are few."""


@dataclass(frozen=True)
class Source:
    """One database of a training."""

    path: str
    training: Dataset                  # patches (B, h, w)
    validation: Dataset
    shape: tuple[int, int, int]        # (B, h, w) of a patch as it is used
    meta: dict[str, Any]
    fingerprint: dict[str, Any]        # see `LMDBDataset.fingerprint`

    @property
    def name(self) -> str:
        return Path(self.path).stem

    @property
    def side(self) -> int:
        """Pixels of the largest square in a patch."""
        return min(self.shape[1:])


@dataclass(frozen=True)
class Plan:
    """A configuration that was checked against the machine and the data; see `prepare`."""

    config: TrainingConfig
    device: torch.device
    sources: list[Source]
    net: Network
    # scenes, as `lmdb_dataset` records them, and those of the checkpoint to start from
    trained_on: list[dict[str, Any]] | None
    notes: list[str]
    # numbers, databases and configuration of the checkpoint to go on from
    resumed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cards(self) -> list[str]:
        """The dataset cards of the databases, as they record them."""
        return list(dict.fromkeys(
            source.meta["card"] for source in self.sources if source.meta.get("card")))

    @property
    def steps(self) -> int:
        """Steps of an epoch, which is one pass over the data or several."""
        return self.once * math.ceil(self.config.epoch_steps / self.once)

    @property
    def once(self) -> int:
        """Steps of one pass over the data."""
        return sum(math.ceil(len(source.training) / self.config.batch) for source in self.sources)

    @property
    def total(self) -> int:
        """Steps of the whole run: those asked for, or as many passes over the data as were."""
        return self.config.iterations or self.config.epochs * self.steps + self.offset

    @property
    def offset(self) -> int:
        """How many more steps a resumed run has made than its passes have with this batch."""
        saved = self.resumed
        if not saved:
            return 0
        iteration, epoch, step = (
            int(saved.get(name) or 0) for name in ("iteration", "epoch", "step"))
        if saved.get("once"):
            passes = (iteration - saved.get("offset", 0)) / saved["once"]
        elif saved.get("position") == self.position:
            passes = iteration / self.once
        else:  # epochs of a checkpoint that says no more are whole passes
            passes = epoch + step / self.once
        return iteration - round(passes * self.once)

    @property
    def changed(self) -> str | None:
        """A sentence where the run that goes on had other databases, or another problem, so that
        its best does not compare with what follows; None where nothing of it changed, or where its
        checkpoint does not say."""
        fingerprints = {source.path: source.fingerprint for source in self.sources}
        found = (other_data(fingerprints, self.resumed.get("databases")),
                 other_problem(asdict(self.config), self.resumed.get("config", {})))
        return "; ".join(filter(None, found)) or None

    @property
    def position(self) -> dict[str, int]:
        """What a place inside an epoch depends on."""
        return {"seed": self.config.seed, "batch": self.config.batch,
                "training patches": sum(len(source.training) for source in self.sources)}

    def state(self) -> State:
        """The state before the first step, or that of the checkpoint to resume."""
        config = self.config
        facts = {"trained_on": self.trained_on,
                 "bands": self.sources[0].shape[0] if len(self.sources) == 1
                 else [source.shape[0] for source in self.sources], "cards": self.cards,
                 "once": self.once, "offset": self.offset, "position": self.position,
                 "databases": [source.fingerprint for source in self.sources]}
        state = State(config, self.net, self.device, self.total, facts)
        if config.resume:
            state.resume(config.resume)
            if change := self.changed:
                state.count_anew(change)
        return state

    def describe(self) -> list[str]:
        """Lines that describe the run."""
        c = self.config
        parameters = sum(p.numel() for p in self.net.parameters())
        scales = (", ".join(f"x{s}" for s in c.scales)
                  + (f" ({c.scale_order})" if len(c.scales) > 1 else ""))
        rate = (f"lr {c.lr:g}, divided by 10 on a plateau of the validation loss, down to "
                f"{c.min_lr:g}" if c.recipe == "released"
                else f"{c.warmup} steps of warm-up to lr {c.lr:g}, a cosine to {c.min_lr:g}")
        how = [f"pooling {c.pooling}", *([f"amp {c.amp}"] if c.amp != "off" else []),
               *(["TF32"] if c.tf32 else []), *(["compiled"] if c.compile else []),
               *(["activations recomputed"] if c.checkpoint_activations else []),
               *([f"{size()} processes"] if size() > 1 else []),
               *([f"each step in {c.accumulate} pieces"] if c.accumulate > 1 else [])]
        origin = (f"resumed from {c.resume}" if c.resume else f"weights from {c.init}" if c.init
                  else f"seed {c.seed}")
        weights, frozen = (c.weights or [1.0] * len(self.sources),
                           f", frozen: {', '.join(c.freeze)}" if c.freeze else "")
        data = []
        for source, weight in zip(self.sources, weights, strict=True):
            share = f", {weight / sum(weights):.0%} of the steps" if c.weights else ""
            data.append(f"data      {source.path}: {len(source.training):,} patches of "
                        f"{'x'.join(map(str, source.shape))} for training, "
                        f"{len(source.validation):,} for validation{share}")
        return [f"network   {c.arch}, {parameters:,} parameters, {origin}{frozen}",
                f"device    {self.device} ({device_name(self.device)}), {', '.join(how)}",
                *data,
                f"problem   {scales}, degradation {_degradation(c)}"
                + (f", noise {c.noise:g}" if c.noise else "") + f", start {c.start}, augmentation "
                f"{c.augment}"
                + (f", runs of {c.band_window} bands" if c.band_window else "")
                + (f", up to {c.band_spacing} apart" if c.band_spacing > 1 else "")
                + (f", {c.shade:.0%} of the patches in part in shade" if c.shade else "")
                + (f", squares of {c.crop} pixels" if c.crop else "")
                + (" of the larger patches" if c.crop and any(
                    source.side < c.crop for source in self.sources) else ""),
                f"recipe    {c.recipe}: {c.loss} loss, Adam, batch {c.batch}, {rate}"
                + (f", {c.last_lr:g} of it for the last layer" if c.last_lr != 1 else "")
                + (f", weight decay {c.wd:g}" if c.wd else "")
                + (f", gradient norm at most {c.clip:g}" if c.clip else ""),
                f"length    {self.total:,} iterations, {self._epochs_in_words()}"
                + (f"; {c.patience} epochs without a better validation end the run" if c.patience
                   else "") + (f"; {duration(60 * c.minutes)} at most" if c.minutes else ""),
                *(f"note      {note}" for note in self.notes)]


    def _epochs_in_words(self) -> str:
        """How many epochs the run has at its end, those included that had steps of another
        number."""
        epoch, iteration, step = (
            int(self.resumed.get(name) or 0) for name in ("epoch", "iteration", "step"))
        left = max(0, self.total - (iteration - step))
        epochs = epoch + math.ceil(left / self.steps)
        alike = not epoch or iteration - step == epoch * self.steps
        return (f"{epochs:,} epoch{'s' if epochs > 1 else ''}{'' if alike else ', the next ones'} "
                f"of {self.steps:,} steps")


def _degradation(c: TrainingConfig) -> str:
    if c.degradation != ANY:
        return c.degradation
    return (f"{ANY}, drawn from {draws.LOWEST:g} to {draws.HIGHEST:g}, told but to {c.unknown:.0%} "
            "of the patches"
            + (f", noise up to an SNR of {c.snr:g} dB" if c.snr is not None else ""))


def prepare(config: TrainingConfig) -> Plan:
    """Choose the device, open the data, build the network; writes nothing.

    Raises:
        UserError: no such device, database, network or checkpoint, or they do not fit one another.
    """
    notes: list[str] = []
    gpus = own_gpus(config.gpu_ids) if config.cuda else ()
    device = choose_device(config.cuda, gpus, config.amp, config.pooling)
    if device.type == "cuda" and len(gpus or ()) > 1:
        notes.append(f"this process uses one GPU: {device} alone of the {len(gpus)} that were "
                     "named")
    net = _network(config, notes)
    sources = [_source(path, config, patch_multiple(config, net), notes) for path in config.data]
    if config.amp == "bf16" and device.type == "cpu":
        for source in sources:
            if min(source.shape[0], config.band_window or math.inf) == 2:
                # torch 2.13 on processors with bf16 instructions leaves the weight gradient of
                # exactly 2 bands uninitialised.
                raise UserError(f"{source.path} holds patches of 2 bands, which torch cannot train "
                                "on in bf16 on a processor; leave --amp out.")
    if not any(len(source.validation) for source in sources):
        raise UserError(f"{', '.join(config.data)} holds no validation patches, by which a "
                        "training knows its best network; build it again, with scenes large enough "
                        "to hold a part out, and without --val-last 0.")
    origin = config.resume or config.init
    if config.crop:
        notes += _crop_notes(config, patch_multiple(config, net), sources)
    saved = load_checkpoint(origin) if origin else {}
    scenes = saved.get("trained_on") if origin else []
    if scenes is None:
        notes.append(f"{origin} does not say which scenes it was trained on, so no test of this "
                     "run can warn of them")
    scenes = [*(scenes or ())]
    for source in sources:
        scenes += [scene for scene in source.meta["sources"] if scene not in scenes]
    plan = Plan(config=config, device=device, sources=sources, net=net, trained_on=scenes or None,
                notes=list(dict.fromkeys(notes)), resumed=_numbers(saved) if config.resume else {})
    if config.recipe == "released" and not origin and plan.total < ENOUGH:
        plan.notes.append(f"the released recipe makes {plan.total} steps on this data, and from "
                          "PyTorch's weights a network needs thousands to pass the interpolation; "
                          "--recipe fast needs hundreds")
    return plan


def _crop_notes(config: TrainingConfig, multiple: int, sources: Sequence[Source]) -> list[str]:
    """Sentences on databases whose patches are too small for the crop. Raises UserError: all are,
    or the crop is not of a size that the network takes."""
    crop = config.crop
    if crop % multiple:
        raise UserError(f"The crop is {crop} pixels, and {config.arch} at scale "
                        f"{', '.join(map(str, config.scales))} takes a multiple of {multiple}.")
    small = [source for source in sources if source.side < crop]
    sizes = ["x".join(map(str, source.shape[1:])) for source in small]
    if len(small) == len(sources):
        raise UserError(f"The patches are {' and '.join(dict.fromkeys(sizes))} pixels, all smaller "
                        f"than --crop {crop}; give --crop {max(source.side for source in small)} "
                        "or less, or leave it out to train on whole patches.")
    whole = f"smaller than --crop {crop}, and are seen whole"
    return [f"patches of {source.path} are {size}, {whole}"
            for source, size in zip(small, sizes, strict=True)]


def _numbers(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Where a checkpoint stands, and what it was trained on; numbers of another kind than expected
    are left out."""
    whole = {name: saved.get(name) for name in ("iteration", "epoch", "step", "once", "offset")}
    return {name: number for name, number in whole.items() if isinstance(number, int)} | {
        name: saved[name] for name in ("position", "databases", "config") if name in saved}


def _source(path: str, config: TrainingConfig, multiple: int, notes: list[str]) -> Source:
    whole, training, validation = (
        LMDBDataset(path, split) for split in (None, "train", "validation"))
    if whole.datum:
        notes.append(f"{path} does not say which patches validate: the last {len(validation)} of "
                     f"its {len(whole)} are held out")
    if not len(training) or (whole.datum and not len(validation)):
        raise UserError(f"{path} holds {len(whole)} patches, too few to train on some and validate "
                        "on others; build a larger one with utility/lmdb_data.py.")
    if not len(validation):
        notes.append(f"{path} has no validation patches: all of its {len(whole)} train")
    if config.val_batches:
        validation = Subset(validation,
                            range(min(len(validation), config.val_batches * config.batch)))
    bands, height, width = whole.shape
    shape = bands, height - height % multiple, width - width % multiple
    if 0 in shape:
        raise UserError(f"{path} holds patches of {height}x{width} pixels, and {config.arch} at "
                        f"scale {', '.join(map(str, config.scales))} needs at least "
                        f"{multiple}x{multiple}; build one with larger patches.")
    if shape != whole.shape:
        notes.append(f"patches of {height}x{width} are cropped to {shape[1]}x{shape[2]}, multiples "
                     f"of {multiple}")
    if config.degradation != ANY:
        notes += filter(
            None, (dark_note(*shape[1:], scale, config.degradation) for scale in config.scales))
    return Source(path=path, training=training, validation=validation, shape=shape, meta=whole.meta,
                  fingerprint=whole.fingerprint())


def _network(config: TrainingConfig, notes: list[str]) -> Network:
    """Build the network on the CPU, with weights from the seed or from a checkpoint."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        net = build_network(config.arch, **config.options, pooling=config.pooling,
                            checkpoint=config.checkpoint_activations)
    for scale in config.scales:
        check_problem(net, scale, config.degradation)
    parts = [name for name, _ in net.named_children()]
    if unknown := set(config.freeze) - set(parts):
        raise UserError(f"{config.arch} has no part {', '.join(sorted(unknown))} to freeze; choose "
                        f"of {', '.join(parts)}.")
    if set(parts) == set(config.freeze):
        raise UserError(
            f"Every part of {config.arch} is frozen, which leaves nothing to train; freeze fewer.")
    if source := config.resume or config.init:
        checkpoint = load_checkpoint(source)
        load_weights(net, checkpoint, source)
        if unsaid := describe_checkpoint(checkpoint, source, config.arch, config.options).unsaid:
            notes.append(unsaid)
    else:
        net.initialise("released" if config.recipe == "released" else "fast",
                       torch.Generator().manual_seed(config.seed))
    return net
