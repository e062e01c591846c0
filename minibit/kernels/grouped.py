"""The ternary product where each group of columns of a row has a scale of its own, on panels.

A group's sum of codes is exact in int32, as in `minibit.kernels.product`; where the group ends, it
becomes a float32, is multiplied by the scale of its row and the factor of its token, and added to
the float32 sums of the tile. These take as many registers as the integers do, so tiles are half as
large: one token meets four groups of 16 rows, up to six meet two. Tokens are read as they lie.

A kernel knows the number of a group's columns when it is compiled: its loop over them is unrolled,
and no branch at its end is guessed wrong. Sums begin with minus the sum of the group's activations,
for codes are 0..2, and scales in float16 expect what 16 lanes count too much (`arrange_scales`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from minibit.kernels.compiling import Array, njit
from minibit.kernels.product import FEW, ROWS, add_columns
from minibit.kernels.quantise import take_tokens
from minibit.kernels.simd import prefetch, tile_fill, tile_group, tile_store, tile_zero

BLOCK = 96  # tokens whose codes stay in the second level of cache


@njit(cache=True, nogil=True, _nrt=False)
def _multiply(codes, fill, factors, panels, scales, eights, out, first, last, shape):
    """Write the products of panels first..last with as many quantised tokens as `out` has rows."""
    size, groups, group = len(shape[0]), len(shape[1]), 8 * len(eights)
    (count, n_out), n_in = out.shape, codes.shape[1]
    parts, panel_bytes = n_in // group, (n_in + 63) // 64 * 64 * ROWS // 4
    for panel in range(first, last):
        for chunk in range(0, count, size):
            for vector in range(0, 4, groups):
                row = ROWS * panel + 16 * vector
                if row >= n_out:
                    break
                total = tile_zero(*shape)
                for part in range(parts):
                    at = chunk * parts + part
                    scale = (parts * panel + part) * ROWS + 16 * vector
                    if size <= 2:
                        prefetch(scales, scales.itemsize * scale + 1024)
                        prefetch(scales, scales.itemsize * scale + 1088)
                    sums = add_columns(
                        tile_fill(total, vector, fill, at, parts),
                        shape,
                        vector,
                        codes,
                        chunk * n_in + part * group,
                        4,
                        n_in,
                        panels,
                        panel_bytes * panel + 16 * part * group,
                        group,
                    )
                    total = tile_group(total, sums, vector, factors, at, parts, scales, scale)
                at = 4 * (n_out * chunk + row)
                tile_store(out, at, 4 * n_out, count - chunk, n_out - row, total)


@cache
def tile_product(tokens: int, groups: int, lanes: int, group: int) -> Callable[..., bool]:
    """Return `product`, but for `lanes` and `group`, in tiles of `tokens` by 16 `groups` rows."""
    eights = ((),) * (group // 8)
    shape = ((),) * tokens, ((),) * groups, ((),) * lanes

    @njit(cache=True, nogil=True)
    def kernel(x, panels, scales, out, first, last):
        (batch, n_in), size = x.shape, len(shape[0])
        group = 8 * len(eights)
        parts = n_in // group
        most = (min(BLOCK, batch) + size - 1) // size * size
        codes = np.zeros((most, n_in), np.int8)
        minus, factors = np.zeros(most * parts, np.int32), np.zeros(most * parts, np.float32)
        fill = np.zeros((most * parts, 4), np.int32)
        for start in range(0, batch, BLOCK):
            count = min(BLOCK, batch - start)
            tokens = x[start : start + count].reshape(count * parts, group)
            rows = codes.reshape(most * parts, group)
            if not take_tokens(tokens, np.float32(1), rows, minus, factors):
                return False
            for row in range(count * parts):
                for vector in range(4):  # with 16 lanes, sums of a group count 4**vector times
                    fill[row, vector] = minus[row] << (2 * vector if lanes == 16 else 0)
                if scales.itemsize == 2:  # float16 times 64, 16, 4 or 1: see `arrange_scales`
                    factors[row] *= np.float32(1 / 64)
            part = out[start : start + count]
            _multiply(
                codes,
                fill.reshape(fill.size),
                factors,
                panels,
                scales,
                eights,
                part,
                first,
                last,
                shape,
            )
        return True

    product: Callable[..., bool] = kernel
    return product


def product(
    lanes: int,
    x: Array,
    panels: Array,
    scales: Array,
    group: int,
    out: Array,
    first: int,
    last: int,
) -> bool:
    """Multiply float32 ``x (batch, n_in)`` by panels first..last into ``out (batch, n_out)``.

    `scales` are those of the panels' groups of `group` columns. False if an entry is not finite.
    """
    batch = x.shape[0]
    if lanes == 16:
        tile = (batch, 4) if batch <= 2 else (-(-batch // -(-batch // FEW)), 2)
    else:
        tile = (1, 4) if batch == 1 else (min(batch, 4), 1)
    return tile_product(*tile, lanes, group)(x, panels, scales, out, first, last)
