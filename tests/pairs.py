"""The fixed pair of cubes on which docs/tests-and-metrics.md compares libraries of indexes."""
from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

SHAPE = (31, 48, 64)
"""Bands, rows, columns."""
SCALE = 4
"""What ERGAS takes for the super-resolution factor."""


def metric_pair() -> tuple[np.ndarray, np.ndarray]:
    """A result and its ground truth, each (31, 48, 64), float32 in [0, 1], no pixel of zero norm.

    Five materials with smooth spectra and textures of 1 to 5 pixels make the ground truth. The
    result is blurred and has noise that grows along the spectrum, so bands differ in their error.
    """
    rng = np.random.default_rng(23)
    bands, height, width = SHAPE
    spectra = gaussian_filter(rng.random((5, bands)), (0, 4), mode="nearest")
    spectra = 0.05 + 0.9 * (spectra - spectra.min()) / np.ptp(spectra)
    textures = np.stack([gaussian_filter(rng.standard_normal((height, width)), size)
                         for size in (1, 2, 3, 4, 5)])
    textures /= textures.std((1, 2), keepdims=True)
    shares = np.exp(textures)
    gt = np.einsum("mb,mhw->bhw", spectra, shares / shares.sum(0))
    noise = rng.standard_normal(SHAPE) * np.linspace(0.005, 0.03, bands)[:, None, None]
    sr = gaussian_filter(gt, (0, 1, 1)) + noise
    return (np.clip(sr, 0.001, 1).astype(np.float32), gt.astype(np.float32))
