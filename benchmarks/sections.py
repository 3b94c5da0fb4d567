"""The measurements, one function each: `section(setup)` returns the rows of one table, {column:
value}."""
from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import (
    PEAK,
    WORKS,
    Rows,
    Setup,
    Variant,
    as_rows,
    compare,
    compare_variants,
    in_fresh_process,
    inference,
    random_cubes,
    take_turns,
    text,
    variants,
)
from models.layers.pooling import pool
from utility.checkpoints import model_from_checkpoint
from utility.degradation import KINDS, crop_to_multiple, degrade, downsample
from utility.indexes import evaluate
from utility.lmdb_dataset import LMDBDataset, writing_database
from utility.scenes import Reading, list_scenes
from utility.superres.tiling import super_resolve_cube
from utility.system.devices import autocast
from utility.system.progress import quiet
from utility.testing.images import read_images
from utility.training.configuration import TrainingConfig
from utility.training.loader import Turns, training_loader
from utility.training.loop import train

CPU, ROOT = torch.device("cpu"), Path(__file__).resolve().parent.parent

# Cubes are (B, H, W), batches (N, B, h, w).
SIZES: dict[str, Any] = {
    "inference": ((31, 256, 256), (31, 512, 512), (200, 128, 128)),  # the first: every variant
    "memory": 3,  # of these, the first
    "training": (4, 31, 64, 64),
    "pooling": (1, 48, 31, 128, 128),
    "bands": [(bands, 64, 64) for bands in (31, 62, 124, 248)],
    "pixels": [(31, side, side) for side in (64, 128, 256, 512)],
    "degradation": (16, 31, 64, 64),
    "scene": (31, 512, 512), "tiles": (256, 128),
    "accuracy": (1, 31, 32, 32),
    "processes": (4, 31, 64, 64),
    "database": 1024,  # rows and columns of a scene of 31 bands
    "file": 256,  # likewise, of the file that is super-resolved
    "satellite": 1024,  # likewise, of a whole scene
}
GPU_SIZES = (SIZES
             | {"inference": ((31, 512, 512), (31, 256, 256), (200, 128, 128)),
                "training": (16, 31, 64, 64), "pooling": (8, 48, 31, 128, 128)})
QUICK_SIZES = {"inference": ((4, 16, 16), (4, 24, 24)), "memory": 1, "training": (2, 4, 16, 16),
               "pooling": (1, 6, 4, 8, 8), "bands": [(2, 16, 16), (4, 16, 16)],
               "pixels": [(4, 16, 16), (4, 32, 32)], "degradation": (2, 4, 16, 16),
               "scene": (4, 48, 48), "tiles": (32,), "accuracy": (1, 4, 16, 16),
               "processes": (4, 4, 16, 16), "database": 128, "file": 32,
               "satellite": 32}


# The network --------------------------------------------------------------------------------------

def time_inference(setup: Setup) -> Rows:
    """The first size in every variant; the others on a CPU, where a call takes seconds, only
    released and fast."""
    ways, (first, *others) = variants(setup.device), setup.sizes["inference"]
    rows = compare_variants(setup, "inference", ways, (1, 1, *first))
    for shape in others:
        rows += compare_variants(setup, "inference", ways if setup.gpu else ways[:2],
                                 (1, 1, *shape))
    return rows


def time_training(setup: Setup) -> Rows:
    return compare_variants(setup, "training step", variants(setup.device, training=True),
                            setup.sizes["training"])


def measure_memory(setup: Setup) -> Rows:
    """Peak memory of each variant in a fresh process, see `measure.peak_memory`."""
    rows, names = [], ("released", "fast", "fast bf16", "fast recomputing", "fast compiled")
    works = [
        ("inference", (1, 1, *shape)) for shape in setup.sizes["inference"][:setup.sizes["memory"]]]
    for work, shape in [*works, ("training step", setup.sizes["training"])]:
        ways = [way
                for way in variants(setup.device, training=work != "inference")
                if way.name in names]
        baseline = None
        for way in ways:
            row = {"work": work, "size": text(shape), "variant": way.name}
            with setup.noting(" ".join(row.values())):
                row |= in_fresh_process(ROOT, PEAK, work=work, variant=vars(way), shape=shape,
                                        arch=setup.arch, device=str(setup.device),
                                        threads=setup.threads)
                baseline = row["peak"] if way.released else baseline
                rows.append(row | {"of released": row["peak"] / baseline if baseline else None})
    return rows


