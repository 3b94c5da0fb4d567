"""Quasi-recurrent pooling along the band axis, three ways side by side, and the choice between
them.

`loop` is the definition (plain autograd), and takes the place of the others where nothing can
compile them; `cpu` is a compiled kernel, `triton` a CUDA kernel. These two apply the activations
themselves, save nothing but the gates for the backward pass and recompute the states there.
"""
from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from models.layers.pooling import cpu, loop
from models.layers.pooling.loop import gate_count, output_dtype

__all__ = ["BACKENDS", "available_backends", "gate_count", "pool", "pool_into"]

BACKENDS = ("loop", "cpu", "triton")
_KINDS = ("f", "fo", "ifo")
_DIRECTIONS = ("forward", "backward", "both")
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def available_backends() -> tuple[str, ...]:
    """The backends that can run on this machine, in the order of `BACKENDS`."""
    triton = _HAS_TRITON and (torch.cuda.is_available() or _interpreting())
    return BACKENDS if triton else BACKENDS[:2]


def pool(gates: Tensor, kind: str, direction: str, skip: Tensor | None = None,
         backend: str = "auto") -> Tensor:
    """Pool the raw output of a convolution along its bands; differentiable in `gates` and `skip`.

    Args:
        gates: (N, g*C, B, H, W) with g = gate_count(kind, direction == "both"), before any
            activation; any strides.
        kind: "f", "fo" or "ifo" (formulas in `models.layers.pooling.loop`).
        direction: "forward", "backward" or "both" (their sum).
        skip: (N, C, B, H, W), added to the result.
        backend: "auto" or one of `BACKENDS`. "auto" is cpu for CPU tensors, triton for CUDA tensors
            where Triton is installed and can compile, else loop. So is cpu where there is no
            compiler.

    Returns:
        (N, C, B, H, W) in the memory format of the gates. Its dtype is that of the gates, promoted
        with that of `skip`; half precision is accumulated in float32.

    Raises:
        ValueError: shapes, kind, direction or backend that do not fit.
        RuntimeError: a backend that cannot run here.
    """
    _check(gates, kind, direction, skip)
    backend = _choose(backend, gates)
    if backend == "loop":
        return loop.pool(gates, kind, direction, skip)
    return _pool(gates, skip, kind, direction, backend)


def pool_into(out: Tensor, gates: Tensor, kind: str, direction: str, skip: Tensor | None = None,
              backend: str = "auto") -> None:
    """`pool` without autograd, written into `out` (N, C, B, H, W), which may be any strided view of
    any floating dtype.

    `out` may be the same memory as `skip` (adding in place), but must not overlap `gates`.
    """
    channels = _check(gates, kind, direction, skip)
    if out.shape != (gates.shape[0], channels, *gates.shape[2:]):
        raise ValueError(f"out has shape {tuple(out.shape)}, expected "
                         f"{(gates.shape[0], channels, *gates.shape[2:])}")
    backend = _choose(backend, gates)
    with torch.no_grad():
        if backend == "loop":
            out.copy_(loop.pool(gates, kind, direction, skip))
        else:
            # an operator's call takes 0.1 ms
            write = _pool_into if torch.compiler.is_compiling() else _write
            write(out, gates, skip, kind, direction, backend)


def _check(gates: Tensor, kind: str, direction: str, skip: Tensor | None) -> int:
    """Refuse what no backend can pool; returns C."""
    if kind not in _KINDS:
        raise ValueError(f"pooling kind {kind!r} is unknown; choose one of {', '.join(_KINDS)}")
    if direction not in _DIRECTIONS:
        raise ValueError(
            f"direction {direction!r} is unknown; choose one of {', '.join(_DIRECTIONS)}")
    count = gate_count(kind, direction == "both")
    if (gates.dim() != 5 or gates.shape[1] % count or gates.shape[2] < 1
            or not gates.is_floating_point()):
        raise ValueError(f"gates are {tuple(gates.shape)} {gates.dtype}, expected floating (N, "
                         f"{count}*C, B >= 1, H, W) for {kind}-pooling, {direction}")
    channels = gates.shape[1] // count
    if skip is not None and skip.shape != (gates.shape[0], channels, *gates.shape[2:]):
        raise ValueError(f"skip has shape {tuple(skip.shape)}, expected "
                         f"{(gates.shape[0], channels, *gates.shape[2:])}")
    return channels


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _choose(backend: str, gates: Tensor) -> str:
    if backend == "auto":
        backend = (
            "cpu" if gates.device.type == "cpu" else "triton" if _triton_runs(gates) else "loop")
    if backend not in BACKENDS:
        raise ValueError(
            f"pooling backend {backend!r} is unknown; choose auto or one of {', '.join(BACKENDS)}")
    if backend == "cpu" and gates.device.type != "cpu":
        raise RuntimeError(f"the cpu pooling takes CPU tensors, these are on {gates.device}; "
                           "choose auto, loop or triton")
    if backend == "triton":
        if not _HAS_TRITON:
            raise RuntimeError("the triton pooling needs the package triton, which is not "
                               "installed; choose auto, loop or cpu")
        if not gates.is_cuda and not _interpreting():
            raise RuntimeError("the triton pooling takes CUDA tensors, these are on "
                               f"{gates.device}; choose auto, loop or cpu, or set "
                               "TRITON_INTERPRET=1 to run it under Triton's interpreter")
        if gates.dtype == torch.float64:
            raise ValueError("the triton pooling takes float32, float16 and bfloat16, not float64; "
                             "choose loop or cpu")
    return "loop" if backend == "cpu" and not _compiled() else backend


