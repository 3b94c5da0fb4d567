"""Super-resolving a cube that has no ground truth: a file in, a file out, whatever its size."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import Network
from utility.cubes.bands import select_bands
from utility.cubes.containers import named, shared_file, writers_of
from utility.cubes.cube import Scene, blocks, scratch
from utility.cubes.statistics import band_statistics, limits_of
from utility.cubes.values import from_unit_range, value_range
from utility.degradation import STEPS, Degradation, dark_note, grid, prefilter, round_trip
from utility.indexes import PSNR_CAP, sam_map
from utility.reading import Reading, open_as
from utility.report.figures import map_figure, no_truth_figure
from utility.report.page import write_report
from utility.scenes import bounds_distance, create_scene, describe, first_line, open_scene, scaled
from utility.superres.problem import UNTRAINED, Problem
from utility.superres.provenance import provenance, weights_hash
from utility.superres.tiling import Consistency, Source, interpolated, super_resolve, window_of
from utility.superres.uncertainty import Halo, Spread, far_out, in_words
from utility.system.errors import UserError
from utility.system.files import keep_out_of, refuse_existing, refuse_foreign, replacing, write_json
from utility.system.progress import note, say

AT_ONCE = 2 << 20
"""Bytes of the input that are compared with a result at a time."""

PREVIEW = 512
"""Rows and columns, at most, of the part of a result that is kept in memory for its figure."""

UNTRAINED_TILE = 512
"""Side of a tile where no network computes."""

REPORT_MARKS = ("summary.json",)
"""What is in every report folder, by which an earlier one is known."""


@dataclass(frozen=True)
class Writing:
    """How the result is written; the defaults are the input's own."""

    dtype: str | None = None        # a NumPy type's name
    on_overflow: str = "clip"       # or "refuse": values that the type cannot hold
    unit_range: bool = False        # in [0, 1] as float32, instead of the input's values
    overwrite: bool = False
    cog: bool = False               # a cloud-optimised GeoTIFF, with overviews


@dataclass
class Applied:
    """What came of it, besides the file."""

    summary: dict[str, Any]
    scene: Scene                    # the input, its bands chosen
    low: np.ndarray                 # (B, h, w) of the preview, in [0, 1]
    cubes: dict[str, np.ndarray]    # {method: (B, H, W) of the preview}, likewise
    spread: np.ndarray | None       # (H, W) of the preview, in the values of the result

    @property
    def title(self) -> str:
        """The agreement of the result and of the untrained methods with the input, for a figure."""
        rows, method = self.summary["consistency"], self.summary["method"]
        psnr = {key: row["psnr"] for key, row in rows.items()}
        rivals = ", ".join(f"{name} {psnr[key]:.1f}" for key, name in UNTRAINED.items() if key != method)
        return (f"agreement with the input (not accuracy) {psnr[method]:.1f} dB PSNR ({rivals})"
                + (f"; {self.summary['missing']:.1%} of the scene is missing, here filled from its edges"
                   if self.summary["missing"] else "")
                + "; WARNING: below the interpolation" * (psnr[method] < psnr["interpolation"])
                + "; WARNING: values far outside the input's range" * bool(far_out(self.summary)))


def check_target(source: Path, target: Path, writing: Writing) -> None:
    """Raise UserError where a result of `source` cannot be written to `target`, as far as the names and options say."""
    refuse_existing(target, writing.overwrite)
    if writing.cog and target.suffix.lower() not in named("raster").suffixes:
        raise UserError(f"--cog is for GeoTIFF, and {target} is none by its suffix; name it .tif, or leave --cog out.")
    if lost := shared_file(target, source):
        raise UserError(f"{lost} is the input itself or a part of it, which would be lost; choose another --output.")
    writers_of(target)
    _dtype(writing, np.dtype(np.float32))


