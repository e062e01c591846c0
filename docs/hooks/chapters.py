"""Chapters as pages: each is run once, and its page is its text, its code and what it printed.

A chapter is a plain script cut into cells by ``# %%`` (code) and ``# %% [markdown]`` (text). For
the site, each one runs as a notebook, from top to bottom in a process of its own that begins in an
empty folder and leaves it empty. After every cell, what it printed and the figures that it left
open are kept; a cell that raises (a failing ``assert``, say) fails the build. What a chapter came
to is kept in ``.cache/book`` under a hash of all that it was made from, so that the next build runs
only what has changed or failed; the tests that run the notebooks keep it there, too. The navigation
is made from the chapters and reference pages that exist.

MkDocs calls the ``on_*`` functions. The rest needs only the standard library, and matplotlib for
the chapters that draw.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import minibit
from minibit.base import whole_path
from minibit.cli.notebook import (
    SOLUTION,
    chapter_notebook,
    check_line,
    notebook,
    solutions_of,
    split_cells,
)
from minibit.results import chapter_number

log = logging.getLogger("mkdocs.hooks.chapters")
ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "book"
SECONDS = 900  # the longest that a chapter may run, on a busy machine too


def describe(figure: Any) -> str:
    """Say in words what a figure shows: its titles, and what its axes measure."""
    parts = [figure.get_suptitle()]
    for axes in figure.axes:
        titles = [axes.get_title(loc=place) for place in ("left", "center", "right")]
        measured = " against ".join(filter(None, (axes.get_ylabel(), axes.get_xlabel())))
        parts.append(": ".join(filter(None, (*titles, measured))))
    return "; ".join(dict.fromkeys(" ".join(part.split()) for part in parts if part))


def take_figures(folder: Path, start: int) -> list[tuple[str, str]]:
    """Save every open figure as ``figure<N>.svg`` and close it: its file name and what it shows.

    That is its label (``figure.set_label``), a sentence of what one sees, else `describe` of it.
    """
    if "matplotlib.pyplot" not in sys.modules:
        return []
    from matplotlib import pyplot as plt

    figures = []
    for number in plt.get_fignums():
        figure = plt.figure(number)
        name = f"figure{start + len(figures)}.svg"
        with plt.rc_context({"svg.hashsalt": name}):
            figure.savefig(folder / name, metadata={"Date": None}, bbox_inches="tight")
        seen = figure.get_label() if isinstance(figure.get_label(), str) else ""
        figures.append((name, seen or describe(figure) or f"Figure {start + len(figures)}"))
    plt.close("all")
    return figures


def run_cells(path: Path, folder: Path) -> list[dict[str, Any]]:
    """Run a chapter's notebook in this process and return its cells with results.

    It does what a kernel does: all cells of code, in one fresh namespace that has no file.
    Solutions come last, as they do in a notebook.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    results: list[dict[str, Any]] = []
    shown = 0
    files = [file for file in (path, solutions_of(path)) if file]
    texts = [file.read_text(encoding="utf-8") for file in files]
    both = zip(files, map(split_cells, texts), strict=True)
    pieces = [(file, cell) for file, cells in both for cell in cells]
    book = json.loads(notebook(*texts))["cells"]
    for (file, (kind, first, text, tags)), cell in zip(pieces, book, strict=True):
        result: dict[str, Any] = {"kind": kind, "text": text, "output": "", "figures": []}
        result |= {"folded": "hide-input" in tags, "solution": file != path}
        if cell["cell_type"] == "code":
            printed = io.StringIO()
            try:
                # Leading newlines keep the line numbers of a traceback those of the script.
                source = "\n" * (first - 1) + "".join(cell["source"])
                code = compile(source, str(file), "exec", dont_inherit=True)
                with contextlib.redirect_stdout(printed):
                    exec(code, namespace)
                result["figures"] = take_figures(folder, shown + 1)
            except BaseException:
                sys.stderr.write(printed.getvalue())
                traceback.print_exc()
                raise SystemExit(1) from None
            shown += len(result["figures"])
            result["output"] = printed.getvalue().rstrip()
        results.append(result)
    return results


def fingerprint(path: Path) -> str:
    """Hash what a chapter's page is made from: scripts, package, recorded results, this file."""
    package = (file for file in (ROOT / "minibit").rglob("*") if "__pycache__" not in file.parts)
    results = (ROOT / "chapters" / "results").glob("*.json")
    whole = hashlib.sha256(f"{platform.python_version()} {np.__version__}".encode())
    for file in [path, solutions_of(path), Path(__file__), *sorted(results), *sorted(package)]:
        if file and file.is_file():
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            whole.update(f"{file.name} {digest}\n".encode())
    return whole.hexdigest()[:32]


Results = tuple[list[dict[str, Any]], dict[str, bytes]]


def finished_chapter(path: Path, cache: Path) -> Results:
    """Return what `run_chapter` does, from the cache if nothing has changed since it was kept."""
    kept = cache / f"{path.stem}-{fingerprint(path)}"
    return read_results(kept) if kept.exists() else kept_chapter(path, cache)


