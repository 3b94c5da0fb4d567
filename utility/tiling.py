"""Super-resolving a scene in bounded memory, tile by tile, with the whole scene's result.

A tile is computed from its own pixels and a halo as wide as the network's receptive field, and its upsamplings use the whole
scene's coordinates (`models.blocks`), so nothing is blended and there is no seam. Bands are never tiled: the recurrence sees
the whole spectrum. Sources and sinks are read and written a window at a time, so neither need fit in memory.
"""
from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models import QRNN3D
from models.blocks import Window, halo, run_in_blocks
from utility.cubes.cube import scratch
from utility.degradation import KINDS, axis_rows
from utility.devices import AMP
from utility.errors import UserError

SMALLEST_TILE = 32

Source = Callable[[int, int, int, int], np.ndarray]
"""(top, bottom, left, right) -> float32 (B, rows, columns) of the interpolated scene in [0, 1]."""
Sink = Callable[[int, int, np.ndarray], None]
"""(top, left, float32 (B, rows, columns)): takes one finished block."""


def super_resolve_cube(net: QRNN3D, cube: np.ndarray, tile: int | str = "auto", amp: str = "off",
                       self_ensemble: bool = False, progress: bool = False) -> np.ndarray:
    """A cube in memory: float32 (B, H, W), the interpolated scene in [0, 1], to the same shape. See `super_resolve`."""
    out = np.empty(cube.shape, dtype=np.float32)

    def sink(top: int, left: int, block: np.ndarray) -> None:
        out[:, top:top + block.shape[1], left:left + block.shape[2]] = block

    def source(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        return cube[:, top:bottom, left:right]

    super_resolve(net, source, cube.shape, sink, tile, amp, self_ensemble, progress)
    return out


@torch.no_grad()
def super_resolve(net: QRNN3D, source: Source, shape: tuple[int, int, int], sink: Sink, tile: int | str = "auto",
                  amp: str = "off", self_ensemble: bool = False, progress: bool = False) -> None:
    """Super-resolve a scene of any size.

    The scene is padded by reflection at its lower and right edges to multiples of `net.multiple`, and cropped again.

    Args:
        net: on the device that shall compute.
        source: reads windows of the interpolated scene.
        shape: (B, H, W) of the scene.
        sink: takes the result, every pixel once, in row-major order of the tiles.
        tile: rows and columns of a tile (at least 32, rounded up to a multiple of `net.multiple`); 0 is the whole scene at
            once; `auto` the largest that free memory allows. On a GPU that runs out of memory, tiles are quartered.
        amp: `off`, `bf16` or `fp16`.
        self_ensemble: average over the 8 rotations and flips, at 8 times the cost.
        progress: show a bar.

    Raises:
        UserError: a tile smaller than 32, or not even such a tile fits in the GPU's memory.
    """
    bands, height, width = shape
    m = net.multiple
    padded = Window.whole(-(-height // m) * m, -(-width // m) * m)
    if tile == "auto":
        tile = auto_tile(net, shape)
    if tile and tile < SMALLEST_TILE:
        raise UserError(f"A tile of {tile} pixels was asked for, where at least {SMALLEST_TILE} are expected; give --tile "
                        f"{SMALLEST_TILE} or more, 0 for the whole scene, or auto.")
    size = -(-tile // m) * m if tile else max(padded.height, padded.width)
    queue = _split(padded, size)[::-1]
    bar = tqdm(total=bands * height * width / 1e6, desc="super-resolving", unit="Mvoxel", disable=None if progress else True,
               bar_format="{l_bar}{bar}| {n:.1f}/{total:.1f} Mvoxel [{elapsed}<{remaining}, {rate_fmt}{postfix}]")
    done = 0
    with bar:
        while queue:
            window = queue.pop()
            try:
                block = _one_tile(net, source, shape, window, amp, self_ensemble)
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
                size = -(-max(window.bottom - window.top, window.right - window.left) // (2 * m)) * m
                if size < SMALLEST_TILE:
                    raise UserError(f"Not even a tile of {2 * size} x {2 * size} pixels and {bands} bands fits in the GPU's "
                                    "memory; run with --no-cuda.") from None
                queue = [part for whole in queue for part in _split(whole, size)[::-1]] + _split(window, size)[::-1]
                continue
            block = block[:, :height - window.top, :width - window.left]
            sink(window.top, window.left, block)
            done += 1
            bar.set_postfix_str(f"tile {done}/{done + len(queue)}")
            bar.update(block.size / 1e6)


def auto_tile(net: QRNN3D, shape: tuple[int, int, int]) -> int:
    """The largest tile, a multiple of 32, whose activations take at most half of the free memory; 0 where the scene fits."""
    device = next(net.parameters()).device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    # Two skips and the running image at full resolution, half as much again below it, and the cubes on either side.
    per_pixel = 4 * shape[0] * (4.5 * net.feature_extractor.channels + 6)
    side = int((free / 2 / per_pixel) ** 0.5)
    if shape[1] * shape[2] <= side * side:
        return 0
    return max((side - 2 * halo(net)) // 32 * 32, SMALLEST_TILE)


def free_memory(root: str | Path = "/") -> int:
    """Bytes of main memory that can be had without swapping, as far as this system says; 4 GB where it does not.

    The least of what the machine has and what the control groups of this process (a container, a batch job) leave it.
    `root` is where /proc and /sys are.
    """
    root = Path(root)
    free = [int(line.split()[1]) * 1024 for line in _lines(root / "proc/meminfo") if line.startswith("MemAvailable:")]
    top = root / "sys/fs/cgroup"
    v2, v1 = ("memory.max", "memory.current", "inactive_file"), \
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    groups = [(top, v2), (top / "memory", v1)]  # the process's own, where a container shows nothing above it
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        start, names = (top / "memory", v1) if "memory" in controllers.split(",") else (top, v2)
        parts = [part for part in path.split("/") if part and ".." not in part] if names is v1 or not controllers else []
        groups += [(start.joinpath(*parts[:n]), names) for n in range(1, len(parts) + 1)]
    for folder, (most, used, cached) in groups:
        limit, usage = (next(iter(_lines(folder / name)), "") for name in (most, used))
        if limit.isdecimal() and usage.isdecimal():  # no limit is "max", or a number that no machine reaches
            files = sum(int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.startswith(f"{cached} "))
            free.append(max(int(limit) - int(usage) + files, 0))  # the cache of files is given back when it is needed
    return min(free, default=4 << 30)


def _lines(path: Path) -> list[str]:
    """The lines of a text file; none where it cannot be read."""
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def interpolated(cube: np.ndarray, scale: int, kind: str, low: float, high: float) -> Source:
    """A low-resolution cube on the high-resolution grid, a window at a time.

    Args:
        cube: (B, h, w) raw values, sliced when a window is read, so it may lie on disk.
        scale, kind: how it is brought up, as in `utility.degradation.upsample`.
        low, high: the raw values that become 0 and 1.

    Returns: a source of shape (B, h * scale, w * scale).
    """
    _, height, width = cube.shape
    up = KINDS[kind].up

    def source(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        row, rows = axis_rows(up, height, scale, top, bottom)
        column, columns = axis_rows(up, width, scale, left, right)
        block = np.asarray(cube[:, row:row + rows.shape[1], column:column + columns.shape[1]], dtype=np.float64)
        block = ((block - low) / (high - low)).astype(np.float32)  # in float32 a large offset would swallow the range
        return rows.astype(np.float32) @ block @ columns.T.astype(np.float32)

    return source


class Consistency:
    """How well a super-resolved scene explains the low-resolution one: it is degraded again as it is written.

    The degradation is linear, so every block adds its own part to the low-resolution cube.
    """

    def __init__(self, shape: tuple[int, int, int], scale: int, kind: str, folder: Path | None = None) -> None:
        """`shape` is that of the super-resolved scene; a large sum lies in a temporary file in `folder`."""
        self.shape, self.scale, self.kind = shape, scale, kind
        self.low = scratch((shape[0], shape[1] // scale, shape[2] // scale), np.float32, folder)

    def add(self, top: int, left: int, block: np.ndarray) -> None:
        """Take one block of the super-resolved scene; every pixel is to be given once."""
        row, rows = self._columns(self.shape[1], top, block.shape[1])
        column, columns = self._columns(self.shape[2], left, block.shape[2])
        part = rows @ block @ columns.T
        self.low[:, row:row + part.shape[1], column:column + part.shape[2]] += part

    def result(self, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """The super-resolved scene degraded again, or a part of it: float32 (B, rows, columns)."""
        low = self.low[:, rows, columns]
        if not KINDS[self.kind].bands:
            return low
        _, matrix = axis_rows(KINDS[self.kind].bands, self.shape[0], self.scale, 0, self.shape[0])
        return np.einsum("cb,bhw->chw", matrix.astype(np.float32), low, optimize=True)

    def _columns(self, n: int, first: int, count: int) -> tuple[int, np.ndarray]:
        """Columns first .. first + count of the way down along an axis of n samples, and the first row that they reach."""
        reach = 8 + 36 * self.scale  # further than the taps of any kind, the spline's response included
        row = max((first - reach) // self.scale, 0)
        last = min(-(-(first + count + reach) // self.scale), n // self.scale)
        start, matrix = axis_rows(KINDS[self.kind].down, n, self.scale, row, last)
        whole = np.zeros((last - row, count), dtype=np.float32)
        low, high = max(first, start), min(first + count, start + matrix.shape[1])
        whole[:, low - first:high - first] = matrix[:, low - start:high - start]
        return row, whole


def _split(window: Window, size: int) -> list[Window]:
    """Tiles of at most size x size, in row-major order."""
    return [Window(top, min(top + size, window.bottom), left, min(left + size, window.right), window.height, window.width)
            for top in range(window.top, window.bottom, size) for left in range(window.left, window.right, size)]


def _one_tile(net: QRNN3D, source: Source, shape: tuple[int, int, int], window: Window, amp: str,
              self_ensemble: bool) -> np.ndarray:
    """The result in `window` (of the padded scene), float32 (B, rows, columns)."""
    device = next(net.parameters()).device
    have = window.grown(halo(net))
    bottom, right = min(have.bottom, shape[1]), min(have.right, shape[2])
    cube = source(have.top, bottom, have.left, right)
    cube = np.pad(cube, ((0, 0), (0, have.bottom - bottom), (0, have.right - right)), mode="reflect")
    x = torch.from_numpy(np.ascontiguousarray(cube, dtype=np.float32))[None, None].to(device)
    with torch.autocast(device.type, dtype=AMP[amp]) if AMP[amp] else nullcontext():
        if not self_ensemble:
            return run_in_blocks(net, x, window)[0, 0].float().cpu().numpy()
        total = torch.zeros(shape[0], window.bottom - window.top, window.right - window.left, device=device)
        for transposed in (False, True):
            for flip_rows in (False, True):
                for flip_columns in (False, True):
                    how = (transposed, flip_rows, flip_columns)
                    y = run_in_blocks(net, _turn(x, *how).contiguous(), _turned(window, *how))[0, 0]
                    total += _turn_back(y, *how)
    return (total / 8).cpu().numpy()


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
