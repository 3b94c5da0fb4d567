"""Full disks: one sentence that says it, nothing left, and what was there before is whole."""
from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import kills
from harness import Tally, Watch, ended, is_sentence, said


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A file system of so many bytes at `folder`; yields False where none may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]
    mounted = (shutil.which("mount") is not None
               and subprocess.run(mount, capture_output=True).returncode == 0)
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)
        shutil.rmtree(folder)


def _taken(folder: Path) -> int:
    return sum(
        -(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def _limited(work: kills.Work, size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return work.work()


def run(scratch: Path, share: float, seed: int) -> Iterator[Tally]:
    """100 full disks at share 1, file systems of their own, or a limit of the size of files."""
    draw, here = random.Random(seed), Path.cwd()
    for work in (kills.database(True), kills.database(False), *map(kills.scene, kills.SUFFIXES),
                 kills.test(), kills.training_work()):
        tally = Tally("disks", work.what)
        sound, whole, disk = (scratch / name for name in ("sound", "whole", "disk"))
        sound.mkdir()
        work.prepare(sound)
        os.chdir(here)
        shutil.copytree(sound, whole)
        assert ended(kills.start(work.work, whole, Watch())) == 0, said(whole.with_suffix(".log"))
        held, needed, left = _taken(sound), _taken(whole), 50
        while (sum(tally.outcomes.values()) + len(tally.failures) < max(1, round(10 * share))
                and (left := left - 1)):
            room = draw.randrange(1, needed // 2)
            with small_disk(disk, held + room) as mounted:
                folder = disk / "work" if mounted else scratch / "disk_of_files"
                shutil.copytree(sound, folder, dirs_exist_ok=True)
                try:
                    code = ended(kills.start(work.work if mounted
                                             else lambda work=work, room=room: _limited(
                                                 work, room // 4), folder, Watch(),
                                             scratch / "log"))
                    if code == 0:  # there was room enough
                        continue
                    log, problem = said(scratch / "log"), ""
                    try:
                        outcome = work.found(folder)
                    except Exception as error:
                        problem = f"then {error!r}"
                    # LMDB says EIO where a limit cuts a write
                    words = "disk is full" if mounted else "space"
                    if (code != 2 or not is_sentence(log) or words not in log
                            or kills.hidden(folder)):
                        problem = f"exit {code}, left {kills.hidden(folder)}: {log[-1500:]}"
                    tally.check(not problem, f"said, {outcome} whole", f"{room} bytes: {problem}")
                finally:
                    shutil.rmtree(folder)
        for folder in (sound, whole):
            shutil.rmtree(folder)
        yield tally
