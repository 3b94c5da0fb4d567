"""Pooling: every version has the loop's values and gradients in float64, and nothing else."""
from __future__ import annotations

import concurrent.futures
import ctypes
import hashlib
import importlib.util
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.layers import build, pooling
from models.layers.pooling import (
    BACKENDS,
    available_backends,
    cpu,
    gate_count,
    loop,
    pool,
    pool_into,
)

KINDS = ("f", "fo", "ifo")
DIRECTIONS = ("forward", "backward", "both")
LAYOUTS = ("contiguous", "channels_last", "sliced", "permuted")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
TRITON_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NO_TRITON = importlib.util.find_spec("triton") is None

every_kind = pytest.mark.parametrize("kind", KINDS)
every_direction = pytest.mark.parametrize("direction", DIRECTIONS)
# Run on a GPU where there is one; otherwise only in the child process that sets TRITON_INTERPRET=1,
# see below.
needs_triton = pytest.mark.skipif("triton" not in available_backends(),
                                  reason="no GPU, and not under the interpreter")


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv("BI3DQRNN_NO_COMPILE", "1")
    cpu.library.cache_clear()
    yield
    cpu.library.cache_clear()


def randn(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return (scale
            * torch.randn(shape, generator=torch.Generator().manual_seed(seed),
                          dtype=torch.float64))


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
    return float(
        (found.detach().cpu().double() - expected).norm() / expected.norm().clamp_min(1e-30))


def agree(backend: str, kind: str, direction: str, shape: tuple[int, ...], dtype: torch.dtype,
          layout: str = "contiguous", with_skip: bool = False, device: str = "cpu") -> None:
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


SHAPES = st.tuples(st.integers(1, 2), st.sampled_from([1, 2, 3, 8, 16, 17]), st.integers(1, 9),
                   st.integers(1, 5), st.integers(1, 37))
CASES = {"kind": st.sampled_from(KINDS), "direction": st.sampled_from(DIRECTIONS), "shape": SHAPES,
         "layout": st.sampled_from(LAYOUTS), "with_skip": st.booleans()}


@given(dtype=st.sampled_from(list(TOLERANCE)), **CASES)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_cpu_version_agrees_with_the_loop(kind, direction, shape, dtype, layout, with_skip):
    agree("cpu", kind, direction, shape, dtype, layout, with_skip)


@given(dtype=st.sampled_from(list(TOLERANCE)), **CASES)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_loop_in_any_dtype_agrees_with_itself_in_double(
        kind, direction, shape, dtype, layout, with_skip):
    agree("loop", kind, direction, shape, dtype, layout, with_skip)


def test_without_a_compiler_the_loop_takes_its_place(no_compiler, monkeypatch):
    assert cpu.library() is None
    agree("cpu", "fo", "both", (2, 3, 7, 2, 5), torch.bfloat16, "channels_last", with_skip=True)
    monkeypatch.setattr(loop, "pool", lambda gates, *_: gates[:, :1])
    gates = torch.zeros(1, 3, 1, 1, 1)
    assert pool(gates, "f", "both", backend="cpu").shape == (1, 1, 1, 1, 1)
    pool_into(gates[:, 1:2], gates, "f", "both")


@every_kind
@every_direction
def test_the_loop_s_gradients_are_those_of_its_values(kind, direction):
    for bands, channels in ((1, 1), (3, 2)):
        gates = randn(1, channels * gate_count(kind, direction == "both"), bands, 1,
                      2).requires_grad_()
        skip = randn(1, channels, bands, 1, 2, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda g, s: loop.pool(g, kind, direction, s),
                                        (gates, skip))


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
    extreme = torch.tensor(
        [-float("inf"), -1e30, -200.0, -90.0, 0.0, 90.0, 200.0, 1e30, float("inf")], dtype=dtype)
    gates = torch.cartesian_prod(extreme, extreme, extreme).T.reshape(1, 3, 1, 27, 27).repeat(
        1, 1, 3, 1, 1)
    gates.requires_grad_()
    found = pool(gates, "f", "both")
    torch.testing.assert_close(found.detach(),
                               loop.pool(gates.detach().double(), "f", "both").to(dtype))
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
            # a block of rows of a bigger image, from a block of rows of its gates
            for top in (0, 5):
                rows = slice(top, top + 3)
                pool_into(big[..., rows, 1:-1], laid_out(gates, layout)[..., rows, 1:-1], "fo",
                          direction, backend=version)
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
    gates, skip = (randn(1, 6, 5, 4, 7).float(),
                   randn(1, 2, 5, 4, 7, seed=1).bfloat16().requires_grad_())
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
    checks = ("test_schema", "test_autograd_registration", "test_faketensor",
              "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.bi3dqrnn.pool.default, (gates, skip, "f", "both", "cpu"),
                          test_utils=checks)
    torch.library.opcheck(torch.ops.bi3dqrnn.pool_into.default,
                          (torch.empty(2, 2, 3, 4, 5), gates.detach(), None, "f", "both", "cpu"),
                          test_utils=checks)


def in_a_fork(work: Callable[[], object]) -> int | None:
    """The exit status of a child process that does `work`; None: it did not end."""
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
        gradients = []
        for version in (pool, second.pool, importlib.reload(pooling).pool):
            loss = version(gates, "f", "both").square().sum()
            gradients.append(torch.autograd.grad(loss, gates)[0])
        assert all(torch.equal(gradients[0], other) for other in gradients)

    assert in_a_fork(import_twice) == 0


def test_where_triton_cannot_compile_auto_takes_the_loop_and_warns_once(monkeypatch):
    pooling._triton_compiles.cache_clear()
    monkeypatch.setitem(sys.modules, "models.layers.pooling.gpu", None)  # importing it fails
    monkeypatch.setattr(pooling, "_HAS_TRITON", True)
    gates = SimpleNamespace(is_cuda=True, device=torch.device("cuda"), dtype=torch.float32)
    with pytest.warns(UserWarning, match="Triton cannot compile the pooling here") as said:
        assert [pooling._choose("auto", gates) for _ in range(2)] == ["loop", "loop"]
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
    """bfloat16 (1, channels, 3, 1, 5) of bands more than 2^31 elements apart; a sparse file."""
    step = 2**30 + 2**29
    size = 2 * step + 5 * channels
    if device == "cuda":
        flat = torch.empty(size, dtype=torch.bfloat16, device=device)
    else:
        flat = torch.from_file(str(tmp_path / f"sparse{channels}"), shared=True, size=size,
                               dtype=torch.bfloat16)
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


@pytest.mark.parametrize(("change", "message"),
                         [({"kind": "g"}, "kind 'g' is unknown"),
                          ({"direction": "sideways"}, "'sideways' is unknown"),
                          ({"backend": "fast"}, "backend 'fast' is unknown"),
                          ({"gates": torch.zeros(1, 7, 2, 2, 2)}, r"expected floating \(N, 3\*C"),
                          ({"gates": torch.zeros(1, 6, 2, 2)}, r"expected floating \(N, 3\*C"),
                          ({"gates": torch.zeros(1, 6, 2, 2, 2, dtype=torch.int32)}, "torch.int32"),
                          ({"skip": torch.zeros(1, 6, 2, 2, 2)}, "skip has shape")])
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
    monkeypatch.setattr("models.layers.pooling._HAS_TRITON", False)
    with pytest.raises(RuntimeError, match="needs the package triton"):
        pool(gates, "f", "both", backend="triton")
    assert available_backends() == ("loop", "cpu") == BACKENDS[:2]


# ------------------------------------------------------------------------------ building the kernel

needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="no C++ compiler here")


@pytest.fixture
def unoptimised(monkeypatch):
    """The kernel is built quickly."""
    monkeypatch.setattr(build, "_COMMON", [flag.replace("-O3", "-O0") for flag in build._COMMON])


@needs_compiler
def test_processes_building_at_once_leave_one_library(unoptimised, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # the compiler is a process of its own
    with concurrent.futures.ThreadPoolExecutor(2) as pool_of_two:
        loaded = list(pool_of_two.map(lambda _: cpu.library.__wrapped__(), range(2)))
    assert all(isinstance(library, ctypes.CDLL) for library in loaded)
    only, checksum = sorted((tmp_path / "bi3dqrnn").iterdir(),
                            key=lambda path: path.suffix != ".so")
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
    monkeypatch.setattr(build, "_processor", lambda: "another")
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
