"""The weights that this project ships: NAME.pth beside a card NAME.toml in `checkpoints/`.

    python utility/weights.py                                             what there is
    python utility/weights.py export runs/NAME/best.pth NAME --order 1 --about "own cubes, x4"
            ships the network of a run; --metrics results/*/metrics.json adds its tests

A card says what the file is for, how it was trained and how well it did, all read from the run and
from metrics.json; its hash tells whether the file is whole. Of several files that fit a problem,
the one with the smallest `order` is taken.
"""
from __future__ import annotations

import csv
import hashlib
import json
import shlex
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from utility.names import ANY, SAFE_MTF  # noqa: E402
from utility.system.errors import Arguments, UserError, run_script  # noqa: E402
from utility.system.files import refuse_existing, shown, write_text  # noqa: E402

if TYPE_CHECKING:
    from models import Network

FOLDER = ROOT / "checkpoints"
LICENCE = "Apache-2.0"
SERVED = ("mtf", "area", "gaussian", "bicubic")
"""Kinds of degradation that weights for any MTF serve: those on the grid of a sensor."""


@dataclass(frozen=True)
class Shipped:
    """One file of weights and what its card says."""

    path: Path
    card: Mapping[str, Any]

    @property
    def scales(self) -> list[int]:
        scale = self.card["scale"]
        return scale if isinstance(scale, list) else [scale]

    def fits(self, arch: str | None, scale: int | None, kind: str | None) -> bool:
        """Whether the weights are of this network, for this scale and degradation; None is any."""
        own = self.card["degradation"]
        served = kind in (None, own)
        if own == ANY and kind:
            served = kind.split()[0] in SERVED
        return (served and arch in (None, self.card["arch"])
                and (scale is None or scale in self.scales))

    def describe(self) -> str:
        scales, kind = ",".join(map(str, self.scales)), self.card["degradation"]
        served = "any MTF" if kind == ANY else kind
        return f"{self.path.stem} ({self.card['arch']}, x{scales}, {served})"

    def check(self) -> None:
        """Raises UserError: the file is missing, or not the one that the card describes."""
        if not self.path.exists():
            raise UserError(f"{self.path} is missing, and its card is there; fetch the file again.")
        if sha256(self.path) != self.card["sha256"]:
            raise UserError(f"{self.path} is not the file that "
                            f"{self.path.with_suffix('.toml').name} describes: its hash is "
                            "another; fetch the file again.")


def shipped() -> list[Shipped]:
    """All of them, in the order in which they are preferred."""
    found = []
    for card in FOLDER.glob("*.toml"):
        try:
            found.append(
                Shipped(card.with_suffix(".pth"), tomllib.loads(card.read_text(encoding="utf-8"))))
        except (OSError, ValueError) as error:
            raise UserError(f"{card} cannot be read ({error}); fetch the card again.") from error
    return sorted(found, key=lambda one: (one.card["order"], one.path.name))


def label_of(arch: str, path: str | Path) -> str:
    """What a table calls a network: the name of shipped weights, else its architecture."""
    path = Path(path)
    return path.stem if path.parent.name == FOLDER.name else arch


def choose(arch: str | None = None, scale: int | None = None,
           kind: str | None = None) -> Shipped | None:
    """The preferred weights for a problem, checked against their hash; None where none fit.

    Before all others come those whose card names the degradation in `first_for`: they know this
    blur alone, and serve it better than those for any MTF.

    Raises UserError: the file is missing or not the one that its card describes.
    """
    fit = [one for one in shipped() if one.fits(arch, scale, kind)]
    fit.sort(key=lambda one: kind not in one.card.get("first_for", []))
    if not fit:
        return None
    fit[0].check()
    return fit[0]


def named(name: str) -> str:
    """The path of the shipped weights of this name; a path, and what is no such name, as it is.
    Raises UserError: the file of that name is missing or not the one that its card describes, or a
    name without a folder and a suffix is none of the shipped ones."""
    if Path(name).exists() or Path(name).name != name:
        return name
    found = next((one for one in shipped() if one.path.stem == name), None)
    if not found and not Path(name).suffix:
        raise UserError(f"There is no checkpoint {name}, and no shipped weights have that name; "
                        "give a path such as runs/NAME/best.pth, or one of "
                        f"{', '.join(one.path.stem for one in shipped())}.")
    if not found:
        return name
    found.check()
    return str(found.path)


