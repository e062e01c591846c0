"""Q-Sparse: exactly K are kept, derivatives pass straight through, and what is zero is not read."""

import copy
import math
import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minibit import kernels
from minibit.absmean import absmax_quantize
from minibit.bench import Options
from minibit.bench import topk as bench_topk
from minibit.dual import jacfwd, jvp, jvp_batch
from minibit.experiments import topk as experiment
from minibit.language import (
    LINEAR,
    evaluate_loss,
    loss_and_gradient,
    recipe,
    shipped_text,
    train_language,
    train_params,
)
from minibit.matmul import MAX_INPUTS, ternary_matmul, ternary_matmul_int8
from minibit.tape import grad, vjp
from minibit.ternary import TernaryMatrix
from minibit.topk import (
    SITES,
    TernaryColumns,
    block_topk_mask,
    block_topk_sparsify,
    fit_scaling_law,
    optimal_interval,
    optimal_sparsity,
    scaling_law,
    sparse_ternary_matmul,
    sparse_ternary_matmul_int8,
    sparsifier,
    topk_count,
    topk_mask,
    topk_mask_reference,
    topk_quantize,
    topk_sparsify,
)
from minibit.topk import scaling_laws as scaling
from minibit.transformer import BitNetConfig, bit_linear, forward, init_params
from minibit.transformer.blocks import token_loss

few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 2.0 + 2**-20, 1e-42, -1e-42, np.inf])
rows = st.tuples(st.integers(1, 4), st.integers(1, 300))
floats32 = hnp.arrays(np.float32, rows, elements=st.floats(width=32, allow_nan=False))
tied = hnp.arrays(np.float32, rows, elements=few)


def brute(x, k):
    """Indices by magnitude and then by place, with Python's sort."""
    mask = np.zeros(x.shape, bool)
    for row, marks in zip(x.reshape(-1, x.shape[-1]), mask.reshape(-1, x.shape[-1]), strict=True):
        marks[sorted(range(len(row)), key=lambda i: (-abs(float(row[i])), i))[:k]] = True
    return mask


# The choice.


@settings(max_examples=60)
@given(st.one_of(floats32, tied), st.data())
def test_exactly_k_largest_are_kept_and_ties_go_to_the_lowest_index(x, data):
    """``M`` is what sorting by magnitude, then by place, gives; subnormals and infinities too."""
    k = data.draw(st.integers(1, x.shape[1]))
    mask = topk_mask(x, k)
    assert mask.dtype == bool
    assert (mask.sum(axis=1) == k).all()
    np.testing.assert_array_equal(mask, brute(x, k))
    np.testing.assert_array_equal(topk_mask_reference(x, k), brute(x, k))
    np.testing.assert_array_equal(topk_sparsify(x, k), np.where(mask, x, 0))


@settings(max_examples=30)
@given(tied, st.data())
def test_magnitudes_decide_and_neither_sign_nor_scale_does(x, data):
    """``M(-x) = M(4 x) = M(x)``: powers of two are exact."""
    k = data.draw(st.integers(1, x.shape[1]))
    np.testing.assert_array_equal(topk_mask(-x, k), topk_mask(x, k))
    np.testing.assert_array_equal(topk_mask(4 * x, k), topk_mask(x, k))


@settings(max_examples=30)
@given(st.integers(1, 500), st.integers(0, 2**32 - 1))
def test_a_permutation_of_distinct_magnitudes_permutes_the_choice(n, seed):
    """``M(x[p]) = M(x)[p]``, and keeping fewer keeps a part of what keeping more keeps."""
    rng = np.random.default_rng(seed)
    x = (rng.permutation(n) + 1).astype(np.float32) * rng.choice([-1, 1], n).astype(np.float32)
    p, k = rng.permutation(n), int(rng.integers(1, n + 1))
    np.testing.assert_array_equal(topk_mask(x[p], k), topk_mask(x, k)[p])
    assert not (topk_mask(x, max(1, k - 1)) & ~topk_mask(x, k)).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 127, 128, 129, 5000])
