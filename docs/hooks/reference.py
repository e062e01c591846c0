"""Reference pages: what they show, in which order, and where they lead.

A page says ``::: minibit.ROOM``; the names that its module offers are shown in the order of their
source: classes and functions, then exceptions, then constants. What only says how another function
is meant, the ``*_reference`` functions, comes at the end of the page. Under the title stand the
chapter, the laws, the tests and the vectors of the room. MkDocs calls `on_page_markdown`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

from laws import ROOT
from spec import specification

import minibit
from chapters import chapter_files, first_heading

DIRECTIVE = re.compile(r"^::: (minibit\.[\w.]+)$", re.MULTILINE)
REFERENCES = """## References

The same in plain NumPy: a few lines each, which say what is meant. The functions above are held to
them.
"""


def offered(module: ModuleType) -> list[str]:
    """Return the names that a module offers: in the order of the source, constants last."""
    text = (ROOT / str(module.__file__)).read_text(encoding="utf-8")
    names = getattr(module, "__all__", None) or defined(text)
    imports = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    order = [alias.name for node in imports for alias in node.names]

    def place(name: str) -> tuple[int, int, int]:
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            return 2, 0, 0
        home = value.__module__
        first = next((i for i, each in enumerate(order) if home_of(module, each) == home), -1)
        error = inspect.isclass(value) and issubclass(value, Exception)
        return int(error), first, inspect.getsourcelines(value)[1]

    return sorted(names, key=place)


def home_of(module: ModuleType, name: str) -> str:
    """Return the module that a name of another comes from."""
    return str(getattr(getattr(module, name, None), "__module__", ""))


def defined(text: str) -> list[str]:
    """Return the classes, functions and constants that a file defines for others."""
    names = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names.append(node.targets[0].id)
    return [name for name in names if not name.startswith("_")]


def directives(path: str, level: int) -> tuple[str, list[str]]:
    """Write the directive of a module with its members; return the references among them, too.

    `level` is that of the members' headings.
    """
    names = offered(importlib.import_module(path))
    members = [name for name in names if not name.endswith("_reference")]
    references = [f"{path}.{name}" for name in names if name.endswith("_reference")]
    options = f"heading_level: {level}\n      members: {json.dumps(members)}"
    return f"::: {path}\n    options:\n      {options}", references


def alone(path: str) -> str:
    """Write the directive of one function."""
    options = "show_root_heading: true\n      show_root_toc_entry: true\n      heading_level: 3"
    return f"::: {path}\n    options:\n      {options}\n      show_root_full_path: false"


@cache
def vectors() -> dict[str, list[str]]:
    """Return the files of vectors by room: that of most of the functions that a file calls."""
    files: dict[str, list[str]] = {}
    for path in sorted((ROOT / "minibit" / "vectors").glob("*.json")):
        cases = json.loads(path.read_text(encoding="utf-8")).get("cases", [])
        named = Counter(case["call"].partition(".")[0] for case in cases)
        counts: Counter[str] = Counter()
        for name, count in named.items():
            known = (
                name
                if name in (*minibit.ORDER, *minibit.SUPPORT)
                else minibit._ROOM_OF.get(name, "")
            )
            counts[path.stem if path.stem in minibit.ORDER else known] += count
        if counts:
            files.setdefault(counts.most_common(1)[0][0], []).append(path.name)
    return files


def leads(room: str) -> Iterator[str]:
    """Yield where a room's page leads."""
    if room in minibit.ORDER:
        start = f"ch{minibit.ORDER.index(room) + 1:02d}"
        several = [file for file in chapter_files() if file.name.startswith(start)]
        told = ", ".join(f"[{first_heading(file)}](../chapters/{file.stem}.md)" for file in several)
        yield f"Chapter{'s' * (len(several) > 1)}: {told}"
    if files := specification().get(room, []):
        count = sum(len(tests.laws) for tests in files)
        told = ", ".join(f"[{tests.stem}](../tests/{tests.stem}.md)" for tests in files)
        yield f"Tests: [{count} laws](../spec/{room}.md) in {told}"
    if names := vectors().get(room, []):
        told = ", ".join(f"[{name}](../vectors/{name})" for name in names)
        yield f"Vectors for ports: {told}"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Order what a page shows, and say where it leads."""
    match = re.fullmatch(r"reference/(\w+)\.md", page.file.src_uri)
    if match is None:
        return markdown
    references: list[str] = []

    def written(found: re.Match[str]) -> str:
        below = "\n## " in markdown[: found.start()]  # in a section of its own
        directive, held = directives(found[1], 3 if below else 2)
        references.extend(held)
        return directive

    title, _, rest = DIRECTIVE.sub(written, markdown).partition("\n")
    lines = "".join(f"<br>{lead}." for lead in leads(match[1])).removeprefix("<br>")
    under_title = f'<p class="chapter-line" markdown>{lines}</p>'
    parts = [title, under_title, rest]
    if references:
        parts += [REFERENCES, *map(alone, dict.fromkeys(references))]
    return "\n\n".join(parts) + "\n"
