"""Copies of a log: edits of its history, each of which writes a new file and leaves the log alone.

`minibit.steps.edits` and `minibit.steps.forks` say what an edit makes of the steps; this file reads
them from one log, or two, and writes the other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from itertools import chain, groupby, islice, repeat
from pathlib import Path
from typing import Any, Self

from minibit.base import integer, open_whole
from minibit.noise_step import Update
from minibit.steps.bounds import Step, checked_plan
from minibit.steps.codes import pack_steps
from minibit.steps.contributors import Shares, Tags, lines, path_of, without
from minibit.steps.edits import (
    EDITS,
    Segments,
    Steps,
    checked_segments,
    chosen_steps,
    intervals,
    named,
    segments_of,
)
from minibit.steps.file import (
    DIGEST,
    MOST_STEPS,
    START,
    Contents,
    LogError,
    Record,
    pack_header,
    pack_record,
    parse_header,
    scan,
)
from minibit.steps.forks import fork_segments, merged
from minibit.steps.history import History
from minibit.steps.replaying import Flat, advance, initial_flat

__all__ = ["Copies"]


class Copies(History):
    """A log as it was read: its header, its steps, and the copies that edits make of it.

    `StepLog` is one that can be written, too. No `out` of a copy may exist.
    """

    def __init__(self, path: str | os.PathLike[str], contents: Contents) -> None:
        self.path = Path(path)
        try:
            header = parse_header(contents.header)
        except LogError as error:
            raise error.of(self.path) from None
        try:
            self.plan = checked_plan(header.get("plan"))
            self._segments = checked_segments(header.get("segments", []))
        except ValueError as error:
            raise LogError(f"the header: {error}", START.size, path=self.path) from None
        self._absolute = self.path.absolute()  # also after a change of directory
        self._known = contents
        self._tags = Tags(self._absolute, self.plan, contents.start_crc)

    @property
    def header(self) -> dict[str, Any]:
        """The header, as JSON types; a new copy at every call."""
        return parse_header(self._contents.header)

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
        ours, theirs = self.plan, other.plan
        if replace(theirs, seed=ours.seed, zeros=ours.zeros) != ours:
            raise ValueError(
                f"only logs of one plan, up to seed and zeros, can follow each other; "
                f"got {ours} and {theirs}"
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
        if other.plan != self.plan:
            raise ValueError(
                f"only forks of one parent can be merged, which have one plan; "
                f"got {self.plan} and {other.plan}"
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
        ValueError says if no step names it, or some step names nobody.
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
        """Write an edited log in one piece; its header says what was done, and to what."""
        header = self.header
        before = header.get("edits", [])
        header["edits"] = [*(before if isinstance(before, list) else [before]), edit]
        if segments:
            header["segments"] = segments
        if entry is not None:
            header["data"] = dict(entry)
        start = pack_header(header)
        log = type(self)(out, scan(start))
        data, contents = log._pack(log._known, initial_flat(log.plan), steps)
        text, _ = lines(0, shares, log._known.start_crc)
        with ExitStack() as files:
            log_file = files.enter_context(open_whole(log.path))
            if text or path_of(log.path).exists():
                files.enter_context(open_whole(path_of(log.path))).write(text)
            log_file.write(start + data)
        log._known = contents
        return log

    def _pack(
        self,
        contents: Contents,
        flat: Flat,
        batch: list[Step],
        updates: Sequence[Update | None] | None = None,
    ) -> tuple[bytes, Contents]:
        """Frame steps that follow `contents`; moves the weights `flat` along, in place."""
        data: list[bytes] = []
        records = list(contents.records)
        crc, end = contents.crc, contents.end
        first = contents.steps
        names = named(self.plan, self._segments, first)
        known = iter(updates if updates is not None else repeat(None))
        for _, alike in groupby(batch, lambda step: getattr(step, "numerator", None)):
            while steps := list(islice(alike, MOST_STEPS)):
                for step in steps:
                    advance(flat, *next(names), step, next(known))
                payload, digest = pack_steps(self.plan, steps), sha256(flat.data).digest()[:DIGEST]
                framed, crc = pack_record(len(steps), payload, digest, crc)
                records.append(Record(end, first, len(steps), payload, digest, crc))
                data.append(framed)
                end, first = end + len(framed), first + len(steps)
        return b"".join(data), replace(contents, records=tuple(records), crc=crc, end=end)
