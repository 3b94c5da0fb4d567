"""Pooling on a CUDA GPU: Triton kernels; the formulas stand in `loop.py`.

One thread owns one lane (an output channel of a pixel) and walks its bands serially with a float32
state; neighbouring threads own neighbouring lanes along the innermost axis of the gates, so every
access is coalesced in any memory format. In half precision a thread owns two neighbouring lanes
where these lie in one aligned word of 32 bits in every tensor (`_pairs`): one load or store serves
both.

Bands are walked in chunks of U, unrolled: all loads of a chunk are independent and in flight
together, and its activated gates stay in registers. One direction needs a single pass. With both,
the first pass goes up through all chunks but the last, reads z and f alone and notes the state at
each chunk's border; the second goes down, holds a chunk of z, h and b in registers, continues h
from its border and g from the chunk above, and writes the sum once. The traffic, in units of an
output of C channels: B <= U (U = 32 for f-pooling: any 31-band image) is one chunk, 3 read + 1
written, the ideal; a long spectrum tends to 5 read + 1 written, two thirds of the ideal. Nothing is
read back through the cache, as it would be if h waited in the output: at full occupancy 270,000
lanes are in flight on a large GPU, and 31 bands of four float32 values of these are 134 MB, more
than any second-level cache. The notes take (ceil(B/U) - 1) / B of an output in float32.

The backward pass is built the same way. What flows up (the states of the forward direction, the
gradient of the backward one) is noted at the borders by the first pass; what flows down
(the other two) is carried by the second, which recomputes the states from the gates and writes all
their gradients once: 4 read + 3 written for one chunk, 8 + 3 at most.

A row past the last band reads as zero gates and zero gradient: z = 0 leaves a state of zero at
zero, so a walk down may start there.
"""
# ruff: noqa: RUF005  (Triton compiles no starred tuples)
from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.layers.pooling.cpu import lane_axes
from models.layers.pooling.loop import gate_count

_KINDS = {"f": 0, "fo": 1, "ifo": 2}
# Bands per chunk: as many as fit the 255 registers of a thread; a shorter one would read gates
# twice. Compiled for compute capability 9.0, a thread with one lane spills up to 150 bytes
# (f-pooling forward in half precision or with a skip); with two lanes and bfloat16, f-pooling
# spills 32 bytes forward, 376 with a skip, 128 backward; fo-pooling 392 backward.
_FORWARD_CHUNK = {"f": 32, "fo": 16, "ifo": 16}
_BACKWARD_CHUNK = {"f": 16, "fo": 16, "ifo": 8}
_ONE_WAY_CHUNK = 8
_PLACES = ["gates", "gs0", "gs1", "gs2", "gs3", "g_band", "g_first", "written", "ws0", "ws1", "ws2",
           "ws3", "w_band", "w_first", "read", "rs0", "rs1", "rs2", "rs3", "r_band", "r_first"]
_COUNTS = ["carry", "gate", "w_gate", "lanes", "D0", "D1", "D2", "bands", "chunks"]


def forward(out: Tensor, gates: Tensor, skip: Tensor | None, kind: str, direction: str) -> None:
    """Write the pooled states (+ skip) into `out`, any strided view."""
    both = direction == "both"
    chunk = _FORWARD_CHUNK[kind] if both else _ONE_WAY_CHUNK
    _launch(_forward, [gates, out, skip], kind, direction, chunk, notes=both)


def backward(grad_gates: Tensor, grad: Tensor, gates: Tensor, kind: str, direction: str) -> None:
    """Write the gradient of the raw gates into `grad_gates`, given the gradient of the states."""
    _launch(_backward, [gates, grad_gates, grad], kind, direction, _BACKWARD_CHUNK[kind],
            notes=True)