def time_growth(setup: Setup) -> Rows:
    """Time a voxel against bands, and against pixels; sizes that inference had already are taken
    from there."""
    names = ("released", "fast", *["fast bf16"] * setup.gpu)
    ways = [way for way in variants(setup.device) if way.name in names]
    rows = []
    for axis in ("bands", "pixels"):
        for shape in setup.sizes[axis]:
            found = [row
                     for row in setup.results.get("inference", []) if row["size"] == text(shape)]
            found = found or compare_variants(setup, "inference", ways, (1, 1, *shape))
            for row in found:
                if row["variant"] in names:
                    rows.append({"axis": axis, "size": text(shape), "variant": row["variant"],
                                 "ns a voxel": 1e9 * row["time"] / math.prod(shape),
                                 "faster": row.get("faster")})
    return rows


def time_pooling(setup: Setup) -> Rows:
    """f-pooling in both directions: forward without a graph, and backward alone, against a copy of
    as many bytes."""
    rows = []
    formats = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last_3d}
    for dtype, work in product([torch.float32, *[torch.bfloat16] * setup.gpu],
                               ("forward", "backward")):
        gates = (4 * random_cubes(*setup.sizes["pooling"], device=setup.device) - 2).to(dtype)
        calls: dict[str, Callable[[], Any]] = {}
        for backend, layout in product(("loop", "triton" if setup.gpu else "cpu"), formats):
            laid = gates.contiguous(memory_format=formats[layout]).detach().requires_grad_(
                work == "backward")
            call = partial(pool, laid, "f", "both", None, backend)
            if work == "backward":
                out = call()
                call = partial(torch.autograd.grad, out, laid, torch.rand_like(out) - 0.5,
                               retain_graph=True)
            calls[f"{backend}, {layout}"] = call
        # In thirds of the gates, 3 are read and 1 is written forward, 4 and 3 backward.
        traffic = gates.numel() // 3 * gates.element_size() * (4 if work == "forward" else 7)
        # float32, read and written: `traffic` bytes in all
        source = torch.rand(traffic // 8, device=setup.device)
        calls["copy"] = partial(torch.empty_like(source).copy_, source)
        found = compare(setup, calls, "loop, contiguous", size=text(gates.shape), work=work,
                        type=str(dtype).split(".")[-1])
        rows += [row
                 | {"GB/s": traffic / row["time"] / 1e9,
                    "of a copy": found[-1]["time"] / row["time"]} for row in found]
    return rows


# Around the network -------------------------------------------------------------------------------

def time_degradation(setup: Setup) -> Rows:
    """As a share of the forward pass (fast, float32, no gradients) of the same batch."""
    gt = random_cubes(*setup.sizes["degradation"], device=setup.device)
    kinds = ["mtf 0.3", *(kind for kind in KINDS if kind != "mtf")]
    calls = {kind: partial(degrade, gt, 4, kind) for kind in kinds}
    calls["forward"] = partial(inference(Variant("fast"), setup.arch, setup.device), gt[:, None])
    rows = compare(setup, calls, column="work", size=text(gt.shape))
    return [row | {"share": row["time"] / rows[-1]["time"]} for row in rows]


def time_tiles(setup: Setup) -> Rows:
    """Speed of a scene in tiles, as a share of the speed of the whole scene at once; host to
    host."""
    net = Variant("fast").network(setup.arch).to(setup.device).eval()
    cube = random_cubes(*setup.sizes["scene"], device=CPU).numpy()
    calls = {"whole": partial(super_resolve_cube, net, cube, tile=0)}
    for tile in setup.sizes["tiles"]:
        calls[f"tile {tile}"] = partial(super_resolve_cube, net, cube, tile=tile)
    with Variant("fast").applied():
        rows = compare(setup, calls, column="work", size=text(cube.shape))
    return [row
            | {"Mvoxel/s": cube.size / row["time"] / 1e6, "of whole": rows[0]["time"] / row["time"]}
            for row in rows]


CUT = """
import time; from dataclasses import replace
from benchmarks.measure import resident
from utility.datasets.cards import load_card; from utility.datasets.building import build_database
from utility.system.progress import quiet
side = task["side"]
card = replace(load_card("icvl"), key=None, layout="BHW", size=None, crop=(side, side))
begin = time.perf_counter()
with quiet():
    meta = build_database(task["out"], [task["source"]], card)
print(json.dumps({"time": time.perf_counter() - begin, "patches": meta["count"],
                  "process": resident("VmHWM")}))
"""


def time_data(setup: Setup) -> Rows:
    """Cut a database as the card of ICVL does, in a process of its own; read it with one worker and
    without, warm."""
    side = setup.sizes["database"]
    with tempfile.TemporaryDirectory(prefix="bi3dqrnn-") as folder:
        source, out = f"{folder}/scene.npy", f"{folder}/scene.lmdb"
        np.save(source, np.random.default_rng(0).random((31, side, side), dtype=np.float32))
        built = in_fresh_process(ROOT, CUT, source=source, out=out, side=side)
        patches = LMDBDataset(out)
        batch = 2 if len(patches) < 64 else 16
        loaders = {"one worker": training_loader([patches], batch, seed=0, threads=1),
                   "no worker": training_loader([patches], batch, seed=0, threads=0)}
        rows = compare(setup,
                       {name: partial(deque, loader, maxlen=0) for name, loader in loaders.items()},
                       column="work")
    return [*(row | {"patches/s": len(patches) / row["time"]} for row in rows),
            {"work": f"cut {built['patches']} from 31x{side}x{side}", "time": built["time"],
             "patches/s": built["patches"] / built["time"], "process": built["process"]}]


def time_waiting(setup: Setup) -> Rows:
    """A short training as a user runs it, bf16: the share of time in which the GPU waits for data,
    of the last epoch."""
    rng, shape = np.random.default_rng(0), setup.sizes["training"]
    with tempfile.TemporaryDirectory(prefix="bi3dqrnn-") as folder:
        with writing_database(f"{folder}/random.lmdb") as writer:
            for _ in range(65):
                writer.write(rng.random(shape, dtype=np.float32))
            writer.finish(validation=shape[0], sources=[])
        with quiet():
            train(TrainingConfig(arch=setup.arch, data=f"{folder}/random.lmdb", batch=shape[0],
                                 epochs=3, val_batches=1, amp="bf16", run_dir=f"{folder}/run",
                                 tensorboard=False))
        last = list(csv.DictReader(
            Path(folder, "run/history.csv").read_text(encoding="utf-8").splitlines()))[-1]
    return [{"work": "3 epochs of 64 steps", "patches/s": float(last["patches_per_s"]),
             "GPU waits": float(last["data_wait"])}]


def time_processes(setup: Setup) -> Rows:
    """A training step shared by two processes of one thread each, against one: launches in turns,
    the median step of each."""
    def launch(count: int) -> float:
        words = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}",
                 "benchmarks/steps.py", setup.arch, *map(str, setup.sizes["processes"])]
        done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT,
                              env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
                              check=True)
        return float(np.median(json.loads(done.stdout)))

    samples = take_turns(setup,
                         {"one process": partial(launch, 1), "two processes": partial(launch, 2)})
    return as_rows(samples, "one process", "work", size=text(setup.sizes["processes"]))


