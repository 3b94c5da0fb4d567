"""Doubling rows and columns: torch's trilinear interpolation in float64, and its gradient."""
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.upsampling import double, double_part
from models.network import Window

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def image(*shape, dtype=torch.float64, seed=0, layout="channels_last"):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
        dtype)
    if layout == "sliced":
        big = x.new_full([*shape[:3], shape[3] + 2, 2 * shape[4]], float("nan"))
        return big[..., 1:-1, ::2].copy_(x)
    return x.contiguous(memory_format=torch.channels_last_3d) if layout == "channels_last" else x


def exact(x):
    return F.interpolate(x.detach().double(), scale_factor=(1, 2, 2), mode="trilinear",
                         align_corners=True)


def agree(shape, dtype, layout):
    x = image(*shape, dtype=dtype, layout=layout)
    wide = x.double().requires_grad_()
    expected = F.interpolate(wide, scale_factor=(1, 2, 2), mode="trilinear", align_corners=True)
    grad = image(*expected.shape, dtype=dtype, seed=1, layout=layout)
    (expected_grad,) = torch.autograd.grad(expected, wide, grad.double())
    found = double(x.requires_grad_())
    (found_grad,) = torch.autograd.grad(found, x, grad)
    assert found.dtype == found_grad.dtype == dtype
    for a, b in ((found, expected), (found_grad, expected_grad)):
        assert (a.double() - b).abs().max() <= TOLERANCE[dtype] * b.abs().max()


SHAPES = st.tuples(st.integers(1, 2), st.sampled_from([1, 3, 16]), st.integers(1, 3),
                   st.integers(1, 7), st.integers(1, 9))
CASES = {"shape": SHAPES, "dtype": st.sampled_from(list(TOLERANCE)),
         "layout": st.sampled_from(["contiguous", "channels_last", "sliced"])}


@given(**CASES)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_values_and_gradients_are_torch_s_in_float64(shape, dtype, layout):
    agree(shape, dtype, layout)


def test_the_layout_is_kept_forward_and_backward():
    for layout, expected in (("channels_last", torch.channels_last_3d),
                             ("contiguous", torch.contiguous_format)):
        x = image(1, 4, 3, 4, 5, dtype=torch.float32, layout=layout).requires_grad_()
        out = double(x)
        (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
        assert (out.is_contiguous(memory_format=expected)
                and grad.is_contiguous(memory_format=expected))


def test_the_number_of_threads_does_not_change_a_bit():
    x, before = (image(2, 16, 9, 16, 16, dtype=torch.float32).requires_grad_(),
                 torch.get_num_threads())
    grad, found = image(2, 16, 9, 32, 32, dtype=torch.float32, seed=1), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = double(x)
            found.append((out.detach(), torch.autograd.grad(out, x, grad)[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def windows_agree(x, whole, dtype):
    """Every window, of a source with one sample more on each side, or up to the image's end."""
    height, width = x.shape[-2:]
    for top, bottom, left, right in ((0, height, 0, width), (1, 5, 2, width), (2, height, 0, 4)):
        source = Window(top, bottom, left, right, height, width)
        ends = (top, 2, height), (bottom, -2, height), (left, 2, width), (right, -2, width)
        inner = [2 * v + step * (0 < v < end) for v, step, end in ends]
        target = Window(*inner, 2 * height, 2 * width)
        found = double_part(source.cut(x, Window.whole(height, width)), source, target)
        expected = target.cut(whole, Window.whole(2 * height, 2 * width))
        assert (found.double().cpu() - expected).abs().max() <= TOLERANCE[dtype] * 4


def test_a_window_is_that_part_of_the_whole():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = image(2, 5, 3, 6, 7, dtype=dtype)
        windows_agree(x, exact(x), dtype)
