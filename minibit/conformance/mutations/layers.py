"""Wrong variants of ternary products, layers, norms and losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from minibit.conformance.exact.transformer import FLAGS, forward
from minibit.conformance.mutations.absmean import half_away

__all__ = ["LAYERS"]

F32, EPS = np.float32, np.float32(1e-5)


def _product(change: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Return an int8 product of activations and codes that are changed before or after."""

    def product(x: Any, matrix: Any) -> Any:
        """Multiply."""
        return change(x, matrix.codes()).astype(np.int32)

    return product


def _wide(x: Any, codes: Any) -> Any:
    """Multiply exactly."""
    return x.astype(np.int64) @ codes.T.astype(np.int64)


def _padded(x: Any, codes: Any) -> Any:
    """Read padding to a multiple of four as -1, and activations beyond the end as 1."""
    return _wide(x, codes) - (-codes.shape[1] % 4)


def _permuted(x: Any, codes: Any) -> Any:
    """Reverse columns inside each group of four."""
    order = [i - i % 4 + 3 - i % 4 for i in range(codes.shape[1])]
    return _wide(x, codes[:, [min(i, codes.shape[1] - 1) for i in order]])


def _scaled(
    x: Any,
    matrix: Any,
    rounding: Callable[..., Any] = np.rint,
    one: bool = False,
    factor: Callable[..., Any] = lambda gamma, scale: gamma / scale,
    floor: Any = EPS,
) -> Any:
    """``z (gamma / scale)``, with one part that may be wrong."""
    absmax = np.maximum(np.abs(x).max(axis=None if one else -1, keepdims=True), floor)
    scale = F32(1) / absmax * F32(127)
    with np.errstate(all="ignore"):
        codes = np.nan_to_num(rounding(x * scale)).astype(np.int8)
        z = _wide(codes, matrix.codes()).astype(F32)
        return (z * factor(matrix.scale, scale)).astype(F32)


def _grouped(wrong: str) -> Callable[..., Any]:
    """Return a product with scales of groups that is wrong in one way."""

    def product(x: Any, matrix: Any) -> Any:
        """Quantise and multiply group by group, and add them up."""
        codes, gammas = matrix.codes(), np.asarray(matrix.scale, F32)
        if wrong == "groups-turned":
            gammas = np.ascontiguousarray(gammas.T).reshape(gammas.shape)
        if wrong == "first-group-for-all":
            gammas = np.repeat(gammas[:, :1], gammas.shape[1], axis=1)
        if wrong == "groups-interleaved":  # column k in group k mod groups
            order = np.arange(codes.shape[1]).reshape(-1, gammas.shape[1]).T.reshape(-1)
            x, codes = x[..., order], codes[:, order]
        absmax = np.abs(x).max(axis=-1, keepdims=True)
        y = np.zeros((*x.shape[:-1], len(codes)), F32)
        for group in range(gammas.shape[1]):
            part = np.split(x, gammas.shape[1], axis=-1)[group]
            if wrong != "one-scale-per-token":
                absmax = np.abs(part).max(axis=-1, keepdims=True)
            scale = F32(1) / np.maximum(absmax, EPS) * F32(127)
            z = _wide(
                np.rint(part * scale).astype(np.int8),
                np.split(codes, gammas.shape[1], axis=1)[group],
            )
            y += z.astype(F32) * (gammas[:, group] * (F32(1) / scale))
        return y

    return product


