"""Adam whose running means live in a file: state larger than memory, a page at a time.

A file is mapped into memory, and a step walks over it in strips. A strip is read in as it is
touched (the next is asked for in advance), moved on in place, and let go: the system keeps it or
writes it out. It is QLoRA's paged optimizer, with a file in place of a GPU's unified memory.

    file = header[4096]   then for each parameter: m, padded to pages; v, padded to pages
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import tempfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from minibit.base import integer, parse_object
from minibit.dual import Tree
from minibit.tape import Adam, FloatArray, adam_move

__all__ = ["PagedAdam"]

PAGE = 1 << 16  # bytes: a whole number of pages on every system; Linux maps so much around a fault
HEADER = 4096  # bytes that the header may take; the arrays begin at PAGE
MAGIC = b"minibit PagedAdam 1\n"


class PagedAdam(Adam):
    """Adam with decoupled weight decay, its two running means in a memory-mapped file.

    Parameters
    ----------
    params, lr, betas, eps, weight_decay
        As `minibit.tape.adam.Adam`; so are the attributes and errors. `nbytes` are those of the
        means, wherever they lie.
    budget : int
        Bytes of the means that may be mapped at a time, above 0. Pages are the grain: a strip of
        each mean takes one of 64 KB at least, whatever the budget.
    path : path-like, optional
        A file to keep the means in. If it is there, they go on from what it holds; one that is
        damaged, short, not closed, or of other shapes or types is a ValueError, and was not
        changed. By default a file without a name in the folder for temporary files, which vanishes
        with this object or its process. An OSError if there is no room: all is reserved at the
        start.

    Notes
    -----
    Bit-equal to `Adam`, for every budget. Parameters and gradients stay in memory; of the state, no
    more than the budget does. A file is marked as open until `close` (or the end of a ``with``),
    which writes the steps and a checksum: before, it may have stopped in the middle of a step.
    Another process must not write to the file or cut it: a step checks its length first. Where the
    system takes no advice about pages (Windows), they are not let go. If the folder for temporary
    files lies in memory (tmpfs), say `path`. Source: arXiv 2305.14314, section 3.

    Examples
    --------
    >>> with PagedAdam({"w": np.array([1.0, -2.0])}, lr=0.1, budget=1 << 20) as adam:
    ...     adam.step({"w": np.array([0.3, -50.0])})["w"].round(6)
    array([ 0.9, -1.9])
    """

    def __init__(
        self,
        params: Tree,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        budget: int = 1 << 26,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)  # zeros, whose pages nobody touches
        self.budget, self.path = integer("budget", budget, 1), None if path is None else Path(path)
        self._layout = [[p.dtype.str, int(p.size)] for p in self._now]
        lengths = [-(-p.nbytes // PAGE) * PAGE for p in self._now]
        self._length = PAGE + 2 * sum(lengths)
        self._map = self._open()
        self._begins: list[tuple[int, int]] = []  # of the means of each parameter, in the file
        begin = PAGE
        for i, (p, length) in enumerate(zip(self._now, lengths, strict=True)):
            self._begins.append((begin, begin + length))
            self._means[i], self._squares[i] = (
                np.ndarray(p.size, p.dtype, buffer=self._map, offset=at) for at in self._begins[i]
            )
            begin += 2 * length

    def step(self, grads: Tree, lr: float | None = None, weight_decay: float | None = None) -> Tree:
        """Move as `Adam.step` does; after `close`, or if the file was cut, it is a ValueError."""
        if self._map is None:
            raise ValueError("this PagedAdam is closed")
        gradients, constants = self._begin(grads, lr, weight_decay)
        for i, g in gradients:
            self._now[i] = self._moved(i, g, constants)
        return self.params

    def _check(self) -> None:
        """Check that the file is as long as it was made."""
        assert self._map is not None
        if self._map.size() != self._length:  # a page beyond the end would end the process
            name = "the temporary file" if self.path is None else self.path
            raise ValueError(
                f"{name} had {self._length} bytes, now it has {self._map.size()}: someone else "
                "wrote to it, and the means are lost"
            )

    def _moved(self, i: int, gradient: FloatArray, constants: tuple[float, ...]) -> FloatArray:
        """Return parameter i, moved strip by strip."""
        now, m, v = self._now[i], self._means[i], self._squares[i]
        p, g, moved = now.reshape(-1), gradient.reshape(-1), np.empty_like(now)
        out, size = moved.reshape(-1), p.dtype.itemsize
        strip = max(self.budget // (2 * PAGE), 1) * PAGE // size  # entries
        move, numbers = adam_move(), np.array(constants, p.dtype)
        advise = partial(self._advise, self._map)
        for a in range(0, p.size, strip):
            part = slice(a, min(a + strip, p.size))
            move(p[part], g[part], m[part], v[part], out[part], numbers)
            for begin in self._begins[i]:  # a fault maps neighbours, too: let go of these
                advise("MADV_DONTNEED", begin + a * size - PAGE, strip * size + 2 * PAGE)
                if part.stop < p.size:
                    advise("MADV_WILLNEED", begin + part.stop * size, strip * size)
        return moved

    def _advise(self, mapped: mmap.mmap | None, name: str, begin: int, length: int) -> None:
        """Tell the system what becomes of a strip, where it listens."""
        advice = getattr(mmap, name, None)
        if advice is not None and mapped is not None:
            mapped.madvise(advice, begin, min(length, self._length - begin))

    def close(self) -> None:
        """End: write steps and checksum into a file that has a path; `params` stay in memory."""
        if self._map is None:
            return
        if self.path is not None:
            self._write_header(self._map, self._checksum(self._map))
            self._map.flush()
        self._means, self._squares = [], []
        with contextlib.suppress(BufferError):  # someone holds a view: its end is the map's
            self._map.close()
        self._map = None

    @property
    def nbytes(self) -> int:
        """Bytes of the two means, in the file."""
        return 2 * sum(p.nbytes for p in self._now)

    def __enter__(self) -> Self:
        """Return the optimizer, which is closed at the end of the block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self.close()

    def _open(self) -> mmap.mmap | None:
        """Map the file: a new one, or one that was closed."""
        if self.path is None:
            with tempfile.TemporaryFile(prefix="minibit-") as file:
                return self._reserve(file.fileno())
        if self.path.exists():
            return self._reopen(self.path)
        with open(self.path, "xb+") as file:
            try:
                mapped = self._reserve(file.fileno())
            except OSError:
                self.path.unlink()
                raise
        self._write_header(mapped, None)
        return mapped

    def _reserve(self, file: int) -> mmap.mmap:
        """Give a file its length, with room for all of it: a page without would end the process."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, self._length)
        else:
            os.ftruncate(file, self._length)
        return mmap.mmap(file, self._length)

    def _reopen(self, path: Path) -> mmap.mmap:
        """Map a file that is there, if it is whole and belongs to these parameters."""
        with open(path, "rb+") as file:
            header = self._parse(file.read(HEADER), os.fstat(file.fileno()).st_size)
            mapped = mmap.mmap(file.fileno(), self._length)
        if self._checksum(mapped) != header["crc32"]:
            mapped.close()
            raise ValueError(f"{path} is damaged: its means do not have the checksum of its header")
        self.steps = header["steps"]
        self._write_header(mapped, None)  # open from here on, to others as well
        return mapped

    def _parse(self, text: bytes, length: int) -> dict[str, Any]:
        """Return a header that was found true, or say what is wrong with it."""
        if not text.startswith(MAGIC):
            raise ValueError(f"{self.path} holds no means of PagedAdam (byte 0)")
        try:
            header = parse_object(text[len(MAGIC) :].rstrip(b"\0"))
            layout, steps, crc = header["arrays"], header["steps"], header["crc32"]
        except (ValueError, KeyError):
            raise ValueError(f"{self.path} has a damaged header (byte {len(MAGIC)})") from None
        others = "belongs to other parameters: another number, size or type of arrays"
        for wrong, message in (
            (layout != self._digest(), others),
            (crc is None, "is in use, or was not closed: a step may be half done in it"),
            (length != self._length, f"must have {self._length} bytes, got {length}"),
            (type(steps) is not int or steps < 0, f"says that it took {steps!r} steps"),
        ):
            if wrong:
                raise ValueError(f"{self.path} {message}")
        return header

    def _digest(self) -> str:
        """Name number, types and sizes of the arrays, as shortly as a header wants it."""
        text = json.dumps(self._layout, separators=(",", ":"))
        return f"{len(self._layout)} arrays, crc32 {zlib.crc32(text.encode()):08x}"

    def _write_header(self, mapped: mmap.mmap, crc: int | None) -> None:
        """Write what the means belong to; without a checksum they are in use."""
        header = {"arrays": self._digest(), "steps": self.steps, "crc32": crc}
        mapped[:HEADER] = (MAGIC + json.dumps(header).encode()).ljust(HEADER, b"\0")

    def _checksum(self, mapped: mmap.mmap) -> int:
        """CRC-32 of all means, strip by strip."""
        crc, strip = 0, max(self.budget // PAGE, 1) * PAGE
        for begin in range(PAGE, self._length, strip):
            with memoryview(mapped) as whole, whole[begin : begin + strip] as part:
                crc = zlib.crc32(part, crc)
            self._advise(mapped, "MADV_DONTNEED", begin, strip)
        return crc
