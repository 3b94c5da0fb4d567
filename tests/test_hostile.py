"""Files that strangers made: refused in one sentence, before they cost memory, time or a look at anything else."""
from __future__ import annotations

import http.server
import os
import resource
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import scipy.io
from limits import within

from utility.errors import UserError
from utility.scenes import read_scene

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

CUBE = np.arange(4 * 6 * 5, dtype=np.uint16).reshape(4, 6, 5)
READ = """
import sys
from utility.errors import UserError
from utility.scenes import read_scene
for path in sys.argv[1:]:
    try:
        print("read", read_scene(path).cube.sum())
    except UserError as error:
        print("refused", error)
"""


def read_in_child(*paths: Path, seconds: int = 60, memory: int = 4 << 30) -> list[str]:
    """A line for each path, of a process that may be killed by what it reads."""
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    done = subprocess.run([sys.executable, "-c", READ, *map(str, paths)], capture_output=True, text=True, timeout=seconds,
                          preexec_fn=limit, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout.splitlines()


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_scene(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def save_mat5(path: Path, compressed: bool = False) -> bytearray:
    scipy.io.savemat(path, {"cube": CUBE.transpose(1, 2, 0)}, do_compression=compressed)
    return bytearray(path.read_bytes())


# ------------------------------------------------------------------------------------------------------------ MATLAB v5

@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64", "uint64"])
def test_a_v5_file_is_read_as_scipy_reads_it(tmp_path: Path, compressed: bool, dtype: str) -> None:
    cube = (CUBE.transpose(1, 2, 0) * 3).astype(dtype)
    variables = {"first": [[1, 2], [3, 4]], "cube": cube, "text": "abc", "cell": np.array([1, "b"], object), "tiny": 7,
                 "struct": {"a": 1}, "sparse": scipy.sparse.eye(3).tocsc(), "wavelengths": np.arange(400.0, 404)}
    scipy.io.savemat(tmp_path / "a.mat", variables, do_compression=compressed)
    scene = read_scene(tmp_path / "a.mat", key="cube")
    expected = scipy.io.loadmat(tmp_path / "a.mat")["cube"].transpose(2, 0, 1)
    assert scene.cube.dtype == expected.dtype and np.array_equal(scene.cube, expected)
    assert list(scene.wavelengths) == [400, 401, 402, 403]


def test_a_v5_file_with_a_wrong_tag_is_refused_and_does_not_crash(tmp_path: Path) -> None:
    sound = save_mat5(tmp_path / "a.mat")
    data = sound.index(bytes([4, 0, 0, 0]) + (CUBE.nbytes).to_bytes(4, "little"))  # uint16, so many bytes
    for at, value in ((data, 200), (data + 1, 77), (data + 4, 255), (data + 7, 127), (128, 99), (132, 255), (135, 127),
                      (136, 0xFE), (144, 4), (152, 99), (160, 255), (163, 128)):
        damaged = bytearray(sound)
        damaged[at] = value
        (tmp_path / f"{at}_{value}.mat").write_bytes(damaged)
    files = sorted(tmp_path.glob("*_*.mat"))
    for path, line in zip(files, read_in_child(*files), strict=True):
        assert line.startswith("refused") and path.name in line


def test_damage_in_a_compressed_v5_file_is_noticed(tmp_path: Path) -> None:
    sound = save_mat5(tmp_path / "a.mat", compressed=True)
    for at in range(136, len(sound), 7):
        damaged = bytearray(sound)
        damaged[at] ^= 16
        (tmp_path / "b.mat").write_bytes(damaged)
        assert "truncated or damaged" in refusal(tmp_path / "b.mat")


# ------------------------------------------------------------------------------------------------- what is not opened

def test_a_pipe_or_a_device_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mat")
    (tmp_path / "zero.npy").symlink_to("/dev/zero")
    with within(20):
        assert all("no ordinary file" in refusal(tmp_path / name) for name in ("pipe.mat", "zero.npy"))


@pytest.fixture
def server():
    """(address, list of the paths that were asked for) of an HTTP server on this machine."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}", asked
    served.shutdown()
    served.server_close()


def test_no_raster_opens_the_network(tmp_path: Path, server) -> None:
    address, asked = server
    bands = "".join(f'<VRTRasterBand dataType="Byte" band="{b}"><SimpleSource><SourceFilename>/vsicurl/{address}/vrt.tif'
                    f'</SourceFilename></SimpleSource></VRTRasterBand>' for b in (1, 2))
    (tmp_path / "a.vrt").write_text(f'<VRTDataset rasterXSize="4" rasterYSize="4">{bands}</VRTDataset>')
    (tmp_path / "b.tif").write_text(
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{address}/${{z}}.png</ServerUrl></Service><DataWindow><UpperLeftX>-1'
        '</UpperLeftX><UpperLeftY>1</UpperLeftY><LowerRightX>1</LowerRightX><LowerRightY>-1</LowerRightY><TileLevel>1'
        '</TileLevel></DataWindow><BandsCount>3</BandsCount></GDAL_WMS>')
    with rasterio.open(tmp_path / "c.tif", "w", driver="GTiff", count=4, height=6, width=5, dtype="uint16") as target:
        target.write(CUBE)
        target.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{address}/overview.tif")
    (tmp_path / "c.tif.aux.xml").write_text(f"<PAMDataset><SRS>{address}/srs</SRS></PAMDataset>")
    CUBE.tofile(tmp_path / "d.img")
    (tmp_path / "d.hdr").write_text(f"ENVI\nsamples = 5\nlines = 6\nbands = 4\ndata type = 12\ninterleave = bsq\nbyte order = 0"
                                    f"\ncoordinate system string = {{{address}/envi}}\n")
    for name in ("a.vrt", "b.tif"):
        refusal(tmp_path / name)
    for name in ("c.tif", "d.hdr", "d.img"):
        assert np.array_equal(read_scene(tmp_path / name).cube, CUBE)
    assert asked == []


def test_an_array_that_lies_in_other_files_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_bytes(CUBE.tobytes())
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("cube", CUBE.shape, CUBE.dtype, external=[(str(secret), 0, CUBE.nbytes)])
    with h5py.File(tmp_path / "source.h5", "w") as file:
        file["cube"] = CUBE
    layout = h5py.VirtualLayout(CUBE.shape, CUBE.dtype)
    layout[:] = h5py.VirtualSource(str(tmp_path / "source.h5"), "cube", CUBE.shape)
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset("cube", layout)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["cube"] = h5py.ExternalLink(str(tmp_path / "source.h5"), "cube")
    for name, words in (("external", "other files"), ("virtual", "other files"), ("link", "holds no cube")):
        assert words in refusal(tmp_path / f"{name}.h5")


# -------------------------------------------------------------------------------------------------------------- memory

def test_a_file_that_claims_more_than_the_machine_has_is_refused_by_size(tmp_path: Path) -> None:
    side = 1 << 18
    with h5py.File(tmp_path / "sparse.h5", "w") as file:
        file.create_dataset("cube", (4, side, side), "f4", chunks=(1, 64, 64))
    with rasterio.open(tmp_path / "sparse.tif", "w", "GTiff", side, side, 4, dtype="uint16", tiled=True, BIGTIFF="YES",
                       blockxsize=65536, blockysize=65536, SPARSE_OK=True):
        pass
    with open(tmp_path / "sparse.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (4, side, side)})
        file.truncate(file.tell() + 16 * side * side)
    (tmp_path / "sparse.hdr").write_text(f"ENVI\nsamples = {side}\nlines = {side}\nbands = 4\ndata type = 4\ninterleave = bsq"
                                         "\nbyte order = 0\n")
    with open(tmp_path / "sparse.img", "wb") as file:
        file.truncate(16 * side * side)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("cube.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (4, side, side)})
        for _ in range(16):
            file.write(bytes(1 << 20))
    for name in ("sparse.h5", "sparse.tif", "sparse.npy", "sparse.hdr", "bomb.npz"):
        assert "GB of memory, and" in refusal(tmp_path / name)
    many = save_mat5(tmp_path / "many.mat")
    at = many.index(np.array([6, 5, 4], "<i4").tobytes())
    many[at:at + 12] = np.array([1 << 15, 1 << 15, 1 << 9], "<i4").tobytes()
    (tmp_path / "many.mat").write_bytes(many)
    assert "truncated or damaged" in refusal(tmp_path / "many.mat")


def test_a_packed_header_is_not_inflated_beyond_a_header(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("cube.npy", "w") as file:
        file.write(b"\x93NUMPY\x02\x00" + (900 << 20).to_bytes(4, "little"))
        for _ in range(60):
            file.write(b" " * (1 << 20))
    tracemalloc.start()
    try:
        refusal(tmp_path / "bomb.npz")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
