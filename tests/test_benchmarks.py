"""The benchmark script: its statistics, its floor, and that it runs, measures, and says what it could not measure."""
from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import measure, memory, report, run, sections
from benchmarks.measure import (
    Timing,
    Variant,
    compare,
    inference,
    interleave,
    random_cubes,
    ratio,
    summarise,
    training_step,
    variants,
    without_pooling,
)
from models import Network, blocks, create_model, units
from utility.checkpoints import save_checkpoint
from utility.errors import UserError

CPU = torch.device("cpu")
ARCH = "biqrnn_4_2"


@pytest.fixture(scope="module")
def setup() -> sections.Setup:
    sizes = sections.Sizes(((3, 8, 8), (3, 12, 12)), 1, (2, 3, 16, 16), (1, 6, 4, 8, 8), (2, 4), 8, (8, 12), 3, (2, 3, 16, 16),
                           (3, 40, 40), (32,), (1, 3, 12, 12), 64)
    return sections.Setup(Timing(CPU, repeats=2), sizes, threads=1, arch=ARCH)


@pytest.fixture(scope="module")
def found(setup) -> dict:
    """A run of every section that needs no process of its own."""
    names = [name for name in sections.SECTIONS if name not in ("memory", "data")]
    return run.run(setup, names, quick=False)


def test_summary_is_median_and_quartiles():
    assert summarise([4.0, 1.0, 2.0, 3.0, 10.0]) == {"median": 3.0, "low": 2.0, "high": 4.0, "spread": 2 / 3, "n": 5}
    assert summarise([2.0])["spread"] == 0


def test_ratio_is_of_the_medians_and_its_range_of_the_rounds():
    found = ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
    assert found == {"ratio": 2.0, "low": 2.0, "high": 2.0}
    assert ratio([1.0, 1.0], [2.0, 4.0])["ratio"] == pytest.approx(1 / 3)


def test_rounds_are_interleaved_and_turn_round():
    order: list[str] = []
    long = 0.021  # one call makes a sample

    def call(name: str):
        return lambda: (order.append(name), time.sleep(long))

    samples, failed = interleave({"a": call("a"), "b": call("b")}, Timing(CPU, repeats=3), warm_up=1)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert not failed and {len(s) for s in samples.values()} == {3}
    assert min(samples["a"]) >= long


def test_short_calls_are_timed_several_in_a_row():
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.002)

    samples, _ = interleave({"short": call}, Timing(CPU, repeats=2))
    assert calls > 5
    assert 0.002 <= min(samples["short"]) < 0.02


def test_a_budget_ends_the_rounds_but_not_before_the_least():
    samples, _ = interleave({"a": lambda: time.sleep(0.03)}, Timing(CPU, repeats=50, budget=0.01, least=3), warm_up=0)
    assert len(samples["a"]) == 3


def test_a_variant_that_cannot_run_costs_the_others_nothing():
    def broken() -> None:
        raise RuntimeError("out of memory\nand more")

    rows = compare({"released": lambda: None, "fast": broken}, Timing(CPU, repeats=2))
    assert rows[0]["speedup"]["ratio"] == 1
    assert rows[1] == {"variant": "fast", "failed": "RuntimeError: out of memory"}
    assert "out of memory" in report.section_table("inference", {"rows": rows})


def test_the_floor_leaves_the_network_as_it_was():
    before = units.pool, blocks.pool_into
    with pytest.raises(ZeroDivisionError), without_pooling():
        assert units.pool is not before[0] and blocks.pool_into is not before[1]
        raise ZeroDivisionError
    assert (units.pool, blocks.pool_into) == before


def test_the_floor_is_the_convolutions_and_the_skips():
    net = create_model("biqrnn_4_1").requires_grad_(True)
    x = random_cubes(1, 1, 3, 8, 8, device=CPU)
    with without_pooling() as tally:
        with_gradients = net(x)
        with torch.no_grad():
            without = net(x)
        with_gradients.square().sum().backward()
    torch.testing.assert_close(with_gradients.detach(), without)
    # By hand: each unit is the first channels of its convolution.
    parts = net.units()
    h = skip = torch.nn.functional.conv3d(x, parts[0].parameters_of_conv[0], padding=1)[:, :4]
    h = torch.nn.functional.conv3d(h, parts[1].parameters_of_conv[0], padding=1)[:, :4]
    h = torch.nn.functional.conv3d(h, parts[2].parameters_of_conv[0], padding=1)[:, :4] + skip
    h = torch.nn.functional.conv3d(h, *parts[3].parameters_of_conv, padding=1)[:, :1] + x
    torch.testing.assert_close(without, h.detach())
    assert tally["writing"] > 0
    # The convolutions' backward sees a gradient in every gate.
    assert all(p.grad.flatten(1).norm(dim=1).min() > 0 for p in net.parameters() if p.dim() > 1)


