"""Super-resolving a scene in bounded memory, tile by tile, with the whole scene's result.

A tile is computed from its own pixels and a halo as wide as the network's receptive field
(`Network.halo`), so nothing is blended and there is no seam. Bands are never tiled: a network sees
the whole spectrum. Sources and sinks are read and written a window at a time, so neither need fit
in memory.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import Network, Window
from models.layers.row_blocks import free_on_gpu
from utility.cubes.cube import scratch
from utility.degradation import Degradation, Operations, axis_rows, full_precision
from utility.superres.overlap import Ahead, on_its_way, overlaps, pinned
from utility.superres.spectrum import Supports
from utility.system import distributed
from utility.system.devices import AMP, autocast
from utility.system.errors import UserError
from utility.system.memory import budget, out_of_memory
from utility.system.progress import track

SMALLEST_TILE = 32
BAR = "{l_bar}{bar}| {n:.1f}/{total:.1f} Mvoxel [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
STRIP = 32 << 20
"""Bytes of a result in float32 that are handed on at a time."""
WORKSPACE = 128 << 20
"""Bytes that a network takes on a processor whatever the tile: some rows of its layers, and what
the libraries keep. Measured of `lowgrid_32_8_sensor`: 100 MB, and 8 to 17 bytes a voxel."""
ROWS, COMPARED = 64, 16 << 20
"""Rows of a degraded scene, and their bytes, that are compared at a time, at most."""
COLUMNS = 256
"""Columns that a matrix is multiplied with at a time: their taps lie near one another."""

Source = Callable[..., np.ndarray]
"""(top, bottom, left, right) -> float32 (B, rows, columns) of a scene in [0, 1]; with a fifth
argument, the numbers of some bands, those alone."""
Bands = slice | np.ndarray
Sink = Callable[[int, int, np.ndarray], None]
"""(top, left, float32 (B, rows, columns)): takes one finished block."""


def super_resolve_cube(net: Network, start: np.ndarray, low: np.ndarray | None = None, *,
                       tile: int | str = "auto", amp: str = "off", told: Tensor | None = None,
                       self_ensemble: bool = False, together: bool = False) -> np.ndarray:
    """Super-resolve a cube in memory; see `super_resolve`.

    Args:
        start: float32 (B, H, W) in [0, 1], the start image.
        low: float32 (B, H/s, W/s), the true low-resolution cube, for a network that takes it.

    Returns: float32 (B, H, W).
    """
    out = np.empty(start.shape, dtype=np.float32)

    def sink(top: int, left: int, block: np.ndarray) -> None:
        out[:, top:top + block.shape[1], left:left + block.shape[2]] = block

    super_resolve(net, window_of(start), start.shape, sink,
                  low=None if low is None else window_of(low),
                  scale=1 if low is None else start.shape[1] // low.shape[1], tile=tile, amp=amp,
                  told=told, self_ensemble=self_ensemble, together=together)
    return out


def window_of(cube: np.ndarray) -> Source:
    """A cube in memory as a source."""
    def source(top: int, bottom: int, left: int, right: int,
               bands: Bands = slice(None)) -> np.ndarray:
        return cube[bands, top:bottom, left:right]

    return source


@torch.no_grad()
def super_resolve(net: Network, start: Source, shape: tuple[int, int, int], sink: Sink, *,
                  low: Source | None = None, scale: int = 1, tile: int | str = "auto",
                  amp: str = "off", told: Tensor | None = None, self_ensemble: bool = False,
                  spread: Callable[[int, int, np.ndarray], None] | None = None,
                  again: Consistency | None = None, supports: Supports | None = None,
                  missing: np.ndarray | None = None, memory: int | None = None,
                  together: bool = False) -> None:
    """Super-resolve a scene of any size.

    The scene is padded by reflection at its lower and right edges to multiples of
    `net.step(scale)`, and cropped again. While a GPU computes a tile, the host reads the next one
    and hands on the one before.

    Args:
        net: on the device that shall compute.
        start: reads windows of the start image.
        shape: (B, H, W) of the start image.
        sink: takes the result, every pixel once, in row-major order of the tiles and of thin strips
            of each; it must not keep the array.
        low: reads windows of the true low-resolution cube, (B, H/s, W/s), for a network that takes
            it.
        scale: the factor s between the two.
        tile: rows and columns of a tile (at least 32, rounded up to a multiple of `net.step`); 0 is
            the whole scene at once; `auto` what memory allows, on a processor over the whole width.
            On a GPU that runs out of memory, tiles are quartered. A network of unknown receptive
            field gets the whole scene at once in any case.
        amp: `off`, `bf16` or `fp16`.
        told: (1, 3, B), what is known of the sensor; see `Network.inputs`.
        self_ensemble: average over the 8 rotations and flips, at 8 times the cost.
        spread: takes their standard deviation, mean over bands, likewise: (top, left,
            (rows, columns)).
        again: takes the result too; a GPU degrades its tiles itself where it computes all bands.
        supports: the bands that the network computes (see `spectrum`); None: all.
        missing: (H/s, W/s) bool, pixels of `low` that nobody measured: the network's statistics of
            the scene leave them out.
        memory: bytes that may be used in all; None: half of what is free.
        together: every process calls this for the same scene, computes some of its tiles, and its
            sink takes all of them.

    Raises:
        UserError: a tile smaller than 32, or what must be computed at once does not fit in the
            GPU's memory.
    """
    bands, height, width = shape
    part, parts = (distributed.rank(), distributed.size()) if together else (0, 1)
    queue = _tiles(net, shape, supports, scale, tile, amp, memory, parts)
    given = _Given(net, start, low if net.takes_low else None, shape, scale, supports, told,
                   missing)
    overlap, done, in_rows = overlaps(given.device), 0, True
    degraded_there = bool(again and overlap and not supports)  # by the GPU, tile by tile
    begun: list[tuple[Window, list]] = []  # tiles whose results are on their way
    bar = track(total=bands * height * width / 1e6, desc="super-resolving", unit="Mvoxel",
                bar_format=BAR)

    def started(window: Window, following: Window | None) -> list[Any]:
        """The result, the spread and the consistency's part, each as `on_its_way` gives it."""
        found = _one_tile(net, given, window, read(window, following), amp, self_ensemble)
        found = [x[..., :height - window.top, :width - window.left] for x in found]
        if degraded_there:
            found.append(again.degraded(window.top, window.left, found[0]))
        return [on_its_way(x) for x in found]

    def handed_on(window: Window, block: np.ndarray, *others: np.ndarray) -> None:
        if again and window.left == 0 and in_rows:
            again.done(window.top)
        if degraded_there:
            *others, part_of_low = others
            again.add(window.top, window.left, block, part_of_low)
        for top, strip in _strips(block, window, start, supports):
            if again and not degraded_there:
                again.add(top, window.left, strip)
            sink(top, window.left, strip)
            if again and strip.shape[2] == width:
                again.done(top + strip.shape[1])
        if spread:
            spread(window.top, window.left, others[0])

    with bar, Ahead(given.inside, thread=overlap) as read:
        while queue:
            windows, own, following = _next_tiles(queue, part, parts)
            results, reason = _gathered(partial(started, own, following) if own else list, parts)
            if None in results:  # outside `except`: the traceback still holds GPU tensors
                queue, in_rows = _quartered(queue + windows[::-1], windows, net, net.step(scale),
                                            bands, reason), False
                continue
            begun += zip(windows, results)  # noqa: B905 (the last windows may be fewer)
            # a GPU's last tile is handed on beside the next
            while len(begun) > (overlap and parts == 1 and bool(queue)):
                window, result = begun.pop(0)
                found = result if parts > 1 else [arrived() for arrived in result]
                handed_on(window, *found)
                done += 1
                bar.set_postfix_str(f"tile {done}/{done + len(begun) + len(queue)}")
                bar.update(bands * math.prod(found[0].shape[1:]) / 1e6)
    if again:
        again.done(height)


