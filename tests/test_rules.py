"""The rule table, stated as laws that every rule obeys; then what happens at the kinks."""

import operator
import warnings

import numpy as np
import pytest

import rule_accuracy
from minibit.dual import Dual, derivative, jacfwd, jvp, jvp_batch, stop_gradient
from minibit.dual.apply import make_dual
from minibit.dual.rules import CONSTANT, RULES
from minibit.dual.tangents import LINEAR, Tangent
from minibit.tape import grad
from rule_cases import CASES

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def flat(out):
    """Put all entries of an output in one vector."""
    parts = out if isinstance(out, list | tuple) else [out]
    return np.concatenate([np.ravel(part) for part in parts])


def function_of(case):
    """Return the case's call as a function of its arrays alone."""
    return lambda *args: case.call(np, *args)


def directions_of(case, seed=0, dtype=np.float64, count=()):
    """Draw a tangent for each of the case's arrays."""
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((*count, *x.shape)).astype(dtype) for x in case.args)


def check_tangent(case):
    """Assert that the tangent is the limit of (f(x + h v) - f(x - h v)) / 2h."""
    v, h = directions_of(case), 1e-6
    _, tangent = jvp(function_of(case), case.args, v)
    ahead = case.call(np, *(x + h * d for x, d in zip(case.args, v, strict=True)))
    behind = case.call(np, *(x - h * d for x, d in zip(case.args, v, strict=True)))
    slope = (flat(ahead) - flat(behind)) / (2 * h)
    np.testing.assert_allclose(flat(tangent), slope, rtol=1e-6, atol=1e-7)
    assert np.abs(slope).max() > 1e-3, "the case says nothing: its derivative vanishes"


def test_every_rule_has_a_case():
    """The cases name each key of the table, and nothing else."""
    assert {case.rule for case in CASES} == set(RULES)
    assert len({case.name for case in CASES}) >= 60
    assert not CONSTANT & set(RULES)


@every_case
def test_the_case_exercises_its_own_rule(case, monkeypatch):
    """Without the rule, the call fails: no case is a rule's in name only."""
    monkeypatch.delitem(RULES, case.rule)
    with pytest.raises(TypeError, match="no rule"):
        jvp(function_of(case), case.args, directions_of(case))


@every_case
def test_the_value_is_that_of_plain_numpy(case):
    """The first output is f(x): to the bit where NumPy is not re-composed, in shape and type."""
    plain = case.call(np, *case.args)
    out, tangent = jvp(function_of(case), case.args, directions_of(case))
    if case.exact:
        np.testing.assert_array_equal(flat(out), flat(plain))
    np.testing.assert_allclose(flat(out), flat(plain), rtol=1e-14, atol=1e-14)
    pairs = zip(plain, out, strict=True) if isinstance(plain, list | tuple) else [(plain, out)]
    assert all(np.shape(p) == np.shape(o) and p.dtype == o.dtype for p, o in pairs)
    tangents = tangent if isinstance(tangent, list | tuple) else [tangent]
    outs = out if isinstance(out, list | tuple) else [out]
    assert all(np.shape(t) == np.shape(o) for t, o in zip(tangents, outs, strict=True))


@every_case
def test_the_tangent_is_the_limit_of_central_differences(case):
    """J v = (f(x + h v) - f(x - h v)) / 2h up to h**2 and rounding."""
    check_tangent(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.analytic], ids=lambda case: case.name)
def test_the_tangent_is_the_imaginary_part_of_a_complex_step(case):
    """J v = Im f(x + i h v) / h, with no difference taken: right to the last digits."""
    v, h = directions_of(case), 1e-30
    _, tangent = jvp(function_of(case), case.args, v)
    stepped = case.call(np, *(x + 1j * h * d for x, d in zip(case.args, v, strict=True)))
    np.testing.assert_allclose(flat(tangent), flat(stepped).imag / h, rtol=1e-11, atol=1e-12)


@every_case
def test_the_tangent_is_linear_in_the_direction(case):
    """J (2 u - 3 v) = 2 J u - 3 J v."""
    u, v = directions_of(case, 1), directions_of(case, 2)
    mixed = tuple(2 * a - 3 * b for a, b in zip(u, v, strict=True))
    j_u, j_v, j_mixed = (flat(jvp(function_of(case), case.args, d)[1]) for d in (u, v, mixed))
    np.testing.assert_allclose(j_mixed, 2 * j_u - 3 * j_v, rtol=1e-10, atol=1e-11)


