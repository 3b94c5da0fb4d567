"""The network on the low-resolution grid: any gain of a band, exact tiles, all scales."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from made import filled

from models import Window, create_model, list_models, matching_models
from models.layers import row_blocks
from models.layers.pooling.loop import pool as reference_pool
from models.layers.units import conv3d
from models.lowgrid import _moments, _standardised
from utility.degradation import downsample, upsample
from utility.superres.tiling import WORKSPACE, super_resolve, super_resolve_cube, window_of
from utility.system.memory import resident


def given(scale, bands=5, side=32, dtype=torch.float32):
    """A start image and its low-resolution cube."""
    truth = torch.rand(1, 1, bands, side, side + 8, generator=torch.Generator().manual_seed(1),
                       dtype=dtype)
    low = downsample(truth, scale, "area")
    return upsample(low, scale, "area"), low


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("bands", [1, 5])
def test_any_number_of_bands_at_each_scale(scale, bands):
    net = filled("lowgrid_4_2")
    x, low = given(scale, bands)
    assert net(*net.inputs(x, low)).shape == x.shape
    assert (net(*net.inputs(x, low)) - x).abs().mean() > 0.01


def test_it_computes_its_definition():
    net = filled("lowgrid_4_2").double()
    x, low = given(4, dtype=torch.float64)
    mean, deviation = low.mean((3, 4)), (low.var((3, 4), correction=0) + 1e-10).sqrt()
    blocks = ((x - mean[..., None, None]) / deviation[..., None, None]).unflatten(
        -1, (-1, 4)).unflatten(-3, (-1, 4))
    # row and column in the block are channels
    shuffled = blocks[:, 0].permute(0, 3, 5, 1, 2, 4).flatten(1, 2)
    h = torch.cat([shuffled, (low / (mean[..., None, None] + 1e-4)).clamp(0, 4)], 1)
    h = reference_pool(net.head["4"].conv(h), "f", "both", None)
    for unit in net.body:
        h = h + reference_pool(unit.conv(h), "f", "both", None)
    out = net.end["4"](net.tail(h).tanh())
    high = out.unflatten(1, (4, 4)).permute(0, 3, 4, 1, 5, 2).reshape(x.shape)
    assert torch.allclose(net(*net.inputs(x, low)), x + high * deviation[..., None, None],
                          atol=1e-6)


def test_a_band_s_gain_comes_out_as_it_went_in():
    """So a nearly dark band gets a residual as small as it is."""
    net = filled("lowgrid_4_2").double()
    x, low = given(4, dtype=torch.float64)
    gain = torch.tensor([1.0, 0.01, 0.3, 2.0, 0.5], dtype=torch.float64).view(1, 1, 5, 1, 1)
    expected, got = net(*net.inputs(x, low)), net(*net.inputs(gain * x, gain * low)) / gain
    assert (got - expected).abs().max() < 0.02 * (expected - x).abs().max()


def test_a_constant_band_stays():
    net = filled("lowgrid_4_2")
    x, low = (torch.cat([t, torch.full_like(t[:, :, :1], 0.3)], dim=2) for t in given(4))
    assert (net(*net.inputs(x, low)) - x)[:, :, -1].abs().max() < 1e-3


@pytest.mark.parametrize("voxels", [1, 700, 10**6])
def test_blocks_of_rows_give_the_whole_image_s_result_and_that_of_any_window(voxels):
    net, (x, low) = filled("lowgrid_4_2"), given(4, side=80)
    inputs = net.inputs(x, low)
    expected = net(*inputs)  # with gradients, whole
    net.set_execution(block_voxels=voxels)
    with torch.no_grad():
        assert (net(*inputs) - expected).abs().max() < 1e-5
        for top, bottom, left, right in ((0, 8, 0, 88), (8, 40, 8, 40), (36, 80, 40, 88),
                                         (76, 80, 0, 4)):
            wanted = Window(top, bottom, left, right, *x.shape[-2:])
            have = wanted.grown(net.halo(4))
            rows, columns = slice(have.top, have.bottom), slice(have.left, have.right)
            low_rows, low_columns = (slice(s.start // 4, s.stop // 4) for s in (rows, columns))
            found = net.in_window(wanted, have, x[..., rows, columns],
                                  low[..., low_rows, low_columns], inputs[2])
            assert (found - expected[..., top:bottom, left:right]).abs().max() < 1e-5


@pytest.fixture
def kernels(monkeypatch):
    """The names of the kernels that torch takes for the convolutions through `conv3d`.

    It leaves oneDNN where batch x channels x bands x rows is 20,480 or less, and the batch is one.
    """
    taken = []

    def conv3d(x, weight, bias=None, stride=1, padding=0):
        how = ([stride] * 3 if isinstance(stride, int) else stride, padding, (1, 1, 1), False,
               (0,), 1)
        taken.append(torch._C._select_conv_backend(x, weight, bias, *how).name)
        return torch.convolution(x, weight, bias, *how)

    monkeypatch.setattr(torch.nn.functional, "conv3d", conv3d)
    return taken


@pytest.mark.parametrize("side", [20, 84])
def test_no_image_is_convolved_by_the_kernel_for_a_batch_of_one_that_is_slow(kernels, side):
    if row_blocks._ONEDNN is None:
        pytest.skip("this torch has no oneDNN to call")
    net, (x, low) = filled("lowgrid_32_2"), given(4, bands=5, side=side)
    with torch.no_grad():
        net(*net.inputs(x, low))
    assert not [name for name in kernels if "Slow" in name]


@pytest.mark.parametrize(("arch", "side"), [("lowgrid_32_2", 36), ("biqrnn_8_1", 20)])
def test_a_training_on_one_small_patch_does_not_take_the_slow_kernel_either(kernels, arch, side):
    net, (x, low) = filled(arch), given(4, bands=5, side=side)
    net(*net.inputs(x, low)).sum().backward()
    assert len(kernels) >= 4 and not [name for name in kernels if "Slow" in name]


@pytest.mark.parametrize(("shape", "kernel", "stride"), [
    ((1, 3, 4, 7, 5), (3, 3, 3), 1), ((1, 3, 4, 8, 5), (1, 3, 3), 1),
    ((1, 2, 1, 1, 3), (3, 3, 3), 1), ((1, 3, 4, 8, 6), (3, 3, 3), 2),
    ((1, 3, 4, 9, 7), (3, 3, 3), 2), ((2, 3, 4, 5, 5), (3, 3, 3), 1)])
def test_a_small_image_in_halves_is_convolved_as_a_whole_and_so_are_its_gradients(
        shape, kernel, stride):
    rng = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=rng, requires_grad=True)
                       for size in (shape, (4, shape[1], *kernel), (4,)))
    padding = (kernel[0] // 2, 1, 1)
    expected = torch.convolution(x, weight, bias, (1, stride, stride), padding, (1, 1, 1), False,
                                 (0,), 1)
    found, pull = conv3d(x, weight, bias, stride), torch.randn(expected.shape, generator=rng)
    assert torch.allclose(found, expected, atol=1e-5)
    for one, other in zip(torch.autograd.grad(found, (x, weight, bias), pull),
                          torch.autograd.grad(expected, (x, weight, bias), pull), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_tiles_give_the_whole_scene_s_result(scale):
    net = filled("lowgrid_4_2")
    cube = torch.from_numpy(np.random.default_rng(0).random((3, 168, 120), dtype=np.float32))
    low = downsample(cube, scale, "gaussian")
    start, low = upsample(low, scale, "gaussian").numpy(), low.numpy()
    whole = super_resolve_cube(net, start, low, tile=0)
    assert np.abs(whole - start).max() > 0.01
    assert np.abs(super_resolve_cube(net, start, low, tile=32) - whole).max() < 1e-5


def test_training_starts_at_the_start_image_and_moves_the_body():
    net = create_model("lowgrid_4_2")
    net.initialise("fast", torch.Generator().manual_seed(0))
    x, low = given(4)
    assert torch.equal(net(*net.inputs(x, low)), x)
    torch.nn.init.ones_(net.end["4"].weight)
    net(*net.inputs(x, low)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0
               for p in (net.head["4"].conv.weight, net.body[1].conv.weight, net.tail.weight))
    assert net.head["8"].conv.weight.grad is None


def test_it_needs_a_grid_of_blocks_and_is_not_listed_as_published():
    net = create_model("lowgrid_4_2")
    for kind in ("gaussian", "bicubic"):
        net.check_problem(4, kind)
    for scale, kind in ((4, "spatial"), (3, "bicubic")):
        with pytest.raises(ValueError, match="lowgrid_4_2 cannot do"):
            net.check_problem(scale, kind)
    assert matching_models({name: tuple(p.shape) for name, p in net.state_dict().items()}) == [
        "lowgrid_4_2"]
    assert not any(name.startswith("lowgrid") for name in list_models())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system tells no peak")
@pytest.mark.parametrize("scale", [2, 4])
def test_the_memory_that_it_states_is_what_it_takes_beside_the_workspace(scale):
    net, shape = create_model("lowgrid_8_2").eval(), (31, 512, 512)
    x = torch.rand(1, 1, *shape)
    low = torch.rand(1, 1, 31, 512 // scale, 512 // scale)
    cube = x[0, 0].numpy()

    def start(top, bottom, left, right):  # made as it is read, as interpolation makes it
        return cube[:, top:bottom, left:right].copy()

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = resident()
    super_resolve(net, start, shape, lambda *_: None, low=window_of(low[0, 0].numpy()), scale=scale,
                  tile=0)
    peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
    stated = net.bytes_per_pixel(31, scale) * 512 ** 2
    assert stated / 3 < int(peak) * 1024 - before < stated + WORKSPACE


def test_one_that_is_told_of_the_sensor_takes_its_noise_and_mtf_for_each_band():
    net = filled("lowgrid_4_2_sensor").double()
    x, low = given(2, bands=4, side=24, dtype=torch.float64)
    silent = net(*net.inputs(x, low))
    told = torch.stack([torch.full((1, 4), v, dtype=torch.float64) for v in (0.0, 0.4, 1.0)], 1)
    known = net(*net.inputs(x, low, told=told))
    # knowing that the MTF is 0.4 is not the same as knowing none
    assert (known - silent).abs().max() > 1e-3
    told[:, 0] = low.var((3, 4))[:, 0] * 0.25
    noisy = net(*net.inputs(x, low, told=told))
    half = torch.full_like(low, 0.5)
    features = torch.cat([half, torch.zeros_like(low), torch.ones_like(low)], 1)
    found = _standardised(x, low, _moments(net.statistics(low), x.dtype), 2, told)[:, -3:]
    assert torch.allclose(found, features, atol=1e-2) and (noisy - known).abs().max() > 1e-3


def test_tiles_of_one_that_is_told_of_the_sensor_are_the_whole():
    net = filled("lowgrid_4_2_sensor")
    x, low = (t[0, 0].numpy() for t in given(4, side=128))
    told = torch.stack([torch.full((1, 5), v) for v in (1e-4, 0.2, 1.0)], 1)
    whole = super_resolve_cube(net, x, low, tile=0, told=told)
    assert np.abs(whole - super_resolve_cube(net, x, low, tile=0)).max() > 1e-3
    for tile in (32, 64):
        assert np.abs(super_resolve_cube(net, x, low, tile=tile, told=told) - whole).max() < 1e-5


def test_what_is_added_to_a_dark_pixel_is_small_and_nothing_falls_far_below_its_surroundings():
    net = filled("lowgrid_4_2_sensor").double()
    x, low = given(4, dtype=torch.float64)
    shade = torch.ones_like(low)
    shade[..., :4, :] = 0.001
    low, x = low * shade, x * shade.repeat_interleave(4, -2).repeat_interleave(4, -1)
    out = net(*net.inputs(x, low))
    added = (out - x).abs()
    assert added[..., :12, :].max() < 0.01 * added[..., 24:, :].max()
    darkest = -torch.nn.functional.max_pool3d(-low, (1, 3, 3), 1, (0, 1, 1))
    floor = darkest.repeat_interleave(4, -2).repeat_interleave(4, -1) / 2
    assert (out >= floor - 1e-12).all() and (out == floor).any()


def test_a_negative_pixel_may_stay_what_it_is():
    net = filled("lowgrid_4_2_sensor").double()
    x, low = given(4, dtype=torch.float64)
    low[..., 5, 5] -= 2
    x[..., 20:24, 20:24] -= 2
    out = net(*net.inputs(x, low))[..., 20:24, 20:24]
    assert (out < 0.9 * low[..., 5:6, 5:6]).any()
    assert (out >= low[..., 5:6, 5:6] - 1e-12).all()
