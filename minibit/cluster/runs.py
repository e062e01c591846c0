"""`train_on`: a training run whose steps are taken by an executor's workers, or by Dask's."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minibit.cluster.asking import PATIENCE, Traffic
from minibit.cluster.crews import crew_of
from minibit.cluster.remote import Remote
from minibit.cluster.replica import brief_of
from minibit.datasets import load_mnist, load_npz
from minibit.noise_step import Plan, SampledStep, UnitsStep
from minibit.training import Course, Progress, TrainResult, train

__all__ = ["ClusterProgress", "ClusterResult", "train_on"]


@dataclass(frozen=True)
class ClusterProgress(Progress):
    """Where a run on workers stands."""

    workers: int  # that share a step now
    traffic: Traffic  # since the run began, or was resumed


@dataclass(frozen=True)
class ClusterResult(TrainResult):
    """What a run came to, and what travelled for it."""

    traffic: Traffic = field(default_factory=Traffic)
    left_out: dict[str, str] = field(default_factory=dict)  # workers that got no more tasks: why
    workers: int = 0  # that shared the last step


def train_on(
    engine: Any,
    preset: str = "small",
    seed: int = 0,
    out: str | Path = "model.steps",
    *,
    data: str | Path | None = None,
    workers: int | None = None,
    cut: str | None = None,
    alone: bool = False,
    check: float = 0.0,
    patience: float = PATIENCE,
    progress: Callable[[ClusterProgress], None] | None = None,
    **options: Any,
) -> ClusterResult:
    """Train an MLP by noise_step on many machines; only codes travel.

    Each worker measures a step's perturbations over a part of the batch, or a range of its drawn
    units over all of it. The client joins what they answer and decides as `minibit.training.train`
    does, so the log is that of a serial run with the same seed, whatever the number of workers, as
    long as the machines round alike; workers whose weights or samples differ are found out at the
    next step.

    Parameters
    ----------
    engine : concurrent.futures.Executor, or distributed.Client
        Where tasks run. Workers need minibit in the client's version. With an executor that is
        lost, or a scheduler, the run ends; `resume` goes on from the log.
    preset, seed, out
        As for `train`.
    data : path, optional
        A ``.npz`` file (`minibit.datasets.load_npz`) that every worker finds under this path; MNIST
        by default, which the package has. A worker with other data is refused. A fork's own data
        are those of its steps to come; its first steps need none.
    workers : int, optional
        For how many workers an executor's steps are cut; Dask knows its own.
    cut : "samples" or "perturbations", optional
        Of method ``sampled``: whether a worker measures all perturbations over a part of the batch,
        which is quick and the default, or a range of them over all of it. Then moves belong to one
        worker each, and `StepLog.revert` can leave those of one out.
    alone : bool
        Whether a worker takes the median of its own range and answers codes alone: the least
        traffic, and other codes than a serial run. Method ``sampled`` only.
    check : float
        Share of the parts that two workers measure. A worker whose answer is outvoted is named in
        ``left_out`` and gets no more tasks.
    patience : float
        Seconds after which an unanswered task is sent to another worker, too.
    progress : callable, optional
        Gets a `ClusterProgress` about twice a second; as for `train`.
    **options
        Of `train`: ``steps``, ``resume``, ``overwrite``, ``widths``, ``split_name``,
        ``total_steps``, ``threads`` (of the client's own forward passes), and fields of `Preset`.

    Raises
    ------
    TypeError, ValueError
        If an argument is none; as `train` does.
    RuntimeError
        If no worker is left; what was trained so far is in the log.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
    ...     result = train_on(pool, "small", 0, folder + "/a.steps", steps=2)
    >>> result.steps, result.traffic.tasks >= 4
    (2, True)
    """
    crew = crew_of(engine, workers)
    path = None if data is None else os.path.abspath(data)
    dataset = load_mnist() if path is None else load_npz(path)
    remotes: list[Remote] = []

    def begin(
        plan: Plan,
        records: Sequence[SampledStep | UnitsStep],
        header: dict[str, Any],
        course: Course,
    ) -> Remote:
        brief, method = brief_of(header, path, os.urandom(8).hex()), course.recipe.settings()
        settings: dict[str, Any] = {"cut": cut, "alone": alone, "check": check}
        remotes.append(Remote(crew, plan, method, brief, records, patience=patience, **settings))
        return remotes[0]

    def report(point: Progress) -> None:
        if progress:
            progress(ClusterProgress(**vars(point), **_now(remotes[0])))

    result = train(preset, seed, out, dataset=dataset, engine=begin, progress=report, **options)
    return ClusterResult(**vars(result), **_now(remotes[0]), left_out=remotes[0].left_out)


def _now(remote: Remote) -> dict[str, Any]:
    """Return how many workers shared the last step, and what travelled so far."""
    return {"workers": remote.workers, "traffic": remote.traffic}