@every_case
def test_many_directions_are_a_loop_over_one(case):
    """jvp_batch(v)[d] = jvp(v[d]), whatever the axes and the broadcasting inside."""
    v = directions_of(case, count=(3,))
    out, tangents = jvp_batch(function_of(case), case.args, v)
    single = [jvp(function_of(case), case.args, tuple(t[d] for t in v)) for d in range(3)]
    np.testing.assert_array_equal(flat(out), flat(single[0][0]))
    parts = tangents if isinstance(tangents, list | tuple) else [tangents]
    for d in range(3):
        np.testing.assert_allclose(
            flat([part[d] for part in parts]), flat(single[d][1]), rtol=1e-12, atol=1e-13
        )


@every_case
def test_a_stack_of_no_directions_gives_none(case):
    """Zero directions are allowed: outputs of shape (0, *shape)."""
    out, tangents = jvp_batch(function_of(case), case.args, directions_of(case, count=(0,)))
    outs, parts = (x if isinstance(x, list | tuple) else [x] for x in (out, tangents))
    assert all(t.shape == (0, *np.shape(o)) for o, t in zip(outs, parts, strict=True))


@every_case
def test_nested_twice_gives_the_second_derivative(case):
    """The JVP of a JVP is the central difference of JVPs."""
    u, v, h = directions_of(case, 1), directions_of(case, 2), 1e-6

    def first(*args):
        return jvp(function_of(case), args, u)[1]

    _, second = jvp(first, case.args, v)
    ahead = first(*(x + h * d for x, d in zip(case.args, v, strict=True)))
    behind = first(*(x - h * d for x, d in zip(case.args, v, strict=True)))
    slope = (flat(ahead) - flat(behind)) / (2 * h)
    np.testing.assert_allclose(
        flat(second), slope, rtol=1e-5, atol=1e-6 * (1 + np.abs(slope).max())
    )


@every_case
def test_nesting_commutes_in_every_combination(case):
    """d_u d_v f = d_v d_u f, of single directions and batches, whichever is the outer."""
    u, v = directions_of(case, 1, count=(2,)), directions_of(case, 2, count=(3,))
    f = function_of(case)

    def stack(trees):
        return np.stack([flat(tree) for tree in trees])

    def wide(tree, lead):  # (*lead, entries)
        parts = tree if isinstance(tree, list | tuple) else [tree]
        return np.concatenate([np.reshape(p, (*lead, -1)) for p in parts], axis=-1)

    one_by_one = np.array(
        [
            stack(
                jvp(
                    lambda *a, i=i: jvp(f, a, tuple(t[i] for t in u))[1],
                    case.args,
                    tuple(t[j] for t in v),
                )[1]
                for j in range(3)
            )
            for i in range(2)
        ]
    )  # (2, 3, entries)
    both = jvp_batch(lambda *a: jvp_batch(f, a, u)[1], case.args, v)[1]  # (3, 2, ...)
    swapped = jvp_batch(lambda *a: jvp_batch(f, a, v)[1], case.args, u)[1]  # (2, 3, ...)
    outer = jvp_batch(lambda *a: jvp(f, a, tuple(t[1] for t in u))[1], case.args, v)[1]
    inner = jvp(lambda *a: jvp_batch(f, a, u)[1], case.args, tuple(t[2] for t in v))[1]
    close = {"rtol": 1e-9, "atol": 1e-10}
    np.testing.assert_allclose(wide(both, (3, 2)).swapaxes(0, 1), one_by_one, **close)
    np.testing.assert_allclose(wide(swapped, (2, 3)), one_by_one, **close)
    np.testing.assert_allclose(wide(outer, (3,)), one_by_one[1], **close)
    np.testing.assert_allclose(wide(inner, (2,)), one_by_one[:, 2], **close)


@every_case
def test_float32_stays_float32(case):
    """Out and tangent have the type that plain NumPy gives the output; values agree to float32."""
    small = tuple(x.astype(np.float32) for x in case.args)
    plain = case.call(np, *small)
    out, tangent = jvp(function_of(case), small, directions_of(case, dtype=np.float32))
    _, wide = jvp(function_of(case), case.args, directions_of(case))
    plains, outs, tangents = (
        x if isinstance(x, list | tuple) else [x] for x in (plain, out, tangent)
    )
    for p, o, t in zip(plains, outs, tangents, strict=True):
        assert p.dtype == o.dtype == t.dtype
    scale = np.abs(flat(wide)).max()
    np.testing.assert_allclose(flat(tangent), flat(wide), rtol=1e-4, atol=3e-5 * scale)


