"""Reverse mode as laws: the transpose of what forward mode does, on every rule; then Adam."""

import gc
import threading
import weakref
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minibit
from minibit.absmean import absmean_quantize, fake_quant_activation, fake_quant_weight
from minibit.conformance import cases, decode
from minibit.conformance.running import arguments
from minibit.dual import (
    NoRuleError,
    custom_jvp,
    derivative,
    jacfwd,
    jvp,
    jvp_batch,
    stop_gradient,
    straight_through,
)
from minibit.layers import cross_entropy, layer_norm, mlp, rms_norm, ternary_linear
from minibit.tape import (
    Adam,
    Pullback,
    clip_by_global_norm,
    global_norm,
    grad,
    transposes,
    two_stage,
    two_stage_weight_decay,
    value_and_grad,
    vjp,
)
from minibit.tape import adam as optimizers
from minibit.tape.adam import adam_step_reference
from rule_cases import CASES

ADAM = [case for case in cases("tape") if case.call == "Adam"]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def flat(tree):
    """Put all entries of an array, or of a list of arrays, in one vector."""
    parts = tree if isinstance(tree, list | tuple) else [tree]
    return np.concatenate([np.ravel(part) for part in parts])


def function_of(case):
    """Return the case's call as a function of its arrays alone."""
    return lambda *args: case.call(np, *args)


def normal(seed, *shape):
    """Normal numbers in float64."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def directions_of(case, seed=0, dtype=np.float64):
    """Draw a tangent for each of the case's arrays."""
    return tuple(normal(seed + i, *x.shape).astype(dtype) for i, x in enumerate(case.args))


def cotangent_of(out, dtype=None):
    """Draw a cotangent of the structure of an output."""
    if isinstance(out, list | tuple):
        return type(out)(cotangent_of(part) for part in out)
    return normal(9, *np.shape(out)).astype(dtype or np.float64)


# --- the transpose of forward mode ---------------------------------------------------------------


def check_transpose(case):
    """Assert that <pullback(c), v> = <c, J v>, for two cotangents and directions."""
    f, v = function_of(case), directions_of(case)
    out, tangent = jvp(f, case.args, v)
    again, pullback = vjp(f, case.args)
    np.testing.assert_array_equal(flat(again), flat(out))
    c = cotangent_of(out)
    for _ in range(2):  # the program is still there after the first call
        back = pullback(c)
        assert all(b.shape == x.shape for b, x in zip(back, case.args, strict=True))
        expected = flat(c) @ flat(tangent)
        size = np.linalg.norm(flat(c)) * np.linalg.norm(flat(tangent))
        assert abs(flat(back) @ flat(v) - expected) < 1e-12 * (1 + size)


@every_case
def test_reverse_mode_is_the_transpose_of_forward_mode(case):
    """<J^T c, v> = <c, J v> for every rule of the table, whatever its axes and broadcasting."""
    check_transpose(case)


TRANSPOSES = (
    "same", "scale", "spread", "cumsum", "reshape", "transpose", "part", "choose",
    "matmul_left", "matmul_right", "einsum", "scatter",
)  # fmt: skip


@pytest.mark.parametrize("name", TRANSPOSES)
def test_a_planted_error_in_a_transpose_is_detected(name, monkeypatch):
    """With the sign of one of the transposes wrong, the dot products differ."""
    plain = getattr(transposes, name)
    monkeypatch.setattr(transposes, name, lambda c, *args: -plain(c.copy(), *args))
    failed = 0
    for case in CASES:
        try:
            check_transpose(case)
        except AssertionError:
            failed += 1
    assert failed > 0


@every_case
def test_float32_stays_float32(case):
    """The gradient has the type of its primal, and float64's values up to rounding."""
    f = function_of(case)
    small = tuple(x.astype(np.float32) for x in case.args)
    out, pullback = vjp(f, small)
    back = pullback(cotangent_of(out))
    wide = vjp(f, case.args)[1](cotangent_of(out))
    assert all(b.dtype == np.float32 for b in back)
    np.testing.assert_allclose(
        flat(back), flat(wide), rtol=1e-4, atol=3e-5 * (1 + np.abs(flat(wide)).max())
    )


@every_case
def test_a_gradient_can_be_differentiated_again_in_either_mode(case):
    """Forward over reverse, reverse over reverse and forward over forward: one second derivative.

    With c the cotangent: <d/du J^T c, v> = <c, d/du J v> = <d/du, (d/d. <J^T c, v>)>.
    """
    f, u, v = function_of(case), directions_of(case, 1), directions_of(case, 5)
    c = cotangent_of(f(*case.args))

    def gradient(*args):
        return vjp(f, args)[1](c)

    forward = flat(c) @ flat(jvp(lambda *a: jvp(f, a, v)[1], case.args, u)[1])
    over = flat(jvp(gradient, case.args, u)[1]) @ flat(v)
    twice = flat(vjp(gradient, case.args)[1](v)) @ flat(u)
    close = {"rtol": 1e-9, "atol": 1e-9 * (1 + abs(forward))}
    np.testing.assert_allclose(over, forward, **close)
    np.testing.assert_allclose(twice, forward, **close)


