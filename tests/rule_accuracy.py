"""How near each rule comes to the derivative in higher precision, over the exponents of a type.

    error = |slope - true slope| / ulp(true slope)

Functions of one and of two numbers are compared with their textbook slopes in mpmath, at numbers of
every exponent and close to the ends of their domain. All other rules are compared, by the calls of
`rule_cases` with their arrays scaled by powers of two, with a difference quotient of the same call
on arrays of mpmath's numbers.

Run this file to print the worst case of every rule.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from mpmath import mp, mpf

from minibit.dual import jacfwd, jvp
from minibit.dual.rules import RULES
from minibit.tape import vjp
from rule_cases import CASES, Case

TYPES = (np.float16, np.float32, np.float64)
INF = np.inf
DIGITS = 120


class Point(NamedTuple):
    """One slope, compared."""

    error: float  # in ulp
    bound: float  # 8, or more where an argument or the value is subnormal
    where: str


# Functions of one number: their slope, on the open interval of their domain.

ONE: dict[Any, tuple[Callable[..., Any], Callable[[Any], Any], float, float]] = {}


def one(low: float, high: float, **slopes: Callable[[Any], Any]) -> None:
    """Enter functions of NumPy by name."""
    for name, slope in slopes.items():
        ONE[getattr(np, name)] = getattr(np, name), slope, low, high


one(-INF, INF, absolute=mp.sign, fabs=mp.sign, square=lambda x: 2 * x)
one(0, INF, sqrt=lambda x: 1 / mp.sqrt(4 * x), log=lambda x: 1 / x)
one(0, INF, log2=lambda x: 1 / (x * mp.ln(2)), log10=lambda x: 1 / (x * mp.ln(10)))
one(-INF, INF, cbrt=lambda x: 1 / (3 * mp.cbrt(x * x)), reciprocal=lambda x: -1 / x**2)
one(-INF, INF, exp=mp.exp, expm1=mp.exp, exp2=lambda x: mp.ln(2) * 2**x)
one(-INF, INF, sin=mp.cos, cos=lambda x: -mp.sin(x), tan=lambda x: mp.sec(x) ** 2)
one(-INF, INF, sinh=mp.cosh, cosh=mp.sinh, tanh=lambda x: mp.sech(x) ** 2)
one(-INF, INF, arctan=lambda x: 1 / (1 + x**2), arcsinh=lambda x: 1 / mp.sqrt(1 + x**2))
one(-1, 1, arcsin=lambda x: 1 / mp.sqrt(1 - x**2), arccos=lambda x: -1 / mp.sqrt(1 - x**2))
one(-1, 1, arctanh=lambda x: 1 / (1 - x**2))
one(1, INF, arccosh=lambda x: 1 / mp.sqrt(x**2 - 1))
one(-1, INF, log1p=lambda x: 1 / (1 + x))
one(-INF, INF, positive=lambda x: 1, conjugate=lambda x: 1, negative=lambda x: -1)
one(-INF, INF, nan_to_num=lambda x: 1, copy=lambda x: 1)
one(-INF, INF, radians=lambda x: mp.pi / 180, deg2rad=lambda x: mp.pi / 180)
one(-INF, INF, degrees=lambda x: 180 / mp.pi, rad2deg=lambda x: 180 / mp.pi)
ONE[np.modf] = lambda x: np.modf(x)[0], lambda x: 1, -INF, INF
for _f in {np.ndarray.astype, getattr(np, "astype", np.ndarray.astype)}:
    ONE[_f] = lambda x: x.astype(np.float64), lambda x: 1, -INF, INF


# Functions of two numbers: their slopes in the first and in the second.

TWO: dict[Any, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {}


def two(first: Callable[..., Any], second: Callable[..., Any], *functions: Any) -> None:
    """Enter functions that have the same slopes."""
    TWO.update({f: (f, first, second) for f in functions})


def _share(t: Any) -> Any:
    if abs(t) > 1e5:  # then it is 0 or 1 to more digits than are compared
        return mpf(t < 0)
    return 1 / (1 + mp.exp(t))


two(lambda x, y: 1, lambda x, y: 1, np.add)
two(lambda x, y: 1, lambda x, y: -1, np.subtract)
two(lambda x, y: y, lambda x, y: x, np.multiply)
two(lambda x, y: 1 / y, lambda x, y: -x / y**2, np.true_divide)
two(
    lambda x, y: y * x ** (y - 1),
    lambda x, y: x**y * mp.ln(x) if x > 0 else mp.nan,
    *(np.power, np.float_power),
)
two(lambda x, y: 1, lambda x, y: -mp.floor(x / y), np.remainder)
two(lambda x, y: 1, lambda x, y: -mp.sign(x / y) * mp.floor(abs(x / y)), np.fmod)
two(lambda x, y: mp.sign(x) * mp.sign(y), lambda x, y: 0, np.copysign)
two(lambda y, x: x / (x * x + y * y), lambda y, x: -y / (x * x + y * y), np.arctan2)
two(lambda x, y: x / mp.hypot(x, y), lambda x, y: y / mp.hypot(x, y), np.hypot)
two(lambda x, y: _share(y - x), lambda x, y: _share(x - y), np.logaddexp)
two(lambda x, y: _share((y - x) * mp.ln(2)), lambda x, y: _share((x - y) * mp.ln(2)), np.logaddexp2)
two(lambda x, y: int(x > y), lambda x, y: int(y > x), np.maximum, np.fmax)
two(lambda x, y: int(x < y), lambda x, y: int(y < x), np.minimum, np.fmin)
two(lambda x, y: 0, lambda x, y: 0, np.heaviside)
TWO[np.divmod] = (lambda x, y: np.divmod(x, y)[1], *TWO[np.remainder][1:])
TWO[np.logaddexp, "reduce"] = (
    lambda x, y: np.logaddexp.reduce(np.stack([x, y])),
    *TWO[np.logaddexp][1:],
)


def _powers_of_two(dtype: Any, step: int) -> np.ndarray:
    info = np.finfo(dtype)
    return np.arange(info.minexp - info.nmant, info.maxexp, step)


def numbers(dtype: Any, low: float, high: float, step: int) -> np.ndarray:
    """Numbers of every `step`-th exponent of an interval, three each, and some near its ends."""
    exponents = _powers_of_two(dtype, step)
    between = np.random.default_rng(0).uniform(1, 2, len(exponents))
    last = np.full(len(exponents), 2 - 2 * float(np.finfo(dtype).epsneg))
    with np.errstate(over="ignore", under="ignore"):
        sizes = np.ldexp([np.ones(len(exponents)), between, last], exponents)
        x = np.concatenate([sizes, -sizes, *(end + s * sizes for end in (-1, 1) for s in (-1, 1))])
        x = x.astype(dtype)
    return np.unique(x[np.isfinite(x) & (x != 0) & (x > low) & (x < high)])


def pairs(key: Any, dtype: Any, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of numbers: of like and unlike size, close to each other, and far apart."""
    powers = key in (np.power, np.float_power)
    rng, eps = np.random.default_rng(1), float(np.finfo(dtype).eps)
    points: list[tuple[float, float]] = []
    x_all = numbers(dtype, 0 if powers else -INF, INF, step).astype(float)
    for x in x_all.tolist():
        if powers:
            steep = 1 / (float(mp.ln(x)) or 1e-3)  # x ** (t * steep) = exp(t)
            scale = float(np.log(np.finfo(dtype).max))
            ends = [t * steep * scale for t in (-0.98, -0.5, -0.1, 0.01, 0.1, 0.5, 0.98)]
            exponents = [0.3, 0.5, 1, 1.5, 2, 3, 7, 1e-3, -0.05, -0.5, -1, -2, *ends]
            points += [(x, y) for y in exponents]
            points += [(-x, y) for y in (-3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 5.0)]
        else:
            points += [(x, x * ratio) for ratio in (1.3, 0.7, -1.1, 1 - 4 * eps)]
            points += [(x, x + d) for d in (0.5, -3, 8, 15, 20, -80, -600)]
            points += [(x, y) for y in rng.choice(x_all, 6)]
    with np.errstate(over="ignore", under="ignore"):
        both = np.array(points).astype(dtype)
    both = both[np.all(np.isfinite(both) & (both != 0), axis=1) & (both[:, 0] != both[:, 1])]
    return both[:, 0], both[:, 1]