def kept_chapter(path: Path, cache: Path, packages: Path | None = None) -> Results:
    """Run a chapter, and keep what it came to in place of what the cache had of it."""
    kept = cache / f"{path.stem}-{fingerprint(path)}"
    start = time.perf_counter()
    cells, figures = run_chapter(path, packages)
    log.info("%s ran in %.1f s", path.name, time.perf_counter() - start)
    for old in cache.glob(f"{path.stem}-*"):
        shutil.rmtree(old)
    cache.mkdir(parents=True, exist_ok=True)
    with whole_path(kept) as folder:
        (folder / "figures").mkdir(parents=True)
        (folder / "cells.json").write_text(json.dumps(cells), encoding="utf-8")
        for name, svg in figures.items():
            (folder / "figures" / name).write_bytes(svg)
    return read_results(kept)


def read_results(folder: Path) -> Results:
    """Read the cells and figures of a chapter that has run."""
    cells = json.loads((folder / "cells.json").read_text(encoding="utf-8"))
    return cells, {file.name: file.read_bytes() for file in sorted((folder / "figures").iterdir())}


# A notebook's process was started with no script; `style(show=True)` asks for that.
START = "import runpy, sys; runpy.run_path(sys.argv[1])['run_here'](*sys.argv[2:])"


def run_chapter(path: Path, packages: Path | None = None) -> Results:
    """Run a chapter in a process of its own: its cells, and the figures by file name.

    The process imports minibit as this one does, or from the folder `packages`. The chapter begins
    in an empty folder; files that it leaves there are a RuntimeError, as any failure of it is.
    """
    settings = {"MPLBACKEND": "svg"} | ({"PYTHONPATH": str(packages)} if packages else {})
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work).resolve()
        for name in ("figures", "empty"):
            (folder / name).mkdir()
        command = [sys.executable, "-W", "error", "-c", START, __file__, str(path), str(folder)]
        done = subprocess.run(
            command,
            cwd=folder / "empty",
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=SECONDS,
        )
        if done.returncode:
            raise RuntimeError(f"{path.name} failed:\n{done.stdout}")
        if left := [file.name for file in (folder / "empty").iterdir()]:
            raise RuntimeError(f"{path.name} failed: it leaves {', '.join(sorted(left))} behind")
        return read_results(folder)


def run_here(script: str, folder: str) -> None:
    """Run a chapter in the process that `run_chapter` has started."""
    results = run_cells(Path(script), Path(folder) / "figures")
    (Path(folder) / "cells.json").write_text(json.dumps(results), encoding="utf-8")


def fenced(text: str, *classes: str) -> str:
    """Put `text` in a fence longer than any run of backticks inside it."""
    ticks = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text) or [""]))
    return f"{ticks}{{ {' '.join('.' + name for name in classes)} }}\n{text}\n{ticks}"


def page(name: str, cells: list[dict[str, Any]], solutions: Sequence[dict[str, Any]] = ()) -> str:
    """Write the Markdown of a chapter that has run; its figures are in the folder `name`.

    Each solution is folded below its exercise.
    """
    number, idea = chapter_number(name), name.partition("_")[2]
    room, module = dict(enumerate(minibit.ORDER, 1)).get(int(name[2:4]), ""), ""
    if room:
        part = f".{idea}" if [*(ROOT / "minibit" / room).glob(f"{idea}*")] else ""
        module = f", module [`minibit.{room}{part}`](../reference/{room}.md)"
    under_title = (
        f'<p class="chapter-line" markdown>Chapter {number}{module}; to run it yourself: '
        f"[script]({name}.py), [notebook]({name}.ipynb)</p>"
    )
    text = "\n\n".join(part for cell in cells for part in parts_of(cell, name))
    text = with_solutions(text, solutions, name, check_line(number, room))
    title, _, rest = text.partition("\n")
    return f"{title}\n\n{under_title}\n\n{rest}\n"


def parts_of(cell: dict[str, Any], name: str) -> list[str]:
    """Write the Markdown of one cell: text, or code, what it printed and what it drew."""
    if cell["kind"] == "markdown":
        return [cell["text"]]
    parts = [fenced(cell["text"], "python")]
    if cell["folded"]:
        parts = [folded("The code of this picture", parts)]
    if cell["output"]:
        parts.append(fenced(cell["output"], "text", "output"))
    for file, alternative in cell["figures"]:
        alternative = re.sub(r"[\[\]\\$*_<>]", "", alternative)
        parts.append(f"![{alternative}]({name}/{file}){{ .figure }}")
    return parts


def folded(summary: str, parts: list[str]) -> str:
    """Fold Markdown away under a line that opens it."""
    inside = "\n\n".join(parts)
    return f'<details markdown="block"><summary>{summary}</summary>\n\n{inside}\n\n</details>'


