"""Writing files whole or not at all: build beside the final name, then rename."""
from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utility.system.errors import UserError, held_back
from utility.system.progress import note

_LEFT = re.compile(
    r"\.(?P<name>.+)\.(?P<boot>[0-9a-f]{12})-(?P<process>\d+)-[0-9a-f]{8}\.(?P<kind>partial|old).*")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNWRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR,
               errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT, errno.EBUSY,
               errno.ETXTBSY, errno.ELOOP, errno.EIO)


def default_path(relative: str | Path) -> Path:
    """A default place: in the repository, wherever one is; in the folder BI3DQRNN_HOME where that
    variable is set."""
    home = Path(os.environ.get("BI3DQRNN_HOME") or Path(__file__).resolve().parents[2])
    return Path(relative) if home.resolve() == Path.cwd() else home / relative


def require_file(path: Path) -> None:
    """Raise UserError where `path` is a pipe, a device or a socket: to open a pipe waits, and a
    device may never end."""
    if not path.is_file():
        raise UserError(f"{path} is no ordinary file but a pipe, a device or a socket; give a "
                        "file.")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise UserError when `path` exists and `overwrite` is False."""
    if not overwrite and os.path.lexists(path):
        raise UserError(
            f"{path} exists already; choose another name, or give --force to replace it.")


def refuse_foreign(path: Path, marks: Sequence[str]) -> None:
    """Raise UserError when `path` is a folder that must not be replaced.

    The working folder and the folders above it must not be replaced. Another folder may be replaced
    if it is empty or holds one of `marks`, the names by which this project knows its own folders.
    With marks, a file `path` must not be replaced either.
    """
    if not path.is_dir() or path.is_symlink():
        if marks and os.path.lexists(path) and not path.is_dir():
            raise UserError(f"{path} is a file and a folder is to be made, so --force does not "
                            "replace it; choose another name.")
        return
    if Path.cwd().is_relative_to(path.resolve()):
        raise UserError(f"{path} is the folder you are in, or above it, so --force does not "
                        "replace it; name another one.")
    inside = sorted(os.listdir(path))
    if inside and not set(marks) & set(inside):
        known = f"none of {', '.join(marks)}" if marks else "no sign that it was made here"
        raise UserError(f"{path} holds "
                        f"{', '.join(inside[:3])}{' and more' if len(inside) > 3 else ''} and "
                        f"{known}, so --force does not replace it; choose another name.")


def keep_out_of(folder: Path, *paths: str | Path | None) -> None:
    """Raise UserError when one of `paths` lies in a folder of results, replaced as a whole."""
    for path in filter(None, paths):
        if Path(path).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} lies in {folder}, which would be replaced as a whole; choose "
                            "another --out.")


@contextmanager
def replacing(path: str | os.PathLike[str], overwrite: bool = True,
              marks: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary path beside `path`. On success it gets the name `path`; on any failure it
    is removed.

    The temporary name keeps the suffix of `path`, because many writers choose the format by the
    suffix. The block writes a file or a folder there. A file reaches the disk before it gets its
    name, so a power cut leaves the old content or the new one, never an empty file. The system
    decides when a folder reaches the disk. An existing folder is replaced when the new one is
    complete, and comes back if the replacement fails.

    Args:
        path: the final name; its folder is made.
        overwrite: replace an existing `path`; a folder only as `refuse_foreign` allows.
        marks: names by which a folder of the written kind is known.

    Raises UserError: `path` exists and must not be replaced, its folder cannot be made, the name
    cannot be written, or the disk is full.
    """
    path = Path(path)
    if path.name in ("", ".."):  # such as "."
        path = path.resolve()
    if not path.name:
        raise UserError(f"{path} is no name that can be written; choose another one.")
    try:
        refuse_existing(path, overwrite)
        refuse_foreign(path, marks)
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make {path} ({error.strerror}: {error.filename}); choose a "
                        "writable place.") from error
    sweep(path.parent)
    temporary = path.with_name(f".{path.stem}.{_mine()}.partial{path.suffix}")
    try:
        yield temporary
        if temporary.is_dir():
            refuse_foreign(path, marks)  # it may have been filled meanwhile
            if os.path.lexists(path):
                _swap(temporary, path)
            else:
                os.replace(temporary, path)
        else:
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError as error:
        if (error.errno in _DISK_FULL
                or (error.errno in _UNWRITABLE and _is_about(error, temporary, path))):
            raise write_failure(path, error) from error
        raise
    finally:
        remove(temporary)