def test_any_float_and_any_memory_order_is_chosen_from_alike(dtype, n):
    """Strided, read-only and reversed arrays; the entries left out become +0 of the same type."""
    rng = np.random.default_rng(n)
    x = rng.standard_normal((2, 3, 2 * n)).astype(dtype)[..., ::-2]
    x.flags.writeable = False
    k = (n + 1) // 2
    np.testing.assert_array_equal(topk_mask(x, k), brute(x, k))
    y = topk_sparsify(x, np.int64(k))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, np.where(brute(x, k), x, 0))
    assert not np.signbit(y[~brute(x, k)]).any()
    assert x.shape == y.shape


def test_float64_is_compared_in_full():
    """Two numbers that are one in float32 are told apart."""
    x = np.array([1.0, 1.0 + 2**-40])
    assert topk_mask(x, 1).tolist() == [False, True]


def test_many_equal_numbers_and_long_rows_are_counted_right():
    """More equal entries than int16 can count, and an edge in the last of them."""
    x = np.ones((1, 200_001), np.float32)
    for k in (1, 70_000, 200_001):
        np.testing.assert_array_equal(np.flatnonzero(topk_mask(x, k)[0]), np.arange(k))
    x[0, 3] = 1 + 2**-23
    assert np.flatnonzero(topk_mask(x, 2)[0]).tolist() == [0, 3]


def test_no_rows_give_no_rows():
    """An empty batch keeps its shape."""
    assert topk_mask(np.empty((0, 5), np.float32), 2).shape == (0, 5)
    assert topk_sparsify(np.empty((3, 0, 5), np.float32), 2).shape == (3, 0, 5)


@pytest.mark.parametrize(
    ("x", "k", "error", "says"),
    [
        (np.ones((2, 3), np.float32), 0, ValueError, r"k must lie in \[1, 3\]"),
        (np.ones((2, 3), np.float32), 4, ValueError, "got 4"),
        (np.ones((2, 3), np.float32), -1, ValueError, "got -1"),
        (np.ones((2, 0), np.float32), 1, ValueError, r"k must lie in \[1, 0\]"),
        (np.ones((2, 3), np.float32), 2.0, TypeError, "float"),
        (np.ones((2, 3), np.float32), True, TypeError, "k must be an integer"),
        (np.float32(1), 1, ValueError, "one axis"),
        (np.ones(3, int), 1, TypeError, "array of floats"),
        (np.ones(3, complex), 1, TypeError, "array of floats"),
        (np.ma.masked_equal(np.ones(3), 1), 1, TypeError, "masked array"),
        (np.float32([[0, 1], [np.nan, 2]]), 1, ValueError, r"NaN, got nan at \(1, 0\)"),
        (np.float64([0, 1, np.nan]), 3, ValueError, "got nan at 2"),
    ],
)
def test_bad_input_is_refused_by_name(x, k, error, says):
    """What is wrong is said: which argument, what it got, where a NaN stands."""
    topk_mask(np.ones((1, 1), np.float32), 1)  # the short way in must not skip a check
    for function in (topk_mask, topk_sparsify, topk_mask_reference):
        with pytest.raises(error, match=says):
            function(x, k)


@settings(max_examples=50)
@given(st.integers(1, 5000), st.integers(0, 999))
def test_the_count_is_exact_arithmetic_on_decimals(n, mills):
    """``k = floor((1 - s) n)`` of the fraction that the decimal number names."""
    share = Fraction(mills, 1000)
    expected = math.floor((1 - share) * n)
    for given_ in (mills / 1000, f"{mills / 1000:.3f}", share):
        if expected:
            assert topk_count(n, given_) == expected
        else:
            with pytest.raises(ValueError, match="keep nothing"):
                topk_count(n, given_)


@pytest.mark.parametrize("sparsity", [1, 1.5, -0.1, math.nan, math.inf, "a third", "1/0"])
def test_a_sparsity_that_is_no_share_is_refused(sparsity):
    """From 0 to below 1, and a number."""
    with pytest.raises(ValueError, match="sparsity must be"):
        topk_count(10, sparsity)


@pytest.mark.parametrize("n", [0, -1])
def test_a_count_of_no_entries_is_refused(n):
    """Of nothing, nothing can be kept."""
    with pytest.raises(ValueError, match="n must be"):
        topk_count(n, 0.5)


# Derivatives.


