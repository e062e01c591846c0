"""``bench topk``: choosing the K largest, and the ternary product that reads the chosen.

The choice is made for 64 tokens, one after the other and all at once. The sparse product is timed
beside the dense one on the same activations; where it becomes the faster one is interpolated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minibit import kernels
from minibit.bench import (
    Figure,
    Options,
    Report,
    installed,
    interleaved,
    missing,
    speeds,
    warm_medians,
)
from minibit.bench.timing import in_turn
from minibit.matmul import ternary_matmul_int8
from minibit.ternary import TernaryMatrix
from minibit.topk import TernaryColumns, sparse_ternary_matmul_int8, topk_count, topk_mask

__all__ = ["sparse_times", "topk", "turn"]

WIDTH, TOKENS = 4096, 64
SPARSITIES = (0.4, 0.5, 0.6)
BARS = {"argpartition": 4.0, "torch.topk": 6.0}
SHAPES = ((4096, 4096), (2560, 6912), (14336, 4096), (1024, 1024))  # (n_out, n_in)
ZEROS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SECONDS = 2.0  # for all candidates of a shape, or of the choice
CACHE = 160_000_000  # bytes of copies of each kind, read in turn: they come from memory


def topk(options: Options) -> Report:
    """Time the choice beside NumPy's and PyTorch's, and the sparse product beside the dense one."""
    figures: list[Figure] = []
    details: dict[str, Any] = {"choice": {}, "product": {}}
    for sparsity in SPARSITIES:
        k = topk_count(WIDTH, sparsity)
        times = details["choice"][str(sparsity)] = _choice(k, options.peers)
        for many in ("one token", f"{TOKENS} tokens"):
            bars = {f"{many}: {way}": bar for way, bar in BARS.items()}
            words = {f"{many}: {way}": way for way in BARS}
            title = f"top {k} of {WIDTH}, {many}: topk_mask"
            figures += speeds(title, times, f"{many}: topk_mask", bars, words)
    for shape, memory in [(SHAPES[0], True), *((shape, False) for shape in SHAPES)]:
        name = " x ".join(map(str, shape)) + (", from memory" if memory else "")
        product = details["product"][name] = sparse_times(
            *shape, ZEROS, from_memory=memory, seconds=SECONDS
        )
        at = ZEROS.index(0.6)
        speed = product["dense"][at] / product["sparse"][at]
        figures.append(Figure(f"{name}: sparse at 60% zeros, speed over dense", speed, "x"))
        crossing = turn(ZEROS, product["dense"], product["sparse"])
        if not np.isnan(crossing):
            figures.append(Figure(f"{name}: sparse is faster from", crossing, "share"))
    notes = [
        "Least of three interleaved medians for the choice, made for tokens that take turns.",
        "Lower quartiles of single calls, interleaved, for the products.",
        *missing("PyTorch", "torch", options.peers),
    ]
    if not kernels.compiled():
        notes.append("No kernels are compiled: these are the references.")
    return Report(figures, notes, details)


def _choice(k: int, peers: bool) -> dict[str, float]:
    """Median seconds per token of every way to choose."""
    x = np.random.default_rng(k).standard_normal((TOKENS, WIDTH), dtype=np.float32)
    cut = WIDTH - k
    ways: dict[str, tuple[Callable[[Any], object], Any]] = {
        "topk_mask": (lambda a: topk_mask(a, k), x),
        "argpartition": (lambda a: np.argpartition(np.abs(a), cut, axis=-1)[:, cut:], x),
    }
    if peers and installed("torch"):
        import torch

        tensor = torch.from_numpy(x)
        ways["torch.topk"] = (lambda a: torch.topk(a.abs(), k, sorted=False), tensor)
    candidates: dict[str, Callable[[], object]] = {}
    for name, (function, rows) in ways.items():
        tokens = [(rows[i : i + 1],) for i in range(TOKENS)]
        candidates[f"one token: {name}"] = in_turn(function, tokens)
        candidates[f"{TOKENS} tokens: {name}"] = in_turn(function, [(rows,)])
    rounds = [warm_medians(candidates, SECONDS / 3) for _ in range(3)]
    return {
        name: min(times[name] for times in rounds) / (1 if name.startswith("one") else TOKENS)
        for name in candidates
    }


def sparse_times(
    n_out: int, n_in: int, zeros: tuple[float, ...], *, from_memory: bool, seconds: float
) -> dict[str, Any]:
    """Time the dense and the sparse product of one token at shares of zeros, for so many seconds.

    Times are lower quartiles of single calls, each after two that are not timed: a disturbance
    makes a call longer, never shorter. With `from_memory`, copies of the weights take turns, so
    that no cache holds them. Returned are ``zeros``; ``dense`` and ``sparse``, seconds for each
    share; ``bytes`` of the dense weights, and of the columns that are ``read`` at each share.
    """
    rng = np.random.default_rng(n_out + n_in)
    codes = rng.integers(-1, 2, (n_out, n_in), dtype=np.int8)
    copies = max(2, CACHE // (n_out * n_in // 4)) if from_memory else 1
    dense = [TernaryMatrix.from_codes(codes) for _ in range(copies)]
    sparse = [TernaryColumns.from_codes(codes) for _ in range(copies)]
    candidates: dict[str, Callable[[], object]] = {}
    for share in zeros:
        x = rng.integers(1, 128, (8, 1, n_in), dtype=np.int8)  # tokens that take turns
        x[rng.permuted(np.broadcast_to(np.arange(n_in) < round(share * n_in), x.shape), axis=2)] = 0
        for name, matrices, function in (
            ("dense", dense, partial(ternary_matmul_int8, threads=1)),
            ("sparse", sparse, sparse_ternary_matmul_int8),
        ):
            pairs = [(x[i % 8], matrices[i % copies]) for i in range(8 * copies)]
            candidates[f"{name} {share}"] = in_turn(function, pairs)
    rounds = interleaved(
        candidates,
        seconds=seconds,
        least_rounds=16,
        warmups=0,
        turns=dict.fromkeys(candidates, (2, 1)),
    )
    times = {name: float(np.quantile(each, 0.25)) for name, each in rounds.items()}
    return {
        "zeros": list(zeros),
        "dense": [times[f"dense {share}"] for share in zeros],
        "sparse": [times[f"sparse {share}"] for share in zeros],
        "bytes": dense[0].nbytes,
        "read": [sparse[0].nbytes * round((1 - share) * n_in) / n_in for share in zeros],
    }


def turn(zeros: Any, dense: Any, sparse: Any) -> float:
    """Share of zeros from which on sparse is faster, interpolated; NaN for never, 0 for always."""
    gain = np.log(np.asarray(dense) / np.asarray(sparse))  # (shares,)
    slower = np.flatnonzero(gain < 0)
    if not slower.size:
        return 0.0
    last = int(slower[-1])
    return float(np.interp(0, gain[last : last + 2], zeros[last : last + 2], right=np.nan))
