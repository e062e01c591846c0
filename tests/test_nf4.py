"""NF4, stated as laws; every law with kernels and without."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from minibit import kernels
from minibit.absmean import absmax_quantize, absmean_quantize
from minibit.nf4 import (
    E2M1_CODE,
    E3M0_CODE,
    INT4_CODE,
    NF4_CODE,
    NF4Tensor,
    codebook_quantize,
    dequantize_nf4_reference,
    dynamic_map,
    from_bitsandbytes,
    nearest_code,
    nf4_matmul,
    nf4_matmul_reference,
    normal_float,
    quantize_nf4,
    quantize_nf4_reference,
    to_bitsandbytes,
)
from minibit.nf4.bitsandbytes import STATE
from minibit.nf4.codebooks import OFFSET, midpoints
from minibit.nf4.double_quant import (
    dequantize_absmax,
    dequantize_absmax_reference,
    mean_of_torch,
    quantize_absmax,
)
from minibit.topk import topk_mask

MID = midpoints(NF4_CODE)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
weights = arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=20), elements=finite)
blocks = st.sampled_from([32, 64, 128, 4096])


@pytest.fixture(params=["auto", "avx2", "portable", "reference"])
def path(request, monkeypatch):
    """Every kernel path that this CPU has, and plain NumPy."""
    if request.param not in ("auto", *kernels.supported()):
        pytest.skip("this CPU lacks it")
    monkeypatch.setenv("MINIBIT_KERNELS", request.param)
    return request.param


def normal(*shape, seed=0):
    """Normal numbers in float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def same(tensor, other):
    """Whether two tensors hold the same bytes."""
    names = ("packed", "_absmax", "offset", "nested_codes", "nested_absmax")
    for name in names:
        a, b = getattr(tensor, name), getattr(other, name)
        if a is None or b is None:
            assert a is b, name
        else:
            np.testing.assert_array_equal(a, b, err_msg=name, strict=True)
    assert (tensor.shape, tensor.block) == (other.shape, other.block)


# --- codebooks ----------------------------------------------------------------------------------


def test_nf4_is_derived_bit_for_bit_from_normal_quantiles():
    """Float32 probabilities, quantiles and quotient; float64 throughout misses most entries."""
    np.testing.assert_array_equal(normal_float(), NF4_CODE, strict=True)
    assert pytest.approx((1 - 1 / 32 + 1 - 1 / 30) / 2, abs=1e-7) == OFFSET
    from statistics import NormalDist

    upper = [NormalDist().inv_cdf(p) for p in np.linspace(OFFSET, 0.5, 9)[:-1]]
    lower = [-NormalDist().inv_cdf(p) for p in np.linspace(OFFSET, 0.5, 8)[:-1]]
    plain = np.sort([*upper, 0, *lower])
    plain = (plain / plain.max()).astype(np.float32)
    np.testing.assert_allclose(plain, NF4_CODE, atol=2e-7)
    assert (plain == NF4_CODE).sum() == 6


@pytest.mark.parametrize("offset", [0.5, 1.0, -1.0, np.nan])
def test_an_offset_that_is_no_upper_probability_is_refused(offset):
    """Phi^-1(1) is infinite, and at 1/2 all numbers are zero."""
    with pytest.raises(ValueError, match=r"offset must be above 0\.5 and below 1, got"):
        normal_float(offset)


def test_the_codebooks_hold_what_their_formats_can_say():
    """E2M1: (-1)^s 2^(e-1) (1 + m/2), subnormals m/2; E3M0: powers of two; Int4: integers."""
    e2m1 = [m / 2 if e == 0 else 2.0 ** (e - 1) * (1 + m / 2) for e in range(4) for m in range(2)]
    e3m0 = [0.0, *(2.0 ** (e - 1) for e in range(1, 8))]
    for code, magnitudes in ((E2M1_CODE, e2m1), (E3M0_CODE, e3m0), (INT4_CODE, range(8))):
        ends = np.float32(magnitudes) / np.float32(magnitudes[-1])
        np.testing.assert_array_equal(code, [*-ends[:0:-1], *ends])
        assert code.size == 15
    with pytest.raises(ValueError, match="read-only"):
        NF4_CODE[0] = 0


