"""The rule table: what each function does to a tangent. This file has the functions of numbers.

A rule computes a function and pushes a tangent through it, in one formula written with NumPy:

    y = f(x),   y_dot = f'(x) x_dot

Its parameters are those of the NumPy function, plus one named ``x_dot`` for each array ``x`` that
may carry a tangent. It does to a tangent only the linear operations of `minibit.dual.tangents`,
never ``np.asarray``: so a tangent may be an array, a dual number of an outer derivative, a stack of
directions, the symbolic `ZERO` of a constant, or a recorder.

A formula without tangents is composed of functions that have rules. Functions whose slope is zero
wherever it exists need none (`CONSTANT`: comparisons, rounding, argsort). Conventions at kinks:

- ``maximum``, ``minimum``, ``clip``: at a tie with a constant the constant wins, slope 0; so
  relu'(0) = 0, whichever argument the 0 is. A tie of two duals is shared, half each.
- ``max``, ``min`` over axes: tied entries share alike. ``sort``: ties keep their order.
- ``logaddexp``: infinities that are alike share alike, as all ties do.
- ``abs``, ``norm``, ``hypot``, ``arctan2``: 0 at 0. ``std``: 0 where nothing varies.
- ``sqrt``, ``cbrt``: infinite at 0, as in calculus, and NumPy warns of the division.
- ``x ** y``: the slope in x is 0 where y = 0, also at 0 ** 0; the slope in y is 0 where x = 0, and
  NaN where x < 0.
- ``det``: the cofactors, at every rank. ``inv``, ``solve``: NumPy's error at a singular matrix.
- ``sign``, ``round``, ``floor``, conversion to integers: 0 everywhere, also at the jump.

A slope is within 8 ulp of the true one at every exponent of float16, float32 and float64, with
these exceptions (``python tests/rule_accuracy.py`` prints the worst case of each rule):

- float16: NumPy's value, and a tangent that is computed in float32 and rounded once.
- The slope of a function of two numbers has no more digits than a subnormal argument or value has.
  Where a value overflows, its slope may, too; and 0 times an infinite slope is NaN.
- ``var``, ``std``, ``average``, ``inv``, ``det`` and ``solve`` subtract: their slopes have the
  digits of the largest one. ``prod`` multiplies what stands before an entry by what stands after.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from minibit.dual.tangents import ZERO, Array

Pair = tuple[Array, Array]  # an output and its tangent


class Rule(NamedTuple):
    """A formula, and which of its parameters may carry a tangent."""

    formula: Callable[..., Any]
    parameters: tuple[str, ...]  # those that may be given by position, in NumPy's order
    star: str | None  # the one that takes any number more
    keywords: frozenset[str]
    arrays: dict[str, str]  # those that may carry a tangent, and its name: x, x_dot
    composed: bool  # takes duals as they are: made of functions that have rules


RULES: Final[dict[Any, Rule]] = {}


def rule(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a formula as the rule of `functions`: it returns the output and its tangent.

    One without tangents among its parameters is composed of functions that have rules.
    """

    def enter(formula: Callable[..., Any]) -> Callable[..., Any]:
        parameters = inspect.signature(formula).parameters.values()
        dots = [p.name for p in parameters if p.name.endswith("_dot")]
        own = [p for p in parameters if p.name not in dots]
        entry = Rule(
            formula=formula,
            parameters=tuple(p.name for p in own if p.kind is p.POSITIONAL_OR_KEYWORD),
            star=next((p.name for p in own if p.kind is p.VAR_POSITIONAL), None),
            keywords=frozenset(p.name for p in own if p.kind is not p.VAR_POSITIONAL),
            arrays={name.removesuffix("_dot"): name for name in dots},
            composed=not dots,
        )
        RULES.update(dict.fromkeys(functions, entry))
        return formula

    return enter


# Functions of one number: y_dot = x_dot * slope(x, y). Each slope is written so that no step of it
# overflows, or loses the digits of a small number, where the slope itself does not.

SLOPES: Final[dict[np.ufunc, Callable[[Array, Array], Array]]] = {
    np.absolute: lambda x, y: np.sign(x),
    np.fabs: lambda x, y: np.sign(x),
    np.square: lambda x, y: 2 * x,
    np.sqrt: lambda x, y: 0.5 / y,
    np.cbrt: lambda x, y: 1 / (3 * y * y),
    np.reciprocal: lambda x, y: -y * y,
    np.exp: lambda x, y: y,
    np.exp2: lambda x, y: np.square(np.exp2(x / 2) * math.sqrt(math.log(2))),
    np.expm1: lambda x, y: np.exp(x),
    np.log: lambda x, y: 1 / x,
    np.log2: lambda x, y: (1 / math.log(2)) / x,
    np.log10: lambda x, y: (1 / math.log(10)) / x,
    np.log1p: lambda x, y: 1 / (1 + x),
    np.sin: lambda x, y: np.cos(x),
    np.cos: lambda x, y: -np.sin(x),
    np.tan: lambda x, y: 1 + y * y,
    np.arcsin: lambda x, y: 1 / np.sqrt((1 - x) * (1 + x)),
    np.arccos: lambda x, y: -1 / np.sqrt((1 - x) * (1 + x)),
    np.arctan: lambda x, y: np.square(1 / np.hypot(1, x)),
    np.sinh: lambda x, y: np.cosh(x),
    np.cosh: lambda x, y: np.sinh(x),
    np.tanh: lambda x, y: _sech_squared(np.exp(2 * np.where(x > 0, -x, x))),
    np.arcsinh: lambda x, y: 1 / np.hypot(1, x),
    np.arccosh: lambda x, y: 1 / (np.sqrt(x - 1) * np.sqrt(x + 1)),
    np.arctanh: lambda x, y: 1 / ((1 - x) * (1 + x)),
    np.radians: lambda x, y: math.pi / 180,
    np.deg2rad: lambda x, y: math.pi / 180,
    np.degrees: lambda x, y: 180 / math.pi,
    np.rad2deg: lambda x, y: 180 / math.pi,
}


