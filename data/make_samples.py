"""Render the sample scenes: natural scenes in ICVL's file format, a village from above, and the
village in low resolution.

    python data/make_samples.py    data/sample/natural/{train,test}/*.mat, data/sample/remote/*.mat,
                                                      data/sample/own/village_16m.tif (low
                                                      resolution, georeferenced)
    python data/make_samples.py --out DIR --seed 7    other scenes elsewhere

Radiance is a sum of materials: each has a smooth reflectance spectrum (Gaussian bumps and sigmoid
edges), lies under the scene's illuminant, and covers a share of each pixel. The shares come from
shapes drawn at `OVERSAMPLING` times the final resolution and averaged down, so that edges fall
between pixels as a sensor's do; textures at several scales shade and mix the materials inside the
shapes. The sensor adds shot and read noise and counts in whole numbers.
"""
from __future__ import annotations

import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import rasterio
import scipy.io
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.materials import (
    NATURAL_BANDS,
    OVERSAMPLING,
    Shape,
    blackbody,
    box,
    disc,
    ellipse,
    filled,
    ground_materials,
    line,
    mask_of,
    noise_texture,
    reflectances,
    transmittance,
)
from utility.degradation import downsample
from utility.scenes import Scene, write_scene
from utility.system.errors import Arguments, UserError, run_script
from utility.system.files import default_path, replacing

MARKS = ("natural", "remote")  # a folder that holds one of these was made here
REMOTE_BANDS = np.linspace(400.0, 2440.0, 103)
FULL_SCALE = 4095  # a 12-bit sensor, as ICVL's


def stripes(rng: np.random.Generator, size: tuple[int, int], period: float) -> np.ndarray:
    """Stripes or a weave in a random direction, between -1 and 1, soft or hard, (h, w) float32."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    along = columns * np.cos(angle) + rows * np.sin(angle)
    wave = np.sin(2 * np.pi * along / period + phase)
    if rng.random() < 0.5:
        across = rows * np.cos(angle) - columns * np.sin(angle)
        wave = wave * np.sin(2 * np.pi * across / period)
    return np.tanh(rng.uniform(1.0, 4.0) * wave).astype(np.float32)


def any_texture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Noise at several scales, of unit deviation, or stripes between -1 and 1, (h, w) float32."""
    if rng.random() < 0.35:
        return stripes(rng, size, rng.uniform(5, 16) * OVERSAMPLING)
    texture = np.zeros(size, np.float32)
    for octave in range(5):
        texture += 0.62**-octave * 0.3 * noise_texture(rng, size, OVERSAMPLING * 2.0**octave)
    return texture / texture.std()


def random_shape(rng: np.random.Generator, size: tuple[int, int], extent: float) -> Shape:
    """A polygon, ellipse, rotated rectangle or thick line about `extent` pixels across."""
    centre = rng.uniform(0, 1, 2) * size[::-1]
    kind, angle = rng.integers(4), rng.uniform(0, 180)
    axes = extent * rng.uniform(0.25, 0.7, 2)
    if kind == 0:
        turns = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        radius = extent * rng.uniform(0.25, 0.7, len(turns))
        return filled(centre + np.stack([np.cos(turns), np.sin(turns)], axis=1) * radius[:, None])
    if kind == 1:
        return ellipse(np.round(centre).astype(int).tolist(), np.round(axes).astype(int).tolist(),
                       angle)
    if kind == 2:
        return filled(box(centre, 2 * axes, angle))
    end = (centre
           + extent
           * rng.uniform(0.5, 2) * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))]))
    return line(np.stack([centre, end]), round(extent * rng.uniform(0.03, 0.12)))


