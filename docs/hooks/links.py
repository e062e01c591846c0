"""Links that nobody writes: words of a page that name another page become links to it.

    chapter 7                     the chapter's page
    arXiv:2402.17764              the paper
    `test_scale_is_free`          the test, on the page of its file
    `tests/test_noise.py`         likewise
    `minibit/vectors/noise.json`  the file
    `minibit.noise.words`         its place in the reference
    perturbation                  its entry in the glossary, where a page first has the word

Headings, code blocks, formulas and what is a link already stay as they are. The page of references
is made here, too, from the sources at the end of the chapters, and so is what to read next, from
the reading map of chapter 0. MkDocs calls the ``on_*`` functions.
"""

from __future__ import annotations

import functools
import html
import importlib
import re
from pathlib import Path
from typing import Any

from laws import ROOT, all_tests

import minibit
from minibit.results import chapter_number

QUIET = ("a", "pre", "h1", "h2", "h3", "h4", "button", "script", "style", "svg")
WITH_TERMS = re.compile(r"(chapters/|index|getting_started|command_line|log_format|porting)")
MAP = "<!-- reading map -->"


def chapter_pages() -> dict[str, str]:
    """Return the page of each chapter by its number, as "7" or "7b"."""
    files = sorted((ROOT / "chapters").glob("ch[0-9][0-9]*_*.py"))
    return {chapter_number(file.stem): f"chapters/{file.stem}/" for file in files}


def chapter_text(number: str) -> str:
    """Return the text of a chapter, without its code."""
    script = (ROOT / chapter_pages()[number].rstrip("/")).with_suffix(".py")
    text = script.read_text(encoding="utf-8")
    return "\n".join(re.sub("^# ?", "", line) for line in text.split("\n") if line[:1] == "#")


def test_target(word: str, page: str) -> str | None:
    """Return where a test or a file of tests is shown; None if `word` names neither.

    Of tests with the same name, the one in the file of the page's own room is meant.
    """
    match = re.fullmatch(r"(?:(tests/[\w/]+)\.py)?(?:::)?(test_\w+)?", word)
    if not match or not word:
        return None
    path, name = match.groups()
    for tests in all_tests():
        if path in (None, tests.file.removesuffix(".py")) and (
            (path and not name) or name == tests.stem
        ):
            return f"tests/{tests.stem}/"
    names = {tests.stem for tests in all_tests() if name in (law.name for law in tests.laws)}
    if path:
        names &= {Path(path).name}
    own = set()
    if match := re.match(r"chapters/ch(\d\d)[a-z]?_(\w+)/", page):
        room = dict(enumerate(minibit.ORDER, 1)).get(int(match[1]), "")
        own = names & {f"test_{room}", f"test_{room}_peers", f"test_{match[2]}"}
    return next((f"tests/{stem}/#{name}" for stem in sorted(own or names)), None)


def module_target(word: str) -> str | None:
    """Return where the reference has a module or one of its public names."""
    parts = word.split(".")
    if parts[0] != "minibit" or len(parts) < 2:
        return None
    room = parts[1]
    if not (ROOT / f"docs/reference/{room}.md").is_file():
        return None
    public = getattr(importlib.import_module(f"minibit.{room}"), "__all__", ())
    anchor = f"#{word}" if len(parts) == 3 and parts[2] in public else ""
    return f"reference/{room}/{anchor}"


def code_target(word: str, page: str) -> str | None:
    """Return the address of what a piece of code names, from the site's root."""
    if match := re.fullmatch(r"minibit/(vectors/\w+\.json)", word):
        return match[1] if (ROOT / word).is_file() else None
    return module_target(word) or test_target(word, page)


@functools.cache
def glossary() -> list[tuple[re.Pattern[str], str, re.Pattern[str]]]:
    """Return a pattern for the names of each entry, its anchor, and a pattern for pages."""
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    entries = []
    for paragraph in text.split("\n\n"):
        match = re.search(r"\n\{ #([\w-]+)(?: data-pages=\"([^\"]*)\")? \}$", paragraph.rstrip())
        if match:
            head = paragraph.partition(". ")[0]
            names = sorted(re.findall(r"\*\*(.+?)\*\*", head), key=len, reverse=True)
            words = "|".join(re.escape(name).replace(r"\ ", r"\s+") for name in names)
            pages = "|".join((match[2] or "").split())
            pattern = re.compile(rf"(?<![\w-])(?:{words})(?:s|es)?(?![\w-])", re.IGNORECASE)
            entries.append((pattern, match[1], re.compile(pages)))
    return entries


def link(text: str, target: str, page: str, kind: str) -> str:
    """Write a link from one page of the site to another; `text` is HTML."""
    if not target.startswith("https:"):
        target = "../" * page.count("/") + target
    return f'<a class="{kind}" href="{html.escape(target)}">{text}</a>'


