"""Every command on every page is one that its script understands; every link leads on."""
from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest
from typed import ROOT

import hsi_sr
import hsi_test

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]
PAGES = [path for path in PAGES
         if path.relative_to(ROOT).parts[0] not in (".venv", "results", "runs")]
PROGRAMS = ("python ", "torchrun ", "make ", "sh ")


class Understood(Exception):
    """The script has read its command line."""


def commands(page: Path) -> list[str]:
    """The indented lines and the words in backticks that begin with the name of a program."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    found += re.findall(r"`([^`\n]+)`", text)
    return [command for command in found if command.startswith(PROGRAMS)]


CASES = sorted(
    {(str(page.relative_to(ROOT)), command) for page in PAGES for command in commands(page)})


def understand(words: list[str], monkeypatch) -> None:
    """Raises Understood where a script takes these words; else SystemExit or UserError."""
    if words[0] == "hsi_test.py":
        hsi_test.parse(words[1:])
        raise Understood
    if words[0] == "hsi_sr.py":
        monkeypatch.setattr("utility.training.runs.newest_checkpoint",
                            lambda *_: Path("runs/NAME/last.pth"))
        hsi_sr.parse(words[1:])
        raise Understood
    parse = argparse.ArgumentParser.parse_args

    def parsed(*arguments, **more):
        parse(*arguments, **more)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(sys, "argv", words if words[0] != "-m" else words[1:])
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


@pytest.mark.parametrize(("page", "command"), CASES)
def test_a_command_on_a_page_is_understood(page, command, monkeypatch):
    program, *words = shlex.split(command, comments=True)
    if program == "make":
        targets = (ROOT / "Makefile").read_text(encoding="utf-8").split(".PHONY:")[1].split("\n")[
            0].split()
        assert words[0] in targets
        return
    if program == "sh":
        assert (ROOT / words[0]).exists()
        return
    if program == "torchrun":
        words = words[next(k for k, word in enumerate(words) if word.endswith(".py")):]
    with pytest.raises(Understood):
        understand(words, monkeypatch)
    shipped = [word for word in words if word.startswith("checkpoints/") and "NAME" not in word]
    assert all((ROOT / word).exists() for word in shipped)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = (
        re.findall(r"\]\((?!http|#)([^)#]+)", text) + re.findall(r'src="(?!http)([^"]+)"', text))
    assert not [target for target in targets if not (page.parent / target).exists()]


PROMISES = tomllib.loads((ROOT / "tests/promises.toml").read_text(encoding="utf-8"))
PROMISES = {(page, promise): test
            for page, promises in PROMISES.items() for promise, test in promises.items()}


@pytest.mark.parametrize(("page", "promise"), PROMISES)
def test_a_promise_of_a_page_has_its_test(page, promise):
    text = " ".join((ROOT / page).read_text(encoding="utf-8").replace("**", "").split())
    assert promise in text, "the page says something else by now"
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert f"def {PROMISES[page, promise]}(" in tests


def test_the_front_page_is_short_and_reaches_every_other_page_in_one_hop():
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(front.splitlines()) <= 200
    assert all(f"docs/{page.name}" in front for page in (ROOT / "docs").glob("*.md"))


def test_the_python_that_a_page_shows_enlarges_an_array():
    page = (ROOT / "docs/own-cubes.md").read_text(encoding="utf-8")
    code = re.search(r"## From Python\n\n((?:    .*\n|\n)+)", page)[1]
    low = np.random.default_rng(0).random((5, 8, 6), dtype=np.float32)
    names = {"low": low}
    exec(textwrap.dedent(code), names)
    assert names["sr"].shape == (5, 32, 24) and names["sr"].dtype == np.float32
