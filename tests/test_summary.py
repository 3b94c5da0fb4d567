"""The summary: one table of many tests, in which nothing unlike is mixed."""
from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from utility import summary
from utility.indexes import METRICS
from utility.system.errors import UserError


def results(folder: Path, network: float, scale: int = 4, names: tuple[str, ...] = ("feathers",),
            card: str | None = None, **changes: object) -> str:
    def row(psnr: float) -> dict:
        return {**dict.fromkeys(METRICS, 0.5), "psnr": psnr, "skipped_pixels": 0,
                "outside_values": 0}

    methods = {"interpolation": "interpolation", "backprojection": "back-projection",
               "network": "biqrnn_16_5"}
    rows = {key: row(psnr) for key, psnr in zip(methods, (28.0, 30.0, network), strict=True)}
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({
        "preset": "standard", "border": 0, "scale": scale, "degradation": "gaussian",
        "arch": "biqrnn_16_5", "methods": methods,
        "images": [{"name": name, "card": card, **rows} for name in names], "mean": rows,
        **changes}))
    return str(folder)


def test_runs_of_one_experiment_are_one_row_with_mean_and_sample_deviation(tmp_path, capsys):
    folders = [results(tmp_path / "a", 31.0), results(tmp_path / "b", 32.0),
               results(tmp_path / "c", 33.0)]
    summary.main(folders)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| data set | problem | method | runs | PSNR [dB] ↑ | SSIM ↑ |")
    # runs that agree have no deviation
    assert lines[2].startswith("| feathers | x4 gaussian | interpolation | 3 | 28.000 |")
    assert lines[4].startswith("|  |  | biqrnn_16_5 | 3 | **32.000 ± 1.000** |")
    assert lines[-1] == ("preset standard, border 0 px; mean ± standard deviation over runs; bold: "
                         "the best mean.")


def test_data_sets_scales_noise_and_named_networks_are_rows_of_their_own(tmp_path, capsys):
    results(tmp_path / "all" / "a", 31.0)
    results(tmp_path / "all" / "b", 31.0, scale=8)
    results(tmp_path / "all" / "c", 31.0, noise=0.01)
    many = results(tmp_path / "d", 29.0, names=("p", "q", "r", "s"))
    card = results(tmp_path / "e", 29.0, card="salinas")
    # the last one twice
    summary.main([str(tmp_path / "all"), f"mine={many}", f"mine={card}",
                  many.replace("/d", "/./d")])
    cells = [[cell.strip() for cell in line.split("|")[1:5]]
             for line in capsys.readouterr().out.splitlines()[2:17]]
    assert [row[:2] for row in cells[::3]] == [["feathers", "x4 gaussian"],
                                               ["feathers", "x8 gaussian"],
                                               ["feathers", "x4 gaussian, noise 0.01"],
                                               ["p ... s (4)", "x4 gaussian"],
                                               ["salinas", "x4 gaussian"]]
    assert [row[2] for row in cells[2::3]] == ["biqrnn_16_5"] * 4 + ["mine"]
    assert {row[3] for row in cells} == {"1"}


def test_what_numbers_depend_on_beside_the_weights_is_in_the_name_of_the_method(tmp_path, capsys):
    folders = [results(tmp_path / "a", 31.0),
               results(tmp_path / "b", 32.0, backproject=10, self_ensemble=True)]
    known = Path(results(tmp_path / "c", 33.0), "metrics.json")
    found = json.loads(known.read_text())
    found["images"][0]["trained_on"] = ["feathers.mat"]
    known.write_text(json.dumps(found))
    summary.main([*folders, f"ours={known.parent}"])
    assert [line.split(" | ")[2:4] for line in capsys.readouterr().out.splitlines()[4:7]] == [
        ["biqrnn_16_5", "1"], ["biqrnn_16_5, 10 steps of back-projection, self-ensemble", "1"],
        ["ours (trained on pixels of the test)", "1"]]


def test_tests_with_other_noise_or_precision_are_rows_of_their_own(tmp_path, capsys):
    told = {"a": (31.0, {}), "b": (29.0, {"snr": 25}), "c": (28.0, {"snr": 30}),
            "d": (31.1, {"amp": "bf16"})}
    # one network, which is not to be taken for tested twice
    summary.main([results(tmp_path / name, psnr, weights_sha256="x", **how)
                  for name, (psnr, how) in told.items()])
    rows = [[cell.strip() for cell in line.split("|")[2:6]]
            for line in capsys.readouterr().out.splitlines() if "biqrnn" in line]
    assert rows == [["", "biqrnn_16_5", "1", "31.000"],
                    ["", "biqrnn_16_5, bf16", "1", "**31.100**"],
                    ["", "biqrnn_16_5", "1", "29.000"], ["", "biqrnn_16_5", "1", "28.000"]]


