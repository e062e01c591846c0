"""The ternary product on weights in panels, for every CPU with a dot product of bytes.

A tile of sums, some tokens times some of a panel's four groups of 16 rows, stays in registers while
the columns pass. Each vector of codes meets 4 activations of every token of the tile, broadcast to
all lanes. Codes are 0..2 (the weight plus 1), so the sum of activations is taken off in the end.

One token waits for memory. A tile of all four groups serves it: one broadcast, four masks and four
``vpdpbusd`` for 256 weights; columns take turns between two tiles, which hides the latency of
``vpdpbusd``. With 8 tokens or more arithmetic is the limit, two ``vpdpbusd`` a cycle: a tile of 12
tokens by half a panel fills 24 of 32 registers. Activations are then packed so that the loop reads
them in order::

    packed[chunk][k / 4][tokens][4]      chunk: as many tokens as a tile has

Outside, in this order, so that each level of cache holds what it can: blocks of 16 chunks and of
4096 columns (786 KB of activations, in the second level), panels (66 KB of codes, read from memory
once a block of tokens), chunks, parts of a panel. Sums stored between blocks of columns still
count ``4**group`` times too much; ``64 * 2 * -128`` an input is -2**31 at the most inputs.

AVX2 has no dot product into int32: ``vpmaddubsw`` adds pairs of products into 16 sums of int16,
which stay so as long as they fit: 63 times a pair of at most ``2 * 2 * 128``. Arm's ``sdot``
multiplies signed bytes into int32. Both have fewer registers, and take four tokens to one group of
rows. On other CPUs `minibit.kernels.simd` spells ``sdot`` out, so that it is tested anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibit.kernels.compiling import Array, njit
from minibit.kernels.quantise import take_tokens
from minibit.kernels.simd import (
    prefetch,
    tile_add,
    tile_codes,
    tile_dot,
    tile_finish,
    tile_load,
    tile_store,
    tile_transpose,
    tile_zero,
)

LANES = {"arm": 4, "avx2": 8, "vnni": 16, "amx": 16}
"""For each kernel path with panels the int32 lanes of a register."""

ROWS = 64  # in a panel
COLUMNS = 4096  # in a block
CHUNKS = 16  # of tokens, in a block
FLUSH = 240  # columns that int16 sums can take: 60 times 512
AHEAD = 10240  # bytes between a prefetch and its load: more would not stay in the first-level cache
NEARER, ACTS_AHEAD = 4096, 1536  # the same, for loops that compute more per byte
FEW = 6  # tiles of so many tokens read them unpacked
ONE, SQUARE = ((),), ((),) * 16


class Tokens(NamedTuple):
    """Activations as the loop reads them, and what turns their sums into products."""

    acts: NDArray[np.int8]  # flat; see `multiply`
    n_in: int
    batch: int
    minus: NDArray[np.int32]  # a token: minus the sum of its codes
    scales: NDArray[np.float32] | None  # per token; None: the caller wants the sums alone


@njit(cache=True, nogil=True, forceinline=True, _nrt=False)
def add_columns(sums, shape, first, acts, at, step, stride, panels, offset, columns):
    """Return the tile `sums` plus the products of some columns with groups `first` and on.

    Activations of 4 columns of a token begin at byte `at` of `acts`, those of the next 4 `step`
    bytes on, those of the next token `stride` bytes on; weights begin at byte `offset` of `panels`.
    """
    tokens, lanes, packed = len(shape[0]), len(shape[2]), len(shape[0]) > FEW
    two = lanes == 16 and tokens <= 2
    ahead = 0 if lanes < 16 and tokens > 1 else NEARER if packed or lanes < 16 else AHEAD
    while columns > 0:
        part = min(columns, FLUSH) if lanes == 8 else columns
        odd = tile_zero(*shape)
        even = odd if lanes == 8 else sums
        for _ in range(part // 8):
            if ahead:
                prefetch(panels, offset + ahead)
                prefetch(panels, offset + ahead + 64)
            if packed:
                prefetch(acts, at + ACTS_AHEAD)
                prefetch(acts, at + ACTS_AHEAD + 64)
            even = tile_dot(even, tile_codes(panels, offset, first, even), acts, at, stride)
            codes = tile_codes(panels, offset + 64, first, even)
            if two:
                odd = tile_dot(odd, codes, acts, at + step, stride)
            else:
                even = tile_dot(even, codes, acts, at + step, stride)
            at += 2 * step
            offset += 128
        sums = tile_add(sums, even) if lanes == 8 else tile_add(even, odd)
        columns -= part
    return sums


@njit(cache=True, nogil=True, _nrt=False)
def multiply(tokens, panels, out, start, first, last, shape):
    """Write the products of panels first..last with all tokens into `out`, from row `start` on."""
    size, groups, n_out = len(shape[0]), len(shape[1]), out.shape[1]
    used, width = (tokens.n_in + 7) // 8 * 8, (tokens.n_in + 63) // 64 * 64
    packed = size > FEW
    step, stride, block = (size, 4, COLUMNS) if packed else (1, width, used)
    for k in range(0, used, block):
        for panel in range(first, last):
            for chunk in range(0, tokens.batch, size):
                present = tokens.batch - chunk
                for group in range(0, 4, groups):
                    row = ROWS * panel + 16 * group
                    if row >= n_out:
                        break
                    at = 4 * (n_out * (start + chunk) + row)
                    sums = tile_zero(*shape)
                    if k:
                        sums = tile_load(out, at, 4 * n_out, present, n_out - row, sums)
                    sums = add_columns(
                        sums,
                        shape,
                        group,
                        tokens.acts,
                        chunk * width + k * step,
                        4 * step,
                        stride,
                        panels,
                        ROWS // 4 * width * panel + 16 * k,
                        min(block, used - k),
                    )
                    if k + block >= used:
                        sums = tile_finish(sums, group, tokens.minus, tokens.scales, chunk)
                    tile_store(out, at, 4 * n_out, present, n_out - row, sums)


@cache
def tile_product(tokens: int, groups: int, lanes: int) -> Callable[..., bool]:
    """Return `product`, but for `lanes`, with tiles of `tokens` times `groups` of 16 rows."""
    shape = ((),) * tokens, ((),) * groups, ((),) * lanes

    @njit(cache=True, nogil=True)
    def kernel(x, panels, out, first, last, gamma):
        (batch, n_in), size = x.shape, len(shape[0])
        packed, width = size > FEW, (n_in + 63) // 64 * 64
        most = min(CHUNKS, (batch + size - 1) // size) * size
        minus, scales = np.zeros(most, np.int32), np.zeros(most, np.float32)
        rows = np.zeros((16 if packed else most, width), np.int8)
        acts, share = rows.reshape(rows.size), most
        if packed:
            acts, share = np.empty(most * width + 64, np.int8), size  # the last vector's excess
        for start in range(0, batch, most):
            count = min(most, batch - start)
            for chunk in range(0, count, share):
                part = x[start + chunk : start + min(chunk + share, count)]
                if not take_tokens(part, gamma, rows, minus[chunk:], scales[chunk:]):
                    return False
                for k in range(0, width if packed else 0, 64):  # vectors overwrite others' excess
                    words = tile_load(rows, k, width, 16, 16, tile_zero(SQUARE, ONE, SQUARE))
                    words = tile_transpose(words)
                    tile_store(acts, chunk * width + k * size, 4 * size, 16, 16, words)
            if gamma is None:
                block = Tokens(acts, n_in, count, minus, None)
                multiply(block, panels, out, start, first, last, shape)
            else:
                scaled = Tokens(acts, n_in, count, minus, scales)
                multiply(scaled, panels, out, start, first, last, shape)
        return True

    product: Callable[..., bool] = kernel
    return product


def product(
    lanes: int, x: Array, panels: Array, out: Array, first: int, last: int, gamma: np.float32 | None
) -> bool:
    """Multiply ``x (batch, n_in)`` by panels first..last into ``out (batch, n_out)``.

    With gamma None: int8 codes in, int32 out. With a gamma: float32 in, quantised per token, and
    float32 out; False if an entry is not finite. The number of tokens decides the tile.
    """
    batch = x.shape[0]
    if lanes == 16:
        chunks = -(-batch // 12)  # the smallest tile that keeps their number
        tile = (batch, 4) if batch <= FEW else (8 if 8 * chunks >= batch else 12, 2)
        return tile_product(*tile, lanes)(x, panels, out, first, last, gamma)
    fours = batch - batch % 4 % 3  # three are as fast as four
    finite = True
    for tile, part in (((4, 1), slice(fours)), ((1, 4), slice(fours, batch))):
        if x[part].size:
            multiply_part = tile_product(*tile, lanes)
            finite &= multiply_part(x[part], panels, out[part], first, last, gamma)
    return finite
