"""A cube on a sensor's own grid, put on a map grid by a lookup table: each cell takes its nearest
pixel, and none is made up."""
from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from utility.cubes.ground import Affine, finer_transform


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

    def fits(self, lonlat: tuple[np.ndarray, np.ndarray]) -> bool:
        """Whether most cells lie within 1.5 pixels of the pixel that the table gives them."""
        return self._nearest(1, *lonlat) is not None

    def finer(self, scale: int, lonlat: tuple[np.ndarray, np.ndarray] | None = None) -> Lookup:
        """The table of cells and pixels that are `scale` times smaller.

        A finer cell takes the finer pixel nearest to its centre: `lonlat`, of the centres of the
        sensor's pixels in the map's own units, says where that is, by the steps from pixel to
        pixel. Where it does not fit the table, the finer cells of a cell are the finer pixels of
        its pixel, in their order.

        Args:
            lonlat: (H, W) each, of the pixels before they became finer.
        """
        inner = np.arange(scale)
        valid = (self.rows >= 0) & (self.columns >= 0)
        shape = (self.rows.shape[0], scale, self.rows.shape[1], scale)
        rows = np.broadcast_to(self.rows[:, None, :, None] * scale + inner[None, :, None, None],
                               shape)
        columns = np.broadcast_to(self.columns[:, None, :, None] * scale + inner, shape)
        if lonlat is not None and (moved := self._nearest(scale, *lonlat)) is not None:
            rows, columns = moved
        rows, columns = (np.where(valid[:, None, :, None], values, -1).astype(np.int32)
                         for values in (rows, columns))
        full = (shape[0] * scale, shape[2] * scale)
        step = (1 / scale, 0.0)
        return dataclasses.replace(self, rows=rows.reshape(full), columns=columns.reshape(full),
                                   transform=finer_transform(self.transform, step, step))

    def _nearest(self, scale: int, lon: np.ndarray,
                 lat: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Finer rows and columns, (H', scale, W', scale), of the finer pixels nearest to the finer
        cells' centres.

        None where a cell lies more than a pixel from the pixel that the table gives it, for most
        cells.
        """
        height, width = lon.shape
        if min(height, width) < 2:
            return None
        a, b, c, d, e, f = self.transform
        r, k = np.clip(self.rows, 0, height - 1), np.clip(self.columns, 0, width - 1)
        # Steps on the ground from row to row and from column to column: a 2 x 2 matrix for each
        # pixel, then inverted.
        (lon_r, lon_k), (lat_r, lat_k) = np.gradient(lon), np.gradient(lat)
        determinant = lon_k * lat_r - lon_r * lat_k
        rows, columns = (np.empty((self.rows.shape[0], scale, self.rows.shape[1], scale), np.int32)
                         for _ in range(2))
        far, seen = 0, 0
        with np.errstate(all="ignore"):
            for top in range(len(self.rows)):
                i, j = r[top], k[top]
                for y in range(scale):
                    for x in range(scale):
                        column, row = np.arange(len(i)) + (x + 0.5) / scale, top + (y + 0.5) / scale
                        u = c + a * column + b * row - lon[i, j]
                        v = f + d * column + e * row - lat[i, j]
                        down = (lon_k[i, j] * v - lat_k[i, j] * u) / determinant[i, j]
                        across = (lat_r[i, j] * u - lon_r[i, j] * v) / determinant[i, j]
                        inside = self.rows[top] >= 0
                        off = ~(np.maximum(np.abs(down), np.abs(across)) <= 1.5)
                        far, seen = far + int((off & inside).sum()), seen + int(inside.sum())
                        down, across = (np.clip(np.nan_to_num(step), -1, 1)
                                        for step in (down, across))
                        rows[top, y, :, x] = np.clip(np.floor((i + 0.5 + down) * scale), 0,
                                                     height * scale - 1)
                        columns[top, y, :, x] = np.clip(np.floor((j + 0.5 + across) * scale), 0,
                                                        width * scale - 1)
        return (rows, columns) if far * 2 <= seen else None

    def take(self, cube: np.ndarray, top: int, bottom: int, nodata: float) -> np.ndarray:
        """Rows of the map grid of a cube (B, H, W): (B, bottom - top, W'), `nodata` where there is
        no pixel."""
        rows, columns = self.rows[top:bottom], self.columns[top:bottom]
        valid = (rows >= 0) & (columns >= 0) & (rows < cube.shape[1]) & (columns < cube.shape[2])
        block = np.full((cube.shape[0], *rows.shape), nodata, cube.dtype)
        if valid.any():
            at = rows[valid], columns[valid]
            block[:, valid] = cube[:, at[0], at[1]]
        return block
