"""A cube without ground truth: a file in, a file out, which opens where the first one came from."""
import re
import tracemalloc
import weakref

import numpy as np
import pytest
import rasterio
import torch
from made import network
from spectral.io import envi

from models import create_model
from utility.cubes import cube as cubes
from utility.cubes.cube import CubeWriter, LazyCube, Scene
from utility.degradation import Degradation, downsample, start_image, upsample
from utility.indexes import band_psnr, sam_map
from utility.scenes import Reading, read_scene, write_scene
from utility.superres import cube_file, methods, tiling
from utility.superres.cube_file import apply_to_file
from utility.superres.problem import Problem
from utility.superres.remarks import warnings_of
from utility.superres.written_values import Writing
from utility.system.errors import UserError

WAVELENGTHS = [450.5, 550.25, 650.0, 750.0, 850.0]
X4 = Problem(4, "gaussian")


def cube(bands=5, height=20, width=24, dtype=np.uint16, low=1, high=4000, seed=0):
    values = np.random.default_rng(seed).random((bands, height, width))
    values = (values - values.min()) / np.ptp(values) * (high - low) + low
    return values.astype(dtype)


def apply(source, target, problem=X4, net=None, writing=None, **reading):
    return apply_to_file(net or network(), source, target, problem, Reading(**reading),
                         writing or Writing())


def geotiff(path, values, nodata=None, tags=True):
    """As rasterio users write them."""
    with rasterio.open(path, "w", driver="GTiff", count=len(values), height=values.shape[1],
                       width=values.shape[2], dtype=values.dtype, crs="EPSG:32633",
                       transform=rasterio.Affine(30, 0, 500_000, 0, -30, 5_100_000),
                       nodata=nodata) as file:
        file.write(values)
        for band in range(1, len(values) + 1) if tags else ():
            file.set_band_description(band, f"band {band}")
            file.update_tags(band, wavelength=str(WAVELENGTHS[band - 1]),
                             wavelength_units="Nanometers")
    return path


def envi_cube(path, values, interleave="bsq", **metadata):
    """As users of `spectral` write them."""
    envi.save_image(str(path), values.transpose(1, 2, 0), dtype=values.dtype, interleave=interleave,
                    ext=".img",
                    metadata={"map info": ["UTM", "1", "1", "500000", "5100000", "30", "30", "33",
                                           "North", "WGS-84", "units=Meters"],
                              "wavelength": [str(w) for w in WAVELENGTHS[:len(values)]],
                              "wavelength units": "Nanometers",
                              "band names": [f"band {i + 1}" for i in range(len(values))],
                              **metadata})
    return path


# --------------------------------------------------------------------------- in a GIS, out to a GIS

def test_a_geotiff_overlays_its_result(tmp_path, scale=2):
    source = geotiff(tmp_path / "low.tif", cube(), nodata=0)
    apply(source, tmp_path / "high.tif", Problem(scale, "bicubic"))
    with rasterio.open(source) as low, rasterio.open(tmp_path / "high.tif") as high:
        assert high.bounds == low.bounds and high.crs == low.crs == "EPSG:32633"
        assert high.res == (30 / scale, 30 / scale)
        assert high.shape == (20 * scale, 24 * scale)
        assert (high.dtypes, high.nodata, high.descriptions) == (low.dtypes, 0, low.descriptions)
        assert [high.tags(b)["wavelength"] for b in high.indexes] == [str(w) for w in WAVELENGTHS]


def test_a_result_says_which_weights_computed_it_and_for_which_degradation(tmp_path):
    done = apply(geotiff(tmp_path / "low.tif", cube()), tmp_path / "high.tif",
                 Problem(2, "bicubic"))
    with rasterio.open(tmp_path / "high.tif") as file:
        said = file.tags()["TIFFTAG_IMAGEDESCRIPTION"]
    assert (f"biqrnn_2_2 (SHA-256 of its weights {done.summary['weights_sha256']})" in said
            and "bicubic" in said)


