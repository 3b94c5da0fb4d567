"""The methods that enlarge a low-resolution cube y: interpolation, back-projection, a network.

A test and a user's own cube are computed by the same objects, in memory or from disk to disk:

    interpolation     x = U y
    back-projection   x = U z             z = `Degradation.prefilter` of y
    network   x = N(x_0, y)       x_0 is one of the two above; then, if back-projected, x + U e with
                                          e the prefiltered y - D x

y, z and e lie on the low-resolution grid, so any window of a product with U is computed alone.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import maximum_filter
from torch import Tensor

from models import Network
from utility.cubes.cube import Shelf, scratch
from utility.degradation import Degradation
from utility.names import UNTRAINED
from utility.superres.agreement import Agreement
from utility.superres.problem import Problem
from utility.superres.spectrum import Spectrum, band_step, choose_supports, deviations
from utility.superres.tiling import (
    STRIP,
    Consistency,
    Sink,
    Source,
    interpolated,
    super_resolve,
    window_of,
)

AT_ONCE = 2 << 20
"""Bytes of a low-resolution cube that an operation takes at a time."""


class Method:
    """A method applied to one cube y, (B, h, w) float32 in [0, 1], which may lie on disk.

    Args:
        low: y.
        problem: the scale factor, the degradation and, of a network, how it is computed.
        folder: for the temporary files of large cubes.
        noise: the standard deviation of each band's noise, (B,), in the units of y; None is none.
        missing: (h, w) bool, pixels of y that nobody measured and whose values were made up.

    Attributes:
        zero: where the zero of the file's values lies in y; `agreement` takes its angles from it.
    """

    zero = 0.0

    def __init__(self, low: np.ndarray, problem: Problem, folder: Path | None = None,
                 noise: np.ndarray | None = None, missing: np.ndarray | None = None) -> None:
        self.low, self.problem, self.folder, self.noise, self.missing = (
            low, problem, folder, noise, missing)
        self.degradation = Degradation.of(problem.scale, problem.degradation)
        self.shape = (low.shape[0], low.shape[1] * problem.scale, low.shape[2] * problem.scale)

    @property
    def computed(self) -> int:
        """Bands that are computed; what is added to them is interpolated to the others."""
        return self.shape[0]

    def write(self, sink: Sink) -> None:
        """Give the result x to `sink` in blocks (B, rows, columns), every pixel once."""
        raise NotImplementedError

    def cube(self, **how: object) -> np.ndarray:
        """The result in memory, (B, H, W); arguments are those of `write`."""
        out = np.empty(self.shape, np.float32)
        self.write(into(out), **how)
        return out

    def upsampled(self, cube: np.ndarray) -> Source:
        """U of a cube on the low-resolution grid, a window at a time."""
        return interpolated(cube, self.problem.scale, self.problem.degradation, 0, 1)

    def agreement(self) -> dict[str, dict[str, float | None]]:
        """How well the result, degraded again, agrees with y: {name: see `Agreement`}."""
        raise NotImplementedError

    @cached_property
    def counted(self) -> np.ndarray | None:
        """(h, w) bool, the pixels of y that no made-up one has a part in, once y is brought up and
        down again; None: all."""
        if self.missing is None:
            return None
        free = ~maximum_filter(self.missing, [2 * far + 1 for far in self.degradation.reach],
                               mode="constant")
        return free if free.any() else ~self.missing

    def on_low_grid(self, operation: Callable[..., Tensor], *cubes: np.ndarray) -> np.ndarray:
        """An operation on cubes like y, a few bands at a time, or all of them where the degradation
        mixes bands."""
        out = scratch(self.low.shape, np.float32, self.folder)
        for part, result in self._parts(operation, *cubes):
            out[part] = result
        return out

    def _parts(self, operation: Callable[..., Tensor],
               *cubes: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        bands, height, width = self.low.shape
        step = (
            bands if self.degradation.band_operations else max(1, AT_ONCE // (4 * height * width)))
        for first in range(0, bands, step):
            part = slice(first, min(first + step, bands))
            yield part, operation(*(torch.from_numpy(np.array(cube[part]))
                                    for cube in cubes)).numpy()

    def _compared(self, parts: Iterable[tuple[slice, np.ndarray]]) -> dict[str, float | None]:
        """The agreement of a cube, given in parts of its bands, with y."""
        agreement = Agreement(self.low.shape, self.counted, self.zero)
        for part, again in parts:
            agreement.add(part, slice(None), again, self.low[part])
        return agreement.found()


class Untrained(Method):
    """Interpolation or back-projection: `source` gives any window of the result."""

    def __init__(self, key: str, low: np.ndarray, problem: Problem, folder: Path | None = None,
                 noise: np.ndarray | None = None, missing: np.ndarray | None = None) -> None:
        super().__init__(low, problem, folder, noise, missing)
        self.key = key
        self._mean = low if key == "interpolation" else self._prefiltered()
        self.source = self.upsampled(self._mean)

    def _prefiltered(self) -> np.ndarray:
        if self.noise is None:
            return self.on_low_grid(self.degradation.prefilter, self.low)
        # The noise beside its bands, as an image of one pixel each: `on_low_grid` takes a few bands
        # at a time.
        noise = self.noise[:, None, None]
        some = self.missing is not None and self.missing.any()
        counted = torch.from_numpy(~self.missing) if some else None
        return self.on_low_grid(
            lambda y, sigma: self.degradation.prefilter(y, noise=sigma[:, 0, 0], counted=counted),
            self.low, noise)

    def agreement(self) -> dict[str, dict[str, float | None]]:
        return {self.key: self._compared(self._parts(self.degradation.round_trip, self._mean))}

    def write(self, sink: Sink) -> None:
        for top, bottom, left, right in strips(self.shape):
            sink(top, left, self.source(top, bottom, left, right))


class Networked(Method):
    """A network's result, back-projected where the problem asks for it.

    Args:
        start: reads windows of the start image.
        net: on the device that shall compute.
        spectrum: what is known of the bands, by which those are chosen that the network computes.

    Attributes:
        supports: these; None is all.
        again, before: the result of a back-projected network degraded again, (B, h, w), and
            likewise before its back-projection; after `write`.
    """

    def __init__(self, net: Network, start: Source, low: np.ndarray, problem: Problem,
                 folder: Path | None = None, noise: np.ndarray | None = None,
                 spectrum: Spectrum | None = None, missing: np.ndarray | None = None) -> None:
        super().__init__(low, problem, folder, noise, missing)
        self.net, self.start = net, start
        self.again = self.before = self._agreement = None
        step = band_step(net, problem, len(low))
        self.supports = (None if step == 1
                         else choose_supports(step, deviations(low, missing),
                                              spectrum or Spectrum()))

    @property
    def computed(self) -> int:
        return len(self.supports.bands) if self.supports else self.shape[0]

    def agreement(self) -> dict[str, dict[str, float | None]]:
        if self._agreement:
            return {"network": self._agreement}
        cubes = ({"network": self.again}
                 | ({} if self.before is None else {"network_before": self.before}))
        bands = [slice(band, band + 1) for band in range(len(self.low))]
        return {name: self._compared((band, cube[band]) for band in bands)
                for name, cube in cubes.items()}

    def told(self) -> Tensor | None:
        """What `Network.inputs` takes as told; None for a network that takes nothing."""
        if not self.net.takes_told:
            return None
        told = torch.zeros(1, 3, len(self.low))
        if self.noise is not None:
            told[0, 0] = torch.from_numpy(np.square(self.noise))
        told[0, 1] = float(np.mean(self.degradation.nearest_mtf))
        told[0, 2] = float(self.problem.mtf_known)
        return told

    def write(self, sink: Sink, *, spread: Sink | None = None, together: bool = False) -> None:
        """As `Method.write`; `spread` and `together` are those of `tiling.super_resolve`."""
        problem = self.problem
        told = self.told()
        agreement = (None if problem.backproject or problem.bandwise
                     else Agreement(self.low.shape, self.counted, self.zero))

        def compare(rows: slice, again: np.ndarray) -> None:
            agreement.add(slice(None), rows, again, self.low[:, rows])

        consistency = Consistency(self.shape, problem.scale, problem.degradation, self.folder,
                                  compare if agreement else None)
        how = {"tile": problem.tile, "amp": problem.amp, "scale": problem.scale,
               "self_ensemble": problem.self_ensemble, "together": together,
               "memory": problem.memory, "missing": self.missing}
        if agreement:
            super_resolve(self.net, self.start, self.shape, sink, low=window_of(self.low),
                          again=consistency, spread=spread, supports=self.supports, told=told,
                          **how)
            self._agreement = agreement.found()
            return
        whole = scratch(self.shape, np.float32, self.folder)
        if problem.bandwise:
            for band in range(self.shape[0]):
                one = slice(band, band + 1)
                super_resolve(self.net, _bands(self.start, one), (1, *self.shape[1:]),
                              into(whole, one), low=window_of(self.low[one]),
                              told=None if told is None else told[..., one], **how)
            for top, bottom, left, right in strips(self.shape):
                consistency.add(top, left, whole[:, top:bottom, left:right])
        else:
            super_resolve(self.net, self.start, self.shape, into(whole), low=window_of(self.low),
                          again=consistency, spread=spread, supports=self.supports, told=told,
                          **how)
        self.again = consistency.result()
        correction = self._back_projected() if problem.backproject else None
        for top, bottom, left, right in strips(self.shape):
            block = whole[:, top:bottom, left:right]
            sink(top, left,
                 block if correction is None else block + correction(top, bottom, left, right))

    def _back_projected(self) -> Source:
        """What back-projection adds to the result; `again` becomes that of the sum."""
        steps, degradation, self.before = self.problem.backproject, self.degradation, self.again
        error = self.on_low_grid(lambda y, again: degradation.prefilter(y - again, steps - 1),
                                 self.low, self.before)
        self.again = self.on_low_grid(lambda again, e: again + degradation.round_trip(e),
                                      self.before, error)
        return self.upsampled(error)


def methods(net: Network | None, low: np.ndarray, problem: Problem, folder: Path | None = None,
            noise: np.ndarray | None = None, spectrum: Spectrum | None = None,
            missing: np.ndarray | None = None, zero: float = 0.0) -> dict[str, Method]:
    """The untrained methods and, where there is one, the network, applied to a cube; see
    `Method`."""
    made: dict[str, Method] = {
        key: Untrained(key, low, problem, folder, noise, missing) for key in UNTRAINED}
    if net:
        made["network"] = Networked(net, made[problem.start].source, low, problem, folder, noise,
                                    spectrum, missing)
    for method in made.values():
        method.zero = zero
    return made


def strips(shape: tuple[int, int, int]) -> Iterator[tuple[int, int, int, int]]:
    """top, bottom, left, right of thin strips of a cube (B, H, W), from top to bottom."""
    rows = max(8, STRIP // (4 * shape[0] * shape[2]))
    for top in range(0, shape[1], rows):
        yield top, min(top + rows, shape[1]), 0, shape[2]


def into(cube: np.ndarray | Shelf, bands: slice = slice(None)) -> Sink:
    """A sink that keeps what it is given in some bands of a cube."""
    def keep(top: int, left: int, block: np.ndarray) -> None:
        cube[bands, top:top + block.shape[1], left:left + block.shape[2]] = block

    return keep


def _bands(source: Source, bands: slice) -> Source:
    return lambda *window: source(*window[:4], bands)
