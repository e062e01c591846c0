"""The rule table, second part: functions that move entries about, and compositions of them.

Most are composed of four rules: an index, which picks entries, `reshape`, `transpose` and
`concatenate`. NumPy tells where an entry comes from: its function moves the entries' numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

from minibit.dual.entries import numbered
from minibit.dual.rules import Pair, rule
from minibit.dual.tangents import ZERO, Array, NoRuleError, as_array


def _along(axis: int, ndim: int, part: Any) -> tuple[Any, ...]:
    """Return the index that takes `part` on one axis and all of the others."""
    return (*(slice(None),) * normalize_axis_index(axis, ndim), part)


@rule(np.concatenate)
def _concatenate(
    arrays: Sequence[Array], axis: int | None = 0, *, arrays_dot: Sequence[Array]
) -> Pair:
    dots = [np.zeros_like(a) if d is ZERO else d for a, d in zip(arrays, arrays_dot, strict=True)]
    if axis is None:
        arrays = [np.reshape(a, (-1,)) for a in arrays]
        dots = [np.reshape(d, (-1,)) for d in dots]
        axis = 0
    return np.concatenate(arrays, axis=axis), np.concatenate(dots, axis=axis)


@rule(np.ndarray.astype, getattr(np, "astype", np.ndarray.astype))
def _astype(x: Array, dtype: Any, *, copy: bool = True, x_dot: Array) -> Pair:
    out = x.astype(dtype, copy=copy)
    return out, ZERO if out.dtype.kind in "iub" else x_dot.astype(dtype)  # truncation is flat


def _axes(a: Array) -> Array:
    """Make an empty array whose lengths number its axes: NumPy moves them, and shows the order."""
    return np.empty(tuple(range(a.ndim)))


def _blank(a: Array) -> Array:
    """Make an array of this shape without memory: NumPy says what shape a function gives it."""
    return np.broadcast_to(0, a.shape)


def _index(positions: Any) -> Any:
    """Make an index of positions, which a dual cannot be."""
    return positions if isinstance(positions, int | slice) else np.asarray(positions)


def _picked(a: Array, positions: Any) -> Array:
    """Pick entries by their numbers."""
    return np.ravel(a)[positions]


def _tiled(a: Array, repeats: Any) -> Array:
    """Repeat an array; a single repeat is a copy in the array's own order in memory."""
    if np.all(np.asarray(repeats) == 1):
        return np.copy(a)[(None,) * (np.size(repeats) - a.ndim)]
    return _picked(a, np.tile(numbered(a), repeats))


