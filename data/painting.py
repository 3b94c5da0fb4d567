"""Paint what a rendered scene shows: which materials lie where, and how much light on them.

A picture is painted at `OVERSAMPLING` times its final resolution; the area averages of its planes
give the share of each material in a pixel. All sizes given to `Picture`'s textures are in final
pixels.
"""
from __future__ import annotations

import cv2
import numpy as np

from data.materials import (
    OVERSAMPLING,
    Shape,
    box,
    disc,
    ellipse,
    filled,
    line,
    mask_of,
    noise_texture,
)

GROUND = ("crop", "grass", "wood", "soil", "stubble", "asphalt", "concrete", "tiles", "metal",
          "water")
_OF = {name: number for number, name in enumerate(GROUND)}
GROWN, BUILT = GROUND[:5], GROUND[5:9]


class Picture:
    """Four planes of side x OVERSAMPLING pixels: materials `first` and `second`, `mix` of the
    first, `light`.

    Args:
        rng: decides everything.
        side: rows and columns, in final pixels.
        materials: their number.
    """

    def __init__(self, rng: np.random.Generator, side: int, materials: int) -> None:
        self.rng, self.side, self.materials = rng, side, materials
        self.n = side * OVERSAMPLING
        self.first, self.second = np.zeros((2, self.n, self.n), np.uint8)
        self.mix, self.light = np.ones((2, self.n, self.n), np.float32)
        self.rows, self.columns = np.mgrid[: self.n, : self.n].astype(np.float32)

    def pick(self) -> int:
        return int(self.rng.integers(self.materials))

    def spot(self) -> tuple[int, int]:
        return tuple(self.rng.integers(0, self.n, 2).tolist())

    def mask(self, shape: Shape) -> np.ndarray:
        return mask_of(shape, self.first.shape)

    def cover(self, mask: np.ndarray, first: int, second: int, mix: np.ndarray | float,
              light: np.ndarray | float) -> None:
        """Cover the pixels of `mask`; `mix` and `light` are numbers or whole planes."""
        self.first[mask], self.second[mask] = first, second
        for plane, value in ((self.mix, mix), (self.light, light)):
            plane[mask] = value[mask] if isinstance(value, np.ndarray) else value

    def draw(self, shape: Shape, material: int, light: float, mix: float = 1.0) -> None:
        """Cover a small shape with one material."""
        for plane, value in ((self.first, material), (self.light, light), (self.mix, mix)):
            shape(plane, value)

    def shares(self, blur: float) -> np.ndarray:
        """The lit share of each material in each pixel, blurred by `blur` final pixels,
        (materials, side, side) float32."""
        lit, rest = self.mix * self.light, (1 - self.mix) * self.light
        planes = []
        for k in range(self.materials):
            share = lit * (self.first == k) + rest * (self.second == k)
            small = cv2.resize(share, (self.side, self.side), interpolation=cv2.INTER_AREA)
            planes.append(cv2.GaussianBlur(small, (0, 0), blur) if blur > 0.2 else small)
        return np.stack(planes)

    def noise(self, cell: float) -> np.ndarray:
        return noise_texture(self.rng, (self.n, self.n), cell * OVERSAMPLING)

    def fractal(self, cell: float, roughness: float, octaves: int = 5) -> np.ndarray:
        """Noise from `cell` pixels down, each octave `roughness` times the last; unit deviation."""
        total = np.zeros((self.n, self.n), np.float32)
        for octave in range(octaves):
            if cell * OVERSAMPLING / 2**octave < 1.5:
                break
            total += roughness**octave * self.noise(cell / 2**octave)
        return total / (total.std() + 1e-6)

    def waves(self, period: float, crossed: bool | None = None) -> np.ndarray:
        """Stripes, or a weave where `crossed`, `period` pixels apart, a little uneven, between -1
        and 1. None: at random."""
        rng, angle, period = self.rng, self.rng.uniform(0, np.pi), period * OVERSAMPLING
        wobble = rng.uniform(0, 0.25) * period * self.noise(rng.uniform(5, 40))
        along = self.columns * np.cos(angle) + self.rows * np.sin(angle) + wobble
        wave = np.sin(2 * np.pi * along / period + rng.uniform(0, 6))
        if rng.random() < 0.35 if crossed is None else crossed:
            across = self.rows * np.cos(angle) - self.columns * np.sin(angle) + wobble
            wave = wave * np.sin(2 * np.pi * across / (period * rng.uniform(0.7, 1.6)))
        return np.tanh(rng.uniform(1.0, 4.0) * wave).astype(np.float32)

    def texture(self) -> np.ndarray:
        if self.rng.random() < 0.3:
            return self.waves(float(np.exp(self.rng.uniform(np.log(2.5), np.log(18)))))
        return self.fractal(self.rng.uniform(1.5, 30), self.rng.uniform(0.5, 1.2))

    def polygon(self, centre: tuple[int, int], extent: float) -> np.ndarray:
        turns = np.sort(self.rng.uniform(0, 2 * np.pi, self.rng.integers(3, 10)))
        radius = extent * self.rng.uniform(0.35, 0.8, len(turns))
        return centre + np.stack([np.cos(turns), np.sin(turns)], 1) * radius[:, None]

    def curve(self, bend: float) -> np.ndarray:
        """A line that crosses the picture, (points, 2)."""
        rng, t = self.rng, np.linspace(-0.1, 1.1, 60)
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.4, 0.4)
        across = (np.sin(rng.uniform(2, 9) * t + rng.uniform(0, 6))
                  + 0.4 * np.sin(rng.uniform(9, 20) * t))
        xy = np.stack([t - 0.5, offset + bend * across], 1) * 1.4 @ _turn(angle)
        return np.round((xy + 0.5) * self.n).astype(np.int32)


