"""``minibit experiment topk``: language models with sparse inputs of all projections.

Dense and sparse models of the recipe of `minibit.language`, float and b1.58, with top-K and squared
ReLU together; sparsity against loss; straight-through against the masked gradient, by depth and by
sparsity; dense models that become sparse, on the text they know and on another. Every run is a
process of its own with one thread, two at a time.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minibit.absmean import absmax_quantize
from minibit.bench.language import keep_freed_memory
from minibit.datasets import load_text
from minibit.experiments.runs import dense_model, folder_of_runs, in_own_process, keep, kept
from minibit.language import (
    LINEAR,
    Optimizer,
    Recipe,
    draw_batch,
    evaluate_loss,
    learning_rate,
    loss_and_gradient,
    recipe,
    shipped_text,
)
from minibit.topk import SITES, sparsifier
from minibit.transformer import BitNetConfig, forward, init_params

__all__ = ["FORTY", "Run", "gradient_norms", "topk", "train_sparse", "zeros"]

FORTY = 0.36  # share of zeros by top-K at every site: with squared ReLU, 40% of all or more
SWEEP = (0.6, 0.8)
SHORT = 651  # steps of the runs that compare gradients: a third
LATER = 390  # steps of a dense model that becomes sparse: a fifth
MEASURED = 64  # rows of the held-out text on which zeros are counted
LATE = 200  # batches whose mean is the late training loss

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What is trained.

    Attributes
    ----------
    kind : str
        ``scratch``, ``gradient`` (short), ``continue`` or ``finetune`` (from a dense model).
    size, weights, seed
        As in `minibit.language`.
    sparsity : float
        Share of zeros by top-K at every site; 0 for a dense model.
    straight : bool
        Straight-through, or the masked gradient.
    layers : int
        Blocks.
    """

    kind: str
    size: str
    weights: Any
    seed: int
    sparsity: float
    straight: bool = True
    layers: int = 2

    @property
    def name(self) -> str:
        """Name of its file."""
        how = "straight" if self.straight else "masked"
        return (
            f"{self.kind}_{self.size}_{self.weights}_{self.seed}_{self.sparsity}_{how}_"
            f"{self.layers}"
        )

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        made = recipe(self.size, self.weights, layers=self.layers)
        if self.kind == "gradient":
            return dataclasses.replace(made, steps=SHORT)
        if self.kind in ("continue", "finetune"):
            return dataclasses.replace(made, steps=LATER, peak=made.peak / 2, weight_decay=0.0)
        return made


def wanted(seeds: Sequence[int]) -> list[Run]:
    """List the runs: the first seed does where one has to."""
    both = list(LINEAR)
    runs = [
        Run("scratch", size, weights, seed, sparsity)
        for sparsity in (0.0, FORTY)
        for seed in seeds
        for size in ("221k", "55k")
        for weights in both
    ]
    runs += [
        Run("gradient", "55k", "float", seeds[0], sparsity, straight, layers)
        for layers in (2, 4)
        for sparsity in (0.3, 0.6, 0.8)
        for straight in (True, False)
    ]
    runs += [
        Run(kind, "221k", weights, seeds[0], sparsity)
        for kind in ("continue", "finetune")
        for weights in both
        for sparsity in (0.0, FORTY)
    ]
    runs += [
        Run("scratch", "55k", weights, seeds[0], sparsity) for weights in both for sparsity in SWEEP
    ]
    return runs + [Run("scratch", "885k", weights, seeds[0], 0.0) for weights in both]


def topk(
    seeds: Sequence[int], say: Callable[[str], None], folder: str | Path | None = None
) -> list[dict[str, Any]]:
    """Train every model of `wanted`.

    Parameters
    ----------
    seeds : sequence of int
    say : callable
        Gets a line after every run.
    folder : path, optional
        Keeps the runs; those that are there already are not repeated, nor is a dense model that
        ``minibit experiment language`` left there (``SIZE_WEIGHTS_SEED.npz``: the same recipe). By
        default a scratch folder, which is removed.

    Returns
    -------
    list of dict
        One row a run, in the order of `wanted`.
    """
    runs = wanted(seeds)
    dense = [run for run in runs if run.kind == "scratch" and not run.sparsity]
    rest = [run for run in runs if run not in dense]

    def ready(run: Run) -> dict[str, Any]:
        found = _in_own_process(run, place)
        say(f"{run.name}: validation {found['validation_loss']:.4f}, {found['seconds']:.0f} s")
        return found

    with folder_of_runs(folder) as place, ThreadPoolExecutor(2) as pool:
        rows = dict(zip(dense, pool.map(ready, dense), strict=True))
        rows |= dict(zip(rest, pool.map(ready, rest), strict=True))
    return [rows[run] for run in runs]


