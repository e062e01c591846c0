"""Experiments write what a page can draw and anyone can repeat."""

import importlib
import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner

from minibit.cli.app import app
from minibit.cluster import Remote
from minibit.cluster.replica import brief_of
from minibit.experiments import EXPERIMENTS, cluster, experiment, language, mlp, training
from minibit.experiments.runs import Runs
from minibit.noise_step import NoiseStep, digest
from minibit.results import load_results
from minibit.training import PRESETS, train


def test_the_file_holds_the_command_the_seeds_and_a_row_a_preset(tmp_path, monkeypatch):
    """Means and spreads are those of the runs in the same file."""
    accuracy = iter([0.9, 0.8] * len(PRESETS))

    def quick(name, seed):
        """Stand in for minutes of training."""
        figures = dict.fromkeys(["log_bytes", "packed_weight_bytes", "seconds", "cpu_seconds"], 7)
        return {"seed": seed, "test_accuracy": next(accuracy), **figures}

    monkeypatch.setattr(training, "train_run", quick)
    lines = []
    experiment("train", tmp_path / "new", seeds=(4, 5), say=lines.append)
    results = json.loads((tmp_path / "new" / "train.json").read_text())
    assert results["command"] == "minibit experiment train --seeds 4 5"
    assert [row["preset"] for row in results["rows"]] == list(PRESETS)
    for row in results["rows"]:
        assert row["test_accuracy"] == pytest.approx(0.85)
        assert row["test_accuracy_std"] == pytest.approx(0.0707, abs=1e-4)
        assert [run["seed"] for run in row["runs"]] == [4, 5]
    assert len(lines) == 2 * len(PRESETS)
    assert results["environment"]["versions"]["minibit"]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["train.json"]


def test_the_mlp_experiment_trains_codes_and_draws_their_way(tmp_path, monkeypatch):
    """A row for each number of steps, and noise_step's; a curve ends at the run's accuracy."""
    monkeypatch.setattr(mlp, "RUNS", ((3, 5), (2, 1)))
    monkeypatch.setattr(mlp, "accuracy", lambda codes: float(np.mean(codes["w4"] == 0)))

    def noise_step_run(folder, seed):
        return mlp._run(seed, {"w4": np.zeros((1, 2), np.int8)}, [(1, 0.5, 0.25)])

    monkeypatch.setattr(mlp, "noise_step_run", noise_step_run)
    rows = mlp.mlp((0, 1), Runs(tmp_path, "mlp", lambda line: None))
    assert [(row["steps"], row["shifts"]) for row in rows[:2]] == [(3, 5), (2, 1)]
    assert [len(row["runs"]) for row in rows] == [2, 2, 1]
    for row in rows:
        for run in row["runs"]:
            assert run["curve"][-1][2] == run["test_accuracy"]
    assert [step for step, _, _ in rows[0]["runs"][0]["curve"]] == [1, 2, 3]
    codes = mlp.straight_through_run(0, 3, 5)
    assert all(set(np.unique(w)) <= {-1, 0, 1} and w.dtype == np.int8 for w in codes.values())
    assert rows[0]["runs"][0]["digest"] == digest(codes) != rows[0]["runs"][1]["digest"]


def test_the_activations_experiment_trains_both_kinds_of_each_preset(tmp_path, monkeypatch):
    """Rows of both kinds, judged on images that were kept apart, with means of their own runs."""
    asked = []

    def quick(preset, seed, **fields):
        """Stand in for minutes of training."""
        asked.append((preset, seed, fields["activations"], fields["split_name"]))
        accuracy = 0.9 if fields["activations"] == "int8" else 0.8
        figures = dict.fromkeys(("log_bytes", "cpu_seconds"), 7)
        return SimpleNamespace(validation_accuracy=accuracy + seed / 100, **figures)

    monkeypatch.setattr(training, "scratch_run", quick)
    monkeypatch.setattr(training, "BATCH", 32)
    runs = Runs(tmp_path, "activations", lambda line: None)
    rows = training.activations((0, 2), runs, ("small", "strict"))
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
    recorded = load_results("activations")["rows"]
    rows = {(row["preset"], row["activations"]): row for row in recorded}
    assert {preset for preset, _ in rows} == set(training.MEASURED)
    for preset in PRESETS:
        pays = False
        if preset in training.MEASURED:
            exact, rough = (rows[preset, kind] for kind in ("float", "int8"))
            assert [run["seed"] for run in rough["runs"]] == [0, 1, 2]
            holds = rough["validation_accuracy"] > exact["validation_accuracy"] - 0.002
            pays = holds and rough["milliseconds"]["step"] < 0.9 * exact["milliseconds"]["step"]
        assert (PRESETS[preset].activations == "int8") == pays