@pytest.mark.parametrize("case", [c for c in CASES if len(c.args) > 1], ids=lambda case: case.name)
def test_an_argument_held_constant_has_tangent_zero(case):
    """None in the place of a tangent is a tangent of zeros, in jvp and in jvp_batch."""
    v = directions_of(case, count=(2,))
    for constant in range(len(v)):
        nothing = tuple(None if i == constant else t for i, t in enumerate(v))
        zeros = tuple(t * 0 if i == constant else t for i, t in enumerate(v))
        without = jvp_batch(function_of(case), case.args, nothing)[1]
        with_zeros = jvp_batch(function_of(case), case.args, zeros)[1]
        np.testing.assert_allclose(flat(without), flat(with_zeros), rtol=1e-13, atol=1e-14)
        first = tuple(None if t is None else t[0] for t in nothing)
        single = jvp(function_of(case), case.args, first)[1]
        parts = with_zeros if isinstance(with_zeros, list | tuple) else [with_zeros]
        np.testing.assert_allclose(
            flat(single), flat([p[0] for p in parts]), rtol=1e-13, atol=1e-14
        )


class Probe(Tangent):
    """A tangent that can do the fourteen linear operations and nothing else."""

    def __init__(self, array):
        self.array = array

    shape = property(lambda self: self.array.shape)
    dtype = property(lambda self: self.array.dtype)

    def _add(self, other):
        return Probe(self.array + (other.array if isinstance(other, Probe) else other))

    def _scale(self, ufunc, primal):
        assert ufunc in (np.multiply, np.true_divide)
        assert not isinstance(primal, Tangent)
        return Probe(ufunc(self.array, primal))

    def _sum(self, axes, keepdims):
        assert all(axis >= 0 for axis in axes)
        return Probe(np.asarray(np.sum(self.array, axis=axes, keepdims=keepdims)))

    def _cumsum(self, axis):
        assert axis >= 0
        return Probe(np.cumsum(self.array, axis=axis))

    def _reshape(self, shape):
        assert -1 not in shape
        return Probe(np.reshape(self.array, shape))

    def _transpose(self, axes):
        assert sorted(axes) == list(range(self.ndim))
        return Probe(np.transpose(self.array, axes))

    def _broadcast_to(self, shape):
        return Probe(np.broadcast_to(self.array, shape))

    def _pad(self, widths):
        assert len(widths) == self.ndim
        return Probe(np.pad(self.array, widths))

    def _matmul(self, primal, left):
        assert min(self.ndim, primal.ndim) >= 2
        return Probe(self.array @ primal if left else primal @ self.array)

    def _einsum(self, subscripts, operands, position):
        assert "->" in subscripts
        operands[position] = self.array
        return Probe(np.asarray(np.einsum(subscripts, *operands)))

    @classmethod
    def _concatenate(cls, tangents, axis):
        plain = [t.array if isinstance(t, cls) else t for t in tangents]
        assert not any(np.any(p) for p, t in zip(plain, tangents, strict=True) if p is t)
        return cls(np.concatenate(plain, axis=axis))

    @classmethod
    def _where(cls, mask, first, second):
        arrays = [t.array if isinstance(t, cls) else t for t in (first, second)]
        assert all(np.all(s == 0) for s, t in zip(arrays, (first, second), strict=True) if s is t)
        return cls(np.where(mask, *arrays))

    def __getitem__(self, index):
        """Pick entries."""
        return Probe(np.asarray(self.array[index]))

    def astype(self, dtype):
        """Convert."""
        return Probe(self.array.astype(dtype))


@every_case
def test_a_rule_needs_only_the_linear_operations(case):
    """Any tangent that answers the fourteen operations flows through every rule."""
    v = directions_of(case)
    pairs = zip(case.args, v, strict=True)
    out = case.call(np, *(make_dual(x, Probe(d), 1 << 40) for x, d in pairs))
    outs = out if isinstance(out, list | tuple) else [out]
    tangents = [o.tangent.array if isinstance(o, Dual) else np.zeros(np.shape(o)) for o in outs]
    _, tangent = jvp(function_of(case), case.args, v)
    np.testing.assert_allclose(flat(tangents), flat(tangent), rtol=1e-12, atol=1e-13)


def test_the_linear_operations_are_the_documented_ones():
    """A new linear operation is a decision: reverse mode must learn to transpose it."""
    functions = {np.sum, np.cumsum, np.einsum, np.reshape, np.transpose, np.broadcast_to}
    assert set(LINEAR) == functions | {np.concatenate, np.pad, np.where}


