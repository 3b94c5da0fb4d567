"""The benchmark: its statistics, its floor, and a quick run of every section."""
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
from benchmarks.sections import QUICK_SIZES, SECTIONS
from models import create_model
from utility.checkpoints import save_checkpoint
from utility.system.errors import UserError

CPU, ROOT = torch.device("cpu"), Path(__file__).resolve().parent.parent


def test_the_statistics_are_those_written_out():
    rows = as_rows({"a": [4.0, 1.0, 2.0, 3.0, 10.0], "b": [2.0, 0.5, 4.0, 1.5, 5.0]}, "a", "name",
                   size="1x2")
    assert rows[0] == {"size": "1x2", "name": "a", "time": 3.0, "spread": 2 / 3, "n": 5,
                       "faster": 1.0, "quartiles": [1.0, 1.0]}
    assert (rows[1]["faster"], rows[1]["quartiles"]) == (2.0, [2.0, 2.0])
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


# A checkout as `measure.SERVE` sees it: its times follow a machine that is slower in odd rounds.
STUB = """
from pathlib import Path
Variant = str
inference = training_step = lambda way, arch, device: lambda x: None
random_cubes = lambda *shape, device: shape
def time_call(call, device):
    log = Path("../log")
    log.write_text(log.read_text() + SPEED[0])
    return float(SPEED[1:]) * (1 + (len(log.read_text()) - 1) // 2 % 2)
"""


def test_two_checkouts_are_measured_call_by_call_each_by_its_own_code(tmp_path):
    for name, speed in (("theirs", "a1.5"), ("ours", "b1")):
        (tmp_path / name / "benchmarks").mkdir(parents=True)
        (tmp_path / name / "benchmarks/measure.py").write_text(
            STUB.replace("Variant =", f"SPEED = {speed!r}\nVariant ="))
        (tmp_path / name / "torch.py").write_text("set_num_threads = device = str")
    (tmp_path / "log").touch()
    rows = measure.compare_checkouts(
        Setup(CPU, 2, budget=0.0, sizes=QUICK_SIZES), tmp_path / "theirs", tmp_path / "ours")
    assert (tmp_path / "log").read_text() == 2 * (5 * "abba")[:18]
    found = [[row[key] for key in ("work", "checkout", "n", "faster", "quartiles")] for row in rows]
    expected = [["old", 9, 1.0, [1.0, 1.0]], ["new", 9, 1.5, [1.5, 1.5]]]
    assert found == [[work, *row] for work in ("inference", "training step") for row in expected]
    (tmp_path / "ours/torch.py").write_text("raise ValueError('no')")
    with pytest.raises(RuntimeError, match=r"measured in .*ours ended with 1"):
        measure.compare_checkouts(
            Setup(CPU, 1, sizes=QUICK_SIZES), tmp_path / "theirs", tmp_path / "ours")


def test_this_checkout_can_be_compared_and_must_be_as_fast_as_the_other(tmp_path):
    found = against(ROOT, "--only", "against", "--repeats", "1", out=tmp_path)
    assert [row["n"] for row in found["results"]["against"]] == [9, 9, 9, 9]
    assert [(row["measure"], row["must"]) for row in found["must"]] == [
        ("biqrnn_16_5, inference, against the other checkout", "0.98 or more"),
        ("a training step, likewise", "0.98 or more")]


@pytest.fixture
def other(tmp_path):
    (tmp_path / "other/benchmarks").mkdir(parents=True)
    (tmp_path / "other/benchmarks/measure.py").touch()
    return tmp_path / "other"


def against(other, *words, out):
    """The results of a quick comparison of this checkout with another one."""
    assert run.main(["--quick", "--device", "cpu", "--against", str(other), "--out", str(out),
                     *words]) == 0
    return json.loads(next(out.glob("results_cpu_quick*_against.json")).read_text())


def test_commands_are_compared_from_file_to_file_by_the_median_time_and_the_least_peak(
        other, tmp_path, monkeypatch):
    ran, real, seconds = [], file_to_file.run_once, iter([8, 2, 1, 6, 9, 3])

    def once(root, words, threads):
        ran.append(root)
        assert all(Path(word).exists()
                   for word in words if word.endswith(".tif") and "out" not in word)
        return {"time": float(next(seconds)), "processor": 8.0 if root == other else 2.0,
                "process": 3e9 if root == other else 1e9}

    monkeypatch.setattr(file_to_file, "run_once", once)
    found = against(other, "--repeats", "3", "--only", "network", out=tmp_path)
    old, new = found["results"]["network"]
    assert ran == [other, ROOT, ROOT, other, other, ROOT] and (old["n"], new["n"]) == (3, 3)
    assert (old["checkout"], old["time"], old["faster"]) == ("old", 8.0, 1.0)
    assert (new["checkout"], new["time"], new["faster"]) == ("new", 2.0, 4.0)
    assert (new["processor"], new["of theirs"]) == (2.0, 1e9 / 3e9)
    used = real(ROOT, file_to_file.REFUSED, 1)
    assert used["time"] > 0 and used["processor"] > 0 and used["process"] > 1e6
    with pytest.raises(RuntimeError, match=r"ended with 2: error: .*--input"):
        real(ROOT, ["hsi_test.py", "--input", "x.tif"], 1)


