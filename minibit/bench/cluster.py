"""``bench cluster``: a training step on two Dask workers beside the same step in one process.

Both take every step in turn, ours and then theirs, on one thread each, and must decide the same
codes. Bytes are those of the messages themselves, without the engine's own.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibit.base import install
from minibit.bench import Figure, Options, Report, installed
from minibit.cluster import Remote, crew_of, local_cluster
from minibit.cluster.replica import brief_of
from minibit.datasets import load_mnist
from minibit.noise_step import NoiseStep
from minibit.steps import pack_steps
from minibit.training import PRESETS, Course, model_of
from minibit.training.log_header import make_header

__all__ = ["cluster"]

BATCH = 4096
STEPS, FIRST = 40, 4  # steps that are taken; those before FIRST compile and load data
WORKERS = 2


def cluster(options: Options) -> Report:
    """Time steps of ``strict`` at batches of 4096, and count the bytes of their messages."""
    if not installed("distributed"):
        raise ValueError(f"the benchmark needs Dask: {install('cluster')}")
    from distributed import Client

    quiet = {"dashboard_address": None, "silence_logs": 50}
    with local_cluster(WORKERS, **quiet) as local, Client(local) as client:
        client.wait_for_workers(WORKERS, timeout=60)
        strict, units = (_in_turn(client, preset) for preset in ("strict", "accurate"))
    serial, shared = np.median(strict["seconds"], axis=0).tolist()
    up, down = strict["bytes"]
    figures = [
        Figure(f"{WORKERS} workers, steps per second over one process", _gain(strict), "x", 1.6),
        Figure("a step in one process", 1e3 * serial, "ms"),
        Figure(f"a step on {WORKERS} workers", 1e3 * shared, "ms"),
        Figure("a step of one process over the busier worker's, CPU", strict["cpu"], "x"),
        Figure("up, per worker and step", up, "bytes", 600, False),
        Figure("down, per worker and step", down, "bytes", 200, False),
        Figure("steps that asked for exact sums", strict["asked"], "share"),
        Figure("method units, steps per second over one process", _gain(units), "x"),
        Figure("method units, CPU of one process over the busier worker's", units["cpu"], "x"),
    ]
    notes = [
        f"strict, batches of {BATCH}, {STEPS - FIRST} steps in turn, one thread each; equal codes.",
        "Method units: the same with preset accurate.",
        "Bytes are those of tasks and answers; Dask adds about a kilobyte of its own to each.",
        "CPU of a worker is all of its process, with what Dask does there.",
    ]
    seconds = {"strict": strict["seconds"].tolist(), "accurate": units["seconds"].tolist()}
    return Report(figures, notes, {"seconds": seconds})


def _gain(times: dict[str, Any]) -> float:
    """Return how many steps workers take in the time of one in this process, on the median."""
    seconds: NDArray[np.float64] = times["seconds"]  # (steps, 2)
    return float(np.median(seconds[:, 0] / seconds[:, 1]))


def _in_turn(client: Any, preset: str) -> dict[str, Any]:
    """Take the steps of a preset here and on workers, in turn."""
    recipe = replace(PRESETS[preset], batch=(BATCH, BATCH), steps=STEPS)
    data = load_mnist()
    header = make_header(preset, recipe, data, "final")
    rules = {"zeros": recipe.zeros, "threshold": recipe.threshold, "threads": 1}
    here = NoiseStep.start(model_of(header), recipe.shapes, 0, recipe.settings(), **rules)
    header["plan"] = here.plan.to_dict()
    course = Course(header, data, 0)
    remote = Remote(crew_of(client), here.plan, recipe.settings(), brief_of(header, None, preset))
    traffic, begun = remote.traffic, np.zeros(3)
    seconds, cpu = np.empty((STEPS, 2)), np.empty(STEPS)
    for step in range(STEPS):
        if step == FIRST:
            begun = np.array([traffic.up, traffic.down, traffic.asked])
            busy = client.run(time.process_time)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        x, y, weight = course.batch(step)
        ours = here.step(x, y, weight=weight)
        course.saw(ours.hardness, ours.loss)
        middle, cpu[step] = time.perf_counter(), time.process_time() - cpu_begin
        theirs = remote.step()
        seconds[step] = middle - begin, time.perf_counter() - middle
        if pack_steps(here.plan, [ours.record]) != pack_steps(here.plan, [theirs.record]):
            raise RuntimeError(f"step {step} of {preset} has other codes on workers")
    most = max(end - busy[name] for name, end in client.run(time.process_time).items())
    up, down, asked = (np.array([traffic.up, traffic.down, traffic.asked]) - begun) / (
        STEPS - FIRST
    )
    return {
        "seconds": seconds[FIRST:],
        "cpu": float(cpu[FIRST:].sum() / most),
        "bytes": (float(up / WORKERS), float(down / WORKERS)),
        "asked": float(asked),
    }
