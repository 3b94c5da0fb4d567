"""Test a network against ground truth, or super-resolve a cube of your own.

    python hsi_test.py -r -rp runs/NAME/best.pth                                   the sample test scenes
    python hsi_test.py -rp best.pth --data scene.mat folder/ --report              your ground-truth scenes, with an HTML page
    python hsi_test.py -rp best.pth --dataset pavia_center --data Pavia.mat        the test part that a card names
    python hsi_test.py -rp best.pth --input low.hdr --output high_x4.hdr           a cube without ground truth, any size

Network, scale factor and degradation come from the checkpoint. A test leaves metrics.json, metrics.csv, the super-resolved
cubes and a figure per image in a new folder under results/.
"""
from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from models.pooling import BACKENDS
from utility import evaluation, inference
from utility.cards import Card, list_cards, load_card, locate, split
from utility.checkpoints import CheckpointInfo, check_problem, model_from_checkpoint
from utility.cubes.layouts import LAYOUTS
from utility.degradation import KINDS, SCALES, check
from utility.devices import AMP, choose_device, device_name
from utility.errors import UserError, run_script, whole_numbers
from utility.evaluation import Outputs, Problem, Reading
from utility.figures import no_truth_figure
from utility.files import refuse_existing, refuse_foreign, replacing, shown, write_json
from utility.indexes import PRESETS
from utility.report import write_report
from utility.scenes import list_scenes
from utility.tables import format_table

REPORT_MARKS = ("summary.json",)
"""What is in every report folder, by which an earlier one is known."""


def main(arguments: Sequence[str] | None = None) -> int | None:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.cuda, options.gpu_ids, options.amp, options.pooling)
    net, info = model_from_checkpoint(options.resumePath, options.arch, options.options, pooling=options.pooling)
    problem = state_problem(options, info)
    check_problem(net, problem.scale, problem.degradation)
    if info.unsaid:
        print(f"note: {info.unsaid}", file=sys.stderr)
    if net.radius is None:
        print(f"note: {info.arch} does not say how far its receptive field reaches, so the whole scene is computed at once",
              file=sys.stderr)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    net = net.to(device)
    facts = {
        "Command": shlex.join(["python", *sys.argv]), "Network": info.arch, "Checkpoint": str(info.path),
        "Scale factor": f"x{problem.scale}", "Degradation": problem.degradation,
        "Self-ensemble": "8 rotations and flips" if problem.self_ensemble else None, "Computed on": device_name(device),
    }
    if options.input:
        return apply(net, options, problem, facts)
    return test(net, options, problem, facts, info)


def test(net: torch.nn.Module, options: argparse.Namespace, problem: Problem, facts: dict[str, Any],
         info: CheckpointInfo) -> None:
    card, paths = find_scenes(options)
    name = f"{options.prefix or info.arch}_x{problem.scale}_{datetime.now():%Y%m%d_%H%M%S}"
    out = Path(options.out or Path("results") / name)
    keep_out_of(out, info.path, *paths)
    if card and options.keep_range:
        raise UserError(f"--keep-range was given, and the card {card.name} says how values are scaled; leave one of them out.")
    recorded = {"arch": info.arch, "checkpoint": str(info.path), "epoch": info.epoch, "iteration": info.iteration,
                "trained_scales": list(info.scales) if info.scales else None, "trained_degradation": info.degradation,
                "command": facts["Command"], "device": facts["Computed on"]}
    outputs = Outputs(options.cubes, options.figures, options.report, options.error_band, tuple(options.pixels or ()), facts)
    images = evaluation.read_images(paths, reading_of(options), card)
    results = evaluation.run(net, images, problem, out, outputs, recorded, not options.quiet, options.force)
    if not options.quiet:
        methods = {"interpolation": "interpolation", "network": info.arch}
        print(format_table(results["images"], methods, problem.preset, problem.scale, problem.border))
    print(f"results in {shown(out)}/")


