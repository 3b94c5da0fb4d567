"""How this project says that something it was given is wrong: one sentence, and a non-zero exit."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user gave cannot be used.

    The message is one sentence that names the file or option, says what was found, what was expected, and what to do.
    """


def whole_numbers(text: str) -> tuple[int, ...]:
    """The numbers in "2,4,8" or "2 4 8": a type for argparse, which says what was expected where they are none."""
    try:
        numbers = tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError:
        numbers = ()
    if not numbers:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, or several with commas between, such as 2,4,8")
    return numbers


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's ``main`` and exit: 0 when it returns None, 2 for bad input, 130 for Ctrl-C.

    A ``UserError`` is printed as one line on stderr without a traceback; any other exception is a fault of this project
    and keeps its traceback.
    """
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
