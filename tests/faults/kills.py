"""Processes killed at every place: nothing is lost or half-made, the same command goes on."""
from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # an optimizer imports it: here once, and not in every child
from comparing import events, same
from harness import Tally, Watch, ended, fork, killed_after, said

import hsi_sr
import hsi_test
from utility.checkpoints import load_checkpoint
from utility.cubes.cube import CubeWriter, Scene
from utility.datasets.building import build_database
from utility.datasets.cards import generic_card
from utility.lmdb_dataset import DatabaseWriter, LMDBDataset, writing_database
from utility.scenes import read_scene, write_scene
from utility.system.errors import UserError
from utility.system.files import replacing, sweep
from utility.training import loop as training
from utility.training import runs
from utility.training.runs import SPEEDS, Board, RunFolder
from utility.training.state import State

SUFFIXES = (".mat", ".h5", ".npy", ".npz", ".hdr", ".tif")
TRAIN = ["-a", "biqrnn_1_1", "--data", "data.lmdb", "-b", "3", "-n", "3", "--save-minutes", "1e-4",
         "--run-dir", "run", "--ri", "2", "--quiet", "--no-cuda"]


def _plain(path: str | os.PathLike[str]) -> str:
    return re.sub(r"^\.(.+)\.[0-9a-f]{12}-\d+-[0-9a-f]{8}\.(partial|old)", r"\1.\2",
                  Path(path).name)


def _marked(owner: object, name: str, watch: Watch, label: Callable[..., str]) -> None:
    real = getattr(owner, name)

    def call(*args, **kwargs):
        watch(f"before {label(*args)}")
        result = real(*args, **kwargs)
        watch(f"after {label(*args)}")
        return result

    setattr(owner, name, call)


