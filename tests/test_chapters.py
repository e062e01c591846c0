"""Chapters run anywhere: in an empty folder, from an installation, as scripts and as notebooks.

The whole book takes minutes, so plain ``pytest`` runs the quickest chapters; ``pytest -m book``
runs all.
"""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from minibit.cli.notebook import (
    SOLUTION,
    notebook,
    solutions_of,
    split_cells,
)

pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "chapters").glob("ch*.py"))
SOLVED = [
    pytest.param(
        path,
        id=path.stem,
        marks=() if path.stem in ("ch01_dual", "ch02_ternary", "ch10b_costs") else pytest.mark.book,
    )
    for path in CHAPTERS
]
QUICK = ("ch02_ternary", "ch06_noise")
HOOK = runpy.run_path(str(ROOT / "docs" / "hooks" / "chapters.py"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder laid out as the wheel lays out an installation: the package, chapters inside."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "minibit").mkdir()
    for path in (ROOT / "minibit").iterdir():
        (folder / "minibit" / path.name).symlink_to(path)
    (folder / "minibit" / "_chapters").symlink_to(ROOT / "chapters")
    return folder


def run(command, installed, folder):
    """What a chapter prints that runs in `folder` and can import the installation alone."""
    settings = {"PYTHONPATH": str(installed), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=folder,
        env=os.environ | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


WHICH = [
    pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.book)
    for path in CHAPTERS
]


@pytest.mark.skipif(os.name != "posix", reason="the installation is made of symbolic links")
@pytest.mark.parametrize("path", WHICH)
def test_a_chapter_runs_as_a_copied_script(path, installed, tmp_path):
    """In an otherwise empty folder; each figure that it draws lies beside it and is named."""
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    said = run([copy.name], installed, tmp_path).split()
    drawn = sorted(file.name for file in tmp_path.glob("*.svg"))
    assert drawn or path.stem == "ch08_steps"
    assert set(drawn) <= set(said)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([copy.name, *drawn])


@pytest.mark.skipif(os.name != "posix", reason="the installation is made of symbolic links")
@pytest.mark.parametrize("path", WHICH)
def test_a_chapter_runs_as_a_notebook(path, installed):
    """Cell by cell, solutions too, with no ``__file__``; what it says is kept for the site."""
    cells, figures = HOOK["kept_chapter"](path, HOOK["CACHE"], installed)
    assert any(cell["output"] for cell in cells)
    assert figures or path.stem == "ch08_steps"
    assert any(cell["solution"] for cell in cells)


def test_lines_of_text_end_at_100():
    """Rows of tables aside, which have to stay one line."""
    solutions = (ROOT / "chapters" / "solutions").glob("*.py")
    for path in {*CHAPTERS, *solutions}:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            row = line.startswith("# |")
            assert row or not line.startswith("#") or len(line) <= 100, f"{path.name}:{number}"


def test_code_that_draws_is_folded_and_claims_nothing():
    """A cell with a figure has the tag hide-input; what it prints or asserts is in another cell."""
    drawn = 0
    for path in {*CHAPTERS}:
        for cell in split_cells(path.read_text(encoding="utf-8")):
            folded = "hide-input" in cell.tags
            if cell.kind == "code":
                where = f"{path.name}:{cell.first}"
                assert folded == bool(
                    re.search(r"\b(plt\.subplots|plt\.figure|drawing)\(", cell.text)
                ), where
                assert not (folded and re.search(r"\b(assert|expect_time|print)\b", cell.text)), (
                    where
                )
                drawn += folded
    assert drawn > 40


def exercises(path):
    """The exercises of a chapter: the numbered list behind that word."""
    text = [cell.text for cell in split_cells(path.read_text(encoding="utf-8"))][-1]
    found = re.search(r"\*\*Exercises\.\*\*\n\n(1\. .*?)\n\n\*\*", text, re.DOTALL)
    return re.split(r"^\d+\. ", found[1], flags=re.MULTILINE)[1:]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_exercise_has_a_solution_that_shows_what_it_says(path):
    """In order, each with text and code, and in that code an assert."""
    cells = split_cells(solutions_of(path).read_text(encoding="utf-8"))
    numbers, proved = [], set()
    for cell in cells:
        if found := SOLUTION.match(cell.text):
            numbers.append(int(found[1]))
        if cell.kind == "code" and re.search(r"^ *(assert|np\.testing)\b", cell.text, re.MULTILINE):
            proved |= {*numbers[-1:]}
    assert numbers == list(range(1, len(exercises(path)) + 1))
    assert proved == {*numbers}


@pytest.mark.skipif(os.name != "posix", reason="the installation is made of symbolic links")
@pytest.mark.parametrize("path", SOLVED)
def test_the_solutions_of_a_chapter_run_alone(path, installed, tmp_path):
    """In an empty folder, without the chapter; they leave nothing behind."""
    run([str(solutions_of(path))], installed, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_folds_solutions_and_pictures_and_keeps_their_tags():
    """Text of a solution in ``details``, its code hidden; imports too; a last line after them."""
    script = '# %% [markdown]\n# # T\n# %% tags=["hide-input"]\ndraw()\n# %%\nx = 1\n'
    solutions = "# %%\nimport y\n# %% [markdown]\n# **1.** So.\n# %%\nassert y\n"
    cells = json.loads(notebook(script, solutions, "last"))["cells"]
    hidden = {"jupyter": {"source_hidden": True}}
    assert [cell["metadata"] for cell in cells] == [
        {},
        {"tags": ["hide-input"], **hidden},
        {},
        {"tags": ["solution"], **hidden},
        {"tags": ["solution"]},
        {"tags": ["solution"], **hidden},
        {},
    ]
    text = "".join(cells[4]["source"])
    assert text == "<details><summary>Solution 1</summary>\n\nSo.\n\n</details>"
    assert cells[-1]["source"] == ["last"]


def test_a_notebook_holds_all_lines_of_its_script():
    """In order; text without its comment signs, code as it is, empty lines aside."""
    for path in CHAPTERS:
        script = path.read_text(encoding="utf-8")
        lines = [
            f"# {line}" if cell["cell_type"] == "markdown" else line
            for cell in json.loads(notebook(script))["cells"]
            for line in "".join(cell["source"]).splitlines()
        ]
        wanted = [line for line in script.splitlines() if not line.startswith("# %%")]
        empty = ("", "#")
        assert [line for line in map(str.rstrip, lines) if line not in empty] == [
            line for line in map(str.rstrip, wanted) if line not in empty
        ]
