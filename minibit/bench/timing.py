"""Candidates take turns in one process: a machine that slows down slows all of them."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Candidates", "expect_time", "in_turn", "interleaved", "medians", "warm_medians"]

Candidates = Mapping[str, Callable[[], object]]

ROUND = 2e-3  # seconds that a candidate is timed at a turn, after as many that are not
LEAST = 8  # calls of each kind: a shared cache takes several passes to hold what was read anew


def expect_time(holds: bool | np.bool_, expected: str) -> None:
    """Say that a measured time is unusual if what was expected of it does not hold.

    Times depend on what else the machine does, so a chapter prints the sentence and goes on. With
    ``MINIBIT_STRICT=1`` in the environment, as on a quiet machine, it is an AssertionError.

    Examples
    --------
    >>> expect_time(3 < 4, "the second takes longer")
    """
    if holds:
        return
    if os.environ.get("MINIBIT_STRICT") == "1":
        raise AssertionError(f"expected: {expected}")
    print(f"(Unusual: expected was that {expected}. Something else may keep this machine busy.)")


def in_turn(function: Callable[..., object], arguments: Iterable[Any]) -> Callable[[], object]:
    """Call a function with one tuple of arguments after another, again and again."""
    turns = itertools.cycle(arguments)
    return lambda: function(*next(turns))


def interleaved(
    candidates: Candidates,
    *,
    seconds: float = 2.0,
    least_rounds: int = 5,
    warmups: int = 2,
    turns: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Time functions in turn, round after round, and return the seconds of each round by name.

    First, each is called `warmups` times for its compilation. Rounds go on for so many `seconds`,
    and at least so many rounds. `turns` are the calls of a turn: those that only fill caches, and
    those that are timed together, by default 0 and 1; a round's time is that of one call.
    """
    if not candidates:
        raise ValueError("candidates must not be empty")
    for function in candidates.values():
        for _ in range(warmups):
            function()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < least_rounds or time.perf_counter() < end:
        for name, function in candidates.items():
            untimed, timed = turns[name] if turns else (0, 1)
            for _ in range(untimed):
                function()
            start = time.perf_counter()
            for _ in range(timed):
                function()
            times[name].append((time.perf_counter() - start) / timed)
        rounds += 1
    return {name: np.array(each) for name, each in times.items()}


def medians(candidates: Candidates, **settings: Any) -> dict[str, float]:
    """Median seconds of a call of each; settings are those of `interleaved`."""
    times = interleaved(candidates, **settings)
    return {name: float(np.median(each)) for name, each in times.items()}


def warm_medians(candidates: Candidates, seconds: float) -> dict[str, float]:
    """Median seconds of a call of each, from turns of several calls after some that warm.

    At its turn, a candidate runs untimed for two milliseconds and at least eight calls, or for one
    call that takes longer, so that it finds in the caches what its own weights leave there. Then
    as many calls are timed.
    """
    turns = {}
    for name, function in candidates.items():
        alone = interleaved({name: function}, seconds=0.0, least_rounds=3)[name]
        calls = round(ROUND / float(alone.min()))
        calls = max(LEAST, min(2000, calls)) if calls else 1
        turns[name] = (calls, calls)
    return medians(candidates, seconds=seconds, least_rounds=15, warmups=0, turns=turns)
