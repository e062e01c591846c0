"""What the tests of writers share: a call of the system that fails, a disk that is full."""

import errno
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Fault(BaseException):
    """What no code under test catches by its kind, as KeyboardInterrupt."""


FULL = OSError(errno.ENOSPC, "no space left")


@contextmanager
def failing(call: str, number: int, error: BaseException) -> Iterator[list[int]]:
    """Let the n-th call of a function of `os` fail, but for those that only clear up."""
    patch, count = pytest.MonkeyPatch(), [0]
    true = getattr(os, call)

    def counted(*args, **options):
        clears_up = sys._getframe(1).f_globals["__name__"] == "shutil"
        count[0] += not clears_up
        if count[0] == number and not clears_up:
            raise error
        return true(*args, **options)

    patch.setattr(os, call, counted)
    try:
        yield count
    finally:
        patch.undo()


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: the write that would do it fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def put(folder: Path, files: dict[str, bytes]) -> None:
    """Write files, and the folders that they lie in."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
