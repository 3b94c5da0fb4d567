"""What a file holds, how it is read, and what it would cost to super-resolve it here."""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rasterio.crs import CRS
from rasterio.errors import CRSError

from models import Network
from utility import weights
from utility.checkpoints import model_from_checkpoint
from utility.cubes import containers
from utility.cubes.bands import find_bad_bands, in_words, marked_bad, missing_pixels
from utility.cubes.companions import times
from utility.cubes.cube import SCRATCH, Scene, Stored
from utility.cubes.fills import likely_fill
from utility.cubes.formats import rasters
from utility.cubes.values import band_statistics, from_unit_range
from utility.names import ANY, SAFE_MTF, SCALES, STARTS
from utility.scenes import Reading, first_line, open_scene, refuse_without_effect, stored_as
from utility.superres.aliasing import limits, middle, softness
from utility.superres.methods import methods
from utility.superres.problem import Problem
from utility.superres.spectrum import band_step
from utility.superres.tiling import beside_network, super_resolve_cube, tile_size
from utility.superres.uncertainty import Halo
from utility.system.errors import Unclear
from utility.system.memory import free_memory, resident
from utility.system.progress import duration

PIECE = 64
"""Rows and columns of the result in the piece that is timed."""


class Cost(NamedTuple):
    """Of super-resolving a cube."""

    seconds: float
    memory: float | None  # bytes of this process at its highest; None: the network does not say


