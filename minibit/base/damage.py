"""Files from strangers: how small ones are read, and the error that names file, tensor and byte."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from minibit.base.strict_json import JSONError, parse_object
from minibit.base.text import shown

MOST_JSON = 1 << 20  # bytes; a configuration takes two thousand


class CheckpointError(ValueError):
    """A checkpoint is damaged, hostile, or holds what its configuration does not say.

    The message names what came, what was expected, and, where there is one, the `file`, the
    `tensor`, and as `offset` the byte of the file at which the damage begins. Nothing was changed
    on disk.
    """

    def __init__(
        self,
        message: str,
        file: str | PathLike[str] | None = None,
        tensor: str | None = None,
        offset: int | None = None,
    ) -> None:
        self.file = None if file is None else fspath(file)
        self.tensor, self.offset = tensor, offset
        if tensor is not None:
            message = f"tensor {shown(tensor)}: {message}"
        if file is not None:
            message = f"{self.file}: {message}"
        super().__init__(message if offset is None else f"{message} (byte {offset})")


IMPOSTORS = (  # what people have in the place of a checkpoint, by its first bytes
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: run `git lfs pull`"),
    (b"<!", "a web page, perhaps an error of the server"),
    (b"<html", "a web page, perhaps an error of the server"),
    (b"PK", "a zip archive: unpack it, or a pickle of PyTorch, which is never opened"),
    (b"\x80", "a pickle, which can run any code and is never opened"),
    (b"GGUF", "a GGUF file"),
    (b"\x89MBL", "a log of minibit: `minibit info` reads it"),
    (b"\x1f\x8b", "gzip-compressed: unpack it"),
    (b"{", "JSON"),
)


def beginning(data: bytes) -> str:
    """Say with which bytes a file begins, and which kind of file that is.

    Examples
    --------
    >>> beginning(b"<!DOCTYPE html>")
    "it begins with b'<!DOCTYP' (a web page, perhaps an error of the server)"
    """
    start = bytes(data[:32]).lower()
    kind = next((text for magic, text in IMPOSTORS if start.startswith(magic.lower())), "")
    return f"it begins with {bytes(data[:8])!r}" + (f" ({kind})" if kind else "")


@contextmanager
def in_file(path: Path) -> Iterator[None]:
    """Name the file in what a check of a value, read out of it, says: TypeError, ValueError."""
    try:
        yield
    except CheckpointError:
        raise
    except (TypeError, ValueError) as error:
        raise CheckpointError(str(error), path) from None


def check_file(path: Path) -> None:
    """Raise unless this is a file, or a link to one: to open a pipe may take for ever."""
    if not path.is_file():
        absent = "is a link to nothing" if path.is_symlink() else "there is no such file"
        raise CheckpointError("is no file" if path.exists() else absent, path)


def read_whole(path: Path, most: int) -> bytes:
    """Read a file of at most so many bytes; raise `CheckpointError` if it is none, or longer."""
    check_file(path)
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise CheckpointError(f"{path.stat().st_size} bytes; the most is {most}", path)
    return data


def read_json(path: Path, most: int = MOST_JSON) -> dict[str, Any]:
    """Read a file of at most so many bytes that holds a JSON object: see `checked_json`."""
    return checked_json(read_whole(path, most), path)


def checked_json(text: bytes, path: str | PathLike[str], offset: int = 0) -> dict[str, Any]:
    """Parse a JSON object that a file holds from a byte on, as `parse_object` does.

    It raises `CheckpointError`, which names file and byte.
    """
    try:
        return parse_object(text, most=len(text))
    except JSONError as error:
        opening = "" if text[:1] in (b"{", b"") else f"; {beginning(text)}"
        raise CheckpointError(error.reason + opening, path, offset=offset + error.offset) from None
