"""A container of one's own: one file, one registration, and every command knows it."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from utility.cubes import containers
from utility.cubes.axes import as_cube, stored_shape
from utility.cubes.containers import Container, register
from utility.cubes.cube import CubeWriter, Scene, Stored, Target
from utility.datasets.building import build_database
from utility.datasets.cards import generic_card
from utility.scenes import Reading, list_scenes, read_scene, write_scene
from utility.system.errors import UserError
from utility.system.files import replacing
from utility.testing.images import read_images

MAGIC = b"TOY CUBE"


def open_toy(path: Path, key: str | None) -> Stored:
    shape = np.fromfile(path, "<i4", 3, offset=len(MAGIC))
    return Stored(np.memmap(path, "<f4", "r", len(MAGIC) + 12, tuple(shape)), format="toy")


@contextmanager
def create_toy(target: Target) -> Iterator[CubeWriter]:
    array = np.zeros(stored_shape(target.layout, target.shape), "<f4")
    yield CubeWriter.into(target.path, as_cube(array, target.layout, target.shape[1:]))
    with replacing(target.path, target.overwrite) as temporary:
        temporary.write_bytes(MAGIC + np.array(array.shape, "<i4").tobytes() + array.tobytes())


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "TABLE", list(containers.TABLE))  # other tests do without it
    register(Container("toy", "a toy", (".toy",), lambda path, head: head.startswith(MAGIC),
                       open_toy, create_toy, types=frozenset({"float32"})))


def test_a_registered_container_is_written_read_listed_cut_and_tested(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).random((3, 20, 24), np.float32)
    for layout in ("BHW", "HWB"):
        write_scene(tmp_path / f"{layout}.toy", Scene(cube, "scene", layout=layout))
        scene = read_scene(tmp_path / f"{layout}.toy", bands=3)
        assert (scene.format, scene.layout) == ("toy", layout)
        np.testing.assert_array_equal(scene.cube, cube)
    write_scene(tmp_path / "again.npz", scene)
    np.testing.assert_array_equal(read_scene(tmp_path / "again.npz").cube, cube)
    assert [path.name for path in list_scenes(tmp_path)] == ["BHW.toy", "HWB.toy", "again.npz"]
    meta = build_database(tmp_path / "toy.lmdb", [tmp_path / "HWB.toy"], generic_card(8))
    assert meta["count"] == 6
    image, = read_images([tmp_path / "BHW.toy"], Reading(layout="BHW"))
    assert image.cube.shape == (3, 20, 24)


def test_messages_know_a_registered_container(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"suffix.*\.toy"):
        write_scene(tmp_path / "a.xyz", Scene(np.zeros((2, 3, 3), np.float32), "a"))
    with pytest.raises(UserError, match="cannot hold values of type int16"):
        write_scene(tmp_path / "a.toy", Scene(np.zeros((2, 3, 3), np.int16), "a"))
    (tmp_path / "text.toy").write_text("no scene")
    with pytest.raises(UserError, match="not a toy, MATLAB"):
        read_scene(tmp_path / "text.toy")