@given(arrays(np.float32, st.integers(0, 50), elements=st.floats(-2, 2, width=32)))
def test_the_nearest_code_is_nearest_and_a_tie_goes_down(s):
    """No entry is nearer than float32's rounding of the midpoints allows; a midpoint is low."""
    for book in (NF4_CODE, E2M1_CODE, E3M0_CODE, INT4_CODE, dynamic_map()):
        codes = nearest_code(s, book)
        distance = np.abs(s[:, None].astype(float) - book.astype(float))
        assert codes.dtype == np.uint8
        chosen = np.take_along_axis(distance, codes[:, None].astype(int), axis=1)[:, 0]
        assert (chosen <= distance.min(axis=1) + 2.0**-24).all()
        bounds = midpoints(book)
        np.testing.assert_array_equal(nearest_code(bounds, book), np.arange(book.size - 1))
        above = nearest_code(np.nextafter(bounds, np.float32(2)), book)
        np.testing.assert_array_equal(above, np.arange(1, book.size))


def test_nan_has_the_last_code_and_what_lies_outside_an_end():
    """As bitsandbytes has it."""
    codes = nearest_code(np.float32([np.nan, np.inf, -np.inf, 5, -5]))
    np.testing.assert_array_equal(codes, [15, 15, 0, 15, 0])


@pytest.mark.parametrize(
    ("book", "message"),
    [
        (np.zeros((2, 2)), "2 to 256 entries in one axis"),
        (np.zeros(1), "2 to 256 entries"),
        (np.arange(257.0), "2 to 256 entries"),
        (np.float32([0, 0, 1]), "ascending"),
        (np.float32([0, np.nan]), "ascending"),
    ],
)
def test_what_is_no_codebook_is_refused(book, message):
    """Searching it would give nonsense."""
    for function in (nearest_code, codebook_quantize):
        with pytest.raises(ValueError, match=message):
            function(np.ones(3), book)


@given(weights, blocks)
def test_rounding_to_nf4s_codebook_is_quantising_and_dequantising(w, block):
    """`codebook_quantize` says in floats what `quantize_nf4` says in bytes."""
    np.testing.assert_array_equal(
        codebook_quantize(w, NF4_CODE, block), quantize_nf4(w, block).dequantize(), strict=True
    )


# --- blocks -------------------------------------------------------------------------------------


@given(weights, blocks, st.booleans())
@settings(max_examples=30)
def test_the_kernels_equal_their_references_bit_for_bit(w, block, double):
    """Codes, absmaxes, nested codes, and the floats that come back."""
    w = w * np.float32(1e-3)  # so that a sum of absmaxes does not overflow
    expected = quantize_nf4_reference(w, block, double)
    tensor = quantize_nf4(w, block, double)
    same(tensor, expected)
    values = tensor.dequantize()
    assert values.shape == w.shape
    np.testing.assert_array_equal(values, dequantize_nf4_reference(tensor), strict=True)


@given(weights, blocks)
def test_a_weight_comes_back_within_half_of_the_widest_gap_of_its_block(w, block):
    """|w - q(w)| <= 0.152 absmax: the gap between -1 and -0.696 is the widest."""
    tensor = quantize_nf4(w, block)
    absmax = np.repeat(tensor.absmax, block)[: w.size].astype(np.float64)
    error = np.abs(tensor.dequantize().reshape(-1).astype(np.float64) - w.reshape(-1))
    half = np.diff(NF4_CODE.astype(np.float64)).max() / 2
    assert (error <= half * np.maximum(absmax, 1e-38) * (1 + 1e-6)).all()


@given(weights, blocks)
def test_the_largest_weight_of_a_block_comes_back_exactly(w, block):
    """Codes 0 and 15 are -1 and 1, so a block's absmax is not rounded (if it is above 1e-38)."""
    flat, values = w.reshape(-1), quantize_nf4(w, block).dequantize().reshape(-1)
    for start in range(0, flat.size, block):
        part = flat[start : start + block]
        top = np.argmax(np.abs(part))
        if abs(part[top]) > np.float32(1e-37):
            assert values[start + top] == part[top]


