"""The network of a training step as a CUDA graph: its kernels, forward and backward, are started by one call of the driver."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Graphed:
    """`net` as a graph for inputs of the shapes that come first. Other shapes, a short last batch, run as they would without.

    The graph reads its inputs from memory of its own, into which each call copies, and writes the same output each time: an
    output is used before the next call. Optimizer, loss and degradation stay outside, so rates, noise and scales may change.

    Args:
        capture: `torch.cuda.make_graphed_callables`, or what stands in for it.
    """

    def __init__(self, net: nn.Module, capture: Callable[..., Callable[..., Tensor]] | None = None) -> None:
        self.net, self.capture = net, capture or torch.cuda.make_graphed_callables
        self.shapes: list[tuple] | None = None
        self.graph: Callable[..., Tensor] = net

    def __call__(self, *inputs: Tensor) -> Tensor:
        shapes = [(x.shape, x.dtype, x.stride()) for x in inputs]
        if self.shapes is None:
            self.shapes, self.graph = shapes, self._captured(inputs)
        return (self.graph if shapes == self.shapes else self.net)(*inputs)

    def _captured(self, inputs: Sequence[Tensor]) -> Callable[..., Tensor]:
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # a weight cast outside the graph would be stale inside it
        try:
            # In a holder: the capture replaces a module's `forward`, and validation needs the network's own.
            return self.capture(_Holder(self.net), tuple(x.clone() for x in inputs))
        finally:
            torch.set_autocast_cache_enabled(cached)


class _Holder(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.net(*inputs)
