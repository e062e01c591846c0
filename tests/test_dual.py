"""Forward mode, stated as laws: JVPs, nesting, many directions, own rules, clear refusals."""

import copy
import itertools
import math
import threading
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibit.dual import (
    Dual,
    NoRuleError,
    custom_jvp,
    derivative,
    forward_gradient,
    jacfwd,
    jvp,
    jvp_batch,
    stop_gradient,
    straight_through,
)
from minibit.tape import grad, vjp

D = derivative
rng = np.random.default_rng(0)


def layer_norm(x):
    """Centre and scale the last axis."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def network(params, x):
    """Two layers, ReLU and a layer norm between: plain NumPy."""
    h = np.maximum(layer_norm(x @ params["w1"].T), 0)
    return h @ params["w2"].T


def cross_entropy(logits, labels):
    """Mean negative log-probability of the labels."""
    z = logits - logits.max(axis=-1, keepdims=True)
    log_p = z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))
    return -np.mean(log_p[np.arange(len(labels)), labels])


PARAMS = {"w1": rng.standard_normal((6, 5)), "w2": rng.standard_normal((3, 6))}
X = rng.standard_normal((4, 5))
LABELS = np.array([0, 2, 1, 2])


def loss(params, x=X):
    """Return the network's cross entropy."""
    return cross_entropy(network(params, x), LABELS)


def random_like(tree, *lead, seed=1):
    """Draw a direction for a dict of arrays."""
    draw = np.random.default_rng(seed)
    return {k: draw.standard_normal((*lead, *v.shape)) for k, v in tree.items()}


# One direction.


def test_plain_code_of_a_network_is_differentiated_as_it_stands():
    """The JVP of a loss is its central difference along the direction."""
    v, h = random_like(PARAMS), 1e-6
    out, slope = jvp(loss, (PARAMS,), (v,))
    ahead, behind = ({k: w + s * h * v[k] for k, w in PARAMS.items()} for s in (1, -1))
    assert out == loss(PARAMS)
    np.testing.assert_allclose(slope, (loss(ahead) - loss(behind)) / (2 * h), rtol=1e-7)


def test_a_dual_made_by_hand_is_a_number_plus_epsilon():
    """(3 + e)(2 + 4e) = 6 + 14e: every dual made by hand has the same e."""
    z = Dual(3.0, 1.0) * Dual(2.0, 4.0)
    assert (float(z.primal), float(z.tangent)) == (6.0, 14.0)
    assert repr(Dual(3.0, 1.0)) == "Dual(3.0, 1.0)"


def test_trees_go_in_and_come_out_in_their_structure():
    """Dicts, lists, tuples and named tuples, nested; None among the outputs stays."""

    class Pair(NamedTuple):
        first: object
        second: object

    def f(tree, scale):
        return {"sum": tree["a"][0] + tree["a"][1], "pair": Pair(tree["b"] * scale, None)}, [
            1,
            scale,
        ]

    tree = {"a": [np.ones(2), np.zeros(2)], "b": np.full(3, 2.0)}
    tangents = {"a": (np.ones(2), None), "b": np.ones(3)}
    out, dot = jvp(f, (tree, 3.0), (tangents, 1.0))
    assert isinstance(out[0]["pair"], Pair)
    assert isinstance(dot[0]["pair"], Pair)
    np.testing.assert_array_equal(dot[0]["sum"], [1, 1])
    np.testing.assert_array_equal(dot[0]["pair"].first, [5, 5, 5])
    assert dot[0]["pair"].second is None
    assert [float(d) for d in dot[1]] == [0.0, 1.0]


@pytest.mark.parametrize("other", [np.ones(2), [1.0], {"a": 1.0, "b": 1.0}, (1.0, 2.0, 3.0)])
def test_tangents_of_another_structure_are_refused(other):
    """An array is no list, even if it is as long; the error names both."""
    with pytest.raises(TypeError, match=r"primals\[0\] and what goes with it .* a list of 2 and a"):
        jvp(lambda tree: tree[0] * tree[1], ([1.0, 2.0],), (other,))


def test_an_argument_without_a_tangent_arrives_as_it_was_given():
    """None costs nothing: the function sees the plain array, of whatever type."""
    seen = []

    def f(x, labels, name):
        seen.extend([labels, name])
        return x * 2

    labels = np.array([1, 2])
    jvp(f, (1.0, labels, "name"), (1.0, None, None))
    assert seen[0] is labels
    assert seen[1] == "name"


