"""The tables: every method in order, the best in bold, with preset, unit and border."""
from __future__ import annotations

import csv
import shutil
import subprocess

import numpy as np
import pytest
from made import scored

from utility.indexes import COUNTS, METRICS, Comparison
from utility.report import tables
from utility.system.errors import UserError

METHODS = {"interpolation": "interpolation", "backprojection": "back-projection",
           "network": "biqrnn_16_5"}


@pytest.fixture
def images() -> list[dict]:
    images = scored("a", "b")
    images[1]["interpolation"]["cc"] = None
    return images


def test_the_mean_over_images_leaves_out_undefined_values_and_adds_up_skipped_pixels():
    rows = [{"psnr": 30.0, "cc": None, "skipped_pixels": 2},
            {"psnr": 40.0, "cc": 0.5, "skipped_pixels": 3}]
    assert tables.mean_of(rows) == {"psnr": 35.0, "cc": 0.5, "skipped_pixels": 5}
    with pytest.raises(UserError):
        tables.mean_of([])


def test_the_printed_table_has_every_method_in_the_order_given_with_preset_unit_and_border(images):
    lines = tables.format_table(images, METHODS, "standard", 4).splitlines()
    assert "PSNR [dB] ↑" in lines[0] and "SAM [deg] ↓" in lines[0]
    assert [line.split()[0] for line in lines if not line.startswith(("-", " ", "("))] == [
        "image", "a", "b", "mean"]
    for k, (key, label) in enumerate(METHODS.items()):
        assert label in lines[2 + k] and f"{images[0][key]['psnr']:.3f}" in lines[2 + k]
        assert sum(label in line for line in lines) == 3
    assert lines[-1] == "(preset standard, scale x4, border 0 px, data in [0, 1])"
    assert "SAM [rad]" in tables.format_table(images, METHODS, "reference", 4)
    assert len(tables.format_table(images, {"network": "x"}, "standard", 4).splitlines()) == 7


def test_what_the_indexes_left_out_or_counted_is_said_below_the_table(images):
    images[0]["dark_bands"] = [1, 7]
    images[1]["network"] = {**images[1]["network"], "outside_values": 4, "skipped_pixels": 2}
    last = tables.format_table(images, METHODS, "standard", 4).splitlines()[-1]
    assert ("SAM leaves out 2 pixels whose spectrum is zero; ERGAS of a leaves out bands 1, 7, "
            "whose mean is below 1%" in last)
    assert last.endswith("values outside [0, 1]: biqrnn_16_5 4)")


def test_the_best_of_each_group_is_bold(images):
    header, groups = tables.result_table(images, METHODS, "standard", ("psnr", "sam", "cc"))
    assert (header == ["image", "method", "PSNR [dB] ↑", "SAM [deg] ↓", "CC ↑", "pixels"]
            and len(groups) == 3)
    for group in groups:
        assert ([[isinstance(cell, tables.Bold) for cell in row[:5]] for row in group]
                == [[False] * 5] * 2 + [[False] * 2 + [True] * 3])
    assert groups[0][0][5] == str(images[0]["interpolation"]["counted_pixels"])
    assert groups[1][0][4] == "-"


def balanced(text: str) -> bool:
    depth = 0
    for before, char in zip(" " + text, text, strict=False):
        depth += (char == "{") - (char == "}") if before != "\\" else 0
        if depth < 0:
            return False
    return depth == 0


def test_the_latex_table_is_a_tabular_that_needs_no_package(images):
    images[0]["name"] = evil = "50%_{a}&#$^~\\b"
    text = tables.latex(*tables.result_table(images, METHODS, "standard"),
                        note="preset standard\nborder 0 px")
    assert text.startswith(
        "% preset standard\n% border 0 px\n\\begin{tabular}{ll" + "r" * (len(METRICS) + 1) + "}\n")
    assert text.endswith("\\end{tabular}\n") and balanced(text)
    body = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(body) == 1 + 3 * 3
    assert all(line.replace(r"\&", "").count("&") == 2 + len(METRICS) for line in body)
    assert (r"50\%\_\{a\}\&\#\$\textasciicircum{}\textasciitilde{}\textbackslash{}b "
            "& interpolation" in body[1])
    assert (fr"\textbf{{{images[0]['network']['psnr']:.3f}}}" in body[3]
            and r"\textbf" not in body[1] + body[2])
    assert "biqrnn\\_16\\_5" in body[3] and r"PSNR [dB] $\uparrow$" in body[0]
    assert evil not in text and text.isascii()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")
def test_the_latex_table_compiles(images, tmp_path):
    images[0]["name"] = "50%_{a}&#$^~\\b<c>|d"
    table = tables.latex(*tables.result_table(images, METHODS, "standard"), note="preset standard")
    (tmp_path / "page.tex").write_text(
        fr"\documentclass{{article}}\begin{{document}}{table}\end{{document}}")
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page"],
                          cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()[-1000:]


def test_the_markdown_table_has_the_same_cells(images):
    images[0]["name"] = "a|b"
    lines = tables.markdown(*tables.result_table(images, METHODS, "standard", ["psnr"])).splitlines(
        )
    assert lines[:3] == [
        "| image | method | PSNR [dB] ↑ | pixels |", "|---|---|---|---|",
        f"| a\\|b | interpolation | {images[0]['interpolation']['psnr']:.3f} | 540 |"]
    assert lines[4] == f"|  | biqrnn_16_5 | **{images[0]['network']['psnr']:.3f}** | 540 |"


def test_the_csv_holds_the_numbers_of_every_image_method_and_band(images, tmp_path):
    results = {"preset": "standard", "scale": 4, "degradation": "gaussian", "noise": 0.0,
               "border": 0, "images": images,
               "mean": {key: tables.mean_of([image[key] for image in images]) for key in METHODS}}
    tables.write_csv(tmp_path / "metrics.csv", tables.result_rows(results, METHODS))
    header, *rows = csv.reader((tmp_path / "metrics.csv").open(newline=""))
    assert header[7:] == ["psnr [dB]", "cube_psnr [dB]", "ssim", "sam [deg]", "ergas", "cc", "rmse",
                          "q", *COUNTS]
    assert [row[:2] for row in rows] == [
        [name, key] for name in ("a", "b", "mean") for key in METHODS]
    assert rows[2][7] == f"{images[0]['network']['psnr']:.6g}" and rows[3][12] == ""  # undefined
    gt = np.linspace(0.1, 0.9, 3 * 144).reshape(3, 12, 12)
    bands = {"network": Comparison(gt + 0.1, gt, 4).band_indexes()}
    header, found = (tables.band_header("standard"),
                     tables.band_rows("a", bands, "standard", [400.0, 500.0, 600.0], 144))
    assert (header
            == ["image", "method", "preset", "band", "wavelength_nm", "pixels", "psnr [dB]", "ssim",
                "sam_part [deg]", "ergas_part", "cc", "rmse", "q"])
    assert [row[:5] for row in found] == [
        ["a", "network", "standard", b, nm] for b, nm in enumerate((400.0, 500.0, 600.0))]
    assert ([row[5] for row in found] == [144] * 3
            and [row[6] for row in found] == pytest.approx([20, 20, 20]))
