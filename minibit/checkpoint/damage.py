"""What is raised where a checkpoint is damaged, or is none: file, tensor, byte."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CheckpointError", "as_written", "check_file", "first_not_finite", "shown"]

PIECE = 1 << 16  # numbers that are looked at together: what that takes stays in the cache


class CheckpointError(ValueError):
    """A checkpoint is damaged, hostile, or holds what its configuration does not say.

    The message names the file, the tensor, what came, what was expected, and the byte where there
    is one. Nothing was changed on disk.

    Attributes
    ----------
    file : str or None
    tensor : str or None
    offset : int or None
        Byte of the file at which the damage begins.
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
        where = "" if self.file is None else f"{self.file}: "
        what = "" if tensor is None else f"tensor {shown(tensor)}: "
        byte = "" if offset is None else f" (byte {offset})"
        super().__init__(f"{where}{what}{message}{byte}")


def check_file(path: Path) -> None:
    """Raise unless this is a file, or a link to one: to open a pipe may take for ever."""
    if path.is_file():
        return
    if path.is_symlink() and not path.exists():
        raise CheckpointError("is a link to nothing", path)
    if path.exists():
        raise CheckpointError("is no file", path)
    raise CheckpointError("there is no such file", path)


def first_not_finite(numbers: NDArray[Any]) -> int | None:
    """Return the flat index of the first NaN or infinity, or None; uint16 is bits of bfloat16.

    Examples
    --------
    >>> first_not_finite(np.float32([[1, 2], [np.inf, np.nan]]))
    2
    >>> first_not_finite(np.uint16([0x3F80, 0x7F80])), first_not_finite(np.uint16([0x3F80]))
    (1, None)
    """
    flat = numbers.reshape(-1)
    for start in range(0, flat.size, PIECE):
        part = flat[start : start + PIECE]
        bits = part.dtype == np.uint16
        wrong = part & np.uint16(0x7F80) == 0x7F80 if bits else ~np.isfinite(part)
        if wrong.any():
            return start + int(np.argmax(wrong))
    return None


def as_written(param: str, value: Any) -> NDArray[Any]:
    """Return floats as a checkpoint has them, float32 or bits of bfloat16, if a reader takes them.

    Raises
    ------
    ValueError
        If one is not finite as float32, or those of a matrix are all zeros.

    Examples
    --------
    >>> as_written("norm", [1e300])
    Traceback (most recent call last):
        ...
    ValueError: norm must be finite to be written, got inf at 0
    """
    array = np.asarray(value)
    with np.errstate(over="ignore"):  # of what is then refused
        numbers = array if array.dtype == np.uint16 else array.astype(np.float32, copy=False)
    first = first_not_finite(numbers)
    if first is not None:
        number = numbers.reshape(-1)[first]
        got = f"the bits {number:#06x}" if numbers.dtype == np.uint16 else f"{number}"
        raise ValueError(f"{param} must be finite to be written, got {got} at {first}")
    if numbers.ndim == 2 and not numbers.any():
        raise ValueError(f"{param} must not be all zeros: no reader takes it for trained")
    return numbers


def shown(text: object) -> str:
    """Return what a file says as one short line: a hostile name may be long, or hold escapes."""
    line = ascii(text)
    return line if len(line) <= 100 else f"{line[:80]}... ({len(line)} characters)"
