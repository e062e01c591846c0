"""Adapters in float64: layers, merged weights, first adapters, files; `wrong` is one mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from minibit.conformance.exact.checkpoint import stored_tensors
from minibit.conformance.exact.nf4 import quantize_nf4
from minibit.conformance.exact.noise import NOISE

__all__ = [
    *(
        "LORA",
        "Layer",
        "delta",
        "init_adapters",
        "load_adapters",
        "lora_layer",
        "lora_linear",
        "merge",
        "unmerge",
    ),
    "with_adapters",
]


@dataclass(frozen=True)
class Layer:
    """A matrix and its adapter."""

    base: Any
    A: Any
    B: Any
    alpha: float = 8.0
    rank_stabilized: bool = False
    dropout: float = 0.0
    lane: int = 0
    magnitude: Any = None


def delta(layer: Any, wrong: str = "") -> Any:
    """Return what is added to the base, (n_out, n_in), in float64."""
    rank, base = len(layer.A), np.asarray(layer.base, float)
    stable = layer.rank_stabilized and wrong != "not-rank-stabilised"
    scaling = layer.alpha / (sqrt(rank) if stable else rank)
    scaling = layer.alpha if wrong == "alpha-alone" else scaling
    change = scaling * (np.asarray(layer.B, float) @ np.asarray(layer.A, float))
    if layer.magnitude is None or wrong == "magnitude-left-out":
        return change
    merged = base if wrong == "norm-of-the-base" else base + change
    lengths = np.sqrt((merged**2).sum(axis=1))
    if wrong == "norm-of-columns":
        lengths = np.resize(np.sqrt((merged**2).sum(axis=0)), len(base))
    return (base + change) * (layer.magnitude / lengths)[:, None] - base


def lora_layer(
    base: Any, A: Any, B: Any, alpha: float, rank_stabilized: bool, x: Any, wrong: str = ""
) -> tuple[Any, Any]:
    """Return what a layer makes of x, and the merged weights: of an NF4 base in its blocks."""
    packed = hasattr(base, "dequantize")
    w = np.asarray(base.dequantize() if packed else base, float)
    rank, a, b = len(A), np.asarray(A, float), np.asarray(B, float)
    stable = rank_stabilized and wrong != "not-rank-stabilised"
    scaling = alpha / (sqrt(rank) if stable else rank)
    scaling = {"alpha-alone": alpha, "alpha-inverted": rank / alpha}.get(wrong, scaling)
    product = (b + 1 if wrong == "b-from-one" else b) @ a
    if wrong == "factors-exchanged":
        product = np.resize(a.T @ np.resize(b.T, (rank, len(w))), w.shape)
    change = scaling * product
    merged = w + (product if wrong == "merge-forgets-scaling" else change)
    if packed and wrong == "codes-kept":
        merged = w
    if packed and wrong != "merge-not-quantised":
        block = 64 if wrong == "merge-in-blocks-of-64" else base.block
        nested = base.offset is not None and wrong != "merge-not-nested"
        merged = quantize_nf4(merged, block, nested)[2]
    return (x @ (w + change).T).astype(np.float32), merged.astype(np.float32)


def lora_linear(x: Any, w: Any, noise: Any = None, wrong: str = "") -> tuple[Any]:
    """``x W^T``, and the adapter on what dropout leaves of x."""
    base, change = np.asarray(w.base, float), delta(w, wrong)
    h = x.astype(float)
    if noise is not None and w.dropout:
        seed, step = noise
        lane = 0 if wrong == "lane-ignored" else w.lane
        step = 0 if wrong == "step-ignored" else step
        draws = NOISE["uniform"](seed=seed, shape=x.shape, domain=9, step=step, lane=lane)[0]
        kept = draws < w.dropout if wrong == "share-that-is-kept" else draws >= w.dropout
        h = h * kept / (1 if wrong == "rest-does-not-grow" else 1 - w.dropout)
    y = (h if wrong == "base-drops-too" else x) @ base.T
    return ((y + h @ change.T).astype(np.float32),)


def merge(layer: Any, wrong: str = "") -> tuple[Any]:
    """``W + scaling B A``."""
    return ((np.asarray(layer.base, float) + delta(layer, wrong)).astype(np.float32),)


def unmerge(weights: Any, layer: Any, wrong: str = "") -> tuple[Any]:
    """``W' - scaling B A``."""
    return ((weights - delta(layer, wrong)).astype(np.float32),)


