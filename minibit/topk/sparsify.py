"""Q-Sparse: keep the K largest activations of every token, and train straight through the choice.

    M = 1 for the K largest |x_i| of a token, else 0        exactly K, ties to the lowest index
    Y = (X * M) W^T,      dY/dX := dY/d(X * M)              straight-through
    Y = (Q(X) * M) Q_w(W)^T                                 with the quantisers of BitNet b1.58

A ternary matrix is already small, and a token need not read all of it: an input that is zero needs
no column of W.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.absmean import absmax_quantize
from minibit.base import float32, one_of
from minibit.dual import Dual, straight_through
from minibit.topk.choice import blocks, checked, topk_count, topk_keep, topk_mask

__all__ = ["SITES", "block_topk_sparsify", "sparsifier", "topk_quantize", "topk_sparsify"]

Array = Any  # an ndarray, or a Dual, which behaves like one

SITES = ("qkv", "o", "gate_up", "down")
"""Inputs of projections that `minibit.transformer.forward` offers to a sparsify function."""

TINY = 1e-12  # under the root of a norm: a row of zeros stays zeros


def topk_sparsify(x: Array, k: int, *, straight: bool = True, rescale: bool = False) -> Array:
    """Keep the k entries of largest magnitude along the last axis, and set the rest to +0.

    ``y = x * topk_mask(x, k)``, of the shape and dtype of x; with `rescale`, ``y / ||y||``.
    It refuses what `topk_mask` refuses.

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
    x = x if isinstance(x, Dual) else checked(x, k)[0]
    y: Array = _straight(x, k) if straight else np.where(topk_mask(x, k), x, np.zeros((), x.dtype))
    return _rescaled(y) if rescale else y


def block_topk_sparsify(
    x: Array, n: int, m: int, *, straight: bool = True, rescale: bool = False
) -> Array:
    """Keep the n entries of largest magnitude in every m consecutive ones: Block Q-Sparse.

    ``y = x * block_topk_mask(x, n, m)``: as `topk_sparsify` (x, straight, rescale), but each block
    for itself, which is what hardware for N:M sparsity multiplies (2:4, 16:32); a row is re-scaled
    as a whole. n is from 1 to m, which divides the width of x, or a ValueError says so.

    Examples
    --------
    >>> block_topk_sparsify(np.float32([9, 8, 1, -2]), 1, 2)
    array([ 9.,  0.,  0., -2.], dtype=float32)
    """
    x = x if hasattr(x, "dtype") else np.asarray(x)
    y = np.reshape(topk_sparsify(blocks(x, m), n, straight=straight), x.shape)
    return _rescaled(y) if rescale else y


def topk_quantize(x: ArrayLike, k: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise activations to int8 and keep the k largest: the input of Q-Sparse with b1.58.

    ``codes = rint(x scale) * M``, ``scale`` of `absmax_quantize`, ``M = topk_mask(x, k)``: int8 of
    the shape of x, and float32 ``(..., 1)``. Of a row, at most k codes are not 0: what was kept may
    round to 0. x is cast to float32, and refused as by these two.

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
    return absmax_quantize(topk_sparsify(float32("x", x), k))  # refuses what overflows


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
        Inputs to make sparse, of `SITES`; others pass unchanged. In the paper all. With a dict,
        its keys count instead. An unknown one is a ValueError.
    block : int, optional
        Choose in blocks of so many entries: `block_topk_sparsify`.
    straight, rescale : bool
        As in `topk_sparsify`.

    Examples
    --------
    >>> sparsify = sparsifier(0.5, sites=("down",))
    >>> sparsify(np.float32([[4, 3, 2, 1]]), "down"), sparsify(np.float32([[4, 3, 2, 1]]), "o")
    (array([[4., 3., 0., 0.]], dtype=float32), array([[4., 3., 2., 1.]], dtype=float32))
    """
    shares = dict(sparsity) if isinstance(sparsity, Mapping) else dict.fromkeys(sites, sparsity)
    for site, share in shares.items():
        one_of("sites", site, SITES)
        topk_count(10**9, share)

    def sparsify(x: Array, site: str) -> Array:
        if site not in shares:
            return x
        width = x.shape[-1] if block is None else block
        k = topk_count(width, shares[site])
        if block is None:
            return topk_sparsify(x, k, straight=straight, rescale=rescale)
        return block_topk_sparsify(x, k, block, straight=straight, rescale=rescale)

    return sparsify


_straight = straight_through(topk_keep)


def _rescaled(y: Array) -> Array:
    """Divide each row by its length."""
    return y / np.sqrt(np.sum(y * y, axis=-1, keepdims=True) + TINY)
