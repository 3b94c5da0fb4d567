"""Which bands a network computes, and how what it adds to them reaches the bands between.

Neighbouring bands of a spectrometer show the same detail, so a network tells nearly the same of
each of them. It runs on every k-th band, the supports. What it adds to a support, in deviations of
that band, is interpolated linearly to the bands between, and each band adds it to its own start
image in deviations of its own:

    x_b = s_b + d_b ((1 - w) r_j / d_j + w r_j+1 / d_j+1)
            s start image, d deviation, r residual of a support
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models import Network
from utility.cubes.cube import Scene
from utility.superres.problem import Problem

ENOUGH = 36
"""Bands that a network computes at least where it leaves some out. Measured on real scenes of 156
to 205 bands at x2 and x4, every fifth band gives on the mean a PSNR 0.06 dB above that of all
bands, and a better SAM; of 31 bands every second one gives a worse SAM."""
GAP = 2.5
"""A step between wavelengths this many times the usual one is a gap, as of water vapour."""
DARK = 0.05
"""A band whose deviation is below this share of the median one supports no other band: its residual
is noise."""


@dataclass(frozen=True)
class Supports:
    """The bands that a network computes.

    Attributes:
        bands: (n,) their numbers, ascending.
        shares: (B, n) float32, what the residual of each of them adds to each band.
    """

    bands: np.ndarray
    shares: np.ndarray


def band_step(net: Network, problem: Problem, bands: int) -> int:
    """Every how many bands the network computes one; see `spectrum`."""
    if problem.bandwise or problem.bands_step != "auto":
        return 1 if problem.bandwise else problem.bands_step
    # A network that scales each band by itself was seen to lose nothing; of others it is not known.
    return max(1, bands // ENOUGH) if net.takes_statistics else 1


@dataclass(frozen=True)
class Spectrum:
    """What is known of the bands of a cube.

    Attributes:
        wavelengths: (B,) nm, or None.
        places: (B,) the number of each band in its file, which tells where bands were left out;
            None: none was.
    """

    wavelengths: np.ndarray | None = None
    places: Sequence[int] | None = None


def deviations(low: np.ndarray, missing: np.ndarray | None = None) -> np.ndarray:
    """The standard deviation of each band of a cube (B, h, w), without the pixels of `missing`
    (h, w): (B,) float64."""
    measured = True if missing is None else ~missing
    return np.array([np.asarray(band).std(dtype=np.float64, where=measured) for band in low])


def choose_supports(step: int, deviations: np.ndarray, spectrum: Spectrum) -> Supports | None:
    """Choose the bands that a network computes; None: all of them.

    The spectrum is cut at gaps: where bands are missing, where the wavelength jumps by more than
    `GAP` usual steps or runs back, as where one detector follows another. The ends of each piece
    are supports. Between them the supports are as evenly spaced as can be, by wavelength where it
    is known, and no further apart than `step` usual steps. A dark band hands its part to the
    nearest brighter one. The first and the last band of all are supports in any case.

    Args:
        step: k, at least 1; 1 gives all bands.
        deviations: (B,) of the values of each band, in [0, 1].
    """
    bands, everyone = len(deviations), np.arange(len(deviations))
    if step == 1 or bands <= 2:
        return None
    at = np.asarray(everyone if spectrum.wavelengths is None else spectrum.wavelengths, np.float64)
    if np.median(np.diff(at)) < 0:  # stored from long to short
        at = -at
    deviations = np.maximum(deviations, 1e-5)
    bright = np.flatnonzero(deviations >= DARK * np.median(deviations))
    found = {0, bands - 1}
    for band in _evenly(at, step, spectrum.places):
        found.add(int(bright[np.abs(bright - band).argmin()]))
    if len(found) == bands:
        return None
    chosen = np.array(sorted(found))
    below = np.searchsorted(chosen, everyone, "right") - 1
    above = np.minimum(below + 1, len(chosen) - 1)
    span = at[chosen[above]] - at[chosen[below]]
    weight = np.where(span > 0, (at - at[chosen[below]]) / np.where(span > 0, span, 1), 0).clip(
        0, 1)
    shares = np.zeros((bands, len(chosen)))
    np.add.at(shares, (everyone, below), 1 - weight)
    np.add.at(shares, (everyone, above), weight)
    return Supports(chosen, (deviations[:, None] * shares / deviations[chosen]).astype(np.float32))


def _evenly(at: np.ndarray, step: int, places: Sequence[int] | None) -> set[int]:
    """Bands at the positions `at` (B,), in each piece of the spectrum evenly spaced, ends
    included."""
    steps = np.diff(at)
    usual = float(np.median(np.abs(steps))) or 1.0
    breaks = (steps > GAP * usual) | (steps <= 0)
    if places is not None:
        apart = np.diff(np.asarray(places))
        breaks |= apart > 1.5 * np.median(apart)
    found: set[int] = set()
    for piece in np.split(np.arange(len(at)), np.flatnonzero(breaks) + 1):
        first, last = at[piece[0]], at[piece[-1]]
        count = int(np.ceil((last - first) / (step * usual) - 1e-6)) + 1
        found |= {int(piece[np.abs(at[piece] - mark).argmin()])
                  for mark in np.linspace(first, last, count)}
        found.add(int(piece[-1]))
    return found


def spectrum_of(scene: Scene) -> Spectrum:
    """What a scene says of its bands."""
    found = scene.wavelengths, scene.metadata.get("source_bands")
    return Spectrum(*(None if one is None or len(one) != len(scene.cube) else one for one in found))
