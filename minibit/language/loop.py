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
from numpy.typing import NDArray

from minibit.base import integer
from minibit.language.characters import Tokens, Vocabulary, draw_batch, shipped_text
from minibit.language.losses import loss_and_gradient
from minibit.language.optimizer import Optimizer
from minibit.language.recipes import LINEAR, Recipe, learning_rate
from minibit.language.trained import TrainedModel
from minibit.tape import Adam
from minibit.transformer import Sparsify, init_params

__all__ = ["descend", "train_language", "train_params"]


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

    Raises
    ------
    ValueError
        If the text is too short, `stop` below 0, `threads` below 1, or a gradient is not
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
    start = init_params(made.config(len(vocabulary)), seed)
    begin = time.perf_counter()
    params, losses = train_params(
        made, start, tokens, seed, threads=threads, stop=stop, progress=progress
    )
    return TrainedModel(made, seed, vocabulary, params, losses, time.perf_counter() - begin)


def train_params(
    made: Recipe,
    params: Mapping[str, Any],
    tokens: Tokens,
    seed: int = 0,
    *,
    threads: int = 1,
    stop: int | None = None,
    sparsify: Sparsify | None = None,
    progress: Callable[[int, float, Mapping[str, Any]], None] | None = None,
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Train parameters on tokens, as `train_language` does with initial ones on a text.

    `params` are float32 arrays to begin with, whose vocabulary is that of the `tokens`; `seed` is
    that of the batches. made, threads, stop and progress are as for `train_language`, sparsify as
    for `minibit.transformer.forward`. Returns the parameters and the loss of every batch before its
    step, (steps,).

    Examples
    --------
    >>> from minibit.language import recipe
    >>> made = recipe("55k", "float")
    >>> start = init_params(made.config(7), seed=0)
    >>> params, losses = train_params(made, start, np.arange(70) % 7, stop=2)
    >>> losses.shape
    (2,)
    """
    steps = made.steps if stop is None else min(integer("stop", stop), made.steps)
    integer("threads", threads, 1)
    config, linear = made.config(len(params["embed_tokens"])), LINEAR[made.weights]
    optimizer = Optimizer(params, threads=threads)

    def slope(params: Any, step: int) -> tuple[float, dict[str, Any]]:
        x, y = draw_batch(tokens, seed, step, made.batch, made.context)
        return loss_and_gradient(
            config, params, x, y, linear=linear, threads=threads, sparsify=sparsify
        )

    def schedule(step: int) -> dict[str, float]:
        decay = made.weight_decay if step < made.steps / 2 else 0.0
        return {"lr": learning_rate(made, step), "weight_decay": decay, "clip": made.clip}

    losses = descend(optimizer, slope, schedule, steps, progress)
    return optimizer.params, losses


def descend(
    optimizer: Optimizer | Adam,
    slope: Callable[[Any, int], tuple[Any, Any]],
    schedule: Callable[[int], Mapping[str, float]],
    steps: int,
    progress: Callable[[int, float, Any], None] | None = None,
) -> NDArray[np.float32]:
    """Move an optimizer's parameters against a gradient, step after step: the loop of all training.

        loss, gradient = slope(params, step)
        params <- optimizer.step(gradient, **schedule(step))

    Parameters
    ----------
    optimizer : Optimizer or Adam
        Holds the parameters, at the start and at the end.
    slope : callable (params, step) -> (loss, gradient)
        Draws the batch of a step, and differentiates.
    schedule : callable (step) -> settings of the optimizer's step, by name
    steps : int
    progress : callable (steps done, loss, params), optional
        Called after every step.

    Returns
    -------
    float32 array, shape (steps,)
        The loss of every batch, before its step.

    Examples
    --------
    >>> adam = Adam(np.array([1.0]))
    >>> descend(adam, lambda p, step: (p[0] ** 2, 2 * p), lambda step: {"lr": 0.5}, 2)
    array([1.  , 0.25], dtype=float32)
    """
    losses = np.empty(steps, np.float32)
    for step in range(steps):
        loss, gradient = slope(optimizer.params, step)
        losses[step] = loss
        optimizer.step(gradient, **schedule(step))
        if progress is not None:
            progress(step + 1, loss, optimizer.params)
    return losses
