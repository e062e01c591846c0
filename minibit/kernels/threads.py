"""Threads for kernels: a few workers that every caller may use at the same time.

Numba's own ``parallel=True`` picks a threading layer when it first runs, and its default layer
aborts the process when two Python threads call at once. Our kernels release Python's lock and are
safe side by side, so plain Python threads do the same work without that hazard: the caller cuts a
product into independent ranges, gives all but one to workers, and does the first itself. A task
never submits another, so callers cannot wait for one another in a circle.

To wake a sleeping thread takes some 50 microseconds, as long as a product of millions of weights. A
language model asks for hundreds of products in a row, so the workers of the `_Team` look for the
next task for about a tenth of a millisecond before they go to sleep, and the caller looks for
their results in the same way. While they look they hold no lock of Python's. A worker that wakes
keeps off the CPU of its caller, where some schedulers would put it and both would wait for each
other. One caller at a time has the team; another one that comes meanwhile uses an ordinary pool.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from minibit.kernels import compiled

__all__ = ["cpus", "run"]

Task = Callable[[], bool]

LOOKS = 5000  # 60 to 200 microseconds, by how long a CPU pauses at each look
GRACE = 50  # 0.5 to 2 microseconds, in which the other side lets go of Python's lock
APART = 8  # int64 between two workers' numbers: a cache line each


def cpus() -> int:
    """Threads that this process may use: ``MINIBIT_THREADS``, or the CPUs that it may run on.

    Raises
    ------
    ValueError
        If ``MINIBIT_THREADS`` is not a positive whole number.
    """
    wanted = os.environ.get("MINIBIT_THREADS", "")
    if wanted:
        if not wanted.isascii() or not wanted.isdigit() or int(wanted) < 1:
            raise ValueError(f"MINIBIT_THREADS must be a whole number above 0, got {wanted!r}")
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(tasks: list[Task]) -> bool:
    """Run tasks side by side, the first in the caller; whether all returned true.

    If tasks raise, the first one's exception is raised, after all have ended: nobody writes into an
    array that the caller has given up.
    """
    if compiled():
        team = _team()
        if len(tasks) <= len(team.workers) + 1 and team.free.acquire(blocking=False):
            try:
                return team.run(tasks)
            finally:
                team.free.release()
    futures = [_executor().submit(task) for task in tasks[1:]]
    try:
        done = [tasks[0]()]
    finally:
        for future in futures:
            future.exception()  # waits
    return all(done + [future.result() for future in futures])


class _Worker:
    """What one thread of the team is asked, and what it answers."""

    def __init__(self) -> None:
        self.turn = 0
        self.task: Task | None = None  # None: end
        self.result = False
        self.error: BaseException | None = None
        self.asleep = False
        self.caller = -1  # the CPU on which the caller ran when it rang; -1: not known
        self.bell = threading.Condition()


class _Team:
    """Threads that look for work a little while before they sleep."""

    def __init__(self, size: int) -> None:
        from minibit.kernels.spin import wait

        self.free = threading.Lock()
        self.asked = np.zeros(size * APART, np.int64)  # turn of each worker's newest task
        self.done = np.zeros(size * APART, np.int64)  # turn of its newest result
        self.wait = wait
        self.cpu = _current_cpu()
        wait(self.done, 0, 0, 1, 0)  # compiled before the first product
        self.workers = [_Worker() for _ in range(size)]
        for number in range(size):
            arguments = (number, self.workers[number])
            threading.Thread(target=self.serve, args=arguments, daemon=True).start()

    def run(self, tasks: list[Task]) -> bool:
        """Run at most one task more than there are workers."""
        busy = self.workers[: len(tasks) - 1]
        for number, task in enumerate(tasks[1:]):
            self.ask(number, task)
        try:
            done = tasks[0]()
        finally:
            for number, worker in enumerate(busy):
                while not self.wait(self.done, number * APART, worker.turn, LOOKS, GRACE):
                    time.sleep(0)
        for worker in busy:
            if worker.error is not None:
                raise worker.error
        return done and all(worker.result for worker in busy)

    def ask(self, number: int, task: Task | None) -> None:
        """Give a worker its next task, and wake it if it sleeps."""
        worker = self.workers[number]
        worker.task, worker.error = task, None
        worker.turn += 1
        self.asked[number * APART] = worker.turn
        if worker.asleep:
            worker.caller = self.cpu()
            with worker.bell:
                worker.bell.notify()

    def serve(self, number: int, worker: _Worker) -> None:
        """Do what is asked, turn after turn."""
        turn, place = 0, number * APART
        while True:
            turn += 1
            if not self.wait(self.asked, place, turn, LOOKS, GRACE):
                with worker.bell:
                    worker.asleep = True
                    while self.asked[place] < turn:  # looked at after `asleep` is seen by `ask`
                        worker.bell.wait()
                    worker.asleep = False
                _keep_off(worker.caller)
            if worker.task is None:
                return
            try:
                worker.result = worker.task()
            except BaseException as error:
                worker.error = error
            worker.task = None  # nor keep its arrays alive
            self.done[place] = turn

    def end(self) -> None:
        """Let the threads go."""
        for number in range(len(self.workers)):
            self.ask(number, None)


def _current_cpu() -> Callable[[], int]:
    """Return the C library's function for the CPU that the caller runs on; -1 if there is none."""
    if hasattr(os, "sched_setaffinity"):
        library = ctypes.CDLL(None)
        if hasattr(library, "sched_getcpu"):
            found: Callable[[], int] = library.sched_getcpu
            return found
    return lambda: -1


def _keep_off(cpu: int) -> None:
    """Let this thread run on the CPUs of the process, but for one if there are others."""
    if cpu >= 0:
        others = os.sched_getaffinity(os.getpid()) - {cpu}
        if others:
            os.sched_setaffinity(0, others)


_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_made: _Team | None = None


def _executor() -> ThreadPoolExecutor:
    """Return the shared pool, made on first use."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(os.cpu_count() or 1, 2), "minibit")
        return _pool


def _team() -> _Team:
    """Return the team, made on first use: with the caller, a thread a CPU."""
    global _made
    with _lock:
        if _made is None:
            _made = _Team(max((os.cpu_count() or 1) - 1, 1))
            atexit.register(_made.end)
        return _made


def _forget() -> None:
    """Drop all threads in a forked child, where they do not exist."""
    global _lock, _pool, _made
    if _made is not None:
        atexit.unregister(_made.end)
    _lock, _pool, _made = threading.Lock(), None, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
