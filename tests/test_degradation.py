"""Degradation models: linear, separable, and equal to the library calls and kernels that define them."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from utility.degradation import (
    KINDS,
    SCALES,
    axis_matrix,
    axis_rows,
    crop_to_multiple,
    degrade,
    downsample,
    upsample,
    zoom_matrix,
)

PROBLEMS = [(kind, scale) for kind in KINDS for scale in SCALES if (kind, scale) != ("gaussian", 3)]
OPERATIONS = ["blur", "zoom_down", "zoom_up", "blur+zoom_down", "block_gaussian", "keys_down", "keys_up"]
# Keys' cubic, a = -0.5, at .25 .75 1.25 1.75:  1.5 d^3 - 2.5 d^2 + 1 inside, -.5 d^3 + 2.5 d^2 - 4 d + 2 outside
NEAR, MIDDLE, FAR, LAST = 0.8671875, 0.2265625, -0.0703125, -0.0234375


def cube(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random(shape))


@pytest.mark.parametrize(("kind", "scale"), PROBLEMS)
def test_it_is_linear(kind, scale):
    x, y = cube(2, 6, 48, 72), cube(2, 6, 48, 72, seed=1)
    for operation in (downsample, upsample, degrade):
        both = operation(2.5 * x - 0.75 * y, scale, kind)
        assert torch.allclose(both, 2.5 * operation(x, scale, kind) - 0.75 * operation(y, scale, kind), atol=1e-12)


@pytest.mark.parametrize(("kind", "scale"), PROBLEMS)
def test_shapes_types_and_batches(kind, scale):
    x = cube(2, 3, 6, 24, 48).float()
    low = downsample(x, scale, kind)
    assert low.shape == (2, 3, 6, 24 // scale, 48 // scale) and low.dtype == torch.float32
    assert upsample(low, scale, kind).shape == x.shape
    done = degrade(x, scale, kind)
    assert torch.equal(done, upsample(low, scale, kind))
    for i in range(2):
        for j in range(3):
            assert torch.allclose(done[i, j], degrade(x[i, j], scale, kind), atol=1e-6)
    assert torch.allclose(done.double(), degrade(x.double(), scale, kind), atol=1e-5)


def goes_dark(n_in, n_out):
    """Whether scipy's own zoom leaves its last sample zero at this size."""
    return ndimage.zoom(np.ones(n_in), n_out / n_in, order=3)[-1] == 0


@pytest.mark.parametrize("size", [24, 32, 40, 64, 256])
@pytest.mark.parametrize(("kind", "scale"), PROBLEMS)
def test_a_constant_stays_constant_but_where_scipy_s_zoom_goes_dark(kind, scale, size):
    size -= size % scale
    low = downsample(torch.ones(3, size, size, dtype=torch.float64), scale, kind)
    expected = torch.ones_like(low)
    if kind in ("reference", "spatial") and goes_dark(size, size // scale):
        expected[:, -1] = expected[:, :, -1] = 0
    assert torch.allclose(low, expected, atol=1e-10)


def test_the_sizes_at_which_scipy_goes_dark_are_repeated_and_no_other_kind_has_them():
    assert goes_dark(32, 16) and goes_dark(256, 32) and not goes_dark(64, 16)
    ones = torch.ones(2, 32, 32, dtype=torch.float64)
    assert downsample(ones, 2, "spatial")[:, -1].abs().max() == 0
    assert downsample(ones, 2, "bicubic").min() == pytest.approx(1)


@pytest.mark.parametrize(("shape", "scale"), [((7, 32, 48), 2), ((5, 30, 45), 3), ((31, 64, 40), 4), ((4, 64, 72), 8),
                                              ((3, 256, 16), 8)])
@pytest.mark.parametrize("kind", ["reference", "spatial"])
def test_reference_and_spatial_are_scipy_s_own_calls(kind, shape, scale):
    x = cube(*shape).numpy()
    sigma = (3.0, 3.0, 3.0) if kind == "reference" else (0.0, 3.0, 3.0)
    blurred = ndimage.gaussian_filter(x, sigma, mode="reflect", radius=tuple(3 if s else 0 for s in sigma))
    low = ndimage.zoom(blurred, (1, 1 / scale, 1 / scale), order=3)
    high = ndimage.zoom(low, (1, scale, scale), order=3)
    x = torch.from_numpy(x)
    assert np.abs(downsample(x, scale, kind).numpy() - low).max() < 1e-10
    assert np.abs(upsample(torch.from_numpy(low), scale, kind).numpy() - high).max() < 1e-10
    assert np.abs(degrade(x, scale, kind).numpy() - high).max() < 1e-10


def test_bicubic_takes_every_second_sample_as_imresize_does():
    """LR pixel j lies at 2 j + 0.5: its taps are .25, .75, 1.25, 1.75 away in LR pixels, and sum to 2."""
    half = np.array([NEAR, MIDDLE, FAR, LAST]) / 2
    matrix = axis_matrix("keys_down", 16, 2)
    assert np.allclose(matrix[3], np.concatenate([np.zeros(3), half[::-1], half, np.zeros(5)]), atol=1e-15)
    # at the edge the samples are mirrored with the edge repeated: -1 is 0, -2 is 1, -3 is 2
    edge = np.zeros(16)
    edge[:5] = half[0] + half[1], half[0] + half[2], half[1] + half[3], half[2], half[3]
    assert np.allclose(matrix[0], edge, atol=1e-15)
    assert np.allclose(matrix, matrix[::-1, ::-1], atol=1e-15)


def test_bicubic_upsampling_has_four_taps_at_quarter_distances():
    """HR pixels 7 and 8 lie at 3.25 and 3.75 LR samples, as imresize places them."""
    matrix = axis_matrix("keys_up", 8, 2)
    assert np.allclose(matrix[7], [0, 0, FAR, NEAR, MIDDLE, LAST, 0, 0], atol=1e-15)
    assert np.allclose(matrix[8], [0, 0, LAST, MIDDLE, NEAR, FAR, 0, 0], atol=1e-15)
    assert np.allclose(matrix.sum(axis=1), 1)


def test_bicubic_of_scale_three_hits_samples_exactly():
    matrix = axis_matrix("keys_up", 6, 3)
    assert np.allclose(matrix[1::3], np.eye(6))  # pixel 3 k + 1 is the centre of sample k


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_bicubic_keeps_a_straight_line_away_from_the_edges(scale):
    line = np.arange(24.0 * scale)
    low = axis_matrix("keys_down", 24 * scale, scale) @ line
    assert np.allclose(low[2:-2], np.arange(24)[2:-2] * scale + (scale - 1) / 2)
    up = axis_matrix("keys_up", 24, scale) @ np.arange(24.0)
    assert np.allclose(up[2 * scale:-2 * scale], ((line + 0.5) / scale - 0.5)[2 * scale:-2 * scale])


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_gaussian_weighs_eight_samples_about_the_centre_of_each_block(scale):
    taps = np.exp(-((np.arange(8) - 3.5) ** 2) / 18)
    taps /= taps.sum()
    n = 8 * scale
    matrix = axis_matrix("block_gaussian", n, scale)
    for j in (3, 4):
        first = int(scale * j + (scale - 1) / 2 - 3.5)
        expected = np.zeros(n)
        expected[first:first + 8] = taps
        assert np.allclose(matrix[j], expected, atol=1e-15)
    assert np.allclose(matrix.sum(axis=1), 1) and np.allclose(matrix, matrix[::-1, ::-1])
    if scale == 4:  # taps -2 .. 5, of which -1 folds to 0 and -2 to 1
        assert np.allclose(matrix[0, :3], [taps[2] + taps[1], taps[3] + taps[0], taps[4]])


def test_only_reference_mixes_bands():
    x = torch.zeros(9, 24, 24, dtype=torch.float64)
    x[4] = cube(24, 24)
    for kind in KINDS:
        lit = downsample(x, 4, kind).abs().amax((1, 2)) > 0
        assert lit.tolist() == [abs(b - 4) <= 3 if kind == "reference" else b == 4 for b in range(9)]


def test_one_band_and_tiny_images_work():
    for kind, scale in PROBLEMS:
        assert torch.isfinite(degrade(cube(1, scale, scale), scale, kind)).all()
        assert torch.isfinite(degrade(cube(1, scale, 5 * scale), scale, kind)).all()
    assert np.array_equal(zoom_matrix(1, 4), np.ones((4, 1)))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(OPERATIONS), st.integers(2, 40), st.sampled_from(SCALES), st.data())
