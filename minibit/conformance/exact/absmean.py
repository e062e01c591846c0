"""The quantisers of BitNet in exact fractions, each float32 operation rounded once."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from minibit.conformance.exact.numbers import entries, float32, nearest

__all__ = ["ABSMEAN"]

EPS = Fraction(float(np.float32(1e-5)))


def absmean_quantize(w: Any) -> tuple[Any, Any]:
    """``gamma = max(mean|w|, 1e-5)``, ``clip(rint(w (1 / gamma)), -1, 1)``."""
    values = entries(w)
    gamma = max(float32(sum(map(abs, values.flat)) / values.size), EPS)
    inverse = float32(1 / gamma)
    codes = [min(max(round(float32(value * inverse)), -1), 1) for value in values.flat]
    return np.array(codes, np.int8).reshape(values.shape), nearest(gamma)


def absmax_quantize(x: Any) -> tuple[Any, Any]:
    """``scale = (1 / max(max|x|, 1e-5)) 127`` a token, ``rint(x scale)``."""
    values = entries(x)
    tokens, codes, scales = values.reshape(-1, values.shape[-1]), [], []
    for token in tokens:
        largest = max(EPS, *map(abs, token))
        scale = float32(float32(1 / largest) * 127)
        codes.append([round(float32(value * scale)) for value in token])
        scales.append(nearest(scale))
    return (
        np.array(codes, np.int8).reshape(values.shape),
        np.array(scales, np.float32).reshape(*values.shape[:-1], 1),
    )


def binary_quantize(w: Any) -> tuple[Any, Any]:
    """``sign(w - mean w)`` with -1 at the mean, ``mean|w|``."""
    values = entries(w)
    mean = float32(sum(values.flat) / Fraction(values.size))
    codes = [1 if value > mean else -1 for value in values.flat]
    beta = nearest(sum(map(abs, values.flat)) / Fraction(values.size))
    return np.array(codes, np.int8).reshape(values.shape), beta


def fake_quant_weight(w: Any, strength: float = 1.0) -> tuple[Any]:
    """``w + strength (codes / (1 / gamma) - w)``; all of it at strength 1."""
    codes, gamma = absmean_quantize(w)
    value = float32(1 / float32(1 / Fraction(float(gamma))))
    values = entries(w)
    targets = [int(code) * value for code in codes.flat]
    return (_moved(values, targets, strength),)


def fake_quant_activation(x: Any, strength: float = 1.0) -> tuple[Any]:
    """``x + strength (codes / scale - x)``; all of it at strength 1."""
    codes, scale = absmax_quantize(x)
    scales = np.broadcast_to(scale, codes.shape).flat
    targets = [
        float32(int(c) / Fraction(float(s))) for c, s in zip(codes.flat, scales, strict=True)
    ]
    return (_moved(entries(x), targets, strength),)


def _moved(values: Any, targets: list[Fraction], strength: float) -> Any:
    """Go a share of the way, each operation rounded."""
    share = float32(Fraction(strength))
    moved = [
        target if share == 1 else float32(x + float32(share * float32(target - x)))
        for x, target in zip(values.flat, targets, strict=True)
    ]
    return np.array([nearest(x) for x in moved], np.float32).reshape(values.shape)


ABSMEAN: dict[str, Callable[..., tuple[Any, ...]]] = {
    "absmean_quantize": absmean_quantize,
    "absmax_quantize": absmax_quantize,
    "binary_quantize": binary_quantize,
    "fake_quant_weight": fake_quant_weight,
    "fake_quant_activation": fake_quant_activation,
}
