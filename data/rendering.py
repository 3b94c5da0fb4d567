"""Render scenes to train on: natural scenes, and scenes from above with any number of bands. Seed
and number fix a scene.

    render_scene("overhead", seed=2021, number=7, bands=128, side=128)
            -> (128, 128, 128) float32 in [0, 1]

`data/painting.py` paints the materials. This file gives each a spectrum, lights the scene, and adds
the sensor: blur, noise, whole counts. Every choice is random within a range; no part comes from a
real scene.
"""
from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.materials import (
    NATURAL_BANDS,
    blackbody,
    ground_materials,
    noise_texture,
    reflectances,
    transmittance,
)
from data.painting import Picture, paint_ground, paint_things
from utility.cubes.cube import writing
from utility.system.files import replacing
from utility.system.progress import track

KINDS = ("natural", "overhead")
# Where the atmosphere is opaque, in nm: publishers leave these bands out.
LEFT_OUT = ((1340.0, 1450.0), (1790.0, 1980.0), (2450.0, 2600.0))


def render_scene(kind: str, *, seed: int, number: int, bands: int = 31,
                 side: int = 128) -> np.ndarray:
    """A scene, scaled to [0, 1] by its own smallest and largest value, (bands, side, side) float32.

    Args:
        kind: `natural` (400-700 nm, whatever the number of bands) or `overhead` (another sensor in
            each scene).
        seed, number: these two alone fix the scene.
    """
    rng = np.random.default_rng((seed, number, KINDS.index(kind)))
    natural = kind == "natural"
    if natural:
        nm = np.linspace(NATURAL_BANDS[0], NATURAL_BANDS[-1], bands)
        spectra = reflectances(rng, nm, 14)
        light = blackbody(nm, rng.uniform(2600, 7500)) * (
            1 + rng.uniform(-0.3, 0.3) * np.linspace(-1, 1, bands))
    else:
        nm = wavelengths(rng, bands)
        spectra = _ground_spectra(rng, nm, 4)
        light = blackbody(nm, 5800) * transmittance(nm) ** rng.uniform(0.5, 1.5)
    picture = Picture(rng, side, len(spectra))
    (paint_things if natural else paint_ground)(picture)
    blur = rng.choice([0.0, rng.uniform(0.25, 0.6), rng.uniform(0.6, 1.2)], p=[0.25, 0.5, 0.25])
    radiance = np.tensordot((spectra * light).astype(np.float32).T, picture.shares(blur), axes=1)
    if natural:
        radiance = (radiance
                    * (1
                       + rng.uniform(0, 0.2) * noise_texture(rng, (side, side), side / 2).clip(
                           -2, 2)))
    else:
        radiance = _through_air(rng, radiance, nm, light, picture)
    return _sense(rng, radiance.astype(np.float32), natural)


def wavelengths(rng: np.random.Generator, bands: int) -> np.ndarray:
    """Band centres in nm of a random sensor, unevenly spaced, (bands,); most sensors leave out
    bands where air is opaque."""
    low = rng.uniform(380, 480)
    if bands > 40:
        high = float(rng.choice([rng.uniform(700, 1050), rng.uniform(1600, 2500)], p=[0.3, 0.7]))
    else:
        high = rng.uniform(680, 1050)
    nm = np.linspace(0, 1, bands * 2) ** rng.uniform(0.8, 1.25) * (high - low) + low
    if rng.random() < 0.75:
        out = np.zeros(len(nm), bool)
        for first, last in LEFT_OUT:
            shrink = rng.uniform(-45, 30)
            out |= (nm > first - shrink) & (nm < last + shrink)
        nm = nm[~out]
    if rng.random() < 0.3:  # bad bands
        nm = np.delete(nm, rng.integers(0, len(nm), rng.integers(1, 8)))
    return nm[np.round(np.linspace(0, len(nm) - 1, bands)).astype(int)]


def _ground_spectra(rng: np.random.Generator, nm: np.ndarray, extra: int) -> np.ndarray:
    """Reflectances of the ground materials, then of `extra` others, (materials, bands)."""
    ground = list(ground_materials(rng, nm).values())
    others = list(reflectances(rng, nm, extra))
    for i, spectrum in enumerate(ground):  # no two fields are alike
        if rng.random() < 0.4:
            ground[i] = np.clip(
                spectrum + rng.uniform(0, 0.35) * (others[rng.integers(extra)] - spectrum), 0.005,
                1)
    return np.stack(ground + others)


