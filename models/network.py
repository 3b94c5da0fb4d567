"""What the project knows of a network: input, receptive field, first weights, memory.

A new architecture is one file in `models/` with a subclass of `Network` under `@register`
(see `models.registry`).
"""
from __future__ import annotations

import math
from dataclasses import astuple, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Execution:
    """How a network is computed; none of this changes what it computes, and a network ignores what
    does not concern it.

    Attributes:
        pooling: `auto`, `loop`, `cpu` or `triton`; see `models.layers.pooling`.
        channels_last: convolutions see channels-last tensors; None: where that is the fast format,
            see `last`.
        deconv_as_conv: transposed convolutions of stride 1 run as convolutions with flipped
            weights.
        own_upsampling: the upsampling is that of `models.layers.upsampling`, not torch's.
        block_voxels: gate voxels (bands x rows x columns) that a unit computes at once without
            gradients; 0 is the whole image, None as many as fit a processor's cache, or a quarter
            of a GPU's free memory.
        checkpoint: recompute activations in the backward pass instead of keeping them.
    """

    pooling: str = "auto"
    channels_last: bool | None = None
    deconv_as_conv: bool = True
    own_upsampling: bool = True
    block_voxels: int | None = None
    checkpoint: bool = False

    def last(self, x: Tensor) -> bool:
        """Whether convolutions of x see channels-last tensors; by default as oneDNN and cuDNN have
        their fast kernels.

        A processor's are for channels-last. So are a GPU's in half precision and with TF32; in
        float32 without TF32 channels-last is a known slow path there.
        """
        if self.channels_last is not None or not x.is_cuda:
            return self.channels_last is not False
        half = x.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled("cuda")
        return half or torch.backends.cudnn.allow_tf32

    def layout(self, x: Tensor) -> torch.memory_format:
        """The memory format in which convolutions see x."""
        return torch.channels_last_3d if self.last(x) else torch.contiguous_format

    @classmethod
    def released(cls) -> Execution:
        """As the released code runs: a loop over bands, default layout, whole images."""
        return cls(pooling="loop", channels_last=False, deconv_as_conv=False, own_upsampling=False,
                   block_voxels=0)


