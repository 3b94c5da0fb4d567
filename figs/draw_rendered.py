"""Draw rendered scenes, and print their statistics beside those of scene files.

    python figs/draw_rendered.py                   figs/rendered.png, and a table of rendered scenes
    python figs/draw_rendered.py --scenes a.mat b.mat       the same table with these scenes below

Each band is first scaled to zero mean and unit deviation. A number is a median over bands, unless
its line says otherwise:
gradient    deviation of the difference between neighbours in a row
tails       kurtosis of that difference: 3 for noise, large for few sharp edges
neighbours  correlation of neighbouring bands, and the smallest one
spectra     second difference along bands of the mean spectrum, root mean square over its standard
            deviation
darkest     mean of the darkest band, in the range of the scene
lost        root mean square of what interpolation, and back-projection, leave of x4 `gaussian`
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.rendering import KINDS, render_scene  # noqa: E402
from utility.cubes.bands import clean  # noqa: E402
from utility.cubes.values import unit_range  # noqa: E402
from utility.degradation import crop_to_multiple, downsample, start_image  # noqa: E402
from utility.report.figures import composite  # noqa: E402
from utility.scenes import read_scene  # noqa: E402
from utility.system.errors import run_script  # noqa: E402

COLUMNS = ("gradient", "tails", "neighbours", "smallest", "spectra", "darkest", "lost x4",
           "after bp")
BANDS = {"natural": 31, "overhead": 128}


def statistics(cube: Tensor) -> list[float]:
    """The statistics of a scene (B, H, W) in [0, 1], in the order of `COLUMNS`."""
    cube = crop_to_multiple(cube.double(), 4)
    mean, deviation = cube.mean((1, 2)), cube.std((1, 2)).clamp_min(1e-9)
    x = (cube - mean[:, None, None]) / deviation[:, None, None]
    step = x.diff(dim=2)
    power = step.square().mean((1, 2)).clamp_min(1e-12)
    neighbours = (x[1:] * x[:-1]).mean((1, 2))
    low = downsample(cube, 4, "gaussian")
    lost = []
    for start in ("interpolation", "backprojection"):
        error = cube - start_image(low, 4, "gaussian", start)
        lost.append((error.square().mean((1, 2)).sqrt() / deviation).median())
    found = (power.sqrt().median(), (step.pow(4).mean((1, 2)) / power.square()).median(),
             neighbours.median(), neighbours.min(),
             mean.diff(n=2).square().mean().sqrt() / mean.std().clamp_min(1e-9), mean.min(), *lost)
    return [float(value) for value in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", nargs="+", default=[], metavar="FILE",
                        help="scenes to compare with")
    parser.add_argument("--count", type=int, default=16,
                        help="rendered scenes a kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=2021,
                        help="of the rendered scenes (default: %(default)s)")
    parser.add_argument("--out", default=ROOT / "figs" / "rendered.png",
                        help="picture to draw (default: %(default)s)")
    options = parser.parse_args()
    print(f"{'':36s}" + "".join(f"{name:>12s}" for name in COLUMNS))
    rows = []
    for kind in KINDS:
        scenes = [render_scene(kind, seed=options.seed, number=n, bands=BANDS[kind], side=128)
                  for n in range(options.count)]
        table = np.array([statistics(torch.from_numpy(scene)) for scene in scenes])
        for name, share in (("a tenth below", 10), ("median", 50), ("a tenth above", 90)):
            print(f"{kind + ', ' + name:36s}"
                  + "".join(f"{v:12.3f}" for v in np.percentile(table, share, axis=0)))
        rgb = None if kind == "natural" else (18, 10, 4)
        rows.append(np.hstack([composite(scene, rgb=rgb) for scene in scenes[:8]]))
    for file in options.scenes:
        cube, _, _ = unit_range(clean(read_scene(file)).cube)
        print(f"{Path(file).stem:36s}"
              + "".join(f"{v:12.3f}" for v in statistics(torch.from_numpy(cube))))
    cv2.imwrite(str(options.out), np.vstack(rows)[..., ::-1])


if __name__ == "__main__":
    run_script(main)
