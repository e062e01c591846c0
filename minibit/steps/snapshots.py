"""Snapshots: weights of some steps beside a log, so that those of any step are a short replay away.

A log NAME has them in NAME.snapshots, little-endian, in the order of their steps:

    file  = magic[8]  entry*
    entry = step:u32  crc:u32  weights[ceil(size / 5)]

``weights`` are base-3 digits, five per byte (`minibit.ternary.pack_base3`), after ``step`` steps,
at the end of a record; ``crc`` is the log's running CRC-32 there, and so names header, steps and
weights before. A reader compares that CRC and the record's digest with the log's: a file of another
log, of one that was written anew, or a damaged one is an error, and never used.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np

from minibit.base import open_whole
from minibit.steps.file import DIGEST, LogError, Record
from minibit.steps.replaying import Flat
from minibit.ternary import pack_base3, unpack_base3

__all__ = ["nearest", "path_of", "to_keep", "write_snapshots"]

MAGIC = b"\x89MBS\r\n\x1a\n"
ENTRY = struct.Struct("<II")  # step, running CRC-32 after its record


def path_of(log: Path) -> Path:
    """Return where a log's snapshots lie."""
    return log.with_name(f"{log.name}.snapshots")


def to_keep(records: Sequence[Record], every: int) -> list[Record]:
    """Choose the records after which a snapshot is taken.

    Between two of them, before the first and after the last lie at most `every` steps, or those of
    one record.
    """
    chosen, last = [], 0
    for record, following in pairwise(records):
        if following.end_step - last > every:
            chosen.append(record)
            last = record.end_step
    return chosen


def write_snapshots(log: Path, records: Sequence[Record], weights: Iterable[Flat]) -> Path:
    """Write the weights at the ends of some records, in the place of older snapshots."""
    path = path_of(log)
    if path.exists():
        with path.open("rb") as old:
            if old.read(len(MAGIC)) != MAGIC:
                raise FileExistsError(f"{path} holds no snapshots of a log; it is kept")
    with open_whole(path, overwrite=True) as file:
        file.write(MAGIC)
        for record, flat in zip(records, weights, strict=True):
            file.write(ENTRY.pack(record.end_step, record.crc))
            file.write(pack_base3(flat).tobytes())
    return path


def nearest(log: Path, records: Sequence[Record], size: int, step: int) -> tuple[int, Flat] | None:
    """Return the last snapshot up to a step: how many records it has behind it, and its weights.

    None if there is no file, or its first snapshot is later. `size` is the number of weights. A
    LogError names a file that is of other steps, or damaged.
    """
    path, length = path_of(log), ENTRY.size + -(-size // 5)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        count, rest = divmod(path.stat().st_size - len(MAGIC), length)
        if file.read(len(MAGIC)) != MAGIC or rest:
            raise _refused(path, f"holds no snapshots of {size} weights each")

        def entry(number: int, part: int) -> bytes:
            file.seek(len(MAGIC) + number * length)
            return file.read(part)

        def step_of(number: int) -> int:
            return int(ENTRY.unpack(entry(number, ENTRY.size))[0])

        number = bisect_right(range(count), step, key=step_of) - 1
        if number < 0:
            return None
        data = entry(number, length)
    at, crc = ENTRY.unpack_from(data)
    index = bisect_left(records, at, key=lambda record: record.end_step)
    if index == len(records) or records[index].end_step != at:
        raise _refused(path, f"is of another log: no record of {log} ends with step {at}")
    if records[index].crc != crc:
        raise _refused(path, f"is of another log than {log}: it had other steps up to {at}")
    try:
        flat = unpack_base3(np.frombuffer(data, np.uint8, offset=ENTRY.size), size)
    except ValueError as error:
        raise _refused(path, f"is damaged after step {at}: {error}") from None
    if sha256(flat.data).digest()[:DIGEST] != records[index].digest:
        raise _refused(path, f"is damaged: after step {at} the log's weights have another digest")
    return index + 1, flat


def _refused(path: Path, why: str) -> LogError:
    """Say why snapshots are not used, and what to do."""
    return LogError(f"{why}; delete it, or write the snapshots again", path=path)
