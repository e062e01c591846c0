"""Edits of history: which steps an edit changes, and the seeds and numbers that name their noise.

Pure: `StepLog.negate`, `.mask` and `.concat` write the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer_array
from minibit.noise_step import Plan, SampledStep, UnitsStep
from minibit.steps.bounds import Step

__all__ = [
    "EDITS",
    "Segments",
    "Steps",
    "checked_segments",
    "chosen_steps",
    "intervals",
    "named",
    "segments_of",
]

Steps: TypeAlias = SupportsIndex | slice | Iterable[SupportsIndex] | NDArray[Any]
Segments: TypeAlias = list[list[int]]  # [seed, first number, count], one after the other


def chosen_steps(steps: Steps, length: int) -> list[int]:
    """Turn an int, slice, iterable or bool mask into increasing step numbers in [0, length).

    Numbers out of range are refused; a negative one is, too. Of a slice that goes past the end,
    what there is of it counts, as in NumPy.
    """
    if isinstance(steps, slice):
        return sorted(range(length)[steps])
    array = np.atleast_1d(np.array([*steps] if isinstance(steps, Iterable) else steps))
    if array.dtype == bool:
        if array.shape != (length,):
            raise ValueError(f"a mask of steps must have shape ({length},), got {array.shape}")
        return [*map(int, np.flatnonzero(array))]
    if array.size and not length:
        raise ValueError(f"steps must be those of the log, which has none, got {steps!r:.80}")
    return [*map(int, np.unique(integer_array("steps", array, 0, length - 1, ndim=1)))]


def intervals(numbers: Iterable[int]) -> list[list[int]]:
    """Join increasing numbers to half-open intervals: ``[1, 2, 5] -> [[1, 3], [5, 6]]``."""
    joined: list[list[int]] = []
    for number in numbers:
        if joined and joined[-1][1] == number:
            joined[-1][1] += 1
        else:
            joined.append([number, number + 1])
    return joined


def negated(step: Step) -> Step:
    """Turn the moves of a step round."""
    if isinstance(step, SampledStep):
        return SampledStep(step.numerator, -step.codes)
    return UnitsStep(step.positions, tuple(-sign for sign in step.signs))


def masked(step: Step) -> Step:
    """Return a step of the same kind that moves nothing."""
    if isinstance(step, SampledStep):
        return SampledStep(step.numerator, np.zeros_like(step.codes))
    return UnitsStep(tuple(q[:0] for q in step.positions), tuple(sign[:0] for sign in step.signs))


EDITS: dict[str, Callable[[Step], Step]] = {"negate": negated, "mask": masked}


def named(plan: Plan, segments: Segments, first: int = 0) -> Iterator[tuple[Plan, int]]:
    """Yield the plan (with its seed) and the number that steps `first`, ... are drawn by, for ever.

    Segments name the first steps, in turn; step s after them is number s of the plan's own seed.
    """
    at = 0
    for seed, start, count in segments:
        seeded = replace(plan, seed=seed)
        for number in range(start + max(0, first - at), start + count):
            yield seeded, number
        at += count
    at = max(at, first)
    while True:
        yield plan, at
        at += 1


def segments_of(names: Iterable[tuple[Plan, int]], count: int) -> Segments:
    """Join the first `count` names to as few segments as may be."""
    segments: Segments = []
    for plan, number in islice(names, count):
        if segments and [plan.seed, number] == [segments[-1][0], sum(segments[-1][1:])]:
            segments[-1][2] += 1
        else:
            segments.append([plan.seed, number, 1])
    return segments


def checked_segments(segments: Any) -> Segments:
    """Check a header's ``segments``; ValueError if they are no ``[seed, first number, count]``."""
    if not isinstance(segments, list) or not all(
        isinstance(part, list)
        and len(part) == 3
        and all(type(number) is int for number in part)
        and 0 <= part[0] < 1 << 64
        and 0 <= part[1] < part[1] + part[2] <= 1 << 32
        for part in segments
    ):
        raise ValueError(f"segments must be a list of [seed, first, count], got {segments!r:.200}")
    return segments
