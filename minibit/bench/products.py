"""``bench gemv``, ``bench matmul`` and ``bench quantise``: products and quantisers beside NumPy.

Everything is timed through the public functions. At its turn, a candidate runs untimed for two
milliseconds and eight calls, or for one call that takes longer, so that it finds in the caches what
its own weights leave there, and then timed for as long; medians of many rounds are compared. What
is read "from memory" goes in turn through copies that no cache holds, as decoding goes through a
model's layers. Bars hold for one thread.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit import kernels
from minibit.absmean import absmax_quantize, absmean_quantize
from minibit.bench import Figure, Options, Report, interleaved
from minibit.kernels.threads import cpus
from minibit.matmul import ternary_matmul, ternary_matmul_int8
from minibit.ternary import TernaryMatrix

__all__ = ["gemv", "matmul", "quantise"]

Candidates = dict[str, Callable[[], object]]

LARGE = ((4096, 4096), (2560, 6912), (6912, 2560), (14336, 4096))  # (n_out, n_in)
SMALL = ((256, 256), (256, 784))
PEERS = ("torch float32", "torch bfloat16", "torch int8")
ROUND = 2e-3  # seconds that a candidate is timed at a turn, after as many that are not
LEAST = 8  # calls of each kind: a shared cache takes several passes to hold what was read anew
CACHE = 256_000_000  # bytes; more than the last cache of a CPU, or a core's share of it, holds
SECONDS = 3.0  # for all candidates of a shape


def gemv(options: Options) -> Report:
    """Time one token: against NumPy, a plain read and a copy of the weights, and PyTorch."""
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    for n_out, n_in in (*LARGE, *SMALL):
        name, large = f"{n_out} x {n_in}", (n_out, n_in) in LARGE
        times, held = _one_token(n_out, n_in, options)
        details[name] = times
        fast, numpy = times["int8"], times["numpy float32"]
        both = times["end to end"]
        figures.append(_ratio(name, "int8", numpy / fast, "NumPy float32", 20.0 if large else 4.0))
        figures.append(_ratio(name, "end to end", numpy / both, "NumPy float32"))
        if large:
            figures.append(Figure(f"{name}: end to end, times int8", both / fast, "x", 1.15, False))
            figures.append(_ratio(name, "int8", times["copy"] / fast, "a copy of its bytes"))
        if large and kernels.compiled():
            share = times["read"] / fast
            figures.append(Figure(f"{name}: share of a plain read", share, "share", 0.85))
            share = times["read from memory"] / times["int8 from memory"]
            figures.append(Figure(f"{name}: the same from memory", share, "share", 0.85))
            speed = numpy / times["portable"]
            figures.append(_ratio(name, "portable", speed, "NumPy float32", 5.0))
        for peer in PEERS:
            if peer in times:
                bar = 12.0 if large and peer == "torch int8" else None
                figures.append(_ratio(name, "int8", times[peer] / fast, peer, bar))
        if large and "torch int8" in times and "read" in times:
            speed = times["torch int8"] / times["read"]
            figures.append(_ratio(name, "a plain read alone", speed, "torch int8"))
        if "two threads" in times and (n_out, n_in) == LARGE[-1]:
            speed = times["one thread"] / times["two threads"]
            figures.append(_ratio(name, "two threads", speed, "one thread", 1.5))
        figures.append(Figure(f"{name}: packed weights read", held / fast / 1e9, "GB/s"))
    n_out, n_in = LARGE[0]
    times, work = details[f"{n_out} x {n_in}"], n_out * n_in
    bytes_each = dict.fromkeys(("int8", "end to end", "portable"), 0.25)
    bytes_each |= {"numpy float32": 4, "torch float32": 4, "torch bfloat16": 2, "torch int8": 1}
    details["roofline"] = {
        "title": f"One token, {n_out} x {n_in}",
        "bandwidth": work / 4 / times["read"] if "read" in times else None,
        "peak": _peak(),
        "points": {
            name: (1 / size, work / times[name])
            for name, size in bytes_each.items()
            if name in times
        },
    }
    return Report(tuple(figures), _notes(options), details)


def _one_token(n_out: int, n_in: int, options: Options) -> tuple[dict[str, float], int]:
    """Median seconds of every way to multiply one token, and the bytes of the weights."""
    codes, x, held = _problem(n_out, n_in, 1)
    floats, w, threads = x.astype(np.float32), codes.astype(np.float32), options.threads or 1
    words = held._held[: held.nbytes // 8 * 8].view(np.uint64)
    target = words.copy()
    candidates: Candidates = {
        "int8": lambda: ternary_matmul_int8(x, held, threads=threads),
        "end to end": lambda: ternary_matmul(floats, held, threads=threads),
        "numpy float32": lambda: floats @ w.T,
        "copy": lambda: np.copyto(target, words),
    }
    if kernels.compiled():
        from minibit.kernels import peaks

        with _forced("portable"):
            plain = TernaryMatrix.from_codes(codes)
        candidates["portable"] = lambda: ternary_matmul_int8(x, plain, threads=1)
        candidates["read"] = lambda: peaks.read(words)
        turns, several = itertools.count(), [held, *_copies(held)]
        plains = [one._held[: one.nbytes // 8 * 8].view(np.uint64) for one in several]
        candidates["int8 from memory"] = lambda: ternary_matmul_int8(
            x, several[next(turns) % len(several)], threads=threads
        )
        candidates["read from memory"] = lambda: peaks.read(plains[next(turns) % len(several)])
        if cpus() >= 2:
            candidates["one thread"] = lambda: ternary_matmul_int8(x, held, threads=1)
            candidates["two threads"] = lambda: ternary_matmul_int8(x, held, threads=2)
    if options.peers:
        candidates |= _torch(floats, w, x, codes)
    return _medians(candidates), held.nbytes


def matmul(options: Options) -> Report:
    """Time many tokens: against NumPy, PyTorch and the measured peak of the dot products."""
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    gains: list[float] = []
    problems = [(4096, 4096, 2), (4096, 4096, 12)]
    problems += [(*shape, tokens) for shape in LARGE[:3] for tokens in (48, 192)]
    for n_out, n_in, tokens in [*problems, (256, 784, 1024)]:
        name, many = f"{n_out} x {n_in}, {tokens} tokens", tokens >= 48
        times, path = _many_tokens(n_out, n_in, tokens, options)
        details[name] = times
        fast, large = times["end to end"], many and n_out > 256
        speed = times["numpy float32"] / fast
        figures.append(_ratio(name, "end to end", speed, "NumPy float32", 3.5 if many else None))
        for peer in PEERS:
            if peer in times:
                gain, bar = times[peer] / fast, None
                if peer == "torch float32" and large:
                    bar = 3.0
                elif peer == "torch bfloat16" and not many:
                    bar = 4.0
                elif peer != "torch float32" and path == "amx" and large:
                    bar = 1.05
                    gains.append(gain)
                figures.append(_ratio(name, "end to end", gain, peer, bar))
        if "peak" in times:
            share = n_out * n_in * tokens * times["peak"] / times["int8"]
            bar = 0.85 if tokens >= 192 and large and path == "vnni" else None
            figures.append(Figure(f"{name}: share of the VNNI peak", share, "share", bar))
    n_out, n_in, _ = problems[0]
    details["roofline"] = {
        "title": f"{n_out} x {n_in}, by tokens",
        "bandwidth": _bandwidth(),
        "peak": _peak(),
        "points": {
            f"{tokens} tokens": (
                4.0 * tokens,
                n_out * n_in * tokens / details[f"{n_out} x {n_in}, {tokens} tokens"]["end to end"],
            )
            for *shape, tokens in problems
            if shape == [n_out, n_in]
        },
    }
    if gains:
        mean = float(np.exp(np.mean(np.log(gains))))
        figures.append(Figure("AMX: geometric mean over torch's", mean, "x", 1.4))
    return Report(tuple(figures), _notes(options), details)


def _many_tokens(
    n_out: int, n_in: int, tokens: int, options: Options
) -> tuple[dict[str, float], str]:
    """Median seconds of every way to multiply many tokens, and our kernel path.

    ``peak`` is seconds a multiplication.
    """
    codes, x, held = _problem(n_out, n_in, tokens)
    floats, w, threads = x.astype(np.float32), codes.astype(np.float32), options.threads or 1
    scratch, rounds = np.zeros(24 * 16, np.int32), 20_000
    candidates: Candidates = {
        "int8": lambda: ternary_matmul_int8(x, held, threads=threads),
        "end to end": lambda: ternary_matmul(floats, held, threads=threads),
        "numpy float32": lambda: floats @ w.T,
    }
    if held._path in ("vnni", "amx"):
        from minibit.kernels import peaks

        candidates["peak"] = lambda: peaks.vnni(rounds, scratch)
    if options.peers:
        candidates |= _torch(floats, w, x, codes)
    times = _medians(candidates)
    if "peak" in times:
        times["peak"] /= rounds * 24 * 64
    return times, held._path


def quantise(options: Options) -> Report:
    """Time the quantisers of weights and activations against NumPy's plain expressions."""
    w = np.random.default_rng(0).standard_normal((4096, 4096), dtype=np.float32)

    def numpy_absmean() -> NDArray[np.int8]:
        gamma = max(np.abs(w).mean(), np.float32(1e-5))
        codes: NDArray[np.int8] = np.clip(np.rint(w * (1 / gamma)), -1, 1).astype(np.int8)
        return codes

    def numpy_absmax() -> NDArray[np.int8]:
        scale = 127 / np.maximum(np.abs(w).max(axis=-1, keepdims=True), 1e-5)
        codes: NDArray[np.int8] = np.clip(np.rint(w * scale), -128, 127).astype(np.int8)
        return codes

    times = _medians(
        {
            "absmean": lambda: absmean_quantize(w),
            "numpy absmean": numpy_absmean,
            "absmax": lambda: absmax_quantize(w),
            "numpy absmax": numpy_absmax,
        }
    )
    figures = [
        _ratio("4096 x 4096", name, times[f"numpy {name}"] / times[name], "NumPy", bar)
        for name, bar in (("absmean", 5.0), ("absmax", 4.0))
    ]
    return Report(tuple(figures), _notes(options), {"4096 x 4096": dict(times)})


