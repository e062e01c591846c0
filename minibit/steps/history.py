"""The weights of every step, replayed from a log's records on integers alone.

Questions to a `minibit.steps.StepLog`, which write nothing: whole models and single rows, as they
were after any step, the difference between two steps, digests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import chain, islice, pairwise
from math import prod
from pathlib import Path
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer
from minibit.noise_step import Params, Plan
from minibit.steps.asking import Change, Verdict, changes, top_answers, verdict
from minibit.steps.bounds import Step
from minibit.steps.codes import unpack_steps
from minibit.steps.edits import Segments, named
from minibit.steps.file import DIGEST, Contents, LogError, Record
from minibit.steps.forks import seed_at, seed_from
from minibit.steps.replaying import (
    Flat,
    advance,
    as_params,
    initial_flat,
    rows_along,
    rows_at,
)
from minibit.steps.snapshots import nearest, to_keep, write_snapshots

__all__ = ["History"]

Rows: TypeAlias = SupportsIndex | slice | Sequence[int] | NDArray[np.integer | np.bool_]


class History:
    """The steps of a run, and through them the weights after each.

    "Step n" of weights means after n steps: 0 is the initial weights, ``len(history)`` the final
    ones. Weights are dicts of int8 arrays, new at every call. A replay of whole weights checks
    the digest of every record on its way, up to the end of the last record that it needs.
    """

    path: Path  # named in errors
    plan: Plan  # the integers from which steps become weights
    _segments: Segments
    _last: tuple[int, Flat] | None = None  # the last step, and the weights after it, if at hand

    @property
    def _contents(self) -> Contents:
        """Return the part of the file that is known to be good."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Count the steps."""
        return self._contents.steps

    def replay(self, until: int | None = None) -> Params:
        """Return the weights after the first `until` steps (all by default), from integers alone.

        A step that is not there is a ValueError; a record that holds no codes of this plan, or
        replays to another digest than it was written with, a LogError, whose ``.offset`` says where
        it begins. So it is in all methods below.
        """
        return as_params(self.plan, self._weights(self._step("until", until)))

    def weights_at(self, step: int) -> Params:
        """Return the weights after `step` steps; those of any step cost a replay up to it.

        With `snapshots`, the replay begins at the last one before, whose digest is checked, too.
        """
        step = self._step("step", step)
        return as_params(self.plan, self._weights(step, self._nearest(step)))

    def walk(self, at: Iterable[int]) -> Iterator[tuple[int, Params]]:
        """Yield ``(step, weights)`` for increasing step numbers, in one replay."""
        if not isinstance(at, Iterable):
            raise TypeError(f"at must be several numbers of steps, got {at!r:.80}")
        numbers = [self._step("at", step) for step in at]
        if any(b <= a for a, b in pairwise(numbers)):
            raise ValueError(f"at must increase, got {numbers}")
        for step, flat in zip(numbers, self._flats(numbers), strict=True):
            yield step, as_params(self.plan, flat)

    def slice(self, layer: int | str, rows: Rows, step: int | None = None) -> NDArray[np.int8]:
        """Return some rows of one layer after `step` steps, without replaying the others.

        Only the noise blocks that meet the rows (sampled), or the layer's own draws (units), are
        drawn again; so no digest, which is of all weights, is checked, but that of a snapshot (see
        `snapshots`), which makes this as short as for `weights_at`. The layer is named or numbered;
        `rows` are a NumPy index of its first axis (none is an IndexError). One row, too, keeps
        that axis.
        """
        layer = self._layer(layer)
        count = [*self.plan.shapes[layer], 1][0]
        try:
            chosen = np.atleast_1d(np.arange(count)[rows])
        except IndexError as error:
            raise IndexError(
                f"rows must index the {count} rows of {self.plan.names[layer]}, "
                f"got {rows!r:.80}: {error}"
            ) from None
        step = self._step("step", step)
        passed, start = self._nearest(step)
        history = islice(self._history(passed), step - self._first(passed))
        return rows_at(self.plan, layer, chosen.reshape(-1), history, start)

    def blame(self, layer: int | str, row: int, column: int = 0) -> list[Change]:
        """Return the steps that changed a weight, and how; see `Change`.

        Only its row is replayed. The layer is named or numbered; `column` counts what one entry of
        the layer's first axis holds. A layer, row or column that is not there is a ValueError.
        """
        layer = self._layer(layer)
        n_out, *inner = self.plan.shapes[layer] or (1,)
        row, column = (
            integer("row", row, 0, n_out - 1),
            integer("column", column, 0, prod(inner) - 1),
        )
        rows = rows_along(self.plan, layer, np.array([row]), self._history())
        return changes(int(weights[0, column]) for weights in rows)

    def answers(self, logits: Callable[[Params, Any], Any], x: Any) -> NDArray[np.int64]:
        """Return how the weights of every step label samples: (steps + 1, batch), in one walk.

        ``logits(params, x)`` is any function of weights and the samples `x`, (batch, ...), that
        returns (batch, classes); the answer is the class of the largest, the first of several.
        `changes` of a column are the steps that decided an answer.
        """
        walk = self.walk(range(len(self) + 1))
        return np.stack([top_answers(logits(params, x), len(x)) for _, params in walk])

    def bisect(self, logits: Callable[[Params, Any], Any], sample: Any, label: int) -> Verdict:
        """Find the step after which a sample's label is right, or wrong, for good; see `Verdict`.

        Whether it is *right* or *wrong* is decided by the last weights: the answer is then the last
        step that turned a wrong label into the right one, or the other way round. An answer goes
        back and forth, so that a binary search, which wants one turn, finds any of its turns; this
        one looks at all weights, in one walk (`answers`), and tells of every turn.
        """
        answers = self.answers(logits, np.asarray(sample)[None])[:, 0]  # (steps + 1,)
        return verdict(answers, integer("label", label))

    def _layer(self, layer: int | str) -> int:
        """Return a layer's number."""
        if isinstance(layer, str):
            if layer not in self.plan.names:
                raise ValueError(f"layer must be one of {self.plan.names}, got {layer!r}")
            return self.plan.names.index(layer)
        return integer("layer", layer, 0, len(self.plan.names) - 1)

    def steps(self) -> Iterator[Step]:
        """Yield every step as it was logged."""
        return chain.from_iterable(map(self._unpack, self._contents.records))

    def snapshots(self, every: int = 32) -> Path:
        """Write weights along the run beside the log, NAME.snapshots, and return that path.

        They are `every` steps apart, or as records end, so the weights of any step, and `slice`,
        replay no more steps than that. A log that is written on keeps them; for one that is written
        anew, `weights_at` and `slice` refuse them with a LogError, as they refuse damaged ones.
        A file of that name that holds no snapshots is a FileExistsError.
        """
        every = integer("every", every, 1)
        records = to_keep(self._contents.records, every)
        weights = self._flats([record.end_step for record in records]) if records else ()
        return write_snapshots(self.path, records, weights)

    def drawn_by(self, step: int) -> tuple[int, int]:
        """Return the seed and the number that a step's noise is drawn by; also of one to come."""
        return seed_at(self.plan.seed, self._segments, integer("step", step))

    def seed_ahead(self) -> int:
        """Return the seed of all steps to come; a ValueError says if there are several."""
        return seed_from(self.plan.seed, self._segments, len(self))

    def diff(self, a: int, b: int) -> Params:
        """Return what steps between a and b changed: weights after b minus weights after a."""
        a, b = self._step("a", a), self._step("b", b)
        weights = dict(self.walk(sorted({a, b})))
        return {name: weights[b][name] - weights[a][name] for name in self.plan.names}

    def digest(self, step: int | None = None) -> str:
        """Return the SHA-256 of the weights after `step` steps, in hexadecimal."""
        return sha256(self._weights(self._step("step", step)).data).hexdigest()

    def verify(self) -> str:
        """Replay everything against the digest of each record; return the final one."""
        (flat,) = self._flats([len(self)])
        return sha256(flat.data).hexdigest()

    def _nearest(self, step: int) -> tuple[int, Flat]:
        """Return where a replay to a step begins: how many records lie before, and the weights."""
        snapshot = nearest(self.path, self._contents.records, self.plan.size, step)
        return snapshot or (0, initial_flat(self.plan))

    def _weights(self, step: int, start: tuple[int, Flat] | None = None) -> Flat:
        """Return the weights after a step, in a new array; a log in writing holds its last ones."""
        last = self._last
        if last is not None and last[0] == step:
            return last[1].copy()
        (flat,) = self._flats([step], start)
        return flat

    def _flats(
        self, numbers: Sequence[int], start: tuple[int, Flat] | None = None
    ) -> Iterator[Flat]:
        """Yield the weights after increasing numbers of steps, each in an array of its own."""
        passed, flat = start or (0, initial_flat(self.plan))
        run, at = self._run(passed, flat), self._first(passed) - 1
        for step in numbers:
            flat, at = next(islice(run, step - at - 1, None)), step
            if step < numbers[-1]:
                yield flat.copy()
                continue
            records = self._contents.records
            left = sum(r.end_step - step for r in records if r.first < step < r.end_step)
            end = flat.copy() if left else flat
            for _ in islice(run, left):  # to the digest of the last record
                pass
            yield end

    def _first(self, passed: int) -> int:
        """Count the steps of the first `passed` records."""
        return self._contents.records[passed - 1].end_step if passed else 0

    def _run(self, passed: int, flat: Flat) -> Iterator[Flat]:
        """Yield the weights after the first `passed` records, then after each step: one array."""
        history = self._history(passed)
        yield flat
        for number, record in enumerate(self._contents.records[passed:], start=passed):
            for done, (plan, name, step) in enumerate(islice(history, record.steps), start=1):
                advance(flat, plan, name, step)
                if done == record.steps:
                    self._check(number, record, flat)
                yield flat

    def _check(self, number: int, record: Record, flat: Flat) -> None:
        """Compare the weights after a record with the digest that it was written with."""
        digest = sha256(flat.data).digest()[:DIGEST]
        if digest != record.digest:
            raise LogError(
                f"record {number} (steps {record.first} to {record.first + record.steps - 1}) "
                f"replays to digest {digest.hex()}, it was written with {record.digest.hex()}",
                record.offset,
                record.first,
                self.path,
            )

    def _history(self, passed: int = 0) -> Iterator[tuple[Plan, int, Step]]:
        """Yield the steps after some records, with the plan and number that name their noise."""
        names = named(self.plan, self._segments, self._first(passed))
        steps = chain.from_iterable(map(self._unpack, self._contents.records[passed:]))
        for (plan, number), step in zip(names, steps, strict=False):
            yield plan, number, step

    def _unpack(self, record: Record) -> list[Step]:
        """Return the steps of a record."""
        try:
            return unpack_steps(self.plan, record.payload, record.steps)
        except ValueError as error:
            message = f"a record holds no steps of its plan: {error}"
            raise LogError(message, record.offset, record.first, self.path) from None

    def _step(self, name: str, step: SupportsIndex | None) -> int:
        """Return a number of steps that the log has, all of them by default."""
        return len(self) if step is None else integer(name, step, 0, len(self))
