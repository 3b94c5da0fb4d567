"""Two processes against one, the size of the gradients, and the sampler at 10^9 patches. Prints a table and JSON.

    python benchmarks/scaling.py                    a few minutes on an idle machine with two cores
    python benchmarks/scaling.py --quick            tiny sizes: does it run?

A process has one thread. Both ways make the same steps of the same batch: degrade x4, forward, MSE, backward, sum over the
processes, Adam. They take turns, each in fresh processes; the median step counts.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from models import create_model  # noqa: E402
from utility import distributed  # noqa: E402
from utility.configuration import TrainingConfig  # noqa: E402
from utility.errors import run_script  # noqa: E402
from utility.loader import Turns  # noqa: E402
from utility.state import State  # noqa: E402
from utility.training import train_step  # noqa: E402


def steps(arch: str, batch: int, side: int, count: int) -> list[float]:
    """Seconds of each of `count` steps, after one more; every process takes its part of the batch."""
    torch.set_num_threads(1)
    state = State(TrainingConfig(arch=arch), create_model(arch), torch.device("cpu"))
    whole = torch.rand((batch, 31, side, side), generator=torch.Generator().manual_seed(0))
    part = whole[distributed.share(batch, distributed.rank(), distributed.size())]
    seconds = []
    for _ in range(count + 1):
        distributed.highest(0)  # all begin together
        begin = time.perf_counter()
        train_step(state, state.net, part, batch)
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def sampler(patches: int) -> dict[str, Any]:
    """What the first batch of a pass costs in time of the processor and memory."""
    tracemalloc.start()
    begin = time.process_time()
    next(iter(Turns([patches], 16, seed=2021)))
    seconds, peak = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"patches": patches, "seconds": round(seconds, 4), "mebibytes": round(peak / 2**20, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="launches of each way (default: 3)")
    options = parser.parse_args()
    arch, size = ("biqrnn_1_1", (4, 16, 2)) if options.quick else ("biqrnn_16_5", (4, 64, 5))
    if distributed.launched():  # one of the processes to be timed
        with distributed.joined():
            seconds = steps(arch, *size)
            if not distributed.rank():
                print(json.dumps(seconds))
        return
    load = os.getloadavg()[0]
    found: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(options.rounds):
        for count in (1, 2) if turn % 2 else (2, 1):
            done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}",
                                   *sys.argv], env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True)
            found[count] += json.loads(done.stdout)
    one, two = (statistics.median(found[count]) for count in (1, 2))
    parameters = sum(p.numel() for p in create_model(arch).parameters())
    results = {
        "network": arch, "batch": size[0], "side": size[1], "load_before": load, "one_process_s": one,
        "two_processes_s": two, "faster": one / two, "all_steps": found, "gradient_mebibytes": parameters * 4 / 2**20,
        "sampler": [sampler(patches) for patches in (10**5, 10**7, 10**9)],
    }
    print(f"{arch}, {size[0]} patches of 31x{size[1]}x{size[1]} a step, one thread a process")
    print(f"one process {one:.3f} s, two processes {two:.3f} s: {one / two:.2f} times as fast")
    print(f"gradients {results['gradient_mebibytes']:.2f} MiB a step")
    for row in results["sampler"]:
        print(f"sampler of {row['patches']:>13,} patches: first batch after {row['seconds']:.4f} s, {row['mebibytes']:.2f} MiB")
    print(json.dumps(results))


if __name__ == "__main__":
    run_script(main)
