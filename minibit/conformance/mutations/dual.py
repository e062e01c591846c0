"""Wrong derivatives: a small forward mode, one rule of which is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["DUAL"]


class Tangent:
    """A value and its tangent; rules are looked up by the operation's name."""

    __array_priority__ = 1000

    def __init__(self, value: Any, dot: Any, wrong: str) -> None:
        self.value, self.dot, self.wrong = np.asarray(value), np.asarray(dot), wrong

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **options: Any) -> Any:
        """Apply the rule of a NumPy function of entries."""
        return self.apply(ufunc.__name__, args)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        """Apply the rule of another NumPy function."""
        return self.apply(function.__name__, args)

    def apply(self, name: str, args: Any) -> Any:
        """Split values and tangents, and join the results."""
        values = [np.asarray(getattr(arg, "value", arg)) for arg in args]
        dots = [
            arg.dot if isinstance(arg, Tangent) else np.zeros_like(value)
            for arg, value in zip(args, values, strict=True)
        ]
        if self.wrong == "constant-has-a-tangent":
            dots = [
                dot if isinstance(arg, Tangent) else np.ones_like(value)
                for arg, value, dot in zip(args, values, dots, strict=True)
            ]
        value, dot = RULES[name](self.wrong, *values, *dots)
        if np.shape(dot) != np.shape(value) and self.wrong != "shape-of-the-smaller":
            dot = np.broadcast_to(dot, np.shape(value))
        return Tangent(value, dot, self.wrong)

    def __add__(self, other: Any) -> Any:
        """Add."""
        return self.apply("add", (self, other))

    def __sub__(self, other: Any) -> Any:
        """Subtract."""
        return self.apply("subtract", (self, other))

    def __mul__(self, other: Any) -> Any:
        """Multiply."""
        return self.apply("multiply", (self, other))

    def __truediv__(self, other: Any) -> Any:
        """Divide."""
        return self.apply("divide", (self, other))

    def __pow__(self, other: Any) -> Any:
        """Raise to a power."""
        return self.apply("power", (self, other))

    def __matmul__(self, other: Any) -> Any:
        """Multiply matrices."""
        return self.apply("matmul", (self, other))


def _product(w: str, x: Any, y: Any, dx: Any, dy: Any) -> Any:
    """``dx y + x dy``."""
    return x * y, dx * y + (0 if w == "term-of-the-product-missing" else x * dy)


def _quotient(w: str, x: Any, y: Any, dx: Any, dy: Any) -> Any:
    """``(dx - x dy / y) / y``."""
    sign = 1 if w == "sign-of-the-quotient" else -1
    if w == "square-of-a-denominator":
        return x / y, dx / y - x * dy / y
    return x / y, (dx + sign * x * dy / y) / y


def _matmul(w: str, x: Any, y: Any, dx: Any, dy: Any) -> Any:
    """``dx y + x dy``."""
    return x @ y, dx @ y + x @ dy + (dx @ dy if w == "second-order-term" else 0)


def _sum(w: str, x: Any, y: Any, dx: Any, dy: Any, sign: int = 1) -> Any:
    """``dx + dy``, which both have the shape of the sum."""
    value = x + sign * y
    change = dy if w == "subtrahend-added" else sign * dy
    return value, dx if w == "shape-of-the-smaller" else dx + change


def _power(w: str, x: Any, n: Any, dx: Any, dn: Any) -> Any:
    """``n x^(n - 1) dx + log(x) x^n dn``, 0 where n is 0."""
    with np.errstate(all="ignore"):
        slope = n * x ** (n - 1.0)
        moved = np.log(x) * x**n * dn if np.any(dn) and w != "exponent-is-constant" else 0.0
    if w != "zero-times-infinity":
        slope = np.where(n == 0, 0.0, slope)
    return x**n, slope * dx + moved


def _maximum(w: str, x: Any, y: Any, dx: Any, dy: Any) -> Any:
    """Take the larger one's tangent; half of both at a tie of two that move."""
    tie = (dx + dy) / 2 if np.size(dy) == np.size(dx) and np.any(dy) else 0 * dx
    if w == "tie-to-one-side":
        tie = dx
    if w == "slope-at-zero":
        tie = dx
    return np.maximum(x, y), np.where(x > y, dx, np.where(x < y, dy, tie))


