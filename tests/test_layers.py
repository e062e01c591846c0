"""Layers as laws: what each leaves alone, what it takes away, and what a tangent does in it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from minibit.dual import jvp, jvp_batch
from minibit.layers import (
    cross_entropy,
    init_mlp,
    layer_norm,
    mlp,
    relu,
    rms_norm,
    squared_relu,
    ternary_linear,
)

numbers = st.integers(-102_400, 102_400).map(lambda n: n / 1024)  # exact in float32, none tiny
rows = arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=7), elements=numbers)
matrices = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=7), elements=numbers)
NORMS = (layer_norm, rms_norm)
WIDTHS = (12, 9, 8, 7, 5)


def random_codes(layer, shape):
    """A layer of evenly drawn codes."""
    return np.random.default_rng(layer).integers(-1, 2, shape).astype(np.int8)


def floats(*shape, seed=0):
    """Normal numbers in float64."""
    return np.random.default_rng(seed).standard_normal(shape)


def central_difference(fn, primals, tangents, step=1e-6):
    """(f(x + h v) - f(x - h v)) / 2h, good to about 1e-9 in float64."""
    ahead = fn(*(x + step * v for x, v in zip(primals, tangents, strict=True)))
    behind = fn(*(x - step * v for x, v in zip(primals, tangents, strict=True)))
    return (ahead - behind) / (2 * step)


# --- linear ------------------------------------------------------------------------------------


@given(matrices, st.integers(1, 6))
def test_a_ternary_linear_layer_adds_and_subtracts_inputs(x, n_out):
    """Output j is the sum of the inputs of code 1 less the sum of those of code -1."""
    w = random_codes(n_out, (n_out, x.shape[1]))
    y = ternary_linear(x, w)
    assert y.dtype == np.float32
    for j in range(n_out):
        exact = x[:, w[j] == 1].astype(float).sum(1) - x[:, w[j] == -1].astype(float).sum(1)
        np.testing.assert_allclose(y[:, j], exact, atol=1e-6 * (1 + np.abs(x).sum()))


def test_int8_weights_and_their_float_copies_give_the_same():
    """Codes are exact in float32 and float64, so the cast changes nothing."""
    x, w = floats(4, 12), random_codes(0, (6, 12))
    for dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(
            ternary_linear(x.astype(dtype), w), ternary_linear(x.astype(dtype), w.astype(dtype))
        )


def test_a_scale_multiplies_after_the_product():
    """A number for the matrix, or one for each output; None and 1 are the same."""
    x, w = floats(4, 12), random_codes(0, (6, 12))
    y = ternary_linear(x, w)
    np.testing.assert_array_equal(ternary_linear(x, w, 1.0), y)
    np.testing.assert_array_equal(ternary_linear(x, w, 0.25), 0.25 * y)
    np.testing.assert_array_equal(ternary_linear(x, w, np.arange(6.0)), np.arange(6.0) * y)


def test_a_linear_layer_takes_any_leading_axes_and_an_empty_batch():
    """Inputs may be (n_in,), (batch, n_in) or (batch, tokens, n_in), with a batch of none."""
    w = random_codes(0, (6, 12))
    x = floats(2, 3, 12)
    y = ternary_linear(x, w)
    assert y.shape == (2, 3, 6)
    np.testing.assert_allclose(ternary_linear(x[1, 2], w), y[1, 2], rtol=1e-13, atol=1e-13)
    assert ternary_linear(x[:0], w).shape == (0, 3, 6)
    assert ternary_linear(floats(4, 0), np.zeros((6, 0), np.int8)).tolist() == [[0.0] * 6] * 4


def test_shapes_that_do_not_fit_are_named():
    """A matrix given as (n_in, n_out), a vector of weights, a scalar input."""
    x, w = floats(4, 12), random_codes(0, (6, 12))
    for bad_x, bad_w in ((x, w.T), (x, w[0]), (np.float64(1), w)):
        with pytest.raises(ValueError, match=r"must fit w \(n_out, n_in\), got"):
            ternary_linear(bad_x, bad_w)


def test_integer_inputs_become_float32():
    """Pixels do not wrap around: 200 + 200 is 400."""
    pixels = np.array([[200, 200]], np.uint8)
    y = ternary_linear(pixels, np.int8([[1, 1], [-1, -1]]))
    assert y.dtype == np.float32
    assert y.tolist() == [[400.0, -400.0]]


@pytest.mark.parametrize("kind", ["complex", "object", "text", "masked", "None"])
def test_what_is_no_real_number_is_refused(kind):
    """max(z, 0) orders complex numbers, and a mask does not survive a product: neither passes."""
    x = {
        "complex": np.ones((2, 3), np.complex64),
        "object": np.ones((2, 3), object),
        "text": np.full((2, 3), "1"),
        "masked": np.ma.ones((2, 3)),
        "None": None,
    }[kind]
    for function in (relu, squared_relu, layer_norm, rms_norm):
        with pytest.raises(TypeError, match="arrays of real numbers, none of them masked, got"):
            function(x)
    for arguments in ((x, np.ones((2, 3))), (np.ones(3), x)):
        with pytest.raises(TypeError, match="arrays of real numbers"):
            ternary_linear(*arguments)


# --- norms -------------------------------------------------------------------------------------


@given(rows)
def test_layer_norm_gives_mean_zero_and_variance_v_over_v_plus_eps(x):
    """Each row's mean is 0 and its variance v / (v + eps): nearly 1, or 0 for a constant row."""
    z = layer_norm(x, eps=0.5)
    assert z.dtype == np.float32
    variance = x.astype(float).var(axis=-1)
    rounding = x.shape[-1] * 2.0**-23 * np.abs(x).max() / np.sqrt(0.5)  # of the mean, over the root
    np.testing.assert_allclose(z.mean(axis=-1), 0, atol=1e-6 + rounding)
    np.testing.assert_allclose(z.var(axis=-1), variance / (variance + 0.5), atol=1e-4)