def apply(net: torch.nn.Module, options: argparse.Namespace, problem: Problem, facts: dict[str, Any]) -> None:
    target = Path(options.output)
    folder = Path(options.out or f"{target.with_suffix('')}_report") if options.out or options.report else None
    if folder:
        refuse_existing(folder, options.force)
        refuse_foreign(folder, REPORT_MARKS)
        keep_out_of(folder, options.resumePath, options.input, options.output)
    writing = inference.Writing(options.dtype, options.on_overflow, options.unit_range, options.force)
    done = inference.apply_to_file(net, Path(options.input), target, problem, reading_of(options), writing,
                                   not options.quiet)
    summary, agreement = done.summary, done.summary["consistency"]
    words = (f"degraded again it agrees with the input to {agreement_of(agreement['network'])} "
             f"(the interpolation: {agreement_of(agreement['interpolation'])})")
    if summary["clipped_values"]:
        print(f"note: {summary['clipped_values']} values of the result did not fit {summary['dtype']} and were clipped; "
              "--dtype float32 keeps them", file=sys.stderr)
    print(f"{shown(target)}: {' x '.join(map(str, summary['shape']))} {summary['dtype']}; {words}")
    if folder:
        with replacing(folder, options.force, marks=REPORT_MARKS) as partial:
            partial.mkdir()
            write_json(partial / "summary.json", {**summary, "command": facts["Command"], "arch": facts["Network"],
                                                  "checkpoint": facts["Checkpoint"]})
            no_truth_figure(partial / "figure.png", done.low, done.interpolation, done.network, done.scene.wavelengths,
                            name=target.name, scale=problem.scale,
                            note=f"degraded again: {agreement_of(agreement['network'])}")
            write_report(partial / "report.html", f"{target.name}: {facts['Network']}, x{problem.scale}",
                         {**facts, "Input": summary["read_as"]},
                         figures=[("input, interpolation and network (the middle of the scene)", partial / "figure.png")],
                         scale=problem.scale, lead=f"{words[0].upper()}{words[1:]}.")
        print(f"report in {shown(folder)}/")


def keep_out_of(folder: Path, *paths: str | Path) -> None:
    """Refuse a folder of results that holds what is read or written besides: it is replaced as a whole."""
    for path in paths:
        if Path(path).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} lies in {folder}, which would be replaced as a whole; choose another --out.")


def agreement_of(row: dict[str, float | None]) -> str:
    return f"{row['psnr']:.1f} dB PSNR" + ("" if row["sam"] is None else f", {row['sam']:.2f} deg SAM")


def state_problem(options: argparse.Namespace, info: CheckpointInfo) -> Problem:
    """Scale and degradation: what is asked for, else what the checkpoint was trained for; a difference is said."""
    scale = options.scale or (info.scales[0] if info.scales else None)
    if scale is None:
        raise UserError(f"{info.path} does not say for which scale factor it was trained; give it with --scale.")
    kind = options.degradation or info.degradation or "reference"
    try:
        check(scale, kind)
    except ValueError as error:
        raise UserError(f"{info.path} cannot be used at scale factor {scale} and degradation {kind} ({error}); give others "
                        "with --scale and --degradation.") from error
    for what, asked, trained in (("scale factor", scale, info.scales),
                                 ("degradation", kind, (info.degradation,) if info.degradation else None)):
        if trained is None and what == "degradation":
            print(f"note: {info.path} does not say its {what}; {asked} is taken", file=sys.stderr)
        elif trained is not None and asked not in trained:
            print(f"note: {info.path} was trained for {what} {', '.join(map(str, trained))}, and {asked} is asked for: "
                  "expect less of it", file=sys.stderr)
        elif len(trained or ()) > 1 and not options.scale:
            print(f"note: {info.path} was trained for scale factors {', '.join(map(str, trained))}; {asked} is taken, "
                  "--scale chooses another", file=sys.stderr)
    return Problem(scale, kind, options.tile, options.amp, options.self_ensemble, options.bandwise, options.preset,
                   options.border)


