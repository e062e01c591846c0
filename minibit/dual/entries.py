"""Writing to the entries of a dual array.

Nothing is changed in memory, because other duals and the programs of reverse mode may hold it. An
assignment gives the dual a new primal and a new tangent: a gather from its old entries and those of
the value, by functions that have rules. A view records the dual that it shows, and how it was taken
(`Dual.origin`): an assignment to the view writes to that dual, and once the dual has changed, the
view is taken again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from minibit.dual.tangents import Array, as_array
from minibit.dual.trees import rebuild

# The dual that a view shows, the primal and tangent that it had then, and what takes the view.
View = tuple[Any, Array, Array, Callable[[Array], Array]]

VIEWS: Final = frozenset(  # functions that return a view of their first argument, if they can
    {
        operator.getitem, np.reshape, np.transpose, np.ravel, np.squeeze, np.expand_dims,
        np.swapaxes, np.moveaxis, np.matrix_transpose, np.linalg.matrix_transpose,
        np.atleast_1d, np.atleast_2d, np.flip, np.fliplr, np.flipud,
    }
)  # fmt: skip


def refresh(dual: Any) -> None:
    """Take a view again if the dual that it shows has changed."""
    if dual.origin is None:
        return
    parent, primal, tangent, view = dual.origin
    refresh(parent)
    if parent.primal is not primal or parent.tangent is not tangent:
        new = view(parent)
        dual.primal, dual.tangent, dual.tag = new.primal, new.tangent, new.tag
        dual.origin = new.origin


def write(dual: Any, index: Any, value: Any) -> None:
    """Assign a value, broadcast and converted as NumPy does, to the entries that an index picks."""
    positions = numbered(dual)[index]
    shape = np.shape(positions)
    value = as_array(value)
    if not np.can_cast(value.dtype, dual.dtype, "same_kind"):
        raise TypeError(f"a Dual of {dual.dtype} cannot be assigned values of {value.dtype}")
    while value.ndim > len(shape) and len(value) == 1:
        value = value[0]
    try:
        value = np.broadcast_to(value.astype(dual.dtype), shape)
    except ValueError:
        got = tuple(value.shape)
        raise ValueError(f"entries of shape {shape} cannot be assigned values of {got}") from None
    while dual.origin is not None:
        dual, _, _, view = dual.origin
        positions = np.ravel(view(numbered(dual)))[positions]
    numbers = np.zeros_like(dual, dtype=np.intp)  # in the order in memory of the dual
    numbers[...] = numbered(dual)
    new: Any = value
    in_place = value_of(value).strides == value_of(dual).strides
    if not (in_place and hasattr(value, "primal") and np.array_equal(positions, numbers)):
        numbers.flat[positions] = dual.size + np.reshape(np.arange(value.size), shape)
        new = np.concatenate([np.ravel(dual), np.ravel(value)])[numbers]
    dual.primal, dual.tangent, dual.tag = new.primal, new.tangent, new.tag


def value_of(arg: Any) -> Any:
    """Drop every tangent."""
    while getattr(arg, "primal", None) is not None:
        refresh(arg)
        arg = arg.primal
    if isinstance(arg, list | tuple):
        return rebuild(arg, [value_of(item) for item in arg])
    return arg


def numbered(a: Array) -> Array:
    """Return the numbers of an array's entries, in its shape."""
    return np.reshape(np.arange(a.size), a.shape)
