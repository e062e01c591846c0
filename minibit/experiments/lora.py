"""``minibit experiment lora``: fine-tune a small language model in full, by LoRA and by QLoRA.

A float model of 221k weights learns the first half of the text. Then it goes on with the second
half: as it is (``plain``), or in upper case, which it has hardly seen (``upper``). Of that half the
first eight tenths are trained on, the ninth decides every choice, and the last is looked at once,
for the losses that are reported.

    full     every parameter moves                                  float32
    lora     adapters of rank 8 beside all projections, alpha 16    float32 base
    qlora    the same beside projections in NF4, blocks of 64

Learning rates are chosen with the first seed, on the ninth tenth, for full and for qlora (and for
forward gradients); lora and another rank take qlora's. Every run is a process of its own with one
thread, two at a time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.bench.language import keep_freed_memory
from minibit.datasets import load_text
from minibit.dual import forward_gradient
from minibit.experiments.runs import folder_of_runs, in_own_process, keep, kept
from minibit.language import (
    Recipe,
    Vocabulary,
    draw_batch,
    evaluate_loss,
    learning_rate,
    loss_and_gradient,
    recipe,
)
from minibit.lora import init_adapters, lora_linear, merge, with_adapters
from minibit.nf4 import NF4Tensor, quantize_nf4
from minibit.noise import USER, uniform
from minibit.tape import Adam, clip_by_global_norm, value_and_grad
from minibit.transformer import BitNetConfig, forward, init_params, token_loss

__all__ = [
    "SMALL",
    "Job",
    "fine_tune",
    "halves",
    "lora",
    "pretrain",
    "small_base",
    "small_run",
    "with_nf4",
]

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

Tokens = NDArray[np.int64]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One fine-tune.

    Attributes
    ----------
    seed : int
        Of the pre-training, the adapters and the batches.
    task : {"upper", "plain"}
    method : {"full", "lora", "qlora", "tape", "forward"}
        The last two move only the B of adapters beside NF4: by reverse mode, and by forward
        gradients.
    rank : int
        0 for a full fine-tune.
    rate : float
        Highest learning rate.
    steps : int
    """

    seed: int
    task: str
    method: str
    rank: int
    rate: float
    steps: int = STEPS

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.seed}_{self.task}_{self.method}_{self.rank}_{self.rate:g}_{self.steps}"


def halves(task: str) -> tuple[Vocabulary, Tokens, Tokens, Tokens, Tokens]:
    """Cut the text: the first half, and the second in eight, one and one tenths.

    Parameters
    ----------
    task : {"upper", "plain"}

    Returns
    -------
    vocabulary : Vocabulary
        Of the whole text.
    first, train, validation, test : int64 arrays
    """
    text = load_text()
    vocabulary = Vocabulary.of(text)
    middle = len(text) // 2
    second = text[middle:].upper() if task == "upper" else text[middle:]
    tokens = vocabulary.encode(second)
    a, b = len(tokens) * 8 // 10, len(tokens) * 9 // 10
    return vocabulary, vocabulary.encode(text[:middle]), tokens[:a], tokens[a:b], tokens[b:]


