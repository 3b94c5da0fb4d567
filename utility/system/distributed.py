"""Several processes that train or test as one. torchrun starts them; without torchrun nothing here
does anything.

    torchrun --nproc-per-node=2 hsi_sr.py ...                 two processes on this machine

A step's batch is shared among the processes, and the sums of their gradients are those of the whole
batch. The first process alone writes. Processes on GPUs speak by NCCL, processes on CPUs by Gloo.
"""
from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from utility.system.errors import UserError

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch import Tensor

T = TypeVar("T")
_store: dist.Store | None = None


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarts() -> int:
    """How often torchrun started the processes again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def launcher() -> str | None:
    """A name for the torchrun that started this process, also after a restart; None: none did."""
    return (f"{os.environ['TORCHELASTIC_RUN_ID']} {platform.node()} {os.getppid()}" if launched()
            else None)


def rank() -> int:
    """The number of this process, from 0; the first one writes."""
    return int(os.environ["RANK"]) if launched() else 0


def size() -> int:
    """How many processes work as one."""
    # not imported for the question: a single process never needs it
    dist = sys.modules.get("torch.distributed")
    return dist.get_world_size() if dist and dist.is_available() and dist.is_initialized() else 1


def processes_here() -> int:
    """How many of them this machine has."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if launched() else 1


def share(count: int, part: int, parts: int) -> slice:
    """Which of `count` things part number `part` of `parts` gets: neighbours, as many as others or
    one fewer."""
    return slice(count * part // parts, count * (part + 1) // parts)


def own_gpus(asked: Sequence[int] | None) -> Sequence[int] | None:
    """The GPU of this process, of those asked for (None: of all); None where there is no GPU.
    Raises UserError: this machine has more processes than GPUs."""
    import torch

    if size() == 1 or (asked is None and not torch.cuda.is_available()):
        return asked
    gpus = range(torch.cuda.device_count()) if asked is None else asked
    number, here = int(os.environ["LOCAL_RANK"]), processes_here()
    if gpus and len(gpus) < here:
        raise UserError(f"{here} processes were started on this machine, which has {len(gpus)} "
                        f"GPUs for them; give torchrun --nproc-per-node={len(gpus)}, or run on the "
                        "processor with --no-cuda.")
    return gpus[number:number + 1]


@contextmanager
def joined(hours: float = 0.5) -> Iterator[None]:
    """The processes that torchrun started work as one in this block. A failure in one of them ends
    all, and is said once.

    Args:
        hours: how long a process waits for another one.

    Raises:
        UserError: the processes did not find one another.
        SystemExit: another process failed first, and has said why.
    """
    global _store
    if not launched() or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    import torch
    import torch.distributed as dist

    timeout = timedelta(hours=hours)
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=timeout))
        # Defaults of its functions would hold a group that exists already, whose threads then abort
        # the exit of Python.
        import torch.distributed.nn
        # torchrun keeps the store, with the addresses of the dead
        _store = dist.PrefixStore(f"start {restarts()}", store)
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                                store=_store, rank=number, world_size=count, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"Process {rank()} did not find the others at "
                        f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} "
                        f"({str(error).splitlines()[0]}); check the network.") from error
    try:
        yield
        # lives on: to free it Gloo's thread needs Python's lock, which torch 2.6 holds at the end
        last = torch.zeros(1)
        with _together():
            dist.all_reduce(last)  # wait for all
    except (Exception, KeyboardInterrupt) as error:
        _end(error)
    # not after a failure: others may wait for an answer that never comes
    dist.destroy_process_group()


def _end(error: BaseException) -> NoReturn:
    """Raise the error in the process that met it first, and leave the others in silence."""
    first = True
    with suppress(RuntimeError):  # the store may be gone with the process that held it
        first = _store.add("failures", 1) == 1
    if not first:
        sys.stdout.flush()
        os._exit(130 if isinstance(error, KeyboardInterrupt) else 2)
    if isinstance(error, UserError):
        raise UserError(f"{error} (process {rank()} of {size()}, on {platform.node()})") from error
    raise error


@contextmanager
def _together() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UserError("Another process of this run ended without a word, as a process does that "
                        "is killed; start again with -r, or let torchrun do so with "
                        "--max-restarts.") from error


def highest(value: int) -> int:
    """The highest value that any process has."""
    if size() == 1:
        return value
    import torch
    import torch.distributed as dist

    found = torch.tensor([value])
    with _together():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def gathered(items: list[T]) -> list[T]:
    """The items of all processes, those of the first process first."""
    if size() == 1:
        return items
    import torch.distributed as dist

    lists: list[Any] = [None] * size()
    with _together():
        dist.all_gather_object(lists, items)
    return [item for part in lists for item in part]


def of_first(value: T) -> T:
    """The value that the first process has."""
    return gathered([value])[0]


def turns(count: int, name: str) -> Iterator[int]:
    """Numbers below `count`, each for the process that asks next; every process must ask until none
    is left."""
    if size() == 1:
        yield from range(count)
        return
    while (number := _store.add(f"turns of {name}", 1) - 1) < count:
        yield number


def add_up(parameters: Iterable[Tensor], loss: Tensor) -> Tensor:
    """Add the gradients of all processes, and the losses, which are returned: one message, of all
    values in a row.

    The parameters that have a gradient must be the same in all processes. All processes get the
    same bits.
    """
    if size() == 1:
        return loss
    import torch
    import torch.distributed as dist

    parameters = [p for p in parameters if p.grad is not None]
    flat = torch.cat(
        [*(p.grad.flatten() for p in parameters), loss.reshape(1).to(parameters[0].grad.dtype)])
    with _together():
        dist.all_reduce(flat)
    *sums, loss = flat.split([*(p.numel() for p in parameters), 1])
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad.copy_(total.view_as(parameter.grad))
    return loss[0]


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run this script again as `count` processes, as torchrun does; returns the exit status."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    # the process that failed has said why
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        main(["--standalone", f"--nproc-per-node={count}", sys.argv[0], *arguments])
    except ChildFailedError as error:
        return max(1, error.get_first_failure()[1].exitcode)
    except SignalException:
        return 130
    return 0
