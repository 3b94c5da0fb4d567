"""Pooling: every version computes what the loop computes in float64, in values and in gradients, and nothing else."""
from __future__ import annotations

import concurrent.futures
import ctypes
import hashlib
import importlib.util
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import instructions
from models import pooling
from models.pooling import BACKENDS, available_backends, cpu, gate_count, loop, pool, pool_into

KINDS = ("f", "fo", "ifo")
DIRECTIONS = ("forward", "backward", "both")
LAYOUTS = ("contiguous", "channels_last", "sliced", "permuted")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
TRITON_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NO_TRITON = importlib.util.find_spec("triton") is None

every_kind = pytest.mark.parametrize("kind", KINDS)
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
# Run on a GPU where there is one; otherwise only in the child process that sets TRITON_INTERPRET=1, see below.
needs_triton = pytest.mark.skipif("triton" not in available_backends(), reason="no GPU, and not under the interpreter")


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv("BI3DQRNN_NO_COMPILE", "1")
    cpu.library.cache_clear()
    yield
    cpu.library.cache_clear()


def randn(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values under other strides."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last_3d)
    if layout == "sliced":
        big = x.new_full([size + 3 for size in x.shape[:-1]] + [2 * x.shape[-1] + 1], float("nan"))
        view = big[1:-2, 2:-1, 1:-2, 3:, 1::2]
        return view.copy_(x)
    if layout == "permuted":
        return x.permute(3, 1, 4, 0, 2).contiguous().permute(3, 1, 4, 0, 2)
    return x.contiguous()


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.detach().cpu().double() - expected).norm() / expected.norm().clamp_min(1e-30))


def agree(backend: str, kind: str, direction: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str = "contiguous",
          with_skip: bool = False, device: str = "cpu") -> None:
    """Compare with the loop in float64; `shape` is that of the output."""
    batch, channels, *rest = shape
    gates = randn(batch, channels * gate_count(kind, direction == "both"), *rest).to(dtype)
    skip = randn(*shape, seed=1).to(dtype) if with_skip else None
    grad = randn(*shape, seed=2).to(dtype)
    exact = gates.double().requires_grad_()
    expected = loop.pool(exact, kind, direction, skip.double() if with_skip else None)
    (expected_grad,) = torch.autograd.grad(expected, exact, grad.double())

    gates = laid_out(gates.to(device), layout).requires_grad_()
    skip = laid_out(skip.to(device), layout) if with_skip else None
    found = pool(gates, kind, direction, skip, backend)
    (found_grad,) = torch.autograd.grad(found, gates, laid_out(grad.to(device), layout))
    assert found.dtype == found_grad.dtype == dtype
    assert error(found, expected.detach()) <= TOLERANCE[dtype]
    assert error(found_grad, expected_grad) <= TOLERANCE[dtype]


SHAPES = st.tuples(st.integers(1, 2), st.sampled_from([1, 2, 3, 8, 16, 17]), st.integers(1, 9), st.integers(1, 5),
                   st.integers(1, 37))
CASES = {"kind": st.sampled_from(KINDS), "direction": st.sampled_from(DIRECTIONS), "shape": SHAPES,
         "layout": st.sampled_from(LAYOUTS), "with_skip": st.booleans()}


@given(dtype=st.sampled_from(list(TOLERANCE)), **CASES)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_cpu_version_agrees_with_the_loop(kind, direction, shape, dtype, layout, with_skip):
    agree("cpu", kind, direction, shape, dtype, layout, with_skip)


@given(dtype=st.sampled_from(list(TOLERANCE)), **CASES)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_loop_in_any_dtype_agrees_with_itself_in_double(kind, direction, shape, dtype, layout, with_skip):
    agree("loop", kind, direction, shape, dtype, layout, with_skip)


