"""The network family: names, sizes, and what a network computes by its plain definition."""
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from made import filled

from models import Execution, create_model, list_models
from models.layers.row_blocks import voxels_in

PARAMETERS = {"biqrnn_16_5": 1_288_227, "fqrnn_16_5": 859_683, "qrnn_16_5": 1_289_957,
              "iqrnn_16_5": 1_720_231}
# of the ends, of encoder and decoder
GATES = {"biqrnn": (3, 3), "fqrnn": (3, 2), "qrnn": (5, 3), "iqrnn": (7, 4)}
SMALL = ["biqrnn_3_5", "fqrnn_3_5", "qrnn_3_5", "iqrnn_3_5"]


def image(bands=3, height=16, width=12, batch=1):
    return torch.rand(batch, 1, bands, height, width, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------ the definition, once more

def scan(f, drive, backward):
    """s_t = f_t s_{t-1} + drive_t along bands, from a state of zero."""
    bands = range(f.shape[2])
    state, states = torch.zeros_like(f[:, :, 0]), [None] * f.shape[2]
    for t in reversed(bands) if backward else bands:
        states[t] = state = f[:, :, t] * state + drive[:, :, t]
    return torch.stack(states, dim=2)


def pooled(gates, family, direction):
    both = direction == "both"
    count = GATES[family][0] if both else GATES[family][1]
    z, *rest = gates.chunk(count, dim=1)
    z, rest = z.tanh(), [g.sigmoid() for g in rest]
    runs = 2 if both else 1
    forgets, outputs, inputs = rest[:runs], rest[runs:2 * runs], rest[2 * runs:]
    total = 0
    for i in range(runs):
        drive = (inputs[i] if inputs else 1 - forgets[i]) * z
        state = scan(forgets[i], drive, backward=i == 1 or direction == "backward")
        total = total + (outputs[i] * state if outputs else state)
    return total


def definition(net, family, x):
    """Twelve units with additive skips, from the published names of the weights alone."""
    w = net.state_dict()
    directions = iter(["both"] * 10 if family == "biqrnn" else ["forward", "backward"] * 5)

    def unit(h, name, direction, stride=1):
        if f"{name}.conv.conv.weight" in w:
            gates = F.conv3d(h, w[f"{name}.conv.conv.weight"], None, (1, stride, stride), 1)
        elif f"{name}.conv.upsample_conv.conv3d.weight" in w:
            h = F.interpolate(h, scale_factor=(1, 2, 2), mode="trilinear", align_corners=True)
            gates = F.conv3d(h, w[f"{name}.conv.upsample_conv.conv3d.weight"], None, 1, 1)
        else:
            gates = F.conv_transpose3d(h, w[f"{name}.conv.deconv.weight"],
                                       w.get(f"{name}.conv.deconv.bias"), 1, 1)
        return pooled(gates, family, direction)

    h = unit(x, "feature_extractor", "both")
    skips = [h]
    for i in range(5):
        h = unit(h, f"encoder.layers.{i}", next(directions), stride=2 if i in (1, 3) else 1)
        skips.append(h)
    h = skips.pop()
    for i in range(5):
        h = unit(h, f"decoder.layers.{i}", next(directions)) + skips.pop()
    return unit(h, "reconstructor", "both") + x


@pytest.mark.parametrize("name", SMALL)
def test_a_network_computes_its_definition_with_and_without_gradients(name):
    net, x = filled(name), image(bands=4, batch=2)
    expected = definition(net, name.split("_")[0], x)
    assert (expected - x).abs().max() > 0.1 and torch.allclose(net(x), expected, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(net(x), expected, atol=1e-5)


# ----------------------------------------------------------------------------------------- registry

def test_the_four_published_networks_have_their_parameters():
    assert set(PARAMETERS) < set(list_models())
    for name, count in PARAMETERS.items():
        assert sum(p.numel() for p in create_model(name).parameters()) == count


def test_names_and_shapes_of_the_weights_are_the_published_ones():
    expected = {"feature_extractor.conv.conv.weight": (48, 1),
                "reconstructor.conv.deconv.weight": (16, 3)}
    for i, shape in enumerate([(48, 16), (96, 16), (96, 32), (192, 32), (192, 64)]):
        expected[f"encoder.layers.{i}.conv.conv.weight"] = shape
    for i, (kind, shape) in enumerate([("deconv", (64, 192)), ("upsample_conv.conv3d", (96, 64)),
                                       ("deconv", (32, 96)), ("upsample_conv.conv3d", (48, 32)),
                                       ("deconv", (16, 48))]):
        expected[f"decoder.layers.{i}.conv.{kind}.weight"] = shape
    shapes = {name: tuple(w.shape) for name, w in create_model("biqrnn_16_5").state_dict().items()}
    assert shapes.pop("reconstructor.conv.deconv.bias") == (3,)
    assert shapes == {name: (*shape, 3, 3, 3) for name, shape in expected.items()}


@pytest.mark.parametrize("family", GATES)
def test_other_families_differ_in_the_number_of_gates_alone(family):
    ends, inner = GATES[family]
    published = create_model("biqrnn_16_5").state_dict()
    for name, w in create_model(f"{family}_16_5").state_dict().items():
        gates = ends if name.startswith(("feature", "recon")) else inner
        axis = 1 if "deconv.weight" in name else 0
        expected = list(published[name].shape)
        expected[axis] = expected[axis] // 3 * gates
        assert list(w.shape) == expected


@pytest.mark.parametrize(("family", "width", "half_depth"),
                         [("biqrnn", 1, 1), ("fqrnn", 2, 2), ("qrnn", 5, 3), ("iqrnn", 8, 4),
                          ("iqrnn", 2, 6), ("biqrnn", 32, 5)])
def test_any_width_and_depth_can_be_built_by_name(family, width, half_depth):
    with torch.device("meta"):
        net = create_model(f"{family}_{width}_{half_depth}")
    assert len(net.encoder.layers) == len(net.decoder.layers) == half_depth
    assert (net.feature_extractor.channels == width
            and net.multiple == 2 ** sum(half_depth > i for i in (1, 3)))
    if width < 8:
        x = image(2, 8, 8)
        assert filled(f"{family}_{width}_{half_depth}")(x).shape == x.shape


@pytest.mark.parametrize(("name", "near"),
                         [("biqrn_16_5", "biqrnn_16_5"), ("qrnn3d", "qrnn_16_5"),
                          ("fqrnn", "fqrnn_16_5"), ("biqrnn_0_5", "biqrnn_16_5"),
                          ("biqrnn_16_0", "biqrnn_16_5"), ("xbiqrnn_16_5", "biqrnn_16_5"),
                          ("biqrnn_16_5x", "biqrnn_16_5"), ("", "biqrnn")])
def test_an_unknown_name_is_answered_with_near_ones(name, near):
    with pytest.raises(ValueError, match=rf"unknown network '{name}'; did you mean .*{near}"):
        create_model(name)


def test_an_unknown_option_is_answered_with_the_known():
    with pytest.raises(ValueError, match=r"unknown option skip .* long_skip, pooling"):
        create_model("biqrnn_2_2", skip=True)


# -------------------------------------------------------------------------------------- the network

@pytest.mark.parametrize(("name", "times"),
                         [("fqrnn_3_3", 1), ("qrnn_3_3", 1), ("iqrnn_3_3", 1), ("biqrnn_3_3", 0)])
def test_a_long_skip_adds_the_input_of_an_alternating_network_once_more(name, times):
    x = image()
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            assert torch.allclose(filled(name, long_skip=True)(x), filled(name)(x) + times * x,
                                  atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_the_same_weights_take_any_number_of_bands(name):
    net = filled(name).eval()
    for bands in (1, 2, 31):
        x = image(bands, 8, 8, batch=2)
        with torch.no_grad():
            out = net(x)
            assert out.shape == x.shape and torch.isfinite(out).all()
            # images of a batch know nothing of each other
            assert torch.allclose(out[:1], net(x[:1]), atol=1e-5)


@pytest.mark.parametrize(
        "shape",
        [(1, 1, 3, 10, 12), (1, 1, 3, 12, 10), (1, 2, 3, 12, 12), (3, 12, 12), (1, 3, 12, 12)])
def test_wrong_sizes_are_refused(shape):
    for gradients in (False, True):
        with (torch.set_grad_enabled(gradients),
              pytest.raises(ValueError, match=r"expected \(N, 1, B, H, W\).*multiples of 4")):
            create_model("biqrnn_2_5")(torch.zeros(shape))


# ---------------------------------------------------------------------------------------- execution

def gradients_of(net, x):
    net.zero_grad()
    F.mse_loss(net(x), torch.zeros_like(x)).backward()
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize(("name", "changes"),
                         zip(["biqrnn_3_5", *SMALL],
                             [{"checkpoint": True}, {"channels_last": False},
                              {"deconv_as_conv": False}, {"pooling": "loop"},
                              {"pooling": "loop", "channels_last": False, "deconv_as_conv": False,
                               "own_upsampling": False, "block_voxels": 0}], strict=True), ids=str)
def test_no_way_of_computing_changes_the_result_or_the_gradients(name, changes):
    x = image(3, 16, 16, batch=2)
    plain, other = filled(name), filled(name, **changes)
    assert torch.allclose(other(x), plain(x), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(other(x), plain(x), atol=1e-5)
    for a, b in zip(gradients_of(other, x), gradients_of(plain, x), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["biqrnn_3_5", "qrnn_2_4", "iqrnn_2_1"])
def test_blocks_of_rows_give_the_whole_image(name):
    x, net = image(3, 32, 20, batch=2).double(), filled(name).double()
    whole = net(x).detach()
    for voxels in (0, 1, 500, None):
        with torch.no_grad():
            assert torch.allclose(net.set_execution(block_voxels=voxels)(x), whole, rtol=0,
                                  atol=1e-11)


def test_a_gpu_computes_as_many_voxels_at_once_as_a_quarter_of_its_free_memory_holds():
    weight = torch.empty(48, 16, 3, 3, 3, device="meta")
    # of a tensor no kernel takes more values
    assert voxels_in(80 << 30, weight) == (2**31 - 1) // 48
    assert voxels_in(1 << 30, weight) == (1 << 28) // (96 * 4) == voxels_in(1 << 29, weight.half())
    assert voxels_in(0, weight) == 1


@pytest.mark.parametrize(("dtype", "on_gpu", "tf32", "expected"),
                         [(torch.float32, False, False, True), (torch.float32, True, False, False),
                          (torch.float32, True, True, True), (torch.bfloat16, True, False, True)])
def test_convolutions_see_the_memory_format_that_is_fast_there(
        monkeypatch, dtype, on_gpu, tf32, expected):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    x = SimpleNamespace(dtype=dtype, is_cuda=on_gpu)
    assert Execution().last(x) == expected
    assert Execution(channels_last=True).last(x) and not Execution(channels_last=False).last(x)


def test_the_released_execution_is_the_slow_and_plain_one():
    assert Execution.released() == Execution(pooling="loop", channels_last=False,
                                             deconv_as_conv=False, own_upsampling=False,
                                             block_voxels=0)
    with pytest.raises(TypeError):
        create_model("biqrnn_2_2").set_execution(warp=True)


# ------------------------------------------------------------------------------------ first weights

def test_weights_start_as_pytorch_s_own():
    torch.manual_seed(0)
    net = create_model("biqrnn_16_5")
    for unit in net.units():
        for module in unit.modules():
            if isinstance(module, torch.nn.Conv3d | torch.nn.ConvTranspose3d):
                bound = (module.weight.shape[1] * 27) ** -0.5
                assert module.weight.abs().max() <= bound
                if module.weight.numel() > 1000:
                    assert module.weight.std().item() == pytest.approx(bound / 3 ** 0.5, rel=0.05)
    assert net.reconstructor.conv.deconv.bias.abs().max() <= (3 * 27) ** -0.5


def test_the_fast_start_has_strong_candidates_and_weak_gates():
    net = create_model("qrnn_16_5")
    net.initialise("fast", torch.Generator().manual_seed(0))
    for unit in net.units()[:-1]:
        weight = unit.parameters_of_conv[0].detach()
        deviation = weight.flatten(1).std(1) * weight[0].numel() ** 0.5
        assert deviation[:unit.channels].mean().item() == pytest.approx(1.5, rel=0.15)
        assert deviation[unit.channels:].mean().item() == pytest.approx(0.3, rel=0.15)
    again = create_model("qrnn_16_5")
    again.initialise("fast", torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
