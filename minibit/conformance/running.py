"""Call a function as a case says, and judge what it answers.

An answer is what a port in any language may write as one line of JSON: ``{"out": [value, ...]}``,
``{"refused": text}`` or ``{"skip": true}``. `answer_of` makes it of a Python function; then
``types`` lists the names of the exception's classes, too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minibit.conformance.cases import Case
from minibit.conformance.functions import builder
from minibit.conformance.protocols import PROTOCOLS
from minibit.conformance.values import array_of, decode, encode, is_array

__all__ = ["Deviation", "answer_of", "arguments", "function_of", "judge", "offered_as"]


@dataclass(frozen=True)
class Deviation:
    """How an answer deviates: where, by position of the first differing entry, and in what."""

    where: str
    expected: str
    answered: str

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.where}: expected {self.expected}, got {self.answered}"


def arguments(case: Case, offered: Any) -> dict[str, Any]:
    """Return a case's arguments as Python values; functions among them are what `offered` has."""
    return {name: decode(value, builder(offered)) for name, value in case.args.items()}


def offered_as(call: str, offered: Any) -> Any:
    """Return what a module offers under a name, which may have dots; None if it does not."""
    value = offered
    for part in call.split("."):
        value = getattr(value, part, None)
    return value


def function_of(call: str, offered: Any) -> Callable[..., Any] | None:
    """Return what a case's `call` means: a function of that name, or its protocol; else None."""
    function: Callable[..., Any] | None = offered_as(call, offered)
    if function is None or call not in PROTOCOLS:
        return function
    return lambda **args: PROTOCOLS[call](offered, **args)


def answer_of(
    case: Case, offered: Any, function: Callable[..., Any] | None = None
) -> dict[str, Any]:
    """Call what a module offers under the case's name (or `function`), and write down the answer.

    Any exception is a refusal. A function that is not offered is skipped.
    """
    try:
        function = function or function_of(case.call, offered)
        if function is None:
            return {"skip": True}
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            out = function(**arguments(case, offered))
        return {"out": [encode(value) for value in (out if isinstance(out, tuple) else (out,))]}
    except Exception as error:
        types = [cls.__name__ for cls in type(error).__mro__]
        return {"refused": f"{error}", "types": types}


def judge(case: Case, answer: Mapping[str, Any]) -> Deviation | None:
    """Compare an answer with what the case expects; None if it conforms.

    Exact cases agree in dtype, shape and every bit, except that any NaN equals any NaN; so -0 is
    not 0. Others agree in dtype and shape and lie within ``atol + rtol |expected|``.
    """
    if case.refuse is not None:
        if "refused" not in answer:
            return Deviation("the call", f"a {case.refuse}", "a result")
        types = answer.get("types")
        if types is not None and case.refuse not in types:
            return Deviation("the call", f"a {case.refuse}", f"{types[0]}: {answer['refused']}")
        if types is not None and case.names not in answer["refused"]:
            return Deviation("the message", f"to name {case.names!r}", repr(answer["refused"]))
        return None
    if "out" not in answer:
        return Deviation("the call", "a result", f"a refusal: {answer.get('refused')}")
    out = answer["out"]
    if not isinstance(out, list) or len(out) != len(case.expect or []):
        return Deviation("the call", f"{len(case.expect or [])} results", f"{out!r:.80}")
    for number, (expected, value) in enumerate(zip(case.expect or [], out, strict=True)):
        deviation = _compare(case, f"result {number}", expected, value)
        if deviation is not None:
            return deviation
    return None


def _compare(case: Case, where: str, expected: Any, value: Any) -> Deviation | None:
    """Compare two encoded values, at any depth."""
    if is_array(expected):
        return _compare_arrays(case, where, expected, value)
    if isinstance(expected, list | dict):
        if type(value) is not type(expected) or len(value) != len(expected):
            return Deviation(where, f"{len(expected)} values", f"{value!r:.80}")
        keys: Any = expected if isinstance(expected, dict) else range(len(expected))
        if isinstance(expected, dict) and set(expected) != set(value):
            return Deviation(where, f"the keys {sorted(expected)}", f"{sorted(value)}")
        for key in keys:
            deviation = _compare(case, f"{where}[{key!r}]", expected[key], value[key])
            if deviation is not None:
                return deviation
        return None
    return None if value == expected else Deviation(where, f"{expected!r}", f"{value!r:.80}")


def _compare_arrays(case: Case, where: str, expected: Any, value: Any) -> Deviation | None:
    """Compare two encoded arrays, and name the first entry that differs."""
    if not is_array(value):
        return Deviation(where, "an array", f"{value!r:.80}")
    try:
        right, array = array_of(expected), array_of(value)
    except ValueError as error:
        return Deviation(where, "an array", str(error))
    if right.dtype != array.dtype:
        return Deviation(f"dtype of {where}", f"{right.dtype}", f"{array.dtype}")
    if right.shape != array.shape:
        return Deviation(f"shape of {where}", f"{list(right.shape)}", f"{list(array.shape)}")
    with np.errstate(all="ignore"):
        wrong = _wrong(case, right, array)
    if not wrong.any():
        return None
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return Deviation(f"{where} at {list(at)}", repr(right[at].item()), repr(array[at].item()))


def _wrong(case: Case, right: Any, array: Any) -> Any:
    """Mark the entries that are not as expected."""
    if right.dtype.kind != "f":
        return right != array
    both_nan = np.isnan(right) & np.isnan(array)
    if case.exact:
        bits = f"u{right.itemsize}"
        return (right.view(bits) != array.view(bits)) & ~both_nan
    bound = case.within.get("atol", 0.0) + case.within.get("rtol", 0.0) * np.abs(right)
    return ~((np.abs(array - right) <= bound) | (array == right) | both_nan)
