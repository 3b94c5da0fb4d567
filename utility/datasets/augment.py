"""Rotations and flips of a patch, reversals and windows of bands, by (seed, epoch, index).

The draw depends on nothing else, so a training that is resumed, or has other workers, sees the same
patches.
"""
from __future__ import annotations

import numpy as np

MODES = ("none", "spatial", "spectral", "reference")


def augment(patch: np.ndarray, mode: str, seed: int, epoch: int, index: int) -> np.ndarray:
    """One of the variants of `patch`, in C order.

    Args:
        patch: (B, h, w).
        mode: `none`; `spatial`: one of the 8 rotations and flips; `spectral`: besides, the bands
            reversed with p = 0.5; `reference`: the released code's, 4 rotations whose "flip"
            reverses the bands. A patch that is not square keeps its shape: it is rotated by 180
            degrees only.
        seed, epoch, index: of the run, the pass over the data and the patch; whole numbers from 0.
    """
    if mode not in MODES:
        raise ValueError(f"unknown augmentation {mode!r}; choose one of {', '.join(MODES)}")
    if mode == "none":
        return np.ascontiguousarray(patch)
    # 32 of them, all equally likely
    bits = int(np.random.SeedSequence((seed, epoch, index)).generate_state(1)[0])
    turns, flip, reverse = bits & 3, bool(bits & 4), bool(bits & 8)
    if patch.shape[-1] != patch.shape[-2]:
        turns &= 2
    if mode == "reference":
        flip, reverse = False, flip
    if reverse and mode != "spatial":
        patch = patch[::-1]
    return np.ascontiguousarray(dihedral(patch, turns, flip))


def band_window(patch: np.ndarray, bands: int | None, seed: int, epoch: int, index: int,
                spacing: int = 1) -> np.ndarray:
    """A random run of so many bands of `patch` (B, h, w), as a view; all of them for None, or where
    B is not larger.

    The bands are neighbours, or with `spacing` above 1 each k-th, where k is drawn from 1 to the
    spacing, or to the widest that the patch has.
    """
    if bands is None or bands >= len(patch):
        return patch
    rng = np.random.default_rng((seed, epoch, index, 1))
    widest = min(spacing, (len(patch) - 1) // max(1, bands - 1))
    step = int(rng.integers(1, widest + 1)) if widest > 1 else 1
    length = (bands - 1) * step + 1
    first = int(rng.integers(len(patch) - length + 1))
    return patch[first:first + length:step]


def dihedral(patch: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    """A view of (..., h, w), flipped top to bottom if asked, then turned counter-clockwise by
    `turns` quarter turns."""
    return np.rot90(patch[..., ::-1, :] if flip else patch, turns, axes=(-2, -1))
