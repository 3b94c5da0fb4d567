"""Pooling on a CPU: the C++ kernel `pooling.cpp`, built on first use (see `models.layers.build`).

It uses `torch.get_num_threads()` threads, saves nothing but the gates and recomputes the states in
the backward pass.
"""
from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.layers.build import built_library
from models.layers.pooling.loop import gate_count

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_KINDS = {"f": 0, "fo": 1, "ifo": 2}
_DIRECTIONS = {"forward": 0, "backward": 1, "both": 2}


def forward(out: Tensor, gates: Tensor, skip: Tensor | None, kind: str, direction: str) -> None:
    """Write the pooled states (+ skip) into `out`, any strided view."""
    if out.numel():
        shape, views = _describe(kind, direction, gates, out, skip)
        _check(library().pooling_forward(shape, views[1], views[0], views[2]))


def backward(grad_gates: Tensor, grad: Tensor, gates: Tensor, kind: str, direction: str) -> None:
    """Write the gradient of the raw gates into `grad_gates`, given the gradient of the states."""
    if gates.numel():
        shape, views = _describe(kind, direction, gates, grad_gates, grad)
        _check(library().pooling_backward(shape, views[1], views[2], views[0]))


def lane_axes(shape: Sequence[int],
              strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """The lanes (all axes of (N, C, B, H, W) but the bands) as four axes, innermost first.

    Axes are ordered by the first tensor's strides and merged where every tensor allows it, so that
    the innermost is as long as can be; missing ones have size 1.

    Returns:
        Their sizes, and for each tensor its four strides in elements.
    """
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for axis in sorted((a for a in (4, 3, 1, 0) if shape[a] > 1), key=lambda a: strides[0][a]):
        if (sizes
                and all(stride[axis] == step[-1] * sizes[-1]
                        for stride, step in zip(strides, steps, strict=True))):
            sizes[-1] *= shape[axis]
        else:
            sizes.append(shape[axis])
            for stride, step in zip(strides, steps, strict=True):
                step.append(stride[axis])
    missing = 4 - len(sizes)
    return sizes + [1] * missing, [step + [0] * missing for step in steps]


# ------------------------------------------------------------------------------ the compiled kernel

class _View(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("dtype", ctypes.c_int64), ("lanes", ctypes.c_int64 * 4),
                ("band", ctypes.c_int64), ("gate", ctypes.c_int64))


class _Shape(ctypes.Structure):
    _fields_ = (("lanes", ctypes.c_int64 * 4), ("bands", ctypes.c_int64), ("kind", ctypes.c_int64),
                ("direction", ctypes.c_int64), ("threads", ctypes.c_int64))


def _describe(kind: str, direction: str,
              *tensors: Tensor | None) -> tuple[_Shape, list[_View | None]]:
    """The C structures for tensors of which the first holds gates."""
    batch, channels, bands, height, width = tensors[0].shape
    channels //= gate_count(kind, direction == "both")
    given = [t for t in tensors if t is not None]
    strides = [t.stride() for t in given]
    sizes, steps = lane_axes((batch, channels, bands, height, width), strides)
    shape = _Shape((ctypes.c_int64 * 4)(*sizes), bands, _KINDS[kind], _DIRECTIONS[direction],
                   torch.get_num_threads())
    views = []
    for t, stride, step in zip(given, strides, steps, strict=True):
        lanes = (ctypes.c_int64 * 4)(*step)
        views.append(_View(t.data_ptr(), DTYPES[t.dtype], lanes, stride[2], channels * stride[1]))
    return shape, [None if t is None else views.pop(0) for t in tensors]


def _check(code: int) -> None:
    if code:
        raise MemoryError("the compiled pooling could not allocate its scratch memory")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None where there is none."""
    loaded = built_library(Path(__file__).with_name("pooling.cpp"))
    if loaded:
        shape, view = ctypes.POINTER(_Shape), ctypes.POINTER(_View)
        loaded.pooling_forward.argtypes = loaded.pooling_backward.argtypes = [
            shape, view, view, view]
    return loaded
