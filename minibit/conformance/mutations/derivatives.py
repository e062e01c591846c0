"""Wrong variants of reverse mode, of forward gradients, and of functions with given slopes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["DERIVATIVES"]


class Recorded:
    """A value whose sums and products are remembered, for a reverse mode that may be wrong."""

    def __init__(self, value: Any, sources: tuple[tuple[Recorded, Any], ...] = ()) -> None:
        self.value, self.sources = np.asarray(value, float), sources
        self.order: int = 1 + max((source.order for source, _ in sources), default=0)

    def __add__(self, other: Any) -> Recorded:
        """Add."""
        return Recorded(self.value + other.value, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other: Any) -> Recorded:
        """Multiply."""
        return Recorded(self.value * other.value, ((self, other.value), (other, self.value)))


def _carried_back(out: Recorded, cotangent: Any, wrong: str) -> dict[int, Any]:
    """Carry a cotangent to all that was recorded, by the object's identity."""
    slopes, waiting = {id(out): cotangent}, {id(out): out}
    while waiting:
        node = waiting.pop(max(waiting, key=lambda key: waiting[key].order))
        for source, slope in node.sources:
            c = slopes[id(node)] * slope
            if wrong != "broadcast-not-summed":
                c = c.sum(axis=tuple(range(c.ndim - source.value.ndim)))
                short = [n == 1 < m for n, m in zip(source.value.shape, c.shape, strict=True)]
                c = c.sum(axis=tuple(np.flatnonzero(short)), keepdims=True)
            before = 0 if wrong == "last-use-only" else slopes.get(id(source), 0)
            slopes[id(source)] = before + c
            waiting[id(source)] = source
    return slopes


def _recorded(wrong: str) -> Callable[..., Any]:
    """Return a reverse mode of sums and products that is wrong in one way."""

    def vjp(fn: Any, primals: Any, cotangent: Any) -> Any:
        """Record, and carry back."""
        nodes = [Recorded(primal) for primal in primals]
        out = fn(*nodes)
        slopes = _carried_back(out, cotangent, wrong)
        return (out.value, *(slopes.get(id(node), 0 * node.value) for node in nodes))

    return vjp


def _changed(change: Callable[..., Any]) -> Callable[..., Any]:
    """Return a reverse mode whose gradients are changed afterwards."""

    def vjp(fn: Any, primals: Any, cotangent: Any) -> Any:
        """Carry back, and change."""
        from minibit import tape

        out, pullback = tape.vjp(fn, primals)
        return (out, *change(pullback, cotangent))

    return vjp


def _forward(fn: Any, primals: Any, cotangent: Any) -> Any:
    """Push the cotangent forwards."""
    from minibit import dual

    return dual.jvp(fn, primals, (cotangent,) * len(primals))


def _estimate(wrong: str) -> Callable[..., Any]:
    """Return an estimate of the gradient that is wrong in one way."""

    def forward_gradient(fn: Any, params: Any, directions: Any) -> Any:
        """Differentiate along each direction."""
        from minibit import dual

        value, pieces = fn(params), []
        for v in directions:
            if wrong == "directions-normalised":
                v = v / np.sqrt((v * v).sum())
            slope = dual.jvp(fn, (params,), (v,))[1]
            if wrong == "entry-by-entry":
                slope = dual.jacfwd(fn)(params) * v
            pieces.append((np.sign(slope) if wrong == "sign-of-the-slope" else slope) * v)
        total = pieces[0] if wrong == "first-direction-only" else np.sum(pieces, axis=0)
        whole = wrong in ("summed", "first-direction-only")
        return value, total / (
            1 if whole else params.size if wrong == "over-entries" else len(pieces)
        )

    return forward_gradient


def _jacobian(change: Callable[..., Any]) -> Callable[..., Any]:
    """Return a Jacobian whose axes are changed."""

    def jacfwd(fn: Any, x: Any) -> Any:
        """Differentiate, and change."""
        from minibit import dual

        return change(dual.jacfwd(fn)(x), np.ndim(fn(x)))

    return jacfwd


def _by_itself(fn: Any) -> Any:
    """Leave the derivative of a function to the function."""
    return fn


class _RuleLess:
    """A function that takes a rule of derivatives, and forgets it."""

    def __init__(self, fn: Any) -> None:
        self.fn = fn

    def defjvp(self, rule: Any) -> None:
        """Forget."""

    def __call__(self, *args: Any) -> Any:
        """Call."""
        return self.fn(*args)


DERIVATIVES: dict[str, Callable[..., Any]] = {
    "vjp/last-use-only": _recorded("last-use-only"),
    "vjp/broadcast-not-summed": _recorded("broadcast-not-summed"),
    "vjp/pushed-forwards": _forward,
    "vjp/cotangent-of-ones": _changed(lambda back, c: back(np.ones_like(c))),
    "vjp/gradients-exchanged": _changed(lambda back, c: back(c)[::-1]),
    "vjp/ties-in-full": _changed(lambda back, c: [np.where(g != 0, c, 0.0) for g in back(c)]),
    "vjp/unused-is-left-out": _changed(lambda back, c: [g for g in back(c) if np.any(g)]),
    **{
        f"forward_gradient/{wrong}": _estimate(wrong)
        for wrong in (
            *("summed", "directions-normalised", "entry-by-entry", "first-direction-only"),
            *("over-entries", "sign-of-the-slope"),
        )
    },
    "jacfwd/inputs-first": _jacobian(
        lambda j, axes: np.moveaxis(j, range(axes), range(-axes, 0)).copy()
    ),
    "jacfwd/inputs-flattened": _jacobian(lambda j, axes: j.reshape(*j.shape[:axes], -1)),
    "stop_gradient/passes": lambda tree: tree,
    "straight_through/slope-of-the-function": _by_itself,
    "straight_through/identity": lambda fn: lambda x: x,
    "custom_jvp/rule-forgotten": _RuleLess,
    "custom_jvp/no-rule-needed": _RuleLess,
}
