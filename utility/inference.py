"""Super-resolving a cube that has no ground truth: a file in, a file out, whatever its size."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models import Network
from utility.cubes.containers import shared_file
from utility.cubes.cube import Scene, blocks
from utility.cubes.values import from_unit_range, limits_of, unit_range, value_range
from utility.errors import UserError
from utility.evaluation import Problem
from utility.files import refuse_existing
from utility.indexes import PSNR_CAP, sam_map
from utility.reading import Reading, open_as
from utility.scenes import create_scene, describe, scaled
from utility.tiling import Consistency, in_unit_range, interpolated, super_resolve

AT_ONCE = 4 << 20
"""Bytes of the input that are compared with a result at a time."""

PREVIEW = 512
"""Rows and columns, at most, of the part of a result that is kept in memory for its figure."""


@dataclass(frozen=True)
class Writing:
    """How the result is written; the defaults are the input's own."""

    dtype: str | None = None        # a NumPy type's name
    on_overflow: str = "clip"       # or "refuse": values that the type cannot hold
    unit_range: bool = False        # in [0, 1] as float32, instead of the input's values
    overwrite: bool = False


@dataclass
class Applied:
    """What came of it, besides the file."""

    summary: dict[str, Any]
    scene: Scene                    # the input, its bands chosen
    low: np.ndarray                 # (B, h, w) of the preview, in [0, 1]
    interpolation: np.ndarray       # (B, H, W), likewise
    network: np.ndarray


def apply_to_file(net: Network, source: Path, target: Path, problem: Problem, reading: Reading, writing: Writing,
                  progress: bool = True) -> Applied:
    """Super-resolve the cube in `source` and write it to `target`, tile by tile from disk to disk.

    The cube is scaled by its minimum and maximum over all bands, as training scales its scenes, and the result scaled back.
    The consistency that is returned compares the result, and the plain interpolation, degraded again, with the input: how
    far they can be trusted to explain what was measured (not how good their detail is).

    Raises:
        UserError: the input cannot be read or used, the output exists or cannot be written, or values overflow its type
            where that is refused. Nothing is left under the name `target` then.
    """
    refuse_existing(target, writing.overwrite)
    if lost := shared_file(target, source):
        raise UserError(f"{lost} is the input itself or a part of it, which would be lost; choose another --output.")
    scene = open_as(source, reading, in_memory=False)
    dtype = _dtype(writing, scene)
    nodata = _nodata(scene, dtype)
    low, high = value_range(scene, reading.keep_range)
    bands, height, width = scene.cube.shape
    scale = problem.scale
    shape = (bands, height * scale, width * scale)
    read = interpolated(scene.cube, scale, problem.degradation, low, high)
    view = _preview(height, width, scale)
    network = np.empty((bands, view[1] - view[0], view[3] - view[2]), dtype=np.float32)
    like = replace(scaled(scene, scene.cube, scale, problem.degradation), nodata=None if nodata is None else scene.nodata,
                   normalised=scene.normalised or writing.unit_range)
    missing = scene.metadata.get("missing")
    clipped = 0
    with create_scene(target, like, shape, dtype, writing.overwrite) as writer:
        consistency, baseline = (Consistency(shape, scale, problem.degradation, target.parent) for _ in range(2))

        def sink(top: int, left: int, block: np.ndarray) -> None:
            nonlocal clipped
            bottom, right = top + block.shape[1], left + block.shape[2]
            consistency.add(top, left, block)
            baseline.add(top, left, read(top, bottom, left, right))
            _copy_part(network, view, block, top, left)
            first, last = (0.0, 1.0) if writing.unit_range else (low, high)
            outside = _overflowing(block, first, last, dtype)
            if outside and writing.on_overflow == "refuse":
                raise UserError(f"{outside} values of the result do not fit {dtype}, so {target} is not written; give --dtype "
                                "float32, or leave --on-overflow refuse out to have them clipped.")
            clipped += outside
            values = from_unit_range(block, first, last, dtype, "clip")
            if nodata is not None:
                values[values == nodata] = _beside(nodata, last)
                if missing is not None:
                    rows, columns = np.arange(top, bottom) // scale, np.arange(left, right) // scale
                    values[:, missing[np.ix_(rows, columns)]] = nodata
            writer[:, top:bottom, left:right] = values

        super_resolve(net, read, shape, sink, low=in_unit_range(scene.cube, low, high), scale=scale, tile=problem.tile,
                      amp=problem.amp, self_ensemble=problem.self_ensemble, progress=progress)
    summary = {
        "input": str(source), "output": str(target), "read_as": describe(scene), "scale": scale,
        "degradation": problem.degradation, "shape": list(shape), "dtype": str(dtype), "low": low, "high": high,
        "clipped_values": clipped, "self_ensemble": problem.self_ensemble,
        "consistency": dict(zip(("network", "interpolation"),
                                _agreements((consistency, baseline), scene, low, high), strict=True)),
    }
    top, bottom, left, right = (v // scale for v in view)
    return Applied(summary, scene, unit_range(scene.cube[:, top:bottom, left:right], low, high)[0], read(*view), network)


def _agreements(results: Sequence[Consistency], scene: Scene, low: float, high: float) -> list[dict[str, float | None]]:
    """For each result, degraded again: PSNR in dB and SAM in degrees against the input, a few rows or columns at a time."""
    cube = scene.cube
    bands, height, width = cube.shape
    by_column = scene.layout.startswith(("pixels", "W"))  # as it lies in its file, where it may be read from
    squares = np.zeros((len(results), bands))
    angles, counts = np.zeros(len(results)), np.zeros(len(results), dtype=int)
    for index in blocks(cube, axis=2 if by_column else 1, target=AT_ONCE):
        given = unit_range(cube[index], low, high)[0]
        for k, result in enumerate(results):
            again = result.result(*index[1:])
            squares[k] += np.square(again - given, dtype=np.float64).sum((1, 2))
            angle = sam_map(again, given)
            angles[k] += np.nansum(angle)
            counts[k] += np.isfinite(angle).sum()
    psnr = np.minimum(-10 * np.log10(np.maximum(squares / (height * width), np.finfo(float).tiny)), PSNR_CAP).mean(axis=1)
    return [{"psnr": float(p), "sam": float(a / n) if n else None} for p, a, n in zip(psnr, angles, counts, strict=True)]


def _dtype(writing: Writing, scene: Scene) -> np.dtype:
    if writing.unit_range:
        return np.dtype(np.float32)
    if writing.dtype is None:
        return np.dtype(scene.cube.dtype).newbyteorder("=")
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
