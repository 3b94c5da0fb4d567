"""Databases: built whole or not at all, read back exactly, in any process; or named."""
from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pytest
import scipy.io
from limits import room_for
from torch.utils.data import DataLoader
from typed import typed

from data import make_samples
from utility.cubes.values import unit_range
from utility.datasets import building
from utility.datasets.building import build_database
from utility.datasets.cards import generic_card
from utility.datasets.patches import extract_patches
from utility.lmdb_data import main
from utility.lmdb_dataset import LMDBDataset, writing_database
from utility.scenes import read_scene, write_scene
from utility.system.datum import _message as message_class
from utility.system.datum import decode_datum
from utility.system.errors import UserError
from utility.training import steps
from utility.training.configuration import configure
from utility.training.plan import prepare

ROOT = Path(__file__).parent.parent
CARD = generic_card(8)


def scene_file(folder: Path, name: str, bands: int = 3, side: int = 24, seed: int = 0) -> Path:
    """A cube of bands x side x side as .npy, values 0 to 999."""
    path = folder / f"{name}.npy"
    cube = np.random.default_rng(seed).integers(0, 1000, (bands, side, side)).astype(np.int16)
    cube[0, 0, :2] = 0, 999
    np.save(path, cube)
    return path


def everything(path: Path) -> np.ndarray:
    data = LMDBDataset(path)
    return np.stack([data[i] for i in range(len(data))])


def expected(path: Path, card=CARD) -> np.ndarray:
    cube = unit_range(read_scene(path).cube)[0]
    return np.concatenate(list(extract_patches(cube, card.patch, card.strides, card.zooms)))


@pytest.fixture
def scenes(tmp_path):
    return [scene_file(tmp_path, name, seed=seed) for seed, name in enumerate("abc")]


@pytest.fixture
def database(scenes, tmp_path):
    build_database(tmp_path / "abc.lmdb", scenes, CARD, val_last=2)
    return tmp_path / "abc.lmdb"


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".npy")


# --- building -------------------------------------------------------------------------------------

def test_the_database_holds_the_scenes_patches_in_their_order(scenes, database):
    assert np.array_equal(everything(database),
                          np.concatenate([expected(scene) for scene in scenes]))


def test_the_layout_on_disk_is_the_contracts(scenes, database):
    assert left_in(database) == ["data.mdb"]
    with (lmdb.open(str(database), readonly=True, lock=False) as environment,
          environment.begin() as transaction):
        first, meta = transaction.get(b"00000000"), json.loads(transaction.get(b"__meta__"))
        assert environment.stat()["entries"] == 28
    assert first == expected(scenes[0])[0].astype("<f4").tobytes()
    assert (meta["version"], meta["dtype"], meta["shape"], meta["count"]) == (
        1, "float32", [3, 8, 8], 27)
    assert [source["file"] for source in meta["sources"]] == ["a.npy", "b.npy", "c.npy"]
    first = meta["sources"][0]
    assert (first["low"], first["high"], first["patches"], first["size"]) == (
        0.0, 999.0, 9, [24, 24])


def test_float16_halves_the_file_and_is_read_as_float32(scenes, tmp_path):
    build_database(tmp_path / "half.lmdb", scenes, CARD, dtype="float16", val_last=2)
    got = everything(tmp_path / "half.lmdb")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.concatenate([expected(scene) for scene in scenes]),
                               atol=5e-4)


def test_a_map_that_is_too_small_grows(tmp_path):
    scene = scene_file(tmp_path, "large", bands=20, side=256)  # 5 MB of patches in a map of 1 MB
    build_database(tmp_path / "large.lmdb", [scene], CARD, map_size_mb=1, val_last=0)
    assert np.array_equal(everything(tmp_path / "large.lmdb"), expected(scene))


def test_baked_augmentation_stores_each_patch_and_other_variants_of_it(scenes, tmp_path):
    build_database(tmp_path / "k.lmdb", scenes[:1], CARD, augment=3, val_last=0)
    got = everything(tmp_path / "k.lmdb")
    assert len(got) == 27 and np.array_equal(got[::3], expected(scenes[0]))


