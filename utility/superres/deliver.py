"""A cube made finer, and a report about it."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models import Network
from utility.names import METHODS, UNTRAINED
from utility.scenes import Reading
from utility.superres.assumptions import (
    assumptions_table,
    corner_of_middle,
    middle,
    under_other_mtfs,
)
from utility.superres.cube_file import Applied, apply_to_file
from utility.superres.problem import Problem
from utility.superres.spectrum import spectrum_of
from utility.superres.written_values import Writing
from utility.system.files import keep_out_of, refuse_existing, refuse_foreign, replacing, write_json
from utility.weights import label_of

if TYPE_CHECKING:
    from utility.report.figures import Units

REPORT_MARKS = ("summary.json",)
"""What is in every report folder, by which an earlier one is known."""


def deliver(net: Network | None, source: Path, target: Path, problem: Problem, reading: Reading,
            writing: Writing, *, folder: Path | None, facts: Mapping[str, Any],
            begins: Callable[[], None] | None = None) -> Applied:
    """`apply_to_file`, what came of it in words, and where a `folder` is named a report in it.
    Raises UserError likewise."""
    if folder:
        refuse_existing(folder, writing.overwrite)
        refuse_foreign(folder, REPORT_MARKS)
        keep_out_of(folder, *(facts.get("Checkpoint"), source, target))
    done = apply_to_file(net, source, target, problem, reading, writing, figure=bool(folder),
                         begins=begins)
    if folder:
        with replacing(folder, writing.overwrite, marks=REPORT_MARKS) as partial:
            partial.mkdir()
            facts = {**facts, "Degradation": done.problem.degradation}
            if done.problem.aliased:  # no network has a part in it
                facts |= dict.fromkeys(("Network", "Checkpoint", "Degradation",
                                        "Network starts from", "Precision",
                                        "Back-projection", "Self-ensemble"))
            _report(partial, done, net, target, facts, writing)
    return done


def _report(folder: Path, done: Applied, net: Network | None, target: Path,
            facts: Mapping[str, Any], writing: Writing) -> None:
    """The page, its figures and summary.json."""
    from utility.report.figures import OTHERS, map_figure, method_colours, no_truth_figure
    from utility.report.page import write_report

    summary, problem = done.summary, done.problem
    assumed, cubes = under_other_mtfs(net, done.low, replace(problem, snr=summary["snr"]),
                                      spectrum_of(done.scene))
    write_json(folder / "summary.json",
               {**summary, "other_mtfs": assumed, "command": facts["Command"],
                "arch": facts["Network"], "checkpoint": facts["Checkpoint"]})
    labels = {**UNTRAINED, "network": "network"}
    how = {"wavelengths": done.scene.wavelengths, "name": target.name, "scale": problem.scale,
           "units": _units(done, writing),
           "grid": "before --ortho" if writing.ortho else "of the result"}
    figures = [("input and results (the middle of the scene)", folder / "figure.png")]
    no_truth_figure(figures[-1][1], done.low,
                    {labels[key].capitalize(): cube for key, cube in done.cubes.items()},
                    note=done.title, corner=done.corner, **how)
    if done.spread is not None:
        figures.append(("standard deviation over the 8 results of the self-ensemble, mean "
                        f"over bands: {summary['spread']['mean']:.3g} over the whole "
                        "scene, here its middle", folder / "spread.png"))
        map_figure(figures[-1][1], {"Mean over bands": done.spread},
                   "spread of a self-ensemble", "Standard deviation", name=target.name)
    if cubes:
        figures.append(("what another MTF of the sensor would make of its middle",
                        folder / "assumptions.png"))
        # the colour that the method has in the other figure; the others have no method's
        own = method_colours(len(METHODS))[METHODS.index(problem.method)]
        top, left = (first + problem.scale * n
                     for first, n in zip(done.corner, corner_of_middle(done.low), strict=True))
        no_truth_figure(figures[-1][1], middle(done.low), cubes, note=summary["sensor"],
                        colours=(own, *OTHERS)[:len(cubes)], corner=(top, left), **how)
    lead = ". ".join(f"{text[0].upper()}{text[1:]}"
                     for text in (summary["agreement"], summary["uncertainty"]))
    made_by = (label_of(facts["Network"], facts["Checkpoint"]) if facts["Network"]
               else labels[problem.method])
    write_report(folder / "report.html", f"{target.name}: {made_by}, x{problem.scale}",
                 {**facts, "Input": summary["read_as"], "Sensor": summary["sensor"],
                  "Other assumptions": assumptions_table(assumed),
                  "Bad bands": summary["bad_bands"],
                  "Warning": " ".join(summary["warnings"]) or None},
                 figures=figures, scale=problem.scale, lead=f"{lead}.")


def _units(done: Applied, writing: Writing) -> Units:
    """Of the spectra: the physical values that the file of the result states, else its values."""
    from utility.report.figures import UNIT_RANGE, Units

    if writing.unit_range:
        return UNIT_RANGE
    scene, (low, high) = done.scene, (done.summary["low"], done.summary["high"])
    gain, offset = (1.0 if scene.gain is None else scene.gain,
                    0.0 if scene.offset is None else scene.offset)
    stated = scene.units or ("" if scene.gain is None
                             else "gain × value" + " + offset" * bool(np.any(offset)))
    label = f"Physical value\n({stated})" if stated else "Values as stored\nin the file"
    return Units((high - low) * gain, low * gain + offset, label)
