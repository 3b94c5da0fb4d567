"""The 3-D quasi-recurrent encoder-decoder (Fu, Liang, You, IEEE JSTARS 14, 2021).

    x ------------------------------------------------------------------+ add
    feature_extractor -> encoder.0 .. encoder.n-1 -> decoder.0 .. decoder.n-1 -> reconstructor
          |                  |  all but the last       ^ add, in reverse order      ^ add
          +------------------+-------------------------+----------------------------+

Encoder layers 1 and 3 halve rows and columns and double the channels; their mirror images in the
decoder upsample first and halve the channels.

The same weights run in two ways, which give the same numbers. With gradients, unit by unit over the
whole image (`QRNN3D.forward`). Without, each unit in blocks of rows (`models.layers.row_blocks`),
on a whole scene or on a tile.
"""
from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.layers.pooling import gate_count
from models.layers.row_blocks import margins_of, run_unit
from models.layers.units import Conv, Deconv, Unit, UpsampleConv
from models.network import Network, Window
from models.registry import Shapes, register

STRIDED_LAYERS = (1, 3)  # encoder layers of spatial stride 2, where they exist

# family -> how its units pool
FAMILIES: dict[str, dict[str, Any]] = {
    "biqrnn": {"kind": "f", "bidirectional": True},
    "fqrnn": {"kind": "f", "bidirectional": False},
    "qrnn": {"kind": "fo", "bidirectional": False},
    "iqrnn": {"kind": "ifo", "bidirectional": False},
}