def listing() -> str:
    """What ships, in one clause."""
    return (f"{shown(FOLDER)} holds "
            + (", ".join(one.describe() for one in shipped()) or "no weights"))


def export(source: Path, name: str, *, order: int, about: str, metrics: Sequence[Path] = (),
           force: bool = False) -> Shipped:
    """Ship the network of a run's checkpoint: its weights alone in float32, and a card.

    Args:
        source: the checkpoint, in the folder of its run.
        name: of the two files.
        order: among the files that fit the same problem the smallest comes first.
        about: what the weights are for.
        metrics: metrics.json of tests of this checkpoint.
        force: replace files of that name.

    Raises UserError: the checkpoint was not made by this project, metrics of another checkpoint, or
    the files exist.
    """
    from utility.checkpoints import load_checkpoint, model_from_checkpoint, save_checkpoint

    path, card_path = FOLDER / f"{name}.pth", FOLDER / f"{name}.toml"
    for target in (path, card_path):
        refuse_existing(target, force)
    saved = load_checkpoint(source)
    net, info = model_from_checkpoint(source)
    if not info.scales or not info.degradation or "config" not in saved:
        raise UserError(
            f"{source} does not say how it was trained; give a checkpoint that hsi_sr.py wrote.")
    rows, training = ([row for file in metrics for row in _rows_of(file, source, saved)],
                      _training(source, saved))
    what = {key: saved[key]
            for key in ("arch", "scale", "degradation", "start", *net.options) if key in saved}
    kept = {key: saved[key]
            for key in ("trained_on", "bands", "normalisation", "epoch", "iteration", "psnr")
            if key in saved}
    save_checkpoint(
        path,
        {"net": {key: value.float().cpu() for key, value in saved["net"].items()}, **what, **kept})
    card = {
        **what, "order": order, "about": about, "licence": LICENCE, "sha256": sha256(path),
        "probe": probe(net, info.scales[0], info.degradation, saved.get("start", "interpolation")),
        "training": training, "metrics": rows}
    write_text(card_path, _toml(card))
    return Shipped(path, card)


