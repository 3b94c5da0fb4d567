"""What every architecture can do once it registers itself, through the commands that people use."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import toys  # noqa: F401  (registers its networks)
from made import make_database, smooth

import hsi_sr
import hsi_test
from models import Network, create_model, list_models, name_forms
from utility.degradation import downsample, upsample
from utility.superres.tiling import super_resolve_cube
from utility.system.errors import UserError

EVERY = ["toy", "toy_low_3", "vdsr", "fcnn3d", "scaled_biqrnn_2_2", "biqrnn_2_2"]


def moved(name: str) -> Network:
    """A network that changes its input."""
    torch.manual_seed(0)
    net = create_model(name).eval()
    net.initialise("fast", torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in net.last_layer():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return net


def degraded(cube: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """The start image and the true low-resolution cube."""
    low = downsample(torch.from_numpy(cube), scale, "bicubic")
    return upsample(low, scale, "bicubic").numpy(), low.numpy()


@pytest.fixture(autouse=True)
def place():
    """An empty folder with patches of 3 bands and a scene of 2."""
    make_database("patches.lmdb", 5, (3, 16, 16), validation=1)
    np.save("scene.npy", smooth(2, 76, 40).transpose(1, 2, 0))


def train(*more: str) -> None:
    hsi_sr.main(["--data", "patches.lmdb", "--recipe", "fast", "-b", "2", "--scale", "2",
                 "--degradation", "bicubic", "--no-log", "--quiet", "--no-cuda", *more])


def measured(out: str, *more: str) -> dict:
    hsi_test.main(["-rp", "whole/last.pth", "--data", "scene.npy", "--no-figures", "--no-cuda",
                   "--out", out, *more])
    return json.loads(Path(out, "metrics.json").read_text())


@pytest.mark.parametrize("name", EVERY[:-1])
def test_it_trains_resumes_tests_and_tiles_through_the_same_commands(name):
    train("-a", name, "-n", "2", "--ri", "1", "--run-dir", "whole")
    train("-r", "-rp", "whole/epoch_001.pth", "--run-dir", "parts")
    whole, parts = (torch.load(f"{run}/last.pth", weights_only=True) for run in ("whole", "parts"))
    assert whole["iteration"] == parts["iteration"] == 4 and whole["arch"] == name
    assert all(torch.equal(whole["net"][key], parts["net"][key]) for key in whole["net"])

    once, tiles = (measured(f"tile{tile}", "--tile", tile) for tile in ("0", "32"))
    row, again = once["images"][0], tiles["images"][0]
    assert once["arch"] == name and row["bands"] == 2
    assert row["network"]["psnr"] == pytest.approx(again["network"]["psnr"], abs=1e-4)
    assert row["network"]["psnr"] != row["interpolation"]["psnr"]
    cubes = [np.load(Path(out, results["images"][0]["cube"]))
             for out, results in (("tile0", once), ("tile32", tiles))]
    assert np.abs(cubes[0] - cubes[1]).max() <= 1e-5

    np.save("low.npy", smooth(4, 20, 12).transpose(1, 2, 0))
    for tile in ("0", "32"):
        hsi_test.main(["-rp", "whole/last.pth", "--input", "low.npy", "--output", f"high{tile}.npy",
                       "--tile", tile, "--quiet"])
    whole, tiles = np.load("high0.npy"), np.load("high32.npy")
    assert whole.shape == (40, 24, 4) and np.abs(whole - tiles).max() <= 1e-5


@pytest.mark.parametrize(("name", "shape", "scale"),
                         zip(EVERY, 3 * [(1, 92, 60), (5, 76, 40)], 3 * [2, 4], strict=True))
def test_tiles_are_the_whole_scene_for_any_number_of_bands(name, shape, scale):
    net, (start, low) = moved(name), degraded(smooth(*shape), scale)
    whole = super_resolve_cube(net, start, low, tile=0)
    assert np.abs(whole - start).max() > 1e-3
    assert np.abs(super_resolve_cube(net, start, low, tile=32) - whole).max() <= 1e-5


@pytest.mark.parametrize("name", EVERY)
def test_the_stated_receptive_field_is_the_true_one(name):
    net = moved(name).double()
    halo, step = net.halo(2), net.step(2)
    size = 2 * halo + 10 * step
    cube = torch.rand(1, 1, 2, size, size, dtype=torch.float64,
                      generator=torch.Generator().manual_seed(1))
    low = downsample(cube, 2, "bicubic")
    inputs = [part.requires_grad_() for part in net.inputs(upsample(low, 2, "bicubic"), low)]
    middle, furthest = slice(halo + 4 * step, halo + 5 * step), []
    gradients = torch.autograd.grad(net(*inputs)[..., middle, middle].square().sum(), inputs[:2],
                                    materialize_grads=True)
    for gradient, unit in zip(gradients, (1, 2), strict=False):
        if not gradient.any():
            continue  # not every network looks at the low-resolution cube
        rows = gradient.abs().amax((0, 1, 2, 4)).nonzero()[:, 0] * unit
        assert rows.min() >= middle.start - halo and rows.max() < middle.stop + halo
        furthest.append(int(middle.start - rows.min()))
    assert max(furthest) > halo - 2 * step  # no more than rounding to a multiple explains


@pytest.mark.parametrize("name", EVERY)
def test_the_fast_recipe_starts_as_the_start_image_and_moves(name):
    net = create_model(name)
    net.initialise("fast", torch.Generator().manual_seed(0))
    x = torch.rand(1, 1, 3, 8, 12) - 0.1  # an interpolated image may be a little below zero
    inputs = net.inputs(x, x[..., ::2, ::2])
    out = net(*inputs)
    assert torch.allclose(out, x, rtol=0, atol=1e-6)
    (out - x.square()).square().mean().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in net.last_layer())


@pytest.mark.parametrize("name", ["vdsr", "fcnn3d", "lowgrid_4_2"])
def test_recomputed_activations_give_the_same_gradients(name):
    net, x = moved(name), torch.rand(2, 1, 2, 8, 8)
    gradients = []
    for recompute in (False, True):
        net.set_execution(checkpoint=recompute).zero_grad()
        net(*net.inputs(x, x[..., ::2, ::2])).square().sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(("name", "parameters"),
                         [("vdsr", 665_921), ("fcnn3d", 39_405), ("lowgrid_32_8", 547_028)])
def test_a_network_has_as_many_weights_as_its_paper_or_the_readme_says(name, parameters):
    """VDSR: 2 * 576 + 18 * 36,864 weights, 19 * 64 + 1 biases. 3D-FCNN: 39,299, 106."""
    assert sum(p.numel() for p in create_model(name).parameters()) == parameters


def test_vdsr_sees_one_band_at_a_time():
    net, x = moved("vdsr"), torch.rand(1, 1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(net(x)[:, :, 1:2], net(x[:, :, 1:2]))


def test_a_network_of_unknown_reach_gets_the_whole_scene_and_the_user_is_told(capsys):
    train("-a", "toy_far", "-n", "1", "--run-dir", "whole")
    whole, tiled = (
        measured(f"tile{tile}", "--tile", tile)["images"][0]["network"] for tile in ("0", "32"))
    assert whole == tiled
    assert "the whole scene is computed at once" in capsys.readouterr().err


def test_what_a_network_cannot_do_is_refused(tmp_path):
    with pytest.raises(UserError,
                       match=r"toy_low_3 cannot do scale factor 8; choose one of 2, 4\."):
        train("-a", "toy_low_3", "--scale", "8")
    with pytest.raises(
            UserError,
            match=r"toy_low_3 cannot do degradation spatial; choose one of gaussian, bicubic\."):
        train("-a", "toy_low_3", "--degradation", "spatial")
    train("-a", "toy_low_3", "-n", "1", "--run-dir", "whole")
    with pytest.raises(UserError, match="cannot do scale factor 8"):
        measured("out", "--scale", "8")
    with pytest.raises(ValueError, match="toy_low_3 takes the true low-resolution cube"):
        super_resolve_cube(moved("toy_low_3"), smooth(2, 32, 32))


def test_the_lists_know_every_network_and_so_does_the_answer_to_a_wrong_name():
    with pytest.raises(UserError, match="Unknown network") as refused:
        train("-a", "nothing")
    for form in ("vdsr", "toy_low_<width>", "<family>_<width>_<half-depth>"):
        assert form in str(refused.value) and form in name_forms()
    assert {"toy", "toy_low_3", "vdsr", "fcnn3d", "biqrnn_16_5"} <= set(list_models())
    with pytest.raises(ValueError, match=r"unknown network 'toi'; did you mean .*toy"):
        create_model("toi")
    assert create_model("toy_low_7").body.out_channels == 7
