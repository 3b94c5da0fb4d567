"""Scenes: a hyperspectral cube (bands, rows, columns) with what its file says about it, whatever the container.

    scene = read_scene("paviaU.mat")                 # the key and the layout are found, or asked for
    print(describe(scene))
    cube, low, high = unit_range(clean(scene, drop_bad_bands=True).cube)

`read_scene` loads the cube; `open_scene` leaves it on disk and reads blocks as they are sliced. `write_scene` and
`create_scene` are their opposites. Values are as stored; nothing is scaled until `unit_range`.
"""
from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, pairwise, permutations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.ndimage

from utility import formats
from utility.errors import UserError
from utility.formats import LazyCube, blocks, load, native, scratch

LAYOUTS = [*("".join(p) for p in permutations("BHW")), "pixels", "pixels.T"]
"""How a cube may lie in a file, its axes in the order in which Python shows them (MATLAB shows those of v7.3 files in
reverse). "pixels" is 2-D, bands x pixels, the pixels running down the image's columns; "pixels.T" its transpose."""


@dataclass
class Scene:
    """A cube of raw values, (B, H, W), and what its file says about it."""
    cube: np.ndarray                              # or a read-only memmap, or a LazyCube
    name: str
    path: Path | None = None
    format: str = ""                              # mat5, mat7.3, hdf5, npy, npz, envi, raster
    key: str | None = None
    layout: str = "BHW"                           # one of LAYOUTS: how it lies, or will lie, in its file
    wavelengths: np.ndarray | None = None         # nm, (B,)
    band_names: list[str] | None = None
    nodata: float | None = None
    crs: str | None = None                        # WKT
    transform: tuple[float, ...] | None = None    # affine a..f: x = a column + b row + c, y = d column + e row + f
    metadata: dict[str, Any] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------------ reading

def open_scene(path: str | os.PathLike[str], key: str | None = None, layout: str | None = None,
               bands: int | None = None, size: tuple[int, int] | None = None) -> Scene:
    """Open a scene and leave its cube on disk: ``scene.cube[b0:b1, r0:r1, c0:c1]`` reads that block.

    The cube is a memory map (ENVI, .npy) or a LazyCube (HDF5, v7.3, rasters). MATLAB v5 and .npz are loaded. The
    arguments and errors are those of `read_scene`.
    """
    path = Path(path)
    if layout is not None and (layout := _spelled(layout)) not in LAYOUTS:
        raise UserError(f"The layout '{layout}' is unknown; choose one of {', '.join(LAYOUTS)} with --layout.")
    stored = formats.open_stored(path, key)
    array = stored.array
    where = f"{path}, key '{stored.key}'," if stored.key else f"{path}"
    kind = np.dtype(array.dtype)
    if kind.kind not in "iuf":
        found = "complex numbers" if kind.kind in "cV" and _complex(kind) else f"values of type {kind}"
        raise UserError(f"{where} holds {found}, where integers or real numbers were expected; store their magnitude.")
    if len(array.shape) not in (2, 3) or 0 in array.shape:
        raise UserError(f"{where} holds an array of shape {_times(array.shape)}, where a cube of 3 dimensions or bands "
                        f"x pixels was expected.")
    if stored.format in ("envi", "raster"):
        layout = stored.layout
        cube = array if isinstance(array, LazyCube) else array.transpose([layout.index(a) for a in "BHW"])
        if bands is not None and cube.shape[0] != bands:
            raise UserError(f"{where} has {cube.shape[0]} bands, where {bands} were expected.")
    else:
        size = size or formats.find_size(stored.beside)
        layout = _resolve(array.shape, layout or stored.layout, bands, size, stored, where)
        cube = _arranged(array, layout, size)
    if cube.shape[0] < 2:
        raise UserError(f"{where} has {cube.shape[0]} band, and a hyperspectral cube needs at least 2 bands.")
    if isinstance(cube, np.ndarray) and not cube.dtype.isnative:
        lasting = cube
        cube = LazyCube(cube.shape, cube.dtype, lambda b, r, c: lasting[b, r, c].astype(native(lasting.dtype)),
                        int(np.argmax(np.abs(cube.strides))))
    wavelengths = stored.wavelengths
    if wavelengths is None:
        wavelengths = formats.find_wavelengths(stored.beside, cube.shape[0])
    return Scene(cube, path.stem, path, stored.format, stored.key, layout, wavelengths, stored.band_names,
                 stored.nodata, stored.crs, stored.transform, stored.metadata)


