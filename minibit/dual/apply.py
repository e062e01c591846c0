"""Applying a rule to dual numbers: ``f(x + x_dot eps) = f(x) + f'(x) x_dot eps``.

The innermost derivative among the arguments is parted into primals and tangents. Duals of outer
derivatives stay inside of these, where the rule's own NumPy calls meet them in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final

import numpy as np

from minibit.dual import rules_shape, rules_sums  # noqa: F401  (enter their rules)
from minibit.dual.entries import VIEWS, View, refresh, value_of
from minibit.dual.rules import CONSTANT, RULES, Rule
from minibit.dual.tangents import ZERO, Array, NoRuleError, name_of
from minibit.dual.trees import rebuild

_HALF: Final = np.dtype(np.float16)
_LISTS: Final = (list, tuple)  # named here once: every operation asks for it


class DualNumber:
    """A primal and its tangent, whose derivative they belong to, and what they are a view of."""

    __slots__ = ("origin", "primal", "tag", "tangent")

    array: ClassVar[type[DualNumber]]  # the class that answers NumPy: `Dual`
    primal: Array
    tangent: Array
    tag: int
    origin: View | None


def make_dual(primal: Array, tangent: Array, tag: int) -> DualNumber:
    """Make a dual without checks."""
    dual = object.__new__(DualNumber.array)
    dual.primal, dual.tangent, dual.tag, dual.origin = primal, tangent, tag, None
    return dual


def apply(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function that met a dual: by its rule, or by what it is composed of."""
    rule = RULES.get(function)
    if rule is None:
        return _apply_constant(function, args, kwargs)
    if kwargs or len(args) > len(rule.parameters):
        unknown = [k for k, v in kwargs.items() if k not in rule.keywords and v is not None]
        if unknown or (len(args) > len(rule.parameters) and rule.star is None):
            extra = " and ".join(f"{k}=" for k in unknown) or f"{len(args)} positional arguments"
            raise NoRuleError(f"no rule for {name_of(function)} with {extra}")
        kwargs = {k: v for k, v in kwargs.items() if k in rule.keywords}
    tag, half = -1, False
    for arg in (*args, *kwargs.values()):
        tag = max(tag, tag_of(arg))
        half = half or (isinstance(arg, DualNumber) and arg.primal.dtype is _HALF)
    call = partial(_call, function, args, kwargs)
    if half and function is not np.ndarray.astype:
        out = _apply_in_float32(call, tag)
    elif rule.composed:
        out = rule.formula(*args, **kwargs)
        if isinstance(out, DualNumber):  # a copy to NumPy, unless it is one of the views
            out = make_dual(out.primal, out.tangent, out.tag)
    else:
        out = _apply_formula(function, rule, args, kwargs, tag)
    if function in VIEWS and isinstance(out, DualNumber):
        parent = next(arg for arg in (*args, *kwargs.values()) if isinstance(arg, DualNumber))
        _link(out, parent, call, rule.composed)
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


def _apply_in_float32(call: Callable[..., Any], tag: int) -> Any:
    """Apply a function to float16: NumPy's value, and a tangent in float32, rounded once."""

    def wide(dual: DualNumber) -> DualNumber:
        if dual.primal.dtype is not _HALF:
            return dual
        return make_dual(dual.primal.astype(np.float32), dual.tangent.astype(np.float32), dual.tag)

    def join(value: Any, dual: Any) -> Any:
        if isinstance(value, list | tuple):
            return rebuild(value, [join(*pair) for pair in zip(value, dual, strict=True)])
        return join_parts(value, part(dual, tag)[1], tag)

    value = call(lambda dual: dual.primal if dual.tag == tag else dual)
    return join(value, call(wide))


def _call(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[..., Any]
) -> Any:
    """Call the function that a key of the table names; `change` replaces duals in its arguments."""
    args = tuple(_map_duals(change, arg) for arg in args)
    kwargs = {name: _map_duals(change, arg) for name, arg in kwargs.items()}
    if tag_of((*args, *kwargs.values())) >= 0:
        return apply(function, args, kwargs)
    return (getattr(*function) if isinstance(function, tuple) else function)(*args, **kwargs)


def _map_duals(change: Callable[[DualNumber], Any], arg: Any) -> Any:
    """Apply `change` to an argument that is a dual, or to the duals in a list of them."""
    if isinstance(arg, list | tuple) and tag_of(arg) >= 0:
        return [_map_duals(change, item) for item in arg]
    return change(arg) if isinstance(arg, DualNumber) else arg


def _link(out: DualNumber, parent: DualNumber, call: Callable[..., Any], composed: bool) -> None:
    """Record in a view which dual it shows; a copy, made here or by NumPy, records nothing."""
    value = value_of(parent)

    def view(a: Array) -> Array:
        return call(lambda dual: a if dual is parent else dual)

    if np.may_share_memory(value_of(out), value) and not (
        composed and not np.may_share_memory(view(value), value)
    ):
        out.origin = (parent, parent.primal, parent.tangent, view)


_WRITES = (np.copyto, np.put, np.place, np.putmask, np.put_along_axis, np.fill_diagonal)


def _apply_constant(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function whose slope is 0 on the innermost primals."""
    base = function[0] if isinstance(function, tuple) else function
    if base in _WRITES:
        raise NoRuleError(
            f"no rule for {name_of(function)}: it writes into an array. Assign to one that is made "
            "with np.zeros_like of a Dual (y[index] = x), or build it with np.where or np.stack"
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
    if isinstance(arg, DualNumber):
        if arg.origin is not None:
            refresh(arg)
        return arg.tag
    if isinstance(arg, _LISTS):
        return max(map(tag_of, arg), default=-1)
    return -1


def part(arg: Any, tag: int) -> tuple[Any, Any]:
    """Part what belongs to derivative `tag` into primal and tangent; all else is constant there."""
    if isinstance(arg, DualNumber) and tag_of(arg) == tag:
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
