"""Chapters cut into cells, and the notebook that holds the same cells."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple


class Cell(NamedTuple):
    """A piece of a script: its ``"markdown"`` or ``"code"``, and the number of its first line."""

    kind: str
    first: int
    text: str


def split_cells(script: str) -> list[Cell]:
    """Cut a script at its lines ``# %%`` (code) and ``# %% [markdown]`` (text).

    Text loses its comment signs. A cell without text is left out, and so are empty lines at the
    ends of a cell. Lines are counted from 1.
    """
    cells: list[tuple[str, int, list[str]]] = [("code", 1, [])]
    for number, line in enumerate(script.splitlines(), start=1):
        if marker := re.fullmatch(r"# ?%%\s*(\[markdown\])?\s*", line):
            cells.append(("markdown" if marker[1] else "code", number + 1, []))
        else:
            cells[-1][2].append(line)
    return list(_with_text(cells))


def _with_text(cells: list[tuple[str, int, list[str]]]) -> Iterator[Cell]:
    for kind, first, lines in cells:
        if kind == "markdown":
            lines = [re.sub(r"^# ?", "", line) for line in lines]
        if any(line.strip() for line in lines):
            while not lines[0].strip():
                lines, first = lines[1:], first + 1
            yield Cell(kind, first, "\n".join(lines).rstrip())


def notebook(script: str) -> str:
    """Return a script's cells as a Jupyter notebook (nbformat 4.5): JSON, with nothing run yet."""
    cells: list[dict[str, object]] = []
    for number, (kind, _, text) in enumerate(split_cells(script)):
        cell: dict[str, object] = {
            "cell_type": kind,
            "id": f"cell-{number}",
            "metadata": {},
            "source": text.splitlines(keepends=True),
        }
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