def read_scene(path: str | os.PathLike[str], key: str | None = None, layout: str | None = None,
               bands: int | None = None, size: tuple[int, int] | None = None) -> Scene:
    """Read a scene into memory as it is stored: data type and values are the file's, in native byte order.

    Args:
        path: MATLAB v5 or v7.3, HDF5, .npy, .npz, ENVI (header or data file), GeoTIFF or any raster GDAL opens.
        key: the array's name, where the file holds several; not needed when one alone can be the cube.
        layout: one of LAYOUTS; found from the shape when not given.
        bands: the number of bands expected; settles the layout, and another number is refused.
        size: (rows, columns) of a 2-D bands x pixels array whose file has no nRow and nCol.

    Returns:
        A Scene whose cube is a C-contiguous (B, H, W) array; its `layout` says which layout was taken.

    Raises:
        UserError: the file cannot be read, its key or layout is not clear, or it holds no real-valued cube.
    """
    scene = open_scene(path, key, layout, bands, size)
    try:
        scene.cube = load(scene.cube)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # damage may lie in the data, behind a sound header
        raise formats.damaged(path, error) from error
    return scene


def describe(scene: Scene) -> str:
    """One line about a scene; the range is left out for one on disk, which would have to be read."""
    b, h, w = scene.cube.shape
    parts = [f"stored {' x '.join(scene.layout)}" if scene.layout in LAYOUTS[:6] else
             "stored bands x pixels" if scene.layout == "pixels" else "stored pixels x bands",
             f"{b} bands", f"{h} x {w}", str(scene.cube.dtype)]
    if scene.key:
        parts[0] = f"key '{scene.key}', {parts[0]}"
    if type(scene.cube) is np.ndarray:
        low, high = scene.cube.min(), scene.cube.max()
        parts.append(f"{low:g} .. {high:g}" if scene.cube.dtype.kind == "f" else f"{low} .. {high}")
    if scene.wavelengths is not None:
        parts.append(f"{min(scene.wavelengths):g} .. {max(scene.wavelengths):g} nm")
    return f"{scene.path or scene.name}: {', '.join(parts)}"


def list_scenes(paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> list[Path]:
    """The scene files among files and folders: of a folder those directly in it, by name; a file as given.

    Raises:
        UserError: a path does not exist, or a folder has no scene directly in it.
    """
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | os.PathLike) else paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
            scenes = [p for p in inside if p.is_file() and formats.is_scene(p)]
            if not scenes:
                folders = [p.name for p in inside if p.is_dir()][:8]
                hint = f"name one of its folders ({', '.join(folders)})" if folders else "name another folder"
                raise UserError(f"{path} has no scene in it ({formats.KNOWN}); {hint}.")
            found += scenes
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path} does not exist; give a scene or a folder of scenes.")
    return list(dict.fromkeys(found))


def _complex(dtype: np.dtype) -> bool:
    return dtype.kind == "c" or set(dtype.names or ()) in ({"real", "imag"}, {"r", "i"})


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _spelled(layout: str) -> str:
    """The layout in the spelling of LAYOUTS, whatever its case."""
    return next((known for known in LAYOUTS if known.lower() == layout.lower()), layout)