@dataclass(frozen=True)
class Window:
    """Where an image lies in a larger one: rows top .. bottom and columns left .. right of height x
    width pixels."""

    top: int
    bottom: int
    left: int
    right: int
    height: int
    width: int

    @classmethod
    def whole(cls, height: int, width: int) -> Window:
        return cls(0, height, 0, width, height, width)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left

    def grown(self, margin: int) -> Window:
        """With `margin` pixels more on each side, as far as the larger image goes."""
        return Window(max(self.top - margin, 0), min(self.bottom + margin, self.height),
                      max(self.left - margin, 0), min(self.right + margin, self.width), self.height,
                      self.width)

    def scaled(self, numerator: int, denominator: int) -> Window:
        """At another resolution."""
        return Window(*(v * numerator // denominator for v in astuple(self)))

    def cut(self, x: Tensor, inside: Window) -> Tensor:
        """The part of x (..., rows, columns) that this window is, where x is the image in the
        window `inside`."""
        return x[..., self.top - inside.top:self.bottom - inside.top,
                 self.left - inside.left:self.right - inside.left]


def band_moments(low: Tensor) -> Tensor:
    """Mean and mean of squares of each band: (N, 1, B, h, w) -> (N, 2, B), float64."""
    values = low.double()
    return torch.cat([values.mean((3, 4)), values.square().mean((3, 4))], dim=1)


class Network(nn.Module):
    """A network that super-resolves cubes of any number of bands.

    `forward` takes x, the start image: the low-resolution cube interpolated to the high-resolution
    grid, (N, 1, B, H, W) in [0, 1], and returns the same shape. With `takes_low` it takes the true
    low-resolution cube too: forward(x, low) with low (N, 1, B, H/s, W/s), and with
    `takes_statistics` also what `statistics` says of the whole scene: forward(x, low, statistics).
    Callers write `net(*net.inputs(x, low))` and need not know which.

    A subclass defines `forward` and `last_layer`, `bytes_per_pixel` where it states a radius, and
    these where they differ:

    Attributes:
        takes_low: the network takes the true low-resolution cube too, and computes on its grid.
        takes_statistics: it takes `statistics` of the whole scene (with `takes_low` alone).
        takes_told: it takes what is known of the sensor, `told` (with `takes_statistics` alone);
            see `inputs`.
        multiple: rows and columns must be multiples of this, in pixels of the grid it computes on.
        radius: pixels of that grid, on each side of an output pixel, that the output depends on.
            Tiling is exact with it. None is unknown: the whole scene is computed at once.
        scales: scale factors it can do; None is any.
        degradations: kinds of degradation whose grid it needs, without their numbers; None is any.
        option_notes: for an option that the weights cannot tell, what to say where a checkpoint
            does not tell it either.
        name: as given to `create_model`.
    """

    takes_low: bool = False
    takes_statistics: bool = False
    takes_told: bool = False
    multiple: int = 1
    radius: int | None = None
    scales: tuple[int, ...] | None = None
    degradations: tuple[str, ...] | None = None
    option_notes: ClassVar[dict[str, str]] = {}
    name: str = ""

    def __init__(self) -> None:
        super().__init__()
        self.execution = Execution()

    def set_execution(self, **changes: object) -> Network:
        """Change how the network is computed (fields of `Execution`); returns the network."""
        self.execution = replace(self.execution, **changes)
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The options that change what these weights compute; a checkpoint records them."""
        return {}

    def last_layer(self) -> list[nn.Parameter]:
        """The parameters of the layer that gives the output."""
        raise NotImplementedError

    def initialise(self, recipe: str, generator: torch.Generator | None = None) -> None:
        """The first weights of a training recipe.

        `released` keeps those of the constructor. `fast` starts as the start image: here by a last
        layer of zeros, right for a network that adds its input.
        """
        if recipe == "fast":
            with torch.no_grad():
                for parameter in self.last_layer():
                    parameter.zero_()

    def bytes_per_pixel(self, bands: int, scale: int = 1, value: int = 4) -> float:
        """Peak memory without gradients for each pixel of the high-resolution grid, input and
        output, float32, included.

        `scale` matters to a network that computes on the low-resolution grid; `value` is the bytes
        of an activation, 2 in half precision.
        """
        raise NotImplementedError

    def statistics(self, low: Tensor) -> Tensor:
        """Per-band averages over pixels, (N, K, B), of the low-resolution cube (N, 1, B, h, w).

        Averages over parts of a scene, weighted by their pixels, must give the average over the
        scene: tiles then agree.
        """
        raise NotImplementedError

    def check_problem(self, scale: int, kind: str) -> None:
        """Raises ValueError: a scale factor, or a kind of degradation, that the network cannot
        do."""
        kind = kind.split()[0]  # without the MTF of the sensor
        for what, value, known in (("scale factor", scale, self.scales),
                                   ("degradation", kind, self.degradations)):
            if known is not None and value not in known:
                raise ValueError(f"{self.name} cannot do {what} {value}; choose one of "
                                 f"{', '.join(map(str, known))}")

    def step(self, scale: int) -> int:
        """Rows and columns of the high-resolution grid must be multiples of this, at a scale
        factor."""
        return self.multiple * scale if self.takes_low else self.multiple

    def halo(self, scale: int) -> int | None:
        """High-resolution pixels around a window that its output depends on, a multiple of
        `step(scale)`; None: unknown."""
        return None if self.radius is None else -(-self.radius // self.multiple) * self.step(scale)

    def patch_multiple(self, scale: int) -> int:
        """Rows and columns of a ground-truth patch must be multiples of this."""
        return math.lcm(self.step(scale), scale)

    def inputs(self, x: Tensor, low: Tensor | None = None, statistics: Tensor | None = None,
               told: Tensor | None = None) -> tuple[Tensor, ...]:
        """The arguments that `forward` takes; `statistics` are those of `low` where they are not
        given.

        `told` is what is known of the sensor, for each band, (N, 3, B): the variance of the noise
        of `low`; the MTF at the Nyquist frequency of the low-resolution grid, for which x was made;
        1 where that MTF is known, and 0 where it was assumed. Without it there is no noise, and the
        MTF is not known.
        """
        if not self.takes_low:
            return (x,)
        if low is None:
            raise ValueError(
                f"{self.name} takes the true low-resolution cube beside the start image")
        if not self.takes_statistics:
            return x, low
        statistics = self.statistics(low) if statistics is None else statistics
        if not self.takes_told:
            return x, low, statistics
        return (x, low, statistics,
                low.new_zeros(len(low), 3, low.shape[2]) if told is None else told)

    @torch.no_grad()
    def in_window(self, wanted: Window, have: Window, *inputs: Tensor) -> Tensor:
        """What the network gives of a scene inside a window, without gradients.

        Args:
            wanted: the window, in multiples of `step`.
            have: the window in which the inputs are given: `wanted.grown(halo)`.
            inputs: as `inputs` gives them, of `have`.

        Returns: (N, 1, B, rows, columns) of `wanted`.
        """
        return wanted.cut(self(*inputs), have)
