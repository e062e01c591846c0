"""Matrix times one vector on base-3 weights: five codes a byte, 1.6 bits a weight.

A fifth fewer bytes than 2 bits a weight, for more arithmetic: a byte is a number, and its digits do
not come off with a mask. The layout is that of panels with 20 columns to a vector of 64 bytes::

    [n_out / 16][n_in / 20][16][4]       byte: d0 + 3 d1 + 9 d2 + 27 d3 + 81 d4

Digit ``dj`` of byte ``4 r + c`` of vector ``v`` belongs to row r and column 20 v + 4 j + c. Two
comparisons split off d4, and one ``vpermi2b`` looks the rest up, 64 bytes at once, in a table of 81
entries that holds the four digits as 2-bit fields; from there on it is the product of panels. The
table needs AVX-512 VBMI (Ice Lake, Zen 4, and later).

It wins where memory is the limit and arithmetic waits: many cores that share one memory. It loses
where the weights lie in a cache.

May import: numpy, numba, minibit.kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from minibit.kernels.quantise import sum_row
from minibit.kernels.simd import (
    add,
    base3_split,
    dot_u8s8,
    load,
    load_splat,
    permute_bytes,
    prefetch,
    splat,
    store_lanes,
    tile_dot_packed,
    tile_get,
    tile_sum,
    tile_zero,
)

__all__ = ["TABLE", "pack", "product"]

LANES = 16
AHEAD = 1024
TABLE = np.zeros(128, np.uint8)  # four base-3 digits as four 2-bit fields
for _number in range(81):
    TABLE[_number] = sum((_number // 3**j % 3) << 2 * j for j in range(4))


def pack(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack codes ``(n_out, n_in)`` in base 3, rows filled up to 16 and columns to 20."""
    n_out, n_in = codes.shape
    groups, vectors = -(-n_out // 16), -(-n_in // 20)
    digits = np.ones((16 * groups, 20 * vectors), np.uint8)
    digits[:n_out, :n_in] = codes + 1
    d = digits.reshape(groups, 16, vectors, 5, 4).transpose(0, 2, 1, 4, 3)  # p v r c j
    packed = d @ np.array([1, 3, 9, 27, 81], np.uint8)  # p v r c
    return np.ascontiguousarray(packed).reshape(-1)


@njit(cache=True, nogil=True)
def product(x: NDArray[Any], packed: NDArray[Any], table: NDArray[Any], out: NDArray[Any]) -> None:
    """Multiply packed rows by int8 ``x (n_in,)``, filled up to 20s with 0, into int32 `out`."""
    vectors = x.size // 20
    minus = splat(np.int32(-sum_row(x)), LANES)
    low, high = load(table, 0, LANES), load(table, 64, LANES)
    size = 64 * vectors
    groups = (out.size + 15) // 16
    for first in range(0, groups, 2):
        second = min(first + 1, groups - 1)
        at, to = first * size, second * size
        a, b = tile_zero(4, LANES), tile_zero(4, LANES)
        c, d = splat(np.int32(0), LANES), splat(np.int32(0), LANES)
        for k in range(0, 20 * vectors, 20):
            prefetch(packed, at + AHEAD)
            prefetch(packed, to + AHEAD)
            fifth = load_splat(x, k + 16, LANES)
            split = base3_split(load(packed, at, LANES))
            a = tile_dot_packed(a, permute_bytes(low, tile_get(split, 0), high), x, k)
            c = dot_u8s8(c, tile_get(split, 1), fifth)
            split = base3_split(load(packed, to, LANES))
            b = tile_dot_packed(b, permute_bytes(low, tile_get(split, 0), high), x, k)
            d = dot_u8s8(d, tile_get(split, 1), fifth)
            at += 64
            to += 64
        rows = add(add(minus, c), tile_sum(a, 2))
        store_lanes(out, 64 * first, rows, out.size - 16 * first)
        rows = add(add(minus, d), tile_sum(b, 2))
        store_lanes(out, 64 * second, rows, out.size - 16 * second)
