"""Wrong variants of the quantisers of BitNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["ABSMEAN"]

F32, EPS = np.float32, np.float32(1e-5)


def half_away(x: Any) -> Any:
    """Round half away from zero, as C's `round` does."""
    return np.trunc(x + np.copysign(F32(0.5), x))


def half_up(x: Any) -> Any:
    """Round half up, as JavaScript's `Math.round` does."""
    return np.floor(x + F32(0.5))


def _absmean(
    w: Any,
    mean: Callable[..., Any] = lambda w: F32(np.abs(w).mean(dtype=np.float64)),
    floor: Callable[..., Any] = max,
    ratio: Callable[..., Any] = lambda w, gamma: w * (F32(1) / gamma),
    rounding: Callable[..., Any] = np.rint,
    cut: float = 1,
) -> Any:
    """``clip(rint(w (1 / gamma)), -1, 1)``, with one part that may be wrong."""
    gamma = floor(mean(w), EPS)
    return np.clip(rounding(ratio(w, gamma)), -cut, cut).astype(np.int8), F32(gamma)


def _rows(w: Any) -> Any:
    """One gamma for each row, and only the last is returned."""
    codes, gammas = zip(*map(_absmean, w), strict=True)
    return np.stack(codes), gammas[-1]


def _absmax(
    x: Any,
    largest: Callable[..., Any] = lambda x: np.abs(x).max(-1, keepdims=True),
    floor: Callable[..., Any] = np.maximum,
    scale: Callable[..., Any] = lambda m: F32(1) / m * F32(127),
    rounding: Callable[..., Any] = np.rint,
) -> Any:
    """``rint(x scale)``, with one part that may be wrong."""
    factor = scale(floor(largest(x), EPS))
    factor = np.broadcast_to(factor, (*x.shape[:-1], 1))
    return np.clip(rounding(x * factor), -128, 127).astype(np.int8), factor


def _binary(
    w: Any,
    centre: Callable[..., Any] = np.mean,
    beta: Callable[..., Any] = lambda w: np.abs(w).mean(),
    sign: Callable[..., Any] = lambda d: np.where(d > 0, 1, -1),
) -> Any:
    """``sign(w - mean w)`` and ``mean|w|``, with one part that may be wrong."""
    return sign(w - centre(w)).astype(np.int8), F32(beta(w))


def _fake(quantise: Callable[..., Any], value: Callable[..., Any]) -> Callable[..., Any]:
    """Return a fake quantiser without a straight-through slope, or with wrong values."""

    def fake(strength: float = 1.0, **args: Any) -> Any:
        """Quantise and go back."""
        (x,) = args.values()
        codes, scale = quantise(getattr(x, "primal", x))
        return value(x, codes, scale, F32(strength))

    return fake


def _stopped(value: Callable[..., Any]) -> Callable[..., Any]:
    """Values as they should be, and the slope of what is outside of the quantiser only."""

    def fake(x: Any, codes: Any, scale: Any, strength: Any) -> Any:
        """Move what the warm-up leaves of x."""
        return x + strength * (value(codes, scale) - x)

    return fake


def _weights(codes: Any, gamma: Any) -> Any:
    """Return the values of weights, as published."""
    return codes * (F32(1) / (F32(1) / gamma))


def _moved(x: Any, target: Any, strength: Any) -> Any:
    """Straight through, from x to a target that is wrong."""
    return x - getattr(x, "primal", x) + (getattr(x, "primal", x) * (1 - strength) + target)


