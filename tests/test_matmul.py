"""The ternary product, stated as laws; every law under every kernel path that this CPU has."""

import multiprocessing
import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibit import kernels
from minibit.absmean import absmax_quantize_reference
from minibit.kernels import threads as pool
from minibit.matmul import (
    MAX_INPUTS,
    head_matmul,
    ternary_matmul,
    ternary_matmul_int8,
    ternary_matmul_int8_reference,
    ternary_matmul_reference,
)
from minibit.ternary import TernaryMatrix

JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0") and not kernels.missing()
PATHS = kernels.supported() if JIT else ("reference",)


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Each kernel path that this CPU has."""
    monkeypatch.setenv("MINIBIT_KERNELS", request.param)
    return request.param


def packed_on(path, codes, scale=1.0):
    """A matrix laid out for `path`; Hypothesis and a monkeypatch fixture do not mix."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIBIT_KERNELS", path)
        return TernaryMatrix.from_codes(codes, scale)


def product(x, codes):
    """The exact product by another road: int64 sums of plain NumPy."""
    return x.astype(np.int64) @ codes.astype(np.int64).T


sizes = st.integers(1, 70) | st.sampled_from([64, 128, 129, 200])
batches = st.integers(0, 14) | st.sampled_from([25, 60])


@st.composite
def problems(draw):
    """Int8 activations of any values and ternary codes, of any small shape."""
    batch, n_out, n_in = draw(batches), draw(sizes), draw(sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = rng.integers(-1, 2, (n_out, n_in)).astype(np.int8)
    kind = draw(st.sampled_from(["any", "extreme", "lowest", "zero"]))
    x = {
        "any": rng.integers(-128, 128, (batch, n_in)),
        "extreme": rng.choice([-127, 127], (batch, n_in)),
        "lowest": np.full((batch, n_in), -128),
        "zero": np.zeros((batch, n_in)),
    }[kind].astype(np.int8)
    return x, codes


# --- int8 in, int32 out -------------------------------------------------------------------------


@pytest.mark.parametrize("path_name", PATHS)
@given(problems())
def test_the_integer_product_is_exact(path_name, problem):
    """z = x codes^T in int32, for any shape, batch 0 included, on every path."""
    x, codes = problem
    z = ternary_matmul_int8(x, packed_on(path_name, codes))
    assert z.dtype == np.int32
    np.testing.assert_array_equal(z, product(x, codes))


@pytest.mark.parametrize("batch", [1, 2, 12, 13, 25, 400])
def test_large_blocks_are_exact(path, batch):
    """Several blocks of columns, of tokens and of panels: k above 4096, tokens above 192."""
    rng = np.random.default_rng(batch)
    codes = rng.integers(-1, 2, (83, 4200)).astype(np.int8)
    x = rng.integers(-128, 128, (batch, 4200)).astype(np.int8)
    z = ternary_matmul_int8(x, TernaryMatrix.from_codes(codes))
    np.testing.assert_array_equal(z, product(x, codes))


def test_the_reference_is_exact_where_int32_is_needed(path):
    """The specification itself against sums of Python's integers."""
    x, codes = np.full((1, 3000), -128, np.int8), np.ones((2, 3000), np.int8)
    z = ternary_matmul_int8_reference(x, TernaryMatrix.from_codes(codes))
    assert z.tolist() == [[sum([-128] * 3000)] * 2]


@pytest.mark.parametrize("threads", [1, 2, 3, np.int64(2)])
@pytest.mark.parametrize("batch", [1, 2, 5, 60, 100])
def test_the_number_of_threads_does_not_change_a_bit(path, threads, batch, monkeypatch):
    """Ranges of rows or of tokens, computed side by side, fit together; small ones are forced."""
    monkeypatch.setattr("minibit.matmul.products._PAYS", 0)
    rng = np.random.default_rng(threads * 1000 + batch)
    codes = rng.integers(-1, 2, (203, 130)).astype(np.int8)
    x = rng.integers(-128, 128, (batch, 130)).astype(np.int8)
    matrix = TernaryMatrix.from_codes(codes, 0.25)
    z = ternary_matmul_int8(x, matrix, threads=threads)
    np.testing.assert_array_equal(z, product(x, codes))
    y = ternary_matmul(x.astype(np.float32), matrix, threads=threads)
    np.testing.assert_array_equal(y, ternary_matmul_reference(x.astype(np.float32), matrix))


@pytest.mark.parametrize("batch", [1, 4, 48])
def test_no_sum_overflows_up_to_the_bound_on_inputs(path, batch):
    """MAX_INPUTS extremes are exact in every group of rows, also if the signs turn half way."""
    assert MAX_INPUTS * 64 * 2 * 128 == 2**31  # what the sums of a code left in place come to
    half, signs = MAX_INPUTS // 2, np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]], np.int8)
    values = np.array([[-128, -128], [127, 127], [-128, 127], [127, -128]], np.int8)
    values = np.resize(values, (max(batch, 4), 2))  # (tokens, halves)
    matrix = TernaryMatrix.from_codes(np.tile(signs, (16, 1)).repeat(half, axis=1))
    for x in values.reshape(-1, batch, 2):
        exact = half * np.tile(product(x, signs), 16)  # (batch, 64): the signs, 16 times
        np.testing.assert_array_equal(ternary_matmul_int8(x.repeat(half, axis=1), matrix), exact)


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
@pytest.mark.parametrize("batch", [1, 2])
def test_more_inputs_than_int32_can_sum_are_refused(path, batch, dtype):
    """One input more than MAX_INPUTS is a ValueError that names both numbers."""
    matrix = TernaryMatrix.from_codes(np.ones((1, MAX_INPUTS + 1), np.int8))
    functions = {
        np.int8: (ternary_matmul_int8, ternary_matmul_int8_reference),
        np.float32: (ternary_matmul, ternary_matmul_reference),
    }[dtype]
    for multiply in functions:
        with pytest.raises(ValueError, match=f"at most {MAX_INPUTS} inputs, got {MAX_INPUTS + 1}"):
            multiply(np.zeros((batch, MAX_INPUTS + 1), dtype), matrix)


def test_any_memory_order_and_leading_axes_are_taken(path):
    """Strided, reversed, transposed and read-only activations; vectors and stacks of tokens."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 2, (9, 20)).astype(np.int8)
    matrix = TernaryMatrix.from_codes(codes)
    wide = rng.integers(-128, 128, (6, 40)).astype(np.int8)
    frozen = wide[:, :20].copy()
    frozen.flags.writeable = False
    turned = np.asfortranarray(wide[:, :20])
    for x in (wide[:, ::2], wide[:, :20][::-1], wide[:, 20:], turned, frozen):
        np.testing.assert_array_equal(ternary_matmul_int8(x, matrix), product(x, codes))
        y = ternary_matmul(x.astype(np.float32)[::1], matrix)
        np.testing.assert_array_equal(y, ternary_matmul_reference(x.astype(np.float32), matrix))
    stack = frozen.reshape(2, 3, 20)
    z = ternary_matmul_int8(stack, matrix)
    np.testing.assert_array_equal(z, product(frozen, codes).reshape(2, 3, 9))
    assert ternary_matmul_int8(frozen[0], matrix).shape == (9,)


@pytest.mark.parametrize("n_in", [1, 8, 13, 64, 200])
def test_one_token_may_lie_anyhow(path, n_in):
    """The short way of small matrices looks at how a token lies: strides, alignment, writing."""
    rng = np.random.default_rng(n_in)
    codes = rng.integers(-1, 2, (70, n_in)).astype(np.int8)
    matrix = TernaryMatrix.from_codes(codes, 0.5)
    wide = rng.integers(-127, 128, (4, 3 * n_in)).astype(np.int8)
    frozen = wide[:1, :n_in].copy()
    frozen.flags.writeable = False
    for x in (wide[1:2, ::3], wide[:1, n_in - 1 :: -1][:, :n_in], wide[2:3, :n_in], frozen):
        for _ in range(2):  # the first call of a kind may go another way than the rest
            np.testing.assert_array_equal(ternary_matmul_int8(x, matrix), product(x, codes))
            floats = x.astype(np.float32)
            apart = np.zeros(4 * n_in + 1, np.uint8)[1:].view(np.float32).reshape(1, n_in)
            apart[...] = floats  # starts one byte beside where a float32 does
            spread = np.zeros((1, 2 * n_in), np.float32)[:, ::2]
            spread[...] = floats
            for y in (floats, apart, spread):
                expected = ternary_matmul_reference(floats, matrix)
                np.testing.assert_array_equal(ternary_matmul(y, matrix), expected)


class Lying(np.ndarray):
    """A subclass that says it is something else."""

    shape = (1, 40)
    dtype = np.dtype(np.int8)


class Convertible:
    """What NumPy can make an array of, with a `shape` that means something else."""

    shape = "square"

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        """What NumPy asks for."""
        return self.array


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
@pytest.mark.parametrize("batch", [1, 3])
def test_arrays_are_taken_for_what_they_are(path, batch, dtype):
    """Subclasses, mapped files, foreign byte order and things to convert take no short way."""
    rng = np.random.default_rng(batch)
    codes = rng.integers(-1, 2, (70, 40)).astype(np.int8)
    x = rng.integers(-127, 128, (batch, 40)).astype(dtype)
    x[:, 0] = 127  # floats are quantised to themselves
    matrix, expected = TernaryMatrix.from_codes(codes), product(x, codes)
    multiply = ternary_matmul_int8 if dtype is np.int8 else ternary_matmul
    noted = x.astype(np.dtype(dtype, metadata={"unit": "mV"}))
    mapped = np.frombuffer(x.tobytes(), dtype).reshape(x.shape)
    foreign = x.astype(np.dtype(dtype).newbyteorder())
    kinds = [x.view(Lying), noted, mapped, foreign, Convertible(x)]
    if dtype is np.float32:
        kinds += [x.tolist(), x.astype(np.longdouble)]
    for kind in kinds:
        for _ in range(2):
            z = multiply(kind, matrix)
            assert type(z) is np.ndarray
            np.testing.assert_array_equal(z, expected)
    short = x[:, :39].copy().view(Lying)  # says 40
    with pytest.raises(ValueError, match="n_in = 40"):
        multiply(short, matrix)
    with pytest.raises(TypeError, match="x must be"):
        multiply(x.view(np.uint8 if dtype is np.int8 else np.int32), matrix)
    with pytest.raises(TypeError, match="x must not be a masked array"):
        multiply(np.ma.MaskedArray(x), matrix)
    one = np.broadcast_to(dtype(127), (1, 40))  # a token without strides
    np.testing.assert_array_equal(multiply(one, matrix), product(one, codes))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices_give_empty_or_zero_products(path, shape):
    """A sum over no inputs is 0; no outputs are no columns."""
    n_out, n_in = shape
    matrix = TernaryMatrix.from_codes(np.zeros(shape, np.int8))
    z = ternary_matmul_int8(np.zeros((3, n_in), np.int8), matrix)
    y = ternary_matmul(np.zeros((3, n_in), np.float32), matrix)
    np.testing.assert_array_equal(z, np.zeros((3, n_out), np.int32), strict=True)
    np.testing.assert_array_equal(y, np.zeros((3, n_out), np.float32), strict=True)
    assert ternary_matmul(np.zeros((0, n_in), np.float32), matrix).shape == (0, n_out)


# --- floats in, floats out ----------------------------------------------------------------------


@pytest.mark.parametrize("path_name", PATHS)
@given(problems(), st.integers(-20, 20), st.sampled_from([1.0, 0.037, -2.5, 0.0]))
def test_the_float_product_equals_its_reference_bit_for_bit(path_name, problem, power, gamma):
    """Quantise, multiply, scale in the order of the specification, on every path."""
    x, codes = problem
    noise = np.random.default_rng(x.size).standard_normal(x.shape).astype(np.float32)
    floats = (x + noise) * np.float32(2.0**power)
    matrix = packed_on(path_name, codes, gamma)
    y = ternary_matmul(floats, matrix)
    np.testing.assert_array_equal(y, ternary_matmul_reference(floats, matrix), strict=True)


@pytest.mark.parametrize("path_name", PATHS)
@given(st.integers(-25, 25), st.integers(0, 2**32 - 1))
def test_the_float_product_quantises_as_absmax_quantize_does(path_name, power, seed):
    """By one weight of 1, y = code (gamma / scale) to the bit; tokens below 1e-5 lose levels."""
    x = np.float32(2.0**power) * np.random.default_rng(seed).standard_normal((8, 5), np.float32)
    codes, scale = absmax_quantize_reference(x)
    y = ternary_matmul(x, packed_on(path_name, np.eye(5, dtype=np.int8), 0.3))
    np.testing.assert_array_equal(y, codes * (np.float32(0.3) / scale))


@given(problems())
def test_the_error_of_int8_activations_is_bounded(problem):
    """|y - x W^T| <= sum over inputs of max|x| / 254, and float32's own rounding."""
    x, codes = problem
    floats = x.astype(np.float32) * np.float32(0.1)
    y = ternary_matmul(floats, TernaryMatrix.from_codes(codes))
    exact = floats.astype(np.float64) @ codes.astype(np.float64).T
    absmax = np.abs(floats).max(axis=1, keepdims=True, initial=0)
    bound = codes.shape[1] * absmax * (1 / 254 + 1e-5)
    assert (np.abs(y - exact) <= bound).all()


def test_scaling_a_token_by_a_power_of_two_scales_its_outputs(path):
    """Q(2^p x) has the codes of Q(x): activations have one scale a token."""
    rng = np.random.default_rng(5)
    matrix = TernaryMatrix.from_codes(rng.integers(-1, 2, (20, 30)).astype(np.int8), 0.3)
    x = rng.standard_normal((4, 30)).astype(np.float32)
    factor = np.float32([[1], [4], [0.5], [1024]])
    np.testing.assert_array_equal(
        ternary_matmul(x * factor, matrix), ternary_matmul(x, matrix) * factor
    )


@pytest.mark.parametrize("batch", [1, 3, 60])
def test_outputs_beyond_float32_are_infinite_on_every_path(path, batch):
    """A finite token may give infinities, and NaN where 0 meets one: the same bits, silently."""
    matrix = TernaryMatrix.from_codes([[1, 1], [-1, -1], [1, -1]], scale=2.0)
    x = np.full((batch, 2), np.finfo(np.float32).max)
    y = ternary_matmul(x, matrix)
    np.testing.assert_array_equal(y, np.tile(np.float32([np.inf, -np.inf, 0]), (batch, 1)))
    np.testing.assert_array_equal(y, ternary_matmul_reference(x, matrix))
    matrix = TernaryMatrix.from_codes(matrix.codes(), scale=1e10)  # gamma / s is infinite itself
    y = ternary_matmul(x, matrix)
    np.testing.assert_array_equal(y, np.tile(np.float32([np.inf, -np.inf, np.nan]), (batch, 1)))
    np.testing.assert_array_equal(y, ternary_matmul_reference(x, matrix))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_rounded_to_float32_first(path, dtype):
    """float16 and float64 give what their float32 copies give."""
    x = np.random.default_rng(1).standard_normal((2, 33)).astype(dtype)
    matrix = TernaryMatrix.from_codes(np.ones((5, 33), np.int8))
    np.testing.assert_array_equal(
        ternary_matmul(x, matrix), ternary_matmul(x.astype(np.float32), matrix)
    )


# --- the unquantised head -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (64, 200), (3, 1000)])
@pytest.mark.parametrize("bits", [16, 32])
def test_the_head_product_is_that_of_floats(path, shape, bits):
    """y = x w^T within float32's rounding of a sum, for one token and for many."""
    rng = np.random.default_rng(shape[1])
    w = rng.standard_normal(shape).astype(np.float32)
    weights = w
    if bits == 16:
        weights = (w.view(np.uint32) >> 16).astype(np.uint16)
        w = (weights.astype(np.uint32) << 16).view(np.float32)
    x = rng.standard_normal((3, shape[1])).astype(np.float32)
    bound = shape[1] * 2.0**-24 * (np.abs(x) @ np.abs(w).T.astype(np.float64)) + 1e-30
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    assert (np.abs(head_matmul(x, weights) - exact) <= bound).all()
    for i in range(3):
        y = head_matmul(x[i], np.asfortranarray(weights))
        assert y.shape == (shape[0],)
        assert (np.abs(y - exact[i]) <= bound[i]).all()


def test_a_mapped_head_is_read_where_it_lies(path):
    """A read-only head is not copied: that of a published model has hundreds of megabytes."""
    w = np.ones((3000, 1000), np.float32)
    w.flags.writeable = False
    x = np.ones(1000, np.float32)
    head_matmul(x, w)  # compiled
    tracemalloc.start()
    y = head_matmul(x, w)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(y, np.full(3000, 1000))
    assert peak < (w.nbytes / 10 if path != "reference" else 2 * w.nbytes)


def test_a_head_of_bfloat16_is_never_widened_as_a_whole(path):
    """Nor for the many tokens of a prompt: a few thousand rows at a time."""
    w = np.full((20_000, 64), 0x3F80, np.uint16)  # ones
    tracemalloc.start()
    y = head_matmul(np.ones((3, 64), np.float32), w)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(y, np.full((3, 20_000), 64))
    assert peak - y.nbytes < w.nbytes * 2


def test_a_head_of_other_types_or_shapes_is_refused(path):
    """Float64, float16 and int weights are not taken for bfloat16."""
    x = np.ones((1, 2), np.float32)
    for dtype in (np.float64, np.float16, np.int8):
        with pytest.raises(TypeError, match="w must be float32, or uint16"):
            head_matmul(x, np.ones((3, 2), dtype))
    with pytest.raises(TypeError, match="x must be an array of floats"):
        head_matmul(np.ones((1, 2), int), np.ones((3, 2), np.float32))
    for w in (np.ones((3, 3), np.float32), np.ones(2, np.float32)):
        with pytest.raises(ValueError, match="must fit w"):
            head_matmul(x, w)


# --- a scale per group of columns ---------------------------------------------------------------


@st.composite
def grouped_problems(draw):
    """Floats, codes and scales of groups; scales that float16 holds, and others."""
    group = draw(st.sampled_from([32, 64, 128, 256]))
    n_out, groups = draw(sizes), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = rng.integers(-1, 2, (n_out, group * groups)).astype(np.int8)
    scales = rng.standard_normal((n_out, groups)).astype(draw(st.sampled_from(["f2", "f4"])))
    scales[rng.random(scales.shape) < 0.1] = 0
    x = rng.standard_normal((draw(batches), codes.shape[1]), np.float32)
    x *= np.float32(2.0) ** rng.integers(-8, 8, x.shape).astype(np.float32)
    return x, codes, scales, group


def dense(codes, scales, group):
    """The matrix in float32, each scale repeated."""
    return codes * np.repeat(scales.astype(np.float32), group, axis=1)


@pytest.mark.parametrize("path_name", PATHS)
@given(grouped_problems())
def test_the_product_of_groups_equals_its_reference_bit_for_bit(path_name, problem):
    """Each group exact in int32, then float32 from the first group on, on every path."""
    x, codes, scales, group = problem
    matrix = packed_on(path_name, codes, scales)
    assert matrix.group == (group if scales.size > 1 else None)
    y = ternary_matmul(x, matrix)
    np.testing.assert_array_equal(y, ternary_matmul_reference(x, matrix), strict=True)


@given(grouped_problems())
def test_groups_are_quantised_one_by_one(problem):
    """|y - x W^T| <= sum over groups of the group's max|x| / 254 times its weights' sum."""
    x, codes, scales, group = problem
    w = dense(codes, scales, group).astype(np.float64)
    y = ternary_matmul(x, TernaryMatrix.from_codes(codes, scales))
    parts = x.reshape(len(x), scales.shape[1], group)
    steps = np.abs(parts).max(axis=2, initial=1e-5) / 254  # (batch, groups)
    weights = np.abs(w).reshape(*scales.shape, group).sum(axis=2)  # (n_out, groups)
    bound = steps @ weights.T + 1e-5 * (np.abs(x).astype(np.float64) @ np.abs(w).T)
    assert (np.abs(y - x.astype(np.float64) @ w.T) <= bound).all()


@pytest.mark.parametrize("batch", [1, 2, 5, 7, 97, 203])
@pytest.mark.parametrize("threads", [1, 3])
def test_groups_whose_numbers_are_all_exact_give_the_exact_product(
    path, batch, threads, monkeypatch
):
    """Whole activations up to 127 and scales that are powers of two: nothing is rounded."""
    monkeypatch.setattr("minibit.matmul.products._PAYS", 0)
    rng = np.random.default_rng(batch)
    codes = rng.integers(-1, 2, (203, 384)).astype(np.int8)
    scales = 2.0 ** rng.integers(-3, 3, (203, 6))
    x = rng.integers(-127, 128, (batch, 384)).astype(np.float32)
    x[:, ::64] = 127
    y = ternary_matmul(x, TernaryMatrix.from_codes(codes, scales), threads=threads)
    np.testing.assert_array_equal(y, x.astype(np.float64) @ dense(codes, scales, 64).T)


def test_the_order_of_groups_is_from_the_first_on(path):
    """2^30 - 2^30 + 1 is 1 in float32, and 1 + 2^30 - 2^30 is 0."""
    codes = np.zeros((2, 192), np.int8)
    codes[:, [0, 64, 128]] = [[1, -1, 1], [1, 1, -1]]
    x = 127 * np.abs(codes[:1]).astype(np.float32)
    scales = np.float32([[2**30, 2**30, 1], [1, 2**30, 2**30]]) / np.float32(128)
    y = ternary_matmul(x, TernaryMatrix.from_codes(codes, scales))
    np.testing.assert_array_equal(y, [[np.float32(127 / 128), 0]])


@given(grouped_problems())
def test_float_activations_meet_the_values_of_the_matrix(problem):
    """``activations="float32"`` is x (scale codes)^T, of one scale or of groups."""
    x, codes, scales, group = problem
    for scale, w in ((scales, dense(codes, scales, group)), (0.25, codes * np.float32(0.25))):
        y = ternary_matmul(x, TernaryMatrix.from_codes(codes, scale), activations="float32")
        assert y.dtype == np.float32
        bound = 1e-5 * (np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T)
        assert (np.abs(y - x.astype(np.float64) @ w.T.astype(np.float64)) <= bound).all()


def test_the_integer_product_knows_no_scales_of_groups(path):
    """z = q codes^T, whatever the scales."""
    rng = np.random.default_rng(3)
    codes = rng.integers(-1, 2, (70, 128)).astype(np.int8)
    x = rng.integers(-128, 128, (5, 128)).astype(np.int8)
    z = ternary_matmul_int8(x, TernaryMatrix.from_codes(codes, rng.random((70, 2))))
    np.testing.assert_array_equal(z, product(x, codes))


@pytest.mark.parametrize("batch", [1, 3, 200])
def test_a_group_that_is_not_finite_is_named(path, batch):
    """As for one scale: the first entry, by its place; other words for activations are refused."""
    matrix = TernaryMatrix.from_codes(np.ones((40, 128), np.int8), np.ones((40, 4)))
    x = np.zeros((batch, 128), np.float32)
    np.testing.assert_array_equal(ternary_matmul(x, matrix), np.zeros((batch, 40)))
    x[-1, 127] = np.inf
    with pytest.raises(ValueError, match=rf"x must be finite, got inf at \({batch - 1}, 127\)"):
        ternary_matmul(x, matrix)
    with pytest.raises(ValueError, match="activations must be 'int8' or 'float32', got"):
        ternary_matmul(x, matrix, activations="int4")


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("batch", [1, 3, 30])
def test_non_finite_activations_are_refused_by_place(path, bad, batch):
    """The error names the first bad entry, wherever it stands."""
    matrix = TernaryMatrix.from_codes(np.ones((40, 70), np.int8))
    x = np.zeros((batch, 70), np.float32)
    x[-1, 69] = bad
    with pytest.raises(ValueError, match=rf"x must be finite, got {bad} at \({batch - 1}, 69\)"):
        ternary_matmul(x, matrix)
    with pytest.raises(ValueError, match=rf"at \(0, {batch - 1}, 69\)"):
        ternary_matmul(x[None].astype(np.float64), matrix)


def test_doubles_beyond_float32_are_refused(path):
    """1e39 is finite as float64 and infinite as float32."""
    matrix = TernaryMatrix.from_codes(np.ones((1, 2), np.int8))
    with pytest.raises(ValueError, match=r"x must be finite, got inf at \(0, 1\)"):
        ternary_matmul(np.array([[0.0, 1e39]]), matrix)


@pytest.mark.parametrize("multiply", [ternary_matmul_int8, ternary_matmul])
def test_wrong_shapes_types_and_threads_are_refused(path, multiply):
    """Each error says what it got and what it takes."""
    matrix = TernaryMatrix.from_codes(np.ones((2, 3), np.int8))
    dtype = np.int8 if multiply is ternary_matmul_int8 else np.float32
    x = np.zeros((1, 3), dtype)
    with pytest.raises(ValueError, match=r"n_in = 3, got \(1, 4\)"):
        multiply(np.zeros((1, 4), dtype), matrix)
    with pytest.raises(ValueError, match=r"n_in = 3, got \(\)"):
        multiply(dtype(1), matrix)
    with pytest.raises(TypeError, match="must be a TernaryMatrix, got ndarray"):
        multiply(x, np.ones((2, 3), np.int8))
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        multiply(x, matrix, threads=0)
    with pytest.raises(TypeError, match="threads must be an integer, got '2'"):
        multiply(x, matrix, threads="2")
    for wrong in (np.int16, np.uint8, bool, complex, object):
        with pytest.raises(TypeError, match="x must be"):
            multiply(x.astype(wrong), matrix)


def test_floats_and_integers_are_not_mixed_up(path):
    """int8 codes have a product of their own, and floats too."""
    matrix = TernaryMatrix.from_codes(np.ones((2, 3), np.int8))
    with pytest.raises(TypeError, match="x must be int8, got float32"):
        ternary_matmul_int8(np.zeros((1, 3), np.float32), matrix)
    with pytest.raises(TypeError, match="array of floats, got int8"):
        ternary_matmul(np.zeros((1, 3), np.int8), matrix)


def test_codes_outside_the_trits_are_refused_by_place(path):
    """Packing checks: 2, -2 and the int8 extremes, in the body and in the tail of a row."""
    for bad in (2, -2, 3, 127, -128):
        for index in ((0, 0), (18, 66), (3, 64)):
            codes = np.zeros((19, 67), np.int8)
            codes[index] = bad
            with pytest.raises(ValueError, match=rf"got {bad} at \({index[0]}, {index[1]}\)"):
                TernaryMatrix.from_codes(codes)


# --- threads and processes ----------------------------------------------------------------------


def test_several_threads_may_multiply_at_once(path, monkeypatch):
    """Callers share one pool and get their own products."""
    monkeypatch.setattr("minibit.matmul.products._PAYS", 0)
    rng = np.random.default_rng(2)
    codes = rng.integers(-1, 2, (100, 80)).astype(np.int8)
    matrix = TernaryMatrix.from_codes(codes)
    inputs = [rng.integers(-128, 128, (1 + i % 3, 80)).astype(np.int8) for i in range(60)]
    with ThreadPoolExecutor(6) as callers:
        results = list(callers.map(lambda x: ternary_matmul_int8(x, matrix, threads=3), inputs))
    for x, z in zip(inputs, results, strict=True):
        np.testing.assert_array_equal(z, product(x, codes))


FIRST_CALLS = """
import sys, threading
import numpy as np
from minibit.matmul import ternary_matmul, ternary_matmul_int8
from minibit.ternary import TernaryMatrix

together, wrong = threading.Barrier(6), []

def first(seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 2, (100, 96)).astype(np.int8)
    x = rng.integers(-127, 128, (3, 96)).astype(np.int8)
    x[:, 0] = 127
    exact = x.astype(int) @ codes.T.astype(int)
    together.wait()
    matrix = TernaryMatrix.from_codes(codes)
    for rows in (x[:1], x[:1], x):
        same = np.array_equal(ternary_matmul_int8(rows, matrix), exact[: len(rows)])
        floats = rows.astype(np.float32)
        if not same or not np.array_equal(ternary_matmul(floats, matrix), exact[: len(rows)]):
            wrong.append(seed)

threads = [threading.Thread(target=first, args=(seed,)) for seed in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(wrong or "all exact")
"""


def test_the_first_calls_of_a_process_may_come_at_once(path):
    """Each thread would compile, and find the short way for small matrices, at the same time."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALLS], capture_output=True, text=True, check=False
    )
    assert done.stdout == "all exact\n", done.stderr
    assert done.stderr == ""


def _multiply_in_child(connection):
    """Multiply with threads in a forked process and send the sum."""
    matrix = TernaryMatrix.from_codes(np.ones((256, 64), np.int8))
    z = ternary_matmul_int8(np.ones((1, 64), np.int8), matrix, threads=2)
    connection.send(int(z.sum()))


@pytest.mark.skipif(sys.platform != "linux", reason="fork is the way of Linux")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads: the point here
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what JAX says of it, where it is loaded
def test_a_forked_process_makes_its_own_threads(monkeypatch):
    """The pool's threads do not survive a fork; the child must not wait for them."""
    monkeypatch.setattr("minibit.matmul.products._PAYS", 0)
    pool.run([lambda: True, lambda: True])  # the parent's pool exists
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_multiply_in_child, args=(sender,))
    child.start()
    answered = receiver.poll(30)
    child.kill()
    assert answered
    assert receiver.recv() == 256 * 64


def test_an_error_in_a_thread_reaches_the_caller_after_all_have_ended():
    """No task still writes when `run` raises."""
    ended = []

    def fail():
        raise ZeroDivisionError

    def slow():
        ended.append(sum(range(10**6)))
        return True

    for tasks in ([fail, slow, slow], [slow, fail, slow]):
        ended.clear()
        with pytest.raises(ZeroDivisionError):
            pool.run(tasks)
        assert len(ended) == 2


def test_the_number_of_threads_comes_from_the_environment(monkeypatch):
    """MINIBIT_THREADS is a whole number above 0, or an error that says so."""
    monkeypatch.setenv("MINIBIT_THREADS", "3")
    assert pool.cpus() == 3
    monkeypatch.delenv("MINIBIT_THREADS")
    assert pool.cpus() >= 1
    for bad in ("0", "-1", "two", "1.5", "²"):
        monkeypatch.setenv("MINIBIT_THREADS", bad)
        with pytest.raises(ValueError, match="whole number above 0"):
            pool.cpus()
