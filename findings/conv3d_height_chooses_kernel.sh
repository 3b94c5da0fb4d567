#!/bin/sh
# Guess: a 3D convolution gives a patch the same bits alone as in a batch.
# Found: float32 on an x86 processor. One scene goes to oneDNN where channels x bands x HEIGHT is
# more than 20480, whatever its width, and to another kernel below; two scenes always go to
# oneDNN. So the last bits of a patch depend on the batch, and transposing a long strip changes
# the kernel. In the other kernel a channels-last input gives an output that is not channels-
# last.
exec sh "$(dirname "$0")/alone.sh" numpy==2.4.6 torch==2.13.0 <<'PYTHON'
import os
import platform

os.environ["KINETO_LOG_LEVEL"] = "99"  # else the profiler prints its own steps

import torch
from torch.nn import functional

print("torch", torch.__version__, platform.machine())
torch.manual_seed(0)
torch.set_num_threads(1)
weight = torch.randn(8, 16, 3, 3, 3)


def kernel(scenes, bands, height, width):
    """The kernel's name, and whether a channels-last input gives a channels-last output."""
    cube = torch.randn(scenes, 16, bands, height, width).to(memory_format=torch.channels_last_3d)
    with torch.profiler.profile() as profile:
        out = functional.conv3d(cube, weight, padding=1)
    names = {event.key for event in profile.key_averages()}
    name, = names & {"aten::slow_conv3d", "aten::mkldnn_convolution"}
    return name, out.is_contiguous(memory_format=torch.channels_last_3d)


for shape in ((1, 31, 41, 20), (1, 31, 42, 20), (1, 31, 20, 42), (1, 31, 20, 200), (2, 31, 8, 8)):
    scenes, bands, height, width = shape
    name, kept = kernel(*shape)
    print(f"{scenes} x 16 x {bands} x {height} x {width}: {16 * bands * height} {name}, "
          f"channels-last output {kept}")
    large = scenes > 1 or 16 * bands * height > 20480
    assert (name, kept) == (("aten::mkldnn_convolution", True) if large
                            else ("aten::slow_conv3d", False)), "the rule has changed"

patches = torch.randn(4, 16, 31, 24, 24)
batch = functional.conv3d(patches, weight, padding=1)
alone = torch.cat([functional.conv3d(patch[None], weight, padding=1) for patch in patches])
print("four patches in a batch and alone, largest difference:", float((batch - alone).abs().max()))
assert not torch.equal(batch, alone), "a batch and its patches now agree to the bit"
PYTHON
