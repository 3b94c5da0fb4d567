"""Networks and cubes that the tests of several subjects take."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.enums import ColorInterp
from scipy.ndimage import gaussian_filter

from models import Network, create_model
from utility.indexes import evaluate
from utility.lmdb_dataset import writing_database


def network(gain: float = 0.2, name: str = "biqrnn_2_2") -> Network:
    """A network that changes its input a little, out of its range; gain 0 is the identity."""
    torch.manual_seed(0)
    net = create_model(name)
    net.initialise("fast")
    with torch.no_grad():
        net.reconstructor.conv.deconv.weight.normal_(0, 1).mul_(gain)
    return net.eval()


def filled(name: str, seed: int = 0, **options) -> Network:
    """A network whose every weight matters, the biases included."""
    generator = torch.Generator().manual_seed(seed)
    net = create_model(name, **options)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / (
                p[0].numel() if p.dim() > 1 else 9) ** 0.5)
    return net


def smooth(bands: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A cube with edges and noise, in [0, 1.1]."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((bands, height // 5 + 1, width // 5 + 1))
    return (coarse.repeat(5, 1).repeat(5, 2)[:, :height, :width]
            + 0.1 * rng.random((bands, height, width))).astype(np.float32)


def make_database(path: str | Path, count: int = 13, shape: tuple[int, int, int] = (5, 16, 16),
                  validation: int = 4, seed: int = 0, sources: Sequence[dict] = (),
                  **facts: str) -> str:
    """Patches of sharp regions of smooth spectra."""
    rng = np.random.default_rng(seed)
    bands, height, width = shape
    with writing_database(path) as writer:
        for _ in range(count):
            regions = gaussian_filter(rng.normal(size=(3, height, width)), (0, 2, 2)).argmax(0)
            spectra = gaussian_filter(rng.random((3, bands)), (0, 1))
            writer.write(spectra[regions].transpose(2, 0, 1)[None])
        writer.finish(validation=validation, sources=list(sources), **facts)
    return str(path)


def geotiff(path: str | Path, cube: np.ndarray, nodata: float | None = None,
            mask: np.ndarray | None = None, alpha: np.ndarray | None = None, inside: bool = True,
            late: bool = False) -> Path:
    """A GeoTIFF of 30 m. `mask` is True where measured; `inside` the file or beside it; `late`
    tells the use of the alpha band after the values, which GDAL forgets."""
    bands = cube if alpha is None else np.concatenate([cube, alpha[None].astype(cube.dtype)])
    use = [ColorInterp.gray, *[ColorInterp.undefined] * (len(cube) - 1), ColorInterp.alpha]
    with (rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside),
          rasterio.open(path, "w", driver="GTiff", count=len(bands), height=cube.shape[1],
                        width=cube.shape[2], dtype=cube.dtype.name, nodata=nodata,
                        crs="EPSG:32633",
                        transform=rasterio.Affine(30, 0, 5e5, 0, -30, 5.1e6)) as file):
        if alpha is not None and not late:
            file.colorinterp = use
        file.write(bands)
        if late:
            file.colorinterp = use
        if mask is not None:
            file.write_mask(mask)
    return Path(path)


def envi(path: Path, cube: np.ndarray, nodata: str) -> Path:
    """An ENVI file, as text and bytes."""
    code = {"int16": 2, "float32": 4}[cube.dtype.name]
    path.with_suffix(".img").write_bytes(cube.tobytes())
    bands, rows, columns = cube.shape
    path.write_text(f"ENVI\nsamples = {columns}\nlines = {rows}\nbands = {bands}\ndata type = "
                    f"{code}\ninterleave = bsq\nbyte order = 0\ndata ignore value = {nodata}\n")
    return path


def scored(*names: str) -> list[dict]:
    """The indexes of images by three methods, of which the network is the best."""
    rng = np.random.default_rng(0)
    gt = rng.random((3, 20, 27))
    found = []
    for name in names:
        found.append({"name": name})
        for method, noise in (("interpolation", 0.1), ("backprojection", 0.05), ("network", 0.02)):
            cube = np.clip(gt + noise * rng.standard_normal(gt.shape), 0, 1)
            found[-1][method] = evaluate(cube, gt, 4)
    return found
