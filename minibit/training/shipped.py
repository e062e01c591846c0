"""The training run in the package: the default preset, all of its steps, from seed 0.

    network           784-256-256-256-10, 334,336 ternary weights
    data              the 60,000 training images of MNIST
    log               800 steps, 36.7 KB
    test accuracy     97.13%

It is the run of seed 0 and preset ``small`` of ``minibit experiment train``
(``chapters/results/train.json`` has its digest).
"""

from __future__ import annotations

from importlib import resources

from minibit.steps import StepLog

__all__ = ["shipped_log"]


def shipped_log() -> StepLog:
    """Return the log in the package, from which its network is replayed.

    Examples
    --------
    >>> log = shipped_log()
    >>> len(log), log.nbytes
    (800, 36702)
    """
    resource = resources.files("minibit").joinpath("data", "small.steps")
    with resources.as_file(resource) as path:
        return StepLog.open(path)
