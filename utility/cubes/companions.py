"""What stands beside a cube in its file: key, size of the image, wavelengths, no-data value."""
from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from utility.cubes.cube import Scene, Target
from utility.system.errors import Unclear, UserError

ROWS, COLUMNS = (("nrow", "nrows", "rows", "lines", "height"),
                 ("ncol", "ncols", "cols", "columns", "samples", "width"))
WAVELENGTHS = ("wavelength", "wavelengths", "wl", "wavs", "lambda", "bands")
WAVELENGTH = re.compile(r"wave_?len|wvl|^wl|^wavs$|lambda|cent(er|re)|(^|_)cw(_|$)|^bands$")
WIDTH = re.compile(r"fwhm|band_?width|band_?pass|full_?width")
GOOD = re.compile(r"good|^bbl$|valid_band")
OTHER = re.compile(r"unc|err|unit|flag|bad|ind(ex|ices)|num|count|min|max|std|offset")
"""In the name of a vector, in lower case: what it holds. OTHER: it is none of the three."""
PLAIN = re.compile(r"wave_?len|wvl|^wl|lambda")
"""In the name of a vector of wavelengths: its values need not look like these."""
UNIT = re.compile(r"_(nm|nanomet(?:er|re)s?|um|microns?|micromet(?:er|re)s?)$")
"""At the end of such a name."""
VECTORS = ("fwhm", "band_good", "band_gain", "band_offset", "geotransform")
"""Facts that are numbers: nm, 1 or 0, physical value = gain x value + offset, GDAL's six numbers of
a map grid."""
TEXTS = ("crs_wkt", "band_names", "units")
"""Facts that are text; band names stand one a line."""
NAMES = {*ROWS, *COLUMNS, *WAVELENGTHS, *VECTORS, *TEXTS, "layout", "nodata", "normalised",
         "origin"}
"""Of the arrays that are read beside the cube, in lower case."""
COMPANION = re.compile(
    r"(^|_)(qual(ity)?|masks?|flags?|qa|qc|unc|uncert\w*|err(or)?s?|std(ev)?|sigma|saturation|"
    r"cloud\w*|class\w*|rgb|quicklook|ql|pan|lat|lon|latitude|longitude|elev\w*|glt\w*|label\w*|"
    r"lbl|weights?)(_|$)")
"""In the name of an array, in lower case: the array is about the cube, and is none itself."""
SMALL = 1 << 16
"""Numbers at most in an array that is read as standing beside the cube."""
TRUTH = re.compile(r"gt|ground_?truth|hr|hr_?hsi|hsi_?hr")
"""Name of the cube itself, in lower case, beside cubes that were made of it."""


def choose_key(path: Path, shapes: dict[str, tuple[int, ...]], key: str | None,
               size: tuple[int, int] | None = None, others: str = "",
               companions: Collection[str] = (), notes: list[str] | None = None) -> str:
    """The key of the cube among numeric arrays: the key that was asked for, else the only
    candidate, else the one that all other candidates are coarser copies of.

    A 3-D array is preferred to 2-D arrays (ground-truth maps, endmembers). Without a 3-D array, a
    2-D array is a candidate unless it is a vector; where the image's size is known, a candidate has
    that many pixels. Arrays about the cube (masks, uncertainties, a picture of three colours) are
    candidates where there is nothing else.

    Args:
        key: the whole name, or its last parts where one array alone ends with them.
        companions: names of arrays that are about the cube, besides those whose name says so.
        notes: takes what a user should know of the choice.
    """
    shapes = {name: long_axes(shape) for name, shape in shapes.items()}
    cubes = [name for name, shape in shapes.items() if len(shape) == 3 and min(shape) > 0]
    if not cubes:
        cubes = [name for name, shape in shapes.items() if len(shape) == 2 and min(shape) > 1]
        if size:
            cubes = [name for name in cubes if math.prod(size) in shapes[name]] or cubes
            most = max((min(shapes[name]) for name in cubes), default=0)  # abundances are few
            cubes = [name for name in cubes if 4 * min(shapes[name]) > most]
    about = {name for name in cubes if name in companions
             or COMPANION.search(name.rpartition("/")[2].lower())}
    cubes = [name for name in cubes if name not in about] or cubes
    cubes = [name for name in cubes if len(shapes[name]) < 3 or min(shapes[name]) != 3] or cubes
    if key is not None:
        return _asked(path, shapes, cubes, key)
    if not cubes:
        listing = ", ".join(filter(None, (_listed(shapes, list(shapes)), others)))
        raise UserError(f"{path} holds no cube: a numeric array of 3 dimensions, or of bands x "
                        f"pixels, was expected, and it holds {listing or 'no numeric array'}.")
    if len(cubes) > 1 and (whole := _whole(shapes, cubes)):
        copies = _listed(shapes, [name for name in cubes if name != whole])
        if notes is not None:
            notes.append(f"the cube is '{whole}'; beside it are its copies of other resolution or "
                         f"origin: {copies}; --key names one of these")
        return whole
    if len(cubes) > 1:
        raise Unclear(f"{path} holds several arrays that may be the cube: "
                      f"{_listed(shapes, cubes)}; choose one with --key KEY.")
    return cubes[0]


