"""Recipes: what a language model is and how it is trained, named by its number of weights.

The schedules, of learning rate and weight decay, are those of BitNet b1.58.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from minibit.base import integer, one_of
from minibit.tape import two_stage
from minibit.transformer import BitNetConfig, Linear, bit_linear, float_linear

__all__ = ["LINEAR", "SIZES", "Recipe", "Weights", "learning_rate", "recipe"]

Weights = Literal["float", "b1.58"]
LINEAR: dict[str, Linear] = {"float": float_linear, "b1.58": bit_linear}


@dataclass(frozen=True)
class Recipe:
    """How a language model is built and trained."""

    weights: Weights  # of projections: float, or ternary with int8 activations (`bit_linear`)
    hidden: int  # width of the stream
    inner: int  # width of the gated unit
    heads: int
    peak: float  # highest learning rate
    layers: int = 2
    context: int = 64  # tokens of a row
    batch: int = 16  # rows
    steps: int = 1953  # about 2 million tokens of 16 x 64 per step
    warmup: int = 100  # steps over which the learning rate rises
    weight_decay: float = 0.1  # in the first half
    clip: float = 1.0  # greatest length of a gradient
    sub_norms: bool = True  # as for `BitNetConfig`

    def __post_init__(self) -> None:
        """Check what the configuration of the model does not."""
        one_of("weights", self.weights, LINEAR)
        for name in ("steps", "batch", "context"):
            integer(name, getattr(self, name), 1)

    def config(self, vocabulary: int) -> BitNetConfig:
        """Return the configuration of the model for a vocabulary of that size."""
        sizes = (self.hidden, self.inner, self.layers, self.heads, self.heads, self.context)
        return BitNetConfig(vocabulary, *sizes, sub_norms=self.sub_norms)

    @property
    def projections(self) -> int:
        """Number of weights in projections: those that are ternary in b1.58."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.inner)


SIZES: dict[str, dict[str, Any]] = {  # b1.58 wants 1.5 to 2 times the float's learning rate
    "55k": {"hidden": 48, "inner": 128, "heads": 2, "peaks": (8e-3, 1.2e-2)},
    "221k": {"hidden": 96, "inner": 256, "heads": 4, "peaks": (4e-3, 8e-3)},
    "885k": {"hidden": 192, "inner": 512, "heads": 6, "peaks": (2.5e-3, 4e-3)},
}


def recipe(size: str, weights: Weights, **overrides: Any) -> Recipe:
    """Return the recipe of a size of `SIZES`, named by its number of weights in projections.

    `weights` is a key of `LINEAR`; `overrides` replace fields of `Recipe`.

    Examples
    --------
    >>> recipe("221k", "b1.58").projections
    221184
    """
    fields = dict(SIZES[one_of("size", size, SIZES)])
    peaks = dict(zip(LINEAR, fields.pop("peaks"), strict=True))
    fields["peak"] = peaks.get(weights, 0.0)
    return Recipe(weights, **(fields | overrides))


def learning_rate(recipe: Recipe, step: int) -> float:
    """Learning rate of a step: linear decay to 0, times 2/3 from half-way on; a linear warm-up."""
    return two_stage(step, recipe.steps, recipe.peak, recipe.peak * 2 / 3, recipe.warmup)
