"""Methods against ground truth: degrade, super-resolve, compare, and write what people open."""
from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import Network
from utility.checkpoints import CheckpointInfo
from utility.cubes.bands import fill, missing_anywhere
from utility.cubes.containers import suffix_of
from utility.cubes.values import content_hash, from_unit_range, unit_range
from utility.datasets.regions import sources_of
from utility.degradation import Degradation, add_noise, crop_to_multiple, dark_note, downsample
from utility.indexes import METRICS, Comparison, band_psnr, sam_map
from utility.names import METHODS, UNTRAINED
from utility.report import figures, tables
from utility.report.page import write_report
from utility.scenes import first_line, list_scenes, read_scene, write_scene
from utility.superres.methods import methods
from utility.superres.noise import with_noise
from utility.superres.problem import Problem, for_noise
from utility.superres.provenance import provenance, weights_hash
from utility.superres.spectrum import spectrum_of
from utility.system import distributed
from utility.system.errors import UserError
from utility.system.files import replacing, write_json, write_text
from utility.system.progress import note, say
from utility.testing.images import TestImage
from utility.testing.units import other_values
from utility.weights import label_of

ROW = ("dark_bands", "seconds", "above_network", "cube", "figures", "other_values")
"""Fields of an image in metrics.json, besides its origin and its methods."""


@dataclass(frozen=True)
class Outputs:
    """The files to write beside the metrics."""

    cubes: bool = True
    figures: bool = True
    report: bool = False
    latex: bool = False
    error_band: int | None = None
    pixels: tuple[tuple[int, int], ...] = ()  # (row, column), of whose spectra there is a figure
    facts: dict[str, Any] = field(default_factory=dict)  # for the report


def run(net: Network | None, info: CheckpointInfo | None, images: Iterator[TestImage],
        problem: Problem, out: Path, *, outputs: Outputs, facts: Mapping[str, Any] | None = None,
        compare: Mapping[str, Path] | None = None, overwrite: bool = False, together: bool = True,
        failed: list[str] | None = None) -> dict[str, Any]:
    """Test on images, and write a results folder: metrics.json, metrics.csv, metrics_bands.csv,
    cubes/ and figures.

    Tested are interpolation, back-projection, the network if there is one, others' cubes.

    Args:
        net: on the device that shall compute; None tests without a network.
        info: what the network's checkpoint says.
        out: the folder. The folder appears when all of it is written.
        facts: put into metrics.json as they are (`command`, `device`).
        compare: {method: folder of its cubes}. A cube has the name of its image, or NAME_xSCALE,
            and its values.
        overwrite: replace an earlier results folder of that name, when the new one is whole.
        together: of several processes, each gets all images and computes some of their tiles;
            False: each gets images of its own. The first process writes.
        failed: takes the sentences on images of no use; None: the first one is raised.

    Returns: what metrics.json holds: `preset`, `scale`, `arch`, `images`, `mean`, `warnings`, ...

    Raises UserError: the folder exists (or is no results folder), an image cannot be used, or there
    is none.
    """
    compare = dict(compare or {})
    methods = {**UNTRAINED, **({"network": label_of(info.arch, info.path)} if net else {}),
               **{name: name for name in compare}}
    own = outputs
    if together and distributed.rank():
        own = dataclasses.replace(outputs, cubes=False, figures=False, report=False)
    test = _Test(net, problem, own, compare, methods, info.trained_on if info else (), together)
    with _results_folder(out, overwrite) as folder:
        for image in images:
            try:
                test.add(image, folder)
            except UserError as error:
                if failed is None:
                    raise
                failed.append(str(error))
        if not together:
            test.found = sorted(distributed.gathered(test.found), key=lambda found: found[0])
            failed = distributed.gathered(failed or [])
        rows = test.rows
        if failed and not rows:
            raise UserError(failed[0])
        if not rows:
            raise UserError("There is no image to test on; give scenes with --data.")
        asked = dataclasses.asdict(problem)
        del asked["method"]
        units = {index: metric.unit_in(problem.preset) for index, metric in METRICS.items()}
        results = {**_about(net, info), **(facts or {}), **asked, "units": units,
                   "methods": methods, "images": rows,
                   "mean": {key: tables.mean_of([row[key] for row in rows]) for key in methods}}
        results |= {"warnings": _warnings(results), "failed": failed or []}
        if distributed.rank():
            return results
        write_json(folder / "metrics.json", results)
        tables.write_csv(folder / "metrics.csv", tables.result_rows(results, methods))
        bands = chain.from_iterable(bands for *_, bands in test.found)
        tables.write_csv(folder / "metrics_bands.csv", [tables.band_header(problem.preset), *bands])
        if outputs.latex:
            how = tables.describe(problem.preset, problem.scale, problem.border, rows, methods)
            write_text(folder / "metrics.tex",
                       tables.latex(*tables.result_table(rows, methods, problem.preset), how))
        if outputs.report:
            pictures = [(f"{row['name']}: {kind}", folder / name)
                        for row in rows for kind, name in row["figures"].items()]
            tested = methods["network"] if info else " and ".join(UNTRAINED.values())
            warned = {f"Warning {k}": text for k, text in enumerate(results["warnings"], 1)}
            write_report(folder / "report.html",
                         f"{tested}, x{problem.scale}, {problem.degradation}",
                         {**outputs.facts, **warned}, rows, methods, pictures, problem.preset,
                         problem.scale, problem.border)
    return results


