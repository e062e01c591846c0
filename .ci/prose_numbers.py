"""Where each number in a chapter's prose comes from: ``python .ci/prose_numbers.py [CHAPTER...]``.

A number is

    computed   a literal of the page's code, or in what its code printed, or between the bounds of
               an assert, rounded as the text rounds it
    recorded   in a file of results that the page loads
    cited      in a paragraph that names a source of the chapter
    defined    what a word means or a format fixes: `DEFINED`, each with its reason

and the script fails for any that is none of these. Whole numbers of one digit that measure nothing
("two panels, 3 of them") are counting and are left out, and so are formulas' whole numbers, code,
names (``b1.58``, ``GPT-3``, ``221k``), numbers of chapters, tables and equations, years in
citations, exercises, whose solutions show theirs, and the list of sources.
"""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
HOOK = runpy.run_path(str(ROOT / "docs" / "hooks" / "chapters.py"))

DEFINED: dict[str, dict[str, str]] = {  # chapter or "" for all: the number: why it needs no source
    "": {
        "1.58": "the binary logarithm of 3, cut to two digits: the name of the method",
        "16": "bits of a half float",
        "32": "bits of a float",
        "100%": "all of it",
        "1.6": "bits per trit where a byte has five: 8 / 5",
        "60,000": "training images of MNIST",
        "55,000": "the same without the validation split",
        "5,000": "the validation split, the last of MNIST's training images",
    },
    "ch02_ternary": {
        "0.729": "an example of a decimal fraction, shifted by a multiplication",
        "0.29": "what is left of that example",
    },
    "ch05_layers": {"0.03": "an example of a float weight"},
    "ch06_noise": {
        "1,312": "an example of a step's number",
        "999,999": "all before the millionth",
    },
    "ch07b_unit_tangents": {
        "128": "perturbations of a step, as chapter 7 has them",
        "1,024": "images of a timed step, a setting of the experiment",
    },
    "ch10_transformer": {"0.95": "a setting of Adam"},
    "ch11b_gguf": {"36": "the number of the type I2_S"},
    "ch15_cluster": {"400": "steps of the recorded runs, a setting of the experiment"},
    "ch13_nf4": {"80": "rows of 16, 48, 80, ... weights: odd multiples of 16"},
}
NUMBER = re.compile(r"(?<![\w.,/^\\-])(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![\w^]|[.,-]\d|-\w)(\s?%)?")
UNIT = (
    r"\s?(?:%|x\b|GB|MB|KB|[mnµu]?s\b|second|minute|hour|percent|times|nats?\b|pJ|bits? (?:per|a) )"
)
NAMES = (
    r"\[([^\]]*)\]\([^)]*\)",  # a link: what it reads
    r"(?i)\b(?:chapters?|tables?|figures?|eq\.|equations?|sections?|algorithm|issue|version|exercise"
    r"|line|level|seed|python) \d+(?:\.\d+)*(?:(?:,| and| to) \d+)*",
    r"\b(?:19|20)\d\d\b",  # a year
    r"\barXiv[: ]?\d{4}\.\d+",
    r"\b\d+(?:-\d+)+\b",  # widths, or a date
    r"\b\d+\.\d+\.\d+\b",  # a version
)


class Found(NamedTuple):
    """A number of the prose, the line of its paragraph that has it, and where it comes from."""

    number: str
    kind: str  # computed, recorded, cited, defined, or "" where nothing was found
    context: str


def prose(text: str) -> Iterator[str]:
    """Yield the paragraphs of a text cell, without code and names; each row of a table is one."""
    text = re.split(r"^\*\*(?:Exercises|Sources)\.\*\*", text, flags=re.MULTILINE)[0]
    text = re.sub(r"^```.*?^```$|^\$\$.*?\$\$$|<[^>]*>", " ", text, flags=re.M | re.S)
    text = re.sub(r"(`+).+?\1", " ", text, flags=re.S)
    text = re.sub(r"\$([^$]+)\$", lambda m: " ".join(decimals(m[1])), text)
    for pattern in NAMES:
        text = re.sub(pattern, lambda m: m[1] if m.re.groups else " ", text)
    before = ""
    for paragraph in re.split(r"\n\s*\n", text):
        if not paragraph.lstrip().startswith("#"):
            joined = " ".join(paragraph.split())
            yield (before + " " + joined) if joined.startswith("|") else joined
            before = joined


def decimals(formula: str) -> Iterator[str]:
    """Yield the numbers with a point of a formula, powers of ten multiplied out."""
    for match in re.finditer(r"(\d+\.\d+)(?:\s*\\cdot\s*10\^\{?(-?\d+)\}?)?", formula):
        yield f"{Decimal(match[1]).scaleb(int(match[2] or 0)):f}"


