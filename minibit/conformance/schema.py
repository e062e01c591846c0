"""A small validator: the part of JSON Schema that ``minibit/vectors/schema.json`` uses.

Knows `$ref` into the schema itself, `type`, `const`, `enum`, `pattern`, `minimum`, `minLength`,
`minItems`, `items`, `required`, `properties`, `additionalProperties`, `anyOf` and `oneOf`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["KEYWORDS", "faults"]

KEYWORDS = frozenset(
    (
        *("$ref", "type", "const", "enum", "pattern", "minimum", "minLength", "minItems", "items"),
        *("required", "properties", "additionalProperties", "anyOf", "oneOf"),
    )
)
TYPES: dict[str, Any] = {
    **{"object": dict, "array": list, "string": str, "number": (int, float), "integer": int},
    **{"boolean": bool, "null": type(None)},
}


def faults(value: Any, schema: Mapping[str, Any], root: Any = None, at: str = "$") -> Iterator[str]:
    """Yield what is wrong with a value, each with its place; nothing if it is as the schema says.

    Examples
    --------
    >>> list(faults({"n": -1}, {"properties": {"n": {"minimum": 0}}, "required": ["m"]}))
    ["$ lacks 'm'", '$.n: -1 is below 0']
    """
    root = schema if root is None else root
    if "$ref" in schema:
        target = root
        for key in schema["$ref"].removeprefix("#/").split("/"):
            target = target[key]
        yield from faults(value, target, root, at)
    if "type" in schema and not _is(value, schema["type"]):
        yield f"{at}: {value!r:.60} is no {schema['type']}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{at}: {value!r:.60} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r:.60} is none of {schema['enum']}"
    yield from _faults_of_size(value, schema, at)
    if isinstance(value, dict):
        yield from _faults_of_object(value, schema, root, at)
    if isinstance(value, list) and "items" in schema:
        for i, item in enumerate(value):
            yield from faults(item, schema["items"], root, f"{at}[{i}]")
    for key in ("anyOf", "oneOf"):
        if key in schema:
            reports = [list(faults(value, branch, root, at)) for branch in schema[key]]
            fitting = sum(not report for report in reports)
            if fitting == 0:
                yield f"{at}: fits none of {key}; nearest: {min(reports, key=len)[0]}"
            elif key == "oneOf" and fitting > 1:
                yield f"{at}: fits {fitting} of oneOf"


def _is(value: Any, name: str | list[str]) -> bool:
    """Tell whether a value is of a type, or of one of several; true is no number."""
    names = [name] if isinstance(name, str) else name
    boolean = isinstance(value, bool)
    return any(isinstance(value, TYPES[n]) and (not boolean or n == "boolean") for n in names)


def _faults_of_size(value: Any, schema: Mapping[str, Any], at: str) -> Iterator[str]:
    """Patterns and smallest sizes."""
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        yield f"{at}: {value!r:.60} does not match {schema['pattern']}"
    if "minimum" in schema and isinstance(value, int | float) and value < schema["minimum"]:
        yield f"{at}: {value!r} is below {schema['minimum']}"
    if "minLength" in schema and isinstance(value, str) and len(value) < schema["minLength"]:
        yield f"{at}: the text is shorter than {schema['minLength']}"
    if "minItems" in schema and isinstance(value, list) and len(value) < schema["minItems"]:
        yield f"{at}: {len(value)} items, fewer than {schema['minItems']}"


def _faults_of_object(
    value: dict[str, Any], schema: Mapping[str, Any], root: Any, at: str
) -> Iterator[str]:
    """Keys that lack, known keys, and all others."""
    yield from (f"{at} lacks {key!r}" for key in schema.get("required", ()) if key not in value)
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for key, item in value.items():
        if key in known:
            yield from faults(item, known[key], root, f"{at}.{key}")
        elif others is False:
            yield f"{at}: {key!r} is no key here"
        elif isinstance(others, dict):
            yield from faults(item, others, root, f"{at}.{key}")
