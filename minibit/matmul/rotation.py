"""A rotation before the product: signs, then a Walsh-Hadamard transform of each block.

    y = W' x = (W R^T) (R x),    R x = H (s x) / sqrt(n) in blocks of n,    H H^T = n I

Weights that were turned into ``W R^T`` before they became ternary have no outliers along a column
(QuaRot, arXiv 2404.00456), and what meets them must be turned likewise: left out, the product is
fluent nonsense. H is Sylvester's matrix, ``H_2n = [[H_n, H_n], [H_n, -H_n]]``, whose product takes
n log n additions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.base import integer, refuse_entries
from minibit.ternary import TernaryMatrix

__all__ = ["RotatedMatrix", "walsh_hadamard"]


def walsh_hadamard(x: Any, signs: ArrayLike | None = None, block: int | None = None) -> Any:
    """Turn the last axis: ``H (signs * x) / sqrt(block)`` in each block of `block` entries.

    Parameters
    ----------
    x : float array or `minibit.dual.Dual`, shape (..., n)
        Of its own dtype throughout.
    signs : array, shape (n,), optional
        1 and -1; all 1 by default.
    block : int, optional
        A power of two that divides n; n by default.

    Returns
    -------
    array, shape of x
        Without signs, twice is x again. Sums are pairwise, ``log2(block)`` roundings each: within
        ``(log2(block) + 2) u sum |x| / sqrt(block)`` of the exact value, sums over the block and u
        half a unit in the last place of 1 (2**-24 in float32).

    Raises
    ------
    TypeError, ValueError
        If `x` is not of floats, `block` is no power of two that divides n, or `signs` are not n
        numbers 1 and -1.

    Notes
    -----
    Sylvester's order, as the metadata ``normalized-sylvester-walsh-hadamard`` of files says.

    Examples
    --------
    >>> walsh_hadamard(np.float32([1, 0, 0, 0]), signs=[-1, 1, 1, 1])
    array([-0.5, -0.5, -0.5, -0.5], dtype=float32)
    """
    x = x if hasattr(x, "primal") else np.asarray(x)
    if x.dtype.kind != "f" or not x.ndim:
        raise TypeError(f"x must be an array of floats with an axis, got {x.dtype}, {x.ndim} axes")
    n = x.shape[-1]
    block = _block(n if block is None else block, n)
    if signs is not None:
        x = x * _signs(signs, n).astype(x.dtype)
    shape, half = x.shape, 1
    while half < block:
        pairs = x.reshape((*shape[:-1], n // (2 * half), 2, half))
        left, right = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([left + right, left - right], axis=-2).reshape(shape)
        half *= 2
    return x * x.dtype.type(block**-0.5)


@dataclass(frozen=True, eq=False)
class RotatedMatrix:
    """A ternary matrix whose activations are turned first, ``W R^T``: `walsh_hadamard` as a part.

    `minibit.matmul.ternary_matmul` takes it in place of a `TernaryMatrix`.

    Attributes
    ----------
    matrix : TernaryMatrix, shape (n_out, n_in)
        The turned weights.
    signs : int8 array, shape (n_in,)
    block : int
        Of the transform; both as for `walsh_hadamard`.

    Examples
    --------
    >>> turned = TernaryMatrix.from_codes([[1, 1], [1, -1]], scale=0.5)
    >>> RotatedMatrix(turned, np.int8([1, 1]), 2).shape
    (2, 2)
    """

    matrix: TernaryMatrix
    signs: NDArray[np.int8]
    block: int

    def __post_init__(self) -> None:
        """Check that all fit."""
        if not isinstance(self.matrix, TernaryMatrix):
            raise TypeError(f"matrix must be a TernaryMatrix, got {type(self.matrix).__name__}")
        n_in = self.matrix.shape[1]
        object.__setattr__(self, "signs", _signs(self.signs, n_in))
        object.__setattr__(self, "block", _block(self.block, n_in))

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in)."""
        return self.matrix.shape

    def turned(self, x: Any) -> Any:
        """Return the activations that the weights expect."""
        return walsh_hadamard(x, self.signs, self.block)


def _block(block: int, n: int) -> int:
    """Return the size of a block that fits."""
    size = integer("block", block, 1)
    if size & (size - 1) or n % size:
        raise ValueError(f"block must be a power of two that divides {n}, got {size}")
    return size


def _signs(signs: ArrayLike, n: int) -> NDArray[np.int8]:
    """Return signs as a read-only int8 array."""
    array = np.asarray(signs)
    if array.shape != (n,):
        raise ValueError(f"signs must have shape ({n},), got {array.shape}")
    refuse_entries("signs", array, (array != 1) & (array != -1), "be 1 or -1")
    fixed = array.astype(np.int8)
    fixed.flags.writeable = False
    return fixed
