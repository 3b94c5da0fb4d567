"""Whether a cube was made small without a blur: by every n-th pixel, or a kernel not widened.

No sensor makes such a cube. Its samples are points, so an edge of the scene lies between two of
them: a step is one pixel wide. Of a block's mean, or through a lens, a step reaches into the pixels
beside it. So the steepest steps of a cube tell, whatever the scene's texture:

    softness = mean of f - median of t / 2      f  of the steepest steps, the larger of the two
                                                   steps beside it, as a share of the step
                                                t  of more steps, the sum of the two beyond these

The median of 16 real scenes at x4 is .7 at an MTF of .15, .45 at .5 and for MATLAB's `imresize`,
.3 for means of blocks, .2 at an MTF of .8 and .08 for samples without a blur.
"""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from utility.names import ANY
from utility.superres.noise import estimated_noise
from utility.superres.problem import Problem

ALIASED, SHARP = 0.18, 0.26
"""The softness below which a cube counts as aliased, and as sharp: between the two it may be
either. docs/own-cubes.md says what is found by them."""
AT_2 = (0.2, 0.3)
"""Likewise at x2: samples lie so close that the scene's own lens has blurred a step over two of
them, where nothing else has."""
SHARP_MTF = 0.95
"""Taken for a sharp cube: the network then is above the interpolation for an MTF of .8, and little
below it, if at all, for a cube that is aliased all the same."""
STEEP, STEEPER = 0.12, 0.03
"""Shares of all steps: those of t, and those of f."""
COMPONENTS = 3
CLEAR = 3.0
"""The variance of a component in units of its noise, below which its steps are noise."""
SIDE, BANDS = 256, 48
"""Pixels of a side, and bands, that are taken of a large cube: its middle, and even steps."""
ENOUGH = 30
"""Steepest steps below which nothing can be told."""


def for_aliasing(problem: Problem, low: np.ndarray, missing: np.ndarray | None = None) -> Problem:
    """The problem for a cube (B, h, w) that may be aliased: of one that is, the interpolation takes
    the place of the network; of a sharp one, a sharp sensor that of the assumed one.

    A network removes a blur that an aliased cube does not have: it is below the interpolation. It
    stays where the blur is known, and where `Problem.aliased` asks nothing. `missing`: see
    `softness`.
    """
    if problem.aliased is not None:
        return problem
    problem = replace(problem, aliased=False)
    if problem.method != "network" or problem.mtf_known:
        return problem
    found = softness(low, missing)
    aliased, sharp = limits(problem.scale)
    if found is None or found >= sharp:
        return problem
    if found >= aliased:
        return replace(problem, sharp=True, degradation=f"{ANY} {SHARP_MTF}", mtf_known=True)
    return replace(problem, aliased=True, method="interpolation", backproject=0,
                   self_ensemble=False, bandwise=False)


def limits(scale: int) -> tuple[float, float]:
    """The softness below which a cube counts as aliased, and as sharp, at a scale factor."""
    return AT_2 if scale == 2 else (ALIASED, SHARP)


def softness(low: np.ndarray, missing: np.ndarray | None = None) -> float | None:
    """The softness of the steepest steps of a cube (B, h, w); see the top of this file.

    `missing` (h, w) bool are pixels that nobody measured: no step near one counts. None where too
    few steps stand out of the noise.
    """
    view = middle(low.shape)
    cube = np.asarray(low[::-(-len(low) // BANDS), *view], np.float64)
    measured = np.ones(cube.shape[1:], bool) if missing is None else ~missing[view]
    near, far = [np.empty(0)], [np.empty(0)]
    for image in _components(cube, measured):
        for plane, valid in ((image, measured), (image.T, measured.T)):
            for share, kind, found in ((STEEPER, "near", near), (STEEP, "far", far)):
                found.append(_beside(plane, valid, share)[kind])
    if sum(map(len, near)) < ENOUGH:
        return None
    return float(np.mean(np.concatenate(near)) - np.median(np.concatenate(far)) / 2)


def middle(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of a cube of this shape (B, h, w) that are looked at."""
    top, left = (max(0, length - SIDE) // 2 for length in shape[1:])
    return slice(top, top + SIDE), slice(left, left + SIDE)


def _components(cube: np.ndarray, measured: np.ndarray) -> list[np.ndarray]:
    """The first principal components of a cube, as images (h, w), of those that are not noise."""
    pixels = cube[:, measured]
    if not pixels.size:
        return []
    pixels = pixels - pixels.mean(1, keepdims=True)
    variances, vectors = np.linalg.eigh(pixels @ pixels.T / pixels.shape[1])
    noise = estimated_noise(cube, ~measured)
    noise = np.zeros(len(cube)) if noise is None else noise
    of_noise = np.square(vectors * noise[:, None]).sum(0)
    kept = np.flatnonzero(variances > CLEAR * of_noise)[::-1][:COMPONENTS]
    return [np.tensordot(vectors[:, k], cube, 1) for k in kept]


def _beside(image: np.ndarray, measured: np.ndarray, share: float) -> dict[str, np.ndarray]:
    """f and t of the steepest steps along the rows of an image: local maxima among its steepest
    `share`."""
    steps = np.diff(image)
    count = steps.shape[1] - 4
    if count < 1:
        return {"near": np.empty(0), "far": np.empty(0)}
    before2, before, step, after, after2 = (steps[:, n:n + count] for n in range(5))
    height = np.abs(step)
    known = np.lib.stride_tricks.sliding_window_view(measured, 6, axis=1).all(-1)
    steep = (height >= np.abs(before)) & (height >= np.abs(after)) & known & (height > 0)
    if known.any():
        steep &= height >= np.quantile(height[known], 1 - share)
    before2, before, step, after, after2 = (
        one[steep] for one in (before2, before, step, after, after2))
    return {"near": np.maximum(before / step, after / step), "far": (before2 + after2) / step}
