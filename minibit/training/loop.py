"""Training runs: the loop that ties noise_step to a log.

A *preset* (`minibit.training.presets`) names every hyper-parameter. A run draws batches of shifted
images, harder samples more often (`minibit.training.resampling`), steps, and appends what each step
kept to a log, 32 steps a record. The log's header says what the run was
(`minibit.training.log_header`).

Support room: ties noise_step to logs and data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minibit.base import integer, one_of, thread_count
from minibit.datasets import Dataset, load_mnist, split
from minibit.kernels import compiled
from minibit.kernels.interrupts import Stop, uninterrupted
from minibit.noise import BATCH, integers
from minibit.noise_step import (
    MLP,
    NoiseStep,
    StepResult,
    forward,
)
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
    """What a run came to."""

    preset: str
    seed: int
    split: str
    test_accuracy: float
    validation_accuracy: float | None  # None if the run trained on the validation images too
    digest: str
    steps: int
    loss: float  # of the last batch
    log_bytes: int
    packed_weight_bytes: int  # the weights at five trits a byte
    seconds: float  # of training, without compile_seconds
    compile_seconds: float
    cpu_seconds: float
    step_seconds: NDArray[np.float64] = field(repr=False)
    batch_sizes: NDArray[np.int64] = field(repr=False)
    interrupted: bool = False


def train(
    preset: str = "small",
    seed: int = 0,
    out: str | Path = "model.steps",
    *,
    steps: int | None = None,
    resume: bool = False,
    workers: int | None = None,
    dataset: Dataset | None = None,
    widths: tuple[int, ...] | None = None,
    split_name: Literal["final", "validation"] = "final",
    total_steps: int | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **overrides: Any,
) -> TrainResult:
    """Train an MLP by noise_step and write its log.

    Parameters
    ----------
    preset : str
        A name in `PRESETS`.
    seed : int
        Names the initial weights and all draws.
    out : path
        The log; must not exist unless `resume` or `overwrite`.
    steps : int, optional
        Stop after as many steps in all. Schedules still run over `total_steps`, so that a shorter
        run is a prefix of the whole one.
    resume : bool
        Go on from the last good record of `out`; preset, seed, widths and split come from its
        header.
    workers : int, optional
        Threads; as many as there are cores by default.
    dataset : Dataset, optional
        MNIST by default.
    widths : tuple of int, optional
        Widths of the hidden layers, or of all layers.
    split_name : "final" or "validation"
        Train on all training samples, or keep the validation split (`minibit.datasets.split`: the
        last 5,000 of MNIST) apart and report on it: the way to choose hyper-parameters.
    total_steps : int, optional
        Steps over which the schedules run, at least `steps`: the preset's number by default, or
        `steps` if that is more.
    overwrite : bool
        Take the place of a log at `out`, from the first record on (`StepLog.create`).
    progress : callable, optional
        Gets a `Progress` about twice a second. If it raises KeyboardInterrupt, or Ctrl-C does, what
        was trained so far is logged and the result says ``interrupted``.
    **overrides
        Fields of `Preset` to replace.

    Raises
    ------
    ValueError
        If a name is unknown, a log does not fit, or is to go on with other fields of its preset.
    FileExistsError
        If `out` exists, and neither `resume` nor `overwrite` is asked for.
    """
    steps = steps if steps is None else integer("steps", steps)
    if total_steps is not None:
        integer("total_steps", total_steps, max(1, steps or 0))
    workers = thread_count(workers, "workers")
    data = dataset or load_mnist()
    if resume:
        run = _Run.resumed(Path(out), data, overrides)
    else:
        recipe = _recipe(preset, data, widths, steps, total_steps, overrides)
        run = _Run.fresh(preset, recipe, seed, Path(out), data, split_name, overwrite)
    with run.log:  # free for other writers again, also if the run fails
        total = run.recipe.steps if steps is None else steps
        if total > run.recipe.steps:
            raise ValueError(f"steps must be at most the log's {run.recipe.steps}, got {steps}")
        return run.go(total, workers, progress)


def evaluate(
    params: Mapping[str, NDArray[Any]],
    model: MLP,
    x: NDArray[Any],
    y: NDArray[Any],
    workers: int | None = None,
) -> float:
    """Return the share of the samples whose label is the largest logit.

    Raises
    ------
    ValueError
        If there are no samples, or weights, samples and labels do not fit each other.
    """
    if not len(y):
        raise ValueError("y must hold at least one sample")
    correct = forward(model, params, x, y, workers)[3]
    return float(correct.mean())


def _recipe(
    preset: str,
    data: Dataset,
    widths: tuple[int, ...] | None,
    steps: int | None,
    total_steps: int | None,
    overrides: dict[str, Any],
) -> Preset:
    """Fit a preset to the data, and replace what is asked for."""
    one_of("preset", preset, PRESETS)
    recipe = replace(PRESETS[preset], **overrides)
    n_in, classes = data.features, data.classes
    inner = recipe.widths[1:-1]
    if widths is not None:
        inner = tuple(integer("widths", width, 1) for width in np.atleast_1d(widths).tolist())
    if len(inner) > 1 and inner[0] == n_in and inner[-1] == classes:
        inner = inner[1:-1]
    total = total_steps or max(recipe.steps, steps or 0)
    recipe = replace(recipe, widths=(n_in, *inner, classes), steps=total)
    if len(data.sample_shape) != 2 or min(data.sample_shape) < LEAST_SIDE:  # no image to shift
        recipe = replace(recipe, shifts=1)
    return recipe


@dataclass
class _Run:
    """State of a training run."""

    recipe: Preset
    header: dict[str, Any]
    data: Dataset
    log: StepLog
    stepper: NoiseStep
    course: Course

    @classmethod
    def fresh(
        cls,
        preset: str,
        recipe: Preset,
        seed: int,
        out: Path,
        data: Dataset,
        split_name: str,
        overwrite: bool,
    ) -> _Run:
        """Start a log, after everything else that can fail."""
        one_of("split_name", split_name, SPLITS)
        if out.exists() and not overwrite:
            raise FileExistsError(f"out must not exist yet, or be resumed: {out}")
        header = make_header(preset, recipe, data, split_name)
        stepper = NoiseStep.start(
            model_of(header),
            recipe.shapes,
            seed,
            recipe.settings(),
            zeros=recipe.zeros,
            threshold=recipe.threshold,
        )
        header["plan"] = stepper.plan.to_dict()
        course = Course(header, data, seed)
        log = StepLog.create(out, header, overwrite=overwrite)
        return cls(recipe, header, data, log, stepper, course)

    @classmethod
    def resumed(cls, out: Path, data: Dataset, overrides: dict[str, Any]) -> _Run:
        """Go on where the last good record ends; a torn tail is cut off, once all else fits."""
        header = training_header(StepLog.open(out))
        before, recipe = header["data"], recipe_of(header["recipe"])
        for name, value in overrides.items():
            if getattr(recipe, name, None) != value:
                raise ValueError(f"{name} must be that of the log that is resumed, got {value!r}")
        if before["digest"] != data.digest:
            raise ValueError(
                f"dataset must be the one the log was trained on, {before['name']} with digest "
                f"{before['digest']}; got {data.name} with digest {data.digest}"
            )
        log = StepLog.recover(out)
        try:
            return cls._going_on(log, header, recipe, data)
        except BaseException:
            log.close()
            raise

    @classmethod
    def _going_on(cls, log: StepLog, header: dict[str, Any], recipe: Preset, data: Dataset) -> _Run:
        plan = log.plan
        stepper = NoiseStep(
            model_of(header),
            log.replay(),
            plan.seed,
            recipe.settings(),
            zeros=plan.zeros / 2**32,
            threshold=recipe.threshold,
        )
        if stepper.plan != plan:
            raise ValueError(f"{log.path}: its recipe makes {stepper.plan}, its header says {plan}")
        stepper.steps = len(log)
        return cls(recipe, header, data, log, stepper, Course(header, data, plan.seed))

    def warm_up(self) -> None:
        """Compile what a step of the first batch's size uses; leaves no trace in the run."""
        if not compiled():
            return
        trial, pool, count = copy(self.stepper), self.course.pool, self.course.batch_size(0)
        x, y = pool.images[0, :count], pool.labels[:count]
        trial.step(x, y)
        evaluate(trial.params, self.model, x, y)
        integers(self.log.plan.seed, 8, 8, domain=BATCH)

    @property
    def model(self) -> MLP:
        return self.course.model

    def one_step(self) -> StepResult:
        x, y, weight = self.course.batch(self.stepper.steps)
        result = self.stepper.step(x, y, weight=weight, density=self.course.density)
        self.course.saw(result.hardness, result.loss)
        return result

    def save(self, results: list[StepResult]) -> None:
        """Log what the log has not got yet: an interrupt may follow a write."""
        new = [result for result in results if result.step >= len(self.log)]
        self.log.append([result.record for result in new], [result.update for result in new])

    def go(
        self,
        total: int,
        workers: int | None,
        progress: Callable[[Progress], None] | None,
    ) -> TrainResult:
        self.stepper.objective = self.stepper.objective._replace(workers=workers)
        stop, start = Stop(), time.perf_counter()
        begin, cpu = start, time.process_time()
        first, (least, most) = self.stepper.steps, self.recipe.batch
        growth = math.log(most / least) / max(1, self.recipe.steps - 1)

        def work(steps: int) -> float:
            """Return the samples of so many steps over those of the first: a geometric series."""
            return math.expm1(growth * steps) / growth if growth else steps

        pending: list[StepResult] = []
        seconds: list[float] = []
        loss = float("nan")
        try:
            self.warm_up()
            begin, cpu = time.perf_counter(), time.process_time()
            last_report = begin
            if self.stepper.steps:
                self.course.retrace(self.log, workers)
            while self.stepper.steps < total:
                step_begin = time.perf_counter()
                result = self.one_step()
                pending.append(result)
                loss = result.loss
                now = time.perf_counter()
                seconds.append(now - step_begin)
                if len(pending) == STEPS_PER_RECORD:
                    self.save(pending)
                    pending = []
                if progress and (
                    now - last_report >= REPORT_SECONDS or self.stepper.steps == total
                ):
                    last_report, done = now, len(seconds)
                    left = (now - begin) * (work(total - first) / work(done) - 1)
                    progress(
                        Progress(
                            self.stepper.steps,
                            total,
                            loss,
                            result.accuracy,
                            now - begin,
                            left,
                            self.log.nbytes,
                        )
                    )
        except KeyboardInterrupt:
            stop.asked = True

        def close() -> TrainResult:
            self.save(pending)
            elapsed, used = time.perf_counter() - begin, time.process_time() - cpu
            times = np.array(seconds)
            return self._result(loss, elapsed, used, begin - start, times, first, stop)

        while True:
            try:
                return uninterrupted(close, stop)  # a second Ctrl-C loses nothing that was trained
            except KeyboardInterrupt:  # before it began
                stop.asked = True

    def _result(
        self,
        loss: float,
        seconds: float,
        cpu_seconds: float,
        compile_seconds: float,
        step_seconds: NDArray[np.float64],
        first: int,
        stop: Stop,
    ) -> TrainResult:
        params, model = self.log.replay(), self.model
        validation = None
        kept = self.header["data"]
        if kept["split"] == "validation":
            validation = evaluate(params, model, *split(self.data)[2:])
        done = len(step_seconds)
        return TrainResult(
            preset=self.header["recipe"]["preset"],
            seed=self.log.plan.seed,
            split=kept["split"],
            test_accuracy=evaluate(params, model, self.data.test_x, self.data.test_y),
            validation_accuracy=validation,
            digest=self.log.digest(),
            steps=len(self.log),
            loss=loss,
            log_bytes=self.log.nbytes,
            packed_weight_bytes=-(-self.log.plan.size // 5),
            seconds=seconds,
            compile_seconds=compile_seconds,
            cpu_seconds=cpu_seconds,
            step_seconds=step_seconds,
            batch_sizes=np.array([self.course.batch_size(first + t) for t in range(done)]),
            interrupted=stop.asked,
        )
