"""Children that are killed, limited and watched, and the tally of what became of them."""
from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utility.system.errors import UserError, run_script


@dataclass
class Tally:
    """What one kind of fault did: how often each outcome, and a line for each failure."""

    group: str
    what: str
    outcomes: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    places: Counter = field(default_factory=Counter)  # of kills

    def check(self, good: bool, outcome: str, failure: str) -> None:
        """Count an outcome, or note a failure."""
        if good:
            self.outcomes[outcome] += 1
        else:
            self.failures.append(failure)


class Watch:
    """What a child has passed, in memory that its parent reads: how many places, the last's name.

    Args:
        stop: the child gets `number` at this place; None: at none.
    """

    def __init__(self, stop: int | None = None, number: int = signal.SIGKILL) -> None:
        self.stop, self.number, self.shared = stop, number, mmap.mmap(-1, 256)

    def __call__(self, place: str) -> None:
        count = self.count + 1
        if self.stop and count > self.stop:
            return  # the place of the kill is the last one that counts
        self.shared[8:256] = place.encode()[:248].ljust(248, b"\0")
        self.shared[:8] = count.to_bytes(8, "little")
        if count == self.stop:
            os.kill(os.getpid(), self.number)

    @property
    def count(self) -> int:
        return int.from_bytes(self.shared[:8], "little")

    @property
    def place(self) -> str:
        return self.shared[8:256].rstrip(b"\0").decode()


def fork(work: Callable[[], Any], log: Path, *, memory: int | None = None,
         seconds: int = 900) -> int:
    """Start a child that does `work` as a script would, its output in `log`; its number.

    Args:
        memory: bytes that the child may take beside what it has.
        seconds: after so long the system ends the child (SIGALRM).
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if memory:
            limit = memory + int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with open(log, "w", buffering=1) as out:
            for number in (1, 2):
                os.dup2(out.fileno(), number)
            sys.stdout = sys.stderr = out
            run_script(work)
    except SystemExit as end:
        code = end.code
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """The exit code of a child; of a signal the number, negative."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_after(seconds: float, child: int, watch: Watch) -> int:
    """The exit code of a child that is killed so long after the first place that it passed."""
    while not watch.count and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(1e-3)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return ended(child)


@contextmanager
def patched(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """`owner.name` is what `make` makes of it, in this block."""
    real = getattr(owner, name)
    setattr(owner, name, make(real))
    try:
        yield
    finally:
        setattr(owner, name, real)


def said(log: Path) -> str:
    return log.read_text(errors="replace")


def is_sentence(text: str) -> bool:
    """Whether the errors that a script printed are one line without a traceback."""
    return (sum(line.startswith("error: ") for line in text.splitlines()) == 1
            and "Traceback" not in text)


def outcome_of(read: Callable[[], Any]) -> tuple[str, Any]:
    """What reading ends as: "read", "refused", "no memory" or "fault", and the value or why."""
    try:
        return "read", read()
    except UserError as error:
        return ("refused" if "\n" not in str(error) else "fault"), str(error)
    except MemoryError:
        return "no memory", ""
    except RuntimeError as error:
        if "allocate memory" in str(error):
            return "no memory", str(error)
        return "fault", traceback.format_exc()
    except Exception:
        return "fault", traceback.format_exc()


def save(path: Path, tallies: list[Tally]) -> None:
    path.write_text(json.dumps([vars(tally) for tally in tallies], indent=1))


def table(tallies: list[Tally]) -> str:
    """Markdown: one row for each kind of fault."""
    lines = ["| group | what | tried | outcome | failures |", "|---|---|---|---|---|"]
    for tally in tallies:
        tried = sum(tally.outcomes.values()) + len(tally.failures)
        outcome = ", ".join(f"{count:,} {name}" for name, count in sorted(tally.outcomes.items()))
        lines.append(
            f"| {tally.group} | {tally.what} | {tried:,} | {outcome} | {len(tally.failures)} |")
    return "\n".join(lines)
