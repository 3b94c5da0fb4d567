"""Train a network to super-resolve hyperspectral cubes.

    python hsi_sr.py -a biqrnn_16_5                         the sample database, the released recipe
    python hsi_sr.py --recipe fast --iterations 400                a quick start from better weights
    python hsi_sr.py -a biqrnn_16_5 --data data/lmdb/icvl.lmdb --scale 2,4,8 --amp bf16
    python hsi_sr.py --data data/lmdb/icvl.lmdb data/lmdb/pavia_center.lmdb --weights 3 1
            both train the same weights
    python hsi_sr.py -r -rp runs/NAME/last.pth        go on with a run; without -rp, with the newest
    python hsi_sr.py --init runs/NAME/best.pth --data data/lmdb/salinas.lmdb
            fine-tune on other scenes, any bands
    python hsi_sr.py --data data/lmdb/icvl.lmdb --dry-run               say what would run, and stop
    python hsi_sr.py --gpu-ids 0,1                          two GPUs of this machine share each step
    torchrun --nproc-per-node 2 --max-restarts 3 hsi_sr.py
            the same, and after a failure it goes on by itself

The run folder gets config.json, environment.json, log.txt, history.csv, training.json,
training.png, TensorBoard's events, last.pth, best.pth and epoch_NNN.pth. Ctrl-C saves last.pth and
says how to go on.
"""
from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from utility.options.training import parse
from utility.system import distributed
from utility.system.errors import run_script
from utility.system.progress import quiet


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments, __doc__)
    dry_run, insisted = given.pop("dry_run", False), given.pop("insisted", False)
    silent = given.pop("quiet", False)
    from utility.system.devices import choose_device, choose_precision
    from utility.training.configuration import configure
    from utility.training.loop import train
    from utility.training.plan import prepare
    from utility.training.runs import after_restart
    from utility.training.steps import expected_time

    if given.get("cuda", True) and len(given.get("gpu_ids", ())) > 1 and not distributed.launched():
        choose_device(gpu_ids=[max(given["gpu_ids"])])
        return distributed.launch(len(given["gpu_ids"]),
                                  sys.argv[1:] if arguments is None else arguments)
    with quiet(silent), distributed.joined():
        config = configure(distributed.of_first(after_restart(given)))
        plan = prepare(config)
        choose_precision(plan.device, config.amp, insisted)
        if dry_run:
            time = expected_time(plan)
            if not distributed.rank():
                changed = [f"warning   {plan.changed}"] if plan.changed else []
                print(*plan.describe(), *changed, f"time      {time}",
                      json.dumps(asdict(config), indent=2), sep="\n")
            return 0
        return 130 if train(config, plan).interrupted else 0


if __name__ == "__main__":
    run_script(main)
