"""Doubling rows and columns: every version gives torch's trilinear interpolation in float64, and its gradient."""
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers.pooling import available_backends, cpu
from models.layers.upsampling import double, double_part
from models.network import Window

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif("triton" not in available_backends(), reason="no GPU, and not under the interpreter")


@pytest.fixture
def without_a_compiler(monkeypatch):
    monkeypatch.setattr(cpu, "library", lambda: None)


def image(*shape, dtype=torch.float64, seed=0, layout="channels_last"):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    if layout == "sliced":
        big = x.new_full([*shape[:3], shape[3] + 2, 2 * shape[4]], float("nan"))
        return big[..., 1:-1, ::2].copy_(x)
    return x.contiguous(memory_format=torch.channels_last_3d) if layout == "channels_last" else x


def exact(x):
    return F.interpolate(x.detach().double(), scale_factor=(1, 2, 2), mode="trilinear", align_corners=True)


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


SHAPES = st.tuples(st.integers(1, 2), st.sampled_from([1, 3, 16]), st.integers(1, 3), st.integers(1, 7), st.integers(1, 9))
CASES = {"shape": SHAPES, "dtype": st.sampled_from(list(TOLERANCE)),
         "layout": st.sampled_from(["contiguous", "channels_last", "sliced"])}


@given(**CASES)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_values_and_gradients_are_torch_s_in_float64(shape, dtype, layout):
    agree(shape, dtype, layout)


def test_without_a_compiler_the_numbers_are_the_same(without_a_compiler):
    for dtype in TOLERANCE:
        for layout in ("contiguous", "channels_last", "sliced"):
            agree((2, 3, 2, 3, 5), dtype, layout)


@pytest.mark.parametrize("version", ["compiled", "torch"])
def test_half_precision_is_rounded_once(request, version):
    if version == "torch":
        request.getfixturevalue("without_a_compiler")
    x = image(1, 8, 3, 9, 11, dtype=torch.bfloat16)
    assert (double(x) == double(x.float()).bfloat16()).float().mean() > 0.999  # but for ties after a float32 rounding


def test_the_layout_is_kept_forward_and_backward():
    for layout, expected in (("channels_last", torch.channels_last_3d), ("contiguous", torch.contiguous_format)):
        x = image(1, 4, 3, 4, 5, dtype=torch.float32, layout=layout).requires_grad_()
        out = double(x)
        (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
        assert out.is_contiguous(memory_format=expected) and grad.is_contiguous(memory_format=expected)


def test_the_number_of_threads_does_not_change_a_bit():
    x, before = image(2, 16, 9, 16, 16, dtype=torch.float32).requires_grad_(), torch.get_num_threads()
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
    """Every window, of a source that has one sample more on each side than the window needs, or ends where the image ends."""
    height, width = x.shape[-2:]
    for top, bottom, left, right in ((0, height, 0, width), (1, 5, 2, width), (2, height, 0, 4)):
        source = Window(top, bottom, left, right, height, width)
        inner = [(2 * v + step * (0 < v < end)) for v, step, end in
                 ((top, 2, height), (bottom, -2, height), (left, 2, width), (right, -2, width))]
        target = Window(*inner, 2 * height, 2 * width)
        found = double_part(source.cut(x, Window.whole(height, width)), source, target)
        expected = target.cut(whole, Window.whole(2 * height, 2 * width))
        assert (found.double().cpu() - expected).abs().max() <= TOLERANCE[dtype] * 4


@pytest.mark.parametrize("version", ["compiled", "torch"])
def test_a_window_is_that_part_of_the_whole(request, version):
    if version == "torch":
        request.getfixturevalue("without_a_compiler")
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = image(2, 5, 3, 6, 7, dtype=dtype)
        windows_agree(x, exact(x), dtype)


def test_the_operators_keep_what_they_register():
    x = image(1, 4, 3, 4, 5, dtype=torch.float32).requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.bi3dqrnn.double.default, (x,), test_utils=checks)


@needs_triton
@pytest.mark.parametrize(("dtype", "layout"), [(torch.float32, "channels_last"), (torch.float32, "contiguous"),
                                               (torch.bfloat16, "channels_last"), (torch.float16, "sliced")])
def test_triton_doubles_as_torch_does_and_gives_its_gradient(dtype, layout):
    from models.layers import upsampling_gpu
    x = image(2, 3, 2, 3, 4, dtype=dtype, layout=layout).to(DEVICE)
    wide = x.double().requires_grad_()
    expected = F.interpolate(wide, scale_factor=(1, 2, 2), mode="trilinear", align_corners=True)
    grad = image(*expected.shape, dtype=dtype, seed=1, layout=layout).to(DEVICE)
    (expected_grad,) = torch.autograd.grad(expected, wide, grad.double())
    out, grad_x = torch.empty_like(double(x)), torch.empty_like(x)
    upsampling_gpu.forward(out, x, (0, 0), (0, 0), x.shape[-2:])
    upsampling_gpu.backward(grad_x, grad)
    for a, b in ((out, expected), (grad_x, expected_grad)):
        assert (a.double() - b).abs().max() <= TOLERANCE[dtype] * b.abs().max()


@needs_triton
def test_triton_doubles_windows(monkeypatch):
    monkeypatch.setattr("models.layers.upsampling.triton_runs", lambda x: True)
    x = image(1, 3, 2, 6, 7, dtype=torch.float32)
    windows_agree(x.to(DEVICE), exact(x), torch.float32)
