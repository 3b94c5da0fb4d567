"""The measurements, one function each: `section(setup, done) -> {"rows": [...], ...}`, plain values that JSON can hold."""
from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import memory
from benchmarks.measure import (
    Timing,
    Variant,
    bf16_is_native,
    compare,
    inference,
    interleave,
    random_cubes,
    ratio,
    summarise,
    time_call,
    training_step,
    variants,
)
from models.pooling import pool
from utility.checkpoints import model_from_checkpoint
from utility.configuration import TrainingConfig
from utility.degradation import KINDS, crop_to_multiple, degrade
from utility.evaluation import Reading, read_images
from utility.indexes import evaluate
from utility.lmdb_dataset import LMDBDataset
from utility.loader import training_loader
from utility.scenes import list_scenes
from utility.tiling import super_resolve_cube
from utility.training import train

Shape = tuple[int, ...]
Result = dict[str, Any]
SCALE, KIND = 4, "spatial"


@dataclass(frozen=True)
class Sizes:
    """What is measured at which size: cubes (B, H, W), batches (N, B, h, w)."""

    inference: tuple[Shape, ...] = ((31, 256, 256), (31, 512, 512), (200, 128, 128))  # the first one in every variant
    memory: int = 3                     # of these, the first
    training: Shape = (4, 31, 64, 64)
    pooling: Shape = (1, 48, 31, 128, 128)
    bands: tuple[int, ...] = (31, 62, 124, 248)
    bands_side: int = 64
    sides: tuple[int, ...] = (64, 128, 256, 512)
    sides_bands: int = 31
    degradation: Shape = (16, 31, 64, 64)
    scene: Shape = (31, 512, 512)       # for tiles
    tiles: tuple[int, ...] = (256, 128)
    accuracy: Shape = (1, 31, 32, 32)
    database: int = 1024                # rows and columns of a scene of 31 bands

    @classmethod
    def of(cls, device: torch.device, quick: bool) -> Sizes:
        if quick:
            return cls(((31, 32, 32), (31, 64, 64), (64, 32, 32)), 1, (2, 31, 32, 32), (1, 48, 31, 32, 32), (8, 16, 32), 32,
                       (16, 32, 64), 8, (2, 31, 32, 32), (8, 96, 96), (64, 32), (1, 8, 16, 16), 256)
        if device.type == "cuda":
            return cls(((31, 512, 512), (31, 256, 256), (200, 128, 128)), training=(16, 31, 64, 64),
                       pooling=(8, 48, 31, 128, 128))
        return cls()


@dataclass(frozen=True)
class Setup:
    """What every measurement needs."""

    timing: Timing
    sizes: Sizes
    threads: int
    arch: str = "biqrnn_16_5"
    checkpoint: str | None = None
    images: str = "data/sample/natural/test"

    @property
    def device(self) -> torch.device:
        return self.timing.device


