"""The tools of a comparison: variants of one network, the network without its pooling, timing in turns, fresh processes."""
from __future__ import annotations

import ctypes
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from models import Execution, Network, blocks, create_model, units
from models.pooling import gate_count
from models.pooling.loop import output_dtype
from utility.configuration import TrainingConfig
from utility.devices import autocast
from utility.state import State
from utility.training import train_step

SEED = 2021
SHORTEST = 0.02  # seconds: a sample of a shorter call is the mean of several calls in a row
Row = dict[str, Any]  # a line of a table, by column
Calls = Mapping[str, Callable[[], Any]]


@dataclass(frozen=True)
class Variant:
    """One way to compute the network. The default is the fast one in float32; `released` is the baseline."""

    name: str
    released: bool = False      # Execution.released(): a loop over bands, default layout, whole images
    amp: str = "off"
    tf32: bool = False
    compiled: bool = False
    checkpoint: bool = False
    floor: bool = False         # without pooling, see `without_pooling`

    @property
    def execution(self) -> dict[str, Any]:
        """Fields of `models.Execution`."""
        return asdict(Execution.released() if self.released else Execution(checkpoint=self.checkpoint))

    def network(self, arch: str) -> Network:
        """Seeded default weights, the same for every variant."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(SEED)
            return create_model(arch, **self.execution)

    @contextmanager
    def applied(self, search: bool = False) -> Iterator[None]:
        """TF32 and the floor as this variant has them; `search` lets cuDNN try its algorithms, as training does."""
        matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
        matmul.allow_tf32 = self.tf32
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=search, allow_tf32=self.tf32), \
                    without_pooling() if self.floor else nullcontext():
                yield
        finally:
            matmul.allow_tf32 = before


def bf16_is_native(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than it emulates it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def variants(device: torch.device, training: bool = False) -> list[Variant]:
    """The variants to compare on this device; the baseline first."""
    gpu, bf16 = device.type == "cuda", bf16_is_native(device)
    chosen = [Variant("released", released=True), Variant("fast"), Variant("floor", floor=True)]
    for suffix, how in [(" TF32", {"tf32": True})] * gpu + [(" bf16", {"amp": "bf16"})] * (gpu and bf16):
        chosen += [replace(way, name=way.name + suffix, **how) for way in chosen[:3]]
    chosen += [Variant("fast bf16", amp="bf16")] * (bf16 and not gpu)
    chosen += [Variant("fast compiled", compiled=True)] * (gpu and training)
    chosen += [Variant("fast bf16 compiled", amp="bf16", compiled=True)] * (gpu and training and bf16)
    return chosen + [Variant("fast recomputing", checkpoint=True)] * training


def inference(variant: Variant, arch: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """(N, 1, B, H, W) on the device -> the network's output, without gradients."""
    net = variant.network(arch).to(device).eval()

    def infer(x: Tensor) -> Tensor:
        with torch.no_grad(), variant.applied(), autocast(device, variant.amp):
            return net(x)

    return infer


def training_step(variant: Variant, arch: str, device: torch.device) -> Callable[[Tensor], None]:
    """(N, B, h, w) on the device -> one step of `utility.training`: degrade x4, forward, MSE, backward, Adam."""
    config = TrainingConfig(arch=arch, amp=variant.amp, tf32=variant.tf32, compile=variant.compiled)
    state = State(config, variant.network(arch), device, total=1)
    net = torch.compile(state.net) if variant.compiled else state.net

    def train(gt: Tensor) -> None:
        with variant.applied(search=True):
            train_step(state, net, gt)

    return train


WORKS = {"inference": inference, "training step": training_step}


