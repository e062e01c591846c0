"""Tangents that are more than one array: the symbolic zero, and a stack of directions.

A rule does to its tangents only what is linear in them, and only in fourteen ways (``t``, ``u``
tangents; ``a`` an array without one):

    t + u    t * a and t / a    t[index]    t @ a and a @ t    t.astype(dtype)
    np.sum   np.cumsum   np.einsum   np.reshape   np.transpose   np.broadcast_to
    np.concatenate   np.pad   np.where(mask, t, u)
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple
from numpy.lib.mixins import NDArrayOperatorsMixin

Array = Any  # an ndarray, a Dual or a Tangent: NumPy's protocols make them one


def as_array(a: Any) -> Array:
    """Let a dual or a tangent pass; make anything else an array."""
    return a if hasattr(a, "__array_function__") else np.asarray(a)


class NoRuleError(TypeError):
    """A function met a dual number, or a tangent, and has no rule for it."""


def name_of(function: Any) -> str:
    """Name a NumPy function as its user wrote it: ``np.linalg.svd``, ``np.add.at``."""
    if isinstance(function, tuple):  # a ufunc and one of its methods
        return f"{name_of(function[0])}.{function[1]}"
    name = str(getattr(function, "__qualname__", getattr(function, "__name__", function)))
    module = str(getattr(function, "__module__", None) or "numpy")  # ufuncs have none
    return f"{module}.{name}".replace("numpy", "np", 1) if module.startswith("numpy") else name


class ArrayMethods(NDArrayOperatorsMixin):
    """The methods of an array that a dual and a tangent share, besides operators."""

    __slots__ = ()
    shape: Any

    @property
    def ndim(self) -> int:
        """Number of axes; of one tangent, in a stack."""
        return len(self.shape)

    @property
    def T(self: Any) -> Any:
        """The array with its axes reversed."""
        return np.transpose(self)

    def reshape(self: Any, *shape: Any) -> Any:
        """See `np.reshape`; the shape may be a tuple or several numbers."""
        return np.reshape(self, shape[0] if len(shape) == 1 else shape)

    def sum(self: Any, *args: Any, **kwargs: Any) -> Any:
        """See `np.sum`."""
        return np.sum(self, *args, **kwargs)


class Tangent(ArrayMethods):
    """A stand-in for a tangent array: NumPy's linear functions become calls of its methods.

    A subclass has `shape` and `dtype` (of one tangent) and the methods that are named here. They
    receive axes that are not negative, shapes without -1, einsum subscripts with an arrow, and
    matrices (not vectors) for a product.
    """

    dtype: Any
    _add: Callable[[Array], Array]  # another tangent, of any broadcastable shape
    _scale: Callable[[np.ufunc, Array], Array]  # multiply or divide entry by entry
    _sum: Callable[[tuple[int, ...], bool], Array]  # over axes, which may be kept
    _cumsum: Callable[[int], Array]  # along an axis
    _reshape: Callable[[tuple[int, ...]], Array]
    _transpose: Callable[[tuple[int, ...]], Array]
    _broadcast_to: Callable[[tuple[int, ...]], Array]
    _pad: Callable[[list[tuple[int, int]]], Array]  # with zeros
    _matmul: Callable[[Array, bool], Array]  # t @ a if the tangent stands left, else a @ t; stacks
    _einsum: Callable[[str, list[Array], int], Array]  # with arrays; the tangent's index among them
    _concatenate: Callable[[list[Array], int], Array]  # some may be plain arrays of zeros
    _where: Callable[[Array, Array, Array], Array]  # by a mask; one of both may be the number 0
    __getitem__: Callable[[Any], Array]  # basic, integer-array or boolean index
    astype: Callable[[Any], Array]  # to another floating type

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Array:
        """Turn NumPy's arithmetic into addition, scaling and matrix products."""
        if method != "__call__" or kwargs:
            raise NoRuleError(_not_linear(ufunc))
        if ufunc is np.negative:
            return self._scale(np.multiply, -1)
        if ufunc is np.subtract:
            return inputs[0] + -inputs[1]
        if ufunc is np.add:
            other = inputs[1] if inputs[0] is self else inputs[0]
            return self if other is ZERO else self._add(other)
        if sum(isinstance(operand, Tangent) for operand in inputs) == 1 and len(inputs) == 2:
            left, right = inputs
            if ufunc is np.multiply:
                return self._scale(ufunc, right if left is self else left)
            if ufunc is np.true_divide and left is self:
                return self._scale(ufunc, right)
            if ufunc is np.matmul and left.ndim > 1 and right.ndim > 1:
                return self._matmul(right if left is self else left, left is self)
        raise NoRuleError(_not_linear(ufunc))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Array:
        """Turn NumPy's linear functions into this class's methods."""
        if function not in LINEAR:
            raise NoRuleError(_not_linear(function))
        return LINEAR[function](*args, **kwargs)


