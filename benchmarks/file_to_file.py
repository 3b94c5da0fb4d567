"""From file to file, and the start: two checkouts in turns, each command in a fresh process."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from scipy.ndimage import gaussian_filter

from benchmarks.measure import Rows, Setup

FILE = "hsi_test.py --no-cuda --scale 4 --input {wide} --output {out} --force --quiet"
NARROW = FILE.replace("wide", "narrow")
SAME = "-rp checkpoints/lowgrid_x4.pth --amp off"
COMMANDS: dict[str, dict[str, str]] = {
    "network": {"224 bands, network": FILE},
    "narrow": {"31 bands, network": NARROW},
    "backprojection": {"224 bands, back-projection": f"{FILE} --method backprojection"},
    "float32": {"224 bands, the same arithmetic": f"{FILE} {SAME}",
                "31 bands, the same arithmetic": f"{NARROW} {SAME}"},
    "start": {"--help": "hsi_test.py --help", "a refused option": "hsi_test.py --scale 5"},
    "database": {"a database": "utility/lmdb_data.py --source {scene} --layout BHW --patch 64 "
                 "--stride 64 32 32 --zooms 1 .5 .25 --out {database} --force --quiet"}}
"""What is run, in the folder of each checkout, by the name of its section."""

REFUSED = COMMANDS["start"]["a refused option"].split()
TEST = ("hsi_test.py --no-cuda --scale 4 --degradation gaussian --no-cubes --no-figures --quiet "
        "--force --out {out} --data")
SATELLITE = "hsi_test.py --no-cuda --scale 2 --input {wide} --output {out} --force --quiet"
INFO = "hsi_test.py --no-cuda --scale 2 --info"
ROOM = 4_000_000_000
"""Bytes of address space that the satellite scene has, as `ulimit -v` counts them."""

# The system's own count of a child begins with the memory of the process that started it.
WATCHED = """
import atexit, resource, runpy, sys
def highest():
    status = open("/proc/self/status").read()
    print(status.partition("VmHWM:")[2].split()[0], file=sys.stderr)
atexit.register(highest)
sys.path.insert(0, ".")
if int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_AS, [int(sys.argv[1])] * 2)
sys.argv = sys.argv[2:]
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


def run_once(root: Path, words: Sequence[str], threads: int, room: int = 0) -> dict[str, float]:
    """A command in the folder of a checkout: seconds, the processor's seconds, and peak memory in
    bytes.

    Args:
        room: bytes of address space that the command may take; 0 is any.
    """
    begin = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", WATCHED, str(room), *words], cwd=root,
                          env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        said = process.stderr.read().decode()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != (2 if list(words) == REFUSED else 0):
        raise RuntimeError(
            f"{' '.join(words)} ended with {process.returncode}: {said.strip()[-300:]}")
    return {"time": time.perf_counter() - begin, "processor": used.ru_utime + used.ru_stime,
            "process": int(said.splitlines()[-1]) * 1024}


def compare_files(setup: Setup, theirs: Path, ours: Path, commands: Mapping[str, str]) -> Rows:
    """Each command by both checkouts in turns.

    `time` and `faster` are of the medians of the wall; `processor` is the least of all threads, and
    `process` the least peak of memory: other work on the machine makes both larger, never smaller.
    """
    rows: Rows = []
    with tempfile.TemporaryDirectory(prefix="bi3dqrnn-") as folder:
        places = _files(Path(folder), setup, " ".join(commands.values()))
        for name, command in commands.items():
            words = [word.format_map(places) for word in command.split()]
            with setup.noting(name):
                found: dict[Path, list[dict[str, float]]] = {theirs: [], ours: []}
                for turn in range(setup.repeats):
                    for root in list(found)[::-1 if turn % 2 else 1]:
                        found[root].append(run_once(root, words, setup.threads))
                rows += _compared(name, theirs, ours, found)
    return rows


def _files(folder: Path, setup: Setup, commands: str) -> dict[str, Path]:
    """The files that the commands name in braces, made where they are inputs."""
    side, database = setup.sizes["file"], setup.sizes["database"]
    places = {"out": folder / "out.tif", "database": folder / "x.lmdb",
              "wide": folder / "wide.tif", "narrow": folder / "narrow.tif",
              "scene": folder / "scene.npy"}
    for name, bands in (("wide", 224), ("narrow", 31)):
        if f"{{{name}}}" in commands:
            satellite_like(places[name], bands, side)
    if "{scene}" in commands:
        np.save(places["scene"],
                np.random.default_rng(0).random((31, database, database), dtype=np.float32))
    return places