def cost(net: Network, shape: tuple[int, int, int], scale: int, amp: str = "off",
         memory: int | None = None) -> Cost:
    """What a network would take here, in the precision `amp` and within `memory` (see
    `Problem.memory`), for a low-resolution cube of `shape` (B, h, w), from a piece of it that is
    timed: the network on the bands that it computes, and all that is done to the values of all
    bands."""
    bands, height, width = shape[0], shape[1] * scale, shape[2] * scale
    problem = Problem(scale, f"{ANY} {SAFE_MTF}", STARTS[1])
    computed = -(-(bands - 1) // band_step(net, problem, bands)) + 1 if bands > 1 else 1
    side = -(-PIECE // net.step(scale)) * net.step(scale)
    rng = np.random.default_rng(0)
    low, start = (rng.random((computed, n, n), np.float32) for n in (side // scale, side))
    per_pixel = _fastest(lambda: super_resolve_cube(net, start, low, tile=0, amp=amp)) / side ** 2
    rest = _around_the_network(bands, scale, problem) * height * width
    if net.radius is None:
        return Cost(per_pixel * height * width + rest, None)
    # when the network begins, the input and its start image are there, large ones in files
    kept = 4 * math.prod(shape) if 4 * math.prod(shape) <= SCRATCH else 0
    beside = beside_network(bands, height, width)
    room = (memory - 2 * kept if memory
            else resident() + (free_memory() - 2 * kept + beside) // 2)
    rows, columns = tile_size(net, (computed, height, width), scale, "auto", amp, room,
                              beside=beside)
    rows, columns = min(rows, height), min(columns or rows, width)
    # halos are computed more than once
    had = [min(n + 2 * net.halo(scale), whole) for n, whole in ((rows, height), (columns, width))]
    again = math.prod(had) / (rows * columns)
    activations = net.bytes_per_pixel(computed, scale) * math.prod(had)
    # three cubes of the input's size
    return Cost(per_pixel * height * width * again + rest,
                activations + resident() + 3 * kept + beside)


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of two to five calls, a second in all: what the first one prepares,
    and what other programs do meanwhile, are not in it."""
    times: list[float] = []
    while len(times) < 2 or (len(times) < 5 and sum(times) < 1):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def _around_the_network(bands: int, scale: int, problem: Problem) -> float:
    """Seconds a pixel of the result for what is done beside the network: three methods are
    interpolated, counted and compared with the input, and one is written."""
    low = np.random.default_rng(0).random((bands, PIECE, PIECE), np.float32)
    begin = time.perf_counter()
    made = methods(None, low, problem)
    for method in made.values():
        method.write(Halo(low, scale, problem.degradation).add)
        method.agreement()
    block = made["interpolation"].source(0, PIECE, 0, PIECE)
    for band in block:
        from_unit_range(band, 0, 10000, np.int16, "clip")
    pixels = (PIECE * scale) ** 2
    return 1.5 * (time.perf_counter() - begin) / pixels


def describe_file(path: Path, reading: Reading, scale: int | None = None, kind: str | None = None,
                  arch: str | None = None, given: str | None = None,
                  device: torch.device | str = "cpu", amp: str = "off",
                  memory: int | None = None, **execution: Any) -> Iterator[str]:
    """Lines about a scene in a file, first `first_line`; of an unclear one also what is unclear.

    Args:
        scale, kind, arch: what weights shall be for; None is any.
        given: a checkpoint, which takes the place of the shipped weights.
        device, amp, memory: which shall compute, in which precision, and within how many bytes.
        execution: fields of `models.Execution`.

    Raises UserError: the file cannot be read.
    """
    try:
        scene = open_scene(path, reading.key, reading.layout, size=reading.size)
    except Unclear as error:
        yield f"{'file':12}{_file(path)}"
        with suppress(Unclear):
            stored = containers.open_stored(path, reading.key)[0]
            name, array = stored.key or "the only one", stored.array
            yield f"{'array':12}{name}: {times(array.shape)}, {array.dtype}"
            yield f"{'beside it':12}{_beside(stored)}"
        yield f"{'unclear':12}{error}"
        return
    refuse_without_effect(scene, reading)
    if reading.nodata is not None:
        scene = replace(scene, nodata=reading.nodata)
    yield first_line(scene)
    facts = {"file": _file(scene.path), "product": scene.product,
             "axes": f"{stored_as(scene)}, by {scene.layout_by}", **_values(scene),
             "wavelengths": _wavelengths(scene), "place": _place(scene),
             "blur": _blur(scene, scale or 4)}
    for name, value in facts.items():
        if value:
            yield f"{name:12}{value}"
    for text in scene.notes:
        yield f"{'note':12}{text}"
    bands, height, width = scene.cube.shape
    itemsize = scene.cube.dtype.itemsize
    for factor in (scale,) if scale else SCALES:
        made = (f"result {height * factor} x {width * factor}, "
                f"{_size(bands * height * width * factor ** 2 * itemsize)}")
        found = None if given else weights.choose(arch, factor, kind)
        if not (found or given):
            yield (f"{f'x{factor}':12}{made}; no shipped weights fit, --method backprojection "
                   "needs none")
            continue
        net, info = model_from_checkpoint(given or found.path, arch, **execution)
        if given and factor not in (info.scales or SCALES):
            continue
        spent = cost(net.to(device), scene.cube.shape, factor, amp, memory)
        takes = (
            "memory unknown" if spent.memory is None else f"up to {_size(spent.memory)} of memory")
        yield (f"{f'x{factor}':12}{made}; {found.describe() if found else given}: about "
               f"{duration(spent.seconds)}, {takes}")


def _blur(scene: Scene, scale: int) -> str | None:
    """How soft the steepest steps in the middle of a scene are, and whether a cube that is
    made finer by `scale` then counts as aliased."""
    rows, columns = middle(scene.cube.shape)
    cube = np.asarray(scene.cube[:, rows, columns], np.float64)
    gone = ~np.isfinite(cube) | (cube == (np.nan if scene.nodata is None else scene.nodata))
    living = ~gone.all((1, 2))
    missing = gone[living].any(0)
    if scene.missing is not None:
        missing |= scene.missing[rows, columns]
    found = softness(cube[living], missing) if living.any() else None
    if found is None:
        return None
    aliased, sharp = limits(scale)
    words = (f"below {aliased:g}: aliased, as where every n-th pixel was taken; interpolation is "
             "used, unless --mtf or --method network insists" if found < aliased
             else f"below {sharp:g}: sharp, a sharp sensor is assumed" if found < sharp
             else f"above {sharp:g}: not aliased")
    return f"softness of the steepest steps {found:.2f}, for x{scale} {words}"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _values(scene: Scene) -> dict[str, str]:
    """Type and range, pixels without data, bad bands."""
    statistics = band_statistics(scene.cube, scene.nodata, scene.missing)
    low, high = np.nanmin(statistics.low), np.nanmax(statistics.high)
    bad = find_bad_bands(scene.cube, scene.nodata, scene.missing, statistics)
    fill = likely_fill(scene.cube, statistics) if scene.nodata is None else None
    marked = marked_bad(scene)
    missing = int(missing_pixels(scene, bad).sum()) if any(band.fillable for band in bad) else 0
    pixels = scene.cube.shape[1] * scene.cube.shape[2]
    declared = [] if scene.nodata is None else [f"the value {scene.nodata:g}"]
    declared += [] if scene.missing is None else ["a mask or an alpha band"]
    return {"values": f"{scene.cube.dtype}, {low:g} .. {high:g}{_meaning(scene)}",
            "no-data": (" and ".join(declared) or "no value is declared") + f"; {missing} of "
            f"{pixels} pixels ({missing / pixels:.1%}) are missing in all bands"
            + (f"; {fill.share:.1%} are {fill.value:g}, which looks like one: --nodata "
               f"{fill.value:.17g}" if fill else ""),
            "bad bands": ", ".join(filter(None,
                                          (in_words([band
                                                     for band in bad
                                                     if not band.fillable or band.pixels > missing],
                                                    range(len(scene.cube))),
                                           f"marked as bad in the file: {', '.join(_runs(marked))}"
                                           if marked else ""))) or "none"}


def _meaning(scene: Scene) -> str:
    """What the values stand for: how they were stored, gain and offset, units."""
    words = f", stored as {scene.metadata['packing']}" if "packing" in scene.metadata else ""
    if scene.gain is not None:
        gains, offsets = (np.unique(scene.gain),
                          np.unique(np.zeros(1) if scene.offset is None else scene.offset))
        gain, offset = (f"{v[0]:g}" if len(v) == 1 else f"{v[0]:g} to {v[-1]:g} (by band)"
                        for v in (gains, offsets))
        words += f"; physical value = {gain} x value" + (f" + {offset}" if np.any(offsets) else "")
    return words + (f"; units {scene.units}" if scene.units else "")


def _runs(numbers: Sequence[int]) -> list[str]:
    """"3-5", "9": neighbouring numbers together."""
    groups = [list(run) for _, run in groupby(enumerate(numbers), lambda item: item[1] - item[0])]
    return [f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in groups]


def _file(path: Path) -> str:
    files = [file for file in containers.files_of(path) if file.is_file()]
    size = _size(sum(file.stat().st_size for file in files))
    if path.is_dir():
        return f"{path}, {len(files)} files, {size}"
    container = containers.sniff(path)
    title = rasters.TITLES.get(rasters.driver_in(path)) or (
        container.title if container else f"{len(files)} files")
    return f"{path}, {title}, {size}"


def _beside(stored: Stored) -> str:
    """What stands beside an array whose axes are not clear."""
    found = [f"{len(nm)} wavelengths, {nm.min():g} .. {nm.max():g} nm"
             for nm in stored.vectors.values()]
    found += [f"{times(shape)} values" for shape in stored.planes]
    return "; ".join([
        *found,
        "no no-data value" if stored.nodata is None else f"the no-data value {stored.nodata:g}"])


def _wavelengths(scene: Scene) -> str:
    if scene.wavelengths is None:
        return "not known"
    nm = np.sort(np.asarray(scene.wavelengths, float))
    steps = np.diff(nm)
    words = f"{nm[0]:g} .. {nm[-1]:g} nm, {np.median(steps):.3g} nm apart"
    if " to " in (reach := _reach(steps)):
        words += f" (the median; {reach})"
    if scene.fwhm is not None:
        words += f", {_reach(scene.fwhm)} nm wide"
    return words + (f"; from {scene.wavelengths_by}" if scene.wavelengths_by else "")


def _reach(values: np.ndarray) -> str:
    """The smallest and the largest number, or the one that both are."""
    return " to ".join(dict.fromkeys(f"{value:.3g}" for value in (values.min(), values.max())))


def _without_grid(scene: Scene) -> str:
    """The place of a scene that is on no map grid."""
    words = []
    if points := scene.metadata.get("gcps"):
        words.append(f"{len(points.rows)} ground control points")
    if scene.metadata.get("rpcs"):
        words.append("RPCs")
    if scene.lonlat is not None:
        lon, lat = scene.lonlat
        words.append(f"longitude {np.nanmin(lon):.5g} to {np.nanmax(lon):.5g} and latitude "
                     f"{np.nanmin(lat):.5g} to {np.nanmax(lat):.5g} of every pixel")
    if lookup := scene.metadata.get("lookup"):
        words.append(f"a lookup table (GLT) for a map grid of {times(lookup.rows.shape)}: --ortho")
    return "no map grid; " + ", ".join(words) if words else "no georeference"


def _place(scene: Scene) -> str:
    if scene.transform is None:
        return _without_grid(scene)
    a, b, c, d, e, f = scene.transform
    turned = f"; turned by {math.degrees(math.atan2(d, a)):.4g} degrees" if b or d else ""
    try:
        name = "no CRS"
        if scene.crs:
            crs = CRS.from_wkt(scene.crs)
            title = scene.crs.partition("[")[2].split(",")[0]
            unit = "degrees" if crs.is_geographic else crs.linear_units.replace("Meter", "metre")
            name = f"{crs.to_string() if crs.to_epsg() else title}, in {unit}"
    except CRSError:
        name = "a CRS that GDAL does not know"
    return (f"{name}; pixels {np.hypot(a, d):g} x {np.hypot(b, e):g}, corner at {c:.10g}, {f:.10g}"
            + turned)
