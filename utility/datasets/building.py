"""Building a training database: scenes read, cut as a card says, and written as patches into an LMDB folder."""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utility.cubes.cube import Scene
from utility.datasets.cards import CARD_FOLDER, Card
from utility.datasets.patches import bake, extract_patches
from utility.datasets.regions import Part, divide
from utility.lmdb_dataset import DatabaseWriter, writing_database
from utility.scenes import Reading, first_line, list_scenes, open_as, write_scene
from utility.system.errors import UserError
from utility.system.files import refuse_existing, replacing, write_failure
from utility.system.progress import Bar, say, track, warn

MB = 1_000_000


def build_database(out: str | Path, sources: Sequence[str | Path], card: Card, *, dtype: str = "float32", augment: int = 1,
                   seed: int = 2021, val_scenes: Sequence[str] = (), val_last: int | None = None,
                   drop_bad_bands: bool = False, fill_nodata: bool = False, skip_bad: bool = False, force: bool = False,
                   nodata: float | None = None, map_size_mb: int = 1024,
                   test_out: str | Path | None = None, quiet: bool = False) -> dict[str, Any]:
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
        nodata: the value of pixels without data, where the files do not say it.
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

    reading = card.completed(Reading(drop_bad_bands=drop_bad_bands, fill_nodata=fill_nodata, nodata=nodata))
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
                    scene = open_as(file, reading)
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