# A planted error must not pass.


def negated(tangent):
    """Flip the sign of a tangent, or of a list of them."""
    return [negated(t) for t in tangent] if isinstance(tangent, list) else -tangent


def mutants():
    """Every rule with its tangent negated, and with that of each of its arguments negated."""
    for key, rule in RULES.items():
        if rule.composed:

            def whole(*args, formula=rule.formula, **kwargs):
                def flip(out):
                    if isinstance(out, list | tuple):
                        return type(out)(flip(o) for o in out)
                    return (
                        make_dual(out.primal, -out.tangent, out.tag)
                        if isinstance(out, Dual)
                        else out
                    )

                return flip(formula(*args, **kwargs))

            yield pytest.param(key, rule._replace(formula=whole), id=f"{name(key)}")
            continue
        for array in sorted(rule.arrays):

            def one(*args, formula=rule.formula, dot=f"{array}_dot", **kwargs):
                kwargs[dot] = negated(kwargs[dot])
                return formula(*args, **kwargs)

            yield pytest.param(key, rule._replace(formula=one), id=f"{name(key)} {array}")


def name(key):
    """Name a key of the table."""
    return ".".join(
        getattr(k, "__name__", str(k)) for k in (key if isinstance(key, tuple) else (key,))
    )


@pytest.mark.parametrize(("key", "mutant"), list(mutants()))
def test_a_planted_sign_error_is_detected(key, mutant, monkeypatch):
    """With the sign of one tangent wrong in one rule, the check against differences fails."""
    cases = [case for case in CASES if case.rule == key]
    monkeypatch.setitem(RULES, key, mutant)
    failed = 0
    for case in cases:
        try:
            check_tangent(case)
        except AssertionError:
            failed += 1
    assert failed > 0


# Kinks: the conventions that the rules' docstring states.

