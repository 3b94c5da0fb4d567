"""Ours, not published: any network on bands of one mean and deviation (`scaled_biqrnn_16_5`).

    z = 1/2 + (start image - mean) / (4 deviations of the band);
            start image + 4 deviations x (network(z) - z)

Mean and deviation are those of each band of the whole low-resolution scene. The network then
answers alike to any gain and offset of a band. Natural scenes of 31 bands have about this mean and
deviation. Airborne scenes have nearly dark bands, beside water absorption, where the network alone
adds a residual as large as in bright bands.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.network import Network, Window, band_moments
from models.registry import Shapes, create_model, matching_models, register


class Scaled(Network):
    """See the top of this file.

    Args:
        network: takes the start image alone.
    """

    takes_low = takes_statistics = True

    def __init__(self, network: Network) -> None:
        super().__init__()
        if network.takes_low:
            raise ValueError(
                f"{network.name} takes more than the start image and cannot be scaled by band")
        self.network = network
        self.scales, self.degradations, self.radius = (network.scales, network.degradations,
                                                       network.radius)

    statistics = staticmethod(band_moments)

    def _standardised(self, x: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """The bands as the network takes them, and what one of its units is worth: (N, 1, B, H, W)
        and (N, 1, B, 1, 1)."""
        mean, square = statistics[:, :, None, :, None, None].unbind(1)
        unit = 4 * (square - mean.square()).clamp_min(0).add(1e-10).sqrt().to(x.dtype)
        return 0.5 + (x - mean.to(x.dtype)) / unit, unit

    def forward(self, x: Tensor, low: Tensor, statistics: Tensor) -> Tensor:
        """The start image (N, 1, B, H, W) in [0, 1], `low` unused, `statistics` (N, 2, B) -> the
        shape of x."""
        z, unit = self._standardised(x, statistics)
        return x + unit * (self.network(z) - z)

    @torch.no_grad()
    def in_window(self, wanted: Window, have: Window, *inputs: Tensor) -> Tensor:
        x, _, statistics = inputs
        z, unit = self._standardised(x, statistics)
        return (wanted.cut(x, have)
                + unit * (self.network.in_window(wanted, have, z) - wanted.cut(z, have)))

    def step(self, scale: int) -> int:
        return math.lcm(self.network.multiple, scale)

    def halo(self, scale: int) -> int | None:
        return (
            None if self.radius is None else -(-self.radius // self.step(scale)) * self.step(scale))

    def set_execution(self, **changes: object) -> Network:
        self.network.set_execution(**changes)
        return super().set_execution(**changes)

    @property
    def options(self) -> dict[str, Any]:
        return self.network.options

    def last_layer(self) -> list[nn.Parameter]:
        return self.network.last_layer()

    def initialise(self, recipe: str, generator: torch.Generator | None = None) -> None:
        self.network.initialise(recipe, generator)

    def bytes_per_pixel(self, bands: int, scale: int = 1, value: int = 4) -> float:
        return self.network.bytes_per_pixel(bands, scale, value) + 8 * bands


def _recognise(shapes: Shapes) -> Sequence[str]:
    inner = {key.removeprefix("network."): shape
             for key, shape in shapes.items() if key.startswith("network.")}
    return (
        [f"scaled_{name}" for name in matching_models(inner)] if len(inner) == len(shapes) else [])


@register(pattern=r"scaled_(?P<name>(?!scaled_).+)", form="scaled_<network>", recognise=_recognise)
def scaled(name: str) -> Scaled:
    """`scaled_<network>`."""
    return Scaled(create_model(name))
