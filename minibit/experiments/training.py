"""``minibit experiment train`` and ``activations``: presets of noise_step, over seeds.

`activations` keeps the validation split (the last 5,000 training images) apart and is judged on it:
the kind of activations is chosen here, and the test set has no say. Runs of the two kinds
alternate, on one thread, and so do the timed steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from minibit.bench import medians
from minibit.bench.training import scratch_run, train_run
from minibit.datasets import load_mnist
from minibit.experiments.runs import Row, Runs, mean_and_std
from minibit.layers import ACTIVATIONS
from minibit.noise_step import NoiseStep, forward, initial_params
from minibit.steps import StepLog
from minibit.training import PRESETS, model_of, train

__all__ = ["MEASURED", "compare_activations", "step_times", "train_presets"]

MEASURED = ("strict", "small", "accurate")  # `paper` stays as it was published
BATCH = 1024


def train_presets(seeds: Sequence[int], runs: Runs) -> list[Row]:
    """Train every preset once per seed on all training images; one row per preset."""
    line = "{preset}, seed {seed}: test accuracy {test_accuracy:.2%}, log {log_bytes:,} bytes, "
    line += "{cpu_seconds:.0f} CPU seconds"
    rows = []
    for name, recipe in PRESETS.items():
        settings = [{"preset": name, "seed": seed} for seed in seeds]
        done = runs.rows(preset_run, settings, line, here=True)
        rows.append(
            {
                "preset": name,
                "method": recipe.method,
                "steps": recipe.steps,
                "seeds": list(seeds),
                **mean_and_std(done, "test_accuracy"),
                "log_bytes": max(run["log_bytes"] for run in done),
                "packed_weight_bytes": done[0]["packed_weight_bytes"],
                "seconds": float(np.mean([run["seconds"] for run in done])),
                "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in done])),
                "runs": done,
            }
        )
    return rows


def preset_run(folder: Path, preset: str, seed: int) -> Row:
    """Train a preset on all CPUs."""
    return train_run(preset, seed)


def compare_activations(
    seeds: Sequence[int], runs: Runs, presets: Sequence[str] = MEASURED
) -> list[Row]:
    """Train each preset once per seed and kind of activations; one row per preset and kind."""
    line = "{preset}, {kind}, seed {seed}: {validation_accuracy:.2%} of the validation images"
    rows = []
    for preset in presets:
        settings = [{"preset": preset, "seed": s, "kind": k} for s in seeds for k in ACTIVATIONS]
        done = runs.rows(activations_run, settings, line, here=True)
        times = step_times(preset)
        for number, kind in enumerate(ACTIVATIONS):
            own = done[number :: len(ACTIVATIONS)]
            rows.append(
                {
                    "preset": preset,
                    "activations": kind,
                    **mean_and_std(own, "validation_accuracy"),
                    "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in own])),
                    "milliseconds": times[kind],
                    "runs": own,
                }
            )
    return rows


def activations_run(folder: Path, preset: str, seed: int, kind: str) -> Row:
    """Train a preset with one kind of activations, on one thread."""
    result = scratch_run(preset, seed, workers=1, split_name="validation", activations=kind)
    return {
        "seed": seed,
        "validation_accuracy": result.validation_accuracy,
        "log_bytes": result.log_bytes,
        "cpu_seconds": result.cpu_seconds,
    }


def step_times(preset: str, rounds: int = 15) -> dict[str, dict[str, float]]:
    """Median milliseconds of a forward pass and of a step on 1,024 images, on one thread.

    The steps are a run's first ones, in which no sample is learnt yet: all have tangents. Returned
    is for every kind of activations ``{"forward": ..., "step": ...}``.
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
    seconds = medians(work, seconds=0, least_rounds=rounds, warmups=1)
    return {
        kind: {part: 1e3 * seconds[f"{kind} {part}"] for part in ("forward", "step")}
        for kind in ACTIVATIONS
    }
