"""Dataset cards: what a data set looks like, which part of it trains and which tests.

A card is a TOML file under ``data/``; its fields are those of `Card`, and adding a data set is adding a card.
"""
from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from utility.cubes.cube import Scene
from utility.cubes.layouts import LAYOUTS
from utility.cubes.values import unit_range, value_range
from utility.errors import UserError

CARD_FOLDER = Path(__file__).resolve().parent.parent / "data"
Rectangle = tuple[int, int, int, int]  # top, left, height, width, in pixels


@dataclass(frozen=True, eq=False)
class Card:
    """One data set. Sizes are in pixels, (height, width); rectangles are (top, left, height, width)."""

    name: str
    """The file's stem."""
    title: str
    patch: int
    """Side of a training patch."""
    strides: tuple[int, ...]
    """Step between patches, one for each zoom."""
    zooms: tuple[float, ...] = (1.0,)
    """Spatial scales at which a scene is cut into patches."""
    publisher: str = ""
    """Where the publisher offers it, in words."""
    source: str = ""
    """Where its training scenes are looked for, from the repository's root; `lmdb_data.py --source` says otherwise."""
    test_source: str = ""
    """Likewise, its test scenes."""
    key: str | None = None
    layout: str | None = None
    bands: int | None = None
    size: tuple[int, int] | None = None
    """Of a scene; other sizes are refused where `test_region` depends on it."""
    wavelengths: np.ndarray | None = None
    """In nm, (bands,)."""
    rgb: tuple[int, int, int] | None = None
    """Bands shown as red, green and blue."""
    normalise: str = "scene"
    """Training: min-max over the whole "scene", or over each "crop" taken from it."""
    crop: tuple[int, int] | None = None
    """Training: this centre part of a scene."""
    test_normalise: str = ""
    """Likewise for the test part; as `normalise` when not given."""
    test_crop: tuple[int, int] | None = None
    """Test: this centre part of a scene (of other scenes than those that train)."""
    test_region: Rectangle | None = None
    """Test: this part of the one scene, the rectangles around it being for training."""
    validation_scenes: tuple[str, ...] = ()
    """Training scenes held out for validation; with none, the last patches are."""


def list_cards() -> list[str]:
    """Names of the cards under ``data/``, sorted."""
    return sorted(path.stem for path in CARD_FOLDER.glob("*.toml"))


def load_card(name_or_path: str | Path) -> Card:
    """The card of that name under ``data/``, or in that .toml file.

    Raises:
        UserError: there is no such card (the nearest names are given), or a field is missing, unknown or wrong (the
            message names file and field).
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = CARD_FOLDER / f"{name_or_path}.toml"
        if path.stem not in list_cards():
            known = list_cards()
            near = difflib.get_close_matches(str(name_or_path), known, n=3, cutoff=0.5)
            raise UserError(
                f"There is no dataset card {str(name_or_path)!r}; "
                + (f"did you mean {' or '.join(near)}? The" if near else "the")
                + f" cards are {', '.join(known)}, and a path to another .toml file works too."
            )
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

    Those above and below it are as wide as the scene, those beside it as high as `test`.
    """
    height, width = size
    top, left, h, w = test
    around = [
        (0, 0, top, width),
        (top + h, 0, height - top - h, width),
        (top, 0, h, left),
        (top, left + w, h, width - left - w),
    ]
    return [r for r in around if r[2] > 0 and r[3] > 0]


