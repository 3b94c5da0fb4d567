"""Pooling on a CPU: a small C++ kernel built on first use, or plain torch where there is no compiler.

`pooling.cpp`, with `upsampling.cpp`, is compiled for this processor with the first C++ compiler found ($CXX, g++, c++, clang++)
and kept in $XDG_CACHE_HOME/bi3dqrnn (~/.cache/bi3dqrnn), under a name made of source, flags, compiler and processor. It uses
`torch.get_num_threads()` threads of the OpenMP runtime that torch has loaded: a second runtime's idle threads would spin
against the convolutions. BI3DQRNN_NO_COMPILE=1 turns it off.

Both versions save nothing but the gates and recompute the states in the backward pass.
"""
from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from models.layers.pooling.loop import gate_count

_SOURCES = [Path(__file__).with_name("pooling.cpp"), Path(__file__).parents[1] / "upsampling.cpp"]
_COMMON = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-shared", "-fPIC"]
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_KINDS = {"f": 0, "fo": 1, "ifo": 2}
_DIRECTIONS = {"forward": 0, "backward": 1, "both": 2}


def forward(out: Tensor, gates: Tensor, skip: Tensor | None, kind: str, direction: str) -> None:
    """Write the pooled states (+ skip) into `out`, any strided view."""
    library = _kernel(out, gates, skip)
    if library is None:
        _torch_forward(out, gates, skip, kind, direction)
    elif out.numel():
        shape, views = _describe(kind, direction, gates, out, skip)
        _check(library.pooling_forward(shape, views[1], views[0], views[2]))


def backward(grad_gates: Tensor, grad: Tensor, gates: Tensor, kind: str, direction: str) -> None:
    """Write the gradient of the raw gates into `grad_gates`, given the gradient of the states."""
    library = _kernel(grad_gates, grad, gates)
    if library is None:
        _torch_backward(grad_gates, grad, gates, kind, direction)
    elif gates.numel():
        shape, views = _describe(kind, direction, gates, grad_gates, grad)
        _check(library.pooling_backward(shape, views[1], views[2], views[0]))


