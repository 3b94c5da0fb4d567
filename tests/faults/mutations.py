"""Damaged files of every format: read, or refused in one sentence; no process ends by them."""
from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import h5py
import lmdb
import numpy as np
import rasterio
import scipy.io
import torch
from harness import Tally, ended, fork, outcome_of, said

from models import create_model
from utility.checkpoints import checksum, export, model_from_checkpoint, save_checkpoint
from utility.cubes.cube import Scene
from utility.datasets.cards import CARD_FOLDER, load_card
from utility.lmdb_dataset import LMDBDataset, writing_database
from utility.scenes import read_scene, write_scene
from utility.system.errors import UserError

CUBE = np.arange(4 * 9 * 8, dtype=np.uint16).reshape(4, 9, 8)
ARCH = "biqrnn_4_2"


@dataclass
class Format:
    """One kind of file.

    Attributes:
        write: makes a sound file under this path.
        read: reads the file whole.
        exact: whether what is still read of a damaged file must be what was written.
        loops: whether the library that reads the file is known to loop for ever on some of them
            (libhdf5, GDAL's JPEG 2000).
    """

    suffix: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any] = lambda path: read_scene(path).cube.sum()
    exact: bool = False
    loops: bool = False


def _scene(path: Path) -> None:
    write_scene(path,
                Scene(CUBE, "a", layout="BHW", wavelengths=np.arange(400.0, 404),
                      band_names=list("abcd"), nodata=0))


def _deflated_tiff(path: Path) -> None:
    with rasterio.open(path, "w", "GTiff", 8, 9, 4, dtype="uint16", compress="deflate",
                       predictor=2) as file:
        file.write(CUBE)


def _chunked_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("group/cube", data=CUBE, chunks=(2, 4, 4), compression="gzip",
                            shuffle=True, fletcher32=True)
        file["group/cube"].attrs["unit"] = "m"


def _jpeg2000(path: Path) -> None:
    with rasterio.open(path, "w", "JP2OpenJPEG", 8, 9, 4, dtype="uint16") as file:
        file.write(CUBE)


def _netcdf(path: Path) -> None:
    """Packed values on a map grid, by CF."""
    facts = {"wavelengths": np.arange(400.0, 404), "nodata": 0, "gain": np.full(4, 1e-4)}
    write_scene(path, Scene(CUBE, "a", layout="BHW", crs=rasterio.crs.CRS.from_epsg(32633).to_wkt(),
                            transform=(30, 0, 5e5, 0, -30, 5e6), **facts))


def _pictures(path: Path) -> None:
    """A folder of five bands, of which the file is one."""
    (path.parent / "bands").mkdir(exist_ok=True)
    for band in range(5):
        cv2.imwrite(str(path.parent / "bands" / f"scene_{band}.png"), CUBE[band % 4])
    shutil.copy(path.parent / "bands" / "scene_2.png", path)


def _read_pictures(path: Path) -> float:
    place = path.parent / "bands" / "scene_2.png"
    shutil.copy(path, place)
    try:
        return read_scene(place.parent).cube.sum()
    except UserError as error:  # it names the picture in the folder
        raise UserError(str(error).replace(str(place), str(path))) from error


def _xml(path: Path) -> None:
    """What stands beside an image of EnMAP."""
    _deflated_tiff(path.with_name("ENMAP01-a-SPECTRAL_IMAGE.TIF"))
    band = ("<bandID><wavelengthCenterOfBand>{}</wavelengthCenterOfBand>"
            "<GainOfBand>0.0001</GainOfBand></bandID>")
    bands = "".join(band.format(400 + n) for n in range(4))
    path.write_text(f"<?xml version='1.0' encoding='UTF-8'?><level_X>{bands}</level_X>")


def _read_xml(path: Path) -> float:
    shutil.copy(path, path.with_name("ENMAP01-a-METADATA.XML"))
    return read_scene(path.with_name("ENMAP01-a-SPECTRAL_IMAGE.TIF")).cube.sum()


