"""What is not certain: the halo's share is counted right, the spread stands beside."""
from itertools import product

import numpy as np
import pytest
import rasterio
import scipy.io
import spectral
import torch
from test_inference import apply, cube, envi_cube, geotiff, network

from utility.degradation import upsample
from utility.scenes import Reading
from utility.superres.cube_file import apply_to_file
from utility.superres.problem import Problem
from utility.superres.tiling import super_resolve, window_of
from utility.superres.uncertainty import Halo, Spread
from utility.superres.written_values import Writing
from utility.system.errors import UserError


def by_hand(low, high, scale):
    """Values outside the 3 x 3 neighbours of their block, one by one."""
    near = np.pad(low, ((0, 0), (1, 1), (1, 1)), mode="edge")
    count = 0
    for b, r, c in product(*map(range, high.shape)):
        part = near[b, r // scale:r // scale + 3, c // scale:c // scale + 3]
        count += not part.min() - 1e-6 <= high[b, r, c] <= part.max() + 1e-6
    return count / high.size


def test_the_share_of_halos_is_that_counted_by_hand_whatever_the_blocks():
    low = cube(2, 7, 6, np.float32, 0, 1)
    high = upsample(torch.from_numpy(low), 4, "gaussian").numpy() * 1.1
    for step in (5, 100):
        halo = Halo(low, 4, "gaussian")
        for top, left in product(range(0, 28, step), range(0, 24, step)):
            halo.add(top, left, high[:, top:top + step, left:left + step])
        assert halo.share == pytest.approx(by_hand(low, high, 4)) and 0.05 < halo.share < 0.5


def test_missing_pixels_are_no_halos_and_a_spline_s_grid_is_its_own():
    low, missing = np.zeros((1, 8, 8), np.float32), np.zeros((8, 8), bool)
    missing[:, 0] = True
    halo = Halo(low, 2, "gaussian", missing)
    halo.add(0, 0, np.ones((1, 16, 16), np.float32))
    assert (halo.count, halo.total) == (16 * 14, 16 * 14)
    # the last sample of a spline's grid lies on the last pixel
    row = np.arange(8, dtype=np.float32).repeat(8).reshape(1, 8, 8)
    halo = Halo(row, 4, "spatial")
    halo.add(31, 0, np.full((1, 1, 32), 5.9, np.float32))
    assert halo.share == 1


def test_values_far_outside_the_range_of_their_band_are_counted_and_warned_of(tmp_path):
    low = np.stack([np.linspace(0, 1, 64).reshape(8, 8),
                    np.linspace(0, 0.1, 64).reshape(8, 8)]).astype(np.float32)
    high = low.repeat(2, 1).repeat(2, 2)
    high[0, :2], high[1, 0] = 1.09, -0.011  # a tenth of the range is 0.1, and 0.01
    halo = Halo(low, 2, "gaussian")
    halo.add(0, 0, high)
    assert halo.far == 16
    geotiff(tmp_path / "sharp.tif", cube(3, 24, 24))
    for method, warned in (("backprojection", True), ("interpolation", False)):
        done = apply_to_file(None, tmp_path / "sharp.tif", tmp_path / f"{method}.tif",
                             Problem(2, "gaussian", method=method), Reading(),
                             Writing(dtype="float32"))
        assert any("outside the range of their band" in text
                   for text in done.summary["warnings"]) == warned
        assert ("far outside the input's range" in done.title) == warned


@pytest.mark.parametrize("tile", [0, 32])
def test_the_spread_is_the_deviation_of_the_eight_results_tile_by_tile_too(tile):
    net, start = network(1.0), cube(3, 48, 40, np.float32, 0, 1)
    found, each = np.empty((48, 40), np.float32), []
    super_resolve(net, window_of(start), start.shape, lambda *_: None, tile=tile,
                  self_ensemble=True,
                  spread=lambda top, left, plane: found.__setitem__(
                      (slice(top, top + plane.shape[0]), slice(left, left + plane.shape[1])),
                      plane))
    with torch.no_grad():
        for flips in ((), (1,), (2,), (1, 2)):
            for turned in (False, True):
                x = torch.from_numpy(start).flip(flips)
                x = x.mT if turned else x
                y = net(x[None, None].contiguous())[0, 0]
                each.append((y.mT if turned else y).flip(flips))
    expected = torch.stack(each).double().std(0, correction=0).mean(0).numpy()
    assert np.abs(found - expected).max() < 1e-5 and expected.mean() > 1e-3


@pytest.mark.parametrize("suffix", [".tif", ".hdr", ".mat"])
def test_the_spread_stands_beside_the_result_in_its_values_and_at_its_place(tmp_path, suffix):
    values = cube(5, 16, 20)
    values[:, :, 0] = 0
    make = envi_cube if suffix == ".hdr" else geotiff
    source = make(tmp_path / ("low.hdr" if suffix == ".hdr" else "low.tif"), values,
                  **({"data ignore value": "0"} if suffix == ".hdr" else {"nodata": 0}))
    done = apply(source, tmp_path / f"high{suffix}", Problem(4, "gaussian", self_ensemble=True),
                 net=network(1.0), writing=Writing(dtype="float32"))
    beside = tmp_path / f"high_spread{suffix}"
    if suffix == ".tif":
        with rasterio.open(beside) as file, rasterio.open(tmp_path / "high.tif") as high:
            assert ((file.count, file.bounds, file.crs) == (1, high.bounds, high.crs)
                    and np.isnan(file.nodata))
            assert file.tags()["TIFFTAG_IMAGEDESCRIPTION"].startswith(
                "Standard deviation of the 8 results of a self-ensemble")
            spread = file.read(1)
    elif suffix == ".hdr":
        image, whole = (spectral.open_image(str(beside)),
                        spectral.open_image(str(tmp_path / "high.hdr")))
        assert (image.metadata["map info"] == whole.metadata["map info"]
                and "wavelength" not in image.metadata)
        spread = image.read_band(0)
    else:
        spread = np.squeeze(scipy.io.loadmat(beside)["spread"])
    assert spread.shape == (64, 80) and np.isnan(spread[:, :4]).all() and (spread[:, 4:] > 0).all()
    said = done.summary["spread"]
    assert said["mean"] == pytest.approx(np.nanmean(spread), rel=1e-5)
    assert said["mean_of_range"] == pytest.approx(
        said["mean"] / (done.summary["high"] - done.summary["low"]))
    assert set(done.summary["halo"]) == {"network", "interpolation", "backprojection"}
    assert (f"{said['mean']:.3g}" in done.summary["uncertainty"]
            and str(beside) in done.summary["uncertainty"])


def test_a_result_that_fails_takes_its_spread_with_it_and_one_that_exists_is_kept(
        tmp_path, monkeypatch):
    source = geotiff(tmp_path / "low.tif", cube())
    (tmp_path / "high_spread.tif").write_text("mine")
    ensemble = Problem(4, "gaussian", self_ensemble=True)
    with pytest.raises(UserError, match=r"high_spread\.tif exists already"):
        apply(source, tmp_path / "high.tif", ensemble)
    (tmp_path / "high_spread.tif").unlink()
    write = Spread.write

    def stopped(self, *values):
        write(self, *values)
        assert self.path.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(Spread, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        apply(source, tmp_path / "high.tif", ensemble)
    assert [path.name for path in tmp_path.iterdir()] == ["low.tif"]
