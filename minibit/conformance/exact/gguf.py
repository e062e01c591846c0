"""The header of a GGUF file, read field by field as ggml's ``docs/gguf.md`` has it.

Each step of the format is a method, which a wrong variant replaces; each check has a name, by which
a wrong variant leaves it out.
"""

from __future__ import annotations

from math import prod
from struct import calcsize, unpack_from
from typing import Any

import numpy as np

__all__ = ["Reader", "Refused"]

SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
TYPES = {
    0: (1, 4),
    1: (1, 2),
    30: (1, 2),
    35: (256, 66),
    36: (4, 1),
}  # number: weights, bytes of a block


class Refused(ValueError):
    """A file that no reader may take."""


class Reader:
    """Reads a header: `read` gives its metadata (arrays as none) and its tensors."""

    lenient: frozenset[str] = frozenset()  # checks that a wrong variant leaves out
    length = "Q"  # of counts and texts

    def check(self, name: str, good: bool) -> bool:
        """Refuse, unless this check is left out; tell whether it held."""
        if not good and name not in self.lenient:
            raise Refused(name)
        return good

    def number(self, kind: str) -> Any:
        """Read one number; behind the end there is none."""
        size = calcsize(f"<{kind}")
        if not self.check("ends", self.at + size <= len(self.data)):
            return 0
        self.at += size
        return unpack_from(f"<{kind}", self.data, self.at - size)[0]

    def text(self) -> str:
        """Read a length and so many bytes."""
        length = self.number(self.length)
        self.check("text-beyond-the-file", length <= len(self.data) - self.at)
        self.at += length
        return self.data[self.at - length : self.at].decode(errors="replace")

    def value(self, kind: int) -> Any:
        """Read a value of the metadata; step over an array."""
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(SCALARS[kind])
        inner, count = self.number("I"), self.number(self.length)
        self.step_over(inner, count)
        return None

    def step_over(self, kind: int, count: int) -> None:
        """Step over an array's values, one by one."""
        for _ in range(count):
            self.value(kind)

    def count(self, most: int) -> int:
        """Read how many there are; each takes at least a byte."""
        count = int(self.number(self.length))
        good = self.check("count-beyond-the-file", count <= len(self.data) - self.at)
        return count if good else most

    def sides(self, lengths: list[int]) -> list[int]:
        """Turn lengths, from the fastest axis on, round."""
        return lengths[::-1]

    def size(self, kind: int, sides: list[int]) -> int:
        """Bytes of a tensor."""
        weights, size = TYPES[kind]
        return self.entries(sides) // weights * size + (self.tail() if kind == 36 else 0)

    def entries(self, sides: list[int]) -> int:
        """Weights of a tensor."""
        return prod(sides)

    def tail(self) -> int:
        """Bytes behind the codes of I2_S: the scale, and padding."""
        return 32

    def begin(self) -> int:
        """Return where the data begin: behind the table, at a multiple of 32."""
        return -(-self.at // 32) * 32

    def tensor(self) -> tuple[str, int, list[int], int]:
        """Read a line of the table: name, type, sides and offset."""
        name, axes = self.text(), self.number("I")
        self.check("five-axes", 1 <= axes <= 4)
        lengths = [self.number("Q") for _ in range(axes)]
        kind, offset = self.number("I"), self.number("Q")
        self.check("sides", 0 not in lengths and prod(lengths) < 2**63)
        kind = kind if self.check("unknown-type", kind in TYPES) else 0
        return name, kind, self.sides(lengths), offset

    def read(self, file: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return metadata and tensors: type, sides, first byte and bytes."""
        self.data, self.at = bytes(np.asarray(file, np.uint8).tolist()), 0
        self.check("magic", [self.number("B") for _ in range(4)] == [*b"GGUF"])
        version = self.number("I")
        if not self.check("byte-order", version & 0xFFFF != 0):
            return {}, {}
        self.check("version", version in (2, 3))
        tensors, entries = self.count(0), self.count(0)
        metadata = {}
        for _ in range(entries):
            key = self.text()
            metadata[key] = self.value(self.number("I"))
        lines = [self.tensor() for _ in range(tensors)]
        start, table = self.begin(), {}
        for name, kind, sides, offset in lines:
            self.check("not-aligned", offset % 32 == 0)
            first, size = start + offset, self.size(kind, sides)
            self.check("beyond-the-file", first + size <= len(self.data))
            held = np.frombuffer(self.data[first : first + size], np.uint8)
            table[name] = {"type": kind, "shape": sides, "byte": first, "bytes": held}
        return metadata, table
