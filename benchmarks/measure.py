"""The tools of a comparison: variants of one network, the network without its pooling, timing in
turns, fresh processes."""
from __future__ import annotations

import ctypes
import json
import math
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from models import Execution, Network, create_model
from models.layers import row_blocks as blocks
from models.layers import units
from models.layers.pooling import gate_count
from utility.system.devices import autocast, computes_bf16
from utility.training.configuration import TrainingConfig
from utility.training.state import State
from utility.training.steps import train_step

SHORTEST = 0.02  # seconds: a sample of a shorter call is the mean of several calls in a row
Shape = tuple[int, ...]
Rows = list[dict[str, Any]]  # the lines of a table, by column


@dataclass(frozen=True)
class Variant:
    """One way to compute the network. The default is the fast one in float32; `released` is the
    baseline."""

    name: str
    released: bool = False  # Execution.released(): a loop over bands, default layout, whole images
    amp: str = "off"
    tf32: bool = False
    compiled: bool = False
    checkpoint: bool = False
    floor: bool = False         # without pooling, see `without_pooling`

    @property
    def execution(self) -> dict[str, Any]:
        """Fields of `models.Execution`."""
        return vars(Execution.released() if self.released
                    else Execution(checkpoint=self.checkpoint))

    def network(self, arch: str) -> Network:
        """Seeded default weights, the same for every variant."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(2021)
            return create_model(arch, **self.execution)

    @contextmanager
    def applied(self, search: bool = False) -> Iterator[None]:
        """TF32 and the floor as this variant has them; `search` lets cuDNN try its algorithms, as
        training does."""
        matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
        matmul.allow_tf32 = self.tf32
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=search, allow_tf32=self.tf32), \
                    without_pooling() if self.floor else nullcontext():
                yield
        finally:
            matmul.allow_tf32 = before


def variants(device: torch.device, training: bool = False) -> list[Variant]:
    """The variants to compare on this device; the baseline first, the fast one second."""
    gpu, bf16 = device.type == "cuda", computes_bf16(device)
    chosen = []
    for suffix, how in [("", {}), *[(" TF32", {"tf32": True})] * gpu,
                        *[(" bf16", {"amp": "bf16"})] * (gpu and bf16)]:
        chosen += [Variant(f"released{suffix}", released=True, **how),
                   Variant(f"fast{suffix}", **how), Variant(f"floor{suffix}", floor=True, **how)]
    chosen += [Variant("fast bf16", amp="bf16")] * (bf16 and not gpu)
    chosen += [Variant("fast compiled", compiled=True)] * (gpu and training)
    chosen += [Variant("fast bf16 compiled", amp="bf16", compiled=True)] * (
        gpu and training and bf16)
    return chosen + [Variant("fast recomputing", checkpoint=True)] * training


def inference(variant: Variant, arch: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """(N, 1, B, H, W) on the device -> the network's output, without gradients."""
    net = variant.network(arch).to(device).eval()

    def infer(x: Tensor) -> Tensor:
        with torch.no_grad(), variant.applied(), autocast(device, variant.amp):
            return net(x)

    return infer


def training_step(variant: Variant, arch: str, device: torch.device) -> Callable[[Tensor], None]:
    """(N, B, h, w) on the device -> one step of `utility.training.loop`: degrade x4, forward, MSE,
    backward, Adam."""
    config = TrainingConfig(arch=arch, amp=variant.amp, tf32=variant.tf32, compile=variant.compiled)
    state = State(config, variant.network(arch), device, total=1)
    net = torch.compile(state.net) if variant.compiled else state.net

    def train(gt: Tensor) -> None:
        with variant.applied(search=True):
            train_step(state, net, gt)

    return train


WORKS = {"inference": inference, "training step": training_step}


