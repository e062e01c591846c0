"""Linear layers of projections: float weights, fake-quantised ones, or packed ternary ones.

    float_linear    y = x w^T                        float activations; w float, or packed
    bit_linear      y = Q(x) Q_w(w)^T                training b1.58: derivatives straight through
    packed_linear   y = Q(x) codes^T gamma           inference: exact sums of integers

`minibit.transformer.forward` takes one of them, or any function of the same signature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.absmean import absmean_quantize, fake_quant_activation, fake_quant_weight
from minibit.base import widen
from minibit.layers import ternary_linear
from minibit.matmul import ternary_matmul
from minibit.ternary import TernaryMatrix
from minibit.transformer.config import Params

__all__ = ["Linear", "bit_linear", "float_linear", "pack_params", "packed_linear"]

Array = Any  # an ndarray, or a Dual, which behaves like one
Linear = Callable[[Any, Any], Any]


class ModelParams(dict[str, Any]):
    """The parameters of a model, which know what multiplies by their projections.

    Float weights alone do not say whether a model quantises them at each use; adapters ask.
    """

    def __init__(self, params: Params, linear: Linear) -> None:
        super().__init__(params)
        self.linear = linear


def float_linear(x: Array, w: Array) -> Array:
    """Multiply by weights as they are, with float activations: ``y = x w^T``.

    w (n_out, n_in) may be bits of bfloat16, uint16: they are widened to float32 at each use. A
    `TernaryMatrix` stands for ``scale * codes``: it takes x of float32, and no dual.

    Examples
    --------
    >>> float_linear(np.float32([[1, 2]]), np.uint16([[0x3F80, 0xBF80]]))  # 1, -1
    array([[-1.]], dtype=float32)
    """
    if isinstance(w, TernaryMatrix):
        return ternary_matmul(x, w, activations="float32")
    return ternary_linear(x, widen(w))


def bit_linear(x: Array, w: Array, strength: float = 1.0) -> Array:
    """Multiply as BitNet b1.58 trains: both sides fake-quantised, derivatives straight through.

    ``y = fake_quant_activation(x) fake_quant_weight(w)^T``: int8 a token, ternary a matrix. The
    latent weights w are (n_out, n_in), x is finite, and `strength` from 0 to 1 is the lambda of a
    warm-up (`minibit.absmean.fake_quant_weight`), on both sides.

    Examples
    --------
    >>> bit_linear(np.float32([[127, 64]]), np.float32([[1, -3]]))  # gamma is 2
    array([[-128.]], dtype=float32)
    """
    return ternary_linear(fake_quant_activation(x, strength), fake_quant_weight(w, strength))


def packed_linear(x: Array, w: TernaryMatrix, threads: int | None = None) -> NDArray[np.float32]:
    """Multiply x (..., n_in) by packed ternary weights w, with int8 activations: inference.

    The values of `bit_linear` but for the rounding of float32 sums: here they are exact. `threads`
    are at most so many, as for `minibit.matmul.ternary_matmul`.

    Examples
    --------
    >>> packed_linear(np.float32([[127, 64]]), TernaryMatrix.from_codes([[0, -1]], scale=2.0))
    array([[-128.]], dtype=float32)
    """
    return ternary_matmul(x, w, threads=threads)


def by_type(x: Array, w: Any, threads: int | None = None) -> Array:
    """Multiply as the type of the weights says: `packed_linear`, or `bit_linear` for floats."""
    return packed_linear(x, w, threads) if isinstance(w, TernaryMatrix) else bit_linear(x, w)


def pack_params(params: Params) -> dict[str, Any]:
    """Quantise and pack the projections of trained parameters; the rest stays as it is.

    Float projections ``*_proj`` of `params` become `TernaryMatrix`, by `absmean_quantize`.

    Examples
    --------
    >>> packed = pack_params({"layers.0.mlp.up_proj": np.float32([[1, -3]]), "norm": np.ones(2)})
    >>> packed["layers.0.mlp.up_proj"].codes()
    array([[ 0, -1]], dtype=int8)
    """
    packed = dict(params)
    for name, w in params.items():
        if name.endswith("_proj") and not isinstance(w, TernaryMatrix):
            codes, gamma = absmean_quantize(w)
            packed[name] = TernaryMatrix.from_codes(codes, gamma)
    return packed
