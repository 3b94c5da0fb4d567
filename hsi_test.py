"""Test a network against ground truth, or super-resolve a cube of your own.

    python hsi_test.py -r -rp runs/NAME/best.pth                              the sample test scenes
    python hsi_test.py -rp best.pth --data scene.mat folder/ --report
            your ground-truth scenes, with an HTML page
    python hsi_test.py -rp best.pth --dataset pavia_center --data Pavia.mat
            the test part that a card names
    python hsi_test.py -rp best.pth --input low.hdr --output high_x4.hdr
            a cube without ground truth, any size
    python hsi_test.py --input low.hdr --output high_x4.hdr
            the same by the weights that are shipped
    python hsi_test.py --input folder/ --output results_x4/                   every cube in a folder
    python hsi_test.py --info low.hdr                          what it holds, and what it would cost
    python hsi_test.py --adapt scene.tif --output scene_x4.tif --minutes 10
            weights fine-tuned on that very scene
    python hsi_test.py --data folder/ --compare theirs=cubes/
            likewise, beside cubes of another program
    python hsi_test.py --method backprojection --scale 4 --input low.tif --output high.tif

Network, scale factor, degradation and start come from the checkpoint. Without -rp it is the first
of the weights in checkpoints/ that fits --scale, --degradation and -a. A test leaves metrics.json,
metrics.csv, metrics_bands.csv, the super-resolved cubes and a figure per image in a new folder
under results/.
"""
from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utility import weights
from utility.names import DEFAULT_KIND, UNTRAINED
from utility.options.testing import parse, refuse_places
from utility.system import distributed
from utility.system.errors import UserError, run_script
from utility.system.files import default_path, keep_out_of, locked, shown
from utility.system.progress import note, quiet, say, warn

if TYPE_CHECKING:
    import torch

    from models import Network
    from utility.checkpoints import CheckpointInfo
    from utility.scenes import Reading
    from utility.superres.cube_file import Applied
    from utility.superres.problem import Problem
    from utility.superres.written_values import Writing


def main(arguments: Sequence[str] | None = None) -> int | None:
    options = parse(arguments, __doc__)
    refuse_places(options)
    alone = options.input or options.adapt or options.info or options.export
    if options.cuda and len(options.gpu_ids or ()) > 1 and not (distributed.launched() or alone):
        from utility.system.devices import choose_device

        choose_device(gpu_ids=[max(options.gpu_ids)])
        return distributed.launch(len(options.gpu_ids),
                                  sys.argv[1:] if arguments is None else arguments)
    # the slowest scene is waited for
    with quiet(options.quiet), distributed.joined(hours=24):
        if alone and distributed.size() > 1:
            raise UserError(f"Several processes share the scenes of a test, and {alone} is one "
                            "file; start one process.")
        return work(options)


def work(options: argparse.Namespace) -> int | None:
    choose_weights(options)
    if options.export:
        from utility.checkpoints import export

        if not options.resumePath:
            raise UserError(
                "--export writes the weights of a checkpoint; name the checkpoint with -rp.")
        export(options.resumePath, options.export)
        say(f"weights in {shown(options.export)}")
        return None
    from utility.scenes import Reading
    from utility.superres.info import describe_file

    device = prepare_device(options)
    reading = Reading(options.key, options.layout, options.size and tuple(options.size),
                      options.bands, options.drop_bands, options.drop_bad_bands,
                      options.fill_nodata, options.keep_range, options.nodata)
    if options.info:
        for line in describe_file(Path(options.info), reading, options.scale, options.degradation,
                                  options.arch, options.resumePath, device, options.amp,
                                  options.memory, pooling=options.pooling):
            print(line, flush=True)
        return None
    task = stated(options, reading, device)
    name_result(options, task.problem.scale)
    return (adapt if options.adapt else super_resolve if options.output else test)(task)


def choose_weights(options: argparse.Namespace) -> None:
    """Complete the checkpoint and the method, which may depend on each other."""
    options.taken = None  # what is said of weights that nobody named
    unsaid = options.method in (None, "network") and not (options.resumePath or options.info)
    if unsaid and (found := shipped_weights(options)):
        options.resumePath = str(found.path)
        options.taken = f"the shipped weights {found.describe()} are taken; -rp names others"
    if options.taken and not options.input:  # else when a network begins, see `super_resolve`
        note_once(options.taken)
    # Neither a method nor an MTF is insisted on: a cube that is aliased may get the interpolation.
    options.aliased = None if options.input and not options.method else False
    options.method = options.method or ("network" if options.resumePath else None)
    if (options.method != "network"
            and (options.backproject or options.self_ensemble or options.bandwise)):
        raise UserError("--backproject, --self-ensemble and --bandwise are for a network's output, "
                        "and there is no network; leave them out.")


