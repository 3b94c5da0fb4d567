"""What becomes of low-resolution cubes that other programs made, by the default of `--input`.

    python studies/aliased.py --scenes FOLDER                    x4; a table
    python studies/aliased.py --scenes FOLDER --scale 2 --snr 25

Each scene in FOLDER is made small by each maker of tests/makers.py, and by sensors of three MTFs.
The table counts the cubes that are taken for aliased, and those whose default result, or that of
the network alone, is more than .05 dB below the interpolation. PSNR is the mean over bands.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from tests.makers import ALIASED, SMOOTH, made_small  # noqa: E402
from utility import weights  # noqa: E402
from utility.checkpoints import model_from_checkpoint  # noqa: E402
from utility.degradation import crop_to_multiple, downsample  # noqa: E402
from utility.indexes import band_psnr  # noqa: E402
from utility.names import ANY, SAFE_MTF  # noqa: E402
from utility.report.tables import markdown  # noqa: E402
from utility.scenes import Reading, list_scenes  # noqa: E402
from utility.superres.aliasing import for_aliasing  # noqa: E402
from utility.superres.methods import methods  # noqa: E402
from utility.superres.noise import told_noise, with_noise  # noqa: E402
from utility.superres.problem import Problem, for_noise  # noqa: E402
from utility.system.errors import Arguments, run_script  # noqa: E402
from utility.system.progress import track  # noqa: E402
from utility.testing.images import read_images  # noqa: E402

BANDS, SEED = 24, 2021
"""Bands of a scene that are taken, in even steps."""
MTFS = (0.3, 0.5, 0.8)


def makers() -> dict[str, Callable[[np.ndarray, int], np.ndarray]]:
    """By name: a cube (B, H, W) and a scale factor give (B, H/s, W/s)."""
    def sensor(cube: np.ndarray, scale: int, mtf: float) -> np.ndarray:
        return downsample(torch.from_numpy(cube), scale, f"{ANY} {mtf}").numpy()

    return ({f"sensor, MTF {mtf}": partial(sensor, mtf=mtf) for mtf in MTFS}
            | {name: partial(made_small, name) for name in SMOOTH | ALIASED})


def _in_words(gains: np.ndarray) -> str:
    return f"{gains.mean():+.2f}, {gains.min():+.2f}, {(gains < -0.05).sum()}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Arguments(__doc__)
    add = parser.add_argument
    add("--scenes", nargs="+", type=Path, required=True, metavar="PATH", help="scenes and folders")
    add("--scale", type=int, default=4, help="scale factor (default: 4)")
    add("--snr", type=float, metavar="DB", help="add noise of this ratio (default: none)")
    options = parser.parse_args(arguments)
    found = weights.choose(None, options.scale, f"{ANY} {SAFE_MTF}")
    net, info = model_from_checkpoint(found.path)
    images = list(read_images(list_scenes(options.scenes), Reading()))
    rows = []
    for name, make in track(makers().items(), desc="makers", unit="maker"):
        taken, gains = 0, []
        for image in images:
            cube = image.cube[::-(-len(image.cube) // BANDS)]
            gt = np.ascontiguousarray(crop_to_multiple(cube, options.scale))
            low = make(gt, options.scale)
            if options.snr is not None:
                low, _ = with_noise(low, options.snr, SEED, image.name)
            noise = told_noise(low, "auto")
            own = for_noise(Problem(options.scale, f"{ANY} {SAFE_MTF}", info.start,
                                    mtf_known=False, aliased=None), noise)
            default = for_aliasing(own, low)
            psnr = []
            for problem, key in ((default, default.method), (own, "network"),
                                 (own, "interpolation")):
                made = methods(net, low, replace(problem, tile=0), noise=noise)
                psnr.append(float(np.mean(band_psnr(made[key].cube(), gt))))
            taken += bool(default.aliased)
            gains.append(np.subtract(psnr[:2], psnr[2]))
        rows.append([name, str(taken), *map(_in_words, np.array(gains).T)])
    print(f"{len(images)} scenes, x{options.scale}, {found.path.stem}"
          + (f", SNR {options.snr:g} dB" if options.snr is not None else ""))
    print(markdown(["made by", "taken for aliased", "default above interpolation: mean, worst, "
                    "below -.05 dB", "network, likewise"], [rows]))


if __name__ == "__main__":
    run_script(main)
