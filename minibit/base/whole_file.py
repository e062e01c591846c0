"""Files that appear whole or not at all: the one way in which this package writes a new file.

    lock    a folder beside the target, ``.NAME.minibit-part``, which one writer at a time holds
    write   in that folder, so nobody sees half a file
    sync    the bytes, to disk
    name    by a link, which fails where something has come to exist; or, to overwrite, by a rename,
            up to which the old file is as it was (and to whoever has it mapped, it stays)
    sync    the folder, so that the name is on disk, too

A process that is forked off meanwhile gives no name and removes nothing, however it ends.
If the writer fails on the way (a full disk, Ctrl-C), the folder goes and the target is as it was.
A killed process may leave the folder behind; its lock ended with it, so the next writer clears it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: that the folder exists is then the lock
    fcntl = None  # type: ignore[assignment]


LOCKS = bool(fcntl)
PART = "minibit-part"


@contextmanager
def open_whole(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Open a binary file for writing that takes its name only when the block has ended well.

    With `overwrite` it replaces a file that is there, in one step: the permissions of the old file
    stay, and a link is followed, and stays.

    The target is as it was after every error: FileExistsError if something is there, or has come to
    be there meanwhile, without `overwrite`, or if it is no file; BlockingIOError if another writer
    is writing this file; OSError if the disk is full or fails.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with open_whole(folder + "/a.txt") as file:
    ...         _ = file.write(b"one line")
    ...         before = os.path.exists(folder + "/a.txt")
    ...     before, os.listdir(folder)
    (False, ['a.txt'])
    """
    with whole_path(path, overwrite=overwrite) as part, part.open("xb") as file:
        yield file


