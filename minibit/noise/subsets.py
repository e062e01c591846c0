"""Draws of candidates: distinct units of a layer, and distinct inputs of a unit.

Floyd's algorithm takes ``count`` draws for ``count`` of n numbers, whatever n is, and gives every
subset the same chance:

    for j = n - count, ..., n - 1:   t = floor(u (j + 1) / 2**64);   take t, or j if t is taken
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer
from minibit.kernels import compiled
from minibit.noise.philox import INPUTS, UNITS, Index, words_reference

__all__ = ["draw_inputs", "draw_units", "subset_reference"]


def draw_units(
    seed: Index, step: Index, layer: Index, n_out: Index, count: Index
) -> NDArray[np.int64]:
    """Draw `count` distinct units of a layer, every subset equally likely (Floyd's algorithm).

    For ``i = 0, ..., count - 1``: with ``j = n_out - count + i`` and the 64-bit draw
    ``u = 2**32 w[2i] + w[2i+1]`` of the stream of domain `UNITS` (3), lane `layer`, let
    ``t = floor(u (j + 1) / 2**64)``; take t, or j if t is taken. Then sort.

    Parameters
    ----------
    seed, step, layer : int
        Below ``2**64``, ``2**32``, ``2**32``.
    n_out, count : int
        ``0 <= count <= n_out <= 2**24``. All units if ``count == n_out``, and none for 0.

    Returns
    -------
    int64 array, shape (count,), increasing

    Raises
    ------
    TypeError, ValueError
        If an argument is no integer or out of range.

    Examples
    --------
    >>> draw_units(seed=0, step=0, layer=0, n_out=256, count=4)
    array([ 14,  17, 149, 179])
    """
    lane = integer("layer", layer, 0, 2**32 - 1)
    return _subset(seed, UNITS, step, lane, integer("n_out", n_out, 0, 2**24), count)


def draw_inputs(
    seed: Index, step: Index, layer: Index, unit: Index, n_in: Index, count: Index
) -> NDArray[np.int64]:
    """Draw `count` distinct inputs of a unit, as `draw_units` draws units.

    The stream has domain `INPUTS` (4) and lane ``2**20 layer + unit``.

    Parameters
    ----------
    seed, step, layer, unit : int
        Below ``2**64``, ``2**32``, ``2**12``, ``2**20``.
    n_in, count : int
        ``0 <= count <= n_in <= 2**24``. All inputs if ``count == n_in``, and none for 0.

    Returns
    -------
    int64 array, shape (count,), increasing

    Raises
    ------
    TypeError, ValueError
        If an argument is no integer or out of range.

    Examples
    --------
    >>> draw_inputs(seed=0, step=0, layer=0, unit=14, n_in=784, count=3)
    array([268, 442, 514])
    >>> draw_inputs(0, 0, 0, 14, n_in=3, count=3)
    array([0, 1, 2])
    """
    lane = (integer("layer", layer, 0, 2**12 - 1) << 20) + integer("unit", unit, 0, 2**20 - 1)
    return _subset(seed, INPUTS, step, lane, integer("n_in", n_in, 0, 2**24), count)


def subset_reference(
    seed: int, domain: int, step: int, lane: int, n: int, count: int
) -> NDArray[np.int64]:
    """Floyd's algorithm (`draw_units`) in plain Python: `count` distinct numbers below n."""
    drawn = words_reference(seed, domain, step, 2 * count, lane, 0).reshape(-1, 2).tolist()
    taken: set[int] = set()
    for j, (high, low) in enumerate(drawn, start=n - count):
        t = ((high << 32 | low) * (j + 1)) >> 64
        taken.add(j if t in taken else t)
    return np.array(sorted(taken), np.int64)


def _subset(
    seed: Index, domain: int, step: Index, lane: int, n: int, count: Index
) -> NDArray[np.int64]:
    seed, step = integer("seed", seed, 0, 2**64 - 1), integer("step", step, 0, 2**32 - 1)
    count = integer("count", count, 0, n)
    if count == n:
        return np.arange(n)  # what Floyd's algorithm gives, too
    if not compiled():
        return subset_reference(seed, domain, step, lane, n, count)
    from minibit.kernels import noise as kernel

    drawn: NDArray[np.int64] = kernel.subset(np.uint64(seed), domain, step, lane, n, count)
    return drawn
