"""The most that the machine can do, measured: bytes read and multiplications per second.

Only chapter 3 and the benchmarks use it.
"""

from __future__ import annotations

import numpy as np

from minibit.kernels.compiling import Array, njit
from minibit.kernels.simd import tile_codes, tile_dot, tile_load, tile_store, tile_zero


@njit(cache=True, nogil=True)
def read(words: Array) -> int:
    """Sum uint64 words: every byte is loaded once, and little else is done."""
    total = np.uint64(0)
    for i in range(words.size):
        total += words[i]
    return int(total)


@njit(cache=True, nogil=True)
def vnni(rounds: int, scratch: Array) -> int:
    """Run rounds of 24 independent ``vpdpbusd``; return the number of multiplications.

    `scratch` is an int32 array of 24 * 16, read before and written after.
    """
    tile = tile_load(scratch, 0, 128, 12, 32, tile_zero(12, 2, 16))
    codes = tile_codes(scratch, 0, 0, tile)
    for i in range(rounds):  # another place each time: kept in registers, they would be too many
        tile = tile_dot(tile, codes, scratch, 4 * (i & 15), 4)
    tile_store(scratch, 0, 128, 12, 32, tile)
    return rounds * 24 * 64


@njit(cache=True, nogil=True)
def avx2(rounds: int, scratch: Array) -> int:
    """Run rounds of 12 independent pairs of ``vpmaddubsw`` and ``vpaddw``; as `vnni`.

    `scratch` is an int32 array of at least 6 * 16.
    """
    tile = tile_load(scratch, 0, 64, 6, 16, tile_zero(6, 1, 8))
    codes = tile_codes(scratch, 0, 0, tile)
    for i in range(rounds):
        tile = tile_dot(tile, codes, scratch, 4 * (i & 15), 4)
    tile_store(scratch, 0, 64, 6, 16, tile)
    return rounds * 12 * 32