def _resolve(shape: tuple[int, ...], layout: str | None, bands: int | None, size: tuple[int, int] | None,
             stored: formats.Stored, where: str) -> str:
    """The layout of a stored array, from what is known for certain first: the layout or band count asked for, the
    wavelengths, then a 2-D array of the image's size beside it, then its shape. Never a guess between equals."""
    mirrored = stored.mirrored
    if len(shape) == 2:
        return _resolve_pixels(shape, layout, bands, size, mirrored, where)
    if layout in ("pixels", "pixels.T"):
        raise UserError(f"{where} is {_times(shape)}, where layout {layout} expects 2 dimensions; leave --layout out.")
    if layout:
        if bands is not None and shape[layout.index("B")] != bands:
            # MATLAB shows the axes of a v7.3 file in reverse, and so may whoever named the layout
            if mirrored and shape[layout[::-1].index("B")] == bands:
                return layout[::-1]
            raise UserError(f"{where} is {_times(shape)}, which in layout {layout} has {shape[layout.index('B')]} "
                            f"bands, where {bands} were expected.")
        return layout
    author = shape[::-1] if mirrored else shape                       # the axes as they were meant
    axis = _band_axis(author, bands, stored, where)
    if axis is None:
        common = [name[::-1] if mirrored else name for name in ("HWB", "BHW", "HBW")]
        choices = ", ".join(f"{n} ({shape[n.index('B')]} bands)" for n in common)
        raise UserError(f"{where} is {_times(shape)}, and which axis holds the bands is not clear; say so with "
                        f"--layout: {choices}.")
    name = ("BHW", "HBW", "HWB")[axis]
    return name[::-1] if mirrored else name


def _band_axis(shape: tuple[int, ...], bands: int | None, stored: formats.Stored, where: str) -> int | None:
    """Which axis of a 3-D array, as its author wrote it, holds the bands; None when that is not clear."""
    wavelengths = formats.find_wavelengths(stored.beside)
    for count in (bands, None if wavelengths is None else len(wavelengths)):
        fitting = [i for i in range(3) if shape[i] == count]
        if len(fitting) == 1:
            return fitting[0]
        if count is not None and count == bands and not fitting:
            raise UserError(f"{where} is {_times(shape)}, and none of its axes has the {bands} bands expected.")
        if count is not None and count == bands:
            shape_known = [i for i in fitting if i != 1]
            return shape_known[0] if len(shape_known) == 1 else None
    planes = {tuple(p[::-1]) if stored.mirrored else tuple(p) for p in stored.planes}
    size = formats.find_size(stored.beside)
    planes |= {size} if size else set()
    fitting = [i for i in range(3) if tuple(np.delete(shape, i).tolist()) in planes]
    if len(fitting) == 1:
        return fitting[0]
    a, b, c = shape
    if a == b == c or (a == c and b != a):
        return None
    if a == b:
        return 2
    if b == c:
        return 0
    if c < min(a, b):
        return 2
    # bands first is the rarer habit, so it takes more than the smallest number to believe it
    return 0 if 2 * a <= min(b, c) else None


def _resolve_pixels(shape: tuple[int, ...], layout: str | None, bands: int | None, size: tuple[int, int] | None,
                    mirrored: bool, where: str) -> str:
    if layout and not layout.startswith("pixels"):
        raise UserError(f"{where} is {_times(shape)}, where layout {layout} expects 3 axes; use pixels and the size.")
    if size is None:
        raise UserError(f"{where} is a 2-D array of {_times(shape)}, and no image size (nRow, nCol) stands beside it; "
                        f"give it with --size ROWS COLUMNS, or in Python read_scene(.., layout='pixels', size=(H, W)).")
    names = ("pixels.T", "pixels") if mirrored else ("pixels", "pixels.T")
    if layout:  # MATLAB shows the axes of a v7.3 file in reverse, and so may whoever named the layout
        names = [layout, *(name for name in names if name != layout and mirrored and bands is not None)]
    for name in names:
        count, pixels = shape if name == "pixels" else shape[::-1]
        if pixels == math.prod(size):
            if bands is not None and count != bands:
                raise UserError(f"{where} is {_times(shape)}, {count} bands of {_times(size)} pixels, where {bands} "
                                f"bands were expected.")
            return name
    raise UserError(f"{where} is {_times(shape)}, and has no axis of {math.prod(size)} pixels for an image of "
                    f"{_times(size)}; correct the size (rows, columns).")


