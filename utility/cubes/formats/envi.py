"""ENVI scenes: a header (.hdr) and raw data (.img, .dat, .bsq, .bil, .bip, or no suffix)."""
from __future__ import annotations

import math
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from spectral.io import envi

from utility.cubes.axes import as_cube, stored_shape
from utility.cubes.companions import unit_in_nm
from utility.cubes.cube import CubeWriter, Scene, Stored, Target, reserve, writing
from utility.cubes.fields import NUMBER, band_facts, decimal, parts_of
from utility.cubes.formats import rasters
from utility.cubes.formats.header import header_of, is_header, quiet, read_fields
from utility.system.errors import UserError
from utility.system.files import replacing

INTERLEAVES = {"bsq": "BHW", "bil": "HBW", "bip": "HWB"}


# -------------------------------------------------------------------------------------------- files

def files_of(path: Path) -> set[Path]:
    """Names of all files that a read of an ENVI scene from `path`, or a write, may involve."""
    header = header_of(path) or path
    return {*_pair(path), header, *(_data_names(header, *INTERLEAVES) if header.is_file() else ())}


def stands_alone(path: Path) -> bool:
    """Whether a file is a header that describes data of its own, and neither these data nor the
    header of a TIFF."""
    return is_header(path) and tiff_of(path) is None


def is_scene(path: Path) -> bool:
    """Whether a file in a folder is a scene: the header of a cube; not its data, a library, a mask,
    a TIFF's header."""
    if header_of(path):
        return False
    try:
        fields = read_fields(path)
    except UserError:
        return True  # damaged, which opening it says
    kind = str(fields.get("file type", "")).lower()
    return ("spectral library" not in kind and "classification" not in kind
            and tiff_of(path) is None and str(fields.get("bands", "")).strip() != "1")


def _pair(path: Path) -> tuple[Path, Path]:
    """Header and data of a scene that is written to `path`, the name of either."""
    return (path.with_suffix(".hdr"),
            path.with_suffix(".img") if path.suffix.lower() == ".hdr" else path)


def _data_names(header: Path, *interleaves: str) -> list[Path]:
    """Names that the data file of a header may have, the usual ones first."""
    stem = header.with_suffix("")
    endings = [*envi.KNOWN_EXTS, *interleaves]
    return [stem,
            *(stem.with_name(f"{stem.name}.{e}")
              for e in [*endings, *(e.upper() for e in endings)])]


def _data_of(header: Path, interleave: str, expected: int) -> Path:
    """The data file of a header, one of `expected` bytes if there is one."""
    found = [p for p in _data_names(header, interleave) if p.is_file() and p != header]
    if not found:
        stem = header.with_suffix("")
        raise UserError(f"{header} has no data file beside it: {stem.name}, {stem.name}.img, "
                        f"{stem.name}.dat or {stem.name}.{interleave} was expected; put it there, "
                        "or give the data file's own path.")
    return next((p for p in found if p.stat().st_size == expected), found[0])


# ------------------------------------------------------------------------------------------ reading

def open_envi(path: Path, key: str | None) -> Stored:
    header = path if is_header(path) else header_of(path)
    fields = read_fields(header)
    if str(fields.get("file type", "")).lower() == "tiff":
        if (picture := tiff_of(header)) is None:
            raise UserError(
                f"{header} describes a TIFF, and {header.stem}.tif is not beside it; put it there.")
        return rasters.open_raster(picture, None)
    if "spectral library" in str(fields.get("file type", "")).lower():
        raise UserError(f"{header} is a spectral library ({fields.get('lines', '?')} spectra), "
                        "where a cube was expected; give an image.")
    missing = [
        n for n in ("samples", "lines", "bands", "data type", "interleave") if n not in fields]
    if missing:
        raise UserError(f"{header} lacks the field{'s' * (len(missing) > 1)} "
                        f"{', '.join(map(repr, missing))}, without which its data cannot be read; "
                        f"add {'them' if len(missing) > 1 else 'it'} to the header.")
    notes = ([] if "byte order" in fields
             else ["'byte order' is not in the header, and is taken as 0 (little endian)"])
    array, interleave, order = _mapped(path, header, fields)
    bands = array.shape[INTERLEAVES[interleave].index("B")]
    facts, about = band_facts(fields, bands)
    metadata = {"header": fields, "interleave": interleave, "byte order": order}
    if facts["wavelengths"] is not None and facts["wavelengths_by"] == "wavelength":
        metadata["wavelength"] = [
            float(NUMBER.match(part).group()) for part in parts_of(fields.pop("wavelength"))]
    crs, transform = _georeference(Path(array.filename))
    for name in ("samples", "lines", "bands", "header offset", "data type", "interleave",
                 "byte order", "file type", "data ignore value", "band names"):
        fields.pop(name, None)
    for name in ("wavelength", "fwhm", "bbl", "data gain values", "data offset values"):
        # what was not understood misleads the next reader too
        if name in fields and len(parts_of(fields[name])) != bands:
            fields.pop(name)
    if facts["wavelengths"] is None and not {"wavelength", "fwhm"} & fields.keys():
        fields.pop("wavelength units", None)
    return Stored(array, format="envi", layout=INTERLEAVES[interleave], crs=crs,
                  transform=transform, metadata=metadata, notes=notes + about, **facts)


