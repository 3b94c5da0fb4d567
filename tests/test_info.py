"""hsi_test.py --info: what a file holds, how it is read, and what it would cost."""

import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import scipy.io
import torch

import hsi_test
from models import create_model
from utility import weights
from utility.checkpoints import save_checkpoint
from utility.cubes.cube import Scene
from utility.scenes import write_scene
from utility.superres import info


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "shipped")
    torch.manual_seed(0)
    save_checkpoint("given.pth",
                    {"net": create_model("biqrnn_2_1").state_dict(), "arch": "biqrnn_2_1",
                     "scale": 4, "degradation": "gaussian"})


def lines(capsys, *arguments):
    hsi_test.main(["--info", *map(str, arguments)])
    return capsys.readouterr().out.splitlines()


def test_a_raster_is_described_by_bands_values_gaps_and_place(tmp_path, capsys):
    cube = np.random.default_rng(0).integers(1, 900, (5, 20, 30)).astype(np.uint16)
    cube[:, :2], cube[3] = 0, 7
    cube[3, :2] = 0
    write_scene("low.tif",
                Scene(cube, "low", nodata=0, wavelengths=np.array([400, 410, 420, 440, 450]),
                      crs=rasterio.crs.CRS.from_epsg(32633).to_wkt(),
                      transform=(30, 0, 5e5, 0, -30, 51e5)))
    first, *rest = lines(capsys, "low.tif", "--scale", 4)
    said = {line[:12].strip(): line[12:] for line in rest}
    assert (
        first == "read as: 5 bands, 20 x 30" and said["axes"] == "stored B x H x W, by the format")
    assert said["file"].startswith("low.tif, GeoTIFF, ")
    assert said["values"] == "uint16, 1 .. 899" and "60 of 600 pixels (10.0%)" in said["no-data"]
    assert (said["bad bands"] == "3 constant (7)"
            and said["wavelengths"].startswith("400 .. 450 nm, 10 nm apart"))
    assert said["place"] == "EPSG:32633, in metre; pixels 30 x 30, corner at 500000, 5100000"
    assert said["x4"] == ("result 80 x 120, 0.1 MB; no shipped weights fit, --method "
                          "backprojection needs none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given.pth", "low.tif"]


@pytest.mark.parametrize(("epsg", "rotation", "place"), [
    (4326, 0, "EPSG:4326, in degrees; pixels 30 x 30, corner at 10, 48"),
    (32633, 0, "EPSG:32633, in metre; pixels 30 x 30, corner at 10, 48"),
    (32633, 20, "EPSG:32633, in metre; pixels 30 x 30, corner at 10, 48; turned by 20 degrees"),
    (2263, 0, "EPSG:2263, in US survey foot; pixels 30 x 30, corner at 10, 48")])
@pytest.mark.parametrize("suffix", [".tif", ".hdr"])
def test_the_place_has_its_unit_in_one_word_and_its_rotation(capsys, suffix, epsg, rotation, place):
    transform = rasterio.Affine(30, 0, 10, 0, -30, 48) @ rasterio.Affine.rotation(-rotation)
    write_scene(f"low{suffix}", Scene(np.random.default_rng(0).random((5, 20, 30)), "low",
                                      crs=rasterio.crs.CRS.from_epsg(epsg).to_wkt(),
                                      transform=tuple(transform)[:6]))
    if rotation and suffix == ".hdr":
        assert f"rotation={rotation}." in Path("low.hdr").read_text()
    said = next(line for line in lines(capsys, f"low{suffix}", "--scale", 4)
                if line.startswith("place"))
    assert said[12:] == place


def test_even_wavelengths_and_widths_are_one_number_each(capsys):
    cube = np.random.default_rng(0).random((5, 20, 30))
    write_scene("low.hdr", Scene(cube, "low", wavelengths=np.arange(400, 450, 10.0),
                                 fwhm=np.full(5, 8.0)))
    assert ("wavelengths 400 .. 440 nm, 10 nm apart, 8 nm wide; from wavelength"
            in lines(capsys, "low.hdr", "--scale", 2))


@pytest.mark.parametrize(("shape", "reason"),
                         [((30, 20, 4), "its shape: one axis is much shorter"),
                          ((20, 20, 31), "its shape: a square image"),
                          ((50, 44, 204), "the number of bands of a usual sensor")])
def test_what_decided_the_axes_is_said(capsys, shape, reason):
    np.save("cube.npy", np.random.default_rng(0).random(shape))
    assert f"axes        stored H x W x B, by {reason}" in lines(capsys, "cube.npy", "--scale", 2)


def test_the_cost_is_that_of_the_weights_which_are_named(capsys, monkeypatch):
    np.save("cube.npy", np.random.default_rng(0).random((4, 40, 40)))
    monkeypatch.setattr(info, "cost", lambda net, shape, scale, amp, memory: info.Cost(
        100.0 * scale, memory or 2e9))
    assert lines(capsys, "cube.npy", "-rp", "given.pth")[-1] == \
        "x4          result 160 x 160, 0.8 MB; given.pth: about 7 min, up to 2.0 GB of memory"
    assert lines(capsys, "cube.npy", "-rp", "given.pth", "--memory", 3)[-1].endswith(
        "up to 3.0 GB of memory")


def test_a_cost_grows_with_the_pixels_and_is_measured():
    net = create_model("biqrnn_2_1")
    small, large = info.cost(net, (3, 16, 16), 4), info.cost(net, (3, 160, 160), 4)
    # of the whole process
    assert 0 < small.seconds < large.seconds and large.memory > small.memory > 1e8


def test_a_cost_is_that_of_the_fastest_call(monkeypatch):
    waits = iter([0.3, 0.3, 0.01, 0.01, 0.01])
    monkeypatch.setattr(info, "super_resolve_cube", lambda *_, **how: time.sleep(next(waits)))
    monkeypatch.setattr(info, "_around_the_network", lambda *_: 0.0)
    assert info.cost(create_model("biqrnn_2_1"), (3, 16, 16), 4).seconds < 0.1


def test_a_cost_within_less_memory_is_of_smaller_tiles(monkeypatch):
    monkeypatch.setattr(info, "free_memory", lambda: 16 << 30)
    net = create_model("biqrnn_2_1")
    free, bounded = (info.cost(net, (31, 400, 400), 4, "off", memory) for memory in (None, 1 << 30))
    assert bounded.memory < free.memory - 2e9


def test_of_an_unclear_file_it_says_what_is_known_and_what_is_unclear(tmp_path, capsys):
    rng, path = np.random.default_rng(0), tmp_path / "a.mat"
    scipy.io.savemat(path,
                     {"a": rng.random((12, 13, 14)), "wavelengths": np.arange(400.0, 900.0, 50)})
    said = "\n".join(lines(capsys, path))
    assert ("a.mat, MATLAB v5" in said and "a: 12 x 13 x 14, float64" in said
            and "10 wavelengths, 400 .. 850 nm" in said)
    assert "unclear" in said and "which axis holds the bands is not clear" in said
    scipy.io.savemat(path, {"a": rng.random((12, 13, 14)), "b": rng.random((12, 13, 15))})
    said = "\n".join(lines(capsys, path))
    assert ("MATLAB v5" in said
            and "several arrays that may be the cube: a (12 x 13 x 14), b (12 x 13 x 15)" in said)
