"""How a low-resolution cube is made, and brought back to the high-resolution grid.

Every model is linear and separable, so each axis is one small matrix: a batch is degraded by a few matrix products, on the
device it is on. A matrix is the 1-D operation applied to the identity, so it is that operation, edges included.

| kind        | blur                                                    | down                      | up                   |
|-------------|---------------------------------------------------------|---------------------------|----------------------|
| `reference` | Gaussian sigma 3, 7 taps, reflect, on bands, rows, cols | cubic-spline zoom 1/s     | cubic-spline zoom s  |
| `spatial`   | the same on rows and columns alone                      | the same                  | the same             |
| `gaussian`  | Gaussian sigma 3, 8 taps about each block's centre      | one sample a block        | Keys bicubic a=-0.5  |
| `bicubic`   | none                                                    | Keys bicubic widened by s | Keys bicubic a=-0.5  |

`reference` is what the released code of Bi-3DQRNN does (it filters the bands too). The spline zoom is
`scipy.ndimage.zoom(order=3)`, whose grid maps the first and last samples onto each other; the Keys kernels work on pixel
centres with symmetric edges, as MATLAB's `imresize` does (Keys, IEEE TASSP 29(6), 1981).
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

SCALES = (2, 3, 4, 8)


@dataclass(frozen=True)
class Kind:
    """The 1-D operations of a degradation, by name; see `axis_matrix`."""

    down: str  # on rows and on columns; "a+b" is a, then b
    up: str
    bands: str | None = None  # applied to the band axis


KINDS: dict[str, Kind] = {
    "reference": Kind(down="blur+zoom_down", up="zoom_up", bands="blur"),
    "spatial": Kind(down="blur+zoom_down", up="zoom_up"),
    "gaussian": Kind(down="block_gaussian", up="keys_up"),
    "bicubic": Kind(down="keys_down", up="keys_up"),
}


def degrade(x: Tensor, scale: int, kind: str) -> Tensor:
    """Low resolution and back: what a network gets as its input.

    Args:
        x: (..., B, H, W), floating point, H and W multiples of `scale`.
        scale: 2, 3, 4 or 8 (not 3 for `gaussian`, whose 8 taps need an even block).
        kind: one of `KINDS`.

    Returns: the same shape, type and device as `x`.

    Raises:
        ValueError: an unknown kind or scale, or H or W is not a multiple of `scale`.

    Example:
        >>> degrade(torch.rand(2, 1, 31, 64, 64), 4, "spatial").shape
        torch.Size([2, 1, 31, 64, 64])
    """
    return upsample(downsample(x, scale, kind), scale, kind)


def downsample(x: Tensor, scale: int, kind: str) -> Tensor:
    """The true low-resolution cube: (..., B, H, W) -> (..., B, H/s, W/s). Raises as `degrade`."""
    chosen = check(scale, kind)
    height, width = x.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"a {height} x {width} image cannot be degraded by x{scale}: crop it to multiples of {scale}")
    if chosen.bands:
        x = _apply(x, chosen.bands, scale, -3)
    return _apply(_apply(x, chosen.down, scale, -2), chosen.down, scale, -1)


def upsample(x: Tensor, scale: int, kind: str) -> Tensor:
    """A low-resolution cube on the high-resolution grid: (..., B, h, w) -> (..., B, h*s, w*s). Raises as `degrade`."""
    chosen = check(scale, kind)
    return _apply(_apply(x, chosen.up, scale, -2), chosen.up, scale, -1)


def crop_to_multiple(cube: np.ndarray | Tensor, multiple: int) -> np.ndarray | Tensor:
    """(..., H, W) without its last rows and columns, so that both are multiples of `multiple`."""
    height, width = cube.shape[-2:]
    return cube[..., : height - height % multiple, : width - width % multiple]


@lru_cache(maxsize=256)
def axis_matrix(operation: str, n: int, scale: int) -> np.ndarray:
    """A 1-D operation on n samples as a read-only float64 matrix (n_out, n).

    Args:
        operation: `blur`, `zoom_down`, `zoom_up`, `block_gaussian`, `keys_down` or `keys_up`, or "a+b": a, then b.
    """
    if "+" in operation:
        first, rest = operation.split("+", 1)
        before = axis_matrix(first, n, scale)
        matrix = axis_matrix(rest, len(before), scale) @ before
    elif operation == "blur":
        matrix = ndimage.gaussian_filter1d(np.eye(n), sigma=3.0, radius=3, mode="reflect", axis=0)
    elif operation == "zoom_down":
        matrix = zoom_matrix(n, n // scale)
    elif operation == "zoom_up":
        matrix = zoom_matrix(n, n * scale)
    else:
        matrix = _scatter(*_taps(operation, n, scale)(np.arange(_length(operation, n, scale))), n)
    matrix.setflags(write=False)
    return matrix


def zoom_matrix(n_in: int, n_out: int) -> np.ndarray:
    """`scipy.ndimage.zoom(order=3)` along one axis, from `n_in` to `n_out` samples: float64 (n_out, n_in).

    Both grids share their first and last samples. At some sizes (32 -> 16, 256 -> 32) the library rounds the last position
    past the end of the axis and returns zero there; the released code's low-resolution cubes have that dark last row, so
    the two kinds that repeat it have it too. `gaussian` and `bicubic` do not.
    """
    if n_in == 1:
        return np.ones((n_out, 1))
    return ndimage.zoom(np.eye(n_in), (n_out / n_in, 1), order=3)


def axis_rows(operation: str, n: int, scale: int, first: int, last: int) -> tuple[int, np.ndarray]:
    """Rows first .. last of `axis_matrix(operation, n, scale)`, without ever making the rest.

    Returns: (start, matrix): the rows without the zero columns outside start .. start + matrix.shape[1]. Spline weights below
        1e-17 count as zero.
    """
    if "+" in operation:
        before, after = operation.rsplit("+", 1)
        start, outer = axis_rows(after, _length(before, n, scale), scale, first, last)
        start, inner = axis_rows(before, n, scale, start, start + outer.shape[1])
        return start, outer @ inner
    if operation == "blur":
        start, stop = max(first - 6, 0), min(last + 6, n)  # three samples of halo, and three more to keep its edges out
        matrix = axis_matrix("blur", stop - start, scale)
        return start, matrix[first - start:last - start]
    if operation in ("zoom_down", "zoom_up"):
        return _zoom_rows(n, _length(operation, n, scale), first, last)
    positions, weights = _taps(operation, n, scale)(np.arange(first, last))
    matrix = _scatter(positions, weights, n)
    used = np.flatnonzero(matrix.any(axis=0))
    return int(used[0]), matrix[:, used[0]:used[-1] + 1]


def _length(operation: str, n: int, scale: int) -> int:
    """Samples after an operation on n samples."""
    if "+" in operation:
        first, rest = operation.split("+", 1)
        return _length(rest, _length(first, n, scale), scale)
    return {"zoom_up": n * scale, "keys_up": n * scale, "blur": n}.get(operation, n // scale)


def _zoom_rows(n_in: int, n_out: int, first: int, last: int) -> tuple[int, np.ndarray]:
    """Rows of `zoom_matrix`: cubic B-spline weights times the spline filter's response, which dies as .268 ** distance."""
    if n_in == 1:
        return 0, np.ones((last - first, 1))
    position = np.arange(first, last) * ((n_in - 1) / max(n_out - 1, 1))
    below = np.floor(position).astype(int)
    start, stop = max(below[0] - 32, 0), min(below[-1] + 34, n_in)
    response = ndimage.spline_filter1d(np.eye(stop - start), order=3, axis=0, mode="mirror")
    matrix = np.zeros((last - first, stop - start))
    for tap in range(-1, 3):
        index = np.abs(below + tap)
        index = np.where(index < n_in, index, 2 * (n_in - 1) - index) - start
        distance = np.abs(position - below - tap)
        weight = np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, (2 - distance) ** 3 / 6)
        matrix += weight[:, None] * response[index]
    matrix[ndimage.zoom(np.ones(n_in), n_out / n_in, order=3)[first:last] == 0] = 0  # see `zoom_matrix`
    return int(start), matrix


