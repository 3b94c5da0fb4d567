"""Run a study. A TOML file in this folder defines a study; one command trains and tests what has no
result yet.

    python studies/run.py transfer --scenes FOLDER            train and test what has no result yet
    python studies/run.py transfer --table                  tables and figures of the results so far
    python studies/run.py contestants --seeds 1 --budget 10  the first seed alone, ten times as long
    python studies/run.py weights           train every file in checkpoints/ again, as its card says
    python studies/run.py variety --quick --out /tmp/quick
            two steps of everything, to see that the study runs

Databases and runs go to --out; the same command goes on with an interrupted training. Each arm and
seed has one JSON file of results under --results. Each --budget has its own folder there.
"""
from __future__ import annotations

import csv
import json
import re
import shlex
import statistics
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import hsi_sr  # noqa: E402
import hsi_test  # noqa: E402
from data.rendering import render_scenes  # noqa: E402
from studies.tables import write_tables  # noqa: E402
from utility import lmdb_data, weights  # noqa: E402
from utility.checkpoints import load_checkpoint, model_from_checkpoint  # noqa: E402
from utility.cubes.containers import is_scene  # noqa: E402
from utility.datasets.cards import load_card, locate  # noqa: E402
from utility.system.errors import Arguments, UserError, run_script  # noqa: E402
from utility.system.files import default_path, write_json  # noqa: E402
from utility.system.progress import quiet  # noqa: E402
from utility.training.configuration import TrainingConfig, configure  # noqa: E402
from utility.training.loop import train  # noqa: E402
from utility.training.plan import Plan, prepare  # noqa: E402
from utility.training.steps import train_step  # noqa: E402

HERE = ROOT / "studies"
PATCH = 32  # pixels, of rendered scenes; a card says its own
QUICK = ["--iterations", "1", "--batchSize", "1", "--val-batches", "1", "--band-window", "4"]
QUICK_DATABASE = ["--scenes", "2", "--patch", "48", "--stride", "48", "--val-last", "1"]
QUICK_CROP = ["--crop", "48"]
SCRIPTS = {"hsi_sr.py": hsi_sr.main, "lmdb_data.py": lmdb_data.main}
INDEXES = ("psnr", "ssim", "sam", "ergas", "cc", "rmse")
CURVE = ("iteration", "psnr", "interpolation_psnr", "backprojection_psnr")


@dataclass(frozen=True)
class Place:
    """Where a study reads and writes."""

    scenes: tuple[Path, ...]  # folders of real scenes
    out: Path                 # databases, runs and tests
    results: Path             # one JSON file for each training
    quick: bool = False


@dataclass(frozen=True)
class Training:
    """One training of a study: one arm, one budget, one seed, and one part where the arm trains on
    parts."""

    study: Mapping[str, Any]
    arm: Mapping[str, Any]  # its fields, over those of the study's [training]
    budget: str             # "" where a study has one
    part: str | None        # the card whose training region trains
    seed: int

    @property
    def name(self) -> str:
        words = [self.arm["name"], self.budget, self.part, f"seed {self.seed}"]
        return "_".join(re.sub(r"\W+", "-", word).strip("-") for word in words if word)


def read_study(name: str) -> dict[str, Any]:
    """The study in NAME.toml. Raises UserError: there is none."""
    path = HERE / f"{name}.toml"
    if not path.exists():
        raise UserError(
            f"There is no study {name!r}; choose of {', '.join(_studies())} and weights.")
    return {"name": name, **tomllib.loads(path.read_text(encoding="utf-8"))}


def _studies() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.toml"))


def trainings(study: Mapping[str, Any], factor: float = 1.0, seeds: int | None = None,
              quick: bool = False) -> Iterator[Training]:
    """The trainings of a study, seed after seed; an arm comes before the arms that start from its
    weights."""
    budgets = list(study.get("budgets", {"": {}}).items())
    for seed in study["seeds"][:1 if quick else seeds]:
        for budget, length in budgets[:1] if quick else budgets:
            for arm in study["arms"]:
                fields = study["training"] | arm | length
                for key in ("iterations", "processor_seconds"):
                    if key in fields:
                        fields[key] = type(fields[key])(fields[key] * factor)
                if "processor_seconds" in length:
                    fields.pop("iterations", None)
                if quick:
                    fields |= {"iterations": 2, "batch": 1, "band_window": 4, "validations": 1,
                               "val_batches": 1}
                    fields.pop("processor_seconds", None)
                parts = study["parts"] if arm.get("on_parts") else [None]
                for part in parts[-1:] if quick else parts:
                    yield Training(study, fields, budget, part, seed)


