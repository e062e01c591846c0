"""Threads for kernels: a few workers that every caller may use at the same time.

Numba's own ``parallel=True`` aborts the process, by its default layer, when two Python threads call
at once. Kernels release Python's lock and are safe side by side, so plain Python threads do the
same work: the caller cuts a product into independent ranges, offers them to workers, and does the
first itself.

**No caller depends on a worker.** A worker takes a task only when it begins it; the caller does
those that no worker has begun. So a product ends where no thread can start, where workers are gone
(a forked child, an interpreter that exits) and where one of them is late. The caller waits only for
tasks that a worker is in the middle of, even if a signal interrupts it, in one call into compiled
code: no worker writes into an array that its caller has given up.

**No caller waits for a lock.** A signal's handler may call while its thread is anywhere within a
call, and a forked child lacks the thread that had taken a lock, even one that Python does not yet
know to be taken. So what callers and workers share changes in single steps: entries of a dict.

To wake a sleeping thread takes some 50 microseconds, as long as a product of millions of weights.
So workers look for the next offer for about a tenth of a millisecond before they go to sleep, and
the caller looks for their results in the same way, without Python's lock. A worker that wakes keeps
off the CPU of its caller, where some schedulers would put it and both would wait for each other.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import math
import os
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np

from minibit.kernels import compiled

Task = Callable[[], bool]

LOOKS = 5000  # 60 to 200 microseconds, by how long a CPU pauses at each look
GRACE = 50  # 0.5 to 2 microseconds, in which the other side lets go of Python's lock
APART = 8  # int64 between two workers' numbers: a cache line each
LEAVING = 1.0  # seconds that the interpreter waits at its exit for workers to leave


def cpus() -> int:
    """Threads that this process may use: ``MINIBIT_THREADS``, or the CPUs that it may run on.

    A ``MINIBIT_THREADS`` that is no positive whole number is a ValueError.
    """
    number = os.environ.get("MINIBIT_THREADS", "")
    if not number:
        return available()
    if not number.isascii() or not number.isdigit() or int(number) < 1:
        raise ValueError(f"MINIBIT_THREADS must be a whole number above 0, got {number!r}")
    return int(number)


def available() -> int:
    """CPUs that this process may run on: by its affinity, and by the limit of its container."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    return min(count, _quota())


@cache
def _quota(root: Path = Path("/")) -> int:
    """CPUs whose whole time Linux's control groups grant, rounded up; many if there is no limit."""
    limit = float(2**16)
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return int(limit)
    for line in lines:
        _, controllers, group = line.split(":", 2)
        names = ["cpu", controllers] if "cpu" in controllers.split(",") else []  # version 1
        for name in names if controllers else [""]:  # version 2 has one tree for all controllers
            folder = root / "sys/fs/cgroup" / name
            for part in ("", *PurePosixPath(group).parts[1:]):  # the limits of all groups above
                folder /= part
                limit = min(limit, _share(folder))
    return math.ceil(limit)


