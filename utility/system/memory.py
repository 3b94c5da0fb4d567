"""How much main memory is free."""
from __future__ import annotations

import os
from pathlib import Path

from utility.system.errors import UserError


def require_memory(size: int, what: str | Path) -> None:
    """Raise UserError where `what` needs more bytes than are free; small sizes pass."""
    if size > 64 << 20 and size > (free := free_memory()):
        raise UserError(f"{what} needs {size / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB "
                        "are free; use a smaller scene, or a larger machine.")


def free_memory(root: str | Path = "/") -> int:
    """Bytes of main memory that can be had without swapping, as far as this system says; 4 GB where
    it does not.

    The least of what the machine has, what the control groups of this process (a container, a batch
    job) leave it, and what is left of its address space (`ulimit -v`). `root` is where /proc and
    /sys are.
    """
    root = Path(root)
    lines = [line.split() for line in _lines(root / "proc/meminfo")
             if line.startswith(("MemTotal:", "MemAvailable:"))]
    machine = {name.rstrip(":"): int(count) * 1024 for name, count, *_ in lines}
    free = [machine["MemAvailable"]] if "MemAvailable" in machine else []
    top = root / "sys/fs/cgroup"
    v2, v1 = ("memory.max", "memory.current", "inactive_file"), \
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    # the process's own, where a container shows nothing above it
    groups = [(top, v2), (top / "memory", v1)]
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        start, names = (top / "memory", v1) if "memory" in controllers.split(",") else (top, v2)
        parts = ([part for part in path.split("/") if part and ".." not in part]
                 if names is v1 or not controllers else [])
        groups += [(start.joinpath(*parts[:n]), names) for n in range(1, len(parts) + 1)]
    for folder, (most, used, cached) in groups:
        limit = _number(folder / most)  # no limit is "max", or a number that no machine reaches
        if (limit is not None and limit < machine.get("MemTotal", limit + 1)
                and (usage := _number(folder / used)) is not None):
            files = sum(int(line.split()[1])
                        for line in _lines(folder / "memory.stat") if line.startswith(f"{cached} "))
            # the cache of files is given back when it is needed
            free.append(max(limit - usage + files, 0))
    for line in _lines(root / "proc/self/limits"):
        if line.startswith("Max address space") and (most := line.split()[3]).isdecimal():
            free.append(max(int(most) - _pages(root, 0), 0))
    return min(free, default=4 << 30)


def budget(memory: int | None = None, beside: int = 0) -> float:
    """Bytes that a computation may take beside what this process holds already: what `memory`, a
    limit for the whole process, leaves, 64 MB at least; without a limit half of what is free. In
    both cases less what is taken `beside`."""
    if memory is None:
        return max(free_memory() - beside, 0) / 2
    return max(memory - resident() - beside, 64 << 20)


def resident() -> int:
    """Bytes of main memory that this process holds; 0 where the system does not say."""
    return _pages(Path("/"), 1)


def _pages(root: Path, field: int) -> int:
    """Bytes of this process: field 0 its address space, 1 what is resident; 0 where nothing says
    so."""
    pages = next(iter(_lines(root / "proc/self/statm")), "0 0").split()[field]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _number(path: Path) -> int | None:
    """The number in a file; None where the file holds something else or cannot be read."""
    text = next(iter(_lines(path)), "")
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    """The lines of a text file; none where it cannot be read."""
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU had too little memory: torch says so by type, drivers in words.

    Torch's "unable to find an engine" means that no algorithm of cuDNN got its workspace, or that
    cuDNN has none for the shapes.
    """
    import torch

    said = ("STATUS_ALLOC_FAILED", "DEVICE_ALLOCATION_FAILED", "unable to find an engine",
            "CUDA error: out of memory")
    return (isinstance(error, torch.cuda.OutOfMemoryError)
            or any(words in str(error) for words in said))
