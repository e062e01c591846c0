"""The meaning of calls about language models: caches, decoding, packed matrices, counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["MODELS"]


def kv_cache(offered: Any, config: Any, params: Any, parts: Any) -> Any:
    """Return the logits of all tokens, which a cache reads part after part: (tokens, vocab)."""
    cache = offered.KVCache(config, capacity=1)
    logits = [offered.forward(config, params, part, cache=cache)[0] for part in parts]
    return np.concatenate(logits), cache.length


def truncate(offered: Any, config: Any, params: Any, tokens: Any, length: int, more: Any) -> Any:
    """Return the logits of some more tokens, after all but the first `length` are forgotten."""
    cache = offered.KVCache(config)
    offered.forward(config, params, tokens, cache=cache)
    cache.truncate(length)
    return offered.forward(config, params, more, cache=cache)[0], cache.length


def decoder(offered: Any, model: Any, tokens: Any, keep: int, more: Any) -> Any:
    """Return the logits after tokens; after all but the last `keep` of these and some more."""
    one = offered.Decoder(model)
    one.append(tokens.tolist())
    first = np.array(one.logits())
    one.forget(keep)
    one.append(more.tolist())
    return first, np.array(one.logits()), np.array(one.text)


def generate(offered: Any, model: Any, prompt: Any, count: int, **args: Any) -> Any:
    """Return the tokens that are drawn."""
    return np.array([*offered.generate(model, prompt.tolist(), count, **args)], np.int64)


def pack_params(offered: Any, params: Any) -> Any:
    """Return codes and scale of what was packed, and the rest as it is."""
    packed = offered.pack_params(params)
    return {
        name: [w.codes(), np.float32(w.scale)] if hasattr(w, "codes") else w
        for name, w in packed.items()
    }


def counted(name: str) -> Callable[..., Any]:
    """Return what a smoothing makes of a text: chances after histories, the loss of another."""

    def model(offered: Any, text: str, context: int, histories: Any, held_out: str) -> Any:
        """Count, and ask."""
        model = getattr(offered.counting, name)(text, context)
        return np.stack([model.probabilities(h) for h in histories]), model.loss(held_out)

    return model


def matrix_of(name: str) -> Callable[..., Any]:
    """Return codes and scale of a matrix that a class method makes."""
    kind, _, maker = name.partition(".")

    def matrix(offered: Any, **args: Any) -> Any:
        """Make it, and look."""
        made = getattr(getattr(offered, kind), maker)(**args)
        return made.codes(), np.float32(made.scale)

    return matrix


MODELS: dict[str, Callable[..., Any]] = {
    "Decoder": decoder,
    "KVCache": kv_cache,
    "KVCache.truncate": truncate,
    **{
        name: matrix_of(name)
        for name in (
            *("TernaryMatrix.from_codes", "TernaryMatrix.from_hf", "TernaryMatrix.from_packed2"),
            "TernaryColumns.from_codes",
        )
    },
    **{f"counting.{name}": counted(name) for name in ("kneser_ney", "witten_bell")},
    "generate": generate,
    "pack_params": pack_params,
}
