"""Two architectures in one file outside `models/`, known by the decorator alone."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import Network, register


@register("toy")
class Toy(Network):
    """Two convolutions on the high-resolution grid."""

    radius = 2

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Tanh(),
                                    nn.Conv3d(4, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)

    def last_layer(self) -> list[nn.Parameter]:
        return list(self.layers[-1].parameters())

    def bytes_per_pixel(self, bands: int, scale: int = 1, value: int = 4) -> float:
        return 4 * bands * 12


@register("toy_far")
class ToyFar(Toy):
    """Its receptive field is the whole image."""

    radius = None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.layers(x).mean((-2, -1), keepdim=True)


@register("toy_low_3", pattern=r"toy_low_(?P<width>\d+)", form="toy_low_<width>")
class ToyLow(Network):
    """A stride of 2 on the low-resolution grid, an end for each scale, bands in deviations."""

    takes_low = takes_statistics = True
    multiple = 2
    radius = 4
    scales = (2, 4)
    degradations = ("gaussian", "bicubic")

    def __init__(self, width: str) -> None:
        super().__init__()
        self.body = nn.Conv3d(1, int(width), 3, (1, 2, 2), 1)
        self.ends = nn.ModuleDict(
            {str(s): nn.Conv3d(int(width), s * s, 3, padding=1) for s in self.scales})

    def statistics(self, low: Tensor) -> Tensor:
        return torch.stack([low[:, 0].mean((-2, -1)), low[:, 0].square().mean((-2, -1))], dim=1)

    def forward(self, x: Tensor, low: Tensor, statistics: Tensor) -> Tensor:
        scale = x.shape[-1] // low.shape[-1]
        mean, square = statistics[:, :, :, None, None].to(low.dtype).unbind(1)
        deviation = (square - mean.square()).clamp(min=1e-6).sqrt()
        h = F.interpolate(torch.tanh(self.body((low - mean[:, None]) / deviation[:, None])),
                          scale_factor=(1, 2, 2))
        residual = F.pixel_shuffle(self.ends[str(scale)](h).transpose(1, 2), scale)[:, :, 0]
        return x + (deviation * residual)[:, None]

    def last_layer(self) -> list[nn.Parameter]:
        return list(self.ends.parameters())

    def bytes_per_pixel(self, bands: int, scale: int = 1, value: int = 4) -> float:
        return 4 * bands * 12
