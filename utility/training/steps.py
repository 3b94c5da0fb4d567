"""One step of a training: what the network is given, its loss, its update, its time."""
from __future__ import annotations

import copy
import math
import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from models import Window
from utility.degradation import crop_to_multiple
from utility.system import distributed
from utility.system.devices import autocast
from utility.system.progress import duration
from utility.training.configuration import LOSSES, TrainingConfig
from utility.training.draws import given, shaded
from utility.training.plan import Plan
from utility.training.state import State


def seconds_per_step(plan: Plan, count: int = 2) -> float:
    """Seconds of a step on this machine: the mean of `count`, after a first one, on noise and a
    copy of the network."""
    state = replace(plan, net=copy.deepcopy(plan.net),
                    config=replace(plan.config, resume=None)).state()
    patches = []
    for bands, height, width in (source.shape for source in plan.sources):
        shape = (-(-plan.config.batch // distributed.size()),
                 min(bands, plan.config.band_window or bands), height, width)
        patches.append(torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(
            plan.device))
    seconds = []
    for gt in (patches * (count + 1))[:count + len(patches)]:
        begin = time.perf_counter()
        train_step(state, state.net, gt, plan.config.batch)
        state.tally.tolist()  # a GPU is waited for
        seconds.append(time.perf_counter() - begin)
    return sum(seconds[len(patches):]) / count


def expected_time(plan: Plan) -> str:
    """A sentence on the time that the steps of a run take on this machine, from two timed steps."""
    done = plan.state().iteration if plan.config.resume else 0
    step = seconds_per_step(plan)
    seconds = min(step * max(0, plan.total - done), 60 * (plan.config.minutes or math.inf))
    return (f"{duration(seconds)} for {plan.total - done:,} steps of {step:.2g} s (two were "
            "timed); validations come on top")


def train_step(state: State, net: nn.Module, gt: Tensor, whole: int | None = None) -> None:
    """One step on ground truth (N, B, h, w); nothing here makes a GPU wait for the host.

    The gradient is that of the mean over the step's patches. It is the sum over the parts of the
    processes, and of `config.accumulate` pieces of each part, because every loss is a mean over
    patches.

    Args:
        net: `state.net`, or that network compiled.
        whole: patches of the step in all processes, of which `gt` is this one's part
            (see `loader.Turns`); None: of `gt`.
    """
    config, whole = state.config, whole or len(gt)
    part = distributed.share(whole, distributed.rank(), distributed.size())
    count = part.stop - part.start  # 0 where a patch stands in: it counts nothing
    gt = crop_to_multiple(gt, state.multiple)
    if config.recipe != "released":
        state.lr = _cosine(config, state.iteration, state.total)
    scale = _scale(config, state.iteration)
    state.optimizer.zero_grad(set_to_none=True)
    pieces = min(config.accumulate, len(gt))
    total = 0
    for piece in (distributed.share(len(gt), k, pieces) for k in range(pieces)):
        truth, inputs = _inputs(state, scale, gt[piece], before=part.start + piece.start)
        with autocast(state.device, config.amp):
            out = net(*inputs)
        loss = LOSSES[config.loss](out[:, 0].to(gt.dtype), truth)
        if (weight := min(len(truth), count) / whole) != 1:
            loss = loss * weight
        state.scaler.scale(loss).backward()
        total = total + loss.detach()
    loss = distributed.add_up(state.net.parameters(), total)
    if config.clip:
        state.scaler.unscale_(state.optimizer)
        nn.utils.clip_grad_norm_(state.net.parameters(), config.clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.tally += torch.stack([torch.where(loss.isfinite(), loss, 0), ~loss.isfinite()])
    state.step += 1
    state.iteration += 1


def _inputs(state: State, scale: int, gt: Tensor,
            before: int = 0) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The truth of a step, cropped, and what the network takes; `before` says where gt begins in
    the step."""
    config = state.config
    gt = shaded(config, gt, state.iteration, before=before)
    made = given(config, gt, scale, state.iteration, starts=(config.start,), before=before)
    inputs = state.net.inputs(made.starts[config.start][:, None], made.low[:, None], told=made.told)
    if config.crop and config.crop <= min(gt.shape[-2:]) and config.crop < max(gt.shape[-2:]):
        return _cropped(state, scale, gt, inputs)
    return gt, inputs


def _cosine(config: TrainingConfig, iteration: int, total: int) -> float:
    """Warm-up to lr, then half a cosine to min_lr at the last step."""
    warm = min(1.0, (iteration + 1) / max(1, config.warmup))
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, iteration / total)))  # from 1 to 0
    return warm * (config.min_lr + (config.lr - config.min_lr) * falling)


def _scale(config: TrainingConfig, iteration: int) -> int:
    if config.scale_order == "random":
        return config.scales[
            np.random.default_rng((config.seed, iteration)).integers(len(config.scales))]
    return config.scales[iteration % len(config.scales)]


def _cropped(state: State, scale: int, gt: Tensor,
             inputs: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Cut the same random square from every patch. The third input, statistics by band, stays that
    of the whole patches."""
    side, unit = state.config.crop, state.net.patch_multiple(scale)
    draw = np.random.default_rng((state.config.seed, state.iteration, 2))
    inside = Window.whole(*gt.shape[-2:])
    top, left = (int(draw.integers((length - side) // unit + 1)) * unit for length in inside.size)
    window = Window(top, top + side, left, left + side, *inside.size)
    x, *rest = inputs
    if rest:
        rest[0] = window.scaled(1, scale).cut(rest[0], inside.scaled(1, scale))
    return window.cut(gt, inside), (window.cut(x, inside), *rest)
