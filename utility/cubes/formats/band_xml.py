"""The description of bands in the XML that DLR delivers beside an image (EnMAP, DESIS)."""
from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

LIMIT = 64 << 20
"""Bytes of such a file at most."""

CENTRE, WIDTH, GAIN, OFFSET = (
    ("wavelengthcenterofband",), ("fwhmofband", "wavelengthwidthofband"), ("gainofband",),
    ("offsetofband",))


def facts_in_xml(path: Path, bands: int) -> tuple[dict[str, Any], list[str]]:
    """Facts (those of `cube.Facts`) on the bands, and notes on what is not known."""
    try:
        if path.stat().st_size > LIMIT:
            raise ValueError("it is too large")
        tree = ElementTree.parse(path)
        described, lists = _described(tree), _listed(tree)
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        return {}, [f"{path.name} cannot be read ({error}), so wavelengths and gain are not known"]
    described = next(([described[i] for i in chosen] for chosen in lists
                      if len(chosen) == bands and max(chosen) < len(described)), described)
    if len(described) != bands:
        found = f"{len(described)} bands where the image has {bands}"
        return {}, [f"{path.name} describes {found}, so wavelengths and gain are not known"]

    def column(names: tuple[str, ...]) -> np.ndarray | None:
        found = [next((band[name] for name in names if name in band), None) for band in described]
        return None if None in found else np.array(found)

    facts = {"wavelengths": column(CENTRE), "wavelengths_by": path.name, "fwhm": column(WIDTH),
             "gain": column(GAIN), "offset": column(OFFSET)}
    return {name: value for name, value in facts.items() if value is not None}, []


def _listed(tree: ElementTree.ElementTree) -> list[list[int]]:
    """The bands of each detector, from 0, for an image of one detector alone."""
    lists = []
    for element in tree.iter():
        if element.tag.rpartition("}")[2].lower() == "expectedchannelslist":
            lists.append([int(part) - 1 for part in (element.text or "").split(",")
                          if part.strip()])
    return lists


def _described(tree: ElementTree.ElementTree) -> list[dict[str, float]]:
    """For each band its numbers by their names in lower case."""
    found = []
    for element in tree.iter():
        inside = {child.tag.rpartition("}")[2].lower(): (child.text or "").strip()
                  for child in element}
        if CENTRE[0] in inside:
            numbers = {name: inside[name] for name in (*CENTRE, *WIDTH, *GAIN, *OFFSET)
                       if name in inside}
            found.append({name: float(text) for name, text in numbers.items()})
    return found
