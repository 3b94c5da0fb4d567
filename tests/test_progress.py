"""Long work says how far it is: a bar on a terminal, lines elsewhere."""
import io
import re
import sys

import pytest

from utility.system import progress
from utility.system.progress import duration, note, quiet, say, track, warn


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.Lines, "said", now[0])
    monkeypatch.setattr(progress.Lines, "active", [])
    return now


def test_off_a_terminal_a_line_every_30_s_says_what_is_done_and_left_of_all_that_is_under_way(
        clock, capsys):
    for scene in track(range(4), "test", unit="scene", leave=False):
        with track(total=10.0, desc="super-resolving") as inner:
            for _ in range(10):
                clock[0] += 2
                inner.update()
        if scene == 1:
            break
    assert (capsys.readouterr().err == "test: 25% done, 2 min left; super-resolving: 50% done, 10 "
            "s left\n")


def test_a_resumed_run_counts_its_own_steps_for_the_time_left(clock, capsys):
    with track(total=100, initial=80, desc="epoch 9") as bar:
        clock[0] += 40
        bar.update(10)
    assert capsys.readouterr().err == "epoch 9: 90% done, 40 s left\n"
    assert [duration(s) for s in (12.4, 89, 100, 5000, 9000)] == [
        "12 s", "89 s", "2 min", "83 min", "2.5 h"]


def test_a_terminal_gets_a_bar_and_quiet_work_says_nothing(clock, monkeypatch, capsys):
    with quiet(), quiet(False):
        for _ in track(range(3), "test"):
            clock[0] += 100
        say("said")
        note("noted")
        warn("warned")
    assert capsys.readouterr() == ("", "warning: warned\n")
    say("said")
    assert capsys.readouterr().out == "said\n"
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    for _ in track(range(3), "test", mininterval=0):
        pass
    assert re.search(r"test: 100%.*3/3", terminal.getvalue())