def _mapped(path: Path, header: Path, fields: dict[str, Any]) -> tuple[np.memmap, str, int]:
    """The data as a memory map, interleave, byte order. Raises UserError: a field is of no use."""

    def said(name: str, default: str) -> str:
        value = "".join(parts_of(fields.get(name, default)))
        return value.lower().strip("'\" ").removesuffix(".0")

    def number(name: str) -> int:
        try:
            return int(said(name, "0"))
        except ValueError:
            raise UserError(f"{header} says '{name} = {fields[name]}', where a whole number was "
                            "expected.") from None

    def known(name: str, choices: Container[str], words: str, default: str = "") -> str:
        value = said(name, default)
        if value not in choices:
            raise UserError(f"{header} says '{name} = {fields[name]}', where {words} was expected.")
        return value

    columns, rows, bands, offset = map(number, ("samples", "lines", "bands", "header offset"))
    interleave = known("interleave", INTERLEAVES, "bsq, bil or bip")
    codes = envi.envi_to_dtype
    code = known("data type", codes,
                 f"one of {', '.join(f'{c} {np.dtype(d).name}' for c, d in codes.items())}")
    order = int(known("byte order", ("0", "1"), "0 (little endian) or 1 (big endian)", "0"))
    known("file compression", ("0", ""), "0 (not compressed: compressed data is not read)")
    if min(columns, rows, bands) < 1 or offset < 0:
        raise UserError(f"{header} says {rows} lines, {columns} samples, {bands} bands and header "
                        f"offset {offset}; correct it.")
    if envi._has_frame_offset(fields):
        raise UserError(
            f"{header} has frame offsets, which are not read here; write the cube without them.")
    dtype = np.dtype(codes[code]).newbyteorder("<>"[order])
    expected = offset + rows * columns * bands * dtype.itemsize
    data = path if path != header else _data_of(header, interleave, expected)
    size = data.stat().st_size
    if size != expected:
        raise UserError(f"{header} describes {expected} bytes ({bands} bands x {rows} lines x "
                        f"{columns} samples of {dtype.itemsize} "
                        f"bytes{f' after {offset}' if offset else ''}), but its data file "
                        f"{data.name} has {size}; correct the header, or copy the data again.")
    shape = stored_shape(INTERLEAVES[interleave], (bands, rows, columns))
    return np.memmap(str(data), dtype, "r", offset, shape), interleave, order


def tiff_of(header: Path) -> Path | None:
    """The TIFF beside an ENVI header that describes one; None where there is none."""
    stem = header.with_suffix("")
    names = [stem,
             *(stem.with_name(stem.name + ending) for ending in (".tif", ".tiff", ".TIF", ".TIFF"))]
    return next((path for path in names if path.is_file() and rasters.is_raster(path)), None)


def _georeference(data: Path) -> tuple[str | None, tuple[float, ...] | None]:
    """CRS and transform as GDAL, and so every GIS built on it, understands the map info."""
    try:
        with quiet(), rasterio.open(data, driver="ENVI") as source:
            transform = (None if source.transform.is_identity
                         else tuple(v + 0.0 for v in tuple(source.transform)[:6]))
            return source.crs.to_wkt() if source.crs else None, transform
    except (rasterio.errors.RasterioError, OSError, ValueError):
        return None, None


# ------------------------------------------------------------------------------------------ writing

