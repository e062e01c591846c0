"""The log's framing and codes, stated as laws: what is read, what is torn, what is refused."""

import itertools
import math
import tracemalloc
from zlib import crc32

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minibit.noise_step import SampledStep, UnitsStep
from minibit.steps import LogError
from minibit.steps.codes import (
    BitReader,
    BitWriter,
    decode_sampled,
    decode_units,
    encode_sampled,
    encode_units,
)
from minibit.steps.file import (
    FRAME,
    MAGIC,
    Appender,
    pack_header,
    pack_record,
    parse_header,
    scan,
)

HEADER = {"plan": {"seed": 7}, "recipe": "bread"}
PAYLOADS = [b"one", b"", bytes(40), b"four"]


def a_log(payloads=PAYLOADS, header=HEADER):
    """A file with the given payloads, and where each record begins."""
    data, starts = pack_header(header), []
    crc = crc32(data[:-4])
    for number, payload in enumerate(payloads):
        starts.append(len(data))
        framed, crc = pack_record(number + 1, payload, bytes([number] * 8), crc)
        data += framed
    return data, starts


LOG, STARTS = a_log()


def payloads_of(contents):
    return [record.payload for record in contents.records]


# --- Framing


def test_what_is_packed_is_scanned():
    """Header, payloads, steps, digests, offsets and running CRC-32 come back."""
    contents = scan(LOG)
    assert parse_header(contents.header) == HEADER
    assert payloads_of(contents) == PAYLOADS
    assert [record.steps for record in contents.records] == [1, 2, 3, 4]
    assert [record.first for record in contents.records] == [0, 1, 3, 6]
    assert [record.offset for record in contents.records] == STARTS
    assert [record.digest[0] for record in contents.records] == [0, 1, 2, 3]
    assert (contents.end, contents.torn) == (len(LOG), "")
    assert [record.end for record in contents.records] == [*STARTS[1:], len(LOG)]


def test_a_record_adds_nineteen_bytes():
    """Steps 1 + length 4 + check 2 + digest 8 + crc 4."""
    framed, _ = pack_record(1, b"payload", bytes(8), 0)
    assert FRAME == 19
    assert len(framed) == 19 + len(b"payload")


def test_the_header_is_canonical_json():
    """Sorted keys, no spaces, ASCII: equal headers give equal bytes."""
    assert pack_header({"b": 1, "a": "é"})[14:-4] == b'{"a":"\\u00e9","b":1}'
    assert pack_header({"b": 1, "a": 2}) == pack_header({"a": 2, "b": 1})


def test_the_running_crc_leaves_out_the_stored_ones():
    """The last field is the CRC-32 of the whole file without its ``crc`` fields."""
    parts = [LOG[: STARTS[0] - 4]]
    parts += [LOG[a : b - 4] for a, b in itertools.pairwise([*STARTS, len(LOG)])]
    assert crc32(b"".join(parts)) == int.from_bytes(LOG[-4:], "little")


@pytest.mark.parametrize("cut", range(STARTS[0]))
def test_a_cut_inside_the_header_is_an_error_at_the_cut(cut):
    """No log, however short, begins without its whole header."""
    with pytest.raises(LogError, match="ends within the log's header") as caught:
        scan(LOG[:cut])
    assert caught.value.offset == cut


def test_a_cut_past_the_header_leaves_the_longest_good_prefix():
    """Every cut: the records that are whole, and nothing of the next."""
    ends = [*STARTS[1:], len(LOG)]
    for cut in range(STARTS[0], len(LOG) + 1):
        contents = scan(LOG[:cut])
        whole = sum(end <= cut for end in ends)
        assert payloads_of(contents) == PAYLOADS[:whole]
        assert contents.end == [STARTS[0], *ends][whole]
        assert bool(contents.torn) == (cut != contents.end)