def test_a_sparsifier_is_straight_through_unless_told_otherwise():
    """Dropped entries pass their tangents by default, and with ``straight=False`` they do not."""
    x, t = np.float32([[4, 3, 2, 1]]), np.float32([[1, 2, 3, 4]])
    through = jvp(lambda v: sparsifier(0.5)(v, "down"), (x,), (t,))[1]
    cut = jvp(lambda v: sparsifier(0.5, straight=False)(v, "down"), (x,), (t,))[1]
    np.testing.assert_array_equal(through, t)
    np.testing.assert_array_equal(cut, [[1, 2, 0, 0]])


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_tape_and_dual_agree_on_every_form(n, seed, straight, rescale):
    """``<c, J v> = <J^T c, v>`` for the choice, its blocks and the re-scaled form."""
    rng = np.random.default_rng(seed)
    x, v, c = rng.standard_normal((3, 4, 2 * n))
    k = int(rng.integers(1, n + 1))
    for fn in (
        lambda x: topk_sparsify(x, k, straight=straight, rescale=rescale),
        lambda x: block_topk_sparsify(x, k, n, straight=straight, rescale=rescale),
    ):
        out, tangent = jvp(fn, (x,), (v,))
        np.testing.assert_array_equal(out, fn(x))
        (back,) = vjp(fn, (x,))[1](c)
        np.testing.assert_allclose(np.vdot(c, tangent), np.vdot(back, v), rtol=1e-9, atol=1e-12)
        _, stack = jvp_batch(fn, (x,), (np.stack([v, c]),))
        np.testing.assert_allclose(stack[0], tangent, rtol=1e-12, atol=1e-15)


def test_straight_through_is_the_identity_and_masked_is_the_mask():
    """``J = I``, or the diagonal of M, in both modes."""
    x = np.array([3.0, -1.0, 2.0, 0.5])
    np.testing.assert_array_equal(jacfwd(lambda x: topk_sparsify(x, 2))(x), np.eye(4))
    masked = jacfwd(lambda x: topk_sparsify(x, 2, straight=False))(x)
    np.testing.assert_array_equal(masked, np.diag([1.0, 0, 1, 0]))
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    slope = grad(lambda x: np.sum(topk_sparsify(x, 2) * weights))(x)
    np.testing.assert_array_equal(slope, weights)
    slope = grad(lambda x: np.sum(topk_sparsify(x, 2, straight=False) * weights))(x)
    np.testing.assert_array_equal(slope, weights * [1, 0, 1, 0])


def test_rescaling_gives_rows_of_length_one_with_the_true_derivative():
    """``y / ||y||``; along y itself it does not move, and a row of zeros stays zeros."""
    x = np.array([[3.0, 1.0, -4.0, 0.5], [0.0, 0.0, 0.0, 0.0]])
    y = topk_sparsify(x, 2, rescale=True)
    np.testing.assert_allclose(y, [[0.6, 0, -0.8, 0], [0, 0, 0, 0]], atol=1e-12)
    _, tangent = jvp(lambda x: topk_sparsify(x, 2, rescale=True), (x,), (topk_sparsify(x, 2),))
    np.testing.assert_allclose(tangent, 0, atol=1e-9)
    block = block_topk_sparsify(x, 1, 2, rescale=True)
    np.testing.assert_allclose(np.linalg.norm(block, axis=1), [1, 0], atol=1e-9)


def test_a_mask_of_a_dual_number_is_that_of_its_value():
    """The choice itself has no derivative."""
    x = np.array([1.0, -2.0, 3.0])
    _, tangent = jvp(lambda x: x * topk_mask(x, 2), (x,), (np.ones(3),))
    np.testing.assert_array_equal(tangent, [0.0, 1.0, 1.0])


