"""What a GPU needs and a processor can show: no wait for the host, one memory format."""
import os
import subprocess
import sys
import tarfile
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from limits import HUNG
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import roofline
from models import create_model, lowgrid
from models.layers import pooling
from models.layers import row_blocks as blocks
from utility.checkpoints import load_checkpoint
from utility.superres import tiling
from utility.training.configuration import TrainingConfig
from utility.training.loader import stopped_at_the_end
from utility.training.state import State
from utility.training.steps import train_step


class Calls(TorchDispatchMode):
    """Every operator that runs within it: name, tensors that it takes, tensors that it gives."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [x for x in args if isinstance(x, torch.Tensor)]
        out = function(*args, **(kwargs or {}))
        self.made.append((str(function.overloadpacket), given,
                          [x
                           for x in (out if isinstance(out, tuple) else (out,))
                           if isinstance(x, torch.Tensor)]))
        return out

    def count(self, *names):
        return Counter(name for name, *_ in self.made if name in names)


HOST = ("aten._to_copy", "aten._local_scalar_dense", "aten.item", "aten.copy_", "aten.lift_fresh",
        "aten.nonzero")
COPIES = ("aten.clone", "aten.constant_pad_nd", "aten.index_select", "aten.flip")


@pytest.fixture
def meta(monkeypatch):
    """A device without memory: a copy to or from it is an operator, or raises."""
    monkeypatch.setattr(pooling, "_choose", lambda backend, gates: "triton")
    monkeypatch.setattr(pooling, "_write", lambda *given: None)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # it knows no meta
    monkeypatch.setattr(torch, "autocast", lambda device, enabled: nullcontext())
    return torch.device("meta")


def test_a_copy_to_the_meta_device_and_a_host_read_are_seen(meta):
    with Calls() as calls:
        torch.ones(1).to(meta)
        with pytest.raises(RuntimeError):
            torch.ones(1, device=meta).item()
    assert calls.count(*HOST)


@pytest.mark.parametrize("name", ["biqrnn_2_5", "iqrnn_2_5"])
def test_between_units_nothing_is_copied_read_or_waited_for(meta, name):
    with meta:
        net, x = create_model(name, block_voxels=2**30), torch.rand(1, 1, 3, 16, 24)
    with torch.no_grad():
        net(x)
        with Calls() as whole:
            net(x)
        net.set_execution(block_voxels=3 * 24 * 4)
        net(x)  # makes the matrices of the upsampling
        with Calls() as blocks:
            net(x)
    assert not whole.count(*HOST, *COPIES)
    assert not blocks.count(*HOST)
    assert whole.count("aten.convolution")["aten.convolution"] == 12


class Live(TorchDispatchMode):
    """The most bytes that tensors made within it hold at once."""

    def __init__(self):
        super().__init__()
        self.held, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.held = {key: held for key, held in self.held.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.held.values()))
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "scale"),
                         [("biqrnn_16_5", 4), ("iqrnn_16_5", 4), ("biqrnn_8_3", 4),
                          ("scaled_biqrnn_16_5", 4), ("lowgrid_32_8", 2), ("lowgrid_32_8", 8),
                          ("vdsr", 4), ("fcnn3d", 4)])
def test_a_network_holds_no_more_than_its_tile_is_sized_for(
        meta, name, scale, dtype, monkeypatch):
    """With small blocks no more than it says; with a GPU's, twice that: the tile has half of it. A
    low-grid network says what more pixels take; what it takes beside is the tiles' workspace."""
    beside = tiling.WORKSPACE if name.startswith("lowgrid") else 0
    for block, share in ((2**12, 1), (None, 2)):
        held, tiles = [], []
        for rows in (384, 768) if beside else (192,):
            with meta:
                net = create_model(name, block_voxels=block).to(dtype)
                x = torch.empty(1, 1, 9, rows, 192, dtype=dtype)
            inputs = net.inputs(x, x[..., ::scale, ::scale])
            tiles.append(int(net.bytes_per_pixel(9, scale, dtype.itemsize) * rows * 192))
            if block is None:
                for module in (blocks, lowgrid):
                    monkeypatch.setattr(module, "rows_per_block",
                                        lambda execution, x, weight, voxels, tile=tiles[-1]: max(
                                            1, blocks.voxels_in(2 * tile, weight) // voxels))
            with torch.no_grad(), Live() as live:
                net(*inputs)
            held.append(live.peak + x.nbytes)
        assert held[-1] - held[0] <= share * (tiles[-1] - tiles[0])
        assert held[0] <= share * tiles[0] + beside


def test_weights_are_laid_out_once_and_again_when_they_change():
    net, x = create_model("biqrnn_2_5", block_voxels=2**30), torch.rand(1, 1, 3, 8, 8)
    with torch.no_grad():
        before = net(x)
        with Calls() as calls:
            net(x)
        assert not calls.count("aten.clone", "aten.flip")
        unit = net.decoder.layers[0].conv.deconv
        for change in (lambda: unit.weight.mul_(2),
                       lambda: net.load_state_dict(create_model("biqrnn_2_5").state_dict())):
            change()
            after = net(x)
            assert not torch.equal(after, before)
            before = after
        assert net.double()(x.double()).dtype == torch.float64


def is_last(x):
    return x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last_3d)


def test_every_tensor_of_a_training_step_is_channels_last():
    net, x = create_model("biqrnn_4_5"), torch.rand(2, 1, 3, 16, 16)
    net(x)  # makes the matrices of the upsampling
    with Calls() as calls:
        net(x).square().mean().backward()
    seen = Counter()
    for name, given, out in calls.made:
        name = name.partition(".")[2]
        if name in ("convolution", "pool"):
            seen[name] += 1
            assert all(is_last(t) for t in [*given, *out] if t.dim() == 5 and t.shape[1] > 1), name
            # one channel too
            assert is_last(given[0]) and (name != "convolution" or is_last(given[1]))
        if name in ("convolution_backward", "pool_backward"):
            seen[name] += 1
            assert all(is_last(t) for t in given if t.dim() == 5 and t.shape[1] > 1), name
            assert is_last(out[0]) or out[0].shape[-1] == 3, name
        if name == "clone":
            assert given[0].shape[-2:] in ((3, 3), (3, 1)), "only weights are copied"
    assert seen == {"convolution": 12, "convolution_backward": 12, "pool": 12, "pool_backward": 12}


@pytest.mark.parametrize("name", ["biqrnn_2_5", "lowgrid_4_2"])
def test_to_recompute_activations_nothing_asks_for_the_state_of_a_generator(monkeypatch, name):
    """A GPU's state comes to the host, so every unit would wait for the GPU."""
    asked = []
    for module, call in ((torch, "get_rng_state"), (torch.utils.checkpoint, "get_device_states")):
        real = getattr(module, call)
        monkeypatch.setattr(module, call,
                            lambda *given, real=real: asked.append(real) or real(*given))
    net, x = create_model(name, checkpoint=True), torch.rand(1, 1, 3, 16, 16)
    with Calls() as calls:
        out = net(*net.inputs(x, x[..., ::2, ::2]))
        before = len(calls.made)
        out.sum().backward()
    assert Counter(name for name, *_ in calls.made[before:])[
        "aten.convolution"], "no unit is computed again"
    assert not asked


def test_adam_on_a_gpu_counts_its_steps_there_also_after_a_run_on_a_processor(
        tmp_path, monkeypatch):
    """A fused or captured step reads nothing from the host. Here the meta device is the GPU."""
    config, net = TrainingConfig(arch="biqrnn_2_1", recipe="fast"), create_model("biqrnn_2_1")
    state = State(config, net, torch.device("cpu"), total=4)
    train_step(state, net, torch.rand(2, 3, 8, 8))
    state.save(tmp_path / "r.pth")
    on_gpu = State(config, create_model("biqrnn_2_1"), torch.device("meta"), total=4)
    for group in on_gpu.optimizer.param_groups:
        group |= {"fused": True, "capturable": True}
    monkeypatch.setattr("utility.training.state.load_checkpoint",
                        lambda path, device: load_checkpoint(path))
    on_gpu.resume(tmp_path / "r.pth")
    assert {kept["step"].device.type for kept in on_gpu.optimizer.state.values()} == {"meta"}
    assert all(group["fused"] and group["capturable"] for group in on_gpu.optimizer.param_groups)


def test_the_roofline_counts_what_torch_counts():
    net, x = create_model("biqrnn_2_5"), torch.rand(2, 1, 3, 16, 24)
    for training in (False, True):
        with FlopCounterMode(display=False) as counter:
            out = net(x)
            if training:
                out.sum().backward()
        found = sum(flop
                    for name, flop in counter.get_flop_counts()["Global"].items()
                    if "convolution" in str(name))
        assert roofline("biqrnn_2_5", x.shape, 4, training)["GFLOP"] * 1e9 == pytest.approx(found)
    # a voxel of biqrnn_2_1: 1 + 2 x 6 + 2, twice 2 + 2 x 6 + 2, and 2 + 2 x 3 + 1 values
    assert roofline("biqrnn_2_1", x.shape, 4, training=False)["moved"] == 4 * 56 * x.numel()


def test_a_torch_without_its_undocumented_calls_will_do(monkeypatch):
    net, x = create_model("biqrnn_2_5"), torch.rand(1, 1, 3, 8, 8)
    with torch.no_grad():
        before = net(x)
        monkeypatch.setattr(blocks, "_ONEDNN", None)
        torch.testing.assert_close(net(x), before)
    with stopped_at_the_end(SimpleNamespace()):  # a loader that has no _iterator
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure for ten minutes")
def test_without_a_gpu_the_script_for_one_says_so_and_writes_nothing(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks/gpu.sh"
    done = subprocess.run(["sh", script, tmp_path / "report"],
                          env={**os.environ, "PYTHON": sys.executable}, capture_output=True,
                          text=True, timeout=HUNG)
    assert (done.returncode == 0
            and "finds no GPU on this machine, so nothing was measured" in done.stdout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("form", "parts"), [
    (["quick"], "machine tests gradients benchmark"),
    ([], "machine tests gradients benchmark database epoch overlap processes_1 processes_2")])
def test_the_script_for_a_gpu_runs_its_parts_and_packs_what_they_say(tmp_path, form, parts):
    """With a Python that says it has two GPUs, and fails at the benchmark."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\ncase $* in *'import torch;'*) echo 2.6.0 2;; *--repeats*) exit "
                      "3;; *) echo did $*;; esac\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["sh", Path(__file__).parents[1] / "benchmarks/gpu.sh", *form, tmp_path / "report"],
        env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True, timeout=HUNG)
    said = (tmp_path / "report/summary.txt").read_text().splitlines()
    assert done.returncode == 0 and [line.partition(":")[0] for line in said] == parts.split()
    assert said[3].startswith("benchmark: exit 3") and said[1].startswith("tests: exit 0")
    with tarfile.open(tmp_path / "report.tar.gz") as packed:
        assert {f"report/{name}.txt" for name in ["summary", *parts.split()]} <= set(
            packed.getnames())
