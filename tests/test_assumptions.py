"""What other MTFs of the sensor would change in the result of a user's own cube."""
from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import hsi_test
from data.rendering import render_scene
from utility.cubes.cube import Scene
from utility.degradation import downsample
from utility.report import figures
from utility.scenes import read_scene, write_scene
from utility.superres import assumptions, cube_file
from utility.superres.assumptions import MTFS, SIDE, middle, other_mtfs, under_other_mtfs
from utility.superres.problem import Problem, sensor_in_words

SAFE = Problem(4, "mtf 0.7", "backprojection", mtf_known=False, method="backprojection")


@pytest.fixture(scope="module")
def low() -> np.ndarray:
    cube = render_scene("natural", seed=5, number=1)
    return downsample(torch.from_numpy(cube), 4, "mtf 0.3").numpy()


def test_the_taken_mtf_is_not_another_one():
    assert other_mtfs(SAFE) == [m for m in MTFS if m != 0.7]
    assert other_mtfs(Problem(4, "mtf 0.26", method="backprojection")) == [0.15, 0.5, 0.7]


@pytest.mark.parametrize("kind, method", [("bicubic", "backprojection"),
                                          ("mtf 0.3", "interpolation")])
def test_there_is_none_where_no_mtf_is_assumed(low, kind, method):
    problem = Problem(4, kind, method=method)
    assert under_other_mtfs(None, low, problem) == ([], {})


def test_the_softer_the_sensor_the_more_a_result_changes(low):
    rows, cubes = under_other_mtfs(None, low, SAFE)
    assert [row["mtf"] for row in rows] == [0.15, 0.3, 0.5]
    for first, second in pairwise(rows):
        assert first["differs"] > second["differs"] > 0 and first["halo"] > second["halo"]
    own, *others = cubes.values()
    for row, cube in zip(rows, others, strict=True):
        assert row["differs"] == pytest.approx(np.sqrt(np.square(cube - own).mean()), rel=1e-4)


def test_what_nobody_measured_does_not_count(low):
    holed = low.copy()
    holed[:, :, low.shape[2] // 2:] = np.nan
    rows, cubes = under_other_mtfs(None, holed, SAFE)
    whole, _ = under_other_mtfs(None, np.where(np.isnan(holed), 1e3, holed), SAFE)
    assert all(0 < row["differs"] < 0.1 for row in rows)
    assert all(row["differs"] > 1 for row in whole)
    missing = np.isnan(middle(holed)).repeat(4, 1).repeat(4, 2)
    assert len(cubes) == 4
    assert all(np.array_equal(np.isnan(cube), missing) for cube in cubes.values())


def test_the_middle_is_no_larger_than_its_side():
    assert middle(np.zeros((2, 200, 30))).shape == (2, SIDE, 30)


def test_the_report_of_a_cube_shows_them(tmp_path, monkeypatch, low):
    monkeypatch.chdir(tmp_path)
    np.save("low.npy", low)
    assert not hsi_test.main(["--input", "low.npy", "--layout", "BHW", "--output", "high.npy",
                              "--method", "backprojection", "--scale", "4", "--report", "--quiet"])
    summary = json.loads(Path("high_report/summary.json").read_text())
    assert [row["mtf"] for row in summary["other_mtfs"]] == [0.15, 0.3, 0.5]
    page = Path("high_report/report.html").read_text()
    for row in summary["other_mtfs"]:
        assert (f'<th scope="row">--mtf {row["mtf"]}</th><td>{row["differs"]:.2%}</td>'
                f"<td>{row['halo']:.1%}</td></tr>") in page
    assert "Start</dt>" not in page
    assert "assumes a sensor&#x27;s MTF of 0.7" in page
    assert Path("high_report/assumptions.png").stat().st_size > 10_000


@pytest.fixture
def drawn(request, tmp_path, monkeypatch, low) -> list[Figure]:
    """figure.png and assumptions.png of a report on the middle of a cube whose file states a
    gain and an offset, and as netCDF units too; the result is high, of the same container."""
    suffix = getattr(request, "param", ".tif")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cube_file, "PREVIEW", 80)
    monkeypatch.setattr(assumptions, "SIDE", 16)
    monkeypatch.setattr(figures, "DPI", 40)
    found, draw = [], figures.no_truth_figure
    monkeypatch.setattr(figures, "no_truth_figure",
                        lambda *args, **how: found.append(draw(*args, **how)))
    bands = np.ones(len(low))
    scene = Scene(np.round(1e4 * low).astype(np.int16), "low", gain=0.02 * bands,
                  offset=-3.0 * bands, units="W/m2/sr/um")
    write_scene(f"low{suffix}", scene)
    assert not hsi_test.main(["--input", f"low{suffix}", "--output", f"high{suffix}", "--report",
                              "--quiet", "--method", "backprojection", "--scale", "4"])
    return found