def prepare_device(options: argparse.Namespace) -> torch.device:
    """The device that computes, with the precision that was asked for; `options.amp` becomes the
    one that it has."""
    import torch

    from utility.system.devices import ask_deterministic, choose_device, choose_precision

    if options.threads:
        torch.set_num_threads(options.threads)
    gpus = distributed.own_gpus(options.gpu_ids) if options.cuda else ()
    asked, insisted = options.amp[-1], options.amp.count("bf16") > 1
    device = choose_device(options.cuda, gpus, asked, options.pooling)
    if options.bandwise and asked == "bf16" and device.type == "cpu":
        raise UserError("--amp bf16 and --bandwise were given, and torch's convolution of one band "
                        "is wrong in bfloat16 on processors; leave --amp out.")
    options.amp = ("off" if options.bandwise and asked == "auto"
                   else choose_precision(device, asked, insisted))
    if options.deterministic:
        ask_deterministic()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    return device


@dataclass(frozen=True)
class Task:
    """What is to be done: a network, a problem, and how scenes are read."""

    options: argparse.Namespace
    net: Network | None
    info: CheckpointInfo | None     # what the network's checkpoint says
    problem: Problem
    reading: Reading
    facts: dict[str, Any]           # for reports


def stated(options: argparse.Namespace, reading: Reading, device: torch.device) -> Task:
    """The task, with the network on its device."""
    from utility.checkpoints import check_problem, model_from_checkpoint
    from utility.superres.problem import state_problem
    from utility.system.devices import device_name

    net = info = None
    if options.method == "network":
        net, info = model_from_checkpoint(options.resumePath, options.arch, options.options,
                                          pooling=options.pooling)
        net = net.to(device)
        if info.unsaid:
            note_once(info.unsaid)
        if net.radius is None:
            note_once(f"{info.arch} does not say how far its receptive field reaches, so the whole "
                      "scene is computed at once")
    problem = state_problem(
        info, options.scale, options.degradation, own=bool(options.output), noise=options.noise,
        aliased=options.aliased,
        snr=options.snr, seed=options.seed, method=options.method,
        backproject=options.backproject, tile=options.tile, amp=options.amp,
        bands_step=options.bands_step, memory=options.memory, self_ensemble=options.self_ensemble,
        bandwise=options.bandwise, preset=options.preset, border=options.border)
    if net:
        check_problem(net, problem.scale, problem.degradation)
    precision = ("float32" if problem.amp == "off" else
                 f"the network computed in {problem.amp}; --amp off makes it float32")
    facts = {"Command": shlex.join(["python", *sys.argv]), "Network": info and info.arch,
             "Checkpoint": info and str(info.path), "Scale factor": f"x{problem.scale}",
             "Degradation": problem.degradation,
             "Network starts from": f"the {UNTRAINED[problem.start]} of the low-resolution cube"
             if net else None,
             "Noise": f"sigma {problem.noise:g}, seed {problem.seed}" if problem.noise else None,
             "SNR": problem.snr if isinstance(problem.snr, float) else None,
             "Back-projection": f"{problem.backproject} steps on the network's output"
             if problem.backproject else None,
             "Self-ensemble": "8 rotations and flips" if problem.self_ensemble else None,
             "Computed on": device_name(device),
             "Precision": precision if net else None}
    return Task(options, net, info, problem, reading, facts)


def name_result(options: argparse.Namespace, scale: int) -> None:
    """Name the result of one file in the folder that `--output` names."""
    from utility.superres.folder import result_in

    sources = [Path(source) for source in options.input or [options.adapt or ""]]
    if len(sources) > 1 or not sources[0].is_file():
        return
    if Path(options.output).is_dir() or options.output.endswith("/"):
        options.output = str(result_in(Path(options.output), sources[0], f"_x{scale}"))


def written(options: argparse.Namespace) -> Writing:
    """How a result is written."""
    from utility.superres.written_values import Writing

    return Writing(options.dtype, options.on_overflow, options.unit_range, options.force,
                   options.cog, options.ortho)


def adapt(task: Task) -> None:
    """Fine-tune the weights on a cube, and write the cube as they, or what does better, make it."""
    from utility.adapt import adapt

    options, target = task.options, Path(task.options.output)
    folder = Path(options.out or f"{target.with_suffix('')}_adapted")
    computing = {name: getattr(options, name)
                 for name in ("cuda", "gpu_ids", "pooling", "amp", "tf32")}
    with locked(folder):
        try:
            done = adapt(task.net, task.info, Path(options.adapt), target, task.problem,
                         task.reading, written(options), folder=folder, minutes=options.minutes,
                         facts=task.facts, computing=computing)
        except KeyboardInterrupt:
            say("the same command goes on" if (folder / "training" / "last.pth").exists()
                else "nothing was trained yet; the same command begins again")
            raise
    say_result(done, target, folder)


