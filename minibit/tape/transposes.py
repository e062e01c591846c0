"""The transposes of the linear operations: ``<c, A t> = <A^T c, t>`` for every t and c.

    t * a           c * a                 t[index]       zeros, with c added where index points
    t @ a           c @ a^T               sum            broadcast
    a @ t           a^T @ c               broadcast_to   sum
    t + u           c for both            cumsum         cumsum from the end
    concatenate     slices                where          where, with 0 on the other side
    reshape, transpose, astype: back      pad            the inside
    einsum          einsum, with operand and result exchanged

All but what works in place is written with NumPy functions that have rules themselves. So a
cotangent may be a dual number, and a gradient can be differentiated again.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from minibit.dual import Array

Shape = tuple[int, ...]

# Each takes the cotangent of the output, the shape of the input, whether it may overwrite the
# cotangent, and the arguments of the operation. Its result may be a view, and larger than the
# input along axes on which that was repeated: `fit` sums over these.


def fit(c: Array, shape: Shape, dtype: Any) -> Array:
    """Sum a cotangent over the axes along which its variable was repeated; convert its type."""
    extra = c.ndim - len(shape)
    axes = tuple(i for i, n in enumerate(shape, extra) if n == 1 and c.shape[i] != 1)
    if extra or axes:
        c = np.reshape(np.sum(c, axis=(*range(extra), *axes)), shape)
    return c if c.dtype == dtype else c.astype(dtype)


def same(c: Array, shape: Shape, owned: bool) -> Array:
    """Transpose of ``t + u`` in both, of astype and of broadcast_to: `fit` does the rest."""
    return c


def scale(c: Array, shape: Shape, owned: bool, ufunc: np.ufunc, a: Array) -> Array:
    """Transpose of ``t * a`` or ``t / a``: itself. In place; or multiplied and summed in one."""
    if isinstance(c, np.ndarray) and isinstance(a, np.ndarray | np.generic | int | float):
        column = shape == (*c.shape[:-1], 1) and shape != c.shape
        if column and ufunc is np.multiply and isinstance(a, np.ndarray) and a.shape == c.shape:
            return np.vecdot(c, a)[..., None]
        if owned:
            return ufunc(c, a, out=c)
    return ufunc(c, a)


def spread(c: Array, shape: Shape, owned: bool, axes: tuple[int, ...], kept: bool) -> Array:
    """Transpose of sum: every summand gets the cotangent of the sum, as a view."""
    if not kept:
        c = np.reshape(c, tuple(1 if i in axes else n for i, n in enumerate(shape)))
    return np.broadcast_to(c, shape)


def cumsum(c: Array, shape: Shape, owned: bool, axis: int) -> Array:
    """Transpose of cumsum: an entry counts in all sums from its own on."""
    return np.flip(np.cumsum(np.flip(c, axis), axis=axis), axis)


def reshape(c: Array, shape: Shape, owned: bool) -> Array:
    """Transpose of reshape: the shape from before."""
    return np.reshape(c, shape)


def transpose(c: Array, shape: Shape, owned: bool, axes: tuple[int, ...]) -> Array:
    """Transpose of transpose: the inverse order of axes."""
    return np.transpose(c, sorted(range(len(axes)), key=axes.__getitem__))


def part(c: Array, shape: Shape, owned: bool, index: tuple[Any, ...]) -> Array:
    """Transpose of concatenate and pad: the variable's part of the whole."""
    return c[index]


def choose(c: Array, shape: Shape, owned: bool, mask: Array, first: bool) -> Array:
    """Transpose of where, in its first or second operand: what went there.

    A product is far faster than ``np.where``, but makes NaN of an infinity that the mask hides.
    """
    mask = mask if first else np.logical_not(mask)
    if isinstance(c, np.ndarray) and isinstance(mask, np.ndarray) and mask.dtype == np.bool_:
        with np.errstate(invalid="ignore", over="ignore"):
            product = c * mask
            if not np.isnan(np.sum(product)):
                return product
    return np.where(mask, c, 0)


def matmul_left(c: Array, shape: Shape, owned: bool, a: Array, turned: bool) -> Array:
    """Transpose of ``t @ a``: ``c @ a^T``; a single product if `a` is a single matrix."""
    if a.ndim > 2:
        return c @ np.swapaxes(a, -1, -2)
    rows = np.reshape(c, (math.prod(c.shape[:-1]), c.shape[-1]))
    out = np.transpose(a @ np.transpose(rows)) if turned else rows @ np.transpose(a)
    return np.reshape(out, (*c.shape[:-1], a.shape[0]))


def matmul_right(c: Array, shape: Shape, owned: bool, a: Array, turned: bool) -> Array:
    """Transpose of ``a @ t``: ``a^T @ c``; a single product if t is one matrix for a whole stack.

    If t was `turned`, the result lies by columns in memory, and by rows once it is turned back.
    """
    if len(shape) > 2:
        return np.swapaxes(a, -1, -2) @ c
    a = np.reshape(a, (math.prod(a.shape[:-1]), a.shape[-1]))
    c = np.reshape(c, (math.prod(c.shape[:-1]), c.shape[-1]))
    return np.transpose(np.transpose(c) @ a) if turned else np.transpose(a) @ c


