"""The commands of README.md and docs/ do what the pages say, on small stand-ins for the files that
they name. `ONLY_READ` names those that are only read, in `test_pages`."""
from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import products
import pytest
from made import make_database, smooth
from test_pages import CASES
from trained import config
from typed import typed

from utility.cubes.cube import Scene
from utility.scenes import write_scene
from utility.system.progress import quiet
from utility.training.loop import train

ONLY_READ = {
    "make ": "the environment, or minutes",
    "torchrun ": "see test_distributed",
    "sh benchmarks/": "a GPU",
    "python benchmarks/": "see test_benchmarks",
    "python studies/": "real scenes; see test_studies",
    "python hsi_test.py --adapt ": "minutes; see test_adapt",
    "python utility/lmdb_data.py --dataset ": "scenes of that data set; see test_end_to_end",
    "python hsi_test.py -rp runs/ip/best.pth --dataset ": "likewise",
    "python utility/lmdb_data.py #": "the sample scenes are rendered; see test_end_to_end"}
"""Beginnings of commands, and what they need."""

COMMANDS = sorted({re.sub(r"\s+", " ", command) for page, command in CASES
                   if page == "README.md" or page.startswith("docs/")})
RUN = [command for command in COMMANDS if not command.startswith(tuple(ONLY_READ))]
MORE = {"hsi_sr.py": "--no-cuda --no-log --quiet --amp off --iterations 3 -b 2 --val-batches 1",
        "hsi_test.py": "--no-cuda --force", "utility/lmdb_data.py": "--force --quiet",
        "utility/summary.py": ""}
"""What a script is given beside: few steps, and leave to replace what another command wrote."""


def scene(path: str, bands: int = 8, height: int = 32, width: int = 40, seed: int = 0) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    cube = (1000 * smooth(bands, height, width, seed)).astype(np.float32)
    write_scene(Path(path), Scene(cube, "cube", key="gt",
                                  wavelengths=np.linspace(450, 900, bands)))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the commands name."""
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch, quiet():
        patch.chdir(folder)
        for name in ("low.hdr", "cubes/a.tif", "cubes/b.hdr"):
            scene(name, height=12, width=16)
        for name in ("scene", "more_scenes/b", "scenes/a", "folder/a", "SCENES/a",
                     "feathers_crop150", "jasperRidge2_R198"):
            scene(f"{name}.mat")
        scene("data/test/sample/a.mat", bands=31)
        for seed, name in enumerate(("cloth_ms_256", "real_and_fake_apples_ms_256",
                                     "smooth_crop100")):
            scene(f"{name}.mat", height=40, width=48, seed=seed)
        scene("my_scenes/a.mat", height=72, width=80)
        products.emit(folder / "EMIT_L2A_RFL_001.nc")
        products.cave(folder / "CAVE" / "one_ms")
        products.dlr(folder / "ENMAP_folder", "enmap")
        for name in ("sample", "mine", "icvl", "cave", "rendered", "rendered_overhead",
                     "indian_pines"):
            make_database(f"data/lmdb/{name}.lmdb", count=6, shape=(18, 16, 16), validation=2)
        train(config("data/lmdb/sample.lmdb", epochs=1, batch=4, run_dir="runs/NAME"))
        for name in ("cave", "ip"):
            shutil.copytree("runs/NAME", f"runs/{name}")
        Path("checkpoints").mkdir()
        shutil.copy("runs/NAME/best.pth", "checkpoints/NAME.pth")
        for name in ("one", "two"):
            assert not typed("hsi_test.py --method backprojection --scale 4 --data scenes "
                             f"--no-figures --no-cubes --out results/{name} --no-cuda").returncode
    return folder


@pytest.mark.parametrize("command", RUN)
def test_a_command_does_what_its_page_says(command, desk, tmp_path, monkeypatch):
    monkeypatch.chdir(desk)
    words = []
    for word in shlex.split(command, comments=True)[1:]:
        found = [str(path) for path in sorted(Path().glob(word)) if path.is_dir()]
        words += found if "*" in word else [word]
    words += MORE[words[0]].split()
    if words[0] == "hsi_sr.py" and "-r" not in words:
        words += ["--run-dir", str(tmp_path / "run")]
    done = typed(shlex.join(words))
    assert done.returncode == 0, done.stderr
    assert not re.search("^(error|failed)", done.stderr, re.MULTILINE)
    if "--output" in words:
        assert any(Path().glob(words[words.index("--output") + 1].rstrip("/") + "*"))
    if words[0] == "hsi_sr.py" and not {"-r", "--dry-run"} & set(words):
        assert (tmp_path / "run" / "last.pth").exists()


def test_every_command_that_is_only_read_is_on_a_page():
    assert len(RUN) >= 25
    for begin in ONLY_READ:
        assert any(command.startswith(begin) for command in COMMANDS), begin
