"""The quantisers of BitNet b1.58: absmean for weights, absmax for activations.

    gamma = max(mean|w|, 1e-5)           codes = clip(rint(w / gamma), -1, 1)     w ~ gamma codes
    scale = 127 / max(max|x|, 1e-5)      codes = rint(x scale)                    x ~ codes / scale

Weights have one gamma a matrix, activations one scale a token (the last axis). Both are computed in
float32 in the order of the published code (huggingface/transformers, ``integrations/bitnet.py``):
the reciprocal first, then the product; ``127 / m`` would often differ in the last bit. The paper
(arXiv 2402.17764, eq. 1-3) adds a small epsilon to gamma where the code takes a maximum; we follow
the code. Rounding is half to even everywhere: ``rint``, not C's ``round``.

May import: numpy, minibit.kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "absmax_quantize",
    "absmax_quantize_reference",
    "absmean_quantize",
    "absmean_quantize_reference",
]

SMALLEST = np.float32(1e-5)  # gamma and absmax are at least this


def absmean_quantize_reference(w: ArrayLike) -> tuple[NDArray[np.int8], np.float32]:
    """Quantise weights as `absmean_quantize` does, in three lines of NumPy.

    Parameters
    ----------
    w : float array of any shape

    Returns
    -------
    codes : int8 array, shape of w
    gamma : float32

    Examples
    --------
    >>> absmean_quantize_reference(np.float32([[1, -3, 0.5, 0]]))[0]
    array([[ 1, -1,  0,  0]], dtype=int8)
    """
    w = _checked_weights(w)
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
        -1, 0 or 1. Exactly half a gamma rounds to 0 (half to even), so `|w| > gamma / 2` decides.
    gamma : float32
        ``gamma * codes`` approximates w; 1e-5 for a matrix of zeros. The mean is summed in float64
        and rounded once.

    Raises
    ------
    TypeError
        If `w` does not hold floats.
    ValueError
        If `w` is empty, or an entry is NaN or infinite as float32; the first is named.

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

    w = _float_array(w, "w")
    if not w.size:
        raise _empty(w)
    codes = np.empty(w.shape, np.int8)
    gamma = absmean(_plain(w).reshape(-1), codes.reshape(-1))
    if gamma < 0:
        raise _not_finite(w, "w")
    return codes, np.float32(gamma)


def absmax_quantize_reference(x: ArrayLike) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise activations as `absmax_quantize` does, in three lines of NumPy.

    Parameters
    ----------
    x : float array, shape (..., n)

    Returns
    -------
    codes : int8 array, shape (..., n)
    scale : float32 array, shape (..., 1)

    Examples
    --------
    >>> absmax_quantize_reference(np.float32([[0.5, -1, 0.25]]))[0]
    array([[  64, -127,   32]], dtype=int8)
    """
    x = _checked_activations(x)
    if not np.isfinite(x).all():
        raise _not_finite(x, "x")
    absmax = np.abs(x).max(axis=-1, keepdims=True, initial=SMALLEST)  # (..., 1)
    scale = np.float32(1) / absmax * np.float32(127)
    return np.rint(x * scale).astype(np.int8), scale


def absmax_quantize(x: ArrayLike) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise activations to int8 codes and one scale a token.

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
    TypeError
        If `x` does not hold floats.
    ValueError
        If an entry is NaN or infinite as float32 (the first is named), or `x` has no axis.

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

    x = _checked_activations(x)
    codes = np.empty(x.shape, np.int8)
    scale = np.empty((*x.shape[:-1], 1), np.float32)
    tokens, n = scale.size, x.shape[-1]
    if not absmax(_plain(x).reshape(tokens, n), codes.reshape(tokens, n), scale.reshape(tokens)):
        raise _not_finite(x, "x")
    return codes, scale


def _float_array(values: ArrayLike, name: str) -> NDArray[np.float32]:
    """Return values as float32, refusing what does not hold floats."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be an array of floats, got {array.dtype}")
    with np.errstate(over="ignore"):  # what overflows is refused as infinite
        return array.astype(np.float32, copy=False)


def _checked_weights(w: ArrayLike) -> NDArray[np.float32]:
    """Return weights as a finite, non-empty float32 array."""
    array = _float_array(w, "w")
    if not array.size:
        raise _empty(array)
    if not np.isfinite(array).all():
        raise _not_finite(array, "w")
    return array


def _checked_activations(x: ArrayLike) -> NDArray[np.float32]:
    """Return activations as a float32 array with a last axis."""
    array = _float_array(x, "x")
    if not array.ndim:
        raise ValueError("x must have at least one axis, got a single number")
    return array


def _plain(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the one kind of array that kernels are compiled for."""
    return array if array.flags.carray else np.array(array, order="C")


def _empty(w: NDArray[Any]) -> ValueError:
    """Say that there is nothing to take a mean of."""
    return ValueError(f"w must not be empty, got shape {w.shape}")


def _not_finite(array: NDArray[np.float32], name: str) -> ValueError:
    """Name the first entry that is NaN or infinite."""
    first = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    return ValueError(f"{name} must be finite, got {array[first]} at {first}")
