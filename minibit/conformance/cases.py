"""The cases of all vectors: each names a public function, its arguments and what comes of them."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

__all__ = ["Case", "cases", "functions_named", "notes", "read_file", "vector_files"]


@dataclass(frozen=True)
class Case:
    """One case: `call` with `args` returns `expect`, or refuses.

    `expect` has an encoded value for each array or number that is returned (`values.py`), equal bit
    for bit if `exact`, else within ``atol + rtol |expected|``. `refuse` is the name of an exception
    and `names` the text its message must hold. `flags` are keys of the file's notes, `mutations`
    names of wrong variants that the case must catch.
    """

    id: str
    call: str
    args: Mapping[str, Any]
    comment: str
    flags: tuple[str, ...]
    mutations: tuple[str, ...]
    expect: list[Any] | None = None
    refuse: str | None = None
    names: str = ""
    exact: bool = False
    within: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    why: str = ""

    @property
    def module(self) -> str:
        """The file that the case is in."""
        return self.id.partition("/")[0]


def vector_files() -> list[str]:
    """Names of the files in the one schema, sorted."""
    folder = resources.files("minibit") / "vectors"
    files = (path.name for path in folder.iterdir() if path.name.endswith(".json"))
    names = (name.removesuffix(".json") for name in files)
    return sorted(name for name in names if "schema" in read_file(name))


@cache
def read_file(name: str) -> dict[str, Any]:
    """Return a file of vectors (or ``schema``) as JSON."""
    path = resources.files("minibit") / "vectors" / f"{name}.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def cases(module: str | None = None) -> list[Case]:
    """Return the cases of a file, or of all files, in order.

    Examples
    --------
    >>> cases("absmean")[0].call
    'absmean_quantize'
    """
    files = [module] if module else vector_files()
    return [_case(entry) for name in files for entry in read_file(name)["cases"]]


def _case(entry: dict[str, Any]) -> Case:
    """Read one case: lists that do not change become tuples."""
    fixed = {key: tuple(entry[key]) for key in ("flags", "mutations")}
    return Case(**{**entry, **fixed})


def notes(module: str) -> Mapping[str, Mapping[str, str]]:
    """Return what a file says of its flags: what goes wrong, how it shows, who reported it."""
    table: Mapping[str, Mapping[str, str]] = read_file(module)["notes"]
    return table


def functions_named(case: Case) -> set[str]:
    """Return the public names that a case calls, those among its arguments and refusals too.

    Examples
    --------
    >>> functions_named(cases("absmean")[0])
    {'absmean_quantize'}
    """
    own = {case.refuse} if case.refuse and not hasattr(builtins, case.refuse) else set()
    return {case.call, *_named_in(case.args), *own}


def _named_in(value: Any) -> Iterator[str]:
    """Names of functions and makers, at any depth."""
    if isinstance(value, Mapping):
        yield from (value[key] for key in ("function", "make") if isinstance(value.get(key), str))
        for item in value.values():
            yield from _named_in(item)
    elif isinstance(value, list):
        yield from ("derivative",) if value[1:2] == ["derivative"] else ()
        for item in value:
            yield from _named_in(item)
