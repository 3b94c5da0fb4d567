"""Dataset cards: what a data set looks like, where it is, what trains, validates and tests.

A card is a TOML file under ``data/``. The fields of a card are those of `Card`; adding a data set
is adding a card.
"""
from __future__ import annotations

import difflib
import importlib.util
import reprlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import numpy as np

from utility.cubes.axes import LAYOUTS
from utility.datasets.rectangles import Rectangle, training_rectangles, without
from utility.scenes import Reading
from utility.system.errors import UserError
from utility.system.files import default_path, require_file

CARD_FOLDER = Path(__file__).resolve().parents[2] / "data"


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        return "too large a number"


def _is_int(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= 1 << 24


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e9


def _list_of(test: Callable[[Any], bool], count: int | None = None) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) == (
        count or max(len(value), 1)) and all(map(test, value))


class Expected(NamedTuple):
    """The values that a field may have: a test of the TOML value, and words for messages."""
    test: Callable[[Any], bool]
    words: str


TEXT = Expected(lambda value: isinstance(value, str), "a string")
TEXTS = Expected(_list_of(TEXT.test), "a list of names")
PACKAGE = Expected(_list_of(TEXT.test, 2),
                   "[name of an installed package, path of the scene in it]")
WHOLE = Expected(_is_int, "a whole number of at least 1")
STRIDES = Expected(_list_of(_is_int), "a list of whole numbers of pixels, one for each zoom")
ZOOMS = Expected(_list_of(lambda value: _is_number(value) and 0 < value <= 1),
                 "a list of numbers above 0 and up to 1")
LAYOUT = Expected(lambda value: value in LAYOUTS, f"one of {', '.join(LAYOUTS)}")
SIZE = Expected(_list_of(_is_int, 2), "[height, width] in pixels")
NANOMETRES = Expected(lambda value: isinstance(value, dict) or _list_of(_is_number)(value),
                      "a list of nm, or { first, last } with, if channels were taken out, { count, "
                      "removed = [[from, to], ...] }")
COLOURS = Expected(_list_of(lambda value: _is_int(value, 0), 3),
                   "three band indices, counted from 0")
OVER = Expected(lambda value: value in ("scene", "crop"), 'one of "scene", "crop"')
REGION = Expected(lambda value: _list_of(lambda v: _is_int(v, 0), 4)(value) and min(value[2:]) > 0,
                  "[top, left, height, width] in pixels")


@dataclass(frozen=True, eq=False)
class Card:
    """One data set. Sizes are (height, width), rectangles (top, left, height, width); pixels."""

    name: str                                                            # the file's stem
    folder: Path                                                         # the file's folder
    title: Annotated[str, TEXT]
    patch: Annotated[int, WHOLE]  # side of a training patch, in pixels
    strides: Annotated[tuple[int, ...], STRIDES]  # step between patches, one for each zoom
    # scales at which a scene is cut into patches
    zooms: Annotated[tuple[float, ...], ZOOMS] = (1.0,)
    publisher: Annotated[str, TEXT] = ""  # where the publisher offers the scenes, in words
    source: Annotated[str, TEXT] = ""  # of training scenes, from the repository's root
    test_source: Annotated[str, TEXT] = ""                               # of test scenes
    # an installed package that holds the scene
    package: Annotated[tuple[str, str] | None, PACKAGE] = None
    key: Annotated[str | None, TEXT] = None
    layout: Annotated[str | None, LAYOUT] = None
    bands: Annotated[int | None, WHOLE] = None
    take: Annotated[str | None, TEXT] = None  # of the file's bands: "0-125,141-159", from 0
    size: Annotated[tuple[int, int] | None, SIZE] = None  # of a scene that regions divide
    wavelengths: Annotated[np.ndarray | None, NANOMETRES] = None         # (bands,)
    # bands shown as red, green and blue
    rgb: Annotated[tuple[int, int, int] | None, COLOURS] = None
    normalise: Annotated[str, OVER] = "scene"  # training: min-max over scene, or over each crop
    crop: Annotated[tuple[int, int] | None, SIZE] = None  # training: this centre part of a scene
    test_normalise: Annotated[str, OVER] = ""  # test: as `normalise` where not given
    # test: this centre part, of other scenes
    test_crop: Annotated[tuple[int, int] | None, SIZE] = None
    test_region: Annotated[Rectangle | None, REGION] = None  # test: this part of the one scene
    # validation: this part of the one scene
    validation_region: Annotated[Rectangle | None, REGION] = None
    scenes: Annotated[str, TEXT] = ""  # file beside the card: names of training scenes
    test_scenes: Annotated[str, TEXT] = ""                               # likewise, of test scenes
    # training scenes (stems) held out for validation
    validation_scenes: Annotated[tuple[str, ...], TEXTS] = ()

    def completed(self, reading: Reading) -> Reading:
        """How its scenes are read: as `reading` says, and where that says nothing as this card
        does."""
        size = self.size if (self.layout or "").startswith("pixels") else None
        return replace(reading, key=reading.key or self.key, layout=reading.layout or self.layout,
                       bands=reading.bands or self.take, size=reading.size or size,
                       expected=self.bands, wavelengths=self.wavelengths,
                       by_card=self.name != "scenes")


