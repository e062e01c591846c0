"""Wrong readers of GGUF: each replaces one step of the format, or leaves one check out."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from minibit.conformance.exact.gguf import Reader

__all__ = ["GGUF"]


class EndsInATensor(Reader):
    """A header that has a tensor at least."""

    def count(self, most: int) -> int:
        """Count one more where there is none."""
        self.lenient = frozenset({"ends", "five-axes", "sides", "beyond-the-file"})
        return super().count(most) or int(self.at == 16)


class ShortLengths(Reader):
    """Lengths and counts of 32 bits, as in version 1."""

    length = "I"
    lenient = frozenset({"ends", "text-beyond-the-file", "count-beyond-the-file"})

    def value(self, kind: int) -> Any:
        """Stop at what is no type."""
        return super().value(kind) if kind <= 12 else None


class OneSize(Reader):
    """An array of strings has strings of the first one's size."""

    lenient = frozenset({"ends", "text-beyond-the-file"})

    def step_over(self, kind: int, count: int) -> None:
        """Read one, and step as far for the others."""
        start = self.at
        self.value(kind)
        self.at = start + count * (self.at - start)

    def value(self, kind: int) -> Any:
        """Stop at what is no type."""
        return super().value(kind) if kind <= 12 else None


class SidesAsListed(Reader):
    """(n_out, n_in) taken for (n_in, n_out)."""

    def sides(self, lengths: list[int]) -> list[int]:
        """Keep their order."""
        return lengths


class NotPadded(Reader):
    """Data that begin right behind the table."""

    def begin(self) -> int:
        """Forget the padding."""
        return self.at


class NoTail(Reader):
    """Codes alone."""

    def tail(self) -> int:
        """Forget the scale."""
        return 0


class Wraps(Reader):
    """A product of sides in 64 bits."""

    lenient = frozenset({"sides"})

    def entries(self, sides: list[int]) -> int:
        """Let it wrap."""
        return prod(sides) % 2**64


class Signed(Reader):
    """Sides of 64 bits with a sign: -1 is small enough."""

    lenient = frozenset({"sides"})

    def entries(self, sides: list[int]) -> int:
        """Read them with a sign."""
        return max(0, prod(side - (side >> 63 << 64) for side in sides))


def _lenient(*names: str) -> type[Reader]:
    """Return a reader that leaves checks out."""
    return type("_", (Reader,), {"lenient": frozenset(names)})


WRONG: dict[str, type[Reader]] = {
    "ends-in-a-tensor": EndsInATensor,
    "short-lengths": ShortLengths,
    "strings-of-one-size": OneSize,
    "sides-as-listed": SidesAsListed,
    "not-padded": NotPadded,
    "tail-left-out": NoTail,
    "product-wraps": Wraps,
    "signed-sides": Signed,
    "magic-not-compared": _lenient("magic"),
    "byte-order-not-seen": _lenient("byte-order"),
    "version-not-compared": _lenient("version"),
    "count-not-bounded": _lenient("count-beyond-the-file"),
    "text-not-bounded": _lenient("text-beyond-the-file", "ends"),
    "axes-not-bounded": _lenient("five-axes", "beyond-the-file"),
    "unknown-type": _lenient("unknown-type", "beyond-the-file"),
    "end-not-compared": _lenient("beyond-the-file"),
    "alignment-not-checked": _lenient("not-aligned"),
}
GGUF: dict[str, Callable[..., Any]] = {
    f"checkpoint.open_gguf/{flag}": (lambda file, reader=reader: reader().read(file))
    for flag, reader in WRONG.items()
}