def numbers_of(paragraph: str) -> Iterator[tuple[str, str]]:
    """Yield each number that has to come from somewhere, with the words around it."""
    for match in NUMBER.finditer(paragraph):
        rest = paragraph[match.end(1) : match.end() + 12]
        counting = len(match[1]) == 1 and not match[2] and not re.match(UNIT, rest)
        if not counting:
            around = paragraph[max(0, match.start() - 40) : match.end() + 30]
            yield match[1] + (match[2] or "") + ("%" if match[3] else ""), around


def values(text: str) -> set[str]:
    """Return the numbers of code or output as written, without signs and separators."""
    found = re.findall(r"(?<![\w.])\d[\d,_]*(?:\.\d+)?(?:e[-+]?\d+)?", text)
    return {each.replace(",", "").replace("_", "") for each in found}


def bounds_of(code: str) -> Iterator[tuple[float, float]]:
    """Yield the ends of each ``low < something < high`` in code, where they are near each other."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Compare) and len(node.comparators) == 2:
            ends = [node.left, node.comparators[1]]
            try:
                low, high = sorted(float(eval(ast.unparse(end), {})) for end in ends)
            except (NameError, TypeError, ValueError, SyntaxError):
                continue
            if low > 0 and high <= 1.5 * low:
                yield low, high


def rounds_to(value: float, number: str) -> bool:
    """Whether a value is the number once it is rounded to as many digits."""
    digits = len(number.partition(".")[2])
    return f"{value:.{digits}f}" == number


class Page:
    """What a chapter's numbers can be held against."""

    def __init__(self, cells: list[dict[str, Any]]) -> None:
        code = "\n".join(cell["text"] for cell in cells if cell["kind"] == "code")
        said = "\n".join(cell["output"] for cell in cells)
        self.texts = [cell["text"] for cell in cells if cell["kind"] == "markdown"]
        self.computed = sorted({float(each) for each in values(code) | values(said)})
        self.bounds = [*bounds_of(code)]
        self.recorded = set()
        for name in re.findall(r'load_results\("(\w+)"\)', code):
            path = ROOT / "chapters" / "results" / f"{name}.json"
            self.recorded |= {float(each) for each in values(path.read_text(encoding="utf-8"))}
        sources = "\n".join(self.texts).partition("**Sources.**")[2]
        names = re.findall(r"^- ([^\W\d]+(?:'[^\W\d]+)?)", sources, re.MULTILINE)
        names += re.findall(r"\*([\w-]+):", sources)  # a title's name, as of QLoRA
        words = [*map(re.escape, names), "papers?", "published", "manuscript", "authors"]
        self.source = re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)

    def kind_of(self, number: str, paragraph: str, defined: dict[str, str]) -> str:
        """Say where a number comes from, or nothing."""
        plain = number.replace(",", "").rstrip("%")
        scales = (1, 100) if number.endswith("%") else (1,)
        if any(rounds_to(v * scale, plain) for v in self.computed for scale in scales):
            return "computed"
        if any(low * s <= float(plain) <= high * s for low, high in self.bounds for s in scales):
            return "computed"
        if number in defined:
            return "defined"
        if self.source.search(paragraph):
            return "cited"
        many = len(plain.replace(".", "").strip("0")) >= 2
        if many and any(rounds_to(v * s, plain) for v in self.recorded for s in scales):
            return "recorded"
        return ""


def examine(name: str, cells: list[dict[str, Any]]) -> list[Found]:
    """Return every number of a chapter's prose, in order."""
    cells = [cell for cell in cells if not cell.get("solution")]
    page, defined = Page(cells), DEFINED[""] | DEFINED.get(name, {})
    return [
        Found(number, page.kind_of(number, paragraph, defined), around)
        for text in page.texts
        for paragraph in prose(text)
        for number, around in numbers_of(paragraph)
    ]


def main(names: list[str]) -> int:
    """List the numbers of chapters, all by default; 1 if one of them comes from nowhere."""
    lost = 0
    for path in HOOK["chapter_files"]():
        if names and path.stem not in names and path.stem.split("_")[0] not in names:
            continue
        found = examine(path.stem, HOOK["finished_chapter"](path, HOOK["CACHE"])[0])
        print(f"\n{path.stem}: {len(found)} numbers")
        for each in found:
            print(f"  {each.kind or 'NOTHING':9} {each.number:>12}  ...{each.context}...")
        lost += sum(not each.kind for each in found)
    print(f"\n{lost} numbers come from nowhere")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