ABSMEAN: dict[str, Callable[..., Any]] = {
    "absmean_quantize/maximum": lambda w: _absmean(w, lambda w: np.abs(w).max()),
    "absmean_quantize/signed-mean": lambda w: _absmean(w, lambda w: abs(w.mean())),
    "absmean_quantize/half-away": lambda w: _absmean(w, rounding=half_away),
    "absmean_quantize/half-up": lambda w: _absmean(w, rounding=half_up),
    "absmean_quantize/truncated": lambda w: _absmean(w, rounding=np.trunc),
    "absmean_quantize/not-clipped": lambda w: _absmean(w, cut=127),
    "absmean_quantize/no-floor": lambda w: _absmean(w, floor=lambda gamma, _: gamma),
    "absmean_quantize/floor-added": lambda w: _absmean(w, floor=lambda gamma, eps: gamma + eps),
    "absmean_quantize/divides-by-gamma": lambda w: _absmean(w, ratio=lambda w, gamma: w / gamma),
    "absmean_quantize/compares-with-half-a-gamma": lambda w: _absmean(
        w, ratio=lambda w, gamma: np.sign(w) * (np.abs(w).astype(float) * 2 > gamma)
    ),
    "absmean_quantize/float32-sum": lambda w: _absmean(
        w, lambda w: np.add.accumulate(np.abs(w).ravel())[-1] / F32(w.size)
    ),
    "absmean_quantize/scale-a-row": _rows,
    "absmean_quantize/mean-of-first-row": lambda w: _absmean(w, lambda w: np.abs(w[0]).mean()),
    "absmean_quantize/mean-over-n-in": lambda w: _absmean(
        w, lambda w: F32(np.abs(w).sum(dtype=np.float64) / w.shape[-1])
    ),
    "absmean_quantize/gamma-of-codes-inverted": lambda w: (_absmean(w)[0], 1 / _absmean(w)[1]),
    "absmean_quantize/nan-passes": lambda w: _absmean(np.nan_to_num(w)),
    "absmean_quantize/empty-passes": lambda w: (w.astype(np.int8), F32(np.nan)),
    "absmax_quantize/nan-passes": lambda x: _absmax(np.nan_to_num(x)),
    "binary_quantize/nan-passes": lambda w: _binary(np.nan_to_num(w)),
    "absmax_quantize/one-scale": lambda x: _absmax(x, lambda x: np.abs(x).max()),
    "absmax_quantize/scale-a-column": lambda x: _absmax(
        x, lambda x: np.resize(np.abs(x).max(0), (*x.shape[:-1], 1))
    ),
    "absmax_quantize/half-away": lambda x: _absmax(x, rounding=half_away),
    "absmax_quantize/truncated": lambda x: _absmax(x, rounding=np.trunc),
    "absmax_quantize/largest-value": lambda x: _absmax(x, lambda x: x.max(-1, keepdims=True)),
    "absmax_quantize/128-levels": lambda x: _absmax(x, scale=lambda m: F32(1) / m * F32(128)),
    "absmax_quantize/one-division": lambda x: _absmax(x, scale=lambda m: F32(127) / m),
    "absmax_quantize/no-floor": lambda x: _absmax(x, floor=lambda m, _: m),
    "absmax_quantize/floor-added": lambda x: _absmax(x, floor=np.add),
    "absmax_quantize/scale-inverted": lambda x: (_absmax(x)[0], F32(1) / _absmax(x)[1]),
    "binary_quantize/not-centred": lambda w: _binary(w, centre=lambda w: 0 * w),
    "binary_quantize/mean-in-doubles": lambda w: _binary(w, lambda w: w.mean(dtype=np.float64)),
    "binary_quantize/sign-zero": lambda w: _binary(w, sign=np.sign),
    "binary_quantize/mean-is-positive": lambda w: _binary(
        w, sign=lambda d: np.where(d >= 0, 1, -1)
    ),
    "binary_quantize/centred-scale": lambda w: _binary(
        w, beta=lambda w: np.abs(w - w.mean()).mean()
    ),
    "binary_quantize/centred-a-row": lambda w: _binary(
        w, centre=lambda w: w.mean(-1, keepdims=True)
    ),
    "fake_quant_weight/zero-slope": _fake(
        _absmean, lambda x, c, g, s: _stopped(_weights)(x, c, g, s)
    ),
    "fake_quant_weight/codes-times-gamma": _fake(
        _absmean, lambda x, c, g, s: _moved(x, s * (c * g), s)
    ),
    "fake_quant_weight/strength-backwards": _fake(
        _absmean, lambda x, c, g, s: _moved(x, (1 - s) * _weights(c, g), 1 - s)
    ),
    "fake_quant_weight/strength-ignored": _fake(
        _absmean, lambda x, c, g, s: _moved(x, _weights(c, g), F32(1))
    ),
    "fake_quant_activation/zero-slope": _fake(
        _absmax, lambda x, c, g, s: _stopped(lambda c, g: c / g)(x, c, g, s)
    ),
    "fake_quant_activation/times-scale": _fake(
        _absmax, lambda x, c, g, s: _moved(x, s * (c * g), s)
    ),
    "fake_quant_activation/codes-alone": _fake(_absmax, lambda x, c, g, s: _moved(x, s * c, s)),
    "fake_quant_activation/strength-backwards": _fake(
        _absmax, lambda x, c, g, s: _moved(x, (1 - s) * (c / g), 1 - s)
    ),
}