@given(weights, blocks)
def test_quantising_again_changes_nothing(w, block):
    """Q(Q(w)) = Q(w): values on the codebook stay there."""
    w = np.where(np.abs(w) < np.float32(1e-30), np.float32(0), w)  # apart from denormal codes
    once = quantize_nf4(w, block)
    np.testing.assert_array_equal(quantize_nf4(once.dequantize(), block).codes(), once.codes())


@given(weights, blocks, st.sampled_from([0.5, 4.0]))
def test_scaling_by_a_power_of_two_keeps_the_codes(w, block, factor):
    """Q(c w) = c Q(w), where nothing under- or overflows."""
    w = np.clip(w, -1e30, 1e30)
    w = np.where(np.abs(w) < np.float32(1e-30), np.float32(0), w)
    tensor, scaled = quantize_nf4(w, block), quantize_nf4(w * np.float32(factor), block)
    np.testing.assert_array_equal(scaled.codes(), tensor.codes())


def test_blocks_run_through_the_flattened_weights(path):
    """A block does not end with a row: 3 rows of 48 are blocks of 64, 64 and 16."""
    w = normal(3, 48)
    tensor = quantize_nf4(w)
    assert tensor.absmax.shape == (3,)
    flat = np.abs(w.reshape(-1))
    np.testing.assert_array_equal(
        tensor.absmax, [flat[:64].max(), flat[64:128].max(), flat[128:].max()]
    )
    np.testing.assert_array_equal(
        tensor.codes(), quantize_nf4(w.reshape(-1)).codes().reshape(3, 48)
    )


def test_zeros_have_code_7_and_come_back_as_zeros(path):
    """A full block keeps an absmax of 0; a short one stores what divided it."""
    tensor = quantize_nf4(np.zeros(64 + 3, np.float32))
    assert (tensor.codes() == 7).all()
    np.testing.assert_array_equal(tensor.absmax, np.float32([0, 1e-38]))
    np.testing.assert_array_equal(tensor.dequantize(), np.zeros(67, np.float32))
    assert not np.signbit(quantize_nf4(-np.zeros(2, np.float32)).dequantize()).any()
    assert tensor.packed[-1] == 0x77  # the filling of an odd length


def test_a_full_block_multiplies_by_the_reciprocal_and_the_tail_divides(path):
    """Near a midpoint that decides the code, as in bitsandbytes."""
    rng = np.random.default_rng(0)
    m = rng.uniform(1, 2, 20_000).astype(np.float32)
    a = np.nextafter(MID[rng.integers(15, size=m.size)] * m, np.float32(0))
    full = np.zeros((m.size, 32), np.float32)
    full[:, 0], full[:, 1] = m, a
    by_reciprocal = np.searchsorted(MID, a * (np.float32(1) / m))
    np.testing.assert_array_equal(quantize_nf4(full, 32).codes()[:, 1], by_reciprocal)
    by_division = np.searchsorted(MID, a / m)
    differ = np.flatnonzero(by_division != by_reciprocal)
    assert differ.size > 100
    for i in differ[:20]:
        assert quantize_nf4(np.array([m[i], a[i]])).codes()[1] == by_division[i]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_quantised_as_float32_and_come_back_as_asked(path, dtype):
    """One product in float32, then one rounding."""
    w = normal(7, 50).astype(dtype)
    tensor = quantize_nf4(w)
    same(tensor, quantize_nf4(w.astype(np.float32)))
    np.testing.assert_array_equal(
        tensor.dequantize(dtype), tensor.dequantize().astype(dtype), strict=True
    )
    assert np.isinf(quantize_nf4(np.float32([1e38])).dequantize(np.float16)).all()
    with pytest.raises(TypeError, match="dtype must be float16, float32 or float64, got int8"):
        tensor.dequantize(np.int8)


def test_any_memory_order_and_read_only_arrays_are_taken(path):
    """Strided, transposed, reversed and frozen weights give what their copies give."""
    base = normal(8, 70)
    frozen = base.copy()
    frozen.flags.writeable = False
    for w in (base[::2], base.T, base[::-1, ::-1], frozen):
        same(quantize_nf4(w), quantize_nf4(np.array(w, order="C")))


# --- bits ---------------------------------------------------------------------------------------