def _about(net: Network | None, info: CheckpointInfo | None) -> dict[str, Any]:
    """What metrics.json says of the network."""
    if not info:
        return {"arch": None, "checkpoint": None}
    return {"arch": info.arch, "checkpoint": str(info.path), "weights_sha256": weights_hash(net),
            "epoch": info.epoch, "iteration": info.iteration,
            "trained_scales": list(info.scales) if info.scales else None,
            "trained_degradation": info.degradation}


@contextmanager
def _results_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """The folder that becomes `out` at the end; the first process makes it, all write in it."""
    if distributed.rank():
        yield Path(distributed.of_first(""))
        return
    with replacing(out, overwrite, marks=("metrics.json",)) as folder:
        folder.mkdir()
        yield Path(distributed.of_first(str(folder)))


@dataclass
class _Test:
    """The settings of a test, which all images share, and the rows of metrics.json so far."""

    net: Network | None
    problem: Problem
    outputs: Outputs
    compare: dict[str, Path]
    methods: dict[str, str]
    # what the network's checkpoint says of its training
    trained_on: Sequence[Mapping[str, Any]] | None
    together: bool = True
    # of each image: the number of its file, its row of metrics.json, and those of metrics_bands.csv
    found: list[tuple[int, dict[str, Any], list[list[Any]]]] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for _, row, _ in self.found]

    def add(self, image: TestImage, folder: Path) -> None:
        """Test on one image: its row of metrics.json, its cube and its figures."""
        problem, scale = self.problem, self.problem.scale
        gt = crop_to_multiple(image.cube, scale)
        cut = "" if gt.shape == image.cube.shape else ", cut to {} x {}".format(*gt.shape[1:])
        say(f"{image.name} {first_line(image)}{cut}")
        if 0 in gt.shape:
            raise UserError(f"{image.scene} is {image.cube.shape[1]} x {image.cube.shape[2]} "
                            f"pixels, smaller than the scale factor {scale}; use a larger scene.")
        low, noise, lost, unseen = degraded(gt, image, problem)
        name = _free_name(image.name, {row["name"] for row in self.rows})
        bands, height, width = gt.shape
        filled = None if image.filled is None else image.filled[:height, :width]
        row = {"name": name, **image.source, "bands": bands, "height": height, "width": width,
               "missing_pixels": 0 if filled is None else int(filled.sum()),
               "sha256": _truth_hash(gt, filled), "start": problem.start if self.net else None,
               "noise": problem.noise, "snr": problem.snr, "border": problem.border,
               "trained_on": None if self.trained_on is None else
               sources_of(image.scene, tuple(image.source["region"]), self.trained_on)}
        if taken := self.compare.keys() & {*row, *METHODS, *ROW}:
            raise UserError(f"A method of --compare is called {taken.pop()}, which means something "
                            "else in metrics.json; give it another name.")
        others, unseen = self._others(image, gt.shape, unseen)
        counted = None if unseen is None else ~unseen
        problem = for_noise(problem, noise)
        made = methods(self.net, low, problem, noise=noise, spectrum=spectrum_of(image.scene),
                       missing=lost)
        cubes, found = {}, {}
        for key in (*made, *others):
            if key == "network":
                started = time.perf_counter()
                cubes[key] = made[key].cube(together=self.together)
                row["seconds"] = round(time.perf_counter() - started, 3)
            else:
                cubes[key] = others[key] if key in others else made[key].cube()
            try:
                found[key] = Comparison(cubes[key], gt, scale, problem.preset, problem.border,
                                        counted)
                row[key] = found[key].indexes()
            except UserError as error:
                raise UserError(f"{image.scene} cannot be compared. {error}") from error
        told = {method: other_values(found[method], image.low, image.high) for method in others}
        row |= {"dark_bands": np.flatnonzero(found["interpolation"].dark).tolist(),
                "other_values": {method: words for method, words in told.items() if words},
                "above_network": [key for key in UNTRAINED
                                  if self.net and row[key]["psnr"] > row["network"]["psnr"]]}
        if self.outputs.cubes and self.net:
            row["cube"] = self._write_cube(cubes["network"], image, counted, folder, name)
        if self.outputs.figures or self.outputs.report:
            row["figures"] = self._figures(image, gt, cubes, counted, row, folder)
        by_band = {key: comparison.band_indexes() for key, comparison in found.items()}
        rows = tables.band_rows(name, by_band, problem.preset, image.scene.wavelengths,
                                found["interpolation"].pixels)
        self.found.append((image.number, row, rows))

    def _others(self, image: TestImage, shape: tuple[int, int, int],
                unseen: np.ndarray | None) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Other programs' cubes of an image, {method: in [0, 1]}, and the pixels that do not count:
        given ones, and those that such a cube declares missing."""
        cubes = {}
        for method, folder in self.compare.items():
            cubes[method], gone = _read_cube(folder, image, shape, self.problem, unseen)
            if gone is not None:
                unseen = gone if unseen is None else unseen | gone
        return cubes, unseen

    def _write_cube(self, cube: np.ndarray, image: TestImage, counted: np.ndarray | None,
                    folder: Path, name: str) -> str:
        """Write the network's result in its scene's values, float32, no-data where none counts."""
        path = folder / "cubes" / f"{name}_x{self.problem.scale}{suffix_of(image.scene.format)}"
        raw = from_unit_range(cube, image.low, image.high, np.float32, on_overflow="clip")
        nodata = image.scene.nodata if counted is not None else None
        if counted is not None:
            if nodata is None or abs(nodata) > np.finfo(np.float32).max:
                nodata = np.nan
            raw[raw == np.float32(nodata)] = np.nextafter(np.float32(nodata),
                                                          np.float32(image.high))
            raw[:, ~counted] = nodata
        metadata = image.scene.metadata | provenance(self.net, self.problem, image.scene,
                                                     ", degraded for a test,")
        write_scene(path, dataclasses.replace(image.scene, cube=raw, nodata=nodata,
                                              metadata=metadata))
        return str(path.relative_to(folder))

    def _figures(self, image: TestImage, gt: np.ndarray, cubes: dict[str, np.ndarray],
                 counted: np.ndarray | None, row: dict[str, Any], folder: Path) -> dict[str, str]:
        """Draw the figures, in which pixels that do not count are NaN: {content: file name}."""
        if counted is not None:
            gt, *shown = (
                np.where(counted, cube, np.float32(np.nan)) for cube in (gt, *cubes.values()))
            cubes = dict(zip(cubes, shown, strict=True))
        name, outputs, problem = row["name"], self.outputs, self.problem
        wavelengths, made = image.scene.wavelengths, {}
        labels = {key: UNTRAINED[key].capitalize() if key in UNTRAINED else key for key in cubes}
        labels["network"] = "Network"
        shown = {labels[key]: cube for key, cube in cubes.items()}
        remarks = []
        if above := " and ".join(UNTRAINED[key] for key in row["above_network"]):
            remarks.append(f"network below {above}")
        if counted is not None:
            remarks.append(f"{counted.mean():.0%} of the pixels count, the others are black")

        def path(kind: str, words: str) -> Path:
            made[words] = f"{name}{kind}.png"
            return folder / made[words]

        figures.comparison_figure(
            path("", "ground truth, methods and errors"), gt, shown, wavelengths=wavelengths,
            rgb=image.rgb, metrics={labels[key]: row[key] for key in cubes}, name=name,
            scale=problem.scale, preset=problem.preset, border=problem.border,
            pixels=outputs.pixels or None, note="; ".join(remarks))
        if outputs.pixels:
            figures.spectra_figure(path("_spectra", "spectra of chosen pixels"),
                                   {"Ground truth": gt, **shown}, outputs.pixels, wavelengths, name)
        if outputs.error_band is not None or outputs.report:
            band = outputs.error_band if outputs.error_band is not None else len(gt) // 2
            figures.error_figure(path(f"_error_band{band}", f"absolute error at band {band}"), gt,
                                 shown, band, wavelengths, name)
        if outputs.report:
            curves = {label: band_psnr(cube, gt, counted) for label, cube in shown.items()}
            angles = {label: sam_map(cube, gt, counted) for label, cube in shown.items()}
            figures.band_psnr_figure(path("_band_psnr", "PSNR of each band"), curves, wavelengths,
                                     name)
            figures.map_figure(path("_sam", "spectral angle of each pixel"), angles,
                               "spectral angle to the ground truth", "Spectral angle (degrees)",
                               "°", name)
        return made


def _truth_hash(gt: np.ndarray, filled: np.ndarray | None) -> str:
    """What tells ground truths apart: values in [0, 1], and which pixels are missing."""
    if filled is not None and filled.any():
        gt = np.where(filled, np.float32(np.nan), gt)
    return content_hash(gt)


def degraded(gt: np.ndarray, image: TestImage, problem: Problem
             ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """The low-resolution cube (B, h, w); the noise of its bands, where it is told; its pixels that
    a missing pixel has a part in; the pixels that no result is compared at. The masks are None
    where every pixel was measured.

    As those of a sensor's cube, the pixels of the first mask are filled from others before a method
    sees the cube.
    """
    low = downsample(torch.from_numpy(np.ascontiguousarray(gt)), problem.scale,
                     problem.degradation).numpy()
    lost = unseen = None
    filled = None if image.filled is None else crop_to_multiple(image.filled, problem.scale)
    if filled is not None and filled.any():
        lost, unseen = Degradation.of(problem.scale, problem.degradation).unseen(filled)
        if lost.all():
            raise UserError(f"{image.scene} has {int((~filled).sum())} measured pixels, and "
                            "missing ones have a part in every degraded pixel; use another scene, "
                            "or a smaller --scale.")
        low[:, lost] = np.nan  # a stated ratio to the noise is of the others
    low, noise = add_noise(low, problem.noise, problem.seed, image.name), None
    if problem.snr is not None:
        low, noise = with_noise(low, problem.snr, problem.seed, image.name)
    return low if lost is None else fill(low, lost), noise, lost, unseen


def _read_cube(folder: Path, image: TestImage, shape: tuple[int, int, int], problem: Problem,
               unseen: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The cube that another program made of an image, in [0, 1], of the size of the image or of
    `shape`; and the pixels that its file declares missing. Raises UserError: there is no such cube,
    or it holds NaN elsewhere.
    """
    names = (image.name, f"{image.name}_x{problem.scale}")
    found = [path for path in list_scenes([folder]) if path.stem in names]
    if len(found) != 1:
        raise UserError(f"{folder} holds {len(found) or 'no'} cubes named {' or '.join(names)}, "
                        "and one is needed; name the cubes after the images of the test.")
    scene = read_scene(found[0], bands=shape[0])
    cube = scene.cube
    if cube.shape not in (shape, image.cube.shape):
        raise UserError(f"{found[0]} is {' x '.join(map(str, cube.shape))}, and the image "
                        f"{image.name} is {' x '.join(map(str, shape))}; give a cube of the same "
                        "bands and size.")
    rows, columns = shape[1:]
    gone = missing_anywhere(scene)
    gone = None if gone is None else gone[:rows, :columns]
    cube = cube[:, :rows, :columns]
    inside = np.zeros((rows, columns), bool)
    inside[problem.border:rows - problem.border, problem.border:columns - problem.border] = True
    for mask in (unseen, gone):
        inside &= True if mask is None else ~mask
    values = cube[:, inside]
    if bad := int((~np.isfinite(values)).sum()):
        raise UserError(f"{found[0]} holds {bad} values that are NaN or infinite at pixels that "
                        f"the image {image.name} has, and declares no value for missing ones; "
                        "repair it, or leave its edge out with --border.")
    if image.high - image.low > 4 and values.size and np.abs(values).max() < 2:
        raise UserError(f"{found[0]} holds values up to {np.abs(values).max():.3g}, and the "
                        f"image {image.name} has values from {image.low:g} to {image.high:g}; give "
                        "the cube in the values of the image.")
    if gone is not None and (more := int((gone if unseen is None else gone & ~unseen).sum())):
        note(f"{found[0]} lacks {more} pixels that the image {image.name} has; no method is "
             "compared there")
    return unit_range(cube, image.low, image.high)[0], gone


