"""``minibit experiment cluster``: what training on many machines may cost in accuracy.

Runs of preset ``strict`` with 400 steps, judged on the validation split:

    alone      each worker takes the median of its own range of the perturbations
    federated  each of 8 workers has data of its own, and draws its eighth of the batch from them
    liar       one worker in four, each with a range of the perturbations, negates its alignments
               from the start; some ranges are checked

Which ranges are checked comes from the operating system: when a liar is found does not repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibit.cluster import Remote
from minibit.cluster.crews import Lane
from minibit.cluster.messages import ANSWERED, Answer
from minibit.cluster.replica import answer, brief_of
from minibit.cluster.sums import ranges
from minibit.datasets import load_mnist, split
from minibit.experiments.runs import Row, Runs, over_seeds
from minibit.noise import USER, uniform
from minibit.noise_step import (
    NoiseStep,
    Objective,
    Plan,
    Sampled,
    SampledStep,
    Sums,
    apply_update,
    forward,
    initial_params,
    keep_terns,
    sparse_update,
)
from minibit.training import PRESETS, Course, evaluate, model_of
from minibit.training.course import Pool
from minibit.training.log_header import make_header

__all__ = ["Alone", "Lied", "alone_run", "cluster", "federated_run", "liar_run", "shards"]

STEPS = 400
WORKERS = (1, 2, 8, 32)  # of 1 worker the median is that of all perturbations
KINDS = ("label", "random")
SHARDS = 8
CREW = 4  # workers, the last of which lies
CHECKS = (0.0, 0.1, 0.02)


@dataclass(frozen=True)
class Alone(Sampled):
    """Method ``sampled`` where each of so many workers takes the median of its own range."""

    workers: int = 1

    def keep(
        self, plan: Plan, step: int, params: Any, drawn: Any, sums: Sums
    ) -> tuple[SampledStep, tuple[NDArray[Any], ...]]:
        """Keep the perturbations whose score reaches the median of their range."""
        _, scores = super().keep(plan, step, params, drawn, sums)
        a, squares = sums.alignments[0], sums.squares[0]  # (perturbations,)
        codes = [
            keep_terns(a[first:stop], squares[first:stop], self.score)
            for first, stop in ranges(plan, self.workers)
        ]
        return SampledStep(drawn.numerator, np.concatenate(codes)), scores


class _Start(NamedTuple):
    """A run before its first step: plan, header and method."""

    plan: Plan
    header: dict[str, Any]
    method: Sampled

    @classmethod
    def of(cls, seed: int) -> _Start:
        """Prepare a run that keeps the validation split apart."""
        recipe = replace(PRESETS["strict"], steps=STEPS)
        header = make_header("strict", recipe, load_mnist(), "validation")
        method: Any = recipe.settings()
        plan = method.plan(recipe.shapes, seed, round(recipe.zeros * 2**32))
        return cls(plan, header | {"plan": plan.to_dict()}, method)

    def course(self) -> Course:
        """Return the batches of the run, of all training images."""
        return Course(self.header, load_mnist(), self.plan.seed)


def _accuracy(header: dict[str, Any], params: Any) -> float:
    """Return the share of the validation images that the weights label rightly."""
    return evaluate(params, model_of(header), *split(load_mnist())[2:], threads=1)


def alone_run(folder: Path, workers: int, seed: int) -> Row:
    """Train with a median for each of so many workers."""
    _, header, method = start = _Start.of(seed)
    course = start.course()
    alone = Alone(method.perturbations, method.density, method.score, workers)
    recipe = course.recipe
    rules = {"zeros": recipe.zeros, "threshold": recipe.threshold, "threads": 1}
    run = NoiseStep.start(course.model, recipe.shapes, seed, alone, **rules)
    for step in range(STEPS):
        x, y, weight = course.batch(step)
        result = run.step(x, y, weight=weight)
        course.saw(result.hardness, result.loss)
    return {"seed": seed, "validation_accuracy": _accuracy(header, run.params)}


def shards(labels: NDArray[np.int64], kind: str, seed: int) -> list[NDArray[np.int64]]:
    """Return the samples of each of 8 workers: all of them split at random, or sorted by label."""
    order = np.argsort(uniform(seed, len(labels), domain=USER))  # (samples,)
    if kind != "random":
        order = order[np.argsort(labels[order], kind="stable")]
    return np.array_split(order, SHARDS)


def federated_run(folder: Path, kind: str, seed: int) -> Row:
    """Train on data that lie apart: sums of alignments add up."""
    plan, header, method = start = _Start.of(seed)
    course = start.course()
    recipe, pool = course.recipe, course.pool
    objective = Objective(course.model, None, recipe.threshold, 1)
    parts, rules = shards(pool.labels, kind, seed), (pool.threshold, pool.easy_share)
    pools = [
        Pool(pool.images[:, part], pool.labels[part], seed + (worker << 32), *rules)
        for worker, part in enumerate(parts, 1)
    ]
    params = initial_params(plan)
    for step in range(STEPS):
        drawn, count = method.propose(plan, step), round(course.batch_size(step) / SHARDS)
        a, squares = np.zeros((2, plan.perturbations))
        for own in pools:
            sample, shift, weight = own.draw(step, count)
            batch = own.images[shift, sample], own.labels[sample], weight
            sums = method.measure(objective, params, batch, drawn)
            own.hard[sample, shift] = sums.hardness
            a += sums.alignments[0]
            squares += sums.squares[0]
        codes = keep_terns(a, squares, method.score)
        update = sparse_update(plan, step, SampledStep(drawn.numerator, codes), drawn)
        params = apply_update(params, *update)
    return {"seed": seed, "validation_accuracy": _accuracy(header, params)}


class _Crew:
    """Workers of one process, the last of which lies."""

    def lanes(self) -> list[Lane]:
        """Return a lane per worker."""
        return [Lane(f"worker {k}", partial(self._ask, k)) for k in range(CREW)]

    def _ask(self, number: int, task: bytes) -> Future[bytes]:
        """Answer a task under the worker's name."""
        told = Answer.unpack(answer(task))._replace(worker=bytes([number]) * 8)
        if number == CREW - 1 and told.kind == ANSWERED:
            sums = np.frombuffer(told.body, "<f4").copy()
            sums[: len(sums) // 2] *= -1
            told = told._replace(body=sums.tobytes())
        future: Future[bytes] = Future()
        future.set_result(told.pack())
        return future


@dataclass(frozen=True)
class Lied(Sampled):
    """Method ``sampled`` where the worker of the last range negates what it measured."""

    def keep(
        self, plan: Plan, step: int, params: Any, drawn: Any, sums: Sums
    ) -> tuple[SampledStep, tuple[NDArray[Any], ...]]:
        """Keep the perturbations whose score reaches the median, some by a wrong sign."""
        record, scores = super().keep(plan, step, params, drawn, sums)
        first, stop = ranges(plan, CREW)[-1]
        record.codes[first:stop] *= -1
        return record, scores


def liar_run(folder: Path, check: float, seed: int) -> Row:
    """Train with a liar in the crew, and a share of the ranges measured twice.

    Workers take the steps until the liar is left out. From there on, and where nobody checks, the
    steps are taken here: the codes are those that workers would send.
    """
    plan, header, method = start = _Start.of(seed)
    brief, cut = brief_of(header, None, f"liar {check}"), "perturbations"
    remote = Remote(_Crew(), plan, method, brief, cut=cut, check=check)
    records = []
    while check and not remote.left_out and remote.steps < STEPS:
        records.append(remote.step().record)
    course, recipe = start.course(), PRESETS["strict"]
    lied = Lied(method.perturbations, method.density, method.score)
    rules = {"zeros": recipe.zeros, "threshold": recipe.threshold, "threads": 1}
    run = NoiseStep.start(course.model, recipe.shapes, seed, method if check else lied, **rules)
    for step in range(STEPS):
        x, y, weight = course.batch(step)
        if step >= len(records):
            result = run.step(x, y, weight=weight)
            course.saw(result.hardness, result.loss)
            continue
        course.saw(forward(course.model, run.params, x, y, 1)[2], 0.0)
        run.params = apply_update(run.params, *sparse_update(plan, step, records[step]))
        run.steps += 1
    left_out_at = len(records) - 1 if remote.left_out else None
    accuracy = _accuracy(header, run.params)
    return {"seed": seed, "validation_accuracy": accuracy, "left_out_at": left_out_at}


def cluster(seeds: Sequence[int], runs: Runs) -> list[Row]:
    """Make every run once per seed; one row per kind and setting."""
    line = "seed {seed}: {validation_accuracy:.2%} of the validation images"
    table = (
        ("alone", alone_run, "workers", WORKERS),
        ("liar", liar_run, "check", CHECKS),
        ("federated", federated_run, "kind", KINDS),
    )
    settings = [
        (name, function, field, value)
        for name, function, field, values in table
        for value in values
    ]
    rows: list[Row] = []
    for name, function, field, value in settings:
        fields = [{field: value, "seed": seed} for seed in seeds]
        done = runs.rows(function, fields, f"{name}, {field} {value}, {line}")
        rows.append({"experiment": name, field: value} | over_seeds(done, "validation_accuracy"))
    return rows