def training_cubes(card: Card, scene: Scene, limits: tuple[float, float] | None = None) -> list[np.ndarray]:
    """The parts of `scene` that train, each (B, h, w) float32 in [0, 1].

    Around a `test_region`, rectangles in which no patch fits are left out. `limits` is the scene's `value_range`,
    for a caller that has it.

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


def test_cubes(
    card: Card, scene: Scene, limits: tuple[float, float] | None = None
) -> list[tuple[str, np.ndarray]]:
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
        raise UserError(
            f"{scene.place} is {height}x{width} pixels, smaller than the {h}x{w} that the card {card.name} takes "
            "from its centre; leave it out, or use a card with a smaller crop."
        )
    return (height - h) // 2, (width - w) // 2, h, w


def _check_size(card: Card, scene: Scene) -> None:
    _, height, width = scene.cube.shape
    if (height, width) != card.size:
        raise UserError(
            f"{scene.place} is {height}x{width} pixels, and the card {card.name} divides a scene of "
            f"{card.size[0]}x{card.size[1]} into training and test parts; give that scene, or a card for this one."
        )


def _normalised(scene: Scene, part: Rectangle, over: str, limits: tuple[float, float] | None) -> np.ndarray:
    top, left, h, w = part
    crop = scene.cube[:, top : top + h, left : left + w]
    low, high = (limits or value_range(scene)) if over == "scene" else value_range(replace(scene, cube=crop))
    return unit_range(crop, low, high)[0]


# --- reading a card's fields -----------------------------------------------------------------------------------------

def _is_int(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


def _list_of(test: Callable[[Any], bool], count: int | None = None) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return isinstance(value, list) and len(value) == (count or max(len(value), 1)) and all(map(test, value))

    return check


def _one_of(*choices: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in choices), "one of " + ", ".join(f'"{choice}"' for choice in choices)


_TEXT = (lambda value: isinstance(value, str)), "a string"
_SIZE = _list_of(_is_int, 2), "[height, width] in pixels"
_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "title": _TEXT,
    "publisher": _TEXT,
    "source": _TEXT,
    "test_source": _TEXT,
    "key": _TEXT,
    "layout": _one_of(*LAYOUTS),
    "bands": (_is_int, "a whole number of at least 1"),
    "size": _SIZE,
    "wavelengths": (
        lambda value: isinstance(value, dict) or _list_of(_is_number)(value),
        "a list of nm, or { first, last } with, if channels were taken out, { count, removed = [[from, to], ...] }",
    ),
    "rgb": (_list_of(lambda value: _is_int(value, 0), 3), "three band indices, counted from 0"),
    "normalise": _one_of("scene", "crop"),
    "crop": _SIZE,
    "patch": (_is_int, "a whole number of pixels"),
    "zooms": (_list_of(lambda value: _is_number(value) and 0 < value <= 1), "a list of numbers above 0 and up to 1"),
    "strides": (_list_of(_is_int), "a list of whole numbers of pixels, one for each zoom"),
    "test_normalise": _one_of("scene", "crop"),
    "test_crop": _SIZE,
    "test_region": (
        lambda value: _list_of(lambda v: _is_int(v, 0), 4)(value) and min(value[2:]) > 0,
        "[top, left, height, width] in pixels",
    ),
    "validation_scenes": (_list_of(lambda value: isinstance(value, str)), "a list of scene names"),
}


def _checked(table: dict[str, Any], path: Path) -> Card:
    def wrong(field: str, problem: str) -> UserError:
        return UserError(f"{path}: the field {field!r} {problem}.")

    for field, value in table.items():
        if field not in _EXPECTED:
            near = difflib.get_close_matches(field, _EXPECTED, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_EXPECTED)}"
            raise wrong(field, f"is unknown; {hint}")
        test, expected = _EXPECTED[field]
        if not test(value):
            raise wrong(field, f"is {value!r}; expected {expected}")
    for field in fields(Card):
        if field.default is MISSING and field.name != "name" and field.name not in table:
            raise wrong(field.name, f"is missing; expected {_EXPECTED[field.name][1]}")

    values = {field: tuple(value) if isinstance(value, list) else value for field, value in table.items()}
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
            raise wrong("wavelengths", f"is {value!r}; expected {_EXPECTED['wavelengths'][1]}")
        if not _is_int(count) or (removed and not _list_of(_list_of(_is_int, 2))(removed)):
            raise wrong("wavelengths", f"is {value!r}; expected 'bands' or 'count', and 'removed' as [[from, to], ...]")
        kept = np.ones(count, dtype=bool)
        for first, last in removed:  # both included, counted from 1 as publishers do
            kept[first - 1 : last] = False
        nm = np.linspace(value["first"], value["last"], count)[kept]
    if bands and len(nm) != bands:
        raise wrong("wavelengths", f"gives {len(nm)} values; expected one for each of the {bands} bands")
    return nm
