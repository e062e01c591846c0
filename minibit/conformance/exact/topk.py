"""Top-K choices by Python's sort, and counts by exact fractions."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import sqrt
from typing import Any

import numpy as np

from minibit.conformance.exact.absmean import absmax_quantize
from minibit.conformance.exact.matmul import ternary_matmul, ternary_matmul_int8

__all__ = ["TOPK"]


def topk_mask(x: Any, k: int) -> tuple[Any]:
    """Sort by magnitude, then by place."""
    mask = np.zeros(x.shape, bool)
    width = x.shape[-1]
    for row, marks in zip(x.reshape(-1, width).tolist(), mask.reshape(-1, width), strict=True):
        marks[sorted(range(width), key=lambda i: (-abs(row[i]), i))[:k]] = True
    return (mask,)


def block_topk_mask(x: Any, n: int, m: int) -> tuple[Any]:
    """Choose in every m consecutive entries."""
    return (topk_mask(x.reshape(-1, m), n)[0].reshape(x.shape),)


def topk_sparsify(x: Any, k: int, rescale: bool = False) -> tuple[Any]:
    """Keep what the mask marks, +0 elsewhere; divide rows by their lengths if that is asked for."""
    y = np.where(topk_mask(x, k)[0], x, x.dtype.type(0))
    return (rescaled(y),) if rescale else (y,)


def rescaled(y: Any) -> Any:
    """Divide rows by their lengths, 1e-12 at least."""
    lengths = [
        max(sqrt(sum(Fraction(v) ** 2 for v in row)), 1e-12)
        for row in y.reshape(-1, y.shape[-1]).tolist()
    ]
    return (y / np.reshape(lengths, (*y.shape[:-1], 1))).astype(y.dtype)


def block_topk_sparsify(x: Any, n: int, m: int, rescale: bool = False) -> tuple[Any]:
    """Keep what the mask marks, +0 elsewhere; divide rows, not blocks, if that is asked for."""
    y = np.where(block_topk_mask(x, n, m)[0], x, x.dtype.type(0))
    return (rescaled(y),) if rescale else (y,)


def topk_quantize(x: Any, k: int) -> tuple[Any, Any]:
    """Quantise what is kept."""
    return absmax_quantize(topk_sparsify(x, k)[0])


def topk_count(n: int, sparsity: float | str) -> tuple[int]:
    """``floor((1 - sparsity) n)`` of the decimal number that a float prints as."""
    share = Fraction(sparsity if isinstance(sparsity, str) else repr(sparsity))
    return (int((1 - share) * n // 1),)


def sparsifier(
    sparsity: Any, x: Any, site: str, sites: Any = None, block: int | None = None
) -> tuple[Any]:
    """Keep a share of the inputs of the sites that are listed."""
    listed = sparsity if isinstance(sparsity, dict) else sites
    if listed is not None and site not in listed:
        return (x,)
    share = sparsity[site] if isinstance(sparsity, dict) else sparsity
    (k,) = topk_count(block or x.shape[-1], share)
    return topk_sparsify(x, k) if block is None else block_topk_sparsify(x, k, block)


TOPK: dict[str, Callable[..., tuple[Any, ...]]] = {
    "topk_mask": topk_mask,
    "block_topk_mask": block_topk_mask,
    "topk_sparsify": topk_sparsify,
    "block_topk_sparsify": block_topk_sparsify,
    "topk_quantize": topk_quantize,
    "topk_count": topk_count,
    "sparsifier": sparsifier,
    "sparse_ternary_matmul_int8": ternary_matmul_int8,
    "sparse_ternary_matmul": ternary_matmul,
}
