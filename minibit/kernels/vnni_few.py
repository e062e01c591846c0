"""Matrix times two to five vectors with AVX-512 VNNI, on weights in panels.

A few tokens still wait for memory, so they are multiplied as one is (`minibit.kernels.vnni_matvec`)
and not as many are: two at a time, each masked vector of codes meets four activations of both. The
second pair takes a block of panels while it is still in the cache, and a last token without a
partner goes alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from minibit.kernels.simd import address, load, load_splat, prefetch, splat
from minibit.kernels.tiles import (
    tile_add,
    tile_add_vector,
    tile_dot_rows,
    tile_store_rows,
    tile_times,
    tile_unscale,
    tile_zero,
)
from minibit.kernels.tokens import take_tokens
from minibit.kernels.vnni_matvec import AHEAD, LANES, ROWS, _products

__all__ = ["MOST", "product"]

MOST = 5  # tokens; from 6 on, tiles of many tokens are as fast
BLOCK = 4  # panels that two pairs take in turn: 256 KB of 4096 columns


@njit(cache=True, nogil=True)
def _pair(  # type: ignore[no-untyped-def]
    codes, token, minus, scales, panels, out, first, last
) -> None:
    """Write the products of panels first..last with tokens `token` and the next."""
    width, n_out = codes.shape[1], out.shape[1]
    size, a, b = ROWS * ((width + 63) // 64) * 16, token * width, (token + 1) * width
    for panel in range(first, last):
        even, odd, at = tile_zero(4, LANES), tile_zero(4, LANES), panel * size
        next_even, next_odd = tile_zero(4, LANES), tile_zero(4, LANES)
        for k in range(0, width, 8):
            prefetch(panels, at + AHEAD)
            packed = load(panels, at, LANES)
            even = tile_dot_rows(even, packed, load_splat(codes, a + k, LANES))
            next_even = tile_dot_rows(next_even, packed, load_splat(codes, b + k, LANES))
            prefetch(panels, at + AHEAD + 64)
            packed = load(panels, at + 64, LANES)
            odd = tile_dot_rows(odd, packed, load_splat(codes, a + k + 4, LANES))
            next_odd = tile_dot_rows(next_odd, packed, load_splat(codes, b + k + 4, LANES))
            at += 128
        rows = tile_add(tile_unscale(even), tile_unscale(odd))
        rows = tile_add_vector(rows, splat(minus[token], LANES))
        others = tile_add(tile_unscale(next_even), tile_unscale(next_odd))
        others = tile_add_vector(others, splat(minus[token + 1], LANES))
        if scales is not None:
            rows = tile_times(rows, scales[token])
            others = tile_times(others, scales[token + 1])
        to, valid = address(out) + 4 * (n_out * token + ROWS * panel), n_out - ROWS * panel
        tile_store_rows(to, 0, valid, rows)
        tile_store_rows(to, 4 * n_out, valid, others)


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
    False if an entry is not finite. For any batch, but meant for 2 to `MOST`.
    """
    batch, n_in = x.shape
    codes = np.zeros((batch, (n_in + 7) // 8 * 8), np.int8)
    minus, scales = np.empty(batch, np.int32), np.empty(batch, np.float32)
    if not take_tokens(x, gamma, codes, minus, scales):
        return False
    for begin in range(first, last, BLOCK):
        end = min(begin + BLOCK, last)
        for token in range(0, batch - 1, 2):
            if gamma is None:
                _pair(codes, token, minus, None, panels, out, begin, end)
            else:
                _pair(codes, token, minus, scales, panels, out, begin, end)
        if batch % 2:
            token = batch - 1
            if gamma is None:
                _products(codes[token], panels, out[token:], begin, end, None)
            else:
                _products(codes[token], panels, out[token:], begin, end, scales[token])
    return True