def one_run(run: Run, folder: Path) -> dict[str, Any]:
    """Train one model in this process, measure it, and keep what it came to."""
    vocabulary, train, validation = shipped_text()
    made = run.recipe
    config, linear = made.config(len(vocabulary)), LINEAR[run.weights]
    sparsify = sparsifier(run.sparsity, straight=run.straight) if run.sparsity else None
    found: dict[str, Any] = {}
    if run.kind == "finetune":
        text = load_text().upper()
        tokens = vocabulary.encode(text)
        train, validation = tokens[: len(train)], tokens[len(train) :]
    loss = partial(evaluate_loss, config, tokens=validation, linear=linear, sparsify=sparsify)
    if run.kind in ("continue", "finetune"):
        start = dense_model(run.size, run.weights, run.seed, folder).params
        found["before"] = loss(start, sparsify=None)
        found["cut"] = loss(start)
    else:
        start = init_params(config, run.seed)
    begin = time.perf_counter()
    if run.kind == "scratch" and not run.sparsity:
        dense = dense_model(run.size, run.weights, run.seed, folder)
        params, losses, seconds = dense.params, dense.losses, dense.seconds
    else:
        params, losses = train_sparse(made, start, train, run.seed, sparsify)
        seconds = time.perf_counter() - begin
    x, y = draw_batch(validation, run.seed, 0, made.batch, made.context)
    found |= {
        **asdict(run),
        "projections": made.projections,
        "recipe": asdict(made),
        "seconds": seconds,
        "validation_loss": loss(params),
        "late_training_loss": float(losses[-LATE:].mean()),
        "start": [float(loss) for loss in losses[:50]],
        "zeros": zeros(config, params, validation, linear, sparsify),
    }
    if run.kind == "gradient":
        found["gradient_norms"] = gradient_norms(config, params, x, y, linear, sparsify)
    keep(folder / f"{run.name}.json", found)
    return found


def train_sparse(
    made: Recipe,
    params: Params,
    tokens: Any,
    seed: int,
    sparsify: Callable[[Any, str], Any] | None,
    stop: int | None = None,
) -> tuple[dict[str, Any], Any]:
    """Train as `minibit.language.train_language` does, with sparse inputs; params and losses.

    With `sparsify` None and initial parameters it does the same to the bit.
    """
    vocabulary = shipped_text()[0]
    config, linear = made.config(len(vocabulary)), LINEAR[made.weights]
    current: dict[str, Any] = dict(params)
    optimizer = Optimizer(current)
    steps = made.steps if stop is None else min(stop, made.steps)
    losses = np.empty(steps, np.float32)
    for step in range(steps):
        x, y = draw_batch(tokens, seed, step, made.batch, made.context)
        losses[step], gradient = loss_and_gradient(
            config, current, x, y, linear=linear, sparsify=sparsify
        )
        decay = made.weight_decay if step < made.steps / 2 else 0.0
        current = optimizer.step(gradient, learning_rate(made, step), decay, made.clip)
    return current, losses


def zeros(
    config: BitNetConfig,
    params: Params,
    tokens: Any,
    linear: Any,
    sparsify: Callable[[Any, str], Any] | None,
) -> dict[str, Any]:
    """Count zeros at every site, and the share of weights that they leave out.

    Returns
    -------
    dict
        ``sites``: site to shares of zeros ``before`` top-K (of squared ReLU), ``after`` it, and
        ``in_int8`` after rounding, too. ``squared_relu``, ``overall`` and ``in_int8``: the same,
        weighted by the weights that an input meets.
    """
    seen: dict[str, list[tuple[float, float, float]]] = {site: [] for site in SITES}

    def watch(x: Any, site: str) -> Any:
        y = x if sparsify is None else sparsify(x, site)
        shares = (np.mean(x == 0), np.mean(y == 0), np.mean(absmax_quantize(y)[0] == 0))
        seen[site].append((float(shares[0]), float(shares[1]), float(shares[2])))
        return y

    context = config.max_positions
    x = tokens[: MEASURED * context].reshape(MEASURED, context)
    forward(config, params, x, linear=linear, sparsify=watch)
    hidden, inner, kept = (
        config.hidden_size,
        config.intermediate_size,
        config.kv_heads * config.head_dim,
    )
    weights = {
        "qkv": hidden * (hidden + 2 * kept),
        "o": hidden * hidden,
        "gate_up": 2 * hidden * inner,
        "down": inner * hidden,
    }
    names = ("before", "after", "in_int8")
    sites = {
        site: dict(zip(names, (float(s) for s in np.mean(shares, axis=0)), strict=True))
        for site, shares in seen.items()
    }
    total = sum(weights.values())
    overall = {
        name: sum(sites[site][name] * weights[site] for site in SITES) / total for name in names
    }
    return {
        "sites": sites,
        "squared_relu": overall["before"],
        "overall": overall["after"],
        "in_int8": overall["in_int8"],
    }


def gradient_norms(
    config: BitNetConfig,
    params: Params,
    x: Any,
    y: Any,
    linear: Any,
    sparsify: Callable[[Any, str], Any] | None,
) -> dict[str, float]:
    """Length of the gradient of every projection, for one batch."""
    _, gradient = loss_and_gradient(config, params, x, y, linear=linear, sparsify=sparsify)
    return {
        name: float(np.linalg.norm(g)) for name, g in gradient.items() if name.endswith("_proj")
    }


def _in_own_process(run: Run, folder: Path) -> dict[str, Any]:
    """Run `one_run` in a process with one thread, unless its file is there."""
    path = folder / f"{run.name}.json"
    if not path.exists():
        in_own_process(__name__, json.dumps(asdict(run)), str(folder))
    return kept(path)


if __name__ == "__main__":
    keep_freed_memory()
    one_run(Run(**json.loads(sys.argv[1])), Path(sys.argv[2]))
