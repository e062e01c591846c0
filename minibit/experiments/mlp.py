"""``minibit experiment mlp``: Adam with straight-through on noise_step's network, and noise_step.

The network computes with the ternary codes of float weights that Adam moves (*latent* weights):

    codes = clip(round(w), -1, 1),   codes_dot = w_dot

which are what noise_step trains: int8, no scales, no biases. Learning rate, batch and image shifts
were chosen on the last 5,000 training images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit import layers
from minibit.datasets import load_mnist
from minibit.dual import straight_through
from minibit.experiments.runs import Row, Runs, over_seeds
from minibit.language import descend
from minibit.layers import cross_entropy, ternary_linear
from minibit.noise import BATCH, INITIAL, integers, uniform
from minibit.noise_step import MLP, digest
from minibit.steps import StepLog
from minibit.tape import Adam, value_and_grad
from minibit.training import MNIST_MEAN, MNIST_STD, PRESETS, evaluate, model_of, train
from minibit.training.course import shifted

__all__ = ["RUNS", "accuracy", "mlp", "straight_through_run", "ternary"]

RUNS = ((200, 5), (800, 5), (800, 1), (2400, 5))  # steps; shifts: none and one pixel each way
PRESET = "small"  # of noise_step, whose curve is drawn beside
RATE, SIZE = 0.02, 512
LOGIT_SCALE = 0.12
WIDTHS = (784, 256, 256, 256, 10)
ZEROS = 0.7  # share of zeros among the first codes
MODEL = MLP(LOGIT_SCALE, 1 / (255 * MNIST_STD), -MNIST_MEAN / MNIST_STD)

Codes = dict[str, NDArray[np.int8]]


@straight_through
def ternary(w: NDArray[Any]) -> NDArray[Any]:
    """Round latent weights to -1, 0, 1; the derivative is the identity."""
    codes: NDArray[Any] = np.clip(np.rint(w), -1, 1)
    return codes


def straight_through_run(
    seed: int,
    steps: int,
    shifts: int = 5,
    *,
    report: Callable[[int, float, Codes], None] = lambda step, seconds, codes: None,
) -> Codes:
    """Train the paper's MLP on MNIST by Adam with straight-through; return its codes.

    The seed names the first latent weights and all batches; the learning rate falls linearly from
    0.02 to 0. With 5 shifts images are taken as they are and moved by one pixel each way, with 1 as
    they are. `report` gets the step, CPU seconds so far without its own, and the codes: at 1, 2,
    4, ... steps and at the last.
    """
    data = load_mnist()
    labels = data.train_y.astype(np.int64)
    images = shifted(data.train_x, shifts, (28, 28))  # (shifts, samples, 784)
    latent = {}
    for layer, (n_in, n_out) in enumerate(pairwise(WIDTHS), 1):
        share = 2 * uniform(seed, (n_out, n_in), domain=INITIAL, lane=layer) - 1
        latent[f"w{layer}"] = (0.5 / ZEROS * share).astype(np.float32)

    def loss(params: dict[str, Any], x: NDArray[Any], y: NDArray[Any]) -> Any:
        logits = layers.mlp(
            params, x, logit_scale=LOGIT_SCALE, linear=lambda h, w: ternary_linear(h, ternary(w))
        )
        return cross_entropy(logits, y)

    def slope(latent: dict[str, Any], step: int) -> tuple[Any, Any]:
        pair = integers(seed, len(labels) * shifts, SIZE, domain=BATCH, step=step)
        sample, shift = pair // shifts, pair % shifts
        x = images[shift, sample].astype(np.float32) * np.float32(MODEL.input_scale)  # (batch, 784)
        return value_and_grad(loss)(latent, x + np.float32(MODEL.input_offset), labels[sample])

    optimizer, seconds, begin = Adam(latent), 0.0, time.process_time()

    def progress(done: int, _: float, latent: dict[str, Any]) -> None:
        nonlocal seconds, begin
        if done & (done - 1) == 0 or done == steps:
            seconds += time.process_time() - begin
            report(done, seconds, _codes(latent))
            begin = time.process_time()

    descend(optimizer, slope, lambda step: {"lr": RATE * (1 - step / steps)}, steps, progress)
    return _codes(optimizer.params)


def _codes(latent: dict[str, NDArray[Any]]) -> Codes:
    """Round latent weights for good."""
    return {name: ternary(w).astype(np.int8) for name, w in latent.items()}


def accuracy(codes: Codes, model: MLP = MODEL) -> float:
    """Share of the test images that ternary weights label rightly."""
    data = load_mnist()
    return evaluate(codes, model, data.test_x, data.test_y.astype(np.int64), threads=1)


def mlp(seeds: Sequence[int], runs: Runs) -> list[Row]:
    """Train on all training images: Adam for some numbers of steps, then noise_step once."""
    rows = []
    line = "Adam, {steps} steps, {shifts} shifts, seed {seed}: {test_accuracy:.2%}"
    for steps, shifts in RUNS:
        settings = [{"steps": steps, "shifts": shifts, "seed": seed} for seed in seeds]
        done = runs.rows(adam_run, settings, line, here=True)
        rows.append(_row("Adam, straight-through", steps, shifts, done))
    line = f"noise_step {PRESET}, seed {{seed}}: {{test_accuracy:.2%}}"
    done = runs.rows(noise_step_run, [{"seed": seeds[0]}], line, here=True)
    recipe = PRESETS[PRESET]
    return [*rows, _row(f"noise_step {PRESET}", recipe.steps, recipe.shifts, done)]


def adam_run(folder: Path, steps: int, shifts: int, seed: int) -> Row:
    """Train by Adam, and measure on the way."""
    curve: list[tuple[int, float, float]] = []
    codes = straight_through_run(
        seed, steps, shifts, report=lambda n, t, w: curve.append((n, t, accuracy(w)))
    )
    return _run(seed, codes, curve)


def noise_step_run(folder: Path, seed: int) -> Row:
    """Train a preset, then replay its log to see the way."""
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "run.steps"
        result = train(PRESET, seed, path, threads=1)
        if result.interrupted:  # part of a run is no measurement
            raise KeyboardInterrupt
        log = StepLog.open(path)
        share = np.cumsum(result.step_seconds) / np.sum(result.step_seconds)
        marks = [n for n in range(1, result.steps) if n & (n - 1) == 0]
        model = model_of(log.header)
        curve = [
            (n, float(result.cpu_seconds * share[n - 1]), accuracy(log.replay(n), model))
            for n in [*marks, result.steps]
        ]
        return _run(seed, log.replay(), curve)


def _run(seed: int, codes: Codes, curve: list[tuple[int, float, float]]) -> Row:
    """Return the row of a run, whose last values are those of the end of its curve."""
    _, seconds, reached = curve[-1]
    summary = {"seed": seed, "test_accuracy": reached, "cpu_seconds": seconds}
    return {**summary, "digest": digest(codes), "curve": curve}


def _row(method: str, steps: int, shifts: int, done: list[Row]) -> Row:
    """Return the row of a method: means over its runs."""
    about = {"method": method, "steps": steps, "shifts": shifts}
    return about | over_seeds(done, "test_accuracy", "cpu_seconds")
