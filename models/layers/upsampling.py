"""A 3x3x3 convolution of an image whose rows and columns are doubled as trilinear interpolation
with align_corners=True does, with fewer multiplications than the doubled image takes.

Position p of a doubled axis of n samples lies at p (n - 1) / (2n - 1) of the source. Rows are
doubled first, by a product with a small matrix M. Along columns the convolution comes first: with
W_k the k-th column of its kernel,

    y[q] = sum_k W_k (M x)[q + k - 1] = sum_k (M_k (W_k x))[q],    M_k: M moved by k - 1 positions

so the W_k mix the channels on half the columns, and the M_k, which mix none, double what they give.
The matrices of a part of the image are rows and columns of those of the whole image, so a tile is
computed with the whole scene's coordinates. Gradients are products with the same matrices: two runs
give the same bits, where torch's own backward scatters by atomic additions on a GPU.
"""
from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from models.network import Window


def columns_apart(weight: Tensor) -> Tensor:
    """A kernel (G, C, 3, 3, 3) as one of a single column, (3G, C, 3, 3, 1): the outputs of its
    first column, of its second, of its third."""
    return weight.movedim(-1, 0).flatten(0, 1).unsqueeze(-1)


def double_rows(x: Tensor, source: Window, target: Window, first: int, last: int) -> Tensor:
    """Rows first .. last, counted from `target.top`, of a doubled image: (N, C, B, h, w) in the
    window `source` -> (N, C, B, last - first, w) in the layout of x. Rows outside `target` are
    zeros.

    An outermost row of which one sample is outside `source` takes the other. That is exact at the
    ends of the image. Differentiable, as `double_columns` is.
    """
    matrix, begin = _matrix(source.height, target.top + first, target.top + last, target.top,
                            target.bottom, source.top, source.bottom, x.dtype, x.device)
    n, channels, bands, _, width = x.shape
    x = x[..., begin:begin + matrix.shape[1], :]
    if not _channels_last(x):
        return matrix @ x
    x = matrix @ x.permute(0, 2, 3, 4, 1).reshape(n * bands, -1, width * channels)
    return x.view(n, bands, last - first, width, channels).permute(0, 4, 1, 2, 3)


def double_columns(x: Tensor, source: Window, target: Window, first: int, last: int) -> Tensor:
    """Columns first .. last, counted from `target.left`, of the convolution: what a kernel of
    `columns_apart` gives, (N, 3G, B, H, w) -> (N, G, B, H, last - first)."""
    matrix, begin = _taps(source.width, target.left + first, target.left + last, target.left,
                          target.right, source.left, source.right, x.dtype, x.device)
    n, channels, bands, height, _ = x.shape
    x = x[..., begin:begin + matrix.shape[1]]
    if not _channels_last(x):
        taps = zip(x.reshape(n, 3, -1, x.shape[-1]).unbind(1), matrix.unbind(-1), strict=True)
        part, moved = next(taps)
        out = part @ moved.mT
        for part, moved in taps:
            out = torch.baddbmm(out, part, moved.mT.expand(n, -1, -1))
        return out.view(n, -1, bands, height, last - first)
    x = x.permute(0, 2, 3, 4, 1).reshape(n * bands * height, -1, channels // 3)
    x = matrix.view(last - first, -1) @ x
    return x.view(n, bands, height, last - first, channels // 3).permute(0, 4, 1, 2, 3)


def _channels_last(x: Tensor) -> bool:
    return x.shape[1] > 1 and x.stride(1) == 1


@lru_cache(maxsize=1024)
def _taps(whole: int, first: int, last: int, *rest: Any) -> tuple[Tensor, int]:
    """As `_matrix`, of one position before, of the position itself, and of one after it:
    (last - first, samples, 3)."""
    matrix, begin = _matrix(whole, first - 1, last + 1, *rest)
    return matrix.unfold(0, 3, 1).contiguous(), begin


@lru_cache(maxsize=1024)
def _matrix(whole: int, first: int, last: int, low: int, high: int, start: int, stop: int,
            dtype: torch.dtype, device: torch.device) -> tuple[Tensor, int]:
    """Positions first .. last of a doubled axis of `whole` samples, those outside low .. high zero,
    from its samples start .. stop as far as they are needed.

    Returns the matrix, and how many samples after `start` the first needed one lies. It is computed
    on the device: a GPU waits for no copy.
    """
    def below(position: int) -> int:
        """The sample at a position or the next one below it, kept within start .. stop."""
        return min(max(position * (whole - 1) // (2 * whole - 1), start), stop - 1)

    begin, end = below(max(first, low)), min(below(min(last, high) - 1) + 2, stop)
    position = torch.arange(first, last, dtype=torch.float64, device=device)
    coordinate = position * (whole - 1) / (2 * whole - 1)
    sample = coordinate.floor().long().clamp(max=whole - 1)
    share, kept = coordinate - sample, (position >= low) & (position < high)
    matrix = torch.zeros(last - first, end - begin, dtype=torch.float64, device=device)
    for column, weight in ((sample, 1 - share), (sample + 1, share)):
        column = (column - begin).clamp(0, end - begin - 1)[:, None]
        matrix.scatter_add_(1, column, (weight * kept)[:, None])
    return matrix.to(dtype), begin - start
