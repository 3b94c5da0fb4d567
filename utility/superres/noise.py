"""The noise of a low-resolution cube: stated as a signal-to-noise ratio, or estimated from the
cube.

The estimate is the residual of each band's linear regression on all other bands (Roger and Arnold,
Int. J. Remote Sens. 17(10), 1996; Bioucas-Dias and Nascimento, IEEE TGRS 46(8), 2008). Neighbouring
bands of a scene tell each other's values; noise they do not tell. With C the covariance of the
bands, the variance of the residual of band b is 1 / (C^-1)_bb.

Few bands do not tell each other's values: what is left is the scene. So of fewer than `MANY` bands
second differences along rows and columns are regressed instead (the mask of Immerkaer, Computer
Vision and Image Understanding 64(2), 1996), in which edges are left of the scene. The median of
what the regression leaves sees few of these.
"""
from __future__ import annotations

from itertools import product

import numpy as np

from utility.degradation import random

ENOUGH = 4
"""Pixels for each band, below which a regression tells nothing."""
PIXELS = 200_000
"""Pixels of a large cube that are taken, in even steps."""
AT_ONCE = 16 << 20
"""Bytes of these pixels, in float64, that are held at a time."""
MANY = 31
"""Bands from which on their own values are regressed."""
QUIET = {16: 40.0, 8: 30.0, 4: 24.0}
"""dB of the signal-to-noise ratio above which an estimate counts as none, from so many bands on: so
much a regression leaves of any scene. Fewer bands tell nothing."""
FEWEST = min(QUIET)
OF_FEW = 50_000
"""Pixels of a large cube of few bands that are taken: all are held at a time."""
MEDIAN = 0.6745
"""The median of the absolute value of a normal distribution, in its standard deviations."""


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

    A band of many is compared with the bands of its run alone, where there are too few pixels for a
    regression on all. None where there are too few pixels, or fewer than `FEWEST` bands. Pixels
    that are NaN in any band, or True in `missing` (h, w), do not count.
    """
    bands = len(cube)
    if bands < MANY:
        return _of_few_bands(cube, missing)
    count, covariance = _covariance(cube, missing)
    longest = count // ENOUGH
    if longest < 2:
        return None
    runs = np.array_split(np.arange(bands), -(-bands // longest))
    return np.concatenate([_left_over(covariance[np.ix_(run, run)], count) for run in runs])


def _of_few_bands(cube: np.ndarray, missing: np.ndarray | None) -> np.ndarray | None:
    """As `estimated_noise`, of fewer than `MANY` bands."""
    bands = len(cube)
    pixels = _second_differences(cube, missing)
    count = pixels.shape[1]
    if bands < FEWEST or count < ENOUGH * bands:
        return None
    precision = np.linalg.inv(_invertible(pixels @ pixels.T / count))
    left = [np.median(np.abs(row @ pixels)) / row[band] for band, row in enumerate(precision)]
    return np.array(left) / MEDIAN * (count / (count - bands)) ** 0.5


def _second_differences(cube: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
    """The product of second differences along rows and columns, (B, n), at pixels in even steps;
    white noise keeps its standard deviation. No pixel has a part in it that does not count."""
    bands, height, width = cube.shape
    step = max(1, round((height * width / OF_FEW) ** 0.5))
    total = 0.0
    for (y, down), (x, across) in product(enumerate((1, -2, 1)), repeat=2):
        place = slice(y, max(0, height - 2 + y), step), slice(x, max(0, width - 2 + x), step)
        values = np.asarray(cube[:, *place], np.float64)
        if missing is not None:
            values = np.where(missing[place], np.nan, values)
        total = total + down * across / 6 * values
    pixels = total.reshape(bands, -1)
    return pixels[:, np.isfinite(pixels).all(axis=0)]


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
    # The regression has used up a degree of freedom for each band.
    return np.sqrt(count / (count - len(covariance))
                   / np.diag(np.linalg.inv(_invertible(covariance))))


def _invertible(covariance: np.ndarray) -> np.ndarray:
    """The covariance (B, B), changed in place: a constant band has no inverse, so that a trace of
    the others' variance stands for its own."""
    bands = len(covariance)
    covariance[np.diag_indices(bands)] += max(1e-12 * np.trace(covariance) / bands,
                                              np.finfo(float).tiny)
    return covariance


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
        snr: dB, as a user states it; `auto` estimates, and finds none above the `QUIET` of so many
            bands; None is none.
        missing: (h, w) bool, pixels that nobody measured: they do not count.
    """
    if snr is None:
        return None
    if snr != "auto":
        return noise_of_snr(cube, snr, missing)
    found = estimated_noise(cube, missing)
    return found if found is not None and snr_of(cube, found) <= quiet(len(cube)) else None


def quiet(bands: int) -> float:
    """The `QUIET` of so many bands; at least `FEWEST`."""
    return max(decibels for count, decibels in QUIET.items() if count <= bands)


def snr_of(cube: np.ndarray, noise: np.ndarray, missing: np.ndarray | None = None) -> float:
    """The median over bands of the signal-to-noise ratio, in dB; infinite without noise. Pixels of
    `missing` (h, w) do not count."""
    with np.errstate(divide="ignore"):
        ratios = 20 * np.log10(noise_of_snr(cube, 0.0, missing) / noise)
    return float(np.median(ratios))
