"""A density in integers: what decides how many weights of a block are noise, exactly.

    density        numerator / 2**32
    B = 2**b       weights of a block: about one nonzero, or fewer, on average
    T_j            floor(2**64 P(k <= j)),  k of law Binomial(B, density)

A block whose 64-bit draw is u has ``#{j : T_j <= u}`` nonzeros. The floors are those of exact
rationals, so every language that computes them has the same table.
"""

from __future__ import annotations

import operator
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer
from minibit.noise.philox import Index

__all__ = ["Share", "noise_constants", "numerator_of"]

Share = float | Fraction | Index


def noise_constants(density: Share) -> tuple[int, int, NDArray[np.uint64]]:
    """Fix the integers behind a density: its numerator, the block size and the count table.

    - ``numerator = round(density 2**32)``, ties to even. An ``int`` *is* the numerator, so that a
      log names integers only: 1 means ``2**-32``, and 1.0 means every weight.
    - ``block_bits`` b: the largest b in 4, ..., 16 with ``numerator 2**b <= 2**32``, and 4 if none.
      A block of ``B = 2**b`` weights then has one nonzero or fewer on average, up to density 1/16.
    - ``table``: ``T_j = floor(2**64 P(k <= j))`` for a count k of law Binomial(B, numerator/2**32),
      the floor of an exact rational, for j = 0, 1, ..., up to before the first that reaches
      ``2**64 - 1``.

    The table is a read-only, non-decreasing uint64 array of at most 20 entries: none for density 0,
    sixteen zeros for density 1. A density that is no number, or out of range (NaN too), is refused
    by a TypeError or a ValueError.

    Examples
    --------
    >>> numerator, block_bits, table = noise_constants(6e-5)
    >>> numerator, block_bits, len(table)
    (257698, 14, 20)
    >>> f"{table[0] / 2**64:.4f}"  # the share of empty blocks
    '0.3742'
    """
    numerator = numerator_of("density", density)
    block_bits = min(16, max(4, 32 - (numerator - 1).bit_length())) if numerator else 16
    return numerator, block_bits, _count_table(numerator, block_bits)


def numerator_of(name: str, share: Any) -> int:
    """Turn a share in [0, 1] into its numerator over 2**32; an integer is the numerator."""
    if isinstance(share, float | np.floating | Fraction):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {share}")
        exact = share if isinstance(share, Fraction) else Fraction(float(share))
        return round(exact * 2**32)
    try:
        operator.index(share)
    except TypeError:
        raise TypeError(
            f"{name} must be a float, a Fraction or an integer numerator over 2**32, got {share!r}"
        ) from None
    return integer(f"{name} (an integer is a numerator over 2**32)", share, 0, 2**32)


@lru_cache(maxsize=4096)
def _count_table(numerator: int, block_bits: int) -> NDArray[np.uint64]:
    """Floor ``2**64 P(k <= j)`` exactly, for `noise_constants`.

    Every P lies between a lower and an upper bound in fixed point: of 256 bits, and if that leaves
    a floor open, of the ``32 B`` bits that hold each term without rounding.
    """
    block, p, q = 1 << block_bits, numerator, 2**32 - numerator
    table: list[int] = [0] * block if q == 0 else []
    for bits in (256, 32 * block) if p and q else ():
        low = high = q << (bits - 32)  # 1 - density
        for _ in range(block_bits):  # P(0) = (1 - density)**B by squaring
            low, high = low * low >> bits, -(-high * high >> bits)
        least, greatest, table = low, high, []  # P(k <= 0)
        for j in range(block):
            floor = least >> (bits - 64)
            if floor >= 2**64 - 1 or floor != greatest >> (bits - 64):
                break
            table.append(floor)
            up, down = (block - j) * p, (j + 1) * q  # P(j + 1) = P(j) up / down
            low, high = low * up // down, -(-high * up // down)
            least, greatest = least + low, greatest + high  # P(k <= j + 1)
        if floor >= 2**64 - 1 or len(table) == block:
            break
    out = np.array(table, np.uint64)
    out.flags.writeable = False
    return out
