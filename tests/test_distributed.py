"""Several processes train and test as one: the same numbers, one writer, one end."""
from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch._dynamo  # Adam imports it in the first step: here once, not in each fork
from made import make_database
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import hsi_sr
import hsi_test
from models import create_model
from utility.system import devices, distributed, errors
from utility.training import loop as training
from utility.training.loader import DeviceBatches

TINY = ["-a", "biqrnn_1_1", "--recipe", "fast", "--warmup", "2", "--scale", "2", "-b", "4",
        "--no-log", "--no-cuda", "--quiet"]


@pytest.fixture(scope="module")
def databases(tmp_path_factory) -> list[str]:
    """9 patches of 31 bands for training, and 6 of 103: batches of 4 leave 1 and 2."""
    paths = []
    for count, bands in ((9, 31), (6, 103)):
        path = tmp_path_factory.mktemp("data") / f"bands_{bands}.lmdb"
        paths.append(make_database(path, count + 3, (bands, 8, 8), validation=3, seed=bands))
    return paths


class Doubled(DeviceBatches):
    """Batches in double precision."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (batch.double() for batch in super().__iter__())


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """torchrun's part that waits for the processes has signal handlers of its own."""
    before = {number: signal.getsignal(number)
              for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start(count: int, words: Sequence[str], change: Callable[[], object] = lambda: None,
          restarts: int = 0, script: ModuleType = hsi_sr,
          dtype: torch.dtype = torch.float64) -> int:
    """Run a script in `count` processes, as torchrun does; the first failure's exit status, or 0.

    They are forks of this one, which costs no imports. They compute in `dtype`, after `change()`.
    """
    def process() -> None:
        torch.set_num_threads(1)
        torch.set_default_dtype(dtype)
        sys.stderr = open(f"err_{os.environ['RANK']}.txt", "a", buffering=1)  # noqa: SIM115 (for good)
        training.DeviceBatches = Doubled if dtype == torch.float64 else DeviceBatches
        change()
        errors.run_script(lambda: script.main(words))

    settings = LaunchConfig(1, 1, count, start_method="fork", rdzv_backend="c10d",
                            rdzv_endpoint="localhost:0", rdzv_configs={"is_host": True},
                            run_id="test", max_restarts=restarts, monitor_interval=0.05)
    try:
        with keeping_handlers():
            elastic_launch(settings, process)()
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    return 0


def saved(run: str | Path) -> dict:
    return torch.load(Path(run) / "last.pth", weights_only=True)


def numbers(checkpoint: dict) -> np.ndarray:
    """Losses and metrics of every epoch, and the weights."""
    rows = [[value for name, value in row.items() if value is not None]
            for row in checkpoint["history"]]
    return np.concatenate(
        [np.concatenate(rows), *(w.numpy().ravel() for w in checkpoint["net"].values())])


def test_one_two_and_three_processes_give_the_same_losses_metrics_and_weights(databases):
    words = [*TINY, "--data", *databases, "--loss", "band", "--noise", "0.01", "--augment",
             "spectral", "--band-window", "20", "--clip", "1", "-n", "2", "--lr", "1e-2"]
    found = {}
    for count in (1, 2, 3):
        assert start(count,
                     [*words, "--run-dir", f"by_{count}",
                      *(["--accumulate", "2"] if count == 2 else [])]) == 0
        found[count] = saved(f"by_{count}")
        assert found[count]["iteration"] == 10 and found[count]["bands"] == [31, 103]
    for count in (2, 3):
        np.testing.assert_allclose(numbers(found[count]), numbers(found[1]), rtol=1e-9)
    assert {path.name for path in Path("by_3").glob("*.pth")} == {
        "best.pth", "last.pth", "last.prev.pth"}


def at(iteration: int, number: int, action: Callable[[], object]) -> Callable[[], None]:
    """Process `number` does this after a step, in the first start."""
    def change() -> None:
        real = training.train_step

        def train_step(state, *rest):
            real(state, *rest)
            if (state.iteration, distributed.rank(), distributed.restarts()) == (
                    iteration, number, 0):
                action()

        training.train_step = train_step

    return change


def test_two_processes_then_one_then_three_end_as_a_run_that_was_not_interrupted(databases):
    words = [*TINY, "--data", databases[0], "--augment", "spectral", "--noise", "0.01",
             "--iterations", "6"]
    # one process alone is asked to stop
    asked = {"change": at(2, 1, lambda: signal.raise_signal(signal.SIGTERM))}
    assert start(1, [*words, "--run-dir", "whole"]) == 0
    assert start(2, [*words, "--run-dir", "parts"], **asked) == 130
    assert saved("parts")["iteration"] == 2
    again = ["-r", "-rp", "parts/last.pth", "--no-cuda"]
    assert start(1, again, at(5, 0, lambda: signal.raise_signal(signal.SIGINT))) == 130
    assert saved("parts")["iteration"] == 5
    assert start(3, again) == 0
    np.testing.assert_allclose(numbers(saved("parts")), numbers(saved("whole")), rtol=1e-9)


def test_no_thread_of_the_group_outlives_it(tmp_path):
    """One that does may abort Python's end; this one starts without the imports above."""
    (tmp_path / "script.py").write_text(
        "import os, sys, torch\n"
        "from utility.system.distributed import highest, joined\n"
        "child = os.fork()\n"
        "os.environ['RANK'] = '0' if child else '1'\n"
        "with joined():\n"
        "    weight = torch.zeros(1, requires_grad=True)\n"
        "    weight.sum().backward()\n"
        "    torch.optim.Adam([weight]).step()\n"
        "    highest(0)\n"
        "for thread in os.listdir('/proc/self/task'):\n"
        "    print(open(f'/proc/self/task/{thread}/comm').read().strip())\n"
        "sys.exit(child and os.wait()[1])\n")
    with socket.create_server(("localhost", 0)) as free:
        port = str(free.getsockname()[1])
    as_torchrun = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
                   "MASTER_PORT": port, "PYTHONPATH": str(Path(hsi_sr.__file__).parent),
                   "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "script.py"], env=os.environ | as_torchrun,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "python" in done.stdout and "gloo" not in done.stdout


def test_a_killed_process_goes_on_from_the_last_checkpoint_where_torchrun_may_start_again(
        databases):
    words = [*TINY, "--data", databases[0], "--iterations", "6", "--save-minutes", "1e-9"]
    assert start(2, words, at(4, 1, lambda: os.kill(os.getpid(), signal.SIGKILL)), restarts=1) == 0
    run, = Path("runs").iterdir()
    found = saved(run)
    assert found["iteration"] == 6 and [row["iteration"] for row in found["history"]] == [3, 6]
    assert ("goes on" not in Path("err_0.txt").read_text()
            and f"resumed from {run}/last.pth" in (run / "log.txt").read_text())


def test_a_failure_in_one_process_ends_all_and_is_said_once(databases):
    def fail() -> None:
        raise errors.UserError("x.lmdb has no record 00000007; build it again.")

    assert start(2, [*TINY, "--data", databases[0], "--run-dir", "r"], at(2, 1, fail)) == 2
    said = "".join(Path(f"err_{number}.txt").read_text() for number in (0, 1))
    assert said.count("error:") == 1 and "Traceback" not in said
    assert "error: x.lmdb has no record 00000007; build it again. (process 1 of 2, on " in said
    assert not list(Path("r").glob("*.pth"))


@pytest.mark.parametrize("status", [0, 3])
def test_a_script_starts_itself_as_a_process_for_each_gpu_and_ends_as_they_do(monkeypatch, status):
    Path("script.py").write_text("import os, sys\nopen('by_' + os.environ['RANK'], 'w').write(' "
                                 "'.join(sys.argv[1:-1]))\nsys.exit(int(sys.argv[-1]))\n")
    monkeypatch.setattr(devices, "choose_device", lambda **_: None)  # as if there were GPUs
    monkeypatch.setattr(sys, "argv", ["script.py", "--gpu-ids", "0,1", "--seed", str(status)])
    with keeping_handlers():
        assert hsi_sr.main() == status
    if not status:
        assert [Path(f"by_{number}").read_text() for number in (0, 1)] == [
            "--gpu-ids 0,1 --seed"] * 2


@pytest.mark.parametrize("scenes", [3, 1])
def test_two_processes_share_the_scenes_of_a_test_or_the_tiles_of_one_scene(scenes):
    rng = np.random.default_rng(0)
    for name in ("a/x", "b/x", "c")[:scenes]:  # two of one name
        Path(name).parent.mkdir(exist_ok=True)
        np.save(f"{name}.npy", rng.random((5, 72, 40), dtype=np.float32))
    paths = [str(path) for path in sorted(Path().rglob("*.npy"))]
    problem = {"arch": "biqrnn_1_1", "scale": 2, "degradation": "gaussian"}
    torch.save({"net": create_model("biqrnn_1_1").state_dict(), **problem}, "w.pth")
    words = ["-rp", "w.pth", "--data", *paths, "--no-cuda", "--no-figures", "--keep-range",
             "--quiet"]
    found = {}
    for count in (1, 2):
        assert start(count, [*words, "--out", f"by_{count}"], script=hsi_test,
                     dtype=torch.float32) == 0
        found[count] = json.loads(Path(f"by_{count}/metrics.json").read_text())
        for row in found[count]["images"]:
            del row["seconds"]
    assert [row["name"] for row in found[2]["images"]] == [
        row["name"] for row in found[1]["images"]]
    for name in ("interpolation", "network"):
        assert found[2]["mean"][name] == pytest.approx(found[1]["mean"][name], rel=1e-6)
    assert len(list(Path("by_2/cubes").iterdir())) == scenes
    assert Path("by_2/metrics_bands.csv").read_text().count("\n") == Path(
        "by_1/metrics_bands.csv").read_text().count("\n")
