"""Every layout of ternary weights as one table: where in a block each weight stands.

    Q2_0    64 in 18    d q q q q ...             twos, side by side
    PQ2_0   128 in 34   d q q q q ...             the same
    TQ2_0   256 in 66   q q q q ... d             twos, 32 columns apart
    TQ1_0   256 in 54   t t t t ... d             five trits per byte, in stages of 32 and 16 bytes
    PTQ1_0  128 in 28   t t t t ... d             the same, in stages of 16 and 8
    STQ1_0  256 in 42   slots, signs, d           four weights in five bits
    I2_S    128 in 32   q q q q ...               twos, 32 apart (x86) or 16 (arm), or four rows
    HF      4 in 1      q q q q ...               twos: four rows a quarter of the matrix apart

A block's bytes are decoded into values (blocks, units, slots); `places` says for each weight which
unit and slot is its own. What writers get wrong is in the same terms: another end for the scale
(`frames`), other places or another coding (`orders`). The pictures of ``docs/formats.md`` are
drawn from this table, and the tests hold it equal to `minibit.ternary`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.ternary import from_stq1_0

__all__ = ["HF", "LAYOUTS", "ROWS", "Layout", "decode", "frames", "orders"]

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]
Places = NDArray[np.int16]  # (weights, 2): unit and slot
ILLEGAL = 3  # the code of a byte that no encoder writes; 2 is the two-bit code 3, for +2


@dataclass(frozen=True, eq=False)
class Layout:
    """How a block of a row becomes bytes, or, for `rows`, how four rows do."""

    name: str
    weights: int
    nbytes: int
    scale: int | None  # the byte at which the float16 of a block begins
    coding: str  # twos, fractions, plain (base 3 without the fraction), slots
    order: str  # in words
    places: Places
    rows: bool = False  # a byte holds one column of four rows, and `places` is of those

    @property
    def body(self) -> slice:
        """The bytes of a block that hold codes."""
        if self.scale is None:
            return slice(0, self.nbytes)
        return slice(2, self.nbytes) if self.scale == 0 else slice(0, self.scale)

    def divides(self, shape: tuple[int, int]) -> bool:
        """Whether a matrix (n_out, n_in) is whole blocks."""
        n_out, n_in = shape
        if self.rows:
            return n_out % 4 == 0 or self.name != "I2_S"
        return n_in > 0 and n_in % self.weights == 0

    def size(self, shape: tuple[int, int]) -> int | None:
        """Return the bytes of a matrix with its tail; None if blocks do not divide it.

        I2_S takes the same in each of its orders, whichever of them divide the matrix.
        """
        n_out, n_in = shape
        if self.name == "I2_S":
            return n_out * n_in // 4 + 32 if n_out * n_in % 4 == 0 else None
        if self.rows:
            return -(-n_out // 4) * n_in
        return n_out * (n_in // self.weights) * self.nbytes if self.divides(shape) else None


def _apart(weights: int, columns: int, highest: bool = False) -> Places:
    """Place weights in twos: the four of a byte lie so many columns apart."""
    j = np.arange(weights)
    group, rest = np.divmod(j, 4 * columns)
    slot, byte = np.divmod(rest, columns)
    return np.stack([group * columns + byte, 3 - slot if highest else slot], axis=-1).astype("i2")


def _stages(*stages: tuple[int, int]) -> Places:
    """Place weights in stages of (bytes, trits): first each byte's first trit, then the second."""
    places, begin = [], 0
    for count, trits in stages:
        byte, slot = np.tile(np.arange(count), trits), np.repeat(np.arange(trits), count)
        places.append(np.stack([begin + byte, slot], axis=-1))
        begin += count
    return np.concatenate(places).astype("i2")


def _side_by_side(places: Places) -> Places:
    """Sort places by byte: the trits of a byte become neighbours."""
    return places[np.lexsort((places[:, 1], places[:, 0]))]


def _lowest_first(places: Places) -> Places:
    """Turn round the trits of each byte."""
    count = np.bincount(places[:, 0])[places[:, 0]]
    return np.stack([places[:, 0], count - 1 - places[:, 1]], axis=-1).astype("i2")


_SIDE, _APART = "side by side, lowest bits first", "{} columns apart, lowest bits first"
_STAGED = "in stages, highest trit first"
_TQ1 = _stages((32, 5), (16, 5), (4, 4))
_PTQ1 = _stages((16, 5), (8, 5), (2, 4))
_GROUPS = np.arange(256)
_STQ1 = np.stack([16 * (_GROUPS // 64) + _GROUPS % 16, _GROUPS // 16 % 4], axis=-1).astype(
    "i2"
)  # group 16 c + l, and the place in it
_ROW = np.arange(4)
HF = Layout(
    "HF", 4, 1, None, "twos", "rows a quarter apart, lowest bits first",
    np.stack([_ROW, _ROW], axis=-1).astype("i2"), rows=True,
)  # fmt: skip
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("Q2_0", 64, 18, 0, "twos", _SIDE, _apart(64, 1)),
        Layout("PQ2_0", 128, 34, 0, "twos", _SIDE, _apart(128, 1)),
        Layout("TQ2_0", 256, 66, 64, "twos", _APART.format(32), _apart(256, 32)),
        Layout("TQ1_0", 256, 54, 52, "fractions", _STAGED, _TQ1),
        Layout("PTQ1_0", 128, 28, 26, "fractions", _STAGED, _PTQ1),
        Layout("STQ1_0", 256, 42, 40, "slots", "16 columns apart", _STQ1),
    )
}
_I2_S = Layout(
    "I2_S", 128, 32, None, "twos", "x86: 32 columns apart, highest bits first",
    _apart(128, 32, highest=True),
)  # fmt: skip
LAYOUTS["I2_S"] = _I2_S
_ARM = replace(
    _I2_S, weights=64, nbytes=16, places=_apart(64, 16, highest=True),
    order="arm: 16 columns apart, highest bits first",
)  # fmt: skip
ROWS = replace(
    HF, name="I2_S", order="rows: four neighbouring rows, highest bits first",
    places=np.stack([_ROW, 3 - _ROW], axis=-1).astype("i2"),
)  # fmt: skip