def _arranged(array: Any, layout: str, size: tuple[int, int] | None) -> Any:
    """A (B, H, W) view of a stored array; of an HDF5 dataset, a LazyCube."""
    lazy = isinstance(array, h5py.Dataset)
    if layout.startswith("pixels"):
        h, w = size
        if not lazy:
            flat = array if layout == "pixels" else array.T
            return flat.reshape(len(flat), w, h).transpose(0, 2, 1)

        def read(b: slice, r: slice, c: slice) -> np.ndarray:
            run = slice(c.start * h, c.stop * h)
            flat = array[b, run] if layout == "pixels" else array[run, b].T
            return flat.reshape(len(flat), c.stop - c.start, h).transpose(0, 2, 1)[:, r]

        count = array.shape[0 if layout == "pixels" else 1]
        return LazyCube((count, h, w), array.dtype, _guarded(array, read), 0 if layout == "pixels" else 2)
    order = [layout.index(a) for a in "BHW"]
    if not lazy:
        return array.transpose(order)

    def read(b: slice, r: slice, c: slice) -> np.ndarray:
        index = {"B": b, "H": r, "W": c}
        return array[tuple(index[a] for a in layout)].transpose(order)

    return LazyCube(tuple(array.shape[i] for i in order), array.dtype, _guarded(array, read), "BHW".index(layout[0]),
                    array.chunks[0] if array.chunks else 1)


def _guarded(dataset: h5py.Dataset, read: Any) -> Any:
    def guarded(b: slice, r: slice, c: slice) -> np.ndarray:
        try:
            return read(b, r, c)
        except (OSError, RuntimeError) as error:
            raise formats.damaged(dataset.file.filename, error) from error
    return guarded


# ------------------------------------------------------------------------------------------------------------- values

@dataclass
class BandStatistics:
    """Per band, over its valid pixels: lowest and highest value (NaN where none is valid), and counts of the others."""
    low: np.ndarray         # (B,) float64
    high: np.ndarray        # (B,) float64
    not_finite: np.ndarray  # (B,) pixels that are NaN or infinite
    missing: np.ndarray     # (B,) pixels that hold the no-data value


def band_statistics(cube: Any, nodata: float | None = None) -> BandStatistics:
    """One pass over a cube in memory or on disk, in blocks."""
    count = cube.shape[0]
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    not_finite, missing = np.zeros(count, np.int64), np.zeros(count, np.int64)
    marker = _marker(cube.dtype, nodata)
    for index in blocks(cube):
        block = np.asarray(cube[index])
        at = index[0]
        least, most = block.min((1, 2)), block.max((1, 2))
        if marker is not None or not np.isfinite(least).all() or not np.isfinite(most).all():
            finite = np.isfinite(block)
            gone = block == marker if marker is not None else np.zeros_like(finite)
            not_finite[at] += (~finite & ~gone).sum((1, 2))
            missing[at] += gone.sum((1, 2))
            valid = finite & ~gone
            ends = (np.inf, -np.inf) if block.dtype.kind == "f" else (np.iinfo(block.dtype).max,
                                                                      np.iinfo(block.dtype).min)
            least = np.where(valid.any((1, 2)), block.min((1, 2), where=valid, initial=ends[0]), np.inf)
            most = np.where(valid.any((1, 2)), block.max((1, 2), where=valid, initial=ends[1]), -np.inf)
        low[at], high[at] = np.minimum(low[at], least), np.maximum(high[at], most)
    empty = low > high
    low[empty] = high[empty] = np.nan
    return BandStatistics(low, high, not_finite, missing)


def _marker(dtype: np.dtype, nodata: float | None) -> Any:
    """The no-data value as the cube's own type stores it; None when there is none, or none that it can hold."""
    dtype = np.dtype(dtype)
    if nodata is None or math.isnan(nodata):
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(nodata)
    limits = np.iinfo(dtype)
    return dtype.type(int(nodata)) if float(nodata).is_integer() and limits.min <= nodata <= limits.max else None


@dataclass(frozen=True)
class BadBand:
    """A band that cannot be used as it is. `pixels` counts its invalid ones; they can be filled if others are valid."""
    index: int
    reason: str
    pixels: int = 0
    fillable: bool = False


