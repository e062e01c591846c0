"""Matrix times many vectors with AVX-512 VNNI, on weights in panels.

With 12 tokens or more the weights in a register are used so often that arithmetic is the limit: two
``vpdpbusd`` a cycle. The inner loop is one tile of 12 tokens by 2 panels (32 rows), held in 24 of
the 32 registers: two vectors of codes are decoded once (shift and mask), then each broadcast of 4
activations of a token meets both. Activations are packed so that the loop reads them in order::

    packed[chunk][k / 4][tokens][4]      chunk: 12 tokens

Outside, in this order, so that each level of cache holds what it can: blocks of 192 tokens and of
4096 columns (768 KB of activations, in the second level), pairs of panels (32 KB of codes, read
from memory once a block of tokens), chunks. Longer columns would leave the second level, shorter
ones open and close a tile more often: 24 sums are read and written each time.

Smaller batches take smaller tiles, down to 2 tokens: each is the same code, compiled for its size.

May import: numpy, numba, minibit.kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from minibit.kernels.quantise import copy_row, quantise_row, sum_row
from minibit.kernels.simd import (
    load,
    mask,
    prefetch,
    shift_right,
    tile_count,
    tile_dot_pair,
    tile_half,
    tile_join,
    tile_load,
    tile_scale,
    tile_splat,
    tile_store,
    tile_transpose,
)

__all__ = ["product"]

LANES = 16  # int32 sums in a register, and rows in a panel
COLUMNS = 4096  # in a block
ONE_CODE = 0x03030303  # the lowest 2 bits of every byte
AHEAD = 1536
CHUNKS = 16  # of tokens, in a block
TOKENS = (2, 4, 6, 8, 12)  # tiles that exist


def _tile_tokens(batch: int) -> int:
    """Tokens in a tile for a batch: the smallest tile that keeps the number of chunks."""
    chunks = -(-batch // TOKENS[-1])
    return next(tokens for tokens in TOKENS if tokens * chunks >= batch)


@njit(cache=True, nogil=True, inline="always")
def _add_columns(both, acts, act_at, panels, at, right, steps):  # type: ignore[no-untyped-def]
    """Return the tile `both` plus a chunk times two panels, `right` bytes apart, in 16s of columns.

    `both` holds the sums of the left and right panel in turn, for `tokens` tokens.
    """
    tokens = tile_count(both) // 2
    for _ in range(steps):
        for line in range(3):
            prefetch(acts, act_at + AHEAD + 64 * line)
        a, b = load(panels, at, LANES), load(panels, at + right, LANES)
        both = tile_dot_pair(both, mask(a, ONE_CODE), mask(b, ONE_CODE), acts, act_at)
        act_at += 4 * tokens
        c, d = shift_right(a, 2), shift_right(b, 2)
        both = tile_dot_pair(both, mask(c, ONE_CODE), mask(d, ONE_CODE), acts, act_at)
        act_at += 4 * tokens
        c, d = shift_right(a, 4), shift_right(b, 4)
        both = tile_dot_pair(both, mask(c, ONE_CODE), mask(d, ONE_CODE), acts, act_at)
        act_at += 4 * tokens
        c, d = shift_right(a, 6), shift_right(b, 6)
        both = tile_dot_pair(both, mask(c, ONE_CODE), mask(d, ONE_CODE), acts, act_at)
        act_at += 4 * tokens
        at += 64
    return both


@njit(cache=True, nogil=True)
def _pack_tokens(x, gamma, rows, acts, minus, scales, tokens):  # type: ignore[no-untyped-def]
    """Pack tokens for the inner loop, with minus their sums, and quantise them if they are floats.

    `rows` is a scratch of 16 padded tokens. False if an entry is not finite.
    """
    width = rows.shape[1]
    for start in range(0, x.shape[0], tokens):
        for row in range(tokens):
            token = start + row
            if token >= x.shape[0]:
                rows[row] = 0
            elif gamma is None:
                copy_row(x[token], rows[row])
            else:
                scale = quantise_row(x[token], rows[row])
                if scale < 0:
                    return False
                scales[token] = gamma / scale
            minus[token] = -sum_row(rows[row])
        for k in range(0, width, 64):  # the later vector overwrites the excess of the earlier
            words = tile_transpose(tile_load(rows, k, width, LANES, 16, LANES))
            tile_store(acts, start * width + k * tokens, 4 * tokens, LANES, words)
    return True


@njit(cache=True, nogil=True)
def _product(x, panels, out, first, last, gamma, like):  # type: ignore[no-untyped-def]
    """Multiply as `product` does; the tile has as many tokens as the tuple `like` is long."""
    (batch, n_in), n_out, tokens = x.shape, out.shape[1], len(like)
    width = (n_in + 63) // 64 * 64
    size = 4 * width  # bytes of a panel
    most = min(CHUNKS, (batch + tokens - 1) // tokens) * tokens
    acts = np.empty(most * width // 4 + LANES, np.uint32)  # and room for the last vector's excess
    minus, scales = np.zeros(most, np.int32), np.ones(most, np.float32)
    rows = np.zeros((LANES, width), np.int8)
    spare = np.empty((tokens, n_out), out.dtype)  # where a chunk that is not full writes
    for start in range(0, batch, most):
        count = min(most, batch - start)
        if not _pack_tokens(x[start : start + count], gamma, rows, acts, minus, scales, tokens):
            return False
        for k in range(0, width, COLUMNS):
            steps = min(COLUMNS, width - k) // 16
            for panel in range(first, last, 2):
                pair = panel + 1 < last  # else the last panel is its own neighbour
                valid = n_out - LANES * panel
                next_valid = valid - LANES if pair else valid
                for chunk in range(0, count, tokens):
                    full = chunk + tokens <= count
                    target = out if full else spare
                    at = 4 * (LANES * panel + (n_out * (start + chunk) if full else 0))
                    next_at = at + (4 * LANES if pair else 0)
                    if k == 0:
                        left = tile_splat(minus, 4 * chunk, like, LANES)
                        right = left
                    else:
                        left = tile_load(target, at, 4 * n_out, valid, like, LANES)
                        right = tile_load(target, next_at, 4 * n_out, next_valid, like, LANES)
                    both = _add_columns(
                        tile_join(left, right),
                        acts,
                        chunk * width + k * tokens,
                        panels,
                        panel * size + 4 * k,
                        size if pair else 0,
                        steps,
                    )
                    left, right = tile_half(both, 0), tile_half(both, 1)
                    if gamma is not None and k + COLUMNS >= width:
                        left = tile_scale(left, scales, 4 * chunk)
                        right = tile_scale(right, scales, 4 * chunk)
                    tile_store(target, at, 4 * n_out, valid, left)
                    tile_store(target, next_at, 4 * n_out, next_valid, right)
        rest = count % tokens
        for token in range(rest):
            for i in range(LANES * first, min(LANES * last, n_out)):
                out[start + count - rest + token, i] = spare[token, i]
    return True


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
    False if an entry is not finite. The tile suits the number of tokens.
    """
    return bool(_product(x, panels, out, first, last, gamma, (0,) * _tile_tokens(x.shape[0])))
