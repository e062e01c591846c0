"""The dual array: values with a tangent, under NumPy's own protocols.

    x + x_dot eps,  eps**2 = 0,   so that   f(x + x_dot eps) = f(x) + f'(x) x_dot eps

A function that meets a `Dual` is looked up in the rule table; the innermost derivative among its
arguments is parted into primals and tangents, the rule computes both, and they are joined again.
Duals of outer derivatives stay inside the primals and tangents, where the rule's own NumPy calls
meet them in turn.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from minibit.dual import rules_shape, rules_sums  # noqa: F401  (enter their rules)
from minibit.dual.entries import VIEWS, View, refresh, value_of, write
from minibit.dual.rules import CONSTANT, RULES, Rule
from minibit.dual.tangents import ZERO, Array, NoRuleError, Tangent, name_of
from minibit.dual.trees import rebuild

__all__ = ["Dual"]


def _method(function: Any) -> Callable[..., Any]:
    """Make a NumPy function a method of its first argument."""

    def method(self: Dual, *args: Any, **kwargs: Any) -> Any:
        return _apply(function, (self, *args), kwargs)

    method.__name__ = method.__qualname__ = getattr(function, "__name__", "method")
    method.__doc__ = f"See `{name_of(function)}`."
    return method


class Dual(NDArrayOperatorsMixin):
    """An array and its tangent: ``primal + tangent * eps``, with ``eps**2 = 0``.

    Operators, indexing, array methods and NumPy functions act on it as on an array of its shape
    and push the tangent along. Comparisons, ``bool``, ``argmax`` and the like look at the primal
    and return plain values, so a branch goes the way it would without a derivative.

    Entries may be assigned (``x[i] = y``, ``x += y``), also through views, as to an array; the
    arrays that the dual was made of stay as they are. ``np.zeros_like(x)`` is a dual to fill.

    Parameters
    ----------
    primal : float array or Dual
        The values. An outer derivative's duals may stand here, and in `tangent`.
    tangent : float array or Dual, of the shape of `primal`
        The direction. It is converted to the floating type of `primal`.

    Raises
    ------
    TypeError
        If `primal` is not floating: integers and complex numbers have no tangent here. Also on
        what would lose the tangent: a plain array as ``out=``, conversion to an array or a Python
        number, assignment to a plain array; a `NoRuleError` on a function without a rule.
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> x = Dual(3.0, 1.0)
    >>> x * x + 1
    Dual(10.0, 6.0)
    """

    __slots__ = ("origin", "primal", "tag", "tangent")

    primal: Array
    tangent: Array
    tag: int
    origin: View | None  # what it is a view of

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
    def shape(self) -> tuple[int, ...]:
        """Shape of the primal, and of the tangent."""
        return tuple(self.primal.shape)

    @property
    def dtype(self) -> Any:
        """Floating type of both."""
        return self.primal.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(self.primal.size)

    @property
    def T(self) -> Any:
        """The array with its axes reversed."""
        return _apply(np.transpose, (self,), {})

    @property
    def mT(self) -> Any:
        """The array with its last two axes swapped."""
        return _apply(np.swapaxes, (self, -1, -2), {})

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
        """Pick entries of both."""
        return _apply(operator.getitem, (self, index), {})

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
            out = _apply(ufunc, inputs, kwargs)
            if not targets or (targets[0] is inputs[0] and inputs[0].ndim == 0):
                return out  # x += 1 leaves a number as it is
            for target, result in zip(targets, (out,) if len(targets) == 1 else out, strict=True):
                target[...] = result
            return targets[0] if len(targets) == 1 else targets
        if method == "outer" and not kwargs:
            left, right = inputs
            return ufunc(np.reshape(left, (*np.shape(left), *(1,) * np.ndim(right))), right)
        return _apply((ufunc, method), inputs, kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Answer a NumPy function by its rule."""
        if any(issubclass(kind, Tangent) for kind in types):
            return NotImplemented
        if kwargs.get("out") is not None:
            raise TypeError(f"{name_of(function)}: out= has no place for a tangent; leave it away")
        return _apply(function, args, kwargs)

    def __format__(self, spec: str) -> str:
        """Format the primal, so that a loss may be printed on the way."""
        return format(value_of(self), spec) if spec else repr(self)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Assign to entries of both, and of what this is a view of."""
        write(self, index, value)

    def __array__(self, *args: Any, **kwargs: Any) -> NDArray[Any]:
        """Refuse: the tangent would be lost."""
        raise TypeError(
            "a Dual cannot become a plain array (np.asarray, np.array, assignment into one, random "
            "generators): its tangent would be lost. np.stack joins duals; np.zeros_like makes one "
            "to assign to; stop_gradient drops the tangent on purpose"
        )

    def __float__(self) -> float:
        """Refuse: the tangent would be lost."""
        raise TypeError(
            "a Dual cannot become a Python number, nor be assigned to an entry of a plain array: "
            "its tangent would be lost. Use NumPy's functions (np.sin, not math.sin); np.stack, or "
            "an array made with np.zeros_like of a Dual; stop_gradient drops the tangent on purpose"
        )

    __int__ = __complex__ = __float__

    def __getattr__(self, name: str) -> Any:
        """Name what arrays have and duals have not."""
        if name.startswith("__") or not hasattr(np.ndarray, name):
            raise AttributeError(f"a Dual has no attribute {name!r}")
        raise _NoAttributeError(f"no rule for the array attribute .{name}")

    def reshape(self, *shape: Any) -> Any:
        """See `np.reshape`; the shape may be a tuple or several numbers."""
        return _apply(np.reshape, (self, shape[0] if len(shape) == 1 else shape), {})

    def transpose(self, *axes: Any) -> Any:
        """See `np.transpose`; the axes may be a tuple or several numbers."""
        order = (axes[0] if len(axes) == 1 else axes) if axes else None
        return _apply(np.transpose, (self, order), {})

    def copy(self) -> Any:
        """Return a copy, in C order as an array does."""
        return np.copy(self, order="C")

    def flatten(self) -> Any:
        """Return a copy in one axis."""
        return np.copy(np.ravel(self))

    astype = _method(np.ndarray.astype)
    __copy__ = _method(np.copy)
    ravel = _method(np.ravel)
    squeeze = _method(np.squeeze)
    swapaxes = _method(np.swapaxes)
    sum = _method(np.sum)
    mean = _method(np.mean)
    var = _method(np.var)
    std = _method(np.std)
    max = _method(np.max)
    min = _method(np.min)
    prod = _method(np.prod)
    cumsum = _method(np.cumsum)
    cumprod = _method(np.cumprod)
    dot = _method(np.dot)
    clip = _method(np.clip)
    take = _method(np.take)
    repeat = _method(np.repeat)
    diagonal = _method(np.diagonal)
    trace = _method(np.trace)
    round = _method(np.round)
    argmax = _method(np.argmax)
    argmin = _method(np.argmin)
    argsort = _method(np.argsort)
    any = _method(np.any)
    all = _method(np.all)
    nonzero = _method(np.nonzero)
    conj = conjugate = _method(np.conjugate)


class _NoAttributeError(NoRuleError, AttributeError):
    """An array attribute that a Dual has not: an AttributeError too, so that hasattr works."""


def make_dual(primal: Array, tangent: Array, tag: int) -> Dual:
    """Make a dual without checks."""
    dual = object.__new__(Dual)
    dual.primal, dual.tangent, dual.tag, dual.origin = primal, tangent, tag, None
    return dual


# Applying a rule.


def _apply(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function that met a dual: by its rule, or by what it is composed of."""
    rule = RULES.get(function)
    if rule is None:
        return _apply_constant(function, args, kwargs)
    if kwargs or len(args) > len(rule.parameters):
        unknown = [k for k, v in kwargs.items() if k not in rule.keywords and v is not None]
        if unknown or (len(args) > len(rule.parameters) and rule.star is None):
            what = " and ".join(f"{k}=" for k in unknown) or f"{len(args)} positional arguments"
            raise NoRuleError(f"no rule for {name_of(function)} with {what}")
        kwargs = {k: v for k, v in kwargs.items() if k in rule.keywords}
    tag, half = -1, False
    for arg in (*args, *kwargs.values()):
        tag = max(tag, tag_of(arg))
        half = half or (isinstance(arg, Dual) and arg.primal.dtype is _HALF)
    if half and function is not np.ndarray.astype:
        out = _apply_in_float32(function, args, kwargs, tag)
    elif rule.composed:
        out = rule.formula(*args, **kwargs)
        if isinstance(out, Dual):  # a copy to NumPy, unless it is one of the views
            out = make_dual(out.primal, out.tangent, out.tag)
    else:
        out = _apply_formula(function, rule, args, kwargs, tag)
    if function in VIEWS and isinstance(out, Dual):
        _link(out, function, args, kwargs, rule.composed)
    return out


