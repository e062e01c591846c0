"""Reproducible noise, stated as laws, against an oracle that knows only Python integers."""

import doctest
import importlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from itertools import combinations, islice
from math import comb

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minibit import kernels
from minibit.noise import (
    density,
    draw_inputs,
    draw_units,
    initial_codes,
    integers,
    noise_constants,
    philox,
    philox4x32,
    sparse,
    sparse_noise,
    sparse_noise_many,
    subsets,
    uniform,
    words,
)
from minibit.noise.philox import (
    ADAPTERS,
    BATCH,
    DROPOUT,
    INITIAL,
    INPUTS,
    LEVELS,
    NOISE,
    SHIFTS,
    TOKENS,
    UNITS,
    USER,
    check_shape,
)
from noise_oracle import (
    oracle_constants,
    oracle_initial_codes,
    oracle_integers,
    oracle_philox,
    oracle_sparse_noise,
    oracle_subset,
    oracle_uniforms,
    oracle_words,
)

PATHS = ["reference"] + ([kernels.path()] if kernels.compiled() else [])

seeds = st.integers(0, 2**64 - 1)
word32 = st.integers(0, 2**32 - 1)
shares = st.one_of(
    st.sampled_from([0, 0.0, 3.7e-6, 6e-5, 257_698, 0.5, 1.0]),
    st.floats(2**-10, 1),  # the oracle's blocks of 2**16 take a second each
    st.integers(2**22, 2**32),
    st.fractions(Fraction(1, 1000), 1),
)


@contextmanager
def running(path):
    """Run the block on one kernel path."""
    before = os.environ.get("MINIBIT_KERNELS")
    os.environ["MINIBIT_KERNELS"] = path
    try:
        yield
    finally:
        os.environ.pop("MINIBIT_KERNELS")
        if before is not None:
            os.environ["MINIBIT_KERNELS"] = before


def on_every_path(function, *arguments, **keywords):
    """Call on each path; the results must be the same to the bit and to the type."""
    results = []
    for path in PATHS:
        with running(path):
            result = function(*arguments, **keywords)
        results.append(result if isinstance(result, tuple) else (result,))
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
    return results[0] if isinstance(result, tuple) else results[0][0]


# --- Published cases


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "module", [sparse, density, subsets, philox], ids=["sparse", "density", "subsets", "philox"]
)
def test_the_docstrings_examples_hold(module, path):
    """What the reference pages show is what happens, on every path."""
    with running(path):
        failed, tried = doctest.testmod(module)
    assert tried >= 3
    assert failed == 0


# --- Every path equals the oracle


def test_leading_axes_of_counters_and_keys_broadcast():
    """Counters (2, 1, 4) and keys (3, 2) give (2, 3, 4), each that of its pair."""
    counters = np.arange(8, dtype=np.uint32).reshape(2, 1, 4)
    keys = np.arange(6, dtype=np.uint32).reshape(3, 2)
    out = philox4x32(counters, keys)
    assert out.shape == (2, 3, 4)
    for i, j in np.ndindex(2, 3):
        assert out[i, j].tolist() == oracle_philox(counters[i, 0].tolist(), keys[j].tolist())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[word32] * 4), min_size=1, max_size=5), st.tuples(word32, word32))
def test_philox_equals_the_oracle_for_every_counter_and_key(counters, key):
    """Ten rounds, any words; a key is broadcast over the counters."""
    out = philox4x32(np.array(counters, np.uint32), np.array(key, np.uint32))
    assert out.dtype == np.uint32
    assert out.tolist() == [oracle_philox(counter, key) for counter in counters]


