"""The quasi-recurrent unit: one 3x3x3 convolution that gives all gates, then pooling along bands
(`models.layers.pooling`)."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.pooling import gate_count, pool
from models.layers.upsampling import columns_apart, double_columns, double_rows
from models.network import Execution, Window


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """(N, C, B, H, W) in the memory format in which it is convolved: a copy, or where x has it
    already a view.

    One channel in either format is the same memory, and a convolution takes its format from the
    strides. So one channel gets those of channels-last, 1 and not B H W.
    """
    x = x.contiguous(
        memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)
    return x[:, 0].unsqueeze(-1).movedim(-1, 1) if channels_last and x.shape[1] == 1 else x


SLOW = 20_480
"""Channels x bands x rows of one image up to which torch convolves it in float32 by a kernel that
is not blocked, measured 3 to 10 times slower than oneDNN's. A batch of two never is."""


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> Tensor:
    """A convolution with a kernel (1 or 3, 3, 1 or 3), padded to the same size: (N, C, B, H, W) ->
    (N, G, B, H / stride, W / stride).

    One small image on a processor goes as a batch of its upper and its lower half, each with a row
    of the other, so that torch takes oneDNN's kernel in both directions.
    """
    bands, columns, rows = weight.shape[2] // 2, weight.shape[4] // 2, -(-x.shape[-2] // stride)
    if (rows < 2 or len(x) > 1 or x.shape[1:4].numel() > SLOW or x.device.type != "cpu"
            or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu")):
        return F.conv3d(x, weight, bias, (1, stride, stride), (bands, 1, columns))
    half = -(-rows // 2)
    length, first = stride * (half - 1) + 3, stride * half  # of a half, and where the lower begins
    x = F.pad(x, (0, 0, 1, first + length - 1 - x.shape[-2]))
    halves = torch.cat([x[..., :length, :], x[..., first:, :]])
    upper, lower = F.conv3d(
        halves, weight, bias, (1, stride, stride), (bands, 0, columns)).split(1)
    return torch.cat([upper, lower], dim=-2)[..., :rows, :]


class Conv(nn.Module):
    """3x3x3 convolution, rows and columns strided."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, (1, stride, stride), 1, bias=False)


class Deconv(nn.Module):
    """3x3x3 transposed convolution of stride 1."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose3d(inputs, outputs, 3, 1, 1, bias=bias)


class UpsampleConv(nn.Module):
    """Trilinear x(1, 2, 2) with align_corners=True, then a 3x3x3 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.upsample_conv = nn.ModuleDict(
            {"conv3d": nn.Conv3d(inputs, outputs, 3, 1, 1, bias=False)})


class Unit(nn.Module):
    """One quasi-recurrent unit: convolution to gates, then pooling along bands.

    Args:
        conv: one of the three holders above, with gate_count(kind) times the unit's channels as
            outputs.
        kind: `f`, `fo` or `ifo`.
        direction: `forward`, `backward` or `both`.
    """

    def __init__(self, conv: Conv | Deconv | UpsampleConv, kind: str, direction: str) -> None:
        super().__init__()
        self.conv = conv
        self.kind = kind
        self.direction = direction
        self._kept: tuple[tuple, tuple[Tensor, Tensor | None]] | None = None

    @property
    def stride(self) -> int:
        return self.conv.conv.stride[1] if isinstance(self.conv, Conv) else 1

    @property
    def upsamples(self) -> bool:
        return isinstance(self.conv, UpsampleConv)

    @property
    def parameters_of_conv(self) -> tuple[Tensor, Tensor | None]:
        """Weight (gates, inputs, 3, 3, 3) and bias of the plain convolution that this unit's holder
        amounts to."""
        if isinstance(self.conv, Deconv):
            return self.conv.deconv.weight.transpose(0, 1).flip(2, 3, 4), self.conv.deconv.bias
        if isinstance(self.conv, UpsampleConv):
            return self.conv.upsample_conv["conv3d"].weight, None
        return self.conv.conv.weight, None

    @torch.no_grad()
    def convolution(self, dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, Tensor | None]:
        """`parameters_of_conv` without gradients, of a dtype and laid out, the kernel's columns
        apart where the unit upsamples; made again only when a parameter has changed.

        A change in place through `.data`, which torch does not count, is not seen.
        """
        key = (dtype, channels_last,
               *((id(p), p.data_ptr(), p.device, p._version) for p in self.conv.parameters()))
        if self._kept is None or self._kept[0] != key:
            weight, bias = self.parameters_of_conv
            weight = columns_apart(weight) if self.upsamples else weight
            self._kept = (key,
                          (laid_out(weight.to(dtype), channels_last),
                           None if bias is None else bias.to(dtype)))
        return self._kept[1]

    @property
    def gates(self) -> int:
        conv = self.conv
        return (conv.deconv.weight.shape[1] if isinstance(conv, Deconv)
                else self.parameters_of_conv[0].shape[0])

    @property
    def channels(self) -> int:
        return self.gates // gate_count(self.kind, self.direction == "both")

    def forward(self, x: Tensor, skip: Tensor | None, execution: Execution) -> Tensor:
        """(N, C, B, H, W) -> pooled states (N, C', B, H', W'), plus `skip` where it is given."""
        return pool(self._gates(x, execution), self.kind, self.direction, skip, execution.pooling)

    def _gates(self, x: Tensor, execution: Execution) -> Tensor:
        weight, bias = self.parameters_of_conv
        last = execution.last(x)
        if self.upsamples and execution.own_upsampling:
            source = Window.whole(*x.shape[-2:])
            target = source.scaled(2, 1)
            rows = double_rows(x, source, target, 0, target.height)
            gates = conv3d(laid_out(rows, last), laid_out(columns_apart(weight), last))
            return double_columns(gates, source, target, 0, target.width)
        if self.upsamples:
            x = F.interpolate(x, scale_factor=(1, 2, 2), mode="trilinear", align_corners=True)
        if isinstance(self.conv, Deconv) and not execution.deconv_as_conv:
            return self.conv.deconv(x)
        return conv3d(laid_out(x, True) if last else x, laid_out(weight, last), bias, self.stride)