def einsum(
    c: Array, shape: Shape, owned: bool, subscripts: str, others: list[Array], operand: int
) -> Array:
    """Transpose of einsum in one operand: an einsum that takes the result and gives the operand.

    A letter that the operand alone has was summed: it meets ones. A letter that it has twice was a
    diagonal: it meets a unit matrix. Where all others repeat an axis of length 1, so does it.
    """
    ndims = [len(shape) if i == operand else np.ndim(other) for i, other in enumerate(others)]
    inputs, result, spare = spelled_out(subscripts, ndims)
    arrays = [c, *others[:operand], *others[operand + 1 :]]
    terms = [result, *inputs[:operand], *inputs[operand + 1 :]]
    known, target = set("".join(terms)), ""
    for letter, length in zip(inputs[operand], shape, strict=True):
        name = spare.pop() if letter in target else letter
        if name is not letter:
            arrays, terms = [*arrays, np.eye(length, dtype=c.dtype)], [*terms, letter + name]
        elif letter not in known:
            arrays, terms = [*arrays, np.ones(length, c.dtype)], [*terms, letter]
        target += name
    out = np.einsum(f"{','.join(terms)}->{target}", *arrays, optimize=len(arrays) > 1)
    repeated = any(n != 1 == m for n, m in zip(shape, out.shape, strict=True))
    return np.broadcast_to(out, shape) if repeated else out


def spelled_out(subscripts: str, ndims: list[int]) -> tuple[list[str], str, list[str]]:
    """Write letters for ``...``; return the operands' terms, the result's, and unused letters."""
    left, result = subscripts.split("->")
    terms = left.split(",")
    spare = [letter for letter in string.ascii_letters if letter not in subscripts]
    pairs = zip(terms, ndims, strict=True)
    dots = [ndim - len(term) + 3 if "..." in term else 0 for term, ndim in pairs]
    stack, spare = spare[: max(dots)], spare[max(dots) :]
    ends = ["".join(stack[len(stack) - n :]) for n in dots]
    terms = [term.replace("...", end) for term, end in zip(terms, ends, strict=True)]
    return terms, result.replace("...", "".join(stack)), spare


def scatter(c: Array, shape: Shape, owned: bool, index: Any, view: bool) -> Array:
    """Transpose of ``t[index]``: each entry added up at the place that it was picked from."""
    if not isinstance(c, np.ndarray | np.generic):
        return _scatter_by_gathers(c, shape, index)
    add_at(out := np.zeros(shape, c.dtype), c, index, view)
    return out


def makes_a_view(index: Any) -> bool:
    """Whether an index picks no entry twice, by its kind: no array of integers is in it."""
    parts = index if isinstance(index, tuple) else (index,)
    basic = (type(None), type(...), int, np.integer, slice)
    return all(isinstance(part, basic) and not isinstance(part, bool) for part in parts)


def add_at(out: Array, c: Array, index: Any, view: bool) -> None:
    """Add a cotangent to `out`, at the positions of `index`; one picked twice gets both.

    Rows of a matrix are sorted and summed run by run, several times faster than ``np.add.at``.
    """
    if view:
        out[index] += c
        return
    rows = index[0] if isinstance(index, tuple) and len(index) == 1 else index
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "iu" or out.ndim < 2:
        np.add.at(out, index, c)
    elif c.size:
        positions = np.ravel(rows).astype(np.intp) % len(out)
        order = np.argsort(positions, kind="stable")
        positions = positions[order]
        starts = np.flatnonzero(np.concatenate(([True], positions[1:] != positions[:-1])))
        sorted_rows = np.reshape(c, (positions.size, *out.shape[1:]))[order]
        out[positions[starts]] += np.add.reduceat(sorted_rows, starts, axis=0)


def _scatter_by_gathers(c: Array, shape: Shape, index: Any) -> Array:
    """Scatter by operations that have rules: a gather for each time that a place was picked."""
    size = math.prod(shape)
    positions = np.ravel(np.reshape(np.arange(size), shape)[index])
    order = np.argsort(positions, kind="stable")
    starts = np.searchsorted(positions[order], np.arange(size))
    counts = np.bincount(positions, minlength=size)
    nothing = positions.size  # of the zero, for an entry that gets no more
    ended = np.concatenate([np.reshape(c, (positions.size,)), np.zeros(1, c.dtype)])
    out: Array = np.zeros(size, c.dtype)
    for turn in range(int(counts.max(initial=0))):
        source = np.full(size, nothing)
        source[counts > turn] = order[starts[counts > turn] + turn]
        out = out + ended[source]
    return np.reshape(out, shape)


NEW: Final = frozenset({matmul_left, matmul_right, choose, scatter, cumsum})  # never a view of c

_SYMBOLS: Final[dict[Callable[..., Array], Callable[..., str]]] = {
    same: lambda t: t,
    scale: lambda t, ufunc, a: f"{t} {'*' if ufunc is np.multiply else '/'} {_named(a)}",
    spread: lambda t, axes, kept: f"sum({t})",
    part: lambda t, index: f"placed({t})",
    choose: lambda t, mask, first: f"where({t})",
    matmul_left: lambda t, a, turned: f"{t} @ {_named(a)}",
    matmul_right: lambda t, a, turned: f"{_named(a)} @ {t}",
    einsum: lambda t, subscripts, others, operand: f"einsum({subscripts}, {t})",
    scatter: lambda t, index, view: f"{t}[...]",
}


def written(source: int, transpose: Callable[..., Array], arrays: tuple[Any, ...]) -> str:
    """Write a term as the operation that it is the transpose of: ``t3 * (64, 10)``."""
    plain = _SYMBOLS.get(transpose)
    return plain(f"t{source}", *arrays) if plain else f"{transpose.__name__}(t{source})"


def _named(a: Array) -> str:
    """Name an array by its shape, and a number by itself."""
    return str(tuple(a.shape)) if getattr(a, "ndim", 0) else f"{a:.3g}"
