"""How a comparison is made: variants of one network, interleaved timing, medians, and the network without its pooling."""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

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


@dataclass(frozen=True)
class Variant:
    """One way to compute the network. The default is the fast one in float32; `released` is the baseline."""

    name: str
    released: bool = False      # Execution.released(): a loop over bands, default layout, whole images
    amp: str = "off"
    tf32: bool = False
    compiled: bool = False
    checkpoint: bool = False
    floor: bool = False         # pooling left out, see `without_pooling`

    @property
    def precision(self) -> str:
        return "bf16" if self.amp == "bf16" else "TF32" if self.tf32 else "fp32"

    @property
    def execution(self) -> dict[str, Any]:
        """Fields of `models.Execution`."""
        return asdict(Execution.released() if self.released else Execution(checkpoint=self.checkpoint))

    def network(self, arch: str) -> Network:
        """Seeded default weights, the same for every variant."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(SEED)
            return create_model(arch, **self.execution)

    def autocast(self, device: torch.device) -> AbstractContextManager:
        return autocast(device, self.amp)

    @contextmanager
    def applied(self, device: torch.device, search: bool = False, autocast: bool = True) -> Iterator[dict[str, float]]:
        """Run as this variant runs: TF32, autocast, and the floor's patch (whose tally it yields).

        Args:
            search: let cuDNN try its algorithms for each shape, as training does and testing does not.
        """
        flags = [(torch.backends.cuda.matmul, "allow_tf32", self.tf32), (torch.backends.cudnn, "allow_tf32", self.tf32),
                 (torch.backends.cudnn, "benchmark", search)]
        before = [getattr(module, name) for module, name, _ in flags]
        with ExitStack() as stack:
            for (module, name, value), old in zip(flags, before, strict=True):
                setattr(module, name, value)
                stack.callback(setattr, module, name, old)
            if autocast:
                stack.enter_context(self.autocast(device))
            yield stack.enter_context(without_pooling() if self.floor else nullcontext({}))


def bf16_is_native(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than it emulates it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def variants(device: torch.device, training_step: bool = False) -> list[Variant]:
    """What is compared on this device; the baseline first."""
    bf16 = bf16_is_native(device)
    if device.type == "cpu":
        chosen = [Variant("released", released=True), Variant("fast"), Variant("floor", floor=True)]
        chosen += [Variant("fast bf16", amp="bf16")] * bf16
    else:
        chosen = [variant for suffix, how in (("", {}), (" TF32", {"tf32": True}), *[(" bf16", {"amp": "bf16"})] * bf16)
                  for variant in (Variant("released" + suffix, released=True, **how), Variant("fast" + suffix, **how),
                                  Variant("floor" + suffix, floor=True, **how))]
        if training_step:
            chosen += [Variant("fast compiled", compiled=True)]
            chosen += [Variant("fast bf16 compiled", amp="bf16", compiled=True)] * bf16
    return chosen + [Variant("fast recomputing", checkpoint=True)] * training_step


# --- what is timed ----------------------------------------------------------------------------------------------------

def inference(variant: Variant, arch: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """(N, 1, B, H, W) on the device -> the network's output, without gradients."""
    net = variant.network(arch).to(device).eval()

    @torch.no_grad()
    def call(x: Tensor) -> Tensor:
        with variant.applied(device):
            return net(x)

    return call


def training_step(variant: Variant, arch: str, device: torch.device) -> Callable[[Tensor], dict[str, float]]:
    """(N, B, h, w) on the device -> one step of `utility.training`: degrade x4, forward, MSE, backward, Adam."""
    config = TrainingConfig(arch=arch, amp=variant.amp, tf32=variant.tf32, compile=variant.compiled)
    state = State(config, variant.network(arch), device)
    net = torch.compile(state.net) if variant.compiled else state.net

    def call(gt: Tensor) -> dict[str, float]:
        with variant.applied(device, search=True, autocast=False) as tally:
            train_step(state, net, gt)
        return tally

    return call


