"""Whole or not at all: after any failure the target is the old one or the new one."""

import errno
import mmap
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from faults import FULL, Fault, contents, failing, put
from minibit.base import open_whole, whole_file, whole_files, whole_path

OLD, NEW = b"old" * 1000, b"new" * 2000
CALLS = ("open", "mkdir", "fsync", "link", "replace", "rename", "close", "chmod")


def write_file(
    folder: Path,
    overwrite: bool = True,
    name: str = "a",
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    """Write one file in two pieces."""
    with open_whole(folder / name, overwrite=overwrite) as file:
        file.write(NEW[:100])
        meanwhile()
        file.write(NEW[100:])


def write_folder(
    folder: Path, overwrite: bool = True, meanwhile: Callable[[], object] = lambda: None
) -> None:
    """Write a folder of two files, one of them by a writer of its own."""
    with whole_path(folder / "b", overwrite=overwrite) as part:
        part.mkdir()
        (part / "x").write_bytes(NEW)
        with open_whole(part / "y") as file:
            file.write(NEW)
        meanwhile()


def write_files(folder: Path, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Write two files into one folder."""
    with whole_files(folder, last="a") as room:
        (room / "a").write_bytes(NEW)
        (room / "b").write_bytes(NEW)
        meanwhile()


WRITERS: dict[str, tuple[Callable[[Path], None], dict[str, bytes], dict[str, bytes]]] = {
    "a new file": (lambda folder: write_file(folder, False), {}, {"a": NEW}),
    "a file again": (write_file, {"a": OLD}, {"a": NEW}),
    "a new folder": (lambda folder: write_folder(folder, False), {}, {"b/x": NEW, "b/y": NEW}),
    "a folder again": (write_folder, {"b/x": OLD, "b/z": OLD}, {"b/x": NEW, "b/y": NEW}),
    "files of a folder": (lambda folder: write_files(folder / "c"), {}, {"c/a": NEW, "c/b": NEW}),
    "files beside others": (
        lambda folder: write_files(folder / "c"), {"c/z": OLD}, {"c/a": NEW, "c/b": NEW, "c/z": OLD}
    ),
}  # fmt: skip


@pytest.mark.parametrize("swaps", [True, False], ids=["swap", "two renames"])
@pytest.mark.parametrize("error", [Fault(), FULL], ids=["stop", "full"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_call_fails_the_old_or_the_new_is_there_whole(
    writer, call, error, swaps, tmp_path, monkeypatch
):
    """Fail at the 1st, 2nd, ... call of each kind: never neither, and nothing else is left."""
    write, old, new = WRITERS[writer]
    if not swaps:
        monkeypatch.setattr(whole_file, "_swapped", lambda part, path: False)
    number = 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        put(folder, old)
        raised = None
        with failing(call, number, error) as count:
            try:
                write(folder)
            except (Fault, OSError) as caught:
                raised = caught
        files = contents(folder)
        assert files in (old, new)
        assert files == new or raised is not None
        assert not [path for path in folder.rglob("*") if "minibit" in path.name]
        if count[0] < number:
            break
    assert files == new


DYING = """
import os, sys
from pathlib import Path
from minibit.base import open_whole, whole_path
folder, kind, step = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if step != "write":
    setattr(os, step, lambda *a, **k: os._exit(9))
with whole_path(folder / "b", overwrite=kind != "a new file") as part:
    if kind == "a folder again":
        part.mkdir()
        (part / "x").write_bytes(b"new")
    else:
        part.write_bytes(b"new")
    if step == "write":
        os._exit(9)
"""


@pytest.mark.parametrize("step", ["write", "fsync", "link", "replace", "rmdir"])
@pytest.mark.parametrize("kind", ["a new file", "a file again", "a folder again"])
def test_a_process_that_dies_leaves_the_old_or_the_new_and_the_next_writer_clears_up(
    kind, step, tmp_path
):
    """``os._exit`` runs no cleanup: the target is whole, and the lock ended with the process."""
    name = "b/x" if kind == "a folder again" else "b"
    old = {} if kind == "a new file" else {name: b"old"}
    put(tmp_path, old)
    done = subprocess.run([sys.executable, "-c", DYING, tmp_path, kind, step], check=False)
    never = {"a new file": ("replace",), "a file again": ("link",)}
    assert done.returncode == (0 if step in never.get(kind, ("link", "replace")) else 9)
    left = {n: data for n, data in contents(tmp_path).items() if "minibit" not in n}
    assert left in (old, {name: b"new"})
    with whole_path(tmp_path / "b", overwrite=True) as part:
        put(part.parent, {name: b"next"})
    assert contents(tmp_path) == {name: b"next"}
    assert os.listdir(tmp_path) == ["b"]


def test_a_file_that_came_to_exist_meanwhile_is_never_replaced(tmp_path, monkeypatch):
    """With links and without, for one file and for the files of a folder."""
    for path in (tmp_path / "a0", tmp_path / "a1"):
        with pytest.raises(FileExistsError, match="exists; nothing was changed"):
            write_file(tmp_path, False, path.name, partial(path.write_bytes, OLD))
        assert contents(tmp_path)[path.name] == OLD
        with pytest.raises(FileExistsError, match="exists"):
            write_files(tmp_path, lambda: (tmp_path / "a").write_bytes(OLD))
        assert "b" not in contents(tmp_path)
        assert contents(tmp_path)["a"] == OLD
        (tmp_path / "a").unlink()

        def no_links(*args, **options):
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", no_links)
    write_file(tmp_path)
    assert contents(tmp_path) == {"a0": OLD, "a1": OLD, "a": NEW}


def test_a_folder_that_came_to_exist_meanwhile_is_never_replaced(tmp_path):
    """Unless it is empty."""
    with pytest.raises(FileExistsError, match="exists"):
        write_folder(tmp_path, False, lambda: put(tmp_path, {"b/x": OLD}))
    assert contents(tmp_path) == {"b/x": OLD}


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_there_is_refused_before_anything_is_written(overwrite, tmp_path):
    """Without `overwrite`, anything; with it, what is of another kind: a folder, a pipe."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nothing")
    for name in ("folder", "pipe") if overwrite else ("folder", "pipe", "dangling"):
        with pytest.raises(FileExistsError), open_whole(tmp_path / name, overwrite=overwrite) as f:
            f.write(NEW)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_file(tmp_path / "nowhere")
    assert sorted(os.listdir(tmp_path)) == ["dangling", "folder", "pipe"]


def test_of_two_writers_of_one_file_the_second_is_told(tmp_path):
    """The lock holds between threads as between processes; another file is free."""
    with open_whole(tmp_path / "a") as file:
        file.write(NEW)
        errors = []

        def second():
            try:
                write_file(tmp_path)
            except BlockingIOError as error:
                errors.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        write_folder(tmp_path)
    assert "another writer is at" in errors[0]
    assert contents(tmp_path)["a"] == NEW


def test_many_writers_at_once_leave_one_whole_file_and_no_other(tmp_path):
    """Each of 8 threads writes its own letter, 30 times; those who are told try no more."""
    path = tmp_path / "a"

    def write(letter):
        for _ in range(30):
            try:
                with open_whole(path, overwrite=True) as file:
                    file.write(letter * 1000)
                    file.write(letter * 1000)
            except BlockingIOError:
                pass

    threads = [threading.Thread(target=write, args=(bytes([65 + i]),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    data = path.read_bytes()
    assert len(data) == 2000
    assert len(set(data)) == 1
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("locks", ["none", "refused"])
def test_without_locks_a_folder_that_is_there_is_the_lock(locks, tmp_path, monkeypatch):
    """As on Windows, and on file systems that refuse them: the message names what to remove."""
    if locks == "none":
        monkeypatch.setattr(whole_file, "LOCKS", False)
    else:

        def refused(*args):
            raise OSError(errno.ENOLCK, "no locks")

        monkeypatch.setattr(whole_file.fcntl, "flock", refused)
    write_file(tmp_path)
    (tmp_path / ".a.minibit-part").mkdir()
    with pytest.raises(BlockingIOError, match=r"then remove .*\.a\.minibit-part"):
        write_file(tmp_path)
    (tmp_path / ".a.minibit-part").rmdir()
    write_file(tmp_path)
    assert contents(tmp_path) == {"a": NEW}


def test_permissions_are_those_of_a_new_file_or_of_the_old_one(tmp_path):
    """The umask decides for a new one; one that is overwritten keeps its own."""
    before = os.umask(0o027)
    try:
        write_file(tmp_path)
        write_folder(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o750
    (tmp_path / "a").chmod(0o604)
    write_file(tmp_path)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o604


def test_a_mapped_old_file_lives_on(tmp_path):
    """Who reads the old file goes on reading it, to its last byte."""
    put(tmp_path, {"a": OLD})
    with (tmp_path / "a").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with open_whole(tmp_path / "a", overwrite=True) as file:
        file.write(b"short")
    assert mapped[:] == OLD
    assert contents(tmp_path) == {"a": b"short"}


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    """As writing in place would do."""
    put(tmp_path, {"elsewhere/real": OLD})
    (tmp_path / "a").symlink_to("elsewhere/real")
    write_file(tmp_path)
    assert (tmp_path / "a").is_symlink()
    assert contents(tmp_path) == {"a": NEW, "elsewhere/real": NEW}


@pytest.mark.parametrize("writer", WRITERS)
def test_bytes_are_synced_before_the_name_and_the_folder_after_it(writer, tmp_path, monkeypatch):
    """Else a lost machine may know the name, and not what belongs to it."""
    write, old, new = WRITERS[writer]
    events: list[tuple[str, int]] = []

    def naming(true):
        def wrapped(part, path):
            events.append(("name", os.stat(part).st_ino))
            return true(part, path)

        return wrapped

    put(tmp_path, old)
    monkeypatch.setattr(os, "fsync", lambda file: events.append(("sync", os.fstat(file).st_ino)))
    for call in ("link", "replace", "rename"):
        monkeypatch.setattr(os, call, naming(getattr(os, call)))
    monkeypatch.setattr(whole_file, "_swapped", naming(whole_file._swapped))
    write(tmp_path)
    names = [event for event in events if event[0] == "name"]
    assert names
    for _, number in names:
        assert ("sync", number) in events[: events.index(("name", number))]
    for name in new.keys() - {"c/z"}:
        assert ("sync", os.stat(tmp_path / name).st_ino) in events[: events.index(names[-1])]
    folder = tmp_path / "c" if "c/a" in new else tmp_path
    assert events[-1] == ("sync", folder.stat().st_ino)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of JAX, where a test loaded it
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads, where a test has any
@pytest.mark.parametrize("fails", [False, True])
def test_a_process_forked_within_the_block_names_and_removes_nothing(tmp_path, fails):
    """Its parent's file is still being written, whatever becomes of the child."""
    status = None
    try:
        with open_whole(tmp_path / "a") as file:
            file.write(b"half")
            file.flush()
            child = os.fork()
            if not child:
                status = 1
                if fails:
                    raise LookupError
            elif os.waitpid(child, 0)[1] != 0:
                status = 2
            if child:
                file.write(b" and half")
    except (ChildProcessError, LookupError) as error:
        status = not (isinstance(error, LookupError) if fails else "forked this one" in str(error))
    finally:
        if status is not None and not child:
            os._exit(status)
    assert status is None
    assert (tmp_path / "a").read_bytes() == b"half and half"
    assert [*tmp_path.iterdir()] == [tmp_path / "a"]
