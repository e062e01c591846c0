"""The quantisers of BitNet b1.58, stated as laws; every law with kernels and without."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from minibit.absmean import (
    absmax_quantize,
    absmax_quantize_reference,
    absmean_quantize,
    absmean_quantize_reference,
    binary_quantize,
    fake_quant_activation,
    fake_quant_weight,
)
from minibit.dual import derivative, forward_gradient, jvp, jvp_batch

finite = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
weights = arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=40), elements=finite)
activations = arrays(
    np.float32, array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=40), elements=finite
)


@pytest.fixture(params=["auto", "reference"])
def path(request, monkeypatch):
    """The kernels, and plain NumPy."""
    monkeypatch.setenv("MINIBIT_KERNELS", request.param)
    return request.param


@given(weights)
def test_weight_codes_are_ternary_and_say_which_side_of_half_a_gamma(w):
    """codes = 1 where w / gamma > 1/2, -1 where it is < -1/2, else 0."""
    codes, gamma = absmean_quantize(w)
    ratio = w.astype(np.float64) / np.float64(gamma)
    assert codes.dtype == np.int8
    assert codes.shape == w.shape
    clear = np.abs(np.abs(ratio) - 0.5) > 1e-6  # float32 may see a near tie either way
    expected = np.sign(ratio) * (np.abs(ratio) > 0.5)
    np.testing.assert_array_equal(codes[clear], expected[clear])


@given(weights)
def test_gamma_is_the_mean_magnitude_and_at_least_1e_5(w):
    """gamma = max(mean|w|, 1e-5), correct to float32."""
    _, gamma = absmean_quantize(w)
    exact = max(np.abs(w.astype(np.float64)).mean(), 1e-5)
    assert isinstance(gamma, np.float32)
    assert abs(float(gamma) - exact) <= 2**-23 * exact


def test_gamma_is_summed_in_float64(path):
    """Each small weight is lost beside the 1 in float32; together they are many units."""
    w = np.float32([1.0] + [2.0**-25] * 127)
    assert absmean_quantize(w)[1] == np.float32((1 + 127 * 2.0**-25) / 128)


@given(weights)
def test_the_weight_kernel_equals_its_reference(w):
    """Codes are equal bit for bit; so is gamma, but for float64's order of summing."""
    codes, gamma = absmean_quantize(w)
    expected, expected_gamma = absmean_quantize_reference(w)
    assert abs(gamma - expected_gamma) <= np.spacing(expected_gamma)
    if gamma == expected_gamma:
        np.testing.assert_array_equal(codes, expected)


@given(weights, st.sampled_from([0.25, 2.0, 1024.0]))
def test_scaling_the_weights_scales_gamma_and_keeps_the_codes(w, factor):
    """Q(c w) = (codes, c gamma) where 1e-5 does not cut in; powers of two round nothing."""
    w = np.append(w.reshape(-1), np.float32(w.size))  # a mean of at least about 1
    codes, gamma = absmean_quantize(w)
    scaled_codes, scaled_gamma = absmean_quantize(w * np.float32(factor))
    np.testing.assert_array_equal(scaled_codes, codes)
    assert scaled_gamma == gamma * np.float32(factor)


def test_the_codes_times_gamma_keep_most_of_normal_weights(path):
    """About 31% of normal weights become 0: P(|z| < E|z| / 2) = 0.310."""
    w = np.random.default_rng(0).standard_normal((300, 500)).astype(np.float32)
    codes, _ = absmean_quantize(w)
    assert 0.30 < np.mean(codes == 0) < 0.32


@given(activations)
def test_activations_come_back_within_half_a_step(x):
    """|codes / scale - x| <= absmax / 254, and the largest of a token has code +-127."""
    codes, scale = absmax_quantize(x)
    assert codes.dtype == np.int8
    assert scale.shape == (*x.shape[:-1], 1)
    absmax = np.maximum(np.abs(x.astype(np.float64)).max(-1, keepdims=True, initial=0), 1e-5)
    error = np.abs(codes / scale.astype(np.float64) - x)
    assert (error <= absmax / 254 * (1 + 1e-4)).all()
    largest = np.abs(codes.astype(int)).max(-1, keepdims=True, initial=0)
    assert (largest[(absmax > 1e-5) & (x.shape[-1] > 0)] == 127).all()


