"""The network without gradients: every unit in blocks of rows, on a whole image or on a tile of a larger one.

Three facts make this exact. Pooling is independent for every pixel; a 3x3x3 convolution needs one row above and below; and
the upsampling is linear with known coordinates, so any of its rows can be computed alone. For a tile those coordinates are
the whole image's: with align_corners=True an upsampled pixel depends on the whole size.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from models.pooling import pool_into

if TYPE_CHECKING:
    from models.qrnn3d import QRNN3D, Unit


@dataclass(frozen=True)
class Window:
    """Where an image lies in a larger one, in pixels of some resolution."""

    top: int
    left: int
    whole_height: int
    whole_width: int

    def halved(self) -> Window:
        return Window(self.top // 2, self.left // 2, self.whole_height // 2, self.whole_width // 2)

    def doubled(self) -> Window:
        return Window(self.top * 2, self.left * 2, self.whole_height * 2, self.whole_width * 2)


def run_in_blocks(net: QRNN3D, x: Tensor, window: Window | None = None) -> Tensor:
    """What `net(x)` gives, without gradients.

    Args:
        x: (N, 1, B, H, W), H and W multiples of `net.multiple`.
        window: where x lies in a larger image; top, left and the whole sizes are multiples of `net.multiple`. Pixels
            nearer to an inner edge of x than `halo(net)` are not those of the larger image.

    Returns: (N, 1, B, H, W).
    """
    window = window or Window(0, 0, x.shape[-2], x.shape[-1])
    if any(v % net.multiple for v in (window.top, window.left, window.whole_height, window.whole_width)):
        raise ValueError(f"a window's place and size must be multiples of {net.multiple}: {window}")
    h = _run(net, net.feature_extractor, x, window)
    skips = [h]
    for unit in net.encoder.layers[:-1]:
        h = _run(net, unit, h, window)
        window = window.halved() if unit.stride == 2 else window
        skips.append(h)
    last = net.encoder.layers[-1]
    h = _run(net, last, h, window)
    window = window.halved() if last.stride == 2 else window
    for unit in net.decoder.layers:
        window = window.doubled() if unit.upsamples else window
        skip = skips.pop()
        h = _run(net, unit, h, window, skip, out=skip)
    out = _run(net, net.reconstructor, h, window, x)
    return out.add_(x) if net.long_skip else out


def halo(net: QRNN3D) -> int:
    """Rows (and columns) on each side of an output pixel that it depends on, rounded up to a multiple of `net.multiple`.

    Walks the units backwards from one output pixel: a convolution needs one pixel more on each side, one of stride 2 doubles
    the distance, an upsampling needs source pixels floor and floor + 1 of a coordinate that align_corners moves by at most
    half a pixel. A skip needs no more than the path around it.
    """
    low, high = 0, 0
    for unit in reversed(net.units()):
        low, high = (2 * low - 1, 2 * high + 1) if unit.stride == 2 else (low - 1, high + 1)
        if unit.upsamples:
            low, high = (low - 1) // 2, high // 2 + 1
    reach = max(-low, high)
    return -(-reach // net.multiple) * net.multiple


def _run(net: QRNN3D, unit: Unit, x: Tensor, window: Window, skip: Tensor | None = None,
         out: Tensor | None = None) -> Tensor:
    """One unit in blocks of rows; `window` is that of its output (of its input where it strides)."""
    weight, bias = unit.parameters_of_conv
    channels_last = net.execution.channels_last
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    weight = weight.contiguous(memory_format=layout)
    n, _, bands, height, width = x.shape
    if unit.upsamples:
        height, width = 2 * height, 2 * width
    stride = unit.stride
    out_height, out_width = height // stride, width // stride
    rows = _rows_per_block(net, x, n * bands * out_width)
    columns = _Lerp(window.left, width, window.whole_width, x) if unit.upsamples else None
    for top in range(0, out_height, rows):
        bottom = min(top + rows, out_height)
        first, last = stride * top - 1, stride * (bottom - 1) + 2  # input rows, one beyond each side
        above, below = max(-first, 0), max(last - height, 0)
        if columns is not None:
            lines = _Lerp(window.top, height, window.whole_height, x, max(first, 0), min(last, height))
            piece = columns(lines(x, -2), -1)
        else:
            piece = x[..., max(first, 0):min(last, height), :]
        if above or below:
            piece = F.pad(piece, (0, 0, above, below))
        gates = F.conv3d(piece.contiguous(memory_format=layout), weight, bias, (1, stride, stride), (1, 0, 1))
        if out is None:
            dtype = torch.promote_types(gates.dtype, skip.dtype) if skip is not None else gates.dtype
            out = torch.empty((n, unit.channels, bands, out_height, out_width), dtype=dtype, device=x.device,
                              memory_format=layout)
        pool_into(out[..., top:bottom, :], gates, unit.kind, unit.direction,
                  None if skip is None else skip[..., top:bottom, :], net.execution.pooling)
    return out


def _rows_per_block(net: QRNN3D, x: Tensor, voxels_per_row: int) -> int:
    voxels = net.execution.block_voxels
    if voxels is None:
        voxels = 2**22 if x.is_cuda else 2**17
    return max(1, voxels // voxels_per_row) if voxels else 2**31


class _Lerp:
    """Doubles one axis as trilinear interpolation with align_corners=True does, for a range of a window's positions."""

    def __init__(self, start: int, size: int, whole: int, like: Tensor, first: int = 0, last: int | None = None) -> None:
        last = size if last is None else last
        step = (whole // 2 - 1) / (whole - 1)
        position = (start + torch.arange(first, last, dtype=torch.float64)) * step - start // 2
        below = position.floor().clamp_(0, size // 2 - 1)
        self.below = below.long().to(like.device)
        self.above = (self.below + 1).clamp_(max=size // 2 - 1)
        self.weight = (position - below).clamp_(0, 1).to(like.device, like.dtype)

    def __call__(self, x: Tensor, axis: int) -> Tensor:
        shape = [1] * x.dim()
        shape[axis] = -1
        return torch.lerp(x.index_select(axis, self.below), x.index_select(axis, self.above), self.weight.view(shape))