def test_storage_is_4_5_bits_a_weight_and_4_127_quantised_doubly():
    """4 + 32/64, and 4 + 8/64 + 32/(64 256) and the offset, computed from the object's bytes."""
    w = normal(1024, 512)
    assert quantize_nf4(w).bits_per_parameter == 4.5
    assert quantize_nf4(w, 128).bits_per_parameter == 4.25
    double = quantize_nf4(w, double_quant=True)
    assert double.bits_per_parameter == 4 + 8 / 64 + 32 / (64 * 256) + 32 / w.size
    assert round(double.bits_per_parameter, 3) == 4.127
    stored = (double.packed, double.nested_codes, double.nested_absmax)
    assert double.nbytes == sum(array.nbytes for array in stored) + 4
    pickled = len(pickle.dumps(double))  # nothing else is held
    assert 0 < pickled - double.nbytes < 1000


# --- double quantisation ------------------------------------------------------------------------


def test_the_dynamic_map_has_seven_decades_each_twice_as_fine_as_the_one_below():
    """2^i entries of each sign between 10^(i-7) and 10^(i-6); 0 and 1, and no -1."""
    code = dynamic_map()
    assert code.dtype == np.float32
    assert (np.diff(code) > 0).all()
    positive = code[code > 0]
    np.testing.assert_array_equal(-code[:127][::-1], positive[:-1])
    assert (code[127], code[255]) == (0, 1)
    for i in range(7):
        inside = (positive > 10.0 ** (i - 7)) & (positive < 10.0 ** (i - 6))
        assert inside.sum() == 2**i
        gaps = np.diff(positive[inside])
        np.testing.assert_allclose(gaps, 0.9 * 10.0 ** (i - 6) / 2**i, rtol=1e-4)


