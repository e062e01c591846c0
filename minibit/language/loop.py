"""The training loop of a language model: a batch, its gradient, a step, again and again.

    loss, gradient   of each half of the batch on a thread of its own, then their mean
    gradient         scaled down to length 1 if longer
    step             AdamW, betas (0.9, 0.95); weight decay 0.1 in the first half, then 0
    learning rate    peak (1 - step / steps) after a warm-up, times 2/3 from half-way on

The recipe (`minibit.language.recipes`) names every number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minibit.language.characters import Vocabulary, draw_batch, shipped_text
from minibit.language.losses import loss_and_gradient
from minibit.language.optimizer import Optimizer
from minibit.language.recipes import LINEAR, Recipe, learning_rate
from minibit.language.trained import TrainedModel
from minibit.transformer import init_params

__all__ = ["train_language"]


def train_language(
    made: Recipe,
    seed: int = 0,
    *,
    threads: int = 1,
    stop: int | None = None,
    text: str | None = None,
    progress: Callable[[int, float, Mapping[str, Any]], None] | None = None,
) -> TrainedModel:
    """Train a character-level model.

    Parameters
    ----------
    made : Recipe
        See `recipe`.
    seed : int
        Of the initial parameters and of the batches.
    threads : int
        Parts of a batch that are computed side by side. The rounding of the sums depends on it.
    stop : int, optional
        Stop after so many steps of the schedule.
    text : str, optional
        To train on; the package's text, without its last tenth, by default.
    progress : callable (steps done, loss, params), optional
        Called after every step.

    Returns
    -------
    TrainedModel

    Raises
    ------
    ValueError
        If the text is too short, `stop` is negative, `threads` is below 1, or a gradient is not
        finite: the step and a parameter are named.

    Examples
    --------
    >>> from minibit.language import recipe
    >>> trained = train_language(recipe("55k", "b1.58"), stop=2)
    >>> trained.losses.shape
    (2,)
    """
    if text is None:
        vocabulary, tokens, _ = shipped_text()
    else:
        vocabulary = Vocabulary.of(text)
        tokens = vocabulary.encode(text)
    steps = made.steps if stop is None else min(stop, made.steps)
    if steps < 0:
        raise ValueError(f"stop must not be negative, got {stop}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    config, linear = made.config(len(vocabulary)), LINEAR[made.weights]
    params: Any = init_params(config, seed)
    optimizer = Optimizer(params, threads=threads)
    losses = np.empty(steps, np.float32)
    begin = time.perf_counter()
    for step in range(steps):
        x, y = draw_batch(tokens, seed, step, made.batch, made.context)
        loss, gradient = loss_and_gradient(config, params, x, y, linear=linear, threads=threads)
        decay = made.weight_decay if step < made.steps / 2 else 0.0
        params = optimizer.step(gradient, learning_rate(made, step), decay, made.clip)
        losses[step] = loss
        if progress is not None:
            progress(step + 1, loss, params)
    return TrainedModel(made, seed, vocabulary, params, losses, time.perf_counter() - begin)