def test_what_less_memory_costs_is_compared_in_turns_and_must_be_reached(
        other, tmp_path, monkeypatch):
    ran, peaks = [], iter([3e9, 1.5e9, 9e8, 9e8, 1.9e9, 3e9])

    def once(root, words, threads):
        ran.append(words[-1] if "--memory" in words else "-")
        return {"time": {"-": 10.0, "2": 10.6, "1": 12.0}[ran[-1]], "process": next(peaks)}

    monkeypatch.setattr(file_to_file, "run_once", once)
    found = against(other, "--repeats", "2", "--only", "memory", out=tmp_path)
    assert ran == ["-", "2", "1", "1", "2", "-"]
    assert [(row["process"], row["of default"]) for row in found["results"]["memory"]] == [
        (3e9, 1.0), (1.9e9, 1.06), (9e8, 1.2)]
    verdicts = [(row["found"], row["reached"]) for row in found["must"]]
    assert verdicts == [("1.06", "NO"), ("1.9", "yes")]


def test_a_command_gets_no_more_memory_than_it_shall_have(tmp_path):
    (tmp_path / "greedy.py").write_text("import numpy\nnumpy.ones(10**9)")
    with pytest.raises(RuntimeError, match="MemoryError"):
        file_to_file.run_once(tmp_path, ["greedy.py"], 1, room=2 * 10**9)


def test_what_must_be_reached_is_one_table_and_rows_of_earlier_calls_stay_in_it(
        other, tmp_path, monkeypatch, capsys):
    def once(root, words, threads):
        fast = root == ROOT and "backprojection" in words
        return {"time": 2.0 if fast else 5.0, "processor": 1.0, "process": 1e9}

    monkeypatch.setattr(file_to_file, "run_once", once)
    found = against(other, "--only", "network", "--repeats", "1", "--add", out=tmp_path)
    assert [row["reached"] for row in found["must"]] == ["NO", "NO"]
    found = against(other, "--only", "backprojection", "--repeats", "2", "--add", out=tmp_path)
    assert list(found["results"]) == ["network", "backprojection"]
    assert {name: how["repeats"] for name, how in found["measured"].items()} == {
        "network": 1, "backprojection": 2}
    faster = found["must"][2]
    assert (faster["must"], faster["found"], faster["reached"]) == ("2 or more", "2.5", "yes")
    printed = capsys.readouterr().out.partition("Must reach: ")[2]
    assert found["machine"]["title"] in printed and "back-projection, 224 bands" in printed
    found = against(other, "--only", "start", "--repeats", "1", out=tmp_path / "new")
    assert list(found["results"]) == ["start"]


def test_scenes_are_compared_by_the_mean_of_a_test_with_default_options(
        other, tmp_path, monkeypatch):
    (tmp_path / "scene.mat").touch()

    def once(root, words, threads):
        assert words[-1] == str(tmp_path / "scene.mat") and "--degradation" in words
        folder = Path(words[words.index("--out") + 1])
        folder.mkdir()
        mean = {"psnr": 30.0, "sam": 5.0} if root == other else {"psnr": 29.9, "sam": 4.0}
        (folder / "metrics.json").write_text(
            json.dumps({"images": [{}], "mean": {"network": mean}}))
        return {}

    monkeypatch.setattr(file_to_file, "run_once", once)
    found = against(other, "--scenes", str(tmp_path / "scene.mat"), "--only", "scenes",
                    out=tmp_path)
    assert found["results"]["scenes"][1]["change"] == pytest.approx(-0.1)
    assert [row["reached"] for row in found["must"]] == ["NO", "yes"]


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UserError, match=r"--against: .* does not exist"):
        run.main(["--against", "/nowhere"])
    with pytest.raises(UserError, match="--repeats is 0"):
        run.main(["--repeats", "0"])
    with pytest.raises(UserError, match="--scenes: nowhere"):
        run.main(["--scenes", "nowhere.mat"])
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="finds no GPU"):
            run.main(["--device", "cuda"])
