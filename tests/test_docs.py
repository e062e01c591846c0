"""The documentation is true: its examples run, and the tools of the site see what they should."""

import copy
import doctest
import functools
import importlib
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest

import minibit
from minibit.absmean import absmean_quantize
from minibit.bench import BENCHMARKS, Figure, quantity
from minibit.cli.notebook import split_cells
from minibit.results import load_results

ROOT = Path(__file__).resolve().parents[1]
SHOWN = {  # every module and folder of the package that shows an example: how many lines of it
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): lines
    for path in sorted((ROOT / "minibit").rglob("*.py"))
    if (lines := path.read_text(encoding="utf-8").count(">>> "))
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HOOKS = str(ROOT / "docs" / "hooks")
sys.path.insert(0, HOOKS)  # hooks import each other, as MkDocs lets them
HOOK, TABLES, BENCHES, LINKS, SPEC, PAGES_HOOK, REFERENCE, REPOSITORY = (
    runpy.run_path(f"{HOOKS}/{name}.py")
    for name in (
        "chapters",
        "tables",
        "benchmarks",
        "links",
        "spec",
        "pages",
        "reference",
        "repository",
    )
)
sys.path.remove(HOOKS)
CHECK = runpy.run_path(str(ROOT / ".ci" / "site_check.py"))


