"""What is asked for: scale factor, degradation, method, and how its result is measured."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from utility.checkpoints import CheckpointInfo
from utility.degradation import Degradation
from utility.names import ANY, DEFAULT_KIND, SAFE_MTF, STARTS
from utility.system.errors import UserError
from utility.system.progress import note


@dataclass(frozen=True)
class Problem:
    """The task of a method. Sizes are in pixels of the result."""

    scale: int
    degradation: str = DEFAULT_KIND
    start: str = STARTS[0]            # what the network is given; see `degradation.start_image`
    # whether a network is told the MTF of the degradation; else it was assumed
    mtf_known: bool = True
    # of an own cube, whether no blur came before its samples: see `aliasing`; None: to be found out
    aliased: bool | None = False
    sharp: bool = False               # the MTF is taken from the cube's steps: see `aliasing`
    # standard deviation, added to the low-resolution cube of a test, in units of [0, 1]
    noise: float = 0.0
    # dB, of the noise: added in a test, told of an own cube, or `auto`, estimated; None: none
    snr: float | str | None = None
    seed: int = 2021                  # of the noise
    method: str = "network"           # or one of UNTRAINED
    backproject: int = 0              # steps of back-projection on the network's output
    tile: int | str = "auto"
    # bytes for the whole process, on a processor; None: half of what is free
    memory: int | None = None
    bands_step: int | str = "auto"    # the network computes one of so many bands; see `spectrum`
    amp: str = "off"
    self_ensemble: bool = False
    bandwise: bool = False
    preset: str = "standard"
    border: int = 0


def state_problem(info: CheckpointInfo | None, scale: int | None = None,
                  degradation: str | None = None, own: bool = False, **more: Any) -> Problem:
    """The requested problem; fields that are not given come from the training of the checkpoint.

    A note on stderr says where the two differ, and what is taken where neither says. `own` is for a
    cube without ground truth, whose sensor is not known: its MTF is then assumed, unless it is
    given, or the weights know one kind alone. `more` are other fields of `Problem`.

    Raises UserError: a released checkpoint does not say its scale factor, or scale and degradation
    do not go together.
    """
    chosen, asked = scale is not None, degradation
    if info is not None:
        scale = scale or (info.scales[0] if info.scales else None)
        if scale is None:
            raise UserError(f"{info.path} does not say for which scale factor it was trained; give "
                            "the factor with --scale.")
        more["start"] = info.start
    elif scale is None:
        scale = 4
        note("no scale factor is given; 4 is taken, --scale chooses another")
    kind = degradation or _default_kind(info, own)
    try:
        found = Degradation.of(scale, kind)
    except ValueError as error:
        where = f"{info.path} cannot be used at " if info else ""
        raise UserError(f"{where}scale factor {scale} and degradation {kind}: {error}. Give others "
                        "with --scale and --degradation.") from error
    if info is not None:
        _note_differences(info, found, chosen)
    safe = own and not asked and found.kind == ANY
    if own and not safe and not asked and found.block_grid:
        mtf = found.nearest_mtf[0]
        note(f"{info.path if info else 'this method'} knows one blur, {kind}: at x{scale} a "
             f"sensor's MTF of {mtf:.2g}. For a sharper sensor its result is worse than the "
             "interpolation")
    return Problem(scale, kind, mtf_known=not safe, **more)


def _default_kind(info: CheckpointInfo | None, own: bool) -> str:
    """The degradation where none is asked for."""
    if info is None or info.degradation == ANY:
        return f"{ANY} {SAFE_MTF}" if own else DEFAULT_KIND
    return info.degradation or "reference"  # the kind of every released checkpoint


def _note_differences(info: CheckpointInfo, asked: Degradation, chosen: bool) -> None:
    """Notes where a checkpoint was trained for another problem, or does not say for which."""
    if info.scales and asked.scale not in info.scales:
        note(f"{info.path} was trained for scale factor {', '.join(map(str, info.scales))}, and "
             f"{asked.scale} is asked for: expect less of it")
    elif len(info.scales or ()) > 1 and not chosen:
        note(f"{info.path} was trained for scale factors {', '.join(map(str, info.scales))}; "
             f"{asked.scale} is taken, --scale chooses another")
    if not info.degradation:
        note(f"{info.path} does not say its degradation; {asked.name} is taken")
    elif info.degradation != asked.name and not (info.degradation == ANY and asked.block_grid):
        note(f"{info.path} was trained for degradation {info.degradation}, and {asked.name} is "
             "asked for: expect less of it")


def for_noise(problem: Problem, noise: np.ndarray | None) -> Problem:
    """The problem for a cube whose noise is told.

    What a network adds to a band removes the band's own noise, which its neighbours do not have. So
    each band is computed, unless a step is asked for.
    """
    if noise is None or problem.bands_step != "auto":
        return problem
    return replace(problem, bands_step=1)


def sensor_in_words(problem: Problem, snr: float | None = None, bands: int | None = None) -> str:
    """What is assumed of a cube's sensor, and what that means; `snr` of its noise in dB, `bands`
    where these are too few to tell it."""
    found = Degradation.of(problem.scale, problem.degradation)
    mtf = ", ".join(f"{m:.2g}" for m in dict.fromkeys(found.nearest_mtf))
    if problem.aliased:
        text = ("takes the cube for aliased, so that no sensor's blur is assumed and nothing is "
                "sharpened")
    elif problem.method == "interpolation":
        return f"interpolates, whatever the sensor's MTF is; its agreement is that of {mtf}"
    elif not found.block_grid:
        text = f"takes the cube for one that the degradation {problem.degradation} made"
    elif problem.sharp:
        text = (f"takes the sensor's MTF for {mtf} at the Nyquist frequency of the cube, for its "
                "steps are sharp; where the MTF is known, --mtf M gains detail")
    elif problem.mtf_known:
        kind = "" if found.kind == ANY else f" ({problem.degradation})"
        text = f"takes the sensor's MTF for {mtf}{kind} at the Nyquist frequency of the cube"
    else:
        text = (f"assumes a sensor's MTF of {mtf} at the Nyquist frequency of the cube, which is "
                "safe for any sensor; where the MTF is known, --mtf M gains detail")
    if snr is not None:
        return (f"{text}; its noise has a signal-to-noise ratio of {snr:.0f} dB, and is not "
                "sharpened")
    if bands is None or problem.aliased or problem.snr != "auto":
        return text
    return f"{text}; {bands} bands are too few to tell its noise, which --snr DB says"
