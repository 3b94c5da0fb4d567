"""The measurements, one function each: `section(setup, results so far) -> rows` of one table, {column: value}."""
from __future__ import annotations

import contextlib
import csv
import io
import math
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import WORKS, Row, Variant, interleave, random_cubes, ratio, summarise, variants
from models import create_model
from models.pooling import pool
from utility.cards import list_scenes
from utility.checkpoints import model_from_checkpoint
from utility.configuration import TrainingConfig
from utility.degradation import KINDS, crop_to_multiple, degrade, downsample
from utility.devices import autocast
from utility.evaluation import Reading, read_images
from utility.indexes import evaluate
from utility.lmdb_dataset import LMDBDataset, writing_database
from utility.loader import training_loader
from utility.tiling import super_resolve_cube
from utility.training import train

Shape = tuple[int, ...]
Rows = list[Row]
SCALE, KIND = 4, "gaussian"
CPU, ROOT = torch.device("cpu"), Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Sizes:
    """The size of each measurement: cubes (B, H, W), batches (N, B, h, w)."""

    inference: tuple[Shape, ...] = ((31, 256, 256), (31, 512, 512), (200, 128, 128))  # the first one in every variant
    memory: int = 3                     # of these, the first
    training: Shape = (4, 31, 64, 64)
    pooling: Shape = (1, 48, 31, 128, 128)
    bands: tuple[Shape, ...] = tuple((b, 64, 64) for b in (31, 62, 124, 248))
    pixels: tuple[Shape, ...] = tuple((31, side, side) for side in (64, 128, 256, 512))
    degradation: Shape = (16, 31, 64, 64)
    scene: Shape = (31, 512, 512)       # for tiles
    tiles: tuple[int, ...] = (256, 128)
    accuracy: Shape = (1, 31, 32, 32)
    database: int = 1024                # rows and columns of a scene of 31 bands


GPU_SIZES = Sizes(((31, 512, 512), (31, 256, 256), (200, 128, 128)), training=(16, 31, 64, 64), pooling=(8, 48, 31, 128, 128))
QUICK_SIZES = Sizes(
    inference=((4, 16, 16), (4, 24, 24)), memory=1, training=(2, 4, 16, 16), pooling=(1, 6, 4, 8, 8),
    bands=((2, 16, 16), (4, 16, 16)), pixels=((4, 16, 16), (4, 32, 32)), degradation=(2, 4, 16, 16), scene=(4, 48, 48),
    tiles=(32,), accuracy=(1, 4, 16, 16), database=128)


@dataclass(frozen=True)
class Setup:
    """What every measurement needs."""

    timing: measure.Timing
    sizes: Sizes
    threads: int
    arch: str = "biqrnn_16_5"
    checkpoint: str | None = None
    images: str = "data/sample/natural/test"

    @property
    def device(self) -> torch.device:
        return self.timing.device

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def call(self, work: str, way: Variant, shape: Shape) -> Callable[[], Any]:
        return partial(WORKS[work](way, self.arch, self.device), random_cubes(*shape, device=self.device))

    def compare(self, work: str, ways: list[Variant], shape: Shape, warm_up: int | None = None) -> Rows:
        rows = measure.compare({way.name: self.call(work, way, shape) for way in ways}, self.timing, warm_up=warm_up,
                               size=text(shape))
        return [row | roofline(self.arch, shape, 2 if "bf16" in row["variant"] else 4, work != "inference") for row in rows]


