"""The binary log: a header, then framed records, each held by a checksum.

Little-endian, append-only; `docs/log_format.md` has it byte by byte.

    file   = magic[8]  version:u16  length:u32  header[length]  crc:u32   record*
    record = steps:u8  length:u32  check:u16    payload[length]  digest[8]  crc:u32

``crc`` is one CRC-32 that runs on from the magic to here over every byte but the stored ``crc``
themselves, so a record that is lost, doubled or moved breaks it like one that is changed. ``check``
is the low half of the running CRC-32 after ``steps`` and ``length``: a damaged length is known as
damage, and is never taken for a file that ends early. ``digest`` names the weights after the
record: the first 8 bytes of their SHA-256.

A file whose last append is not whole is *torn*, as a killed writer or a lost machine leaves it: it
opens to the records before. Anything else that doesn't fit is an error that names its byte.
"""

from __future__ import annotations

import json
import os
import struct
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

from minibit.base import JSONError, beginning, parse_object

try:
    import fcntl
except ImportError:  # Windows: two writers are then told apart by the file's length alone
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "Appender",
    "Contents",
    "LogError",
    "Record",
    "pack_header",
    "pack_record",
    "parse_header",
    "read_log",
    "scan",
]

MAGIC = b"\x89MBL\r\n\x1a\n"  # as PNG's: not ASCII, and broken by any conversion of line ends
VERSION = 1
MOST_STEPS = 32  # in a record
MOST_HEADER = 1 << 20  # bytes
START = struct.Struct("<8sHI")  # magic, version, length of the header
HEAD = struct.Struct("<BI")  # steps, length of the payload
CHECK = struct.Struct("<H")
CRC = struct.Struct("<I")
DIGEST = 8
FRAME = HEAD.size + CHECK.size + DIGEST + CRC.size  # bytes that a record adds to its payload
SECTOR = 512  # what a disk writes whole or not at all, or a divisor of it
REACH = 1 << 16  # bytes of one append in which a sector may be missing before the last record


class LogError(ValueError):
    """A log is damaged, or says what no log says.

    Attributes
    ----------
    offset : int or None
        The byte where the damage begins, where there is one.
    steps : int or None
        How many steps before the damage are good; None if it is in the header.
    """

    def __init__(
        self,
        message: str,
        offset: int | None = None,
        steps: int | None = None,
        path: Path | None = None,
    ) -> None:
        file = "" if path is None else f"{path}: "
        where = "" if offset is None else f" (byte {offset})"
        if steps is not None and path is not None:
            where += f"; its {steps} steps before are good, `minibit salvage` copies them"
        super().__init__(f"{file}{message}{where}; nothing was changed")
        self.message, self.offset, self.steps = message, offset, steps

    def of(self, path: Path) -> LogError:
        """Return the error with the name of its file, and the number of good steps there."""
        return LogError(self.message, self.offset, self.steps, path)


@dataclass(frozen=True)
class Record:
    """One framed record, its checksum found good."""

    offset: int  # of its first byte in the file
    first: int  # number of its first step
    steps: int  # how many it holds, 1 to 32
    payload: bytes  # their codes, see `minibit.steps.codes`
    digest: bytes  # first 8 bytes of the SHA-256 of the weights after it
    crc: int  # the running CRC-32 after it

    @property
    def end(self) -> int:
        """Offset of the first byte after the record."""
        return self.offset + FRAME + len(self.payload)

    @property
    def end_step(self) -> int:
        """Number of steps up to the record's end."""
        return self.first + self.steps


@dataclass(frozen=True)
class Contents:
    """The good part of a file, as `scan` reads it."""

    header: bytes
    records: tuple[Record, ...]
    crc: int  # the running CRC-32 at `end`
    end: int  # the first byte after the last good record
    torn: str = ""  # why the bytes from `end` on are no record; empty if there are none

    @property
    def start_crc(self) -> int:
        """The running CRC-32 after the header."""
        return crc32(START.pack(MAGIC, VERSION, len(self.header)) + self.header)

    @property
    def steps(self) -> int:
        """Number of steps in all records."""
        return self.records[-1].end_step if self.records else 0


