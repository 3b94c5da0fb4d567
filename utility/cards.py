"""Dataset cards: what a data set looks like, which part of it trains, validates and tests.

A card is a TOML file under ``data/``. The fields of a card are those of `Card`; adding a data set is adding a card.
"""
from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np

from utility.cubes.cube import Scene
from utility.cubes.layouts import LAYOUTS
from utility.cubes.values import unit_range, value_range
from utility.errors import UserError

CARD_FOLDER = Path(__file__).resolve().parent.parent / "data"
Rectangle = tuple[int, int, int, int]  # top, left, height, width, in pixels


def _is_int(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


def _list_of(test: Callable[[Any], bool], count: int | None = None) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) == (count or max(len(value), 1)) and all(map(test, value))


class Expected(NamedTuple):
    """What a card's field may hold: a test of TOML's value, and the same in words."""
    test: Callable[[Any], bool]
    words: str


TEXT = Expected(lambda value: isinstance(value, str), "a string")
TEXTS = Expected(_list_of(TEXT.test), "a list of names")
WHOLE = Expected(_is_int, "a whole number of at least 1")
STRIDES = Expected(_list_of(_is_int), "a list of whole numbers of pixels, one for each zoom")
ZOOMS = Expected(_list_of(lambda value: _is_number(value) and 0 < value <= 1), "a list of numbers above 0 and up to 1")
LAYOUT = Expected(lambda value: value in LAYOUTS, f"one of {', '.join(LAYOUTS)}")
SIZE = Expected(_list_of(_is_int, 2), "[height, width] in pixels")
NANOMETRES = Expected(lambda value: isinstance(value, dict) or _list_of(_is_number)(value), "a list of nm, or { first, last } "
                      "with, if channels were taken out, { count, removed = [[from, to], ...] }")
COLOURS = Expected(_list_of(lambda value: _is_int(value, 0), 3), "three band indices, counted from 0")
OVER = Expected(lambda value: value in ("scene", "crop"), 'one of "scene", "crop"')
REGION = Expected(lambda value: _list_of(lambda v: _is_int(v, 0), 4)(value) and min(value[2:]) > 0,
                  "[top, left, height, width] in pixels")


@dataclass(frozen=True, eq=False)
class Card:
    """One data set. Sizes are (height, width) and rectangles (top, left, height, width), in pixels."""

    name: str                                                            # the file's stem
    title: Annotated[str, TEXT]
    patch: Annotated[int, WHOLE]                                         # side of a training patch, in pixels
    strides: Annotated[tuple[int, ...], STRIDES]                         # step between patches, one for each zoom
    zooms: Annotated[tuple[float, ...], ZOOMS] = (1.0,)                  # scales at which a scene is cut into patches
    publisher: Annotated[str, TEXT] = ""                                 # where the publisher offers the scenes, in words
    source: Annotated[str, TEXT] = ""                                    # of training scenes, from the repository's root
    test_source: Annotated[str, TEXT] = ""                               # of test scenes
    key: Annotated[str | None, TEXT] = None
    layout: Annotated[str | None, LAYOUT] = None
    bands: Annotated[int | None, WHOLE] = None
    size: Annotated[tuple[int, int] | None, SIZE] = None                 # of a scene that regions divide
    wavelengths: Annotated[np.ndarray | None, NANOMETRES] = None         # (bands,)
    rgb: Annotated[tuple[int, int, int] | None, COLOURS] = None          # bands shown as red, green and blue
    normalise: Annotated[str, OVER] = "scene"                            # training: min-max over scene, or over each crop
    crop: Annotated[tuple[int, int] | None, SIZE] = None                 # training: this centre part of a scene
    test_normalise: Annotated[str, OVER] = ""                            # test: as `normalise` where not given
    test_crop: Annotated[tuple[int, int] | None, SIZE] = None            # test: this centre part, of other scenes
    test_region: Annotated[Rectangle | None, REGION] = None              # test: this part of the one scene
    validation_scenes: Annotated[tuple[str, ...], TEXTS] = ()            # held out; without any, the last patches are