def roofline(arch: str, shape: Shape, size: int, training: bool) -> Row:
    """The FLOP of the convolutions of a QRNN on (N, 1, B, H, W) or (N, B, H, W), and the least bytes that its units move.

    A unit reads its input and writes its gates, of `size` bytes a value; pooling reads those and writes the states. The
    backward pass reads gates and the gradient of the states, writes that of the gates, which two convolutions read with the
    input and the weights, and writes the gradient of the input; the first unit's is not asked for.
    """
    with torch.device("meta"):
        units = create_model(arch).units()
    flop, values, voxels = 0, 0, math.prod(shape)
    for k, unit in enumerate(units):
        gates, inputs = unit.parameters_of_conv[0].shape[:2]
        read = voxels * inputs
        voxels = voxels * 4 if unit.upsamples else voxels // unit.stride ** 2
        flop += 54 * inputs * gates * voxels * (3 - (k == 0) if training else 1)
        values += read + voxels * (2 * gates + unit.channels)
        values += ((1 + (k > 0)) * read + voxels * (4 * gates + unit.channels)) * training
    return {"GFLOP": flop / 1e9, "moved": values * size}


def text(shape: Shape) -> str:
    """Such as 31x256x256; a batch of one cube is that cube."""
    return "x".join(map(str, shape[2:] if len(shape) == 5 and shape[:2] == (1, 1) else shape))


# The network ----------------------------------------------------------------------------------------------------------

def time_inference(setup: Setup, done: dict[str, Rows]) -> Rows:
    """The first size with every variant; the others without floor and bf16 on a CPU, where a call takes many seconds."""
    rows = setup.compare("inference", variants(setup.device), (1, 1, *setup.sizes.inference[0]))
    for shape in setup.sizes.inference[1:]:
        ways = [way for way in variants(setup.device) if setup.gpu or way.name in ("released", "fast")]
        # Everything is warm from the first size; on a CPU a call of the largest one is too long to be thrown away.
        rows += setup.compare("inference", ways, (1, 1, *shape), 0 if not setup.gpu and math.prod(shape) > 2**22 else None)
    return rows


def time_training(setup: Setup, done: dict[str, Rows]) -> Rows:
    return setup.compare("training step", variants(setup.device, training=True), setup.sizes.training)


def measure_memory(setup: Setup, done: dict[str, Rows]) -> Rows:
    """Peak memory of each variant in a fresh process, see `measure.peak_memory`."""
    rows = []
    plain = [Variant("released", released=True), Variant("fast")]
    bf16 = [Variant("fast bf16", amp="bf16")] * measure.bf16_is_native(setup.device)
    works = [("inference", (1, 1, *shape), plain + bf16 * (k == 0 or setup.gpu))
             for k, shape in enumerate(setup.sizes.inference[:setup.sizes.memory])]
    works += [("training step", setup.sizes.training, [*plain, *bf16, Variant("fast recomputing", checkpoint=True),
                                                       *[Variant("fast compiled", compiled=True)] * setup.gpu])]
    for work, shape, ways in works:
        baseline = None
        for way in ways:
            rows.append({"work": work, "size": text(shape), "variant": way.name})
            try:
                rows[-1] |= measure.in_fresh_process(ROOT, measure.PEAK, work=work, variant=vars(way), shape=shape,
                                                     arch=setup.arch, device=str(setup.device), threads=setup.threads)
            except RuntimeError as error:
                rows[-1]["failed"] = str(error)[:200]
                continue
            baseline = rows[-1]["peak"] if way.released else baseline
            rows[-1]["of released"] = rows[-1]["peak"] / baseline if baseline else None
    return rows


def time_growth(setup: Setup, done: dict[str, Rows]) -> Rows:
    """Time a voxel against bands, and against pixels; sizes that inference had already are taken from there."""
    names = ("released", "fast", *["fast bf16"] * setup.gpu)
    ways = [way for way in variants(setup.device) if way.name in names]
    rows = []
    for axis in ("bands", "pixels"):
        for shape in getattr(setup.sizes, axis):
            found = [row for row in done.get("inference", []) if row["size"] == text(shape) and row["variant"] in names]
            rows += [{"axis": axis, "size": text(shape), "variant": row["variant"],
                      "ns a voxel": 1e9 * row["time"] / math.prod(shape), "faster": row.get("faster")}
                     for row in found or setup.compare("inference", ways, (1, 1, *shape)) if "time" in row]
    return rows


