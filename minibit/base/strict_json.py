"""JSON from strangers: one object, nothing ambiguous, nothing endless.

Python's parser takes more than JSON (NaN, a key twice: the last wins), and things that hurt later:
an integer of a million digits, 1e999, a thousand brackets. Here each is an error that says what is
wrong and at which byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain, pairwise
from math import isinf
from typing import Any

from minibit.base.text import shown

MOST_BYTES = 1 << 24
MOST_DEPTH = 64
MOST_DIGITS = 64  # of an integer; transformers writes 10**30 for "no limit"
TOKEN = re.compile(r'"(?:[^"\\]+|\\.)*+"?|[][{}:,]|[^][{}:,"\s]+', re.DOTALL)


class JSONError(ValueError):
    """Text is no JSON that is read here: the `reason`, and as `offset` the byte of the text."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(f"{reason} (byte {offset})")
        self.reason, self.offset = reason, offset


def parse_object(text: bytes, most: int = MOST_BYTES) -> dict[str, Any]:
    """Parse a JSON object, from UTF-8 of at most so many bytes.

    `JSONError` is raised if it is longer, no UTF-8, no JSON, no object; if a key is named twice in
    one object, a number is NaN, infinite or beyond a float, an integer has over 64 digits, or
    brackets are nested more than 64 deep.

    Examples
    --------
    >>> parse_object(b'{"a": 2, "a": 3}')
    Traceback (most recent call last):
        ...
    minibit.base.strict_json.JSONError: 'a' is named twice (byte 9)
    """
    if len(text) > most:
        raise JSONError(f"{len(text)} bytes of JSON; the most is {most}", most)
    try:
        string = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JSONError("no UTF-8", error.start) from None
    if string.count("{") + string.count("[") > MOST_DEPTH:  # fewer cannot nest too deep
        for token, start, depth in _tokens(string):
            if depth > MOST_DEPTH:
                raise _error(string, start, f"{shown(token)} is nested over {MOST_DEPTH} deep")
    try:
        parsed = json.loads(string, object_pairs_hook=_unique, **NUMBERS)
    except json.JSONDecodeError as error:
        raise _error(string, error.pos, f"no JSON: {error.msg}") from None
    except _Refused as refused:
        raise _error(string, _find(string, *refused.args), str(refused)) from None
    if not isinstance(parsed, dict):
        raise JSONError(f"a JSON {type(parsed).__name__}, no object", 0)
    return parsed


class _Refused(ValueError):
    """JSON that Python reads, and this does not."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object's dict, unless a key is named twice."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise _twice(name)
        fields[name] = value
    return fields


def _twice(name: str) -> _Refused:
    """Return the error of a key that comes again."""
    return _Refused(f"{shown(name)} is named twice")


def _refuse(token: str) -> None:
    """Refuse NaN, Infinity and -Infinity."""
    raise _Refused(f"{token} is no JSON number")


def _integer(token: str) -> int:
    """Return an integer, unless it is of endless digits."""
    digits = len(token.lstrip("-"))
    if digits > MOST_DIGITS:
        raise _Refused(f"an integer of {digits} digits; the most is {MOST_DIGITS}")
    return int(token)


def _real(token: str) -> float:
    """Return a float, unless it is too large for one."""
    if isinf(value := float(token)):
        raise _Refused(f"{shown(token)} is beyond a float")
    return value


NUMBERS: dict[str, Any] = {"parse_constant": _refuse, "parse_int": _integer, "parse_float": _real}


def _find(text: str, reason: str) -> int:
    """Return the position of the first token that is refused for `reason`; the syntax is good."""
    keys: list[set[str]] = []  # of the objects and arrays that are open
    for (token, start, _), (after, _, _) in pairwise(chain(_tokens(text), [("", 0, 0)])):
        try:
            if token in "{[":
                keys.append(set())
            elif token in "}]":
                keys.pop()
            elif token[0] == '"' and after == ":":
                name = json.loads(token)
                if name in keys[-1]:
                    raise _twice(name)
                keys[-1].add(name)
            elif token[0] in "-0123456789NI":
                json.loads(token, **NUMBERS)
        except _Refused as refused:
            if str(refused) == reason:
                return start
    return 0


def _tokens(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield strings, brackets and the rest: text, position, and the number of open brackets."""
    depth = 0
    for match in TOKEN.finditer(text):
        token = match[0]
        depth += (token in "{[") - (token in "}]")
        yield token, match.start(), depth


def _error(text: str, position: int, reason: str) -> JSONError:
    """Return an error at a character of the text, whose position in bytes is counted."""
    return JSONError(reason, len(text[:position].encode()))