def fences(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language in a page, in order."""
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", SHOWN)
def test_every_example_in_a_docstring_prints_what_it_shows(name):
    """The doctests of each module and folder pass, and every prompt of the text is one of them."""
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted == SHOWN[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_python_example_on_a_page_runs(page, tmp_path, monkeypatch):
    """Blocks of Python in the README and the pages run in order, in one namespace a page."""
    monkeypatch.chdir(tmp_path)  # a page may write files
    namespace: dict[str, object] = {}
    for block in fences(page, "python"):
        exec(compile(block, f"<{page.name}>", "exec", dont_inherit=True), namespace)


def test_the_readme_begins_with_the_main_job_and_then_the_tests():
    """The first command installs and trains, the second installs and tests: two lines each."""
    first, second, *_ = fences(ROOT / "README.md", "sh")
    install = "python3 -m venv .venv && .venv/bin/pip install -e '.[{}]'\n.venv/bin/{}\n"
    assert first == install.format("app", "minibit train")
    assert second == install.format("test", "pytest")
    assert "block 1" in (script := (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert "block 2" in script


def test_a_finished_chapter_is_not_run_again_until_something_changes(tmp_path):
    """The second build reads what the first kept, figures too; an edit runs and keeps anew."""
    chapter, cache, runs = tmp_path / "ch99_little.py", tmp_path / "kept", tmp_path / "runs"
    text = "# %%\nimport matplotlib.pyplot as plt\nplt.figure()\n"
    text += f"with open({str(runs)!r}, 'a') as file:\n    file.write('x')\nprint(1)\n"
    for script, expected in ((text, "x"), (text, "x"), (text + "print(2)\n", "xx")):
        chapter.write_text(script, encoding="utf-8")
        cells, figures = HOOK["finished_chapter"](chapter, cache)
        assert runs.read_text() == expected
        assert cells[0]["output"].splitlines()[0] == "1"
        assert figures["figure1.svg"].startswith(b"<?xml")
        assert len(list(cache.iterdir())) == 1
    chapter.write_text(text + "assert False\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="failed"):
        HOOK["finished_chapter"](chapter, cache)
    assert len(list(cache.iterdir())) == 1  # a failure takes nothing that was kept


def test_a_script_is_cut_into_text_and_code_with_its_line_numbers():
    """Markdown cells lose their comment signs; cells without text vanish; lines count from 1."""
    script = "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\n\nx = 1\n# a comment\n\n# %%\n\n"
    assert split_cells(script) == [
        ("markdown", 2, "# Title\n\nText.", ()),
        ("code", 8, "x = 1\n# a comment", ()),
    ]
    assert split_cells('# %% tags=["hide-input"]\nx')[0].tags == ("hide-input",)


def test_a_chapter_page_shows_what_each_cell_printed_and_drew(tmp_path):
    """Output and figures come right after the cell that made them; names last from cell to cell."""
    chapter = tmp_path / "ch99_little.py"
    chapter.write_text(
        textwrap.dedent("""\
        # %% [markdown]
        # # Little
        #
        # The question.

        # %%
        x = 41
        print("x is", x)

        # %%
        import matplotlib.pyplot as plt

        fig, ax = plt.subplots()
        ax.set_title("A line")
        print("x + 1 is", x + 1)

        # %%
        print(plt.get_fignums())
        """),
        encoding="utf-8",
    )
    cells, figures = HOOK["run_chapter"](chapter)
    assert [cell["output"] for cell in cells] == ["", "x is 41", "x + 1 is 42", "[]"]
    assert [cell["figures"] for cell in cells] == [[], [], [["figure1.svg", "A line"]], []]
    assert b"<svg" in figures["figure1.svg"]
    text = HOOK["page"](chapter.stem, cells)
    assert text.startswith("# Little\n\n<p class")
    assert "``` { .text .output }\nx is 41\n```" in text.replace("```{", "``` {")
    order = [text.index(part) for part in ("x = 41", "x is 41", "x + 1 is 42\n", "![A line](")]
    assert order == sorted(order)


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here")
def test_the_slider_measures_what_numpy_does():
    """Trits, best scale, zeros, entropy and error at every threshold; 0.5 gives absmean's trits."""
    script = f"""
    const {{ ternarise, drawWeights }} = require({json.dumps(str(ROOT / "docs/assets/slider.js"))});
    const weights = drawWeights(128), at = [0, 0.5, 1.2, 9];
    console.log(JSON.stringify({{ weights, rows: at.map((t) => ternarise(weights, t)) }}));"""
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    w = np.array(said["weights"])
    assert abs(w.mean()) < 0.3
    assert 0.8 < w.std() < 1.2
    codes, _ = absmean_quantize(w.astype(np.float32)[None])
    assert said["rows"][1]["trits"] == codes[0].tolist()
    for threshold, row in zip((0, 0.5, 1.2, 9), said["rows"], strict=True):
        trits = np.sign(w) * (np.abs(w) > threshold * np.abs(w).mean())
        assert row["trits"] == trits.tolist()
        scale = w @ trits / max(trits @ trits, 1)  # least squares
        shares = [np.mean(trits == 0), *2 * [np.mean(trits != 0) / 2]]
        bits = -sum(share * np.log2(share) for share in shares if share)
        error = np.linalg.norm(w - scale * trits) / np.linalg.norm(w)
        expected = [scale, shares[0], bits, error]
        np.testing.assert_allclose([row[k] for k in ("scale", "zeros", "bits", "error")], expected)


def test_a_figure_is_put_in_words(tmp_path):
    """Titles wherever they stand, then what the axes measure; what panels share is said once."""
    chapter = tmp_path / "ch99_little.py"
    chapter.write_text(
        "# %% [markdown]\n# # Little\n\n# %%\nimport matplotlib.pyplot as plt\n"
        "fig, panels = plt.subplots(1, 2)\nfor axes in panels:\n    axes.set_xlabel('step')\n"
        "    axes.set_ylabel('loss')\npanels[0].set_title('Left', loc='left')\nplt.figure()\n"
    )
    cells, _ = HOOK["run_chapter"](chapter)
    figures = [["figure1.svg", "Left: loss against step; loss against step"]]
    assert cells[1]["figures"] == [*figures, ["figure2.svg", "Figure 2"]]


def test_code_of_a_picture_is_folded_on_its_page():
    """A cell with the tag hide-input: its code lies in ``details``, what it drew does not."""
    cell = {"kind": "code", "text": "draw()", "output": "", "figures": [["figure1.svg", "A"]]}
    title = {"kind": "markdown", "text": "# Title\n\nText."}
    text = HOOK["page"]("ch99_little", [title, cell | {"folded": True}])
    before, inside, after = re.split("</?details[^>]*>", text)
    assert "draw()" in inside
    assert "figure1.svg" in after
    assert "Text." in before
    assert "<details" not in HOOK["page"]("ch99_little", [title, cell | {"folded": False}])


def test_a_solution_is_folded_below_its_exercise():
    """With what it printed; imports go with the first; the reader's own file is checked after."""
    chapter = [
        {
            "kind": "markdown",
            "text": "# T\n\n**Exercises.**\n\n1. One\n   `a`.\n2. Two.\n\n**Sources.** S",
        }
    ]
    code = {"kind": "code", "output": "", "figures": [], "folded": False}
    solutions = [
        {"kind": "markdown", "text": "# Solutions"},
        code | {"text": "import y"},
        {"kind": "markdown", "text": "**1.** First."},
        code | {"text": "print(y)", "output": "41"},
        {"kind": "markdown", "text": "**2.** Second."},
    ]
    text = HOOK["page"]("ch04_absmean", chapter, solutions)
    parts = ("One\n`a`.", "<details", "First.", "import y", "print(y)", "41", "</details>", "</li>")
    parts += ("Two.", "<details", "Second.", "</details>", "</ol>", "--check my_absmean.py", "S")
    at = 0
    for part in parts:
        assert part in text[at:], part
        at = text.index(part, at) + len(part)
    assert text.count("import y") == text.count("First.") == 1
    assert "# Solutions" not in text


def test_a_failing_claim_stops_the_site_and_names_its_line(tmp_path):
    """A chapter whose assert fails raises, with the file, the line and what it printed."""
    chapter = tmp_path / "ch99_wrong.py"
    chapter.write_text("# %% [markdown]\n# # Wrong\n\n# %%\nprint('before')\nassert 1 + 1 == 3\n")
    with pytest.raises(RuntimeError, match=r"(?s)ch99_wrong.py failed:.*before.*line 6"):
        HOOK["run_chapter"](chapter)


def test_a_warning_in_a_chapter_stops_the_site(tmp_path):
    """Warnings are errors in chapters, as in tests."""
    chapter = tmp_path / "ch99_warns.py"
    chapter.write_text("# %%\nimport numpy as np\nnp.log(np.zeros(1))\n")
    with pytest.raises(RuntimeError, match="RuntimeWarning"):
        HOOK["run_chapter"](chapter)


def test_a_chapter_on_the_site_is_a_notebook_that_leaves_nothing_behind(tmp_path):
    """No ``__file__``, here or in the script that was started; solutions last; no file is left."""
    chapter = tmp_path / "ch99_little.py"
    text = "# %%\nimport sys\nfrom pathlib import Path\nassert not list(Path().iterdir())\n"
    text += "print('__file__' in globals(), hasattr(sys.modules['__main__'], '__file__'))\n"
    chapter.write_text(text)
    cells, _ = HOOK["run_chapter"](chapter)
    assert cells[0]["output"] == "False False"
    solutions = tmp_path / "solutions" / chapter.name
    solutions.parent.mkdir()
    solutions.write_text("# %%\nprint(sys.argv is None)\n")  # a name of the chapter
    before = HOOK["fingerprint"](chapter)
    cells, _ = HOOK["run_chapter"](chapter)
    assert [(cell["solution"], cell["output"]) for cell in cells] == [
        (False, "False False"),
        (True, "False"),
    ]
    solutions.write_text("# %%\nprint(1)\n")
    assert HOOK["fingerprint"](chapter) != before
    chapter.write_text(text + "Path('left.txt').write_text('x')\n")
    with pytest.raises(RuntimeError, match=r"ch99_little.py failed: it leaves left.txt behind"):
        HOOK["run_chapter"](chapter)


def test_a_fence_is_longer_than_any_inside():
    """Text that holds three backticks is fenced by four."""
    assert HOOK["fenced"]("a ``` b", "text") == "````{ .text }\na ``` b\n````"


WIDE = "<span class='katex'><span class='katex-html'><span class='base' style='"
WIDE += "display: inline-block; width: 300px; height: 50px'>x</span></span></span>"
WHITE = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='200' height='200'>"
WHITE += "<rect width='200' height='200' fill='white'/></svg>"
DARK = (
    "<style>@media (prefers-color-scheme: dark) { body { background: #222; color: #eee } }</style>"
)
FAULTS = {  # a page's body, and what is told of it
    "none": ("<p>Quiet.</p><a href='none.html'>a link</a><button>a button</button>", None),
    "none_in_dark": (
        f'{DARK}<p>Quiet.</p><img src="{WHITE}" style="filter: invert(1)" alt="">',
        None,
    ),
    "scroller": (f"<div style='width: 200px; overflow-x: auto'><p>{WIDE}</p></div>", None),
    "clipped": (
        f"<div style='width: 200px; overflow: hidden'><p>{WIDE}</p></div>",
        'a formula is wider than its box <p class="">: x (light)',
    ),
    "sticks_out": (
        f"<p style='width: 200px'>so {WIDE}</p>",
        'a formula is wider than its box <p class="">: x (light)',
    ),
    "flat": (
        f"<div style='width: 200px; height: 20px; overflow: auto hidden'>{WIDE}</div>",
        "30 pixels of a formula's height are cut: x",
    ),
    "alt": (f'<img src="{WHITE}">', "an image without alt text"),
    "empty_alt": (
        f"<main class='md-content'><img src=\"{WHITE}\" alt='Figure 1'></main>",
        'an image whose alt text says nothing, "Figure 1"',
    ),
    "nameless": ("<svg role='img' width='9' height='9'></svg>", "a drawing without a name: <svg"),
    "faint": (
        "<p style='color: #888'>grey</p>",
        'contrast 3.54 of "grey" in <p class="">: rgb(136,136,136) on rgb(255,255,255) (light)',
    ),
    "faint_by_opacity": ("<div style='opacity: .5'><p>pale</p></div>", 'contrast 3.98 of "pale"'),
    "faint_in_dark": (
        f"{DARK}<p style='color: #555'>ink</p>",
        'contrast 2.13 of "ink" in <p class="">: rgb(85,85,85) on rgb(34,34,34) (dark)',
    ),
    "faint_drawing": (
        "<svg><rect width='50' height='50' fill='#000'/><text y='20'>ink</text></svg>",
        'contrast 1.00 of "ink"',
    ),
    "glare": (f'{DARK}<img src="{WHITE}" alt="">', "a picture glares on the dark page"),
    "focus": (
        "<style>a { outline: none }</style><a href='none.html'>a link</a>",
        'the focus is not seen at <a class=""> "a link" (light)',
    ),
    "faint_focus": (
        "<style>:focus { outline: 2px solid #eee }</style><button>a button</button>",
        'the focus is not seen at <button class="">',
    ),
    "focus_outside": (
        "<a href='none.html' style='position: absolute; left: -999px'>a link</a>",
        "the focus is at what is not seen",
    ),
    "script": ("<script>lost()</script>", "an error in a script"),
    "console": ("<script>console.error('broken')</script>", "console error: broken"),
    "host": ("<img src='http://minibit.invalid/a.png' alt=''>", "a request to another host"),
    "missing": ("<img src='nowhere.png' alt=''>", "404 for"),
    "wide": ("<div style='width: 1500px'>wide</div>", "the page is 1500 pixels wide"),
    "hidden": (
        "<style>html { overflow-x: hidden }</style><p style='width: 1500px'>wide</p>",
        "the page is 1500 pixels wide",
    ),
    "who": (
        "<main class='md-content'><p style='width: 1500px'>wide</p></main>",
        '<p class=""> ends at 1500 of',
    ),
    "undrawn": ("<span class='arithmatex'>\\(x\\)</span>", "a formula was not drawn"),
    "refused": ("<span class='katex-error' title='no'>\\bad</span>", "KaTeX refused"),
    "raw": ("<p>so $x^2$ stays</p>", "raw formula in the text: $x^2$"),
}


def loopback_works() -> bool:
    """Whether a server on this machine can be reached from it."""
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        return client.connect_ex(server.getsockname()) == 0


@pytest.mark.skipif(
    os.name != "posix" or CHECK["find_browser"]() is None, reason="no Chromium here"
)
def test_the_site_check_sees_every_kind_of_fault(tmp_path):
    """Small pages with one fault each, and one with none: it tells of each fault, and only then."""
    if not loopback_works():
        pytest.skip("no loopback address here")
    for name, (body, _) in FAULTS.items():
        head = "<style>body { margin: 0 }</style><link rel='icon' href='data:,'>"
        (tmp_path / f"{name}.html").write_text(f"<!doctype html>{head}<body>{body}</body>")
    told = CHECK["check_site"](tmp_path, CHECK["find_browser"]())
    seen = {(path.removesuffix(".html"), width): faults for path, width, faults, _ in told}
    assert len(seen) == len(FAULTS) * len(CHECK["WIDTHS"])
    for (name, _), faults in seen.items():
        wanted = FAULTS[name][1]
        if wanted is None:
            assert faults == []
        else:
            assert any(fault.startswith(wanted) for fault in faults), (name, faults)
            assert len({fault.partition(" (")[0] for fault in faults}) <= 3, (name, faults)


def test_every_test_that_a_text_names_exists():
    """Names in chapters and pages lead to a test, a file of tests or a vector file."""
    pages = [*(ROOT / "chapters").glob("ch*.py"), *(ROOT / "docs").glob("*.md")]
    named = 0
    for path in [*pages, *(ROOT / "docs" / "reference").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            cells = split_cells(text)
            text = "\n".join(cell.text for cell in cells if cell.kind == "markdown")
        text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        for word in re.findall(r"`([^`\n]+)`", text):
            test = re.fullmatch(r"tests/\w+\.py(::\w+)?|test_(?!accuracy$|[xy]$)\w+", word)
            if test or re.fullmatch(r"minibit/vectors/\w+\.json", word):
                named += 1
                assert LINKS["code_target"](word, f"chapters/{path.stem}/"), f"{path.name}: {word}"
    assert named > 90


def test_words_of_a_page_become_links():
    """Chapters, papers, tests, vectors, modules and terms; nothing in code, headings or links."""
    page = "chapters/ch07_noise_step/"
    html = (
        "<h2>Perturbation in chapter 1</h2><p>Chapter 4, chapter 7 and chapter 99; a perturbation, "
        "perturbations; arXiv:2402.17764.</p><pre><code>chapter 4</code></pre>"
        "<p><code>test_units_never_clamp</code> <code>tests/test_noise.py</code> "
        "<code>minibit/vectors/noise.json</code> <code>minibit.noise.words</code> "
        '<code>minibit.steps</code> <code>test_nothing</code> <a href="x">tern</a> '
        '<span class="arithmatex">\\(chapter 4\\)</span></p>'
        "<p><strong>Sources.</strong> Gradients without Backpropagation</p>"
    )
    links = re.findall(
        r'<a class="(?:auto|term)" href="([^"]*)">(.*?)</a>', LINKS["linked"](html, page)
    )
    assert links == [
        ("../../chapters/ch04_absmean/", "Chapter 4"),
        ("../../glossary/#perturbation", "perturbation"),
        ("https://arxiv.org/abs/2402.17764", "arXiv:2402.17764"),
        ("../../tests/test_noise_step/#test_units_never_clamp", "test_units_never_clamp"),
        ("../../tests/test_noise/", "tests/test_noise.py"),
        ("../../vectors/noise.json", "minibit/vectors/noise.json"),
        ("../../reference/noise/#minibit.noise.words", "minibit.noise.words"),
        ("../../reference/steps/", "minibit.steps"),
    ]


def test_every_chapter_ends_with_its_sources():
    """Each with authors, year and title; a paper has one line wherever it is cited."""
    lines: dict[str, str] = {}
    for number in LINKS["chapter_pages"]():
        sources = LINKS["sources"](number)
        assert sources, f"chapter {number}"
        for source in sources:
            assert re.match(r"\w.+ \(\d{4}\), .*(\*.+\*|change log)", source), source
            assert source.endswith("."), source
            title = re.search(r"\*(.+?)\*", source)
            assert lines.setdefault(title[1] if title else source, source) == source
            assert source in LINKS["references_page"]()
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "chapters").glob("*.py"))
    assert set(re.findall(r"arXiv:(\d{4}\.\d{5})", text)) == set(
        re.findall(r"arXiv:(\d{4}\.\d{5})", LINKS["references_page"]())
    )