def _peak() -> float | None:
    """Multiplications a second that ``vpdpbusd`` reaches at best; None on a CPU without it."""
    if kernels.path() not in ("vnni", "amx"):
        return None
    from minibit.kernels import peaks

    scratch, rounds = np.zeros(24 * 16, np.int32), 20_000
    return rounds * 24 * 64 / _medians({"peak": lambda: peaks.vnni(rounds, scratch)}, 0.2)["peak"]


def _bandwidth() -> float | None:
    """Bytes a second of a plain read of 4096 by 4096 packed weights; None without compiler."""
    if not kernels.compiled():
        return None
    from minibit.kernels import peaks

    words = np.zeros(4096 * 4096 // 32, np.uint64)
    return words.nbytes / _medians({"read": lambda: peaks.read(words)}, 0.2)["read"]


def _ratio(shape: str, ours: str, value: float, theirs: str, bar: float | None = None) -> Figure:
    """Say how many times as fast as another way ours is."""
    return Figure(f"{shape}: {ours}, speed over {theirs}", float(value), "x", bar)


def _notes(options: Options) -> tuple[str, ...]:
    """Say what was measured, and what was left out."""
    notes = ["Medians of one interleaved run; each candidate warms its caches before it is timed."]
    if options.peers and importlib.util.find_spec("torch") is None:
        notes.append("PyTorch is not installed: its figures are left out.")
    if (options.threads or 1) != 1:
        notes.append("The bars are meant for one thread.")
    return tuple(notes)


def _problem(
    n_out: int, n_in: int, tokens: int
) -> tuple[NDArray[np.int8], NDArray[np.int8], TernaryMatrix]:
    """Random codes and activations, and the matrix that holds the codes."""
    rng = np.random.default_rng(n_out + n_in)
    codes = rng.integers(-1, 2, (n_out, n_in), dtype=np.int8)
    x = rng.integers(-127, 128, (tokens, n_in), dtype=np.int8)
    return codes, x, TernaryMatrix.from_codes(codes, 0.02)


def _medians(
    candidates: Mapping[str, Callable[[], object]], seconds: float = SECONDS
) -> dict[str, float]:
    """Median seconds of one call of each, from turns of several calls after some that warm."""
    calls = {}
    for name, function in candidates.items():
        alone = interleaved({name: function}, seconds=0.0, least_rounds=3, warmups=2)[name]
        wanted = round(ROUND / float(alone.min()))
        calls[name] = max(LEAST, min(2000, wanted)) if wanted else 1  # one of what takes long
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    while len(times[next(iter(times))]) < 15 or time.perf_counter() < end:
        for name, function in candidates.items():
            for _ in range(calls[name]):  # what ran before has left the caches
                function()
            start = time.perf_counter()
            for _ in range(calls[name]):
                function()
            times[name].append((time.perf_counter() - start) / calls[name])
    return {name: float(np.median(found)) for name, found in times.items()}


@contextmanager
def _forced(path: str) -> Iterator[None]:
    """Make matrices for one kernel path."""
    before = os.environ.get("MINIBIT_KERNELS")
    os.environ["MINIBIT_KERNELS"] = path
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINIBIT_KERNELS"]
        else:
            os.environ["MINIBIT_KERNELS"] = before


def _copies(matrix: TernaryMatrix) -> list[TernaryMatrix]:
    """Return so many copies that no cache holds all: read in turn, they come from memory."""
    codes = matrix.codes()
    return [
        TernaryMatrix.from_codes(codes, matrix.scale) for _ in range(max(1, CACHE // matrix.nbytes))
    ]


def _torch(
    floats: NDArray[np.float32],
    w: NDArray[np.float32],
    x: NDArray[np.int8],
    codes: NDArray[np.int8],
) -> Candidates:
    """Return PyTorch's products, where it is installed; int8 where this build has it."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    linear = torch.nn.functional.linear
    a, b = torch.from_numpy(floats), torch.from_numpy(w)
    c, d = a.bfloat16(), b.bfloat16()
    found: Candidates = {
        "torch float32": lambda: linear(a, b),
        "torch bfloat16": lambda: linear(c, d),
    }
    e, f = torch.from_numpy(x), torch.from_numpy(codes).t()
    try:
        torch._int_mm(e, f)
    except (RuntimeError, AttributeError):
        return found
    return found | {"torch int8": lambda: torch._int_mm(e, f)}
