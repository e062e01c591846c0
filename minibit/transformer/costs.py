"""The costs of a language model, on paper: memory, bytes read, energy, batch and throughput.

The claims of BitNet b1.58 about LLaMA-shaped models follow from a handful of products. A model of L
layers, hidden size d, GLU size f and vocabulary V has, where K/H of the heads keep keys and values,

    matrices    L (2 d d (1 + K/H) + 3 d f)         2 bytes each in FP16, 1/4 in b1.58 (2-bit codes)
    embedding and head    2 V d                     2 bytes each in both
    cache       2 L d K/H values per token          2 bytes each, or 1

Every constant names its source; only the two factors of the memory are fitted (`memory_gb`). In
every function the arguments are

    shape, weights   sizes of the model, and how its linear layers hold their weights
    tokens           in each sequence so far, 0 or more
    batch            sequences that are computed together, 1 or more
    value_bytes      of a number in the cache: 2 in FP16, 1 if 8-bit activations are kept

A count that is no integer is a TypeError, one that is too small a ValueError, as is a `value_bytes`
that is not above 0 and finite.

Sources, by the names used below. *Paper*: arXiv 2402.17764. *Tips*: "The Era of 1-bit LLMs:
Training Tips, Code and FAQ". *LLaMA*: arXiv 2302.13971. *Llama 2*: arXiv 2307.09288. *Horowitz*:
"Computing's energy problem", ISSCC 2014 (45 nm). *Jouppi*: "Ten lessons from three generations
shaped Google's TPUv4i", ISCA 2021, Table 2 (7 nm). *O'Connor*: "Fine-Grained DRAM", MICRO 2017.
*A100*: NVIDIA's data sheet of the A100 80 GB SXM, 2021.
"""

from __future__ import annotations

from typing import NamedTuple

from minibit.base import integer, number

__all__ = [
    "B158",
    "FP16",
    "SHAPES",
    "Energy",
    "Shape",
    "Weights",
    "cache_bytes",
    "largest_batch",
    "memory_gb",
    "multiply_adds",
    "step_bytes",
    "step_seconds",
    "token_energy",
]

MATRIX_FACTOR, EMBEDDING_FACTOR = 1.018, 3.285  # fitted; see memory_gb
BANDWIDTH = 2.039e12  # A100: bytes per second
PEAK = 312e12  # A100: FP16 operations per second, dense; a multiply-add is two
DRAM_PJ_PER_BYTE = 8 * 3.97  # O'Connor: HBM2, the device alone
ENERGY_PJ = {  # one operation, in picojoules: at 45 nm by Horowitz, at 7 nm by Jouppi
    "45 nm": {"int8 add": 0.03, "int32 add": 0.1, "fp16 add": 0.4, "fp16 multiply": 1.1},
    "7 nm": {"int8 add": 0.007, "int32 add": 0.03, "fp16 add": 0.16, "fp16 multiply": 0.34},
}


class Shape(NamedTuple):
    """The sizes of a LLaMA-shaped model, on which all of its costs depend."""

    hidden: int  # d
    intermediate: int  # f
    layers: int  # L
    heads: int  # H
    kv_heads: int  # K
    vocabulary: int = 32000  # V: embedding and head are two matrices

    @property
    def matrix_weights(self) -> int:
        """Weights of all linear layers but the head: those that b1.58 makes ternary."""
        d, kept = self.hidden, self.hidden * self.kv_heads // self.heads
        return self.layers * (2 * d * d + 2 * d * kept + 3 * d * self.intermediate)

    @property
    def head_weights(self) -> int:
        """Weights of the head, which stays in FP16; the embedding has as many."""
        return self.vocabulary * self.hidden


SHAPES = {
    "700M": Shape(1536, 4096, 24, 24, 24),  # Tips
    "1.3B": Shape(2048, 5460, 24, 32, 32),  # Tips
    "3B": Shape(3200, 8640, 26, 32, 32),  # Tips
    "3.9B": Shape(3200, 12800, 26, 32, 32),  # Tips
    "7B": Shape(4096, 11008, 32, 32, 32),  # LLaMA
    "13B": Shape(5120, 13824, 40, 40, 40),  # LLaMA
    "30B": Shape(6656, 17920, 60, 52, 52),  # LLaMA
    "65B": Shape(8192, 22016, 80, 64, 64),  # LLaMA
    "70B": Shape(8192, 28672, 80, 64, 8),  # Llama 2
}


class Weights(NamedTuple):
    """How the linear layers hold their weights."""

    bytes: float  # of one weight
    pj: float  # of one multiply-add with it, in picojoules: at 7 nm (Jouppi)


FP16 = Weights(2.0, ENERGY_PJ["7 nm"]["fp16 multiply"] + ENERGY_PJ["7 nm"]["fp16 add"])
B158 = Weights(0.25, ENERGY_PJ["7 nm"]["int8 add"])  # the sign chooses between x, -x and nothing


class Energy(NamedTuple):
    """The energy of one token, in joules: of the arithmetic, and of reading what it works on."""

    arithmetic: float
    reading: float