def _minimum(w: str, x: Any, y: Any, dx: Any, dy: Any) -> Any:
    """Take the smaller one's tangent; half of both at a tie."""
    if w == "tangent-of-the-larger":
        dx, dy = dy, dx
    return np.minimum(x, y), np.where(x < y, dx, np.where(x > y, dy, (dx + dy) / 2))


def _slopes(name: str) -> Callable[..., Any]:
    """Return the rule of a function of entries."""
    f, slope, flag, other = ENTRIES[name]
    return lambda w, x, dx: (f(x), (other if w == flag else slope)(x) * dx)


ENTRIES: dict[str, tuple[Any, ...]] = {
    "exp": (np.exp, np.exp, "powers-rule-for-exp", lambda x: x * np.exp(x - 1)),
    "log": (np.log, lambda x: 1 / x, "slope-of-log", np.log),
    "cos": (np.cos, lambda x: -np.sin(x), "sign-of-the-sine", np.sin),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2, "tanh-not-squared", lambda x: 1 - np.tanh(x)),
    "sqrt": (np.sqrt, lambda x: 0.5 / np.sqrt(x), "half-of-the-root", lambda x: 1 / np.sqrt(x)),
    "square": (np.square, lambda x: 2 * x, "two-of-the-square", lambda x: x),
    "sin": (np.sin, np.cos, "sign-of-the-cosine", lambda x: -np.cos(x)),
}


def _max(w: str, x: Any, dx: Any) -> Any:
    """Mean tangent of the entries that tie."""
    ties = x == x.max()
    return x.max(), (dx * ties).sum() / (1 if w == "ties-in-full" else ties.sum())


def _norm(w: str, x: Any, dx: Any) -> Any:
    """``x dx / norm``, 0 at 0."""
    norm = np.sqrt((x * x).sum())
    with np.errstate(all="ignore"):
        slope = (x * dx).sum() / (1 if w == "norm-not-divided" else norm)
    return norm, slope if w == "norm-at-zero" or norm else 0.0


def _prod(w: str, x: Any, dx: Any) -> Any:
    """Product of all others, times the tangent."""
    if w == "product-by-division":
        with np.errstate(all="ignore"):
            return x.prod(), np.nansum(x.prod() / x * dx)
    others = [np.delete(x, i) for i in range(x.size)]
    if w == "zeros-left-out":
        others = [rest[rest != 0] for rest in others]
    return x.prod(), sum(rest.prod() * dot for rest, dot in zip(others, dx, strict=True))


def _clip(w: str, x: Any, low: Any, high: Any, dx: Any, *_: Any) -> Any:
    """Slope 1 inside, 0 at and beyond the bounds."""
    inside = (x >= low) & (x <= high) if w == "slope-at-bounds" else (x > low) & (x < high)
    return np.clip(x, low, high), dx * inside


def _sort(w: str, x: Any, dx: Any) -> Any:
    """Tangents move with their entries."""
    return np.sort(x), dx if w == "tangents-not-sorted" else dx[np.argsort(x, kind="stable")]


def _var(w: str, x: Any, dx: Any) -> Any:
    """``2 mean((x - mean) dx)``."""
    slope = ((x - x.mean()) * dx).sum() * 2
    return x.var(), slope / (1 if w == "factor-of-the-variance" else x.size)


def _abs(w: str, x: Any, dx: Any) -> Any:
    """``sign(x) dx``."""
    return np.abs(x), dx * (np.where(x < 0, -1, 1) if w == "slope-at-zero" else np.sign(x))


RULES: dict[str, Callable[..., Any]] = {
    "add": _sum,
    "subtract": lambda w, x, y, dx, dy: _sum(w, x, y, dx, dy, -1),
    "multiply": _product,
    "divide": _quotient,
    "power": _power,
    "matmul": _matmul,
    "maximum": _maximum,
    "minimum": _minimum,
    **{name: _slopes(name) for name in ENTRIES},
    "absolute": _abs,
    "rint": lambda w, x, dx: (np.rint(x), dx if w == "slope-through-rounding" else 0 * dx),
    "clip": _clip,
    "sort": _sort,
    "sum": lambda w, x, dx: (x.sum(), dx.sum()),
    "mean": lambda w, x, dx: (x.mean(), 0 * dx.mean() if w == "mean-is-constant" else dx.mean()),
    "var": _var,
    "prod": _prod,
    "max": _max,
    "amax": _max,
    "norm": _norm,
}