def compare(got: Any, true: Any, parts: Sequence[Any], where: str, scale: float = 0.0) -> Point:
    """Measure a slope, by the ulp of the true one, or of `scale` if that is larger.

    `parts` are the arguments and the value. A subnormal number has fewer digits, and so has a slope
    that is made of it; where a value overflows, its slope may, too.
    """
    info = np.finfo(type(got))
    scale = min(scale, float(info.max))
    where = f"{where}: {got!r}, not {mp.nstr(mpf(true), 9)}"
    if any(map(np.isnan, parts)) or not (np.isfinite(got) or all(map(np.isfinite, parts))):
        return Point(0.0, 8.0, where)
    if mp.isnan(true) or np.isnan(got):
        return Point(0.0 if mp.isnan(true) and np.isnan(got) else INF, 8.0, where)
    biggest = mpf(float(info.max))
    true = min(max(true, -2 * biggest), 2 * biggest)
    size = max(abs(true), mpf(scale))
    exponent = max(mp.frexp(size)[1] - 1, info.minexp) if size else info.minexp
    ulp = mpf(2) ** (min(exponent, info.maxexp - 1) - info.nmant)
    if np.isinf(got):
        error = 0.0 if abs(true) + 8 * ulp > biggest and got * true > 0 else INF
    else:
        true = min(max(true, -biggest), biggest)
        error = float(abs(mpf(float(got)) - true) / ulp)
    bound = 8.0
    for part in parts:
        kind = np.finfo(type(part))
        if abs(part) < kind.smallest_normal:
            share = float(kind.smallest_subnormal / abs(part)) if part else INF
            bound = max(bound, 8 * float(abs(true) / ulp) * share)
    return Point(error, bound, where)