def text(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _calls(maker: Callable[..., Callable], chosen: list[Variant], setup: Setup, x: Tensor) -> dict[str, Callable[[], Any]]:
    return {way.name: partial(maker(way, setup.arch, setup.device), x) for way in chosen}


# --- the network ------------------------------------------------------------------------------------------------------

def time_inference(setup: Setup, done: Result) -> Result:
    """The first size with every variant; the others without floor and bf16 on a CPU, where a call takes many seconds."""
    rows = []
    for k, shape in enumerate(setup.sizes.inference):
        ways = variants(setup.device)
        if k and setup.device.type == "cpu":
            ways = [way for way in ways if way.name in ("released", "fast")]
        x = random_cubes(1, 1, *shape, device=setup.device)
        # Everything is warm from the first size; on a CPU a call of the largest one is too long to be thrown away.
        warm_up = 0 if k and setup.device.type == "cpu" and np.prod(shape) > 2**22 else None
        rows += compare(_calls(inference, ways, setup, x), setup.timing, ways, warm_up=warm_up, size=text(shape))
    return {"rows": rows}


def time_training(setup: Setup, done: Result) -> Result:
    ways = variants(setup.device, training_step=True)
    gt = random_cubes(*setup.sizes.training, device=setup.device)
    calls = _calls(training_step, ways, setup, gt)
    result: Result = {"rows": compare(calls, setup.timing, ways, size=text(setup.sizes.training))}
    if setup.device.type == "cpu":
        result["floor_writing"] = calls["floor"]()["writing"]
        result["note"] = f"of the floor, {1000 * result['floor_writing']:.0f} ms write its outputs and gradients"
    return result


def measure_memory(setup: Setup, done: Result) -> Result:
    """In a fresh process each, see `memory`."""
    device, rows = setup.device, []
    plain = [Variant("released", released=True), Variant("fast")]
    bf16 = [Variant("fast bf16", amp="bf16")] * bf16_is_native(device)
    work = [("inference", shape, plain + bf16 * (k == 0 or device.type == "cuda"))
            for k, shape in enumerate(setup.sizes.inference[:setup.sizes.memory])]
    work += [("training", setup.sizes.training, [*plain, *bf16, Variant("fast recomputing", checkpoint=True),
                                                *[Variant("fast compiled", compiled=True)] * (device.type == "cuda")])]
    for name, shape, ways in work:
        baseline = None
        for way in ways:
            row: Result = {"work": name, "size": text(shape), "variant": way.name}
            try:
                row |= memory.peak_memory(name, way, shape, setup.arch, device, setup.threads)
                baseline = row["peak"] if way.released else baseline
                if baseline:
                    row["share"] = row["peak"] / baseline
            except RuntimeError as error:
                row["failed"] = str(error)[:200]
            rows.append(row)
    return {"rows": rows}


def time_growth(setup: Setup, done: Result) -> Result:
    """Time a voxel against bands, and against pixels; sizes that inference had already are taken from there."""
    rows, sizes = [], setup.sizes
    known = {(row["size"], row["variant"]): row for row in done.get("inference", {}).get("rows", []) if "seconds" in row}
    ways = [way for way in variants(setup.device) if way.name in ("released", "fast", "fast bf16")]
    if setup.device.type == "cpu":
        ways = ways[:2]
    for axis, shapes in (("bands", [(b, sizes.bands_side, sizes.bands_side) for b in sizes.bands]),
                         ("pixels", [(sizes.sides_bands, side, side) for side in sizes.sides])):
        for shape in shapes:
            if (text(shape), "fast") in known:
                found = [known[text(shape), way.name] for way in ways if (text(shape), way.name) in known]
            else:
                x = random_cubes(1, 1, *shape, device=setup.device)
                found = compare(_calls(inference, ways, setup, x), setup.timing, size=text(shape))
            rows += [{"axis": axis, "bands": shape[0], "pixels": shape[1] * shape[2], "size": row["size"],
                      "variant": row["variant"], "speedup": row.get("speedup"),
                      "ns_per_voxel": 1e9 * row["seconds"]["median"] / np.prod(shape).item()}
                     for row in found if "seconds" in row]
    return {"rows": rows}


# --- pooling alone ----------------------------------------------------------------------------------------------------

def time_pooling(setup: Setup, done: Result) -> Result:
    """f-pooling in both directions: forward without a graph, and backward alone, against a copy of as many bytes.

    Ideal traffic, in units of the output: forward 3 read + 1 written; backward 4 read + 3 written. The kernel's backward
    includes recomputing the states, which the loop keeps. The tensors are larger than a second-level cache, so that
    calls in a row do not find them there.
    """
    device, rows = setup.device, []
    kernel = "triton" if device.type == "cuda" else "cpu"
    for dtype in [torch.float32, *[torch.bfloat16] * (device.type == "cuda")]:
        gates = (4 * random_cubes(*setup.sizes.pooling, device=device) - 2).to(dtype)
        output = gates.numel() // 3 * gates.element_size()
        for work, traffic in (("forward", 4 * output), ("backward", 7 * output)):
            calls: dict[str, Callable[[], Any]] = {}
            for backend in ("loop", kernel):
                for layout, memory_format in (("contiguous", torch.contiguous_format),
                                              ("channels-last", torch.channels_last_3d)):
                    calls[f"{backend}, {layout}"] = _pooling(work, gates.contiguous(memory_format=memory_format), backend)
            source = torch.rand(traffic // 8, device=device)  # float32, read and written: `traffic` bytes in all
            calls["copy"] = partial(torch.empty_like(source).copy_, source)
            found = compare(calls, setup.timing, baseline="loop, contiguous", work=work, dtype=str(dtype).split(".")[-1])
            copy = next((row["seconds"]["median"] for row in found if row["variant"] == "copy" and "seconds" in row), None)
            for row in found:
                if "seconds" in row:
                    row["gb_per_s"] = traffic / row["seconds"]["median"] / 1e9
                    row["of_copy"] = copy / row["seconds"]["median"] if copy else None
            rows += found
            del calls
    return {"rows": rows, "size": text(setup.sizes.pooling), "kernel": kernel}


def _pooling(work: str, gates: Tensor, backend: str) -> Callable[[], Any]:
    if work == "forward":
        return torch.no_grad()(partial(pool, gates, "f", "both", None, backend))
    gates = gates.detach().requires_grad_()
    out = pool(gates, "f", "both", None, backend)
    return partial(torch.autograd.grad, out, gates, torch.rand_like(out) - 0.5, retain_graph=True)


# --- around the network -----------------------------------------------------------------------------------------------

def time_degradation(setup: Setup, done: Result) -> Result:
    """As a share of the forward pass (fast, float32, no gradients) of the same batch."""
    gt = random_cubes(*setup.sizes.degradation, device=setup.device)
    forward = partial(inference(Variant("fast"), setup.arch, setup.device), gt[:, None])
    samples, _ = interleave({**{kind: partial(degrade, gt, SCALE, kind) for kind in KINDS}, "forward": forward}, setup.timing)
    whole = np.median(samples["forward"])
    return {"size": text(setup.sizes.degradation), "scale": SCALE,
            "rows": [{"work": name, "seconds": summarise(times), "share": float(np.median(times) / whole)}
                     for name, times in samples.items()]}


def time_tiles(setup: Setup, done: Result) -> Result:
    """Speed of a scene in tiles, as a share of the speed of the whole scene at once; host to host."""
    net = Variant("fast").network(setup.arch).to(setup.device).eval()
    cube = random_cubes(*setup.sizes.scene, device=torch.device("cpu")).numpy()
    calls = {"whole": partial(super_resolve_cube, net, cube, tile=0)}
    calls |= {f"tile {tile}": partial(super_resolve_cube, net, cube, tile=tile) for tile in setup.sizes.tiles}
    # On a CPU a round takes about a minute, and nothing is thrown away.
    with Variant("fast").applied(setup.device):
        samples, failed = interleave(calls, replace(setup.timing, least=1), warm_up=0 if setup.device.type == "cpu" else None)
    return {"size": text(cube.shape), "failed": failed,
            "rows": [{"work": name, "seconds": summarise(times),
                      "mvoxel_per_s": cube.size / float(np.median(times)) / 1e6,
                      "share": ratio(samples["whole"], times)["ratio"]} for name, times in samples.items()]}


def time_data(setup: Setup, done: Result) -> Result:
    """Build a database from a scene made on the spot, in a process of its own, and read it with one worker, warm."""
    side, rows = setup.sizes.database, []
    with tempfile.TemporaryDirectory(prefix="bi3dqrnn-") as folder:
        source, out = Path(folder, "scene.npy"), Path(folder, "scene.lmdb")
        np.save(source, np.random.default_rng(0).random((31, side, side), dtype=np.float32))
        built = memory.probe({"work": "database", "source": str(source), "out": str(out), "side": side,
                              "threads": setup.threads})
        patches = LMDBDataset(out)
        for workers in (1, 0):
            loader = training_loader(patches, 2 if len(patches) < 64 else 16, seed=0, threads=workers)
            times = []
            for epoch in range(1 + max(2, setup.timing.repeats)):
                loader.batch_sampler.set_position(epoch, 0)
                times.append(time_call(partial(_read, loader), torch.device("cpu")))
            read = len(loader) * loader.batch_sampler.batch
            rows.append({"work": "one worker" if workers else "no worker", "seconds": summarise(times[1:]), "patches": read,
                         "patches_per_s": read / float(np.median(times[1:]))})
    return {"database": built | {"scene": text((31, side, side))}, "patch": text(patches.shape), "rows": rows}


def _read(loader: Iterable[Tensor]) -> None:
    for _ in loader:
        pass


def time_waiting(setup: Setup, done: Result) -> Result:
    """A short training as a user runs it, bf16: the share of time in which the GPU waits for data, of the last epoch."""
    epochs, batch = 3, setup.sizes.training[0]
    with tempfile.TemporaryDirectory(prefix="bi3dqrnn-") as folder:
        database, run = Path(folder, "random.lmdb"), Path(folder, "run")
        _random_database(database, 65 * batch, setup.sizes.training[1:], batch)
        config = TrainingConfig(arch=setup.arch, data=str(database), batch=batch, epochs=epochs, val_batches=1, amp="bf16",
                                run_dir=str(run), tensorboard=False, quiet=True, cuda=setup.device.type == "cuda")
        with contextlib.redirect_stdout(io.StringIO()):
            train(config)
        with open(run / "history.csv", newline="", encoding="utf-8") as file:
            last = list(csv.DictReader(file))[-1]
    return {"rows": [{"work": f"{epochs} epochs of 64 steps", "share": float(last["data_wait"]),
                      "patches_per_s": float(last["patches_per_s"])}]}


def _random_database(path: Path, count: int, shape: Shape, validation: int) -> None:
    rng = np.random.default_rng(0)
    meta = {"version": 1, "dtype": "float32", "shape": list(shape), "count": count, "validation": validation, "sources": []}
    size = 2 * count * int(np.prod(shape)) * 4 + 2**24
    with lmdb.open(str(path), map_size=size, sync=False) as environment, environment.begin(write=True) as transaction:
        for i in range(count):
            transaction.put(f"{i:08d}".encode(), rng.random(shape, dtype=np.float32).tobytes())
        transaction.put(b"__meta__", json.dumps(meta).encode())


# --- accuracy ---------------------------------------------------------------------------------------------------------

def measure_accuracy(setup: Setup, done: Result) -> Result:
    """Relative error of output and gradients against the loop in float64, and what it does to a trained network's PSNR."""
    gt = random_cubes(*setup.sizes.accuracy, device=torch.device("cpu"))
    x = degrade(gt, SCALE, KIND)
    # The loss compares with another cube, so that its gradient is not that of an almost perfect network.
    target = random_cubes(*setup.sizes.accuracy, device=torch.device("cpu"), seed=1)
    exact = _run_once(Variant("exact", released=True), setup.arch, torch.device("cpu"), x.double(), target.double())
    ways = [way for way in variants(setup.device, training_step=True) if not way.floor]
    rows = []
    for way in ways:
        row: Result = {"variant": way.name, "precision": way.precision}
        try:
            found = _run_once(way, setup.arch, setup.device, x, target)
        except Exception as error:
            rows.append(row | {"failed": f"{type(error).__name__}: {error}"[:200]})
            continue
        difference = x[:, None].double()  # the network adds its input; without it the error is not hidden by that
        row["output"] = max(_error(found[k], exact["output"]) for k in ("output", "inference"))
        row["residual"] = max(_error(found[k] - difference, exact["output"] - difference) for k in ("output", "inference"))
        row["gradients"] = _error(torch.cat(found["gradients"]), torch.cat(exact["gradients"]))
        row["worst_gradient"] = max(map(_error, found["gradients"], exact["gradients"]))
        rows.append(row)
    result: Result = {"rows": rows, "size": text(setup.sizes.accuracy)}
    if setup.checkpoint:
        result["psnr"] = _psnr(setup)
    return result


def _run_once(way: Variant, arch: str, device: torch.device, x: Tensor, target: Tensor) -> Result:
    """Output with and without gradients (of the MSE, one flat tensor a parameter); float64 on the CPU."""
    net = way.network(arch).to(device, x.dtype)
    if not way.released:
        net.set_execution(block_voxels=2**13)  # several blocks, although the image is small
    run = torch.compile(net) if way.compiled else net
    x, target = x[:, None].to(device), target.to(device)
    with way.applied(device, autocast=False):
        with way.autocast(device):
            output = run(x)
            with torch.no_grad():
                without = net(x)
        F.mse_loss(output[:, 0].to(target.dtype), target).backward()
    double = partial(Tensor.to, device="cpu", dtype=torch.float64)
    return {"output": double(output.detach()), "inference": double(without),
            "gradients": [double(p.grad.flatten()) for p in net.parameters()]}


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def _psnr(setup: Setup) -> Result:
    """Mean PSNR over the test images of a trained network, computed in every way; the change is against the loop."""
    images = [image.cube for image in read_images(list_scenes([setup.images]), Reading())]
    found: dict[str, list[float]] = {}
    for way in variants(setup.device):
        if way.floor:
            continue
        net, info = model_from_checkpoint(setup.checkpoint, **way.execution)
        scale, kind = (info.scales or (SCALE,))[0], info.degradation or KIND
        net.to(setup.device)
        for cube in images:
            gt = crop_to_multiple(cube, math.lcm(scale, net.multiple))
            x = degrade(torch.from_numpy(gt), scale, kind).to(setup.device)
            with torch.no_grad(), way.applied(setup.device):
                sr = net(x[None, None])[0, 0].float().cpu().numpy()
            found.setdefault(way.name, []).append(evaluate(sr, gt, scale)["psnr"])
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    return {"checkpoint": Path(setup.checkpoint).name, "images": len(images), "scale": scale, "degradation": kind,
            "rows": [{"variant": name, "psnr": value, "change": value - mean["released"]} for name, value in mean.items()]}


# --- profile ----------------------------------------------------------------------------------------------------------

def profile(setup: Setup, done: Result) -> Result:
    """Where the fast network's time goes, by operator: own time on the device, without what it calls."""
    device, gpu = setup.device, setup.device.type == "cuda"
    bf16 = [Variant("fast bf16", amp="bf16")] * (gpu and bf16_is_native(device))
    shape = setup.sizes.inference[0]
    rows, kernels = [], []
    for way in [Variant("fast"), *bf16]:
        for work, maker, x in (("inference", inference, random_cubes(1, 1, *shape, device=device)),
                               ("training step", training_step, random_cubes(*setup.sizes.training, device=device))):
            call = partial(maker(way, setup.arch, device), x)
            call()
            activities = [torch.profiler.ProfilerActivity.CPU, *[torch.profiler.ProfilerActivity.CUDA] * gpu]
            with torch.profiler.profile(activities=activities) as recorded:
                call()
                if gpu:
                    torch.cuda.synchronize(device)
            on_cpu = torch.autograd.DeviceType.CPU
            events = recorded.key_averages()
            ops = [(e.key, e.self_device_time_total if gpu else e.self_cpu_time_total, e.count)
                   for e in events if e.device_type == on_cpu]
            rows += _largest(ops, work=work, variant=way.name, size=text(x.shape))
            if gpu:
                kernels += _largest([(e.key[:120], e.self_device_time_total, e.count) for e in events
                                     if e.device_type != on_cpu], work=work, variant=way.name)
    return {"rows": rows, "kernels": kernels}


def _largest(costs: list[tuple[str, float, int]], most: int = 8, **labels: str) -> list[Result]:
    total = sum(microseconds for _, microseconds, _ in costs) or 1.0
    costs = sorted(costs, key=lambda cost: -cost[1])[:most]
    return [{**labels, "rank": k + 1, "operator": name, "seconds": microseconds / 1e6, "share": microseconds / total,
             "calls": calls} for k, (name, microseconds, calls) in enumerate(costs) if microseconds]


SECTIONS: dict[str, Callable[[Setup, Result], Result]] = {
    "inference": time_inference, "training": time_training, "memory": measure_memory, "pooling": time_pooling,
    "growth": time_growth, "tiles": time_tiles, "degradation": time_degradation, "data": time_data,
    "waiting": time_waiting, "accuracy": measure_accuracy, "profile": profile,
}
GPU_ONLY = ("waiting",)
