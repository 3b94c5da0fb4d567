#!/bin/sh
# Guess: inside one `torch.autocast` block, a layer whose weights change computes with the new
# ones.
# Found: the block keeps the bfloat16 copy of every weight that needs a gradient. Weights that change
# inside the block (an optimizer's step, load_state_dict, a swap to averaged weights) are ignored
# until the block ends, under no_grad too: the loss of a training stands still, without a warning.
# Calls under inference_mode, and weights that need no gradient, use the new values.
exec sh "$(dirname "$0")/alone.sh" numpy==2.4.6 torch==2.13.0 <<'PYTHON'
import torch

print("torch", torch.__version__)
torch.manual_seed(0)
cube, target = torch.randn(2, 1, 1, 6, 8, 8)


def train(one_block):
    """The losses of four steps: in one autocast block, or in a block each."""
    torch.manual_seed(1)
    layer = torch.nn.Conv3d(1, 1, 3, padding=1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    losses = []

    def step():
        optimizer.zero_grad()
        loss = (layer(cube) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(round(loss.item(), 4))

    if one_block:
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(4):
                step()
    else:
        for _ in range(4):
            with torch.autocast("cpu", torch.bfloat16):
                step()
    return losses


one, each = train(True), train(False)
print("losses, one block:     ", one)
print("losses, a block a step:", each)
assert len(set(one)) == 1 and len(set(each)) == 4, "the losses of the two have changed"

layer, other = torch.nn.Conv3d(1, 1, 3), torch.nn.Conv3d(1, 1, 3)
with torch.autocast("cpu", torch.bfloat16):
    before = layer(cube)
    layer.load_state_dict(other.state_dict())
    after = layer(cube)
    with torch.no_grad():
        no_grad = layer(cube)
    with torch.inference_mode():
        inference = layer(cube)
same = [torch.equal(before, output) for output in (after, no_grad, inference)]
print("after load_state_dict in the block the output is the old one: %s; under no_grad: %s; "
      "under inference_mode: %s" % tuple(same))
assert same == [True, True, False], "the cache has changed"
PYTHON
