"""Copies of a log: edits of its history, each of which writes a new file and leaves the log alone.

`minibit.steps.edits` and `minibit.steps.forks` say what an edit makes of single steps; this file
gathers the steps, segments and contributors of the copy, and `StepLog` writes it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, islice
from typing import Any, Self

from minibit.base import integer
from minibit.steps.bounds import Step
from minibit.steps.contributors import Shares, Tags, shared, without
from minibit.steps.edits import (
    EDITS,
    Segments,
    Steps,
    chosen_steps,
    intervals,
    named,
    segments_of,
)
from minibit.steps.forks import fork_segments, merged
from minibit.steps.history import History

__all__ = ["Copies"]


class Copies(History):
    """The steps of a log, and the copies that edits make of them.

    Each method writes its copy to `out`, where no file may be, and returns it; this log stays as it
    is. `StepLog` has the files.
    """

    _tags: Tags  # the contributors of the steps

    def negate(self, steps: Steps, out: str | os.PathLike[str]) -> Self:
        """Write a copy in which the moves of some steps are turned round; `out` must not exist.

        `steps` are an int, a slice, an iterable of int, or a bool array of length ``len(log)``. The
        others stay as they were trained, for weights that are now different. Where no weight is
        clamped, negating the same steps again gives the first model back.
        """
        return self._edit("negate", steps, out)

    def mask(self, steps: Steps, out: str | os.PathLike[str]) -> Self:
        """Write a copy in which some steps (as for `negate`) move nothing."""
        return self._edit("mask", steps, out)

    def concat(self, other: Copies, out: str | os.PathLike[str]) -> Self:
        """Write a log of this one's steps followed by those of another.

        Each step keeps the seed and the number that its noise was drawn by; the header's
        ``segments`` name them. The initial weights are this log's; the plans may differ in seed and
        zeros alone.
        """
        ours, theirs = self.plan, _checked(other).plan
        if replace(theirs, seed=ours.seed, zeros=ours.zeros) != ours:
            raise ValueError(
                "only logs of one plan, up to seed and zeros, can follow each other; "
                f"got {ours.differences(theirs)}"
            )
        mine, more = [*self.steps()], [*other.steps()]
        names = named(ours, self._segments), named(theirs, other._segments)
        other.verify()
        both = chain(islice(names[0], len(mine)), islice(names[1], len(more)))
        segments = segments_of(both, len(mine) + len(more))
        span = [[len(mine), len(mine) + len(more)]] if more else []
        edit = {"edit": "concat", "steps": span, "source": self.digest()}
        shares = self.shares() + other.shares()
        return self._copy(edit, mine + more, out, segments, shares)

    def fork(
        self,
        step: int,
        out: str | os.PathLike[str],
        seed: int | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> Self:
        """Write a log of the first `step` steps, to be trained on in another way.

        The weights are those that this log had. With a `seed`, all noise from there on is drawn by
        it, the initial weights still by the plan's; with `data`, the header's entry of that name
        is replaced (`minibit.training.other_data` makes one). A step or seed that cannot be is a
        ValueError; `out` must not exist.
        """
        step = self._step("step", integer("step", step))
        if data is not None and not isinstance(data, Mapping):
            raise TypeError(f"data must be an entry of a header, a mapping, got {data!r:.80}")
        if seed is not None:
            seed = integer("seed", seed, 0, 2**64 - 1)
        segments = fork_segments(self.plan, self._segments, step, seed)
        edit: dict[str, Any] = {"edit": "fork", "steps": [[0, step]], "source": self.digest(step)}
        if seed is not None:
            edit["seed"] = seed
        steps = [*islice(self.steps(), step)]
        return self._copy(edit, steps, out, segments, self.shares()[:step], data)

    def merge(self, other: Copies, out: str | os.PathLike[str]) -> Self:
        """Write a log of two forks of one parent: its steps, then this log's own, then the other's.

        Each step keeps its noise and its codes, so the weights are those of this log with the
        moves of the other's branch added, one after another and clamped. A ValueError says if the
        plans differ, or the logs have not even their first step in common.
        """
        if _checked(other).plan != self.plan:
            raise ValueError(
                "only forks of one parent can be merged, which have one plan; "
                f"got {self.plan.differences(other.plan)}"
            )
        branches = [(log._segments, [*log.steps()]) for log in (self, other)]
        steps, segments, shared = merged(self.plan, *branches)
        span = [[len(self), len(steps)]] if len(steps) > len(self) else []
        edit = {"edit": "merge", "steps": span, "source": self.digest(), "parent": shared}
        shares = self.shares() + other.shares()[shared:]
        return self._copy(edit | {"other": other.verify()}, steps, out, segments, shares)

    def shares(self) -> list[Shares]:
        """Return who measured which part of every step, in order; empty where nobody is named.

        A LogError names the line that is damaged, or of another log.
        """
        return self._tags.read(len(self))

    def revert(self, name: str, out: str | os.PathLike[str]) -> Self:
        """Write a copy without what a contributor, a worker or a shard of the data, put in.

        Its perturbations' codes are 0, and its moves are gone; all else stays as it was decided. A
        ValueError says if no step names it, some step names nobody, or it measured its part of a
        step together with others: where a batch was cut, every move is of all workers.
        """
        shares, every = self.shares(), [*self.steps()]
        names = sorted({share.name for own in shares for share in own})
        if name not in names:
            known = ", ".join(names[:10]) + ", ..." * (len(names) > 10) or "nobody"
            raise ValueError(f"name must be a contributor of {self.path}: {known}; got {name!r}")
        if untold := [number for number, own in enumerate(shares) if not own]:
            raise ValueError(
                f"{len(untold)} steps of {self.path} name no contributor, first step {untold[0]}: "
                f"what {name!r} put in is not known"
            )
        if together := [number for number, own in enumerate(shares) if shared(own, name)]:
            raise ValueError(
                f"{len(together)} steps of {self.path} were cut by samples, first step "
                f"{together[0]}: their moves belong to all workers, so {name!r} cannot be left "
                "out; workers of a run with cut='perturbations' can"
            )
        touched = [n for n, own in enumerate(shares) if any(share.name == name for share in own)]
        for number in touched:
            every[number] = without(self.plan, every[number], shares[number], name)
        edit = {"edit": "revert", "steps": intervals(touched), "source": self.digest()}
        return self._copy(edit | {"contributor": name}, every, out, self._segments, shares)

    def _edit(self, kind: str, steps: Steps, out: str | os.PathLike[str]) -> Self:
        """Write a copy with some steps edited."""
        every = [*self.steps()]
        chosen = chosen_steps(steps, len(every))
        for number in chosen:
            every[number] = EDITS[kind](every[number])
        edit = {"edit": kind, "steps": intervals(chosen), "source": self.digest()}
        return self._copy(edit, every, out, self._segments, self.shares())

    def _copy(
        self,
        edit: dict[str, Any],
        steps: list[Step],
        out: str | os.PathLike[str],
        segments: Segments,
        shares: list[Shares],
        entry: Mapping[str, Any] | None = None,
    ) -> Self:
        """Write a log of `steps`; its header says what the `edit` did, and to which log."""
        raise NotImplementedError


def _checked(other: Any) -> Copies:
    """Return a log, or raise a TypeError."""
    if not isinstance(other, Copies):
        raise TypeError(
            f"other must be a StepLog, got {other!r:.80} of type {type(other).__name__}"
        )
    return other