@given(rows, st.integers(-64, 64))
def test_layer_norm_does_not_see_a_shift(x, shift):
    """layer_norm(x + c) = layer_norm(x), up to the rounding of x + c."""
    # An error of 1e-5 in an entry (float32 at 200) is divided by sqrt(v + eps) >= 1 here.
    np.testing.assert_allclose(
        layer_norm(x + np.float32(shift), eps=1.0), layer_norm(x, eps=1.0), atol=2e-4
    )


@pytest.mark.parametrize("norm", NORMS)
@given(rows, st.integers(-20, 20))
def test_a_norm_takes_a_scale_away(norm, x, power):
    """norm(c x, c^2 eps) = norm(x, eps), to the last bit for powers of two; -c turns the sign."""
    c = np.float32(2.0**power)
    expected = norm(x, eps=0.25)
    np.testing.assert_array_equal(norm(c * x, eps=float(c) ** 2 * 0.25), expected)
    np.testing.assert_array_equal(norm(-c * x, eps=float(c) ** 2 * 0.25), -expected)


@given(rows)
def test_rms_norm_gives_mean_square_m_over_m_plus_eps(x):
    """Each row's mean square m becomes m / (m + eps); the mean stays where it is."""
    z = rms_norm(x, eps=0.5)
    assert z.dtype == np.float32
    square = np.mean(x.astype(float) ** 2, axis=-1)
    np.testing.assert_allclose(
        np.mean(z.astype(float) ** 2, -1), square / (square + 0.5), rtol=1e-5
    )


def test_rms_norm_of_centred_rows_is_layer_norm():
    """The two differ by the mean alone."""
    x = floats(5, 8)
    np.testing.assert_allclose(
        rms_norm(x - x.mean(axis=1, keepdims=True)), layer_norm(x), rtol=1e-12
    )


def test_a_gain_multiplies_what_rms_norm_gives():
    """One factor an entry, after the norm."""
    x, gain = floats(5, 8), floats(8, seed=1)
    np.testing.assert_array_equal(rms_norm(x, gain), gain * rms_norm(x))


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_without_variance_gives_zeros(norm):
    """0 / sqrt(0 + eps) = 0, with no warning; rows are independent of each other."""
    x = np.stack([np.zeros(4), [1.0, -1.0, 2.0, 0.0]])
    z = norm(x)
    assert z[0].tolist() == [0.0] * 4
    np.testing.assert_array_equal(z[1], norm(x[1]))
    assert layer_norm(np.full(5, 7.0)).tolist() == [0.0] * 5


