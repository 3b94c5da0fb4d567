#!/bin/sh
# Guess: an elementwise function gives one value for one input, wherever the input stands in a
# tensor.
# Found: on a processor `torch.sigmoid` computes most of a contiguous tensor with vectors and its
# tail, or a strided tensor, with scalar code, and the two differ in the last bit. So gates
# computed on a tile, a slice or one pixel are not bit for bit those of the whole cube.
# `softplus` and `silu` differ too; `tanh` and `exp` do not.
exec sh "$(dirname "$0")/alone.sh" numpy==2.4.6 torch==2.13.0 <<'PYTHON'
import platform

import torch

print("torch", torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability())
torch.manual_seed(0)
torch.set_num_threads(1)
values = torch.randn(4003)
strided = torch.randn(4003, 2)[:, 0]


def differ(function):
    """How many of 4003 values are others one at a time, cut in two, and in a strided tensor."""
    whole = function(values)
    single = torch.stack([function(value) for value in values])
    halves = torch.cat([function(values[:7]), function(values[7:])])
    return (int((whole != single).sum()), int((whole != halves).sum()),
            int((function(strided) != function(strided.contiguous())).sum()))


found = {name: differ(function) for name, function in (
    ("sigmoid", torch.sigmoid), ("softplus", torch.nn.functional.softplus),
    ("silu", torch.nn.functional.silu), ("tanh", torch.tanh), ("exp", torch.exp))}
for name, counts in found.items():
    print(f"{name:8} of 4003 values differ: one at a time %d, cut at 7 %d, strided %d" % counts)
step = (torch.sigmoid(values) - torch.stack([torch.sigmoid(v) for v in values])).abs().max()
print("largest step of sigmoid:", float(step))
assert found["sigmoid"][0] and found["sigmoid"][2], "sigmoid is now the same everywhere"
assert not any(found["tanh"]), "tanh now depends on the place"
PYTHON