@every_kind
@every_direction
def test_without_a_compiler_the_numbers_are_the_same(no_compiler, kind, direction):
    assert cpu.library() is None
    for bands, dtype in ((1, torch.float64), (2, torch.float32), (7, torch.float32), (7, torch.bfloat16)):
        agree("cpu", kind, direction, (2, 3, bands, 2, 5), dtype, "channels_last", with_skip=True)


@every_kind
@every_direction
def test_the_loop_s_gradients_are_those_of_its_values(kind, direction):
    for bands, channels in ((1, 1), (3, 2)):
        gates = randn(1, channels * gate_count(kind, direction == "both"), bands, 1, 2).requires_grad_()
        skip = randn(1, channels, bands, 1, 2, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda g, s: loop.pool(g, kind, direction, s), (gates, skip))


@pytest.mark.parametrize("backend", ["loop", "cpu"])
def test_the_recurrence_is_the_written_one(backend):
    z, f, b = 0.5, -0.25, 1.5
    gates = torch.tensor([z, f, b], dtype=torch.float64).view(1, 3, 1, 1, 1).repeat(1, 1, 2, 1, 1)
    z, (f, b) = torch.tanh(torch.tensor(z).double()), torch.sigmoid(torch.tensor([f, b]).double())
    h0 = (1 - f) * z
    g1 = (1 - b) * z
    expected = torch.stack([h0 + b * g1 + (1 - b) * z, f * h0 + (1 - f) * z + g1])
    torch.testing.assert_close(pool(gates, "f", "both", backend=backend).flatten(), expected)


def test_long_spectra_and_large_images_agree():
    agree("cpu", "f", "both", (1, 2, 400, 3, 5), torch.float32, "channels_last")
    agree("cpu", "ifo", "both", (1, 2, 400, 3, 5), torch.float32)
    agree("cpu", "f", "both", (1, 16, 5, 40, 60), torch.float32, "channels_last", with_skip=True)
    agree("cpu", "fo", "backward", (2, 3, 3, 65, 130), torch.float32)


def test_small_values_keep_their_relative_precision():
    gates = (randn(1, 3, 9, 8, 8) * 1e-3).float()
    assert error(pool(gates, "f", "both"), loop.pool(gates.double(), "f", "both")) < 5e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_gates_stay_finite_and_nan_stays_nan(dtype):
    extreme = torch.tensor([-float("inf"), -1e30, -200.0, -90.0, 0.0, 90.0, 200.0, 1e30, float("inf")], dtype=dtype)
    gates = torch.cartesian_prod(extreme, extreme, extreme).T.reshape(1, 3, 1, 27, 27).repeat(1, 1, 3, 1, 1)
    gates.requires_grad_()
    found = pool(gates, "f", "both")
    torch.testing.assert_close(found.detach(), loop.pool(gates.detach().double(), "f", "both").to(dtype))
    (grad,) = torch.autograd.grad(found.sum(), gates)
    assert grad.isfinite().all()
    gates.data[0, 1, 1, 3, 4] = float("nan")
    bad = pool(gates, "f", "both").isnan()
    assert bad[0, 0, 1:, 3, 4].all() and bad.sum() == 2


@every_direction
def test_pool_into_writes_its_view_and_nothing_else(direction):
    gates = randn(2, 3 * gate_count("fo", direction == "both"), 6, 8, 20).float()
    expected = loop.pool(gates.double(), "fo", direction)
    for layout in ("contiguous", "channels_last", "permuted"):
        for version in ("loop", "cpu"):
            big = laid_out(torch.full((2, 3, 6, 8, 20), 7.0), layout)
            for top in (0, 5):  # a block of rows of a bigger image, from a block of rows of its gates
                rows = slice(top, top + 3)
                pool_into(big[..., rows, 1:-1], laid_out(gates, layout)[..., rows, 1:-1], "fo", direction, backend=version)
            written = torch.zeros_like(big, dtype=torch.bool)
            written[..., [0, 1, 2, 5, 6, 7], 1:-1] = True
            assert (big[~written] == 7).all()
            assert error(big[written], expected[written]) < 2e-6


