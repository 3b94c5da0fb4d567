"""Doubling rows and columns as trilinear interpolation with align_corners=True does, on a CPU and on a GPU.

Position p of a doubled axis of W samples lies at p (W - 1) / (2W - 1) of the source. With D = 2W - 1

    y[2k]   = x[k-1] k/D     + x[k] (D-k)/D          dx[k] = dy[2k-1] (W-k)/D + dy[2k]   (D-k)/D
    y[2k+1] = x[k] (W+k)/D   + x[k+1] (W-1-k)/D              + dy[2k+1] (W+k)/D + dy[2k+2] (k+1)/D

where terms outside the axis are left out. So each gradient gathers from four positions an axis, in a fixed order: two runs
give the same bits. torch's own backward scatters by atomic additions on a GPU. Sums are float32, or float64 for float64
values; half precision is rounded once, at the end.
"""
from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from models.layers.pooling import cpu, triton_runs
from models.network import Window


def double(x: Tensor) -> Tensor:
    """(N, C, B, H, W) -> (N, C, B, 2H, 2W) in the layout of x; differentiable."""
    return _double(x)


def double_part(x: Tensor, source: Window, target: Window) -> Tensor:
    """A part of a doubled image, without gradients: its window `target`, from x in the window `source`.

    An outermost position of which one sample is outside `source` copies the other. That is exact at the ends of the image.
    """
    size = target.bottom - target.top, target.right - target.left
    out = torch.empty((*x.shape[:3], *size), dtype=x.dtype, device=x.device, memory_format=_layout_of(x))
    _forward(out, x, (target.top, target.left), (source.top, source.left), (source.height, source.width))
    return out


def _forward(out: Tensor, x: Tensor, first: tuple[int, int], start: tuple[int, int], whole: tuple[int, int]) -> None:
    if triton_runs(x):
        from models.layers import upsampling_gpu
        upsampling_gpu.forward(out, x, first, start, whole)
    elif x.device.type == "cpu" and (library := cpu.library()):
        if out.numel():
            *arguments, _kept = _described(out, x, first, start, whole)
            library.double_forward(*arguments)
    else:
        for axis in (-2, -1):
            x = _along(_wide(x), axis, out.shape[axis], first[axis], start[axis], whole[axis])
        out.copy_(x)


def _backward(grad_x: Tensor, grad: Tensor) -> None:
    if triton_runs(grad):
        from models.layers import upsampling_gpu
        upsampling_gpu.backward(grad_x, grad)
    elif grad.device.type == "cpu" and (library := cpu.library()):
        if grad.numel():
            *arguments, _kept = _described(grad_x, grad)
            library.double_backward(*arguments)
    else:
        grad_x.copy_(_gathered(_gathered(_wide(grad), -2), -1))


# ---------------------------------------------------------------------------------------------------------- as operators

# See `models.layers.pooling` for why these are operators.
@torch.library.custom_op("bi3dqrnn::double", mutates_args=())
def _double(x: Tensor) -> Tensor:
    out = _empty_double(x)
    _forward(out, x, (0, 0), (0, 0), (x.shape[-2], x.shape[-1]))
    return out


@torch.library.custom_op("bi3dqrnn::double_backward", mutates_args=())
def _double_backward(grad: Tensor) -> Tensor:
    grad_x = _empty_half(grad)
    _backward(grad_x, grad)
    return grad_x


def _empty_double(x: Tensor) -> Tensor:
    *outer, height, width = x.shape
    return torch.empty((*outer, 2 * height, 2 * width), dtype=x.dtype, device=x.device, memory_format=_layout_of(x))


def _empty_half(grad: Tensor) -> Tensor:
    *outer, height, width = grad.shape
    return torch.empty((*outer, height // 2, width // 2), dtype=grad.dtype, device=grad.device, memory_format=_layout_of(grad))


_double.register_fake(_empty_double)
_double_backward.register_fake(_empty_half)
_double.register_autograd(lambda ctx, grad: _double_backward(grad))


# ------------------------------------------------------------------------------------------------------ the compiled kernel

class _Image(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_int64 * 5), ("stride", ctypes.c_int64 * 5))


class _Part(ctypes.Structure):
    _fields_ = (("first", ctypes.c_int64 * 2), ("start", ctypes.c_int64 * 2), ("whole", ctypes.c_int64 * 2),
                ("dtype", ctypes.c_int64), ("threads", ctypes.c_int64))


def _described(to: Tensor, x: Tensor, *places: tuple[int, int]) -> tuple:
    """The arguments of the compiled kernel, and x, copied where the channels of its columns do not lie side by side."""
    layout = _layout_of(to if places else x)  # of the larger, whose strides are never those of a single pixel
    run = x.shape[1] if layout == torch.channels_last_3d else 1
    if (x.shape[4] > 1 and x.stride(4) != run) or (run > 1 and x.stride(1) != 1):
        x = x.contiguous(memory_format=layout)
    images = [ctypes.byref(_Image(t.data_ptr(), tuple(t.shape), t.stride())) for t in (to, x)]
    part = _Part(*(places or [(0, 0)] * 3), cpu.DTYPES[x.dtype], torch.get_num_threads())
    return *images, ctypes.byref(part), ctypes.c_int64(run), x


def _layout_of(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last_3d) or x.stride(1) == 1
    return torch.channels_last_3d if last and x.shape[1] > 1 else torch.contiguous_format


# ------------------------------------------------------------------------------------------------------------------ in torch

def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _along(x: Tensor, axis: int, count: int, first: int, start: int, whole: int) -> Tensor:
    """`count` positions of a doubled axis, from `first` on, of an axis of which x has the samples from `start` on."""
    p = torch.arange(first, first + count, device=x.device)
    k, odd = p // 2, p % 2
    last = x.shape[axis] - 1
    share = ((2 - odd) * whole - 1 - k).double() / (2 * whole - 1)
    low, high = (x.index_select(axis, (k + odd - start + step).clamp(0, last)) for step in (-1, 0))
    return torch.lerp(low, high, share.to(x.dtype).view([-1] + [1] * (-1 - axis)))


def _gathered(grad: Tensor, axis: int) -> Tensor:
    whole = grad.shape[axis] // 2
    k, last = torch.arange(whole, device=grad.device), 2 * whole - 1
    total = 0
    for step, part in enumerate((whole - k, last - k, whole + k, k + 1)):
        p = 2 * k - 1 + step
        share = torch.where((p >= 0) & (p <= last), part.double() / last, 0).to(grad.dtype)
        total = total + grad.index_select(axis, p.clamp(0, last)) * share.view([-1] + [1] * (-1 - axis))
    return total