def test_the_reading_map_leads_through_every_chapter_once():
    """Chapter 0's table names each chapter; its rows say what to read next."""
    assert all(row for _, row in LINKS["reading_map"]())
    numbers = [number for _, row in LINKS["reading_map"]() for number in row]
    assert sorted(numbers) == sorted(LINKS["chapter_pages"]())
    assert LINKS["read_next"]("0").startswith(
        "**Read next.** Chapter 1, on the way through the ideas."
    )
    assert "hapter 2 (bytes)" in LINKS["read_next"]("10")
    assert "last chapter" in LINKS["read_next"]("15")


def test_a_term_has_one_entry_of_a_sentence_or_two():
    """Names begin in bold, in alphabetical order, with an anchor; no name has two entries."""
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    entries = [part for part in text.strip().split("\n\n") if part.startswith("**")]
    assert len(entries) == len(LINKS["glossary"]()) > 50
    first = [re.match(r"\*\*(.+?)\*\*", entry)[1].casefold() for entry in entries]
    assert first == sorted(first)
    names = [name.casefold() for entry in entries for name in re.findall(r"\*\*(.+?)\*\*", entry)]
    assert len(names) == len(set(names))


def test_the_first_page_shows_what_is_recorded():
    """Each table has the recorded figures, its command and its CPU; one seed is called so."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    names = re.findall(r"<!-- results (\w+) -->", index)
    assert names == ["train", "mlp", "language"]
    shown = TABLES["on_page_markdown"](index)
    for name in names:
        assert load_results(name)["command"] in shown
    for row in load_results("train")["rows"]:
        assert f"| {row['test_accuracy']:.2%} ± {100 * row['test_accuracy_std']:.2f} |" in shown
    assert "(1 seed)" in TABLES["table"]("mlp")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in load_results("train")["rows"]:
        accuracy = f"{row['test_accuracy']:.2%} ± {100 * row['test_accuracy_std']:.2f}"
        found = re.search(rf"^\| `{row['preset']}`.*$", readme, re.MULTILINE)[0]
        assert found.endswith(f"| {accuracy} | {row['log_bytes'] / 1000:.1f} KB |")
    for line in TABLES["table"]("language").splitlines()[2:5]:
        size, *figures = (cell.strip() for cell in line.strip("|").split("|"))
        assert f"| {size.split()[0]} | {' | '.join(figures)} |" in readme


def test_the_page_of_results_shows_every_experiment():
    """One table each, in figures of the record, with its command, its machine and its file."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    names = re.findall(r"<!-- results (\w+) -->", text)
    recorded = {path.stem for path in (ROOT / "chapters" / "results").glob("*.json")}
    assert sorted(names) == sorted(recorded) == sorted(TABLES["TABLES"])
    for name in names:
        shown, results = TABLES["table"](name), load_results(name)
        assert f"`{results['command']}`" in shown
        assert results["environment"]["cpu"] in shown
        assert f"(results/{name}.json)" in shown
        head, _, *rows = [line for line in shown.splitlines() if line.startswith("|")]
        assert len(rows) > 1
        assert {row.count("|") for row in rows} == {head.count("|")}
    row = next(row for row in load_results("nf4")["rows"] if row["kind"] == "size")
    assert f"| {row['added']['NF4']:.4f} ± {row['added_std']['NF4']:.4f} |" in TABLES["table"](
        "nf4"
    )


