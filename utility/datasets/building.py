"""Building a training database: scenes read, cut as a card says, and written as patches into an
LMDB folder."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utility.cubes.cube import Scene
from utility.datasets.cards import CARD_FOLDER, Card
from utility.datasets.patches import bake, count_patches, extract_patches, places
from utility.datasets.regions import GAP, Part, divide
from utility.lmdb_dataset import DatabaseWriter, writing_database
from utility.scenes import Reading, first_line, list_scenes, open_as, write_scene
from utility.system.errors import UserError
from utility.system.files import refuse_existing, replacing, write_failure
from utility.system.progress import Bar, note, say, track, warn

MB = 1_000_000


def build_database(out: str | Path, sources: Sequence[str | Path], card: Card, *,
                   dtype: str = "float32", augment: int = 1, seed: int = 2021,
                   val_scenes: Sequence[str] = (), val_last: int | None = None,
                   drop_bad_bands: bool = False, fill_nodata: bool = False, skip_bad: bool = False,
                   force: bool = False, nodata: float | None = None, map_size_mb: int = 1024,
                   test_out: str | Path | None = None, quiet: bool = False,
                   failed: list[str] | None = None) -> dict[str, Any]:
    """Cut `sources` as `card` says into the LMDB folder `out`, which appears when it is whole;
    returns its meta.

    Args:
        out: the folder to make.
        sources: scene files, or folders of them, in the order of writing; validation scenes come
            last.
        dtype: of the stored values, "float32" or "float16".
        augment: how many rotations and flips of each patch are stored, 1 (the patch itself) to 8.
        seed: draws these variants.
        val_scenes: names (stems) of the scenes held out for validation.
        val_last: the last patches are for validation, whatever pixels they share with others; 0:
            none is. Where neither is given, the card's `validation_region` is held out; without
            one, what shares no pixel with the training: of five or more scenes a tenth of the
            scenes, the last ones, at least one; of fewer a corner of the last one.
        drop_bad_bands, fill_nodata: mend scenes that need it instead of refusing them.
        nodata: the value of pixels without data, where the files do not say it.
        skip_bad: leave out, and name, the scenes that cannot be used instead of stopping.
        force: replace `out` and the test cubes, if they exist; never a folder that is not an LMDB
            database.
        map_size_mb: LMDB's map to begin with; it doubles when it is full.
        test_out: folder for the test cubes of a card with a `test_region`; None writes none.
        quiet: no progress bar, and nothing said about what is skipped.
        failed: takes the sentences on scenes that cannot be used, where there are several; None:
            the first one is raised.

    Raises:
        UserError: a scene cannot be used, scenes differ in their bands, `out` exists, the disk is
            full; each by name.
    """
    files = list_scenes(sources)
    automatic = not val_scenes and val_last is None and not card.validation_region
    if automatic and len(files) >= 5:
        val_scenes = [file.stem for file in files[-max(1, len(files) // 10):]]
    files = _ordered(files, val_scenes)
    share = len(files) / 10 if automatic and not val_scenes else 0.0
    test_out = Path(test_out) if test_out is not None and card.test_region else None
    if test_out:
        named: dict[str, Path] = {}
        for file in files:
            refuse_existing(test_out / f"{file.stem}_test.mat", force)
            if (other := named.setdefault(file.stem, file)) != file:
                raise UserError(f"{other} and {file} have the same name, and so would their test "
                                f"cubes in {test_out}; rename one of them, or build two databases.")

    reading = card.completed(
        Reading(drop_bad_bands=drop_bad_bands, fill_nodata=fill_nodata, nodata=nodata))
    written: list[dict[str, Any]] = []
    held: list[tuple[dict[str, Any], int, list[Part]]] = []
    # of the patches: the number of the scene, and the pixels there
    covered: list[tuple[np.ndarray, np.ndarray]] = []
    digests: dict[str, tuple[bool, Path]] = {}  # of a scene: whether it validates
    cut = partial(_cut, card=card, seed=seed, covered=covered)
    skipped: list[str] = []
    tests: list[Scene] = []
    size: list[int] = []
    wavelengths: np.ndarray | None = None
    database = writing_database(out, dtype=dtype, force=force, map_size_mb=map_size_mb)
    with database as writer, ExitStack() as cubes:
        with closing(track(files, Path(out).stem, unit="scene", quiet=quiet)) as bar:
            for number, file in enumerate(bar):
                try:
                    scene = open_as(file, reading)
                    found, source = divide(card, scene, share if file == files[-1] else 0.0)
                    _check_bands(source, written, file)
                    held_out = file.stem in val_scenes or (share > 0 and file == files[-1])
                    if (other := digests.setdefault(source["sha256"], (held_out, file)))[
                            0] != held_out:
                        raise UserError(f"{file} holds the very pixels of {other[1]}, and one of "
                                        "them validates what the other one trains; leave one out.")
                except UserError as error:
                    if not skip_bad and (failed is None or len(files) == 1):
                        raise
                    if not skip_bad:
                        failed.append(str(error))
                    skipped.append(file.name)
                    if not quiet:
                        warn(str(error), "skipped")
                    continue
                if not quiet and source["size"] != size:  # said of the first of scenes of one size
                    size = source["size"]
                    say(f"{file} {first_line(scene)}")
                wavelengths = wavelengths if written else scene.wavelengths
                part = "validation" if file.stem in val_scenes else "training"
                if share and file == files[-1] and not found["validation"] and written:
                    part = "validation"  # too small for both
                variants = augment if part == "training" else 1
                written.append(source | {"part": part}
                               | cut(found["training"], number, augment=variants, writer=writer,
                                     bar=bar))
                if found["validation"]:  # the last patches of a database are those of validation
                    held.append((source, number, found["validation"]))
                if test_out:
                    tests += [_test_scene(test, scene, source["sha256"]) for test in found["test"]]
                del scene, found  # before the next one is read
            for source, number, validation in held:
                written.append(source | {"part": "validation"}
                               | cut(validation, number, augment=1, writer=writer, bar=bar))
        gone = sum(source["left_out"] for source in written)
        if written and not writer.count and not gone:
            raise UserError(f"No patch of {card.patch} pixels fits into the {len(written)} scenes "
                            f"at zooms {', '.join(f'{zoom:g}' for zoom in card.zooms)}; choose a "
                            "smaller --patch or larger --zooms.")
        if gone:
            if not writer.count:
                raise UserError(f"Each of the {gone} patches of {card.patch} pixels has a pixel "
                                "that nobody measured; choose a smaller --patch, or other scenes.")
            if not quiet:
                note(f"{gone} patches with a pixel that nobody measured are left out")
        if not written:
            raise UserError(
                f"None of the {len(files)} scenes could be used: {', '.join(skipped)}; see above.")
        validation = val_last
        if val_last is None or held:
            validation = sum(
                source["patches"] for source in written if source["part"] == "validation")
        if not quiet:
            for text in _how_validated(written, covered, val_last, automatic, files[-1]):
                note(text)
        meta = writer.finish(validation=validation,
                             card=card.name if card.folder == CARD_FOLDER
                             else str((card.folder / f"{card.name}.toml").resolve()),
                             sources=written, skipped=skipped, patch=card.patch,
                             strides=list(card.strides), zooms=list(card.zooms), augment=augment,
                             wavelengths=None if wavelengths is None
                             else [float(nm) for nm in wavelengths])
        # the test cubes take their names together, before the database takes its own: all, or none
        for test in tests:
            final = test_out / f"{test.name}.mat"
            _write_test(cubes.enter_context(replacing(final, force)), test, final)
    return meta


def _how_validated(written: Sequence[Mapping[str, Any]],
                   places: Sequence[tuple[np.ndarray, np.ndarray]], last: int | None,
                   automatic: bool, file: Path) -> list[str]:
    """What validates where nobody chose it, what is lost by it, and how many of the last patches
    share their pixels."""
    if last:
        owners, boxes = (np.concatenate(found) for found in zip(*places, strict=True))
        shared = 0
        for owner in np.unique(owners[-last:]):
            own = owners == owner
            trained = boxes[:-last][own[:-last]]
            shared += _overlapping(boxes[-last:][own[-last:]], trained)
        return [f"{shared} of the last {last} patches, which validate, share pixels with patches "
                "that train, and so flatter a network; without --val-last no pixel is "
                "shared"] * bool(shared)
    if not automatic:
        return []
    chosen = [source for source in written if source["part"] == "validation"]
    names = ", ".join(source["file"] for source in chosen)
    if not chosen:
        return [f"{file} has no room for a patch that validates beside one that trains, so none "
                "validates; choose a smaller --patch, or name a scene with --val-scenes"]
    if not any(source["part"] == "training" and source["file"] in names for source in written):
        return [f"{names}: validates as a whole, and trains nothing"]
    top, left, height, width = chosen[0]["regions"][0]
    return [f"rows {top} to {top + height - 1} and columns {left} to {left + width - 1} of {names} "
            f"validate, and up to {GAP} pixels beside them are in no patch, so that nothing that "
            "validates is trained on"]


def _overlapping(some: np.ndarray, others: np.ndarray) -> int:
    """How many of some rectangles (n, 4), top, left, bottom, right, share a pixel with one of the
    others."""
    return sum(
        bool(((others[:, :2] < box[2:]) & (others[:, 2:] > box[:2])).all(1).any()) for box in some)


def _test_scene(part: Part, scene: Scene, digest: str) -> Scene:
    """The test part of a scene, whose pixels that nobody measured are NaN again."""
    cube, gone = part.cube, part.filled is not None and part.filled.any()
    if gone:
        cube = np.where(part.filled, np.float32(np.nan), cube)
    return Scene(cube, part.name, layout="HWB", key="gt", normalised=True,
                 wavelengths=scene.wavelengths, nodata=np.nan if gone else None,
                 metadata={"origin": {"region": part.region, "sha256": digest}})


def _write_test(temporary: Path, test: Scene, final: Path) -> None:
    try:
        write_scene(temporary, test)
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            raise write_failure(final, error.__cause__) from error
        raise


def _check_bands(source: dict[str, Any], written: list[dict[str, Any]], file: Path) -> None:
    if written and source["bands"] != written[0]["bands"]:
        raise UserError(f"{file} has {source['bands']} bands and {written[0]['file']} has "
                        f"{written[0]['bands']}, and one database holds patches of one size; build "
                        "two databases.")


def _cut(found: Sequence[Part], number: int, card: Card, augment: int, seed: int,
         writer: DatabaseWriter, bar: Bar,
         covered: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Write the patches of some parts of scene `number`; returns the database's record of these
    parts."""
    begin, possible = writer.count, 0
    for part in found:
        boxes = (places(part.region[2:], card.patch, card.strides, card.zooms, part.filled)
                 + [*part.region[:2]] * 2)
        covered.append((np.full(augment * len(boxes), number), boxes.repeat(augment, 0)))
        possible += augment * count_patches(part.region[2:], card.patch, card.strides, card.zooms)
        for patches in extract_patches(part.cube, card.patch, card.strides, card.zooms,
                                       part.filled):
            if augment > 1:
                patches = bake(patches, augment, seed, writer.count // augment)
            writer.write(patches)
            bar.set_postfix_str(f"{writer.count} patches, {writer.bytes / MB:.0f} MB",
                                refresh=False)
            bar.update(0)
    made = writer.count - begin
    return {"regions": [list(part.region) for part in found], "patches": made,
            "left_out": possible - made}


def _ordered(files: list[Path], val_scenes: Sequence[str]) -> list[Path]:
    """The files with validation scenes last, because the last patches of a database validate."""
    stems = [file.stem for file in files]
    unknown = [name for name in val_scenes if name not in stems]
    if unknown:
        raise UserError(f"No scene is called {', '.join(unknown)} (--val-scenes); the scenes are "
                        f"{', '.join(stems)}.")
    training = [file for file in files if file.stem not in val_scenes]
    if not training:
        raise UserError("Every scene is held out for validation (--val-scenes); leave at least one "
                        "for training.")
    return training + [file for file in files if file.stem in val_scenes]