STEPS = {  # a step takes two earlier variables, (3, 4) each, and makes one more
    "x + y": lambda x, y: x + y,
    "x * y": lambda x, y: x * y,
    "x - 2 x": lambda x, y: x - 2 * x,
    "tanh": lambda x, y: np.tanh(x),
    "x": lambda x, y: x,
    "relu": lambda x, y: np.maximum(x, 0),
    "row sums": lambda x, y: x + y.sum(axis=1, keepdims=True) / 4,
    "columns": lambda x, y: y * x.mean(axis=0),
    "x W": lambda x, y: x @ MIX,
    "x y^T y": lambda x, y: (x @ y.T) @ y / 12,
    "turned": lambda x, y: (MIX @ x.T).T,
    "reshaped": lambda x, y: x.reshape(4, 3).T,
    "halves": lambda x, y: np.concatenate([x[1:], y[:1]]),
    "rows": lambda x, y: x[np.array([2, 0, 2])],
    "entries": lambda x, y: x[np.array([[0], [1], [0]]), np.array([3, 3, 1, 0])],
    "where": lambda x, y: np.where(MASK, x, y),
    "stopped": lambda x, y: x * stop_gradient(y),
    "einsum": lambda x, y: np.einsum("ij,kj,kl->il", x, y, x) / 12,
    "broadcast": lambda x, y: np.broadcast_to(x[0], (3, 4)),
}
MIX, MASK = normal(3, 4, 4) / 2, normal(4, 3, 4) > 0


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 99), st.integers(0, 99)),
        max_size=40,
    )
)
def test_the_gradient_of_a_random_program_is_forward_modes(program):
    """Variables are used again, in any order, so cotangents meet and add up in every way."""

    def run(x):
        variables = [x, np.tanh(x)]
        for name, i, j in program:
            x, y = (variables[k % len(variables)] for k in (-1 - i, -1 - j))
            variables.append(np.tanh(STEPS[name](x, y)))
        return np.sum(np.stack(variables) * COEFFICIENTS[: len(variables)])

    x = normal(0, 3, 4)
    np.testing.assert_allclose(grad(run)(x), jacfwd(run)(x), rtol=1e-10, atol=1e-12)


COEFFICIENTS = normal(1, 200, 3, 4)


# --- trees, constants, types ---------------------------------------------------------------------


class Pair(NamedTuple):
    """A named tuple, as parameters may come in."""

    left: np.ndarray
    right: np.ndarray