def run(training: Training, place: Place) -> dict[str, Any]:
    """Train and test; returns the content of the JSON file.

    Raises:
        UserError: a real scene is not there, or the training was interrupted.
    """
    arm, folder = training.arm, place.out / training.study["name"] / training.name
    last = folder / "run" / "last.pth"
    if not last.exists() or not _complete(last):
        config = configure(
            {"resume": str(last)} if last.exists() else _config(training, place, folder))
        plan = prepare(config)
        if not config.iterations:
            config = replace(
                config,
                iterations=max(1, round(arm["processor_seconds"] / _step_seconds(config, plan))))
        epoch = -(-config.iterations // arm.get("validations", 1))
        with quiet():
            result = train(config, _Sliced(**vars(plan) | {"config": config}, epoch=epoch))
        if result.interrupted:
            raise UserError(f"{training.name} was interrupted; the same command goes on with it.")
    saved = load_checkpoint(last)
    with open(last.with_name("history.csv"), newline="", encoding="utf-8") as file:
        history = list(csv.DictReader(file))
    origin = json.loads(last.with_name("environment.json").read_text(encoding="utf-8"))
    images = []
    for card, files in _tests(training, place):
        out = folder / "test" / (card or "scenes")
        hsi_test.main(["-rp", str(last), "--data", *map(str, files),
                       *(["--dataset", _card(card)] if card else []), "--out", str(out), "--force",
                       "--no-figures", "--quiet", "--no-cuda",
                       *([] if "errors" in training.study else ["--no-cubes"])])
        tested = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        for image in tested["images"]:
            images.append({"name": card or image["name"], "bands": image["bands"],
                           "preset": tested["preset"],
                           "problem": f"x{tested['scale']} {tested['degradation']}"})
            for method in tested["methods"]:
                images[-1][method] = {key: round(image[method][key], 4) for key in INDEXES}
                images[-1][method]["counted_pixels"] = image[method]["counted_pixels"]
    curve = []
    for row in history if training.study.get("curves") else ():
        curve.append({key: round(float(row[key]), 4) for key in CURVE})
    net, _ = model_from_checkpoint(last)
    return {"name": training.name, "arm": arm["name"], "budget": training.budget,
            "part": training.part, "seed": training.seed, "arch": saved["arch"],
            "parameters": sum(p.numel() for p in net.parameters()), "steps": saved["iteration"],
            "patches": [arm["batch"], arm["band_window"], PATCH, PATCH],
            "processor_seconds": round(sum(float(row["processor_seconds"] or 0) for row in history),
                                       3), "device": origin["device"], "threads": origin["threads"],
            "version": origin["version"],
            "curve": curve, "images": images}


@dataclass(frozen=True)
class _Sliced(Plan):
    """A plan whose epochs have `epoch` steps for databases of any size, so the study decides when
    to validate."""

    epoch: int = 1

    @property
    def steps(self) -> int:
        return self.epoch


def _complete(last: Path) -> bool:
    saved = load_checkpoint(last)
    return saved["step"] == 0 and saved["iteration"] >= saved["config"]["iterations"]


def _step_seconds(config: TrainingConfig, plan: Plan) -> float:
    """Processor seconds of a step: the median over two seconds of steps on a state of its own,
    after a first step."""
    state, seconds = prepare(config).state(), []
    bands, height, width = plan.sources[0].shape
    patches = torch.rand((config.batch, min(bands, config.band_window or bands), height, width))
    while len(seconds) < 6 or sum(seconds) < 2:
        begin = time.process_time()
        train_step(state, state.net, patches)
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds[1:])