@given(arrays(np.float32, st.integers(1, 700), elements=st.floats(0, 1e6, width=32)))
def test_the_offset_is_the_mean_and_absmaxes_come_back_near(absmax):
    """Correct to float32's sums; an absmax to half a gap of the map, at most 0.0071 nested."""
    codes, nested, offset = quantize_absmax(absmax)
    exact = absmax.astype(np.float64).mean()
    assert abs(float(offset) - exact) <= 64 * 2.0**-24 * exact + 1e-45
    back = dequantize_absmax(codes, nested, offset).astype(np.float64)
    largest = np.repeat(nested, 256)[: absmax.size].astype(np.float64)
    assert (np.abs(back - absmax) <= 0.00708 * largest + 2.0**-22 * absmax.max() + 1e-38).all()
    assert codes.shape == absmax.shape
    assert nested.shape == (-(-absmax.size // 256),)


@given(arrays(np.float32, st.integers(1, 700), elements=st.floats(0, 1e6, width=32)))
def test_the_absmax_kernel_equals_its_reference(absmax):
    """A product and a sum, rounded one after the other."""
    parts = quantize_absmax(absmax)
    np.testing.assert_array_equal(
        dequantize_absmax(*parts), dequantize_absmax_reference(*parts), strict=True
    )


def test_equal_absmaxes_come_back_exactly():
    """All differences are zero: the offset says everything, and the codes are the peers'."""
    absmax = np.full(300, 0.5, np.float32)
    codes, nested, offset = quantize_absmax(absmax)
    assert offset == 0.5
    assert not codes.any()
    assert not nested.any()
    np.testing.assert_array_equal(dequantize_absmax(codes, nested, offset), absmax)


def test_the_mean_depends_on_its_order_and_ours_is_that_of_torch():
    """Float32 sums in sequence give another last bit; the vectors hold torch's own results."""
    values = np.abs(normal(20_000)) + 1
    in_sequence = np.float32(0)
    for value in values:
        in_sequence += value
    assert mean_of_torch(values) != in_sequence / np.float32(values.size)
    lane = np.zeros((32, 32), np.float32)
    lane[:, 0] = [2**24] + [1] * 31  # beside 2**24 a 1 is lost: 15 are; the next 16 come together
    assert mean_of_torch(lane.reshape(-1)) == (2**24 + 16) / 1024
    np.testing.assert_allclose(mean_of_torch(values), values.mean(dtype=np.float64), rtol=1e-6)


def test_double_quantisation_costs_little():
    """The error of normal weights grows by less than a hundredth."""
    w = normal(512, 512)
    error = [np.linalg.norm(quantize_nf4(w, 64, d).dequantize() - w) for d in (False, True)]
    assert error[0] < error[1] * 1.0001  # it does cost, or nothing at all
    assert error[1] < 1.01 * error[0]


# --- product ------------------------------------------------------------------------------------

SHAPES = [(1, 1), (5, 7), (3, 63), (2, 64), (9, 96), (7, 128), (130, 192), (65, 256), (33, 1030)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_product_is_that_of_the_dequantised_matrix(path, shape):
    """Within (n_in + 4) 2^-24 sum |x w| of float64, for one token, a few, many; every block."""
    w = normal(*shape)
    for block in (32, 64, 128, 256, 4096):
        for double in (False, True):
            tensor = quantize_nf4(w, block, double)
            values = dequantize_nf4_reference(tensor).astype(np.float64)
            for batch in (1, 3, 6):
                x = normal(batch, shape[1], seed=batch)
                y = nf4_matmul(x, tensor)
                assert y.dtype == np.float32
                bound = (shape[1] + 4) * 2.0**-24 * (np.abs(x).astype(float) @ np.abs(values).T)
                assert (np.abs(y - x.astype(np.float64) @ values.T) <= bound).all()


def test_the_product_keeps_leading_axes_and_takes_none(path):
    """(..., n_in) becomes (..., n_out); no tokens stay none; strided tokens are copied."""
    tensor = quantize_nf4(normal(5, 64))
    x = normal(2, 3, 64)
    y = nf4_matmul(x, tensor)
    assert y.shape == (2, 3, 5)
    np.testing.assert_allclose(y, nf4_matmul_reference(x, tensor), rtol=1e-4, atol=1e-5)
    assert nf4_matmul(x[0, 0], tensor).shape == (5,)
    assert nf4_matmul(np.zeros((0, 64), np.float32), tensor).shape == (0, 5)
    np.testing.assert_array_equal(
        nf4_matmul(x[:, ::2, ::-1], tensor), nf4_matmul(x[:, ::2, ::-1].copy(), tensor)
    )
    np.testing.assert_array_equal(
        nf4_matmul(x.astype(np.float64), tensor), nf4_matmul(x, tensor), strict=True
    )


def test_threads_change_no_bit(path):
    """Rows are computed alike, whoever computes them; odd numbers of rows too."""
    x = normal(1, 2048)
    for rows in (2049, 2051):
        tensor = quantize_nf4(normal(rows, 2048))
        one = nf4_matmul(x, tensor, threads=1)
        for threads in (2, 3):
            np.testing.assert_array_equal(nf4_matmul(x, tensor, threads=threads), one)


@pytest.mark.parametrize(
    ("count", "seed", "mean"),
    [
        (2000, 0, "0x1.fc643e0000000p-2"),
        (5000, 3, "0x1.02f0e60000000p-1"),
        (20000, 10, "0x1.00a84e0000000p-1"),
    ],
)
def test_the_mean_is_that_of_torch_to_the_last_bit(count, seed, mean):
    """As torch 2.13 gives it on one thread for these uniform numbers; other orders differ here."""
    values = np.random.Generator(np.random.Philox(seed)).random(count, dtype=np.float32)
    assert mean_of_torch(values) == float.fromhex(mean)


def test_many_tokens_are_multiplied_slice_by_slice(path, monkeypatch):
    """Slices that start within a block and within a byte, and a last one that is shorter."""
    from minibit import nf4

    w, x = normal(7, 45), normal(9, 45)
    tensor = quantize_nf4(w, 32)
    whole = nf4_matmul(x, tensor)
    for size in (100, 1):  # a row is longer than the second
        monkeypatch.setattr(nf4.product, "SLICE", size)
        np.testing.assert_allclose(nf4_matmul(x, tensor), whole, rtol=1e-5, atol=1e-6)


def test_nan_and_infinity_pass_through_the_product(path):
    """As in any product of floats; rows of other tokens are left alone."""
    tensor = quantize_nf4(np.abs(normal(4, 64)) + 1)
    x = np.ones((2, 64), np.float32)
    x[1, 5] = np.nan
    y = nf4_matmul(x, tensor)
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).all()
    x[1, 5] = np.inf
    assert np.isinf(nf4_matmul(x, tensor)[1]).all()


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_weights_are_refused_by_place(path, bad):
    """The error names the first, also among doubles that overflow float32."""
    w = np.zeros((3, 50))
    w[1, 37] = bad
    with pytest.raises(ValueError, match=rf"w must be finite, got {bad} at \(1, 37\)"):
        quantize_nf4(w)
    w[1, 37] = 1e39
    with pytest.raises(ValueError, match=r"w must be finite, got inf at \(1, 37\)"):
        quantize_nf4(w)


def test_non_finite_weights_may_pass_and_then_spoil_their_block_alone(path):
    """As in bitsandbytes: NaN makes a block NaN; -inf comes back as inf, beside NaN."""
    w = np.full((3, 32), 0.5, np.float32)
    w[0, 3], w[1, 4] = np.nan, -np.inf
    tensor = quantize_nf4(w, 32, check_finite=False)
    np.testing.assert_array_equal(tensor.codes()[0], 15)
    np.testing.assert_array_equal(tensor.codes()[1], np.where(np.arange(32) == 4, 15, 7))
    values = tensor.dequantize()
    assert np.isnan(values[0]).all()
    assert values[1, 4] == np.inf
    assert np.isnan(np.delete(values[1], 4)).all()
    np.testing.assert_array_equal(values[2], w[2])


def test_what_cannot_be_quantised_is_named(path):
    """Nothing, a single number, integers, masks; blocks that no peer reads; absurd sums."""
    for function in (quantize_nf4, quantize_nf4_reference, codebook_quantize):
        with pytest.raises(ValueError, match=r"w must not be empty, got shape \(0, 3\)"):
            function(np.zeros((0, 3), np.float32))
        with pytest.raises(ValueError, match="w must have at least one axis, got a single number"):
            function(np.float32(1))
        for bad in (np.int8([1, 0]), [1, 2], ["1"], None, np.array([1j])):
            with pytest.raises(TypeError, match="w must be an array of floats, got"):
                function(bad)
        with pytest.raises(TypeError, match="must not be a masked array"):
            function(np.ma.array([1.0, 2.0]))
        for block in (0, -64, 16, 63, 8192):
            with pytest.raises(ValueError, match=f"block must be 32, 64, .* or 4096, got {block}"):
                function(np.ones(3), block=block)
        for block in (64.0, "64", True, None):
            with pytest.raises(TypeError, match="block must be an integer, got"):
                function(np.ones(3), block=block)
    with pytest.raises(ValueError, match=r"finite mean of the absmaxes, got inf from 8 of them"):
        quantize_nf4(np.full(256, 3e38, np.float32), 32, double_quant=True)
    with pytest.raises(ValueError, match=r"finite mean of the absmaxes, got nan from 1 of them"):
        quantize_nf4(np.float32([1, np.nan]), 32, double_quant=True, check_finite=False)
    assert np.isfinite(quantize_nf4(np.full(256, 3e38, np.float32), 32).dequantize()).all()


def test_what_cannot_be_multiplied_is_named(path):
    """A wrong tensor, a wrong number of inputs, integers, no thread."""
    tensor = quantize_nf4(normal(5, 64))
    with pytest.raises(TypeError, match="tensor must be an NF4Tensor, got ndarray"):
        nf4_matmul(np.ones((1, 64)), np.ones((5, 64)))
    with pytest.raises(ValueError, match=r"n_in = 64, got \(1, 63\)"):
        nf4_matmul(np.ones((1, 63)), tensor)
    with pytest.raises(ValueError, match=r"n_in = 64, got \(\)"):
        nf4_matmul(np.float32(1), tensor)
    with pytest.raises(TypeError, match="x must be an array of floats, got int64"):
        nf4_matmul(np.ones((1, 64), np.int64), tensor)
    with pytest.raises(ValueError, match=r"\(n_out, n_in\) to multiply by, got \(64,\)"):
        nf4_matmul(np.ones((1, 64)), quantize_nf4(normal(64)))
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        nf4_matmul(np.ones((1, 64)), tensor, threads=0)


# --- the tensor and its file --------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
def test_a_tensor_survives_pickling_and_its_file_layout(path, double):
    """Byte for byte; its arrays can't be written to."""
    tensor = quantize_nf4(normal(5, 67), 32, double)
    same(pickle.loads(pickle.dumps(tensor)), tensor)
    arrays = to_bitsandbytes(tensor, "layers.0.q_proj.weight", "bfloat16")
    same(from_bitsandbytes(arrays, "layers.0.q_proj.weight"), tensor)
    with pytest.raises(ValueError, match="read-only"):
        tensor.packed[0] = 0
    with pytest.raises(AttributeError):
        tensor.block = 128


def test_the_file_layout_has_the_peers_names_and_json():
    """Names, dtypes and shapes of bitsandbytes 0.50; the peers test reads them there."""
    arrays = to_bitsandbytes(quantize_nf4(normal(4, 64), double_quant=True))
    layout = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    state = arrays.pop(f"weight.{STATE}nf4")
    size = layout.pop(f"weight.{STATE}nf4")
    assert layout == {
        "weight": ("uint8", (128, 1)),
        "weight.absmax": ("uint8", (4,)),
        "weight.quant_map": ("float32", (16,)),
        "weight.nested_absmax": ("float32", (1,)),
        "weight.nested_quant_map": ("float32", (256,)),
    }
    assert size == ("uint8", state.shape)
    fields = json.loads(state.tobytes())
    offset = fields.pop("nested_offset")
    assert offset == np.float32(offset)
    assert fields == {
        "quant_type": "nf4",
        "blocksize": 64,
        "dtype": "float32",
        "shape": [4, 64],
        "nested_blocksize": 256,
        "nested_dtype": "float32",
    }
    with pytest.raises(ValueError, match="dtype must be 'float16', 'bfloat16' or 'float32'"):
        to_bitsandbytes(quantize_nf4(normal(4)), dtype="int8")
    with pytest.raises(TypeError, match="tensor must be an NF4Tensor, got NoneType"):
        to_bitsandbytes(None)


def changed(name, change):
    """The arrays of a doubly quantised tensor with one of them changed, or gone for None."""
    arrays = to_bitsandbytes(quantize_nf4(normal(4, 64), double_quant=True))
    key = f"weight.{name}" if name else "weight"
    value = change(arrays.pop(key))
    return arrays if value is None else arrays | {key: value}


def state(**entries):
    """Change entries of the JSON."""

    def change(array):
        text = json.dumps(json.loads(array.tobytes()) | entries)
        return np.frombuffer(text.encode(), np.uint8)

    return change


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("", lambda a: None, KeyError, "weight is missing"),
        ("", lambda a: a.reshape(-1), ValueError, r"weight must have shape \(bytes, 1\)"),
        ("", lambda a: a[1:], ValueError, r"packed must have shape \(128,\)"),
        ("", lambda a: a.astype(np.int16), ValueError, r"packed must have shape \(128,\)"),
        ("absmax", lambda a: None, KeyError, "weight.absmax is missing"),
        ("absmax", lambda a: a.astype(np.float32), TypeError, "nested_codes must be an array of u"),
        ("absmax", lambda a: a[:-1], ValueError, r"nested_codes must have shape \(4,\)"),
        ("quant_map", lambda a: -a, ValueError, "quant_map must hold the 16 known entries"),
        ("nested_quant_map", lambda a: a[:-1], ValueError, "must hold the 256 known entries"),
        ("nested_absmax", lambda a: a[:0], ValueError, r"nested_absmax must have shape \(1,\)"),
        (f"{STATE}nf4", lambda a: None, KeyError, "bitsandbytes__nf4 is missing"),
        (f"{STATE}nf4", lambda a: a[:-1], ValueError, "holds no JSON"),
        (f"{STATE}nf4", lambda a: a[:0], ValueError, "holds no JSON"),
        (f"{STATE}nf4", lambda a: np.uint8([255]), ValueError, "holds no JSON"),
        (f"{STATE}nf4", lambda a: np.uint8([ord("7")]), ValueError, "a JSON int, no object"),
        (f"{STATE}nf4", lambda a: a.astype(float), ValueError, "must be uint8 in one axis"),
        (f"{STATE}nf4", state(blocksize="64"), ValueError, "blocksize is missing or wrong"),
        (f"{STATE}nf4", state(blocksize=48), ValueError, "block must be 32, 64"),
        (f"{STATE}nf4", state(shape=[4, 65]), ValueError, r"packed must have shape \(130,\)"),
        (f"{STATE}nf4", state(shape=[-4, -64]), ValueError, "no side of 0, got"),
        (f"{STATE}nf4", state(shape=[]), ValueError, "shape must have an axis"),
        (f"{STATE}nf4", state(shape=[4, 64.0]), ValueError, "shape must hold whole numbers"),
        (f"{STATE}nf4", state(quant_type="fp4"), ValueError, "quant_type must be 'nf4'"),
        (f"{STATE}nf4", state(nested_blocksize=64), ValueError, "nested_blocksize must be 256"),
        (f"{STATE}nf4", state(nested_offset="a"), ValueError, "nested_offset is missing or wrong"),
        (
            f"{STATE}nf4",
            lambda a: np.frombuffer(a.tobytes().replace(b"nested_offset", b"nested_0ffset"), "u1"),
            ValueError,
            "weight.absmax holds codes of scales, but .*nf4 no nested_offset, got ",
        ),
        (
            f"{STATE}nf4",
            state(nested_offset=np.nan),
            ValueError,
            "NaN is no JSON number",
        ),
        (
            f"{STATE}nf4",
            state(nested_offset=10**60),
            ValueError,
            "must be finite as float32, got 1",
        ),
    ],
)
def test_a_damaged_file_is_refused_by_name(name, change, error, message):
    """Whatever is missing or does not fit is named; nothing is guessed."""
    with pytest.raises(error, match=message):
        from_bitsandbytes(changed(name, change))


