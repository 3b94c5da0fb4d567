"""Measure this project on this machine: speed, memory, accuracy, data. Prints tables, saves JSON
and a figure.

    python benchmarks/run.py               all of it; the first GPU where there is one, else the CPU
    python benchmarks/run.py --quick                            tiny sizes, seconds: does it run?
    python benchmarks/run.py --only inference memory            some sections
    python benchmarks/run.py --checkpoint runs/demo/best.pth
            and what the fast ways do to a trained network's PSNR
    python benchmarks/run.py --against ../before              this checkout and another one in turns
    python benchmarks/run.py --against ../before --only network --repeats 3 --add
            one row of its table, beside those of earlier calls

Every comparison is made within this run, against the same network computed the released way: a loop
over bands, default layout, whole images. `benchmarks/README.md` says what each number is. The exit
code is 1 when a part could not be measured.
"""
from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints its own steps

import torch  # noqa: E402

from benchmarks import against  # noqa: E402
from benchmarks.measure import Setup  # noqa: E402
from benchmarks.report import draw, size, table  # noqa: E402
from benchmarks.sections import GPU_SIZES, QUICK_SIZES, SECTIONS, SIZES, Section  # noqa: E402
from models.layers.pooling import cpu  # noqa: E402
from utility.system.devices import device_name  # noqa: E402
from utility.system.environment import commit_of, describe_environment  # noqa: E402
from utility.system.errors import Arguments, UserError, run_script  # noqa: E402
from utility.system.files import shown, write_json  # noqa: E402


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on; `title` names the machine in a line."""
    name, threads = device_name(torch.device("cpu")), torch.get_num_threads()
    machine = (describe_environment(device)
               | {"cpu": name, "cores": os.cpu_count(),
                  "vector": torch.backends.cpu.get_cpu_capability(),
                  "memory": size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
                  "load_at_start": os.getloadavg()[0],
                  "cpu_pooling": "compiled" if cpu.library() else "torch",
                  "title": f"{name}, {threads} thread{'s' * (threads != 1)}",
                  "baseline": "released: the same network as a loop over bands, default layout, "
                  "whole images, float32"})
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        machine |= {"title": facts.name, "gpu": f"{facts.name}, {size(facts.total_memory)}",
                    "cudnn": torch.backends.cudnn.version()}
    return machine


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny sizes and a small network: shows that it runs")
    add("--out", default="benchmarks/results", metavar="DIR",
        help="where results_*.json and benchmark_*.png go (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="what is measured (default: a GPU if there is one)")
    add("--only", nargs="+", metavar="NAME",
        choices=list(dict.fromkeys([*SECTIONS, *against.sections(ROOT, ROOT, [])])),
        help=f"some of: {', '.join(SECTIONS)}; with --against: "
        f"{', '.join(against.sections(ROOT, ROOT, []))}")
    add("--repeats", type=int, metavar="N",
        help="rounds of each comparison (default: 5 on a CPU, 20 on a GPU, 2 with --quick); long "
        "ones stop earlier, after a minute or so")
    add("--threads", type=int, metavar="N",
        help="CPU threads (default: torch's own choice, the cores)")
    add("--checkpoint", metavar="CKPT",
        help="a trained network, for its change of PSNR on the test scenes")
    add("--images", default="data/sample/natural/test", metavar="DIR",
        help="those scenes (default: %(default)s)")
    add("--against", metavar="DIR",
        help="another checkout of this project: both in turns, and nothing else; ends with the "
        "table of what must be reached")
    add("--scenes", nargs="+", default=[], metavar="PATH",
        help="ground-truth scenes, whose mean PSNR and SAM --against compares too")
    add("--satellite", action="store_true",
        help="with --against, a whole scene of 224 x 1024 x 1024 too, which takes a while")
    add("--add", action="store_true",
        help="with --against, keep what an earlier call on this machine measured, and add to it")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    _check(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    setup = Setup(device=torch.device("cuda", 0) if gpu else torch.device("cpu"),
                  budget=30 if gpu else 75,
                  repeats=options.repeats or (2 if options.quick else 20 if gpu else 5),
                  threads=torch.get_num_threads(),
                  sizes=QUICK_SIZES if options.quick else GPU_SIZES if gpu else SIZES,
                  arch="biqrnn_4_2" if options.quick else "biqrnn_16_5",
                  checkpoint=options.checkpoint, images=options.images)
    machine, began = describe_machine(setup.device), time.perf_counter()
    print("\n".join(f"{key:<14} {value}" for key, value in machine.items() if value is not None),
          flush=True)
    if machine["load_at_start"] > 1:
        print("note: other programs keep this machine busy, so do not trust the times",
              file=sys.stderr)
    errors: dict[str, list[str]] = {}
    for name, (title, section) in _sections(options, gpu).items():
        setup.failed = []
        with setup.noting("all of it"):
            setup.results[name] = section(setup)
            print(f"\n{table(title, setup.results[name])}", flush=True)
        if setup.failed:
            errors[name] = setup.failed
    print(f"\ntook {time.perf_counter() - began:.0f} s")
    _save(options, setup, machine, errors)
    for section, found in errors.items():
        print(f"failed: {section}: {'; '.join(found)}", file=sys.stderr)
    return 1 if errors else 0


def _check(options: argparse.Namespace) -> None:
    """Raise UserError for an option that cannot be used."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda was given and torch finds no GPU on this machine; leave it "
                        "out to measure the CPU.")
    for name in ("repeats", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; give 1 or more.")
    for name, path in (
            ("--checkpoint", options.checkpoint),
            ("--images", options.checkpoint and options.images),
            *(("--scenes", scene) for scene in options.scenes),
            ("--against", options.against and Path(options.against, "benchmarks/measure.py"))):
        if path and not Path(path).exists():
            raise UserError(
                f"{name}: {path} does not exist; data/make_samples.py renders the sample scenes.")


def _sections(options: argparse.Namespace, gpu: bool) -> dict[str, tuple[str, Section]]:
    """What is measured: {name: (title, section)}."""
    if options.against:
        optional = {"scenes": options.scenes, "satellite": options.satellite,
                    "float32": False}
        found = against.sections(Path(options.against).resolve(), ROOT, options.scenes)
        chosen = options.only or [name for name in found if optional.get(name, True)]
        return {name: section for name, section in found.items() if name in chosen}
    possible = {"waiting": gpu, "psnr": options.checkpoint, "processes": options.only,
                "sampler": options.only}
    return {name: section for name, section in SECTIONS.items()
            if name in (options.only or SECTIONS) and possible.get(name, True)}


def _save(options: argparse.Namespace, setup: Setup, machine: Mapping[str, Any],
          errors: Mapping[str, list[str]]) -> None:
    """The results as JSON and a figure; with --against, what must be reached, in words too."""
    # What is not a whole run never takes the place of one.
    partial = bool(options.only) and not options.add
    name = (setup.device.type + "_quick" * options.quick + "_partial" * partial
            + "_against" * bool(options.against))
    path = Path(options.out) / f"results_{name}.json"
    settings = {"quick": options.quick, "arch": setup.arch, "repeats": setup.repeats,
                "sizes": setup.sizes}
    saved = {"machine": machine, "settings": settings, "results": setup.results, "errors": errors}
    if options.against:
        before = against.taken_over(path, machine["title"], setup.results) if options.add else {}
        how = {"commit": machine["commit"], "against": commit_of(Path(options.against)),
               "repeats": setup.repeats, "load": machine["load_at_start"]}
        saved |= {"results": before.get("results", {}) | setup.results,
                  "measured": before.get("measured", {}) | dict.fromkeys(setup.results, how)}
        saved["must"] = against.verdicts(saved["results"], machine["vector"])
        print(f"\n{table('Must reach: ' + machine['title'], saved['must'])}")
    write_json(path, saved)
    print(f"saved {shown(path)}")
    if {"inference", "training", "growth"} & set(setup.results):
        draw(Path(options.out) / f"benchmark_{name}.png", machine["title"], setup.results)
        print(f"saved {shown(Path(options.out) / f'benchmark_{name}.png')}")


if __name__ == "__main__":
    run_script(main)
