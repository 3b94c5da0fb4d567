"""Ours, not published: quasi-recurrent units on the low-resolution grid, scaled by band.

    start image -> pixel unshuffle (1) -> head -> body: x + unit(x), n times -> tail -> end (2)
                -> pixel shuffle -> + start image

    (1) of (x - mean) / deviation of the band; (2) times the deviation of the band

A unit is a convolution giving the three gates of bidirectional f-pooling, then pooling along bands
(`models.layers.pooling`). The pooling joins the bands, so the body's kernels are 1x3x3: at equal
training time they measured better than 3x3x3. All but the last step runs on the low-resolution
grid, with 1/s^2 of the voxels. SSPSR (Jiang et al., IEEE TCI 2020) and MCNet (Li et al., Remote
Sensing 2020) compute there too; the sub-pixel end is that of Shi et al. (CVPR 2016).

Mean and deviation are those of each band over the whole scene. The network is then the same for any
gain and offset of a band: without them nearly dark bands, beside water absorption, get a residual
as large as bright ones.

`lowgrid_<width>_<units>_sensor` is told, beside, what is known of the sensor: noise and MTF
(`Network.inputs`). One file of its weights serves every blur. What it adds to a pixel is counted in
units of the contrast of the 3 x 3 input pixels around (.7 of their range, or of .15 of the
brightest), where that is less than the band's deviation; and no value falls below half of the
darkest of them, or below that one where it is negative. A spectral angle counts dark pixels as much
as bright ones, and there an error of a hundredth of the deviation is large.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.layers.pooling import pool, pool_into
from models.layers.row_blocks import rows_per_block
from models.layers.row_stream import RowStream
from models.layers.units import conv3d, laid_out
from models.network import Network, Window, band_moments
from models.registry import Shapes, register

SCALES = (2, 4, 8)
SENSOR_SCALES = (2, 3, 4, 8)


class LowGridUnit(nn.Module):
    """A convolution of `kernel` to gates of `outputs` channels, then f-pooling both ways."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, 3 * outputs, kernel,
                              padding=tuple(size // 2 for size in kernel), bias=False)

    def forward(self, x: Tensor, skip: Tensor | None, backend: str) -> Tensor:
        return pool(conv3d(x, self.conv.weight), "f", "both", skip, backend)


class LowGrid(Network):
    """See the top of this file; one body for all scales, and a head and an end for each.

    Args:
        width: channels of the units.
        units: units in the body.
        sensor: the network takes `told`, and scale 3 too.
    """

    takes_low = True
    takes_statistics = True
    # On the grids of the others a low-resolution pixel is not a block of s x s.
    degradations = ("mtf", "area", "gaussian", "bicubic")

    def __init__(self, width: int = 32, units: int = 8, sensor: bool = False) -> None:
        super().__init__()
        self.width = width
        self.radius = units + 3
        self.takes_told, self.scales = sensor, SENSOR_SCALES if sensor else SCALES
        more = 4 if sensor else 1
        self.head = nn.ModuleDict(
            {str(s): LowGridUnit(s * s + more, width, (3, 3, 3)) for s in self.scales})
        self.body = nn.ModuleList(LowGridUnit(width, width, (1, 3, 3)) for _ in range(units))
        self.tail = nn.Conv3d(width, width, 3, padding=1)
        self.end = nn.ModuleDict(
            {str(s): nn.Conv3d(width, s * s, 3, padding=1) for s in self.scales})

    statistics = staticmethod(band_moments)

    def forward(self, x: Tensor, low: Tensor, statistics: Tensor,
                told: Tensor | None = None) -> Tensor:
        """Super-resolve.

        Args:
            x: (N, 1, B, H, W), the start image in [0, 1].
            low: (N, 1, B, H/s, W/s), the low-resolution cube in [0, 1], s of 2, 4, 8.
            statistics: (N, 2, B), of the whole scene.
            told: (N, 3, B), see `Network.inputs`; of a network with `sensor` alone.

        Returns: (N, 1, B, H, W).
        """
        if (not torch.is_grad_enabled() and self.execution.block_voxels != 0
                and not torch.compiler.is_compiling()):
            whole = Window.whole(*x.shape[-2:])
            return self.in_window(whole, whole, x, low, statistics,
                                  *([] if told is None else [told]))
        scale = x.shape[-1] // low.shape[-1]
        moments = _moments(statistics, x.dtype)
        h = _standardised(x, low, moments, scale, told).contiguous(
            memory_format=self.execution.layout(x))
        h = self._run(self.head[str(scale)], h, None)
        for unit in self.body:
            h = self._run(unit, h, h)
        unit, floor = self._limits(low, moments)
        tail, end = self.tail, self.end[str(scale)]
        h = conv3d(torch.tanh(conv3d(h, tail.weight, tail.bias)), end.weight, end.bias)
        return _above(x + _shuffled(h, unit, scale), floor, scale)

    def _limits(self, low: Tensor, moments: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The unit of what is added, (N, 1, B, h, w), and the lowest value of the result, likewise,
        or None: any."""
        deviation = moments[1][:, None]
        if not self.takes_told:
            return deviation.expand_as(low), None
        brightest, darkest = (
            sign * F.max_pool3d(sign * low, (1, 3, 3), 1, (0, 1, 1)) for sign in (1, -1))
        contrast = torch.maximum(brightest - darkest, 0.15 * brightest)
        return torch.minimum(deviation, 0.7 * contrast.clamp_min(0)), darkest.clamp_max(darkest / 2)

    @torch.no_grad()
    def in_window(self, wanted: Window, have: Window, *inputs: Tensor) -> Tensor:
        """As `Network.in_window`, in blocks of rows (see `models.layers.row_stream`)."""
        x, low, statistics, *told = inputs
        scale, moments = x.shape[-1] // low.shape[-1], _moments(statistics, x.dtype)
        half = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if half else x.dtype
        out = wanted.cut(x, have).clone()
        columns = slice(wanted.left - have.left, wanted.right - have.left)
        unit, floor = self._limits(low, moments)
        with torch.autocast(x.device.type, enabled=False):
            stream = _Stream(self, scale, dtype, above=have.top == 0)
            voxels = x.shape[0] * low.shape[2] * low.shape[-1]
            rows, count = rows_per_block(self.execution, x, stream.widest, voxels), low.shape[-2]
            # the row of the next residual
            at = have.top // scale + (0 if have.top == 0 else self.radius)
            for first in range(0, count, rows):
                last = min(first + rows, count)
                h = _standardised(x[..., first * scale:last * scale, :], low[..., first:last, :],
                                  moments, scale, *told)
                residual = stream(h.to(dtype), below=last == count and have.bottom == have.height)
                if residual is None:
                    continue
                top, at = at * scale, at + residual.shape[-2]
                part = slice((top - have.top) // scale, at - have.top // scale)
                residual = _shuffled(residual.to(x.dtype), unit[..., part, :], scale)
                begin, end = max(top, wanted.top), min(at * scale, wanted.bottom)
                if begin < end:
                    into = out[..., begin - wanted.top:end - wanted.top, :]
                    into += residual[..., begin - top:end - top, columns]
        if floor is not None:
            floor = wanted.scaled(1, scale).cut(floor, have.scaled(1, scale))
            for band in range(out.shape[2]):  # no second image of all bands
                part = out[:, :, band]
                part.copy_(_above(part, floor[:, :, band], scale))
        return out

    def _run(self, unit: LowGridUnit, x: Tensor, skip: Tensor | None) -> Tensor:
        backend = self.execution.pooling
        if self.execution.checkpoint and torch.is_grad_enabled():
            return checkpoint(unit, x, skip, backend, use_reentrant=False, preserve_rng_state=False)
        return unit(x, skip, backend)

    def last_layer(self) -> list[nn.Parameter]:
        return list(self.end.parameters())

    def initialise(self, recipe: str, generator: torch.Generator | None = None) -> None:
        """`fast`: gates half open, candidates within tanh's range, ends of zeros."""
        if recipe != "fast":
            return
        super().initialise(recipe, generator)
        with torch.no_grad():
            for unit in [*self.head.values(), *self.body]:
                weight = unit.conv.weight
                gain = torch.full((len(weight), 1, 1, 1, 1), 0.3)
                gain[: len(weight) // 3] = 1.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * gain
                             / weight[0].numel() ** 0.5)

    def bytes_per_pixel(self, bands: int, scale: int = 1, value: int = 4) -> float:
        # Start image and output, and parts of them while they are made; on the low grid the input.
        # Of the layers there are but a few rows, whatever the image (see `tiling.WORKSPACE`).
        return bands * (14 + 16 / scale**2)


class _Stream:
    """The network from its standardised input to its residual, block of rows by block of rows."""

    def __init__(self, net: LowGrid, scale: int, dtype: torch.dtype, above: bool) -> None:
        self.execution = net.execution

        def rows_of(conv: nn.Conv3d) -> RowStream:
            bias = None if conv.bias is None else conv.bias.to(dtype)
            weight = conv.weight.to(dtype)
            return RowStream(laid_out(weight, net.execution.last(weight)), bias, above)

        self.units = [rows_of(unit.conv) for unit in (net.head[str(scale)], *net.body)]
        self.tail, self.end = rows_of(net.tail), rows_of(net.end[str(scale)])
        self.widest = max((unit.weight for unit in self.units),
                          key=lambda weight: weight.shape[:2].numel())

    def __call__(self, h: Tensor, below: bool) -> Tensor | None:
        """The next block (N, C, B, rows, W) -> (N, s s, B, n, W), or None: the first rows give
        nothing yet."""
        h = laid_out(h, self.execution.last(h))
        for unit in self.units:
            gates, h = unit(h, below)
            if gates is None:
                return None
            pooled = torch.empty((len(h), gates.shape[1] // 3, *h.shape[2:]), dtype=h.dtype,
                                 device=h.device, memory_format=self.execution.layout(h))
            pool_into(pooled, gates, "f", "both", None if unit is self.units[0] else h,
                      self.execution.pooling)
            h = pooled
        h, _ = self.tail(h, below)
        return None if h is None else self.end(torch.tanh(h), below)[0]


def _moments(statistics: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each band, (N, B, 1, 1), from (N, 2, B)."""
    mean, square = statistics[..., None, None].unbind(1)
    return mean.to(dtype), (square - mean.square()).clamp_min(0).add(1e-10).sqrt().to(dtype)


def _standardised(x: Tensor, low: Tensor, moments: tuple[Tensor, Tensor], scale: int,
                  told: Tensor | None = None) -> Tensor:
    """The network's input (N, K, B, h, w): the start image in deviations, where zero is, and what
    is told of the sensor."""
    mean, deviation = moments
    start = F.pixel_unshuffle((x[:, 0] - mean) / deviation, scale)
    start = start.unflatten(1, (x.shape[2], -1)).transpose(1, 2)
    level = (low / (mean + 1e-4)[:, None]).clamp(0, 4)
    if told is None:
        return torch.cat([start, level], dim=1)
    # Noise in deviations of the band, the MTF about its middle, and whether the MTF is known: as
    # images.
    variance, mtf, known = told.to(low.dtype)[..., None, None].unbind(1)
    values = (variance.clamp_min(0).sqrt() / deviation).clamp(max=4), (mtf - 0.4) * known, known
    return torch.cat([start, level, *(value[:, None].expand_as(low) for value in values)], dim=1)


def _shuffled(residual: Tensor, unit: Tensor, scale: int) -> Tensor:
    """(N, s s, B, h, w) in units (N, 1, B, h, w) -> (N, 1, B, h*s, w*s)."""
    return F.pixel_shuffle((residual * unit).transpose(1, 2).flatten(1, 2), scale)[:, None]


def _above(x: Tensor, floor: Tensor | None, scale: int) -> Tensor:
    """x (..., h*s, w*s), nowhere below the value of its pixel in `floor` (..., h, w)."""
    if floor is None:
        return x
    return torch.maximum(x, floor.repeat_interleave(scale, -2).repeat_interleave(scale, -1))


def _recognise(shapes: Shapes) -> Sequence[str]:
    width = shapes.get("tail.weight", (0,))[0]
    name = f"lowgrid_{width}_{len([name for name in shapes if name.startswith('body.')])}"
    return [name, f"{name}_sensor"] if width else []


@register(pattern=r"lowgrid_(?P<width>[1-9]\d{0,3})_(?P<units>[1-9]\d?)(?P<sensor>_sensor)?",
          form="lowgrid_<width>_<units>[_sensor]", recognise=_recognise)
def lowgrid(width: str, units: str, sensor: str | None) -> LowGrid:
    """`lowgrid_<width>_<units>`, or with `_sensor`."""
    return LowGrid(int(width), int(units), bool(sensor))
