"""Experiments write what a page can draw and anyone can repeat."""

import json

import pytest
from typer.testing import CliRunner

from minibit.cli.app import app
from minibit.experiments import EXPERIMENTS, experiment
from minibit.training import PRESETS


def test_the_file_holds_the_command_the_seeds_and_a_row_a_preset(tmp_path, monkeypatch):
    """Means and spreads are those of the runs in the same file."""
    accuracy = iter([0.9, 0.8] * len(PRESETS))

    def quick(name, seeds):
        """Stand in for minutes of training."""
        assert len(seeds) == 1
        figures = dict.fromkeys(["log_bytes", "packed_weight_bytes", "seconds", "cpu_seconds"], 7)
        return [{"seed": seeds[0], "test_accuracy": next(accuracy), **figures}]

    monkeypatch.setattr("minibit.experiments.training.train_runs", quick)
    lines = []
    experiment("train", tmp_path / "new", seeds=(4, 5), say=lines.append)
    found = json.loads((tmp_path / "new" / "train.json").read_text())
    assert found["command"] == "minibit experiment train --seeds 4 5"
    assert [row["preset"] for row in found["rows"]] == list(PRESETS)
    for row in found["rows"]:
        assert row["test_accuracy"] == pytest.approx(0.85)
        assert row["test_accuracy_std"] == pytest.approx(0.0707, abs=1e-4)
        assert [run["seed"] for run in row["runs"]] == [4, 5]
    assert len(lines) == 2 * len(PRESETS)
    assert found["environment"]["versions"]["minibit"]


@pytest.mark.parametrize(("name", "seeds", "match"), [("x", (0,), "name"), ("train", (), "seeds")])
def test_bad_arguments_are_named(tmp_path, name, seeds, match):
    """Unknown experiments and no seeds are errors, and no file is written."""
    with pytest.raises(ValueError, match=match):
        experiment(name, tmp_path, seeds)
    assert not list(tmp_path.iterdir())


def test_the_command_lists_experiments_and_refuses_others():
    """Without a name a list; an unknown name is bad use, exit status 2."""
    listed = CliRunner().invoke(app, ["experiment", "--json"])
    assert listed.exit_code == 0
    assert json.loads(listed.stdout.splitlines()[-1])["experiments"] == sorted(EXPERIMENTS)
    assert CliRunner().invoke(app, ["experiment", "alchemy"]).exit_code == 2
