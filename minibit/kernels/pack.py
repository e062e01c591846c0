"""The packers of `minibit.ternary.panels`: int8 codes to 2 bits, in the order that a product reads.

Training packs its weights at every step, so this must cost little beside a product. Four codes are
one 32-bit word, and the plus 1 of all four is one addition, in which no carry may pass from a byte
to the next: add below the sign bits, then put the signs back (Warren, Hacker's Delight, 2-18).
Bytes that are not 0, 1 or 2 afterwards were no codes; they are gathered in one word, looked at in
the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from minibit.kernels.quantise import copy_row

__all__ = ["columns", "panels"]

LOW7, SIGN, ONE = np.uint64(0x7F7F7F7F), np.uint64(0x80808080), np.uint64(0x01010101)
HIGH6 = np.uint64(0xFCFCFCFC)
TOGETHER = 64  # rows of a panel, and rows whose bytes lie side by side in a cache line


@njit(cache=True, nogil=True, inline="always")
def _digits(word):  # type: ignore[no-untyped-def]
    """Four codes plus 1, byte by byte."""
    word = np.uint64(word)
    return ((word & LOW7) + ONE) ^ (word & SIGN)


@njit(cache=True, nogil=True)
def panels(codes: NDArray[Any], packed: NDArray[Any]) -> bool:
    """Pack ``codes (n_out, n_in)`` into panels; False if an entry is not -1, 0 or 1."""
    n_out, n_in = codes.shape
    width = (n_in + 63) // 64 * 64
    rows = np.zeros((TOGETHER, width), np.int8)
    words, quarter = rows.reshape(-1).view(np.uint32), TOGETHER * width // 16
    out = packed.view(np.uint32)
    wrong = np.uint64(0)
    for first in range(0, n_out, TOGETHER):
        for row in range(TOGETHER):
            if first + row < n_out:
                copy_row(codes, first + row, rows, row)
            else:
                rows[row] = 0
        for row in range(16):
            at = first * width // 16 + row
            for k in range(row * width // 4, (row + 1) * width // 4):
                a, b = _digits(words[k]), _digits(words[k + quarter])
                c, d = _digits(words[k + 2 * quarter]), _digits(words[k + 3 * quarter])
                wrong |= (a | b | c | d) & HIGH6
                wrong |= (a & (a >> np.uint64(1)) | b & (b >> np.uint64(1))) & ONE
                wrong |= (c & (c >> np.uint64(1)) | d & (d >> np.uint64(1))) & ONE
                four = a | b << np.uint64(2) | c << np.uint64(4) | d << np.uint64(6)
                out[at] = np.uint32(four)
                at += 16
    return bool(wrong == 0)


@njit(cache=True, nogil=True)
def columns(codes: NDArray[Any], packed: NDArray[Any]) -> bool:
    """Pack ``codes (n_out, n_in)`` into lines of 4 columns; False if an entry is no code."""
    n_out, n_in = codes.shape
    width = (n_in + 15) // 16 * 16
    rows = np.zeros((TOGETHER, width), np.int8)
    wrong = np.uint8(0)
    for first in range(0, n_out, TOGETHER):
        count = min(TOGETHER, n_out - first)
        for r in range(count):
            copy_row(codes, first + r, rows, r)
        for q in range(width // 4):
            line = packed[q * n_out + first : q * n_out + first + count]
            for r in range(count):
                a, b = np.uint8(rows[r, 4 * q] + 1), np.uint8(rows[r, 4 * q + 1] + 1)
                c, d = np.uint8(rows[r, 4 * q + 2] + 1), np.uint8(rows[r, 4 * q + 3] + 1)
                wrong |= (a > 2) | (b > 2) | (c > 2) | (d > 2)
                line[r] = a | b << 2 | c << 4 | d << 6
    return bool(wrong == 0)