def _warnings(results: dict[str, Any]) -> list[str]:
    """Sentences on a test with training pixels, cubes in other values, a network below another
    method, and dark rows."""
    rows, mean, warnings = results["images"], results["mean"], []
    for row in rows:
        if seen := ", ".join(row["trained_on"] or ()):
            warnings.append(f"the network was trained on pixels of {row['name']} ({seen}): its "
                            "numbers there say nothing about other scenes")
    warnings += [f"{method} of {row['name']}: {words}"
                 for row in rows for method, words in row["other_values"].items()]
    for key, label in UNTRAINED.items():
        count = sum(key in row["above_network"] for row in rows)
        if count:
            warnings.append(f"the network is below the {label} on {count} of {len(rows)} images "
                            f"(mean PSNR {mean['network']['psnr']:.2f} dB against "
                            f"{mean[key]['psnr']:.2f} dB)")
    notes = (dark_note(row["height"], row["width"], results["scale"], results["degradation"])
             for row in rows)
    return warnings + list(dict.fromkeys(filter(None, notes)))


def _free_name(name: str, taken: set[str]) -> str:
    """A free name: `name`, with a number if it is taken, cut so that file endings fit."""
    name = name.encode()[:180].decode(errors="ignore")
    count, free = 2, name
    while free in taken:
        free, count = f"{name}_{count}", count + 1
    return free
