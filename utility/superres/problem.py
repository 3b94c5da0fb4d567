"""What is asked for: scale factor, degradation, the method that enlarges a cube, and how its result is measured."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from utility.checkpoints import CheckpointInfo
from utility.degradation import check
from utility.names import DEFAULT_KIND, STARTS
from utility.system.errors import UserError
from utility.system.progress import note


@dataclass(frozen=True)
class Problem:
    """The task of a method. Sizes are in pixels of the result."""

    scale: int
    degradation: str = DEFAULT_KIND
    start: str = STARTS[0]            # what the network is given; see `degradation.start_image`
    noise: float = 0.0                # standard deviation, added to the low-resolution cube of a test, in units of [0, 1]
    seed: int = 2021                  # of the noise
    method: str = "network"           # or one of UNTRAINED
    backproject: int = 0              # steps of back-projection on the network's output
    tile: int | str = "auto"
    memory: int | None = None         # bytes for the whole process, on a processor; None: half of what is free
    bands_step: int | str = "auto"    # the network computes one of so many bands; see `spectrum`
    amp: str = "off"
    self_ensemble: bool = False
    bandwise: bool = False
    preset: str = "standard"
    border: int = 0


def state_problem(info: CheckpointInfo | None, scale: int | None = None, degradation: str | None = None,
                  **more: Any) -> Problem:
    """The requested problem; fields that are not given come from the training of the checkpoint.

    A note on stderr says where the two differ, and what is taken where neither says. `more` are other fields of `Problem`.

    Raises:
        UserError: a released checkpoint does not say its scale factor, or scale and degradation do not go together.
    """
    chosen = scale is not None
    if info is None:
        kind = degradation or DEFAULT_KIND
        if scale is None:
            scale = 4
            note("no scale factor is given; 4 is taken, --scale chooses another")
        where, trained = "", ()
    else:
        scale = scale or (info.scales[0] if info.scales else None)
        if scale is None:
            raise UserError(f"{info.path} does not say for which scale factor it was trained; give the factor with --scale.")
        kind = degradation or info.degradation or "reference"  # the kind of every released checkpoint
        more["start"] = info.start
        where = f"{info.path} cannot be used at "
        trained = (("scale factor", scale, info.scales), ("degradation", kind, info.degradation and (info.degradation,)))
    try:
        check(scale, kind)
    except ValueError as error:
        raise UserError(f"{where}scale factor {scale} and degradation {kind}: {error}. Give others with --scale and "
                        "--degradation.") from error
    for what, asked, known in trained:
        if not known and what == "degradation":
            note(f"{info.path} does not say its {what}; {asked} is taken")
        elif known and asked not in known:
            note(f"{info.path} was trained for {what} {', '.join(map(str, known))}, and {asked} is asked for: expect less of "
                  "it")
        elif len(known or ()) > 1 and not chosen:
            note(f"{info.path} was trained for scale factors {', '.join(map(str, known))}; {asked} is taken, --scale chooses "
                  "another")
    return Problem(scale, kind, **more)
