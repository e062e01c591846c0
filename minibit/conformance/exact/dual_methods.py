"""Methods of dual arrays: a primal and its tangent in, both out; `wrong` names one mistake."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

__all__ = ["METHODS", "WRONG"]

LINEAR = (  # the tangent goes through the method itself
    *("astype", "conj", "conjugate", "copy", "cumsum", "diagonal", "dot", "flatten", "mean"),
    *("ravel", "repeat", "reshape", "squeeze", "sum", "swapaxes", "take", "trace", "transpose"),
)
CURVED = ("clip", "cumprod", "max", "min", "prod", "std", "var")
PLAIN = (  # of the primal, without a tangent
    *("all", "any", "argmax", "argmin", "argsort", "nonzero", "round"),
)


def slope(name: str, x: Any, v: Any, axis: int = -1, **args: Any) -> Any:
    """Return the tangent of a method that is not linear, at arrays without ties."""
    if name == "clip":
        return np.where((args["min"] <= x) & (x <= args["max"]), v, 0)
    if name in ("max", "min"):
        at = np.expand_dims(getattr(x, f"arg{name}")(axis=axis), axis)
        return np.take_along_axis(v, at, axis).squeeze(axis)
    if name in ("prod", "cumprod"):  # of each factor the tangent, and of the others the value
        columns = np.moveaxis(x, axis, -1), np.moveaxis(v, axis, -1)
        n = x.shape[axis]

        def partial_product(stop: int) -> Any:
            """Tangent of the product of the first factors."""
            total = 0.0
            for i in range(stop):
                others = [columns[0][..., j] for j in range(stop) if j != i]
                total = total + columns[1][..., i] * np.prod(others, axis=0)
            return total

        if name == "prod":
            return partial_product(n)
        return np.moveaxis(np.stack([partial_product(k) for k in range(1, n + 1)], -1), -1, axis)
    centred = x - x.mean(axis=axis, keepdims=True)
    turn = 2 * (centred * v).mean(axis=axis)
    return turn if name == "var" else turn / (2 * x.std(axis=axis))


def method(x: Any, x_dot: Any, args: Any, name: str, wrong: str = "") -> Any:
    """Return primal and tangent, or what a method says of the primal alone."""
    given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in args.items()}
    axes = given.pop("axes", None)

    def call(array: Any) -> Any:
        """Call the method of an array."""
        if name == "transpose":
            return array.transpose(axes)
        if name == "dot":
            return array.dot(given["b"])
        if name == "astype":
            return array.astype(given["kind"])
        return getattr(array, name)(*given.values())

    if name in PLAIN:
        out = call(x_dot if wrong == "of-the-tangent" else x)
        return ([*out],) if name == "nonzero" else (out,)
    straight = name in LINEAR or wrong == "as-if-linear"
    tangent = call(x_dot) if straight else slope(name, x, x_dot, **given)
    if wrong == "tangent-lost":
        tangent = np.zeros_like(tangent)
    return call(x), np.asarray(tangent)[()]


def flag_of(name: str) -> str:
    """Return the mistake that a method's case is about."""
    if name in PLAIN:
        return "of-the-tangent"
    return "tangent-lost" if name in LINEAR else "as-if-linear"


NAMES = sorted(LINEAR + CURVED + PLAIN)
METHODS: dict[str, Callable[..., Any]] = {f"Dual.{n}": partial(method, name=n) for n in NAMES}
WRONG: dict[str, Callable[..., Any]] = {
    f"Dual.{n}/{flag_of(n)}": partial(method, name=n, wrong=flag_of(n)) for n in NAMES
}