def test_rows_of_an_operation_are_those_of_its_matrix(operation, blocks, scale, data):
    if operation == "block_gaussian" and scale == 3:
        scale = 4
    n = blocks if operation.endswith("_up") else blocks * scale
    whole = axis_matrix(operation, n, scale)
    first = data.draw(st.integers(0, len(whole) - 1))
    last = data.draw(st.integers(first + 1, len(whole)))
    start, part = axis_rows(operation, n, scale, first, last)
    rows = np.zeros((last - first, n))
    rows[:, start:start + part.shape[1]] = part
    assert np.abs(rows - whole[first:last]).max() < 1e-12


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_few_rows_of_a_long_axis_need_a_few_of_its_samples(operation):
    start, part = axis_rows(operation, 40_000, 4, 2000, 2010)
    assert part.shape[1] < 200 and start > 0


def test_matrices_are_kept_and_cannot_be_changed():
    matrix = axis_matrix("zoom_down", 64, 4)
    assert axis_matrix("zoom_down", 64, 4) is matrix
    with pytest.raises(ValueError, match="read-only"):
        matrix[0, 0] = 1


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_does_not_touch_it(kind):
    x = cube(1, 4, 32, 32).float()
    plain = degrade(x, 2, kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(degrade(x, 2, kind), plain)


def test_gradients_flow_through_it():
    x = cube(2, 8, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: degrade(v, 2, "reference"), x)


def test_a_cube_is_cropped_at_its_lower_and_right_edges():
    x = cube(3, 33, 38)
    assert torch.equal(crop_to_multiple(x, 4), x[:, :32, :36]) and crop_to_multiple(x.numpy(), 3).shape == (3, 33, 36)
    assert torch.equal(crop_to_multiple(x, 1), x)


@pytest.mark.parametrize(("shape", "scale", "kind", "words"), [
    ((3, 33, 32), 4, "spatial", "33 x 32 image cannot be degraded by x4: crop it"),
    ((3, 32, 30), 4, "bicubic", "crop it to multiples of 4"),
    ((3, 30, 30), 5, "bicubic", "unknown scale factor 5; choose one of 2, 3, 4, 8"),
    ((3, 32, 32), 4, "blurry", "unknown degradation 'blurry'; choose one of reference, spatial, gaussian, bicubic"),
    ((3, 30, 30), 3, "gaussian", "needs an even scale factor, not 3")])
def test_what_cannot_be_degraded_is_refused(shape, scale, kind, words):
    with pytest.raises(ValueError, match=words):
        degrade(cube(*shape), scale, kind)
    with pytest.raises(ValueError, match="unknown operation 'sharpen'"):
        axis_matrix("sharpen", 8, 2)
