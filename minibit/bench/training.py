"""``bench train`` and ``bench step``: what a training run comes to, and what a step costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit import training
from minibit.bench import Figure, Options, Report, medians
from minibit.datasets import load_mnist
from minibit.dual import jvp
from minibit.layers import mlp
from minibit.noise import initial_codes
from minibit.noise_step import MLP, geometric, unit_tangents

__all__ = ["scratch_run", "step", "step_cost", "train", "train_run"]

Floats = NDArray[np.float32]

# Per preset: least mean test accuracy, most seconds of a run, most bytes of a log.
BARS: dict[str, tuple[float | None, float | None, float | None]] = {
    "small": (0.963, 60.0, 40_000.0),
    "paper": (0.89, None, None),
    "strict": (0.94, None, 40_500.0),
    "accurate": (0.978, 300.0, 250_000.0),
}
STEP_BARS = {"strict": 20.0, "accurate": 3.0}  # forward passes of the step's own batch
FIELDS = (  # of a run
    *("test_accuracy", "digest", "steps", "log_bytes", "packed_weight_bytes", "seconds"),
    *("compile_seconds", "cpu_seconds"),
)
KINDS = {"step_seconds": "a step", "forward": "a forward pass", "own": "its own forward pass"}


def train(options: Options) -> Report:
    """Train a preset with several seeds: means and spreads of what a run comes to.

    Seconds are the wall time of a whole run to its closed log, without ``compile_seconds``.
    """
    preset = options.preset or "small"
    runs = [train_run(preset, seed, threads=options.threads) for seed in options.seeds]
    columns = {name: [run[name] for run in runs] for name in runs[0]}
    accuracy, seconds = columns["test_accuracy"], columns["wall_seconds"]
    least_accuracy, most_seconds, most_bytes = BARS[preset]
    several = [
        Figure("test accuracy, standard deviation", stdev(accuracy), "share"),
        Figure("test accuracy, lowest", min(accuracy), "share"),
    ] if len(runs) > 1 else []  # fmt: skip
    count = f"mean of {len(runs)} seeds" if several else "1 seed"
    figures = [
        Figure(f"test accuracy, {count}", mean(accuracy), "share", least_accuracy),
        *several,
        Figure("seconds, longest run", max(seconds), "s", most_seconds, at_least=False),
        Figure(f"seconds, {count}", mean(seconds), "s"),
        Figure("log, largest", max(columns["log_bytes"]), "bytes", most_bytes, at_least=False),
        Figure("weights at five trits per byte", columns["packed_weight_bytes"][0], "bytes"),
    ]
    note = (
        f"Preset {preset}, seeds {', '.join(map(str, options.seeds))}, trained on all training "
        "images. Seconds are those of a whole run without compilation, which took "
        f"{max(columns['compile_seconds']):.1f} s at most."
    )
    return Report(figures, [note], {"preset": preset, "runs": runs})


def scratch_run(preset: str, seed: int, **settings: Any) -> training.TrainResult:
    """Train with a log that is removed; settings are those of `minibit.training.train`."""
    with tempfile.TemporaryDirectory() as folder:
        result = training.train(preset, seed, Path(folder) / "run.steps", **settings)
    if result.interrupted:  # part of a run is no measurement
        raise KeyboardInterrupt
    return result


def train_run(preset: str, seed: int, **settings: Any) -> dict[str, Any]:
    """Train once, as `scratch_run`, and return what the run came to, JSON types."""
    start = time.perf_counter()
    result = scratch_run(preset, seed, **settings)
    wall = time.perf_counter() - start - result.compile_seconds
    return {"seed": seed, **{name: getattr(result, name) for name in FIELDS}, "wall_seconds": wall}


def step(options: Options) -> Report:
    """Measure a step of ``strict`` and of ``accurate`` in forward passes of its own batch.

    About twice a second the run pauses, and NumPy float32 forward passes of the present batch size
    are timed; a step's cost is its seconds over those of the forward passes nearest to it.
    """
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    for preset in [options.preset] if options.preset else STEP_BARS:
        cost = details[preset] = step_cost(preset, threads=options.threads or 1)
        title = f"{preset}: a step, mean of {len(cost['step_seconds'])}"
        passes, unit = cost["forward_passes"], "forward passes"
        figures.append(Figure(title, passes, unit, STEP_BARS[preset], at_least=False))
        for column, words in KINDS.items():
            figures.append(Figure(f"{preset}: {words}", 1e3 * mean(cost[column]), "ms"))
        figures.append(Figure(f"{preset}: a step by its own", cost["own_forward_passes"], unit))
        if cost["naive_forward_passes"] is not None:
            title = f"{preset}: {cost['perturbations']} naive dense JVPs"
            figures.append(Figure(title, cost["naive_forward_passes"], unit))
    note = (
        "A forward pass is NumPy's, in float32, of the step's own batch, on as many threads; the "
        "preset's own, which may round activations to int8, is given beside it. A step is all of "
        "it: drawing the batch, forward pass, tangents, choice, new weights."
    )
    return Report(figures, [note], details)


def step_cost(preset: str, *, steps: int | None = None, threads: int = 1) -> dict[str, Any]:
    """Run a preset, or its first steps, timing them against forward passes of the same batch.

    Returned are ``forward_passes``: mean over all steps; ``step_seconds``: of each step; ``at``,
    ``forward``: the steps at which the run paused, and the seconds of a forward pass then; ``own``
    and ``own_forward_passes``: the same of the preset's own forward pass; ``perturbations`` and
    ``naive_forward_passes``: what as many dense JVPs would cost, None for a method without.
    """
    recipe = training.PRESETS[preset]
    sizes = geometric(*recipe.batch, recipe.steps)
    images, labels = load_mnist().train_x, load_mnist().train_y
    codes = {
        f"w{layer + 1}": initial_codes(0, (n_out, n_in), recipe.zeros, layer)
        for layer, (n_in, n_out) in enumerate(pairwise(recipe.widths))
    }
    weights = {name: w.astype(np.float32) for name, w in codes.items()}
    model = MLP(recipe.logit_scale, 1 / 255, activations=recipe.activations)
    at: list[int] = []
    times: dict[str, list[float]] = {"forward": [], "own": [], "naive": []}

    def pause(progress: training.Progress) -> None:
        batch = images[: round(sizes(progress.step - 1))]
        x = batch.astype(np.float32) / np.float32(255)  # (batch, n_in)
        candidates = {
            "forward": lambda: numpy_forward(weights, x),
            "own": lambda: unit_tangents.forward(model, codes, batch, labels[: len(x)], threads),
        }
        at.append(progress.step)
        for name, seconds in medians(candidates, seconds=0, least_rounds=3, warmups=1).items():
            times[name].append(seconds)
        if recipe.method == "sampled" and len(times["naive"]) < 5:
            start = time.perf_counter()
            naive_jvp(weights, x)
            times["naive"].append((time.perf_counter() - start) / times["forward"][-1])

    result = scratch_run(preset, 0, steps=steps, threads=threads, progress=pause)
    seconds, naive = result.step_seconds, times.pop("naive")
    count = recipe.perturbations if recipe.method == "sampled" else 0
    return {
        "preset": preset,
        "threads": threads,
        "forward_passes": float(in_forward_passes(seconds, at, times["forward"]).mean()),
        "step_seconds": [round(float(s), 7) for s in seconds],
        "at": at,
        **times,
        "own_forward_passes": float(in_forward_passes(seconds, at, times["own"]).mean()),
        "perturbations": count,
        "naive_forward_passes": count * float(np.median(naive)) if naive else None,
    }


def in_forward_passes(
    step_seconds: NDArray[np.float64], at: list[int], forward: list[float]
) -> NDArray[np.float64]:
    """Divide each step's seconds by those of a forward pass at the next pause, or at the last.

    `at` says how many steps were done at each pause, increasing.
    """
    numbers = np.arange(1, len(step_seconds) + 1)  # (steps,)
    pauses = np.minimum(np.searchsorted(at, numbers), len(at) - 1)
    ratios: NDArray[np.float64] = step_seconds / np.array(forward)[pauses]
    return ratios


def numpy_forward(weights: Mapping[str, Floats], x: Floats) -> Floats:
    """Return the logits of `minibit.layers.mlp` in plain NumPy, in place where that is quicker."""
    *hidden, last = weights.values()
    for w in hidden:
        x = x @ w.T  # (batch, n_out)
        x -= x.mean(axis=1, keepdims=True)
        variance = np.einsum("bi,bi->b", x, x) / np.float32(x.shape[1])
        x *= (1 / np.sqrt(variance + np.float32(1e-5)))[:, None]
        np.maximum(x, 0, out=x)
    return x @ last.T  # (batch, classes)


def naive_jvp(weights: Mapping[str, Floats], x: Floats) -> Floats:
    """Return the tangent of the logits along one dense direction, by `minibit.dual.jvp`."""
    ones = {name: np.ones_like(w) for name, w in weights.items()}
    tangent: Floats = jvp(lambda params: mlp(params, x), (dict(weights),), (ones,))[1]
    return tangent
