"""Experiments write what a page can draw and anyone can repeat."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from minibit.cli.app import app
from minibit.experiments import EXPERIMENTS, activations, experiment, mlp, runs
from minibit.noise_step import digest
from minibit.training import PRESETS, train

ROOT = Path(__file__).resolve().parents[1]


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


def test_the_mlp_experiment_trains_codes_and_draws_their_way(monkeypatch):
    """A row for each number of steps, and noise_step's; a curve ends at the run's accuracy."""
    monkeypatch.setattr(mlp, "RUNS", ((3, 5), (2, 1)))
    monkeypatch.setattr(mlp, "accuracy", lambda codes: float(np.mean(codes["w4"] == 0)))
    first = {"w4": np.zeros((1, 2), np.int8)}
    monkeypatch.setattr(mlp, "_noise_step", lambda seed: (first, [(1, 0.5, 0.25)]))
    rows = mlp.train_mlp((0, 1), lambda line: None)
    assert [(row["steps"], row["shifts"]) for row in rows[:2]] == [(3, 5), (2, 1)]
    assert [len(row["runs"]) for row in rows] == [2, 2, 1]
    for row in rows:
        for run in row["runs"]:
            assert run["curve"][-1][2] == run["test_accuracy"]
    assert [step for step, _, _ in rows[0]["runs"][0]["curve"]] == [1, 2, 3]
    codes = mlp.straight_through_run(0, 3, 5)
    assert all(set(np.unique(w)) <= {-1, 0, 1} and w.dtype == np.int8 for w in codes.values())
    assert rows[0]["runs"][0]["digest"] == digest(codes) != rows[0]["runs"][1]["digest"]


def test_the_activations_experiment_trains_both_kinds_of_each_preset(monkeypatch):
    """Rows of both kinds, judged on images that were kept apart, with means of their own runs."""
    asked = []

    def quick(preset, seed, out, **fields):
        """Stand in for minutes of training, but for runs of no steps."""
        if fields.get("steps") == 0:
            return train(preset, seed, out, **fields)
        asked.append((preset, seed, fields["activations"], fields["split_name"]))
        accuracy = 0.9 if fields["activations"] == "int8" else 0.8
        figures = dict.fromkeys(("log_bytes", "cpu_seconds"), 7)
        return SimpleNamespace(validation_accuracy=accuracy + seed / 100, **figures)

    monkeypatch.setattr(activations, "train", quick)
    monkeypatch.setattr(activations, "BATCH", 32)
    rows = activations.compare_activations((0, 2), lambda line: None, ("small", "strict"))
    assert [(row["preset"], row["activations"]) for row in rows] == [
        ("small", "float"), ("small", "int8"), ("strict", "float"), ("strict", "int8"),
    ]  # fmt: skip
    for row in rows:
        mean = {"float": 0.81, "int8": 0.91}[row["activations"]]
        assert row["validation_accuracy"] == pytest.approx(mean)
        assert [run["seed"] for run in row["runs"]] == [0, 2]
        assert 0 < row["milliseconds"]["forward"] < row["milliseconds"]["step"]
    assert len(asked) == 8
    assert {split for *_, split in asked} == {"validation"}


def test_a_preset_rounds_if_its_measurement_says_so():
    """Accuracy within two tenths of a percent, and a first step at least a tenth quicker."""
    found = json.loads((ROOT / "chapters" / "results" / "activations.json").read_text())
    rows = {(row["preset"], row["activations"]): row for row in found["rows"]}
    assert {preset for preset, _ in rows} == set(activations.MEASURED)
    for preset in PRESETS:
        pays = False
        if preset in activations.MEASURED:
            exact, rough = (rows[preset, kind] for kind in ("float", "int8"))
            assert [run["seed"] for run in rough["runs"]] == [0, 1, 2]
            holds = rough["validation_accuracy"] > exact["validation_accuracy"] - 0.002
            pays = holds and rough["milliseconds"]["step"] < 0.9 * exact["milliseconds"]["step"]
        assert (PRESETS[preset].activations == "int8") == pays


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


def test_a_run_that_fails_is_named_with_its_status(tmp_path):
    """Which run, of which experiment; what would have been kept is not there."""
    with pytest.raises(RuntimeError, match=r"the run 1k .* of minibit\.experiments\.language .* 1"):
        runs.in_own_process("minibit.experiments.language", "1k", "float", "0", "1", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_runs_go_into_a_folder_that_is_made_or_into_one_that_goes(tmp_path):
    """A folder that was named stays, with what it keeps; a scratch folder is removed."""
    with runs.folder_of_runs(tmp_path / "a" / "b") as named:
        runs.keep(named / "x.json", {"loss": 1.5})
    with runs.folder_of_runs(tmp_path / "a" / "b") as again:
        assert runs.kept(again / "x.json") == {"loss": 1.5}
        assert [file.name for file in again.iterdir()] == ["x.json"]
    with runs.folder_of_runs(None) as scratch:
        runs.keep(scratch / "x.json", {})
    assert not scratch.exists()