@given(activations)
def test_the_activation_kernel_equals_its_reference_bit_for_bit(x):
    """Codes and scales are equal, in every bit."""
    codes, scale = absmax_quantize(x)
    expected, expected_scale = absmax_quantize_reference(x)
    np.testing.assert_array_equal(codes, expected, strict=True)
    np.testing.assert_array_equal(scale, expected_scale, strict=True)


def test_the_scale_is_a_reciprocal_times_127(path):
    """Published code multiplies 1/m by 127; 127/m differs in the last bit for many m."""
    m = np.linspace(0.1, 9, 1000, dtype=np.float32)[:, None]
    _, scale = absmax_quantize(m)
    np.testing.assert_array_equal(scale, np.float32(1) / m * np.float32(127))
    assert (scale != np.float32(127) / m).mean() > 0.1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("quantize", [absmean_quantize, absmax_quantize])
def test_non_finite_entries_are_refused_by_place(path, quantize, bad):
    """The error names the first such entry, also among doubles that overflow float32."""
    x = np.zeros((3, 50))
    x[1, 37] = bad
    with pytest.raises(ValueError, match=rf"must be finite, got {bad} at \(1, 37\)"):
        quantize(x)
    x[1, 37] = 1e39
    with pytest.raises(ValueError, match=r"must be finite, got inf at \(1, 37\)"):
        quantize(x)


@pytest.mark.parametrize("quantize", [absmean_quantize, absmax_quantize])
def test_integers_and_complex_numbers_are_refused(path, quantize):
    """A matrix of integers is no latent weight."""
    for dtype in (np.int8, np.int64, bool, complex):
        with pytest.raises(TypeError, match="must be an array of floats, got"):
            quantize(np.zeros((2, 2), dtype))


def test_empty_weights_and_single_numbers_are_refused(path):
    """There is no mean of nothing, and no token without an axis; no tokens are fine."""
    with pytest.raises(ValueError, match=r"w must not be empty, got shape \(0, 3\)"):
        absmean_quantize(np.zeros((0, 3), np.float32))
    with pytest.raises(ValueError, match="at least one axis"):
        absmax_quantize(np.float32(1))
    codes, scale = absmax_quantize(np.zeros((0, 3), np.float32))
    assert codes.shape == (0, 3)
    assert scale.shape == (0, 1)


@pytest.mark.parametrize("quantize", [absmean_quantize, absmax_quantize])
def test_any_memory_order_and_read_only_arrays_are_taken(path, quantize):
    """Strided, transposed, reversed and frozen arrays give what their copies give."""
    base = np.random.default_rng(3).standard_normal((8, 10)).astype(np.float32)
    frozen = base.copy()
    frozen.flags.writeable = False
    for x in (base[::2], base.T, base[::-1, ::-1], frozen, base.astype(np.float16)):
        codes, scale = quantize(x)
        expected, expected_scale = quantize(np.array(x, order="C"))
        np.testing.assert_array_equal(codes, expected)
        np.testing.assert_array_equal(scale, expected_scale)


FAKES = [fake_quant_weight, fake_quant_activation]