def apply_to_file(net: Network | None, source: Path, target: Path, problem: Problem, reading: Reading, writing: Writing,
                  progress: bool = True) -> Applied:
    """Enlarge the cube in `source` by `problem.method` and write it to `target`, tile by tile from disk to disk.

    The cube is scaled by its minimum and maximum over all bands, as training scales its scenes, and the result scaled back.
    The consistency in the summary compares the result, and those of the untrained methods, degraded again, with the input.
    It says how far they explain what was measured, not how good their detail is.

    Raises:
        UserError: the input cannot be read or used, the output exists or cannot be written, or values overflow its type
            where that is refused. Nothing is left under the name `target` then.
    """
    spread = Spread(target) if problem.self_ensemble else None
    check_target(source, target, writing)
    if spread:
        refuse_existing(spread.path, writing.overwrite)
    whole = open_as(source, reading, in_memory=False, keep_bad=True)  # bands out = bands in
    if progress:
        say(first_line(whole))
    bad = whole.metadata.get("bad_bands", [])
    good = [b for b in range(len(whole.cube)) if b not in bad]
    scene = select_bands(whole, good)
    first, last = value_range(scene, reading.keep_range)
    scale, kind, folder = problem.scale, problem.degradation, target.parent
    bands, height, width = scene.cube.shape
    shape = (bands, height * scale, width * scale)
    view = _preview(height, width, scale)
    values = _Values(scene, target, writing, (0.0, 1.0) if writing.unit_range else (first, last), scale, view)
    like = scaled(whole, whole.cube, scale, kind)
    like = replace(like, nodata=None if values.nodata is None else scene.nodata,
                   normalised=scene.normalised or writing.unit_range,
                   metadata={**like.metadata, **provenance(net, problem, scene), "cog": writing.cog})
    bad_words = _bad_in_words(whole, bad)
    if bad:
        note(f"{whole}: {bad_words}; --fill-nodata fills single pixels, --drop-bad-bands leaves the bands out")
    bad_values = _bad_values(whole, bad, problem, values, first, last) if bad else None
    with (spread or nullcontext(),
          create_scene(target, like, (len(whole.cube), *shape[1:]), values.dtype, writing.overwrite) as writer):
        if spread:
            spread.begin(shape[1:])
        low = scratch(scene.cube.shape, np.float32, folder)
        for index in blocks(scene.cube, target=AT_ONCE):
            block = np.array(scene.cube[index], dtype=np.float64)  # in float32 a large offset would swallow the range
            block -= first
            block /= last - first
            low[index] = block

        def on_low_grid(operation: Callable[..., Tensor], *cubes: np.ndarray) -> np.ndarray:
            """An operation on (B, h, w), a few bands at a time, or all of them where the degradation mixes bands."""
            out = scratch(low.shape, np.float32, folder)
            step = bands if Degradation.of(scale, kind).band_operations else max(1, AT_ONCE // (4 * height * width))
            for start in range(0, bands, step):
                part = slice(start, start + step)
                out[part] = operation(*(torch.from_numpy(np.array(cube[part])) for cube in cubes)).numpy()
            return out

        means = {"interpolation": low, "backprojection": on_low_grid(lambda y: prefilter(y, scale, kind), low)}
        sources = {key: interpolated(cube, scale, kind, 0, 1) for key, cube in means.items()}
        again = {key: on_low_grid(lambda z: round_trip(z, scale, kind), cube) for key, cube in means.items()}

        halos = {key: Halo(low, scale, kind, values.missing) for key in dict.fromkeys((*sources, problem.method))}

        def write(top: int, left: int, block: np.ndarray) -> None:
            halos[problem.method].add(top, left, block)
            bottom, right = top + block.shape[1], left + block.shape[2]
            result = values.of(top, left, block)
            if bad_values:
                result, network = np.empty((len(whole.cube), *block.shape[1:]), values.dtype), result
                result[good], result[bad] = network, bad_values(top, bottom, left, right)
            writer[:, top:bottom, left:right] = result

        if net is None:
            for top, bottom, left, right in _tiles(shape):
                write(top, left, sources[problem.method](top, bottom, left, right))
        else:
            consistency = Consistency(shape, scale, kind, folder)
            result = scratch(shape, np.float32, folder) if problem.backproject else None

            def keep(top: int, left: int, block: np.ndarray) -> None:
                result[:, top:top + block.shape[1], left:left + block.shape[2]] = block

            super_resolve(net, sources[problem.start], shape, write if result is None else keep, low=window_of(low),
                          scale=scale, tile=problem.tile, amp=problem.amp, self_ensemble=problem.self_ensemble,
                          spread=spread and spread.take, again=consistency, progress=progress)
            again["network"] = consistency.result()
            if result is not None:  # x_N = x + U e, where e lies on the low grid (see `degradation.prefilter`)
                again["network_before"] = again["network"]
                error = on_low_grid(lambda y, d: prefilter(y - d, scale, kind, problem.backproject - 1), low, again["network"])
                again["network"] = on_low_grid(lambda d, e: d + round_trip(e, scale, kind), again["network"], error)
                correction = interpolated(error, scale, kind, 0, 1)
                for top, bottom, left, right in _tiles(shape):
                    write(top, left, result[:, top:bottom, left:right] + correction(top, bottom, left, right))
        for top, bottom, left, right in _tiles(shape):
            for key in sources.keys() - {problem.method}:
                halos[key].add(top, left, sources[key](top, bottom, left, right))
        agreements = _agreements(again, low)
        if spread:
            written = spread.write(like, values.ends[1] - values.ends[0], scene.metadata.get("missing"), writing.overwrite)
    summary = {
        "input": str(source), "output": str(target), "read_as": describe(scene), "scale": scale, "degradation": kind,
        "method": problem.method, "start": problem.start if net else None, "backproject": problem.backproject,
        "shape": [len(whole.cube), *shape[1:]], "dtype": str(values.dtype), "low": first, "high": last,
        "weights_sha256": weights_hash(net), "bad_bands": bad_words,
        "halo": {key: halo.share for key, halo in halos.items()},
        "far_out": {key: halo.far_share for key, halo in halos.items()}, "spread": written if spread else None,
        "missing": 0.0 if values.missing is None else float(values.missing.mean()), "clipped_values": values.clipped,
        "self_ensemble": problem.self_ensemble, "consistency": agreements,
    }
    if scene.transform and target.suffix.lower() in (*named("raster").suffixes, *named("envi").suffixes):
        distance, unit = bounds_distance(scene, open_scene(target)) or (None, "")
        summary["bounds_differ_by"] = distance if distance is None else f"{distance:.3f} {unit}"
    summary |= {"agreement": _in_words(summary), "uncertainty": in_words(summary), "warnings": _warnings(summary, scene)}
    top, bottom, left, right = (v // scale for v in view)
    cubes = {key: read(*view) for key, read in sources.items()} | {problem.method: values.preview}
    shown = np.array(spread.values[0, view[0]:view[1], view[2]:view[3]]) if spread else None
    return Applied(summary, scene, np.array(low[:, top:bottom, left:right]), cubes, shown)


def apply(net: Network | None, source: Path, target: Path, problem: Problem, reading: Reading, writing: Writing, *,
          folder: Path | None, facts: Mapping[str, Any], progress: bool = True) -> Applied:
    """`apply_to_file`, what came of it in words, and where a `folder` is named a report in it. Raises UserError likewise."""
    if folder:
        refuse_existing(folder, writing.overwrite)
        refuse_foreign(folder, REPORT_MARKS)
        keep_out_of(folder, *(facts.get("Checkpoint"), source, target))
    done = apply_to_file(net, source, target, problem, reading, writing, progress)
    if folder:
        with replacing(folder, writing.overwrite, marks=REPORT_MARKS) as partial:
            partial.mkdir()
            write_json(partial / "summary.json", {**done.summary, "command": facts["Command"], "arch": facts["Network"],
                                                  "checkpoint": facts["Checkpoint"]})
            labels = {**UNTRAINED, "network": "network"}
            agreement, uncertainty = done.summary["agreement"], done.summary["uncertainty"]
            figures = [("input and results (the middle of the scene)", partial / "figure.png")]
            if done.spread is not None:
                figures.append((f"standard deviation over the 8 results of the self-ensemble, mean over bands: "
                                f"{done.summary['spread']['mean']:.3g} over the whole scene, here its middle",
                                partial / "spread.png"))
                map_figure(partial / "spread.png", {"Mean over bands": done.spread}, "spread of a self-ensemble",
                           "Standard deviation", name=target.name)
            no_truth_figure(partial / "figure.png", done.low, {labels[key].capitalize(): cube for key, cube in
                                                               done.cubes.items()}, wavelengths=done.scene.wavelengths,
                            name=target.name, scale=problem.scale, note=done.title)
            write_report(partial / "report.html", f"{target.name}: {facts['Network'] or labels[problem.method]}, "
                         f"x{problem.scale}", {**facts, "Input": done.summary["read_as"],
                                               "Bad bands": done.summary["bad_bands"],
                                               "Warning": " ".join(done.summary["warnings"]) or None},
                         figures=figures, scale=problem.scale,
                         lead=f"{agreement[0].upper()}{agreement[1:]}. {uncertainty[0].upper()}{uncertainty[1:]}.")
    return done


def _bad_in_words(whole: Scene, bad: list[int]) -> str | None:
    """Which bands are bad and what becomes of them; None where none is."""
    numbers = [str(whole.metadata.get("source_bands", range(len(whole.cube)))[b]) for b in bad]
    listed = ", ".join(numbers[:20]) + ", ..." * (len(numbers) > 20)
    return (f"{len(bad)} bad band{'s' * (len(bad) > 1)} ({listed}, counted from 0), enlarged by interpolation in space, "
            "without the network; a constant band stays constant") if bad else None


def _bad_values(whole: Scene, bad: list[int], problem: Problem, values: _Values, low: float, high: float) -> Source:
    """The values of bad bands in a result: interpolated in space; a constant or dead band stays as it is."""
    cube = select_bands(whole, bad).cube
    statistics = band_statistics(cube, whole.nodata)
    flat, dead = ~(statistics.low < statistics.high), np.isnan(statistics.low)
    constant = (np.where(dead, low, statistics.low) - low) / (high - low)
    constant = from_unit_range(constant, *values.ends, values.dtype, "clip")
    constant[dead] = values.nodata if values.nodata is not None else np.nan if values.dtype.kind == "f" else 0
    read = interpolated(cube, problem.scale, problem.degradation, low, high)

    def source(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        block = read(top, bottom, left, right)
        block[flat] = 0
        raw = from_unit_range(block, *values.ends, values.dtype, "clip")
        raw[flat] = constant[flat, None, None]
        return values.masked(raw, top, left)

    return source


class _Values:
    """The values of a result as its file holds them: scaled back, rounded, clipped, with the no-data pixels of the input."""

    def __init__(self, scene: Scene, target: Path, writing: Writing, ends: tuple[float, float], scale: int,
                 view: tuple[int, int, int, int]) -> None:
        """`ends` are the values of 0 and 1; `view` is where the preview lies: top, bottom, left, right."""
        self.dtype = _dtype(writing, scene.cube.dtype)
        self.nodata = _nodata(scene, self.dtype)
        self.target, self.refuse, self.ends, self.scale, self.view = target, writing.on_overflow == "refuse", ends, scale, view
        self.missing = scene.metadata.get("missing")
        self.clipped = 0
        self.preview = np.empty((scene.cube.shape[0], view[1] - view[0], view[3] - view[2]), dtype=np.float32)

    def of(self, top: int, left: int, block: np.ndarray) -> np.ndarray:
        """The values of a block in [0, 1]. Raises UserError: values overflow the type, where that is refused."""
        _copy_part(self.preview, self.view, block, top, left)
        outside = _overflowing(block, *self.ends, self.dtype)
        if outside and self.refuse:
            raise UserError(f"{outside} values of the result do not fit {self.dtype}, so {self.target} is not written; give "
                            "--dtype float32, or leave --on-overflow refuse out to have them clipped.")
        self.clipped += outside
        values = from_unit_range(block, *self.ends, self.dtype, "clip")
        if self.nodata is not None:
            values[values == self.nodata] = _beside(self.nodata, self.ends[1])
        return self.masked(values, top, left)

    def masked(self, values: np.ndarray, top: int, left: int) -> np.ndarray:
        """`values`, changed in place: no-data where the input is missing in all bands."""
        if self.nodata is not None and self.missing is not None:
            rows, columns = (np.arange(first, first + n) // self.scale
                             for first, n in zip((top, left), values.shape[1:], strict=True))
            values[:, self.missing[np.ix_(rows, columns)]] = self.nodata
        return values


def _tiles(shape: tuple[int, int, int]) -> Iterator[tuple[int, int, int, int]]:
    """top, bottom, left, right of tiles in row-major order."""
    for top in range(0, shape[1], UNTRAINED_TILE):
        for left in range(0, shape[2], UNTRAINED_TILE):
            yield top, min(top + UNTRAINED_TILE, shape[1]), left, min(left + UNTRAINED_TILE, shape[2])


def _agreements(again: Mapping[str, np.ndarray], low: np.ndarray) -> dict[str, dict[str, float | None]]:
    """For each result, degraded again: PSNR in dB and SAM in degrees against the input, a few rows at a time."""
    bands, height, width = low.shape
    squares = {key: np.zeros(bands) for key in again}
    angles, counts = dict.fromkeys(again, 0.0), dict.fromkeys(again, 0)
    for index in blocks(low, axis=1, target=AT_ONCE):
        given = np.array(low[index])
        for key, cube in again.items():
            squares[key] += [np.square(a - b, dtype=np.float64).sum() for a, b in zip(cube[index], given, strict=True)]
            angle = sam_map(cube[index], given)
            angles[key] += float(np.nansum(angle))
            counts[key] += int(np.isfinite(angle).sum())
    return {key: {"psnr": float(np.minimum(-10 * np.log10(np.maximum(squares[key] / (height * width), np.finfo(float).tiny)),
                                           PSNR_CAP).mean()),
                  "sam": angles[key] / counts[key] if counts[key] else None} for key in again}


def _in_words(summary: Mapping[str, Any]) -> str:
    """How well the result and the untrained methods, degraded again, agree with the input."""
    rows, method = summary["consistency"], summary["method"]
    names = {**UNTRAINED, "backprojection": "back-projection, which is made to agree"}
    words = [f"{name}: {_agreement(rows[key])}" for key, name in names.items() if key != method]
    if "network_before" in rows:
        words.insert(0, f"before its back-projection: {_agreement(rows['network_before'])}")
    return (f"degraded again it agrees with the input to {_agreement(rows[method])} ({'; '.join(words)}). This is agreement "
            "with the input, not accuracy")


def _agreement(row: Mapping[str, float | None]) -> str:
    return f"{row['psnr']:.1f} dB PSNR" + ("" if row["sam"] is None else f", {row['sam']:.2f} deg SAM")


def _warnings(summary: Mapping[str, Any], scene: Scene) -> list[str]:
    """Sentences about what a user must not miss: a network that agrees less than the interpolation, values far out, a grid
    of its own, dark rows."""
    rows, scale, kind = summary["consistency"], summary["scale"], summary["degradation"]
    warnings = []
    # Back-projection agrees by construction, better than good networks do: its figure stands beside, and warns of nothing.
    if "network" in rows and rows["network"]["psnr"] < rows["interpolation"]["psnr"]:
        warnings.append(f"the network agrees with the input less ({_agreement(rows['network'])}) than the interpolation does "
                        f"({_agreement(rows['interpolation'])})"
                        + ("" if summary["backproject"] else f"; --backproject {STEPS} makes its result agree"))
    height, width = scene.cube.shape[1:]
    if not Degradation.of(scale, kind).block_grid and (scene.transform or "map info" in scene.metadata.get("header", {})):
        size, edge = grid(width, scale, kind)
        warnings.append(f"the grid of degradation {kind} is not the sensor's: the pixels of the result are {size:.5f} of the "
                        f"input's, and its corner lies {edge:.2f} input pixels inside of the input's. Its transform says so; "
                        "--degradation gaussian or bicubic keeps edges and corner")
    return [*warnings, *far_out(summary), *filter(None, [dark_note(height * scale, width * scale, scale, kind)])]


def _dtype(writing: Writing, own: np.dtype) -> np.dtype:
    """The type of the result; `own` is the input's."""
    if writing.unit_range:
        return np.dtype(np.float32)
    if writing.dtype is None:
        return np.dtype(own).newbyteorder("=")
    try:
        dtype = np.dtype(writing.dtype)
    except (TypeError, ValueError, SyntaxError):  # numpy parses lists of fields too
        dtype = None
    if dtype is None or dtype.kind not in "iuf":
        raise UserError(f"The data type {writing.dtype!r} is not one that a cube can have; give uint8, int16, uint16, int32, "
                        "float32 or float64.")
    return dtype


def _nodata(scene: Scene, dtype: np.dtype) -> np.generic | None:
    """The scene's no-data value as the result holds it; None where there is none, or the scene itself cannot hold it."""
    if scene.nodata is None or not _holds(scene.cube.dtype, scene.nodata):
        return None
    if not _holds(dtype, scene.nodata):
        raise UserError(f"{scene.path} has the no-data value {scene.nodata:g}, which {dtype} cannot hold; give --dtype float32 "
                        "or another type that does.")
    return dtype.type(scene.nodata)


def _holds(dtype: np.dtype, value: float) -> bool:
    limits = limits_of(dtype)
    inside = limits.min <= value <= limits.max
    return inside and float(value).is_integer() if dtype.kind in "iu" else inside or not math.isfinite(value)


def _beside(nodata: np.generic, high: float) -> np.generic:
    """What a valid value becomes that happens to be the no-data value: the next one towards the valid values."""
    down = nodata >= high
    if nodata.dtype.kind in "iu":
        return nodata - nodata.dtype.type(1) if down else nodata + nodata.dtype.type(1)
    return np.nextafter(nodata, nodata.dtype.type(-np.inf if down else np.inf))


def _overflowing(block: np.ndarray, low: float, high: float, dtype: np.dtype) -> int:
    """How many values of a block in [0, 1] do not fit `dtype` when they run from low to high."""
    whole = dtype.kind in "iu"
    limits = limits_of(dtype)

    def outside(values: np.ndarray) -> int:
        raw = values.astype(np.float64) * (high - low) + low
        raw = np.rint(raw, out=raw) if whole else raw
        return int(((raw < float(limits.min)) | (raw > float(limits.max))).sum())

    return outside(block) if outside(np.array([block.min(), block.max()])) else 0


def _preview(height: int, width: int, scale: int) -> tuple[int, int, int, int]:
    """top, bottom, left, right of the centre of the result, whole input pixels."""
    h, w = min(height, math.ceil(PREVIEW / scale)), min(width, math.ceil(PREVIEW / scale))
    top, left = (height - h) // 2, (width - w) // 2
    return top * scale, (top + h) * scale, left * scale, (left + w) * scale


def _copy_part(view: np.ndarray, place: tuple[int, int, int, int], block: np.ndarray, top: int, left: int) -> None:
    """Copy into `view`, which lies at `place`, what `block` at (top, left) shares with it."""
    t, b = max(place[0], top), min(place[1], top + block.shape[1])
    first, last = max(place[2], left), min(place[3], left + block.shape[2])
    if t < b and first < last:
        into = view[:, t - place[0]:b - place[0], first - place[2]:last - place[2]]
        into[:] = block[:, t - top:b - top, first - left:last - left]