def test_primals_and_outputs_may_be_trees():
    """Structures come back as they are; None in a cotangent is a part that does not matter."""

    def f(tree, z):
        return {"a": tree[0]["x"] * z, "b": (tree[1].left @ tree[1].right, z)}

    tree = [{"x": normal(0, 3)}, Pair(normal(1, 2, 3), normal(2, 3))]
    out, pullback = vjp(f, (tree, np.float64(2.0)))
    assert set(out) == {"a", "b"}
    first, last = pullback({"a": np.ones(3), "b": (None, 5.0)})
    assert isinstance(first[1], Pair)
    np.testing.assert_array_equal(first[0]["x"], [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(first[1].left, np.zeros((2, 3)))
    assert last == pytest.approx(tree[0]["x"].sum() + 5)
    only = pullback({"a": None, "b": (np.array([1.0, 0.0]), None)})
    np.testing.assert_array_equal(only[0][1].left, [tree[1].right, np.zeros(3)])
    np.testing.assert_array_equal(only[0][0]["x"], 0 * tree[0]["x"])


def test_none_among_primals_is_held_constant_and_has_no_gradient():
    """None flows into the function, and stands in the gradient's place."""
    params = {"w": np.array([3.0]), "bias": None}
    slopes = grad(lambda p: np.sum(p["w"] ** 2) + (p["bias"] or 0))(params)
    assert slopes["bias"] is None
    np.testing.assert_array_equal(slopes["w"], [6.0])


def test_other_arguments_are_constants():
    """grad differentiates in the first argument; integers may follow, by position or name."""

    def loss(w, x, *, labels):
        return cross_entropy(x @ w.T, labels)

    w, x, labels = normal(0, 5, 3), normal(1, 7, 3), np.arange(7) % 5
    value, slope = value_and_grad(loss)(w, x, labels=labels)
    assert value == loss(w, x, labels=labels)
    np.testing.assert_allclose(slope, jacfwd(lambda w: loss(w, x, labels=labels))(w))
    np.testing.assert_array_equal(grad(loss)(w, x, labels=labels), slope)


def test_what_is_not_reached_has_zeros_of_its_shape_and_type():
    """No cotangent arrives: zeros, float32 where the primal is; also if nothing depends at all."""
    primals = (np.ones(3, np.float32), np.ones((2, 0)), np.float64(1.0))
    _, pullback = vjp(lambda x, y, z: np.array([7.0]), primals)
    for back, primal in zip(pullback([1.0]), primals, strict=True):
        assert back.dtype == primal.dtype
        assert back.shape == primal.shape
        assert not back.any()
    assert grad(lambda x: 3.0)(np.float64(1.0)) == 0


def test_gradients_are_arrays_of_their_own():
    """They share no memory with each other, with the cotangent or with a primal."""

    def f(x, y, z):
        return x + y, y, z.T, np.broadcast_to(np.sum(x), (2, 2))

    x, c = normal(0, 2, 2), normal(1, 2, 2)
    before = c.copy()
    back = vjp(f, (x, x, x))[1]((c, c, c, c))
    for i, one in enumerate(back):
        assert one.flags.writeable
        for other in (*back[:i], x, c):
            assert not np.shares_memory(one, other)
    np.testing.assert_array_equal(c, before)
    np.testing.assert_allclose(back[0], c + c.sum())
    np.testing.assert_array_equal(back[1], c + c)


def test_a_cotangent_is_not_changed_by_what_happens_in_place():
    """Scaling and adding in place stop at what others can see."""
    x, c = normal(0, 4), normal(1, 4)
    before = c.copy()
    _, pullback = vjp(lambda x: (x * 3 * x) / 2 + x.reshape(2, 2).T.reshape(4), (x,))
    first = pullback(c)[0].copy()
    np.testing.assert_array_equal(c, before)
    np.testing.assert_array_equal(pullback(c)[0], first)


def test_types_change_on_the_way_and_the_gradient_comes_back_in_its_own():
    """float16 and float64 steps inside; the cotangent is converted where the tangent was."""
    x = normal(0, 3, 4).astype(np.float32)

    def f(x):
        wide = x.astype(np.float64) * np.arange(4.0)  # float64
        return np.sum(wide.astype(np.float16) * np.float16(2)) + np.sum(x * np.float64(3))

    assert grad(f)(x).dtype == np.float32
    np.testing.assert_allclose(grad(f)(x), np.tile(2 * np.arange(4) + 3, (3, 1)), rtol=1e-3)


def test_cotangents_of_float16_are_summed_in_float32():
    """Five thousand ones make five thousand; in float16 they would stop at 2048."""

    def f(x):
        return np.sum(sum(x * 1e-3 for _ in range(5000)))

    np.testing.assert_allclose(grad(f)(np.float16(0.01)), 5, rtol=1e-3)
    value, slope = value_and_grad(lambda x: sum(x[[0, 0, 0]]) * 1 + x[1])(np.ones(2, np.float16))
    assert (value, slope.tolist(), slope.dtype) == (4, [3, 1], np.float16)
    hessian = grad(lambda x: np.sum(grad(f)(x) * x))(np.float16(0.01))
    np.testing.assert_allclose(hessian, 5, rtol=1e-3)


def test_empty_arrays_have_empty_gradients():
    """Sums over nothing pull back to nothing; products with an empty axis to zeros."""
    x = np.zeros((0, 3))
    assert grad(lambda x: np.sum(x * 2))(x).shape == (0, 3)
    w = np.ones((3, 2))
    np.testing.assert_array_equal(grad(lambda w: np.sum(x @ w))(w), np.zeros((3, 2)))
    np.testing.assert_array_equal(
        grad(lambda w: np.sum(w[np.zeros((0,), int)]))(w), np.zeros((3, 2))
    )
    np.testing.assert_array_equal(
        grad(lambda w: np.sum(np.ones((3, 0)).T @ w) + np.sum(w[:0]))(w), np.zeros((3, 2))
    )


def test_where_hides_an_infinite_cotangent():
    """What np.where did not choose gets 0, not inf * 0."""
    x = np.array([0.0, 4.0])

    def safe(x):
        return np.sum(np.where(x > 0, np.sqrt(np.where(x > 0, x, 1.0)), 0.0))

    np.testing.assert_array_equal(grad(safe)(x), [0.0, 0.25])
    with np.errstate(divide="ignore"):
        _, pullback = vjp(lambda x: np.where(np.array([False, True]), x, 0.0), (x,))
        np.testing.assert_array_equal(pullback(np.array([np.inf, 2.0]))[0], [0.0, 2.0])
        np.testing.assert_array_equal(pullback(np.array([np.nan, -1.0]))[0], [0.0, -1.0])


@given(
    st.lists(st.integers(-5, 4), max_size=30),
    st.sampled_from([(5,), (5, 3), (5, 2, 2)]),
    st.booleans(),
)
def test_rows_picked_more_than_once_get_the_sum(rows, shape, nested):
    """The transpose of a gather adds up; negative numbers count from the end."""
    rows = (
        np.array(rows, int).reshape(2, -1) if nested and len(rows) % 2 == 0 else np.array(rows, int)
    )
    table, c = normal(0, *shape), normal(1, *rows.shape, *shape[1:])
    expected = np.zeros(shape)
    for row, piece in zip(rows.ravel(), c.reshape(rows.size, *shape[1:]), strict=True):
        expected[row] += piece
    (back,) = vjp(lambda t: t[rows], (table,))[1](c)
    np.testing.assert_allclose(back, expected, atol=1e-13)
    (twice,) = vjp(lambda t: t[rows] + 2 * t[rows] + t[:1].sum(), (table,))[1](c)
    expected *= 3
    expected[0] += c.sum()
    np.testing.assert_allclose(twice, expected, atol=1e-12)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint64])
def test_row_numbers_may_be_of_any_integer_type(kind):
    """Bytes as tokens, into a table of more rows than a byte has values."""
    rows, table = np.array([0, 3, 100, 3], kind), normal(0, 300, 2)
    (back,) = vjp(lambda t: t[rows], (table,))[1](np.ones((4, 2)))
    assert np.flatnonzero(back[:, 0]).tolist() == [0, 3, 100]
    np.testing.assert_array_equal(back[3], [2.0, 2.0])


