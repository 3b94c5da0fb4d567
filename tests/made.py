"""Networks and cubes that the tests of several subjects take."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from models import Network, create_model
from utility.indexes import evaluate
from utility.lmdb_dataset import writing_database


def network(gain: float = 0.2, name: str = "biqrnn_2_2") -> Network:
    """A network that changes its input a little, past the values that it had; gain 0 is the
    identity."""
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
