"""Facts on bands in fields of text, as ENVI headers, GDAL's tags and band names hold them.

A field that is not understood is left out with a note; the pixels are read all the same.
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utility.cubes.companions import nanometres, unit_in_nm

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
NAMED = re.compile(r"(\d+(?:\.\d+)?)\s*"
                   r"(nm|nanomet(?:er|re)s?|um|µm|μm|micromet(?:er|re)s?|microns?)\b", re.I)
ALONE = re.compile(r"(?:[a-z]+[\s_]*\d*\s*)?\(?(\d{3,5}(?:\.\d+)?)\)?", re.I)
"""A band name of one number that may be a wavelength, `Band_450` or `Band 1 (450.0)`; three digits
at least, so in nm."""


def band_facts(fields: Mapping[str, Any], bands: int) -> tuple[dict[str, Any], list[str]]:
    """Facts (those of `cube.Facts`) in the fields of an ENVI header, and notes on those left out.

    Args:
        fields: name in lower case with spaces -> text, or a list of texts.
        bands: how many values a list must have.
    """
    notes: list[str] = []

    def listed(name: str) -> np.ndarray | None:
        parts = parts_of(fields.get(name))
        if not parts:
            return None
        values = [NUMBER.match(part.strip()) for part in parts]
        if len(parts) != bands or not all(values):
            found = "something other than numbers"
            if len(parts) != bands:
                found = f"{len(parts)} values for {bands} bands"
            notes.append(f"'{name}' lists {found}, and is left out; give one number for each band")
            return None
        return np.array([float(value.group()) for value in values])

    units = fields.get("wavelength units")
    centres, widths, flags = listed("wavelength"), listed("fwhm"), listed("bbl")
    gain, offset = listed("data gain values"), listed("data offset values")
    divisor = NUMBER.match(str(fields.get("reflectance scale factor", "")).strip())
    if gain is None and divisor and float(divisor.group()) > 0:
        gain = np.full(bands, 1 / float(divisor.group()))
    names = _names(fields.get("band names"), bands, notes)
    if centres is not None and not units:
        spelled = NAMED.search(parts_of(fields["wavelength"])[0])
        units = spelled.group(2) if spelled else units
    nm = None if centres is None else nanometres(centres, units)
    by = "wavelength"
    if nm is None and centres is None and names and (nm := wavelengths_in(names)) is not None:
        by = "the names of the bands"
    facts = {"wavelengths": nm, "wavelengths_by": "" if nm is None else by, "band_names": names,
             "fwhm": None if widths is None else _widths(widths, units, nm),
             "good": None if flags is None else flags != 0, "gain": gain, "offset": offset}
    if offset is not None and gain is None:
        facts["gain"] = np.ones(bands)
    plain = gain is not None and np.all(gain == 1) and (offset is None or not offset.any())
    if plain or (gain is not None and np.all(gain == 0)):
        facts["gain"] = facts["offset"] = None
    if "data ignore value" in fields:
        try:
            value, = parts_of(fields["data ignore value"])
            facts["nodata"] = float(value)
        except ValueError:
            notes.append(f"'data ignore value' is {fields['data ignore value']!r}, and is left out")
    return facts, notes


def decimal(value: float) -> str:
    """A wavelength or width in the fewest digits that give it again: of a number that float32
    holds, such as 406.899993896, the shortest that float32 takes for it, 406.9."""
    narrow = np.float32(value)
    exact = float(narrow) == float(value)
    return str(narrow).removesuffix(".0") if exact else f"{value:.12g}"


def parts_of(value: Any) -> list[str]:
    """The entries of a list in a field, a last empty one after a comma left out."""
    if value is None:
        return []
    if isinstance(value, str):
        value = value.strip().strip("{}").split(",") if "{" in value or "," in value else [value]
    parts = [str(part).strip() for part in value]
    while parts and not parts[-1]:
        parts.pop()
    return parts


def _names(value: Any, bands: int, notes: list[str]) -> list[str] | None:
    """Band names, of which each may hold commas: in quotes, or as many in every name."""
    parts = parts_of(value)
    if len(parts) > bands and any(part.startswith('"') for part in parts):
        joined, inside = [], False
        for part in parts:
            joined = [*joined[:-1], f"{joined[-1]}, {part}"] if inside else [*joined, part]
            inside = joined[-1].count('"') % 2 == 1
        parts = [part.strip('"') for part in joined]
    if parts and len(parts) != bands and len(parts) % bands == 0:
        each = len(parts) // bands
        parts = [", ".join(parts[i * each:(i + 1) * each]) for i in range(bands)]
    if parts and len(parts) != bands:
        notes.append(f"'band names' lists {len(parts)} values for {bands} bands, and is left out")
        return None
    return parts or None


def _widths(values: np.ndarray, units: str | None, nm: np.ndarray | None) -> np.ndarray | None:
    """Widths in nm: in the unit of the wavelengths; without one, below 1 they are micrometres."""
    factor = unit_in_nm(units)
    if factor is None:
        factor = 1e3 if values.max() < 1 else 1.0
    return values * factor if nm is not None else None


def wavelengths_in(names: Sequence[str]) -> np.ndarray | None:
    """Wavelengths in nm that stand in band names, such as '550.5 nm' or 'Band_450'; all or none."""
    found = [NAMED.search(name) for name in names]
    if all(found):
        units = {match.group(2).lower() for match in found}
        values = [float(match.group(1)) for match in found]
        return nanometres(values, units.pop()) if len(units) == 1 else None
    alone = [ALONE.fullmatch(name.strip()) for name in names]
    if not all(alone) or len(names) < 2:
        return None
    nm = np.array([float(match.group(1)) for match in alone])
    steps = np.diff(nm)
    rising = np.all(steps > 0) and not np.all(steps == 1)  # 101, 102, 103: numbers of bands
    return nm if rising and nm[0] >= 300 and nm[-1] <= 15000 else None


def band_tags(tags: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The same facts in tags of each band; a fact counts where every band has it."""
    lower = [{name.lower(): text for name, text in tag.items()} for tag in tags]

    def column(*names: str) -> list[str] | None:
        for name in names:
            if all(name in tag for tag in lower):
                return [tag[name] for tag in lower]
        return None

    centres = column("wavelength", "center_wavelength", "central_wavelength")
    fields: dict[str, Any] = {"wavelength": centres, "fwhm": column("fwhm"), "bbl": column("bbl")}
    units = {tag.get("wavelength_units") or tag.get("wavelength_unit") or tag.get("wavelengthunits")
             or "" for tag in lower}
    if len(units) == 1:
        fields["wavelength units"] = units.pop()
        facts, _ = band_facts({name: value for name, value in fields.items() if value}, len(tags))
    else:
        facts, _ = band_facts({"bbl": fields["bbl"]}, len(tags))
    if micrometres := column("central_wavelength_um"):
        imagery, _ = band_facts({"wavelength": micrometres, "fwhm": column("fwhm_um"),
                                 "wavelength units": "um"}, len(tags))
        facts = merged(facts, imagery)
    return {name: value for name, value in facts.items() if value is not None}


def merged(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """For each fact the first source that has it; gain and offset, and wavelengths and their place,
    stay together."""
    together = {"offset": "gain", "wavelengths_by": "wavelengths"}
    found: dict[str, Any] = {}
    for source in sources:
        new = {name for name, value in source.items() if value is not None
               and found.get(together.get(name, name)) is None}
        found |= {name: source[name] for name in new}
    return found
