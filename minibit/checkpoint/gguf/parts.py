"""A GGUF file that was split into parts, as ``llama-gguf-split`` does: read as one.

    NAME-00001-of-00003.gguf    all metadata, some tensors (or none)
    NAME-00002-of-00003.gguf    split.no 1, split.count 3, more tensors
    NAME-00003-of-00003.gguf    split.no 2, ..

Any part will do: the others lie beside it, and are found by their names alone, which no file says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minibit.base import CheckpointError, shown
from minibit.checkpoint.gguf.container import Bytes, GGUFFile, Tensor, open_gguf

__all__ = ["open_parts"]

_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)
_MOST = 1024  # parts; a file of 1 TB has 20 of 50 GB


@dataclass(frozen=True)
class Parts(GGUFFile):
    """Several files as one: the first one's metadata, and the tensors of all."""

    owners: Mapping[str, GGUFFile]  # by the name of a tensor, the part that holds it

    def bytes_of(self, tensor: Tensor) -> Bytes:
        """Return the bytes of a tensor, mapped: shape (nbytes,)."""
        return self.owners[tensor.name].bytes_of(tensor)

    def release(self, tensor: Tensor) -> None:
        """Give a tensor's pages back to the system."""
        self.owners[tensor.name].release(tensor)

    def error(self, message: str, tensor: Tensor | None = None, at: int = 0) -> CheckpointError:
        """Return an error about the part that holds a tensor, or about the first."""
        if tensor is None:
            return super().error(message)
        return self.owners[tensor.name].error(message, tensor, at)


def open_parts(path: str | os.PathLike[str]) -> GGUFFile:
    """Map a GGUF file as `open_gguf` does, and if it is a part of a split one, all parts.

    The metadata are the first part's. Raises `CheckpointError` as `open_gguf` does, for each part;
    if a part is missing, or named otherwise than the file that it was split from says; if two parts
    hold a tensor of one name, or all together another number than the first says.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> import numpy as np
    >>> from minibit.checkpoint.gguf.writer import NewTensor, write_gguf
    >>> folder = mkdtemp()
    >>> for part in range(2):
    ...     ones = NewTensor(f"t{part}", 0, (2,), lambda: [np.ones(2, "<f4")])
    ...     entries = {"split.no": part, "split.count": 2, "split.tensors.count": 2}
    ...     write_gguf(f"{folder}/m-{part + 1:05}-of-00002.gguf", entries, [ones])
    >>> list(open_parts(f"{folder}/m-00002-of-00002.gguf").tensors)
    ['t0', 't1']
    """
    path = Path(path)
    file = open_gguf(path)
    count = file.metadata.get("split.count", 1)
    if type(count) is not int or not 0 <= count <= _MOST:
        raise file.error(f"has split.count {shown(count)}; at most {_MOST} parts are read")
    if count <= 1:
        return file
    match = _NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        example = f"NAME-00001-of-{count:05}.gguf"
        raise file.error(f"is a part of {count}, which are found by names like {example}")
    parts = []
    for number in range(count):
        part = open_gguf(path.with_name(f"{match[1]}-{number + 1:05}-of-{count:05}.gguf"))
        no, of = (part.metadata.get(f"split.{key}") for key in ("no", "count"))
        if (no, of) != (number, count):
            has = f"has split.no {shown(no)} and split.count {shown(of)}"
            raise part.error(f"{has}, by its name they are {number} and {count}")
        parts.append(part)
    tensors: dict[str, Tensor] = {}
    owners: dict[str, GGUFFile] = {}
    for part in parts:
        for name, tensor in part.tensors.items():
            if name in owners:
                raise part.error(f"is in {owners[name].path.name}, too", tensor)
            tensors[name], owners[name] = tensor, part
    first = parts[0]
    total = first.metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise first.error(
            f"says that the parts hold {shown(total)} tensors, they hold {len(tensors)}"
        )
    return Parts(first.path, first.metadata, tensors, first.mapped, owners)