@contextmanager
def whole_path(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a free path; the file or folder that the block makes there takes the target's name.

    Arguments and errors are those of `open_whole`. A folder replaces a folder with all that is in
    it; on Linux in one step, elsewhere by two renames. To look at what was written before it takes
    its name, read it inside the block.
    """
    path = Path(path)
    if overwrite and path.is_symlink():
        path = Path(os.path.realpath(path))
    if not overwrite and os.path.lexists(path):
        raise _exists(path)
    process = os.getpid()
    with _locked_folder(path) as workspace:
        part = workspace / path.name
        yield part
        _check_process(process, path)
        if overwrite and os.path.lexists(path):
            _replace(part, path)
        elif part.is_dir():
            _name_folder(part, path)
        else:
            _name_file(part, path)
        _sync(path.parent)


@contextmanager
def whole_files(folder: str | os.PathLike[str], last: str) -> Iterator[Path]:
    """Yield an empty folder; the files that the block makes there get their names in `folder`.

    That is made if it is not there. The file `last` takes its name after all others, which count
    for nothing without it. Errors are those of `open_whole`, for each of the files; then none of
    them has a name in `folder`.
    """
    folder, process = Path(folder), os.getpid()
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    named: list[Path] = []
    try:
        with _locked_folder(folder / last) as workspace:
            yield workspace
            _check_process(process, folder / last)
            parts = sorted(workspace.iterdir(), key=lambda part: (part.name == last, part.name))
            for part in parts:
                named.append(folder / part.name)  # noted first: an interrupt may follow the link
                try:
                    _name_file(part, named[-1])
                except FileExistsError:
                    named.pop()  # the name is another writer's
                    raise
            _sync(folder)
    except BaseException:
        for path in named:
            path.unlink(missing_ok=True)
        if new and os.getpid() == process:
            with suppress(OSError):
                folder.rmdir()
        raise


# --- The folder that is the lock


@contextmanager
def _locked_folder(path: Path) -> Iterator[Path]:
    """Make the folder that locks a path, and remove it at the end with all that is in it."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    workspace = path.with_name(f".{path.name}.{PART}")
    lock, process = _lock(workspace, path), os.getpid()
    try:
        for rest in workspace.iterdir():  # what a killed writer left behind
            _clear(rest)
        yield workspace
    finally:
        if os.getpid() == process:
            _clear(workspace)
        if lock is not None:
            os.close(lock)


def _lock(workspace: Path, path: Path) -> int | None:
    """Make a folder and lock it: its descriptor; None where the system has no such locks."""
    while True:
        new = False
        with suppress(FileExistsError):
            workspace.mkdir(0o700)
            new = True
        try:
            lock = _flock(workspace)
        except BlockingIOError:
            raise BlockingIOError(f"another writer is at {path}; nothing was changed") from None
        except FileNotFoundError:  # whoever had the folder has just removed it
            continue
        except OSError:
            if new:
                return None
            rule = f"another writer is at {path}, or was killed there: then remove {workspace}"
            raise BlockingIOError(rule) from None
        except BaseException:  # Ctrl-C
            if new:
                workspace.rmdir()
            raise
        if workspace.exists() and os.path.samestat(workspace.stat(), os.fstat(lock)):
            return lock
        os.close(lock)  # of a folder that was removed meanwhile


def _flock(workspace: Path) -> int:
    """Open a folder and lock it: the system's lock, which ends with the process."""
    if not LOCKS:
        raise OSError("this system has no such locks")
    lock = os.open(workspace, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _clear(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    from shutil import rmtree  # brings five compressors

    if path.is_dir() and not path.is_symlink():
        rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# --- Names


def _check_process(process: int, path: Path) -> None:
    """Refuse to name what another process writes."""
    if os.getpid() != process:
        raise ChildProcessError(f"{path}: process {process}, which forked this one, writes it")


def _exists(path: Path) -> FileExistsError:
    """Return the error of a name that is taken."""
    return FileExistsError(f"{path} exists; nothing was changed")


def _name_file(part: Path, path: Path) -> None:
    """Give a file its name, unless something has taken it meanwhile."""
    _sync(part)
    try:
        os.link(part, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError:  # a file system without links: take the name, then put the file over it
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise _exists(path) from None
        try:
            os.replace(part, path)
        except BaseException:
            path.unlink()
            raise


def _name_folder(part: Path, path: Path) -> None:
    """Give a folder its name, unless there is something; an empty folder counts for nothing."""
    _sync_all(part)
    try:
        os.rename(part, path)
    except OSError:
        if os.path.lexists(path):
            raise _exists(path) from None
        raise


def _replace(part: Path, path: Path) -> None:
    """Put a file in the place of a file, or a folder in that of a folder; the mode stays."""
    old = path.stat()
    if not (path.is_dir() if part.is_dir() else path.is_file()):
        raise FileExistsError(f"{path} is no {'folder' if part.is_dir() else 'file'}; it is kept")
    _sync_all(part)
    part.chmod(stat.S_IMODE(old.st_mode))
    if part.is_file():
        os.replace(part, path)
    elif not _swapped(part, path):
        aside = path.with_name(f".{path.name}.minibit-old")
        os.rename(path, aside)
        try:
            os.rename(part, path)
        except BaseException:  # Ctrl-C, too
            os.rename(aside, path)
            raise
        _clear(aside)


def _swapped(part: Path, path: Path) -> bool:
    """Swap two folders in one step, where the system can (Linux): renameat2, RENAME_EXCHANGE."""
    import ctypes

    call = getattr(ctypes.CDLL(None), "renameat2", None) if LOCKS else None
    here, exchange = -100, 2
    return bool(call and call(here, os.fsencode(part), here, os.fsencode(path), exchange) == 0)


def _sync_all(path: Path) -> None:
    """Sync a file, or a folder with all that is in it."""
    for inner in path.rglob("*") if path.is_dir() else ():
        _sync(inner)
    _sync(path)


def _sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to disk."""
    if not LOCKS and path.is_dir():  # Windows
        return
    file = os.open(path, os.O_RDONLY if LOCKS else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)
