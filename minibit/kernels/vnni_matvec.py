"""Matrix times one vector with AVX-512 VNNI, on weights in panels.

Decoding reads every weight once, so this product is as fast as memory gives bytes, if the
arithmetic keeps up. A 64-byte vector of a panel holds 4 columns of 64 rows: four groups of 16 rows,
two bits of every byte for each. One broadcast of 4 activations serves them all: four times, mask
out the codes of a group, and let one ``vpdpbusd`` multiply 64 codes by the activations and add the
products into 16 sums, one a row. No shift, no sum across lanes, no decoding into memory: 8
instructions for 256 weights, beside a load of weights and one of activations.

A panel is one stream of bytes. Columns take turns between two sets of four sums, which hides the
latency of ``vpdpbusd``. Codes are 0..2 (the weight plus 1), so the sum of the activations is taken
off at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from minibit.kernels.quantise import copy_row, quantise_row
from minibit.kernels.simd import load, load_splat, prefetch, splat
from minibit.kernels.tiles import (
    tile_add,
    tile_add_vector,
    tile_dot_rows,
    tile_store_rows,
    tile_times,
    tile_unscale,
    tile_zero,
)

__all__ = ["product", "small", "small_scaled"]

LANES = 16  # int32 sums in a register
ROWS = 64  # in a panel
AHEAD = 10240  # bytes between a prefetch and the load it is for: the first level spares no more


@njit(cache=True, nogil=True)
def _products(  # type: ignore[no-untyped-def]
    codes, panels, out, first, last, scale
) -> None:
    """Write the products of panels first..last, times `scale` unless that is None.

    `codes` are filled up to 8s with 0.
    """
    size, n_out = ROWS * ((codes.size + 63) // 64) * 16, out.shape[1]
    total = np.int32(0)
    for i in range(codes.size):
        total = np.int32(total - codes[i])
    minus = splat(total, LANES)
    for panel in range(first, last):
        even, odd, at = tile_zero(4, LANES), tile_zero(4, LANES), panel * size
        for k in range(0, codes.size, 8):
            prefetch(panels, at + AHEAD)
            even = tile_dot_rows(even, load(panels, at, LANES), load_splat(codes, k, LANES))
            prefetch(panels, at + AHEAD + 64)
            odd = tile_dot_rows(odd, load(panels, at + 64, LANES), load_splat(codes, k + 4, LANES))
            at += 128
        rows = tile_add(tile_unscale(even), tile_unscale(odd))
        rows = tile_add_vector(rows, minus)
        if scale is not None:
            rows = tile_times(rows, scale)
        tile_store_rows(out, 4 * ROWS * panel, n_out - ROWS * panel, rows)


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
        if n_in % 8 == 0:
            _products(x[0], panels, out, first, last, None)
            return True
        codes = np.zeros((1, (n_in + 7) // 8 * 8), np.int8)
        copy_row(x, 0, codes, 0)
        _products(codes[0], panels, out, first, last, None)
        return True
    codes = np.zeros((1, (n_in + 7) // 8 * 8), np.int8)
    scale = quantise_row(x, 0, codes, 0)
    if scale < 0:
        return False
    _products(codes[0], panels, out, first, last, np.float32(gamma / scale))
    return True


@njit(cache=True)
def small(x: NDArray[Any], panels: NDArray[Any], out: NDArray[Any]) -> bool:
    """Multiply int8 ``x (1, n_in)`` by all panels of a small matrix into int32 ``out (1, n_out)``.

    False, and nothing is written, if x does not lie in order, whatever its type says. Python's lock
    is kept: to give it back and to take it again costs as much as the product.
    """
    if x.strides[1] != x.itemsize:
        return False
    last = (out.shape[1] + ROWS - 1) // ROWS
    if x.shape[1] % 8:
        return bool(product(x, panels, out, 0, last, None))
    _products(x[0], panels, out, 0, last, None)
    return True


@njit(cache=True)
def small_scaled(
    x: NDArray[Any], panels: NDArray[Any], out: NDArray[Any], gamma: np.float32
) -> bool:
    """Multiply float32 ``x (1, n_in)`` as `small` does, quantised, into float32 `out`.

    False also if an entry is not finite.
    """
    if x.strides[1] != x.itemsize:
        return False
    return bool(product(x, panels, out, 0, (out.shape[1] + ROWS - 1) // ROWS, gamma))
