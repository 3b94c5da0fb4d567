"""Patches in an LMDB folder, for training: the reader, and the writer.

A database of this project: key ``{:08d}`` -> the raw little-endian patch, key ``__meta__`` -> JSON
(version, dtype, shape, count, validation, sources); the last `validation` patches are for
validation. The reader also takes the databases published with this family of networks, which hold
`Datum` records (`utility.system.datum`) and no ``__meta__``.

    with writing_database("data/lmdb/mine.lmdb") as writer:
        writer.write(patches)                                   # (n, B, h, w), as often as needed
        writer.finish(sources=[...])
    LMDBDataset("data/lmdb/mine.lmdb", "train")[0]              # (B, h, w) float32
"""
from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from torch.utils.data import Dataset

from utility.names import STORED
from utility.system.datum import decode_datum
from utility.system.environment import project_version
from utility.system.errors import UserError
from utility.system.files import locked, refuse_existing, replacing, sweep
from utility.system.lmdb_pages import check_pages, is_lmdb

META_KEY = b"__meta__"
VERSION = 1
SAMPLED = 16
"""Records of a database that its fingerprint reads."""

# LMDB lets a process open a database once, and an environment must not cross a fork:
# path -> (process, identity of the data file, environment).
_environments: dict[str, tuple[int, tuple[int, ...], lmdb.Environment]] = {}


class LMDBDataset(Dataset):
    """Map-style dataset: item i is a (B, h, w) float32 array that may be written to.

    It may be pickled and used by fork and spawn workers: each process opens the database on its
    first read.

    Args:
        path: the database's folder (or its single file).
        split: None for all patches, "validation" for the last ones, as many as the database says,
            "train" for the rest. A published database does not say it, and is split by
            `default_validation`.

    Attributes:
        meta: the database's ``__meta__``.
        shape: (B, h, w).
        validation: how many of the last patches are for validation.

    Raises UserError: `path` is missing, is not a database of either kind, is of a version that is
    not known here, or is truncated; on reading, a record is missing or corrupt (named by its key).
    """

    def __init__(self, path: str | Path, split: str | None = None) -> None:
        if split not in (None, "train", "validation"):
            raise ValueError(f"split is {split!r}; expected None, 'train' or 'validation'")
        self.path = str(Path(path).absolute())
        self.split = split
        data = _data_file(Path(path))
        held = _environments.get(self.path)
        if held and held[1] != _identity(data):  # the database was built anew since
            held[2].close()
            del _environments[self.path]
        self._identity = _identity(data)
        try:
            count, validation = self._open(path, data)
        except lmdb.Error as error:
            raise _damaged(path, error) from error
        self.validation = validation
        self._first = count - validation if split == "validation" else 0
        self._count = {None: count, "train": count - validation, "validation": validation}[split]

    def _open(self, path: str | Path, data: Path) -> tuple[int, int]:
        """Read ``__meta__``; how many patches there are, and how many of them validate."""
        check_pages(data, path)
        environment = self._environment()
        with environment.begin() as transaction:
            stored = transaction.get(META_KEY)
        self.datum = stored is None
        self.meta: dict[str, Any] = (
            self._published_meta() if stored is None else _checked_meta(stored, path))
        self.shape: tuple[int, int, int] = tuple(self.meta["shape"])
        self._dtype = np.dtype(self.meta["dtype"]).newbyteorder("<")
        count = self.meta["count"]
        validation = default_validation(count) if self.datum else self.meta["validation"]
        records = environment.stat()["entries"] - (stored is not None)
        if records != count:
            raise UserError(f"{path} holds {records} records and says {count}; build it again.")
        return count, validation

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> np.ndarray:
        if index < 0:
            index += self._count
        if not 0 <= index < self._count:
            raise IndexError(f"patch {index} of {self._count}")
        try:
            return self._read(self._first + index)
        except lmdb.Error as error:
            raise _damaged(self.path, error) from error

    def fingerprint(self) -> dict[str, Any]:
        """What tells this database from others, wherever it lies and whenever it was built.

        Returns: `patches`, `validation`, `shape`, `dtype`, and `sha256`: of these, of the scenes'
        own hashes and regions, and of `SAMPLED` records spread over the whole database.

        Raises UserError: a sampled record is missing or damaged.
        """
        count = self.meta["count"]
        facts = {"patches": count, "validation": self.validation, "shape": list(self.shape),
                 "dtype": self.meta["dtype"]}
        scenes = [{name: value for name, value in source.items() if name != "file"}
                  for source in self.meta["sources"]]
        digest = hashlib.sha256(json.dumps([facts, scenes], sort_keys=True).encode())
        try:
            with self._environment().begin(buffers=True) as transaction:
                for number in np.unique(np.linspace(0, count - 1, SAMPLED).round().astype(int)):
                    digest.update(self._record(transaction, f"{number:08d}"))
        except lmdb.Error as error:
            raise _damaged(self.path, error) from error
        return {**facts, "sha256": digest.hexdigest()}

    def _read(self, number: int) -> np.ndarray:
        key = f"{number:08d}"
        with self._environment().begin(buffers=True) as transaction:
            record = self._record(transaction, key)
            if self.datum:
                return self._decoded(key, record)
            expected = math.prod(self.shape) * self._dtype.itemsize
            if len(record) != expected:
                raise UserError(f"{self.path}: the record {key} has {len(record)} bytes, and a "
                                f"patch of {self.shape} {self._dtype.name} has {expected}; build "
                                "or copy the database again.")
            return np.frombuffer(record, self._dtype).astype(np.float32).reshape(self.shape)

    def _record(self, transaction: lmdb.Transaction, key: str) -> memoryview:
        record = transaction.get(key.encode())
        if record is None:
            raise UserError(f"{self.path} has no record {key}; build or copy it again.")
        return record

    def _decoded(self, key: str, record: memoryview) -> np.ndarray:
        try:
            patch = decode_datum(record)
        except ValueError as error:
            raise UserError(f"{self.path}: the record {key} is not a Datum patch ({error}); copy "
                            "it again.") from None
        if patch.shape != self.shape:
            raise UserError(f"{self.path}: the record {key} is {patch.shape}, others are "
                            f"{self.shape}; copy it again.")
        return patch

    def _published_meta(self) -> dict[str, Any]:
        environment = self._environment()
        count = environment.stat()["entries"]
        with environment.begin() as transaction:
            first = transaction.get(b"00000000")
        try:
            if first is None:
                raise ValueError("there is no record 00000000")
            shape = decode_datum(first).shape
        except ValueError as error:
            raise UserError(f"{self.path} is an LMDB database, but neither one of "
                            f"utility/lmdb_data.py (no {META_KEY.decode()}) nor one of Datum "
                            f"patches ({error}); build one with utility/lmdb_data.py.") from None
        return {"version": VERSION, "format": "datum", "dtype": "float32", "shape": list(shape),
                "count": count, "validation": 0, "sources": []}

    def _environment(self) -> lmdb.Environment:
        process, held = os.getpid(), _environments.get(self.path)
        if held and held[0] == process and held[1] == self._identity:
            return held[2]
        if _identity(_data_file(Path(self.path))) != self._identity:
            raise UserError(f"{self.path} was replaced while it was being read; start again, on "
                            "the new database.")
        try:
            if held:
                held[2].close()
            environment = lmdb.open(self.path, subdir=os.path.isdir(self.path), readonly=True,
                                    create=False, lock=False, readahead=False)
        except lmdb.Error as error:
            reason = str(error).rpartition(": ")[2]
            raise UserError(f"{self.path} is not an LMDB database, or truncated ({reason}); build "
                            "it again.") from error
        _environments[self.path] = process, self._identity, environment
        return environment


