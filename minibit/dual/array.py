"""The dual array ``x + x_dot eps``, with ``eps**2 = 0``, under NumPy's own protocols."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import real_numbers, unmasked
from minibit.dual.apply import DualNumber, apply
from minibit.dual.entries import refresh, value_of, write
from minibit.dual.tangents import Array, ArrayMethods, NoRuleError, Tangent, name_of


def _method(function: Any) -> Callable[..., Any]:
    """Make a NumPy function a method of its first argument."""

    def method(self: Dual, *args: Any, **kwargs: Any) -> Any:
        return apply(function, (self, *args), kwargs)

    method.__name__ = method.__qualname__ = getattr(function, "__name__", "method")
    method.__doc__ = f"See `{name_of(function)}`."
    return method


class Dual(DualNumber, ArrayMethods):
    """An array and its tangent.

    Operators, indexing, array methods and NumPy functions act on it as on an array of its shape
    and push the tangent along. Comparisons, ``bool``, ``argmax`` and the like look at the primal
    and return plain values, so a branch goes the way it would without a derivative.

    Entries may be assigned (``x[i] = y``, ``x += y``), also through views, as to an array; the
    arrays that the dual was made of stay as they are. ``np.zeros_like(x)`` is a dual to fill.

    Parameters
    ----------
    primal, tangent : float array, or Dual of an outer derivative
        Of one shape, else it is a ValueError. The tangent is converted to the type of the primal,
        which is floating, else it is a TypeError: integers and complex numbers have no tangent.

    Notes
    -----
    An operation that would lose the tangent raises a TypeError: a plain array as ``out=``,
    conversion to an array or a Python number, assignment to a plain array. A function without a
    rule raises a `NoRuleError`.

    Examples
    --------
    >>> x = Dual(3.0, 1.0)
    >>> x * x + 1
    Dual(10.0, 6.0)
    """

    __slots__ = ()

    def __init__(self, primal: Array, tangent: Array) -> None:
        self.primal = floating(primal, "primal")
        self.tangent = matching(tangent, self.primal, "primal", batch=False)
        self.tag = 0  # all duals that are made by hand share one eps
        self.origin = None

    def __repr__(self) -> str:
        """Show primal and tangent."""
        refresh(self)
        return f"Dual({self.primal!s}, {self.tangent!s})"

    @property
    def shape(self) -> Any:
        """Shape of the primal, and of the tangent."""
        return tuple(self.primal.shape)

    @property
    def dtype(self) -> Any:
        """Floating type of both."""
        return self.primal.dtype

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(self.primal.size)

    @property
    def mT(self) -> Any:
        """The array with its last two axes swapped."""
        return apply(np.swapaxes, (self, -1, -2), {})

    def __len__(self) -> int:
        """Return the length of the first axis."""
        return len(self.primal)

    def __bool__(self) -> bool:
        """Return the truth of the primal."""
        return bool(value_of(self))

    def __iter__(self) -> Iterator[Any]:
        """Go along the first axis."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        """Pick entries of primal and tangent."""
        return apply(operator.getitem, (self, index), {})

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Answer a ufunc call, or one of its methods, by its rule."""
        if any(isinstance(x, Tangent) for x in inputs):
            return NotImplemented  # a tangent's own class knows what to do with a dual
        inputs = tuple(np.asarray(x) if isinstance(x, list | tuple) else x for x in inputs)
        targets = kwargs.pop("out", None) or ()
        if targets and (method != "__call__" or not all(isinstance(t, Dual) for t in targets)):
            raise TypeError(
                f"{name_of(ufunc)} with out= (or +=, -=, ...) would write into an array that has "
                "no place for the tangent: write x = x + y, or make the array with np.zeros_like"
            )
        if method == "__call__":
            out = apply(ufunc, inputs, kwargs)
            if not targets or (targets[0] is inputs[0] and inputs[0].ndim == 0):
                return out  # x += 1 leaves a number as it is
            for target, result in zip(targets, (out,) if len(targets) == 1 else out, strict=True):
                target[...] = result
            return targets[0] if len(targets) == 1 else targets
        if method == "outer" and not kwargs:
            left, right = inputs
            return ufunc(np.reshape(left, (*np.shape(left), *(1,) * np.ndim(right))), right)
        return apply((ufunc, method), inputs, kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Answer a NumPy function by its rule."""
        if any(issubclass(kind, Tangent) for kind in types):
            return NotImplemented
        if kwargs.get("out") is not None:
            raise TypeError(f"{name_of(function)}: out= has no place for a tangent; leave it away")
        return apply(function, args, kwargs)

    def __format__(self, spec: str) -> str:
        """Format the primal, so that a loss may be printed on the way."""
        return format(value_of(self), spec) if spec else repr(self)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Assign to entries of both, and of what this is a view of."""
        write(self, index, value)

    def __array__(self, *args: Any, **kwargs: Any) -> NDArray[Any]:
        """Refuse: the tangent would be lost."""
        raise TypeError(
            "a Dual cannot become a plain array or a Python number, nor be assigned to one: its "
            "tangent would be lost. Use NumPy's functions (np.sin, not math.sin); np.stack joins "
            "duals, np.zeros_like makes one to assign to; stop_gradient drops the tangent"
        )

    __float__ = __int__ = __complex__ = __array__

    def __getattr__(self, name: str) -> Any:
        """Refuse, and say whether it is an attribute that arrays have and duals lack."""
        if name.startswith("__") or not hasattr(np.ndarray, name):
            raise AttributeError(f"a Dual has no attribute {name!r}")
        raise _NoAttributeError(f"no rule for the array attribute .{name}")

    def transpose(self, *axes: Any) -> Any:
        """See `np.transpose`; the axes may be a tuple or several numbers."""
        return apply(np.transpose, (self, axes[0] if len(axes) == 1 else axes or None), {})

    def copy(self) -> Any:
        """Return a copy, in C order as an array does."""
        return np.copy(self, order="C")

    def flatten(self) -> Any:
        """Return a copy in one axis."""
        return np.copy(np.ravel(self))

    astype = _method(np.ndarray.astype)
    conj = _method(np.conjugate)
    __copy__ = _method(np.copy)


for _function in (
    np.ravel, np.squeeze, np.swapaxes, np.diagonal, np.trace, np.take, np.repeat,
    np.mean, np.var, np.std, np.max, np.min, np.prod, np.cumsum, np.cumprod, np.dot,
    np.clip, np.round, np.conjugate, np.argmax, np.argmin, np.argsort, np.any, np.all, np.nonzero,
):  # fmt: skip
    setattr(Dual, _function.__name__, _method(_function))


class _NoAttributeError(NoRuleError, AttributeError):
    """An array attribute that a Dual has not: an AttributeError too, so that hasattr works."""


DualNumber.array = Dual


def floating(value: Any, name: str) -> Array:
    """Check that a value may carry a tangent."""
    if isinstance(value, Dual):
        return value
    array = unmasked(name, value)
    if array.dtype.kind != "f":
        raise TypeError(
            f"{name} is {array.dtype}: only floating arrays have derivatives. Cast it (2.0, not "
            "2), or hold it constant: by None as its tangent, or in its place for a gradient"
        )
    return array


def matching(tangent: Any, primal: Array, name: str, batch: bool) -> Array:
    """Check a tangent, or a stack of them, against its primal."""
    name = f"the tangent of {name}"
    if not isinstance(tangent, Dual | Tangent):
        tangent = unmasked(name, tangent)
    real_numbers(name, tangent, ("directions", *primal.shape) if batch else primal.shape)
    return tangent if tangent.dtype == primal.dtype else tangent.astype(primal.dtype)