def test_scenes_held_out_for_validation_come_last(scenes, tmp_path):
    meta = build_database(tmp_path / "v.lmdb", scenes, CARD, val_scenes=["a"])
    validation = LMDBDataset(tmp_path / "v.lmdb", "validation")
    assert [source["part"] for source in meta["sources"]] == ["training", "training", "validation"]
    assert np.array_equal(np.stack([validation[i] for i in range(9)]), expected(scenes[0]))
    assert len(LMDBDataset(tmp_path / "v.lmdb", "train")) == 18


@pytest.mark.parametrize(("last", "training"), [(2, 25), (5, 22), (0, 27)])
def test_the_last_patches_are_for_validation(scenes, tmp_path, last, training):
    build_database(tmp_path / "v.lmdb", scenes, CARD, val_last=last)
    whole, train, validation = (
        LMDBDataset(tmp_path / "v.lmdb", split) for split in (None, "train", "validation"))
    assert (len(train), len(validation)) == (training, 27 - training)
    if last:
        assert (np.array_equal(validation[0], whole[training])
                and np.array_equal(validation[-1], whole[26]))
    assert np.array_equal(train[0], whole[0])


def test_a_card_with_a_test_region_writes_the_test_cube_beside(tmp_path):
    scene = scene_file(tmp_path, "field", bands=4, side=32)
    card = replace(CARD, size=(32, 32), test_region=(16, 16, 16, 16))
    build_database(tmp_path / "f.lmdb", [scene], card, test_out=tmp_path / "test")
    assert left_in(tmp_path / "test") == ["field_test.mat"]
    stored = scipy.io.loadmat(tmp_path / "test" / "field_test.mat")["gt"]
    assert stored.shape == (16, 16, 4) and stored.dtype == np.float32
    test = read_scene(tmp_path / "test" / "field_test.mat").cube
    assert np.array_equal(test, unit_range(read_scene(scene).cube)[0][:, 16:, 16:])
    held = {patch.tobytes() for patch in extract_patches(test, 8, [1], [1.0]) for patch in patch}
    assert not held & {patch.tobytes() for patch in everything(tmp_path / "f.lmdb")}
    with pytest.raises(UserError, match=r"field_test\.mat exists already"):
        build_database(tmp_path / "g.lmdb", [scene], card, test_out=tmp_path / "test")


def test_a_validation_region_gives_the_last_patches_and_shares_no_pixel(tmp_path):
    scene = scene_file(tmp_path, "field", bands=4, side=32)
    card = replace(CARD, size=(32, 32), test_region=(16, 16, 16, 16),
                   validation_region=(0, 0, 8, 16))
    meta = build_database(tmp_path / "f.lmdb", [scene], card)
    whole = unit_range(read_scene(scene).cube)[0]
    validation = LMDBDataset(tmp_path / "f.lmdb", "validation")
    assert np.array_equal(np.stack([validation[i] for i in range(2)]),
                          [whole[:, :8, :8], whole[:, :8, 8:16]])
    assert (len(validation), meta["validation"], meta["count"]) == (2, 2, 12)
    assert [(source["part"], source["regions"]) for source in meta["sources"]] == [
        ("training", [[8, 0, 8, 32], [0, 16, 8, 16], [16, 0, 16, 16]]),
        ("validation", [[0, 0, 8, 16]])]


def test_whole_scenes_of_the_card_validate_unless_the_last_patches_are_asked_for(scenes, tmp_path):
    (tmp_path / "mine.toml").write_text(
        'title = "t"\npatch = 8\nstrides = [8]\nvalidation_scenes = ["b"]\nscenes = "list.txt"')
    (tmp_path / "list.txt").write_text("a.mat\nb.mat\nc.mat")
    for options, validation, files in ((["--force"], 9, "a c b"),
                                       (["--val-last", "10"], 10, "a b c"),
                                       (["--scenes-limit", "2"], 9, "a b")):
        out = tmp_path / f"{validation}.lmdb"
        main(["--dataset", str(tmp_path / "mine.toml"), "--source", *map(str, scenes), "--out",
              str(out), "--quiet", "--force", *options])
        meta = LMDBDataset(out).meta
        assert (meta["validation"], " ".join(source["name"] for source in meta["sources"])) == (
            validation, files)


