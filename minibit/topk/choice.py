"""The choice of Q-Sparse: which k entries of a row are largest, exactly, and how many k is."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.base import floats, integer, largest, refuse_entries
from minibit.dual import Dual, stop_gradient

__all__ = ["block_topk_mask", "topk_count", "topk_keep", "topk_mask", "topk_mask_reference"]

Array = Any  # an ndarray, or a Dual, which behaves like one

_FLOAT32, _BOOL = np.dtype(np.float32), np.dtype(bool)


def topk_count(n: int, sparsity: float | str | Fraction) -> int:
    """Count the entries that are kept of n at a share of zeros: ``k = floor((1 - sparsity) n)``.

    Exact: `sparsity`, from 0 to below 1, is a str, a Fraction, or a float that stands for the
    shortest decimal number that prints it, so that 0.9 is nine tenths. The authors' code
    (ustcwhy/Q-Sparse) computes ``int((1 - ratio) * n)`` in floating point, which keeps none of 10
    at a ratio of 0.9. A sparsity out of range, an n below 1, or nothing kept is a ValueError.

    Examples
    --------
    >>> topk_count(10, 0.9), int((1 - 0.9) * 10)
    (1, 0)
    >>> topk_count(128, "0.35")
    83
    """
    n = integer("n", n, 1)
    exact = isinstance(sparsity, Fraction | str)
    try:
        share = Fraction(sparsity if exact else repr(float(sparsity)))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"sparsity must be a number from 0 to below 1, got {sparsity!r}") from None
    if not 0 <= share < 1:
        raise ValueError(f"sparsity must be from 0 to below 1, got {sparsity}")
    k = (1 - share) * n // 1
    if k < 1:
        raise ValueError(f"sparsity {sparsity} would keep nothing of n = {n}")
    return int(k)


def topk_mask_reference(x: ArrayLike, k: int) -> NDArray[np.bool_]:
    """Mark the k largest magnitudes by `minibit.base.largest`; x and k are those of `topk_mask`.

    Examples
    --------
    >>> topk_mask_reference(np.array([1.0, -3.0, 2.0, 3.0]), 2)
    array([False,  True, False,  True])
    """
    x, k = checked(x, k)
    refuse_entries("x", x, np.isnan(x), "hold no NaN")
    return largest(np.abs(x), k)


def topk_mask(x: Array, k: int) -> NDArray[np.bool_]:
    """Mark the k entries of largest magnitude along the last axis.

    ``M_i = 1`` if fewer than k entries have ``|x_j| > |x_i|``, or the same magnitude and ``j < i``.

    Parameters
    ----------
    x : float array or Dual, shape (..., n)
        Infinities are largest. No rows give no rows.
    k : int
        From 1 to n.

    Returns
    -------
    bool array, shape (..., n)
        Exactly k are true in every row. Of equal magnitudes (signs and signed zeros do not matter)
        those of lowest index win.

    Raises
    ------
    TypeError, ValueError
        If `x` holds no floats, has no axis, or an entry is NaN (the first is named); for another k.

    Notes
    -----
    Q-Sparse (arXiv 2407.10969), M = Top_k(abs X). `torch.topk` leaves ties to chance, and a
    comparison with the k-th magnitude keeps all of them. Compiled for float16 and float32; float64
    is sorted.

    Examples
    --------
    >>> topk_mask(np.float32([[1, -3, 2, 3], [5, 5, -5, 5]]), 2)
    array([[False,  True, False,  True],
           [ True,  True, False, False]])
    """
    if _KERNELS and _is_plain(x, k):  # a short cut: one token takes two microseconds
        mask = np.empty(x.shape, _BOOL)
        if _KERNELS["select"](x, k, mask) < 0:
            return mask
    x = stop_gradient(x) if isinstance(x, Dual) else x
    chosen = _by_kernel("select", x, k, _BOOL)
    return topk_mask_reference(x, k) if chosen is None else chosen


def block_topk_mask(x: ArrayLike, n: int, m: int) -> NDArray[np.bool_]:
    """Mark the n entries of largest magnitude in every m consecutive ones.

    x, n, m and what is refused are as for `block_topk_sparsify`; the mask has the shape of x.

    Examples
    --------
    >>> block_topk_mask(np.float32([9, 8, 1, 2]), 1, 2)
    array([ True, False, False,  True])
    """
    x = stop_gradient(x) if isinstance(x, Dual) else np.asarray(x)
    return topk_mask(blocks(x, m), n).reshape(x.shape)


def topk_keep(x: NDArray[Any], k: int) -> NDArray[Any]:
    """Keep the k entries of largest magnitude of every row of an array: ``where(mask, x, 0)``."""
    y = _by_kernel("keep", x, k, _FLOAT32)
    if y is None:
        return np.where(topk_mask_reference(x, k), x, x.dtype.type(0))
    return y.astype(x.dtype, copy=False)


def blocks(x: Array, m: int) -> Array:
    """Cut the last axis: (..., width) to (..., width / m, m)."""
    m = integer("m", m, 1)
    if not x.shape or x.shape[-1] % m:
        raise ValueError(f"m must divide the last axis, got m = {m} and shape {tuple(x.shape)}")
    return np.reshape(x, (*x.shape[:-1], x.shape[-1] // m, m))


_KERNELS: dict[str, Callable[..., int]] = {}  # filled at first use: see `topk_mask`


def _is_plain(x: Any, k: Any) -> bool:
    """Whether the kernel takes x and k as they are."""
    return (
        type(x) is np.ndarray
        and x.dtype is _FLOAT32
        and x.ndim == 2
        and type(k) is int
        and 0 < k <= x.shape[1]
        and x.flags.c_contiguous
    )


def _by_kernel(name: str, x: Any, k: int, dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """Return what a kernel makes of x as float32 rows, or None where it does not run."""
    from minibit import kernels

    if not kernels.compiled():
        return None
    if not _KERNELS:
        from minibit.kernels.topk import keep, select

        _KERNELS.update(select=select, keep=keep)
    rows = x
    if not _is_plain(x, k):
        array, k = checked(x, k)
        if array.dtype.itemsize > 4 or not array.size:
            return None
        rows = np.ascontiguousarray(array, np.float32).reshape(-1, array.shape[-1])
    out = np.empty(rows.shape, dtype)
    if _KERNELS[name](rows, k, out) >= 0:
        refuse_entries("x", np.asarray(x), np.isnan(x), "hold no NaN")
    return out.reshape(np.shape(x))


def checked(x: ArrayLike, k: int) -> tuple[NDArray[Any], int]:
    """Return x as an array of floats with a last axis, and k as an int, or name the fault."""
    array = floats("x", x, axis=True)
    return array, integer("k", k, 1, array.shape[-1])
