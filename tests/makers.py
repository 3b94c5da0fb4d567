"""How other programs make a cube small: what users bring as their own low-resolution cubes.

Every maker takes a cube (B, H, W), float, whose sides are multiples of the scale, and returns
(B, H/s, W/s), float32. Packages that this project requires compute their own. MATLAB and
scikit-image are rebuilt from their formulas; Pillow computes what torch does.
`benchmarks/makers.py` compares them with the packages themselves.
"""
from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch
from rasterio import Affine
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from scipy import ndimage
from torch.nn import functional

from utility.degradation import downsample

Maker = Callable[[np.ndarray, int], np.ndarray]


def imresize(cube: np.ndarray, scale: int) -> np.ndarray:
    """MATLAB's `imresize`: Keys a=-.5 widened by the scale, symmetric edges."""
    return downsample(torch.from_numpy(cube), scale, "bicubic").numpy()


def block_mean(cube: np.ndarray, scale: int) -> np.ndarray:
    """The mean of each block of scale x scale pixels."""
    bands, height, width = cube.shape
    return cube.reshape(bands, height // scale, scale, width // scale, scale).mean((2, 4))


def torch_bicubic(cube: np.ndarray, scale: int, antialias: bool = False) -> np.ndarray:
    """`interpolate(mode="bicubic")`: Keys a=-.5 widened, or else a=-.75 as it is."""
    size = cube.shape[1] // scale, cube.shape[2] // scale
    batch = torch.from_numpy(cube)[None]
    return functional.interpolate(batch, size, mode="bicubic", antialias=antialias)[0].numpy()


def rasterio_cubic(cube: np.ndarray, scale: int) -> np.ndarray:
    """A decimated read by GDAL's cubic: Keys a=-.5 widened; taps past the edge are left out."""
    bands, height, width = cube.shape
    shape = bands, height // scale, width // scale
    with MemoryFile() as file:
        with file.open(driver="GTiff", count=bands, height=height, width=width, dtype="float32",
                       transform=Affine.scale(2, -2)) as target:
            target.write(cube)
        with file.open() as source:
            return source.read(out_shape=shape, resampling=Resampling.cubic)


def skimage_resize(cube: np.ndarray, scale: int) -> np.ndarray:
    """scikit-image's `resize(order=3, anti_aliasing=True)`, rebuilt.

    A Gaussian of (s - 1) / 2 pixels, a cubic spline at pixel centres, mirrored edges, and values
    kept in the range of the image.
    """
    soft = ndimage.gaussian_filter(cube, (0, (scale - 1) / 2, (scale - 1) / 2), mode="mirror")
    small = ndimage.zoom(soft, (1, 1 / scale, 1 / scale), order=3, mode="mirror", grid_mode=True)
    return np.clip(small, cube.min(), cube.max())


def cv2_resize(cube: np.ndarray, scale: int, interpolation: int) -> np.ndarray:
    """OpenCV's `resize`, a band at a time. INTER_CUBIC is Keys a=-.75, not widened."""
    size = cube.shape[2] // scale, cube.shape[1] // scale
    return np.stack([cv2.resize(band, size, interpolation=interpolation) for band in cube])


def scipy_zoom(cube: np.ndarray, scale: int) -> np.ndarray:
    """`scipy.ndimage.zoom`: a cubic spline, no blur, outer sample centres onto each other."""
    return ndimage.zoom(cube, (1, 1 / scale, 1 / scale), order=3)


def every_pixel(cube: np.ndarray, scale: int) -> np.ndarray:
    """The first pixel of each block, and nothing of the others."""
    return cube[:, ::scale, ::scale]


SMOOTH: dict[str, Maker] = {
    "MATLAB imresize": imresize,
    "torch bicubic, antialias": lambda cube, scale: torch_bicubic(cube, scale, antialias=True),
    "rasterio cubic": rasterio_cubic, "block mean": block_mean,
    "cv2 INTER_AREA": lambda cube, scale: cv2_resize(cube, scale, cv2.INTER_AREA),
    "skimage resize": skimage_resize}
"""Makers that blur before they take samples."""
ALIASED: dict[str, Maker] = {
    "cv2 INTER_CUBIC": lambda cube, scale: cv2_resize(cube, scale, cv2.INTER_CUBIC),
    "torch bicubic": torch_bicubic, "scipy zoom": scipy_zoom, "every s-th pixel": every_pixel}
"""Makers that take samples of a sharp image: energy beyond what any blur leaves."""


def made_small(maker: str, cube: np.ndarray, scale: int) -> np.ndarray:
    """The cube of a named maker, (B, H/s, W/s), float32, contiguous."""
    small = (SMOOTH | ALIASED)[maker](np.ascontiguousarray(cube, np.float32), scale)
    return np.ascontiguousarray(small, np.float32)
