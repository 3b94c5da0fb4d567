"""The options of hsi_test.py."""
from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from utility import weights
from utility.names import (
    ANY,
    DEGRADATIONS,
    METHODS,
    PRECISIONS,
    PRESETS,
    SAFE_MTF,
    SCALES,
    with_mtf,
)
from utility.options.shared import Add, add_computing, add_reading, gpus
from utility.system.errors import Arguments, UserError
from utility.system.files import refuse_existing


def parse(arguments: Sequence[str] | None = None, description: str = "") -> argparse.Namespace:
    """What was asked for. Raises UserError: options contradict each other, or one has no effect."""
    parser = Arguments(description, plain="--input")
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
        help="draw absolute error maps at this band, from 0 (default: the middle one, with "
        "--report)")
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
        help="the result; its suffix chooses the format. Or a folder, such as results/, in which "
        "a result is called NAME_x4 and has the format of its cube")
    add("--adapt", metavar="FILE",
        help="instead of --input: fine-tune the weights on this cube, test them on a part held "
        "out, and take what did best there; DIR of --out (default: OUTPUT_adapted) gets the test, "
        "a report and the weights")
    add("--minutes", type=float, default=10.0, metavar="M",
        help="of --adapt, for training, test and result as estimated before the training (default: "
        "%(default)g)")
    add("--dtype", metavar="TYPE",
        help="of the result, e.g. float32 (default: the input's); an integer type is refused where "
        "its steps of 1 are coarse for the values, as for reflectance in [0, 1]")
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
    add_reading(add)
    add("--bands", metavar="LIST", help="bands to take, from 0, e.g. 0-49,60")
    add("--drop-bands", metavar="LIST", help="bands to leave out")
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
             "--input (or --adapt) and --output go together; give both, such as --output "
             + ("results/." if several else "high_x4.tif.")),
            (options.input and tested,
             "--input super-resolves a cube without ground truth and --data tests against it; "
             "give one of them."),
            (options.use_2dconv,
             "--use-2dconv is for networks that take bands as channels, and none here does; leave "
             "it out.")):
        if refused:
            raise UserError(sentence)


def refuse_places(options: argparse.Namespace) -> None:
    """Raise UserError, before any library is loaded, for a cube that is not there or a result that
    is there."""
    sources = [*(options.input or ()), *filter(None, (options.adapt, options.info))]
    for source in map(Path, sources):
        if not source.exists():
            raise UserError(f"{source} does not exist; give the path of a scene or of a folder.")
    if (options.input and len(sources) == 1 and Path(sources[0]).is_file()
            and Path(options.output).is_file()):
        refuse_existing(Path(options.output), options.force)


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


IN_TESTS = ("--bandwise", "--pixels", "--noise", "--compare", "--border", "--preset",
            "--error-band", "--seed", "--prefix", "--latex", "--no-cubes", "--no-figures")
OF_RESULTS = ("--dtype", "--on-overflow", "--unit-range", "--cog", "--ortho")
NOT_OF_INFO = (*IN_TESTS, *OF_RESULTS, "--data", "--dataset", "--input", "--out", "--method",
               "--bands", "--drop-bands", "--drop-bad-bands", "--fill-nodata", "--keep-range")


def _refuse_without_effect(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raise UserError for an option that changes nothing in what is asked for."""
    def given(flag: str) -> bool:
        name = flag.removeprefix("--no-").strip("-").replace("-", "_")
        return (getattr(options, name) or None) != (parser.get_default(name) or None)

    def refuse(flags: Sequence[str], words: str) -> None:
        if useless := ", ".join(filter(given, flags)):
            raise UserError(f"{useless} {words}.")

    if options.info:
        refuse(NOT_OF_INFO, "changes nothing in what --info says of the file; leave it out")
    elif options.output:
        allowed = ("--border", "--preset") if options.adapt else ()
        refuse([flag for flag in IN_TESTS if flag not in allowed],
               "is for tests against ground truth; leave it out with --output")
    else:
        refuse(OF_RESULTS, "is for the result of --input or --adapt; leave it out without --output")
    if not options.adapt:
        refuse(("--minutes",), "is for --adapt; leave it out")


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
