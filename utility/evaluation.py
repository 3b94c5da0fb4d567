"""Testing a network against ground truth: degrade, super-resolve, compare, and leave files that people can open."""
from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import Network
from utility.cards import Card, generic_card, parts
from utility.cubes.containers import suffix_of
from utility.cubes.cube import Scene
from utility.cubes.values import from_unit_range, value_range
from utility.degradation import crop_to_multiple, downsample, upsample
from utility.errors import UserError
from utility.figures import band_psnr_figure, comparison_figure, error_figure, sam_figure, spectra_figure
from utility.files import replacing, write_json
from utility.indexes import METRICS, band_psnr, dark_bands, evaluate, sam_map
from utility.reading import Reading, open_as
from utility.report import write_report
from utility.scenes import write_scene
from utility.tables import mean_of
from utility.tiling import super_resolve_cube


@dataclass(frozen=True)
class Problem:
    """What is asked of the network, and how its answer is measured."""

    scale: int
    degradation: str
    tile: int | str = "auto"
    amp: str = "off"
    self_ensemble: bool = False
    bandwise: bool = False
    preset: str = "standard"
    border: int = 0


@dataclass
class TestImage:
    """A ground-truth cube in [0, 1] and the scene that it was taken from."""

    __test__ = False  # its name looks like a test's to pytest

    name: str
    cube: np.ndarray  # float32 (B, H, W)
    scene: Scene
    low: float = 0.0
    high: float = 1.0
    rgb: tuple[int, int, int] | None = None
    region: tuple[int, int, int, int] | None = None  # in its scene: top, left, height, width
    over: str = "scene"  # low and high are the smallest and largest value of the "scene" or of the "crop"


@dataclass(frozen=True)
class Outputs:
    """What is written beside the metrics."""

    cubes: bool = True
    figures: bool = True
    report: bool = False
    error_band: int | None = None
    pixels: tuple[tuple[int, int], ...] = ()  # (row, column), of whose spectra there is a figure
    facts: dict[str, Any] = field(default_factory=dict)


def read_images(paths: Sequence[Path], reading: Reading, card: Card | None = None) -> Iterator[TestImage]:
    """The test images in scene files: whole scenes, or with a card the parts of them that it says are for testing.

    Raises:
        UserError: a file that cannot be read or used; see `scenes` and `cards`.
    """
    for path in paths:
        scene = open_as(path, reading, card)
        # a card counts the bands of the whole scene
        rgb = card.rgb if card and "source_bands" not in scene.metadata else None
        for part in parts(card or generic_card(), scene, "test", value_range(scene, reading.keep_range)):
            whole = part.cube.shape == scene.cube.shape
            yield TestImage(part.name, part.cube, scene if whole else _unplaced(scene), part.low, part.high, rgb,
                            part.region, part.over)


def run(net: Network, images: Iterator[TestImage], problem: Problem, out: Path, outputs: Outputs, facts: dict[str, Any],
        progress: bool = True, overwrite: bool = False) -> dict[str, Any]:
    """Test a network on images and write a results folder: metrics.json, metrics.csv, cubes/ and figures.

    Args:
        net: on the device that shall compute.
        out: the folder; it appears when all of it is written.
        facts: put into metrics.json as they are (`arch`, `checkpoint`, ...).

        overwrite: an earlier results folder may stand under that name, and goes when the new one is whole.

    Returns: what metrics.json holds: `preset`, `scale`, `degradation`, `arch`, `images`, `mean`, ...

    Raises:
        UserError: the folder exists (or is no results folder), an image cannot be used, or there is none.
    """
    rows: list[dict[str, Any]] = []
    methods = {"interpolation": "interpolation", "network": str(facts["arch"])}
    with replacing(out, overwrite, marks=("metrics.json",)) as folder:
        folder.mkdir()
        for image in images:
            rows.append(_test_one(net, image, problem, folder, outputs, progress, {row["name"] for row in rows}))
        if not rows:
            raise UserError("There is no image to test on; give scenes with --data.")
        results = {
            **facts, "preset": problem.preset, "scale": problem.scale, "degradation": problem.degradation,
            "border": problem.border, "tile": problem.tile, "self_ensemble": problem.self_ensemble,
            "bandwise": problem.bandwise, "amp": problem.amp,
            "units": {index: metric.unit_in(problem.preset) for index, metric in METRICS.items()},
            "images": rows,
            "mean": {key: mean_of([row[key] for row in rows]) for key in methods},
        }
        write_json(folder / "metrics.json", results)
        _write_csv(folder / "metrics.csv", results, methods)
        if outputs.report:
            figures = [(f"{row['name']}: {kind}", folder / name) for row in rows for kind, name in row["figures"].items()]
            write_report(folder / "report.html", f"{facts['arch']}, x{problem.scale}, {problem.degradation}", outputs.facts,
                         rows, methods, figures, problem.preset, problem.scale, problem.border)
    return results