def write_failure(path: str | os.PathLike[str], error: OSError) -> UserError:
    """The sentence that says why `path` cannot be written; a full disk has its own."""
    if error.errno in _DISK_FULL:
        return UserError(f"The disk is full while writing {path}; free some space and run again.")
    return UserError(f"Cannot write {path} ({error.strerror or error}); choose another, writable "
                     "place with free space.")


def _is_about(error: OSError, *paths: Path) -> bool:
    """Whether a file is not another one, such as one that was read meanwhile."""
    return not isinstance(error.filename, str | os.PathLike) or any(
        Path(error.filename).absolute().is_relative_to(path.absolute()) for path in paths)


def _swap(new: Path, path: Path) -> None:
    """Give the folder `new` the name `path` and remove the old one, which a failure keeps."""
    old = path.with_name(f".{path.name}.{_mine()}.old")
    try:
        os.replace(path, old)
        os.replace(new, path)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            os.replace(old, path)
        raise
    finally:
        if os.path.lexists(path):
            remove(old)


def _here() -> str:
    """This boot of this machine."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return hashlib.sha256((platform.node() + boot).encode()).hexdigest()[:12]
    return "0" * 12


def _mine() -> str:
    """A part of a name that says which process made the file, and when."""
    return f"{_here()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def sweep(folder: Path) -> None:
    """Remove dead processes' partial files from a folder, and give an old result its name back.

    A process that is killed between the two renames of `_swap` leaves the old folder under a hidden
    name. Files of another machine, or of an earlier boot, are left for a day: the machine may share
    the folder.
    """
    try:
        found = [(path, match)
                 for path in folder.iterdir() if (match := _LEFT.fullmatch(path.name))]
    except OSError:
        return
    for path, match in found:
        with suppress(OSError):
            if not _is_dead(match["boot"], int(match["process"]), path):
                continue
            final = path.with_name(match["name"])
            if match["kind"] == "old" and not os.path.lexists(final):
                os.rename(path, final)
                note(f"{final} was being replaced by a process that died; the old one is back")
            else:
                remove(path)


def _is_dead(boot: str, process: int, path: Path) -> bool:
    if boot != _here():
        return time.time() - path.lstat().st_mtime > 86400
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def lock(file: int, path: Path) -> None:
    """Lock an open file to the end of the process. Raises UserError: another has `path`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{path} is being written by another process; wait until it ends, or "
                        "choose another name.") from None
    except OSError:
        pass  # a file system without locks


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the name `path` alone, by a hidden file beside it. Raises UserError: another process
    holds it, or the file cannot be made."""
    name = path.parent / f".{path.name}.lock"
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(name, os.O_CREAT | os.O_RDWR, 0o666)
        except OSError as error:
            raise write_failure(path, error) from error
        try:
            lock(file, path)
            if not name.exists() or not os.path.samestat(os.fstat(file), name.stat()):
                # the process that held the lock before has just removed this file: another one
                # counts now
                continue
            try:
                yield
            finally:
                remove(name)
            return
        finally:
            os.close(file)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there, and whole: a signal waits."""
    with held_back(), suppress(OSError):  # a name that could not be made cannot be looked at either
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def shown(path: str | Path) -> str:
    """A path as one would type it here: relative below the working folder, quoted if need be."""
    path = Path(path).absolute()
    return shlex.quote(
        str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
