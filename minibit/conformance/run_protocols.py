"""The meaning of a call of a run: its costs on paper, its plan, its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minibit.conformance.file_protocols import file_of

__all__ = ["RUNS"]


def cost(name: str) -> Callable[..., Any]:
    """Return a function of costs that takes the sizes of a model, and of a weight, by name."""

    def call(offered: Any, shape: Any, weights: Any = None, **args: Any) -> Any:
        """Make a shape, and weights where the cost depends on them."""
        costs = offered.transformer.costs
        held = {} if weights is None else {"weights": costs.Weights(**weights)}
        out = getattr(costs, name)(costs.Shape(**shape), **held, **args)
        return [*out] if name == "token_energy" else out

    return call


def initial_params(offered: Any, plan: Any) -> Any:
    """Take the plan as a header has it."""
    return offered.initial_params(offered.Plan.from_dict(plan))


def sparse_update(offered: Any, plan: Any, step: int, choice: Any) -> Any:
    """Take the plan as a header has it."""
    return (*offered.sparse_update(offered.Plan.from_dict(plan), step, choice),)


def noise_step(
    offered: Any,
    model: Any,
    params: Any,
    seed: int,
    method: str,
    step: int,
    steps: int,
    settings: Any,
    x: Any,
    y: Any,
    weight: Any,
) -> Any:
    """Take steps on one batch, the first of number `step`; all floats as float64.

    Returns losses (steps,), 1 - p_y (steps, batch), of each step alignments and scores per layer
    and the choice, and the weights after all.
    """
    run = offered.NoiseStep(offered.MLP(**model), params, seed, method, **settings)
    run.steps = step
    results = [run.step(x, y, weight=weight) for _ in range(steps)]
    return (
        np.array([result.loss for result in results]),
        np.array([result.hardness for result in results], float),
        [doubles(result.alignments) for result in results],
        [doubles(result.scores) for result in results],
        [vars(result.record) for result in results],
        run.params,
    )


def doubles(arrays: Any) -> Any:
    """Return a list of float arrays as float64."""
    return [np.asarray(array, float) for array in arrays]


def mlp(offered: Any, params: Any, x: Any, **constants: Any) -> Any:
    """Return the logits of a model with its constants, as float64."""
    return np.asarray(offered.MLP(**constants)(params, x), float)


def sums(name: str) -> Callable[..., Any]:
    """Return a function of sums: alignments, squares, losses, 1 - p_y, and who is right."""

    def call(offered: Any, model: Any, **args: Any) -> Any:
        """Make the model."""
        out = getattr(offered, name)(offered.MLP(**model), **args)
        floats = np.asarray(out.loss, float), np.asarray(out.hardness, float)
        return doubles(out.alignments), doubles(out.squares), *floats, out.correct

    return call


def evaluate(offered: Any, params: Any, model: Any, x: Any, y: Any) -> Any:
    """Make the model."""
    return offered.evaluate(params, offered.MLP(**model), x, y)


def draw(
    offered: Any,
    table: Any,
    seed: int,
    threshold: float,
    easy_share: float,
    step: int,
    n: int,
) -> Any:
    """Draw a batch by what is remembered of samples and shifts: samples, shifts, weights."""
    samples, shifts = table.shape
    images, labels = np.zeros((shifts, samples, 1), np.uint8), np.zeros(samples, np.int64)
    pool = offered.training.course.Pool(images, labels, seed, threshold, easy_share)
    pool.hard[:] = table
    return pool.draw(step, n)


def train(offered: Any, file: Any, images: Any, labels: Any, steps: int) -> Any:
    """Go on with the run in `file`: the choices of its next steps, and the weights after them."""
    flat = images.reshape(len(images), -1)
    data = offered.Dataset(flat, labels, flat, labels, "own", "0" * 64, images.shape[1:])
    with file_of(file, "run.steps") as path:
        done = len(offered.StepLog.open(path))
        offered.train(out=path, resume=True, dataset=data, threads=1, steps=done + steps)
        log = offered.StepLog.open(path)
        return [vars(step) for step in log.steps()][done:], log.replay()


COSTS = (
    *("memory_gb", "cache_bytes", "multiply_adds", "step_bytes", "step_seconds", "token_energy"),
    "largest_batch",
)
RUNS: dict[str, Callable[..., Any]] = {
    "MLP": mlp,
    "NoiseStep.step": noise_step,
    "direction_sums_by_jvp": sums("direction_sums_by_jvp"),
    "evaluate": evaluate,
    "initial_params": initial_params,
    "sparse_update": sparse_update,
    "train": train,
    "training.course.Pool.draw": draw,
    "unit_sums_by_jvp": sums("unit_sums_by_jvp"),
    **{f"transformer.costs.{name}": cost(name) for name in COSTS},
}
