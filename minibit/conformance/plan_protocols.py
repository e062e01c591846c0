"""The meaning of a call of a plan, a method's settings, a preset or a data set.

A plan is an object of its fields, as a log's header has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minibit.conformance.file_protocols import file_of

__all__ = ["PLANS"]


def method_of(offered: Any, settings: Any) -> Any:
    """Return a method by what its settings have."""
    return (offered.Sampled if "perturbations" in settings else offered.Units)(**settings)


def planned(offered: Any, settings: Any, shapes: Any, seed: int, zeros: int) -> Any:
    """Return the fields of a method's plan."""
    return method_of(offered, settings).plan(shapes, seed, zeros).to_dict()


def sampled_propose(offered: Any, plan: Any, step: int, density: float) -> Any:
    """Return offsets, positions and signs of all perturbations, and their numerator."""
    made = offered.Plan.from_dict(plan)
    method = offered.Sampled(perturbations=made.perturbations, density=density)
    return (*method.propose(made, step),)


def units_propose(offered: Any, plan: Any, step: int) -> Any:
    """Return drawn units, and their inputs (none where all are candidates), of each layer."""
    made = offered.Plan.from_dict(plan)
    return (*map(list, offered.Units(units=made.units).propose(made, step)),)


def quotas(offered: Any, plan: Any, rate: float, step: int) -> Any:
    """Return the quotas of all layers."""
    made = offered.Plan.from_dict(plan)
    return (offered.Units(units=made.units, rate=rate).quotas(made, step),)


def start(offered: Any, shapes: Any, seed: int, method: str, zeros: float, settings: Any) -> Any:
    """Return the weights of a run that begins, and the fields of its plan."""
    model = offered.MLP()
    run = offered.NoiseStep.start(model, shapes, seed, method, zeros=zeros, **settings)
    return run.params, run.plan.to_dict()


def preset_settings(offered: Any, at: Any, **recipe: Any) -> Any:
    """Return units or the number of perturbations, and the rate or density at some steps."""
    method = offered.Preset(**recipe).settings()
    if recipe["method"] == "sampled":
        return method.perturbations, np.array([method.density(step) for step in at.tolist()])
    return [*method.units], np.array([method.rate(step) for step in at.tolist()])


def load_npz(offered: Any, file: Any, **args: Any) -> Any:
    """Return the four arrays, the digest, and the shape of a sample."""
    with file_of(file, "own.npz") as path:
        data = offered.load_npz(path, **args)
    arrays = data.train_x, data.train_y, data.test_x, data.test_y
    return *arrays, data.digest, [*data.sample_shape]


def dataset(offered: Any, **arrays: Any) -> Any:
    """Make a data set."""
    shape = arrays["train_x"].shape[1:]
    return offered.Dataset(**arrays, name="own", digest="0" * 64, sample_shape=shape)


def counted(offered: Any, **arrays: Any) -> Any:
    """Return how many features and classes a data set has."""
    data = dataset(offered, **arrays)
    return data.features, data.classes


def split(offered: Any, validation: int | None = None, **arrays: Any) -> Any:
    """Return samples and labels to train on, and to choose by."""
    return (*offered.split(dataset(offered, **arrays), validation),)


PLANS: dict[str, Callable[..., Any]] = {
    "Dataset": counted,
    "MLP.check": lambda offered, params: offered.MLP().check(params),
    "NoiseStep": lambda offered, params: offered.NoiseStep(offered.MLP(), params, 0, "units").steps,
    "NoiseStep.start": start,
    "Plan": lambda offered, **fields: offered.Plan(**fields).size,
    "Plan.from_dict": lambda offered, fields: offered.Plan.from_dict(fields).to_dict(),
    "Plan.to_dict": lambda offered, **fields: offered.Plan(**fields).to_dict(),
    "Preset": lambda offered, **recipe: {
        name: [*shape] for name, shape in offered.Preset(**recipe).shapes.items()
    },
    "Preset.settings": preset_settings,
    "Sampled.numerator": lambda offered, density: offered.Sampled().numerator(0, density),
    "Sampled.plan": planned,
    "Sampled.propose": sampled_propose,
    "Units.plan": planned,
    "Units.propose": units_propose,
    "Units.quotas": quotas,
    "load_mnist": lambda offered: offered.load_mnist().digest,
    "load_npz": load_npz,
    "read_idx": lambda offered, source: offered.read_idx(source.tobytes()),
    "split": split,
}
