"""``minibit experiment train``: every preset, over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minibit.bench.training import train_runs
from minibit.training import PRESETS

__all__ = ["train_presets"]


def train_presets(seeds: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Train every preset once a seed on all training images; one row a preset."""
    rows = []
    for name, recipe in PRESETS.items():
        runs = []
        for seed in seeds:
            (run,) = train_runs(name, (seed,))
            runs.append(run)
            say(
                f"{name}, seed {seed}: test accuracy {run['test_accuracy']:.2%}, "
                f"log {run['log_bytes']:,} bytes, {run['cpu_seconds']:.0f} CPU seconds"
            )
        accuracy = np.array([run["test_accuracy"] for run in runs])
        rows.append(
            {
                "preset": name,
                "method": recipe.method,
                "steps": recipe.steps,
                "seeds": list(seeds),
                "test_accuracy": float(accuracy.mean()),
                "test_accuracy_std": float(accuracy.std(ddof=1)) if len(runs) > 1 else 0.0,
                "log_bytes": max(run["log_bytes"] for run in runs),
                "packed_weight_bytes": runs[0]["packed_weight_bytes"],
                "seconds": float(np.mean([run["seconds"] for run in runs])),
                "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in runs])),
                "runs": runs,
            }
        )
    return rows
