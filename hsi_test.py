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
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utility import weights
from utility.cubes.axes import LAYOUTS
from utility.names import (
    ANY,
    DEFAULT_KIND,
    DEGRADATIONS,
    METHODS,
    PRECISIONS,
    PRESETS,
    SAFE_MTF,
    SCALES,
    with_mtf,
)
from utility.options.shared import Add, add_computing, gpus
from utility.system import distributed
from utility.system.errors import Arguments, UserError, run_script
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
    options = parse(arguments)
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
                                  pooling=options.pooling):
            print(line, flush=True)
        return None
    task = stated(options, reading, device)
    return (adapt if options.adapt else super_resolve if options.output else test)(task)


def choose_weights(options: argparse.Namespace) -> None:
    """Complete the checkpoint and the method, which may depend on each other."""
    if options.method in (None, "network") and not options.resumePath and not options.info:
        options.resumePath = shipped_weights(options)
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
    facts = {"Command": shlex.join(["python", *sys.argv]), "Network": info and info.arch,
             "Checkpoint": info and str(info.path), "Scale factor": f"x{problem.scale}",
             "Degradation": problem.degradation, "Start": problem.start if net else None,
             "Noise": f"sigma {problem.noise:g}, seed {problem.seed}" if problem.noise else None,
             "SNR": problem.snr if isinstance(problem.snr, float) else None,
             "Back-projection": f"{problem.backproject} steps on the network's output"
             if problem.backproject else None,
             "Self-ensemble": "8 rotations and flips" if problem.self_ensemble else None,
             "Computed on": device_name(device)}
    return Task(options, net, info, problem, reading, facts)


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
        done = adapt(task.net, task.info, Path(options.adapt), target, task.problem, task.reading,
                     written(options), folder=folder, minutes=options.minutes, facts=task.facts,
                     computing=computing)
    say_result(done, target, folder)


def super_resolve(task: Task) -> int | None:
    """Make one cube finer, or each cube of several and of folders."""
    from utility.cubes.products import product_of
    from utility.superres.deliver import deliver
    from utility.superres.folder import apply_to_folder

    options, target, writing = task.options, Path(task.options.output), written(task.options)

    def apply(source: Path, target: Path, writing: Writing = writing) -> None:
        folder = (Path(options.out or f"{target.with_suffix('')}_report")
                  if options.out or options.report else None)
        done = deliver(task.net, source, target, task.problem, task.reading, writing,
                       folder=folder, facts=task.facts)
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
        share = summary["clipped_values"] / math.prod(summary["shape"])
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
        say(f"the result's bounds differ from the input's by {differ}")
    if folder:
        say(f"report in {shown(folder)}/")


def note_once(text: str) -> None:
    """A note by the first of several processes."""
    if not distributed.rank():
        note(text)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Arguments(__doc__)
    for title, add_options in GROUPS.items():
        add_options(parser.add_argument_group(title).add_argument)
    parser.set_defaults(amp=["auto"], pooling="auto")
    options = parser.parse_args(arguments)
    options.compare, options.gpu_ids = dict(options.compare), gpus(options.gpu_ids)
    if options.mtf:
        options.degradation = with_mtf(options.degradation, options.mtf)
    _refuse_contradictions(options)
    if options.snr is None and options.output:
        options.snr = "auto"
    options.snr = None if options.snr == "none" else options.snr
    _refuse_without_effect(options, parser)
    _refuse_numbers(options)
    if options.resumePath:
        options.resumePath = weights.named(options.resumePath)
    return options


def _network(add: Add) -> None:
    add("-rp", "--resumePath", metavar="CKPT",
        help="the checkpoint, or the name of shipped weights such as lowgrid_x4 (default: the "
        "shipped weights that fit)")
    add("-r", "--resume", action="store_true",
        help="may stand before -rp, as in the released script; changes nothing")
    add("--export", metavar="FILE",
        help="write the checkpoint's weights as FILE.safetensors, which loads as it does, and stop")
    add("-a", "--arch", metavar="NAME", help="the network (default: the checkpoint's)")
    add("--long-skip", dest="options", action="store_const", const={"long_skip": True},
        help="alternating networks add their input twice, as the released ones do")