def test_pool_into_may_add_to_its_skip_in_place_and_take_another_dtype():
    gates, skip = randn(1, 6, 5, 4, 7).float(), randn(1, 2, 5, 4, 7, seed=1).float()
    expected = loop.pool(gates, "f", "both", skip)
    out = skip.clone()
    pool_into(out, gates, "f", "both", out)
    torch.testing.assert_close(out, expected)
    half = torch.empty(expected.shape, dtype=torch.bfloat16)
    pool_into(half, gates, "f", "both", skip)
    torch.testing.assert_close(half, expected.bfloat16())


def test_the_skip_is_added_once_and_gets_the_output_gradient():
    gates, skip = randn(1, 6, 5, 4, 7).float(), randn(1, 2, 5, 4, 7, seed=1).bfloat16().requires_grad_()
    out = pool(gates.bfloat16(), "f", "both", skip)
    assert out.dtype == torch.bfloat16
    out = pool(gates, "f", "both", skip)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.detach(), pool(gates, "f", "both") + skip.detach())
    grad = randn(*out.shape, seed=2).float()
    (found,) = torch.autograd.grad(out, skip, grad)
    torch.testing.assert_close(found, grad.bfloat16())


@pytest.mark.parametrize("channels", [1, 4])
def test_the_output_has_the_memory_format_of_the_gates(channels):
    gates = randn(2, 3 * channels, 5, 4, 6).float()
    assert pool(gates, "f", "both").is_contiguous()
    last = laid_out(gates, "channels_last").requires_grad_()
    out = pool(last, "f", "both")
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    (grad,) = torch.autograd.grad(out.sum(), last)
    assert grad.stride() == last.stride()


@pytest.mark.parametrize("with_skip", [False, True])
def test_only_the_gates_are_saved_for_the_backward_pass(with_skip):
    gates = randn(1, 12, 5, 4, 6).float().requires_grad_()
    skip = randn(1, 4, 5, 4, 6).float().requires_grad_() if with_skip else None
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        pool(gates, "f", "both", skip)
    assert [t.data_ptr() for t in saved] == [gates.data_ptr()]


def test_a_compiled_network_passes_over_it_whole():
    conv = torch.nn.Conv3d(1, 6, 3, padding=1)
    x = randn(1, 1, 5, 6, 7).float()

    def network(x: Tensor) -> Tensor:
        pooled = pool(conv(x), "f", "both", x.expand(-1, 2, -1, -1, -1))
        out = torch.empty_like(pooled)
        pool_into(out, conv(x).detach(), "f", "both")
        return pooled * 2 + out

    expected = network(x)
    wanted = torch.autograd.grad(expected.square().sum(), conv.weight)
    found = torch.compile(network, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), conv.weight), wanted)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
def test_the_operator_keeps_what_it_registers(layout):
    gates = laid_out(randn(2, 6, 3, 4, 5).float(), layout).requires_grad_()
    skip = randn(2, 2, 3, 4, 5, seed=1).float().requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.bi3dqrnn.pool.default, (gates, skip, "f", "both", "cpu"), test_utils=checks)
    torch.library.opcheck(torch.ops.bi3dqrnn.pool_into.default,
                          (torch.empty(2, 2, 3, 4, 5), gates.detach(), None, "f", "both", "cpu"), test_utils=checks)


def in_a_fork(work: Callable[[], object]) -> int | None:
    """The exit status of a child process that does `work`, one without the cost of new imports; None: it did not end."""
    def child() -> None:
        torch.set_num_threads(1)  # the parent's threads are not there
        work()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    return process.exitcode


def test_the_module_may_be_imported_twice():
    def import_twice() -> None:
        warnings.simplefilter("error")
        spec = importlib.util.spec_from_file_location("another_checkout", pooling.__file__)
        second = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(second)
        gates = torch.randn(1, 6, 5, 3, 4, requires_grad=True)
        gradients = [torch.autograd.grad(version(gates, "f", "both").square().sum(), gates)[0]
                     for version in (pool, second.pool, importlib.reload(pooling).pool)]
        assert all(torch.equal(gradients[0], other) for other in gradients)

    assert in_a_fork(import_twice) == 0


