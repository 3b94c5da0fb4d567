"""Super-resolving a cube that has no ground truth: a file in, a file out, whatever its size."""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models import QRNN3D
from utility.errors import UserError
from utility.evaluation import Problem, Reading
from utility.files import refuse_existing
from utility.indexes import band_psnr, sam_map
from utility.scenes import Scene, band_statistics, create_scene, describe, from_unit_range, open_scene, scaled, unit_range
from utility.tiling import Consistency, interpolated, super_resolve

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


def apply_to_file(net: QRNN3D, source: Path, target: Path, problem: Problem, reading: Reading, writing: Writing,
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
    if target.exists() and source.exists() and target.samefile(source):
        raise UserError(f"{target} is the input itself, which would be lost; choose another --output.")
    scene = reading.cleaned(open_scene(source, reading.key, reading.layout, size=reading.size))
    dtype = _dtype(writing, scene)
    nodata = _nodata(scene, dtype)
    low, high = _range(scene, reading.keep_range)
    bands, height, width = scene.cube.shape
    scale = problem.scale
    shape = (bands, height * scale, width * scale)
    read = interpolated(scene.cube, scale, problem.degradation, low, high)
    consistency, baseline = (Consistency(shape, scale, problem.degradation) for _ in range(2))
    view = _preview(height, width, scale)
    network = np.empty((bands, view[1] - view[0], view[3] - view[2]), dtype=np.float32)
    like = replace(scaled(scene, scene.cube, scale), nodata=None if nodata is None else scene.nodata)
    missing = scene.metadata.get("missing")
    clipped = 0
    with create_scene(target, like, shape, dtype, writing.overwrite) as writer:

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

        super_resolve(net, read, shape, sink, problem.tile, problem.amp, problem.self_ensemble, progress)
    given = unit_range(scene.cube, low, high)[0]
    summary = {
        "input": str(source), "output": str(target), "read_as": describe(scene), "scale": scale,
        "degradation": problem.degradation, "shape": list(shape), "dtype": str(dtype), "low": low, "high": high,
        "clipped_values": clipped, "self_ensemble": problem.self_ensemble,
        "consistency": {"network": _agreement(consistency.result(), given),
                        "interpolation": _agreement(baseline.result(), given)},
    }
    at = [v // scale for v in view]
    return Applied(summary, scene, given[:, at[0]:at[1], at[2]:at[3]], read(*view), network)


def _agreement(again: np.ndarray, given: np.ndarray) -> dict[str, float | None]:
    """PSNR in dB and SAM in degrees of a result that was degraded again, against the input."""
    angles = sam_map(again, given)
    return {"psnr": float(band_psnr(again, given).mean()),
            "sam": float(np.nanmean(angles)) if np.isfinite(angles).any() else None}


def _range(scene: Scene, keep: bool) -> tuple[float, float]:
    statistics = band_statistics(scene.cube)
    low, high = float(statistics.low.min()), float(statistics.high.max())
    if keep:
        if low < 0 or high > 1:
            raise UserError(f"{scene.path} holds values from {low:g} to {high:g}, and --keep-range expects them in [0, 1]; "
                            "leave it out to scale them by their minimum and maximum.")
        return 0.0, 1.0
    if not high > low:
        raise UserError(f"{scene.path} holds the value {low:g} everywhere, and an image with contrast was expected.")
    return low, high


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
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
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
    limits = np.iinfo(dtype) if whole else np.finfo(dtype)

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
