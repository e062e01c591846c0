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


COSTS = (
    *("memory_gb", "cache_bytes", "multiply_adds", "step_bytes", "step_seconds", "token_energy"),
    "largest_batch",
)
RUNS: dict[str, Callable[..., Any]] = {
    **{f"transformer.costs.{name}": cost(name) for name in COSTS},
}
