"""Workers asked for parts of a step: tasks are sent, again what is late or lost, and compared.

The first answer counts, for all honest answers are the same bytes. Of a part that two workers
measure both must agree; where two differ, a third decides, or the client itself. The worker that
was wrong is named and gets no more tasks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field
from math import inf
from typing import Any

import minibit
from minibit.cluster.crews import Crew, Lane
from minibit.cluster.messages import ANSWERED, BEHIND, REFUSED, UNKNOWN, Answer, Task, run_name
from minibit.cluster.replica import answer
from minibit.cluster.sums import Method, Part, decode
from minibit.noise_step import Plan, SampledStep, UnitsStep
from minibit.steps import pack_steps

__all__ = ["PATIENCE", "Asking", "Question", "Tasks", "Traffic"]

PATIENCE = 60.0  # seconds; or ten times what steps take, if that is longer
TRIES = 16  # that a part is sent before the run gives up
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
    checked: int = 0  # parts that two workers measured
    asked: int = 0  # steps in which rounded sums did not decide, and exact ones were asked for
    working: float = 0.0  # seconds of the slowest worker of each step, summed
    waiting: float = 0.0  # seconds from a step's first task to its last answer, summed
    joining: float = 0.0  # seconds in which the client decided, summed
    steps: int = 0

    @property
    def per_step(self) -> tuple[float, float]:
        """Bytes that a step sends up and down, all workers together, on the mean."""
        steps = max(1, self.steps)
        return self.up / steps, self.down / steps

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of a step on the mean: its slowest worker's, those of the way, the client's."""
        way = self.waiting - self.working
        seconds = {"measuring": self.working, "on the way": way, "deciding": self.joining}
        return {part: total / max(1, self.steps) for part, total in seconds.items()}


class Tasks:
    """The tasks of a run: what the client knows, and workers need to know, to measure a step."""

    def __init__(
        self, plan: Plan, method: Method, brief: bytes, records: Sequence[SampledStep | UnitsStep]
    ) -> None:
        self.plan, self.method, self.brief = plan, method, brief
        self.numerator = 0  # of the present step
        self._run, self._records = run_name(brief), [pack_steps(plan, [r]) for r in records]

    @property
    def step(self) -> int:
        """The present step's number."""
        return len(self._records)

    def took(self, record: SampledStep | UnitsStep) -> None:
        """Remember what the present step kept."""
        self._records.append(pack_steps(self.plan, [record]))

    def message(self, part: Part, base: int, brief: bytes = b"") -> bytes:
        """Return the task of a part, for a worker that knows what came before step `base`."""
        task = Task(
            self._run, self.step, self.numerator, part.first, part.stop, part.chunks, part.form,
            part.exact, base, tuple(self._records[base:]), brief,
        )  # fmt: skip
        return task.pack()

    def measured_here(self, part: Part) -> Answer:
        """Measure a part in this process."""
        told = Answer.unpack(answer(self.message(part, 0, self.brief)))
        if told.kind == BEHIND:
            told = Answer.unpack(answer(self.message(part, told.step)))
        if told.kind != ANSWERED:
            raise RuntimeError(f"workers differ, and this process cannot decide: {told.reason}")
        return told


@dataclass
class Question:
    """A part of the present step, whom it was sent to, and what they said."""

    part: Part
    turn: int  # whose it is first, among the lanes
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


