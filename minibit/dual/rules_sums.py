"""The rule table, third part: sums, extremes, products, and products of matrices.

A sum does to the tangent what it does to the primal. A product is linear in each of its factors, so
its tangent is a sum of products with one factor replaced: ``d(x @ y) = x_dot @ y + x @ y_dot``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from minibit.dual.rules import Pair, exp_difference, magnitude, rule
from minibit.dual.tangents import ZERO, Array, NoRuleError


def _axes_of(axis: Any, ndim: int) -> tuple[int, ...]:
    """Return the axes that a reduction goes over, none negative."""
    return tuple(range(ndim)) if axis is None else normalize_axis_tuple(axis, ndim)


def _count(a: Array, axis: Any) -> int:
    """Return how many entries a reduction takes together."""
    return math.prod(a.shape[i] for i in _axes_of(axis, a.ndim))


def _summed(a_dot: Array, axis: Any, dtype: Any, keepdims: bool) -> Array:
    """Sum a tangent as its primal is summed: in another type, perhaps."""
    a_dot = a_dot if dtype is None else a_dot.astype(dtype)
    return np.sum(a_dot, axis=axis, keepdims=keepdims)


@rule(np.var)
def _var(
    a: Array, axis: Any = None, *, ddof: float = 0, keepdims: bool = False, a_dot: Array
) -> Pair:
    centred = a - np.mean(a, axis=axis, keepdims=True)
    n = max(_count(a, axis) - ddof, 0)
    out = np.sum(centred * centred, axis=axis, keepdims=keepdims) / n
    # centred sums to zero, so the mean of a_dot drops out
    return out, np.sum(a_dot * centred, axis=axis, keepdims=keepdims) * 2 / n


def _unit(u: Array, axis: Any, ord: float = 2) -> Array:
    """Slope of a norm: ``sign(u) (|u| / norm(u)) ** (ord - 1)``, and 0 where all entries are 0."""
    size = np.abs(u)
    if ord != 2:
        largest = np.max(size, axis=axis, keepdims=True)
        size = size / (largest + (largest == 0))
    total = np.sum(u * u if ord == 2 else size**ord, axis=axis, keepdims=True)
    still = total == 0  # where all are 0, and nothing moves
    if ord == 2:
        return np.where(still, 0, u / np.sqrt(total + still))
    powers = np.sign(u) * (size + (size == 0)) ** (ord - 1)
    return np.where(still, 0, powers / (total + still) ** ((ord - 1) / ord))


def _scaled(a: Array, axis: Any) -> Array:
    """Divide by the power of two below the largest entry, so that no power of another overflows."""
    return a / magnitude(np.max(np.abs(a), axis=axis, keepdims=True)) if a.size else a


@rule(np.std)
def _std(
    a: Array, axis: Any = None, *, ddof: float = 0, keepdims: bool = False, a_dot: Array
) -> Pair:
    out = np.std(a, axis=axis, ddof=ddof, keepdims=keepdims)
    centred = _scaled(a, axis)
    for _ in range(2):  # twice: the first mean is rounded, so equal entries may differ from it
        centred = centred - np.mean(centred, axis=axis, keepdims=True)
    out_dot = np.sum(a_dot * _unit(centred, axis), axis=axis, keepdims=keepdims)
    return out, out_dot / math.sqrt(max(_count(a, axis) - ddof, 0))


@rule(np.linalg.norm)
def _norm(
    x: Array, ord: Any = None, axis: Any = None, keepdims: bool = False, *, x_dot: Array
) -> Pair:
    vectors = len(_axes_of(axis, x.ndim)) == 1
    if not vectors and ord not in (None, "fro"):
        raise NoRuleError(f"no rule for np.linalg.norm of a matrix with ord={ord!r}, only 'fro'")
    ord = 2 if ord in (None, "fro") else ord  # the root of the sum of squares, whatever the axes
    out = np.linalg.norm(x, ord if vectors else None, axis, keepdims)
    if ord == 0:
        return out, ZERO
    if abs(ord) == np.inf:
        slope = np.sign(x) * _share(np.max if ord > 0 else np.min, np.abs(x), axis)
    else:
        slope = _unit(_scaled(x, axis), axis, ord)
    return out, np.sum(x_dot * slope, axis=axis, keepdims=keepdims)


def _share(f: Callable[..., Array], a: Array, axis: Any) -> Array:
    """Slope of an extreme: 1 for the entry that is the extreme, shared evenly if several are."""
    hit = (a == f(a, axis=axis, keepdims=True)) | np.isnan(a)
    return hit / np.sum(hit, axis=axis, keepdims=True, dtype=a.dtype)


def _extremum(f: Any, a: Array, axis: Any = None, *, keepdims: bool = False, a_dot: Array) -> Pair:
    """Rule of the reductions `np.max` and `np.min`."""
    out = f(a, axis=axis, keepdims=keepdims)
    return out, np.sum(a_dot * _share(f, a, axis), axis=axis, keepdims=keepdims)


@rule(np.prod)
def _prod(a: Array, axis: Any = None, *, keepdims: bool = False, a_dot: Array) -> Pair:
    out = np.prod(a, axis=axis, keepdims=keepdims)
    axes = _axes_of(axis, a.ndim)
    kept = tuple(i for i in range(a.ndim) if i not in axes)
    shape = (*(a.shape[i] for i in kept), _count(a, axis))
    factors = np.reshape(np.transpose(a, kept + axes), shape)  # (*kept, factors)
    after = _product_before(factors[..., ::-1])[..., ::-1]
    rest = _product_before(factors) * after  # no division, so zeros are safe
    factors_dot = np.reshape(np.transpose(a_dot, kept + axes), shape)
    return out, np.reshape(np.sum(factors_dot * rest, axis=-1), out.shape)


def _product_before(factors: Array) -> Array:
    """Product of the factors that stand before each, along the last axis."""
    ones = np.ones_like(factors[..., :1])
    return np.concatenate([ones, np.cumprod(factors[..., :-1], axis=-1)], axis=-1)


@rule(np.cumsum)
def _cumsum(a: Array, axis: Any = None, dtype: Any = None, *, a_dot: Array) -> Pair:
    if axis is None:
        a, a_dot, axis = np.ravel(a), np.reshape(a_dot, (a.size,)), 0
    a_dot = a_dot if dtype is None else a_dot.astype(dtype)
    return np.cumsum(a, axis=axis, dtype=dtype), np.cumsum(a_dot, axis=axis)


@rule(np.cumprod)
def _cumprod(a: Array, axis: int | None = None) -> Array:
    if axis is None:
        a, axis = np.ravel(a), 0
    factors = np.moveaxis(a, axis, 0)  # (factors, ...)
    products = [factors[:1]]
    for i in range(1, len(factors)):
        products.append(products[-1] * factors[i : i + 1])
    return np.moveaxis(np.concatenate(products), 0, axis)


@rule((np.logaddexp, "reduce"))
def _logsumexp(array: Array, axis: Any = 0, *, keepdims: bool = False, array_dot: Array) -> Pair:
    total = np.logaddexp.reduce(array, axis=axis, keepdims=True)
    shares = exp_difference(array, total)
    softmax = shares / np.sum(shares, axis=axis, keepdims=True)
    out_dot = np.sum(array_dot * softmax, axis=axis, keepdims=keepdims)
    return total if keepdims else np.squeeze(total, axis=axis), out_dot


@rule(np.average)
def _average(a: Array, axis: Any = None, weights: Array = None) -> Array:
    if weights is None:
        return np.mean(a, axis=axis)
    if np.shape(weights) != np.shape(a):
        raise NoRuleError("no rule for np.average with weights of another shape: broadcast them")
    weights = _scaled(weights, None)
    return np.sum(a * weights, axis=axis) / np.sum(weights, axis=axis)


@rule(np.median)
def _median(a: Array, axis: int | None = None, *, keepdims: bool = False) -> Array:
    if isinstance(axis, list | tuple):
        raise NoRuleError(f"no rule for np.median over several axes {axis}: reshape to one")
    flat = np.ravel(a) if axis is None else np.moveaxis(a, axis, 0)
    ordered = np.sort(flat, axis=0)  # (entries, ...)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    middle = np.where(np.isnan(ordered[-1]), ordered[-1], middle)
    axes = tuple(range(a.ndim)) if axis is None else axis
    return np.expand_dims(middle, axes) if keepdims else middle


@rule(np.matmul)
def _matmul(x: Array, y: Array, x_dot: Array, y_dot: Array) -> Pair:
    z = x @ y
    if x.ndim > 1 and y.ndim > 1:
        return z, x_dot @ y + x @ y_dot
    row = (1, *x.shape) if x.ndim == 1 else x.shape
    column = (*y.shape, 1) if y.ndim == 1 else y.shape
    x, x_dot = np.reshape(x, row), np.reshape(x_dot, row)
    y, y_dot = np.reshape(y, column), np.reshape(y_dot, column)
    return z, np.reshape(x_dot @ y + x @ y_dot, z.shape)


@rule(np.einsum)
def _einsum(
    subscripts: str, *operands: Array, operands_dot: list[Array], optimize: Any = False
) -> Pair:
    if not isinstance(subscripts, str):
        raise NoRuleError("no rule for np.einsum with lists of axes: write the subscripts 'ij,jk'")
    subscripts = _with_arrow(subscripts)
    z_dot: Array = ZERO
    for i, operand_dot in enumerate(operands_dot):
        factors = (*operands[:i], operand_dot, *operands[i + 1 :])
        z_dot = z_dot + np.einsum(subscripts, *factors, optimize=optimize)
    return np.einsum(subscripts, *operands, optimize=optimize), z_dot


def _with_arrow(subscripts: str) -> str:
    """Write out einsum's implicit result: the letters that occur once, in alphabetical order."""
    subscripts = subscripts.replace(" ", "")
    if "->" in subscripts:
        return subscripts
    letters = subscripts.replace("...", "").replace(",", "")
    once = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    return f"{subscripts}->{'...' if '...' in subscripts else ''}{once}"