def test_an_output_that_does_not_depend_on_the_primals_has_tangent_zero():
    """Zeros of its shape and type; float64 for integers."""
    out, dot = jvp(lambda x: (np.float32([1, 2]), np.argmax(x), 7), (np.ones(3),), (np.ones(3),))
    assert dot[0].dtype == np.float32
    assert [np.shape(d) for d in dot] == [(2,), (), ()]
    assert not any(np.any(d) for d in dot)
    assert out[2] == 7
    _, dots = jvp_batch(lambda x: np.ones(2), (1.0,), (np.ones(5),))
    np.testing.assert_array_equal(dots, np.zeros((5, 2)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_a_tangent_takes_the_floating_type_of_its_primal(dtype):
    """Directions of int8 or float64 are converted; nothing widens on the way."""
    w = np.ones((2, 3), dtype)
    out, dot = jvp(lambda w: layer_norm(w) * 2 + 1.5, (w,), (np.eye(2, 3, dtype=np.int8),))
    assert out.dtype == dot.dtype == dtype
    _, dot = jvp(np.sum, (w,), (np.ones((2, 3)),))
    assert dot.dtype == dtype


def test_results_do_not_alias_read_only_memory():
    """What comes back can be written to, and the given tangents are unchanged."""
    v = np.ones((3, 1))
    _, dot = jvp(lambda x: x + np.zeros((3, 4)), (np.ones((3, 1)),), (v,))
    dot += 1
    np.testing.assert_array_equal(v, np.ones((3, 1)))
    assert dot.shape == (3, 4)


def test_nan_and_infinity_flow_as_in_the_formula():
    """An infinite slope times a direction; NaN stays NaN and stays in its place."""
    _, dot = jvp(lambda x: x * x, (np.array([np.nan, np.inf, 2.0]),), (np.ones(3),))
    np.testing.assert_array_equal(dot, [np.nan, np.inf, 4.0])


def test_a_branch_goes_the_way_of_the_primal():
    """Comparisons, bool, len and iteration see the primal, so control flow is unchanged."""

    def f(x):
        total = 0.0
        for row in x:
            if row[0] > 0 and np.any(row < 5):
                total = total + row.sum() * len(x)
        return total

    x = np.array([[1.0, 2.0], [-1.0, 2.0], [3.0, 4.0]])
    out, dot = jvp(f, (x,), (np.arange(6.0).reshape(3, 2),))
    assert float(out) == f(x) == 30.0
    assert float(dot) == (0 + 1 + 4 + 5) * 3
    assert type(Dual(1.0, 1.0) < 2) is np.bool_
    assert bool(Dual(0.0, 1.0)) is False
    assert Dual(2.0, 1.0) == 2.0
    assert f"{Dual(2.0, 1.0):.1f}" == "2.0"
    assert max(Dual(2.0, 1.0), Dual(3.0, 7.0)).tangent == 7.0


# Nesting.


@pytest.mark.parametrize("order", range(1, 7))
def test_derivatives_of_any_order_nest(order):
    """D^n exp = exp; D^n x^6 = 6! / (6 - n)! x^(6 - n)."""
    f, g = np.exp, lambda x: x**6
    for _ in range(order):
        f, g = D(f), D(g)
    np.testing.assert_allclose(f(0.3), np.exp(0.3), rtol=1e-13)
    expected = math.factorial(6) / math.factorial(6 - order) * 1.5 ** (6 - order)
    np.testing.assert_allclose(g(1.5), expected, rtol=1e-13)


def test_perturbations_are_not_confused():
    """ForwardDiff's suite: D(x -> x D(y -> x + y)(1))(1) = 1, where one shared e gives 2."""
    assert D(lambda x: x * D(lambda y: x + y)(1.0))(1.0) == 1.0
    assert D(lambda x: x * D(lambda y: x * y)(2.0))(3.0) == 6.0
    assert D(lambda x: D(lambda y: D(lambda z: x * y * z)(3.0))(2.0))(1.0) == 1.0
    assert D(lambda x: x * D(lambda y: y * D(lambda z: x + y + z)(1.0))(2.0))(5.0) == 1.0

    def summed(v):
        return np.sum(v) * D(lambda y: y * np.linalg.norm(v))(1.0)

    np.testing.assert_array_equal(
        jacfwd(summed)(np.ones(1)), jacfwd(lambda v: np.sum(v) * np.linalg.norm(v))(np.ones(1))
    )


def test_perturbations_are_not_confused_in_float16():
    """What is computed in float32 beside keeps the outer tangents: d/dx d/dy x y^2 = 2 y."""
    x, y, one = np.float16([3, 2, 1])
    assert D(lambda x: x * D(lambda y: x + y)(one))(one) == 1.0
    assert D(lambda x: D(lambda y: x * y * y)(y))(x) == 4.0
    assert D(lambda x: jvp(lambda y: x * y, (y,), (one,))[0])(x) == 2.0


def test_perturbations_are_not_confused_across_jacobians():
    """ForwardDiff's suite, issue 83: d/dx grad_y (y . A x) = A."""
    a = rng.standard_normal((10, 8))
    x, y = rng.standard_normal(8), rng.standard_normal(10)
    jacobian = jacfwd(lambda x: jacfwd(lambda y: np.dot(y, a @ x))(y))(x)
    np.testing.assert_allclose(jacobian, a, rtol=1e-12)


def test_perturbations_are_not_confused_in_a_legendre_transformation():
    """ForwardDiff's suite, issue 238: the Hamiltonian of a falling mass has dH/dq = (0, m g)."""
    m, g = 1.0, 9.8

    def lagrangian(q, q_dot):
        return m / 2 * np.dot(q_dot, q_dot) - m * g * q[1]

    def legendre(f, w):
        z = np.zeros(2)
        gradient, hessian = jacfwd(f)(z), jacfwd(jacfwd(f))(z)
        v = np.linalg.solve(hessian, w - gradient)
        return np.dot(w, v) - f(v)

    q, p = np.array([1.0, 2.0]), np.array([5.0, 6.0])
    force = jacfwd(lambda q: legendre(lambda v: lagrangian(q, v), p))(q)
    np.testing.assert_allclose(force, [0.0, m * g], atol=1e-12)
    mixed = jacfwd(lambda q: jacfwd(lambda v: lagrangian(q, v))(np.array([3.0, 4.0])))(q)
    np.testing.assert_array_equal(mixed, np.zeros((2, 2)))


def test_an_outer_variable_is_a_constant_of_the_inner_derivative():
    """D(y -> x)(1) = 0 though x carries the outer tangent; a closed-over tangent passes through."""
    assert D(lambda x: D(lambda y: x)(1.0))(2.0) == 0.0
    assert D(lambda x: jvp(lambda y: y * y, (3.0,), (x,))[1])(2.0) == 6.0
    assert D(lambda x: jvp(lambda y: y * y, (x,), (x,))[1])(2.0) == 8.0


def test_tags_stay_apart_across_threads():
    """Eight threads differentiate nested functions at once; each gets its own answer."""
    results = {}

    def work(i):
        for _ in range(50):
            results[i] = float(D(lambda x: x**i * D(lambda y: x * y)(1.0))(1.0))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: i + 1.0 for i in range(8)}


# Many directions.


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_many_directions_of_a_network_are_a_loop_over_one(count, seed):
    """jvp_batch(V)[d] = jvp(V[d]) for every d, and the value is computed once."""
    v = random_like(PARAMS, count, seed=seed)
    out, slopes = jvp_batch(loss, (PARAMS,), (v,))
    assert out == loss(PARAMS)
    assert slopes.shape == (count,)
    single = [jvp(loss, (PARAMS,), ({k: t[d] for k, t in v.items()},))[1] for d in range(count)]
    np.testing.assert_allclose(slopes, np.reshape(single, count), rtol=1e-9, atol=1e-12)


def test_directions_are_not_taken_for_a_batch():
    """Four directions of a vector of four, added to a 4 x 4 matrix: each meets its own axis."""
    x, v = np.ones(4), np.arange(16.0).reshape(4, 4)
    matrix = np.ones((4, 4))
    _, dots = jvp_batch(lambda x: x + matrix, (x,), (v,))
    np.testing.assert_array_equal(dots, np.broadcast_to(v[:, None, :], (4, 4, 4)))
    _, dots = jvp_batch(lambda x: x[:, None] * matrix, (x,), (v,))
    np.testing.assert_array_equal(dots, np.broadcast_to(v[:, :, None], (4, 4, 4)))


def test_the_identity_has_its_directions_as_tangents():
    """What is returned unchanged, and what moves equally everywhere, has the right shape."""
    v = rng.standard_normal((3, 2))
    out, dots = jvp_batch(lambda x: (x, x * 0 + 1), (np.ones(2),), (v,))
    np.testing.assert_array_equal(dots[0], v)
    np.testing.assert_array_equal(dots[1], np.zeros((3, 2)))
    np.testing.assert_array_equal(out[0], np.ones(2))


def test_a_jacobian_has_the_axes_of_the_output_then_of_the_input():
    """J[i, j, k, l] = d out[i, j] / d x[k, l]; trees of outputs give trees of Jacobians."""
    x, a = rng.standard_normal((2, 3)), rng.standard_normal((4, 2))
    jacobian = jacfwd(lambda x: {"y": a @ x})(x)["y"]
    assert jacobian.shape == (4, 3, 2, 3)
    np.testing.assert_allclose(jacobian, np.einsum("ik,jl->ijkl", a, np.eye(3)), rtol=1e-14)
    assert jacfwd(np.sin)(np.float64(0.0)).shape == ()


def test_a_hessian_is_symmetric_and_right():
    """jacfwd(jacfwd(f)): for f = x A x / 2 it is (A + A^T) / 2; for a network it is symmetric."""
    a, x = rng.standard_normal((3, 3)), rng.standard_normal(3)
    hessian = jacfwd(jacfwd(lambda x: x @ a @ x / 2))(x)
    np.testing.assert_allclose(hessian, (a + a.T) / 2, rtol=1e-12)
    w2 = PARAMS["w2"]
    hessian = jacfwd(jacfwd(lambda w: loss({"w1": PARAMS["w1"], "w2": w})))(w2).reshape(18, 18)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12)
    assert np.abs(hessian).max() > 1e-2


