"""Triton's pooling: the loop's values and gradients; its interpreter without a GPU."""
from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from limits import HUNG
from numpy.lib import NumpyVersion
from test_pooling import (
    DIRECTIONS,
    KINDS,
    NO_TRITON,
    TOLERANCE,
    TRITON_DEVICE,
    addresses_beyond_2_31,
    agree,
    error,
    every_kind,
    laid_out,
    needs_triton,
    randn,
)
from torch import Tensor

from benchmarks import instructions
from models.layers.pooling import available_backends, gate_count, loop, pool, pool_into


def errors_of_the_loop(kind: str, dtype: torch.dtype) -> list[float]:
    """Of values and gradients, against the loop in float64."""
    gates = randn(1, 2 * gate_count(kind, True), 31, 5, 6).to(dtype)
    grad = randn(1, 2, 31, 5, 6, seed=2).to(dtype)
    exact = gates.double().requires_grad_()
    expected = loop.pool(exact, kind, "both")
    (expected_grad,) = torch.autograd.grad(expected, exact, grad.double())
    out = loop.pool(gates.requires_grad_(), kind, "both")
    (grad_gates,) = torch.autograd.grad(out, gates, grad)
    return [error(out.detach(), expected.detach()), error(grad_gates, expected_grad)]


@every_kind
@pytest.mark.parametrize(
        ("dtype", "accuracy"),
        [(torch.bfloat16, 2**-11), (torch.float16, 2**-22), (torch.float32, 2**-22)])
def test_a_gpu_s_approximate_activations_err_less_than_the_dtype_rounds(
        monkeypatch, kind, dtype, accuracy):
    """As far off as the kernel's instructions may be: tanh by 2^-11 for bfloat16, else ulps."""
    before = errors_of_the_loop(kind, dtype)
    tanh, generator = torch.tanh, torch.Generator().manual_seed(0)

    def off(x: Tensor) -> Tensor:
        return x * (1 + accuracy * (2 * torch.randint(0, 2, x.shape, generator=generator) - 1))

    sigmoid = (lambda x: 0.5
               + 0.5 * off(tanh(x / 2))) if dtype == torch.bfloat16 else lambda x: off(
                   0.5 + 0.5 * tanh(x / 2))
    monkeypatch.setattr(torch, "sigmoid", sigmoid)
    monkeypatch.setattr(torch, "tanh", lambda x: off(tanh(x)))
    for exact, approximate in zip(before, errors_of_the_loop(kind, dtype), strict=True):
        assert approximate != exact
        # adds less than the rounding itself
        assert approximate < (2e-6 if dtype == torch.float32 else 2**0.5 * exact)


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LONG = 9 if INTERPRETED else 37
"""Bands of several chunks, the last of them not full, in every kernel."""


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """The interpreter takes a second for a chunk of 32 bands: there, chunks have 4."""
    if INTERPRETED:
        from models.layers.pooling import gpu
        for chunks in (gpu._FORWARD_CHUNK, gpu._BACKWARD_CHUNK):
            for kind in KINDS:
                monkeypatch.setitem(chunks, kind, 4)
        monkeypatch.setattr(gpu, "_ONE_WAY_CHUNK", 4)


TRITON_CASES = itertools.cycle([
    ((1, 2, LONG, 1, 3), torch.float32, "sliced"),
    ((2, 3, 2, 2, 5), torch.float16, "permuted"),
    ((2, 2, 1, 2, 3), torch.float32, "contiguous"),
    ((1, 1, 7, 3, 5), torch.bfloat16, "channels_last"),
])


@needs_triton
# f: with long spectra, below
@pytest.mark.parametrize(("kind", "direction", "case"),
                         [(*pair, next(TRITON_CASES))
                          for pair in itertools.product(KINDS, DIRECTIONS)]
                         + [("fo", "both", ((1, 1, LONG, 1, 2), torch.float32, "channels_last"))])
def test_triton_agrees_with_the_loop(kind, direction, case):
    shape, dtype, layout = case
    agree("triton", kind, direction, shape, dtype, layout, with_skip=shape[2] % 2 == 1,
          device=TRITON_DEVICE)


def noted_pairs(monkeypatch, always: bool | None = None) -> list[bool]:
    """Notes of each launch whether a thread takes two lanes; with `always` False none does."""
    from models.layers.pooling import gpu
    taken, pairs = [], gpu._pairs
    monkeypatch.setattr(
        gpu, "_pairs",
        lambda *given: taken.append(pairs(*given) if always is None else always) or taken[-1])
    return taken


TWO_LANES = itertools.cycle([((1, 2, 5, 1, 3), torch.bfloat16, "channels_last"),
                             ((2, 3, 2, 1, 2), torch.float16, "contiguous")])


@needs_triton
@pytest.mark.parametrize(("kind", "direction", "case"), [(*pair, next(TWO_LANES)) for pair in
                                                         itertools.product(KINDS, DIRECTIONS)])
def test_triton_with_two_lanes_a_thread_computes_what_it_does_with_one(
        monkeypatch, kind, direction, case):
    """Both, and the loop, in chunks of two bands: with several chunks and with one."""
    from models.layers.pooling import gpu
    for chunks in (gpu._FORWARD_CHUNK, gpu._BACKWARD_CHUNK):
        monkeypatch.setitem(chunks, kind, 2)
    monkeypatch.setattr(gpu, "_ONE_WAY_CHUNK", 2)
    shape, dtype, layout = case
    gates = laid_out(
        randn(shape[0], shape[1] * gate_count(kind, direction == "both"), *shape[2:]).to(dtype),
        layout)
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
@pytest.mark.parametrize("case",
                         ["even", "odd channels", "odd plane", "odd band", "float32",
                          "float32 skip", "unaligned gates", "unaligned skip",
                          "unaligned gradient"])
