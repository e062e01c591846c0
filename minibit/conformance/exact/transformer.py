"""A language model of BitNet's blocks in float64, loop by loop; `wrong` names one mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, exp, inf, sin, sqrt
from typing import Any

import numpy as np

from minibit.conformance.exact.absmean import absmax_quantize, absmean_quantize
from minibit.conformance.exact.matmul import integer_product
from minibit.conformance.exact.noise import NOISE

__all__ = [
    "FLAGS",
    "TRANSFORMER",
    "Config",
    "Model",
    "bit_linear",
    "forward",
    "product",
    "truncate",
]

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


def product(x: Any, w: Any) -> list[float]:
    """``x w^T``."""
    w = np.asarray(w)
    if w.dtype == np.uint16:  # the upper halves of float32
        w = (w.astype(np.uint32) << 16).view(np.float32)
    return [sum(float(a) * b for a, b in zip(row, x, strict=True)) for row in w.tolist()]


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


def attention(
    q: Rows, k: Rows, v: Rows, config: Any, wrong: str, breaks: Sequence[int] = ()
) -> Rows:
    """Attend causally; neighbouring heads share keys and values. `breaks` are where parts begin."""
    begins = [max([b for b in (0, *breaks) if b <= t]) for t in range(len(q))]
    places = [t - begin if wrong == "places-restart" else t for t, begin in enumerate(begins)]
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
            query = rotated(q[t][mine], places[t], theta, wrong)
            seen: Any = range(len(k)) if wrong == "not-causal" else range(t + 1)
            seen = range(begins[t], t + 1) if wrong == "each-part-alone" else seen
            scale = sqrt(len(q[0]) if wrong == "scale-of-the-width" else width)
            keys = [rotated(k[s][theirs], places[s], theta, wrong) for s in seen]
            scores = [sum(a * b for a, b in zip(query, key, strict=True)) / scale for key in keys]
            least = 0.0 if wrong == "no-maximum" else max(scores)
            weights = [exp(s - least) if s - least < 88 else inf for s in scores]  # of float32
            values = [v[s][theirs] for s in seen]
            row += [
                sum(w * value[i] for w, value in zip(weights, values, strict=True)) / sum(weights)
                for i in range(width)
            ]
        out.append(row)
    return out


def bit_linear(x: list[float], w: Any) -> list[float]:
    """``z (gamma / scale)``: one token's int8 codes times ternary codes and their scale."""
    packed = hasattr(w, "codes")
    codes, gamma = (w.codes(), w.scale) if packed else absmean_quantize(w)
    q, scale = absmax_quantize(np.array([x], np.float32))
    return [float(gamma) / float(scale[0, 0]) * z for z in integer_product(q, codes)[0]]


def forward(
    config: Any,
    params: Any,
    tokens: Any,
    wrong: str = "",
    linear: Callable[..., list[float]] = product,
    breaks: Sequence[int] = (),
) -> tuple[Any]:
    """Return logits (batch, tokens, vocabulary), float32."""
    sub = config.sub_norms and wrong != "sub-norms-left-out"

    def normed(x: Rows, name: str) -> Rows:
        """Norm each token by a gain of that name."""
        return [norm(row, params[name], config.rms_eps, wrong) for row in x]

    def projected(x: Rows, name: str) -> Rows:
        """Multiply each token by a matrix of that name."""
        return [linear(row, params[name]) for row in x]

    def added(x: Rows, y: Rows) -> Rows:
        """Add two lists of rows."""
        return [[a + b for a, b in zip(r, s, strict=True)] for r, s in zip(x, y, strict=True)]

    logits = []
    for sequence in np.asarray(tokens).tolist():
        x = [params["embed_tokens"][token].tolist() for token in sequence]
        for layer in range(config.layers):
            at = f"layers.{layer}."
            h = normed(x, at + "input_layernorm")
            q, k, v = (projected(h, f"{at}self_attn.{part}_proj") for part in "qkv")
            a = attention(q, k, v, config, wrong, breaks)
            a = normed(a, at + "self_attn.attn_sub_norm") if sub else a
            x = h if wrong == "residual-of-the-norm" else x
            x = added(x, projected(a, at + "self_attn.o_proj"))
            h = normed(x, at + "post_attention_layernorm")
            gate, up = (projected(h, f"{at}mlp.{part}_proj") for part in ("gate", "up"))
            if wrong == "gate-and-up-exchanged":
                gate, up = up, gate
            power = 1 if wrong == "relu-not-squared" else 2
            unit = [
                [max(g, 0.0) ** power * u for g, u in zip(gs, us, strict=True)]
                for gs, us in zip(gate, up, strict=True)
            ]
            unit = normed(unit, at + "mlp.ffn_sub_norm") if sub else unit
            x = added(x, projected(unit, at + "mlp.down_proj"))
        x = x if wrong == "last-norm-left-out" else normed(x, "norm")
        head = "embed_tokens" if config.tied or wrong == "head-of-the-embedding" else "lm_head"
        logits.append([product(row, params[head]) for row in x])
    return (np.array(logits, np.float32),)


