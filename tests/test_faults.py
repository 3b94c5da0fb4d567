"""What `make faults` does to the program, in small numbers."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from limits import HUNG


def test_nothing_is_lost_and_nothing_trusted(tmp_path):
    command = [sys.executable, "-W", "ignore", Path(__file__).parent / "faults", "--share", "0.01",
               "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HUNG)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"| {group} |" in done.stdout
               for group in ("kills", "mutations", "hostile", "disks"))