def _head(wrong: str) -> Callable[..., Any]:
    """Return a product with floats or bits of bfloat16 that is wrong in one way."""

    def product(x: Any, w: Any) -> Any:
        """Widen and multiply."""
        wide = w
        if w.dtype == np.uint16:
            wide = (w.astype(np.uint32) << 16).view(F32)
            if wrong == "bits-in-the-low-half":
                wide = w.astype(np.uint32).view(F32)
            if wrong == "bits-of-float16":
                wide = w.view(np.float16).astype(F32)
            if wrong == "bits-as-numbers":
                wide = w.astype(F32)
        if wrong == "activations-in-half":
            x = x.astype(np.float16).astype(F32)
        if wrong == "activations-in-bfloat16":
            x = (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(F32)
        wide = np.asarray(wide, F32)
        return (x @ (wide if wrong == "not-transposed" else wide.T)).astype(F32)

    return product


def _drawn(wrong: str) -> Callable[..., Any]:
    """Return first parameters that are wrong in one way."""

    def init_mlp(widths: Any, codes: Any) -> Any:
        """Take the codes of each layer."""
        codes = codes[1:] + codes[:1] if wrong == "layers-from-1" else codes
        first = 0 if wrong == "names-from-0" else 1
        turned = wrong == "inputs-first"
        return {f"w{first + n}": c.T.copy() if turned else c for n, c in enumerate(codes)}

    return init_mlp


def _linear(x: Any, w: Any, scale: Any, product: Callable[..., Any]) -> Any:
    """Multiply by an argument that may lack."""
    y = product(x, np.asarray(w, x.dtype if np.asarray(x).dtype.kind == "f" else F32))
    return y if scale is None else scale * y


def _norm(
    x: Any,
    eps: float,
    centre: Any = lambda x: x - np.mean(x, axis=-1, keepdims=True),
    variance: Any = lambda z: np.mean(z * z, axis=-1, keepdims=True),
    root: Any = lambda v, eps: np.sqrt(v + eps),
) -> Any:
    """``(x - mean) / sqrt(var + eps)``, with one part that may be wrong."""
    centred = centre(x)
    return centred / root(variance(centred), eps)


def _outside(v: Any, eps: float) -> Any:
    """Add eps to the root."""
    return np.sqrt(v) + eps


def _unbiased(z: Any) -> Any:
    """Divide by n - 1."""
    return np.sum(z * z, axis=-1, keepdims=True) / (z.shape[-1] - 1)


def _rms(x: Any, gain: Any, eps: float, **parts: Any) -> Any:
    """Norm without centring, then the gain."""
    y = _norm(x, eps, **{"centre": lambda x: x, **parts})
    return y if gain is None else gain * y


def _entropy(logits: Any, labels: Any, reduction: str, log_sum: Any, mean: Any = np.mean) -> Any:
    """Cross entropy by a log-sum-exp that may be wrong."""
    picked = np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    losses = log_sum(logits) - picked
    return mean(losses) if reduction == "mean" else losses


def _log_sum(z: Any, log: Any = np.log) -> Any:
    """Log of the sum of exponentials, the maximum taken off."""
    top = np.max(z, axis=-1, keepdims=True)
    return log(np.sum(np.exp(z - top), axis=-1)) + top[..., 0]


def _mlp(
    params: Any,
    x: Any,
    logit_scale: float = 1.0,
    eps: float = 1e-5,
    activations: str = "float",
    order: str = "norm relu",
    last: Any = lambda h: h,
    rounding: Any = np.rint,
    norm: Any = _norm,
    layers: Any = lambda layer, hidden: layer + 1 < hidden,
    levels: float = 127,
    whole: bool = False,
) -> Any:
    """``h <- relu(norm(h W^T))``, then the logits, with one part that may be wrong."""
    *hidden, head = (np.asarray(params[f"w{n}"], x.dtype) for n in range(1, len(params) + 1))
    h = x
    for layer, w in enumerate(hidden):
        z = h @ w.T
        z = norm(np.maximum(z, 0) if order == "relu norm" else z, eps)
        if activations == "int8" and layers(layer, len(hidden)):
            z = np.maximum(z, 0) if order == "relu before rounding" else z
            absmax = np.abs(z).max(axis=None if whole else -1, keepdims=True)
            scale = F32(1) / np.maximum(absmax, F32(1e-5)).astype(F32) * F32(levels)
            z = (rounding(z.astype(F32) * scale) / scale).astype(x.dtype)
        h = np.maximum(z, 0) if order != "relu norm" else z
    return logit_scale * last(h @ head.T)


def _tanh_like(x: Any) -> Any:
    """Let a little through below zero."""
    return np.where(x > 0, x, x * 0.01)


def _half_down(x: Any) -> Any:
    """Round half toward zero."""
    return np.sign(x) * np.ceil(np.abs(x) - 0.5)


def _relu_slope(at_zero: float) -> Callable[..., Any]:
    """Return relu with another slope at 0."""

    def relu(x: Any) -> Any:
        """Rectify by a product, whose slope is that of its first factor."""
        value = getattr(x, "primal", x)
        return x * ((value > 0) + at_zero * (value == 0))

    return relu


LAYERS: dict[str, Callable[..., Any]] = {
    **{
        f"head_matmul/{wrong}": _head(wrong)
        for wrong in (
            *("bits-in-the-low-half", "bits-of-float16", "bits-as-numbers"),
            *("activations-in-bfloat16", "activations-in-half", "not-transposed"),
        )
    },
    **{
        f"init_mlp/{wrong}": _drawn(wrong)
        for wrong in ("layers-from-1", "names-from-0", "inputs-first", "shape-not-checked")
    },
    "ternary_matmul_int8/digits-without-offset": _product(lambda x, c: _wide(x, c + 1)),
    "ternary_matmul_int8/padding-is-minus-one": _product(_padded),
    "ternary_matmul_int8/negated-in-int8": _product(
        lambda x, c: _wide(x, c > 0) + _wide(-x, c < 0)
    ),
    "ternary_matmul_int8/columns-permuted": _product(_permuted),
    "ternary_matmul_int8/sums-in-int16": _product(
        lambda x, c: x.astype(np.int16) @ c.T.astype(np.int16)
    ),
    "ternary_matmul_int8/sums-in-int8": _product(lambda x, c: x @ c.T),
    "ternary_matmul_int8/transposed": _product(lambda x, c: _wide(x, c.T.reshape(c.shape))),
    "ternary_matmul_int8/width-ignored": _product(lambda x, c: _wide(x[:, : c.shape[1]], c)),
    "ternary_matmul/half-away": lambda x, matrix: _scaled(x, matrix, half_away),
    "ternary_matmul/truncated": lambda x, matrix: _scaled(x, matrix, np.trunc),
    "ternary_matmul/one-scale": lambda x, matrix: _scaled(x, matrix, one=True),
    "ternary_matmul/no-floor": lambda x, matrix: _scaled(x, matrix, floor=F32(0)),
    "ternary_matmul/times-scale": lambda x, matrix: _scaled(
        x, matrix, factor=lambda gamma, scale: gamma * scale
    ),
    "ternary_matmul/gamma-left-out": lambda x, matrix: _scaled(
        x, matrix, factor=lambda gamma, scale: F32(1) / scale
    ),
    "ternary_matmul/gamma-inverted": lambda x, matrix: _scaled(
        x, matrix, factor=lambda gamma, scale: F32(1) / (gamma * scale)
    ),
    **{
        f"ternary_matmul/{wrong}": _grouped(wrong)
        for wrong in (
            *("groups-turned", "first-group-for-all"),
            *("groups-interleaved", "one-scale-per-token"),
        )
    },
    "ternary_linear/not-transposed": lambda x, w, scale=None: _linear(
        x, w, scale, lambda x, w: x @ w
    ),
    "ternary_linear/scale-divided": lambda x, w, scale=None: _linear(
        x, w, None, lambda x, w: x @ w.T / scale
    ),
    "ternary_linear/scale-a-row-of-x": lambda x, w, scale=None: _linear(
        x, w, None, lambda x, w: (np.resize(scale, x.shape[0])[:, None] * x) @ w.T
    ),
    "layer_norm/variance-over-n-minus-1": lambda x, eps=1e-5: _norm(x, eps, variance=_unbiased),
    "layer_norm/eps-outside-the-root": lambda x, eps=1e-5: _norm(x, eps, root=_outside),
    "layer_norm/no-eps": lambda x, eps=1e-5: _norm(x, 0.0),
    "layer_norm/over-all-rows": lambda x, eps=1e-5: _norm(x, eps, centre=lambda x: x - np.mean(x)),
    "layer_norm/variance-of-all-rows": lambda x, eps=1e-5: _norm(
        x, eps, variance=lambda z: np.mean(z * z)
    ),
    "layer_norm/not-centred": lambda x, eps=1e-5: _norm(x, eps, centre=lambda x: x),
    "rms_norm/centred": lambda x, gain=None, eps=1e-5: _rms(
        x, gain, eps, centre=lambda x: x - np.mean(x, axis=-1, keepdims=True)
    ),
    "rms_norm/eps-outside-the-root": lambda x, gain=None, eps=1e-5: _rms(
        x, gain, eps, root=_outside
    ),
    "rms_norm/sum-for-mean": lambda x, gain=None, eps=1e-5: _rms(
        x, gain, eps, variance=lambda z: np.sum(z * z, axis=-1, keepdims=True)
    ),
    "rms_norm/over-all-rows": lambda x, gain=None, eps=1e-5: _rms(
        x, gain, eps, variance=lambda z: np.mean(z * z)
    ),
    "rms_norm/gain-before-norm": lambda x, gain=None, eps=1e-5: _rms(x * gain, None, eps),
    "rms_norm/gain-plus-one": lambda x, gain=None, eps=1e-5: _rms(x, 1 + gain, eps),
    "relu/slope-at-zero-is-1": _relu_slope(1.0),
    "relu/slope-at-zero-is-half": _relu_slope(0.5),
    "relu/leaks": _tanh_like,
    "relu/minus-zero": lambda x: np.where(x > 0, x, x * F32(0)),
    "squared_relu/times-x": lambda x: np.maximum(x, F32(0)) * x,
    "layer_norm/default-of-1e-6": lambda x: _norm(x, 1e-6),
    "rms_norm/default-of-1e-6": lambda x: _rms(x, None, 1e-6),
    "squared_relu/square-before-rectifier": lambda x: np.maximum(x * x, 0),
    "squared_relu/square-left-out": lambda x: np.maximum(x, 0),
    "cross_entropy/base-2": lambda logits, labels, reduction="mean": _entropy(
        logits, labels, reduction, lambda z: _log_sum(z, np.log2)
    ),
    "cross_entropy/sum-for-mean": lambda logits, labels, reduction="mean": _entropy(
        logits, labels, reduction, _log_sum, np.sum
    ),
    "cross_entropy/softmax-first": lambda logits, labels, reduction="mean": _entropy(
        np.exp(logits - _log_sum(logits)[..., None]), labels, reduction, _log_sum
    ),
    "cross_entropy/no-maximum": lambda logits, labels, reduction="mean": _entropy(
        logits, labels, reduction, lambda z: np.log(np.sum(np.exp(z), axis=-1))
    ),
    "cross_entropy/label-from-the-end": lambda logits, labels, reduction="mean": _entropy(
        logits, labels % logits.shape[-1], reduction, _log_sum
    ),
    "mlp/relu-before-norm": lambda **args: _mlp(order="relu norm", **args),
    "mlp/relu-on-logits": lambda **args: _mlp(last=lambda z: np.maximum(z, 0), **args),
    "mlp/norm-on-logits": lambda **args: _mlp(last=lambda z: _norm(z, 3.0), **args),
    "mlp/logit-scale-left-out": lambda **args: _mlp(**{**args, "logit_scale": 1.0}),
    "mlp/eps-of-rms": lambda **args: _mlp(**{**args, "eps": 1e-6}),
    "mlp/rounds-half-away": lambda **args: _mlp(rounding=half_away, **args),
    "mlp/rounds-half-down": lambda **args: _mlp(rounding=_half_down, **args),
    "mlp/rounds-toward-zero": lambda **args: _mlp(rounding=np.trunc, **args),
    "mlp/rounds-down": lambda **args: _mlp(rounding=np.floor, **args),
    "mlp/last-hidden-rounded": lambda **args: _mlp(layers=lambda layer, hidden: True, **args),
    "mlp/first-hidden-not-rounded": lambda **args: _mlp(
        layers=lambda layer, hidden: 0 < layer < hidden - 1, **args
    ),
    "mlp/relu-before-rounding": lambda **args: _mlp(order="relu before rounding", **args),
    "mlp/scale-of-the-batch": lambda **args: _mlp(whole=True, **args),
    "mlp/128-levels": lambda **args: _mlp(levels=128, **args),
    **{f"forward/{flag}": partial(forward, wrong=flag) for flag in FLAGS},
    "mlp/order-of-the-mapping": lambda params, **args: _mlp(
        {f"w{n}": w for n, w in enumerate(params.values(), 1)}, **args
    ),
    "cross_entropy/divided-by-classes": lambda logits, labels, reduction="mean": _entropy(
        logits, labels, reduction, _log_sum, lambda losses: np.sum(losses) / logits.shape[-1]
    ),
    "mlp/unknown-activations": lambda **args: _mlp(**args),
}
