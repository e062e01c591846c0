"""Recorders: tangents without values, that write down what a rule does to them.

A recorder answers each linear operation with a new recorder, and adds a line to the program of its
tape: ``t_k = sum of terms A_kj t_j``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minibit.dual import Array, NoRuleError, Tangent, as_array, value_of
from minibit.tape import transposes as transposes

Term = tuple[int, Callable[..., Array], tuple[Any, ...]]  # A_kj: j, its transpose, what A was given


class Line(NamedTuple):
    """A variable: its shape, its type, and the terms that it is the sum of."""

    shape: tuple[int, ...]
    dtype: Any
    terms: tuple[Term, ...]


class Tape:
    """The program: a line for every variable."""

    def __init__(self) -> None:
        self.program: list[Line] = []

    def variable(self, shape: tuple[int, ...], dtype: Any, *terms: Term) -> Recorder:
        """Add a line: a new variable, the sum of `terms`; an input if there are none."""
        new = object.__new__(Recorder)
        new.tape, new.number, new.shape, new.dtype = self, len(self.program), shape, dtype
        self.program.append(Line(shape, dtype, terms))
        return new


class Recorder(Tangent):
    """A tangent that has no values: each operation on it becomes a line of the program."""

    __slots__ = ("dtype", "number", "shape", "tape")

    tape: Tape
    number: int
    shape: tuple[int, ...]
    dtype: Any

    def __repr__(self) -> str:
        """Name the variable."""
        return f"t{self.number}"

    def _line(self, shape: tuple[int, ...], dtype: Any, transpose: Any, *arrays: Any) -> Recorder:
        return self.tape.variable(shape, dtype, (self.number, transpose, arrays))

    def _add(self, other: Array) -> Array:
        if not _moves(other):
            return self._broadcast_to(_joint(self.shape, as_array(other).shape))
        if other.tape is not self.tape:
            raise NoRuleError("tangents of two different calls of vjp met in one operation")
        terms = ((t.number, transposes.same, ()) for t in (self, other))
        shape = _joint(self.shape, other.shape)
        return self.tape.variable(shape, _wider(self.dtype, other.dtype), *terms)

    def _scale(self, ufunc: np.ufunc, primal: Array) -> Array:
        if type(primal) in (int, float):
            return self._line(self.shape, self.dtype, transposes.scale, ufunc, primal)
        primal = as_array(primal)
        shape, dtype = _joint(self.shape, primal.shape), _wider(self.dtype, primal.dtype)
        return self._line(shape, dtype, transposes.scale, ufunc, primal)

    def _sum(self, axes: tuple[int, ...], keepdims: bool) -> Array:
        shape = tuple(
            1 if i in axes else n for i, n in enumerate(self.shape) if keepdims or i not in axes
        )
        return self._line(shape, self.dtype, transposes.spread, axes, keepdims)

    def _cumsum(self, axis: int) -> Array:
        return self._line(self.shape, self.dtype, transposes.cumsum, axis)

    def _reshape(self, shape: tuple[int, ...]) -> Array:
        return self if shape == self.shape else self._line(shape, self.dtype, transposes.reshape)

    def _transpose(self, axes: tuple[int, ...]) -> Array:
        shape = tuple(self.shape[axis] for axis in axes)
        return self._line(shape, self.dtype, transposes.transpose, axes)

    def _broadcast_to(self, shape: tuple[int, ...]) -> Array:
        return self if shape == self.shape else self._line(shape, self.dtype, transposes.same)

    def _pad(self, widths: list[tuple[int, int]]) -> Array:
        pairs = list(zip(self.shape, widths, strict=True))
        inside = tuple(slice(before, before + n) for n, (before, _) in pairs)
        shape = tuple(before + n + after for n, (before, after) in pairs)
        return self._line(shape, self.dtype, transposes.part, inside)

    def _matmul(self, primal: Array, left: bool) -> Array:
        first, second = (self, primal) if left else (primal, self)
        stack = _joint(tuple(first.shape[:-2]), tuple(second.shape[:-2]))
        shape = (*stack, first.shape[-2], second.shape[-1])
        terms = self.tape.program[self.number].terms
        turned = len(terms) == 1 and terms[0][1] is transposes.transpose and len(self.shape) == 2
        transpose = transposes.matmul_left if left else transposes.matmul_right
        return self._line(shape, _wider(self.dtype, primal.dtype), transpose, primal, turned)

    def _einsum(self, subscripts: str, operands: list[Array], operand: int) -> Array:
        shapes = [as_array(operand).shape for operand in operands]
        spelled, result, _ = transposes.spelled_out(subscripts, [len(shape) for shape in shapes])
        lengths: dict[str, int] = {}
        for term, operand_shape in zip(spelled, shapes, strict=True):
            for letter, length in zip(term, operand_shape, strict=True):
                lengths[letter] = length if length != 1 else lengths.get(letter, 1)
        shape = tuple(lengths[letter] for letter in result)
        dtype = np.result_type(*(array.dtype for array in operands))
        others = [None if i == operand else array for i, array in enumerate(operands)]
        return self._line(shape, dtype, transposes.einsum, subscripts, others, operand)

    @classmethod
    def _concatenate(cls, tangents: list[Array], axis: int) -> Array:
        terms: list[Term] = []
        end = 0
        for t in tangents:
            start, end = end, end + t.shape[axis]
            if _moves(t):
                inside = (*(slice(None),) * axis, slice(start, end))
                terms.append((t.number, transposes.part, (inside,)))
        first = next(t for t in tangents if isinstance(t, Recorder))
        shape = (*first.shape[:axis], end, *first.shape[axis + 1 :])
        dtype = np.result_type(*(t.dtype for t in tangents))
        return first.tape.variable(shape, dtype, *terms)

    @classmethod
    def _where(cls, mask: Array, first: Array, second: Array) -> Array:
        pairs = [(t, is_first) for t, is_first in ((first, True), (second, False)) if _moves(t)]
        terms = ((t.number, transposes.choose, (mask, is_first)) for t, is_first in pairs)
        shape = np.broadcast_shapes(*(as_array(a).shape for a in (mask, first, second)))
        dtype = np.result_type(*(t.dtype for t, _ in pairs))
        return pairs[0][0].tape.variable(shape, dtype, *terms)

    def __getitem__(self, index: Any) -> Array:
        """Pick entries."""
        shape, view = np.shape(_blank(self.shape)[index]), transposes.makes_a_view(index)
        return self._line(shape, self.dtype, transposes.scatter, index, view)

    def astype(self, dtype: Any) -> Array:
        """Convert."""
        dtype = np.dtype(dtype)
        return self if dtype == self.dtype else self._line(self.shape, dtype, transposes.same)


def _joint(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of two arrays together."""
    return a if a == b or not b else np.broadcast_shapes(a, b)


def _wider(a: Any, b: Any) -> Any:
    """Type of two arrays together."""
    return a if a is b else np.result_type(a, b)


def _blank(shape: tuple[int, ...]) -> Array:
    """Make an array that takes no memory, to ask NumPy for the shape of a result."""
    return np.ndarray(shape, np.bool_, b"\0", 0, (0,) * len(shape))


def _moves(operand: Array) -> bool:
    """Whether an operand is a recorder; else it must be 0 (or a 0 times a NaN or infinity)."""
    if isinstance(operand, Recorder):
        return True
    values = np.asarray(value_of(operand))
    if np.any(values[np.isfinite(values)]):
        raise NoRuleError(
            f"a rule is not linear in its tangents: it adds an array of shape {values.shape} that "
            "has no tangent and is not zero"
        )
    return False
