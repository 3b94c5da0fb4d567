"""Writing whole or not at all: what is replaced, what never is, what a failure leaves."""
from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from limits import room_for

from utility.system import files
from utility.system.errors import UserError
from utility.system.files import default_path, replacing, write_json


def make_folder(path: Path, **contents: str) -> Path:
    path.mkdir(parents=True)
    for name, text in contents.items():
        (path / name).write_text(text)
    return path


def write_folder(path: str | Path, text: str = "new", **how) -> None:
    with replacing(path, **how) as temporary:
        make_folder(temporary, ours=text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(words: str, path: str | Path, **how) -> None:
    """Refused in one sentence before anything is built."""
    with pytest.raises(UserError, match=words) as error, replacing(path, **how):
        pytest.fail("the work was begun")
    assert "\n" not in str(error.value)


def test_default_places_are_the_repositorys_unless_a_variable_names_another(tmp_path, monkeypatch):
    monkeypatch.delenv("BI3DQRNN_HOME")
    root = Path(__file__).resolve().parent.parent
    assert default_path("runs") == root / "runs"
    monkeypatch.chdir(root)
    assert default_path("runs") == Path("runs")
    monkeypatch.setenv("BI3DQRNN_HOME", str(tmp_path))
    assert default_path("runs") == tmp_path / "runs"


def test_a_file_replaces_a_file_and_leaves_nothing_beside_it(tmp_path):
    write_json("a.json", 1)
    write_json("a.json", 2)
    assert Path("a.json").read_text() == "2\n" and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
def test_what_fails_leaves_what_was_there(tmp_path, fault):
    write_json("a.json", 1)
    with pytest.raises(fault), replacing("a.json") as temporary:
        temporary.write_text("half")
        raise fault
    assert Path("a.json").read_text() == "1\n" and names(tmp_path) == ["a.json"]


# --- folders that are replaced, and those that are not --------------------------------------------

@pytest.mark.parametrize("inside", [{}, {"ours": "old"}, {"ours": "old", "other": "old"}])
def test_an_empty_folder_and_one_of_ours_is_replaced(tmp_path, inside):
    make_folder(tmp_path / "out", **inside)
    write_folder("out", marks=("ours",))
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["ours"]
    assert Path("out/ours").read_text() == "new"


@pytest.mark.parametrize("marks", [(), ("ours",)])
def test_a_folder_of_something_else_is_never_replaced(tmp_path, marks):
    make_folder(tmp_path / "home", thesis="thesis", photos="photos")
    refused("home holds photos, thesis and .*--force does not replace it", "home", marks=marks)
    assert names(tmp_path / "home") == ["photos", "thesis"] and names(tmp_path) == ["home"]


def test_a_folder_that_is_filled_meanwhile_is_not_replaced(tmp_path):
    make_folder(tmp_path / "out")
    with (pytest.raises(UserError, match="out holds thesis"),
          replacing("out", marks=("ours",)) as temporary):
        make_folder(temporary, ours="new")
        Path("out/thesis").write_text("thesis")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["thesis"]


def test_a_folder_does_not_replace_a_file_nor_a_file_a_folder(tmp_path):
    Path("thesis").write_text("thesis")
    refused("thesis is a file", "thesis", marks=("ours",))
    make_folder(tmp_path / "empty")
    with pytest.raises(UserError, match=r"Cannot write empty .*choose another"):
        write_json("empty", 1)
    assert Path("thesis").read_text() == "thesis" and names(tmp_path) == ["empty", "thesis"]


@pytest.mark.parametrize("path", [".", "..", "sub/..", "../here", "/"])
def test_the_working_folder_is_never_replaced(tmp_path, monkeypatch, path):
    monkeypatch.chdir(make_folder(tmp_path / "here", ours="old"))
    make_folder(Path("sub"))
    refused("is the folder you are in, or above it|is no name", path, marks=("ours",))
    refused("exists already|is no name", path, overwrite=False, marks=("ours",))
    assert names(tmp_path / "here") == ["ours", "sub"] and names(tmp_path) == ["here"]


def test_a_link_to_a_folder_is_replaced_and_the_folder_kept(tmp_path):
    make_folder(tmp_path / "real", ours="old")
    Path("out").symlink_to("real")
    write_folder("out", marks=("ours",))
    assert Path("out/ours").read_text() == "new" and Path("real/ours").read_text() == "old"


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_a_folder_is_put_back_when_the_new_one_cannot_take_its_name(tmp_path, monkeypatch, fault):
    make_folder(tmp_path / "out", ours="old")
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise fault
        real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises((KeyboardInterrupt, UserError)):
        write_folder("out", marks=("ours",))
    assert names(tmp_path) == ["out"] and Path("out/ours").read_text() == "old"


# --- failures -------------------------------------------------------------------------------------

def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path):
    write_json("a.json", 1)
    with room_for(10), pytest.raises(UserError, match=r"disk is full while writing a.json"):
        write_json("a.json", "x" * 100)
    assert Path("a.json").read_text() == "1\n" and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
        "number",
        [errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT, errno.EROFS, errno.EIO])