KINKS = {
    "relu at 0": (lambda x: np.maximum(x, 0), 0.0, 0.0),
    "relu at 0, the other way": (lambda x: np.maximum(0, x), 0.0, 0.0),
    "minimum at a tie with a constant": (lambda x: np.minimum(x, 2), 2.0, 0.0),
    "maximum at a tie of two duals": (lambda x: np.maximum(x, 3 * x), 0.0, 2.0),
    "minimum at a tie of two duals": (lambda x: np.minimum(x, 3 * x), 0.0, 2.0),
    "fmax at a tie with a constant": (lambda x: np.fmax(x, 1), 1.0, 0.0),
    "clip at its lower bound": (lambda x: np.clip(x, -1, 1), -1.0, 0.0),
    "clip at its upper bound": (lambda x: np.clip(x, -1, 1), 1.0, 0.0),
    "clip outside": (lambda x: np.clip(x, -1, 1), 3.0, 0.0),
    "abs at 0": (np.abs, 0.0, 0.0),
    "fabs at 0": (np.fabs, 0.0, 0.0),
    "max of tied entries": (lambda x: np.max(np.stack([x, 3 * x, x - 1])), 0.0, 2.0),
    "min of tied entries": (lambda x: np.min(np.stack([x, 3 * x, x + 1])), 0.0, 2.0),
    "norm at 0": (lambda x: np.linalg.norm(np.stack([x, 2 * x])), 0.0, 0.0),
    "norm of a row of zeros": (
        lambda x: np.linalg.norm(np.stack([x, 2 * x]).reshape(1, 2), axis=-1)[0],
        0.0,
        0.0,
    ),
    "norm of order 3 at 0": (lambda x: np.linalg.norm(np.stack([x, x]), 3), 0.0, 0.0),
    "hypot at 0": (lambda x: np.hypot(x, x), 0.0, 0.0),
    "std where nothing varies": (lambda x: np.std(np.stack([x, x])), 1.0, 0.0),
    "std of equal entries that part": (lambda x: np.std(np.stack([x, 2 * x])), 0.0, 0.0),
    "0 ** 0 in the base": (lambda x: x**0, 0.0, 0.0),
    "0 ** 0.0 in the base": (lambda x: x ** np.zeros(()), 0.0, 0.0),
    "0 ** 1": (lambda x: x**1, 0.0, 1.0),
    "0 ** 2": (lambda x: x**2, 0.0, 0.0),
    "0 ** 0 in the exponent": (lambda x: 0.0**x, 0.0, 0.0),
    "0 ** 2 in the exponent": (lambda x: 0.0**x, 2.0, 0.0),
    "x ** x at 0": (lambda x: x**x, 0.0, 0.0),
    "sign at 0": (np.sign, 0.0, 0.0),
    "round at a half": (np.round, 0.5, 0.0),
    "floor at a whole number": (np.floor, 1.0, 0.0),
    "astype to integers": (lambda x: x.astype(np.int64), 1.7, 0.0),
    "remainder at a jump": (lambda x: np.remainder(x, 1.0), 2.0, 1.0),
    "prod with one zero": (lambda x: np.prod(np.stack([x, x + 2, x + 3])), 0.0, 6.0),
    "cumprod with a zero": (lambda x: np.cumprod(np.stack([x, x + 2, x + 3]))[-1], 0.0, 6.0),
    "logaddexp of -inf": (lambda x: np.logaddexp(x, -np.inf), 1.0, 1.0),
    "nan_to_num of nan": (lambda x: np.nan_to_num(x * np.array([1.0, np.nan])).sum(), 2.0, 1.0),
    "where hides a nan": (lambda x: np.where(x > 0, x, np.nan * x), 2.0, 1.0),
    "fmax passes over nan": (lambda x: np.fmax(x, np.nan), 2.0, 1.0),
    "fmax passes over nan, the other way": (lambda x: np.fmax(np.nan, x), 2.0, 1.0),
    "fmin passes over nan": (lambda x: np.fmin(x, np.nan), 2.0, 1.0),
    "fmin passes over nan, the other way": (lambda x: np.fmin(np.nan, x), 2.0, 1.0),
    "max of nan": (lambda x: np.max(np.stack([x, x * np.nan])), 1.0, np.nan),
    "median of nan": (lambda x: np.median(np.stack([x, x, x * np.nan])), 1.0, np.nan),
    "arctan2 at 0": (lambda x: np.arctan2(x, 2 * x), 0.0, 0.0),
    "hypot at 0 of both": (lambda x: np.hypot(x, 0.0), 0.0, 0.0),
    "norm of order 1 at 0": (lambda x: np.linalg.norm(np.stack([x, x]), 1), 0.0, 0.0),
    "norm of order 1/2 at 0": (lambda x: np.linalg.norm(np.stack([x, x]), 0.5), 0.0, 0.0),
    "norm of order inf at 0": (lambda x: np.linalg.norm(np.stack([x, x]), np.inf), 0.0, 0.0),
    "norm of order 3 of a row with a zero": (
        lambda x: np.linalg.norm(np.stack([x, 0 * x]), 3),
        -2.0,
        -1.0,
    ),
    "norm of order 0": (lambda x: np.linalg.norm(np.stack([x, x]), 0), 1.0, 0.0),
    "std of seven tenths": (lambda x: np.std(x * np.ones(7)), 0.1, 0.0),
    "logaddexp of two -inf": (lambda x: np.logaddexp(x - np.inf, 3 * x - np.inf), 1.0, 2.0),
    "logaddexp2 of inf and a number": (lambda x: np.logaddexp2(x + np.inf, 5 * x), 1.0, 1.0),
    "logsumexp of -inf alone": (
        lambda x: np.logaddexp.reduce(np.stack([x, 3 * x]) - np.inf),
        1.0,
        2.0,
    ),
    "logaddexp where both are alike": (lambda x: np.logaddexp(x, 1.0), 1.0, 0.5),
    "(-2) ** 3": (lambda x: x**3, -2.0, 12.0),
    "(-2) ** -1": (lambda x: x**-1, -2.0, -0.25),
    "(-2) ** -2.0": (lambda x: x ** np.array(-2.0), -2.0, 0.25),
    "(-2) ** 2 in the exponent": (lambda x: stop_gradient(x * 0 - 2.0) ** x, 2.0, np.nan),
    "inf ** 0.5": (lambda x: x**0.5, np.inf, 0.0),
    "x ** 0.0 at inf": (lambda x: x**0.0, np.inf, 0.0),
    "det of one zero": (lambda x: np.linalg.det(x * np.ones((1, 1))), 0.0, 1.0),
    "det of a singular matrix": (
        lambda x: np.linalg.det(np.stack([x, 2 * x, 2.0 + 0 * x, 4 + x]).reshape(2, 2)),
        1.0,
        2.0,
    ),
    "det of zeros": (lambda x: np.linalg.det(x * np.eye(3)), 0.0, 0.0),
}


