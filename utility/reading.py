"""Opening a scene file as the user's options and a dataset card say."""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from utility.cubes.bands import clean
from utility.cubes.cube import Scene
from utility.datasets.cards import Card
from utility.scenes import open_scene, read_scene
from utility.system.errors import UserError
from utility.system.progress import note

FEWEST = 4
"""Rows and columns of a scene at least: with fewer, every pixel is an edge."""


@dataclass(frozen=True)
class Reading:
    """How scene files are read; by default the file or the card says."""

    key: str | None = None
    layout: str | None = None
    size: tuple[int, int] | None = None
    bands: str | None = None
    drop_bands: str | None = None
    drop_bad_bands: bool = False
    fill_nodata: bool = False
    keep_range: bool = False
    nodata: float | None = None  # where the file declares none, or a wrong one


def open_as(path: Path, reading: Reading | None = None, card: Card | None = None, *, in_memory: bool = True,
            keep_bad: bool = False) -> Scene:
    """The scene in a file, with the bands that a network can take.

    Options go before the card's fields. The card's wavelengths are taken where the file has none. A note on stderr says how
    many pixels are missing in all bands.

    Args:
        in_memory: read the cube; else leave it on disk (see `open_scene`).
        keep_bad: keep bad bands and list them (see `clean`).

    Raises:
        UserError: the file cannot be read, its number of bands is not the card's, or bands are bad (see `clean`).
    """
    reading = reading or Reading()
    key, layout, bands, size = reading.key, reading.layout, None, reading.size
    if card:
        key, layout, bands = key or card.key, layout or card.layout, card.bands
        size = size or (card.size if (card.layout or "").startswith("pixels") else None)
    scene = (read_scene if in_memory else open_scene)(path, key, layout, bands, size)
    if scene.wavelengths is None and card:
        scene.wavelengths = card.wavelengths
    if reading.nodata is not None:
        scene = replace(scene, nodata=reading.nodata)
    scene = clean(scene, reading.drop_bad_bands, reading.fill_nodata, reading.bands, reading.drop_bands, keep_bad=keep_bad)
    count, gone, made_up = scene.cube.shape[1] * scene.cube.shape[2], *(
        0 if mask is None else int(mask.sum()) for mask in (scene.missing, scene.filled))
    if gone:
        note(f"{path}: {gone} of {count} pixels are missing in all bands; they count in no number, and are missing in a "
             "result again")
    if made_up > gone:
        note(f"{path}: {made_up - gone} of {count} pixels have values of their neighbours in a band at least; no number of a "
             "test counts them")
    bands, *size = scene.cube.shape
    if min(size) < FEWEST:
        raise UserError(f"{path} is {size[0]} x {size[1]} pixels, and at least {FEWEST} x {FEWEST} are needed; use a larger "
                        "scene.")
    if bands == 3:
        note(f"{path} has 3 bands, as a colour picture has; what is here is made for spectra of many bands")
    return scene