def normal(*shape, seed=0):
    """Normal numbers in float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_scalar_weights_have_their_magnitude_for_gamma(path):
    """A matrix of one number, of no axes, keeps its shape."""
    codes, gamma = absmean_quantize(np.float32(-2))
    assert codes.shape == ()
    assert (int(codes), float(gamma)) == (-1, 2.0)


def test_gamma_takes_a_maximum_where_the_paper_adds_an_epsilon(path):
    """gamma of ordinary weights is their mean magnitude itself, with nothing added."""
    _, gamma = absmean_quantize(np.full((2, 2), 0.0078125, np.float32))  # 1e-5 would show
    assert gamma == np.float32(0.0078125)
    _, scale = absmax_quantize(np.full((1, 2), 0.0078125, np.float32))
    assert scale[0, 0] == np.float32(127 * 128)


def test_tokens_below_1e_5_lose_levels_and_tokens_of_zeros_are_zeros(path):
    """The scale stops at 127 / 1e-5: half of that absmax has half of the codes, 0 has one."""
    codes, scale = absmax_quantize(np.float32([[5e-6, -1e-6], [0, 0], [1e-30, 0]]))
    np.testing.assert_array_equal(codes, [[64, -13], [0, 0], [0, 0]])
    np.testing.assert_array_equal(scale, np.full((3, 1), np.float32(1) / np.float32(1e-5) * 127))


@given(weights)
def test_quantising_weights_again_keeps_their_codes(w):
    """Q(gamma codes) has the same codes: gamma shrinks by their density, and none is lost."""
    codes, gamma = absmean_quantize(w)
    again, smaller = absmean_quantize(fake_quant_weight(w))
    np.testing.assert_array_equal(again, codes)
    expected = max(float(gamma) * np.mean(codes != 0), 1e-5)
    np.testing.assert_allclose(smaller, expected, rtol=1e-6)


@given(activations)
def test_quantising_activations_again_keeps_their_codes(x):
    """Q(codes / scale) has the same codes and the same scale, to rounding."""
    codes, scale = absmax_quantize(x)
    again, same = absmax_quantize(fake_quant_activation(x))
    np.testing.assert_array_equal(again, codes)
    np.testing.assert_allclose(same, scale, rtol=1e-6)


@given(weights)
def test_fake_weights_are_codes_over_the_reciprocal_of_gamma(w):
    """codes / (1 / gamma) bit for bit as published; codes * gamma to the last bit."""
    codes, gamma = absmean_quantize(w)
    out = fake_quant_weight(w)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, codes / (np.float32(1) / gamma))
    np.testing.assert_array_max_ulp(out, codes * gamma, 1)


@given(activations)
def test_fake_activations_are_codes_over_their_scale(x):
    """codes / scale, bit for bit."""
    codes, scale = absmax_quantize(x)
    out = fake_quant_activation(x)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, codes / scale)


@pytest.mark.parametrize("fake", FAKES)
@given(x=weights, factor=st.sampled_from([-1.0, 0.25, 1024.0]))
def test_fake_quantising_is_equivariant_in_scale_and_odd(fake, x, factor):
    """q(c x) = c q(x) away from the floor of 1e-5; rounding half to even has no side."""
    x = np.concatenate([x, np.ones_like(x[..., :1])], axis=-1)  # no token of zeros
    np.testing.assert_array_equal(fake(x * np.float32(factor)), fake(x) * np.float32(factor))


@pytest.mark.parametrize("fake", FAKES)
@given(x=weights, share=st.floats(0, 1))
def test_the_warm_up_goes_straight_from_the_input_to_its_quantised_values(fake, x, share):
    """y = x + lambda (q(x) - x): x itself at 0, q(x) itself at 1, to the bit."""
    quantised = fake(x)
    np.testing.assert_array_equal(fake(x, 0.0), x)
    np.testing.assert_array_equal(fake(x, strength=1), quantised)
    out = fake(x, np.float64(share))
    assert out.dtype == np.float32  # also for a strength of NumPy's own doubles
    low, high = np.minimum(x, quantised), np.maximum(x, quantised)
    slack = np.spacing(np.maximum(np.abs(low), np.abs(high)))
    assert ((low - slack <= out) & (out <= high + slack)).all()
    exact = x.astype(float) + share * (quantised.astype(float) - x)
    np.testing.assert_array_less(np.abs(out - exact), 2 * slack)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("fake", FAKES)
def test_fake_quantising_keeps_the_dtype_and_quantises_in_float32(path, fake, dtype):
    """float64 weights get float32's values, float16 ones these rounded; shares stay in type."""
    x = normal(6, 50).astype(dtype)
    values = fake(x.astype(np.float32)).astype(dtype)
    np.testing.assert_array_equal(fake(x), values, strict=True)
    np.testing.assert_array_equal(fake(x, 0.5), x + dtype(0.5) * (values - x), strict=True)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("fake", FAKES)
def test_the_derivative_is_the_identity(path, fake, strength):
    """y_dot = x_dot, for one direction and for many, whatever is cut or rounded away."""
    x, directions = 3 * normal(5, 40), normal(7, 5, 40, seed=1)
    expected = fake(x, strength)
    out, tangent = jvp(lambda x: fake(x, strength), (x,), (directions[0],))
    np.testing.assert_array_equal(out, expected, strict=True)
    np.testing.assert_array_equal(tangent, directions[0], strict=True)
    out, tangents = jvp_batch(lambda x: fake(x, strength), (x,), (directions,))
    np.testing.assert_array_equal(out, expected, strict=True)
    np.testing.assert_array_equal(tangents, directions, strict=True)


