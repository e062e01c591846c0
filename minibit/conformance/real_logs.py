"""A real log through a port: the digest after each record tells where a replay goes wrong.

    StepLog.digest   file, at -> SHA-256 after each record, a list of text
    StepLog          file -> the weights before the first step and after each, (steps + 1, size)

The port is asked the first; one that does not offer it, the second, on as many records as an answer
holds. The file itself decides: each record carries the first 8 bytes of its digest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from minibit.conformance.cases import Case
from minibit.conformance.values import array_of, encode
from minibit.steps import StepLog

__all__ = ["LogReport", "replay_through"]

MOST_BYTES = 1 << 24  # weights of an answer: three letters each


@dataclass(frozen=True)
class LogReport:
    """The digests of a port: of so many records that it was asked for, of so many in the file."""

    records: int
    digests: tuple[str, ...]
    wrong: int | None = None  # the first record whose digest differs
    fault: str = ""  # why there are no digests, or too few

    @property
    def passed(self) -> bool:
        """Whether the digest of every record that was asked for is that of the file."""
        return bool(self.digests) and self.wrong is None and not self.fault


def replay_through(answer: Callable[[Case], Mapping[str, Any]], path: Path) -> LogReport:
    """Let a port replay the log at `path`, and compare the digest after each record.

    Raises
    ------
    LogError, OSError
        If minibit itself cannot read the log.
    """
    log, data = StepLog.open(path), np.frombuffer(path.read_bytes(), np.uint8)
    records, size = log.records, log.plan.size
    if not records:
        raise ValueError(f"{path} has no record to replay")
    ends = np.array([record.end_step for record in records])
    reply = answer(_case("StepLog.digest", file=data[: log.nbytes], at=ends))
    asked = len(records)
    if "skip" in reply:
        asked = max(1, int(np.searchsorted((ends + 1) * size, MOST_BYTES, "right")))
        reply = answer(_case("StepLog", file=data[: records[asked - 1].end]))
    if "out" not in reply:
        reasons = (reply[key] for key in ("fault", "lost", "refused") if key in reply)
        fault = str(next(reasons, "neither StepLog.digest nor StepLog is offered"))
        return LogReport(len(records), (), fault=fault)
    try:
        digests = _digests(reply["out"], ends[:asked].tolist())
    except (ValueError, TypeError, IndexError, KeyError) as error:
        return LogReport(len(records), (), fault=f"no digests: {error}")
    pairs = zip(digests, records, strict=False)
    agree = [digest[:16] == record.digest.hex() for digest, record in pairs]
    wrong = agree.index(False) if False in agree else None
    fault = "" if len(digests) == asked else f"{len(digests)} digests of {asked} records"
    return LogReport(len(records), digests, wrong, fault)


def _case(call: str, **args: Any) -> Case:
    """Ask for a file's replay."""
    coded = {name: encode(value) for name, value in args.items()}
    return Case(f"logs/{call}", call, coded, "a real log", (), (), exact=True)


def _digests(out: Any, ends: list[int]) -> tuple[str, ...]:
    """Return the digests that a port gave, or those of the weights that it gave."""
    if isinstance(out[0], list):
        return tuple(str(digest) for digest in out[0])
    states = array_of(out[0])
    if states.dtype != np.int8 or states.ndim != 2 or len(states) <= ends[-1]:
        wanted = f"int8 weights after {ends[-1]} steps"
        raise ValueError(f"{wanted} were asked for, got {states.dtype} {states.shape}")
    return tuple(sha256(np.ascontiguousarray(states[end]).data).hexdigest() for end in ends)
