"""``bench topk``: choosing the K largest, and the ternary product that reads what was chosen.

The choice is made for 64 tokens, one after the other and all at once, as activations are new for
every token; ways to choose are timed in turns of several calls, as in `minibit.bench.products`. The
sparse product is timed beside the dense one on the same activations, call by call, at many shares
of zeros; where it becomes the faster one is interpolated.
"""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit import kernels
from minibit.bench import Figure, Options, Report
from minibit.bench.products import _medians, _ratio
from minibit.matmul import ternary_matmul_int8
from minibit.ternary import TernaryMatrix
from minibit.topk import TernaryColumns, sparse_ternary_matmul_int8, topk_count, topk_mask

__all__ = ["sparse_times", "topk", "turn"]

WIDTH, TOKENS = 4096, 64
SPARSITIES = (0.4, 0.5, 0.6)
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
        times = _choice(k, options.peers)
        details["choice"][str(sparsity)] = times
        for many in ("one token", f"{TOKENS} tokens"):
            name, ours = f"top {k} of {WIDTH}, {many}", times[f"{many}: topk_mask"]
            for peer, bar in (("argpartition", 4.0), ("torch.topk", 6.0)):
                if f"{many}: {peer}" in times:
                    speed = times[f"{many}: {peer}"] / ours
                    figures.append(_ratio(name, "topk_mask", speed, peer, bar))
    for shape in SHAPES:
        for place in ("cached", "memory"):
            if place == "memory" and shape != SHAPES[0]:
                continue
            name = " x ".join(map(str, shape)) + (", from memory" if place == "memory" else "")
            found = sparse_times(*shape, ZEROS, from_memory=place == "memory")
            details["product"][name] = found
            speed = found["dense"][ZEROS.index(0.6)] / found["sparse"][ZEROS.index(0.6)]
            figures.append(Figure(f"{name}: sparse at 60% zeros, speed over dense", speed, "x"))
            at = turn(ZEROS, found["dense"], found["sparse"])
            if not np.isnan(at):
                figures.append(Figure(f"{name}: sparse is faster from", at, "share"))
    notes = [
        "Least of three interleaved medians for the choice, made for tokens that take turns.",
        "Lower quartiles of single calls, interleaved, for the products.",
    ]
    if options.peers and importlib.util.find_spec("torch") is None:
        notes.append("PyTorch is not installed: its figures are left out.")
    if not kernels.compiled():
        notes.append("No kernels are compiled: these are the references.")
    return Report(tuple(figures), tuple(notes), details)


def _choice(k: int, peers: bool) -> dict[str, float]:
    """Median seconds a token of every way to choose."""
    rng = np.random.default_rng(k)
    x = rng.standard_normal((TOKENS, WIDTH), dtype=np.float32)
    rows = [x[i : i + 1] for i in range(TOKENS)]
    ways: dict[str, tuple[Callable[[Any], object], list[Any], Any]] = {
        "topk_mask": (lambda a: topk_mask(a, k), rows, x),
        "argpartition": (
            lambda a: np.argpartition(np.abs(a), WIDTH - k, axis=-1)[:, WIDTH - k :],
            rows,
            x,
        ),
    }
    if peers and importlib.util.find_spec("torch") is not None:
        import torch

        tensor = torch.from_numpy(x)
        ways["torch.topk"] = (
            lambda a: torch.topk(a.abs(), k, sorted=False),
            list(tensor.split(1)),
            tensor,
        )
    candidates: dict[str, Callable[[], object]] = {}
    for name, (function, each, all_) in ways.items():
        candidates[f"one token: {name}"] = _in_turn(function, each)
        candidates[f"{TOKENS} tokens: {name}"] = _in_turn(function, [all_])
    several = [_medians(candidates, SECONDS / 3) for _ in range(3)]
    times = {name: min(each[name] for each in several) for name in candidates}
    return {
        name: seconds / (1 if name.startswith("one") else TOKENS) for name, seconds in times.items()
    }