# Forward gradients.


def gradient_of(f, params):
    """Take the gradient, a direction an entry."""
    return {k: jacfwd(lambda w, k=k: f({**params, k: w}))(w) for k, w in params.items()}


def test_a_forward_gradient_over_every_sign_vector_is_the_gradient():
    """E[v v^T] = I holds exactly over all 2^n sign vectors, so the estimate is exact."""
    params = {"a": np.array([0.3, -1.0]), "b": np.array([[2.0, 0.5]])}

    def f(p):
        return np.sum(np.sin(p["a"]) * np.exp(p["b"]))

    signs = np.array(list(itertools.product([-1, 1], repeat=4)))  # (directions, entries)
    directions = {"a": signs[:, :2], "b": signs[:, 2:].reshape(16, 1, 2)}
    value, estimate = forward_gradient(f, params, directions)
    assert value == f(params)
    for k, g in gradient_of(f, params).items():
        np.testing.assert_allclose(estimate[k], g, rtol=1e-12)


def test_a_forward_gradient_is_the_mean_of_slope_times_direction():
    """The formula g = mean_d (grad f . v_d) v_d, in the type of the parameters."""
    v = random_like(PARAMS, 3)
    _, estimate = forward_gradient(loss, PARAMS, v)
    slopes = jvp_batch(loss, (PARAMS,), (v,))[1]
    for k in PARAMS:
        expected = np.mean([s * d for s, d in zip(slopes, v[k], strict=True)], axis=0)
        np.testing.assert_allclose(estimate[k], expected, rtol=1e-12)
    small = {k: w.astype(np.float32) for k, w in PARAMS.items()}
    _, estimate = forward_gradient(lambda p: loss(p, X.astype(np.float32)), small, v)
    assert all(g.dtype == np.float32 for g in estimate.values())
    _, nothing = forward_gradient(loss, PARAMS, random_like(PARAMS, 0))
    assert not any(np.any(g) for g in nothing.values())


def test_a_parameter_without_directions_has_no_estimate():
    """None holds a part of the parameters constant; its estimate is None."""
    v = {"w1": np.ones((2, 6, 5)), "w2": None}
    _, estimate = forward_gradient(loss, PARAMS, v)
    assert estimate["w2"] is None
    assert estimate["w1"].shape == (6, 5)


def test_a_forward_gradient_needs_one_number():
    """A vector-valued function has no gradient."""
    with pytest.raises(ValueError, match=r"one number, got shape \(3,\)"):
        forward_gradient(lambda x: x * 2, np.ones(3), np.ones((2, 3)))


# Rules of one's own.


@custom_jvp
def softplus(x, sharpness=1.0):
    """log(1 + exp(s x)) / s."""
    return np.log1p(np.exp(sharpness * x)) / sharpness


@softplus.defjvp
def _(primals, tangents, sharpness=1.0):
    (x,), (x_dot,) = primals, tangents
    return softplus(x, sharpness=sharpness), x_dot / (1 + np.exp(-sharpness * x))


