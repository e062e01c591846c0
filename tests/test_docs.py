"""The documentation is true: its examples run, and the tools of the site see what they should."""

import doctest
import importlib
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest

from minibit.absmean import absmean_quantize
from minibit.cli.notebook import split_cells

ROOT = Path(__file__).resolve().parents[1]
SHOWN = {  # every module and folder of the package that shows an example: how many lines of it
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): lines
    for path in sorted((ROOT / "minibit").rglob("*.py"))
    if (lines := path.read_text(encoding="utf-8").count(">>> "))
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HOOK = runpy.run_path(str(ROOT / "docs" / "hooks" / "chapters.py"))
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
    """The first command sets up and trains, the second tests; each sets up only once."""
    first, second, *_ = fences(ROOT / "README.md", "sh")
    assert re.search(r"^test -x .venv/bin/minibit \|\| .*pip install", first)
    assert first.endswith("\n.venv/bin/minibit train\n")
    assert re.search(r"^test -x .venv/bin/pytest \|\| .*pip install", second)
    assert second.endswith("\n.venv/bin/pytest\n")


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


def test_a_fence_is_longer_than_any_inside():
    """Text that holds three backticks is fenced by four."""
    assert HOOK["fenced"]("a ``` b", "text") == "````{ .text }\na ``` b\n````"


FAULTS = {
    "none": ("<p>Quiet.</p>", None),
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
