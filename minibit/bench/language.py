"""``bench lm``: what a training step of a language model costs, beside PyTorch and on two threads.

A step is all of it: forward pass, gradient, clipping, AdamW. PyTorch's has the same network, the
same parameters, the same batch, its fused attention and norms, and no compilation. All candidates
of a size take turns, round after round; the medians are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minibit.bench import Figure, Options, Report, installed, medians
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


def lm(options: Options) -> Report:
    """Time training steps of every size, float and b1.58: PyTorch's in one thread, ours in two."""
    keep_freed_memory()
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    peer, pair = installed("torch"), cpus() >= 2
    for size in SIZES:
        candidates: dict[str, Callable[[], object]] = {}
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
                title = f"{name}: a step, over PyTorch's"
                figures.append(Figure(title, cost, "x", 3.0, at_least=False))
            if pair:
                gain = times[weights] / times[f"{weights}, two threads"]
                figures.append(Figure(f"{name}: speed of two threads over one", gain, "x"))
    notes = [
        "A step of 16 x 64 characters, two layers; NumPy and PyTorch have one thread each.",
        "The C library keeps freed memory, which spares both the pages of each step.",
    ]
    if not peer:
        notes.append("PyTorch is not installed: what it costs is left out.")
    if pair:
        notes.append(
            "Two threads wait for Python's lock some hundred times a step, however large the batch "
            f"is: with {MANY} rows that is little, with 16 it takes much of the gain."
        )
        details["many rows"] = {}
        for weights in LINEAR:
            steps = {
                "one": _our_step(size, weights, 1, MANY),
                "two": _our_step(size, weights, 2, MANY),
            }
            times = medians(steps, seconds=SECONDS / 2)
            name, gain = f"{size} {weights}", times["one"] / times["two"]
            details["many rows"][name] = gain
            title = f"{name}, {MANY} rows: speed of two threads over one"
            figures.append(Figure(title, gain, "x", 1.6))
    else:
        notes.append("Only one CPU may be used: two threads are left out.")
    return Report(figures, notes, details)


def _problem(
    size: str, weights: Any, rows: int | None = None
) -> tuple[BitNetConfig, dict[str, Any], Any, Any]:
    """Return a configuration, its initial parameters and a batch."""
    settings = recipe(size, weights)
    vocabulary, tokens, _ = shipped_text()
    config = settings.config(len(vocabulary))
    x, y = draw_batch(tokens, 0, 0, rows or settings.batch, settings.context)
    return config, init_params(config, 0), x, y


def _our_step(
    size: str, weights: str, threads: int, rows: int | None = None
) -> Callable[[], object]:
    config, params, x, y = _problem(size, weights, rows)
    optimizer = Optimizer(params, threads=threads)

    def step() -> object:
        _, gradient = loss_and_gradient(
            config, optimizer.params, x, y, linear=LINEAR[weights], threads=threads
        )
        return optimizer.step(gradient, RATE, DECAY, CLIP)

    return step


def _torch_step(size: str, weights: str) -> Callable[[], object]:
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

    `params` are tensors by the names of `minibit.transformer.param_shapes`; `x` and `y` int64
    tensors (batch, length), tokens and those after them; `weights` is "float" or "b1.58".
    """
    import torch
    from torch.nn import functional as F

    batch, length = x.shape
    exponent = np.arange(0, config.head_dim, 2) / config.head_dim
    inverse = np.concatenate([config.rope_theta**-exponent] * 2)  # (head_dim,)
    angles = np.arange(length)[:, None] * inverse  # (length, head_dim)
    turned = torch.from_numpy(angles.astype(np.float32))
    cos, sin, half = turned.cos(), turned.sin(), config.head_dim // 2

    def linear(h: Any, name: str) -> Any:
        w = params[name]
        if weights == "b1.58":
            scale = 127 / h.abs().amax(-1, keepdim=True).clamp(min=1e-5)
            h = h + ((h * scale).round().clamp(-128, 127) / scale - h).detach()
            inverse = 1 / w.abs().mean().clamp(min=1e-5)
            w = w + ((w * inverse).round().clamp(-1, 1) / inverse - w).detach()
        return F.linear(h, w)

    def norm(h: Any, name: str) -> Any:
        return F.rms_norm(h, (h.shape[-1],), params[name], config.rms_eps)

    def rotate(h: Any) -> Any:
        return h * cos + torch.cat([-h[..., half:], h[..., :half]], -1) * sin

    stream = F.embedding(x, params["embed_tokens"])  # (batch, length, hidden)
    for layer in range(config.layers):
        at = f"layers.{layer}."
        h = norm(stream, at + "input_layernorm")
        q, k, v = (
            linear(h, f"{at}self_attn.{name}_proj")
            .view(batch, length, -1, config.head_dim)
            .transpose(1, 2)
            for name in "qkv"
        )
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