def rows_of(text):
    """The rows of each table of a text, as cells."""
    tables = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    return [[line.strip("|").split(" | ") for line in table.splitlines()] for table in tables]


def test_the_page_of_benchmarks_shows_every_report():
    """Each benchmark has a section with all recorded figures, its command, machine and file."""
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    names = re.findall(r"^## .* \{ #(\w+) \}$", text, re.MULTILINE)
    assert names == re.findall(r"<!-- benchmark (\w+) -->", text)
    assert sorted(names) == sorted(BENCHMARKS)
    reports = BENCHES["records"]()
    assert {report["benchmark"] for report in reports.values()} == set(names)
    for stem, report in reports.items():
        shown = BENCHES["section"](stem, report)
        for words in (f"`{report['command']}`", report["environment"]["cpu"], *report["notes"]):
            assert words in shown
        assert f"(benchmarks/{stem}.json)" in shown
        for table in rows_of(shown):
            assert len({len(row) for row in table}) == 1
            assert len(table) > 1
        judged = [figure for figure in report["figures"] if figure["bar"] is not None]
        reached = sum(figure["passed"] for figure in judged)
        mark = "**" * (reached < len(judged))
        line = f"[`{report['command']}`](#{report['benchmark']}) | {len(judged)} | {mark}{reached}"
        assert line in BENCHES["on_page_markdown"]("<!-- benchmarks -->")
        for figure in report["figures"]:
            assert figure["name"] in shown
            assert quantity(figure["value"], figure["unit"]) in shown
            assert figure["passed"] or figure["name"] in BENCHES["verdict"]([Figure(**{
                key: value for key, value in figure.items() if key != "passed"
            })])  # fmt: skip


