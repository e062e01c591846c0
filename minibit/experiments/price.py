"""What an experiment will cost, from the seconds that its recorded runs took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minibit.experiments.cluster import STEPS
from minibit.results import load_results

__all__ = ["cpu_seconds"]


def cpu_seconds(name: str, seeds: Sequence[int]) -> float:
    """Estimate the CPU seconds of an experiment with so many seeds.

        seconds of the first recorded seed + (seeds - 1) x mean of the others

    The first seed may have runs that the others have not. Where a run's CPU time is not recorded,
    its wall time stands for it. The models of `nf4` are the float ones of `language`, and a run of
    `cluster` takes `STEPS` steps of preset ``strict``.

    Examples
    --------
    >>> cpu_seconds("mlp", (0, 1)) < cpu_seconds("mlp", (0, 1, 2)) < 600
    True
    """
    by_seed: dict[int, float] = {}
    for run in _runs(name):
        seconds = run.get("cpu_seconds", run.get("seconds", 0.0))
        by_seed[run["seed"]] = by_seed.get(run["seed"], 0.0) + seconds
    first, *others = by_seed.values()
    each = sum(others) / len(others) if others else first
    return first + (len(seeds) - 1) * each


def _runs(name: str) -> list[dict[str, Any]]:
    """List the recorded runs of an experiment, or those of another that did the same work."""
    rows = load_results({"nf4": "language"}.get(name, name))["rows"]
    runs = [run for row in rows for run in row.get("runs", [row]) if "seed" in run]
    if name == "nf4":
        return [run for run in runs if run["weights"] == "float" and run["sub_norms"]]
    if name == "cluster":
        strict = next(row for row in load_results("train")["rows"] if row["preset"] == "strict")
        return [
            run | {"cpu_seconds": strict["cpu_seconds"] * STEPS / strict["steps"]} for run in runs
        ]
    return runs