def test_every_changed_byte_before_the_last_record_is_an_error():
    """All 255 other values of every byte; the error points at or before it.

    Save for the header's length: where it grows, the header seems to be cut by the file's end.
    """
    for offset in range(STARTS[-1]):
        for change in range(1, 256):
            damaged = bytearray(LOG)
            damaged[offset] ^= change
            with pytest.raises(LogError) as caught:
                parse_header(scan(bytes(damaged)).header)
            grown = offset in range(10, 14) and caught.value.offset == len(LOG)
            assert grown or caught.value.offset <= max(offset, 14)


def test_a_changed_byte_in_the_last_record_never_gives_a_false_one():
    """An error in its head; elsewhere a torn tail: the other records, never this one."""
    for offset in range(STARTS[-1], len(LOG)):
        for change in range(1, 256):
            damaged = bytearray(LOG)
            damaged[offset] ^= change
            if offset < STARTS[-1] + 7:
                with pytest.raises(LogError, match="head is damaged"):
                    scan(bytes(damaged))
            else:
                contents = scan(bytes(damaged))
                assert payloads_of(contents) == PAYLOADS[:-1]
                assert contents.torn
                assert contents.end == STARTS[-1]


def test_the_check_tells_every_change_of_one_byte_of_a_head():
    """Half a CRC-32 still moves with every single-byte change of the five bytes it checks.

    A CRC is linear: whether a change shows depends on the change alone, not on the bytes.
    """
    blank = crc32(bytes(5)) & 0xFFFF
    for offset, change in itertools.product(range(5), range(1, 256)):
        changed = bytearray(5)
        changed[offset] = change
        assert crc32(bytes(changed)) & 0xFFFF != blank


@pytest.mark.parametrize("order", [[1, 2, 3], [0, 2, 3], [0, 0, 1, 2, 3], [1, 0, 2, 3], [0, 1, 3]])
def test_records_lost_doubled_or_moved_are_damage(order):
    """Each record's checksums depend on all before it."""
    parts = [LOG[a:b] for a, b in itertools.pairwise([*STARTS, len(LOG)])]
    with pytest.raises(LogError, match="damaged"):
        scan(LOG[: STARTS[0]] + b"".join(parts[i] for i in order))


def test_a_record_of_another_log_is_damage():
    """The running CRC-32 begins with the header."""
    other, starts = a_log(header={"plan": {"seed": 8}})
    with pytest.raises(LogError, match="damaged") as caught:
        scan(LOG[: STARTS[1]] + other[starts[1] :])
    assert caught.value.offset == STARTS[1]


@pytest.mark.parametrize("count", [1, 7, 8, 4096])
def test_zeros_at_the_end_are_a_torn_tail(count):
    """Blocks that a lost machine never wrote."""
    contents = scan(LOG + bytes(count))
    assert payloads_of(contents) == PAYLOADS
    assert contents.torn
    assert contents.end == len(LOG)


def test_other_bytes_at_the_end_are_damage():
    """What no killed writer leaves is not quietly dropped."""
    with pytest.raises(LogError) as caught:
        scan(LOG + b"\0\0\0\0\0\0\0\0x")
    assert caught.value.offset == len(LOG)