def _config(training: Training, place: Place, folder: Path) -> dict[str, Any]:
    """The fields of `TrainingConfig` for a training."""
    arm = training.arm
    known = set(TrainingConfig.__dataclass_fields__)
    given = {key: value for key, value in arm.items() if key in known}
    given |= {"seed": training.seed, "run_dir": str(folder / "run"),
              "tensorboard": False, "cuda": False, "val_batches": arm.get("val_batches", 1),
              "data": _databases(training, place)}
    if "processor_seconds" in arm:
        given["epochs"] = 1  # until a step was timed
    if "init" in arm:
        first = replace(training, arm={"name": arm["init"]}, part=None)
        given["init"] = str(place.out / training.study["name"] / first.name / "run" / "last.pth")
        given.pop("arch", None)
    return given


def _databases(training: Training, place: Place) -> list[str]:
    """The databases of a training; builds those that are missing.

    Seed number k takes scenes k n to (k + 1) n - 1 of the pool, for n scenes. So seeds also differ
    in their scenes.
    """
    pool = 2 if place.quick else training.study["pool"]
    if training.part:
        out = place.out / "databases" / f"{training.part}.lmdb"
        return [_build(out,
                       ["--dataset", _card(training.part), "--source",
                        str(_scene(training.part, place)), "--test-out",
                        str(out.with_suffix(".test"))])]
    made, rendered = [], training.arm["rendered"]
    for name, count in list(rendered.items())[:1] if place.quick else rendered.items():
        card, count = load_card(name), min(count, pool)
        first = training.study["seeds"].index(training.seed) * count % pool
        out = place.out / "databases" / f"{name}_{first}_{count}.lmdb"
        if not out.exists():
            files = render_scenes(default_path(card.source), Path(card.source).name,
                                  bands=card.bands, count=pool)
            chosen = [files[(first + k) % pool] for k in range(count)]
            _build(out,
                   ["--dataset", name, "--source", *map(str, chosen), "--patch", str(PATCH),
                    "--stride", str(PATCH), "--dtype", "float16"])
        made.append(str(out))
    return made


def _build(out: Path, arguments: Sequence[str]) -> str:
    if not out.exists():
        lmdb_data.main([*arguments, "--out", str(out), "--quiet", "--force"])
    return str(out)


def _card(name: str) -> str:
    own = HERE / "cards" / f"{name}.toml"
    return str(own) if own.exists() else name


def _scene(name: str, place: Place) -> Path:
    """The file of a real scene, by its stem, or as its card finds it."""
    for folder in place.scenes:
        for path in sorted(folder.rglob(f"{name}.*")):
            if is_scene(path):
                return path
    if (HERE.parent / "data" / f"{name}.toml").exists():
        return locate(load_card(name), "training")
    raise UserError(f"The scene {name} is not under "
                    f"{' or '.join(map(str, place.scenes)) or 'any folder'}; studies/README.md "
                    "says where it is offered. Name the folder that holds it with --scenes.")


def _tests(training: Training, place: Place) -> list[tuple[str | None, list[Path]]]:
    """The tests of a training: the test region of its part, those of all parts, or whole scenes."""
    if "parts" in training.study:
        parts = training.study["parts"][-1:] if place.quick else training.study["parts"]
        return [
            (part, [_scene(part, place)]) for part in ([training.part] if training.part else parts)]
    names = training.study["test"]
    return [(None, [_scene(name, place) for name in (names[:1] if place.quick else names)])]