def test_where_triton_cannot_compile_auto_takes_torch_and_warns_once(monkeypatch):
    """A CUDA tensor reaches the operator as `auto`; here a CPU tensor does."""
    pooling._triton_compiles.cache_clear()
    monkeypatch.setitem(sys.modules, "models.pooling.gpu", None)  # importing it fails
    gates = randn(1, 6, 5, 3, 4).float().requires_grad_()
    with pytest.warns(UserWarning, match="Triton cannot compile the pooling here") as said:
        found = [torch.ops.bi3dqrnn.pool(gates, None, "f", "both", "auto") for _ in range(2)]
        expected = loop.pool(gates, "f", "both")
        torch.testing.assert_close(found[1], expected)
        torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), gates)[0] for out in (found[0], expected)))
    pooling._triton_compiles.cache_clear()
    assert len(said) == 1


def test_autocast_hands_it_half_precision_and_it_keeps_a_float32_state():
    conv = torch.nn.Conv3d(1, 6, 3, padding=1)
    x = randn(1, 1, 64, 6, 7).float()
    with torch.autocast("cpu", torch.bfloat16):
        gates = conv(x)
        found = pool(gates, "f", "both")
    assert gates.dtype == found.dtype == torch.bfloat16
    exact = loop.pool(gates.detach().double(), "f", "both")
    assert error(found, exact) <= 1.2 * error(exact.bfloat16(), exact)  # one rounding, at the end
    found.float().square().sum().backward()
    assert conv.weight.grad.isfinite().all()


def test_the_number_of_threads_does_not_change_a_bit():
    gates = randn(2, 24, 31, 16, 16).float()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = pool(gates, "f", "both")
        torch.set_num_threads(3)
        assert torch.equal(pool(gates, "f", "both"), one)
    finally:
        torch.set_num_threads(before)


def far_apart(tmp_path: Path, channels: int, device: str) -> Tensor:
    """bfloat16 (1, channels, 3, 1, 5) whose bands lie more than 2^31 elements apart in all; a sparse file on a CPU."""
    step = 2**30 + 2**29
    size = 2 * step + 5 * channels
    if device == "cuda":
        flat = torch.empty(size, dtype=torch.bfloat16, device=device)
    else:
        flat = torch.from_file(str(tmp_path / f"sparse{channels}"), shared=True, size=size, dtype=torch.bfloat16)
    return flat.as_strided((1, channels, 3, 1, 5), (0, 5, step, 0, 1))


def addresses_beyond_2_31(backend: str, tmp_path: Path, device: str) -> None:
    gates, out = far_apart(tmp_path, 6, device), far_apart(tmp_path, 2, device)
    gates.copy_(randn(*gates.shape))
    pool_into(out, gates, "f", "both", backend=backend)
    assert error(out, loop.pool(gates.cpu().double(), "f", "both")) < TOLERANCE[torch.bfloat16]


def test_offsets_beyond_2_31_elements_are_right(tmp_path):
    addresses_beyond_2_31("cpu", tmp_path, "cpu")


def test_empty_batches_pass():
    gates = torch.zeros(0, 6, 3, 4, 5, requires_grad=True)
    out = pool(gates, "f", "both")
    assert out.shape == (0, 2, 3, 4, 5)
    out.sum().backward()
    assert gates.grad.shape == gates.shape


