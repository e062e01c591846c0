"""Threads for kernels: a few workers that every caller may use at the same time.

Numba's own ``parallel=True`` picks a threading layer when it first runs, and its default layer
aborts the process when two Python threads call at once. Our kernels release Python's lock and are
safe side by side, so plain Python threads do the same work without that hazard: the caller cuts a
product into independent ranges, gives all but one to the pool, and does the first itself. A task
never submits another, so callers cannot wait for one another in a circle.

May import: numpy.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

__all__ = ["cpus", "run"]

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


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


def run(tasks: list[Callable[[], bool]]) -> bool:
    """Run tasks side by side, the first in the caller; whether all returned true.

    If tasks raise, the first one's exception is raised, after all have ended: nobody writes into an
    array that the caller has given up.
    """
    futures = [_executor().submit(task) for task in tasks[1:]]
    try:
        done = [tasks[0]()]
    finally:
        for future in futures:
            future.exception()  # waits
    return all(done + [future.result() for future in futures])


def _executor() -> ThreadPoolExecutor:
    """Return the shared pool, made on first use."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(os.cpu_count() or 1, 2), "minibit")
        return _pool


def _forget() -> None:
    """Drop the pool in a forked child, where its threads do not exist."""
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
