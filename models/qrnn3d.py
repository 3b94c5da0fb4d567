"""The 3-D quasi-recurrent encoder-decoder (Fu, Liang, You, IEEE JSTARS 14, 2021).

    x ------------------------------------------------------------------+ add
    feature_extractor -> encoder.0 .. encoder.n-1 -> decoder.0 .. decoder.n-1 -> reconstructor
          |                  |  all but the last       ^ add, in reverse order      ^ add
          +------------------+-------------------------+----------------------------+

A unit is one 3x3x3 convolution giving all gates, then pooling along bands (`models/pooling`). Encoder layers 1 and 3 halve
rows and columns and double the channels; their mirror images in the decoder upsample first and halve the channels.

The same weights run in two ways. With gradients, unit by unit over the whole image (`QRNN3D.forward`). Without, each unit in
blocks of rows (`models.blocks`): pooling is independent for every pixel and the convolution's halo is one row, so the gates of
a whole scene never exist at once, and a block stays in the cache. Both give the same numbers.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.pooling import gate_count, pool

STRIDED_LAYERS = (1, 3)  # encoder layers of spatial stride 2, where they exist


@dataclass(frozen=True)
class Execution:
    """How a network is computed; none of this changes what it computes.

    Attributes:
        pooling: `auto`, `loop`, `cpu` or `triton`; see `models.pooling`.
        channels_last: convolutions see channels-last tensors (faster wherever it was measured).
        deconv_as_conv: transposed convolutions of stride 1 run as convolutions with flipped weights.
        block_voxels: gate voxels (bands x rows x columns) that a unit computes at once without gradients; 0 is the whole
            image, None chooses for the device.
        checkpoint: recompute each unit's gates in the backward pass instead of keeping them.
    """

    pooling: str = "auto"
    channels_last: bool = True
    deconv_as_conv: bool = True
    block_voxels: int | None = None
    checkpoint: bool = False

    @classmethod
    def released(cls) -> Execution:
        """As the released code runs: a loop over bands, default layout, whole images."""
        return cls(pooling="loop", channels_last=False, deconv_as_conv=False, block_voxels=0)


class Conv(nn.Module):
    """3x3x3 convolution, rows and columns strided."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, (1, stride, stride), 1, bias=False)


class Deconv(nn.Module):
    """3x3x3 transposed convolution of stride 1."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose3d(inputs, outputs, 3, 1, 1, bias=bias)


class UpsampleConv(nn.Module):
    """Trilinear x(1, 2, 2) with align_corners=True, then a 3x3x3 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.upsample_conv = nn.ModuleDict({"conv3d": nn.Conv3d(inputs, outputs, 3, 1, 1, bias=False)})


class Unit(nn.Module):
    """One quasi-recurrent unit: convolution to gates, then pooling along bands.

    Args:
        conv: one of the three holders above, with gate_count(kind) times the unit's channels as outputs.
        kind: `f`, `fo` or `ifo`.
        direction: `forward`, `backward` or `both`.
    """

    def __init__(self, conv: Conv | Deconv | UpsampleConv, kind: str, direction: str) -> None:
        super().__init__()
        self.conv = conv
        self.kind = kind
        self.direction = direction

    @property
    def stride(self) -> int:
        return self.conv.conv.stride[1] if isinstance(self.conv, Conv) else 1

    @property
    def upsamples(self) -> bool:
        return isinstance(self.conv, UpsampleConv)

    @property
    def parameters_of_conv(self) -> tuple[Tensor, Tensor | None]:
        """Weight (gates, inputs, 3, 3, 3) and bias of the plain convolution that this unit's holder amounts to."""
        if isinstance(self.conv, Deconv):
            return self.conv.deconv.weight.transpose(0, 1).flip(2, 3, 4), self.conv.deconv.bias
        if isinstance(self.conv, UpsampleConv):
            return self.conv.upsample_conv["conv3d"].weight, None
        return self.conv.conv.weight, None

    @property
    def gates(self) -> int:
        conv = self.conv
        return conv.deconv.weight.shape[1] if isinstance(conv, Deconv) else self.parameters_of_conv[0].shape[0]

    @property
    def channels(self) -> int:
        return self.gates // gate_count(self.kind, self.direction == "both")

    def forward(self, x: Tensor, skip: Tensor | None, execution: Execution) -> Tensor:
        """(N, C, B, H, W) -> pooled states (N, C', B, H', W'), plus `skip` where it is given."""
        return pool(self._gates(x, execution), self.kind, self.direction, skip, execution.pooling)

    def _gates(self, x: Tensor, execution: Execution) -> Tensor:
        if self.upsamples:
            x = F.interpolate(x, scale_factor=(1, 2, 2), mode="trilinear", align_corners=True)
        if isinstance(self.conv, Deconv) and not execution.deconv_as_conv:
            return self.conv.deconv(x)
        weight, bias = self.parameters_of_conv
        if execution.channels_last:
            weight = weight.contiguous(memory_format=torch.channels_last_3d)
        return F.conv3d(x, weight, bias, (1, self.stride, self.stride), 1)


