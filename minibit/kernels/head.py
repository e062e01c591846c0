"""Matrix times one vector for matrices that stay unquantised: float32 and bfloat16 weights.

The output head of a language model is not ternary, and one token reads all of it, so this product
is as fast as memory. A bfloat16 number is the upper half of a float32: shifted up by 16 bits it is
one, exactly, and half the bytes are read. Four rows share each activation. Sums may be taken in any
order (``reassoc``), which is what lets them fill vectors; products and sums are float32.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from minibit.kernels.compiling import Array, njit


def _float(weight):
    """Return a weight as float32: itself, or the float32 whose upper half are its bits."""


@overload(_float)
def _float_of(weight):
    """Pick by the type of the weight."""
    if weight == types.float32:
        return lambda weight: weight
    return lambda weight: np.uint32(np.uint32(weight) << np.uint32(16)).view(np.float32)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def matvec(x: Array, w: Array, out: Array) -> None:
    """Write ``w (n_out, n_in)``, float32 or the bits of bfloat16, times float32 ``x (n_in,)``."""
    n_out, n_in = w.shape
    fours = n_out - n_out % 4
    for r in range(0, fours, 4):
        wa, wb, wc, wd = w[r], w[r + 1], w[r + 2], w[r + 3]
        a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for k in range(n_in):
            a += _float(wa[k]) * x[k]
            b += _float(wb[k]) * x[k]
            c += _float(wc[k]) * x[k]
            d += _float(wd[k]) * x[k]
        out[r], out[r + 1], out[r + 2], out[r + 3] = a, b, c, d
    for r in range(fours, n_out):
        row, total = w[r], np.float32(0)
        for k in range(n_in):
            total += _float(row[k]) * x[k]
        out[r] = total