@pytest.mark.parametrize(("change", "message"), [
    ({"kind": "g"}, "kind 'g' is unknown"),
    ({"direction": "sideways"}, "'sideways' is unknown"),
    ({"backend": "fast"}, "backend 'fast' is unknown"),
    ({"gates": torch.zeros(1, 7, 2, 2, 2)}, r"expected floating \(N, 3\*C"),
    ({"gates": torch.zeros(1, 6, 2, 2)}, r"expected floating \(N, 3\*C"),
    ({"gates": torch.zeros(1, 6, 2, 2, 2, dtype=torch.int32)}, "torch.int32"),
    ({"skip": torch.zeros(1, 6, 2, 2, 2)}, "skip has shape"),
])
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"gates": torch.zeros(1, 6, 2, 2, 2), "kind": "f", "direction": "both", **change}
    with pytest.raises(ValueError, match=message):
        pool(**arguments)
    with pytest.raises(ValueError, match=message):
        pool_into(torch.zeros(1, 2, 2, 2, 2), **arguments)


def test_pool_into_refuses_an_output_of_another_shape():
    with pytest.raises(ValueError, match="out has shape"):
        pool_into(torch.zeros(1, 2, 2, 2, 3), torch.zeros(1, 6, 2, 2, 2), "f", "both")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="it can run there")
def test_forcing_triton_where_it_cannot_run_says_so(monkeypatch):
    gates = torch.zeros(1, 6, 2, 2, 2)
    if not NO_TRITON:
        with pytest.raises(RuntimeError, match="takes CUDA tensors, these are on cpu"):
            pool(gates, "f", "both", backend="triton")
    monkeypatch.setattr("models.pooling._HAS_TRITON", False)
    with pytest.raises(RuntimeError, match="needs the package triton"):
        pool(gates, "f", "both", backend="triton")
    assert available_backends() == ("loop", "cpu") == BACKENDS[:2]


# ------------------------------------------------------------------------------------------------ building the kernel

needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="no C++ compiler here")


@pytest.fixture
def unoptimised(monkeypatch):
    """The kernel is built quickly."""
    monkeypatch.setattr(cpu, "_COMMON", [flag.replace("-O3", "-O0") for flag in cpu._COMMON])