# Blocks, and the quantised form.


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_every_block_keeps_n_of_its_own(blocks, m, seed):
    """N of M in each; one block is the plain choice."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 4, (3, blocks * m)).astype(np.float32)
    n = int(rng.integers(1, m + 1))
    mask = block_topk_mask(x, n, m)
    assert (mask.reshape(3, blocks, m).sum(axis=-1) == n).all()
    np.testing.assert_array_equal(mask.reshape(3 * blocks, m), brute(x.reshape(-1, m), n))
    np.testing.assert_array_equal(block_topk_sparsify(x, n, m), np.where(mask, x, 0))
    np.testing.assert_array_equal(block_topk_mask(x, blocks * m, blocks * m), np.ones_like(mask))


@pytest.mark.parametrize("m", [0, -2, 3, 8])
def test_blocks_that_do_not_fit_are_refused(m):
    """m must divide the last axis."""
    with pytest.raises(ValueError, match=r"m must (divide|be at least 1)"):
        block_topk_sparsify(np.ones((2, 4), np.float32), 1, m)


@settings(max_examples=40)
@given(hnp.arrays(np.float32, rows, elements=st.floats(-1e6, 1e6, width=32)), st.data())
def test_quantising_before_the_choice_and_after_it_are_the_same(x, data):
    """``Q(X) * M = Q(X * M)``: the largest is kept, and the scale is its."""
    k = data.draw(st.integers(1, x.shape[1]))
    codes, scale = topk_quantize(x, k)
    before, all_scale = absmax_quantize(x)
    np.testing.assert_array_equal(codes, before * topk_mask(x, k))
    np.testing.assert_array_equal(scale, all_scale)
    assert ((codes != 0).sum(axis=1) <= k).all()


def test_an_entry_that_is_infinite_cannot_be_quantised():
    """It is chosen, and then refused by the quantiser."""
    assert topk_mask(np.float32([1, -np.inf]), 1).tolist() == [False, True]
    with pytest.raises(ValueError, match="finite"):
        topk_quantize(np.float32([1, -np.inf]), 1)


# In the transformer.


def tiny(**sizes):
    """A configuration and parameters of a small model, and a batch."""
    config = BitNetConfig(11, **({"hidden_size": 8, "layers": 2} | sizes), intermediate_size=16,
                          heads=2, kv_heads=1, max_positions=16)  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, 11, (2, 6))
    return config, init_params(config, 0), tokens


@pytest.mark.parametrize("linear", [*LINEAR.values()])
def test_the_model_multiplies_by_exactly_k_inputs_at_every_site(linear):
    """Of 8 inputs 5 are left, of 16 ten; what a product sees has at most these."""
    config, params, tokens = tiny()
    seen = []

    def watched(x, w):
        seen.append((x.shape[-1], int((x != 0).sum(axis=-1).max())))
        return linear(x, w)

    forward(config, params, tokens, linear=watched, sparsify=sparsifier("0.375"))
    assert len(seen) == 14
    assert all(most <= {8: 5, 16: 10}[width] for width, most in seen)
    assert sum(most == 5 for width, most in seen if width == 8) == 12


def test_sites_are_chosen_by_name_or_by_a_share_of_their_own():
    """Others pass as they are; an unknown one and a share that is none are refused at once."""
    x = np.float32([[4, 3, 2, 1]])
    by_site = sparsifier({"o": 0.5, "down": 0.75})
    assert {site: int((by_site(x, site) != 0).sum()) for site in SITES} == {
        "qkv": 4,
        "o": 2,
        "gate_up": 4,
        "down": 1,
    }
    assert (sparsifier(0.5, block=2)(x, "o") == [[4, 0, 2, 0]]).all()
    with pytest.raises(ValueError, match="sites must be 'qkv', 'o'"):
        sparsifier(0.5, ("mlp",))
    with pytest.raises(ValueError, match="sparsity must be"):
        sparsifier(1.0)


def test_a_sparse_model_is_differentiated_alike_in_both_modes():
    """<gradient, v> of the tape is the slope of the dual numbers along v, quantisers included."""
    config, params, tokens = tiny()
    params = {name: w.astype(np.float64) for name, w in params.items()}
    rng = np.random.default_rng(1)
    v = {name: rng.standard_normal(w.shape) for name, w in params.items()}

    for straight in (True, False):
        sparsify = sparsifier(0.5, straight=straight)

        def loss(params, sparsify=sparsify):
            out = forward(config, params, tokens, linear=bit_linear, sparsify=sparsify)
            return np.mean(out**2)

        _, slope = jvp(loss, (params,), (v,))
        back = grad(loss)(params)
        np.testing.assert_allclose(sum(np.vdot(back[n], v[n]) for n in v), slope, rtol=1e-6)


# The sparse product.


@settings(max_examples=25)
@given(
    st.integers(0, 300),
    st.integers(0, 140),
    st.sampled_from([0, 0.3, 0.6, 0.9, 1]),
    st.integers(0, 2**32 - 1),
)
def test_the_sparse_product_is_the_dense_one_exactly(n_out, n_in, share, seed):
    """int32 for int32, whatever is zero, -128 included."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 2, (n_out, n_in), dtype=np.int8)
    x = rng.integers(-128, 128, (2, n_in)).astype(np.int8)
    x[rng.random(x.shape) < share] = 0
    columns = TernaryColumns.from_codes(codes, 0.5)
    np.testing.assert_array_equal(columns.codes(), codes)
    product = sparse_ternary_matmul_int8(x, columns)
    assert product.dtype == np.int32
    np.testing.assert_array_equal(product, x.astype(np.int32) @ codes.T.astype(np.int32))
    dense = TernaryMatrix.from_codes(codes, 0.5)
    np.testing.assert_array_equal(product, ternary_matmul_int8(x, dense))


