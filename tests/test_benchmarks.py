"""The benchmark: its statistics, its floor, and that a quick run measures every section and says
what it could not."""
from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import file_to_file, measure, run, steps
from benchmarks.measure import (
    Setup,
    Variant,
    as_rows,
    compare,
    compare_variants,
    in_fresh_process,
    random_cubes,
    variants,
)
from benchmarks.sections import SECTIONS
from models import create_model
from utility.checkpoints import save_checkpoint
from utility.system.errors import UserError

CPU, ROOT = torch.device("cpu"), Path(__file__).resolve().parent.parent


def test_the_statistics_are_those_written_out():
    rows = as_rows({"a": [4.0, 1.0, 2.0, 3.0, 10.0], "b": [2.0, 0.5, 4.0, 1.5, 5.0]}, "a", "name",
                   size="1x2")
    assert rows[0] == {"size": "1x2", "name": "a", "time": 3.0, "spread": 2 / 3, "n": 5,
                       "faster": 1.0, "quartiles": [1.0, 1.0]}
    assert (rows[1]["faster"], rows[1]["quartiles"]) == (1.5, [2.0, 2.0])
    assert set(as_rows({"b": [1.0]}, "a", "name")[0]) == {"name", "time", "spread", "n"}


def test_calls_take_turns_that_turn_round_and_end_with_the_budget(monkeypatch):
    monkeypatch.setattr(measure, "SHORTEST", 1e-12)  # a sample is one call
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    assert [row["n"] for row in compare(Setup(CPU, repeats=3), calls)] == [3, 3]
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert compare(Setup(CPU, repeats=50, budget=0.0), calls)[0]["n"] == 2


def test_a_variant_that_cannot_run_costs_the_others_nothing():
    def broken() -> None:
        raise RuntimeError("out of memory\nand more")

    setup = Setup(CPU, repeats=2)
    row, = compare(setup, {"released": lambda: None, "fast": broken}, "released", size="1x2")
    assert row["variant"] == "released" and row["faster"] == 1
    assert setup.failed == ["fast: RuntimeError: out of memory"]


def test_every_precision_of_a_gpu_is_compared_with_its_own_baseline_and_floor(monkeypatch):
    monkeypatch.setattr(measure, "computes_bf16", lambda device: True)
    monkeypatch.setitem(measure.WORKS, "training step", lambda way, arch, device: lambda x: None)
    ways = variants(torch.device("cuda"), training=True)
    assert (len({way.name for way in ways}) == len(ways)
            and [way.name for way in ways[:2]] == ["released", "fast"])
    rows = compare_variants(Setup(CPU, repeats=2), "training step", ways, (1, 3, 8, 8))
    assert all({"faster", "same precision", "over floor"} <= set(row) for row in rows)


def test_the_floor_is_the_convolutions_and_the_skips_and_leaves_the_network_as_it_was():
    net = create_model("biqrnn_4_1").requires_grad_(True)
    x = random_cubes(1, 1, 3, 8, 8, device=CPU)
    with torch.no_grad():
        before = net(x)
    with measure.without_pooling():
        with_gradients = net(x)
        with torch.no_grad():
            without = net(x)
        with_gradients.square().sum().backward()
    torch.testing.assert_close(with_gradients.detach(), without)
    # By hand: each unit is the first channels of its convolution.
    conv = torch.nn.functional.conv3d
    first, second, third, last = (unit.parameters_of_conv for unit in net.units())
    h = skip = conv(x, *first, padding=1)[:, :4]
    h = conv(conv(h, *second, padding=1)[:, :4], *third, padding=1)[:, :4] + skip
    torch.testing.assert_close(without, (conv(h, *last, padding=1)[:, :1] + x).detach())
    # The convolutions' backward sees a gradient in every gate.
    assert all(p.grad.flatten(1).norm(dim=1).min() > 0 for p in net.parameters() if p.dim() > 1)
    with torch.no_grad():
        assert torch.equal(net(x), before)


def test_variants_have_the_same_weights_and_leave_the_flags_of_torch_alone():
    x = random_cubes(1, 1, 3, 8, 8, device=CPU)
    ways = Variant("fast"), Variant("released", released=True), Variant("x", tf32=True)
    flags = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32,
             torch.backends.cudnn.benchmark)
    fast, released, _ = (measure.inference(way, "biqrnn_4_2", CPU)(x) for way in ways)
    torch.testing.assert_close(fast, released)
    assert ways[1].network("biqrnn_4_2").execution.pooling == "loop"
    assert (flags
            == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32,
                torch.backends.cudnn.benchmark))


def test_a_process_that_fails_to_measure_is_an_error():
    with pytest.raises(subprocess.CalledProcessError):
        in_fresh_process(ROOT, "raise ValueError('no')")
    assert in_fresh_process(ROOT, "print(json.dumps(task))", a=[1, 2]) == {"a": [1, 2]}


def test_memory_is_measured_in_a_process_of_its_own():
    found = in_fresh_process(ROOT, measure.PEAK, work="inference", variant={"name": "fast"},
                             shape=(1, 1, 3, 64, 64), arch="biqrnn_4_2", device="cpu", threads=1)
    assert 0 < found["peak"] < found["process"]


