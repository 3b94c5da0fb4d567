"""How the source files depend on one another, and the way of a scene through them."""
from __future__ import annotations

import ast
import sys
import tomllib
from dataclasses import replace
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import scipy.io

from utility.datasets.building import build_database
from utility.datasets.cards import generic_card

ROOT = Path(__file__).resolve().parent.parent
FILES = [path for path in ROOT.rglob("*.py") if ".venv" not in path.relative_to(ROOT).parts]
SOURCES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
SOURCES = {path: name.removesuffix(".__init__")
           for path, name in SOURCES.items() if not name.startswith("tests.")}
ABOVE: dict[str, tuple[str, ...]] = {
    "models": (), "utility/names": ("utility/system",), "utility/system": ("models",),
    "utility/degradation": ("utility/names", "utility/system", "models"),
    "utility/cubes": ("utility/system", "models"),
    "utility/scenes": ("utility/cubes", "utility/system")}
"""What the rooms of the ground may import."""
TOOLS = ("utility.system.", "utility.cubes.cube", "utility.cubes.product",
         "utility.datasets.rectangles")
"""What every stage of a scene's way may call."""


def imports(path: Path) -> set[str]:
    """The modules of this project that a file imports anywhere, also in functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & set(SOURCES.values())
            found |= inside if len(inside) == len(node.names) else {node.module, *inside}
    return found & set(SOURCES.values())


def room(module: str) -> str:
    """A folder is one room; in utility/ each of its folders and files is one."""
    return "/".join(module.split(".")[:2 if module.startswith("utility.") else 1])


def test_no_room_imports_itself_by_way_of_others():
    files = {name: imports(path) for path, name in SOURCES.items()}
    assert len(list(TopologicalSorter(files).static_order())) > 60  # raises CycleError
    rooms = {room(name): set() for name in files}
    for name, imported in files.items():
        rooms[room(name)] |= {room(other) for other in imported} - {room(name)}
    list(TopologicalSorter(rooms).static_order())
    assert len(rooms) <= 30 and sum(map(len, rooms.values())) <= 150
    assert not {name: found for name, below in ABOVE.items() if (found := rooms[name] - {*below})}


def test_a_scene_goes_straight_through_the_files_into_the_database(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat",
                     {"ref": np.random.default_rng(0).random((24, 20, 5)), "layout": "HWB"})
    card = replace(generic_card(4), zooms=(1.0, 0.5), strides=(8, 8), size=(24, 20),
                   test_region=(0, 0, 8, 8), validation_region=(16, 0, 8, 8))
    stack: list[str | None] = []
    # files in order of entry; calls down and back up, and several in a row, are one
    entered: list[str] = []

    def follow(frame, event: str, _: object) -> None:
        if event == "call":
            name = SOURCES.get(Path(frame.f_code.co_filename))
            if name and not name.startswith(TOOLS) and name not in {*stack, *entered[-1:]}:
                entered.append(name)
            stack.append(name)
        elif event == "return" and stack:
            stack.pop()

    sys.setprofile(follow)
    try:
        build_database(tmp_path / "a.lmdb", [tmp_path / "a.mat"], card)
    finally:
        sys.setprofile(None)
    # The database opens first, because a name that is taken is refused before a scene is read.
    way = ["datasets.building", "scenes", "datasets.cards", "lmdb_dataset", "scenes",
           "cubes.containers", "cubes.formats.matlab", "cubes.companions", "cubes.axes",
           "cubes.bands", "cubes.values", "cubes.fills", "datasets.regions", "cubes.values"]
    assert [name.removeprefix("utility.") for name in entered[:len(way)]] == way
    # Then a line says how the scene was read, and patches go into the database a row at a time.
    assert set(entered[len(way):]) == {"utility.scenes", "utility.datasets.patches",
                                       "utility.degradation", "utility.lmdb_dataset"}


LONG = {"models.layers.pooling.gpu._forward", "models.layers.pooling.gpu._backward"}
"""Functions of more than 60 lines: a kernel is one, and its loops share registers."""


def code_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    first, length = function.body[0], function.end_lineno - function.lineno + 1
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        length -= first.end_lineno - first.lineno + 1
    return length


def test_a_function_has_60_lines_at_most():
    found = set()
    for path, name in SOURCES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and code_lines(node) > 60:
                found.add(f"{name}.{node.name}")
    assert found <= LONG
    assert found == LONG, "the list names no function that has become short"


def test_a_comprehension_has_120_characters_at_most():
    found = []
    for path in FILES:
        # positions in a syntax tree count bytes
        text = path.read_bytes().splitlines()
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
                lines = text[node.lineno - 1:node.end_lineno]
                lines[-1] = lines[-1][:node.end_col_offset]
                lines[0] = lines[0][node.col_offset:]
                if len(b" ".join(line.strip() for line in lines).decode()) > 120:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


def test_no_file_is_left_out_by_the_linter():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    ruff = settings["tool"]["ruff"]
    assert ruff["line-length"] == 100 and "per-file-ignores" not in ruff["lint"]
    assert ruff["lint"]["mccabe"] == {"max-complexity": 15}