def _grid(positions: Any, axis: int, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Return the index that picks `positions` along one axis and stays put along the others."""
    axis = normalize_axis_index(axis, len(shape))
    grid: list[Any] = list(np.ix_(*(range(1 if i == axis else n) for i, n in enumerate(shape))))
    grid[axis] = positions
    return tuple(grid)


def _at_least(ndim: int, *arys: Array) -> Any:
    """Give arrays as many axes as ``np.atleast_1d`` or ``np.atleast_2d`` does."""
    out = tuple(np.reshape(a, (1,) * (ndim - a.ndim) + a.shape) for a in map(as_array, arys))
    return out[0] if len(out) == 1 else out


def _running(f: np.ufunc, array: Array, axis: int = 0, *, array_dot: Array) -> Pair:
    """Pick the latest of the entries that were an extreme when they came."""
    hit = array == f.accumulate(array, axis=axis)
    steps = np.expand_dims(np.arange(array.shape[axis]), tuple(range(1, array.ndim)))
    latest = np.where(hit, np.moveaxis(steps, 0, axis), 0)
    grid = _grid(np.maximum.accumulate(latest, axis=axis), axis, array.shape)
    return array[grid], array_dot[grid]


def _split(f: Callable[..., Any], ary: Array, indices_or_sections: Any, axis: int = 0) -> Any:
    """Cut along an axis where ``np.split`` or ``np.array_split`` cuts, with its errors."""
    pieces = f(np.arange(ary.shape[axis]), indices_or_sections)
    ends = [slice(int(p[0]), int(p[-1]) + 1) if p.size else slice(0) for p in pieces]
    return [ary[_along(axis, ary.ndim, piece)] for piece in ends]


FORMULAS: Final[dict[Any, Callable[..., Any]]] = {
    operator.getitem: lambda x, index, *, x_dot: (x[index], x_dot[index]),
    np.copy: lambda a, order="K", *, a_dot: (np.copy(a, order=order), a_dot),
    np.transpose: lambda a, axes=None, *, a_dot: (np.transpose(a, axes), np.transpose(a_dot, axes)),
    np.reshape: lambda a, shape, *, a_dot: (np.reshape(a, shape), np.reshape(a_dot, shape)),
    np.broadcast_to: lambda array, shape, *, array_dot: (
        np.broadcast_to(array, shape),
        np.broadcast_to(array_dot, np.broadcast_shapes(shape)),
    ),
    np.ravel: lambda a: np.reshape(a, (a.size,)),
    np.expand_dims: lambda a, axis: np.reshape(a, np.expand_dims(_blank(a), axis).shape),
    np.squeeze: lambda a, axis=None: np.reshape(a, np.squeeze(_blank(a), axis).shape),
    np.moveaxis: lambda a, source, destination: np.transpose(
        a, np.moveaxis(_axes(a), source, destination).shape
    ),
    np.swapaxes: lambda a, axis1, axis2: np.transpose(a, _axes(a).swapaxes(axis1, axis2).shape),
    np.matrix_transpose: lambda x: np.swapaxes(x, -1, -2),
    np.linalg.matrix_transpose: lambda x: np.swapaxes(x, -1, -2),
    np.stack: lambda arrays, axis=0: np.concatenate(
        [np.expand_dims(a, axis) for a in map(as_array, arrays)], axis=axis
    ),
    np.atleast_1d: partial(_at_least, 1),
    np.atleast_2d: partial(_at_least, 2),
    np.vstack: lambda tup: np.concatenate([np.atleast_2d(a) for a in tup], axis=0),
    np.hstack: lambda tup: np.concatenate(
        [np.atleast_1d(a) for a in tup], axis=0 if np.ndim(tup[0]) < 2 else 1
    ),
    np.column_stack: lambda tup: np.concatenate(
        [np.reshape(a, (-1, 1)) if a.ndim < 2 else a for a in map(as_array, tup)], axis=1
    ),
    np.broadcast_arrays: lambda *args: tuple(
        np.broadcast_to(a, np.broadcast_shapes(*map(np.shape, args))) for a in args
    ),
    np.append: lambda arr, values, axis=None: np.concatenate(
        [as_array(arr), as_array(values)], axis=axis
    ),
    np.split: partial(_split, np.split),
    np.array_split: partial(_split, np.array_split),
    np.hsplit: lambda ary, indices_or_sections: np.split(
        ary, indices_or_sections, axis=0 if ary.ndim == 1 else 1
    ),
    np.vsplit: lambda ary, indices_or_sections: np.split(ary, indices_or_sections, axis=0),
    np.take: lambda a, indices, axis=None: (
        _picked(a, _index(indices)) if axis is None else a[_along(axis, a.ndim, _index(indices))]
    ),
    np.take_along_axis: lambda arr, indices, axis=-1: (
        np.ravel(arr)[np.ravel(indices)] if axis is None else arr[_grid(indices, axis, arr.shape)]
    ),
    (np.maximum, "accumulate"): partial(_running, np.maximum),
    (np.minimum, "accumulate"): partial(_running, np.minimum),
    np.fliplr: lambda m: np.flip(m, axis=1),
    np.flipud: lambda m: np.flip(m, axis=0),
    np.roll: lambda a, shift, axis=None: _picked(a, np.roll(numbered(a), shift, axis)),
    np.repeat: lambda a, repeats, axis=None: _picked(
        a, np.repeat(numbered(a), _index(repeats), axis)
    ),
    np.tile: lambda A, reps: _tiled(A, np.asarray(reps)),
    np.delete: lambda arr, obj, axis=None: _picked(
        arr, np.delete(numbered(arr), _index(obj), axis)
    ),
    np.compress: lambda condition, a, axis=None: np.take(a, np.flatnonzero(condition), axis=axis),
    np.extract: lambda condition, arr: _picked(arr, np.flatnonzero(condition)),
    np.diagonal: lambda a, offset=0, axis1=0, axis2=1: _picked(
        a, np.diagonal(numbered(a), offset, axis1, axis2)
    ),
    np.tril: lambda m, k=0: np.where(np.tril(np.ones(m.shape[-2:], bool), k), m, 0),
    np.triu: lambda m, k=0: np.where(np.triu(np.ones(m.shape[-2:], bool), k), m, 0),
    np.partition: lambda a, kth, axis=-1: np.take_along_axis(
        a, np.argpartition(a, kth, axis=axis), axis=axis
    ),
    np.full_like: lambda a, fill_value: np.broadcast_to(fill_value, np.shape(a)).astype(a.dtype),
}
for _function, _formula in FORMULAS.items():
    rule(_function)(_formula)


@rule(np.meshgrid)
def _meshgrid(*xi: Array, indexing: str = "xy") -> tuple[Array, ...]:
    axes = [np.reshape(x, (1,) * i + (-1,) + (1,) * (len(xi) - i - 1)) for i, x in enumerate(xi)]
    if indexing == "xy" and len(xi) > 1:
        axes = [np.swapaxes(x, 0, 1) for x in axes]
    return tuple(np.broadcast_arrays(*axes))


@rule(np.flip)
def _flip(m: Array, axis: Any = None) -> Array:
    axes = range(m.ndim) if axis is None else normalize_axis_tuple(axis, m.ndim)
    return m[tuple(slice(None, None, -1 if i in axes else None) for i in range(m.ndim))]


@rule(np.pad)
def _pad(
    array: Array,
    pad_width: Any,
    mode: Any = "constant",
    *,
    constant_values: Any = 0,
    array_dot: Array,
) -> Pair:
    widths = np.broadcast_to(pad_width, (array.ndim, 2)).tolist()
    if mode == "constant":
        out = np.pad(array, widths, constant_values=constant_values)
        return out, np.pad(array_dot, widths)
    if mode not in ("edge", "reflect", "symmetric", "wrap"):
        raise NoRuleError(f"no rule for np.pad with mode={mode!r}")
    positions = np.pad(numbered(array), widths, mode=mode)
    return np.ravel(array)[positions], np.reshape(array_dot, (array.size,))[positions]


@rule(np.sort)
def _sort(a: Array, axis: int | None = -1, *, kind: Any = None, stable: Any = None) -> Array:
    if axis is None:
        a, axis = np.ravel(a), 0
    return np.take_along_axis(a, np.argsort(a, axis=axis, kind="stable"), axis=axis)


@rule(np.diag)
def _diag(v: Array, k: int = 0) -> Array:
    if v.ndim == 2:
        return np.diagonal(v, k)
    placed = np.pad(v, (max(k, 0), max(-k, 0)))
    return np.where(np.eye(placed.size, k=k, dtype=bool), np.expand_dims(placed, 0), 0)


@rule(np.diff)
def _diff(a: Array, n: int = 1, axis: int = -1) -> Array:
    for _ in range(n):
        a = a[_along(axis, a.ndim, slice(1, None))] - a[_along(axis, a.ndim, slice(None, -1))]
    return a


@rule(np.select)
def _select(condlist: Sequence[Any], choicelist: Sequence[Array], default: Array = 0) -> Array:
    out = default
    for condition, choice in zip(condlist[::-1], choicelist[::-1], strict=True):
        out = np.where(condition, choice, out)
    return out