@settings(max_examples=40, deadline=None)
@given(
    seeds,
    st.integers(0, 255),
    word32,
    st.integers(0, 30),
    word32,
    st.one_of(st.integers(0, 9), st.integers(2**32 - 9, 2**34 - 40)),
)
@example(2**64 - 1, 255, 2**32 - 1, 7, 2**32 - 1, 2**34 - 7)
def test_words_equal_the_oracle_from_any_start(seed, domain, step, size, lane, start):
    """Word m is word m mod 4 of block m div 4, to the stream's very end."""
    out = on_every_path(words, seed, domain, step, size, lane, start)
    assert out.dtype == np.uint32
    assert out.tolist() == list(islice(oracle_words(seed, domain, step, lane, start), size))


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(0, 255), word32, word32, st.integers(0, 9))
def test_uniforms_are_the_first_53_bits_of_each_pair_of_words(seed, domain, step, lane, size):
    """(w >> 5) 2**26 + (w' >> 6) over 2**53, to the bit."""
    out = on_every_path(uniform, seed, size, domain=domain, step=step, lane=lane)
    assert out.tolist() == list(islice(oracle_uniforms(seed, domain, step, lane), size))


@settings(max_examples=60, deadline=None)
@given(
    seeds,
    st.one_of(st.integers(1, 2**63), st.sampled_from([1, 2**32 - 1, 2**32, 2**32 + 1, 2**63])),
    word32,
)
def test_integers_are_the_exact_high_half_of_draw_times_bound(seed, high, step):
    """floor(u high / 2**64), for bounds on both sides of 2**32."""
    out = on_every_path(integers, seed, high, (2, 3), domain=BATCH, step=step, lane=5)
    assert out.shape == (2, 3)
    assert out.dtype == np.int64
    assert out.reshape(-1).tolist() == list(islice(oracle_integers(seed, BATCH, step, 5, high), 6))


@settings(max_examples=60, deadline=None)
@given(seeds, word32, word32, st.integers(0, 300), shares)
@example(1, 2, 3, 2 * 2**16 + 5, 1e-4)
@example(1, 2, 3, 40, 1.0)
def test_sparse_noise_equals_the_oracle_at_every_density(seed, step, perturbation, size, density):
    """Counts, positions, signs, skipped duplicates and the cut last block."""
    positions, signs = on_every_path(sparse_noise, seed, step, perturbation, size, density)
    assert positions.dtype == np.int64
    assert signs.dtype == np.int8
    expected = oracle_sparse_noise(seed, step, perturbation, size, density)
    assert (positions.tolist(), signs.tolist()) == expected


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(0, 60), shares, word32)
def test_initial_codes_equal_the_oracle(seed, size, zeros, layer):
    """Below Z zero, else the sign of the lowest bit."""
    out = on_every_path(initial_codes, seed, size, zeros, layer=layer)
    assert out.dtype == np.int8
    assert out.tolist() == oracle_initial_codes(seed, size, zeros, layer)


@settings(max_examples=40, deadline=None)
@given(seeds, word32, st.integers(0, 2**12 - 1), st.integers(0, 2**20 - 1), st.data())
def test_drawn_units_and_inputs_equal_the_oracle(seed, step, layer, unit, data):
    """Floyd's algorithm on the documented stream; sorted and distinct."""
    n = data.draw(st.integers(0, 40))
    size = data.draw(st.integers(0, n))
    units = on_every_path(draw_units, seed, step, layer, n, size)
    inputs = on_every_path(draw_inputs, seed, step, layer, unit, n, size)
    assert units.dtype == inputs.dtype == np.int64
    assert units.tolist() == oracle_subset(seed, UNITS, step, layer, n, size)
    assert inputs.tolist() == oracle_subset(seed, INPUTS, step, layer * 2**20 + unit, n, size)


# --- Constants


@pytest.mark.parametrize(
    "numerator",
    [1, 15_891, 257_698, 2**16, 2**16 + 1, 2**24 - 1, 2**28, 2**28 + 1, 2**31, 2**32 - 1, 2**32, 0],
)
def test_count_tables_are_the_floors_of_exact_rationals(numerator):
    """Integer by integer, also where 256 bits leave a floor open (2**32 - 1)."""
    given_back, block_bits, table = noise_constants(numerator)
    assert given_back == numerator
    assert (block_bits, table.tolist()) == oracle_constants(numerator)
    assert table.dtype == np.uint64
    assert len(table) <= 20


