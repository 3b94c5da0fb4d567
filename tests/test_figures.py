"""Figures: any cube can be drawn, panels share their scales, no method chooses anything."""
from __future__ import annotations

from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from utility.indexes import band_psnr, evaluate, sam_map
from utility.report import figures
from utility.report.figures import (
    BACKPROJECTION,
    INTERPOLATION,
    NETWORK,
    TRUTH,
    band_psnr_figure,
    choose_crop,
    choose_pixels,
    comparison_figure,
    composite,
    display_bands,
    error_figure,
    map_figure,
    no_truth_figure,
    spectra_figure,
    training_curve_figure,
)
from utility.system.errors import UserError

VISIBLE = np.linspace(400, 700, 31)


@pytest.fixture(autouse=True)
def _draws_quickly(monkeypatch):
    monkeypatch.setattr(figures, "DPI", 40)


def scene(bands: int = 31, height: int = 24, width: int = 36, seed: int = 0) -> np.ndarray:
    """Two materials, a busy corner at the lower right, values in [0, 1]."""
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 1, bands)
    left = np.broadcast_to(np.arange(width) < width / 2, (height, width))
    cube = np.where(left, (0.2 + 0.5 * x)[:, None, None], (0.7 - 0.5 * x)[:, None, None]).astype(
        np.float32)
    h, w = max(1, height // 4), max(1, width // 4)
    cube[:, -h:, -w:] *= rng.uniform(0.3, 1.2, (h, w)).astype(np.float32)
    return np.clip(cube, 0, 1)


def blurred(cube: np.ndarray, amount: float) -> np.ndarray:
    return (1 - amount) * cube + amount * cube.mean((1, 2), keepdims=True)


def maps(fig: Figure) -> list:
    """The images drawn by a colour scale, colour bars left out."""
    return [im for ax in fig.axes for im in ax.images if im.get_array().ndim == 2]


def words(fig: Figure) -> str:
    artists = fig.findobj(mpl.text.Text)
    return "\n".join(t.get_text() for t in artists)


def assert_drawn(path, fig: Figure) -> None:
    picture = imread(path)
    width, height = fig.get_size_inches()
    np.testing.assert_allclose(picture.shape[:2], (height * 40, width * 40), atol=1)
    assert picture[..., :3].std() > 0.02  # not blank


@pytest.mark.parametrize(("bands", "height", "width", "wavelengths", "count"),
                         [(1, 24, 24, None, 2), (31, 24, 36, VISIBLE, 3), (200, 100, 30, None, 1),
                          (8, 16, 64, np.linspace(450, 900, 8), 6)])
def test_every_figure_draws_any_cube_and_any_number_of_methods(
        tmp_path, bands, height, width, wavelengths, count):
    gt = scene(bands, height, width)
    methods = {f"Method {k}": blurred(gt, 0.1 * k) for k in range(1, count + 1)}
    low = gt[:, :height // 4, :width // 4]
    up = np.repeat(np.repeat(low, 4, 1), 4, 2)
    figures = {"comparison": comparison_figure(
        tmp_path / "comparison.png", gt, methods, wavelengths=wavelengths, name="a scene",
        metrics={k: evaluate(v, gt, 4) for k, v in methods.items()}, scale=4),
               "error": error_figure(tmp_path / "error.png", gt, methods, bands - 1, wavelengths),
               "sam": map_figure(tmp_path / "sam.png",
                                 {k: sam_map(v, gt) for k, v in methods.items()}, "angle", "deg"),
               "psnr": band_psnr_figure(tmp_path / "psnr.png",
                                        {k: band_psnr(v, gt) for k, v in methods.items()},
                                        wavelengths),
               "spectra": spectra_figure(tmp_path / "spectra.png", {"Ground truth": gt, **methods},
                                         [(0, 0), (5, 7), (9, 9)], wavelengths),
               "no_truth": no_truth_figure(tmp_path / "no_truth.png", low,
                                           {label: up for label in methods},
                                           wavelengths=wavelengths, name="mine", scale=4)}
    for name, fig in figures.items():
        assert_drawn(tmp_path / f"{name}.png", fig)
        assert fig.get_figwidth() <= 7.2  # two columns of a page
        assert all(label in words(fig) for label in methods) or name == "no_truth"
    assert len(maps(figures["comparison"])) == len(maps(figures["sam"])) == count
    assert sorted(p.stem for p in tmp_path.iterdir()) == sorted(figures)  # no temporary file stays


def test_composites_are_true_colour_where_wavelengths_allow_and_fall_back_to_the_card():
    assert display_bands(31, VISIBLE) == ((24, 15, 6), "true colour (640, 550, 460 nm)")
    infrared = np.linspace(540, 900, 37)
    assert display_bands(37, infrared)[0] == (32, 11, 1)
    assert "false colour (860, 650, 550 nm)" in display_bands(37, infrared)[1]
    assert display_bands(100, None, (50, 30, 10))[0] == (50, 30, 10)
    # no visible light in it
    assert display_bands(100, np.linspace(1000, 2500, 100), (50, 30, 10))[0] == (50, 30, 10)
    assert display_bands(7)[0] == (5, 3, 1)
    # a card of other bands does not fit
    assert display_bands(7, None, (50, 30, 10))[0] == (5, 3, 1)
    assert display_bands(1, [550.0])[0] == (0, 0, 0)


def test_a_composite_puts_the_long_wavelengths_into_red():
    cube = np.zeros((31, 4, 4), np.float32)
    cube[20:, :2] = 1
    image = composite(cube, VISIBLE)
    assert image.dtype == np.uint8
    assert image.shape == (4, 4, 3)
    assert image[0, 0].tolist() == [255, 0, 0]


def test_composites_with_one_reference_share_their_stretch():
    gt = scene()
    dim = composite(0.5 * gt, VISIBLE, reference=gt)
    assert dim.mean() < 0.8 * composite(gt, VISIBLE, reference=gt).mean()
    # alone, each fills its range
    np.testing.assert_array_equal(composite(0.5 * gt, VISIBLE), composite(gt, VISIBLE))


def test_composites_survive_nan_and_constant_bands():
    cube = scene()
    cube[:, :3] = np.nan
    cube[24] = 0.5
    image = composite(cube, VISIBLE)
    assert image[0].max() == 0
    cube[:] = np.nan
    assert composite(cube).max() == 0


def test_the_comparison_has_one_colour_scale_from_0_to_20_for_all_methods():
    gt = scene()
    fig = comparison_figure(None, gt, {"a": np.clip(gt + 0.2, 0, 1), "b": gt, "c": gt + 0.01})
    shown = maps(fig)
    assert [(im.norm.vmin, im.norm.vmax) for im in shown] == [(0, 20)] * 3
    # times 255, mean over bands
    assert shown[2].get_array().mean() == pytest.approx(2.55, rel=1e-3)
    assert "(×255)" in words(fig)


def test_the_comparison_shows_the_numbers_of_every_method_with_preset_unit_and_border():
    gt = scene()
    methods = {"Interpolation": blurred(gt, 0.5), "Back-projection": blurred(gt, 0.1),
               "Net": blurred(gt, 0.3)}
    rows = {label: evaluate(cube, gt, 4) for label, cube in methods.items()}
    fig = comparison_figure(None, gt, methods, wavelengths=VISIBLE, metrics=rows, name="scene",
                            scale=4)
    text = words(fig)
    assert all(f"{row['psnr']:.3f}" in text for row in rows.values())
    assert "SAM [deg] ↓" in text
    assert "preset standard, border 0 px" in text
    bold = [t.get_text() for t in fig.findobj(mpl.text.Text) if t.get_weight() == "bold"]
    assert [label for label, row in rows.items() if f"{row['psnr']:.3f}" in bold] == [
        "Back-projection"]


def test_the_spectra_of_the_comparison_are_those_of_the_marked_pixels_in_fixed_colours():
    gt, pixels = scene(), [(3, 4), (20, 30)]
    methods = {"Interpolation": blurred(gt, 0.5), "Back-projection": blurred(gt, 0.3),
               "Net": blurred(gt, 0.1)}
    fig = comparison_figure(None, gt, methods, wavelengths=VISIBLE, pixels=pixels)
    plots = [ax for ax in fig.axes if ax.get_xlabel() == "Wavelength (nm)"]
    assert [ax.get_title() for ax in plots] == ["A: row 3, column 4", "B: row 20, column 30"]
    for ax, (r, c) in zip(plots, pixels, strict=True):
        for line, cube in zip(ax.lines, (gt, *methods.values()), strict=True):
            np.testing.assert_allclose(line.get_ydata(), cube[:, r, c], rtol=1e-6)
            np.testing.assert_allclose(line.get_xdata(), VISIBLE)
        assert [line.get_color() for line in ax.lines] == [
            TRUTH, INTERPOLATION, BACKPROJECTION, NETWORK]
        assert [line.get_linestyle() for line in ax.lines] == ["-", "--", "-", "-"]
        assert ax.get_ylabel().replace("\n", " ") == "Values in [0, 1] of the scene's range"


def test_the_band_is_the_axis_where_wavelengths_are_unknown_and_gaps_break_the_line():
    gt = scene(10)
    fig = spectra_figure(None, {"Ground truth": gt}, [(1, 2)])
    assert fig.axes[0].get_xlabel() == "Band"
    nm = np.array([400, 410, 420, 430, 440, 1000, 1010, 1020, 1030, 1040.0])
    line = spectra_figure(None, {"Ground truth": gt}, [(1, 2)], nm).axes[0].lines[0]
    assert np.isnan(line.get_ydata()).sum() == 1
    assert np.isnan(line.get_ydata()[5])


def test_the_error_map_is_of_the_band_asked_for_times_255():
    gt = scene()
    off = gt.copy()
    off[7] += 12 / 255
    fig = error_figure(None, gt, {"Bicubic": off, "Net": gt}, 7, VISIBLE)
    _, error, none = maps(fig)
    np.testing.assert_allclose(error.get_array(), 12, rtol=1e-4)
    assert none.get_array().max() == 0
    assert (error.norm.vmin, error.norm.vmax) == (none.norm.vmin, none.norm.vmax) == (0, 20)
    assert "band 7, 470 nm" in words(fig)


@pytest.mark.parametrize("draw", [lambda gt, made: error_figure(None, gt, made, 7, VISIBLE),
                                  lambda gt, made: comparison_figure(None, gt, made)])
@pytest.mark.parametrize("off, end", [(1.2, 1.5), (9.9, 10), (10.1, 20), (60, 20)])
def test_small_errors_get_a_shorter_scale_that_all_methods_share_and_the_bar_states(draw, off, end):
    gt = 0.5 * scene()
    fig = draw(gt, {"Bicubic": gt + off / 255, "Net": gt + 0.5 * off / 255})
    *_, first, second = maps(fig)
    assert (first.norm.vmin, first.norm.vmax) == (second.norm.vmin, second.norm.vmax) == (0, end)
    assert (f"(×255)\nsmall errors: to {end:g}, not 20" in words(fig)) == (end < 20)


def test_sam_maps_share_one_scale_in_degrees_and_leave_pixels_without_an_angle_empty():
    a, b = np.full((10, 12), 3.0), np.full((10, 12), 7.0)
    a[2, 3] = np.nan
    fig = map_figure(None, {"Bicubic": b, "Net": a}, "angle", "Angle (degrees)", "°")
    assert {(im.norm.vmin, im.norm.vmax) for im in maps(fig)} == {(0, 8)}
    assert maps(fig)[1].get_array().mask[2, 3]
    assert "Bicubic: mean 7°" in words(fig)


def test_the_crop_is_where_the_detail_is_and_does_not_follow_a_dead_pixel():
    cube = scene(8, 64, 96)
    cube[:, 2, 2] = 50
    top, left, h, w = choose_crop(cube)
    assert (h, w) == (16, 24)
    assert top + h > 56
    assert left + w > 84
    assert choose_crop(scene(3, 9, 9)) == (0, 0, 9, 9)  # smaller than any crop: the whole image


def test_the_two_pixels_lie_in_and_outside_the_crop_and_are_of_different_materials():
    cube = scene(31, 64, 96)
    crop = choose_crop(cube)
    (r1, c1), (r2, c2) = choose_pixels(cube, crop)
    top, left, h, w = crop
    assert top <= r1 < top + h and left <= c1 < left + w
    assert not (top <= r2 < top + h and left <= c2 < left + w)
    assert c1 >= 48 > c2


def test_crop_and_pixels_do_not_depend_on_the_methods():
    gt = scene()
    figures = (comparison_figure(None, gt, {"a": gt * k, "b": gt * (1 - k)}) for k in (0.2, 0.9))
    first, second = ([ax.get_title() for ax in fig.axes if ax.lines][-2:] for fig in figures)
    assert first == second


def test_without_ground_truth_the_input_is_shown_and_its_spectrum_is_that_of_the_pixel_beneath():
    low = scene(31, 24, 24)
    up = np.repeat(np.repeat(low, 4, 1), 4, 2)
    fig = no_truth_figure(None, low, {"Interpolation": up, "Network": up * 0.9},
                          wavelengths=VISIBLE, name="mine", note="consistency 48 dB")
    text = words(fig)
    assert "mine ×4" in text
    assert "consistency 48 dB" in text
    for ax in (a for a in fig.axes if a.get_xlabel() == "Wavelength (nm)"):
        source, interpolation, network = (line.get_ydata() for line in ax.lines)
        np.testing.assert_allclose(source, interpolation)
        np.testing.assert_allclose(network, 0.9 * source, rtol=1e-5)


LONG = "EMIT_L2A_RFL_001_20220815T042838_2222703_003_and_more_of_it_x4.tif"


@pytest.mark.parametrize("name", ["mine", LONG, 3 * LONG])
@pytest.mark.parametrize("count", [1, 3])
def test_title_and_words_stay_on_the_page_at_a_readable_size(name, count, monkeypatch):
    monkeypatch.setattr(figures, "DPI", 200)
    low = scene(31, 24, 24)
    up = np.repeat(np.repeat(low, 4, 1), 4, 2)
    note = 6 * "agreement with the input (not accuracy) 65.7 dB; "
    fig = no_truth_figure(None, low, {f"Network {k}": up for k in range(count)}, name=name,
                          note=note + "8 % of it is missing")
    fig.set_dpi(200)  # as saved
    renderer = fig.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in fig.texts]
    width, height = fig.get_size_inches() * fig.dpi
    assert all(box.x0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    assert all(text.get_size() >= 6.5 for text in fig.texts)
    head, *lines = (text.get_text() for text in fig.texts)
    assert head.endswith("×4") and head.startswith(name[:10]) and name[-8:] in head
    assert "8 % of it is missing" in " ".join(lines) and (note.split(";")[0] in " ".join(lines))
    highest = max(ax.title.get_window_extent(renderer).y1 for ax in fig.axes)
    for above, below in pairwise(boxes):
        assert below.y1 <= above.y0
    assert boxes[-1].y0 > highest


def test_a_short_title_has_its_words_beside_it():
    head, words = error_figure(None, gt := scene(), {"Net": gt}, 7, VISIBLE, "mine").texts
    assert head.get_position()[1] == words.get_position()[1] and words.get_size() == 7.5


@pytest.mark.parametrize("draw", [
    lambda name: band_psnr_figure(None, {"Net": np.ones(5)}, name=name),
    lambda name: spectra_figure(None, {"Ground truth": scene()}, [(1, 2)], name=name),
    lambda name: error_figure(None, scene(9, 90, 9), {"Net": scene(9, 90, 9)}, 2, name=name),
    lambda name: training_curve_figure(None, [], name, note=40 * "words ")])
def test_no_figure_loses_the_end_of_its_title(draw, monkeypatch):
    monkeypatch.setattr(figures, "DPI", 200)
    fig = draw(LONG)
    fig.set_dpi(200)
    fig.canvas.draw()
    boxes = [text.get_window_extent() for text in fig.texts]
    assert all(box.x0 >= 0 and box.x1 <= fig.bbox.width for box in boxes)
    assert "x4.tif" in fig.texts[0].get_text()
    assert len(fig.texts[0].get_text()) > 30


def test_the_training_curve_leaves_out_what_was_not_measured():
    rows = [{"iteration": i, "loss": 1 / i, "psnr": 30.0 + i if i % 5 == 0 else None}
            for i in range(1, 21)]
    rows[4]["interpolation_psnr"] = rows[19]["interpolation_psnr"] = 31.0
    rows[9]["backprojection_psnr"] = 32.0
    loss, psnr = training_curve_figure(None, rows).axes
    assert len(loss.lines[0].get_xdata()) == 20
    assert psnr.lines[0].get_xdata().tolist() == [5, 10, 15, 20]
    assert psnr.lines[1].get_xdata().tolist() == [5, 20]
    assert psnr.lines[2].get_xdata().tolist() == [10]
    assert loss.get_yscale() == "log" and loss.get_ylabel() == "Training loss (MSE)"
    fig = training_curve_figure(None, rows, loss="BAND_LOG_MSE",
                                steps=[(i, 1, 2e-4 / i) for i in range(1, 21)])
    fig.canvas.draw()
    assert fig.axes[0].yaxis.label.get_window_extent().x0 > 0 and len(fig.axes[0].lines) == 2
    loss, _ = training_curve_figure(None, [], loss="L1").axes
    assert loss.get_ylabel() == "Training loss (L1)"


def test_drawing_leaves_matplotlibs_settings_alone():
    before = dict(mpl.rcParams)
    band_psnr_figure(None, {"Bicubic": np.ones(5)})
    assert dict(mpl.rcParams) == before


def test_what_cannot_be_drawn_is_refused_in_one_sentence_and_leaves_no_file(tmp_path):
    gt = scene()
    for draw, text in ((lambda p: comparison_figure(p, gt, {"Interpolation": gt[:, :-1]}),
                        "Interpolation has shape"),
                       (lambda p: error_figure(p, gt, {"Net": gt}, 31), "band from 0 to 30"),
                       (lambda p: spectra_figure(p, {"Net": gt}, [(24, 0)]), r"pixel \(24, 0\)"),
                       (lambda p: spectra_figure(p, {"Net": gt}, []), "No pixel"),
                       (lambda p: no_truth_figure(p, gt[:, :10], {"Net": gt}), "whole multiple")):
        with pytest.raises(UserError, match=text):
            draw(tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())
