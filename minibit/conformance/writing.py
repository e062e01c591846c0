"""Write a file of vectors: one line an argument, so that a change of one case shows as such."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["dump"]


def dump(content: Mapping[str, Any]) -> str:
    """Return a file of vectors as text.

    Examples
    --------
    >>> print(dump({"schema": 1, "notes": {}, "cases": []}), end="")
    {
      "schema": 1,
      "notes": {
      },
      "cases": [
      ]
    }
    """
    head = [
        f"  {_line(key)}: {_line(value)},\n"
        for key, value in content.items()
        if key not in ("notes", "cases")
    ]
    notes = [f"    {_line(flag)}: {_line(note)}" for flag, note in content["notes"].items()]
    cases = [_case(case) for case in content["cases"]]
    return (
        f'{{\n{"".join(head)}  "notes": {{\n{_joined(notes)}  }},\n'
        f'  "cases": [\n{_joined(cases)}  ]\n}}\n'
    )


def _line(value: Any) -> str:
    """One line of JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _joined(entries: list[str]) -> str:
    """Join with commas, each entry ending its line."""
    return ",\n".join(entries) + "\n" if entries else ""


def _case(case: Mapping[str, Any]) -> str:
    """One case: a line for each argument and each result."""
    fields = []
    for key, value in case.items():
        text = _line(value)
        if key == "args" and value:
            rows = (f"        {_line(name)}: {_line(item)}" for name, item in value.items())
            text = "{\n" + ",\n".join(rows) + "}"
        elif key == "expect" and len(value) > 1:
            text = "[\n" + ",\n".join(f"        {_line(item)}" for item in value) + "]"
        fields.append(f"{_line(key)}: {text}")
    return "    {" + ",\n      ".join(fields) + "}"
