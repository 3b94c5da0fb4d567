"""What a result depends on beside its configuration: versions, commit, command, machine."""
from __future__ import annotations

import platform
import shlex
import subprocess
import sys
import tomllib
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

from utility.system.devices import device_name
from utility.system.distributed import launcher, size

ROOT = Path(__file__).resolve().parents[2]


def describe_environment(device: torch.device) -> dict[str, Any]:
    """What a run depends on beside its configuration."""
    return {"version": project_version(), "commit": commit_of(ROOT),
            "command": shlex.join([Path(sys.executable).name, *sys.argv]),
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "python": platform.python_version(), "torch": torch.__version__,
            "numpy": np.__version__, "scipy": scipy.__version__, "cuda": torch.version.cuda,
            "platform": platform.platform(), "device": device_name(device), "processes": size(),
            "launcher": launcher(), "threads": torch.get_num_threads()}


def commit_of(root: Path) -> str | None:
    """The commit of a folder, `+` where files differ from it; None outside of a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"], cwd=root,
            capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


@lru_cache(maxsize=1)
def project_version() -> str:
    """The version in pyproject.toml, such as "1.2.0"."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
