"""Packings and file layouts of ternary codes, byte by byte from their definitions."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["TERNARY", "in_base", "packed_hf", "packed_i2_s", "packed_tq", "padded"]


def padded(codes: Any, width: int) -> list[list[int]]:
    """Split codes in C order into groups of digits t + 1; what is missing is the weight 0."""
    digits = [int(code) + 1 for code in np.ravel(codes)]
    digits += [1] * (-len(digits) % width)
    return [digits[i : i + width] for i in range(0, len(digits), width)]


def in_base(digits: Sequence[int], base: int) -> int:
    """Value of digits, the lowest first."""
    return sum(digit * base**n for n, digit in enumerate(digits))


def pack2(codes: Any) -> Any:
    """Four codes a byte, the first in the lowest bits."""
    return (_bytes(in_base(group, 4) for group in padded(codes, 4)),)


def pack_base3(codes: Any) -> Any:
    """Five codes a byte, the lowest digit first."""
    return (_bytes(in_base(group, 3) for group in padded(codes, 5)),)


def pack_bitplanes(codes: Any) -> Any:
    """Return a plane of the ones and one of the minus ones, the first code in the lowest bit."""
    groups = padded(codes, 8)
    planes = [[in_base([d == t for d in g], 2) for g in groups] for t in (2, 0)]
    return (np.array(planes, np.uint8),)


def _bytes(values: Any) -> Any:
    """Return bytes as an array."""
    return np.array([*values], np.uint8)


def _unpacked(base: int, width: int, offset: int) -> Callable[..., Any]:
    """Return the reader of a packing."""

    def unpack(packed: Any, count: int) -> Any:
        """Read digits, the lowest first."""
        digits = [int(byte) // base**n % base for byte in packed for n in range(width)]
        return (np.array(digits[:count], np.int8) - np.int8(offset),)

    return unpack


def unpack_bitplanes(packed: Any, count: int) -> Any:
    """Read plus minus minus."""
    plus, minus = ([int(byte) >> n & 1 for byte in row for n in range(8)] for row in packed)
    return (np.array([p - m for p, m in zip(plus, minus, strict=True)][:count], np.int8),)


def packed_hf(codes: Any, shift: Sequence[int] = (0, 2, 4, 6), fill: int = -1) -> Any:
    """Rows r, R + r, 2 R + r and 3 R + r in a byte; rows that are missing have bits 00."""
    n_out, n_in = codes.shape
    quarter = -(-n_out // 4)
    rows = [*codes.tolist(), *[[fill] * n_in] * (4 * quarter - n_out)]
    out = [
        [sum(rows[i * quarter + r][j] + 1 << shift[i] for i in range(4)) for j in range(n_in)]
        for r in range(quarter)
    ]
    return np.array(out, np.uint8).reshape(quarter, n_in)


def from_hf(packed: Any, n_out: int) -> Any:
    """Read the quarters."""
    rows = [[int(byte) // 4**i % 4 - 1 for byte in row] for i in range(4) for row in packed]
    return (np.array(rows[:n_out], np.int8),)


def half_precision(scale: float) -> bytes:
    """Return a scale as little-endian float16, rounded to nearest, ties to even."""
    return struct.pack("<e", scale)


def packed_tq(
    codes: Any,
    scale: Any,
    block: Callable[[list[int]], list[int]],
    half: Callable[[float], bytes] = half_precision,
    zero_scale: bool = False,
    weights: int = 256,
    first: bool = False,
) -> Any:
    """Blocks of a row's weights, each with its scale behind it, or before it.

    A block of zeros has scale 0.
    """
    n_out, n_in = codes.shape
    scales = np.broadcast_to(scale, (n_out, n_in // weights))
    rows = []
    for codes_of_row, scales_of_row in zip(codes.tolist(), scales.tolist(), strict=True):
        row: list[int] = []
        for n, one in enumerate(scales_of_row):
            t = codes_of_row[weights * n : weights * n + weights]
            body, two = block([d + 1 for d in t]), half(one if any(t) or zero_scale else 0.0)
            row += [*two, *body] if first else [*body, *two]
        rows.append(row)
    return np.array(rows, np.uint8)


def tq1_block(e: list[int]) -> list[int]:
    """Five trits v, 240 of them in strides of 32 and 16, then 16 by four: ceil(256 v / 243)."""
    groups = [[e[j + 32 * n] for n in range(5)] for j in range(32)]
    groups += [[e[160 + j + 16 * n] for n in range(5)] for j in range(16)]
    groups += [[*(e[240 + j + 4 * n] for n in range(4)), 0] for j in range(4)]
    return [-(-256 * in_base(group[::-1], 3) // 243) for group in groups]


def tq2_block(e: list[int]) -> list[int]:
    """Two groups of 128, four codes 32 apart in a byte."""
    return [in_base([e[g + j + 32 * n] for n in range(4)], 4) for g in (0, 128) for j in range(32)]


def ptq1_block(e: list[int]) -> list[int]:
    """As `tq1_block`, for 128 weights: strides of 16 and 8, then 8 by four."""
    groups = [[e[j + 16 * n] for n in range(5)] for j in range(16)]
    groups += [[e[80 + j + 8 * n] for n in range(5)] for j in range(8)]
    groups += [[*(e[120 + j + 2 * n] for n in range(4)), 0] for j in range(2)]
    return [-(-256 * in_base(group[::-1], 3) // 243) for group in groups]


def q2_block(e: list[int]) -> list[int]:
    """Four neighbours in a byte, the first lowest."""
    return [in_base(e[j : j + 4], 4) for j in range(0, len(e), 4)]


# What the slots of STQ1_0 stand for: where the zero is, and the signs of the others.
SLOTS = (
    "0+++", "0+-+", "0++-", "0+--", "+0++", "+0-+", "+0+-", "+0--",
    "++0+", "+-0+", "++0-", "+-0-", "+++0", "+-+0", "++-0", "+--0",
)  # fmt: skip


def stq_groups(e: list[int]) -> list[tuple[int, int]]:
    """Slot and sign of 64 groups of digits: four 16 apart, of each 64."""
    groups = [[e[64 * c + j + 16 * p] for p in range(4)] for c in range(4) for j in range(16)]
    return [stq_number(group) for group in groups]


def stq_number(group: list[int]) -> tuple[int, int]:
    """Slot and sign of four digits, looked up in the table."""
    marks = "".join("-0+"[digit] for digit in group)
    if marks in SLOTS:
        return SLOTS.index(marks), 0
    return SLOTS.index(marks.translate(str.maketrans("+-", "-+"))), 1


def stq_block(e: list[int]) -> list[int]:
    """Slots, two a byte, the first in the low half; then signs, eight a byte, the first lowest."""
    slots, signs = zip(*stq_groups(e), strict=True)
    halves = [slots[g] + 16 * slots[g + 1] for g in range(0, 64, 2)]
    return [*halves, *(in_base(signs[g : g + 8], 2) for g in range(0, 64, 8))]


def packed_i2_s(
    codes: Any, scale: float = 1.0, layout: str = "x86", shift: Sequence[int] = (6, 4, 2, 0)
) -> Any:
    """Four codes a byte, the first highest, 32 (x86), 16 (arm) or a row apart; then the scale."""
    n_in = codes.shape[1]
    inner = {"x86": 32, "arm": 16}.get(layout, n_in)
    e = (np.ravel(codes) + 1).tolist()
    packed = [
        sum(e[start + j + inner * n] << shift[n] for n in range(4))
        for start in range(0, len(e), 4 * inner)
        for j in range(inner)
    ]
    return np.array([*packed, *struct.pack("<f", scale), *[0] * 28], np.uint8)


def _stages(*stages: tuple[int, int]) -> Callable[[list[int]], list[int]]:
    """Return the reader of a block of five trits a byte: bytes and trits of each stage."""

    def block(row: list[int]) -> list[int]:
        """Read digits stage by stage: 3 (byte 3**n mod 256) / 256."""
        digits, at = [], 0
        for width, trits in stages:
            part = row[at : at + width]
            digits += [(byte * 3**n % 256) * 3 // 256 for n in range(trits) for byte in part]
            at += width
        return digits

    return block


def from_tq1_0(packed: Any) -> Any:
    """Codes and scales, digit by digit."""
    return _from_tq(packed, 54, _stages((32, 5), (16, 5), (4, 4)))


def from_ptq1_0(packed: Any) -> Any:
    """Codes and scales, digit by digit."""
    return _from_tq(packed, 28, _stages((16, 5), (8, 5), (2, 4)))


def from_tq2_0(packed: Any) -> Any:
    """Codes and scales."""

    def block(row: list[int]) -> list[int]:
        """Read 256 digits."""
        return [row[g + j] // 4**n % 4 for g in (0, 32) for n in range(4) for j in range(32)]

    return _from_tq(packed, 66, block)


def from_q2_0(packed: Any, block: int = 64, plus_two: bool = False, first: bool = True) -> Any:
    """Codes and scales; whoever asks for it has code 2, too."""
    size = block // 4 + 2
    return _from_tq(
        packed, size, lambda row: [byte // 4**n % 4 for byte in row for n in range(4)], first
    )


def from_stq1_0(packed: Any) -> Any:
    """Codes and scales, four weights by their slot and sign."""

    def block(row: list[int]) -> list[int]:
        """Read 256 digits."""
        e = [0] * 256
        for group in range(64):
            marks = SLOTS[row[group // 2] >> 4 * (group % 2) & 15]
            sign = row[32 + group // 8] >> group % 8 & 1
            for p, mark in enumerate(marks):
                digit = "-0+".index(mark)
                e[64 * (group // 16) + group % 16 + 16 * p] = 2 - digit if sign else digit
        return e

    return _from_tq(packed, 42, block)


def _from_tq(
    packed: Any, size: int, block: Callable[[list[int]], list[int]], first: bool = False
) -> Any:
    """Read rows of blocks, whose scales stand behind the codes, or before them."""
    codes, scales = [], []
    for row in packed.tolist():
        blocks = [row[i : i + size] for i in range(0, len(row), size)]
        codes.append([d - 1 for b in blocks for d in block(b[2:] if first else b[:-2])])
        halves = [bytes(b[:2] if first else b[-2:]) for b in blocks]
        scales.append([struct.unpack("<e", two)[0] for two in halves])
    return np.array(codes, np.int8), np.array(scales, np.float32)


def from_i2_s(packed: Any, shape: Any, layout: str = "x86") -> Any:
    """Codes of a shape, and the scale behind them."""
    n_out, n_in = shape
    inner = {"x86": 32, "arm": 16}.get(layout, n_in)
    size = n_out * n_in // 4
    codes = np.zeros(n_out * n_in, np.int8)
    for at, byte in enumerate(packed[:size].tolist()):
        for n, code in enumerate((byte >> 6, byte >> 4 & 3, byte >> 2 & 3, byte & 3)):
            codes[at // inner * 4 * inner + at % inner + inner * n] = code - 1
    scale = struct.unpack("<f", bytes(packed[size : size + 4].tolist()))[0]
    return codes.reshape(n_out, n_in), np.float32(scale)


TERNARY: dict[str, Callable[..., tuple[Any, ...]]] = {
    "pack2": pack2,
    "pack_base3": pack_base3,
    "pack_bitplanes": pack_bitplanes,
    "unpack2": _unpacked(4, 4, 1),
    "unpack_base3": _unpacked(3, 5, 1),
    "unpack_bitplanes": unpack_bitplanes,
    "to_hf": lambda codes: (packed_hf(codes),),
    "from_hf": from_hf,
    "to_tq1_0": lambda codes, scale=1.0: (packed_tq(codes, scale, tq1_block),),
    "to_tq2_0": lambda codes, scale=1.0: (packed_tq(codes, scale, tq2_block),),
    "from_tq1_0": from_tq1_0,
    "from_tq2_0": from_tq2_0,
    "to_ptq1_0": lambda codes, scale=1.0: (packed_tq(codes, scale, ptq1_block, weights=128),),
    "to_q2_0": lambda codes, scale=1.0, block=64: (
        packed_tq(codes, scale, q2_block, weights=block, first=True),
    ),
    "to_stq1_0": lambda codes, scale=1.0: (packed_tq(codes, scale, stq_block),),
    "from_ptq1_0": from_ptq1_0,
    "from_q2_0": from_q2_0,
    "from_stq1_0": from_stq1_0,
    "to_i2_s": lambda codes, scale=1.0, layout="x86": (packed_i2_s(codes, scale, layout),),
    "from_i2_s": from_i2_s,
    "TernaryMatrix.codes": lambda self: (self.codes(),),
    "TernaryMatrix.packed2": lambda self: pack2(self.codes()),
    "TernaryMatrix.from_hf": lambda packed, n_out, scale: (
        from_hf(packed, n_out)[0],
        np.float32(scale),
    ),
    "TernaryMatrix.from_packed2": lambda packed, shape, scale: (
        _unpacked(4, 4, 1)(packed, shape[0] * shape[1])[0].reshape(shape),
        np.float32(scale),
    ),
    "TernaryColumns.codes": lambda self: (self.codes(),),
    "TernaryColumns.from_codes": lambda codes, scale: (np.int8(codes), np.float32(scale)),
    "TernaryMatrix.from_codes": lambda codes, scale: (np.int8(codes), np.float32(scale)),
}
