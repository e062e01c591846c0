"""Sums in 16 bits: what they decide is what a serial run does, and they leave little open."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibit.cluster.rounded import Known, pack_exact, pack_rounded, read_exact, read_rounded
from minibit.cluster.sums import ranges
from minibit.noise_step import CHUNKS, ChunkSums, Plan, added, keep_terns

NOTHING = np.zeros(0)
ODD = [-0.0, 1 + 2**-30, 1 + 2**-52, -1 + 2**-24, 3e38, -4e38, 1e-46, -1e-300, 5e-324, 1e305]
numbers = st.sampled_from([0.0, 1.0, -1.0, 0.1, 123456.789, np.inf, -np.inf, np.nan, *ODD])
numbers |= st.floats(-2, 2)
scores = st.sampled_from(["absolute", "t"])
cuts = st.sampled_from([[0, 4], [0, 2, 4], [0, 1, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4]])


@st.composite
def chunk_sums(draw):
    """Sums over chunks, (chunks, perturbations), many of them equal, empty or beyond all bounds."""
    count = draw(st.integers(1, 13))
    columns = st.lists(numbers, min_size=CHUNKS, max_size=CHUNKS)
    kinds = draw(st.lists(st.tuples(columns, columns), min_size=1, max_size=6))
    chosen = draw(st.lists(st.integers(0, len(kinds) - 1), min_size=count, max_size=count))
    a = np.array([kinds[n][0] for n in chosen]).T
    squares = np.abs(np.array([kinds[n][1] for n in chosen])).T
    if draw(st.booleans()):  # as sums are: no alignment without squares
        squares = np.where(a == 0, 0, squares)
    return ChunkSums(a, squares, NOTHING, NOTHING, NOTHING)


def part_of(sums, chunks, first=0, stop=None):
    """The sums over some chunks, of a range of the perturbations."""
    a, squares = (each[chunks, first:stop] for each in sums[:2])
    return ChunkSums(a, squares, *sums[2:])


def known_of(sums, edges, cut, score):
    """What a client knows from the rounded sums of every worker."""
    whole = []
    for first, stop in cut:
        parts = [part_of(sums, slice(*pair), first, stop) for pair in pairwise(edges)]
        whole.append([read_rounded(pack_rounded(p, score), stop - first, score) for p in parts])
    return Known(whole, score)


def decided(known, sums, edges, score):
    """Ask for exact sums until nothing is open; the codes, and how many sums were asked for."""
    asked = 0
    while (open_ones := known.open()).size:
        assert not known.exact[open_ones].any()
        asked += open_ones.size
        parts = []
        for low, high in pairwise(edges):
            body = pack_exact(part_of(sums, slice(low, high)), score, open_ones.tolist())
            parts.append(read_exact(body, high - low, open_ones.size, score))
        known.learn(open_ones, [np.concatenate(each) for each in zip(*parts, strict=True)])
    return known.codes(), asked


@pytest.mark.filterwarnings("ignore:overflow|invalid:RuntimeWarning")
@given(chunk_sums(), cuts, st.integers(1, 4), scores)
def test_rounded_sums_never_decide_otherwise_than_exact_ones(sums, edges, pieces, score):
    """For ties, zeros, overflows and sums that differ in a last bit; sum by sum if need be."""
    count = sums.alignments.shape[1]
    cut = ranges(Plan("sampled", 0, ("w",), ((2, 3),), 0, perturbations=count), pieces)
    with np.errstate(all="ignore"):
        exact = [added(each).astype(np.float32) for each in sums[:2]]
        codes, _ = decided(known_of(sums, edges, cut, score), sums, edges, score)
        np.testing.assert_array_equal(codes, keep_terns(*exact, score))


@given(chunk_sums(), cuts, scores)
def test_what_is_certain_holds_for_all_sums_between_the_bounds(sums, edges, score):
    """Each rounded sum lies within its bounds, and only a sum of exactly 0 is known to be 0."""
    count = sums.alignments.shape[1]
    with np.errstate(all="ignore"):
        known = known_of(sums, edges, [(0, count)], score)
        for low, high, chunks in zip(known.low, known.high, sums, strict=False):
            total = added(chunks).astype(np.float32)
            inside = (low <= total) & (total <= high) | np.isnan(total)
            assert inside.all()
            assert (total[(low == 0) & (high == 0)] == 0).all()


@pytest.mark.parametrize("score", ["absolute", "t"])
@pytest.mark.parametrize("edges", [[0, 2, 4], [0, 1, 2, 3, 4]])
def test_few_steps_leave_anything_open(score, edges):
    """Of 400 steps of 128 perturbations, whose squares differ a hundredfold, under one in seven."""
    rng = np.random.default_rng(5)
    asked = []
    for _ in range(400):
        spread = 10 ** rng.uniform(-1, 1, 128)
        sums = rng.standard_normal((CHUNKS, 128)) * np.sqrt(spread)
        squares = spread * rng.uniform(0.9, 1.1, (CHUNKS, 128))
        sums = ChunkSums(sums, squares, NOTHING, NOTHING, NOTHING)
        codes, count = decided(known_of(sums, edges, [(0, 128)], score), sums, edges, score)
        exact = [added(each).astype(np.float32) for each in sums[:2]]
        np.testing.assert_array_equal(codes, keep_terns(*exact, score))
        asked.append(count)
    assert np.mean(np.array(asked) > 0) < 1 / 7
    assert max(asked) <= 8


def test_zeros_need_no_exact_sums():
    """Where more than half of all perturbations are empty, the median is 0 and all else is kept."""
    a = np.zeros((CHUNKS, 9))
    a[:, 2], a[1, 5] = 1.5, -2.0
    sums = ChunkSums(a, np.abs(a), NOTHING, NOTHING, NOTHING)
    for score in ("absolute", "t"):
        codes, asked = decided(known_of(sums, [0, 2, 4], [(0, 9)], score), sums, [0, 2, 4], score)
        assert codes.tolist() == [0, 0, 1, 0, 0, -1, 0, 0, 0]
        assert asked == 0


def test_equal_scores_are_asked_for_and_all_kept():
    """Ties at the median: rounded sums cannot know them."""
    a = np.tile([3.0, 1.0, -1.0, 0.5, 1.0], (CHUNKS, 1))
    sums = ChunkSums(a, np.ones_like(a), NOTHING, NOTHING, NOTHING)
    codes, asked = decided(known_of(sums, [0, 2, 4], [(0, 5)], "t"), sums, [0, 2, 4], "t")
    assert codes.tolist() == [1, 1, -1, 0, 1]
    assert asked == 3


@pytest.mark.parametrize("body", [b"", bytes(2 * 12), bytes(11), bytes(8) + b"\1\0\1\0" * 1])
def test_bodies_that_are_no_rounded_sums_are_refused(body):
    """Too short, too long, a spacing of 0."""
    with pytest.raises(ValueError, match="rounded sums"):
        read_rounded(body, 2, "absolute")


def test_squares_below_zero_are_refused():
    """No sum of squares is negative, so a worker that says so lies."""
    spacing = np.float64(1).tobytes()
    body = spacing + b"\1\0" + spacing
    assert read_rounded(body + b"\1\0", 1, "t")[1].low[0] == 0
    with pytest.raises(ValueError, match="squares"):
        read_rounded(body + b"\xff\xff", 1, "t")