FIELDS = {name: hint.__metadata__[0] for name, hint in get_type_hints(Card, include_extras=True).items()
          if hasattr(hint, "__metadata__")}
"""What each field that a TOML file may have is expected to hold."""


def list_cards() -> list[str]:
    """Names of the cards under ``data/``, sorted."""
    return sorted(path.stem for path in CARD_FOLDER.glob("*.toml"))


def load_card(name_or_path: str | Path) -> Card:
    """The card of that name under ``data/``, or in that .toml file.

    Raises:
        UserError: there is no such card, or a field is missing, unknown or wrong (the message names file and field).
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = CARD_FOLDER / f"{name_or_path}.toml"
        if path.stem not in list_cards():
            known = list_cards()
            near = difflib.get_close_matches(str(name_or_path), known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? The" if near else "the"
            raise UserError(f"There is no dataset card {str(name_or_path)!r}; {hint} cards are {', '.join(known)}, and a path "
                            "to another .toml file works too.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the dataset card {path} ({error.strerror}); check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"The dataset card {path} is not TOML: {error}.") from error
    return _checked(table, path)


def generic_card(patch: int = 64, stride: int | None = None) -> Card:
    """The card of scenes that have none: min-max over each scene, which trains whole, square patches side by side."""
    return Card(name="scenes", title="Scenes without a card", patch=patch, strides=(stride or patch,))


def training_rectangles(size: tuple[int, int], test: Rectangle) -> list[Rectangle]:
    """Up to four rectangles that cover a scene of `size` but for the rectangle `test`; no two share a pixel.

    The rectangles above and below `test` are as wide as the scene, those beside `test` as high as `test`.
    """
    (height, width), (top, left, h, w) = size, test
    around = [(0, 0, top, width), (top + h, 0, height - top - h, width), (top, 0, h, left),
              (top, left + w, h, width - left - w)]
    return [r for r in around if r[2] > 0 and r[3] > 0]


def training_cubes(card: Card, scene: Scene, limits: tuple[float, float] | None = None) -> list[np.ndarray]:
    """The parts of `scene` that train, each (B, h, w) float32 in [0, 1].

    Around a `test_region`, rectangles in which no patch fits are left out. `limits` is the scene's `value_range`, for a
    caller that has it.

    Raises:
        UserError: the scene does not have the size that the card needs, holds NaN, or is constant.
    """
    _, height, width = scene.cube.shape
    if card.test_region is None:
        return [_normalised(scene, _centre(scene, card.crop, card), card.normalise, limits)]
    _check_size(card, scene)
    limits = limits or value_range(scene)
    parts = training_rectangles((height, width), card.test_region)
    return [_normalised(scene, part, card.normalise, limits) for part in parts if min(part[2:]) >= card.patch]


def test_cubes(card: Card, scene: Scene, limits: tuple[float, float] | None = None) -> list[tuple[str, np.ndarray]]:
    """The parts of `scene` that test, as (name, cube), each (B, h, w) float32 in [0, 1].

    Raises:
        UserError: as `training_cubes`.
    """
    over = card.test_normalise or card.normalise
    if card.test_region is None:
        return [(scene.name, _normalised(scene, _centre(scene, card.test_crop, card), over, limits))]
    _check_size(card, scene)
    return [(f"{scene.name}_test", _normalised(scene, card.test_region, over, limits))]


test_cubes.__test__ = False  # its name looks like a test's to pytest wherever it is imported


def _centre(scene: Scene, size: tuple[int, int] | None, card: Card) -> Rectangle:
    _, height, width = scene.cube.shape
    if size is None:
        return 0, 0, height, width
    h, w = size
    if h > height or w > width:
        raise UserError(f"{scene.place} is {height}x{width} pixels, smaller than the {h}x{w} that the card {card.name} takes "
                        "from its centre; leave it out, or use a card with a smaller crop.")
    return (height - h) // 2, (width - w) // 2, h, w


def _check_size(card: Card, scene: Scene) -> None:
    _, height, width = scene.cube.shape
    if (height, width) != card.size:
        raise UserError(f"{scene.place} is {height}x{width} pixels, and the card {card.name} divides a scene of "
                        f"{card.size[0]}x{card.size[1]} into training and test parts; give that scene, or a card for this one.")


def _normalised(scene: Scene, part: Rectangle, over: str, limits: tuple[float, float] | None) -> np.ndarray:
    top, left, h, w = part
    crop = scene.cube[:, top : top + h, left : left + w]
    low, high = (limits or value_range(scene)) if over == "scene" else value_range(replace(scene, cube=crop))
    return unit_range(crop, low, high)[0]


# --- reading a card's fields -------------------------------------------------------------------------------------

def _checked(table: dict[str, Any], path: Path) -> Card:
    def wrong(name: str, problem: str) -> UserError:
        return UserError(f"{path}: the field {name!r} {problem}.")

    for name, value in table.items():
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            raise wrong(name, f"is unknown; {f'did you mean {near[0]!r}?' if near else 'known are ' + ', '.join(FIELDS)}")
        if not FIELDS[name].test(value):
            raise wrong(name, f"is {value!r}; expected {FIELDS[name].words}")
    for entry in fields(Card):
        if entry.default is MISSING and entry.name in FIELDS and entry.name not in table:
            raise wrong(entry.name, f"is missing; expected {FIELDS[entry.name].words}")

    values = {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}
    values["zooms"] = tuple(float(zoom) for zoom in table.get("zooms", [1.0]))
    bands, size, region = table.get("bands"), table.get("size"), table.get("test_region")
    if len(values["strides"]) != len(values["zooms"]):
        raise wrong("strides", f"is {table['strides']}; expected {len(values['zooms'])} of them, as many as zooms")
    if "wavelengths" in table:
        values["wavelengths"] = _wavelengths(table["wavelengths"], bands, wrong)
        bands = values["bands"] = len(values["wavelengths"])
    if bands and max(table.get("rgb", [0])) >= bands:
        raise wrong("rgb", f"is {table['rgb']}; expected indices below the {bands} bands")
    if region:
        if "crop" in table or "test_crop" in table:
            raise wrong("test_region", "stands beside 'crop' or 'test_crop'; expected either, not both")
        if not size:
            raise wrong("size", "is missing; expected [height, width], which 'test_region' depends on")
        if region[0] + region[2] > size[0] or region[1] + region[3] > size[1]:
            raise wrong("test_region", f"is {region}; expected a rectangle inside the scene of {size[0]}x{size[1]}")
        if not any(min(part[2:]) >= table["patch"] for part in training_rectangles(tuple(size), tuple(region))):
            raise wrong("test_region", f"is {region}; expected room for a training patch of {table['patch']} beside it")
    return Card(name=path.stem, **values)


def _wavelengths(value: Any, bands: int | None, wrong: Callable[[str, str], UserError]) -> np.ndarray:
    if isinstance(value, list):
        nm = np.array(value, dtype=np.float64)
    else:
        count, removed = value.get("count", bands), value.get("removed", [])
        known = set(value) <= {"first", "last", "count", "removed"}
        if not known or not all(_is_number(value.get(end)) for end in ("first", "last")):
            raise wrong("wavelengths", f"is {value!r}; expected {NANOMETRES.words}")
        if not _is_int(count) or (removed and not _list_of(_list_of(_is_int, 2))(removed)):
            raise wrong("wavelengths", f"is {value!r}; expected 'bands' or 'count', and 'removed' as [[from, to], ...]")
        kept = np.ones(count, dtype=bool)
        for first, last in removed:  # both included, counted from 1 as publishers do
            kept[first - 1 : last] = False
        nm = np.linspace(value["first"], value["last"], count)[kept]
    if bands and len(nm) != bands:
        raise wrong("wavelengths", f"gives {len(nm)} values; expected one for each of the {bands} bands")
    return nm