def _test(add: Add) -> None:
    add("--data", nargs="+", metavar="PATH",
        help="ground-truth scenes: files and folders (default: the card's)")
    add("--dataset", metavar="CARD",
        help="dataset card that says which part of a scene tests: a name in data/, or a .toml "
        "(default without --data: sample)")
    add("--out", metavar="DIR",
        help="results folder, a new one (default: results/NETWORK_SCALE_TIME)")
    add("-p", "--prefix", metavar="NAME",
        help="stands for NETWORK in the name of the default results folder")
    add("--compare", type=_method, nargs="+", default=[], metavar="NAME=FOLDER",
        help="score cubes of other programs: one for each image, named IMAGE or IMAGE_xSCALE, in "
        "the values of the image")
    add("--noise", type=float, default=0.0, metavar="SIGMA",
        help="add white noise of this standard deviation to the low-resolution cube, in units of "
        "[0, 1] (default: 0)")
    add("--snr", type=_number_or("auto", "none", what="decibels, such as 25", number=float,
                                  least=-math.inf), metavar="DB",
        help="in a test, add noise of this signal-to-noise ratio to each band; of a cube of yours, "
        "its noise, for which less is sharpened: auto estimates it, none is none (default: none in "
        "a test, else auto)")
    add("--seed", type=int, default=2021, metavar="N", help="of the noise (default: %(default)s)")
    add("--preset", choices=PRESETS, default="standard",
        help="how SSIM and SAM are computed; the other indexes are the same. standard: SSIM by the "
        "authors' 11x11 Gaussian window of sigma 1.5, SAM in degrees. reference: the released "
        "code's, SSIM by 7x7 equal weights and data range 2, SAM in radians. sspsr: as the field's "
        "most copied script, SSIM by 7x7 equal weights and data range 1, SAM in degrees (default: "
        "%(default)s)")
    add("--border", type=int, default=0, metavar="PX",
        help="pixels left out of the indexes on each side (default: 0)")
    add("--error-band", type=int, metavar="BAND",
        help="draw absolute error maps at this band, from 0")
    add("--pixels", type=_pixel, nargs="+", metavar="ROW,COLUMN",
        help="pixels whose spectra are drawn, in a figure of their own too (default: two chosen "
        "from the ground truth)")
    add("--report", action="store_true", help="write one self-contained HTML page too")
    add("--latex", action="store_true", help="write the table as LaTeX too, to be read by \\input")
    add("--no-cubes", dest="cubes", action="store_false",
        help="do not write the super-resolved cubes")
    add("--no-figures", dest="figures", action="store_false", help="draw nothing")


def _own_cube(add: Add) -> None:
    add("--input", nargs="+", metavar="FILE",
        help="low-resolution cube: .mat, HDF5, netCDF, .npy, ENVI, GeoTIFF, a product; or a "
        "folder of them: results that are newer than their cube are left as they are")
    add("--output", metavar="FILE",
        help="the result; its suffix chooses the format (with a folder, the folder of the results)")
    add("--adapt", metavar="FILE",
        help="instead of --input: fine-tune the weights on this cube, test them on a part held "
        "out, and take what did best there; DIR of --out (default: OUTPUT_adapted) gets the test, "
        "a report and the weights")
    add("--minutes", type=float, default=10.0, metavar="M",
        help="of --adapt, for training, test and result as estimated before the training (default: "
        "%(default)g)")
    add("--dtype", metavar="TYPE", help="of the result, e.g. float32 (default: the input's)")
    add("--on-overflow", choices=("clip", "refuse"), default="clip",
        help="what happens to values that an integer type cannot hold (default: %(default)s, and "
        "say how many)")
    add("--unit-range", action="store_true",
        help="write the result in [0, 1] as float32, not in the input's values")
    add("--ortho", action="store_true",
        help="put the result on the map grid of the lookup table (GLT) that comes with the cube, "
        "as EMIT's does")
    add("--cog", action="store_true", help="write a cloud-optimised GeoTIFF, with overviews")
    add("--info", metavar="FILE",
        help="say what a cube holds, how it is read, and what each scale factor would cost")


def _problem(add: Add) -> None:
    add("--scale", type=int, choices=SCALES, help="scale factor")
    add("--degradation", choices=DEGRADATIONS, metavar="KIND",
        help=f"how low resolution is made: {', '.join(DEGRADATIONS)}")
    add("--mtf", metavar="M[,M]",
        help="of the sensor, at the Nyquist frequency of the low-resolution grid: rows and "
        f"columns; short for --degradation mtf (default for a cube of yours: {SAFE_MTF:g}, which "
        "is safe)")
    add("--method", choices=METHODS,
        help="what enlarges the cube of --input (default: network); a test shows the untrained "
        "methods always, and with interpolation or backprojection no network")
    add("--backproject", type=int, default=0, metavar="N",
        help="make the network's output agree with its input by N steps of back-projection. Not "
        "for noisy cubes or an unknown blur: it amplifies their errors (default: 0)")