@pytest.mark.parametrize("norm", NORMS)
def test_a_nan_spoils_its_own_row_alone(norm):
    """The other rows come out as they would without it."""
    x = floats(3, 4)
    x[1, 2] = np.nan
    z = norm(x)
    assert np.isnan(z[1]).all()
    np.testing.assert_array_equal(z[[0, 2]], norm(x[[0, 2]]))


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_needs_entries_and_an_eps(norm):
    """With eps = 0 a constant row is 0 / 0; an empty row has no mean; an empty batch is fine."""
    for eps in (0.0, -1e-5, np.nan):
        with pytest.raises(ValueError, match=r"eps must lie in \(0, inf\)"):
            norm(floats(2, 3), eps=eps)
    for x in (np.zeros((2, 0)), np.float64(3)):
        with pytest.raises(ValueError, match="last axis that is not empty"):
            norm(x)
    assert norm(np.zeros((0, 3))).shape == (0, 3)


# --- non-linearities ---------------------------------------------------------------------------


@given(rows)
def test_relu_keeps_what_is_positive(x):
    """max(x, 0) = (x + |x|) / 2; the square of it is squared_relu; both float32."""
    for y, expected in ((relu(x), (x + np.abs(x)) / 2), (squared_relu(x), x * x * (x > 0))):
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("function", [relu, squared_relu])
def test_a_rectifier_does_not_hide_nan(function):
    """A NaN is not negative: it passes."""
    assert np.isnan(function(np.array([np.nan]))).all()
    assert function(np.array([-np.inf, np.inf])).tolist() == [0.0, np.inf]


def test_slopes_of_the_rectifiers():
    """Slopes: relu' = 0, 0, 1 and squared_relu' = 0, 0, 2x left of, at and right of zero."""
    x, one = np.array([-2.0, -0.0, 0.0, 3.0]), np.ones(4)
    assert jvp(relu, (x,), (one,))[1].tolist() == [0, 0, 0, 1]
    assert jvp(squared_relu, (x,), (one,))[1].tolist() == [0, 0, 0, 6]


# --- cross entropy -----------------------------------------------------------------------------


@given(matrices, st.integers(-50, 50))
def test_cross_entropy_is_the_log_probability_of_the_label(logits, shift):
    """It is -log softmax(z)[y], plainly in float64; a constant added to a row changes nothing."""
    labels = np.arange(logits.shape[0]) % logits.shape[1]
    z = logits.astype(float) / 10
    softmax = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    expected = -np.log(softmax[np.arange(len(z)), labels])
    np.testing.assert_allclose(cross_entropy(z, labels, "none"), expected, atol=1e-12)
    np.testing.assert_allclose(cross_entropy(z + shift, labels, "none"), expected, atol=1e-12)


def test_cross_entropy_neither_overflows_nor_goes_below_zero():
    """Logits at the edge of float32: the loss is their difference, or 0, without a warning."""
    logits = np.float32([[3e38, -3e37], [-3e38, -3e38], [88, 1000]])
    losses = cross_entropy(logits, np.array([1, 0, 1]), "none")
    assert losses.dtype == np.float32
    np.testing.assert_allclose(losses, [3.3e38, math.log(2), 0], rtol=1e-6)
    assert (losses >= 0).all()


def test_a_class_of_probability_zero_is_allowed():
    """-inf as a logit removes its class; as the label's it costs infinitely much."""
    logits = np.array([[0.0, -np.inf, 0.0]] * 2)
    losses = cross_entropy(logits, np.array([0, 1]), "none")
    np.testing.assert_allclose(losses, [math.log(2), np.inf])


def test_the_mean_is_over_all_labels():
    """reduction="mean" is the mean of reduction="none", over any leading axes; float32 stays."""
    logits, labels = floats(2, 3, 5).astype(np.float32), np.array([[0, 1, 2], [4, 3, 0]])
    losses = cross_entropy(logits, labels, "none")
    assert losses.shape == (2, 3)
    assert cross_entropy(logits, labels) == losses.mean()
    assert cross_entropy(logits, labels).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.uint64])
def test_labels_of_any_integer_type_mean_the_same(dtype):
    """MNIST's labels are bytes."""
    logits, labels = floats(3, 5), np.array([4, 0, 2])
    assert cross_entropy(logits, labels.astype(dtype)) == cross_entropy(logits, labels)


