"""The validation of a training: loss and PSNR of the network and of the untrained methods."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from utility.degradation import crop_to_multiple
from utility.indexes import PSNR_CAP
from utility.names import STARTS
from utility.report.figures import composite
from utility.system import distributed
from utility.system.devices import autocast
from utility.system.errors import Interruption
from utility.training.configuration import LOSSES
from utility.training.draws import given
from utility.training.loader import DeviceBatches
from utility.training.state import State


@torch.no_grad()
def validate(state: State, loaders: Mapping[str, DataLoader],
             wavelengths: Sequence[float] | None = None,
             stop: Interruption | None = None) -> tuple[dict[str, float], np.ndarray | None]:
    """Loss and PSNR of the network, the interpolation and the back-projection: means over patches,
    then scales and databases.

    Args:
        loaders: of each database, by its name, as `validation_loader` makes them: this process's
            part of the batches.
        wavelengths: nm of the bands, for the picture.

    Returns: val_loss; psnr, interpolation_psnr, backprojection_psnr, gain and backprojection_gain
    (dB, over those two); with several scales or databases the gain of each, as gain_x2 or
    gain_NAME. And the first patch as an image (h, 3w, 3): truth, start image, network.
    """
    names, picture, rows = (("val_loss", "psnr", "interpolation_psnr", "backprojection_psnr"), None,
                            {})
    config = state.config
    for database, loader in loaders.items():
        numbers, sums = [], []  # of the first patch of each batch, and a row for each scale
        for batch, gt in zip(loader.batch_sampler, DeviceBatches(loader, state.device),
                             strict=True):
            gt = crop_to_multiple(gt, state.multiple)
            for scale in config.scales:
                made = given(config, gt, scale, "validation", batch[0], starts=STARTS)
                plain, projected = (made.starts[start] for start in STARTS)
                x = made.starts[config.start]
                with autocast(state.device, config.amp):
                    out = state.net(*state.net.inputs(x[:, None], made.low[:, None],
                                                      told=made.told))
                out = out[:, 0].to(gt.dtype)
                loss = LOSSES[config.loss](out, gt).double() * len(gt)
                sums.append(torch.stack(
                    [loss, *(psnr(cube, gt).sum() for cube in (out, plain, projected))]))
                if picture is None and not distributed.rank():
                    truth, *others = (cube[0].float().cpu().numpy() for cube in (gt, x, out))
                    picture = np.concatenate([composite(cube, wavelengths, reference=truth)
                                              for cube in (truth, *others)], 1)
            numbers.append((batch[0], len(batch)))
            if stop and stop.requested:
                break
        table = (torch.stack(sums).cpu().numpy().reshape(
            len(numbers), len(config.scales), len(names)) if sums else ())
        # In the order of the batches, so that the sums are the same to the last bit for any number
        # of processes.
        found = sorted(distributed.gathered(list(zip(numbers, table, strict=True))),
                       key=lambda item: item[0])
        means = sum(row for _, row in found) / sum(count for (_, count), _ in found)
        rows |= {(database, scale): mean
                 for scale, mean in zip(config.scales, means.tolist(), strict=True)}
    row = dict(zip(names, np.mean(list(rows.values()), axis=0).tolist(), strict=True))
    row |= {"gain": row["psnr"] - row["interpolation_psnr"],
            "backprojection_gain": row["psnr"] - row["backprojection_psnr"]}
    for axis, values in enumerate((loaders, config.scales)):
        for value in values if len(values) > 1 else ():
            gains = [mean[1] - mean[2] for key, mean in rows.items() if key[axis] == value]
            row[f"gain_x{value}" if axis else f"gain_{value}"] = sum(gains) / len(gains)
    return row, picture


def psnr(x: Tensor, gt: Tensor) -> Tensor:
    """PSNR of each image in dB, (N, B, h, w) -> (N,): as `indexes.evaluate` has it, mean over
    bands, each capped."""
    mse = (x.double() - gt.double()).square().mean(dim=(-2, -1))
    return (-10 * mse.log10()).clamp(max=PSNR_CAP).mean(dim=-1)