def test_whole_scenes_validate_where_there_are_five_and_a_corner_of_the_last_of_fewer(tmp_path):
    files = [str(scene_file(tmp_path, f"s{k:02}", side=16, seed=k)) for k in range(10)]
    for count, validation, parts in ((10, 9, 9 * ["training"] + ["validation"]),
                                     (5, 9, 4 * ["training"] + ["validation"]),
                                     (4, 3, 4 * ["training"] + ["validation"])):
        main(["--source", *files[:count], "--patch", "8", "--stride", "4", "--out",
              str(tmp_path / "x.lmdb"), "--quiet", "--force"])
        meta = LMDBDataset(tmp_path / "x.lmdb").meta
        assert (meta["validation"], [source["part"] for source in meta["sources"]]) == (
            validation, parts)


def test_sources_are_known_by_their_content(tmp_path):
    cube = np.random.default_rng(0).integers(0, 999, (3, 16, 24))
    np.savez(tmp_path / "a.npz", x=cube.astype(np.int16), layout="BHW")
    scipy.io.savemat(tmp_path / "b.mat", {"x": cube.transpose(1, 2, 0).astype(float)})
    cube[0, 0, 0] += 1
    np.savez(tmp_path / "c.npz", x=cube.astype(np.int16), layout="BHW")
    paths = [tmp_path / name for name in ("a.npz", "b.mat", "c.npz")]
    meta = build_database(tmp_path / "x.lmdb", paths, CARD, val_last=0)
    a, b, c = (source["sha256"] for source in meta["sources"])
    assert a == b != c
    assert ([source["regions"] for source in meta["sources"]] == 3 * [[[0, 0, 16, 24]]]
            and meta["card"] == "scenes")


TESTING = replace(CARD, size=(32, 32), test_region=(16, 16, 16, 16))


def test_scenes_of_one_name_are_refused_before_anything_is_built_when_each_has_a_test_cube(
        tmp_path, monkeypatch):
    files = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        files.append(scene_file(tmp_path / folder, "field", side=32))
    monkeypatch.setattr(building, "open_as", lambda *_: pytest.fail("a scene was read"))
    with pytest.raises(UserError, match=r"one/field.npy and .*two/field.npy have the same name"):
        build_database(tmp_path / "f.lmdb", files, TESTING, test_out=tmp_path / "test")
    assert left_in(tmp_path) == ["one", "two"]


@pytest.mark.parametrize("force", [False, True])
def test_test_cubes_appear_together_or_not_at_all(tmp_path, monkeypatch, force):
    files = [scene_file(tmp_path, name, side=32, seed=ord(name)) for name in "ab"]
    if force:
        build_database(tmp_path / "f.lmdb", files, TESTING, test_out=tmp_path / "test")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.m*") if path.is_file()}

    def write(path, scene):
        if scene.name == "b_test":
            raise UserError(f"Writing {path} failed.") from OSError(
                errno.ENOSPC, "No space left on device")
        write_scene(path, scene)

    monkeypatch.setattr(building, "write_scene", write)
    with pytest.raises(UserError, match=r"disk is full while writing \S*/test/b_test.mat"):
        build_database(tmp_path / "f.lmdb", files, TESTING, test_out=tmp_path / "test", force=force,
                       seed=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.m*") if path.is_file()} == before
    assert left_in(tmp_path / "test") == (["a_test.mat", "b_test.mat"] if force else [])


# --- what is refused, and what is left then -------------------------------------------------------

def test_what_cannot_be_built_is_refused_by_name_and_leaves_nothing(scenes, tmp_path):
    tiny, other = scene_file(tmp_path, "tiny", side=7), scene_file(tmp_path, "other", bands=5)
    broken = tmp_path / "broken.npy"
    broken.write_bytes(scenes[1].read_bytes()[:200])
    for files, card, options, words in (
            ([tmp_path / "nowhere"], CARD, {}, "nowhere"),
            ([scenes[0], broken], CARD, {}, r"broken\.npy"),
            ([tiny], CARD, {}, r"tiny\.npy is 7x7 pixels.*8x8.*--patch"),
            ([scenes[0], other], CARD, {}, r"other\.npy has 5 bands and a\.npy has 3"),
            (scenes, replace(CARD, bands=31), {}, r"a\.npy.*31"),
            (scenes, CARD, {"val_scenes": ["nobody"]}, "nobody.*a, b, c"),
            (scenes, CARD, {"val_scenes": ["a", "b", "c"]}, "Every scene"),
            (scenes, CARD, {"val_last": 27}, "27 of 27")):
        with pytest.raises(UserError, match=words):
            build_database(tmp_path / "x.lmdb", files, card, **options)
        assert left_in(tmp_path) == []


def test_bands_that_are_not_those_of_the_first_scene_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, (name, first) in enumerate((("a", 400), ("b", 400.4), ("c", 430))):
        scene = read_scene(scene_file(tmp_path, name, seed=seed), layout="BHW")
        scene.wavelengths = first + 10.0 * np.arange(3)
        write_scene(tmp_path / f"{name}.npz", scene)
    files = [tmp_path / f"{name}.npz" for name in "abc"]
    build_database(tmp_path / "x.lmdb", files, CARD)
    said = capsys.readouterr().err
    assert "c.npz: its bands lie up to 30 nm from those of the first scene" in said
    assert "b.npz: its bands" not in said


def test_skip_bad_leaves_it_out_and_names_it(scenes, tmp_path, capsys):
    scenes[1].write_bytes(scenes[1].read_bytes()[:200])
    meta = build_database(tmp_path / "x.lmdb", scenes, CARD, val_last=1, skip_bad=True)
    assert meta["skipped"] == ["b.npy"] and meta["count"] == 18
    assert "b.npy" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"None of the 1 scenes.*b\.npy"):
        build_database(tmp_path / "y.lmdb", scenes[1:2], CARD, skip_bad=True)