@pytest.mark.skipif(not kernels.compiled(), reason="there are no kernels to compare")
@pytest.mark.parametrize("value", [-128, 127])
def test_both_kernels_survive_the_largest_sums(value):
    """Every weight and every activation at its end: int16 sums are added up in time."""
    from minibit.kernels import sparse

    n_out, n_in = 257, 1000
    for code in (-1, 1):
        columns = TernaryColumns.from_codes(np.full((n_out, n_in), code, np.int8))
        x = np.full(n_in, value, np.int8)
        x[::3] = 0
        at, values = np.empty(n_in + 4, np.int64), np.empty(n_in + 4, np.int8)
        count = sparse.compact(x, at, values)
        assert count == (x != 0).sum()
        products = [sparse.product_any]
        products += [sparse.product_wide] if kernels.path() in ("vnni", "amx") else []
        for product in products:
            out = np.zeros(n_out, np.int32)
            product(at, values, count, n_in, columns._bands, out)
            assert (out == code * int(x.astype(int).sum())).all()


def test_the_sparse_product_takes_as_many_inputs_as_the_dense_one():
    """MAX_INPUTS columns are summed exactly; one more is a ValueError that names both numbers."""
    columns = TernaryColumns.from_codes(np.full((1, MAX_INPUTS), -1, np.int8))
    z = sparse_ternary_matmul_int8(np.full(MAX_INPUTS, -128, np.int8), columns)
    np.testing.assert_array_equal(z, [128 * MAX_INPUTS])
    more = TernaryColumns.from_codes(np.ones((1, MAX_INPUTS + 1), np.int8))
    with pytest.raises(ValueError, match=f"at most {MAX_INPUTS} inputs, got {MAX_INPUTS + 1}"):
        sparse_ternary_matmul(np.zeros(MAX_INPUTS + 1), more)


@settings(max_examples=20)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_floats_come_out_as_from_the_dense_product_bit_for_bit(n_out, n_in, seed):
    """Quantised, multiplied and scaled in the same order."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 2, (n_out, n_in), dtype=np.int8)
    x = topk_sparsify(rng.standard_normal((3, n_in)).astype(np.float32), (n_in + 1) // 2)
    np.testing.assert_array_equal(
        sparse_ternary_matmul(x, TernaryColumns.from_codes(codes, 0.02)),
        ternary_matmul(x, TernaryMatrix.from_codes(codes, 0.02)),
    )


def test_columns_are_held_once_and_travel_in_two_bits():
    """256 rows fill a band: a quarter of a byte a weight; pickles and copies keep everything."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 2, (256, 30), dtype=np.int8)
    columns = TernaryColumns.from_codes(codes, 0.25)
    assert columns.nbytes == 256 * 30 // 4
    assert TernaryColumns.from_codes(codes[:1]).nbytes == columns.nbytes  # padded to a band
    assert not columns._bands.flags.writeable
    assert len(pickle.dumps(columns)) < columns.nbytes + 400
    for again in (pickle.loads(pickle.dumps(columns)), copy.deepcopy(columns)):
        assert again.shape == (256, 30)
        assert again.scale == np.float32(0.25)
        np.testing.assert_array_equal(again.codes(), codes)
    assert repr(columns) == "TernaryColumns(shape=(256, 30), scale=0.25)"


def test_a_product_that_does_not_fit_is_refused():
    """Which argument, and what it got."""
    columns = TernaryColumns.from_codes(np.ones((2, 3), np.int8))
    with pytest.raises(TypeError, match="x must be int8, got float64"):
        sparse_ternary_matmul_int8(np.ones(3), columns)
    with pytest.raises(ValueError, match="n_in = 3, got \\(4,\\)"):
        sparse_ternary_matmul_int8(np.ones(4, np.int8), columns)
    with pytest.raises(TypeError, match="TernaryColumns, got TernaryMatrix"):
        sparse_ternary_matmul(np.ones(3), TernaryMatrix.from_codes(columns.codes()))
    with pytest.raises(ValueError, match="-1, 0 or 1"):
        TernaryColumns.from_codes([[2]])
    with pytest.raises(ValueError, match="scale must be finite"):
        TernaryColumns.from_codes([[1]], math.inf)


