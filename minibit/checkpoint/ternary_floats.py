"""Ternary weights that a file holds as plain floats: their codes and scales, found exactly.

    w = s c    c in {-1, 0, 1},  s one number, or one for each group of columns of a row

Models that were quantised group by group are published as floats, too, for programs that know no
packing. A group of any of `GROUPS` has one magnitude beside 0 if each of its halves has it; so one
pass over the weights finds the scales of the smallest groups, and the rest is about scales.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from minibit.base import widen

__all__ = ["GROUPS", "NotTernaryError", "find_ternary"]

GROUPS = (32, 64, 128, 256)  # columns that may share a scale, each twice the one before
PIECE = 1 << 20  # weights that are looked at together


class NotTernaryError(ValueError):
    """Weights that are no ternary ones; `place` counts from the first, row after row."""

    def __init__(self, message: str, place: int) -> None:
        super().__init__(message)
        self.place = place


def find_ternary(
    stored: NDArray[np.generic],
) -> tuple[NDArray[np.int8], np.float32 | NDArray[np.float32]]:
    """Find codes and scales whose product the weights are: exactly, or not at all.

    `stored`, (n_out, n_in), are finite floats of any type, or bits of bfloat16 as uint16, not all
    zeros. The codes are int8 (n_out, n_in). The scale is one float32 if that will do, else an array
    (n_out, n_in / group) of the largest group of `GROUPS` that will: 0 where a group is all zeros.
    `NotTernaryError` tells of the first weight that has another magnitude than the largest of its
    group, the smallest of `GROUPS` (or of its row, if no group divides it).

    Examples
    --------
    >>> weights = np.repeat(np.float32([[0.5, -2.0]]), 32, axis=1)  # two groups of 32
    >>> codes, scales = find_ternary(weights)
    >>> scales, codes[0, [0, 32]]
    (array([[0.5, 2. ]], dtype=float32), array([ 1, -1], dtype=int8))
    """
    n_out, n_in = stored.shape
    group = GROUPS[0] if n_in % GROUPS[0] == 0 else n_in
    codes = np.empty((n_out, n_in), np.int8)
    scales = np.empty((n_out, n_in // group), np.float32)
    rows = max(PIECE // n_in, 1)
    for start in range(0, n_out, rows):
        floats = np.asarray(widen(stored[start : start + rows]), np.float32)
        sizes = np.abs(floats).reshape(len(floats), -1, group)  # (rows, groups, group)
        largest = sizes.max(axis=-1)  # (rows, groups)
        wrong = ((sizes != largest[..., None]) & (sizes != 0)).reshape(floats.shape)
        if wrong.any():
            row, column = (int(i) for i in np.argwhere(wrong)[0])
            number, other = floats[row, column], largest[row, column // group]
            row += start
            message = f"{number:g} at {(row, column)}, and {other:g} among its {group} columns"
            raise NotTernaryError(f"no ternary weights: {message}", row * n_in + column)
        codes[start : start + rows] = np.sign(floats)
        scales[start : start + rows] = largest
    everywhere = scales.max()
    if ((scales == everywhere) | (scales == 0)).all():
        return codes, everywhere
    if n_in % GROUPS[0]:
        row = int(np.argmax((scales != everywhere) & (scales != 0)))
        message = f"row {row} has the magnitude {scales[row, 0]:g}, another row {everywhere:g}"
        raise NotTernaryError(f"no groups of columns, and {message}", row * n_in)
    for wide in GROUPS[1:]:
        if n_in % wide:
            break
        halves = scales.reshape(n_out, -1, 2)  # (n_out, groups, 2)
        largest = halves.max(axis=-1)  # (n_out, groups)
        if ((halves != largest[..., None]) & (halves != 0)).any():
            break
        scales = largest
    return codes, scales
