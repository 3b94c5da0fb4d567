"""Cut scenes into patches and store them in an LMDB folder for training.

    python utility/lmdb_data.py                                              the sample scenes (rendered if not there)
    python utility/lmdb_data.py --dataset rendered --scenes 600              rendered now, where scenes are missing
    python utility/lmdb_data.py --dataset icvl --source DIR                  a dataset card, its scenes in DIR
    python utility/lmdb_data.py --dataset pavia_center --source Pavia.mat    a test cube is written beside, too
    python utility/lmdb_data.py --source a.mat b.hdr --patch 64 --stride 32 --out data/lmdb/mine.lmdb
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from utility.cubes.axes import LAYOUTS  # noqa: E402
from utility.cubes.cube import Scene  # noqa: E402
from utility.datasets.cards import CARD_FOLDER, Card, generic_card, list_scenes, load_card, locate, split  # noqa: E402
from utility.datasets.patches import bake, extract_patches  # noqa: E402
from utility.datasets.regions import Part, divide  # noqa: E402
from utility.lmdb_dataset import DTYPES, DatabaseWriter, writing_database  # noqa: E402
from utility.reading import Reading, open_as  # noqa: E402
from utility.scenes import first_line, write_scene  # noqa: E402
from utility.system.errors import Arguments, UserError, run_script  # noqa: E402
from utility.system.files import default_path, refuse_existing, replacing, shown, write_failure  # noqa: E402
from utility.system.progress import Bar, duration, heeds_quiet, note, say, track, warn  # noqa: E402
from utility.training.configuration import configure  # noqa: E402
from utility.training.loop import seconds_per_step  # noqa: E402
from utility.training.plan import prepare  # noqa: E402

MB = 1_000_000
STEPS, WINDOW = 1000, 16
"""Of the training that is advised: steps, and neighbouring bands of a patch of many."""


def build_database(out: str | Path, sources: Sequence[str | Path], card: Card, *, dtype: str = "float32", augment: int = 1,
                   seed: int = 2021, val_scenes: Sequence[str] = (), val_last: int | None = None,
                   drop_bad_bands: bool = False, fill_nodata: bool = False, skip_bad: bool = False, force: bool = False,
                   map_size_mb: int = 1024, test_out: str | Path | None = None, quiet: bool = False) -> dict[str, Any]:
    """Cut `sources` as `card` says into the LMDB folder `out`, which appears when it is whole; returns its meta.

    Args:
        out: the folder to make.
        sources: scene files, or folders of them, in the order of writing; validation scenes come last.
        dtype: of the stored values, "float32" or "float16".
        augment: how many rotations and flips of each patch are stored, 1 (the patch itself) to 8.
        seed: draws these variants.
        val_scenes: names (stems) of the scenes held out for validation. Without any, the card's `validation_region` is held
            out; without that, the last `val_last` patches are, by default the last 1,000 or a tenth, whichever is less.
        drop_bad_bands, fill_nodata: mend scenes that need it instead of refusing them.
        skip_bad: leave out, and name, the scenes that cannot be used instead of stopping.
        force: replace `out` and the test cubes, if they exist; never a folder that is not an LMDB database.
        map_size_mb: LMDB's map to begin with; it doubles when it is full.
        test_out: folder for the test cubes of a card with a `test_region`; None writes none.
        quiet: no progress bar, and nothing said about what is skipped.

    Raises:
        UserError: a scene cannot be used, scenes differ in their bands, `out` exists, the disk is full; each by name.
    """
    files = _ordered(list_scenes(sources), val_scenes)
    test_out = Path(test_out) if test_out is not None and card.test_region else None
    if test_out:
        named: dict[str, Path] = {}
        for file in files:
            refuse_existing(test_out / f"{file.stem}_test.mat", force)
            if (other := named.setdefault(file.stem, file)) != file:
                raise UserError(f"{other} and {file} have the same name, and so would their test cubes in {test_out}; rename "
                                "one of them, or build two databases.")

    reading = Reading(drop_bad_bands=drop_bad_bands, fill_nodata=fill_nodata)
    cut = partial(_cut, card=card, augment=augment, seed=seed)
    written: list[dict[str, Any]] = []
    held: list[tuple[dict[str, Any], list[Part]]] = []
    skipped: list[str] = []
    tests: list[Scene] = []
    size: list[int] = []
    wavelengths: np.ndarray | None = None
    database = writing_database(out, dtype=dtype, force=force, map_size_mb=map_size_mb)
    with database as writer, ExitStack() as cubes:
        with closing(track(files, Path(out).stem, unit="scene", quiet=quiet)) as bar:
            for file in bar:
                try:
                    scene = open_as(file, reading, card)
                    found, source = divide(card, scene)
                    _check_bands(source, written, file)
                except UserError as error:
                    if not skip_bad:
                        raise
                    skipped.append(file.name)
                    if not quiet:
                        warn(str(error), "skipped")
                    continue
                if not quiet and source["size"] != size:  # said of the first of scenes of one size
                    size = source["size"]
                    say(f"{file} {first_line(scene)}")
                wavelengths = wavelengths if written else scene.wavelengths
                part = "validation" if file.stem in val_scenes else "training"
                written.append(source | {"part": part} | cut(found["training"], writer=writer, bar=bar))
                if found["validation"]:  # the last patches of a database are those of validation
                    held.append((source, found["validation"]))
                if test_out:
                    tests += [Scene(test.cube, test.name, layout="HWB", key="gt", normalised=True,
                                    wavelengths=scene.wavelengths,
                                    metadata={"origin": {"region": test.region, "sha256": source["sha256"]}})
                              for test in found["test"]]
                del scene, found  # before the next one is read
            for source, validation in held:
                written.append(source | {"part": "validation"} | cut(validation, writer=writer, bar=bar))
        if not written:
            raise UserError(f"None of the {len(files)} scenes could be used: {', '.join(skipped)}; see above.")
        meta = writer.finish(
            validation=sum(s["patches"] for s in written if s["part"] == "validation") if val_scenes or held else val_last,
            card=card.name if card.folder == CARD_FOLDER else str((card.folder / f"{card.name}.toml").resolve()),
            sources=written, skipped=skipped, patch=card.patch, strides=list(card.strides), zooms=list(card.zooms),
            augment=augment,
            wavelengths=None if wavelengths is None else [float(nm) for nm in wavelengths],
        )
        for test in tests:  # the test cubes take their names together, before the database takes its own: all, or none
            final = test_out / f"{test.name}.mat"
            _write_test(cubes.enter_context(replacing(final, force)), test, final)
    return meta


def _write_test(temporary: Path, test: Scene, final: Path) -> None:
    try:
        write_scene(temporary, test)
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise write_failure(final, error.__cause__) from error
        raise


def _check_bands(source: dict[str, Any], written: list[dict[str, Any]], file: Path) -> None:
    if written and source["bands"] != written[0]["bands"]:
        raise UserError(f"{file} has {source['bands']} bands and {written[0]['file']} has {written[0]['bands']}, and one "
                        "database holds patches of one size; build two databases.")


def _cut(found: Sequence[Part], card: Card, augment: int, seed: int, writer: DatabaseWriter, bar: Bar) -> dict:
    """Write the patches of some parts of a scene; returns the database's record of these parts."""
    begin = writer.count
    for part in found:
        for patches in extract_patches(part.cube, card.patch, card.strides, card.zooms):
            if augment > 1:
                patches = bake(patches, augment, seed, writer.count // augment)
            writer.write(patches)
            bar.set_postfix_str(f"{writer.count} patches, {writer.bytes / MB:.0f} MB", refresh=False)
            bar.update(0)
    return {"regions": [list(part.region) for part in found], "patches": writer.count - begin}


def _ordered(files: list[Path], val_scenes: Sequence[str]) -> list[Path]:
    """The files with validation scenes last, because the last patches of a database validate."""
    stems = [file.stem for file in files]
    unknown = [name for name in val_scenes if name not in stems]
    if unknown:
        raise UserError(f"No scene is called {', '.join(unknown)} (--val-scenes); the scenes are {', '.join(stems)}.")
    training = [file for file in files if file.stem not in val_scenes]
    if not training:
        raise UserError("Every scene is held out for validation (--val-scenes); leave at least one for training.")
    return training + [file for file in files if file.stem in val_scenes]


# --- the command line ------------------------------------------------------------------------------------------------

def _parser() -> argparse.ArgumentParser:
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                       allow_abbrev=False)
    group = parser.add_argument_group("what to read")
    group.add_argument("--dataset", metavar="NAME", help="dataset card: a name in data/, or a .toml (default: sample)")
    group.add_argument("--source", nargs="+", metavar="PATH", help="scene files or folders (default: the card's place)")
    group.add_argument("--scenes", type=_whole(1), default=100, metavar="N",
                       help="how many scenes a rendered dataset has (default: %(default)s)")
    group.add_argument("--scenes-limit", type=_whole(1), metavar="N", help="the first N scenes only")
    group.add_argument("--key", help="name of the cube in its file, when it holds several (default: the card's)")
    group.add_argument("--layout", choices=LAYOUTS, metavar="AXES", help=f"axes of the cube as stored: {', '.join(LAYOUTS)}")
    group.add_argument("--size", type=_whole(1), nargs=2, metavar=("ROWS", "COLUMNS"),
                       help="size of the image, for a bands x pixels cube that does not say it")
    group.add_argument("--drop-bad-bands", action="store_true", help="leave out constant, NaN and dead bands")
    group.add_argument("--fill-nodata", action="store_true", help="fill no-data pixels from their neighbours")
    group.add_argument("--skip-bad", action="store_true", help="leave out scenes that cannot be used")
    group = parser.add_argument_group("how to cut (default: as the card says; without a card, 64x64 side by side)")
    group.add_argument("--patch", type=_whole(1), metavar="PX", help="side of a patch")
    group.add_argument("--stride", type=_whole(1), nargs="+", metavar="PX", help="step between patches, for each zoom")
    group.add_argument("--zooms", type=_zoom, nargs="+", metavar="Z", help="spatial scales, above 0 and up to 1")
    group.add_argument("--augment", type=_whole(1, 8), default=1, metavar="K",
                       help="store K rotations and flips of each patch (default: 1; training augments on the fly)")
    group.add_argument("--seed", type=_whole(0), default=2021, help="draws these, and rendered scenes (default: %(default)s)")
    held = group.add_mutually_exclusive_group()
    held.add_argument("--val-scenes", nargs="+", default=[], metavar="NAME", help="scenes held out for validation")
    held.add_argument("--val-last", type=_whole(0), metavar="N",
                      help="the last N patches are for validation, 1000 as released (default: the card's scenes or region for "
                      "validation; without these a tenth of ten or more scenes, whole, or a tenth of the patches)")
    group = parser.add_argument_group("what to write")
    group.add_argument("--out", metavar="DB", help="LMDB folder (default: data/lmdb/NAME.lmdb)")
    group.add_argument("--test-out", metavar="DIR", help="folder for a card's test cubes (default: data/test/NAME)")
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the stored values (default: %(default)s)")
    group.add_argument("--force", action="store_true", help="replace the database and test cubes if they exist")
    group.add_argument("--map-size-mb", type=_whole(1), default=1024, metavar="MB",
                       help="LMDB's map to begin with; it grows (default: %(default)s)")
    group.add_argument("--quiet", action="store_true", help="print warnings and errors alone")
    return parser