def _jvp(wrong: str) -> Callable[..., Any]:
    """Return a forward mode that is wrong in one way."""

    def jvp(fn: Any, primals: Any, tangents: Any) -> Any:
        """Push tangents through."""
        moving = [
            p
            if t is None and wrong != "constant-has-a-tangent"
            else Tangent(p, np.ones_like(np.asarray(p, float)) if t is None else t, wrong)
            for p, t in zip(primals, tangents, strict=True)
        ]
        out = fn(*moving)
        return out.value, out.dot

    return jvp


def _confused(offered: Callable[..., Any]) -> Callable[..., Any]:
    """Return a derivative that counts the outer tangent, too."""

    def derivative(fn: Any) -> Any:
        """Differentiate."""
        return lambda x: offered(fn)(x) + getattr(fn(x), "tangent", 0.0)

    return derivative


def _flat(offered: Callable[..., Any], stop: Callable[..., Any]) -> Callable[..., Any]:
    """Return a derivative that carries no outer tangent."""
    return lambda fn: lambda x: stop(offered(fn)(x))


def _derivative(kind: str) -> Callable[..., Any]:
    """Return a derivative that is wrong where derivatives are nested."""

    def derivative(fn: Any) -> Any:
        """Differentiate."""
        from minibit import dual

        if kind == "one-epsilon":
            return _confused(dual.derivative)(fn)
        return _flat(dual.derivative, dual.stop_gradient)(fn)

    return derivative


FLAGS = (
    *("term-of-the-product-missing", "sign-of-the-quotient", "constant-has-a-tangent"),
    *("second-order-term", "shape-of-the-smaller", "factor-of-the-variance", "mean-is-constant"),
    *("slope-at-zero", "tie-to-one-side", "ties-in-full", "norm-at-zero", "norm-not-divided"),
    *("zero-times-infinity", "product-by-division", "slope-at-bounds", "tangents-not-sorted"),
    *("slope-through-rounding", "powers-rule-for-exp", "slope-of-log", "sign-of-the-cosine"),
    *("exponent-is-constant", "tangent-of-the-larger", "subtrahend-added", "zeros-left-out"),
    *(
        "two-of-the-square",
        "sign-of-the-sine",
        "tanh-not-squared",
        "half-of-the-root",
        "square-of-a-denominator",
    ),
)


def _summed(fn: Any, primals: Any, tangents: Any) -> Any:
    """Sum over directions, where each has a tangent of its own."""
    out, dot = _batch(fn, primals, tangents)
    return out, dot.sum(axis=0)


def _batch(fn: Any, primals: Any, tangents: Any) -> Any:
    """Push one direction after the other."""
    runs = [_jvp("")(fn, primals, direction) for direction in zip(*tangents, strict=True)]
    return runs[0][0], np.stack([dot for _, dot in runs])


def _last_axis(fn: Any, primals: Any, tangents: Any) -> Any:
    """Put directions along the last axis."""
    out, dot = _batch(fn, primals, tangents)
    return out, np.moveaxis(dot, 0, -1)


def _gradient(fn: Any, x: Any) -> Any:
    """Gradient, one entry after the other."""
    basis = np.eye(x.size).reshape(x.size, *x.shape)
    return np.array([_jvp("")(fn, (x,), (e,))[1] for e in basis]).reshape(x.shape)


DUAL: dict[str, Callable[..., Any]] = {
    **{f"jvp/{flag}": _jvp(flag) for flag in FLAGS},
    "jvp_batch/directions-summed": _summed,
    "jvp_batch/directions-last": _last_axis,
    "jvp_batch/no-axis-where-nothing-moves": lambda fn, primals, tangents: (
        fn(*primals),
        np.zeros_like(fn(*primals)),
    ),
    "jvp_batch/fewest-directions": lambda fn, primals, tangents: _batch(
        fn, primals, [t[: min(map(len, tangents))] for t in tangents]
    ),
    "grad/one-direction": lambda fn, x: np.full(x.shape, _gradient(fn, x).sum()),
    "grad/downhill": lambda fn, x: -_gradient(fn, x),
    "value_and_grad/exchanged": lambda fn, x: (_gradient(fn, x), _jvp("")(fn, (x,), (x,))[0]),
    "value_and_grad/tangent-for-value": lambda fn, x: (
        _jvp("")(fn, (x,), (x,))[1],
        _gradient(fn, x),
    ),
    "derivative/one-epsilon": _derivative("one-epsilon"),
    "derivative/nested-tangent-lost": _derivative("nested-tangent-lost"),
}
