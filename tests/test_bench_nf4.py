"""NF4's benchmark and experiment: what is reported, on sizes made small."""

import math

import numpy as np
import pytest

from minibit.bench import Options, timing
from minibit.bench import nf4 as bench
from minibit.experiments import nf4 as experiment
from minibit.experiments import runs
from minibit.language import TrainedModel, recipe, shipped_text, train_language


@pytest.fixture
def small(monkeypatch):
    """A small matrix and short turns: what is tested is what is reported, not how fast it is."""
    monkeypatch.setattr(bench, "SIDE", 256)
    monkeypatch.setattr(bench, "SECONDS", 0.0)
    monkeypatch.setattr(timing, "ROUND", 1e-5)


def test_the_benchmark_has_its_bars(small):
    """5 times NumPy for one token; 4.5 and 4.127 bits, from the objects' own bytes."""
    report = bench.nf4(Options(threads=1))
    figures = {figure.name: figure for figure in report.figures}
    assert figures["256 x 256: one token, speed over numpy float32"].bar == 5.0
    plain, double = figures["NF4: storage"], figures["doubly quantised: storage"]
    assert (plain.value, plain.bar, plain.at_least) == (4.5, 4.5, False)
    assert (double.value, double.bar, double.at_least) == (4.127, 4.127, False)
    assert plain.passed
    assert double.passed
    assert all(math.isfinite(figure.value) and figure.value > 0 for figure in report.figures)
    assert len(report.notes) == 1


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_the_benchmark_measures_the_peer_when_asked(small):
    """15 times bitsandbytes for one token, 3 times for dequantising."""
    pytest.importorskip("bitsandbytes")
    report = bench.nf4(Options(threads=1, peers=True))
    bars = {figure.name: figure.bar for figure in report.figures}
    assert bars["256 x 256: one token, speed over bitsandbytes"] == 15.0
    assert bars["256 x 256: dequantise, speed over bitsandbytes"] == 3.0


def test_the_benchmark_says_what_it_leaves_out(small, monkeypatch):
    """Without the peer, and with more threads than its bars are for."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    report = bench.nf4(Options(peers=True, threads=2))
    assert "bitsandbytes is not installed: its figures are left out." in report.notes
    assert "The bars are meant for one thread." in report.notes
    assert not any("bitsandbytes" in figure.name for figure in report.figures)


def test_the_experiment_measures_models_and_sizes(tmp_path, monkeypatch):
    """Trained once and kept; means are those of the rows; nothing but projections is rounded."""
    vocabulary, train, validation = shipped_text()
    monkeypatch.setattr(experiment, "shipped_text", lambda: (vocabulary, train, validation[:1000]))
    monkeypatch.setattr(experiment, "SIZES", {"55k": None})
    brief = recipe("55k", "float", steps=20)
    trained = []

    def quick(job, seed):
        trained.append((job.hidden, seed))
        return train_language(brief, seed)

    monkeypatch.setattr(runs, "train_language", quick)
    rows = experiment.nf4((0, 1), runs.Runs(tmp_path, "nf4", lambda line: None))
    assert trained == [(48, 0), (48, 1)]
    assert [row["kind"] for row in rows] == ["normal", "normal", "model", "model", "size"]
    again = experiment.nf4((0,), runs.Runs(tmp_path, "again", lambda line: None))
    assert len(trained) == 2  # the models are there
    assert again[1]["added"] == rows[2]["added"]
    model, other, size = rows[2:]
    for name in experiment.CODEBOOKS:
        assert size["added"][name] == pytest.approx(
            (model["added"][name] + other["added"][name]) / 2
        )
        assert 0.05 < size["relative_error"][name] < 0.25
    for name in experiment.COMPARED:
        assert len(model["added_by_cut"][name]) == 1 + len(experiment.CUTS)
        assert model["added_by_cut"][name][0] == model["added"][name]
    params = TrainedModel.load(tmp_path / "55k_float_0.npz").params
    weights = experiment.rounded(params, np.zeros_like)
    assert {name for name in params if not weights[name].any()} == {
        name for name in params if "proj" in name
    }


def test_another_cut_rounds_the_same_weights_in_other_blocks():
    """The first block starts later; what lies before it ends the last."""
    w = np.random.default_rng(0).standard_normal((4, 48)).astype(np.float32)
    way = experiment.CODEBOOKS["NF4"]
    flat = w.reshape(-1)
    for start in experiment.CUTS:
        weights = experiment.cut_at(start, way)(w).reshape(-1)
        np.testing.assert_array_equal(weights[start : start + 64], way(flat[start : start + 64]))
        assert (weights != way(flat)).any()


def test_the_peers_fp4_has_a_smallest_number_of_a_192th():
    """And is E2M1 otherwise."""
    positive = experiment.PEER_FP4[8:]
    assert positive[0] == np.float32(0.0625) / np.float32(12)
    np.testing.assert_allclose(positive[1:] * 6, [1, 1.5, 2, 3, 4, 6], rtol=1e-6)
