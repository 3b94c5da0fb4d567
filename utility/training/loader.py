"""Patches to the device: a DataLoader of keyed draws, and a copy behind the previous step.

The order of a pass over a database depends on (seed, pass) alone, and the variant of a patch on
(seed, pass, patch). The number of workers and of processes, and the step at which a run was
interrupted, change nothing.
"""
from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utility.datasets.augment import augment, band_window
from utility.system.distributed import share
from utility.system.errors import UserError

Key = tuple[int, int, int]


class _Batches(Dataset):
    """Turns a list of keys into a batch (N, B, h, w), float32 in [0, 1], or into the UserError that
    explains the failure.

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
    """Key (database, pass, index) is patch `index` of a database, augmented as that pass has it."""

    def __init__(self, databases: Sequence[Sequence[np.ndarray]], mode: str, seed: int,
                 window: int | None, spacing: int) -> None:
        super().__init__(databases)
        self.mode, self.seed, self.window, self.spacing = mode, seed, window, spacing

    def __getitem__(self, key: Key) -> np.ndarray:
        database, number, index = key
        patch = band_window(self.patches[database][index], self.window, self.seed, number, index,
                            self.spacing)
        return augment(patch, self.mode, self.seed, number, index)


class Turns(Sampler[list[Key]]):
    """Batches of (database, pass, index) keys, each of one database; `set_position` selects a range
    of the training's batches.

    The keys tell workers everything: they live through the whole training. A pass over a database
    takes every patch once, and its last batch may be smaller.

    Args:
        counts: patches of each database.
        batch: patches a batch.
        weights: share of the batches that each database gets; None: as many as a pass has.
        part: (number, count) of the part of each batch that is taken; where the batch has none for
            it, the batch's first patch stands in, because every process makes every step.
    """

    def __init__(self, counts: Sequence[int], batch: int, seed: int,
                 weights: Sequence[float] | None = None, part: tuple[int, int] = (0, 1)) -> None:
        self.counts, self.batch, self.seed, self.part = counts, batch, seed, part
        # batches of one pass over each database
        self.passes = [-(-count // batch) for count in counts]
        self.weights = weights or self.passes
        self.first, self.last = 0, sum(self.passes)
        # a batch's number, and how many before it are of each database
        self._reached = 0, (0,) * len(counts)

    def set_position(self, first: int, last: int) -> None:
        """Batches `first` to `last` (without it), counted from the start of the training."""
        self.first, self.last = first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[Key]]:
        orders: dict[int, tuple[int, np.ndarray]] = {}
        for database, number, places in self._places():
            if database not in orders or orders[database][0] != number:
                rng = np.random.default_rng(
                    (self.seed, number, database) if database else (self.seed, number))
                orders[database] = number, rng.permutation(self.counts[database])
            order = orders[database][1][places]
            part = share(len(order), *self.part)
            yield [(database, number, int(index))
                   for index in order[part if part.start < part.stop else slice(1)]]

    def sizes(self) -> Iterator[int]:
        """Patches of each whole batch."""
        return (places.stop - places.start for *_, places in self._places())

    def _places(self) -> Iterator[tuple[int, int, slice]]:
        """For each batch: its database, the number of the pass, and its slice of the order of the
        pass."""
        shares = [weight / sum(self.weights) for weight in self.weights]
        begin, taken = (
            self._reached if self._reached[0] <= self.first else (0, (0,) * len(self.counts)))
        if len(self.counts) == 1:
            begin, taken = self.first, (self.first,)
        taken = list(taken)
        for turn in range(begin, self.last):
            if turn == self.first:
                self._reached = turn, tuple(taken)
            # The database that is furthest behind its share; the first of several.
            database = max(range(len(taken)),
                           key=lambda k, due=turn + 1: due * shares[k] - taken[k])
            number, place = divmod(taken[database], self.passes[database])
            taken[database] += 1
            if turn >= self.first:
                yield database, number, slice(place * self.batch,
                                              min((place + 1) * self.batch, self.counts[database]))


def training_loader(databases: Sequence[Sequence[np.ndarray]], batch: int, *, seed: int,
                    mode: str = "spatial", weights: Sequence[float] | None = None,
                    window: int | None = None, spacing: int = 1, part: tuple[int, int] = (0, 1),
                    threads: int = 0, pin: bool = False, context: str | None = None) -> DataLoader:
    """Batches (N, B, h, w) of augmented patches; its `batch_sampler` is a `Turns`, at first of one
    pass.

    Args:
        databases: map-style datasets of (B, h, w) float32 arrays, one shape in each.
        batch: patches a batch; the last batch of a pass may be smaller.
        mode: of `utility.datasets.augment.augment`.
        weights: share of the batches that each database gets; None: as many as a pass has.
        window, spacing: bands of a patch that are taken, see
            `utility.datasets.augment.band_window`; None: all.
        part: (number, count) of the part of each batch that is loaded, see `Turns`.
        threads: worker processes, which live as long as the loader; 0 loads in this one.
        pin: batches arrive in page-locked memory, for asynchronous copies to a GPU.
        context: how workers start, `fork` or `spawn`; None is the platform's way.

    Iterating raises UserError: a patch cannot be read.
    """
    turns = Turns([len(database) for database in databases], batch, seed, weights, part)
    patches = _Augmented(databases, mode, seed, window, spacing)
    return _Loader(patches, batch_sampler=turns, pin_memory=pin, **_workers(threads, context))


def validation_loader(patches: Sequence[np.ndarray], batch: int, *, part: tuple[int, int] = (0, 1),
                      threads: int = 0, pin: bool = False,
                      context: str | None = None) -> DataLoader:
    """All patches in their order, as they are; the last batch may be smaller.

    Its `batch_sampler` lists the numbers of the patches of each batch. Of `part` (number, count),
    every count-th batch is loaded.
    """
    number, count = part
    batches = [range(first, min(first + batch, len(patches)))
               for first in range(number * batch, len(patches), count * batch)]
    return _Loader(_Batches(patches), batch_sampler=batches, pin_memory=pin,
                   **_workers(threads, context))


@contextmanager
def stopped_at_the_end(loader: DataLoader) -> Iterator[None]:
    """Ends the workers of a loader with the block.

    The garbage collector may remove the queue to a worker before the iterator that ends the worker
    through it. Every worker then costs a wait of 5 s.
    """
    try:
        yield
    finally:
        end = getattr(getattr(loader, "_iterator", None), "_shutdown_workers", None)
        if end:  # not documented: in a torch without it the workers end with the loader
            end()
            loader._iterator = None


def _workers(threads: int, context: str | None) -> dict[str, Any]:
    whole = {"collate_fn": _as_it_is, "num_workers": threads}
    if not threads:
        return whole
    return (whole
            | {"persistent_workers": True, "prefetch_factor": 4, "worker_init_fn": _start_worker,
               "multiprocessing_context": context})


def _as_it_is(batch: Tensor | UserError) -> Tensor | UserError:
    return batch


class _Loader(DataLoader):
    """Raises the errors of its batches; its workers start with SIGTERM blocked."""

    def __iter__(self) -> Iterator[Tensor]:
        blocked = {signal.SIGTERM} if hasattr(signal, "sigwaitinfo") else set()
        context = self.multiprocessing_context
        if context and context.get_start_method() != "fork":
            # The tracker unblocks SIGTERM when it starts; the first worker would begin without the
            # mask.
            resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            batches = iter(super().__iter__())
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while True:
            try:
                batch = next(batches, None)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise UserError("A loader process was killed, perhaps for its memory; give fewer "
                                "--threads.") from error
            if batch is None:
                return
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C, and the SIGTERM of `timeout` or a scheduler, reach the whole process group, and the
    # parent decides what they mean. The parent also ends workers that outlive it by SIGTERM. So a
    # worker obeys SIGTERM from its parent alone; all of its threads inherit the blocked signal, and
    # one of them waits for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_obey_parent, args=(multiprocessing.parent_process().pid,),
                         daemon=True).start()


def _obey_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class DeviceBatches:
    """The batches of a loader on `device`, and how long the device waited for them.

    On a GPU the copy of a batch runs on a stream of its own, behind the step before it, and the
    waiting is the GPU's own idle time between two steps, taken from events on its timeline; on a
    CPU it is the time spent in the loader.
    """

    def __init__(self, loader: Iterable[Tensor], device: torch.device) -> None:
        self.loader, self.device = loader, device
        self._waited = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __iter__(self) -> Iterator[Tensor]:
        return self._on_gpu() if self.device.type == "cuda" else self._on_cpu()

    def waited(self) -> float:
        """Seconds of waiting since the start. On a GPU this call waits for the running work."""
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