def random_cubes(*shape: int, device: torch.device, seed: int = 2021) -> Tensor:
    """Uniform in [0, 1], the same on every device."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(device)


# The network without pooling ----------------------------------------------------------------------

@contextmanager
def without_pooling() -> Iterator[None]:
    """Within it, units give the first C channels of their gates (+ skip) in place of the pooled
    states; see README.md."""
    def pool(gates: Tensor, kind: str, direction: str, skip: Tensor | None = None,
             backend: str = "auto") -> Tensor:
        return _FirstChannels.apply(gates, skip, gate_count(kind, direction == "both"))

    def pool_into(out: Tensor, gates: Tensor, kind: str, direction: str, skip: Tensor | None = None,
                  backend: str = "auto") -> None:
        first = gates[:, :out.shape[1]]
        out.copy_(first) if skip is None else torch.add(first, skip, out=out)

    with patch.object(units, "pool", pool), patch.object(blocks, "pool_into", pool_into):
        yield


class _FirstChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gates: Tensor, skip: Tensor | None, count: int) -> Tensor:
        ctx.count, ctx.dtype, ctx.skips = count, gates.dtype, skip is not None
        first = gates[:, :gates.shape[1] // count]
        return first.clone() if skip is None else first + skip

    @staticmethod
    def backward(ctx, grad: Tensor):
        return torch.cat([grad.to(ctx.dtype)] * ctx.count, 1), grad if ctx.skips else None, None


# Timing -------------------------------------------------------------------------------------------

@dataclass
class Setup:
    """What is measured, with how much effort, and what came of it."""

    device: torch.device
    repeats: int
    budget: float = math.inf  # seconds for the rounds of one comparison, once two of them are done
    threads: int = 1
    sizes: Mapping[str, Any] = field(default_factory=dict)
    arch: str = "biqrnn_16_5"
    checkpoint: str | None = None
    images: str = "data/sample/natural/test"
    results: dict[str, Rows] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def at_least(self, rounds: int) -> Setup:
        """With so many rounds, whatever they take."""
        return replace(self, repeats=max(self.repeats, rounds), budget=math.inf)

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """Note a failure within (memory, a compiler), which costs the other numbers nothing."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.failed.append(f"{name}: {type(error).__name__}: "
                               f"{(str(error).strip().splitlines() or [''])[0]}"[:200])
        if self.gpu:
            torch.cuda.empty_cache()


def time_call(call: Callable[[], Any], device: torch.device, inner: int = 1) -> float:
    """Seconds a call: by events on a GPU's own timeline, by the clock on a CPU; the mean of `inner`
    calls in a row."""
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


def compare(setup: Setup, calls: Mapping[str, Callable[[], Any]], baseline: str = "",
            column: str = "variant", **labels: Any) -> Rows:
    """Warm each call up and time it in turns with the others; a call that fails is noted and left
    out. Returns `as_rows`."""
    samplers = {}
    for name, call in calls.items():
        with setup.noting(name):
            for _ in range(3 if setup.gpu else 1):
                inner = min(100, math.ceil(SHORTEST / max(time_call(call, setup.device), 1e-9)))
            samplers[name] = partial(time_call, call, setup.device, inner)
    return as_rows(take_turns(setup, samplers), baseline, column, **labels)