def _not_linear(function: Any) -> str:
    """Write the error of a function that a tangent does not take."""
    return (
        f"{name_of(function)} met a tangent where it is not one of the linear operations that "
        "tangents take: + and -, * and / and @ with an array that has no tangent, indexing, "
        f"{', '.join(name_of(f) for f in LINEAR)}"
    )


def _sum(t: Tangent, axis: Any = None, *, keepdims: bool = False) -> Array:
    axes = tuple(range(t.ndim)) if axis is None else normalize_axis_tuple(axis, t.ndim)
    return t._sum(axes, keepdims)


def _reshape(t: Tangent, shape: Any) -> Array:
    shape = tuple(map(int, shape)) if np.iterable(shape) else (int(shape),)
    known = math.prod(n for n in shape if n != -1)
    return t._reshape(tuple(math.prod(t.shape) // known if n == -1 else n for n in shape))


def _transpose(t: Tangent, axes: Any = None) -> Array:
    axes = range(t.ndim)[::-1] if axes is None else normalize_axis_tuple(axes, t.ndim)
    return t._transpose(tuple(axes))


def _einsum(subscripts: str, *operands: Array, optimize: Any = False) -> Array:
    numbers = [i for i, operand in enumerate(operands) if isinstance(operand, Tangent)]
    if len(numbers) != 1:
        raise NoRuleError(_not_linear(np.einsum))
    tangent: Tangent = operands[numbers[0]]
    return tangent._einsum(subscripts, list(operands), numbers[0])


def _concatenate(tangents: list[Array], axis: int = 0) -> Array:
    first = next(t for t in tangents if isinstance(t, Tangent))
    return first._concatenate(list(tangents), normalize_axis_index(axis, first.ndim))


def _where(mask: Array, first: Array, second: Array) -> Array:
    first, second = (0.0 if t is ZERO else t for t in (first, second))
    tangent: Tangent = first if isinstance(first, Tangent) else second
    return tangent._where(mask, first, second)


LINEAR: Final[dict[Any, Any]] = {
    np.sum: _sum,
    np.cumsum: lambda t, axis: t._cumsum(normalize_axis_index(axis, t.ndim)),
    np.einsum: _einsum,
    np.reshape: _reshape,
    np.transpose: _transpose,
    np.broadcast_to: lambda t, shape: t._broadcast_to(tuple(shape)),
    np.concatenate: _concatenate,
    np.pad: lambda t, widths: t._pad(list(widths)),
    np.where: _where,
}


class _Zero(Tangent):
    """The tangent of a constant: never an array of zeros, so it costs nothing."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Array:
        if ufunc is np.add:
            return inputs[1] if inputs[0] is self else inputs[0]
        if ufunc is np.subtract:
            return -inputs[1] if inputs[0] is self else inputs[0]
        if ufunc in (np.multiply, np.true_divide, np.negative, np.matmul):
            return self
        raise NoRuleError(_not_linear(ufunc))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Array:
        if function is np.where:
            if args[1] is args[2]:
                return self
            return np.where(args[0], *(0.0 if t is self else t for t in args[1:]))
        if function not in LINEAR:
            raise NoRuleError(_not_linear(function))
        return self

    def astype(self, dtype: Any) -> Array:
        """Return zero: it has no type."""
        return self

    __getitem__ = astype


ZERO: Final = _Zero()


class Directions(Tangent):
    """Tangents of one primal, as a ``stack`` of (directions, *shape): to a rule, one of them."""

    __slots__ = ("dtype", "shape", "stack")

    def __init__(self, stack: Array) -> None:
        self.stack = stack  # (directions, *shape): an array, or a dual of an outer derivative
        self.shape, self.dtype = tuple(stack.shape[1:]), stack.dtype

    def __repr__(self) -> str:
        """Show the stack."""
        return f"Directions({self.stack!r})"

    def _over(self, *others: Array) -> Array:
        """Return the stack, with unit axes after the first so that it broadcasts over `others`."""
        missing = max(getattr(other, "ndim", 0) for other in others) - self.ndim
        if missing <= 0:
            return self.stack
        return np.reshape(self.stack, (len(self.stack), *(1,) * missing, *self.shape))

    def _add(self, other: Array) -> Array:
        stack = other._over(self) if isinstance(other, Directions) else other
        return Directions(self._over(other) + stack)

    def _scale(self, ufunc: np.ufunc, primal: Array) -> Array:
        return Directions(ufunc(self._over(primal), primal))

    def _sum(self, axes: tuple[int, ...], keepdims: bool) -> Array:
        axes = tuple(axis + 1 for axis in axes)
        return Directions(np.sum(self.stack, axis=axes, keepdims=keepdims))

    def _cumsum(self, axis: int) -> Array:
        return Directions(np.cumsum(self.stack, axis=axis + 1))

    def _reshape(self, shape: tuple[int, ...]) -> Array:
        return Directions(np.reshape(self.stack, (len(self.stack), *shape)))

    def _transpose(self, axes: tuple[int, ...]) -> Array:
        return Directions(np.transpose(self.stack, (0, *(axis + 1 for axis in axes))))

    def _broadcast_to(self, shape: tuple[int, ...]) -> Array:
        stack = self._over(np.broadcast_to(0, shape))
        return Directions(np.broadcast_to(stack, (len(self.stack), *shape)))

    def _pad(self, widths: list[tuple[int, int]]) -> Array:
        return Directions(np.pad(self.stack, [(0, 0), *widths]))

    def _matmul(self, primal: Array, left: bool) -> Array:
        stack = self._over(primal)
        return Directions(stack @ primal if left else primal @ stack)

    def _einsum(self, subscripts: str, operands: list[Array], number: int) -> Array:
        letter = next(c for c in string.ascii_letters if c not in subscripts)
        terms, result = subscripts.split("->")
        inputs = terms.split(",")
        inputs[number] = letter + inputs[number]
        operands[number] = self.stack
        return Directions(np.einsum(f"{','.join(inputs)}->{letter}{result}", *operands))

    @classmethod
    def _concatenate(cls, tangents: list[Array], axis: int) -> Array:
        count = next(len(t.stack) for t in tangents if isinstance(t, cls))
        stacks = [
            t.stack if isinstance(t, cls) else np.broadcast_to(t, (count, *np.shape(t)))
            for t in tangents
        ]
        return cls(np.concatenate(stacks, axis=axis + 1))

    @classmethod
    def _where(cls, mask: Array, first: Array, second: Array) -> Array:
        pair = [t._over(mask, first, second) if isinstance(t, cls) else t for t in (first, second)]
        return cls(np.where(mask, *pair))

    def __getitem__(self, index: Any) -> Array:
        """Index every tangent; with the directions last, so that `index` meets its own axes."""
        index = index if isinstance(index, tuple) else (index,)
        if any(part is Ellipsis for part in index):
            index = (*index, slice(None))  # the ellipsis must not take the axis of directions
        last = np.moveaxis(self.stack, 0, -1)  # (*shape, directions)
        return Directions(np.moveaxis(last[index], -1, 0))

    def astype(self, dtype: Any) -> Array:
        """Convert every tangent."""
        return Directions(self.stack.astype(dtype, copy=False))