# The law.


def test_the_published_constants_have_their_optimum_near_a_half():
    """50.2%; printed to two decimals they allow 42 to 57%, which has the paper's 45.58% in it."""
    assert abs(optimal_sparsity() - 0.502) < 5e-4
    low, high = optimal_interval()
    assert 0.415 < low < 0.4558 < optimal_sparsity() < high < 0.575
    assert abs(optimal_sparsity(beta=0.0547) - 0.4558) < 2e-3


@settings(max_examples=40)
@given(
    st.floats(0.02, 1),
    st.floats(0.005, 1),
    st.floats(0, 5),
    st.floats(0.1, 5),
    st.floats(1e3, 1e12),
)
def test_no_other_sparsity_has_a_lower_loss(alpha, beta, B, C, N):
    """The loss at the optimum is the least on a fine grid, for any number of active parameters."""
    law = {"alpha": alpha, "beta": beta, "B": B, "C": C, "E": 1.0}
    best = optimal_sparsity(alpha, beta, B, C)
    assert 0 <= best < 1
    grid = np.linspace(0, 0.99, 400)
    losses = scaling_law(N, grid, active=True, **law)
    assert scaling_law(N, best, active=True, **law) <= losses.min() * (1 + 1e-12)


def test_active_parameters_are_a_share_of_all():
    """L(N_a / (1 - S), S) by either count; the loss grows with S at given N and falls with N."""
    S = np.array([0.0, 0.3, 0.6])
    np.testing.assert_allclose(
        scaling_law(1e9, S, active=True), scaling_law(1e9 / (1 - S), S), rtol=1e-14
    )
    assert (np.diff(scaling_law(1e9, S)) > 0).all()
    assert (np.diff(scaling_law(np.array([1e6, 1e8, 1e10]), 0.4)) < 0).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: scaling_law(0, 0.5), "N must be above 0"),
        (lambda: scaling_law(1e6, 1.0), r"S must lie in \[0, 1\)"),
        (lambda: scaling_law(1e6, [0.1, math.nan]), "got nan"),
        (lambda: optimal_sparsity(alpha=0), "alpha must lie in"),
        (lambda: optimal_sparsity(B=-1), "B must lie in"),
        (lambda: fit_scaling_law([1, 2], [0, 0], [1, 1]), "5 at least"),
        (lambda: fit_scaling_law([1] * 6, [0] * 5, [1] * 6), "as long"),
        (
            lambda: fit_scaling_law([1] * 6, [0] * 6, [1] * 5 + [-1]),
            r"losses must lie in \(0, inf\), got -1",
        ),
        (lambda: scaling.LawFit({}, 0.0).interval("alpha"), "no samples"),
    ],
)
def test_the_law_refuses_what_is_out_of_range(call, says):
    """Each by name."""
    with pytest.raises(ValueError, match=says):
        call()


def test_a_fit_finds_the_law_that_made_its_data():
    """Exact data give the law back; one wild run moves it little, as the Huber loss is a line."""
    pytest.importorskip("scipy")
    N, S = np.repeat([1e5, 1e6, 1e7, 1e8], 4), np.tile([0.0, 0.3, 0.6, 0.8], 4)
    law = {"E": 1.2, "B": 0.3, "C": 8.0, "alpha": 0.25, "beta": 0.12}
    losses = scaling_law(N, S, **law)
    fit = fit_scaling_law(N, S, losses)
    fitted = scaling_law(N, S, **fit.constants)
    np.testing.assert_allclose(fitted, losses, rtol=1e-3)
    assert abs(fit.optimal_sparsity - optimal_sparsity(0.25, 0.12, 0.3, 8.0)) < 0.03
    wild = losses.copy()
    wild[5] *= 1.3
    fit = fit_scaling_law(N, S, wild)
    fitted = scaling_law(N, S, **fit.constants)
    np.testing.assert_allclose(np.delete(fitted, 5), np.delete(losses, 5), rtol=5e-3)
    error, delta = np.abs(np.log(fitted) - np.log(wild)), 1e-3
    huber = np.where(error <= delta, error**2 / 2, delta * (error - delta / 2))
    assert fit.objective == pytest.approx(huber.mean(), rel=1e-9)


