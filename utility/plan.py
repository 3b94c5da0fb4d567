"""What a training needs before its first step: a device, patches and a network that fit one another."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from models import Network
from utility.checkpoints import build_network, check_problem, describe_checkpoint, load_checkpoint, load_weights
from utility.configuration import TrainingConfig
from utility.devices import choose_device, device_name
from utility.errors import UserError
from utility.lmdb_dataset import LMDBDataset
from utility.state import State, patch_multiple


@dataclass
class Plan:
    """A configuration that was checked against the machine and the data; see `prepare`."""

    config: TrainingConfig
    device: torch.device
    training: Sequence[np.ndarray]
    validation: Sequence[np.ndarray]
    shape: tuple[int, int, int]        # (B, h, w) of a patch as it is used
    meta: Mapping[str, Any]            # of the database
    net: Network
    batch: int
    notes: list[str]

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return len(self.training) // self.batch

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.config.iterations or self.config.epochs * self.steps

    @property
    def position(self) -> dict[str, int]:
        """What a place inside an epoch depends on."""
        return {"seed": self.config.seed, "batch": self.batch, "training patches": len(self.training)}

    def state(self) -> State:
        """The state before the first step, or that of the checkpoint to resume."""
        state = State(self.config, self.net, self.device, self.total, {"bands": self.shape[0], "position": self.position})
        if self.config.resume:
            state.resume(self.config.resume)
            if state.finished:
                raise UserError(f"{self.config.resume} has made {state.iteration} iterations ({state.epoch} epochs), all that "
                                f"were asked for; give a larger {'--iterations' if self.config.iterations else '-n'}.")
        return state

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
            + (f", {c.last_lr:g} of it for the last layer" if c.last_lr != 1 else "")
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
    m = patch_multiple(config, net)
    shape = bands, height - height % m, width - width % m
    if config.amp == "bf16" and device.type == "cpu" and bands == 2:
        # torch 2.13 on processors with bf16 instructions: the weight gradient of exactly 2 bands is uninitialised memory.
        raise UserError(f"{config.data} holds patches of 2 bands, which torch cannot train on in bf16 on a processor; leave "
                        "--amp out.")
    if 0 in shape:
        raise UserError(f"{config.data} holds patches of {height}x{width} pixels, and {config.arch} at scale "
                        f"{', '.join(map(str, config.scales))} needs at least {m}x{m}; build one with larger patches.")
    if shape != whole.shape:
        notes.append(f"patches of {height}x{width} are cropped to {shape[1]}x{shape[2]}, multiples of {m}")
    return Plan(config=config, device=device, training=training, validation=validation, shape=shape, meta=whole.meta, net=net,
                batch=batch, notes=notes)


def _device(config: TrainingConfig, notes: list[str]) -> torch.device:
    device = choose_device(config.cuda, config.gpu_ids, config.amp, config.pooling)
    if device.type == "cuda" and len(config.gpu_ids or ()) > 1:
        notes.append(f"a run uses one GPU: {device} alone of the {len(config.gpu_ids)} that were named")
    return device


def _network(config: TrainingConfig, notes: list[str]) -> Network:
    """On the CPU, with its first weights: of the seed, or of the checkpoint to start from."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        net = build_network(config.arch, **config.options, pooling=config.pooling,
                            checkpoint=config.checkpoint_activations)
    for scale in config.scales:
        check_problem(net, scale, config.degradation)
    if source := config.resume or config.init:
        checkpoint = load_checkpoint(source)
        load_weights(net, checkpoint, source)
        if unsaid := describe_checkpoint(checkpoint, source, config.arch, config.options).unsaid:
            notes.append(unsaid)
    else:
        net.initialise(config.recipe, torch.Generator().manual_seed(config.seed))
    return net
