"""Measure this project on this machine: speed, memory, accuracy, data. Prints tables, saves JSON and a figure.

    python benchmarks/run.py                                    all of it; the first GPU where there is one, else the CPU
    python benchmarks/run.py --quick                            small sizes, under a minute: does it run?
    python benchmarks/run.py --only inference memory            some sections
    python benchmarks/run.py --checkpoint runs/demo/best.pth    and what the fast ways do to a trained network's PSNR

Every comparison is made within this run, against the same network computed the released way: a loop over bands, default
layout, whole images. `benchmarks/README.md` says what each number is. It exits with 0 although a target is missed, and with
1 when something could not be measured that should have been.
"""
from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells its own steps otherwise

import torch  # noqa: E402

from benchmarks.measure import Timing  # noqa: E402
from benchmarks.report import draw, judge, section_table, size, verdict_table  # noqa: E402
from benchmarks.sections import GPU_ONLY, SECTIONS, Setup, Sizes  # noqa: E402
from models.pooling import available_backends, cpu  # noqa: E402
from utility.devices import device_name  # noqa: E402
from utility.environment import describe_environment  # noqa: E402
from utility.errors import UserError, run_script  # noqa: E402
from utility.files import shown, write_json  # noqa: E402


def describe_machine(setup: Setup) -> dict[str, Any]:
    """What the numbers depend on; `title` names it in a line."""
    device, processor = setup.device, torch.device("cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        load = list(os.getloadavg())
    except (ValueError, OSError, AttributeError):
        memory, load = None, None
    machine = describe_environment(device) | {
        "cpu": device_name(processor), "architecture": platform.machine(), "cores": cores, "threads": setup.threads,
        "memory": memory, "load_at_start": load, "vector": torch.backends.cpu.get_cpu_capability(),
        "cpu_pooling": "compiled" if cpu.library() else "torch", "pooling_backends": list(available_backends()), "gpu": None,
    }
    machine["title"] = f"{machine['cpu']}, {setup.threads} thread{'s' * (setup.threads != 1)}"
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        machine["gpu"] = {"name": facts.name, "memory": facts.total_memory, "multiprocessors": facts.multi_processor_count,
                          "capability": f"{facts.major}.{facts.minor}", "cuda": torch.version.cuda,
                          "cudnn": torch.backends.cudnn.version()}
        machine["title"] = facts.name
    return machine


def machine_lines(machine: dict[str, Any]) -> list[str]:
    gpu = machine["gpu"]
    load = machine["load_at_start"]
    busy = "" if not load else f", load {load[0]:.1f}" + (" (busy: the times are not to be trusted)" if load[0] > 1 else "")
    card = f"{gpu['name']}, {size(gpu['memory'])}, CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}" if gpu else "none used"
    return [
        f"processor  {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads used, {machine['vector']}, "
        f"{size(machine['memory'] or 0)} of memory{busy}",
        f"GPU        {card}",
        f"software   torch {machine['torch']}, Python {machine['python']}, {machine['cpu_pooling']} CPU pooling, "
        f"commit {machine['commit']}",
    ]


def run(setup: Setup, names: Sequence[str], quick: bool = False, why_not: str = "left out by --only") -> dict[str, Any]:
    """Measure these sections, printing each; a section that fails is reported and costs none of the others.

    Returns: what is saved: `machine`, `settings`, `results` by section, `targets`, `errors` by section.
    """
    machine = describe_machine(setup)
    print("\n".join(machine_lines(machine)), flush=True)
    results: dict[str, Any] = {}
    errors: dict[str, str] = {}
    here = setup.device.type
    gpu = torch.cuda.is_available()
    why = {"cpu": "run with --device cpu", "cuda": "run with --device cuda" if gpu else "no GPU here"}
    began = time.perf_counter()
    for name, section in SECTIONS.items():
        if name not in names or (name in GPU_ONLY and here != "cuda"):
            why[name] = why_not
            continue
        begin = time.perf_counter()
        try:
            results[name] = section(setup, results)
        except Exception as error:
            traceback.print_exc()
            errors[name] = f"{type(error).__name__}: {error}"
            why[name] = "failed, see errors"
            continue
        finally:
            if here == "cuda":
                torch.cuda.empty_cache()
        results[name]["took"] = time.perf_counter() - begin
        failed = [row for row in results[name]["rows"] if "failed" in row] or results[name].get("failed")
        if failed:
            errors[name] = f"some of it failed: {failed}"
        print(f"\n{section_table(name, results[name])}", flush=True)
    targets = judge(results, here, why, judged=not quick)
    print(f"\n{verdict_table(targets)}\n\ntook {time.perf_counter() - began:.0f} s", flush=True)
    sizes = {field: getattr(setup.sizes, field) for field in setup.sizes.__dataclass_fields__}
    return _finite({
        "machine": machine,
        "settings": {"quick": quick, "arch": setup.arch, "repeats": setup.timing.repeats, "sizes": sizes,
                     "checkpoint": setup.checkpoint and Path(setup.checkpoint).name},
        "results": results, "targets": targets, "errors": errors,
    })


def _finite(value: Any) -> Any:
    """NaN and infinities, which JSON has not, as words."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    add = parser.add_argument
    add("--quick", action="store_true", help="small sizes and few repeats: shows that it runs, judges nothing")
    add("--out", default="benchmarks/results", metavar="DIR", help="where results_*.json and benchmark_*.png go "
                                                                   "(default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="what is measured (default: a GPU if there is one)")
    add("--only", nargs="+", choices=list(SECTIONS), metavar="NAME", help=f"some of: {', '.join(SECTIONS)}")
    add("--repeats", type=_positive, metavar="N", help="rounds of each comparison (default: 5 on a CPU, 20 on a GPU, 2 if "
                                                       "--quick); long ones stop earlier, after a minute or so")
    add("--threads", type=_positive, metavar="N", help="CPU threads (default: torch's own choice, the cores)")
    add("--checkpoint", metavar="CKPT", help="a trained network, for its change of PSNR on the test scenes")
    add("--images", default="data/sample/natural/test", metavar="DIR", help="those scenes (default: %(default)s)")
    return parser


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda was given and torch finds no GPU on this machine; leave it out to measure the CPU.")
    for option, path in (("--checkpoint", options.checkpoint), ("--images", options.checkpoint and options.images)):
        if path and not Path(path).exists():
            raise UserError(f"{option} {path} does not exist; give one that does (data/make_samples.py renders the sample "
                            "scenes).")
    if options.threads:
        torch.set_num_threads(options.threads)
    gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    repeats = options.repeats or (2 if options.quick else 20 if gpu else 5)
    setup = Setup(Timing(device, repeats, budget=30 if gpu else 75), Sizes.of(device, options.quick), torch.get_num_threads(),
                  checkpoint=options.checkpoint, images=options.images)
    found = run(setup, options.only or list(SECTIONS), options.quick)
    # What is not a whole run never takes the place of one.
    name = device.type + "_quick" * options.quick + "_partial" * bool(options.only)
    out = Path(options.out)
    write_json(out / f"results_{name}.json", found)
    print(f"saved {shown(out / f'results_{name}.json')}")
    if {"inference", "training", "growth"} & set(found["results"]):
        draw(out / f"benchmark_{name}.png", found["machine"], found["results"])
        print(f"saved {shown(out / f'benchmark_{name}.png')}")
    for section, error in found["errors"].items():
        print(f"failed: {section}: {error}", file=sys.stderr)
    return 1 if found["errors"] else 0


if __name__ == "__main__":
    run_script(main)