def lost(before, after, sector, written):
    """A file after a lost machine: of the last append, only some sectors reached the disk."""
    first = len(before) // sector
    data = bytearray(before) + bytes(len(after) - len(before))
    for number in written:
        span = slice(max(len(before), (first + number) * sector), (first + number + 1) * sector)
        data[span] = after[span]
    return bytes(data)


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize(
    ("start", "sizes"),
    [
        *((start, [1900]) for start in (*range(505, 513), 700)),
        *((start, [500, 300, 4, 500]) for start in range(505, 512)),
        (4090, [3000]),
        (4094, [1900, 700]),
        (300, [5]),
    ],
)
def test_a_lost_machine_costs_no_more_than_the_last_append(sector, start, sizes):
    """Whichever sectors of it were written: all steps synced before, and of it a prefix."""
    blank = len(pack_header({"a": ""})) + 19
    rng = np.random.default_rng(start)
    before, _ = a_log([b""], {"a": "x" * (start - blank)})
    after, starts = a_log([b"", *(rng.bytes(size) for size in sizes)], {"a": "x" * (start - blank)})
    assert (len(before), starts[1]) == (start, start)
    count = -(-len(after) // sector) - start // sector
    whole = scan(after)
    for choice in range(2**count):
        written = [number for number in range(count) if choice >> number & 1]
        data = lost(before, after, sector, written)
        for size in {len(data), max(start, len(data) - 300)}:  # its length may be older, too
            contents = scan(data[:size])
            good = len(contents.records)
            assert good >= 1
            assert contents.records == whole.records[:good]
            assert bool(contents.torn) == (contents.end != size)


def test_a_sector_of_zeros_far_from_the_end_is_damage():
    """No append reaches so far back: the disk lost what it had, and nobody cuts that off."""
    data, starts = a_log([bytes([1]) * 2000, bytes([2]) * 70_000])
    hole = data[:1024] + bytes(512) + data[1536:]
    with pytest.raises(LogError, match="CRC-32 does not fit") as caught:
        scan(hole)
    assert (caught.value.offset, caught.value.steps) == (starts[0], 0)


@pytest.mark.parametrize(("left", "torn"), [(65_536, True), (65_537, False)])
def test_a_hole_is_a_lost_append_within_65536_bytes_of_the_end(left, torn):
    """So far an append of records may reach; a byte more, and it is damage."""
    blank = a_log([bytes([1]) * 2000, b""])[0]
    start = a_log([bytes([1]) * 2000])[1][0]
    more = left - (len(blank) - start)
    data, starts = a_log([bytes([1]) * 2000, bytes([2]) * more])
    assert (len(data) - starts[0], starts[0]) == (left, start)
    hole = data[:1024] + bytes(512) + data[1536:]
    if torn:
        assert (scan(hole).records, scan(hole).end) == ((), start)
        assert "holds zeros" in scan(hole).torn
    else:
        with pytest.raises(LogError, match="CRC-32 does not fit"):
            scan(hole)


@pytest.mark.parametrize(("size", "reason"), [(6, "within a record's head"), (7, "is cut after 7")])
def test_a_cut_is_told_by_the_part_that_it_left(size, reason):
    """A head is seven bytes: fewer say nothing of the record, seven its length."""
    assert reason in scan(LOG[: STARTS[2] + size]).torn


@pytest.mark.parametrize("steps", [0, 33, 255])
def test_a_record_holds_one_to_thirty_two_steps(steps):
    """Well framed, yet no record of this format."""
    data = pack_header({})
    framed, _ = pack_record(steps, b"", bytes(8), crc32(data[:-4]))
    with pytest.raises(LogError, match="1 to 32"):
        scan(data + framed + framed)


def test_a_later_version_is_named():
    """An old reader says which version it met, before it looks at anything else."""
    data = LOG[:8] + b"\x02\x00" + LOG[10:]
    with pytest.raises(LogError, match="version 2; this minibit reads version 1") as caught:
        scan(data)
    assert caught.value.offset == 8


def test_another_file_is_named_by_its_first_bytes():
    """A text, a picture: no log."""
    with pytest.raises(LogError, match=r"begins with b'PK.*nothing was changed"):
        scan(b"PK\x03\x04 and so on, for longer than a header")
    assert scan(MAGIC + pack_header({})[8:]).records == ()


def test_huge_lengths_are_refused_before_anything_is_allocated():
    """Header or payload of 4 GB in a file of 200 bytes: a few kB of memory."""
    header = LOG[:10] + b"\xff\xff\xff\xff" + LOG[14:]
    data = pack_header({})
    head = b"\x01\xff\xff\xff\xff"
    check = (crc32(head, crc32(data[:-4])) & 0xFFFF).to_bytes(2, "little")
    tracemalloc.start()
    with pytest.raises(LogError, match="4294967295 bytes"):
        scan(header)
    contents = scan(data + head + check + bytes(100))
    assert "is cut after" in contents.torn
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (b"[" * 100_000, "nested over 64 deep"),
        (b'{"a":' * 50_000, "nested over 64 deep"),
        (b'{"a":1,"a":2}', "named twice"),
        (b'{"a":NaN}', "no JSON number"),
        (b'{"a":-Infinity}', "no JSON number"),
        (b'{"a":' + b"9" * 10_000 + b"}", "an integer of 10000 digits"),
        (b'{"a":"\xff"}', r"no UTF-8 \(byte 20\)"),
        (b"[1]", "JSON list, no object"),
        (b"", "no JSON"),
    ],
)
def test_json_that_is_no_header_is_refused(text, wrong):
    """Bombs, doubled keys, numbers that are none: one clear error."""
    with pytest.raises(LogError, match=wrong):
        parse_header(text)


