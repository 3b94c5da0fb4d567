"""A C++ source compiled on first use, for this machine, and kept.

The library is built with the first C++ compiler found ($CXX, g++, c++, clang++) and kept in
$XDG_CACHE_HOME/bi3dqrnn (~/.cache/bi3dqrnn), under a name made of source, flags, compiler and
processor. It uses the OpenMP runtime that torch has loaded: a second runtime's idle threads would
spin against the convolutions. BI3DQRNN_NO_COMPILE=1 turns it off.
"""
from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

_COMMON = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-shared",
           "-fPIC"]


def built_library(source: Path) -> ctypes.CDLL | None:
    """The library of `source`, built when it is not in the cache; None where it is turned off or
    cannot be built."""
    if os.environ.get("BI3DQRNN_NO_COMPILE", "0") not in ("", "0"):
        return None
    names = [os.environ.get("CXX"), "g++", "c++", "clang++"]
    for compiler in (found for name in names if name and (found := shutil.which(name))):
        for flags in _flag_sets():
            try:
                return _load(source, compiler, [*_COMMON, *flags])
            except (OSError, subprocess.SubprocessError) as error:
                output = getattr(error, "stderr", None) or str(error)
                logging.getLogger(__name__).debug("%s %s failed: %s", compiler, " ".join(flags),
                                                  output)
    logging.getLogger(__name__).info(
        "no C++ compiler could build %s; using the slower torch version", source.name)
    return None


def _flag_sets() -> list[list[str]]:
    """Best first."""
    runtimes = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    own = [["-march=native", "-fopenmp", "-Wl,--as-needed", str(runtimes[0])]] if runtimes else []
    return [*own, ["-march=native", "-fopenmp"], ["-march=native"], []]


def _load(source: Path, compiler: str, flags: list[str]) -> ctypes.CDLL:
    """Load the library built so, from the cache if it is there.

    Raises:
        OSError, subprocess.SubprocessError: it could not be built or loaded.
    """
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True,
                             timeout=60).stdout
    key = hashlib.sha256(
        b"\0".join([source.read_bytes(), " ".join(flags).encode(), version, _processor().encode()]))
    name = f"{source.stem}-{key.hexdigest()[:20]}.so"
    cache = cache_folder()
    final = cache / name
    checksum = final.with_suffix(".sha256")
    # missing, damaged (to load it would crash), or of another machine: it is built anew
    with suppress(OSError):
        if checksum.read_text() == hashlib.sha256(final.read_bytes()).hexdigest():
            return ctypes.CDLL(str(final))
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = cache if os.access(cache, os.W_OK) else None
    except OSError:
        place = None
    with tempfile.TemporaryDirectory(prefix=".build-", dir=place) as folder:
        built = Path(folder) / name
        # Libraries come after the source, or the linker takes them for not needed.
        words = [compiler, *(w for w in flags if ".so" not in w), str(source),
                 *(w for w in flags if ".so" in w)]
        subprocess.run([*words, "-o", str(built)], capture_output=True, check=True, timeout=300,
                       text=True)
        # stays mapped; one that does not load must not enter the cache
        loaded = ctypes.CDLL(str(built))
        if place is not None:
            # processes that build at the same time each put whole files here
            with suppress(OSError):
                written = built.with_suffix(".sha256")
                written.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
                for path, target in ((built, final), (written, checksum)):
                    with open(path, "r+b") as file:
                        os.fsync(file.fileno())
                    os.replace(path, target)
    return loaded


def cache_folder() -> Path:
    """Where this machine's libraries are kept; it may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bi3dqrnn"


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
        return "\n".join([*platform.libc_ver(), *sorted(known)])
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
