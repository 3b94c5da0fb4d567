"""A cube on a sensor's grid, put on a map grid by a table: each cell takes its nearest pixel."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from utility.cubes.ground import Affine, finer_transform


class Ground(NamedTuple):
    """Where a sensor's pixels lie on the map, and the steps along rows and columns; (H, W)."""

    x: np.ndarray
    y: np.ndarray
    x_down: np.ndarray
    x_across: np.ndarray
    y_down: np.ndarray
    y_across: np.ndarray

    @classmethod
    def of(cls, centres: tuple[np.ndarray, np.ndarray]) -> Ground | None:
        """From x and y of the centres of pixels; None for a single row or column."""
        x, y = centres
        return cls(x, y, *np.gradient(x), *np.gradient(y)) if min(x.shape) > 1 else None


@dataclass(frozen=True)
class Lookup:
    """Which pixel of the sensor lies in each cell of a map grid (GLT)."""
    rows: np.ndarray                  # (H', W') int32, row of the pixel, from 0; negative: none
    columns: np.ndarray               # (H', W') int32, likewise
    transform: Affine                 # of the cells
    crs: str | None                   # WKT

    def rows_of(self, top: int, bottom: int) -> Lookup:
        """The table of some rows of the map grid."""
        a, b, c, d, e, f = self.transform
        return dataclasses.replace(self, rows=self.rows[top:bottom],
                                   columns=self.columns[top:bottom],
                                   transform=(a, b, c + b * top, d, e, f + e * top))

    def fits(self, ground: Ground) -> bool:
        """Whether most cells lie within 1.5 pixels of the pixel that the table gives them."""
        return self._nearest(1, ground)[2] <= 0.5

    def finer(self, scale: int, ground: Ground | None = None) -> Lookup:
        """The table of cells and pixels that are `scale` times smaller.

        A finer cell takes the finer pixel nearest to its centre: `ground`, of the sensor's pixels
        before they became finer, says where that is. Without it the finer cells of a cell are the
        finer pixels of its pixel, in their order.
        """
        inner = np.arange(scale)
        valid = (self.rows >= 0) & (self.columns >= 0)
        shape = (self.rows.shape[0], scale, self.rows.shape[1], scale)
        rows = np.broadcast_to(self.rows[:, None, :, None] * scale + inner[None, :, None, None],
                               shape)
        columns = np.broadcast_to(self.columns[:, None, :, None] * scale + inner, shape)
        if ground is not None:
            rows, columns, _ = self._nearest(scale, ground)
        rows, columns = (np.where(valid[:, None, :, None], values, -1).astype(np.int32)
                         for values in (rows, columns))
        full = (shape[0] * scale, shape[2] * scale)
        step = (1 / scale, 0.0)
        return dataclasses.replace(self, rows=rows.reshape(full), columns=columns.reshape(full),
                                   transform=finer_transform(self.transform, step, step))

    def _nearest(self, scale: int, ground: Ground) -> tuple[np.ndarray, np.ndarray, float]:
        """Finer rows and columns, (H', scale, W', scale), of the finer pixels nearest to the finer
        cells' centres, and the share of cells that lie more than 1.5 pixels from their pixel."""
        height, width = ground.x.shape
        a, b, c, d, e, f = self.transform
        shape = self.rows.shape[0], scale, self.rows.shape[1], scale
        rows, columns = np.empty(shape, np.int32), np.empty(shape, np.int32)
        far, seen = 0, 0
        for top in range(len(self.rows)):
            inside = self.rows[top] >= 0
            i = np.clip(self.rows[top], 0, height - 1)
            j = np.clip(self.columns[top], 0, width - 1)
            x, y, x_down, x_across, y_down, y_across = (part[i, j] for part in ground)
            # The steps are a 2 x 2 matrix for each pixel, which is inverted.
            determinant = x_across * y_down - x_down * y_across
            for inner in np.ndindex(scale, scale):
                row, column = (np.array(inner) + 0.5) / scale
                right = c + a * (np.arange(len(i)) + column) + b * (top + row) - x
                up = f + d * (np.arange(len(i)) + column) + e * (top + row) - y
                with np.errstate(all="ignore"):
                    down = (x_across * up - y_across * right) / determinant
                    across = (y_down * right - x_down * up) / determinant
                off = ~(np.maximum(np.abs(down), np.abs(across)) <= 1.5)
                far, seen = far + int((off & inside).sum()), seen + int(inside.sum())
                down, across = (np.clip(np.nan_to_num(step), -1, 1) for step in (down, across))
                at = top, inner[0], slice(None), inner[1]
                rows[at] = np.clip(np.floor((i + 0.5 + down) * scale), 0, height * scale - 1)
                columns[at] = np.clip(np.floor((j + 0.5 + across) * scale), 0, width * scale - 1)
        return rows, columns, far / max(seen, 1)

    def take(self, cube: np.ndarray, top: int, bottom: int, nodata: float) -> np.ndarray:
        """Rows of the map grid of (B, H, W): (B, bottom - top, W'), `nodata` where no pixel is."""
        rows, columns = self.rows[top:bottom], self.columns[top:bottom]
        valid = (rows >= 0) & (columns >= 0) & (rows < cube.shape[1]) & (columns < cube.shape[2])
        block = np.full((cube.shape[0], *rows.shape), nodata, cube.dtype)
        if valid.any():
            at = rows[valid], columns[valid]
            first, last = zip(*((n.min(), n.max() + 1) for n in at), strict=True)
            for band in range(len(cube)):  # which may lie on disk
                part = cube[band, first[0]:last[0], first[1]:last[1]]
                block[band, valid] = part[at[0] - first[0], at[1] - first[1]]
        return block