def test_a_custom_rule_replaces_the_derivative_and_nests():
    """Value, first, second derivative and many directions all go by the given rule."""
    assert softplus.__name__ == "softplus"
    assert type(softplus(0.0)) is np.float64
    assert softplus(0.0) == np.log(2)
    np.testing.assert_allclose(D(softplus)(0.0), 0.5)
    np.testing.assert_allclose(D(D(softplus))(0.0), 0.25)
    np.testing.assert_allclose(D(lambda x: softplus(x, sharpness=2.0))(1.0), 1 / (1 + np.exp(-2)))
    _, dots = jvp_batch(lambda x: softplus(x * np.ones(3)), (0.0,), (np.array([1.0, 2.0]),))
    np.testing.assert_allclose(dots, [[0.5] * 3, [1.0] * 3])


def test_a_custom_rule_answers_the_innermost_of_two_perturbations():
    """In d/dy (d/dx f(x, y)) the arguments carry one each; their order does not matter."""

    @custom_jvp
    def product(x, y):
        return x * y

    product.defjvp(lambda p, t: (product(*p), product(t[0], p[1]) + product(p[0], t[1])))
    for f in (product, lambda x, y: product(y, x)):
        assert D(lambda y, f=f: D(lambda x: f(x, y))(2.0))(3.0) == 1.0


def test_a_custom_rule_decides_even_when_it_is_wrong():
    """Nothing else is consulted: a rule that says 7 gives 7."""

    @custom_jvp
    def f(x, y):
        return {"sum": x + y, "label": 3}

    @f.defjvp
    def _(primals, tangents):
        assert tangents[1] is not None
        return f(*primals), {"sum": 7 * tangents[0] + 0 * tangents[1], "label": None}

    out, dot = jvp(lambda x: f(x, 2.0), (1.0,), (1.0,))
    assert (float(out["sum"]), float(dot["sum"]), out["label"]) == (3.0, 7.0, 3)


def test_a_custom_rule_gets_zeros_for_constants_and_none_for_integers():
    """Constants have tangents of zeros of their shape; labels have none."""
    seen = []

    @custom_jvp
    def f(params, labels, scale):
        return params["w"] * scale

    @f.defjvp
    def _(primals, tangents):
        seen.append(tangents)
        return f(*primals), tangents[0]["w"] * primals[2]

    jvp(lambda w: f({"w": w, "b": np.ones(2)}, np.arange(3), 2.0), (np.ones(4),), (np.ones(4),))
    ((tree, labels, scale),) = seen
    np.testing.assert_array_equal(tree["b"], np.zeros(2))
    assert labels is None
    assert scale == 0.0


def test_a_custom_rule_may_say_that_its_output_does_not_move():
    """None for a tangent: zeros come out."""
    f = custom_jvp(np.round)
    f.defjvp(lambda primals, tangents: (f(*primals), None))
    assert jvp(f, (1.7,), (1.0,)) == (2.0, 0.0)


def test_a_custom_rule_may_take_a_jvp_itself():
    """A rule that pushes its tangents through another function holds for many directions too."""

    @custom_jvp
    def f(x):
        return np.round(x)

    @f.defjvp
    def _(primals, tangents):
        return f(*primals), jvp(lambda x: np.sin(x).sum() * np.ones(2), primals, tangents)[1]

    v = rng.standard_normal((3, 2))
    x = np.array([0.1, 2.0])
    _, dots = jvp_batch(f, (x,), (v,))
    np.testing.assert_allclose(dots, (v @ np.cos(x))[:, None] * np.ones(2), rtol=1e-12)


def test_a_rule_may_join_tangents_without_saying_along_which_axis():
    """It is the first, as NumPy's default."""

    @custom_jvp
    def twice(x):
        return np.concatenate([x, x])

    twice.defjvp(lambda p, t: (twice(*p), np.concatenate([t[0], 2 * t[0]])))
    x = np.arange(6.0).reshape(2, 3)
    _, dots = jvp_batch(twice, (x,), (np.stack([x, x + 1]),))
    np.testing.assert_array_equal(dots[1], np.concatenate([x + 1, 2 * (x + 1)]))


def test_custom_rules_that_cannot_work_are_refused():
    """No rule yet, a dual as keyword, no pair, a tangent that does not fit: each says so."""

    @custom_jvp
    def f(x):
        return x * 1.0

    with pytest.raises(NoRuleError, match=r"no rule for f.*defjvp"):
        D(f)(1.0)
    f.defjvp(lambda primals, tangents: (f(*primals), np.ones(3)))
    with pytest.raises(ValueError, match=r"rule of f must have shape \(\), got \(3,\)"):
        D(f)(1.0)
    with pytest.raises(ValueError, match=r"rule of f must have shape \(2,\), got \(3,\)"):
        jvp(f, (np.ones(2),), (np.ones(2),))
    f.defjvp(lambda primals, tangents: tangents[0])  # two entries, but no pair
    with pytest.raises(TypeError, match=r"f must return \(output, tangent\), got a ndarray"):
        jvp(f, (np.ones(2),), (np.ones(2),))
    f.defjvp(lambda primals, tangents: (f(*primals), 1j * tangents[0]))
    with pytest.raises(TypeError, match="rule of f must hold real numbers, got complex128"):
        D(f)(1.0)
    with pytest.raises(NoRuleError, match="keyword"):
        D(lambda x: f(x=x))(1.0)
    f.defjvp(lambda primals, tangents: (f(*primals), tangents[0] * tangents[0]))
    with pytest.raises(NoRuleError, match=r"np.multiply.*linear"):
        jvp_batch(f, (1.0,), (np.ones(2),))


def test_stop_gradient_drops_tangents_of_every_order():
    """The slope of x stop(x) is x, its curvature 0; trees keep their structure; arrays pass."""
    assert D(lambda x: x * stop_gradient(x))(3.0) == 3.0
    assert D(D(lambda x: x * stop_gradient(x) ** 2))(3.0) == 0.0
    tree = stop_gradient({"a": [Dual(1.0, 2.0)], "b": PARAMS["w1"]})
    assert tree == {"a": [1.0], "b": PARAMS["w1"]} or tree["b"] is PARAMS["w1"]
    assert not isinstance(tree["a"][0], Dual)


