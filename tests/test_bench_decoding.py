"""The benchmark of decoding: what it reports, on a model made small; not how fast it is."""

import importlib.util
import json

import pytest

from minibit import bench, kernels
from minibit.bench import Options
from minibit.bench import decoding as bench_decoding
from minibit.checkpoint import random_checkpoint
from minibit.transformer import BitNetConfig

CONFIG = BitNetConfig(260, 64, 192, layers=2, heads=4, kv_heads=2, max_positions=4096)
BYTES = 2 * (4 * 64 * 64 + 3 * 192 * 64) // 4 + 260 * 64 * 2  # 32 rows fill half a panel

pytestmark = pytest.mark.skipif(not kernels.compiled(), reason="needs compiled kernels")


@pytest.fixture
def small(monkeypatch):
    """A small model, and no time for rounds."""
    monkeypatch.setattr(bench_decoding, "CONFIG", CONFIG)
    monkeypatch.setattr(bench_decoding, "SECONDS", 0.0)


def test_a_checkpoint_is_loaded_decoded_and_read_in_turn(tmp_path):
    """Seconds, bytes and rounds; the bytes are those of packed weights and bfloat16 head."""
    random_checkpoint(tmp_path / "model", CONFIG)
    figures = bench_decoding.measure(tmp_path / "model", 1, 0.0)
    if kernels.layout(kernels.path()) == "panels":
        assert figures["bytes"] == BYTES
    assert figures["rounds"] == 16
    assert min(figures["load"], figures["token"], figures["read"]) > 0
    assert figures["memory"] is None or figures["memory"] > 10_000_000


def test_the_report_has_a_bar_for_loading_memory_and_speed(small):
    """Under 10 s, at most 1.5 GB, at least half of what memory allows; measured in a process."""
    report = bench_decoding.decode(Options(threads=1))
    figures = {figure.name: figure for figure in report.figures}
    loading, share = figures["loading"], figures["share of what memory allows"]
    assert (loading.bar, loading.at_least) == (10.0, False)
    assert (share.bar, share.at_least) == (0.5, True)
    ours, allowed = figures["tokens per second"], figures["tokens per second that memory allows"]
    assert share.value == pytest.approx(ours.value / allowed.value)
    for name, figure in figures.items():
        if name.startswith("resident"):
            assert (figure.bar, figure.at_least) == (1.5e9, False)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_without_transformers_its_figures_are_left_out_and_that_is_said(small, monkeypatch):
    """A peer that is not installed is a note, no error."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    asked = []

    def process(name, path, threads):
        asked.append((name, threads, (path / "config.json").is_file()))
        return {"load": 1, "token": 2, "read": 1, "bytes": 3, "memory": None, "rounds": 16}

    monkeypatch.setattr(bench_decoding, "_in_own_process", process)
    report = bench_decoding.decode(Options(threads=2, peers=True))
    assert asked == [("measure", 2, True)]
    assert any("transformers is not installed" in note for note in report.notes)
    assert any("resident memory" in note for note in report.notes)
    assert not any("transformers" in figure.name for figure in report.figures)
    assert report.passed  # 0.5 of what memory allows is on the bar


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)
def test_transformers_decodes_the_same_files(tmp_path):
    """In bfloat16, token by token with its cache."""
    random_checkpoint(tmp_path / "model", CONFIG)
    figures = bench_decoding.measure_transformers(tmp_path / "model", 1, 0.0)
    assert figures["rounds"] == 2
    assert figures["token"] > 0


def test_a_process_that_fails_is_an_error(small, tmp_path):
    """No checkpoint there: the status is told, and what it said went to standard error."""
    with pytest.raises(RuntimeError, match="process of measure ended with status 1"):
        bench_decoding._in_own_process("measure", tmp_path / "none", 1)


def test_a_full_disk_is_told_before_anything_is_written(monkeypatch):
    """Two GB must be free."""
    monkeypatch.setattr(bench_decoding, "SPACE", 10**18)
    with pytest.raises(RuntimeError, match="GB free"):
        bench_decoding.decode(Options())


def test_the_benchmark_is_listed(monkeypatch):
    """``minibit bench decode``; on the reference path it says what it needs."""
    monkeypatch.setenv("MINIBIT_KERNELS", "reference")
    with pytest.raises(ValueError, match="compiled kernels"):
        bench.run("decode", Options())
