"""Options of both scripts, and the values that options take."""
from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

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