def find_bad_bands(cube: Any, nodata: float | None = None) -> list[BadBand]:
    """Bands with NaN, infinite or no-data pixels, constant bands, and dead ones (no valid pixel); indices from 0."""
    found = []
    statistics = band_statistics(cube, nodata)
    pixels = cube.shape[1] * cube.shape[2]
    for band, (low, high) in enumerate(zip(statistics.low, statistics.high, strict=True)):
        not_finite, missing = int(statistics.not_finite[band]), int(statistics.missing[band])
        bad = not_finite + missing
        if bad == pixels:
            found.append(BadBand(band, "dead (no valid pixel)", bad))
        elif low == high:
            found.append(BadBand(band, f"constant ({low:g})", bad))
        elif bad:
            reasons = [f"{n} {what} pixel{'s' * (n != 1)}" for n, what in
                       ((not_finite, "NaN or infinite"), (missing, f"no-data ({nodata:g})" if missing else "")) if n]
            found.append(BadBand(band, " and ".join(reasons), bad, fillable=True))
    return found


def parse_bands(text: str | Sequence[int], count: int) -> list[int]:
    """Band indices, counted from 0, from text such as "0-49,60"; ends included, sorted, each once.

    Raises:
        UserError: it is no such list, or names a band outside 0 .. count - 1.
    """
    if isinstance(text, str):
        chosen: set[int] = set()
        for part in filter(None, (p.strip() for p in text.split(","))):
            first, dash, last = part.partition("-")
            try:
                ends = int(first), int(last if dash else first)
            except ValueError:
                raise UserError(f"'{text}' is no list of bands; write indices and ranges counted from 0, such as "
                                f"0-49,60.") from None
            if ends[0] > ends[1]:
                raise UserError(f"The bands '{part}' run backwards; write {ends[1]}-{ends[0]}.")
            chosen.update(range(ends[0], min(ends[1], count) + 1))
    else:
        chosen = set(map(int, text))
    outside = [b for b in chosen if not 0 <= b < count]
    if outside or not chosen:
        found = f"'{text}' names band {max(outside, key=abs)}" if outside else f"'{text}' names no band"
        raise UserError(f"{found}, and the scene has bands 0 to {count - 1}.")
    return sorted(chosen)


def select_bands(scene: Scene, bands: Sequence[int]) -> Scene:
    """The scene of some of its bands (indices from 0), with their wavelengths, names and per-band metadata."""
    bands, count = list(bands), scene.cube.shape[0]
    if bands == list(range(count)):
        return scene
    runs = all(b - a == 1 for a, b in pairwise(bands))
    cube: Any = scene.cube
    if runs and not isinstance(cube, LazyCube):
        cube = cube[bands[0]:bands[-1] + 1]
    elif isinstance(cube, LazyCube | np.memmap):
        whole = cube

        def read(b: slice, r: slice, c: slice) -> np.ndarray:
            wanted = bands[b]
            return whole[wanted[0]:wanted[-1] + 1, r, c][[i - wanted[0] for i in wanted]]

        cube = LazyCube((len(bands), *whole.shape[1:]), whole.dtype, read,
                        whole.slowest if isinstance(whole, LazyCube) else int(np.argmax(np.abs(whole.strides))),
                        getattr(whole, "grain", 1))
    else:
        cube = cube[bands]
    metadata = _per_band(scene.metadata, bands, count)
    source = metadata.get("source_bands", range(count))
    metadata["source_bands"] = [source[b] for b in bands]
    return dataclasses.replace(
        scene, cube=cube, metadata=metadata,
        wavelengths=None if scene.wavelengths is None else np.asarray(scene.wavelengths)[bands],
        band_names=None if scene.band_names is None else [scene.band_names[b] for b in bands])


NOT_PER_BAND = {"map info", "projection info", "coordinate system string", "geo points", "pixel size", "class names",
                "class lookup", "default bands", "source_bands"}


def _per_band(metadata: dict[str, Any], bands: list[int], count: int) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name, value in metadata.items():
        if isinstance(value, dict):
            value = _per_band(value, bands, count)
        elif name == "default bands":  # numbers from 1, meant for display
            try:
                value = [str(bands.index(int(b) - 1) + 1) for b in value]
            except (ValueError, TypeError):
                continue
        elif isinstance(value, list) and len(value) == count and name not in NOT_PER_BAND:
            value = [value[b] for b in bands]
        chosen[name] = value
    return chosen


