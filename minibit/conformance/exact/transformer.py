"""A language model of BitNet's blocks in float64, loop by loop; `wrong` names one mistake."""

from __future__ import annotations

from math import cos, exp, sin, sqrt
from typing import Any

import numpy as np

__all__ = ["FLAGS", "forward"]

FLAGS = (
    *("rotary-interleaved", "rotary-backwards", "rotary-left-out"),
    *("gate-and-up-exchanged", "relu-not-squared", "eps-outside-the-root", "not-causal"),
    *("heads-grouped-in-turn", "one-group", "scale-of-the-width", "sub-norms-left-out"),
    *("last-norm-left-out", "residual-of-the-norm", "theta-of-llama"),
)
Rows = list[list[float]]


def norm(x: list[float], gain: Any, eps: float, wrong: str) -> list[float]:
    """``gain x / sqrt(mean x^2 + eps)``."""
    square = sum(v * v for v in x) / len(x)
    root = sqrt(square) + eps if wrong == "eps-outside-the-root" else sqrt(square + eps)
    return [float(g) * v / root for g, v in zip(gain, x, strict=True)]


def product(x: list[float], w: Any) -> list[float]:
    """``x w^T``."""
    return [sum(float(a) * b for a, b in zip(row, x, strict=True)) for row in w]


def rotated(x: list[float], position: int, theta: float, wrong: str) -> list[float]:
    """Turn entries i and i + half of a head by ``position theta^(-2i / width)``."""
    if wrong == "rotary-left-out":
        return x
    half, out = len(x) // 2, list(x)
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if wrong == "rotary-interleaved" else (i, i + half)
        angle = position * theta ** (-i / half)
        s = -sin(angle) if wrong == "rotary-backwards" else sin(angle)
        out[a], out[b] = x[a] * cos(angle) - x[b] * s, x[b] * cos(angle) + x[a] * s
    return out


def attention(q: Rows, k: Rows, v: Rows, config: Any, wrong: str) -> Rows:
    """Attend causally; neighbouring heads share keys and values."""
    heads, groups = config.heads, config.kv_heads
    width = len(q[0]) // heads
    theta = 500000.0 if wrong == "theta-of-llama" else config.rope_theta
    out = []
    for t in range(len(q)):
        row: list[float] = []
        for head in range(heads):
            group = head // (heads // groups)
            if wrong == "heads-grouped-in-turn":
                group = head % groups
            group = 0 if wrong == "one-group" else group
            mine = slice(head * width, (head + 1) * width)
            theirs = slice(group * width, (group + 1) * width)
            query = rotated(q[t][mine], t, theta, wrong)
            seen = range(len(k)) if wrong == "not-causal" else range(t + 1)
            scale = sqrt(len(q[0]) if wrong == "scale-of-the-width" else width)
            keys = [rotated(k[s][theirs], s, theta, wrong) for s in seen]
            scores = [sum(a * b for a, b in zip(query, key, strict=True)) / scale for key in keys]
            weights = [exp(score - max(scores)) for score in scores]
            values = [v[s][theirs] for s in seen]
            row += [
                sum(w * value[i] for w, value in zip(weights, values, strict=True)) / sum(weights)
                for i in range(width)
            ]
        out.append(row)
    return out


def forward(config: Any, params: Any, tokens: Any, wrong: str = "") -> tuple[Any]:
    """Return logits (batch, tokens, vocabulary), float32."""
    sub = wrong != "sub-norms-left-out"

    def normed(x: Rows, name: str) -> Rows:
        """Norm each token by a gain of that name."""
        return [norm(row, params[name], config.rms_eps, wrong) for row in x]

    def linear(x: Rows, name: str) -> Rows:
        """Multiply each token by a matrix of that name."""
        return [product(row, params[name].tolist()) for row in x]

    def added(x: Rows, y: Rows) -> Rows:
        """Add two lists of rows."""
        return [[a + b for a, b in zip(r, s, strict=True)] for r, s in zip(x, y, strict=True)]

    logits = []
    for sequence in np.asarray(tokens).tolist():
        x = [params["embed_tokens"][token].tolist() for token in sequence]
        for layer in range(config.layers):
            at = f"layers.{layer}."
            h = normed(x, at + "input_layernorm")
            q, k, v = (linear(h, f"{at}self_attn.{part}_proj") for part in "qkv")
            a = attention(q, k, v, config, wrong)
            a = normed(a, at + "self_attn.attn_sub_norm") if sub else a
            x = h if wrong == "residual-of-the-norm" else x
            x = added(x, linear(a, at + "self_attn.o_proj"))
            h = normed(x, at + "post_attention_layernorm")
            gate, up = (linear(h, f"{at}mlp.{part}_proj") for part in ("gate", "up"))
            if wrong == "gate-and-up-exchanged":
                gate, up = up, gate
            power = 1 if wrong == "relu-not-squared" else 2
            unit = [
                [max(g, 0.0) ** power * u for g, u in zip(gs, us, strict=True)]
                for gs, us in zip(gate, up, strict=True)
            ]
            unit = normed(unit, at + "mlp.ffn_sub_norm") if sub else unit
            x = added(x, linear(unit, at + "mlp.down_proj"))
        x = x if wrong == "last-norm-left-out" else normed(x, "norm")
        logits.append([product(row, params["embed_tokens"].tolist()) for row in x])
    return (np.array(logits, np.float32),)
