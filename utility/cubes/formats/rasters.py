"""GeoTIFF, read and written; JPEG 2000, read."""
from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

# GDAL opens no address, whatever a file says
os.environ.setdefault("CPL_VSIL_CURL_ALLOWED_FILENAME", "none")

os.environ.setdefault("GDAL_CACHEMAX", "64")  # MB, instead of a twentieth of the machine's memory

import rasterio
import rasterio.shutil
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.windows import Window

from utility.cubes.cube import (
    CubeWriter,
    LazyCube,
    Scene,
    Shape,
    Stored,
    Target,
    read_from,
    reserve,
    writing,
)
from utility.cubes.fields import band_facts, band_tags, decimal, merged, wavelengths_in
from utility.cubes.formats.header import header_of, quiet, read_fields
from utility.cubes.ground import Points
from utility.system.errors import UserError
from utility.system.files import remove, replacing
from utility.system.memory import require_memory

DRIVERS = {**dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "GTiff"),
           **dict.fromkeys((b"\0\0\0\x0cjP  ", b"\xffO\xffQ"), "JP2OpenJPEG")}
"""First bytes of a file -> the only driver that may open the file. Others follow what the file says
to other files and to the network (VRT, WMS, ...)."""

TITLES = {"GTiff": "GeoTIFF", "JP2OpenJPEG": "JPEG 2000"}
"""The format of each driver, in words."""

TILE, STRIPED, PADDED = 256, 64, 1.25
"""Rows and columns of a tile of a GeoTIFF that is written; rows of a strip, in a narrower one and
where nothing is compressed and whole tiles would be more than `PADDED` times the image."""

LOSSLESS = ("DEFLATE", "LZW", "ZSTD", "PACKBITS")
"""Compressions of a GeoTIFF that a result takes over; the first stands in for all others."""


def driver_of(head: bytes) -> str | None:
    """The driver for a file with these first bytes; None for other files."""
    return next((driver for start, driver in DRIVERS.items() if head.startswith(start)), None)


def driver_in(path: Path) -> str | None:
    """The driver for a file; None for what is no raster."""
    with open(path, "rb") as file:
        return driver_of(file.read(16))


def is_raster(path: Path) -> bool:
    """Whether a file is one that a driver of DRIVERS opens, by its first bytes."""
    return driver_in(path) is not None


def _opened(path: Path) -> Any:
    return rasterio.open(path.absolute(), driver=driver_in(path))


def is_scene(path: Path) -> bool:
    """Whether a raster in a folder is a scene: of 2 bands or pages at least, or damaged."""
    try:
        with quiet(), _opened(path) as source:
            return source.count >= 2 or len(source.subdatasets) >= 2
    except (RasterioError, OSError, ValueError):
        return True


def open_raster(path: Path, key: str | None) -> Stored:
    """A raster of many bands, or a TIFF of as many pages of one band."""
    with quiet():
        source = _opened(path)
    if source.count == 1 and len(source.subdatasets) >= 2:
        return open_stack(path, _pages(path, source), "GTiff",
                          f"{len(source.subdatasets)} pages are the bands")
    notes = []
    with quiet():
        alpha, missing = _masked(source, path)
        if not alpha and _holds_mask(source):
            alpha, missing = source.count, source.read(source.count) == 0
            notes = [f"band {alpha} holds {np.iinfo(source.dtypes[-1]).max} and 0 alone, and is "
                     "taken for an alpha band"]
    indexes = [i for i in source.indexes if i != alpha]
    if len(indexes) < 2:
        inside = (
            f" of its own and {len(source.subdatasets)} subdatasets" if source.subdatasets else "")
        raise UserError(f"{path} is a raster with {len(indexes)} "
                        f"band{'s' * (len(indexes) != 1)}{inside}, and a hyperspectral cube needs "
                        "at least 2 bands; give a raster of all bands.")
    if len(set(source.dtypes)) > 1:
        raise UserError(f"{path} has bands of different data types "
                        f"({', '.join(sorted(set(source.dtypes)))}), where one was expected; "
                        "convert it to one type.")
    declared = [source.nodatavals[i - 1] for i in indexes]
    nodata = next((value for value in declared if value is not None), None)
    own = {b: value
           for b, value in enumerate(declared)
           if value not in (None, nodata) and not math.isnan(value)}

    def read(b: slice, r: slice, c: slice) -> np.ndarray:
        with read_from(path, RasterioError, OSError):
            block = source.read(indexes[b], window=_window(r, c))
        for band in own.keys() & range(b.start, b.stop):  # a scene has one no-data value
            plane = block[band - b.start]
            plane[plane == own[band]] = nodata
        return block

    tile = math.prod(source.block_shapes[0]) * np.dtype(source.dtypes[0]).itemsize
    by_pixel = source.interleaving is not None and source.interleaving.value == "PIXEL"
    require_memory(tile * (source.count if by_pixel else 1), f"{path}, one tile of it,")
    cube = LazyCube((len(indexes), source.height, source.width), source.dtypes[0], read,
                    slowest=1 if by_pixel else 0,
                    grain=source.block_shapes[0][0] if by_pixel else 1)
    facts, about = _band_facts(path, source, indexes)
    return Stored(cube, format="raster", layout="BHW", metadata=_kept(source, indexes),
                  notes=notes + about, missing=missing, **_place(source),
                  **facts | {"nodata": facts.get("nodata") if nodata is None else nodata})


