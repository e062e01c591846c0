"""Recorded results: found by name, wherever the chapters lie, and in no other way."""

import ast
import json
from pathlib import Path

import pytest

from minibit import results
from minibit.experiments import EXPERIMENTS
from minibit.results import chapters_folder, load_results

CHAPTERS = sorted((Path(__file__).resolve().parents[1] / "chapters").glob("ch*.py"))
DRAWN = [path for path in CHAPTERS if "load_results(" in path.read_text(encoding="utf-8")]


def test_every_experiment_has_its_results_recorded():
    """The file names its experiment, its command, its seeds; a CPU and a row at least."""
    for name in EXPERIMENTS:
        recorded = load_results(name)
        assert recorded["experiment"] == name
        assert recorded["command"].startswith(f"minibit experiment {name} --seeds 0 1 2")
        assert recorded["seeds"] == [0, 1, 2]
        assert recorded["environment"]["cpu"]
        assert recorded["rows"]


def test_a_name_that_is_not_recorded_is_refused():
    """The message lists what is recorded; no path is followed."""
    for name in ("alchemy", "../results/train", "train.json", ""):
        with pytest.raises(ValueError, match=r"name must be one of activations, .*train"):
            load_results(name)


@pytest.mark.parametrize(("where", "expected"), [("package", 1), ("beside", 2), ("both", 1)])
def test_an_installation_carries_its_chapters_and_a_checkout_has_them_beside(
    tmp_path, monkeypatch, where, expected
):
    """``minibit/_chapters`` comes first, then ``chapters``; with neither there is a sentence."""
    monkeypatch.setattr(results, "__file__", str(tmp_path / "minibit" / "results.py"))
    with pytest.raises(RuntimeError, match="carries no chapters: reinstall"):
        load_results("a")
    for name, value in (("minibit/_chapters", 1), ("chapters", 2)):
        if where == "both" or (where == "package") == (value == 1):
            folder = tmp_path / name
            (folder / "results").mkdir(parents=True)
            (folder / "ch01_one.py").write_text("")
            (folder / "results" / "a.json").write_text(json.dumps({"rows": [value]}))
    assert load_results("a") == {"rows": [expected]}
    assert chapters_folder().is_dir()


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.stem)
def test_a_chapter_finds_its_results_from_any_folder(path, tmp_path, monkeypatch):
    """Its statements that load run in an empty folder, in a namespace without ``__file__``."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    loading = [
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if "load_results" in ast.unparse(node)
    ]
    assert isinstance(loading[0], ast.ImportFrom)
    assert len(loading) >= 2
    for node in loading:
        exec(compile(ast.Module([node], []), path.name, "exec", dont_inherit=True), namespace)
    loaded = [value for name, value in namespace.items() if not name.startswith("_")]
    assert any(isinstance(value, dict | list) and value for value in loaded)


def test_chapters_that_draw_results_are_ten_and_none_asks_where_it_lies():
    """All results are loaded by name: no chapter reads a path of its own."""
    chapters = ["ch00", "ch07", "ch07b", "ch07c", "ch09", "ch10", "ch12", "ch13", "ch14", "ch15"]
    assert [path.stem.partition("_")[0] for path in DRAWN] == chapters
    for path in CHAPTERS:
        assert "__file__" not in path.read_text(encoding="utf-8"), path.name