def _identity(data: Path) -> tuple[int, ...]:
    """What tells a data file from another one that takes its name."""
    found = data.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _damaged(path: str | Path, error: lmdb.Error) -> UserError:
    """One sentence for LMDB's errors on damaged pages."""
    return UserError(
        f"{path} is damaged ({str(error).rpartition(': ')[2]}); build or copy it again.")


def default_validation(count: int) -> int:
    """The number of validation patches: 1,000 as released, or a tenth of `count` if less."""
    return min(1000, max(count // 10, min(1, count - 1)))


@contextmanager
def writing_database(path: str | Path, *, dtype: str = "float32", force: bool = False,
                     map_size_mb: int = 1024) -> Iterator[DatabaseWriter]:
    """A writer for the database `path`, which appears when the block ends; after a failure nothing
    is left.

    Args:
        dtype: of the stored values, one of `STORED`.
        force: replace `path` if it is a database.
        map_size_mb: LMDB's map to begin with; the map doubles when it is full.

    Raises UserError: `path` exists and is not replaced, it cannot be written, or the disk is full.
    """
    path = Path(path)
    refuse_existing(path, force)
    if path.exists():
        inside = {file.name for file in path.iterdir()} if path.is_dir() else set()
        if "data.mdb" not in inside or not inside <= {"data.mdb", "lock.mdb"}:
            raise UserError(f"{path} exists and is not an LMDB database, so it is not replaced; "
                            "choose another --out.")
    with locked(path), replacing(path, force, marks=("data.mdb",)) as temporary, \
            closing(DatabaseWriter(temporary, dtype, map_size_mb)) as writer:
        yield writer


class DatabaseWriter:
    """Writes an LMDB environment that grows; see `writing_database`.

    Attributes:
        count, bytes: patches and their bytes written so far.
    """

    def __init__(self, folder: Path, dtype: str, map_size_mb: int) -> None:
        self.dtype, self.count, self.bytes = dtype, 0, 0
        self._shape: tuple[int, ...] = ()
        # Nothing reads this folder before it is renamed: no lock, and one sync at the end.
        self._folder = folder
        with self._system_errors():
            self._environment = lmdb.open(str(folder), map_size=map_size_mb << 20, lock=False,
                                          sync=False)

    def write(self, patches: np.ndarray) -> None:
        """Store patches (n, B, h, w), in [0, 1], under the next numbers."""
        stored = np.ascontiguousarray(patches, np.dtype(self.dtype).newbyteorder("<"))
        self._commit([(f"{self.count + i:08d}".encode(), memoryview(patch).cast("B"))
                      for i, patch in enumerate(stored)])
        self._shape = stored.shape[1:]
        self.count += len(stored)
        self.bytes += stored.nbytes

    def finish(self, validation: int | None = None, **facts: Any) -> dict[str, Any]:
        """Write ``__meta__`` and return it.

        Args:
            validation: how many of the last patches are for validation; None: `default_validation`.
            facts: what else ``__meta__`` says, such as `sources`.

        Raises UserError: no patch would be left for training.
        """
        if validation is None:
            validation = default_validation(self.count)
        if validation >= self.count:
            raise UserError(f"{validation} of {self.count} patches would be for validation; hold "
                            "out fewer (--val-last).")
        meta = {"version": VERSION, "dtype": self.dtype, "shape": list(self._shape),
                "count": self.count, "validation": validation,
                "created_by": f"bi3dqrnn {project_version()}", "sources": [], **facts}
        self._commit([(META_KEY, json.dumps(meta, allow_nan=False).encode())])
        with self._system_errors():
            self._environment.sync(True)
        return meta

    def close(self) -> None:
        self._environment.close()

    def _commit(self, records: list[tuple[bytes, bytes | memoryview]]) -> None:
        while True:
            try:
                with self._system_errors(), self._environment.begin(write=True) as transaction:
                    for key, value in records:
                        transaction.put(key, value, append=key != META_KEY)
                return
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])

    @contextmanager
    def _system_errors(self) -> Iterator[None]:
        """Raise the system's error where LMDB failed to write."""
        try:
            yield
        except lmdb.MapFullError:
            raise
        except lmdb.Error as error:
            code = (errno.ENOSPC if isinstance(error, lmdb.DiskError)
                    else max(getattr(error, "code", 0), 0) or errno.EIO)
            if code == errno.EIO and shutil.disk_usage(self._folder.parent).free < 1 << 20:
                code = errno.ENOSPC  # LMDB says EIO where a part of a write finds room
            raise OSError(code, os.strerror(code)) from error