def _share(folder: Path) -> float:
    """CPUs that one control group grants; infinity if it sets no limit."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if int(quota) > 0:
                return int(quota) / int(period)
        except (OSError, ValueError):  # no such file, or "max"
            pass
    return math.inf


def run(tasks: Sequence[Task], threads: int | None = None) -> bool:
    """Run tasks, on at most `threads` threads of which one is the caller's; whether all were true.

    If tasks raise, the first one's exception is raised, after all have ended. An interrupt, which
    is no ``Exception``, ends the caller's share at once, leaves out tasks that are not begun, and
    goes on when no worker is within a task of this call. A RuntimeError says that a task was begun
    and has no result: its worker's thread was killed.
    """
    job = _Job(tasks)
    helpers = min(len(tasks), threads or len(tasks)) - 1
    team = _ready() if helpers > 0 else None
    if team is None:
        job.work(0)
    else:
        team.share(job, helpers)
    return job.outcome(len(tasks))


_numbers = itertools.count(1)


class _Job:
    """One call of `run`: the tasks that nobody has begun, and what the others came to."""

    __slots__ = ("errors", "number", "open", "results")

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.number = next(_numbers)
        self.open = dict(enumerate(tasks))
        self.results: dict[int, bool] = {}
        self.errors: dict[int, Exception] = {}

    def work(self, first: int) -> None:
        """Do task `first`, then others, as long as there is one that nobody has begun."""
        index, task = first, self.open.pop(first, None)
        while True:
            if task is not None:
                try:
                    self.results[index] = task()
                except Exception as error:
                    self.errors[index] = error
            if not self.open:
                return
            try:
                index, task = self.open.popitem()
            except KeyError:  # somebody was quicker
                return

    def outcome(self, count: int) -> bool:
        """Return whether all of `count` tasks were true."""
        if self.errors:
            raise self.errors.pop(min(self.errors))
        if len(self.results) < count:
            raise RuntimeError(
                "a task has no result: the thread of its worker was ended from outside, or this "
                "process was forked within the call. The next call has new workers"
            )
        return all(self.results.values())


class _Worker:
    """One thread of the team: the offers made to it, and its answers."""

    __slots__ = ("answered", "asleep", "bell", "offer", "slot", "thread", "turn")

    def __init__(self, slot: int, turn: int) -> None:
        self.slot = slot  # index of this worker's numbers in the team's arrays
        self.turn = turn  # of the newest offer; several callers may make one at the same time
        self.answered = turn  # the newest offer that it is done with
        self.offer: tuple[_Job, int] | None = None  # the job, and the task to begin with
        self.asleep = False
        self.bell = threading.Lock()  # released to wake it
        self.thread = 0  # the system's number of its thread, once it runs
        self.bell.acquire()


class _Team:
    """Threads that look for work a little while before they sleep."""

    def __init__(self) -> None:
        from minibit.kernels import spin

        size = (os.cpu_count() or 1) * APART
        self.asked = np.zeros(size, np.int64)  # turn of each worker's newest offer
        self.inside = np.zeros(size, np.int64)  # number of the job that a worker is within
        self.wait, self.settle, self.cpu = spin.wait, spin.settle, _current_cpu()
        self.workers: dict[int, _Worker] = {}  # by slot
        self.closed = False
        self.wait(self.asked, 0, 0, 1, 0)  # compiled before the first product
        self.settle(self.inside, APART, 1, 1, 0)

    def share(self, job: _Job, helpers: int) -> None:
        """Do a job together with workers; leave when none of them is within it, whatever comes."""
        try:
            try:
                if len(self.workers) < helpers and not self.closed:
                    self.grow(helpers)
                first = self.offer(job, helpers, 0, busy=False)
                if first < helpers:  # a busy worker joins later, or not at all
                    self.offer(job, helpers, first, busy=True)
                job.work(0)
            finally:
                job.open.clear()
        finally:  # nothing that a signal can interrupt stands between here and the call
            self.settle(self.inside, APART, job.number, LOOKS, GRACE)

    def offer(self, job: _Job, helpers: int, first: int, busy: bool) -> int:
        """Offer a job to workers that are free, or to the others; return to how many in all."""
        for worker in list(self.workers.values()):
            offer, free = worker.offer, worker.asleep or worker.answered == worker.turn
            if free is busy or (offer is not None and offer[0] is job):
                continue
            first += 1
            worker.offer = job, first
            worker.turn = turn = worker.turn + 1
            self.asked[worker.slot] = turn
            if worker.asleep:
                _keep_off(self.cpu(), worker.thread)
                _ring(worker)
            if first == helpers:
                break
        return first

    def grow(self, wanted: int) -> None:
        """Start workers up to `wanted`, and one less than there are CPUs; as many as can start."""
        most = min(wanted, available() - 1, len(self.asked) // APART)
        for slot in range(0, len(self.asked), APART):
            if len(self.workers) >= most or not threading.main_thread().is_alive():
                return  # there are enough, or Python is leaving
            worker = _Worker(slot, int(self.asked[slot]))
            if self.workers.setdefault(slot, worker) is worker:
                try:
                    start_new_thread(self.serve, (worker,))
                except (RuntimeError, MemoryError):  # a limit on threads, or on memory
                    del self.workers[slot]
                    return

    def serve(self, worker: _Worker) -> None:
        """Take offers, turn after turn, until the team is closed."""
        seen, slot = worker.turn, worker.slot
        worker.thread = threading.get_native_id()
        try:
            while not self.closed:
                turn = self.wait(self.asked, slot, seen, LOOKS, GRACE)
                if turn == seen:
                    worker.asleep = True
                    while self.asked[slot] == seen and not self.closed:
                        worker.bell.acquire()  # `asked` is looked at after `asleep` is seen
                    worker.asleep = False
                    turn = self.asked[slot]
                seen = int(turn)
                offer, worker.offer = worker.offer, None
                if offer is not None:
                    self.inside[slot] = offer[0].number  # before it takes a task
                    try:
                        offer[0].work(offer[1])
                    finally:
                        self.inside[slot] = 0
                    offer = None  # so that its arrays are not kept alive
                worker.answered = seen
        finally:
            del self.workers[slot]

    def end(self) -> None:
        """Let the threads go, and wait a little until they are gone."""
        self.closed = True
        for worker in list(self.workers.values()):
            worker.turn += 1
            self.asked[worker.slot] = worker.turn
            _ring(worker)
        limit = time.monotonic() + LEAVING
        while self.workers and time.monotonic() < limit:
            time.sleep(0.0005)


def _ring(worker: _Worker) -> None:
    """Wake a worker, by one call that no interrupt can cut in two."""
    try:  # noqa: SIM105
        worker.bell.release()
    except RuntimeError:  # the bell is rung already
        pass


def _current_cpu() -> Callable[[], int]:
    """Return the C library's function for the CPU that the caller runs on; -1 if there is none."""
    library = ctypes.CDLL(None) if hasattr(os, "sched_setaffinity") else None
    function: Callable[[], int] = getattr(library, "sched_getcpu", lambda: -1)
    return function


def _keep_off(cpu: int, thread: int) -> None:
    """Let a thread run on the CPUs of the process, but for one if there are others."""
    if cpu >= 0 and thread:
        try:
            all_cpus = os.sched_getaffinity(os.getpid())
            os.sched_setaffinity(thread, all_cpus - {cpu} or all_cpus)
        except OSError:  # a container may refuse it, or take CPUs away meanwhile
            pass


_team: _Team | None = None


def _ready() -> _Team | None:
    """Return the team, made on first use; None where nothing is compiled."""
    global _team
    if _team is None and compiled():
        team = _Team()
        if _team is None:  # nobody was quicker; if two are as quick, both teams work
            _team = team
            atexit.register(team.end)
    return _team


def _forget() -> None:
    """Drop all threads in a forked child, where they do not exist."""
    global _team
    if _team is not None:
        _team.inside[:] = 0  # of a call that forked
        _team.closed = True
        atexit.unregister(_team.end)
    _team = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
