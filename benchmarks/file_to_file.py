"""From file to file, and the start: two checkouts in turns, each command in a fresh process."""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from scipy.ndimage import gaussian_filter

from benchmarks.measure import Rows, Setup

FILE = "hsi_test.py --no-cuda --scale 4 --input {wide} --output {out} --force --quiet"
NETWORK = f"{FILE} -rp checkpoints/lowgrid_x4.pth"
COMMANDS: dict[str, str] = {"224 bands, network": f"{NETWORK} --amp off",
                            "31 bands, network": f"{NETWORK} --amp off".replace("wide", "narrow"),
                            "224 bands, back-projection": f"{FILE} --method backprojection",
                            "224 bands, network, any precision": NETWORK,
                            "--help": "hsi_test.py --help",
                            "a refused option": "hsi_test.py --scale 5",
                            "a database": "utility/lmdb_data.py --source {scene} --layout BHW "
                            "--patch 64 --stride 64 32 32 --zooms 1 .5 .25 --out {database} "
                            "--force --quiet"}
"""What is run, in the folder of each checkout. `--amp off` compares the same arithmetic."""


# The system's own count of a child begins with the memory of the process that started it.
WATCHED = """
import atexit, runpy, sys
def highest():
    status = open("/proc/self/status").read()
    print(status.partition("VmHWM:")[2].split()[0], file=sys.stderr)
atexit.register(highest)
sys.path.insert(0, ".")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def satellite_like(path: Path, bands: int, side: int) -> Path:
    """An int16 GeoTIFF of mixed smooth spectra with texture, wavelengths and a place; not
    compressed."""
    rng, nm = np.random.default_rng(0), np.linspace(420, 2450, bands)
    spectra = [0.3 + 0.25 * np.sin(nm / rng.uniform(150, 500) + rng.uniform(0, 6))
               for _ in range(6)]
    shares = np.stack(
        [gaussian_filter(rng.standard_normal((side, side)), rng.uniform(0.7, 4)) for _ in spectra])
    shares = np.exp(1.5 * shares / shares.std((1, 2), keepdims=True))
    cube = np.tensordot(np.clip(spectra, 0.02, 1).T, shares / shares.sum(0), 1) * 6000
    cube = np.rint(cube + 15 * rng.standard_normal(cube.shape)).clip(1, 30000).astype(np.int16)
    with rasterio.open(path, "w", driver="GTiff", count=bands, height=side, width=side,
                       dtype="int16", nodata=-32768, crs="EPSG:32633",
                       transform=from_origin(300000, 5300000, 30, 30), interleave="band") as file:
        file.write(cube)
        for band, value in enumerate(nm, 1):
            file.update_tags(band, wavelength=repr(float(value)), wavelength_units="Nanometers")
    return path


def run_once(root: Path, words: list[str], threads: int) -> dict[str, float]:
    """A command in the folder of a checkout: seconds, the processor's seconds, and peak memory in
    bytes."""
    begin = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", WATCHED, *words], cwd=root,
                          env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        said = process.stderr.read().decode()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != (2 if words == COMMANDS["a refused option"].split() else 0):
        raise RuntimeError(
            f"{' '.join(words)} ended with {process.returncode}: {said.strip()[-300:]}")
    return {"time": time.perf_counter() - begin, "processor": used.ru_utime + used.ru_stime,
            "process": int(said.splitlines()[-1]) * 1024}


def compare_files(setup: Setup, theirs: Path, ours: Path) -> Rows:
    """Each command by both checkouts in turns.

    `time` is the median. `faster` is their least processor time over ours: other work on the
    machine makes a run longer and never shorter. `of theirs` is the peak memory.
    """
    rows: Rows = []
    with tempfile.TemporaryDirectory(prefix="bi3dqrnn-") as folder:
        side, database = setup.sizes["file"], setup.sizes["database"]
        places = {"wide": satellite_like(Path(folder, "wide.tif"), 224, side),
                  "narrow": satellite_like(Path(folder, "narrow.tif"), 31, side),
                  "scene": Path(folder, "scene.npy"), "out": Path(folder, "out.tif"),
                  "database": Path(folder, "x.lmdb")}
        np.save(places["scene"],
                np.random.default_rng(0).random((31, database, database), dtype=np.float32))
        for name, command in COMMANDS.items():
            words = [word.format_map(places) for word in command.split()]
            with setup.noting(name):
                found: dict[Path, list[dict[str, float]]] = {theirs: [], ours: []}
                for turn in range(setup.repeats):
                    for root in list(found)[::-1 if turn % 2 else 1]:
                        found[root].append(run_once(root, words, setup.threads))
                least = {root: {key: min(run[key] for run in runs) for key in runs[0]}
                         for root, runs in found.items()}
                rows += [{"command": name, "checkout": root.name, "n": len(runs),
                          "time": float(np.median([run["time"] for run in runs])),
                          "processor": least[root]["processor"], "process": least[root]["process"],
                          "faster": least[theirs]["processor"] / least[root]["processor"],
                          "of theirs": least[root]["process"] / least[theirs]["process"]}
                         for root, runs in found.items()]
    return rows