def time_pooling(setup: Setup, done: dict[str, Rows]) -> Rows:
    """f-pooling in both directions: forward without a graph, and backward alone, against a copy of as many bytes."""
    rows = []
    for dtype in [torch.float32, *[torch.bfloat16] * setup.gpu]:
        gates = (4 * random_cubes(*setup.sizes.pooling, device=setup.device) - 2).to(dtype)
        output = gates.numel() // 3 * gates.element_size()
        for work, traffic in (("forward", 4 * output), ("backward", 7 * output)):  # 3 read + 1 written; 4 read + 3 written
            calls: dict[str, Callable[[], Any]] = {}
            for backend, (layout, memory_format) in product(("loop", "triton" if setup.gpu else "cpu"), (
                    ("contiguous", torch.contiguous_format), ("channels-last", torch.channels_last_3d))):
                laid = gates.contiguous(memory_format=memory_format).detach().requires_grad_(work == "backward")
                call = partial(pool, laid, "f", "both", None, backend)
                if work == "backward":
                    out = call()
                    call = partial(torch.autograd.grad, out, laid, torch.rand_like(out) - 0.5, retain_graph=True)
                calls[f"{backend}, {layout}"] = call
            source = torch.rand(traffic // 8, device=setup.device)  # float32, read and written: `traffic` bytes in all
            calls["copy"] = partial(torch.empty_like(source).copy_, source)
            found = measure.compare(calls, setup.timing, baseline="loop, contiguous", size=text(gates.shape), work=work,
                                    type=str(dtype).split(".")[-1])
            rows += [{**row, "GB/s": traffic / row["time"] / 1e9, "of a copy": found[-1].get("time", math.nan) / row["time"]}
                     if "time" in row else row for row in found]
    return rows


# Around the network ---------------------------------------------------------------------------------------------------

def time_degradation(setup: Setup, done: dict[str, Rows]) -> Rows:
    """As a share of the forward pass (fast, float32, no gradients) of the same batch."""
    batch, *cube = setup.sizes.degradation
    gt = random_cubes(batch, *cube, device=setup.device)
    calls = {kind: partial(degrade, gt, SCALE, kind) for kind in KINDS}
    samples, _ = interleave(calls | {"forward": setup.call("inference", Variant("fast"), (batch, 1, *cube))}, setup.timing)
    return [{"size": text(gt.shape), "work": name, **summarise(times), "share": ratio(times, samples["forward"])}
            for name, times in samples.items()]


def time_tiles(setup: Setup, done: dict[str, Rows]) -> Rows:
    """Speed of a scene in tiles, as a share of the speed of the whole scene at once; host to host."""
    net = Variant("fast").network(setup.arch).to(setup.device).eval()
    cube = random_cubes(*setup.sizes.scene, device=CPU).numpy()
    calls = {f"tile {tile}" if tile else "whole": partial(super_resolve_cube, net, cube, tile=tile)
             for tile in (0, *setup.sizes.tiles)}
    with Variant("fast").applied():  # on a CPU a round takes about a minute, and nothing is thrown away
        samples, failed = interleave(calls, replace(setup.timing, least=1), warm_up=None if setup.gpu else 0)
    return [{"size": text(cube.shape), "work": name, **summarise(times), "Mvoxel/s": cube.size / np.median(times).item() / 1e6,
             "of whole": ratio(samples["whole"], times)} for name, times in samples.items()] + [
        {"work": name, "failed": why} for name, why in failed.items()]


CUT = """
import time; from dataclasses import replace
from benchmarks.measure import resident; from utility.cards import load_card; from utility.lmdb_data import build_database
card = replace(load_card("icvl"), key=None, layout="BHW", size=None, crop=(task["side"], task["side"]))
begin = time.perf_counter()
meta = build_database(task["out"], [task["source"]], card, quiet=True)
print(json.dumps({"time": time.perf_counter() - begin, "patches": meta["count"], "process": resident("VmHWM")}))
"""


def time_data(setup: Setup, done: dict[str, Rows]) -> Rows:
    """Cut a database as the card of ICVL does, in a process of its own; read it with one worker and without, warm."""
    side, rows = setup.sizes.database, []
    with tempfile.TemporaryDirectory(prefix="bi3dqrnn-") as folder:
        source, out = f"{folder}/scene.npy", f"{folder}/scene.lmdb"
        np.save(source, np.random.default_rng(0).random((31, side, side), dtype=np.float32))
        built = measure.in_fresh_process(ROOT, CUT, source=source, out=out, side=side)
        patches = LMDBDataset(out)
        for workers in (1, 0):
            loader = training_loader([patches], 2 if len(patches) < 64 else 16, seed=0, threads=workers)
            steps, times = len(loader), []
            for epoch in range(1 + max(2, setup.timing.repeats)):
                loader.batch_sampler.set_position(epoch * steps, (epoch + 1) * steps)
                times.append(measure.time_call(partial(deque, loader, maxlen=0), CPU))
            rows.append({"work": "one worker" if workers else "no worker", **summarise(times[1:]),
                         "patches/s": len(patches) / np.median(times[1:]).item()})
    return [*rows, {"work": f"cut {built['patches']} from 31x{side}x{side}", "time": built["time"],
                    "patches/s": built["patches"] / built["time"], "process": built["process"]}]


def time_waiting(setup: Setup, done: dict[str, Rows]) -> Rows:
    """A short training as a user runs it, bf16: the share of time in which the GPU waits for data, of the last epoch."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="bi3dqrnn-") as folder:
        with writing_database(f"{folder}/random.lmdb") as writer:
            for _ in range(65):
                writer.write(rng.random(setup.sizes.training, dtype=np.float32))
            writer.finish(validation=setup.sizes.training[0], sources=[])
        with contextlib.redirect_stdout(io.StringIO()):
            train(TrainingConfig(arch=setup.arch, data=f"{folder}/random.lmdb", batch=setup.sizes.training[0], epochs=3,
                                 val_batches=1, amp="bf16", run_dir=f"{folder}/run", tensorboard=False, quiet=True))
        last = list(csv.DictReader(Path(folder, "run/history.csv").read_text(encoding="utf-8").splitlines()))[-1]
    return [{"work": "3 epochs of 64 steps", "patches/s": float(last["patches_per_s"]), "GPU waits": float(last["data_wait"])}]


# Accuracy -------------------------------------------------------------------------------------------------------------

def measure_accuracy(setup: Setup, done: dict[str, Rows]) -> Rows:
    """Relative error of output and gradients against the loop in float64."""
    x = degrade(random_cubes(*setup.sizes.accuracy, device=CPU), SCALE, KIND)[:, None]
    # The loss compares with another cube, so that its gradient is not that of an almost perfect network.
    target = random_cubes(*setup.sizes.accuracy, device=CPU, seed=1)[:, None]
    exact = _run_once(Variant("exact", released=True), setup.arch, CPU, x.double(), target.double())
    rows = []
    for way in [way for way in variants(setup.device, training=True) if not way.floor]:
        rows.append({"size": text(setup.sizes.accuracy), "variant": way.name})
        try:
            *outputs, gradients = _run_once(way, setup.arch, setup.device, x, target)
        except Exception as error:
            rows[-1]["failed"] = f"{type(error).__name__}: {error}"[:200]
            continue
        pairs = list(zip(outputs, exact, strict=False))
        rows[-1] |= {"output": max(_error(a, b) for a, b in pairs),
                     "without input": max(_error(a - x, b - x) for a, b in pairs),  # adding it hides errors
                     "gradients": _error(torch.cat(gradients), torch.cat(exact[-1])),
                     "worst parameter": max(map(_error, gradients, exact[-1]))}
    return rows


def _run_once(way: Variant, arch: str, device: torch.device, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output with and without gradients, and the gradients of the MSE, flat; float64 on the CPU."""
    net = way.network(arch).to(device, x.dtype)
    if not way.released:
        net.set_execution(block_voxels=2**13)  # several blocks, although the image is small
    run, x, target = torch.compile(net) if way.compiled else net, x.to(device), target.to(device)
    with way.applied():
        with autocast(device, way.amp):
            output = run(x)
            with torch.no_grad():
                without = net(x)
        F.mse_loss(output.to(target.dtype), target).backward()
    double = partial(Tensor.to, device="cpu", dtype=torch.float64)
    return double(output.detach()), double(without), [double(p.grad.flatten()) for p in net.parameters()]


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def measure_psnr(setup: Setup, done: dict[str, Rows]) -> Rows:
    """Mean PSNR over test images of a trained network (--checkpoint), computed in every way; its change against the loop."""
    images = [image.cube for image in read_images(list_scenes([setup.images]), Reading())]
    rows = []
    for way in [way for way in variants(setup.device) if not way.floor]:
        net, info = model_from_checkpoint(setup.checkpoint, **way.execution)
        scale, kind = (info.scales or (SCALE,))[0], info.degradation or KIND
        net.to(setup.device)
        found = []
        for gt in (torch.from_numpy(crop_to_multiple(cube, net.patch_multiple(scale))) for cube in images):
            parts = (made(gt, scale, kind)[None, None].to(setup.device) for made in (degrade, downsample))
            with torch.no_grad(), way.applied(), autocast(setup.device, way.amp):
                found.append(evaluate(net(*net.inputs(*parts))[0, 0].float(), gt, scale)["psnr"])
        rows.append({"work": f"{Path(setup.checkpoint).name}, x{scale} {kind}, {len(images)} images", "variant": way.name,
                     "PSNR": float(np.mean(found))})
    return [{**row, "change": row["PSNR"] - rows[0]["PSNR"]} for row in rows]


def profile(setup: Setup, done: dict[str, Rows]) -> Rows:
    """Where the fast network's time goes: the largest operators, and a GPU's kernels, by their own time on the device."""
    kinds = [torch.autograd.DeviceType.CPU, *[torch.autograd.DeviceType.CUDA] * setup.gpu]
    rows = []
    for way in [Variant("fast"), *[Variant("fast bf16", amp="bf16")] * (setup.gpu and measure.bf16_is_native(setup.device))]:
        for work, shape in (("inference", (1, 1, *setup.sizes.inference[0])), ("training step", setup.sizes.training)):
            call = setup.call(work, way, shape)
            call()
            with torch.profiler.profile() as recorded:
                call()
                if setup.gpu:
                    torch.cuda.synchronize(setup.device)
            for kind in kinds:
                costs = sorted(((e.self_device_time_total if setup.gpu else e.self_cpu_time_total) / 1e6, e.count, e.key[:80])
                               for e in recorded.key_averages() if e.device_type == kind)
                whole = sum(seconds for seconds, *_ in costs) or 1.0
                rows += [{"work": work, "variant": way.name, "operator": name, "time": seconds, "share": seconds / whole,
                          "calls": count} for seconds, count, name in costs[:-4:-1]]
    return rows


SECTIONS: dict[str, tuple[str, Callable[[Setup, dict[str, Rows]], Rows]]] = {
    "inference": ("Inference (released = the loop over bands in default layout, fp32)", time_inference),
    "training": ("Training step: degrade, forward, MSE, backward, Adam", time_training),
    "memory": ("Peak memory beyond weights and input, a fresh process each", measure_memory),
    "pooling": ("Pooling alone: ideal traffic (forward 3C + C, backward 4C + 3C) a second", time_pooling),
    "growth": ("Growth with bands, and with pixels", time_growth),
    "tiles": ("A scene in tiles", time_tiles),
    "degradation": ("Degradation of a batch, as a share of its forward pass", time_degradation),
    "data": ("Loader, an epoch of a warm database; cutting that database", time_data),
    "waiting": ("A short training", time_waiting),
    "accuracy": ("Relative error against the loop in float64", measure_accuracy),
    "psnr": ("PSNR (dB) of a trained network", measure_psnr),
    "profile": ("Largest costs of the fast network, own time", profile),
}