def test_straight_through_has_the_value_of_the_function_and_the_slope_of_the_identity():
    """Here y = f(x) to the bit and y_dot = x_dot; integer codes take the type of x."""
    x = np.array([-1.7, 0.2, 0.5], np.float32)
    codes = straight_through(lambda x: np.clip(np.rint(x), -1, 1).astype(np.int8))
    out, dot = jvp(codes, (x,), (np.arange(3.0),))
    np.testing.assert_array_equal(out, [-1, 0, 0])
    np.testing.assert_array_equal(dot, [0, 1, 2])
    assert codes(x).dtype == out.dtype == dot.dtype == np.float32
    assert D(D(straight_through(np.sin)))(0.3) == 0.0
    assert D(lambda x: straight_through(np.round)(x) * x)(1.7) == 2.0 + 1.7
    _, dots = jvp_batch(codes, (x,), (np.eye(3),))
    np.testing.assert_array_equal(dots, np.eye(3))


def test_the_other_arguments_of_straight_through_are_constants():
    """A threshold that moves does not move the codes."""
    f = straight_through(lambda x, threshold: (x > threshold) * 1.0)
    assert D(lambda t: f(2.0 * t, t))(1.0) == 2.0
    shrink = straight_through(lambda x, t, by=0: np.sign(x) * np.maximum(abs(x) - t - by, 0))
    assert D(lambda t: shrink(2.0 * t, t, by=t))(1.0) == 2.0
    with pytest.raises(ValueError, match=r"\(3,\) became \(\)"):
        straight_through(np.sum)(np.ones(3))
    with pytest.raises(TypeError, match="int64"):
        straight_through(np.sign)(np.arange(3))


# Assignment to entries.


def recurrence(x):
    """Fill an array of its own, an entry after the other."""
    y = np.zeros_like(x, shape=4)
    y[0] = x[0, 0] ** 2
    for i in range(1, 4):
        y[i] = y[i - 1] * x[1, i - 1]
    y[1] += x[0, 1]
    return y * np.sum(y)


def elimination(x):
    """Solve two equations in place, through views of the rows."""
    a = np.concatenate([x[:, :2] + 3 * np.eye(2), x[:, 2:]], axis=1)
    for i, row in enumerate(a):
        row /= row[i].copy()
        a[1 - i] -= a[1 - i, i] * row
    return a[:, 2]


def own_argument(x):
    """Write over what was given: here a copy, and the caller's array stays as it is."""
    x[0] = x[1] * 2
    x[..., -1] = 1
    x *= x
    return x


def masked(x):
    """Assign by masks, by numbers of which the last counts, and from back to front."""
    y = np.ones_like(x)
    y[x > 0] = x[x > 0] ** 2
    y[[0, 0], [1, 1]] = x[1, :2]
    y[:, ::-2] = x[:, :2]
    return y


def into_out(x):
    """Give NumPy a place for the result."""
    y, number = np.empty_like(x), x[0, 0]
    np.multiply(x, 3.0, out=y)
    np.exp(x, y)
    total = number
    total += 1  # a number is not written to
    return y * number + total


def swapped(x):
    """Swap what overlaps, and rotate in place."""
    y = x.copy()
    y[0, 0], y[1, 1] = y[1, 1], y[0, 0]
    y[:, 1:] = y[:, :-1]
    return y * x


FILLED = (recurrence, elimination, own_argument, masked, into_out, swapped)


