"""Checks: what passes comes out as the code works with it; what doesn't is named with its value."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minibit.base import (
    bounds,
    finite,
    first_not_finite,
    float32,
    floats,
    integer,
    integer_array,
    last_axis,
    not_finite,
    number,
    one_of,
    plain,
    refuse_entries,
    thread_count,
    to_bfloat16,
    unmasked,
)


@given(
    st.integers(-(2**70), 2**70),
    st.integers(-(2**70), 2**70),
    st.integers(-(2**70), 2**70),
)
def test_an_integer_passes_if_and_only_if_it_is_in_range(value, least, most):
    """Bounds are inclusive; the message has name, value and range."""
    if least <= value <= most:
        assert integer("n", value, least, most) == value
    else:
        with pytest.raises(ValueError, match=rf"^n must lie in \[{least}, .*, got {value}$"):
            integer("n", value, least, most)


@pytest.mark.parametrize("kind", [np.int8, np.uint64, int])
def test_an_integer_of_numpy_becomes_a_plain_one(kind):
    """A plain int cannot overflow later."""
    assert type(integer("n", kind(7))) is int


@pytest.mark.parametrize("value", [True, np.True_, 1.0, "1", None, [1], np.ones(2, int), 1j])
def test_what_is_no_integer_is_a_type_error_that_shows_it(value):
    """A truth value is none, nor is a whole float."""
    with pytest.raises(TypeError, match=r"n must be an integer, got .* of type "):
        integer("n", value)


def test_bounds_write_powers_of_two_as_such():
    """From 2**16 on; one below a power opens the interval."""
    assert bounds(0, 2**16 - 1) == "lie in [0, 2**16)"
    assert bounds(0, 2**16) == "lie in [0, 2**16]"
    assert bounds(0, 2**16 - 2) == "lie in [0, 65534]"
    assert bounds(-1, 255) == "lie in [-1, 255]"
    assert bounds(3, None) == "be at least 3"


def test_threads_are_at_least_one_or_left_to_the_default():
    """None is let through."""
    assert thread_count(None) is None
    assert thread_count(np.int32(3)) == 3
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        thread_count(0, "workers")


@pytest.mark.parametrize("interval", ["[0, 1)", "(0, 1]", "(0, inf)", "[0, inf)", "(-inf, inf)"])
@pytest.mark.parametrize("value", [-1e-300, 0, 0.5, 1, 1 + 1e-15, 10**400, math.inf, math.nan])
def test_a_number_passes_if_and_only_if_it_is_finite_and_in_the_interval(interval, value):
    """Brackets mean what they mean in mathematics."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    inside = (low < value < high) or (value == low and "[" in interval)
    inside = (inside or (value == high and "]" in interval)) and value < 1e308
    if inside:
        assert number("p", value, interval) == value
        assert type(number("p", np.float64(value), interval)) is float
    else:
        with pytest.raises(ValueError, match=r"p must (lie in|be finite).*, got "):
            number("p", value, interval)


@pytest.mark.parametrize("value", ["1", b"1", True, None, 1j, np.ones(1), [1]])
def test_what_is_no_number_is_a_type_error_that_shows_it(value):
    """Text is not read as a number."""
    with pytest.raises(TypeError, match=r"p must be a real number, got .* of type "):
        number("p", value)


def test_one_of_tells_types_apart_and_lists_what_there_is():
    """1 is not True, and an array is none of them."""
    assert one_of("k", 2, (1, 2)) == 2
    for wrong in (True, "1", np.ones(2), None):
        with pytest.raises(ValueError, match="k must be 1, 2 or 3, got "):
            one_of("k", wrong, (1, 2, 3))


def test_floats_come_as_they_are_and_bfloat16_as_float32():
    """No copy of a float array; the bits of `ml_dtypes` are widened exactly."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for kind in (np.float16, np.float32, np.float64):
        array = np.ones(3, kind)
        assert floats("x", array) is array
    brains = np.array([1, -2.5, 3e38], ml_dtypes.bfloat16)
    wide = floats("x", brains[::-1])
    assert wide.dtype == np.float32
    assert wide.tolist() == brains[::-1].astype(np.float32).tolist()


@pytest.mark.parametrize("values", [[1, 2], [True], ["a"], [1j], [None], np.array([], int)])
def test_what_holds_no_floats_is_a_type_error(values):
    """Integers too: whoever means them as floats says so."""
    with pytest.raises(TypeError, match="x must be an array of floats, got "):
        floats("x", values)


def test_a_masked_array_is_refused_by_every_check_of_arrays():
    """Its mask would be lost without a word."""
    masked = np.ma.masked_array([1.0, 2.0], [True, False])
    for check in (unmasked, floats, float32, lambda name, x: integer_array(name, x, 0, 9)):
        with pytest.raises(TypeError, match="x must not be a masked array"):
            check("x", masked)


def test_float32_makes_infinite_what_it_cannot_hold_without_a_warning():
    """The check for finite entries comes after it."""
    assert np.isinf(float32("x", [1e300])).all()


@given(hnp.arrays(np.int16, hnp.array_shapes(min_dims=0, min_side=0), elements=st.integers(-3, 3)))
def test_integers_pass_if_and_only_if_all_are_in_range_and_the_first_is_named(array):
    """The place is the index in an array of one axis, else the tuple of indices."""
    wrong = np.argwhere((array < -1) | (array > 2))
    if not len(wrong):
        checked = integer_array("x", array, -1, 2)
        assert checked.dtype == np.int64
        assert np.array_equal(checked, array)
        return
    first = tuple(wrong[0].tolist())
    with pytest.raises(ValueError, match="x must lie in") as caught:
        integer_array("x", array, -1, 2)
    at = "" if not first else f" at {first[0] if len(first) == 1 else first}"
    assert str(caught.value) == f"x must lie in [-1, 2], got {array[first]}{at}"


def test_an_empty_list_is_integers_and_floats_are_not():
    """NumPy makes an empty list float64."""
    assert integer_array("x", [], 0, 1).dtype == np.int64
    with pytest.raises(TypeError, match="x must be integers, got float64"):
        integer_array("x", [0.0], 0, 1)
    with pytest.raises(ValueError, match="x must have 1 axis, got shape"):
        integer_array("x", [[1]], 0, 1, ndim=1)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=0, min_side=0),
        elements=st.sampled_from([0.0, 1.0, np.inf, -np.inf, np.nan]),
    )
)
def test_the_first_nan_or_infinity_is_found_in_floats_and_in_their_bits(array):
    """In C order, whatever the strides; bfloat16 bits say the same."""
    wrong = np.flatnonzero(~np.isfinite(array))
    first = int(wrong[0]) if wrong.size else None
    for same in (array, to_bfloat16(array), np.asfortranarray(array)):
        assert first_not_finite(same) == first
        if first is None:
            finite("x", same)
            continue
        with pytest.raises(ValueError, match=r"x must be finite, got (the bits 0x|nan|-?inf)"):
            finite("x", same)
        index = tuple(map(int, np.unravel_index(first, array.shape)))
        assert str(not_finite("x", same)).endswith(
            "" if not index else f" at {index[0] if len(index) == 1 else index}"
        )


def test_a_late_nan_is_found_beyond_the_first_piece():
    """Numbers are looked at 65,536 at a time."""
    array = np.zeros(200_000)
    array[150_001] = np.nan
    assert first_not_finite(array) == 150_001


def test_a_last_axis_must_have_the_length_that_is_named():
    """A single number has none."""
    last_axis("x", np.ones((2, 3)), 3)
    for wrong in (np.ones((3, 2)), np.float32(1)):
        with pytest.raises(ValueError, match=r"\(..., n_in\) with n_in = 3, got"):
            last_axis("x", wrong, 3)


def test_refuse_entries_says_nothing_where_nothing_is_wrong():
    """Of an empty array neither."""
    refuse_entries("x", np.ones(3), np.zeros(3, bool), "be good")
    refuse_entries("x", np.ones(0), np.zeros(0, bool), "be good")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8"])
def test_a_plain_array_is_of_c_order_writable_aligned_and_native(kind, order):
    """One that is so already is not copied."""
    array = np.array([[1, 2, 3], [4, 5, 6]], kind, order=order)
    frozen = array.copy(order)
    frozen.flags.writeable = False
    shifted = np.ndarray(array.shape, kind, b"\0" + array.tobytes(), 1)
    for given_array in (array, frozen, shifted, array[:, ::-1]):
        result = plain(given_array)
        assert result.flags.carray
        assert result.dtype.isnative
        assert np.array_equal(result, given_array)
    if order == "C" and array.dtype.isnative:
        assert plain(array) is array
    assert plain(array, np.float64).dtype == np.float64
