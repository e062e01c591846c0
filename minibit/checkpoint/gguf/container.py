"""GGUF files, byte by byte: metadata, a table of tensors, and their bytes; read with distrust.

Little-endian, version 3 (2 has the same form):

    file     = "GGUF"  version:u32  tensors:u64  entries:u64  entry*  tensor*  padding  data
    entry    = key:string  type:u32  value           an array: type:u32  count:u64  values
    tensor   = name:string  axes:u32  lengths:u64*   type:u32  offset:u64 into the data
    string   = length:u64  UTF-8

Lengths are listed from the fastest axis: of a matrix (n_out, n_in) they are n_in, n_out. A tensor
starts at a multiple of ``general.alignment``, by default 32. The reader compares every count and
length with the bytes that are left before it makes anything of that size, so that a damaged header
costs neither memory nor time. It maps a file copy-on-write: the arrays of a file may be written to,
the file never is.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibit.base import CheckpointError, beginning, check_file, shown
from minibit.checkpoint.gguf.types import BF16 as BF16
from minibit.checkpoint.gguf.types import F16 as F16
from minibit.checkpoint.gguf.types import F32 as F32
from minibit.checkpoint.gguf.types import I2_S as I2_S
from minibit.checkpoint.gguf.types import NAMED, TYPES, Meaning, fitting
from minibit.checkpoint.gguf.types import TQ1_0 as TQ1_0
from minibit.checkpoint.gguf.types import TQ2_0 as TQ2_0

Bytes = NDArray[np.uint8]
Value = int | float | bool | str | None  # None stands for an array, which is walked and not kept

ALIGNMENT = 32
BLOCKS: dict[int, tuple[str, int, int]] = {  # a number's first meaning: name, weights and bytes
    number: meanings[0][:3] for number, meanings in TYPES.items()
}
_SCALARS = dict(enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?")))  # types of metadata
_SCALARS |= {10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MOST = 1 << 16  # entries, or tensors; the published model has 24 and 332
_MOST_STRINGS = 1 << 24  # in an array; vocabularies have some 2**18
_MOST_NAME = 1 << 16  # bytes
_MOST_TEXT = 1 << 26  # bytes; a tokenizer has some 10 MB


class Tensor(NamedTuple):
    """One line of the table of tensors, checked against the file."""

    name: str
    kind: int  # see TYPES
    shape: tuple[int, ...]  # the slowest axis first, as NumPy has it
    offset: int  # of its first byte in the file
    nbytes: int
    type: str = ""  # its name: of the number's meanings the one whose size fits


class Line(NamedTuple):
    """One line of the table of tensors as a file has it, compared with nothing."""

    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int  # into the data
    at: int  # the line's byte of the file


@dataclass(frozen=True)
class Header:
    """What stands before the data of a mapped file."""

    path: Path
    metadata: Mapping[str, Value]
    lines: list[Line]
    end: int  # of the table
    mapped: mmap.mmap

    def error(
        self, message: str, name: str | None = None, at: int | None = None
    ) -> CheckpointError:
        """Return an error about the file, by default at the end of its table."""
        return CheckpointError(message, self.path, name, self.end if at is None else at)

    @property
    def unit(self) -> int:
        """The alignment of tensors; a `CheckpointError` if the file claims an impossible one."""
        unit = self.metadata.get("general.alignment", ALIGNMENT)
        if type(unit) is not int or not 8 <= unit <= 1 << 20 or unit & (unit - 1):
            raise self.error(
                f"has general.alignment {shown(unit)}; takes a power of two from 8", at=24
            )
        return unit

    @property
    def begin(self) -> int:
        """Where the data begin."""
        return -(-self.end // self.unit) * self.unit

    def rooms(self) -> Iterator[tuple[Line, int]]:
        """Yield the lines in the order of their offsets, each with the bytes up to the next."""
        lines = sorted(self.lines, key=lambda line: line.offset)
        ends = [line.offset for line in lines[1:]] + [len(self.mapped) - self.begin]
        yield from ((line, end - line.offset) for line, end in zip(lines, ends, strict=False))


@dataclass(frozen=True)
class GGUFFile:
    """A mapped GGUF file: what its header says, and the bytes behind it."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, Tensor]
    mapped: mmap.mmap  # writing to it changes private copies of its pages only

    def bytes_of(self, tensor: Tensor) -> Bytes:
        """Return the bytes of a tensor, mapped: shape (nbytes,)."""
        return np.frombuffer(self.mapped, np.uint8, tensor.nbytes, tensor.offset)

    def release(self, tensor: Tensor) -> None:
        """Give a tensor's pages back to the system, which reads them again if need be."""
        if hasattr(mmap, "MADV_DONTNEED"):
            begin = tensor.offset // mmap.PAGESIZE * mmap.PAGESIZE
            length = tensor.offset + tensor.nbytes - begin
            self.mapped.madvise(mmap.MADV_DONTNEED, begin, length)

    def error(self, message: str, tensor: Tensor | None = None, at: int = 0) -> CheckpointError:
        """Return an error about this file; `at` counts from the first byte of the tensor."""
        name, start = (tensor.name, tensor.offset) if tensor else (None, None)
        return CheckpointError(message, self.path, name, None if start is None else start + at)


