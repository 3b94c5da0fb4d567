"""How a low-resolution cube is made, and brought back to the high-resolution grid.

Every model is linear and separable, so each axis is one small matrix. A batch is degraded by a few
matrix products, on its own device. A matrix is the 1-D operation applied to the identity, edges
included.

| kind        | blur                                              | down               | up      |
|-------------|---------------------------------------------------|--------------------|---------|
| `mtf M[,M]` | Gaussian of a sensor's MTF, symmetric, up to 4    | one sample a block | Keys    |
|             | deviations                                        |                    |         |
| `area`      | none                                              | mean of each block | Keys    |
| `gaussian`  | Gaussian sigma 3, 8 taps about a block's centre   | one sample a block | Keys    |
| `bicubic`   | none                                              | Keys, s times wide | Keys    |
| `spatial`   | Gaussian sigma 3, 7 taps, reflect; rows, columns  | zoom 1/s           | zoom s  |
| `reference` | the same; bands, rows, columns                    | zoom 1/s           | zoom s  |

Keys is the bicubic kernel with a = -0.5, and a zoom is that of a cubic spline.

`mtf` is a real sensor. M is its modulation transfer function at the Nyquist frequency of the
low-resolution grid, for rows and for columns; instruments have .1 to .5. Its deviation is s
sqrt(-2 ln M) / pi high-resolution pixels (the model of pansharpening: Aiazzi et al., Photogramm.
Eng. Remote Sens. 72(5), 2006). The other kinds fix their width in another way. The nearest M
(`Degradation.nearest_mtf`) is .002 at x2, .22 at x4 and .72 at x8 for `gaussian`, .59 for
`bicubic`, .7 for `area`.

The first four work on the grid of a sensor: a low-resolution pixel covers a block of s x s pixels,
so input and output have the same edges on the ground. The edges of the Keys kernels are symmetric,
as those of MATLAB's `imresize` (Keys, IEEE TASSP 29(6), 1981).

`spatial` and `reference` serve comparisons with the released code of Bi-3DQRNN, which computes
`reference`. Their zoom is `scipy.ndimage.zoom(order=3)`, and three of its properties matter:
- The zoom maps the first and last sample centres onto each other. So the spacing of low-resolution
  samples is (n s - 1)/(n - 1) pixels, where n is the number of low-resolution samples. `grid` gives
  the result's place on the ground.
- That spacing depends on the image's size. So a degraded patch does not equal the same place of its
  degraded scene: away from the edges, the two agree to 31 to 33 dB PSNR (64 x 64 patches of two
  real scenes, x8). `gaussian` and `bicubic` have no such difference.
- At some sizes (32 -> 16, 256 -> 32) the library rounds the last position past the end of the axis
  and returns zero there. `reference` repeats that dark last row and column, and `dark_note` tells
  which sizes have it. `spatial` takes the last position as the end of the axis.
"""
from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from scipy import fft, ndimage
from torch import Tensor

from utility.names import DEFAULT_KIND, SCALES, STARTS, parse_mtf

STEPS = 10
"""Of back-projection, where no other number is asked for."""
BLOCK = 64
"""Rows of an operation multiplied at a time along an axis of more than 2 * BLOCK samples."""

Operations = tuple[str, ...]
Cube = TypeVar("Cube", np.ndarray, Tensor)


@dataclass(frozen=True)
class Kind:
    """The 1-D operations of a degradation, first to last; see `axis_matrix`."""

    down: Operations  # on rows and on columns
    up: Operations
    bands: Operations = ()  # on the band axis, before `down`
    # a low-resolution pixel covers a block; else the end samples' centres coincide
    block_grid: bool = True