def _launch(kernel, tensors: list[Tensor | None], kind: str, direction: str, chunk: int,
            notes: bool) -> None:
    gates = tensors[0]
    if not gates.numel():
        return
    both = direction == "both"
    batch, channels, bands, height, width = gates.shape
    channels //= gate_count(kind, both)
    given = [gates if t is None else t for t in tensors]
    strides = [t.stride() for t in given]
    sizes, steps = lane_axes((batch, channels, bands, height, width), strides)
    # A lone backward direction is a forward one from the last band on, with the band stride
    # reversed.
    turned = direction == "backward"
    places = []
    for tensor, stride, step in zip(given, strides, steps, strict=True):
        places += [tensor, *step, -stride[2] if turned else stride[2],
                   (bands - 1) * stride[2] if turned else 0]
    chunk = min(chunk, triton.next_power_of_2(bands))
    chunks = triton.cdiv(bands, chunk)
    lanes = batch * channels * height * width
    borders = (chunks - 1) * (1 + (both and kernel is _backward)) if notes else 0
    carry = torch.empty((max(borders, 1), lanes if borders else 1), dtype=torch.float32,
                        device=gates.device)
    pair = _pairs(given, sizes, steps, channels)
    block = 128 << pair if gates.is_cuda else min(triton.next_power_of_2(lanes), 4096)
    guard = torch.cuda.device(gates.device) if gates.is_cuda else contextlib.nullcontext()
    with guard:
        kernel[(triton.cdiv(lanes, block),)](
            *places, carry, channels * strides[0][1], channels * strides[1][1], lanes, *sizes[:3],
            bands, chunks, KIND=_KINDS[kind], BOTH=both, SKIP=tensors[2] is not None,
            WIDE=lanes + block >= 2**31,
            NARROW=chunk * max(abs(stride[2]) for stride in strides) < 2**31,
            FAST=_precision(gates), PAIR=pair, U=chunk, BLOCK=block, num_warps=4,
            enable_fp_fusion=True)


def _pairs(tensors: list[Tensor], sizes: list[int], steps: list[list[int]], channels: int) -> bool:
    """Whether lanes 2k and 2k + 1 are one aligned word of 32 bits in every tensor, at every band
    and gate."""
    if sizes[0] % 2:
        return False
    for t, step in zip(tensors, steps, strict=True):
        strides = *step[1:], t.stride(2), channels * t.stride(1)
        aligned = t.element_size() == 2 and t.data_ptr() % 4 == 0 and step[0] == 1
        if not aligned or any(stride % 2 for stride in strides):
            return False
    return True


def _precision(gates: Tensor) -> int:
    """How activations are computed: 0 by plain operations, 1 with the GPU's reciprocal and power of
    two, good to 2 ulps of float32, 2 with its tanh, whose relative error of 2^-11 is a quarter of
    bfloat16's rounding and all of float16's."""
    if (not gates.is_cuda or torch.version.hip
            or torch.cuda.get_device_capability(gates.device) < (7, 5)):
        return 0
    return 2 if gates.dtype == torch.bfloat16 else 1


@triton.jit
def _reciprocal(x, FAST: tl.constexpr):
    if FAST:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x],
                                         dtype=tl.float32, is_pure=True, pack=1)
    return 1.0 / x


@triton.jit
def _exp(x, FAST: tl.constexpr):
    if FAST:  # results below the normal range become 0
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f",
                                         [x * 1.4426950408889634], dtype=tl.float32, is_pure=True,
                                         pack=1)
    return tl.exp(x)


@triton.jit
def _fast_tanh(x):
    return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32,
                                     is_pure=True, pack=1)


@triton.jit
def _sigmoid(x, FAST: tl.constexpr):
    if FAST == 2:
        return 0.5 * _fast_tanh(0.5 * x) + 0.5
    return _reciprocal(1.0 + _exp(-x, FAST), FAST)


@triton.jit
def _tanh(x, FAST: tl.constexpr):
    if FAST == 2:
        return _fast_tanh(x)
    # By the exponential, but near zero, where that cancels, by its series: relative error stays at
    # float32's.
    e = _exp(-2.0 * tl.abs(x), FAST)
    large = (1.0 - e) * _reciprocal(1.0 + e, FAST)
    s = x * x
    small = (x
             + x * s
             * (-0.333333333
                + s * (0.133333333 + s * (-0.0539682540 + s * (0.0218694885 - s * 0.00886323552)))))
    return tl.where(tl.abs(x) < 0.35, small, tl.where(x < 0, -large, large))