@dataclass(frozen=True)
class Config:
    """Sizes of a model, with the defaults of `BitNetConfig`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    max_positions: int
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5
    tied: bool = True
    sub_norms: bool = True


@dataclass(frozen=True)
class Model:
    """A configuration, and parameters whose projections are quantised at each use."""

    config: Any
    params: Any


def logits(self: Any, tokens: Any, wrong: str = "", breaks: Sequence[int] = ()) -> tuple[Any]:
    """Return logits of a quantised model."""
    return forward(self.config, self.params, tokens, wrong, bit_linear, breaks)


def kv_cache(config: Any, params: Any, parts: Any, wrong: str = "") -> tuple[Any, int]:
    """Read all parts at once."""
    tokens = np.concatenate(parts, axis=1)
    breaks = np.cumsum([part.shape[1] for part in parts]).tolist()[:-1]
    return forward(config, params, tokens, wrong, breaks=breaks)[0][0], tokens.shape[1]


def truncate(
    config: Any, params: Any, tokens: Any, length: int, more: Any, wrong: str = ""
) -> tuple[Any, int]:
    """Read what was kept and some more at once."""
    kept = {"nothing-forgotten": tokens.shape[1], "all-forgotten": 0}.get(wrong, length)
    text = np.append(tokens[:, :kept], more, axis=1)
    return forward(config, params, text)[0][0, kept:], kept + more.shape[1]


def decoder(model: Any, tokens: Any, keep: int, more: Any, wrong: str = "") -> tuple[Any, Any, Any]:
    """Read the text anew after some of it was forgotten."""
    text = np.append(tokens[len(tokens) - keep :], more)
    text = np.append(tokens, more) if wrong == "nothing-forgotten" else text
    text = more if wrong == "all-forgotten" else text
    parts = [logits(model, part[None])[0][0] for part in (tokens, text)]
    at = -2 if wrong == "logits-before-the-last" else -1
    return parts[0][at], parts[1][at], text


def generate(
    model: Any, prompt: Any, count: int, temperature: float = 0.0, seed: int = 0, wrong: str = ""
) -> tuple[Any]:
    """Draw token t of the text with number 0 of step t of the domain of tokens."""
    text = prompt.tolist()
    for n in range(count):
        z = logits(model, np.array([text]))[0][0, -1].tolist()
        step = {"steps-of-the-answer": n, "one-draw": len(prompt)}.get(wrong, len(text))
        (draw,) = NOISE["uniform"](seed=seed, shape=1, domain=7, step=step)[0].tolist()
        mass = [exp((v - max(z)) / (temperature or 1.0)) for v in z]
        if temperature == 0 and wrong != "drawn-at-temperature-0":
            token = z.index(max(z))
        else:
            running = [sum(mass[: i + 1]) for i in range(len(mass))]
            token = next(i for i, total in enumerate(running) if draw * sum(mass) < total)
        text.append(token)
    return (np.array(text[len(prompt) :], np.int64),)


def param_shapes(config: Any) -> tuple[Any]:
    """Return the shape of each parameter by name."""
    hidden, inner = config.hidden_size, config.intermediate_size
    kept = hidden // config.heads * config.kv_heads
    shapes: dict[str, list[int]] = {"embed_tokens": [config.vocab_size, hidden]}
    for layer in range(config.layers):
        at = f"layers.{layer}."
        rows = {"q": hidden, "k": kept, "v": kept, "o": hidden}
        shapes[at + "input_layernorm"] = [hidden]
        for part in "qkvo":
            if part == "o" and config.sub_norms:
                shapes[at + "self_attn.attn_sub_norm"] = [hidden]
            shapes[f"{at}self_attn.{part}_proj"] = [rows[part], hidden]
        shapes[at + "post_attention_layernorm"] = [hidden]
        shapes |= {f"{at}mlp.{part}_proj": [inner, hidden] for part in ("gate", "up")}
        if config.sub_norms:
            shapes[at + "mlp.ffn_sub_norm"] = [inner]
        shapes[at + "mlp.down_proj"] = [hidden, inner]
    shapes["norm"] = [hidden]
    return (shapes if config.tied else shapes | {"lm_head": [config.vocab_size, hidden]},)


def init_params(config: Any, seed: int, wrong: str = "") -> tuple[Any]:
    """Draw parameter number n from lane n, uniform with a standard deviation."""
    out, lane = {}, 0
    for number, (name, shape) in enumerate(param_shapes(config)[0].items()):
        if len(shape) == 1:
            out[name] = np.ones(shape, np.float32)
            continue
        std = 0.05 if name in ("embed_tokens", "lm_head") else 1 / sqrt(shape[1])
        std = 1 / sqrt(shape[1]) if wrong == "embeddings-as-projections" else std
        std = 1 / sqrt(shape[0]) if wrong == "width-of-outputs" and std != 0.05 else std
        reach = 1.0 if wrong == "range-for-deviation" else sqrt(3)
        at = lane if wrong == "lanes-of-matrices-alone" else number
        at = 0 if wrong == "one-lane" else at
        draws = NOISE["uniform"](seed=seed, shape=tuple(shape), domain=1, lane=at)[0]
        out[name] = ((2 * draws - 1) * (reach * std)).astype(np.float32)
        lane += 1
    return (out,)


def pack_params(params: Any) -> tuple[Any]:
    """Quantise what ends in `_proj`."""
    return (
        {
            name: [*absmean_quantize(w)] if name.endswith("_proj") else w
            for name, w in params.items()
        },
    )


TRANSFORMER: dict[str, Callable[..., tuple[Any, ...]]] = {
    "BitNetModel.logits": logits,
    "Decoder": decoder,
    "KVCache": kv_cache,
    "KVCache.truncate": truncate,
    "forward": forward,
    "generate": generate,
    "init_params": init_params,
    "pack_params": pack_params,
    "param_shapes": param_shapes,
}
