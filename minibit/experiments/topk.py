"""``minibit experiment topk``: language models with sparse inputs of all projections.

Dense and sparse models, with top-K and squared ReLU together; sparsity against loss;
straight-through against the masked gradient, by depth and by sparsity; dense models that become
sparse, on the text they know and on another.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minibit.absmean import absmax_quantize
from minibit.datasets import load_text
from minibit.experiments.runs import Row, Runs, dense_model
from minibit.language import (
    LINEAR,
    Recipe,
    draw_batch,
    evaluate_loss,
    loss_and_gradient,
    recipe,
    shipped_text,
    train_params,
)
from minibit.topk import SITES, sparsifier
from minibit.transformer import BitNetConfig, Sparsify, forward, init_params

__all__ = ["FORTY", "Run", "gradient_norms", "topk", "zeros"]

FORTY = 0.36  # share of zeros by top-K at every site: with squared ReLU, 40% of all or more
SWEEP = (0.6, 0.8)
SHORT = 651  # steps of the runs that compare gradients: a third
LATER = 390  # steps of a dense model that becomes sparse: a fifth
MEASURED = 64  # rows of the held-out text on which zeros are counted
LATE = 200  # batches whose mean is the late training loss

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A model to be trained: `size`, `weights` and `seed` are those of `minibit.language`."""

    kind: str  # `scratch`, `gradient` (short), `continue` or `finetune` (from a dense model)
    size: str
    weights: Any
    seed: int
    sparsity: float  # share of zeros by top-K at every site; 0 for a dense model
    straight: bool = True  # straight-through, or the masked gradient
    layers: int = 2

    @property
    def recipe(self) -> Recipe:
        """The recipe of the training: that of its size, with fewer steps for some kinds."""
        dense = recipe(self.size, self.weights, layers=self.layers)
        if self.kind == "gradient":
            return dataclasses.replace(dense, steps=SHORT)
        if self.kind in ("continue", "finetune"):
            return dataclasses.replace(dense, steps=LATER, peak=dense.peak / 2, weight_decay=0.0)
        return dense


def wanted(seeds: Sequence[int]) -> list[Run]:
    """List the runs: all seeds, or the first one alone where one run is enough."""
    both, first = list(LINEAR), seeds[0]
    runs = [
        Run("scratch", size, weights, seed, sparsity)
        for sparsity in (0.0, FORTY)
        for seed in seeds
        for size in ("221k", "55k")
        for weights in both
    ]
    runs += [
        Run("gradient", "55k", "float", first, sparsity, straight, layers)
        for layers in (2, 4)
        for sparsity in (0.3, 0.6, 0.8)
        for straight in (True, False)
    ]
    runs += [
        Run(kind, "221k", weights, first, sparsity)
        for kind in ("continue", "finetune")
        for weights in both
        for sparsity in (0.0, FORTY)
    ]
    runs += [Run("scratch", "55k", weights, first, share) for weights in both for share in SWEEP]
    return runs + [Run("scratch", "885k", weights, first, 0.0) for weights in both]


def topk(seeds: Sequence[int], runs: Runs) -> list[Row]:
    """Train every model of `wanted` that is not in the folder: one row per run."""
    line = "{kind} {size} {weights}, seed {seed}, sparsity {sparsity}, straight {straight}, "
    line += "layers {layers}: validation {validation_loss:.4f}, {seconds:.0f} s"
    return runs.rows(one_run, [asdict(run) for run in wanted(seeds)], line)


def one_run(folder: Path, **fields: Any) -> Row:
    """Train one model and measure it; fields are those of `Run`."""
    run = Run(**fields)
    vocabulary, train, validation = shipped_text()
    settings, linear = run.recipe, LINEAR[run.weights]
    config = settings.config(len(vocabulary))
    sparsify = sparsifier(run.sparsity, straight=run.straight) if run.sparsity else None
    before: Row = {}
    if run.kind == "finetune":
        tokens = vocabulary.encode(load_text().upper())
        train, validation = tokens[: len(train)], tokens[len(train) :]
    loss = partial(evaluate_loss, config, tokens=validation, linear=linear, sparsify=sparsify)
    if run.kind == "scratch" and not run.sparsity:
        dense = dense_model(folder, run.size, run.weights, run.seed)
        params, losses, seconds = dense.params, dense.losses, dense.seconds
    else:
        start: Params = init_params(config, run.seed)
        if run.kind in ("continue", "finetune"):
            start = dense_model(folder, run.size, run.weights, run.seed).params
            before = {"before": loss(start, sparsify=None), "cut": loss(start)}
        begin = time.perf_counter()
        params, losses = train_params(settings, start, train, run.seed, sparsify=sparsify)
        seconds = time.perf_counter() - begin
    row = {
        **before,
        **asdict(run),
        "projections": settings.projections,
        "recipe": asdict(settings),
        "seconds": seconds,
        "validation_loss": loss(params),
        "late_training_loss": float(losses[-LATE:].mean()),
        "start": [float(loss) for loss in losses[:50]],
        "zeros": zeros(config, params, validation, linear, sparsify),
    }
    if run.kind == "gradient":
        x, y = draw_batch(validation, run.seed, 0, settings.batch, settings.context)
        row["gradient_norms"] = gradient_norms(config, params, x, y, linear, sparsify)
    return row


def zeros(
    config: BitNetConfig, params: Params, tokens: Any, linear: Any, sparsify: Sparsify | None
) -> dict[str, Any]:
    """Count zeros at every site, and the share of weights that they leave out.

    Returned are ``sites``: site to shares of zeros ``before`` top-K (of squared ReLU), ``after``
    it, and ``in_int8`` after rounding, too; and ``squared_relu``, ``overall`` and ``in_int8``: the
    same, weighted by the weights that an input meets.
    """
    shares: dict[str, list[tuple[float, ...]]] = {site: [] for site in SITES}

    def watch(x: Any, site: str) -> Any:
        y = x if sparsify is None else sparsify(x, site)
        shares[site].append(tuple(np.mean(z == 0) for z in (x, y, absmax_quantize(y)[0])))
        return y

    context = config.max_positions
    x = tokens[: MEASURED * context].reshape(MEASURED, context)
    forward(config, params, x, linear=linear, sparsify=watch)
    hidden, inner = config.hidden_size, config.intermediate_size
    weights = {
        "qkv": hidden * (hidden + 2 * config.kv_heads * config.head_dim),
        "o": hidden * hidden,
        "gate_up": 2 * hidden * inner,
        "down": inner * hidden,
    }
    means = {site: np.mean(layers, axis=0) for site, layers in shares.items()}  # (stages,) each
    total = sum(means[site] * weights[site] for site in SITES) / sum(weights.values())
    stages = ("before", "after", "in_int8")
    return {
        "sites": {site: dict(zip(stages, map(float, means[site]), strict=True)) for site in SITES},
        **dict(zip(("squared_relu", "overall", "in_int8"), map(float, total), strict=True)),
    }


def gradient_norms(
    config: BitNetConfig, params: Params, x: Any, y: Any, linear: Any, sparsify: Sparsify | None
) -> dict[str, float]:
    """Length of the gradient of every projection, for one batch."""
    gradient = loss_and_gradient(config, params, x, y, linear=linear, sparsify=sparsify)[1]
    return {name: float(np.linalg.norm(g)) for name, g in gradient.items() if "_proj" in name}
