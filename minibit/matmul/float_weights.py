"""The product with a matrix that stays unquantised: the output head of a language model.

    y = x w^T        w in float32, or in bfloat16: the upper half of a float32's bits

One token reads all of w, as it reads all of a ternary matrix: 16 or 32 bits per weight, not 2.
With the vocabularies of today the head is a large part of what a token reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import float32, widen

__all__ = ["head_matmul", "head_matmul_reference"]

Array = NDArray[Any]
_FLOAT32 = np.dtype(np.float32)


def head_matmul_reference(x: Array, w: Array) -> NDArray[np.float32]:
    """Multiply by an unquantised matrix in one line of NumPy; `x` and `w` as for `head_matmul`.

    Examples
    --------
    >>> head_matmul_reference(np.float32([[1, 2]]), np.float32([[1, -2]]))
    array([[-3.]], dtype=float32)
    """
    x, w = _checked_head(x, w)
    y: NDArray[np.float32] = x @ widen(w).T  # (..., n_out)
    return y


def head_matmul(x: Array, w: Array) -> NDArray[np.float32]:
    """Multiply activations by an unquantised matrix, as a language model's output head needs.

    ``y = x w^T`` in float32. One token reads all of w, so bfloat16 weights take about half the time
    of float32 ones, once memory is the limit.

    Parameters
    ----------
    x : float array, shape (..., n_in)
        Cast to float32. NaN and infinities pass, as in any product of floats.
    w : float32 array, or uint16 array of bfloat16 bits, shape (n_out, n_in)
        A bfloat16 number is the upper half of a float32.

    Returns
    -------
    float32 array, shape (..., n_out)
        Sums of float32 in the order that suits the CPU: equal to `head_matmul_reference` within
        ``n_in 2**-24 sum |x_i w_i|``.

    Raises
    ------
    TypeError, ValueError
        If `x` is not of floats, `w` is neither float32 nor uint16, or they do not fit.

    Examples
    --------
    >>> head_matmul(np.float32([[1, 2]]), np.uint16([[0x3F80, 0xC000]]))  # 1, -2
    array([[-3.]], dtype=float32)
    """
    from minibit import kernels

    x, w = _checked_head(x, w)
    n_out, n_in = w.shape
    if x.size != n_in or not n_in or not kernels.compiled():
        out = np.empty((*x.shape[:-1], n_out), _FLOAT32)
        for a in range(0, n_out, _HEAD_ROWS):  # never all of w as float32
            out[..., a : a + _HEAD_ROWS] = head_matmul_reference(x, w[a : a + _HEAD_ROWS])
        return out
    from minibit.kernels.head import matvec

    out = np.empty(n_out, _FLOAT32)
    plain = w.flags.c_contiguous and w.flags.aligned  # true of a file mapped read-only, too
    matvec(np.array(x.reshape(n_in)), w if plain else np.array(w, order="C"), out)
    return out.reshape(*x.shape[:-1], n_out)


_HEAD_ROWS = 4096  # rows of a head that many tokens are multiplied by at a time


def _checked_head(x: Array, w: Array) -> tuple[Array, Array]:
    """Return x as float32 and w as it is, or say what does not fit."""
    x, w = float32("x", x), np.asarray(w)
    if w.dtype not in (np.float32, np.uint16):
        raise TypeError(f"w must be float32, or uint16 bits of bfloat16, got {w.dtype}")
    if w.ndim != 2 or x.ndim == 0 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"x (..., n_in) must fit w (n_out, n_in), got {x.shape} and {w.shape}")
    return x, w