def _place(source: Any) -> dict[str, Any]:
    return {"crs": source.crs.to_wkt() if source.crs else None,
            "transform": None if source.transform.is_identity else tuple(source.transform)[:6]}


def _kept(source: Any, indexes: list[int]) -> dict[str, Any]:
    """What another GeoTIFF takes over as it is: tags, compression, control points and the
    coefficients of a camera."""
    keep = {"tags": source.tags(), "band_tags": [source.tags(i) for i in indexes],
            "imagery": [source.tags(i, ns="IMAGERY") for i in indexes],
            "compression": source.compression and source.compression.value}
    points, crs = source.gcps
    if points:
        keep["gcps"] = Points(tuple((p.row, p.col, p.x, p.y, p.z or 0.0) for p in points),
                              crs.to_wkt() if crs else None)
    if source.rpcs:
        keep["rpcs"] = source.rpcs
    return keep


def _band_facts(path: Path, source: Any, indexes: list[int]) -> tuple[dict[str, Any], list[str]]:
    """Facts on the bands: of the file (the ENVI domain, which holds all digits), of a header beside
    it, of each band."""
    bands = len(indexes)
    names = [source.descriptions[i - 1] or "" for i in indexes]
    own, notes = band_facts(
        {name.lower().replace("_", " "): text for name, text in source.tags(ns="ENVI").items()},
        bands)
    header, about = facts_beside(path, bands)
    gain, offset = ([values[i - 1] for i in indexes] for values in (source.scales, source.offsets))
    plain = set(gain) == {1.0} and set(offset) == {0.0}
    named = wavelengths_in(names)
    sources = [{"gain": None if plain else np.array(gain),
                "offset": None if plain else np.array(offset)},
               {"band_names": names if any(names) else None}, own, header,
               *(band_tags([source.tags(i, ns=domain) for i in indexes])
                 for domain in ("ENVI", None, "IMAGERY")),
               {"wavelengths": named, "wavelengths_by": "the names of the bands"}
               if named is not None else {}]
    return merged(*sources), notes + about


def facts_beside(path: Path, bands: int) -> tuple[dict[str, Any], list[str]]:
    """Facts on the bands of a raster in an ENVI header beside it; nothing where there is none for
    as many bands."""
    header = header_of(path)
    if header is None:
        return {}, []
    try:
        fields = read_fields(header)
    except UserError:
        return {}, [f"{header.name} beside it is not readable"]
    if str(fields.get("bands", bands)).strip() != str(bands):
        return {}, [f"{header.name} beside it describes {fields['bands']} bands, and is left out"]
    facts, notes = band_facts(fields, bands)
    if facts["wavelengths_by"]:
        facts["wavelengths_by"] = header.name
    return facts, notes


