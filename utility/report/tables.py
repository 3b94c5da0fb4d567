"""Results of methods on images as tables: text for a terminal, CSV, LaTeX and Markdown.

`images` are those of metrics.json: dicts with "name", under every method's name what
`indexes.evaluate` returned, and perhaps `dark_bands`. `methods` is {name in `images`: what a table
calls the method}, in the order of the rows. A table is a header and groups of rows; a cell that is
the best of its group is `Bold`.
"""
from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utility.indexes import COUNTS, DARK, METRICS
from utility.system.errors import UserError
from utility.system.files import replacing

Images = Sequence[Mapping[str, Any]]
Methods = Mapping[str, str]
Groups = Sequence[Sequence[Sequence[str]]]


class Bold(str):
    """A cell that a table prints in bold."""

    __slots__ = ()


def mean_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of each index over images without undefined ones (None); sums of `indexes.COUNTS`."""
    if not rows:
        raise UserError(
            "There is no image to take the mean of; give at least one ground-truth cube.")
    mean: dict[str, Any] = {}
    for key in rows[0]:
        values = [row[key] for row in rows if row[key] is not None]
        if key in COUNTS:
            mean[key] = int(sum(values))
        else:
            mean[key] = float(np.mean(values)) if values else None
    return mean


def result_table(images: Images, methods: Methods, preset: str,
                 keys: Iterable[str] = METRICS) -> tuple[list[str], Groups]:
    """Header and groups, a row per image and method; last the means, and sums of the pixels."""
    groups = []
    for name, rows in [*(
        (f"{image['name']}{' *' * bool(image.get('trained_on'))}", image) for image in images),
                       (f"mean of {len(images)}",
                        {key: mean_of([image[key] for image in images]) for key in methods})]:
        cells: list[list[str]] = [
            ["" if k else name, label] for k, label in enumerate(methods.values())]
        for index in keys:
            values = [rows[key][index] for key in methods]
            for row, value, best in zip(cells, values, METRICS[index].best(values), strict=True):
                row.append((Bold if best else str)(METRICS[index].format(value)))
        for row, key in zip(cells, methods, strict=True):
            row.append(str(rows[key]["counted_pixels"]))
        groups.append(cells)
    return ["image", "method", *(METRICS[index].header(preset) for index in keys), "pixels"], groups


def describe(preset: str, scale: float, border: int, images: Images = (),
             methods: Methods | None = None) -> str:
    """A line under a table: preset, scale, border, and the pixels and bands that the indexes left
    out."""
    words = [f"preset {preset}, scale x{scale:g}, border {border} px, data in [0, 1]"]
    means = ({
        label: mean_of([image[key] for image in images]) for key, label in (methods or {}).items()}
             if images else {})
    skipped = max((mean["skipped_pixels"] for mean in means.values()), default=0)
    outside = {
        label: mean["outside_values"] for label, mean in means.items() if mean["outside_values"]}
    if missing := sum(image.get("missing_pixels", 0) for image in images):
        words.append(f"{missing} pixels are missing, and neither they nor those whose degraded "
                     "pixel they have a part in count")
    if skipped:
        words.append(f"SAM leaves out {skipped} pixels whose spectrum is zero")
    for image in images:
        if dark := ", ".join(map(str, image.get("dark_bands") or ())):
            words.append(f"ERGAS of {image['name']} leaves out bands {dark}, whose mean is below "
                         f"{DARK:.0%} of the cube's")
    if any(image.get("trained_on") for image in images):
        words.append("*: the network was trained on pixels of this image")
    if any("trained_on" in image and image["trained_on"] is None for image in images):
        words.append("the checkpoint does not say which scenes the network was trained on")
    if outside:
        words.append("values outside [0, 1]: " + ", ".join(
            f"{label} {count}" for label, count in outside.items()))
    return "; ".join(words)


def format_table(images: Images, methods: Methods, preset: str, scale: float,
                 border: int = 0) -> str:
    """The results as text for a terminal: one row per image and method, then the means."""
    header, groups = result_table(images, methods, preset)
    lines = [header, *(row for group in groups for row in group)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    rule = "  ".join("-" * w for w in widths)
    text = ["  ".join([*map(str.ljust, line[:2], widths[:2]),
                       *map(str.rjust, line[2:], widths[2:])]) for line in lines]
    mean = len(text) - len(methods)
    return "\n".join([text[0], rule, *text[1:mean], rule, *text[mean:],
                      f"({describe(preset, scale, border, images, methods)})"])


def latex(header: Sequence[str], groups: Groups, note: str = "") -> str:
    r"""A tabular for `\input`, which needs no package; columns of numbers to the right."""
    def cell(text: str) -> str:
        escaped = re.sub(r"[\\&%$#_{}~^<>|↑↓±]", lambda found: _LATEX[found[0]], text)
        return rf"\textbf{{{escaped}}}" if isinstance(text, Bold) else escaped

    columns = list(zip(*(row for group in groups for row in group), strict=True))
    numeric = [all(not entry or re.match(r"[-+]?[\d.]|-$", entry) for entry in column)
               for column in columns]
    lines = [" & ".join(map(cell, header)) + r" \\", r"\hline"]
    for group in groups:
        lines += [" & ".join(map(cell, row)) + r" \\" for row in group] + [r"\hline"]
    notes = [f"% {line}" for line in note.splitlines()]
    return "\n".join([*notes,
                      fr"\begin{{tabular}}{{{''.join('r' if n else 'l' for n in numeric)}}}",
                      r"\hline", *lines, r"\end{tabular}", ""])


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
          "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "↑": r"$\uparrow$",
          "↓": r"$\downarrow$", "±": r"$\pm$", **{c: f"\\{c}" for c in "&%$#_{}"}}


def markdown(header: Sequence[str], groups: Groups) -> str:
    """A table of GitHub's Markdown."""
    def line(cells: Sequence[str]) -> str:
        escaped = (cell.replace("|", "\\|") for cell in cells)
        return "| " + " | ".join(f"**{text}**" if isinstance(cell, Bold) else text
                                 for cell, text in zip(cells, escaped, strict=True)) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header),
                      *(line(row) for group in groups for row in group), ""])


