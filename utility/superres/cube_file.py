"""Super-resolving a cube that has no ground truth: a file in, a file out, whatever its size."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models import Network
from utility.cubes.bands import select_bands
from utility.cubes.containers import left_out, named, shared_file, writers_of
from utility.cubes.cube import LazyCube, Scene, blocks, scratch
from utility.cubes.values import value_range, without_gain
from utility.names import UNTRAINED
from utility.scenes import Reading, create_scene, describe, first_line, open_as, open_scene
from utility.superres.aliasing import for_aliasing
from utility.superres.methods import AT_ONCE, Method, methods
from utility.superres.noise import FEWEST, snr_of, told_noise
from utility.superres.place import (
    bounds_distance,
    lonlat_path,
    on_map_grid,
    scaled,
    write_lonlat,
    written_size,
)
from utility.superres.problem import Problem, for_noise, sensor_in_words
from utility.superres.provenance import provenance, weights_hash
from utility.superres.remarks import (
    agreement_in_words,
    bad_in_words,
    far_out,
    uncertainty_in_words,
    warnings_of,
)
from utility.superres.spectrum import spectrum_of
from utility.superres.tiling import Sink
from utility.superres.uncertainty import Halo, Spread
from utility.superres.written_values import (
    Values,
    Writing,
    dtype_of,
    refuse_coarse,
    values_of_bad_bands,
)
from utility.system.errors import UserError
from utility.system.files import refuse_existing
from utility.system.progress import note, say

PREVIEW, LARGEST_PREVIEW = 512, 1 << 23
"""Rows and columns, and values, at most, of the part of a result that is kept in memory for its
figure."""


@dataclass
class Applied:
    """What came of it, besides the file."""

    summary: dict[str, Any]
    problem: Problem                # as it was computed
    scene: Scene                    # the input, its bands chosen
    low: np.ndarray                 # (B, h, w) of the preview, in [0, 1]
    cubes: dict[str, np.ndarray]    # {method: (B, H, W) of the preview}, likewise
    spread: np.ndarray | None       # (H, W) of the preview, in the values of the result
    corner: tuple[int, int]         # row and column of the preview in the result

    @property
    def title(self) -> str:
        """The agreement of the result and of the untrained methods with the input, for a figure."""
        rows, method = self.summary["consistency"], self.summary["method"]
        psnr = {key: row["psnr"] for key, row in rows.items()}
        rivals = ", ".join(
            f"{name} {psnr[key]:.1f}" for key, name in UNTRAINED.items() if key != method)
        return (f"agreement with the input (not accuracy) {psnr[method]:.1f} dB PSNR ({rivals})"
                + (f"; {self.summary['missing']:.1%} of the scene is missing, shown black"
                   if self.summary["missing"] else "")
                + "; WARNING: below the interpolation" * (psnr[method] < psnr["interpolation"])
                + "; WARNING: values far outside the input's range" * bool(far_out(self.summary)))


def check_target(source: Path, target: Path, writing: Writing) -> None:
    """Raise UserError where a result of `source` cannot be written to `target`, as far as the names
    and options say."""
    refuse_existing(target, writing.overwrite)
    if writing.cog and target.suffix.lower() not in named("raster").suffixes:
        raise UserError(f"--cog is for GeoTIFF, and {target} is none by its suffix; name it .tif, "
                        "or leave --cog out.")
    if lost := shared_file(target, source):
        raise UserError(f"{lost} is the input itself or a part of it, which would be lost; choose "
                        "another --output.")
    writers_of(target)
    dtype_of(writing, np.dtype(np.float32))


def apply_to_file(net: Network | None, source: Path, target: Path, problem: Problem,
                  reading: Reading, writing: Writing, figure: bool = True,
                  begins: Callable[[], None] | None = None) -> Applied:
    """Enlarge the cube in `source` by `problem.method` and write it to `target`, tile by tile from
    disk to disk.

    The cube is scaled by its minimum, or 0 (see `value_range`), and its maximum over all bands, and
    the result scaled back. The consistency in the summary compares the result, and those of the
    untrained methods, degraded again, with the input. It says how far they explain what was
    measured, not how good their detail is. Without `figure` no part of the result is kept for one.
    `begins` is called where a network begins, after all that may be refused.

    Raises:
        UserError: the input cannot be read or used, the output exists or cannot be written, its
            type is too coarse for the values, or values overflow it where that is refused. Nothing
            is left under the name `target` then.
    """
    check_target(source, target, writing)
    spread = Spread(target) if problem.self_ensemble else None
    if spread:
        refuse_existing(spread.path, writing.overwrite)
    if writing.ortho and spread:
        raise UserError("--ortho puts the result on a map grid, and --self-ensemble makes a map on "
                        "the sensor's; leave one of them out.")
    given = _opened(source, reading, problem, writing, target.parent)
    scene = given.scene
    problem = for_aliasing(for_noise(problem, given.noise), given.low, scene.filled)
    if problem.aliased:
        net = spread = None
    view = _preview(*scene.cube.shape, problem.scale) if figure else (0, 0, 0, 0)
    ends = (0.0, 1.0) if writing.unit_range else given.ends
    values = Values(scene, target, writing, ends, problem.scale, view)
    like = _like(given, values, net, problem, writing)
    if text := left_out(target, like):
        note(text)
    if beside := None if writing.ortho else lonlat_path(target, like):
        refuse_existing(beside, writing.overwrite)
    shape = len(given.whole.cube), *(n * problem.scale for n in scene.cube.shape[1:])
    file = _created(target, like, shape, values.dtype, writing, problem)
    with spread or nullcontext(), file as writer:
        if net and begins:
            begins()
        made = methods(net, given.low, problem, target.parent, given.noise, spectrum_of(scene),
                       scene.filled, given.zero)
        halos = {key: Halo(given.low, problem.scale, problem.degradation, scene.filled)
                 for key in made}
        if spread:
            spread.begin(shape[1:])
        made[problem.method].write(
            _into_file(given, problem, values, halos[problem.method], writer),
            **({"spread": spread and spread.take} if net else {}))
        for key in made.keys() - {problem.method}:
            made[key].write(halos[key].add)
        size = written_size(like, problem.scale) if writing.ortho else shape[1:]
        summary = {"input": str(source), "output": str(target), "shape": [shape[0], *size],
                   "weights_sha256": weights_hash(net),
                   **_summary(given, problem, writing, values, made, halos)}
        if spread:
            summary["spread"] = spread.write(like, ends[1] - ends[0], scene.missing,
                                             writing.overwrite)
    summary |= {} if writing.ortho else _moved(scene, target, like, shape)
    few = len(given.low) if len(given.low) < FEWEST else None
    summary |= {"sensor": sensor_in_words(problem, summary["snr"], few),
                "agreement": agreement_in_words(summary),
                "uncertainty": uncertainty_in_words(summary),
                "warnings": warnings_of(summary, scene)}
    cubes = {key: made[key].source(*view) for key in UNTRAINED if figure}
    low = _shown(given, cubes | {problem.method: values.preview}, view, problem.scale)
    top, bottom, left, right = view
    return Applied(summary, problem, scene, low, cubes | {problem.method: values.preview},
                   np.array(spread.values[0, top:bottom, left:right]) if spread else None,
                   (top, left))


@dataclass(frozen=True)
class _Given:
    """A cube as it is read, and as a method takes it."""

    whole: Scene                # its bands are those of the result
    scene: Scene                # its good bands
    bad: list[int]              # the other ones
    ends: tuple[float, float]   # the values that are 0 and 1
    low: np.ndarray             # (B, h, w) float32, the good bands in [0, 1]; may lie on disk
    noise: np.ndarray | None    # (B,), its standard deviation in these units; None: not told

    @property
    def zero(self) -> float:
        """Where the zero of the file's values lies in `low`."""
        return self.ends[0] / (self.ends[0] - self.ends[1])


