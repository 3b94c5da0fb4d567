"""What an HDF5 or netCDF file says about an array in it, by the conventions of CF, HDF-EOS and
ENVI, whatever its names."""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from utility.cubes.companions import (
    COMPANION,
    GOOD,
    WAVELENGTH,
    WIDTH,
    called,
    in_nm,
    nanometres,
)

NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"
"""Begins the attribute NAME of a data set that stands for a dimension, and has no values."""

AXES = (("B", r"band|wave|wvl|lambda|spectr|chan"),
        ("W", r"cross|across|col|sample|pixel|(^|_)x|lon|east|width"),
        ("H", r"line|row|scan|down|along|(^|_)y|lat|north|height|track"))
"""Axis -> what its dimension is called; the first that fits counts (`pixels_per_line`)."""

FILLS = ("fillvalue", "missingvalue", "dataignorevalue", "nodata", "nodatavalue", "ignorevalue")
"""Attributes, in letters alone, that hold the value of missing pixels; the first goes first."""


def item_at(group: h5py.Group, name: str) -> Any:
    """The item that a path names; None where there is none, or a link leads to another file."""
    for part in name.strip("/").split("/"):
        if not isinstance(group, h5py.Group):
            return None
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            return None
        group = group[part]
    return group


def letters(name: str) -> str:
    """The letters and digits in lower case: `Data_Ignore_Value` and `data ignore value` are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def attributes(item: Any) -> dict[str, Any]:
    """The attributes of an item by their `letters`, text decoded; unreadable ones are left out."""
    found = {}
    for name in item.attrs:
        try:
            value = item.attrs[name]
        except (OSError, TypeError, ValueError, RuntimeError):
            continue
        if isinstance(value, np.ndarray) and value.dtype.kind in "SO" and value.size == 1:
            value = value.flat[0]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        found[letters(name)] = value
    return found


def numbers(value: Any) -> np.ndarray | None:
    """The numbers of an attribute: an array, or text such as "{400.0, 410.0}"; None: others."""
    if isinstance(value, str):
        try:
            value = [float(part) for part in re.split(r"[\s,;]+", value.strip(" {}[]()\n")) if part]
        except ValueError:
            return None
    value = np.asarray(value)
    return value.astype(np.float64).ravel() if value.dtype.kind in "biuf" and value.size else None


def is_dimension(dataset: h5py.Dataset) -> bool:
    """Whether a data set stands for a netCDF dimension that has no variable."""
    name = dataset.attrs.get("NAME", b"")
    return isinstance(name, bytes) and name.startswith(NO_VARIABLE)


def is_companion(name: str, dataset: h5py.Dataset | None = None) -> bool:
    """Whether an array is about a cube (a mask, an uncertainty, a place, a picture)."""
    if COMPANION.search(name.rpartition("/")[2].lower()):
        return True
    said = attributes(dataset) if dataset is not None else {}
    return bool({"flagmeanings", "flagvalues", "flagmasks"} & said.keys()) or any(
        word in str(said.get("standardname", ""))
        for word in ("status_flag", "standard_error", "quality"))


# --------------------------------------------------------------------------------------------- axes

def scales(dataset: h5py.Dataset) -> list[h5py.Dataset | None]:
    """The data set that stands for each dimension; None where the file names none."""
    found: list[h5py.Dataset | None] = [None] * dataset.ndim
    listed = dataset.attrs.get("DIMENSION_LIST")
    whole = listed is not None and len(listed) == dataset.ndim
    for axis, references in enumerate(listed if whole else ()):
        if len(references) and references[0]:
            found[axis] = dataset.file[references[0]]
    return found


def dimension_names(dataset: h5py.Dataset) -> list[str]:
    """The name of each dimension or "": from its scales, its labels or HDF-EOS's structure."""
    names = ["" if scale is None else scale.name.rpartition("/")[2] for scale in scales(dataset)]
    said = attributes(dataset)
    labels = said.get("dimensionlabels")
    if isinstance(labels, str):
        labels = [part.strip() for part in labels.split(",")]
    elif labels is not None:
        labels = [part.decode() if isinstance(part, bytes) else str(part)
                  for part in np.ravel(labels)]
    else:
        labels = _eos_dimensions(dataset)
    if len(labels) == dataset.ndim:
        names = [name or label for name, label in zip(names, labels, strict=True)]
    return names


def layout_of(names: list[str]) -> str | None:
    """The layout of a 3-D array by its dimensions' names; None: they name no axis of bands."""
    if len(names) != 3:
        return None
    found = [next((axis for axis, pattern in AXES if re.search(pattern, name.lower())), "")
             for name in names]
    if found.count("B") == 0 and sorted(found) == ["", "H", "W"]:
        found[found.index("")] = "B"
    if found.count("B") != 1:
        return None
    others = [axis for axis in found if axis != "B"]
    order = iter(others if sorted(others) == ["H", "W"] else "HW")
    return "".join("B" if axis == "B" else next(order) for axis in found)


def eos_structure(file: h5py.File) -> str:
    """The text in which HDF-EOS 5 describes its grids and swaths; "" where there is none."""
    item = item_at(file, "HDFEOS INFORMATION/StructMetadata.0")
    text = item[()] if isinstance(item, h5py.Dataset) and item.size == 1 else b""
    return text.decode("latin-1") if isinstance(text, bytes) else str(text)


