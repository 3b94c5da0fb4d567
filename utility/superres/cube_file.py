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
from utility.cubes.values import value_range
from utility.degradation import Degradation, prefilter, round_trip
from utility.indexes import PSNR_CAP, sam_map
from utility.names import UNTRAINED
from utility.reading import Reading, open_as
from utility.scenes import create_scene, describe, first_line, open_scene
from utility.superres.place import bounds_distance, scaled
from utility.superres.problem import Problem
from utility.superres.provenance import provenance, weights_hash
from utility.superres.remarks import agreement_in_words, bad_in_words, far_out, uncertainty_in_words, warnings_of
from utility.superres.tiling import Consistency, interpolated, super_resolve, window_of
from utility.superres.uncertainty import Halo, Spread
from utility.superres.written_values import Values, Writing, dtype_of, values_of_bad_bands
from utility.system.errors import UserError
from utility.system.files import refuse_existing
from utility.system.progress import note, say

AT_ONCE = 2 << 20
"""Bytes of the input that are compared with a result at a time."""

PREVIEW = 512
"""Rows and columns, at most, of the part of a result that is kept in memory for its figure."""

UNTRAINED_TILE = 512
"""Side of a tile where no network computes."""

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
    dtype_of(writing, np.dtype(np.float32))


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
    values = Values(scene, target, writing, (0.0, 1.0) if writing.unit_range else (first, last), scale, view)
    like = scaled(whole, whole.cube, scale, kind)
    like = replace(like, nodata=None if values.nodata is None else scene.nodata,
                   normalised=scene.normalised or writing.unit_range,
                   metadata={**like.metadata, **provenance(net, problem, scene), "cog": writing.cog})
    bad_words = bad_in_words(whole, bad)
    if bad:
        note(f"{whole}: {bad_words}; --fill-nodata fills single pixels, --drop-bad-bands leaves the bands out")
    bad_values = values_of_bad_bands(whole, bad, problem, values, first, last) if bad else None
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
    summary |= {"agreement": agreement_in_words(summary), "uncertainty": uncertainty_in_words(summary),
                "warnings": warnings_of(summary, scene)}
    top, bottom, left, right = (v // scale for v in view)
    cubes = {key: read(*view) for key, read in sources.items()} | {problem.method: values.preview}
    shown = np.array(spread.values[0, view[0]:view[1], view[2]:view[3]]) if spread else None
    return Applied(summary, scene, np.array(low[:, top:bottom, left:right]), cubes, shown)


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


def _preview(height: int, width: int, scale: int) -> tuple[int, int, int, int]:
    """top, bottom, left, right of the centre of the result, whole input pixels."""
    h, w = min(height, math.ceil(PREVIEW / scale)), min(width, math.ceil(PREVIEW / scale))
    top, left = (height - h) // 2, (width - w) // 2
    return top * scale, (top + h) * scale, left * scale, (left + w) * scale