def time_sampler(setup: Setup) -> Rows:
    """Time of the processor, and memory, of the first batch of a pass over so many patches."""
    rows = []
    for patches in (10**5, 10**7):
        tracemalloc.start()
        begin = time.process_time()
        next(iter(Turns([patches], 16, seed=2021)))
        rows.append({"work": f"{patches:,} patches", "time": time.process_time() - begin,
                     "peak": tracemalloc.get_traced_memory()[1]})
        tracemalloc.stop()
    return rows


# Accuracy -----------------------------------------------------------------------------------------

def measure_accuracy(setup: Setup) -> Rows:
    """Relative error of output and gradients against the loop in float64."""
    shape, rows = setup.sizes["accuracy"], []
    x = degrade(random_cubes(*shape, device=CPU), 4, "gaussian")[:, None].double()
    # The loss compares with another cube, so that its gradient is not that of an almost perfect
    # network.
    target = random_cubes(*shape, device=CPU, seed=1)[:, None].double()
    exact, _, exact_gradients = _run_once(Variant("exact", released=True), setup.arch, x, target)
    for way in [way for way in variants(setup.device, training=True) if not way.floor]:
        with setup.noting(way.name):
            *outputs, gradients = _run_once(way, setup.arch, x.float().to(setup.device),
                                            target.float().to(setup.device))
            # an input that is added hides errors
            rows.append({"size": text(shape), "variant": way.name,
                         "output": max(_error(out, exact) for out in outputs),
                         "without input": max(_error(out - x, exact - x) for out in outputs),
                         "gradients": _error(torch.cat(gradients), torch.cat(exact_gradients)),
                         "worst parameter": max(map(_error, gradients, exact_gradients))})
    return rows


