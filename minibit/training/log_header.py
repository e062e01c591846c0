"""What a training run writes into its log's header, and what can be read back from it.

``plan`` is what replay needs, ``recipe`` the `Preset`, ``data`` the data set and how its inputs are
normalised. A model's constants are among them: weights alone say nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from minibit.base import one_of, shown
from minibit.datasets import Dataset
from minibit.layers import ACTIVATIONS
from minibit.noise_step import MLP
from minibit.steps import StepLog
from minibit.training.presets import Preset

__all__ = ["make_header", "model_of", "recipe_of", "training_header"]

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
SPLITS = ("final", "validation")
LARGE = 1e30  # numbers of a model; their products then stay within float32


def training_header(log: StepLog) -> dict[str, Any]:
    """Return the header of a log that `train` wrote; others may lack recipe and data.

    Raises
    ------
    ValueError
        If the log is of no training run, or of a model that this version does not know; the message
        says why.
    """
    header = log.header
    for part, words, numbers in (
        ("recipe", ("preset",), ("logit_scale",)),
        ("data", ("name", "digest", "split"), ("input_scale", "input_offset")),
    ):
        fields = header.get(part)
        if not isinstance(fields, dict):
            fields = {}
        for name in (*words, *numbers):
            value = fields.get(name)
            if name in words:
                good, kind = isinstance(value, str), "a string"
            else:
                good = isinstance(value, int | float) and -LARGE < value < LARGE
                good, kind = good and not isinstance(value, bool), f"a number below {LARGE:g}"
            if not good:
                raise ValueError(
                    f"{log.path} is no log of a training run: {part}.{name} must be {kind}, "
                    f"got {shown(value)}"
                )
    one_of(f"{log.path}: data.split", header["data"]["split"], SPLITS)
    activations = header["recipe"].get("activations", ACTIVATIONS[0])
    if activations not in ACTIVATIONS:
        raise ValueError(
            f"{log.path} is the log of a model with activations {shown(activations)}; "
            f"known are {' and '.join(ACTIVATIONS)}"
        )
    return header


def model_of(header: dict[str, Any]) -> MLP:
    """Return the model function that a training log's weights belong to."""
    recipe, data = header["recipe"], header["data"]
    return MLP(
        logit_scale=recipe["logit_scale"],
        input_scale=data["input_scale"],
        input_offset=data["input_offset"],
        activations=recipe.get("activations", ACTIVATIONS[0]),  # older logs don't say
    )


def make_header(preset: str, recipe: Preset, data: Dataset, split_name: str) -> dict[str, Any]:
    """Everything but the plan that an evaluation or a resumed run needs to know."""
    scale, offset = _normalisation(data)
    return {
        "recipe": {"preset": preset, **asdict(recipe)},
        "data": {
            "name": data.name,
            "digest": data.digest,
            "split": split_name,
            "input_scale": scale,
            "input_offset": offset,
        },
    }


def _normalisation(data: Dataset) -> tuple[float, float]:
    """Scale and offset that give the inputs mean 0 and standard deviation 1."""
    if data.name == "mnist":
        mean, std = 255 * MNIST_MEAN, 255 * MNIST_STD
    else:
        mean, std = float(data.train_x.mean()), float(data.train_x.std())
    scale = 1 / std if std > 0 else 1.0
    return scale, -mean * scale


def recipe_of(fields: dict[str, Any]) -> Preset:
    """Rebuild a preset from a log's header (lists become tuples)."""

    def frozen(value: Any) -> Any:
        return tuple(frozen(v) for v in value) if isinstance(value, list) else value

    try:
        return Preset(**{k: frozen(v) for k, v in fields.items() if k != "preset"})
    except (TypeError, ValueError) as error:
        raise ValueError(f"the log's recipe is no preset: {error}") from None