def test_an_interval_is_the_middle_share_of_the_samples():
    """As many of them lie below as above; of a constant, and of the optimum that it implies."""
    law = {"E": 1.2, "B": 0.3, "C": 8.0, "alpha": 0.25, "beta": 0.12}
    samples = tuple({**law, "alpha": 0.2 + n / 1000} for n in range(101))  # 0.2 to 0.3
    fit = scaling.LawFit(law, 0.0, samples)
    assert fit.interval("alpha") == pytest.approx((0.205, 0.295))
    assert fit.interval("alpha", 0.5) == pytest.approx((0.225, 0.275))
    low, high = fit.interval("optimal_sparsity", 0.5)  # grows with alpha
    expected = [optimal_sparsity(alpha, 0.12, 0.3, 8.0) for alpha in (0.225, 0.275)]
    assert [low, high] == pytest.approx(expected)


def test_samples_are_fits_of_runs_that_the_seed_draws_again(monkeypatch):
    """As many as asked for, each of as many runs, some twice; they begin where the fit ended."""
    N, S = np.repeat([1e5, 1e6, 1e7], 3), np.tile([0.0, 0.4, 0.8], 3)
    losses = scaling_law(N, S)
    runs = list(zip(N, S, losses, strict=True))
    calls = []

    def fitted(N, S, losses, delta, starts):
        calls.append((list(zip(N, S, losses, strict=True)), starts))
        return {"E": 1.5, "B": 0.3, "C": 8.0, "alpha": 0.25, "beta": float(len(calls))}, 0.0

    monkeypatch.setattr(scaling, "_minimise", fitted)
    fits = [fit_scaling_law(N, S, losses, resamples=3, seed=seed) for seed in (0, 0, 1)]
    assert [sample["beta"] for sample in fits[0].samples] == [2, 3, 4]
    whole, *drawn = (calls[n][0] for n in range(4))
    assert whole == runs
    assert all(len(some) == 9 and set(some) < set(runs) for some in drawn)
    assert len({tuple(some) for some in drawn}) == 3
    assert [calls[n][0] for n in range(4, 8)] == [whole, *drawn]
    assert calls[9][0] != calls[1][0]
    np.testing.assert_allclose(np.exp(calls[1][1]), [[1.5, 0.3, 8.0, 0.25, 1.0]])


def test_a_fit_without_scipy_names_its_install():
    """The error says what to install; the law itself needs no SciPy."""
    code = (
        "import sys; sys.modules['scipy'] = None; sys.modules['scipy.optimize'] = None\n"
        "from minibit.topk import fit_scaling_law, scaling_law\n"
        "print(scaling_law(1e9, 0.4) > 2)\n"
        "try: fit_scaling_law([1] * 5, [0] * 5, [1] * 5)\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True\nthe fit needs SciPy: pip install -e '.[app]'")


# The benchmark and the experiment.


def test_the_benchmark_has_its_bars(monkeypatch):
    """4 times argpartition at 40, 50 and 60%; the sparse product beside the dense one."""
    monkeypatch.setattr(bench_topk, "WIDTH", 256)
    monkeypatch.setattr(bench_topk, "TOKENS", 4)
    monkeypatch.setattr(bench_topk, "SHAPES", ((64, 96),))
    monkeypatch.setattr(bench_topk, "ZEROS", (0.0, 0.6))
    monkeypatch.setattr(bench_topk, "SECONDS", 0.0)
    monkeypatch.setattr(bench_topk, "CACHE", 10_000)
    monkeypatch.setattr("minibit.bench.timing.ROUND", 1e-5)
    report = bench_topk.topk(Options(threads=1))
    bars = {figure.name: figure.bar for figure in report.figures if figure.bar}
    assert bars == {
        f"top {k} of 256, {many}: topk_mask, speed over argpartition": 4.0
        for k in (153, 128, 102)
        for many in ("one token", "4 tokens")
    }
    assert set(report.details["product"]) == {"64 x 96", "64 x 96, from memory"}
    product = report.details["product"]["64 x 96"]
    assert product["read"][1] == product["read"][0] * 38 / 96


