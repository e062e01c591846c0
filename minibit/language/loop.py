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

from minibit.language.characters import Tokens, Vocabulary, draw_batch, shipped_text
from minibit.language.losses import loss_and_gradient
from minibit.language.optimizer import Optimizer
from minibit.language.recipes import LINEAR, Recipe, learning_rate
from minibit.language.trained import TrainedModel
from minibit.transformer import Sparsify, init_params

__all__ = ["train_language", "train_params"]


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

    Parameters
    ----------
    made : Recipe
    params : mapping of float32 arrays
        To begin with; their vocabulary is that of the tokens.
    tokens : int64 array
    seed : int
        Of the batches.
    threads, stop, progress
        As in `train_language`.
    sparsify : callable, optional
        Makes the inputs of projections sparse, as in `minibit.transformer.forward`.

    Returns
    -------
    params : dict of float32 arrays
    losses : float32 array, shape (steps,)
        Of every batch, before its step.

    Examples
    --------
    >>> from minibit.language import recipe
    >>> made = recipe("55k", "float")
    >>> start = init_params(made.config(7), seed=0)
    >>> params, losses = train_params(made, start, np.arange(70) % 7, stop=2)
    >>> losses.shape
    (2,)
    """
    steps = made.steps if stop is None else min(stop, made.steps)
    if steps < 0:
        raise ValueError(f"stop must not be negative, got {stop}")
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    config, linear = made.config(len(params["embed_tokens"])), LINEAR[made.weights]
    optimizer = Optimizer(params, threads=threads)
    losses = np.empty(steps, np.float32)
    for step in range(steps):
        x, y = draw_batch(tokens, seed, step, made.batch, made.context)
        loss, gradient = loss_and_gradient(
            config, optimizer.params, x, y, linear=linear, threads=threads, sparsify=sparsify
        )
        decay = made.weight_decay if step < made.steps / 2 else 0.0
        optimizer.step(gradient, learning_rate(made, step), decay, made.clip)
        losses[step] = loss
        if progress is not None:
            progress(step + 1, loss, optimizer.params)
    return optimizer.params, losses
