"""What lets a GPU compute while the host reads the next tile and writes the last one. On a
processor the three take turns."""
from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

Place = TypeVar("Place")
Read = TypeVar("Read")


def overlaps(device: torch.device) -> bool:
    """Whether work on the device goes on beside the host's."""
    return device.type == "cuda"


def pinned(x: Tensor) -> Tensor:
    """x in page-locked memory, from which a copy to a GPU makes nobody wait.

    torch keeps such memory, and gives it out again when the copy is done: two buffers serve all
    tiles.
    """
    return x.pin_memory()


def on_its_way(x: Tensor) -> Callable[[], np.ndarray]:
    """Begin to copy x to the host. The call that is returned waits for the copy, and gives it."""
    if not overlaps(x.device):
        return x.numpy
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(x.device))

    def arrived() -> np.ndarray:
        done.synchronize()
        return host.numpy()

    return arrived


class Ahead(Generic[Place, Read]):
    """Calls `read` for one place after another; with `thread`, for the place that follows while the
    caller uses this one."""

    def __init__(self, read: Callable[[Place], Read], thread: bool) -> None:
        self.read, self.pool = read, ThreadPoolExecutor(1) if thread else None
        self.begun: tuple[Place, Future] | None = None

    def __call__(self, place: Place, following: Place | None = None) -> Read:
        """What `read` gives for a place. It need not be the one that was announced as following."""
        if self.pool is None:
            return self.read(place)
        if self.begun is None or self.begun[0] != place:
            self.begun = place, self.pool.submit(self.read, place)
        found = self.begun[1].result()
        self.begun = (
            None if following is None else (following, self.pool.submit(self.read, following)))
        return found

    def __enter__(self) -> Ahead[Place, Read]:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)