def test_a_name_that_cannot_be_taken_is_said_in_one_sentence(tmp_path, monkeypatch, number):
    def fail(source, target):
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(UserError, match=f"Cannot write a.json .{os.strerror(number)}"):
        write_json("a.json", 1)
    assert names(tmp_path) == []


def test_a_folder_that_vanishes_meanwhile_is_said(tmp_path):
    with pytest.raises(UserError, match="Cannot write sub/a"), replacing("sub/a") as temporary:
        temporary.parent.rmdir()
        temporary.write_text("new")


def test_a_fault_in_reading_something_else_is_not_blamed_on_the_file_that_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"), replacing("a.json"):
        Path("source").read_text()


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    Path("file").touch()
    refused("Cannot make file/sub/a.json", "file/sub/a.json")


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync",
                        lambda number: (order.append(os.fstat(number).st_size), real_sync(number)))
    monkeypatch.setattr(files.os, "replace",
                        lambda a, b: (order.append("renamed"), real_replace(a, b)))
    write_json("a.json", "text")
    assert order == [7, "renamed"]


def python(code: str, **how) -> subprocess.CompletedProcess:
    """Run code in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.run([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True,
                          **how)


def killed_in(code: str) -> None:
    """Run code in a process that kills itself where the code says die()."""
    assert python("import os\nfrom utility.system.files import *\ndef die(): os.kill(os.getpid(), "
                  f"9)\n{code}").returncode


def test_the_next_run_sweeps_what_killed_processes_left_and_nothing_else(tmp_path):
    killed_in("with replacing('data') as t: t.mkdir(); die()")
    killed_in("with replacing('file.txt') as t: t.write_text('x'); die()")
    # the second process swept what the first one left
    assert [name[:6] for name in names(tmp_path)] == [".file."]
    (tmp_path / ".of.someone.partial").touch()
    with replacing("other.txt") as alive:
        alive.write_text("a")
        write_json("data.json", 1)
        assert alive.exists()
    assert names(tmp_path) == [".of.someone.partial", "data.json", "other.txt"]


def test_a_result_that_lost_its_name_in_a_swap_gets_it_back(tmp_path, capsys):
    make_folder(tmp_path / "data", ours="old")
    killed_in("""
real = os.replace
def replace(a, b):
    real(a, b)
    die()
os.replace = replace
with replacing('data', marks=('ours',)) as t: t.mkdir(); (t / 'ours').write_text('new')
""")
    assert "data" not in names(tmp_path)
    files.sweep(tmp_path)
    assert names(tmp_path) == ["data"] and (tmp_path / "data/ours").read_text() == "old"
    assert "data" in capsys.readouterr().err


def test_one_name_is_written_by_one_process_at_a_time(tmp_path):
    with files.locked(tmp_path / "data"):
        with (pytest.raises(UserError, match="data is being written by another process"),
              files.locked(tmp_path / "data")):
            pass
        with files.locked(tmp_path / "other"):
            pass
    with files.locked(tmp_path / "data"):
        pass
    assert names(tmp_path) == []


def test_sigterm_ends_a_script_like_ctrl_c(tmp_path):
    code = """
import os, signal
from utility.system.errors import run_script
from utility.system.files import default_path, replacing
def main():
    with replacing('data') as t:
        t.mkdir()
        os.kill(os.getpid(), signal.SIGTERM)
        import time; time.sleep(5)
run_script(main)
"""
    done = python(code)
    assert (done.returncode, done.stderr, names(tmp_path)) == (130, "interrupted\n", [])


@pytest.mark.parametrize("name", ["unlink", "rmtree"])
def test_a_signal_while_something_is_removed_waits_for_the_end_of_it(tmp_path, monkeypatch, name):
    make_folder(tmp_path / "data", ours="old")
    owner = shutil if name == "rmtree" else Path
    real = getattr(owner, name)
    monkeypatch.setattr(
        owner, name,
        lambda *args, **more: (signal.raise_signal(signal.SIGINT), real(*args, **more)))
    with pytest.raises(KeyboardInterrupt), files.locked(tmp_path / "data"):
        write_folder("data", marks=("ours",))
    assert names(tmp_path) == ["data"] and (tmp_path / "data/ours").read_text() == "new"


@pytest.mark.parametrize(
        "error",
        ["MemoryError()", "RuntimeError(\"DefaultCPUAllocator: can't allocate memory: 9 bytes\")"])
def test_too_little_memory_is_one_sentence(error):
    done = python("from utility.system.errors import run_script\ndef main(): raise "
                  f"{error}\nrun_script(main)")
    assert (done.returncode == 2 and done.stderr.startswith("error: The memory is not enough")
            and done.stderr.count("\n") == 1)


def test_a_pipe_that_is_closed_early_ends_a_script_quietly():
    read, write = os.pipe()
    os.close(read)
    done = python(
        "from utility.system.errors import run_script\nrun_script(lambda: print('a line'))",
        stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
