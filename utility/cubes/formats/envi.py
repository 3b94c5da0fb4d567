"""ENVI scenes: a text header (.hdr) and a raw data file (.img, .dat, .bsq, .bil, .bip, or no suffix)."""
from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from spectral.io import envi

from utility.cubes.axes import as_cube, stored_shape
from utility.cubes.companions import nanometres, unit_in_nm
from utility.cubes.cube import CubeWriter, Scene, Stored, Target, reserve, writing
from utility.cubes.formats.rasters import quiet
from utility.system.errors import UserError
from utility.system.files import replacing

INTERLEAVES = {"bsq": "BHW", "bil": "HBW", "bip": "HWB"}


# --------------------------------------------------------------------------------------------------------------- files

def header_of(path: Path) -> Path | None:
    """The ENVI header that belongs to the data file `path`; None where there is none."""
    for name in (f"{path.name}.hdr", f"{path.name}.HDR", f"{path.stem}.hdr", f"{path.stem}.HDR"):
        header = path.with_name(name)
        if header != path and header.is_file() and is_header(header):
            return header
    return None


def is_header(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"ENVI"


def files_of(path: Path) -> set[Path]:
    """Names of all files that reading an ENVI scene from `path`, or writing one there, may involve."""
    header = header_of(path) or path
    return {*_pair(path), header, *(_data_names(header, *INTERLEAVES) if header.is_file() else ())}


def _pair(path: Path) -> tuple[Path, Path]:
    """Header and data of a scene that is written to `path`, the name of either."""
    return path.with_suffix(".hdr"), path.with_suffix(".img") if path.suffix.lower() == ".hdr" else path


def _data_names(header: Path, *interleaves: str) -> list[Path]:
    """Names that the data file of a header may have, the usual ones first."""
    stem = header.with_suffix("")
    endings = [*envi.KNOWN_EXTS, *interleaves]
    return [stem, *(stem.with_name(f"{stem.name}.{e}") for e in [*endings, *(e.upper() for e in endings)])]


def _data_of(header: Path, interleave: str, expected: int) -> Path:
    """The data file of a header, one of `expected` bytes if there is one."""
    found = [p for p in _data_names(header, interleave) if p.is_file() and p != header]
    if not found:
        stem = header.with_suffix("")
        raise UserError(f"{header} has no data file beside it: {stem.name}, {stem.name}.img, {stem.name}.dat or "
                        f"{stem.name}.{interleave} was expected; put it there, or give the data file's own path.")
    return next((p for p in found if p.stat().st_size == expected), found[0])


# ------------------------------------------------------------------------------------------------------------- reading

def open_envi(path: Path, key: str | None) -> Stored:
    header = path if is_header(path) else header_of(path)
    fields = _fields(header)
    missing = [n for n in ("samples", "lines", "bands", "data type", "interleave", "byte order") if n not in fields]
    if missing:
        raise UserError(f"{header} lacks the field{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}, without which "
                        "its data cannot be read; add them to the header.")

    def number(name: str, convert: Callable[[Any], Any] = int) -> Any:
        try:
            return convert(fields.get(name, 0))
        except (TypeError, ValueError):
            kind = "whole number" if convert is int else "number"
            raise UserError(f"{header} says '{name} = {fields[name]}', where a {kind} was expected.") from None

    def known(name: str, choices: Container[str], words: str) -> str:
        value = str(fields.get(name, "")).lower()
        if value not in choices:
            raise UserError(f"{header} says '{name} = {fields[name]}', where {words} was expected.")
        return value

    def listed(name: str, convert: Callable[[str], Any]) -> list[Any] | None:
        values = fields.pop(name, None)
        if values is None:
            return None
        values = [values] if isinstance(values, str) else values
        if len(values) != bands:
            raise UserError(f"{header} lists {len(values)} values under '{name}' for {bands} bands; correct it.")
        try:
            return [convert(v) for v in values]
        except ValueError:
            raise UserError(f"{header} lists something other than numbers under '{name}'; correct it.") from None

    columns, rows, bands, offset = map(number, ("samples", "lines", "bands", "header offset"))
    interleave = known("interleave", INTERLEAVES, "bsq, bil or bip")
    codes = envi.envi_to_dtype
    code = known("data type", codes, f"one of {', '.join(f'{c} {np.dtype(d).name}' for c, d in codes.items())}")
    order = int(known("byte order", ("0", "1"), "0 (little endian) or 1 (big endian)"))
    known("file compression", ("0", ""), "0 (not compressed: compressed data is not read)")
    if min(columns, rows, bands) < 1 or offset < 0:
        raise UserError(f"{header} says {rows} lines, {columns} samples, {bands} bands and header offset {offset}; correct it.")
    if envi._has_frame_offset(fields):
        raise UserError(f"{header} has frame offsets, which are not read here; write the cube without them.")
    dtype = np.dtype(codes[code]).newbyteorder("<>"[order])
    expected = offset + rows * columns * bands * dtype.itemsize
    data = path if path != header else _data_of(header, interleave, expected)
    size = data.stat().st_size
    if size != expected:
        raise UserError(f"{header} describes {expected} bytes ({bands} bands x {rows} lines x {columns} samples of "
                        f"{dtype.itemsize} bytes{f' after {offset}' if offset else ''}), but its data file {data.name} "
                        f"has {size}; correct the header, or copy the data again.")
    layout = INTERLEAVES[interleave]
    array = np.memmap(str(data), dtype, "r", offset, stored_shape(layout, (bands, rows, columns)))
    centres, names = listed("wavelength", float), listed("band names", str)
    nodata = number("data ignore value", convert=float) if "data ignore value" in fields else None
    crs, transform = _georeference(data)
    for name in ("samples", "lines", "bands", "header offset", "data type", "interleave", "byte order", "file type",
                 "data ignore value"):
        fields.pop(name, None)
    metadata = {"header": fields, "interleave": interleave, "byte order": order}
    if centres:
        metadata["wavelength"] = centres
    return Stored(array, format="envi", layout=layout, band_names=names, nodata=nodata, crs=crs, transform=transform,
                  wavelengths=None if centres is None else nanometres(centres, fields.get("wavelength units")),
                  metadata=metadata)


def _fields(header: Path) -> dict[str, Any]:
    content = header.read_bytes()
    try:
        with quiet():
            if content.isascii():
                return envi.read_envi_header(str(header))
            # spectral reads in the locale's encoding alone; the fields are ASCII, and descriptions come in any code page
            with tempfile.NamedTemporaryFile(suffix=".hdr") as copy:
                copy.write(content.decode("ascii", "replace").encode("ascii", "replace"))
                copy.flush()
                return envi.read_envi_header(copy.name)
    except (envi.EnviException, OSError, UnicodeError) as error:
        raise UserError(f"{header} is not a readable ENVI header (a brace is not closed, or it is no text); correct or copy it "
                        "again.") from error


def _georeference(data: Path) -> tuple[str | None, tuple[float, ...] | None]:
    """CRS and transform as GDAL, and so every GIS built on GDAL, understands the header's map info."""
    try:
        with quiet(), rasterio.open(data, driver="ENVI") as source:
            transform = None if source.transform.is_identity else tuple(v + 0.0 for v in tuple(source.transform)[:6])
            return source.crs.to_wkt() if source.crs else None, transform
    except (rasterio.errors.RasterioError, OSError, ValueError):
        return None, None


# ------------------------------------------------------------------------------------------------------------- writing

@contextmanager
def create_envi(target: Target) -> Iterator[CubeWriter]:
    path, like, (bands, rows, columns) = target.path, target.like, target.shape
    header_path, data_path = _pair(path)
    suffix = path.suffix.lower()[1:]
    interleave = suffix if suffix in INTERLEAVES else str(like.metadata.get("interleave", "bsq"))
    order = int(like.metadata.get("byte order", sys.byteorder == "big"))
    fields = _header(like, path) | {
        "samples": columns, "lines": rows, "bands": bands, "header offset": 0, "interleave": interleave,
        "file type": "ENVI Standard", "data type": envi.dtype_to_envi[target.dtype.char], "byte order": order}
    placed = False
    try:
        with replacing(header_path, target.overwrite) as header:
            with replacing(data_path, target.overwrite) as data:
                layout = INTERLEAVES[interleave]
                with writing(path):
                    array = np.memmap(data, target.dtype.newbyteorder("<>"[order]), "w+",
                                      shape=stored_shape(layout, target.shape))
                    reserve(data)
                yield CubeWriter.into(path, as_cube(array, layout))
                with writing(path):
                    array.flush()
                    envi.write_envi_header(str(header), fields)
                del array
                # An old header beside new data would be read without an error. So the old one goes first, and at no moment
                # do two files that do not belong together have their names.
                header_path.unlink(missing_ok=True)
            placed = True
    except BaseException:
        if placed:  # data without its header would be half a scene
            data_path.unlink(missing_ok=True)
            header_path.unlink(missing_ok=True)
        raise


def _header(like: Scene, path: Path) -> dict[str, Any]:
    """The descriptive fields: those of the source's header, and what else the scene knows."""
    fields: dict[str, Any] = {}
    made = like.metadata.get("provenance", {})
    for name, value in {**like.metadata.get("header", {}), **made}.items():
        # spectral would put a space around, and a dash for, the commas of WKT
        wkt = name == "coordinate system string" and isinstance(value, list)
        fields[name] = f"{{{','.join(value)}}}" if wkt else value
    if like.wavelengths is not None:
        if "wavelength" in like.metadata:
            fields["wavelength"] = [repr(float(v)) for v in like.metadata["wavelength"]]
        else:
            unit = unit_in_nm(fields.get("wavelength units")) or 1.0
            fields["wavelength"] = [repr(float(v) / unit) for v in like.wavelengths]
            fields.setdefault("wavelength units", "Nanometers")
    if like.band_names:
        fields["band names"] = list(like.band_names)
    if like.nodata is not None:
        fields["data ignore value"] = int(like.nodata) if float(like.nodata).is_integer() else float(like.nodata)
    if "map info" not in fields and like.transform is not None:
        a, b, c, d, e, f = like.transform
        if b or d or a <= 0 or e >= 0:
            raise UserError(f"{path} would be an ENVI file, whose map info cannot hold a rotated or flipped grid like "
                            f"that of {like.name}; write a GeoTIFF (.tif).")
        name, more = _projection(like.crs)
        fields["map info"] = [name, "1", "1", *(repr(float(v)) for v in (c, f, a, -e)), *more]
    if like.crs and "coordinate system string" not in fields:
        fields["coordinate system string"] = f"{{{rasterio.crs.CRS.from_wkt(like.crs).to_wkt(version='WKT1_ESRI')}}}"
    return {_plain(name): value if name == "coordinate system string" else
            [_plain(v) for v in value] if isinstance(value, list) else _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    """Text on one line and without braces, which would end a value of the header or begin another one."""
    return " ".join(value.replace("{", "(").replace("}", ")").split()) if isinstance(value, str) else value


def _projection(crs: str | None) -> tuple[str, list[str]]:
    """The projection's name and what follows the pixel size in map info; any other CRS has its own field."""
    found = rasterio.crs.CRS.from_wkt(crs) if crs else None
    code = found.to_epsg() if found else None
    if code and code // 100 in (326, 327):
        return "UTM", [str(code % 100), "North" if code // 100 == 326 else "South", "WGS-84", "units=Meters"]
    if code == 4326:
        return "Geographic Lat/Lon", ["WGS-84", "units=Degrees"]
    return "Arbitrary", []


def finer(header: dict[str, Any], across: tuple[float, float], down: tuple[float, float]) -> dict[str, Any]:
    """The header for smaller pixels: their size and the first one's outer edge, in the pixels of `header`.

    The reference pixel of the map info counts from 1.0 at the first pixel's outer corner.
    """
    (width, left), (height, top) = across, down
    header = {k: v for k, v in header.items() if k not in ("geo points", "x start", "y start")}
    info = header.get("map info")
    if isinstance(info, list) and len(info) >= 7:
        try:
            reference = [repr((float(info[1]) - 1 - left) / width + 1), repr((float(info[2]) - 1 - top) / height + 1)]
            sizes = [repr(float(info[5]) * width), repr(float(info[6]) * height)]
        except ValueError:
            raise UserError(f"The map info {{{', '.join(info)}}} has something other than numbers for its reference "
                            f"pixel or pixel size; correct the ENVI header.") from None
        header["map info"] = [info[0], *reference, *info[3:5], *sizes, *info[7:]]
    size = header.get("pixel size")
    if isinstance(size, list) and len(size) >= 2:
        header["pixel size"] = [repr(float(size[0]) * width), repr(float(size[1]) * height), *size[2:]]
    return header
