"""3D-FCNN (Mei, Yuan, Ji, Zhang, Wan, Du, "Hyperspectral Image Spatial Super-Resolution via 3D Full
Convolutional Neural Network", Remote Sensing 9(11), 1139, 2017).

From the paper: four 3-D convolutions on the interpolated cube, 64 filters of 9x9x7, 32 of 1x1x1, 9
of 1x1x1 and 1 of 5x5x3, with ReLU after the first three, and no residual connection. The paper
writes rows x columns x bands; tensors here are (bands, rows, columns), so the kernels read 7x9x9
and 3x5x5. Not from the paper: its convolutions shrink the cube by 12 rows, 12 columns and 8 bands;
here the edges are repeated around the input of a convolution, so that sizes are kept and any number
of bands will do.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

from models.network import Network
from models.registry import register


@register("fcnn3d")
class FCNN3D(Network):
    radius = 4 + 2

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(1, 64, (7, 9, 9), padding=(3, 4, 4), padding_mode="replicate"), nn.ReLU(),
            nn.Conv3d(64, 32, 1), nn.ReLU(), nn.Conv3d(32, 9, 1), nn.ReLU(),
            nn.Conv3d(9, 1, (3, 5, 5), padding=(1, 2, 2), padding_mode="replicate"))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, B, H, W) -> the same shape."""
        if self.execution.checkpoint and torch.is_grad_enabled():
            return checkpoint_sequential(self.layers, 4, x, use_reentrant=False)
        return self.layers(x)

    def last_layer(self) -> list[nn.Parameter]:
        return list(self.layers[-1].parameters())

    def initialise(self, recipe: str, generator: torch.Generator | None = None) -> None:
        """`fast` starts as the start image, up to rounding, although nothing is added.

        Channel 0 of every layer hands the image on, 1 added at the first and taken off at the last,
        so that ReLU leaves it as it is (above -1). The last layer takes nothing from the other
        channels, whose weights are drawn as He et al. draw them.
        """
        if recipe != "fast":
            return
        with torch.no_grad():
            for conv in self.layers[::2]:
                gain = 0.0 if conv is self.layers[-1] else (2 / conv.weight[0].numel()) ** 0.5
                conv.weight.copy_(gain * torch.randn(conv.weight.shape, generator=generator))
                conv.weight[0] = 0
                conv.weight[(0, 0, *(size // 2 for size in conv.kernel_size))] = 1
                conv.bias.zero_()
            self.layers[0].bias[0] = 1
            self.layers[-1].bias[0] = -1

    def bytes_per_pixel(self, bands: int, scale: int = 1, value: int = 4) -> float:
        # a layer's input, output and workspace; a few cubes
        return bands * (value * (2 * 64 + 2 * 32) + 24)