def _apply_formula(
    function: Any, rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any], tag: int
) -> Any:
    """Part the innermost primals from their tangents, push both through the rule, join again."""
    dots = dict.fromkeys(rule.arrays.values(), ZERO)

    def primal_of(name: str, arg: Any) -> Any:
        if name in rule.arrays:
            primal, dots[rule.arrays[name]] = part(arg, tag)
            return primal
        if tag_of(arg) >= 0:
            raise NoRuleError(f"no rule for {name_of(function)} with a Dual as its {name}")
        return arg

    primals = [primal_of(*pair) for pair in zip(rule.parameters, args, strict=False)]
    if rule.star is not None:
        primals += primal_of(rule.star, list(args[len(rule.parameters) :]))
    named = {name: primal_of(name, arg) for name, arg in kwargs.items()}
    out, out_dot = rule.formula(*primals, **named, **dots)
    return join_parts(out, out_dot, tag)


def _apply_in_float32(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tag: int
) -> Any:
    """Apply a function to float16: NumPy's value, and a tangent in float32, rounded once."""

    def wide(dual: Dual) -> Dual:
        if dual.primal.dtype is not _HALF:
            return dual
        return make_dual(dual.primal.astype(np.float32), dual.tangent.astype(np.float32), dual.tag)

    def join(value: Any, dual: Any) -> Any:
        if isinstance(value, list | tuple):
            return rebuild(value, [join(*pair) for pair in zip(value, dual, strict=True)])
        return join_parts(value, part(dual, tag)[1], tag)

    value = _call(function, args, kwargs, lambda dual: dual.primal if dual.tag == tag else dual)
    return join(value, _call(function, args, kwargs, wide))


