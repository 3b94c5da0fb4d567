"""Which version of the project this is."""
from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def project_version() -> str:
    """The version in pyproject.toml, such as "1.2.0"."""
    return tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]["version"]
