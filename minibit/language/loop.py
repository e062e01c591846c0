"""The training loop of a language model: a batch, its gradient, a step, again and again."""

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

Progress = Callable[[int, float, Any], None]


def train_language(
    recipe: Recipe,
    seed: int = 0,
    *,
    threads: int = 1,
    stop: int | None = None,
    text: str | None = None,
    progress: Progress | None = None,
) -> TrainedModel:
    """Train a character-level model by a recipe (see `recipe`).

    `seed` is that of the initial parameters and of the batches, and `text` is by default the
    package's, without its last tenth. A batch is computed in `threads` parts side by side, on which
    the rounding of the sums depends. Training ends after `stop` steps of the schedule, and
    `progress` is called with the steps done, the loss and the parameters after each. A ValueError
    if the text is too short, `stop` below 0, `threads` below 1, or a gradient is not finite: the
    step and a parameter are named.

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
    start = init_params(recipe.config(len(vocabulary)), seed)
    begin = time.perf_counter()
    params, losses = train_params(
        recipe, start, tokens, seed, threads=threads, stop=stop, progress=progress
    )
    return TrainedModel(recipe, seed, vocabulary, params, losses, time.perf_counter() - begin)


def train_params(
    recipe: Recipe,
    params: Mapping[str, Any],
    tokens: Tokens,
    seed: int = 0,
    *,
    threads: int = 1,
    stop: int | None = None,
    sparsify: Sparsify | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Train parameters on tokens, as `train_language` does with initial ones on a text.

    `params` are float32 arrays to begin with, whose vocabulary is that of the `tokens`; `seed` is
    that of the batches, and sparsify is as for `minibit.transformer.forward`. Returns the
    parameters and the loss of every batch before its step, (steps,).

    Examples
    --------
    >>> from minibit.language import recipe
    >>> small = recipe("55k", "float")
    >>> start = init_params(small.config(7), seed=0)
    >>> params, losses = train_params(small, start, np.arange(70) % 7, stop=2)
    >>> losses.shape
    (2,)
    """
    steps = recipe.steps if stop is None else min(integer("stop", stop), recipe.steps)
    integer("threads", threads, 1)
    config, linear = recipe.config(len(params["embed_tokens"])), LINEAR[recipe.weights]
    optimizer = Optimizer(params, threads=threads)

    def slope(params: Any, step: int) -> tuple[float, dict[str, Any]]:
        x, y = draw_batch(tokens, seed, step, recipe.batch, recipe.context)
        return loss_and_gradient(
            config, params, x, y, linear=linear, threads=threads, sparsify=sparsify
        )

    def schedule(step: int) -> dict[str, float]:
        decay = recipe.weight_decay if step < recipe.steps / 2 else 0.0
        return {"lr": learning_rate(recipe, step), "weight_decay": decay, "clip": recipe.clip}

    losses = descend(optimizer, slope, schedule, steps, progress)
    return optimizer.params, losses


def descend(
    optimizer: Optimizer | Adam,
    slope: Callable[[Any, int], tuple[Any, Any]],
    schedule: Callable[[int], Mapping[str, float]],
    steps: int,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Move an optimizer's parameters against a gradient, step after step: the loop of all training.

        loss, gradient = slope(params, step)
        params <- optimizer.step(gradient, **schedule(step))

    The optimizer holds the parameters, at the start and at the end. Returns the loss of every batch
    before its step, float32 (steps,); `progress` is as for `train_language`.

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
