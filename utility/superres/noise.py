"""The noise of a low-resolution cube: stated as a signal-to-noise ratio, or estimated from the
cube.

The estimate is the residual of each band's linear regression on all other bands (Roger and Arnold,
Int. J. Remote Sens. 17(10), 1996; Bioucas-Dias and Nascimento, IEEE TGRS 46(8), 2008). Neighbouring
bands of a scene tell each other's values; noise they do not tell. With C the covariance of the
bands, the variance of the residual of band b is 1 / (C^-1)_bb.
"""
from __future__ import annotations

import numpy as np

from utility.degradation import random

ENOUGH = 4
"""Pixels for each band, below which a regression tells nothing."""
PIXELS = 200_000
"""Pixels of a large cube that are taken, in even steps."""
AT_ONCE = 16 << 20
"""Bytes of these pixels, in float64, that are held at a time."""
QUIET = 40.0
"""dB of the signal-to-noise ratio above which an estimate counts as none: so much a regression
leaves of any scene."""


def noise_of_snr(cube: np.ndarray, snr: float, missing: np.ndarray | None = None) -> np.ndarray:
    """The standard deviation of each band's noise, (B,): its root mean square divided by
    10^(snr / 20).

    Args:
        cube: (B, h, w) in [0, 1]; NaN does not count.
        snr: dB.
        missing: (h, w) bool, pixels that do not count either.
    """
    measured = True if missing is None else ~missing
    power = np.array([np.nanmean(np.square(np.asarray(band, dtype=np.float64)), where=measured)
                      for band in cube])
    return np.sqrt(power) * 10 ** (-snr / 20)


def estimated_noise(cube: np.ndarray, missing: np.ndarray | None = None) -> np.ndarray | None:
    """The standard deviation of each band's noise, (B,), from a cube (B, h, w); see the top of this
    file.

    A band is compared with the bands of its run alone, where there are too few pixels for a
    regression on all. None where there are too few pixels for two bands. Pixels that are NaN in any
    band, or True in `missing` (h, w), do not count.
    """
    bands, (count, covariance) = len(cube), _covariance(cube, missing)
    longest = count // ENOUGH
    if bands < 2 or longest < 2:
        return None
    runs = np.array_split(np.arange(bands), -(-bands // longest))
    return np.concatenate([_left_over(covariance[np.ix_(run, run)], count) for run in runs])


def _covariance(cube: np.ndarray, missing: np.ndarray | None) -> tuple[int, np.ndarray]:
    """How many pixels of a cube count, of those in even steps, and the covariance (B, B) of its
    bands, from some rows at a time.

    Values are taken from those of the first rows' mean, near which they lie, so that nothing is
    lost where the squares of sums are subtracted.
    """
    bands, height, width = cube.shape
    step = max(1, round((height * width / PIXELS) ** 0.5))
    rows = step * max(1, AT_ONCE // (8 * bands * -(-width // step)))
    count, near, sums, squares = 0, None, 0.0, 0.0
    for top in range(0, height, rows):
        pixels = np.asarray(cube[:, top:top + rows:step, ::step], np.float64).reshape(bands, -1)
        counted = np.isfinite(pixels).all(axis=0)
        if missing is not None:
            counted &= ~missing[top:top + rows:step, ::step].ravel()
        pixels = pixels if counted.all() else pixels[:, counted]
        if pixels.size:
            near = pixels.mean(1, keepdims=True) if near is None else near
            pixels = pixels - near
            count, sums = count + pixels.shape[1], sums + pixels.sum(1)
            squares = squares + pixels @ pixels.T
    return count, (squares - np.multiply.outer(sums, sums) / max(count, 1)) / max(count - 1, 1)


def _left_over(covariance: np.ndarray, count: int) -> np.ndarray:
    """The standard deviation of what a regression on the other bands leaves of each, (B,), from the
    covariance (B, B) of `count` pixels."""
    bands = len(covariance)
    # A constant band has no inverse: a trace of the others' variance stands for its own.
    covariance[np.diag_indices(bands)] += max(1e-12 * np.trace(covariance) / bands,
                                              np.finfo(float).tiny)
    # The regression has used up a degree of freedom for each band.
    return np.sqrt(count / (count - bands) / np.diag(np.linalg.inv(covariance)))


def with_noise(cube: np.ndarray, snr: float, seed: int,
               *key: int | str) -> tuple[np.ndarray, np.ndarray]:
    """A cube (B, h, w) with white noise of a signal-to-noise ratio in dB, and its standard
    deviation by band, (B,).

    The noise depends on the seed, the key and the shape alone.
    """
    level = noise_of_snr(cube, snr)
    noise = random(seed, "snr", *key).standard_normal(cube.shape, dtype=np.float32)
    return cube + noise * level.astype(np.float32)[:, None, None], level


def told_noise(cube: np.ndarray, snr: float | str | None,
               missing: np.ndarray | None = None) -> np.ndarray | None:
    """The standard deviation of each band's noise that methods are told, (B,), of a cube whose
    noise is not known.

    Args:
        cube: (B, h, w) in [0, 1].
        snr: dB, as a user states it; `auto` estimates, and finds none above `QUIET`; None is none.
        missing: (h, w) bool, pixels that nobody measured: they do not count.
    """
    if snr is None:
        return None
    if snr != "auto":
        return noise_of_snr(cube, snr, missing)
    found = estimated_noise(cube, missing)
    return found if found is not None and snr_of(cube, found) <= QUIET else None


def snr_of(cube: np.ndarray, noise: np.ndarray, missing: np.ndarray | None = None) -> float:
    """The median over bands of the signal-to-noise ratio, in dB; infinite without noise. Pixels of
    `missing` (h, w) do not count."""
    with np.errstate(divide="ignore"):
        ratios = 20 * np.log10(noise_of_snr(cube, 0.0, missing) / noise)
    return float(np.median(ratios))