@pytest.mark.parametrize("header", [{"a": math.nan}, {"a": b"x"}, {"a": "x" * (1 << 20)}, [1]])
def test_a_header_that_no_reader_takes_is_not_written(header):
    """NaN, bytes, more than 1 MiB, a list."""
    with pytest.raises((TypeError, ValueError)):
        pack_header(header)


def test_a_header_of_one_mebibyte_is_the_longest():
    """It is written and read; a byte more is refused both times."""
    longest = {"a": "x" * ((1 << 20) - len('{"a":""}'))}
    data = pack_header(longest)
    assert parse_header(scan(data).header) == longest
    with pytest.raises(ValueError, match="at most 1048576 bytes, got 1048577"):
        pack_header({"a": longest["a"] + "x"})
    longer = data[:10] + (len(data) - 17).to_bytes(4, "little") + b" " + data[14:-4]
    with pytest.raises(LogError, match="a header of 1048577 bytes; the most is 1048576"):
        scan(longer + crc32(longer).to_bytes(4, "little"))


@given(st.data())
def test_a_damaged_file_gives_an_error_or_a_prefix(data):
    """Flips, cuts and insertions anywhere, several at once: never a record that was not written."""
    damaged = bytearray(LOG)
    for _ in range(data.draw(st.integers(1, 4))):
        offset = data.draw(st.integers(0, len(damaged)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "flip" and offset < len(damaged):
            damaged[offset] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            stop = data.draw(st.integers(offset, len(damaged)))
            del damaged[offset:stop]
        else:
            damaged[offset:offset] = data.draw(st.binary(max_size=8))
    try:
        contents = scan(bytes(damaged))
    except LogError:
        return
    assert payloads_of(contents) == PAYLOADS[: len(contents.records)]
    assert bytes(damaged[: contents.end]) == LOG[: contents.end]


# --- Files


def test_only_one_writer_holds_a_file(tmp_path):
    """The second is told; once the first closes, it may."""
    path = tmp_path / "x"
    path.write_bytes(b"")
    first = Appender(path)
    with pytest.raises(LogError, match="another writer holds"):
        Appender(path)
    first.close()
    second = Appender(path)
    second.append(b"more")
    second.close()
    assert path.read_bytes() == b"more"


# --- Codes


@given(st.integers(1, 2**70), st.integers(1, 2**70))
def test_a_gamma_code_comes_back(value, after):
    """Self-delimiting, 2 floor(log2 x) + 1 bits."""
    bits = BitWriter()
    bits.gamma(value)
    assert len("".join(bits.parts)) == 2 * value.bit_length() - 1
    bits.gamma(after)
    reader = BitReader(bits.payload())
    assert [reader.gamma(), reader.gamma()] == [value, after]
    reader.close()


@given(st.integers(1, 2**40), st.data())
@example(1, None)
def test_a_uniform_code_comes_back_in_the_fewest_bits(size, data):
    """Floor or ceiling of log2(size) bits, and none of one choice."""
    value = 0 if data is None else data.draw(st.integers(0, size - 1))
    bits = BitWriter()
    bits.uniform(value, size)
    assert len("".join(bits.parts)) in (math.floor(math.log2(size)), (size - 1).bit_length())
    reader = BitReader(bits.payload())
    assert reader.uniform(size) == value
    reader.close()


@given(st.integers(1, 3000), st.data())
@example(5, None)
def test_a_subset_comes_back(size, data):
    """Any increasing positions below size, from none to all."""
    everything = st.sets(st.integers(0, size - 1), max_size=60)
    positions = list(range(size)) if data is None else sorted(data.draw(everything))
    bits = BitWriter()
    bits.subset(positions, size)
    reader = BitReader(bits.payload())
    assert reader.subset(len(positions), size) == positions
    reader.close()


@pytest.mark.parametrize(
    ("size", "count", "above"),
    [(12_544, 200, 0.006), (12_544, 40, 0.006), (12_544, 10, 0.01), (4096, 3, 0.016)],
)
def test_a_subset_costs_little_more_than_its_entropy(size, count, above):
    """Mean bits against log2 C(N, K) + K, over 300 uniform subsets: about 0.4 to 1% above."""
    rng = np.random.default_rng(0)
    spent = 0
    for _ in range(300):
        bits = BitWriter()
        bits.subset(np.sort(rng.choice(size, count, replace=False)).tolist(), size)
        spent += len("".join(bits.parts)) + count  # one sign bit each
    ideal = math.log2(math.comb(size, count)) + count
    assert ideal < spent / 300 < (1 + above) * ideal


def test_terns_with_half_zeros_cost_their_entropy():
    """1.5 bits a code, exactly: 0 -> `0`, +-1 -> `1s`."""
    codes = np.array([0, 0, 1, -1] * 32, np.int8)
    payload = encode_sampled([SampledStep(5, codes)] * 3)
    assert len(payload) == 4 + 3 * 128 * 1.5 / 8
    assert payload[4:6] == bytes([0b00101100, 0b10110010])


terns = st.lists(st.lists(st.integers(-1, 1), min_size=9, max_size=9), min_size=1, max_size=4)


@given(terns, st.integers(0, 2**32 - 1))
def test_sampled_steps_come_back(codes, numerator):
    """Codes of every step, and the record's numerator."""
    steps = [SampledStep(numerator, np.array(row, np.int8)) for row in codes]
    back = decode_sampled(encode_sampled(steps), len(steps), 9)
    assert [step.codes.tolist() for step in back] == codes
    assert {step.numerator for step in back} == {numerator}
    assert {step.codes.dtype for step in back} == {np.dtype(np.int8)}


a_layer = st.dictionaries(st.integers(0, 39), st.sampled_from([-1, 1]), max_size=40)


@given(st.lists(st.tuples(a_layer, a_layer), min_size=1, max_size=5))
def test_units_steps_come_back(moves):
    """Positions and signs of every layer of every step."""
    steps = [
        UnitsStep(
            tuple(np.array(sorted(layer), np.int64) for layer in step),
            tuple(np.array([layer[q] for q in sorted(layer)], np.int8) for layer in step),
        )
        for step in moves
    ]
    back = decode_units(encode_units(steps, (40, 40)), len(steps), (40, 40))
    for step, again in zip(steps, back, strict=True):
        for name in ("positions", "signs"):
            for a, b in zip(getattr(step, name), getattr(again, name), strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype


@given(st.binary(max_size=60), st.integers(1, 32))
def test_bytes_that_are_no_codes_are_refused(payload, steps):
    """Any bytes: a ValueError, or steps that are in range and of the stated number."""
    try:
        steps_read = decode_units(payload, steps, (100, 7))
        assert len(steps_read) == steps
        for step in steps_read:
            for size, positions in zip((100, 7), step.positions, strict=True):
                assert (np.diff(positions) > 0).all()
                assert positions.size == 0 or 0 <= positions[0] <= positions[-1] < size
    except ValueError:
        pass
    try:
        steps_read = decode_sampled(payload, steps, 5)
        assert [step.codes.size for step in steps_read] == [5] * steps
        again = encode_sampled(steps_read)
        assert again == payload
    except ValueError:
        pass


@pytest.mark.parametrize("payload", [b"", b"\x00\x00\x00", b"\x00\x00\x00\x40\x98\x00"])
def test_sampled_payloads_of_another_length_are_refused(payload):
    """Too short for its numerator; a byte too many."""
    with pytest.raises(ValueError, match=r"bytes has no numerator|follow the last code"):
        decode_sampled(payload, 1, 4)


@pytest.mark.parametrize("left", range(18))
def test_a_payload_ends_within_a_byte_of_its_last_code(left):
    """Up to seven zeros fill the last byte; a spare byte, or a one among them, is an error."""
    bits = BitReader(bytes(3))
    bits.take(24 - left)
    if left < 8:
        bits.close()
    else:
        with pytest.raises(ValueError, match=f"{left} bits follow the last code"):
            bits.close()
    if left:
        ones = BitReader(b"\xff\xff\x01")
        ones.take(24 - left)
        with pytest.raises(ValueError, match=f"{left} bits follow the last code"):
            ones.close()


def test_more_moves_than_bits_are_refused_before_they_are_read():
    """A count of 2**40 among 2**50 candidates, in 12 bytes: no list of that length is begun."""
    bits = BitWriter()
    bits.gamma(2**40 + 1)
    bits.gamma(1)
    tracemalloc.start()
    with pytest.raises(ValueError, match="moves among"):
        decode_units(bits.payload(), 1, (2**50,))
    with pytest.raises(ValueError, match="cannot lie in"):
        decode_sampled(bytes(20), 32, 2**31)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


# --- Codes worked by hand

# Name, code, number or positions, size, bits; and the mistake that it shows.
CODES = [
    ("uniform-0-of-3", "uniform", 0, 3, "0"),  # truncated binary with the long codes first
    ("uniform-1-of-3", "uniform", 1, 3, "10"),  # truncated binary with the long codes first
    ("uniform-2-of-3", "uniform", 2, 3, "11"),  # truncated binary with the long codes first
    ("uniform-7-of-11", "uniform", 7, 11, "1100"),  # the offset of the long codes forgotten
    ("uniform-of-1", "uniform", 0, 1, ""),  # a bit spent where there is no choice
    ("uniform-of-power-of-two", "uniform", 3, 4, "11"),  # one bit too few at a power of two
    ("gamma-1", "gamma", 1, None, "1"),  # gamma codes of x + 1
    ("gamma-5", "gamma", 5, None, "00101"),  # zeros counted with the leading one
    ("subset-empty", "subset", [], 9, ""),  # a terminator after no positions
    ("subset-all", "subset", [0, 1, 2], 3, ""),  # bits spent where nothing is open
    (
        "subset-first-long",
        "subset",
        [6, 19],
        20,
        "11111111",
    ),  # m is 7: round(0.7 19 / 2)
    (
        "subset-last-quotient",
        "subset",
        [18, 19],
        20,
        "00111",
    ),  # no one after the last
    ("subset-of-three", "subset", [0, 5, 7], 8, "10001"),  # room that forgets the positions to come
]


@pytest.mark.parametrize(("name", "code", "value", "size", "bits"), CODES, ids=lambda v: str(v))
def test_code_vectors(name, code, value, size, bits):
    """Bits worked by hand, written and read."""
    sizes = () if size is None else (size,)
    writer = BitWriter()
    getattr(writer, code)(value, *sizes)
    assert "".join(writer.parts) == bits
    read = (len(value), *sizes) if code == "subset" else sizes
    assert getattr(BitReader(writer.payload()), code)(*read) == value
