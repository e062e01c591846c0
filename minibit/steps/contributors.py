"""Contributors: who measured which part of a step, beside the log, so that it can be reverted.

A log NAME has them in NAME.workers, one line of JSON per step that has any:

    {"crc":32-bit number,"shares":[[first,stop,name],...],"step":number}

A share is a range of the step's perturbations (``sampled``), or of its drawn units, all layers' in
turn (``units``), and the name of a worker or of a shard of the data. Workers that measured a range
together, each over a part of the batch, have it each. ``crc`` is a CRC-32 that runs on from the
log's header over every line's shares and step, so a reader notices lines of another log, and lines
that were changed, lost or moved. A line is written before the step that it is about; the next
append cuts off the lines of steps that never reached the log.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from zlib import crc32

import numpy as np

from minibit.base import JSONError, parse_object
from minibit.noise_step import Plan, SampledStep, UnitsStep
from minibit.steps.bounds import Step
from minibit.steps.file import LogError

__all__ = ["Share", "Shares", "Tags", "checked_shares", "lines", "path_of", "shared", "without"]

BEGIN = b'{"crc":'  # of every line


class Share(NamedTuple):
    """A range of a step's perturbations or drawn units, and the contributor that measured it."""

    first: int
    stop: int
    name: str


Shares: TypeAlias = tuple[Share, ...]  # of one step; empty where the log names no contributor


def path_of(log: Path) -> Path:
    """Return where a log's contributors are named."""
    return log.with_name(f"{log.name}.workers")


def checked_shares(plan: Plan, shares: Iterable[Sequence[Any]]) -> Shares:
    """Check the shares of a step: named ranges of what it has, in order, apart or the same."""
    most = plan.perturbations if plan.method == "sampled" else sum(plan.units)
    checked: list[Share] = []
    first = stop = 0
    for share in shares:
        good = isinstance(share, Sequence) and [*map(type, share)] == [int, int, str] and share[2]
        together = good and checked and (*share[:2],) == (first, stop)
        if not good or not (together or stop <= share[0] < share[1] <= most):
            raise ValueError(
                f"shares must be (first, stop, name) in order, within [0, {most}], got {share!r}"
            )
        checked.append(Share(*share))
        first, stop = share[:2]
    return tuple(checked)


def shared(shares: Shares, name: str) -> bool:
    """Whether a contributor measured a range together with others, so no move is its own."""
    own = {share[:2] for share in shares if share.name == name}
    return any(share[:2] in own for share in shares if share.name != name)


def without(plan: Plan, step: Step, shares: Shares, name: str) -> Step:
    """Return a step in which a contributor's share moves nothing."""
    ranges = [(first, stop) for first, stop, owner in shares if owner == name]
    if isinstance(step, SampledStep):
        codes = step.codes.copy()
        for first, stop in ranges:
            codes[first:stop] = 0
        return SampledStep(step.numerator, codes)
    starts = accumulate(plan.units, initial=0)
    positions, signs = [], []
    for start, inputs, q, sign in zip(
        starts, plan.inputs, step.positions, step.signs, strict=False
    ):
        unit = start + q // max(1, inputs)  # (moves,), its number among all drawn units
        kept = ~np.any([(first <= unit) & (unit < stop) for first, stop in ranges], axis=0)
        kept = np.broadcast_to(kept, q.shape)
        positions.append(q[kept])
        signs.append(sign[kept])
    return UnitsStep(tuple(positions), tuple(signs))


class Tags:
    """The file of a log's contributors.

    `crc` is that of the log's header.
    """

    def __init__(self, log: Path, plan: Plan, crc: int) -> None:
        self.path, self.plan = path_of(log), plan
        self._ends = {0: (0, crc)}  # steps of the log: bytes of the file and running CRC there

    def read(self, steps: int) -> list[Shares]:
        """Return the shares of the first `steps` steps.

        A LogError names the line that is damaged, or of another log.
        """
        data = self.path.read_bytes() if self.path.is_file() else b""
        end, crc = self._ends[0]
        tags: list[Shares] = [()] * steps
        last = -1
        for number, line in enumerate(data.splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):  # cut while it was written
                break
            try:
                fields = parse_object(line)
                step, shares = fields["step"], checked_shares(self.plan, fields["shares"])
                crc = crc32(_text(step, shares), crc)
                if fields != {"crc": crc, "shares": fields["shares"], "step": step}:
                    raise ValueError("its CRC-32 does not fit: it is damaged, or of another log")
                if type(step) is not int or step <= last:
                    raise ValueError(f"its step must be a number above {last}, got {step!r}")
                if step >= steps:
                    break
            except (JSONError, KeyError, TypeError, ValueError) as error:
                raise LogError(f"line {number}: {error}", path=self.path) from None
            tags[step], end, last = shares, end + len(line), step
            self._ends[steps] = end, crc
        self._ends.setdefault(steps, self._ends[0])
        return tags

    def write(self, first: int, shares: Sequence[Shares] = ()) -> None:
        """Cut what follows the first `first` steps, and name the contributors of those after."""
        if not self.path.exists() and not any(shares):
            return
        if self.path.exists():
            with self.path.open("rb") as old:
                if old.read(len(BEGIN)) not in (BEGIN, b""):
                    raise FileExistsError(f"{self.path} names no contributors of a log; it is kept")
        if first not in self._ends:
            self.read(first)
        end, crc = self._ends[first]
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            os.ftruncate(file, end)
            os.lseek(file, end, os.SEEK_SET)
            text, crc = lines(first, shares, crc)
            data = memoryview(text)
            while data:
                data = data[os.write(file, data) :]
            os.fsync(file)
        finally:
            os.close(file)
        self._ends = {0: self._ends[0], first: (end, self._ends[first][1])}
        self._ends[first + len(shares)] = end + len(text), crc


def lines(first: int, shares: Sequence[Shares], crc: int) -> tuple[bytes, int]:
    """Write the lines of steps from `first` on after the running CRC `crc`; and the new one."""
    text = []
    for step, own in enumerate(shares, start=first):
        if own:
            body = _text(step, own)
            crc = crc32(body, crc)
            text.append(BEGIN + b"%d," % crc + body[1:] + b"\n")
    return b"".join(text), crc


def _text(step: int, shares: Shares) -> bytes:
    """Return the JSON text of a step's shares, without spaces, in ASCII."""
    return json.dumps({"shares": shares, "step": step}, separators=(",", ":")).encode()
