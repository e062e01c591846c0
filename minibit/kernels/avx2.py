"""The ternary product with AVX2, on weights in panels: for x86 CPUs without VNNI.

AVX2 has no dot product into int32. ``vpmaddubsw`` multiplies 32 bytes and adds pairs into 16 sums
of int16, and ``vpmaddwd`` with ones would widen them; doing both each time costs as much again. So
sums stay in int16 as long as they fit: a pair of codes 0..2 times int8 is at most 2 * 2 * 128 =
512, and 63 such fit, 60 vectors are taken. A 64-byte vector of a panel is two registers, of 8 rows
each.

One token: all four groups of rows at once, eight int16 sums, and one broadcast for all. Four
tokens: one group of rows at a time, so that each code is shifted and masked once and meets all
four.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from minibit.kernels.simd import load_splat, prefetch
from minibit.kernels.tiles import (
    tile_add_pairs,
    tile_codes,
    tile_dot_pairs,
    tile_read,
    tile_write,
    tile_zero,
)
from minibit.kernels.tokens import take_tokens, write_sums

__all__ = ["product"]

LANES = 8  # int32 sums in a register; a vector of a panel is two registers wide
ROWS = 64  # in a panel
FLUSH = 60  # vectors of 4 columns that int16 sums can take: 60 * 512
AHEAD = 4096  # bytes between a prefetch and the load it is for


@njit(cache=True, nogil=True)
def _one(x, panels, at, sums) -> None:  # type: ignore[no-untyped-def]
    """Write the 64 sums of the panel at byte `at` with one padded token."""
    wa, wb = tile_zero(2, LANES), tile_zero(2, LANES)
    wc, wd = tile_zero(2, LANES), tile_zero(2, LANES)
    for start in range(0, x.size, 4 * FLUSH):
        a, b = tile_zero(2, LANES), tile_zero(2, LANES)
        c, d = tile_zero(2, LANES), tile_zero(2, LANES)
        for k in range(start, min(start + 4 * FLUSH, x.size), 4):
            prefetch(panels, at + 16 * k + AHEAD)
            packed = tile_read(panels, at + 16 * k, 2, LANES)
            four = load_splat(x, k, LANES)
            a = tile_dot_pairs(a, tile_codes(packed, 0), four)
            b = tile_dot_pairs(b, tile_codes(packed, 2), four)
            c = tile_dot_pairs(c, tile_codes(packed, 4), four)
            d = tile_dot_pairs(d, tile_codes(packed, 6), four)
        wa, wb = tile_add_pairs(wa, a), tile_add_pairs(wb, b)
        wc, wd = tile_add_pairs(wc, c), tile_add_pairs(wd, d)
    tile_write(sums, 0, wa)
    tile_write(sums, 64, wb)
    tile_write(sums, 128, wc)
    tile_write(sums, 192, wd)


@njit(cache=True, nogil=True)
def _four(rows, panels, at, group, sums) -> None:  # type: ignore[no-untyped-def]
    """Write a group of 16 rows' ``(4, 64)`` sums, of the panel at byte `at` with four tokens."""
    width = rows.shape[1]
    wa, wb = tile_zero(2, LANES), tile_zero(2, LANES)
    wc, wd = tile_zero(2, LANES), tile_zero(2, LANES)
    for start in range(0, width, 4 * FLUSH):
        a, b = tile_zero(2, LANES), tile_zero(2, LANES)
        c, d = tile_zero(2, LANES), tile_zero(2, LANES)
        for k in range(start, min(start + 4 * FLUSH, width), 4):
            codes = tile_codes(tile_read(panels, at + 16 * k, 2, LANES), 2 * group)
            a = tile_dot_pairs(a, codes, load_splat(rows, k, LANES))
            b = tile_dot_pairs(b, codes, load_splat(rows, k + width, LANES))
            c = tile_dot_pairs(c, codes, load_splat(rows, k + 2 * width, LANES))
            d = tile_dot_pairs(d, codes, load_splat(rows, k + 3 * width, LANES))
        wa, wb = tile_add_pairs(wa, a), tile_add_pairs(wb, b)
        wc, wd = tile_add_pairs(wc, c), tile_add_pairs(wd, d)
    tile_write(sums, 64 * group, wa)
    tile_write(sums, 256 + 64 * group, wb)
    tile_write(sums, 512 + 64 * group, wc)
    tile_write(sums, 768 + 64 * group, wd)


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
    size = ROWS // 4 * rows.shape[1]  # bytes of a panel
    minus, scales = np.zeros(4, np.int32), np.ones(4, np.float32)
    sums = np.zeros((4, ROWS), np.int32)
    for start in range(0, batch, 4):
        count = min(4, batch - start)
        if not take_tokens(x[start : start + count], gamma, rows, minus, scales):
            return False
        for panel in range(first, last):
            if count > 2:
                for group in range(4):
                    _four(rows, panels, panel * size, group, sums)
            else:
                for token in range(count):
                    _one(rows[token], panels, panel * size, sums[token])
            write_sums(sums, minus, scales, gamma, out[start : start + count], ROWS * panel)
    return True