@pytest.mark.parametrize(
    ("subscripts", "shapes"),
    [
        ("ij,j->i", ((3, 1), (4,))),
        ("ij,ij->ij", ((1, 4), (3, 4))),
        ("...ij,...jk->...ik", ((2, 1, 3, 4), (5, 4, 2))),
        ("i...,i->...", ((3, 2, 2), (3,))),
        ("...,...->...", ((2, 1), (3,))),
        ("ii,ij,ij->j", ((3, 3), (3, 2), (1, 2))),
        ("ij,jk->ik", ((0, 3), (3, 2))),
        ("ij,jk->ik", ((2, 0), (0, 2))),
    ],
)
def test_einsum_repeats_axes_of_length_one_in_both_modes(subscripts, shapes):
    """<J^T c, v> = <c, J v> where einsum broadcasts, and over empty axes."""

    def f(*operands):
        return np.einsum(subscripts, *operands)

    args = tuple(normal(i, *shape) for i, shape in enumerate(shapes))
    v = tuple(normal(9 + i, *shape) for i, shape in enumerate(shapes))
    out, tangent = jvp(f, args, v)
    c = normal(20, *out.shape)
    back = vjp(f, args)[1](c)
    assert [b.shape for b in back] == list(shapes)
    np.testing.assert_allclose(flat(back) @ flat(v), flat(c) @ flat(tangent), atol=1e-12)


# --- custom rules --------------------------------------------------------------------------------


def test_custom_rules_hold_in_reverse():
    """A custom rule is transposed like any other, for one argument that moves, and for two."""

    @custom_jvp
    def weird(x, y):
        return x * y

    @weird.defjvp
    def rule(primals, tangents):
        x, y = primals
        return x * y, 10 * tangents[0] * y - tangents[1] / 4

    x, y = normal(0, 3), normal(1, 3)
    back = vjp(weird, (x, y))[1](np.ones(3))
    np.testing.assert_allclose(back, (10 * y, -np.full(3, 0.25)))
    np.testing.assert_allclose(grad(lambda x: np.sum(weird(x, y)))(x), 10 * y)
    np.testing.assert_allclose(grad(lambda y: np.sum(weird(x, y)))(y), np.full(3, -0.25))


