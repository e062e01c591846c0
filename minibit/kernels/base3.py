"""Matrix times one vector on base-3 weights: five codes a byte, 1.6 bits a weight.

A fifth fewer bytes than 2 bits a weight, for more arithmetic: a byte is a number, and its digits do
not come off with a mask. The layout is that of panels, with 80 rows instead of 64::

    [n_out / 80][n_in / 4][16][4]       byte: d0 + 3 d1 + 9 d2 + 27 d3 + 81 d4

Digit ``dj`` of byte ``4 r + c`` of vector ``q`` belongs to row 80 p + 16 j + r, column 4 q + c. Two
comparisons split off d4, and one ``vpermi2b`` looks the rest up, 64 bytes at once, in a table of 81
entries that holds the four digits as 2-bit fields; from there on it is the product of panels. The
table needs AVX-512 VBMI (Ice Lake, Zen 4, and later).

It wins where memory is the limit and arithmetic waits: many cores that share one memory. It loses
where the weights lie in a cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from minibit.kernels.quantise import sum_row
from minibit.kernels.simd import load, load_splat, permute_bytes, prefetch, splat
from minibit.kernels.tiles import (
    base3_split,
    tile_add_vector,
    tile_dot_rows,
    tile_get,
    tile_store_rows,
    tile_unscale,
    tile_zero,
)

__all__ = ["TABLE", "pack", "product"]

LANES = 16
ROWS = 80  # in a panel
AHEAD = 12288
TABLE = np.zeros(128, np.uint8)  # four base-3 digits as four 2-bit fields
for _number in range(81):
    TABLE[_number] = sum((_number // 3**j % 3) << 2 * j for j in range(4))


def pack(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack codes ``(n_out, n_in)`` in base 3, rows filled up to 80 and columns to 4."""
    n_out, n_in = codes.shape
    panels, vectors = -(-n_out // ROWS), -(-n_in // 4)
    digits = np.ones((ROWS * panels, 4 * vectors), np.uint8)
    digits[:n_out, :n_in] = codes + 1
    d = digits.reshape(panels, 5, 16, vectors, 4).transpose(0, 3, 2, 4, 1)  # p q r c j
    room = np.empty(64 * (panels * vectors + 1), np.uint8)
    packed = room[-room.ctypes.data % 64 :][: 64 * panels * vectors]  # begins where a line does
    np.matmul(d, np.array([1, 3, 9, 27, 81], np.uint8), out=packed.reshape(panels, vectors, 16, 4))
    return packed


@njit(cache=True, nogil=True)
def product(x: NDArray[Any], packed: NDArray[Any], table: NDArray[Any], out: NDArray[Any]) -> None:
    """Multiply packed rows by int8 ``x (n_in,)``, filled up to 4s with 0, into int32 `out`.

    At most 2**17 inputs: the fourth digit's sums, ``64 * 2 * -128`` an input, then reach -2**31.
    """
    minus = splat(np.int32(-sum_row(x.reshape(1, x.size), 0)), LANES)
    low, high = load(table, 0, LANES), load(table, 64, LANES)
    for panel in range((out.size + ROWS - 1) // ROWS):
        four_groups, fifth, at = tile_zero(4, LANES), tile_zero(1, LANES), panel * 16 * x.size
        for k in range(0, x.size, 4):
            prefetch(packed, at + AHEAD)
            split, four = base3_split(load(packed, at, LANES)), load_splat(x, k, LANES)
            codes = permute_bytes(low, tile_get(split, 0), high)
            four_groups = tile_dot_rows(four_groups, codes, four)
            fifth = tile_dot_rows(fifth, tile_get(split, 1), four)
            at += 64
        row = ROWS * panel
        rows = tile_add_vector(tile_unscale(four_groups), minus)
        tile_store_rows(out, 4 * row, min(64, out.size - row), rows)
        tile_store_rows(out, 4 * row + 256, out.size - row - 64, tile_add_vector(fifth, minus))
