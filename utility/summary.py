"""One table of many tests: methods x data sets x scales, mean and standard deviation over runs.

    python utility/summary.py results/*                                   prints a table in Markdown
    python utility/summary.py results/* --out summary
            and writes summary.csv, summary.md and summary.tex
    python utility/summary.py ours=results/seed1 ours=results/seed2 vdsr=results/v
            names the network of each

Results are folders that hsi_test.py wrote, or folders of such folders. What holds no test is left
out, in one line that names it. Folders with the same method, ground truths, degradation and scale
are runs of one experiment, such as trainings with several seeds: the table gives the mean over
them, the sample standard deviation where they differ, and their number. Ground truths are the same
whose compared values are (their hash), so other scenes of one name, other bands and another range
are rows of their own. Weights that were tested twice are one run.
"""
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from utility.indexes import METRICS  # noqa: E402
from utility.report.tables import Bold, latex, markdown, write_csv  # noqa: E402
from utility.system.errors import Arguments, UserError, run_script  # noqa: E402
from utility.system.files import shown, write_text  # noqa: E402
from utility.system.progress import note  # noqa: E402
from utility.weights import label_of  # noqa: E402

Images = Sequence[Mapping[str, Any]]
# (data set, problem, method) -> the mean indexes of each run
Runs = dict[tuple[str, str, str], list[Mapping[str, Any]]]


class How(NamedTuple):
    """How the numbers of a table were computed."""

    preset: str
    border: int

    def __str__(self) -> str:
        return f"preset {self.preset}, border {self.border} px"


def collect(arguments: Sequence[str]) -> tuple[Runs, How]:
    """The runs in results folders, given as FOLDER or NAME=FOLDER, and how they were computed.
    Raises UserError: a folder has no results, a file is none of hsi_test.py, or presets or borders
    differ."""
    # (problem, images, method, mean indexes)
    found: list[tuple[str, Images, str, Mapping[str, Any]]] = []
    how: dict[How, Path] = {}
    weights = set()
    for name, path in _files(arguments):
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
            images = results["images"]
            problem = f"x{results['scale']} {results['degradation']}" + _noise_of(results)
            how.setdefault(How(results["preset"], results["border"]), path)
            methods = (results.get("methods")
                       or {key: results["arch"] if key == "network" else key
                           for key in results["mean"]})
            for key, label in methods.items():
                method = _of_network(results, name or label) if key == "network" else label
                again = (key == "network"
                         and (results.get("weights_sha256"), problem, method, _identity(images)))
                if again and again[0] and again in weights:
                    continue
                weights.add(again)
                found.append((problem, images, method, results["mean"][key]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} cannot be used as results of hsi_test.py "
                            f"({type(error).__name__}: {error}); test again, or leave it "
                            "out.") from error
    if len(how) > 1:
        words = "; ".join(f"{one} in {shown(path)}" for one, path in how.items())
        raise UserError("Numbers of different presets or borders cannot stand in one table "
                        f"({words}); test again with one.")
    labels = _labels([images for _, images, _, _ in found])
    runs: Runs = {}
    for problem, images, method, mean in found:
        runs.setdefault((labels[_identity(images)], problem, method), []).append(mean)
    return runs, next(iter(how))


def _noise_of(results: Mapping[str, Any]) -> str:
    """What was added to the low-resolution cubes, in words; "" where nothing was."""
    sigma, snr = results.get("noise"), results.get("snr")
    return ((f", noise {sigma:g}" if sigma else "")
            + (f", SNR {snr:g} dB" if snr is not None else ""))


def _identity(images: Images) -> tuple[Any, ...]:
    """What tells the ground truths of tests apart: what was compared, at how many pixels."""
    told = []
    for image in images:
        pixels = image.get("interpolation", {}).get("counted_pixels")
        told.append((image.get("sha256")
                     or (image["name"], image.get("card"), str(image.get("region")),
                         image.get("bands"), image.get("low"), image.get("high")), pixels))
    return tuple(told)


def _labels(tests: Sequence[Images]) -> dict[tuple[Any, ...], str]:
    """A name for each set of ground truths; those of one name get what differs between them,
    too."""
    known = {_identity(images): images for images in tests}
    labels = {identity: _data_set(images) for identity, images in known.items()}
    for label in set(labels.values()):
        alike = [identity for identity, other in labels.items() if other == label]
        if len(alike) < 2:
            continue
        for describe in _DIFFERENCES:
            words = {identity: "; ".join(dict.fromkeys(describe(image)
                                                       for image in known[identity]))
                     for identity in alike}
            if len(set(words.values())) == len(alike):
                break
        else:
            words = {identity: f"no. {k}" for k, identity in enumerate(alike, 1)}
        labels |= {identity: f"{label} ({words[identity]})" for identity in alike}
    return labels


_DIFFERENCES: tuple[Callable[[Mapping[str, Any]], str], ...] = (
    lambda image: f"{image.get('bands')} bands",
    lambda image: f"{image.get('low')} to {image.get('high')} scaled",
    lambda image: f"{image.get('interpolation', {}).get('counted_pixels')} pixels",
    lambda image: str(image.get("file")), lambda image: str(image.get("sha256"))[:8])
"""Facts of an image, of which the first that differs names ground truths of one name."""


