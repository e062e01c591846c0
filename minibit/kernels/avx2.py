"""The ternary product with AVX2, on weights in panels: for x86 CPUs without VNNI.

AVX2 has no dot product into int32. ``vpmaddubsw`` multiplies 32 bytes and adds pairs into 16 sums
of int16, and ``vpmaddwd`` with ones would widen them; doing both each time costs as much again. So
sums stay in int16 as long as they fit: a pair of codes 0..2 times int8 is at most 2 * 2 * 128 =
512, and 63 such fit. A 64-byte vector of a panel is two registers, of 8 rows each.

One token: four int16 sums a register, one for each code of a byte, each met once in 16 columns;
widened every 960 columns. Four tokens: each code is shifted and masked once and meets all four;
their sums are met once in 4 columns, and widened every 240.

May import: numpy, numba, minibit.kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from minibit.kernels.fours import take_tokens, write_sums
from minibit.kernels.simd import (
    load_splat,
    prefetch,
    tile_add_pairs,
    tile_codes,
    tile_dot_pairs,
    tile_read,
    tile_write,
    tile_zero,
)

__all__ = ["product"]

LANES = 8  # int32 sums in a register; a panel is two registers wide
ONE, FOUR = 60, 15  # vectors of 16 columns that int16 sums can take: 60 * 512 and 15 * 4 * 512
AHEAD = 1024  # bytes between a prefetch and the load it is for


@njit(cache=True, nogil=True)
def _one(x, panels, at, sums) -> None:  # type: ignore[no-untyped-def]
    """Write the 16 sums of the panel at byte `at` with one padded token."""
    total = tile_zero(2, LANES)
    for start in range(0, x.size, 16 * ONE):
        a, b = tile_zero(2, LANES), tile_zero(2, LANES)
        c, d = tile_zero(2, LANES), tile_zero(2, LANES)
        for k in range(start, min(start + 16 * ONE, x.size), 16):
            prefetch(panels, at + 4 * k + AHEAD)
            packed = tile_read(panels, at + 4 * k, 2, LANES)
            a = tile_dot_pairs(a, tile_codes(packed, 0), load_splat(x, k, LANES))
            b = tile_dot_pairs(b, tile_codes(packed, 2), load_splat(x, k + 4, LANES))
            c = tile_dot_pairs(c, tile_codes(packed, 4), load_splat(x, k + 8, LANES))
            d = tile_dot_pairs(d, tile_codes(packed, 6), load_splat(x, k + 12, LANES))
        total = tile_add_pairs(tile_add_pairs(total, a), b)
        total = tile_add_pairs(tile_add_pairs(total, c), d)
    tile_write(sums, 0, total)


@njit(cache=True, nogil=True)
def _four(rows, panels, at, sums) -> None:  # type: ignore[no-untyped-def]
    """Write the ``(4, 16)`` sums of the panel at byte `at` with four padded tokens."""
    width = rows.shape[1]
    wa, wb = tile_zero(2, LANES), tile_zero(2, LANES)
    wc, wd = tile_zero(2, LANES), tile_zero(2, LANES)
    for start in range(0, width, 16 * FOUR):
        a, b = tile_zero(2, LANES), tile_zero(2, LANES)
        c, d = tile_zero(2, LANES), tile_zero(2, LANES)
        for k in range(start, min(start + 16 * FOUR, width), 16):
            packed = tile_read(panels, at + 4 * k, 2, LANES)
            codes = tile_codes(packed, 0)
            a = tile_dot_pairs(a, codes, load_splat(rows, k, LANES))
            b = tile_dot_pairs(b, codes, load_splat(rows, k + width, LANES))
            c = tile_dot_pairs(c, codes, load_splat(rows, k + 2 * width, LANES))
            d = tile_dot_pairs(d, codes, load_splat(rows, k + 3 * width, LANES))
            codes = tile_codes(packed, 2)
            a = tile_dot_pairs(a, codes, load_splat(rows, k + 4, LANES))
            b = tile_dot_pairs(b, codes, load_splat(rows, k + 4 + width, LANES))
            c = tile_dot_pairs(c, codes, load_splat(rows, k + 4 + 2 * width, LANES))
            d = tile_dot_pairs(d, codes, load_splat(rows, k + 4 + 3 * width, LANES))
            codes = tile_codes(packed, 4)
            a = tile_dot_pairs(a, codes, load_splat(rows, k + 8, LANES))
            b = tile_dot_pairs(b, codes, load_splat(rows, k + 8 + width, LANES))
            c = tile_dot_pairs(c, codes, load_splat(rows, k + 8 + 2 * width, LANES))
            d = tile_dot_pairs(d, codes, load_splat(rows, k + 8 + 3 * width, LANES))
            codes = tile_codes(packed, 6)
            a = tile_dot_pairs(a, codes, load_splat(rows, k + 12, LANES))
            b = tile_dot_pairs(b, codes, load_splat(rows, k + 12 + width, LANES))
            c = tile_dot_pairs(c, codes, load_splat(rows, k + 12 + 2 * width, LANES))
            d = tile_dot_pairs(d, codes, load_splat(rows, k + 12 + 3 * width, LANES))
        wa, wb = tile_add_pairs(wa, a), tile_add_pairs(wb, b)
        wc, wd = tile_add_pairs(wc, c), tile_add_pairs(wd, d)
    tile_write(sums, 0, wa)
    tile_write(sums, 64, wb)
    tile_write(sums, 128, wc)
    tile_write(sums, 192, wd)


@njit(cache=True, nogil=True)
def product(
    x: NDArray[Any],
    panels: NDArray[Any],
    out: NDArray[Any],
    first: int,
    last: int,
    gamma: np.float32 | None,
) -> bool:
    """Multiply ``x (batch, n_in)`` by panels first..last into ``out (batch, n_out)``.

    With gamma None: int8 codes in, int32 out. Else float32 in, quantised a token, and float32 out;
    False if an entry is not finite.
    """
    batch, n_in = x.shape
    rows = np.zeros((4, (n_in + 63) // 64 * 64), np.int8)
    size = 4 * rows.shape[1]  # bytes of a panel
    minus, scales = np.zeros(4, np.int32), np.ones(4, np.float32)
    sums = np.zeros((4, 16), np.int32)
    for start in range(0, batch, 4):
        count = min(4, batch - start)
        if not take_tokens(x[start : start + count], gamma, rows, minus, scales):
            return False
        for panel in range(first, last):
            if count > 2:
                _four(rows, panels, panel * size, sums)
            else:
                for token in range(count):
                    _one(rows[token], panels, panel * size, sums[token])
            write_sums(sums, minus, scales, gamma, out[start : start + count], 16 * panel)
    return True
