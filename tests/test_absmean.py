"""The quantisers of BitNet b1.58, stated as laws; every law with kernels and without."""

import json
from importlib import resources

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
)

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
    w = np.append(w.reshape(-1), np.float32(1))  # no matrix of zeros
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


VECTORS = json.loads((resources.files("minibit") / "vectors" / "absmean.json").read_text())


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["id"])
def test_vectors(path, case):
    """The language-neutral cases that every port runs."""
    if "w" in case:
        codes, gamma = absmean_quantize(np.array(case["w"], np.float32))
        assert gamma == np.float32(case["gamma"])
    else:
        codes, scale = absmax_quantize(np.array(case["x"], np.float32))
        np.testing.assert_array_equal(scale, np.array(case["scale"], np.float32))
    np.testing.assert_array_equal(codes, case["codes"])