def test_a_section_changes_with_its_report():
    """A slower time, a bar that is missed and another machine are shown; nothing is kept."""
    report = copy.deepcopy(BENCHES["records"]()["matmul"])
    before, drawn = BENCHES["section"]("matmul", report), BENCHES["picture"]
    picture = drawn(BENCHES["times_of_ways"](report["details"]))
    assert picture.startswith(b"<?xml")
    assert picture == drawn(BENCHES["times_of_ways"](report["details"]))
    figure = next(figure for figure in report["figures"] if figure["bar"])
    figure["value"] = figure["bar"] * 0.5
    report["environment"]["cpu"] = "A slow CPU"
    report["details"]["4096 x 4096, 2 tokens"]["int8"] = 1.234
    after = BENCHES["section"]("matmul", report)
    assert f"**Missed:** {figure['name']}." in after
    assert "0.50 **missed** |" in after
    assert "A slow CPU" in after
    assert "| 1.23 s |" in after
    assert "Missed" not in before
    assert "| 1.23 s |" not in before
    assert picture != drawn(BENCHES["times_of_ways"](report["details"]))


@pytest.mark.parametrize("place", ["command", "figures", "environment.cpu", "details.choice"])
def test_a_report_that_lacks_something_is_named(place, tmp_path, monkeypatch):
    """The file and the key; so is a benchmark that has no report."""
    report = BENCHES["records"]()["topk"]
    inner, _, key = place.rpartition(".")
    del (report[inner] if inner else report)[key]
    (tmp_path / "topk.json").write_text(json.dumps(report))
    monkeypatch.setitem(BENCHES["records"].__globals__, "RECORDS", tmp_path)
    page = "# Benchmarks\n\n<!-- benchmark {} -->\n"
    with pytest.raises(ValueError, match=rf"docs/benchmarks/topk.json has no '{key}'"):
        BENCHES["on_page_markdown"](page.format("topk"))
    with pytest.raises(ValueError, match="no report of minibit bench nf4"):
        BENCHES["on_page_markdown"](page.format("nf4"))