def _compared(name: str, theirs: Path, ours: Path,
              found: Mapping[Path, list[dict[str, float]]]) -> Rows:
    """A row for each checkout; "new" is this one."""
    rows: Rows = []
    for root, runs in found.items():
        row = {"command": name, "checkout": "new" if root == ours else "old", "n": len(runs),
               "time": float(np.median([run["time"] for run in runs])),
               **{key: min(run[key] for run in runs) for key in ("processor", "process")}}
        first = rows[0] if rows else row
        rows.append({**row, "faster": first["time"] / row["time"],
                     "of theirs": row["process"] / first["process"]})
    return rows


def compare_scenes(setup: Setup, theirs: Path, ours: Path, scenes: Sequence[str]) -> Rows:
    """The mean PSNR and spectral angle of a test with default options on ground-truth scenes."""
    rows: Rows = []
    for checkout, root in (("old", theirs), ("new", ours)):
        with tempfile.TemporaryDirectory(prefix="bi3dqrnn-") as folder:
            words = [word.format(out=f"{folder}/test") for word in TEST.split()]
            run_once(root, [*words, *(str(Path(scene).resolve()) for scene in scenes)],
                     setup.threads)
            metrics = json.loads(Path(folder, "test/metrics.json").read_text())
        mean = metrics["mean"]["network"]
        rows.append({"checkout": checkout, "n": len(metrics["images"]), "PSNR": mean["psnr"],
                     "SAM": mean["sam"]})
        rows[-1] |= {"change": mean["psnr"] - rows[0]["PSNR"],
                     "change of SAM": mean["sam"] - rows[0]["SAM"]}
    return rows


def compare_memory(setup: Setup, ours: Path) -> Rows:
    """The network on 224 bands without and with --memory, in turns: `time` is the median, `process`
    the highest peak."""
    commands = {"default": FILE} | {more: f"{FILE} {more}" for more in ("--memory 2", "--memory 1")}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory(prefix="bi3dqrnn-") as folder:
        places = _files(Path(folder), setup, FILE)
        for turn in range(setup.repeats):
            for name in list(found)[::-1 if turn % 2 else 1]:
                words = [word.format_map(places) for word in commands[name].split()]
                found[name].append(run_once(ours, words, setup.threads))
    rows: Rows = []
    for name, runs in found.items():
        times, usual = ([run["time"] for run in of] for of in (runs, found["default"]))
        rows.append({"command": name, "n": len(runs), "time": float(np.median(times)),
                     "process": max(run["process"] for run in runs),
                     "of default": float(np.median(np.divide(times, usual)))})
    return rows


def measure_satellite(setup: Setup, ours: Path) -> Rows:
    """A whole scene in little memory, and what `--info` says of it before."""
    side = setup.sizes["satellite"]
    with tempfile.TemporaryDirectory(prefix="bi3dqrnn-") as folder:
        places = {"wide": satellite_like(Path(folder, "wide.tif"), 224, side),
                  "out": Path(folder, "out.tif")}
        seconds, memory = told(ours, places["wide"], setup.threads, ROOM)
        run = run_once(ours, [word.format_map(places) for word in SATELLITE.split()],
                       setup.threads, ROOM)
    return [{"work": f"224x{side}x{side}, x2", **run, "told": seconds,
             "of told": run["time"] / seconds, "told memory": memory,
             "of told memory": run["process"] / memory}]


def told(root: Path, file: Path, threads: int, room: int) -> tuple[float, float]:
    """The seconds and the bytes that `--info` tells of a file."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(room), *INFO.split(), str(file)], cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)}, text=True, check=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    line = next(line for line in done.stdout.splitlines() if ": about " in line)
    about, _, most = line.partition(": about ")[2].partition(", up to ")
    (number, unit), (size, of) = about.split(), most.split()[:2]
    return (float(number) * {"s": 1, "min": 60, "h": 3600}[unit],
            float(size) * {"MB": 1e6, "GB": 1e9}[of])