def test_straight_through_passes_the_cotangent_as_it_is():
    """Rounding has the derivative of the identity, in the b1.58 quantisers too."""
    w, x = normal(0, 4, 6).astype(np.float32), normal(1, 3, 6).astype(np.float32)
    np.testing.assert_array_equal(
        grad(lambda w: np.sum(straight_through(np.round)(w) * x[0]))(w[0]), x[0]
    )
    codes, gamma = absmean_quantize(w)

    def layer(w, x):
        return fake_quant_activation(x) @ fake_quant_weight(w).T

    y, pullback = vjp(layer, (w, x))
    c = normal(2, *y.shape).astype(np.float32)
    back_w, back_x = pullback(c)
    np.testing.assert_allclose(back_w, c.T @ fake_quant_activation(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(back_x, c @ (codes * gamma), rtol=1e-5, atol=1e-5)


def test_stop_gradient_stops_it():
    """x stop(x) has gradient stop(x); of every order none is left."""
    x = normal(0, 3)
    np.testing.assert_array_equal(grad(lambda x: np.sum(x * stop_gradient(x)))(x), x)
    np.testing.assert_array_equal(grad(lambda x: np.sum(stop_gradient(x * x)))(x), 0 * x)


def test_a_rule_that_is_not_linear_is_refused():
    """Adding a constant to a tangent, or joining one to it, is no linear operation."""
    for crooked in (
        lambda t: t + np.ones(3),
        lambda t: np.concatenate([t[:2], np.ones(1)]),
        lambda t: np.where(np.array([True, False, True]), t, 1.0),
    ):
        f = custom_jvp(lambda x: x)
        f.defjvp(lambda primals, tangents, crooked=crooked: (primals[0], crooked(tangents[0])))
        with pytest.raises(NoRuleError, match="not linear"):
            vjp(f, (np.zeros(3),))


def test_tangents_of_two_calls_never_meet():
    """A rule that keeps a tangent, and adds it in the next call, is told so."""
    kept = []
    f = custom_jvp(lambda x: x)
    f.defjvp(lambda primals, tangents: (kept.append(tangents[0]), (primals[0], sum(kept)))[1])
    vjp(f, (np.zeros(3),))
    with pytest.raises(NoRuleError, match="two different calls"):
        vjp(f, (np.zeros(3),))


def test_the_zero_tangent_of_a_constant_may_be_spoilt_by_a_nan():
    """0 times NaN or infinity is no constant that a rule added."""

    @custom_jvp
    def product(x, y):
        return x * y

    @product.defjvp
    def rule(primals, tangents):
        return primals[0] * primals[1], tangents[0] * primals[1] + tangents[1] * primals[0]

    with np.errstate(invalid="ignore"):
        x = np.array([np.inf, 2.0])
        np.testing.assert_array_equal(grad(lambda x: np.sum(product(x, np.ones(2))))(x), [1, 1])


# --- nesting -------------------------------------------------------------------------------------


def rosenbrock(x):
    """A valley, with a known Hessian."""
    return np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def test_the_jvp_of_a_gradient_is_the_hessian_times_a_vector():
    """At (x, y): H = [[1200 x^2 - 400 y + 2, -400 x], [-400 x, 200]]."""
    x, v = np.array([0.5, -0.25]), np.array([3.0, -1.0])
    hessian = np.array([[1200 * 0.25 + 100 + 2, -200.0], [-200.0, 200.0]])
    slope, product = jvp(grad(rosenbrock), (x,), (v,))
    np.testing.assert_allclose(slope, [-200 * 0.5 * 2 * (-0.25 - 0.25) + -1.0, 200 * -0.5])
    np.testing.assert_allclose(product, hessian @ v)
    np.testing.assert_allclose(jacfwd(grad(rosenbrock))(x), hessian)
    np.testing.assert_allclose(grad(lambda x: grad(rosenbrock)(x) @ v)(x), hessian @ v)
    np.testing.assert_allclose(grad(lambda x: jvp(rosenbrock, (x,), (v,))[1])(x), hessian @ v)
    _, many = jvp_batch(grad(rosenbrock), (x,), (np.stack([v, -2 * v]),))
    np.testing.assert_allclose(many, [hessian @ v, -2 * hessian @ v])


def test_derivatives_of_every_order_agree():
    """Reverse mode nests in itself and in forward mode, to the fourth order."""
    x = np.float64(0.7)
    fourth = x * np.sin(x) - 4 * np.cos(x)
    for modes in ("rrrr", "frfr", "rfrf", "rrff", "ffrr"):
        f = lambda x: x * np.sin(x)  # noqa: E731
        for mode in modes:
            f = derivative(f) if mode == "f" else grad(f)
        assert f(x) == pytest.approx(fourth), modes


def test_perturbations_of_nested_calls_are_not_confused():
    """d/dx (x d/dy (x + y)) = 1: the inner derivative does not see the outer variable."""
    for inner in (grad, derivative):
        for outer in (grad, derivative):
            assert outer(lambda x, inner=inner: x * inner(lambda y: x + y)(x))(2.0) == 1.0


def test_a_gather_is_differentiated_twice_with_its_repeats():
    """The second derivative goes through the scatter, a place picked three times included."""
    rows = np.array([[1, 1], [0, 1]])

    def f(t):
        return np.sum(t[rows] ** 3)

    t, v = normal(0, 3, 2), normal(1, 3, 2)
    counts = np.array([[1.0], [3.0], [0.0]])
    np.testing.assert_allclose(jvp(grad(f), (t,), (v,))[1], 6 * counts * t * v)
    np.testing.assert_allclose(grad(lambda t: np.sum(grad(f)(t) * v))(t), 6 * counts * t * v)


# --- the program ---------------------------------------------------------------------------------


def test_the_program_can_be_read():
    """A line a variable: what it is made of, its shape and type; only linear operations."""
    _, pullback = vjp(lambda x, w: np.sum(np.tanh(x @ w.T) / 2), (normal(0, 5, 3), normal(1, 4, 3)))
    assert str(pullback).splitlines() == [
        "t0 = input              (5, 3) float64",
        "t1 = input              (4, 3) float64",
        "t2 = transpose(t1)      (3, 4) float64",
        "t3 = t0 @ (3, 4)        (5, 4) float64",
        "t4 = (5, 3) @ t2        (5, 4) float64",
        "t5 = t3 + t4            (5, 4) float64",
        "t6 = t5 * (5, 4)        (5, 4) float64",
        "t7 = t6 / 2             (5, 4) float64",
        "t8 = sum(t7)            () float64",
    ]
    assert len(pullback) == 9
    assert pullback.nbytes == 8 * (3 * 4 + 5 * 3 + 5 * 4)  # w, x and the slope of tanh


def test_every_operation_has_a_name_in_the_program():
    """The listing never fails, whatever the rule."""
    for case in CASES:
        _, pullback = vjp(function_of(case), case.args)
        assert len(str(pullback).splitlines()) == len(pullback)
        assert pullback.nbytes >= 0


def test_an_array_is_counted_once():
    """x, held for both of its factors and as a view, is x."""
    x = normal(0, 100)
    _, pullback = vjp(lambda x: x * x * x.reshape(10, 10).reshape(100), (x,))
    assert pullback.nbytes == 2 * x.nbytes  # x, and x * x


def test_the_program_is_let_go_with_its_pullback():
    """What it held is freed when it is dropped; value_and_grad leaves nothing behind."""
    seen = []

    @custom_jvp
    def watched(x):
        return x

    @watched.defjvp
    def rule(primals, tangents):
        copy = primals[0] + 0
        seen.append(weakref.ref(copy))
        return primals[0], tangents[0] * copy

    def f(x):
        return np.sum(watched(watched(x)))

    gc.disable()  # no cycle keeps it alive
    try:
        _, pullback = vjp(f, (normal(0, 3),))
        pullback(1.0)
        assert all(ref() is not None for ref in seen)
        del pullback
        assert all(ref() is None for ref in seen)
        seen.clear()
        value_and_grad(f)(normal(0, 3))
        assert len(seen) == 2
        assert all(ref() is None for ref in seen)
    finally:
        gc.enable()


def test_a_gradient_lets_go_of_each_line_once_it_is_read(monkeypatch):
    """While an early line is read, the arrays of later ones are gone already."""
    seen, alive = [], []
    plain = transposes.scale

    def spy(*args):
        alive.append(sum(ref() is not None for ref in seen))
        return plain(*args)

    @custom_jvp
    def watched(x):
        return x

    @watched.defjvp
    def rule(primals, tangents):
        copy = primals[0] + 0
        seen.append(weakref.ref(copy))
        return primals[0], tangents[0] * copy

    monkeypatch.setattr(transposes, "scale", spy)
    grad(lambda x: np.sum(watched(watched(watched(x)))))(normal(0, 3))
    assert alive == [3, 2, 1]


def test_what_no_output_needs_is_not_read(monkeypatch):
    """A branch without influence costs nothing on the way back."""
    calls = []
    plain = transposes.matmul_left
    monkeypatch.setattr(transposes, "matmul_left", lambda *args: calls.append(1) or plain(*args))
    _, pullback = vjp(lambda x: (x @ MIX, x * 2), (normal(0, 3, 4),))
    pullback((None, np.ones((3, 4))))
    assert not calls
    pullback((np.ones((3, 4)), None))
    assert len(calls) == 1


def test_the_gradient_of_a_matrix_is_in_order_in_memory():
    """Whether it was multiplied as it is or turned: what comes next can go through it in a line."""
    x, w = normal(0, 5, 3), normal(1, 4, 3)
    assert grad(lambda w: np.sum((x @ w.T) ** 2))(w).flags.c_contiguous
    assert grad(lambda w: np.sum((w @ x.T) ** 2))(w).flags.c_contiguous
    assert grad(lambda w: np.sum((w.T @ normal(2, 4, 6)) ** 2))(w).flags.c_contiguous


def test_gradients_in_two_threads_are_those_of_one():
    """Tapes share nothing; one pullback may also be called by two threads at once."""
    params = {
        f"w{i + 1}": normal(i, n, m) for i, (m, n) in enumerate([(20, 16), (16, 16), (16, 5)])
    }
    batches = [(normal(9 + i, 32, 20), np.arange(32) % 5) for i in range(4)]

    def loss(p, x, y):
        return cross_entropy(mlp(p, x), y)

    alone = [grad(loss)(params, *batch) for batch in batches]
    _, shared = vjp(lambda p: loss(p, *batches[0]), (params,))
    wrong = []

    def work(turn):
        for _ in range(10):
            gradient = grad(loss)(params, *batches[turn])
            again = shared(1.0)[0]
            for name in params:
                if not np.array_equal(gradient[name], alone[turn][name]):
                    wrong.append(name)
                if not np.array_equal(again[name], alone[0][name]):
                    wrong.append("shared " + name)

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_layers_have_the_gradients_of_their_formulas():
    """Layer norm: r (c - mean c - z mean(z c)); cross entropy: (softmax - one-hot) / batch."""
    x, c = normal(0, 6, 9), normal(1, 6, 9)
    z = layer_norm(x)
    r = 1 / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    mean = lambda a: a.mean(axis=1, keepdims=True)  # noqa: E731
    np.testing.assert_allclose(
        vjp(layer_norm, (x,))[1](c)[0], r * (c - mean(c) - z * mean(z * c)), atol=1e-12
    )
    labels = np.arange(6)
    softmax = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        grad(cross_entropy)(x, labels), (softmax - np.eye(9)[labels]) / 6, atol=1e-14
    )
    gain = normal(2, 9)
    (back,) = vjp(lambda g: rms_norm(x, g), (gain,))[1](c)
    np.testing.assert_allclose(back, np.sum(c * rms_norm(x), axis=0))


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: vjp(np.sum, np.ones(3)), TypeError, "primals must be a tuple"),
        (lambda: vjp(np.sum, (np.arange(3),)), TypeError, r"primals\[0\] is int64"),
        (lambda: grad(np.sum)(np.arange(3)), TypeError, "params is int64"),
        (lambda: grad(lambda p: 0.0)({"w": [np.ones(1), 2]}), TypeError, r"params\['w'\]\[1\]"),
        (lambda: grad(lambda x: x)(np.ones(3)), ValueError, r"one number, got shape \(3,\)"),
        (lambda: grad(lambda x: {"loss": x})(1.0), TypeError, "one number, got a dict"),
        (lambda: grad(lambda x: None)(1.0), TypeError, "one number, got a NoneType"),
        (lambda: grad(lambda x: x * 1j)(1.0), TypeError, "complex"),
        (lambda: grad(lambda x: np.linalg.svd(x)[1].sum())(np.eye(2)), NoRuleError, "svd"),
        (lambda: grad(lambda x: float(x))(1.0), TypeError, "stop_gradient"),
    ],
)  # fmt: skip
def test_bad_calls_are_refused_by_name(call, error, match):
    """The message says which argument, what it is, and what it must be."""
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(
    ("cotangent", "error", "match"),
    [
        (np.ones(2), TypeError, "cotangent"),
        ({"y": np.ones(2)}, TypeError, "cotangent"),
        (
            {"y": np.ones(3), "z": 1.0},
            ValueError,
            r"\['y'\] must have shape \(2,\), got \(3,\)",
        ),
        ({"y": np.ones(2), "z": [1.0]}, ValueError, r"\['z'\] must have shape \(\), got \(1,\)"),
        ({"y": np.ones(2), "z": 1j}, TypeError, r"\['z'\] must hold real numbers, got complex"),
        (
            {"y": np.array(["a", "b"]), "z": 1.0},
            TypeError,
            r"\['y'\] must hold real numbers, got <U1",
        ),
    ],
)
def test_a_cotangent_that_does_not_fit_is_refused_by_name(cotangent, error, match):
    """Structure, shapes and types are those of the output."""
    _, pullback = vjp(lambda x: {"y": x, "z": np.sum(x)}, (np.ones(2),))
    with pytest.raises(error, match=match):
        pullback(cotangent)


