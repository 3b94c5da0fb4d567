"""A convolution over an image that comes in blocks of rows, from top to bottom, without gradients.

A kernel of three rows needs one row above and one below. The last two rows of a block are kept for
the next one, so no row is computed twice and no more than a block of it exists at once. Zeros lie
above the first row and below the last one of the whole image; inside of it a block gives the rows
whose neighbours are known, so the output is one row later than the input.
"""
from __future__ import annotations

import torch
from torch import Tensor

from models.layers.row_blocks import convolved


class RowStream:
    """One convolution with a kernel (1 or 3, 3, 3), padded along bands and columns.

    Args:
        weight: (G, C, 1 or 3, 3, 3), laid out as the blocks are.
        bias: (G,) or None.
        above: whether zeros lie above the first row; else the first row is there for the second
            alone.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, above: bool) -> None:
        self.weight, self.bias, self.above = weight, bias, above
        self.kept: Tensor | None = None

    def __call__(self, x: Tensor, below: bool) -> tuple[Tensor | None, Tensor]:
        """The next block (N, C, B, rows, W); `below`: zeros lie below it, and the image ends.

        Returns: (N, G, B, n, W), None where no row is complete, and the n rows of the input that it
        belongs to.
        """
        parts = [x if self.kept is None else torch.cat([self.kept, x], dim=-2)]
        if self.kept is None and self.above:
            parts.insert(0, torch.zeros_like(x[..., :1, :]))
        if below:
            parts.append(torch.zeros_like(x[..., :1, :]))
        x = torch.cat(parts, dim=-2) if len(parts) > 1 else parts[0]
        self.kept = x[..., -2:, :].clone()
        if x.shape[-2] < 3:
            return None, x[..., :0, :]
        return convolved(x, self.weight, self.bias, rows=0), x[..., 1:-1, :]