def _database(path: Path) -> None:
    folder = path.with_suffix(".lmdb")
    with writing_database(folder) as writer:
        for _ in range(4):
            writer.write(np.random.default_rng(0).random((8, 4, 12, 12), np.float32))
        writer.finish(sources=[{"file": "a.mat", "name": "a", "size": [9, 8]}])
    shutil.move(folder / "data.mdb", path)


def _published_database(path: Path) -> None:
    datum = (b"\x08\x02\x10\x03\x18\x02"
             + b"".join(b"\x35" + np.float32(v).tobytes() for v in range(12)))
    with (lmdb.open(str(path), subdir=False, lock=False) as database,
          database.begin(write=True) as transaction):
        for i in range(40):
            transaction.put(f"{i:08d}".encode(), datum)


def _read_database(path: Path) -> None:
    data = LMDBDataset(path)
    for i in range(len(data)):
        data[i]


def _contents() -> dict[str, Any]:
    net = create_model(ARCH)
    torch.nn.init.constant_(net.last_layer()[0], 0.5)
    return {
        "net": {name: torch.full_like(weight, 0.25) for name, weight in net.state_dict().items()},
        "arch": ARCH, "epoch": 3, "scale": [2, 4], "degradation": "gaussian", "psnr": 30.5,
        "history": [{"epoch": 1, "psnr": 30.5}],
        "optimizer": torch.optim.Adam(net.parameters()).state_dict(),
        "trained_on": [{"file": "a.mat"}]}


def _safetensors(path: Path) -> None:
    save_checkpoint(path.with_suffix(".tmp"), _contents())
    export(path.with_suffix(".tmp"), path)


def _read_checkpoint(path: Path) -> str:
    net, info = model_from_checkpoint(path)
    return repr((checksum(net.state_dict()), info.arch, info.scales, info.degradation, info.psnr,
                 info.epoch, info.trained_on))


FORMATS = {"MATLAB v5": Format(".mat", _scene),
           "MATLAB v5, compressed": Format(".mat",
                                           lambda path: scipy.io.savemat(
                                               path,
                                               {"cube": CUBE.transpose(1, 2, 0),
                                                "wavelengths": np.arange(400.0, 404)},
                                               do_compression=True)),
           "MATLAB v7.3": Format(
               ".mat",
               lambda path: write_scene(path, Scene(CUBE, "a", format="mat7.3", layout="BHW")),
               loops=True), "HDF5": Format(".h5", _scene, loops=True),
           "HDF5, packed chunks": Format(".h5", _chunked_hdf5, loops=True),
           "netCDF": Format(".nc", _netcdf, loops=True),
           "pictures of bands": Format(".png", _pictures, _read_pictures),
           "XML beside an image": Format(".xml", _xml, _read_xml),
           ".npy": Format(".npy", _scene), ".npz": Format(".npz", _scene),
           "ENVI header": Format(".hdr", _scene), "GeoTIFF": Format(".tif", _scene),
           "GeoTIFF, deflate": Format(".tif", _deflated_tiff),
           "JPEG 2000": Format(".jp2", _jpeg2000, loops=True),
           "LMDB": Format(".mdb", _database, _read_database),
           "LMDB, published": Format(".mdb", _published_database, _read_database),
           "checkpoint": Format(".pth", lambda path: save_checkpoint(path, _contents()),
                                _read_checkpoint, exact=True),
           "checkpoint, old format": Format(
               ".pth",
               lambda path: torch.save(_contents(), path, _use_new_zipfile_serialization=False),
               _read_checkpoint),
           "safetensors": Format(".safetensors", _safetensors, _read_checkpoint, exact=True),
           "dataset card": Format(".toml",
                                  lambda path: shutil.copy(CARD_FOLDER / "pavia_center.toml", path),
                                  load_card)}


