"""What becomes of low-resolution cubes that other programs made, by the default of `--input`.

    python studies/aliased.py --scenes FOLDER                    x4; a table
    python studies/aliased.py --scenes FOLDER --scale 2 --snr 25 --counts

Each scene in FOLDER is made small by each maker of tests/makers.py, and by sensors of three MTFs.
The table counts the cubes that are taken for aliased, those that are taken for sharp, and those
whose default result, or that of the network alone, is more than .05 dB below the interpolation.
PSNR is the mean over bands.
"""
from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from models import Network  # noqa: E402
from tests.makers import ALIASED, SMOOTH, Maker, made_small  # noqa: E402
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
from utility.system.errors import Arguments, UserError, run_script  # noqa: E402
from utility.system.progress import track  # noqa: E402
from utility.testing.images import TestImage, read_images  # noqa: E402

BANDS = 12
"""Bands of a scene that are taken, in even steps."""
MTFS = (0.3, 0.5, 0.8)


def makers() -> dict[str, Maker]:
    """By name: a cube (B, H, W) and a scale factor give (B, H/s, W/s)."""
    def sensor(cube: np.ndarray, scale: int, mtf: float) -> np.ndarray:
        return downsample(torch.from_numpy(cube), scale, f"{ANY} {mtf}").numpy()

    return ({f"sensor, MTF {mtf}": partial(sensor, mtf=mtf) for mtf in MTFS}
            | {name: partial(made_small, name) for name in SMOOTH | ALIASED})


def measured(net: Network, image: TestImage, make: Maker, own: Problem, snr: float | None,
             seed: int, counts: bool) -> tuple[float, ...]:
    """Of a scene made small: whether it is taken for aliased, and for sharp; unless `counts`, the
    PSNR of the default result, and of the network alone, above the interpolation, in dB."""
    gt = crop_to_multiple(image.cube[::-(-len(image.cube) // BANDS)], own.scale)
    gt = np.ascontiguousarray(gt)
    low = make(gt, own.scale)
    if snr is not None:
        low, _ = with_noise(low, snr, seed, image.name)
    noise = told_noise(low, "auto")
    own = for_noise(own, noise)

    def psnr(problem: Problem) -> float:
        result = methods(net, low, problem, noise=noise)[problem.method].cube()
        return float(np.mean(band_psnr(result, gt)))

    default = for_aliasing(own, low)
    taken = bool(default.aliased), default.sharp
    if counts:
        return taken
    plain, network = psnr(replace(own, method="interpolation")), psnr(own)
    found = psnr(default) if default.aliased or default.sharp else network
    return *taken, found - plain, network - plain


def _in_words(gains: np.ndarray) -> str:
    return f"{gains.mean():+.2f}, {gains.min():+.2f}, {(gains < -0.05).sum()}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Arguments(__doc__)
    add = parser.add_argument
    add("--scenes", nargs="+", type=Path, required=True, metavar="PATH", help="scenes and folders")
    add("--scale", type=int, default=4, help="scale factor (default: 4)")
    add("--snr", type=float, metavar="DB", help="add noise of this ratio (default: none)")
    add("--seed", type=int, default=2021, help="of the noise (default: 2021)")
    add("--counts", action="store_true", help="count alone; the rest takes minutes")
    options = parser.parse_args(arguments)
    weights_file = weights.choose(None, options.scale, f"{ANY} {SAFE_MTF}")
    if weights_file is None:
        raise UserError(f"No shipped weights are for x{options.scale} and any MTF; choose another "
                        "--scale.")
    net, info = model_from_checkpoint(weights_file.path)
    own = Problem(options.scale, f"{ANY} {SAFE_MTF}", info.start, mtf_known=False, aliased=None,
                  tile=0)
    images = list(read_images(list_scenes(options.scenes), Reading()))
    rows = []
    for name, make in track(makers().items(), desc="makers", unit="maker"):
        found = np.array([measured(net, image, make, own, options.snr, options.seed,
                                   options.counts)
                          for image in images])
        counts = [str(int(column.sum())) for column in found.T[:2]]
        rows.append([name, *counts, *map(_in_words, found.T[2:])])
    print(f"{len(images)} scenes, x{options.scale}, {weights_file.path.stem}"
          + (f", SNR {options.snr:g} dB" if options.snr is not None else ""))
    header = ["made by", "taken for aliased", "for sharp", "default above interpolation: mean, "
              "worst, below -.05 dB", "network, likewise"]
    print(markdown(header[:len(rows[0])], [rows]))


if __name__ == "__main__":
    run_script(main)
