"""The tensors of a file or a folder as they are declared, and their bytes, a few at a time.

No byte is taken for what its declaration says, and no tensor is read whole: a file of any size
costs the memory of its header and of a sample.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import CheckpointError, beginning, check_file, read_json, shown
from minibit.checkpoint.gguf.container import Header, read_header
from minibit.checkpoint.gguf.types import NAMED, TYPES
from minibit.checkpoint.hf.shards import PICKLED
from minibit.checkpoint.safetensors import SafetensorsFile

__all__ = ["Entry", "Source", "open_source"]

Bytes = NDArray[np.uint8]
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_MOST_PARTS = 4096


@dataclass(frozen=True)
class Entry:
    """One tensor: what its file says of it, and where its bytes are."""

    name: str
    shape: tuple[int, ...]
    declared: str
    path: Path
    offset: int
    room: int  # bytes up to the next tensor, or to the end of the file
    unit: int = 1  # to whose multiple the room is padded
    number: int | None = None  # the type, in a GGUF file

    @property
    def matrix(self) -> tuple[int, int]:
        """Its shape as (n_out, n_in): axes before the last are rows."""
        return math.prod(self.shape[:-1]), self.shape[-1] if self.shape else 1

    def read(self, begin: int, length: int) -> Bytes:
        """Read so many of its bytes; fewer at the end of the file."""
        with self.path.open("rb") as file:
            data = os.pread(file.fileno(), length, self.offset + begin)
        return np.frombuffer(data, np.uint8)

    def read_rows(self, rows: NDArray[np.int64], stride: int, begin: int, length: int) -> Bytes:
        """Read a piece of each of some rows that lie `stride` bytes apart: (rows, length)."""
        pieces = np.zeros((len(rows), length), np.uint8)
        with self.path.open("rb") as file:
            for piece, row in zip(pieces, rows.tolist(), strict=True):
                data = os.pread(file.fileno(), length, self.offset + row * stride + begin)
                piece[: len(data)] = np.frombuffer(data, np.uint8)
        return pieces


@dataclass
class Source:
    """What a path turned out to be: a container, its tensors, and what it says of its model."""

    kind: str
    entries: list[Entry] = field(default_factory=list)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)  # (kind, sentence)


def open_source(path: Path) -> Source:
    """Open a file or a folder, whatever it is; `CheckpointError` if it is no model at all."""
    if path.is_dir():
        return _folder(path)
    check_file(path)
    with path.open("rb") as file:
        start = file.read(32)
    if start[:4] == b"GGUF":
        return _gguf(path)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return Source("safetensors", list(_safetensors(path)))
    raise CheckpointError(f"no model: {beginning(start)}", path, None, 0)


def _folder(path: Path) -> Source:
    """Open a Hugging Face directory, or one that holds a GGUF file or the parts of one."""
    names = sorted(file.name for file in path.iterdir())
    shards = [path / name for name in names if name.endswith(".safetensors")]
    whole = [path / name for name in names if name.endswith(".gguf")]
    if shards:
        source = Source("Hugging Face directory")
        for shard in shards:
            try:
                source.entries += _safetensors(shard)
            except CheckpointError as error:
                source.faults.append(("damaged", str(error)))
        try:
            source.metadata = read_json(path / "config.json")
        except CheckpointError as error:
            source.faults.append(("no-config", str(error)))
        return source
    parts = {match[1] if (match := _PART.fullmatch(file.name)) else file.name for file in whole}
    if len(parts) == 1:
        return _gguf(whole[0])
    if whole:
        raise CheckpointError(f"{len(parts)} GGUF models; name one of them", path)
    pickled = next((name for name in names if name.endswith(PICKLED)), None)
    if pickled:
        message = f"pickled weights ({shown(pickled)}), which can run any code and are never opened"
        raise CheckpointError(message, path)
    raise CheckpointError("neither safetensors nor GGUF files", path)


def _safetensors(path: Path) -> Iterator[Entry]:
    """List the tensors of a safetensors file."""
    file = SafetensorsFile(path)
    for name, tensor in file.tensors.items():
        size = tensor.end - tensor.begin
        yield Entry(name, tensor.shape, tensor.dtype, path, tensor.begin, size)


def _gguf(path: Path) -> Source:
    """Open a GGUF file, with the other parts if it is one of a split one."""
    source = Source("GGUF")
    for part in _parts(path, source):
        header = read_header(part)
        source.metadata = {**header.metadata, **source.metadata}
        source.entries += _entries(header, source)
    count = source.metadata.get("split.tensors.count")
    if type(count) is int and count != len(source.entries):
        message = f"the parts hold {len(source.entries)} of {count} tensors"
        source.faults.append(("split", message))
    return source


def _parts(path: Path, source: Source) -> list[Path]:
    """Return the files of a split one in order; parts that are not there are a fault."""
    match = _PART.fullmatch(path.name)
    if not match or not 1 <= int(match[3]) <= _MOST_PARTS:
        return [path]
    count = int(match[3])
    parts = [path.with_name(f"{match[1]}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        message = f"{len(missing)} of {count} parts are missing, {shown(missing[0])} first"
        source.faults.append(("split", message))
    return [part for part in parts if part.is_file()]


def _entries(header: Header, source: Source) -> Iterator[Entry]:
    """List the tensors of a GGUF file, with the room that its offsets leave each."""
    size = len(header.mapped)
    for line, room in header.rooms():
        offset = header.begin + line.offset
        if 0 in line.shape or math.prod(line.shape) >= 1 << 48:
            message = f"{shown(line.name)} has an impossible shape, {line.shape}"
            source.faults.append(("damaged", message))
            continue
        known = TYPES[line.kind][0].name if line.kind in TYPES else NAMED.get(line.kind)
        declared = known or f"type {line.kind}"
        room = max(0, min(room, size - offset))
        yield Entry(
            line.name, line.shape, declared, header.path, offset, room, header.unit, line.kind
        )
