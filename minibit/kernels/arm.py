"""The ternary product with Arm's byte dot product, on weights in panels.

``sdot`` multiplies 16 signed bytes and adds each four products into one of 4 int32 sums. A 64-byte
vector of a panel is four registers, of 4 rows each. Codes are shifted down and masked to 0..2: left
in place, the highest would be 128, which is no signed byte. One token meets all four groups of rows
at once: 16 sums, which hide the latency of ``sdot``, and one broadcast. Four tokens take one group
of rows at a time and share each decoded code.

On other CPUs `minibit.kernels.simd` spells ``sdot`` out in plain LLVM, so that the kernel's indices
and sums are tested anywhere; only the choice of this path asks for an Arm CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from minibit.kernels.simd import load_splat
from minibit.kernels.tiles import tile_codes, tile_dot_signed, tile_read, tile_write, tile_zero
from minibit.kernels.tokens import take_tokens, write_sums

__all__ = ["product"]

LANES = 4  # int32 sums in a register; a vector of a panel is four registers wide
ROWS = 64  # in a panel


@njit(cache=True, nogil=True)
def _one(x, panels, at, sums) -> None:  # type: ignore[no-untyped-def]
    """Write the 64 sums of the panel at byte `at` with one padded token."""
    a, b = tile_zero(4, LANES), tile_zero(4, LANES)
    c, d = tile_zero(4, LANES), tile_zero(4, LANES)
    for k in range(0, x.size, 4):
        packed = tile_read(panels, at + 16 * k, 4, LANES)
        four = load_splat(x, k, LANES)
        a = tile_dot_signed(a, tile_codes(packed, 0), four)
        b = tile_dot_signed(b, tile_codes(packed, 2), four)
        c = tile_dot_signed(c, tile_codes(packed, 4), four)
        d = tile_dot_signed(d, tile_codes(packed, 6), four)
    tile_write(sums, 0, a)
    tile_write(sums, 64, b)
    tile_write(sums, 128, c)
    tile_write(sums, 192, d)


@njit(cache=True, nogil=True)
def _four(rows, panels, at, group, sums) -> None:  # type: ignore[no-untyped-def]
    """Write a group of 16 rows' ``(4, 64)`` sums, of the panel at byte `at` with four tokens."""
    width = rows.shape[1]
    a, b = tile_zero(4, LANES), tile_zero(4, LANES)
    c, d = tile_zero(4, LANES), tile_zero(4, LANES)
    for k in range(0, width, 4):
        codes = tile_codes(tile_read(panels, at + 16 * k, 4, LANES), 2 * group)
        a = tile_dot_signed(a, codes, load_splat(rows, k, LANES))
        b = tile_dot_signed(b, codes, load_splat(rows, k + width, LANES))
        c = tile_dot_signed(c, codes, load_splat(rows, k + 2 * width, LANES))
        d = tile_dot_signed(d, codes, load_splat(rows, k + 3 * width, LANES))
    tile_write(sums, 64 * group, a)
    tile_write(sums, 256 + 64 * group, b)
    tile_write(sums, 512 + 64 * group, c)
    tile_write(sums, 768 + 64 * group, d)


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
