"""Q-Sparse: keep the K largest activations of every token, and train straight through the choice.

    M = 1 for the K largest |x_i| of a token, else 0        exactly K, ties to the lowest index
    Y = (X * M) W^T,      dY/dX := dY/d(X * M)              straight-through
    Y = (Q(X) * M) Q_w(W)^T                                 with the quantisers of BitNet b1.58

A ternary matrix is already small; what a token needs not read of it makes it smaller still: an
input that is zero needs no column of W. `minibit.sparse_matmul` is the product that skips them, and
`minibit.scaling` the law that says how much sparsity is best for how many active parameters.

May import: numpy, minibit.dual, minibit.absmean, minibit.scaling, minibit.sparse_matmul,
minibit.kernels.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.absmean import absmax_quantize
from minibit.dual import Dual, stop_gradient, straight_through
from minibit.scaling import (
    LawFit,
    fit_scaling_law,
    optimal_interval,
    optimal_sparsity,
    scaling_law,
)
from minibit.sparse_matmul import (
    TernaryColumns,
    sparse_ternary_matmul,
    sparse_ternary_matmul_int8,
)

__all__ = [
    "SITES",
    "LawFit",
    "TernaryColumns",
    "block_topk_mask",
    "block_topk_sparsify",
    "fit_scaling_law",
    "optimal_interval",
    "optimal_sparsity",
    "scaling_law",
    "sparse_ternary_matmul",
    "sparse_ternary_matmul_int8",
    "sparsifier",
    "topk_count",
    "topk_mask",
    "topk_mask_reference",
    "topk_quantize",
    "topk_sparsify",
]

Array = Any  # an ndarray, or a Dual, which behaves like one

SITES = ("qkv", "o", "gate_up", "down")
"""Inputs of projections that `minibit.transformer.forward` offers to a sparsify function."""

TINY = 1e-12  # under the root of a norm: a row of zeros stays zeros
_FLOAT32, _BOOL = np.dtype(np.float32), np.dtype(bool)


def topk_count(n: int, sparsity: float | str | Fraction) -> int:
    """Count what is kept of n entries at a share of zeros: ``k = floor((1 - sparsity) n)``.

    Parameters
    ----------
    n : int
        At least 1.
    sparsity : float, str or Fraction
        From 0 to below 1. A float stands for the shortest decimal number that prints it: 0.9 is
        nine tenths.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If `sparsity` is out of range, `n` below 1, or nothing would be kept.

    Notes
    -----
    Exact. The authors' code (ustcwhy/Q-Sparse) computes ``int((1 - ratio) * n)`` in floating point,
    which keeps none of 10 at a ratio of 0.9.

    Examples
    --------
    >>> topk_count(10, 0.9), int((1 - 0.9) * 10)
    (1, 0)
    >>> topk_count(128, "0.35")
    83
    """
    n = operator.index(n)
    try:
        share = Fraction(
            sparsity if isinstance(sparsity, Fraction | str) else repr(float(sparsity))
        )
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"sparsity must be a number from 0 to below 1, got {sparsity!r}") from None
    if not 0 <= share < 1:
        raise ValueError(f"sparsity must be from 0 to below 1, got {sparsity}")
    k = (1 - share) * n // 1
    if n < 1 or k < 1:
        raise ValueError(f"sparsity {sparsity} would keep nothing of n = {n}")
    return int(k)


def topk_mask_reference(x: ArrayLike, k: int) -> NDArray[np.bool_]:
    """Mark the k largest magnitudes as `topk_mask` does, by a stable sort.

    Parameters
    ----------
    x : float array, shape (..., n)
    k : int

    Returns
    -------
    bool array, shape (..., n)

    Examples
    --------
    >>> topk_mask_reference(np.array([1.0, -3.0, 2.0, 3.0]), 2)
    array([False,  True, False,  True])
    """
    x, k = _checked(x, k)
    if np.isnan(x).any():
        raise _nan(x)
    order = np.argsort(-np.abs(x), axis=-1, kind="stable")[..., :k]  # (..., k)
    mask = np.zeros(x.shape, bool)
    np.put_along_axis(mask, order, True, axis=-1)
    return mask


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
    TypeError
        If `x` does not hold floats, or `k` is no whole number.
    ValueError
        If `k` is below 1 or above n, an entry is NaN (the first is named), or `x` has no axis.

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
    if (
        type(x) is np.ndarray
        and x.dtype is _FLOAT32
        and type(k) is int
        and x.ndim == 2
        and 0 < k <= x.shape[1]
        and x.flags.c_contiguous
        and _KERNELS
    ):  # the shortest way in: a token takes two microseconds
        mask = np.empty(x.shape, _BOOL)
        if _KERNELS["select"](x, k, mask) < 0:
            return mask
    x = stop_gradient(x) if isinstance(x, Dual) else x
    rows = _rows_for_kernel(x, k)
    if rows is None:
        return topk_mask_reference(x, k)
    mask = np.empty(rows.shape, _BOOL)
    if _KERNELS["select"](rows, int(k), mask) >= 0:
        raise _nan(np.asarray(x))
    return mask if rows is x else mask.reshape(np.shape(x))


def topk_sparsify(x: Array, k: int, *, straight: bool = True, rescale: bool = False) -> Array:
    """Keep the k entries of largest magnitude along the last axis, and set the rest to zero.

    ``y = x * topk_mask(x, k)``; with `rescale`, ``y / ||y||``.

    Parameters
    ----------
    x : float array or Dual, shape (..., n)
        No NaN.
    k : int
        From 1 to n.
    straight : bool
        The derivative: ``y_dot = x_dot``, straight through the choice; if False
        ``y_dot = x_dot * mask``, that of the function between the places where it jumps.
    rescale : bool
        Whether to divide each row by its length (square root of the sum of squares, with 1e-12
        added below the root; infinite entries make it NaN). Its derivative is the true one.

    Returns
    -------
    array or Dual, shape and dtype of x
        Zeros are +0.

    Raises
    ------
    TypeError, ValueError
        As `topk_mask` does.

    Notes
    -----
    Q-Sparse (arXiv 2407.10969). Its formula ``Y = (X * M) W^T`` has no re-scaling, which is our
    default and what the authors' code does; its text divides the sparse tensor by its L2 norm.
    `absmax_quantize` before the product undoes any factor of a row but for rounding, and so does a
    norm after it.

    Examples
    --------
    >>> topk_sparsify(np.float32([[1, -3, 2, 4]]), 2)
    array([[ 0., -3.,  0.,  4.]], dtype=float32)
    >>> topk_sparsify(np.float32([[1, -3, 2, 4]]), 2, rescale=True)
    array([[ 0. , -0.6,  0. ,  0.8]], dtype=float32)
    """
    x = x if isinstance(x, Dual) else _checked(x, k)[0]
    y = _straight(x, k) if straight else np.where(topk_mask(x, k), x, np.zeros((), x.dtype))
    return _rescaled(y) if rescale else y


def block_topk_mask(x: ArrayLike, n: int, m: int) -> NDArray[np.bool_]:
    """Mark the n entries of largest magnitude in every m consecutive ones.

    Parameters
    ----------
    x : float array or Dual, shape (..., width)
        `width` a multiple of m.
    n : int
        From 1 to m: kept of a block.
    m : int
        Entries of a block.

    Returns
    -------
    bool array, shape (..., width)

    Raises
    ------
    TypeError, ValueError
        As `topk_mask` does; also if m does not divide the width.

    Examples
    --------
    >>> block_topk_mask(np.float32([9, 8, 1, 2]), 1, 2)
    array([ True, False, False,  True])
    """
    x = stop_gradient(x) if isinstance(x, Dual) else np.asarray(x)
    return topk_mask(_blocks(x, m), n).reshape(x.shape)


def block_topk_sparsify(
    x: Array, n: int, m: int, *, straight: bool = True, rescale: bool = False
) -> Array:
    """Keep the n entries of largest magnitude in every m consecutive ones: Block Q-Sparse.

    ``y = x * block_topk_mask(x, n, m)``: as `topk_sparsify`, but each block for itself, which is
    what hardware for N:M sparsity multiplies (2:4, 16:32).

    Parameters
    ----------
    x : float array or Dual, shape (..., width)
        `width` a multiple of m; no NaN.
    n : int
        From 1 to m: kept of a block.
    m : int
        Entries of a block; m = width is `topk_sparsify`.
    straight, rescale : bool
        As in `topk_sparsify`; a row is re-scaled as a whole.

    Returns
    -------
    array or Dual, shape and dtype of x

    Raises
    ------
    TypeError, ValueError
        As `topk_mask` does; also if m does not divide the width.

    Notes
    -----
    Q-Sparse (arXiv 2407.10969), section on Block Q-Sparse.

    Examples
    --------
    >>> block_topk_sparsify(np.float32([9, 8, 1, -2]), 1, 2)
    array([ 9.,  0.,  0., -2.], dtype=float32)
    """
    x = x if hasattr(x, "dtype") else np.asarray(x)
    y = np.reshape(topk_sparsify(_blocks(x, m), n, straight=straight), x.shape)
    return _rescaled(y) if rescale else y


def topk_quantize(x: ArrayLike, k: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise activations to int8 and keep the k largest: the input of Q-Sparse with b1.58.

    ``codes = rint(x scale) * M``, ``scale`` of `absmax_quantize`, ``M = topk_mask(x, k)``.

    Parameters
    ----------
    x : float array, shape (..., n)
        Cast to float32; all finite.
    k : int
        From 1 to n.

    Returns
    -------
    codes : int8 array, shape (..., n)
        At most k of a row are not 0: what was kept may round to 0.
    scale : float32 array, shape (..., 1)

    Raises
    ------
    TypeError, ValueError
        As `topk_mask` and `absmax_quantize` do.

    Notes
    -----
    The largest entry is always kept, and the scale depends on it alone: so quantising before the
    choice and after it are the same, and `topk_sparsify` before `bit_linear` trains this form. The
    choice is by x, not by its codes, among which there are many more ties.

    Examples
    --------
    >>> topk_quantize(np.float32([[127, -3, 2, 64]]), 2)[0]
    array([[127,   0,   0,  64]], dtype=int8)
    """
    with np.errstate(over="ignore"):  # what overflows is refused as infinite
        narrow = np.asarray(x)
        narrow = narrow.astype(np.float32, copy=False) if narrow.dtype.kind == "f" else narrow
    return absmax_quantize(topk_sparsify(narrow, k))