def _eos_dimensions(dataset: h5py.Dataset) -> list[str]:
    name = re.escape(dataset.name.rpartition("/")[2])
    found = re.search(rf'DataFieldName="{name}".*?DimList=\(([^)]*)\)', eos_structure(dataset.file),
                      re.S)
    return [part.strip('" ') for part in found.group(1).split(",")] if found else []


# -------------------------------------------------------------------------------------------- bands

@dataclass
class Bands:
    """What a file says about the bands of a cube."""
    wavelengths: np.ndarray | None = None     # nm
    by: str = ""                              # where they stand
    fwhm: np.ndarray | None = None            # nm
    good: np.ndarray | None = None            # bool


@dataclass
class _Named:
    """A vector that stands beside a cube, and how near."""
    name: str
    values: np.ndarray
    units: str
    rank: tuple[float, ...] = field(default=())


def bands_of(dataset: h5py.Dataset, axis: int, vectors: Mapping[str, h5py.Dataset]) -> Bands:
    """Wavelengths, widths and marks of the bands along an axis, from attributes, the dimension, and
    vectors in any group."""
    near = list(_beside(dataset, axis, vectors))
    bands = Bands()
    for one in near:
        if not called(WAVELENGTH, one.name, WIDTH, GOOD):
            continue
        if (nm := in_nm(one.values, one.units)) is not None:
            bands.wavelengths, bands.by = nm, one.name
            break
    for one in near:
        if bands.fwhm is None and called(WIDTH, one.name) and np.all(one.values > 0):
            # Without a unit they are in the wavelengths' own: micrometres are less than 1.
            units = one.units.strip() or ("um" if one.values.max() < 1 else "nm")
            bands.fwhm = nanometres(one.values, units)
        marks = called(GOOD, one.name) and set(np.unique(one.values)) <= {0.0, 1.0}
        if bands.good is None and marks:
            bands.good = one.values == 1
    return bands


def _beside(dataset: h5py.Dataset, axis: int,
            vectors: Mapping[str, h5py.Dataset]) -> Iterator[_Named]:
    """Vectors as long as an axis, the nearest first: its attributes, its groups', data sets."""
    count = dataset.shape[axis]
    item: Any = dataset
    while True:
        for name in item.attrs:
            if not any(pattern.search(name.lower()) for pattern in (WAVELENGTH, WIDTH, GOOD)):
                continue
            value = numbers(attributes(item).get(letters(name)))
            if value is not None and value.size == count:
                said = attributes(item)
                unit = said.get(f"{letters(name)}units", said.get("wavelengthunits", ""))
                yield _Named(f"attribute {name}", value, unit if isinstance(unit, str) else "")
        if item.name == "/":
            break
        item = item.parent
    own, dimension = dataset.name.rpartition("/")[0], scales(dataset)[axis]
    found = []
    for name, vector in vectors.items():
        if vector.size != count or is_dimension(vector):
            continue
        last = name.rpartition("/")[2]
        shared = dimension is not None and (vector == dimension or dimension in scales(vector))
        called = dimension is not None and last == dimension.name.rpartition("/")[2]
        group = vector.name.rpartition("/")[0]
        unit = attributes(vector).get("units", attributes(vector).get("unit", ""))
        rank = (called, shared, group.startswith(own), vector.dtype.kind == "f", bool(unit),
                -len(name))
        values = np.asarray(vector[()], np.float64).ravel()
        found.append(_Named(name, values, unit if isinstance(unit, str) else "", rank))
    yield from sorted(found, key=lambda one: one.rank, reverse=True)


# ------------------------------------------------------------------------------------------- values

@dataclass
class Packing:
    """How the values of an array are stored: physical value = scale x value + offset."""
    fills: tuple[float, ...] = ()             # values of missing pixels
    low: float | None = None                  # a smaller stored value is missing too
    high: float | None = None                 # a larger one likewise
    scale: float = 1.0
    offset: float = 0.0
    units: str = ""

    @property
    def packed(self) -> bool:
        return (self.scale, self.offset) != (1.0, 0.0)


def packing_of(dataset: h5py.Dataset) -> Packing:
    """Fill values, valid range, scale and offset from an array's attributes."""
    said = attributes(dataset)

    def number(name: str) -> float | None:
        value = numbers(said.get(name)) if name in said else None
        return float(value[0]) if value is not None and value.size == 1 else None

    fills = [value for name in FILLS if (found := numbers(said.get(name, ""))) is not None
             for value in found]
    ends = numbers(said["validrange"]) if "validrange" in said else None
    low, high = number("validmin"), number("validmax")
    if ends is not None and ends.size == 2:
        low, high = map(float, ends)
    packing = Packing(tuple(dict.fromkeys(map(float, fills))), low, high)
    if "scale_factor" in dataset.attrs:
        packing.scale = number("scalefactor") or 1.0
    elif divisor := number("reflectancescalefactor"):
        packing.scale = 1 / divisor
    packing.offset = number("addoffset") or 0.0
    packing.units = str(said.get("units", said.get("unit", "")))
    return packing
