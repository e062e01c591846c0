"""``minibit experiment train`` and ``activations``: presets of noise_step, over seeds.

`activations` is judged on the validation split (the last 5,000 training images): the kind of
activations is chosen here, and the test set has no say. Runs of the two kinds alternate, on one
thread, and so do the timed steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from minibit import training
from minibit.bench import medians
from minibit.bench.training import scratch_run, train_run
from minibit.datasets import load_mnist
from minibit.experiments.runs import Row, Runs, over_seeds
from minibit.layers import ACTIVATIONS
from minibit.noise_step import NoiseStep, forward, initial_params
from minibit.steps import StepLog
from minibit.training import PRESETS, model_of

__all__ = ["MEASURED", "activations", "train"]

MEASURED = ("strict", "small", "accurate")  # `paper` stays as it was published
BATCH = 1024


def train(seeds: Sequence[int], runs: Runs) -> list[Row]:
    """Train every preset once per seed on all training images; one row per preset."""
    line = "{preset}, seed {seed}: test accuracy {test_accuracy:.2%}, log {log_bytes:,} bytes, "
    line += "{cpu_seconds:.0f} CPU seconds"
    rows: list[Row] = []
    for name, recipe in PRESETS.items():
        settings = [{"preset": name, "seed": seed} for seed in seeds]
        done = runs.rows(preset_run, settings, line, here=True)
        about = {"preset": name, "method": recipe.method, "steps": recipe.steps, "seeds": [*seeds]}
        about["log_bytes"] = max(run["log_bytes"] for run in done)
        about["packed_weight_bytes"] = done[0]["packed_weight_bytes"]
        rows.append(about | over_seeds(done, "test_accuracy", "seconds", "cpu_seconds"))
    return rows


def preset_run(folder: Path, preset: str, seed: int) -> Row:
    """Train a preset on all CPUs."""
    return train_run(preset, seed)


def activations(seeds: Sequence[int], runs: Runs, presets: Sequence[str] = MEASURED) -> list[Row]:
    """Train each preset once per seed and kind of activations; one row per preset and kind."""
    line = "{preset}, {kind}, seed {seed}: {validation_accuracy:.2%} of the validation images"
    rows: list[Row] = []
    for preset in presets:
        settings = [{"preset": preset, "seed": s, "kind": k} for s in seeds for k in ACTIVATIONS]
        done = runs.rows(activations_run, settings, line, here=True)
        times = step_times(preset)
        for number, kind in enumerate(ACTIVATIONS):
            own = over_seeds(done[number :: len(ACTIVATIONS)], "validation_accuracy", "cpu_seconds")
            about = {"preset": preset, "activations": kind, "milliseconds": times[kind]}
            rows.append(about | own)
    return rows


def activations_run(folder: Path, preset: str, seed: int, kind: str) -> Row:
    """Train a preset with one kind of activations, on one thread."""
    result = scratch_run(preset, seed, threads=1, split_name="validation", activations=kind)
    names = ("validation_accuracy", "log_bytes", "cpu_seconds")
    return {"seed": seed, **{name: getattr(result, name) for name in names}}


def step_times(preset: str, rounds: int = 15) -> dict[str, dict[str, float]]:
    """Median milliseconds by kind of a ``forward`` pass and a ``step`` on 1,024 images, one thread.

    The steps are a run's first ones, in which no sample is learnt yet: all have tangents.
    """
    data = load_mnist()
    x, y = data.train_x[:BATCH], data.train_y[:BATCH].astype(np.int64)
    work: dict[str, Callable[[], object]] = {}
    with TemporaryDirectory() as folder:
        for kind in ACTIVATIONS:
            path = Path(folder) / kind
            training.train(preset, 0, path, steps=0, threads=1, activations=kind)
            log = StepLog.open(path)
            model, start = model_of(log.header), initial_params(log.plan)
            work[f"{kind} forward"] = partial(forward, model, start, x, y, 1)
            stepper = NoiseStep(model, start, 0, PRESETS[preset].settings(), threads=1)
            work[f"{kind} step"] = partial(stepper.step, x, y)
    seconds = medians(work, seconds=0, least_rounds=rounds, warmups=1)
    return {
        kind: {part: 1e3 * seconds[f"{kind} {part}"] for part in ("forward", "step")}
        for kind in ACTIVATIONS
    }
