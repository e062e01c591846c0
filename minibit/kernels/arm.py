"""The ternary product with Arm's byte dot product, on weights in panels.

``sdot`` multiplies 16 signed bytes and adds each four products into one of 4 int32 sums. A 64-byte
vector of a panel is four registers, of 4 rows each. Codes are shifted down and masked to 0..2: left
in place, the highest would be 128, which is no signed byte. One token uses two sets of sums in
turn, which hides the latency of ``sdot``; four tokens share each decoded code.

On other CPUs `minibit.kernels.simd` spells ``sdot`` out in plain LLVM, so that the kernel's indices
and sums are tested anywhere; only the choice of this path asks for an Arm CPU.

May import: numpy, numba, minibit.kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from minibit.kernels.fours import take_tokens, write_sums
from minibit.kernels.simd import (
    load_splat,
    tile_add,
    tile_codes,
    tile_dot_signed,
    tile_read,
    tile_write,
    tile_zero,
)

__all__ = ["product"]

LANES = 4  # int32 sums in a register; a panel is four registers wide


@njit(cache=True, nogil=True)
def _one(x, panels, at, sums) -> None:  # type: ignore[no-untyped-def]
    """Write the 16 sums of the panel at byte `at` with one padded token."""
    even, odd = tile_zero(4, LANES), tile_zero(4, LANES)
    for k in range(0, x.size, 16):
        packed = tile_read(panels, at + 4 * k, 4, LANES)
        even = tile_dot_signed(even, tile_codes(packed, 0), load_splat(x, k, LANES))
        odd = tile_dot_signed(odd, tile_codes(packed, 2), load_splat(x, k + 4, LANES))
        even = tile_dot_signed(even, tile_codes(packed, 4), load_splat(x, k + 8, LANES))
        odd = tile_dot_signed(odd, tile_codes(packed, 6), load_splat(x, k + 12, LANES))
    tile_write(sums, 0, tile_add(even, odd))


@njit(cache=True, nogil=True)
def _four(rows, panels, at, sums) -> None:  # type: ignore[no-untyped-def]
    """Write the ``(4, 16)`` sums of the panel at byte `at` with four padded tokens."""
    width = rows.shape[1]
    a, b = tile_zero(4, LANES), tile_zero(4, LANES)
    c, d = tile_zero(4, LANES), tile_zero(4, LANES)
    for k in range(0, width, 16):
        packed = tile_read(panels, at + 4 * k, 4, LANES)
        codes = tile_codes(packed, 0)
        a = tile_dot_signed(a, codes, load_splat(rows, k, LANES))
        b = tile_dot_signed(b, codes, load_splat(rows, k + width, LANES))
        c = tile_dot_signed(c, codes, load_splat(rows, k + 2 * width, LANES))
        d = tile_dot_signed(d, codes, load_splat(rows, k + 3 * width, LANES))
        codes = tile_codes(packed, 2)
        a = tile_dot_signed(a, codes, load_splat(rows, k + 4, LANES))
        b = tile_dot_signed(b, codes, load_splat(rows, k + 4 + width, LANES))
        c = tile_dot_signed(c, codes, load_splat(rows, k + 4 + 2 * width, LANES))
        d = tile_dot_signed(d, codes, load_splat(rows, k + 4 + 3 * width, LANES))
        codes = tile_codes(packed, 4)
        a = tile_dot_signed(a, codes, load_splat(rows, k + 8, LANES))
        b = tile_dot_signed(b, codes, load_splat(rows, k + 8 + width, LANES))
        c = tile_dot_signed(c, codes, load_splat(rows, k + 8 + 2 * width, LANES))
        d = tile_dot_signed(d, codes, load_splat(rows, k + 8 + 3 * width, LANES))
        codes = tile_codes(packed, 6)
        a = tile_dot_signed(a, codes, load_splat(rows, k + 12, LANES))
        b = tile_dot_signed(b, codes, load_splat(rows, k + 12 + width, LANES))
        c = tile_dot_signed(c, codes, load_splat(rows, k + 12 + 2 * width, LANES))
        d = tile_dot_signed(d, codes, load_splat(rows, k + 12 + 3 * width, LANES))
    tile_write(sums, 0, a)
    tile_write(sums, 64, b)
    tile_write(sums, 128, c)
    tile_write(sums, 192, d)


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
    size = 4 * rows.shape[1]  # bytes of a panel
    minus, scales = np.zeros(4, np.int32), np.ones(4, np.float32)
    sums = np.zeros((4, 16), np.int32)
    for start in range(0, batch, 4):
        count = min(4, batch - start)
        if not take_tokens(x[start : start + count], gamma, rows, minus, scales):
            return False
        for panel in range(first, last):
            if count > 2:
                _four(rows, panels, panel * size, sums)
            else:
                for token in range(count):
                    _one(rows[token], panels, panel * size, sums[token])
            write_sums(sums, minus, scales, gamma, out[start : start + count], 16 * panel)
    return True
