"""Options of both scripts, and the values that options take."""
from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from utility.cubes.axes import LAYOUTS
from utility.names import POOLING

Add = Callable[..., Any]
"""`argparse.ArgumentParser.add_argument` of a group."""


def add_computing(add: Add, *, several: str, precisions: Sequence[str], precision: str) -> None:
    """The device and the precision.

    Args:
        several: what several GPUs do.
        precisions: the values of --amp.
        precision: more of the help of --amp, its default in the end.
    """
    add("--no-cuda", dest="cuda", action="store_false",
        help="the processor, although there is a GPU")
    add("--gpu-ids", type=whole_numbers, metavar="ID",
        help=f"the GPU, -1 for none; several {several}, a process for each (default: 0, if there "
        "is one)")
    add("--pooling", choices=("auto", *POOLING), help="backend of the recurrence (default: auto)")
    add("--amp", choices=precisions, action="append",
        help="mixed precision; bf16 where a processor has no instructions for it must be given "
        f"twice{precision}")
    add("--tf32", action="store_true",
        help="a GPU may round the factors of convolutions to 10 bits of mantissa: faster, relative "
        "error near 1e-3; the degradation never does")
    add("--deterministic", action="store_true",
        help="the same bits in every run on the same GPU, slower; names what is not (on a "
        "processor, runs with the same number of threads agree to the last bit anyway)")


def add_reading(add: Add) -> None:
    """How the cube of a file is read."""
    add("--key", help="name of the cube in its file, when it holds several (default: the card's)")
    add("--layout", choices=LAYOUTS, metavar="AXES",
        help=f"of the cube as stored: {', '.join(LAYOUTS)}")
    add("--size", type=whole(1), nargs=2, metavar=("ROWS", "COLUMNS"),
        help="of the image, for bands x pixels without one")
    add("--drop-bad-bands", action="store_true", help="leave out constant, NaN and dead bands")
    add("--nodata", type=float, metavar="VALUE",
        help="of pixels without data, where the file does not say it")
    add("--fill-nodata", action="store_true",
        help="fill NaN and no-data pixels from their neighbours")


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A type for argparse: a whole number, `low` or more, `high` at most."""
    def number(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(
                f"{value} is not {f'from {low} to {high}' if high else f'at least {low}'}")
        return value

    return number


def gpus(given: Sequence[int] | None) -> tuple[int, ...] | None:
    """The GPUs that --gpu-ids names; the released scripts write -1 for none."""
    return None if given is None else tuple(number for number in given if number >= 0)


def whole_numbers(text: str) -> tuple[int, ...]:
    """The numbers in "2,4,8" or "2 4 8": a type for argparse."""
    try:
        numbers = tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError:
        numbers = ()
    if not numbers:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number, or several with commas between, such as 2,4,8")
    return numbers