@pytest.mark.filterwarnings("ignore:invalid value encountered in log")  # of a negative base
@pytest.mark.parametrize(("f", "x", "slope"), KINKS.values(), ids=KINKS)
def test_the_slope_at_a_kink_is_the_documented_one(f, x, slope, request):
    """Where there is no derivative, or the formula is 0 / 0, the convention decides."""
    np.testing.assert_array_equal(derivative(f)(x), slope)
    _, stacked = jvp_batch(f, (x,), (np.array([1.0, -2.0]),))
    np.testing.assert_array_equal(stacked, [slope, -2 * slope])
    if "nan" not in request.node.callspec.id:  # forward mode alone can hide one
        np.testing.assert_array_equal(grad(f)(x), slope)


SECOND = {
    "norm at 0": (lambda x: np.linalg.norm(np.stack([x, 2 * x])), 0.0, 0.0),
    "norm of order 3 at 0": (lambda x: np.linalg.norm(np.stack([x, x]), 3), 0.0, 0.0),
    "norm at a zero entry": (lambda x: np.linalg.norm(np.stack([x, 0 * x + 2.0])), 0.0, 0.5),
    "hypot at 0": (lambda x: np.hypot(x, x), 0.0, 0.0),
    "hypot at a zero": (lambda x: np.hypot(x, 2.0), 0.0, 0.5),
    "arctan2 at 0": (lambda x: np.arctan2(x, x), 0.0, 0.0),
    "std where nothing varies": (lambda x: np.std(np.stack([x, x])), 1.0, 0.0),
    "tanh at 0": (lambda x: np.tanh(x) * x, 0.0, 2.0),
    "logaddexp of a tie": (lambda x: np.logaddexp(x, 0.0), 0.0, 0.25),
    "logaddexp2 of a tie": (lambda x: np.logaddexp2(x, 0.0), 0.0, np.log(2) / 4),
    "x ** 1.5 at 1": (lambda x: x**1.5, 1.0, 0.75),
    "x ** 0 at 0": (lambda x: x**0, 0.0, 0.0),
    "x ** -0.5": (lambda x: x**-0.5, 0.25, 24.0),
    "x ** x": (lambda x: x**x, 1.0, 2.0),
    "arcsinh far out": (lambda x: np.arcsinh(x), 1e200, 0.0),
    "det at zeros": (lambda x: np.linalg.det(x * np.eye(2)), 0.0, 2.0),
    "det of rank 1": (lambda x: np.linalg.det(x * np.eye(2) + np.ones((2, 2))), 0.0, 2.0),
}


@pytest.mark.parametrize(("f", "x", "curvature"), SECOND.values(), ids=SECOND)
def test_the_second_derivative_at_a_kink_is_no_nan(f, x, curvature):
    """The conventions can be differentiated again, in every combination of the modes."""
    ways = (derivative(derivative(f)), derivative(grad(f)), grad(derivative(f)), grad(grad(f)))
    for second in ways:
        np.testing.assert_allclose(second(x), curvature, rtol=1e-12, atol=1e-300)


def test_third_derivatives_go_through_the_ties_of_stable_formulas():
    """At 0, tanh has the third derivative -2, and log(1 + exp(x)) the fourth -1/8."""
    d = derivative
    np.testing.assert_allclose(d(d(d(np.tanh)))(0.0), -2)
    np.testing.assert_allclose(d(d(d(d(lambda x: np.logaddexp(x, 0.0)))))(0.0), -1 / 8)


def minor(rows, i, j):
    """Determinant without row i and column j, by the definition."""
    rows = [[x for k, x in enumerate(row) if k != j] for r, row in enumerate(rows) if r != i]
    return sum((-1) ** k * x * minor(rows, 0, k) for k, x in enumerate(rows[0])) if rows else 1


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("lost", [0, 1, 2, 5])
def test_a_determinant_has_its_cofactors_as_slopes_at_every_rank(n, lost):
    """Also where there is no inverse; in a stack, in both modes; and so do its slopes."""
    a = np.random.default_rng(n).integers(-3, 4, (2, n, n)).astype(float)
    for i in range(min(lost, n)):
        a[0, i] = a[0, -1] * (i + 1) if i < n - 1 else 0
    cofactors = [
        [[(-1) ** (i + j) * minor(m, i, j) for j in range(n)] for i in range(n)] for m in a.tolist()
    ]
    np.testing.assert_allclose(grad(lambda a: np.sum(np.linalg.det(a)))(a), cofactors, atol=1e-9)
    for m, expected in zip(a, cofactors, strict=True):
        np.testing.assert_allclose(jacfwd(np.linalg.det)(m), expected, atol=1e-9)
    hessian = jacfwd(grad(np.linalg.det))(a[0])
    ahead, behind = (
        np.stack([grad(np.linalg.det)(a[0] + h * e) for e in np.eye(n * n).reshape(-1, n, n)], -1)
        for h in (0.5, -0.5)
    )  # the slopes are linear in each entry, so that differences of any width are exact
    np.testing.assert_allclose(hessian.reshape(n, n, -1), ahead - behind, atol=1e-8)


