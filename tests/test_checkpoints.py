"""Checkpoints: what loads, what is refused, and the words for it."""
from __future__ import annotations

import dataclasses
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from limits import room_for

from models import create_model
from utility.checkpoints import export, load_checkpoint, model_from_checkpoint, save_checkpoint
from utility.system.errors import UserError


def released(name: str = "biqrnn_4_2", prefix: str = "") -> dict:
    """As the released code saves: no word of the network, numpy numbers."""
    net = create_model(name)
    optimizer = torch.optim.Adam(net.parameters())
    return {"net": OrderedDict((prefix + k, v) for k, v in net.state_dict().items()),
            "optimizer": optimizer.state_dict(), "psnr": np.float64(31.5), "loss": np.float32(0.01),
            "epoch": 7, "iteration": 700}


def refusal(path: Path, *words: str, **options) -> str:
    """The sentence with which the file is refused; it names the file and says these words."""
    with pytest.raises(UserError) as error:
        model_from_checkpoint(path, **options)
    sentence = str(error.value)
    assert "\n" not in sentence and str(path) in sentence
    for word in words:
        assert word in sentence
    return sentence


def test_a_saved_checkpoint_gives_the_same_network_and_says_what_it_is(tmp_path):
    net = create_model("qrnn_4_2", long_skip=True)
    path = tmp_path / "new" / "last.pth"
    save_checkpoint(path,
                    {"net": net.state_dict(), "arch": "qrnn_4_2", "long_skip": True,
                     "scale": [2, 4], "degradation": "bicubic", "bands": 5, "epoch": 1,
                     "iteration": 10, "psnr": 30.0})
    again, info = model_from_checkpoint(path, pooling="loop")
    assert (info.arch, info.scales, info.degradation, info.bands) == (
        "qrnn_4_2", (2, 4), "bicubic", 5)
    assert info.options == {"long_skip": True}
    assert again.execution.pooling == "loop" and not again.training
    x = torch.rand(1, 1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(x), net.set_execution(pooling="loop")(x))
    assert [p.name for p in path.parent.iterdir()] == ["last.pth"]


@pytest.mark.parametrize(("name", "prefix"),
                         [("biqrnn_4_2", ""), ("fqrnn_4_2", "module."),
                          ("qrnn_8_3", "module._orig_mod."), ("iqrnn_2_5", ""), ("vdsr", "module."),
                          ("fcnn3d", "")])
def test_a_released_checkpoint_loads_and_its_shapes_tell_its_network(tmp_path, name, prefix):
    path = tmp_path / "r.pth"
    contents = released(name, prefix)
    torch.save(contents, path)
    net, info = model_from_checkpoint(path)
    assert (info.arch, info.scales, info.degradation, info.psnr, info.epoch) == (
        name, None, None, 31.5, 7)
    for key, value in net.state_dict().items():
        assert torch.equal(value, contents["net"][prefix + key])


def test_the_old_file_format_of_torch_loads(tmp_path):
    torch.save(released(), tmp_path / "r.pth", _use_new_zipfile_serialization=False)
    assert model_from_checkpoint(tmp_path / "r.pth")[1].arch == "biqrnn_4_2"


@pytest.mark.parametrize("name", ["fqrnn_4_2", "iqrnn_4_2"])
def test_an_alternating_released_network_can_be_given_its_second_skip(tmp_path, name):
    path = tmp_path / "r.pth"
    torch.save(released(name), path)
    for asked, taken in ((None, False), (True, True), (False, False)):
        net, info = model_from_checkpoint(path,
                                          options=None if asked is None else {"long_skip": asked})
        assert net.long_skip == info.options["long_skip"] == taken
        assert (info.unsaid is None) == (asked is not None)


def test_a_network_in_both_directions_leaves_no_question_of_its_skip(tmp_path):
    torch.save(released(), tmp_path / "r.pth")
    assert not model_from_checkpoint(tmp_path / "r.pth")[1].unsaid


@pytest.mark.parametrize("trained", [True, False])
def test_a_skip_that_contradicts_the_checkpoint_is_refused(tmp_path, trained):
    path = tmp_path / "q.pth"
    torch.save(released("qrnn_4_2") | {"arch": "qrnn_4_2", "long_skip": trained}, path)
    refusal(path, f"trained with long_skip = {trained}", options={"long_skip": not trained})
    for asked in (None, trained):
        net, info = model_from_checkpoint(path,
                                          options=None if asked is None else {"long_skip": asked})
        assert net.long_skip == trained and not info.unsaid


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    refusal(tmp_path / "none.pth", "There is no checkpoint")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.pth").touch()
    refusal(tmp_path / "run", "is a folder", "best.pth")


@pytest.mark.parametrize(
        ("keep", "new"),
        [(0, True), (1, True), (100, False), (0.3, True), (0.9, True), (0.9, False)])
def test_a_truncated_file_is_refused(tmp_path, keep, new):
    path = tmp_path / "cut.pth"
    torch.save(released(), path, _use_new_zipfile_serialization=new)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    refusal(path, "truncated")


@pytest.mark.parametrize(
        "contents", [b"hello there", b"\x89PNG\r\n\x1a\n" + bytes(200), bytes(5000), b"PK\x03\x04"])
