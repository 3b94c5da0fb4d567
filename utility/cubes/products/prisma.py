"""PRISMA L1 and L2 (ASI, HDF-EOS 5): two arms, rows x bands x columns, longest wavelength first.

Reflectance of L2C and L2D, and radiance of L2B, is min + DN (max - min) / 65535 by the attributes
`L2ScaleVnirMin` and so on, and DN 0 is padding; radiance of L1 is DN / `ScaleFactor_Vnir` -
`Offset_Vnir`. A wavelength of 0 marks a dead band. The corners that L2D names are centres of
pixels.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from utility.cubes.companions import choose_key
from utility.cubes.conventions import Packing, attributes, item_at, numbers
from utility.cubes.cube import BY_PRODUCT, Stored
from utility.cubes.formats import hdf5
from utility.cubes.ground import Affine, crs_of, lonlat_of
from utility.cubes.product import Product
from utility.cubes.virtual import joined_arms

ARMS = ("VNIR", "SWIR")
RADIANCE = "W/(m^2 sr um)"


def _swath(file: h5py.File) -> str | None:
    swaths = item_at(file, "HDFEOS/SWATHS")
    return next((name for name in swaths or () if name.startswith("PRS_L")
                 and name.endswith("_HCO")), None)


def open_prisma(path: Path, key: str | None) -> Stored:
    contents = hdf5.contents_of(path)
    swath = _swath(contents.file)
    names = [f"HDFEOS/SWATHS/{swath}/Data Fields/{arm}_Cube" for arm in ARMS]
    names = [name for name in names if name in contents.arrays]
    if key:
        ours = {name: contents.arrays[name].shape for name in names}
        matching = [name for name in names if f"/{name}".endswith(f"/{key.strip('/')}")]
        if not matching:
            contents.file.close()
            return hdf5.open_hdf5(path, key)
        names = [choose_key(path, ours, matching[0])]
    said = attributes(contents.file)
    arms = {name.rpartition("/")[2][:4]: name for name in names}
    packings = {arm: _packing(said, arm) for arm in arms}
    known = all(packing is not None for packing in packings.values())
    found = {arm: _arm(contents, name, said, arm, packings[arm] if known else None)
             for arm, name in arms.items()}
    stored = joined_arms(found)
    if not known:
        stored.notes.append("the scale of an arm is not in the file, so that the values are counts "
                            "(DN)")
    stored.crs, stored.transform = _place(said, stored.array.shape)
    if stored.transform is not None:
        stored.lonlat = None
    return stored


def _number(said: dict[str, Any], name: str) -> float | None:
    value = numbers(said.get(name.lower(), ""))
    return None if value is None else float(value[0])


def _packing(said: dict[str, Any], arm: str) -> Packing | None:
    low, high = _number(said, f"L2Scale{arm}Min") or 0.0, _number(said, f"L2Scale{arm}Max")
    if high is not None and high > low:
        level = str(said.get("processinglevel", "")).upper().removeprefix("L")
        return Packing(fills=(0.0,), scale=(high - low) / 65535, offset=low,
                       units=RADIANCE if level == "2B" else "reflectance")
    scale = _number(said, f"ScaleFactor{arm}")
    if not scale:
        return None
    return Packing(scale=1 / scale, offset=-(_number(said, f"Offset{arm}") or 0.0), units=RADIANCE)


def _arm(contents: hdf5.Contents, name: str, said: dict[str, Any], arm: str,
         packing: Packing | None) -> Stored:
    level2 = any(part.startswith("l2scale") for part in said)
    stored = hdf5.stored_array(contents, name, packing or Packing(fills=(0.0,) if level2 else ()))
    stored.layout, stored.layout_by = "HBW", BY_PRODUCT
    bands = stored.array.shape[1]
    centres, widths = (numbers(said.get(f"list{kind}{arm.lower()}", "")) for kind in ("cw", "fwhm"))
    if centres is not None and len(centres) == bands:
        stored.wavelengths = np.where(centres > 0, centres, np.nan)
        stored.wavelengths_by = f"attribute List_Cw_{arm.title()}"
    stored.fwhm = widths if widths is not None and len(widths) == bands else None
    if stored.lonlat is None:
        stored.lonlat = lonlat_of(contents.file, (stored.array.shape[0], stored.array.shape[2]))
    return stored


def _place(said: dict[str, Any], shape: tuple[int, ...]) -> tuple[str | None, Affine | None]:
    ends = [_number(said, f"Product{corner}corner{axis}") for corner in ("ul", "lr")
            for axis in ("easting", "northing")]
    code = _number(said, "EpsgCode")
    if not code or None in ends or min(shape[1:]) < 2:
        return None, None
    left, top, right, bottom = ends
    across, down = (right - left) / (shape[2] - 1), (bottom - top) / (shape[1] - 1)
    if not across or not down:
        return None, None
    corner = left - across / 2, top - down / 2
    return crs_of({"epsgcode": int(code)}), (across, 0.0, corner[0], 0.0, down, corner[1])


PRODUCT = Product("PRISMA", open_prisma, lambda file: _swath(file) is not None)