def init_adapters(
    params: Any, rank: int = 8, seed: int = 0, targets: Any = None, wrong: str = ""
) -> tuple[Any]:
    """Draw A within ``1 / sqrt(n_in)``; B is zero."""
    names = [name for name in params if name.split(".")[-1] in (targets or [name.split(".")[-1]])]
    names = [name for name in names if targets or name.endswith("_proj")]
    names = [*params] if wrong == "every-parameter" else names
    out: dict[str, Any] = {}
    for lane, name in enumerate(names):
        n_out, n_in = np.shape(params[name])[0], np.shape(params[name])[-1]
        lane = 0 if wrong == "one-lane" else [*params].index(name) if wrong == "all-lanes" else lane
        draws = NOISE["uniform"](seed=seed, shape=(rank, n_in), domain=8, step=0, lane=lane)[0]
        width = {"root-of-the-rank": rank, "root-of-n-out": n_out}.get(wrong, n_in)
        reach = sqrt(3 / width) if wrong == "deviation-for-range" else sqrt(1 / width)
        b = np.ones((n_out, rank)) if wrong == "b-from-one" else np.zeros((n_out, rank))
        out[name] = {"A": ((2 * draws - 1) * reach).astype(np.float32), "B": b.astype(np.float32)}
    return (out,)


def with_adapters(
    params: Any, adapters: Any, alpha: Any = 8.0, rank_stabilized: bool = False, wrong: str = ""
) -> tuple[Any]:
    """Merge each adapter into its matrix."""
    out = dict(params)
    for name, parts in adapters.items():
        if "weight" in parts:
            out[name] = params[name] if wrong == "whole-weights-left-out" else parts["weight"]
            continue
        scale = alpha[name] if isinstance(alpha, dict) else alpha
        scale = next(iter(alpha.values())) if wrong == "first-alpha" else scale
        layer = Layer(params[name], alpha=scale, rank_stabilized=rank_stabilized, **parts)
        (out[name],) = merge(layer, wrong)
    return (out,)


def load_adapters(config: str, file: Any, wrong: str = "") -> tuple[Any, str]:
    """Read adapters by the names that peft gives them."""
    fields, found = json.loads(config), stored_tensors(bytes(file.tolist()))
    adapters: dict[str, dict[str, Any]] = {}
    ends = {"lora_A.weight": "A", "lora_B.weight": "B", "lora_magnitude_vector": "magnitude"}
    for key, value in found.items():
        module = key.removeprefix("base_model.model.")
        end = next(end for end in ends if module.endswith(end))
        name = module.removesuffix(f".{end}")
        name = name if wrong == "names-of-peft" else name.removeprefix("model.")
        wide = value.astype(np.float32)
        if value.dtype == np.uint16:
            wide = (value.astype(np.uint32) << 16).view(np.float32)
            wide = (
                value.view(np.float16).astype(np.float32)
                if wrong == "bfloat16-as-float16"
                else wide
            )
        adapters.setdefault(name, {})[ends[end]] = wide
    alpha: Any = float(fields["lora_alpha"])
    if fields.get("alpha_pattern") and wrong != "pattern-ignored":

        def of(name: str) -> float:
            """Return the alpha of the first pattern that a module's name ends with."""
            for pattern, value in fields["alpha_pattern"].items():
                exact = wrong == "pattern-as-whole-name"
                if re.fullmatch(pattern if exact else rf"(.*\.)?({pattern})", f"model.{name}"):
                    return float(value)
            return float(fields["lora_alpha"])

        alpha = {name: of(name) for name in sorted(adapters)}
    stable = fields.get("use_rslora", False) and wrong != "not-rank-stabilised"
    settings = {"alpha": alpha, "rank_stabilized": stable, "dropout": fields["lora_dropout"]}
    return {name: adapters[name] for name in sorted(adapters)}, json.dumps(settings, sort_keys=True)


LORA: dict[str, Callable[..., tuple[Any, ...]]] = {
    "LoRALinear": lora_layer,
    "LoRALinear.delta": lambda self: (delta(self).astype(np.float32),),
    "init_adapters": init_adapters,
    "load_adapters": load_adapters,
    "lora_linear": lora_linear,
    "merge": merge,
    "unmerge": unmerge,
    "with_adapters": with_adapters,
}