def _of_network(results: Mapping[str, Any], name: str) -> str:
    """The network by name, with what its numbers depend on beside its weights: none of it is
    another run of the same."""
    if name == results["arch"]:  # shipped weights are no seeds of one training
        name = label_of(name, str(results.get("checkpoint")))
    words = [
        name,
        *([f"{steps} steps of back-projection"] if (steps := results.get("backproject")) else []),
        *(key.replace("_", "-") for key in ("self_ensemble", "bandwise") if results.get(key))]
    if (step := results.get("bands_step")) not in (None, "auto", 1):
        words.append(f"one of {step} bands computed")
    if (amp := results.get("amp")) not in (None, "off"):
        words.append(amp)
    seen = any(image.get("trained_on") for image in results["images"])
    return ", ".join(words) + " (trained on pixels of the test)" * seen


def _files(arguments: Sequence[str]) -> Iterable[tuple[str | None, Path]]:
    seen: dict[Path, str | None] = {}
    others = []
    for argument in arguments:
        name, _, folder = (
            ("", "", argument) if Path(argument).exists() else argument.rpartition("="))
        found = [Path(folder, "metrics.json")] if Path(folder, "metrics.json").exists() else sorted(
            Path(folder).glob("*/metrics.json"))
        if not Path(folder).exists():
            raise UserError(f"There is no {folder}; give folders that hsi_test.py wrote.")
        if not found and name:
            raise UserError(f"{folder} has no metrics.json, nor has a folder in it; give folders "
                            "that hsi_test.py wrote.")
        if not found:
            others.append(folder)
        seen |= {path.resolve(): name or None for path in found}
    most = 3
    names = ", ".join(others[:most]) + (
        f", ... and {len(others) - most} more" if len(others) > most else "")
    if not seen:
        raise UserError(f"There is no metrics.json in {names}, nor in a folder in it; give folders "
                        "that hsi_test.py wrote.")
    if others:
        note(f"{len(others)} left out, which hold no test: {names}")
    return [(name, path) for path, name in seen.items()]


def _data_set(images: Images) -> str:
    """The card of all images, else their names; how many, where the names do not show it."""
    names, cards = [image["name"] for image in images], {image.get("card") for image in images}
    if len(cards) == 1 and None not in cards:
        return f"{cards.pop()} ({len(names)})" if len(names) > 1 else cards.pop()
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]} ({len(names)})"


def statistics(runs: Sequence[Mapping[str, Any]], key: str) -> tuple[float | None, float | None]:
    """Mean and sample deviation of an index over runs; None where there are too few."""
    values = [run[key] for run in runs if run.get(key) is not None]
    return (float(np.mean(values)) if values else None,
            float(np.std(values, ddof=1)) if len(values) > 1 else None)


def table(runs: Runs, preset: str, keys: Sequence[str]) -> tuple[list[str], list[list[list[str]]]]:
    """Header and a group of rows for each data set and problem; its best mean is bold."""
    groups = []
    for data, problem in dict.fromkeys(key[:2] for key in runs):
        methods = {key[2]: found for key, found in runs.items() if key[:2] == (data, problem)}
        rows = [["", "", method, str(len(found))] for method, found in methods.items()]
        rows[0][:2] = data, problem
        for key in keys:
            pairs = [statistics(found, key) for found in methods.values()]
            for row, (mean, deviation), best in zip(rows, pairs,
                                                    METRICS[key].best([mean for mean, _ in pairs]),
                                                    strict=True):
                text = (METRICS[key].format(mean)
                        + (f" ± {METRICS[key].format(deviation)}" if deviation else ""))
                row.append((Bold if best else str)(text))
        for row, found in zip(rows, methods.values(), strict=True):
            row.append(_pixels(found))
        groups.append(rows)
    return (["data set", "problem", "method", "runs",
             *(METRICS[key].header(preset) for key in keys), "pixels"], groups)


def _pixels(runs: Sequence[Mapping[str, Any]]) -> str:
    """How many pixels the indexes of runs count; "-" where results do not say it."""
    return " or ".join(dict.fromkeys(str(run.get("counted_pixels", "-")) for run in runs))


def csv_rows(runs: Runs, preset: str, keys: Sequence[str]) -> list[list[Any]]:
    units = {key: f" [{METRICS[key].unit_in(preset)}]" if METRICS[key].unit_in(preset) else ""
             for key in keys}
    titles = [f"{key}_{what}{units[key]}" for key in keys for what in ("mean", "std")]
    rows: list[list[Any]] = [["data_set", "problem", "method", "runs", *titles, "pixels"]]
    for names, found in runs.items():
        figures = [value for key in keys for value in statistics(found, key)]
        rows.append([*names, len(found), *figures, _pixels(found)])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Arguments(__doc__)
    parser.add_argument("results", nargs="+", metavar="[NAME=]RESULTS",
                        help="folders that hsi_test.py wrote; NAME is what the table calls the "
                        "network (default: its architecture)")
    parser.add_argument("--indexes", nargs="+", choices=METRICS, metavar="INDEX",
                        default=["psnr", "ssim", "sam", "ergas"],
                        help=f"columns, of {', '.join(METRICS)} (default: psnr ssim sam ergas)")
    parser.add_argument("--out", metavar="NAME", help="write NAME.csv, NAME.md and NAME.tex too")
    options = parser.parse_args(arguments)
    runs, how = collect(options.results)
    header, groups = table(runs, how.preset, options.indexes)
    text = (f"{markdown(header, groups)}\n"
            f"{how}; mean ± standard deviation over runs; bold: the best mean.\n")
    print(text, end="")
    if options.out:
        write_csv(f"{options.out}.csv", csv_rows(runs, how.preset, options.indexes))
        write_text(f"{options.out}.md", text)
        write_text(f"{options.out}.tex", latex(header, groups, str(how)))
        print("\nwrote "
              f"{', '.join(shown(f'{options.out}.{suffix}') for suffix in ('csv', 'md', 'tex'))}")


if __name__ == "__main__":
    run_script(main)
