"""Messages between the client and its workers: tasks down, answers up, a few hundred bytes.

Neither weights nor data ever do. A task names a step, a range of its perturbations (or of its drawn
units), the chunks of the batch over which to sum, and what the last steps kept; an answer holds the
sums. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import NamedTuple

from minibit.base import printable

__all__ = [
    "ANSWERED", "BEHIND", "CODES", "EXACT", "REFUSED", "ROUNDED", "SUMS", "UNKNOWN",
    "Answer", "Task", "run_name",
]  # fmt: skip

_TASK = struct.Struct("<8sIIIIBBBHIH")  # the fields of `Task`, lists by their lengths
_ANSWER = struct.Struct("<B8sIddIIIf")  # the fields of `Answer`, but its body
_LENGTH = struct.Struct("<I")
_NUMBER = struct.Struct("<I")
ANSWERED, BEHIND, UNKNOWN, REFUSED = range(4)
SUMS, CODES, ROUNDED, EXACT = range(4)


def run_name(brief: bytes) -> bytes:
    """Return the eight bytes by which tasks name a run: the start of its brief's SHA-256."""
    return sha256(brief).digest()[:8]


class Task(NamedTuple):
    """One range of one step, and what a worker needs to know to measure it."""

    run: bytes  # 8 bytes
    step: int
    numerator: int  # density of method sampled, times 2**32; 0 for units
    first: int  # of the perturbations, or of the drawn units of all layers laid end to end
    stop: int
    chunks: tuple[int, int]  # of the batch's four, the first and the stop
    form: int  # of the answer: SUMS (or moves), CODES of a range's own median, ROUNDED or EXACT
    exact: tuple[int, ...]  # perturbations whose sums are asked for exactly
    base: int  # the step of the first record below
    records: tuple[bytes, ...] = ()  # what steps base, base + 1, ... kept, as the log codes it
    brief: bytes = b""  # for a worker that does not know the run: its header and data, as JSON

    def pack(self) -> bytes:
        """Return the task as bytes."""
        fields = self.run, self.step, self.numerator, self.first, self.stop, *self.chunks, self.form
        head = _TASK.pack(*fields, len(self.exact), self.base, len(self.records))
        asked = (_NUMBER.pack(number) for number in self.exact)
        framed = (_LENGTH.pack(len(record)) + record for record in self.records)
        return b"".join((head, *asked, *framed, self.brief))

    @classmethod
    def unpack(cls, message: bytes) -> Task:
        """Read `pack`; a ValueError if the message is no task."""
        if len(message) < _TASK.size:
            raise ValueError(f"a task has at least {_TASK.size} bytes, got {len(message)}")
        *head, low, high, form, asked, base, count = _TASK.unpack_from(message)
        at = _TASK.size + _NUMBER.size * asked
        if at > len(message):
            raise ValueError(f"a task that asks for {asked} exact sums ends before their names")
        exact = struct.unpack_from(f"<{asked}I", message, _TASK.size)
        records: list[bytes] = []
        for _ in range(count):
            if at + _LENGTH.size > len(message):
                raise ValueError(f"a task of {count} records ends in record {len(records)}")
            (length,) = _LENGTH.unpack_from(message, at)
            at += _LENGTH.size + length
            records.append(message[at - length : at])
        if at > len(message):
            raise ValueError(f"a task's last record goes {at - len(message)} bytes past its end")
        run, step, numerator, first, stop = head
        return cls(
            run, step, numerator, first, stop, (low, high), form, exact, base,
            tuple(records), message[at:],
        )  # fmt: skip


class Answer(NamedTuple):
    """The answer of a worker: its sums, or why it has none."""

    kind: int  # ANSWERED, BEHIND (it needs records from `step` on), UNKNOWN (brief) or REFUSED
    worker: bytes  # 8 bytes, drawn when its process began
    step: int
    loss: float = 0.0  # sum w L of the samples of its chunks, before the step
    weight: float = 0.0  # sum w of them
    correct: int = 0  # how many of them the weights label right
    samples: int = 0
    state: int = 0  # CRC-32 of what all workers have in common (`Replica`)
    seconds: float = 0.0  # that the worker took
    body: bytes = b""  # sums (`minibit.cluster.sums`), or why it refuses

    def pack(self) -> bytes:
        """Return the answer as bytes."""
        return _ANSWER.pack(*self[:-1]) + self.body

    @classmethod
    def unpack(cls, message: object) -> Answer:
        """Read `pack`; a ValueError if the message is no answer."""
        if not isinstance(message, bytes) or len(message) < _ANSWER.size:
            raise ValueError(
                f"a worker must answer {_ANSWER.size} bytes or more, got {message!r:.80}"
            )
        told = cls._make((*_ANSWER.unpack_from(message), message[_ANSWER.size :]))
        if told.kind > REFUSED:
            raise ValueError(f"an answer's kind is 0 to {REFUSED}, got {told.kind}")
        if told.kind == ANSWERED and not (told.samples > 0 and told.weight > 0):
            raise ValueError(f"{told.samples} samples cannot weigh {told.weight}")
        return told

    @property
    def reason(self) -> str:
        """Why the worker refuses, as a terminal may show it."""
        return printable(self.body.decode("utf-8", "replace"))
