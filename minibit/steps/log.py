"""A model is its steps: log, replay, history, edits.

The weights after step n are the seed's initial weights with the moves of steps 0 to n - 1 applied,

    w <- clamp(w + delta_s, -1, 1),

and each ``delta_s`` is integers alone, drawn from the seed and picked by the step's codes. So the
log of the codes is the model and all of its history: the weights of any step, or any rows of them,
come back bit for bit on every machine.

Reading never writes. Appending is one write and one sync to disk (about a millisecond on an SSD,
ten on a turning disk), so a killed process loses at most the records that it was writing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from hashlib import sha256
from itertools import groupby, islice, repeat
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

from minibit.base import integer, open_whole, whole_path
from minibit.noise_step import SampledStep, UnitsStep, Update
from minibit.steps.bounds import Step, checked_plan, checked_step
from minibit.steps.codes import pack_steps
from minibit.steps.contributors import Shares, Tags, checked_shares, lines, path_of
from minibit.steps.copies import Copies
from minibit.steps.edits import Segments, checked_segments, named
from minibit.steps.file import (
    CRC,
    DIGEST,
    MAGIC,
    MOST_STEPS,
    START,
    Appender,
    Contents,
    LogError,
    Record,
    pack_header,
    pack_record,
    parse_header,
    read_log,
    scan,
)
from minibit.steps.net_moves import net_moves
from minibit.steps.replaying import Flat, advance, initial_flat

__all__ = ["StepLog", "compact"]


class StepLog(Copies):
    """A training run on disk: its header, its steps, and through them the weights of every step.

    Step numbers count from 0, and "step n" of weights means after n steps, as in `History`, which
    has the questions to a log; `Copies` has its edits. Reading is safe from several threads, also
    while another appends.

    A killed writer leaves a *torn* file: from byte `torn_at` on it holds no whole record, and those
    bytes are no part of the log. `torn_at` is None, and `warning` empty, if the file ends with its
    last record.

    Examples
    --------
    >>> import numpy as np
    >>> from minibit.noise_step.moves import Plan
    >>> from tempfile import TemporaryDirectory
    >>> plan = Plan("units", 0, ("w1",), ((4, 8),), zeros=2**31, units=(2,), inputs=(8,))
    >>> step = UnitsStep((np.array([3, 12]),), (np.array([1, -1], np.int8),))
    >>> with TemporaryDirectory() as folder:
    ...     log = StepLog.create(folder + "/run.steps", {"plan": plan.to_dict()})
    ...     log.append([step, step])
    ...     log.close()
    ...     again = StepLog.open(folder + "/run.steps")
    >>> len(again), again.digest() == log.digest() == again.verify()
    (2, True)
    >>> {name: int(abs(change).sum()) for name, change in again.diff(0, 1).items()}
    {'w1': 1}
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
        self._absolute = self.path.absolute()  # holds after a change of directory, too
        self._known = contents
        self._tags = Tags(self._absolute, self.plan, contents.start_crc)
        self._lock = threading.RLock()  # the appending thread holds it; its handler may close
        _logs.add(self)
        self._appender: Appender | None = None  # holds the file from the first append to `close`
        # An append in progress: the contents and the weights that it leads to.
        self._under_way: tuple[Contents, Flat] | None = None
        self._last: tuple[int, Flat] | None = None  # the last step, and the weights after it
        # A log that replaces another lies beside it until its first record is written.
        self._beside: Path | None = None  # where it lies
        self._first_tags: list[Shares] = []  # the contributors of that record
        self._naming = ExitStack()  # puts it in its place

    # --- Files

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], header: Mapping[str, Any], *, overwrite: bool = False
    ) -> Self:
        """Write a new log without steps; it appears whole or not at all, and is locked for writing.

        ``header["plan"]`` is ``plan.to_dict()``; the rest is free (JSON types, at most 1 MiB). With
        `overwrite` it takes the place of a log that is there: the old one is locked at once, and
        gives way when the new one has its first record; closed without any, the new one is gone.

        Raises
        ------
        FileExistsError, TypeError, ValueError, LogError
            If there is a file at `path` (with `overwrite`: one that is no log), if the header is no
            JSON object or its plan no plan, if another writer holds the log to be replaced.
        """
        start = pack_header(dict(header))
        log = cls(path, scan(start))
        if overwrite and log.path.exists():
            old = Appender(log.path)
            log._naming.callback(lambda: old.close())  # until then the old log stays locked
            if old.read()[: len(MAGIC)] != MAGIC:
                log.close()
                raise FileExistsError(f"{path} is no minibit log; it is kept")
            log._beside = log._naming.enter_context(whole_path(log._absolute, overwrite=True))
            log._beside.write_bytes(start)
        else:
            with open_whole(log.path) as file:
                file.write(start)
        log._writer()
        return log

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Read a log, up to where it is torn (see `torn_at`); the file is never changed.

        Raises
        ------
        LogError
            If the header, or a record that is not the last, is damaged; ``.offset`` says where, and
            ``.steps`` how many steps before it are good: `salvage` copies them.
        """
        path = Path(path)
        return cls(path, _scan(path, _read(path)))

    @classmethod
    def recover(cls, path: str | os.PathLike[str]) -> Self:
        """Open a log to go on writing it: lock it, and cut a torn tail to the last good record.

        The only call that ever shortens a file, and only if all records replay to their digests. A
        log that is damaged elsewhere is left alone.

        Raises
        ------
        LogError
            As `open` and `verify`, and if another writer holds the log.
        """
        path = Path(path)
        file = Appender(path)
        try:
            contents = _scan(path, data := file.read())
            file.expect(len(data), *CRC.unpack(data[-CRC.size :]))
            log = cls(path, replace(contents, torn=""))
            (flat,) = log._flats([contents.steps])
            if contents.torn:
                file.cut(contents.end)
        except BaseException:
            file.close()
            raise
        log._appender, log._last = file, (contents.steps, flat)
        return log

    @classmethod
    def salvage(cls, path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Self:
        """Copy a damaged log up to the damage: all records that are good and replay as written.

        `out` must not exist; it is a copy of a log that is whole. A damaged header is an error.
        """
        path = Path(path)
        data = _read(path)
        while True:
            try:
                log = cls(path, scan(data))
                log.verify()
                break
            except LogError as error:
                if error.steps is None:
                    raise error.of(path) from None
                data = data[: error.offset]
        with open_whole(out) as file:
            file.write(data[: log.nbytes])
        return cls.open(out)

    def close(self) -> None:
        """Release the lock on the file. Reading goes on; the next `append` locks it again."""
        with self._lock:
            self._settle()
            self._release()

    def __enter__(self) -> Self:
        """Return the log; the block's end closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the log."""
        self.close()

    @property
    def header(self) -> dict[str, Any]:
        """The header, as JSON types; a new copy at every call."""
        return parse_header(self._contents.header)

    @property
    def torn_at(self) -> int | None:
        """The byte from which on the file holds no whole record, or None."""
        contents = self._contents
        return contents.end if contents.torn else None

    @property
    def warning(self) -> str:
        """Why the file's tail is no part of the log, or an empty string."""
        contents = self._contents
        if not contents.torn:
            return ""
        return f"torn at byte {contents.end}: {contents.torn}; its {len(self)} steps are good"

    @property
    def nbytes(self) -> int:
        """Bytes of the file up to its last good record: header, records and framing."""
        return self._contents.end

    @property
    def records(self) -> tuple[Record, ...]:
        """The framed records, as `minibit.steps.file.scan` found them."""
        return self._contents.records

    def __repr__(self) -> str:
        """Name the file, its steps and its size."""
        return f"StepLog({str(self.path)!r}, {len(self)} steps, {self.nbytes} bytes)"

    # --- Writing

    def append(
        self,
        steps: Step | Iterable[Step],
        updates: Sequence[Update | None] | None = None,
        shares: Sequence[Iterable[Sequence[Any]]] | None = None,
    ) -> None:
        """Add steps at the end: one write and one sync to disk, in records of at most 32 steps.

        Sampled steps of different density go to different records, in their order. The log moves
        its weights along, to store a digest of them after each record; `updates` are what each step
        does to them (`StepResult.update`), where the caller knows. `shares` name who measured which
        part of each step, ``[(first, stop, name), ...]``: they are kept beside the log, for
        `revert` (see `minibit.steps.contributors`).

        However an append ends, also by Ctrl-C at any point, file and object agree: either all of
        the steps are logged or none. If the disk fails at that, too, the file is torn.

        Raises
        ------
        TypeError, ValueError, LogError, OSError
            If a step does not fit the plan; if the log is torn, another writer holds it, or the
            file is no longer as it was read; if the disk is full or fails.
        """
        several = [steps] if isinstance(steps, SampledStep | UnitsStep) else steps
        if not isinstance(several, Iterable):
            raise TypeError(f"steps must be one step or several, got {steps!r:.80}")
        batch = [checked_step(self.plan, step) for step in several]
        if updates is not None and len(updates) != len(batch):
            raise ValueError(f"updates must be one per step, {len(batch)}, got {len(updates)}")
        tags = [checked_shares(self.plan, own) for own in shares or [()] * len(batch)]
        if len(tags) != len(batch):
            raise ValueError(f"shares must be one list per step, {len(batch)}, got {len(tags)}")
        if not batch:
            return
        if self._appending():
            raise LogError(f"{self.path}: a signal's handler may not append within an append")
        try:
            with self._lock:
                self._settle()
                before = self._known
                if before.torn:
                    raise LogError(
                        f"cannot append to a log {self.warning} (StepLog.recover cuts it)"
                    )
                file = self._writer()
                flat = self._weights(before.steps)
                data, after = self._pack(before, flat, batch, updates)
                file.check_owner()
                if self._beside is None:
                    self._tags.write(before.steps, tags)
                self._first_tags, self._under_way = tags, (after, flat)
                file.append(data)
        finally:
            _ = self._contents  # settles the append; if interrupted, the next question does

    def _appending(self) -> bool:
        """Whether this thread is within an append, which a handler of a signal has interrupted."""
        within: bool = self._lock._is_owned()  # type: ignore[attr-defined]
        return within

    @property
    def _contents(self) -> Contents:
        """The good part of the file, after an append that was cut off is settled."""
        if self._under_way is not None and not self._appending():
            with self._lock:
                self._settle()
        return self._known

    def _settle(self) -> None:
        """Take over an append that is whole in the file; undo one that is not."""
        under_way, file = self._under_way, self._appender
        if under_way is None or file is None:
            return
        after, flat = under_way
        if file.process != os.getpid():  # its parent settles it
            pass
        elif file.size == after.end:
            self._naming.close()
            if self._beside is not None:
                self._tags.write(0, self._first_tags)
            file.path, self._beside = self._absolute, None
            self._known, self._last = after, (after.steps, flat)
        elif self._known.end < file.size < after.end:
            with suppress(OSError):
                file.cut(self._known.end)
        self._under_way = None

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
        update = iter(updates if updates is not None else repeat(None))
        for _, alike in groupby(batch, lambda step: getattr(step, "numerator", None)):
            while steps := list(islice(alike, MOST_STEPS)):
                for step in steps:
                    advance(flat, *next(names), step, next(update))
                payload, digest = pack_steps(self.plan, steps), sha256(flat.data).digest()[:DIGEST]
                framed, crc = pack_record(len(steps), payload, digest, crc)
                records.append(Record(end, first, len(steps), payload, digest, crc))
                data.append(framed)
                end, first = end + len(framed), first + len(steps)
        return b"".join(data), replace(contents, records=tuple(records), crc=crc, end=end)

    def _writer(self) -> Appender:
        """Return the file, open and locked for appending, if it still ends where the log does."""
        file = self._appender
        if file is None:
            file = self._appender = Appender(self._beside or self._absolute)
        try:
            file.expect(self._known.end, self._known.crc)
        except LogError:
            self._release()
            raise
        return file

    def _release(self) -> None:
        """Close the file; one that still waits for a record beside its place is removed."""
        if self._appender is not None:
            self._appender.close()
        self._appender, none = None, LookupError("no record")
        self._naming.__exit__(LookupError, none, None)

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


