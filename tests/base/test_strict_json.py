"""Strict JSON: what it reads, Python's parser reads alike; what it refuses, it places."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibit.base import CheckpointError, JSONError, in_file, parse_object, read_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**64) + 1, 10**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(st.dictionaries(st.text(), VALUES), st.booleans())
def test_every_object_of_sound_json_comes_back_as_it_was(fields, ascii_only):
    """Any nesting below the limit, any text, all floats, integers of up to 64 digits."""
    text = json.dumps(fields, ensure_ascii=ascii_only)
    assert parse_object(text.encode()) == fields


@given(st.binary(max_size=60) | st.text('{}[]",:\\ 01-.eENnaIfty\n', max_size=60).map(str.encode))
def test_any_bytes_give_an_object_that_python_reads_alike_or_an_error_with_a_place(text):
    """No other exception, and no place outside the text."""
    error = None
    try:
        assert parse_object(text) == json.loads(text)
    except JSONError as caught:
        error = caught
    assert error is None or 0 <= error.offset <= len(text)
    assert error is None or f"(byte {error.offset})" in str(error)


CASES = {
    b'{"a": 1, "b": {"c": [1, {"x": 1, "y": 2, "x": 3}]}}': ("'x' is named twice", b'"x": 3'),
    '{"é": [], "é": 1}'.encode(): (r"'\\xe9' is named twice", '"é": 1'.encode()),
    b'{"a": 1, "\\u0061": 2}': ("'a' is named twice", b'"\\u0061"'),
    b'{"a": {"a": {"a": 1}}, "b": [1, NaN]}': ("NaN is no JSON number", b"NaN"),
    b'{"a": [1e300, -Infinity]}': ("-Infinity is no JSON number", b"-Inf"),
    b'{"a": [1e300, 1e309]}': ("'1e309' is beyond a float", b"1e309"),
    b'{"a": [%d, -%d]}' % (10**63, 10**64): ("an integer of 65 digits; the most is 64", b"-1"),
    b'{"a": "\\"NaN, [", "b": Infinity}': ("Infinity is no JSON number", b"Inf"),
    b'{"a": 1, "a": 2, "b": NaN}': ("NaN is no JSON number", b"NaN"),
    b'{"a": 1,}': ("no JSON: .*", b"}"),
    "{'é': 1}".encode(): ("no JSON: .*", "'é".encode()),
    b'{"a": "\xff"}': ("no UTF-8", b"\xff"),
    b"[1, 2]": ("a JSON list, no object", b"[1"),
    b"{": ("no JSON: .*", b""),
    b"": ("no JSON: .*", b""),
}


@pytest.mark.parametrize("text", CASES)
def test_what_is_refused_is_named_with_its_byte(text):
    """Keys are compared as they read, not as they are spelt; strings may hold anything."""
    reason, offset = CASES[text]
    with pytest.raises(JSONError, match=f"^{reason} \\(byte") as caught:
        parse_object(text)
    at = text.index(offset) if offset else len(text)
    assert caught.value.offset in (at, at - (reason.startswith("no JSON") and offset == b"}"))


@pytest.mark.parametrize("bracket", ["[]", '{"a":}'])
def test_nesting_ends_at_64_levels_with_its_byte(bracket):
    """However deep, and with a text that would need the whole stack."""
    opening, closing = bracket[:-1], bracket[-1]
    for depth in (63, 64, 65, 100_000):
        text = f'{{"deep":{opening * (depth - 1)}{1}{closing * (depth - 1)}}}'.encode()
        if depth <= 64:
            assert parse_object(text)
            continue
        with pytest.raises(JSONError, match="is nested over 64 deep") as caught:
            parse_object(text)
        assert caught.value.offset == len('{"deep":' + opening * 63)


def test_many_brackets_side_by_side_are_not_deep():
    """Depth counts brackets that are open, outside of strings."""
    assert len(parse_object(b'{"a": [' + b"[]," * 999 + b'["[[[[["]]}')["a"]) == 1000
    assert parse_object(b'{"a": "' + b"[" * 999 + b'"}')


@pytest.mark.parametrize("piece", [b'"\\"', b'"', b"[", b"\\", b'"a', b"1", b'{"a":'])
def test_no_text_takes_more_than_one_pass(piece):
    """A megabyte of the worst pieces ends; a scan from every quote to the end would not."""
    with pytest.raises(JSONError):
        parse_object(b'{"a":[' + piece * (1_000_000 // len(piece)))


def test_the_size_is_bounded_before_anything_is_parsed(tmp_path):
    """Of text, and of a file: one byte more than the bound is an error that says both."""
    with pytest.raises(JSONError, match="9 bytes of JSON; the most is 8"):
        parse_object(b'{"a": 10}', most=8)
    assert parse_object(b'{"a": 10}', most=9) == {"a": 10}
    (tmp_path / "a.json").write_bytes(b'{"a": 10}')
    assert read_json(tmp_path / "a.json", most=9) == {"a": 10}
    with pytest.raises(CheckpointError, match=r"a\.json: 9 bytes; the most is 8"):
        read_json(tmp_path / "a.json", most=8)


def test_a_file_that_is_none_or_holds_no_json_is_named(tmp_path):
    """With the byte, where there is one."""
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / "bad").write_bytes(b'{"a": NaN}')
    for name, says in {
        "nothing": "there is no such file",
        "link": "is a link to nothing",
        ".": "is no file",
        "bad": r"NaN is no JSON number \(byte 6\)",
    }.items():
        with pytest.raises(CheckpointError, match=says) as caught:
            read_json(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    assert caught.value.offset == 6


def test_integers_of_64_digits_and_long_fractions_are_read():
    """The bound is on integers: a float may have any number of digits."""
    number = "0." + "3" * 1000
    assert parse_object(f'{{"a": {"9" * 64}, "b": {number}}}'.encode()) == {
        "a": 10**64 - 1,
        "b": float(number),
    }
    assert math.isclose(parse_object(b'{"a": 1e308}')["a"], 1e308)


def test_what_a_check_says_of_a_value_out_of_a_file_names_the_file(tmp_path):
    """TypeError and ValueError become one; a CheckpointError passes as it is."""
    for error, says in (
        (TypeError("r must be an integer"), "a.json: r must be an integer"),
        (ValueError("r must lie in [1, 2]"), r"a.json: r must lie in"),
        (CheckpointError("is damaged", "b"), "^b: is damaged"),
    ):
        with pytest.raises(CheckpointError, match=says), in_file(tmp_path / "a.json"):
            raise error
