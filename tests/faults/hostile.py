"""Files made on purpose: refused in one sentence, at no cost of memory, time or secrets."""
from __future__ import annotations

import io
import os
import pickle
import resource
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import rasterio
import scipy.io
import torch
from harness import Tally, ended, fork, outcome_of, said

from models import create_model
from utility.checkpoints import model_from_checkpoint
from utility.datasets.cards import load_card, split
from utility.lmdb_dataset import LMDBDataset
from utility.scenes import read_scene

# answers nothing: who connects is found out, and waits
LISTENER = socket.create_server(("127.0.0.1", 0))
ADDRESS = f"http://127.0.0.1:{LISTENER.getsockname()[1]}"
CUBE = np.arange(4 * 6 * 5, dtype=np.uint16).reshape(4, 6, 5)
SIDE = 1 << 18
ENVI = ("ENVI\nsamples = {0}\nlines = {0}\nbands = 4\ndata type = 4\ninterleave = bsq\n"
        "byte order = 0\n")
CARD = 'title = "a"\npatch = 8\nstrides = [8]\n'


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def _read(path: Path) -> str:
    return f"{read_scene(path).cube.shape}"


# --- makers: each writes one file; what it returns is the words of the refusal, or "" where the fil

def claims(suffix: str) -> Callable[[Path], str]:
    """A small file whose header claims 1 TB."""
    def make(path: Path) -> str:
        header = {"descr": "<f4", "fortran_order": False, "shape": (4, SIDE, SIDE)}
        if suffix == ".h5":
            with h5py.File(path, "w") as file:
                file.create_dataset("cube", (4, SIDE, SIDE), "f4", chunks=(1, 64, 64))
        elif suffix == ".tif":
            with rasterio.open(path, "w", "GTiff", SIDE, SIDE, 4, dtype="uint16", tiled=True,
                               BIGTIFF="YES", blockxsize=65536, blockysize=65536, SPARSE_OK=True):
                pass
        elif suffix == ".npy":
            with open(path, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                file.truncate(file.tell() + 16 * SIDE * SIDE)
        elif suffix == ".hdr":
            path.write_text(ENVI.format(SIDE))
            with open(path.with_suffix(".img"), "wb") as file:
                file.truncate(16 * SIDE * SIDE)
        elif suffix == ".npz":
            with (zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
                  archive.open("cube.npy", "w") as file):
                np.lib.format.write_array_header_1_0(file, header)
                for _ in range(16):
                    file.write(bytes(1 << 20))
        else:
            scipy.io.savemat(path, {"cube": CUBE.transpose(1, 2, 0)})
            data = bytearray(path.read_bytes())
            at = data.index(np.array([6, 5, 4], "<i4").tobytes())
            data[at:at + 12] = np.array([1 << 15, 1 << 15, 1 << 9], "<i4").tobytes()
            path.write_bytes(data)
            return "truncated or damaged"
        return "memory"
    return make


def packed_header(path: Path) -> str:
    with (zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
          archive.open("cube.npy", "w") as file):
        file.write(b"\x93NUMPY\x02\x00" + (900 << 20).to_bytes(4, "little"))
        for _ in range(60):
            file.write(b" " * (1 << 20))
    return path.name


def packed_variable(path: Path) -> str:
    scipy.io.savemat(path, {"cube": np.zeros((200, 200, 200))}, do_compression=True)
    data = path.read_bytes()
    path.write_bytes(data[:len(data) // 2])
    return "truncated or damaged"


def wrong_tag(path: Path) -> str:
    """A part of the unknown type 200."""
    scipy.io.savemat(path, {"cube": CUBE.transpose(1, 2, 0)})
    data = bytearray(path.read_bytes())
    data[data.index(bytes([4, 0, 0, 0]) + CUBE.nbytes.to_bytes(4, "little"))] = 200
    path.write_bytes(data)
    return "a part of type 200"


def object_array(path: Path) -> str:
    np.save(path, np.array([Hostile(path.parent / "was_here")] * 2, object), allow_pickle=True)
    return path.name


def external_hdf5(path: Path) -> str:
    (path.parent / "secret.txt").write_bytes(CUBE.tobytes())
    with h5py.File(path, "w") as file:
        file.create_dataset("cube", CUBE.shape, CUBE.dtype,
                            external=[(str(path.parent / "secret.txt"), 0, CUBE.nbytes)])
    return "other files"


def virtual_hdf5(path: Path) -> str:
    with h5py.File(path.parent / "source.h5", "w") as file:
        file["cube"] = CUBE
    layout = h5py.VirtualLayout(CUBE.shape, CUBE.dtype)
    layout[:] = h5py.VirtualSource(str(path.parent / "source.h5"), "cube", CUBE.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("cube", layout)
    return "other files"


def linked_hdf5(path: Path) -> str:
    with h5py.File(path, "w") as file:
        file["cube"] = h5py.ExternalLink(str(path.parent / "source.h5"), "cube")
    return "holds no cube"


def empty_chunk(path: Path) -> str:
    """A chunk of no bytes that has a checksum all the same: HDF5 reads before its beginning."""
    with h5py.File(path, "w") as file:
        file.create_dataset("cube", data=CUBE, chunks=(2, 6, 5), fletcher32=True)
        size = file["cube"].id.get_chunk_info(0).size
    data = path.read_bytes()
    found = data.rindex(size.to_bytes(4, "little") + bytes(4))
    path.write_bytes(data[:found] + bytes(4) + data[found + 4:])
    return "is empty"


def vrt(path: Path) -> str:
    source = (f"<SimpleSource><SourceFilename>/vsicurl/{ADDRESS}/vrt.tif</SourceFilename>"
              "</SimpleSource>")
    bands = "".join(f'<VRTRasterBand dataType="Byte" band="{b}">{source}</VRTRasterBand>'
                    for b in (1, 2))
    path.write_text(f'<VRTDataset rasterXSize="4" rasterYSize="4">{bands}</VRTDataset>')
    return path.name


def wms(path: Path) -> str:
    path.write_text(f'<GDAL_WMS><Service name="TMS"><ServerUrl>{ADDRESS}/${{z}}.png</ServerUrl>'
                    '</Service><DataWindow><UpperLeftX>-1</UpperLeftX><UpperLeftY>1</UpperLeftY>'
                    '<LowerRightX>1</LowerRightX><LowerRightY>-1</LowerRightY>'
                    '<TileLevel>1</TileLevel></DataWindow><BandsCount>3</BandsCount></GDAL_WMS>')
    return path.name


def overviews(path: Path) -> str:
    with rasterio.open(path, "w", driver="GTiff", count=4, height=6, width=5,
                       dtype="uint16") as target:
        target.write(CUBE)
        target.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{ADDRESS}/overview.tif")
    path.with_name(f"{path.name}.aux.xml").write_text(
        f"<PAMDataset><SRS>{ADDRESS}/srs</SRS></PAMDataset>")
    return ""


def projection(path: Path) -> str:
    CUBE.astype("<f4").tofile(path.with_suffix(".img"))
    path.write_text(ENVI.replace("samples = {0}", "samples = 5").replace("lines = {0}", "lines = 6")
                    + f"coordinate system string = {{{ADDRESS}/envi}}\n")
    return ""


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "no ordinary file"


def device(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "no ordinary file"


def piped_list(path: Path) -> str:
    os.mkfifo(path.parent / "list.txt")
    path.write_text(CARD + 'scenes = "list.txt"\n')
    return "no ordinary file"


def text(content: str, words: str = "") -> Callable[[Path], str]:
    def make(path: Path) -> str:
        path.write_text(content)
        return words or path.name
    return make


def released() -> dict[str, Any]:
    net = create_model("biqrnn_1_1")
    optimizer = torch.optim.Adam(net.parameters())
    sum(p.sum() for p in net.parameters()).backward()
    optimizer.step()
    return {"net": net.state_dict(), "arch": "biqrnn_1_1", "optimizer": optimizer.state_dict(),
            "epoch": 1, "iteration": 3}


def checkpoint(change: Callable[[dict[str, Any], Path], Any], words: str,
               **how: Any) -> Callable[[Path], str]:
    def make(path: Path) -> str:
        contents = released()
        change(contents, path.parent)
        torch.save(contents, path, **how)
        return words
    return make


def bare_pickle(path: Path) -> str:
    path.write_bytes(pickle.dumps(released() | {"epoch": Hostile(path.parent / "was_here")}))
    return "cannot be read"


def forged_size(path: Path, *, new: bool = True) -> str:
    """The pickled description of a tensor of 77 values claims 200 million."""
    buffer = io.BytesIO()
    torch.save({"net": {"a": torch.arange(77.0)}}, buffer, _use_new_zipfile_serialization=new)
    size, claim = b"K\x4d", b"J" + (200_000_000).to_bytes(4, "little")

    def forge(data: bytes) -> bytes:
        for after in (b"t", b"\x85", b"N"):
            data = data.replace(size + after, claim + after)
        return data

    if new:
        with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
            for record in source.infolist():
                data = source.read(record)
                target.writestr(record.filename,
                                forge(data) if record.filename.endswith("data.pkl") else data)
    else:
        path.write_bytes(forge(buffer.getvalue()))
    return "cannot be read"


def packed_checkpoint(path: Path) -> str:
    with (zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
          archive.open("archive/data/0", "w") as file):
        for _ in range(64):
            file.write(bytes(1 << 20))
    return "compressed"


def _expand_moments(contents: dict[str, Any], folder: Path) -> None:
    for moments in contents["optimizer"]["state"].values():
        moments["exp_avg"] = torch.zeros(1).expand(moments["exp_avg"].shape)


CASES: dict[str, tuple[str, Callable[..., str], Callable[[Path], Any]]] = {
    **{f"1 TB claimed, {end}": (end, claims(end), _read)
       for end in (".h5", ".tif", ".npy", ".hdr", ".npz", ".mat")},
    "a packed header of 900 MB": (".npz", packed_header, _read),
    "half of a packed variable": (".mat", packed_variable, _read),
    "a variable of no type": (".mat", wrong_tag, _read),
    "an array of Python objects": (".npy", object_array, _read),
    "HDF5 with external storage": (".h5", external_hdf5, _read),
    "HDF5 with a virtual dataset": (".h5", virtual_hdf5, _read),
    "HDF5 with a link to another file": (".h5", linked_hdf5, _read),
    "HDF5 with an empty chunk": (".h5", empty_chunk, _read),
    "VRT to the network": (".vrt", vrt, _read), "WMS as .tif": (".tif", wms, _read),
    "GeoTIFF with overviews elsewhere": (".tif", overviews, _read),
    "ENVI with a projection elsewhere": (".hdr", projection, _read),
    "a pipe as scene": (".mat", pipe, _read),
    "a pipe as checkpoint": (".pth", pipe, model_from_checkpoint),
    "a pipe as card": (".toml", pipe, load_card),
    "a pipe as safetensors": (".safetensors", pipe, model_from_checkpoint),
    "a pipe as database": (".lmdb", lambda path: pipe(path) and "not an LMDB database",
                           LMDBDataset), "a device as scene": (".npy", device, _read),
    "a card whose list is a pipe": (".toml", piped_list,
                                    lambda path: split(load_card(path), [path], "training")),
    "a card of 5,000 nested lists": (".toml", text("a = " + "[" * 5000 + "]" * 5000), load_card),
    "a card of 5,000 digits": (".toml", text(CARD + "bands = " + "9" * 5000), load_card),
    "a card of 9,000 hexadecimal digits": (".toml", text(CARD + f"rgb = [0, 1, 0x{'f' * 9000}]"),
                                           load_card),
    "a card of 10^12 bands": (
        ".toml", text(CARD + "wavelengths = {first = 4, last = 7, count = 1000000000000}"),
        load_card),
    "code in a checkpoint": (".pth",
                             checkpoint(
                                 lambda c, folder: c.update(epoch=Hostile(folder / "was_here")),
                                 "could run any code"), model_from_checkpoint),
    "code in a bare pickle": (".pth", bare_pickle, model_from_checkpoint),
    "a tensor that claims more than its file": (".pth", forged_size, model_from_checkpoint),
    "the same in the old format": (".pth", lambda path: forged_size(path, new=False),
                                   model_from_checkpoint),
    "a checkpoint of packed zeros": (".pth", packed_checkpoint, model_from_checkpoint),
    "a network of 32 GB": (
        ".pth", checkpoint(lambda c, _: c.update(arch="biqrnn_9999_99"), "another network"),
        model_from_checkpoint),
    "weights of 4 TB that hold one number": (".pth",
                                             checkpoint(lambda c, _: c["net"].update(
                                                 a=torch.zeros(1).expand(1 << 20, 1 << 20)),
                                                        "one by one"), model_from_checkpoint),
    "moments that share one number": (".pth", checkpoint(_expand_moments, "one by one"),
                                      model_from_checkpoint),
    "sparse weights of 4 TB": (".pth",
                               checkpoint(lambda c, _: c["net"].update(
                                   a=torch.sparse_coo_tensor(size=(1 << 20, 1 << 20))),
                                          "one by one"), model_from_checkpoint),
    "weights without values": (".pth",
                               checkpoint(lambda c, _: c["net"].update(
                                   {k: v.to("meta") for k, v in c["net"].items()}), "one by one"),
                               model_from_checkpoint)}


def run(scratch: Path, share: float, seed: int) -> Iterator[Tally]:
    """Each file in a child of its own, with little time and memory."""
    tally = Tally("hostile", "files made to do harm")
    for number, (name, (suffix, make, read)) in enumerate(CASES.items()):
        folder = scratch / f"hostile_{number}"
        folder.mkdir()
        path = folder / f"file{suffix}"
        words = make(path)
        code = ended(fork(lambda path=path, read=read: _judge(path, read), folder / "log",
                          memory=1 << 30, seconds=120))
        outcome, _, sentence = said(folder / "log").partition(": ")
        good = (code == 0
                and (outcome == "refused" and words in sentence if words else outcome == "read"))
        tally.check(good and not (folder / "was_here").exists(), outcome,
                    f"{name}: exit {code}, {outcome}: {sentence[-1500:]}")
    LISTENER.setblocking(False)
    try:
        LISTENER.accept()[0].close()
        tally.failures.append("the network was asked")
    except BlockingIOError:
        pass
    yield tally


def _judge(path: Path, read: Callable[[Path], Any]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome, value = outcome_of(lambda: read(path))
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10
    print(outcome if taken < 200 else f"took {taken} MB", " ".join(str(value).split()), sep=": ")