def both_modes(f: Callable[[Any], Any], x: np.ndarray) -> tuple[Any, Any, Any]:
    """Return the values of a function of each number, and the slopes by both modes."""
    values, forward = jvp(f, (x,), (np.ones_like(x),))
    return values, forward, vjp(f, (x,))[1](np.ones_like(values))[0]


def of_one(key: Any, dtype: Any, step: int) -> Iterator[Point]:
    """Compare the slopes of a function of one number."""
    f, slope, low, high = ONE[key]
    x = numbers(dtype, low, high, step)
    with np.errstate(over="ignore"):
        _, forward, reverse = both_modes(f, x)
    for number, *slopes in zip(x, forward, reverse, strict=True):
        true = mpf(slope(mpf(float(number))))
        yield from (compare(got, true, (), f"at {number!r}") for got in slopes)


def of_two(key: Any, dtype: Any, step: int) -> Iterator[Point]:
    """Compare both slopes of a function of two numbers."""
    f, *slopes = TWO[key]
    x, y = pairs(key, dtype, step)
    for position, slope in enumerate(slopes):
        with np.errstate(over="ignore", invalid="ignore"):
            if position == 0:
                z, forward, reverse = both_modes(lambda x: f(x, y), x)
            else:
                z, forward, reverse = both_modes(lambda y: f(x, y), y)
        for a, b, value, *derivatives in zip(x, y, z, forward, reverse, strict=True):
            true = mpf(slope(mpf(float(a)), mpf(float(b))))
            where = f"in number {position} at {a!r}, {b!r}"
            yield from (compare(got, true, (a, b, value), where) for got in derivatives)


# All others: arrays of mpmath's numbers go through the same calls.


