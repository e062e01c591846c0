"""Wrong variants of language models: caches, decoding, first and packed parameters, projections."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minibit.conformance.exact.counting import counted, discounts
from minibit.conformance.exact.transformer import (
    FLAGS,
    decoder,
    forward,
    generate,
    init_params,
    kv_cache,
    logits,
    pack_params,
    param_shapes,
    truncate,
)

__all__ = ["MODELS"]

F32 = np.float32


def _shapes(config: Any, wrong: str) -> Any:
    """Shapes of parameters, wrong in the way that is named."""
    (shapes,) = param_shapes(config)
    if wrong == "keys-of-all-heads":
        wide = [config.hidden_size] * 2
        return {n: wide if n[-6:] in ("k_proj", "v_proj") else s for n, s in shapes.items()}
    if wrong == "inputs-first":
        return {name: shape[::-1] for name, shape in shapes.items()}
    if wrong == "always-tied":
        return {name: shape for name, shape in shapes.items() if name != "lm_head"}
    inner = [config.intermediate_size]
    return shapes | {f"layers.{n}.mlp.ffn_sub_norm": inner for n in range(config.layers)}


def _packed(params: Any, wrong: str) -> Any:
    """Packed parameters, wrong in the way that is named."""
    (packed,) = pack_params(params)
    if wrong == "embedding-too":
        return pack_params({f"{name}_proj": w for name, w in params.items() if w.ndim == 2})[0]
    for name, w in packed.items():
        if isinstance(w, list):
            codes, gamma = w
            inverted = wrong == "gamma-inverted"
            packed[name] = [codes, F32(1) / gamma] if inverted else [codes.T.copy(), gamma]
    return packed


def _packed_linear(x: Any, w: Any, wrong: str) -> Any:
    """Multiply by packed weights, wrong in the way that is named."""
    axis = None if wrong == "one-scale" else -1
    scale = F32(1) / np.maximum(np.abs(x).max(axis=axis, keepdims=True), F32(1e-5)) * F32(127)
    q = x * scale if wrong == "float-activations" else np.rint(x * scale)
    y = q.astype(float) @ w.codes().T / scale
    return (y if wrong == "gamma-left-out" else y * float(w.scale)).astype(F32)


def _float_linear(x: Any, w: Any, wrong: str) -> Any:
    """Multiply by floats, or the upper halves of some, wrong in the way that is named."""
    wide = (w.astype(np.uint32) << 16).view(F32) if w.dtype == np.uint16 else w
    if wrong == "bits-as-numbers":
        wide = w.astype(F32)
    return x @ (wide if wrong == "not-transposed" else wide.T)


def _table(function: Callable[..., Any], name: str, flags: str) -> dict[str, Callable[..., Any]]:
    """Return variants of one function, by their flags."""
    return {f"{name}/{flag}": partial(function, wrong=flag) for flag in flags.split()}


MODELS: dict[str, Callable[..., Any]] = {
    **_table(forward, "forward", "head-of-the-embedding no-maximum"),
    **_table(logits, "BitNetModel.logits", " ".join(FLAGS)),
    **_table(kv_cache, "KVCache", "places-restart each-part-alone rotary-interleaved not-causal"),
    **_table(truncate, "KVCache.truncate", "nothing-forgotten all-forgotten"),
    **_table(decoder, "Decoder", "nothing-forgotten all-forgotten logits-before-the-last"),
    **_table(generate, "generate", "steps-of-the-answer one-draw drawn-at-temperature-0"),
    **_table(
        init_params,
        "init_params",
        "embeddings-as-projections width-of-outputs range-for-deviation lanes-of-matrices-alone "
        "one-lane",
    ),
    **_table(
        _shapes, "param_shapes", "keys-of-all-heads inputs-first always-tied sub-norms-always"
    ),
    **_table(_packed, "pack_params", "embedding-too gamma-inverted transposed"),
    **_table(_packed_linear, "packed_linear", "one-scale float-activations gamma-left-out"),
    **_table(_float_linear, "float_linear", "bits-as-numbers not-transposed"),
    **_table(discounts, "counting.discounts", "without-the-two one-for-all"),
    **{
        f"counting.witten_bell/{flag}": counted("witten-bell", flag)
        for flag in ("one-kind", "longest-alone", "bits-for-nats")
    },
    **{
        f"counting.kneser_ney/{flag}": counted("kneser-ney", flag)
        for flag in ("counts-for-kinds", "one-discount", "longest-alone", "bits-for-nats")
    },
    "check_params/passes": lambda config, params: None,
    "bit_linear/zero-slope": lambda x, w: (
        np.zeros((len(x.primal), len(w)), F32) + np.sum(x - x, axis=-1, keepdims=True)
    ),
}