def _data_file(path: Path) -> Path:
    if not path.exists():
        sweep(path.parent)  # it may have lost its name to a process that was killed
    data = path / "data.mdb" if path.is_dir() else path
    if not path.exists():
        raise UserError(f"There is no database {path}; build it with python utility/lmdb_data.py, "
                        "or check the path.")
    build = f"python utility/lmdb_data.py --source {path} --out data/lmdb/{path.stem}.lmdb"
    if not data.is_file():
        raise UserError(f"{path} is not an LMDB database (it holds no data.mdb); make one of "
                        f"scenes in it: {build}")
    if data == path and not is_lmdb(path):
        raise UserError(f"{path} is not an LMDB database, but a scene or another file; make one of "
                        f"a scene: {build}")
    return data


def _checked_meta(stored: bytes, path: str | Path) -> dict[str, Any]:
    try:
        meta = json.loads(stored)
        version = meta["version"]
        if version == VERSION:
            shape, count, validation = meta["shape"], meta["count"], meta["validation"]
            whole = all(isinstance(n, int) for n in (*shape, count, validation))
            if not whole or len(shape) != 3 or min(shape) < 1 or not 0 <= validation <= count:
                raise ValueError("its sizes disagree")
            sources = meta.get("sources", [])
            if (not isinstance(sources, list)
                    or not all(isinstance(source, dict) for source in sources)):
                raise ValueError("its sources are no list of tables")
            if meta["dtype"] not in STORED:
                raise ValueError(f"dtype {meta['dtype']}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: {META_KEY.decode()} cannot be used ({error!r}); build the "
                        "database again.") from error
    if version != VERSION:
        raise UserError(f"{path} is of version {version!r}, and this program reads version "
                        f"{VERSION}; build it again.")
    return meta