def _through_air(rng: np.random.Generator, radiance: np.ndarray, nm: np.ndarray, light: np.ndarray,
                 picture: Picture) -> np.ndarray:
    """Add haze and thin cloud. The result is radiance, radiance with a gain for each band, or
    reflectance."""
    side = picture.side
    haze = rng.uniform(0, 0.03) * (nm / 550) ** -rng.uniform(1, 4) * light.mean()
    thick = 1 + rng.choice([0.0, 0.3]) * np.abs(noise_texture(rng, (side, side), side / 3))
    radiance = radiance + haze[:, None, None].astype(np.float32) * thick.astype(np.float32)
    if rng.random() < 0.12:
        cloud = cv2.resize(picture.fractal(40, 0.55, 7), (side, side), interpolation=cv2.INTER_AREA)
        cloud = np.clip(cloud - rng.uniform(0.5, 1.5), 0, 2)
        radiance = (
            radiance + (rng.uniform(0.05, 0.4) * light).astype(np.float32)[:, None, None] * cloud)
    if rng.random() < 0.35:  # reflectance: noise grows where air is dark
        radiance = radiance / (light[:, None, None].astype(np.float32) + 0.02 * light.mean())
    elif rng.random() < 0.3:
        gain = np.exp(rng.uniform(0.2, 0.8) * np.cumsum(rng.normal(0, 0.05, len(nm))))
        radiance = radiance * gain[:, None, None].astype(np.float32)
    return radiance


def _sense(rng: np.random.Generator, radiance: np.ndarray, natural: bool) -> np.ndarray:
    """Add noise by band and stripes, count with 11 to 15 bits, and scale the scene to [0, 1]."""
    bands, side = len(radiance), radiance.shape[1]
    signal = radiance / np.percentile(radiance, rng.choice([99.0, 99.9, 100.0]))
    sigma = float(np.exp(rng.uniform(np.log(2e-4), np.log(4e-3))))
    rough = np.ones(bands)
    if not natural:
        rough *= np.exp(0.3 * rng.standard_normal(bands))
        for _ in range(rng.poisson(1.0)):  # a run of bad bands
            at, width = rng.integers(bands), rng.integers(1, 10)
            rough[at : at + width] *= np.exp(rng.uniform(0.5, 3.5))
    rough = rough[:, None, None].astype(np.float32)
    # read and shot noise
    deviation = sigma * rough * np.sqrt(rng.uniform(0.05, 0.5) + np.clip(signal, 0, 2))
    signal = signal + deviation * rng.standard_normal(signal.shape, dtype=np.float32)
    if not natural and rng.random() < 0.4:  # stripes of a pushbroom
        stripes = (sigma * rng.uniform(0, 1) * rough
                   * rng.standard_normal((bands, 1, side), dtype=np.float32))
        signal = signal + stripes
    full = 2.0 ** rng.integers(11, 16)
    signal = np.round(np.clip(signal, 0, rng.choice([1.0, 1.5, 8.0])) * full)
    low, high = float(signal.min()), float(signal.max())
    return ((signal - low) / max(high - low, 1.0)).astype(np.float32)


# --- files ----------------------------------------------------------------------------------------

def render_scenes(folder: str | Path, kind: str, *, bands: int, count: int, seed: int = 2021,
                  side: int = 128, workers: int | None = None) -> list[Path]:
    """Write scenes 0 .. `count` - 1 of `seed`, uint16 (bands, side, side), and return their files;
    existing files are kept.

    Args:
        workers: processes; None is one for each core.

    Raises UserError: the folder cannot be written, or the disk is full.
    """
    files = [Path(folder, f"{kind}_{seed}_{number:05d}.npy") for number in range(count)]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    if not missing:
        return files
    job = partial(_write_scene, kind=kind, bands=bands, seed=seed, side=side)
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        done = pool.map(job, missing, [files[number] for number in missing])
        for _ in track(done, f"rendering {kind}", total=len(missing), unit="scene"):
            pass
    return files


def _write_scene(number: int, file: Path, kind: str, bands: int, seed: int, side: int) -> None:
    cv2.setNumThreads(1)
    counts = np.round(render_scene(kind, seed=seed, number=number, bands=bands,
                                   side=side) * 65535).astype(np.uint16)
    with replacing(file) as temporary, writing(file):
        np.save(temporary, counts)