def test_times_and_margins_are_written_as_they_are():
    """By hand: three digits in the unit that suits; a margin grows as a figure gets better."""
    assert [BENCHES["duration"](s) for s in (12.345, 0.00123456, 42.18e-6, 9.9e-8)] == [
        "12.3 s", "1.23 ms", "42.2 µs", "99.0 ns"
    ]  # fmt: skip
    least, most = Figure("a", 43.0, "x", 20.0), Figure("b", 43.0, "s", 20.0, at_least=False)
    assert BENCHES["margin"](least) == 2.15
    assert BENCHES["margin"](most) == 20 / 43
    assert "--at: 50%" in BENCHES["bars_table"]([Figure("c", 2.0, "x", 2.0)])
    assert "--at: 100%" in BENCHES["bars_table"]([Figure("d", 0.0, "s", 2.0, at_least=False)])
    assert BENCHES["verdict"]([least, most]) == "1 of 2 bars are reached. **Missed:** b."
    ways = BENCHES["ways_of"]({"a": {"plain read": 1.0}, "b": {"torch": 1.0, "minibit": 1.0}})
    assert ways == ["minibit", "torch", "plain read"]


TIMES = {  # benchmark: details as small as they come, and the times that the page takes from them
    "gemv": (
        {"2 x 2": {"int8": 1.0, "one thread": 9.0, "read": 2.0}, "roofline": {"peak": 9.0}},
        {"2 x 2": {"minibit, int8": 1.0, "plain read": 2.0}},
    ),
    "quantise": (
        {"2 x 2": {"absmean": 1.0, "numpy absmean": 2.0, "absmax": 3.0, "numpy absmax": 4.0}},
        {"absmean": {"minibit": 1.0, "NumPy": 2.0}, "absmax": {"minibit": 3.0, "NumPy": 4.0}},
    ),
    "topk": (
        {
            "choice": {"0.4": {"one token: topk_mask": 1.0, "one token: argpartition": 2.0}},
            "product": {"2 x 2": {"zeros": [0.5, 0.6], "dense": [9.0, 3.0], "sparse": [9.0, 4.0]}},
        },
        {
            "choice, 40% zeros, one token": {"minibit": 1.0, "NumPy argpartition": 2.0},
            "product, 2 x 2": {"minibit, dense product": 3.0, "minibit, sparse product": 4.0},
        },
    ),
    "lm": (
        {
            "55k": {"float": 1.0, "float, two threads": 2.0, "b1.58, torch": 3.0},
            "many rows": {"": 9},
        },
        {
            "55k float": {"minibit, one thread": 1.0, "minibit, two threads": 2.0},
            "55k b1.58": {"PyTorch": 3.0},
        },
    ),
    "cluster": (
        {"seconds": {"strict": [[1.0, 4.0], [2.0, 5.0], [9.0, 9.0]]}},
        {"strict": {"minibit, one process": 2.0, "minibit, two workers": 5.0}},
    ),
    "step": (
        {
            "strict": {
                **{"step_seconds": [1.0, 3.0], "own": [4.0], "forward": [5.0, 7.0]},
                **{"naive_forward_passes": 10.0, "perturbations": 8},
            }
        },
        {
            "strict": {
                **{"minibit, a step": 2.0, "minibit, its own forward pass": 4.0},
                **{"NumPy forward pass": 6.0, "8 dense JVPs, one by one": 60.0},
            }
        },
    ),
    "start": (
        {"seconds": {"hidden": [1.0, 2.0, 3.0, 5.0, 4.0]}},
        {
            "import": {"minibit, SciPy hidden": 1.0},
            "first product": {"minibit, SciPy hidden": 2.0},
            "slowest further kernel": {"minibit, SciPy hidden": 5.0},
        },
    ),
    "decode": (
        {"minibit": {"token": 1.0, "read": 2.0, "load": 3.0}, "transformers": {}},
        {"a token": {"minibit": 1.0, "plain read": 2.0}, "loading": {"minibit": 3.0}},
    ),
    "train": (
        {"preset": "small", "runs": [{"seed": 4, "wall_seconds": 1.0, "cpu_seconds": 2.0}]},
        {"small, seed 4": {"minibit": 1.0, "minibit, of the CPU": 2.0}},
    ),
}


@pytest.mark.parametrize("name", TIMES)
def test_the_times_of_a_page_are_those_of_the_report(name):
    """By hand: which numbers of a report's details stand in which row and column."""
    details, expected = TIMES[name]
    assert BENCHES["TIMES"][name](details) == expected


def test_every_benchmark_has_its_times():
    """None is left without a picture; three share how they are taken."""
    assert BENCHES["TIMES"].keys() == BENCHMARKS.keys()
    assert BENCHMARKS.keys() - TIMES.keys() == {"matmul", "nf4"}
    for name in ("matmul", "nf4"):
        assert BENCHES["TIMES"][name] is BENCHES["TIMES"]["gemv"]


def test_a_report_names_no_folder_and_no_host():
    """What is recorded is the machine's kind, and nothing that tells whose it is."""
    for path in BENCHES["RECORDS"].glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'"[^"]*(/home|/tmp|/root|/usr|\\\\|[A-Z]:\\)', text), path.name
        assert set(json.loads(text)["environment"]) == {
            *("cpu", "cpus", "kernel_path", "threads", "system", "versions"),
        }  # fmt: skip


def test_every_figure_within_a_sentence_is_recorded():
    """No page asks for a figure that nobody fills in; a figure is a number."""
    known = TABLES["FIGURES"]
    for page in (ROOT / "docs").glob("*.md"):
        for name in re.findall(r"<!-- figure (\w+) -->", page.read_text(encoding="utf-8")):
            assert re.search(r"\d|\w{3}", known[name]()), name
    accurate = next(row for row in load_results("train")["rows"] if row["preset"] == "accurate")
    assert known["accurate_accuracy"]() == f"{accurate['test_accuracy']:.2%}"


