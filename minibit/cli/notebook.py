"""Chapters cut into cells, the solutions of their exercises, and notebooks that hold both.

A chapter ``chNN_name.py`` has its solutions in ``solutions/chNN_name.py`` beside it: a script of
the same form, in which the text of solution 3 begins with ``**3.**``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from minibit.results import chapter_number

SOLUTION = re.compile(r"\*\*(\d+)\.\*\* ")  # how the text of a solution begins


class Cell(NamedTuple):
    """A piece of a script: ``"markdown"`` or ``"code"``, the number of its first line, its tags."""

    kind: str
    first: int
    text: str
    tags: tuple[str, ...] = ()  # "hide-input": the code is folded away, what it draws is not


def split_cells(script: str) -> list[Cell]:
    """Cut a script at its lines ``# %%`` (code) and ``# %% [markdown]`` (text).

    ``# %% tags=["hide-input"]`` gives a cell of code a tag, as Jupytext writes it.

    Text loses its comment signs. A cell without text is left out, and so are empty lines at the
    ends of a cell. Lines are counted from 1.
    """
    cells: list[tuple[str, int, list[str], tuple[str, ...]]] = [("code", 1, [], ())]
    for number, line in enumerate(script.splitlines(), start=1):
        if marker := re.fullmatch(r"# ?%%\s*(\[markdown\])?(?:tags=(\[.*\]))?\s*", line):
            kind = "markdown" if marker[1] else "code"
            cells.append((kind, number + 1, [], tuple(json.loads(marker[2] or "[]"))))
        else:
            cells[-1][2].append(line)
    return list(_with_text(cells))


def _with_text(cells: list[tuple[str, int, list[str], tuple[str, ...]]]) -> Iterator[Cell]:
    for kind, first, lines, tags in cells:
        if kind == "markdown":
            lines = [re.sub(r"^# ?", "", line) for line in lines]
        if any(line.strip() for line in lines):
            while not lines[0].strip():
                lines, first = lines[1:], first + 1
            yield Cell(kind, first, "\n".join(lines).rstrip(), tags)


def solutions_of(chapter: Path) -> Path | None:
    """Return the script of a chapter's solutions, where there is one."""
    path = chapter.parent / "solutions" / chapter.name
    return path if path.is_file() else None


def room_of(stem: str) -> str:
    """Return the room that a chapter's file is about; chapter 0 is about none."""
    from minibit import ORDER

    match = re.match(r"ch(\d\d)[a-z]?_", stem)
    return dict(enumerate(ORDER, 1)).get(int(match[1]), "") if match else ""


def check_line(number: str, room: str) -> str:
    """Say how a reader's own file is checked against a chapter's vectors; none, no text."""
    from minibit.conformance import cases_of

    cases = cases_of(room)
    command = f"minibit chapters {number} --check my_{room}.py"
    return (
        f"**Your own version.** Write what this chapter explains in a file of your own, under the "
        f"same names; `{command}` holds it against the {len(cases)} cases of this chapter and says "
        f"what conforms and what deviates."
        if cases
        else ""
    )


def chapter_notebook(path: Path) -> str:
    """Return a chapter as a notebook, its solutions and the way to check one's own file last."""
    solutions = solutions_of(path)
    last = check_line(chapter_number(path.stem), room_of(path.stem))
    solved = solutions.read_text(encoding="utf-8") if solutions else ""
    return notebook(path.read_text(encoding="utf-8"), solved, last)


def notebook(script: str, solutions: str = "", last: str = "") -> str:
    """Return a script's cells as a Jupyter notebook (nbformat 4.5): JSON, with nothing run yet.

    Code of pictures and of solutions is folded, and so is a solution's text. `last` is a last text.
    """
    parts = [*split_cells(script)]
    for kind, first, text, tags in split_cells(solutions):
        if found := SOLUTION.match(text):
            summary = f"<details><summary>Solution {found[1]}</summary>"
            text = f"{summary}\n\n{text[found.end() :]}\n\n</details>"
        parts.append(Cell(kind, first, text, (*tags, "solution")))
    parts += [Cell("markdown", 0, last)] if last else []
    cells: list[dict[str, object]] = []
    for number, (kind, _, text, tags) in enumerate(parts):
        folded = (
            {"jupyter": {"source_hidden": True}} if {"hide-input", "solution"} & {*tags} else {}
        )
        cell: dict[str, object] = {
            "cell_type": kind,
            "id": f"cell-{number}",
            "metadata": {"tags": [*tags], **(folded if kind == "code" else {})} if tags else {},
            "source": text.splitlines(keepends=True),
        }
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
