"""Safetensors: a length, a JSON header, and the tensors' bytes; mapped, not read.

    file   = length:u64  header[length]  data
    header = {"NAME": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ...}

Little-endian; offsets count from the first byte after the header; tensors fill the data without a
gap or an overlap. Every size is compared with the file's before anything of that size is made.

The ``safetensors`` package hands NumPy copies, and no bfloat16 (NumPy has none). A model's head
must stay mapped, and be seen as the 16 bits that it is; and damage must be named by its byte. So
the format, which is this short, is read here; the tests hold the two equal.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from minibit.base import (
    CheckpointError,
    beginning,
    check_file,
    checked_json,
    finite,
    open_whole,
    shown,
    whole_files,
)

__all__ = ["SafetensorsFile", "Tensor", "as_written", "write_safetensors", "write_with_config"]

MOST_HEADER = 1 << 24  # bytes; a model of 30 layers takes 60,000
MOST_AXES = 8
DTYPES: dict[str, np.dtype[Any]] = {  # in the order of the published library, smallest first
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # its bits: the upper half of a float32
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
Specs = Mapping[str, tuple[str, tuple[int, ...]]]  # of tensors to write: dtype and shape by name
Produce = Callable[[str], Iterable[NDArray[Any]]]  # the arrays of a tensor, by its name
FORMAT = {"format": "pt"}  # transformers asks for this entry
FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Tensor:
    """A tensor's place and type by the header, checked against the file."""

    name: str
    dtype: str  # a key of `DTYPES`
    shape: tuple[int, ...]
    begin: int  # byte of the file
    end: int


class SafetensorsFile:
    """A safetensors file whose header was found good, its data mapped into memory.

    `tensors` maps a name to its `Tensor`, in the header's order. The map is private and
    copy-on-write: arrays are writable, as kernels want them, and the file never changes. It lives
    as long as an array of it does. A `CheckpointError` tells of what is no file, ends early, or has
    a header that says what no safetensors header says.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        check_file(self.path)
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            text = self._header(file, size)
            self.data = 8 + len(text)  # byte at which the tensors begin
            self.tensors = self._parse(text, size)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if len(self._map) != size:
            self.damage(f"had {size} bytes, and now {len(self._map)}: it is being written to")

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor as it lies in the map: no byte is read yet; bfloat16 as uint16 bits."""
        tensor = self.tensors[name]
        return np.ndarray(tensor.shape, DTYPES[tensor.dtype], self._map, tensor.begin)

    def release(self, name: str) -> None:
        """Give a tensor's pages back to the system, if it takes them: changes to them are lost."""
        tensor = self.tensors[name]
        begin = tensor.begin // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED") and tensor.end > begin:
            self._map.madvise(mmap.MADV_DONTNEED, begin, tensor.end - begin)

    def damage(
        self, message: str, tensor: str | None = None, offset: int | None = None
    ) -> NoReturn:
        """Raise a `CheckpointError` that names this file."""
        raise CheckpointError(message, self.path, tensor, offset)

    def _header(self, file: BinaryIO, size: int) -> bytes:
        """Return the header's JSON text, after looking whether the file can hold it."""
        start = file.read(8)
        if len(start) < 8:
            self.damage("the file ends within the header's length", offset=size)
        length = int.from_bytes(start, "little")
        if length > min(MOST_HEADER, size - 8):
            most = f"; the most is {MOST_HEADER}"
            limit = most if length > MOST_HEADER else f", but {size - 8} follow"
            opening = beginning(start + file.read(24))
            self.damage(f"a header of {length} bytes{limit}; {opening}", offset=0)
        return file.read(length)

    def _parse(self, text: bytes, size: int) -> dict[str, Tensor]:
        """Return the tensors that the header names, checked one by one and against the file."""
        header = checked_json(text, self.path, offset=8)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            self.damage("__metadata__ must map names to strings", offset=8)
        tensors = {name: self._tensor(name, entry, size) for name, entry in header.items()}
        end, before = self.data, "the header"
        for tensor in sorted(tensors.values(), key=lambda t: (t.begin, t.end)):
            if tensor.begin != end:
                fault = "overlaps" if tensor.begin < end else "leaves a gap after"
                self.damage(f"{fault} {before}, which ends at {end}", tensor.name, tensor.begin)
            end, before = tensor.end, shown(tensor.name)
        if end != size:
            self.damage(f"the tensors end at byte {end}, the file at {size}", offset=min(end, size))
        return tensors

    def _tensor(self, name: str, entry: Any, size: int) -> Tensor:
        """Return one tensor of the header, its sizes whole, in order, and within the file."""
        if not isinstance(entry, dict) or set(entry) != FIELDS:
            self.damage(f"must have {sorted(FIELDS)}, got {shown(entry)}", name)
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            self.damage(f"dtype must be one of {', '.join(DTYPES)}, got {shown(dtype)}", name)
        if not _are_sizes(shape) or len(shape) > MOST_AXES:
            self.damage(f"shape must be at most {MOST_AXES} sizes, got {shown(shape)}", name)
        if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            self.damage(f"data_offsets must be [begin, end], got {shown(offsets)}", name)
        begin, end = (self.data + offset for offset in offsets)
        if end > size:
            self.damage(f"ends at byte {end}, but the file at {size}", name, size)
        if (takes := prod(shape) * DTYPES[dtype].itemsize) != end - begin:
            sizes = f"takes {takes} bytes, its data_offsets hold {end - begin}"
            self.damage(f"{dtype} of shape {shape} {sizes}", name, begin)
        return Tensor(name, dtype, tuple(shape), begin, end)


