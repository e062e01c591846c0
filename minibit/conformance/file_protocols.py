"""The meaning of a call whose argument is the content of a file, uint8 (bytes,)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

__all__ = ["FILES"]


@contextmanager
def file_of(content: Any, name: str) -> Iterator[Path]:
    """Write a file into a folder of its own, which goes with the block."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(np.asarray(content, np.uint8).tobytes())
        yield path


def open_gguf(offered: Any, file: Any) -> Any:
    """Metadata, an array as none; of each tensor ggml's type number, sides, first byte, bytes."""
    with file_of(file, "case.gguf") as path:
        header = offered.checkpoint.open_gguf(path)
        tensors = {
            name: {
                "type": tensor.kind,
                "shape": [*tensor.shape],
                "byte": tensor.offset,
                "bytes": header.bytes_of(tensor).copy(),
            }
            for name, tensor in header.tensors.items()
        }
        metadata = dict(header.metadata)
        header.mapped.close()
    return metadata, tensors


FILES: dict[str, Callable[..., Any]] = {"checkpoint.open_gguf": open_gguf}
