"""The convolution of a doubled image: torch's trilinear interpolation and convolution in float64,
and their gradients."""
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.upsampling import columns_apart, double_columns, double_rows
from models.network import Window

TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def image(*shape, dtype=torch.float64, seed=0, layout="channels_last"):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype)
    if layout == "sliced":
        big = x.new_full([*shape[:3], shape[3] + 2, 2 * shape[4]], float("nan"))
        return big[..., 1:-1, ::2].copy_(x)
    if layout == "sliced_channels_last":
        big = x.new_full([*shape[:3], shape[3] + 2, shape[4] + 2], float("nan"))
        return big.contiguous(memory_format=torch.channels_last_3d)[..., 1:-1, 1:-1].copy_(x)
    return x.contiguous(memory_format=torch.channels_last_3d) if layout == "channels_last" else x


def convolved(x, weight, source=None, target=None, columns=None):
    """As a unit computes it, so many doubled columns at once; a whole image without windows."""
    source = source or Window.whole(*x.shape[-2:])
    target = target or source.scaled(2, 1)
    height, width = target.size
    rows = double_rows(x, source, target, -1, height + 1)
    last = rows.shape[1] > 1 and rows.stride(1) == 1
    format = torch.channels_last_3d if last else torch.contiguous_format
    apart = F.conv3d(rows.contiguous(memory_format=format),
                     columns_apart(weight).contiguous(memory_format=format), padding=(1, 0, 0))
    columns = columns or width
    return torch.cat([double_columns(apart, source, target, left, min(left + columns, width))
                      for left in range(0, width, columns)], dim=-1)


def exact(x, weight):
    doubled = F.interpolate(x.double(), scale_factor=(1, 2, 2), mode="trilinear",
                            align_corners=True)
    return F.conv3d(doubled, weight.double(), padding=1)


def agree(shape, dtype, layout, columns):
    x = image(*shape, dtype=dtype, layout=layout)
    weight = image(2, shape[1], 3, 3, 3, dtype=dtype, seed=2)
    wide = [v.double().requires_grad_() for v in (x, weight)]
    expected = exact(*wide)
    grad = image(*expected.shape, dtype=dtype, seed=1, layout=layout)
    expected_grads = torch.autograd.grad(expected, wide, grad.double())
    narrow = [v.requires_grad_() for v in (x, weight)]
    found = convolved(*narrow, columns=columns)
    found_grads = torch.autograd.grad(found, narrow, grad)
    assert found.dtype == found_grads[0].dtype == dtype
    for a, b in ((found, expected), *zip(found_grads, expected_grads, strict=True)):
        assert (a.double() - b).abs().max() <= TOLERANCE[dtype] * b.abs().max()


SHAPES = st.tuples(st.integers(1, 2), st.sampled_from([1, 3, 16]), st.integers(1, 3),
                   st.integers(1, 7), st.integers(1, 9))
LAYOUTS = ["contiguous", "channels_last", "sliced", "sliced_channels_last"]
CASES = {"shape": SHAPES, "dtype": st.sampled_from(list(TOLERANCE)),
         "layout": st.sampled_from(LAYOUTS), "columns": st.sampled_from([None, 1, 5])}


@given(**CASES)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_values_and_gradients_are_torch_s_in_float64(shape, dtype, layout, columns):
    agree(shape, dtype, layout, columns)


def test_the_layout_is_kept_forward_and_backward():
    whole = Window.whole(4, 5)
    for layout, expected in (("channels_last", torch.channels_last_3d),
                             ("contiguous", torch.contiguous_format)):
        x = image(1, 6, 3, 4, 5, dtype=torch.float32, layout=layout).requires_grad_()
        for double, size in ((double_rows, 8), (double_columns, 10)):
            out = double(x, whole, whole.scaled(2, 1), 0, size)
            (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
            assert out.is_contiguous(memory_format=expected)
            assert grad.is_contiguous(memory_format=expected)


def test_the_number_of_threads_does_not_change_a_bit():
    x, before = (image(2, 16, 9, 16, 16, dtype=torch.float32).requires_grad_(),
                 torch.get_num_threads())
    weight = image(6, 16, 3, 3, 3, dtype=torch.float32, seed=2)
    grad, found = image(2, 6, 9, 32, 32, dtype=torch.float32, seed=1), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = convolved(x, weight)
            found.append((out.detach(), torch.autograd.grad(out, x, grad)[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def windows_agree(x, weight, whole, dtype):
    """Every window, of a source with one sample more on each side, or up to the image's end. The
    outermost pixels inside of the image lack a neighbour."""
    height, width = x.shape[-2:]
    for top, bottom, left, right in ((0, height, 0, width), (1, 5, 2, width), (2, height, 0, 4)):
        source = Window(top, bottom, left, right, height, width)
        ends = (top, 2, height), (bottom, -2, height), (left, 2, width), (right, -2, width)
        edge, last_row, first, last = (
            2 * v + step * (0 < v < end) for v, step, end in ends)
        target = Window(edge, last_row, first, last, 2 * height, 2 * width)
        inner = Window(edge + (top > 0), last_row - (bottom < height), first + (left > 0),
                       last - (right < width), 2 * height, 2 * width)
        found = inner.cut(convolved(source.cut(x, Window.whole(height, width)), weight, source,
                                    target, columns=3), target)
        expected = inner.cut(whole, Window.whole(2 * height, 2 * width))
        assert (found.double().cpu() - expected).abs().max() <= TOLERANCE[dtype] * 40


def test_a_window_is_that_part_of_the_whole():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = image(2, 5, 3, 6, 7, dtype=dtype)
        weight = image(2, 5, 3, 3, 3, dtype=dtype, seed=2)
        windows_agree(x, weight, exact(x, weight), dtype)


def test_the_channels_are_mixed_on_half_the_columns():
    """The multiplications of a convolution: three kernel columns on half as many columns each."""
    weight = torch.empty(48, 32, 3, 3, 3)
    assert columns_apart(weight).shape == (144, 32, 3, 3, 1)
    whole = Window.whole(6, 5)
    assert double_rows(image(1, 4, 2, 6, 5), whole, whole.scaled(2, 1), 0, 12).shape == (
        1, 4, 2, 12, 5)
