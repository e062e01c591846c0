"""What a step keeps: terns that reach the median, or the best moves of a layer.

With per-sample alignments a_b, the t score is |sum_b a_b| / sqrt(sum_b a_b^2), which ranks like the
t-statistic |mean| / std.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minibit.base import largest

__all__ = ["keep_moves", "keep_terns", "t_score"]


def keep_terns(
    alignments: NDArray[Any], squares: NDArray[Any], score: Literal["absolute", "t"]
) -> NDArray[np.int8]:
    """Decide the terns of a `sampled` step: ``c = sign(a) where score >= median(score), else 0``.

    Parameters
    ----------
    alignments, squares : float array, shape (perturbations,)
        Sums over the batch of the per-sample alignments and of their squares.
    score : "absolute" or "t"
        The paper's |a|, or |sum a| / sqrt(sum a^2).

    Returns
    -------
    int8 array, shape (perturbations,)
        All scores that tie with the median are kept. An alignment of exactly 0, an empty
        perturbation's say, scores 0 and gets code 0. The median of an even number is the mean of
        the two middle scores: without ties exactly half are kept, of an odd K (K + 1) / 2. An
        alignment that overflowed, infinite or NaN, counts as 0.

    Raises
    ------
    ValueError
        If the score is unknown.

    Examples
    --------
    >>> keep_terns(np.array([0.1, -3.0, 2.0, -0.2]), np.ones(4), "absolute")
    array([ 0, -1,  1,  0], dtype=int8)
    """
    alignments = _finite(alignments)
    scores = np.abs(alignments)
    if score == "t":
        scores = t_score(alignments, squares)
    elif score != "absolute":
        raise ValueError(f"score must be 'absolute' or 't', got {score!r}")
    if not scores.size:
        return np.zeros(0, np.int8)
    return np.where(scores >= np.median(scores), np.sign(alignments), 0).astype(np.int8)


def keep_moves(
    alignments: NDArray[Any], squares: NDArray[Any], weights: NDArray[np.int8], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Keep the `count` best moves of one layer of a `units` step.

    Parameters
    ----------
    alignments, squares : float array, shape (units, inputs)
        Sums over the batch of the candidates' per-sample alignments and of their squares.
    weights : int8 array, shape (units, inputs)
        The candidates' weights: a move that would leave {-1, 0, 1} is not legal.
    count : int
        How many moves to keep at most; fewer if fewer are legal and have an alignment.

    Returns
    -------
    positions : int64 array, sorted
        Candidates ``unit * inputs + input`` that move. Of equal scores the lowest candidate wins;
        an alignment that overflowed, infinite or NaN, never does.
    signs : int8 array
        Their directions, ``-sign(alignment)``.

    Examples
    --------
    >>> a = np.array([[3.0, -2.0], [-1.0, 4.0]])
    >>> w = np.array([[-1, 0], [0, 0]], np.int8)  # the first cannot go further down
    >>> keep_moves(a, np.ones((2, 2)), w, count=2)
    (array([1, 3]), array([ 1, -1], dtype=int8))
    """
    alignments = _finite(alignments)
    signs = -np.sign(alignments).astype(np.int8).ravel()
    scores = t_score(alignments, squares).ravel()
    scores[np.abs(weights.ravel() + signs) > 1] = 0  # the clamp would cancel it
    count = min(count, int(np.count_nonzero(scores)))
    if count <= 0:
        return np.empty(0, np.int64), np.empty(0, np.int8)
    positions = np.flatnonzero(largest(scores, count))
    return positions, signs[positions]


def _finite(alignments: NDArray[Any]) -> NDArray[np.float64]:
    """Alignments as float64; those that overflowed tell nothing, and are 0."""
    return np.nan_to_num(np.asarray(alignments, np.float64), nan=0, posinf=0, neginf=0)


def t_score(alignments: NDArray[np.float64], squares: NDArray[Any]) -> NDArray[np.float64]:
    """|sum a| / sqrt(sum a^2); 0 where no sample has an alignment."""
    spread = np.sqrt(np.asarray(squares, np.float64))
    score: NDArray[np.float64] = np.abs(alignments) / np.where(spread > 0, spread, np.inf)
    return score
