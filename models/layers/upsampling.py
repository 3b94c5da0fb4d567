"""Doubling rows and columns as trilinear interpolation with align_corners=True does: two products
with small matrices.

Position p of a doubled axis of n samples lies at p (n - 1) / (2n - 1) of the source. The matrices
of a part of the image are rows and columns of those of the whole image, so a tile is computed with
the whole scene's coordinates. Gradients are products with the same matrices: two runs give the same
bits, where torch's own backward scatters by atomic additions on a GPU.
"""
from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from models.network import Window


def double(x: Tensor) -> Tensor:
    """(N, C, B, H, W) -> (N, C, B, 2H, 2W) in the layout of x; differentiable."""
    whole = Window.whole(*x.shape[-2:])
    return double_part(x, whole, whole.scaled(2, 1))


def double_part(x: Tensor, source: Window, target: Window) -> Tensor:
    """A part of a doubled image: its window `target`, from x in the window `source`.

    An outermost position of which one sample is outside `source` takes the other. That is exact at
    the ends of the image.
    """
    rows = _matrix(source.height, target.top, target.bottom, source.top, source.bottom, x.dtype,
                   x.device)
    columns = _matrix(source.width, target.left, target.right, source.left, source.right, x.dtype,
                      x.device)
    if x.shape[1] > 1 and x.is_contiguous(memory_format=torch.channels_last_3d):
        n, channels, bands, height, width = x.shape
        x = rows @ x.permute(0, 2, 3, 4, 1).reshape(n * bands, height, width * channels)
        x = columns @ x.view(n * bands * len(rows), width, channels)
        return x.view(n, bands, len(rows), len(columns), channels).permute(0, 4, 1, 2, 3)
    return rows @ x @ columns.mT


@lru_cache(maxsize=256)
def _matrix(whole: int, first: int, last: int, start: int, stop: int, dtype: torch.dtype,
            device: torch.device) -> Tensor:
    """Positions first .. last of a doubled axis of `whole` samples, from its samples start .. stop.

    It is computed on the device: a GPU waits for no copy.
    """
    position = torch.arange(first, last, dtype=torch.float64, device=device) * (whole - 1) / (
        2 * whole - 1)
    below = position.long().clamp(max=whole - 1)
    matrix = torch.zeros(last - first, stop - start, dtype=torch.float64, device=device)
    for sample, share in ((below, 1 - position + below), (below + 1, position - below)):
        column = (sample - start).clamp(0, stop - start - 1)[:, None]
        matrix.scatter_add_(1, column, share[:, None])
    return matrix.to(dtype)
