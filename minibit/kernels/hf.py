"""The way into memory for Hugging Face's files: four rows a byte, to what a product reads.

A byte of the file holds rows r, R + r, 2R + r and 3R + r of one column
(`minibit.ternary.published.to_hf`). A row of the matrix is therefore two bits of every byte of one
row of the file: shifted down into a buffer, it is joined with others like any row
(`minibit.kernels.pack`). What is expanded is 64 rows at a time. Both kernels return False, and
write nothing, if a byte holds the 2-bit code 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["columns", "panels"]

TOGETHER = 64  # rows of a panel, and rows whose bytes lie side by side in a cache line


@njit(cache=True, nogil=True)
def _holds_three(packed: NDArray[Any]) -> bool:
    """Whether both bits of a pair are set somewhere."""
    both = np.uint8(0)
    for r in range(packed.shape[0]):
        row = packed[r]
        for k in range(row.size):
            both |= row[k] & (row[k] >> np.uint8(1)) & np.uint8(0x55)
    return bool(both != 0)


@njit(cache=True, nogil=True)
def _digits(packed: NDArray[Any], row: int, out: NDArray[Any]) -> None:
    """Write a row's codes plus 1, as many as the file's row has."""
    quarter = packed.shape[0]
    line, shift = packed[row % quarter], np.uint8(2 * (row // quarter))
    for k in range(line.size):
        out[k] = (line[k] >> shift) & np.uint8(3)


@njit(cache=True, nogil=True)
def panels(packed: NDArray[Any], n_out: int, held: NDArray[Any]) -> bool:
    """Write the panels of ``packed (ceil(n_out / 4), n_in)``."""
    if _holds_three(packed):
        return False
    n_in = packed.shape[1]
    width = (n_in + 63) // 64 * 64
    rows = np.ones((TOGETHER, width), np.uint8)
    words, quarter = rows.reshape(-1).view(np.uint32), TOGETHER * width // 16
    out = held.view(np.uint32)
    for first in range(0, n_out, TOGETHER):
        for row in range(TOGETHER):
            if first + row < n_out:
                _digits(packed, first + row, rows[row])
            else:
                rows[row] = 1
        for row in range(16):
            at = first * width // 16 + row
            for k in range(row * width // 4, (row + 1) * width // 4):
                low = words[k] | words[k + quarter] << 2
                out[at] = low | words[k + 2 * quarter] << 4 | words[k + 3 * quarter] << 6
                at += 16
    return True


@njit(cache=True, nogil=True)
def columns(packed: NDArray[Any], n_out: int, held: NDArray[Any]) -> bool:
    """Write the lines of 4 columns of ``packed (ceil(n_out / 4), n_in)``."""
    if _holds_three(packed):
        return False
    n_in = packed.shape[1]
    width = (n_in + 15) // 16 * 16
    rows = np.ones((TOGETHER, width), np.uint8)
    for first in range(0, n_out, TOGETHER):
        count = min(TOGETHER, n_out - first)
        for r in range(count):
            _digits(packed, first + r, rows[r])
        for q in range(width // 4):
            line = held[q * n_out + first : q * n_out + first + count]
            for r in range(count):
                a, b, c, d = rows[r, 4 * q : 4 * q + 4]
                line[r] = a | b << 2 | c << 4 | d << 6
    return True
