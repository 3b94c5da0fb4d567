"""Cut scenes into patches and store them in an LMDB folder for training.

    python utility/lmdb_data.py                            the sample scenes (rendered if not there)
    python utility/lmdb_data.py --dataset rendered --scenes 600
            rendered now, where scenes are missing
    python utility/lmdb_data.py --dataset icvl --source DIR        a dataset card, its scenes in DIR
    python utility/lmdb_data.py --dataset pavia_center --source Pavia.mat
            a test cube is written beside, too
    python utility/lmdb_data.py --source a.mat b.hdr --patch 64 --stride 32 --out
    data/lmdb/mine.lmdb
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from utility.names import STORED  # noqa: E402
from utility.options.shared import add_reading, whole  # noqa: E402
from utility.system.errors import Arguments, UserError, run_script  # noqa: E402
from utility.system.files import default_path, shown  # noqa: E402
from utility.system.progress import duration, note, quiet, say, warn  # noqa: E402

if TYPE_CHECKING:
    from utility.datasets.cards import Card

MB = 1_000_000
STEPS, WINDOW = 1000, 16
"""Of the training that is advised: steps, and neighbouring bands of a patch of many."""


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(__doc__, plain="--source")
    group = parser.add_argument_group("what to read")
    group.add_argument("--dataset", metavar="NAME",
                       help="dataset card: a name in data/, or a .toml (default: sample)")
    group.add_argument("--source", nargs="+", metavar="PATH",
                       help="scene files or folders (default: the card's place)")
    group.add_argument("--scenes", type=whole(1), default=100, metavar="N",
                       help="how many scenes a rendered dataset has (default: %(default)s)")
    group.add_argument("--scenes-limit", type=whole(1), metavar="N",
                       help="the first N scenes only")
    add_reading(group.add_argument)
    group.add_argument("--skip-bad", action="store_true",
                       help="leave out scenes that cannot be used, and end well (default: of "
                       "several scenes the others are taken, and the end is an error)")
    group = parser.add_argument_group(
        "how to cut (default: as the card says; without a card, 64x64 side by side)")
    group.add_argument("--patch", type=whole(1), metavar="PX", help="side of a patch")
    group.add_argument("--stride", type=whole(1), nargs="+", metavar="PX",
                       help="step between patches, for each zoom")
    group.add_argument("--zooms", type=_zoom, nargs="+", metavar="Z",
                       help="spatial scales, above 0 and up to 1")
    group.add_argument(
        "--augment", type=whole(1, 8), default=1, metavar="K",
        help="store K rotations and flips of each patch (default: 1; training augments on the fly)")
    group.add_argument("--seed", type=whole(0), default=2021,
                       help="draws these, and rendered scenes (default: %(default)s)")
    held = group.add_mutually_exclusive_group()
    held.add_argument("--val-scenes", nargs="+", default=[], metavar="NAME",
                      help="scenes held out for validation")
    held.add_argument("--val-last", type=whole(0), metavar="N",
                      help="the last N patches are for validation, 1000 as released (default: the "
                      "card's scenes or region for validation; without these the last of five or "
                      "more scenes, a tenth of them, or a corner of the last one: what validates "
                      "shares no pixel with what trains)")
    group = parser.add_argument_group("what to write")
    group.add_argument("--out", metavar="DB", help="LMDB folder (default: data/lmdb/NAME.lmdb)")
    group.add_argument("--test-out", metavar="DIR",
                       help="folder for a card's test cubes (default: data/test/NAME)")
    group.add_argument("--dtype", choices=STORED, default="float32",
                       help="type of the stored values (default: %(default)s)")
    group.add_argument("--force", action="store_true",
                       help="replace the database and test cubes if they exist")
    group.add_argument("--map-size-mb", type=whole(1), default=1024, metavar="MB",
                       help="LMDB's map to begin with; it grows (default: %(default)s)")
    group.add_argument("--quiet", action="store_true", help="print warnings and errors alone")
    return parser


def _zoom(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0 and up to 1")
    return value


def _card(options: argparse.Namespace) -> Card:
    """The card, with what the options change."""
    from utility.datasets.cards import generic_card, load_card

    if options.dataset or not options.source:
        card = load_card(options.dataset or "sample")
    else:
        card = generic_card(options.patch or 64)
    zooms = tuple(options.zooms or card.zooms)
    strides = tuple(options.stride or card.strides)
    if len(strides) == 1:
        strides *= len(zooms)
    if len(strides) != len(zooms):
        raise UserError(f"--stride has {len(strides)} values for {len(zooms)} zooms; give one, or "
                        "one for each zoom.")
    return replace(card, patch=options.patch or card.patch, strides=strides, zooms=zooms,
                   key=options.key or card.key,
                   layout=options.layout or ("pixels" if options.size else card.layout),
                   size=tuple(options.size) if options.size else card.size)


def _sources(options: argparse.Namespace, card: Card) -> list[Path]:
    if options.source:
        return [Path(source) for source in options.source]
    source = Path(card.source)
    if source.is_relative_to("data/rendered"):
        from data.rendering import render_scenes

        return render_scenes(default_path(source), source.name, bands=card.bands,
                             count=options.scenes, seed=options.seed)
    if source.is_relative_to("data/sample") and not default_path("data/sample").exists():
        from data.make_samples import make_samples

        say("rendering the sample scenes into data/sample ...")
        make_samples(default_path("data/sample"))
    from utility.datasets.cards import locate

    return [locate(card, "training")]


def _held_out(options: argparse.Namespace, card: Card,
              files: Sequence[Path]) -> tuple[Card, list[str]]:
    """The card, and the names of the validation scenes: from the options, else from the card."""
    if options.val_scenes or options.val_last is not None:
        return replace(card, validation_region=None), options.val_scenes
    stems = [file.stem for file in files]
    found = [name for name in card.validation_scenes if name in stems]
    if not card.validation_scenes or len(stems) < 2 or len(found) == len(stems):
        return card, []
    return card, found or stems[-1:]  # whole scenes, also where those of the card are not there


def main(arguments: Sequence[str] | None = None) -> int | None:
    options = _parser().parse_args(arguments)
    with quiet(options.quiet):
        return build(options)


def build(options: argparse.Namespace) -> int | None:
    from utility.datasets.building import build_database
    from utility.datasets.cards import split
    from utility.scenes import list_scenes

    card = _card(options)
    out = Path(options.out or default_path(f"data/lmdb/{card.name}.lmdb"))
    files, notes = split(card, list_scenes(_sources(options, card)), "training")
    for text in notes:
        note(text)
    files = files[:options.scenes_limit]
    card, val_scenes = _held_out(options, card, files)
    test_out = Path(options.test_out or default_path(f"data/test/{card.name}"))
    failed: list[str] = []
    meta = build_database(out, files, card, dtype=options.dtype, augment=options.augment,
                          seed=options.seed, val_scenes=val_scenes, val_last=options.val_last,
                          drop_bad_bands=options.drop_bad_bands, fill_nodata=options.fill_nodata,
                          skip_bad=options.skip_bad, force=options.force, nodata=options.nodata,
                          map_size_mb=options.map_size_mb, test_out=test_out, failed=failed)
    for text in failed:
        warn(text, "failed")
    if options.quiet:  # the next line costs two steps of training
        return 1 if failed else None
    size = sum(file.stat().st_size for file in out.iterdir()) / MB
    shape, scenes = ("x".join(map(str, meta["shape"])),
                     len({source["file"] for source in meta["sources"]}))
    say(f"{shown(out)}: {meta['count']} patches of {shape} {meta['dtype']} from {scenes} "
        f"scene{'s' * (scenes != 1)}, {size:.1f} MB; {meta['count'] - meta['validation']} for "
        f"training, {meta['validation']} for validation")
    if meta["skipped"]:
        say(f"left out: {', '.join(meta['skipped'])}")
    if card.test_region:
        say(f"test cubes: {shown(test_out)}")
    for line in _what_is_next(out, meta["shape"][0]):
        say(line)
    return 1 if failed else None


def _what_is_next(out: Path, bands: int) -> list[str]:
    """A training that passes the untrained methods, and its time here, from two of its steps."""
    from utility.training.configuration import configure
    from utility.training.plan import prepare
    from utility.training.steps import seconds_per_step

    command = f"python hsi_sr.py -a biqrnn_16_5 --recipe fast --iterations {STEPS}"
    given: dict[str, Any] = {"recipe": "fast", "iterations": STEPS, "data": str(out)}
    if bands > 2 * WINDOW:
        command, given["band_window"] = f"{command} --band-window {WINDOW}", WINDOW
    if out != default_path("data/lmdb/sample.lmdb"):
        command = f"{command} --data {shown(out)}"
    try:
        seconds = seconds_per_step(prepare(configure(given)), 1)
    except UserError as error:
        return [f"note: a training on it would be refused: {error}"]
    return [f"next: {command}",
            f"      about {duration(STEPS * seconds)} here; the published recipe, without --recipe "
            "and the rest, needs thousands of steps"]


if __name__ == "__main__":
    run_script(main)
