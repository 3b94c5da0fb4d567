"""One unit without gradients, in blocks of rows, on a whole image or on a tile of a larger one.

Three facts make this exact. Pooling is independent for every pixel; a 3x3x3 convolution needs one
row above and below; and the upsampling is linear with known coordinates, so any of its rows can be
computed alone. For a tile those coordinates are the whole image's: with align_corners=True an
upsampled pixel depends on the whole size. The gates of a whole scene never exist at once, and a
block stays in the cache.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.pooling import pool_into
from models.layers.units import Unit, laid_out
from models.layers.upsampling import double_columns, double_rows
from models.network import Execution, Window

# not documented, so another torch may not have it
_ONEDNN = getattr(torch, "mkldnn_convolution", None)

COLUMNS = 32
"""Columns that an upsampling unit doubles at once: its matrices grow with the square of them."""


def margins_of(units: Sequence[Unit]) -> list[int]:
    """For each unit in order, how many pixels of its input around the wanted window are needed, at
    its own resolution.

    Walks back from the output. A convolution needs one pixel more than is asked of it. One of
    stride 2 needs 2r + 1, made even so that its rows stay aligned. An upsampled pixel p comes from
    source pixels floor and floor + 1 of a coordinate between p/2 - 1/2 and p/2. A skip never needs
    more than the path around it.
    """
    margins: list[int] = []
    needed = 0
    for unit in reversed(units):
        if unit.upsamples:
            needed = max(-(-(needed + 2) // 2), (needed + 1) // 2 + 1)
        elif unit.stride == 2:
            needed = 2 * needed + 2
        else:
            needed += 1
        margins.append(needed)
    return margins[::-1]


def run_unit(unit: Unit, x: Tensor, execution: Execution, *, source: Window, target: Window,
             skip: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """One unit, from its input x (N, C, B, rows, columns) in the window `source` to its output in
    the window `target`.

    Args:
        skip: added to the output, of its shape.
        out: where the output is written; it may be `skip`.
    """
    # which would cast the weights again for every block
    half = torch.is_autocast_enabled(x.device.type)
    weight, bias = unit.convolution(torch.get_autocast_dtype(x.device.type) if half else x.dtype,
                                    execution.last(x))
    n, _, bands, height, _ = x.shape
    out_height, out_width = target.size
    stride = unit.stride
    rows = rows_per_block(execution, x, weight, n * bands * out_width)
    for top in range(0, out_height, rows):
        bottom = min(top + rows, out_height)
        whole = False
        if unit.upsamples:
            piece = double_rows(x, source, target, top - 1, bottom + 1)
        else:
            # input rows, with one on each side
            first, last = stride * top - 1, stride * (bottom - 1) + 2
            above, below = max(-first, 0), max(last - height, 0)
            piece = x[..., max(first, 0):min(last, height), :]
            whole = top == 0 and bottom == out_height  # the convolution pads then, without a copy
            if (above or below) and not whole:
                piece = F.pad(piece, (0, 0, above, below))
        gates = convolved(laid_out(piece, execution.last(x)), weight, bias, stride, int(whole))
        if out is None:
            dtype = gates.dtype if skip is None else torch.promote_types(gates.dtype, skip.dtype)
            out = torch.empty((n, unit.channels, bands, out_height, out_width), dtype=dtype,
                              device=x.device, memory_format=execution.layout(x))
        columns = COLUMNS if unit.upsamples else out_width
        for left in range(0, out_width, columns):
            right = min(left + columns, out_width)
            part = double_columns(gates, source, target, left, right) if unit.upsamples else gates
            place = ..., slice(top, bottom), slice(left, right)
            pool_into(out[place], part, unit.kind, unit.direction,
                      None if skip is None else skip[place], execution.pooling)
    return out


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1,
              rows: int = 1) -> Tensor:
    """A convolution with a kernel (1 or 3, 3, 1 or 3), padded by `rows` above and below, and to the
    same size along bands and columns."""
    padding = (weight.shape[2] // 2, rows, weight.shape[4] // 2)
    if takes_onednn(x):
        # For one image of few rows conv3d takes an unblocked kernel, measured 3 to 10 times slower
        # than oneDNN's.
        return _ONEDNN(x, weight, bias, padding, (1, stride, stride), (1, 1, 1), 1)
    return F.conv3d(x, weight, bias, (1, stride, stride), padding)


def takes_onednn(x: Tensor) -> bool:
    """Whether oneDNN's convolution can be called by itself: by its size conv3d would take another
    one."""
    return bool(_ONEDNN) and x.device.type == "cpu" and x.dtype == torch.float32 \
        and torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu") \
        and not torch.is_grad_enabled()


def rows_per_block(execution: Execution, x: Tensor, weight: Tensor, voxels_per_row: int) -> int:
    """Rows that a unit of this convolution computes at once; see `Execution.block_voxels`."""
    voxels = execution.block_voxels
    if voxels is None:
        # a block in a processor's cache
        voxels = voxels_in(free_on_gpu(x.device), weight) if x.is_cuda else 2**15
    return max(1, voxels // voxels_per_row) if voxels else 2**31


def voxels_in(free: int, weight: Tensor) -> int:
    """Voxels whose gates, and three copies of their input, take a quarter of `free` bytes; tensors
    stay below 2^31 values."""
    gates, inputs = weight.shape[:2]
    return max(
        1, min(free // 4 // ((gates + 3 * inputs) * weight.element_size()), (2**31 - 1) // gates))


def free_on_gpu(device: torch.device) -> int:
    """Bytes that a GPU has free, what torch holds without using it included."""
    return (torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
