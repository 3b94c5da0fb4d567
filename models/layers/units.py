"""The quasi-recurrent unit: one 3x3x3 convolution that gives all gates, then pooling along bands
(`models.layers.pooling`)."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.pooling import gate_count, pool
from models.layers.upsampling import double
from models.network import Execution


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """(N, C, B, H, W) in the memory format in which it is convolved: a copy, or where x has it
    already a view.

    One channel in either format is the same memory, and a convolution takes its format from the
    strides. So one channel gets those of channels-last, 1 and not B H W.
    """
    x = x.contiguous(
        memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)
    return x[:, 0].unsqueeze(-1).movedim(-1, 1) if channels_last and x.shape[1] == 1 else x


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
        """`parameters_of_conv` without gradients, of a dtype and laid out; made again only when a
        parameter has changed.

        A change in place through `.data`, which torch does not count, is not seen.
        """
        key = (dtype, channels_last,
               *((id(p), p.data_ptr(), p.device, p._version) for p in self.conv.parameters()))
        if self._kept is None or self._kept[0] != key:
            weight, bias = self.parameters_of_conv
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
        if self.upsamples:
            x = (double(x) if execution.own_upsampling
                 else F.interpolate(x, scale_factor=(1, 2, 2), mode="trilinear",
                                    align_corners=True))
        if isinstance(self.conv, Deconv) and not execution.deconv_as_conv:
            return self.conv.deconv(x)
        weight, bias = self.parameters_of_conv
        last = execution.last(x)
        return F.conv3d(laid_out(x, True) if last else x, laid_out(weight, last), bias,
                        (1, self.stride, self.stride), 1)
