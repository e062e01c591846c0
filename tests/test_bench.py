"""Benchmarks: what a figure is, how times are taken, and that a missed bar is never passed."""

import json
import os
import subprocess
import sys
import types
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minibit import bench, training
from minibit.bench import Benchmark, Figure, Options, Report, processes, timing
from minibit.bench import training as bench_training
from minibit.layers import mlp
from minibit.noise import initial_codes

values = st.floats(-1e9, 1e9)


@given(values, values)
def test_a_figure_passes_on_its_side_of_the_bar(value, limit):
    """At least, or at most; a value on the bar passes."""
    assert Figure("a", value, "x", limit).passed == (value >= limit)
    assert Figure("a", value, "x", limit, at_least=False).passed == (value <= limit)
    assert Figure("a", limit, "x", limit).passed
    assert Figure("a", limit, "x", limit, at_least=False).passed


def test_no_bar_passes_and_no_number_fails():
    """A figure without a bar is only shown; NaN reaches no bar."""
    assert Figure("a", float("nan"), "x").passed
    assert not Figure("a", float("nan"), "x", 1.0).passed
    assert not Figure("a", float("nan"), "x", 1.0, at_least=False).passed


def test_a_report_passes_only_with_all_its_figures():
    """One missed bar is enough."""
    good, bad = Figure("a", 2.0, "x", 1.0), Figure("b", 2.0, "s", 1.0, at_least=False)
    assert Report((good, good)).passed
    assert not Report((good, bad)).passed


def test_a_report_is_json_with_its_verdicts():
    """Figures, notes and details as they are, and ``passed`` for each figure and for all."""
    report = Report(
        (Figure("a", 2.0, "x", 1.0), Figure("b", 3.0, "s", 1.0, at_least=False)),
        ("A note.",),
        {"rounds": [1, 2]},
    )
    fields = json.loads(json.dumps(report.to_dict()))
    verdicts = [figure.pop("passed") for figure in fields["figures"]]
    assert [Figure(**figure) for figure in fields["figures"]] == list(report.figures)
    assert verdicts == [True, False]
    assert (fields["notes"], fields["details"]) == (["A note."], {"rounds": [1, 2]})
    assert fields["passed"] is False


@pytest.fixture
def clock(monkeypatch):
    """A clock that shows what its first entry says."""
    shown = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: shown[0])
    return shown


def test_candidates_take_turns(clock):
    """Warm-ups first, then one call of each, round after round, each timed."""
    calls = []

    def work(name, seconds):
        calls.append(name)
        clock[0] += seconds

    times = bench.interleaved(
        {"a": lambda: work("a", 1), "b": lambda: work("b", 2)},
        seconds=0,
        least_rounds=3,
        warmups=1,
    )
    assert calls == ["a", "b", "a", "b", "a", "b", "a", "b"]
    assert {name: samples.tolist() for name, samples in times.items()} == {
        "a": [1, 1, 1],
        "b": [2, 2, 2],
    }


def test_a_turn_may_warm_and_time_several_calls(clock):
    """Untimed calls come first; the mean of the timed ones is a round's time."""
    calls = []  # a takes one second each time, b as many as it was called before

    def work(name):
        clock[0] += 1 if name == "a" else calls.count("b")
        calls.append(name)

    times = bench.interleaved(
        {"a": lambda: work("a"), "b": lambda: work("b")},
        seconds=0,
        least_rounds=2,
        warmups=0,
        turns={"a": (2, 1), "b": (1, 3)},
    )
    assert calls == 2 * ["a", "a", "a", "b", "b", "b", "b"]
    assert times["a"].tolist() == [1, 1]
    assert times["b"].tolist() == [(1 + 2 + 3) / 3, (5 + 6 + 7) / 3]


def test_rounds_go_on_until_the_time_is_used(clock):
    """At least the seconds asked for, and no round more."""

    def work():
        clock[0] += 0.25

    times = bench.interleaved({"a": work}, seconds=5, least_rounds=1)
    assert times["a"].tolist() == [0.25] * 20


def test_nothing_to_time_is_an_error():
    """An empty dict is a mistake."""
    with pytest.raises(ValueError, match="candidates"):
        bench.interleaved({})