@rule(np.dot)
def _dot(a: Array, b: Array) -> Array:
    if np.ndim(a) == 0 or np.ndim(b) == 0:
        return a * b
    if np.ndim(b) == 1 or max(np.ndim(a), np.ndim(b)) == 2:
        return np.matmul(a, b)
    return np.tensordot(a, b, axes=((-1,), (-2,)))


@rule(np.tensordot)
def _tensordot(a: Array, b: Array, axes: Any = 2) -> Array:
    if isinstance(axes, int):
        axes = (range(np.ndim(a) - axes, np.ndim(a)), range(axes))
    ours, theirs = (_axes_of(part, np.ndim(x)) for part, x in zip(axes, (a, b), strict=True))
    rows = tuple(i for i in range(np.ndim(a)) if i not in ours)
    columns = tuple(i for i in range(np.ndim(b)) if i not in theirs)
    shape = [np.shape(a)[i] for i in rows] + [np.shape(b)[i] for i in columns]
    inner = math.prod(np.shape(a)[i] for i in ours)
    left = np.reshape(np.transpose(a, rows + ours), (math.prod(shape[: len(rows)]), inner))
    right = np.reshape(np.transpose(b, theirs + columns), (inner, math.prod(shape[len(rows) :])))
    return np.reshape(left @ right, shape)


