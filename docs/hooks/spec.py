"""The specification: the law of every test in a sentence, a page for each room, made at build time.

A law is linked to its line in the repository, whose address is ``extra.source`` in ``mkdocs.yml``.
Tables that the tests run over, such as kinks and ties, are laid open below the laws. MkDocs calls
the ``on_*`` functions.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import minibit

ROOT = Path(__file__).resolve().parents[2]
ROOM = {  # of the files that are not named by theirs
    "rules": "dual",
    "logfile": "steps",
    "histories": "steps",
    "writers": "steps",
    "costs": "transformer",
    "decoding": "transformer",
    "paged": "lora",
    "gguf": "checkpoint",
    "gguf_file": "checkpoint",
    "conform": "conformance",
    "ports": "conformance",
    "vectors": "conformance",
    "compiling": "kernels",
    "threads": "kernels",
    "kernel_bounds": "kernels",
    "checks": "base",
    "small": "base",
    "strict_json": "base",
    "whole_file": "base",
}


@dataclass(frozen=True)
class Tests:
    """A file of tests: its first sentence, its laws by name with their lines, and its tables."""

    file: str
    about: str
    laws: list[tuple[str, str, int]]  # name, law, line
    tables: list[tuple[str, str, int]]  # name, source text, line


def tests_of(path: Path) -> Tests:
    """Read the laws of a file, and the tables that its parametrized tests run over."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    tests = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    over = {
        name.id
        for test in tests
        for decorator in test.decorator_list
        for name in ast.walk(decorator)
        if isinstance(name, ast.Name)
    }
    tables = [
        (node.targets[0].id, ast.get_source_segment(text, node) or "", node.lineno)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Dict | ast.List)
        and node.targets[0].id in over
    ]
    laws = [
        (test.name, " ".join((ast.get_docstring(test) or "").split()), test.lineno)
        for test in sorted(tests, key=lambda test: test.lineno)
    ]
    about = (ast.get_docstring(tree) or "").partition("\n")[0]
    return Tests(path.relative_to(ROOT).as_posix(), about, laws, tables)


def room_of(path: Path) -> str:
    """Return the room that a file of tests is about; the package where it is about no one room."""
    name = path.stem.removeprefix("test_").removesuffix("_peers")
    rooms = {*minibit.ORDER, *minibit.SUPPORT, "base", "kernels"}
    first = next((room for room in rooms if name == room or name.startswith(f"{room}_")), "")
    return ROOM.get(name) or (name if name in rooms else first) or "package"


@cache
def specification() -> dict[str, list[Tests]]:
    """Return the files of tests by room, in the order of the chapters."""
    order = [*minibit.ORDER, "base", "kernels", *minibit.SUPPORT, "package"]
    rooms: dict[str, list[Tests]] = {room: [] for room in order}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        rooms[room_of(path)].append(tests_of(path))
    return {room: files for room, files in rooms.items() if files}


def plain(text: str) -> str:
    """Write a sentence as Markdown: outside of code only letters, no marks."""
    pieces = re.split(r"(`+.*?`+)", text)
    return "".join(
        piece if piece.startswith("`") else re.sub(r"([<>*_\[\]|$\\])", r"\\\1", piece)
        for piece in pieces
    )


def page(room: str, files: list[Tests], source: str) -> str:
    """Write the page of a room."""
    parts = [f"# Laws of {room}"]
    if (ROOT / "docs" / "reference" / f"{room}.md").is_file():
        parts.append(f"What the functions are: [reference](../reference/{room}.md).")
    for tests in files:
        parts += [f"## {Path(tests.file).stem}", plain(tests.about)]
        address = f"{source}/{tests.file}"
        parts.append(
            "\n".join(
                f"- [`{name.removeprefix('test_')}`]({address}#L{line}) {plain(law)}"
                for name, law, line in tests.laws
            )
        )
        for name, text, line in tests.tables:
            ticks = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text) or [""]))
            heading = f"The table `{name}`, [in the tests]({address}#L{line}):"
            parts.append(f"{heading}\n\n{ticks}python\n{text}\n{ticks}")
    return "\n\n".join(parts) + "\n"


def index(rooms: dict[str, list[Tests]]) -> str:
    """Write the table of the rooms."""
    rows = [
        f"| [{room}]({room}.md) | {sum(len(tests.laws) for tests in files)} "
        f"| {', '.join(f'`{Path(tests.file).name}`' for tests in files)} |"
        for room, files in rooms.items()
    ]
    return "\n".join(["| room | laws | files |", "|---|---|---|", *rows])


def on_config(config: Any) -> Any:
    """Put the laws behind the reference in the navigation."""
    names = [next(iter(entry)) for entry in config.nav]
    pages = [{room: f"spec/{room}.md"} for room in specification()]
    config.nav.insert(names.index("Reference") + 1, {"Laws": ["spec/index.md", *pages]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add a page of laws for each room."""
    from mkdocs.structure.files import File

    for room, tests in specification().items():
        text = page(room, tests, config.extra["source"])
        files.append(File.generated(config, f"spec/{room}.md", content=text))
    return files


def links(room: str) -> Iterator[str]:
    """Yield the line that leads from a page about a room to its laws."""
    files = specification().get(room, [])
    if count := sum(len(tests.laws) for tests in files):
        yield f"\n\n[The {count} laws of {room}](../spec/{room}.md), a sentence for each test.\n"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the table of rooms; lead from reference pages and chapters to their laws."""
    if page.file.src_uri == "spec/index.md":
        return markdown.replace("<!-- rooms -->", index(specification()))
    if match := re.fullmatch(r"(?:reference/|chapters/ch\d+_)(\w+)\.md", page.file.src_uri):
        return markdown + "".join(links(match[1]))
    return markdown
