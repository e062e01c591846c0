"""Ternary products in Python integers and fractions; matrices come as their codes and scale."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from minibit.conformance.exact.absmean import absmax_quantize
from minibit.conformance.exact.numbers import float32, nearest

__all__ = ["MATMUL"]


def integer_product(x: Any, codes: Any) -> list[list[int]]:
    """``z = x codes.T`` in Python integers, (tokens, n_out)."""
    columns = codes.tolist()
    return [
        [sum(a * c for a, c in zip(token, row, strict=True)) for row in columns]
        for token in x.tolist()
    ]


def ternary_matmul_int8(x: Any, matrix: Any) -> tuple[Any]:
    """Return the integer product."""
    out = integer_product(x.reshape(-1, x.shape[-1]), matrix.codes())
    return (np.array(out, np.int32).reshape(*x.shape[:-1], -1),)


def ternary_matmul(x: Any, matrix: Any) -> tuple[Any]:
    """``z (gamma / scale)``, each operation rounded to float32."""
    if np.ndim(matrix.scale):
        return (_grouped(x, matrix.codes(), matrix.scale),)
    codes, scale = absmax_quantize(x)
    gamma = Fraction(float(matrix.scale))
    sums = integer_product(codes.reshape(-1, x.shape[-1]), matrix.codes())
    factors = [float32(gamma / Fraction(float(s))) for s in scale.reshape(-1)]
    out = [[nearest(z * f) for z in row] for row, f in zip(sums, factors, strict=True)]
    return (np.array(out, np.float32).reshape(*x.shape[:-1], -1),)


def _grouped(x: Any, weights: Any, gammas: Any) -> Any:
    """``sum_g z_g (gamma_g (1 / scale_g))`` from the first group on, each operation rounded."""
    tokens, width = x.reshape(-1, x.shape[-1]), x.shape[-1] // gammas.shape[1]
    out = np.zeros((len(tokens), len(weights)), np.float32)
    for group in range(gammas.shape[1]):
        columns = slice(group * width, (group + 1) * width)
        codes, scale = absmax_quantize(tokens[:, columns])
        sums = integer_product(codes, weights[:, columns])
        for (t, o), before in np.ndenumerate(out):
            inverse = Fraction(float32(1 / Fraction(float(scale[t, 0]))))
            factor = Fraction(float32(Fraction(float(gammas[o, group])) * inverse))
            term = Fraction(float(nearest(sums[t][o] * factor)))
            out[t, o] = nearest(Fraction(float(before)) + term)
    return out.reshape(*x.shape[:-1], -1)


def head_matmul(x: Any, w: Any) -> tuple[Any]:
    """``x w^T`` in fractions, rounded once; uint16 is the upper half of a float32."""
    if w.dtype == np.uint16:
        w = (w.astype(np.uint32) << 16).view(np.float32)
    rows = [[Fraction(entry) for entry in row] for row in w.tolist()]
    out = [
        [nearest(sum(Fraction(a) * b for a, b in zip(token, row, strict=True))) for row in rows]
        for token in x.reshape(-1, x.shape[-1]).tolist()
    ]
    return (np.array(out, np.float32).reshape(*x.shape[:-1], -1),)


MATMUL: dict[str, Callable[..., tuple[Any, ...]]] = {
    "ternary_matmul_int8": ternary_matmul_int8,
    "ternary_matmul": ternary_matmul,
    "head_matmul": head_matmul,
}
