"""What a network is given in training: the low-resolution cubes of a batch, made as the
configuration says or as drawn.

With the degradation `mtf` each patch is blurred as by a sensor of its own: an MTF from .08 to .8, a
tenth of the patches by the mean of each block, and a tenth by `gaussian` where it has the scale
factor. The network is told an MTF that is a little off, or, for a part of the patches, none: its
start image is then made for `SAFE_MTF`, as for a sensor that nobody knows. Noise is drawn by patch
and band, and told a little off, too; of half of the patches it is small, and not told.

A draw depends on the seed, its key and the number of the patch in the whole step alone. So a
resumed run, or another number of processes, sees the same.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utility.degradation import Degradation, add_noise, prefiltered, random
from utility.names import ANY, SAFE_MTF
from utility.training.configuration import TrainingConfig

LOWEST, HIGHEST = 0.08, 0.8
"""Of the MTF that is drawn."""
CLEAREST = 45.0
"""dB, the largest signal-to-noise ratio of a patch whose noise is told."""
QUIET = 35.0, 60.0
"""dB, lowest and highest signal-to-noise ratio of a patch whose noise is not told: every sensor has
some. Without it a network takes the noise in dark parts, which back-projection amplifies, for
detail."""


@dataclass(frozen=True)
class Sensor:
    """What made a low-resolution cube, and what a network is told of it."""

    true: Degradation
    told: Degradation
    known: bool = True           # whether the network is told an MTF
    noise: float = 0.0           # standard deviation, as a share of a band's root mean square
    told_noise: float = 1.0      # the standard deviation that is told, as a share of the true one


@dataclass(frozen=True)
class Given:
    """Low-resolution cubes (N, B, h, w), their images (N, B, H, W), `Network.inputs`' told."""

    low: Tensor
    starts: dict[str, Tensor]
    told: Tensor


def given(config: TrainingConfig, gt: Tensor, scale: int, *key: int | str, starts: Sequence[str],
          before: int = 0) -> Given:
    """The low-resolution cubes of gt (N, B, H, W), and what is made of them.

    Args:
        key: says of which draw.
        starts: of `degradation.STARTS`, the images that are wanted.
        before: where gt begins in the draw.
    """
    if config.degradation != ANY:
        degradation = Degradation.of(scale, config.degradation)
        low = add_noise(degradation.down(gt), config.noise, config.seed, *key, before=before)
        told = low.new_zeros(len(low), 3, low.shape[1])
        told[:, 0] = config.noise**2
        told[:, 1] = float(np.mean(degradation.nearest_mtf))
        told[:, 2] = 1 - config.unknown
        return Given(low, {start: degradation.start(low, start) for start in starts}, told)
    draws = [random(config.seed, *key, before + k) for k in range(len(gt))]
    sensors = [_sensor(config, scale, draw) for draw in draws]
    low = torch.stack([sensor.true.down(patch) for sensor, patch in zip(sensors, gt, strict=True)])
    level = low.square().mean((2, 3)).sqrt() * _column(low, (s.noise for s in sensors))
    if config.snr is not None:
        # Bands differ: a log-normal factor of about 1.3.
        factors, noise = [], []
        for draw in draws:
            factors.append(np.exp(0.25 * draw.standard_normal(low.shape[1])))
            noise.append(draw.standard_normal(low.shape[1:], dtype=np.float32))
        level = level * torch.from_numpy(np.stack(factors)).to(level)
        low = low + torch.from_numpy(np.stack(noise)).to(low) * level[..., None, None]
    told_level = level * _column(low, (s.told_noise for s in sensors))
    mtf = _column(low, (float(np.mean(s.told.nearest_mtf)) for s in sensors))
    known = _column(low, (float(s.known) for s in sensors))
    told = torch.stack([told_level.square(), mtf.expand_as(level), known.expand_as(level)], dim=1)
    return Given(low, {start: _start(sensors, low, start, told_level) for start in starts}, told)


def _column(like: Tensor, values: Iterable[float]) -> Tensor:
    """A value for each patch: (N, 1)."""
    return torch.tensor(list(values)).to(like)[:, None]


def _start(sensors: Sequence[Sensor], low: Tensor, start: str, noise: Tensor) -> Tensor:
    """`Degradation.start` of a batch, by what is told of each sensor; `noise` is (N, B)."""
    if start == "backprojection":
        kept = torch.stack([sensor.told.kept(low) for sensor in sensors])[:, None]
        low = prefiltered(low, kept, noise=noise)
    return sensors[0].told.up(low)  # that is the same for all of them


def _sensor(config: TrainingConfig, scale: int, rng: np.random.Generator) -> Sensor:
    kind, known, isotropic, loud = rng.random(4)
    rows, columns = rng.uniform(LOWEST, HIGHEST, 2)
    off, noise, told_noise, quiet = (rng.normal(0, 0.03), rng.random(), rng.normal(0, 0.15),
                                     rng.uniform(*QUIET))
    if kind < 0.2:
        even = kind < 0.1 and not scale % 2
        true = told = Degradation(scale, "gaussian" if even else "area")
    else:
        if isotropic < 0.75:
            columns = rows
        true = _mtf(scale, rows, columns)
        told = _mtf(scale, rows + off, columns + off)
    sensor = Sensor(true, told)
    if known < config.unknown:
        sensor = replace(sensor, told=_mtf(scale, SAFE_MTF, SAFE_MTF), known=False)
    if config.snr is None:
        return sensor
    if loud < 0.5:
        decibels = config.snr + noise * (CLEAREST - config.snr)
        return replace(sensor, noise=10 ** (-decibels / 20), told_noise=float(np.exp(told_noise)))
    return replace(sensor, noise=10 ** (-quiet / 20), told_noise=0.0)


def _mtf(scale: int, *mtf: float) -> Degradation:
    """Of whole hundredths, so that few different matrices are made."""
    rows, columns = (float(np.clip(np.round(m, 2), LOWEST, HIGHEST)) for m in mtf)
    return Degradation(scale, "mtf", (rows, columns))


def shaded(config: TrainingConfig, gt: Tensor, *key: int | str, before: int = 0) -> Tensor:
    """gt (N, B, H, W), of which a share of the patches has a part in deep shade.

    Scenes of the open air and of studios have pixels at a hundredth of the range, which few
    rendered scenes have. The spectral angle counts them as much as bright ones.
    """
    if not config.shade:
        return gt
    return (gt * torch.stack([_shade(config.shade, gt.shape[-2:],
                                     random(config.seed, *key, "shade", before + k))
                              for k in range(len(gt))]).to(gt)[:, None])


def _shade(share: float, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Factors of the pixels (H, W): ones, or with a smooth region of 10^-0.5 to 10^-2.2."""
    lit, depth, quantile, softness = rng.random(4)
    field = torch.from_numpy(rng.standard_normal((1, 1, 6, 6)))
    if lit >= share:
        return torch.ones(size, dtype=field.dtype)
    field = F.interpolate(field, size=size, mode="bicubic", align_corners=False)[0, 0]
    edge = torch.quantile(field.flatten()[::7], 0.2 + 0.5 * quantile)
    inside = torch.sigmoid((edge - field) / (0.02 + 0.1 * softness))
    return 1 - inside * (1 - 10 ** -(0.5 + 1.7 * depth))
