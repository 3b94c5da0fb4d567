"""One self-contained HTML page of a result: what was run, the table, the figures. It opens from
disk with no network."""
from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch

from utility.report.figures import method_colours
from utility.report.tables import Bold, describe, mean_of, result_table
from utility.system.environment import describe_environment
from utility.system.errors import UserError
from utility.system.files import write_text

_TYPES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}

_STYLE = """
:root { --ink: #1b1f24; --soft: #5d6670; --line: #dfe3e8; --wash: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; color: var(--ink);
  background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
p { margin: .25rem 0 .75rem; } .soft { color: var(--soft); font-size: .9rem; }
.lead { font-size: 1.1rem; margin: .75rem 0 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; margin: 0;
  font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code { font: .88em/1.45 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
dd table { width: auto; max-width: 36rem; } dd tbody:last-child { border-bottom: 0; }
dd code { display: block; background: var(--wash); border: 1px solid var(--line);
  border-radius: 4px; padding: .35rem .6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .45rem; text-align: right; white-space: nowrap; }
thead th, th[scope=rowgroup], td.method { white-space: normal; }
th[scope=rowgroup] { overflow-wrap: anywhere; }
th:first-child, td.method { text-align: left; } th.method { text-align: left; }
thead th { border-bottom: 2px solid var(--ink); font-weight: 600; vertical-align: bottom; }
tbody { border-bottom: 1px solid var(--line); }
tbody th { text-align: left; font-weight: 400; vertical-align: top; }
tbody.mean { background: var(--wash); } tbody.mean th { font-weight: 600; }
td b { font-weight: 700; }
figure { margin: 0 0 2rem; } figure img { display: block; height: auto; max-width: 100%;
  border: 1px solid var(--line); border-radius: 4px; }
figcaption { margin-bottom: .4rem; font-size: .92rem; color: var(--soft); }
@media (max-width: 40rem) { body { padding: 1.25rem .9rem 3rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; } th, td { padding: .3rem .45rem; } }
@media print { html { font-size: 11px; } body { max-width: none; padding: 0; font-size: 1rem; }
  figure, tbody { break-inside: avoid; }
  .scroll { overflow: visible; } th, td { padding: .2rem .3rem; }
  figure img { max-height: 24cm; width: auto; max-width: 100%; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def machine_facts() -> dict[str, str]:
    """Date, CPU and versions; the caller adds the GPU."""
    here = describe_environment(torch.device("cpu"))
    versions = [f"{name} {here[name]}" for name in ("torch", "numpy", "scipy")]
    return {"Date": here["started"].replace("T", " "),
            "Machine": f"{here['platform']}, {here['device']}, threads: {here['threads']}",
            "Versions": ", ".join(
                [f"bi3dqrnn {here['version']}", f"Python {here['python']}", *versions])}


def write_report(path: str | Path, title: str, facts: Mapping[str, Any],
                 images: Sequence[Mapping[str, Any]] = (), methods: Mapping[str, str] | None = None,
                 figures: Sequence[tuple[str, str | Path]] = (), preset: str = "standard",
                 scale: float = 1, border: int = 0, lead: str = "") -> None:
    """Write the page, whole or not at all. The page holds its styles and pictures, and runs no
    script.

    Args:
        facts: shown in this order, then those of `machine_facts` that are not among them. "Command"
            gets a fixed-width font. A list of rows, the header first, is a table. A value of None
            is left out.
        images: as in `metrics.json`, with the numbers of every method; empty without ground truth.
        methods: {name in `images`: what the page calls it}, in the order of the rows.
        figures: (caption, PNG or JPEG file).
        lead: the sentence under the title; by default the gain of the network, or the last method.

    Raises UserError: a figure is missing or is not a PNG or JPEG.
    """
    path = Path(path)
    pictures = [_figure(caption, Path(file)) for caption, file in figures]
    facts = {**facts, **{key: value for key, value in machine_facts().items() if key not in facts}}
    parts = ["<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
             '<meta name="viewport" content="width=device-width, initial-scale=1">',
             f"<title>{escape(title)}</title>", f"<style>{_STYLE}</style>", "</head>", "<body>",
             f"<h1>{escape(title)}</h1>"]
    lead = lead or (_gain(images, methods) if images else "")
    if lead:
        parts.append(f'<p class="lead">{escape(lead)}</p>')
    if images:
        how = describe(preset, scale, border, images, methods)
        how = escape(f"{how[0].upper()}{how[1:]}. Bold: the best of each group.")
        parts += ["<h2>Results</h2>", _table(images, methods, preset), f'<p class="soft">{how}</p>']
    parts += ["<h2>What was run</h2>", _facts(facts)]
    if pictures:
        parts += ["<h2>Figures</h2>", *pictures]
    parts += ["</body>", "</html>", ""]
    write_text(path, "\n".join(parts))


def _gain(images: Sequence[Mapping[str, Any]], methods: Mapping[str, str]) -> str:
    psnr = {key: mean_of([image[key] for image in images])["psnr"] for key in methods}
    ours = "network" if "network" in methods else list(methods)[-1]
    over = f"over {len(images)} images" if len(images) > 1 else "on one image"
    rivals = []
    for key, label in methods.items():
        if key != ours:
            where = "above" if psnr[ours] >= psnr[key] else "below"
            rivals.append(f"{abs(psnr[ours] - psnr[key]):.2f} dB {where} the {psnr[key]:.2f} dB of "
                          f"{label}")
    return ", ".join([f"{methods[ours]}: {psnr[ours]:.2f} dB PSNR {over}", *rivals]) + "."


def _table(images: Sequence[Mapping[str, Any]], methods: Mapping[str, str], preset: str) -> str:
    header, groups = result_table(images, methods, preset)
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in header[2:])
    parts = ['<div class="scroll"><table>',
             '<thead><tr><th scope="col">Image</th><th scope="col" '
             f'class="method">Method</th>{head}</tr></thead>']
    for number, group in enumerate(groups):
        parts.append("<tbody>" if number < len(images) else '<tbody class="mean">')
        for (name, label, *values), colour in zip(group, method_colours(len(methods)), strict=True):
            first = (f'<th scope="rowgroup" rowspan="{len(methods)}">{escape(name)}</th>' if name
                     else "")
            cells = "".join(
                f"<td><b>{v}</b></td>" if isinstance(v, Bold) else f"<td>{v}</td>" for v in values)
            parts.append(f'<tr>{first}<td class="method" style="color: '
                         f'{colour}">{escape(label)}</td>{cells}</tr>')
        parts.append("</tbody>")
    return "\n".join([*parts, "</table></div>"])


def _facts(facts: Mapping[str, Any]) -> str:
    parts = ["<dl>"]
    for key, value in facts.items():
        if value is not None:
            text = _rows(value) if isinstance(value, list) else escape(str(value))
            if key == "Command":
                text = f"<code>{text}</code>"
            parts.append(f"<dt>{escape(str(key))}</dt><dd>{text}</dd>")
    return "\n".join([*parts, "</dl>"])


def _rows(rows: Sequence[Sequence[str]]) -> str:
    """A small table, its first row the header and its first column what a row is about."""
    header, *body = ([escape(cell) for cell in row] for row in rows)
    parts = ["<thead><tr>", *(f'<th scope="col">{cell}</th>' for cell in header), "</tr></thead>",
             "<tbody>"]
    for first, *cells in body:
        parts += [f'<tr><th scope="row">{first}</th>', *(f"<td>{cell}</td>" for cell in cells),
                  "</tr>"]
    return "".join(['<div class="scroll"><table>', *parts, "</tbody></table></div>"])


def _figure(caption: str, file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"The figure {file} cannot be read ({error.strerror}); draw it before "
                        "writing the report.") from error
    kind = next((kind for magic, kind in _TYPES.items() if data.startswith(magic)), None)
    if kind is None:
        raise UserError(f"The figure {file} is neither PNG nor JPEG; save it as PNG.")
    text = base64.b64encode(data).decode("ascii")
    # All figures have one size of type: their resolution is the same, and the page shows two thirds
    # of it.
    width = f' width="{int.from_bytes(data[16:20], "big") * 2 // 3}"' if kind == "png" else ""
    return (f'<figure><figcaption>{escape(caption)}</figcaption>'
            f'<img alt="{escape(caption)}"{width} src="data:image/{kind};base64,{text}"></figure>')