def test_every_page_describes_itself():
    """Its first sentences, without marks and not too long, where it has no description."""
    assert (
        PAGES_HOOK["description"]("# A\n\n**The question.** Is `x` [it](y.md)?\n\nNo.")
        == "Is x it?"
    )
    assert PAGES_HOOK["description"]("# A\n\n" + "Word by word. " * 40).endswith("word.")
    for path in (ROOT / "chapters").glob("*.py"):
        cells = split_cells(path.read_text(encoding="utf-8"))
        told = PAGES_HOOK["description"](cells[0].text)
        assert 30 < len(told) <= 210, path.name
        assert not set("*`[]$") & set(told), path.name


def test_the_page_of_notebooks_offers_every_chapter():
    """As a notebook and as a script."""
    for path in (ROOT / "chapters").glob("ch*.py"):
        for kind in ("ipynb", "py"):
            assert f"(chapters/{path.stem}.{kind})" in PAGES_HOOK["notebooks"]()


def test_the_navigation_leads_to_every_page():
    """Nothing in docs/ is left out, and nothing is named twice."""
    named = re.findall(r"'([\w/]+\.md)'", str(HOOK["navigation"](ROOT / "docs")))
    assert len(named) == len(set(named))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(named)


def test_the_site_check_sees_dead_links(tmp_path):
    """A page or an anchor that is not there is told of; other hosts and what is there are not."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "index.html").write_text('<p id="here"></p><a href="../index.html#top">')
    (tmp_path / "data.json").write_text("{}")
    (tmp_path / "index.html").write_text(
        '<a href="sub/#here"><a href="data.json"><a href="https://x.invalid/"><a href="#">'
        '<a href="gone/"><a href="sub/#lost"><a href="nothing.py">'
    )
    assert list(CHECK["dead_links"](tmp_path, CHECK["read_pages"](tmp_path))) == [
        "index.html links to gone/: no such page",
        "index.html links to sub/#lost: no such anchor",
        "index.html links to nothing.py: no such page",
        "sub/index.html links to ../index.html#top: no such anchor",
    ]


def test_the_site_check_sees_pages_without_a_title_of_their_own(tmp_path):
    """A title that is missing, empty or another page's is told of; that of a drawing is none."""
    for name, text in {
        "a": "<title>One</title>",
        "b": "<title> </title><svg><title>a drawing</title></svg>",
        "c": "<title>\nOne</title>",
        "d": "<p>",
        "e": "<title>Two</title>",
    }.items():
        (tmp_path / f"{name}.html").write_text(text)
    assert list(CHECK["bad_titles"](CHECK["read_pages"](tmp_path))) == [
        "b.html has no title",
        "c.html has the title of a.html: One",
        "d.html has no title",
    ]


@pytest.mark.skipif(
    os.name != "posix" or CHECK["find_browser"]() is None, reason="no Chromium here"
)
def test_the_site_check_sees_a_search_that_goes_astray(tmp_path):
    """A first hit on another page than wanted is told of, and a search that finds nothing."""
    if not loopback_works():
        pytest.skip("no loopback address here")
    (tmp_path / "index.html").write_text("""<!doctype html><input class="md-search__input">
      <p class="md-search-result__item"></p><script>
      document.querySelector("input").oninput = ({ target }) => {
        document.querySelector("p").innerHTML = target.value === "lost" ? ""
          : `<a href="${target.value}/">hit</a>`;
      };</script>""")
    queries = {"tern": "glossary/|tern/", "noise": "chapters/ch06_noise/", "lost": "glossary/"}
    assert list(CHECK["check_search"](tmp_path, CHECK["find_browser"](), queries)) == [
        "search for 'noise' finds noise/, not chapters/ch06_noise/",
        "search for 'lost' finds nothing, not glossary/",
    ]


@pytest.mark.skipif(
    os.name != "posix" or CHECK["find_browser"]() is None, reason="no Chromium here"
)
def test_the_slider_obeys_the_keyboard_and_says_what_it_does(tmp_path):
    """Tab reaches it; an arrow moves it and what is told aloud; its button leads back to 0.5."""
    if not loopback_works():
        pytest.skip("no loopback address here")
    script = (ROOT / "docs" / "assets" / "slider.js").read_text(encoding="utf-8")
    (tmp_path / "index.html").write_text(
        f'<!doctype html><div class="trit-slider"></div><script>{script}</script>', encoding="utf-8"
    )
    said = """JSON.stringify([document.activeElement.tagName,
        document.querySelector("input").labels[0].textContent.includes("Threshold"),
        document.querySelector("input").getAttribute("aria-valuetext"),
        document.querySelector("[role=status]").textContent])"""
    browser = CHECK["Browser"](CHECK["find_browser"](), str(tmp_path / "profile"))
    with CHECK["serve"](tmp_path) as base:
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        call = functools.partial(browser.call, session=session)
        call("Page.enable")
        call("Page.navigate", url=f"{base}/index.html")
        browser.wait_for("Page.loadEventFired")
        heard = []
        for key in ("Tab", "ArrowRight", "ArrowRight", "Tab", " "):
            fields = {"key": key, "code": "Space" if key == " " else key}
            fields["windowsVirtualKeyCode"] = {"Tab": 9, "ArrowRight": 39, " ": 32}[key]
            call("Input.dispatchKeyEvent", type="keyDown", **fields, text=" " if key == " " else "")
            call("Input.dispatchKeyEvent", type="keyUp", **fields)
            answer = call("Runtime.evaluate", expression=said, returnByValue=True)
            heard.append(json.loads(answer["result"]["value"]))
    browser.close()
    assert [element for element, *_ in heard] == ["INPUT", "INPUT", "INPUT", "BUTTON", "BUTTON"]
    assert all(labelled for _, labelled, *_ in heard)
    assert [value.split(":")[0] for *_, value, _ in heard] == [
        "0.50",
        "0.55",
        "0.60",
        "0.60",
        "0.50",
    ]
    assert all(value.endswith(status) for *_, value, status in heard)
    assert "zeros; 1.58 bits per weight" in heard[0][-1]
    assert heard[0][-1] == heard[-1][-1] != heard[2][-1]