def _are_sizes(values: Any) -> bool:
    """Whether this is a list of whole numbers that a file's size can be compared with."""
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**48 for n in values)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Specs,
    produce: Produce,
    *,
    metadata: Mapping[str, str] = FORMAT,
    overwrite: bool = False,
) -> None:
    """Write a safetensors file, a piece of a tensor at a time: the whole of it appears, or nothing.

    The bytes are those of the published library: wide dtypes first, then by name; the header filled
    with spaces to a multiple of 8.

    Parameters
    ----------
    path : path-like
        Where nothing may be (`FileExistsError`), unless `overwrite` is given.
    tensors : mapping
        Name to (dtype, shape), as the header says them.
    produce : callable
        Called with each name in the file's order; yields the tensor's bytes in arrays of any size,
        as many as its shape takes (`ValueError`).
    metadata : mapping
        Names to strings; by default those that transformers asks for.
    overwrite : bool
        Replace a file that is there.
    """
    order = list(DTYPES)
    names = sorted(tensors, key=lambda name: (-order.index(tensors[name][0]), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    sizes, begin = {}, 0
    for name in names:
        dtype, shape = tensors[name]
        sizes[name] = prod(shape) * DTYPES[dtype].itemsize
        end = begin + sizes[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open_whole(path, overwrite=overwrite) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            written = sum(file.write(_bytes(piece)) for piece in produce(name))
            if written != sizes[name]:
                raise ValueError(f"{name!r} takes {sizes[name]} bytes, got {written}")


def write_with_config(
    folder: str | os.PathLike[str],
    names: tuple[str, str],
    config: str,
    tensors: Specs,
    produce: Produce,
) -> None:
    """Write weights and their configuration, a text, into a folder: both appear, or none.

    The folder is made if it is not there; in it neither of the two `names`, of the weights and of
    the configuration, may be taken. The rest is as for `write_safetensors`.
    """
    weights, last = names
    for name in names:
        if os.path.lexists(Path(folder) / name):
            raise FileExistsError(f"{folder} holds {name}, which is never written over")
    with whole_files(folder, last) as workspace:
        write_safetensors(workspace / weights, tensors, produce)
        (workspace / last).write_text(config, encoding="utf-8", newline="")


def _bytes(piece: NDArray[Any]) -> memoryview:
    """Return an array's bytes as a file has them: C order, little-endian."""
    return np.ascontiguousarray(piece, piece.dtype.newbyteorder("<")).reshape(-1).view("u1").data


def as_written(param: str, value: Any) -> NDArray[Any]:
    """Return floats as a checkpoint has them, float32 or bits of bfloat16, if a reader takes them.

    Raises ValueError if one is not finite as float32, or those of a matrix are all zeros.
    """
    array = np.asarray(value)
    with np.errstate(over="ignore"):  # the next check refuses an overflow
        numbers = array if array.dtype == np.uint16 else array.astype(np.float32, copy=False)
    finite(param, numbers)
    if numbers.ndim == 2 and not numbers.any():
        raise ValueError(f"{param} must not be all zeros: no reader takes it for trained")
    return numbers
