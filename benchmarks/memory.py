"""Peak memory of one piece of work, measured in a fresh process of its own.

    python benchmarks/memory.py '{"work": "inference", "variant": {"name": "fast"}, "shape": [31, 64, 64], ...}'

On a CPU the peak is the highest resident set while the work runs, less the resident set just before it, when libraries,
weights, optimizer state and input are there and the same work was done at a small size (thread pools and generated code
exist). Freed heap is given back before (malloc_trim), so that nothing hides in it, and the kernel's high-water mark is reset;
what the allocator wastes counts, because the user pays for it. On a GPU it is the peak of the allocator's tensors, workspaces
of cuDNN included, less what was allocated before, when the same work was done once.
"""
from __future__ import annotations

import ctypes
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.measure import Variant, inference, random_cubes, training_step  # noqa: E402

SMALL = 16  # rows and columns of the warm-up


def peak_memory(work: str, variant: Variant, shape: tuple[int, ...], arch: str, device: torch.device,
                threads: int) -> dict[str, int]:
    """Peak memory of `inference` on (B, H, W), or of a `training` step on (N, B, h, w), in a process of its own.

    Returns: `peak`, bytes beyond weights and input, and `process`, bytes of all (of the allocator's pool, on a GPU).

    Raises:
        RuntimeError: the process failed; the message ends with what it said.
    """
    return probe({"work": work, "variant": asdict(variant), "shape": shape, "arch": arch, "device": str(device),
                  "threads": threads})


def probe(what: dict[str, Any]) -> dict[str, Any]:
    """Run this file on `what` and return what it prints."""
    done = subprocess.run([sys.executable, str(Path(__file__).resolve()), json.dumps(what)], cwd=ROOT, capture_output=True,
                          text=True)
    if done.returncode:
        tail = (done.stderr.strip() or f"killed by signal {-done.returncode}").splitlines()[-1]
        raise RuntimeError(f"the process that measured memory failed: {tail}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(what: dict[str, Any]) -> dict[str, Any]:
    """In this process, which should be fresh."""
    torch.set_num_threads(what["threads"])
    if what["work"] == "database":
        return _database(what)
    device, variant, shape = torch.device(what["device"]), Variant(**what["variant"]), tuple(what["shape"])
    if what["work"] == "inference":
        call, x = inference(variant, what["arch"], device), random_cubes(1, 1, *shape, device=device)
    else:
        call, x = training_step(variant, what["arch"], device), random_cubes(*shape, device=device)
    if device.type == "cuda":
        for _ in range(2):
            call(x)
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call(x)
        torch.cuda.synchronize(device)
        return {"peak": torch.cuda.max_memory_allocated(device) - before, "process": torch.cuda.max_memory_reserved(device)}
    call(x[..., :SMALL, :SMALL].contiguous())
    before = reset_peak()
    for _ in range(2 if what["work"] == "training" else 1):  # the second step begins with the gradients of the first
        call(x)
    peak = peak_resident()
    return {"peak": peak - before, "process": peak}


def reset_peak() -> int:
    """Give freed memory back and reset the high-water mark as far as the system allows; bytes resident now."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return _max_resident()


def peak_resident() -> int:
    """Bytes resident at the highest since `reset_peak`, or since the process began where that cannot be reset."""
    try:
        return _status("VmHWM")
    except OSError:
        return _max_resident()


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"this system does not tell {field}")


def _max_resident() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _database(what: dict[str, Any]) -> dict[str, Any]:
    """Cut the scene `source` as the card of ICVL does into the database `out`; memory is the whole process's."""
    from utility.cards import load_card
    from utility.lmdb_data import build_database

    card = replace(load_card("icvl"), key=None, layout="BHW", size=None, crop=(what["side"], what["side"]))
    begin = time.perf_counter()
    meta = build_database(what["out"], [what["source"]], card, quiet=True)
    return {"seconds": time.perf_counter() - begin, "patches": meta["count"], "process": peak_resident()}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
