"""Draw a network and its unit. The drawing reads the built network, so the two always agree.

    python figs/draw_network.py                        figs/network.png, of biqrnn_16_5
    python figs/draw_network.py qrnn_16_5 other.png
"""
from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from models import create_model

INK, SOFT, SKIP = "#1d2733", "#5b6b7b", "#2c7fb8"
FILL = {"halves": "#fde0c5", "doubles": "#d7ead3", "keeps": "#dde8f3"}
GATES = {"f": ("Z", "F"), "fo": ("Z", "F", "O"), "ifo": ("Z", "F", "O", "I")}
FORMULAS = {"f": "h = f h' + (1 - f) z", "fo": "c = f c' + (1 - f) z,  h = o c",
            "ifo": "c = f c' + i z,  h = o c"}


def draw(arch: str, path: Path) -> None:
    """Write a PNG: the whole network on top, one box for each unit; the encoder's unit below."""
    net = create_model(arch)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(13, 7), height_ratios=(5, 3))
    _network(top, net, arch)
    _unit(bottom, net.encoder.layers[0])
    for axes in (top, bottom):
        axes.set_axis_off()
    figure.savefig(path, dpi=120, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def _network(axes: Axes, net, arch: str) -> None:
    units, depth = net.units(), len(net.encoder.layers)
    level, places, size = 0, [], 1
    for n, unit in enumerate(units):
        change = "halves" if unit.stride == 2 else "doubles" if unit.upsamples else "keeps"
        level += {"halves": 1, "doubles": -1, "keeps": 0}[change]
        size = 2**level
        name = "extractor" if n == 0 else "reconstructor" if n == len(units) - 1 else \
            f"encoder.{n - 1}" if n <= depth else f"decoder.{n - 1 - depth}"
        arrows = {"both": "⇄", "forward": "→", "backward": "←"}[unit.direction]
        channels = f"{unit.channels} channel{'s' * (unit.channels > 1)}"
        extent = f"H/{size} × W/{size}".replace("/1", "")
        _box(axes, (n, -1.25 * level), f"{name}\n{channels}\n{extent}\nbands {arrows}",
             FILL[change], width=0.86, height=1.0)
        places.append((n, -1.25 * level))
    for (x, y), (u, v) in pairwise(places):
        _arrow(axes, (x + 0.45, y), (u - 0.45, v))
    for n in range(depth):  # unit n is added to the output of its mirror image
        (x, y), (u, v) = places[n], places[-2 - n]
        _arrow(axes, (x, y + 0.53), (u, v + 0.53), color=SKIP, bend=-0.14)
    _arrow(axes, (-0.75, 0.3), (len(units) - 0.25, 0.3), color=SKIP, bend=-0.25)
    axes.text(-0.75, 0, "x", ha="center", va="center", color=INK, fontsize=13)
    axes.text(len(units) - 0.25, 0, "y", ha="center", va="center", color=INK, fontsize=13)
    parameters = sum(p.numel() for p in net.parameters())
    axes.set_title(f"{arch}: {parameters:,} parameters; any number of bands. Orange halves rows "
                   "and columns, green doubles them, blue lines add.", color=INK, fontsize=11,
                   loc="left")
    axes.set_xlim(-1, len(units))
    axes.set_ylim(-3.1, 2.9)


def _unit(axes: Axes, unit) -> None:
    both = unit.direction == "both"
    names = GATES[unit.kind]
    gates = [names[0],
             *(f"{name}{k}" if both else name for name in names[1:]
               for k in ((1, 2) if both else ("",)))]
    _box(axes, (1, 0), "convolution\n3 × 3 × 3", FILL["keeps"], width=1.5)
    for k, gate in enumerate(gates):
        y = (len(gates) - 1) / 2 - k
        function = "tanh" if gate == "Z" else "sigmoid"
        _box(axes, (3.2, 0.62 * y), f"{gate.lower()} = {function}({gate})", "white", width=1.9,
             height=0.42)
        _arrow(axes, (1.78, 0), (2.22, 0.62 * y))
    passes = ("forward, t = 1 .. B", "backward, t = B .. 1") if both else (unit.direction,)
    for k, words in enumerate(passes):
        y = 0.5 * (len(passes) - 1) - k
        _box(axes, (6.1, 1.0 * y), f"{words}\n{FORMULAS[unit.kind]}", FILL["doubles"], width=2.9,
             height=0.72)
        _arrow(axes, (4.18, 0), (4.62, 1.0 * y))
        _arrow(axes, (7.58, 1.0 * y), (8.35, 0))
    _box(axes, (8.75, 0), "+" if both else "h", "white", width=0.7)
    axes.text(-0.15, 0, "bands ×\nrows ×\ncolumns", ha="center", va="center", color=SOFT,
              fontsize=9)
    axes.set_title("Its unit: one convolution gives all gates; the pooling runs along the bands of "
                   "every pixel (h', c': the state of the band before).", color=INK, fontsize=11,
                   loc="left")
    axes.set_xlim(-1, 12)
    axes.set_ylim(-1.4, 1.4)


def _box(axes: Axes, centre: tuple[float, float], text: str, fill: str, width: float = 0.82,
         height: float = 0.62) -> None:
    x, y = centre
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height,
                                  boxstyle="round,pad=0.02,rounding_size=0.06", facecolor=fill,
                                  edgecolor=INK, linewidth=0.9, zorder=3))
    axes.text(x, y, text, ha="center", va="center", fontsize=6.8 if width < 1 else 9, color=INK,
              zorder=4)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK,
           bend: float = 0.0) -> None:
    axes.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>",
                                   mutation_scale=9, color=color, linewidth=1.1, zorder=2))


if __name__ == "__main__":
    given = dict(enumerate(sys.argv[1:]))
    draw(given.get(0, "biqrnn_16_5"), Path(given.get(1, Path(__file__).parent / "network.png")))
