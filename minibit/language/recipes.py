"""Recipes: what a language model is and how it is trained, named by its number of weights.

    learning rate    peak (1 - step / steps) after a warm-up, times 2/3 from half-way on
    weight decay     0.1 in the first half, then 0

The schedules are those of BitNet b1.58.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from minibit.tape import two_stage
from minibit.transformer import BitNetConfig, Linear, bit_linear, float_linear

__all__ = ["LINEAR", "SIZES", "Recipe", "Weights", "learning_rate", "recipe"]

Weights = Literal["float", "b1.58"]
LINEAR: dict[str, Linear] = {"float": float_linear, "b1.58": bit_linear}


@dataclass(frozen=True)
class Recipe:
    """How a language model is made and trained.

    Attributes
    ----------
    weights : {"float", "b1.58"}
        Which projections: float, or ternary with int8 activations (`bit_linear`).
    hidden, inner, heads, layers : int
        Widths of the stream and of the gated unit, heads, blocks.
    context, batch : int
        Tokens of a row, rows of a batch.
    peak : float
        Highest learning rate.
    steps, warmup : int
        Batches, and how many of them the learning rate rises.
    weight_decay : float
        In the first half.
    clip : float
        Most length of a gradient.
    sub_norms : bool
        As `BitNetConfig`.
    """

    weights: Weights
    hidden: int
    inner: int
    heads: int
    peak: float
    layers: int = 2
    context: int = 64
    batch: int = 16
    steps: int = 1953  # about 2 million tokens of 16 x 64 a step
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    sub_norms: bool = True

    def __post_init__(self) -> None:
        """Check what the configuration of the model does not."""
        if self.weights not in LINEAR:
            raise ValueError(f"weights must be one of {', '.join(LINEAR)}, got {self.weights!r}")
        for name in ("steps", "batch", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def config(self, vocabulary: int) -> BitNetConfig:
        """Return the configuration of the model for a vocabulary of that size."""
        return BitNetConfig(
            vocabulary,
            self.hidden,
            self.inner,
            self.layers,
            self.heads,
            self.heads,
            max_positions=self.context,
            sub_norms=self.sub_norms,
        )

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
    """Return the recipe of a size, named by its number of weights in projections.

    Parameters
    ----------
    size : str
        A key of `SIZES`.
    weights : {"float", "b1.58"}
    overrides
        Fields of `Recipe` to replace.

    Raises
    ------
    ValueError
        If the size or the kind of weights is unknown.

    Examples
    --------
    >>> recipe("221k", "b1.58").projections
    221184
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    fields = dict(SIZES[size])
    peaks = dict(zip(LINEAR, fields.pop("peaks"), strict=True))
    fields["peak"] = peaks.get(weights, 0.0)
    return Recipe(weights, **(fields | overrides))


def learning_rate(made: Recipe, step: int) -> float:
    """Learning rate of a step: linear decay to 0, times 2/3 from half-way on; a linear warm-up."""
    return two_stage(step, made.steps, made.peak, made.peak * 2 / 3, made.warmup)