def clean(scene: Scene, drop_bad_bands: bool = False, fill_nodata: bool = False,
          bands: str | Sequence[int] | None = None, drop: str | Sequence[int] | None = None) -> Scene:
    """The scene with bands that a network can take: chosen ones, none of them bad; else a refusal naming these.

    Args:
        scene: in memory or on disk; a cube on disk is read once and stays there, unless pixels are filled.
        drop_bad_bands: leave out the constant and dead bands, and those with invalid pixels unless these are filled.
        fill_nodata: give NaN, infinite and no-data pixels the value of the nearest valid pixel of their band. Pixels
            that are invalid in every band are remembered, and are no-data again in what `scaled` makes of the scene.
        bands, drop: bands to take or to leave out before anything else, "0-49,60" or indices from 0.

    Raises:
        UserError: bad bands are found that it was not asked to drop or fill, or fewer than 2 bands remain.
    """
    count = scene.cube.shape[0]
    wanted = parse_bands(bands, count) if bands is not None else list(range(count))
    if drop is not None:
        wanted = [b for b in wanted if b not in set(parse_bands(drop, count))]
    name = scene.path or scene.name
    if len(wanted) < 2:
        raise UserError(f"{name} would have {len(wanted)} of its {count} bands left, and at least 2 are needed; choose "
                        f"others.")
    scene = select_bands(scene, wanted)
    bad = find_bad_bands(scene.cube, scene.nodata)
    if not bad:
        return scene
    filled = [b for b in bad if fill_nodata and b.fillable]
    refused = [b for b in bad if b not in filled]
    if refused and not drop_bad_bands:
        numbers = scene.metadata.get("source_bands", range(count))
        flags = ["--drop-bad-bands to leave these bands out"]
        if any(b.fillable for b in refused):
            flags.append("--fill-nodata to fill single pixels from their neighbours")
        raise UserError(f"{name} has {len(refused)} bad band{'s' * (len(refused) != 1)} (counted from 0): "
                        f"{_summary(refused, numbers)}; give {' or '.join(flags)}.")
    if refused:
        gone = {b.index for b in refused}
        kept = [b for b in range(scene.cube.shape[0]) if b not in gone]
        if len(kept) < 2:
            hint = "fill them with --fill-nodata" if any(b.fillable for b in refused) else "use another scene"
            raise UserError(f"{name} has only {len(kept)} band{'s' * (len(kept) != 1)} without bad pixels "
                            f"({_summary(refused, scene.metadata.get('source_bands', range(count)))}); {hint}.")
        scene = select_bands(scene, kept)
    return _filled(scene) if filled else scene


def _summary(bad: list[BadBand], numbers: Sequence[int], most: int = 8) -> str:
    """"3-5 constant (0), 9 dead (no valid pixel)": neighbours with the same fault together."""
    named = [(numbers[b.index], b.reason) for b in bad]
    groups = []
    for _, run in groupby(enumerate(named), lambda item: (item[1][0] - item[0], item[1][1])):
        run = [item for _, item in run]
        first, last = run[0][0], run[-1][0]
        groups.append(f"{first if first == last else f'{first}-{last}'} {run[0][1]}")
    return ", ".join(groups[:most]) + (f" and {len(groups) - most} more" if len(groups) > most else "")


def _filled(scene: Scene) -> Scene:
    if type(scene.cube) is np.ndarray:
        cube = scene.cube.copy(order="C")
    else:
        cube = scratch(scene.cube.shape, native(scene.cube.dtype))
        for index in blocks(scene.cube):
            cube[index] = scene.cube[index]
    marker = _marker(cube.dtype, scene.nodata)
    everywhere, before, nearest = np.ones(cube.shape[1:], bool), None, None
    for band in cube:
        invalid = ~np.isfinite(band)
        if marker is not None:
            invalid |= band == marker
        everywhere &= invalid
        if invalid.any():
            if before is None or not np.array_equal(invalid, before):  # a scene's border is the same in all its bands
                before = invalid
                nearest = scipy.ndimage.distance_transform_edt(invalid, return_distances=False, return_indices=True)
            band[invalid] = band[nearest[0][invalid], nearest[1][invalid]]
    return dataclasses.replace(scene, cube=cube, metadata={**scene.metadata, "missing": everywhere})