def pack_header(header: dict[str, Any]) -> bytes:
    """Return the start of a log: magic, version, canonical JSON, CRC-32.

    Canonical: sorted keys, no spaces, ASCII; no NaN, at most 1 MiB. Readers take any JSON object.
    """
    if not isinstance(header, dict):
        raise TypeError(f"header must be a dict, got {type(header).__name__}")
    try:
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise type(error)(f"header must be of JSON types: {error}") from None
    if len(text) > MOST_HEADER:
        raise ValueError(f"header must take at most {MOST_HEADER} bytes, got {len(text)}")
    start = START.pack(MAGIC, VERSION, len(text)) + text
    return start + CRC.pack(crc32(start))


def pack_record(steps: int, payload: bytes, digest: bytes, crc: int) -> tuple[bytes, int]:
    """Frame a payload after a file whose running CRC-32 is `crc`: the bytes, and the new CRC."""
    head = HEAD.pack(steps, len(payload))
    body = head + CHECK.pack(crc32(head, crc) & 0xFFFF) + payload + digest
    crc = crc32(body, crc)
    return body + CRC.pack(crc), crc


def scan(data: bytes) -> Contents:
    """Read a whole file: its header, its records, and whether its tail is torn.

    The tail is torn, and left out, if the file ends within a record's head, before the end that a
    good head states, or exactly there with a bad CRC-32 (the last record's own bytes are damaged),
    or if a sector of the record was never written: sectors of the last append reach a disk in any
    order, and one that a lost machine did not write holds zeros. No byte of a torn tail is ever
    part of the result. A header that is cut or damaged, or a record that is not the last, is a
    LogError, with the offset and the number of steps before it.
    """
    header, end = _header(data)
    (crc,) = CRC.unpack_from(data, end - CRC.size)
    records: list[Record] = []
    first = 0
    while end < len(data):
        record = _record(data, end, first, crc)
        if isinstance(record, str):
            return Contents(header, tuple(records), crc, end, record)
        records.append(record)
        crc, end, first = record.crc, record.end, first + record.steps
    return Contents(header, tuple(records), crc, end)


def _header(data: bytes) -> tuple[bytes, int]:
    """Return the header's JSON text and where the records begin."""
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise LogError(f"not a minibit log: {beginning(data)}, not with {MAGIC!r}", 0)
    if len(data) < START.size:
        raise LogError(f"the file ends within the log's header, after {len(data)} bytes", len(data))
    _, version, length = START.unpack_from(data)
    if version != VERSION:
        raise LogError(f"log format version {version}; this minibit reads version {VERSION}", 8)
    if length > MOST_HEADER:
        raise LogError(f"a header of {length} bytes; the most is {MOST_HEADER}", 10)
    stop = START.size + length
    if len(data) < stop + CRC.size:
        raise LogError(f"the file ends within the log's header, after {len(data)} bytes", len(data))
    if crc32(data[:stop]) != CRC.unpack_from(data, stop)[0]:
        raise LogError("the header's CRC-32 does not fit its bytes", START.size)
    return data[START.size : stop], stop + CRC.size


