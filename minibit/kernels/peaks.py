"""What the machine can do at best, measured: bytes read a second, and multiplications a second."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from minibit.kernels.simd import load, store
from minibit.kernels.tiles import tile_dot_pair, tile_read, tile_write

__all__ = ["read", "vnni"]


@njit(cache=True, nogil=True)
def read(words: NDArray[Any]) -> int:
    """Sum uint64 words: every byte is loaded once, and little else is done."""
    total = np.uint64(0)
    for i in range(words.size):
        total += words[i]
    return int(total)


@njit(cache=True, nogil=True)
def vnni(rounds: int, scratch: NDArray[Any]) -> int:
    """Run rounds of 24 independent ``vpdpbusd``; return the number of multiplications.

    `scratch` is an int32 array of 24 * 16, read before and written after.
    """
    tile = tile_read(scratch, 0, 24, 16)
    codes = load(scratch, 0, 16)
    for i in range(rounds):  # another place each time: kept in registers, they would be too many
        tile = tile_dot_pair(tile, codes, codes, scratch, 4 * (i & 15))
    tile_write(scratch, 0, tile)
    store(scratch, 0, codes)
    return rounds * 24 * 64
