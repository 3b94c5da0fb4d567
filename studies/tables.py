"""Tables and figures of a study, from the JSON files of its trainings: NAME.md, NAME.csv, NAME.tex
and pictures."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from utility.cubes.values import unit_range
from utility.degradation import downsample, start_image
from utility.names import UNTRAINED
from utility.report.figures import STYLE, WIDTH, error_figure, method_colours, saved
from utility.report.tables import latex, markdown, mean_of, write_csv
from utility.scenes import read_scene
from utility.summary import Runs, csv_rows, table
from utility.system.errors import UserError
from utility.system.files import write_text

KEYS = ("psnr", "ssim", "sam", "ergas")
Results = Sequence[Mapping[str, Any]]


def write_tables(study: Mapping[str, Any], results: Path, out: Path) -> list[Path]:
    """Write the tables and figures of the results so far; returns their files.

    Args:
        results: holds a folder of the study with one JSON file for each training; the tables are
            written beside it.
        out: holds the cubes of the tests, for error maps.

    Raises:
        UserError: there is no result.
    """
    found = [json.loads(path.read_text(encoding="utf-8"))
             for path in sorted((results / study["name"]).glob("*.json"))]
    if not found:
        raise UserError(
            f"{results / study['name']} holds no result; run the study without --table first.")
    order = [arm["name"] for arm in study["arms"]]
    found.sort(key=lambda result: (order.index(result["arm"]), result["seed"]))
    base = results / study["name"]
    runs, preset = _runs(study, found), found[0]["images"][0]["preset"]
    header, groups = table(runs, preset, KEYS)
    words = f"preset {preset}; mean ± standard deviation over seeds; bold: the best mean."
    machines = ", ".join(sorted({f"{r['device']}, threads: {r['threads']}" for r in found}))
    write_text(f"{base}.md",
               "\n".join([f"# {study['title']}", "", markdown(header, groups), words, "",
                          markdown(*_trainings(found)),
                          f"Seconds are processor seconds of the training loop ({machines}).", ""]))
    write_text(f"{base}.tex", latex(header, groups, words))
    write_csv(f"{base}.csv", csv_rows(runs, preset, KEYS))
    written = [base.with_suffix(suffix) for suffix in (".md", ".tex", ".csv")]
    gains_figure(f"{base}.png", study, found)
    written.append(base.with_suffix(".png"))
    if study.get("curves"):
        curves_figure(f"{base}_curves.png", study, found)
        written.append(Path(f"{base}_curves.png"))
    if "errors" in study and (cubes := _cubes(study, found, out)):
        gt, methods, wavelengths = cubes
        path = Path(__file__).parents[1] / study["errors"].get(
            "figure", Path(f"{base}_errors.png").resolve())
        error_figure(path, gt, methods, min(study["errors"]["band"], len(gt) - 1), wavelengths,
                     study["errors"]["scene"])
        written.append(path)
    return written


def _runs(study: Mapping[str, Any], found: Results) -> Runs:
    """The indexes of each image; for tests on whole scenes also those of the mean image."""
    runs: Runs = {}
    budgets = list(study.get("budgets", {"": {}}))
    names = list(dict.fromkeys(image["name"] for result in found for image in result["images"]))
    for budget in budgets:
        some = [result for result in found if result["budget"] == budget]
        for name in [*names, "mean"]:
            for result in some:
                images = [image for image in result["images"] if image["name"] == name]
                if name == "mean":
                    if len(result["images"]) < 2 or "parts" in study:
                        continue
                    images = [{key: mean_of([image[key] for image in result["images"]])
                               for key in (*UNTRAINED, "network")}
                              | {"problem": result["images"][0]["problem"]}]
                for image in images:
                    label = f"mean of {len(result['images'])}" if name == "mean" else name
                    problem = image["problem"] + f", {budget}" * bool(budget)
                    for key, method in UNTRAINED.items():
                        runs.setdefault((label, problem, method), [image[key]])
                    runs.setdefault((label, problem, result["arm"]), []).append(image["network"])
    return runs


def _trainings(found: Results) -> tuple[list[str], list[list[list[str]]]]:
    """Header and rows of the costs: one row for each arm, budget and part."""
    groups: dict[str, list[list[str]]] = {}
    for result in found:
        same = [r for r in found if all(r[key] == result[key] for key in ("arm", "budget", "part"))]
        if same[0] is result:
            steps, seconds = ([r[key] for r in same] for key in ("steps", "processor_seconds"))
            words = [result["arm"] + (f", {result['part']}" if result["part"] else ""),
                     f"{result['arch']}", f"{result['parameters']:,}", f"{np.mean(steps):.0f}",
                     f"{np.mean(seconds):.0f}", str(len(same))]
            groups.setdefault(result["budget"], []).append([result["budget"], *words])
    return (["budget", "training", "network", "parameters", "steps", "seconds", "seeds"],
            list(groups.values()))


@rc_context(STYLE)
def gains_figure(path: str, study: Mapping[str, Any], found: Results) -> Figure:
    """PSNR above back-projection: a panel for each image, a row for each arm, a dot for each seed,
    a line at their mean."""
    names = list(dict.fromkeys(image["name"] for result in found for image in result["images"]))
    arms, budgets = [arm["name"] for arm in study["arms"]], list(study.get("budgets", {"": {}}))
    fig = Figure(figsize=(WIDTH, 0.75 + 0.24 * len(arms)))
    axes = fig.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for ax, name in zip(axes, names, strict=True):
        ax.axvline(0, color="0.6", linewidth=0.8)
        for (k, budget), colour in zip(enumerate(budgets),
                                       method_colours(3)[2:] + method_colours(3)[:1], strict=False):
            for row, arm in enumerate(arms):
                own = [image for result in found
                       if (result["arm"], result["budget"]) == (arm, budget)
                       for image in result["images"]]
                gains = [image["network"]["psnr"] - image["backprojection"]["psnr"]
                         for image in own if image["name"] == name]
                y = row + 0.3 * (k - (len(budgets) - 1) / 2)
                if gains:
                    ax.plot(gains, [y] * len(gains), "o", color=colour, markersize=3, alpha=0.7,
                            label=budget or None)
                    ax.plot([np.mean(gains)] * 2, [y - 0.15, y + 0.15], color=colour)
        ax.set_title(name, size=min(8, 130 / len(name) / len(names) * 4))
        ax.grid(axis="x")
        ax.set_axisbelow(True)
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].invert_yaxis()
    if any(budgets):
        one_of_each = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
        axes[-1].legend(one_of_each.values(), one_of_each.keys(), loc="best")
    fig.supxlabel("PSNR above back-projection (dB)", size=8)
    fig.tight_layout(pad=0.4)
    return saved(fig, path)


@rc_context(STYLE)
def curves_figure(path: str, study: Mapping[str, Any], found: Results) -> Figure:
    """PSNR on the validation patches above interpolation, over steps: mean over seeds, and their
    range."""
    fig = Figure(figsize=(WIDTH * 0.7, 2.8))
    ax = fig.subplots()
    arms = [arm["name"] for arm in study["arms"]]
    for arm, colour in zip(arms, method_colours(len(arms)), strict=True):
        curves = [result["curve"] for result in found if result["arm"] == arm]
        if curves:
            steps = [point["iteration"] for point in curves[0]]
            gains = np.array([[point["psnr"] - point["interpolation_psnr"] for point in curve]
                              for curve in curves])
            ax.plot(steps, gains.mean(0), "o-", color=colour, markersize=2.5, label=arm)
            ax.fill_between(steps, gains.min(0), gains.max(0), color=colour, alpha=0.2, linewidth=0)
            last = curves[0][-1]
    ax.axhline(0, color="0.4", linestyle=":", linewidth=1, label="interpolation")
    ax.axhline(last["backprojection_psnr"] - last["interpolation_psnr"], color="0.4",
               linestyle="--", linewidth=1, label="back-projection")
    low = min(0, ax.get_ylim()[0])
    ax.set(xlabel="Step", ylabel="PSNR above interpolation (dB)", ylim=(max(low, -8), None))
    ax.grid()
    ax.legend(loc="best")
    fig.tight_layout(pad=0.4)
    return saved(fig, path)


def _cubes(study: Mapping[str, Any], found: Results,
           out: Path) -> tuple[np.ndarray, dict[str, np.ndarray], Any] | None:
    """Ground truth, the cubes of the first seed and budget by method, and wavelengths in nm; None
    where the files are gone."""
    methods, scene, gt = {}, None, None
    for result in found:
        tested = out / study["name"] / result["name"] / "test/scenes/metrics.json"
        if ((result["seed"], result["budget"]) != (study["seeds"][0], next(iter(study["budgets"])))
                or not tested.exists()):
            continue
        row = next((row for row in json.loads(tested.read_text(encoding="utf-8"))["images"]
                    if row["name"] == study["errors"]["scene"]), None)
        if row and Path(row["file"]).exists():
            if scene is None:
                scene = read_scene(row["file"])
                gt = unit_range(scene.cube, row["low"], row["high"])[0][
                    :, :row["height"], :row["width"]]
                scale, kind = (int(result["images"][0]["problem"].split()[0][1:]),
                               result["images"][0]["problem"].split()[1])
                low = downsample(torch.from_numpy(gt)[None], scale, kind)
                methods = {label: start_image(low, scale, kind, key)[0].numpy()
                           for key, label in UNTRAINED.items()}
            methods[result["arm"]] = unit_range(read_scene(tested.parent / row["cube"]).cube,
                                                row["low"], row["high"])[0]
    return (gt, methods, scene.wavelengths) if scene else None
