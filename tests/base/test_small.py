"""bfloat16, the k largest, text of strangers."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minibit.base import from_bfloat16, largest, printable, shown, to_bfloat16, widen

ALL_BITS = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


def test_every_bfloat16_comes_back_bit_for_bit():
    """All 65,536, but that a signalling NaN turns quiet."""
    back = to_bfloat16(from_bfloat16(ALL_BITS))
    nan = (ALL_BITS & 0x7FFF) > 0x7F80
    assert np.array_equal(back[~nan], ALL_BITS[~nan])
    assert np.array_equal(back[nan], ALL_BITS[nan] | 0x40)


@given(hnp.arrays(np.uint32, 20))
def test_rounding_goes_to_the_nearest_and_half_to_even(bits):
    """Equal to `ml_dtypes` for every float32, NaN by being one of the same sign."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    floats = bits.view(np.float32)
    ours = to_bfloat16(floats)
    with np.errstate(invalid="ignore"):  # the peer's cast warns of a signalling NaN
        theirs = floats.astype(ml_dtypes.bfloat16).view(np.uint16)
    nan = np.isnan(floats)
    assert np.array_equal(ours[~nan], theirs[~nan])
    assert np.isnan(from_bfloat16(ours[nan])).all()
    assert np.array_equal(ours[nan] >> 15, (bits[nan] >> 31).astype(np.uint16))


@pytest.mark.parametrize(
    ("bits", "rounded"),
    [
        (0x3F808000, 0x3F80),  # a tie, and the lower is even
        (0x3F818000, 0x3F82),  # a tie, and the upper is even
        (0x3F808001, 0x3F81),
        (0x7F7FFFFF, 0x7F80),  # beyond the largest
        (0x7F800001, 0x7FC0),  # a NaN whose payload lies in the lower half
        (0xFFFFFFFF, 0xFFFF),
        (0x80000001, 0x8000),
    ],
)
def test_ties_overflow_and_nan_of_bfloat16(bits, rounded):
    """By hand."""
    assert to_bfloat16(np.uint32([bits]).view(np.float32))[0] == rounded


def test_float64_is_rounded_to_float32_first_and_strides_do_not_matter():
    """What overflows float32 is infinite, without a warning."""
    assert to_bfloat16(np.array([1e300, 1.0, 2.0])[::2]).tolist() == [0x7F80, 0x4000]


def test_widen_lets_floats_through():
    """The very object."""
    array = np.ones(2)
    assert widen(array) is array
    assert widen(np.uint16([0x4040])).tolist() == [3.0]


@given(
    hnp.arrays(np.int8, hnp.array_shapes(max_dims=3), elements=st.integers(0, 3)),
    st.integers(0, 100),
)
def test_the_largest_are_the_first_of_a_stable_sort(scores, count):
    """Exactly `count` in every row, ties to the lowest index."""
    count %= scores.shape[-1] + 1
    mask = largest(scores, count)
    order = np.argsort(-scores, axis=-1, kind="stable")[..., :count]
    expected = np.zeros(scores.shape, bool)
    np.put_along_axis(expected, order, True, axis=-1)
    assert np.array_equal(mask, expected)


def test_infinities_are_largest_and_smallest():
    """As scores that are ruled out have them."""
    scores = np.array([-np.inf, 1, np.inf, -np.inf])
    assert largest(scores, 3).tolist() == [True, True, True, False]


@given(st.text(st.characters()))
def test_what_any_language_writes_stays_and_no_steering_character_comes_through(text):
    """Nothing that moves a cursor, rings, ends a line or turns it round."""
    line = printable(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in line)
    assert printable(line) == line
    assert line == text or not text.isprintable()


def test_printable_by_example():
    """A joiner is part of a word; a change of direction is a trick. What is kept is kept."""
    assert printable("a\n\x1b[31m", keep="\n") == "a\n\\x1b[31m"
    assert printable("\u202e\x85\ud800\u2028") == r"\u202e\x85\ud800\u2028"
    assert printable("می\u200cخواهم\u3000👩\u200d🔬") == "می\u200cخواهم\u3000👩\u200d🔬"
    assert printable(7) == "7"


@given(st.text() | st.lists(st.text()))
def test_shown_is_one_short_line_of_ascii(value):
    """Whatever a file says."""
    line = shown(value)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) <= 120