def damaged(sound: bytes, rng: np.random.Generator, exact: bool) -> bytes:
    """One to three faults of a transfer, a disk or a hand, half of them near an end.

    Of a format that must be read exactly or not at all, half of the files have one wrong bit, which
    lies anywhere.
    """
    data = bytearray(sound)
    if exact and rng.integers(2):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        return bytes(data)
    for _ in range(int(rng.integers(1, 4))):
        size = max(len(data), 1)
        near = int(rng.integers(min(size, 512)))
        at = (int(rng.integers(size)), int(rng.integers(size)), near, size - 1 - near)[
            rng.integers(4)]
        length = int(rng.integers(1, 65))
        match int(rng.integers(9)):
            case 0 | 1:
                data[at:at + 1] = bytes(
                    [(data[at] if at < len(data) else 0) ^ 1 << int(rng.integers(8))])
            case 2:
                data[at:at + 1] = bytes([(0, 1, 127, 128, 255)[rng.integers(5)]])
            case 3:
                value = (0, 1, -1, 1 << 31, (1 << 31) - 1, 1 << 62, 1 << 20)[rng.integers(7)]
                width = (2, 4, 8)[rng.integers(3)]
                data[at:at + width] = (value % (1 << 8 * width)).to_bytes(
                    width, ("little", "big")[rng.integers(2)])
            case 4:
                data[at:at + length] = rng.bytes(length)
            case 5:
                data[at:at + length] = bytes(length)
            case 6:
                del data[at:at + length]
            case 7:
                data[at:at] = data[near:near + length]
            case 8:
                del data[at:]
    return bytes(data)


def run(scratch: Path, share: float, seed: int) -> Iterator[Tally]:
    """20,000 files at share 1."""
    each = max(3, round(20_000 * share / len(FORMATS) + 0.5))
    for number, (name, kind) in enumerate(FORMATS.items()):
        tally = Tally("mutations", name)
        folder = scratch / f"mutations_{number}"
        folder.mkdir()
        path = folder / f"damaged{kind.suffix}"
        kind.write(path)
        sound, right = path.read_bytes(), kind.read(path)
        first = 0
        while first < each:
            first = _many(kind, path, sound, right, (seed, number), range(first, each), tally)
        yield tally


def _many(kind: Format, path: Path, sound: bytes, right: Any, key: tuple[int, int], numbers: range,
          tally: Tally) -> int:
    """One child reads these files until one kills it; returns the number to go on with."""
    results, log = path.with_suffix(".results"), path.with_suffix(".log")

    def work() -> None:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.alarm(0)
        with open(results, "w", buffering=1) as file:
            for i in numbers:
                path.unlink(missing_ok=True)
                path.write_bytes(damaged(sound, np.random.default_rng((*key, i)), kind.exact))
                signal.setitimer(signal.ITIMER_PROF, 10)  # of processor time
                outcome, value = outcome_of(lambda: kind.read(path))
                if outcome == "read" and kind.exact and value != right:
                    outcome, value = "fault", f"read as {value}, which is not what was written"
                elif outcome == "refused" and path.name not in value:
                    outcome, value = "fault", f"the sentence does not name the file: {value}"
                file.write(json.dumps([outcome, value if outcome == "fault" else ""]) + "\n")

    code = ended(fork(work, log, memory=3 << 30))
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    for i, (outcome, value) in zip(numbers, lines, strict=False):
        tally.check(outcome != "fault", outcome, f"file {i}: {value}")
        if outcome == "fault":
            _keep(kind, path, sound, key, i)
    done = numbers.start + len(lines)
    if len(lines) < len(numbers):
        _keep(kind, path, sound, key, done)
        tally.check(kind.loops and code == -signal.SIGPROF,
                    "lost in an endless loop of the library",
                    f"file {done}: the process ended with {code} {said(log)[-2000:]}")
        done += 1
    return done


def _keep(kind: Format, path: Path, sound: bytes, key: tuple[int, int], i: int) -> None:
    data = damaged(sound, np.random.default_rng((*key, i)), kind.exact)
    (path.parent / f"file_{i}{path.suffix}").write_bytes(data)
