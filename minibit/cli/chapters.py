"""``minibit chapters``: listed, shown, copied, as notebooks, run, or beside one's own file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from minibit.base import open_whole
from minibit.cli.common import BadUse, Output, command
from minibit.cli.conform import of_module, show
from minibit.cli.notebook import chapter_notebook, room_of
from minibit.conformance import Port, cases_of, examine
from minibit.results import chapter_number, chapters_folder


@dataclass(frozen=True)
class Chapter:
    """A chapter's script: ``chNN_name.py``, or ``chNNb_name.py`` if it is a later part."""

    number: str  # "7", "7b"
    name: str
    title: str
    path: Path


@command
def chapters(
    out: Output,
    which: Annotated[str, "[N|NAME]", "Its number or name."] = "",
    run: Annotated[bool, "Run it (without a name: all)."] = False,
    folder: Annotated[Path | None, "--out", "Folder for a copy, and for figures."] = None,
    book: Annotated[Path | None, "--notebook", "Write a Jupyter notebook, FILE.ipynb."] = None,
    check: Annotated[str, "MODULE.py: hold your own version against its vectors."] = "",
) -> dict[str, Any]:
    """List the chapters; print one to read; copy one to work on; run one or all.

    With --check, exit status 1 if a case deviates or none is offered.
    """
    known = find_chapters()
    chosen = [_choose(known, which)] if which else known
    if check:
        if not which or run or folder is not None or book is not None:
            raise BadUse("--check MODULE.py takes one chapter, and no --run, --out or --notebook")
        return _check(out, chosen[0], check)
    if book is not None:
        if not which or run or folder is not None:
            raise BadUse("--notebook FILE.ipynb takes one chapter, and neither --run nor --out")
        if book.suffix != ".ipynb":
            raise BadUse(f"--notebook takes a name that ends in .ipynb, got {book}")
        with open_whole(book, overwrite=False) as file:
            file.write(chapter_notebook(chosen[0].path).encode())
        out.say(str(book))
        return {"chapters": [vars(chosen[0])], "notebook": str(book)}
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise BadUse(f"--out {folder} is a file; it takes a folder")
        for copy in [folder / chapter.path.name for chapter in chosen]:
            if copy.exists():
                raise BadUse(f"{copy} exists; nothing was changed")
    if run:
        return _run(out, chosen, folder)
    if folder is not None:
        for chapter in chosen:
            out.say(str(_copy(chapter, folder)))
    elif which and not out.as_json:
        print(chosen[0].path.read_text(encoding="utf-8"), end="")
    else:
        out.facts({f"{chapter.number:3} {chapter.name}": chapter.title for chapter in chosen})
    return {"chapters": [vars(chapter) for chapter in chosen]}


def find_chapters() -> list[Chapter]:
    """Return the chapters in order: those of the installed package, else of its checkout."""
    chapters = []
    for path in sorted(chapters_folder().glob("ch*.py")):
        heading = re.search(r"^# # (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        name = path.stem.partition("_")[2]
        title = heading[1].strip() if heading else name
        chapters.append(Chapter(chapter_number(path.stem), name, title, path))
    return chapters


def _choose(known: list[Chapter], which: str) -> Chapter:
    """Find a chapter by its number, name or file name."""
    word = Path(which).stem
    number = re.sub(r"^(?:ch)?0*(?=\d)", "", word)  # 7 of 07 and ch07, 7b of ch07b
    for chapter in known:
        if word in (chapter.name, chapter.path.stem) or number == chapter.number:
            return chapter
    names = ", ".join(f"{chapter.number} {chapter.name}" for chapter in known)
    raise BadUse(f"no chapter {which!r}; there are {names}")


def _check(out: Output, chapter: Chapter, module: str) -> dict[str, Any]:
    """Hold a reader's module against the cases that call what the chapter's room offers."""
    room = room_of(chapter.path.stem)
    cases = cases_of(room)
    if not cases:
        raise BadUse(f"chapter {chapter.number} has no vectors; its exercises name its tests")
    with Port(of_module(module), 10.0) as asked:
        report = examine(asked.answer, cases)
    show(out, report)
    out.say(f"the laws, as sentences with their tests: tests/test_{room}.py")
    out.status = int(not report.passed)
    return {"chapter": chapter.name, "module": module, **report.as_json()}


def _copy(chapter: Chapter, folder: Path) -> Path:
    """Copy a chapter's script into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(chapter.path, folder / chapter.path.name))


def _run(out: Output, chosen: list[Chapter], folder: Path | None) -> dict[str, Any]:
    """Run chapters one after another; the status is 1 if one of them fails."""
    results = []
    for chapter in chosen:
        out.say(f"{chapter.number} {chapter.title}", style="bold")
        sys.stdout.flush()
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            done = subprocess.run(
                [sys.executable, str(chapter.path.absolute())],
                cwd=scratch,  # what a chapter writes is gone with it
                env={**os.environ, "MPLBACKEND": "agg"},  # figures are written, no window opens
                stdin=subprocess.DEVNULL,
                stdout=2 if out.as_json else None,  # standard error
                check=False,
            )
            if folder is not None:
                _copy(chapter, folder)
            for figure in Path(scratch).glob(f"{chapter.path.stem}_*.svg"):
                shutil.copy(figure, folder or Path())
        seconds, passed = time.perf_counter() - begin, done.returncode == 0
        out.say(f"{'done' if passed else 'FAILED'} in {seconds:.1f} s\n", style="dim")
        results.append({"name": chapter.name, "passed": passed, "seconds": round(seconds, 2)})
    failed = [row["name"] for row in results if not row["passed"]]
    if folder is not None:
        out.say(f"scripts and figures are in {folder}")
    out.status = int(bool(failed))
    return {"passed": not failed, "chapters": results}