def test_a_median_of_one_worker_is_that_of_a_serial_run(tmp_path, monkeypatch):
    """And a liar who is found at once, as every range is checked, changes nothing."""
    monkeypatch.setattr(cluster, "STEPS", 3)
    fields = {"steps": 3, "total_steps": 3, "split_name": "validation"}
    expected = train("strict", 5, tmp_path / "a.steps", **fields).validation_accuracy
    row = cluster.alone_run(tmp_path, 1, 5)
    assert row == {"seed": 5, "validation_accuracy": expected}
    assert cluster.liar_run(tmp_path, 1.0, 5) == {**row, "left_out_at": 0}
    assert cluster.liar_run(tmp_path, 0.0, 5)["left_out_at"] is None


def test_a_liar_whom_nobody_checks_makes_the_codes_that_are_computed_here(monkeypatch):
    """`Lied` is what workers and client make of a run with a liar, step by step."""
    monkeypatch.setattr(cluster, "STEPS", 3)
    plan, header, method = start = cluster._Start.of(6)
    brief, cut = brief_of(header, None, "lied"), "perturbations"
    remote = Remote(cluster._Crew(), plan, method, brief, cut=cut)
    course, recipe = start.course(), PRESETS["strict"]
    lied = cluster.Lied(method.perturbations, method.density, method.score)
    rules = {"zeros": recipe.zeros, "threshold": recipe.threshold}
    run = NoiseStep.start(course.model, recipe.shapes, 6, lied, **rules)
    for step in range(3):
        x, y, weight = course.batch(step)
        result = run.step(x, y, weight=weight)
        course.saw(result.hardness, result.loss)
        np.testing.assert_array_equal(remote.step().record.codes, result.record.codes)


def test_data_of_workers_are_all_data_once(tmp_path, monkeypatch):
    """Split by label, a worker has two digits or three; at random, all ten."""
    labels = np.arange(4000) % 10
    for kind, digits in (("label", {2, 3}), ("random", {10})):
        parts = cluster.shards(labels, kind, seed=2)
        assert sorted(np.concatenate(parts).tolist()) == list(range(4000))
        assert {len(set(labels[part].tolist())) for part in parts} <= digits
    monkeypatch.setattr(cluster, "STEPS", 2)
    accuracy = [
        cluster.federated_run(tmp_path, kind, 1)["validation_accuracy"] for kind in cluster.KINDS
    ]
    assert accuracy[0] != accuracy[1]


def test_the_cluster_experiment_has_a_row_a_setting(tmp_path, monkeypatch):
    """Each with the runs of all seeds."""

    def quick(folder, seed, **field):
        """Stand in for minutes of training."""
        return {"seed": seed, "validation_accuracy": 0.9 + seed / 100, "left_out_at": None}

    for name in ("alone_run", "liar_run", "federated_run"):
        quick.__name__ = name
        monkeypatch.setattr(cluster, name, quick)
    rows = cluster.cluster((0, 2), Runs(tmp_path, "cluster", lambda line: None, processes=0))
    assert [row["workers"] for row in rows if row["experiment"] == "alone"] == [1, 2, 8, 32]
    assert [row["check"] for row in rows if row["experiment"] == "liar"] == [0.0, 0.1, 0.02]
    assert [row["kind"] for row in rows if row["experiment"] == "federated"] == ["label", "random"]
    for row in rows:
        assert row["validation_accuracy"] == pytest.approx(0.91)
        assert [run["seed"] for run in row["runs"]] == [0, 2]


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
    runs = Runs(tmp_path, "language", lambda line: None)
    settings = {"size": "1k", "weights": "float", "seed": 0, "sub_norms": True}
    failed = r"run one_run_1k_float_0_True of minibit\.experiments\.language ended with status 1"
    with pytest.raises(RuntimeError, match=failed):
        runs.rows(language.one_run, [settings], "")
    assert [file.name for file in tmp_path.rglob("*")] == ["language"]


