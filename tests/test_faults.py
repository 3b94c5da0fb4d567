"""What `make faults` does to the program, in small numbers."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("group", ["kills", "mutations", "hostile", "disks"])
def test_nothing_is_lost_and_nothing_trusted(group, tmp_path):
    done = subprocess.run([sys.executable, "-W", "ignore", Path(__file__).parent / "faults", group, "--share", "0.01", "--out",
                           tmp_path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and f"| {group} |" in done.stdout, done.stdout + done.stderr