def _sech_squared(e: Array) -> Array:
    """1 / cosh(x)**2 from exp(-2 |x|), which cannot overflow."""
    return 4 * e / np.square(1 + e)


def _elementwise(f: np.ufunc, slope: Callable[..., Array], x: Array, x_dot: Array) -> Pair:
    """Rule of a function of one number by its entry of `SLOPES`."""
    y = f(x)
    return y, x_dot * slope(x, y)


for _f, _slope in SLOPES.items():
    rule(_f)(partial(_elementwise, _f, _slope))


def _extreme(f: np.ufunc, beats: np.ufunc, x: Array, y: Array, x_dot: Array, y_dot: Array) -> Pair:
    """Let the argument that wins move an extreme; at a tie neither wins. fmax passes over NaN."""
    x_wins, y_wins = beats(x, y), beats(y, x)
    if f in (np.fmax, np.fmin):
        x_wins, y_wins = x_wins | np.isnan(y), y_wins | np.isnan(x)
    if y_dot is ZERO:
        return f(x, y), x_dot * x_wins
    if x_dot is ZERO:
        return f(x, y), y_dot * y_wins
    shared = np.where(y_wins, y_dot, (x_dot + y_dot) / 2)
    return f(x, y), np.where(x_wins, x_dot, shared)


@rule(np.true_divide)
def _divide(x: Array, y: Array, x_dot: Array, y_dot: Array) -> Pair:
    z = x / y
    if x_dot is ZERO:
        return z, y_dot * (-z / y)  # one slope: in reverse, 1 / y alone might overflow
    return z, (x_dot - z * y_dot) / y


@rule(np.power)
def _power(x: Array, y: Array, x_dot: Array, y_dot: Array) -> Pair:
    z = x**y
    z_dot: Array = ZERO
    if x_dot is not ZERO:
        z_dot = x_dot * _slope_in_base(x, y, z)
    if y_dot is not ZERO:
        z_dot = z_dot + y_dot * (z * np.log(x + (x == 0)))  # where x = 0: log 1 = 0
    return z, z_dot


def _slope_in_base(x: Array, y: Array, z: Array) -> Array:
    """``y * x ** (y - 1)``, as ``y * z / x`` where ``y - 1`` is rounded or the power overflows."""
    if isinstance(y, int | float) and 1 <= y < 2**24 and y == int(y):
        return y * x ** (y - 1)
    y = y * z.dtype.type(1)  # in the type that NumPy computes in
    exact = ((y >= 1) & (y < 2**24)) | (x == 0) | np.isinf(x)
    power = x ** (y - (exact & (y != 0)))  # where y = 0: 0 * x ** 0 = 0
    return y * power / np.where(exact, 1, x)


@rule(np.fmod)
def _fmod(x: Array, y: Array, x_dot: Array, y_dot: Array) -> Pair:
    z = np.fmod(x, y)  # x less a whole number of y
    return z, x_dot - np.rint((x - z) / y) * y_dot


def magnitude(x: Array) -> Array:
    """Return the largest normal power of two that is at most |x|: to scale by, exactly. 1 for 0."""
    size = np.abs(x)
    return np.spacing(size / 2) / (np.finfo(x.dtype).eps / 2) + (size == 0)


def _both_scaled(x: Array, y: Array) -> tuple[Array, Array, Array, Array]:
    """Scale x and y; return them, the sum of their squares (1 if both are 0), and the scale."""
    larger = np.maximum(abs(x), abs(y))
    scale = magnitude(larger)
    u, v = (np.where(larger == 0, 0, z / scale) for z in (x, y))
    return u, v, u * u + v * v + (larger == 0), scale


@rule(np.arctan2)
def _arctan2(y: Array, x: Array, y_dot: Array, x_dot: Array) -> Pair:
    v, u, square, scale = _both_scaled(y, x)
    return np.arctan2(y, x), (y_dot * (u / scale) - x_dot * (v / scale)) / square


