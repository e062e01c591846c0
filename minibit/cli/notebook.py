"""Chapters cut into cells, and the notebook that holds the same cells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple


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


def notebook(script: str) -> str:
    """Return a script's cells as a Jupyter notebook (nbformat 4.5): JSON, with nothing run yet."""
    cells: list[dict[str, object]] = []
    for number, (kind, _, text, tags) in enumerate(split_cells(script)):
        cell: dict[str, object] = {
            "cell_type": kind,
            "id": f"cell-{number}",
            "metadata": {"tags": [*tags]} if tags else {},
            "source": text.splitlines(keepends=True),
        }
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
