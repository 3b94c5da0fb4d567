"""Which memory format a network's convolutions see on a GPU: the one in which its units were measured faster there.

cuDNN has its fast kernels for channels-last in half precision and with TF32; in float32 without TF32 channels-last is a known
slow path. The choice depends on GPU, torch and shape. So each unit is timed in both formats, once: the times are kept in the
cache folder of the compiled kernels. A network has one format, since a change between two units would cost a copy.
"""
from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.layers.pooling.cpu import cache_folder
from models.network import Execution, Network

Clock = Callable[[Callable[[], Any]], float]
"""Seconds that a piece of work takes."""


def choose_layout(net: Network, *inputs: Tensor, clock: Clock | None = None, machine: str | None = None) -> None:
    """Let a network compute in the format in which its units are faster; its output stays the same but for rounding.

    Where gradients are on, the backward pass is timed too. Nothing is timed where `execution.channels_last` says a format, on a
    processor, or where runs shall be the same to the last bit.

    Args:
        inputs: of the shapes and in the autocast of the work that follows.
        clock: what measures, instead of the GPU's own events.
        machine: the name under which times are kept, instead of the GPU's and torch's.
    """
    units, gradients = net.units(), torch.is_grad_enabled()
    wanted = clock or (inputs[0].is_cuda and not torch.are_deterministic_algorithms_enabled())
    if not wanted or not units or net.execution.channels_last is not None:
        return
    machine = machine or f"{torch.cuda.get_device_name(inputs[0].device)}, torch {torch.__version__}"
    file = cache_folder() / "layouts.json"
    kept = _kept(file)
    known = kept.setdefault(machine, {})
    totals, before = [0.0, 0.0], len(known)
    for key, work in _works(net, units, inputs, gradients):
        if key not in known:
            known[key] = [(clock or _on_gpu)(work(last)) for last in (False, True)]
        totals = [total + seconds for total, seconds in zip(totals, known[key], strict=True)]
    if len(known) > before:
        _keep(file, kept)
    net.set_execution(measured_last=totals[1] <= totals[0])


def _works(net: Network, units: list[nn.Module], inputs: tuple[Tensor, ...],
           gradients: bool) -> list[tuple[str, Callable[[bool], Callable[[], Any]]]]:
    """Of each unit that runs: a name for its shapes and types, and its work alone in a format."""
    works = []

    def note(unit: nn.Module, given: tuple, out: Tensor) -> None:
        x, skip, how = given
        images = [None if image is None else (image.shape, image.dtype, image.requires_grad) for image in (x, skip)]
        half = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else None
        key = [[*map(list, (p.shape for p in unit.parameters()))], list(x.shape), list(out.shape), skip is not None,
               str(x.dtype), str(half), torch.backends.cudnn.allow_tf32, gradients]
        works.append((json.dumps(key), lambda last: _work(unit, images, how, last, x_device, gradients)))

    x_device = inputs[0].device
    hooks = [unit.register_forward_hook(note) for unit in units]
    try:
        with torch.enable_grad():  # without gradients a network may compute in blocks, by another path
            net(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return works


def _work(unit: nn.Module, images: list[tuple | None], how: Any, last: bool, device: torch.device,
          gradients: bool) -> Callable[[], Any]:
    layout = torch.channels_last_3d if last else torch.contiguous_format
    x, skip = (None if image is None else torch.full(image[0], 0.5, dtype=image[1], device=device).contiguous(
        memory_format=layout).requires_grad_(gradients and image[2]) for image in images)
    how = replace(how, channels_last=last) if isinstance(how, Execution) else how
    after = [t for t in (x, skip, *unit.parameters()) if t is not None and t.requires_grad] if gradients else []

    def run() -> None:
        out = unit(x, skip, how)
        if after:
            torch.autograd.grad(out, after, torch.ones_like(out))

    return run


def _on_gpu(work: Callable[[], Any]) -> float:
    """The shortest of five, after three in which cuDNN chooses its algorithm."""
    seconds = []
    for _ in range(8):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000)
    return min(seconds[3:])


def _kept(file: Path) -> dict[str, dict[str, list[float]]]:
    """{machine: {unit: seconds in either format}}; of a file that is missing or damaged, nothing."""
    with suppress(OSError, ValueError, AttributeError, TypeError):
        return {machine: {key: [float(a), float(b)] for key, (a, b) in times.items()}
                for machine, times in json.loads(file.read_text()).items()}
    return {}


def _keep(file: Path, kept: dict[str, dict[str, list[float]]]) -> None:
    with suppress(OSError):  # a machine without a cache measures each time
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".layouts-")
        with open(handle, "w") as out:
            json.dump(kept, out)
        os.replace(temporary, file)  # processes that measure at the same time each put a whole file here
