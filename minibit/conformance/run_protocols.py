"""The meaning of a call of a run: its costs on paper, its plan, its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


COSTS = (
    *("memory_gb", "cache_bytes", "multiply_adds", "step_bytes", "step_seconds", "token_energy"),
    "largest_batch",
)
RUNS: dict[str, Callable[..., Any]] = {
    "initial_params": initial_params,
    "sparse_update": sparse_update,
    **{f"transformer.costs.{name}": cost(name) for name in COSTS},
}