@rule(np.hypot)
def _hypot(x: Array, y: Array, x_dot: Array, y_dot: Array) -> Pair:
    u, v, square, _ = _both_scaled(x, y)
    return np.hypot(x, y), (x_dot * u + y_dot * v) / np.sqrt(square)


def exp_difference(x: Array, y: Array, exp: np.ufunc = np.exp, base: float = math.e) -> Array:
    """``exp(x - y)``, with what ``x - y`` rounds off: to an exponential, 80 - 1e-6 is not 80."""
    with np.errstate(invalid="ignore"):
        d = x - y
        rest = d - x
        rest = (x - (d - rest)) - (y + rest)
    d = np.where((x == y) & np.isinf(x), 0, d)
    return exp(d) * (1 + np.where(np.isfinite(rest), rest * math.log(base), 0))


def _log_of_sum(
    f: np.ufunc, exp: np.ufunc, base: float, x: Array, y: Array, x_dot: Array, y_dot: Array
) -> Pair:
    """Push tangents through ``log(base ** x + base ** y)``: both shares of it are precise."""
    first = x > y
    less = exp_difference(np.where(first, y, x), np.where(first, x, y), exp, base)  # at most 1
    in_x, in_y = np.where(first, 1, less), np.where(first, less, 1)
    return f(x, y), x_dot * (in_x / (1 + less)) + y_dot * (in_y / (1 + less))


@rule(np.clip)
def _clip(
    a: Array, a_min: Array = None, a_max: Array = None, *, min: Array = None, max: Array = None
) -> Array:
    low, high = (min if a_min is None else a_min), (max if a_max is None else a_max)
    a = a if low is None else np.maximum(a, low)
    return a if high is None else np.minimum(a, high)


FORMULAS: Final[dict[Any, Callable[..., Any]]] = {
    np.positive: lambda x, x_dot: (+x, x_dot),
    np.conjugate: lambda x, x_dot: (+x, x_dot),
    np.negative: lambda x, x_dot: (-x, -x_dot),
    np.add: lambda x, y, x_dot, y_dot: (x + y, x_dot + y_dot),
    np.subtract: lambda x, y, x_dot, y_dot: (x - y, x_dot - y_dot),
    np.multiply: lambda x, y, x_dot, y_dot: (x * y, x_dot * y + x * y_dot),
    np.remainder: lambda x, y, x_dot, y_dot: (
        np.remainder(x, y),
        x_dot - np.floor_divide(x, y) * y_dot,
    ),
    np.maximum: partial(_extreme, np.maximum, np.greater),
    np.minimum: partial(_extreme, np.minimum, np.less),
    np.fmax: partial(_extreme, np.fmax, np.greater),
    np.fmin: partial(_extreme, np.fmin, np.less),
    np.nan_to_num: lambda x, copy=True, nan=0.0, posinf=None, neginf=None, *, x_dot: (
        np.nan_to_num(x, nan=nan, posinf=posinf, neginf=neginf),
        np.where(np.isfinite(x), x_dot, 0.0),
    ),
    np.logaddexp: partial(_log_of_sum, np.logaddexp, np.exp, math.e),
    np.logaddexp2: partial(_log_of_sum, np.logaddexp2, np.exp2, 2),
    np.where: lambda condition, x, y, *, x_dot, y_dot: (
        np.where(condition, x, y),
        np.where(condition, x_dot, y_dot),
    ),
    np.float_power: lambda x, y: (x * np.float64(1)) ** (y * np.float64(1)),
    np.copysign: lambda x, y: np.where(np.signbit(x) == np.signbit(y), x, -x).astype(
        np.result_type(x, y)
    ),
    np.heaviside: lambda x1, x2: np.where(x1 == 0, x2, (np.sign(x1) + 1) / 2).astype(
        np.result_type(x1, x2)
    ),  # linear in x2 where x1 = 0, else flat
    np.divmod: lambda x, y: (np.floor_divide(x, y), np.remainder(x, y)),
    np.modf: lambda x: (x - np.trunc(x), np.trunc(x)),
}
for _function, _formula in FORMULAS.items():
    rule(_function)(_formula)


# Functions whose slope is 0 wherever they have one: the value is all there is.

CONSTANT: Final[frozenset[Any]] = frozenset(
    {
        np.sign, np.spacing, np.floor, np.ceil, np.trunc, np.rint, np.floor_divide,
        np.round, np.around, np.fix,
        np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal,
        np.logical_and, np.logical_or, np.logical_xor, np.logical_not,
        np.isfinite, np.isinf, np.isnan, np.signbit, np.isclose, np.allclose,
        np.isposinf, np.isneginf, np.array_equal, np.any, np.all,
        np.argmax, np.argmin, np.nanargmax, np.nanargmin, np.argsort, np.argpartition, np.lexsort,
        np.count_nonzero, np.nonzero, np.flatnonzero, np.argwhere, np.searchsorted, np.digitize,
        np.shape, np.ndim, np.size, np.zeros_like, np.ones_like, np.empty_like,
        np.iscomplexobj, np.isrealobj, np.result_type, np.array_repr, np.array_str,
    }
)  # fmt: skip
