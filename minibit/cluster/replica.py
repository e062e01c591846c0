"""A worker's replica of a run, and its answer to a task: executors call `answer`.

A *replica* has the run's weights and its course (which samples are drawn, and how hard each was).
It begins at the seed, and the records of a task carry it on: each is a sparse update of the
weights, after the forward pass of its step. A worker that measured a part of the batch has made the
pass of that part; it makes the rest, and draws the next batch, once it has answered, while the
client decides. One that joins late makes all passes now. So a replica needs nothing but records,
and any process can take any task at any time: what it does not know, it asks for.
"""

from __future__ import annotations

import json
import os
import threading
import time
import zlib
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import minibit
from minibit.base import parse_object
from minibit.cluster.messages import (
    ANSWERED,
    BEHIND,
    CODES,
    EXACT,
    REFUSED,
    ROUNDED,
    SUMS,
    UNKNOWN,
    Answer,
    Task,
    run_name,
)
from minibit.cluster.sums import draw_range, encode, items
from minibit.datasets import Dataset, load_mnist, load_npz
from minibit.noise_step import (
    CHUNKS,
    ChunkSums,
    Objective,
    Params,
    Plan,
    apply_update,
    chunk_edges,
    forward,
    initial_params,
    loss_sums,
    sparse_update,
)
from minibit.steps import checked_plan, unpack_steps
from minibit.training import Course

__all__ = ["Replica", "answer", "brief_of"]

Batch = tuple[NDArray[Any], NDArray[np.int64], NDArray[np.float32]]  # x, y, weight
MOST_RUNS = 4  # that a process remembers; the one used longest ago goes
PROBE = 64  # samples of a batch whose logits all workers compare


def brief_of(header: dict[str, Any], data: str | None, nonce: str) -> bytes:
    """Return what a worker must know of a run to begin: its header, its data, and the version.

    `data` is the path of a ``.npz`` file on the worker, or None for MNIST, which the package has.
    """
    fields = {"version": minibit.__version__, "header": header, "data": data, "nonce": nonce}
    return json.dumps(fields, separators=(",", ":")).encode()


class Replica:
    """A run's weights and course on one worker.

    Parameters
    ----------
    header : dict
        Of the run's log.
    data : Dataset
        With the header's digest.
    threads : int
        That a measurement may use.

    Raises
    ------
    ValueError
        If the data are others than the run's.
    """

    def __init__(self, header: dict[str, Any], data: Dataset, threads: int = 1) -> None:
        before = header["data"]
        if data.digest != before["digest"]:
            raise ValueError(
                f"the run's data are {before['name']} with digest {before['digest'][:16]}; "
                f"this worker has {data.name} with digest {data.digest[:16]}"
            )
        self.plan: Plan = checked_plan(header["plan"])
        self.course = Course(header, data, self.plan.seed)
        self.method = self.course.recipe.settings()
        threshold = self.course.recipe.threshold
        self.objective = Objective(self.course.model, None, threshold, threads)
        self.params = initial_params(self.plan)
        self._lock = threading.Lock()
        self._begin(0, self._batch_of(0))

    def _batch_of(self, step: int) -> Batch | None:
        """Draw a step's batch; None of a step that a fork's parent took, on data of its own."""
        return self.course.batch(step) if step >= self.course.since else None

    def _begin(self, step: int, batch: Batch | None) -> None:
        self.step, self._batch = step, batch
        self._hardness = np.full(0 if batch is None else len(batch[0]), np.nan, np.float32)
        self._sums: dict[tuple[Any, ...], ChunkSums] = {}  # of parts of this step
        self._state: int | None = None
        self._next: Batch | None = None
        self._finished = False  # but for its record

    def _named(self, step: int) -> tuple[Plan, int]:
        """Return the plan with the seed that draws a step's noise, and the number that does."""
        seed, number = self.course.drawn_by(step)
        return replace(self.plan, seed=seed), number

    def measure(self, task: Task, worker: bytes) -> Answer:
        """Catch up with a task's records, then measure its part; or say what is missing."""
        begin = time.perf_counter()
        with self._lock:
            if task.base > self.step or task.step < self.step:
                return Answer(BEHIND, worker, self.step)
            self._catch_up(task)
            if (batch := self._batch) is None:
                raise ValueError(f"step {task.step} was taken on the data of the fork's parent")
            params, state = self.params, self._checksum(*batch[:2])
        plan, number = self._named(task.step)
        drawn = draw_range(plan, number, task.numerator, task.first, task.stop)
        sums = self._measured(task, params, batch, drawn)
        body = encode(self.method, plan, params, task._replace(step=number), drawn, sums)
        low, high = task.chunks
        edges = chunk_edges(len(batch[0]))[low : high + 1]
        inside, cuts = slice(edges[0], edges[-1]), [edge - edges[0] for edge in edges]
        losses = loss_sums(sums.loss, batch[2][inside], cuts)
        right = int(sums.correct.sum()), len(sums.correct)
        with self._lock:
            if self.step == task.step:
                self._hardness[inside] = sums.hardness
        with suppress(RuntimeError):  # no thread can start: the next task does it
            threading.Thread(target=self._look_ahead, args=(task.step,)).start()
        seconds = time.perf_counter() - begin
        return Answer(ANSWERED, worker, task.step, *losses, *right, state, seconds, body)

    def _look_ahead(self, step: int) -> None:
        """Do what is left of a step but for its record, unless somebody was quicker."""
        with self._lock, suppress(Exception):  # it is done again, and an answer says what is wrong
            if self.step == step:
                self._finish()

    def _finish(self) -> None:
        """Make what is left of a step's forward pass, and draw the next batch."""
        if self._finished:
            return
        if self._batch is not None and self.course.remembers:
            (x, y, _), unknown = self._batch, np.isnan(self._hardness)
            if unknown.any():
                rest = self.course.model, self.params, x[unknown], y[unknown]
                self._hardness[unknown] = forward(*rest, self.objective.threads)[2]
            self.course.saw(self._hardness, np.inf)  # it is the client that follows the loss
        self._next = self._batch_of(self.step + 1)
        self._finished = True

    def _measured(self, task: Task, params: Params, batch: Batch, drawn: Any) -> Any:
        """Measure a part; one whose exact sums are asked for was measured just before, mostly."""
        if task.form not in (ROUNDED, EXACT):
            return self.method.measure(self.objective, params, batch, drawn)
        method: Any = self.method
        part = task.step, task.numerator, task.first, task.stop, task.chunks
        if (sums := self._sums.get(part)) is None:
            chunks = range(*task.chunks)
            sums = method.measure_chunks(self.objective, params, batch, drawn, chunks)
            with self._lock:
                if self.step == task.step:
                    self._sums[part] = sums
        return sums

    def _catch_up(self, task: Task) -> None:
        for record in task.records[self.step - task.base :]:
            if self.step == task.step:
                break
            (choice,) = unpack_steps(self.plan, record, 1)
            self._finish()
            update = sparse_update(*self._named(self.step), choice)
            self.params = apply_update(self.params, *update)
            self._begin(self.step + 1, self._next)
        if self.step != task.step:
            raise ValueError(f"a task for step {task.step} has records up to step {self.step} only")

    def _checksum(self, x: NDArray[Any], y: NDArray[np.int64]) -> int:
        """Return a CRC-32 of what all workers have in common when a step begins.

        These are the weights, which samples were hard at their last visit, and the logits of a few.
        """
        if self._state is None:
            hard = np.packbits(self.course.pool.hard > self.objective.threshold)
            few = self.course.model, self.params, x[:PROBE], y[:PROBE]
            logits = forward(*few, self.objective.threads)[0]
            self._state = 0
            for each in (*self.params.values(), hard, logits):
                self._state = zlib.crc32(each.data, self._state)
        return self._state