def _record(data: bytes, offset: int, first: int, crc: int) -> Record | str:
    """Return the record at `offset`, or why the file is torn there."""
    left = len(data) - offset
    body = offset + HEAD.size + CHECK.size
    if left < HEAD.size + CHECK.size:
        return "the file ends within a record's head"
    steps, length = HEAD.unpack_from(data, offset)
    (check,) = CHECK.unpack_from(data, body - CHECK.size)
    if crc32(data[offset : body - CHECK.size], crc) & 0xFFFF != check:
        if _hole(data, offset, body):
            return "a sector of a record's head holds zeros, it was never written"
        raise LogError("a record's head is damaged: its check does not fit", offset, first)
    if left < FRAME + length:
        return f"a record of {FRAME + length} bytes is cut after {left}"
    stop = body + length + DIGEST
    after = crc32(data[offset:stop], crc)
    if after != CRC.unpack_from(data, stop)[0]:
        if stop + CRC.size == len(data):
            return "the last record's CRC-32 does not fit its bytes"
        if left <= REACH and _hole(data, offset, stop + CRC.size):
            return "a sector of a record holds zeros, it was never written"
        raise LogError("a record's CRC-32 does not fit its bytes", offset, first)
    if not 1 <= steps <= MOST_STEPS:
        raise LogError(f"a record of {steps} steps; it may hold 1 to {MOST_STEPS}", offset, first)
    return Record(
        offset, first, steps, data[body : body + length], data[stop - DIGEST : stop], after
    )


def _hole(data: bytes, start: int, stop: int) -> bool:
    """Whether a sector that holds bytes of ``[start, stop)`` is all zeros, from `start` on."""
    sectors = range(start // SECTOR * SECTOR, stop, SECTOR)
    return not all(any(data[max(start, sector) : sector + SECTOR]) for sector in sectors)


def parse_header(text: bytes) -> dict[str, Any]:
    """Parse a header's JSON text, one object; the byte of a LogError is that of the file."""
    try:
        return parse_object(text, MOST_HEADER)
    except JSONError as error:
        raise LogError(f"the header: {error.reason}", START.size + error.offset) from None


def read_log(file: BinaryIO) -> bytes:
    """Read a log from its start; of a file that begins otherwise, only the beginning."""
    start = file.read(32)
    return start + file.read() if start.startswith(MAGIC) else start


class Appender:
    """An existing file, open at its end and locked against other writers until closed.

    The lock is the system's, and ends with the process, however it ends. It is one of this process:
    one that forks off later may close the file, but neither write to it nor lift the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.process = path.absolute(), os.getpid()
        self.file = os.open(path, os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0))
        self.close = weakref.finalize(self, _let_go, self.file, self.process)
        if fcntl is not None:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise LogError(f"another writer holds {path}") from None
            except OSError:  # a file system without locks, as on Windows
                pass

    @property
    def size(self) -> int:
        """Bytes of the file now."""
        return os.fstat(self.file).st_size

    def read(self) -> bytes:
        """Read the file."""
        with open(self.file, "rb", closefd=False) as file:
            file.seek(0)
            return read_log(file)

    def expect(self, size: int, crc: int) -> None:
        """Check that the path still names this file, and that nobody else has written to it."""
        self.check_owner()
        wrong = ""
        if not self.path.exists() or not os.path.samestat(os.stat(self.path), os.fstat(self.file)):
            wrong = "it was moved"
        elif self.size != size:
            wrong = f"it has {self.size} bytes, not {size}"
        else:
            os.lseek(self.file, size - CRC.size, os.SEEK_SET)
            wrong = "" if os.read(self.file, CRC.size) == CRC.pack(crc) else "its bytes are others"
        if wrong:
            raise LogError(f"{self.path} changed since it was read: {wrong}; open it again")

    def append(self, data: bytes) -> None:
        """Write at the end, in one call unless the disk is full, and sync to disk."""
        self.check_owner()
        while data:
            data = data[os.write(self.file, data) :]
        os.fsync(self.file)

    def cut(self, size: int) -> None:
        """Shorten the file, and sync to disk."""
        self.check_owner()
        os.ftruncate(self.file, size)
        os.fsync(self.file)

    def check_owner(self) -> None:
        """Refuse what is its owner's alone; a handler may have forked, or closed it, meanwhile."""
        if os.getpid() != self.process:
            raise LogError(
                f"{self.path} is written by process {self.process}, which this one was forked "
                "from; open it again"
            )
        if not self.close.alive:
            raise LogError(f"{self.path} was closed within an append")


def _let_go(file: int, process: int) -> None:
    """Close a file; its lock, which processes forked off since then share, ends with its owner."""
    if fcntl is not None and os.getpid() == process:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)
