"""Character-level language models: vocabulary, batches from Philox, training, and files.

    characters    a text as numbers: its vocabulary, its parts, and batches drawn from it
    recipes       what a model is and how it is trained, named by its number of weights
    losses        the loss of a batch and its gradient, on several threads; the loss of a text
    optimizer     the step against the gradient: clipped, AdamW, on several threads
    loop          training, from a recipe to a model
    trained       the model that was trained, and its file
    shipped       a model in the package, trained by the recipe of 221k ternary weights
    writing       a text that the model goes on with, longer than its context

The list is in the order in which the files build on each other.
"""

from __future__ import annotations

from minibit.language.characters import Tokens, Vocabulary, draw_batch, shipped_text
from minibit.language.loop import descend, train_language, train_params
from minibit.language.losses import evaluate_loss, loss_and_gradient
from minibit.language.optimizer import Optimizer
from minibit.language.recipes import LINEAR, SIZES, Recipe, Weights, learning_rate, recipe
from minibit.language.shipped import shipped_model
from minibit.language.trained import TrainedModel
from minibit.language.writing import write_text

__all__ = [
    "LINEAR",
    "SIZES",
    "Optimizer",
    "Recipe",
    "Tokens",
    "TrainedModel",
    "Vocabulary",
    "Weights",
    "descend",
    "draw_batch",
    "evaluate_loss",
    "learning_rate",
    "loss_and_gradient",
    "recipe",
    "shipped_model",
    "shipped_text",
    "train_language",
    "train_params",
    "write_text",
]
