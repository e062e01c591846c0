"""``minibit experiment lora``: fine-tune a small language model in full, by LoRA and by QLoRA.

A float model of 221k weights learns the first half of the text, then goes on with the second: as it
is (``plain``), or in upper case (``upper``). Eight tenths of that are trained on, the ninth decides
every choice, the last is looked at once, for the losses that are reported.

    full     every parameter moves                                  float32
    lora     adapters of rank 8 beside all projections, alpha 16    float32 base
    qlora    the same beside projections in NF4, blocks of 64

Learning rates are chosen with the first seed for full, qlora and forward gradients; lora and
another rank take qlora's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minibit.datasets import load_text
from minibit.dual import forward_gradient
from minibit.experiments.runs import Row, Runs
from minibit.language import (
    Recipe,
    Tokens,
    TrainedModel,
    Vocabulary,
    descend,
    draw_batch,
    evaluate_loss,
    recipe,
    train_params,
)
from minibit.lora import LoRALinear, init_adapters, lora_linear, merge, with_adapters
from minibit.nf4 import quantize_nf4
from minibit.noise import USER, uniform
from minibit.tape import Adam, clip_by_global_norm, value_and_grad
from minibit.transformer import BitNetConfig, forward, init_params, token_loss

__all__ = ["SMALL", "Job", "fine_tune", "halves", "lora", "small_base", "small_run", "with_nf4"]

STEPS, WARMUP = 600, 30  # of a fine-tune
CLIP = 1.0
CHECKS = 6  # validation losses of a run
ALPHA = 2  # times the rank
RATES = {  # candidates
    ("upper", "full"): (1e-3, 2e-3, 4e-3, 8e-3),
    ("plain", "full"): (2.5e-4, 5e-4, 1e-3, 2e-3),
    ("upper", "qlora"): (5e-3, 1e-2, 2e-2, 4e-2),
    ("plain", "qlora"): (2.5e-3, 5e-3, 1e-2, 2e-2),
    ("upper", "forward"): (3e-3, 1e-2, 3e-2),
}
DIRECTIONS, FORWARD_STEPS = 8, 200  # of the runs by forward gradients


@dataclass(frozen=True)
class Job:
    """One fine-tune. The seed is that of the pre-training, the adapters and the batches."""

    seed: int
    task: str  # `upper` or `plain`
    method: str  # `full`, `lora`, `qlora`; with `tape` and `forward` only B moves, beside NF4
    rank: int  # 0 for a full fine-tune
    rate: float  # the highest learning rate
    steps: int = STEPS


def halves(task: str) -> tuple[Vocabulary, Tokens, Tokens, Tokens, Tokens]:
    """Return the vocabulary and the text: its first half, then 8, 1 and 1 tenths of its second."""
    text = load_text()
    vocabulary = Vocabulary.of(text)
    middle = len(text) // 2
    second = text[middle:].upper() if task == "upper" else text[middle:]
    tokens = vocabulary.encode(second)
    a, b = len(tokens) * 8 // 10, len(tokens) * 9 // 10
    return vocabulary, vocabulary.encode(text[:middle]), tokens[:a], tokens[a:b], tokens[b:]


def pretrain(settings: Recipe, seed: int) -> TrainedModel:
    """Train a float model on the first half of the text."""
    vocabulary, first, *_ = halves("plain")
    start, begin = init_params(settings.config(len(vocabulary)), seed), time.perf_counter()
    params, losses = train_params(settings, start, first, seed)
    return TrainedModel(settings, seed, vocabulary, params, losses, time.perf_counter() - begin)


def with_nf4(params: Mapping[str, Any]) -> dict[str, Any]:
    """Quantise the projections to NF4 in blocks of 64; the rest stays float."""
    return {
        name: quantize_nf4(w, block=64) if name.endswith("_proj") else w
        for name, w in params.items()
    }


def fine_tune(
    job: Job,
    config: BitNetConfig,
    params: Mapping[str, Any],
    train: Tokens,
    validation: Tokens,
    *,
    checks: int = CHECKS,
) -> tuple[dict[str, Any], list[tuple[int, float]]]:
    """Train on, and return what `forward` takes with `lora_linear`, and the validation losses."""
    base = with_nf4(params) if job.method in ("qlora", "tape", "forward") else params
    parts = ("B",) if job.method in ("tape", "forward") else ("A", "B")
    adapters = init_adapters(params, job.rank, seed=job.seed) if job.rank else {}
    moved = {name: {part: pair[part] for part in parts} for name, pair in adapters.items()}
    optimizer = Adam(moved or params, betas=(0.9, 0.95))

    def model(moving: Any) -> dict[str, Any]:
        if not adapters:
            return dict(moving)
        pairs = {name: adapters[name] | moving[name] for name in adapters}
        return with_adapters(base, pairs, alpha=ALPHA * job.rank)

    def loss(moving: Any, x: Tokens, y: Tokens) -> Any:
        return token_loss(forward(config, model(moving), x, linear=lora_linear), y)

    def slope(moving: Any, step: int) -> tuple[Any, Any]:
        x, y = draw_batch(train, job.seed + 1000, step, 16, config.max_positions)
        if job.method == "forward":
            along = _directions(moving, job.seed, step)
            value, gradient = forward_gradient(partial(loss, x=x, y=y), moving, along)
        else:
            value, gradient = value_and_grad(loss)(moving, x, y)
        return value, clip_by_global_norm(gradient, CLIP)

    def schedule(step: int) -> dict[str, float]:
        return {"lr": job.rate * (1 - step / job.steps) * min(1.0, (step + 1) / WARMUP)}

    curve: list[tuple[int, float]] = []

    def progress(done: int, _: float, moving: Any) -> None:
        if done % max(1, job.steps // checks) == 0:
            reached = evaluate_loss(config, model(moving), validation, linear=lora_linear)
            curve.append((done, round(reached, 5)))

    descend(optimizer, slope, schedule, job.steps, progress)
    return model(optimizer.params), curve


def _directions(tree: Any, seed: int, step: int) -> Any:
    """Draw signs for every number that moves: (directions, *shape)."""

    def signs(w: Any, lane: int) -> Any:
        u = uniform(seed, (DIRECTIONS, *w.shape), domain=USER, step=step, lane=lane)
        return np.where(u < 0.5, -1, 1).astype(np.float32)

    return {
        name: {part: signs(w, lane) for part, w in pair.items()}
        for lane, (name, pair) in enumerate(tree.items())
    }


def sizes(params: Mapping[str, Any], moving: int) -> dict[str, int]:
    """Bytes of a fine-tune: frozen weights, and four float32 numbers for each that moves."""
    adapted = any(isinstance(w, LoRALinear) for w in params.values())
    weights = [w.base if isinstance(w, LoRALinear) else w for w in params.values()]
    frozen = sum(int(w.nbytes) for w in weights) if adapted else 0
    parts = {
        "weight_bytes": 4 * moving,
        "gradient_bytes": 4 * moving,
        "optimizer_bytes": 8 * moving,
    }
    return {"frozen_bytes": frozen, "moving": moving, **parts, "bytes": frozen + 16 * moving}


def pretrain_run(folder: Path, seed: int) -> Row:
    """Pre-train the model of a seed, and keep it in the folder."""
    trained = pretrain(recipe("221k", "float"), seed)
    trained.save(folder / f"pretrained_{seed}.npz")
    return {"seconds": trained.seconds}


def one_run(folder: Path, **fields: Any) -> Row:
    """Fine-tune a pre-trained model once; fields are those of `Job`."""
    job = Job(**fields)
    trained = TrainedModel.load(folder / f"pretrained_{job.seed}.npz")
    config, params = trained.config, trained.params
    _, _, train, validation, test = halves(job.task)
    loss = partial(evaluate_loss, config, linear=lora_linear)
    begin = time.process_time()
    model, curve = fine_tune(job, config, params, train, validation)
    cpu = time.process_time() - begin
    layers = {name: w for name, w in model.items() if isinstance(w, LoRALinear)}
    moving = sum(w.B.size + (w.A.size if "lora" in job.method else 0) for w in layers.values())
    row: Row = {
        "kind": "run",
        **asdict(job),
        "cpu_seconds": round(cpu, 1),
        "before": {"validation": loss(params, validation), "test": loss(params, test)},
        "after": {"validation": loss(model, validation), "test": loss(model, test)},
        "forgets": loss(model, halves("plain")[4]) if job.task == "upper" else None,
        "curve": curve,
        **sizes(model, int(moving if layers else sum(w.size for w in model.values()))),
    }
    if job.method == "qlora":
        merged = merge(model)
        floats = {name: w.base.dequantize() + w.delta() for name, w in layers.items()}
        row["merged"] = {
            "base_nf4": loss(with_nf4(params), test),
            "float32": loss(model | floats, test),
            "nf4": loss(merged, test),
            **_rounded(layers, merged),
        }
    return row


def _rounded(layers: Mapping[str, LoRALinear], merged: Mapping[str, Any]) -> dict[str, float]:
    """Measure the share of the adapters' changes that stays when they are merged into four bits."""
    same = total = 0
    lost = size = 0.0
    for name, w in layers.items():
        base: Any = w.base
        delta, change = w.delta(), merged[name].dequantize() - base.dequantize()
        same += int((base.codes() == merged[name].codes()).sum())
        total += base.size
        lost += float(np.sum((change - delta) ** 2))
        size += float(np.sum(delta**2))
    return {"same_codes": same / total, "relative_error": float(np.sqrt(lost / size))}


