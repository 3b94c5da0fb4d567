"""The names that options take. What they stand for is imported when it is needed: a command line is
read before torch is."""
from __future__ import annotations

from utility.system.errors import UserError

SCALES = (2, 3, 4, 8)
DEGRADATIONS = ("mtf", "area", "gaussian", "bicubic", "spatial", "reference")
"""Of `utility.degradation.KINDS`."""
DEFAULT_KIND = "gaussian"
ANY = "mtf"
"""The degradation of a training that draws MTFs, and of a network that serves every blur."""
SAFE_MTF = 0.7
"""Assumed where a sensor's MTF is not known: too sharp costs detail, too blurred makes false
edges."""
STARTS = ("interpolation", "backprojection")
"""What a network is given and adds its residual to; see `utility.degradation.Degradation.start`."""

UNTRAINED = {"interpolation": "interpolation", "backprojection": "back-projection"}
"""The methods that stand beside every network: {name in metrics.json: what a reader sees}."""
METHODS = (*UNTRAINED, "network")
PRESETS = ("standard", "reference", "sspsr")
"""Of `utility.indexes.PRESETS`."""

PRECISIONS = ("off", "bf16", "fp16")
"""Of mixed precision; see `utility.system.devices.AMP`. Without training there is `auto` too."""
POOLING = ("loop", "cpu", "triton")
"""Of `models.layers.pooling.BACKENDS`."""

STORED = ("float32", "float16")
"""The data types of a database's values."""
LOSSES = ("mse", "l1", "band")
"""Of `utility.training.losses.LOSSES`."""


def parse_mtf(text: str) -> tuple[float, float]:
    """`0.3`, or `0.3,0.25` (rows, columns), as two numbers in (0, 1). Raises ValueError."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or not all(0 < number < 1 for number in numbers):
        raise ValueError(f"an MTF of {text!r} was asked for; give a number above 0 and below 1, or "
                         "two for rows and columns, such as 0.3 or 0.3,0.25")
    return numbers[0], numbers[-1]


def with_mtf(kind: str | None, text: str) -> str:
    """The name of the degradation of `--degradation KIND --mtf M[,M]`, or of `--mtf M[,M]` alone.
    Raises UserError."""
    if kind not in (None, ANY):
        raise UserError(f"--mtf {text} was given with --degradation {kind}, which has a blur of "
                        "its own; leave one out.")
    try:
        numbers = parse_mtf(text)
    except ValueError as error:
        raise UserError(f"--mtf cannot be used: {error}.") from error
    return f"{ANY} {','.join(f'{number:g}' for number in dict.fromkeys(numbers))}"