def _run_once(way: Variant, arch: str, x: Tensor,
              target: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output with and without gradients, and the gradients of the MSE, flat; float64 on the CPU."""
    net = way.network(arch).to(x)
    if not way.released:
        net.set_execution(block_voxels=2**13)  # several blocks, although the image is small
    run = torch.compile(net) if way.compiled else net
    with way.applied():
        with autocast(x.device, way.amp):
            output = run(x)
            with torch.no_grad():
                without = net(x)
        F.mse_loss(output.to(target.dtype), target).backward()
    double = partial(Tensor.to, device="cpu", dtype=torch.float64)
    return (double(output.detach()), double(without),
            [double(p.grad.flatten()) for p in net.parameters()])


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def measure_psnr(setup: Setup) -> Rows:
    """Mean PSNR over test images of a trained network (--checkpoint), computed in every way; its
    change against the loop."""
    images = [image.cube for image in read_images(list_scenes([setup.images]), Reading())]
    rows = []
    for way in [way for way in variants(setup.device) if not way.floor]:
        net, info = model_from_checkpoint(setup.checkpoint, **way.execution)
        scale, kind = (info.scales or (4,))[0], info.degradation or "gaussian"
        net.to(setup.device)
        found = []
        for gt in (torch.from_numpy(crop_to_multiple(cube, net.patch_multiple(scale)))
                   for cube in images):
            parts = (made(gt, scale, kind)[None, None].to(setup.device)
                     for made in (degrade, downsample))
            with torch.no_grad(), way.applied(), autocast(setup.device, way.amp):
                found.append(evaluate(net(*net.inputs(*parts))[0, 0].float(), gt, scale)["psnr"])
        rows.append({
            "work": f"{Path(setup.checkpoint).name}, x{scale} {kind}, {len(images)} images",
            "variant": way.name, "PSNR": float(np.mean(found))})
    return [row | {"change": row["PSNR"] - rows[0]["PSNR"]} for row in rows]


def profile(setup: Setup) -> Rows:
    """Where the fast network's time goes: the largest operators, and a GPU's kernels, by their own
    time on the device."""
    kinds = [torch.autograd.DeviceType.CPU, *[torch.autograd.DeviceType.CUDA] * setup.gpu]
    works = (("inference", (1, 1, *setup.sizes["inference"][0])),
             ("training step", setup.sizes["training"]))
    ways = [
        way for way in variants(setup.device) if way.name in ("fast", *["fast bf16"] * setup.gpu)]
    rows = []
    for way, (work, shape) in product(ways, works):
        call = partial(WORKS[work](way, setup.arch, setup.device),
                       random_cubes(*shape, device=setup.device))
        call()
        with torch.profiler.profile() as recorded:
            call()
            if setup.gpu:
                torch.cuda.synchronize(setup.device)
        for kind in kinds:
            clock = "self_device_time_total" if setup.gpu else "self_cpu_time_total"
            own = [each for each in recorded.key_averages() if each.device_type == kind]
            costs = sorted((getattr(each, clock) / 1e6, each.count, each.key[:80]) for each in own)
            whole = sum(seconds for seconds, *_ in costs) or 1.0
            for seconds, count, name in costs[:-4:-1]:
                rows.append({"work": work, "variant": way.name, "operator": name, "time": seconds,
                             "share": seconds / whole, "calls": count})
    return rows


Section = Callable[[Setup], Rows]

SECTIONS: dict[str, tuple[str, Section]] = {
    "inference": ("Inference (released = the loop over bands in default layout, fp32)",
                  time_inference),
    "training": ("Training step: degrade, forward, MSE, backward, Adam", time_training),
    "memory": ("Peak memory beyond weights and input, a fresh process each", measure_memory),
    "pooling": ("Pooling alone: ideal traffic (forward 3C + C, backward 4C + 3C) a second",
                time_pooling), "growth": ("Growth with bands, and with pixels", time_growth),
    "tiles": ("A scene in tiles", time_tiles),
    "degradation": ("Degradation of a batch, as a share of its forward pass", time_degradation),
    "data": ("Loader, an epoch of a warm database; cutting that database", time_data),
    "waiting": ("A short training", time_waiting),
    "processes": ("A training step by several processes of one thread each", time_processes),
    "sampler": ("The first batch of a pass", time_sampler),
    "accuracy": ("Relative error against the loop in float64", measure_accuracy),
    "psnr": ("PSNR (dB) of a trained network", measure_psnr),
    "profile": ("Largest costs of the fast network, own time", profile)}
