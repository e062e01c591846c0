"""The sums of a linear layer of a Hugging Face checkpoint, rounding by rounding.

With z the exact product of integer codes, s = 127 / max|x| the scale of a token and w the
``weight_scale`` of the file:

    bitlinear               y = z / (w s)                     w = 1 / gamma
    autobitlinear offline   y = (sum_i (q_i / s) t_i) w       w = gamma
    autobitlinear online    y = sum_i (q_i / s) (t_i / u)     u = 1 / gamma, computed at each use

On paper all three are ``gamma z / s``, as `minibit.matmul.ternary_matmul` has it. In float32 the
first is decided to the bit, because z is exact; the others sum rounded numbers, so the order of the
sum shows in the last bits, unless s is a power of two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibit.absmean import absmax_quantize
from minibit.checkpoint.hf.config import Storage

__all__ = ["gamma_of", "published_linear", "weight_scale_of"]


def published_linear(
    x: ArrayLike, codes: NDArray[np.int8], gamma: float | np.float32, storage: Storage
) -> NDArray[np.float32]:
    """Multiply as transformers does, in its order of operations.

    ``x`` is (..., n_in), `codes` (n_out, n_in), the product (..., n_out); the weights are ``gamma *
    codes``. Without a linear class it is a float product. Errors are those of `absmax_quantize`.

    Source: transformers, ``integrations/bitnet.py``: ``BitLinear``, ``AutoBitLinear``.

    Examples
    --------
    >>> published_linear(np.float32([127, 64]), np.int8([[0, -1]]), 2.0, Storage("bitlinear"))
    array([-128.], dtype=float32)
    """
    one, gamma = np.float32(1), np.float32(gamma)
    t = codes.astype(np.float32)  # (n_out, n_in)
    y: NDArray[np.float32]
    if storage.linear_class is None:
        y = np.asarray(x, np.float32) @ (gamma * t).T
        return y
    q, s = absmax_quantize(x)  # (..., n_in), (..., 1)
    if storage.linear_class == "bitlinear":
        z = (q.astype(np.float64) @ codes.T.astype(np.float64)).astype(np.float32)  # (..., n_out)
        y = z / (weight_scale_of(gamma, storage) * s)
    elif storage.mode == "offline":
        y = np.multiply((q.astype(np.float32) / s) @ t.T, gamma)
    else:
        y = (q.astype(np.float32) / s) @ (t / (one / gamma)).T
    return y


def gamma_of(weight_scale: np.float32, storage: Storage) -> np.float32:
    """Return what the codes of a file are to be multiplied by."""
    if storage.linear_class != "bitlinear":
        return weight_scale
    with np.errstate(divide="ignore", over="ignore"):  # infinite for a subnormal one
        return np.float32(1) / weight_scale


def weight_scale_of(gamma: np.float32, storage: Storage) -> np.float32:
    """Return the ``weight_scale`` that a file holds for a gamma above 0.

    For ``bitlinear``, of the three numbers nearest to ``1 / gamma`` one whose own reciprocal is
    gamma, and of these the one with most zeros at its end: the bfloat16 scale of a published file.
    One gamma in six is the reciprocal of no float32; the nearest number's is one unit away.

    Examples
    --------
    >>> published = np.float32(1.6015625)  # of 8 significant bits
    >>> storage = Storage("bitlinear")
    >>> float(weight_scale_of(gamma_of(published, storage), storage))
    1.6015625
    """
    if storage.linear_class != "bitlinear":
        return gamma
    one = np.float32(1)
    nearest = one / gamma
    near = (nearest, np.nextafter(nearest, one * 0), np.nextafter(nearest, one * np.inf))

    def rank(scale: np.float32) -> tuple[bool, int]:
        bits = int(scale.view(np.uint32))
        exact = bool(one / scale == gamma)
        return exact, bits & -bits if exact else int(scale == nearest)

    return max(near, key=rank)
