"""The tests, read as laws: what the pages of laws, of tests, and the links to them are made of.

This is no hook: `spec` and `links` import it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Law:
    """A test: its name, its law in a sentence, the line of its name, and its code."""

    name: str
    sentence: str
    line: int
    code: str


@dataclass(frozen=True)
class Tests:
    """A file of tests: its first sentence, its laws in order, and the tables that they run over."""

    path: Path
    about: str
    laws: list[Law]
    tables: list[tuple[str, str, int]]  # name, source text, line

    @property
    def file(self) -> str:
        """The path from the root of the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def stem(self) -> str:
        """The name of the file, and of its page in ``tests/``."""
        return self.path.stem


def tests_of(path: Path) -> Tests:
    """Read the laws of a file, and the tables that its parametrized tests run over."""
    text = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.split("\n")
    tests = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    laws, over = [], set()
    for test in sorted(tests, key=lambda test: test.lineno):
        first = min([test.lineno, *(decorator.lineno for decorator in test.decorator_list)])
        code = "\n".join(lines[first - 1 : test.end_lineno])
        sentence = " ".join((ast.get_docstring(test) or "").split())
        laws.append(Law(test.name, sentence, test.lineno, code))
        for decorator in test.decorator_list:
            over |= {node.id for node in ast.walk(decorator) if isinstance(node, ast.Name)}
    tables = [
        (node.targets[0].id, ast.get_source_segment(text, node) or "", node.lineno)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Dict | ast.List)
        and node.targets[0].id in over
    ]
    return Tests(path, (ast.get_docstring(tree) or "").partition("\n")[0], laws, tables)


@cache
def all_tests() -> tuple[Tests, ...]:
    """Read every file of tests."""
    paths = (ROOT / "tests").rglob("test_*.py")
    return tuple(map(tests_of, sorted(paths, key=lambda path: path.stem)))
