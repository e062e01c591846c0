"""What is raised where a checkpoint is damaged, or is none: file, tensor, byte.

May import: nothing of minibit.
"""

from __future__ import annotations

from os import PathLike, fspath

__all__ = ["CheckpointError", "shown"]


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


def shown(text: object) -> str:
    """Return what a file says as one short line: a hostile name may be long, or hold escapes."""
    line = ascii(text)
    return line if len(line) <= 100 else f"{line[:80]}... ({len(line)} characters)"