def test_an_existing_database_is_replaced_only_with_force(scenes, database):
    before = everything(database)
    with pytest.raises(UserError, match=r"abc\.lmdb exists already.*--force"):
        build_database(database, scenes[:1], CARD)
    assert np.array_equal(everything(database), before)
    build_database(database, scenes[:1], CARD, val_last=1, force=True)
    assert len(LMDBDataset(database)) == 9 and np.array_equal(everything(database), before[:9])


@pytest.mark.parametrize("kind", ["file", "folder", "database with something else"])
def test_what_is_no_database_is_never_replaced(scenes, database, tmp_path, kind):
    place = tmp_path / "precious"
    if kind == "file":
        place.write_text("thesis")
    elif kind == "folder":
        place.mkdir()
        (place / "thesis").write_text("thesis")
    else:
        shutil.copytree(database, place)
        (place / "thesis").write_text("thesis")
    with pytest.raises(UserError, match="precious exists and is not an LMDB database"):
        build_database(place, scenes, CARD, force=True)
    assert (place if kind == "file" else place / "thesis").read_text() == "thesis"


def test_an_interrupted_build_leaves_what_was_there(scenes, database, tmp_path, monkeypatch):
    def interrupted(*args):
        yield from list(extract_patches(*args))[:2]
        raise KeyboardInterrupt

    before = everything(database)
    monkeypatch.setattr(building, "extract_patches", interrupted)
    for out in (tmp_path / "new.lmdb", database):
        with pytest.raises(KeyboardInterrupt):
            build_database(out, scenes, CARD, force=True)
    assert left_in(tmp_path) == ["abc.lmdb"] and np.array_equal(everything(database), before)


def test_a_killed_build_leaves_nothing_under_the_final_name_and_can_be_repeated(
        scenes, tmp_path, monkeypatch):
    def killed(*args):
        yield from list(extract_patches(*args))[:2]
        os._exit(9)

    if (child := os.fork()) == 0:
        monkeypatch.setattr(building, "extract_patches", killed)
        build_database(tmp_path / "x.lmdb", scenes, CARD)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (tmp_path / "x.lmdb").exists()
    assert build_database(tmp_path / "x.lmdb", scenes, CARD, val_last=2)["count"] == 27


def test_a_full_disk_is_said_in_one_sentence_and_leaves_nothing(tmp_path):
    scene = scene_file(tmp_path, "large", bands=20, side=128)
    with room_for(1 << 19), pytest.raises(UserError, match=r"x\.lmdb.*space"):
        build_database(tmp_path / "x.lmdb", [scene], CARD, map_size_mb=1)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(("error", "words"),
                         [(lmdb.DiskError("mdb_put: x"), "disk is full while writing"),
                          (lmdb.Error("mdb_put: x"), "Cannot write")])
def test_lmdbs_errors_are_said_without_its_functions_and_temporary_paths(
        scenes, tmp_path, monkeypatch, error, words):
    class Full:
        def begin(self, **kwargs):
            raise error

        def close(self):
            pass

    monkeypatch.setattr(lmdb, "open", lambda *args, **kwargs: Full())
    with pytest.raises(UserError, match=words) as said:
        build_database(tmp_path / "x.lmdb", scenes, CARD)
    assert f"{tmp_path / 'x.lmdb'}" in str(said.value)
    assert "mdb_" not in str(said.value) and "partial" not in str(said.value)