def frames(layout: Layout) -> Iterator[Layout]:
    """Yield a layout with its scale where it belongs, and at the other end of the block.

    For base 3 each comes once more, with plain numbers for bytes and not binary fractions.
    """
    codings = ("fractions", "plain") if layout.coding == "fractions" else (layout.coding,)
    for coding in codings:
        yield replace(layout, coding=coding)
        if layout.scale is not None:
            other = layout.nbytes - 2 if layout.scale == 0 else 0
            yield replace(layout, scale=other, coding=coding)


def orders(layout: Layout) -> Iterator[Layout]:
    """Yield a layout as published, then as writers mistake it: what fits the same bytes."""
    yield layout
    if layout is HF or layout is ROWS:
        for name, other in (("lowest", _ROW), ("highest", 3 - _ROW)):
            words = f"rows: four neighbouring rows, {name} bits first"
            if words != layout.order:
                yield replace(ROWS, name=layout.name, order=words,
                              places=np.stack([_ROW, other], axis=-1).astype("i2"))  # fmt: skip
    elif layout.name == "I2_S":
        yield _ARM
        yield ROWS
    elif layout.coding == "twos":
        for columns in (1, 16, 32):
            for bits in ("lowest", "highest"):
                words = f"{columns} columns apart" if columns > 1 else "side by side"
                words += f", {bits} bits first"
                if words != layout.order and layout.weights % (4 * columns) == 0:
                    places = _apart(layout.weights, columns, bits == "highest")
                    yield replace(layout, order=words, places=places)
    elif layout.coding in ("fractions", "plain"):
        flat = _side_by_side(layout.places)
        yield replace(layout, order="side by side, highest trit first", places=flat)
        yield replace(
            layout, order="in stages, lowest trit first", places=_lowest_first(layout.places)
        )
        flat = _side_by_side(_lowest_first(flat))
        yield replace(layout, order="side by side, lowest trit first", places=_lowest_first(flat))
    else:
        groups = np.stack([_GROUPS // 4, _GROUPS % 4], axis=-1).astype("i2")
        yield replace(layout, order="side by side", places=groups)


def decode(layout: Layout, blocks: Bytes) -> tuple[Codes, NDArray[np.float32] | None]:
    """Decode blocks, uint8 (n, nbytes): codes int8 (n, weights), and their float16 scales (n,).

    A code is -1, 0 or 1; 2 for the two-bit code 3, and 3 where no encoder writes such a byte.
    """
    values = _VALUES[layout.coding](layout, blocks[:, layout.body])  # (n, units, slots)
    codes = values[:, layout.places[:, 0], layout.places[:, 1]]  # (n, weights)
    if layout.scale is None:
        return codes, None
    halves = np.ascontiguousarray(blocks[:, layout.scale : layout.scale + 2]).view("<f2")
    return codes, halves[:, 0].astype(np.float32)


def _twos(_: Layout, body: Bytes) -> Codes:
    """Return the four codes of each byte, lowest bits first."""
    return _TWOS[body]


def _trits(layout: Layout, body: Bytes) -> Codes:
    """Return the five trits of each byte, highest first; bytes that no encoder writes as 3."""
    values = (_FRACTIONS if layout.coding == "fractions" else _PLAIN)[body]
    four = np.bincount(layout.places[:, 0]) == 4  # bytes of four trits: the last is no weight
    if layout.coding == "plain":
        values[:, four, :4] = values[:, four, 1:]
    return values


def _slots(_: Layout, body: Bytes) -> Codes:
    """Return the four weights of each group of STQ1_0."""
    blocks = np.zeros((len(body), 42), np.uint8)
    blocks[:, :40] = body
    codes = from_stq1_0(blocks)[0].reshape(-1, 4, 4, 16)  # (n, chunk, place, lane)
    return np.moveaxis(codes, 2, -1).reshape(-1, 64, 4)


_VALUES: dict[str, Callable[[Layout, Bytes], Any]] = {
    "twos": _twos,
    "fractions": _trits,
    "plain": _trits,
    "slots": _slots,
}
_TWOS: Codes = ((np.arange(256)[:, None] >> np.array([0, 2, 4, 6]) & 3) - 1).astype(np.int8)
_DIGITS = np.arange(243)[:, None] // np.array([81, 27, 9, 3, 1]) % 3 - 1  # highest first
_PLAIN: Codes = np.full((256, 5), ILLEGAL, np.int8)
_PLAIN[:243] = _DIGITS
_FRACTIONS: Codes = np.full((256, 5), ILLEGAL, np.int8)
_FRACTIONS[(np.arange(243) * 256 + 242) // 243] = _DIGITS
