"""GeoTIFF, read and written; JPEG 2000, read."""
from __future__ import annotations

import errno
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("CPL_VSIL_CURL_ALLOWED_FILENAME", "none")  # GDAL opens no address, whatever a file says

import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.windows import Window

from utility.cubes.companions import nanometres
from utility.cubes.cube import CubeWriter, LazyCube, Scene, Stored, Target, damaged, reserve, writing
from utility.system.errors import UserError
from utility.system.files import remove, replacing
from utility.system.memory import require_memory

DRIVERS = {**dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "GTiff"),
           **dict.fromkeys((b"\0\0\0\x0cjP  ", b"\xffO\xffQ"), "JP2OpenJPEG")}
"""First bytes of a file -> the only driver that may open the file. Others follow what the file says to other files and to the
network (VRT, WMS, ...)."""

TITLES = {"GTiff": "GeoTIFF", "JP2OpenJPEG": "JPEG 2000"}
"""The format of each driver, in words."""

LOSSLESS = ("DEFLATE", "LZW", "ZSTD", "PACKBITS")
"""Compressions of a GeoTIFF that a result takes over; the first stands in for others, and for inputs of other containers."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings: rasters without georeference and ENVI headers with capitals are both usual."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def driver_of(head: bytes) -> str | None:
    """The driver for a file with these first bytes; None for other files."""
    return next((driver for start, driver in DRIVERS.items() if head.startswith(start)), None)


def _opened(path: Path) -> Any:
    with open(path, "rb") as file:
        driver = driver_of(file.read(16))
    return rasterio.open(path.absolute(), driver=driver)


def is_scene(path: Path) -> bool:
    """Whether a raster in a folder is a scene: it has at least 2 bands, or is damaged, which opening it says."""
    try:
        with quiet(), _opened(path) as source:
            return source.count >= 2
    except (RasterioError, OSError, ValueError):
        return True


def open_raster(path: Path, key: str | None) -> Stored:
    with quiet():
        source = _opened(path)
    alpha, missing = _masked(source, path)
    indexes = [i for i in source.indexes if i != alpha]
    if len(indexes) < 2:
        inside = f" of its own and {len(source.subdatasets)} subdatasets" if source.subdatasets else ""
        raise UserError(f"{path} is a raster with {len(indexes)} band{'s' * (len(indexes) != 1)}{inside}, and a "
                        f"hyperspectral cube needs at least 2 bands; give a raster of all bands.")
    if len(set(source.dtypes)) > 1:
        raise UserError(f"{path} has bands of different data types ({', '.join(sorted(set(source.dtypes)))}), where "
                        f"one was expected; convert it to one type.")
    declared = [source.nodatavals[i - 1] for i in indexes]
    nodata = next((value for value in declared if value is not None), None)
    own = {b: value for b, value in enumerate(declared) if value not in (None, nodata) and not math.isnan(value)}

    def read(b: slice, r: slice, c: slice) -> np.ndarray:
        try:
            block = source.read(indexes[b], window=_window(r, c))
        except (RasterioError, OSError) as error:
            raise damaged(path, error) from error
        for band in own.keys() & range(b.start, b.stop):  # a scene has one no-data value
            plane = block[band - b.start]
            plane[plane == own[band]] = nodata
        return block

    tile = math.prod(source.block_shapes[0]) * np.dtype(source.dtypes[0]).itemsize
    by_pixel = source.interleaving is not None and source.interleaving.value == "PIXEL"
    require_memory(tile * (source.count if by_pixel else 1), f"{path}, one tile of it,")
    cube = LazyCube((len(indexes), source.height, source.width), source.dtypes[0], read, slowest=1 if by_pixel else 0,
                    grain=source.block_shapes[0][0] if by_pixel else 1)
    names = [source.descriptions[i - 1] or "" for i in indexes]
    keep = {"tags": source.tags(), "band_tags": [source.tags(i) for i in indexes],
            "imagery": [source.tags(i, ns="IMAGERY") for i in indexes],
            "scales": [source.scales[i - 1] for i in indexes], "offsets": [source.offsets[i - 1] for i in indexes],
            "compression": source.compression and source.compression.value}
    return Stored(cube, format="raster", layout="BHW",
                  wavelengths=_wavelengths(keep["band_tags"], keep["imagery"], names),
                  band_names=names if any(names) else None, nodata=nodata, missing=missing,
                  crs=source.crs.to_wkt() if source.crs else None,
                  transform=None if source.transform.is_identity else tuple(source.transform)[:6], metadata=keep)


def _masked(source: Any, path: Path) -> tuple[int | None, np.ndarray | None]:
    """The number of the alpha band, and (H, W), True where the file's masks or that band say that nobody measured.

    GDAL calls the fourth of four bands of bytes alpha, whatever it holds: a band is one whose values are but 0 and one other.
    """
    alpha = next((i for i, use in zip(source.indexes, source.colorinterp, strict=True) if use == ColorInterp.alpha), None)
    if alpha:
        band = source.read(alpha)
        if ((band != 0) & (band != band.max())).mean() > 0.01:
            return None, None
        return alpha, band == 0 if (band == 0).any() else None
    sidecar = path.with_name(f"{path.name}.msk")
    if sidecar.exists():
        with open(sidecar, "rb") as file:
            if driver_of(file.read(16)) != "GTiff":  # GDAL would open it, whatever it is and wherever it leads
                return None, None
    own = [i for i, flags in zip(source.indexes, source.mask_flag_enums, strict=True)
           if not {MaskFlags.all_valid, MaskFlags.nodata} & set(flags)]
    shared = any(MaskFlags.per_dataset in source.mask_flag_enums[i - 1] for i in own)
    missing = np.zeros(source.shape, bool)
    for i in own[:1] if shared else own:
        missing |= source.read_masks(i) == 0
    return None, missing if missing.any() else None


def _window(rows: slice, columns: slice) -> Window:
    return Window(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)


def _wavelengths(tags: list[dict], imagery: list[dict], names: list[str]) -> np.ndarray | None:
    """Centre wavelengths in nm from band tags, GDAL's IMAGERY domain, or band names such as '550.5 nm'; all or none."""
    found, units = [], []
    for tag, image, name in zip(tags, imagery, names, strict=True):
        lower = {k.lower(): v for k, v in tag.items()}
        named = re.search(r"(\d+(?:\.\d+)?)\s*(nm|nanometers|nanometres|um|µm|micrometers|microns)\b", name, re.I)
        if "wavelength" in lower:
            value, unit = lower["wavelength"], lower.get("wavelength_units") or lower.get("wavelength_unit", "")
        elif "CENTRAL_WAVELENGTH_UM" in image:
            value, unit = image["CENTRAL_WAVELENGTH_UM"], "um"
        elif named:
            value, unit = named.groups()
        else:
            return None
        try:
            found.append(float(value))
        except ValueError:
            return None
        units.append(unit.lower())
    return nanometres(found, units[0]) if len(set(units)) == 1 else None