def value_range(scene: Scene, keep: bool = False) -> tuple[float, float]:
    """Smallest and largest value of a scene in float64, read in blocks: what becomes 0 and 1.

    Args:
        keep: its values are in [0, 1] already, and stay what they are; the range is (0, 1) then.

    Raises:
        UserError: the scene holds NaN or infinite values, is constant, or with `keep` leaves [0, 1].
    """
    place = str(scene.path or scene.name)
    if not keep:
        return _limits(scene.cube, place)
    statistics = band_statistics(scene.cube)
    low, high = float(statistics.low.min()), float(statistics.high.max())
    if not (low >= 0 and high <= 1):
        raise UserError(f"{place} holds values from {low:g} to {high:g}, and --keep-range expects them in [0, 1]; leave it out "
                        "to scale them by their minimum and maximum.")
    return 0.0, 1.0


def _limits(cube: Any, place: str) -> tuple[float, float]:
    statistics = band_statistics(cube)
    if statistics.not_finite.any():
        raise UserError(f"{place} has {int(statistics.not_finite.sum())} values that are NaN or infinite, where numbers were "
                        "expected; drop those bands or fill them first (--drop-bad-bands, --fill-nodata).")
    low, high = float(statistics.low.min()), float(statistics.high.max())
    if not high > low:
        raise UserError(f"{place} is constant ({low:g}), and has no contrast to work on; leave it out.")
    return low, high


def unit_range(cube: Any, low: float | None = None, high: float | None = None) -> tuple[np.ndarray, float, float]:
    """``(cube - low) / (high - low)`` in float64, returned as float32, with the low and high used.

    Without low or high they are the cube's own minimum and maximum, and the result lies in [0, 1]; values outside given
    limits are left outside.

    Raises:
        UserError: the cube is constant, or holds NaN or infinite values.
    """
    if low is None or high is None:
        least, most = _limits(cube, "The cube")
        low, high = least if low is None else low, most if high is None else high
    span = float(high) - float(low)
    if not span > 0 or not math.isfinite(span):
        raise UserError(f"The cube's values run from {low:g} to {high:g}, where a range was expected; it has no "
                        f"contrast to work on.")
    unit = np.empty(cube.shape, np.float32)
    for index in blocks(cube, target=4 << 20):
        unit[index] = (np.asarray(cube[index]).astype(np.float64) - low) / span
    return unit, float(low), float(high)


def from_unit_range(cube: np.ndarray, low: float, high: float, dtype: Any, on_overflow: str = "refuse") -> np.ndarray:
    """``low + cube * (high - low)`` in float64, rounded for an integer `dtype`; the opposite of `unit_range`.

    Args:
        cube: any shape, about [0, 1].
        low, high: as `unit_range` returned them.
        dtype: of the result.
        on_overflow: what happens to values that `dtype` cannot hold: "refuse" or "clip".

    Raises:
        UserError: values overflow `dtype` and on_overflow is "refuse", or NaN is to become an integer.
    """
    if on_overflow not in ("refuse", "clip"):
        raise ValueError(f"on_overflow is {on_overflow!r}, expected 'refuse' or 'clip'")
    dtype = np.dtype(dtype)
    values = np.asarray(cube, np.float64) * (float(high) - float(low)) + float(low)
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        least, most = float(limits.min), float(limits.max)
        outside = int(((values < least) | (values > most)).sum()) if dtype.itemsize < 8 else 0
    else:
        values = np.rint(values, out=values) if values.ndim else np.rint(values)
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        if np.isnan(values).any():
            raise UserError(f"The result holds NaN, which {dtype} cannot; write a floating-point type.")
        outside = int(((values < least) | (values > most)).sum())
    if outside and on_overflow == "refuse":
        raise UserError(f"{outside} values of the result ({values.min():g} .. {values.max():g}) do not fit {dtype} "
                        f"({least} .. {most}); clip them, or write a wider type.")
    if outside:
        if dtype.kind == "f":
            return np.clip(values, least, most).astype(dtype)
        # compared as float64, which cannot hold every limit of 64-bit integers
        above, below = values >= float(most), values <= float(least)
        whole = np.where(above | below, 0, values).astype(dtype)
        whole[above], whole[below] = most, least
        return whole
    return values.astype(dtype)


