"""Matrix times one vector on bit-planes: AND and count. Only chapter 3 uses it, as a rung.

With the ones of a row in one plane and its minus ones in another, and the 8 bits of the activations
in planes of their own, a product is counting::

    x . t = sum over bits b of +-2^b (count(plus AND x_b) - count(minus AND x_b))

Bit 7 of two's complement counts -128. 16 ANDs and counts serve 64 weights.
"""

from __future__ import annotations

import numpy as np
from numba.extending import intrinsic

from minibit.kernels.compiling import Array, njit


@intrinsic
def _popcount(typingctx, word):
    """``_popcount(word)``: number of bits that are set in an integer."""

    def codegen(context, builder, signature, args):
        return builder.ctpop(args[0])

    return word(word), codegen


@njit(cache=True, nogil=True)
def product(x: Array, plus: Array, minus: Array, out: Array) -> None:
    """Multiply planes ``plus, minus (n_out, words)`` of uint64 by int8 ``x (n_in,)`` into int32.

    Bit i of word j stands for column 64 j + i; bits beyond n_in are 0.
    """
    words = plus.shape[1]
    planes = np.zeros((8, words), np.uint64)
    for k in range(x.size):
        for bit in range(8):
            planes[bit, k // 64] |= np.uint64((x[k] >> bit) & 1) << np.uint64(k % 64)
    for r in range(plus.shape[0]):
        up, down, total = plus[r], minus[r], 0
        for bit in range(8):
            plane, count = planes[bit], 0
            for j in range(words):
                count += int(_popcount(up[j] & plane[j]))
                count -= int(_popcount(down[j] & plane[j]))
            total += -128 * count if bit == 7 else count << bit
        out[r] = total
