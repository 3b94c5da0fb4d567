"""Default paths lie in the folder where a test runs, also in the processes that the test starts: a folder of its own."""
import os

import pytest

os.environ["BI3DQRNN_HOME"] = "."


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
