"""``bench cluster``: a training step on two Dask workers beside the same step in one process.

Both take every step in turn, ours and then theirs, on one thread each, and must decide the same
codes. Bytes are those of the messages themselves, without the engine's own.
"""

from __future__ import annotations

import time

import numpy as np

from minibit.bench import Figure, Options, Report, installed
from minibit.cluster import Remote, crew_of
from minibit.cluster.replica import brief_of
from minibit.datasets import load_mnist
from minibit.noise_step import NoiseStep
from minibit.training import PRESETS, Course, model_of
from minibit.training.log_header import make_header

__all__ = ["cluster"]

BATCH = 4096
STEPS, FIRST = 40, 4  # steps that are taken; those before FIRST compile and load data
WORKERS = 2


def cluster(options: Options) -> Report:
    """Time steps of ``strict`` at batches of 4096, and count the bytes of their messages."""
    if not installed("distributed"):
        raise ValueError("the benchmark needs Dask: pip install 'minibit[cluster]'")
    from dataclasses import replace

    from distributed import Client, LocalCluster

    recipe = replace(PRESETS["strict"], batch=(BATCH, BATCH), steps=STEPS)
    header, data = make_header("strict", recipe, load_mnist(), "final"), load_mnist()
    rules = {"zeros": recipe.zeros, "threshold": recipe.threshold, "workers": 1}
    here = NoiseStep.start(model_of(header), recipe.shapes, 0, recipe.settings(), **rules)
    header["plan"] = here.plan.to_dict()
    course = Course(header, data, 0)
    seconds = np.empty((STEPS, 2))
    one = {"n_workers": WORKERS, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**one, silence_logs=50) as local, Client(local) as client:
        client.wait_for_workers(WORKERS, timeout=60)
        remote = Remote(crew_of(client), here.plan, recipe.settings(), brief_of(header, None, "b"))
        for step in range(STEPS):
            begin = time.perf_counter()
            x, y, weight = course.batch(step)
            ours = here.step(x, y, weight=weight)
            course.saw(ours.hardness, ours.loss)
            middle = time.perf_counter()
            theirs = remote.step()
            seconds[step] = middle - begin, time.perf_counter() - middle
            if (ours.record.codes != theirs.record.codes).any():  # type: ignore[union-attr]
                raise RuntimeError(f"step {step} has other codes on workers")
            if step == FIRST - 1:
                up, down, answers = remote.traffic.up, remote.traffic.down, remote.traffic.answers
    traffic = remote.traffic
    answers = traffic.answers - answers
    serial, shared = np.median(seconds[FIRST:], axis=0)
    gain = float(np.median(seconds[FIRST:, 0] / seconds[FIRST:, 1]))
    figures = [
        Figure(f"{WORKERS} workers, steps per second over one process", gain, "x", 1.6),
        Figure("a step in one process", 1e3 * serial, "ms"),
        Figure(f"a step on {WORKERS} workers", 1e3 * shared, "ms"),
        Figure("up, per worker and step", (traffic.up - up) / answers, "bytes", 600, False),
        Figure("down, per worker and step", (traffic.down - down) / answers, "bytes", 200, False),
    ]
    notes = [
        f"strict, batches of {BATCH}, {STEPS - FIRST} steps in turn, one thread each; equal codes.",
        "Bytes are those of tasks and answers; Dask adds about a kilobyte of its own to each.",
    ]
    return Report(figures, notes, {"seconds": seconds.tolist()})