def repeat_weights(place: Place) -> None:
    """Train every shipped file again by the commands in its card, and print how close the new
    network is to it.

    Leaves out files whose training databases do not exist and cannot be rendered.

    Raises:
        UserError: a training was interrupted.
    """
    # by the commands that led there: files share their first trainings
    made: dict[tuple[str, ...], Path] = {}
    for one in weights.shipped():
        final = one.card["training"]
        trainings = [*final.get("before", []), final]
        if missing := [name for training in trainings for name in _unbuilt(training)]:
            print(f"{one.path.stem}: left out, for its card does not build "
                  f"{', '.join(dict.fromkeys(missing))}")
            continue
        last, path = None, ()
        # each starts from the weights of the one before
        for number, training in enumerate(trainings):
            data = training["data"][:1] if place.quick else training["data"]
            for command in training.get("databases", []):
                script, *words = shlex.split(command)
                if (out := words[words.index("--out") + 1]) in data and not Path(out).exists():
                    words += ["--quiet", *(QUICK_DATABASE if place.quick else [])]
                    SCRIPTS[Path(script).name](words)
            path = (*path, training["command"])
            if path in made:
                last = made[path]
                continue
            script, *words = shlex.split(training["command"])
            if "--init" in words:  # where no card says how the first weights came, the seed does
                at = words.index("--init")
                words[at:at + 2] = ["--init", str(last)] if last else []
            folder = place.out / "weights" / f"{one.path.stem}_{number}"
            words += ["--run-dir", str(folder), "--quiet",
                      *([*QUICK, *QUICK_CROP, "--data", *data] if place.quick else [])]
            last = made[path] = folder / "last.pth"
            if not (last.exists() and _complete(last)):
                print(f"{one.path.stem}: python {shlex.join([script, *words])}", flush=True)
                if SCRIPTS[Path(script).name](
                        ["-r", "-rp", str(last), "--quiet"] if last.exists() else words):
                    raise UserError(f"The training of {one.path.stem} was interrupted; the same "
                                    "command goes on with it.")
        net, info = model_from_checkpoint(last)
        probe = weights.probe(net, one.scales[0], info.degradation,
                              one.card.get("start", "interpolation"))
        print(f"{one.path.stem}: {load_checkpoint(last)['iteration']} of {final['steps']} steps; "
              f"probe {probe:.6f}, of the shipped file {one.card['probe']:.6f}; test it with "
              f"python hsi_test.py -rp {last}")


def _unbuilt(training: Mapping[str, Any]) -> list[str]:
    """The databases of a training that are not there and that its commands do not build."""
    built = " ".join(training.get("databases", [])).split()
    return [name for name in training["data"] if name not in built and not Path(name).exists()]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Arguments(__doc__)
    add = parser.add_argument
    add("studies", nargs="+", metavar="STUDY", help=f"{', '.join(_studies())} or weights")
    add("--table", action="store_true",
        help="train nothing; make tables and figures of the results so far")
    add("--scenes", nargs="+", type=Path, default=[], metavar="FOLDER",
        help="where the real scenes are, at any depth")
    add("--seeds", type=int, metavar="N", help="the first N seeds (default: the study's)")
    add("--only", default="", metavar="PATTERN",
        help="trainings in whose name this regular expression is found")
    add("--budget", type=float, default=1.0, metavar="F",
        help="F times the steps or seconds (default: 1)")
    add("--out", type=Path, default=HERE / "out",
        help="folder of databases and runs (default: studies/out)")
    add("--results", type=Path,
        help="folder of results (default: studies/results; with --quick OUT/results)")
    add("--quick", action="store_true",
        help="two steps of each arm on two rendered scenes, to see that a study runs")
    add("--threads", type=int, default=1, metavar="N",
        help="processor threads (default: 1, so that processor seconds compare across machines "
        "with other work)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    results = options.results or (options.out / "results" if options.quick else HERE / "results")
    place = Place(tuple(options.scenes), options.out, results, options.quick)
    for name in options.studies:
        if name == "weights":
            repeat_weights(place)
            continue
        study = read_study(name)
        if options.budget != 1:
            study["name"] += f"_budget-{options.budget:g}"
        if options.budget != 1 or results != HERE / "results":
            study.get("errors", {}).pop("figure", None)
        planned = trainings(study, options.budget, options.seeds, options.quick)
        todo = [training for training in planned if re.search(options.only, training.name)]
        for number, training in enumerate(todo, 1):
            path = results / study["name"] / f"{training.name}.json"
            if options.table or path.exists():
                continue
            began = time.perf_counter()
            write_json(path, run(training, place))
            print(f"{study['name']} {number}/{len(todo)}: {training.name}, "
                  f"{time.perf_counter() - began:.0f} s", flush=True)
        for path in write_tables(study, results, options.out):
            print(path)


if __name__ == "__main__":
    run_script(main)