def test_every_test_states_its_law_and_the_pages_lead_to_its_code():
    """Each test function has a docstring, is on one page of laws, and that leads to its code."""
    rooms, source = SPEC["specification"](), "https://git.host/blob/main"
    names = []
    for room, files in rooms.items():
        text = SPEC["page"](room, files)
        for tests in files:
            lines = tests.path.read_text(encoding="utf-8").splitlines()
            shown = SPEC["tests_page"](tests, source)
            assert f"({source}" not in SPEC["tests_page"](tests, None)
            for law in tests.laws:
                assert law.sentence, f"{tests.file}: {law.name} states no law"
                assert f"def {law.name}(" in lines[law.line - 1]
                short = law.name.removeprefix("test_")
                assert f"[`{short}`](../tests/{tests.stem}.md#{law.name}) " in text
                assert f"\n## {law.name}\n" in shown
                assert f"({source}/{tests.file}#L{law.line})" in shown
                assert law.code in shown
                names.append((tests.file, law.name))
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    assert len(names) == sum(
        len(re.findall(r"^ *def test_", path.read_text(encoding="utf-8"), re.MULTILINE))
        for path in paths
    )
    assert "ties_go_to_the_lowest_index" in SPEC["page"]("topk", rooms["topk"])
    assert "KINKS = {" in SPEC["page"]("dual", rooms["dual"])


def on_page(hook, uri, markdown):
    """What a hook makes of a page."""
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=uri), meta={})
    return hook["on_page_markdown"](markdown, page=page)


def test_each_chapter_and_reference_page_leads_to_its_laws():
    """A room of the order has a page of laws, and its chapter and reference page name it."""
    assert on_page(SPEC, "chapters/ch00_ten_minutes.md", "text") == "text"
    for number, room in enumerate(minibit.ORDER, 1):
        for uri in (f"chapters/ch{number:02d}_{room}.md", f"chapters/ch{number:02d}b_more.md"):
            assert f"(../spec/{room}.md)" in on_page(SPEC, uri, "text")
        page = (ROOT / "docs" / "reference" / f"{room}.md").read_text(encoding="utf-8")
        shown = on_page(REFERENCE, f"reference/{room}.md", page)
        assert f"(../spec/{room}.md)" in shown
        assert f"(../chapters/ch{number:02d}" in shown
        assert f"(../tests/test_{room}.md)" in shown


def test_every_file_of_vectors_is_named_by_one_reference_page():
    """Each lies with the room of the functions that it calls."""
    files = [name for names in REFERENCE["vectors"]().values() for name in names]
    there = {path.name for path in (ROOT / "minibit" / "vectors").glob("*.json")}
    assert sorted(files) == sorted(there - {"schema.json"})
    assert "plans.json" in REFERENCE["vectors"]()["noise_step"]
    pages = {path.stem for path in (ROOT / "docs" / "reference").glob("*.md")}
    assert set(REFERENCE["vectors"]()) - pages <= {"datasets"}


def test_a_reference_page_shows_public_names_first_and_references_at_the_end():
    """In the order of the source, constants after functions; nothing that is offered is lost."""
    for room in minibit.ORDER:
        module = importlib.import_module(f"minibit.{room}")
        names = REFERENCE["offered"](module)
        assert sorted(names) == sorted(module.__all__)
        shown = on_page(REFERENCE, f"reference/{room}.md", f"# {room}\n\n::: minibit.{room}\n")
        members = json.loads(re.search(r"members: (.*)", shown)[1])
        late = [name for name in names if name.endswith("_reference")]
        assert members == [name for name in names if name not in late]
        for name in late:
            assert shown.index("## References") < shown.index(f"::: minibit.{room}.{name}\n")
    names = REFERENCE["offered"](importlib.import_module("minibit.absmean"))
    assert names.index("absmean_quantize") < names.index("fake_quant_weight")


def test_the_owners_addresses_are_those_of_the_project_and_placeholders_lead_nowhere(tmp_path):
    """One table of pyproject.toml: filled in, it gives the links; example.org gives none."""
    project = tmp_path / "pyproject.toml"
    for host, expected in (
        ("example.org", {}),
        ("git.host", {"Repository": "https://git.host/a", "Documentation": "https://git.host/b"}),
    ):
        urls = f'Repository = "https://{host}/a"\nDocumentation = "https://{host}/b/"\n'
        project.write_text(f'[project]\nname = "x"\n[project.urls]\n{urls}')
        assert REPOSITORY["addresses"](project) == expected
    others = [ROOT / "mkdocs.yml", ROOT / "CITATION.cff", *(ROOT / "docs").rglob("*.md")]
    assert not any("example.org" in path.read_text(encoding="utf-8") for path in others)


def test_the_theme_asks_no_host_for_stars():
    """The link to the repository stays, without the script that would ask its host."""
    link = '<a href="https://git.host/a" class="md-source" data-md-component="source">'
    assert REPOSITORY["on_post_page"](link) == link.replace(' data-md-component="source"', "")


def test_a_law_is_written_without_marks():
    """What Markdown would take for emphasis, a tag or a formula stays what it is."""
    assert SPEC["plain"]("a*b < `c_d* < e` $x$") == r"a\*b &lt; `c_d* < e` \$x\$"
