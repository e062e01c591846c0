"""Is NF4 optimal? The codebook of 16 numbers that loses least, by Lloyd's iteration.

Blocks of normal weights are divided by their largest magnitude ``m``. What is left, ``x = w / m``,
is a normal number cut at -1 and 1, of a width that depends on m; a block of n has density

    f(m) = n F(m)**(n - 1) 2 phi(m),   F(m) = 2 Phi(m) - 1        of its largest magnitude
    p(x) = integral of f(m) m**2  m phi(m x) / F(m)  dm           of the others, |x| < 1

where the ``m**2`` weighs errors by what they come to in w. Lloyd's iteration moves each number to
the mean of p over the values that are nearest to it, until none moves. Three numbers stay: -1 and
1, to which the largest weight goes without error, and 0, so that zeros stay zeros.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer
from minibit.nf4.codebooks import NF4_CODE

__all__ = ["optimal_codebook"]

POINTS = 8192  # of the density on [0, 1]
WIDTHS = 2000  # of the integral over m
STILL = 1e-9  # a step that moves no number further ends the iteration


def optimal_codebook(block: int = 64) -> NDArray[np.float32]:
    """Return the codebook of 4 bits with the least squared error on normal weights in blocks.

    Minimises ``E[(w - m c(w / m))**2]`` for independent normal weights w, blocks of `block` with
    largest magnitude m, and c the nearest entry, among codebooks that hold -1, 0 and 1.

    Parameters
    ----------
    block : int
        2 to 65536: the larger, the nearer to 0 are the numbers between.

    Returns
    -------
    float32 array, shape (16,)
        Ascending, 7 entries below zero and 8 above, as `NF4_CODE`.

    Raises
    ------
    TypeError, ValueError
        If `block` is no integer in the range.

    Notes
    -----
    The question and the name, block-wise optimal float (BOF4), are those of arXiv 2505.06653, which
    estimates the numbers from samples; here the density is integrated. NF4 (arXiv 2305.14314) takes
    quantiles instead, which does not depend on the block.

    Examples
    --------
    >>> optimal_codebook(64)[[0, 7, 15]]
    array([-1.,  0.,  1.], dtype=float32)
    """
    return _converged(integer("block", block, 2, 2**16)).copy()


@cache
def _converged(block: int) -> NDArray[np.float32]:
    """Iterate from NF4 on."""
    x, mass = _density(block)
    edges = np.concatenate([[0.0], np.cumsum(mass)])  # mass of |x| below each edge
    moments = np.concatenate([[0.0], np.cumsum(mass * x)])
    grid = np.linspace(0, 1, POINTS + 1)
    halves = []
    for free in (-NF4_CODE[6:0:-1].astype(np.float64), NF4_CODE[8:15].astype(np.float64)):
        codes, moved = free, 1.0
        while moved > STILL:
            bounds = np.concatenate([[0.0], codes, [1.0]])
            cuts = (bounds[:-1] + bounds[1:]) / 2
            weight, moment = (np.diff(np.interp(cuts, grid, sums)) for sums in (edges, moments))
            moved = float(np.abs(moment / weight - codes).max())
            codes = moment / weight
        halves.append(codes)
    below, above = halves
    return np.concatenate([[-1], -below[::-1], [0], above, [1]]).astype(np.float32)


def _density(block: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the middles of `POINTS` bins of |x| in [0, 1] and the mass of p in each."""
    from math import erf, sqrt

    m = (np.arange(WIDTHS) + 0.5) * (8 / WIDTHS)  # largest magnitudes, up to 8 deviations
    inside = np.array([erf(value / sqrt(2)) for value in m])  # F
    with np.errstate(under="ignore"):
        f = inside ** (block - 2) * np.exp(-m * m / 2)  # f / F, but for constants
        x = (np.arange(POINTS) + 0.5) / POINTS
        mass = np.zeros(POINTS)
        for weight, value in zip(f * m**3, m, strict=True):
            if weight > 1e-30:
                mass += weight * np.exp(-((value * x) ** 2) / 2)
    return x, mass / mass.sum()