def find_scenes(options: argparse.Namespace) -> tuple[Card | None, list[Path]]:
    """The card, if there is one, and the scene files."""
    data, name = options.data, options.dataset
    if data and len(data) == 1 and not name and not Path(data[0]).exists() and data[0] in list_cards():
        data, name = None, data[0]
    if data and not name:
        return None, list_scenes(data)
    card = load_card(name or "sample")
    files, notes = split(card, list_scenes(data or [locate(card, "test")]), "test")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return card, files


def reading_of(options: argparse.Namespace) -> Reading:
    return Reading(options.key, options.layout, tuple(options.size) if options.size else None, options.bands,
                   options.drop_bands, options.drop_bad_bands, options.fill_nodata, options.keep_range, options.nodata)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    add = parser.add_argument_group("network").add_argument
    add("-rp", "--resumePath", metavar="CKPT", help="the checkpoint; required")
    add("-a", "--arch", metavar="NAME", help="the network (default: the checkpoint's)")
    add("--long-skip", dest="options", action="store_const", const={"long_skip": True},
        help="alternating networks add their input twice, as the released ones do")
    add = parser.add_argument_group("test against ground truth").add_argument
    add("--data", nargs="+", metavar="PATH", help="ground-truth scenes: files and folders (default: the card's)")
    add("--dataset", metavar="CARD", help="dataset card that says which part of a scene tests: a name in data/, or a .toml "
        "(default without --data: sample)")
    add("--out", metavar="DIR", help="results folder, a new one (default: results/NETWORK_SCALE_TIME)")
    add("-p", "--prefix", metavar="NAME", help="stands for NETWORK in the name of the default results folder")
    add("--preset", choices=PRESETS, default="standard", help="how the indexes are computed (default: %(default)s)")
    add("--border", type=int, default=0, metavar="PX", help="pixels left out of the indexes on each side (default: 0)")
    add("--error-band", type=int, metavar="BAND", help="draw absolute error maps at this band, from 0")
    add("--pixels", type=_pixel, nargs="+", metavar="ROW,COLUMN", help="pixels whose spectra are drawn, in a figure of their "
        "own too (default: two chosen from the ground truth)")
    add("--report", action="store_true", help="write one self-contained HTML page too")
    add("--no-cubes", dest="cubes", action="store_false", help="do not write the super-resolved cubes")
    add("--no-figures", dest="figures", action="store_false", help="draw nothing")
    add = parser.add_argument_group("super-resolve a cube without ground truth").add_argument
    add("--input", metavar="FILE", help="low-resolution cube: .mat, HDF5, .npy, ENVI, GeoTIFF or JPEG 2000")
    add("--output", metavar="FILE", help="the result; its suffix chooses the format")
    add("--dtype", metavar="TYPE", help="of the result, e.g. float32 (default: the input's)")
    add("--on-overflow", choices=("clip", "refuse"), default="clip",
        help="what happens to values that an integer type cannot hold (default: %(default)s, and say how many)")
    add("--unit-range", action="store_true", help="write the result in [0, 1] as float32, not in the input's values")
    add = parser.add_argument_group("problem (default: what the checkpoint was trained for)").add_argument
    add("--scale", type=int, choices=SCALES, help="scale factor")
    add("--degradation", choices=KINDS, metavar="KIND", help=f"how low resolution is made: {', '.join(KINDS)}")
    add = parser.add_argument_group("reading scenes").add_argument
    add("--key", help="name of the cube in its file, when it holds several")
    add("--layout", choices=LAYOUTS, metavar="AXES", help=f"of the cube as stored: {', '.join(LAYOUTS)}")
    add("--size", type=int, nargs=2, metavar=("ROWS", "COLUMNS"), help="of the image, for bands x pixels without one")
    add("--bands", metavar="LIST", help="bands to take, from 0, e.g. 0-49,60")
    add("--drop-bands", metavar="LIST", help="bands to leave out")
    add("--drop-bad-bands", action="store_true", help="leave out constant, NaN and dead bands")
    add("--nodata", type=float, metavar="VALUE", help="of pixels without data, where the file does not say it")
    add("--fill-nodata", action="store_true", help="fill NaN and no-data pixels from their neighbours")
    add("--keep-range", action="store_true", help="values are in [0, 1] already: do not scale by minimum and maximum")
    add = parser.add_argument_group("computing").add_argument
    add("--tile", type=_tile, default="auto", metavar="PX|auto",
        help="side of a tile in pixels of the result; 0 is the whole scene at once, auto what memory allows. The result is "
        "the same (default: auto)")
    add("--self-ensemble", action="store_true", help="average over the 8 rotations and flips: 8 times the work")
    add("--bandwise", action="store_true", help="give the network one band at a time: what it does without a spectrum")
    add("--use-2dconv", action="store_true", help="for networks that take bands as channels; none here does: refused")
    add("--no-cuda", dest="cuda", action="store_false", help="the processor, although there is a GPU")
    add("--gpu-ids", type=whole_numbers, metavar="ID", help="the GPU, -1 for none (default: 0, if there is one)")
    add("--threads", type=int, metavar="N", help="of the processor (default: all)")
    add("--pooling", choices=("auto", *BACKENDS), default="auto", help="backend of the recurrence (default: auto)")
    add("--amp", choices=AMP, default="off", help="mixed precision (default: off)")
    add("--tf32", action="store_true", help="a GPU may round the factors of convolutions to 10 bits of mantissa: faster, "
        "relative error near 1e-3")
    add("--force", action="store_true", help="replace outputs that exist")
    add("--quiet", action="store_true", help="print only where the results are, and errors")
    add = parser.add_argument_group("said by the released scripts, and of no meaning here").add_argument
    for flags in ("-r --resume", "--test", "--no-log"):
        add(*flags.split(), action="store_true", help="without effect")
    for flags in ("-b --batchSize", "-n --nEpochs", "--lr", "-mlr --min-lr", "--ri", "--wd", "--seed"):
        add(*flags.split(), metavar="X", help="without effect")
    options = parser.parse_args(arguments)
    if not options.resumePath:
        raise UserError("No checkpoint was given, and one is needed; name it with -rp runs/NAME/best.pth (hsi_sr.py prints "
                        "the command when it ends).")
    if bool(options.input) != bool(options.output):
        raise UserError("--input and --output go together; give both.")
    if options.input and (options.data or options.dataset):
        raise UserError("--input super-resolves a cube without ground truth and --data tests against it; give one of them.")
    for name in ("bandwise", "pixels"):
        if options.input and getattr(options, name):
            raise UserError(f"--{name} is for tests against ground truth; leave it out with --input.")
    if options.use_2dconv:
        raise UserError("--use-2dconv is for networks that take bands as channels, and none here does; leave it out.")
    if options.error_band is not None and options.error_band < 0:
        raise UserError(f"--error-band is {options.error_band}, and a band counted from 0 was expected.")
    for name, unit in (("border", "pixels"), ("threads", "threads")):
        if (getattr(options, name) or 0) < 0:
            raise UserError(f"--{name} is {getattr(options, name)}, and 0 or more {unit} were expected.")
    if options.gpu_ids is not None:
        options.gpu_ids = tuple(i for i in options.gpu_ids if i >= 0)
    return options


def _tile(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pixels nor auto")
    return int(text)


def _pixel(text: str) -> tuple[int, int]:
    row, comma, column = text.partition(",")
    if not (comma and row.isdecimal() and column.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not ROW,COLUMN, such as 20,35")
    return int(row), int(column)


if __name__ == "__main__":
    run_script(main)
