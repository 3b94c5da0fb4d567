"""What an assumed MTF is worth: true blur x assumed blur x noise, for the shipped weights, on real
scenes.

    python studies/mismatch.py --scenes FOLDER
            every scale; tables and a figure in studies/results
    python studies/mismatch.py --scenes FOLDER --scale 4 --weights runs/NAME/best.pth --results mine

Each scene is degraded by each true blur, and brought back by a method that is told the blur
(`known`), or nothing (`unknown`: what `--input` takes by default), or a wrong MTF. `known` is
repeated with noise, whose level is told. FOLDER holds the scenes of `SCENES`, at any depth, in any
container. Indexes are those of the preset `standard`.

Writes mismatch.csv (a row for each scene and case), mismatch.json (the summary), mismatch.md and
mismatch.png.
"""
from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib import rc_context  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from models import Network  # noqa: E402
from utility import weights  # noqa: E402
from utility.checkpoints import model_from_checkpoint  # noqa: E402
from utility.degradation import crop_to_multiple  # noqa: E402
from utility.indexes import band_psnr, sam_map  # noqa: E402
from utility.names import ANY, SAFE_MTF, UNTRAINED  # noqa: E402
from utility.report.figures import STYLE, WIDTH, method_colours, saved  # noqa: E402
from utility.report.tables import markdown  # noqa: E402
from utility.scenes import Reading, list_scenes  # noqa: E402
from utility.superres.aliasing import for_aliasing  # noqa: E402
from utility.superres.methods import methods  # noqa: E402
from utility.superres.problem import Problem, for_noise  # noqa: E402
from utility.system.errors import Arguments, UserError, run_script  # noqa: E402
from utility.system.files import write_json, write_text  # noqa: E402
from utility.system.progress import track  # noqa: E402
from utility.testing.evaluation import degraded  # noqa: E402
from utility.testing.images import TestImage, read_images  # noqa: E402

SCENES = ("feathers_crop150", "smooth_crop100", "jasperRidge2_R198", "abu-airport-1",
          "abu-airport-2", "abu-airport-3", "abu-beach-3", "abu-urban-2", "abu-urban-4")
"""The nine of the tables. Two more are tested for the spectral angle of their dark pixels:"""
DARK = ("real_and_fake_apples_ms_256", "cloth_ms_256")
TRUE = ("mtf 0.08", "mtf 0.15", "mtf 0.25", "mtf 0.35", "mtf 0.5", "mtf 0.75", "area")
WRONG = ("mtf 0.15", "mtf 0.3")
SNR, SEED = 25.0, 2021
WAYS = ("known", "unknown", "wrong", "noise", "gaussian")


@dataclass(frozen=True)
class Case:
    """One way to bring one degraded scene back."""

    true: str
    assumed: str              # `known`, `unknown`, or the name of a degradation
    snr: float | None = None  # dB

    @property
    def way(self) -> str:
        if self.true == "gaussian":
            return self.true
        return "noise" if self.snr else "wrong" if self.assumed in WRONG else self.assumed

    def problem(self, scale: int, start: str) -> Problem:
        kind = {"known": self.true, "unknown": f"{ANY} {SAFE_MTF}"}.get(self.assumed, self.assumed)
        known = self.assumed != "unknown"
        return Problem(scale, kind, start, mtf_known=known, aliased=False if known else None)