def _forget() -> None:
    """Let a forked child read each log as it was before an append by its parent's threads."""
    for log in _logs:
        log._lock, log._under_way = threading.RLock(), None


_logs: WeakSet[StepLog] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _read(path: Path) -> bytes:
    """Read a log's file; a pipe, or anything else that is no file, is an error."""
    if path.exists() and not path.is_file():
        raise LogError("is no file", path=path)
    with path.open("rb") as file:
        return read_log(file)


def _scan(path: Path, data: bytes) -> Contents:
    """Scan a file; errors name it."""
    try:
        return scan(data)
    except LogError as error:
        raise error.of(path) from None


def compact(log: StepLog, step: int | None = None) -> bytes:
    """Code the model alone, without its history: the net moves from the seed's initial weights.

    It is the model after so many steps of the log as `step` says, all by default. `expand` turns
    the bytes, with the log's plan, into the same weights; `minibit.steps.net_moves` says how they
    are coded.

    Examples
    --------
    >>> import numpy as np
    >>> from minibit.noise_step.moves import Plan
    >>> from tempfile import TemporaryDirectory
    >>> plan = Plan("sampled", 0, ("w1",), ((40, 80),), zeros=2**31, perturbations=2)
    >>> with TemporaryDirectory() as folder:
    ...     with StepLog.create(folder + "/run.steps", {"plan": plan.to_dict()}) as log:
    ...         log.append(SampledStep(2**26, np.array([1, -1], np.int8)))
    ...     data = compact(log)
    >>> from minibit.steps import expand
    >>> bool((expand(plan, data)["w1"] == log.replay()["w1"]).all())
    True
    """
    until = len(log) if step is None else integer("step", step, 0, len(log))
    return net_moves(log.plan, log.replay(until))
