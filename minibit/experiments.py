"""Long measurements that pages draw: one JSON file each, and the command that repeats it.

A chapter draws ``chapters/results/NAME.json`` and recomputes its cheapest point; nothing is typed
in by hand. ``minibit experiment NAME`` writes the file again.

May import: anything of minibit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minibit.bench import environment
from minibit.bench.training import train_runs
from minibit.training import PRESETS

__all__ = ["EXPERIMENTS", "experiment", "train_presets"]

Say = Callable[[str], None]


def train_presets(seeds: Sequence[int], say: Say) -> list[dict[str, Any]]:
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


EXPERIMENTS: dict[str, Callable[[Sequence[int], Say], list[dict[str, Any]]]] = {
    "train": train_presets,
}


def experiment(
    name: str, out: str | Path, seeds: Sequence[int] = (0, 1, 2), say: Say = print
) -> dict[str, Any]:
    """Run an experiment and write ``out/NAME.json``, whole or not at all.

    Parameters
    ----------
    name : str
        A key of `EXPERIMENTS`.
    out : path
        A folder; made if it is not there.
    seeds : sequence of int
        One run each.
    say : callable
        Gets a line after every run.

    Returns
    -------
    dict
        What the file holds: ``experiment``, ``command``, ``seeds``, ``environment``, ``rows``.

    Raises
    ------
    ValueError
        If the name is unknown or there is no seed.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"name must be one of {', '.join(EXPERIMENTS)}, got {name!r}")
    if not seeds:
        raise ValueError("seeds must not be empty")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "experiment": name,
        "command": f"minibit experiment {name} --seeds {' '.join(map(str, seeds))}",
        "seeds": list(seeds),
        "environment": environment(2),
        "rows": EXPERIMENTS[name](seeds, say),
    }
    part = folder / f"{name}.json.part"
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / f"{name}.json")
    return found
