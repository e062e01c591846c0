"""Batches of a training run: shifted images, hard ones more often.

``hard[i, s]`` holds 1 - p_y of image i under shift s as of its last visit, at first 1. Draw (i, s)
uniformly; accept it with weight 1 if it is hard, above `threshold`, else with probability
`easy_share` and weight 1 / easy_share, so that weighted sums stay unbiased. The table is state of
the run, not of the model; forward passes give it back (`minibit.training.course`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.noise import BATCH, integers, uniform
from minibit.training.presets import SHIFTS

__all__ = ["Pool", "shifted"]


@dataclass
class Pool:
    """All samples under all shifts, and how hard each was at its last visit."""

    images: NDArray[Any]  # (shifts, samples, n_in)
    labels: NDArray[np.int64]
    seed: int
    threshold: float
    easy_share: float
    hard: NDArray[np.float32] = field(init=False)  # (samples, shifts)

    def __post_init__(self) -> None:
        """Take every sample to be hard."""
        self.hard = np.ones((self.images.shape[1], self.images.shape[0]), np.float32)

    def draw(
        self, step: int, n: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Draw n samples, their shifts and weights: hard ones always, easy ones now and then."""
        count, shifts = len(self.labels), self.images.shape[0]
        samples, moves, weights, drawn, turn = [], [], [], 0, 0
        while drawn < n:
            draw = {"domain": BATCH, "step": step}
            tries = max(1024, 2 * (n - drawn))
            pair = integers(self.seed, count * shifts, tries, **draw, lane=2 * turn)
            chance = uniform(self.seed, (tries,), **draw, lane=2 * turn + 1)
            sample, shift = pair // shifts, pair % shifts
            is_hard = self.hard[sample, shift] > self.threshold
            accepted = is_hard | (chance < self.easy_share)
            samples.append(sample[accepted])
            moves.append(shift[accepted])
            weights.append(np.where(is_hard[accepted], 1, 1 / self.easy_share))
            drawn += int(accepted.sum())
            turn += 1
        sample, shift, weight = (np.concatenate(a)[:n] for a in (samples, moves, weights))
        return sample, shift, weight.astype(np.float32)


def shifted(images: NDArray[Any], shifts: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Lay all samples out under each of the first `shifts` one-pixel shifts; new pixels are 0."""
    if shifts == 1:
        return images[None]
    square = images.reshape(-1, *shape)  # (samples, rows, columns)
    out = np.zeros((shifts, *square.shape), images.dtype)
    for moved, (down, right) in zip(out, SHIFTS[:shifts], strict=True):
        to_rows, from_rows = _overlap(down, shape[0])
        to_columns, from_columns = _overlap(right, shape[1])
        moved[:, to_rows, to_columns] = square[:, from_rows, from_columns]
    return out.reshape(shifts, *images.shape)


def _overlap(move: int, side: int) -> tuple[slice, slice]:
    """Where pixels go and where they come from."""
    return slice(max(move, 0), side + min(move, 0)), slice(max(-move, 0), side + min(-move, 0))
