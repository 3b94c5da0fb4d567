"""What a script says, and how far long work is: a bar on a terminal, elsewhere a line on stderr now
and then. Of several processes the first one says it."""
from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from tqdm import tqdm

from utility.system import distributed

EVERY = 30.0
"""Seconds between two lines where stderr is no terminal."""

_quiet = False


@contextmanager
def quiet(asked: bool = True) -> Iterator[None]:
    """In this block `say` and `note` print nothing and no bar is drawn; `warn` prints always. Not
    `asked`: as outside of it."""
    global _quiet
    before, _quiet = _quiet, _quiet or asked
    try:
        yield
    finally:
        _quiet = before


def say(text: str) -> None:
    """Print a line above the bars."""
    if not (_quiet or distributed.rank()):
        tqdm.write(text)
        sys.stdout.flush()


def note(text: str, kind: str = "note") -> None:
    """Print on stderr what is good to know. Every process says it, of its own scenes."""
    if not _quiet:
        tqdm.write(f"{kind}: {text}", file=sys.stderr)


def warn(text: str, kind: str = "warning") -> None:
    """Print on stderr what a reader must not miss."""
    tqdm.write(f"{kind}: {text}", file=sys.stderr)


def track(items: Iterable[Any] | None = None, desc: str = "", **how: Any) -> Bar:
    """A bar over `items`, or one that `update` moves; `how` goes to tqdm (total, initial, unit,
    ...)."""
    unseen = _quiet or distributed.rank() > 0
    if unseen or sys.stderr.isatty():
        return tqdm(items, desc, disable=unseen, **how)
    return Lines(items, desc, **how)


class Lines:
    """What is used of tqdm, as a line every `EVERY` seconds: share done and time left of all."""

    active: ClassVar[list[Lines]] = []
    said = time.monotonic()

    def __init__(self, items: Iterable[Any] | None, desc: str, *, total: float | None = None,
                 initial: float = 0, **_: Any) -> None:
        self.items, self.desc, self.n, self.initial = items, desc, initial, initial
        self.total = len(items) if total is None and hasattr(items, "__len__") else total
        self.begin = time.monotonic()
        Lines.active.append(self)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.items:
                yield item
                self.update()

    def close(self) -> None:
        if self in Lines.active:
            Lines.active.remove(self)

    def update(self, n: float = 1) -> None:
        self.n += n
        if time.monotonic() - Lines.said >= EVERY:
            Lines.said = time.monotonic()
            tqdm.write("; ".join(map(str, Lines.active)), file=sys.stderr)

    def set_postfix_str(self, *_: Any, **__: Any) -> None:
        """Bars alone show it."""

    def __str__(self) -> str:
        done = self.n - self.initial
        if not self.total or not done:
            return f"{self.desc}: begun"
        seconds = (self.total - self.n) / done * (time.monotonic() - self.begin)
        return f"{self.desc}: {self.n / self.total:.0%} done, {duration(seconds)} left"


Bar = tqdm | Lines


def duration(seconds: float) -> str:
    """"40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