def with_solutions(text: str, solutions: Sequence[dict[str, Any]], name: str, last: str) -> str:
    """Fold each solution below its exercise, a number of the list, and put `last` after them.

    Cells before the first solution, such as imports, go with it.
    """
    match = re.search(r"(?<=\*\*Exercises\.\*\*\n\n)1\. (?:.+\n?|\n(?=\d+\. |   ))+", text)
    if match is None:
        return text
    groups: dict[int, list[str]] = {}
    group: list[str] = []
    for cell in solutions:
        if found := SOLUTION.match(cell["text"]):
            group = [cell["text"][found.end() :], *([] if groups else group)]
            groups[int(found[1])] = group
        elif not cell["text"].startswith("# "):  # the title of the script
            group += parts_of(cell, name)
    items = []
    for number, exercise in enumerate(re.split(r"^\d+\. ", match[0], flags=re.MULTILINE)[1:], 1):
        inside = [re.sub(r"^ {3}", "", exercise, flags=re.MULTILINE).strip()]
        if number in groups:
            inside.append(folded("Solution", groups[number]))
        items += ['<li markdown="block">', *inside, "</li>"]
    listed = "\n\n".join(['<ol markdown="block">', *items, "</ol>", last])
    return f"{text[: match.start()]}{listed}\n\n{text[match.end() :].lstrip()}"


def first_heading(path: Path) -> str:
    """Return the title of a Markdown page or of a chapter."""
    found = re.search(r"^(?:# )?# (?!%%)(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1].strip() if found else path.stem


def chapter_files() -> list[Path]:
    """Return the chapters that exist, in order."""
    return sorted((ROOT / "chapters").glob("ch[0-9][0-9]*_*.py"))


def navigation(docs: Path) -> list[dict[str, Any]]:
    """Make the navigation from the files that exist."""
    pages = {file.stem: {first_heading(file): file.name} for file in sorted(docs.glob("*.md"))}

    def taken(*names: str) -> list[dict[str, str]]:
        return [pages.pop(name) for name in names if name in pages]

    place = {room: number for number, room in enumerate((*minibit.ORDER, *minibit.SUPPORT))}
    reference = sorted(
        (docs / "reference").glob("*.md"), key=lambda file: (place.get(file.stem, 99), file.stem)
    )
    chapters = [
        {f"{chapter_number(file.stem)}. {first_heading(file)}": f"chapters/{file.stem}.md"}
        for file in chapter_files()
    ]
    words = [*taken("notebooks", "glossary"), {"References": "references.md"}]
    del pages["index"]
    return [
        {"Home": "index.md"},
        {"Start": taken("getting_started", "command_line", "playground_guide")},
        {"Chapters": [*chapters, *words]},
        {"Results": taken("results", "benchmarks", "comparison")},
        {"Reference": [{file.stem: f"reference/{file.name}"} for file in reference]},
        {
            "Formats and ports": taken(
                "log_format", "formats", "porting", "ports", "reliability", *pages
            )
        },
        {"Project": [{"Contributing": "contributing.md"}, {"Changelog": "changelog.md"}]},
    ]


def on_config(config: Any) -> Any:
    """Set the navigation (MkDocs calls this first)."""
    config.nav = [entry for entry in navigation(Path(config.docs_dir)) if all(entry.values())]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Run the chapters and add their pages, figures and scripts to the site's files."""
    from mkdocs.exceptions import PluginError
    from mkdocs.structure.files import File

    def add(uri: str, content: str | bytes) -> None:
        files.append(File.generated(config, uri, content=content))

    for path in chapter_files():  # one at a time: chapters measure
        try:
            cells, figures = finished_chapter(path, CACHE)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            raise PluginError(f"a chapter failed, so there is no site: {error}") from error
        solved = [cell for cell in cells if cell["solution"]]
        cells = [cell for cell in cells if not cell["solution"]]
        add(f"chapters/{path.stem}.md", page(path.stem, cells, solved))
        add(f"chapters/{path.name}", path.read_bytes())
        add(f"chapters/{path.stem}.ipynb", chapter_notebook(path))
        for name, svg in figures.items():
            add(f"chapters/{path.stem}/{name}", svg)
    for name in ("CONTRIBUTING", "CHANGELOG"):
        add(f"{name.lower()}.md", (ROOT / f"{name}.md").read_text(encoding="utf-8"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let a search find chapters and terms first, then guides and reference, tests last."""
    place = page.file.src_uri
    boost = 8 if place.startswith("chapters/") else 4 if place == "glossary.md" else 1
    if place.startswith(("reference/", "tests/", "spec/", "changelog")):
        boost = 0.1
    page.meta.setdefault("search", {}).setdefault("boost", boost)
    return markdown


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Leave a chapter's code and output out of the search; end a sentence before a block by ``:``.

    A docstring has ``::`` there.
    """
    if page.file.src_uri.startswith("chapters/"):
        html = re.sub(
            r'<div class="(language-\w+|output)', r'<div data-search-exclude class="\1', html
        )
    return html.replace("::</p>", ":</p>")