def _call(
    function: Any, args: Any, kwargs: dict[str, Any], change: Callable[[Dual], Any] | None = None
) -> Any:
    """Call what a key of the table stands for, with all duals changed."""
    if change is not None:
        args = [_map_duals(change, arg) for arg in args]
        kwargs = {name: _map_duals(change, arg) for name, arg in kwargs.items()}
    if tag_of((*args, *kwargs.values())) >= 0:
        return _apply(function, tuple(args), kwargs)
    return (getattr(*function) if isinstance(function, tuple) else function)(*args, **kwargs)


def _map_duals(change: Callable[[Dual], Any], arg: Any) -> Any:
    if isinstance(arg, list | tuple) and tag_of(arg) >= 0:
        return [_map_duals(change, item) for item in arg]
    return change(arg) if isinstance(arg, Dual) else arg


def _link(
    out: Dual, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], composed: bool
) -> None:
    """Let a view know what it shows; a copy, here or to NumPy, stands alone."""
    parent = next(arg for arg in (*args, *kwargs.values()) if isinstance(arg, Dual))
    value = value_of(parent)

    def view(a: Array) -> Array:
        named = {k: a if v is parent else v for k, v in kwargs.items()}
        return _call(function, [a if arg is parent else arg for arg in args], named)

    if np.may_share_memory(value_of(out), value) and not (
        composed and not np.may_share_memory(view(value), value)
    ):
        out.origin = (parent, parent.primal, parent.tangent, view)


