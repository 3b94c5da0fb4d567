"""One scene without ground truth, super-resolved by the best of three: weights adapted to it,
weights as given, no network.

Wald's protocol (Wald, Ranchin and Mangolini, PE&RS 1997): the scene is truth, its copy the input.

    scene -> a part without missing pixels -> rectangles for training, validation and test that
    share no pixel given weights -> fine-tuned on the first; the second picks the checkpoint; the
    third compares whole scene -> super-resolved by what did best in the third

A folder keeps the checkpoint, the test, the figures and one page. After an interruption the same
command goes on.
"""
from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models import Network
from utility.checkpoints import CheckpointInfo, model_from_checkpoint
from utility.cubes.bands import select_bands
from utility.cubes.cube import Scene
from utility.cubes.values import content_hash, unit_range, value_range
from utility.datasets.building import build_database
from utility.datasets.cards import CARD_FOLDER, Card
from utility.datasets.patches import count_patches
from utility.datasets.rectangles import Rectangle, largest_rectangle, training_rectangles
from utility.report.page import write_report
from utility.report.tables import format_table
from utility.scenes import Reading, first_line, open_as, write_scene
from utility.superres.cube_file import Applied, check_target
from utility.superres.deliver import deliver
from utility.superres.info import cost
from utility.superres.problem import Problem
from utility.superres.written_values import Writing, refuse_coarse
from utility.system.files import keep_out_of, refuse_existing, refuse_foreign, write_json
from utility.system.progress import duration, note, quiet, say, warn
from utility.testing import evaluation
from utility.testing.images import read_images
from utility.training.configuration import configure
from utility.training.loop import train
from utility.training.plan import prepare
from utility.training.steps import seconds_per_step
from utility.weights import label_of, sha256

MARKS = ("adapt.json",)
LARGEST = 1 << 27
"""Voxels of a scene that are cut into training, validation and test: 512 MB in float32."""

TEST_SIDE = 256
"""Rows and columns of the test part at most: enough to compare on, and the rest trains."""

PATCH, LARGE_PATCH = 36, 64
"""Side of a training patch; the large one where three fit beside each other in the test part."""

RECIPE = {"loss": "band", "clip": 1.0, "last_lr": 1.0, "patience": 8, "val_batches": 3,
          "tensorboard": False}
MOST_STEPS = 1000
WINDOW = 16
"""Neighbouring bands of a training patch: runs of them train a long spectrum too, and cheaply."""

NAMES = {"unadapted": "the given weights as they are", "network": "the adapted network",
         "backprojection": "back-projection"}
"""What may be delivered: {name in metrics.json: in words}. Of equals the first is taken."""


@dataclass(frozen=True)
class Division:
    """Where a scene is cut. All but `test` and `validation` trains, in patches of side `patch`."""

    test: Rectangle
    validation: Rectangle
    patch: int


