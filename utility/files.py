"""Writing files whole or not at all: build beside the final name, then rename."""
from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utility.errors import UserError


def refuse_existing(path: Path, overwrite: bool, hint: str = "--force") -> None:
    """Raise UserError when `path` exists and `overwrite` is False."""
    if not overwrite and os.path.lexists(path):
        raise UserError(f"{path} exists already; choose another name, or give {hint} to replace it.")


@contextmanager
def replacing(path: str | os.PathLike[str], overwrite: bool = True, hint: str = "--force") -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the name `path`, on any failure it is removed.

    The temporary name keeps the suffix of `path`, because many writers choose the format by it. It may be written as a
    file or as a folder. A folder that already stands under the final name is replaced only when the new one is whole.

    Raises:
        UserError: `path` exists and `overwrite` is False, its folder cannot be made, or the disk is full.
    """
    path = Path(path)
    refuse_existing(path, overwrite, hint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder {path.parent} ({error.strerror}); choose a writable place.") from error
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.partial{path.suffix}")
    try:
        yield temporary
        if temporary.is_dir() and path.exists():
            old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
            os.replace(path, old)
            os.replace(temporary, path)
            _remove(old)
        else:
            os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"The disk is full while writing {path}; free some space and run again.") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR):
            raise UserError(f"Cannot write {path} ({error.strerror}); choose another, writable place.") from error
        raise
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    with suppress(OSError):  # a name that could not be made cannot be looked at either
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any, overwrite: bool = True) -> None:
    """Write `value` as indented JSON, whole or not at all; NaN and infinities are refused (they are not JSON)."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with replacing(path, overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")
