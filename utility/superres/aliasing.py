"""Whether a cube was made small without a blur: by every n-th pixel, or a kernel that is not widened.

No sensor makes such a cube. Its samples are points, so an edge of the scene lies between two of
them: a step is one pixel wide. Of a block's mean, or through a lens, a step reaches into the pixels
beside it. So the steepest steps of a cube tell, whatever the scene's texture:

    softness = mean of f - median of t / 2      f  of the steepest steps, the larger of the two
                                                   steps beside it, as a share of the step
                                                t  of more steps, the sum of the two beyond these

The median of real scenes at x4 is .7 at an MTF of .15, .45 at .5 and for MATLAB's `imresize`, .3
for means of blocks, .2 at an MTF of .8 and .08 for samples without a blur.
"""
from __future__ import annotations

import numpy as np

from utility.superres.noise import estimated_noise

SOFTEST = 0.19
"""The softness below which a cube counts as aliased; docs/own-cubes.md says what is found by it."""
STEEP, STEEPER = 0.12, 0.03
"""Shares of all steps: those of t, and those of f."""
COMPONENTS = 3
CLEAR = 30.0
"""The variance of a component in units of its noise, below which its steps are noise."""
SIDE, BANDS = 256, 48
"""Pixels of a side, and bands, that are taken of a large cube: its middle, and even steps."""
ENOUGH = 100
"""Steepest steps below which nothing can be told."""


def is_aliased(low: np.ndarray, missing: np.ndarray | None = None) -> bool:
    """Whether a cube (B, h, w) is aliased; False where that cannot be told. `missing`: see
    `softness`."""
    found = softness(low, missing)
    return found is not None and found < SOFTEST


def softness(low: np.ndarray, missing: np.ndarray | None = None) -> float | None:
    """The softness of the steepest steps of a cube (B, h, w); see the top of this file.

    `missing` (h, w) bool are pixels that nobody measured: no step near one counts. None where too
    few steps stand out of the noise.
    """
    _, height, width = low.shape
    top, left = max(0, height - SIDE) // 2, max(0, width - SIDE) // 2
    view = np.s_[top:top + SIDE, left:left + SIDE]
    cube = np.asarray(low[::-(-len(low) // BANDS)][:, *view], np.float64)
    measured = np.ones(cube.shape[1:], bool) if missing is None else ~missing[view]
    near, far = [np.empty(0)], [np.empty(0)]
    for image in _components(cube, measured):
        for plane, valid in ((image, measured), (image.T, measured.T)):
            for share, kind, found in ((STEEPER, "near", near), (STEEP, "far", far)):
                found.append(_beside(plane, valid, share)[kind])
    if sum(map(len, near)) < ENOUGH:
        return None
    return float(np.mean(np.concatenate(near)) - np.median(np.concatenate(far)) / 2)


def _components(cube: np.ndarray, measured: np.ndarray) -> list[np.ndarray]:
    """The first principal components of a cube, as images (h, w), of those that are not noise."""
    pixels = cube[:, measured]
    if not pixels.size:
        return []
    pixels = pixels - pixels.mean(1, keepdims=True)
    variances, vectors = np.linalg.eigh(pixels @ pixels.T / pixels.shape[1])
    noise = estimated_noise(np.where(measured, cube, np.nan))
    noise = np.zeros(len(cube)) if noise is None else noise
    return [np.tensordot(vector, cube, 1)
            for variance, vector in zip(variances[::-1], vectors.T[::-1], strict=True)
            if variance > CLEAR * np.square(vector * noise).sum()][:COMPONENTS]


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
    return {"near": (np.maximum(before * np.sign(step), after * np.sign(step)) / height)[steep]
            if steep.any() else np.empty(0),
            "far": ((before2 + after2) / step)[steep]}
