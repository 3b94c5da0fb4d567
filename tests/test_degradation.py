"""Degradations: linear, separable, equal to the calls and kernels that define them."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from utility.degradation import (
    KINDS,
    SCALES,
    STARTS,
    Degradation,
    _nearest_mtf,
    add_noise,
    axis_matrix,
    axis_rows,
    crop_to_multiple,
    dark_note,
    degrade,
    downsample,
    grid,
    start_image,
    upsample,
    zoom_matrix,
)

NAMES = ["mtf 0.3", "mtf 0.7,0.08", *(kind for kind in KINDS if kind != "mtf")]
PROBLEMS = [(kind, scale) for kind in NAMES for scale in SCALES if (kind, scale) != ("gaussian", 3)]
ALL = [Degradation.of(4, name) for name in NAMES]
DOWN = {(operations, one.up_operations) for one in ALL for operations in one.down_operations}
OPERATIONS = sorted({down for down, _ in DOWN} | {up for _, up in DOWN}
                    | {up + down for down, up in DOWN} | {("blur",), ("zoom_down",), ()})
# Keys' cubic, a = -0.5, at .25 .75 1.25 1.75:
# 1.5 d^3 - 2.5 d^2 + 1 inside, -.5 d^3 + 2.5 d^2 - 4 d + 2 outside
NEAR, MIDDLE, FAR, LAST = 0.8671875, 0.2265625, -0.0703125, -0.0234375


def cube(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random(shape))


@pytest.mark.parametrize(("kind", "scale"), PROBLEMS)
def test_it_is_linear(kind, scale):
    x, y = cube(2, 6, 48, 72), cube(2, 6, 48, 72, seed=1)
    for operation in (downsample, upsample, degrade):
        both = operation(2.5 * x - 0.75 * y, scale, kind)
        assert torch.allclose(both,
                              2.5 * operation(x, scale, kind) - 0.75 * operation(y, scale, kind),
                              atol=1e-12)


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


@pytest.mark.parametrize("size", [24, 32, 64, 256])
@pytest.mark.parametrize(("kind", "scale"), PROBLEMS)
def test_a_constant_stays_constant_but_where_reference_repeats_the_dark_last_sample_of_scipy(
        kind, scale, size):
    size -= size % scale
    low = downsample(torch.ones(3, size, size, dtype=torch.float64), scale, kind)
    dark = goes_dark(size, size // scale)
    if kind != "reference" or not dark:
        assert torch.allclose(low, torch.ones_like(low), atol=1e-10)
        assert torch.allclose(upsample(low, scale, kind),
                              torch.ones(3, size, size, dtype=torch.float64), atol=1e-9)
    else:
        assert (low[:, -1].abs().max() == low[:, :, -1].abs().max() == 0
                and torch.allclose(low[:, :-1, :-1], low[0, 0, 0]))
    assert Degradation.of(scale, kind).is_dark(size) == (
        kind == "reference" and (dark or goes_dark(size // scale, size)))


def test_spatial_is_scipy_but_for_the_dark_last_sample():
    for n_in, n_out in ((32, 16), (256, 32), (87, 261), (64, 16)):
        scipy, mended = zoom_matrix(n_in, n_out, dark=True), zoom_matrix(n_in, n_out)
        assert np.array_equal(scipy, ndimage.zoom(np.eye(n_in), (n_out / n_in, 1), order=3))
        assert (np.array_equal(scipy[:-1], mended[:-1])
                and np.allclose(mended[-1], np.eye(n_in)[-1], atol=1e-12))
        assert (not scipy[-1].any()) == goes_dark(n_in, n_out)


def test_the_sizes_that_reference_darkens_are_counted_and_named_with_the_nearest_free_of_it():
    for scale, sizes, affected in ((2, 511, 59), (4, 255, 30), (8, 127, 14)):
        degradation = Degradation.of(scale, "reference")
        found = [degradation.is_dark(n) for n in range(2 * scale, 1025, scale)]
        assert (len(found), sum(found)) == (sizes, affected)
    assert dark_note(64, 64, 4, "reference") is dark_note(32, 32, 2, "spatial") is None
    note = dark_note(32, 30, 2, "reference")
    assert "the last row and column of 32 x 30 images black" in note
    assert "26 or 34 instead of 32, 26 or 34 instead of 30 pixels" in note
    assert "the last column of 40 x 256 " in dark_note(40, 256, 8, "reference")
    assert "248 or 264 instead of 256 pixels" in dark_note(256, 256, 8, "reference")


@pytest.mark.parametrize(("shape", "scale"),
                         [((7, 32, 48), 2), ((5, 30, 45), 3), ((31, 64, 40), 4), ((4, 64, 72), 8),
                          ((3, 256, 16), 8)])
@pytest.mark.parametrize("kind", ["reference", "spatial"])
def test_reference_and_spatial_are_scipy_s_own_calls(kind, shape, scale):
    x = cube(*shape).numpy()
    if kind == "spatial" and any(goes_dark(n, n // scale) for n in shape[1:]):
        x = x[:, :24, :24]
    sigma = (3.0, 3.0, 3.0) if kind == "reference" else (0.0, 3.0, 3.0)
    blurred = ndimage.gaussian_filter(x, sigma, mode="reflect",
                                      radius=tuple(3 if s else 0 for s in sigma))
    low = ndimage.zoom(blurred, (1, 1 / scale, 1 / scale), order=3)
    high = ndimage.zoom(low, (1, scale, scale), order=3)
    x = torch.from_numpy(x)
    assert np.abs(downsample(x, scale, kind).numpy() - low).max() < 1e-10
    assert np.abs(upsample(torch.from_numpy(low), scale, kind).numpy() - high).max() < 1e-10
    assert np.abs(degrade(x, scale, kind).numpy() - high).max() < 1e-10


def test_bicubic_takes_every_second_sample_as_imresize_does():
    """LR pixel j lies at 2 j + 0.5: its taps are .25, .75, 1.25, 1.75 LR pixels away, of sum 2."""
    half = np.array([NEAR, MIDDLE, FAR, LAST]) / 2
    matrix = axis_matrix(("keys_down",), 16, 2)
    assert np.allclose(matrix[3], np.concatenate([np.zeros(3), half[::-1], half, np.zeros(5)]),
                       atol=1e-15)
    # at the edge the samples are mirrored with the edge repeated: -1 is 0, -2 is 1, -3 is 2
    edge = np.zeros(16)
    edge[:5] = half[0] + half[1], half[0] + half[2], half[1] + half[3], half[2], half[3]
    assert np.allclose(matrix[0], edge, atol=1e-15)
    assert np.allclose(matrix, matrix[::-1, ::-1], atol=1e-15)


def test_bicubic_upsampling_has_four_taps_at_quarter_distances():
    """HR pixels 7 and 8 lie at 3.25 and 3.75 LR samples, as imresize places them."""
    matrix = axis_matrix(("keys_up",), 8, 2)
    assert np.allclose(matrix[7], [0, 0, FAR, NEAR, MIDDLE, LAST, 0, 0], atol=1e-15)
    assert np.allclose(matrix[8], [0, 0, LAST, MIDDLE, NEAR, FAR, 0, 0], atol=1e-15)
    assert np.allclose(matrix.sum(axis=1), 1)


def test_bicubic_of_scale_three_hits_samples_exactly():
    matrix = axis_matrix(("keys_up",), 6, 3)
    assert np.allclose(matrix[1::3], np.eye(6))  # pixel 3 k + 1 is the centre of sample k


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_bicubic_keeps_a_straight_line_away_from_the_edges(scale):
    line = np.arange(24.0 * scale)
    low = axis_matrix(("keys_down",), 24 * scale, scale) @ line
    assert np.allclose(low[2:-2], np.arange(24)[2:-2] * scale + (scale - 1) / 2)
    up = axis_matrix(("keys_up",), 24, scale) @ np.arange(24.0)
    assert np.allclose(up[2 * scale:-2 * scale], ((line + 0.5) / scale - 0.5)[2 * scale:-2 * scale])


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_gaussian_weighs_eight_samples_about_the_centre_of_each_block(scale):
    taps = np.exp(-((np.arange(8) - 3.5) ** 2) / 18)
    taps /= taps.sum()
    n = 8 * scale
    matrix = axis_matrix(("block_gaussian",), n, scale)
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
    for kind in NAMES:
        lit = downsample(x, 4, kind).abs().amax((1, 2)) > 0
        assert lit.tolist() == [abs(b - 4) <= 3 if kind == "reference" else b == 4
                                for b in range(9)]


def test_one_band_and_tiny_images_work():
    for kind, scale in PROBLEMS:
        assert torch.isfinite(degrade(cube(1, scale, scale), scale, kind)).all()
        assert torch.isfinite(degrade(cube(1, scale, 5 * scale), scale, kind)).all()
    assert np.array_equal(zoom_matrix(1, 4), np.ones((4, 1)))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(OPERATIONS), st.integers(2, 40), st.sampled_from(SCALES), st.data())
def test_rows_of_an_operation_are_those_of_its_matrix(operation, blocks, scale, data):
    if "block_gaussian" in operation and scale == 3:
        scale = 4
    n = blocks if operation and operation[0].endswith("_up") else blocks * scale
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
    assert part.shape[1] < 250 and start > 0


def test_matrices_are_kept_and_cannot_be_changed():
    matrix = axis_matrix(("zoom_down",), 64, 4)
    assert axis_matrix(("zoom_down",), 64, 4) is matrix
    with pytest.raises(ValueError, match="read-only"):
        matrix[0, 0] = 1


@pytest.mark.parametrize("kind", NAMES)
def test_mixed_precision_does_not_touch_it(kind):
    x = cube(1, 4, 32, 32).float()
    plain = degrade(x, 2, kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(degrade(x, 2, kind), plain)


@pytest.mark.parametrize("kind", NAMES)
def test_long_axes_are_multiplied_a_block_at_a_time_to_the_same_result(kind):
    def whole(x, operations, axis):
        matrix = torch.from_numpy(axis_matrix(operations, x.shape[axis], 2).copy())
        return torch.movedim(torch.tensordot(matrix, x, ([1], [axis])), 0, axis)

    x, chosen = cube(2, 16, 1280), Degradation.of(2, kind)
    rows, columns = chosen.down_operations
    low = whole(whole(whole(x, chosen.band_operations, 0), rows, 1), columns, 2)
    assert torch.allclose(downsample(x, 2, kind), low, atol=1e-12)
    up = chosen.up_operations
    assert torch.allclose(upsample(low, 2, kind), whole(whole(low, up, 1), up, 2), atol=1e-12)


def back_projected(low, image, scale, kind, steps):
    """The definition, x_{k+1} = x_k + U(y - D x_k)."""
    for _ in range(steps):
        image = image + upsample(low - downsample(image, scale, kind), scale, kind)
    return image


@pytest.mark.parametrize(("kind", "scale"), PROBLEMS)
def test_back_projection_on_the_low_grid_is_the_definition(kind, scale):
    low, other = cube(2, 6, 12, 16), cube(2, 6, 12 * scale, 16 * scale, seed=1)
    degradation = Degradation.of(scale, kind)
    for steps in (0, 1, 2, 10):
        expected = back_projected(low, upsample(low, scale, kind), scale, kind, steps)
        assert torch.allclose(degradation.backproject(low, steps), expected, atol=1e-10)
        expected = back_projected(low, other, scale, kind, steps)
        assert torch.allclose(degradation.backproject(low, steps, image=other), expected,
                              atol=1e-10)
    assert torch.equal(degradation.backproject(low),
                       degradation.up(degradation.prefilter(low, 10)))


@pytest.mark.parametrize("size", [(1, 1), (3, 20), (140, 9), (130, 260)])
@pytest.mark.parametrize(("kind", "scale"), [("mtf 0.0001", 4), ("mtf 0.7,0.08", 3),
                                             ("gaussian", 8), ("bicubic", 2)])
def test_frequency_by_frequency_back_projection_is_the_iteration_and_stops_at_the_noise(
        kind, scale, size):
    problem, low = Degradation.of(scale, kind), cube(3, *size)
    noise = torch.tensor([0, 0.1, 1]).double()  # no band, a part of the steps, no step
    for told in (None, noise):
        z = low
        for _ in range(10):
            error = low - problem.round_trip(z)
            far = torch.ones(3) if told is None else error.square().mean((1, 2)).sqrt() > told
            z = z + error * far[:, None, None]
        found = problem.prefilter(low, noise=told)
        assert torch.allclose(found, z, atol=1e-12)
        single = problem.prefilter(low.float(), noise=None if told is None else told.float())
        assert single.dtype == torch.float32 and (single - z).norm() < 1e-6 * z.norm()


@pytest.mark.parametrize("kind", NAMES)
def test_back_projection_agrees_with_its_input_better_than_the_interpolation_does(kind):
    low = downsample(torch.nn.functional.avg_pool2d(cube(3, 132, 132), 5, 1, 0)[..., :128, :128], 4,
                     kind)
    errors = [float((downsample(start_image(low, 4, kind, start), 4, kind) - low).square().mean())
              for start in STARTS]
    assert errors[1] < errors[0] / 3


def test_a_network_starts_at_one_of_two_images():
    low = cube(2, 8, 8)
    assert torch.equal(start_image(low, 4, "gaussian", "interpolation"),
                       upsample(low, 4, "gaussian"))
    assert torch.equal(start_image(low, 4, "gaussian", "backprojection"),
                       Degradation.of(4, "gaussian").backproject(low))
    with pytest.raises(ValueError,
                       match="unknown start 'zero'; choose one of interpolation, backprojection"):
        start_image(low, 4, "gaussian", "zero")


def test_noise_is_white_and_depends_on_seed_key_and_shape_alone():
    low = torch.zeros(4, 64, 64)
    noise = add_noise(low, 0.1, 2021, "feathers", 3)
    assert noise.std() == pytest.approx(0.1, rel=0.02) and abs(noise.mean()) < 0.003
    spectrum = torch.fft.fft2(noise).abs().square()
    assert spectrum[:, :8, :8].mean() == pytest.approx(float(spectrum.mean()), rel=0.2)
    assert np.array_equal(add_noise(low.numpy(), 0.1, 2021, "feathers", 3), noise.numpy())
    assert torch.equal(add_noise(low.double(), 0.1, 2021, "feathers", 3).float(), noise)
    for other in ((1, "feathers", 3), (2021, "cloth", 3), (2021, "feathers", 4), (2021,)):
        assert not torch.equal(add_noise(low, 0.1, *other), noise)
    assert add_noise(low, 0, 2021, "feathers") is low
    with pytest.raises(ValueError, match=r"standard deviation -0\.1"):
        add_noise(low, -0.1, 0)


@pytest.mark.parametrize(("kind", "scale"), PROBLEMS)
def test_the_grid_is_where_samples_of_a_straight_line_end_up(kind, scale):
    """A ramp in low-resolution pixels' coordinates, brought up, says where every sample lies."""
    n = 24
    size, origin = grid(n, scale, kind)
    centres = axis_matrix(Degradation.of(scale, kind).up_operations, n, scale) @ (
        np.arange(n) + 0.5)
    inside = slice(4 * scale, -4 * scale)
    assert np.allclose(centres[inside], (origin + size * (np.arange(n * scale) + 0.5))[inside],
                       atol=2e-3)
    if Degradation.of(scale, kind).block_grid:
        assert (size, origin) == (1 / scale, 0) == grid(1, scale, kind)
    else:
        assert (origin + size / 2 == pytest.approx(0.5)
                and size * (n * scale - 1) == pytest.approx(n - 1))


