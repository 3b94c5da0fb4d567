"""Building a database: scenes read, cut as a card says, and written as patches to LMDB."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
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
from utility.system.progress import Bar, note, say, track

MB = 1_000_000


def build_database(out: str | Path, sources: Sequence[str | Path], card: Card, *,
                   dtype: str = "float32", augment: int = 1, seed: int = 2021,
                   val_scenes: Sequence[str] = (), val_last: int | None = None,
                   drop_bad_bands: bool = False, fill_nodata: bool = False, skip_bad: bool = False,
                   force: bool = False, nodata: float | None = None, map_size_mb: int = 1024,
                   test_out: str | Path | None = None,
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
        force: replace `out` and the test cubes; never a folder that is no LMDB database.
        map_size_mb: LMDB's map to begin with; it doubles when it is full.
        test_out: folder for the test cubes of a card with a `test_region`; None writes none.
        failed: takes sentences on scenes that cannot be used, of several; None: they are raised.

    Raises UserError: a scene cannot be used, scenes differ in their bands, `out` exists, the disk
    is full; each by name.
    """
    files = list_scenes(sources)
    automatic = not val_scenes and val_last is None and not card.validation_region
    if automatic and len(files) >= 5:
        validating = files[-max(1, len(files) // 10):]
    else:
        files, validating = _ordered(files, val_scenes)
    test_out = Path(test_out) if test_out is not None and card.test_region else None
    if test_out:
        _check_test_names(files, test_out, force)
    reading = card.completed(
        Reading(drop_bad_bands=drop_bad_bands, fill_nodata=fill_nodata, nodata=nodata))
    database = writing_database(out, dtype=dtype, force=force, map_size_mb=map_size_mb)
    with database as writer, ExitStack() as cubes:
        building = _Building(card, reading, writer, files, validating, augment, seed,
                             share=len(files) / 10 if automatic and not validating else 0.0,
                             failed=failed if len(files) > 1 else None, skip_bad=skip_bad,
                             keep_tests=test_out is not None)
        with closing(track(files, Path(out).stem, unit="scene")) as building.bar:
            for number, file in enumerate(building.bar):
                building.take(number, file)
            building.take_held()
        building.check()
        written = building.written
        for text in _how_validated(written, building.covered, val_last, automatic, files[-1],
                                   building.skipped):
            note(text)
        validation = val_last
        if val_last is None or building.held:
            validation = sum(
                source["patches"] for source in written if source["part"] == "validation")
        wavelengths = building.wavelengths
        meta = writer.finish(validation=validation,
                             card=card.name if card.folder == CARD_FOLDER
                             else str((card.folder / f"{card.name}.toml").resolve()),
                             sources=written, skipped=building.skipped, patch=card.patch,
                             strides=list(card.strides), zooms=list(card.zooms), augment=augment,
                             wavelengths=None if wavelengths is None
                             else [float(nm) for nm in wavelengths])
        # the test cubes take their names together, before the database takes its own: all, or none
        for test in building.tests:
            final = test_out / f"{test.name}.mat"
            _write_test(cubes.enter_context(replacing(final, force)), test, final)
    return meta


@dataclass
class _Building:
    """A database under way: its scenes, and what came of those that were taken."""

    card: Card
    reading: Reading
    writer: DatabaseWriter
    files: list[Path]
    validating: Sequence[Path]  # whole scenes, the last files
    augment: int
    seed: int
    share: float  # of the last scene's training pixels, which validates where no scene does
    failed: list[str] | None  # takes sentences on scenes that cannot be used; None: raise the first
    skip_bad: bool
    keep_tests: bool
    bar: Bar | None = None
    # the database's records
    written: list[dict[str, Any]] = field(default_factory=list)
    # parts that validate, and are written last, with the record and the number of their scene
    held: list[tuple[dict[str, Any], int, list[Part]]] = field(default_factory=list)
    # of the patches: the number of the scene, and the pixels there
    covered: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    # of a scene by its hash: whether it validates
    digests: dict[str, tuple[bool, Path]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    tests: list[Scene] = field(default_factory=list)
    size: list[int] = field(default_factory=list)  # of the last scene
    wavelengths: np.ndarray | None = None

    def take(self, number: int, file: Path) -> None:
        """Write the training patches of scene `number`, and keep its other parts; a scene that
        cannot be used is left out where others may be."""
        try:
            scene, found, source = self._read(file)
        except UserError as error:
            if self.failed is None and not self.skip_bad:
                raise
            if not self.skip_bad:
                self.failed.append(str(error))
            self.skipped.append(file.name)
            note(str(error), "skipped")
            return
        if source["size"] != self.size:  # said of the first of scenes of one size
            self.size = source["size"]
            say(f"{file} {first_line(scene)}")
        if not self.written:
            self.wavelengths = scene.wavelengths
        elif (apart := _apart(scene.wavelengths, self.wavelengths)) >= 1:
            note(f"{file}: its bands lie up to {apart:.0f} nm from those of the first scene, whose "
                 "wavelengths the database keeps")
        part = "validation" if file in self.validating else "training"
        if self._shares(file) and not found["validation"] and self.written:
            part = "validation"  # too small for both
        augment = self.augment if part == "training" else 1
        self.written.append(source | {"part": part} | self._cut(found["training"], number, augment))
        if found["validation"]:  # the last patches of a database are those of validation
            self.held.append((source, number, found["validation"]))
        for test in found["test"] if self.keep_tests else ():
            self.tests.append(_test_scene(test, scene, source["sha256"]))

    def take_held(self) -> None:
        """Write the patches of the parts that validate."""
        for source, number, parts in self.held:
            self.written.append(source | {"part": "validation"} | self._cut(parts, number, 1))

    def check(self) -> None:
        """Say which patches are left out. Raises UserError: no patch was written."""
        gone = sum(source["left_out"] for source in self.written)
        if not self.written:
            raise UserError(f"None of the {len(self.files)} scenes could be used: "
                            f"{', '.join(self.skipped)}; see above.")
        if not (self.writer.count or gone):
            zooms = ", ".join(f"{zoom:g}" for zoom in self.card.zooms)
            raise UserError(f"No patch of {self.card.patch} pixels fits into the "
                            f"{len(self.written)} scenes at zooms {zooms}; choose a smaller "
                            "--patch or larger --zooms.")
        if not self.writer.count:
            raise UserError(f"Each of the {gone} patches of {self.card.patch} pixels has a pixel "
                            "that nobody measured; choose a smaller --patch, or other scenes.")
        if gone:
            note(f"{gone} patch{'es' if gone > 1 else ''} with a pixel that nobody measured "
                 f"{'are' if gone > 1 else 'is'} left out")

    def _shares(self, file: Path) -> bool:
        """Whether a part of this scene validates and the rest trains."""
        return self.share > 0 and file == self.files[-1]

    def _read(self, file: Path) -> tuple[Scene, dict[str, list[Part]], dict[str, Any]]:
        """A scene, its parts by what they are for, and the database's record of it. Raises
        UserError: it cannot be used."""
        scene = open_as(file, self.reading)
        found, source = divide(self.card, scene, self.share if self._shares(file) else 0.0)
        if self.written and source["bands"] != self.written[0]["bands"]:
            first = self.written[0]
            raise UserError(f"{file} has {source['bands']} bands and {first['file']} has "
                            f"{first['bands']}, and one database holds patches of one size; build "
                            "two databases.")
        validates = file in self.validating or self._shares(file)
        same = self.digests.setdefault(source["sha256"], (validates, file))
        if same[0] != validates:
            raise UserError(f"{file} holds the very pixels of {same[1]}, and one of them validates "
                            "what the other one trains; leave one out.")
        return scene, found, source

    def _cut(self, found: Sequence[Part], number: int, augment: int) -> dict[str, Any]:
        """Write the patches of some parts of scene `number`, each in `augment` variants; returns
        what the database's record says of them."""
        card, writer = self.card, self.writer
        begin, possible = writer.count, 0
        for part in found:
            boxes = (places(part.region[2:], card.patch, card.strides, card.zooms, part.filled)
                     + [*part.region[:2]] * 2)
            self.covered.append((np.full(augment * len(boxes), number), boxes.repeat(augment, 0)))
            possible += augment * count_patches(part.region[2:], card.patch, card.strides,
                                                card.zooms)
            for patches in extract_patches(part.cube, card.patch, card.strides, card.zooms,
                                           part.filled):
                if augment > 1:
                    patches = bake(patches, augment, self.seed, writer.count // augment)
                writer.write(patches)
                self.bar.set_postfix_str(f"{writer.count} patches, {writer.bytes / MB:.0f} MB",
                                         refresh=False)
                self.bar.update(0)
        made = writer.count - begin
        return {"regions": [list(part.region) for part in found], "patches": made,
                "left_out": possible - made}


def _check_test_names(files: Sequence[Path], folder: Path, force: bool) -> None:
    """Raise UserError for scenes whose test cubes would have one name, or that of an older one."""
    named: dict[str, Path] = {}
    for file in files:
        refuse_existing(folder / f"{file.stem}_test.mat", force)
        if (other := named.setdefault(file.stem, file)) != file:
            raise UserError(f"{other} and {file} have the same name, and so would their test "
                            f"cubes in {folder}; rename one of them, or build two databases.")


def _how_validated(written: Sequence[Mapping[str, Any]],
                   places: Sequence[tuple[np.ndarray, np.ndarray]], last: int | None,
                   automatic: bool, file: Path, skipped: Sequence[str]) -> list[str]:
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
    if not chosen and file.name in skipped:
        return [f"{file} was to validate, and could not be used, so none validates; build again "
                "without it"]
    if not chosen:
        return [f"{file} has no room for a patch that validates beside one that trains, so none "
                "validates; choose a smaller --patch, or name a scene with --val-scenes"]
    divided = {source["sha256"] for source in chosen}
    if not any(source["part"] == "training" and source["sha256"] in divided for source in written):
        return [f"{names}: validates as a whole, and trains nothing"]
    top, left, height, width = chosen[0]["regions"][0]
    return [f"rows {top} to {top + height - 1} and columns {left} to {left + width - 1} of {names} "
            f"validate, and up to {GAP} pixels beside them are in no patch, so that nothing that "
            "validates is trained on"]


def _overlapping(some: np.ndarray, others: np.ndarray) -> int:
    """How many rectangles (n, 4), top, left, bottom, right, share a pixel with another one."""
    return sum(
        bool(((others[:, :2] < box[2:]) & (others[:, 2:] > box[:2])).all(1).any()) for box in some)


def _apart(some: np.ndarray | None, others: np.ndarray | None) -> float:
    """How far the wavelengths of as many bands are apart at most, in nm; 0 where they are not
    known."""
    known = some is not None and others is not None
    return float(np.abs(np.asarray(some) - others).max()) if known else 0.0


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


def _ordered(files: list[Path], val_scenes: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The files with validation scenes last, because the last patches of a database validate, and
    these alone."""
    stems = [file.stem for file in files]
    unknown = [name for name in val_scenes if name not in stems]
    if unknown:
        raise UserError(f"No scene is called {', '.join(unknown)} (--val-scenes); the scenes are "
                        f"{', '.join(stems)}.")
    training = [file for file in files if file.stem not in val_scenes]
    if not training:
        raise UserError("Every scene is held out for validation (--val-scenes); leave at least one "
                        "for training.")
    validating = [file for file in files if file.stem in val_scenes]
    return training + validating, validating