@pytest.mark.parametrize(
    ("density", "numerator", "block_bits"),
    [
        (0.0, 0, 16),
        (2.0**-33, 0, 16),
        (3 * 2.0**-33, 2, 16),
        (2.0**-16, 2**16, 16),
        (Fraction(2**16 + 1, 2**32), 2**16 + 1, 15),
        (np.float32(2.0**-15), 2**17, 15),
        (1 / 16, 2**28, 4),
        (0.5, 2**31, 4),
        (1.0, 2**32, 4),
        (np.int64(1), 1, 16),
    ],
)
def test_a_block_is_the_largest_power_of_two_with_at_most_one_nonzero_expected(
    density, numerator, block_bits
):
    """Ties of the numerator to even, and the clamps at 2**4 and 2**16."""
    assert noise_constants(density)[:2] == (numerator, block_bits)


def test_a_cached_count_table_cannot_be_written_to():
    """A caller cannot change the noise of the next one."""
    with pytest.raises(ValueError, match="read-only"):
        noise_constants(0.25)[2][0] = 0


# --- Exact laws of regeneration


@pytest.mark.parametrize("density", [3.7e-6, 6e-5, 0.01, 0.5])
@pytest.mark.parametrize("path", PATHS)
def test_any_block_regenerated_alone_is_identical(path, density):
    """The noise of a block does not know of its neighbours, nor of the vector's end."""
    size = 334_336 if density < 0.001 else 5_003
    block_bits = noise_constants(density)[1]
    with running(path):
        positions, signs = sparse_noise(1, 2, 3, size, density)
        assert positions.size > 0
        for block in range(-(-size >> block_bits)):
            alone, its_signs = sparse_noise(1, 2, 3, size, density, blocks=block)
            here = positions >> block_bits == block
            np.testing.assert_array_equal(alone, positions[here])
            np.testing.assert_array_equal(its_signs, signs[here])


def test_several_perturbations_can_be_drawn_in_part():
    """`blocks` picks from each of many what it picks from one."""
    offsets, positions, signs = sparse_noise_many(1, 2, [3, 0, 3], 1_000, 0.05, blocks=[5, 2])
    for i, number in enumerate((3, 0, 3)):
        alone = sparse_noise(1, 2, number, 1_000, 0.05, blocks=[2, 5])
        entries = slice(offsets[i], offsets[i + 1])
        np.testing.assert_array_equal(positions[entries], alone[0])
        np.testing.assert_array_equal(signs[entries], alone[1])
    assert 0 < positions.size < sparse_noise_many(1, 2, [3, 0, 3], 1_000, 0.05)[1].size


def test_blocks_are_a_set():
    """Order and repetition of `blocks` are no matter; none gives nothing; all gives all."""
    whole = sparse_noise(1, 2, 3, 1_000, 0.05)
    some = sparse_noise(1, 2, 3, 1_000, 0.05, blocks=[2, 5, 9])
    for blocks in ([9, 2, 5, 2], np.array([5, 9, 2], np.uint8), {2, 5, 9}, iter((2, 5, 9))):
        again = sparse_noise(1, 2, 3, 1_000, 0.05, blocks=blocks)
        for a, b in zip(some, again, strict=True):
            np.testing.assert_array_equal(a, b)
    assert some[0].size > 0
    assert sparse_noise(1, 2, 3, 1_000, 0.05, blocks=[])[0].size == 0
    for one in (5, np.int64(5), np.array(5)):
        assert sparse_noise(1, 2, 3, 1_000, 0.05, blocks=one)[0].tolist() == [
            position for position in some[0].tolist() if position >> 4 == 5
        ]
    everything = sparse_noise(1, 2, 3, 1_000, 0.05, blocks=range(63))
    np.testing.assert_array_equal(everything[0], whole[0])


