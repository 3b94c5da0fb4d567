"""MATLAB v5 files (.mat); v7.3 files are HDF5."""
from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import scipy.io

from utility.cubes.companions import SMALL, choose_key, companions, facts_in, find_size, matlab_name, stated_layout, times
from utility.cubes.cube import CubeWriter, Stored, Target, writing
from utility.cubes.layouts import as_cube, stored_shape
from utility.files import replacing

LIMIT = 2**31 - 1
"""Bytes above which a .mat is written as v7.3: a v5 variable's size is a signed 32-bit number in many readers."""

CLASSES = {"double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"}


def open_mat5(path: Path, key: str | None) -> Stored:
    listed = scipy.io.whosmat(str(path), appendmat=False)
    shapes = {name: tuple(shape) for name, shape, kind in listed if kind in CLASSES}
    texts = [name for name, _, kind in listed if kind == "char" and name == "layout"]
    small = [name for name, shape in shapes.items() if 0 < math.prod(shape) == max(shape) <= SMALL]
    beside = scipy.io.loadmat(str(path), variable_names=[*small, *texts], appendmat=False) if small or texts else {}
    beside = {name: value for name, value in beside.items() if not name.startswith("__")}
    arrays = {name: shape for name, shape in shapes.items() if name not in small}
    others = ", ".join(f"{name} ({kind}, {times(shape)})" for name, shape, kind in listed)
    key = choose_key(path, arrays, key, find_size(beside), others)
    array = scipy.io.loadmat(str(path), variable_names=[key], appendmat=False)[key]
    return Stored(array, format="mat5", key=key, layout=stated_layout(beside.pop("layout", None)),
                  planes=[s for n, s in shapes.items() if len(s) == 2 and n != key and min(s) > 1], **facts_in(beside))


@contextmanager
def create_mat5(target: Target) -> Iterator[CubeWriter]:
    with replacing(target.path, target.overwrite) as temporary:
        array = np.zeros(stored_shape(target.layout, target.shape), target.dtype, order="F")  # as MATLAB lays it
        yield CubeWriter.into(target.path, as_cube(array, target.layout, target.shape[1:]))
        with writing(target.path, scipy.io.matlab.MatWriteError):
            scipy.io.savemat(temporary, {matlab_name(target.like): array, "layout": target.layout, **companions(target)},
                             appendmat=False)