@pytest.mark.parametrize(("kind", "scale", "suffix"),
                         [("gaussian", 4, ".tif"), ("bicubic", 3, ".hdr"), ("spatial", 4, ".hdr"),
                          ("spatial", 2, ".tif"), ("reference", 4, ".tif")])
def test_every_pixel_of_a_result_lies_where_its_transform_says_to_a_millimetre(
        tmp_path, kind, scale, suffix):
    """Bands of their own coordinates in metres, brought up, hold those of the new pixels."""
    rows, columns = np.mgrid[:40, :44] + 0.5
    # from the corner: float32 holds no more digits
    values = np.stack([30 * columns, -30 * rows, rows])
    source = tmp_path / f"low{suffix}"
    geotiff(source, values) if suffix == ".tif" else envi_cube(source, values)
    apply(source, tmp_path / f"high{suffix}", Problem(scale, kind), net=network(0))
    with rasterio.open(tmp_path / ("high.tif" if suffix == ".tif" else "high.img")) as high:
        found, place = high.read(), high.transform
        x, y = place * (np.arange(44 * scale) + 0.5, np.arange(40 * scale)[:, None] + 0.5)
        inside = (slice(12 * scale, -12 * scale),) * 2
        error = np.hypot(found[0] + 500_000 - x, found[1] + 5_100_000 - y)[inside].max()
        assert error < 1e-3
        corner = np.hypot(place.c - 500_000, place.f - 5_100_000)
        assert corner < 1e-3 if kind in ("gaussian", "bicubic") else corner > 5


@pytest.mark.parametrize("interleave", ["bsq", "bip"])
def test_an_envi_cube_overlays_its_result(tmp_path, interleave):
    source = envi_cube(tmp_path / "low.hdr", cube(dtype=np.int16, high=30_000), interleave)
    apply(source, tmp_path / "high.hdr")
    with rasterio.open(tmp_path / "low.img") as low, rasterio.open(tmp_path / "high.img") as high:
        assert high.bounds == low.bounds and high.crs == low.crs
        assert high.res == (7.5, 7.5) and high.dtypes == low.dtypes
    header = envi.read_envi_header(str(tmp_path / "high.hdr"))
    assert (header["interleave"] == interleave
            and header["band names"] == [f"band {i}" for i in range(1, 6)])
    assert [float(w) for w in header["wavelength"]] == WAVELENGTHS
    opened = envi.open(str(tmp_path / "high.hdr")).load()
    assert np.array_equal(opened.transpose(2, 0, 1), read_scene(tmp_path / "high.hdr").cube)


@pytest.mark.parametrize(("suffix", "dtype", "nodata", "low", "high"),
                         [(".tif", np.uint16, 0, 1, 4000), (".hdr", np.int16, -9999, -20, 12_000),
                          (".tif", np.uint8, 255, 0, 254), (".hdr", np.float32, -1.0, 0, 1)])
def test_nodata_pixels_and_no_others_are_nodata_in_the_result(
        tmp_path, capsys, suffix, dtype, nodata, low, high):
    values = cube(dtype=dtype, low=low, high=high)
    values[:, :6, :9] = values[:, 13, 17] = nodata
    source = tmp_path / f"low{suffix}"
    if suffix == ".tif":
        geotiff(source, values, nodata)
    else:
        envi_cube(source, values, **{"data ignore value": nodata})
    apply(source, tmp_path / f"high{suffix}")
    assert f"note: {source}: 55 of " in capsys.readouterr().err
    result = read_scene(tmp_path / f"high{suffix}")
    assert result.nodata == nodata and result.cube.dtype == dtype
    gone = (values[0] == nodata).repeat(4, 0).repeat(4, 1)
    assert np.array_equal(result.cube == nodata, np.broadcast_to(gone, result.cube.shape))