def test_a_quick_run_measures_every_section_and_saves_rows_machine_and_figure(tmp_path, capsys):
    np.save(tmp_path / "scene.npy", np.random.default_rng(0).random((3, 16, 16), dtype=np.float32))
    save_checkpoint(tmp_path / "net.pth",
                    {"net": create_model("biqrnn_4_2").state_dict(), "arch": "biqrnn_4_2",
                     "scale": 2, "degradation": "bicubic"})
    # which start many processes
    names = [name for name in SECTIONS if name not in ("memory", "processes")]
    assert run.main(["--quick", "--device", "cpu", "--repeats", "1", "--out", str(tmp_path),
                     "--images", str(tmp_path / "scene.npy"), "--checkpoint",
                     str(tmp_path / "net.pth"), "--only", *names]) == 0
    found = json.loads((tmp_path / "results_cpu_quick_partial.json").read_text())
    assert set(found["results"]) == set(names) - {"waiting"} and not found["errors"]
    assert {"cpu", "cores", "threads", "memory", "torch", "commit", "baseline"} <= set(
        found["machine"])
    printed = capsys.readouterr().out
    assert found["machine"]["cpu"] in printed and "released" in found["machine"]["baseline"]
    for name, rows in found["results"].items():
        assert SECTIONS[name][0] in printed
        assert all(row["time"] > 0 for row in rows if "time" in row)
    rows = {name: {row["variant"]: row for row in found["results"][name]}
            for name in ("training", "accuracy", "psnr")}
    assert {"faster", "quartiles", "same precision", "over floor"} <= set(rows["training"]["fast"])
    assert (
        rows["accuracy"]["fast"]["output"] < 1e-5 and rows["accuracy"]["fast"]["gradients"] < 1e-5)
    assert abs(rows["psnr"]["fast"]["change"]) < 1e-3
    assert (tmp_path / "benchmark_cpu_quick_partial.png").read_bytes().startswith(b"\x89PNG")


def test_a_process_of_several_times_its_steps(capsys):
    steps.main("biqrnn_1_1", 2, 3, 8, 8)
    assert len(seconds := json.loads(capsys.readouterr().out)) == 5 and min(seconds) > 0


def test_a_section_that_fails_is_named_and_the_rest_is_measured(tmp_path, monkeypatch, capsys):
    def broken(setup):
        raise ValueError("no such thing")

    monkeypatch.setitem(SECTIONS, "growth", ("Growth", broken))
    assert run.main(["--quick", "--device", "cpu", "--only", "growth", "degradation", "--out",
                     str(tmp_path)]) == 1
    found = json.loads((tmp_path / "results_cpu_quick_partial.json").read_text())
    assert (found["errors"] == {"growth": ["all of it: ValueError: no such thing"]}
            and list(found["results"]) == ["degradation"])
    assert "failed: growth: all of it: ValueError: no such thing" in capsys.readouterr().err


def test_two_checkouts_are_measured_in_turns_each_by_its_own_code(tmp_path, monkeypatch, capsys):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/measure.py").touch()
    asked = []
    monkeypatch.setattr(measure, "in_fresh_process",
                        lambda root, code, **task: asked.append((root, code, task)) or len(asked))
    assert run.main(["--quick", "--device", "cpu", "--repeats", "2", "--against", str(tmp_path),
                     "--out", str(tmp_path), "--only", "against"]) == 0
    assert [root for root, *_ in asked] == 2 * [tmp_path, ROOT, ROOT, tmp_path]
    rows = json.loads((tmp_path / "results_cpu_quick_partial_against.json").read_text())["results"][
        "against"]
    assert ([(row["work"], row["time"]) for row in rows] == [("inference", 2.5)] * 2
            + [("training step", 6.5)] * 2)
    monkeypatch.undo()
    _, code, task = asked[1]
    exec(code, {"task": task})
    assert float(capsys.readouterr().out.split()[-1]) > 0


def test_commands_are_compared_from_file_to_file_by_the_processor_s_time_and_the_peak(
        tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/measure.py").touch()
    ran, real = [], file_to_file.run_once

    def once(root, words, threads):
        ran.append((root, words[0]))
        assert all(Path(word).exists()
                   for word in words if word.endswith((".tif", ".npy")) and "out" not in word)
        return {"time": 9.0, "processor": 8.0 if root == tmp_path else 2.0,
                "process": 3e9 if root == tmp_path else 1e9}

    monkeypatch.setattr(file_to_file, "run_once", once)
    assert run.main(["--quick", "--device", "cpu", "--repeats", "1", "--against", str(tmp_path),
                     "--out", str(tmp_path), "--only", "files"]) == 0
    rows = json.loads((tmp_path / "results_cpu_quick_partial_against.json").read_text())["results"][
        "files"]
    assert len(ran) == len(rows) == 2 * len(file_to_file.COMMANDS)
    assert (rows[1]["faster"], rows[1]["of theirs"]) == (4.0, 1e9 / 3e9) and rows[0]["faster"] == 1
    used = real(ROOT, file_to_file.COMMANDS["a refused option"].split(), 1)
    assert used["time"] > 0 and used["processor"] > 0 and used["process"] > 1e6
    with pytest.raises(RuntimeError, match=r"ended with 2: error: .*--input"):
        real(ROOT, ["hsi_test.py", "--input", "x.tif"], 1)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UserError, match=r"--against: .* does not exist"):
        run.main(["--against", "/nowhere"])
    with pytest.raises(UserError, match="--repeats is 0"):
        run.main(["--repeats", "0"])
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="finds no GPU"):
            run.main(["--device", "cuda"])