@contextmanager
def create_envi(target: Target) -> Iterator[CubeWriter]:
    path, like, (bands, rows, columns) = target.path, target.like, target.shape
    header_path, data_path = _pair(path)
    suffix = path.suffix.lower()[1:]
    interleave = suffix if suffix in INTERLEAVES else str(like.metadata.get("interleave", "bsq"))
    order = 0  # some readers take every file for little endian
    fields = (_header(like, path)
              | {"samples": columns, "lines": rows, "bands": bands, "header offset": 0,
                 "interleave": interleave, "file type": "ENVI Standard",
                 "data type": envi.dtype_to_envi[target.dtype.char], "byte order": order})
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
                # An old header beside new data would be read without an error. So the old one goes
                # first, and at no moment do two files that do not belong together have their names.
                header_path.unlink(missing_ok=True)
            placed = True
    except BaseException:
        for path in (data_path, header_path) if placed else ():  # data alone is half a scene
            path.unlink(missing_ok=True)
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
            fields["wavelength"] = [
                decimal(nm) for nm in np.asarray(like.wavelengths, np.float64) / unit]
            fields.setdefault("wavelength units", "Nanometers")
    if like.fwhm is not None and "fwhm" not in fields:
        unit = unit_in_nm(fields.get("wavelength units")) or 1.0
        fields["fwhm"] = [decimal(width) for width in like.fwhm / unit]
    if like.good is not None and "bbl" not in fields:
        fields["bbl"] = [str(int(fine)) for fine in like.good]
    if (like.gain is not None
            and not {"data gain values", "reflectance scale factor"} & fields.keys()):
        fields["data gain values"] = _numbers(like.gain)
        fields["data offset values"] = _numbers(
            np.zeros(len(like.gain)) if like.offset is None else like.offset)
    if like.band_names:
        fields["band names"] = [name.replace(",", ";") for name in like.band_names]
    if like.nodata is not None:
        fields["data ignore value"] = (
            int(like.nodata) if float(like.nodata).is_integer() else float(like.nodata))
    if "map info" not in fields and like.transform is not None:
        a, b, c, d, e, f = like.transform
        name, more = _projection(like.crs)
        width, height = math.hypot(a, d), math.hypot(b, e)
        # GDAL shears oblong pixels of a turned grid, and turns about the first corner alone.
        turned = not np.isclose([width, b, e], [height, d, -a], rtol=1e-9, atol=1e-9 * width).all()
        if turned if b or d else a <= 0 or e >= 0:
            raise UserError(f"{path} would be an ENVI file, whose map info cannot hold a flipped "
                            f"grid, or a turned one of oblong pixels, like that of {like.name}; "
                            "write a GeoTIFF (.tif).")
        more += [f"rotation={math.degrees(math.atan2(d, a)):.10f}"] if b or d else []
        fields["map info"] = [name, "1", "1", *(repr(float(v)) for v in (c, f, width, height)),
                              *more]
    if like.crs and "coordinate system string" not in fields:
        wkt = rasterio.crs.CRS.from_wkt(like.crs).to_wkt(version="WKT1_ESRI")
        fields["coordinate system string"] = f"{{{wkt}}}"
    if "coordinate system string" in fields and isinstance(fields.get("map info"), list):
        # With both, GDAL takes latitude and longitude for OGC:CRS84.
        fields["map info"] = [part
                              for part in fields["map info"] if part.lower() != "units=degrees"]
    plain = {}
    for name, value in fields.items():
        if name != "coordinate system string":
            value = [_plain(v) for v in value] if isinstance(value, list) else _plain(value)
        plain[_plain(name)] = value
    return plain


def _numbers(values: np.ndarray) -> list[str]:
    return [f"{value:.12g}" for value in values]


def _plain(value: Any) -> Any:
    """Text on one line and without braces, which end a value of the header or begin one."""
    return (" ".join(value.replace("{", "(").replace("}", ")").split()) if isinstance(value, str)
            else value)


def _projection(crs: str | None) -> tuple[str, list[str]]:
    """The projection's name and what follows the pixel size in map info; "Arbitrary" for others."""
    found = rasterio.crs.CRS.from_wkt(crs) if crs else None
    code = found.to_epsg() if found else None
    if code and code // 100 in (326, 327):
        return (
            "UTM",
            [str(code % 100), "North" if code // 100 == 326 else "South", "WGS-84", "units=Meters"])
    if code == 4326:
        return "Geographic Lat/Lon", ["WGS-84", "units=Degrees"]
    return "Arbitrary", []


def finer(header: dict[str, Any], across: tuple[float, float],
          down: tuple[float, float]) -> dict[str, Any]:
    """The header for smaller pixels: their size and the first one's outer edge, in the pixels of
    `header`.

    The reference pixel of the map info counts from 1.0 at the first pixel's outer corner.
    """
    (width, left), (height, top) = across, down
    header = {k: v for k, v in header.items() if k not in ("geo points", "x start", "y start")}
    info = header.get("map info")
    if isinstance(info, list) and len(info) >= 7:
        try:
            reference = [repr((float(info[1]) - 1 - left) / width + 1),
                         repr((float(info[2]) - 1 - top) / height + 1)]
            sizes = [repr(float(info[5]) * width), repr(float(info[6]) * height)]
        except ValueError:
            raise UserError(f"The map info {{{', '.join(info)}}} has something other than numbers "
                            "for its reference pixel or pixel size; correct the ENVI "
                            "header.") from None
        header["map info"] = [info[0], *reference, *info[3:5], *sizes, *info[7:]]
    size = header.get("pixel size")
    if isinstance(size, list) and len(size) >= 2:
        header["pixel size"] = [repr(float(size[0]) * width), repr(float(size[1]) * height),
                                *size[2:]]
    return header