def _reading(add: Add) -> None:
    add("--key", help="name of the cube in its file, when it holds several")
    add("--layout", choices=LAYOUTS, metavar="AXES",
        help=f"of the cube as stored: {', '.join(LAYOUTS)}")
    add("--size", type=int, nargs=2, metavar=("ROWS", "COLUMNS"),
        help="of the image, for bands x pixels without one")
    add("--bands", metavar="LIST", help="bands to take, from 0, e.g. 0-49,60")
    add("--drop-bands", metavar="LIST", help="bands to leave out")
    add("--drop-bad-bands", action="store_true", help="leave out constant, NaN and dead bands")
    add("--nodata", type=float, metavar="VALUE",
        help="of pixels without data, where the file does not say it")
    add("--fill-nodata", action="store_true",
        help="fill NaN and no-data pixels from their neighbours")
    add("--keep-range", action="store_true",
        help="values are in [0, 1] already: do not scale by minimum and maximum")


def _computing(add: Add) -> None:
    add("--tile", type=_number_or("auto", what="a number of pixels"), default="auto",
        metavar="PX|auto",
        help="side of a tile in pixels of the result; 0 is the whole scene at once, auto what "
        "memory allows. The result is the same (default: auto)")
    add("--memory", type=_gigabytes, metavar="GB",
        help="for the whole process, on a processor: tiles are made to fit (default: half of what "
        "is free)")
    add("--bands-step", type=_number_or("auto", what="a number of bands, 1 or more",
                                         least=1), default="auto", metavar="N|auto",
        help="the network computes one of N bands; what it adds to them is interpolated to the "
        "bands between. 1 is all bands, auto is 1 below 72 bands and keeps 36 or more above "
        "(default: auto)")
    add("--self-ensemble", action="store_true",
        help="average over the 8 rotations and flips: 8 times the work. With --output, NAME_spread "
        "beside it says how far the 8 results differ")
    add("--bandwise", action="store_true",
        help="give the network one band at a time: what it does without a spectrum")
    add("--use-2dconv", action="store_true", help=argparse.SUPPRESS)  # refused, see below
    add_computing(add, several="share the scenes, or the tiles of a scene",
                  precisions=("auto", *PRECISIONS),
                  precision=" (default: auto, bf16 where the device computes it)")
    add("--threads", type=int, metavar="N", help="of the processor (default: all)")
    add("--force", action="store_true", help="replace outputs that exist")
    add("--quiet", action="store_true",
        help="print warnings and errors alone; results are in their files")
    for flags in ("--test", "--no-log"):  # the released scripts', without effect here
        add(flags, action="store_true", help=argparse.SUPPRESS)
    for flags in ("-b --batchSize", "-n --nEpochs", "--lr", "-mlr --min-lr", "--ri", "--wd"):
        add(*flags.split(), help=argparse.SUPPRESS)


GROUPS = {"network": _network, "test against ground truth": _test,
          "super-resolve a cube without ground truth": _own_cube,
          "problem (default: what the checkpoint was trained for)": _problem,
          "reading scenes": _reading, "computing": _computing}
"""The options as --help shows them."""