def _in_turn(function: Callable[[Any], object], each: list[Any]) -> Callable[[], object]:
    """Call a function with one thing after another."""
    turns = itertools.cycle(each)
    return lambda: function(next(turns))


def sparse_times(
    n_out: int,
    n_in: int,
    zeros: tuple[float, ...],
    *,
    from_memory: bool = False,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Time the dense and the sparse product of one token at shares of zeros.

    Parameters
    ----------
    n_out, n_in : int
    zeros : tuple of float
    from_memory : bool
        Whether copies of the weights take turns, so that no cache holds them.
    seconds : float, optional
        For all.

    Returns
    -------
    dict
        ``zeros``, ``dense`` and ``sparse``: seconds, one a share; ``bytes`` of the dense
        weights, and of the columns that are ``read`` at each share.
    """
    rng = np.random.default_rng(n_out + n_in)
    codes = rng.integers(-1, 2, (n_out, n_in), dtype=np.int8)
    copies = max(2, CACHE // (n_out * n_in // 4)) if from_memory else 1
    one, by_columns = TernaryMatrix.from_codes(codes), TernaryColumns.from_codes(codes)
    dense, sparse = [one], [by_columns]
    for _ in range(copies - 1):
        dense.append(TernaryMatrix._made(one._held.copy(), one._path, one.shape, one.scale))
        sparse.append(TernaryColumns(by_columns._held.copy(), by_columns.shape, by_columns.scale))
    candidates: dict[str, Callable[[], object]] = {}
    for share in zeros:
        tokens = [_token(rng, n_in, share) for _ in range(8)]
        for name, each, function in (
            ("dense", dense, lambda x, w: ternary_matmul_int8(x, w, threads=1)),
            ("sparse", sparse, sparse_ternary_matmul_int8),
        ):
            pairs = itertools.cycle([(tokens[i % 8], each[i % copies]) for i in range(8 * copies)])
            candidates[f"{name} {share}"] = _star(function, pairs)
    times = _quartiles(candidates, SECONDS if seconds is None else seconds)
    return {
        "zeros": list(zeros),
        "dense": [times[f"dense {share}"] for share in zeros],
        "sparse": [times[f"sparse {share}"] for share in zeros],
        "bytes": dense[0].nbytes,
        "read": [sparse[0].nbytes * round((1 - share) * n_in) / n_in for share in zeros],
    }


def _quartiles(candidates: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Lower quartile of the seconds of single calls, in turn, each after two that are not timed.

    What disturbs a call makes it longer, never shorter.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    while len(times[next(iter(times))]) < 16 or time.perf_counter() < end:
        for name, function in candidates.items():
            for _ in range(2):
                function()
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.quantile(found, 0.25)) for name, found in times.items()}


def _star(function: Callable[[Any, Any], object], pairs: Any) -> Callable[[], object]:
    """Call a function with one pair after another."""
    return lambda: function(*next(pairs))


def _token(rng: np.random.Generator, n_in: int, share: float) -> NDArray[np.int8]:
    """Draw one token (1, n_in) with a share of zeros, and no others."""
    x = rng.integers(1, 128, (1, n_in), dtype=np.int8)
    x[0, rng.permutation(n_in)[: round(share * n_in)]] = 0
    return x


def turn(zeros: Any, dense: Any, sparse: Any) -> float:
    """Share of zeros from which on the sparse product is the faster one, interpolated.

    NaN if it never is; 0 if it always is.
    """
    gain = np.log(np.asarray(dense) / np.asarray(sparse))  # (shares,)
    slower = np.flatnonzero(gain < 0)
    if not slower.size:
        return 0.0
    last = int(slower[-1])
    if last + 1 == len(gain):
        return float("nan")
    share = -gain[last] / (gain[last + 1] - gain[last])
    return float(zeros[last] + share * (zeros[last + 1] - zeros[last]))