def test_pixels_that_are_nan_in_all_bands_are_nan_in_the_result_and_need_a_type_that_can_be(
        tmp_path):
    values = cube(dtype=np.float32)
    values[:, :, 3] = np.nan
    source = geotiff(tmp_path / "low.tif", values)
    apply(source, tmp_path / "high.tif")
    result = read_scene(tmp_path / "high.tif").cube
    assert np.array_equal(np.isnan(result),
                          np.broadcast_to(np.arange(result.shape[2]) // 4 == 3, result.shape))
    with pytest.raises(UserError, match="no-data value nan, which int16 cannot hold"):
        apply(source, tmp_path / "int.tif", writing=Writing(dtype="int16"))


def test_nodata_pixels_stay_so_in_a_result_between_zero_and_one(tmp_path):
    values = cube()
    values[:, :4] = 0
    source = geotiff(tmp_path / "low.tif", values, nodata=0)
    apply(source, tmp_path / "high.tif", writing=Writing(unit_range=True), fill_nodata=True)
    result = read_scene(tmp_path / "high.tif").cube
    assert result.dtype == np.float32 and result.max() < 3
    assert np.array_equal(result == 0, np.broadcast_to(np.arange(80)[:, None] < 16, result.shape))


def test_a_nodata_value_that_the_new_type_cannot_hold_is_refused(tmp_path):
    source = geotiff(tmp_path / "low.tif", cube(dtype=np.int16), nodata=-9999)
    with pytest.raises(
            UserError,
            match=r"low\.tif has the no-data value -9999, which uint8 cannot hold; give --dtype"):
        apply(source, tmp_path / "high.tif", writing=Writing(dtype="uint8"))
    assert not (tmp_path / "high.tif").exists()


def test_a_nodata_value_that_the_source_cannot_hold_is_dropped(tmp_path):
    source = envi_cube(tmp_path / "low.hdr", cube(dtype=np.uint8, high=250),
                       **{"data ignore value": -9999})
    apply(source, tmp_path / "high.tif")
    with rasterio.open(tmp_path / "high.tif") as result:
        assert result.nodata is None and result.dtypes[0] == "uint8"


# --------------------------------------------------------------------------------------- containers

@pytest.mark.parametrize(("kind", "layout"), [
    ("mat5", "HWB"), ("mat7.3", "pixels"), ("hdf5", "BHW"), ("npy", "HWB")])
def test_matlab_hdf5_and_npy_come_out_as_they_went_in(tmp_path, kind, layout):
    suffix = {"mat5": ".mat", "mat7.3": ".mat", "hdf5": ".h5", "npy": ".npy"}[kind]
    source, target = tmp_path / f"low{suffix}", tmp_path / f"high{suffix}"
    write_scene(source,
                Scene(cube(dtype=np.int16), "low", format=kind,
                      key=None if kind == "npy" else "rad", layout=layout,
                      wavelengths=np.array(WAVELENGTHS)))
    before = read_scene(source, layout=layout if kind == "npy" else None)
    apply(source, target, layout=layout if kind == "npy" else None)
    after = read_scene(target, layout=layout if kind == "npy" else None)
    assert (after.format, after.key, after.layout) == (before.format, before.key, before.layout)
    assert after.cube.shape == (5, 80, 96) and after.cube.dtype == np.int16
    assert kind == "npy" or after.wavelengths.tolist() == WAVELENGTHS


# ------------------------------------------------------------------------------------------- values

@pytest.mark.parametrize("dtype", ["int16", "uint8"])
def test_an_integer_type_too_coarse_for_the_values_is_refused_before_any_work(
        tmp_path, monkeypatch, dtype):
    reflectance = cube(dtype=np.float32, low=0, high=0.65)
    reflectance[2] *= 1e5  # one odd band hides nothing
    np.save(tmp_path / "low.npy", reflectance)
    monkeypatch.setattr(cube_file, "methods", lambda *given: pytest.fail("work"))
    words = rf"low\.npy holds float32.*span 0\.65.*{dtype} has steps of 1.*give --dtype float32, or"
    with pytest.raises(UserError, match=words):
        apply(tmp_path / "low.npy", tmp_path / "high.npy", layout="BHW",
              writing=Writing(dtype=dtype))
    assert [path.name for path in tmp_path.iterdir()] == ["low.npy"]
    monkeypatch.undo()
    for name, values in (("fine", cube(dtype=np.float32, high=120)),
                         ("counts", cube(dtype=np.uint16, low=0, high=9))):  # of the input's steps
        np.save(tmp_path / f"{name}.npy", values)
        apply(tmp_path / f"{name}.npy", tmp_path / f"{name}_x4.npy", layout="BHW",
              writing=Writing(dtype=dtype))
        assert np.load(tmp_path / f"{name}_x4.npy").dtype == dtype


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_type_and_range_of_values_are_the_input_s(tmp_path, dtype):
    np.save(tmp_path / "low.npy", cube(dtype=dtype, low=3, high=250))
    apply(tmp_path / "low.npy", tmp_path / "high.npy", net=network(0), layout="BHW")
    result = np.load(tmp_path / "high.npy")
    low = np.load(tmp_path / "low.npy")
    assert result.dtype == dtype
    expected = upsample(torch.from_numpy(low.astype(np.float64)), 4, "gaussian").numpy()
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        assert np.abs(result - np.clip(np.rint(expected), limits.min, limits.max)).max() <= 1
        # ties fall to either side
        assert np.mean(result != np.clip(np.rint(expected), limits.min, limits.max)) < 1e-3
    else:
        assert np.abs(result - expected).max() < 1e-3


def test_tiles_give_what_the_whole_scene_gives(tmp_path):
    np.save(tmp_path / "low.npy", cube(3, 21, 27, np.float32, 0, 1))
    results = []
    for tile in (0, 32, "auto"):
        apply(tmp_path / "low.npy", tmp_path / f"{tile}.npy", Problem(4, "gaussian", tile=tile),
              layout="BHW")
        results.append(np.load(tmp_path / f"{tile}.npy"))
    assert all(np.abs(r - results[0]).max() <= 1e-4 for r in results)
    assert np.abs(results[0]).max() > 0


@pytest.mark.parametrize(("kind", "method"),
                         [("gaussian", "backprojection"), ("reference", "backprojection"),
                          ("spatial", "interpolation")])
def test_untrained_methods_write_what_they_compute_of_the_whole_scene(
        tmp_path, monkeypatch, kind, method):
    monkeypatch.setattr(methods, "STRIP", 1 << 12)
    monkeypatch.setattr(methods, "AT_ONCE", 100)
    low = cube(dtype=np.float32, low=0, high=1)
    np.save(tmp_path / "low.npy", low)
    done = apply_to_file(None, tmp_path / "low.npy", tmp_path / "high.npy",
                         Problem(4, kind, method=method), Reading(layout="BHW"), Writing())
    whole = start_image(torch.from_numpy(low), 4, kind, method).numpy()
    assert np.abs(np.load(tmp_path / "high.npy") - whole).max() < 1e-4 * np.abs(whole).max()
    assert list(done.summary["consistency"]) == list(done.cubes) == [
        "interpolation", "backprojection"]
    for start in done.cubes:
        again = downsample(start_image(torch.from_numpy(low), 4, kind, start), 4, kind).numpy()
        assert done.summary["consistency"][start]["psnr"] == pytest.approx(
            band_psnr(again, low).mean(), abs=0.05)


@pytest.mark.parametrize("kind", ["gaussian", "reference"])
def test_back_projection_of_the_network_s_output_is_that_of_the_whole_scene(
        tmp_path, monkeypatch, kind):
    monkeypatch.setattr(methods, "STRIP", 1 << 12)
    low = cube(dtype=np.float32, low=0, high=1)
    np.save(tmp_path / "low.npy", low)
    plain = apply(tmp_path / "low.npy", tmp_path / "plain.npy",
                  Problem(4, kind, tile=0, start="backprojection"), layout="BHW")
    done = apply(tmp_path / "low.npy", tmp_path / "high.npy",
                 Problem(4, kind, tile=32, start="backprojection", backproject=5), layout="BHW")
    output = torch.from_numpy(np.load(tmp_path / "plain.npy"))
    expected = Degradation.of(4, kind).backproject(torch.from_numpy(low), 5, output).numpy()
    assert np.abs(np.load(tmp_path / "high.npy") - expected).max() < 1e-3
    before, after = (
        done.summary["consistency"][key]["psnr"] for key in ("network_before", "network"))
    assert before == pytest.approx(plain.summary["consistency"]["network"]["psnr"], abs=0.01)
    assert (after
            == pytest.approx(
                band_psnr(downsample(torch.from_numpy(expected), 4, kind).numpy(), low).mean(),
                abs=0.05))
    assert after > before + 1 and "before its back-projection: " in done.summary["agreement"]


def test_a_network_below_the_interpolation_and_a_grid_that_is_not_the_sensor_s_are_said(
        tmp_path):
    source = geotiff(tmp_path / "low.tif", cube())
    worse = apply(source, tmp_path / "high.tif")
    assert re.fullmatch(r"the network agrees with the input less \(.*\) than the interpolation "
                        r"does \(.*\); --backproject 10 makes its result agree, where the input "
                        "is not noisy",
                        worse.summary["warnings"][0])
    assert "WARNING: below the interpolation" in worse.title
    # The identity agrees as well as the interpolation. Back-projection agrees better by
    # construction: no warning.
    same = apply(source, tmp_path / "same.tif", net=network(0))
    assert (not same.summary["warnings"] and "WARNING" not in same.title
            and "(not accuracy)" in same.title)
    for kind, expected in (("spatial", 1), ("gaussian", 0)):
        done = apply_to_file(None, source, tmp_path / f"{kind}.tif",
                             Problem(4, kind, method="interpolation"), Reading(), Writing())
        found = done.summary["warnings"]
        assert (len(found) == expected
                and all("--degradation gaussian or bicubic keeps edges" in text for text in found))


@pytest.mark.parametrize(("above", "facts", "expected"), [
    (0.1, {}, True), (0.02, {}, False), (-0.5, {}, False),
    (0.2, {"mtf_known": False}, False), (0.4, {"mtf_known": False}, True),
    (0.2, {"sharp": True}, False), (0.4, {"sharp": True}, True),
    (2.0, {"snr": 25.0}, False),
])
def test_a_network_that_agrees_clearly_less_in_angle_is_warned_of(
        tmp_path, above, facts, expected):
    done = apply(geotiff(tmp_path / "low.tif", cube()), tmp_path / "high.tif", net=network(0))
    rows = {"interpolation": {"psnr": 40.0, "sam": 0.8}, "network": {"psnr": 45.0, "sam": 0.8}}
    rows["network"]["sam"] += above
    summary = done.summary | {"consistency": rows} | facts
    found = warnings_of(summary, done.scene)
    assert bool(found) == expected
    assert all("agrees with the input less in angle (45.0 dB PSNR" in text for text in found)
    assert all("--backproject 10 makes its result agree" in text for text in found)


def test_the_advice_for_a_noisy_cube_is_not_to_bring_its_noise_back(tmp_path):
    done = apply(geotiff(tmp_path / "low.tif", cube()), tmp_path / "high.tif",
                 Problem(4, "gaussian", snr=25.0))
    advice = done.summary["warnings"][0]
    assert "agrees with the input less" in advice and "backproject" not in advice
    assert advice.endswith("A cube with less noise needs a higher --snr, or --snr none")


def test_the_consistency_is_that_of_the_result_degraded_again(tmp_path, kind="reference"):
    """Its angle is that of the values of the file."""
    low = cube(dtype=np.float32, low=10, high=90)
    np.save(tmp_path / "low.npy", low)
    done = apply(tmp_path / "low.npy", tmp_path / "high.npy", Problem(4, kind, tile=32),
                 layout="BHW")
    high = (np.load(tmp_path / "high.npy").astype(np.float64) - 10) / 80
    again, given = (downsample(torch.from_numpy(high), 4, kind).numpy(),
                    (low.astype(np.float64) - 10) / 80)
    assert done.summary["consistency"]["network"]["psnr"] == pytest.approx(
        band_psnr(again, given).mean(), abs=1e-3)
    assert done.summary["consistency"]["network"]["sam"] == pytest.approx(
        np.nanmean(sam_map((80 * again + 10) / 90, low / 90)), abs=1e-3)


def test_a_figure_says_how_much_of_the_scene_is_missing(tmp_path):
    low = cube(dtype=np.float32, low=10, high=90)
    np.save(tmp_path / "whole.npy", low)
    low[:, :, :4] = np.nan
    np.save(tmp_path / "low.npy", low)
    whole, done = (apply(tmp_path / name, tmp_path / f"high_{name}", layout="BHW")
                   for name in ("whole.npy", "low.npy"))
    share = 4 / low.shape[2]
    assert done.summary["missing"] == pytest.approx(share)
    assert f"{share:.1%} of the scene is missing, shown black" in done.title
    assert whole.summary["missing"] == 0 and "missing" not in whole.title


def test_values_outside_an_integer_type_are_clipped_and_counted_or_refused(tmp_path):
    np.save(tmp_path / "low.npy", cube(dtype=np.uint8, low=0, high=255))
    arguments = dict(net=network(0.5), layout="BHW")
    apply(tmp_path / "low.npy", tmp_path / "float.npy", writing=Writing(dtype="float64"),
          **arguments)
    raw = np.rint(np.load(tmp_path / "float.npy"))
    outside = int(((raw < 0) | (raw > 255)).sum())
    assert outside > 10
    done = apply(tmp_path / "low.npy", tmp_path / "clipped.npy", **arguments)
    assert done.summary["clipped_values"] == outside
    assert np.array_equal(np.load(tmp_path / "clipped.npy"), np.clip(raw, 0, 255))
    with pytest.raises(
            UserError,
            match=fr"{outside} values .* do not fit uint8, so .*refused\.npy is not written"):
        apply(tmp_path / "low.npy", tmp_path / "refused.npy", Problem(4, "gaussian", tile=0),
              writing=Writing(on_overflow="refuse"), **arguments)
    assert not (tmp_path / "refused.npy").exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_chosen_bands_keep_their_wavelengths_and_names(tmp_path):
    source = geotiff(tmp_path / "low.tif", cube())
    apply(source, tmp_path / "some.tif", bands="1-3")
    apply(source, tmp_path / "others.tif", drop_bands="0,2")
    for name, kept in (("some", [1, 2, 3]), ("others", [1, 3, 4])):
        scene = read_scene(tmp_path / f"{name}.tif")
        assert scene.wavelengths.tolist() == [WAVELENGTHS[b] for b in kept]
        assert scene.band_names == [f"band {b + 1}" for b in kept]


def test_a_type_that_no_cube_has_is_refused(tmp_path):
    np.save(tmp_path / "low.npy", cube())
    for name in ("complex64", "nonsense", "f4,(", "U3", ""):
        with pytest.raises(UserError, match="is not one that a cube can have; give uint8"):
            apply(tmp_path / "low.npy", tmp_path / "no.npy", writing=Writing(dtype=name),
                  layout="BHW")


# ---------------------------------------------------------------------------------------- streaming

def test_no_write_is_larger_than_a_tile(tmp_path, monkeypatch):
    np.save(tmp_path / "low.npy", cube(3, 150, 170, np.float32))
    writes, real = [], CubeWriter.__setitem__
    monkeypatch.setattr(
        CubeWriter, "__setitem__",
        lambda self, index, block: writes.append(block.shape[1:]) or real(self, index, block))
    apply(tmp_path / "low.npy", tmp_path / "high.npy", Problem(2, "bicubic", tile=64), layout="BHW")
    assert len(writes) == 5 * 6 and max(max(size) for size in writes) == 64


@pytest.mark.parametrize("suffix", [".npy", pytest.param(".hdr", marks=pytest.mark.slow)])
def test_memory_grows_with_the_tile_and_not_with_the_scene(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(cubes, "SCRATCH", 1 << 20)
    monkeypatch.setattr(cubes, "BLOCK", 1 << 20)
    monkeypatch.setattr(cube_file, "PREVIEW", 64)
    monkeypatch.setattr(methods, "STRIP", 1 << 19)
    monkeypatch.setattr(tiling, "STRIP", 1 << 19)
    bands, height, width = shape = (4, 1000, 1100)

    def read(b, r, c):
        wave = (np.sin(np.arange(r.start, r.stop) / 9)[:, None]
                + np.cos(np.arange(c.start, c.stop) / 7))
        return 100 * wave + 50 * np.arange(b.start, b.stop)[:, None, None]

    source = Scene(LazyCube(shape, np.dtype(np.float64), read), "low", tmp_path / "low.h5",
                   format="hdf5")
    np.save(tmp_path / "small.npy", cube())
    net = create_model("biqrnn_1_1").eval()
    # loads what is loaded once
    apply(tmp_path / "small.npy", tmp_path / "small.npz", Problem(2, "bicubic"), net)
    for name in ("small.npy", "small.npz"):
        (tmp_path / name).unlink()
    monkeypatch.setattr("utility.scenes.open_scene", lambda *a, **k: source)
    tracemalloc.start()
    try:
        done = apply(tmp_path / "low.h5", tmp_path / f"high{suffix}",
                     Problem(2, "bicubic", tile=128), net)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # the input in float32, and three planes in float64
    assert peak < 4 * (bands + 6) * height * width
    assert done.summary["consistency"]["interpolation"]["psnr"] > 30
    expected = {".npy": {"high.npy"}, ".hdr": {"high.hdr", "high.img"}}[suffix]
    assert {p.name for p in tmp_path.iterdir()} == expected


@pytest.mark.parametrize("how", [{"tile": 32}, {"backproject": 2}, {"bandwise": True},
                                 {"method": "backprojection", "snr": 20.0}])
def test_of_a_large_scene_nothing_is_mapped_and_its_result_is_that_of_a_small_one(
        tmp_path, monkeypatch, how):
    low, found = geotiff(tmp_path / "low.tif", cube(5, 40, 44)), []
    net = None if "method" in how else network()
    for name in ("small.tif", "large.tif"):
        apply_to_file(net, low, tmp_path / name, Problem(2, "mtf 0.3", **how), Reading(), Writing())
        found.append(read_scene(tmp_path / name).cube)
        monkeypatch.setattr(cubes, "SCRATCH", 1)
        monkeypatch.setattr(np, "memmap", None)
    np.testing.assert_array_equal(*found)


def test_the_values_of_a_large_scene_are_not_kept_once_they_are_scaled(tmp_path, monkeypatch):
    monkeypatch.setattr(cubes, "SCRATCH", 1)
    geotiff(tmp_path / "low.tif", cube(3, 40, 40))
    let_go, kept = cube_file._let_go, []

    def watched(*scenes):
        kept.append(weakref.ref(scenes[0].cube))
        let_go(*scenes)

    monkeypatch.setattr(cube_file, "_let_go", watched)
    apply(tmp_path / "low.tif", tmp_path / "high.tif")
    assert [one() for one in kept] == [None]


def test_the_figure_shows_the_middle_of_a_large_scene(tmp_path, monkeypatch):
    monkeypatch.setattr(cube_file, "PREVIEW", 32)
    np.save(tmp_path / "low.npy", cube(3, 21, 27, np.float32))
    done = apply(tmp_path / "low.npy", tmp_path / "high.npy", Problem(4, "gaussian", tile=32),
                 layout="BHW", writing=Writing(unit_range=True))
    assert (done.low.shape == (3, 8, 8)
            and {cube.shape for cube in done.cubes.values()} == {(3, 32, 32)})
    assert np.array_equal(done.cubes["network"], np.load(tmp_path / "high.npy")[:, 24:56, 36:68])


# ---------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize(("source", "target"),
                         [("a.npy", "a.npy"), ("a.npy", "link.npy"), ("low.hdr", "low.img"),
                          ("low.img", "low.hdr"), ("scene.img", "scene.hdr"),
                          ("scene.img.hdr", "scene.hdr")])
def test_no_file_of_the_input_is_written_over(tmp_path, source, target):
    np.save(tmp_path / "a.npy", cube())
    (tmp_path / "link.npy").symlink_to(tmp_path / "a.npy")
    envi_cube(tmp_path / "low.hdr", cube())
    if source.startswith("scene"):
        (tmp_path / "low.hdr").rename(tmp_path / "scene.img.hdr")
        (tmp_path / "low.img").rename(tmp_path / "scene.img")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"is the input itself.* choose another --output"):
        apply(tmp_path / source, tmp_path / target, writing=Writing(overwrite=True))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_output_that_exists_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "high.npy").write_text("mine")
    with pytest.raises(UserError, match=r"high\.npy exists already"):
        apply(tmp_path / "there_is_no_such_input.npy", tmp_path / "high.npy")