@rule(np.linalg.inv)
def _inv(a: Array, *, a_dot: Array) -> Pair:
    out = np.linalg.inv(a)
    return out, -(out @ a_dot @ out)


@rule(np.linalg.det)
def _det(a: Array, *, a_dot: Array) -> Pair:
    if not a.size:
        return np.linalg.det(a), ZERO
    scale = magnitude(np.max(np.abs(a), axis=(-2, -1), keepdims=True))
    slope = _cofactors(a / scale) * scale ** (a.shape[-1] - 1)
    return np.linalg.det(a), np.sum(slope * a_dot, axis=(-2, -1))


def _cofactors(a: Array) -> Array:
    """Slopes of the determinant, a polynomial: it has them where there is no inverse, too."""
    n = a.shape[-1]
    if n > 3:
        try:
            inverse = np.swapaxes(np.linalg.inv(a), -1, -2)
            return inverse * np.reshape(np.linalg.det(a), (*a.shape[:-2], 1, 1))
        except np.linalg.LinAlgError:
            pass  # singular: each from the determinant of the other rows and columns, in O(n**5)
    others = np.array([[j for j in range(n) if j != i] for i in range(n)], int)  # (n, n - 1)
    rests = (np.moveaxis(a[..., rows[:, None, None], others], -2, -3) for rows in others)
    minors = [np.linalg.det(rest) for rest in rests]  # each (..., n)
    return np.stack(minors, axis=-2) * (-1.0) ** np.add.outer(np.arange(n), np.arange(n))


