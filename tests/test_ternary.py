"""Ternary codes: every packing brings every matrix back, and refuses bytes that it never wrote."""

import copy
import dataclasses
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from minibit import kernels
from minibit.ternary import (
    TernaryMatrix,
    check_codes,
    from_hf,
    from_i2_s,
    pack2,
    pack_base3,
    pack_bitplanes,
    to_hf,
    to_i2_s,
    unpack2,
    unpack_base3,
    unpack_bitplanes,
)
from minibit.ternary.panels import (
    PACK,
    pack_columns_reference,
    pack_panels_reference,
    repack_hf,
    unpack_columns,
    unpack_panels,
)

trits = st.integers(-1, 1)
any_codes = arrays(np.int8, array_shapes(min_dims=0, max_dims=3, min_side=0), elements=trits)
matrices = arrays(
    np.int8, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=11), elements=trits
)
DENSE = {
    "2-bit": (pack2, unpack2, 4, 1),
    "base 3": (pack_base3, unpack_base3, 5, 1),
    "bit-planes": (pack_bitplanes, unpack_bitplanes, 8, 2),
}
dense = pytest.mark.parametrize("name", DENSE)
LAYOUTS = ("x86", "arm", "rows")


def random_codes(*shape, seed=0):
    """A matrix of evenly drawn codes."""
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(np.int8)


# --- codes -------------------------------------------------------------------------------------


@given(any_codes)
def test_codes_pass_the_check_unchanged_and_uncopied(codes):
    """check_codes is the identity on int8 codes."""
    assert check_codes(codes) is codes


@pytest.mark.parametrize("bad", [-2, 2, 127, -128])
def test_the_first_entry_that_is_no_code_is_named(bad):
    """The message holds the value and the index of the first offender, in C order."""
    codes = np.zeros((2, 3), np.int8)
    codes[0, 2] = bad
    codes[1, 0] = bad
    with pytest.raises(ValueError, match=rf"got {bad} at \(0, 2\)"):
        check_codes(codes)


def test_wide_integers_are_checked_before_they_are_narrowed():
    """255 and 257 are -1 and 1 modulo 256, and are refused all the same."""
    for bad in (255, 257):
        with pytest.raises(ValueError, match=f"got {bad}"):
            check_codes(np.array([bad]))
    with pytest.raises(ValueError, match="got 255"):
        check_codes(np.array([0, 255], np.uint8))
    np.testing.assert_array_equal(check_codes(np.array([-1, 1], np.int64)), np.int8([-1, 1]))


@pytest.mark.parametrize("dtype", [np.float32, np.bool_, np.complex64, object])
def test_only_integers_are_codes(dtype):
    """Floats are latent weights, even where they are whole."""
    with pytest.raises(TypeError, match="must be integers"):
        check_codes(np.ones(3, dtype))


def test_a_masked_array_does_not_lose_its_mask():
    """Masked entries have no code: the array is refused, whatever lies under the mask."""
    for take in (check_codes, pack2, TernaryMatrix.from_codes):
        with pytest.raises(TypeError, match="codes must not be a masked array"):
            take(np.ma.zeros((2, 2), np.int8))


def test_small_integers_count_as_python_ones():
    """A shape of int16 or a count of uint8 does not wrap around in a product or a sign."""
    codes = random_codes(200, 200)
    shape = (np.int16(200), np.int16(200))
    assert TernaryMatrix.from_packed2(pack2(codes), shape).shape == (200, 200)
    np.testing.assert_array_equal(from_i2_s(to_i2_s(codes, layout="rows"), shape, "rows")[0], codes)
    np.testing.assert_array_equal(from_hf(to_hf(codes), np.uint8(200)), codes)


# --- dense packings ----------------------------------------------------------------------------


@dense
@given(any_codes)
def test_a_packing_brings_every_array_back(name, codes):
    """unpack(pack(t), t.size) = t in C order, at the size that the layout promises."""
    pack, unpack, per_byte, planes = DENSE[name]
    packed = pack(codes)
    assert packed.dtype == np.uint8
    assert packed.size == planes * -(-codes.size // per_byte)
    unpacked = unpack(packed, codes.size)
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, codes.reshape(-1))


