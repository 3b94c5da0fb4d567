"""Host and GPU at the same time, shown without a GPU: what is begun before what is finished."""
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models import create_model
from models.layers import row_blocks as blocks
from tests.test_tiling import network, scene
from utility.degradation import downsample
from utility.superres import overlap, tiling
from utility.superres.tiling import Consistency, auto_tile, super_resolve
from utility.system.errors import UserError
from utility.system.memory import out_of_memory
from utility.training.loader import DeviceBatches

SHAPE = (2, 70, 100)


@pytest.fixture
def events(monkeypatch):
    """A processor that is treated as a GPU. What happens, in order."""
    happened = []

    def on_its_way(x):
        happened.append(("copy", tuple(x.shape)))
        return x.clone().numpy

    for name, stand_in in {"overlaps": lambda device: True, "pinned": lambda x: x,
                           "on_its_way": on_its_way}.items():
        monkeypatch.setattr(tiling, name, stand_in)
    return happened


def test_a_gpu_computes_while_the_next_tile_is_read_and_the_last_one_handed_on(events, monkeypatch):
    net, cube, again = network(), scene(*SHAPE), Consistency(SHAPE, 2, "gaussian")
    expected = tiling.super_resolve_cube(net, cube, tile=36)
    events.clear()
    reading, run, out = [threading.Event() for _ in range(7)], net.in_window, np.empty_like(cube)
    reading[6].set()  # nothing follows the last tile
    count = {"read": 0, "computed": 0}

    def source(top, bottom, left, right):
        reading[count["read"]].set()
        count["read"] += 1
        return cube[:, top:bottom, left:right]

    def in_window(*given):
        assert reading[count["computed"] + 1].wait(30), "the next tile is not being read"
        count["computed"] += 1
        events.append("compute")
        return run(*given)

    def sink(top, left, block):
        events.append("sink")
        out[:, top:top + block.shape[1], left:left + block.shape[2]] = block

    monkeypatch.setattr(net, "in_window", in_window)
    super_resolve(net, source, SHAPE, sink, tile=36, again=again)
    assert np.array_equal(out, expected)
    order = [event for event in events if isinstance(event, str)]
    assert order == ["compute"] * 2 + ["sink", "compute"] * 4 + ["sink"] * 2
    copies = [shape for kind, shape in (event for event in events if not isinstance(event, str))]
    # of each tile the result, and its part of the consistency
    assert len(copies) == 12 and copies[0] == (2, 36, 36)
    assert np.abs(again.result() - downsample(torch.from_numpy(out), 2,
                                              "gaussian").numpy()).max() < 1e-5


def test_a_tile_that_does_not_fit_keeps_the_one_before_it(events, monkeypatch):
    net, cube, out, handlers = network(), scene(*SHAPE), np.zeros(SHAPE, np.float32), []
    expected = tiling.super_resolve_cube(net, cube, tile=0)
    run, calls = net.in_window, []

    def scarce(*given):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("FIND was unable to find an engine to execute this computation")
        return run(*given)

    def sink(top, left, block):
        out[:, top:top + block.shape[1], left:left + block.shape[2]] += block  # every pixel once

    monkeypatch.setattr(net, "in_window", scarce)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: handlers.append(sys.exc_info()[1]))
    super_resolve(net, tiling.window_of(cube), SHAPE, sink, tile=64)
    # a handler's traceback holds tensors
    assert np.abs(out - expected).max() < 1e-4 and handlers == [None]


def test_an_error_of_the_reading_thread_is_the_caller_s(events):
    def source(*window):
        raise UserError("the disk is gone")

    with pytest.raises(UserError, match="the disk is gone"):
        super_resolve(network(), source, SHAPE, lambda *_: None, tile=36)


def test_a_processor_starts_no_thread():
    with overlap.Ahead(lambda place: threading.current_thread(),
                       thread=overlap.overlaps(torch.device("cpu"))) as read:
        assert read(1, 2) is threading.main_thread() and read.pool is None


@pytest.mark.parametrize(("error", "expected"),
                         [(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 "
                                                       "GiB"), True),
                          (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
                          (RuntimeError(
                              "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
                           True),
                          (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling "
                                        "`cublasCreate(handle)`"), True),
                          (RuntimeError(
                              "GET was unable to find an engine to execute this computation"),
                           True), (RuntimeError("CUDA error: out of memory"), True),
                          (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
                          (RuntimeError("CUDA error: an illegal memory access was encountered"),
                           False)])
def test_what_a_gpu_says_when_its_memory_is_full_is_known(error, expected):
    assert out_of_memory(error) == expected


def test_auto_counts_what_torch_holds_free_and_half_precision(monkeypatch):
    for name, value in {"mem_get_info": (3 << 30, 80 << 30), "memory_reserved": 30 << 30,
                        "memory_allocated": 25 << 30}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    real = create_model("biqrnn_16_5")
    net = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda"))]),
                          radius=real.radius, halo=real.halo, bytes_per_pixel=real.bytes_per_pixel)
    assert blocks.free_on_gpu(torch.device("cuda")) == 8 << 30  # not 3: the allocator has 5 to give
    side = {amp: auto_tile(net, (31, 9000, 9000), amp=amp) + 2 * real.halo(1)
            for amp in ("off", "bf16")}
    for amp, value in (("off", 4), ("bf16", 2)):
        each = real.bytes_per_pixel(31, value=value)
        assert side[amp] ** 2 * each <= 4 << 30 < (side[amp] + 32) ** 2 * each
    assert side["bf16"] > 1.2 * side["off"]


def test_a_batch_is_copied_beside_the_step_before_it(monkeypatch):
    happened = []

    class Stream:
        def __init__(self, name="copies"):
            self.name = name

        def __enter__(self):
            happened.append("copies {")

        def __exit__(self, *_):
            happened.append("}")

        def wait_stream(self, other):
            happened.append(f"{self.name} wait for {other.name}")

    class Batch:
        def to(self, device, non_blocking):
            happened.append(f"copy, non_blocking {non_blocking}")
            return self

        def record_stream(self, stream):
            happened.append(f"kept for {stream.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("steps"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "Event",
                        lambda enable_timing: SimpleNamespace(
                            record=lambda stream: None, elapsed_time=lambda end: 1.0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    batches = DeviceBatches([Batch(), Batch()], torch.device("cuda"))
    for _ in batches:
        happened.append("step")
    one = ["copies {", "copy, non_blocking True", "}", "steps wait for copies", "kept for steps",
           "step"]
    assert happened == 2 * one and batches.waited() == 2e-3