# --- the command line -----------------------------------------------------------------------------

def test_without_arguments_the_sample_scenes_are_rendered_and_cut(tmp_path, monkeypatch, capsys):
    small = make_samples.make_samples
    monkeypatch.setattr(make_samples, "make_samples",
                        lambda folder: small(folder, train=8, test=0, side=64, remote=(160, 128)))
    monkeypatch.setattr(steps, "seconds_per_step", lambda plan, count: 0.6 * (plan.total == 1000))
    main([])
    said = capsys.readouterr().out
    assert ("next: python hsi_sr.py -a biqrnn_16_5 --recipe fast --iterations 1000\n"
            "      about 10 min here" in said)
    assert "from 8 scenes" in said
    meta = LMDBDataset("data/lmdb/sample.lmdb").meta
    assert meta["shape"] == [31, 32, 32] and meta["sources"][-1]["file"] == "natural_08.mat"
    assert meta["validation"] == meta["sources"][-1]["patches"]
    with pytest.raises(UserError, match=r"sample\.lmdb exists already.*--force"):
        main([])
    main(["--dataset", "sample_remote"])
    assert LMDBDataset("data/lmdb/sample_remote.lmdb").shape == (103, 32, 32)
    assert read_scene("data/test/sample_remote/village_test.mat").cube.shape == (103, 64, 64)


def test_a_database_on_which_a_training_would_be_refused_names_no_training(tmp_path, capsys):
    out = tmp_path / "x.lmdb"
    main(["--source", str(scene_file(tmp_path, "a", side=40)), "--patch", "8", "--val-last", "0",
          "--out", str(out)])
    said = capsys.readouterr().out
    assert f"a training on it would be refused: {out} holds no validation patches" in said
    assert "next:" not in said


def test_options_change_what_a_card_says(tmp_path):
    scene_file(tmp_path, "a", side=40)
    scene_file(tmp_path, "b", side=40, seed=1)
    out = tmp_path / "x.lmdb"
    main(["--source", str(tmp_path), "--patch", "8", "--stride", "8", "4", "--zooms", "1", ".5",
          "--out", str(out), "--augment", "2", "--dtype", "float16", "--val-scenes", "a",
          "--quiet"])
    meta = LMDBDataset(out).meta
    assert (meta["count"], meta["validation"], meta["dtype"], meta["zooms"]) == (
        3 * (25 + 16), 41, "float16", [1, 0.5])


def test_a_bands_x_pixels_cube_may_be_given_its_size(tmp_path):
    np.save(tmp_path / "flat.npy", np.random.default_rng(0).random((3, 16 * 24), dtype=np.float32))
    main(["--source", str(tmp_path / "flat.npy"), "--patch", "8", "--out", str(tmp_path / "x.lmdb"),
          "--quiet", "--size", "16", "24", "--val-last", "1", "--layout", "pixels-rows"])
    assert LMDBDataset(tmp_path / "x.lmdb").meta["count"] == 6


def test_strides_that_do_not_fit_the_zooms_are_refused(scenes):
    with pytest.raises(UserError, match="--stride has 2 values for 3 zooms"):
        main(["--source", *map(str, scenes), "--zooms", "1", ".5", ".25", "--stride", "8", "4"])


def test_bad_input_ends_with_one_line_and_a_non_zero_exit(tmp_path):
    run = typed(f"utility/lmdb_data.py --dataset icvll --out {tmp_path}/x.lmdb")
    assert (run.returncode == 2 and run.stderr.startswith("error: ") and run.stderr.count("\n") == 1
            and "icvl" in run.stderr)


# --- reading --------------------------------------------------------------------------------------

def test_a_patch_may_be_written_to(database):
    data = LMDBDataset(database)
    data[0][:] = 0
    assert data[0].any() and data.shape == (3, 8, 8) and data[-1].shape == (3, 8, 8)
    with pytest.raises(IndexError):
        data[27]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_what_the_parent_reads(database, context):
    data = LMDBDataset(database)
    first = data[0].copy()  # the parent's environment is open before the workers start
    batches = list(DataLoader(data, 9, num_workers=2 if context == "fork" else 1,
                              multiprocessing_context=context))
    assert np.array_equal(np.concatenate([batch.numpy() for batch in batches]),
                          everything(database))
    assert np.array_equal(data[0], first)