KINDS: dict[str, Kind] = {"mtf": Kind(down=("mtf",), up=("keys_up",)),
                          "area": Kind(down=("area",), up=("keys_up",)),
                          "gaussian": Kind(down=("block_gaussian",), up=("keys_up",)),
                          "bicubic": Kind(down=("keys_down",), up=("keys_up",)),
                          "spatial": Kind(down=("blur", "zoom_down"), up=("zoom_up",),
                                          block_grid=False),
                          "reference": Kind(down=("blur", "scipy_down"), up=("scipy_up",),
                                            bands=("blur",), block_grid=False)}


@dataclass(frozen=True)
class Degradation:
    """A linear, separable way down by a scale factor, D, and the way up, U. Cubes are
    (..., B, H, W), floating point.

    Attributes:
        scale: 2, 3, 4 or 8 (not 3 for `gaussian`, whose 8 taps need an even block).
        kind: one of `KINDS`.
        mtf: of the kind `mtf`, on rows and on columns: above 0 and below 1.

    Raises ValueError: an unknown kind or scale, an MTF outside (0, 1), or a kind with an MTF that
    has none.

    Example:
        >>> Degradation(4, "mtf", (0.3, 0.3)).round(torch.rand(31, 64, 64)).shape
        torch.Size([31, 64, 64])
    """

    scale: int
    kind: str = DEFAULT_KIND
    mtf: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown degradation {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.scale not in SCALES:
            raise ValueError(
                f"unknown scale factor {self.scale}; choose one of {', '.join(map(str, SCALES))}")
        if self.kind == "gaussian" and self.scale % 2:
            raise ValueError("degradation 'gaussian' needs an even scale factor, not "
                             f"{self.scale}: its 8 taps centre on even blocks")
        if (self.kind == "mtf") != (self.mtf is not None):
            raise ValueError("degradation 'mtf' needs the sensor's MTF, such as 'mtf 0.3'"
                             if self.mtf is None
                             else f"degradation {self.kind!r} has a blur of its own, and takes no "
                             "MTF")
        if self.mtf is not None and not all(0 < m < 1 for m in self.mtf):
            raise ValueError(f"an MTF of {', '.join(f'{m:g}' for m in self.mtf)} was asked for; "
                             "give a number above 0 and below 1, such as 0.3")

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, scale: int, name: str) -> Degradation:
        """From a name as `name` gives it: a kind, or `mtf M`, or `mtf M,M` (rows, columns). Raises
        ValueError."""
        kind, _, numbers = name.partition(" ")
        if not numbers:
            return cls(scale, kind)
        return cls(scale, kind, parse_mtf(numbers))

    @property
    def name(self) -> str:
        """The kind, with its MTF: what checkpoints and metrics.json hold."""
        if self.mtf is None:
            return self.kind
        return f"{self.kind} {','.join(f'{m:g}' for m in dict.fromkeys(self.mtf))}"

    @property
    def block_grid(self) -> bool:
        """Whether a low-resolution pixel covers s x s pixels; else the end centres coincide."""
        return KINDS[self.kind].block_grid

    @property
    def up_operations(self) -> Operations:
        """On rows and on columns; see `axis_rows`."""
        return KINDS[self.kind].up

    @property
    def down_operations(self) -> tuple[Operations, Operations]:
        """On rows, and on columns; see `axis_rows`."""
        down = KINDS[self.kind].down
        if self.mtf is None:
            return down, down
        return (f"mtf {self.mtf[0]!r}",), (f"mtf {self.mtf[1]!r}",)

    @property
    def band_operations(self) -> Operations:
        """On the band axis, before `down_operations`; see `axis_rows`."""
        return KINDS[self.kind].bands

    @property
    def nearest_mtf(self) -> tuple[float, float]:
        """M of the kind `mtf` whose response up to the low grid's Nyquist frequency is nearest: of
        rows, of columns."""
        if self.mtf:
            return self.mtf
        rows, columns = (_nearest_mtf(operations, self.scale)
                         for operations in self.down_operations)
        return rows, columns

    def down(self, x: Tensor) -> Tensor:
        """D x, the true low-resolution cube: (..., B, H, W) -> (..., B, H/s, W/s). Raises
        ValueError: H or W is not a multiple of the scale factor."""
        height, width = x.shape[-2:]
        if height % self.scale or width % self.scale:
            raise ValueError(f"a {height} x {width} image cannot be degraded by x{self.scale}: "
                             f"crop it to multiples of {self.scale}")
        return self._image(_along(x, self.band_operations, self.scale, -3), *self.down_operations)

    def up(self, y: Tensor) -> Tensor:
        """U y, the plain interpolation: (..., B, h, w) -> (..., B, h*s, w*s)."""
        return self._image(y, self.up_operations, self.up_operations)

    def round(self, x: Tensor) -> Tensor:
        """U D x: low resolution and back. Raises as `down`."""
        return self.up(self.down(x))

    def round_trip(self, y: Tensor) -> Tensor:
        """D U y, without the image between: (..., B, h, w) -> the same."""
        y = _along(y, self.band_operations, self.scale, -3)
        return self._image(y, *(self.up_operations + down for down in self.down_operations))

    def prefilter(self, low: Tensor, steps: int = STEPS, noise: Tensor | None = None,
                  counted: Tensor | None = None) -> Tensor:
        """The low-resolution cube z_N whose `up` is the back-projection of `low` from its
        interpolation.

        Every x_k of `backproject` is U z_k, with z_0 = y and z_{k+1} = z_k + (y - D U z_k). So the
        iteration stays on the low grid, and any window of x_N is the same window of U z_N. From
        another image, x_N = x_0 + U z with z the prefiltered y - D x_0 after N - 1 steps. `low`
        (..., B, h, w) -> the same.

        `noise` is the standard deviation of each band's noise, (..., B). A band's iteration ends
        where it agrees with y to within the noise (the discrepancy principle: Morozov, Soviet Math.
        Dokl. 7, 1966): what is left to explain is noise, and more steps would amplify it. Of
        `counted` (h, w) bool are the pixels that tell how well it agrees; None is all.
        """
        if self.block_grid and (noise is None or counted is None):
            return prefiltered(low, self.kept(low), steps, noise)
        z = low
        for _ in range(steps):
            error = low - self.round_trip(z)
            if noise is not None:
                error = error * _beyond(error, noise, counted)
            z = z + error
        return z

    def kept(self, low: Tensor) -> Tensor:
        """What a step of back-projection leaves of each frequency of an error, (h, w), on the grid
        of `low` (..., h, w). Of the kinds with a block grid D U is a symmetric filter with
        symmetric edges, and the cosines of the DCT-II are its eigenvectors."""
        gains = [_gains(self.up_operations + down, n, self.scale)
                 for down, n in zip(self.down_operations, low.shape[-2:], strict=True)]
        rows, columns = (torch.from_numpy(gain).to(low) for gain in gains)
        return 1 - rows[:, None] * columns

    def backproject(self, low: Tensor, steps: int = STEPS, image: Tensor | None = None,
                    noise: Tensor | None = None) -> Tensor:
        """Iterative back-projection (Irani and Peleg, CVGIP 53(3), 1991): x_{k+1} = x_k +
        U(y - D x_k), with no training.

        Back-projection makes an image that agrees with its low-resolution cube. With noise, or a
        blur other than the true one, it amplifies errors.

        Args:
            low: y, (..., B, h, w).
            steps: N, 0 or more.
            image: x_0, (..., B, h*s, w*s); None is U y.
            noise: see `prefilter`; from U y alone.

        Returns: x_N, (..., B, h*s, w*s).
        """
        if image is None:
            return self.up(self.prefilter(low, steps, noise))
        if steps == 0:
            return image
        return image + self.up(self.prefilter(low - self.down(image), steps - 1))

    def start(self, low: Tensor, start: str, noise: Tensor | None = None) -> Tensor:
        """What a network is given, `low` (..., B, h, w) at high resolution: (..., B, h*s, w*s).

        `start` is `interpolation`, the published way, or `backprojection`, with `noise` as
        `prefilter` takes it. Raises ValueError: another start.
        """
        if start not in STARTS:
            raise ValueError(f"unknown start {start!r}; choose one of {', '.join(STARTS)}")
        return self.up(low) if start == "interpolation" else self.backproject(low, noise=noise)

    def grid(self, n: int) -> tuple[float, float]:
        """Where `up` puts its samples along an axis of n low-resolution pixels, in low-resolution
        pixels.

        Returns: (size, origin): a high-resolution pixel's size, and the outer edge of the first
        one, measured from the
            outer edge of the first low-resolution pixel. A block grid has (1/s, 0).
        """
        if self.block_grid or n == 1:
            return 1 / self.scale, 0.0
        size = (n - 1) / (n * self.scale - 1)
        return size, 0.5 - size / 2

    def nearest(self, n: int) -> np.ndarray:
        """The low-resolution pixel, of n, in which each of the n * s samples lies: (n * s,)."""
        size, origin = self.grid(n)
        return np.clip(np.floor(origin + (np.arange(n * self.scale) + 0.5) * size), 0,
                       n - 1).astype(int)

    def touched(self, pixels: np.ndarray) -> np.ndarray:
        """The low-resolution pixels that `down` makes of one at least of the given ones: (H, W)
        bool -> (H/s, W/s)."""
        for operations in self.down_operations:  # rows, then columns
            pixels = _reached(operations, self.scale, pixels).T
        return pixels

    @property
    def reach(self) -> tuple[int, int]:
        """How many low-resolution pixels from a block of high-resolution ones `down` takes it in:
        rows, columns."""
        far = []
        for operations in self.down_operations:
            block = np.arange(41 * self.scale)[:, None] // self.scale == 20
            far.append(
                int(np.abs(np.flatnonzero(_reached(operations, self.scale, block)) - 20).max()))
        return far[0], far[1]

    def unseen(self, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is not known of a degraded cube of which the pixels `missing` (H, W) bool were not
        measured.

        Returns: (h, w), its pixels that no measured pixels alone made; (H, W), the pixels that no
        result can be compared at:
            those missing, and those that lie in such a low-resolution pixel.
        """
        lost = self.touched(missing)
        return lost, missing | lost[np.ix_(*(self.nearest(n) for n in lost.shape))]

    def is_dark(self, n: int) -> bool:
        """Whether the last of n high-resolution samples, or of their n / s low-resolution ones, is
        left black."""
        low = n // self.scale
        return self.kind == "reference" and (_goes_dark(n, low) or _goes_dark(low, n))

    def dark_note(self, height: int, width: int) -> str | None:
        """A sentence on the black last row or column of an image of this size, with the nearest
        sizes free of it."""
        dark = {name: n for name, n in (("row", height), ("column", width)) if self.is_dark(n)}
        if not dark:
            return None
        near = []
        for n in dict.fromkeys(dark.values()):
            sizes = (range(n - self.scale, 0, -self.scale),
                     range(n + self.scale, 2 * n + 2, self.scale))
            free = [next((str(m) for m in side if not self.is_dark(m)), "") for side in sizes]
            near.append(f"{' or '.join(filter(None, free))} instead of {n}")
        return (f"degradation {self.kind} at scale factor {self.scale} leaves the last "
                f"{' and '.join(dark)} of {height} x {width} images black, as scipy's zoom does at "
                f"this size; the nearest sizes without that are {', '.join(near)} pixels")

    def _image(self, x: Tensor, rows: Operations, columns: Operations) -> Tensor:
        return _along(_along(x, rows, self.scale, -2), columns, self.scale, -1)


WEIGHT = 1e-6
"""The weight above which a pixel is made of another one: below are a spline's endless tails."""


def _reached(operations: Operations, scale: int, pixels: np.ndarray) -> np.ndarray:
    """(n, m) bool -> (n / scale, m): True where operations along the first axis take in a True."""
    count, parts = len(pixels) // scale, []
    for first in range(0, count, BLOCK):
        start, matrix = axis_rows(operations, len(pixels), scale, first, min(first + BLOCK, count))
        parts.append(reached(matrix, pixels[start:start + matrix.shape[1]]))
    return np.concatenate(parts)


def reached(matrix: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Which rows of a product with `pixels` (n, m) bool take in a True: (rows, n) @ (n, m)."""
    return (np.abs(matrix) > WEIGHT).astype(np.float32) @ pixels.astype(np.float32) > 0


def prefiltered(low: Tensor, kept: Tensor, steps: int = STEPS,
                noise: Tensor | None = None) -> Tensor:
    """`Degradation.prefilter`, frequency by frequency, where steps leave `kept` of an error
    (see `Degradation.kept`), (h, w), or (N, 1, h, w) of a batch.

    The transform is orthonormal and keeps the norm of an error.
    """
    if noise is None:
        factor = torch.ones_like(kept)
        for _ in range(steps):
            factor = 1 + factor * kept
        return _cosines(_cosines(low) * factor, inverse=True)
    error = _cosines(low)
    z = error.clone()
    for _ in range(steps):
        far = _beyond(error.mul_(kept), noise)
        z += error if far.all() else error.mul_(far)
    return _cosines(z, inverse=True)


def degrade(x: Tensor, scale: int, kind: str) -> Tensor:
    """`Degradation.round`: the plain interpolation of the low-resolution cube, on the grid of `x`.

    Args:
        x: (..., B, H, W), floating point, H and W multiples of `scale`.
        scale: 2, 3, 4 or 8.
        kind: a name as `Degradation.of` reads it, such as `gaussian` or `mtf 0.3`.

    Returns: shape, type and device of `x`. Raises ValueError: as `Degradation` and its `down`.

    Example:
        >>> degrade(torch.rand(2, 1, 31, 64, 64), 4, "gaussian").shape
        torch.Size([2, 1, 31, 64, 64])
    """
    return Degradation.of(scale, kind).round(x)


def downsample(x: Tensor, scale: int, kind: str) -> Tensor:
    """`Degradation.down`: (..., B, H, W) -> (..., B, H/s, W/s). Raises as `degrade`."""
    return Degradation.of(scale, kind).down(x)


def upsample(x: Tensor, scale: int, kind: str) -> Tensor:
    """`Degradation.up`: (..., B, h, w) -> (..., B, h*s, w*s). Raises as `degrade`."""
    return Degradation.of(scale, kind).up(x)


def backproject(low: Tensor, scale: int, kind: str, steps: int = STEPS,
                image: Tensor | None = None) -> Tensor:
    """`Degradation.backproject`. Raises as `degrade`."""
    return Degradation.of(scale, kind).backproject(low, steps, image)


def start_image(low: Tensor, scale: int, kind: str, start: str) -> Tensor:
    """`Degradation.start`. Raises as `degrade`, or another start."""
    return Degradation.of(scale, kind).start(low, start)


def grid(n: int, scale: int, kind: str) -> tuple[float, float]:
    """`Degradation.grid`."""
    return Degradation.of(scale, kind).grid(n)


def dark_note(height: int, width: int, scale: int, kind: str) -> str | None:
    """`Degradation.dark_note`."""
    return Degradation.of(scale, kind).dark_note(height, width)


def add_noise(low: Cube, sigma: float, seed: int, *key: int | str, before: int = 0) -> Cube:
    """`low` with white Gaussian noise of standard deviation `sigma`, in the units of `low`.

    The noise depends on `seed`, `key` (the image's name, or the step and patch) and the shape
    alone. It is the same for arrays and tensors, on every device. Sigma 0 returns `low` itself. A
    part of a batch gets its part of the batch's noise, where `before` counts the images before the
    part. Raises ValueError: sigma is negative or not finite.
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"noise of standard deviation {sigma} was asked for; give 0 or more")
    if sigma == 0:
        return low
    shape = (low.shape[0] + before, *low.shape[1:])
    noise = random(seed, *key).standard_normal(shape, dtype=np.float32)[before:] * np.float32(sigma)
    if isinstance(low, Tensor):
        return low + torch.from_numpy(noise).to(low.device, low.dtype)
    return low + noise.astype(low.dtype)


def random(seed: int, *key: int | str) -> np.random.Generator:
    """A generator whose draws depend on the seed and the key alone."""
    return np.random.default_rng(
        [seed, *(zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key)])


def crop_to_multiple(cube: Cube, multiple: int) -> Cube:
    """(..., H, W) without its last rows and columns, so that both are multiples of `multiple`."""
    height, width = cube.shape[-2:]
    return cube[..., : height - height % multiple, : width - width % multiple]


@lru_cache(maxsize=512)
def axis_matrix(operations: Operations, n: int, scale: int) -> np.ndarray:
    """1-D operations on n samples, one after the other, as a read-only float64 matrix (n_out, n).

    Args:
        operations: of `blur`, `zoom_down`, `zoom_up`, `scipy_down`, `scipy_up` (see `zoom_matrix`),
            `block_gaussian`, `mtf M`, `area`, `keys_down`, `keys_up`; none is the identity.
    """
    *before, last = operations or (None,)
    if before:
        inner = axis_matrix(tuple(before), n, scale)
        matrix = axis_matrix((last,), len(inner), scale) @ inner
    elif last is None:
        matrix = np.eye(n)
    elif last == "blur":
        matrix = ndimage.gaussian_filter1d(np.eye(n), sigma=3.0, radius=3, mode="reflect", axis=0)
    elif last in ZOOMS:
        matrix = zoom_matrix(n, _length(last, n, scale), dark=last.startswith("scipy"))
    else:
        matrix = _scatter(*_taps(last, np.arange(_length(last, n, scale)), scale), n)
    matrix.setflags(write=False)
    return matrix


ZOOMS = ("zoom_down", "zoom_up", "scipy_down", "scipy_up")


def zoom_matrix(n_in: int, n_out: int, dark: bool = False) -> np.ndarray:
    """`scipy.ndimage.zoom(order=3)` of `n_in` samples to `n_out`: float64 (n_out, n_in).

    Both grids share their first and last samples. At some sizes scipy rounds the last position past
    the end of the axis and returns zero there. The last position is the end of the axis here,
    unless `dark` repeats scipy.
    """
    if n_in == 1:
        return np.ones((n_out, 1))
    matrix = ndimage.zoom(np.eye(n_in), (n_out / n_in, 1), order=3)
    if not dark and n_out > 1 and not matrix[-1].any():
        matrix[-1, -1] = 1
    return matrix


@lru_cache(maxsize=4096)
def _goes_dark(n_in: int, n_out: int) -> bool:
    return n_in > 1 and n_out > 1 and ndimage.zoom(np.ones(n_in), n_out / n_in, order=3)[-1] == 0


def axis_rows(operations: Operations, n: int, scale: int, first: int,
              last: int) -> tuple[int, np.ndarray]:
    """Rows first .. last of `axis_matrix(operations, n, scale)`, without ever making the rest.

    Returns: (start, matrix): the rows without the zero columns outside start .. start +
    matrix.shape[1]. Spline weights below
        1e-17 count as zero.
    """
    if not operations:
        return first, np.eye(last - first)
    *before, operation = operations
    if before:
        middle = n
        for name in before:
            middle = _length(name, middle, scale)
        start, outer = axis_rows((operation,), middle, scale, first, last)
        start, inner = axis_rows(tuple(before), n, scale, start, start + outer.shape[1])
        return start, outer @ inner
    if operation == "blur":
        # three samples of halo, and three more to keep its edges out
        start, stop = max(first - 6, 0), min(last + 6, n)
        matrix = axis_matrix(("blur",), stop - start, scale)
        return start, matrix[first - start:last - start]
    if operation in ZOOMS:
        return zoom_rows(n, _length(operation, n, scale), first, last,
                         dark=operation.startswith("scipy"))
    matrix = _scatter(*_taps(operation, np.arange(first, last), scale), n)
    used = np.flatnonzero(matrix.any(axis=0))
    return int(used[0]), matrix[:, used[0]:used[-1] + 1]


def _length(operation: str, n: int, scale: int) -> int:
    """Samples after an operation on n samples."""
    return n if operation == "blur" else n * scale if operation.endswith("_up") else n // scale


def zoom_rows(n_in: int, n_out: int, first: int, last: int,
              dark: bool = False) -> tuple[int, np.ndarray]:
    """Rows of `zoom_matrix`: cubic B-spline weights times the spline filter's response, which dies
    as .268 ** distance."""
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
        weight = np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2,
                          (2 - distance) ** 3 / 6)
        matrix += weight[:, None] * response[index]
    if dark and last == n_out and _goes_dark(n_in, n_out):
        matrix[-1] = 0
    return int(start), matrix


def _taps(operation: str, j: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Of output samples j (m,): positions (m, taps), unfolded at the edges, and weights."""
    if operation == "block_gaussian":
        offsets = np.arange(8) - 3.5
        weights = np.exp(-0.5 * (offsets / 3.0) ** 2)
        positions = np.rint(scale * j[:, None] + (scale - 1) / 2 + offsets).astype(int)
        return positions, np.broadcast_to(weights / weights.sum(), positions.shape)
    if operation == "area":
        positions = scale * j[:, None] + np.arange(scale)
        return positions, np.full(positions.shape, 1 / scale)
    if operation.startswith("mtf "):
        return _gaussian_taps(float(operation[4:]), j, scale)
    if operation not in ("keys_down", "keys_up"):
        raise ValueError(f"unknown operation {operation!r}")
    # As MATLAB's `imresize`: Keys' cubic with a = -0.5, stretched by `widen`, weights summing to
    # one.
    step, widen = (float(scale), float(scale)) if operation == "keys_down" else (1 / scale, 1.0)
    centres = (j + 0.5) * step - 0.5
    reach = math.ceil(2 * widen) + 1
    positions = np.floor(centres).astype(int)[:, None] + np.arange(-reach, reach + 1)
    distance = np.abs(centres[:, None] - positions) / widen
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    return positions, weights / weights.sum(axis=1, keepdims=True)


def _gaussian_taps(mtf: float, j: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """As `_taps`: a Gaussian about each block's centre over +-4 deviations, of sum one."""
    sigma = scale * math.sqrt(-2 * math.log(mtf)) / math.pi
    centre = (scale - 1) / 2
    reach = max(4 * sigma, 0.5)  # of an even block the nearest samples are half a pixel off
    offsets = np.arange(math.ceil(centre - reach), math.floor(centre + reach) + 1)
    weights = np.exp(-0.5 * ((offsets - centre) / sigma) ** 2)
    positions = scale * j[:, None] + offsets
    return positions, np.broadcast_to(weights / weights.sum(), positions.shape)


def _scatter(positions: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """Rows of taps to a matrix; taps outside 0 .. n-1 fold back (d c b a | a b c d)."""
    folded = np.mod(positions, 2 * n)
    folded = np.where(folded < n, folded, 2 * n - 1 - folded)
    matrix = np.zeros((len(positions), n))
    np.add.at(matrix, (np.arange(len(positions))[:, None], folded), weights)
    return matrix


@lru_cache(maxsize=256)
def _nearest_mtf(operations: Operations, scale: int) -> float:
    """See `Degradation.nearest_mtf`; of the middle row of a long axis."""
    row = axis_matrix(operations, 32 * scale, scale)[16]
    frequency = np.linspace(0, 1, 33)  # 1 is the Nyquist frequency of the low grid
    response = abs(np.exp(-1j * np.pi / scale * np.outer(frequency, np.arange(len(row)))) @ row)
    # A Gaussian's response is M ** frequency^2.
    from scipy.optimize import minimize_scalar  # takes as long to import as the rest of this file

    found = minimize_scalar(lambda m: float(np.sum((m ** frequency**2 - response) ** 2)),
                            bounds=(1e-4, 1), method="bounded")
    return float(found.x)


def _along(x: Tensor, operations: Operations, scale: int, axis: int) -> Tensor:
    """1-D operations along `axis` (-1, -2 or -3) of x."""
    if not operations:
        return x
    n = x.shape[axis]
    with full_precision(x.device):
        if n <= 2 * BLOCK:
            return _multiplied(_axis_tensor(operations, n, scale, None, x.device, x.dtype)[1], x,
                               axis)
        count, parts = n, []
        for name in operations:
            count = _length(name, count, scale)
        for first in range(0, count, BLOCK):
            rows = (first, min(first + BLOCK, count))
            start, matrix = _axis_tensor(operations, n, scale, rows, x.device, x.dtype)
            parts.append(_multiplied(matrix, x.narrow(axis, start, matrix.shape[1]), axis))
        return torch.cat(parts, axis)


def _multiplied(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    if axis == -1:
        return x @ matrix.mT
    if axis == -2:
        return matrix @ x
    return (matrix @ x.flatten(-2)).unflatten(-1, x.shape[-2:])


def _beyond(error: Tensor, noise: Tensor, counted: Tensor | None = None) -> Tensor:
    """Of which bands (..., B, h, w) the error is larger than the noise (..., B), at the pixels
    `counted` (h, w) where these are given: (..., B, 1, 1)."""
    size = error.shape[-2] * error.shape[-1]
    if counted is not None:
        error, size = error * counted, counted.sum()
    return (torch.linalg.vector_norm(error, dim=(-2, -1)) > noise * size ** 0.5)[..., None, None]


@lru_cache(maxsize=512)
def _gains(operations: Operations, n: int, scale: int) -> np.ndarray:
    """What a symmetric filter with symmetric edges makes of each cosine of the DCT-II of n samples:
    (n,). The filter is read from a sample that no edge reaches."""
    middle = 128
    start, row = axis_rows(operations, 2 * middle, scale, middle, middle + 1)
    distance = np.arange(start, start + row.shape[1]) - middle
    return np.cos(np.pi / n * np.outer(np.arange(n), distance)) @ row[0]


def _cosines(x: Tensor, inverse: bool = False) -> Tensor:
    """The orthonormal DCT-II of rows and columns, or its inverse: (..., h, w) -> the same."""
    if (x.device.type == "cpu" and max(x.shape[-2:]) > 2 * BLOCK and not x.requires_grad
            and x.dtype in (torch.float32, torch.float64)):
        transform = fft.idctn if inverse else fft.dctn
        return torch.from_numpy(
            transform(x.numpy(), axes=(-2, -1), norm="ortho", workers=torch.get_num_threads()))
    with full_precision(x.device):
        for axis in (-2, -1):
            matrix = _cosine_matrix(x.shape[axis], x.device, x.dtype)
            x = _multiplied(matrix.mT if inverse else matrix, x, axis)
    return x


@lru_cache(maxsize=64)
def _cosine_matrix(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    matrix = fft.dct(np.eye(n), axis=0, norm="ortho")
    return torch.from_numpy(matrix).to(device, dtype)


@lru_cache(maxsize=512)
def _axis_tensor(operations: Operations, n: int, scale: int, rows: tuple[int, int] | None,
                 device: torch.device, dtype: torch.dtype) -> tuple[int, Tensor]:
    """`axis_rows` of those rows, or (0, `axis_matrix`)."""
    start, matrix = (axis_rows(operations, n, scale, *rows) if rows
                     else (0, axis_matrix(operations, n, scale).copy()))
    return start, torch.from_numpy(matrix).to(device, dtype)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
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
