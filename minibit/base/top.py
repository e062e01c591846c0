"""The k largest, of equal ones those of lowest index: one rule wherever something is chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def largest(scores: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Mark the `count` (0 to n) largest entries of each row of scores (..., n), none of them NaN.

    An entry is marked if fewer than `count` entries are larger, or equal and of lower index. So
    exactly `count` are true in every row of the mask (..., n).

    Examples
    --------
    >>> largest(np.array([1, 3, 2, 3, 3]), 2)
    array([False,  True, False,  True, False])
    """
    if count == 0:
        return np.zeros(scores.shape, np.bool_)
    at = scores.shape[-1] - count
    least = np.partition(scores, at, axis=-1)[..., at : at + 1]  # (..., 1), of those that are kept
    mask: NDArray[np.bool_] = scores >= least
    if np.count_nonzero(mask) > count * (scores.size // scores.shape[-1]):  # ties with the least
        above, ties = scores > least, scores == least
        places = count - np.count_nonzero(above, axis=-1, keepdims=True)  # (..., 1), left for ties
        mask = above | (ties & (np.cumsum(ties, axis=-1) <= places))
    return mask