@needs_compiler
def test_processes_building_at_once_leave_one_library(unoptimised, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with concurrent.futures.ThreadPoolExecutor(2) as pool_of_two:  # the compiler is a process of its own
        loaded = list(pool_of_two.map(lambda _: cpu.library.__wrapped__(), range(2)))
    assert all(isinstance(library, ctypes.CDLL) for library in loaded)
    only, checksum = sorted((tmp_path / "bi3dqrnn").iterdir(), key=lambda path: path.suffix != ".so")
    assert (only.suffix, checksum.suffix) == (".so", ".sha256")
    built = only.stat().st_mtime_ns
    cpu.library.__wrapped__()
    assert only.stat().st_mtime_ns == built


@needs_compiler
def test_a_damaged_kernel_in_the_cache_is_built_anew(unoptimised, tmp_path, monkeypatch):
    """In a process of its own: to load a damaged library would crash."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), fsync(file)))
    cpu.library.__wrapped__()
    assert len(synced) == 2
    (kernel,) = (tmp_path / "bi3dqrnn").glob("*.so")
    sound = kernel.read_bytes()
    flipped = bytes(byte ^ 255 if 64 <= i < 4096 else byte for i, byte in enumerate(sound))

    def load_damaged() -> None:
        for damaged in (sound[:len(sound) // 3], flipped):
            kernel.unlink()  # it may be loaded, and a loaded file that changes crashes its process
            kernel.write_bytes(damaged)
            assert cpu.library.__wrapped__() is not None and kernel.read_bytes() != damaged

    assert in_a_fork(load_damaged) == 0
    assert kernel.read_bytes() == sound
    # A file that is as its checksum says, and no library; this process does not load it.
    kernel.unlink()
    kernel.write_bytes(b"something else")
    kernel.with_suffix(".sha256").write_text(hashlib.sha256(b"something else").hexdigest())
    assert cpu.library.__wrapped__() is not None and kernel.read_bytes() == sound
    monkeypatch.setattr(cpu, "_processor", lambda: "another")
    cpu.library.__wrapped__()
    assert len(list((tmp_path / "bi3dqrnn").glob("*.so"))) == 2


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(unoptimised, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cpu.library.__wrapped__() is not None


def test_a_compiler_that_fails_is_no_compiler(tmp_path, monkeypatch):
    for name in ("g++", "c++", "clang++"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert cpu.library.__wrapped__() is None


@needs_compiler
def test_there_is_one_openmp_runtime():
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    pool(randn(1, 6, 9, 32, 32), "f", "both")
    runtimes = {line.split()[-1] for line in maps.read_text().splitlines() if "gomp" in line}
    assert len(runtimes) <= 1


# ----------------------------------------------------------------------------------------------------- Triton kernels

def errors_of_torch_version(kind: str, dtype: torch.dtype) -> list[float]:
    """Of values and gradients, against the loop in float64."""
    gates = randn(1, 2 * gate_count(kind, True), 31, 5, 6).to(dtype)
    grad = randn(1, 2, 31, 5, 6, seed=2).to(dtype)
    exact = gates.double().requires_grad_()
    expected = loop.pool(exact, kind, "both")
    (expected_grad,) = torch.autograd.grad(expected, exact, grad.double())
    out, grad_gates = torch.empty_like(grad), torch.empty_like(gates)
    cpu.plain.forward(out, gates, None, kind, "both")
    cpu.plain.backward(grad_gates, grad, gates, kind, "both")
    return [error(out, expected.detach()), error(grad_gates, expected_grad)]


@every_kind
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.bfloat16, 2**-11), (torch.float16, 2**-22), (torch.float32, 2**-22)])
def test_a_gpu_s_approximate_activations_err_less_than_the_dtype_rounds(monkeypatch, kind, dtype, accuracy):
    """As far off as the kernel's instructions may be: tanh by 2^-11 for bfloat16 (sigmoid by it), else some ulps of float32."""
    before = errors_of_torch_version(kind, dtype)
    tanh, generator = torch.tanh, torch.Generator().manual_seed(0)

    def off(x: Tensor) -> Tensor:
        return x * (1 + accuracy * (2 * torch.randint(0, 2, x.shape, generator=generator) - 1))

    sigmoid = (lambda x: 0.5 + 0.5 * off(tanh(x / 2))) if dtype == torch.bfloat16 else lambda x: off(0.5 + 0.5 * tanh(x / 2))
    monkeypatch.setattr(torch, "sigmoid", sigmoid)
    monkeypatch.setattr(torch, "tanh", lambda x: off(tanh(x)))
    for exact, approximate in zip(before, errors_of_torch_version(kind, dtype), strict=True):
        assert approximate != exact
        assert approximate < (2e-6 if dtype == torch.float32 else 2**0.5 * exact)  # adds less than the rounding itself


TRITON_CASES = itertools.cycle([
    ((1, 2, 37, 1, 3), torch.float32, "sliced"),  # more than one chunk of bands in every kernel
    ((2, 3, 2, 2, 5), torch.float16, "permuted"),
    ((2, 2, 1, 2, 3), torch.float32, "contiguous"),
    ((1, 1, 7, 3, 5), torch.bfloat16, "channels_last"),
])


@needs_triton
@pytest.mark.parametrize(("kind", "direction", "case"), [(*pair, next(TRITON_CASES)) for pair in
                                                         itertools.product(KINDS, DIRECTIONS)] +
                         [("fo", "both", ((1, 1, 37, 1, 2), torch.float32, "channels_last"))])  # f: with long spectra, below
def test_triton_agrees_with_the_loop(kind, direction, case):
    shape, dtype, layout = case
    agree("triton", kind, direction, shape, dtype, layout, with_skip=shape[2] % 2 == 1, device=TRITON_DEVICE)


def noted_pairs(monkeypatch, always: bool | None = None) -> list[bool]:
    """Notes of each launch whether a thread takes two lanes; with `always` False none does."""
    from models.pooling import gpu
    taken, pairs = [], gpu._pairs
    monkeypatch.setattr(gpu, "_pairs", lambda *given: taken.append(pairs(*given) if always is None else always) or taken[-1])
    return taken


TWO_LANES = itertools.cycle([((1, 2, 5, 1, 3), torch.bfloat16, "channels_last"),
                             ((2, 3, 2, 1, 2), torch.float16, "contiguous")])


@needs_triton
@pytest.mark.parametrize(("kind", "direction", "case"), [(*pair, next(TWO_LANES)) for pair in
                                                         itertools.product(KINDS, DIRECTIONS)])
def test_triton_with_two_lanes_a_thread_computes_what_it_does_with_one(monkeypatch, kind, direction, case):
    """Both, and the loop, in chunks of two bands: with several chunks and with one."""
    from models.pooling import gpu
    for chunks in (gpu._FORWARD_CHUNK, gpu._BACKWARD_CHUNK):
        monkeypatch.setitem(chunks, kind, 2)
    monkeypatch.setattr(gpu, "_ONE_WAY_CHUNK", 2)
    shape, dtype, layout = case
    gates = laid_out(randn(shape[0], shape[1] * gate_count(kind, direction == "both"), *shape[2:]).to(dtype), layout)
    skip, grad = (laid_out(randn(*shape, seed=k).to(dtype), layout) for k in (1, 2))
    exact, gates = gates.double().requires_grad_(), gates.to(TRITON_DEVICE).requires_grad_()
    out = loop.pool(exact, kind, direction, skip.double())
    expected = out.detach(), *torch.autograd.grad(out, exact, grad.double())
    found = []
    for always in (None, False):
        with monkeypatch.context() as patch:
            taken = noted_pairs(patch, always)
            out = pool(gates, kind, direction, skip.to(TRITON_DEVICE), "triton")
            found.append((out.detach(), *torch.autograd.grad(out, gates, grad.to(TRITON_DEVICE))))
        assert taken == 2 * [always is None]
    for two, one, loops in zip(*found, expected, strict=True):
        assert torch.equal(two, one) and error(two, loops) <= TOLERANCE[dtype]


@needs_triton
@pytest.mark.parametrize("case", ["even", "odd channels", "odd plane", "odd band", "float32", "float32 skip", "unaligned gates",
                                  "unaligned skip", "unaligned gradient"])
def test_triton_takes_two_lanes_a_thread_only_where_they_are_one_aligned_word(monkeypatch, case):
    def placed(x: Tensor, shifted: bool) -> Tensor:
        memory = torch.zeros(2 * x.numel(), dtype=x.dtype, device=TRITON_DEVICE)[int(shifted):]
        return memory.as_strided(x.shape, x.stride(), memory.storage_offset()).copy_(x)

    layout = "contiguous" if "plane" in case else "channels_last"
    dtype = torch.float32 if case == "float32" else torch.bfloat16
    shape = (1, 3 if case == "odd channels" else 2, 2, 1, 3)
    gates, skip, grad = (laid_out(randn(1, n * shape[1], *shape[2:], seed=n).to(dtype), layout) for n in (3, 1, 1))
    if case == "odd band":  # the gates are channels of wider rows
        gates = laid_out(torch.cat([gates, gates[:, :1]], dim=1), layout)[:, :6]
    skip = skip.float() if case == "float32 skip" else skip
    gates, skip, grad = (placed(x, case == f"unaligned {name}") for x, name in
                         ((gates, "gates"), (skip, "skip"), (grad.to(skip.dtype), "gradient")))
    taken = noted_pairs(monkeypatch)
    gates.requires_grad_()
    out = pool(gates, "f", "both", skip, "triton")
    exact = gates.detach().double().cpu().requires_grad_()
    expected = loop.pool(exact, "f", "both", skip.double().cpu())
    (expected_grad,) = torch.autograd.grad(expected, exact, grad.double().cpu())
    assert error(out, expected.detach()) <= TOLERANCE[dtype]
    assert error(torch.autograd.grad(out, gates, grad)[0], expected_grad) <= TOLERANCE[dtype]
    assert taken == {"even": [True, True], "unaligned skip": [False, True], "unaligned gradient": [True, False]}.get(
        case, [False, False])


@needs_triton
@pytest.mark.parametrize("width", [2, 3])
def test_triton_writes_windows_of_any_width_and_nothing_else(monkeypatch, width):
    taken = noted_pairs(monkeypatch)
    gates = randn(1, 3, 2, 2, 4).bfloat16()
    big = torch.full((1, 1, 2, 2, 4), 7.0, dtype=torch.bfloat16, device=TRITON_DEVICE)
    pool_into(big[..., :width], gates.to(TRITON_DEVICE)[..., :width], "f", "both", backend="triton")
    assert error(big[..., :width], loop.pool(gates.double(), "f", "both")[..., :width]) <= TOLERANCE[torch.bfloat16]
    assert (big[..., width:] == 7).all() and taken == [width == 2]


@pytest.mark.skipif(NO_TRITON or os.environ.get("TRITON_INTERPRET") == "1", reason="no triton, or its interpreter")
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_two_lanes_of_a_thread_are_read_and_written_as_one_word(way):
    made, lanes = instructions.compiled(way, "bf16", 80, bands=2)
    accesses = set(re.findall(r"(?:ld|st)\.global\.[\w.]+", made.asm["ptx"]))
    assert lanes == 2 and accesses == {"ld.global.b32", "st.global.b32", "ld.global.v2.b32", "st.global.v2.b32"}


@needs_triton
def test_triton_takes_long_spectra_and_more_lanes_than_one_block():
    agree("triton", "f", "both", (1, 1, 70, 1, 3), torch.float32, "channels_last", device=TRITON_DEVICE)
    agree("triton", "f", "both", (1, 8, 2, 20, 30), torch.float32, "channels_last", device=TRITON_DEVICE)


@needs_triton
def test_triton_writes_its_view_and_nothing_else():
    gates = randn(1, 6, 5, 6, 7).float()
    big = torch.full((1, 2, 5, 8, 9), 7.0, device=TRITON_DEVICE)
    pool_into(big[..., 1:-1, 1:-1], gates.to(TRITON_DEVICE), "f", "both", backend="triton")
    assert error(big[..., 1:-1, 1:-1], loop.pool(gates.double(), "f", "both")) < 2e-6
    assert (big[..., [0, -1], :] == 7).all() and (big[..., [0, -1]] == 7).all()


@needs_triton
def test_triton_offsets_beyond_2_31_elements_are_right(tmp_path):
    addresses_beyond_2_31("triton", tmp_path, TRITON_DEVICE)


@needs_triton
def test_triton_refuses_double():
    with pytest.raises(ValueError, match="not float64"):
        pool(torch.zeros(1, 3, 2, 2, 2, dtype=torch.float64, device=TRITON_DEVICE), "f", "both", backend="triton")


@needs_triton
def test_triton_runs_in_a_compiled_network():
    gates = randn(1, 6, 3, 4, 5).float().to(TRITON_DEVICE).requires_grad_()
    compiled = torch.compile(lambda g: pool(g * 2, "f", "both", backend="triton"), fullgraph=True, backend="aot_eager")
    found = compiled(gates)
    assert error(found, loop.pool(gates.detach().cpu().double() * 2, "f", "both")) < 2e-6
    assert torch.autograd.grad(found.sum(), gates)[0].isfinite().all()


@pytest.mark.skipif(NO_TRITON or "triton" in available_backends(), reason="no triton, or its tests run in this process")
def test_the_triton_kernels_pass_under_its_interpreter():
    """Runs the Triton tests of this file and of test_upsampling in a process of their own: the interpreter is chosen when
    Triton is imported."""
    here = Path(__file__).resolve()
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-k", "test_triton", str(here),
         str(here.with_name("test_upsampling.py"))],
        env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=here.parents[1], capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stdout[-5000:] + child.stderr[-2000:]
    assert " passed" in child.stdout and " skipped" not in child.stdout
