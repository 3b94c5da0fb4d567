"""MATLAB v5 files (.mat); v7.3 files are HDF5."""
from __future__ import annotations

import math
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import scipy.io

from utility.cubes.axes import as_cube, stored_shape
from utility.cubes.companions import (
    NAMES,
    SMALL,
    TEXTS,
    WAVELENGTH,
    called,
    choose_key,
    companions,
    facts_in,
    find_size,
    matlab_name,
    may_hold_cube,
    stated_layout,
)
from utility.cubes.cube import CubeWriter, Stored, Target, writing
from utility.system.files import replacing
from utility.system.memory import require_memory

LIMIT = 2**31 - 1
"""Bytes above which a .mat is written as v7.3: a v5 variable's size is a signed 32-bit number in
many readers."""

CLASSES = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 6: "double", 7: "single",
           8: "int8", 9: "uint8", 10: "int16", 11: "uint16", 12: "int32", 13: "uint32", 14: "int64",
           15: "uint64", 16: "function", 17: "opaque"}
NUMERIC = [CLASSES[number] for number in range(6, 16)]
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
         16: "u1", 17: "u2"}
MATRIX, COMPRESSED = 14, 15
CHUNK = 1 << 20
DEEPEST = 4
"""Structs in structs at most; deeper ones are not opened."""


class _Element:
    """A top-level element of the file: its data, inflated, never more than the element has.

    scipy's own reader takes sizes and types from the file unchecked, and a damaged file crashes it.
    """

    def __init__(self, file: BinaryIO, position: int, order: str) -> None:
        self.file, self.order, self.padding, self.inflated = file, order, 0, None
        self.taken = 0  # bytes, inflated
        file.seek(position)
        self.left = 8
        kind, self.left = self._tag()
        self.end = position + 8 + self.left
        if kind not in (MATRIX, COMPRESSED) or self.end > os.fstat(file.fileno()).st_size:
            raise ValueError(f"an element of type {kind} and {self.left} bytes at byte {position}")
        if kind == COMPRESSED:
            self.inflated = zlib.decompressobj()
            kind, _ = self._tag()
            if kind != MATRIX:
                raise ValueError(f"a compressed element of type {kind} at byte {position}")

    def header(self) -> tuple[str, str, tuple[int, ...], bool]:
        """Name, class, shape and whether the array is complex."""
        flags = int(self.part(64).view(f"{self.order}u4")[0])
        kind = CLASSES.get(flags & 0xFF, "unknown") if not flags & 0x200 else "logical"
        shape = tuple(map(int, self.part(256).view(f"{self.order}i4"))) if kind != "opaque" else ()
        if min(shape, default=0) < 0:
            raise ValueError(f"an array of {shape}")
        return self.part(256).tobytes().decode("latin-1"), kind, shape, bool(flags & 0x800)

    def arrays(self, name: str = "") -> Iterator[tuple[str, str, tuple[int, ...], bool]]:
        """Name, class, shape and whether complex, of the array here, or of each field of a struct
        (`struct/field`); the next part is the values of the one that came last."""
        own, kind, shape, is_complex = self.header()
        name = name or own
        if kind != "struct" or math.prod(shape) != 1 or name.count("/") >= DEEPEST:
            yield name, kind, shape, is_complex
            return
        length = int(self.part(8)[0])
        for field in self.part(SMALL).reshape(-1, length):
            self._take(self.padding)
            self.padding = 0
            kind_of_field, size = self._tag()
            if kind_of_field != MATRIX:
                raise ValueError(f"a field of type {kind_of_field}")
            end = self.taken + size
            if size:
                letters = field.tobytes().partition(b"\0")[0].decode("latin-1")
                yield from self.arrays(f"{name}/{letters}")
            self._skip(end - self.taken)
            self.padding = 0

    def part(self, most: int | None = None) -> np.ndarray:
        """The next part, in its own type; a part of more than `most` bytes is damage."""
        self._take(self.padding)
        kind, size = self._tag()
        short = kind >> 16  # a part of at most four bytes may stand in its tag
        kind, size = (kind & 0xFFFF, short) if short else (kind, size)
        if kind not in TYPES or (short > 4) or (most is not None and size > most):
            raise ValueError(f"a part of type {kind} and {size} bytes")
        self.padding = 0 if short else -size % 8
        data = self._last[4:4 + size] if short else self._take(size)
        return data.view(f"{self.order}{TYPES[kind]}")

    def finish(self) -> None:
        """Read to the end of a compressed element, which checks the checksum."""
        while self.inflated and self._piece(CHUNK):
            pass
        if self.inflated and not self.inflated.eof:
            raise ValueError("a compressed element ends early")

    def _tag(self) -> tuple[int, int]:
        self._last = self._take(8)
        first, second = self._last.view(f"{self.order}u4")
        return int(first), int(second)

    def _take(self, size: int) -> np.ndarray:
        # deflate packs no denser
        most = self.left if self.inflated is None else 1032 * (self.left + CHUNK)
        if size > most:
            raise ValueError(f"a part of {size} bytes in an element of {self.left}")
        require_memory(size, self.file.name)
        data, at = np.empty(size, np.uint8), 0
        for piece in self._pieces(size):
            data[at:at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)
        return data

    def _skip(self, size: int) -> None:
        if size < 0:
            raise ValueError("a field is longer than its struct says")
        for _ in self._pieces(size):
            pass

    def _pieces(self, size: int) -> Iterator[bytes]:
        self.taken += size
        while size:
            piece = self._piece(min(size, CHUNK))
            if not piece:
                raise ValueError("an element ends early")
            yield piece
            size -= len(piece)

    def _piece(self, most: int) -> bytes:
        while True:
            packed = self.inflated.unconsumed_tail if self.inflated else b""
            if not packed:
                packed = self.file.read(min(self.left, most,
                                            CHUNK >> 4 if self.inflated else CHUNK))
                self.left -= len(packed)
            piece = self.inflated.decompress(packed, most) if self.inflated else packed
            if piece or not packed:
                return piece


