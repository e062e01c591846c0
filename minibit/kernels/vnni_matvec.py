"""Matrix times one vector with AVX-512 VNNI, on weights in panels.

Decoding reads every weight once, so this product is as fast as memory gives bytes, if the
arithmetic keeps up. A 64-byte vector of a panel holds 16 columns of 16 rows. Four times: mask out
one code of every byte, and let one ``vpdpbusd`` multiply 64 codes by 4 activations and add the
products into 16 sums, one a row. No shift, no sum across lanes, no decoding into memory: 8
instructions for 256 weights, beside one load of weights and the loads of activations.

Four panels go side by side, so that each broadcast of activations serves four vectors, and 16
independent sums hide the latency of ``vpdpbusd``. Codes are 0..2 (the weight plus 1), so the sum of
the activations is taken off at the end.

May import: numpy, numba, minibit.kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from minibit.kernels.quantise import copy_row, quantise_row
from minibit.kernels.simd import (
    add,
    load,
    prefetch,
    splat,
    store_lanes,
    tile_dot_packed,
    tile_sum,
    tile_zero,
    times,
)

__all__ = ["product"]

LANES = 16  # int32 sums in a register, and rows in a panel
AHEAD = 1024  # bytes between a prefetch and the load it is for, in each of the four streams


@njit(cache=True, nogil=True)
def _products(  # type: ignore[no-untyped-def]
    codes, panels, out, first, last, scale
) -> None:
    """Write the products of panels first..last, times `scale` unless that is None."""
    blocks = codes.size // 64  # of 64 columns, 256 bytes of a panel
    size, n_out = 256 * blocks, out.shape[1]
    total = np.int32(0)
    for i in range(codes.size):
        total = np.int32(total - codes[i])
    minus = splat(total, LANES)
    panel = first
    while panel + 4 <= last:
        a, b = tile_zero(4, LANES), tile_zero(4, LANES)
        c, d = tile_zero(4, LANES), tile_zero(4, LANES)
        at = panel * size
        for x in range(0, codes.size, 64):
            for step in range(4):
                prefetch(panels, at + AHEAD)
                prefetch(panels, at + AHEAD + size)
                prefetch(panels, at + AHEAD + 2 * size)
                prefetch(panels, at + AHEAD + 3 * size)
                a = tile_dot_packed(a, load(panels, at, LANES), codes, x + 16 * step)
                b = tile_dot_packed(b, load(panels, at + size, LANES), codes, x + 16 * step)
                c = tile_dot_packed(c, load(panels, at + 2 * size, LANES), codes, x + 16 * step)
                d = tile_dot_packed(d, load(panels, at + 3 * size, LANES), codes, x + 16 * step)
                at += 64
        _finish(out, panel, a, minus, scale, n_out)
        _finish(out, panel + 1, b, minus, scale, n_out)
        _finish(out, panel + 2, c, minus, scale, n_out)
        _finish(out, panel + 3, d, minus, scale, n_out)
        panel += 4
    while panel < last:
        a, b = tile_zero(4, LANES), tile_zero(4, LANES)
        at = panel * size
        for x in range(0, codes.size, 32):
            a = tile_dot_packed(a, load(panels, at, LANES), codes, x)
            b = tile_dot_packed(b, load(panels, at + 64, LANES), codes, x + 16)
            at += 128
        _finish(out, panel, a, add(minus, tile_sum(b, 2)), scale, n_out)
        panel += 1


@njit(cache=True, nogil=True, inline="always")
def _finish(out, panel, tile, minus, scale, n_out) -> None:  # type: ignore[no-untyped-def]
    """Add the four sums of a panel, each at its power of 4, and write its rows."""
    rows = add(minus, tile_sum(tile, 2))
    if scale is not None:
        rows = times(rows, scale)
    store_lanes(out, 4 * LANES * panel, rows, n_out - LANES * panel)


@njit(cache=True, nogil=True)
def product(
    x: NDArray[Any],
    panels: NDArray[Any],
    out: NDArray[Any],
    first: int,
    last: int,
    gamma: np.float32 | None,
) -> bool:
    """Multiply one token ``x (1, n_in)`` by panels first..last into ``out (1, n_out)``.

    With gamma None: int8 codes in, int32 out. Else float32 in, quantised, and float32 out; False if
    an entry is not finite.
    """
    n_in = x.shape[1]
    if gamma is None:
        if n_in % 64 == 0:
            _products(x[0], panels, out, first, last, None)
            return True
        codes = np.zeros((n_in + 63) // 64 * 64, np.int8)
        copy_row(x[0], codes[:n_in])
        _products(codes, panels, out, first, last, None)
        return True
    codes = np.empty((n_in + 63) // 64 * 64, np.int8)
    scale = quantise_row(x[0], codes)
    if scale < 0:
        return False
    _products(codes, panels, out, first, last, np.float32(gamma / scale))
    return True
