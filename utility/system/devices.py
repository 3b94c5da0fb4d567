"""Which device computes, its name, and in which precision."""
from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from models.layers.pooling import available_backends
from utility.system.errors import UserError
from utility.system.progress import note

# Mixed precision by its name on the command line, and the type that autocast computes in; None: all
# in float32.
AMP: dict[str, torch.dtype | None] = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """The context in which a network computes in the precision `amp`, a name of `AMP`."""
    return torch.autocast(device.type, AMP[amp], enabled=AMP[amp] is not None)


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself: a GPU, or a processor with instructions for
    it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = [
        getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return torch.backends.mkldnn.is_available() and any(ask() for ask in known if ask)


def choose_precision(device: torch.device, amp: str, insisted: bool = False) -> str:
    """A name of `AMP`: what was asked for, and for `auto` bf16 where the device computes it. Raises
    UserError: bf16 was asked for, the processor has no instructions for it, and nobody insisted."""
    if amp == "auto":
        return "bf16" if computes_bf16(device) else "off"
    if amp == "bf16" and device.type == "cpu" and not insisted and not computes_bf16(device):
        raise UserError("This processor has no instructions for bfloat16: a convolution takes "
                        f"{_slower():.0f} times as long as in float32; leave --amp out, or give "
                        "--amp bf16 twice to have it nevertheless.")
    return amp


def _slower() -> float:
    """How many times as long a small convolution takes in bfloat16."""
    x, weight, seconds = torch.rand(1, 16, 8, 32, 32), torch.rand(48, 16, 3, 3, 3), {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = x.to(dtype), weight.to(dtype)
        for _ in range(2):  # the first prepares
            begin = time.perf_counter()
            torch.nn.functional.conv3d(a, b, padding=1)
            seconds[dtype] = time.perf_counter() - begin
    return seconds[torch.bfloat16] / seconds[torch.float32]


def choose_device(cuda: bool = True, gpu_ids: Sequence[int] | None = None, amp: str = "off",
                  pooling: str = "auto") -> torch.device:
    """The first GPU named, GPU 0 where there is one, else the processor.

    Args:
        cuda: False for the processor, although there is a GPU.
        gpu_ids: GPUs asked for; none of them (an empty sequence) means the processor.
        amp, pooling: what shall run there; refused where it cannot.

    Raises UserError: a GPU that was asked for and is not there, or `amp` or `pooling` cannot run on
    the device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not cuda or (gpu_ids is not None and not gpu_ids) or (gpu_ids is None and not count):
        device = torch.device("cpu")
    else:
        wanted = gpu_ids[0] if gpu_ids else 0
        if wanted >= count:
            raise UserError(f"GPU {wanted} was asked for and this machine has {count or 'none'} "
                            "that torch can use; choose another --gpu-ids, or run on the processor "
                            "with --no-cuda.")
        device = torch.device("cuda", wanted)
    if amp == "fp16" and device.type == "cpu":
        raise UserError(
            "--amp fp16 needs a GPU and this run is on the processor; use --amp bf16 or off.")
    runs = {"auto", *available_backends()} - ({"cpu"} if device.type == "cuda" else set())
    if pooling not in runs:
        raise UserError(f"--pooling {pooling} cannot run on {device} here; choose one of "
                        f"{', '.join(sorted(runs))}.")
    return device


def ask_deterministic() -> None:
    """Ask torch for kernels that give the same bits in every run; a note names each kernel of a GPU
    that has no such version.

    To be called before a GPU is used: cuBLAS reads the size of its workspace then. On a processor
    runs agree to the last bit anyway, with the same number of threads.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    show = warnings.showwarning

    def said(message: Warning | str, *where: Any, **more: Any) -> None:
        kernel, found, _ = str(message).partition(" does not have a deterministic implementation")
        if found:
            note(f"{kernel} is not deterministic, although --deterministic asks for it: two runs "
                 "agree but for rounding")
        else:
            show(message, *where, **more)

    warnings.showwarning = said


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