class Stack(nn.Module):
    """Holds a list of units under the name `layers`."""

    def __init__(self, units: list[Unit]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(units)


class QRNN3D(nn.Module):
    """The network family; see `models.create_model` for the named ones.

    Args:
        channels: channels of the outermost layers.
        half_depth: units in the encoder, and in the decoder.
        kind: pooling, `f`, `fo` or `ifo`.
        bidirectional: pool in both directions in every unit; otherwise encoder and decoder units alternate, encoder.0
            running forward (the feature extractor and the reconstructor always pool in both).
        long_skip: add the input twice to the output of an alternating network, as the released code does.
    """

    def __init__(self, channels: int = 16, half_depth: int = 5, kind: str = "f", bidirectional: bool = True,
                 long_skip: bool = False) -> None:
        super().__init__()
        if channels < 1 or half_depth < 1:
            raise ValueError(f"width and half-depth must be at least 1, not {channels} and {half_depth}")
        self.execution = Execution()
        self.long_skip = long_skip and not bidirectional
        both = gate_count(kind, True)
        inner = gate_count(kind, bidirectional)
        directions = ["both" if bidirectional else ("forward", "backward")[i % 2] for i in range(2 * half_depth)]

        self.feature_extractor = Unit(Conv(1, channels * both), kind, "both")
        encoder, decoder, c = [], [], channels
        for i in range(half_depth):
            stride = 2 if i in STRIDED_LAYERS else 1
            encoder.append(Unit(Conv(c, stride * c * inner, stride), kind, directions[i]))
            c *= stride
        for i in reversed(range(half_depth)):
            direction = directions[2 * half_depth - 1 - i]
            if i in STRIDED_LAYERS:
                c //= 2
                decoder.append(Unit(UpsampleConv(2 * c, c * inner), kind, direction))
            else:
                decoder.append(Unit(Deconv(c, c * inner), kind, direction))
        self.encoder = Stack(encoder)
        self.decoder = Stack(decoder)
        self.reconstructor = Unit(Deconv(channels, both, bias=True), kind, "both")

    @property
    def multiple(self) -> int:
        """H and W must be multiples of this."""
        return 2 ** sum(unit.stride == 2 for unit in self.encoder.layers)

    def units(self) -> list[Unit]:
        """All units in the order in which they run."""
        return [self.feature_extractor, *self.encoder.layers, *self.decoder.layers, self.reconstructor]

    def set_execution(self, **changes: object) -> QRNN3D:
        """Change how the network is computed (fields of `Execution`); returns the network."""
        self.execution = replace(self.execution, **changes)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve.

        Args:
            x: (N, 1, B, H, W), the interpolated cube in [0, 1]; any B >= 1, H and W multiples of `multiple`.

        Returns: (N, 1, B, H, W).

        Raises:
            ValueError: another shape.
        """
        if x.dim() != 5 or x.shape[1] != 1 or x.shape[-2] % self.multiple or x.shape[-1] % self.multiple:
            raise ValueError(f"expected (N, 1, B, H, W) with H and W multiples of {self.multiple}, got {tuple(x.shape)}")
        if not torch.is_grad_enabled() and self.execution.block_voxels != 0 and not torch.compiler.is_compiling():
            from models.blocks import run_in_blocks
            return run_in_blocks(self, x)
        run = self._checkpointed if self.execution.checkpoint and torch.is_grad_enabled() else self._unit
        h = x.contiguous(memory_format=torch.channels_last_3d) if self.execution.channels_last else x
        h = run(self.feature_extractor, h, None)
        skips = [h]
        for unit in self.encoder.layers[:-1]:
            h = run(unit, h, None)
            skips.append(h)
        h = run(self.encoder.layers[-1], h, None)
        for unit in self.decoder.layers:
            h = run(unit, h, skips.pop())
        out = run(self.reconstructor, h, x)
        return out + x if self.long_skip else out

    def _unit(self, unit: Unit, x: Tensor, skip: Tensor | None) -> Tensor:
        return unit(x, skip, self.execution)

    def _checkpointed(self, unit: Unit, x: Tensor, skip: Tensor | None) -> Tensor:
        return checkpoint(unit, x, skip, self.execution, use_reentrant=False)


def initialise_fast(net: QRNN3D, generator: torch.Generator | None = None) -> None:
    """Weights from which training moves at once (`--recipe fast`).

    Candidate rows have gain 1.5 / sqrt(fan-in) and gate rows .3 / sqrt(fan-in), so that gates start half open and candidates
    use the range of tanh; the reconstructor is zero, so the network starts as the interpolation itself. Measured: PyTorch's
    default weights start with a residual several times larger than the error to be removed.
    """
    with torch.no_grad():
        for unit in net.units():
            weight, bias = unit.parameters_of_conv
            fan_in = weight[0].numel()
            gain = torch.full((unit.gates,), 0.3)
            gain[: unit.channels] = 1.5
            if unit is net.reconstructor:
                gain.zero_()
            drawn = torch.randn(weight.shape, generator=generator) * (gain / fan_in**0.5).view(-1, 1, 1, 1, 1)
            if isinstance(unit.conv, Deconv):
                unit.conv.deconv.weight.copy_(drawn.flip(2, 3, 4).transpose(0, 1))
                if bias is not None:
                    bias.zero_()
            else:
                weight.copy_(drawn)