def test_the_turn_is_where_the_curves_cross():
    """Interpolated between the last share where dense is faster and the next."""
    shares = (0.0, 0.4, 0.8)
    assert bench_topk.turn(shares, [1, 1, 1], [2, 2, 0.5]) == pytest.approx(0.6)
    assert bench_topk.turn(shares, [1, 1, 1], [0.5, 0.5, 0.5]) == 0
    assert math.isnan(bench_topk.turn(shares, [1, 1, 1], [2, 2, 2]))


def test_without_top_k_the_experiment_trains_as_the_recipe_does():
    """Bit for bit: dense and sparse runs differ in `sparsify` alone, which does change them."""
    model_recipe = recipe("55k", "b1.58")
    vocabulary, train, _ = shipped_text()
    start = init_params(model_recipe.config(len(vocabulary)), 3)
    params, losses = train_params(model_recipe, start, train, 3, stop=3)
    twin = train_language(model_recipe, 3, stop=3)
    np.testing.assert_array_equal(losses, twin.losses)
    for name, w in twin.params.items():
        np.testing.assert_array_equal(params[name], w)
    _, others = train_params(model_recipe, start, train, 3, stop=1, sparsify=sparsifier(0.5))
    assert others[0] != losses[0]


def test_the_loss_of_a_sparse_model_and_its_gradient_are_those_of_the_forward_pass():
    """Both with the very function that the experiment trains with, masked gradients included."""
    config, params, tokens = tiny()
    sparsify = sparsifier(0.5, straight=False)

    def loss_of(params, x, y):
        return token_loss(forward(config, params, x, sparsify=sparsify), y)

    x, y = tokens[:, :-1], tokens[:, 1:]
    loss, gradient = loss_and_gradient(config, params, x, y, sparsify=sparsify)
    assert loss == pytest.approx(float(loss_of(params, x, y)), rel=1e-6)
    assert loss != pytest.approx(loss_and_gradient(config, params, x, y)[0], rel=1e-4)
    for name, g in grad(loss_of)(params, x, y).items():
        np.testing.assert_allclose(gradient[name], g, rtol=1e-5, atol=1e-7)
    text = np.resize(tokens, 33)
    expected = float(loss_of(params, text[:32].reshape(2, 16), text[1:].reshape(2, 16)))
    measured = evaluate_loss(config, params, text, sparsify=sparsify)
    assert measured == pytest.approx(expected, rel=1e-6)


def test_zeros_are_counted_by_the_weights_that_they_leave_out():
    """Squared ReLU's own, those with top-K, and after rounding: each share at least the last."""
    config, params, _ = tiny()
    tokens = np.random.default_rng(1).integers(0, 11, 64 * 16 + 1)
    dense = experiment.zeros(config, params, tokens, LINEAR["float"], None)
    sparse = experiment.zeros(config, params, tokens, LINEAR["float"], sparsifier(0.5))
    assert dense["overall"] == dense["squared_relu"]
    assert dense["sites"]["qkv"]["before"] == 0
    assert 0.3 < dense["sites"]["down"]["before"] < 0.7
    assert sparse["sites"]["qkv"]["after"] == 0.5
    assert sparse["in_int8"] >= sparse["overall"] >= 0.5
    weights = {"qkv": 8 * 16, "o": 64, "gate_up": 2 * 8 * 16, "down": 8 * 16}
    by_hand = dense["sites"]["down"]["before"] * weights["down"] / sum(weights.values())
    assert dense["overall"] == pytest.approx(by_hand)


def test_no_run_is_wanted_twice_and_dense_models_come_first():
    """Rows do not overwrite one another; what starts from a dense model finds it trained."""
    runs = experiment.wanted((0, 1, 2))
    assert len(set(runs)) == len(runs)
    dense = {}
    for number, run in enumerate(runs):
        model = (run.size, run.weights, run.seed)
        if run.kind == "scratch" and not run.sparsity:
            dense[model] = number
        assert run.kind not in ("continue", "finetune") or dense[model] + 2 < number


def test_a_count_of_nothing_is_refused():
    """There is no share of 0 entries, and at a sparsity above 0 nothing is left of one."""
    with pytest.raises(ValueError, match="n must"):
        topk_count(0, 0.5)
    with pytest.raises(ValueError, match="keep nothing"):
        topk_count(1, 0.01)