def _refuse_contradictions(options: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together."""
    tested, own = options.data or options.dataset, options.input or options.adapt
    several = options.input and (len(options.input) > 1 or Path(options.input[0]).is_dir())
    for refused, sentence in (
            (options.degradation == ANY,
             "--degradation mtf needs the sensor's MTF; give --mtf, such as --mtf 0.3."),
            (options.snr == "auto" and not options.output,
             "--snr auto estimates the noise of a cube of yours; in a test give the dB of the "
             "noise to add."),
            (several and options.out,
             "--out names one report, and --input names several cubes; give --report, which names "
             "one for each."),
            (options.adapt and (options.input or tested
                                or options.method not in (None, "network")),
             "--adapt fine-tunes a network on a cube without ground truth; leave --input, --data, "
             "--dataset and --method out."),
            (bool(own) != bool(options.output),
             "--input (or --adapt) and --output go together; give both."),
            (options.input and tested,
             "--input super-resolves a cube without ground truth and --data tests against it; "
             "give one of them."),
            (options.use_2dconv,
             "--use-2dconv is for networks that take bands as channels, and none here does; leave "
             "it out.")):
        if refused:
            raise UserError(sentence)


def _refuse_numbers(options: argparse.Namespace) -> None:
    """Raise UserError for a number that cannot be."""
    if options.adapt and not 0 < options.minutes < 1e6:
        raise UserError(f"--minutes is {options.minutes:g}, and a number above 0 was expected.")
    if (options.error_band or 0) < 0:
        raise UserError(
            f"--error-band is {options.error_band}, and a band counted from 0 was expected.")
    for name, unit in (("border", "pixels"), ("threads", "threads"), ("backproject", "steps"),
                       ("noise", "deviations")):
        if (number := getattr(options, name) or 0) < 0:
            raise UserError(f"--{name} is {number}, and 0 or more {unit} were expected.")
    if (options.threads or 0) > 1024:
        raise UserError(f"--threads is {options.threads}, and 1024 threads at most were expected.")


IN_TESTS = {"bandwise": "--bandwise", "pixels": "--pixels", "noise": "--noise",
            "compare": "--compare", "border": "--border", "preset": "--preset",
            "error_band": "--error-band", "seed": "--seed", "prefix": "--prefix",
            "latex": "--latex", "cubes": "--no-cubes", "figures": "--no-figures"}
OF_RESULTS = {"dtype": "--dtype", "on_overflow": "--on-overflow", "unit_range": "--unit-range",
              "cog": "--cog", "ortho": "--ortho"}
NOT_OF_INFO = IN_TESTS | OF_RESULTS | {
    "data": "--data", "dataset": "--dataset", "input": "--input", "out": "--out",
    "method": "--method", "bands": "--bands", "drop_bands": "--drop-bands",
    "drop_bad_bands": "--drop-bad-bands", "fill_nodata": "--fill-nodata",
    "keep_range": "--keep-range"}


def _refuse_without_effect(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raise UserError for an option that changes nothing in what is asked for."""
    def value(name: str) -> object:
        return getattr(options, name) or None

    given = {name for name in (*NOT_OF_INFO, "minutes")
             if value(name) != (parser.get_default(name) or None)}
    if options.info:
        if useless := [flag for name, flag in NOT_OF_INFO.items() if name in given]:
            raise UserError(f"{', '.join(useless)} changes nothing in what --info says of the "
                            "file; leave it out.")
    elif options.output:
        allowed = {"border", "preset"} if options.adapt else set()
        if useless := [flag for name, flag in IN_TESTS.items() if name in given - allowed]:
            raise UserError(f"{', '.join(useless)} is for tests against ground truth; leave it out "
                            "with --output.")
    elif useless := [flag for name, flag in OF_RESULTS.items() if name in given]:
        raise UserError(f"{', '.join(useless)} is for the result of --input or --adapt; leave it "
                        "out without --output.")
    if "minutes" in given and not options.adapt:
        raise UserError("--minutes is for --adapt; leave it out.")


def shipped_weights(options: argparse.Namespace) -> str | None:
    """The shipped weights that fit, said by name; None, said too, where none do and a test can go
    on without a network."""
    kind = options.degradation or (None if options.output else DEFAULT_KIND)
    found = weights.choose(options.arch, options.scale, kind)
    if found:
        note_once(f"the shipped weights {found.describe()} are taken; -rp names others")
        return str(found.path)
    asked = ", ".join(
        filter(None, (options.arch, options.scale and f"x{options.scale}", options.degradation)))
    sentence = (f"No checkpoint was given, and no shipped weights fit{' ' * bool(asked)}{asked}: "
                f"{weights.listing()}")
    if options.output or options.method or options.arch:
        raise UserError(f"{sentence}. Name a checkpoint with -rp runs/NAME/best.pth, or give "
                        "--method interpolation or backprojection, which need none.")
    note_once(f"{sentence}. The untrained methods alone are tested")
    return None


def _number_or(*words: str, what: str, number: Callable[[str], float] = int,
               least: float = 0) -> Callable[[str], float | str]:
    """A type for argparse: one of some words, or a number, which `what` describes."""
    def read(text: str) -> float | str:
        if text in words:
            return text
        try:
            value = number(text)
        except ValueError:
            value = -math.inf
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither {what}, nor {', nor '.join(words)}")
        return value

    return read


def _gigabytes(text: str) -> int:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0.1 <= size < 1e6:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of gigabytes, 0.1 or more, such as 2")
    return int(size * 1e9)


def _method(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (equals and name and folder):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=FOLDER, such as theirs=results/theirs")
    return name, Path(folder)


def _pixel(text: str) -> tuple[int, int]:
    row, comma, column = text.partition(",")
    if not (comma and row.isdecimal() and column.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not ROW,COLUMN, such as 20,35")
    return int(row), int(column)


if __name__ == "__main__":
    run_script(main)
