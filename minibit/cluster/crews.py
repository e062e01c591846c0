"""Workers behind one interface: any `concurrent.futures.Executor`, or a Dask client.

A *crew* lists its present workers as *lanes*; a lane takes a task and gives a future. An executor's
lanes all lead to the same pool, which hands a task to whichever process is free. Dask's lead to one
worker each, so that a worker gets only the records that it has not seen, and no other takes its
tasks; those of a worker that has left are sent elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from minibit.base import integer
from minibit.cluster.replica import answer

__all__ = ["Crew", "Lane", "crew_of"]

REPLICA = answer.__module__
REFRESH = 1.0  # seconds for which a list of Dask's workers is good


@dataclass(frozen=True)
class Lane:
    """A way to one worker, or to a pool of them."""

    name: str
    submit: Callable[[bytes], Future[Any]]


class Crew(Protocol):
    """Workers that come and go."""

    def lanes(self) -> list[Lane]:
        """Return the present workers, in a fixed order."""


class Pool:
    """The workers of an executor: so many lanes into one pool."""

    def __init__(self, executor: Executor, workers: int) -> None:
        self._lanes = [
            Lane(f"worker {number}", lambda task: executor.submit(answer, task))
            for number in range(workers)
        ]

    def lanes(self) -> list[Lane]:
        """Return a lane per worker; a pool's number of workers does not change."""
        return self._lanes


class DaskCrew:
    """The workers of a Dask cluster, one lane each, as they are now."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lanes: dict[str, Lane] = {}
        self._read = -REFRESH

    def lanes(self) -> list[Lane]:
        """Return a lane per worker that the scheduler knows; it is asked once a second, or so."""
        if not self._lanes or time.monotonic() - self._read > REFRESH:
            try:
                known = self._client.scheduler_info(n_workers=-1)["workers"]
            except Exception:  # what Dask raises once its scheduler is gone depends on the moment
                known = {}
            self._lanes = {
                name: self._lanes.get(name) or self._lane(name) for name in sorted(known)
            }
            self._read = time.monotonic()
        return list(self._lanes.values())

    def _lane(self, address: str) -> Lane:
        executor = self._client.get_executor(workers=[address], pure=False)

        def submit(message: bytes) -> Future[Any]:
            # By value: a worker without minibit could not read `answer`, and would end.
            future: Future[Any] = executor.submit(
                lambda task: import_module(REPLICA).answer(task), message
            )
            return future

        return Lane(address, submit)


def crew_of(engine: Any, workers: int | None = None) -> Crew:
    """Return the crew of an executor or of a Dask client.

    Parameters
    ----------
    engine : concurrent.futures.Executor, or distributed.Client
    workers : int, optional
        How many ranges a step is cut into, of an executor: by default its number of workers, where
        it says that, else 2. A Dask client has as many as there are workers.

    Raises
    ------
    TypeError
        If `engine` is neither.
    """
    if hasattr(engine, "get_executor") and hasattr(engine, "scheduler_info"):
        return DaskCrew(engine)
    if not callable(getattr(engine, "submit", None)):
        raise TypeError(
            "engine must be a concurrent.futures.Executor or a Dask client, "
            f"got {type(engine).__name__}"
        )
    if workers is None:
        workers = getattr(engine, "_max_workers", None) or 2
    return Pool(engine, integer("workers", workers, 1))