@pytest.mark.parametrize("f", [np.linalg.inv, lambda a: np.linalg.solve(a, np.ones(2))])
def test_a_singular_matrix_has_no_inverse_and_no_slope(f):
    """NumPy's own error, which names the reason."""
    with pytest.raises(np.linalg.LinAlgError, match="Singular"):
        jvp(f, (np.ones((2, 2)),), (np.ones((2, 2)),))


# Numbers of every size.


@pytest.mark.parametrize("key", RULES, ids=rule_accuracy.name_of)
def test_slopes_are_right_to_eight_ulp_at_every_exponent(key):
    """In float16, float32 and float64: against mpmath, or as documented where digits are lost."""
    for dtype, step in zip(rule_accuracy.TYPES, (5, 31, 230), strict=True):
        with np.errstate(over="ignore"):
            point = rule_accuracy.worst(key, dtype, step)
        assert point.error <= point.bound, point.where
        assert point.where or (dtype is np.float16 and key.__module__ == "numpy.linalg")


MANY = {  # slopes along a direction of ones, and the gradient of every entry, by the count n
    "mean": (np.mean, 1.0, lambda n: 1 / n),
    "a sum that is scaled": (lambda x: np.sum(x * 1e-3), 65.536, lambda n: 1e-3),
    "max of tied entries": (np.max, 1.0, lambda n: 1 / n),
    "norm": (lambda x: np.linalg.norm(x * 1e-2), 2.56, lambda n: 1e-2 / np.sqrt(n)),
    "logsumexp": (np.logaddexp.reduce, 1.0, lambda n: 1 / n),
    "average": (
        lambda x: np.average(x, weights=np.full(x.shape, 1e-4, np.float16)),
        1.0,
        lambda n: 1 / n,
    ),
    "nanmean": (np.nanmean, 1.0, lambda n: 1 / n),
    "dot": (lambda x: x @ np.full(x.shape, 1e-3, x.dtype), 65.536, lambda n: 1e-3),
    "einsum": (lambda x: np.einsum("i->", x * np.float16(1e-3)), 65.536, lambda n: 1e-3),
    "last of cumsum": (lambda x: np.cumsum(x * 1e-3)[-1], 65.536, lambda n: 1e-3),
}


@pytest.mark.parametrize(("f", "along", "each"), MANY.values(), ids=MANY)
def test_many_entries_of_float16_are_counted_and_summed_in_float32(f, along, each):
    """A count above 65504 is infinite in float16, and a sum of ones ends at 2048."""
    n = 2**16
    x = np.ones(n, np.float16)
    with np.errstate(over="ignore"):  # NumPy's own value may overflow
        _, slope = jvp(f, (x,), (x,))
        gradient = grad(f)(x)
    assert slope.dtype == gradient.dtype == np.float16
    np.testing.assert_allclose(float(slope), along, rtol=2e-3)
    np.testing.assert_allclose(gradient.astype(float), each(n), rtol=2e-3, atol=3e-8)


def test_the_value_of_float16_is_numpys_and_only_the_tangent_is_float32s():
    """Rounded once: the slope of a product of a hundred numbers is right to half an ulp."""
    x = np.linspace(0.9, 1.1, 100).astype(np.float16)
    out, tangent = jvp(np.cumprod, (x,), (x,))
    np.testing.assert_array_equal(out, np.cumprod(x))
    wide = x.astype(np.float64)
    np.testing.assert_array_equal(tangent, np.float16(np.cumprod(wide) * np.arange(1, 101)))
    assert derivative(lambda x: (x * x).astype(np.float32))(np.float16(3)) == 6


@pytest.mark.parametrize("f", [np.sqrt, np.cbrt])
def test_a_root_is_infinitely_steep_at_0(f):
    """sqrt'(0) = inf, as in calculus; NumPy warns of the division."""
    with pytest.warns(RuntimeWarning, match="divide by zero"):
        assert derivative(f)(0.0) == np.inf


