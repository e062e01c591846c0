"""``bench lm``: what a training step of a language model costs, beside PyTorch and on two threads.

A step is all of it: forward pass, gradient, clipping, AdamW. PyTorch's has the same network, the
same parameters, the same batch, its fused attention and norms, and no compilation. All candidates
of a size take turns, round after round; the medians are compared.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.bench import Figure, Options, Report, interleaved
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

__all__ = ["keep_freed_memory", "lm", "torch_loss"]

SECONDS = 8.0  # for all candidates of a size
RATE, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0
COST_BAR, THREADS_BAR = 3.0, 1.6  # at most, in steps of PyTorch; at least, with `MANY` rows
MANY = 64  # rows of a batch in which what threads cost each other is small


def lm(options: Options) -> Report:
    """Time training steps of every size, float and b1.58: PyTorch's in one thread, ours in two."""
    keep_freed_memory()
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    peer, pair = importlib.util.find_spec("torch") is not None, cpus() >= 2
    for size in SIZES:
        candidates: dict[str, Callable[[], object]] = {}
        for weights in LINEAR:
            candidates[weights] = _our_step(size, weights, 1)
            if pair:
                candidates[f"{weights}, two threads"] = _our_step(size, weights, 2)
            if peer:
                candidates[f"{weights}, torch"] = _torch_step(size, weights)
        found = interleaved(candidates, seconds=SECONDS, warmups=3)
        times = {name: float(np.median(seconds)) for name, seconds in found.items()}
        details[size] = times
        for weights in LINEAR:
            name, one = f"{size} {weights}", times[weights]
            figures.append(Figure(f"{name}: a step", 1e3 * one, "ms"))
            if peer:
                cost = one / times[f"{weights}, torch"]
                figures.append(
                    Figure(f"{name}: a step, over PyTorch's", cost, "x", COST_BAR, at_least=False)
                )
            if pair:
                gain = one / times[f"{weights}, two threads"]
                figures.append(Figure(f"{name}: speed of two threads over one", gain, "x"))
    if pair:
        gains = _many_rows(list(SIZES)[-1])
        details["many rows"] = gains
        for name, gain in gains.items():
            what = f"{name}, {MANY} rows: speed of two threads over one"
            figures.append(Figure(what, gain, "x", THREADS_BAR))
    return Report(tuple(figures), _notes(peer, pair), details)


def _many_rows(size: str) -> dict[str, float]:
    """Speed of two threads over one with a larger batch, for each kind of weights."""
    gains = {}
    for weights in LINEAR:
        one, two = (_our_step(size, weights, threads, MANY) for threads in (1, 2))
        times = interleaved({"one": one, "two": two}, seconds=SECONDS / 2)
        gains[f"{size} {weights}"] = float(np.median(times["one"]) / np.median(times["two"]))
    return gains


def keep_freed_memory() -> bool:
    """Let the C library keep what arrays have freed, for the rest of this process.

    A step frees some 50 MB, and glibc gives them back to the system: the next step then has every
    page given and zeroed anew, about a fifth of its time, PyTorch's alike. Threads get one heap.

    Returns
    -------
    bool
        Whether there was something to set: only with glibc.

    Examples
    --------
    >>> keep_freed_memory() in (True, False)
    True
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # malloc.h
    settings = ((trim_threshold, 2**31 - 1), (mmap_threshold, 2**25), (arena_max, 1))
    return all([library.mallopt(option, value) == 1 for option, value in settings])


def _notes(peer: bool, pair: bool) -> tuple[str, ...]:
    """Say what was measured, and what was left out."""
    notes = [
        "A step of 16 x 64 characters, two layers; NumPy and PyTorch have one thread each.",
        "The C library keeps freed memory, which spares both the pages of each step.",
    ]
    if pair:
        notes.append(
            "Two threads wait for Python's lock some hundred times a step, however large the batch "
            f"is: with {MANY} rows that is little, with 16 it takes much of the gain."
        )
    if not peer:
        notes.append("PyTorch is not installed: what it costs is left out.")
    if not pair:
        notes.append("Only one CPU may be used: two threads are left out.")
    return tuple(notes)


def _problem(
    size: str, weights: Any, rows: int | None = None
) -> tuple[BitNetConfig, dict[str, Any], Any, Any]:
    """Return a configuration, its initial parameters and a batch."""
    made = recipe(size, weights)
    vocabulary, tokens, _ = shipped_text()
    config = made.config(len(vocabulary))
    rows = made.batch if rows is None else rows
    return config, init_params(config, 0), *draw_batch(tokens, 0, 0, rows, made.context)


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
    held = {name: torch.tensor(w, requires_grad=True) for name, w in params.items()}
    optimizer = torch.optim.AdamW(held.values(), lr=RATE, betas=BETAS, weight_decay=DECAY)
    before, after = torch.from_numpy(x.copy()), torch.from_numpy(y.copy())

    def step() -> object:
        optimizer.zero_grad()
        torch_loss(config, held, before, after, weights).backward()
        torch.nn.utils.clip_grad_norm_(held.values(), CLIP)
        return optimizer.step()

    return step


def torch_loss(
    config: BitNetConfig, params: Mapping[str, Any], x: Any, y: Any, weights: str
) -> Any:
    """Write the same network in PyTorch, with its fused attention, norms and loss.

    Parameters
    ----------
    config : BitNetConfig
    params : mapping of names to torch tensors
        As `minibit.transformer.param_shapes`.
    x, y : int64 torch tensors, shape (batch, length)
        Tokens, and those after them.
    weights : {"float", "b1.58"}

    Returns
    -------
    torch tensor
        The mean loss.
    """
    import torch
    from torch.nn import functional as F

    batch, length = x.shape
    angles = torch.from_numpy(_angles(config, length))
    cos, sin, half = angles.cos(), angles.sin(), config.head_dim // 2

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


def _angles(config: BitNetConfig, length: int) -> NDArray[np.float32]:
    """Angle of every position and entry of a head, (length, head_dim)."""
    exponent = np.arange(0, config.head_dim, 2) / config.head_dim
    inverse = np.concatenate([config.rope_theta**-exponent] * 2)  # (head_dim,)
    angles: NDArray[np.float32] = (np.arange(length)[:, None] * inverse).astype(np.float32)
    return angles