def test_a_missing_database_and_what_is_none_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"no database .*gone.*utility/lmdb_data\.py"):
        LMDBDataset(tmp_path / "gone")
    with pytest.raises(UserError, match=r"is not an LMDB database.*data\.mdb"):
        LMDBDataset(tmp_path)
    for content in (b"", b"not a database at all" * 1000):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(UserError, match="file is not an LMDB database"):
            LMDBDataset(tmp_path / "file")


def test_a_scene_that_is_given_as_a_database_is_told_how_it_becomes_one(tmp_path):
    scene = scene_file(tmp_path, "truth")
    folder = tmp_path / "scenes"
    folder.mkdir()
    for path, name in ((scene, "truth"), (folder, "scenes")):
        with pytest.raises(UserError) as told:
            prepare(configure({"data": str(path)}))
        assert str(told.value).endswith(
            f": python utility/lmdb_data.py --source {path} --out data/lmdb/{name}.lmdb")
        assert "truncated" not in str(told.value)


@pytest.mark.parametrize("kept", [100, 8192, 0.5, -1])
def test_a_truncated_database_is_refused_and_not_a_crash(database, kept):
    file = database / "data.mdb"
    size = file.stat().st_size
    os.truncate(file, int(size * kept) if kept == 0.5 else size + kept if kept < 0 else kept)
    with pytest.raises(UserError, match=r"abc\.lmdb.*truncated"):
        LMDBDataset(database)


def put(database: Path, key: bytes, value: bytes | None) -> None:
    with (lmdb.open(str(database), map_size=1 << 24, lock=False) as environment,
          environment.begin(write=True) as transaction):
        if value is None:
            transaction.delete(key)
        else:
            transaction.put(key, value)


def test_a_corrupt_or_missing_record_is_named_by_its_key(database):
    put(database, b"00000004", b"short")
    data = LMDBDataset(database)
    assert data[3].shape == (3, 8, 8)
    with pytest.raises(UserError, match=r"abc\.lmdb.*00000004 has 5 bytes.*768"):
        data[4]


def test_a_database_that_lacks_records_is_refused(database):
    put(database, b"00000009", None)
    with pytest.raises(UserError, match="holds 26 records and says 27"):
        LMDBDataset(database)


@pytest.mark.parametrize(("meta", "message"),
                         [(b"{", "cannot be used"), (b"[]", "cannot be used"),
                          (b'{"version": 2}', "version 2.*reads version 1"),
                          (b'{"version": 1}', "shape"),
                          (b'{"version": 1, "shape": [3, 8], "count": 27, "validation": 0, '
                           b'"dtype": "float32"}', "sizes"),
                          (b'{"version": 1, "shape": [3, 8, 8], "count": 27, "validation": 28, '
                           b'"dtype": "float32"}', "sizes"),
                          (b'{"version": 1, "shape": [3, 8, 8], "count": 27, "validation": 2, '
                           b'"dtype": "int8"}', "int8")])
def test_meta_that_cannot_be_used_is_refused(database, meta, message):
    put(database, b"__meta__", meta)
    with pytest.raises(UserError, match=rf"abc\.lmdb.*{message}"):
        LMDBDataset(database)


# --- published databases --------------------------------------------------------------------------

PATCH = np.random.default_rng(0).random((3, 5, 4), dtype=np.float32)


def datum(patch: np.ndarray = PATCH, how: str = "floats", **fields) -> bytes:
    channels, height, width = patch.shape
    message = message_class()(**{"channels": channels, "height": height, "width": width} | fields)
    if how == "floats":
        message.float_data.extend(patch.ravel().tolist())
    else:
        message.data = (patch.astype("<f4").tobytes() if how == "raw floats"
                        else np.rint(patch * 255).astype(np.uint8).tobytes())
    return message.SerializeToString()


def published(path: Path, records: list[bytes]) -> Path:
    with (lmdb.open(str(path), map_size=1 << 24) as environment,
          environment.begin(write=True) as transaction):
        for i, record in enumerate(records):
            transaction.put(f"{i:08d}".encode(), record)
    return path


@pytest.mark.parametrize(("how", "tolerance"),
                         [("floats", 0), ("raw floats", 0), ("bytes", 0.5 / 255 + 1e-6)])