def _triton_runs(gates: Tensor) -> bool:
    return gates.is_cuda and _HAS_TRITON and gates.dtype != torch.float64 and _triton_compiles()


def _constant(function: Callable[..., bool]) -> Callable[..., bool]:
    """What `torch.compiler.assume_constant_result` does, which imports the compiler: half as long
    again as torch."""
    function._dynamo_marked_constant = True
    return function


@_constant
def _compiled() -> bool:
    return cpu.library() is not None


# Registered as operators, so that torch.compile passes over them whole and knows shapes, strides
# and gradients. An operator is replaced where it exists already: this file may be imported twice,
# by a reload or from another checkout.
def _kernels(backend: str):
    """The module of a backend."""
    if backend == "cpu":
        return cpu
    from models.layers.pooling import gpu  # imports Triton

    return gpu


@_constant
@functools.cache
def _triton_compiles() -> bool:
    """Whether a kernel can be built on this machine; tried once, and a warning says why it
    cannot."""
    try:
        from models.layers.pooling import gpu
        gates = torch.zeros(1, 3, 1, 1, 1, device="cuda")
        gpu.forward(torch.empty_like(gates[:, :1]), gates, None, "f", "both")
    except Exception as error:  # whatever the compiler, the linker or the driver raises
        warnings.warn(f"Triton cannot compile the pooling here ({type(error).__name__}: {error}), "
                      "so the slower loop runs; install a C compiler.", stacklevel=2)
        return False
    return True


def _empty_output(gates: Tensor, skip: Tensor | None, kind: str, direction: str,
                  backend: str = "") -> Tensor:
    channels = gates.shape[1] // gate_count(kind, direction == "both")
    return torch.empty_like(gates[:, :channels], dtype=output_dtype(gates, skip))


@torch.library.custom_op("bi3dqrnn::pool", mutates_args=())
def _pool(gates: Tensor, skip: Tensor | None, kind: str, direction: str, backend: str) -> Tensor:
    out = _empty_output(gates, skip, kind, direction)
    _kernels(backend).forward(out, gates, skip, kind, direction)
    return out


@torch.library.custom_op("bi3dqrnn::pool_backward", mutates_args=())
def _pool_backward(grad: Tensor, gates: Tensor, kind: str, direction: str, backend: str) -> Tensor:
    grad_gates = torch.empty_like(gates)
    _kernels(backend).backward(grad_gates, grad, gates, kind, direction)
    return grad_gates


def _write(out: Tensor, gates: Tensor, skip: Tensor | None, kind: str, direction: str,
           backend: str) -> None:
    _kernels(backend).forward(out, gates, skip, kind, direction)


_pool_into = torch.library.custom_op("bi3dqrnn::pool_into", _write, mutates_args=("out",))


def _setup_context(ctx, inputs, output) -> None:
    gates, skip, ctx.kind, ctx.direction, ctx.backend = inputs
    ctx.skip_dtype = None if skip is None else skip.dtype
    ctx.save_for_backward(gates)


def _gradients(ctx, grad: Tensor):
    (gates,) = ctx.saved_tensors
    grad_gates = grad_skip = None
    if ctx.needs_input_grad[0]:
        grad_gates = _pool_backward(grad, gates, ctx.kind, ctx.direction, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_skip = grad.to(ctx.skip_dtype)
    return grad_gates, grad_skip, None, None, None


_pool.register_fake(_empty_output)
_pool_backward.register_fake(lambda grad, gates, kind, direction, backend: torch.empty_like(gates))
_pool_into.register_fake(lambda out, gates, skip, kind, direction, backend: None)
_pool.register_autograd(_gradients, setup_context=_setup_context)
