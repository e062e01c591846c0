"""Matrix times many vectors with AVX-512 VNNI, on weights in panels.

With 12 tokens or more the weights in a register are used so often that arithmetic is the limit: two
``vpdpbusd`` a cycle. The inner loop is one tile of 12 tokens by half a panel (32 rows), held in 24
of the 32 registers: one vector of a panel is masked twice, for two groups of 16 rows, then each
broadcast of 4 activations of a token meets both. Activations are packed so that the loop reads them
in order::

    packed[chunk][k / 4][tokens][4]      chunk: 12 tokens

Outside, in this order, so that each level of cache holds what it can: blocks of 192 tokens and of
4096 columns (786 KB of activations, in the second level), panels (66 KB of codes, read from memory
once a block of tokens), chunks, halves. Longer columns would leave the second level, shorter ones
open and close a tile more often: 24 sums are read and written each time. A sum begins at minus that
of all activations, so what is stored between blocks, times 4 to the power of its group, is at most
``64 * 128 * n_in`` in size, 2**30 at the most inputs that are let in: no shift loses a bit.

Smaller batches take smaller tiles, down to 6 tokens: each is the same code, compiled for its size.
Fewer tokens than that are multiplied as one is (`minibit.kernels.vnni_few`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from minibit.kernels.quantise import copy_row, quantise_row
from minibit.kernels.simd import address, load, mask, prefetch, splat, store
from minibit.kernels.tiles import (
    dot_tile,
    tile_count,
    tile_dot_pair,
    tile_half,
    tile_join,
    tile_load,
    tile_scale,
    tile_shift_left,
    tile_shift_right,
    tile_splat,
    tile_store,
    tile_transpose,
)

__all__ = ["product"]

LANES = 16  # int32 sums in a register
ROWS = 64  # in a panel
COLUMNS = 4096  # in a block
ONE_CODE = 0x03030303  # the lowest 2 bits of every byte
AHEAD, ACTS_AHEAD = 4096, 1536  # bytes between a prefetch and the load it is for
CHUNKS = 16  # of tokens, in a block
TOKENS = (6, 8, 12)  # tiles that exist


def _tile_tokens(batch: int) -> int:
    """Tokens in a tile for a batch: the smallest tile that keeps the number of chunks."""
    chunks = -(-batch // TOKENS[-1])
    return next(tokens for tokens in TOKENS if tokens * chunks >= batch)


@njit(cache=True, nogil=True, inline="always")
def _add_columns(both, half, acts, act_at, panels, at, steps):  # type: ignore[no-untyped-def]
    """Return the tile `both` plus a chunk times half a panel, in steps of 8 columns.

    `both` holds the sums of the half's two groups of rows in turn, for `tokens` tokens.
    """
    tokens = tile_count(both) // 2
    left = np.int32(ONE_CODE << 4 * half)
    right = np.int32(ONE_CODE << 4 * half + 2)
    for _ in range(steps):
        prefetch(panels, at + AHEAD)
        prefetch(panels, at + AHEAD + 64)
        prefetch(acts, act_at + ACTS_AHEAD)
        prefetch(acts, act_at + ACTS_AHEAD + 64)
        codes = load(panels, at, LANES)
        both = tile_dot_pair(both, mask(codes, left), mask(codes, right), acts, act_at)
        act_at += 4 * tokens
        codes = load(panels, at + 64, LANES)
        both = tile_dot_pair(both, mask(codes, left), mask(codes, right), acts, act_at)
        act_at += 4 * tokens
        at += 128
    return both


@njit(cache=True, nogil=True)
def _pack_tokens(x, gamma, rows, acts, minus, scales, tokens):  # type: ignore[no-untyped-def]
    """Pack tokens for the inner loop, with minus their sums, and quantise them if they are floats.

    `rows` is a scratch of 16 padded tokens. False if an entry is not finite.
    """
    width, ones = rows.shape[1], splat(np.int32(0x01010101), LANES)
    for start in range(0, x.shape[0], tokens):
        for row in range(tokens):
            token = start + row
            if token >= x.shape[0]:
                rows[row] = 0
            elif gamma is None:
                copy_row(x, token, rows, row)
            else:
                scale = quantise_row(x, token, rows, row)
                if scale < 0:
                    return False
                scales[token] = gamma / scale
        sums = splat(np.int32(0), LANES)  # a token a lane
        for k in range(0, width, 64):  # the later vector overwrites the excess of the earlier
            words = tile_transpose(tile_load(rows, k, width, LANES, 16, LANES))
            tile_store(acts, start * width + k * tokens, 4 * tokens, LANES, words)
            sums = dot_tile(sums, ones, words)
        store(minus, 4 * start, sums)
        for row in range(tokens):
            minus[start + row] = -minus[start + row]
    return True


@njit(cache=True, nogil=True)
def _product(x, panels, out, first, last, gamma, like):  # type: ignore[no-untyped-def]
    """Multiply as `product` does; the tile has as many tokens as the tuple `like` is long."""
    (batch, n_in), n_out, tokens = x.shape, out.shape[1], len(like)
    width, used = (n_in + 63) // 64 * 64, (n_in + 7) // 8 * 8
    size = ROWS // 4 * width  # bytes of a panel
    most = min(CHUNKS, (batch + tokens - 1) // tokens) * tokens
    acts = np.empty(most * width // 4 + LANES, np.uint32)  # and room for the last vector's excess
    minus, scales = np.zeros(most + LANES, np.int32), np.ones(most, np.float32)
    rows = np.zeros((LANES, width), np.int8)
    spare = np.empty((tokens, n_out), out.dtype)  # where a chunk that is not full writes
    for start in range(0, batch, most):
        count = min(most, batch - start)
        if not _pack_tokens(x[start : start + count], gamma, rows, acts, minus, scales, tokens):
            return False
        for k in range(0, used, COLUMNS):
            steps = min(COLUMNS, used - k) // 8
            for panel in range(first, last):
                for chunk in range(0, count, tokens):
                    full = chunk + tokens <= count
                    target = address(out) + 4 * n_out * (start + chunk) if full else address(spare)
                    for half in range(2):
                        row = ROWS * panel + 2 * LANES * half
                        if row >= n_out:
                            break
                        at, next_at = target + 4 * row, target + 4 * row + 4 * LANES
                        valid, low, high = n_out - row, 4 * half, 4 * half + 2
                        if k == 0:
                            left = tile_splat(minus, 4 * chunk, like, LANES)
                            right = left
                        else:
                            left = tile_load(at, 0, 4 * n_out, valid, like, LANES)
                            right = tile_load(next_at, 0, 4 * n_out, valid - LANES, like, LANES)
                        both = _add_columns(
                            tile_join(tile_shift_left(left, low), tile_shift_left(right, high)),
                            half,
                            acts,
                            chunk * width + k * tokens,
                            panels,
                            panel * size + 16 * k,
                            steps,
                        )
                        left = tile_shift_right(tile_half(both, 0), low)
                        right = tile_shift_right(tile_half(both, 1), high)
                        if gamma is not None and k + COLUMNS >= used:
                            left = tile_scale(left, scales, 4 * chunk)
                            tile_store(at, 0, 4 * n_out, valid, left)
                            right = tile_scale(right, scales, 4 * chunk)
                            tile_store(next_at, 0, 4 * n_out, valid - LANES, right)
                        else:
                            tile_store(at, 0, 4 * n_out, valid, left)
                            tile_store(next_at, 0, 4 * n_out, valid - LANES, right)
        rest = count % tokens
        for token in range(rest):
            for i in range(ROWS * first, min(ROWS * last, n_out)):
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
