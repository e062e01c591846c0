"""The quantisers of BitNet b1.58: absmean for weights, absmax for activations.

    gamma = max(mean|w|, 1e-5)           codes = clip(rint(w / gamma), -1, 1)     w ~ gamma codes
    scale = 127 / max(max|x|, 1e-5)      codes = rint(x scale)                    x ~ codes / scale
    beta = mean|w|                       codes = sign(w - mean w)                 w ~ beta codes

The last line is BitNet b1, with binary weights.

Weights have a gamma per matrix, activations a scale per token (the last axis). Both are computed in
float32 in the order of the published code (huggingface/transformers, ``integrations/bitnet.py``):
the reciprocal first, then the product; ``127 / m`` would often differ in the last bit. The paper
(arXiv 2402.17764, eq. 1-3) adds a small epsilon to gamma where the code takes a maximum; we follow
the code. Rounding is half to even everywhere: ``rint``, not C's ``round``.

A network is trained through the fake-quantised forms: the forward pass sees the quantised values
as floats, and the derivative is that of the identity (straight-through), in either mode.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.base import finite, float32, floats, not_finite, number, plain
from minibit.dual import Dual, straight_through

__all__ = [
    "absmax_quantize",
    "absmax_quantize_reference",
    "absmean_quantize",
    "absmean_quantize_reference",
    "binary_quantize",
    "fake_quant_activation",
    "fake_quant_weight",
]

SMALLEST = np.float32(1e-5)  # gamma and absmax are at least this


def absmean_quantize_reference(w: ArrayLike) -> tuple[NDArray[np.int8], np.float32]:
    """Quantise weights w as `absmean_quantize` does, in three lines of NumPy.

    Examples
    --------
    >>> absmean_quantize_reference(np.float32([[1, -3, 0.5, 0]]))[0]
    array([[ 1, -1,  0,  0]], dtype=int8)
    """
    w = float32("w", w, filled=True)
    finite("w", w)
    gamma = max(np.float32(np.abs(w).mean(dtype=np.float64)), SMALLEST)
    with np.errstate(over="ignore"):  # an infinite ratio is cut to 1
        ratio = w * (np.float32(1) / gamma)
    return np.clip(np.rint(ratio), -1, 1).astype(np.int8), gamma


def absmean_quantize(w: ArrayLike) -> tuple[NDArray[np.int8], np.float32]:
    """Quantise weights to ternary codes and one scale, the mean absolute weight.

    ``gamma = max(mean|w|, 1e-5)``, ``codes = clip(rint(w (1 / gamma)), -1, 1)``.

    Parameters
    ----------
    w : float array of any shape, usually (n_out, n_in)
        Cast to float32. Not empty, all finite.

    Returns
    -------
    codes : int8 array, shape of w
        -1, 0 or 1. The product ``w (1 / gamma)``, rounded to float32, decides: of exactly one half
        it makes 0 (half to even), and that may be a weight one bit above gamma / 2.
    gamma : float32
        ``gamma * codes`` approximates w; 1e-5 for a matrix of zeros. The mean is summed in float64
        and rounded once.

    Raises
    ------
    TypeError, ValueError
        If `w` does not hold floats, or is empty, or an entry is NaN or infinite as float32; the
        first is named.

    Notes
    -----
    BitNet b1.58 (arXiv 2402.17764), eq. 1-3, in the order of its published code.

    Examples
    --------
    >>> codes, gamma = absmean_quantize(np.float32([[1, -3, 0.5, 0]]))
    >>> codes
    array([[ 1, -1,  0,  0]], dtype=int8)
    >>> float(gamma)
    1.125
    """
    from minibit import kernels

    if not kernels.compiled():
        return absmean_quantize_reference(w)
    from minibit.kernels.quantise import absmean

    w = float32("w", w, filled=True)
    codes = np.empty(w.shape, np.int8)
    gamma = absmean(plain(w).reshape(-1), codes.reshape(-1))
    if gamma < 0:
        raise not_finite("w", w)
    return codes, np.float32(gamma)


def absmax_quantize_reference(x: ArrayLike) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise activations x as `absmax_quantize` does, in three lines of NumPy.

    Examples
    --------
    >>> absmax_quantize_reference(np.float32([[0.5, -1, 0.25]]))[0]
    array([[  64, -127,   32]], dtype=int8)
    """
    x = float32("x", x, axis=True)
    finite("x", x)
    absmax = np.abs(x).max(axis=-1, keepdims=True, initial=SMALLEST)  # (..., 1)
    scale = np.float32(1) / absmax * np.float32(127)
    return np.rint(x * scale).astype(np.int8), scale


