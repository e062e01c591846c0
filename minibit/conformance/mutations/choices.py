"""Wrong variants of sampling, of the choices of a training step, and of its updates."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["CHOICES"]


def _sample(
    logits: Any,
    uniform: float,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    wrong: str = "",
) -> int:
    """Draw a token, wrong in the way that is named."""
    z = [float(v) for v in logits]
    if temperature == 0:
        order = range(len(z))
        return max(order, key=lambda i: (z[i], i if wrong == "last-of-equals" else -i))
    uniform = 1 - uniform if wrong == "from-the-end" else uniform
    heat = 1 / temperature if wrong == "temperature-multiplied" else temperature
    last = wrong == "last-of-equals"
    ranked = sorted(range(len(z)), key=lambda i: (-z[i], -i if last else i))
    if top_k is not None:
        kth = z[ranked[min(top_k, len(z)) - 1]]
        kept = [i for i in ranked if z[i] >= kth] if wrong == "all-that-tie" else ranked[:top_k]
    else:
        kept = ranked
    top = max(z)
    mass = {i: np.exp((z[i] - top) / heat) for i in ranked}
    measured = {i: np.exp(z[i] - top) for i in ranked} if wrong == "top-p-before-heat" else mass
    if top_p is not None and top_p < 1:
        total = sum(measured[i] for i in (ranked if wrong == "top-p-of-all" else kept))
        running, chosen = 0.0, []
        for i in kept:
            if wrong == "crossing-left-out" and running + measured[i] > top_p * total:
                break
            chosen.append(i)
            running += measured[i]
            if running >= top_p * total:
                break
        if wrong == "all-that-tie":
            chosen = [i for i in kept if z[i] >= z[chosen[-1]]]
        kept = chosen or kept[-1:]
    mass = dict.fromkeys(mass, 1.0) if wrong == "evenly" else mass
    drawn = kept if wrong == "in-order-of-size" else sorted(kept)
    total = 1.0 if wrong == "not-divided" else sum(mass[i] for i in drawn)
    running = 0.0
    for i in drawn:
        running += mass[i]
        if uniform * total < running:
            return i
    return drawn[-1]


def _scores(a: Any, squares: Any, wrong: str = "") -> Any:
    """Scores of alignments, wrong in the way that is named."""
    spread = np.asarray(squares, float) if wrong == "root-left-out" else np.sqrt(squares)
    return np.abs(a) / np.where(spread > 0, spread, np.inf)


def _terns(alignments: Any, squares: Any, score: str, wrong: str = "") -> Any:
    """Codes of a sampled step, wrong in the way that is named."""
    a = np.nan_to_num(alignments, nan=0, posinf=0, neginf=0)
    a = np.asarray(alignments) if wrong == "overflow-kept" else a
    s = np.abs(a) if score == "absolute" or wrong == "score-ignored" else _scores(a, squares, wrong)
    middle = np.median(s)
    if wrong == "lower-median":
        middle = np.sort(s)[(s.size - 1) // 2]
    if wrong == "mean-for-median":
        middle = s.mean()
    kept = s > middle if wrong == "above-the-median-only" else s >= middle
    if wrong == "median-of-chunks":
        half = -(-s.size // 2)
        kept = np.concatenate([part >= np.median(part) for part in (s[:half], s[half:])])
    sign = np.where(a >= 0, 1, -1) if wrong == "sign-of-zero" else np.sign(a)
    sign = -sign if wrong == "sign-exchanged" else sign
    with np.errstate(invalid="ignore"):
        return np.where(kept, np.nan_to_num(sign), 0).astype(np.int8)


def _moves(alignments: Any, squares: Any, weights: Any, count: int, wrong: str = "") -> Any:
    """Keep moves of a layer, wrong in the way that is named."""
    lost = None if wrong == "overflow-kept" else 0  # else the largest number that there is
    a = np.nan_to_num(alignments, nan=0, posinf=lost, neginf=lost)
    signs = -np.sign(a).astype(np.int8).ravel()
    signs = -signs if wrong == "along-the-gradient" else signs
    s = (np.abs(a) if wrong == "score-ignored" else _scores(a, squares, wrong)).ravel()
    if wrong != "illegal-moves-kept":
        s = np.where(np.abs(weights.ravel() + signs) > 1, 0, s)
    last = wrong == "highest-candidate"
    order = sorted(range(s.size), key=lambda i: (-s[i], -i if last else i))
    good = [i for i in order if s[i] > 0 or wrong == "filled-up"][:count]
    good = good if wrong == "not-sorted" else sorted(good)
    if wrong == "column-order":
        units, inputs = weights.shape
        return np.array([i % inputs * units + i // inputs for i in good], np.int64), signs[good]
    return np.array(good, np.int64), signs[good]


def _geometric(start: float, end: float, steps: int, every: int, at: Any, wrong: str) -> Any:
    """Values of a schedule, wrong in the way that is named."""
    last = steps if wrong == "ends-late" else max(1, steps - 1)
    out = []
    for step in at.tolist():
        t = step if wrong == "every-left-out" else step // every * every
        t = t if wrong == "goes-on" else min(t, last)
        share = t / last
        straight = start + (end - start) * share
        out.append(straight if wrong == "linear" else start * (end / start) ** share)
    return np.array(out)


def _update(params: Any, positions: Any, deltas: Any, wrong: str) -> Any:
    """Add moves to weights, wrong in the way that is named."""
    start, out = 0, {}
    names = sorted(params) if wrong == "layers-sorted" else params
    for name in names:
        w = params[name]
        flat = (w.T if wrong == "column-order" else w).reshape(-1).astype(np.int64)
        for p, d in zip(positions.tolist(), deltas.tolist(), strict=True):
            i = p if wrong == "offset-zero" else p - start
            if 0 <= i < flat.size:
                flat[i] += np.sign(d) if wrong == "signs-of-deltas" else d
        clamped = flat if wrong == "not-clamped" else np.clip(flat, -1, 1)
        out[name] = clamped.astype(np.int8).reshape(w.shape)
        start += w.size
    return out


def _digest(params: Any, wrong: str) -> str:
    """Hash weights, wrong in the way that is named."""
    sha = hashlib.sha256()
    for name in sorted(params) if wrong == "layers-sorted" else params:
        w = params[name]
        w = w.T if wrong == "column-order" else w
        w = w + 1 if wrong == "digits" else w.astype(np.int32) if wrong == "int32" else w
        sha.update(name.encode() if wrong == "names-hashed" else b"")
        sha.update(np.ascontiguousarray(w).tobytes())
    return sha.hexdigest()[:16] if wrong == "cut" else sha.hexdigest()


def _bit_linear(x: Any, w: Any, wrong: str) -> Any:
    """Quantise both, multiply: wrong in the way that is named."""
    f = np.float32
    gamma = max(f(np.abs(w).mean(dtype=float)), f(1e-5))
    codes = np.clip(np.rint(w * (f(1) / gamma)), -1, 1).astype(f)
    value = f(1) if wrong == "gamma-left-out" else gamma
    axis = None if wrong == "one-scale" else -1
    scale = f(127) / np.maximum(np.abs(x).max(axis=axis, keepdims=True), f(1e-5))
    q = np.rint(x * scale) / scale if wrong != "float-activations" else x
    wq = w if wrong == "float-weights" else codes * value
    return (q @ wq.T).astype(f)


def _table(name: str, function: Callable[..., Any], flags: str) -> dict[str, Callable[..., Any]]:
    """Return variants of one function, by their flags."""

    def variant(flag: str) -> Callable[..., Any]:
        """Return one."""
        return lambda *args, **named: function(*args, **named, wrong=flag)

    return {f"{name}/{flag}": variant(flag) for flag in flags.split()}


CHOICES: dict[str, Callable[..., Any]] = {
    **_table(
        "sample",
        _sample,
        "not-divided in-order-of-size temperature-multiplied last-of-equals all-that-tie "
        "crossing-left-out top-p-of-all top-p-before-heat from-the-end evenly",
    ),
    **_table(
        "keep_terns",
        _terns,
        "lower-median mean-for-median above-the-median-only median-of-chunks sign-of-zero "
        "sign-exchanged root-left-out score-ignored overflow-kept",
    ),
    **_table(
        "keep_moves",
        _moves,
        "along-the-gradient illegal-moves-kept highest-candidate filled-up not-sorted "
        "column-order root-left-out score-ignored overflow-kept",
    ),
    **_table("geometric", _geometric, "ends-late every-left-out goes-on linear"),
    **_table(
        "apply_update",
        _update,
        "layers-sorted column-order offset-zero signs-of-deltas not-clamped",
    ),
    **_table("digest", _digest, "layers-sorted column-order digits int32 names-hashed cut"),
    **_table("bit_linear", _bit_linear, "gamma-left-out one-scale float-activations float-weights"),
}