class Stack(nn.Module):
    """Holds a list of units under the name `layers`."""

    def __init__(self, units: list[Unit]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(units)


class QRNN3D(Network):
    """The network family; see `qrnn3d` for the named ones.

    Args:
        channels: channels of the outermost layers.
        half_depth: units in the encoder, and in the decoder.
        kind: pooling, `f`, `fo` or `ifo`.
        bidirectional: pool in both directions in every unit; otherwise encoder and decoder units
            alternate, encoder.0 running forward (the feature extractor and the reconstructor always
            pool in both).
        long_skip: add the input twice to the output of an alternating network, as the released code
            does.
    """

    option_notes: ClassVar = {"long_skip": "the released checkpoints of alternating networks were "
                              "trained with the input added twice: give --long-skip for those"}

    def __init__(self, channels: int = 16, half_depth: int = 5, kind: str = "f",
                 bidirectional: bool = True, long_skip: bool = False) -> None:
        super().__init__()
        if channels < 1 or half_depth < 1:
            raise ValueError(
                f"width and half-depth must be at least 1, not {channels} and {half_depth}")
        self.bidirectional = bidirectional
        self.long_skip = long_skip and not bidirectional
        both = gate_count(kind, True)
        inner = gate_count(kind, bidirectional)
        directions = ["both" if bidirectional else ("forward", "backward")[i % 2]
                      for i in range(2 * half_depth)]

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
        self.multiple = 2 ** sum(unit.stride == 2 for unit in encoder)
        self.radius = margins_of(self.units())[0]

    @property
    def options(self) -> dict[str, Any]:
        return {} if self.bidirectional else {"long_skip": self.long_skip}

    def units(self) -> list[Unit]:
        """All units in the order in which they run."""
        return [self.feature_extractor, *self.encoder.layers, *self.decoder.layers,
                self.reconstructor]

    def last_layer(self) -> list[nn.Parameter]:
        return list(self.reconstructor.parameters())

    def bytes_per_pixel(self, bands: int, scale: int = 1, value: int = 4) -> float:
        # Two skips and the running image at full resolution, half as much again below it, and the
        # cubes on either side.
        return bands * (4.5 * value * self.feature_extractor.channels + 24)

    def forward(self, x: Tensor) -> Tensor:
        """Super-resolve.

        Args:
            x: (N, 1, B, H, W), the start image in [0, 1]; any B >= 1, H and W multiples of
                `multiple`.

        Returns: (N, 1, B, H, W).

        Raises ValueError: another shape.
        """
        if (x.dim() != 5 or x.shape[1] != 1 or x.shape[-2] % self.multiple
                or x.shape[-1] % self.multiple):
            raise ValueError(f"expected (N, 1, B, H, W) with H and W multiples of {self.multiple}, "
                             f"got {tuple(x.shape)}")
        if (not torch.is_grad_enabled() and self.execution.block_voxels != 0
                and not torch.compiler.is_compiling()):
            whole = Window.whole(*x.shape[-2:])
            return self.in_window(whole, whole, x)
        run = (self._checkpointed if self.execution.checkpoint and torch.is_grad_enabled()
               else self._unit)
        h = run(self.feature_extractor, x, None)
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
        return checkpoint(unit, x, skip, self.execution, use_reentrant=False,
                          preserve_rng_state=False)

    @torch.no_grad()
    def in_window(self, wanted: Window, have: Window, x: Tensor) -> Tensor:
        """As `Network.in_window`, each unit in blocks of rows and on no more pixels than later
        units need."""
        margins, given = iter(margins_of(self.units())), have

        def step(unit: Unit, h: Tensor, have: Window, level: Window, skip: Tensor | None = None,
                 skip_window: Window | None = None,
                 in_place: bool = False) -> tuple[Tensor, Window, Window]:
            """A unit's output, that output's window, and `wanted` at its resolution."""
            need = level.grown(next(margins))
            h = need.cut(h, have)
            up, down = (2, 1) if unit.upsamples else (1, unit.stride)
            have, level = need.scaled(up, down), level.scaled(up, down)
            skip = None if skip is None else have.cut(skip, skip_window)
            h = run_unit(unit, h, self.execution, source=need, target=have, skip=skip,
                         out=skip if in_place else None)
            return h, have, level

        h, have, level = step(self.feature_extractor, x, have, wanted)
        skips = [(h, have)]
        for unit in self.encoder.layers[:-1]:
            h, have, level = step(unit, h, have, level)
            skips.append((h, have))
        h, have, level = step(self.encoder.layers[-1], h, have, level)
        for unit in self.decoder.layers:
            h, have, level = step(unit, h, have, level, *skips.pop(), in_place=True)
        h, have, level = step(self.reconstructor, h, have, level, x, given)
        h = wanted.cut(h, have)
        return h + wanted.cut(x, given) if self.long_skip else h

    def initialise(self, recipe: str, generator: torch.Generator | None = None) -> None:
        """`fast`: weights from which training moves at once.

        Candidate rows have gain 1.5 / sqrt(fan-in) and gate rows .3 / sqrt(fan-in), so that gates
        start half open and candidates use the range of tanh; the reconstructor is zero, so the
        network starts as the start image. Measured: PyTorch's default weights start with a residual
        several times larger than the error to be removed.
        """
        if recipe != "fast":
            return
        with torch.no_grad():
            for unit in self.units():
                weight, bias = unit.parameters_of_conv
                fan_in = weight[0].numel()
                gain = torch.full((unit.gates,), 0.3)
                gain[: unit.channels] = 1.5
                if unit is self.reconstructor:
                    gain.zero_()
                drawn = torch.randn(weight.shape, generator=generator) * (gain / fan_in**0.5).view(
                    -1, 1, 1, 1, 1)
                if isinstance(unit.conv, Deconv):
                    unit.conv.deconv.weight.copy_(drawn.flip(2, 3, 4).transpose(0, 1))
                    if bias is not None:
                        bias.zero_()
                else:
                    weight.copy_(drawn)


def _recognise(shapes: Shapes) -> list[str]:
    """Names whose width and half-depth fit the weights of a checkpoint."""
    rows = shapes.get("feature_extractor.conv.conv.weight", (0,))[0]
    half_depth = len({name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")})
    if not 0 < half_depth < 100:
        return []
    widths = {family: divmod(rows, gate_count(options["kind"], True))
              for family, options in FAMILIES.items()}
    return [f"{family}_{width}_{half_depth}" for family, (width, rest) in widths.items()
            if not rest and 0 < width < 10_000]


@register(*(f"{family}_16_5" for family in FAMILIES),
          pattern=fr"(?P<family>{'|'.join(FAMILIES)})_(?P<width>[1-9]\d{{0,3}})_(?P<half_depth>[1-9]\d?)",
          form=f"<family>_<width>_<half-depth> with the families {', '.join(FAMILIES)}",
          recognise=_recognise)
def qrnn3d(family: str, width: str, half_depth: str, long_skip: bool = False) -> QRNN3D:
    """The network of a name such as `biqrnn_16_5`."""
    return QRNN3D(int(width), int(half_depth), **FAMILIES[family], long_skip=long_skip)