def test_variants_have_the_same_weights_and_the_released_one_is_the_released_way():
    fast, released = (way.network(ARCH) for way in (Variant("fast"), Variant("released", released=True)))
    assert all(torch.equal(a, b) for a, b in zip(fast.parameters(), released.parameters(), strict=True))
    assert (released.execution.pooling, released.execution.block_voxels) == ("loop", 0)
    assert not released.execution.channels_last and fast.execution.channels_last
    x = random_cubes(1, 1, 3, 8, 8, device=CPU)
    torch.testing.assert_close(*(inference(way, ARCH, CPU)(x) for way in (Variant("fast"), Variant("r", released=True))))


def test_applying_a_variant_restores_the_flags():
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    with Variant("x", tf32=not flags[0], amp="bf16").applied(CPU, search=not flags[2]):
        assert torch.backends.cuda.matmul.allow_tf32 != flags[0]
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")
    assert flags == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)


def test_a_step_trains():
    gt = random_cubes(2, 3, 16, 16, device=CPU)
    torch.manual_seed(0)
    step = training_step(Variant("fast"), ARCH, CPU)
    net = next(cell.cell_contents for cell in step.__closure__ if isinstance(cell.cell_contents, Network))
    before = [p.detach().clone() for p in net.parameters()]
    step(gt)
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_peak_memory_grows_with_what_the_work_allocates():
    before = memory.reset_peak()
    block = torch.ones(50_000_000 // 4)
    del block
    peak = memory.peak_resident() - before
    if peak:  # systems that cannot reset the mark tell the highest since the process began
        assert 45e6 < peak < 120e6


def test_memory_is_measured_in_a_process_of_its_own():
    found = memory.peak_memory("inference", Variant("fast"), (3, 64, 64), ARCH, CPU, threads=1)
    assert 0 < found["peak"] < found["process"]


def test_a_process_that_fails_to_measure_is_an_error(monkeypatch):
    monkeypatch.setattr(memory.sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="process that measured memory failed"):
        memory.peak_memory("inference", Variant("fast"), (3, 8, 8), ARCH, CPU, threads=1)


def test_a_run_measures_every_section_on_a_cpu(found):
    assert not found["errors"]
    assert set(found["results"]) == set(sections.SECTIONS) - {"memory", "data", *sections.GPU_ONLY}
    rows = found["results"]["inference"]["rows"]
    assert {"released", "fast", "floor"} <= {row["variant"] for row in rows if row["size"] == "3x8x8"}
    fast = next(row for row in rows if row["variant"] == "fast")
    assert fast["speedup"]["ratio"] > 0 and fast["over_floor"]["ratio"] > 0 and fast["seconds"]["n"] == 2
    exact = {row["variant"]: row for row in found["results"]["accuracy"]["rows"]}
    assert exact["fast"]["output"] < 1e-5 and exact["fast"]["gradients"] < 1e-5
    assert all(row["gb_per_s"] > 0 for row in found["results"]["pooling"]["rows"])
    assert {row["work"] for row in found["results"]["profile"]["rows"]} == {"inference", "training step"}


def test_what_is_saved_is_json_and_names_the_machine(found):
    saved = json.loads(json.dumps(found, allow_nan=False))
    assert {"cpu", "cores", "threads", "memory", "gpu", "torch", "commit"} <= set(saved["machine"])
    assert saved["settings"]["arch"] == ARCH


def test_without_a_gpu_its_rows_say_so(found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = report.judge({}, "cpu", {"cuda": "no GPU here"} | dict.fromkeys(sections.SECTIONS, "left out"), judged=True)
    assert {row["verdict"] for row in rows if row["device"] == "GPU"} == {"not measured: no GPU here"}
    assert {row["device"] for row in rows} == {"CPU", "GPU"} == {row["device"] for row in found["targets"]}
    left_out = [row for row in found["targets"] if row["device"] == "CPU" and "memory" in row["what"]]
    assert left_out and all(row["verdict"] == "not measured: left out by --only" for row in left_out)
    if not torch.cuda.is_available():
        assert "no GPU here" in report.verdict_table(rows)


def test_verdicts_follow_the_measurement():
    def results(speedup: float) -> dict:
        return {"inference": {"rows": [{"variant": "fast", "speedup": {"ratio": speedup}, "over_floor": {"ratio": 1.3}}]}}

    why = {"cuda": "no GPU here"}
    verdicts = {}
    for speedup in (1.59, 1.61):
        rows = report.judge(results(speedup), "cpu", why, judged=True)
        verdicts[speedup] = next(row["verdict"] for row in rows if row["what"].startswith("inference 31x256x256"))
    assert verdicts == {1.59: "short", 1.61: "ok"}
    floor = next(row for row in rows if row["what"].endswith("time over the floor"))
    assert (floor["measured"], floor["verdict"]) == (1.3, "short")
    quick = report.judge(results(9.0), "cpu", why, judged=False)
    assert next(row["verdict"] for row in quick if row["measured"]) == "not judged: --quick"


def test_a_gpu_is_measured_in_every_precision_against_its_own(monkeypatch):
    monkeypatch.setattr(measure, "bf16_is_native", lambda device: True)
    ways = variants(torch.device("cuda"), training_step=True)
    assert len({way.name for way in ways}) == len(ways) and ways[0].name == "released"
    rows = compare({way.name: lambda: None for way in ways}, Timing(CPU, repeats=2), ways)
    for precision in ("", " TF32", " bf16"):
        fast = next(row for row in rows if row["variant"] == f"fast{precision}")
        assert {"speedup", "same_precision", "over_floor"} <= set(fast)
    targets = report.judge({"inference": {"rows": rows}, "training": {"rows": rows}}, "cuda", {"cpu": "run with --device cpu"},
                           judged=True)
    network = [row for row in targets if row["device"] == "GPU" and row["what"].startswith(("inference", "training step"))]
    assert len(network) == 12 and all(row["verdict"] in ("ok", "short") for row in network)
    assert targets[0]["device"] == "GPU"


def test_one_figure_is_drawn(found, tmp_path):
    fig = report.draw(tmp_path / "figure.png", found["machine"], found["results"])
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert found["machine"]["cpu"] in fig.get_suptitle() and len(fig.axes) == 3
    assert not list(tmp_path.glob("*.partial*"))


def test_loader_and_database_are_measured(setup):
    result = sections.time_data(setup, {})
    assert result["database"]["patches"] == 1 and result["database"]["process"] > 1e7


def test_the_change_of_psnr_of_a_trained_network_is_measured(setup, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    np.save(images / "scene.npy", np.random.default_rng(0).random((3, 16, 16), dtype=np.float32))
    checkpoint = tmp_path / "net.pth"
    save_checkpoint(checkpoint, {"net": create_model(ARCH).state_dict(), "arch": ARCH, "scale": 2, "degradation": "bicubic"})
    result = sections.measure_accuracy(replace(setup, checkpoint=str(checkpoint), images=str(images)), {})
    changes = {row["variant"]: row["change"] for row in result["psnr"]["rows"]}
    assert changes["released"] == 0 and abs(changes["fast"]) < 1e-3
    rows = report.judge({"accuracy": result}, "cpu", {"cuda": "no GPU here"}, judged=True)
    assert next(row["verdict"] for row in rows if row["what"].endswith("network, fp32 (dB)")) == "ok"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="finds no GPU"):
        run.main(["--device", "cuda"])


def test_the_command_saves_what_it_measured(tmp_path, monkeypatch, capsys):
    tiny = sections.Sizes(accuracy=(1, 3, 8, 8))
    monkeypatch.setattr(run.Sizes, "of", classmethod(lambda cls, device, quick: tiny))
    assert run.main(["--quick", "--device", "cpu", "--only", "accuracy", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results_cpu_quick_partial.json").read_text())
    assert found["settings"]["quick"] and list(found["results"]) == ["accuracy"]
    assert "Promised and measured" in capsys.readouterr().out


def test_a_value_that_is_not_finite_is_saved_and_never_ok(setup, monkeypatch):
    rows = [{"variant": "fast", "precision": "fp32", "output": float("nan"), "gradients": float("inf")}]
    monkeypatch.setitem(sections.SECTIONS, "accuracy", lambda setup, done: {"rows": rows})
    found = run.run(setup, ["accuracy"])
    assert json.loads(json.dumps(found, allow_nan=False))["results"]["accuracy"]["rows"][0]["output"] == "nan"
    errors = [row for row in found["targets"] if row["device"] == "CPU" and row["what"].startswith("relative error")]
    assert [row["verdict"] for row in errors[:2]] == ["short", "short"]


def test_a_section_that_fails_is_named_and_the_rest_is_measured(setup, monkeypatch, capsys):
    def broken(setup, done):
        raise ValueError("no such thing")

    monkeypatch.setitem(sections.SECTIONS, "growth", broken)
    found = run.run(setup, ["growth", "degradation"])
    assert found["errors"] == {"growth": "ValueError: no such thing"} and "degradation" in found["results"]