@pytest.mark.parametrize("f", FILLED, ids=lambda f: f.__name__)
def test_assignment_to_entries_is_differentiated(f):
    """Value of plain NumPy; tangents by differences, many at once, in reverse and nested."""
    x = np.array([[0.5, 1.5, -2.5], [1.25, -0.75, 2.0]])
    kept, h = x.copy(), 1e-6
    u, v = rng.standard_normal((2, *x.shape))
    out, tangent = jvp(f, (x,), (v,))
    np.testing.assert_array_equal(out, f(x.copy()))
    slope = (f(x + h * v) - f(x - h * v)) / (2 * h)
    np.testing.assert_allclose(tangent, slope, rtol=1e-7, atol=1e-8)
    _, both = jvp_batch(f, (x,), (np.stack([u, v]),))
    np.testing.assert_allclose(both[1], tangent, rtol=1e-12, atol=1e-14)
    _, pullback = vjp(f, (x,))
    c = rng.standard_normal(out.shape)
    np.testing.assert_allclose(np.sum(pullback(c)[0] * v), np.sum(c * tangent), rtol=1e-10)
    second = jvp(lambda x: jvp(f, (x,), (u,))[1], (x,), (v,))[1]
    swapped = jvp(lambda x: jvp(f, (x,), (v,))[1], (x,), (u,))[1]
    back = jvp(lambda x: vjp(f, (x,))[1](c)[0], (x,), (v,))[1]
    np.testing.assert_allclose(second, swapped, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(np.sum(back * u), np.sum(c * second), rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(x, kept)


INDICES = [
    0, -1, slice(None), slice(1, None), slice(None, None, -1), (..., 0), (slice(None), 1), (0, 1),
    (slice(None), slice(0, 2)), [1, 0], (slice(None), np.array([1, 1])),
]  # fmt: skip
VIEWED = [
    *(lambda a, i=i: a[i] for i in INDICES),
    lambda a: a.T,
    lambda a: a.mT,
    lambda a: a.reshape(-1),
    lambda a: np.transpose(a=a),
    lambda a: a.ravel(),
    lambda a: np.ravel(a.T),
    lambda a: a.flatten(),
    lambda a: a.copy(),
    lambda a: copy.copy(a),
    lambda a: np.flip(a),
    lambda a: np.expand_dims(a, 0),
    lambda a: np.squeeze(a[:1]),
    lambda a: np.moveaxis(a, 0, -1),
    lambda a: np.atleast_2d(a),
    lambda a: np.split(a, 1)[0],
    lambda a: np.take(a, 0, axis=0),
    lambda a: np.tile(a, 1),
    lambda a: np.concatenate([a, a]),
]


def write_and_view(pool, steps, fits=None):
    """Run a program on a pool of arrays; `fits` collects the steps that NumPy takes."""
    for step in steps:
        operation, source, target, index, view = step
        source, target = pool[source % len(pool)], pool[target % len(pool)]
        try:
            if operation == "view":
                shown = view(source)
                pool += [shown] if np.ndim(shown) else []
            elif operation == "write":
                target[index] = source * 2
            elif operation == "add":
                target += source
            else:
                target[index] *= 3
        except (IndexError, ValueError):
            if fits is None:
                raise
        else:
            if fits is not None:
                fits.append(step)
    return [a * 1.0 for a in pool]


STEPS = st.tuples(
    st.sampled_from(["view", "view", "write", "add", "scale"]),
    *(st.integers(0, 9), st.integers(0, 9), st.sampled_from(INDICES), st.sampled_from(VIEWED)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=12), st.booleans())
def test_views_are_written_through_as_numpy_does(steps, turned):
    """A linear program of views, writes and sums in place moves a tangent as it moves an array."""
    x, fits = np.arange(6.0).reshape(2, 3), []
    x = x.reshape(3, 2).T if turned else x
    v = (x + 1) ** 2
    plain = write_and_view([x.copy(order="K")], steps, fits)
    moved = write_and_view([v.copy(order="K")], fits)
    out, tangent = jvp(lambda x: write_and_view([x], fits), (x,), (v,))
    for ours, theirs in ((out, plain), (tangent, moved)):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("repeats", [1, (1, 1), (1, 1, 1)])
def test_a_tile_of_one_keeps_its_order_in_memory(repeats):
    """So a reshape of it is a copy where NumPy's is, and a view where that is one."""

    def f(x):
        tiled = np.tile(x.T, repeats)
        flat = tiled.reshape(-1)
        flat[0] += flat[1]
        return tiled

    x = np.arange(6.0).reshape(2, 3)
    _, tangent = jvp(f, (x,), (x + 1,))
    np.testing.assert_array_equal(tangent, f(x + 1))


def test_leading_axes_of_length_1_may_be_assigned_to_entries_that_lack_them():
    """As NumPy drops them: (1, 1, 2) goes into two entries."""

    def f(x):
        y = 3 * x
        y[1:] = (x[:2] ** 2).reshape(1, 1, 2)
        return y

    x, v = np.array([1.0, 2.0, 3.0]), np.array([1.0, 10.0, 100.0])
    out, tangent = jvp(f, (x,), (v,))
    np.testing.assert_array_equal(out, [3, 1, 4])
    np.testing.assert_array_equal(tangent, [3, 2, 40])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: np.average(x, axis=0, weights=np.ones(2)), "weights of another shape"),
        (
            lambda x: np.einsum(np.ones((2, 3)), [0, 1], x, [1, 0]),
            "lists of axes: write the subscripts",
        ),
    ],
)
def test_forms_of_functions_without_a_rule_are_named(function, message):
    """And the error says what to write in their place."""
    x = np.ones((2, 3))
    with pytest.raises(NoRuleError, match=message):
        jvp(function, (x,), (x,))


def test_a_view_shows_what_was_written_to_its_array():
    """Its text, too, is that of today."""

    def f(x):
        view = x[:2]
        x[0] = 5.0
        assert repr(view) == "Dual([5. 2.], [0. 4.])"
        return view

    jvp(f, (np.array([1.0, 2.0]),), (np.array([3.0, 4.0]),))


def test_a_view_sees_what_is_written_to_its_array():
    """Before and after; a view of a view; a copy does not."""

    def f(x):
        y = x * 1.0
        row, column, taken = y[0], y.T[1], y.copy()
        inner = row[1:]
        y[0, 1] = 7 * x[0, 0]
        inner[-1] = 2 * x[1, 1]
        return np.stack([row[1], column[0], inner[0], y[0, 2], taken[0, 1]])

    x = np.arange(6.0).reshape(2, 3)
    out, tangent = jvp(f, (x,), (x + 1,))
    np.testing.assert_array_equal(out, [0, 0, 0, 8, 1])
    np.testing.assert_array_equal(tangent, [7, 7, 7, 10, 2])


def test_a_constant_written_to_an_entry_stops_its_tangent():
    """Also to all entries; integers and float64 take the type of the array."""

    def f(x):
        x[0] = 2
        x[1:2] = np.float64(0.1)
        y = x * 1
        y[:] = np.ones(3)
        return x, y

    x = np.ones(3, np.float32)
    (out, ones), (tangent, none) = jvp(f, (x,), (x,))
    np.testing.assert_array_equal(out, np.array([2, 0.1, 1], np.float32))
    np.testing.assert_array_equal(tangent, [0, 0, 1])
    assert (ones.tolist(), none.tolist(), none.dtype) == ([1] * 3, [0] * 3, np.float32)


def test_an_inner_variable_may_be_written_to_an_outer_one():
    """The array then moves with both; the inner derivative is that of the entry."""

    def f(x):
        def g(y):
            z = x * 1.0  # moves with x alone, until y is written to it
            first = z[:1]
            z[0] = y**2 * x[1]
            return np.sum(first * z[2])

        return D(g)(x[0])

    x = np.array([2.0, 3.0, 5.0])
    out, tangent = jvp(f, (x,), (np.ones(3),))
    np.testing.assert_allclose([out, tangent], [2 * 2 * 3 * 5, 30 + 20 + 12])
    np.testing.assert_allclose(jacfwd(f)(x), [2 * 3 * 5, 2 * 2 * 5, 2 * 2 * 3])
    np.testing.assert_allclose(grad(f)(x), [2 * 3 * 5, 2 * 2 * 5, 2 * 2 * 3])