@given(st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_the_noise_of_a_shorter_vector_is_a_prefix_of_a_longer_ones(size):
    """Positions at `size` and beyond are dropped, and nothing else changes."""
    longer, its_signs = sparse_noise(8, 1, 4, 1_000, 0.03)
    shorter, signs = on_every_path(sparse_noise, 8, 1, 4, size, 0.03)
    np.testing.assert_array_equal(shorter, longer[longer < size])
    np.testing.assert_array_equal(signs, its_signs[longer < size])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("density", [0.0, 3.7e-6, 6e-5])
def test_many_perturbations_equal_each_drawn_alone(path, density):
    """Whatever their order, number or repetition; sorted and distinct within each."""
    numbers = [5, 0, 2**32 - 1, 5, 17, *range(100, 160)]
    with running(path):
        offsets, positions, signs = sparse_noise_many(7, 9, numbers, 334_336, density)
        assert offsets[0] == 0
        assert offsets[-1] == positions.size == signs.size
        for i, number in enumerate(numbers):
            alone, its_signs = sparse_noise(7, 9, number, 334_336, density)
            part = slice(offsets[i], offsets[i + 1])
            np.testing.assert_array_equal(positions[part], alone)
            np.testing.assert_array_equal(signs[part], its_signs)
            assert (np.diff(alone) > 0).all()
    assert (positions.size > 0) == (density > 0)


def test_growing_buffers_lose_nothing():
    """70,000 nonzeros, far above the kernel's first buffer and the reference's first chunk."""
    offsets, positions, signs = on_every_path(sparse_noise_many, 3, 1, range(140), 8_000, 1 / 16)
    assert offsets[-1] > 65_536
    last = oracle_sparse_noise(3, 1, 139, 8_000, 1 / 16)
    assert (positions[offsets[139] :].tolist(), signs[offsets[139] :].tolist()) == last


def test_a_draw_equal_to_a_threshold_counts():
    """T_j <= u, not <: with T_0 = u the block has a nonzero, with T_0 = u + 1 it has none."""
    high, low = words(5, NOISE, 2, 2, lane=3).tolist()  # the block's own first words
    draws = [sparse.sparse_noise_reference]
    if kernels.compiled():
        draws.append(importlib.import_module("minibit.kernels.noise").sparse_noise)
    for draw in draws:
        for above in (0, 1):
            table = np.array([(high << 32 | low) + above], np.uint64)
            offsets, _, _ = draw(np.uint64(5), 2, np.array([3]), np.array([0]), 16, 4, table)
            assert offsets.tolist() == [0, 1 - above]


def test_a_word_equal_to_the_share_of_zeros_is_no_zero():
    """Zero is w < Z, not <=: exactly Z of the 2**32 words are zeros."""
    word = int(words(5, INITIAL, 0, 1)[0])
    assert on_every_path(initial_codes, 5, 1, word).tolist() != [0]
    assert on_every_path(initial_codes, 5, 1, word + 1).tolist() == [0]


def test_nothing_is_drawn_from_nothing():
    """Empty vectors, no perturbations, empty shapes: empty results of the right types."""
    offsets, positions, signs = on_every_path(sparse_noise_many, 0, 0, [], 100, 0.5)
    assert offsets.tolist() == [0]
    assert (positions.dtype, signs.dtype) == (np.int64, np.int8)
    assert on_every_path(sparse_noise, 0, 0, 0, 0, 0.5)[0].size == 0
    assert on_every_path(sparse_noise, 0, 0, 0, 10**9, 0)[0].size == 0
    assert uniform(0, (0, 2**34)).shape == (0, 2**34)  # an axis as long as a stream
    assert uniform(0, (3, 0)).shape == initial_codes(0, (3, 0), 0.5).shape == (3, 0)
    assert draw_units(0, 0, 0, 0, 0).size == integers(0, 5, 0, domain=BATCH).size == 0


def test_density_one_hits_every_weight_with_even_signs():
    """The dense end: 4096 signs, within four standard errors of even."""
    positions, signs = on_every_path(sparse_noise, 0, 0, 0, 4_096, 1.0)
    np.testing.assert_array_equal(positions, np.arange(4_096))
    assert abs(int(signs.sum())) < 4 * 64


@given(st.integers(0, 12))
@settings(max_examples=13, deadline=None)
def test_all_units_are_what_floyds_algorithm_gives_for_all(n):
    """The shortcut for count == n changes nothing."""
    assert draw_units(0, 1, 2, n, n).tolist() == oracle_subset(0, UNITS, 1, 2, n, n)


def test_shapes_are_filled_in_c_order():
    """A shape is a view of the flat draw."""
    flat = initial_codes(3, 12, 0.4, layer=1)
    np.testing.assert_array_equal(initial_codes(3, (3, 4), 0.4, layer=1), flat.reshape(3, 4))
    np.testing.assert_array_equal(uniform(3, (2, 3)), uniform(3, 6).reshape(2, 3))


def test_threads_draw_what_one_thread_draws():
    """No shared state: eight threads, every kind of draw, the same bits."""

    def everything(step):
        return (
            *sparse_noise_many(1, step, range(20), 50_000, 1e-4 * (step + 1)),
            words(1, BATCH, step, 1_000),
            initial_codes(step, (30, 40), 0.6),
            draw_units(1, step, 0, 256, 16),
            draw_inputs(1, step, 0, 3, 784, 49),
        )

    alone = [everything(step) for step in range(16)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(everything, range(16)))
    for ours, theirs in zip(alone, together, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


# --- Statistical laws, on fixed seeds: four standard deviations is one failure in 16,000


def chi_square(observed, expected):
    """Standard deviations by which Pearson's statistic exceeds its mean (Wilson-Hilferty)."""
    observed, expected = np.asarray(observed, float), np.asarray(expected, float)
    assert expected.min() >= 5
    freedom = observed.size - 1
    ratio = np.sum((observed - expected) ** 2 / expected) / freedom
    spread = 2 / (9 * freedom)
    return (np.cbrt(ratio) - (1 - spread)) / np.sqrt(spread)


def binomial_shares(n, p, last):
    """P(0), ..., P(last - 1) and P(k >= last)."""
    shares = [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(last)]
    return np.array([*shares, 1 - sum(shares)])


@pytest.mark.parametrize(("density", "block_bits"), [(6e-5, 14), (0.02, 5), (0.3, 4)])
def test_counts_of_a_block_follow_the_binomial(density, block_bits):
    """Pearson's chi-square over 20,000 blocks."""
    offsets, _, _ = sparse_noise_many(11, 0, range(20_000), 1 << block_bits, density)
    last = 9 if density == 0.3 else 4
    observed = np.bincount(np.minimum(np.diff(offsets), last), minlength=last + 1)
    expected = 20_000 * binomial_shares(1 << block_bits, density, last)
    assert noise_constants(density)[1] == block_bits
    assert abs(chi_square(observed, expected)) < 4


@pytest.mark.parametrize("density", [6e-5, 0.01, 0.3])
def test_positions_are_uniform_over_the_vector(density):
    """Every sixty-fourth of the vector, and of a block, is hit alike; the cut block too."""
    size = 334_336 if density < 0.001 else 1_900
    _, positions, _ = sparse_noise_many(12, 1, range(2_000), size, density)
    edges = np.linspace(0, size, 65).astype(np.int64)
    observed = np.histogram(positions, edges)[0]
    assert abs(chi_square(observed, positions.size * np.diff(edges) / size)) < 4
    assert abs(positions.size - 2_000 * size * density) < 4 * np.sqrt(2_000 * size * density)


def test_signs_are_even_and_independent_of_place_and_count():
    """Sum of signs overall, over odd and even positions, and over crowded blocks."""
    offsets, positions, signs = sparse_noise_many(13, 1, range(4_000), 16, 0.3)
    crowded = np.repeat(np.diff(offsets) > 5, np.diff(offsets))
    for chosen in (slice(None), positions % 2 == 0, positions % 2 == 1, crowded, ~crowded):
        part = signs[chosen].astype(np.int64)
        assert part.size > 4_000
        assert abs(part.sum()) < 4 * np.sqrt(part.size)


@pytest.mark.parametrize(
    "other", [(13, 0, 1), (13, 1, 0), (14, 0, 0), (13 + 2**32, 0, 0), (13, 2**31, 0)]
)
def test_perturbations_of_another_number_step_or_seed_are_independent(other):
    """They meet as often as chance has it, with even products of signs, for any one difference."""
    size, density = 400_000, 0.05
    ours, our_signs = sparse_noise(13, 0, 0, size, density)
    theirs, their_signs = sparse_noise(*other, size, density)
    _, i, j = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
    expected = size * density**2
    assert abs(i.size - expected) < 4 * np.sqrt(expected)
    assert abs(int(np.sum(our_signs[i] * their_signs[j]))) < 4 * np.sqrt(i.size)


def test_neighbouring_blocks_are_independent():
    """Counts of two neighbours: covariance 0 within four standard errors."""
    size, density = 16 * 20_000, 0.1
    positions, _ = sparse_noise(15, 0, 0, size, density)
    counts = np.bincount(positions >> 4, minlength=20_000) - 1.6
    variance = 16 * density * (1 - density)
    assert abs(np.mean(counts[:-1] * counts[1:])) < 4 * variance / np.sqrt(20_000)


@pytest.mark.parametrize(("n", "size"), [(6, 3), (5, 1), (7, 5)])
@pytest.mark.parametrize("draw", [draw_units, lambda s, t, u, n, k: draw_inputs(s, t, 2, u, n, k)])
def test_every_subset_is_equally_likely(draw, n, size):
    """Pearson's chi-square over all subsets, 4,000 steps."""
    drawn = Counter(tuple(draw(16, step, 1, n, size).tolist()) for step in range(4_000))
    subsets = list(combinations(range(n), size))
    observed = [drawn.pop(subset, 0) for subset in subsets]
    assert not drawn
    assert abs(chi_square(observed, np.full(len(subsets), 4_000 / len(subsets)))) < 4


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.7, 1.0])
def test_initial_codes_have_their_share_of_zeros_and_even_signs(zeros):
    """Binomial counts of -1, 0, +1 over a layer of 200,704 weights."""
    codes = initial_codes(17, (256, 784), zeros)
    share = np.array([(1 - zeros) / 2, zeros, (1 - zeros) / 2])
    observed = np.bincount(codes.reshape(-1) + 1, minlength=3)
    spread = np.sqrt(codes.size * share * (1 - share))
    assert (abs(observed - codes.size * share) <= 4 * spread).all()


