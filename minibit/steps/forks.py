"""Forks and their merges: the steps that two logs share, and the seeds of the steps after them.

Pure: `StepLog.fork` and `StepLog.merge` write the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, islice

from minibit.noise_step import Plan
from minibit.steps.bounds import Step
from minibit.steps.codes import pack_steps
from minibit.steps.edits import Segments, named, segments_of

__all__ = ["fork_segments", "merged", "seed_at", "seed_from"]

Branch = tuple[Segments, Sequence[Step]]  # a log's segments and its steps
MOST_NUMBER = 1 << 32  # steps are numbered below it


def fork_segments(plan: Plan, segments: Segments, step: int, seed: int | None) -> Segments:
    """Keep the names of the first `step` steps, and let all that follow be drawn by `seed`.

    The steps after keep their own numbers in the log. Without a seed they keep their seed, too.
    """
    if seed is None:
        return segments
    before = segments_of(named(plan, segments), step)
    return [*before, [seed, step, MOST_NUMBER - step]]


def seed_at(seed: int, segments: Segments, step: int) -> tuple[int, int]:
    """Return the seed and the number by which a step's noise is drawn; `seed` is the plan's."""
    at = 0
    for other, first, count in segments:
        if step < at + count:
            return other, first + step - at
        at += count
    return seed, step


def seed_from(seed: int, segments: Segments, step: int) -> int:
    """Return the one seed by which all steps from `step` on are drawn, each by its own number.

    A ValueError says if there are several, as of a joined log that was cut within its second part.
    """
    ends = accumulate((count for _, _, count in segments), initial=0)
    marks = [step, *(end for end in ends if step < end < MOST_NUMBER)]
    (by, number), *others = (seed_at(seed, segments, mark) for mark in marks)
    if [number, *(n for _, n in others)] != marks or any(other != by for other, _ in others):
        raise ValueError(f"its steps from {step} on are drawn by several seeds, or other numbers")
    return by


def merged(plan: Plan, a: Branch, b: Branch) -> tuple[list[Step], Segments, int]:
    """Join two forks of one parent: its steps, then a's own, then b's own.

    Returned are the steps, the segments that name them, and how many are the parent's: those from
    the first on that both logs have, with the same noise and the same codes. A ValueError says if
    there is none.
    """
    both = zip(_coded(plan, *a), _coded(plan, *b), strict=False)
    shared = next((n for n, (one, other) in enumerate(both) if one != other), None)
    mine, theirs = a[1], b[1]
    if shared is None:
        shared = min(len(mine), len(theirs))
    if not shared:
        raise ValueError(
            f"only forks of one parent can be merged; of {len(mine)} and {len(theirs)} steps "
            f"not even the first is the same"
        )
    names = [*islice(named(plan, a[0]), len(mine))]
    names += islice(named(plan, b[0]), shared, len(theirs))
    return [*mine, *theirs[shared:]], segments_of(iter(names), len(names)), shared


def _coded(plan: Plan, segments: Segments, steps: Sequence[Step]) -> Iterator[tuple[int, ...]]:
    """Yield what makes steps equal: the seed and number of their noise, and their codes."""
    for (seeded, number), step in zip(named(plan, segments), steps, strict=False):
        yield seeded.seed, number, *pack_steps(plan, [step])
