"""MXFP4, NVFP4 and the codebook of least error, stated as laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibit.nf4 import (
    NF4_CODE,
    codebook_quantize,
    from_mxfp4,
    from_nvfp4,
    optimal_codebook,
    to_mxfp4,
    to_nvfp4,
)

FORMATS = {"mx": (to_mxfp4, from_mxfp4, 32, 17), "nv": (to_nvfp4, from_nvfp4, 64, 36)}
NUMBERS = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def filled(start, count):
    """A row of `count` weights that begins with these."""
    return np.float32([[*start, *[0] * (count - len(start))]])


def test_mxfp4_by_hand():
    """A power of two, two codes per byte sixteen apart, ties to the smaller, beyond 6 is 6."""
    w = filled([4, -6, 0.25, 0.75, 2.5, 7, -0.1, 5], 32)
    w[0, 16] = 1.5
    packed = to_mxfp4(w)
    assert packed[0, :9].tolist() == [127, 6 | 3 << 4, 15, 0, 1, 4, 7, 0, 6]
    expected = filled([4, -6, 0, 0.5, 2, 6, 0, 4], 32)
    expected[0, 16] = 1.5
    np.testing.assert_array_equal(from_mxfp4(packed), expected)
    np.testing.assert_array_equal(to_mxfp4(w * 2.0**-30)[0, 0], 97)


def test_nvfp4_by_hand():
    """Four scales per 64 weights, each of 16; eight apart in a byte."""
    w = filled([6, -1, 0.5], 64)
    w[0, [8, 16, 17, 32]] = [3, 12, -2.0, 2.0**-9 * 6]
    packed = to_nvfp4(w)
    assert packed[0, :4].tolist() == [0x38, 0x40, 0x01, 0]  # 1, 2, the least and 0
    assert packed[0, 4:8].tolist() == [7 | 5 << 4, 10, 1, 0]
    np.testing.assert_array_equal(from_nvfp4(packed), w)


@pytest.mark.parametrize("kind", FORMATS)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 3), st.integers(-40, 8))
def test_quantising_what_was_quantised_changes_nothing(kind, seed, rows, blocks, power):
    """to(from(to(w))) = to(w), and an error is at most half a gap, or what was cut.

    For NVFP4 where scales have all their bits: among the least, the next scale may be another.
    """
    to, back, size, nbytes = FORMATS[kind]
    power = max(power, 2) if kind == "nv" else power
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal((rows, blocks * size)) * 2.0**power).astype(np.float32)
    packed = to(w)
    assert packed.shape == (rows, blocks * nbytes)
    values = back(packed)
    np.testing.assert_array_equal(back(to(values)), values)
    part = 32 if kind == "mx" else 16
    largest = np.abs(w).reshape(rows, -1, part).max(-1).repeat(part, -1)
    if kind == "mx":  # the unit is at least an eighth of the largest, and 6 of it at least 3/4
        assert (np.abs(values - w) <= largest / 4).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_number_of_e2m1_comes_back(kind):
    """With both signs but for zero, which has one."""
    to, back, size, _ = FORMATS[kind]
    w = filled([*NUMBERS, *[-n for n in NUMBERS]], size)
    np.testing.assert_array_equal(back(to(w)), w)
    assert not np.signbit(back(to(-w))[w == 0]).any()


def test_zeros_tiny_and_huge_weights_have_exponents_that_fit():
    """Zeros have the byte 0; exponents end at 0 and below 255."""
    tops = [0, 1e-45, 2.0**-126, 1, 3e38]
    w = np.zeros((5, 32), np.float32)
    w[:, 0] = tops
    packed = to_mxfp4(w)
    assert packed[:, 0].tolist() == [0, 0, 0, 125, 252]
    np.testing.assert_allclose(from_mxfp4(packed)[2:, 0], tops[2:], rtol=0.25)


def test_the_largest_exponent_gives_what_float32_holds():
    """The byte 254 is 2**127: 3 of it fit, 4 do not."""
    row = np.array([[254, 0x25, *[0] * 15]], np.uint8)
    assert from_mxfp4(row)[0, [0, 16]].tolist() == [np.inf, 2.0**127]


def test_nvfp4_of_large_weights_is_cut_at_448_scales():
    """6 * 448 is the largest; files divide a tensor by a scale of its own first."""
    assert from_nvfp4(to_nvfp4(filled([1e6, -1e6], 64)))[0, :2].tolist() == [2688, -2688]


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_no_row_of_blocks_is_refused(kind):
    """Shapes, types, NaN, and the bytes that mean NaN."""
    to, back, size, nbytes = FORMATS[kind]
    with pytest.raises(ValueError, match=rf"multiple of {size}, got \(1, {size + 1}\)"):
        to(np.zeros((1, size + 1), np.float32))
    with pytest.raises(ValueError, match=r"w must be finite, got nan at \(0, 3\)"):
        to(filled([0, 0, 0, np.nan], size))
    with pytest.raises(ValueError, match=rf"blocks \* {nbytes}\) for .*, got \(1, {nbytes - 1}\)"):
        back(np.zeros((1, nbytes - 1), np.uint8))
    with pytest.raises(TypeError, match="packed must be uint8, got int8"):
        back(np.zeros((1, nbytes), np.int8))
    packed = np.zeros((2, 2 * nbytes), np.uint8)
    packed[1, nbytes] = 255
    with pytest.raises(ValueError, match=r"of packed must be below .*, got 255 at \(1, 1"):
        back(packed)


# --- the codebook of least error ------------------------------------------------------------------


@pytest.mark.parametrize("block", [2, 32, 64, 4096])
def test_no_number_of_the_optimal_codebook_can_be_moved_for_the_better(block):
    """By 1% either way, each of the 13 that may move loses more, on a million normal weights."""
    w = np.random.default_rng(block).standard_normal((256, 4096)).astype(np.float32)
    book = optimal_codebook(block)
    assert book.dtype == np.float32
    assert (np.diff(book) > 0).all()
    assert book[[0, 7, 15]].tolist() == [-1, 0, 1]
    flat = w.reshape(-1, block)
    absmax = np.abs(flat).max(axis=1, keepdims=True)

    def lost(codebook):
        nearest = np.searchsorted((codebook[1:] + codebook[:-1]) / 2, flat / absmax)
        return float(np.mean((codebook[nearest] * absmax - flat) ** 2))

    least = lost(book)
    for number in range(1, 15):
        if number != 7:
            for factor in (0.97, 1.03):
                other = book.copy()
                other[number] *= factor
                assert lost(other) > least
    assert lost(NF4_CODE) > least


def test_the_optimal_codebook_beats_nf4_by_five_percent_in_squared_error():
    """On blocks of 64, as the paper on block-wise optimal floats finds; and blocks are checked."""
    w = np.random.default_rng(5).standard_normal((512, 4096)).astype(np.float32)
    nf4, ours = (
        np.mean((codebook_quantize(w, book) - w) ** 2) for book in (NF4_CODE, optimal_codebook())
    )
    assert 0.94 < ours / nf4 < 0.95
    optimal_codebook()[3] = 0  # a copy
    assert optimal_codebook()[3] < 0
    for block in (1, 2**17):
        with pytest.raises(ValueError, match="block must"):
            optimal_codebook(block)