def _opened(source: Path, reading: Reading, problem: Problem, writing: Writing,
            folder: Path) -> _Given:
    """The cube in a file; `folder` is for the temporary file of a large one."""
    whole = open_as(source, reading, in_memory=False, keep_bad=True, folder=folder)
    refuse_coarse(whole, writing)
    say(first_line(whole))
    bad = whole.metadata.get("bad_bands", [])
    if bad:
        note(f"{whole}: {bad_in_words(whole, bad)}; --fill-nodata fills single pixels, "
             "--drop-bad-bands leaves the bands out")
    scene = select_bands(whole, [band for band in range(len(whole.cube)) if band not in bad])
    ends = value_range(scene, reading.keep_range, own=True)
    low = scratch(scene.cube.shape, np.float32, folder)
    for index in blocks(scene.cube, target=AT_ONCE):
        # in float32 a large offset would swallow the range
        block = np.array(scene.cube[index], dtype=np.float64)
        block -= ends[0]
        block /= ends[1] - ends[0]
        low[index] = block
    if not bad and type(scene.cube) is not np.ndarray:
        _let_go(whole, scene)
    return _Given(whole, scene, bad, ends, low, told_noise(low, problem.snr, scene.filled))


def _let_go(*scenes: Scene) -> None:
    """Give back the room of values that are not read again."""
    def read(*_: slice) -> np.ndarray:
        raise RuntimeError("the values of the scene were given back")

    for scene in scenes:
        scene.cube, scene.counted = LazyCube(scene.cube.shape, scene.cube.dtype, read), None


def _into_file(given: _Given, problem: Problem, values: Values, halo: Halo, writer: Any) -> Sink:
    """A sink that writes a result's good bands as the file holds them, and the bad ones between."""
    bands = len(given.whole.cube)
    good = [band for band in range(bands) if band not in given.bad]
    of_bad = (values_of_bad_bands(given.whole, given.bad, problem, values, *given.ends)
              if given.bad else None)

    def write(top: int, left: int, block: np.ndarray) -> None:
        halo.add(top, left, block)
        bottom, right = top + block.shape[1], left + block.shape[2]
        result = values.of(top, left, block)
        if of_bad:
            all_bands = np.empty((bands, *block.shape[1:]), values.dtype)
            all_bands[good], all_bands[given.bad] = result, of_bad(top, bottom, left, right)
            result = all_bands
        writer[:, top:bottom, left:right] = result

    return write