@pytest.mark.parametrize(
    ("index", "value", "error", "message"),
    [
        (slice(0, 2), np.ones(3), ValueError, r"shape \(2,\) cannot be assigned values of \(3,\)"),
        (0, np.ones(2), ValueError, r"shape \(\) cannot be assigned values of \(2,\)"),
        (5, 1.0, IndexError, "out of bounds"),
        (0, 1j, TypeError, "float64 cannot be assigned values of complex128"),
        (0, "1", TypeError, "assigned values of <U1"),
    ],
)
def test_an_assignment_that_does_not_fit_is_refused(index, value, error, message):
    """The message says what the entries are and what the value is; nothing has changed."""
    x = Dual(np.arange(3.0), np.ones(3))
    with pytest.raises(error, match=message):
        x[index] = value
    np.testing.assert_array_equal(x.primal, np.arange(3.0))


def test_an_empty_out_is_no_out():
    """``out=None`` is what a call without it says."""
    assert jvp(lambda x: np.sum(x, out=None), (np.ones(3),), (np.ones(3),)) == (3.0, 3.0)
    assert D(lambda x: np.exp(x, out=None))(0.0) == 1.0


# Refusals: an error, never a lost tangent.


def refusals():
    """Everything that would lose a tangent."""
    plain = np.zeros(3)
    generator = np.random.default_rng(0)

    def into_plain(x):
        plain[:] = x

    def into_plain_in_place(x):
        p = plain.copy()
        p += x

    def complex_into_entry(x):
        x[0] = 1j

    def element(x):
        plain[0] = x[0]

    return {
        "asarray": (lambda x: np.asarray(x), "cannot become a plain array"),
        "array": (lambda x: np.array([x, x]), "cannot become a plain array"),
        "mixed array": (lambda x: np.array([1.0, x[0]]), "cannot become a"),
        "ascontiguousarray": (lambda x: np.ascontiguousarray(x), "plain array"),
        "float": (lambda x: float(x[0]), "Python number"),
        "int": (lambda x: int(x[0]), "Python number"),
        "complex number": (lambda x: complex(x[0]), "Python number"),
        "math": (lambda x: math.sin(x[0]), "np.sin, not math.sin"),
        "scalar type": (lambda x: np.float32(x), "plain array"),
        "item": (lambda x: x[0].item(), r"\.item"),
        "tolist": (lambda x: x.tolist(), r"\.tolist"),
        "sort method": (lambda x: x.sort(), r"\.sort"),
        "fill": (lambda x: x.fill(0), r"\.fill"),
        "flat": (lambda x: x.flat, r"\.flat"),
        "into a plain array": (into_plain, "plain array"),
        "in place into a plain array": (into_plain_in_place, r"np.add with out="),
        "complex into an entry": (complex_into_entry, "assigned values of complex128"),
        "out of a ufunc": (lambda x: np.exp(x, out=plain), r"np.exp with out="),
        "out of a function": (lambda x: np.sum(x, out=np.zeros(())), r"np.sum: out="),
        "out by position": (lambda x: np.add(x, 1, plain), r"out="),
        "out of a method": (lambda x: np.add.reduce(x, out=x[0]), r"np.add with out="),
        "copyto": (lambda x: np.copyto(plain, x), r"np.copyto.*writes"),
        "put_along_axis": (lambda x: np.put_along_axis(plain, np.array([0]), x[:1], 0), "writes"),
        "add.at": (lambda x: np.add.at(plain, [0], x[:1]), r"np.add.at"),
        "svd": (lambda x: np.linalg.svd(np.stack([x, x])), r"np.linalg.svd"),
        "eigh": (lambda x: np.linalg.eigh(np.stack([x, x, x])), r"np.linalg.eigh"),
        "fft": (lambda x: np.fft.fft(x), r"np.fft.*fft"),
        "interp": (lambda x: np.interp(x, [0, 1], [0, 1]), r"np.interp"),
        "unique": (lambda x: np.unique(x), r"np.unique"),
        "reduceat": (lambda x: np.add.reduceat(x, [0, 1]), r"np.add.reduceat"),
        "nextafter": (lambda x: np.nextafter(x, 1), r"np.nextafter"),
        "where=": (lambda x: np.sum(x, where=[True, False, True]), r"np.sum with where="),
        "initial=": (lambda x: np.max(x, initial=3.0), r"np.max with initial="),
        "where= of a ufunc": (lambda x: np.exp(x, where=[True, False, True]), r"with where="),
        "order=": (lambda x: np.reshape(x, (1, 3), order="F"), r"np.reshape with order="),
        "too many": (lambda x: np.sum(x, 0, None, None), r"4 positional"),
        "matrix norm": (lambda x: np.linalg.norm(np.stack([x, x]), 2), r"ord=2"),
        "median": (lambda x: np.median(np.stack([x, x]), axis=(0, 1)), r"several axes \(0, 1\)"),
        "pad": (lambda x: np.pad(x, 1, "linear_ramp"), "linear_ramp"),
        "einsum of lists": (lambda x: np.einsum(x, [0], [0]), "subscripts"),
        "dual as an index": (lambda x: np.take(plain, x), "Dual|plain array|cannot"),
        "dual as a mask": (lambda x: np.where(x, x, 0), "Dual as its condition"),
        "complex": (lambda x: x * 1j, "complex128"),
        "astype complex": (lambda x: x.astype(complex), "complex128"),
        "random loc": (lambda x: generator.normal(x), "plain array"),
        "random choice": (lambda x: generator.choice(x), "plain array"),
        "random permutation": (lambda x: generator.permutation(x), "plain array"),
        "save": (lambda x: np.save("/dev/null", x), "np.save"),
        "nothing a number": (lambda x: "text", "output of fn must hold real numbers, got <U4"),
        "entry of a plain array": (element, "sequence"),  # NumPy's words; ours are the cause
    }