def take_turns(setup: Setup, samplers: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Sample in rounds, A B C, C B A, A B C ..., so that a machine that slows down slows all of
    them."""
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    begin = time.perf_counter()
    for done in range(setup.repeats):
        if done >= 2 and (time.perf_counter() - begin) * (done + 1) / done > setup.budget:
            break
        for name in list(samplers)[::-1 if done % 2 else 1]:
            samples[name].append(samplers[name]())
    return samples


def as_rows(samples: Mapping[str, list[float]], baseline: str, column: str, **labels: Any) -> Rows:
    """For each name its median `time`, the distance of the quartiles as a share of it, and the
    number of samples.

    With a baseline, also how many times faster: the median of the rounds' own ratios, and their
    quartiles. A machine whose speed drifts changes both times of a round alike.
    """
    rows = []
    for name, times in samples.items():
        low, median, high = np.percentile(times, (25, 50, 75)).tolist()
        rows.append({**labels, column: name, "time": median, "spread": (high - low) / median,
                     "n": len(times)})
        if baseline in samples:
            low, ratio, high = np.percentile(
                np.divide(samples[baseline], times), (25, 50, 75)).tolist()
            rows[-1] |= {"faster": ratio, "quartiles": [low, high]}
    return rows


def compare_variants(setup: Setup, work: str, ways: list[Variant], shape: Shape) -> Rows:
    """A work in several variants, each also against `released` and `floor` of its own precision,
    which its name says."""
    x = random_cubes(*shape, device=setup.device)
    rows = compare(
        setup, {way.name: partial(WORKS[work](way, setup.arch, setup.device), x) for way in ways},
        "released", size=text(shape))
    times = {row["variant"]: row["time"] for row in rows}
    for row in rows:
        suffix = next((suffix for suffix in (" TF32", " bf16") if suffix in row["variant"]), "")
        if f"released{suffix}" in times:
            row["same precision"] = times[f"released{suffix}"] / row["time"]
        if f"floor{suffix}" in times:
            row["over floor"] = row["time"] / times[f"floor{suffix}"]
        row |= roofline(setup.arch, shape, 2 if "bf16" in row["variant"] else 4,
                        work != "inference")
    return rows


def text(shape: Shape) -> str:
    """Such as 31x256x256; a batch of one cube is that cube."""
    return "x".join(map(str, shape[2:] if len(shape) == 5 and shape[:2] == (1, 1) else shape))


def roofline(arch: str, shape: Shape, size: int, training: bool) -> dict[str, float]:
    """The FLOP of the convolutions of a QRNN on (N, 1, B, H, W) or (N, B, H, W), and the least
    bytes that its units move.

    A unit reads its input and writes its gates, of `size` bytes a value; pooling reads those and
    writes the states. The backward pass reads gates and the gradient of the states, writes that of
    the gates, which two convolutions read with the input and the weights, and writes the gradient
    of the input; the first unit's is not asked for.
    """
    with torch.device("meta"):
        units = create_model(arch).units()
    flop, values, voxels = 0, 0, math.prod(shape)
    for k, unit in enumerate(units):
        gates, inputs = unit.parameters_of_conv[0].shape[:2]
        read = voxels * inputs
        voxels = voxels * 4 if unit.upsamples else voxels // unit.stride ** 2
        # an upsampling unit mixes its channels on half the columns
        mixed = voxels // 2 if unit.upsamples else voxels
        flop += 54 * inputs * gates * mixed * (3 - (k == 0) if training else 1)
        values += read + voxels * (2 * gates + unit.channels)
        values += ((1 + (k > 0)) * read + voxels * (4 * gates + unit.channels)) * training
    return {"GFLOP": flop / 1e9, "moved": values * size}


# Fresh processes ----------------------------------------------------------------------------------

BEGIN = "import json, sys; sys.path.insert(0, '.'); task = json.loads(sys.argv[1])\n"


def in_fresh_process(root: Path, code: str, **task: Any) -> Any:
    """Run Python code in the folder `root`, with `task` as a dict; returns the last line that it
    prints, read as JSON."""
    done = subprocess.run([sys.executable, "-c", BEGIN + code, json.dumps(task)], cwd=root,
                          stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def living(root: Path, code: str, **task: Any) -> Iterator[Callable[[], float]]:
    """The same in a process that stays, once it has printed its first line: each call asks it for
    one more line, a number."""
    with subprocess.Popen([sys.executable, "-c", BEGIN + code, json.dumps(task)], cwd=root,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        def line() -> bytes:
            if not (printed := process.stdout.readline()):
                raise RuntimeError(f"what is measured in {root} ended with {process.wait()}")
            return printed

        def sample() -> float:
            process.stdin.write(b"\n")
            return float(line())

        line()
        yield sample


# Runs in both checkouts, so it uses only what both have.
SERVE = """
import torch
from benchmarks.measure import Variant, inference, random_cubes, time_call, training_step
torch.set_num_threads(task["threads"])
device = torch.device(task["device"])
maker = {"inference": inference, "training step": training_step}[task["work"]]
call, x = maker(Variant("fast"), task["arch"], device), random_cubes(*task["shape"], device=device)
for _ in range(2):
    call(x)
print("ready", flush=True)
for _ in sys.stdin:
    print(time_call(lambda: call(x), device), flush=True)
"""


def compare_checkouts(setup: Setup, theirs: Path, ours: Path) -> Rows:
    """The fast network by two checkouts, each by its own code in a process that lives as long as
    the comparison: one call in turns, nine rounds at least; `faster` is ours over theirs."""
    rows = []
    for work, shape in (("inference", (1, 1, *setup.sizes["inference"][0])),
                        ("training step", setup.sizes["training"])):
        task = {"work": work, "shape": shape, "device": str(setup.device), "arch": setup.arch,
                "threads": setup.threads}
        with living(theirs, SERVE, **task) as old, living(ours, SERVE, **task) as new:
            samples = take_turns(setup.at_least(9), {"old": old, "new": new})
        rows += as_rows(samples, "old", "checkout", work=work, size=text(shape))
    return rows


PEAK = "from benchmarks import measure; print(json.dumps(measure.peak_memory(**task)))"


def peak_memory(work: str, variant: dict[str, Any], shape: Shape, arch: str, device: str,
                threads: int) -> dict[str, int]:
    """Peak memory of a work in this process, which should be fresh; see README.md, Memory.

    Returns: `peak`, bytes beyond weights and input, and `process`, bytes of all (of the allocator's
    pool, on a GPU).
    """
    torch.set_num_threads(threads)
    call, x = (WORKS[work](Variant(**variant), arch, torch.device(device)),
               random_cubes(*shape, device=torch.device(device)))
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
    # the second step begins with the gradients of the first
    for _ in range(2 if work == "training step" else 1):
        call(x)
    return {"peak": resident("VmHWM") - before, "process": resident("VmHWM")}


def resident(field: str) -> int:
    """Bytes resident now (VmRSS) or at the highest (VmHWM), as Linux tells them."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
