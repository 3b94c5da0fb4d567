"""A script as it is typed, run in this process: a new one takes seconds to import torch."""
from __future__ import annotations

import contextlib
import io
import runpy
import shlex
import signal
import sys
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

import pytest

ROOT = Path(__file__).resolve().parent.parent


def typed(line: str) -> CompletedProcess:
    """Exit code and output of a line such as "hsi_test.py -r"; the script is one of this
    repository."""
    script, *words = shlex.split(line.removeprefix("python "))
    out, err, handler = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM)
    with (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
          patch.object(sys, "argv", [script, *words]), pytest.raises(SystemExit) as ended):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    signal.signal(signal.SIGTERM, handler)
    return CompletedProcess(line, ended.value.code, out.getvalue(), err.getvalue())
