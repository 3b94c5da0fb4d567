"""The losses of a training: (N, B, H, W) float32 in [0, 1], and the truth -> a number."""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def band_loss(out: Tensor, truth: Tensor) -> Tensor:
    """Every band and every spectral angle counts alike, however dark.

    mean over bands of log(MSE_b / variance_b + 1e-4) + 0.3 mean over images of
    log(mean angle + 1e-3), angle in radians. A mean squared error is that of the bright bands and
    bright pixels; PSNR by band, ERGAS and SAM are not.
    """
    relative = (out - truth).square().mean((2, 3)) / (truth.var((2, 3), correction=0) + 1e-8)
    cosine = (out * truth).sum(1) / (out.norm(dim=1) * truth.norm(dim=1) + 1e-6)
    angle = ((2 - 2 * cosine).clamp_min(0) + 1e-6).sqrt()
    return (relative + 1e-4).log().mean() + 0.3 * (angle.mean((1, 2)) + 1e-3).log().mean()


LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss, "band": band_loss}