def memory_gb(shape: Shape, weights: Weights) -> float:
    """Memory of a running model: ``(1.018 matrices bytes + 3.285 (2 V d) 2) / 10^9``.

    The two factors are the least-squares fit to the seven points of the paper's Table 1, rounded:
    the matrices are all that grows with the weights, and a runtime holds 3.3 times the bytes of
    embedding and head in arrays that grow with d alone; the paper doesn't name them.

    Examples
    --------
    >>> round(memory_gb(SHAPES["3B"], FP16), 2), round(memory_gb(SHAPES["3B"], B158), 2)
    (7.9, 2.17)
    """
    matrices = shape.matrix_weights * weights.bytes
    embeddings = 2 * shape.head_weights * FP16.bytes
    return (MATRIX_FACTOR * matrices + EMBEDDING_FACTOR * embeddings) / 1e9


def cache_bytes(shape: Shape, tokens: int, value_bytes: float = 2) -> float:
    """Bytes of the keys and values of one sequence: ``2 L d (K/H) tokens value_bytes``.

    Examples
    --------
    >>> cache_bytes(SHAPES["65B"], 512) / 1e9, cache_bytes(SHAPES["70B"], 512) / 1e9
    (1.34217728, 0.16777216)
    """
    number("value_bytes", value_bytes, "(0, inf)")
    kept = shape.hidden * shape.kv_heads // shape.heads
    return 2 * shape.layers * kept * integer("tokens", tokens) * value_bytes


def multiply_adds(shape: Shape, tokens: int = 0) -> tuple[int, int]:
    """Count the multiply-adds of one token: in the linear layers, and in head and attention.

    ``matrices`` and ``V d + 2 L d tokens``. The first are additions in b1.58, the second FP16 in
    both.

    Examples
    --------
    >>> multiply_adds(SHAPES["3B"], 512)
    (3221504000, 187596800)
    """
    attention = 2 * shape.layers * shape.hidden * integer("tokens", tokens)
    return shape.matrix_weights, shape.head_weights + attention


def step_bytes(
    shape: Shape, weights: Weights, *, batch: int = 1, tokens: int = 0, value_bytes: float = 2
) -> float:
    """Bytes read for one more token of each sequence of a batch: matrices, head and caches.

    ``matrices bytes + 2 V d + batch cache``: the weights are read once for the whole batch, and of
    the embedding only single rows.

    Examples
    --------
    >>> step_bytes(SHAPES["13B"], B158) < step_bytes(SHAPES["3B"], FP16)
    True
    """
    read_once = shape.matrix_weights * weights.bytes + shape.head_weights * FP16.bytes
    return read_once + integer("batch", batch, 1) * cache_bytes(shape, tokens, value_bytes)


def step_seconds(
    shape: Shape,
    weights: Weights,
    *,
    batch: int = 1,
    tokens: int = 0,
    value_bytes: float = 2,
    cards: int = 1,
) -> float:
    """Least time for one more token of each sequence of a batch, on A100 cards of 80 GB.

    ``max(bytes read / bandwidth, 2 multiply-adds / peak)``, with both at the data sheet's values:
    no program is faster. With more than one of `cards`, each holds its share of the layers
    (pipeline parallelism) and the batch is cut into as many parts, so that all cards are busy: each
    reads its weights once for each part, its caches and its operations are shared out.

    Examples
    --------
    >>> round(1000 * step_seconds(SHAPES["3B"], FP16), 2)  # milliseconds; measured: 5.07
    3.26
    """
    cards = integer("cards", cards, 1)
    once = step_bytes(shape, weights)
    caches = step_bytes(shape, weights, batch=batch, tokens=tokens, value_bytes=value_bytes) - once
    operations = 2 * batch * sum(multiply_adds(shape, tokens))
    return max((once + caches / cards) / BANDWIDTH, operations / cards / PEAK)


def token_energy(
    shape: Shape, weights: Weights, *, batch: int = 1, tokens: int = 0, value_bytes: float = 2
) -> Energy:
    """Energy of one token, of arithmetic at 7 nm and of reading HBM2.

    Arithmetic: `multiply_adds` times the picojoules of each, all but the linear layers in FP16.
    Reading: ``step_bytes / batch`` times 31.8 pJ. The result is a lower bound: no cache of the
    chip, register, wire, norm or softmax counts.

    Examples
    --------
    >>> energy = token_energy(SHAPES["7B"], FP16)
    >>> round(energy.arithmetic, 4), round(energy.reading, 4)
    (0.0033, 0.4197)
    """
    linear, other = multiply_adds(shape, tokens)
    read = step_bytes(shape, weights, batch=batch, tokens=tokens, value_bytes=value_bytes) / batch
    return Energy(1e-12 * (linear * weights.pj + other * FP16.pj), 1e-12 * read * DRAM_PJ_PER_BYTE)


def largest_batch(
    shape: Shape, weights: Weights, *, memory: float, tokens: int, value_bytes: float = 2
) -> int:
    """How many sequences fit beside the weights: ``(memory - weights) / cache``, rounded down.

    The weights are the matrices, the embedding and the head, each once; nothing else counts.
    `memory` is in bytes, of all cards together, and `tokens` 1 or more. 0 if not even the weights
    fit.

    Examples
    --------
    >>> largest_batch(SHAPES["65B"], FP16, memory=160e9, tokens=512)
    21
    """
    cache = cache_bytes(shape, integer("tokens", tokens, 1), value_bytes)
    once = shape.matrix_weights * weights.bytes + 2 * shape.head_weights * FP16.bytes
    return max(int((memory - once) // cache), 0)
