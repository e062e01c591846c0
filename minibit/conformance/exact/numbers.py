"""Floats as exact fractions: each operation is carried out exactly and rounded once."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

__all__ = ["entries", "float32", "nearest"]


def float32(x: Fraction | int | float) -> Fraction:
    """Round to float32: to nearest, ties to even, subnormal numbers too; must not overflow.

    Examples
    --------
    >>> float32(Fraction(1, 3)) == Fraction(float(np.float32(1) / np.float32(3)))
    True
    """
    x = Fraction(x)
    if x == 0:
        return x
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    exponent -= abs(x) < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, -126) - 23)
    result = round(x / unit) * unit
    if abs(result) >= 2**128:
        raise OverflowError(f"{float(x)} is beyond float32")
    return result


def nearest(x: Fraction | int | float) -> np.float32:
    """Return the float32 that a fraction rounds to."""
    return np.float32(float(float32(x)))


def entries(array: Any) -> Any:
    """Return an array's entries as fractions."""
    flat = [Fraction(entry) for entry in np.asarray(array).reshape(-1).tolist()]
    return np.array(flat, object).reshape(np.shape(array))
