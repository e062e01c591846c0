"""Write GGUF files: whole or not at all, and a tensor at a time.

The form is that of `minibit.checkpoint.gguf.container`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibit.base import open_whole
from minibit.checkpoint.gguf.container import ALIGNMENT, nbytes

__all__ = ["Entry", "NewTensor", "write_gguf"]

Entry = int | float | bool | str | list[str] | list[int]
_INT32, _STRING, _ARRAY = 5, 8, 9


class NewTensor(NamedTuple):
    """A tensor to be written, its bytes made when they are due."""

    name: str
    kind: int
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[NDArray[Any]]]


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Entry],
    tensors: Iterable[NewTensor],
    *,
    overwrite: bool = False,
) -> None:
    """Write a GGUF file of version 3, whole or not at all, by `minibit.base.open_whole`.

    Metadata are strings, truth values, whole numbers from 0 to 2**32 - 1 (u32), floats (f32); lists
    of strings, or of whole numbers (i32). A tensor gives its bytes in chunks when its turn comes;
    if they are not as many as its type and shape take, a ValueError is raised and nothing written.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> ones = NewTensor("ones", 0, (2,), lambda: [np.ones(2, "<f4")])
    >>> write_gguf(path := mkdtemp() + "/small.gguf", {}, [ones])
    >>> os.path.getsize(path)  # a header of 64 bytes and two numbers, each filled to 32
    96
    """
    tensors = list(tensors)
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        head += [_packed(key), _entry(key, value)]
    offset = 0
    for tensor in tensors:
        lengths = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        head += [_packed(tensor.name), lengths, struct.pack("<IQ", tensor.kind, offset)]
        size = nbytes(tensor.kind, tensor.shape)
        offset += size + -size % ALIGNMENT
    with open_whole(path, overwrite=overwrite) as file:
        written = file.write(b"".join(head))
        file.write(bytes(-written % ALIGNMENT))
        for tensor in tensors:
            size = sum(file.write(np.ascontiguousarray(part).data) for part in tensor.chunks())
            if size != (takes := nbytes(tensor.kind, tensor.shape)):
                raise ValueError(f"{tensor.name} gave {size} bytes, takes {takes}")
            file.write(bytes(-size % ALIGNMENT))


def _packed(text: str) -> bytes:
    """Give a string as the file has it."""
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _entry(key: str, value: Entry) -> bytes:
    """Give the type and value of a metadata entry."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _packed(value)
    if isinstance(value, list):
        if all(isinstance(item, str) for item in value):
            strings = b"".join(_packed(str(item)) for item in value)
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + strings
        return struct.pack(f"<IIQ{len(value)}i", _ARRAY, _INT32, len(value), *value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if not 0 <= value < 1 << 32:
        raise ValueError(f"metadata {key} must be from 0 to 2**32 - 1, got {value}")
    return struct.pack("<II", 4, value)