def _elements(file: BinaryIO) -> tuple[str, dict[str, tuple[str, tuple[int, ...], int]]]:
    """The byte order of an open file, and name -> (class, shape, position) of what it holds; of a
    field the position of its outermost struct."""
    file.seek(126)
    order = {b"IM": "<", b"MI": ">"}[file.read(2)]
    found, position, size = {}, 128, os.fstat(file.fileno()).st_size
    while position + 8 <= size:
        element = _Element(file, position, order)
        for name, kind, shape, _ in element.arrays():
            if name:
                found[name] = kind, shape, position
        position = element.end
    return order, found


def holds_cube(path: Path) -> bool:
    """Whether a file may hold a cube: 3 axes, or bands x pixels beside a size; or is damaged."""
    try:
        with open(path, "rb") as file:
            _, found = _elements(file)
    except (OSError, ValueError, KeyError, zlib.error):
        return True
    return may_hold_cube(_numeric(found))


def _numeric(found: dict[str, tuple[str, tuple[int, ...], int]]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the arrays of numbers."""
    return {name: shape for name, (kind, shape, _) in found.items() if kind in NUMERIC}


def open_mat5(path: Path, key: str | None) -> Stored:
    with open(path, "rb") as file:
        order, found = _elements(file)

        def read(name: str) -> np.ndarray:
            element = _Element(file, found[name][2], order)
            shape, is_complex = next(one[2:] for one in element.arrays() if one[0] == name)
            if is_complex:  # refused for its type
                return np.broadcast_to(np.complex64(0), shape)
            array = element.part().reshape(shape, order="F")
            element.finish()
            return array

        shapes = _numeric(found)
        small = [
            name for name, shape in shapes.items() if 0 < math.prod(shape) == max(shape) <= SMALL]
        lengths = {n for shape in shapes.values() if math.prod(shape) > max(shape) for n in shape}

        def tells(name: str) -> bool:
            """Whether a small array may say something of a cube. A read of a field begins with its
            struct, so that fields are chosen by their names."""
            of_bands = 1 < max(shapes[name]) in lengths
            return name.rpartition("/")[2].lower() in NAMES or (
                of_bands and ("/" not in name or called(WAVELENGTH, name)))

        known: dict[str, Any] = {name: read(name) for name in small if tells(name)}
        for name in ("layout", *TEXTS):
            if found.get(name, ("",))[0] == "char" and math.prod(found[name][1]) <= SMALL:
                with suppress(ValueError):  # text that says nothing known
                    codes = read(name).ravel(order="F")
                    known[name] = codes.tobytes().decode(
                        "utf-8" if codes.itemsize == 1 else "utf-16")
        arrays = {name: shape for name, shape in shapes.items() if name not in small}
        outer = {name: shape for name, shape in arrays.items() if "/" not in name}
        if not key and max(map(len, outer.values()), default=0) > 2:
            arrays = outer  # fields count where the file has no other cube
        others = ", ".join(f"{name} ({kind}, {' x '.join(map(str, shape))})"
                           for name, (kind, shape, _) in found.items() if name not in arrays)
        folders = dict.fromkeys(["", *(name.rpartition("/")[0] for name in arrays)])
        size = next(filter(None, (find_size(_beside(known, folder)) for folder in folders)), None)
        notes: list[str] = []
        key = choose_key(path, arrays, key, size, others, notes=notes)
        beside = _beside(known, key.rpartition("/")[0])
        return Stored(
            read(key), format="mat5", key=key, layout=stated_layout(beside.pop("layout", None)),
            notes=notes,
            planes=[s for n, s in shapes.items() if len(s) == 2 and n != key and min(s) > 1],
            **facts_in(beside))


def _beside(known: dict[str, Any], folder: str) -> dict[str, Any]:
    """What stands at the top of the file and in one of its structs, by the end of its name."""
    return {name.rpartition("/")[2]: value for name, value in known.items()
            if name.rpartition("/")[0] in ("", folder)}


@contextmanager
def create_mat5(target: Target) -> Iterator[CubeWriter]:
    with replacing(target.path, target.overwrite) as temporary:
        array = np.zeros(stored_shape(target.layout, target.shape), target.dtype,
                         order="F")  # as MATLAB lays it
        yield CubeWriter.into(target.path, as_cube(array, target.layout, target.shape[1:]))
        with writing(target.path, scipy.io.matlab.MatWriteError):
            scipy.io.savemat(
                temporary,
                {matlab_name(target.like): array, "layout": target.layout, **companions(target)},
                appendmat=False)
            with open(temporary, "r+b") as file:
                # instead of SciPy's text with its time: the same cube makes the same file
                file.write(f"MATLAB 5.0 MAT-file, Platform: {sys.platform}".ljust(116).encode())
