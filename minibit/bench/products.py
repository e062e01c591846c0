"""``bench gemv``, ``bench matmul`` and ``bench quantise``: products and quantisers beside NumPy.

Everything is timed through the public functions. A product "from memory" goes in turn through
copies that no cache holds, as decoding goes through a model's layers. Bars hold for one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from minibit import kernels
from minibit.absmean import absmax_quantize, absmean_quantize
from minibit.bench import Figure, Options, Report, installed, notes, speeds, warm_medians
from minibit.bench.timing import in_turn
from minibit.kernels.threads import cpus
from minibit.matmul import ternary_matmul, ternary_matmul_int8
from minibit.ternary import TernaryMatrix

__all__ = ["gemv", "matmul", "quantise"]

LARGE = ((4096, 4096), (2560, 6912), (6912, 2560), (14336, 4096))  # (n_out, n_in)
SMALL = ((256, 256), (256, 784))
GROUP = 64  # columns that share a scale, as in Q2_0
CACHE = 256_000_000  # bytes; more than the last cache of a CPU, or a core's share of it, holds
SECONDS = 3.0  # for all candidates of a shape
ROUNDS = 20_000  # of independent dot products: the peak
PEAKS = {"avx2": 12 * 32, "vnni": 24 * 64, "amx": 24 * 64}  # multiplications of a round
WORDS = {  # of ways, where a figure names them otherwise than the details
    "numpy float32": "NumPy float32",
    "copy": "a copy of its bytes",
    "read": "a plain read alone",
    "numpy absmean": "NumPy",
    "numpy absmax": "NumPy",
    "groups": f"a scale per {GROUP} columns",
}
Bars = dict[str, float | None]
Ways = dict[str, Callable[[], object]]
BYTES = {  # of a weight
    **{"int8": 0.25, "end to end": 0.25, "portable": 0.25},
    **{"numpy float32": 4, "torch float32": 4, "torch bfloat16": 2, "torch int8": 1},
}
TORCH: Bars = dict.fromkeys(("torch float32", "torch bfloat16", "torch int8"))
ALL_BARS: dict[str, Bars] = {  # for one token: our way's least speeds over other ways
    "int8": {"numpy float32": 4.0, **TORCH},
    "end to end": {"numpy float32": None},
}
LARGE_BARS: dict[str, Bars] = ALL_BARS | {
    "int8": {"numpy float32": 20.0, **TORCH, "torch int8": 12.0, "copy": None},
    "portable": {"numpy float32": 5.0},
    "groups": {"numpy float32": 20.0},
    "read": {"torch int8": None},
}


def gemv(options: Options) -> Report:
    """Time one token: against NumPy, a plain read and a copy of the weights, and PyTorch."""
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    for shape in (*LARGE, *SMALL):
        name, large = "{} x {}".format(*shape), shape in LARGE
        problem = Problem(*shape, 1, options)
        ways = problem.ways_of_one_token() | ({"groups": problem.grouped()} if large else {})
        times = details[name] = warm_medians(ways, SECONDS)
        for ours, bars in (LARGE_BARS if large else ALL_BARS).items():
            figures += speeds(f"{name}: {WORDS.get(ours, ours)}", times, ours, bars, WORDS)
        if large:
            loss = times["end to end"] / times["int8"]
            figures.append(Figure(f"{name}: end to end, times int8", loss, "x", 1.15, False))
            words, loss = WORDS["groups"], times["groups"] / times["end to end"]
            figures.append(Figure(f"{name}: {words}, times one scale", loss, "x", 1.3, False))
        if large and "read" in times:
            for words, source in (("share of a plain read", ""), ("the same", " from memory")):
                share = times[f"read{source}"] / times[f"int8{source}"]
                figures.append(Figure(f"{name}: {words}{source}", share, "share", 0.85))
        if shape == LARGE[-1]:
            figures += speeds(f"{name}: two threads", times, "two threads", {"one thread": 1.5})
        rate = problem.matrix.nbytes / times["int8"] / 1e9
        figures.append(Figure(f"{name}: packed weights read", rate, "GB/s"))
        if shape == LARGE[0]:
            points = {
                way: (1 / size, problem.codes.size / times[way])
                for way, size in BYTES.items()
                if way in times
            }
            details["roofline"] = _roofline(f"One token, {name}", points)
    return Report(figures, notes(options, "PyTorch", "torch"), details)


def matmul(options: Options) -> Report:
    """Time many tokens: against NumPy, PyTorch and the measured peak of the dot products."""
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    gains: list[float] = []
    points: dict[str, tuple[float, float]] = {}
    path = kernels.path()
    shapes = [(*LARGE[0], 2), (*LARGE[0], 12)]
    shapes += [(*shape, tokens) for shape in LARGE[:3] for tokens in (48, 192)]
    for n_out, n_in, tokens in [*shapes, (256, 784, 1024)]:
        name, many = f"{n_out} x {n_in}, {tokens} tokens", tokens >= 48
        large, work = many and n_out > 256, n_out * n_in * tokens
        ways = Problem(n_out, n_in, tokens, options).ways()
        if path in PEAKS:
            ways["peak"] = _peak_rounds
        times = details[name] = warm_medians(ways, SECONDS)
        half, byte = None if many else 4.0, None
        if path == "amx" and large:
            half = byte = 1.05
            peers = [times[way] for way in ("torch bfloat16", "torch int8") if way in times]
            gains += [seconds / times["end to end"] for seconds in peers]
        bars: Bars = {"torch bfloat16": half, "torch int8": byte}
        bars |= {"numpy float32": 3.5 if many else None, "torch float32": 3.0 if large else None}
        figures += speeds(f"{name}: end to end", times, "end to end", bars, WORDS)
        if "peak" in times:
            times["peak"] *= work / ROUNDS / PEAKS[path]  # as long as this product would take
            bar = 0.85 if tokens >= 192 and large and path == "vnni" else None
            title = f"{name}: share of the {'AVX2' if path == 'avx2' else 'VNNI'} peak"
            figures.append(Figure(title, times["peak"] / times["int8"], "share", bar))
        if (n_out, n_in) == LARGE[0]:
            points[f"{tokens} tokens"] = (4.0 * tokens, work / times["end to end"])
    details["roofline"] = _roofline("{} x {}, by tokens".format(*LARGE[0]), points)
    if gains:
        mean = float(np.exp(np.mean(np.log(gains))))
        figures.append(Figure("AMX: geometric mean over torch's", mean, "x", 1.4))
    return Report(figures, notes(options, "PyTorch", "torch"), details)


def quantise(options: Options) -> Report:
    """Time the quantisers of weights and activations against NumPy's plain expressions."""
    w = np.random.default_rng(0).standard_normal((4096, 4096), dtype=np.float32)

    def rounded(scale: Any, least: int, most: int) -> object:
        return np.clip(np.rint(w * scale), least, most).astype(np.int8)

    def rows() -> Any:
        return np.maximum(np.abs(w).max(axis=-1, keepdims=True), 1e-5)

    ways: Ways = {
        "absmean": lambda: absmean_quantize(w),
        "numpy absmean": lambda: rounded(1 / max(np.abs(w).mean(), np.float32(1e-5)), -1, 1),
        "absmax": lambda: absmax_quantize(w),
        "numpy absmax": lambda: rounded(127 / rows(), -128, 127),
    }
    times = warm_medians(ways, SECONDS)
    figures = []
    for ours, bar in (("absmean", 5.0), ("absmax", 4.0)):
        figures += speeds(f"4096 x 4096: {ours}", times, ours, {f"numpy {ours}": bar}, WORDS)
    return Report(figures, notes(options, "PyTorch", "torch"), {"4096 x 4096": times})


