"""A compressed netCDF-4 cube like EMIT's from file to file, beside the same cube as an ENVI file.

    python benchmarks/containers.py                        1 GB, 10 minutes, 12 GB of disk
    python benchmarks/containers.py --size 0.1             100 MB, 1 minute

The compressed cube may take the time of the other one and of its decompression by h5py alone.
"""
from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
from spectral.io import envi

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.file_to_file import run_once  # noqa: E402
from benchmarks.report import size  # noqa: E402
from utility.system.errors import Arguments, run_script  # noqa: E402

BANDS, COLUMNS, CHUNK = 285, 1242, (32, 138, 57)
"""Of EMIT; rows, columns and bands of a chunk."""
FILL = -9999.0
COMMAND = "hsi_test.py --no-cuda --scale 2 --method backprojection --force --quiet"


def _rows(count: int) -> Iterator[tuple[int, np.ndarray]]:
    """The first row of a run of rows, and their reflectance (rows, columns, bands), float32."""
    rng, nm = np.random.default_rng(0), np.linspace(381, 2493, BANDS)
    spectra = np.stack([0.25 + 0.2 * np.sin(nm / width) for width in (170, 260, 410)])
    across = np.arange(COLUMNS) / 40
    for top in range(0, count, CHUNK[0]):
        down = np.arange(top, min(top + CHUNK[0], count))[:, None] / 30
        shares = np.stack([1 + np.sin(down * k + across / k) for k in (0.7, 1, 1.3)], axis=-1)
        block = shares @ spectra / 3 + 0.002 * rng.standard_normal((*shares.shape[:2], BANDS))
        block[:, :3] = FILL  # nobody measured these columns
        yield top, block.astype(np.float32)


def make(folder: Path, count: int) -> tuple[Path, Path]:
    """The cube of `count` rows as a compressed netCDF-4 file, and as an ENVI file."""
    packed, plain = folder / "cube.nc", folder / "cube.hdr"
    nm = np.linspace(381, 2493, BANDS)
    with h5py.File(packed, "w") as file, open(plain.with_suffix(".img"), "wb") as raw:
        cube = file.create_dataset("reflectance", (count, COLUMNS, BANDS), "f4", chunks=CHUNK,
                                   compression="gzip", compression_opts=4, shuffle=True)
        cube.attrs["_FillValue"] = np.float32(FILL)
        file["sensor_band_parameters/wavelengths"] = nm
        file["sensor_band_parameters/wavelengths"].attrs["units"] = "nm"
        for top, block in _rows(count):
            cube[top:top + len(block)] = block
            block.tofile(raw)
    envi.write_envi_header(str(plain), {
        "samples": COLUMNS, "lines": count, "bands": BANDS, "header offset": 0, "data type": 4,
        "file type": "ENVI Standard", "interleave": "bip", "byte order": 0,
        "data ignore value": FILL, "wavelength units": "Nanometers",
        "wavelength": [f"{value:.9g}" for value in nm]})
    return packed, plain


def decompression(packed: Path) -> float:
    """Seconds in which h5py alone reads all values, in rows of chunks."""
    begin = time.perf_counter()
    with h5py.File(packed) as file:
        cube = file["reflectance"]
        for top in range(0, len(cube), CHUNK[0]):
            cube[top:top + CHUNK[0]]
    return time.perf_counter() - begin


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Arguments(__doc__)
    parser.add_argument("--size", type=float, default=1.0, metavar="GB",
                        help="of the values, not compressed (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N",
                        help="CPU threads (default: %(default)s)")
    parser.add_argument("--folder", metavar="DIR", help="for the files (default: the system's)")
    options = parser.parse_args(arguments)
    count = max(CHUNK[0], round(options.size * 1e9 / (4 * COLUMNS * BANDS)))
    with tempfile.TemporaryDirectory(prefix="bi3dqrnn-", dir=options.folder) as name:
        packed, plain = make(Path(name), count)
        bytes_of = [size(path.stat().st_size) for path in (plain.with_suffix(".img"), packed)]
        print(f"{count} x {COLUMNS} x {BANDS} float32, {bytes_of[0]}, compressed {bytes_of[1]}")
        alone, found = decompression(packed), {}
        for path in (plain, packed):
            words = [*COMMAND.split(), "--input", str(path), "--output", f"{name}/out.img"]
            found[path] = run_once(ROOT, words, options.threads)
            print(f"{path.name:9} {found[path]['time']:7.1f} s  {size(found[path]['process'])}")
    print(f"h5py alone {alone:6.1f} s")
    longer = found[packed]["time"] / (found[plain]["time"] + alone)
    larger = found[packed]["process"] / found[plain]["process"]
    print(f"netCDF-4 takes {longer:.2f} of the time of ENVI and h5py, and {larger:.2f} of the "
          "memory of ENVI")


if __name__ == "__main__":
    run_script(main)
