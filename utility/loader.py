"""Patches to the device: a DataLoader whose every draw is keyed, and the copy that hides behind the previous step.

The order of an epoch depends on (seed, epoch) alone, and the augmentation of a patch on (seed, epoch, patch): the number of
workers, and where a run was interrupted, change nothing.
"""
from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utility.augment import augment
from utility.errors import UserError


class _Batches(Dataset):
    """A list of keys gives a batch (N, B, h, w), float32 in [0, 1], or the UserError that says why it cannot be read.

    An error that is raised in a worker would arrive with the worker's traceback in its message.
    """

    def __init__(self, patches: Sequence[np.ndarray]) -> None:
        self.patches = patches

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.patches[index]

    def __getitems__(self, keys: Sequence[Any]) -> Tensor | UserError:
        try:
            return torch.from_numpy(np.stack([self[key] for key in keys]))
        except UserError as error:
            return error


class _Augmented(_Batches):
    """Key (epoch, index) is patch `index`, augmented as that epoch has it."""

    def __init__(self, patches: Sequence[np.ndarray], mode: str, seed: int) -> None:
        super().__init__(patches)
        self.mode, self.seed = mode, seed

    def __getitem__(self, key: tuple[int, int]) -> np.ndarray:
        epoch, index = key
        return augment(self.patches[index], self.mode, self.seed, epoch, index)


class Epochs(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) keys; `set_position` chooses the epoch, and how many of its batches to leave out.

    The epoch travels in the keys: nobody has to tell it to workers that live through the whole training. Patches that do not
    fill a batch are left out of their epoch.
    """

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch, self.seed = count, batch, seed
        self.epoch = self.first = 0

    def set_position(self, epoch: int, first: int) -> None:
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        return self.count // self.batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        for i in range(self.first, len(self)):
            yield [(self.epoch, int(k)) for k in order[i * self.batch:(i + 1) * self.batch]]


def training_loader(patches: Sequence[np.ndarray], batch: int, *, seed: int, mode: str = "spatial", threads: int = 0,
                    pin: bool = False, context: str | None = None) -> DataLoader:
    """Batches (N, B, h, w) of augmented patches; its `batch_sampler` is an `Epochs`.

    Args:
        patches: a map-style dataset of (B, h, w) float32 arrays.
        batch: patches a batch, at most `len(patches)`.
        mode: of `utility.augment.augment`.
        threads: worker processes, which live as long as the loader; 0 loads in this one.
        pin: batches arrive in page-locked memory, for asynchronous copies to a GPU.
        context: how workers start, `fork` or `spawn`; None is the platform's way.

    Iterating raises UserError: a patch cannot be read.
    """
    return _Loader(_Augmented(patches, mode, seed), batch_sampler=Epochs(len(patches), batch, seed), pin_memory=pin,
                   **_workers(threads, context))


def validation_loader(patches: Sequence[np.ndarray], batch: int, *, threads: int = 0, pin: bool = False,
                      context: str | None = None) -> DataLoader:
    """All patches in their order, as they are; the last batch may be smaller. See `training_loader`."""
    return _Loader(_Batches(patches), batch_size=batch, pin_memory=pin, **_workers(threads, context))


@contextmanager
def stopped_at_the_end(loader: DataLoader) -> Iterator[None]:
    """Ends the workers of a loader with the block.

    The garbage collector may remove the queue to a worker before the iterator that ends the worker through it. Every worker
    then costs a wait of 5 s.
    """
    try:
        yield
    finally:
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()
            loader._iterator = None


def _workers(threads: int, context: str | None) -> dict[str, Any]:
    whole = {"collate_fn": _as_it_is, "num_workers": threads}
    if not threads:
        return whole
    return whole | {"persistent_workers": True, "prefetch_factor": 4, "worker_init_fn": _start_worker,
                    "multiprocessing_context": context}


def _as_it_is(batch: Tensor | UserError) -> Tensor | UserError:
    return batch


class _Loader(DataLoader):
    """Raises the errors of its batches, and starts its workers with SIGTERM blocked; see `_start_worker`."""

    def __iter__(self) -> Iterator[Tensor]:
        blocked = {signal.SIGTERM} if hasattr(signal, "sigwaitinfo") else set()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            batches = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C, and the SIGTERM of `timeout` or a scheduler, reach the whole process group, and the parent decides what they
    # mean. The parent also ends workers that outlive it by SIGTERM. So a worker obeys SIGTERM from its parent alone; all of
    # its threads inherit the blocked signal, and one of them waits for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_obey_parent, args=(multiprocessing.parent_process().pid,), daemon=True).start()


def _obey_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class DeviceBatches:
    """The batches of a loader on `device`, and how long the device waited for them.

    On a GPU the copy of a batch runs on a stream of its own, behind the step before it, and the waiting is the GPU's own
    idle time between two steps, taken from events on its timeline; on a CPU it is the time spent in the loader.
    """

    def __init__(self, loader: Iterable[Tensor], device: torch.device) -> None:
        self.loader, self.device = loader, device
        self._waited = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __iter__(self) -> Iterator[Tensor]:
        return self._on_gpu() if self.device.type == "cuda" else self._on_cpu()

    def waited(self) -> float:
        """Seconds since the start; on a GPU it waits for the work that is under way."""
        if self._events:
            torch.cuda.synchronize(self.device)
            self._waited += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._events.clear()
        return self._waited

    def _on_cpu(self) -> Iterator[Tensor]:
        begin = time.perf_counter()
        for batch in self.loader:
            self._waited += time.perf_counter() - begin
            yield batch.to(self.device)
            begin = time.perf_counter()

    def _on_gpu(self) -> Iterator[Tensor]:
        copies, steps = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        idle = torch.cuda.Event(enable_timing=True)
        idle.record(steps)
        for batch in self.loader:
            with torch.cuda.stream(copies):
                moved = batch.to(self.device, non_blocking=True)
            steps.wait_stream(copies)
            moved.record_stream(steps)
            busy = torch.cuda.Event(enable_timing=True)
            busy.record(steps)
            self._events.append((idle, busy))
            yield moved
            idle = torch.cuda.Event(enable_timing=True)
            idle.record(steps)