CASES = [Case(true, assumed) for true in TRUE for assumed in ("known", "unknown", *WRONG)]
CASES += [Case(true, "known", SNR) for true in TRUE]
CASES += [Case("gaussian", "gaussian")]  # the degradation of tests against ground truth


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Arguments(__doc__)
    parser.add_argument("--scenes", nargs="+", type=Path, required=True, metavar="FOLDER",
                        help="folders with the scenes")
    parser.add_argument("--scale", type=int, nargs="+", default=[4, 2, 8],
                        help="scale factors (default: 4 2 8)")
    parser.add_argument("--weights", nargs="+", type=Path, metavar="CKPT",
                        help="default: those that a cube of your own gets")
    parser.add_argument("--cases", nargs="+", choices=WAYS, default=list(WAYS), metavar="CASE",
                        help=f"some of {', '.join(WAYS)} (default: all)")
    parser.add_argument("--results", type=Path, default=ROOT / "studies" / "results",
                        metavar="FOLDER")
    options = parser.parse_args(arguments)
    images = dict(_scenes(options.scenes))
    rows = []
    for scale in options.scale:
        given = dict.fromkeys(options.weights or [], options.cases)
        for path, cases in (given or _shipped(scale, options.cases)).items():
            net, info = model_from_checkpoint(path)
            rows += _rows(net, path.stem, info.start, scale, images, cases)
    if not rows:
        raise UserError("No shipped weights are for any MTF; name some with --weights.")
    write(rows, options.results)


def _shipped(scale: int, ways: Sequence[str]) -> dict[Path, list[str]]:
    """The weights that a cube of a user's own gets at a scale factor, and those of a test."""
    found: dict[Path, list[str]] = {}
    for way in ways:
        kind = way if way == "gaussian" else f"{ANY} {SAFE_MTF}"
        if chosen := weights.choose(None, scale, kind):
            found.setdefault(chosen.path, []).append(way)
    return found


def _scenes(folders: Sequence[Path]) -> Iterator[tuple[str, TestImage]]:
    """The scenes that are there; each must be."""
    paths = {path.stem: path for path in list_scenes(folders)}
    if missing := [name for name in (*SCENES, *DARK) if name not in paths]:
        raise UserError(f"{', '.join(map(str, folders))} holds no scene {', '.join(missing)}; "
                        "studies/README.md says whose they are.")
    for name in (*SCENES, *DARK):
        image, = read_images([paths[name]], Reading())
        yield name, image


