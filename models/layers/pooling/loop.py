"""Quasi-recurrent pooling as its definition reads: a loop over bands.

This is the meaning of the other two versions and the baseline they are measured against:
activations on whole gate tensors, one small operation per band, plain autograd.

With Z, F, O, I the raw gates and z = tanh(Z), f = sigmoid(F), o = sigmoid(O), i = sigmoid(I), along
the band axis t:

    f      h_t = f_t h_{t-1} + (1 - f_t) z_t
    fo     c_t = f_t c_{t-1} + (1 - f_t) z_t        h_t = o_t c_t
    ifo    c_t = f_t c_{t-1} + i_t z_t              h_t = o_t c_t

from a state of zero before the first band. "forward" runs t = 0 .. B-1, "backward" t = B-1 .. 0
(the state comes from t+1), "both" is the sum of the two; they share z and have their own f, o and
i. (Fu, Liang, You, IEEE JSTARS 14, 2021.)
"""
from __future__ import annotations

import torch
from torch import Tensor

_GATES = {"f": (2, 3), "fo": (3, 5), "ifo": (4, 7)}


def gate_count(kind: str, both: bool) -> int:
    """Channels of gates per pooled channel.

    The channels come as blocks of C in the order: f Z,F or Z,F1,F2; fo Z,F,O or Z,F1,F2,O1,O2; ifo
    Z,F,O,I or Z,F1,F2,O1,O2,I1,I2, where 1 is the forward direction and 2 the backward one.
    """
    return _GATES[kind][both]


def output_dtype(gates: Tensor, skip: Tensor | None) -> torch.dtype:
    """The dtype of the pooled states: that of the gates, promoted with that of the skip."""
    return gates.dtype if skip is None else torch.promote_types(gates.dtype, skip.dtype)


def pool(gates: Tensor, kind: str, direction: str, skip: Tensor | None = None) -> Tensor:
    """Pool raw gates (N, g*C, B, H, W) into states (N, C, B, H, W), plus `skip` of the same shape
    when given.

    Any floating dtype; half precision is computed in float32.
    """
    dtype = output_dtype(gates, skip)
    if gates.dtype in (torch.float16, torch.bfloat16):
        gates = gates.float()
    parts = gates.chunk(gate_count(kind, direction == "both"), dim=1)
    directions = ("forward", "backward") if direction == "both" else (direction,)
    z = torch.tanh(parts[0])
    total = None
    for n, one in enumerate(directions):
        f = torch.sigmoid(parts[1 + n])
        x = (torch.sigmoid(parts[1 + 2 * len(directions) + n]) if kind == "ifo" else 1 - f) * z
        h = _scan(f, x, reverse=one == "backward")
        if kind != "f":
            h = torch.sigmoid(parts[1 + len(directions) + n]) * h
        total = h if total is None else total + h
    return (total if skip is None else total + skip).to(dtype)


def _scan(f: Tensor, x: Tensor, reverse: bool) -> Tensor:
    """c_t = f_t c_{t-1} + x_t along dim 2."""
    bands = range(f.shape[2])
    state = torch.zeros_like(f[:, :, 0])
    states = []
    for t in reversed(bands) if reverse else bands:
        state = f[:, :, t] * state + x[:, :, t]
        states.append(state)
    return torch.stack(states[::-1] if reverse else states, dim=2)