class Asking:
    """Workers, and what the client knows of them.

    Parameters
    ----------
    crew : Crew
    tasks : Tasks
    patience : float
        Seconds after which a task is sent to another worker, too.

    Attributes
    ----------
    traffic : Traffic
    left_out : dict
        Workers that get no more tasks, by their name in hexadecimal, and why.
    """

    def __init__(self, crew: Crew, tasks: Tasks, patience: float) -> None:
        self.traffic, self.left_out = Traffic(), dict[str, str]()
        self._crew, self._tasks, self._patience = crew, tasks, patience
        self._under_way: dict[Future[Any], tuple[Question, Lane, float]] = {}
        self._workers: dict[str, str] = {}  # who answered last on a lane,
        self._knows: dict[str, int] = {}  # and at which step
        self._lost = ""

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Return the verdict on each question, in order.

        Raises
        ------
        RuntimeError
            If no worker is left that answers; the message says what became of them.
        """
        for question in questions:
            for _ in range(question.needed):
                self._send_on(question)
        try:
            while unsettled := self._unsettled(questions):
                self._collect()
                self._give_up_late()
                for question in unsettled:
                    self._ask_again(question)
        finally:
            for future in self._under_way:
                future.cancel()
            self._under_way.clear()
        return [told for question in questions if (told := question.verdict)]

    # --- Tasks go out

    def _send(self, question: Question, lane: Lane, base: int, brief: bytes = b"") -> None:
        """Send a question's task to a worker that knows what came before step `base`."""
        if len(question.asked) >= TRIES:
            raise RuntimeError(
                f"step {self._tasks.step} got no answer in {TRIES} tries; {self._fates()}"
            )
        message = self._tasks.message(question.part, base, brief)
        self.traffic.down += len(message)
        self.traffic.tasks += 1
        self.traffic.again += len(question.asked) >= question.needed
        question.asked.append(lane.name)
        question.waiting += 1
        self._under_way[_submitted(lane, message)] = question, lane, time.monotonic()

    def _send_on(self, question: Question) -> None:
        """Send a question to the next lane in turn that was not asked it yet, if there is one."""
        lanes, first = self.lanes(), question.turn + max(0, len(question.asked) - question.needed)
        in_turn = [lanes[(first + k) % len(lanes)] for k in range(len(lanes))]
        lane = next((lane for lane in in_turn if lane.name not in question.asked), in_turn[0])
        self._send(question, lane, self._knows.get(lane.name, self._tasks.step))

    def _ask_again(self, question: Question) -> None:
        """Send an unsettled question of which nothing is under way to another; or answer it."""
        if question.verdict is not None or question.waiting > 0:
            return
        if question.said and {lane.name for lane in self.lanes()} <= {*question.asked}:
            told = self._tasks.measured_here(question.part)  # no other is left to ask
            self._weigh(question, told._replace(worker=HERE))
        else:
            self._send_on(question)

    def lanes(self) -> list[Lane]:
        """Return the lanes that may get tasks; wait for one if there is none."""
        begin = time.monotonic()
        while True:
            present = self._crew.lanes()
            lanes = [lane for lane in present if self._workers.get(lane.name) not in self.left_out]
            if lanes:
                return lanes
            refused = present and not self.traffic.steps  # by all, from the start
            if refused or time.monotonic() - begin > self._patience:
                raise RuntimeError(f"no worker is there to take a step; {self._fates()}")
            time.sleep(LOOK)

    # --- Answers come in

    def _collect(self) -> None:
        """Wait a moment for answers, and take up those that came."""
        for future in wait(self._under_way, LOOK, FIRST_COMPLETED).done:
            question, lane, since = self._under_way.pop(future)
            question.waiting -= since < inf
            told = self._read(future, lane)
            if told is None:
                continue
            if told.kind == BEHIND:
                self._send(question, lane, min(told.step, self._tasks.step))
            elif told.kind == UNKNOWN:
                self._send(question, lane, 0, self._tasks.brief)
            else:
                self._knows[lane.name] = self._tasks.step
                self._weigh(question, told)

    def _give_up_late(self) -> None:
        """Wait no longer for workers that have left, or are slow; these may still answer."""
        slow = max(self._patience, 10 * self.traffic.waiting / max(1, self.traffic.steps))
        there = {lane.name for lane in self._crew.lanes()}
        for future, (question, lane, since) in list(self._under_way.items()):
            if lane.name not in there:
                del self._under_way[future]
                future.cancel()
                question.waiting -= since < inf
                self._lost = f"{lane.name} has left"
            elif time.monotonic() - since > slow:
                self._under_way[future] = question, lane, inf
                question.waiting -= 1

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

    # --- And are compared

    def _weigh(self, question: Question, told: Answer) -> None:
        """Count an answer; whoever is outvoted by it is left out."""
        try:
            decode(self._tasks.method, self._tasks.plan, question.part, told.body)
        except ValueError as error:
            self.left_out[told.worker.hex()] = f"answers nonsense: {error}"
            return
        question.said[told.worker] = told
        if verdict := question.verdict:
            for worker, other in question.said.items():
                if _sense(other) != _sense(verdict):
                    self.left_out[worker.hex()] = f"answered other sums at step {self._tasks.step}"

    def _unsettled(self, questions: Sequence[Question]) -> list[Question]:
        """Return those without a verdict; all of them need workers with the same weights."""
        if not any(question.verdict is None for question in questions):
            verdicts = [told for question in questions if (told := question.verdict)]
            if len({told.state for told in verdicts}) == 1:
                return []
            here = self._tasks.measured_here(questions[0].part)  # whose weights are others?
            for question in questions:
                for worker, told in list(question.said.items()):
                    if told.state != here.state:
                        self.left_out[worker.hex()] = (
                            f"has other weights at step {self._tasks.step}"
                        )
                        del question.said[worker]
        return [question for question in questions if question.verdict is None]

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
