"""A run's steps, taken by workers: the client sends ranges, compares, joins, and decides once.

The client needs no weights: it knows what every step kept, and sends that along. What is late is
sent again elsewhere, what is lost, too; the first answer counts, for all honest answers are the
same bytes. A share of the ranges is measured by two workers. Where two differ, a third decides, or
the client itself; the worker that was wrong is named and gets no more tasks.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field
from math import inf
from typing import Any

import minibit
from minibit.base import number
from minibit.cluster.crews import Crew, Lane
from minibit.cluster.messages import ANSWERED, BEHIND, REFUSED, UNKNOWN, Answer, Task, run_name
from minibit.cluster.replica import answer
from minibit.cluster.sums import decode, join, ranges
from minibit.noise_step import Plan, Sampled, SampledStep, Units, UnitsStep
from minibit.steps import pack_steps

__all__ = ["PATIENCE", "Remote", "Taken", "Traffic"]

PATIENCE = 60.0  # seconds; or ten times what steps take, if that is longer
TRIES = 16  # that a range is sent before the run gives up
HERE = b"here"  # the client as a worker, where two of them differ
LOOK = 0.2  # seconds between two looks for what is late


@dataclass
class Traffic:
    """What travelled and where the time went, since the run began."""

    up: int = 0  # bytes of answers
    down: int = 0  # bytes of tasks
    answers: int = 0
    tasks: int = 0
    again: int = 0  # tasks sent another time: late, lost, behind, or to who did not know the run
    checked: int = 0  # ranges that two workers measured
    working: float = 0.0  # seconds of the slowest worker of each step, summed
    waiting: float = 0.0  # seconds from a step's first task to its last answer, summed
    joining: float = 0.0  # seconds in which the client decided, summed
    steps: int = 0

    @property
    def per_step(self) -> tuple[float, float]:
        """Bytes that a step sends up and down, all workers together, on the mean."""
        steps = max(1, self.steps)
        return self.up / steps, self.down / steps


@dataclass(frozen=True)
class Taken:
    """A step that workers took."""

    step: int
    record: SampledStep | UnitsStep
    loss: float
    accuracy: float
    shares: list[tuple[int, int, str]]  # who measured which range
    update: None = None  # the log draws what it needs


@dataclass
class _Part:
    """A range of the present step, whom it was sent to, and what they said."""

    first: int
    stop: int
    needed: int = 1  # workers that must agree
    said: dict[bytes, Answer] = field(default_factory=dict)  # by worker
    asked: list[str] = field(default_factory=list)  # lanes, in turn
    waiting: int = 0  # tasks under way

    @property
    def verdict(self) -> Answer | None:
        """The answer that enough workers gave; once two differ, it must be two who gave it."""
        votes = Counter(_sense(told) for told in self.said.values())
        if not votes:
            return None
        ((best, most),) = votes.most_common(1)
        if most < (self.needed if len(votes) == 1 else 2):
            return None
        return next(told for told in self.said.values() if _sense(told) == best)


def _sense(told: Answer) -> tuple[bytes, int, float]:
    """Return that of an answer which all honest workers have in common."""
    return told.body, told.state, told.loss


class Remote:
    """Take the steps of a run on a crew of workers.

    Parameters
    ----------
    crew : Crew
    plan : Plan
    method : Sampled or Units
        With its schedules.
    brief : bytes
        What a worker must know to begin (`minibit.cluster.replica.brief_of`).
    records : sequence of SampledStep or UnitsStep
        Steps that were taken before.
    alone : bool
        Whether each worker takes the median of its own range (method sampled).
    check : float
        Share of the ranges that two workers measure; 1 for all.
    patience : float
        Seconds after which a task is sent to another worker, too.

    Attributes
    ----------
    traffic : Traffic
    left_out : dict
        Workers that get no more tasks, by their name in hexadecimal, and why.
    workers : int
        How many ranges the last step was cut into; 0 before the first.
    """

    def __init__(
        self,
        crew: Crew,
        plan: Plan,
        method: Sampled | Units,
        brief: bytes,
        records: Sequence[SampledStep | UnitsStep] = (),
        *,
        alone: bool = False,
        check: float = 0.0,
        patience: float = PATIENCE,
    ) -> None:
        if alone and plan.method != "sampled":
            raise ValueError("alone is for method sampled: ranking needs all scores in one place")
        self.plan, self.method, self.alone = plan, method, alone
        self.check, self.patience = number("check", check, "[0, 1]"), patience
        self.traffic = Traffic()
        self.left_out: dict[str, str] = {}
        self.workers = 0
        self._crew, self._brief, self._run = crew, brief, run_name(brief)
        self._records = [pack_steps(plan, [record]) for record in records]
        self._workers: dict[str, str] = {}  # who answered last on a lane,
        self._knows: dict[str, int] = {}  # and at which step
        self._lost = ""

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return len(self._records)

    def step(self, density: float | None = None) -> Taken:
        """Take one step.

        Raises
        ------
        RuntimeError
            If no worker is left that answers; the message says what became of them.
        """
        begin, numerator = time.perf_counter(), 0
        if isinstance(self.method, Sampled):
            numerator = self.method.numerator(self.steps, density)
        parts = [_Part(*cut) for cut in ranges(self.plan, len(self._lanes()))]
        for part in parts:
            if secrets.randbelow(1 << 30) < self.check * (1 << 30):
                part.needed = 2
                self.traffic.checked += 1
        told = self._ask(parts, numerator)
        decided = time.perf_counter()
        cuts = [(part.first, part.stop) for part in parts]
        bodies = [(*cut, answer.body) for cut, answer in zip(cuts, told, strict=True)]
        record = join(self.method, self.plan, self.steps, numerator, bodies, self.alone)
        shares = [(*cut, a.worker.hex()) for cut, a in zip(cuts, told, strict=True)]
        taken = Taken(self.steps, record, told[0].loss, told[0].accuracy, shares)
        self.workers = len(shares)
        self._records.append(pack_steps(self.plan, [record]))
        self.traffic.working += max(answer.seconds for answer in told)
        self.traffic.waiting += decided - begin
        self.traffic.joining += time.perf_counter() - decided
        self.traffic.steps += 1
        return taken

    def _ask(self, parts: list[_Part], numerator: int) -> list[Answer]:
        """Send the ranges, again what is late, lost or doubted, until each has its verdict."""
        tasks: dict[Future[Any], tuple[_Part, Lane, float]] = {}

        def send(part: _Part, lane: Lane, base: int, brief: bytes = b"") -> None:
            if len(part.asked) >= TRIES:
                raise RuntimeError(
                    f"step {self.steps} got no answer in {TRIES} tries; {self._fates()}"
                )
            message = self._task(part, numerator, base, brief)
            self.traffic.again += len(part.asked) >= part.needed
            part.asked.append(lane.name)
            part.waiting += 1
            tasks[_submitted(lane, message)] = part, lane, time.monotonic()

        def send_on(part: _Part, turn: int) -> None:
            lane = self._lane_for(part, turn)
            send(part, lane, self._knows.get(lane.name, self.steps))

        for turn, part in enumerate(parts):
            for _ in range(part.needed):
                send_on(part, turn)
        slow = max(self.patience, 10 * self.traffic.waiting / max(1, self.traffic.steps))
        while unsettled := self._unsettled(parts, numerator):
            for future in wait(tasks, LOOK, FIRST_COMPLETED).done:
                part, lane, since = tasks.pop(future)
                part.waiting -= since < inf
                told = self._read(future, lane)
                if told is None:
                    continue
                if told.kind == BEHIND:
                    send(part, lane, min(told.step, self.steps))
                elif told.kind == UNKNOWN:
                    send(part, lane, 0, self._brief)
                else:
                    self._knows[lane.name] = self.steps
                    self._weigh(part, told)
            there = {lane.name for lane in self._crew.lanes()}
            for future, (part, lane, since) in list(tasks.items()):
                if lane.name not in there:
                    del tasks[future]
                    future.cancel()
                    part.waiting -= since < inf
                    self._lost = f"{lane.name} has left"
                elif time.monotonic() - since > slow:  # it may still answer, but is not waited for
                    tasks[future] = part, lane, inf
                    part.waiting -= 1
            for part in unsettled:
                if part.verdict is not None or part.waiting > 0:
                    continue
                if part.said and {lane.name for lane in self._lanes()} <= {*part.asked}:
                    told = self._measure(part, numerator)  # no other is left to ask
                    self._weigh(part, told._replace(worker=HERE))
                else:
                    send_on(part, len(part.asked))
        for future in tasks:
            future.cancel()
        return [told for part in parts if (told := part.verdict)]

    def _task(self, part: _Part, numerator: int, base: int, brief: bytes) -> bytes:
        """Return the task of a range, for a worker that knows what came before step `base`."""
        task = Task(
            self._run, self.steps, numerator, part.first, part.stop, self.alone, base,
            tuple(self._records[base:]), brief,
        )  # fmt: skip
        message = task.pack()
        self.traffic.down += len(message)
        self.traffic.tasks += 1
        return message

    def _read(self, future: Future[Any], lane: Lane) -> Answer | None:
        """Return a lane's answer; None if it was lost, or its worker gets no more tasks."""
        try:
            message = future.result()
        except (Exception, CancelledError) as error:
            self._knows.pop(lane.name, None)
            self._lost = f"{lane.name} was lost: {type(error).__name__}: {error}"
            if isinstance(error, ImportError):
                self._workers[lane.name] = lane.name
                self.left_out[lane.name] = f"has no minibit {minibit.__version__}: {error}"
            return None
        try:
            told = Answer.unpack(message)
        except ValueError as error:
            self._workers[lane.name] = lane.name
            self.left_out[lane.name] = str(error)
            return None
        self.traffic.up += len(message)
        self.traffic.answers += 1
        name = self._workers[lane.name] = told.worker.hex()
        if told.kind == REFUSED:
            self.left_out.setdefault(name, f"refuses: {told.reason}")
        return None if name in self.left_out else told

    def _weigh(self, part: _Part, told: Answer) -> None:
        """Count an answer; whoever is outvoted by it is left out."""
        try:
            decode(self.plan, part.first, part.stop, told.body, self.alone)
        except ValueError as error:
            self.left_out[told.worker.hex()] = f"answers nonsense: {error}"
            return
        part.said[told.worker] = told
        if verdict := part.verdict:
            for worker, other in part.said.items():
                if _sense(other) != _sense(verdict):
                    self.left_out[worker.hex()] = f"answered other sums at step {self.steps}"

    def _unsettled(self, parts: list[_Part], numerator: int) -> list[_Part]:
        """Return the ranges without a verdict; all of them need workers with the same weights."""
        if not any(part.verdict is None for part in parts):
            if len({(told.state, told.loss) for part in parts if (told := part.verdict)}) == 1:
                return []
            here = self._measure(parts[0], numerator)  # their weights or samples differ: whose?
            for part in parts:
                for worker, told in list(part.said.items()):
                    if (told.state, told.loss) != (here.state, here.loss):
                        self.left_out[worker.hex()] = f"has other weights at step {self.steps}"
                        del part.said[worker]
        return [part for part in parts if part.verdict is None]

    def _measure(self, part: _Part, numerator: int) -> Answer:
        """Measure a range in this process."""
        message = self._task(part, numerator, 0, self._brief)
        told = Answer.unpack(answer(message))
        if told.kind == BEHIND:
            told = Answer.unpack(answer(self._task(part, numerator, told.step, b"")))
        if told.kind != ANSWERED:
            raise RuntimeError(f"workers differ, and this process cannot decide: {told.reason}")
        return told

    def _lanes(self) -> list[Lane]:
        """Return the lanes that may get tasks; wait for one if there is none."""
        begin = time.monotonic()
        while True:
            present = self._crew.lanes()
            lanes = [lane for lane in present if self._workers.get(lane.name) not in self.left_out]
            if lanes:
                return lanes
            refused = present and not self.traffic.steps  # by all, from the start
            if refused or time.monotonic() - begin > self.patience:
                raise RuntimeError(f"no worker is there to take a step; {self._fates()}")
            time.sleep(LOOK)

    def _lane_for(self, part: _Part, turn: int) -> Lane:
        """Choose a lane for a range, in turn; one that was not asked for it yet, if there is."""
        lanes = self._lanes()
        in_turn = [lanes[(turn + k) % len(lanes)] for k in range(len(lanes))]
        return next((lane for lane in in_turn if lane.name not in part.asked), in_turn[0])

    def _fates(self) -> str:
        """Say what became of workers, for an error."""
        fates = [f"{name} {why}" for name, why in self.left_out.items()]
        if self._lost and not any(self._lost.startswith(name) for name in self.left_out):
            fates.append(self._lost)
        elif not fates:
            fates = ["those that took steps are gone" if self.traffic.steps else "none has come"]
        return "; ".join(fates)


def _submitted(lane: Lane, message: bytes) -> Future[Any]:
    """Hand a task to a lane; one that takes none any more is as good as lost."""
    try:
        return lane.submit(message)
    except Exception as error:
        failed: Future[Any] = Future()
        failed.set_exception(error)
        return failed
