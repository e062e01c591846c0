"""The course of a run: which samples its steps see, and what the run remembers of them.

A run's state is its weights and its course: how hard each sample was at its last visit, which
decides how often it is drawn, and the density that followed the loss. Forward passes give both, so
a log has its run's course, too: `Course.retrace` makes them anew for a run that is resumed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer
from minibit.datasets import Dataset, split
from minibit.noise_step import SampledStep, forward, geometric
from minibit.steps import StepLog, checked_segments, seed_at
from minibit.training.log_header import model_of, recipe_of
from minibit.training.resampling import Pool, shifted

__all__ = ["Course"]

Batch = tuple[NDArray[Any], NDArray[np.int64], NDArray[np.float32]]  # x, y, weight


class Course:
    """Batches of a run, one after another, and what was learnt of their samples.

    Recipe and split are those of the log's `header`; `seed` names the draws, but of steps that a
    fork or another log's steps draw by a seed of their own. Data that a fork took up count from its
    first step on.
    """

    def __init__(self, header: dict[str, Any], data: Dataset, seed: int) -> None:
        self.recipe = recipe = recipe_of(header["recipe"])
        self.model = model_of(header)
        self._seed, self._segments = seed, checked_segments(header.get("segments", []))
        self._since = integer("data.since", header["data"].get("since", 0))
        x, y = data.train_x, data.train_y
        if header["data"]["split"] == "validation":
            x, y = split(data)[:2]
        images = shifted(x, recipe.shifts, data.sample_shape)  # (shifts, samples, n_in)
        self.pool = Pool(images, y.astype(np.int64), seed, recipe.threshold, recipe.easy_share)
        self._density = recipe.density[0]

    def batch_size(self, step: int) -> int:
        """Return how many samples a step sees."""
        first, last = self.recipe.batch
        return round(geometric(first, last, self.recipe.steps)(step))

    def batch(self, step: int) -> Batch:
        """Draw the batch of a step; `saw` then says what its samples came to."""
        self.pool.seed, number = seed_at(self._seed, self._segments, step)
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

    def retrace(self, log: StepLog, workers: int | None = None) -> None:
        """Make the forward passes of a log's steps on these data: the course of its run."""
        steps = len(log)
        remembers = self.recipe.easy_share < 1  # else only the density of the last step counts
        passes = range(max(self._since, 0 if remembers else steps - 1), steps)
        every = list(log.steps())
        if not passes and isinstance(every[-1], SampledStep):
            self._density = every[-1].numerator / 2**32
        records = iter(every[passes.start :])
        for (step, params), record in zip(log.walk(passes), records, strict=True):
            x, y, weight = self.batch(step)
            if isinstance(record, SampledStep):
                self._density = record.numerator / 2**32
            _, losses, hardness, _ = forward(self.model, params, x, y, workers)
            self.saw(hardness, float(np.average(losses, weights=weight if weight.any() else None)))