def test_a_raster_of_one_band_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"one\.tif is a raster with 1 band.*at least 2"):
        apply(geotiff(tmp_path / "one.tif", cube(1)), tmp_path / "high.tif")


def test_bad_bands_are_interpolated_so_that_bands_out_are_bands_in_or_left_out(tmp_path, capsys):
    values = cube(6, dtype=np.float32)
    values[1], values[2, 3, 4], values[4] = 7, np.nan, np.nan
    source = envi_cube(tmp_path / "low.hdr", values, bbl=[1, 1, 1, 1, 1, 0],
                       **{"wavelength": list(range(400, 406))})
    summary = apply(source, tmp_path / "high.npy").summary
    assert summary["shape"] == [6, 80, 96]
    assert "6 bands, 4 of them bad, 20 x 24, float32" in summary["read_as"]
    assert ("4 bad bands (1, 2, 4, 5, counted from 0), enlarged by interpolation in space, without "
            "the network" in capsys.readouterr().err)
    apply(source, tmp_path / "good.npy", drop_bad_bands=True)
    result, good = np.load(tmp_path / "high.npy"), np.load(tmp_path / "good.npy")
    assert result.shape == (6, 80, 96) and np.array_equal(result[[0, 3]], good)
    assert (result[1] == 7).all() and np.isnan(result[4]).all()
    values[2, 3, 4] = values[2, 3, 3]
    for band in (2, 5):
        expected = upsample(torch.from_numpy(values[band:band + 1].astype(np.float64)), 4,
                            "gaussian")[0].numpy()
        # away from the filled pixel, whose nearest neighbours are several
        left = np.s_[:, :8] if band == 2 else np.s_[:]
        np.testing.assert_allclose(result[band][left], expected[left], rtol=1e-4, atol=0.01)
    np.save(tmp_path / "flat.npy", np.full((4, 8, 9), 5.0))
    with pytest.raises(UserError, match=r"flat\.npy"):
        apply(tmp_path / "flat.npy", tmp_path / "no.npy", layout="BHW", drop_bad_bands=True)


@pytest.mark.parametrize(("suffix", "failure"),
                         [(".npy", KeyboardInterrupt), (".mat", RuntimeError),
                          (".h5", OSError(28, "No space left on device")),
                          (".hdr", KeyboardInterrupt), (".tif", RuntimeError)])
def test_nothing_is_left_when_it_breaks_off_between_tiles(tmp_path, monkeypatch, suffix, failure):
    def broken(net, source, shape, sink, **more):
        sink(0, 0, np.zeros((shape[0], 32, 32), np.float32))
        raise failure

    np.save(tmp_path / "low.npy", cube())
    monkeypatch.setattr(methods, "super_resolve", broken)
    expected = UserError if isinstance(failure, OSError) else failure
    with pytest.raises(expected):
        apply(tmp_path / "low.npy", tmp_path / f"high{suffix}", layout="BHW")
    assert [p.name for p in tmp_path.iterdir()] == ["low.npy"]