@rule(np.linalg.solve)
def _solve(a: Array, b: Array, *, a_dot: Array, b_dot: Array) -> Pair:
    out = np.linalg.solve(a, b)
    if b.ndim > 1:
        return out, np.linalg.inv(a) @ (b_dot - a_dot @ out)
    residual_dot = np.reshape(b_dot, (-1, 1)) - a_dot @ np.reshape(out, (*out.shape, 1))
    return out, np.reshape(np.linalg.inv(a) @ residual_dot, out.shape)


@rule(np.kron)
def _kron(a: Array, b: Array) -> Array:
    ndim = max(a.ndim, b.ndim)
    ours, theirs = ((1,) * (ndim - x.ndim) + x.shape for x in (a, b))
    left = np.reshape(a, [n for length in ours for n in (length, 1)])
    right = np.reshape(b, [n for length in theirs for n in (1, length)])
    return np.reshape(left * right, [m * n for m, n in zip(ours, theirs, strict=True)])


def _reduce(f: Any, array: Array, axis: Any = 0, *, keepdims: bool = False) -> Array:
    """Reduce as ufuncs do: by default over the first axis."""
    return f(array, axis=axis, keepdims=keepdims)


FORMULAS: Final[dict[Any, Callable[..., Any]]] = {
    np.sum: lambda a, axis=None, dtype=None, *, keepdims=False, a_dot: (
        np.sum(a, axis=axis, dtype=dtype, keepdims=keepdims),
        _summed(a_dot, axis, dtype, keepdims),
    ),
    np.mean: lambda a, axis=None, dtype=None, *, keepdims=False, a_dot: (
        np.mean(a, axis=axis, dtype=dtype, keepdims=keepdims),
        _summed(a_dot, axis, dtype, keepdims) / _count(a, axis),
    ),
    np.max: partial(_extremum, np.max),
    np.amax: partial(_extremum, np.max),
    np.min: partial(_extremum, np.min),
    np.amin: partial(_extremum, np.min),
    (np.add, "reduce"): partial(_reduce, np.sum),
    (np.multiply, "reduce"): partial(_reduce, np.prod),
    (np.maximum, "reduce"): partial(_reduce, np.max),
    (np.minimum, "reduce"): partial(_reduce, np.min),
    (np.add, "accumulate"): lambda array, axis=0: np.cumsum(array, axis=axis),
    (np.multiply, "accumulate"): lambda array, axis=0: np.cumprod(array, axis=axis),
    np.ptp: lambda a, axis=None, *, keepdims=False: (
        np.max(a, axis=axis, keepdims=keepdims) - np.min(a, axis=axis, keepdims=keepdims)
    ),
    np.nansum: lambda a, axis=None, *, keepdims=False: np.sum(
        np.where(np.isnan(a), 0, a), axis=axis, keepdims=keepdims
    ),
    np.nanmean: lambda a, axis=None, *, keepdims=False: (
        np.nansum(a, axis=axis, keepdims=keepdims)
        / np.sum(~np.isnan(a), axis=axis, keepdims=keepdims, dtype=a.dtype)
    ),
    np.outer: lambda a, b: np.reshape(a, (-1, 1)) * np.reshape(b, (1, -1)),
    np.vdot: lambda a, b: np.dot(np.reshape(a, (-1,)), np.reshape(b, (-1,))),
    np.inner: lambda a, b: (
        np.tensordot(a, b, axes=((-1,), (-1,))) if np.ndim(a) and np.ndim(b) else a * b
    ),
    np.trace: lambda a, offset=0, axis1=0, axis2=1: np.sum(
        np.diagonal(a, offset, axis1, axis2), axis=-1
    ),
    np.vecdot: lambda x1, x2, *, axis=-1: np.sum(x1 * x2, axis=axis),
    np.linalg.vecdot: lambda x1, x2, *, axis=-1: np.sum(x1 * x2, axis=axis),
}
for _function, _formula in FORMULAS.items():
    rule(_function)(_formula)