def random_cubes(*shape: int, device: torch.device, seed: int = SEED) -> Tensor:
    """Uniform in [0, 1], the same on every device."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(device)


# The network without pooling ------------------------------------------------------------------------------------------

@contextmanager
def without_pooling() -> Iterator[None]:
    """Within it, units give the first C channels of their gates (+ skip) in place of the pooled states; see README.md."""
    def pool(gates: Tensor, kind: str, direction: str, skip: Tensor | None = None, backend: str = "auto") -> Tensor:
        return _FirstChannels.apply(gates, skip, gate_count(kind, direction == "both"))

    with patch.object(units, "pool", pool), patch.object(blocks, "pool_into", _write_first):
        yield


def _write_first(out: Tensor, gates: Tensor, kind: str, direction: str, skip: Tensor | None = None,
                 backend: str = "auto") -> None:
    first = gates[:, :out.shape[1]]
    out.copy_(first) if skip is None else torch.add(first, skip, out=out)


class _FirstChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gates: Tensor, skip: Tensor | None, count: int) -> Tensor:
        ctx.like, ctx.count = (gates.shape, gates.stride(), gates.dtype), count
        ctx.skip_dtype = None if skip is None else skip.dtype
        out = torch.empty_like(gates[:, :gates.shape[1] // count], dtype=output_dtype(gates, skip))
        _write_first(out, gates, "", "", skip)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        shape, stride, dtype = ctx.like
        grad_gates = torch.empty_strided(shape, stride, dtype=dtype, device=grad.device)
        grad_gates.unflatten(1, (ctx.count, -1)).copy_(grad.unsqueeze(1))
        return grad_gates, None if ctx.skip_dtype is None else grad.to(ctx.skip_dtype), None


# Timing ---------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Timing:
    """Device and effort of a comparison."""

    device: torch.device
    repeats: int
    budget: float = math.inf    # seconds for the rounds of one comparison, once `least` of them are done
    least: int = 2


def time_call(call: Callable[[], Any], device: torch.device, inner: int = 1) -> float:
    """Seconds a call: by events on a GPU's own timeline, by the clock on a CPU; the mean of `inner` calls in a row."""
    if gpu := device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
    started = time.perf_counter()
    for _ in range(inner):
        call()
    if not gpu:
        return (time.perf_counter() - started) / inner
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / inner