def test_initial_codes_do_not_correlate_between_layers_or_with_neighbours():
    """Products of signs average to 0."""
    first, second = (initial_codes(18, 100_000, 0.0, layer=layer).astype(int) for layer in (0, 1))
    assert abs(np.sum(first * second)) < 4 * np.sqrt(100_000)
    assert abs(np.sum(first[1:] * first[:-1])) < 4 * np.sqrt(100_000)


def test_uniforms_and_integers_are_uniform():
    """Chi-square in 100 bins; all in range; both halves of the word carry randomness."""
    x = uniform(19, 100_000)
    assert x.min() >= 0
    assert x.max() < 1
    for y in (x, x * 2**20 % 1):
        assert abs(chi_square(np.histogram(y, 100, (0, 1))[0], np.full(100, 1_000))) < 4
    d = integers(19, 1_000, 100_000, domain=BATCH)
    assert abs(chi_square(np.bincount(d, minlength=1_000), np.full(1_000, 100))) < 4


def test_streams_of_another_domain_step_lane_or_seed_share_no_word():
    """Sixty words of each: a chance meeting of two of 900 words has probability 1e-4."""
    domains = (
        NOISE,
        INITIAL,
        BATCH,
        UNITS,
        INPUTS,
        SHIFTS,
        LEVELS,
        TOKENS,
        ADAPTERS,
        DROPOUT,
        USER,
    )
    assert len(set(domains)) == 11
    streams = [words(20, domain, 0, 60) for domain in domains]
    streams += [words(20, BATCH, 1, 60), words(20, BATCH, 2**31, 60)]
    streams += [words(20, BATCH, 0, 60, lane=1), words(20, BATCH, 0, 60, lane=2**31)]
    streams += [words(21, BATCH, 0, 60), words(20 + 2**32, BATCH, 0, 60)]
    streams += [words(20, BATCH, 0, 60, start=60)]
    everything = np.concatenate(streams)
    assert np.unique(everything).size == everything.size