def test_an_integer_cotangent_is_a_real_one():
    """1 means 1.0; a Python number is enough for a scalar."""
    _, pullback = vjp(lambda x: x * x, (np.float32(3.0),))
    (back,) = pullback(1)
    assert back == 6
    assert back.dtype == np.float32


# --- Adam ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ADAM, ids=lambda case: case.id)
def test_adam_gives_the_vectors_in_float32(case):
    """Steps worked in exact fractions, as far as float32 holds them."""
    args = arguments(case, minibit)
    adam = Adam(np.float32(args["param"]), betas=tuple(args["betas"]), eps=args["eps"])
    for g, lr, decay, expected in zip(
        args["grads"], args["lr"], args["weight_decay"], decode(case.expect[0]), strict=True
    ):
        step = adam.step(np.float32([g]), lr=float(lr), weight_decay=float(decay))
        assert step.dtype == np.float32
        np.testing.assert_allclose(step, expected, rtol=5 * np.finfo(np.float32).eps)


@given(st.integers(0, 40), st.sampled_from([np.float32, np.float64]), st.integers(0, 9))
def test_the_compiled_step_equals_the_plain_one_to_the_bit(size, dtype, seed):
    """Same operations, same order, no fusing: parameters and both means."""
    from minibit import kernels

    if not kernels.compiled():
        pytest.skip("nothing is compiled here")
    from minibit.kernels.adam import adam_step

    p, g, m, v = (a.astype(dtype) * 10.0 ** (3 * seed - 12) for a in normal(seed, 4, size))
    p, g, m, v = (a.astype(dtype) for a in (p, g, m, abs(v)))
    constants = np.array([0.9, 0.1, 0.95, 0.05, 0.999, 0.0173, 0.31, 1e-8], dtype)
    runs = []
    for step in (adam_step, adam_step_reference):
        arrays = [a.copy() for a in (p, g, m, v, np.empty_like(p))]
        step(*arrays, constants)
        runs.append(arrays)
    for one, other in zip(*runs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_adam_moves_by_the_learning_rate_whatever_the_gradients_size():
    """The first step is lr * sign(g); a steady gradient keeps it, up to eps."""
    g = np.array([1e-6, -1.0, 1e6])
    adam = Adam(np.zeros(3), lr=0.25, eps=1e-30)
    for step in range(1, 6):
        np.testing.assert_allclose(adam.step(g), -0.25 * step * np.sign(g), rtol=1e-12)


def test_adam_changes_neither_parameters_nor_gradients_that_others_hold():
    """Every step returns new arrays; a tree keeps its structure, shapes, types and memory order."""
    params = {"a": normal(0, 3, 2).astype(np.float32).T, "b": (np.float64(1.0), normal(1, 2))}
    grads = {"a": normal(2, 2, 3), "b": (2.0, normal(3, 4)[::2])}
    copies = [params["a"].copy(), grads["a"].copy(), grads["b"][1].copy()]
    adam = Adam(params, 0.1)
    first = adam.step(grads)
    kept = first["a"].copy()
    adam.step(grads)
    for array, before in zip((params["a"], grads["a"], grads["b"][1]), copies, strict=True):
        np.testing.assert_array_equal(array, before)
    np.testing.assert_array_equal(first["a"], kept)
    assert isinstance(first["b"], tuple)
    assert (first["a"].dtype, first["a"].shape) == (np.float32, (2, 3))
    assert (first["b"][0].dtype, first["b"][0].shape) == (np.float64, ())
    assert adam.steps == 2
    assert adam.nbytes == 2 * (6 * 4 + 8 + 2 * 8)


def test_a_parameter_without_gradient_rests():
    """None leaves a parameter and its means as they are; it does not decay either."""
    one = Adam([np.ones(2), np.ones(2)], 0.1, weight_decay=0.5)
    frozen = one.step([None, np.ones(2)])
    np.testing.assert_array_equal(frozen[0], [1.0, 1.0])
    assert (frozen[1] < 1).all()
    assert not one._means[0].any()
    assert Adam([np.ones(2), None], 0.1).step([np.ones(2), None])[1] is None


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: Adam(np.arange(3)), TypeError, "params must be float32 .*, got int64"),
        (lambda: Adam({"w": "x"}), TypeError, r"params\['w'\] must .*, got str"),
        (lambda: Adam([np.ones(2, np.float16)]), TypeError, r"params\[0\] must .*, got float16"),
        (lambda: Adam(np.ones(1), -1.0), ValueError, "lr"),
        (lambda: Adam(np.ones(1), np.nan), ValueError, "lr"),
        (lambda: Adam(np.ones(1), betas=(1.0, 0.9)), ValueError, r"betas\[0\]"),
        (lambda: Adam(np.ones(1), betas=(0.9, -0.1)), ValueError, r"betas\[1\]"),
        (lambda: Adam(np.ones(1), eps=0.0), ValueError, "eps"),
        (lambda: Adam(np.ones(1), weight_decay=-0.1), ValueError, "weight_decay"),
        (lambda: Adam(np.ones(1)).step(np.ones(1), lr=np.inf), ValueError, "lr"),
        (lambda: Adam(np.ones(1)).step(np.ones(1), weight_decay=-1.0), ValueError, "weight_decay"),
        (lambda: Adam({"w": np.ones(2)}).step({"w": np.ones(3)}), ValueError, r"grads\['w'\]"),
        (lambda: Adam({"w": np.ones(2)}).step({"v": np.ones(2)}), TypeError, "structure"),
        (lambda: Adam(np.ones(2)).step(np.array([1j, 0])), TypeError, "complex"),
        (lambda: Adam([None]).step([np.ones(1)]), TypeError, "None"),
        (lambda: Adam({"w": np.ones(2)}).step([]), TypeError, "got a dict of .w. and a list"),
        (lambda: Adam(np.ones(1, np.float32), eps=1e-46), ValueError, "eps"),
        (lambda: clip_by_global_norm([np.array([30, 40])], 1.0), TypeError, "int64"),
        (lambda: clip_by_global_norm([30.0], 1.0), TypeError, "float arrays, got float"),
        (lambda: global_norm([np.array([1j])]), TypeError, "complex128"),
        (lambda: clip_by_global_norm([np.ones(1)], 0.0), ValueError, "limit"),
        (lambda: clip_by_global_norm([np.ones(1)], np.nan), ValueError, "limit"),
        (lambda: two_stage(5, 4, 1.0, 1.0), ValueError, "step must lie in .*, got 5"),
        (lambda: two_stage(-1, 4, 1.0, 1.0), ValueError, "step must lie in .*, got -1"),
        (lambda: two_stage_weight_decay(0, 0), ValueError, "steps must be at least 1"),
    ],
)  # fmt: skip
def test_bad_numbers_for_adam_are_refused_by_name(call, error, match):
    """The message names what is wrong."""
    with pytest.raises(error, match=match):
        call()


