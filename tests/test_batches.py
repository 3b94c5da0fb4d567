"""hsi_test.py --input FOLDER: every scene, once, whatever happens to the others."""
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio

import hsi_test
from utility.system.errors import UserError


@pytest.fixture(autouse=True)
def place():
    """Two scenes, a damaged one, and a file that is none."""
    Path("in").mkdir()
    cube = np.random.default_rng(0).random((31, 12, 12)).astype(np.float32)
    np.save("in/a.npy", cube)
    with rasterio.open("in/b.tif", "w", driver="GTiff", count=31, height=12, width=12,
                       dtype="float32", transform=rasterio.Affine(30, 0, 0, 0, -30, 0)) as file:
        file.write(cube)
    np.save("in/broken.npy", np.full((31, 12, 12), np.nan))
    Path("in/notes.txt").write_text("not a scene")


def run(*arguments):
    return hsi_test.main(["--method", "interpolation", "--scale", "2", "--input", "in", "--output",
                          "out", *arguments])


def test_every_scene_of_a_folder_is_made_in_its_format_and_failures_are_listed_at_the_end(capfd):
    assert run() == 1
    said = capfd.readouterr()
    assert sorted(path.name for path in Path("out").iterdir()) == ["a_x2.npy", "b_x2.tif"]
    assert said.out.splitlines()[-1].startswith("3 scenes: 2 made, 0 already there")
    assert said.err.splitlines()[-1].startswith("failed: in/broken.npy ")
    lines = said.out.splitlines()
    assert lines[lines.index("in/b.tif:") + 1] == "read as: 31 bands, 12 x 12"
    with rasterio.open("out/b_x2.tif") as made:
        assert (made.count, made.height, made.width) == (31, 24, 24)


def test_several_files_and_folders_are_one_input(capfd):
    Path("in/broken.npy").unlink()
    assert run("--input", "in/b.tif", "in/b.tif") == 0  # one scene, which is named once
    assert "1 scene: 1 made" in capfd.readouterr().out
    Path("more").mkdir()
    np.save("more/c.npy", np.load("in/a.npy"))
    assert run("--input", "in/a.npy", "in/b.tif", "more") == 0
    assert "3 scenes: 2 made, 1 already there" in capfd.readouterr().out
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "a_x2.npy", "b_x2.tif", "c_x2.npy"]


@pytest.mark.parametrize("sources", [["in"], ["in/a.npy", "in/b.tif"]])
def test_the_name_of_a_file_is_refused_for_the_results_of_several_cubes(sources):
    with pytest.raises(UserError, match=r"^all/x\.tif is the name of a file.* need a folder; give "
                                        r"one, such as all/x/\.$"):
        run("--input", *sources, "--output", "all/x.tif")
    assert not Path("all").exists()
    Path("there.tif").mkdir()  # whoever made such a folder means it
    run("--input", *sources, "--output", "there.tif")
    assert len(list(Path("there.tif").iterdir())) == 2


@pytest.mark.parametrize(("name", "content"),
                         [("cut.tif", lambda tif: tif[:300]),
                          ("wiped.tif", lambda tif: bytes(len(tif))),
                          ("empty.mat", lambda tif: b""), ("cut.hdr", lambda tif: b"EN"),
                          ("cut.jp2", lambda tif: b"\0\0\0\x0cjP  \r\n\x87\n")])
def test_a_file_named_like_a_cube_that_cannot_be_read_is_a_failure(capfd, name, content):
    Path("in/broken.npy").unlink()
    Path("in/b.hdr").write_text("ESRI's, beside b.tif")
    Path(f"in/{name}").write_bytes(content(Path("in/b.tif").read_bytes()))
    assert run() == 1
    assert capfd.readouterr().err.splitlines()[-1].startswith(f"failed: in/{name} ")
    assert sorted(path.name for path in Path("out").iterdir()) == ["a_x2.npy", "b_x2.tif"]


def test_the_same_command_makes_only_what_is_missing_or_older_than_its_scene(capfd):
    Path("in/broken.npy").unlink()
    assert run() == 0
    before = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    assert run() == 0 and "0 made, 2 already there" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("out").iterdir()} == before
    assert run("--dtype", "uint16", "--on-overflow", "clip") == 0
    assert ("2 already there and left as they are (newer than their scene, but perhaps made with "
            "other options; --force makes them again)") in capfd.readouterr().out
    Path("out/a_x2.npy").unlink()
    os.utime("in/b.tif", ns=(2 * 10**18, 2 * 10**18))
    assert run() == 0 and "2 made, 0 already there" in capfd.readouterr().out
    assert run("--force") == 0
    said = capfd.readouterr().out
    assert "2 made" in said and "perhaps" not in said


def test_what_cannot_be_is_refused_in_one_sentence():
    for output, words in (("in", "folder of the scenes"), ("in/a.npy", "is a file")):
        with pytest.raises(UserError, match=words):
            run("--output", output)
    with pytest.raises(UserError, match="--report"):
        run("--out", "page")
    Path("in/a.dat").write_bytes(Path("in/a.npy").read_bytes())  # known by its content
    with pytest.raises(UserError, match=r"both become a_x2\.npy"):
        run()