def random_cubes(*shape: int, device: torch.device, seed: int = SEED) -> Tensor:
    """Uniform in [0, 1], the same on every device."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(device)


# --- the network without pooling --------------------------------------------------------------------------------------

@contextmanager
def without_pooling() -> Iterator[dict[str, float]]:
    """Within it, units give the first C channels of their gates (+ skip) in place of the pooled states.

    `models.units.pool` and `models.blocks.pool_into` are replaced, so the same convolutions run on the same layouts and
    blocks, and every unit still writes its output: what is left is the floor that no pooling can go below. Backward, the
    gradient of the output is written into each of the gates' blocks of C channels, so that the convolutions' backward
    works on ordinary numbers, not on zeros.

    Yields: {"writing": seconds spent in the replacement, on a CPU}.
    """
    tally = {"writing": 0.0}

    def pool(gates: Tensor, kind: str, direction: str, skip: Tensor | None = None, backend: str = "auto") -> Tensor:
        return _FirstChannels.apply(gates, skip, kind, direction, tally)

    def pool_into(out: Tensor, gates: Tensor, kind: str, direction: str, skip: Tensor | None = None,
                  backend: str = "auto") -> None:
        begin = time.perf_counter()
        _write(out, gates[:, :out.shape[1]], skip)
        tally["writing"] += time.perf_counter() - begin

    saved = units.pool, blocks.pool_into
    units.pool, blocks.pool_into = pool, pool_into
    try:
        yield tally
    finally:
        units.pool, blocks.pool_into = saved


def _write(out: Tensor, first: Tensor, skip: Tensor | None) -> None:
    if skip is None:
        out.copy_(first)
    else:
        torch.add(first, skip, out=out)


class _FirstChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gates: Tensor, skip: Tensor | None, kind: str, direction: str, tally: dict[str, float]) -> Tensor:
        begin = time.perf_counter()
        ctx.count, ctx.tally = gate_count(kind, direction == "both"), tally
        ctx.like = gates.shape, gates.stride(), gates.dtype
        ctx.skip_dtype = None if skip is None else skip.dtype
        first = gates[:, :gates.shape[1] // ctx.count]
        out = torch.empty_like(first, dtype=output_dtype(gates, skip))
        _write(out, first, skip)
        tally["writing"] += time.perf_counter() - begin
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        begin = time.perf_counter()
        shape, stride, dtype = ctx.like
        grad_gates = torch.empty_strided(shape, stride, dtype=dtype, device=grad.device)
        grad_gates.unflatten(1, (ctx.count, -1)).copy_(grad.unsqueeze(1))
        ctx.tally["writing"] += time.perf_counter() - begin
        return grad_gates, None if ctx.skip_dtype is None else grad.to(ctx.skip_dtype), None, None, None


# --- timing and statistics --------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Timing:
    """What a comparison is measured with."""

    device: torch.device
    repeats: int
    budget: float = math.inf    # seconds for the rounds of one comparison, once `least` of them are done
    least: int = 2


def time_call(call: Callable[[], Any], device: torch.device, inner: int = 1) -> float:
    """Seconds a call: by events on a GPU's own timeline, by the clock on a CPU; the mean of `inner` calls in a row."""
    if device.type != "cuda":
        begin = time.perf_counter()
        for _ in range(inner):
            call()
        return (time.perf_counter() - begin) / inner
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    for _ in range(inner):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / inner


def interleave(calls: Mapping[str, Callable[[], Any]], timing: Timing,
               warm_up: int | None = None) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time calls in rounds, A B C, C B A, A B C ..., so that a machine that slows down slows all of them.

    Args:
        warm_up: untimed calls of each before the first round; 1 on a CPU and 3 on a GPU by default. With 0, every call is
            expected to be long.

    Returns: seconds by name, one for each round; and for the calls that failed while warming up, why.
    """
    if warm_up is None:
        warm_up = 3 if timing.device.type == "cuda" else 1
    failed: dict[str, str] = {}
    inner = dict.fromkeys(calls, 1)
    for name, call in calls.items():
        try:
            for _ in range(warm_up):
                seconds = time_call(call, timing.device)
                inner[name] = min(100, math.ceil(SHORTEST / max(seconds, 1e-9)))
        except Exception as error:  # one variant that cannot run (memory, compiler) must not cost the others' numbers
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:200]
            if timing.device.type == "cuda":
                torch.cuda.empty_cache()
    samples: dict[str, list[float]] = {name: [] for name in calls if name not in failed}
    begin = time.perf_counter()
    for done in range(timing.repeats):
        spent = time.perf_counter() - begin
        if done >= timing.least and spent * (done + 1) / done > timing.budget:
            break
        for name in list(samples)[::-1 if done % 2 else 1]:
            samples[name].append(time_call(calls[name], timing.device, inner[name]))
    return samples, failed


def summarise(samples: Sequence[float]) -> dict[str, float]:
    """Median, quartiles, their distance as a share of the median, and how many."""
    low, median, high = (float(v) for v in np.percentile(samples, (25, 50, 75)))
    return {"median": median, "low": low, "high": high, "spread": (high - low) / median if median else 0.0,
            "n": len(samples)}


def ratio(baseline: Sequence[float], samples: Sequence[float]) -> dict[str, float]:
    """How many times faster than the baseline: of the medians, with the quartiles of the rounds' own ratios."""
    rounds = [b / s for b, s in zip(baseline, samples, strict=True)]
    low, high = (float(v) for v in np.percentile(rounds, (25, 75)))
    return {"ratio": float(np.median(baseline) / np.median(samples)), "low": low, "high": high}


def compare(calls: Mapping[str, Callable[[], Any]], timing: Timing, ways: Sequence[Variant] = (), baseline: str = "released",
            warm_up: int | None = None, **labels: Any) -> list[dict[str, Any]]:
    """Rows of a table: time of each call, speed-up over the baseline, and over the baseline and the floor of its precision.

    Args:
        ways: the variants that the calls are of, by name; for those two last columns.
        labels: put into every row.
    """
    samples, failed = interleave(calls, timing, warm_up)
    precision = {way.name: way.precision for way in ways}
    named = {(way.released, way.floor, way.precision): way.name for way in ways if not (way.compiled or way.checkpoint)}
    rows = []
    for name in calls:
        row: dict[str, Any] = {**labels, "variant": name}
        if name in failed:
            rows.append(row | {"failed": failed[name]})
            continue
        times = samples[name]
        row |= {"seconds": summarise(times)}
        if baseline in samples:
            row["speedup"] = ratio(samples[baseline], times)
        if same := samples.get(named.get((True, False, precision.get(name)), "")):
            row["same_precision"] = ratio(same, times)
        if floor := samples.get(named.get((False, True, precision.get(name)), "")):
            row["over_floor"] = ratio(times, floor)
        rows.append(row)
    return rows