def test_fp4_files_are_refused():
    """Their codes stand for other numbers, in an order of their own."""
    arrays = to_bitsandbytes(quantize_nf4(normal(4)))
    arrays[f"weight.{STATE}fp4"] = arrays.pop(f"weight.{STATE}nf4")
    with pytest.raises(ValueError, match="weight is FP4, not NF4"):
        from_bitsandbytes(arrays)


def test_parts_that_do_not_fit_make_no_tensor():
    """A plain absmax or all three nested parts, and only one of the two."""
    packed, absmax = np.zeros(2, np.uint8), np.ones(1, np.float32)
    for parts in ((None,), (absmax, np.float32(1)), (None, np.float32(1), packed[:1], None)):
        with pytest.raises(ValueError, match="either absmax, or offset, nested_codes and nested"):
            NF4Tensor((4,), 64, packed, *parts)
    with pytest.raises(ValueError, match="shape must have an axis and no side of 0"):
        NF4Tensor((4, 0), 64, packed, absmax)
    with pytest.raises(TypeError, match="absmax must be an array of float32, got float64"):
        NF4Tensor((4,), 64, packed, absmax.astype(float))


@pytest.mark.parametrize("storage", [np.float32, np.float16, np.int8, np.uint16])
@pytest.mark.parametrize("double_quant", [False, True])
def test_packed_codes_may_be_stored_as_numbers_of_any_type(storage, double_quant):
    """``quant_storage`` of bitsandbytes: the bytes are the same, and mean the same weights."""
    tensor = quantize_nf4(normal(16, 64), double_quant=double_quant)
    arrays = dict(to_bitsandbytes(tensor))
    arrays["weight"] = arrays["weight"].reshape(-1).view(storage)[:, None]
    again = from_bitsandbytes(arrays)
    np.testing.assert_array_equal(again.packed, tensor.packed)
    np.testing.assert_array_equal(again.dequantize(), tensor.dequantize())
    arrays["weight"] = arrays["weight"][:-1]
    with pytest.raises(ValueError, match=r"packed must have shape \(512,\)"):
        from_bitsandbytes(arrays)


def test_bfloat16_arrays_are_quantised_as_their_float32_values():
    """Arrays of ml_dtypes' bfloat16 into every quantiser."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    w = normal(4, 64).astype(ml_dtypes.bfloat16)
    wide = w.astype(np.float32)
    for quantise in (absmean_quantize, absmax_quantize):
        for a, b in zip(quantise(w), quantise(wide), strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(quantize_nf4(w).packed, quantize_nf4(wide).packed)
    np.testing.assert_array_equal(topk_mask(w, 5), topk_mask(wide, 5))