class Canvas:
    """Shares of `materials` in each pixel of a picture drawn at `OVERSAMPLING` times its final
    resolution."""

    def __init__(self, materials: int, height: int, width: int) -> None:
        self.size = (height * OVERSAMPLING, width * OVERSAMPLING)
        self.shares = np.zeros((materials, *self.size), np.float32)
        self.shading = np.ones(self.size, np.float32)

    def paint(self, mask: np.ndarray, first: int, second: int, mix: np.ndarray | float,
              shading: np.ndarray | float) -> None:
        """Cover `mask`: a share `mix` of material `first`, the rest `second`; numbers or planes."""
        mix = np.broadcast_to(np.float32(mix), self.size)[mask]
        self.shares[:, mask] = 0
        self.shares[first][mask] = mix
        self.shares[second][mask] += 1 - mix
        self.shading[mask] = np.broadcast_to(np.float32(shading), self.size)[mask]

    def render(self, spectra: np.ndarray) -> np.ndarray:
        """Mixed spectra at the final resolution, (bands, H, W) float32."""
        small = (self.size[1] // OVERSAMPLING, self.size[0] // OVERSAMPLING)
        averaged = [cv2.resize(share * self.shading, small, interpolation=cv2.INTER_AREA)
                    for share in self.shares]
        return np.tensordot(spectra.astype(np.float32).T, np.stack(averaged), axes=1)


def sense(rng: np.random.Generator, radiance: np.ndarray, exposure: float,
          noise: float) -> np.ndarray:
    """Counts of a 12-bit sensor: `exposure` of the full scale at the 99.9th percentile, shot and
    read noise."""
    signal = radiance * (exposure / np.percentile(radiance, 99.9))
    deviation = noise * np.sqrt(0.2 + np.maximum(signal, 0))
    signal = signal + deviation * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.clip(np.round(signal * FULL_SCALE), 0, FULL_SCALE)


# --- scenes ---------------------------------------------------------------------------------------

def natural_scene(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Things on a table: (31, height, width) float32, whole counts from 0 to 4095."""
    spectra = reflectances(rng, NATURAL_BANDS, 16)
    canvas = Canvas(len(spectra), height, width)
    rows, columns = np.mgrid[: canvas.size[0], : canvas.size[1]].astype(np.float32)

    def fill(mask: np.ndarray) -> None:
        first, second = rng.choice(len(spectra), 2, replace=False)
        texture = any_texture(rng, canvas.size)
        angle = rng.uniform(0, 2 * np.pi)
        slope = (columns * np.cos(angle) + rows * np.sin(angle)) / max(canvas.size)
        shading = rng.uniform(0.6, 1.0) * (1 + rng.uniform(0, 0.5) * slope) * (
            1 + rng.uniform(0, 0.12) * texture)
        mix = np.clip(rng.uniform(0.4, 1.0) + rng.choice([0.0, 0.06, 0.2]) * texture, 0, 1)
        canvas.paint(mask, first, second, mix, np.clip(shading, 0.1, 1.6))

    fill(np.ones(canvas.size, bool))
    longest = max(canvas.size)
    for extent, count in [(0.6, 5), (0.3, 12), (0.12, 22), (0.05, 40)]:
        for _ in range(count):
            mask = mask_of(random_shape(rng, canvas.size, extent * longest), canvas.size)
            if extent > 0.1:
                fill(mask)
            else:
                canvas.paint(mask, rng.integers(len(spectra)), 0, 1.0, rng.uniform(0.4, 1.2))
    for _ in range(6):  # print: thin strokes of one colour
        text = "".join(rng.choice(list("AEGHKMNRSX2358"), rng.integers(3, 7)))
        mask = np.zeros(canvas.size, np.uint8)
        corner = (rng.uniform(0, 0.8, 2) * canvas.size[::-1]).astype(int).tolist()
        cv2.putText(mask, text, corner, int(rng.integers(0, 5)), rng.uniform(0.8, 2.2), 1,
                    int(rng.integers(2, 6)))
        canvas.paint(mask.astype(bool), rng.integers(len(spectra)), 0, 1.0, rng.uniform(0.3, 1.2))

    lit = blackbody(NATURAL_BANDS, rng.uniform(3200, 6500)) * np.linspace(
        0.8, 1.0, len(NATURAL_BANDS))
    radiance = canvas.render(spectra * lit)
    vignette = 1 + 0.25 * noise_texture(rng, (height, width), max(height, width) / 2).clip(-2, 2)
    return sense(rng, radiance * vignette, exposure=0.9, noise=0.004).astype(np.float32)


def remote_scene(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A village among fields, seen from above: (103, height, width) uint16, whole counts from 0 to
    4095."""
    materials = ground_materials(rng, REMOTE_BANDS)
    names = list(materials)
    spectra = np.stack(list(materials.values()))
    canvas = Canvas(len(names), height, width)
    rows, columns = np.mgrid[: canvas.size[0], : canvas.size[1]].astype(np.float32)

    def cover(mask: np.ndarray, first: str, second: str, purity: float, spread: float,
              texture: np.ndarray) -> None:
        mix = np.clip(purity + spread * texture, 0, 1)
        shading = np.clip(rng.uniform(0.85, 1.1) * (1 + 0.06 * texture), 0.2, 1.5)
        canvas.paint(mask, names.index(first), names.index(second), mix, shading)

    def somewhere() -> np.ndarray:
        return rng.uniform(0, 1, 2) * canvas.size[::-1]

    # Fields: the nearest of some points, in a tilted metric, so that borders are straight and
    # parcels long.
    points = np.stack([somewhere() for _ in range(26)])
    distance = np.stack(
        [np.hypot(columns - x, 1.6 * (rows - y) + 0.4 * (columns - x)) for x, y in points])
    parcel = distance.argmin(axis=0)
    for number in range(len(points)):
        first, second = rng.choice(["crop", "grass", "soil", "stubble", "wood"], 2, replace=False)
        if rng.random() < 0.4:
            texture = stripes(rng, canvas.size, rng.uniform(3, 8) * OVERSAMPLING)
        else:
            texture = any_texture(rng, canvas.size)
        cover(parcel == number, first, second, rng.uniform(0.6, 1.0), rng.uniform(0.05, 0.2),
              texture)

    def stroke(points: np.ndarray, thickness: float) -> np.ndarray:
        return mask_of(line(points, round(thickness * OVERSAMPLING)), canvas.size)

    calm = noise_texture(rng, canvas.size, 20 * OVERSAMPLING)
    along = np.linspace(-0.05, 1.05, 40)
    bends = 0.3 + 0.2 * along + 0.05 * np.sin(7 * along + rng.uniform(0, 6))
    cover(stroke(np.stack([along, bends], axis=1) * canvas.size[::-1], 7), "water", "soil", 0.97,
          0.01, calm)
    for _ in range(7):
        road = stroke(np.stack([somewhere(), somewhere()]), rng.uniform(1.0, 2.5))
        cover(road, "asphalt", "soil", 0.92, 0.03, calm)

    for _ in range(90):  # houses, with a shadow beside each
        centre, angle = somewhere(), float(rng.choice([20.0, 110.0]))
        axes = rng.uniform(2.5, 8, 2) * OVERSAMPLING
        roof = str(rng.choice(["tiles", "tiles", "concrete", "metal", "asphalt"]))
        for shift, shading in ((1.2 * OVERSAMPLING, 0.35), (0.0, rng.uniform(0.8, 1.2))):
            mask = mask_of(filled(box(centre + shift, axes, angle)), canvas.size)
            canvas.paint(mask, names.index(roof if shift == 0 else "grass"), 0, 1.0, shading)
    for _ in range(220):  # trees, smaller than a few pixels
        crown = disc(np.round(somewhere()).astype(int).tolist(),
                     round(rng.uniform(0.6, 2.2) * OVERSAMPLING))
        canvas.paint(mask_of(crown, canvas.size), names.index("wood"), 0, 1.0,
                     rng.uniform(0.6, 1.1))

    light = blackbody(REMOTE_BANDS, 5800) * transmittance(REMOTE_BANDS)
    radiance = (canvas.render(spectra * light)
                + 0.004 * blackbody(REMOTE_BANDS, 20000).astype(np.float32)[:, None, None])
    return sense(rng, radiance, exposure=0.95, noise=0.003).astype(np.uint16)


# --- files ----------------------------------------------------------------------------------------

def write_as_icvl(path: Path, cube: np.ndarray) -> None:
    """Write a cube (B, H, W) as ICVL does: MATLAB v7.3 with `rad` (B, W, H) and `bands` in nm.

    MATLAB v7.3 is HDF5 behind a 512-byte block that begins with a text, version 0x0200 and the
    byte-order mark.
    """
    with h5py.File(path, "w", userblock_size=512) as file:
        stored = np.ascontiguousarray(cube.transpose(0, 2, 1))
        chunks = (1, *stored.shape[1:])
        rad = file.create_dataset("rad", data=stored, chunks=chunks, compression="gzip",
                                  compression_opts=3)
        rad.attrs["MATLAB_class"] = np.bytes_("single")
        bands = file.create_dataset("bands", data=NATURAL_BANDS[None, :])
        bands.attrs["MATLAB_class"] = np.bytes_("double")
    text = (b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Fri Jan  1 00:00:00 2021 "
            b"HDF5 schema 1.00 .")
    with path.open("r+b") as file:
        file.write(text.ljust(116) + bytes(8) + b"\x00\x02IM")


def make_samples(folder: str | Path = "data/sample", seed: int = 2021, train: int = 8,
                 test: int = 2, side: int = 160, remote: tuple[int, int] = (160, 128),
                 overwrite: bool = False) -> list[Path]:
    """Render the sample scenes into `folder`, whole or not at all, and return their files.

    natural/{train,test}/natural_NN.mat hold `train` + `test` scenes of 31 x side x side;
    remote/village.mat (MATLAB v5, key `scene`, (H, W, 103) uint16) one of `remote` pixels, 4 m
    wide; own/village_16m.tif the same scene as a sensor of 16 m and an MTF of 0.3 sees it, in UTM
    zone 33 N. Each scene depends on `seed` and its own number only.

    Raises UserError: `folder` exists and `overwrite` is False, it holds anything other than
    samples, or it cannot be written.
    """
    folder = Path(folder)
    files: list[Path] = []
    with replacing(folder, overwrite, marks=MARKS) as temporary:
        for number in range(1, train + test + 1):
            part = Path("natural", "train" if number <= train else "test")
            (temporary / part).mkdir(parents=True, exist_ok=True)
            scene = natural_scene(np.random.default_rng((seed, number)), side, side)
            write_as_icvl(temporary / part / f"natural_{number:02d}.mat", scene)
            files.append(folder / part / f"natural_{number:02d}.mat")
        (temporary / "remote").mkdir(parents=True)
        scene = remote_scene(np.random.default_rng((seed, 0)), *remote)
        content = {"scene": scene.transpose(1, 2, 0), "wavelengths": REMOTE_BANDS[None, :]}
        scipy.io.savemat(temporary / "remote" / "village.mat", content, do_compression=True)
        files.append(folder / "remote" / "village.mat")
        low = downsample(torch.from_numpy(scene.astype(np.float64)), 4,
                         "mtf 0.3").round().numpy().astype(np.uint16)
        place = {"crs": rasterio.crs.CRS.from_epsg(32633).to_wkt(),
                 "transform": (16.0, 0.0, 500000.0, 0.0, -16.0, 5400000.0)}
        (temporary / "own").mkdir()
        write_scene(temporary / "own" / "village_16m.tif",
                    Scene(low, "village", wavelengths=REMOTE_BANDS, **place))
        files.append(folder / "own" / "village_16m.tif")
    return files


def main() -> None:
    parser = Arguments(description="Render the sample scenes.")
    parser.add_argument("--out", default=default_path("data/sample"),
                        help="folder to make (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=2021,
                        help="other scenes for another seed (default: %(default)s)")
    parser.add_argument("--force", action="store_true",
                        help="replace the folder if it is empty or holds samples")
    options = parser.parse_args()
    if options.seed < 0:
        raise UserError(f"--seed {options.seed} is negative; give a whole number from 0.")
    files = make_samples(options.out, options.seed, overwrite=options.force)
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"{len(files)} scenes in {options.out} ({size:.1f} MB)")


if __name__ == "__main__":
    run_script(main)
