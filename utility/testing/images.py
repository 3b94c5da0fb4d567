"""The images of a test: ground-truth scenes, or the test parts of them that a card names."""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utility.cubes.cube import Scene
from utility.cubes.values import value_range
from utility.datasets.cards import Card, generic_card, list_cards, load_card, locate, split
from utility.datasets.regions import parts
from utility.scenes import Reading, list_scenes, open_as
from utility.system import distributed
from utility.system.errors import UserError
from utility.system.files import default_path
from utility.system.progress import note, track


@dataclass
class TestImage:
    """A ground-truth cube in [0, 1] and its scene."""

    __test__ = False  # pytest takes the name for a test's

    name: str
    cube: np.ndarray  # float32 (B, H, W)
    scene: Scene
    low: float = 0.0   # the values in the cubes that are written which are 0 and 1 here
    high: float = 1.0
    rgb: tuple[int, int, int] | None = None
    # where it came from and how it was scaled, for metrics.json
    source: dict[str, Any] = field(default_factory=dict)
    number: int = 0    # of its file in the test
    # (H, W) bool, pixels whose values were made up, see `Facts.filled`
    filled: np.ndarray | None = None


def find_scenes(data: Sequence[str] | None, dataset: str | None) -> tuple[Card | None, list[Path]]:
    """The card, if there is one, and the scene files; notes say which listed ones are missing.

    Without `data`: the card's scenes, or the test cubes that its database left.

    Raises UserError: a card or a path does not exist.
    """
    if (data and len(data) == 1 and not dataset and not Path(data[0]).exists()
            and data[0] in list_cards()):
        data, dataset = None, data[0]
    if data and not dataset:
        return None, list_scenes(data)
    card = load_card(dataset or "sample")
    written = default_path(f"data/test/{card.name}")
    whole = default_path(card.test_source or card.source)
    # utility/lmdb_data.py cut the test part
    if not data and written.is_dir() and not whole.exists():
        card = dataclasses.replace(card, key="gt", layout=None, size=None, test_region=None,
                                   validation_region=None)
        data = [str(written)]
    files, notes = split(card, list_scenes(data or [locate(card, "test")]), "test")
    for text in notes if not distributed.rank() else ():
        note(text)
    return card, files


def read_images(paths: Sequence[Path], reading: Reading, card: Card | None = None, *,
                together: bool = True, failed: list[str] | None = None) -> Iterator[TestImage]:
    """Read the test images in scene files: whole scenes, or the test parts that a card defines.

    Args:
        together: each process reads all files; False: each reads files of its own, see `run`.
        failed: takes the sentences on files that cannot be read or used, and the others follow;
            None: the first one is raised.

    Raises UserError: a file cannot be read or used; see `scenes` and `cards`.
    """
    own = _own_files(paths, together)
    if len(paths) > 1:
        own = track(own, "test", total=len(paths), unit="scene", leave=False)
    for number, path in own:
        try:
            yield from _images_in(path, number, reading, card)
        except UserError as error:
            if failed is None:
                raise
            failed.append(str(error))


def _images_in(path: Path, number: int, reading: Reading, card: Card | None) -> list[TestImage]:
    scene = open_as(path, card.completed(reading) if card else reading)
    # A card counts the bands of the whole scene.
    rgb, images = card.rgb if card and "source_bands" not in scene.metadata else None, []
    for part in parts(card or generic_card(), scene, "test",
                      value_range(scene, reading.keep_range)):
        whole = part.cube.shape == scene.cube.shape
        source = {"file": str(path), "card": card.name if card else None,
                  "region": list(part.region), "low": part.low, "high": part.high,
                  "scaled_over": "nothing: it is in [0, 1]"
                  if reading.keep_range or scene.normalised else part.over}
        placed = scene if whole else _unplaced(scene)
        images.append(TestImage(part.name, part.cube, placed, part.low, part.high, rgb, source,
                                number, part.filled))
    return images


def _own_files(paths: Sequence[Path], together: bool) -> Iterator[tuple[int, Path]]:
    """(number, file) of each file that this process reads; one process reads all files of one name
    and numbers their images."""
    names = list(dict.fromkeys(path.stem for path in paths))
    shared = not together and distributed.size() > 1
    for name in (names[turn] for turn in distributed.turns(len(names), "scenes")) if shared else [
            None]:
        yield from ((number, path)
                    for number, path in enumerate(paths) if name in (None, path.stem))


def _unplaced(scene: Scene) -> Scene:
    """The scene without its place on the ground, because a part of a scene lies elsewhere."""
    header = {k: v for k, v in scene.metadata.get("header", {}).items() if k != "map info"}
    metadata = (
        {**scene.metadata, "header": header} if "header" in scene.metadata else scene.metadata)
    return dataclasses.replace(scene, crs=None, transform=None, metadata=metadata)