def _taps(operation: str, n: int, scale: int) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """For output samples (m,): the positions (m, taps) that they take, unfolded at the edges, and the weights."""
    if operation == "block_gaussian":
        offsets = np.arange(8) - 3.5
        weights = np.exp(-0.5 * (offsets / 3.0) ** 2)

        def block_gaussian(j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            positions = np.rint(scale * j[:, None] + (scale - 1) / 2 + offsets).astype(int)
            return positions, np.broadcast_to(weights / weights.sum(), positions.shape)

        return block_gaussian
    if operation not in ("keys_down", "keys_up"):
        raise ValueError(f"unknown operation {operation!r}")
    step, widen = (float(scale), float(scale)) if operation == "keys_down" else (1 / scale, 1.0)

    def keys(j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """MATLAB-style `imresize`: Keys' cubic with a = -0.5, stretched by `widen`, weights summing to one."""
        centres = (j + 0.5) * step - 0.5
        reach = math.ceil(2 * widen) + 1
        positions = np.floor(centres).astype(int)[:, None] + np.arange(-reach, reach + 1)
        distance = np.abs(centres[:, None] - positions) / widen
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
        return positions, weights / weights.sum(axis=1, keepdims=True)

    return keys


def _scatter(positions: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """Rows of taps to a matrix; taps outside 0 .. n-1 fold back with the edge sample repeated (d c b a | a b c d)."""
    folded = np.mod(positions, 2 * n)
    folded = np.where(folded < n, folded, 2 * n - 1 - folded)
    matrix = np.zeros((len(positions), n))
    np.add.at(matrix, (np.arange(len(positions))[:, None], folded), weights)
    return matrix


def check(scale: int, kind: str) -> Kind:
    """The operations of a degradation. Raises ValueError: an unknown kind or scale, or two that do not go together."""
    if kind not in KINDS:
        raise ValueError(f"unknown degradation {kind!r}; choose one of {', '.join(KINDS)}")
    if scale not in SCALES:
        raise ValueError(f"unknown scale factor {scale}; choose one of {', '.join(map(str, SCALES))}")
    if kind == "gaussian" and scale % 2:
        raise ValueError(f"degradation 'gaussian' needs an even scale factor, not {scale}: its 8 taps centre on even blocks")
    return KINDS[kind]


def _apply(x: Tensor, operation: str, scale: int, axis: int) -> Tensor:
    """A 1-D operation along `axis` (-1, -2 or -3) of x."""
    matrix = _axis_tensor(operation, x.shape[axis], scale, x.device, x.dtype)
    with _full_precision(x.device):
        if axis == -1:
            return x @ matrix.mT
        if axis == -2:
            return matrix @ x
        return (matrix @ x.flatten(-2)).unflatten(-1, x.shape[-2:])


@lru_cache(maxsize=64)
def _axis_tensor(operation: str, n: int, scale: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(axis_matrix(operation, n, scale).copy()).to(device, dtype)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Neither autocast nor TF32 may touch the degradation: it defines the problem."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed
