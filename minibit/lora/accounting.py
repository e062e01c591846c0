"""The memory of a fine-tune and of a running model, line by line.

A full fine-tune takes 12 bytes per parameter, and activations; QLoRA takes 4.127 bits, and those 12
bytes for the adapters alone. Each line says what it multiplies. GB means 10^9 bytes. Sources: QLoRA
arXiv 2305.14314; LLaMA 2302.13971; Pythia 2304.01373; checkpointing Chen et al. 1604.06174.
"""

from __future__ import annotations

from typing import NamedTuple

from minibit.base import integer, one_of
from minibit.transformer import Shape, cache_bytes

__all__ = [
    "BITS",
    "PYTHIA_12B",
    "Line",
    "adapter_weights",
    "full_fine_tune",
    "gigabytes",
    "inference",
    "parameters",
    "qlora_fine_tune",
]

BITS: dict[str, float] = {  # of a weight in a linear layer
    "float32": 32.0,
    "bfloat16": 16.0,
    "int8": 8.0,
    "NF4": 4 + 32 / 64,
    "NF4, double quantisation": 4 + 8 / 64 + 32 / (64 * 256),
}
PYTHIA_12B = Shape(5120, 20480, 36, 40, 40, 50688)  # no gate: two matrices in its GLU's place


class Line(NamedTuple):
    """One thing that takes memory: its name, how that is multiplied, and the product in bytes."""

    name: str
    how: str
    bytes: float

    def __str__(self) -> str:
        """Write the line out, in GB."""
        return f"{self.bytes / 1e9:8.2f} GB  {self.name}: {self.how}"


def gigabytes(lines: list[Line]) -> float:
    """Add lines up, in GB.

    Examples
    --------
    >>> gigabytes([Line("weights", "", 2e9), Line("cache", "", 5e8)])
    2.5
    """
    return sum(line.bytes for line in lines) / 1e9


def parameters(shape: Shape, gated: bool = True) -> int:
    """Count the weights of a model: matrices, embedding and head (norms and biases are nothing).

    `gated`: whether the feed-forward half has three matrices, as LLaMA's, or two.

    Examples
    --------
    >>> from minibit.transformer import SHAPES
    >>> parameters(SHAPES["65B"]), parameters(PYTHIA_12B, gated=False)  # published: 65.2e9, 11.8e9
    (65284341760, 11843665920)
    """
    ungated = 0 if gated else shape.layers * shape.hidden * shape.intermediate
    return shape.matrix_weights - ungated + 2 * shape.head_weights


def adapter_weights(shape: Shape, rank: int) -> int:
    """Count the weights of adapters beside all seven matrices of each layer: ``r (n_in + n_out)``.

    Examples
    --------
    >>> from minibit.transformer import SHAPES
    >>> adapter_weights(SHAPES["65B"], rank=64)
    799539200
    """
    d, f = shape.hidden, shape.intermediate
    kept = d * shape.kv_heads // shape.heads
    return shape.layers * rank * (2 * (d + d) + 2 * (d + kept) + 3 * (d + f))


def full_fine_tune(count: float) -> list[Line]:
    """List what a full fine-tune of `count` parameters in bfloat16 holds, without activations.

    Examples
    --------
    >>> for line in full_fine_tune(65e9):
    ...     print(line)
      130.00 GB  weights: 65.0e9 x 2 bytes (bfloat16)
      130.00 GB  gradient: 65.0e9 x 2 bytes (bfloat16)
      520.00 GB  Adam's two means: 65.0e9 x 8 bytes (float32)
    >>> gigabytes(full_fine_tune(65e9))
    780.0
    """
    return [
        _each("weights", count, 2, " (bfloat16)"),
        _each("gradient", count, 2, " (bfloat16)"),
        _each("Adam's two means", count, 8, " (float32)"),
    ]


def qlora_fine_tune(
    shape: Shape, *, rank: int = 64, tokens: int = 512, bits: str = "NF4, double quantisation"
) -> list[Line]:
    """List what a QLoRA fine-tune of a LLaMA-shaped model holds, one text at a time.

    Every layer's input is kept, and the layer computed again on the way back (checkpointing), as in
    the published recipe: 512 `tokens` of text, adapters of `rank` 64 beside all matrices. `bits` is
    a key of `BITS`, for the frozen matrices. A ValueError refuses others, and numbers below 1.

    Notes
    -----
    A layer computed again holds, for every token, its inputs of products in bfloat16: 5 d of the
    attention and its norms, 4 f of the gated unit; the attention itself is computed in parts. One
    matrix at a time is dequantised to bfloat16. Logits and their gradient are float32.

    Examples
    --------
    >>> from minibit.transformer import SHAPES
    >>> for line in qlora_fine_tune(SHAPES["65B"]):
    ...     print(line)
       33.41 GB  matrices: 64.8e9 x 4.127 bits (NF4, double quantisation)
        1.05 GB  embedding and head: 0.5e9 x 2 bytes (bfloat16)
        1.60 GB  adapters: 0.8e9 x 2 bytes (bfloat16), rank 64
        1.60 GB  their gradient: 0.8e9 x 2 bytes (bfloat16)
        6.40 GB  Adam's two means, paged: 0.8e9 x 8 bytes (float32)
        0.67 GB  inputs of layers: 80 x 512 tokens x 8192 x 2 bytes
        0.13 GB  one layer again: 512 tokens x (5 x 8192 + 4 x 22016) x 2 bytes
        0.36 GB  one matrix dequantised: 8192 x 22016 x 2 bytes
        0.13 GB  logits and their gradient: 512 tokens x 32000 x 8 bytes
    """
    rank, t = integer("rank", rank, 1), integer("tokens", tokens, 1)
    n, d, f, v = shape.layers, shape.hidden, shape.intermediate, shape.vocabulary
    inner = 5 * d + 4 * f  # per token
    trained = adapter_weights(shape, rank)
    return [
        _matrices(shape.matrix_weights, bits),
        _each("embedding and head", 2 * shape.head_weights, 2, " (bfloat16)"),
        _each("adapters", trained, 2, f" (bfloat16), rank {rank}"),
        _each("their gradient", trained, 2, " (bfloat16)"),
        _each("Adam's two means, paged", trained, 8, " (float32)"),
        Line("inputs of layers", f"{n} x {t} tokens x {d} x 2 bytes", n * t * d * 2),
        Line("one layer again", f"{t} tokens x (5 x {d} + 4 x {f}) x 2 bytes", t * inner * 2),
        Line("one matrix dequantised", f"{d} x {f} x 2 bytes", 2 * d * f),
        Line("logits and their gradient", f"{t} tokens x {v} x 8 bytes", t * v * 8),
    ]


def inference(shape: Shape, bits: str, *, tokens: int = 2048, gated: bool = True) -> list[Line]:
    """List what running a model holds: weights, and the keys and values of a text of `tokens`.

    `bits` is a key of `BITS`, for the matrices; embedding, head and cache are bfloat16, or float32
    if the matrices are. `gated` is as in `parameters`. A ValueError refuses other bits, and tokens
    below 0.

    Examples
    --------
    >>> for line in inference(PYTHIA_12B, "int8", gated=False):
    ...     print(line)
       11.32 GB  matrices: 11.3e9 x 8 bits (int8)
        1.04 GB  embedding and head: 0.5e9 x 2 bytes
        1.51 GB  keys and values: 2048 tokens x 36 x 2 x 5120 x 2 bytes
    """
    tokens = integer("tokens", tokens)
    width = 4 if bits == "float32" else 2
    ends = 2 * shape.head_weights
    kept = shape.hidden * shape.kv_heads // shape.heads
    cache = f"{tokens} tokens x {shape.layers} x 2 x {kept} x {width} bytes"
    return [
        _matrices(parameters(shape, gated) - ends, bits),
        _each("embedding and head", ends, width),
        Line("keys and values", cache, cache_bytes(shape, tokens, value_bytes=width)),
    ]


def _each(name: str, count: float, size: int, kind: str = "") -> Line:
    """Multiply a count of weights by the bytes of each."""
    return Line(name, f"{count / 1e9:.1f}e9 x {size} bytes{kind}", count * size)


def _matrices(count: float, bits: str) -> Line:
    """Multiply the weights of matrices by the bits of each."""
    each = BITS[one_of("bits", bits, BITS)]
    return Line("matrices", f"{count / 1e9:.1f}e9 x {each:.4g} bits ({bits})", count * each / 8)
