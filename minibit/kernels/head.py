"""Matrix times one vector for matrices that stay unquantised: float32 and bfloat16 weights.

The output head of a language model is not ternary, and one token reads all of it, so this product
is as fast as memory. A bfloat16 number is the upper half of a float32: shifted up by 16 bits it is
one, exactly, and half the bytes are read. Four rows share each activation. Sums may be taken in any
order (``reassoc``), which is what lets them fill vectors; products and sums are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["matvec_bfloat16", "matvec_float32"]


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def matvec_float32(x: NDArray[Any], w: NDArray[Any], out: NDArray[Any]) -> None:
    """Write ``w (n_out, n_in)`` times ``x (n_in,)``, all float32."""
    n_out, n_in = w.shape
    fours = n_out - n_out % 4
    for r in range(0, fours, 4):
        wa, wb, wc, wd = w[r], w[r + 1], w[r + 2], w[r + 3]
        a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for k in range(n_in):
            a += wa[k] * x[k]
            b += wb[k] * x[k]
            c += wc[k] * x[k]
            d += wd[k] * x[k]
        out[r], out[r + 1], out[r + 2], out[r + 3] = a, b, c, d
    for r in range(fours, n_out):
        row, total = w[r], np.float32(0)
        for k in range(n_in):
            total += row[k] * x[k]
        out[r] = total


@njit(cache=True, nogil=True, inline="always")
def _widen(bits):  # type: ignore[no-untyped-def]
    """Return the float32 whose upper half is `bits`."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def matvec_bfloat16(x: NDArray[Any], w: NDArray[Any], out: NDArray[Any]) -> None:
    """Write ``w (n_out, n_in)``, the bits of bfloat16 as uint16, times ``x (n_in,)`` float32."""
    n_out, n_in = w.shape
    fours = n_out - n_out % 4
    for r in range(0, fours, 4):
        wa, wb, wc, wd = w[r], w[r + 1], w[r + 2], w[r + 3]
        a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for k in range(n_in):
            a += _widen(wa[k]) * x[k]
            b += _widen(wb[k]) * x[k]
            c += _widen(wc[k]) * x[k]
            d += _widen(wd[k]) * x[k]
        out[r], out[r + 1], out[r + 2], out[r + 3] = a, b, c, d
    for r in range(fours, n_out):
        row, total = w[r], np.float32(0)
        for k in range(n_in):
            total += _widen(row[k]) * x[k]
        out[r] = total
