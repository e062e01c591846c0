"""The k largest, of equal ones those of lowest index: one rule wherever something is chosen."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def largest(scores: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Mark the `count` largest entries along the last axis.

    An entry is marked if fewer than `count` entries are larger, or equal and of lower index.

    Parameters
    ----------
    scores : array, shape (..., n)
        No NaN: the caller refuses it, or says what it is worth.
    count : int
        From 0 to n.

    Returns
    -------
    bool array, shape (..., n)
        Exactly `count` are true in every row.

    Examples
    --------
    >>> largest(np.array([1, 3, 2, 3, 3]), 2)
    array([False,  True, False,  True, False])
    """
    if count == 0:
        return np.zeros(scores.shape, np.bool_)
    at = scores.shape[-1] - count
    bar = np.partition(scores, at, axis=-1)[..., at : at + 1]  # (..., 1), the smallest that is kept
    mask: NDArray[np.bool_] = scores >= bar
    if np.count_nonzero(mask) > count * (scores.size // scores.shape[-1]):  # ties at the bar
        above, ties = scores > bar, scores == bar
        places = count - np.count_nonzero(above, axis=-1, keepdims=True)  # (..., 1), left for ties
        mask = above | (ties & (np.cumsum(ties, axis=-1) <= places))
    return mask