def test_the_process_of_a_benchmark_lets_numpy_run_at_its_best(monkeypatch):
    """Thread counts are set; settings that bind OpenBLAS to another CPU are not passed on."""
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MINIBIT_KERNELS", "portable")
    environment = bench.clean_environment(2)
    assert {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"}.isdisjoint(environment)
    assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == "2"
    assert environment["MINIBIT_KERNELS"] == "portable"
    assert environment["PATH"] == os.environ["PATH"]


def test_the_environment_names_what_was_measured_on():
    """CPU, kernel path, threads and versions, as JSON."""
    environment = json.loads(json.dumps(bench.environment(3)))
    assert environment["threads"] == 3
    assert environment["cpu"]
    assert environment["versions"]["numpy"] == np.__version__
    assert environment["kernel_path"] in ("reference", "portable", "avx2", "vnni", "amx")


def test_the_environment_names_the_peers_that_were_loaded(monkeypatch):
    """A library that only lies there is no peer of a measurement."""
    for name in ("torch", "bitsandbytes", "transformers", "distributed"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(processes, "version", lambda name: f"{name}'s")
    assert "torch" not in bench.environment(1)["versions"]
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert bench.environment(1)["versions"]["torch"] == "torch's"


def test_importing_the_harness_imports_no_compiler():
    """Neither numba nor typer; benchmarks are imported when they run."""
    code = "import sys, minibit.bench; print(sorted({'numba', 'typer', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", sorted(bench.BENCHMARKS))
def test_every_benchmark_is_there_to_run(name):
    """Its module has its function."""
    module, _, function = bench.BENCHMARKS[name].function.partition(":")
    code = f"from {module} import {function}; assert callable({function})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert bench.BENCHMARKS[name].summary


def test_an_unknown_benchmark_or_thread_count_or_no_seed_is_refused():
    """The message lists what there is."""
    with pytest.raises(ValueError, match=r"must be .*step.*train.*got 'nothing'"):
        bench.run("nothing", Options())
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        bench.run("step", Options(threads=0))
    with pytest.raises(ValueError, match="seeds must not be empty"):
        bench.run("train", Options(seeds=()))


def test_a_preset_is_checked_before_a_process_is_started(monkeypatch):
    """Each benchmark says which it takes, and these are all that it knows."""
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    for name, preset in (("step", "paper"), ("train", "huge"), ("gemv", "small")):
        with pytest.raises(ValueError, match=f"preset of benchmark {name} must be"):
            bench.run(name, Options(preset=preset))
    assert set(bench.BENCHMARKS["train"].presets) == set(training.PRESETS)
    assert set(bench.BENCHMARKS["train"].presets) == set(bench_training.BARS)
    assert set(bench.BENCHMARKS["step"].presets) == set(bench_training.STEP_BARS)


@pytest.mark.parametrize(("asked", "expected"), [(None, 1), (2, 2)])
def test_a_benchmark_may_have_its_own_process(tmp_path, monkeypatch, asked, expected):
    """It gets its options and thread count, prints what it likes, and its report comes back."""
    (tmp_path / "made_up.py").write_text(
        "import os\nfrom dataclasses import asdict\n"
        "from minibit.bench import Figure, Report\n\n\n"
        "def measure(options):\n"
        "    print('on the way')\n"
        "    threads = float(os.environ['OPENBLAS_NUM_THREADS'])\n"
        "    return Report((Figure('threads', threads, 'x'),), (), asdict(options))\n"
    )
    (tmp_path / "sitecustomize.py").write_text(
        "import minibit.bench as b\n"
        "b.BENCHMARKS['made_up'] = b.Benchmark('made up', 'made_up:measure')\n"
    )
    monkeypatch.setitem(
        bench.BENCHMARKS, "made_up", Benchmark("made up", "made_up:measure", own_process=True)
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    monkeypatch.setenv("PYTHONPATH", path)
    report = bench.run("made_up", Options(threads=asked, peers=True, seeds=(7,)))
    assert report["figures"][0]["value"] == report["environment"]["threads"] == expected
    assert report["details"] == {
        "threads": expected,
        "peers": True,
        "preset": "",
        "seeds": [7],
    }


def test_a_process_that_fails_is_an_error(monkeypatch):
    """Its status is told."""
    monkeypatch.setitem(bench.BENCHMARKS, "gone", Benchmark("made up", "nowhere:measure"))
    with pytest.raises(RuntimeError, match="benchmark gone ended with status 1"):
        bench.run("gone", Options())


def ternary_weights(widths):
    """Float32 weights of a network, half of them 0."""
    shapes = enumerate(pairwise(widths), 1)
    layers = {f"w{k}": initial_codes(0, (n_out, n_in), 0.5, k) for k, (n_in, n_out) in shapes}
    return {name: codes.astype(np.float32) for name, codes in layers.items()}


def test_the_numpy_forward_pass_is_the_plain_model():
    """The unit of cost computes what `layers.mlp` computes, in float32."""
    weights = ternary_weights((12, 8, 8, 3))
    x = np.random.default_rng(0).random((5, 12), dtype=np.float32)
    out = bench_training.numpy_forward(weights, x)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, mlp(weights, x), rtol=1e-4, atol=1e-4)


def test_the_naive_jvp_is_a_whole_tangent():
    """One dense direction through the plain model: the slope of a finite difference."""
    weights = {name: w.astype(np.float64) + 0.1 for name, w in ternary_weights((6, 5, 3)).items()}
    x = np.random.default_rng(1).random((4, 6))
    tangent = bench_training.naive_jvp(weights, x)
    nudge = 1e-6
    up = mlp({name: w + nudge for name, w in weights.items()}, x)
    down = mlp({name: w - nudge for name, w in weights.items()}, x)
    np.testing.assert_allclose(tangent, (up - down) / (2 * nudge), rtol=1e-4, atol=1e-4)


def test_each_step_is_measured_by_the_pause_that_follows_it():
    """Steps 1 and 2 by the pause after step 2, step 3 by that after 3; the rest by the last."""
    ratios = bench_training.in_forward_passes(np.array([4.0, 6.0, 9.0, 3.0]), [2, 3], [2.0, 3.0])
    np.testing.assert_array_equal(ratios, [2, 3, 3, 1])


@pytest.fixture
def tiny(monkeypatch):
    """Presets small enough to run here."""
    presets = {
        name: replace(preset, batch=(32, 48), widths=(784, 8, 10), shifts=1, perturbations=4)
        for name, preset in training.PRESETS.items()
    }
    monkeypatch.setattr(training, "PRESETS", presets)
    monkeypatch.setattr(training.loop, "PRESETS", presets)


@pytest.mark.parametrize("preset", ["strict", "accurate"])
def test_the_cost_of_a_step_is_the_mean_of_its_ratios(tiny, preset):
    """Every step is counted once, against the forward passes of its window."""
    cost = bench_training.step_cost(preset, steps=4)
    assert len(cost["step_seconds"]) == 4
    assert cost["at"][-1] == 4
    assert len(cost["at"]) == len(cost["forward"])
    seconds = np.array(cost["step_seconds"])
    ratios = bench_training.in_forward_passes(seconds, cost["at"], cost["forward"])
    assert cost["forward_passes"] == pytest.approx(ratios.mean(), rel=1e-3)
    assert (cost["naive_forward_passes"] is None) == (preset == "accurate")
    own = bench_training.in_forward_passes(seconds, cost["at"], cost["own"])
    assert cost["own_forward_passes"] == pytest.approx(own.mean(), rel=1e-3)
    assert cost["perturbations"] == (4 if preset == "strict" else 0)


def test_bench_step_judges_both_presets_by_their_bars(monkeypatch):
    """20 forward passes for strict, 3 for accurate; one preset alone on request."""

    def measured(preset, *, threads):
        passes = {"strict": 20.0, "accurate": 3.1}[preset]
        return {
            "forward_passes": passes,
            "step_seconds": [0.1],
            "forward": [0.01],
            "own": [0.004],
            "own_forward_passes": 2.5 * passes,
            "perturbations": 128,
            "naive_forward_passes": 260.0 if preset == "strict" else None,
        }

    monkeypatch.setattr(bench_training, "step_cost", measured)
    report = bench_training.step(Options())
    judged = {figure.name: figure for figure in report.figures if figure.bar is not None}
    assert [(f.bar, f.passed) for f in judged.values()] == [(20.0, True), (3.0, False)]
    assert any("naive" in figure.name for figure in report.figures)
    assert bench_training.step(Options(preset="strict")).passed


def test_bench_train_is_a_mean_over_seeds(monkeypatch):
    """Mean accuracy, longest run and largest log against the bars of the preset."""

    def measured(preset, seed, *, threads):
        return {
            "seed": seed,
            "test_accuracy": (0.962, 0.964, 0.966)[seed],
            "wall_seconds": 50.0 + seed,
            "compile_seconds": 1.0,
            "log_bytes": 39_000 + seed,
            "packed_weight_bytes": 66_868,
        }

    monkeypatch.setattr(bench_training, "train_run", measured)
    report = bench_training.train(Options())
    figures = {figure.name: figure for figure in report.figures}
    mean = figures["test accuracy, mean of 3 seeds"]
    assert mean.value == pytest.approx(0.964)
    assert (mean.bar, mean.passed) == (0.963, True)
    assert figures["test accuracy, standard deviation"].value == pytest.approx(0.002)
    longest, largest = figures["seconds, longest run"], figures["log, largest"]
    assert (longest.value, longest.bar, longest.at_least) == (52.0, 60.0, False)
    assert (largest.value, largest.bar, largest.at_least) == (39_002.0, 40_000.0, False)
    assert report.passed
    assert not bench_training.train(Options(preset="accurate")).passed


def test_training_runs_are_reported_as_they_end(tiny):
    """One entry for each seed, JSON types, different seeds giving different weights."""
    runs = [bench_training.train_run("small", seed, steps=2, threads=1) for seed in (3, 4)]
    assert json.loads(json.dumps(runs)) == runs
    assert [run["seed"] for run in runs] == [3, 4]
    assert runs[0]["digest"] != runs[1]["digest"]
    assert {run["steps"] for run in runs} == {2}
    assert all(run["wall_seconds"] >= run["seconds"] > 0 for run in runs)
