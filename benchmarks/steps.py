"""Time training steps that several processes share; `python benchmarks/run.py --only processes`
starts them by torchrun."""
from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from models import create_model
from utility.system import distributed
from utility.training.configuration import TrainingConfig
from utility.training.state import State
from utility.training.steps import train_step


def main(arch: str, *shape: int) -> None:
    """Print the seconds of five steps, after one more, on patches (N, B, h, w), of which every
    process takes its part."""
    torch.set_num_threads(1)
    state = State(TrainingConfig(arch=arch), create_model(arch), torch.device("cpu"))
    patches = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    part = patches[distributed.share(len(patches), distributed.rank(), distributed.size())]
    seconds = []
    for _ in range(6):
        distributed.highest(0)  # all begin together
        begin = time.perf_counter()
        train_step(state, state.net, part, len(patches))
        seconds.append(time.perf_counter() - begin)
    if not distributed.rank():
        print(json.dumps(seconds[1:]))


if __name__ == "__main__":
    with distributed.joined():
        main(sys.argv[1], *map(int, sys.argv[2:]))
