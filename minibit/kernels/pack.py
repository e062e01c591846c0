"""The packers of `minibit.ternary.panels`: 2 bits per weight, in the order that a product reads.

They take int8 codes, or the bytes of Hugging Face's files (`minibit.ternary.to_hf`), and return
False if a code is not -1, 0 or 1. 64 rows at a time are written side by side as digits (the code
plus 1), and joined: four digits are one 32-bit word in panels, because training packs its weights
at every step.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numba import types
from numba.extending import overload

from minibit.kernels.compiling import Array, njit

TOGETHER = 64  # rows of a panel, and rows whose bytes lie side by side in a cache line


def _digits(source, row, out):
    """Write a row's digits; return 0 if every entry is a code."""


@overload(_digits)
def _digits_of(source, row, out):
    """Choose how `_digits` reads a row: as int8 codes, or as the bytes of a file."""

    def of_codes(source, row, out):
        wrong = np.uint8(0)
        for k in range(source.shape[1]):
            digit = np.uint8(source[row, k] + 1)
            out[k] = digit
            wrong |= np.uint8(digit > 2)
        return wrong

    def of_bytes(source, row, out):
        quarter, wrong = source.shape[0], np.uint8(0)
        line, shift = source[row % quarter], np.uint8(2 * (row // quarter))
        for k in range(line.size if row < quarter else 0):  # all four rows of a byte at once
            wrong |= line[k] & (line[k] >> np.uint8(1)) & np.uint8(0x55)
        for k in range(line.size):
            out[k] = (line[k] >> shift) & np.uint8(3)
        return wrong

    return of_codes if source.dtype == types.int8 else of_bytes


@njit(cache=True, nogil=True)
def _fill(source, n_out, first, rows):
    """Write the digits of 64 rows from number `first` on, of zeros beyond `n_out`; as `_digits`."""
    wrong = np.uint8(0)
    for row in range(TOGETHER):
        if first + row < n_out:
            wrong |= _digits(source, first + row, rows[row])
        else:
            rows[row] = 1
    return wrong


@njit(cache=True, nogil=True)
def panels(source: Array, n_out: int, packed: Array) -> bool:
    """Write panels: int8 ``(n_out, n_in)`` or uint8 ``(ceil(n_out / 4), n_in)`` to flat bytes."""
    width = (source.shape[1] + 63) // 64 * 64
    rows = np.ones((TOGETHER, width), np.uint8)
    words, quarter = rows.reshape(-1).view(np.uint32), TOGETHER * width // 16
    out, wrong = packed.view(np.uint32), np.uint8(0)
    for first in range(0, n_out, TOGETHER):
        wrong |= _fill(source, n_out, first, rows)
        for row in range(16):
            at = first * width // 16 + row
            for k in range(row * width // 4, (row + 1) * width // 4):
                low = words[k] | words[k + quarter] << 2
                out[at] = low | words[k + 2 * quarter] << 4 | words[k + 3 * quarter] << 6
                at += 16
    return bool(wrong == 0)


@njit(cache=True, nogil=True)
def columns(source: Array, n_out: int, packed: Array) -> bool:
    """Write lines of 4 columns of what `panels` takes."""
    width = (source.shape[1] + 15) // 16 * 16
    rows, wrong = np.ones((TOGETHER, width), np.uint8), np.uint8(0)
    for first in range(0, n_out, TOGETHER):
        count = min(TOGETHER, n_out - first)
        wrong |= _fill(source, n_out, first, rows)
        for q in range(width // 4):
            line = packed[q * n_out + first : q * n_out + first + count]
            for r in range(count):
                a, b, c, d = rows[r, 4 * q : 4 * q + 4]
                line[r] = a | b << 2 | c << 4 | d << 6
    return bool(wrong == 0)


def empty_panels(n_out: int, n_in: int) -> Array:
    """Room for the panels of a matrix, beginning where a cache line does.

    Loads of 64 bytes that cross the border of two lines take twice as long.
    """
    size = -(-n_out // TOGETHER) * -(-n_in // 64) * 64 * TOGETHER // 4
    room = np.empty(size + 63, np.uint8)
    begin = -room.ctypes.data % 64
    return room[begin : begin + size]


def packed_panels(matrices: Iterable[Array]) -> tuple[Array, ...]:
    """Pack matrices of codes, which are checked already, into panels."""
    packed = []
    for codes in matrices:
        packed.append(empty_panels(*codes.shape))
        panels(codes, len(codes), packed[-1])
    return tuple(packed)