def test_a_refused_step_moves_nothing():
    """A wrong shape in the last gradient is found before the first parameter moves."""
    adam = Adam([np.ones(2), np.ones(2)], 0.1)
    with pytest.raises(ValueError, match=r"grads\[1\]"):
        adam.step([np.ones(2), np.ones(3)])
    assert adam.steps == 0
    np.testing.assert_array_equal(adam.params[0], [1.0, 1.0])
    assert not adam._means[0].any()


def test_the_global_norm_of_large_and_small_gradients():
    """Squares that overflow float32 are summed in float64; infinity and NaN are what they are."""
    large = [np.float32([3e30]), None, np.float32([[4e30]]).T]
    assert global_norm(large) == pytest.approx(5e30, rel=1e-6)
    clipped = clip_by_global_norm(large, 5.0)
    np.testing.assert_allclose([clipped[0][0], clipped[2][0, 0]], [3, 4], rtol=1e-6)
    assert clipped[1] is None
    assert global_norm([]) == 0
    assert global_norm([np.array([np.inf, 1.0])]) == np.inf
    spoilt = clip_by_global_norm([np.array([np.inf, 1.0])], 1.0)[0]
    np.testing.assert_array_equal(spoilt, [np.nan, 0.0])
    assert np.isnan(clip_by_global_norm([np.array([np.nan, 1.0])], 1.0)[0]).all()


