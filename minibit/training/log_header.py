"""The header of a training run's log: how a run writes it, and reads its model and recipe back.

``plan`` is what replay needs, ``recipe`` the `Preset`, ``data`` the data set and how its inputs are
normalised: the constants of the model are among them.
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

__all__ = ["make_header", "model_of", "other_data", "recipe_of", "training_header"]

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
SPLITS = ("final", "validation")
LARGE = 1e30  # numbers of a model; their products then stay within float32
NUMBER = f"a number below {LARGE:g}"
FIELDS = (
    ("recipe", "preset", "a string"),
    ("recipe", "logit_scale", NUMBER),
    *(("data", name, "a string") for name in ("name", "digest", "split")),
    *(("data", name, NUMBER) for name in ("input_scale", "input_offset")),
)


def training_header(log: StepLog) -> dict[str, Any]:
    """Return the header of a log that `train` wrote; others may lack recipe and data.

    A ValueError says why it is of no training run, or of a model that this version does not know.
    """
    header = log.header
    for part, name, kind in FIELDS:
        fields = header.get(part)
        value: Any = fields.get(name) if isinstance(fields, dict) else None
        is_number = type(value) in (int, float) and -LARGE < value < LARGE
        if not (isinstance(value, str) if kind == "a string" else is_number):
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
    """Return all of the header but the plan: what an evaluation or a resumed run needs."""
    mean, std = 255 * MNIST_MEAN, 255 * MNIST_STD
    if data.name != "mnist":
        mean, std = float(data.train_x.mean()), float(data.train_x.std())
    scale = 1 / std if std > 0 else 1.0  # inputs then have mean 0 and standard deviation 1
    return {
        "recipe": {"preset": preset, **asdict(recipe)},
        "data": {
            "name": data.name,
            "digest": data.digest,
            "split": split_name,
            "input_scale": scale,
            "input_offset": -mean * scale,
        },
    }


def other_data(log: StepLog, step: int, data: Dataset, split_name: str = "final") -> dict[str, Any]:
    """Return the header's entry ``data`` for a fork of a log that goes on, after `step`, on others.

    Inputs stay normalised as they were, for the weights were trained so; the run remembers nothing
    of samples that it saw before. A ValueError says if the model does not take the `data`, or
    there is no split of that name.
    """
    header = training_header(log)
    recipe = recipe_of(header["recipe"])
    n_in, classes = recipe.widths[0], recipe.widths[-1]
    fits = data.features == n_in and data.classes <= classes
    if not fits or (recipe.shifts > 1 and len(data.sample_shape) != 2):
        raise ValueError(
            f"the model of {log.path} takes {n_in} inputs{' of images' * (recipe.shifts > 1)} and "
            f"{classes} classes; {data.name} has samples of shape {data.sample_shape} in "
            f"{data.classes} classes"
        )
    split_name = one_of("split_name", split_name, SPLITS)
    own = {"name": data.name, "digest": data.digest, "split": split_name, "since": step}
    return {**header["data"], **own}


def recipe_of(fields: dict[str, Any]) -> Preset:
    """Rebuild a preset from a log's header (lists become tuples)."""

    def frozen(value: Any) -> Any:
        return tuple(frozen(v) for v in value) if isinstance(value, list) else value

    try:
        return Preset(**{name: frozen(v) for name, v in fields.items() if name != "preset"})
    except (TypeError, ValueError) as error:
        raise ValueError(f"the log's recipe is no preset: {error}") from None
