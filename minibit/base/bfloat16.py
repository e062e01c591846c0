"""bfloat16: the upper half of a float32, which NumPy has no type for; held as uint16 bits.

float32   sign  exponent[8]  mantissa[23]
bfloat16  sign  exponent[8]  mantissa[7]
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

HALF = np.uint32(16)


def to_bfloat16(floats: NDArray[Any]) -> NDArray[np.uint16]:
    """Round floats, by way of float32, to the bits of bfloat16: to the nearest, half to even.

    A value beyond the largest bfloat16 becomes infinite; a NaN stays one, of its sign.

    Examples
    --------
    >>> to_bfloat16(np.float32([1, -2, np.nan]))
    array([16256, 49152, 32704], dtype=uint16)
    """
    with np.errstate(over="ignore"):
        bits = np.asarray(floats).astype(np.float32, copy=False).view(np.uint32)
    odd = bits >> HALF & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd >> HALF).astype(np.uint16)
    nan = bits & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000)
    if nan.any():  # its payload may lie in the lower half
        rounded = np.where(nan, bits >> HALF | np.uint32(0x40), rounded).astype(np.uint16)
    return rounded


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 numbers that the bits of bfloat16 stand for: exact, NaN included."""
    return (bits.astype(np.uint32) << HALF).view(np.float32)


def widen(x: Any) -> Any:
    """Turn bits of bfloat16 (uint16) into float32; let floats, and duals, through."""
    return from_bfloat16(x) if x.dtype == np.uint16 else x
