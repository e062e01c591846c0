"""``minibit experiment topk``: language models with sparse inputs of all projections.

Dense and sparse models of the recipe of `minibit.language`, float and b1.58, with top-K and squared
ReLU together; sparsity against loss; straight-through against the masked gradient, by depth and by
sparsity; dense models that become sparse, on the text they know and on another. Every run is a
process of its own with one thread, two at a time.

May import: anything of minibit.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minibit.absmean import absmax_quantize
from minibit.bench import clean_environment
from minibit.bench.language import keep_freed_memory
from minibit.blocks import token_loss
from minibit.datasets import load_text
from minibit.language import (
    LINEAR,
    Recipe,
    TrainedModel,
    draw_batch,
    learning_rate,
    recipe,
    shipped_text,
    train_language,
)
from minibit.tape import Adam, clip_by_global_norm, value_and_grad
from minibit.topk import SITES, sparsifier
from minibit.transformer import BitNetConfig, forward, init_params

__all__ = ["FORTY", "Run", "evaluate", "gradient_norms", "topk", "train_sparse", "zeros"]

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
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            return topk(seeds, say, scratch)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def ready(run: Run) -> dict[str, Any]:
        found = _in_own_process(run, folder)
        say(f"{run.name}: validation {found['validation_loss']:.4f}, {found['seconds']:.0f} s")
        return found

    runs = wanted(seeds)
    dense = [run for run in runs if run.kind == "scratch" and not run.sparsity]
    rest = [run for run in runs if run not in dense]
    with ThreadPoolExecutor(2) as pool:
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
    if run.kind in ("continue", "finetune"):
        start = _dense(run.size, run.weights, run.seed, folder).params
        found["before"] = evaluate(config, start, validation, linear, None)
        found["cut"] = evaluate(config, start, validation, linear, sparsify)
    else:
        start = init_params(config, run.seed)
    begin = time.perf_counter()
    if run.kind == "scratch" and not run.sparsity:
        kept = _dense(run.size, run.weights, run.seed, folder)
        params, losses = kept.params, kept.losses
        seconds = kept.seconds
    else:
        params, losses = train_sparse(made, start, train, run.seed, sparsify)
        seconds = time.perf_counter() - begin
    x, y = draw_batch(validation, run.seed, 0, made.batch, made.context)
    found |= {
        **asdict(run),
        "projections": made.projections,
        "recipe": asdict(made),
        "seconds": seconds,
        "validation_loss": evaluate(config, params, validation, linear, sparsify),
        "late_training_loss": float(losses[-LATE:].mean()),
        "start": [float(loss) for loss in losses[:50]],
        "zeros": zeros(config, params, validation, linear, sparsify),
    }
    if run.kind == "gradient":
        found["gradient_norms"] = gradient_norms(config, params, x, y, linear, sparsify)
    part = folder / f"{run.name}.json.part"
    part.write_text(json.dumps(found), encoding="utf-8")
    part.replace(folder / f"{run.name}.json")
    return found


def _dense(size: str, weights: Any, seed: int, folder: Path) -> TrainedModel:
    """Return the dense model of a seed: from its file, or trained now."""
    path = folder / f"{size}_{weights}_{seed}.npz"
    if path.exists():
        return TrainedModel.load(path)
    trained = train_language(recipe(size, weights), seed)
    trained.save(path)
    return trained


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

    def loss_of(params: Params, x: Any, y: Any) -> Any:
        return token_loss(forward(config, params, x, linear=linear, sparsify=sparsify), y)

    current: Any = params
    optimizer, slope = Adam(current, betas=(0.9, 0.95)), value_and_grad(loss_of)
    steps = made.steps if stop is None else min(stop, made.steps)
    losses = np.empty(steps, np.float32)
    for step in range(steps):
        x, y = draw_batch(tokens, seed, step, made.batch, made.context)
        losses[step], gradient = slope(current, x, y)
        current = optimizer.step(
            clip_by_global_norm(gradient, made.clip),
            lr=learning_rate(made, step),
            weight_decay=made.weight_decay if step < made.steps / 2 else 0.0,
        )
    return current, losses


def evaluate(
    config: BitNetConfig,
    params: Params,
    tokens: Any,
    linear: Any,
    sparsify: Callable[[Any, str], Any] | None,
    rows: int | None = None,
) -> float:
    """Mean loss over a text, as `minibit.language.evaluate_loss` cuts it, with sparse inputs."""
    context = config.max_positions
    count = min((len(tokens) - 1) // context, rows or len(tokens))
    x = tokens[: count * context].reshape(count, context)
    y = tokens[1 : count * context + 1].reshape(count, context)
    total = 0.0
    for first in range(0, count, 128):
        part = slice(first, first + 128)
        logits = forward(config, params, x[part], linear=linear, sparsify=sparsify)
        total += float(token_loss(logits, y[part])) * len(x[part])
    return total / count


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

    def loss_of(params: Params) -> Any:
        return token_loss(forward(config, params, x, linear=linear, sparsify=sparsify), y)

    _, gradient = value_and_grad(loss_of)(params)
    return {
        name: float(np.linalg.norm(g)) for name, g in gradient.items() if name.endswith("_proj")
    }


def _in_own_process(run: Run, folder: Path) -> dict[str, Any]:
    """Run `one_run` in a process with one thread, unless its file is there."""
    path = folder / f"{run.name}.json"
    if not path.exists():
        command = [sys.executable, "-m", __name__, json.dumps(asdict(run)), str(folder)]
        done = subprocess.run(command, env=clean_environment(1), check=False)
        if done.returncode:
            raise RuntimeError(f"the run {run.name} ended with status {done.returncode}")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    keep_freed_memory()
    one_run(Run(**json.loads(sys.argv[1])), Path(sys.argv[2]))
