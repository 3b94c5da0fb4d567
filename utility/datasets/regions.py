"""The parts of a scene that train, validate and test, as a card says, and their record."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from utility.cubes.cube import Scene
from utility.cubes.values import content_hash, unit_range, value_range
from utility.datasets.cards import Card
from utility.datasets.patches import places
from utility.datasets.rectangles import Rectangle, corners, training_rectangles, without
from utility.system.errors import UserError

GAP = 8
"""Pixels between what trains and what validates, where there is room: neighbours are alike."""


@dataclass(frozen=True)
class Part:
    """A part of a scene, scaled to [0, 1]."""

    name: str
    cube: np.ndarray            # (B, h, w) float32
    region: Rectangle           # in its scene
    low: float                  # the value that became 0
    high: float                 # the value that became 1
    over: str                   # "scene" or "crop": whose smallest and largest values these two are
    # (h, w) bool, pixels whose values were made up, see `Facts.filled`
    filled: np.ndarray | None = None


def divide(card: Card, scene: Scene,
           share: float = 0.0) -> tuple[dict[str, list[Part]], dict[str, Any]]:
    """The parts of a scene by use ("test" where the card has a region for it), and the record of
    the scene (`sources_of`).

    Args:
        share: of the training pixels, that validates instead: a corner, and a `GAP` beside it that
            is in no part. Nothing validates where no patch would be left on one side.

    Raises UserError: as `parts`, or a training part is smaller than a patch.
    """
    limits = value_range(scene)
    found = {use: parts(card, scene, use, limits)
             for use in ("training", "validation", *["test"] * bool(card.test_region))}
    for part in found["training"]:
        if min(part.region[2:]) < card.patch:
            raise UserError(f"{scene} is {part.region[2]}x{part.region[3]} pixels, smaller than a "
                            f"patch of {card.patch}x{card.patch}; choose a smaller --patch, or "
                            "leave the scene out.")
    if share:
        _hold_out(found, card.patch, card.strides[0], share)
    bands, *size = scene.cube.shape
    return (found,
            {"file": scene.path.name, "name": scene.name, "key": scene.key, "layout": scene.layout,
             "size": size, "bands": bands, "low": limits[0], "high": limits[1],
             "sha256": content_hash(scene.cube)})


def parts(card: Card, scene: Scene, use: str,
          limits: tuple[float, float] | None = None) -> list[Part]:
    """The parts of `scene` for one use.

    Around regions for test and validation, rectangles in which no training patch fits are left out.

    Args:
        use: "training", "validation" or "test".
        limits: the scene's `value_range`, for a caller that has it.

    Raises:
        UserError: the scene does not have the size that the card needs, holds NaN, or is constant.
    """
    over = card.test_normalise or card.normalise if use == "test" else card.normalise
    regions = _regions(card, scene, use)
    if over == "scene" and regions:
        limits = limits or value_range(scene)
    found = []
    for region in regions:
        top, left, h, w = region
        crop = scene.cube[:, top:top + h, left:left + w]
        filled = None if scene.filled is None else scene.filled[top:top + h, left:left + w]
        if over == "crop" and use != "test" and filled is not None and filled.all():
            continue
        low, high = (
            limits if over == "scene" else value_range(replace(scene, cube=crop, filled=filled)))
        name = f"{scene.name}_{use}" if card.test_region else scene.name
        found.append(Part(name, unit_range(crop, low, high)[0], region, low, high, over, filled))
    return found


def _hold_out(found: dict[str, list[Part]], patch: int, stride: int, share: float) -> None:
    """Move a corner of the largest training part to validation: the one beside which the most
    measured patches are left."""
    whole = max(found["training"], key=lambda part: part.region[2] * part.region[3])
    _, _, h, w = whole.region
    splits = {}
    for height, width in _sides(h, w, patch, share):
        for corner in corners((0, 0, h, w), height, width):
            held = _grown(corner, (h, w), patch)
            rest = [part for part in training_rectangles((h, w), held) if min(part[2:]) >= patch]
            counts = [sum(_measured(whole, part, patch, stride) for part in parts)
                      for parts in ([corner], rest)]
            if min(counts):
                splits.setdefault(sum(counts), (corner, rest))
    if splits:
        corner, rest = splits[max(splits)]
        found["training"] = ([part for part in found["training"] if part is not whole]
                             + [_cut(whole, part) for part in rest])
        found["validation"] = [_cut(whole, corner)]


def _sides(h: int, w: int, patch: int, share: float) -> list[tuple[int, int]]:
    """Heights and widths of a corner of this share of h x w pixels, a patch at least: as the image,
    or a strip of it."""
    side = math.sqrt(share)
    shapes = [(side * h, side * w), (share * h, w), (h, share * w)]
    return [tuple(min(n, max(patch, round(length)))
                  for length, n in zip(shape, (h, w), strict=True)) for shape in shapes]


def _grown(corner: Rectangle, size: tuple[int, int], patch: int) -> Rectangle:
    """The corner and the gap beside it, smaller where the gap would leave no room for a patch."""
    placed = []
    for first, length, n in zip(corner[:2], corner[2:], size, strict=True):
        gap = min(GAP, max(0, n - length - patch))
        placed.append((first - gap if first else 0, length + gap))
    (top, height), (left, width) = placed
    return top, left, height, width


def _measured(part: Part, region: Rectangle, patch: int, stride: int) -> int:
    """How many patches a region of a part has, without those with a made-up pixel."""
    top, left, h, w = region
    filled = None if part.filled is None else part.filled[top:top + h, left:left + w]
    return len(places((h, w), patch, (stride,), (1.0,), filled))


def _cut(part: Part, region: Rectangle) -> Part:
    top, left, h, w = region
    inside = np.s_[top:top + h, left:left + w]
    place = (part.region[0] + top, part.region[1] + left, h, w)
    return replace(part, cube=part.cube[:, *inside], region=place,
                   filled=None if part.filled is None else part.filled[inside])


def sources_of(scene: Scene, region: Rectangle, sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """The files among a database's recorded `sources` that share pixels with a region of `scene`.

    A source is the same scene if it has the same content, or the same name and size; a test cube
    says what scene it was cut from, and where.
    """
    if not sources:
        return []
    digest, size, place = content_hash(scene.cube), list(scene.cube.shape[1:]), {}
    if origin := scene.metadata.get("origin"):
        (top, left), (first, start, *shape) = origin["region"][:2], region
        place[origin["sha256"]] = (top + first, left + start, *shape)
    place[digest] = region
    whole, found = (0, 0, 1 << 24, 1 << 24), set()
    for source in sources:
        same = (digest if (source.get("name"), source.get("size")) == (scene.name, size)
                else source.get("sha256"))
        if (same in place
                and any(without(place[same], tuple(held)) != [place[same]]
                        for held in source.get("regions", [whole]))):
            found.add(str(source["file"]))
    return sorted(found)


def _regions(card: Card, scene: Scene, use: str) -> list[Rectangle]:
    size = scene.cube.shape[1:]
    held = [region for region in (card.test_region, card.validation_region) if region]
    if held and size != card.size:
        raise UserError(f"{scene} is {size[0]}x{size[1]} pixels, and the card {card.name} divides "
                        f"a scene of {card.size[0]}x{card.size[1]} into training and test parts; "
                        "give that scene, or a card for this one.")
    if use == "test":
        return [card.test_region or _centre(card, scene, card.test_crop)]
    if use == "validation":
        return [card.validation_region] if card.validation_region else []
    if not held:
        return [_centre(card, scene, card.crop)]
    return [region for region in training_rectangles(size, *held) if min(region[2:]) >= card.patch]


def _centre(card: Card, scene: Scene, crop: tuple[int, int] | None) -> Rectangle:
    _, height, width = scene.cube.shape
    h, w = crop or (height, width)
    if h > height or w > width:
        raise UserError(f"{scene} is {height}x{width} pixels, smaller than the {h}x{w} that the "
                        f"card {card.name} takes from its centre; leave it out, or use a card with "
                        "a smaller crop.")
    return (height - h) // 2, (width - w) // 2, h, w