def _rows(net: Network, label: str, start: str, scale: int, images: Mapping[str, TestImage],
          ways: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for name, image in track(images.items(), desc=f"{label}, x{scale}", unit="scene"):
        gt = np.ascontiguousarray(crop_to_multiple(image.cube, scale))
        for case in (case for case in CASES if case.way in ways):
            taken = Problem(scale, case.true, snr=case.snr, seed=SEED)
            low, noise, lost, unseen = degraded(gt, image, taken)
            counted = None if unseen is None else ~unseen
            problem = for_aliasing(for_noise(case.problem(scale, start), noise), low, lost)
            made = methods(net, low, replace(problem, tile=0), noise=noise, missing=lost)
            row: dict[str, Any] = {"weights": label, "scale": scale, "scene": name,
                                   "true": case.true, "assumed": case.assumed, "snr": case.snr,
                                   "pixels": gt[0].size if counted is None else int(counted.sum())}
            for key in made:
                result = made[problem.method if key == "network" else key].cube()
                row[f"{key}_psnr"] = round(float(np.mean(band_psnr(result, gt, counted))), 4)
                row[f"{key}_sam"] = round(float(np.nanmean(sam_map(result, gt, counted))), 4)
            rows.append(row)
    return rows


def write(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """The table of every case, the summary, and the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "mismatch.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    groups = dict.fromkeys((row["weights"], row["scale"]) for row in rows)
    summary = []
    for label, scale in groups:
        own = _some(rows, weights=label, scale=scale)
        summary.append({"weights": label, "scale": scale, **summarised(own)})
    write_json(folder / "mismatch.json", {"machine": _machine(), "seed": SEED, "scenes": SCENES,
                                          "dark": DARK, "summary": summary})
    header = ["weights", "case", "PSNR", "SAM", "PSNR above interpolation", "worst",
              "above back-projection", "below it", "SAM above the interpolation's"]
    table = [[_line(one, case) for case in one["cases"]] for one in summary]
    made_by = (f"`python studies/mismatch.py --scenes FOLDER`, {_machine()}, seed {SEED}. "
               f"{len(SCENES)} scenes, {len(TRUE)} true blurs; dB. The last column counts these "
               f"scenes and {' and '.join(DARK)}.")
    write_text(folder / "mismatch.md", "\n".join(
        ["# What an assumed MTF is worth", "", made_by, "", markdown(header, table), ""]))
    if any(row["true"] in TRUE for row in rows):
        figure(folder / "mismatch.png", rows)
    print((folder / "mismatch.md").read_text(encoding="utf-8"))


def summarised(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each case of the assumption: gains over both untrained methods, and what is below
    them."""
    cases = {}
    for assumed, snr in dict.fromkeys((row["assumed"], row["snr"]) for row in rows):
        some = _some(rows, assumed=assumed, snr=snr)
        nine = [row for row in some if row["scene"] in SCENES]
        case: dict[str, Any] = {"count": len(nine)}
        for name in ("psnr", "sam"):
            case[name] = float(np.mean([row[f"network_{name}"] for row in nine]))
        for key in UNTRAINED:
            gain = np.array([row["network_psnr"] - row[f"{key}_psnr"] for row in nine])
            case[f"over_{key}"] = {"mean": float(gain.mean()), "worst": float(gain.min()),
                                   "below": int((gain < 0).sum())}
        angles = [row for row in some if row["network_sam"] > row["interpolation_sam"]]
        case |= {"sam_worse": [f"{row['scene']}, {row['true']}" for row in angles],
                 "sam_count": len(some)}
        cases[assumed if snr is None else f"{assumed}, SNR {snr:g} dB"] = case
    return {"cases": cases}


def _line(one: Mapping[str, Any], case: str) -> list[str]:
    found = one["cases"][case]
    plain, projected = found["over_interpolation"], found["over_backprojection"]
    below = -min(projected["worst"], 0)
    return [f"{one['weights']}, x{one['scale']}", case, f"{found['psnr']:.3f}",
            f"{found['sam']:.3f}", f"{plain['mean']:+.2f}", f"{plain['worst']:+.2f}",
            f"{projected['mean']:+.2f}",
            f"{projected['below']} of {found['count']}, at most {below:.2f}",
            f"{len(found['sam_worse'])} of {found['sam_count']}"]


@rc_context(STYLE)
def figure(path: Path, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """PSNR above the interpolation over the true blur: the mean of the scenes, and the range from
    the worst to the best."""
    groups = list(dict.fromkeys((row["weights"], row["scale"]) for row in rows
                                if row["true"] in TRUE))
    fig = Figure(figsize=(WIDTH, 2.6))
    axes = fig.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for ax, (label, scale) in zip(axes, groups, strict=True):
        ax.axhline(0, color="0.5", linewidth=0.8)
        for assumed, colour in zip(("known", "unknown", *WRONG), method_colours(4), strict=True):
            own = _some(rows, weights=label, scale=scale, assumed=assumed, snr=None)
            gains: dict[str, list[float]] = {true: [] for true in TRUE}
            for row in own:
                if row["scene"] in SCENES and row["true"] in gains:
                    gains[row["true"]].append(row["network_psnr"] - row["interpolation_psnr"])
            if not all(gains.values()):  # this case was not asked for
                continue
            ax.plot(range(len(TRUE)), list(map(np.mean, gains.values())), "o-", color=colour,
                    markersize=2.5, label=assumed)
            ax.fill_between(range(len(TRUE)), list(map(min, gains.values())),
                            list(map(max, gains.values())), color=colour, alpha=0.12, linewidth=0)
        ax.set_xticks(range(len(TRUE)), [true.removeprefix("mtf ") for true in TRUE])
        ax.set(title=f"{label}, x{scale}", ylim=(-3, 6))
        ax.grid(axis="y")
    axes[0].legend(title="assumed", loc="best")
    fig.supxlabel("True MTF of the low-resolution cube", size=8)
    axes[0].set_ylabel("PSNR above interpolation (dB)")
    fig.tight_layout(pad=0.4)
    return saved(fig, path)


def _some(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _machine() -> str:
    from utility.system.devices import device_name

    return f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    run_script(main)