def test_the_global_norm_keeps_its_digits_where_squares_do_not():
    """Squares that vanish or overflow, in every type; whole numbers too, which wrap around."""
    small = [np.float32([3e-25]), np.float32([4e-25])]
    assert global_norm(small) == pytest.approx(5e-25, rel=1e-6, abs=0)
    assert global_norm({"a": np.array([3e200, 4e200])}) == pytest.approx(5e200)
    smaller = [np.array([3e-200]), None, np.array([[4e-200]])]
    assert global_norm(smaller) == pytest.approx(5e-200, rel=1e-12, abs=0)
    assert global_norm([np.int8([60, 80])]) == 100
    assert global_norm([np.zeros((0, 2), np.float32), np.float32([0])]) == 0
    assert np.isnan(global_norm([np.float32([1e30]), np.float32([np.nan])]))


def test_adam_with_straight_through_learns_ternary_weights():
    """Latent weights move until their codes fit: a teacher's ternary layer is found exactly."""
    rng = np.random.default_rng(0)
    teacher = rng.integers(-1, 2, (6, 8))
    x = rng.standard_normal((256, 8))
    y = x @ teacher.T
    codes = straight_through(lambda w: np.clip(np.rint(w), -1, 1))
    adam = Adam(rng.uniform(-0.7, 0.7, (6, 8)), lr=0.05)
    for _ in range(150):
        adam.step(grad(lambda w: np.mean((ternary_linear(x, codes(w)) - y) ** 2))(adam.params))
    np.testing.assert_array_equal(codes(adam.params), teacher)


def test_the_public_names_are_those_of_the_room():
    """What the optimizers' file defines is found here, but for what the compiled pass needs."""
    import minibit.tape.reverse

    own = {
        k
        for k, v in vars(optimizers).items()
        if getattr(v, "__module__", "") == optimizers.__name__
    }
    assert "Adam" in own
    assert own - {"adam_step_reference", "adam_move", "_flat"} <= set(minibit.tape.__all__)
    assert isinstance(vjp(np.sin, (1.0,))[1], Pullback)


def test_nobody_can_change_an_output_that_the_program_holds():
    """The slope of the exponential is its output: a residual made in place would spoil it."""
    x = np.array([0.0, 1.0])
    out, pullback = vjp(lambda x: {"e": np.exp(x)}, (x,))
    with pytest.raises(ValueError, match="read-only"):
        out["e"] -= 1
    np.testing.assert_array_equal(pullback({"e": out["e"] - 1})[0], (np.exp(x) - 1) * np.exp(x))
    same, _ = vjp(lambda x: x, (x,))
    assert not same.flags.writeable
    assert x.flags.writeable