def absmax_quantize(x: ArrayLike) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise activations to int8 codes and one scale per token.

    ``scale = (1 / max(max|x|, 1e-5)) * 127`` over the last axis, ``codes = rint(x scale)``.

    Parameters
    ----------
    x : float array, shape (..., n)
        Cast to float32; all finite.

    Returns
    -------
    codes : int8 array, shape (..., n)
        -127..127: the published code cuts at -128, which cannot occur. Half to even.
    scale : float32 array, shape (..., 1)
        ``codes / scale`` approximates x: published as a factor, so that a product divides by it. A
        token of zeros has codes 0 and scale 127 / 1e-5.

    Raises
    ------
    TypeError, ValueError
        If `x` does not hold floats, or has no axis, or an entry is NaN or infinite as float32; the
        first is named.

    Notes
    -----
    BitNet b1.58 (arXiv 2402.17764), section 2, in the order of its published code. Below an absmax
    of 1e-5 the codes no longer fill the range: such tokens are treated as near to zero.

    Examples
    --------
    >>> codes, scale = absmax_quantize(np.float32([[0.5, -1, 0.25]]))
    >>> codes
    array([[  64, -127,   32]], dtype=int8)
    >>> scale
    array([[127.]], dtype=float32)
    """
    from minibit import kernels

    if not kernels.compiled():
        return absmax_quantize_reference(x)
    from minibit.kernels.quantise import absmax

    x = float32("x", x, axis=True)
    codes = np.empty(x.shape, np.int8)
    scale = np.empty((*x.shape[:-1], 1), np.float32)
    tokens, n = scale.size, x.shape[-1]
    if not absmax(plain(x).reshape(tokens, n), codes.reshape(tokens, n), scale.reshape(tokens)):
        raise not_finite("x", x)
    return codes, scale


def binary_quantize(w: ArrayLike) -> tuple[NDArray[np.int8], np.float32]:
    """Quantise weights to signs and one scale: BitNet b1, with one bit per weight.

    ``codes = sign(w - mean w)``, ``beta = mean|w|``, for what `absmean_quantize` takes.

    Returns
    -------
    codes : int8 array, shape of w
        -1 or 1; -1 at the mean itself, so a constant matrix has codes -1. The paper says so;
        published code takes torch's sign, which is 0 there and so no binary code.
    beta : float32
        ``beta * codes`` approximates w; 0 for a matrix of zeros: nothing divides by it. Both means
        are summed in float64 and rounded once.

    Notes
    -----
    BitNet (arXiv 2310.11453), eq. 1-3. There is no kernel: it is here to be compared with.

    Examples
    --------
    >>> codes, beta = binary_quantize(np.float32([[1, 2, 6, 3]]))
    >>> codes
    array([[-1, -1,  1, -1]], dtype=int8)
    >>> float(beta)
    3.0
    """
    w = float32("w", w, filled=True)
    finite("w", w)
    mean, beta = (np.float32(v.mean(dtype=np.float64)) for v in (w, np.abs(w)))
    return np.where(w > mean, 1, -1).astype(np.int8), beta  # w - mean > 0, without overflow


def fake_quant_weight(w: Any, strength: float = 1.0) -> Any:
    """Quantise weights and return floats, with the derivative of the identity.

    ``y = w + strength (gamma codes - w)``, ``y_dot = w_dot``, by `absmean_quantize`.

    Parameters
    ----------
    w : float array or Dual of any shape, usually (n_out, n_in)
        Not empty, all finite. Quantised in float32, whatever its dtype, which is the result's.
    strength : float, 0 to 1
        The lambda of a warm-up: at 0 the weights as they are, at 1 ``gamma codes`` exactly. The
        published fine-tuning recipe raises it as ``min(step / 1000, 1)``. A constant: a TypeError
        if it carries a tangent.

    Notes
    -----
    The values of the published code, bit for bit given the same gamma, but that all zeros are +0:
    it divides the codes by ``1 / gamma``, rounded, which for a sixth of all gammas differs from
    ``gamma codes`` in the last bit. The derivative is none of the forward function's, which is a
    step function with slope 0: it is the straight-through estimator (`minibit.dual`).

    Examples
    --------
    >>> fake_quant_weight(np.float32([[1, -3, 0.5, 0]]), strength=0.5)
    array([[ 1.0625, -2.0625,  0.25  ,  0.    ]], dtype=float32)
    """
    w = w if isinstance(w, Dual) else floats("w", w)
    return _fake_weight(w, number("strength", strength, "[0, 1]"))


@straight_through
def _fake_weight(w: NDArray[Any], strength: float) -> NDArray[Any]:
    codes, gamma = absmean_quantize(w)
    value = np.float32(1) / (np.float32(1) / gamma)  # of the code 1, as published
    return _warmed_up(w, codes * value, strength)


def fake_quant_activation(x: Any, strength: float = 1.0) -> Any:
    """Quantise activations and return floats, with the derivative of the identity.

    ``y = x + strength (codes / scale - x)``, ``y_dot = x_dot``, by `absmax_quantize`, for x
    (..., n); `strength` and dtypes are as in `fake_quant_weight`. At strength 1 y is no further
    than ``absmax / 254`` from x, but for rounding: the values of the published code, bit for bit,
    but that all zeros are +0.

    Examples
    --------
    >>> fake_quant_activation(np.float32([[0.5, -1.0, 0.25]])) * 127
    array([[  64., -127.,   32.]], dtype=float32)
    """
    x = x if isinstance(x, Dual) else floats("x", x)
    return _fake_activation(x, number("strength", strength, "[0, 1]"))


@straight_through
def _fake_activation(x: NDArray[Any], strength: float) -> NDArray[Any]:
    codes, scale = absmax_quantize(x)
    return _warmed_up(x, codes / scale, strength)


def _warmed_up(x: NDArray[Any], quantised: NDArray[Any], strength: float) -> NDArray[Any]:
    """Go a share of the way to the quantised values; at 1 they are returned, not recomputed."""
    quantised = quantised.astype(x.dtype, copy=False)
    return quantised if strength == 1 else x + strength * (quantised - x)
