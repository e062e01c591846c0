"""The weights of every step, replayed from a log's records on integers alone.

What a `minibit.steps.StepLog` can be asked without writing: whole models and single rows, as they
were after any step, the difference between two steps, digests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import islice, pairwise
from pathlib import Path
from typing import SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer
from minibit.noise_step import Params, Plan
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
    rows_at,
)

__all__ = ["History"]

Rows: TypeAlias = SupportsIndex | slice | Sequence[int] | NDArray[np.integer | np.bool_]


class History:
    """The steps of a run, and through them the weights after each.

    "Step n" of weights means after n steps: 0 is the initial weights, ``len(history)`` the final
    ones. Weights are dicts of int8 arrays, new at every call. Whatever replays whole weights checks
    the digest of every record on its way, up to the end of the last record that it needs.
    """

    path: Path  # named in errors
    plan: Plan  # the integers from which steps become weights
    _segments: Segments
    _last: tuple[int, Flat] | None = None  # the last step, and the weights after it, if at hand

    @property
    def _contents(self) -> Contents:
        """Return what is known to be good in the file."""
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
        """Return the weights after `step` steps; those of any step cost a replay up to it."""
        return as_params(self.plan, self._weights(self._step("step", step)))

    def walk(self, at: Iterable[int]) -> Iterator[tuple[int, Params]]:
        """Yield ``(step, weights)`` for increasing step numbers, in one replay."""
        wanted = [self._step("at", step) for step in at]
        if any(b <= a for a, b in pairwise(wanted)):
            raise ValueError(f"at must increase, got {wanted}")
        for step, flat in zip(wanted, self._flats(wanted), strict=True):
            yield step, as_params(self.plan, flat)

    def slice(self, layer: int | str, rows: Rows, step: int | None = None) -> NDArray[np.int8]:
        """Return some rows of one layer after `step` steps, without replaying the others.

        Only the noise blocks that meet the rows (sampled), or the layer's own draws (units), are
        drawn again; so no digest, which is of all weights, is checked. The layer is named or
        numbered; `rows` are a NumPy index of its first axis. One row, too, keeps that axis.
        """
        if isinstance(layer, str):
            if layer not in self.plan.names:
                raise ValueError(f"layer must be one of {self.plan.names}, got {layer!r}")
            layer = self.plan.names.index(layer)
        elif not 0 <= layer < len(self.plan.names):
            raise ValueError(f"layer must lie in [0, {len(self.plan.names)}), got {layer}")
        chosen = np.atleast_1d(np.arange([*self.plan.shapes[layer], 1][0])[rows])
        history = islice(self._history(), self._step("step", step))
        return rows_at(self.plan, layer, chosen.reshape(-1), history)

    def steps(self) -> Iterator[Step]:
        """Yield every step as it was logged."""
        for record in self._contents.records:
            yield from self._unpack(record)

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

    def _weights(self, step: int) -> Flat:
        """Replay to a step, in an array of its own; while writing, the last step's are at hand."""
        last = self._last
        if last is not None and last[0] == step:
            return last[1].copy()
        (flat,) = self._flats([step])
        return flat

    def _flats(self, wanted: Sequence[int]) -> Iterator[Flat]:
        """Yield the weights after increasing numbers of steps, each in an array of its own."""
        run, at = self._run(), -1
        for step in wanted:
            flat, at = next(islice(run, step - at - 1, None)), step
            if step < wanted[-1]:
                yield flat.copy()
                continue
            spans = [(record.first, record.steps) for record in self._contents.records]
            left = sum(first + steps - step for first, steps in spans if 0 < step - first < steps)
            end = flat.copy() if left else flat
            for _ in islice(run, left):  # to the digest of the last record
                pass
            yield end

    def _run(self) -> Iterator[Flat]:
        """Yield the weights after 0, 1, ... steps: one array, changed in place."""
        flat, history = initial_flat(self.plan), self._history()
        yield flat
        for number, record in enumerate(self._contents.records):
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

    def _history(self) -> Iterator[tuple[Plan, int, Step]]:
        """Yield every step with the plan and the number by which its noise is drawn."""
        names = named(self.plan, self._segments)
        for (plan, number), step in zip(names, self.steps(), strict=False):
            yield plan, number, step

    def _unpack(self, record: Record) -> list[Step]:
        try:
            return unpack_steps(self.plan, record.payload, record.steps)
        except ValueError as error:
            message = f"a record holds no steps of its plan: {error}"
            raise LogError(message, record.offset, record.first, self.path) from None

    def _step(self, name: str, step: SupportsIndex | None) -> int:
        return len(self) if step is None else integer(name, step, 0, len(self))
