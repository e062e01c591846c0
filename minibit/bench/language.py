"""``bench lm``: what a training step of a language model costs, beside PyTorch and on two threads.

A step is all of it: forward pass, gradient, clipping, AdamW. PyTorch's has the same network,
parameters and batch, its fused attention and norms, and no compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minibit.bench import Figure, Options, Report, installed, medians, missing
from minibit.bench.processes import keep_freed_memory
from minibit.kernels.threads import cpus
from minibit.language import (
    LINEAR,
    SIZES,
    Optimizer,
    draw_batch,
    loss_and_gradient,
    recipe,
    shipped_text,
)
from minibit.transformer import BitNetConfig, init_params

__all__ = ["lm", "torch_loss"]

SECONDS = 8.0  # for all candidates of a size
RATE, DECAY, CLIP = 1e-3, 0.1, 1.0
MANY = 64  # rows of a batch in which what threads cost each other is small
Step = Callable[[], object]


def lm(options: Options) -> Report:
    """Time training steps of every size, float and b1.58: PyTorch's in one thread, ours in two."""
    keep_freed_memory()
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    peer, pair = installed("torch"), cpus() >= 2
    for size in SIZES:
        candidates: dict[str, Step] = {}
        for weights in LINEAR:
            candidates[weights] = _our_step(size, weights, 1)
            if pair:
                candidates[f"{weights}, two threads"] = _our_step(size, weights, 2)
            if peer:
                candidates[f"{weights}, torch"] = _torch_step(size, weights)
        times = details[size] = medians(candidates, seconds=SECONDS, warmups=3)
        for weights in LINEAR:
            name = f"{size} {weights}"
            figures.append(Figure(f"{name}: a step", 1e3 * times[weights], "ms"))
            if peer:
                cost = times[weights] / times[f"{weights}, torch"]
                figures.append(Figure(f"{name}: a step, over PyTorch's", cost, "x", 3.0, False))
            if pair:
                gain = times[weights] / times[f"{weights}, two threads"]
                figures.append(Figure(f"{name}: speed of two threads over one", gain, "x"))
    notes = [
        "A step of 16 x 64 characters, two layers; NumPy and PyTorch have one thread each.",
        "The C library keeps freed memory, which spares both the pages of each step.",
        *missing("PyTorch", "torch"),
    ]
    if not pair:
        notes.append("Only one CPU may be used: two threads are left out.")
        return Report(figures, notes, details)
    notes.append(
        "Two threads wait for Python's lock some hundred times per step, however large the batch "
        f"is: with {MANY} rows that is little, with 16 it takes much of the gain."
    )
    gains = details["many rows"] = {}
    for weights in LINEAR:
        steps = {str(threads): _our_step(size, weights, threads, MANY) for threads in (1, 2)}
        times, name = medians(steps, seconds=SECONDS / 2), f"{size} {weights}"
        gains[name] = times["1"] / times["2"]
        title = f"{name}, {MANY} rows: speed of two threads over one"
        figures.append(Figure(title, gains[name], "x", 1.6))
    return Report(figures, notes, details)


def _problem(
    size: str, weights: Any, rows: int | None = None
) -> tuple[BitNetConfig, Any, Any, Any]:
    """Return a configuration, its initial parameters and a batch."""
    settings = recipe(size, weights)
    vocabulary, tokens, _ = shipped_text()
    config = settings.config(len(vocabulary))
    batch = draw_batch(tokens, 0, 0, rows or settings.batch, settings.context)
    return config, init_params(config, 0), *batch


def _our_step(size: str, weights: str, threads: int, rows: int | None = None) -> Step:
    """Return a step of our own."""
    config, params, x, y = _problem(size, weights, rows)
    optimizer, linear = Optimizer(params, threads=threads), LINEAR[weights]

    def step() -> object:
        params = optimizer.params
        gradient = loss_and_gradient(config, params, x, y, linear=linear, threads=threads)[1]
        return optimizer.step(gradient, RATE, DECAY, CLIP)

    return step


def _torch_step(size: str, weights: str) -> Step:
    """Return the same step of PyTorch."""
    import torch

    torch.set_num_threads(1)
    config, params, x, y = _problem(size, weights)
    tensors = {name: torch.tensor(w, requires_grad=True) for name, w in params.items()}
    optimizer = torch.optim.AdamW(tensors.values(), lr=RATE, betas=(0.9, 0.95), weight_decay=DECAY)
    before, after = torch.from_numpy(x.copy()), torch.from_numpy(y.copy())

    def step() -> object:
        optimizer.zero_grad()
        torch_loss(config, tensors, before, after, weights).backward()
        torch.nn.utils.clip_grad_norm_(tensors.values(), CLIP)
        return optimizer.step()

    return step


def torch_loss(
    config: BitNetConfig, params: Mapping[str, Any], x: Any, y: Any, weights: str
) -> Any:
    """Write the same network in PyTorch, with its fused attention, norms and loss.

    `params` are tensors by the names of `minibit.transformer.param_shapes`, `x` and `y` int64
    tensors (batch, length): tokens, and those after them.
    """
    import torch
    from torch.nn import functional as F

    batch, length = x.shape
    half = config.head_dim // 2
    speeds = np.tile(config.rope_theta ** -(np.arange(half) / half), 2)  # (head_dim,)
    angles = torch.from_numpy(np.outer(np.arange(length), speeds).astype(np.float32))
    cos, sin = angles.cos(), angles.sin()  # (length, head_dim)

    def linear(h: Any, name: str) -> Any:
        w = params[name]
        if weights == "b1.58":
            scale = 127 / h.abs().amax(-1, keepdim=True).clamp(min=1e-5)
            h = h + ((h * scale).round().clamp(-128, 127) / scale - h).detach()
            scale = 1 / w.abs().mean().clamp(min=1e-5)
            w = w + ((w * scale).round().clamp(-1, 1) / scale - w).detach()
        return F.linear(h, w)

    def norm(h: Any, name: str) -> Any:
        return F.rms_norm(h, (h.shape[-1],), params[name], config.rms_eps)

    def rotate(h: Any) -> Any:
        return h * cos + torch.cat([-h[..., half:], h[..., :half]], -1) * sin

    stream = F.embedding(x, params["embed_tokens"])  # (batch, length, hidden)
    for layer in range(config.layers):
        at = f"layers.{layer}."
        h = norm(stream, at + "input_layernorm")
        heads = (linear(h, f"{at}self_attn.{name}_proj") for name in "qkv")
        q, k, v = (t.view(batch, length, -1, config.head_dim).transpose(1, 2) for t in heads)
        group = config.heads // config.kv_heads
        k, v = (t.repeat_interleave(group, 1) if group > 1 else t for t in (rotate(k), v))
        o = F.scaled_dot_product_attention(rotate(q), k, v, is_causal=True)
        o = o.transpose(1, 2).reshape(batch, length, -1)
        o = norm(o, at + "self_attn.attn_sub_norm") if config.sub_norms else o
        stream = stream + linear(o, at + "self_attn.o_proj")
        h = norm(stream, at + "post_attention_layernorm")
        h = F.relu(linear(h, at + "mlp.gate_proj")) ** 2 * linear(h, at + "mlp.up_proj")
        h = norm(h, at + "mlp.ffn_sub_norm") if config.sub_norms else h
        stream = stream + linear(h, at + "mlp.down_proj")
    logits = F.linear(norm(stream, "norm"), params["embed_tokens" if config.tied else "lm_head"])
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())
