"""The specification: the law of every test in a sentence, a page for each room, made at build time.

A law leads to its test, on a page of its file that is made here, too. Tables that the tests run
over, such as kinks and ties, are laid open below the laws. MkDocs calls the ``on_*`` functions.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from laws import ROOT, Tests, all_tests

import minibit

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


def room_of(path: Path) -> str:
    """Return the room that a file of tests is about; the package where it is about no one room."""
    name = path.stem.removeprefix("test_").removesuffix("_peers")
    rooms = {*minibit.ORDER, *minibit.SUPPORT, "base", "kernels"}
    first = max((room for room in rooms if name.startswith(f"{room}_")), key=len, default="")
    return ROOM.get(name) or (name if name in rooms else first) or "package"


@cache
def specification() -> dict[str, list[Tests]]:
    """Return the files of tests by room, in the order of the chapters."""
    order = [*minibit.ORDER, "base", "kernels", *minibit.SUPPORT, "package"]
    rooms: dict[str, list[Tests]] = {room: [] for room in order}
    for tests in all_tests():
        rooms[room_of(tests.path)].append(tests)
    return {room: files for room, files in rooms.items() if files}


def plain(text: str) -> str:
    """Write a sentence as Markdown: outside of code only letters, no marks."""
    pieces = re.split(r"(`+.*?`+)", text)
    return "".join(
        piece
        if piece.startswith("`")
        else re.sub(r"([*_\[\]|$\\])", r"\\\1", html.escape(piece, quote=False))
        for piece in pieces
    )


def fenced(code: str) -> str:
    """Put code in a fence longer than any run of backticks inside it."""
    ticks = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", code) or [""]))
    return f"{ticks}python\n{code}\n{ticks}"


def page(room: str, files: list[Tests]) -> str:
    """Write the page of a room."""
    parts = [f"# Laws of {room}"]
    if (ROOT / "docs" / "reference" / f"{room}.md").is_file():
        parts.append(f"What the functions are: [reference](../reference/{room}.md).")
    for tests in files:
        parts += [f"## {tests.stem}", plain(tests.about)]
        parts.append(
            "\n".join(
                f"- [`{law.name.removeprefix('test_')}`](../tests/{tests.stem}.md#{law.name}) "
                f"{plain(law.sentence)}"
                for law in tests.laws
            )
        )
        for name, text, _ in tests.tables:
            parts += [f"The table `{name}`:", fenced(text)]
    return "\n\n".join(parts) + "\n"


def tests_page(tests: Tests, source: str | None) -> str:
    """Write the page of a file of tests: each with its sentence and its code.

    `source` is where the repository shows its files, if it has an address.
    """
    address = f"{source}/{tests.file}"
    where = f" It is [in the repository]({address}), too." if source else ""
    parts = [
        "---\nsearch:\n  exclude: true\n---",
        f"# Tests: {tests.stem.removeprefix('test_')}",
        f"`pytest {tests.file}` runs them; [their laws](../spec/{room_of(tests.path)}.md) are on "
        f"one page.{where}",
    ]
    for law in tests.laws:
        line = f" [Line {law.line}]({address}#L{law.line})." if source else ""
        parts += [f"## {law.name}", plain(law.sentence) + line, fenced(law.code)]
    return "\n\n".join(parts) + "\n"


def index(rooms: dict[str, list[Tests]]) -> str:
    """Write the table of the rooms."""
    rows = [
        f"| [{room}]({room}.md) | {sum(len(tests.laws) for tests in files)} "
        f"| {', '.join(f'[`{tests.path.name}`](../tests/{tests.stem}.md)' for tests in files)} |"
        for room, files in rooms.items()
    ]
    return "\n".join(["| room | laws | files |", "|---|---|---|", *rows])


def on_config(config: Any) -> Any:
    """Put the laws behind the reference in the navigation."""
    names = [next(iter(entry)) for entry in config.nav]
    pages = [{room: f"spec/{room}.md"} for room in specification()]
    config.nav.insert(
        names.index("Reference") + 1, {"Laws": ["spec/index.md", "spec/judged.md", *pages]}
    )
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add a page of laws for each room, and one of tests for each of their files."""
    from mkdocs.structure.files import File

    for room, tests in specification().items():
        files.append(File.generated(config, f"spec/{room}.md", content=page(room, tests)))
    for file in all_tests():
        text = tests_page(file, config.extra.get("source"))
        files.append(File.generated(config, f"tests/{file.stem}.md", content=text))
    return files


def links(room: str) -> Iterator[str]:
    """Yield the line that leads from a chapter to the laws of its room."""
    files = specification().get(room, [])
    if count := sum(len(tests.laws) for tests in files):
        yield f"\n\n[The {count} laws of {room}](../spec/{room}.md), a sentence for each test.\n"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the table of rooms; lead from chapters to their laws."""
    if page.file.src_uri == "spec/index.md":
        return markdown.replace("<!-- rooms -->", index(specification()))
    room = re.fullmatch(r"spec/(\w+)\.md", page.file.src_uri)
    if room and room[1] in specification():
        page.meta["title"] = f"Laws of {room[1]}"  # the reference page has the room's name
    match = re.fullmatch(r"chapters/ch(\d\d)[a-z]?_\w+\.md", page.file.src_uri)
    if match and int(match[1]):  # chapter 0 is of no room
        return markdown + "".join(links(minibit.ORDER[int(match[1]) - 1]))
    return markdown