def test_tied_entries_of_max_share_alike():
    """Three tied entries: a third each; the others nothing."""
    x = np.array([[2.0, 1.0, 2.0, 2.0]])
    _, tangent = jvp_batch(lambda x: x.max(axis=1), (x,), (np.eye(4).reshape(4, 1, 4),))
    np.testing.assert_allclose(tangent[:, 0], [1 / 3, 0, 1 / 3, 1 / 3])


def test_a_variance_with_too_few_entries_is_numpys():
    """ddof at or above the count divides by 0, never by less."""
    x = np.array([1.0, 2.0, 4.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for ddof in (3, 4):
            out, tangent = jvp(lambda x, n=ddof: np.var(x, ddof=n), (x,), (x,))
            assert out == np.var(x, ddof=ddof) == np.inf
            assert tangent == np.inf


def test_sort_keeps_the_order_of_ties():
    """Equal entries keep their places, so each keeps its own tangent; a hundred, to be sure."""
    v = np.arange(100.0)
    _, tangent = jvp(np.sort, (np.tile([1.0, 0.0], 50),), (v,))
    np.testing.assert_array_equal(tangent, np.concatenate([v[1::2], v[::2]]))


LIKE = (np.zeros_like, np.ones_like, np.empty_like)  # of a dual they are duals, to be filled


@pytest.mark.parametrize("f", LIKE, ids=lambda f: f.__name__)
def test_an_array_like_a_dual_is_a_dual_that_does_not_move(f):
    """Its tangent is 0; of another shape or floating type if asked for; an array if of integers."""
    x = make_dual(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), 1 << 40)
    for kwargs in ({}, {"shape": 4}, {"dtype": np.float64}):
        like, plain = f(x, **kwargs), f(x.primal, **kwargs)
        assert isinstance(like, Dual)
        assert (like.shape, like.dtype) == (plain.shape, plain.dtype)
        assert not np.any(like.tangent)
        if f is not np.empty_like:
            np.testing.assert_array_equal(like.primal, plain)
    assert type(f(x, dtype=int)) is np.ndarray


@pytest.mark.parametrize(
    "f", sorted(CONSTANT - {*LIKE}, key=lambda f: f.__name__), ids=lambda f: f.__name__
)
def test_a_function_without_slope_returns_its_plain_value(f):
    """Comparisons, roundings and searches see the primal and give plain arrays."""
    x = np.array([[1.25, -0.75], [2.5, 0.5]])
    if f in (np.searchsorted, np.digitize):
        x = np.array([0.5, 1.5, 2.5])
    two = isinstance(f, np.ufunc) and f.nin == 2
    more = {
        np.argpartition: (1,), np.searchsorted: (1.0,), np.digitize: (np.array([1.0, 2.0]),),
        np.isclose: (1.25,), np.allclose: (1.25,), np.array_equal: (x,),
    }.get(f, (0.5,) if two else ())  # fmt: skip
    plain = f(x, *more)
    dual = f(make_dual(x, np.ones_like(x), 1 << 40), *more)
    assert type(dual) is type(plain)
    assert repr(dual) == repr(plain)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_empty_arrays_have_empty_tangents(shape):
    """Sums over nothing are 0 and move with nothing; shapes are kept."""
    x = np.zeros(shape)
    for f in (np.sum, np.cumsum, np.prod, np.sort, np.linalg.norm, lambda x: x * 2, np.ravel):
        out, tangent = jvp(f, (x,), (x,))
        assert tangent.shape == np.shape(out) == np.shape(f(x))
        assert not np.any(tangent)
    with pytest.raises(ValueError, match="zero-size"):
        jvp(np.max, (x,), (x,))


def test_an_index_picks_whole_tangents_from_a_stack():
    """Separated integer indices move the picked axis to the front, in front of no direction."""
    x = np.arange(24.0).reshape(2, 3, 4)
    v = np.random.default_rng(0).standard_normal((5, 2, 3, 4))
    index = (np.array([0, 1, 1]), slice(None), np.array([3, 0, 2]))
    _, tangents = jvp_batch(lambda x: operator.getitem(x, index), (x,), (v,))
    assert tangents.shape == (5, 3, 3)
    np.testing.assert_array_equal(tangents, np.stack([t[index] for t in v]))


def test_clip_exactly_at_its_bound_has_slope_zero():
    """On the bound itself, either one, the slope of `clip` is 0; a step inside it is 1."""
    for bound in (-1.0, 1.0):
        inside = np.nextafter(bound, 0.0)
        for x, slope in ((bound, 0.0), (inside, 1.0)):
            assert jvp(lambda x: np.clip(x, -1, 1), (x,), (1.0,)) == (x, slope)