def _masked(source: Any, path: Path) -> tuple[int | None, np.ndarray | None]:
    """The number of the alpha band, and (H, W), True where the file's masks or that band say that
    nobody measured.

    GDAL calls the fourth of four bands of bytes alpha, whatever it holds: there a band is one whose
    values are but 0 and one other.
    """
    with suppress(Exception):  # GDAL answers the first question with what is wrong in an .aux.xml
        source.colorinterp  # noqa: B018
    alpha = next((i for i, use in zip(source.indexes, source.colorinterp, strict=True)
                  if use == ColorInterp.alpha), None)
    if alpha:
        band = source.read(alpha)
        guessed = source.count == 4 and source.dtypes[0] == "uint8"
        if guessed and ((band != 0) & (band != band.max())).mean() > 0.01:
            return None, None
        return alpha, band == 0 if (band == 0).any() else None
    sidecar = path.with_name(f"{path.name}.msk")
    # GDAL would open it, whatever it is and wherever it leads
    if sidecar.exists() and driver_in(sidecar) != "GTiff":
        return None, None
    no_mask = {MaskFlags.all_valid, MaskFlags.nodata}
    own = [i for i, flags in zip(source.indexes, source.mask_flag_enums, strict=True)
           if not no_mask & set(flags)]
    shared = any(MaskFlags.per_dataset in source.mask_flag_enums[i - 1] for i in own)
    if not own:
        return None, None
    missing = np.zeros(source.shape, bool)
    for i in own[:1] if shared else own:
        missing |= source.read_masks(i) == 0
    return None, missing if missing.any() else None


LARGEST = 1 << 28
"""Pixels of an image, or of a block, above which no band is read to tell if it is alpha."""


def _holds_mask(source: Any) -> bool:
    """Whether the last band is an undeclared alpha band: the type's largest value and 0 alone.

    GDAL forgets the use of a band that is told after its values are written.
    """
    if (source.count < 3 or source.dtypes[-1] not in ("uint8", "uint16")
            or max(map(math.prod, (source.shape, source.block_shapes[-1]))) > LARGEST):
        return False
    ends, seen = {0, np.iinfo(source.dtypes[-1]).max}, set()
    for _, window in source.block_windows(source.count):
        seen |= set(np.unique(source.read(source.count, window=window)).tolist())
        if not seen <= ends:
            return False
    return seen == ends


def _pages(path: Path, source: Any) -> list[tuple[Path, str]]:
    """File and GDAL's name of each page, in the order of the file; GDAL lists page 10 before 2."""
    found = {}
    for name in source.subdatasets:
        kind, number, file = name.split(":", 2)
        if kind == "GTIFF_DIR" and Path(file) == path.absolute():
            found[int(number)] = path, name
    return [found[number] for number in sorted(found)]


def open_stack(path: Path, bands: Sequence[tuple[Path, str]], driver: str, note: str) -> Stored:
    """A cube whose bands are rasters of their own; of several channels the first is the band.

    Args:
        path: of the scene, for messages.
        bands: for each band its file, and its name for GDAL.
        driver: of GDAL, the only one that may open them.

    Raises UserError: they differ in size or type, or one cannot be read.
    """
    opened: dict[int, Any] = {}

    def band(index: int) -> Any:
        if index not in opened:
            if len(opened) > 64:  # files held open
                opened.pop(next(iter(opened))).close()
            file, name = bands[index]
            with read_from(file, RasterioError, OSError), quiet():
                opened[index] = rasterio.open(name, driver=driver)
        return opened[index]

    first = band(0)
    dtype, (height, width) = first.dtypes[0], first.shape
    facts = _place(first) | {
        "nodata": first.nodata,
        "metadata": {"compression": first.compression and first.compression.value}}
    kinds = {(one.height, one.width, one.dtypes[0]) for one in map(band, range(len(bands)))}
    if len(kinds) > 1:
        found = ", ".join(f"{rows} x {columns} {dtype}" for rows, columns, dtype in sorted(kinds))
        raise UserError(
            f"{path} holds bands of different sizes or types ({found}), where one was expected.")

    def read(b: slice, r: slice, c: slice) -> np.ndarray:
        block = np.empty((b.stop - b.start, r.stop - r.start, c.stop - c.start), dtype)
        for place, index in enumerate(range(b.start, b.stop)):
            with read_from(bands[index][0], RasterioError, OSError):
                block[place] = band(index).read(1, window=_window(r, c))
        return block

    cube = LazyCube((len(bands), height, width), dtype, read)
    return Stored(cube, format="raster", layout="BHW", notes=[note], **facts)


def _window(rows: slice, columns: slice) -> Window:
    return Window(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)