def test_another_kind_of_file_is_refused(tmp_path, contents):
    (tmp_path / "other.pth").write_bytes(contents)
    refusal(tmp_path / "other.pth", "cannot be read as a checkpoint")


@pytest.mark.parametrize(
        "contents",
        [{"weights": 1}, {"net": {}}, {"net": {"a": 3}}, {"net": None}, [1, 2], torch.zeros(3)])
def test_a_file_without_weights_is_refused(tmp_path, contents):
    torch.save(contents, tmp_path / "odd.pth")
    refusal(tmp_path / "odd.pth", "'net'")


def test_the_network_asked_for_must_be_the_one_in_the_file(tmp_path):
    path = tmp_path / "q.pth"
    for contents in (released("qrnn_4_2"), released("qrnn_4_2") | {"arch": "qrnn_4_2"}):
        torch.save(contents, path)
        refusal(path, "qrnn_4_2", "biqrnn_16_5", arch="biqrnn_16_5")
        assert model_from_checkpoint(path, arch="qrnn_4_2")[1].arch == "qrnn_4_2"


def test_weights_of_no_known_network_are_refused(tmp_path):
    contents = released()
    contents["net"].popitem()
    torch.save(contents, tmp_path / "odd.pth")
    refusal(tmp_path / "odd.pth", "-a")
    assert "1 of them" in refusal(tmp_path / "odd.pth", "another network", arch="biqrnn_4_2")


def test_wrong_shapes_under_the_right_name_are_refused(tmp_path):
    torch.save(released("biqrnn_8_2") | {"arch": "biqrnn_4_2"}, tmp_path / "odd.pth")
    refusal(tmp_path / "odd.pth", "shape")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    contents = released()
    contents["net"]["encoder.layers.0.conv.conv.weight"][0, 0, 0, 0, 0] = value
    torch.save(contents, tmp_path / "nan.pth")
    refusal(tmp_path / "nan.pth", "encoder.layers.0.conv.conv.weight", "NaN")


def test_a_name_that_no_network_has_is_refused(tmp_path):
    torch.save(released() | {"arch": "resnet"}, tmp_path / "r.pth")
    with pytest.raises(UserError, match="resnet"):
        model_from_checkpoint(tmp_path / "r.pth")


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, released())
    before = path.read_bytes()
    with (room_for(100_000),
          pytest.raises(UserError,
                        match=f"^The disk is full while writing {path}; free some space and run ")):
        save_checkpoint(path, {"net": {"w": torch.zeros(100_000)}})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def test_any_flipped_bit_is_noticed_and_the_kept_checkpoint_offered(tmp_path):
    """What still loads after a flip is what was saved."""
    path, net = tmp_path / "last.pth", create_model("biqrnn_1_2")
    for epoch in (1, 2):
        save_checkpoint(path, {"net": net.state_dict(), "arch": "biqrnn_1_2", "epoch": epoch},
                        keep=True)
    assert [load_checkpoint(tmp_path / name)["epoch"]
            for name in ("last.prev.pth", "last.pth")] == [1, 2]
    sound, refused = path.read_bytes(), 0
    for at in np.random.default_rng(0).integers(0, len(sound), 150):
        damaged = bytearray(sound)
        damaged[at] ^= 1 << int(at) % 8
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(path)
        except UserError as error:
            assert "last.prev.pth" in str(error)
            refused += 1
        else:
            assert (found["epoch"] == 2
                    and all(torch.equal(found["net"][k], v) for k, v in net.state_dict().items()))
    assert refused > 50


@pytest.mark.parametrize(("field", "value"),
                         [("epoch", "7"), ("epoch", -1), ("iteration", 1.5), ("step", [1]),
                          ("psnr", "high"), ("loss", {}), ("arch", 7), ("scale", "4"),
                          ("scale", [4, None]), ("degradation", 3), ("config", [1]),
                          ("history", {"a": 1}), ("history", [1]), ("tally", torch.zeros(3)),
                          ("optimizer", 5), ("seed", True), ("scheduler", "x"),
                          ("long_skip", "yes")])
def test_a_field_of_another_type_is_refused_by_its_name(tmp_path, field, value):
    torch.save({**released(), field: value}, tmp_path / "a.pth")
    refusal(tmp_path / "a.pth", f" as its {field}, where ")


def test_an_exported_network_loads_wherever_a_checkpoint_does(tmp_path):
    torch.save({**released(), "arch": "biqrnn_4_2", "scale": [2, 4], "degradation": "gaussian"},
               tmp_path / "a.pth")
    target = tmp_path / "a.safetensors"
    export(tmp_path / "a.pth", target)
    (net, info), (other, exported) = (model_from_checkpoint(tmp_path / "a.pth"),
                                      model_from_checkpoint(target))
    assert dataclasses.replace(exported, path=info.path) == info
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    with pytest.raises(UserError, match="exists"):
        export(tmp_path / "a.pth", target)
    damaged = bytearray(target.read_bytes())
    damaged[-5] ^= 4
    target.write_bytes(damaged)
    refusal(target, "checksum")
