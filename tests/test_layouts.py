"""The memory format of a network is the one in which its units were measured faster, and changes no result."""
import json
from types import SimpleNamespace

import pytest
import torch

from models import create_model
from models.layers.memory_format import choose_layout
from models.layers.pooling.cpu import cache_folder, library
from tests.test_models import filled
from utility.superres import tiling
from utility.training import loop as training
from utility.training.configuration import TrainingConfig
from utility.training.state import State


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    library()  # from the cache that everybody shares
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Clock:
    """Says of the works, which come as contiguous and channels-last in turns, what it was told; runs each once."""

    def __init__(self, contiguous, last):
        self.seconds, self.count = (contiguous, last), 0

    def __call__(self, work):
        work()
        self.count += 1
        return self.seconds[(self.count - 1) % 2]


def inputs(net, bands=3):
    x = torch.rand(1, 1, bands, 16, 16, generator=torch.Generator().manual_seed(0))
    return net.inputs(x, x[..., ::2, ::2])


@pytest.mark.parametrize("name", ["biqrnn_2_5", "qrnn_2_4", "lowgrid_4_2", "scaled_biqrnn_2_3"])
@pytest.mark.parametrize("gradients", [False, True])
def test_the_faster_format_is_taken_and_the_output_stays_the_same(name, gradients):
    found = []
    for number, (contiguous, last) in enumerate(((1.0, 2.0), (2.0, 1.0))):
        torch.manual_seed(0)
        net = create_model(name)
        with torch.set_grad_enabled(gradients):
            choose_layout(net, *inputs(net), clock=Clock(contiguous, last), machine=f"GPU {number}")
        assert net.execution.last == (last < contiguous)
        with torch.no_grad():
            found.append(net(*inputs(net)))
    assert torch.allclose(*found, atol=1e-6) and all(p.grad is None for p in net.parameters())


def test_a_unit_is_timed_once_for_a_machine_a_shape_a_type_and_a_direction():
    net, clock = create_model("biqrnn_2_5"), Clock(1.0, 2.0)

    def units_timed(bands=3, machine="H100, torch 2.13", gradients=False, amp=False):
        before = clock.count
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            choose_layout(net, *inputs(net, bands), clock=clock, machine=machine)
        return (clock.count - before) // 2

    # Twelve units: the first two and the last two decoder units at full resolution have other units' shapes.
    first = units_timed()
    assert 6 <= first <= 12 and units_timed() == 0
    assert units_timed(bands=4) == units_timed(machine="A100, torch 2.13") == units_timed(gradients=True) == first
    assert units_timed(amp=True) == first and units_timed(bands=4) == 0
    assert set(json.loads((cache_folder() / "layouts.json").read_text())) == {"H100, torch 2.13", "A100, torch 2.13"}


@pytest.mark.parametrize("damage", ["", "[]", '{"GPU": {"unit": [1]}}', '{"GPU": 3}', "\x00"])
def test_a_damaged_file_of_times_is_measured_anew(damage):
    net, clock = create_model("biqrnn_2_1"), Clock(1.0, 2.0)
    cache_folder().mkdir()
    (cache_folder() / "layouts.json").write_text(damage)
    choose_layout(net, *inputs(net), clock=clock, machine="GPU")
    assert clock.count and not net.execution.last
    count = clock.count
    choose_layout(net, *inputs(net), clock=clock, machine="GPU")
    assert clock.count == count


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "bi3dqrnn").touch()
    net = create_model("biqrnn_2_1")
    choose_layout(net, *inputs(net), clock=Clock(1.0, 2.0), machine="GPU")
    assert not net.execution.last


def test_a_format_that_was_asked_for_and_a_processor_s_are_not_measured():
    for net, clock in ((create_model("biqrnn_2_1", channels_last=True), Clock(1.0, 2.0)), (create_model("biqrnn_2_1"), None),
                       (create_model("vdsr"), Clock(1.0, 2.0))):
        choose_layout(net, *inputs(net), clock=clock)
        assert net.execution.last and not (clock and clock.count)


def test_a_training_and_a_tile_measure_with_their_own_shapes(monkeypatch):
    seen = []
    for module in (tiling, training):
        monkeypatch.setattr(module, "choose_layout", lambda net, *given: seen.append([tuple(x.shape) for x in given]))
    config = TrainingConfig(arch="lowgrid_4_2", recipe="fast", batch=6, accumulate=2, degradation="gaussian", crop=16)
    device = torch.device("cpu")
    state = State(config, filled("lowgrid_4_2"), device)
    training._choose_layout(SimpleNamespace(config=config, sources=[SimpleNamespace(shape=(5, 33, 33))], device=device), state)
    monkeypatch.setattr(tiling, "overlaps", lambda device: True)
    monkeypatch.setattr(tiling, "pinned", lambda x: x)
    monkeypatch.setattr(tiling, "on_its_way", lambda x: x.numpy)
    cube = torch.rand(3, 20, 20).numpy()
    tiling.super_resolve_cube(state.net, cube, cube[:, ::4, ::4])
    assert seen == [[(3, 1, 5, 16, 16), (3, 1, 5, 4, 4), (3, 2, 5)], [(1, 1, 3, 128, 128), (1, 1, 3, 32, 32), (1, 2, 3)]]
