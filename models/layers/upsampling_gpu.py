"""Doubling on a CUDA GPU: Triton kernels; the formulas stand in `upsampling.py`.

A thread owns one element of the result. Neighbouring threads own neighbours in memory, so every access is coalesced in either
layout. The shares come from positions alone: nothing is looked up, and nothing is copied to the GPU.
"""
from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


def forward(out: Tensor, x: Tensor, first: tuple[int, int], start: tuple[int, int], whole: tuple[int, int]) -> None:
    """Write into `out`, which is dense, the part of a doubled image that begins at position `first` (row, column).

    Args:
        x: any strides; `start` is its first sample's row and column in an image of `whole` samples.
    """
    _launch(_forward, out, x, *first, *start, *whole)


def backward(grad_x: Tensor, grad: Tensor) -> None:
    """Write into `grad_x`, which is dense, the gradient of a whole image that was doubled; `grad` has any strides."""
    _launch(_backward, grad_x, grad)


def _launch(kernel, out: Tensor, x: Tensor, *places: int) -> None:
    if not out.numel():
        return
    last = out.stride(1) == 1 and out.shape[1] > 1
    guard = torch.cuda.device(out.device) if out.is_cuda else contextlib.nullcontext()
    block = _BLOCK if out.is_cuda else 4096
    with guard:
        kernel[(triton.cdiv(out.numel(), block),)](
            out, x, *x.stride(), out.numel(), *out.shape[1:], *x.shape[3:], *places, LAST=last,
            WIDE=max(out.numel() + block, x.numel()) >= 2**31, BLOCK=block, num_warps=4, enable_fp_fusion=True)


@triton.jit
def _element(count, C, B, H, W, sn, sc, sb, LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The elements of this program: their place, whether they exist, row, column, and where their image begins in x."""
    index = tl.program_id(0)
    if WIDE:
        index = index.to(tl.int64)
    place = index * BLOCK + tl.arange(0, BLOCK)
    rest = place
    c = rest % C
    if LAST:
        rest = rest // C
    column = rest % W
    rest = rest // W
    row = rest % H
    rest = rest // H
    b = rest % B
    rest = rest // B
    if not LAST:
        c = rest % C
        rest = rest // C
    image = rest.to(tl.int64) * sn + c.to(tl.int64) * sc + b.to(tl.int64) * sb
    return place, place < count, row, column, image


@triton.jit
def _taps(p, start, size, whole):
    """The samples around position p, and the share of the second."""
    k = p // 2
    odd = p % 2
    low = tl.minimum(tl.maximum(k - 1 + odd - start, 0), size - 1)
    high = tl.minimum(tl.maximum(k + odd - start, 0), size - 1)
    return low, high, ((2 - odd) * whole - 1 - k).to(tl.float32) / (2 * whole - 1).to(tl.float32)


@triton.jit
def _read(x, row, column, sh, sw, mask):
    return tl.load(x + row.to(tl.int64) * sh + column.to(tl.int64) * sw, mask=mask, other=0.0).to(tl.float32)


_SIZES = ["sn", "sc", "sb", "sh", "sw", "count", "C", "B", "H", "W", "h", "w", "top", "left", "above", "beside", "rows",
          "columns"]


@triton.jit(do_not_specialize=_SIZES)
def _forward(out, x, sn, sc, sb, sh, sw, count, C, B, H, W, h, w, top, left, above, beside, rows, columns,
             LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    place, mask, row, column, image = _element(count, C, B, H, W, sn, sc, sb, LAST, WIDE, BLOCK)
    up, down, by_row = _taps(row + top, above, h, rows)
    west, east, by_column = _taps(column + left, beside, w, columns)
    x += image
    a = _read(x, up, west, sh, sw, mask)
    b = _read(x, up, east, sh, sw, mask)
    a += by_row * (_read(x, down, west, sh, sw, mask) - a)
    b += by_row * (_read(x, down, east, sh, sw, mask) - b)
    tl.store(out + place, a + by_column * (b - a), mask=mask)


@triton.jit
def _share(k, t: tl.constexpr, whole):
    """Where the sample k went as the t-th of four positions, and its share there; none outside the axis."""
    last = 2 * whole - 1
    p = 2 * k - 1 + t
    if t == 0:
        part = whole - k
    elif t == 1:
        part = last - k
    elif t == 2:
        part = whole + k
    else:
        part = k + 1
    at = tl.minimum(tl.maximum(p, 0), last)
    return at, tl.where(p == at, part.to(tl.float32) / last.to(tl.float32), 0.0)


@triton.jit(do_not_specialize=_SIZES)
def _backward(grad_x, grad, sn, sc, sb, sh, sw, count, C, B, H, W, h, w,
              LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    place, mask, row, column, image = _element(count, C, B, H, W, sn, sc, sb, LAST, WIDE, BLOCK)
    grad += image
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(4):
        p, by_row = _share(row, i, H)
        line = tl.zeros((BLOCK,), tl.float32)
        for j in tl.static_range(4):
            q, by_column = _share(column, j, W)
            line += by_column * _read(grad, p, q, sh, sw, mask)
        total += by_row * line
    tl.store(grad_x + place, total, mask=mask)