@dense
@given(any_codes)
def test_padding_weighs_nothing(name, codes):
    """A reader who decodes the whole last byte gets zeros behind the codes."""
    pack, unpack, per_byte, _ = DENSE[name]
    whole = -(-codes.size // per_byte) * per_byte
    assert not unpack(pack(codes), whole)[codes.size :].any()


@dense
def test_a_packing_reads_any_memory_order_and_read_only_arrays(name):
    """Transposed, strided, reversed and frozen inputs pack as their plain copies do."""
    pack = DENSE[name][0]
    codes = random_codes(13, 10)
    codes.flags.writeable = False
    for view in (codes, codes.T, codes[::2, ::3], codes[::-1]):
        np.testing.assert_array_equal(pack(view), pack(view.copy()))


def test_two_bits_are_legal_unless_both_are_set():
    """Of 256 bytes, unpack2 takes the 81 that hold no pair 11, and packs them back."""
    legal = []
    for byte in range(256):
        packed = np.array([byte], np.uint8)
        if any(byte >> shift & 3 == 3 for shift in (0, 2, 4, 6)):
            with pytest.raises(ValueError, match=r"2-bit code 3 .* at \(0,\)"):
                unpack2(packed, 4)
        else:
            legal.append(byte)
            np.testing.assert_array_equal(pack2(unpack2(packed, 4)), packed)
    assert len(legal) == 3**4


def test_base_3_bytes_are_the_numbers_below_243():
    """Each of 0..242 unpacks to its five digits, lowest first; each of 243..255 is refused."""
    for byte in range(243):
        digits = [byte // 3**i % 3 - 1 for i in range(5)]
        np.testing.assert_array_equal(unpack_base3(np.array([byte], np.uint8), 5), digits)
    for byte in range(243, 256):
        with pytest.raises(ValueError, match=f"got {byte} at 1"):
            unpack_base3(np.array([242, byte], np.uint8), 10)


def test_bit_planes_are_disjoint():
    """No code is both 1 and -1; the first that claims to be is named."""
    assert not (pack_bitplanes(random_codes(99))[0] & pack_bitplanes(random_codes(99))[1]).any()
    with pytest.raises(ValueError, match="marks code 11 both"):
        unpack_bitplanes(np.array([[0, 0b11001000], [0, 0b01001000]], np.uint8), 16)


def test_bit_planes_multiply_without_decoding():
    """The product is the sum of x over the plane of ones - sum over the plane of minus ones."""
    codes, x = random_codes(40), np.arange(40)
    plus, minus = np.unpackbits(pack_bitplanes(codes), axis=1, bitorder="little").astype(bool)
    assert x[plus].sum() - x[minus].sum() == x @ codes


@dense
@pytest.mark.parametrize("change", [-1, 1])
def test_a_length_that_does_not_fit_the_count_is_refused(name, change):
    """Too few bytes and too many are errors that name both."""
    pack, unpack, per_byte, _ = DENSE[name]
    packed = pack(random_codes(3 * per_byte))
    with pytest.raises(ValueError, match=f"for count = {(3 + change) * per_byte}"):
        unpack(packed, (3 + change) * per_byte)


@dense
def test_counts_and_bytes_of_a_wrong_kind_are_refused(name):
    """A negative or fractional count, signed or wide bytes."""
    pack, unpack, per_byte, _ = DENSE[name]
    packed = pack(random_codes(per_byte))
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        unpack(packed, -1)
    with pytest.raises(TypeError):
        unpack(packed, float(per_byte))
    with pytest.raises(TypeError, match="packed must be uint8, got int8"):
        unpack(packed.view(np.int8), per_byte)
    with pytest.raises(ValueError, match="packed must have shape"):
        unpack(packed[None, None], per_byte)


@pytest.mark.parametrize("pack", [pack2, pack_base3, pack_bitplanes, to_hf])
def test_packing_refuses_what_is_no_code(pack):
    """Every way in checks its codes."""
    codes = np.zeros((1, 256), np.int8)
    codes[0, 7] = 3
    with pytest.raises(ValueError, match=r"got 3 at \(0, 7\)"):
        pack(codes)
    with pytest.raises(TypeError, match="got float64"):
        pack(np.zeros((1, 256)))


# --- Hugging Face ------------------------------------------------------------------------------


@given(matrices)
def test_the_hf_layout_brings_every_matrix_back(codes):
    """from_hf(to_hf(t), n_out) = t, at a quarter of the rows, rounded up."""
    packed = to_hf(codes)
    assert packed.shape == (-(-codes.shape[0] // 4), codes.shape[1])
    np.testing.assert_array_equal(from_hf(packed, codes.shape[0]), codes)


@given(matrices)
def test_hf_padding_decodes_to_minus_one(codes):
    """The published padding is bits 00: whoever forgets to slice gets rows of -1."""
    packed = to_hf(codes)
    assert (from_hf(packed, 4 * packed.shape[0])[codes.shape[0] :] == -1).all()


def test_an_hf_byte_holds_rows_a_quarter_of_the_matrix_apart():
    """Byte row r changes when row i R + r does, and no other byte row."""
    codes = random_codes(11, 3)
    quarter = 3
    for row in range(11):
        changed = codes.copy()
        changed[row] = (codes[row] + 2) % 3 - 1
        different = (to_hf(changed) != to_hf(codes)).any(axis=1)
        assert np.flatnonzero(different).tolist() == [row % quarter]


def test_an_hf_matrix_of_other_rows_is_refused():
    """n_out must be within the last byte's rows; shapes other than a matrix never fit."""
    packed = to_hf(random_codes(8, 3))
    for n_out in (4, 9, 0):
        with pytest.raises(ValueError, match=f"for n_out = {n_out}"):
            from_hf(packed, n_out)
    with pytest.raises(ValueError, match="n_out must be at least 0, got -3"):
        from_hf(packed[:0], -3)
    with pytest.raises(TypeError, match="integer"):
        from_hf(packed, 8.0)
    with pytest.raises(ValueError, match="packed must have shape"):
        from_hf(packed.reshape(-1), 8)
    with pytest.raises(TypeError, match="packed must be uint8"):
        from_hf(packed.astype(np.int32), 8)
    with pytest.raises(ValueError, match="codes must have 2 axes"):
        to_hf(random_codes(8))


# --- bitnet.cpp --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@given(seed=st.integers(0, 2**32), rows=st.integers(0, 3), groups=st.integers(0, 3))
def test_i2_s_brings_codes_and_scale_back(layout, seed, rows, groups):
    """from(to(t, s)) = (t, s); a quarter of a byte a code and a tail of 32."""
    codes = random_codes(4 * rows, 128 * groups, seed=seed)
    packed = to_i2_s(codes, 0.3, layout)
    assert packed.shape == (codes.size // 4 + 32,)
    codes_again, scale = from_i2_s(packed, codes.shape, layout)
    np.testing.assert_array_equal(codes_again, codes)
    assert scale == np.float32(0.3)
    assert isinstance(scale, np.float32)
    assert from_i2_s(to_i2_s(codes, 0.0, layout), codes.shape, layout)[1] == 0


def test_the_three_i2_s_layouts_cannot_be_told_apart_by_their_bytes():
    """Read as another layout, a file gives as many of each code, in another order, and no error."""
    codes = random_codes(4, 128)
    for wrote, read in itertools.permutations(LAYOUTS, 2):
        other, _ = from_i2_s(to_i2_s(codes, 1.0, wrote), codes.shape, read)
        assert (other != codes).any()
        assert (np.sort(other, axis=None) == np.sort(codes, axis=None)).all()


def test_i2_s_shapes_layouts_and_scales_are_checked():
    """What a layout cannot hold is refused where bitnet.cpp would drop it."""
    codes = random_codes(6, 64)
    with pytest.raises(ValueError, match="'x86' needs n_in a multiple of 128"):
        to_i2_s(codes)
    with pytest.raises(ValueError, match="'arm' needs n_in a multiple of 64"):
        to_i2_s(codes[:, 1:], layout="arm")
    with pytest.raises(ValueError, match="'rows' needs n_out a multiple of 4"):
        to_i2_s(codes, layout="rows")
    with pytest.raises(ValueError, match="layout must be 'x86', 'arm' or 'rows', got 'x64'"):
        to_i2_s(codes, layout="x64")
    for scale in (np.nan, -0.5, [1.0, 2.0], 1e39, 1e-50):
        with pytest.raises(ValueError, match="scale must be one finite number >= 0"):
            to_i2_s(codes, scale, "arm")


def test_damaged_i2_s_bytes_are_refused():
    """A wrong length, a code 3, a scale that is negative or no number."""
    packed = to_i2_s(random_codes(4, 128), 1.0)
    with pytest.raises(ValueError, match=r"for shape = \(8, 128\)"):
        from_i2_s(packed, (8, 128))
    with pytest.raises(ValueError, match=r"shape must be \(n_out, n_in\), got \(512,\)"):
        from_i2_s(packed, (512,))
    damaged = packed.copy()
    damaged[77] = 0b11_00_00_00
    with pytest.raises(ValueError, match=r"code 3 .* at \(77,\)"):
        from_i2_s(damaged, (4, 128))
    for scale in (-1.0, np.nan, np.inf):
        damaged = packed.copy()
        damaged[128:132] = np.array([scale], "<f4").view(np.uint8)
        with pytest.raises(ValueError, match="finite scale >= 0 at byte 128"):
            from_i2_s(damaged, (4, 128))


# --- TernaryMatrix -----------------------------------------------------------------------------


@given(matrices, st.floats(-(2.0**100), 2.0**100))
def test_a_matrix_gives_back_its_codes_shape_and_scale(codes, scale):
    """from_codes(t, s) holds t and s rounded to float32, in either of its forms."""
    matrix = TernaryMatrix.from_codes(codes, scale)
    again = TernaryMatrix.from_packed2(matrix.packed2(), matrix.shape, matrix.scale)
    for twin in (matrix, again):
        np.testing.assert_array_equal(twin.codes(), codes)
        assert twin.shape == codes.shape
        assert twin.scale == np.float32(scale)
        assert isinstance(twin.scale, np.float32)
    np.testing.assert_array_equal(matrix.packed2(), pack2(codes))


def test_a_matrix_takes_about_two_bits_a_weight():
    """50 KB in a file for the largest layer of the MLP; as held, padded to 64 inputs at most."""
    matrix = TernaryMatrix.from_codes(random_codes(256, 784))
    assert matrix.packed_nbytes == matrix.packed2().nbytes == 256 * 784 // 4
    assert matrix.packed_nbytes <= matrix.nbytes <= 256 * 832 // 4


def test_a_matrix_cannot_change():
    """Its fields are frozen, what it hands out is read-only or fresh, and it keeps no reference."""
    codes = random_codes(3, 5)
    matrix = TernaryMatrix.from_codes(codes)
    before = codes.copy()
    codes[:] = 0
    matrix.codes()[:] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        matrix.scale = np.float32(2)
    with pytest.raises(ValueError, match="read-only"):
        matrix.packed2()[0] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        matrix.packed2().flags.writeable = True
    assert not matrix._packed.flags.writeable
    np.testing.assert_array_equal(matrix.codes(), before)


group_scales = st.sampled_from(["f2", "f4"]).flatmap(
    lambda kind: st.tuples(
        st.sampled_from([(1, 2), (3, 1), (64, 2), (70, 3), (130, 5)]),
        st.sampled_from([32, 64, 128, 256]),
        st.just(kind),
        st.integers(0, 2**32 - 1),
    )
)


@pytest.mark.parametrize("path", ["reference", "portable", "auto"])
@given(group_scales)
def test_a_matrix_gives_back_the_scales_of_its_groups(path, choice):
    """Codes, scales, rows and pickles of a matrix whose groups have scales, in every layout."""
    (n_out, groups), group, kind, seed = choice
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 2, (n_out, groups * group)).astype(np.int8)
    scales = rng.standard_normal((n_out, groups)).astype(kind)
    with pytest.MonkeyPatch.context() as patch:
        if path in kernels.supported():
            patch.setenv("MINIBIT_KERNELS", path)
        matrix = TernaryMatrix.from_codes(codes, scales)
        again = pickle.loads(pickle.dumps(matrix))
        hf = TernaryMatrix.from_hf(to_hf(codes), n_out, scales)
    values = codes * np.repeat(scales.astype(np.float32), group, axis=1)
    for twin in (matrix, again, hf):
        assert (twin.group, twin.shape) == (group, codes.shape)
        np.testing.assert_array_equal(twin.codes(), codes)
        np.testing.assert_array_equal(twin.scale, scales.astype(np.float32), strict=True)
        np.testing.assert_array_equal(twin.rows(), values, strict=True)
        picks = rng.integers(-n_out, n_out, 7)
        np.testing.assert_array_equal(twin.rows(picks), values[picks])
        np.testing.assert_array_equal(twin.rows(slice(1, None, 2)), values[1::2])


def test_scales_of_groups_take_two_bytes_where_float16_holds_them():
    """One entry beyond float16 makes them four bytes each; nothing is rounded to save them."""
    codes, scales = random_codes(128, 256), np.full((128, 4), 0.5)
    halves = TernaryMatrix.from_codes(codes, scales)
    scales[5, 2] = 0.1
    floats = TernaryMatrix.from_codes(codes, scales)
    assert floats.scale[5, 2] == np.float32(0.1)
    extra = halves.nbytes - TernaryMatrix.from_codes(codes).nbytes
    if kernels.layout(kernels.path()) == "panels":
        assert extra == 128 * 4 * 2
    assert floats.nbytes - TernaryMatrix.from_codes(codes).nbytes == 128 * 4 * 4


@pytest.mark.parametrize(
    ("shape", "scale", "message"),
    [
        ((2, 64), np.ones((2, 3)), r"shape \(2, 2\), \(2, 1\) for groups .*, got shape \(2, 3\)"),
        ((2, 64), np.ones((1, 2)), r"got shape \(1, 2\)"),
        ((2, 64), np.ones((2, 2, 1)), r"got shape \(2, 2, 1\)"),
        ((2, 70), np.ones((2, 1)), "70 columns are no whole groups of 32"),
        ((2, 64), [[1, 2], [3, np.inf]], r"finite as float32, got inf at \(1, 1\)"),
        ((2, 64), [[1, 2], [1e39, 4]], r"finite as float32, got 1e\+39 at \(1, 0\)"),
    ],
)
def test_scales_that_fit_no_groups_are_refused(shape, scale, message):
    """The error says which shapes would do."""
    with pytest.raises(ValueError, match=message):
        TernaryMatrix.from_codes(random_codes(*shape), scale)


def test_rows_outside_a_matrix_are_refused():
    """As NumPy refuses them; and so is an index of two axes, or of none."""
    matrix = TernaryMatrix.from_codes(random_codes(5, 7))
    assert matrix.rows([]).shape == (0, 7)
    with pytest.raises(IndexError, match="out of bounds"):
        matrix.rows([5])
    for indices in (2, [[0, 1]]):
        with pytest.raises(IndexError, match="must have one axis"):
            matrix.rows(indices)


def test_padding_of_a_file_does_not_reach_the_matrix():
    """Bits beyond the last code differ between files of one matrix; the canonical form does not."""
    minus_filled = np.array([0b00_00_00_10], np.uint8)
    matrix = TernaryMatrix.from_packed2(minus_filled, (1, 1))
    np.testing.assert_array_equal(matrix.packed2(), [0b01_01_01_10])


def test_a_matrix_survives_pickling_and_copying():
    """Both go through the canonical form, and end read-only."""
    matrix = TernaryMatrix.from_codes(random_codes(7, 9), 0.1)
    for again in (pickle.loads(pickle.dumps(matrix)), copy.deepcopy(matrix), copy.copy(matrix)):
        np.testing.assert_array_equal(again.codes(), matrix.codes())
        assert again.scale == matrix.scale
        assert not again.packed2().flags.writeable


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1), (5, 7), (17, 130), (65, 64), (140, 96)])
@pytest.mark.parametrize("path", ["reference", "portable", "auto"])
def test_a_matrix_of_an_hf_file_is_that_of_its_codes(shape, path, monkeypatch):
    """from_hf(to_hf(t)) = from_codes(t), byte for byte as it is held; padding weighs nothing."""
    if path not in ("auto", *kernels.supported()):
        pytest.skip("this machine lacks it")
    monkeypatch.setenv("MINIBIT_KERNELS", path)
    codes = random_codes(*shape)
    packed = to_hf(codes)
    packed.flags.writeable = False
    matrix, expected = TernaryMatrix.from_hf(packed, shape[0], 0.3), TernaryMatrix.from_codes(codes)
    assert matrix.shape == shape
    assert matrix.scale == np.float32(0.3)
    np.testing.assert_array_equal(matrix._packed, expected._packed)
    np.testing.assert_array_equal(matrix.codes(), codes)


@pytest.mark.parametrize("path", ["reference", "portable", "auto"])
@pytest.mark.parametrize("byte", [3, 3 << 2, 3 << 4, 3 << 6])
def test_a_matrix_of_an_hf_file_holds_no_code_3(path, byte, monkeypatch):
    """Wherever in a byte the code 3 is, padding included, the byte is named."""
    if path not in ("auto", *kernels.supported()):
        pytest.skip("this machine lacks it")
    monkeypatch.setenv("MINIBIT_KERNELS", path)
    packed = np.zeros((2, 3), np.uint8)
    packed[1, 2] = byte
    with pytest.raises(ValueError, match=r"code 3 in byte 0x.. at \(1, 2\)"):
        TernaryMatrix.from_hf(packed, 5)
    with pytest.raises(TypeError, match="packed must be uint8"):
        TernaryMatrix.from_hf(packed.astype(np.int8), 5)
    for n_out in (4, 9):  # a row of bytes too many, and one too few
        with pytest.raises(ValueError, match="four rows per byte"):
            TernaryMatrix.from_hf(np.zeros((2, 3), np.uint8), n_out)


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (np.nan, ValueError, "must be finite as float32, got nan"),
        (np.inf, ValueError, "must be finite as float32, got inf"),
        (1e39, ValueError, "must be finite as float32"),
        (2**2000, TypeError, "must be a real number, got object"),
        (np.ma.masked, TypeError, "scale must not be a masked array"),
        ([1.0, 2.0], ValueError, r"one number, .*, got shape \(2,\)"),
        ("1", TypeError, "must be a real number"),
        (1j, TypeError, "must be a real number"),
    ],
)
def test_a_scale_is_one_finite_number(scale, error, message):
    """Anything else is refused; an array of one entry, as checkpoints hold it, is taken."""
    with pytest.raises(error, match=message):
        TernaryMatrix.from_codes(random_codes(2, 2), scale)
    assert TernaryMatrix.from_codes(random_codes(2, 2), np.array([0.5])).scale == 0.5


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (70, 3), (5, 130)])
@pytest.mark.parametrize(
    ("layout", "pack", "unpack"),
    [
        ("panels", pack_panels_reference, unpack_panels),
        ("columns", pack_columns_reference, unpack_columns),
    ],
)
def test_panels_and_columns_hold_each_code_at_its_place(layout, pack, unpack, shape):
    """Packed by NumPy or by a kernel, from codes or from bytes of Hugging Face's; they come back.

    Codes beyond a matrix are zeros.
    """
    codes = random_codes(*shape, seed=3)
    packed, (n_out, n_in) = pack(codes), shape
    wide = -(-n_in // 64) * 16  # vectors of a panel
    digits = {}
    for r, c in itertools.product(range(-(-n_out // 64) * 64), range(wide * 4)):
        code = codes[r, c] if r < n_out and c < n_in else 0
        panel, j, row = r // 64, r % 64 // 16, r % 16
        byte, shift = ((panel * wide + c // 4) * 16 + row) * 4 + c % 4, 2 * j
        if layout == "columns":
            byte, shift = c // 4 * n_out + r, 2 * (c % 4)
            if r >= n_out or c >= -(-n_in // 16) * 16:
                continue
        digits[byte, shift] = code + 1
    expected = np.zeros(max(byte for byte, _ in digits) + 1, np.uint8)
    for (byte, shift), digit in digits.items():
        expected[byte] |= digit << shift
    np.testing.assert_array_equal(packed, expected)
    np.testing.assert_array_equal(PACK[layout](codes), expected)
    np.testing.assert_array_equal(repack_hf(to_hf(codes), n_out, layout), expected)
    np.testing.assert_array_equal(unpack(packed, shape), codes)


def test_a_matrix_has_two_axes():
    """Vectors and stacks are refused, and so are shapes that are none."""
    with pytest.raises(ValueError, match=r"2 axes, got shape \(4,\)"):
        TernaryMatrix.from_codes(random_codes(4))
    for shape in ((4,), (-2, -2), (-1, -1), (1, 2, 2)):
        with pytest.raises(ValueError, match="shape must be"):
            TernaryMatrix.from_packed2(np.zeros(1, np.uint8), shape)