@contextmanager
def create_raster(target: Target) -> Iterator[CubeWriter]:
    like, (bands, height, width) = target.like, target.shape
    profile: dict[str, Any] = {
        "driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": target.dtype.name,
        "nodata": like.nodata, "interleave": "band", "BIGTIFF": "IF_SAFER"}
    tile = 256 if min(height, width) >= 256 else 1
    if tile > 1:
        profile.update(tiled=True, blockxsize=tile, blockysize=tile)
    if like.transform is not None:
        profile["transform"] = rasterio.Affine(*like.transform)
    if like.crs:
        profile["crs"] = rasterio.crs.CRS.from_wkt(like.crs)
    whole = bands * math.prod(math.ceil(n / tile) * tile for n in (height, width)) * target.dtype.itemsize
    how = _packing(like, target.dtype, tile)
    with replacing(target.path, target.overwrite) as final, ExitStack() as stack:
        # Tiles that are rewritten in a compressed file leave holes, so the file is compressed when it is whole.
        temporary = final.with_name(f"{final.name}.raw") if how else final
        if how:
            stack.callback(remove, temporary)
        with writing(target.path, RasterioError), quiet():
            for path in {temporary, final}:  # GDAL reports a full disk late or never, so the room is tried first
                reserve(path, whole)
            for path in {temporary, final}:
                path.unlink()
            raster = rasterio.open(temporary, "w", **profile)
        try:
            with writing(target.path, RasterioError):
                _describe(raster, like)

            def write(b: slice, r: slice, c: slice, block: np.ndarray) -> None:
                with writing(target.path, RasterioError):
                    raster.write(block.astype(target.dtype, copy=False), indexes=range(b.start + 1, b.stop + 1),
                                 window=_window(r, c))

            yield CubeWriter(target.path, target.shape, target.dtype, write)
            with writing(target.path, RasterioError):
                raster.close()
                if temporary.stat().st_size < whole:
                    raise OSError(errno.ENOSPC, "No space left on device")
                if how:
                    _pack(temporary, final, how)
        finally:
            if not raster.closed:
                with suppress(OSError, RasterioError):  # the failure that led here is the one to report
                    raster.close()