def _turn(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


# --- things on a table ----------------------------------------------------------------------------

def paint_things(p: Picture) -> None:
    """Cloth, paper, fruit, leaves, fibres, a chart, print and highlights."""
    rng = p.rng

    def fill(mask: np.ndarray, rounded: bool = False) -> None:
        texture, strength = (p.texture(),
                             rng.choice([0.0, 0.03, 0.12, 0.3], p=[0.25, 0.3, 0.3, 0.15]))
        angle = rng.uniform(0, 2 * np.pi)
        slope = (p.columns * np.cos(angle) + p.rows * np.sin(angle)) / p.n
        light = rng.uniform(0.3, 1.1) * (1 + rng.uniform(0, 0.6) * slope) * (1 + strength * texture)
        if rounded:
            away = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
            light = (light * np.sqrt(np.clip(away / (away.max() + 1e-6), 0.02, 1)) ** rng.uniform(
                         0.4, 1.2))
        mix = (rng.uniform(0.4, 1.0)
               + rng.choice([0.0, 0.05, 0.25, 0.6], p=[0.35, 0.3, 0.25, 0.1]) * texture)
        first, second = p.pick(), p.pick()
        p.cover(mask, first, second, np.clip(mix, 0, 1).astype(np.float32),
                np.clip(light, 0.03, 1.8).astype(np.float32))

    fill(np.ones((p.n, p.n), bool))
    if rng.random() < 0.4:
        p.light *= rng.uniform(0.05, 0.4)  # a dark background
    crowd = np.exp(rng.uniform(np.log(0.1), np.log(1.2)))
    for extent, count in ((0.6, 5), (0.3, 10), (0.13, 18)):
        for _ in range(rng.poisson(count * crowd)):
            centre, size, kind = p.spot(), extent * p.n * rng.uniform(0.5, 1.2), rng.integers(4)
            if kind == 0:
                fill(p.mask(filled(p.polygon(centre, size))), rng.random() < 0.3)
            elif kind == 1:
                axes = tuple(max(2, int(size * rng.uniform(0.2, 0.6))) for _ in range(2))
                fill(p.mask(ellipse(centre, axes, rng.uniform(0, 180))), rng.random() < 0.6)
            elif kind == 2:
                fill(p.mask(filled(box(centre, size * rng.uniform(0.2, 1.0, 2),
                                       rng.choice([0.0, rng.uniform(0, 180)])))))
            else:
                fill(p.mask(line(p.curve(rng.uniform(0, 0.15)), size * rng.uniform(0.03, 0.2))),
                     rng.random() < 0.3)
    if rng.random() < 0.3:
        _chart(p)
    for _ in range(rng.poisson(14 * crowd)):  # leaves and scraps
        p.draw(filled(p.polygon(p.spot(), 0.05 * p.n * rng.uniform(0.2, 1.5))), p.pick(),
               rng.uniform(0.2, 1.4))
    if rng.random() < 0.4:  # fibres
        colour, thick = p.pick(), rng.integers(1, 6)
        for _ in range(rng.integers(5, 60)):
            start = np.array(p.spot())
            path = (start
                    + np.cumsum(rng.normal(0, 1, (12, 2)) + rng.normal(0, 1.5, 2), 0) * rng.uniform(
                        2, 8))
            p.draw(line(path.astype(np.int32), thick), colour, rng.uniform(0.3, 1.4))
    for _ in range(rng.poisson(3 * crowd + 0.5)):  # print
        text = "".join(rng.choice(list("AEGHKMNRSXaeghkmnrsx2358"), rng.integers(3, 12)))
        (x, y), size, thick, font = (p.spot(), rng.uniform(0.4, 2.6), int(rng.integers(1, 7)),
                                     int(rng.integers(0, 8)))
        letters = np.zeros_like(p.first)
        cv2.putText(letters, text, (x - p.n // 4, y), font, size, 1, thick)
        p.cover(letters > 0, p.pick(), 0, 1.0, rng.uniform(0.1, 1.5))
    for _ in range(rng.poisson(2)):  # highlights
        p.draw(disc(p.spot(), int(rng.uniform(1, 9))), p.pick(), rng.uniform(1.2, 3))


def _chart(p: Picture) -> None:
    """Squares of one colour each, on a dark card."""
    rng = p.rng
    corner, cell = np.array(p.spot()) - p.n // 4, rng.uniform(0.06, 0.2) * p.n
    angle = rng.choice([0.0, 0.0, rng.uniform(-20, 20)])
    turn = _turn(np.radians(angle))
    card = box(corner + np.array([2.5, 1.5]) * cell @ turn, (6.3 * cell, 4.3 * cell), angle)
    p.draw(filled(card), p.pick(), rng.uniform(0.05, 0.3))
    for i in range(6):
        for j in range(4):
            square = box(corner + np.array([i, j]) * cell @ turn, (0.85 * cell, 0.85 * cell), angle)
            p.draw(filled(square), p.pick(), rng.uniform(0.2, 1.6))


# --- the ground from above ------------------------------------------------------------------------

def paint_ground(p: Picture) -> None:
    """Fields, woods, rock, water and shores, with roads, towns, tanks, airports and trees in random
    measure."""
    rng = p.rng
    # pixels of a thing: the height of the sensor
    zoom = float(np.exp(rng.uniform(np.log(0.35), np.log(2.2))))
    sun = rng.uniform(0, 2 * np.pi)
    away = np.array([np.cos(sun), np.sin(sun)])  # where shadows fall
    shadow = rng.uniform(0.2, 0.6)
    _terrain(p, zoom, away)
    if rng.random() < 0.45:
        _water(p, zoom)
    if rng.random() < 0.6:
        _roads(p, zoom)
    built = rng.choice(["none", "town", "tanks", "airport", "yards"], p=[0.3, 0.3, 0.12, 0.18, 0.1])
    angle = rng.uniform(0, 180)
    if built == "airport":
        for _ in range(rng.integers(1, 4)):
            _apron(p, zoom, angle)
    _buildings(p, zoom, built, angle, away, shadow)
    if rng.random() < 0.55:
        _trees(p, zoom, away)
    for _ in range(rng.poisson(2.5)):  # cars, and roofs that reflect the sun
        shape = filled(box(p.spot(), rng.uniform(0.4, 2.5, 2) * OVERSAMPLING, angle))
        p.draw(shape, p.pick(), float(np.exp(rng.uniform(0, 1.6))))


def _spread(p: Picture, mask: np.ndarray, names: tuple[str, ...], zoom: float) -> None:
    """Cover `mask` with a texture of two materials: two of `names`, or one and any other."""
    rng = p.rng
    first, second = (_OF[str(name)] for name in rng.choice(names, 2))
    if rng.random() < 0.25:
        second = p.pick()
    if rng.random() < 0.7:
        texture = p.fractal(rng.uniform(2, 40) * zoom, rng.uniform(0.5, 1.1))
    else:
        texture = p.waves(rng.uniform(2.2, 9) * zoom)
    mix = np.clip(rng.uniform(0.5, 1.0) + rng.choice([0.02, 0.1, 0.3]) * texture, 0, 1).astype(
        np.float32)
    light = np.clip(rng.uniform(0.7, 1.15) * (1 + rng.choice([0.01, 0.04, 0.12]) * texture), 0.1,
                    2).astype(np.float32)
    p.cover(mask, first, second, mix, light)


def _terrain(p: Picture, zoom: float, away: np.ndarray) -> None:
    rng = p.rng
    kind = rng.choice(["plain", "patches", "parcels", "rock"], p=[0.25, 0.35, 0.25, 0.15])
    _spread(p, np.ones((p.n, p.n), bool), GROWN + BUILT[:2], zoom)
    if kind == "patches":
        for _ in range(rng.integers(1, 5)):
            field = p.fractal(rng.uniform(15, 80) * zoom, rng.uniform(0.4, 0.8))
            _spread(p, field > rng.uniform(-0.3, 1.2), GROWN, zoom)
    # each pixel belongs to the nearest point in a tilted metric: borders are straight
    elif kind == "parcels":
        points = rng.uniform(0, p.n, (rng.integers(6, 40), 2))
        stretch, skew = rng.uniform(0.4, 2.5), rng.uniform(-0.8, 0.8)
        distance = [np.hypot(p.columns - x, stretch * (p.rows - y) + skew * (p.columns - x))
                    for x, y in points]
        parcel = np.argmin(distance, axis=0)
        for number in range(len(points)):
            _spread(p, parcel == number, GROWN, zoom)
    elif kind == "rock":
        height = p.fractal(rng.uniform(20, 60) * zoom, rng.uniform(0.5, 0.7), 7)
        slope = (cv2.Sobel(height, cv2.CV_32F, 1, 0) * away[0]
                 + cv2.Sobel(height, cv2.CV_32F, 0, 1) * away[1])
        p.light *= np.clip(1 + rng.uniform(0.1, 0.5) * slope / (slope.std() + 1e-6), 0.15, 2)
        for _ in range(rng.integers(1, 4)):
            _spread(p, np.abs(height - rng.uniform(-1, 1)) < rng.uniform(0.05, 0.5), GROWN, zoom)


def _water(p: Picture, zoom: float) -> None:
    """A coast or a river, with a beach and boats."""
    rng = p.rng
    if rng.random() < 0.6:
        side = rng.normal(0, 1, 2)
        shore = p.fractal(rng.uniform(20, 60) * zoom, 0.55, 7) * rng.uniform(0.1, 0.8)
        x, y = (p.columns - p.n / 2) / p.n, (p.rows - p.n / 2) / p.n
        wet = shore + x * side[0] + y * side[1] > rng.uniform(-0.6, 0.6)
    else:
        wet = p.mask(
            line(p.curve(rng.uniform(0.02, 0.15)), rng.uniform(3, 25) * zoom * OVERSAMPLING))
    if rng.random() < 0.5:
        beach = cv2.dilate(wet.astype(np.uint8), np.ones((3, 3), np.uint8),
                           iterations=int(rng.integers(1, 10))) > 0
        _spread(p, beach & ~wet, ("soil", "concrete"), zoom)
    texture = (p.waves(rng.uniform(2, 6), False) if rng.random() < 0.4
               else p.fractal(rng.uniform(3, 60), 0.6))
    clear = rng.uniform(0.75, 1.0) + rng.uniform(0, 0.12) * p.fractal(rng.uniform(20, 80), 0.5)
    light = np.clip(1 + rng.uniform(0, 0.1) * texture, 0.3, 2).astype(np.float32)
    p.cover(wet, _OF["water"], _OF["soil"], np.clip(clear, 0, 1).astype(np.float32), light)
    for _ in range(rng.poisson(1.5)):
        boat = box(p.spot(), rng.uniform(0.7, 5, 2) * OVERSAMPLING * zoom, rng.uniform(0, 180))
        p.draw(filled(boat), _OF["metal"], rng.uniform(0.7, 2))


def _roads(p: Picture, zoom: float) -> None:
    rng = p.rng
    for _ in range(rng.integers(1, 9)):
        path = p.curve(rng.choice([0.0, 0.0, rng.uniform(0.0, 0.1)]))
        width = rng.uniform(0.6, 5) * zoom * OVERSAMPLING
        material, light = (_OF[str(rng.choice(["asphalt", "concrete", "soil"]))],
                           rng.uniform(0.7, 1.3))
        p.draw(line(path, round(width)), material, light, rng.uniform(0.7, 1))
        if width > 8 and rng.random() < 0.5:  # its marking
            p.draw(line(path, round(width * 0.1)), _OF["concrete"], 1.3 * light)


def _apron(p: Picture, zoom: float, angle: float) -> None:
    """A paved rectangle with aeroplanes on it."""
    rng = p.rng
    centre, size = np.array(p.spot()), rng.uniform(15, 90, 2) * zoom * OVERSAMPLING
    pavement = _OF[str(rng.choice(["concrete", "asphalt"]))]
    p.draw(filled(box(centre, size, angle)), pavement, rng.uniform(0.7, 1.3), rng.uniform(0.8, 1))
    for _ in range(rng.integers(0, 10)):
        where = centre + rng.uniform(-0.5, 0.5, 2) * size
        turn = np.radians(angle + rng.choice([0, 90, 180, 270]) + rng.uniform(-20, 20))
        length = rng.uniform(3, 9) * zoom * OVERSAMPLING
        along, across = (np.array([np.cos(turn), np.sin(turn)]),
                         np.array([-np.sin(turn), np.cos(turn)]))
        light, metal = rng.uniform(0.8, 2.2), int(rng.choice([_OF["metal"], p.pick()]))
        wing, tail = 0.1 * along, -0.8 * along
        for start, end, thick in ((-along, along, 0.16), (wing, -0.3 * along + 0.9 * across, 0.2),
                                  (wing, -0.3 * along - 0.9 * across, 0.2),
                                  (tail, -0.95 * along + 0.35 * across, 0.12),
                                  (tail, -0.95 * along - 0.35 * across, 0.12)):
            ends = np.round(where + np.stack([start, end]) * length / 2 * 1.6).astype(np.int32)
            p.draw(line(ends, round(thick * length)), metal, light)


def _buildings(p: Picture, zoom: float, built: str, angle: float, away: np.ndarray,
               shadow: float) -> None:
    """Houses, halls, tanks or containers, with shadows, in the districts of a town."""
    rng = p.rng
    count = {"none": 0, "town": rng.integers(20, 160), "tanks": rng.integers(4, 40),
             "airport": rng.integers(0, 12), "yards": rng.integers(30, 200)}[built]
    district = p.fractal(40, 0.5)
    for _ in range(count):
        centre = np.array(p.spot())
        if built != "airport" and district[centre[1], centre[0]] < -0.2:
            continue
        material = int(rng.choice([_OF[str(rng.choice(BUILT))], p.pick()], p=[0.8, 0.2]))
        light = float(np.exp(rng.normal(0, 0.35)))
        if built == "tanks":
            radius = rng.uniform(1, 6) * zoom * OVERSAMPLING
            turns = np.linspace(0, 2 * np.pi, 20)[:-1]
            points = centre + radius * np.stack([np.cos(turns), np.sin(turns)], 1)
        else:
            size = (rng.uniform(0.7, 3, 2) if built == "yards"
                    else rng.uniform(2, 12, 2) * (1 if rng.random() < 0.8 else 3))
            points = box(centre, size * zoom * OVERSAMPLING,
                         angle + rng.choice([0, 90]) + rng.normal(0, 3)).astype(float)
        height = rng.uniform(0, 3) * zoom * OVERSAMPLING
        if height > 0.5:
            p.light[p.mask(filled(points + away * height))] *= shadow
        p.draw(filled(points), material, light)
        if rng.random() < 0.4 and built != "tanks":  # the other half of a roof
            half = np.stack(
                [points[0], points[1], (points[1] + points[2]) / 2, (points[3] + points[0]) / 2])
            p.draw(filled(half), material, light * rng.uniform(0.5, 0.9))


def _trees(p: Picture, zoom: float, away: np.ndarray) -> None:
    """Tree crowns, lit from one side, with shadows, where a random density is high."""
    rng = p.rng
    density = p.fractal(rng.uniform(8, 40), 0.6)
    level, material = (rng.uniform(-1.5, 1.5),
                       _OF[str(rng.choice(["wood", "wood", "crop", "grass"]))])
    biggest = rng.uniform(1, 5)
    for _ in range(rng.integers(20, 700)):
        centre = p.spot()
        if density[centre[1], centre[0]] < level:
            continue
        radius = max(1, round(rng.uniform(0.4, biggest) * zoom * OVERSAMPLING))
        behind = np.round(np.array(centre) + away * radius * rng.uniform(0.5, 1.5)).astype(
            int).tolist()
        disc(tuple(behind), radius)(p.light, float(rng.uniform(0.15, 0.5)))
        p.draw(disc(centre, radius), material, rng.uniform(0.6, 1.3))
        if radius > 3:
            lit = np.round(np.array(centre) - away * radius * 0.4).astype(int).tolist()
            disc(tuple(lit), radius // 2)(p.light, float(rng.uniform(1.0, 1.5)))
