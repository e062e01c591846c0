"""A Dask cluster on this machine, set for steps that keep every CPU busy."""

from __future__ import annotations

from typing import Any

from minibit.base import checks

__all__ = ["local_cluster"]

# Dask looks at the stack of a busy thread every 10 ms, and has the C library give memory back to
# the system after each use: a step would page in its batch anew.
SETTINGS = {
    "distributed.worker.profile.enabled": False,
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
}


def local_cluster(workers: int, **options: Any) -> Any:
    """Start a ``distributed.LocalCluster`` whose processes have one thread each.

    In use::

        with local_cluster(2) as local, local.get_client() as client:
            train_on(client)

    Parameters
    ----------
    workers : int
        How many processes, at least 1.
    **options
        Of ``LocalCluster``.

    Returns
    -------
    LocalCluster
        Ends its processes when it is closed, or when its ``with`` block ends.

    Raises
    ------
    ValueError
        If `workers` is below 1.

    Examples
    --------
    >>> local_cluster(0)
    Traceback (most recent call last):
        ...
    ValueError: workers must be at least 1, got 0
    """
    workers = checks.integer("workers", workers, 1)
    import dask
    from distributed import LocalCluster

    one = {"n_workers": workers, "threads_per_worker": 1, "memory_limit": None}
    with dask.config.set(SETTINGS):
        return LocalCluster(**{**one, "env": {"MINIBIT_THREADS": "1"}, **options})