def test_gradients_flow_through_it():
    x = cube(2, 8, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: degrade(v, 2, "reference"), x)


def test_a_cube_is_cropped_at_its_lower_and_right_edges():
    x = cube(3, 33, 38)
    assert (torch.equal(crop_to_multiple(x, 4), x[:, :32, :36])
            and crop_to_multiple(x.numpy(), 3).shape == (3, 33, 36))
    assert torch.equal(crop_to_multiple(x, 1), x)


@pytest.mark.parametrize(("shape", "scale", "kind", "words"),
                         [((3, 33, 32), 4, "spatial",
                           "33 x 32 image cannot be degraded by x4: crop it"),
                          ((3, 32, 30), 4, "bicubic", "crop it to multiples of 4"),
                          ((3, 30, 30), 5, "bicubic",
                           "unknown scale factor 5; choose one of 2, 3, 4, 8"),
                          ((3, 32, 32), 4, "blurry",
                           "unknown degradation 'blurry'; choose one of mtf, area, gaussian, "
                           "bicubic, spatial, reference"),
                          ((3, 30, 30), 3, "gaussian", "needs an even scale factor, not 3")])
def test_what_cannot_be_degraded_is_refused(shape, scale, kind, words):
    with pytest.raises(ValueError, match=words):
        degrade(cube(*shape), scale, kind)
    with pytest.raises(ValueError, match="unknown operation 'sharpen'"):
        axis_matrix(("sharpen",), 8, 2)