def pretrain(made: Recipe, tokens: Tokens, vocabulary: int, seed: int) -> dict[str, Any]:
    """Train a float model on tokens; return its parameters."""
    config = made.config(vocabulary)
    params: Any = init_params(config, seed)
    optimizer = Adam(params, betas=(0.9, 0.95))
    for step in range(made.steps):
        x, y = draw_batch(tokens, seed, step, made.batch, made.context)
        _, gradient = loss_and_gradient(config, params, x, y)
        params = optimizer.step(
            clip_by_global_norm(gradient, made.clip),
            lr=learning_rate(made, step),
            weight_decay=made.weight_decay if step < made.steps / 2 else 0.0,
        )
    return dict(params)


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
    part = ("B",) if job.method in ("tape", "forward") else ("A", "B")
    adapters = init_adapters(params, job.rank, seed=job.seed) if job.rank else {}
    moving: Any = params
    if adapters:
        moving = {name: {p: pair[p] for p in part} for name, pair in adapters.items()}
    optimizer = Adam(moving, betas=(0.9, 0.95))

    def model(moving: Any) -> dict[str, Any]:
        if not adapters:
            return dict(moving)
        pairs = {name: adapters[name] | moving[name] for name in adapters}
        return with_adapters(base, pairs, alpha=ALPHA * job.rank)

    def loss(moving: Any, x: Tokens, y: Tokens) -> Any:
        return token_loss(forward(config, model(moving), x, linear=lora_linear), y)

    curve: list[tuple[int, float]] = []
    for step in range(job.steps):
        x, y = draw_batch(train, job.seed + 1000, step, 16, config.max_positions)
        if job.method == "forward":
            along = _directions(moving, DIRECTIONS, job.seed, step)
            _, gradient = forward_gradient(partial(loss, x=x, y=y), moving, along)
        else:
            _, gradient = value_and_grad(loss)(moving, x, y)
        rate = job.rate * (1 - step / job.steps) * min(1.0, (step + 1) / WARMUP)
        moving = optimizer.step(clip_by_global_norm(gradient, CLIP), lr=rate)
        if (step + 1) % max(1, job.steps // checks) == 0:
            found = evaluate_loss(config, model(moving), validation, linear=lora_linear)
            curve.append((step + 1, round(found, 5)))
    return model(moving), curve


def _directions(tree: Any, count: int, seed: int, step: int) -> Any:
    """Draw signs for every number that moves: (count, *shape)."""
    made = {}
    for lane, (name, pair) in enumerate(tree.items()):
        draws = {p: uniform(seed, (count, *w.shape), domain=USER, step=step, lane=lane)
                 for p, w in pair.items()}  # fmt: skip
        made[name] = {p: np.where(u < 0.5, -1, 1).astype(np.float32) for p, u in draws.items()}
    return made


def sizes(params: Mapping[str, Any], moving: int) -> dict[str, int]:
    """Bytes of a fine-tune: frozen weights, and four float32 numbers for each that moves."""
    stored = sum(int(getattr(w, "base", w).nbytes if _adapted(w) else w.nbytes)
                 for w in params.values())  # fmt: skip
    full = not any(_adapted(w) for w in params.values())
    return {
        "frozen_bytes": 0 if full else stored,
        "moving": moving,
        "weight_bytes": 4 * moving,
        "gradient_bytes": 4 * moving,
        "optimizer_bytes": 8 * moving,
        "bytes": (0 if full else stored) + 16 * moving,
    }


def _adapted(w: Any) -> bool:
    return hasattr(w, "scaling")


def one_run(job: Job, folder: Path) -> dict[str, Any]:
    """Fine-tune once in this process, and keep what it came to in the folder."""
    made = recipe("221k", "float")
    vocabulary, _, train, validation, test = halves(job.task)
    config = made.config(len(vocabulary))
    params = _load(folder / f"pretrained_{job.seed}.npz")
    loss = partial(evaluate_loss, config, linear=lora_linear)
    begin = time.process_time()
    model, curve = fine_tune(job, config, params, train, validation)
    cpu = time.process_time() - begin
    if job.rank:
        pairs = [w for w in model.values() if _adapted(w)]
        moving = sum(w.B.size + (w.A.size if job.method.endswith("lora") else 0) for w in pairs)
    else:
        moving = sum(w.size for w in model.values())
    found: dict[str, Any] = {"kind": "run", **asdict(job), "cpu_seconds": round(cpu, 1)}
    found |= {
        "before": {"validation": loss(params, validation), "test": loss(params, test)},
        "after": {"validation": loss(model, validation), "test": loss(model, test)},
        "forgets": loss(model, halves("plain")[4]) if job.task == "upper" else None,
        "curve": curve,
        **sizes(model, int(moving)),
    }
    if job.method == "qlora":
        floats = {
            name: w.base.dequantize() + w.delta() if _adapted(w) else w for name, w in model.items()
        }
        again = merge(model)
        found["merged"] = {
            "base_nf4": loss(with_nf4(params), test),
            "float32": loss(floats, test),
            "nf4": loss(again, test),
            **_rounded(model, again),
        }
    keep(folder / f"{job.name}.json", found)
    return found


def _rounded(model: Mapping[str, Any], merged: Mapping[str, Any]) -> dict[str, float]:
    """Measure what is left of the adapters' changes when they are merged into four bits."""
    same = total = 0
    lost = size = 0.0
    for name, w in model.items():
        if _adapted(w) and isinstance(w.base, NF4Tensor):
            delta, before = w.delta(), w.base.dequantize()
            same += int((w.base.codes() == merged[name].codes()).sum())
            total += w.base.size
            lost += float(np.sum((merged[name].dequantize() - before - delta) ** 2))
            size += float(np.sum(delta**2))
    return {"same_codes": same / total, "relative_error": float(np.sqrt(lost / size))}


def _pretrained(seed: int, folder: Path) -> None:
    """Pre-train the model of a seed in this process, and keep it in the folder."""
    made = recipe("221k", "float")
    vocabulary, first, *_ = halves("plain")
    params = pretrain(made, first, len(vocabulary), seed)
    part = folder / f"pretrained_{seed}.npz.part"
    with part.open("wb") as file:
        np.savez(file, **params)
    part.replace(folder / f"pretrained_{seed}.npz")


SMALL = Job(0, "upper", "qlora", rank=8, rate=1e-2, steps=100)


def small_base(seed: int = 0) -> tuple[BitNetConfig, dict[str, Any], Tokens, Tokens]:
    """Pre-train for seconds: 55k weights, 300 batches.

    Returns
    -------
    config : BitNetConfig
    params : dict
    train, validation : int64 arrays
        Of the second half, in upper case.
    """
    made = recipe("55k", "float", steps=300, warmup=50)
    vocabulary, first, train, validation, _ = halves("upper")
    params = pretrain(made, first, len(vocabulary), seed)
    return made.config(len(vocabulary)), params, train, validation


def small_run(seed: int = 0) -> dict[str, Any]:
    """Fine-tune the model of `small_base` by `SMALL`: the point that a page computes again."""
    config, params, train, validation = small_base(seed)
    job = replace(SMALL, seed=seed)
    _, curve = fine_tune(job, config, params, train, validation, checks=1)
    before = evaluate_loss(config, params, validation)
    return {"kind": "small", "seed": seed, "before": before, "after": curve[-1][1]}


def lora(seeds: Sequence[int], say: Say, folder: str | Path | None = None) -> list[dict[str, Any]]:
    """Pre-train once a seed, choose learning rates with the first, fine-tune in every way.

    Parameters
    ----------
    seeds : sequence of int
    say : callable
        Gets a line after every run.
    folder : path, optional
        Keeps the runs; those that are there already are not repeated. By default a scratch folder,
        which is removed.

    Returns
    -------
    list of dict
        Rows of kind ``chosen``, ``run`` (those of the choice have ``"choice": true``) and
        ``small``.
    """

    def ready(job: Job) -> dict[str, Any]:
        path = place / f"{job.name}.json"
        if not path.exists():
            _in_own_process(json.dumps(asdict(job)), str(place))
        found = kept(path)
        say(
            f"{job.task} {job.method}, rank {job.rank}, rate {job.rate:g}, seed {job.seed}: test "
            f"{found['before']['test']:.4f} -> {found['after']['test']:.4f}, "
            f"{found['cpu_seconds']:.0f} s"
        )
        return found

    def start(seed: int) -> None:
        if not (place / f"pretrained_{seed}.npz").exists():
            _in_own_process(str(seed), str(place))

    with folder_of_runs(folder) as place, ThreadPoolExecutor(2) as pool:
        list(pool.map(start, seeds))
        trials = [
            _trial(seeds[0], task, method, rate)
            for (task, method), rates in RATES.items()
            for rate in rates
        ]
        tried = list(pool.map(ready, trials))
        best = {key: _best(tried, *key) for key in RATES}
        jobs = [job for seed in seeds for job in _jobs(seed, best)]
        for method, rate in (
            ("tape", best["upper", "qlora"]),
            ("forward", best["upper", "forward"]),
        ):
            jobs.append(Job(seeds[0], "upper", method, 1, rate, FORWARD_STEPS))
        runs = list(pool.map(ready, jobs))
    chosen = [
        {"kind": "chosen", "task": task, "method": method, "rate": rate, "of": RATES[task, method]}
        for (task, method), rate in best.items()
    ]
    return [
        *chosen,
        *({**row, "choice": True} for row in tried),
        *({**row, "choice": False} for row in runs),
        small_run(seeds[0]),
    ]


def _trial(seed: int, task: str, method: str, rate: float) -> Job:
    """Return the run that tries a rate."""
    if method == "forward":
        return Job(seed, task, method, 1, rate, FORWARD_STEPS)
    return Job(seed, task, method, 0 if method == "full" else 8, rate)


def _jobs(seed: int, best: Mapping[tuple[str, str], float]) -> list[Job]:
    """List the runs of a seed, at the rates that were chosen."""
    jobs = []
    for task in ("upper", "plain"):
        quantised = best[task, "qlora"]
        jobs += [
            Job(seed, task, "full", 0, best[task, "full"]),
            Job(seed, task, "lora", 8, quantised),
            Job(seed, task, "qlora", 8, quantised),
        ]
    return [*jobs, Job(seed, "plain", "qlora", 16, best["plain", "qlora"])]


def _best(rows: Sequence[Mapping[str, Any]], task: str, method: str) -> float:
    """Return the rate whose run has the lowest validation loss."""
    ours = [row for row in rows if row["task"] == task and row["method"] == method]
    return float(min(ours, key=lambda row: row["after"]["validation"])["rate"])


def _in_own_process(*arguments: str) -> None:
    """Run this module in a process with one thread."""
    in_own_process(__name__, *arguments)


def _load(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


if __name__ == "__main__":
    keep_freed_memory()
    what = json.loads(sys.argv[1])
    if isinstance(what, int):
        _pretrained(what, Path(sys.argv[2]))
    else:
        one_run(Job(**what), Path(sys.argv[2]))
