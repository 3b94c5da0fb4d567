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
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from utility import weights
from utility.cubes.axes import LAYOUTS
from utility.names import (
    ANY,
    DEFAULT_KIND,
    DEGRADATIONS,
    METHODS,
    POOLING,
    PRECISIONS,
    PRESETS,
    SAFE_MTF,
    SCALES,
    with_mtf,
)
from utility.system import distributed
from utility.system.errors import Arguments, UserError, run_script, whole_numbers
from utility.system.files import default_path, keep_out_of, locked, shown
from utility.system.progress import note, quiet, say, warn

if TYPE_CHECKING:
    from utility.superres.cube_file import Applied


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
    if options.method in (None, "network") and not options.resumePath and not options.info:
        options.resumePath = shipped_weights(options)
    options.method = options.method or ("network" if options.resumePath else None)
    if (options.method != "network"
            and (options.backproject or options.self_ensemble or options.bandwise)):
        raise UserError("--backproject, --self-ensemble and --bandwise are for a network's output, "
                        "and there is no network; leave them out.")
    if options.export:
        if not options.resumePath:
            raise UserError(
                "--export writes the weights of a checkpoint; name the checkpoint with -rp.")
        from utility.checkpoints import export

        export(options.resumePath, options.export)
        say(f"weights in {shown(options.export)}")
        return None
    import torch

    from utility.checkpoints import check_problem, model_from_checkpoint
    from utility.cubes.products import product_of
    from utility.scenes import Reading
    from utility.superres.deliver import deliver
    from utility.superres.folder import apply_to_folder
    from utility.superres.problem import state_problem
    from utility.superres.written_values import Writing
    from utility.system.devices import (
        ask_deterministic,
        choose_device,
        choose_precision,
        device_name,
    )

    if options.threads:
        torch.set_num_threads(options.threads)
    gpus = distributed.own_gpus(options.gpu_ids) if options.cuda else ()
    device = choose_device(options.cuda, gpus, options.amp[-1], options.pooling)
    asked, insisted = options.amp[-1], options.amp.count("bf16") > 1
    if options.bandwise and asked == "bf16" and device.type == "cpu":
        raise UserError("--amp bf16 and --bandwise were given, and torch's convolution of one band "
                        "is wrong in bfloat16 on processors; leave --amp out.")
    options.amp = ("off" if options.bandwise and asked == "auto"
                   else choose_precision(device, asked, insisted))
    if options.deterministic:
        ask_deterministic()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    reading = Reading(options.key, options.layout, options.size and tuple(options.size),
                      options.bands, options.drop_bands, options.drop_bad_bands,
                      options.fill_nodata, options.keep_range, options.nodata)
    if options.info:
        from utility.superres.info import describe_file

        for line in describe_file(Path(options.info), reading, options.scale, options.degradation,
                                  options.arch, options.resumePath, device,
                                  pooling=options.pooling):
            print(line, flush=True)
        return None
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
    if options.output:
        target = Path(options.output)
        writing = Writing(options.dtype, options.on_overflow, options.unit_range, options.force,
                          options.cog,
                          options.ortho)
        if options.adapt:
            from utility import adapt

            folder = Path(options.out or f"{target.with_suffix('')}_adapted")
            with locked(folder):
                done = adapt.adapt(net, info, Path(options.adapt), target, problem, reading,
                                   writing, folder=folder, minutes=options.minutes, facts=facts,
                                   computing={name: getattr(options, name)
                                              for name in ("cuda", "gpu_ids", "pooling", "amp",
                                                           "tf32")})
            say_result(done, target, folder)
            return None

        def apply(source: Path, target: Path, writing: Writing = writing) -> None:
            folder = (Path(options.out or f"{target.with_suffix('')}_report")
                      if options.out or options.report else None)
            say_result(deliver(net, source, target, problem, reading, writing, folder=folder,
                               facts=facts), target, folder)

        sources = [Path(source) for source in options.input]
        if (len(sources) == 1
                and (not sources[0].is_dir()
                     or (product_of(sources[0]) and target.suffix and not target.is_dir()))):
            return apply(sources[0], target)
        failed = apply_to_folder(
            lambda scene, result: apply(scene, result, replace(writing, overwrite=True)), sources,
            target, f"_x{problem.scale}", force=options.force)
        return 1 if failed else 0
    from utility.report.tables import format_table
    from utility.testing import evaluation
    from utility.testing.images import find_scenes, read_images

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
    images = read_images(paths, reading, card, together=together, failed=failed)
    results = evaluation.run(net, info, images, problem, out, outputs=outputs,
                             facts={"command": facts["Command"], "device": facts["Computed on"]},
                             compare=options.compare, overwrite=options.force, together=together,
                             failed=failed)
    if distributed.rank():
        return 1 if results["failed"] else None
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
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                       allow_abbrev=False)
    add = parser.add_argument_group("network").add_argument
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
    add = parser.add_argument_group("test against ground truth").add_argument
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
    add("--snr", type=_snr, metavar="DB",
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
    add = parser.add_argument_group("super-resolve a cube without ground truth").add_argument
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
    add = parser.add_argument_group("problem (default: what the checkpoint was trained "
                                    "for)").add_argument
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
    add = parser.add_argument_group("reading scenes").add_argument
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
    add = parser.add_argument_group("computing").add_argument
    add("--tile", type=_tile, default="auto", metavar="PX|auto",
        help="side of a tile in pixels of the result; 0 is the whole scene at once, auto what "
        "memory allows. The result is the same (default: auto)")
    add("--memory", type=_gigabytes, metavar="GB",
        help="for the whole process, on a processor: tiles are made to fit (default: half of what "
        "is free)")
    add("--bands-step", type=_step, default="auto", metavar="N|auto",
        help="the network computes one of N bands; what it adds to them is interpolated to the "
        "bands between. 1 is all bands, auto is 1 below 72 bands and keeps 36 or more above "
        "(default: auto)")
    add("--self-ensemble", action="store_true",
        help="average over the 8 rotations and flips: 8 times the work. With --output, NAME_spread "
        "beside it says how far the 8 results differ")
    add("--bandwise", action="store_true",
        help="give the network one band at a time: what it does without a spectrum")
    add("--use-2dconv", action="store_true", help=argparse.SUPPRESS)  # refused, see below
    add("--no-cuda", dest="cuda", action="store_false",
        help="the processor, although there is a GPU")
    add("--gpu-ids", type=whole_numbers, metavar="ID",
        help="the GPU, -1 for none; several share the scenes, or the tiles of a scene, a process "
        "for each (default: 0, if there is one)")
    add("--threads", type=int, metavar="N", help="of the processor (default: all)")
    add("--pooling", choices=("auto", *POOLING), default="auto",
        help="backend of the recurrence (default: auto)")
    add("--amp", choices=("auto", *PRECISIONS), action="append", default=[],
        help="mixed precision; bf16 where a processor has no instructions for it must be given "
        "twice (default: auto, bf16 where the device computes it)")
    add("--tf32", action="store_true",
        help="a GPU may round the factors of convolutions to 10 bits of mantissa: faster, relative "
        "error near 1e-3")
    add("--deterministic", action="store_true",
        help="the same bits in every run on the same GPU, slower; names what is not (on a "
        "processor, runs with the same number of threads agree to the last bit anyway)")
    add("--force", action="store_true", help="replace outputs that exist")
    add("--quiet", action="store_true",
        help="print warnings and errors alone; results are in their files")
    for flags in ("--test", "--no-log"):  # the released scripts', without effect here
        parser.add_argument(*flags.split(), action="store_true", help=argparse.SUPPRESS)
    for flags in ("-b --batchSize", "-n --nEpochs", "--lr", "-mlr --min-lr", "--ri", "--wd"):
        parser.add_argument(*flags.split(), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.compare, options.amp = dict(options.compare), options.amp or ["auto"]
    if options.mtf:
        options.degradation = with_mtf(options.degradation, options.mtf)
    elif options.degradation == ANY:
        raise UserError("--degradation mtf needs the sensor's MTF; give --mtf, such as --mtf 0.3.")
    if options.snr == "auto" and not options.output:
        raise UserError("--snr auto estimates the noise of a cube of yours; in a test give the dB "
                        "of the noise to add.")
    if options.snr is None and options.output:
        options.snr = "auto"
    options.snr = None if options.snr == "none" else options.snr
    if (options.input and options.out
            and (len(options.input) > 1 or Path(options.input[0]).is_dir())):
        raise UserError("--out names one report, and --input names several cubes; give --report, "
                        "which names one for each.")
    if (options.adapt
            and (options.input or options.data or options.dataset
                 or options.method not in (None, "network"))):
        raise UserError("--adapt fine-tunes a network on a cube without ground truth; leave "
                        "--input, --data, --dataset and --method out.")
    if options.adapt and not 0 < options.minutes < 1e6:
        raise UserError(f"--minutes is {options.minutes:g}, and a number above 0 was expected.")
    if bool(options.input or options.adapt) != bool(options.output):
        raise UserError("--input (or --adapt) and --output go together; give both.")
    if options.input and (options.data or options.dataset):
        raise UserError("--input super-resolves a cube without ground truth and --data tests "
                        "against it; give one of them.")
    _refuse_without_effect(options, parser)
    if options.use_2dconv:
        raise UserError("--use-2dconv is for networks that take bands as channels, and none here "
                        "does; leave it out.")
    if options.error_band is not None and options.error_band < 0:
        raise UserError(
            f"--error-band is {options.error_band}, and a band counted from 0 was expected.")
    for name, unit in (("border", "pixels"), ("threads", "threads"), ("backproject", "steps"),
                       ("noise", "deviations")):
        if (getattr(options, name) or 0) < 0:
            raise UserError(
                f"--{name} is {getattr(options, name)}, and 0 or more {unit} were expected.")
    if (options.threads or 0) > 1024:
        raise UserError(f"--threads is {options.threads}, and 1024 threads at most were expected.")
    if options.gpu_ids is not None:
        options.gpu_ids = tuple(i for i in options.gpu_ids if i >= 0)
    if options.resumePath:
        options.resumePath = weights.named(options.resumePath)
    return options


IN_TESTS = {"bandwise": "--bandwise", "pixels": "--pixels", "noise": "--noise",
            "compare": "--compare", "border": "--border", "preset": "--preset",
            "error_band": "--error-band", "seed": "--seed", "prefix": "--prefix",
            "latex": "--latex", "cubes": "--no-cubes", "figures": "--no-figures"}
OF_RESULTS = {"dtype": "--dtype", "on_overflow": "--on-overflow", "unit_range": "--unit-range",
              "cog": "--cog", "ortho": "--ortho"}


def _refuse_without_effect(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raise UserError for an option that changes nothing in what is asked for."""
    given = {name for name in (*IN_TESTS, *OF_RESULTS, "minutes")
             if (getattr(options, name) or None) != (parser.get_default(name) or None)}
    if options.output:
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
    sentence = f"No checkpoint was given, and no shipped weights fit{' ' * bool(asked)}{asked}: {weights.listing()}"
    if options.output or options.method or options.arch:
        raise UserError(f"{sentence}. Name a checkpoint with -rp runs/NAME/best.pth, or give "
                        "--method interpolation or backprojection, which need none.")
    note_once(f"{sentence}. The untrained methods alone are tested")
    return None


def _snr(text: str) -> float | str:
    if text in ("auto", "none"):
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither decibels, such as 25, nor auto, nor none") from None


def _tile(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pixels nor auto")
    return int(text)


def _step(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number of bands, 1 or more, nor auto")
    return int(text)


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
