"""Wrong variants of Adam and its schedules, and of adapters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import sqrt
from typing import Any

import numpy as np

from minibit.conformance.exact.lora import lora_layer

__all__ = ["TRAINING"]


def _adam(
    param: Any,
    grads: Any,
    lr: Any,
    weight_decay: Any,
    betas: Any,
    eps: float,
    wrong: str = "",
) -> Any:
    """Adam on one parameter, wrong in the way that is named."""
    p, m, v, out = float(param[0]), 0.0, 0.0, []
    b1, b2 = betas[::-1] if wrong == "betas-exchanged" else betas
    for step, (g, rate, decay) in enumerate(zip(grads, lr, weight_decay, strict=True), 1):
        t = step - 1 if wrong == "steps-from-0" else step
        rate = lr[0] if wrong == "first-rate-kept" else rate
        g = g + decay * p if wrong == "decay-in-the-gradient" else g
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        c1, c2 = 1 - b1**t or 1.0, 1 - b2**t or 1.0
        if wrong == "no-correction":
            c1 = c2 = 1.0
        if wrong == "one-correction":
            c2 = c1
        root = sqrt(v / c2)
        size = sqrt(v / c2 + eps) if wrong == "eps-in-the-root" else root + eps
        if wrong == "no-eps":
            size = root if root else float("nan")
        move = rate * (m / c1) / size
        before = p
        p -= move
        if wrong == "decay-after-the-move":
            p *= 1 - rate * decay
        elif wrong == "decay-without-rate":
            p -= decay * before
        elif wrong != "decay-in-the-gradient":
            p -= rate * decay * before
        out.append([p])
    return np.array(out, np.asarray(param).dtype)


def _variant(wrong: str) -> Callable[..., Any]:
    """Return an Adam that is wrong in one way."""
    return lambda **args: _adam(**args, wrong=wrong)


def _two_stage(
    step: int, steps: int, peak: float, second: float, warmup: int = 0, wrong: str = ""
) -> Any:
    """Return the two-stage schedule, wrong in the way that is named."""
    half = steps // 2 if wrong == "half-rounded-down" else -(-steps // 2)
    late = step > half if wrong == "second-stage-late" else step >= half
    left = 1 - step / (steps + (wrong == "ends-late"))
    late = late != (wrong == "rates-exchanged")
    rate = (second if late else peak) * left
    if step < warmup:
        share = step / warmup if wrong == "warmup-from-0" else (step + 1) / warmup
        rate *= 1.0 if wrong == "no-warmup" else share
    return float(rate)


def _clip(grads: Any, limit: float, wrong: str) -> Any:
    """Clip arrays, wrong in the way that is named."""
    total = sqrt(sum(float((g * g).sum()) for g in grads))
    if wrong == "each-array-alone":
        return ([g * min(1.0, limit / max(sqrt(float((g * g).sum())), 1e-30)) for g in grads],)
    if wrong == "each-entry":
        return ([np.clip(g, -limit, limit) for g in grads],)
    if wrong == "stretched":
        return ([g * (limit / max(total, 1e-30)) for g in grads],)
    return ([g / np.float64(total) * min(limit, total) for g in grads],)


def _keys(name: str, root: str, wrong: str, magnitude: bool = False) -> Any:
    """Keys of an adapter file, wrong in the way that is named."""
    inner = name if name == "lm_head" and wrong != "head-in-the-model" else root + name
    prefix = {"no-prefix": "", "model-left-out": "base_model."}.get(wrong, "base_model.model.")
    end = ".default.weight" if wrong == "name-of-adapter" else ".weight"
    vector = ["magnitude_vector.weight" if wrong == "magnitude-as-a-weight" else "magnitude_vector"]
    parts = [f"{part}{end}" for part in "AB"] + vector * magnitude
    return ([f"{prefix}{inner}.lora_{part}" for part in parts],)


def _saved(wrong: str) -> Callable[..., Any]:
    """Return a writer that is wrong in one way."""
    return lambda name, root, magnitude=False: _keys(name, root, wrong, magnitude)


ADAM = (
    *("no-correction", "eps-in-the-root", "steps-from-0", "one-correction", "betas-exchanged"),
    *("decay-in-the-gradient", "decay-after-the-move", "decay-without-rate", "no-eps"),
    "first-rate-kept",
)
PAGED = (
    *("no-correction", "steps-from-0", "one-correction", "betas-exchanged"),
    *("decay-after-the-move", "decay-without-rate"),
)
TRAINING: dict[str, Callable[..., Any]] = {
    **{f"Adam/{wrong}": _variant(wrong) for wrong in ADAM},
    **{f"PagedAdam/{wrong}": _variant(wrong) for wrong in PAGED},
    **{
        f"two_stage/{wrong}": partial(_two_stage, wrong=wrong)
        for wrong in (
            "second-stage-late",
            "half-rounded-down",
            "warmup-from-0",
            "no-warmup",
            "rates-exchanged",
            "ends-late",
        )
    },
    "two_stage_weight_decay/kept-for-the-whole-run": lambda step, steps, decay: decay,
    "two_stage_weight_decay/second-stage-late": lambda step, steps, decay: (
        0.0 if step > -(-steps // 2) else decay
    ),
    "two_stage_weight_decay/rates-exchanged": lambda step, steps, decay: (
        decay if step >= -(-steps // 2) else 0.0
    ),
    "two_stage_weight_decay/half-rounded-down": lambda step, steps, decay: (
        0.0 if step >= steps // 2 else decay
    ),
    **{
        f"clip_by_global_norm/{wrong}": partial(_clip, wrong=wrong)
        for wrong in ("each-array-alone", "each-entry", "stretched", "divides-by-zero")
    },
    "global_norm/largest": lambda tree: float(max(np.abs(g).max() for g in tree)),
    "global_norm/sum-of-norms": lambda tree: float(sum(sqrt((g * g).sum()) for g in tree)),
    **{
        f"LoRALinear/{wrong}": partial(lora_layer, wrong=wrong)
        for wrong in (
            *("alpha-alone", "alpha-inverted", "not-rank-stabilised", "factors-exchanged"),
            *("b-from-one", "codes-kept", "merge-not-quantised", "merge-forgets-scaling"),
            *("merge-in-blocks-of-64", "merge-not-nested"),
        )
    },
    **{
        f"save_adapters/{wrong}": _saved(wrong)
        for wrong in (
            *("no-prefix", "model-left-out", "head-in-the-model", "name-of-adapter"),
            "magnitude-as-a-weight",
        )
    },
}