class Precise:
    """NumPy on arrays of mpmath's numbers; written out where NumPy takes no objects."""

    def __init__(self) -> None:
        self.linalg = self

    def __getattr__(self, name: str) -> Any:
        """Return NumPy's function, which does what its elements do."""
        return getattr(np, name, None) or getattr(np.linalg, name)

    def std(self, x: Any, **kwargs: Any) -> Any:
        """Root of the variance."""
        return np.frompyfunc(mp.sqrt, 1, 1)(np.var(x, **kwargs))

    def norm(self, x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
        """Root of the sum of powers; or the largest, or the least."""
        if ord in (INF, -INF):
            return (np.max if ord > 0 else np.min)(np.abs(x), axis=axis, keepdims=keepdims)
        p = mpf(2 if ord in (None, "fro") else ord)
        return np.sum(np.abs(x) ** p, axis=axis, keepdims=keepdims) ** (1 / p)

    def det(self, a: Any) -> Any:
        """Determinants of a stack."""
        sizes = np.max(np.abs(a), axis=(-2, -1))  # mpmath takes small pivots for zeros
        pairs = zip(a, sizes, strict=True)
        return np.array(
            [mp.det(mp.matrix((m / size).tolist())) * size ** len(m) for m, size in pairs]
        )

    def inv(self, a: Any) -> Any:
        """Inverses of a stack."""
        size = np.max(np.abs(a))
        return np.array([mp.inverse(mp.matrix(m.tolist())).tolist() for m in a / size]) / size

    def solve(self, a: Any, b: Any) -> Any:
        """Products with the inverses."""
        return (self.inv(a) if a.ndim > 2 else self.inv(a[None])[0]) @ b


DIFFERENCES = {np.var, np.std, np.average, np.linalg.inv, np.linalg.det, np.linalg.solve}
# where entries are subtracted, a slope has the digits of the largest one


def of_arrays(case: Case, dtype: Any, step: int) -> Iterator[Point]:
    """Compare the slopes of a call, in the direction of one entry after the other."""
    precise = np.frompyfunc(lambda x: mpf(float(x)), 1, 1)
    info = np.finfo(dtype)
    for turn, power in enumerate(range(info.minexp + 2, info.maxexp - 2, step)):
        args = tuple(np.ldexp(x, power).astype(dtype) for x in case.args)
        directions = tuple(np.zeros_like(x) for x in args)
        position = turn % len(args)
        directions[position].flat[turn // len(args) % args[position].size] = 1
        h = mpf(2) ** (power - DIGITS)
        ends = [
            [precise(x) + s * h * precise(d) for x, d in zip(args, directions, strict=True)]
            for s in (1, -1)
        ]
        ahead, behind = (_flat(case.call(Precise(), *end)) for end in ends)
        slopes, middle = (ahead - behind) / (2 * h), (ahead + behind) / 2

        def call(x: Any, args: Any = args, position: int = position) -> Any:
            return _flat(case.call(np, *args[:position], x, *args[position + 1 :]))

        with np.errstate(all="ignore"):
            values, tangents = jvp(call, (args[position],), (directions[position],))
            scale, overflows = 0.0, False
            if case.rule in DIFFERENCES or np.any(np.isnan(tangents)):
                sizes = np.abs(jacfwd(call)(args[position])).astype(float)
                overflows = not np.all(np.isfinite(sizes))
                scale = float(np.max(sizes[np.isfinite(sizes)], initial=0))
        for value, true_value, got, true in zip(values, middle, tangents, slopes, strict=True):
            lost = not np.isfinite(value) or abs(value) < info.smallest_normal
            parts = [value] if lost and true_value else []
            parts += [dtype(INF)] if overflows else []  # 0 times an infinite slope is NaN
            yield compare(got, mpf(true), parts, f"{case.name} at 2**{power}", scale)


def _flat(out: Any) -> Any:
    """Put all entries of an output in one vector."""
    return np.concatenate([np.ravel(x) for x in (out if isinstance(out, list | tuple) else [out])])


def points(key: Any, dtype: Any, step: int) -> Iterator[Point]:
    """Compare a rule at every `step`-th exponent of a type."""
    if key in ONE:
        yield from of_one(key, dtype, step)
    elif key in TWO:
        yield from of_two(key, dtype, step)
    elif not (dtype == np.float16 and key in (np.linalg.inv, np.linalg.det, np.linalg.solve)):
        for case in CASES:  # NumPy has no linear algebra in float16
            if case.rule == key and "in float64" not in case.name:
                yield from of_arrays(case, dtype, step)


def worst(key: Any, dtype: Any, step: int) -> Point:
    """Return the point that is farthest off, as measured by its bound."""
    with mp.workdps(60 if key in ONE or key in TWO else DIGITS):
        return max(
            points(key, dtype, step), key=lambda p: p.error / p.bound, default=Point(0, 8, "")
        )


def name_of(key: Any) -> str:
    """Name a key of the table."""
    parts = key if isinstance(key, tuple) else [key]
    return ".".join(getattr(part, "__name__", str(part)) for part in parts)


def main(names: list[str]) -> int:
    """Print the worst case of each rule, or of those named; return how many are too far off."""
    failures = 0
    for key in RULES:
        if names and name_of(key) not in names:
            continue
        for dtype, step in zip(TYPES, (1, 5, 37), strict=True):
            point = worst(key, dtype, step)
            failures += point.error > point.bound
            print(
                f"{name_of(key):19} {dtype.__name__} {point.error:8.3g} of {point.bound:.3g} ulp "
                f"{point.where}"
            )
    return failures


if __name__ == "__main__":
    np.seterr(over="ignore")
    sys.exit(main(sys.argv[1:]) > 0)