def _whole(shapes: dict[str, tuple[int, ...]], cubes: list[str]) -> str | None:
    """The cube that all others are copies of, of its size or a whole number of times smaller: by
    its name, or because it alone is the largest."""
    most = max(math.prod(shapes[name]) for name in cubes)
    largest = [name for name in cubes if math.prod(shapes[name]) == most]
    if len(largest) > 1:
        largest = [name for name in largest if TRUTH.fullmatch(name.rpartition("/")[2].lower())]
    if len(largest) != 1 or len(shapes[largest[0]]) != 3:
        return None
    whole = shapes[largest[0]]
    for name in cubes:
        ratios = sorted(long / short for long, short in zip(whole, shapes[name], strict=True))
        if ratios[0] != 1 or ratios[1] != ratios[2] or not ratios[2].is_integer():
            return None
    return largest[0]


def may_hold_cube(shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether one of these arrays may be a cube: of 3 axes, or 2 beside the image's size."""
    sized = any(name.rpartition("/")[2].lower() in ROWS for name in shapes)
    axes = {len(long_axes(shape)) for shape in shapes.values()}
    return not shapes or max(axes) > 2 or (sized and 2 in axes)


def _asked(path: Path, shapes: dict[str, tuple[int, ...]], cubes: list[str], key: str) -> str:
    """The array that a user names by its whole name or by its last parts."""
    ending = ([name for name in shapes if name == key]
              or [name for name in shapes if f"/{name}".endswith(f"/{key}")])
    ending = [name for name in ending if name in cubes] or ending if len(ending) > 1 else ending
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise Unclear(f"{path} holds several arrays '{key}': {_listed(shapes, ending)}; name one "
                      "of these with --key.")
    near = difflib.get_close_matches(key, [*shapes, *short_names(shapes).values()], 1, 0.4)
    hint = f" (nearest: {near[0]})" if near else ""
    raise UserError(f"{path} has no array '{key}'{hint}; it holds "
                    f"{_listed(shapes, cubes) or 'no numeric array'}; choose one of these with "
                    "--key.")


def short_names(names: Collection[str]) -> dict[str, str]:
    """For each name of an array the shortest run of its last parts that no other name ends with."""
    found = {}
    for name in names:
        parts = name.split("/")
        runs = ["/".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        found[name] = next((run for run in runs
                            if sum(f"/{other}".endswith(f"/{run}") for other in names) == 1), name)
    return found


def _listed(shapes: dict[str, tuple[int, ...]], chosen: list[str]) -> str:
    short = short_names(shapes)
    return ", ".join(f"{short[name]} ({times(shapes[name])})" for name in chosen)


def long_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an array of more than 3 axes without those of length 1; others as they are."""
    return tuple(n for n in shape if n > 1) if len(shape) > 3 else tuple(shape)


def times(shape: tuple[int, ...]) -> str:
    """"3 x 4 x 5"."""
    return " x ".join(map(str, shape)) or "scalar"


def matlab_name(like: Scene) -> str:
    """The scene's key, or "cube" where the key is no name of a MATLAB variable."""
    key = (like.key or "").rpartition("/")[2]
    return key if re.fullmatch(r"[A-Za-z]\w{0,62}", key) else "cube"


def companions(target: Target) -> dict[str, Any]:
    """The small variables beside the cube in a .mat, .npz or .h5: numbers, and texts on its place,
    bands and provenance."""
    like, beside = target.like, dict(target.like.metadata.get("provenance", {}))
    if target.layout.startswith("pixels"):
        beside.update(nRow=float(target.shape[1]), nCol=float(target.shape[2]))
    if like.wavelengths is not None:
        beside["wavelengths"] = np.asarray(like.wavelengths, np.float64)
    if like.nodata is not None:
        beside["nodata"] = float(like.nodata)
    if like.normalised:
        beside["normalised"] = 1.0
    if origin := like.metadata.get("origin"):
        beside["origin"] = np.array([*origin["region"], *bytes.fromhex(origin["sha256"])],
                                    np.float64)
    vectors = {"fwhm": like.fwhm, "band_good": like.good, "band_gain": like.gain,
               "band_offset": like.offset}
    if like.transform is not None:
        a, b, c, d, e, f = like.transform
        vectors["geotransform"] = (c, a, b, f, d, e)
    if like.lonlat is not None and not target.layout.startswith("pixels"):
        vectors |= {"longitude": like.lonlat[0], "latitude": like.lonlat[1]}
    beside |= {
        name: np.asarray(value, np.float64) for name, value in vectors.items() if value is not None}
    texts = {"crs_wkt": like.crs, "band_names": "\n".join(like.band_names or ())[:SMALL],
             "units": like.units}
    return beside | {name: text for name, text in texts.items() if text}


def facts_in(beside: dict[str, Any]) -> dict[str, Any]:
    """The facts about a cube in the small arrays and texts beside it, as fields of a `Stored`."""
    vectors, likely = wavelength_vectors(beside)
    facts = {"nodata": scalar(beside.get("nodata")),
             "normalised": scalar(beside.get("normalised")) == 1.0, "size": find_size(beside),
             "vectors": vectors, "likely": likely, "metadata": _origin(beside.get("origin"))}
    arrays = {name: np.asarray(beside[name]) for name in VECTORS if name in beside}
    given = {name: array.astype(np.float64).ravel()
             for name, array in arrays.items() if array.dtype.kind in "biuf"}
    texts = {name: _text(beside[name]) for name in TEXTS if name in beside}
    facts |= {field: given.get(name)
              for field, name in (("fwhm", "fwhm"), ("gain", "band_gain"),
                                  ("offset", "band_offset"))}
    facts["good"] = given["band_good"] != 0 if "band_good" in given else None
    if given.get("geotransform", np.empty(0)).size == 6:
        left, a, b, top, d, e = map(float, given["geotransform"])
        facts["transform"] = (a, b, left, d, e, top)
    return (facts
            | {"crs": texts.get("crs_wkt") or None, "units": texts.get("units", ""),
               "band_names": texts["band_names"].split("\n") if texts.get("band_names") else None})


def _text(value: Any) -> str:
    """Text as h5py, NumPy and MATLAB give it."""
    if not isinstance(value, str | bytes):
        value = np.asarray(value).flat[0] if np.size(value) else ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if isinstance(value, str) else ""


def _origin(value: Any) -> dict[str, Any]:
    """The scene that a part was cut from: `sha256`, its `content_hash`, and `region` in it; nothing
    where no file says so."""
    if np.size(value) != 36 or np.asarray(value).dtype.kind not in "iuf":
        return {}
    numbers = np.asarray(value, np.float64).ravel()
    if (not np.all((numbers >= 0) & (numbers == np.floor(numbers)) & (numbers < 1 << 24))
            or numbers[4:].max() > 255):
        return {}
    return {"origin": {"region": tuple(numbers[:4].astype(int).tolist()),
                       "sha256": bytes(numbers[4:].astype(np.uint8)).hex()}}


def stated_layout(text: Any) -> str | None:
    """The layout in `text`, a string or an array of one; None where it is none."""
    known = ("pixels", "pixels.T", "pixels-rows", "pixels-rows.T")
    text = _text(text)
    return text if sorted(text) == list("BHW") or text in known else None


def scalar(value: Any) -> float | None:
    """The number in an array of one element; None for anything else."""
    return None if value is None or np.size(value) != 1 else float(np.asarray(value).flat[0])


def find_size(beside: dict[str, Any]) -> tuple[int, int] | None:
    """(rows, columns) of the image from scalars such as nRow and nCol."""
    scalars = {name.lower(): scalar(value)
               for name, value in beside.items() if np.asarray(value).dtype.kind in "iuf"}
    counts = {name: int(value)
              for name, value in scalars.items() if value and value > 0 and value.is_integer()}
    rows, columns = (
        next((counts[name] for name in names if name in counts), None) for names in (ROWS, COLUMNS))
    return (rows, columns) if rows and columns else None


def called(pattern: re.Pattern[str], name: str, *others: re.Pattern[str]) -> bool:
    """Whether the last part of a name says `pattern`, and neither OTHER nor one of the others."""
    last = name.rpartition("/")[2].lower()
    return bool(pattern.search(last)) and not any(other.search(last) for other in (OTHER, *others))


def wavelength_vectors(beside: dict[str, Any],
                       ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Vectors that are wavelengths by their names, and others that look like wavelengths; in nm.

    The first, whose keys also say the unit that was taken, begin with the names of WAVELENGTHS.
    Without a unit in its name a vector is in nm, below 100 in micrometres; band numbers are none.
    """
    named, likely = {}, {}
    for name in sorted(beside, key=lambda name: name.lower() not in WAVELENGTHS):
        value, lower = np.asarray(beside[name]), name.lower()
        if value.dtype.kind not in "iuf" or not 2 <= value.size == max(value.shape):
            continue
        values, says = value.astype(np.float64).ravel(), called(WAVELENGTH, name, WIDTH, GOOD)
        unit = UNIT.search(lower) if says else None
        if (nm := in_nm(values, unit.group(1) if unit else "")) is None:
            continue
        steps = np.diff(nm)
        looks = steps.min() > 0 and not np.all(steps == 1) and nm[0] >= 300 and nm[-1] <= 15000
        if says and (looks or lower in WAVELENGTHS or PLAIN.search(lower)):
            named[f"{name}, in {'nm' if nm[0] == values[0] else 'micrometres'}"] = nm
        elif looks and lower not in NAMES:
            likely[name] = nm
    return named, likely


def in_nm(values: np.ndarray, units: str = "") -> np.ndarray | None:
    """Centre wavelengths in nm; None where the numbers are none (band numbers, zeros, others)."""
    if not np.all(np.isfinite(values)) or values.min() <= 0:
        return None
    if len(np.unique(values)) * 2 < len(values):
        return None
    if units.strip():
        factor = unit_in_nm(units)
    elif values.min() >= 100:
        factor = 1.0
    else:
        factor = 1e3 if values.min() >= 0.1 and not np.all(values == np.rint(values)) else None
    nm = None if factor is None else values * factor
    return nm if nm is not None and nm.min() >= 100 and nm.max() <= 1e5 else None


def nanometres(values: Any, units: str | None) -> np.ndarray | None:
    """Wavelengths in nm; without units, below 100 is micrometres. None: `units` is no length."""
    values = np.asarray(values, np.float64)
    if (units or "").strip().lower() in ("", "unknown"):
        return values * (1000.0 if values.size and values.max() < 100 else 1.0)
    return None if (factor := unit_in_nm(units)) is None else values * factor


def unit_in_nm(units: str | None) -> float | None:
    """One of `units` in nm; None if `units` is no length."""
    return {"nanometers": 1.0, "nanometres": 1.0, "nanometer": 1.0, "nm": 1.0, "micrometers": 1e3,
            "micrometres": 1e3, "micrometer": 1e3, "microns": 1e3, "micron": 1e3, "um": 1e3,
            "µm": 1e3, "μm": 1e3, "angstroms": 0.1, "millimeters": 1e6, "centimeters": 1e7,
            "meters": 1e9}.get((units or "").strip().lower())