def super_resolve(task: Task) -> int | None:
    """Make one cube finer, or each cube of several and of folders."""
    from utility.cubes.products import product_of
    from utility.superres.deliver import deliver
    from utility.superres.folder import apply_to_folder

    options, target, writing = task.options, Path(task.options.output), written(task.options)

    @cache
    def begins() -> None:
        """Say once, whatever the number of cubes, which weights a network has."""
        if options.taken:
            note_once(options.taken)

    def apply(source: Path, target: Path, writing: Writing = writing) -> None:
        folder = (Path(options.out or f"{target.with_suffix('')}_report")
                  if options.out or options.report else None)
        done = deliver(task.net, source, target, task.problem, task.reading, writing,
                       folder=folder, facts=task.facts, begins=begins)
        say_result(done, target, folder)

    sources = [Path(source) for source in options.input]
    # a product may be a folder, and is one cube where the target is a file
    one_product = product_of(sources[0]) and target.suffix and not target.is_dir()
    if len(sources) == 1 and (not sources[0].is_dir() or one_product):
        return apply(sources[0], target)
    failed = apply_to_folder(
        lambda scene, result: apply(scene, result, replace(writing, overwrite=True)), sources,
        target, f"_x{task.problem.scale}", force=options.force)
    return 1 if failed else 0


def test(task: Task) -> int | None:
    """Compare the methods with ground truth."""
    from utility.report.tables import format_table
    from utility.testing import evaluation
    from utility.testing.images import find_scenes, read_images

    options, problem, info, facts = task.options, task.problem, task.info, task.facts
    card, paths = find_scenes(options.data, options.dataset)
    if card and options.keep_range:
        raise UserError(f"--keep-range was given, and the card {card.name} says how values are "
                        "scaled; leave one of them out.")
    name = options.prefix or (info.arch if info else "untrained")
    out = Path(options.out
               or default_path(f"results/{name}_x{problem.scale}_{datetime.now():%Y%m%d_%H%M%S}"))
    keep_out_of(out, options.resumePath, *paths, *options.compare.values())
    outputs = evaluation.Outputs(cubes=options.cubes, figures=options.figures,
                                 report=options.report, latex=options.latex,
                                 error_band=options.error_band, pixels=tuple(options.pixels or ()),
                                 facts=facts)
    # then the processes share the tiles of each scene, else the scenes
    together = len(paths) < distributed.size()
    # of several scenes the others are tested
    failed: list[str] | None = [] if len(paths) > 1 else None
    images = read_images(paths, task.reading, card, together=together, failed=failed)
    results = evaluation.run(task.net, info, images, problem, out, outputs=outputs,
                             facts={"command": facts["Command"], "device": facts["Computed on"]},
                             compare=options.compare, overwrite=options.force, together=together,
                             failed=failed)
    if not distributed.rank():
        say(format_table(results["images"], results["methods"], problem.preset, problem.scale,
                         problem.border))
        if task.net and problem.amp != "off":
            say(f"({facts['Precision']})")
        if problem.noise:
            say(f"(noise of standard deviation {problem.noise:g} in the low-resolution cubes, seed "
                f"{problem.seed})")
        for text in results["warnings"]:
            warn(text)
        say(f"results in {shown(out)}/")
        for text in results["failed"]:
            warn(text, "failed")
    return 1 if results["failed"] else None


def say_result(done: Applied, target: Path, folder: Path | None) -> None:
    """What a reader must know of a result without ground truth."""
    summary = done.summary
    for text in summary["warnings"]:
        warn(text)
    if summary["clipped_values"]:
        pixels = summary["input_pixels"] * summary["scale"] ** 2
        share = summary["clipped_values"] / (summary["shape"][0] * pixels)
        where, cure = (("lay outside [0, 1]", "without --unit-range they are kept")
                       if summary["unit_range"]
                       else (f"did not fit {summary['dtype']}", "--dtype float32 keeps them"))
        note(f"{summary['clipped_values']} values of the result ({share:.1%}) {where} and were "
             f"clipped; {cure}")
    say(summary["sensor"])
    say(f"{shown(target)}: {' x '.join(map(str, summary['shape']))} {summary['dtype']}; "
        f"{summary['agreement']}")
    say(summary["uncertainty"])
    if differ := summary.get("bounds_differ_by"):
        say("the result covers the same ground as the input" if differ.startswith("0.000 ")
            else f"the result's bounds differ from the input's by {differ}")
    if folder:
        say(f"report in {shown(folder)}/")


def note_once(text: str) -> None:
    """A note by the first of several processes."""
    if not distributed.rank():
        note(text)


def shipped_weights(options: argparse.Namespace) -> weights.Shipped | None:
    """The shipped weights that fit; None, which is said, where none do and a test can go on without
    a network."""
    kind = options.degradation or (None if options.output else DEFAULT_KIND)
    found = weights.choose(options.arch, options.scale, kind)
    if found:
        return found
    asked = ", ".join(
        filter(None, (options.arch, options.scale and f"x{options.scale}", options.degradation)))
    sentence = (f"No checkpoint was given, and no shipped weights fit{' ' * bool(asked)}{asked}: "
                f"{weights.listing()}")
    if options.output or options.method or options.arch:
        raise UserError(f"{sentence}. Name a checkpoint with -rp runs/NAME/best.pth, or give "
                        "--method interpolation or backprojection, which need none.")
    note_once(f"{sentence}. The untrained methods alone are tested")
    return None


if __name__ == "__main__":
    run_script(main)