@contextmanager
def create_raster(target: Target) -> Iterator[CubeWriter]:
    like, (bands, height, width) = target.like, target.shape
    profile: dict[str, Any] = {"driver": "GTiff", "count": bands, "height": height, "width": width,
                               "dtype": target.dtype.name, "nodata": like.nodata,
                               "interleave": "band", "BIGTIFF": "IF_SAFER"}
    packing, overviews = _packing(like, target.dtype), like.metadata.get("cog", False)
    # tiles are stored whole, the last strip is not
    in_tiles = math.prod(math.ceil(n / TILE) * TILE for n in (height, width))
    padded = not (packing or overviews) and in_tiles > PADDED * height * width
    striped = min(height, width) < TILE or padded
    rows = min(height, STRIPED) if striped else TILE
    profile |= ({"blockysize": rows} if rows < TILE
                else {"tiled": True, "blockxsize": TILE, "blockysize": TILE})
    if like.transform is not None:
        profile["transform"] = rasterio.Affine(*like.transform)
    if like.crs:
        profile["crs"] = CRS.from_wkt(like.crs)
    whole = bands * (height * width if striped else in_tiles) * target.dtype.itemsize
    with replacing(target.path, target.overwrite) as final, ExitStack() as stack:
        # Overviews are made of the whole image, and lie before it in a cloud-optimised GeoTIFF.
        written = final.with_name(f"{final.name}.raw") if overviews else final
        if overviews:
            stack.callback(remove, written)
        with writing(target.path, RasterioError), quiet():
            # GDAL reports a full disk late or never, so the room is tried first
            for path in {written, final}:
                reserve(path, whole)
            for path in {written, final}:
                path.unlink()
            raster = rasterio.open(written, "w", **profile, **({} if overviews else packing))
        try:
            with writing(target.path, RasterioError):
                _describe(raster, like)

            def write(b: slice, r: slice, c: slice, block: np.ndarray) -> None:
                with writing(target.path, RasterioError):
                    raster.write(block.astype(target.dtype, copy=False),
                                 indexes=range(b.start + 1, b.stop + 1), window=_window(r, c))

            gathered = _TileRows(target.shape, target.dtype, rows, write)
            yield CubeWriter(target.path, target.shape, target.dtype, gathered.add)
            gathered.flush()
            with writing(target.path, RasterioError):
                raster.close()
                if not _is_whole(written, whole if overviews or not packing else 0):
                    raise OSError(errno.ENOSPC, "No space left on device")
                if overviews:
                    _pack(written, final, packing)
        finally:
            if not raster.closed:
                # the failure that led here is the one to report
                with suppress(OSError, RasterioError):
                    raster.close()


