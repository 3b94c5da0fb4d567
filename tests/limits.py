"""Scarce resources for tests: disk and time."""
from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

HUNG = 3600
"""Seconds after which a process waits for something that never comes, also on a slow machine."""


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files stop growing at `size` bytes: real write errors, in every library."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
