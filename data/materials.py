"""What scenes are painted with: spectra of materials and light, textures, shapes."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

OVERSAMPLING = 3
NATURAL_BANDS = np.linspace(400.0, 700.0, 31)


def reflectances(rng: np.random.Generator, nm: np.ndarray, count: int) -> np.ndarray:
    """`count` smooth reflectances between 0.02 and 0.95 at the wavelengths `nm`, (count, bands)."""
    low, high = nm[0], nm[-1]
    span = high - low
    spectra = np.empty((count, len(nm)))
    for spectrum in spectra:
        spectrum[:] = rng.uniform(0.03, 0.25)
        for _ in range(rng.integers(1, 4)):
            centre, width = rng.uniform(low, high), span * rng.uniform(0.08, 0.3)
            spectrum += rng.uniform(0.1, 0.6) * _bump(nm, centre, width)
        if rng.random() < 0.5:  # a pigment's edge
            spectrum += rng.uniform(0.1, 0.5) * _edge(nm, rng.uniform(low, high),
                                                      span * rng.uniform(0.02, 0.08))
        spectrum *= rng.uniform(0.3, 1.0) / max(1.0, spectrum.max())
    return np.clip(spectra, 0.02, 0.95)


def _edge(nm: np.ndarray, centre: float, width: float) -> np.ndarray:
    return 1 / (1 + np.exp(-(nm - centre) / width))


def _bump(nm: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-0.5 * ((nm - centre) / width) ** 2)


def blackbody(nm: np.ndarray, kelvin: float) -> np.ndarray:
    """Planck's spectral radiance at the wavelengths `nm`, with its mean set to 1."""
    metres = nm * 1e-9
    radiance = metres**-5 / np.expm1(1.4388e-2 / (metres * kelvin))
    return radiance / radiance.mean()


def transmittance(nm: np.ndarray) -> np.ndarray:
    """Transmittance of a clear atmosphere, roughly: water vapour at 940, 1140, 1380 and 1870 nm,
    carbon dioxide at 2010 nm."""
    depth = 0.1 * (nm / 400.0) ** -4 + 0.02
    for centre, width, strength in [(940, 22, 0.6), (1140, 28, 0.7), (1380, 38, 2.3),
                                    (1870, 42, 2.3), (2010, 22, 0.5)]:
        depth = depth + strength * _bump(nm, centre, width)
    return np.exp(-depth)


def ground_materials(rng: np.random.Generator, nm: np.ndarray) -> dict[str, np.ndarray]:
    """Reflectance of each ground material, (bands,), varied a little by `rng`."""

    def vary(spectrum: np.ndarray) -> np.ndarray:
        tilt = 1 + rng.uniform(-0.1, 0.1) * (nm - nm.mean()) / np.ptp(nm)
        return np.clip(spectrum * tilt * rng.uniform(0.85, 1.15), 0.01, 0.95)

    water_in_leaves = (
        1 - 0.45 * _bump(nm, 1450, 70) - 0.6 * _bump(nm, 1940, 90) - 0.3 * _bump(nm, 2400, 200))
    leaves = (0.03 + 0.07 * _bump(nm, 550, 35) + 0.45 * _edge(nm, 715, 16)) * water_in_leaves
    soil = (0.08 + 0.3 * (1 - np.exp(-(nm - 350) / 600))) * (1 - 0.12 * _bump(nm, 2200, 40))
    return {
        "crop": vary(leaves),
        "grass": vary(0.8 * leaves + 0.15 * soil),
        "wood": vary(0.55 * leaves),
        "soil": vary(soil),
        "stubble": vary(0.6 * soil + 0.12 * _edge(nm, 600, 90)),
        "asphalt": vary(0.07 + 0.05 * (nm - 400) / 2000),
        "concrete": vary(0.28 + 0.12 * _edge(nm, 650, 200) - 0.06 * _bump(nm, 2330, 60)),
        "tiles": vary(0.06 + 0.32 * _edge(nm, 600, 25) - 0.08 * _bump(nm, 880, 90)),
        "metal": vary(0.55 + 0.1 * (nm - 400) / 2000),
        "water": vary(0.015 + 0.06 * np.exp(-((nm - 400) / 220) ** 2)),
    }


def noise_texture(rng: np.random.Generator, size: tuple[int, int], cell: float) -> np.ndarray:
    """Smooth noise whose features are about `cell` pixels wide, zero mean, unit deviation, (h, w)
    float32."""
    coarse = [max(2, round(n / cell) + 1) for n in size]
    texture = cv2.resize(rng.standard_normal(coarse).astype(np.float32), size[::-1],
                         interpolation=cv2.INTER_CUBIC)
    return (texture - texture.mean()) / (texture.std() + 1e-6)


Shape = Callable[[np.ndarray, float], None]
"""A function that draws a shape into a plane, as the given value."""


def filled(points: np.ndarray) -> Shape:
    points = np.round(points).astype(np.int32)
    return lambda plane, value: cv2.fillPoly(plane, [points], value)


def line(points: np.ndarray, thickness: float) -> Shape:
    points = np.round(points).astype(np.int32)
    return lambda plane, value: cv2.polylines(plane, [points], False, value, max(1, int(thickness)))


def disc(centre: Sequence[int], radius: int) -> Shape:
    return lambda plane, value: cv2.circle(plane, centre, radius, value, -1)


def ellipse(centre: Sequence[int], axes: Sequence[int], angle: float) -> Shape:
    return lambda plane, value: cv2.ellipse(plane, centre, axes, angle, 0, 360, value, -1)


def box(centre: Sequence[float], axes: Sequence[float], angle: float) -> np.ndarray:
    """Corners of a rectangle, whole pixels, (4, 2)."""
    return np.round(
        cv2.boxPoints((tuple(map(float, centre)), tuple(map(float, axes)), float(angle))))


def mask_of(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a shape, (h, w) bool."""
    plane = np.zeros(size, np.uint8)
    shape(plane, 1)
    return plane > 0