def _summary(given: _Given, problem: Problem, writing: Writing, values: Values,
             made: Mapping[str, Method], halos: Mapping[str, Halo]) -> dict[str, Any]:
    """The facts and figures of a result that is written."""
    result, scene, noise = made[problem.method], given.scene, given.noise
    consistency: dict[str, dict[str, float | None]] = {}
    for method in made.values():
        consistency |= method.agreement()
    return {
        "read_as": describe(scene, len(given.bad)), "scale": problem.scale,
        "degradation": problem.degradation, "mtf_known": problem.mtf_known,
        "aliased": problem.aliased, "sharp": problem.sharp,
        "snr": None if noise is None else round(snr_of(given.low, noise, scene.filled), 1),
        "method": problem.method, "start": problem.start if "network" in made else None,
        "bands_computed": result.computed, "backproject": problem.backproject,
        "dtype": str(values.dtype), "low": given.ends[0], "high": given.ends[1],
        "bad_bands": bad_in_words(given.whole, given.bad),
        "halo": {key: halo.share for key, halo in halos.items()},
        "far_out": {key: halo.far_share for key, halo in halos.items()}, "spread": None,
        "input_pixels": given.low[0].size,
        "compared_pixels": (given.low[0].size if result.counted is None
                            else int(result.counted.sum())),
        "missing": 0.0 if values.missing is None else float(values.missing.mean()),
        "clipped_values": values.clipped, "unit_range": writing.unit_range,
        "self_ensemble": problem.self_ensemble, "consistency": consistency,
        "likely_fill": given.whole.metadata.get("likely_fill")}


def _shown(given: _Given, cubes: Mapping[str, np.ndarray], view: tuple[int, int, int, int],
           scale: int) -> np.ndarray:
    """The low-resolution cube in a `view` of the result. What was made up in it, and in the `cubes`
    of the view, becomes NaN."""
    top, bottom, left, right = (n // scale for n in view)
    low = np.array(given.low[:, top:bottom, left:right])
    if given.scene.filled is not None:
        gone = given.scene.filled[top:bottom, left:right]
        low[:, gone] = np.nan
        for cube in cubes.values():
            cube[:, gone.repeat(scale, 0).repeat(scale, 1)] = np.nan
    return low


def _like(given: _Given, values: Values, net: Network | None, problem: Problem,
          writing: Writing) -> Scene:
    """What the file of the result says beside its values."""
    whole, scene = given.whole, given.scene
    like = scaled(whole, whole.cube, problem.scale, problem.degradation)
    metadata = {**like.metadata, **provenance(net, problem, scene), "cog": writing.cog}
    if writing.unit_range:
        like = without_gain(like)
        metadata["header"] = like.metadata.get("header", {})
    return replace(like, nodata=None if values.nodata is None else scene.nodata,
                   normalised=scene.normalised or writing.unit_range, metadata=metadata)


@contextmanager
def _created(target: Path, like: Scene, shape: tuple[int, int, int], dtype: np.dtype,
             writing: Writing, problem: Problem) -> Iterator[Any]:
    """A writer of the result on the grid of its input, whose file may be on another: see
    `Writing.ortho`."""
    if writing.ortho:
        on_map = on_map_grid(like, problem.scale, problem.degradation, dtype)
        whole = scratch(shape, dtype, target.parent)
        yield whole
        size = shape[0], *written_size(like, problem.scale)
        with create_scene(target, on_map.like, size, dtype, writing.overwrite) as writer:
            on_map.write(whole, writer)
        return
    with create_scene(target, like, shape, dtype, writing.overwrite) as writer:
        yield writer
        if beside := lonlat_path(target, like):
            write_lonlat(beside, like, writing.overwrite)


def _moved(scene: Scene, target: Path, like: Scene,
           shape: tuple[int, int, int]) -> dict[str, str | None]:
    """How far the bounds of the written file are from those of the input; nothing where it has no
    place. Files that can only be read whole have the place of `like`, at this shape."""
    containers = writers_of(target)
    if not scene.transform or "CRS and transform" in containers[0].lacks:
        return {}
    whole = {named(name) for name in ("mat5", "npz")} & {*containers}
    result = (replace(like, cube=np.broadcast_to(np.float32(0), shape)) if whole
              else open_scene(target))
    distance = bounds_distance(scene, result)
    return {"bounds_differ_by": distance and f"{distance[0]:.3f} {distance[1]}"}


def _preview(bands: int, height: int, width: int, scale: int) -> tuple[int, int, int, int]:
    """top, bottom, left, right of the centre of the result, whole input pixels."""
    side = math.ceil(min(PREVIEW, math.isqrt(LARGEST_PREVIEW // bands)) / scale)
    h, w = min(height, side), min(width, side)
    top, left = (height - h) // 2, (width - w) // 2
    return top * scale, (top + h) * scale, left * scale, (left + w) * scale
