"""The ternary product of sparse activations: what is zero is not multiplied, and not read.

    z = sum over the i with q_i != 0 of q_i codes[:, i]

Decoding one token takes as long as reading the weights takes, so zeros pay only if weights are not
read for them. In panels (`minibit.ternary.panels`) a cache line holds 4 columns, and few lines meet
four zeros. So the weights lie by columns here, in bands of 256 rows: one column of a band is a
cache line of 64 bytes, read or left alone.

    bands    [n_out / 256][n_in][64]    2 bits per code

A band that is not full is padded, so that matrices of few rows waste memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit import kernels
from minibit.absmean import absmax_quantize
from minibit.base import last_axis, number
from minibit.matmul import MAX_INPUTS
from minibit.ternary import check_codes, pack2, unpack2

__all__ = ["TernaryColumns", "sparse_ternary_matmul", "sparse_ternary_matmul_int8"]

BAND, LINE = 256, 64


@dataclass(frozen=True, eq=False, slots=True)
class TernaryColumns:
    """An immutable ternary matrix that lies by columns, for products with sparse activations.

    Holds one copy of the weights, in bands, and one float32 scale for the whole matrix; pickles
    carry the canonical 2-bit form. Safe to share between threads.

    Examples
    --------
    >>> columns = TernaryColumns.from_codes([[1, 0, -1], [0, 0, 1]], scale=0.5)
    >>> columns.codes()
    array([[ 1,  0, -1],
           [ 0,  0,  1]], dtype=int8)
    >>> columns
    TernaryColumns(shape=(2, 3), scale=0.5)
    """

    _bands: NDArray[np.uint8]  # (bands n_in 64,), read-only
    shape: tuple[int, int]  # (n_out, n_in)
    scale: np.float32

    @classmethod
    def from_codes(cls, codes: ArrayLike, scale: float | np.float32 = 1.0) -> TernaryColumns:
        """Pack a copy of `codes`, a matrix of -1, 0 and 1, beside one finite scale, as float32.

        Anything else is a TypeError or ValueError; the first entry that is no code is named.
        """
        matrix = check_codes(codes, ndim=2)
        with np.errstate(over="ignore"):
            factor = np.float32(scale)
        number("scale", factor)
        bands = _pack(matrix)
        bands.flags.writeable = False
        n_out, n_in = matrix.shape
        return cls(bands, (n_out, n_in), factor)

    def codes(self) -> NDArray[np.int8]:
        """Return the codes as a fresh int8 array, shape (n_out, n_in)."""
        n_out, n_in = self.shape
        count = -(-n_out // BAND)
        lines = self._bands.reshape(count, n_in, 4, 4, 4)  # band i L v d
        digits = lines[..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3  # band i L v d j
        rows = digits.transpose(0, 3, 5, 2, 4, 1).reshape(count * BAND, n_in)  # band v j L d i
        return rows[:n_out].astype(np.int8) - np.int8(1)

    @property
    def nbytes(self) -> int:
        """Bytes that the weights take in memory, padding included."""
        return self._bands.nbytes

    def __repr__(self) -> str:
        """Shape and scale; never the weights."""
        return f"{type(self).__name__}(shape={self.shape}, scale={self.scale:g})"

    def __reduce__(self) -> tuple[Callable[..., TernaryColumns], tuple[object, ...]]:
        """Pickle through the canonical form."""
        return _unpickled, (pack2(self.codes()), self.shape, self.scale)


def sparse_ternary_matmul_int8(x: ArrayLike, matrix: TernaryColumns) -> NDArray[np.int32]:
    """Multiply int8 activations by ternary codes, reading the columns of those that are not 0.

    ``z = x codes^T``, exact in int32: what `minibit.matmul.ternary_matmul_int8` returns. `x` has
    shape (..., n_in) and is multiplied one token after the other: meant for one. `matrix` is a
    `TernaryColumns` with n_in at most `minibit.matmul.MAX_INPUTS`. Another type is a TypeError,
    another number of inputs a ValueError.

    Examples
    --------
    >>> matrix = TernaryColumns.from_codes([[1, 0, -1], [1, 1, 1]])
    >>> sparse_ternary_matmul_int8(np.int8([[2, 0, 5]]), matrix)
    array([[-3,  7]], dtype=int32)
    """
    if not isinstance(matrix, TernaryColumns):
        raise TypeError(f"matrix must be TernaryColumns, got {type(matrix).__name__}")
    x, (n_out, n_in) = np.asarray(x), matrix.shape
    last_axis("x", x, n_in)
    if n_in > MAX_INPUTS:
        raise ValueError(f"matrix must have at most {MAX_INPUTS} inputs, got {n_in}")
    if x.dtype != np.int8:
        raise TypeError(f"x must be int8, got {x.dtype}")
    rows = np.ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), n_in)
    z = np.zeros((len(rows), n_out), np.int32)
    if not kernels.compiled():
        codes = matrix.codes().astype(np.int32)
        for row, sums in zip(rows, z, strict=True):
            active = np.flatnonzero(row)
            sums[:] = codes[:, active] @ row[active].astype(np.int32)
    elif n_in and n_out:
        from minibit.kernels import sparse

        product = sparse.product_wide if kernels.path() in ("vnni", "amx") else sparse.product_any
        at, values = np.empty(n_in + 32, np.int64), np.empty(n_in + 32, np.int8)
        for row, sums in zip(rows, z, strict=True):
            count = sparse.compact(row, at, values)
            product(at, values, count, n_in, matrix._bands, sums)
    return z.reshape(*x.shape[:-1], n_out)


def sparse_ternary_matmul(x: ArrayLike, matrix: TernaryColumns) -> NDArray[np.float32]:
    """Multiply float activations, usually of `topk_sparsify`, as `sparse_ternary_matmul_int8` does.

    ``y = float32(q codes^T) (gamma / s)`` with ``q, s`` of `absmax_quantize`, which takes finite
    `x`: bit for bit what `minibit.matmul.ternary_matmul` returns of the same matrix. A column
    whose input rounds to 0 in int8 is not read, either.

    Examples
    --------
    >>> matrix = TernaryColumns.from_codes([[1, 0, -1], [1, 1, 1]], scale=0.5)
    >>> sparse_ternary_matmul(np.float32([[127, 0, -1]]), matrix)
    array([[64., 63.]], dtype=float32)
    """
    codes, scale = absmax_quantize(x)
    z = sparse_ternary_matmul_int8(codes, matrix)
    y: NDArray[np.float32] = z.astype(np.float32) * (matrix.scale / scale)
    return y


def _pack(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack codes into bands, in three lines of NumPy."""
    n_out, n_in = codes.shape
    count = -(-n_out // BAND)
    digits = np.ones((count * BAND, n_in), np.uint8)
    np.add(codes, 1, out=digits[:n_out], casting="unsafe")
    d = digits.reshape(count, 4, 4, 4, 4, n_in)  # band v j L d i
    packed = d[:, :, 0] | d[:, :, 1] << 2 | d[:, :, 2] << 4 | d[:, :, 3] << 6  # band v L d i
    return np.ascontiguousarray(packed.transpose(0, 4, 2, 1, 3)).reshape(-1)  # band i L v d


def _unpickled(packed: Any, shape: tuple[int, int], scale: np.float32) -> TernaryColumns:
    """Undo `TernaryColumns.__reduce__`."""
    return TernaryColumns.from_codes(unpack2(packed, shape[0] * shape[1]).reshape(shape), scale)
