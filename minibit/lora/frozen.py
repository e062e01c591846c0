"""A frozen matrix in four bits, or ternary, as part of a function that is differentiated.

    y = x W^T,    y_dot = x_dot W^T,    c_x = c_y W             no tangent of W: it does not move

A float matrix would be held by the program of reverse mode from the forward pass to the way back,
all layers at once; and four bits would have bought nothing. Here the program holds the packed
codes, and the floats exist while they are multiplied: once on the way there, once on the way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from minibit.dual import Dual, custom_jvp
from minibit.layers import ternary_linear
from minibit.matmul import ternary_matmul
from minibit.nf4 import NF4Tensor, nf4_matmul
from minibit.ternary import TernaryMatrix
from minibit.transformer import Linear

__all__ = ["Dequantized", "Frozen", "floats_of", "frozen_linear", "plain_linear"]

Array = Any  # an ndarray, or a Dual, which behaves like one
Activations = Literal["int8", "float32"]


class Dequantized:
    """The transpose of a packed matrix, which NumPy dequantises whenever it uses it, and drops.

    To NumPy and to the recorders of reverse mode it is an array of two axes. It holds nothing but
    the tensor, (n_out, n_in), and whether it is `turned` to (n_in, n_out).

    Examples
    --------
    >>> from minibit.nf4 import quantize_nf4
    >>> lazy = Dequantized(quantize_nf4(np.float32([[2, 0], [-2, 2]])))
    >>> np.float32([[3, 5]]) @ lazy
    array([[6., 4.]], dtype=float32)
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(self, tensor: NF4Tensor | TernaryMatrix, turned: bool = True) -> None:
        self.tensor, self.turned = tensor, turned
        self.shape = tensor.shape[::-1] if turned else tensor.shape

    def transpose(self, axes: None = None) -> Dequantized:
        """Exchange the axes: what ``np.transpose`` calls."""
        return Dequantized(self.tensor, not self.turned)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the floats."""
        w = floats_of(self.tensor).astype(np.float32 if dtype is None else dtype, copy=False)
        return w.T if self.turned else w  # (n_out, n_in)


def floats_of(w: Any) -> NDArray[Any]:
    """Return the numbers that a frozen matrix stands for, (n_out, n_in)."""
    if isinstance(w, TernaryMatrix):
        return w.rows()
    return w.dequantize() if isinstance(w, NF4Tensor) else np.asarray(w)


@custom_jvp
def _product(
    x: Array, *, tensor: NF4Tensor | TernaryMatrix, activations: Activations = "int8"
) -> Array:
    """Multiply by a packed matrix."""
    if isinstance(tensor, NF4Tensor):
        return nf4_matmul(x, tensor)
    return ternary_matmul(x, tensor, activations=activations)


@_product.defjvp
def _product_rule(
    primals: tuple[Array, ...],
    tangents: tuple[Array, ...],
    *,
    tensor: NF4Tensor | TernaryMatrix,
    activations: Activations = "int8",
) -> tuple[Array, Array]:
    (x,), (x_dot,) = primals, tangents
    y = _product(x, tensor=tensor, activations=activations)
    return y, x_dot @ Dequantized(tensor)  # (rows, n_out)


def frozen_linear(x: Array, w: Any) -> Array:
    """Multiply by weights that do not move, float, NF4 or ternary: ``y = x w^T``.

    x, (..., n_in), may be a dual with tangents of any kind; for a packed w, (n_out, n_in), it is
    float32. A `TernaryMatrix` quantises x to int8 (`minibit.matmul.ternary_matmul`); the derivative
    goes straight through that. Shapes that do not fit are a TypeError or ValueError.

    Examples
    --------
    >>> from minibit.nf4 import quantize_nf4
    >>> w = np.float32([[2, 0], [-2, 2]])
    >>> frozen_linear(np.float32([[3, 5]]), w), frozen_linear(np.float32([[3, 5]]), quantize_nf4(w))
    (array([[6., 4.]], dtype=float32), array([[6., 4.]], dtype=float32))
    """
    return _multiply(x, w, "int8")


def plain_linear(x: Array, w: Any) -> Array:
    """Multiply as `frozen_linear` does, but by a `TernaryMatrix` without quantising x.

    So that a model of `minibit.transformer.float_linear` keeps the floats between its layers.

    Examples
    --------
    >>> w = TernaryMatrix.from_codes([[1, -1]], scale=0.5)
    >>> plain_linear(np.float32([[3, 5]]), w)
    array([[-1.]], dtype=float32)
    """
    return _multiply(x, w, "float32")


def _multiply(x: Array, w: Any, activations: Activations) -> Array:
    """Multiply, if there is a packed matrix with activations of a kind."""
    if not isinstance(w, NF4Tensor | TernaryMatrix):
        return ternary_linear(x, w)
    if isinstance(x, Dual) and x.ndim == 1:  # a tangent takes matrices
        return _product(x.reshape(1, -1), tensor=w, activations=activations).reshape(-1)
    return _product(x, tensor=w, activations=activations)


@dataclass(frozen=True, eq=False)
class Frozen:
    """A matrix without an adapter, in a model that quantises it at each use."""

    base: Array
    linear: Linear

    def __call__(self, x: Array) -> Array:
        """Multiply as the model does."""
        return self.linear(x, self.base)

    def __getattr__(self, name: str) -> Any:
        """Shape, type and bytes are those of the matrix."""
        return getattr(self.base, name)