def write_csv(path: str | Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows, the first of them the header, whole or not at all; six digits of a number, None
    and NaN are empty cells."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def result_rows(results: Mapping[str, Any], methods: Methods) -> list[list[Any]]:
    """The rows of metrics.csv: one for each image and method with the numbers of metrics.json, then
    the means."""
    facts = [results[key] for key in ("preset", "scale", "degradation", "noise", "border")]
    rows: list[list[Any]] = [["image", "method", "preset", "scale", "degradation", "noise",
                              "border_px", *_titles(results["preset"]), *COUNTS]]
    for image in [*results["images"], {"name": "mean", **results["mean"]}]:
        rows += [[image["name"], method, *facts,
                  *(image[method][key] for key in (*METRICS, *COUNTS))] for method in methods]
    return rows


def band_rows(name: str, bands: Mapping[str, Mapping[str, np.ndarray]], preset: str,
              wavelengths: Sequence[float] | None = None,
              pixels: int | None = None) -> list[list[Any]]:
    """The rows of metrics_bands.csv for one image, under `band_header`.

    Args:
        bands: {method: what `indexes.Comparison.band_indexes` gave}.
        pixels: how many count.
    """
    rows = []
    for method, indexes in bands.items():
        for b, values in enumerate(zip(*indexes.values(), strict=True)):
            nm = None if wavelengths is None else wavelengths[b]
            rows.append([name, method, preset, b, nm, pixels, *map(float, values)])
    return rows


def band_header(preset: str) -> list[str]:
    """The header of metrics_bands.csv; for a band's part in SAM and ERGAS see
    `indexes.Comparison.band_indexes`."""
    titles = _titles(preset, [name for name, metric in METRICS.items() if metric.of_band])
    # of these a band has a part
    parts = [re.sub(r"^(sam|ergas)\b", r"\1_part", title) for title in titles]
    return ["image", "method", "preset", "band", "wavelength_nm", "pixels", *parts]


def _titles(preset: str, keys: Iterable[str] = METRICS) -> list[str]:
    return [f"{key} [{unit}]" if (unit := METRICS[key].unit_in(preset)) else key for key in keys]
