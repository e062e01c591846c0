"""``minibit experiment activations``: presets of noise_step with float and with int8 activations.

Each run keeps the validation split (the last 5,000 training images) apart and is judged on it: the
kind of activations is chosen here, and the test set has no say. Runs of the two kinds alternate, on
one thread, and so do the timed steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from minibit.bench import interleaved
from minibit.datasets import load_mnist
from minibit.layers import ACTIVATIONS
from minibit.noise_step import NoiseStep, forward, initial_params
from minibit.steps import StepLog
from minibit.training import PRESETS, model_of, train

__all__ = ["MEASURED", "compare_activations", "step_times"]

MEASURED = ("strict", "small", "accurate")  # `paper` stays as it was published
BATCH = 1024


def compare_activations(
    seeds: Sequence[int], say: Callable[[str], None], presets: Sequence[str] = MEASURED
) -> list[dict[str, Any]]:
    """Train each preset once a seed and kind of activations; one row a preset and kind."""
    rows = []
    for preset in presets:
        runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in ACTIVATIONS}
        for seed in seeds:
            for kind, found in runs.items():
                found.append(_run(preset, seed, kind))
                accuracy = found[-1]["validation_accuracy"]
                say(f"{preset}, {kind}, seed {seed}: {accuracy:.2%} of the validation images")
        times = step_times(preset)
        for kind, found in runs.items():
            reached = [run["validation_accuracy"] for run in found]
            rows.append(
                {
                    "preset": preset,
                    "activations": kind,
                    "validation_accuracy": float(np.mean(reached)),
                    "validation_accuracy_std": float(np.std(reached, ddof=min(1, len(found) - 1))),
                    "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in found])),
                    "milliseconds": times[kind],
                    "runs": found,
                }
            )
    return rows


def _run(preset: str, seed: int, kind: str) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        done = train(
            preset,
            seed,
            Path(folder) / "run.steps",
            workers=1,
            split_name="validation",
            activations=kind,
        )
    return {
        "seed": seed,
        "validation_accuracy": done.validation_accuracy,
        "log_bytes": done.log_bytes,
        "cpu_seconds": done.cpu_seconds,
    }


def step_times(preset: str, rounds: int = 15) -> dict[str, dict[str, float]]:
    """Median milliseconds of a forward pass and of a step on 1,024 images, on one thread.

    The steps are a run's first ones, in which no sample is learnt yet: all have tangents.

    Parameters
    ----------
    preset : str
    rounds : int
        How often each is timed, in turn.

    Returns
    -------
    dict
        For every kind of activations ``{"forward": ..., "step": ...}``.
    """
    data = load_mnist()
    x, y = data.train_x[:BATCH], data.train_y[:BATCH].astype(np.int64)
    work: dict[str, Callable[[], object]] = {}
    with TemporaryDirectory() as folder:
        for kind in ACTIVATIONS:
            path = Path(folder) / kind
            train(preset, 0, path, steps=0, workers=1, activations=kind)
            log = StepLog.open(path)
            model, recipe, start = model_of(log.header), PRESETS[preset], initial_params(log.plan)
            work[f"{kind} forward"] = lambda m=model, w=start: forward(m, w, x, y, 1)  # type: ignore[misc]
            stepper = NoiseStep(model, start, 0, recipe.settings(), workers=1)
            work[f"{kind} step"] = lambda s=stepper: s.step(x, y)  # type: ignore[misc]
    seconds = interleaved(work, seconds=0, least_rounds=rounds, warmups=1)
    return {
        kind: {
            part: 1e3 * float(np.median(seconds[f"{kind} {part}"])) for part in ("forward", "step")
        }
        for kind in ACTIVATIONS
    }