def _packing(like: Scene, dtype: np.dtype, tile: int) -> dict[str, Any]:
    """Options of GDAL for the file as it is kept; none where it stays as it is written."""
    own = like.metadata.get("compression", LOSSLESS[0]) if like.format == "raster" else LOSSLESS[0]
    overviews = like.metadata.get("cog", False)
    how: dict[str, Any] = {"copy_src_overviews": True} if overviews else {}
    if own:
        how["compress"] = own if own in LOSSLESS else LOSSLESS[0]
        if how["compress"] != "PACKBITS":
            how["predictor"] = 3 if dtype.kind == "f" else 2
    if how and (tile > 1 or overviews):
        how |= {"tiled": True, "blockxsize": 256, "blockysize": 256}
    return how


def _pack(source: Path, target: Path, how: dict[str, Any]) -> None:
    with quiet(), rasterio.Env(GDAL_NUM_THREADS=os.environ.get("GDAL_NUM_THREADS", "ALL_CPUS")):
        if "copy_src_overviews" in how:  # before the pixels, and those before none: a cloud-optimised GeoTIFF
            with rasterio.open(source, "r+") as raster:
                levels = math.ceil(math.log2(max(256, *raster.shape) / 256))
                raster.build_overviews([2 ** (k + 1) for k in range(levels)], Resampling.average)
        rasterio.shutil.copy(source, target, driver="GTiff", interleave="band", bigtiff="IF_SAFER", **how)


_TAGS = {"description": "IMAGEDESCRIPTION", "software": "SOFTWARE"}


def _describe(raster: Any, like: Scene) -> None:
    count, metadata = raster.count, like.metadata if like.format == "raster" else {}
    made = like.metadata.get("provenance", {})
    raster.update_tags(**{**metadata.get("tags", {}), **{f"TIFFTAG_{_TAGS[name]}": text for name, text in made.items()}})
    tags = metadata.get("band_tags") or [{} for _ in range(count)]
    imagery = metadata.get("imagery") or [{} for _ in range(count)]
    header = like.metadata.get("header", {})
    fwhm, unit = header.get("fwhm"), header.get("wavelength units", "Nanometers")
    for band in range(count):
        own = {k: v for k, v in tags[band].items() if not k.startswith("STATISTICS_")}
        if like.wavelengths is not None and not any(k.lower() == "wavelength" for k in own):
            own |= {"wavelength": repr(float(like.wavelengths[band])), "wavelength_units": "Nanometers"}
        if isinstance(fwhm, list) and len(fwhm) == count:
            own |= {"fwhm": fwhm[band], "fwhm_units": unit}
        raster.update_tags(band + 1, **own)
        if imagery[band]:
            raster.update_tags(band + 1, ns="IMAGERY", **imagery[band])
        if like.band_names:
            raster.set_band_description(band + 1, like.band_names[band])
    for name, usual in (("scales", {1.0}), ("offsets", {0.0})):
        if set(metadata.get(name, usual)) != usual:
            setattr(raster, name, metadata[name])