# --- What a process knows

_replicas: OrderedDict[bytes, Replica] = OrderedDict()
_lock = threading.Lock()


@cache
def _name(process: int) -> bytes:
    """Return eight bytes that name this process, drawn once; a forked child has others."""
    return os.urandom(8)


@cache
def _dataset(path: str | None) -> Dataset:
    """Read the data of a brief, once per process."""
    return load_mnist() if path is None else load_npz(path)


def answer(message: bytes) -> bytes:
    """Answer a task, given and returned as bytes: the function that executors run on workers.

    Never raises: what is wrong is in the answer, so that no exception must travel.
    """
    worker = _name(os.getpid())
    try:
        task = Task.unpack(message)
        replica = _replica(task)
        if replica is None:
            return Answer(UNKNOWN, worker, 0).pack()
        _check_part(task, replica.plan)
        return replica.measure(task, worker).pack()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".encode()
        return Answer(REFUSED, worker, 0, body=reason[:1000]).pack()


def _forget() -> None:
    """Let a forked child make its replicas anew: threads that it lacks may be within these."""
    global _lock
    _lock = threading.Lock()
    _replicas.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _check_part(task: Task, plan: Plan) -> None:
    """Refuse a part that a step of the run has not."""
    low, high = task.chunks
    if not 0 <= task.first < task.stop <= items(plan) or not 0 <= low < high <= CHUNKS:
        raise ValueError(f"a step has no part {task.first} to {task.stop} of chunks {task.chunks}")
    forms = (SUMS, CODES, ROUNDED, EXACT) if plan.method == "sampled" else (SUMS,)
    whole = task.form in (ROUNDED, EXACT) or task.chunks == (0, CHUNKS)
    inside = all(task.first <= number < task.stop for number in task.exact)
    if task.form not in forms or not whole or not inside:
        raise ValueError(f"method {plan.method} has no answer of form {task.form} to this task")


def _replica(task: Task) -> Replica | None:
    """Return the replica of a task's run; None if this process has none and got no brief."""
    with _lock:
        if task.run in _replicas:
            _replicas.move_to_end(task.run)
            return _replicas[task.run]
        if not task.brief:
            return None
        if run_name(task.brief) != task.run:
            raise ValueError("the brief is of another run")
        brief = parse_object(task.brief)
        if brief["version"] != minibit.__version__:
            raise ValueError(
                f"the client has minibit {brief['version']}, this worker {minibit.__version__}"
            )
        threads = int(os.environ.get("MINIBIT_THREADS", "1"))
        replica = Replica(brief["header"], _dataset(brief["data"]), threads)
        _replicas[task.run] = replica
        while len(_replicas) > MOST_RUNS:
            _replicas.popitem(last=False)
        return replica
