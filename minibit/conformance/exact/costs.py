"""Costs on paper in exact fractions, product by product; `wrong` names one mistake."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

__all__ = ["COSTS", "WRONG"]

FLAGS = {
    "memory_gb": "glu-of-two head-left-out factors-left-out kv-heads-as-heads gibibytes",
    "cache_bytes": "keys-alone kv-heads-as-heads one-layer",
    "multiply_adds": "glu-of-two kv-heads-as-heads attention-of-kept-heads scores-alone",
    "step_bytes": "embedding-read weights-per-sequence one-cache",
    "step_seconds": "reading-alone sum-of-both one-operation cards-share-weights caches-not-shared",
    "token_energy": "all-adds caches-once reading-of-the-batch bits-as-bytes",
    "largest_batch": "rounded-up embedding-left-out less-than-none",
}
Numbers = Mapping[str, Any]


def sizes(shape: Numbers, wrong: str) -> tuple[int, int, int]:
    """Weights of the matrices, weights of the head, and values kept per token and layer."""
    d, heads, kv = shape["hidden"], shape["heads"], shape["kv_heads"]
    kept = d if wrong == "kv-heads-as-heads" else d * kv // heads
    glu = 2 if wrong == "glu-of-two" else 3
    matrices = shape["layers"] * (2 * d * d + 2 * d * kept + glu * d * shape["intermediate"])
    return matrices, shape["vocabulary"] * d, kept


def memory_gb(shape: Numbers, weights: Numbers, wrong: str = "") -> Any:
    """Two fitted factors, of the matrices, and of embedding and head."""
    matrices, head, _ = sizes(shape, wrong)
    factors = (Fraction("1.018"), Fraction("3.285"))
    if wrong == "factors-left-out":
        factors = Fraction(1), Fraction(1)
    both = head if wrong == "head-left-out" else 2 * head
    total = factors[0] * matrices * Fraction(weights["bytes"]) + factors[1] * both * 2
    return (float(total / (2**30 if wrong == "gibibytes" else 10**9)),)


def cache(shape: Numbers, tokens: int, value_bytes: float, wrong: str) -> Fraction:
    """Bytes of the keys and values of a sequence."""
    layers = 1 if wrong == "one-layer" else shape["layers"]
    parts = 1 if wrong == "keys-alone" else 2
    return parts * layers * sizes(shape, wrong)[2] * tokens * Fraction(value_bytes)


def cache_bytes(shape: Numbers, tokens: int, value_bytes: float = 2, wrong: str = "") -> Any:
    """Keys and values of all layers."""
    return (float(cache(shape, tokens, value_bytes, wrong)),)


def multiply_adds(shape: Numbers, tokens: int = 0, wrong: str = "") -> Any:
    """Linear layers; head, scores and sums of values."""
    matrices, head, kept = sizes(shape, wrong)
    width = kept if wrong == "attention-of-kept-heads" else shape["hidden"]
    parts = 1 if wrong == "scores-alone" else 2
    return matrices, head + parts * shape["layers"] * width * tokens


def read(shape: Numbers, weights: Numbers, wrong: str) -> Fraction:
    """Bytes of the weights that a token reads."""
    matrices, head, _ = sizes(shape, wrong)
    both = 2 * head if wrong == "embedding-read" else head
    return matrices * Fraction(weights["bytes"]) + both * 2


def step_bytes(
    shape: Numbers,
    weights: Numbers,
    batch: int = 1,
    tokens: int = 0,
    value_bytes: float = 2,
    wrong: str = "",
) -> Any:
    """Weights once, and a cache per sequence."""
    once = read(shape, weights, wrong) * (batch if wrong == "weights-per-sequence" else 1)
    caches = (1 if wrong == "one-cache" else batch) * cache(shape, tokens, value_bytes, wrong)
    return (float(once + caches),)


def step_seconds(
    shape: Numbers,
    weights: Numbers,
    batch: int = 1,
    tokens: int = 0,
    value_bytes: float = 2,
    cards: int = 1,
    wrong: str = "",
) -> Any:
    """Return the longer of reading at 2.039 TB/s and computing at 312 TFLOP/s."""
    share = 1 if wrong == "caches-not-shared" else cards
    caches = batch * cache(shape, tokens, value_bytes, wrong) / share
    once = read(shape, weights, wrong) / (cards if wrong == "cards-share-weights" else 1)
    reading = (once + caches) / 2_039_000_000_000
    twice = 1 if wrong == "one-operation" else 2
    operations = twice * batch * sum(multiply_adds(shape, tokens))
    computing = Fraction(operations, cards * 312 * 10**12)
    if wrong == "sum-of-both":
        return (float(reading + computing),)
    return (float(reading if wrong == "reading-alone" else max(reading, computing)),)


def token_energy(
    shape: Numbers,
    weights: Numbers,
    batch: int = 1,
    tokens: int = 0,
    value_bytes: float = 2,
    wrong: str = "",
) -> Any:
    """Picojoules of arithmetic (half one per FP16 multiply-add), and 3.97 per bit that is read."""
    linear, other = multiply_adds(shape, tokens)
    pj = Fraction(str(weights["pj"]))
    rest = pj if wrong == "all-adds" else Fraction(1, 2)
    share = 1 if wrong == "reading-of-the-batch" else batch
    caches = cache(shape, tokens, value_bytes, wrong)
    once = read(shape, weights, wrong)
    bytes_read = (once + caches) / share if wrong == "caches-once" else once / share + caches
    bits = 1 if wrong == "bits-as-bytes" else 8
    arithmetic = (linear * pj + other * rest) / 10**12
    return ([float(arithmetic), float(bits * Fraction("3.97") * bytes_read / 10**12)],)


def largest_batch(
    shape: Numbers,
    weights: Numbers,
    memory: float,
    tokens: int,
    value_bytes: float = 2,
    wrong: str = "",
) -> Any:
    """Sequences whose caches fit beside the weights."""
    matrices, head, _ = sizes(shape, wrong)
    both = head if wrong == "embedding-left-out" else 2 * head
    room = Fraction(memory) - matrices * Fraction(weights["bytes"]) - 2 * both
    fit = room / cache(shape, tokens, value_bytes, wrong)
    whole = -(-fit // 1) if wrong == "rounded-up" else fit // 1
    return (int(whole if wrong == "less-than-none" else max(whole, 0)),)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "memory_gb": memory_gb,
    "cache_bytes": cache_bytes,
    "multiply_adds": multiply_adds,
    "step_bytes": step_bytes,
    "step_seconds": step_seconds,
    "token_energy": token_energy,
    "largest_batch": largest_batch,
}
ROOM = "transformer.costs."
COSTS: dict[str, Callable[..., Any]] = {ROOM + name: f for name, f in FUNCTIONS.items()}
WRONG: dict[str, Callable[..., Any]] = {
    f"{ROOM}{name}/{flag}": partial(FUNCTIONS[name], wrong=flag)
    for name, flags in FLAGS.items()
    for flag in flags.split()
}
