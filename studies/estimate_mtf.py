"""Can a cube tell its own MTF? Two estimators, on scenes that neither was fitted to.

    python studies/estimate_mtf.py --scenes FOLDER --pictures FOLDER

`learned`  kernel ridge regression on statistics of neighbours, spectra and edges of the first
           components, fitted to rendered scenes, to those of `FIT` and to pictures.
`noise`    the correlation of neighbours in what the first components leave: noise that went
           through the blur tells its width.

Each test scene, one of `SCENES` or a rendered one, is degraded by each of `TRUE`. `as tested`: the
scene's noise goes through the blur, and none is added. `as sensed`: the scene's first ten
components are degraded, and noise is added after the blur, as a sensor does.

Prints, for each estimator, the cubes whose error is at most `NEAR`, and those whose MTF is found
more than `FAR` too low: for them the program would draw edges that are not there.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from data.rendering import KINDS, render_scene  # noqa: E402
from studies.mismatch import SCENES  # noqa: E402
from utility.degradation import crop_to_multiple, downsample  # noqa: E402
from utility.report.tables import markdown  # noqa: E402
from utility.scenes import Reading, list_scenes  # noqa: E402
from utility.superres.noise import with_noise  # noqa: E402
from utility.system.errors import Arguments, UserError, run_script  # noqa: E402
from utility.system.progress import track  # noqa: E402
from utility.testing.images import read_images  # noqa: E402

FIT = ("cloth_ms_256", "real_and_fake_apples_ms_256", "samson_1", "HYDICE_data", "sandiego_plane",
       "abu-beach-1")
TRUE = (0.08, 0.15, 0.25, 0.35, 0.5, 0.75)
SCALE_FACTORS = (2, 4)
BANDS = {"natural": 31, "overhead": 64}
NEAR, FAR, SNR, SEED = 0.12, 0.2, 35.0, 2021
COMPONENTS = 10
"""Of a scene that hold its structure; what they leave is noise."""
STRENGTHS = (0.02, 0.06, 0.2)
"""Shares of the pixels of a row's difference that count as edges."""
FREQUENCIES = (0.07, 0.13, 0.19, 0.25, 0.31, 0.37, 0.43, 0.48)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Arguments(__doc__)
    parser.add_argument("--scenes", nargs="+", type=Path, required=True, metavar="FOLDER",
                        help="folders with the scenes; studies/README.md says whose they are")
    parser.add_argument("--rendered", type=int, default=40, metavar="N",
                        help="rendered scenes a kind to fit to (default: %(default)s); N/5 to test")
    parser.add_argument("--pictures", nargs="*", type=Path, default=[], metavar="FOLDER",
                        help="folders with PNG and JPEG pictures to fit to as well")
    options = parser.parse_args(arguments)
    real = dict(_real(options.scenes, (*SCENES, *FIT)))
    if missing := [name for name in SCENES if name not in real]:
        raise UserError(f"The folders hold no scene {', '.join(missing)}; studies/README.md says "
                        "whose they are.")
    known = [(cube, 8) for cube in _rendered(SEED + 1, options.rendered)]
    known += [(real[name], 50) for name in FIT if name in real]
    known += [(cube, 15) for cube in _pictures(options.pictures)]
    estimators = {"learned": learned(known), "noise": noise_mtf}
    groups = {"real": [real[name] for name in SCENES],
              "rendered": list(_rendered(SEED, max(1, options.rendered // 5)))}
    header = ["estimator", "scenes", "scale", "noise", f"within {NEAR:g}",
              f"more than {FAR:g} too low", "lowest error", "mean error"]
    lines = []
    for group, cubes in groups.items():
        for scale in SCALE_FACTORS:
            for noise in ("as tested", "as sensed"):
                lows = [(low(cube, scale, mtf, noise), mtf) for cube in cubes for mtf in TRUE]
                for name, estimate in estimators.items():
                    error = np.array([estimate(one) - mtf for one, mtf in lows])
                    lines.append([name, group, f"x{scale}", noise,
                                  f"{np.mean(abs(error) <= NEAR):.0%}",
                                  f"{np.sum(error < -FAR)} of {len(error)}",
                                  f"{error.min():+.2f}", f"{error.mean():+.2f}"])
    print(markdown(header, [sorted(lines, key=lambda line: list(estimators).index(line[0]))]))


def _real(folders: Sequence[Path], names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """The named scenes that are there, (B, H, W) in [0, 1]. Raises UserError: one lacks pixels."""
    for path in list_scenes(folders):
        if path.stem in names:
            image, = read_images([path], Reading())
            if image.filled is not None and image.filled.any():
                raise UserError(f"{path} has pixels that nobody measured, and this study takes "
                                "whole scenes; leave it out.")
            yield path.stem, image.cube


def _pictures(folders: Sequence[Path]) -> Iterator[np.ndarray]:
    """Pictures (3, H, W), made smaller twice so that each is sharp; small ones are left out."""
    for path in sorted(file for folder in folders for file in folder.glob("*.[jp][pn]g")):
        picture = cv2.imread(str(path))
        for shrink in (2, 3) if picture is not None and min(picture.shape[:2]) > 250 else ():
            small = cv2.resize(picture, None, fx=1 / shrink, fy=1 / shrink,
                               interpolation=cv2.INTER_AREA)
            yield np.moveaxis(small, 2, 0).astype(np.float64)


def _rendered(seed: int, count: int) -> Iterator[np.ndarray]:
    for number in track(range(count), desc=f"rendering, seed {seed}", unit="scene"):
        for kind in KINDS:
            yield render_scene(kind, seed=seed, number=number, bands=BANDS[kind], side=128)


def low(cube: np.ndarray, scale: int, mtf: float, noise: str = "as tested") -> np.ndarray:
    """A scene (B, H, W) degraded to (B, H/scale, W/scale); see the head of this file."""
    if noise == "as sensed":
        kept, vectors, mean = _projected(cube, COMPONENTS)
        cube = np.tensordot(vectors, kept, axes=1) + mean
    cropped = torch.from_numpy(np.ascontiguousarray(crop_to_multiple(cube, scale))).double()
    made = downsample(cropped, scale, f"mtf {mtf!r}").numpy()
    return with_noise(made, SNR, SEED, repr(mtf))[0] if noise == "as sensed" else made


def _projected(cube: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Principal components (count, H, W) of the bands in units of their deviation; what takes them
    back, (B, count), and the mean of each band, (B, 1, 1)."""
    mean = cube.mean((1, 2), keepdims=True, dtype=np.float64)
    deviation = cube.std((1, 2), keepdims=True, dtype=np.float64).clip(1e-9)
    scaled = ((cube - mean) / deviation).reshape(len(cube), -1)
    vectors = np.linalg.eigh(scaled @ scaled.T)[1][:, ::-1][:, :count]
    kept = (vectors.T @ scaled).reshape(-1, *cube.shape[1:])
    return kept, vectors * deviation[:, :, 0], mean


def components(cube: np.ndarray, count: int = 3) -> np.ndarray:
    """The first principal components of a cube (B, h, w), of unit deviation: (up to count, h, w),
    as a grey picture has one alone."""
    kept = _projected(cube, count)[0]
    deviation = kept.std((1, 2), keepdims=True).clip(1e-9)
    return (kept / deviation)[deviation.ravel() > 1e-3 * deviation.max()]


def noise_mtf(cube: np.ndarray) -> float:
    """The MTF of a Gaussian that gives white noise the correlation of neighbours that a cube
    (B, h, w) has in the weaker two thirds of its components.

    Of samples a pixel apart, after a Gaussian of deviation w, it is exp(-1 / (4 w^2)).
    """
    rest = _projected(cube, len(cube))[0][max(8, len(cube) // 3):]
    power = (rest**2).mean((1, 2)).clip(1e-30)
    pairs = [(one[:, 1:] * one[:, :-1]).mean((1, 2)) / power for one in (rest, rest.mT)]
    correlation = np.clip(np.median(pairs), 0.002, 0.7)
    return float(np.exp(np.pi**2 / (8 * np.log(correlation))))


def statistics(cube: np.ndarray) -> np.ndarray:
    """What the regression sees of a cube (B, h, w): the mean over components, rows and columns."""
    images = components(cube)
    return np.mean([_of_rows(image) for one in images for image in (one, one.T)], axis=0)


def _of_rows(x: np.ndarray) -> list[float]:
    """Of an image of unit deviation: ratios of differences, the spectrum, profiles of edges."""
    step, second = np.diff(x), np.diff(x, n=2)
    differences = (step, x[:, 2:] - x[:, :-2], x[:, 3:] - x[:, :-3], second, np.diff(x, n=3))
    found = []
    for power in (0.5, 1, 2, 4):
        size = np.log([np.mean(abs(one) ** power) + 1e-9 for one in differences])
        found += [size[0] - size[1], size[1] - size[2], size[3] - size[0], size[4] - size[3]]
    found += [np.log(np.mean(one**4) / np.mean(one**2) ** 2) for one in (step, second)]
    count = x.shape[1]
    windowed = (x - x.mean(1, keepdims=True)) * np.hanning(count + 2)[1:-1]
    spectrum = (abs(np.fft.rfft(windowed)) ** 2).mean(0) + 1e-9
    levels = np.log(np.interp(FREQUENCIES, np.arange(len(spectrum)) / count, spectrum))
    found += [*np.diff(levels), levels[-1] - levels[1], levels[-1] - levels[3]]
    middle = step[:, 2:-2]
    size, sign = abs(middle), np.sign(middle)
    peak = (size >= abs(step[:, 1:-3])) & (size >= abs(step[:, 3:-1]))
    for share in STRENGTHS:
        strong = size >= np.quantile(size, 1 - share)
        edge = peak & strong if (peak & strong).any() else strong
        beside = [(step[:, 2 + o:step.shape[1] - 2 + o] * sign)[edge] / size[edge]
                  for o in (-2, -1, 1, 2)]
        near = np.sort(beside[1:3], axis=0)
        found += [*np.quantile(near.sum(0), (0.05, 0.1, 0.25, 0.5, 0.75)),
                  *np.quantile(np.sum(beside, 0), (0.1, 0.25, 0.5)),
                  *np.quantile(near[1], (0.1, 0.25, 0.5)), *np.quantile(near[0], (0.1, 0.5))]
    return found


def learned(known: Sequence[tuple[np.ndarray, int]]) -> Callable[[np.ndarray], float]:
    """A kernel ridge regression, fitted to so many degraded crops of each scene (B, H, W)."""
    rng, seen, told = np.random.default_rng(SEED), [], []
    for cube, draws in track(known, desc="fitting", unit="scene"):
        few = components(cube, 16)
        for _ in range(draws):
            side, mtf = int(rng.integers(84, 129)), float(rng.uniform(0.05, 0.95))
            y, x = (int(rng.integers(0, max(n - side, 0) + 1)) for n in few.shape[1:])
            crop = few[:, y:y + side, x:x + side]
            seen.append(statistics(low(crop, int(rng.choice(SCALE_FACTORS)), mtf)))
            told.append(mtf)
    samples, target = np.array(seen), np.array(told)
    mean, deviation, middle = samples.mean(0), samples.std(0) + 1e-6, float(target.mean())

    def scaled(values: np.ndarray) -> np.ndarray:
        return np.clip((values - mean) / deviation, -4, 4)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-0.1 * ((a[:, None] - b) ** 2).mean(-1))

    points = scaled(samples)
    weights = np.linalg.solve(kernel(points, points) + np.eye(len(points)), target - middle)

    def estimate(cube: np.ndarray) -> float:
        found = middle + kernel(scaled(statistics(cube))[None], points) @ weights
        return float(np.clip(found[0], 0.05, 0.95))

    return estimate


if __name__ == "__main__":
    run_script(main)