def mark(watch: Watch) -> None:
    """Make this process tell `watch` where it is."""
    for name in ("replace", "link"):
        _marked(os, name, watch, lambda source, target, name=name: f"{name} {_plain(target)}")
    _marked(os, "fsync", watch, lambda file: "fsync")
    _marked(shutil, "rmtree", watch, lambda path, *_: f"rmtree {_plain(path)}")
    _marked(Path, "unlink", watch, lambda path, *_: f"unlink {_plain(path)}")
    for owner, name in ((training, "train_step"), (training, "validate"),
                        (RunFolder, "write_history"), (Board, "flush"), (State, "save"),
                        (DatabaseWriter, "write"), (DatabaseWriter, "finish"),
                        (CubeWriter, "__setitem__")):
        _marked(owner, name, watch, lambda *_, name=name: name)

    def write_bytes(path: Path, data: bytes) -> None:
        with open(path, "wb") as file:
            file.write(data[:len(data) // 2])
            file.flush()
            watch(f"half of {_plain(path)}")
            file.write(data[len(data) // 2:])

    def figure(path: Path, *_: object, **__: object) -> None:
        """In place of a real one, which takes longer to draw than the steps of its run."""
        with replacing(path) as temporary:
            temporary.write_bytes(b"a figure")

    Path.write_bytes, runs.training_curve_figure = write_bytes, figure


@dataclass
class Work:
    """Something that is killed.

    Attributes:
        prepare: makes a folder in which the work can start.
        work: is done with that folder as the working folder.
        found: what stands there, "old" or "new", or "refused" where half a pair is refused by name;
            anything else raises.
    """

    what: str
    prepare: Callable[[Path], None]
    work: Callable[[], object]
    found: Callable[[Path], str]


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def start(work: Callable[[], object], folder: Path, watch: Watch, log: Path | None = None) -> int:
    def watched() -> object:
        os.chdir(folder)
        mark(watch)
        return work()

    return fork(watched, log or folder.with_suffix(".log"))


def kill(work: Callable[[], object], folder: Path, draw: random.Random, places: float,
         seconds: float, number: int = signal.SIGKILL) -> tuple[int, str]:
    """Kill the work within its first places or, in half of the cases, its first seconds.

    Returns its exit code, and the last place that it passed.
    """
    if number != signal.SIGKILL or draw.random() < 0.5:
        watch = Watch(1 + int(draw.random() * places), number)
        code = ended(start(work, folder, watch))
    else:
        watch = Watch()
        code = killed_after(draw.uniform(0, seconds), start(work, folder, watch), watch)
    return code, watch.place


# --- work that replaces something as a whole ------------------------------------------------------

def _cube(value: int) -> np.ndarray:
    return np.arange(value, value + 4 * 80 * 64, dtype=np.uint16).reshape(4, 80, 64)


def database(with_old: bool) -> Work:
    card = generic_card(16)

    def build(name: str) -> None:
        build_database("out.lmdb", [f"{name}.npy"], card, force=True, map_size_mb=1)

    def prepare(folder: Path) -> None:
        for value, name in enumerate(("old", "new")):
            np.save(folder / f"{name}.npy", _cube(0) ** (1 + value))
        if with_old:
            os.chdir(folder)
            build("old")

    def found(folder: Path) -> str:
        try:
            data = LMDBDataset(folder / "out.lmdb")
        except UserError:
            assert not with_old and not (folder / "out.lmdb").exists()
            return "old"
        assert (len(data) == 16
                and all(np.isfinite(data[i]).all() for i in range(16))), "the database is not whole"
        return {"old.npy": "old", "new.npy": "new"}[data.meta["sources"][0]["file"]]

    return Work(f"build of a database{', over an old one' if with_old else ''}", prepare,
                lambda: build("new"), found)


def scene(suffix: str) -> Work:
    """In two blocks, and for ENVI of another interleave, so that a wrong pair shows."""
    def write(value: int) -> None:
        like = Scene(_cube(value), "scene", layout="BHW",
                     metadata={"interleave": "bip" if value else "bsq"})
        write_scene(f"scene{suffix}", like, overwrite=True)

    def prepare(folder: Path) -> None:
        os.chdir(folder)
        write(0)

    def found(folder: Path) -> str:
        try:
            cube = read_scene(folder / f"scene{suffix}").cube
        except UserError as error:
            assert suffix == ".hdr" and "scene.hdr" in str(error), error
            return "refused"
        which = [
            name for name, value in (("old", 0), ("new", 7)) if np.array_equal(cube, _cube(value))]
        assert which, "another cube is read"
        return which[0]

    return Work(f"writing a scene, {suffix}", prepare, lambda: write(7), found)


def test() -> Work:
    def test(border: int) -> None:
        hsi_test.main(["--data", "scene.npy", "--method", "interpolation", "--scale", "4",
                       "--border", str(border), "--out", "results", "--no-figures", "--quiet",
                       "--force", "--no-cuda"])

    files = {"metrics.json", "metrics.csv", "metrics_bands.csv"}

    def prepare(folder: Path) -> None:
        np.save(folder / "scene.npy", _cube(0))
        os.chdir(folder)
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            test(0)

    def found(folder: Path) -> str:
        sweep(folder)
        metrics = json.loads((folder / "results" / "metrics.json").read_text())
        assert {path.name for path in (folder / "results").iterdir()} == files, "files are missing"
        return "new" if metrics["border"] else "old"

    return Work("test of a scene", prepare, lambda: test(2), found)


def _killed(work: Work, scratch: Path, count: int, draw: random.Random, number: int) -> Tally:
    sort = "killed" if number == signal.SIGKILL else "terminated"
    tally = Tally("kills", f"{work.what}, {sort}")
    here = Path.cwd()
    sound, folder = scratch / "sound", scratch / "work"
    for path in (sound, folder):
        shutil.rmtree(path, ignore_errors=True)
    sound.mkdir()
    work.prepare(sound)
    os.chdir(here)
    shutil.copytree(sound, folder)
    watch, begin = Watch(), time.perf_counter()
    assert ended(start(work.work, folder, watch)) == 0, said(folder.with_suffix(".log"))
    places, seconds = watch.count, time.perf_counter() - begin
    left = 20 * count
    while sum(tally.outcomes.values()) + len(tally.failures) < count and (left := left - 1):
        shutil.rmtree(folder)
        shutil.copytree(sound, folder)
        code, place = kill(work.work, folder, draw, places, seconds, number)
        if code == 0:  # the kill came too late
            continue
        tally.places[place] += 1
        log = said(folder.with_suffix(".log"))
        problem = ""
        if number == signal.SIGTERM and (code != 130 or "Traceback" in log or hidden(folder)):
            problem = f"exit {code}, left {hidden(folder)}: {log[-1000:]}"
        if number == signal.SIGKILL and code != -signal.SIGKILL:
            problem = f"exit {code}: {log[-1000:]}"
        try:
            outcome = work.found(folder)
        except (AssertionError, UserError, OSError, KeyError) as error:
            outcome, problem = "", problem or f"then {error!r}"
        if not problem:
            code = ended(start(work.work, folder, Watch()))
            if code or work.found(folder) != "new" or hidden(folder):
                words = said(folder.with_suffix(".log"))[-1000:]
                problem = f"again: exit {code}, left {hidden(folder)}: {words}"
        tally.check(not problem,
                    f"{outcome} whole" if outcome != "refused" else "half a pair refused",
                    f"{place}: {problem}")
    return tally


# --- training -------------------------------------------------------------------------------------

def _train(*arguments: str) -> int:
    return hsi_sr.main([*TRAIN, *arguments])


def training_work() -> Work:
    def prepare(folder: Path) -> None:
        with writing_database(folder / "data.lmdb") as writer:
            writer.write(np.random.default_rng(0).random((13, 4, 16, 16), np.float32))
            writer.finish(validation=4)

    def found(folder: Path) -> str:
        for path in (folder / "run").glob("*.pth"):
            load_checkpoint(path)
        return "old"

    return Work("training", prepare, _train, found)


def _go_on(folder: Path) -> Callable[[], int]:
    """What somebody types after a kill: the same command, or -r where there is a checkpoint."""
    if (folder / "run/last.pth").exists():
        return lambda: hsi_sr.main(["-r", "-rp", "run/last.pth", "--quiet", "--no-cuda"])
    return _train


def _left(run: Path) -> dict[str, object]:
    """All that a run leaves, but for what measures time."""
    found: dict[str, object] = {path.name: torch.load(path, weights_only=True)
                                for path in sorted(run.glob("*.pth"))
                                if path.name != "last.prev.pth"}
    with open(run / "history.csv", newline="") as file:
        found["history.csv"] = [
            {k: v for k, v in row.items() if k not in SPEEDS} for row in csv.DictReader(file)]
    found["events"] = []
    for event in events(run):
        for value in event.summary.value:
            if value.tag.removeprefix("epoch/") not in SPEEDS:
                found["events"].append((event.step, value.tag, value.simple_value,
                                        value.image.encoded_image_string))
    found["events"].sort()
    return found


def chains(scratch: Path, count: int, draw: random.Random) -> Iterator[Tally]:
    """Runs killed until they have made `count` kills, each compared with one that was not."""
    kills, chains = (Tally("kills", "training, killed"),
                     Tally("kills", "training, killed and resumed to its end"))
    stopped = Tally("kills", "training, terminated")
    sound = scratch / "sound_training"
    sound.mkdir()
    training_work().prepare(sound)
    whole = scratch / "whole"
    shutil.copytree(sound, whole)
    watch, begin = Watch(), time.perf_counter()
    assert ended(start(_train, whole, watch)) == 0, said(whole.with_suffix(".log"))
    places, seconds, right = watch.count, time.perf_counter() - begin, _left(whole / "run")
    number = 0
    while sum(kills.outcomes.values()) < count:
        folder = scratch / f"chain_{number}"
        shutil.copytree(sound, folder)
        path, problem, number = [], "", number + 1
        legs = draw.randint(1, 6)
        while not problem:
            command, before = _go_on(folder), set(hidden(folder))
            if len(path) < legs:
                sort = signal.SIGTERM if draw.random() < 0.2 else signal.SIGKILL
                code, place = kill(command, folder, draw, places / legs, seconds / legs, sort)
            else:
                sort, code, place = 0, ended(start(command, folder, Watch())), "the end"
            log = said(folder.with_suffix(".log"))
            path.append(place)
            if code == -signal.SIGKILL:
                kills.places[place] += 1
                saved = (folder / "run/last.pth").exists()
                kills.outcomes["with a checkpoint" if saved else "before the first checkpoint"] += 1
            elif code == 130 and sort == signal.SIGTERM:
                stopped.places[place] += 1
                left = set(hidden(folder)) - before  # a kill before it may have left others
                stopped.check("Traceback" not in log and not left, "state saved",
                              f"{path}: {left} {log}")
            # killed after the last checkpoint
            elif code == 0 or (code == 2 and "all that were asked for" in log):
                break
            else:
                problem = f"{path}: exit {code}: {log[-1500:]}"
        if not problem:
            found = _left(folder / "run")
            other = [name for name in right if not same(found.get(name), right[name])]
            problem = f"{path}: {', '.join(other)} differ" if other else ""
        chains.check(not problem, "equal in weights, optimizer, history and events", problem)
        if not problem:
            shutil.rmtree(folder)
    yield from (kills, stopped, chains)


def run(scratch: Path, share: float, seed: int) -> Iterator[Tally]:
    """200 kills and 60 terminations at share 1."""
    draw = random.Random(seed)

    def part(count: int) -> int:
        return max(1, round(count * share))

    yield from chains(scratch, part(80), draw)
    for work, count in ((database(True), 30), (database(False), 15),
                        *((scene(suffix), 8) for suffix in SUFFIXES), (test(), 27)):
        for number, of in ((signal.SIGKILL, count), (signal.SIGTERM, count // 3)):
            yield _killed(work, scratch, part(of), draw, number)