# ------------------------------------------------------------------------------------------------------------ writing

def scaled(scene: Scene, cube: Any, scale: int) -> Scene:
    """The Scene of `cube`, which covers the ground of `scene` with pixels `scale` times smaller.

    Corner, CRS, wavelengths, names and other metadata are kept; the transform's and map info's pixels are `scale` times
    smaller. Pixels that `clean` filled in every band are no-data again where the scene has such a value and `cube` is
    in memory and of the finer grid; `cube` itself is not changed.
    """
    metadata = dict(scene.metadata)
    missing = metadata.pop("missing", None)
    marker = _marker(cube.dtype, scene.nodata) if type(cube) is np.ndarray else None
    finer = missing is not None and cube.shape[1:] == tuple(n * scale for n in missing.shape)
    if finer and missing.any() and marker is not None:
        cube = cube.copy()
        cube[:, missing.repeat(scale, 0).repeat(scale, 1)] = marker
    if "header" in metadata:
        metadata["header"] = _scaled_header(metadata["header"], scale)
    transform = scene.transform
    if transform is not None:
        a, b, c, d, e, f = transform
        transform = (a / scale, b / scale, c, d / scale, e / scale, f)
    return dataclasses.replace(scene, cube=cube, transform=transform, metadata=metadata)


def _scaled_header(header: dict[str, Any], scale: int) -> dict[str, Any]:
    """An ENVI header for smaller pixels; its reference pixel counts from 1.0 at the first pixel's outer corner."""
    header = {k: v for k, v in header.items() if k not in ("geo points", "x start", "y start")}
    info = header.get("map info")
    if isinstance(info, list) and len(info) >= 7:
        try:
            reference = [_number((float(v) - 1) * scale + 1) for v in info[1:3]]
            sizes = [_number(float(v) / scale) for v in info[5:7]]
        except ValueError:
            raise UserError(f"The map info {{{', '.join(info)}}} has something other than numbers for its reference "
                            f"pixel or pixel size; correct the ENVI header.") from None
        header["map info"] = [info[0], *reference, *info[3:5], *sizes, *info[7:]]
    size = header.get("pixel size")
    if isinstance(size, list) and len(size) >= 2:
        header["pixel size"] = [*(_number(float(v) / scale) for v in size[:2]), *size[2:]]
    return header


def _number(value: float) -> str:
    return repr(float(value))


@contextmanager
def create_scene(path: str | os.PathLike[str], like: Scene, shape: tuple[int, int, int] | None = None,
                 dtype: Any = None, overwrite: bool = False) -> Iterator[formats.CubeWriter]:
    """A writer for a cube of `shape` (B, H, W): ``writer[:, r0:r1, c0:c1] = block``; the file appears when it ends.

    The container is the suffix's: .mat (v7.3 when `like` is, or above 2 GB; else v5), .h5/.hdf5, .npy, .npz, .hdr or
    the name of an ENVI data file, .tif. Key, layout, interleave, byte order and all metadata are `like`'s. Blocks go to
    disk as they come; for v5 .mat and .npz they are collected in memory.

    Raises:
        UserError: the suffix is unknown, the file exists and `overwrite` is False, the format cannot hold `dtype`, or
            the disk is full or not writable; nothing is left under the final name then.
    """
    path = Path(path)
    shape = tuple(like.cube.shape if shape is None else shape)
    dtype = native(like.cube.dtype if dtype is None else dtype)
    with formats.create(path, like, shape, dtype, overwrite) as writer:
        yield writer


def write_scene(path: str | os.PathLike[str], scene: Scene, overwrite: bool = False) -> None:
    """Write a scene as `create_scene` says; what is read back has the same cube, key, layout and metadata."""
    with create_scene(path, scene, overwrite=overwrite) as writer:
        for index in writer.blocks():
            writer[index] = scene.cube[index]