def test_triton_takes_two_lanes_a_thread_only_where_they_are_one_aligned_word(monkeypatch, case):
    def placed(x: Tensor, shifted: bool) -> Tensor:
        memory = torch.zeros(2 * x.numel(), dtype=x.dtype, device=TRITON_DEVICE)[int(shifted):]
        return memory.as_strided(x.shape, x.stride(), memory.storage_offset()).copy_(x)

    layout = "contiguous" if "plane" in case else "channels_last"
    dtype = torch.float32 if case == "float32" else torch.bfloat16
    shape = (1, 3 if case == "odd channels" else 2, 2, 1, 3)
    gates, skip, grad = (
        laid_out(randn(1, n * shape[1], *shape[2:], seed=n).to(dtype), layout) for n in (3, 1, 1))
    if case == "odd band":  # the gates are channels of wider rows
        gates = laid_out(torch.cat([gates, gates[:, :1]], dim=1), layout)[:, :6]
    skip = skip.float() if case == "float32 skip" else skip
    gates = placed(gates, case == "unaligned gates")
    grad = placed(grad.to(skip.dtype), case == "unaligned gradient")
    skip = placed(skip, case == "unaligned skip")
    taken = noted_pairs(monkeypatch)
    gates.requires_grad_()
    out = pool(gates, "f", "both", skip, "triton")
    exact = gates.detach().double().cpu().requires_grad_()
    expected = loop.pool(exact, "f", "both", skip.double().cpu())
    (expected_grad,) = torch.autograd.grad(expected, exact, grad.double().cpu())
    assert error(out, expected.detach()) <= TOLERANCE[dtype]
    assert error(torch.autograd.grad(out, gates, grad)[0], expected_grad) <= TOLERANCE[dtype]
    assert (taken
            == {"even": [True, True], "unaligned skip": [False, True],
                "unaligned gradient": [True, False]}.get(case, [False, False]))


@needs_triton
@pytest.mark.parametrize("width", [2, 3])
def test_triton_writes_windows_of_any_width_and_nothing_else(monkeypatch, width):
    taken = noted_pairs(monkeypatch)
    gates = randn(1, 3, 2, 2, 4).bfloat16()
    big = torch.full((1, 1, 2, 2, 4), 7.0, dtype=torch.bfloat16, device=TRITON_DEVICE)
    pool_into(big[..., :width], gates.to(TRITON_DEVICE)[..., :width], "f", "both", backend="triton")
    assert error(big[..., :width],
                 loop.pool(gates.double(), "f", "both")[..., :width]) <= TOLERANCE[torch.bfloat16]
    assert (big[..., width:] == 7).all() and taken == [width == 2]


@pytest.mark.skipif(NO_TRITON or INTERPRETED,
                    reason="no triton, or its interpreter")
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_two_lanes_of_a_thread_are_read_and_written_as_one_word(way):
    made, lanes = instructions.compiled(way, "bf16", 80, bands=2)
    accesses = set(re.findall(r"(?:ld|st)\.global\.[\w.]+", made.asm["ptx"]))
    assert (lanes == 2
            and accesses
            == {"ld.global.b32", "st.global.b32", "ld.global.v2.b32", "st.global.v2.b32"})


@needs_triton
def test_triton_takes_long_spectra_and_more_lanes_than_one_block():
    agree("triton", "f", "both", (1, 1, 2 * LONG, 1, 3), torch.float32, "channels_last",
          device=TRITON_DEVICE)
    agree("triton", "f", "both", (1, 8, 2, 20, 30), torch.float32, "channels_last",
          device=TRITON_DEVICE)


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
        pool(torch.zeros(1, 3, 2, 2, 2, dtype=torch.float64, device=TRITON_DEVICE), "f", "both",
             backend="triton")


@needs_triton
def test_triton_runs_in_a_compiled_network():
    gates = randn(1, 6, 3, 4, 5).float().to(TRITON_DEVICE).requires_grad_()
    compiled = torch.compile(lambda g: pool(g * 2, "f", "both", backend="triton"), fullgraph=True,
                             backend="aot_eager")
    found = compiled(gates)
    assert error(found, loop.pool(gates.detach().cpu().double() * 2, "f", "both")) < 2e-6
    assert torch.autograd.grad(found.sum(), gates)[0].isfinite().all()


@pytest.mark.skipif(NO_TRITON or "triton" in available_backends(),
                    reason="no triton, or its tests run in this process")
@pytest.mark.skipif(not NO_TRITON and version("triton").startswith("3.2.")
                    and NumpyVersion(np.__version__) >= "2.4.0",
                    reason="the interpreter of Triton 3.2 fails with numpy 2.4; it runs with numpy "
                    "2.2")
def test_the_triton_kernels_pass_under_its_interpreter():
    """The Triton tests of this file in a process whose Triton is imported as interpreter."""
    here = Path(__file__).resolve()
    child = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-k",
                            "test_triton", str(here)], env={**os.environ, "TRITON_INTERPRET": "1"},
                           cwd=here.parents[1], capture_output=True, text=True, timeout=HUNG)
    assert child.returncode == 0, child.stdout[-5000:] + child.stderr[-2000:]
    assert " passed" in child.stdout and " skipped" not in child.stdout
