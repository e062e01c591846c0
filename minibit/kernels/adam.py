"""Adam's step in one pass: each array is read and written once, where NumPy goes over it ten times.

The operations and their order are those of `minibit.tape.adam.adam_step_reference`, each rounded
to the type of the parameters; nothing is fused. So the results have the same bits. Divisions by
zero are those of NumPy, too: to look for them one by one would keep the loop from filling vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minibit.kernels.compiling import njit


@njit(cache=True, nogil=True, error_model="numpy")
def adam_step(p: Any, g: Any, m: Any, v: Any, out: Any, constants: Any) -> None:
    """See `minibit.tape.adam.adam_step_reference`."""
    keep1, take1, keep2, take2 = constants[0], constants[1], constants[2], constants[3]
    shrink, rate, root, eps = constants[4], constants[5], constants[6], constants[7]
    for i in range(p.size):
        mean = keep1 * m[i] + take1 * g[i]
        square = keep2 * v[i] + take2 * (g[i] * g[i])
        m[i] = mean
        v[i] = square
        out[i] = shrink * p[i] - rate * (mean / (np.sqrt(square) / root + eps))
