"""Whatever says that pixels are missing, they are, and every number is of the others."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from made import envi, network, smooth
from made import geotiff as tif

import hsi_test
from studies import estimate_mtf, mismatch
from utility import adapt, lmdb_data
from utility.lmdb_dataset import LMDBDataset
from utility.scenes import Reading, open_as, read_scene
from utility.superres.noise import noise_of_snr
from utility.superres.problem import Problem
from utility.system.errors import UserError
from utility.testing.evaluation import degraded
from utility.testing.images import read_images

BANDS, ROWS, COLUMNS, SEAM = 6, 48, 80, 44
SCENE = np.rint(smooth(BANDS, ROWS, COLUMNS) * 5000).astype(np.int16) + 100
GONE = np.zeros((ROWS, COLUMNS), bool)
GONE[:, SEAM:] = GONE[7, 5] = True


def holding(value: float, dtype: str = "int16") -> np.ndarray:
    """The scene with one value at all pixels that are missing."""
    cube = SCENE.astype(dtype)
    cube[:, GONE] = value
    return cube


def two(value: float, dtype: str = "int16") -> np.ndarray:
    """The scene with -9999 at some of the missing pixels, and another value at the others."""
    return np.where(np.arange(COLUMNS) > 60, np.array(-9999, dtype), holding(value, dtype))


def netcdf(path: Path, cube: np.ndarray, **said: object) -> Path:
    with h5py.File(path, "w") as file:
        array = file.create_dataset("reflectance", data=cube)
        for axis, (name, n) in enumerate(zip(("band", "y", "x"), cube.shape, strict=True)):
            file.create_dataset(name, data=np.arange(n, dtype="f4")).make_scale(name)
            array.dims[axis].attach_scale(file[name])
        array.attrs.update(said)
    return path


def written(write: Callable[..., object], path: Path, *content: object, **more: object) -> Path:
    write(path, *content, **more)
    return path


FEATHERED = np.where(GONE, 0, 255)
FEATHERED[:, SEAM - 3:SEAM] = 200, 128, 60
LARGEST = -3.4028234663852886e38
FORMS: dict[str, Callable[[Path], Path]] = {
    "tif: int16": lambda p: tif(p / "s.tif", holding(-9999), -9999),
    "tif: float32": lambda p: tif(p / "s.tif", holding(-9999, "float32"), -9999),
    "tif: the largest float": lambda p: tif(p / "s.tif", holding(LARGEST, "float32"), LARGEST),
    "tif: NaN": lambda p: tif(p / "s.tif", holding(np.nan, "float32")),
    "tif: NaN, declared": lambda p: tif(p / "s.tif", holding(np.nan, "float32"), np.nan),
    "tif: infinite": lambda p: tif(p / "s.tif", holding(np.inf, "float32")),
    "tif: NaN and a value": lambda p: tif(p / "s.tif", two(np.nan, "float32"), -9999),
    "mask": lambda p: tif(p / "s.tif", holding(3000), mask=~GONE),
    "mask beside it": lambda p: tif(p / "s.tif", holding(3000), mask=~GONE, inside=False),
    "mask over NaN": lambda p: tif(p / "s.tif", holding(np.nan, "float32"), mask=~GONE),
    "mask and a value": lambda p: tif(p / "s.tif", two(3000), -9999,
                                      mask=~(GONE & (np.arange(COLUMNS) <= 60))),
    "alpha": lambda p: tif(p / "s.tif", holding(3000), alpha=np.where(GONE, 0, 255)),
    "alpha, feathered": lambda p: tif(p / "s.tif", holding(3000), alpha=FEATHERED),
    "alpha, forgotten": lambda p: tif(p / "s.tif", holding(3000).astype("uint16"),
                                      alpha=np.where(GONE, 0, 65535), late=True),
    "ENVI": lambda p: envi(p / "s.hdr", holding(-9999), "-9.999e+003"),
    "ENVI: a list": lambda p: envi(p / "s.hdr", holding(-9999), "{-9999}"),
    "ENVI: nan": lambda p: envi(p / "s.hdr", holding(np.nan, "float32"), "nan"),
    "_FillValue": lambda p: netcdf(p / "s.nc", holding(-9999), _FillValue=np.int16([-9999])),
    "missing_value too": lambda p: netcdf(p / "s.nc", two(-32768), _FillValue=np.int16([-9999]),
                                          missing_value=np.int16([-32768])),
    "valid_range": lambda p: netcdf(p / "s.nc", holding(-5), valid_range=np.int16([0, 20000])),
    "valid_max": lambda p: netcdf(p / "s.nc", holding(65000, "uint16"),
                                  valid_max=np.uint16(60000)),
    "valid_min of floats": lambda p: netcdf(p / "s.nc", holding(-20000, "float32"),
                                            valid_min=np.float32(-15000)),
    "packed": lambda p: netcdf(p / "s.nc", holding(-9999), _FillValue=np.int16([-9999]),
                               scale_factor=0.5, add_offset=3.0),
    "npz": lambda p: written(np.savez, p / "s.npz", cube=holding(-9999), layout="BHW",
                             nodata=-9999.0),
    "MATLAB": lambda p: written(scipy.io.savemat, p / "s.mat",
                                {"cube": holding(-9999).transpose(1, 2, 0), "layout": "HWB",
                                 "nodata": -9999.0}),
    "npy: --nodata": lambda p: written(np.save, p / "s.npy", holding(-9999)),
    "npy: NaN": lambda p: written(np.save, p / "s.npy", holding(np.nan, "float64")),
}
"""What says it -> a file, in a folder."""


def options(form: str) -> list[str]:
    layout = ["--layout", "BHW"] if "npy" in form else []
    return layout + (["--nodata", "-9999"] if "--nodata" in form else [])


def run(*arguments: object) -> None:
    assert hsi_test.main([*map(str, arguments)]) in (None, 0)


def scored(path: Path, out: str, *arguments: object) -> dict:
    run("--data", path, "--out", out, "--no-figures", *arguments)
    row, = json.loads(Path(out, "metrics.json").read_text())["images"]
    return row


@pytest.mark.parametrize("form", FORMS)
def test_the_pixels_that_a_file_declares_missing_are_missing(form, tmp_path, capsys):
    path = FORMS[form](tmp_path)
    nodata = -9999 if "--nodata" in form else None
    scene = open_as(path, Reading(nodata=nodata, layout="BHW" if "npy" in form else None))
    np.testing.assert_array_equal(scene.missing, GONE)
    np.testing.assert_array_equal(scene.filled, GONE)
    expected = SCENE * 0.5 + 3 if form == "packed" else SCENE
    np.testing.assert_array_equal(scene.cube[:, ~GONE], expected[:, ~GONE])
    run("--info", path, "--scale", 2, *options(form))
    assert f"{GONE.sum()} of {GONE.size} pixels (45.0%) are missing" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["alpha, feathered", "alpha, forgotten", "ENVI: a list",
                                  "valid_range", "valid_max", "packed", "npy: --nodata"])
def test_every_command_leaves_them_out(form, tmp_path):
    path = FORMS[form](tmp_path)
    usual = tif(tmp_path / "usual.tif", holding(-9999), -9999)
    how = ["--method", "backprojection", "--scale", 2]
    for key in ("interpolation", "backprojection"):
        found, expected = (scored(file, f"{file.name}_{key}", *how, *more)[key]
                           for file, more in ((path, options(form)), (usual, [])))
        assert found == pytest.approx(expected, rel=1e-5)
    target = tmp_path / f"high{path.suffix}"
    run("--input", path, "--output", target, *how, *options(form))
    if "npy" not in form:  # which cannot hold a no-data value
        result = read_scene(target)
        np.testing.assert_array_equal((result.cube == result.nodata).all(0),
                                      GONE.repeat(2, 0).repeat(2, 1))
    patches = []
    for file, more in ((path, options(form)), (usual, [])):
        lmdb_data.main(["--source", str(file), "--patch", "8", "--stride", "4", "--out",
                        f"{file.name}.lmdb", "--quiet", *more])
        data = LMDBDataset(f"{file.name}.lmdb")
        patches.append(np.stack([data[i] for i in range(len(data))]))
    np.testing.assert_allclose(*patches, atol=1e-6)


@pytest.mark.parametrize(("scale", "kind"), [(2, "bicubic"), (3, "area"), (4, "mtf 0.3"),
                                             (8, "gaussian"), (2, "spatial"), (4, "reference")])
def test_no_number_of_a_test_depends_on_what_stands_in_missing_pixels(scale, kind, tmp_path):
    kind, _, mtf = kind.partition(" ")
    rows = []
    for name, value in (("a", 3000), ("b", -20000)):  # the noise is drawn by the name of the file
        path = tif(tmp_path / "s.tif", holding(value), mask=~GONE)
        rows.append(scored(path, name, "--method", "backprojection", "--scale", scale, "--snr", 25,
                           *(["--mtf", mtf] if mtf else ["--degradation", kind])))
    for key in ("interpolation", "backprojection"):
        assert rows[0][key] == rows[1][key]
        assert 500 < rows[0][key]["counted_pixels"] <= (~GONE).sum() - (scale * scale - 1)


# -------------------------------------------------------------------- what a scene's statistics are

def test_noise_that_is_told_is_that_of_the_measured_pixels(tmp_path):
    image, = read_images([tif(tmp_path / "s.tif", holding(3000), mask=~GONE)], Reading())
    for scale in (2, 4):
        low, level, lost, _ = degraded(image.cube, image, Problem(scale, "area", snr=20))
        quiet, *_ = degraded(image.cube, image, Problem(scale, "area"))
        np.testing.assert_allclose(level, noise_of_snr(quiet[:, ~lost][:, None], 20), rtol=1e-5)
        assert np.isfinite(low).all()


def test_the_noise_at_which_a_back_projection_stops_is_that_of_the_measured_pixels(tmp_path):
    """A half that is missing changes nothing far from it."""
    results, ratios = {}, {}
    for name, cube in (("half", holding(-9999)), ("alone", holding(-9999)[:, :, :SEAM])):
        cube[:, 7, 5] = SCENE[:, 7, 5]
        np.savez(tmp_path / f"{name}.npz", cube=cube, layout="BHW", nodata=-9999.0)
        run("--input", tmp_path / f"{name}.npz", "--output", f"high_{name}.npz", "--method",
            "backprojection", "--degradation", "gaussian", "--scale", 4, "--snr", 24, "--dtype",
            "float32", "--out", f"{name}_page")
        results[name] = read_scene(f"high_{name}.npz").cube[:, :, :4 * (SEAM - 25)]
        ratios[name] = json.loads(Path(f"{name}_page/summary.json").read_text())["snr"]
    np.testing.assert_allclose(results["half"], results["alone"], atol=1)
    assert ratios == {"half": 24.0, "alone": 24.0}


def test_values_that_are_not_written_are_not_counted_as_clipped(tmp_path):
    path = tif(tmp_path / "s.tif", holding(-9999, "float32"), -9999)
    run("--input", path, "--output", "high.tif", "--method", "backprojection", "--degradation",
        "gaussian", "--scale", 4, "--unit-range", "--snr", "none", "--out", "page")
    cube = read_scene("high.tif").cube
    clipped = json.loads(Path("page/summary.json").read_text())["clipped_values"]
    assert 0 < clipped == ((cube == 0) | (cube == 1)).sum()


# -------------------------------------------------------------------- options and other commands

def test_kept_ranges_are_those_of_the_measured_pixels(tmp_path):
    cube = holding(-9999, "float32")
    cube[:, ~GONE] /= 8000
    row = scored(tif(tmp_path / "s.tif", cube, -9999), "out", "--method", "interpolation",
                 "--scale", 2, "--keep-range")
    scaled = scored(tif(tmp_path / "t.tif", holding(-9999), -9999), "scaled", "--method",
                    "interpolation", "--scale", 2)
    assert (row["low"], row["high"], row["missing_pixels"]) == (0, 1, GONE.sum())
    span = (scaled["high"] - scaled["low"]) / 8000
    assert row["interpolation"]["rmse"] == pytest.approx(span * scaled["interpolation"]["rmse"],
                                                         rel=1e-4)


@pytest.mark.parametrize("form", ["tif: NaN, declared", "mask", "alpha", "alpha, forgotten"])
def test_pixels_that_a_compared_cube_declares_missing_are_compared_for_no_method(form, tmp_path):
    truth = tif(tmp_path / "s.tif", SCENE)
    (tmp_path / "theirs").mkdir()
    FORMS[form](tmp_path / "theirs")
    row = scored(truth, "out", "--method", "interpolation", "--scale", 2, "--compare",
                 f"theirs={tmp_path / 'theirs'}")
    for key in ("theirs", "interpolation", "backprojection"):
        assert row[key]["counted_pixels"] == (~GONE).sum()
    assert row["theirs"]["rmse"] == 0


def test_what_a_wrong_mtf_costs_is_measured_at_measured_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(mismatch, "CASES", [mismatch.Case("area", "known", snr=25.0)])
    net, rows = network(0.01, "biqrnn_2_1"), []
    for value in (3000, -20000):
        path = tif(tmp_path / "s.tif", holding(value), mask=~GONE)
        image, = read_images([path], Reading())
        rows += mismatch._rows(net, "net", "interpolation", 4, {"s": image}, ["noise"])
    assert rows[0] == rows[1] and rows[0]["pixels"] < (~GONE).sum()


def test_an_estimate_of_the_mtf_takes_no_scene_with_missing_pixels(tmp_path):
    path = tif(tmp_path / "s.tif", holding(3000), mask=~GONE)
    with pytest.raises(UserError, match="has pixels that nobody measured"):
        list(estimate_mtf._real([path.parent], ["s"]))


def test_weights_are_adapted_to_measured_pixels_alone(tmp_path):
    parts = []
    for value in (3000, -20000):
        path = tif(tmp_path / "s.tif", holding(value), mask=~GONE)
        parts.append(adapt._part(open_as(path, keep_bad=True), keep_range=False))
    np.testing.assert_array_equal(parts[0].cube, parts[1].cube)
    assert parts[0].nodata is None and parts[0].cube.shape == (BANDS, ROWS, SEAM - 6)
    span = np.ptp(SCENE[:, ~GONE].astype(float))
    np.testing.assert_allclose(parts[0].cube * span + SCENE[:, ~GONE].min(),
                               SCENE[:, :, 6:SEAM], atol=0.01)
