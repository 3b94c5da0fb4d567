"""Compare the makers of low-resolution cubes in tests/makers.py with the packages they stand for.

    python -m pip install scikit-image==0.26.0 pillow==13.0.0   beside requirements.txt, outside CI
    python benchmarks/makers.py                                 exit code 1 when a maker is another

A figure is the largest difference over a seeded cube in [0, 1], 5 x 96 x 120: of all values, and
of those more than 3 pixels from the edges.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

TOLERANCE = 5e-7
"""Of float32 sums in another order."""


def by_skimage(cube: np.ndarray, scale: int) -> np.ndarray:
    from skimage.transform import resize
    size = cube.shape[1] // scale, cube.shape[2] // scale
    return np.stack([resize(band, size, order=3, anti_aliasing=True) for band in cube])


def by_pillow(cube: np.ndarray, scale: int, resampling: str) -> np.ndarray:
    from PIL import Image
    size, how = (cube.shape[2] // scale, cube.shape[1] // scale), Image.Resampling[resampling]
    return np.stack([np.asarray(Image.fromarray(band).resize(size, how)) for band in cube])


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.makers import ALIASED, SMOOTH, made_small
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random((5, 96, 120)), (0, 1, 1))
    cube = ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)
    failed = False
    print("scale  made by                              all      inside")
    for scale in (2, 3, 4, 8):
        made = {name: made_small(name, cube, scale) for name in SMOOTH | ALIASED}
        cubic, mean = made["torch bicubic, antialias"], made["block mean"]
        box = by_pillow(cube, scale, "BOX")
        pairs = [  # equal everywhere, or inside alone
            ("skimage itself and rebuilt", by_skimage(cube, scale), made["skimage resize"], True),
            ("Pillow cubic and torch antialias", by_pillow(cube, scale, "BICUBIC"), cubic, True),
            ("rasterio cubic and torch antialias", made["rasterio cubic"], cubic, True),
            ("MATLAB imresize and torch antialias", made["MATLAB imresize"], cubic, False),
            ("Pillow box and block mean", box, mean, True),
            ("cv2 INTER_AREA and block mean", made["cv2 INTER_AREA"], mean, True),
            ("cv2 INTER_CUBIC and torch", made["cv2 INTER_CUBIC"], made["torch bicubic"], True)]
        for words, one, other, everywhere in pairs:
            difference = np.abs(one - other)
            found, inside = difference.max(), difference[:, 3:-3, 3:-3].max()
            print(f"x{scale}     {words:36} {found:.1e}  {inside:.1e}")
            failed |= bool((found if everywhere else inside) > TOLERANCE)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
