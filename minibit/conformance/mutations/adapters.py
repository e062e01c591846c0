"""Wrong variants of adapters and of checkpoints: the loops of `exact`, with one mistake each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minibit.conformance.exact.checkpoint import load_bitnet, load_gguf, save_bitnet, save_gguf
from minibit.conformance.exact.lora import (
    delta,
    init_adapters,
    load_adapters,
    lora_linear,
    merge,
    unmerge,
    with_adapters,
)

__all__ = ["ADAPTERS"]


def _table(function: Callable[..., Any], flags: str) -> dict[str, Callable[..., Any]]:
    """Return variants of one function, by their flags."""
    name = function.__name__
    return {f"{name}/{flag}": partial(function, wrong=flag) for flag in flags.split()}


def _delta(self: Any, wrong: str) -> Any:
    """Return what merging adds, wrong in the way that is named."""
    return delta(self, wrong).astype(np.float32)


ADAPTERS: dict[str, Callable[..., Any]] = {
    **_table(
        lora_linear,
        "lane-ignored step-ignored share-that-is-kept rest-does-not-grow base-drops-too "
        "norm-of-the-base norm-of-columns magnitude-left-out",
    ),
    **_table(merge, "norm-of-the-base norm-of-columns magnitude-left-out alpha-alone"),
    **_table(unmerge, "alpha-alone not-rank-stabilised"),
    **_table(
        init_adapters,
        "every-parameter one-lane all-lanes root-of-the-rank root-of-n-out deviation-for-range "
        "b-from-one",
    ),
    **_table(with_adapters, "first-alpha not-rank-stabilised whole-weights-left-out"),
    **_table(
        load_adapters,
        "names-of-peft bfloat16-as-float16 pattern-ignored pattern-as-whole-name "
        "not-rank-stabilised",
    ),
    **{
        f"LoRALinear.delta/{flag}": partial(_delta, wrong=flag)
        for flag in ("alpha-alone", "norm-of-the-base", "magnitude-left-out")
    },
    "load_adapters/rank-not-compared": load_adapters,
    **_table(
        load_bitnet,
        "one-after-the-other bfloat16-as-float16 scale-inverted neighbouring-rows padding-kept "
        "same-head-kept head-alone-left-as-it-is other-head-lost",
    ),
    "load_bitnet/zeros-pass": load_bitnet,
    "load_bitnet/scale-not-above-0": load_bitnet,
    **_table(
        save_bitnet,
        "names-of-ours neighbouring-rows scale-inverted scale-without-an-axis head-in-the-model",
    ),
    **_table(load_gguf, "bfloat16-as-float16 sides-as-stored magnitude-is-one other-head-lost"),
    **_table(save_gguf, "names-of-ours magnitude-is-one lowest-first bfloat16-widened"),
}
