"""Cutting a scene into training patches: windows over the scene and its smaller copies."""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from utility.datasets.augment import dihedral
from utility.degradation import reached, zoom_matrix, zoom_rows

AT_ONCE = 32
"""Rows or columns of a zoomed copy that are computed at a time."""


def extract_patches(cube: np.ndarray, patch: int, strides: Sequence[int], zooms: Sequence[float],
                    filled: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Patches of `cube` at each zoom, a row of windows at a time.

    Args:
        cube: (B, H, W) float32.
        patch: side of a patch in pixels.
        strides: step between the windows, one for each zoom.
        zooms: spatial scales; a copy in which no patch fits gives none.
        filled: (H, W) bool, pixels whose values nobody measured; a patch that is made of one of
            them is left out.

    Yields: arrays (n, B, patch, patch), C order, of the cube's type: zoom by zoom, top to bottom,
    left to right.
    """
    height, width = cube.shape[1:]
    for zoom, stride in zip(zooms, strides, strict=True):
        # As scipy.ndimage.zoom rounds; known before the copy is made.
        if min(round(height * zoom), round(width * zoom)) < patch:
            continue
        windows = sliding_window_view(zoomed(cube, zoom), (patch, patch), axis=(1, 2))[
            :, ::stride, ::stride]
        whole = (np.ones(windows.shape[1:3], bool) if filled is None
                 else _free(filled, zoom, patch)[::stride, ::stride])
        for row, measured in enumerate(whole):
            if measured.any():
                yield np.ascontiguousarray(windows[:, row, measured].swapaxes(0, 1))


def places(size: tuple[int, int], patch: int, strides: Sequence[int], zooms: Sequence[float],
           filled: np.ndarray | None = None) -> np.ndarray:
    """The pixels that each patch of `extract_patches` covers: (n, 4), top, left, bottom, right."""
    found = [np.empty((0, 4), int)]
    for zoom, stride in zip(zooms, strides, strict=True):
        last = [round(n * zoom) - patch for n in size]
        if min(last) < 0:
            continue
        free = (
            np.ones([n + 1 for n in last], bool) if filled is None else _free(filled, zoom, patch))
        first = np.argwhere(free[::stride, ::stride]) * stride
        found.append(np.concatenate([np.floor(first / zoom), np.ceil((first + patch) / zoom)],
                                    1).astype(int))
    return np.concatenate(found)


def _free(filled: np.ndarray, zoom: float, patch: int) -> np.ndarray:
    """Whether the window at each place of a copy at `zoom` has none of the pixels `filled`."""
    if zoom != 1:
        for n in filled.shape:  # rows, then columns
            filled = reached(zoom_matrix(n, round(n * zoom)), filled).T
    sums = np.pad(filled.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return (sums[patch:, patch:] - sums[:-patch, patch:] - sums[patch:, :-patch]
            + sums[:-patch, :-patch] == 0)


def count_patches(size: tuple[int, int], patch: int, strides: Sequence[int],
                  zooms: Sequence[float]) -> int:
    """How many patches `extract_patches` gives for a scene of `size` (height, width)."""
    count = 0
    for zoom, stride in zip(zooms, strides, strict=True):
        count += math.prod(max(0, (round(n * zoom) - patch) // stride + 1) for n in size)
    return count


def zoomed(cube: np.ndarray, zoom: float) -> np.ndarray:
    """`scipy.ndimage.zoom(cube, (1, zoom, zoom), order=3)`: (B, round(H zoom), round(W zoom)).

    The cubic spline is linear and separable, so each band is two matrix products, of a few rows at
    a time: a sample depends on few others. In float32 they are within 1e-5 of the library for
    values in [0, 1].
    """
    if zoom == 1:
        return cube
    bands, height, width = cube.shape
    lower, narrower = round(height * zoom), round(width * zoom)
    rows = np.empty((bands, lower, width), cube.dtype)
    for first in range(0, lower, AT_ONCE):
        start, matrix = zoom_rows(height, lower, first, min(first + AT_ONCE, lower))
        np.matmul(matrix.astype(cube.dtype), cube[:, start:start + matrix.shape[1]],
                  out=rows[:, first:first + len(matrix)])
    small = np.empty((bands, lower, narrower), cube.dtype)
    for first in range(0, narrower, AT_ONCE):
        start, matrix = zoom_rows(width, narrower, first, min(first + AT_ONCE, narrower))
        small[..., first:first + len(matrix)] = rows[...,
                                                     start:start
                                                     + matrix.shape[1]] @ matrix.T.astype(
                                                         cube.dtype)
    return small


def bake(patches: np.ndarray, copies: int, seed: int, first: int) -> np.ndarray:
    """`copies` variants of each patch, itself first, no two of the same rotation and flip.

    Args:
        patches: (n, B, p, p), square.
        copies: 1 to 8.
        seed, first: the draw for patch i of these depends on `seed` and `first` + i only.

    Returns: (n * copies, B, p, p), the variants of a patch side by side.
    """
    baked = np.empty((len(patches), copies, *patches.shape[1:]), patches.dtype)
    for i, patch in enumerate(patches):
        others = 1 + np.random.default_rng((seed, first + i)).permutation(7)
        for copy, variant in enumerate([0, *others[: copies - 1]]):
            baked[i, copy] = dihedral(patch, int(variant) & 3, int(variant) >= 4)
    return baked.reshape(-1, *patches.shape[1:])