def lane_axes(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """The lanes (all axes of (N, C, B, H, W) but the bands) as four axes, innermost first.

    Axes are ordered by the first tensor's strides and merged where every tensor allows it, so that the innermost is as
    long as can be; missing ones have size 1.

    Returns:
        Their sizes, and for each tensor its four strides in elements.
    """
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for axis in sorted((a for a in (4, 3, 1, 0) if shape[a] > 1), key=lambda a: strides[0][a]):
        if sizes and all(stride[axis] == step[-1] * sizes[-1] for stride, step in zip(strides, steps, strict=True)):
            sizes[-1] *= shape[axis]
        else:
            sizes.append(shape[axis])
            for stride, step in zip(strides, steps, strict=True):
                step.append(stride[axis])
    missing = 4 - len(sizes)
    return sizes + [1] * missing, [step + [0] * missing for step in steps]


# ---------------------------------------------------------------------------------------------- the compiled kernel

class _View(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("dtype", ctypes.c_int64), ("lanes", ctypes.c_int64 * 4),
                ("band", ctypes.c_int64), ("gate", ctypes.c_int64))


class _Shape(ctypes.Structure):
    _fields_ = (("lanes", ctypes.c_int64 * 4), ("bands", ctypes.c_int64), ("kind", ctypes.c_int64),
                ("direction", ctypes.c_int64), ("threads", ctypes.c_int64))


def _describe(kind: str, direction: str, *tensors: Tensor | None) -> tuple[_Shape, list[_View | None]]:
    """The C structures for tensors of which the first holds gates."""
    batch, channels, bands, height, width = tensors[0].shape
    channels //= gate_count(kind, direction == "both")
    given = [t for t in tensors if t is not None]
    strides = [t.stride() for t in given]
    sizes, steps = lane_axes((batch, channels, bands, height, width), strides)
    shape = _Shape((ctypes.c_int64 * 4)(*sizes), bands, _KINDS[kind], _DIRECTIONS[direction], torch.get_num_threads())
    views = iter(_View(t.data_ptr(), DTYPES[t.dtype], (ctypes.c_int64 * 4)(*step), stride[2], channels * stride[1])
                 for t, stride, step in zip(given, strides, steps, strict=True))
    return shape, [None if t is None else next(views) for t in tensors]


def _check(code: int) -> None:
    if code:
        raise MemoryError("the compiled pooling could not allocate its scratch memory")


def _kernel(*tensors: Tensor | None) -> ctypes.CDLL | None:
    """The compiled library when it is there and takes these tensors."""
    return library() if all(t is None or t.dtype in DTYPES for t in tensors) else None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, built when it is not in the cache; None where it is turned off or cannot be built."""
    if os.environ.get("BI3DQRNN_NO_COMPILE", "0") not in ("", "0"):
        return None
    names = [os.environ.get("CXX"), "g++", "c++", "clang++"]
    for compiler in (found for name in names if name and (found := shutil.which(name))):
        for flags in _flag_sets():
            try:
                return _load(compiler, [*_COMMON, *flags])
            except (OSError, subprocess.SubprocessError) as error:
                output = getattr(error, "stderr", None) or str(error)
                logging.getLogger(__name__).debug("%s %s failed: %s", compiler, " ".join(flags), output)
    logging.getLogger(__name__).info("no C++ compiler could build the pooling kernel; using the slower torch version")
    return None


def _flag_sets() -> list[list[str]]:
    """Best first."""
    runtimes = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    own = [["-march=native", "-fopenmp", "-Wl,--as-needed", str(runtimes[0])]] if runtimes else []
    return [*own, ["-march=native", "-fopenmp"], ["-march=native"], []]


def _load(compiler: str, flags: list[str]) -> ctypes.CDLL:
    """Load the library built so, from the cache if it is there.

    Raises:
        OSError, subprocess.SubprocessError: it could not be built or loaded.
    """
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    sources = [path.read_bytes() for path in _SOURCES]
    key = hashlib.sha256(b"\0".join([*sources, " ".join(flags).encode(), version, _processor().encode()]))
    name = f"pooling-{key.hexdigest()[:20]}.so"
    cache = cache_folder()
    final = cache / name
    checksum = final.with_suffix(".sha256")
    with suppress(OSError):  # missing, damaged (to load it would crash), or of another machine: it is built anew
        if checksum.read_text() == hashlib.sha256(final.read_bytes()).hexdigest():
            return _declare(ctypes.CDLL(str(final)))
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = cache if os.access(cache, os.W_OK) else None
    except OSError:
        place = None
    with tempfile.TemporaryDirectory(prefix=".build-", dir=place) as folder:
        built = Path(folder) / name
        # Libraries come after the source, or the linker takes them for not needed.
        words = [compiler, *(w for w in flags if ".so" not in w), *map(str, _SOURCES), *(w for w in flags if ".so" in w)]
        subprocess.run([*words, "-o", str(built)], capture_output=True, check=True, timeout=300, text=True)
        loaded = _declare(ctypes.CDLL(str(built)))  # stays mapped; one that does not load must not enter the cache
        if place is not None:
            with suppress(OSError):  # processes that build at the same time each put whole files here
                written = built.with_suffix(".sha256")
                written.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
                for path, target in ((built, final), (written, checksum)):
                    with open(path, "r+b") as file:
                        os.fsync(file.fileno())
                    os.replace(path, target)
    return loaded


def _declare(loaded: ctypes.CDLL) -> ctypes.CDLL:
    shape, view = ctypes.POINTER(_Shape), ctypes.POINTER(_View)
    loaded.pooling_forward.argtypes = [shape, view, view, view]
    loaded.pooling_backward.argtypes = [shape, view, view, view]
    loaded.double_forward.restype = loaded.double_backward.restype = None
    return loaded


def cache_folder() -> Path:
    """Where this machine's kernels and measurements are kept; it may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bi3dqrnn"


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
        return "\n".join([*platform.libc_ver(), *sorted(known)])
    except OSError:
        return f"{platform.machine()} {platform.processor()}"


# ---------------------------------------------------------------------------------------- without a compiler: torch

def _activated(gates: Tensor, kind: str, direction: str) -> tuple[Tensor, list[tuple]]:
    """z and for each direction (reverse, f, o or None, i or None), in the dtype of the state."""
    if gates.dtype in (torch.float16, torch.bfloat16):
        gates = gates.float()
    z, *rest = gates.chunk(gate_count(kind, direction == "both"), dim=1)
    rest = [torch.sigmoid(part) for part in rest]
    reverses = [False, True] if direction == "both" else [direction == "backward"]
    n = len(reverses)
    return torch.tanh(z), [
        (reverse, rest[k], rest[n + k] if kind != "f" else None, rest[2 * n + k] if kind == "ifo" else None)
        for k, reverse in enumerate(reverses)
    ]


def _order(bands: int, reverse: bool) -> range:
    return range(bands - 1, -1, -1) if reverse else range(bands)


def _states(z: Tensor, f: Tensor, i: Tensor | None, reverse: bool) -> Tensor:
    """All c_t."""
    states = torch.empty_like(z)
    before = torch.zeros_like(z[:, :, 0])
    for t in _order(z.shape[2], reverse):
        now = states[:, :, t]
        if i is None:
            torch.lerp(z[:, :, t], before, f[:, :, t], out=now)
        else:
            torch.mul(i[:, :, t], z[:, :, t], out=now).addcmul_(f[:, :, t], before)
        before = now
    return states


def _torch_forward(out: Tensor, gates: Tensor, skip: Tensor | None, kind: str, direction: str) -> None:
    z, directions = _activated(gates, kind, direction)
    total = None
    for reverse, f, o, i in directions:
        h = _states(z, f, i, reverse)
        if o is not None:
            h.mul_(o)
        total = h if total is None else total.add_(h)
    out.copy_(total if skip is None else total + skip)


def _torch_backward(grad_gates: Tensor, grad: Tensor, gates: Tensor, kind: str, direction: str) -> None:
    """With e the gradient that reaches c_t: do = G c, e = G o + (f e of the step after), df = e (c_{t-1} - z) or e c_{t-1},
    di = e z, dz = e (1 - f) or e i."""
    z, directions = _activated(gates, kind, direction)
    grad = grad.to(z.dtype)
    n = len(directions)
    parts = grad_gates.chunk(gate_count(kind, direction == "both"), dim=1)
    grad_z = torch.zeros_like(z)
    for k, (reverse, f, o, i) in enumerate(directions):
        c = _states(z, f, i, reverse)
        if o is not None:
            parts[1 + n + k].copy_(grad * c * o * (1 - o))
        zero = torch.zeros_like(c[:, :, :1])
        before = torch.cat([c[:, :, 1:], zero] if reverse else [zero, c[:, :, :-1]], dim=2)
        e = grad.clone() if o is None else grad * o
        order = _order(z.shape[2], not reverse)
        for step, t in itertools.pairwise(order):
            e[:, :, t].addcmul_(f[:, :, step], e[:, :, step])
        into_z = e * (1 - f if i is None else i)
        grad_z += into_z
        if i is None:
            parts[1 + k].copy_((before - z) * f * into_z)
        else:
            parts[1 + k].copy_(e * before * f * (1 - f))
            parts[1 + 2 * n + k].copy_(e * z * i * (1 - i))
    parts[0].copy_(grad_z * (1 - z * z))


plain = SimpleNamespace(forward=_torch_forward, backward=_torch_backward)
"""This version alone, which runs on any device."""