@triton.jit
def _place(lane, D0, D1, D2, s0, s1, s2, s3, first):
    """The offset of each lane's first band, 64 bits."""
    rest = lane // D0
    up = rest // D1
    return ((lane % D0).to(tl.int64) * s0 + (rest % D1).to(tl.int64) * s1
            + (up % D2).to(tl.int64) * s2 + (up // D2).to(tl.int64) * s3 + first)


@triton.jit
def _step(u: tl.constexpr, stride, NARROW: tl.constexpr):
    """From a band to the u-th after it; in 32 bits where a chunk is no longer."""
    wide: tl.constexpr = tl.int32 if NARROW else tl.int64
    return u * tl.cast(stride, wide)


@triton.jit
def _at(start, offset, PAIR: tl.constexpr):
    """Their sum. With PAIR it says that two lanes are one aligned access: the compiler loses what
    is not said at the sum."""
    place = start + offset
    if PAIR:
        place = tl.max_contiguous(
            tl.multiple_of(place, start.dtype.element_ty.primitive_bitwidth // 4), 2)
    return place


@triton.jit
def _rows(start, stride, t, limit, U: tl.constexpr, ACT: tl.constexpr, NARROW: tl.constexpr,
          FAST: tl.constexpr, PAIR: tl.constexpr):
    """U bands from t on, as a tuple: raw (0), tanh (1) or sigmoid (2)."""
    rows = ()
    start = _at(start, tl.cast(t, tl.int64) * stride, PAIR)
    for u in tl.static_range(U):
        x = tl.load(_at(start, _step(u, stride, NARROW), PAIR), mask=t + u < limit, other=0.0).to(
            tl.float32)
        if ACT == 1:
            x = _tanh(x, FAST)
        if ACT == 2:
            x = _sigmoid(x, FAST)
        rows = rows + (x,)
    return rows


@triton.jit
def _inputs(f, i, z, KIND: tl.constexpr, U: tl.constexpr):
    """What enters the state, x of c_t = f_t c_{t-1} + x_t."""
    rows = ()
    for u in tl.static_range(U):
        if KIND == 2:
            rows = rows + (i[u] * z[u],)
        else:
            rows = rows + ((1.0 - f[u]) * z[u],)
    return rows


# Not specialised on sizes and strides: each lane is one element, so nothing is gained by knowing
# what divides them, and a network of many shapes compiles each kernel once.
@triton.jit(do_not_specialize=_PLACES + _COUNTS)
def _forward(  # noqa: C901 (one kernel; its branches are those of the compiler)
        gates, gs0, gs1, gs2, gs3, g_band, g_first, written, ws0, ws1, ws2, ws3, w_band, w_first,
        read, rs0, rs1, rs2, rs3, r_band, r_first, carry, gate, w_gate, lanes, D0, D1, D2, bands,
        chunks, KIND: tl.constexpr, BOTH: tl.constexpr, SKIP: tl.constexpr, WIDE: tl.constexpr,
        NARROW: tl.constexpr, FAST: tl.constexpr, PAIR: tl.constexpr, U: tl.constexpr,
        BLOCK: tl.constexpr):
    index = tl.program_id(0)
    if WIDE:
        index = index.to(tl.int64)
    lane = index * BLOCK + tl.arange(0, BLOCK)
    # no bands for the lanes past the end: one comparison masks both
    limit = tl.where(lane < lanes, bands, 0)
    if PAIR:
        limit = tl.max_constancy(limit, 2)
    gates += _place(lane, D0, D1, D2, gs0, gs1, gs2, gs3, g_first)
    written += _place(lane, D0, D1, D2, ws0, ws1, ws2, ws3, w_first)
    if SKIP:
        read += _place(lane, D0, D1, D2, rs0, rs1, rs2, rs3, r_first)
    carry += lane.to(tl.int64)
    gate = tl.cast(gate, tl.int64)
    n: tl.constexpr = 2 if BOTH else 1
    h = tl.zeros((BLOCK,), tl.float32)

    if BOTH:
        for k in range(chunks - 1):
            z = _rows(gates, g_band, k * U, limit, U, 1, NARROW, FAST, PAIR)
            f = _rows(gates + gate, g_band, k * U, limit, U, 2, NARROW, FAST, PAIR)
            i = f
            if KIND == 2:
                i = _rows(gates + 5 * gate, g_band, k * U, limit, U, 2, NARROW, FAST, PAIR)
            x = _inputs(f, i, z, KIND, U)
            for u in tl.static_range(U):
                h = f[u] * h + x[u]
            tl.store(_at(carry, tl.cast(k, tl.int64) * lanes, PAIR), h, mask=limit > 0)
        tl.debug_barrier()

    g = tl.zeros((BLOCK,), tl.float32)
    for step in range(chunks):
        k = step
        if BOTH:
            k = chunks - 1 - step
            h = tl.load(_at(carry, (tl.cast(k, tl.int64) - 1) * lanes, PAIR),
                        mask=tl.minimum(limit, k) > 0, other=0.0)
        t = k * U
        z = _rows(gates, g_band, t, limit, U, 1, NARROW, FAST, PAIR)
        f = _rows(gates + gate, g_band, t, limit, U, 2, NARROW, FAST, PAIR)
        i = f
        o = f
        if KIND >= 1:
            o = _rows(gates + (1 + n) * gate, g_band, t, limit, U, 2, NARROW, FAST, PAIR)
        if KIND == 2:
            i = _rows(gates + (1 + 2 * n) * gate, g_band, t, limit, U, 2, NARROW, FAST, PAIR)
        x = _inputs(f, i, z, KIND, U)
        if SKIP:
            s = _rows(read, r_band, t, limit, U, 0, NARROW, FAST, PAIR)
        y = ()
        for u in tl.static_range(U):
            h = f[u] * h + x[u]
            total = h
            if KIND >= 1:
                total = o[u] * h
            if SKIP:
                total += s[u]
            y = y + (total,)
        if BOTH:
            f = _rows(gates + 2 * gate, g_band, t, limit, U, 2, NARROW, FAST, PAIR)
            if KIND >= 1:
                o = _rows(gates + 4 * gate, g_band, t, limit, U, 2, NARROW, FAST, PAIR)
            if KIND == 2:
                i = _rows(gates + 6 * gate, g_band, t, limit, U, 2, NARROW, FAST, PAIR)
            x = _inputs(f, i, z, KIND, U)
        to = _at(written, tl.cast(t, tl.int64) * w_band, PAIR)
        for v in tl.static_range(U - 1, -1, -1):
            total = y[v]
            if BOTH:
                g = f[v] * g + x[v]
                if KIND >= 1:
                    total += o[v] * g
                else:
                    total += g
            tl.store(_at(to, _step(v, w_band, NARROW), PAIR), total, mask=t + v < limit)


@triton.jit(do_not_specialize=_PLACES + _COUNTS)
def _backward(  # noqa: C901 (one kernel; its branches are those of the compiler)
        gates, gs0, gs1, gs2, gs3, g_band, g_first, written, ws0, ws1, ws2, ws3, w_band, w_first,
        read, rs0, rs1, rs2, rs3, r_band, r_first, carry, gate, w_gate, lanes, D0, D1, D2, bands,
        chunks, KIND: tl.constexpr, BOTH: tl.constexpr, SKIP: tl.constexpr, WIDE: tl.constexpr,
        NARROW: tl.constexpr, FAST: tl.constexpr, PAIR: tl.constexpr, U: tl.constexpr,
        BLOCK: tl.constexpr):
    index = tl.program_id(0)
    if WIDE:
        index = index.to(tl.int64)
    lane = index * BLOCK + tl.arange(0, BLOCK)
    # no bands for the lanes past the end: one comparison masks both
    limit = tl.where(lane < lanes, bands, 0)
    if PAIR:
        limit = tl.max_constancy(limit, 2)
    gates += _place(lane, D0, D1, D2, gs0, gs1, gs2, gs3, g_first)
    written += _place(lane, D0, D1, D2, ws0, ws1, ws2, ws3, w_first)
    read += _place(lane, D0, D1, D2, rs0, rs1, rs2, rs3, r_first)
    carry += lane.to(tl.int64)
    gate = tl.cast(gate, tl.int64)
    w_gate = tl.cast(w_gate, tl.int64)
    n: tl.constexpr = 2 if BOTH else 1
    zero = tl.zeros((BLOCK,), tl.float32)

    # Up: the states of direction 1 (c1), the gradient of direction 2 times its f (r2). Down: c2 and
    # r1.
    c1 = zero
    r2 = zero
    for k in range(chunks - 1):
        t = k * U
        z = _rows(gates, g_band, t, limit, U, 1, NARROW, FAST, PAIR)
        f = _rows(gates + gate, g_band, t, limit, U, 2, NARROW, FAST, PAIR)
        i = f
        if KIND == 2:
            i = _rows(gates + (1 + 2 * n) * gate, g_band, t, limit, U, 2, NARROW, FAST, PAIR)
        x = _inputs(f, i, z, KIND, U)
        for u in tl.static_range(U):
            c1 = f[u] * c1 + x[u]
        tl.store(_at(carry, tl.cast(k, tl.int64) * lanes, PAIR), c1, mask=limit > 0)
        if BOTH:
            d = _rows(read, r_band, t, limit, U, 0, NARROW, FAST, PAIR)
            f = _rows(gates + 2 * gate, g_band, t, limit, U, 2, NARROW, FAST, PAIR)
            if KIND >= 1:
                i = _rows(gates + 4 * gate, g_band, t, limit, U, 2, NARROW, FAST, PAIR)
            for u in tl.static_range(U):
                if KIND >= 1:
                    r2 = f[u] * (d[u] * i[u] + r2)
                else:
                    r2 = f[u] * (d[u] + r2)
            tl.store(_at(carry, (tl.cast(chunks, tl.int64) - 1 + k) * lanes, PAIR), r2,
                     mask=limit > 0)
    tl.debug_barrier()

    c2 = zero
    r1 = zero
    for step in range(chunks):
        k = chunks - 1 - step
        t = k * U
        c1 = tl.load(_at(carry, (tl.cast(k, tl.int64) - 1) * lanes, PAIR),
                     mask=tl.minimum(limit, k) > 0, other=0.0)
        z = _rows(gates, g_band, t, limit, U, 1, NARROW, FAST, PAIR)
        d = _rows(read, r_band, t, limit, U, 0, NARROW, FAST, PAIR)
        f1 = _rows(gates + gate, g_band, t, limit, U, 2, NARROW, FAST, PAIR)
        o1 = f1
        i1 = f1
        if KIND >= 1:
            o1 = _rows(gates + (1 + n) * gate, g_band, t, limit, U, 2, NARROW, FAST, PAIR)
        if KIND == 2:
            i1 = _rows(gates + (1 + 2 * n) * gate, g_band, t, limit, U, 2, NARROW, FAST, PAIR)
        x = _inputs(f1, i1, z, KIND, U)
        before = ()
        for u in tl.static_range(U):
            before = before + (c1,)
            c1 = f1[u] * c1 + x[u]
        if BOTH:
            f2 = _rows(gates + 2 * gate, g_band, t, limit, U, 2, NARROW, FAST, PAIR)
            o2 = f2
            i2 = f2
            if KIND >= 1:
                o2 = _rows(gates + 4 * gate, g_band, t, limit, U, 2, NARROW, FAST, PAIR)
            if KIND == 2:
                i2 = _rows(gates + 6 * gate, g_band, t, limit, U, 2, NARROW, FAST, PAIR)
            note = _at(carry, (tl.cast(chunks + k, tl.int64) - 2) * lanes, PAIR)
            r2 = tl.load(note, mask=tl.minimum(limit, k) > 0, other=0.0)
            arriving = ()
            for u in tl.static_range(U):
                e2 = d[u] + r2
                if KIND >= 1:
                    e2 = d[u] * o2[u] + r2
                arriving = arriving + (e2,)
                r2 = f2[u] * e2
        first = _at(written, tl.cast(t, tl.int64) * w_band, PAIR)
        for v in tl.static_range(U - 1, -1, -1):
            valid = t + v < limit
            to = _at(first, _step(v, w_band, NARROW), PAIR)
            into_z, r1 = _gradients(_at(to, w_gate, PAIR), n * w_gate, valid, z[v], f1[v], o1[v],
                                    i1[v], before[v], d[v], r1, True, KIND, PAIR)
            if BOTH:
                more, _r = _gradients(_at(to, 2 * w_gate, PAIR), n * w_gate, valid, z[v], f2[v],
                                      o2[v], i2[v], c2, d[v], arriving[v], False, KIND, PAIR)
                into_z += more
                if KIND == 2:
                    c2 = f2[v] * c2 + i2[v] * z[v]
                else:
                    c2 = f2[v] * c2 + (1.0 - f2[v]) * z[v]
            tl.store(to, into_z * (1.0 - z[v]) * (1.0 + z[v]), mask=valid)


@triton.jit
def _gradients(to, next_kind, valid, z, f, o, i, before, d, e, ADD: tl.constexpr,
               KIND: tl.constexpr, PAIR: tl.constexpr):
    """Writes the gradients of one band's raw F (at `to`), O and I (`next_kind` further each) of one
    direction.

    With ADD, `e` is what reaches c_t from later bands, and the output's gradient is added; else it
    is all of it. Returns what reaches z and what reaches c_{t-1}.
    """
    if KIND >= 1:
        if KIND == 2:
            now = f * before + i * z
        else:
            now = f * before + (1.0 - f) * z
        tl.store(_at(to, next_kind, PAIR), d * now * o * (1.0 - o), mask=valid)
        d = d * o
    if ADD:
        e = e + d
    if KIND == 2:
        into_z = e * i
        tl.store(to, e * before * f * (1.0 - f), mask=valid)
        tl.store(_at(to, 2 * next_kind, PAIR), e * z * i * (1.0 - i), mask=valid)
    else:
        into_z = e * (1.0 - f)
        tl.store(to, (before - z) * f * into_z, mask=valid)
    return into_z, f * e
