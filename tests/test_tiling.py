"""Tiles: the whole scene's result, in bounded memory."""
import os

import numpy as np
import pytest
import torch
from made import filled

from models import Window, create_model, list_models
from utility.degradation import downsample, upsample
from utility.superres import tiling
from utility.superres.tiling import (
    Consistency,
    auto_tile,
    interpolated,
    super_resolve,
    super_resolve_cube,
    window_of,
)
from utility.system.errors import UserError
from utility.system.memory import free_memory

NAMES = ("mtf 0.2,0.6", "area", "gaussian", "bicubic", "spatial", "reference")


def network(name="biqrnn_2_4"):
    return filled(name)


def scene(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def check_tiles(name, tile, shape):
    cube, net = scene(*shape), network(name)
    whole = super_resolve_cube(net, cube, tile=0)
    assert np.abs(whole - cube).max() > 0.01  # the network does something
    assert np.abs(super_resolve_cube(net, cube, tile=tile) - whole).max() <= 1e-4


@pytest.mark.parametrize(("name", "tile"),
                         [("biqrnn_16_5", 32), ("fqrnn_4_5", 64), ("qrnn_4_4", 36),
                          ("iqrnn_4_5", 40), ("biqrnn_4_1", 100)])
def test_tiles_give_the_whole_scene_s_result(name, tile):
    check_tiles(name, tile, (2, 75, 109))


@pytest.mark.slow
@pytest.mark.parametrize("tile", [32, 64, 100, 128, 256])
@pytest.mark.parametrize("name", [name for name in list_models() if "qrnn" in name])
def test_a_31x203x331_scene_is_the_same_in_tiles_of_any_size(name, tile):
    check_tiles(name, tile, (31, 203, 331))


@pytest.mark.parametrize("name", ["biqrnn_2_5", "qrnn_2_3", "fqrnn_2_1"])
def test_the_halo_holds_all_that_an_output_depends_on(name):
    """Everything outside the halo is replaced, and inside the window nothing moves."""
    net = network(name)
    torch.manual_seed(0)
    x = torch.rand(1, 1, 2, 128, 144)
    with torch.no_grad():
        expected = net(x)
    for top, left in ((0, 112), (48, 64), (96, 0)):
        window = Window(top, top + 32, left, left + 32, 128, 144)
        need = window.grown(net.halo(1))
        other = torch.rand_like(x)
        other[..., need.top:need.bottom, need.left:need.right] = need.cut(x, Window.whole(128, 144))
        with torch.no_grad():
            assert window.cut(expected - net(other), Window.whole(128, 144)).abs().max() < 1e-5


@pytest.mark.parametrize(("name", "spare"), [("biqrnn_2_2", 0), ("qrnn_2_5", 1)])
def test_a_smaller_halo_would_not_do(name, spare):
    """Margins are rounded up at every resolution: a deep network may have a step to spare."""
    net = network(name).double()
    size = 2 * net.halo(1) + 32
    whole, window = Window.whole(size, size), Window(size - 32, size, size - 32, size, size, size)
    torch.manual_seed(0)
    x = torch.rand(1, 1, 2, size, size, dtype=torch.float64)
    differences = []
    with torch.no_grad():
        expected = net(x)
        for reduction in range(0, net.halo(1), net.multiple):
            need = window.grown(net.halo(1) - reduction)
            other = torch.rand_like(x)
            other[..., need.top:, need.left:] = need.cut(x, whole)
            differences.append(float(window.cut(net(other) - expected, whole).abs().max()))
            if differences[-1] > 1e-12:
                break
    assert differences[0] < 1e-14 and differences[-1] > 1e-12
    assert len(differences) <= 2 + spare


def test_sizes_that_are_no_multiple_are_padded_by_reflection_and_cropped():
    net = network()
    cube = scene(3, 33, 42)
    padded = np.pad(cube, ((0, 0), (0, 3), (0, 2)), mode="reflect")
    with torch.no_grad():
        expected = net(torch.from_numpy(padded)[None, None])[0, 0, :, :33, :42].numpy()
    assert np.allclose(super_resolve_cube(net, cube, tile=0), expected, atol=1e-6)


def test_the_smallest_scenes_work():
    net = network()
    for shape in ((1, 1, 1), (1, 3, 2), (2, 5, 4)):
        assert super_resolve_cube(net, scene(*shape), tile=0).shape == shape


def test_a_tile_below_32_is_refused():
    with pytest.raises(UserError, match="tile of 16 pixels"):
        super_resolve_cube(network(), scene(2, 64, 64), tile=16)


@pytest.mark.parametrize("tile", [0, 36])
def test_self_ensemble_averages_the_eight_turns_of_the_padded_scene(tile):
    net = network()
    cube = scene(2, 43, 70)
    padded = torch.from_numpy(np.pad(cube, ((0, 0), (0, 1), (0, 2)), mode="reflect"))[None, None]
    total = torch.zeros_like(padded)
    with torch.no_grad():
        for k in range(4):
            for flip in (False, True):
                turned = torch.rot90(padded.flip(-1) if flip else padded, k, (-2, -1))
                back = torch.rot90(net(turned), -k, (-2, -1))
                total += back.flip(-1) if flip else back
    expected = (total / 8)[0, 0, :, :43, :70].numpy()
    assert np.abs(super_resolve_cube(net, cube, tile=tile,
                                     self_ensemble=True) - expected).max() < 1e-5


@pytest.mark.parametrize("error",
                         [torch.cuda.OutOfMemoryError("scripted"),
                          RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")],
                         ids=["torch", "cuDNN"])
def test_a_gpu_out_of_memory_quarters_the_tile_and_goes_on(monkeypatch, error):
    net, cube = network(), scene(2, 128, 160)
    expected = super_resolve_cube(net, cube, tile=0)
    seen = []

    run = net.in_window

    def scarce(wanted, have, x):
        if x.shape[-1] > 120:
            raise error
        seen.append(wanted)
        return run(wanted, have, x)

    monkeypatch.setattr(net, "in_window", scarce)
    assert np.abs(super_resolve_cube(net, cube, tile=128) - expected).max() <= 1e-4
    assert len(seen) > 1


def test_a_gpu_too_small_for_any_tile_is_said_plainly(monkeypatch):
    def never(*_):
        raise torch.cuda.OutOfMemoryError("scripted")

    net = network()
    monkeypatch.setattr(net, "in_window", never)
    with pytest.raises(UserError, match="--no-cuda"):
        super_resolve_cube(net, scene(2, 64, 64), tile=64)


LIMIT = "Limit   Soft Limit   Hard Limit   Units\nMax address space   "
PAGE = os.sysconf("SC_PAGE_SIZE")


def test_free_memory_is_that_of_the_machine_or_what_control_groups_and_limits_leave(tmp_path):
    group, old = "sys/fs/cgroup", "sys/fs/cgroup/memory"
    for expected, files in (  # each time these files are added
            (4 << 30, {}),
            (8_000_000 * 1024, {"proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB"}),
            (8_000_000 * 1024, {f"{group}/memory.max": "max", f"{group}/memory.current": "123"}),
            (2_000_000_000, {f"{group}/memory.max": "3000000000",
                             f"{group}/memory.current": "1000000000"}),
            (2_300_000_000, {f"{group}/memory.stat": "anon 600000000\ninactive_file 300000000"}),
            (900_000_000, {"proc/self/cgroup": "0::/jobs.slice/job7",
                           f"{group}/jobs.slice/memory.max": "1500000000",
                           f"{group}/jobs.slice/memory.current": "600000000",
                           f"{group}/jobs.slice/job7/memory.max": "max"}),
            (2_300_000_000, {"proc/self/cgroup": "7:cpu,memory:/docker/abc\n3:pids:/x"}),
            (2_300_000_000, {f"{old}/memory.limit_in_bytes": "9223372036854771712",
                             f"{old}/memory.usage_in_bytes": "5"}),
            (0, {f"{old}/docker/abc/memory.limit_in_bytes": "800000000",
                 f"{old}/docker/abc/memory.usage_in_bytes": "900000000"}),
            (2_300_000_000, {f"{old}/docker/abc/memory.usage_in_bytes": "0",
                             f"{old}/docker/abc/memory.limit_in_bytes": "2300000000",
                             "proc/self/limits": f"{LIMIT}unlimited   unlimited   bytes"}),
            (1_000_000_000 - PAGE, {"proc/self/limits": f"{LIMIT}1000000000  unlimited   bytes",
                                    "proc/self/statm": "1 1 1 1 0 1 0"})):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
        assert free_memory(tmp_path) == expected


def test_auto_takes_the_whole_scene_where_it_fits_and_a_tile_where_it_does_not(monkeypatch):
    net = network("biqrnn_16_5")
    assert auto_tile(net, (31, 64, 64)) == 0
    monkeypatch.setattr("utility.system.memory.free_memory", lambda: 4 << 30)
    tile = auto_tile(net, (31, 4096, 4096))
    assert tile % 32 == 0 and 32 <= tile < 1024
    monkeypatch.setattr("utility.system.memory.free_memory", lambda: 1 << 20)
    assert auto_tile(net, (31, 4096, 4096)) == 32


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_of_224_bands_two_gigabytes_hold_a_result_of_1024_pixels_as_one_tile(monkeypatch, amp):
    monkeypatch.setattr("utility.system.memory.resident", lambda: 550_000_000)
    net, beside = create_model("lowgrid_32_8_sensor"), tiling.beside_network(224, 1024, 1024)
    size = tiling.tile_size(net, (39, 1024, 1024), 4, "auto", amp, 2_000_000_000, beside=beside)
    assert size == (1024, None)
    size = tiling.tile_size(net, (39, 1024, 1024), 4, "auto", amp, 1_000_000_000, beside=beside)
    assert size[0] < 512


def test_little_memory_gives_tiles_that_are_not_too_flat_and_no_row_of_them_is_kept(monkeypatch):
    net, shape, kept = network(), (2, 400, 64), []
    cube, low = scene(*shape), scene(2, 200, 32)
    monkeypatch.setattr(tiling, "ROWS", 8)
    again = Consistency(shape, 2, "area", taken=lambda rows, part: kept.append(rows))
    held = []
    super_resolve(net, window_of(cube), shape, lambda *_: held.append(again.low.shape[1]),
                  low=window_of(low), scale=2, tile=32, again=again)
    assert max(held) < 100 and kept[0].start == 0 and kept[-1].stop == 200 and len(kept) > 8
    assert tiling._over_the_width(256, 22, 2048) == (256, None)  # 32 rows, and 44 of halo
    assert tiling._over_the_width(1024, 22, 2048) == (512, 2048)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("scale", [2, 4])
def test_windows_of_an_interpolated_scene_are_those_of_the_whole(kind, scale):
    low = scene(3, 60, 47).astype(np.float64) * 900 - 100
    source = interpolated(low, scale, kind, -100.0, 800.0)
    whole = upsample(torch.from_numpy((low + 100) / 900), scale, kind).numpy()
    for top, bottom, left, right in ((0, 60 * scale, 0, 47 * scale), (8, 40, 16, 60),
                                     (100, 60 * scale, 60, 47 * scale)):
        assert np.abs(source(top, bottom, left, right) - whole[
            :, top:bottom, left:right]).max() < 1e-5


def test_a_large_offset_does_not_swallow_the_range():
    x = scene(2, 12, 12).astype(np.float64)
    expected = upsample(torch.from_numpy(x), 4, "spatial").numpy()
    assert np.abs(interpolated(1e7 + x, 4, "spatial", 1e7, 1e7 + 1)(
        0, 48, 0, 48) - expected).max() < 1e-5


@pytest.mark.parametrize(("kind", "scale"),
                         zip([*NAMES, *NAMES], (2, 4, 8, 2, 4, 8, 8, 2, 4, 8, 2, 4), strict=True))
def test_the_consistency_of_blocks_is_the_degradation_of_the_whole(kind, scale):
    cube = scene(5, 96, 160)
    consistency = Consistency(cube.shape, scale, kind)
    for top in range(0, 96, 36):
        for left in range(0, 160, 36):
            consistency.add(top, left, cube[:, top:top + 36, left:left + 36])
    expected = downsample(torch.from_numpy(cube).double(), scale, kind).numpy()
    assert np.abs(consistency.result() - expected).max() < 1e-5


@pytest.mark.parametrize("kind", NAMES)
def test_rows_of_a_degraded_scene_are_compared_once_they_are_complete_and_kept_no_longer(
        kind, monkeypatch):
    monkeypatch.setattr(tiling, "ROWS", 8)
    cube, taken, kept = scene(3, 480, 12), [], []
    consistency = Consistency(cube.shape, 2, kind,
                              taken=lambda rows, part: taken.append((rows, part.copy())))
    for top in range(0, 480, 12):
        consistency.add(top, 0, cube[:, top:top + 12])
        consistency.done(top + 12)
        kept.append(consistency.low.shape[1])
    assert max(kept) < 100 and len(taken) > 8
    monkeypatch.setattr(tiling, "ROWS", 64)
    monkeypatch.setattr(tiling, "COMPARED", 4 * 3 * 6 * 10)  # as many bytes as 10 rows
    other = Consistency((3, 480, 12), 2, kind, taken=lambda rows, part: None)
    for top in range(0, 480, 12):
        other.add(top, 0, cube[:, top:top + 12])
        other.done(top + 12)
        assert other.low.shape[1] < 100
    assert [rows.start for rows, _ in taken] == [0, *(rows.stop for rows, _ in taken[:-1])]
    expected = downsample(torch.from_numpy(cube).double(), 2, kind).numpy()
    assert np.abs(np.concatenate([part for _, part in taken], 1) - expected).max() < 1e-5


def test_sources_are_read_no_further_than_a_tile_and_its_halo():
    net, cube, reads = network(), scene(2, 100, 100), []

    def source(top, bottom, left, right):
        reads.append((bottom - top) * (right - left))
        return cube[:, top:bottom, left:right]

    super_resolve(net, source, cube.shape, lambda *_: None, tile=32)
    assert max(reads) <= (32 + 2 * net.halo(1)) ** 2 and len(reads) == 16