@pytest.mark.parametrize(
    "drawn, stated", [(".tif", "gain × value + offset"), (".nc", "W/m2/sr/um")], indirect=["drawn"])
def test_the_spectra_of_a_report_are_the_physical_values_at_the_pixels_they_name(
        drawn, stated, low):
    made = read_scene(next(Path().glob("high.*")))
    gain, offset = (1, 0) if made.gain is None else (made.gain, made.offset)
    for fig in drawn:
        panels = [ax for ax in fig.axes if ax.lines and ax.get_ylabel()]
        assert len(panels) == 2
        for ax in panels:
            assert ax.get_ylabel() == f"Physical value\n({stated})"
            row, column = map(int, re.fullmatch(
                r"[AB]: row (\d+), column (\d+) of the result", ax.get_title()).groups())
            spectrum = 200 * low[:, row // 4, column // 4] - 3
            np.testing.assert_allclose(ax.lines[0].get_ydata(), spectrum, atol=0.0101)
            if fig is drawn[0]:  # the values in the file are rounded
                line = next(line for line in ax.lines if line.get_label() == "Back-projection")
                spectrum = gain * made.cube[:, row, column] + offset
                np.testing.assert_allclose(line.get_ydata(), spectrum, atol=0.0101)


@pytest.mark.parametrize("options, label, factor", [
    ((), "Values as stored\nin the file", 1e4),
    (("--unit-range",), "Values in [0, 1] of\nthe scene's range", 1.0)])
def test_without_a_stated_meaning_spectra_are_the_values_of_the_results_file(
        tmp_path, monkeypatch, low, options, label, factor):
    monkeypatch.chdir(tmp_path)
    found, draw = [], figures.no_truth_figure
    monkeypatch.setattr(figures, "no_truth_figure",
                        lambda *args, **how: found.append(draw(*args, **how)))
    unit = (low - low.min()) / (low.max() - low.min())
    np.save("low.npy", 1e4 * unit)
    assert not hsi_test.main(["--input", "low.npy", "--layout", "BHW", "--output", "high.npy",
                              "--method", "backprojection", "--scale", "4", "--report", "--quiet",
                              *options])
    ax = next(ax for ax in found[0].axes if ax.get_title().startswith("A: "))
    row, column = map(int, re.findall(r"\d+", ax.get_title()))
    assert ax.get_ylabel() == label
    np.testing.assert_allclose(ax.lines[0].get_ydata(), factor * unit[:, row // 4, column // 4],
                               rtol=1e-4, atol=1e-3)


def test_a_method_has_one_colour_in_both_figures_of_a_report(drawn):
    def styles(fig: Figure) -> dict[str, tuple[str, str]]:
        lines = [line for ax in fig.axes for line in ax.lines if not ax.images]
        return {line.get_label(): (line.get_color(), line.get_linestyle()) for line in lines}

    first, second = map(styles, drawn)
    assert second["Taken: MTF 0.7"] == first["Back-projection"] == (figures.BACKPROJECTION, "-")
    colours = [colour for colour, _ in second.values()]
    assert len(set(colours)) == len(colours) == 5
    assert not {figures.INTERPOLATION, figures.NETWORK} & set(colours)
    assert {style for _, style in second.values()} == {"-"}


def test_a_crop_says_whose_pixels_it_shows(drawn):
    titles = [ax.get_title() for ax in drawn[0].axes]
    assert "Crop: 12 × 12 input pixels" in titles and "48 × 48 pixels at ×4" in titles


def test_an_interpolation_is_said_to_take_no_account_of_a_sensor():
    words = sensor_in_words(Problem(4, "mtf 0.7", mtf_known=False, method="interpolation"), 20.0)
    assert words == "interpolates, whatever the sensor's MTF is; its agreement is that of 0.7"
    assert "20 dB" in sensor_in_words(SAFE, 20.0)


def test_a_cube_of_two_bands_is_not_taken_for_noisy_and_its_result_says_why(
        tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scene = render_scene("natural", seed=7, number=0, bands=31, side=96)[[5, 25]]
    np.save("low.npy", downsample(torch.from_numpy(scene), 4, "mtf 0.3").numpy())
    written = []
    for number, snr in enumerate(([], ["--snr", "none"], ["--snr", "30"])):
        assert not hsi_test.main(["--input", "low.npy", "--layout", "BHW", "--output",
                                  f"{number}.npy", "--mtf", "0.3", *snr])
        said = capsys.readouterr().out
        assert ("2 bands are too few to tell its noise, which --snr DB says" in said) == (not snr)
        assert ("ratio of 30 dB" in said) == (snr[1:] == ["30"])
        written.append(np.load(f"{number}.npy"))
    np.testing.assert_array_equal(written[0], written[1])
    assert not np.array_equal(written[1], written[2])
