"""One table of cases for every rule: what is called, on what.

Each function takes the namespace first (``np``, or ``jax.numpy`` in the peer tests) and then the
arrays that carry tangents. Points stay clear of kinks; kinks have their own table in `test_rules`.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

MASK = np.array([[True, False, True, True], [False, True, False, True], [True, True, False, False]])


@dataclass(frozen=True)
class Case:
    """A call whose derivative is checked."""

    name: str
    rule: Any  # key of the table
    call: Callable[..., Any]
    args: tuple[np.ndarray, ...]
    analytic: bool  # extends to complex numbers, so the complex step applies
    peer: bool  # jax.numpy has it, with the same meaning
    exact: bool  # the value equals NumPy's to the bit


CASES: list[Case] = []


def array(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    """Draw distinct entries, none of them near 0 or near a half-integer."""
    n = int(np.prod(shape))
    rng = np.random.default_rng([n, len(CASES)])
    even = (np.arange(n) + 0.25 + 0.5 * rng.random(n)) / max(n, 1)
    return rng.permutation(low + (high - low) * even).reshape(shape)


def case(
    rule: Any,
    call: Callable[..., Any],
    *args: np.ndarray,
    analytic: bool = False,
    peer: bool = True,
    exact: bool = True,
    note: str = "",
) -> None:
    """Enter a case."""
    key = rule if isinstance(rule, tuple) else (rule,)
    name = ".".join(getattr(part, "__name__", str(part)) for part in key)
    CASES.append(Case(f"{name} {note}".strip(), rule, call, args, analytic, peer, exact))


X34 = (3, 4)
positive = {"low": 0.3, "high": 3.0}
inside = {"low": -0.9, "high": 0.9}

# Functions of one number.
for f in (np.square, np.exp, np.exp2, np.expm1, np.sin, np.cos, np.sinh, np.cosh, np.tanh):
    case(f, lambda xp, x, f=f: getattr(xp, f.__name__)(x), array(*X34), analytic=True)
for f in (np.sqrt, np.reciprocal, np.log, np.log2, np.log10, np.log1p):
    case(f, lambda xp, x, f=f: getattr(xp, f.__name__)(x), array(*X34, **positive), analytic=True)
for f in (np.tan, np.arcsin, np.arccos, np.arctan, np.arcsinh, np.arctanh):
    case(f, lambda xp, x, f=f: getattr(xp, f.__name__)(x), array(*X34, **inside), analytic=True)
case(np.arccosh, lambda xp, x: xp.arccosh(x), array(*X34, low=1.2, high=3.0), analytic=True)
for f in (np.radians, np.deg2rad, np.degrees, np.rad2deg, np.absolute, np.fabs, np.cbrt):
    case(f, lambda xp, x, f=f: getattr(xp, f.__name__)(x), array(*X34))
case(np.positive, lambda xp, x: +x, array(*X34), analytic=True)
case(np.conjugate, lambda xp, x: x.conj(), array(*X34))
case(np.negative, lambda xp, x: -x, array(*X34), analytic=True)
case(np.nan_to_num, lambda xp, x: xp.nan_to_num(x) * x, array(*X34))
case(np.modf, lambda xp, x: xp.modf(x), array(*X34))

# Functions of two, with broadcasting both ways and plain operands on either side.
BOTH = (array(*X34, **positive), array(*X34, low=0.4, high=2.0))
LOWER = (array(4, **positive), array(2, 3, 4, low=0.4, high=2.0))
UNIT = (array(3, 1, **positive), array(1, 4, low=0.4, high=2.0))
for f in (np.add, np.subtract, np.multiply, np.true_divide, np.power, np.float_power):
    for args, note in ((BOTH, ""), (LOWER, "of lower rank"), (UNIT, "of unit axes")):
        case(
            f,
            lambda xp, x, y, f=f: getattr(xp, f.__name__)(x, y),
            *args,
            analytic=True,
            exact=f is not np.float_power,
            note=note,
        )
case(np.add, lambda xp, x: 1.5 + x + np.arange(4.0) + x, array(3, 1), analytic=True, note="plain")
case(
    np.subtract,
    lambda xp, x: 1.5 - (x - np.ones((2, 1, 1))),
    array(*X34),
    analytic=True,
    note="plain",
)
case(
    np.multiply,
    lambda xp, x: np.full((2, 3, 4), 3.0) * x * 2,
    array(*X34),
    analytic=True,
    note="plain",
)
case(
    np.true_divide,
    lambda xp, x: (x / 3) / np.arange(1.0, 5),
    array(3, 1),
    analytic=True,
    note="plain",
)
case(np.true_divide, lambda xp, x: 2 / x, array(*X34, **positive), analytic=True, note="of a plain")
case(np.power, lambda xp, x: x**2 + x**3 - x**1 + x**0, array(*X34), analytic=True, note="integer")
case(np.power, lambda xp, x: x**-1.5 + x**0.5, array(*X34, **positive), analytic=True, note="root")
case(np.power, lambda xp, x: 2.0**x, array(*X34), analytic=True, note="of a plain")
for f in (
    np.remainder, np.fmod, np.arctan2, np.hypot, np.logaddexp, np.logaddexp2,
    np.maximum, np.minimum, np.fmax, np.fmin,
):  # fmt: skip
    for args, note in ((BOTH, ""), (LOWER, "of lower rank"), (UNIT, "of unit axes")):
        case(f, lambda xp, x, y, f=f: getattr(xp, f.__name__)(x, y), *args, note=note)
case(np.copysign, lambda xp, x, y: xp.copysign(x, y) * 1.5, array(*X34), array(4))
case(np.divmod, lambda xp, x, y: xp.divmod(x, y), *BOTH)
case(np.maximum, lambda xp, x: xp.maximum(x, 0), array(*X34), note="relu")
case(np.minimum, lambda xp, x: xp.minimum(0.5, x), array(*X34), note="plain")
case(np.where, lambda xp, x, y: xp.where(MASK, x, y), array(*X34), array(4), analytic=True)
case(np.where, lambda xp, x: xp.where(MASK, x, 0.0), array(4), analytic=True, note="and a number")
case(np.where, lambda xp, x: xp.where(MASK[0], 1.0, x), array(3, 1), analytic=True, note="wide")
case(np.clip, lambda xp, x: xp.clip(x, -1, 1), array(*X34))
case(
    np.clip,
    lambda xp, x, lo, hi: xp.clip(x, lo, hi),
    array(*X34),
    array(4, low=-1, high=0),
    array(3, 1, low=0.1, high=1),
    note="moving bounds",
)
case(np.clip, lambda xp, x: x.clip(max=1.0) * x.clip(min=-0.5), array(*X34), note="one side")
case(
    np.select,
    lambda xp, x, y: xp.select([x > 1, x > 0], [x * x, y], y * y),
    array(*X34),
    array(*X34),
    analytic=False,
)

# Reductions, over every kind of axis.
AXES = (None, 0, -1, (0, 2), (-1, -3))
for f in (np.sum, np.mean, np.max, np.min, np.amax, np.amin, np.prod, np.var, np.std, np.ptp):
    for axis in AXES:
        for keepdims in (False, True):
            case(
                f,
                lambda xp, x, f=f, axis=axis, keepdims=keepdims: getattr(xp, f.__name__)(
                    x, axis=axis, keepdims=keepdims
                ),
                array(2, 3, 4),
                analytic=f in (np.sum, np.mean, np.prod),
                peer=f not in (np.amax, np.amin),
                note=f"over {axis}{', kept' if keepdims else ''}",
            )
case(np.sum, lambda xp, x: x.sum(1, dtype=np.float64), array(*X34), note="in float64")
case(np.mean, lambda xp, x: x.mean(dtype=np.float64), array(*X34), note="in float64")
zeros = array(*X34)
zeros[0, 1] = zeros[1, 0] = zeros[1, 2] = 0  # a row with one zero, a row with two
for f in (np.prod, np.cumprod):
    case(
        f,
        lambda xp, x, f=f: getattr(xp, f.__name__)(x, axis=1),
        zeros,
        analytic=True,
        note="through zeros",
    )
case(np.var, lambda xp, x: xp.var(x, axis=1, ddof=1), array(*X34), note="ddof")
case(np.std, lambda xp, x: xp.std(x, axis=(0, 1), ddof=1), array(*X34), note="ddof")
for f in (np.nansum, np.nanmean):
    case(
        f,
        lambda xp, x, f=f: getattr(xp, f.__name__)(xp.where(MASK, x, np.nan), axis=1),
        array(*X34),
    )
case(
    np.average,
    lambda xp, x, w: xp.average(x, axis=1, weights=w),
    array(*X34),
    array(*X34, **positive),
    analytic=True,
)
case(np.average, lambda xp, x: xp.average(x, axis=0), array(*X34), analytic=True, note="plain")
case(
    np.heaviside,
    lambda xp, x, h: xp.heaviside(x * xp.array([1.0, 0.0, -1.0, 0.0]), h),
    array(*X34),
    array(4),
)
case(np.median, lambda xp, x: xp.median(x, axis=1), array(*X34), note="even")
case(np.median, lambda xp, x: xp.median(x, axis=0, keepdims=True), array(*X34), note="odd")
case(np.median, lambda xp, x: xp.median(x), array(*X34), note="of all")
for axis in (None, 0, -1):
    for f in (np.cumsum, np.cumprod):
        case(
            f,
            lambda xp, x, f=f, axis=axis: getattr(xp, f.__name__)(x, axis=axis),
            array(2, 3, 4),
            analytic=True,
            note=f"over {axis}",
        )
for axis in (0, 1, -1):
    case(
        (np.logaddexp, "reduce"),
        lambda xp, x, axis=axis: xp.logaddexp.reduce(x, axis=axis),
        array(2, 3, 4),
        note=f"over {axis}",
    )
    case(
        (np.add, "reduce"),
        lambda xp, x, axis=axis: xp.add.reduce(x, axis=axis),
        array(2, 3, 4),
        analytic=True,
        note=f"over {axis}",
    )
    case(
        (np.multiply, "reduce"),
        lambda xp, x, axis=axis: xp.multiply.reduce(x, axis=axis),
        array(2, 3, 4),
        analytic=True,
        note=f"over {axis}",
    )
    case(
        (np.maximum, "reduce"),
        lambda xp, x, axis=axis: xp.maximum.reduce(x, axis=axis),
        array(2, 3, 4),
        note=f"over {axis}",
    )
    case(
        (np.minimum, "reduce"),
        lambda xp, x, axis=axis: xp.minimum.reduce(x, axis=axis),
        array(2, 3, 4),
        note=f"over {axis}",
    )
    case(
        (np.add, "accumulate"),
        lambda xp, x, axis=axis: xp.add.accumulate(x, axis),
        array(2, 3, 4),
        analytic=True,
        note=f"over {axis}",
    )
    case(
        (np.multiply, "accumulate"),
        lambda xp, x, axis=axis: xp.multiply.accumulate(x, axis),
        array(2, 3, 4),
        analytic=True,
        note=f"over {axis}",
    )
    case(
        (np.maximum, "accumulate"),
        lambda xp, x, axis=axis: xp.maximum.accumulate(x, axis),
        array(2, 3, 4),
        note=f"over {axis}",
    )
    case(
        (np.minimum, "accumulate"),
        lambda xp, x, axis=axis: xp.minimum.accumulate(x, axis),
        array(2, 3, 4),
        note=f"over {axis}",
    )
case(
    np.multiply,
    lambda xp, x, y: xp.multiply.outer(x, y),
    array(2),
    array(3, 2),
    analytic=True,
    note="outer",
)
case(np.diff, lambda xp, x: xp.diff(x, n=2, axis=0), array(4, 3), analytic=True)

# Norms.
for axis in (None, 0, -1, (0, 1)):
    case(
        np.linalg.norm,
        lambda xp, x, axis=axis: xp.linalg.norm(x, axis=axis),
        array(*X34),
        exact=axis is not None,
        note=f"over {axis}",
    )
case(
    np.linalg.norm,
    lambda xp, x: xp.linalg.norm(x),
    array(2, 3, 4),
    exact=False,
    note="of three axes",
)
case(np.linalg.norm, lambda xp, x: xp.linalg.norm(x, "fro"), array(*X34), exact=False, note="fro")
case(np.linalg.norm, lambda xp, x: xp.linalg.norm(x), array(4), exact=False, note="of a vector")
for ord in (1, 2, 3, 0.5, np.inf, -np.inf):
    case(
        np.linalg.norm,
        lambda xp, x, ord=ord: xp.linalg.norm(x, ord, axis=1, keepdims=True),
        array(*X34),
        note=f"ord {ord}",
    )

# Products of matrices: every rank.
for left, right in (
    ((3, 4), (4, 2)),
    ((4,), (4,)),
    ((4,), (4, 2)),
    ((3, 4), (4,)),
    ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)),
    ((4,), (2, 4, 5)),
    ((2, 3, 4), (4,)),
    ((5, 1, 3, 4), (2, 4, 3)),
):
    case(
        np.matmul,
        lambda xp, x, y: x @ y,
        array(*left),
        array(*right),
        analytic=True,
        note=f"{left} @ {right}",
    )
for left, right in (
    ((), (4,)),
    ((4,), (4,)),
    ((3, 4), (4,)),
    ((4,), (4, 3)),
    ((3, 4), (4, 2)),
    ((2, 3, 4), (4,)),
    ((2, 3, 4), (5, 4, 2)),
    ((4,), (5, 4, 2)),
):
    case(
        np.dot,
        lambda xp, x, y: xp.dot(x, y),
        array(*left),
        array(*right),
        analytic=True,
        note=f"{left} {right}",
        exact=False,
    )
for left, right in (((), (4,)), ((4,), (4,)), ((3, 4), (5, 4)), ((2, 3, 4), (4,))):
    case(
        np.inner,
        lambda xp, x, y: xp.inner(x, y),
        array(*left),
        array(*right),
        analytic=True,
        note=f"{left} {right}",
        exact=False,
    )
for axes in (0, 1, ((1,), (0,)), ((0, -1), (1, 0)), (1, 0)):
    shapes = ((3, 4), (4, 3))
    case(
        np.tensordot,
        lambda xp, x, y, axes=axes: xp.tensordot(x, y, axes=axes),
        array(*shapes[0]),
        array(*shapes[1]),
        analytic=True,
        note=f"axes {axes}",
        exact=False,
    )
case(
    np.tensordot,
    lambda xp, x, y: xp.tensordot(x, y),
    array(2, 3, 4),
    array(3, 4, 5),
    analytic=True,
    exact=False,
)
case(np.outer, lambda xp, x, y: xp.outer(x, y), array(3, 2), array(4), analytic=True)
case(np.vdot, lambda xp, x, y: xp.vdot(x, y), array(3, 2), array(3, 2), exact=False)
case(np.vecdot, lambda xp, x, y: xp.vecdot(x, y), array(3, 4), array(4), exact=False)
case(
    np.linalg.vecdot,
    lambda xp, x, y: xp.linalg.vecdot(x, y, axis=-1),
    array(3, 4),
    array(3, 4),
    exact=False,
)
case(np.kron, lambda xp, x, y: xp.kron(x, y), array(3, 2), array(2, 2), analytic=True)
case(
    np.kron,
    lambda xp, x, y: xp.kron(x, y),
    array(3),
    array(2, 2),
    analytic=True,
    note="of lower rank",
)
for subscripts, *shapes in (
    ("ij,jk->ik", (3, 4), (4, 2)),
    ("ij,jk", (3, 4), (4, 2)),
    ("bij , bkj -> bik", (2, 3, 4), (2, 5, 4)),
    ("...ij,...jk->...ik", (2, 3, 4), (4, 5)),
    ("...i,i", (2, 3, 4), (4,)),
    ("i,i,i->", (4,), (4,), (4,)),
    ("ij->ji", (3, 4)),
    ("ii->i", (3, 3)),
    ("ii", (3, 3)),
    ("ba", (3, 4)),
    ("i,j->ij", (3,), (2,)),
    ("ij,ij->i", (3, 4), (3, 4)),
):
    case(
        np.einsum,
        lambda xp, *xs, subscripts=subscripts: xp.einsum(subscripts, *xs),
        *(array(*s) for s in shapes),
        analytic=True,
        note=subscripts,
    )
case(
    np.einsum,
    lambda xp, x, y, z: xp.einsum("ij,jk,kl->il", x, y, z, optimize=True),
    array(3, 4),
    array(4, 2),
    array(2, 5),
    analytic=True,
    note="optimize",
)
square_ = np.eye(3) * 3 + array(3, 3) / 2
case(
    np.linalg.inv, lambda xp, a: xp.linalg.inv(a), np.stack([square_, square_.T + 1]), analytic=True
)
case(
    np.linalg.det, lambda xp, a: xp.linalg.det(a), np.stack([square_, square_.T + 1]), analytic=True
)
case(np.linalg.solve, lambda xp, a, b: xp.linalg.solve(a, b), square_, array(3), analytic=True)
case(
    np.linalg.solve,
    lambda xp, a, b: xp.linalg.solve(a, b),
    np.stack([square_, square_ + 1]),
    array(3, 2),
    analytic=True,
    note="stacked",
)
case(np.trace, lambda xp, x: xp.trace(x, 1), array(*X34), analytic=True)

# What moves entries about.
getitem = operator.getitem
PLACES = np.array([[2, 0], [1, 1]])
for note, index in {
    "integer": 1,
    "from the end": -1,
    "slice": slice(1, None),
    "steps back": slice(None, None, -2),
    "two": (1, slice(None, 2)),
    "ellipsis": (..., 1),
    "new axis": (slice(None), None, 1),
    "all integers": (1, 2, 3),
    "fancy": PLACES - 1,
    "fancy pair": (np.array([1, 0]), np.array([2, 1])),
    "fancy apart": (np.array([1, 0, 0]), slice(None), np.array([2, 1, 3])),
    "fancy after a slice": (slice(None), PLACES),
    "fancy last": (..., PLACES),
    "fancy and integer": (0, slice(None), np.array([1, 3])),
    "fancy, new axis": (None, slice(1), None, PLACES),
    "mask": array(2, 3, 4) > 0,
    "mask of rows": np.array([True, False]),
    "mask within": (slice(None), MASK),
    "mask and ellipsis": (..., np.array([True, False, True, True])),
    "list": [1, 0, 1],
    "ellipsis between": (np.array([1, 0]), ..., np.array([2, 2])),
}.items():
    case(
        getitem,
        # jax takes no lists as an index
        lambda xp, x, index=index: x[np.asarray(index) if isinstance(index, list) else index],
        array(2, 3, 4),
        analytic=True,
        note=note,
    )
case(np.reshape, lambda xp, x: x.reshape(2, -1), array(*X34), analytic=True)
case(np.reshape, lambda xp, x: xp.reshape(x, (4, 1, 3)), array(*X34), analytic=True, note="tuple")
case(np.ravel, lambda xp, x: x.ravel() * xp.ravel(x), array(*X34), analytic=True)
case(np.transpose, lambda xp, x: x.T, array(2, 3, 4), analytic=True)
case(np.transpose, lambda xp, x: x.transpose(1, -1, 0), array(2, 3, 4), analytic=True, note="axes")
case(np.swapaxes, lambda xp, x: xp.swapaxes(x, 0, -1), array(2, 3, 4), analytic=True)
case(np.swapaxes, lambda xp, x: x.mT, array(2, 3, 4), analytic=True, note="mT")
case(np.matrix_transpose, lambda xp, x: xp.matrix_transpose(x), array(2, 3, 4), analytic=True)
case(
    np.linalg.matrix_transpose,
    lambda xp, x: xp.linalg.matrix_transpose(x),
    array(2, 3, 4),
    analytic=True,
)
case(np.moveaxis, lambda xp, x: xp.moveaxis(x, 0, -1), array(2, 3, 4), analytic=True)
case(
    np.moveaxis,
    lambda xp, x: xp.moveaxis(x, (0, 2), (2, 0)),
    array(2, 3, 4),
    analytic=True,
    note="two",
)
case(np.expand_dims, lambda xp, x: xp.expand_dims(x, (0, -1)), array(*X34), analytic=True)
case(np.expand_dims, lambda xp, x: xp.expand_dims(x, 1), array(*X34), analytic=True, note="one")
case(np.squeeze, lambda xp, x: xp.squeeze(x), array(1, 3, 1), analytic=True)
case(np.squeeze, lambda xp, x: x.squeeze(-1), array(1, 3, 1), analytic=True, note="one axis")
case(np.broadcast_to, lambda xp, x: xp.broadcast_to(x, (2, 3, 4)) * 2.0, array(3, 1), analytic=True)
case(
    np.broadcast_arrays,
    lambda xp, x, y: list(xp.broadcast_arrays(x, y)),
    array(3, 1),
    array(4),
    analytic=True,
)
case(np.atleast_1d, lambda xp, x: xp.atleast_1d(x), array(), analytic=True)
case(np.atleast_2d, lambda xp, x: xp.atleast_2d(x), array(3), analytic=True)
case(np.meshgrid, lambda xp, x, y: list(xp.meshgrid(x, y)), array(3), array(2), analytic=True)
case(
    np.meshgrid,
    lambda xp, x, y: list(xp.meshgrid(x, y, indexing="ij")),
    array(3),
    array(2),
    analytic=True,
    note="ij",
)
case(
    np.concatenate,
    lambda xp, x, y: xp.concatenate([x, np.ones((1, 4)), y]),
    array(*X34),
    array(2, 4),
    analytic=True,
)
case(
    np.concatenate,
    lambda xp, x, y: xp.concatenate((x, y), axis=-1),
    array(*X34),
    array(3, 1),
    analytic=True,
    note="last axis",
)
case(
    np.concatenate,
    lambda xp, x, y: xp.concatenate((x, y), axis=None),
    array(*X34),
    array(3),
    analytic=True,
    note="flat",
)
case(np.stack, lambda xp, x, y: xp.stack([x, y], axis=-1), array(*X34), array(*X34), analytic=True)
case(
    np.stack, lambda xp, x: xp.stack([x, np.ones(4)]), array(4), analytic=True, note="with a plain"
)
case(np.vstack, lambda xp, x, y: xp.vstack([x, y]), array(4), array(2, 4), analytic=True)
case(np.hstack, lambda xp, x, y: xp.hstack([x, y]), array(4), array(2), analytic=True)
case(
    np.hstack,
    lambda xp, x, y: xp.hstack([x, y]),
    array(2, 4),
    array(2, 1),
    analytic=True,
    note="of matrices",
)
case(
    np.column_stack, lambda xp, x, y: xp.column_stack([x, y]), array(4), array(4, 2), analytic=True
)
case(np.append, lambda xp, x, y: xp.append(x, y), array(4), array(2, 2), analytic=True)
case(np.split, lambda xp, x: xp.split(x, 2, axis=1), array(*X34), analytic=True)
case(np.split, lambda xp, x: xp.split(x, [1, 1, 3], axis=-1), array(*X34), analytic=True, note="at")
case(np.array_split, lambda xp, x: xp.array_split(x, 2), array(*X34), analytic=True)
case(np.hsplit, lambda xp, x: xp.hsplit(x, 2), array(*X34), analytic=True)
case(np.vsplit, lambda xp, x: xp.vsplit(x, 3), array(*X34), analytic=True)
case(np.take, lambda xp, x: xp.take(x, np.array([5, 0])), array(*X34), analytic=True)
case(np.take, lambda xp, x: xp.take(x, PLACES, axis=1), array(*X34), analytic=True, note="axis")
case(np.take, lambda xp, x: x.take(1, axis=-1), array(*X34), analytic=True, note="one")
case(
    np.take_along_axis,
    lambda xp, x: xp.take_along_axis(x, np.array([[3], [0], [1]]), axis=1),
    array(*X34),
    analytic=True,
)
case(
    np.take_along_axis,
    lambda xp, x: xp.take_along_axis(x, np.array([[[2, 0, 1, 1]]]), axis=-2),
    array(2, 3, 4),
    analytic=True,
    note="broadcast",
)
case(
    np.take_along_axis,
    lambda xp, x: xp.take_along_axis(x, np.array([3, 0]), axis=None),
    array(*X34),
    analytic=True,
    note="flat",
)
case(
    np.compress,
    lambda xp, x: xp.compress(np.array([True, False, True]), x, axis=0),
    array(*X34),
    analytic=True,
)
case(np.extract, lambda xp, x: xp.extract(MASK, x), array(*X34), analytic=True)
case(np.delete, lambda xp, x: xp.delete(x, 1, axis=-1), array(*X34), analytic=True)
case(np.repeat, lambda xp, x: xp.repeat(x, 2), array(*X34), analytic=True)
case(
    np.repeat,
    lambda xp, x: x.repeat(np.array([2, 0, 1]), axis=0),
    array(*X34),
    analytic=True,
    note="each",
)
case(np.tile, lambda xp, x: xp.tile(x, (2, 1, 3)), array(*X34), analytic=True)
case(np.tile, lambda xp, x: xp.tile(x, 2), array(*X34), analytic=True, note="one")
case(np.flip, lambda xp, x: xp.flip(x), array(*X34), analytic=True)
case(np.flip, lambda xp, x: xp.flip(x, axis=-1), array(*X34), analytic=True, note="axis")
case(np.fliplr, lambda xp, x: xp.fliplr(x), array(*X34), analytic=True)
case(np.flipud, lambda xp, x: xp.flipud(x), array(*X34), analytic=True)
case(np.roll, lambda xp, x: xp.roll(x, 5), array(*X34), analytic=True)
case(
    np.roll, lambda xp, x: xp.roll(x, (1, -1), axis=(0, 1)), array(*X34), analytic=True, note="axes"
)
for mode in ("constant", "edge", "reflect", "symmetric", "wrap"):
    case(
        np.pad,
        lambda xp, x, mode=mode: xp.pad(x, ((1, 2), (0, 3)), mode),
        array(*X34),
        analytic=True,
        note=mode,
    )
case(
    np.pad,
    lambda xp, x: xp.pad(x, 2, constant_values=7.0),
    array(*X34),
    analytic=True,
    note="one width",
)
case(np.sort, lambda xp, x: xp.sort(x), array(*X34))
case(np.sort, lambda xp, x: xp.sort(x, axis=0), array(*X34), note="axis")
case(np.sort, lambda xp, x: xp.sort(x, axis=None), array(*X34), note="flat")
case(np.partition, lambda xp, x: xp.partition(x, 2, axis=1)[:, 2], array(*X34))
case(np.diagonal, lambda xp, x: xp.diagonal(x, 1), array(*X34), analytic=True)
case(
    np.diagonal,
    lambda xp, x: x.diagonal(-1, 0, 2),
    array(4, 2, 3),
    analytic=True,
    note="of a stack",
)
case(np.diag, lambda xp, x: xp.diag(x), array(3), analytic=True)
case(np.diag, lambda xp, x: xp.diag(x, -1), array(3), analytic=True, note="below")
case(np.diag, lambda xp, x: xp.diag(x, 1), array(*X34), analytic=True, note="of a matrix")
case(np.tril, lambda xp, x: xp.tril(x), array(2, 3, 4), analytic=True)
case(np.triu, lambda xp, x: xp.triu(x, 1), array(*X34), analytic=True)
case(np.ndarray.astype, lambda xp, x: x.astype(np.float64) * 2.0, array(*X34))
if hasattr(np, "astype"):  # from NumPy 2.1 on
    case(np.astype, lambda xp, x: xp.astype(x, np.float64), array(*X34))
case(np.copy, lambda xp, x: xp.copy(x) * x.copy(), array(*X34), analytic=True)
case(np.full_like, lambda xp, x: xp.full_like(x * np.ones((2, 3)), x) * x, array())