def link_words(text: str, page: str, free: dict[str, re.Pattern[str]]) -> str:
    """Link what plain text names; `free` holds the terms that have no link on this page yet."""

    def chapter(match: re.Match[str]) -> str:
        target = chapter_pages().get(match[1])
        return match[0] if target in (None, page) else link(match[0], target, page, "auto")

    def paper(match: re.Match[str]) -> str:
        return link(match[0], f"https://arxiv.org/abs/{match[1]}", page, "auto")

    text = re.sub(r"\b[Cc]hapter (\d+[a-z]?)\b", chapter, text)
    text = re.sub(r"\barXiv[: ](\d{4}\.\d{4,5})\b", paper, text)
    for anchor, pattern in list(free.items()):
        pieces = re.split(r"(<a .*?</a>)", text)
        for number, piece in enumerate(pieces):
            if not piece.startswith("<a ") and (match := pattern.search(piece)):
                there = link(match[0], f"glossary/#{anchor}", page, "term")
                pieces[number] = piece[: match.start()] + there + piece[match.end() :]
                del free[anchor]
                break
        text = "".join(pieces)
    return text


def linked(content: str, page: str) -> str:
    """Return a page's HTML with links; `page` is its address, as ``chapters/ch01_dual/``."""
    free = {}
    if WITH_TERMS.match(page or "index"):
        free = {anchor: words for words, anchor, pages in glossary() if pages.search(page)}
    out, quiet, inline = [], [], False
    for piece in re.split(r"(<[^>]*>)", content):
        if tag := re.match(r"<(/?)(\w+)", piece):
            name = tag[2]
            if tag[1]:
                if quiet and quiet[-1] == name:
                    quiet.pop()
                inline = inline and name != "code"
            elif name in QUIET or "arithmatex" in piece or (quiet and name == quiet[-1]):
                quiet.append(name)
            else:
                inline = inline or name == "code"
        elif not quiet and piece.strip():
            if piece == "Sources.":
                free = {}  # titles stay as they are
            if inline:
                target = code_target(html.unescape(piece), page)
                piece = link(piece, target, page, "auto") if target else piece
            else:
                piece = link_words(piece, page, free)
        out.append(piece)
    return "".join(out)


def reading_map() -> list[tuple[str, list[str]]]:
    """Return what a reader may want and the chapters for it, as chapter 0 lists them."""
    rows = re.findall(r"^\| (.+?) \| ((?:this|chapter) .*?) \|$", chapter_text("0"), re.MULTILINE)
    return [
        (want, ["0"] * row.startswith("this") + re.findall(r"chapter (\d+[a-z]?)", row))
        for want, row in rows
    ]


def read_next(number: str) -> str:
    """Say where the reading map goes on after a chapter."""
    rows = reading_map()
    at = next(row for row, (_, numbers) in enumerate(rows) if number in numbers)
    want, numbers = rows[at]
    later = numbers[numbers.index(number) + 1 :]
    words = [f"chapter {later[0]}"] if later else []
    words += [f"chapter {row[1][0]} ({row[0].partition(':')[0]})" for row in rows[at + 1 :]]
    if not words:
        return "**Read next.** This was the last chapter. [Porting](../porting.md) comes after it."
    title = want.partition(":")[0]
    first, *others = words
    first += f", on the way through {title}" if later else ""
    return f"**Read next.** {first[0].upper()}{first[1:]}." + (
        f" Or {', or '.join(others)}." if others else ""
    )


def sources(number: str) -> list[str]:
    """Return the sources at the end of a chapter, one line each."""
    _, _, text = chapter_text(number).partition("**Sources.**")
    return [
        " ".join(item.split()) for item in re.findall(r"^- (.+(?:\n  .+)*)", text, re.MULTILINE)
    ]


def references_page() -> str:
    """Write the page of references: each source once, with the chapters that use it."""
    used: dict[str, list[str]] = {}
    for number in chapter_pages():
        for source in sources(number):
            used.setdefault(source, []).append(number)
    lines = [
        "# References",
        "Each chapter ends with its sources. Here are all, with the chapters that use them.",
    ]
    for source in sorted(used, key=str.casefold):
        lines.append(f"- {source} {', '.join(f'Chapter {n}' for n in used[source])}.")
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Add what links lead to: vectors and references."""
    from mkdocs.structure.files import File

    for file in sorted((ROOT / "minibit" / "vectors").glob("*.json")):
        uri = f"vectors/{file.name}"
        files.append(File.generated(config, uri, content=file.read_bytes()))
    files.append(File.generated(config, "references.md", content=references_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the reading map on the first page, and what to read next at the end of a chapter."""
    if match := re.fullmatch(r"chapters/(ch\d\d[a-z]?_\w+)\.md", page.file.src_uri):
        return f"{markdown}\n\n{read_next(chapter_number(match[1]))}\n"
    table = [
        f"| {want} | {', '.join(f'chapter {n}' for n in row)} |" for want, row in reading_map()
    ]
    return markdown.replace(MAP, "\n".join(["| you want | chapters |", "|---|---|", *table]))


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Make the links of a page; reference pages have theirs from mkdocstrings."""
    quiet = page.url.startswith(("tests/", "changelog/"))
    return html if quiet else linked(html, page.url)