def test_labels_are_checked():
    """Their type, shape and range, by place; there is no mean of nothing."""
    logits = floats(3, 5)
    for bad in (-1, 5):
        with pytest.raises(ValueError, match=rf"labels must lie in \[0, 4\], got {bad} at 1"):
            cross_entropy(logits, np.array([0, bad, bad]))
    with pytest.raises(TypeError, match="labels must be integers, got float64"):
        cross_entropy(logits, np.zeros(3))
    for labels in (np.array([0, 1]), np.eye(3, 5, dtype=int), np.array(0)):
        with pytest.raises(ValueError, match="shape of logits without its last axis"):
            cross_entropy(logits, labels)
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'none', got 'sum'"):
        cross_entropy(logits, np.zeros(3, int), "sum")
    with pytest.raises(TypeError, match="labels must not be a masked array"):
        cross_entropy(logits, np.ma.array([0, 1, 2], mask=[0, 0, 1]))
    with pytest.raises(ValueError, match=r"at least one class, got shape \(0, 0\)"):
        cross_entropy(np.zeros((0, 0)), np.zeros(0, int), "none")
    with pytest.raises(ValueError, match="labels must not be empty"):
        cross_entropy(logits[:0], np.zeros(0, int))
    assert cross_entropy(logits[:0], np.zeros(0, int), "none").shape == (0,)


def test_the_tangent_of_cross_entropy_is_softmax_less_one_hot():
    """Tangent: (softmax(z) - onehot(y)) . z_dot, also where the largest logit is tied."""
    logits = np.array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    labels, direction = np.array([0, 2]), floats(2, 3)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.sum((softmax - np.eye(3)[labels]) * direction, axis=1)
    _, tangent = jvp(lambda z: cross_entropy(z, labels, "none"), (logits,), (direction,))
    np.testing.assert_allclose(tangent, expected, atol=1e-15)


# --- the multi-layer perceptron ----------------------------------------------------------------


def test_the_mlp_is_its_formula():
    """Three layers h <- relu(layer_norm(h W^T)), then logits = c h W^T, no norm on them."""
    params = init_mlp(WIDTHS, random_codes)
    x = floats(6, 12)
    h = x
    for name in ("w1", "w2", "w3"):
        z = h @ params[name].T.astype(float)
        z = (z - z.mean(axis=1, keepdims=True)) / np.sqrt(z.var(axis=1, keepdims=True) + 1e-5)
        h = z * (z > 0)
    np.testing.assert_allclose(
        mlp(params, x, logit_scale=0.12), 0.12 * h @ params["w4"].T.astype(float), rtol=1e-12
    )


def test_the_mlp_stays_in_float32():
    """Pixels, float32 inputs and int8 weights give float32 logits; float64 inputs float64."""
    params = init_mlp(WIDTHS, random_codes)
    assert mlp(params, floats(6, 12).astype(np.float32), logit_scale=0.12).dtype == np.float32
    assert mlp(params, np.ones((6, 12), np.uint8)).dtype == np.float32
    assert mlp(params, floats(6, 12)).dtype == np.float64
    assert mlp(params, np.zeros((0, 12), np.float32)).shape == (0, 5)


def test_hidden_layers_need_no_scale():
    """Any positive scale of a hidden layer leaves the logits alone, but for eps."""
    params = {name: w.astype(float) for name, w in init_mlp(WIDTHS, random_codes).items()}
    scaled = params | {"w1": 1e3 * params["w1"], "w3": 1e-3 * params["w3"]}
    x = floats(6, 12)
    np.testing.assert_allclose(mlp(scaled, x, eps=1e-14), mlp(params, x, eps=1e-14), rtol=1e-6)


def test_layers_go_by_their_numbers():
    """The dict's order is no matter, ten layers come in order, and a gap is refused."""
    params = init_mlp((4,) * 12, random_codes)
    x = floats(3, 4)
    backwards = dict(reversed(params.items()))
    np.testing.assert_array_equal(mlp(backwards, x), mlp(params, x))
    for bad in ({}, {"w1": params["w1"], "w3": params["w3"]}, {"weight": params["w1"]}):
        with pytest.raises(ValueError, match="params must be named w1, w2"):
            mlp(bad, x)


def test_init_mlp_asks_for_each_layer_once():
    """draw(layer, (n_out, n_in)), from layer 0, in order."""
    asked = []

    def draw(layer, shape):
        asked.append((layer, shape))
        return random_codes(layer, shape)

    params = init_mlp((784, 256, 10), draw)
    assert asked == [(0, (256, 784)), (1, (10, 256))]
    assert list(params) == ["w1", "w2"]
    assert {w.dtype for w in params.values()} == {np.dtype(np.int8)}


