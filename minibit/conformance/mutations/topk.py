"""Wrong variants of top-K choices and of the scaling law."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from math import exp
from typing import Any

import numpy as np

from minibit.conformance.exact.topk import TOPK as RIGHT

__all__ = ["TOPK"]


def _by_rank(x: Any, k: int, key: Callable[[Any], Any], last: bool = False) -> Any:
    """Mark the k largest keys; ties to the first, or the last."""
    keys = key(np.asarray(x))
    mask = np.zeros(keys.shape, bool)
    for row, marks in zip(
        keys.reshape(-1, keys.shape[-1]), mask.reshape(-1, keys.shape[-1]), strict=True
    ):
        order = sorted(range(len(row)), key=lambda i: (-row[i], -i if last else i))
        marks[order[:k]] = True
    return mask


def _threshold(x: Any, k: int, strict: bool = False) -> Any:
    """Compare with the k-th magnitude."""
    size = np.abs(x)
    kth = np.sort(size, axis=-1)[..., -k][..., None]
    return size > kth if strict else size >= kth


def _whole(x: Any, k: int) -> Any:
    """Choose across all rows."""
    return _by_rank(x.reshape(1, -1), k * (x.size // x.shape[-1]), np.abs).reshape(x.shape)


def _flushed(x: Any) -> Any:
    """Magnitudes without subnormal numbers."""
    return np.where(np.abs(x) < 2.0**-126, 0, np.abs(x))


def _half(x: Any) -> Any:
    """Upper halves of the bits."""
    return np.abs(x).astype(np.float32).view(np.uint32) >> 16


def _quantised(x: Any, k: int, mask: Callable[..., Any], factor: float = 127) -> Any:
    """Quantise, and keep what a mask says."""
    absmax = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-5))
    scale = np.float32(1) / absmax * np.float32(factor)
    codes = np.rint(x * scale).astype(np.int8)
    return codes * mask(x, codes, k), scale


def _blocks(x: Any, n: int, m: int, mask: Callable[..., Any]) -> Any:
    """Apply a choice to blocks."""
    return mask(x.reshape(-1, m), n).reshape(x.shape)


def _interleaved(x: Any, n: int, m: int) -> Any:
    """Take every (width / m)-th entry for a block."""
    width = x.shape[-1] // m
    mask = RIGHT["topk_mask"](np.moveaxis(x.reshape(-1, m, width), 1, -1), n)[0]
    return np.moveaxis(mask, -1, 1).reshape(x.shape)


def _by_value(x: Any) -> Any:
    """Values with their signs."""
    return x


def _kept(x: Any, mask: Any) -> Any:
    """Multiply by a mask: -0 appears."""
    return x * mask


def _straight(x: Any, k: int) -> Any:
    """Let the tangent pass in any case."""
    value = getattr(x, "primal", x)
    return x - value + RIGHT["topk_sparsify"](value, k)[0]


def _law(N: Any, S: Any, power: Callable[..., float]) -> Any:
    """Return the law with another dependence on sparsity."""
    return 1.86 + power(S) / N**0.1


def _loss_of_N_and_S(N: Any, S: Any) -> Any:
    """Return a law whose N counts active weights."""
    return _law(N * (1 - S), S, lambda s: 0.01 + 1.89 * exp(0.05 / (1 - s)))


def _product(x: Any, matrix: Any, wrong: str) -> Any:
    """Multiply by the columns of what is not 0, wrong in the way that is named."""
    codes, out = matrix.codes().astype(np.int64), []
    for token in x.reshape(-1, x.shape[-1]).astype(np.int64):
        active = np.flatnonzero(token > 0 if wrong == "positive-ones-alone" else token)
        columns = np.arange(len(active)) if wrong == "columns-not-moved" else active
        values = token[active]
        if wrong == "negated-in-int8":
            columns, values = active, values.astype(np.int8)
            products = np.where(codes[:, active] < 0, -values, values) * (codes[:, active] != 0)
            out.append(products.astype(np.int64).sum(axis=1))
            continue
        z = codes[:, columns] @ values
        z = z.astype(np.int16) if wrong == "sums-in-int16" else z
        if wrong == "one-band":
            z = np.where(np.arange(len(z)) < 256, z, 0)
        out.append(z)
    if wrong == "columns-of-the-first-token":
        active = np.flatnonzero(x.reshape(-1, x.shape[-1])[0])
        rows = x.reshape(-1, x.shape[-1])[:, active].astype(np.int64)
        out = list(rows @ codes[:, active].T)
    return np.array(out, np.int32).reshape(*x.shape[:-1], -1)


def _floats(x: Any, matrix: Any, wrong: str) -> Any:
    """Quantise and multiply, wrong in the way that is named."""
    f = np.float32
    largest = np.abs(x).max(axis=None if wrong == "one-scale" else -1, keepdims=True)
    scale = f(1) / np.maximum(largest, f(1e-5)) * f(127)
    codes = np.trunc(x * scale) if wrong == "truncated" else np.rint(x * scale)
    z = (codes.astype(np.int64) @ matrix.codes().T.astype(np.int64)).astype(f)
    gamma = f(1) if wrong == "gamma-left-out" else matrix.scale
    return z * gamma / scale if wrong == "one-after-the-other" else z * (gamma / scale)


def _rescaled(x: Any, k: int, wrong: str, **options: Any) -> Any:
    """Keep the k largest of a row and divide by a length, wrong in the way that is named."""
    value = getattr(x, "primal", x)
    mask = RIGHT["topk_mask"](value, k)[0]
    kept = x - value + np.where(mask, value, 0)
    y = np.where(mask, value, 0)
    norms = {"length-of-all": value, "largest-for-length": y}.get(wrong, y)
    length = np.sqrt(np.sum(norms * norms, axis=-1, keepdims=True))
    if wrong == "largest-for-length":
        length = np.abs(y).max(axis=-1, keepdims=True)
    return kept if wrong == "not-rescaled" else kept / length  # a constant, which it is not


def _at_sites(
    sparsity: Any, x: Any, site: str, sites: Any = None, block: Any = None, wrong: str = ""
) -> Any:
    """Make the inputs of a site sparse, wrong in the way that is named."""
    shares = sparsity if isinstance(sparsity, dict) else {}
    listed = shares or sites or ("qkv", "o", "gate_up", "down")
    if site not in listed and wrong != "all-sites":
        return x
    share = shares.get(site, next(iter(shares.values()), sparsity))
    share = next(iter(shares.values()), share) if wrong == "first-share" else share
    width = block if block and wrong != "row-for-block" else x.shape[-1]
    share = 1 - share if wrong == "share-that-is-kept" else share
    (k,) = RIGHT["topk_count"](width, share)
    if block and wrong != "row-for-block":
        return RIGHT["block_topk_sparsify"](x, k, block)[0]
    return RIGHT["topk_sparsify"](x, k)[0]


def _fit(N: Any, S: Any, losses: Any, wrong: str) -> Any:
    """Fit the law, wrong in the way that is named."""
    from minibit import topk

    if wrong == "least-squares":
        return topk.fit_scaling_law(N, S, losses, delta=1e3).constants
    return topk.fit_scaling_law(N / (1 - S), S, losses).constants


def _interval(wrong: str) -> Callable[..., Any]:
    """Return bounds of the optimum that are wrong in the way that is named."""

    def interval(digits: int, alpha: float, beta: float, B: float, C: float) -> Any:
        """Move the constants by half a unit."""
        from minibit import topk

        half = (1.0 if wrong == "a-whole-unit" else 0.5) * 10.0**-digits
        ends = []
        for sign in (-1, 1):
            other = sign if wrong == "all-one-way" else -sign
            moved = (alpha + sign * half, beta + other * half)
            b, c = max(B + sign * half, 0.0), C + other * half
            b, c = (B, C) if wrong == "exponents-alone" else (b, c)
            ends.append(topk.optimal_sparsity(*moved, b, c))
        return tuple(ends[::-1] if wrong == "ends-exchanged" else ends)

    return interval


TOPK: dict[str, Callable[..., Any]] = {
    **{
        f"sparse_ternary_matmul_int8/{wrong}": partial(_product, wrong=wrong)
        for wrong in (
            *("positive-ones-alone", "columns-not-moved", "negated-in-int8", "sums-in-int16"),
            *("one-band", "columns-of-the-first-token"),
        )
    },
    **{
        f"sparse_ternary_matmul/{wrong}": partial(_floats, wrong=wrong)
        for wrong in ("one-scale", "truncated", "gamma-left-out", "one-after-the-other")
    },
    **{
        f"topk_sparsify/{wrong}": partial(_rescaled, wrong=wrong)
        for wrong in (
            "length-of-all",
            "largest-for-length",
            "not-rescaled",
            "length-is-constant",
            "no-least-length",
        )
    },
    **{
        f"sparsifier/{wrong}": partial(_at_sites, wrong=wrong)
        for wrong in ("all-sites", "first-share", "row-for-block", "share-that-is-kept")
    },
    **{
        f"fit_scaling_law/{wrong}": partial(_fit, wrong=wrong)
        for wrong in ("least-squares", "active-weights")
    },
    **{
        f"optimal_interval/{wrong}": _interval(wrong)
        for wrong in ("a-whole-unit", "all-one-way", "exponents-alone", "ends-exchanged")
    },
    "LawFit.interval/least-and-most": lambda self, name, share: (
        min(sample[name] for sample in self.samples),
        max(sample[name] for sample in self.samples),
    ),
    "LawFit.interval/share-beyond": lambda self, name, share: tuple(
        float(q) for q in np.quantile([s[name] for s in self.samples], [1 - share, share])
    ),
    "block_topk_sparsify/mask-in-the-slope": lambda x, n, m: (
        x * RIGHT["block_topk_mask"](getattr(x, "primal", x), n, m)[0]
    ),
    "block_topk_sparsify/straight-always": lambda x, n, m, straight: (
        x - getattr(x, "primal", x) + RIGHT["block_topk_sparsify"](getattr(x, "primal", x), n, m)[0]
    ),
    "block_topk_sparsify/highest-index": lambda x, n, m: np.where(
        _blocks(x, n, m, lambda rows, k: _by_rank(rows, k, np.abs, last=True)), x, np.float32(0)
    ),
    "block_topk_sparsify/length-of-a-block": lambda x, n, m, rescale: RIGHT["topk_sparsify"](
        x.reshape(-1, m), n, rescale
    )[0].reshape(x.shape),
    "block_topk_sparsify/not-rescaled": lambda x, n, m, rescale: RIGHT["block_topk_sparsify"](
        x, n, m
    )[0],
    "topk_mask/nothing-kept": lambda x, k: _by_rank(x, k, np.abs),
    "topk_mask/largest-values": lambda x, k: _by_rank(x, k, _by_value),
    "topk_mask/highest-index": lambda x, k: _by_rank(x, k, np.abs, last=True),
    "topk_mask/all-that-tie": lambda x, k: _threshold(x, k),
    "topk_mask/none-that-tie": lambda x, k: _threshold(x, k, strict=True),
    "topk_mask/across-rows": _whole,
    "topk_mask/upper-half-of-bits": lambda x, k: _by_rank(x, k, _half),
    "topk_mask/subnormals-flushed": lambda x, k: _by_rank(x, k, _flushed),
    "topk_mask/zero-not-kept": lambda x, k: RIGHT["topk_mask"](x, k)[0] & (x != 0),
    "topk_mask/sign-of-zero": lambda x, k: _by_rank(
        x, k, lambda x: np.abs(x) - 0.5e-45 * np.signbit(x)
    ),
    "topk_mask/nan-is-largest": lambda x, k: _by_rank(np.nan_to_num(x, nan=np.inf), k, np.abs),
    "block_topk_mask/across-blocks": lambda x, n, m: _by_rank(x, n * x.shape[-1] // m, np.abs),
    "block_topk_mask/blocks-interleaved": _interleaved,
    "block_topk_mask/highest-index": lambda x, n, m: _blocks(
        x, n, m, lambda rows, k: _by_rank(rows, k, np.abs, last=True)
    ),
    "block_topk_mask/all-that-tie": lambda x, n, m: _blocks(x, n, m, _threshold),
    "block_topk_mask/largest-values": lambda x, n, m: _blocks(
        x, n, m, lambda rows, k: _by_rank(rows, k, _by_value)
    ),
    "block_topk_mask/rest-dropped": lambda x, n, m: RIGHT["block_topk_mask"](
        x[..., : x.shape[-1] // m * m], n, m
    )[0],
    "topk_sparsify/sign-of-zero": lambda x, k: _kept(x, RIGHT["topk_mask"](x, k)[0]),
    "topk_sparsify/mask-in-the-slope": lambda x, k: (
        x * RIGHT["topk_mask"](getattr(x, "primal", x), k)[0]
    ),
    "topk_sparsify/straight-always": lambda x, k, straight: _straight(x, k),
    "block_topk_sparsify/across-blocks": lambda x, n, m: RIGHT["topk_sparsify"](
        x, n * x.shape[-1] // m
    )[0],
    "topk_sparsify/all-that-tie": lambda x, k: np.where(_threshold(x, k), x, np.float32(0)),
    "topk_quantize/largest-127-left-out": lambda x, k: _quantised(
        x, k, lambda x, codes, k: RIGHT["topk_mask"](x, k)[0], 1
    ),
    "topk_quantize/chosen-by-code": lambda x, k: _quantised(
        x, k, lambda x, codes, k: _by_rank(codes.astype(float), k, np.abs)
    ),
    "topk_count/in-floats": lambda n, sparsity: int((1 - float(sparsity)) * n),
    "topk_count/product-in-floats": lambda n, sparsity: int(float(1 - Fraction(sparsity)) * n),
    "topk_count/rounded": lambda n, sparsity: round((1 - float(sparsity)) * n),
    "topk_count/rounded-up": lambda n, sparsity: -int(-(1 - float(sparsity)) * n // 1),
    "topk_count/share-that-is-kept": lambda n, sparsity: int(float(sparsity) * n + 1e-9),
    "scaling_law/exponent-of-beta-s": lambda N, S: _law(
        N, S, lambda s: 0.01 + 1.89 * exp(0.05 * s)
    ),
    "scaling_law/active-ignored": lambda N, S, active: _law(
        N, S, lambda s: 0.01 + 1.89 * exp(0.05 / (1 - s))
    ),
    "scaling_law/active-times-kept": lambda N, S, active: _law(
        N * (1 - S), S, lambda s: 0.01 + 1.89 * exp(0.05 / (1 - s))
    ),
    "scaling_law/sign-of-beta": lambda N, S: _law(
        N, S, lambda s: 0.01 + 1.89 * exp(-0.05 / (1 - s))
    ),
    "scaling_law/active-weights": _loss_of_N_and_S,
    "optimal_sparsity/rounded-as-published": lambda alpha, beta, B, C: 0.4558,
    "optimal_sparsity/without-b": lambda alpha, beta, B, C: max(0.0, 1 - beta / alpha),
    "optimal_sparsity/negative": lambda alpha, beta, B, C: 1 - beta / alpha,
    "optimal_sparsity/c-alone": lambda alpha, beta, B, C: 1 - C * beta / alpha,
}
