"""What this checkout must reach against another one: sections, and one table of what they found."""
from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.file_to_file import (
    COMMANDS,
    compare_files,
    compare_memory,
    compare_scenes,
    measure_satellite,
)
from benchmarks.measure import Rows, Setup, compare_checkouts, compare_variants, variants
from benchmarks.sections import Section


def sections(theirs: Path, ours: Path, scenes: list[str]) -> dict[str, tuple[str, Section]]:
    """Title and measurement of each section, by name."""
    found: dict[str, tuple[str, Section]] = {}
    for name, title in (("network", "224 bands from file to file"),
                        ("narrow", "31 bands from file to file"),
                        ("backprojection", "Back-projection from file to file"),
                        ("start", "The start"), ("database", "A database"),
                        ("float32", "From file to file in float32")):
        found[name] = (f"{title}: two checkouts in turns, fresh processes",
                       partial(compare_files, theirs=theirs, ours=ours, commands=COMMANDS[name]))
    return found | {
        "scenes": ("Ground-truth scenes, default options",
                   partial(compare_scenes, theirs=theirs, ours=ours, scenes=scenes)),
        "released": ("The fast network against the released way", compare_released),
        "against": ("The network by itself: two checkouts, call by call in turns",
                    partial(compare_checkouts, theirs=theirs, ours=ours)),
        "memory": ("224 bands within less memory, in turns", partial(compare_memory, ours=ours)),
        "satellite": ("A whole satellite scene in 4 GB", partial(measure_satellite, ours=ours))}


def compare_released(setup: Setup) -> Rows:
    """Inference and a training step, the released way and the fast one in turns, five rounds at
    least."""
    ways = variants(setup.device)[:2]
    shapes = {"inference": (1, 1, *setup.sizes["inference"][0]),
              "training step": setup.sizes["training"]}
    rows: Rows = []
    for work, shape in shapes.items():
        found = compare_variants(setup.at_least(5), work, ways, shape)
        rows += [{"work": work, **row} for row in found]
    return rows


class Must(NamedTuple):
    """A line of the table: `found` gives the figure of the section's rows, which must be at least
    `least`, or at most `most`."""

    measure: str
    section: str
    found: Callable[[Rows], float]
    least: float | None = None
    most: float | None = None

    def line(self, rows: Rows) -> dict[str, Any]:
        found = self.found(rows)
        must = f"{self.least:g} or more" if self.most is None else f"{self.most:.3g} or less"
        reached = found >= self.least if self.most is None else found <= self.most
        return {"measure": self.measure, "must": must, "found": f"{found:.3g}",
                "reached": "yes" if reached else "NO"}


def must_reach(vector: str) -> list[Must]:
    """All lines; `vector` names the processor's instructions, as torch does."""
    def of(key: str, **where: str) -> Callable[[Rows], float]:
        return lambda rows: [row for row in rows if where.items() <= row.items()][-1][key]

    def apart(key: str) -> Callable[[Rows], float]:
        return lambda rows: max(rows[0][key], 1 / rows[0][key])

    inference = 3.0 if vector.startswith("AVX512") else 2.2
    return [
        Must("file to file, 224 bands, x4: times faster", "network", of("faster"), 4.0),
        Must("its peak memory, as a share of theirs", "network", of("of theirs"), most=1 / 3),
        Must("31 bands: times faster", "narrow", of("faster"), 1.2),
        Must("back-projection, 224 bands: times faster", "backprojection", of("faster"), 2.0),
        Must("its peak memory, as a share of theirs", "backprojection", of("of theirs"), most=0.5),
        Must("mean PSNR of the scenes: change in dB", "scenes", of("change"), -0.02),
        Must("their mean SAM: change in degrees", "scenes", of("change of SAM"), most=0.0),
        Must("--help: times faster", "start", of("faster", command="--help"), 4.0),
        Must("a refused option: times faster", "start", of("faster", command="a refused option"),
             4.0),
        Must("224 bands within 2 GB: time, as a share of the default's", "memory",
             of("of default", command="--memory 2"), most=1.05),
        Must("its peak memory in GB", "memory",
             lambda rows: of("process", command="--memory 2")(rows) / 1e9, most=2.0),
        Must("a satellite scene in 4 GB: its time over what --info tells, or the inverse",
             "satellite", apart("of told"), most=1.3),
        Must("its peak memory, likewise", "satellite", apart("of told memory"),
             most=1.3),
        Must("biqrnn_16_5, inference, against the released way", "released",
             of("faster", work="inference", variant="fast"), inference),
        Must("a training step, likewise", "released",
             of("faster", work="training step", variant="fast"), 2.3),
        Must("biqrnn_16_5, inference, against the other checkout", "against",
             of("faster", work="inference"), 0.98),
        Must("a training step, likewise", "against", of("faster", work="training step"), 0.98),
        Must("building a database: times faster", "database", of("faster"), 1.5)]


def verdicts(results: dict[str, Rows], vector: str) -> Rows:
    """The table of what must be reached, of the sections that were measured."""
    return [must.line(results[must.section])
            for must in must_reach(vector) if results.get(must.section)]


def taken_over(path: Path, title: str, wanted: Iterable[str]) -> dict[str, Any]:
    """What an earlier call on this machine measured: its `results` and `measured`, without the
    sections that are measured now. Empty where there is none of this machine."""
    if not path.exists():
        return {"results": {}, "measured": {}}
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved["machine"]["title"] != title:
        return {"results": {}, "measured": {}}
    for part in ("results", "measured"):
        old = saved.get(part, {})
        saved[part] = {name: value for name, value in old.items() if name not in set(wanted)}
    return {part: saved[part] for part in ("results", "measured")}
