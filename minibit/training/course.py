"""The batches of a run: how one is drawn (the rule of hard samples), and what the run remembers.

``hard[i, s]`` holds 1 - p_y of image i under shift s as of its last visit, at first 1. A draw takes
(i, s) uniformly. It is accepted with weight 1 if the image is hard, above `threshold`, else with
probability `easy_share` and weight 1 / easy_share, so that weighted sums stay unbiased.

The table, and the density that followed the loss, are state of the run and not of the model.
Forward passes give both, so a log has its run's course, too: `Course.retrace` makes them anew for a
run that is resumed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer
from minibit.datasets import Dataset, split
from minibit.noise import BATCH, integers, uniform
from minibit.noise_step import SampledStep, forward, geometric, mean_loss
from minibit.steps import StepLog, checked_segments, seed_at
from minibit.training.log_header import model_of, recipe_of
from minibit.training.presets import SHIFTS

__all__ = ["Course", "Pool", "shifted"]

Batch = tuple[NDArray[Any], NDArray[np.int64], NDArray[np.float32]]  # x, y, weight


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


class Course:
    """The batches of a run, one after another; each step tells it how hard its samples were.

    Recipe and split are those of the log's `header`; `seed` names the draws, but of steps that a
    fork or another log's steps draw by a seed of their own. Data that a fork took up count from its
    first step on.
    """

    def __init__(self, header: dict[str, Any], data: Dataset, seed: int) -> None:
        self.recipe = recipe = recipe_of(header["recipe"])
        self.model = model_of(header)
        self._seed, self._segments = seed, checked_segments(header.get("segments", []))
        self.since = integer("data.since", header["data"].get("since", 0))
        x, y = data.train_x, data.train_y
        if header["data"]["split"] == "validation":
            x, y = split(data)[:2]
        images = shifted(x, recipe.shifts, data.sample_shape)  # (shifts, samples, n_in)
        self.pool = Pool(images, y.astype(np.int64), seed, recipe.threshold, recipe.easy_share)
        self._density = recipe.density[0]

    @property
    def remembers(self) -> bool:
        """Whether batches depend on how hard samples were."""
        return self.recipe.easy_share < 1

    def drawn_by(self, step: int) -> tuple[int, int]:
        """Return the seed and the number by which a step's batch and noise are drawn."""
        return seed_at(self._seed, self._segments, step)

    def batch_size(self, step: int) -> int:
        """Return how many samples a step sees."""
        first, last = self.recipe.batch
        return round(geometric(first, last, self.recipe.steps)(step))

    def batch(self, step: int) -> Batch:
        """Draw the batch of a step; after the step, `saw` takes what its samples came to."""
        self.pool.seed, number = self.drawn_by(step)
        sample, shift, weight = self.pool.draw(number, self.batch_size(step))
        self._drawn = sample, shift
        return self.pool.images[shift, sample], self.pool.labels[sample], weight

    def saw(self, hardness: NDArray[Any], loss: float) -> None:
        """Remember 1 - p_y of the samples of the batch last drawn, and `follow` its loss."""
        sample, shift = self._drawn
        self.pool.hard[sample, shift] = hardness
        self.follow(loss)

    def follow(self, loss: float) -> None:
        """Lower the density of the next steps, where it follows the loss."""
        for bound, density in self.recipe.density_by_loss:
            if loss < bound:
                self._density = min(self._density, density)

    @property
    def density(self) -> float | None:
        """The density of the next step where it follows the loss; None where a schedule says it."""
        recipe = self.recipe
        return self._density if recipe.density_by_loss and recipe.method == "sampled" else None

    def retrace(self, log: StepLog, threads: int | None = None) -> None:
        """Make the forward passes of a log's steps on these data: the course of its run."""
        steps = len(log)
        last = 0 if self.remembers else steps - 1  # if not, only its density counts
        passes = range(max(self.since, last), steps)
        every = list(log.steps())
        if not passes and isinstance(every[-1], SampledStep):
            self._density = every[-1].numerator / 2**32
        choices = iter(every[passes.start :])
        for (step, params), choice in zip(log.walk(passes), choices, strict=True):
            x, y, weight = self.batch(step)
            if isinstance(choice, SampledStep):
                self._density = choice.numerator / 2**32
            _, losses, hardness, _ = forward(self.model, params, x, y, threads)
            self.saw(hardness, mean_loss(losses, weight))


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
    """Return the pixels of an axis that a shift writes, and those that it reads."""
    return slice(max(move, 0), side + min(move, 0)), slice(max(-move, 0), side + min(-move, 0))