def nbytes(kind: int, shape: tuple[int, ...]) -> int:
    """Return how many bytes a tensor takes by a number's first meaning, without padding."""
    size = TYPES[kind][0].size(shape)
    if size is None:
        raise ValueError(f"shape {shape} is no whole blocks of {TYPES[kind][0].name}")
    return size


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Map the GGUF file at a path, which is never written to, and read its header.

    Raises `CheckpointError` if it is no GGUF file of version 2 or 3, or ends early; if its header
    says what cannot be: a count or length beyond the file, an unknown type, a name given twice, a
    length of 0, a tensor that is not aligned, lies outside the file or overlaps another. A file
    that another process cuts short while it is mapped ends this one with a bus error.

    Source: ggml, ``docs/gguf.md``.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> from minibit.checkpoint.gguf.writer import write_gguf
    >>> write_gguf(path := mkdtemp() + "/empty.gguf", {"general.name": "nothing"}, [])
    >>> open_gguf(path).metadata
    {'general.name': 'nothing'}
    """
    header = read_header(path)
    return GGUFFile(header.path, header.metadata, _locate(header), header.mapped)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Map a file and read its header, whatever types, sizes and offsets its table claims.

    Raises `CheckpointError` as `open_gguf` does for what stands before the data.
    """
    path = Path(path)
    check_file(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 24:
            reason = f"{size} bytes, a header has 24; {beginning(file.read())}"
            raise CheckpointError(f"no GGUF file: {reason}", path, None, 0)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    reader = _Reader(path, mapped)
    magic, version, tensors, entries = struct.unpack_from("<4sIQQ", mapped)
    if magic != b"GGUF":
        raise CheckpointError(f"no GGUF file: {beginning(mapped[:32])}", path, None, 0)
    if version not in (2, 3):
        swapped = version & 0xFFFF == 0  # 3 << 24
        why = "is big-endian" if swapped else f"has version {version}"
        raise CheckpointError(f"{why}; little-endian GGUF 2 and 3 are read", path, None, 4)
    reader.check_count(entries, 13, "metadata entries", 16)
    reader.check_count(tensors, 32, "tensors", 8)
    metadata = reader.metadata(entries)
    lines = [reader.line() for _ in range(tensors)]
    return Header(path, metadata, lines, reader.at, mapped)


def _locate(header: Header) -> dict[str, Tensor]:
    """Turn offsets into places in the file, and see that tensors have bytes of their own."""
    unit, begin, size = header.unit, header.begin, len(header.mapped)
    rooms = {line.at: room for line, room in header.rooms()}
    table: dict[str, Tensor] = {}
    for line in header.lines:
        meaning = _meaning(header, line, rooms[line.at])
        if line.name in table:
            raise header.error("is listed twice", line.name)
        if line.offset % unit:
            raise header.error(f"has offset {line.offset}, no multiple of {unit}", line.name)
        offset, length = begin + line.offset, meaning.size(line.shape) or 0
        if offset + length > size:
            needs = f"needs bytes {offset} to {offset + length}, and the file has {size}"
            raise header.error(needs, line.name, offset)
        table[line.name] = Tensor(line.name, line.kind, line.shape, offset, length, meaning.name)
    end, last = begin, ""
    for tensor in sorted(table.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise header.error(f"overlaps tensor {shown(last)}", tensor.name, tensor.offset)
        end, last = tensor.offset + tensor.nbytes, tensor.name
    return table


def _meaning(header: Header, line: Line, room: int) -> Meaning:
    """Return what a tensor's number means: of several meanings the one whose size fits."""
    if 0 in line.shape or math.prod(line.shape) >= 1 << 63:
        raise header.error(f"has an impossible shape, {line.shape}", line.name, line.at)
    if line.kind not in TYPES:
        known = f"{line.kind} ({NAMED[line.kind]})" if line.kind in NAMED else line.kind
        read = ", ".join(block[0] for block in BLOCKS.values())
        raise header.error(f"is of type {known}; known here are {read}", line.name, line.at)
    first = TYPES[line.kind][0]
    meaning = next(fitting(TYPES[line.kind], line.shape, room, header.unit), first)
    size = meaning.size(line.shape)
    if size is None:
        message = f"of type {meaning.name} has shape {line.shape}: no whole blocks"
        raise header.error(message, line.name, line.at)
    if size > room >= 0 and line.kind in NAMED:
        message = f"is of type {line.kind} in {room} bytes: {NAMED[line.kind]}"
        raise header.error(message, line.name, line.at)
    return meaning


class _Reader:
    """An offset in the mapped bytes, at first after the counts; each read checks the bytes left."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path, self.mapped, self.size, self.at = path, mapped, len(mapped), 24

    def error(
        self, message: str, name: str | None = None, at: int | None = None
    ) -> CheckpointError:
        """Return an error at this place, or at another."""
        return CheckpointError(message, self.path, name, self.at if at is None else at)

    def scalar(self, form: str) -> Any:
        """Read one number."""
        length = struct.calcsize(form)
        if length > self.left:
            raise self.error(f"ends within its header, at {self.size} bytes")
        self.at += length
        return struct.unpack_from(form, self.mapped, self.at - length)[0]

    @property
    def left(self) -> int:
        """Bytes from here to the end."""
        return self.size - self.at

    def check_count(self, count: int, least: int, kind: str, at: int) -> None:
        """Refuse more than can be left of a kind that takes at least so many bytes."""
        if count > min(_MOST, self.left // least):
            raise self.error(f"claims {count} {kind}, and has {self.left} bytes left", at=at)

    def string(self, kind: str, most: int) -> str:
        """Read a string of at most so many bytes."""
        start = self.at
        length = self.scalar("<Q")
        if length > min(most, self.left):
            raise self.error(f"has a {kind} of {length} bytes, and {self.left} left", at=start)
        raw = self.mapped[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"has a {kind} that is no UTF-8: {raw[:64]!r}", at=start) from error

    def metadata(self, count: int) -> dict[str, Value]:
        """Read the entries; arrays are walked and left where they are."""
        entries: dict[str, Value] = {}
        for _ in range(count):
            start = self.at
            key = self.string("metadata key", _MOST_NAME)
            if key in entries:
                raise self.error(f"has the metadata key {shown(key)} twice", at=start)
            kind = self.scalar("<I")
            if kind == _ARRAY:
                self.skip_array(key)
                entries[key] = None
            elif kind == _STRING:
                entries[key] = self.string(f"value of {shown(key)}", _MOST_TEXT)
            elif kind in _SCALARS:
                entries[key] = self.scalar(_SCALARS[kind])
            else:
                raise self.error(f"has metadata {shown(key)} of type {kind}", at=self.at - 4)
        return entries

    def skip_array(self, key: str) -> None:
        """Step over an array, its strings one by one."""
        start = self.at
        kind, count, left = self.scalar("<I"), self.scalar("<Q"), self.left
        if kind in _SCALARS:
            length = count * struct.calcsize(_SCALARS[kind])
            if length > left:
                raise self.error(f"has {count} values in {shown(key)}, and {left} bytes", at=start)
            self.at += length
            return
        if kind != _STRING:
            raise self.error(f"has an array of type {kind} in {shown(key)}", at=start)
        if count > _MOST_STRINGS or 8 * count > left:
            raise self.error(f"has {count} strings in {shown(key)}, and {left} bytes", at=start)
        read, at, end = struct.Struct("<Q").unpack_from, self.at, self.size - 8
        for _ in range(count):
            if at > end:
                raise self.error(f"ends within the strings of {shown(key)}", at=min(at, self.size))
            at += 8 + read(self.mapped, at)[0]
        if at > self.size:
            raise self.error(f"ends within the strings of {shown(key)}", at=start)
        self.at = at

    def line(self) -> Line:
        """Read one line of the table."""
        start = self.at
        name = self.string("tensor name", _MOST_NAME)
        axes = self.scalar("<I")
        if not 1 <= axes <= 4:
            raise self.error(f"claims {axes} axes; ggml knows 1 to 4", name, start)
        lengths = [self.scalar("<Q") for _ in range(axes)]
        kind, offset = self.scalar("<I"), self.scalar("<Q")
        return Line(name, kind, tuple(reversed(lengths)), offset, start)
