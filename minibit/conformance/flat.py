"""Vectors as flat text, for languages without JSON: one file per module, one line per value.

    case absmean/half-to-even
    call absmax_quantize
    arg x float32 2 1 6 42fe0000 3f000000 3fc00000 40200000 bf000000 bfc00000
    out int8 2 1 6 7f 00 02 02 00 fe
    out float32 2 1 1 3f800000
    exact

A value is a dtype, the number of axes, the lengths, and the words of the entries. Parts of nested
values have dotted names (``params.w1``). Other values are ``text``, ``true``, ``false``, ``null``,
``list n`` or ``object n`` (which n parts follow), and ``function`` with its JSON. A case ends with
``exact``, ``within atol rtol`` or ``refuse EXCEPTION WORDS``, and an empty line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from minibit.conformance.cases import Case
from minibit.conformance.values import is_array

__all__ = ["flat_lines", "write_flat"]


def flat_lines(case: Case) -> Iterator[str]:
    r"""Write one case as lines.

    Examples
    --------
    >>> from minibit.conformance import cases
    >>> print(*flat_lines(cases("absmean")[0]), sep="\n")
    case absmean/mean-of-magnitudes
    call absmean_quantize
    arg w float32 2 1 4 3f800000 c0400000 3f000000 00000000
    out int8 2 1 4 01 ff 00 00
    out float32 0 3f900000
    exact
    <BLANKLINE>
    """
    yield f"case {case.id}"
    yield f"call {case.call}"
    for name, value in case.args.items():
        yield from (f"arg {line}" for line in _value_lines(name, value))
    for value in case.expect or []:
        yield from (f"out {line.lstrip()}" for line in _value_lines("", value))
    if case.refuse is not None:
        yield f"refuse {case.refuse} {case.names}".rstrip()
    elif case.exact:
        yield "exact"
    else:
        yield f"within {case.within.get('atol', 0.0)!r} {case.within.get('rtol', 0.0)!r}"
    yield ""


def _value_lines(name: str, value: Any) -> Iterator[str]:
    """Write a value, and its parts after it."""
    if is_array(value):
        lengths = [str(length) for length in value["shape"]]
        yield " ".join([name, value["dtype"], str(len(lengths)), *lengths, *value["bits"].split()])
    elif isinstance(value, Mapping) and value.keys() & {"function", "steps", "make"}:
        yield f"{name} function {json.dumps(value)}"
    elif isinstance(value, Mapping | list):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        kind = "object" if isinstance(value, Mapping) else "list"
        yield f"{name} {kind} {len(value)}"
        for key, part in parts:
            yield from _value_lines(f"{name}.{key}", part)
    else:
        words = json.dumps(value)
        yield f"{name} text {words}" if isinstance(value, str) else f"{name} {words}"


def write_flat(chosen: Iterable[Case], folder: Path) -> list[Path]:
    """Write ``MODULE.txt`` for every module of the cases into a folder, which is made."""
    texts: dict[str, list[str]] = {}
    for case in chosen:
        texts.setdefault(case.module, []).extend(flat_lines(case))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for module, lines in texts.items():
        paths.append(folder / f"{module}.txt")
        paths[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths
