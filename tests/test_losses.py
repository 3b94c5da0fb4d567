"""The band loss counts every band and every spectrum alike."""
import math

import torch

from utility.losses import band_loss


def pair(seed=0):
    truth = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return truth + 0.1 * torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64), truth


def test_it_computes_its_formula():
    out, truth = pair()
    bands = [math.log(float((out[n, b] - truth[n, b]).square().mean() / truth[n, b].var(correction=0)) + 1e-4)
             for n in range(2) for b in range(4)]
    angles = [math.log(float(torch.arccos(torch.cosine_similarity(out[n], truth[n], dim=0)).mean()) + 1e-3) for n in range(2)]
    assert abs(float(band_loss(out, truth)) - sum(bands) / 8 - 0.3 * sum(angles) / 2) < 0.02


def test_a_dark_band_weighs_as_much_as_a_bright_one():
    out, truth = pair()
    losses = []
    for band in (0, 1):
        worse, gain = out.clone(), torch.ones(1, 4, 1, 1, dtype=torch.float64)
        gain[:, 0] = 0.05
        worse[:, band] += 0.5 * truth[:, band].std()
        losses.append(float(band_loss(worse * gain, truth * gain) - band_loss(out * gain, truth * gain)))
    assert 0.5 < losses[0] / losses[1] < 1.5


def test_its_gradient_is_finite_where_the_result_is_exact_or_dark():
    for truth in (torch.rand(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)):
        out = truth.clone().requires_grad_()
        band_loss(out, truth).backward()
        assert out.grad.isfinite().all()
