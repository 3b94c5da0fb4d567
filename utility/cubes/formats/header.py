"""ENVI's text header: found beside a data file, and read field by field."""
from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utility.system.errors import UserError

LIMIT = 64 << 20
"""Bytes of a header at most."""

MARK = b"\xef\xbb\xbf"
"""Of a text file in UTF-8, before its first word."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings: rasters without georeference, headers with capitals are usual."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def header_of(path: Path) -> Path | None:
    """The ENVI header that belongs to the data file `path`; None where there is none."""
    for name in (f"{path.name}.hdr", f"{path.name}.HDR", f"{path.stem}.hdr", f"{path.stem}.HDR"):
        header = path.with_name(name)
        if header != path and header.is_file() and is_header(header):
            return header
    return None


def is_header(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(8).removeprefix(MARK).startswith(b"ENVI")


def read_fields(header: Path) -> dict[str, Any]:
    """The fields by names in lower case: text, or a list of texts (a description is one text).
    Raises UserError: a brace is not closed, or the file is no text."""
    with open(header, "rb") as file:
        text = file.read(LIMIT).removeprefix(MARK)
    if b"\0" in text:
        raise _unreadable(header)
    # The fields are ASCII; descriptions come in any code page.
    lines = iter(text.decode("ascii", "replace").splitlines()[1:])
    fields: dict[str, Any] = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if not equals or line.lstrip().startswith(";"):
            continue
        value = value.strip()
        if value.startswith("{"):
            while value.count("{") > value.count("}"):
                try:
                    value += "\n" + next(lines).strip()
                except StopIteration:
                    raise _unreadable(header) from None
            inside = value[1:value.rindex("}")].strip()
            key = name.strip().lower()
            parts = [part.strip() for part in inside.split(",")]
            fields[key] = inside if key == "description" else parts
        else:
            fields[name.strip().lower()] = value
    return fields


def _unreadable(header: Path) -> UserError:
    return UserError(f"{header} is not a readable ENVI header (a brace is not closed, or it is no "
                     "text); correct or copy it again.")
