"""Every test runs in a folder of its own, also in the processes that it starts."""
import os
import signal

import cv2
import numpy as np
import pytest
from made import make_database

from utility.report import figures
from utility.training import runs

os.environ["BI3DQRNN_HOME"] = "."
# a shell that starts the tests in the background ignores it
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _draws_quickly(request, monkeypatch):
    """The curve of a training is drawn where tests go from end to end."""
    monkeypatch.setattr(figures, "DPI", 40)
    if request.module.__name__ != "test_end_to_end":
        monkeypatch.setattr(runs, "training_curve_figure",
                            lambda path, *_, **__: cv2.imwrite(str(path), np.zeros((2, 2))))


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> str:
    """A database of 9 patches to train on and 4 to validate with, 5 x 16 x 16."""
    return make_database(tmp_path_factory.mktemp("data") / "small.lmdb")
