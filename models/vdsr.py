"""VDSR, applied to each band alone (Kim, Lee, Lee, "Accurate Image Super-Resolution Using Very Deep
Convolutional Networks", CVPR 2016, section 3).

From the paper: 20 convolutions of 3x3, 64 channels, ReLU between them, zeros around the image, the
interpolated image added to the output, and weights as He et al. (ICCV 2015) draw them. Not from the
paper: one network for all bands, which are images of one channel to it; Adam and the rates of this
project's recipes in place of SGD with clipped gradients.
"""
from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from models.network import Network
from models.registry import register

LAYERS, CHANNELS = 20, 64


@register("vdsr")
class VDSR(Network):
    radius = LAYERS

    def __init__(self) -> None:
        super().__init__()
        widths = [1, *[CHANNELS] * (LAYERS - 1), 1]
        convolutions = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)]
        for conv in convolutions:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        self.layers = nn.Sequential(
            *(module for conv in convolutions for module in (conv, nn.ReLU())))[:-1]

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, B, H, W) -> the same shape."""
        bands = x.transpose(1, 2).flatten(0, 1)
        # band by band: the channels of one band alone are in memory
        if not torch.is_grad_enabled():
            residual = torch.cat([self.layers(band[None]) for band in bands])
        elif self.execution.checkpoint:
            residual = checkpoint_sequential(self.layers, 4, bands, use_reentrant=False)
        else:
            residual = self.layers(bands)
        return x + residual.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)

    def last_layer(self) -> list[nn.Parameter]:
        return list(self.layers[-1].parameters())

    def bytes_per_pixel(self, bands: int, scale: int = 1, value: int = 4) -> float:
        # input, output and workspace of a layer, for one band; a few cubes
        return 3 * CHANNELS * value + 24 * bands
