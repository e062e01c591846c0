"""Numbers in prose: each is computed on its page, recorded, cited or defined."""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = runpy.run_path(str(ROOT / ".ci" / "prose_numbers.py"))
HOOK = NUMBERS["HOOK"]


def kinds(text, code="", output=""):
    """Number and kind of each number of a page with one text and one piece of code."""
    cells = [
        {"kind": "markdown", "text": text, "output": ""},
        {"kind": "code", "text": code, "output": output},
    ]
    return [(each.number, each.kind) for each in NUMBERS["examine"]("ch99_little", cells)]


@pytest.mark.parametrize(
    ("text", "code", "output", "kind"),
    [
        ("It loses 31% of them.", "", "zeros 30.8%", "computed"),
        ("It loses 31% of them.", "assert 0.29 < share < 0.33", "", "computed"),
        ("It loses 31% of them.", "assert 0.05 < share < 0.9", "", ""),
        ("It loses 31% of them.", "", "zeros 34.1%", ""),
        ("It takes 1,234 bytes.", "", "1234 bytes", "computed"),
        ("It takes 40 steps.", "STEPS = 40", "", "computed"),
        ("It takes 0.12 seconds.", "", "0.1187 s", "computed"),
        ("Ma (2024) loses 31%.\n\n**Sources.**\n\n- Ma et al. (2024), *A*.", "", "", "cited"),
        ("Ma (2024).\n\nIt loses 31%.\n\n**Sources.**\n\n- Ma et al. (2024), *A*.", "", "", ""),
        ("A trit is 1.58 bits.", "", "", "defined"),
        ("It loses 82.77 there.", 'load_results("train")', "", ""),
        ("It takes 3 seconds.", "", "", ""),
        ("A value of $x = 0.125$.", "", "", ""),
    ],
)
def test_a_number_is_held_against_what_the_page_shows(text, code, output, kind):
    """By rounding, between the bounds of an assert if these are near, by source, by definition."""
    ((_, found),) = kinds(text, code, output)
    assert found == kind


def test_what_is_recorded_counts_where_the_page_loads_it():
    """A figure of a file of results, which the page reads."""
    row = NUMBERS["HOOK"]["minibit"].results.load_results("train")["rows"][0]
    text = f"It reaches {100 * row['test_accuracy']:.2f}% of them."
    assert kinds(text, 'load_results("train")')[0][1] == "recorded"
    assert kinds(text)[0][1] == ""


def test_counting_names_formulas_and_exercises_are_no_claims():
    """Neither are code, widths, versions, years, and numbers of chapters and tables."""
    text = (
        "# 90 titles\n\nTwo panels, 3 lines, chapter 14, table 12, `x = 55`, b1.58, GPT-3, 221k, "
        "784-256-10, version 0.50.0, Ma et al. (2024), $3^5 = 243$.\n\n**Exercises.**"
        "\n\n1. Find 77."
    )
    assert kinds(text) == []


@pytest.mark.book
@pytest.mark.parametrize("path", HOOK["chapter_files"](), ids=lambda path: path.stem)
def test_every_number_of_a_chapter_comes_from_somewhere(path):
    """The list that ``python .ci/prose_numbers.py`` prints has no gap."""
    found = NUMBERS["examine"](path.stem, HOOK["finished_chapter"](path, HOOK["CACHE"])[0])
    assert found
    assert [each for each in found if not each.kind] == []
