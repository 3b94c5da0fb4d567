"""How a script ends early: one sentence for bad input, the exit status, and what Ctrl-C does."""
from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class UserError(Exception):
    """Something the user gave cannot be used.

    The message is one sentence that names the file or option, says what was found, what was
    expected, and what to do.
    """


class Unclear(UserError):
    """A file holds several things that may be meant, and the user has to say which."""


class Arguments(argparse.ArgumentParser):
    """The parser of a script: it shows the description as written, takes no abbreviations, and says
    what is wrong in one sentence, without the usage in front.

    Args:
        plain: the option that is meant where a word stands without one.
    """

    def __init__(self, description: str = "", plain: str = "", **how: Any) -> None:
        self.plain = plain
        super().__init__(description=description, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **how)

    def error(self, message: str) -> NoReturn:
        kind, _, words = message.partition(": ")
        if kind == "unrecognized arguments":
            message += self._meant(words)
        self.exit(2, f"error: {message}; --help lists the options.\n")

    def _meant(self, words: str) -> str:
        """What may be meant by a word without an option, or by an option that is not there."""
        if not words.startswith("-"):
            return f"; {self.plain} goes in front of a file" if self.plain else ""
        shown = [flag for action in self._actions if action.help != argparse.SUPPRESS
                 for flag in action.option_strings]
        near = difflib.get_close_matches(words.split()[0], shown, 1)
        return f"; {near[0]} may be meant" if near else ""


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's ``main`` and exit: 0 when it returns None, 2 for bad input or too little
    memory, 130 for Ctrl-C and SIGTERM.

    A ``UserError`` is printed as one line on stderr without a traceback; any other exception is a
    fault of this project and keeps its traceback.
    """
    # what is half-written is removed, as after Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = _printed(main) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except (MemoryError, RuntimeError) as error:
        if (not isinstance(error, MemoryError) and "allocate memory" not in str(error)
                and "out of memory" not in str(error)):
            raise
        print("error: The memory is not enough "
              f"({str(error).splitlines()[0] if str(error) else 'MemoryError'}); use smaller "
              "scenes, batches or tiles, or a larger machine.", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # such as after `| head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def _printed(main: Callable[[], int | None]) -> int | None:
    try:
        return main()
    finally:
        sys.stdout.flush()  # here, where a closed pipe can still be answered


@contextmanager
def held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of the block, such as a removal."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {n: signal.signal(n, lambda number, _: came.append(number))
              for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


class Interruption:
    """Turns the first Ctrl-C (or SIGTERM) into `requested`, read between steps; a second one stops.

    A step that is cut in two leaves weights and optimizer that belong to no iteration.

    Args:
        patient: later ones change nothing. A scheduler and torchrun may each send one, and torchrun
            ends what takes 30 s.
        answers: say that the first one was heard.
    """

    def __init__(self, patient: bool = False, answers: bool = True) -> None:
        self.requested, self.patient, self.answers = False, patient, answers
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask)
                            for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        if self.requested and not self.patient:
            raise KeyboardInterrupt
        if self.answers and not self.requested:
            more = b"" if self.patient else b"; once more stops at once"
            os.write(2, b"\ninterrupted: this step ends and the state is saved" + more + b"\n")
        self.requested = True