def test_init_mlp_refuses_bad_widths_and_draws():
    """Fewer than two widths, an empty layer, another shape, something else than codes."""
    for widths in ((), (784,), (784, 0, 10), (784.0, 10), ("784", 10)):
        with pytest.raises((TypeError, ValueError), match=r"widths must be (at least|an integer)"):
            init_mlp(widths, random_codes)
    with pytest.raises(ValueError, match=r"draw\(0, \(3, 2\)\) returned shape \(2, 3\)"):
        init_mlp((2, 3), lambda layer, shape: random_codes(layer, shape[::-1]))
    with pytest.raises(TypeError, match="codes must be integers"):
        init_mlp((2, 3), lambda layer, shape: np.zeros(shape))


# --- tangents ----------------------------------------------------------------------------------

DIFFERENTIABLE = {
    "ternary_linear": (ternary_linear, (floats(4, 6), floats(5, 6, seed=1), floats(5, seed=2))),
    "layer_norm": (layer_norm, (floats(4, 6),)),
    "rms_norm": (rms_norm, (floats(4, 6), floats(6, seed=1))),
    "relu": (relu, (floats(4, 6),)),
    "squared_relu": (squared_relu, (floats(4, 6),)),
    "cross_entropy": (
        lambda z: cross_entropy(z, np.arange(4), "none"),
        (floats(4, 6),),
    ),
    "mean cross_entropy": (lambda z: cross_entropy(z, np.arange(4)), (floats(4, 6),)),
    "mlp": (
        lambda x, w1, w2, w3, c: mlp({"w1": w1, "w2": w2, "w3": w3}, x, logit_scale=c),
        (
            floats(4, 6),
            *(floats(n_out, n_in, seed=n_in) for n_in, n_out in ((6, 8), (8, 7), (7, 3))),
            np.float64(0.12),
        ),
    ),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_every_layer_has_its_tangent(name):
    """Its jvp agrees with central differences, in every argument at once."""
    fn, primals = DIFFERENTIABLE[name]
    tangents = tuple(floats(*np.shape(x), seed=10 + i) for i, x in enumerate(primals))
    out, tangent = jvp(fn, primals, tangents)
    np.testing.assert_array_equal(out, fn(*primals))
    expected = central_difference(fn, primals, tangents)
    np.testing.assert_allclose(tangent, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_many_directions_at_once_are_many_tangents(name):
    """jvp_batch gives what a jvp for each direction gives."""
    fn, primals = DIFFERENTIABLE[name]
    tangents = tuple(floats(3, *np.shape(x), seed=20 + i) for i, x in enumerate(primals))
    _, batch = jvp_batch(fn, primals, tangents)
    for direction in range(3):
        _, one = jvp(fn, primals, tuple(v[direction] for v in tangents))
        np.testing.assert_allclose(batch[direction], one, rtol=1e-12, atol=1e-13)


def test_the_tangent_of_layer_norm_is_its_formula():
    """It is r (x_dot - mean x_dot - z mean(z x_dot)): 0 for shifts, and for scales as eps -> 0."""
    x, x_dot = floats(4, 6), floats(4, 6, seed=1)
    z = layer_norm(x)
    r = 1 / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    expected = r * (
        x_dot - x_dot.mean(axis=1, keepdims=True) - z * (z * x_dot).mean(axis=1, keepdims=True)
    )
    np.testing.assert_allclose(jvp(layer_norm, (x,), (x_dot,))[1], expected, rtol=1e-10)
    np.testing.assert_allclose(jvp(layer_norm, (x,), (np.ones((4, 6)),))[1], 0, atol=1e-14)
    exact = jvp(lambda x: layer_norm(x, eps=1e-300), (x,), (x,))[1]
    np.testing.assert_allclose(exact, 0, atol=1e-14)


def test_tangents_stay_in_float32():
    """A float32 model has float32 tangents, through every layer and the loss."""
    params = {name: w.astype(np.float32) for name, w in init_mlp(WIDTHS, random_codes).items()}
    moves = {name: np.ones_like(w) for name, w in params.items()}
    x, labels = floats(6, 12).astype(np.float32), np.arange(6) % 5

    def loss(params):
        return cross_entropy(mlp(params, x, logit_scale=0.12), labels, "none")

    out, tangent = jvp(loss, (params,), (moves,))
    assert out.dtype == tangent.dtype == np.float32
    assert tangent.shape == (6,)