def test_a_datum_is_decoded_as_protobuf_wrote_it(how, tolerance):
    got = decode_datum(datum(how=how))
    assert got.shape == (3, 5, 4) and got.dtype == np.float32 and got.flags.writeable
    np.testing.assert_allclose(got, PATCH, rtol=0, atol=tolerance)


def test_float_data_in_several_runs_among_other_fields_is_joined():
    values = PATCH.ravel()
    unpacked = b"".join(b"\x35" + struct.pack("<f", value) for value in values[:7])
    packed = b"\x32\x04" + struct.pack("<f", values[7])
    rest = b"".join(b"\x35" + struct.pack("<f", value) for value in values[8:])
    sizes = b"\x08\x03\x10\x05\x18\x04"
    # fields 8 to 10 of other wire types
    unknown = b"\x41" + bytes(8) + b"\x4a\x03abc" + b"\x55" + bytes(4)
    assert np.array_equal(decode_datum(unpacked + sizes + packed + unknown + rest), PATCH)


@pytest.mark.parametrize(("record", "message"),
                         [(b"", "size 0x0x0"), (datum()[:-1], "damaged"),
                          (datum()[:-5], "59 values"), (datum(how="raw floats")[:-4], "damaged"),
                          (datum(width=5), "60 values"),
                          (datum(how="bytes", height=6), "60 values"),
                          (datum(encoded=True), "encoded"), (b"\x08\x03\x80", "damaged"),
                          (b"\x0b", "damaged"), (b"\x08\x01\x10\x01\x18\x01\x32\x03abc", "damaged"),
                          (b"\x08" + b"\xff" * 12, "damaged")])
def test_a_malformed_datum_is_refused(record, message):
    with pytest.raises(ValueError, match=message):
        decode_datum(record)


def test_a_published_database_is_read_without_meta(tmp_path):
    patches = np.random.default_rng(0).random((21, 3, 5, 4), dtype=np.float32)
    path = published(tmp_path / "old.lmdb", [datum(patch) for patch in patches])
    data = LMDBDataset(path)
    assert data.shape == (3, 5, 4) and data.meta["count"] == 21 and data.meta["format"] == "datum"
    assert np.array_equal(everything(path), patches)
    assert (len(LMDBDataset(path, "train")), len(LMDBDataset(path, "validation"))) == (19, 2)
    assert np.array_equal(pickle.loads(pickle.dumps(data))[20], patches[20])


def test_a_database_in_a_single_file_is_read_too(tmp_path):
    path = published(tmp_path / "old.lmdb", [datum(), datum()])
    (path / "data.mdb").rename(tmp_path / "single.mdb")
    assert np.array_equal(LMDBDataset(tmp_path / "single.mdb")[1], PATCH)


def test_a_corrupt_datum_is_named_by_its_key(tmp_path):
    data = LMDBDataset(published(tmp_path / "old.lmdb", [datum(), datum()[:-1], datum(PATCH[:2])]))
    assert np.array_equal(data[0], PATCH)
    with pytest.raises(UserError, match=r"old\.lmdb.*00000001.*damaged"):
        data[1]
    with pytest.raises(UserError, match=r"old\.lmdb.*00000002 is \(2, 5, 4\)"):
        data[2]


@pytest.mark.parametrize("records", [[], [b"\x00" * 768], [b"hello"]])
def test_a_database_of_something_else_is_refused(tmp_path, records):
    with pytest.raises(UserError, match=r"old\.lmdb.*neither"):
        LMDBDataset(published(tmp_path / "old.lmdb", records))


def test_a_database_that_is_replaced_while_it_is_read_is_refused(scenes, database):
    data = LMDBDataset(database)
    copy = pickle.loads(pickle.dumps(data))
    data[0]
    build_database(database, scenes[:1], CARD, val_last=1, force=True)
    LMDBDataset(database)[0]
    for old in (data, copy):
        with pytest.raises(UserError, match="replaced while it was being read"):
            old[0]


def test_two_builds_of_one_name_do_not_mix(scenes, tmp_path):
    with writing_database(tmp_path / "one.lmdb") as writer:
        with pytest.raises(UserError, match="being written by another process"):
            build_database(tmp_path / "one.lmdb", scenes, CARD)
        writer.write(np.zeros((2, 3, 4, 4), np.float32))
        writer.finish()
    assert left_in(tmp_path) == ["one.lmdb"]