class _TileRows:
    """Collects blocks until a whole row of tiles is there: a tile that is written twice leaves a
    hole in a compressed file.

    Args:
        rows: of a tile.
        write: called with the slices and the values of bands over the whole width.
    """

    def __init__(self, shape: Shape, dtype: np.dtype, rows: int,
                 write: Callable[..., None]) -> None:
        self.shape, self.dtype, self.rows, self.write = shape, dtype, rows, write
        # by tile row: the values, and how many are still missing
        self._held: dict[int, tuple[np.ndarray, int]] = {}

    def add(self, b: slice, r: slice, c: slice, block: np.ndarray) -> None:
        bands, height, width = self.shape
        for top in range(r.start // self.rows * self.rows, r.stop, self.rows):
            bottom = min(top + self.rows, height)
            first, last = max(r.start, top), min(r.stop, bottom)
            part = block[:, first - r.start:last - r.start]
            if (first, last, c.start, c.stop) == (top, bottom, 0, width):
                self.write(b, slice(top, bottom), c, part)
                continue
            held, missing = self._held.pop(top, (None, bands * (bottom - top) * width))
            if held is None:
                held = np.zeros((bands, bottom - top, width), self.dtype)
            held[b, first - top:last - top, c] = part
            self._held[top] = held, missing - part.size
            if missing == part.size:
                self._write(top)

    def flush(self) -> None:
        """Write what is not complete, such as where values were given twice."""
        for top in sorted(self._held):
            self._write(top)

    def _write(self, top: int) -> None:
        held, _ = self._held.pop(top)
        self.write(slice(0, self.shape[0]), slice(top, top + held.shape[1]),
                   slice(0, self.shape[2]), held)


def _is_whole(path: Path, size: int) -> bool:
    """Whether a GeoTIFF has `size` bytes at least, and all of its tiles."""
    length = path.stat().st_size
    with quiet(), rasterio.open(path, driver="GTiff") as raster:
        (rows, columns), places = raster.block_shapes[0], 0
        # the tiles of a band lie together, the last band's behind all others
        for band in (1, raster.count):
            for row, column in product(range(-(-raster.height // rows)),
                                       range(-(-raster.width // columns))):
                name = f"{column}_{row}"
                start, count = (raster.get_tag_item(f"BLOCK_{what}_{name}", "TIFF", bidx=band)
                                for what in ("OFFSET", "SIZE"))
                places = max(places, int(start or length + 1) + int(count or 0))
    return max(size, places) <= length


def _packing(like: Scene, dtype: np.dtype) -> dict[str, Any]:
    """Options of GDAL for a compressed file; none where the values stay as they are.

    Integers are stored as differences, which every reader knows. For floating-point numbers they
    are not: half of the readers (PIL, OpenCV, tifffile by itself) cannot open such a file.
    """
    own = like.metadata.get("compression", LOSSLESS[0]) if like.format == "raster" else LOSSLESS[0]
    if not own:
        return {}
    how: dict[str, Any] = {"compress": own if own in LOSSLESS else LOSSLESS[0],
                           "num_threads": os.environ.get("GDAL_NUM_THREADS", "ALL_CPUS")}
    if how["compress"] != "PACKBITS" and dtype.kind != "f" and dtype.itemsize <= 4:
        how["predictor"] = 2
    return how


def _pack(source: Path, target: Path, packing: dict[str, Any]) -> None:
    """A cloud-optimised GeoTIFF: overviews before the pixels, and those in tiles."""
    with quiet(), rasterio.Env(GDAL_NUM_THREADS=os.environ.get("GDAL_NUM_THREADS", "ALL_CPUS")):
        with rasterio.open(source, "r+") as raster:
            levels = math.ceil(math.log2(max(256, *raster.shape) / 256))
            raster.build_overviews([2 ** (k + 1) for k in range(levels)], Resampling.average)
        rasterio.shutil.copy(source, target, driver="GTiff", interleave="band", bigtiff="IF_SAFER",
                             tiled=True, blockxsize=TILE, blockysize=TILE, copy_src_overviews=True,
                             **packing)


_TAGS = {"description": "IMAGEDESCRIPTION", "software": "SOFTWARE"}


def _describe(raster: Any, like: Scene) -> None:
    count, metadata = raster.count, like.metadata if like.format == "raster" else {}
    made = like.metadata.get("provenance", {})
    raster.update_tags(**{**metadata.get("tags", {}),
                          **{f"TIFFTAG_{_TAGS[name]}": text for name, text in made.items()}})
    tags = metadata.get("band_tags") or [{} for _ in range(count)]
    imagery = metadata.get("imagery") or [{} for _ in range(count)]
    columns = {"wavelength": like.wavelengths, "fwhm": like.fwhm,
               "bbl": None if like.good is None else like.good.astype(int)}
    for band in range(count):
        own = {k: v for k, v in tags[band].items() if not k.startswith("STATISTICS_")}
        had = {name.lower() for name in own}
        for name, values in columns.items():
            if (values is not None and name not in had
                    and not (name == "fwhm" and "wavelength" in had)):
                own[name] = decimal(values[band])
                own |= {f"{name}_units": "Nanometers"} if name != "bbl" else {}
        raster.update_tags(band + 1, **own)
        if imagery[band]:
            raster.update_tags(band + 1, ns="IMAGERY", **imagery[band])
        if like.band_names:
            raster.set_band_description(band + 1, like.band_names[band])
    if like.gain is not None:
        raster.scales = [float(value) for value in like.gain]
        raster.offsets = (
            [0.0] * count if like.offset is None else [float(value) for value in like.offset])
    if points := like.metadata.get("gcps"):
        raster.gcps = ([GroundControlPoint(*point) for point in points.rows],
                       CRS.from_wkt(points.crs) if points.crs else None)
    if like.metadata.get("rpcs"):
        raster.rpcs = like.metadata["rpcs"]