def divide(height: int, width: int, scale: int) -> Division | None:
    """The lower right corner tests, a strip left of it validates; None where no patches fit."""
    h, w = (min(n // 2, TEST_SIDE) // scale * scale for n in (height, width))
    patch = LARGE_PATCH if min(h, w) >= 3 * LARGE_PATCH else PATCH
    if patch > min(h, w):
        return None
    top = height - h
    return Division((top, width - w, h, w),
                    (top, 0, min(h, patch * 5 // 4), min(width - w, 2 * patch)), patch)


def adapt(net: Network, info: CheckpointInfo, source: Path, target: Path, problem: Problem,
          reading: Reading, writing: Writing, *, folder: Path, minutes: float,
          facts: Mapping[str, Any], computing: Mapping[str, Any] | None = None) -> Applied:
    """Fine-tune `net` on the scene in `source`, and write its best super-resolution to `target`.

    Args:
        net, info: given weights, on the device that shall compute, and what their checkpoint says.
        folder: the results folder, locked. One that an interrupted call with the same scene,
            weights and target left is gone on with.
        minutes: for training, tests and result, as estimated before the training. The training gets
            what the others leave, a tenth at least.
        facts: for the report, "Command" and "Computed on" among them.
        computing: fields of `TrainingConfig` that say how it is computed.

    Raises:
        UserError: the scene cannot be used, an output exists, or the scene has fewer pixels than
            the degradation needs.
        KeyboardInterrupt: the training was interrupted; the folder keeps its state.
    """
    begin = time.monotonic()
    output = str(target.resolve())
    earlier = _unfinished(folder)
    check_target(source, target, replace(  # an interrupted call may have written its output
        writing, overwrite=writing.overwrite or earlier.get("asked", {}).get("output") == output))
    keep_out_of(folder, info.path, source, target)
    whole = open_as(source, reading, in_memory=False, keep_bad=True)
    refuse_coarse(whole, writing)
    scene = _part(whole, reading.keep_range)
    asked = {"scene": str(source.resolve()), "sha256": content_hash(scene.cube),
             "weights": sha256(info.path), "scale": problem.scale,
             "degradation": problem.degradation, "output": output}
    steps = _claimed(folder, asked, earlier, writing.overwrite)
    division = divide(*scene.cube.shape[1:], problem.scale) if scene.nodata is None else None
    work = _Adaptation(folder, folder / f"{source.stem}.mat", _card(source, scene, division),
                       problem, facts)
    write_scene(work.part, scene, overwrite=True)
    say(first_line(scene))
    began_test = time.monotonic()
    results = work.test(net, info, "unadapted" if division else "test", final=not division)
    chosen = net, info
    if division:
        rest = time.monotonic() - began_test + _seconds_for(net, whole, problem)
        if steps is None:
            steps = work.train(info, begin, minutes, 1.5 * rest, computing or {})
            write_json(folder / MARKS[0], {"asked": asked, "steps": steps})
        chosen = model_from_checkpoint(folder / "training" / "best.pth",
                                       pooling=net.execution.pooling)
        chosen[0].to(next(net.parameters()).device)
        results = work.test(*chosen, "test", final=True,
                            compare={"unadapted": folder / "unadapted" / "cubes"})
        results["methods"]["network"] = f"{label_of(info.arch, info.path)}, adapted"
    else:
        note(f"{source}: {_too_few(scene)}")
        results["mean"]["unadapted"] = results["mean"]["network"]
    psnr = {key: results["mean"][key]["psnr"] for key in NAMES if key != "network" or division}
    best = max(psnr, key=psnr.get)
    why = _why(psnr, best, division)
    net, info = {"unadapted": (net, info), "network": chosen, "backprojection": (None, None)}[best]
    applied = (problem if net
               else replace(problem, method="backprojection", backproject=0, self_ensemble=False))
    facts = {**facts, "Network": info and info.arch, "Checkpoint": info and str(info.path)}
    done = deliver(net, source, target, applied, reading, replace(writing, overwrite=True),
                   folder=folder / "result", facts=facts)
    best_step = chosen[1].iteration if division else None
    if division:
        facts["Training"] = f"{steps} steps, the best after {best_step}"
    work.finish({"asked": asked, "delivered": best, "why": why, "psnr": psnr,
                 "division": division and asdict(division), "steps": steps, "best_step": best_step,
                 "seconds": round(time.monotonic() - begin, 1), "output": str(target),
                 "command": facts["Command"]}, results, facts)
    for text in results["warnings"]:
        warn(text)
    say(format_table(results["images"], results["methods"], problem.preset, problem.scale,
                     problem.border))
    say(why)
    return done


@dataclass(frozen=True)
class _Adaptation:
    """The files of an adaptation in its folder."""

    folder: Path
    part: Path                  # the scene that is cut
    card: Card                  # how it is cut
    problem: Problem
    facts: Mapping[str, Any]

    def test(self, net: Network, info: CheckpointInfo, name: str, final: bool,
             compare: Mapping[str, Path] | None = None) -> dict[str, Any]:
        """Test on the test part; the folder `name` keeps figures of the `final` test, else the
        cubes that it is compared with."""
        with quiet():
            return evaluation.run(
                net, info, read_images([self.part], Reading(), self.card),
                replace(self.problem, snr=None),  # a test would add that noise
                self.folder / name, compare=compare, overwrite=True,
                outputs=evaluation.Outputs(cubes=not final, figures=final),
                facts={"command": self.facts["Command"], "device": self.facts["Computed on"]})

    def train(self, info: CheckpointInfo, begin: float, minutes: float, rest: float,
              computing: Mapping[str, Any]) -> int:
        """Fine-tune, or go on with an interrupted training; returns its steps.

        The time is what `rest`, the seconds of what follows, leaves of `minutes` from `begin` on.
        """
        card, run, database = self.card, self.folder / "training", self.folder / "database.lmdb"
        last = run / "last.pth"
        rectangles = training_rectangles(card.size, card.test_region, card.validation_region)
        for part_of_patch in (8, 4, 2, 1):  # steps between patches: small ones for a small scene
            stride = card.patch // part_of_patch
            count = sum(count_patches(r[2:], card.patch, (stride,), (1.0,)) for r in rectangles)
            if count * card.bands * card.patch ** 2 < 1 << 26:
                break
        with quiet():
            build_database(database, [self.part], replace(card, strides=(stride,)), force=True)
        given = {"data": str(database), "run_dir": str(run), "scales": (self.problem.scale,),
                 "degradation": self.problem.degradation,
                 "unknown": float(not self.problem.mtf_known), **computing}
        if last.exists():
            config = configure({**given, "resume": str(last)})
        else:
            config = configure({**given, **RECIPE, "init": str(info.path),
                                "band_window": WINDOW if card.bands > WINDOW else None})
        plan = prepare(config)
        if (state := plan.state()).finished:  # and ended before adapt.json said so
            return state.iteration
        step = seconds_per_step(plan)
        spent = time.monotonic() - begin
        seconds = max(60 * minutes - spent - rest, 6 * minutes)
        # The time is looked at between epochs' steps, and the validation of an epoch comes on top.
        config.minutes = 0.85 * seconds / 60
        if not last.exists():
            config.iterations = max(1, min(int(0.8 * seconds / step), MOST_STEPS))
            config.warmup = min(20, config.iterations // 5)
        training = min(seconds, config.iterations * step * 1.25)
        say(f"time      {duration(spent + training + rest)} in all: {duration(spent)} until here, "
            f"training about {duration(training)}, test and whole scene about {duration(rest)}")
        if spent + training + rest > 66 * minutes:
            note(f"--minutes {minutes:g} is less than the test and the scene take here; the "
                 "training gets the least it can")
        result = train(config, plan, next_line=False)  # the database is gone at the end
        if result.interrupted:
            raise KeyboardInterrupt
        return result.iteration

    def finish(self, state: Mapping[str, Any], results: Mapping[str, Any],
               facts: Mapping[str, Any]) -> None:
        """The page and adapt.json; the database and the cut scene are made again when needed."""
        figures = [(f"held-out part: {kind}", self.folder / "test" / name)
                   for kind, name in results["images"][0]["figures"].items()]
        if (curve := self.folder / "training" / "training.png").exists():
            figures.append(("training", curve))
        figures.append(("the scene (its middle) and its super-resolution",
                        self.folder / "result" / "figure.png"))
        asked = state["asked"]
        title = f"{Path(asked['scene']).name}, x{asked['scale']}: {NAMES[state['delivered']]}"
        write_report(self.folder / "report.html", title, facts, results["images"],
                     results["methods"], figures, self.problem.preset, asked["scale"],
                     lead=f"{state['why'][0].upper()}{state['why'][1:]}.")
        for made in ("database.lmdb", "unadapted"):
            shutil.rmtree(self.folder / made, ignore_errors=True)
        self.part.unlink(missing_ok=True)
        write_json(self.folder / MARKS[0], state)


def _part(whole: Scene, keep_range: bool) -> Scene:
    """What is cut: the good bands in [0, 1] of the scene's range, in the largest rectangle without
    missing pixels.

    Where no patch fits into that rectangle, it is the whole scene, and its missing pixels are NaN,
    a declared value.
    """
    bad = set(whole.metadata.get("bad_bands", []))
    scene = select_bands(whole, [b for b in range(len(whole.cube)) if b not in bad])
    limits, (bands, height, width) = value_range(scene, keep_range, own=True), scene.cube.shape
    top, left, h, w = 0, 0, height, width
    if whole.filled is not None and min((found := largest_rectangle(~whole.filled))[2:]) >= PATCH:
        top, left, h, w = found
    side = math.isqrt(LARGEST // bands)
    if h * w > side * side:
        rows = min(h, max(side, side * side // w))
        columns = min(w, side * side // rows)
        top, left, h, w = top + (h - rows) // 2, left + (w - columns) // 2, rows, columns
    cube = unit_range(scene.cube[:, top:top + h, left:left + w], *limits)[0]
    gone = None if whole.filled is None else whole.filled[top:top + h, left:left + w]
    if missing := gone is not None and bool(gone.any()):
        cube[:, gone] = np.nan
    return Scene(cube, whole.name, layout="HWB", key="cube", normalised=True,
                 wavelengths=scene.wavelengths, nodata=np.nan if missing else None)


def _unfinished(folder: Path) -> dict[str, Any]:
    """What an interrupted call left in its folder: what it was asked for, and its steps where the
    training ended."""
    try:
        begun = json.loads((folder / MARKS[0]).read_text(encoding="utf-8"))
        return {} if "delivered" in begun else begun
    except (OSError, ValueError):
        return {}


def _claimed(folder: Path, asked: Mapping[str, Any], earlier: Mapping[str, Any],
             overwrite: bool) -> int | None:
    """The steps that an `earlier` call made that was asked the same, once its training ended; of
    another call nothing is left in the folder."""
    if earlier.get("asked") == asked:
        return earlier.get("steps")
    refuse_existing(folder, overwrite)
    refuse_foreign(folder, MARKS)
    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / MARKS[0], {"asked": asked})
    return None


def _card(source: Path, scene: Scene, division: Division | None) -> Card:
    """How the part of a scene is cut."""
    bands, height, width = scene.cube.shape
    return Card(name="", folder=CARD_FOLDER, title=source.name,
                patch=division.patch if division else 1, strides=(1,), bands=bands,
                size=(height, width), test_region=division and division.test,
                validation_region=division and division.validation)


def _too_few(scene: Scene) -> str:
    """Why nothing is trained, and what is done instead."""
    height, width = scene.cube.shape[1:]
    few = f"{height} x {width} pixels are too few"
    if scene.nodata is not None:
        few = f"no {PATCH} x {PATCH} pixels without a missing one are there, too few"
    return (f"{few} to train on some and test on others, so nothing is adapted; the scene's own "
            "degraded copy compares the given weights with back-projection")


def _seconds_for(net: Network, whole: Scene, problem: Problem) -> float:
    """What the whole scene will take."""
    bands = len(whole.cube) - len(whole.metadata.get("bad_bands", []))
    seconds = cost(net, (bands, *whole.cube.shape[1:]), problem.scale).seconds
    return seconds * (8 if problem.self_ensemble else 1)


def _why(psnr: Mapping[str, float], best: str, division: Division | None) -> str:
    """What is delivered, and the figures that say why."""
    others = " and ".join(
        f"{value:.2f} dB of {NAMES[key]}" for key, value in psnr.items() if key != best)
    where = (f"the {division.test[2]} x {division.test[3]} pixels held out" if division
             else "the degraded copy of the scene")
    return f"delivered: {NAMES[best]}, with {psnr[best]:.2f} dB PSNR on {where}, against {others}"