SMALL = Job(0, "upper", "qlora", rank=8, rate=1e-2, steps=100)


def small_base(seed: int = 0) -> tuple[BitNetConfig, dict[str, Any], Tokens, Tokens]:
    """Pre-train for seconds, and return also what `SMALL` trains on and is judged by."""
    trained = pretrain(recipe("55k", "float", steps=300, warmup=50), seed)
    _, _, train, validation, _ = halves("upper")
    return trained.config, trained.params, train, validation


def small_run(seed: int = 0) -> Row:
    """Fine-tune the model of `small_base` by `SMALL`: the point that a page computes again."""
    config, params, train, validation = small_base(seed)
    job = replace(SMALL, seed=seed)
    _, curve = fine_tune(job, config, params, train, validation, checks=1)
    before = evaluate_loss(config, params, validation)
    return {"kind": "small", "seed": seed, "before": before, "after": curve[-1][1]}


def lora(seeds: Sequence[int], runs: Runs) -> list[Row]:
    """Pre-train once per seed, choose learning rates with the first, fine-tune in every way.

    Rows are of kind ``chosen``, ``run`` (``"choice"``: whether it only compares rates), ``small``.
    """
    line = (
        "{task} {method}, rank {rank}, rate {rate:g}, seed {seed}: test {before[test]:.4f} -> "
        "{after[test]:.4f}, {cpu_seconds:.0f} s"
    )

    def done(jobs: Sequence[Job]) -> list[Row]:
        return runs.rows(one_run, [asdict(job) for job in jobs], line)

    first = seeds[0]
    settings = [{"seed": seed} for seed in seeds]
    runs.rows(pretrain_run, settings, "seed {seed} pre-trained, {seconds:.0f} s")
    best: dict[tuple[str, str], float] = {}
    chosen: list[Row] = []
    tried: list[Row] = []
    for (task, method), rates in RATES.items():
        rows = done([_job(first, task, method, rate) for rate in rates])
        rate = min(rows, key=lambda row: float(row["after"]["validation"]))["rate"]
        best[task, method] = rate
        chosen.append({"kind": "chosen", "task": task, "method": method, "rate": rate, "of": rates})
        tried += rows
    jobs = []
    for seed in seeds:
        for task in ("upper", "plain"):
            jobs.append(_job(seed, task, "full", best[task, "full"]))
            jobs += [_job(seed, task, method, best[task, "qlora"]) for method in ("lora", "qlora")]
        jobs.append(replace(jobs[-1], rank=16))
    jobs.append(_job(first, "upper", "tape", best["upper", "qlora"]))
    jobs.append(_job(first, "upper", "forward", best["upper", "forward"]))
    tried = [row | {"choice": True} for row in tried]
    return [*chosen, *tried, *(row | {"choice": False} for row in done(jobs)), small_run(first)]


def _job(seed: int, task: str, method: str, rate: float) -> Job:
    """Return a run with the rank and the steps of its method."""
    if method in ("tape", "forward"):
        return Job(seed, task, method, 1, rate, FORWARD_STEPS)
    return Job(seed, task, method, 0 if method == "full" else 8, rate)