def _whole(low: int, high: int | None = None):
    def number(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value} is not {f'from {low} to {high}' if high else f'at least {low}'}")
        return value

    return number


def _zoom(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0 and up to 1")
    return value


def _card(options: argparse.Namespace) -> Card:
    """The card, with what the options change."""
    if options.dataset or not options.source:
        card = load_card(options.dataset or "sample")
    else:
        card = generic_card(options.patch or 64)
    zooms = tuple(options.zooms or card.zooms)
    strides = tuple(options.stride or card.strides)
    if len(strides) == 1:
        strides *= len(zooms)
    if len(strides) != len(zooms):
        raise UserError(f"--stride has {len(strides)} values for {len(zooms)} zooms; give one, or one for each zoom.")
    return replace(card, patch=options.patch or card.patch, strides=strides, zooms=zooms, key=options.key or card.key,
                   layout=options.layout or ("pixels" if options.size else card.layout),
                   size=tuple(options.size) if options.size else card.size)


def _sources(options: argparse.Namespace, card: Card) -> list[Path]:
    if options.source:
        return [Path(source) for source in options.source]
    source = Path(card.source)
    if source.is_relative_to("data/rendered"):
        from data.rendering import render_scenes

        return render_scenes(default_path(source), source.name, bands=card.bands, count=options.scenes, seed=options.seed,
                             quiet=options.quiet)
    if source.is_relative_to("data/sample") and not default_path("data/sample").exists():
        from data.make_samples import make_samples

        if not options.quiet:
            print("rendering the sample scenes into data/sample ...", flush=True)
        make_samples(default_path("data/sample"))
    return [locate(card, "training")]


def _held_out(options: argparse.Namespace, card: Card, files: Sequence[Path]) -> tuple[Card, list[str]]:
    """The card, and the names of the validation scenes: from the options, else from the card."""
    if options.val_scenes or options.val_last is not None:
        return replace(card, validation_region=None), options.val_scenes
    stems = [file.stem for file in files]
    found = [name for name in card.validation_scenes if name in stems]
    if not card.validation_scenes and not card.validation_region and len(stems) >= 10:
        return card, stems[-(len(stems) // 10):]
    if not card.validation_scenes or len(stems) < 2 or len(found) == len(stems):
        return card, []
    return card, found or stems[-1:]  # whole scenes, also where those of the card are not there


@heeds_quiet
def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    card = _card(options)
    out = Path(options.out or default_path(f"data/lmdb/{card.name}.lmdb"))
    files, notes = split(card, list_scenes(_sources(options, card)), "training")
    for text in notes:
        note(text)
    files = files[:options.scenes_limit]
    card, val_scenes = _held_out(options, card, files)
    started = time.perf_counter()
    test_out = Path(options.test_out or default_path(f"data/test/{card.name}"))
    meta = build_database(
        out, files, card, dtype=options.dtype, augment=options.augment, seed=options.seed, val_scenes=val_scenes,
        val_last=options.val_last, drop_bad_bands=options.drop_bad_bands, fill_nodata=options.fill_nodata,
        skip_bad=options.skip_bad, force=options.force, map_size_mb=options.map_size_mb, test_out=test_out, quiet=options.quiet)
    if options.quiet:  # the next line costs two steps of training
        return
    size = sum(file.stat().st_size for file in out.iterdir()) / MB
    shape, scenes = "x".join(map(str, meta["shape"])), len({source["file"] for source in meta["sources"]})
    print(f"{shown(out)}: {meta['count']} patches of {shape} {meta['dtype']} from {scenes} scene{'s' * (scenes != 1)}, "
          f"{size:.1f} MB, in {time.perf_counter() - started:.1f} s; {meta['count'] - meta['validation']} for training, "
          f"{meta['validation']} for validation")
    if meta["skipped"]:
        print(f"left out: {', '.join(meta['skipped'])}")
    if card.test_region:
        print(f"test cubes: {shown(test_out)}")
    print(*_what_is_next(out, meta["shape"][0]), sep="\n")


def _what_is_next(out: Path, bands: int) -> list[str]:
    """A training that passes the untrained methods, and how long it takes here, from two of its steps."""
    command = f"python hsi_sr.py -a biqrnn_16_5 --recipe fast --iterations {STEPS}"
    given: dict[str, Any] = {"recipe": "fast", "iterations": STEPS, "data": str(out)}
    if bands > 2 * WINDOW:
        command, given["band_window"] = f"{command} --band-window {WINDOW}", WINDOW
    if out != default_path("data/lmdb/sample.lmdb"):
        command = f"{command} --data {shown(out)}"
    try:
        seconds = seconds_per_step(prepare(configure(given)), 1)
    except UserError as error:
        return [f"next: {command}", f"note: {error}"]
    return [f"next: {command}", f"      about {duration(STEPS * seconds)} here; the published recipe, without --recipe and the "
            "rest, needs thousands of steps"]


if __name__ == "__main__":
    run_script(main)
