"""Ternary weights in ggml's blocks: the laws of every type, and what is particular to each."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibit.ternary import (
    from_ptq1_0,
    from_q2_0,
    from_stq1_0,
    from_tq1_0,
    from_tq2_0,
    pack2,
    to_ptq1_0,
    to_q2_0,
    to_stq1_0,
    to_tq1_0,
    to_tq2_0,
)

KINDS = {  # name: packer, reader, weights and bytes of a block, place of its scale
    "TQ1_0": (to_tq1_0, from_tq1_0, 256, 54, 52),
    "TQ2_0": (to_tq2_0, from_tq2_0, 256, 66, 64),
    "PTQ1_0": (to_ptq1_0, from_ptq1_0, 128, 28, 26),
    "Q2_0": (to_q2_0, from_q2_0, 64, 18, 0),
    "PQ2_0": (partial(to_q2_0, block=128), partial(from_q2_0, block=128), 128, 34, 0),
    "STQ1_0": (to_stq1_0, from_stq1_0, 256, 42, 40),
}
kind = pytest.mark.parametrize("name", KINDS)
THIRDS = ("TQ1_0", "PTQ1_0")  # five trits a byte


def random_codes(name, rows, blocks, seed=0):
    """Blocks of a kind, evenly drawn; for STQ1_0 one zero of each four."""
    rng = np.random.default_rng(seed)
    weights = KINDS[name][2]
    codes = rng.integers(-1, 2, (rows, blocks * weights)).astype(np.int8)
    if name != "STQ1_0":
        return codes
    groups = np.where(codes == 0, np.int8(1), codes).reshape(rows, blocks, 4, 4, 16)
    np.put_along_axis(groups, rng.integers(0, 4, (rows, blocks, 4, 1, 16)), 0, axis=3)
    return groups.reshape(rows, blocks * weights)


def half(value):
    """The two bytes of a float16."""
    return np.array([value], "<f2").view(np.uint8)


@kind
@given(seed=st.integers(0, 2**32), rows=st.integers(0, 4), blocks=st.integers(0, 3))
def test_a_block_layout_brings_codes_and_scales_back(name, seed, rows, blocks):
    """from(to(t, s)) = (t, s) for scales that float16 holds, and the size is as published."""
    to, back, weights, size, _ = KINDS[name]
    codes = random_codes(name, rows, blocks, seed)
    scales = 2.0 ** np.random.default_rng(seed).integers(-14, 15, (rows, blocks))
    scales[~codes.reshape(rows, blocks, weights).any(axis=-1)] = 0
    packed = to(codes, scales)
    assert packed.shape == (rows, size * blocks)
    codes_again, scales_again = back(packed)
    np.testing.assert_array_equal(codes_again, codes)
    np.testing.assert_array_equal(scales_again, scales)
    assert codes_again.dtype == np.int8
    assert scales_again.dtype == np.float32


@kind
def test_a_scale_stands_at_its_place_in_every_block(name):
    """Before the codes in Q2_0 and PQ2_0, behind them in the others; little-endian."""
    to, _, _, size, place = KINDS[name]
    packed = to(random_codes(name, 2, 3), [[1, 2, 3], [4, 5, 6]]).reshape(2, 3, size)
    for row in range(2):
        for block in range(3):
            expected = half(3 * row + block + 1)
            np.testing.assert_array_equal(packed[row, block, place : place + 2], expected)


@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"STQ1_0"}))
def test_a_block_of_zeros_has_scale_zero(name):
    """As ggml takes the scale from the block's largest magnitude: 0 here."""
    to, back, weights, _, _ = KINDS[name]
    codes = random_codes(name, 2, 2)
    codes[1, :weights] = 0
    np.testing.assert_array_equal(back(to(codes, 0.5))[1], [[0.5, 0.5], [0.0, 0.5]])


@kind
def test_packing_blocks_refuses_what_is_no_code(name):
    """Every way in checks its codes."""
    to, _, weights, _, _ = KINDS[name]
    codes = random_codes(name, 1, 1)
    codes[0, 7] = 3
    with pytest.raises(ValueError, match=r"got 3 at \(0, 7\)"):
        to(codes)
    with pytest.raises(TypeError, match="got float64"):
        to(np.zeros((1, weights)))


@kind
@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 1e6, 1e-9, 1e-50, 1e300])
def test_a_scale_that_float16_cannot_hold_is_refused(name, scale):
    """Not finite, negative, above 65504, or so small that it would turn into 0."""
    with pytest.raises(ValueError, match="scale must be finite, >= 0 and within float16's range"):
        KINDS[name][0](random_codes(name, 1, 1), scale)


