"""The ternary product: activations times a ternary matrix.

    y = scale * x codes^T

May import: numpy, minibit.ternary, minibit.kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.ternary import TernaryMatrix

__all__ = ["ternary_matmul_reference"]


def ternary_matmul_reference(x: NDArray[Any], matrix: TernaryMatrix) -> NDArray[np.float32]:
    """Multiply activations by a ternary matrix, in float32 and three lines of NumPy.

    ``y = scale * (x codes^T)``. The scale comes last, so that integer activations give exact sums
    (below 2**24) before it rounds them.

    Parameters
    ----------
    x : array, shape (batch, n_in)
        Activations; cast to float32.
    matrix : TernaryMatrix, shape (n_out, n_in)

    Returns
    -------
    float32 array, shape (batch, n_out)

    Raises
    ------
    ValueError
        If the number of inputs differs (NumPy's own message).

    Examples
    --------
    >>> matrix = TernaryMatrix.from_codes([[1, 0, -1], [1, 1, 1]], scale=0.5)
    >>> ternary_matmul_reference(np.float32([[2, 3, 5]]), matrix)
    array([[-1.5,  5. ]], dtype=float32)
    """
    w = matrix.codes().astype(np.float32)  # (n_out, n_in)
    y: NDArray[np.float32] = x.astype(np.float32) @ w.T  # (batch, n_out)
    return matrix.scale * y
