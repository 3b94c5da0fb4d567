"""The tree of an LMDB file, checked before LMDB trusts it: a wrong number ends the process.

A file is a sequence of pages. Each of the two meta pages names the root of a tree; the later one
counts. A branch page names other pages. A leaf page holds keys and values, or names the pages of a
long value. (Structure: mdb.c of LMDB 0.9.)
"""
from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utility.system.errors import UserError

MAGIC, NONE = 0xBEEFC0DE, (1 << 64) - 1
BRANCH, LEAF = 1, 2
HEAD = 16  # bytes, of a page


def is_lmdb(data: Path) -> bool:
    """Whether a file begins as an LMDB file does."""
    with open(data, "rb") as file:
        return file.read(HEAD + 4)[HEAD:] == struct.pack("<I", MAGIC)


def check_pages(data: Path, name: str | Path) -> None:
    """Raise UserError where `data`, the file of the database `name`, is truncated, or its tree
    leaves the file.

    A file that LMDB itself refuses passes.
    """
    size = data.stat().st_size
    with open(data, "rb") as file:
        head = file.read(152)
        if len(head) < 152 or struct.unpack_from("<I", head, HEAD)[0] != MAGIC:
            return
        page, = struct.unpack_from("<I", head, 40)
        if page not in (256 << n for n in range(9)):
            raise UserError(
                f"{name} is damaged: it says pages of {page} bytes; build or copy it again.")
        file.seek(page)
        other = file.read(152)
        if len(other) < 152:
            return
        metas = [struct.unpack("<92xH34xQQQ", meta) for meta in (head, other)]
        flags, root, last, _ = metas[metas[0][3] < metas[1][3]]  # as LMDB chooses
        if size < (last + 1) * page:
            raise UserError(f"{name} is truncated: its file has {size} bytes and "
                            f"{(last + 1) * page} were written; copy or build it again.")
        try:
            if flags:
                raise ValueError(f"flags {flags:#x}")
            _walk(file, root, page, last + 1)
        except (ValueError, IndexError, struct.error) as error:
            raise UserError(f"{name} is damaged ({error}); build or copy it again.") from error


def _walk(file: BinaryIO, root: int, page: int, count: int) -> None:
    """Visit all pages once. Raises ValueError or IndexError where one points out of the file."""
    waiting, seen = [] if root == NONE else [root], set()
    while waiting:
        number = waiting.pop()
        if number in seen or not 2 <= number < count:
            raise ValueError(f"a tree with the page {number}, of {count}")
        seen.add(number)
        file.seek(number * page)
        words = np.frombuffer(file.read(page), "<u2")
        kind, lower = int(words[5]), int(words[6])
        if kind not in (BRANCH, LEAF) or not HEAD <= lower <= page:
            raise ValueError(f"the page {number} of kind {kind}")
        at = words[HEAD // 2:lower // 2].astype(np.int64)
        if at.size and (at.min() < lower or at.max() > page - 8 or (at % 2).any()):
            raise ValueError(f"the page {number}")
        low, high, flags, key = (words[at // 2 + n].astype(np.int64) for n in range(4))
        end, long = at + 8 + key, (flags == 1) & (kind == LEAF)
        if kind == BRANCH:
            waiting += (low | high << 16 | flags << 32).tolist()
        else:
            held = low | high << 16
            end += np.where(long, 8, held)
            if (flags > 1).any():
                raise ValueError(f"values of another kind in the page {number}")
        if at.size and end.max() > page:
            raise ValueError(f"the page {number}")
        if long.any():
            first = words.view(np.uint8)[(at + 8 + key)[long, None] + np.arange(8)].view("<u8")[
                :, 0]
            over = first + ((HEAD + held[long] + page - 1) // page).astype(np.uint64)
            if first.min() < 2 or first.max() >= count or over.max() > count:
                raise ValueError(
                    f"a value in the pages from {first.min()} to {first.max()}, of {count}")