_HALF = np.dtype(np.float16)
_LISTS = (list, tuple)  # named here once: every operation asks for it
_WRITES = (np.copyto, np.put, np.place, np.putmask, np.put_along_axis, np.fill_diagonal)


def _apply_constant(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function whose slope is 0 on the innermost primals."""
    base = function[0] if isinstance(function, tuple) else function
    if base in _WRITES:
        raise NoRuleError(
            f"no rule for {name_of(function)}: it writes into an array, which has no place for a "
            "tangent. Build the array with np.where, np.stack or np.concatenate"
        )
    if base not in CONSTANT:
        raise NoRuleError(
            f"no rule for {name_of(function)}: a tangent cannot pass through it. custom_jvp gives "
            "a function its derivative; stop_gradient makes its argument a constant"
        )
    out = _call(function, args, kwargs, value_of)
    if base in (np.zeros_like, np.ones_like, np.empty_like) and out.dtype.kind == "f":
        return make_dual(out, np.zeros_like(out), tag_of(args))  # an array to assign duals to
    return out


def tag_of(arg: Any) -> int:
    """Find the innermost derivative that an argument takes part in; -1 for none."""
    if isinstance(arg, Dual):
        if arg.origin is not None:
            refresh(arg)
        return arg.tag
    if isinstance(arg, _LISTS):
        return max(map(tag_of, arg), default=-1)
    return -1


def part(arg: Any, tag: int) -> tuple[Any, Any]:
    """Part what belongs to derivative `tag` into primal and tangent; all else is constant there."""
    if isinstance(arg, Dual) and tag_of(arg) == tag:
        return arg.primal, arg.tangent
    if isinstance(arg, _LISTS):
        if tag_of(arg) < tag:
            return np.asarray(arg), ZERO
        primals, tangents = zip(*(part(item, tag) for item in arg), strict=True)
        return list(primals), list(tangents)
    return arg, ZERO


def join_parts(out: Any, out_dot: Any, tag: int) -> Any:
    """Make an output and its tangent a dual: of one shape, and of one floating type."""
    if out_dot is ZERO:
        return out
    if out.dtype.kind != "f":
        raise TypeError(f"tangents are real: an operation made {out.dtype} out of a Dual")
    if out_dot.shape != out.shape:
        out_dot = np.broadcast_to(out_dot, out.shape)
    if out_dot.dtype != out.dtype:
        out_dot = out_dot.astype(out.dtype)
    return make_dual(out, out_dot, tag)


def _unmasked(value: Any, name: str) -> NDArray[Any]:
    """Make an array of a value; not of a masked array, whose mask would be forgotten."""
    if isinstance(value, np.ndarray) and hasattr(value, "mask"):
        raise TypeError(f"{name} is a masked array, which has no rules: fill it with .filled")
    return np.asarray(value)


def floating(value: Any, name: str) -> Array:
    """Check that a value may carry a tangent."""
    if isinstance(value, Dual):
        return value
    array = _unmasked(value, name)
    if array.dtype.kind != "f":
        raise TypeError(
            f"{name} is {array.dtype}: only floating arrays have tangents. Cast it (2.0, not 2), "
            "or give None as its tangent to hold it constant"
        )
    return array


def matching(tangent: Any, primal: Array, name: str, batch: bool) -> Array:
    """Check a tangent, or a stack of them, against its primal."""
    if not isinstance(tangent, Dual | Tangent):
        tangent = _unmasked(tangent, f"the tangent of {name}")
        if tangent.dtype.kind not in "fiub":
            raise TypeError(f"the tangent of {name} is {tangent.dtype}, it must be real numbers")
    shape = tuple(tangent.shape)
    if (shape[1:] if batch else shape) != tuple(primal.shape) or (batch and not shape):
        wanted = str(("directions", *primal.shape) if batch else primal.shape).replace("'", "")
        raise ValueError(f"the tangent of {name} has shape {shape}, it must have {wanted}")
    return tangent if tangent.dtype == primal.dtype else tangent.astype(primal.dtype)


def dtype_of(leaf: Any) -> np.dtype[Any]:
    """Type of the array that a leaf is or would become."""
    return np.dtype(leaf.dtype) if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