def _test_one(net: Network, image: TestImage, problem: Problem, folder: Path, outputs: Outputs, progress: bool,
              taken: set[str]) -> dict[str, Any]:
    scale = problem.scale
    gt = crop_to_multiple(image.cube, scale)
    bands, height, width = gt.shape
    if 0 in gt.shape:
        raise UserError(f"{image.scene.path} is {image.cube.shape[1]} x {image.cube.shape[2]} pixels, smaller than the scale "
                        f"factor {scale}; use a larger scene.")
    name = _free_name(image.name, taken)
    low, interpolation = _degraded(gt, problem, next(net.parameters()).device)
    try:
        plain = evaluate(interpolation, gt, scale, problem.preset, problem.border)
    except UserError as error:
        raise UserError(f"{image.scene.path or name} cannot be compared: {str(error)[0].lower()}{str(error)[1:]}") from error
    started = time.perf_counter()
    parts = [slice(b, b + 1) for b in range(bands)] if problem.bandwise else [slice(None)]
    sr = np.concatenate([super_resolve_cube(net, interpolation[part], low[part], tile=problem.tile, amp=problem.amp,
                                            self_ensemble=problem.self_ensemble,
                                            progress=progress and not problem.bandwise) for part in parts])
    seconds = time.perf_counter() - started
    row: dict[str, Any] = {"name": name, "file": image.scene.path.name if image.scene.path else None,
                           "bands": bands, "height": height, "width": width, "seconds": round(seconds, 3),
                           "dark_bands": dark_bands(gt, problem.border),
                           "network": evaluate(sr, gt, scale, problem.preset, problem.border), "interpolation": plain}
    if outputs.cubes:
        path = folder / "cubes" / f"{name}_x{scale}{suffix_of(image.scene.format)}"
        raw = from_unit_range(sr, image.low, image.high, np.float32, on_overflow="clip")
        write_scene(path, dataclasses.replace(image.scene, cube=raw, nodata=None))
        row["cube"] = str(path.relative_to(folder))
    if outputs.figures or outputs.report:
        row["figures"] = _figures(image, name, gt, interpolation, sr, row, problem, folder, outputs)
    return row


def _degraded(gt: np.ndarray, problem: Problem, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """The true low-resolution cube, and the same on the high-resolution grid."""
    def degraded(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        low = downsample(x, problem.scale, problem.degradation)
        return low.cpu().numpy(), upsample(low, problem.scale, problem.degradation).cpu().numpy()

    x = torch.from_numpy(np.ascontiguousarray(gt))
    try:
        return degraded(x.to(device))
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
    # Tiles may still fit on the GPU. Retry outside `except`: the traceback still holds GPU tensors.
    return degraded(x)


def _figures(image: TestImage, name: str, gt: np.ndarray, interpolation: np.ndarray, sr: np.ndarray, row: dict[str, Any],
             problem: Problem, folder: Path, outputs: Outputs) -> dict[str, str]:
    """Draw what was asked for; returns {what it shows: file name}."""
    wavelengths, made = image.scene.wavelengths, {}
    both = {"Interpolation": interpolation, "Network": sr}

    def path(kind: str, words: str) -> Path:
        made[words] = f"{name}{kind}.png"
        return folder / made[words]

    comparison_figure(path("", "ground truth, interpolation, network and errors"), gt, both, wavelengths=wavelengths,
                      rgb=image.rgb, metrics=dict(zip(both, (row["interpolation"], row["network"]), strict=True)), name=name,
                      scale=problem.scale, preset=problem.preset, border=problem.border, pixels=outputs.pixels or None)
    if outputs.pixels:
        spectra_figure(path("_spectra", "spectra of chosen pixels"), {"Ground truth": gt, **both}, outputs.pixels, wavelengths,
                       name)
    if outputs.error_band is not None or outputs.report:
        band = outputs.error_band if outputs.error_band is not None else len(gt) // 2
        error_figure(path(f"_error_band{band}", f"absolute error at band {band}"), gt, both, band, wavelengths, name)
    if outputs.report:
        band_psnr_figure(path("_band_psnr", "PSNR of each band"), {k: band_psnr(v, gt) for k, v in both.items()},
                         wavelengths, name)
        sam_figure(path("_sam", "spectral angle of each pixel"), {k: sam_map(v, gt) for k, v in both.items()}, name)
    return made


def _write_csv(path: Path, results: dict[str, Any], methods: Iterable[str]) -> None:
    preset, border = results["preset"], results["border"]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        units = [f"{index} [{unit}]" if unit else index for index, unit in results["units"].items()]
        writer.writerow(["image", "method", "preset", "scale", "degradation", "border_px", *units])
        for row in [*results["images"], {"name": "mean", **results["mean"]}]:
            for method in methods:
                writer.writerow([row["name"], method, preset, results["scale"], results["degradation"], border,
                                 *(row[method][index] for index in METRICS)])


def _unplaced(scene: Scene) -> Scene:
    """Without its place on the ground: a part of a scene lies elsewhere."""
    header = {k: v for k, v in scene.metadata.get("header", {}).items() if k != "map info"}
    metadata = {**scene.metadata, "header": header} if "header" in scene.metadata else scene.metadata
    return dataclasses.replace(scene, crs=None, transform=None, metadata=metadata)


def _free_name(name: str, taken: set[str]) -> str:
    """`name`, numbered where another image of this test has it, and short enough for the endings that files get."""
    name = name.encode()[:180].decode(errors="ignore")
    count, free = 2, name
    while free in taken:
        free, count = f"{name}_{count}", count + 1
    return free