def probe(net: Network, scale: int, kind: str, start: str = "interpolation") -> float:
    """The mean change that a network makes to a fixed start image, (4, 32, 32): one number that
    tells weights apart."""
    import torch

    from utility.degradation import downsample, start_image

    b, i, j = torch.meshgrid(torch.arange(4.0), torch.arange(32.0), torch.arange(32.0),
                             indexing="ij")
    cube = (0.5 + 0.2 * torch.sin(0.5 * i + b) * torch.cos(0.3 * j)
            + 0.1 * torch.sign(torch.sin(0.7 * i - 0.4 * j + b)))
    kind = f"{ANY} {SAFE_MTF}" if kind == ANY else kind
    low = downsample(cube, scale, kind)
    x = start_image(low, scale, kind, start)[None, None]
    with torch.no_grad():
        return float((net(*net.inputs(x, low[None, None])) - x).abs().mean())


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rows_of(file: Path, source: Path, saved: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each image of a metrics.json: its name, how it was scored, and a row for each method."""
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        tested = (Path(results["checkpoint"]).resolve() == source.resolve()
                  and results["iteration"] == saved["iteration"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a metrics.json of hsi_test.py; give one.") from error
    if not tested:
        raise UserError(f"{file} is a test of {results['checkpoint']} after {results['iteration']} "
                        f"steps, and {source} has made {saved['iteration']}; test this checkpoint.")
    facts = {key: results[key]
             for key in ("preset", "scale", "degradation", "border", "backproject")
             if results.get(key)}
    described = []
    for image in results["images"]:
        described.append({"image": image["name"], "bands": image["bands"], **facts})
        for method, row in image.items():
            if isinstance(row, dict) and "psnr" in row:
                numbers = {key: value for key, value in row.items() if isinstance(value, float)}
                described[-1][method] = {key: round(value, 4) for key, value in numbers.items()}
    return described


def _training(source: Path, saved: Mapping[str, Any]) -> dict[str, Any]:
    """How a run was trained, from its checkpoint and the files beside it."""
    config, folder = saved["config"], source.parent
    facts = {key: config[key] for key in ("recipe", "loss", "batch", "lr", "seed", "data", "init")
             if config.get(key)}
    facts["steps"] = saved["iteration"]
    # the card of the weights that the run started from
    parent = config["init"] and Path(config["init"]).with_suffix(".toml")
    if parent and parent.is_file():
        earlier = tomllib.loads(parent.read_text(encoding="utf-8"))["training"]
        facts["before"] = [*earlier.pop("before", []), earlier]
    if databases := [*filter(None, map(_building, config["data"]))]:
        facts["databases"] = databases
    if saved.get("trained_on"):
        facts["scenes"] = len(saved["trained_on"])
    try:
        with open(folder / "history.csv", newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= saved["epoch"]]
        for name, key in (("hours", "seconds"), ("processor_hours", "processor_seconds")):
            facts[name] = round(sum(float(row.get(key) or 0) for row in rows) / 3600, 2)
        origin = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        facts |= {key: origin[key] for key in ("command", "device", "version") if origin.get(key)}
        _, script, *words = shlex.split(facts["command"])
        # as it is typed in the repository's folder
        facts["command"] = shlex.join([Path(script).name, *words])
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{folder} has no history.csv and environment.json of a run, from which a "
                        "card takes its numbers; give a checkpoint where hsi_sr.py wrote "
                        "it.") from error
    return facts


def _building(path: str) -> str | None:
    """The command that builds a database of rendered scenes; None for others, or one gone."""
    from utility.datasets.cards import load_card
    from utility.lmdb_dataset import LMDBDataset

    try:
        meta = LMDBDataset(path).meta
        card = load_card(meta["card"])
    except (UserError, KeyError, TypeError):
        return None
    if not Path(card.source).is_relative_to("data/rendered"):
        return None
    scenes = {source["file"] for source in meta["sources"]}
    _, seed, _ = min(scenes).split("_")  # see `data.rendering.render_scenes`
    return shlex.join(["utility/lmdb_data.py", "--dataset", card.name, "--scenes", str(len(scenes)),
                       "--seed", seed, "--patch", str(meta["patch"]), "--stride",
                       *map(str, meta["strides"]), "--val-last", str(meta["validation"]), "--dtype",
                       meta["dtype"], "--out", path])


def _toml(card: Mapping[str, Any]) -> str:
    """A card as TOML: plain values first, then one table, then one table for each test image."""
    def value(v: Any) -> str:
        if isinstance(v, Mapping):
            return "{ " + ", ".join(f"{key} = {value(item)}" for key, item in v.items()) + " }"
        if isinstance(v, list | tuple):
            return "[" + ", ".join(map(value, v)) + "]"
        return repr(v) if isinstance(v, float) else json.dumps(v)

    def lines(table: Mapping[str, Any]) -> list[str]:
        return [f"{key} = {value(v)}" for key, v in table.items()]

    plain = {key: v for key, v in card.items() if key not in ("training", "metrics")}
    blocks = [lines(plain), ["[training]", *lines(card["training"])],
              *(["[[metrics]]", *lines(row)] for row in card["metrics"])]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Arguments(__doc__)
    add = parser.add_subparsers(dest="command").add_parser(
        "export", help="ship the network of a checkpoint").add_argument
    add("source", type=Path, metavar="CKPT", help="of a run, in its folder")
    add("name", metavar="NAME", help="of the files checkpoints/NAME.pth and NAME.toml")
    add("--order", type=int, required=True,
        help="of those that fit a problem the smallest is taken")
    add("--about", required=True, metavar="WORDS", help="what the weights are for")
    add("--metrics", type=Path, nargs="+", default=[], metavar="JSON",
        help="metrics.json of tests of this checkpoint")
    add("--force", action="store_true", help="replace files of that name")
    options = vars(parser.parse_args(arguments))
    if options.pop("command"):
        made = export(**options)
        print(f"{shown(made.path)}: {made.path.stat().st_size / 1e6:.1f} MB, {made.describe()}")
    else:
        print("\n".join(f"{one.describe()}\n    {one.card['about'].split('. ')[0]}"
                        for one in shipped()) or listing())


if __name__ == "__main__":
    run_script(main)
