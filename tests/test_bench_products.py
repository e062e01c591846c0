"""The benchmarks of products: figures for every shape, with their bars, on shapes made small."""

import math
import os

import numpy as np
import pytest

from minibit import kernels
from minibit.bench import Options, notes, products, start, timing
from minibit.plots import roofline_figure


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small matrices and short turns: what is tested is what is reported, not how fast it is."""
    monkeypatch.setattr(products, "LARGE", ((64, 128), (48, 64), (64, 64), (96, 128)))
    monkeypatch.setattr(products, "SMALL", ((32, 64),))
    monkeypatch.setattr(timing, "ROUND", 1e-5)
    monkeypatch.setattr(products, "SECONDS", 0.0)
    monkeypatch.setattr(products, "CACHE", 100_000)


def test_one_token_is_measured_against_numpy_memory_and_the_portable_kernel():
    """Every large shape has its bars: 20 times NumPy, 1.15 end to end, 0.85 of a plain read."""
    report = products.gemv(Options(threads=1))
    bars = {figure.name: figure.bar for figure in report.figures}
    assert bars["64 x 128: int8, speed over NumPy float32"] == 20.0
    assert bars["64 x 128: end to end, times int8"] == 1.15
    assert bars["32 x 64: int8, speed over NumPy float32"] == 4.0
    if kernels.compiled():
        assert bars["64 x 128: share of a plain read"] == 0.85
        assert bars["64 x 128: portable, speed over NumPy float32"] == 5.0
    assert all(math.isfinite(figure.value) and figure.value > 0 for figure in report.figures)
    shapes = {"64 x 128", "48 x 64", "64 x 64", "96 x 128", "32 x 64"}
    assert set(report.details) == shapes | {"roofline"}


def test_the_details_are_a_roofline_that_can_be_drawn():
    """Every way to multiply has its place: multiplications a byte, multiplications a second."""
    roofline = products.gemv(Options(threads=1)).details["roofline"]
    assert roofline["points"]["numpy float32"][0] == 0.25
    assert roofline["points"]["int8"][0] == 4.0
    drawn = roofline_figure(**roofline)
    assert {"int8", "numpy float32"} <= {line.get_label() for line in drawn.axes[0].lines}


@pytest.mark.skipif(kernels.path() not in ("avx2", "vnni", "amx"), reason="no AVX2 here")
def test_the_peak_of_avx2_is_that_of_real_dot_products():
    """A round multiplies codes by 4 activations of each of 6 tokens, in 16 int16 pairs a vector."""
    from minibit.kernels import peaks

    scratch = np.random.default_rng(0).integers(-100, 100, 6 * 64).astype(np.int8)
    codes = (
        (scratch[:64].view(np.uint8) & 3).reshape(2, 16, 2).astype(np.int16)
    )  # (vector, pair, 2)
    sums = scratch.view(np.int16).reshape(6, 2, 16).copy()  # (token, vector, pair)
    for i in range(2):
        for token in range(6):
            four = scratch[4 * (i + token) : 4 * (i + token) + 4].reshape(2, 2).astype(np.int16)
            sums[token] += (codes * np.tile(four, (8, 1))).sum(axis=-1, dtype=np.int16)
    assert peaks.avx2(2, scratch.view(np.int32)) == 2 * products.PEAKS["avx2"]
    np.testing.assert_array_equal(scratch.view(np.int16), sums.ravel())


def test_many_tokens_are_held_against_the_peak_of_the_cpu():
    """Where the path has dot products of bytes; its time is that of the same multiplications."""
    report = products.matmul(Options(threads=1))
    shares = [figure for figure in report.figures if "peak" in figure.name]
    assert bool(shares) == (kernels.path() in products.PEAKS)
    for figure in shares:
        times = report.details[figure.name.rpartition(":")[0]]
        assert figure.value == pytest.approx(times["peak"] / times["int8"])


def test_one_copy_more_than_the_caches_hold_is_read_in_turn(monkeypatch):
    """Copies are no views: each has bytes of its own."""
    monkeypatch.setattr(products, "CACHE", 10_000)
    problem = products.Problem(64, 128, 1, Options())
    matrix = problem.matrix
    copies = products.copies(matrix, problem.codes)
    assert len(copies) * matrix.nbytes <= 10_000 < (len(copies) + 1) * matrix.nbytes
    assert not any(np.shares_memory(one._packed, matrix._packed) for one in copies)
    np.testing.assert_array_equal(copies[0].codes(), matrix.codes())


def test_the_portable_kernel_is_timed_and_the_environment_stays_as_it_was(monkeypatch):
    """Its matrix has its own layout; the path in force is not changed."""
    monkeypatch.delenv("MINIBIT_KERNELS", raising=False)
    problem = products.Problem(64, 128, 1, Options())
    ways = problem.ways_of_one_token()
    assert "MINIBIT_KERNELS" not in os.environ
    if kernels.compiled():
        np.testing.assert_array_equal(ways["portable"](), ways["int8"]())


def test_a_run_with_more_threads_says_that_its_bars_are_for_one():
    """And a run with peers but without PyTorch says so; see the notes."""
    for threads in (1, 2):
        sentences = notes(Options(threads=threads), "PyTorch", "torch")
        assert any("one thread" in sentence for sentence in sentences) == (threads == 2)
    (_, missing) = notes(Options(peers=True), "Nobody's library", "nobodys_library")
    assert missing == "Nobody's library is not installed: its figures are left out."


def test_the_start_is_timed_in_fresh_processes(monkeypatch):
    """Import, first call and further kernels with their bars, SciPy hidden, and seen if there."""
    monkeypatch.setattr(start, "ROUNDS", 1)
    report = start.start(Options())
    bars = [figure.bar for figure in report.figures]
    assert bars[:3] == [0.1, 0.35, 0.02]
    assert all(0 < figure.value < 60 for figure in report.figures)
    assert set(report.details["seconds"]) <= {"hidden", "as installed"}
    assert all(len(seconds) == 5 for seconds in report.details["seconds"].values())
