"""Character-level language models: vocabulary, batches from Philox, training, and files."""

from minibit.language.characters import Tokens, Vocabulary, draw_batch, shipped_text
from minibit.language.loop import descend, train_language, train_params
from minibit.language.losses import evaluate_loss, loss_and_gradient
from minibit.language.optimizer import Optimizer
from minibit.language.recipes import LINEAR, SIZES, Recipe, Weights, learning_rate, recipe
from minibit.language.shipped import shipped_folder, shipped_model
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
    "shipped_folder",
    "shipped_model",
    "shipped_text",
    "train_language",
    "train_params",
    "write_text",
]