@pytest.mark.parametrize("fake", FAKES)
def test_the_rest_of_a_function_is_differentiated_at_the_quantised_values(fake):
    """d sum(q(x)^2) = 2 q(x) . x_dot: q stands in the place of x; the second is 2 |x_dot|^2."""
    x, v = normal(4, 9).astype(np.float64), normal(4, 9, seed=1).astype(np.float64)
    q = fake(x)

    def along(t):
        return np.sum(fake(x + t * v) ** 2)

    assert derivative(along)(0.0) == pytest.approx(np.sum(2 * q * v))
    assert derivative(derivative(along))(0.0) == pytest.approx(2 * np.sum(v * v))
    _, gradient = forward_gradient(
        lambda x: np.sum(fake(x) ** 2), x, np.sqrt(36) * np.eye(36).reshape(36, 4, 9)
    )
    np.testing.assert_allclose(gradient, 2 * q)


def test_weights_and_activations_of_nested_derivatives_are_not_confused():
    """d/ds of d/dt through q(w + t) q(x + s): each tangent goes through its own quantiser."""
    w, x = normal(1, 8).astype(np.float64), normal(1, 8, seed=1).astype(np.float64)

    def product(t, s):
        return np.sum(fake_quant_weight(w + t) * fake_quant_activation(x + 3 * s))

    mixed = derivative(lambda s: derivative(lambda t: product(t, s))(0.0))(0.0)
    assert mixed == pytest.approx(3 * 8)
    assert derivative(lambda t: product(t, 0.0))(0.0) == pytest.approx(
        fake_quant_activation(x).sum()
    )


@pytest.mark.parametrize("fake", FAKES)
def test_a_strength_that_is_no_share_is_refused(fake):
    """Outside of [0, 1], NaN, or with a tangent that would be lost."""
    for bad in (-0.1, 1.5, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"strength must lie in .0, 1., got {bad}"):
            fake(np.ones(3), bad)
    with pytest.raises(TypeError, match="strength must be a real number, got Dual"):
        derivative(lambda s: fake(np.ones(3), s))(0.5)


@pytest.mark.parametrize("function", [*FAKES, absmean_quantize, absmax_quantize, binary_quantize])
def test_what_holds_no_plain_floats_is_refused(function):
    """Integers, objects, and masked arrays, whose mask would be lost."""
    for bad in (np.int8([1, 0]), [1, 0], ["1"], None, np.array([1j])):
        with pytest.raises(TypeError, match="must be an array of floats, got"):
            function(bad)
    with pytest.raises(TypeError, match="must not be a masked array"):
        function(np.ma.array([1.0, 2.0]))


@pytest.mark.parametrize("fake", FAKES)
def test_fake_quantising_refuses_what_is_not_finite_also_under_a_derivative(path, fake):
    """By place, as the quantisers themselves."""
    x = np.ones((2, 3), np.float32)
    x[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"must be finite, got nan at \(1, 2\)"):
        fake(x)
    with pytest.raises(ValueError, match=r"must be finite, got nan at \(1, 2\)"):
        jvp(fake, (x,), (np.ones_like(x),))


@given(weights)
def test_binary_codes_say_which_side_of_the_mean(w):
    """codes = 1 above the mean, -1 elsewhere; beta is the mean magnitude."""
    codes, beta = binary_quantize(w)
    assert codes.dtype == np.int8
    assert isinstance(beta, np.float32)
    exact = w.astype(np.float64)
    np.testing.assert_array_equal(codes, np.where(w > np.float32(exact.mean()), 1, -1))
    np.testing.assert_allclose(beta, np.abs(exact).mean(), rtol=1e-6)


@given(weights, st.integers(-100, 100))
def test_shifting_binary_weights_keeps_their_codes(w, shift):
    """sign(w - mean w) ignores a constant: whole numbers, so that float32 rounds nothing."""
    w = np.clip(np.rint(np.resize(w, 64)), -1000, 1000)  # float32 holds the mean of 64
    np.testing.assert_array_equal(binary_quantize(w + np.float32(shift))[0], binary_quantize(w)[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_binary_weights_must_be_finite_and_some(bad):
    """The first bad entry is named; there is no mean of nothing."""
    with pytest.raises(ValueError, match=r"must be finite, got .* at \(0, 1\)"):
        binary_quantize(np.array([[0.0, bad]]))
    with pytest.raises(ValueError, match=r"w must not be empty, got shape \(3, 0\)"):
        binary_quantize(np.zeros((3, 0)))


def test_absmean_of_zeros_is_zeros_with_the_least_scale():
    """A matrix of zeros has codes 0, and gamma is the floor, 1e-5, of either sign of zero."""
    for zero in (0.0, -0.0):
        codes, gamma = absmean_quantize(np.full((3, 4), zero, np.float32))
        assert codes.dtype == np.int8
        assert not codes.any()
        assert gamma == np.float32(1e-5)
