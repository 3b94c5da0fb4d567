"""A command line is read, explained and refused before anything large is imported."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from limits import HUNG

from models.layers import pooling
from utility import degradation, indexes, lmdb_dataset, names
from utility.system import devices
from utility.training import losses

ROOT = Path(__file__).parent.parent
LARGE = {"torch", "matplotlib", "rasterio", "spectral", "h5py", "scipy", "tensorboardX", "lmdb",
         "triton"}

WATCHED = """
import json, runpy, sys
sys.argv = json.loads(sys.argv[1])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    names = sorted(name for name in sys.modules if "." not in name)
    print(json.dumps([end.code, names]), file=sys.stderr)
"""


@pytest.mark.parametrize(("words", "code"), [
    ("hsi_test.py --help", 0), ("hsi_sr.py --help", 0), ("utility/lmdb_data.py --help", 0),
    ("hsi_test.py --scale 5", 2), ("hsi_test.py --input low.tif", 2),
    ("hsi_test.py --tile many", 2),
    ("hsi_test.py --method backprojection --scale 4 --input a.tif --output b.tif --border -1", 2),
    ("hsi_test.py -a vdsr --scale 8 --input a.tif --output b.tif", 2),  # no shipped weights fit
    ("hsi_sr.py --loss square", 2), ("hsi_sr.py -rp run/last.pth", 2),
    ("utility/lmdb_data.py --augment 9", 2)])
def test_help_and_refused_options_import_nothing_large(words, code):
    run = subprocess.run([sys.executable, "-c", WATCHED, json.dumps(words.split())], cwd=ROOT,
                         capture_output=True, text=True, timeout=HUNG)
    assert run.stderr, run
    found, modules = json.loads(run.stderr.splitlines()[-1])
    assert found == code
    assert not LARGE & set(modules)


def test_the_names_on_the_command_line_are_those_that_exist():
    assert tuple(degradation.KINDS) == names.DEGRADATIONS
    assert tuple(indexes.PRESETS) == names.PRESETS
    assert names.POOLING == pooling.BACKENDS
    assert set(names.PRECISIONS) >= set(devices.AMP)
    assert tuple(losses.LOSSES) == names.LOSSES
    assert set(names.STORED) == {"float32", "float16"} and lmdb_dataset.STORED is names.STORED


def test_the_networks_do_without_the_compiler():
    """Half as long again as torch."""
    code = "import sys, models, utility.superres.deliver; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=300).returncode == 0
