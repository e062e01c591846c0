"""A run's steps, taken by workers: the client cuts a step, joins the answers, and decides once.

The client needs no weights: it knows what every step kept, and sends that along.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minibit.base import number, one_of
from minibit.cluster.asking import PATIENCE, Asking, Question, Tasks
from minibit.cluster.crews import Crew
from minibit.cluster.messages import EXACT, Answer
from minibit.cluster.sums import Method, Part, decode, join, known, parts_of
from minibit.noise_step import Plan, Sampled, SampledStep, UnitsStep

__all__ = ["CUTS", "Remote", "Taken"]

CUTS = ("samples", "perturbations")


@dataclass(frozen=True)
class Taken:
    """A step that workers took."""

    step: int
    record: SampledStep | UnitsStep
    loss: float
    accuracy: float
    shares: list[tuple[int, int, str]]  # who measured which range, alone or with others
    update: None = None  # the log draws what it needs


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
    cut : "samples" or "perturbations", optional
        How a step of method sampled is cut (`minibit.cluster.sums`); by samples by default, but for
        workers that are alone. Steps of method units have one way.
    alone : bool
        Whether each worker takes the median of its own range (method sampled).
    check : float
        Share of the parts that two workers measure; 1 for all.
    patience : float
        Seconds after which a task is sent to another worker, too.

    Attributes
    ----------
    traffic : Traffic
    left_out : dict
        Workers that get no more tasks, by their name in hexadecimal, and why.
    workers : int
        How many parts the last step was cut into; 0 before the first.
    """

    def __init__(
        self,
        crew: Crew,
        plan: Plan,
        method: Method,
        brief: bytes,
        records: Sequence[SampledStep | UnitsStep] = (),
        *,
        cut: str | None = None,
        alone: bool = False,
        check: float = 0.0,
        patience: float = PATIENCE,
    ) -> None:
        sampled = plan.method == "sampled"
        if alone and not sampled:
            raise ValueError("alone is for method sampled: ranking needs all scores in one place")
        if cut is not None and one_of("cut", cut, CUTS) and not sampled:
            raise ValueError(f"cut is for method sampled, got {cut!r} for method {plan.method}")
        if alone and cut == "samples":
            raise ValueError("cut must be 'perturbations' where workers are alone, got 'samples'")
        self.plan, self.method, self.alone = plan, method, alone
        self.cut = cut or ("samples" if sampled and not alone else None)
        self.check = number("check", check, "[0, 1]")
        self.workers = 0
        self._tasks = Tasks(plan, method, brief, records)
        self._asking = Asking(crew, self._tasks, number("patience", patience, "[0, inf)"))
        self.traffic, self.left_out = self._asking.traffic, self._asking.left_out

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return self._tasks.step

    def step(self, density: float | None = None) -> Taken:
        """Take one step.

        Raises
        ------
        RuntimeError
            If no worker is left that answers; the message says what became of them.
        """
        begin, tasks, traffic = time.perf_counter(), self._tasks, self.traffic
        if isinstance(self.method, Sampled):
            tasks.numerator = self.method.numerator(self.steps, density)
        parts = parts_of(self.plan, len(self._asking.lanes()), self.cut, self.alone)
        questions = [
            Question(part, turn, 2 if self._is_checked() else 1) for turn, part in enumerate(parts)
        ]
        traffic.checked += sum(question.needed == 2 for question in questions)
        told = self._asking.ask(questions)
        answered = time.perf_counter()
        traffic.working += max(each.seconds for each in told)
        traffic.waiting += answered - begin
        record = self._decided(questions, told)
        shares = [
            (q.part.first, q.part.stop, a.worker.hex())
            for q, a in zip(questions, told, strict=True)
        ]
        batch = [a for q, a in zip(questions, told, strict=True) if not q.part.first]  # all chunks
        loss = sum(each.loss for each in batch) / sum(each.weight for each in batch)
        accuracy = sum(each.correct for each in batch) / sum(each.samples for each in batch)
        taken = Taken(self.steps, record, loss, accuracy, shares)
        self.workers = len(shares)
        tasks.took(record)
        traffic.joining += time.perf_counter() - answered
        traffic.steps += 1
        return taken

    def _is_checked(self) -> bool:
        """Draw whether a part is measured twice; nobody else can tell."""
        return secrets.randbelow(1 << 30) < self.check * (1 << 30)

    def _decided(
        self, questions: Sequence[Question], told: Sequence[Answer]
    ) -> SampledStep | UnitsStep:
        """Decide what a step keeps; ask for exact sums where rounded ones leave that open."""
        bodies = [(q.part, a.body) for q, a in zip(questions, told, strict=True)]
        numerator = self._tasks.numerator
        if self.cut != "samples" or not isinstance(self.method, Sampled):
            return join(self.method, self.plan, self.steps, numerator, bodies)
        sums = known(self.method, bodies)
        self.traffic.asked += sums.open().size > 0
        while (numbers := sums.open()).size:
            more = [
                Question(part, question.turn, question.needed)
                for question in questions
                if (part := _exact(question.part, numbers)).exact
            ]
            groups: dict[int, list[tuple[Part, Answer]]] = {}  # by the first perturbation
            for question, answer in zip(more, self._asking.ask(more), strict=True):
                groups.setdefault(question.part.first, []).append((question.part, answer))
            for group in groups.values():
                chunks = [
                    decode(self.method, self.plan, part, answer.body) for part, answer in group
                ]
                exact = [np.concatenate(each) for each in zip(*chunks, strict=True)]
                sums.learn(np.array(group[0][0].exact), exact)
        return SampledStep(numerator, sums.codes())


def _exact(part: Part, numbers: NDArray[np.int64]) -> Part:
    """Return the part that asks for the exact sums of those perturbations that it has."""
    inside = numbers[(part.first <= numbers) & (numbers < part.stop)]
    return part._replace(form=EXACT, exact=tuple(inside.tolist()))