def test_the_number_of_pixels_that_count_stands_in_each_row(tmp_path, capsys):
    path = Path(results(tmp_path / "a", 31.0), "metrics.json")
    found = json.loads(path.read_text())
    for row in found["mean"].values():
        row["counted_pixels"] = 1234
    path.write_text(json.dumps(found))
    summary.main([str(tmp_path / "a"), "--out", str(tmp_path / "table")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("| pixels |")
    assert all(line.endswith("| 1234 |") for line in lines[2:5])
    rows = list(csv.DictReader((tmp_path / "table.csv").open(newline="")))
    assert [row["pixels"] for row in rows] == ["1234"] * 3


def test_csv_markdown_and_latex_are_written(tmp_path, capsys):
    folders = [results(tmp_path / "a", 31.0), results(tmp_path / "b", 33.0)]
    summary.main([*folders, "--indexes", "psnr", "sam", "--out", str(tmp_path / "out" / "table")])
    header, *rows = csv.reader((tmp_path / "out" / "table.csv").open(newline=""))
    assert (header
            == ["data_set", "problem", "method", "runs", "psnr_mean [dB]", "psnr_std [dB]",
                "sam_mean [deg]", "sam_std [deg]", "pixels"])
    assert rows[2][:5] == ["feathers", "x4 gaussian", "biqrnn_16_5", "2", "32"]
    assert float(rows[2][5]) == pytest.approx(2**0.5, rel=1e-5)
    assert (tmp_path / "out" / "table.md").read_text() in capsys.readouterr().out
    text = (tmp_path / "out" / "table.tex").read_text()
    assert r"\textbf{32.000 $\pm$ 1.414}" in text and text.count(r" \\") == 4


def test_what_cannot_stand_in_one_table_is_refused(tmp_path):
    good = results(tmp_path / "good", 31.0)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "metrics.json").write_text("{}")
    for other, words in ((tmp_path / "gone", "There is no .*gone"),
                         (tmp_path / "broken", "cannot be used as results"),
                         (results(tmp_path / "other", 31.0, preset="reference"),
                          "different presets or borders")):
        with pytest.raises(UserError, match=words):
            summary.main([good, str(other)])


def test_what_is_no_test_among_others_is_left_out_in_one_note(tmp_path, capsys):
    good, report, cube = results(tmp_path / "good", 31.0), tmp_path / "x_report", tmp_path / "x.tif"
    report.mkdir()
    (report / "summary.json").write_text("{}")
    cube.write_bytes(b"II*")
    many = [tmp_path / f"cube{n}.npy" for n in range(5)]
    for path in many:
        path.touch()
    summary.main([good, str(report), str(cube)])
    said = capsys.readouterr()
    assert said.out.splitlines()[2].startswith("| feathers | x4 gaussian |")
    assert said.err == f"note: 2 left out, which hold no test: {report}, {cube}\n"
    summary.main([good, *map(str, [report, cube, *many])])
    assert f"note: 7 left out, which hold no test: {report}, {cube}, {many[0]}, ... and 4 more" \
        in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no metrics\.json in .*x_report, .*x\.tif,"):
        summary.main([str(report), str(cube)])
    # a name was given to it on purpose
    with pytest.raises(UserError, match=r"x_report has no metrics\.json"):
        summary.main([good, f"ours={report}"])


def telling(folder: Path, psnr: float, **image: object) -> str:
    """Results of one image that metrics.json says more of."""
    path = Path(results(folder, psnr), "metrics.json")
    found = json.loads(path.read_text())
    found["images"][0] |= ({"name": "gt", "bands": 31, "low": 0.0, "high": 1.0,
                            "file": f"{folder.name}.mat", "sha256": "a"} | image)
    path.write_text(json.dumps(found))
    return str(folder)


@pytest.mark.parametrize(("other", "words"),
                         [({"sha256": "b", "bands": 20}, ("31 bands", "20 bands")),
                          ({"sha256": "b", "high": 5000.0}, ("0.0 to 1.0", "0.0 to 5000.0")),
                          ({"sha256": "b"}, ("one.mat", "two.mat")),
                          ({"sha256": "bcd", "file": "one.mat"}, ("(a)", "(bcd)")),
                          ({"interpolation": {"psnr": 1, "counted_pixels": 7}},
                           ("None pixels", "7 pixels"))])
def test_unlike_ground_truths_of_one_name_are_never_averaged(tmp_path, capsys, other, words):
    summary.main([telling(tmp_path / "one", 31.0), telling(tmp_path / "two", 33.0, **other)])
    lines = capsys.readouterr().out.splitlines()[2:8]
    assert [line.split(" | ")[3] for line in lines] == ["1"] * 6
    assert "gt (" in lines[0] and words[0] in lines[0] and words[1] in lines[3]


def test_the_same_ground_truth_under_two_names_of_its_file_is_one_data_set(tmp_path, capsys):
    summary.main([telling(tmp_path / "one", 31.0), telling(tmp_path / "two", 33.0)])
    assert "| biqrnn_16_5 | 2 | **32.000 ± 1.414** |" in capsys.readouterr().out


def test_weights_that_were_tested_twice_are_one_run_and_shipped_ones_are_no_seeds(tmp_path, capsys):
    runs = {"a": (31.0, "x", "runs/a/best.pth"), "b": (31.0, "x", "runs/a/best.pth"),
            "c": (33.0, "y", "runs/c/best.pth"), "d": (35.0, "z", "checkpoints/lowgrid_x4.pth"),
            "e": (36.0, "w", "checkpoints/lowgrid_x4_gaussian.pth")}
    folders = [results(tmp_path / name, psnr, weights_sha256=hashed, checkpoint=path)
               for name, (psnr, hashed, path) in runs.items()]
    summary.main(folders)
    rows = [[cell.strip() for cell in line.split("|")[3:5]]
            for line in capsys.readouterr().out.splitlines()[4:7]]
    assert (rows
            == [["biqrnn_16_5", "2"], ["lowgrid_x4", "1"], ["lowgrid_x4_gaussian", "1"]])
