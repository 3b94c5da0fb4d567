"""Super-resolving every scene of a folder; the same command again goes on where it stopped."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from utility.cubes.containers import files_of, result_suffix, suffixes
from utility.scenes import list_scenes
from utility.system.errors import UserError
from utility.system.files import shown
from utility.system.progress import say, track, warn


def apply_to_folder(apply: Callable[[Path, Path], None], sources: Sequence[Path], target: Path,
                    ending: str, *, force: bool = False) -> int:
    """Call `apply(scene, result)` for each scene in `sources`; returns how many scenes failed.

    A result has the name of its scene with `ending`, in folders like those of the scenes, and the
    format of its scene where that can be written. A result that is newer than its scene is left as
    it is, whatever options made it. A scene that fails does not stop the others; failures are
    listed at the end.

    Raises UserError: there is no scene, or `target` is a file, named like one, or one of the
    folders.
    """
    named = str(sources[0]) if len(sources) == 1 else f"{len(sources)} files and folders"
    there = [source for source in sources if source.exists()]
    if target.exists() and (not target.is_dir() or any(map(target.samefile, there))):
        found = "the folder of the scenes" if target.is_dir() else "a file"
        raise UserError(f"{target} is {found}, and the results of {named} need a folder of their "
                        "own; choose another --output.")
    if target.suffix.lower() in suffixes() and not target.exists():
        raise UserError(f"{target} is the name of a file, and the results of {named} need a "
                        f"folder; give one, such as {target.with_suffix('')}/.")
    scenes, results = [], []
    for source in sources:
        for scene in list_scenes(source):
            if scene not in scenes:
                scenes.append(scene)
                results.append(result_in(target / _folder(scene, source), scene, ending))
    for scene, result in zip(scenes, results, strict=True):
        if results.count(result) > 1:
            raise UserError(f"{scene} and another scene of {named} would both become "
                            f"{result.name}; rename one of them.")
    skipped, failed = 0, []
    for scene, result in track(list(zip(scenes, results, strict=True)), sources[0].name,
                               unit="scene"):
        if not force and result.exists() and _newest(result) >= _newest(scene):
            skipped += 1
            continue
        say(f"{shown(scene)}:")
        try:
            apply(scene, result)
        except UserError as error:
            failed.append(str(error))
            warn(str(error), "failed")
    made = len(scenes) - skipped - len(failed)
    left = (" and left as they are (newer than their scene, but perhaps made with other options; "
            "--force makes them again)" * bool(skipped))
    say(f"{len(scenes)} scene{'s' * (len(scenes) != 1)}: {made} made, {skipped} already there"
        f"{left}, {len(failed)} failed; results in {shown(target)}/")
    for error in failed:
        warn(error, "failed")
    return len(failed)


def result_in(folder: Path, scene: Path, ending: str) -> Path:
    """The result of a scene in a folder: the scene's name with `ending`, in its format."""
    return folder / f"{scene.stem}{ending}{result_suffix(scene)}"


def _folder(scene: Path, source: Path) -> Path:
    """Where a scene lies in `source`."""
    return (scene.relative_to(source).parent if scene.is_relative_to(source) and scene != source
            else Path())


def _newest(scene: Path) -> float:
    return max(file.stat().st_mtime for file in files_of(scene))
