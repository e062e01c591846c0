"""What every page tells a search engine, and the table of notebooks.

A page without a description of its own gets its first sentences as one. The table of
docs/notebooks.md names every chapter with what there is to download. MkDocs calls
`on_page_markdown`.
"""

from __future__ import annotations

import re
from typing import Any

from chapters import chapter_files, first_heading

NOTEBOOKS = "<!-- notebooks -->"
LENGTH = 200  # characters of a description, about what a list of hits shows


def description(markdown: str) -> str:
    """Return the first sentences of a page, without marks."""
    text = next(
        (
            paragraph
            for paragraph in re.split(r"\n\s*\n", markdown)
            if re.match(r"\s*(?:\*\*)?[A-Z0-9`]", paragraph)
        ),
        "",
    )
    text = re.sub(
        r"\[([^\]]*)\]\([^)]*\)(?:\{[^}]*\})?", r"\1", text.replace("**The question.**", "")
    )
    text = " ".join(re.sub(r"[*`$]|\\[a-z]+", "", text).split())
    if len(text) <= LENGTH:
        return text
    ends = [match.end() for match in re.finditer(r"[.?!](?= )", text) if match.end() <= LENGTH]
    return text[: ends[-1]] if ends else f"{text[:LENGTH].rpartition(' ')[0]} ..."


def notebooks() -> str:
    """Write the table of the chapters with their downloads."""
    rows = ["| chapter | notebook | script |", "|---|---|---|"]
    for file in chapter_files():
        name, title = file.stem, first_heading(file)
        rows.append(
            f"| [{title}](chapters/{name}.md) | [{name}.ipynb](chapters/{name}.ipynb) "
            f"| [{name}.py](chapters/{name}.py) |"
        )
    return "\n".join(rows)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Describe a page that does not describe itself; write the table of notebooks."""
    page.meta.setdefault("description", description(markdown))
    return markdown.replace(NOTEBOOKS, notebooks()) if NOTEBOOKS in markdown else markdown