@kind
def test_a_scale_is_rounded_to_float32_first(name):
    """1 + 2**-11 + 2**-40 is a tie in float32, and goes to the even 1; at once it would go up."""
    to, back, *_ = KINDS[name]
    assert back(to(random_codes(name, 1, 1), 1 + 2.0**-11 + 2.0**-40))[1] == 1.0


@kind
def test_shapes_and_damaged_scales_are_refused(name):
    """Rows of whole blocks; scales that broadcast; no NaN or negative scale read from a file."""
    to, back, weights, size, place = KINDS[name]
    codes = random_codes(name, 2, 1)
    with pytest.raises(ValueError, match=rf"n_in a multiple of {weights}, got shape \(2, "):
        to(codes[:, 1:])
    with pytest.raises(ValueError, match=r"must broadcast to .* \(2, 1\), got \(3,\)"):
        to(codes, np.ones(3))
    packed = to(codes)
    with pytest.raises(ValueError, match=rf"\(n_out, blocks \* {size}\), got"):
        back(packed[:, :-1])
    with pytest.raises(TypeError, match="packed must be uint8"):
        back(packed.view(np.int8))
    for value in (np.nan, np.inf, -1):
        packed[1, place : place + 2] = half(value)
        with pytest.raises(ValueError, match=r"finite scales >= 0, .* in block \(1, 0\)"):
            back(packed)


# --- five trits a byte ---------------------------------------------------------------------------


