"""What `requirements.txt` names is enough: all runs without what only tests need."""
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from typed import ROOT

PROGRAM = """
import contextlib, importlib.machinery, io, json, runpy, sys

root, blocked = sys.argv[1], set(json.loads(sys.argv[2]))
sys.path.insert(0, root)
find = importlib.machinery.PathFinder.find_spec

def not_installed(name, *where):
    return None if name.partition(".")[0] in blocked else find(name, *where)

importlib.machinery.PathFinder.find_spec = not_installed

import torch

def run(line):
    sys.argv, output = line.split(), io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            runpy.run_path(f"{root}/{sys.argv[0]}", run_name="__main__")
    except SystemExit as end:
        assert not end.code, f"{line} ended with {end.code}"
    return output.getvalue()

for script in ("hsi_sr.py", "hsi_test.py", "utility/lmdb_data.py"):
    assert "usage" in run(f"{script} --help")
run("utility/lmdb_data.py --source scene.npy --patch 16 --stride 16 --out some.lmdb --quiet")
run("hsi_sr.py -a biqrnn_2_1 --data some.lmdb -b 2 --iterations 1 --run-dir run --no-cuda --quiet")
run("hsi_test.py -rp run/last.pth --input scene.npy --output fine.npy --scale 2 --no-cuda --quiet")
assert torch.hub.load(root, "biqrnn_16_5", source="local").name == "biqrnn_16_5"
assert not blocked & set(sys.modules)
"""


def brought_along(requirements: Path) -> set[str]:
    """The distributions that a list of requirements installs, in small letters with dashes."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    wanted, found = [line for line in lines if line and not line.startswith("#")], set()
    while wanted:
        requirement = Requirement(wanted.pop())
        name = requirement.name.lower().replace("_", "-")
        if (name not in found
                and (not requirement.marker or requirement.marker.evaluate({"extra": ""}))):
            found.add(name)
            wanted += importlib.metadata.requires(name) or []
    return found


def not_required() -> set[str]:
    """Modules that are installed here and that `requirements.txt` does not bring along."""
    required = brought_along(ROOT / "requirements.txt")
    modules = importlib.metadata.packages_distributions()
    return {module for module, owners in modules.items()
            if not required & {owner.lower().replace("_", "-") for owner in owners}}


@pytest.mark.parametrize("blocked", [{"triton"}, not_required()],
                         ids=["triton", "all that is not required"])
def test_everything_runs_without(tmp_path, blocked):
    np.save("scene.npy", np.random.default_rng(0).random((5, 48, 48), dtype=np.float32))
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(ROOT), json.dumps(sorted(blocked))],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert np.load("fine.npy").shape == (5, 96, 96)
