"""What other assumptions about the sensor would change in a result."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from models import Network
from utility.degradation import Degradation
from utility.names import ANY
from utility.superres.methods import methods
from utility.superres.noise import told_noise
from utility.superres.problem import Problem
from utility.superres.spectrum import Spectrum
from utility.superres.uncertainty import Halo

MTFS = (0.15, 0.3, 0.5, 0.7)
"""They stand for soft to sharp sensors. One nearer than `NEAR` to the taken one says no more."""
NEAR = 0.07
SIDE = 64
"""Pixels of the low-resolution grid, at most, of the piece that is computed again."""


def other_mtfs(problem: Problem) -> list[float]:
    """The sensor's MTFs that might be assumed instead; none where the method knows no MTF."""
    found = Degradation.of(problem.scale, problem.degradation)
    if found.kind != ANY or problem.method == "interpolation":
        return []
    return [mtf for mtf in MTFS if abs(mtf - float(np.mean(found.nearest_mtf))) >= NEAR]


def under_other_mtfs(net: Network | None, low: np.ndarray, problem: Problem,
                     spectrum: Spectrum | None = None,
                     ) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """The middle of a cube (B, h, w) in [0, 1], computed for each of `other_mtfs`; NaN is missing.

    Returns: A row for each: `mtf`; `differs`, the root of the mean square of what the result
    differs from that of `problem`, in shares of the cube's range; `halo`, the share of values
    outside the range of the 3 x 3 input pixels around them. And the results themselves, (B, H, W)
    by name, that of `problem` first, NaN where the input is missing; nothing where there is no
    other MTF, or no measured pixel.
    """
    others, piece = other_mtfs(problem), np.array(middle(low))
    missing = np.isnan(piece).any(axis=0)
    if not others or missing.all():
        return [], {}
    for band in piece:  # what stands in a missing pixel changes nothing far from it
        band[missing] = band[~missing].mean()
    noise = told_noise(piece, problem.snr, missing)

    def result(problem: Problem) -> np.ndarray:
        return methods(net, piece, problem, None, noise, spectrum,
                       missing if missing.any() else None)[problem.method].cube()

    rows, own = [], result(problem)
    cubes = {f"Taken: {problem.degradation.replace(ANY, 'MTF')}": own}
    counted = ~missing.repeat(problem.scale, 0).repeat(problem.scale, 1)
    for mtf in others:
        other = replace(problem, degradation=f"{ANY} {mtf}", mtf_known=True)
        cube = result(other)
        halo = Halo(piece, other.scale, other.degradation, missing)
        halo.add(0, 0, cube)
        change = np.square(cube - own, dtype=np.float64)[:, counted]
        rows.append({"mtf": mtf, "differs": float(np.sqrt(change.mean())) if change.size else 0.0,
                     "halo": halo.share})
        cubes[f"If MTF {mtf}"] = cube
    for cube in cubes.values():
        cube[:, ~counted] = np.nan
    return rows, cubes


def assumptions_table(rows: Sequence[Mapping[str, float]]) -> list[list[str]] | None:
    """What `under_other_mtfs` found, for a report, header first; None where it found nothing."""
    if not rows:
        return None
    header = ["Instead, in the middle of the scene",
              "values change by (root mean square, share of their range)",
              "values outside the range of the 3 x 3 input pixels around them"]
    return [header, *([f"--mtf {row['mtf']:g}", f"{row['differs']:.2%}", f"{row['halo']:.1%}"]
                      for row in rows)]


def middle(cube: np.ndarray) -> np.ndarray:
    """The piece of a cube (B, h, w) that is computed again."""
    top, left = corner_of_middle(cube)
    return cube[:, top:top + SIDE, left:left + SIDE]


def corner_of_middle(cube: np.ndarray) -> tuple[int, int]:
    """Row and column at which `middle` begins."""
    top, left = (max(0, (n - SIDE) // 2) for n in cube.shape[1:])
    return top, left