def square(folder, x, y):
    """A run; it counts how often it is done."""
    with (folder / "done").open("a") as file:
        file.write(f"{x} {os.getpid()}\n")
    if x == 9:
        raise ValueError("nine")
    return {"square": x**2, "shape": (x, y)}


def test_each_run_is_kept_as_it_ends_and_never_repeated(tmp_path):
    """An experiment that failed goes on with the run that failed; rows come in the order asked."""
    settings = [{"x": x, "y": 0.5} for x in (3, 9, 2)]
    lines = []
    runs = Runs(tmp_path / "a" / "b", "squares", lines.append)
    with pytest.raises(ValueError, match="nine"):
        runs.rows(square, settings, "{x} {y}: {square}", here=True)
    assert lines == ["3 0.5: 9"]
    rows = runs.rows(square, settings[::2], "{x}: {square}", here=True)
    assert rows == [{"square": 9, "shape": [3, 0.5]}, {"square": 4, "shape": [2, 0.5]}]
    assert lines[1:] == ["3: 9", "2: 4"]
    assert (runs.folder / "done").read_text() == "".join(f"{x} {os.getpid()}\n" for x in (3, 9, 2))
    other = Runs(tmp_path / "a" / "b", "others", lines.append)
    other.rows(square, settings[:1], "", here=True)
    assert (runs.folder / "done").read_text().count("\n") == 4


def test_a_run_may_have_a_process_of_its_own_with_one_thread(tmp_path, monkeypatch):
    """The settings go there, the row comes back, and what it prints is no part of it."""
    (tmp_path / "made_up.py").write_text(
        "import os\n\n\ndef run(folder, x, y):\n    print('on the way')\n"
        "    threads = os.environ['OPENBLAS_NUM_THREADS']\n"
        "    return {'sum': x + y, 'folder': str(folder), 'threads': threads, 'pid': os.getpid()}\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    monkeypatch.syspath_prepend(tmp_path)
    runs = Runs(tmp_path / "kept", "made_up", lambda line: None)
    settings = [{"x": 1, "y": 2.5}, {"x": 3, "y": 4}]
    first, second = runs.rows(importlib.import_module("made_up").run, settings, "")
    assert (first["sum"], second["sum"]) == (3.5, 7)
    assert first["threads"] == second["threads"] == "1"
    assert first["folder"] == str(tmp_path / "kept")
    assert len({first["pid"], second["pid"], os.getpid()}) == 3


def test_a_failed_experiment_leaves_its_runs_and_a_named_folder_stays(tmp_path, monkeypatch):
    """The default folder goes with success alone; one that was named is the caller's."""

    def measured(seeds, runs):
        return runs.rows(square, [{"x": seed, "y": 1} for seed in seeds], "", here=True)

    monkeypatch.setattr("minibit.experiments.call", lambda name, arguments: measured(*arguments))
    with pytest.raises(ValueError, match="nine"):
        experiment("nf4", tmp_path, (3, 9), print)
    assert not (tmp_path / "nf4.json").exists()
    assert experiment("nf4", tmp_path, (3,), print)["rows"] == [{"square": 9, "shape": [3, 1]}]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["nf4.json"]
    experiment("nf4", tmp_path, (3,), print, tmp_path / "kept")
    assert (tmp_path / "kept" / "nf4" / "square_3_1.json").is_file()