def test_a_byte_of_five_trits_is_read_by_multiplying():
    """Digit n of a byte is the carry of 3 * (byte * 3^n mod 256): ggml's decoder, on integers."""
    for value in range(243):
        byte = -(-256 * value // 243)
        carries = [(byte * 3**n % 256) * 3 >> 8 for n in range(5)]
        assert carries == [value // 3 ** (4 - n) % 3 for n in range(5)]
        for name, apart in zip(THIRDS, (32, 16), strict=True):
            row = np.zeros((1, KINDS[name][2]), np.int8)
            row[0, np.arange(5) * apart] = np.array(carries) - 1
            assert KINDS[name][0](row)[0, 0] == byte


@pytest.mark.parametrize("name", THIRDS)
def test_bytes_that_no_encoder_writes_are_refused(name):
    """13 of 256 bytes in the body, and all but 81 in the tail of four digits; named by place."""
    to, back, _, size, tail = KINDS[name]
    packed = to(random_codes(name, 2, 2))
    written = (
        {-(-256 * v // 243) for v in range(243)},
        {-(-256 * v // 243) for v in range(0, 243, 3)},
    )
    for offset, legal in ((size + 13, written[0]), (size + tail - 2, written[1])):
        refused = 0
        for byte in set(range(256)) - legal:
            damaged = packed.copy()
            damaged[1, offset] = byte
            with pytest.raises(ValueError, match=rf"holds {byte} at \(1, {offset}\): no {name}"):
                back(damaged)
            refused += 1
        assert refused == 256 - len(legal)
        for byte in legal:
            changed = packed.copy()
            changed[1, offset] = byte
            np.testing.assert_array_equal(to(*back(changed)), changed)


def test_ptq1_is_half_of_tq1():
    """Stages of 16, 8 and 2 bytes where TQ1_0 has 32, 16 and 4: each even byte of its stages."""
    codes = random_codes("PTQ1_0", 1, 1)
    doubled = np.repeat(codes, 2, axis=1)  # each weight twice, so each byte of a stage, too
    np.testing.assert_array_equal(to_tq1_0(doubled)[:, :52:2], to_ptq1_0(codes)[:, :26])


# --- four codes a byte ---------------------------------------------------------------------------


def test_tq2_code_3_is_refused():
    """Decoders of ggml read it as twice the scale."""
    packed = to_tq2_0(random_codes("TQ2_0", 2, 2))
    packed[1, 66 + 5] |= 0b00110000
    with pytest.raises(ValueError, match=r"2-bit code 3 .* at \(1, 1, 5\)"):
        from_tq2_0(packed)


@pytest.mark.parametrize(("name", "block"), [("Q2_0", 64), ("PQ2_0", 128)])
def test_q2_codes_are_those_of_pack2_behind_a_scale(name, block):
    """Side by side, the first in the lowest bits; so two blocks of 64 are no block of 128."""
    to, _, _, size, _ = KINDS[name]
    codes = random_codes(name, 3, 2)
    body = to(codes).reshape(3, 2, size)[..., 2:]
    np.testing.assert_array_equal(body.reshape(-1), pack2(codes))


def test_the_size_of_a_row_tells_the_two_blocks_of_q2_apart():
    """1,152 weights are 9 blocks of 34 bytes, which are 17 of 18: a row of 1,088 weights."""
    packed = np.zeros((1, 9 * 34), np.uint8)
    assert from_q2_0(packed, 128)[0].shape == (1, 1152)
    assert from_q2_0(packed, 64)[0].shape == (1, 1088)
    with pytest.raises(ValueError, match=r"blocks \* 18"):
        from_q2_0(packed[:, :34])


@pytest.mark.parametrize("name", ["Q2_0", "PQ2_0"])
def test_q2_code_3_is_refused_or_kept_but_never_folded(name):
    """It stands for +2, which published files have: no ternary weight."""
    to, back, weights, size, _ = KINDS[name]
    packed = to(random_codes(name, 2, 2), 0.5)
    packed[1, size + 2 + 5] |= 0b00110000
    with pytest.raises(ValueError, match=r"2-bit code 3 .* at \(1, 1, 5\)"):
        back(packed)
    codes, scales = back(packed, plus_two=True)
    assert codes[1, weights + 4 * 5 + 2] == 2
    assert (codes == 2).sum() == 1
    assert (scales == 0.5).all()


def test_q2_has_two_sizes_of_blocks():
    """Others are refused by name."""
    with pytest.raises(ValueError, match="block must be 64 or 128, got 32"):
        to_q2_0(np.zeros((1, 64), np.int8), block=32)
    with pytest.raises(ValueError, match="block must be 64 or 128, got 256"):
        from_q2_0(np.zeros((1, 18), np.uint8), 256)


# --- one zero of four ----------------------------------------------------------------------------

# What each slot stands for, the first of the four weights on the left; sign 1 negates it.
SLOTS = (
    "0+++ 0+-+ 0++- 0+-- +0++ +0-+ +0+- +0-- ++0+ +-0+ ++0- +-0- +++0 +-+0 ++-0 +--0".split()  # noqa: SIM905
)


def test_the_32_patterns_of_a_group_are_those_published():
    """Slots in the order of the zero's place, then of the second and third sign."""
    assert len(set(SLOTS)) == 16
    packed = np.zeros((32, 42), np.uint8)
    for number in range(32):
        packed[number, 0], packed[number, 32] = number % 16, number // 16
    codes, _ = from_stq1_0(packed)
    for number in range(32):
        sign = 1 - 2 * (number // 16)
        expected = [sign * "-0+".index(mark) - sign for mark in SLOTS[number % 16]]
        assert codes[number, [0, 16, 32, 48]].tolist() == expected


def test_a_group_lies_16_columns_apart_and_has_its_own_bits():
    """Group g: half g % 2 of byte g // 2, bit g % 8 of byte 32 + g // 8."""
    whole = random_codes("STQ1_0", 1, 1)
    packed = to_stq1_0(whole)
    for group in range(64):
        columns = 64 * (group // 16) + group % 16 + 16 * np.arange(4)
        changed = whole.copy()
        changed[0, columns] *= -1  # the slot stays, the sign turns
        bits = np.unpackbits(packed ^ to_stq1_0(changed), bitorder="little")
        assert np.flatnonzero(bits).tolist() == [256 + group]
        changed[0, columns] = np.roll(whole[0, columns], 1)  # the zero moves
        different = np.flatnonzero(packed[0, :32] ^ to_stq1_0(changed)[0, :32])
        assert different.tolist() == [group // 2]
        half_byte = (packed ^ to_stq1_0(changed))[0, group // 2]
        assert half_byte & (0xF0 if group % 2 == 0 else 0x0F) == 0


def test_every_byte_of_a_sherry_block_is_legal():
    """32 patterns fill five bits, so reading and packing again gives any bytes back."""
    packed = np.random.default_rng(0).integers(0, 256, (5, 84)).astype(np.uint8)
    packed.reshape(5, 2, 42)[..., 40:] = half(0.75)
    np.testing.assert_array_equal(to_stq1_0(*from_stq1_0(packed)), packed)


def test_a_group_without_exactly_one_zero_is_refused_by_its_place():
    """The first one, by row and column; a matrix of absmean codes has no such groups."""
    codes = random_codes("STQ1_0", 2, 2)
    zero = int(np.flatnonzero(codes[1, 256 + 64 + 5 :: 16][:4] == 0)[0])
    codes[1, 256 + 64 + 5 + 16 * zero] = 1
    with pytest.raises(ValueError, match=r"one 0 .* got 0 in row 1 from column 325 on"):
        to_stq1_0(codes)
    with pytest.raises(ValueError, match=r"got 4 in row 0 from column 0 on"):
        to_stq1_0(np.zeros((1, 256), np.int8))