def test_one_bit_of_counter_or_key_flips_half_of_the_output():
    """Avalanche: 192 input bits, 128 output bits each; half flip within four standard errors."""
    base = np.array([1, 2, 3, 4, 5, 6], np.uint32)
    flipped = np.repeat(base[None], 192, axis=0)
    flipped[np.arange(192), np.arange(192) // 32] ^= np.uint32(1) << (np.arange(192) % 32).astype(
        np.uint32
    )
    change = philox4x32(flipped[:, :4], flipped[:, 4:]) ^ philox4x32(base[:4], base[4:])
    per_input = np.bitwise_count(change).sum(axis=1)
    assert abs(per_input.mean() - 64) < 4 * np.sqrt(32 / 192)
    assert per_input.min() > 64 - 6 * np.sqrt(32)


# --- Errors that teach


@pytest.mark.parametrize(("entries", "each"), [(2**34, 1), (2**33, 2)])
def test_a_shape_may_take_a_whole_stream_and_no_word_more(entries, each):
    """A stream has 2**34 words."""
    assert check_shape(entries, each) == ((entries,), entries)
    with pytest.raises(ValueError, match="shape"):
        check_shape(entries + 1, each)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: words(-1, 0, 0, 1), ValueError, r"seed must lie in \[0, 2\*\*64\), got -1"),
        (lambda: words(2**64, 0, 0, 1), ValueError, r"seed must lie in \[0, 2\*\*64\)"),
        (lambda: words(1.0, 0, 0, 1), TypeError, "seed must be an integer, got 1.0 of type float"),
        (lambda: words(True, 0, 0, 1), TypeError, "seed must be an integer, got True"),
        (lambda: words(None, 0, 0, 1), TypeError, "seed must be an integer, got None"),
        (lambda: words(0, 256, 0, 1), ValueError, r"domain must lie in \[0, 255\], got 256"),
        (lambda: words(0, 0, 2**32, 1), ValueError, r"step must lie in \[0, 2\*\*32\)"),
        (lambda: words(0, 0, 0, -1), ValueError, r"count must lie in \[0, 2\*\*34\]"),
        (lambda: words(0, 0, 0, 1, lane=2**32), ValueError, "lane must lie in"),
        (lambda: words(0, 0, 0, 1, start=2**34), ValueError, r"2\*\*34 words, got start \+ count"),
        (lambda: integers(0, 0, 1, domain=2), ValueError, r"high must lie in \[1, 2\*\*63\]"),
        (lambda: integers(0, 2**63 + 1, 1, domain=2), ValueError, "high must lie in"),
        (lambda: uniform(0, (2, -1)), ValueError, "shape must lie in"),
        (lambda: uniform(0, (0, 2**34 + 1)), ValueError, "shape must lie in"),
        (lambda: uniform(0, 2.5), TypeError, "shape must be an integer, got 2.5"),
        (lambda: noise_constants(-1e-9), ValueError, r"density must lie in \[0, 1\]"),
        (lambda: noise_constants(1.5), ValueError, r"density must lie in \[0, 1\], got 1.5"),
        (lambda: noise_constants(float("nan")), ValueError, "density must lie in .* got nan"),
        (lambda: noise_constants(2**32 + 1), ValueError, "integer is a numerator over"),
        (lambda: noise_constants("6e-5"), TypeError, "density must be a float, a Fraction or an"),
        (lambda: noise_constants(True), TypeError, "density .* got True"),
        (lambda: sparse_noise(0, 0, -1, 9, 0.5), ValueError, "perturbation must lie in"),
        (lambda: sparse_noise(2**64, 0, 0, 9, 0.5), ValueError, r"seed must lie in \[0, 2\*\*64\)"),
        (lambda: sparse_noise(0, 2**32, 0, 9, 0.5), ValueError, r"step must lie in \[0, 2\*\*32\)"),
        (lambda: draw_units(2**64, 0, 0, 9, 1), ValueError, r"seed must lie in \[0, 2\*\*64\)"),
        (lambda: draw_units(0, 2**32, 0, 9, 1), ValueError, r"step must lie in \[0, 2\*\*32\)"),
        (lambda: draw_units(0, 0, 2**32, 9, 1), ValueError, "layer must lie in"),
        (lambda: sparse_noise(0, 0, 0, -9, 0.5), ValueError, "size must lie in"),
        (lambda: sparse_noise(0, 0, 0, 2**36 + 1, 0.5), ValueError, r"size .* \[0, 2\*\*36\]"),
        (
            lambda: sparse_noise(0, 0, 0, 32, 0.5, 2),
            ValueError,
            r"blocks must lie in \[0, 1\], got 2 at 0",
        ),
        (lambda: sparse_noise(0, 0, 0, 32, 0.5, [0.5]), TypeError, "blocks must be integers"),
        (lambda: sparse_noise_many(0, 0, [-1], 9, 0.5), ValueError, "perturbations must lie in"),
        (lambda: sparse_noise_many(0, 0, 3, 9, 0.5), ValueError, "perturbations must have 1 axis"),
        (lambda: sparse_noise_many(0, 0, [[1]], 9, 0.5), ValueError, r"got shape \(1, 1\)"),
        (lambda: sparse_noise_many(0, 0, [1.5], 9, 0.5), TypeError, "integers, got float64"),
        (lambda: uniform(0, 2**33 + 1), ValueError, r"shape .* words, and a stream has 2\*\*34"),
        (lambda: sparse_noise_many(0, 0, [2**32], 9, 0.5), ValueError, r"\[0, 2\*\*32\), got"),
        (lambda: initial_codes(0, 3, 0.5, 2**32), ValueError, "layer must lie in"),
        (
            lambda: philox4x32(np.zeros((2, 4), int), np.zeros((3, 2), int)),
            ValueError,
            r"key of shape \(3, 2\) does not broadcast against counter of shape \(2, 4\)",
        ),
        (lambda: initial_codes(0, 3, 1.01), ValueError, r"zeros must lie in \[0, 1\]"),
        (lambda: draw_units(0, 0, 0, 4, 5), ValueError, r"count must lie in \[0, 4\], got 5"),
        (lambda: draw_units(0, 0, 0, 2**24 + 1, 5), ValueError, r"n_out .* \[0, 2\*\*24\]"),
        (lambda: draw_inputs(0, 0, 2**12, 0, 4, 1), ValueError, "layer must lie in"),
        (lambda: draw_inputs(0, 0, 0, 2**20, 4, 1), ValueError, "unit must lie in"),
        (lambda: philox4x32([0, 0, 0], [0, 0]), ValueError, r"counter must have shape \(..., 4\)"),
        (lambda: philox4x32([0.0] * 4, [0, 0]), TypeError, "counter must be integers, got float64"),
        (lambda: philox4x32([0] * 4, [0, 2**32]), ValueError, r"key must lie in \[0, 2\*\*32\)"),
        (lambda: philox4x32([0] * 4, [0, -1]), ValueError, "key must lie in"),
        (
            lambda: philox4x32(5, [0, 0]),
            ValueError,
            r"counter must have shape \(..., 4\), got \(\)",
        ),
    ],
)
def test_errors_name_the_argument_and_what_it_takes(call, error, message):
    """The message says which argument, what it may be, and what it got."""
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("draw", "args"),
    [
        (sparse_noise, {"perturbation": 0, "size": 9, "density": 0.5}),
        (draw_units, {"layer": 0, "n_out": 9, "count": 3}),
        (draw_inputs, {"layer": 0, "unit": 0, "n_in": 9, "count": 3}),
    ],
)
def test_a_seed_has_64_bits_and_a_step_32(draw, args):
    """The largest of each is taken, the next number is refused by its name."""
    draw(2**64 - 1, 2**32 - 1, **args)
    with pytest.raises(ValueError, match="seed"):
        draw(2**64, 0, **args)
    with pytest.raises(ValueError, match="step"):
        draw(0, 2**32, **args)