def sparsifier(
    sparsity: float | str | Fraction | Mapping[str, Any],
    sites: Collection[str] = SITES,
    *,
    block: int | None = None,
    straight: bool = True,
    rescale: bool = False,
) -> Callable[[Array, str], Array]:
    """Make the `sparsify` argument of `minibit.transformer.forward`.

    Parameters
    ----------
    sparsity : share of zeros, or dict of site to share
        For each site ``k = topk_count(width, sparsity)`` of its own width.
    sites : collection of str
        Where, among `SITES`; other inputs pass as they are. All four in the paper. With a dict, its
        keys count instead.
    block : int, optional
        Choose in blocks of so many entries: `block_topk_sparsify`.
    straight, rescale : bool
        As in `topk_sparsify`.

    Returns
    -------
    callable (x, site) -> array

    Raises
    ------
    ValueError
        If a site is unknown; on use, if a width keeps nothing or is no multiple of `block`.

    Examples
    --------
    >>> sparsify = sparsifier(0.5, sites=("down",))
    >>> sparsify(np.float32([[4, 3, 2, 1]]), "down"), sparsify(np.float32([[4, 3, 2, 1]]), "o")
    (array([[4., 3., 0., 0.]], dtype=float32), array([[4., 3., 2., 1.]], dtype=float32))
    """
    shares = dict(sparsity) if isinstance(sparsity, Mapping) else dict.fromkeys(sites, sparsity)
    for site, share in shares.items():
        if site not in SITES:
            raise ValueError(f"sites must be among {', '.join(SITES)}, got {site!r}")
        topk_count(10**9, share)

    def sparsify(x: Array, site: str) -> Array:
        if site not in shares:
            return x
        if block is None:
            k = topk_count(x.shape[-1], shares[site])
            return topk_sparsify(x, k, straight=straight, rescale=rescale)
        k = topk_count(block, shares[site])
        return block_topk_sparsify(x, k, block, straight=straight, rescale=rescale)

    return sparsify


