"""A cube made finer, and a report about it."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models import Network
from utility.names import UNTRAINED
from utility.scenes import Reading
from utility.superres.cube_file import Applied, apply_to_file
from utility.superres.problem import Problem
from utility.superres.written_values import Writing
from utility.system.files import keep_out_of, refuse_existing, refuse_foreign, replacing, write_json

REPORT_MARKS = ("summary.json",)
"""What is in every report folder, by which an earlier one is known."""


def deliver(net: Network | None, source: Path, target: Path, problem: Problem, reading: Reading,
            writing: Writing, *, folder: Path | None, facts: Mapping[str, Any],
            progress: bool = True) -> Applied:
    """`apply_to_file`, what came of it in words, and where a `folder` is named a report in it.
    Raises UserError likewise."""
    if folder:
        refuse_existing(folder, writing.overwrite)
        refuse_foreign(folder, REPORT_MARKS)
        keep_out_of(folder, *(facts.get("Checkpoint"), source, target))
    done = apply_to_file(net, source, target, problem, reading, writing, progress,
                         figure=bool(folder))
    if folder:
        from utility.report.figures import map_figure, no_truth_figure
        from utility.report.page import write_report

        with replacing(folder, writing.overwrite, marks=REPORT_MARKS) as partial:
            partial.mkdir()
            write_json(partial / "summary.json",
                       {**done.summary, "command": facts["Command"], "arch": facts["Network"],
                        "checkpoint": facts["Checkpoint"]})
            labels = {**UNTRAINED, "network": "network"}
            agreement, uncertainty = done.summary["agreement"], done.summary["uncertainty"]
            figures = [("input and results (the middle of the scene)", partial / "figure.png")]
            if done.spread is not None:
                figures.append(("standard deviation over the 8 results of the self-ensemble, mean "
                                f"over bands: {done.summary['spread']['mean']:.3g} over the whole "
                                "scene, here its middle", partial / "spread.png"))
                map_figure(partial / "spread.png", {"Mean over bands": done.spread},
                           "spread of a self-ensemble", "Standard deviation", name=target.name)
            no_truth_figure(partial / "figure.png", done.low,
                            {labels[key].capitalize(): cube for key, cube in done.cubes.items()},
                            wavelengths=done.scene.wavelengths, name=target.name,
                            scale=problem.scale, note=done.title)
            write_report(partial / "report.html",
                         f"{target.name}: {facts['Network'] or labels[problem.method]}, "
                         f"x{problem.scale}",
                         {**facts, "Input": done.summary["read_as"],
                          "Bad bands": done.summary["bad_bands"],
                          "Warning": " ".join(done.summary["warnings"]) or None}, figures=figures,
                         scale=problem.scale,
                         lead=f"{agreement[0].upper()}{agreement[1:]}. "
                         f"{uncertainty[0].upper()}{uncertainty[1:]}.")
    return done