_HINTS = get_type_hints(Card, include_extras=True)
FIELDS = {name: hint.__metadata__[0]
          for name, hint in _HINTS.items() if hasattr(hint, "__metadata__")}
"""What each field that a TOML file may have is expected to hold."""


def list_cards() -> list[str]:
    """Names of the cards under ``data/``, sorted."""
    return sorted(path.stem for path in CARD_FOLDER.glob("*.toml"))


def load_card(name_or_path: str | Path) -> Card:
    """The card of that name under ``data/``, or in that .toml file. Raises UserError: there is no
    such card, or a field is missing, unknown or wrong (the message names file and field)."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = CARD_FOLDER / f"{name_or_path}.toml"
        if path.stem not in list_cards():
            known = list_cards()
            near = difflib.get_close_matches(str(name_or_path), known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? The" if near else "the"
            raise UserError(f"There is no dataset card {str(name_or_path)!r}; {hint} cards are "
                            f"{', '.join(known)}, and a path to another .toml file works too.")
    try:
        table = tomllib.loads(_text(path))
    except OSError as error:
        raise UserError(f"Cannot read the dataset card {path} ({error.strerror}); check the "
                        "path.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"The dataset card {path} is not TOML: {error}.") from error
    return _checked(table, path)


def _text(path: Path) -> str:
    if path.exists():
        require_file(path)
    return path.read_text(encoding="utf-8")


def generic_card(patch: int = 64) -> Card:
    """The card for scenes without a card: min-max over each scene, the whole scene trains, square
    patches side by side."""
    return Card(name="scenes", folder=CARD_FOLDER, title="Scenes without a card", patch=patch,
                strides=(patch,))


def locate(card: Card, use: Literal["training", "test"]) -> Path:
    """Find the scenes of one use: the card's folder, else a file in an installed package. Raises
    UserError: they are in neither place; the message says how to get them."""
    place = (card.test_source if use == "test" else "") or card.source
    if place and default_path(place).exists():
        return default_path(place)
    hint = ""
    if card.package:
        package, file = card.package
        # finds the folder and runs none of the package's code
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or ()) if found else ():
            if (Path(folder) / file).exists():
                return Path(folder) / file
        hint = f"pip install {package} (which holds the scene), or "
    raise UserError(f"The {use} scenes of {card.name} are not in "
                    f"{place or 'a place that its card names'}; {hint}get them "
                    f"({card.publisher.rstrip('.') or card.title}) and put them there, or name "
                    "them with --source (to build) or --data (to test).")


def split(card: Card, files: Sequence[Path],
          use: Literal["training", "test"]) -> tuple[list[Path], list[str]]:
    """Select the scene files of one use by the card's lists; returns them in the order of the list,
    and notes on the rest.

    Returns: all files, in their order, and no note, where the card lists no scenes.

    Raises UserError: a list cannot be read, or none of its scenes is among the files.
    """
    lists = {"training": _listed(card, card.scenes), "test": _listed(card, card.test_scenes)}
    wanted = lists[use]
    if not wanted:
        return list(files), []
    by_stem = {file.stem: file for file in files}
    found = [by_stem[stem] for stem in wanted if stem in by_stem]
    missing, known = ([stem for stem in wanted if stem not in by_stem],
                      set(lists["training"] + lists["test"]))
    if not found:
        raise UserError(f"None of the {len(wanted)} {use} scenes that the card {card.name} lists "
                        f"is there; the first is called {wanted[0]}. Give the folder that holds "
                        "them with --source or --data.")
    notes = []
    if missing:
        notes.append(f"{len(missing)} of the {len(wanted)} {use} scenes of {card.name} are "
                     f"missing: {_some(missing)}")
    if extra := [stem for stem in by_stem if stem not in known]:
        notes.append(
            f"no list of {card.name} names these files, so they are left out: {_some(extra)}")
    return found, notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _listed(card: Card, name: str) -> list[str]:
    """The stems in a list of file names beside the card."""
    if not name:
        return []
    path = card.folder / name
    try:
        return [Path(line.strip()).stem for line in _text(path).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The card {card.name} lists its scenes in {path}, which cannot be read "
                        f"({error}); put the list there.") from error


# --- reading a card's fields ----------------------------------------------------------------------

Wrong = Callable[[str, str], UserError]
"""The error of a field, by its name and what is wrong with it."""


def _checked(table: dict[str, Any], path: Path) -> Card:
    def wrong(name: str, problem: str) -> UserError:
        return UserError(f"{path}: the field {name!r} {problem}.")

    _check_fields(table, wrong)
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
    values["zooms"] = tuple(float(zoom) for zoom in table.get("zooms", [1.0]))
    if len(values["strides"]) != len(values["zooms"]):
        raise wrong(
            "strides",
            f"is {table['strides']}; expected {len(values['zooms'])} of them, as many as zooms")
    if "wavelengths" in table:
        nm = _wavelengths(table["wavelengths"], table.get("bands"), wrong)
        values |= {"wavelengths": nm, "bands": len(nm)}
    bands = values.get("bands")
    if bands and max(table.get("rgb", [0])) >= bands:
        raise wrong("rgb", f"is {table['rgb']}; expected indices below the {bands} bands")
    _check_regions(table, wrong)
    return Card(name=path.stem, folder=path.parent, **values)


def _check_fields(table: Mapping[str, Any], wrong: Wrong) -> None:
    """Raise UserError for a field that no card has, that cannot be used, or that is missing."""
    for name, value in table.items():
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(FIELDS)}"
            raise wrong(name, f"is unknown; {known}")
        if not FIELDS[name].test(value):
            raise wrong(name, f"is {_shown(value)}; expected {FIELDS[name].words}")
    for entry in fields(Card):
        if entry.default is MISSING and entry.name in FIELDS and entry.name not in table:
            raise wrong(entry.name, f"is missing; expected {FIELDS[entry.name].words}")


def _check_regions(table: Mapping[str, Any], wrong: Wrong) -> None:
    """Raise UserError for regions outside the scene, or where no patch fits in or beside them."""
    size, patch = table.get("size"), table["patch"]
    held = {
        name: tuple(table[name]) for name in ("test_region", "validation_region") if name in table}
    for name, region in held.items():
        if "crop" in table or "test_crop" in table:
            raise wrong(name, "stands beside 'crop' or 'test_crop'; expected either, not both")
        if not size:
            raise wrong("size", f"is missing; expected [height, width], which {name!r} depends on")
        if region[0] + region[2] > size[0] or region[1] + region[3] > size[1]:
            raise wrong(
                name,
                f"is {list(region)}; expected a rectangle inside the scene of {size[0]}x{size[1]}")
    if not held:
        return
    name, region = list(held.items())[-1]
    beside = training_rectangles(tuple(size), *held.values())
    if not any(min(part[2:]) >= patch for part in beside):
        raise wrong(name,
                    f"is {list(region)}; expected room for a training patch of {patch} beside it")
    if name == "validation_region":
        if min(region[2:]) < patch:
            raise wrong(name, f"is {list(region)}; expected room for a patch of {patch} in it")
        if "test_region" in held and without(region, held["test_region"]) != [region]:
            raise wrong(name, f"is {list(region)}; expected no pixel of 'test_region' in it")


def _wavelengths(value: Any, bands: int | None, wrong: Wrong) -> np.ndarray:
    if isinstance(value, list):
        nm = np.array(value, dtype=np.float64)
    else:
        count, removed = value.get("count", bands), value.get("removed", [])
        known = set(value) <= {"first", "last", "count", "removed"}
        if not known or not all(_is_number(value.get(end)) for end in ("first", "last")):
            raise wrong("wavelengths", f"is {_shown(value)}; expected {NANOMETRES.words}")
        if not _is_int(count) or (removed and not _list_of(_list_of(_is_int, 2))(removed)):
            raise wrong("wavelengths",
                        f"is {_shown(value)}; expected 'bands' or 'count', and 'removed' as "
                        "[[from, to], ...]")
        kept = np.ones(count, dtype=bool)
        for first, last in removed:  # both included, counted from 1 as publishers do
            kept[first - 1 : last] = False
        nm = np.linspace(value["first"], value["last"], count)[kept]
    if bands and len(nm) != bands:
        raise wrong("wavelengths",
                    f"gives {len(nm)} values; expected one for each of the {bands} bands")
    return nm