class Problem:
    """Random codes and activations, the matrix that holds the codes, and ways to multiply them."""

    def __init__(self, n_out: int, n_in: int, tokens: int, options: Options) -> None:
        rng = np.random.default_rng(n_out + n_in)
        self.codes = rng.integers(-1, 2, (n_out, n_in), dtype=np.int8)
        self.x = rng.integers(-127, 128, (tokens, n_in), dtype=np.int8)
        self.matrix = TernaryMatrix.from_codes(self.codes, 0.02)
        self.threads = options.threads or 1
        self.peers = options.peers and installed("torch")

    def ways(self) -> Ways:
        """Return ours, NumPy's, and PyTorch's if asked for; int8 where its build has that."""
        x, w = self.x.astype(np.float32), self.codes.astype(np.float32)
        ways: Ways = {
            "int8": lambda: ternary_matmul_int8(self.x, self.matrix, threads=self.threads),
            "end to end": lambda: ternary_matmul(x, self.matrix, threads=self.threads),
            "numpy float32": lambda: x @ w.T,
        }
        if not self.peers:
            return ways
        import torch

        linear, a, b = torch.nn.functional.linear, torch.from_numpy(x), torch.from_numpy(w)
        c, d = a.bfloat16(), b.bfloat16()
        e, f = torch.from_numpy(self.x), torch.from_numpy(self.codes).t()
        ways |= {"torch float32": lambda: linear(a, b), "torch bfloat16": lambda: linear(c, d)}
        with suppress(RuntimeError, AttributeError):
            torch._int_mm(e, f)
            ways["torch int8"] = lambda: torch._int_mm(e, f)
        return ways

    def grouped(self) -> Callable[[], object]:
        """Return the product with the same codes and a float16 scale per group of columns."""
        n_out, n_in = self.codes.shape
        scales = np.random.default_rng(0).uniform(0.01, 0.03, (n_out, n_in // GROUP))
        matrix = TernaryMatrix.from_codes(self.codes, scales.astype(np.float16))
        x = self.x.astype(np.float32)
        return lambda: ternary_matmul(x, matrix, threads=self.threads)

    def ways_of_one_token(self) -> Ways:
        """Return also a copy and a plain read of the weights, other kernels, and two threads."""
        x, matrix, words = self.x, self.matrix, _words(self.matrix)
        target = words.copy()
        ways = self.ways() | {"copy": lambda: np.copyto(target, words)}
        if not kernels.compiled():
            return ways
        from minibit.kernels import peaks

        with patch.dict(os.environ, {"MINIBIT_KERNELS": "portable"}):
            portable = TernaryMatrix.from_codes(self.codes)

        def product(matrix: TernaryMatrix, threads: int) -> object:
            return ternary_matmul_int8(x, matrix, threads=threads)

        matrices = [matrix, *copies(matrix, self.codes)]
        ways |= {
            "portable": lambda: product(portable, 1),
            "read": lambda: peaks.read(words),
            "int8 from memory": in_turn(product, [(each, self.threads) for each in matrices]),
            "read from memory": in_turn(peaks.read, [(_words(each),) for each in matrices]),
        }
        if cpus() >= 2:
            ways |= {
                "one thread": lambda: product(matrix, 1),
                "two threads": lambda: product(matrix, 2),
            }
        return ways


def copies(matrix: TernaryMatrix, codes: NDArray[np.int8]) -> list[TernaryMatrix]:
    """Return so many copies that no cache holds all: read in turn, they come from memory."""
    count = max(1, CACHE // matrix.nbytes)
    return [TernaryMatrix.from_codes(codes, matrix.scale) for _ in range(count)]


def _words(matrix: TernaryMatrix) -> NDArray[np.uint64]:
    """View the bytes that a product reads."""
    return matrix._packed[: matrix.nbytes // 8 * 8].view(np.uint64)


def _peak_rounds() -> object:
    """Run many dot products of bytes, as the kernels of this CPU do, and little else."""
    from minibit.kernels import peaks

    rounds = peaks.avx2 if kernels.path() == "avx2" else peaks.vnni
    return rounds(ROUNDS, np.zeros(24 * 16, np.int32))


def _roofline(title: str, points: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Put points under a plain read of 4096 x 4096 packed weights and the peak of dot products."""
    bandwidth = peak = None
    if kernels.compiled():
        from minibit.kernels import peaks

        words = np.zeros(4096 * 4096 // 32, np.uint64)
        bandwidth = words.nbytes / warm_medians({"read": lambda: peaks.read(words)}, 0.2)["read"]
    if (path := kernels.path()) in PEAKS:
        peak = ROUNDS * PEAKS[path] / warm_medians({"peak": _peak_rounds}, 0.2)["peak"]
    return {"title": title, "bandwidth": bandwidth, "peak": peak, "points": dict(points)}
