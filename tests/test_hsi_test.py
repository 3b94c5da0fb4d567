"""hsi_test.py: its command line, what it leaves behind and what it says."""
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import made
import numpy as np
import pytest
import rasterio
import scipy.io
import torch
from made import make_database, network, smooth
from typed import ROOT, typed

import hsi_sr
import hsi_test
from utility import lmdb_data, weights
from utility.checkpoints import save_checkpoint
from utility.scenes import read_scene
from utility.system import devices
from utility.system.errors import UserError


def contents(net, **more):
    """What every checkpoint holds, the released ones included."""
    return {"net": net.state_dict(), "optimizer": {}, "psnr": 30.0, "loss": 0.1, "epoch": 3,
            "iteration": 40, **more}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder with a checkpoint and two scenes."""
    monkeypatch.setattr(sys, "argv", ["hsi_test.py"])
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "shipped")
    save_checkpoint("best.pth",
                    contents(network(), arch="biqrnn_2_2", scale=4, degradation="gaussian"))
    Path("scenes").mkdir()
    for name, cube in (("first", smooth(4, 33, 38)), ("second", smooth(4, 24, 28, 1))):
        scipy.io.savemat(f"scenes/{name}.mat", {"rad": cube.transpose(1, 2, 0)})
    return tmp_path


def run(*arguments, checkpoint="best.pth"):
    hsi_test.main(["-rp", checkpoint, *map(str, arguments)])


def numbers(out):
    results = json.loads(Path(out, "metrics.json").read_text())
    return {(row["name"], method): row[method] for row in results["images"]
            for method in results["methods"]}


def refused(*arguments, words, checkpoint="best.pth"):
    """The command is refused in one sentence, and leaves nothing."""
    before = sorted(map(str, Path().rglob("*")))
    with pytest.raises(UserError, match=words) as error:
        run(*arguments, checkpoint=checkpoint)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    assert sorted(map(str, Path().rglob("*"))) == before
    return str(error.value)


# ----------------------------------------------------------------------------- against ground truth

def test_a_test_leaves_metrics_cubes_and_figures_and_prints_the_table(capsys):
    run("-r", "--test", "--data", "scenes", "--out", "out/here")
    printed = capsys.readouterr().out
    assert sorted(p.name for p in Path("out/here").iterdir()) == [
        "cubes", "first.png", "metrics.csv", "metrics.json", "metrics_bands.csv", "second.png"]
    assert sorted(p.name for p in Path("out/here/cubes").iterdir()) == [
        "first_x4.mat", "second_x4.mat"]
    results = json.loads(Path("out/here/metrics.json").read_text())
    assert [(row["name"], row["height"], row["width"]) for row in results["images"]] == [
        ("first", 32, 36), ("second", 24, 28)]
    assert "first read as: 4 bands, 33 x 38, cut to 32 x 36\n" in printed
    assert "second read as: 4 bands, 24 x 28\n" in printed
    for name in ("first", "second"):
        assert cv2.imread(f"out/here/{name}.png").std() > 10
    assert (f"{results['mean']['network']['psnr']:.3f}" in printed and "back-projection" in printed
            and "PSNR [dB]" in printed)
    assert "preset standard, scale x4, border 0 px" in printed and "results in out/here/" in printed


def test_the_table_and_the_report_say_in_which_precision_the_network_computed(capsys, monkeypatch):
    monkeypatch.setattr(devices, "computes_bf16", lambda device: True)
    words = ["--data", "scenes/second.mat", "--report", "--no-cuda", "--no-cubes"]
    run(*words, "--out", "half")
    said = "the network computed in bf16; --amp off makes it float32"
    assert f")\n({said})\nresults in" in capsys.readouterr().out
    assert f"<dt>Precision</dt><dd>{said}</dd>" in Path("half/report.html").read_text()
    run(*words, "--out", "full", "--amp", "off")
    page = Path("full/report.html").read_text()
    assert "float32" not in capsys.readouterr().out
    assert "<dt>Precision</dt><dd>float32</dd>" in page
    assert "<dt>Network starts from</dt><dd>the interpolation of the low-resolution cube" in page


def test_quiet_says_nothing_but_warnings(capfd):
    run("--data", "scenes", "--out", "out", "--quiet", "--no-figures", "--no-cubes", "--scale", "2")
    said = capfd.readouterr()
    assert said.out == ""  # nor the note that the checkpoint is for another scale factor
    assert all(
        line.startswith("warning: the network is below the ") for line in said.err.splitlines())
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "metrics.csv", "metrics.json", "metrics_bands.csv"]


def test_the_default_folder_is_a_new_one_below_results_named_by_network_or_prefix(capsys):
    run("--data", "scenes/second.mat", "--no-figures")
    folder, = Path("results").iterdir()
    assert re.fullmatch(r"biqrnn_2_2_x4_\d{8}_\d{6}", folder.name)
    assert f"results in results/{folder.name}/" in capsys.readouterr().out
    run("--data", "scenes/second.mat", "--no-figures", "-p", "mine")
    assert any(re.fullmatch(r"mine_x4_\d{8}_\d{6}", folder.name)
               for folder in Path("results").iterdir())


def test_the_flags_of_the_released_test_script_are_taken():
    before = torch.get_num_threads()
    try:
        run("-a", "biqrnn_2_2", "-p", "mine", "-b", "16", "-n", "50", "--lr", "1e-3", "-mlr",
            "1e-5", "--ri", "10", "--wd", "0", "--no-cuda", "--no-log", "--threads", "1", "--seed",
            "2021", "-r", "--gpu-ids", "0", "--test", "--data", "scenes", "--out", "released",
            "--no-figures")
        assert torch.get_num_threads() == 1
        run("--batchSize", "16", "--nEpochs", "50", "--min-lr", "1e-5", "--data", "scenes", "--out",
            "long", "--no-figures")
    finally:
        torch.set_num_threads(before)
    run("--data", "scenes", "--out", "plain", "--no-figures")
    assert numbers("released") == numbers("long") == numbers("plain")


def test_spectra_of_pixels_and_a_nodata_value_are_taken_from_the_command_line():
    cube = smooth(4, 24, 28)
    cube[:, :2] = -9999
    np.save("gaps.npy", cube)
    arguments = ("--data", "gaps.npy", "--layout", "BHW", "--nodata", "-9999", "--out", "out")
    run(*arguments, "--pixels", "3,4", "20,25")
    assert cv2.imread("out/gaps_spectra.png").std() > 10
    refused("--data", "scenes/second.mat", "--out", "no", "--pixels", "24,0",
            words=r"pixel \(24, 0\) lies outside of an image of 24 rows")


def test_start_steps_of_back_projection_and_noise_are_those_of_checkpoint_and_options(capsys):
    save_checkpoint("started.pth",
                    contents(network(), arch="biqrnn_2_2", scale=4, degradation="gaussian",
                             start="backprojection"))
    run("--data", "scenes", "--out", "started", "--no-figures", checkpoint="started.pth")
    run("--data", "scenes", "--out", "plain", "--no-figures", "--backproject", "10", "--noise",
        "0.01")
    said = capsys.readouterr().out
    assert "(noise of standard deviation 0.01 in the low-resolution cubes, seed 2021)" in said
    assert json.loads(Path("started/metrics.json").read_text())["start"] == "backprojection"
    plain = json.loads(Path("plain/metrics.json").read_text())
    assert (plain["start"], plain["backproject"], plain["noise"], plain["seed"]) == (
        "interpolation", 10, 0.01, 2021)
    assert numbers("started")["first", "network"]["psnr"] != numbers("plain")["first", "network"][
        "psnr"]


def test_a_card_says_which_part_tests():
    cube = smooth(4, 60, 48)
    scipy.io.savemat("whole.mat", {"rad": cube.transpose(1, 2, 0), "gt": np.ones((60, 48))})
    Path("mine.toml").write_text('title = "Mine"\nkey = "rad"\nbands = 4\nsize = [60, 48]\npatch = '
                                 '16\nstrides = [16]\ntest_region = [16, 8, 32, 24]\n')
    run("--dataset", "mine.toml", "--data", "whole.mat", "--out", "out", "--no-figures")
    row, = json.loads(Path("out/metrics.json").read_text())["images"]
    assert (row["name"], row["height"], row["width"]) == ("whole_test", 32, 24)
    result = read_scene("out/cubes/whole_test_x4.mat").cube  # in the scene's own values
    error = (result - cube[:, 16:48, 8:32]) / np.ptp(cube)
    assert (
        -10 * np.log10(np.mean(error ** 2)) == pytest.approx(row["network"]["cube_psnr"], abs=0.01))
    assert "--keep-range" in refused("--dataset", "mine.toml", "--data", "whole.mat",
                                     "--keep-range", "--out", "no",
                                     words="the card mine says how values are scaled")


def test_the_sample_card_is_the_default_and_says_how_its_scenes_are_made():
    refused(words=r"The test scenes of sample are not in data/sample/natural/test; get them "
            r".*python data/make_samples\.py")
    refused("--data", "pavia_center",
            words=r"data/pavia_center.*\(University of the Basque Country")


def test_ensemble_bandwise_border_and_preset_reach_the_results():
    run("--data", "scenes/first.mat", "--no-figures", "--no-cubes", "--quiet", "--out", "out",
        "--self-ensemble", "--bandwise", "--border", "4", "--preset", "reference")
    results = json.loads(Path("out/metrics.json").read_text())
    assert [results[key] for key in ("self_ensemble", "bandwise", "border", "preset")] == [
        True, True, 4, "reference"]
    assert results["units"]["sam"] == "rad"


def test_the_report_holds_everything_in_one_file():
    run("--data", "scenes", "--out", "out", "--report", "--error-band", "2")

    found = []

    class Sources(HTMLParser):
        def handle_starttag(self, tag, attributes):
            found.extend(
                value for name, value in attributes if name in ("src", "href", "srcset", "data"))

    page = Path("out/report.html").read_text()
    Sources().feed(page)
    assert (len(found) == 2 * 4
            and all(source.startswith("data:image/png;base64,") for source in found))
    assert "<script" not in page and "url(" not in page
    for text in ("first", "second", "PSNR", "biqrnn_2_2", "best.pth", "gaussian"):
        assert text in page


# -------------------------------------------------------------------------------------- checkpoints

def test_a_checkpoint_of_another_scale_and_degradation_is_taken_at_its_word(capsys):
    save_checkpoint("x2.pth",
                    contents(network(), arch="biqrnn_2_2", scale=2, degradation="bicubic"))
    run("--data", "scenes/first.mat", "--out", "out", "--no-figures", checkpoint="x2.pth")
    results = json.loads(Path("out/metrics.json").read_text())
    assert (results["scale"], results["degradation"]) == (2, "bicubic")
    assert Path("out/cubes/first_x2.mat").exists() and "note" not in capsys.readouterr().err


def test_another_scale_or_degradation_than_it_was_trained_for_is_said(capsys):
    run("--data", "scenes/first.mat", "--out", "out", "--no-figures", "--scale", "2",
        "--degradation", "bicubic")
    said = capsys.readouterr().err
    assert "best.pth was trained for scale factor 4, and 2 is asked for" in said
    assert "best.pth was trained for degradation gaussian, and bicubic is asked for" in said
    results = json.loads(Path("out/metrics.json").read_text())
    assert (results["scale"], results["degradation"]) == (2, "bicubic")
    assert (results["trained_scales"], results["trained_degradation"]) == ([4], "gaussian")


def test_a_checkpoint_of_several_scales_takes_the_first_and_says_so(capsys):
    save_checkpoint("many.pth",
                    contents(network(), arch="biqrnn_2_2", scale=[4, 2], degradation="gaussian"))
    run("--data", "scenes/first.mat", "--out", "out", "--no-figures", checkpoint="many.pth")
    said = capsys.readouterr().err
    assert "was trained for scale factors 4, 2; 4 is taken, --scale chooses another" in said
    run("--data", "scenes/first.mat", "--out", "two", "--no-figures", "--scale", "2",
        checkpoint="many.pth")
    assert capsys.readouterr().err.count("note") == 0


def test_a_released_checkpoint_needs_only_its_scale(capsys):
    weights = {f"module.{k}": v for k, v in network().state_dict().items()}
    torch.save({**contents(network()), "net": weights}, "released.pth")
    refused("--data", "scenes", "--out", "no",
            words=r"released\.pth does not say for which scale factor .* --scale",
            checkpoint="released.pth")
    run("--data", "scenes", "--out", "out", "--no-figures", "--scale", "4", "--degradation",
        "gaussian", checkpoint="released.pth")
    run("--data", "scenes", "--out", "named", "--no-figures")
    assert numbers("out") == numbers("named")
    capsys.readouterr()
    run("--data", "scenes", "--out", "quiet", "--no-figures", "--scale", "4",
        checkpoint="released.pth")
    said = capsys.readouterr().err
    assert "released.pth does not say its degradation; reference is taken" in said


def test_an_alternating_checkpoint_that_does_not_say_how_it_adds_its_input_is_noted(capsys):
    torch.save(contents(network(name="qrnn_2_2")), "released.pth")
    arguments = ("--data", "scenes/first.mat", "--no-figures", "--no-cubes", "--scale", "4",
                 "--degradation", "gaussian")
    run(*arguments, "--out", "once", checkpoint="released.pth")
    assert re.search(r"released\.pth does not say long_skip.*give --long-skip",
                     capsys.readouterr().err)
    run(*arguments, "--out", "twice", "--long-skip", checkpoint="released.pth")
    assert "long_skip" not in capsys.readouterr().err
    assert numbers("once")["first", "network"]["psnr"] != numbers("twice")["first", "network"][
        "psnr"]


def test_checkpoints_that_cannot_be_used_are_refused():
    whole = Path("best.pth").read_bytes()
    Path("half.pth").write_bytes(whole[:len(whole) // 2])
    torch.save({"layers": network().state_dict()}, "foreign.pth")
    save_checkpoint("odd.pth",
                    contents(network(), arch="biqrnn_2_2", scale=5, degradation="gaussian"))
    Path("text.pth").write_text("not a checkpoint")
    for checkpoint, words in (
            ("none.pth", r"no checkpoint none\.pth"),
            ("half.pth", r"half\.pth cannot be read as a checkpoint .* truncated"),
            ("text.pth", r"text\.pth cannot be read"),
            ("scenes", "scenes is a folder, not a checkpoint"),
            ("foreign.pth", r"foreign\.pth is not a checkpoint of this network family"),
            ("odd.pth", r"odd\.pth cannot be used at scale factor 5 .* choose one of 2, 3, 4, 8")):
        refused("--data", "scenes", "--out", "out", words=words, checkpoint=checkpoint)
    refused("-a", "qrnn_2_2", "--data", "scenes",
            words=r"best\.pth holds biqrnn_2_2, and -a asked for qrnn_2_2")
    with pytest.raises(UserError, match=r"No checkpoint was given.* -rp .*--method"):
        hsi_test.main(["--input", "scenes/first.mat", "--output", "high.tif"])
    with pytest.raises(UserError,
                       match=r"no shipped weights fit x8: shipped holds no weights.* -rp"):
        hsi_test.main(["--method", "network", "--data", "scenes", "--scale", "8"])


def test_without_a_checkpoint_the_shipped_weights_that_fit_are_taken_and_named(capsys):
    run("--data", "scenes", "--out", "ours", "--no-figures", "--no-cubes")
    Path("shipped").mkdir()
    path = Path(shutil.copy("best.pth", "shipped/tiny.pth"))
    path.with_suffix(".toml").write_text('arch = "biqrnn_2_2"\nscale = 4\ndegradation = '
                                         '"gaussian"\norder = 1\nsha256 = '
                                         f'"{weights.sha256(path)}"\n')
    capsys.readouterr()
    hsi_test.main(["--data", "scenes", "--out", "out", "--no-figures", "--no-cubes"])
    said = capsys.readouterr().err
    assert "the shipped weights tiny (biqrnn_2_2, x4, gaussian) are taken" in said
    methods = json.loads(Path("out/metrics.json").read_text())["methods"]
    assert methods["network"] == "tiny"  # and so a table calls it
    assert numbers("out") == numbers("ours")
    hsi_test.main(["--input", "scenes/first.mat", "--output", "high.mat"])
    assert (capsys.readouterr().err.count("the shipped weights tiny") == 1
            and scipy.io.loadmat("high.mat")["rad"].shape == (132, 152, 4))
    hsi_test.main(["--input", "scenes", "--output", "all"])  # two cubes
    assert capsys.readouterr().err.count("the shipped weights tiny") == 1
    np.save("band.npy", np.zeros((1, 24, 28)))
    for source, target in (("scenes/first.mat", "a.xyz"), ("band.npy", "a.mat")):
        with pytest.raises(UserError):
            hsi_test.main(["--input", source, "--output", target, "--force"])
    assert "are taken" not in capsys.readouterr().err
    for more, there in (((), True), (("--scale", "2"), False),
                        (("--method", "backprojection", "--scale", "4"), False)):
        hsi_test.main(
            ["--data", "scenes", "--out", "again", "--force", "--no-figures", "--no-cubes", *more])
        assert (("first", "network") in numbers("again")) == there
    assert ("fit x2: shipped holds tiny (biqrnn_2_2, x4, gaussian). The untrained methods alone"
            in capsys.readouterr().err)
    with pytest.raises(UserError,
                       match="No checkpoint was given, and no shipped weights fit qrnn_2_2"):
        hsi_test.main(["--data", "scenes", "-a", "qrnn_2_2"])


def test_without_a_checkpoint_the_untrained_methods_and_cubes_of_others_are_scored(capsys):
    run("--data", "scenes", "--out", "ours", "--no-figures", "--no-cubes")
    Path("theirs").mkdir()
    # a name with and without the scale factor
    for name, height, width in (("first", 32, 36), ("second_x4", 24, 28)):
        cube = scipy.io.loadmat(f"scenes/{name.removesuffix('_x4')}.mat")["rad"]
        scipy.io.savemat(f"theirs/{name}.mat", {"sr": cube[:height, :width]})
    capsys.readouterr()
    hsi_test.main(["--scale", "4", "--data", "scenes", "--compare", "their net=theirs",
                   "also=theirs", "--out", "out", "--report", "--latex"])
    found, before = numbers("out"), numbers("ours")
    assert [method for name, method in found if name == "first"] == [
        "interpolation", "backprojection", "their net", "also"]
    for name in ("first", "second"):
        assert found[name, "their net"]["psnr"] > 90  # the ground truth itself, stored in float32
        assert found[name, "backprojection"] == before[name, "backprojection"]
    assert json.loads(Path("out/metrics.json").read_text())["arch"] is None
    printed = capsys.readouterr().out
    assert printed.count("their net") == 3 and "their net" in Path("out/report.html").read_text()
    assert r"first & interpolation & " in Path("out/metrics.tex").read_text()
    header, *bands = csv.reader(Path("out/metrics_bands.csv").read_text().splitlines())
    assert header[:7] == ["image", "method", "preset", "band", "wavelength_nm", "pixels",
                          "psnr [dB]"]
    assert len(bands) == 2 * 4 * 4
    first = [float(row[6]) for row in bands if row[:2] == ["first", "interpolation"]]
    assert np.mean(first) == pytest.approx(found["first", "interpolation"]["psnr"])
    for folder, words in (("x=nowhere", "nowhere does not exist"),
                          ("network=theirs", "another name"),
                          ("x=ours", "no scene in it|holds no cubes")):
        with pytest.raises(UserError, match=words):
            hsi_test.main(["--scale", "4", "--data", "scenes", "--compare", folder, "--out", "no"])


# ---------------------------------------------------------------------------------------- bad input

def test_a_scene_that_cannot_be_read_is_refused_by_name_and_options_say_how_it_is_read():
    data = Path("scenes/first.mat").read_bytes()
    Path("half.mat").write_bytes(data[:len(data) // 2])
    refused("--data", "half.mat", "--out", "out", words=r"half\.mat .*truncated or damaged")
    two = smooth(4, 24, 24).transpose(1, 2, 0)
    scipy.io.savemat("two.mat", {"a": two, "b": two})
    scipy.io.savemat("flat.mat", {"Y": smooth(4, 24, 25).reshape(4, -1)})
    run("--data", "two.mat", "--key", "b", "--out", "b", "--no-figures")
    run("--data", "flat.mat", "--size", "24", "25", "--out", "flat", "--no-figures")


def test_a_gpu_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("--data", "scenes", "--gpu-ids", "0",
            words="GPU 0 was asked for and this machine has none .*--no-cuda")
    refused("--data", "scenes", "--amp", "fp16", words="--amp fp16 needs a GPU")
    refused("--data", "scenes", "--pooling", "triton",
            words="--pooling triton cannot run on cpu here")
    run("--data", "scenes", "--gpu-ids", "0", "--no-cuda", "--out", "out", "--no-figures")


def test_options_that_contradict_each_other_are_refused():
    for arguments, words in ((["--input", "scenes/first.mat"],
                              r"--input \(or --adapt\) and --output go together"),
                             (["--output", "out.mat"],
                              r"--input \(or --adapt\) and --output go together"),
                             (["--input", "a", "--output", "b", "--data", "scenes"],
                              "give one of them"),
                             (["--input", "a", "--output", "b", "--bandwise"],
                              "--bandwise is for tests"),
                             (["--use-2dconv"], "take bands as channels, and none here does"),
                             (["--input", "a", "--output", "b", "--pixels", "1,2"],
                              "--pixels is for tests"),
                             (["--method", "backprojection", "--backproject", "3"],
                              "there is no network"),
                             (["--input", "a", "--output", "b", "--noise", "0.1"],
                              "--noise is for tests"), (["--threads", "-1"], "--threads is -1"),
                             (["--threads", "1025"], "1024 threads at most"),
                             (["--border", "-1"], "--border is -1"),
                             (["--error-band", "-1"], "--error-band is -1"),
                             (["--data", "scenes", "--scale", "3", "--degradation", "gaussian"],
                              "'gaussian' needs an even scale factor"),
                             (["--data", "scenes", "--tile", "8"], "at least 32 are expected"),
                             (["--data", "scenes", "--error-band", "4"],
                              "Band 4 was asked for .* with 4 bands"),
                             (["--data", "scenes", "--border", "18"],
                              r"first\.mat cannot be compared\. A border of 18")):
        refused(*arguments, *(["--out", "out"] if "--data" in arguments else []), words=words)


def test_options_are_refused_before_a_note_says_which_weights_are_taken(capsys):
    with pytest.raises(UserError, match="--border is -1"):
        hsi_test.main(["--border", "-1", "--arch", "biqrnn", "--scale", "4"])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("arguments",
                         [["--tile", "big"], ["--gpu-ids", "all"], ["--scale", "5"],
                          ["--pixels", "3;4"], ["--no-such-option"]])
def test_a_misspelt_option_shows_what_was_expected(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    said, = capsys.readouterr().err.splitlines()
    assert (error.value.code == 2 and arguments[-1].lstrip("-") in said
            and not re.search("_tile|_numbers|_pixel", said))


@pytest.mark.parametrize(("main", "arguments", "words"), [
    (hsi_test.main, ["low.tif", "high.tif"], "--input goes in front of a file"),
    (hsi_sr.main, ["mine.lmdb"], "--data goes in front of a file"),
    (lmdb_data.main, ["scenes"], "--source goes in front of a file"),
    (hsi_test.main, ["--outptu", "high.tif"], "--output may be meant"),
    (hsi_test.main, ["--no-such-option"], "--no-such-option; --help")])
def test_a_file_without_an_option_and_a_misspelt_option_are_answered_with_the_right_one(
        main, arguments, words, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert words in capsys.readouterr().err


def test_files_that_are_missing_or_there_are_told_before_torch_is_loaded():
    Path("high.mat").write_text("mine")
    code = ("import sys, hsi_test; from utility.system.errors import UserError\n"
            "try: hsi_test.main(sys.argv[1:])\n"
            "except UserError as error: print(error, 'torch' in sys.modules)")
    for arguments, words in (
            (["--info", "none.mat"], "none.mat does not exist"),
            (["--input", "none.mat", "--output", "x.mat"], "none.mat does not exist"),
            (["--input", "scenes/first.mat", "--output", "high.mat"], "high.mat exists already")):
        said = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True,
                              text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}).stdout
        assert words in said and said.endswith("False\n"), said


def test_force_replaces_nothing_but_earlier_results():
    Path("out").mkdir()
    Path("out/mine.txt").write_text("kept")
    refused("--data", "scenes", "--out", "out", "--force",
            words="out holds mine.txt.*does not replace it")
    geotiff()
    refused("--input", "low.tif", "--output", "high.tif", "--out", "out", "--force",
            words="out holds mine.txt")
    for folder in (".", ".."):
        for arguments in (["--data", "scenes"], ["--input", "low.tif", "--output", "high.tif"]):
            refused(*arguments, "--out", folder, "--force", words="lies in|does not replace it")
    run("--data", "scenes", "--out", "results/one", "--no-figures")
    refused("--data", "results/one/cubes", "--out", "results/one", "--force",
            words=r"first_x4\.mat lies in results/one, which")
    refused("--input", "low.tif", "--output", "new/high.tif", "--out", "new",
            words=r"new/high\.tif lies in new, which")


def test_ending_codes_and_messages_of_the_script():
    """As typed: 2 and one line for bad input, 0 when all is well; paths may have blanks."""
    bad = typed("hsi_test.py -rp none.pth")
    assert bad.returncode == 2 and bad.stdout == ""
    assert (bad.stderr == "error: There is no checkpoint none.pth; check the path, or train one "
            "with hsi_sr.py.\n")
    good = typed(f"hsi_test.py -r -rp {Path('best.pth').absolute()} --data scenes/second.mat --out "
                 "'my results' --no-figures")
    assert (good.returncode, good.stdout.splitlines()[-1]) == (0, "results in 'my results'/")


# ----------------------------------------------------------------------------- without ground truth

def geotiff(path="low.tif", **more):
    values = np.random.default_rng(0).integers(1, 200, (4, 20, 24)).astype(np.uint8)
    made.geotiff(path, values, **more)


def test_a_cube_of_one_s_own_is_super_resolved_and_judged(capsys):
    geotiff()
    run("--input", "low.tif", "--output", "sub/high.tif", "--dtype", "float32")
    said = capsys.readouterr()
    figures = r"\d+\.\d dB PSNR, \d+\.\d\d deg SAM"
    assert re.fullmatch(r"read as: 4 bands, 20 x 24\ntakes the sensor's MTF for 0\.22 \(gaussian\) "
                        r"at the Nyquist frequency of the cube(; its noise .*)?\nsub/high\.tif: 4 "
                        fr"x 80 x 96 float32; degraded again it agrees with the input to {figures} "
                        fr"\(interpolation: {figures}; back-projection, .*: {figures}\)\. This is "
                        r"agreement .*, not accuracy\n\d+\.\d% of its values lie outside .*: "
                        r"halos, or detail finer than these pixels\nthe result covers the same "
                        r"ground as the input\n", said.out)
    assert "warning: the network agrees with the input less" in said.err
    with rasterio.open("low.tif") as low, rasterio.open("sub/high.tif") as high:
        assert high.bounds == low.bounds and high.res == (7.5, 7.5) and high.crs == low.crs
    assert [p.name for p in Path("sub").iterdir()] == ["high.tif"]


def test_a_folder_as_output_of_one_file_gets_a_file_named_after_it(capsys):
    Path("there").mkdir()
    for folder in ("new/deep/", "there"):
        run("--input", "scenes/first.mat", "--output", folder, "--method", "interpolation")
        assert [path.name for path in Path(folder).iterdir()] == ["first_x4.mat"]
    assert "there/first_x4.mat: 4 x 132 x 152" in capsys.readouterr().out
    refused("--input", "scenes/first.mat", "--output", "there", words="first_x4.mat exists already")
    refused("--input", "scenes/first.mat", "--output", "word", words="word does not say by its")


def test_clipped_values_are_counted_aloud_or_refused(capsys):
    geotiff(nodata=0)
    run("--input", "low.tif", "--output", "high.tif", "--dtype", "int8")
    assert re.search(r"note: \d+ values of the result \(\d+\.\d%\) did not fit int8 and were "
                     r"clipped; " "--dtype float32 keeps them", capsys.readouterr().err)
    refused("--input", "low.tif", "--output", "no.tif", "--dtype", "int8", "--on-overflow",
            "refuse", "--tile", "0",
            words=r"values of the result do not fit int8, so no\.tif is not written")


def test_the_report_of_a_cube_stands_beside_it():
    geotiff()
    run("--input", "low.tif", "--output", "high.tif", "--report", "--quiet")
    assert sorted(p.name for p in Path("high_report").iterdir()) == [
        "figure.png", "report.html", "summary.json"]
    assert cv2.imread("high_report/figure.png").std() > 10
    summary = json.loads(Path("high_report/summary.json").read_text())
    assert summary["shape"] == [4, 80, 96] and summary["arch"] == "biqrnn_2_2"
    assert set(summary["consistency"]) == {"network", "interpolation", "backprojection"}
    page = Path("high_report/report.html").read_text()
    assert "data:image/png;base64," in page and "Degraded again it agrees with the input" in page


def test_outputs_that_exist_are_refused_before_any_work():
    geotiff()
    Path("high.tif").write_text("mine")
    refused("--input", "low.tif", "--output", "high.tif",
            words=r"high\.tif exists already.*--force")
    Path("report").mkdir()
    Path("report/summary.json").write_text("{}")
    refused("--input", "low.tif", "--output", "new.tif", "--out", "report",
            words="report exists already")
    refused("--input", "low.tif", "--output", "low.tif", "--force",
            words=r"low\.tif is the input itself")
    run("--input", "low.tif", "--output", "high.tif", "--force", "--quiet")
    assert Path("high.tif").stat().st_size > 4 * 80 * 96


@pytest.mark.slow
def test_a_31x2048x2048_result_takes_less_than_4_gb(capsys):
    """A low-resolution cube of 31x512x512, the published network, tiles of 128, on a processor."""
    save_checkpoint(
        "large.pth",
        contents(network(name="biqrnn_16_5"), arch="biqrnn_16_5", scale=4, degradation="gaussian"))
    np.save("low.npy", (4000 * smooth(31, 512, 512)).astype(np.uint16))
    code = ("import resource, sys, time, hsi_test; start = time.time(); "
            "hsi_test.main(sys.argv[1:]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss "
            "/ 2**20, time.time() - start)")
    done = subprocess.run([sys.executable, "-c", code, "-rp", "large.pth", "--input", "low.npy",
                           "--layout", "BHW", "--output", "high.npy", "--tile", "128", "--no-cuda",
                           "--quiet"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    memory, seconds = map(float, done.stdout.split()[-2:])
    with capsys.disabled():
        print(f"\n31x2048x2048, tile 128: {seconds:.0f} s, {31 * 2048**2 / 1e6 / seconds:.2f} "
              f"Mvoxel/s, {memory:.2f} GiB")
    assert np.load("high.npy", mmap_mode="r").shape == (31, 2048, 2048)
    assert memory < 4e9 / 2**30


@pytest.mark.parametrize("script", [hsi_test, hsi_sr])
def test_bf16_without_instructions_for_it_is_refused_with_what_it_costs_unless_it_is_said_twice(
        monkeypatch, script):
    make_database("patches.lmdb", 5, (3, 16, 16), validation=1)
    words = ["--amp", "bf16", "--no-cuda",
             *(["-rp", "best.pth", "--data", "gone"] if script is hsi_test
               else ["--data", "patches.lmdb", "--dry-run", "-a", "biqrnn_1_1", "--quiet"])]
    monkeypatch.setattr(devices, "computes_bf16", lambda device: False)
    monkeypatch.setattr(devices, "_slower", lambda: 31.4)
    with pytest.raises(UserError, match="takes 31 times as long as in float32; leave --amp out"):
        script.main(words)
    monkeypatch.setattr(devices, "_slower", lambda: pytest.fail("refused"))
    if script is hsi_sr:
        assert script.main([*words, "--amp", "bf16"]) == 0
    else:
        with pytest.raises(UserError, match="gone"):
            script.main([*words, "--amp", "bf16"])


def test_automatic_precision_is_bf16_where_the_device_computes_it(monkeypatch):
    for native, expected in ((True, "bf16"), (False, "off")):
        monkeypatch.setattr(devices, "computes_bf16", lambda device, native=native: native)
        assert devices.choose_precision(torch.device("cpu"), "auto") == expected
        assert devices.choose_precision(torch.device("cpu"), "off") == "off"
    assert devices.choose_precision(torch.device("cpu"), "bf16", insisted=True) == "bf16"
    assert devices._slower() > 0