@pytest.mark.parametrize("scale", SCALES)
def test_the_mtf_of_a_sensor_is_what_was_asked_for(scale):
    """The response at the low grid's Nyquist frequency; samples of a narrow Gaussian are few."""
    for m in (0.08, 0.15, 0.3, 0.5):
        measured = response(f"mtf {m}", scale)
        assert measured == pytest.approx(m, abs=0.002 if scale > 2 or m < 0.3 else 0.03)
    rows, columns = Degradation.of(scale, "mtf 0.3,0.1").down_operations
    assert axis_matrix(rows, 8 * scale, scale)[4].max() > axis_matrix(columns, 8 * scale, scale)[
        4].max()
    assert response("area", scale) == pytest.approx(1 / (scale * np.sin(np.pi / (2 * scale))),
                                                    abs=1e-9)


def response(name, scale):
    """The modulus of the Fourier transform of the taps of one low-resolution pixel."""
    taps = axis_matrix(Degradation.of(scale, name).down_operations[0], 40 * scale, scale)[20]
    return abs(np.sum(taps * np.exp(-2j * np.pi * np.arange(len(taps)) / (2 * scale))))


def test_each_kind_states_its_mtf_at_a_scale_factor():
    """A Gaussian finds itself, and the others what a fit by hand of their responses gives."""
    assert Degradation.of(4, "mtf 0.3,0.1").nearest_mtf == (0.3, 0.1)
    for operations, m in ((("mtf 0.3",), 0.3), (("mtf 0.1",), 0.1)):
        assert _nearest_mtf(operations, 4) == pytest.approx(m, abs=0.002)
    assert [round(Degradation(scale).nearest_mtf[0], 3) for scale in (2, 4, 8)] == [
        0.002, 0.222, 0.716]
    assert [round(Degradation(scale, "bicubic").nearest_mtf[1], 2) for scale in (2, 4, 8)] == [
        0.58, 0.59, 0.59]
    for name in NAMES:
        assert Degradation.of(4, Degradation.of(4, name).name) == Degradation.of(4, name)


def test_a_block_mean_is_the_mean_of_each_block():
    x = cube(3, 24, 48)
    assert torch.allclose(downsample(x, 3, "area"), torch.nn.functional.avg_pool2d(x, 3))


@pytest.mark.parametrize(("name", "words"),
                         [("mtf", "needs the sensor's MTF, such as 'mtf 0.3'"),
                          ("mtf 0", "give a number above 0 and below 1"),
                          ("mtf 0.3,1", "above 0 and below 1"),
                          ("area 0.3", "has a blur of its own, and takes no MTF"),
                          ("mtf sharp", "MTF of 'sharp' was asked for"),
                          ("mtf 0.1,0.2,0.3", "give a number above 0 and below 1, or two")])
def test_an_mtf_that_cannot_be_is_refused(name, words):
    with pytest.raises(ValueError, match=words):
        Degradation.of(4, name)