def _tiles(net: Network, shape: tuple[int, int, int], supports: Supports | None, scale: int,
           tile: int | str, amp: str, memory: int | None, parts: int) -> list[Window]:
    """The tiles of the padded scene, the first one last."""
    bands, height, width = shape
    computed = len(supports.bands) if supports else bands
    size = tile_size(net, (computed, height, width), scale, tile, amp, memory, parts,
                     beside_network(bands, height, width))
    step = net.step(scale)
    rows, columns = (-(-n // step) * step for n in (height, width))
    return _split(Window.whole(rows, columns), *size)[::-1]


def _next_tiles(queue: list[Window], part: int,
                parts: int) -> tuple[list[Window], Window | None, Window | None]:
    """Take the next tiles off the queue, one for each process: all of them, that of this process,
    and the one that it will get then."""
    windows = [queue.pop() for _ in range(min(parts, len(queue)))]
    following = queue[::-1][part:part + 1]
    return windows, next(iter(windows[part:part + 1]), None), next(iter(following), None)


def _gathered(compute: Callable[[], list], parts: int) -> tuple[list[list | None], str]:
    """What each process computes, None of one whose GPU has too little memory, and the reason."""
    reason = ""
    try:
        result = compute()
        if parts > 1:
            result = [arrived() for arrived in result]
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        result, reason = None, str(error).splitlines()[0]
    return distributed.gathered([result]) if parts > 1 else [result], reason


def tile_size(net: Network, shape: tuple[int, int, int], scale: int, tile: int | str, amp: str,
              memory: int | None = None, parts: int = 1,
              beside: int = 0) -> tuple[int, int | None]:
    """Rows of a tile, and its columns where these are not as many; see `super_resolve`.

    Args:
        shape: (B, H, W), of the bands that the network computes.
        parts: processes that share the scene.
        beside: bytes that are taken beside the network.

    Raises:
        UserError: a tile smaller than 32 was asked for.
    """
    _, height, width = shape
    step, across = net.step(scale), None
    whole = max(-(-height // step) * step, -(-width // step) * step)
    if tile == "auto":
        tile = auto_tile(net, shape, scale, amp, memory, beside)
        if tile and next(net.parameters()).device.type == "cpu" and parts == 1:
            tile, across = _over_the_width(tile, net.halo(scale), -(-width // step) * step)
    if parts > 1:  # the smallest that a process can take, and one for each process
        tile = min(-distributed.highest(-(tile or height + width)),
                   max(SMALLEST_TILE, math.isqrt(height * width // parts)))
    if tile and tile < SMALLEST_TILE:
        raise UserError(f"A tile of {tile} pixels was asked for, where at least {SMALLEST_TILE} "
                        f"are expected; give --tile {SMALLEST_TILE} or more, 0 for the whole "
                        "scene, or auto.")
    return (-(-tile // step) * step if tile and net.radius is not None else whole), across


def _quartered(queue: list[Window], failed: list[Window], net: Network, step: int, bands: int,
               reason: str) -> list[Window]:
    """The windows of a queue in tiles of half the side of those for which a GPU had too little
    memory. Raises UserError: they cannot be smaller."""
    torch.cuda.empty_cache()
    rows, columns = max(window.size for window in failed)
    size = -(-max(rows, columns) // (2 * step)) * step
    if size < SMALLEST_TILE or net.radius is None:
        raise UserError(f"A tile of {rows} x {columns} pixels and {bands} bands does not fit in "
                        f"the GPU's memory, and cannot be made smaller ({reason}); run with "
                        "--no-cuda.")
    return [tile for whole in queue for tile in _split(whole, size)[::-1]]


def _strips(block: np.ndarray, window: Window, start: Source,
            supports: Supports | None) -> Iterator[tuple[int, np.ndarray]]:
    """The result in a window, (first row, all bands) of thin strips.

    `block` is the result itself; with `supports`, what the network adds to their bands.
    """
    _, rows, columns = block.shape
    bands = len(supports.shares) if supports else len(block)
    step = max(8, STRIP // (4 * bands * columns))
    for first in range(0, rows, step):
        part, top = block[:, first:first + step], window.top + first
        if supports:
            added = torch.from_numpy(supports.shares) @ torch.from_numpy(
                np.ascontiguousarray(part)).flatten(1)
            part = start(top, top + part.shape[1], window.left, window.left + columns)
            part = added.view(part.shape).add_(torch.from_numpy(part)).numpy()
        yield top, part


def _over_the_width(side: int, halo: int, width: int) -> tuple[int, int | None]:
    """Rows and columns of a tile as large as a square one, halo included, over the whole width; the
    square one where that would be too flat."""
    rows = ((side + 2 * halo) ** 2 // width - 2 * halo) // 32 * 32
    return (rows, width) if rows >= max(SMALLEST_TILE, 4 * halo) else (side, None)


def beside_network(bands: int, height: int, width: int) -> int:
    """Bytes that are taken beside the network while a result (B, H, W) is handed on: six strips of
    it, and a row of tiles of its file in a type of two bytes."""
    return min(6 * STRIP, 24 * bands * height * width) + 2 * bands * min(height, 256) * width


def auto_tile(net: Network, shape: tuple[int, int, int], scale: int = 1, amp: str = "off",
              memory: int | None = None, beside: int = 0) -> int:
    """The largest tile, a multiple of 32, that memory allows; 0 where the scene fits, or where the
    network's receptive field is unknown. Activations take at most half of the free memory, or what
    `memory` leaves, less what is taken `beside`. A unit's gates, and pieces of its input, get a
    quarter of what is left (see `models.layers.row_blocks`)."""
    if net.radius is None:
        return 0
    device = next(net.parameters()).device
    most = free_on_gpu(device) / 2 if device.type == "cuda" else budget(memory, beside + WORKSPACE)
    side = int((most / net.bytes_per_pixel(shape[0], scale, value=2 if AMP[amp] else 4)) ** 0.5)
    if shape[1] * shape[2] <= side * side:
        return 0
    return max((side - 2 * net.halo(scale)) // 32 * 32, SMALLEST_TILE)


def in_unit_range(cube: np.ndarray, low: float, high: float) -> Source:
    """A cube (B, h, w) of raw values, which may lie on disk, as a source; `low` and `high` become 0
    and 1."""
    def source(top: int, bottom: int, left: int, right: int,
               bands: Bands = slice(None)) -> np.ndarray:
        block = np.asarray(cube[bands, top:bottom, left:right])
        if (low, high) == (0, 1):
            return block.astype(np.float32, copy=False)
        block = block.astype(np.float64)
        # in float32 a large offset would swallow the range
        return ((block - low) / (high - low)).astype(np.float32)

    return source


def interpolated(cube: np.ndarray, scale: int, kind: str, low: float, high: float) -> Source:
    """A low-resolution cube on the high-resolution grid, a window at a time.

    Args:
        cube: (B, h, w) raw values, sliced when a window is read, so it may lie on disk.
        scale, kind: how it is brought up, as in `utility.degradation.upsample`.
        low, high: the raw values that become 0 and 1.

    Returns: a source of shape (B, h * scale, w * scale).
    """
    _, height, width = cube.shape
    read, up = in_unit_range(cube, low, high), Degradation.of(scale, kind).up_operations

    def source(top: int, bottom: int, left: int, right: int,
               bands: Bands = slice(None)) -> np.ndarray:
        row, rows = axis_rows(up, height, scale, top, bottom)
        rows = torch.from_numpy(rows.astype(np.float32))
        ways = [(first, *axis_rows(up, width, scale, first, min(first + COLUMNS, right)))
                for first in range(left, right, COLUMNS)]
        nearest = min(column for _, column, _ in ways)
        furthest = max(column + way.shape[1] for _, column, way in ways)
        whole = read(row, row + rows.shape[1], nearest, furthest, bands)
        out = torch.empty((len(whole), bottom - top, right - left))
        for first, column, way in ways:
            block = whole[..., column - nearest:column - nearest + way.shape[1]]
            block = torch.from_numpy(np.ascontiguousarray(block)) @ torch.from_numpy(
                way.T.astype(np.float32))
            out[..., first - left:first - left + len(way)] = rows @ block
        return out.numpy()

    return source


class Consistency:
    """How well a super-resolved scene explains the low-resolution one: it is degraded again as it
    is written.

    The degradation is linear, so every block adds its own part to the low-resolution cube.

    Args:
        shape: of the super-resolved scene, (B, H, W).
        folder: of a temporary file for a large sum.
        taken: takes rows of the sum, a slice of H/s and (B, rows, W/s), as soon as they are
            complete, and no other rows are kept; None: `result` gives all of them.
    """

    def __init__(self, shape: tuple[int, int, int], scale: int, kind: str,
                 folder: Path | None = None,
                 taken: Callable[[slice, np.ndarray], None] | None = None) -> None:
        self.shape, self.scale, self.degradation = shape, scale, Degradation.of(scale, kind)
        self.taken, self._first = taken, 0
        self._low_shape = bands, _, width = shape[0], shape[1] // scale, shape[2] // scale
        self._few = min(ROWS, max(8, COMPARED // (4 * bands * width)))
        self.low = (np.zeros((bands, 0, width), np.float32) if taken
                    else scratch(self._low_shape, np.float32, folder))

    def add(self, top: int, left: int, block: np.ndarray, part: np.ndarray | None = None) -> None:
        """Take one block of the super-resolved scene, and what `degraded` gave for it, if it was
        called; every pixel is to be given once."""
        if part is None:  # columns of a block, whose taps lie near one another
            for first in range(0, block.shape[2], COLUMNS):
                columns = block[:, :, first:first + COLUMNS]
                self.add(top, left + first, columns, self.degraded(top, left + first, columns))
            return
        (row, _), (column, _) = self._ways(top, left, block.shape)
        row -= self._first
        self._hold(row + part.shape[1])
        self.low[:, row:row + part.shape[1], column:column + part.shape[2]] += part

    def _hold(self, rows: int) -> None:
        """Have room for so many rows, and some that follow."""
        kept = self.low.shape[1]
        if rows > kept:
            bands, height, width = self._low_shape
            wider = np.zeros((bands, min(rows + self._few, height - self._first), width),
                             np.float32)
            wider[:, :kept] = self.low
            self.low = wider

    def done(self, bottom: int) -> None:
        """All blocks above row `bottom` of the super-resolved scene were given."""
        if self.taken is None:
            return
        whole = self._low_shape[1]
        # the first row that a block from `bottom` on may reach
        complete = (bottom - _reach(self.scale)) // self.scale if bottom < self.shape[1] else whole
        count = complete - self._first
        if count < (self._few if complete < whole else 1):
            return
        self._hold(count)
        self.taken(slice(self._first, complete), self._between_bands(self.low[:, :count]))
        self.low, self._first = self.low[:, count:].copy(), complete

    def degraded(self, top: int, left: int, block: np.ndarray | Tensor) -> Any:
        """What a block adds to the low-resolution cube: an array, or a tensor on the device of the
        block."""
        (_, rows), (_, columns) = self._ways(top, left, block.shape)
        if isinstance(block, np.ndarray):
            block = torch.from_numpy(np.ascontiguousarray(block))
            return ((torch.from_numpy(rows) @ block) @ torch.from_numpy(columns.T)).numpy()
        rows, columns = (pinned(torch.from_numpy(matrix)).to(block.device, non_blocking=True)
                         for matrix in (rows, columns))
        with full_precision(block.device):
            return rows @ block @ columns.T

    def result(self) -> np.ndarray:
        """The super-resolved scene degraded again: float32 (B, H/s, W/s)."""
        return self._between_bands(self.low)

    def _between_bands(self, low: np.ndarray) -> np.ndarray:
        """What the degradation does along bands."""
        if not (operations := self.degradation.band_operations):
            return low
        _, matrix = axis_rows(operations, self.shape[0], self.scale, 0, self.shape[0])
        return np.einsum("cb,bhw->chw", matrix.astype(np.float32), low, optimize=True)

    def _ways(self, top: int, left: int, shape: tuple[int, ...]) -> list[tuple[int, np.ndarray]]:
        """For rows and for columns: the first low-resolution one that a block reaches, and the
        matrix from there on."""
        places = zip(self.degradation.down_operations, self.shape[1:], (top, left), shape[-2:],
                     strict=True)
        return [_columns_of(operations, self.scale, *place) for operations, *place in places]


@lru_cache(maxsize=256)
def _columns_of(operations: Operations, scale: int, n: int, first: int,
                count: int) -> tuple[int, np.ndarray]:
    """Columns first .. first + count of a way down along an axis of n samples: the first row that
    is not zero there, and the rows (float32) from it to the last one."""
    row, last = (max((first - _reach(scale)) // scale, 0),
                 min(-(-(first + count + _reach(scale)) // scale), n // scale))
    start, matrix = axis_rows(operations, n, scale, row, last)
    whole = np.zeros((last - row, count), dtype=np.float32)
    low, high = max(first, start), min(first + count, start + matrix.shape[1])
    whole[:, low - first:high - first] = matrix[:, low - start:high - start]
    used = np.flatnonzero(whole.any(1))
    return (
        (row + int(used[0]), whole[used[0]:used[-1] + 1].copy()) if len(used) else (row, whole[:1]))


def _reach(scale: int) -> int:
    """Pixels, further than the taps of any way down, the spline's response included."""
    return 8 + 36 * scale


def _split(window: Window, size: int, across: int | None = None) -> list[Window]:
    """Tiles of at most size x size, or size x across, in row-major order."""
    across, tiles = across or size, []
    for top in range(window.top, window.bottom, size):
        for left in range(window.left, window.right, across):
            bottom, right = min(top + size, window.bottom), min(left + across, window.right)
            tiles.append(Window(top, bottom, left, right, window.height, window.width))
    return tiles


class _Given:
    """The inputs of a network in any window of the padded scene: of all bands, or of the supports
    alone.

    Raises:
        ValueError: the network takes the low-resolution cube, and there is none.
    """

    def __init__(self, net: Network, start: Source, low: Source | None, shape: tuple[int, int, int],
                 scale: int, supports: Supports | None = None, told: Tensor | None = None,
                 missing: np.ndarray | None = None) -> None:
        if net.takes_low and low is None:
            raise ValueError(f"{net.name} takes the true low-resolution cube, and none was given")
        self.net, self.shape, self.scale = net, shape, scale
        self.start, self.low, self.supports, self.missing = start, low, supports, missing
        self.device = next(net.parameters()).device
        self.statistics = self._statistics() if net.takes_statistics else None
        if told is not None and supports:
            told = told[..., supports.bands]
        self.told = None if told is None else told.to(self.device)

    def around(self, window: Window) -> Window:
        """What the result in a window depends on."""
        halo = self.net.halo(self.scale)
        return window if halo is None else window.grown(halo)

    def inside(self, window: Window) -> list[Tensor]:
        """What the result in a window takes, on the host: (1, 1, B, rows, columns) of the start
        image, and of the low-resolution cube where the network takes it."""
        have = self.around(window)
        images = [self._read(self.start, have, self.shape[1:])]
        if self.low:
            images.append(self._read(self.low, have.scaled(1, self.scale),
                                     [n // self.scale for n in self.shape[1:]]))
        return images

    def _read(self, source: Source, have: Window, size: tuple[int, int]) -> Tensor:
        bottom, right = min(have.bottom, size[0]), min(have.right, size[1])
        window = (have.top, bottom, have.left, right)
        cube = source(*window, self.supports.bands) if self.supports else source(*window)
        if (bottom, right) != (have.bottom, have.right):
            cube = np.pad(cube, ((0, 0), (0, have.bottom - bottom), (0, have.right - right)),
                          mode="reflect")
        x = torch.from_numpy(np.ascontiguousarray(cube, dtype=np.float32))[None, None]
        return pinned(x) if overlaps(self.device) else x

    def _statistics(self) -> Tensor:
        """The network's statistics of the whole scene, from rows of at most 2^22 voxels at a
        time."""
        height, width = (n // self.scale for n in self.shape[1:])
        measured = np.ones((height, width), bool) if self.missing is None else ~self.missing
        rows, total = max(1, 2**22 // (self.shape[0] * width)), 0
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            part = self._read(self.low, Window(top, bottom, 0, width, height, width),
                              (height, width)).to(self.device)
            count = int(measured[top:bottom].sum())
            if count < (bottom - top) * width:  # the pixels that count, as an image of one row
                part = part[..., torch.from_numpy(measured[top:bottom]).to(self.device)][
                    ..., None, :]
            if count:
                total = total + self.net.statistics(part) * (count / measured.sum())
        return total


def _one_tile(net: Network, given: _Given, window: Window, images: list[Tensor], amp: str,
              self_ensemble: bool) -> list[Tensor]:
    """From the inputs of a window of the padded scene, the result there, float32
    (B, rows, columns), and the spread of a self-ensemble."""
    have = given.around(window)
    images = [image.to(given.device, non_blocking=True) for image in images]

    def compute(images: list[Tensor], *turn: bool) -> Tensor:
        inputs = net.inputs(*images, *[None] * (2 - len(images)), given.statistics, given.told)
        return net.in_window(_turned(window, *turn), _turned(have, *turn), *inputs)[0, 0].float()

    def added(result: Tensor) -> Tensor:
        return result.sub_(window.cut(images[0], have)[0, 0]) if given.supports else result

    with autocast(given.device, amp):
        if not self_ensemble:
            return [added(compute(images, False, False, False))]
        mean = squares = 0  # Welford, 1962: deviations are far smaller than values
        for count, turn in enumerate(product((False, True), repeat=3), 1):
            result = _turn_back(
                compute([_turn(image, *turn).contiguous() for image in images], *turn), *turn)
            error = result - mean
            mean = mean + error / count
            squares = squares + error * (result - mean)
    deviation = (squares.clamp(min=0) / 8).sqrt()
    if given.supports is None:
        return [mean, deviation.mean(0)]
    shares = torch.from_numpy(given.supports.shares.mean(0)).to(deviation)
    return [added(mean), torch.tensordot(shares, deviation, 1)]


def _turn(x: Tensor, transposed: bool, flip_rows: bool, flip_columns: bool) -> Tensor:
    axes = [axis for axis, flip in ((-2, flip_rows), (-1, flip_columns)) if flip]
    x = x.flip(axes) if axes else x
    return x.mT if transposed else x


def _turn_back(x: Tensor, transposed: bool, flip_rows: bool, flip_columns: bool) -> Tensor:
    x = x.mT if transposed else x
    axes = [axis for axis, flip in ((-2, flip_rows), (-1, flip_columns)) if flip]
    return x.flip(axes) if axes else x


def _turned(w: Window, transposed: bool, flip_rows: bool, flip_columns: bool) -> Window:
    """Where a window lies when the whole scene is turned."""
    top, bottom = (w.height - w.bottom, w.height - w.top) if flip_rows else (w.top, w.bottom)
    left, right = (w.width - w.right, w.width - w.left) if flip_columns else (w.left, w.right)
    if transposed:
        return Window(left, right, top, bottom, w.width, w.height)
    return Window(top, bottom, left, right, w.height, w.width)
