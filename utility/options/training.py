"""The options of hsi_sr.py, as the fields of a training's configuration."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from utility.datasets.augment import MODES
from utility.names import DEFAULT_KIND, DEGRADATIONS, LOSSES, PRECISIONS, STARTS, with_mtf
from utility.options.shared import Add, add_computing, gpus, whole_numbers
from utility.system.errors import Arguments, UserError
from utility.training.recipes import RECIPES


def parse(arguments: Sequence[str] | None = None, description: str = "") -> dict[str, Any]:
    """The fields of `training.TrainingConfig` that were given; others keep their default, or their
    resumed value.

    Beside them `dry_run`, `quiet`, and `insisted` where bf16 was asked for twice.
    """
    parser = Arguments(description, plain="--data", argument_default=argparse.SUPPRESS)
    for title, add_options in GROUPS.items():
        add_options(parser.add_argument_group(title).add_argument)
    given = vars(parser.parse_args(arguments))
    if "mtf" in given:
        given["degradation"] = with_mtf(given.get("degradation"), given.pop("mtf"))
    path, resume = given.pop("resumePath", None), given.pop("resume", False)
    if "init" in given:
        from utility.weights import named

        given["init"] = named(given["init"])
    if path and not resume:
        raise UserError(f"-rp {path} was given without -r; give both to go on with that run, or "
                        "--init to take its weights.")
    if resume and not path:
        from utility.training.runs import newest_checkpoint

        path = str(newest_checkpoint(given.get("run_dir")))
    if precisions := given.pop("amp", None):
        given |= (
            {"amp": precisions[-1]} | ({"insisted": True} if precisions.count("bf16") > 1 else {}))
    if "gpu_ids" in given:
        given["gpu_ids"] = gpus(given["gpu_ids"])
    return given | ({"resume": path} if resume else {})


def _network(add: Add) -> None:
    add("-a", "--arch", metavar="NAME",
        help="such as biqrnn_16_5, lowgrid_32_8, vdsr; a name that is not known is answered with "
        "all that are (default: biqrnn_16_5, or the checkpoint's)")
    add("--long-skip", dest="options", action="store_const", const={"long_skip": True},
        help="alternating networks add their input twice, as released")
    add("--scale", dest="scales", type=whole_numbers, metavar="S[,S...]",
        help="factors 2, 3, 4, 8; several are trained together (default: 4, or the checkpoint's)")
    add("--scale-order", choices=("turn", "random"),
        help="how several scales alternate (default: turn)")
    add("--degradation", metavar="KIND",
        help=f"{', '.join(DEGRADATIONS)}; mtf draws a sensor's MTF for each patch, and with --mtf "
        f"takes one (default: {DEFAULT_KIND}, or the checkpoint's)")
    add("--mtf", metavar="M[,M]",
        help="of the sensor at the Nyquist frequency of the low-resolution grid, rows and columns, "
        "with --degradation mtf")
    add("--unknown", type=float, metavar="SHARE",
        help="with drawn MTFs: of the patches whose MTF the network is not told (default: 0)")
    add("--snr", type=float, metavar="DB",
        help="with drawn MTFs: patches have noise, of at least this signal-to-noise ratio; of half "
        "of them it is small, and the network is not told (default: none has)")
    add("--shade", type=float, metavar="SHARE",
        help="of the patches that have a part in deep shade (default: 0)")
    add("--start", choices=STARTS,
        help="the image that the network gets and adds its residual to (default: the checkpoint's; "
        "else interpolation for the released recipe, backprojection for others)")
    add("--noise", type=float, metavar="SIGMA",
        help="standard deviation of white noise on the low-resolution cube, whose values are in "
        "[0, 1] (default: 0, or the checkpoint's)")


def _start(add: Add) -> None:
    add("-r", "--resume", action="store_true",
        help="go on with a run: all as it was, but for what is given")
    add("-rp", "--resumePath", metavar="CKPT",
        help="the checkpoint to go on from (default: last.pth of the newest run)")
    add("--init", metavar="CKPT",
        help="take its weights alone, or shipped ones by name (lowgrid_x4); optimizer and schedule "
        "start anew")
    add("--freeze", nargs="+", metavar="PART",
        help="parts of the network that keep their weights, such as encoder")


def _data(add: Add) -> None:
    add("--data", nargs="+", metavar="DB",
        help="LMDB folders; each batch is of one of them (default: data/lmdb/sample.lmdb)")
    add("--weights", nargs="+", type=float, metavar="W",
        help="share of the steps that each gets (default: by its patches)")
    add("--augment", choices=MODES,
        help="on the fly; spatial: 8 rotations and flips, spectral: band reversal besides, "
        "reference: the released ones (default: spatial)")
    add("--crop", type=int, metavar="PX",
        help="the network sees a random square of each batch's patches; start image and statistics "
        "by band are those of the whole patches; smaller patches are seen whole "
        "(default: the whole patches)")
    add("--band-window", type=int, metavar="N",
        help="each patch is a random run of N neighbouring bands (default: all bands)")
    add("--band-spacing", type=int, metavar="K",
        help="of a run, the bands lie 1 to K apart, drawn for each patch (default: 1)")
    add("--val-batches", type=int, metavar="N", help="validate on N batches at most (default: all)")
    add("--threads", type=int, metavar="N",
        help="loader processes (default: 0 on a CPU, up to 4 with a GPU)")


def _recipe(add: Add) -> None:
    add("--recipe", choices=RECIPES,
        help="released: PyTorch's weights, lr lowered on a plateau; fast: weights that start as "
        "the start image, warm-up, then a cosine to zero; finetune: the same rate, counted in "
        "steps, ends when the validation becomes no better (default: released, with --init "
        "finetune)")
    add("-b", "--batchSize", dest="batch", type=int, metavar="N",
        help=f"patches a step, of all processes together (default: {_of('batch')})")
    add("--accumulate", type=int, metavar="N",
        help="compute a step in N pieces: less memory, the same step (default: 1)")
    add("-n", "--nEpochs", dest="epochs", type=int, metavar="N",
        help=f"passes over the data (default: {_of('epochs')})")
    add("--iterations", type=int, metavar="N",
        help=f"steps, instead of -n (default: {_of('iterations')})")
    add("--minutes", type=float, metavar="M",
        help="end after this time at the latest (default: none)")
    add("--patience", type=int, metavar="N",
        help="end after N epochs without a better validation; 0: never (default: "
        f"{_of('patience')})")
    add("--lr", type=float, help=f"Adam's step (default: {_of('lr')})")
    add("-mlr", "--min-lr", type=float, metavar="LR", help=f"its lowest (default: {_of('min_lr')})")
    add("--warmup", type=int, metavar="N", help=f"steps of warm-up (default: {_of('warmup')})")
    add("--wd", type=float, help="weight decay (default: 0)")
    add("--last-lr", type=float, metavar="SHARE",
        help=f"of --lr, for the last layer (default: {_of('last_lr')})")
    add("--clip", type=float, metavar="NORM", help="largest norm of the gradient (default: any)")
    add("--loss", choices=LOSSES, help="(default: mse)")
    add("--seed", type=int, help="of weights, order and augmentation (default: 2021)")


def _computing(add: Add) -> None:
    add_computing(add, several="share each step", precisions=PRECISIONS,
                  precision="; fp16 scales its loss and needs a GPU (default: off)")
    add("--compile", action="store_true", help="torch.compile the network of the training step")
    add("--checkpoint-activations", action="store_true",
        help="compute activations again in the backward pass: less memory, a slower step")


def _run(add: Add) -> None:
    add("-p", "--prefix", metavar="NAME",
        help="names it: runs/NAME_TIME (default: the network's name)")
    add("--run-dir", metavar="DIR", help="the folder itself (a resumed run goes on in its own)")
    add("--ri", dest="record_interval", type=int, metavar="N",
        help="keep a checkpoint every N epochs (default: 5)")
    add("--save-minutes", type=float, metavar="M",
        help="save last.pth inside an epoch, this often (default: 10)")
    add("--no-log", dest="tensorboard", action="store_false", help="no TensorBoard events")
    add("--quiet", action="store_true",
        help="print warnings and errors alone; the rest is in log.txt")
    add("--dry-run", action="store_true",
        help="print the resolved configuration, data sizes, length, time (from two steps); write "
        "nothing")


def _of(field: str) -> str:
    values = (RECIPES[name][field] for name in RECIPES)
    return ", ".join("-" if value is None else value if isinstance(value, str) else f"{value:g}"
                     for value in values)


GROUPS = {"network and problem": _network, "start": _start, "data": _data,
          f"recipe (defaults: {', '.join(RECIPES)})": _recipe, "computing": _computing,
          "run folder": _run}
"""The options as --help shows them."""