@straight_through
def _straight(x: NDArray[Any], k: int) -> NDArray[Any]:
    rows = _rows_for_kernel(x, k)
    if rows is None:
        return np.where(topk_mask_reference(x, k), x, x.dtype.type(0))
    y = np.empty_like(rows)
    if _KERNELS["keep"](rows, int(k), y) >= 0:
        raise _nan(x)
    return y if rows is x else y.reshape(x.shape)


def _rescaled(y: Array) -> Array:
    """Divide each row by its length."""
    return y / np.sqrt(np.sum(y * y, axis=-1, keepdims=True) + TINY)


def _blocks(x: Array, m: int) -> Array:
    """Cut the last axis: (..., width) to (..., width / m, m)."""
    m = operator.index(m)
    if m < 1 or not x.shape or x.shape[-1] % m:
        raise ValueError(f"m must divide the last axis, got m = {m} and shape {tuple(x.shape)}")
    return np.reshape(x, (*x.shape[:-1], x.shape[-1] // m, m))


_KERNELS: dict[str, Callable[..., int]] = {}  # once used, the way in is short


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


def _rows_for_kernel(x: Any, k: int) -> NDArray[np.float32] | None:
    """Return x as what the kernel takes, float32 (rows, n), or None where it does not run."""
    from minibit import kernels

    if not kernels.compiled():
        return None
    if not _KERNELS:
        from minibit.kernels.topk import keep, select

        _KERNELS.update(select=select, keep=keep)
    if _is_plain(x, k):
        plain: NDArray[np.float32] = x
        return plain
    array, _ = _checked(x, k)
    if array.dtype.itemsize > 4 or not array.size:
        return None
    return np.ascontiguousarray(array, np.float32).reshape(-1, array.shape[-1])


def _checked(x: ArrayLike, k: int) -> tuple[NDArray[Any], int]:
    """Return x as an array of floats with a last axis, and k as an int, or say what is wrong."""
    array = np.asarray(x)
    if array.dtype.kind != "f" or isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"x must be an array of floats, got {type(x).__name__} of {array.dtype}")
    if not array.ndim:
        raise ValueError("x must have at least one axis, got a single number")
    if isinstance(k, bool | np.bool_):
        raise TypeError(f"k must be a whole number, got {k}")
    k = operator.index(k)
    if not 1 <= k <= array.shape[-1]:
        raise ValueError(f"k must be 1 to {array.shape[-1]}, the length of the last axis, got {k}")
    return array, k


def _nan(x: NDArray[Any]) -> ValueError:
    """Name the first NaN."""
    first = tuple(int(i) for i in np.argwhere(np.isnan(x))[0])
    return ValueError(f"x must hold no NaN, got one at {first}")
