"""What stands beside a cube in its file, read and written: the cube's key, the image's size, wavelengths, no-data value."""
from __future__ import annotations

import difflib
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from utility.cubes.cube import Scene, Target
from utility.system.errors import Unclear, UserError

ROWS, COLUMNS = ("nrow", "nrows", "rows", "lines", "height"), ("ncol", "ncols", "cols", "columns", "samples", "width")
WAVELENGTHS = ("wavelength", "wavelengths", "wl", "wavs", "lambda", "bands")
NAMES = {*ROWS, *COLUMNS, *WAVELENGTHS, "layout", "nodata", "normalised", "origin"}
"""Of the arrays that are read beside the cube, in lower case."""
SMALL = 1 << 16
"""Numbers at most in an array that is read as standing beside the cube."""


def choose_key(path: Path, shapes: dict[str, tuple[int, ...]], key: str | None,
               size: tuple[int, int] | None = None, others: str = "") -> str:
    """The key of the cube among numeric arrays: the key that was asked for, else the only candidate.

    A 3-D array is preferred to 2-D arrays (ground-truth maps, endmembers). Without a 3-D array, a 2-D array is a candidate
    unless it is a vector; where the image's size is known, a candidate has that many pixels.
    """
    listing = ", ".join(f"{name} ({times(shape)})" for name, shape in shapes.items())
    if key is not None:
        if key in shapes:
            return key
        near = difflib.get_close_matches(key, shapes, 1, 0.4)
        hint = f" (nearest: {near[0]})" if near else ""
        raise UserError(f"{path} has no array '{key}'{hint}; it holds {listing or 'no numeric array'}; choose one of these "
                        "with --key.")
    cubes = [name for name, shape in shapes.items() if len(shape) == 3 and min(shape) > 0]
    if not cubes:
        cubes = [name for name, shape in shapes.items() if len(shape) == 2 and min(shape) > 1]
        if size:
            cubes = [name for name in cubes if math.prod(size) in shapes[name]] or cubes
    if not cubes:
        raise UserError(f"{path} holds no cube: a numeric array of 3 dimensions, or of bands x pixels, was expected, "
                        f"and it holds {listing or others or 'no numeric array'}.")
    if len(cubes) > 1:
        raise Unclear(f"{path} holds several arrays that may be the cube: {listing}; choose one with --key KEY.")
    return cubes[0]


def times(shape: tuple[int, ...]) -> str:
    """"3 x 4 x 5"."""
    return " x ".join(map(str, shape)) or "scalar"


def matlab_name(like: Scene) -> str:
    """The scene's key, or "cube" where the key is no name of a MATLAB variable."""
    key = (like.key or "").rpartition("/")[2]
    return key if re.fullmatch(r"[A-Za-z]\w{0,62}", key) else "cube"


def companions(target: Target) -> dict[str, Any]:
    """The small variables beside the cube in a .mat, .npz or .h5: numbers, and texts on its provenance."""
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
        beside["origin"] = np.array([*origin["region"], *bytes.fromhex(origin["sha256"])], np.float64)
    return beside


def facts_in(beside: dict[str, Any]) -> dict[str, Any]:
    """The facts about a cube in the small arrays beside it, as fields of a `Stored`."""
    return {"nodata": scalar(beside.get("nodata")), "normalised": scalar(beside.get("normalised")) == 1.0,
            "size": find_size(beside), "vectors": wavelength_vectors(beside), "metadata": _origin(beside.get("origin"))}


def _origin(value: Any) -> dict[str, Any]:
    """The scene that a part was cut from: `sha256`, its `content_hash`, and `region` in it; nothing where no file says so."""
    if np.size(value) != 36 or np.asarray(value).dtype.kind not in "iuf":
        return {}
    numbers = np.asarray(value, np.float64).ravel()
    if not np.all((numbers >= 0) & (numbers == np.floor(numbers)) & (numbers < 1 << 24)) or numbers[4:].max() > 255:
        return {}
    return {"origin": {"region": tuple(numbers[:4].astype(int).tolist()), "sha256": bytes(numbers[4:].astype(np.uint8)).hex()}}


def stated_layout(text: Any) -> str | None:
    """The layout that a file states in `text`, a string or an array of one; None where `text` is no layout."""
    text = text.decode() if isinstance(text, bytes) else str(np.asarray(text).flat[0] if np.size(text) else "")
    return text if sorted(text) == list("BHW") or text in ("pixels", "pixels.T") else None


def scalar(value: Any) -> float | None:
    """The number in an array of one element; None for anything else."""
    return None if value is None or np.size(value) != 1 else float(np.asarray(value).flat[0])


def find_size(beside: dict[str, Any]) -> tuple[int, int] | None:
    """(rows, columns) of the image from scalars such as nRow and nCol."""
    scalars = {name.lower(): scalar(value) for name, value in beside.items() if np.asarray(value).dtype.kind in "iuf"}
    counts = {name: int(value) for name, value in scalars.items() if value and value > 0 and value.is_integer()}
    rows, columns = (next((counts[name] for name in names if name in counts), None) for names in (ROWS, COLUMNS))
    return (rows, columns) if rows and columns else None


def wavelength_vectors(beside: dict[str, Any]) -> list[np.ndarray]:
    """Vectors that may be the wavelengths, in nm; micrometres are converted, band numbers are not wavelengths."""
    found = []
    for name, value in beside.items():
        value = np.asarray(value)
        if name.lower() not in WAVELENGTHS or value.dtype.kind not in "iuf" or not 2 <= value.size == max(value.shape):
            continue
        value = value.astype(np.float64).ravel()
        if np.all(np.isfinite(value)):
            if value.min() >= 100:
                found.append(value)
            elif value.min() >= 0.1 and value.max() < 100 and not np.all(value == np.rint(value)):
                found.append(value * 1000)
    return found


def nanometres(values: Any, units: str | None) -> np.ndarray | None:
    """Wavelengths in nm; without units, values below 100 are micrometres. None where `units` is no length."""
    values = np.asarray(values, np.float64)
    if (units or "").strip().lower() in ("", "unknown"):
        return values * (1000.0 if values.size and values.max() < 100 else 1.0)
    return None if (factor := unit_in_nm(units)) is None else values * factor


def unit_in_nm(units: str | None) -> float | None:
    """One of `units` in nm; None if `units` is no length."""
    return {"nanometers": 1.0, "nanometres": 1.0, "nanometer": 1.0, "nm": 1.0, "micrometers": 1e3, "micrometres": 1e3,
            "micrometer": 1e3, "microns": 1e3, "micron": 1e3, "um": 1e3, "µm": 1e3, "μm": 1e3, "angstroms": 0.1,
            "millimeters": 1e6, "centimeters": 1e7, "meters": 1e9}.get((units or "").strip().lower())