@pytest.mark.parametrize(("f", "message"), refusals().values(), ids=refusals())
@pytest.mark.parametrize("many", [False, True], ids=["jvp", "jvp_batch"])
def test_what_would_lose_a_tangent_is_refused(f, message, many):
    """A TypeError that names the function or the way out."""
    x = np.array([0.5, 1.5, 2.5])
    push, tangent = (jvp_batch, np.ones((2, 3))) if many else (jvp, np.ones(3))
    error = ValueError if message == "sequence" else TypeError  # NumPy wraps the last one
    with pytest.raises(error, match=message) as caught:
        push(f, (x,), (tangent,))
    if message == "sequence":
        assert "np.zeros_like" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    ("with_none", "without"),
    [
        (lambda x: np.sum(x, out=None, dtype=None), np.sum),
        (lambda x: np.mean(x, axis=None, out=None), np.mean),
        (lambda x: np.add(x, 1, out=None), lambda x: x + 1),
        (lambda x: np.take(x, [1, 0], out=None), lambda x: x[[1, 0]]),
        (lambda x: x.cumsum(out=None), np.cumsum),
    ],
)
def test_a_keyword_that_is_none_is_as_if_it_were_not_there(with_none, without):
    """Libraries pass ``out=None`` on: NumPy's own default asks for nothing."""
    x, v = np.array([0.5, 1.5, 2.5]), np.array([1.0, -2.0, 4.0])
    for a, b in zip(jvp(with_none, (x,), (v,)), jvp(without, (x,), (v,)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_error_for_a_missing_rule_is_a_type_error_with_a_way_out():
    """NoRuleError is a TypeError; the message offers custom_jvp and stop_gradient."""
    assert issubclass(NoRuleError, TypeError)
    with pytest.raises(NoRuleError, match=r"np\.linalg\.qr.*custom_jvp.*stop_gradient"):
        jvp(np.linalg.qr, (np.eye(2),), (np.eye(2),))


@pytest.mark.parametrize(
    ("primals", "tangents", "error", "message"),
    [
        ((2,), (1.0,), TypeError, r"primals\[0\] is int64: only floating"),
        ((True,), (1.0,), TypeError, "bool"),
        ((1j,), (1.0,), TypeError, "complex128"),
        ((np.array([None]),), (np.ones(1),), TypeError, "object"),
        (("text",), (1.0,), TypeError, "U4"),
        ((np.ma.ones(2),), (np.ones(2),), TypeError, r"primals\[0\] must not be a masked"),
        ((np.ones(2),), (np.ma.ones(2),), TypeError, r"of primals\[0\] must not be a masked"),
        ((1.0,), (1j,), TypeError, r"primals\[0\] must hold real numbers, got c"),
        ((1.0,), ("a",), TypeError, "U1"),
        ((np.ones(3),), (np.ones(4),), ValueError, r"must have shape \(3,\), got \(4,\)"),
        ((np.ones((3, 1)),), (np.ones(3),), ValueError, r"have shape \(3, 1\), got \(3,\)"),
        ((np.ones(3),), (1.0,), ValueError, r"got \(\)"),
        ((1.0, 2.0), (1.0,), TypeError, "primals and .* a tuple of 2 and a tuple of 1"),
        (
            ({"a": 1.0},),
            ({"b": 1.0},),
            TypeError,
            r"primals\[0\] and .* a dict of 'a' and a dict of 'b'",
        ),
        (({"a": 1.0},), (1.0,), TypeError, "got a dict of 'a' and a float"),
        ((np.ones(2),), ({"a": 1.0},), TypeError, "got a ndarray and a dict"),
        (({"a": {"b": [1.0, 2]}},), ({"a": {"b": [1, 1]}},), TypeError, r"\['a'\]\['b'\]\[1\]"),
        (np.ones(2), np.ones(2), TypeError, "must be tuples"),
        (1.0, (1.0,), TypeError, "must be tuples"),
    ],
)
def test_primals_and_tangents_that_do_not_fit_are_refused_by_name(
    primals, tangents, error, message
):
    """The error names the place, what it got and what it takes."""
    with pytest.raises(error, match=message):
        jvp(lambda *args: args, primals, tangents)


def test_directions_that_do_not_fit_are_refused_by_name():
    """Different counts, no leading axis, no tangent at all."""
    with pytest.raises(ValueError, match=r"2 for primals\[0\], 3 for primals\[1\]"):
        jvp_batch(np.add, (1.0, 2.0), (np.ones(2), np.ones(3)))
    with pytest.raises(ValueError, match=r"must have shape \(directions, 3\)"):
        jvp_batch(np.sum, (np.ones(3),), (np.ones(3),))
    with pytest.raises(ValueError, match=r"must have shape \(directions,\)"):
        jvp_batch(np.sin, (1.0,), (1.0,))
    with pytest.raises(ValueError, match="at least one tangent"):
        jvp_batch(np.sum, (np.ones(3),), (None,))


def test_derivative_and_jacfwd_say_what_they_take():
    """A number, not an array, not an integer."""
    with pytest.raises(ValueError, match=r"shape \(3,\): use jacfwd"):
        D(np.sin)(np.ones(3))
    with pytest.raises(TypeError, match=r"2\.0, not 2"):
        D(np.sin)(2)
    with pytest.raises(TypeError, match="int64"):
        jacfwd(np.sin)(np.arange(3))
    with pytest.raises(TypeError, match="int64"):
        Dual(1, 1.0)
    with pytest.raises(ValueError, match=r"must have shape \(2,\), got \(3,\)"):
        Dual(np.ones(2), np.ones(3))


def test_a_dual_has_the_attributes_of_an_array_and_says_which_not():
    """shape, ndim, size, dtype, T; hasattr answers; a copy is equal; it is not hashable."""
    x = Dual(np.ones((2, 3), np.float32), np.zeros((2, 3)))
    assert (x.shape, x.ndim, x.size, x.dtype, x.T.shape) == ((2, 3), 2, 6, np.float32, (3, 2))
    assert np.shape(x) == (2, 3)
    assert np.size(x) == 6
    assert not hasattr(x, "tolist")
    assert not hasattr(x, "no_such_thing")
    assert copy.deepcopy(x).primal.tolist() == x.primal.tolist()
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)
