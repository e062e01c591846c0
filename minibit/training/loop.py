"""Training runs: the loop draws a batch, takes a step, and logs its choice, 32 steps per record.

`_Run.go` is the loop, and where Ctrl-C ends it: all steps that have ended are logged and measured.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer, one_of, thread_count
from minibit.datasets import Dataset, load_mnist, split
from minibit.kernels import compiled
from minibit.kernels.interrupts import Stop, uninterrupted
from minibit.noise import BATCH, integers
from minibit.noise_step import MLP, NoiseStep, Plan, SampledStep, UnitsStep, Update, forward
from minibit.steps import StepLog
from minibit.training.course import Course
from minibit.training.log_header import SPLITS, make_header, model_of, recipe_of, training_header
from minibit.training.presets import PRESETS, STEPS_PER_RECORD, Preset

__all__ = ["Progress", "TrainResult", "evaluate", "train"]

REPORT_SECONDS = 0.5
LEAST_SIDE = 4  # a shift by a pixel takes a quarter of such an image, or all of a row


@dataclass(frozen=True)
class Progress:
    """Where a run stands; handed to the caller about twice a second."""

    step: int
    steps: int
    loss: float
    accuracy: float  # of the batch
    seconds: float
    remaining: float
    log_bytes: int


@dataclass(frozen=True)
class TrainResult:
    """The outcome of a run."""

    preset: str
    seed: int
    split: str
    test_accuracy: float
    validation_accuracy: float | None  # None if the run trained on the validation images too
    digest: str
    steps: int
    loss: float  # of the last batch
    log_bytes: int
    packed_weight_bytes: int  # the weights at five trits per byte
    seconds: float  # of training, without compile_seconds
    compile_seconds: float
    cpu_seconds: float
    step_seconds: NDArray[np.float64] = field(repr=False)
    batch_sizes: NDArray[np.int64] = field(repr=False)
    interrupted: bool = False


class Taken(Protocol):
    """A step that was taken: its choice and, where the caller has it, its update."""

    @property
    def step(self) -> int:
        """Number of the step."""

    @property
    def record(self) -> SampledStep | UnitsStep:
        """The choice, which the log keeps."""

    @property
    def update(self) -> Update | None:
        """The moves of the choice, summed; None where the log is to draw them anew."""

    @property
    def loss(self) -> float:
        """Mean loss over the batch, samples weighted, before the step."""

    @property
    def accuracy(self) -> float:
        """Accuracy on the batch, before the step."""


class Steps(Protocol):
    """An engine at work: it takes the steps of a run on other threads, processes or machines."""

    @property
    def steps(self) -> int:
        """How many were taken."""

    def step(self, density: float | None) -> Taken:
        """Take the next step, with this density where the density follows the loss."""


# From the plan of the steps to come, those that were taken, the header and the course.
Engine = Callable[[Plan, Sequence[SampledStep | UnitsStep], dict[str, Any], Course], Steps]


def train(
    preset: str = "small",
    seed: int = 0,
    out: str | Path = "model.steps",
    *,
    steps: int | None = None,
    resume: bool = False,
    threads: int | None = None,
    dataset: Dataset | None = None,
    split_name: Literal["final", "validation"] = "final",
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    engine: Engine | None = None,
    **overrides: Any,
) -> TrainResult:
    """Train an MLP by noise_step and write its log.

    A ValueError says if a name is unknown, a log does not fit, or is to go on with other fields of
    its preset; a FileExistsError if `out` exists, and is neither to be resumed nor overwritten.

    Parameters
    ----------
    preset, seed : str, int
        A name in `PRESETS`, and what names the initial weights and all draws.
    out : path
        The log.
    steps : int, optional
        Stop after as many in all. Schedules run over `total_steps`: this is a prefix of that run.
    resume : bool
        Go on from the last good record of `out`; its header says preset, seed, widths and split.
    threads : int, optional
        As many as there are cores by default. ``workers``, its name before, is deprecated.
    dataset : Dataset, optional
        MNIST by default.
    split_name : "final" or "validation"
        Train on all training samples, or keep the validation split (`minibit.datasets.split`: the
        last 5,000 of MNIST) apart and report on it: the way to choose hyper-parameters.
    overwrite : bool
        Take the place of a log at `out`, from the first record on (`StepLog.create`).
    progress : callable, optional
        Gets a `Progress` about twice a second. If it raises KeyboardInterrupt, or Ctrl-C does, what
        was trained so far is logged and the result says ``interrupted``.
    engine : callable (plan, records, header, course) -> `Steps`, optional
        Takes the steps elsewhere (`minibit.cluster.train_on`); by default they are taken here.
    **overrides
        Fields of `Preset` to replace. ``widths`` may be those of the hidden layers alone.
        ``total_steps``, at least `steps`, is the number over which the schedules run: by default
        the preset's, or `steps` if that is more.
    """
    steps = steps if steps is None else integer("steps", steps)
    widths, total = overrides.pop("widths", None), overrides.pop("total_steps", None)
    if total is not None:
        integer("total_steps", total, max(1, steps or 0))
    if "workers" in overrides:
        warnings.warn("workers is now called threads", DeprecationWarning, stacklevel=2)
        threads = overrides.pop("workers")
    threads = thread_count(threads)
    if unknown := overrides.keys() - {field.name for field in fields(Preset)}:
        raise TypeError(f"a preset has no field {', '.join(sorted(unknown))}")
    data = dataset or load_mnist()
    if resume:
        run = _Run.resumed(Path(out), data, overrides, engine)
    else:
        recipe = replace(PRESETS[one_of("preset", preset, PRESETS)], **overrides)
        recipe = _fitted(recipe, data, widths, total or max(recipe.steps, steps or 0))
        header = make_header(preset, recipe, data, one_of("split_name", split_name, SPLITS))
        run = _Run.fresh(header, seed, Path(out), data, overwrite, engine)
    with run.log:  # free for other writers again, also if the run fails
        most = run.course.recipe.steps
        if steps is not None and steps > most:
            raise ValueError(f"steps must be at most the log's {most}, got {steps}")
        return run.go(most if steps is None else steps, threads, progress)


def evaluate(
    params: Mapping[str, NDArray[Any]],
    model: MLP,
    x: NDArray[Any],
    y: NDArray[Any],
    threads: int | None = None,
) -> float:
    """Return the share of the samples whose label is the largest logit.

    A ValueError says if there are no samples, or weights, samples and labels do not fit each other.
    """
    if not len(y):
        raise ValueError("y must hold at least one sample")
    correct = forward(model, params, x, y, threads)[3]
    return float(correct.mean())


def _fitted(recipe: Preset, data: Dataset, widths: Any, total_steps: int) -> Preset:
    """Fit a preset to the data, to widths of the hidden or of all layers, and to its steps."""
    n_in, classes = data.features, data.classes
    inner = recipe.widths[1:-1]
    if widths is not None:
        inner = tuple(integer("widths", width, 1) for width in np.atleast_1d(widths).tolist())
    if len(inner) > 1 and inner[0] == n_in and inner[-1] == classes:
        inner = inner[1:-1]
    is_image = len(data.sample_shape) == 2 and min(data.sample_shape) >= LEAST_SIDE
    shifts = recipe.shifts if is_image else 1
    return replace(recipe, widths=(n_in, *inner, classes), steps=total_steps, shifts=shifts)


@dataclass
class _Run:
    """State of a training run."""

    data: Dataset
    log: StepLog
    stepper: NoiseStep
    course: Course
    remote: Steps | None = None

    @classmethod
    def fresh(
        cls,
        header: dict[str, Any],
        seed: int,
        out: Path,
        data: Dataset,
        overwrite: bool,
        engine: Engine | None,
    ) -> _Run:
        """Start a log, after everything else that can fail."""
        if out.exists() and not overwrite:
            raise FileExistsError(f"out must not exist yet, or be resumed: {out}")
        model, recipe = model_of(header), recipe_of(header["recipe"])
        rules = {"zeros": recipe.zeros, "threshold": recipe.threshold}
        stepper = NoiseStep.start(model, recipe.shapes, seed, recipe.settings(), **rules)
        header["plan"] = stepper.plan.to_dict()
        course = Course(header, data, seed)
        remote = engine(stepper.plan, [], header, course) if engine else None
        return cls(data, StepLog.create(out, header, overwrite=overwrite), stepper, course, remote)

    @classmethod
    def resumed(
        cls, out: Path, data: Dataset, overrides: dict[str, Any], engine: Engine | None
    ) -> _Run:
        """Go on where the last good record ends; a torn tail is cut off, once all else fits."""
        begun = StepLog.open(out)
        header = training_header(begun)
        source, recipe = header["data"], recipe_of(header["recipe"])
        for name, value in overrides.items():
            if getattr(recipe, name, None) != value:
                raise ValueError(f"{name} must be that of the log that is resumed, got {value!r}")
        if source["digest"] != data.digest:
            raise ValueError(
                f"dataset must be the one the log was trained on, {source['name']} with digest "
                f"{source['digest']}; got {data.name} with digest {data.digest}"
            )
        course = Course(header, data, begun.plan.seed)
        ahead = replace(begun.plan, seed=begun.seed_ahead())
        remote = engine(ahead, [*begun.steps()], header, course) if engine else None
        log = StepLog.recover(out)
        try:
            plan, model = log.plan, model_of(header)
            method, zeros = recipe.settings(), plan.zeros / 2**32
            rules: dict[str, Any] = {"zeros": zeros, "threshold": recipe.threshold}
            stepper = NoiseStep(model, log.replay(), ahead.seed, method, **rules)
            if replace(stepper.plan, seed=plan.seed) != plan:
                unlike = stepper.plan.differences(replace(plan, seed=ahead.seed))
                raise ValueError(f"{out}: its recipe makes another plan than it has: {unlike}")
            stepper.steps = len(log)
            return cls(data, log, stepper, course, remote)
        except BaseException:
            log.close()
            raise

    def warm_up(self) -> None:
        """Compile what a step of the first batch's size uses; leaves no trace in the run."""
        if self.remote or not compiled():
            return
        trial, pool, count = copy(self.stepper), self.course.pool, self.course.batch_size(0)
        x, y = pool.images[0, :count], pool.labels[:count]
        trial.step(x, y)
        evaluate(trial.params, self.course.model, x, y)
        integers(self.log.plan.seed, 8, 8, domain=BATCH)

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return (self.remote or self.stepper).steps

    def one_step(self) -> Taken:
        """Take a step on the next batch, and remember what its samples came to."""
        if self.remote:
            taken = self.remote.step(self.course.density)
            self.course.follow(taken.loss)
            return taken
        x, y, weight = self.course.batch(self.stepper.steps)
        result = self.stepper.step(x, y, weight=weight, density=self.course.density)
        self.course.saw(result.hardness, result.loss)
        return result

    def save(self, results: list[Taken]) -> None:
        """Log what the log has not got yet: an interrupt may follow a write."""
        new = [result for result in results if result.step >= len(self.log)]
        shares = [getattr(result, "shares", ()) for result in new]  # of workers, if they took it
        self.log.append([r.record for r in new], [r.update for r in new], shares)

    def go(
        self, total: int, threads: int | None, progress: Callable[[Progress], None] | None
    ) -> TrainResult:
        """Take steps up to `total`; an interrupt at any time ends with the result so far."""
        self.stepper.objective = self.stepper.objective._replace(threads=threads)
        stop, start = Stop(), time.perf_counter()
        begin, cpu = start, time.process_time()
        first, recipe = self.steps, self.course.recipe
        growth = math.log(recipe.batch[1] / recipe.batch[0]) / max(1, recipe.steps - 1)

        def work(steps: int) -> float:
            """Return the samples of so many steps over those of the first: a geometric series."""
            return math.expm1(growth * steps) / growth if growth else steps

        pending: list[Taken] = []
        seconds: list[float] = []
        loss = float("nan")
        try:
            self.warm_up()
            begin, cpu = time.perf_counter(), time.process_time()
            last_report = begin
            if 0 < self.steps < total and (recipe.density_by_loss or not self.remote):
                self.course.retrace(self.log, threads)
            while self.steps < total:
                step_begin = time.perf_counter()
                result = self.one_step()
                pending.append(result)
                loss = result.loss
                now = time.perf_counter()
                seconds.append(now - step_begin)
                if len(pending) == STEPS_PER_RECORD:
                    self.save(pending)
                    pending = []
                step, elapsed = self.steps, now - begin
                if progress and (now - last_report >= REPORT_SECONDS or step == total):
                    last_report, size = now, self.log.nbytes
                    left = elapsed * (work(total - first) / work(len(seconds)) - 1)
                    progress(Progress(step, total, loss, result.accuracy, elapsed, left, size))
        except KeyboardInterrupt:
            stop.asked = True
        except RuntimeError:  # no worker is left, say: what was taken is logged
            self.save(pending)
            raise

        def close() -> TrainResult:
            self.save(pending)
            times = {
                "seconds": time.perf_counter() - begin,
                "compile_seconds": begin - start,
                "cpu_seconds": time.process_time() - cpu,
            }
            return self._result(first, loss, seconds, times, stop)

        while True:
            try:
                return uninterrupted(close, stop)  # a second Ctrl-C loses nothing that was trained
            except KeyboardInterrupt:  # before it began
                stop.asked = True

    def _result(
        self, first: int, loss: float, seconds: list[float], times: dict[str, float], stop: Stop
    ) -> TrainResult:
        """Measure the result of the log, with the losses and times of the steps from `first` on."""
        log, data, header = self.log, self.data, self.log.header
        accuracy = partial(evaluate, log.replay(), self.course.model)
        split_name, validation = header["data"]["split"], None
        if split_name == "validation":
            validation = accuracy(*split(data)[2:])
        sizes = [self.course.batch_size(first + step) for step in range(len(seconds))]
        return TrainResult(
            preset=header["recipe"]["preset"],
            seed=log.plan.seed,
            split=split_name,
            test_accuracy=accuracy(data.test_x, data.test_y),
            validation_accuracy=validation,
            digest=log.digest(),
            steps=len(log),
            loss=loss,
            log_bytes=log.nbytes,
            packed_weight_bytes=-(-log.plan.size // 5),
            **times,
            step_seconds=np.array(seconds),
            batch_sizes=np.array(sizes, np.int64),
            interrupted=stop.asked,
        )