def interleave(calls: Calls, timing: Timing, warm_up: int | None = None) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time calls in rounds, A B C, C B A, A B C ..., so that a machine that slows down slows all of them.

    `warm_up` untimed calls of each come first: by default 1 on a CPU and 3 on a GPU; with 0 every call must be long.

    Returns: seconds by name, one for each round; and for the calls that failed while warming up, why.
    """
    gpu, failed, inner = timing.device.type == "cuda", {}, dict.fromkeys(calls, 1)
    for name, call in calls.items():
        try:
            for _ in range((3 if gpu else 1) if warm_up is None else warm_up):
                inner[name] = min(100, math.ceil(SHORTEST / max(time_call(call, timing.device), 1e-9)))
        except Exception as error:  # one variant that cannot run (memory, compiler) must not cost the others' numbers
            failed[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]
            if gpu:
                torch.cuda.empty_cache()
    samples: dict[str, list[float]] = {name: [] for name in calls if name not in failed}
    begin = time.perf_counter()
    for done in range(timing.repeats):
        if done >= timing.least and (time.perf_counter() - begin) * (done + 1) / done > timing.budget:
            break
        for name in list(samples)[::-1 if done % 2 else 1]:
            samples[name].append(time_call(calls[name], timing.device, inner[name]))
    return samples, failed


def summarise(samples: Sequence[float]) -> Row:
    """Median, the distance of the quartiles as a share of it, and how many."""
    low, median, high = np.percentile(samples, (25, 50, 75)).tolist()
    return {"time": median, "spread": (high - low) / median if median else 0.0, "n": len(samples)}


def ratio(baseline: Sequence[float], samples: Sequence[float]) -> float:
    """How many times faster than the baseline, of the medians."""
    return float(np.median(baseline) / np.median(samples))


def compare(calls: Calls, timing: Timing, baseline: str = "released", warm_up: int | None = None, **labels: Any) -> list[Row]:
    """Time of each call, speed-up over the baseline, and against `released` and `floor` of its precision, which its name says.

    `labels` are put into every row.
    """
    samples, failed = interleave(calls, timing, warm_up)
    rows = [{**labels, "variant": name, "failed": why} for name, why in failed.items()]
    for name, times in samples.items():
        row = {**labels, "variant": name, **summarise(times)}
        if baseline in samples:
            row["faster"] = ratio(samples[baseline], times)
            rounds = [b / s for b, s in zip(samples[baseline], times, strict=True)]
            row["quartiles"] = np.percentile(rounds, (25, 75)).tolist()
        suffix = next((suffix for suffix in (" TF32", " bf16") if suffix in name), "")
        if same := samples.get(f"released{suffix}"):
            row["same precision"] = ratio(same, times)
        if floor := samples.get(f"floor{suffix}"):
            row["over floor"] = ratio(times, floor)
        rows.append(row)
    return rows


# Fresh processes ------------------------------------------------------------------------------------------------------

def in_fresh_process(root: Path, code: str, **task: Any) -> Any:
    """Run Python code in the folder `root`, with `task` as a dict; returns the last line that it prints, read as JSON.

    Raises:
        RuntimeError: the process failed; the message ends with what it said.
    """
    begin = "import json, sys; sys.path.insert(0, '.'); task = json.loads(sys.argv[1])\n"
    done = subprocess.run([sys.executable, "-c", begin + code, json.dumps(task)], cwd=root, capture_output=True, text=True)
    if done.returncode:
        tail = (done.stderr.strip() or f"killed by signal {-done.returncode}").splitlines()[-1]
        raise RuntimeError(f"a measuring process failed in {root}: {tail}")
    return json.loads(done.stdout.splitlines()[-1])


TIME = """
import statistics, torch
from benchmarks.measure import Variant, inference, random_cubes, time_call, training_step
torch.set_num_threads(task["threads"])
device = torch.device(task["device"])
maker = {"inference": inference, "training step": training_step}[task["work"]]
call, x = maker(Variant("fast"), task["arch"], device), random_cubes(*task["shape"], device=device)
call(x)
print(statistics.median(time_call(lambda: call(x), device) for _ in range(3)))
"""


def compare_checkouts(theirs: Path, ours: Path, works: Mapping[str, Sequence[int]], timing: Timing, **task: Any) -> list[Row]:
    """The fast network by two checkouts in turns, each by its own code in a fresh process; `faster` is ours over theirs."""
    rows = []
    for work, shape in works.items():
        samples: dict[Path, list[float]] = {theirs: [], ours: []}
        for done in range(timing.repeats):
            for root in list(samples)[::-1 if done % 2 else 1]:
                samples[root].append(in_fresh_process(root, TIME, work=work, shape=shape, device=str(timing.device), **task))
        rows += [{"work": work, "size": "x".join(map(str, shape)), "checkout": str(root), **summarise(times),
                  "faster": ratio(samples[theirs], times)} for root, times in samples.items()]
    return rows


PEAK = "from benchmarks import measure; print(json.dumps(measure.peak_memory(**task)))"


def peak_memory(work: str, variant: dict[str, Any], shape: Sequence[int], arch: str, device: str,
                threads: int) -> dict[str, int]:
    """Peak memory of a work in this process, which should be fresh; see README.md, Memory.

    Returns: `peak`, bytes beyond weights and input, and `process`, bytes of all (of the allocator's pool, on a GPU).
    """
    torch.set_num_threads(threads)
    call, x = WORKS[work](Variant(**variant), arch, torch.device(device)), random_cubes(*shape, device=torch.device(device))
    if x.is_cuda:
        for _ in range(2):
            call(x)
        before = torch.cuda.memory_allocated(x.device)
        torch.cuda.reset_peak_memory_stats(x.device)
        call(x)
        torch.cuda.synchronize(x.device)
        return {"peak": torch.cuda.max_memory_allocated(x.device) - before,
                "process": torch.cuda.max_memory_reserved(x.device)}
    call(x[..., :16, :16].contiguous())
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # nothing hides in freed heap
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
    before = resident("VmRSS")
    for _ in range(2 if work == "training step" else 1):  # the second step begins with the gradients of the first
        call(x)
    return {"peak": resident("VmHWM") - before, "process": resident("VmHWM")}


def resident(field: str) -> int:
    """Bytes resident now (VmRSS) or at the highest (VmHWM), as Linux tells them."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
