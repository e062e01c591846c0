"""Training runs: presets, batches, the loop that ties noise_step to a log.

A *preset* names every hyper-parameter. A run draws batches of shifted images, harder samples more
often (*re-sampling*), steps, and appends what each step kept to a log, 32 steps a record.

**Re-sampling.** ``hard[i, s]`` holds 1 - p_y of image i under shift s as of its last visit, at
first 1. Draw (i, s) uniformly; accept it with weight 1 if it is hard, above `threshold`, else with
probability `easy_share` and weight 1 / easy_share, so that weighted sums stay unbiased. The table
is state of the run, not of the model; a resumed run measures it anew.

Support room: ties noise_step to logs and data.

May import: anything.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minibit.datasets import Dataset, load_mnist, split
from minibit.layers import ACTIVATIONS
from minibit.moves import Plan, SampledStep, initial_params
from minibit.noise import integers, uniform
from minibit.noise_step import MLP, NoiseStep, StepResult, geometric
from minibit.philox import BATCH
from minibit.steps import StepLog
from minibit.unit_tangents import forward

__all__ = ["PRESETS", "Preset", "Progress", "TrainResult", "evaluate", "train"]

STEPS_PER_RECORD = 32
REPORT_SECONDS = 0.5
SHIFTS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # rows, columns
LEAST_SHARE = 1e-3  # a batch of learnt samples takes 1 / easy_share times its size of draws
LEAST_SIDE = 4  # a shift by a pixel takes a quarter of such an image, or all of a row
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081


@dataclass(frozen=True)
class Preset:
    """Every hyper-parameter of a run. Pairs run geometrically from the first step to the last."""

    method: Literal["sampled", "units"]
    steps: int
    batch: tuple[int, int]
    logit_scale: float = 0.12
    zeros: float = 0.7  # share of zeros in the initial weights
    widths: tuple[int, ...] = (784, 256, 256, 256, 10)
    perturbations: int = 128
    density: tuple[float, float] = (6e-5, 3.7e-6)
    density_by_loss: tuple[
        tuple[float, float], ...
    ] = ()  # (loss below which, density): the paper's
    score: Literal["absolute", "t"] = "t"
    units: tuple[int, ...] = (16, 16, 16, 4)
    rate: tuple[float, float] = (0.004, 0.0008)
    threshold: float = 0.1  # 1 - p_y up to which a sample counts as learnt; -1: none does
    easy_share: float = 0.05  # probability with which a learnt sample is drawn; 1: as any other
    shifts: int = 5  # none and one pixel each way; 1: none
    activations: Literal["float", "int8"] = "float"  # of the hidden layers, as in `MLP`

    def __post_init__(self) -> None:
        """Refuse values that no run can start from; the message names the field."""
        whole = ("steps", "batch", "widths", "perturbations", "units", "shifts")
        positive = ("density", "rate", "logit_scale", "easy_share")
        for name in ("batch", "density", "rate", "widths", "units"):
            value, pair = getattr(self, name), name in ("batch", "density", "rate")
            if not isinstance(value, tuple) or (pair and len(value) != 2):
                raise ValueError(f"{name} must be a {'pair' if pair else 'tuple'}, got {value!r}")
        for name in whole + positive:
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if not number > 0 or (name in whole and number != int(number)):
                    what = "positive whole numbers" if name in whole else "positive"
                    raise ValueError(f"{name} must be {what}, got {value}")
        for name, most in (("rate", 1), ("easy_share", 1), ("shifts", len(SHIFTS))):
            value = getattr(self, name)
            if max(value if isinstance(value, tuple) else (value,)) > most:
                raise ValueError(f"{name} must be at most {most}, got {value}")
        densities = (*self.density, *(density for _, density in self.density_by_loss))
        if not all(0 < density < 1 for density in densities):
            raise ValueError(f"density must lie between 0 and 1, got {densities}")
        if self.easy_share < LEAST_SHARE:
            raise ValueError(f"easy_share must be at least {LEAST_SHARE}, got {self.easy_share}")
        if not self.threshold < 1:
            raise ValueError(f"threshold must be below 1, where 1 - p_y ends, got {self.threshold}")
        if not 0 <= self.zeros <= 1:
            raise ValueError(f"zeros must lie in [0, 1], got {self.zeros}")
        if self.activations not in ACTIVATIONS:
            names = " or ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"activations must be {names}, got {self.activations!r}")
        if len(self.widths) < 2:
            raise ValueError(f"widths must be at least two, inputs to classes, got {self.widths}")


PRESETS = {
    "paper": Preset(
        method="sampled",
        steps=1550,
        batch=(1024, 1024),
        logit_scale=1.0,
        zeros=1 / 3,
        density_by_loss=((2.0, 1.5e-5), (1.0, 3.7e-6)),
        score="absolute",
        threshold=-1.0,
        easy_share=1.0,
        shifts=1,
    ),
    "strict": Preset(method="sampled", steps=1550, batch=(512, 2048)),
    "small": Preset(method="units", steps=800, batch=(1024, 8192), rate=(0.0035, 0.0004)),
    "accurate": Preset(method="units", steps=6000, batch=(1024, 2048), rate=(0.005, 0.0001)),
}


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
        The log; must not exist unless `resume`.
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
        If `out` exists and `resume` is not asked for.
    """
    steps = steps if steps is None else operator.index(steps)
    if steps is not None and steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}")
    if total_steps is not None and total_steps < max(1, steps or 0):
        raise ValueError(f"total_steps must be at least {max(1, steps or 0)}, got {total_steps}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    data = dataset or load_mnist()
    if resume:
        run = _Run.resumed(Path(out), data, overrides)
    else:
        recipe = _recipe(preset, data, widths, steps, total_steps, overrides)
        run = _Run.fresh(preset, recipe, seed, Path(out), data, split_name)
    with run.log:  # free for other writers again, also if the run fails
        total = run.recipe.steps if steps is None else steps
        if total > run.recipe.steps:
            raise ValueError(f"steps must be at most the log's {run.recipe.steps}, got {steps}")
        begin = time.perf_counter()
        run.warm_up()
        compile_seconds = time.perf_counter() - begin
        return run.go(total, compile_seconds, workers, progress)


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


def training_header(log: StepLog) -> dict[str, Any]:
    """Return the header of a log that `train` wrote; others may lack recipe and data.

    Raises
    ------
    ValueError
        If the log is of no training run; the message says what is missing.
    """
    header = log.header
    for part, words, numbers in (
        ("recipe", ("preset",), ("logit_scale",)),
        ("data", ("name", "digest", "split"), ("input_scale", "input_offset")),
    ):
        found = header.get(part)
        if not isinstance(found, dict):
            found = {}
        for name in (*words, *numbers):
            if not isinstance(found.get(name), str if name in words else int | float):
                raise ValueError(
                    f"{log.path} is no log of a training run: {part}.{name} is missing"
                )
    return header


def model_of(header: dict[str, Any]) -> MLP:
    """Return the model function that a training log's weights belong to."""
    recipe, data = header["recipe"], header["data"]
    return MLP(
        logit_scale=recipe["logit_scale"],
        input_scale=data["input_scale"],
        input_offset=data["input_offset"],
        activations=recipe.get("activations", "float"),  # older logs don't say
    )


def _recipe(
    preset: str,
    data: Dataset,
    widths: tuple[int, ...] | None,
    steps: int | None,
    total_steps: int | None,
    overrides: dict[str, Any],
) -> Preset:
    """Fit a preset to the data, and replace what is asked for."""
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    recipe = replace(PRESETS[preset], **overrides)
    n_in, classes = data.features, data.classes
    inner = recipe.widths[1:-1]
    if widths is not None:
        inner = tuple(operator.index(width) for width in np.atleast_1d(widths).tolist())
    if len(inner) > 1 and inner[0] == n_in and inner[-1] == classes:
        inner = inner[1:-1]
    total = total_steps or max(recipe.steps, steps or 0)
    recipe = replace(recipe, widths=(n_in, *inner, classes), steps=total)
    if len(data.sample_shape) != 2 or min(data.sample_shape) < LEAST_SIDE:  # no image to shift
        recipe = replace(recipe, shifts=1)
    return recipe


def _header(
    preset: str, recipe: Preset, seed: int, data: Dataset, split_name: str
) -> dict[str, Any]:
    """Everything that a replay, an evaluation or a resumed run needs to know."""
    widths = recipe.widths
    shapes = tuple(zip(widths[1:], widths[:-1], strict=True))
    units = tuple(
        min(n, s[0]) for n, s in zip(_units(recipe.units, len(shapes)), shapes, strict=True)
    )
    plan = Plan(
        method=recipe.method,
        seed=seed,
        names=tuple(f"w{layer + 1}" for layer in range(len(shapes))),
        shapes=shapes,
        zeros=round(recipe.zeros * 2**32),
        perturbations=recipe.perturbations if recipe.method == "sampled" else 0,
        units=units if recipe.method == "units" else (),
        inputs=tuple(widths[:-1]) if recipe.method == "units" else (),
    )
    scale, offset = _normalisation(data)
    return {
        "plan": plan.to_dict(),
        "recipe": {"preset": preset, **asdict(recipe)},
        "data": {
            "name": data.name,
            "digest": data.digest,
            "split": split_name,
            "input_scale": scale,
            "input_offset": offset,
        },
    }


def _units(units: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """Units drawn per layer: the first entry for hidden layers, the last for the output."""
    if len(units) == layers:
        return units
    return (*(units[0],) * (layers - 1), units[-1])


def _normalisation(data: Dataset) -> tuple[float, float]:
    """Scale and offset that give the inputs mean 0 and standard deviation 1."""
    if data.name == "mnist":
        mean, std = 255 * MNIST_MEAN, 255 * MNIST_STD
    else:
        mean, std = float(data.train_x.mean()), float(data.train_x.std())
    scale = 1 / std if std > 0 else 1.0
    return scale, -mean * scale


@dataclass
class _Run:
    """State of a training run."""

    recipe: Preset
    header: dict[str, Any]
    data: Dataset
    log: StepLog
    model: MLP
    stepper: NoiseStep
    images: NDArray[Any]  # (shifts, samples, n_in)
    labels: NDArray[np.int64]
    hard: NDArray[np.float32]  # (samples, shifts)
    density: float

    @classmethod
    def fresh(
        cls,
        preset: str,
        recipe: Preset,
        seed: int,
        out: Path,
        data: Dataset,
        split_name: str,
    ) -> _Run:
        """Start a log, after everything else that can fail."""
        if split_name not in ("final", "validation"):
            raise ValueError(f"split_name must be 'final' or 'validation', got {split_name!r}")
        if out.exists():
            raise FileExistsError(f"out must not exist yet, or be resumed: {out}")
        header = _header(preset, recipe, seed, data, split_name)
        params = initial_params(Plan.from_dict(header["plan"]))
        return cls._of(header, recipe, data, params, 0, lambda: StepLog.create(out, header))

    @classmethod
    def resumed(cls, out: Path, data: Dataset, overrides: dict[str, Any]) -> _Run:
        """Go on where the last good record ends; a torn tail is cut off, once all else fits."""
        header = training_header(StepLog.open(out))
        before, recipe = header["data"], _recipe_of(header["recipe"])
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
            run = cls._of(log.header, recipe, data, log.replay(), len(log), lambda: log)
        except BaseException:
            log.close()
            raise
        for step in log.steps():
            if isinstance(step, SampledStep):
                run.density = step.numerator / 2**32  # of the last step, where it follows the loss
        return run

    @classmethod
    def _of(
        cls,
        header: dict[str, Any],
        recipe: Preset,
        data: Dataset,
        params: dict[str, NDArray[np.int8]],
        steps: int,
        log: Callable[[], StepLog],
    ) -> _Run:
        plan, model = Plan.from_dict(header["plan"]), model_of(header)
        train_x, train_y = data.train_x, data.train_y
        if header["data"]["split"] == "validation":
            train_x, train_y = split(data)[:2]
        images = _shifted(train_x, recipe.shifts, data.sample_shape)
        stepper = _stepper(model, params, plan, recipe)
        stepper.steps = steps
        return cls(
            recipe=recipe,
            header=header,
            data=data,
            log=log(),
            model=model,
            stepper=stepper,
            images=images,
            labels=train_y.astype(np.int64),
            hard=np.ones((images.shape[1], images.shape[0]), np.float32),
            density=recipe.density[0],
        )

    def warm_up(self) -> None:
        """Compile what a step uses on a few samples; leaves no trace in the run."""
        few = _stepper(
            self.model, self.stepper.params, self.log.plan, self.recipe
        )  # fmt: skip
        x, y = self.images[0, :8], self.labels[:8]
        few.step(x, y)
        evaluate(few.params, self.model, x, y)
        integers(self.log.plan.seed, 8, 8, domain=BATCH)

    def measure_hardness(self, workers: int | None) -> None:
        """Fill the table from the present weights, as a resumed run must."""
        for shift, images in enumerate(self.images):
            self.hard[:, shift] = forward(
                self.model,
                self.stepper.params,
                images,
                self.labels,
                workers,
            )[2]

    def batch_size(self, step: int) -> int:
        first, last = self.recipe.batch
        return round(geometric(first, last, self.recipe.steps)(step))

    def draw(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Draw samples, shifts and weights of a batch: hard ones always, easy ones now and then."""
        n, shifts = self.batch_size(step), self.images.shape[0]
        samples, chosen, weights, found, turn = [], [], [], 0, 0
        while found < n:
            count = max(1024, 2 * (n - found))
            pair = integers(
                self.log.plan.seed,
                len(self.labels) * shifts,
                count,
                domain=BATCH,
                step=step,
                lane=2 * turn,
            )
            lot = uniform(self.log.plan.seed, (count,), domain=BATCH, step=step, lane=2 * turn + 1)
            sample, shift = pair // shifts, pair % shifts
            is_hard = self.hard[sample, shift] > self.recipe.threshold
            kept = is_hard | (lot < self.recipe.easy_share)
            samples.append(sample[kept])
            chosen.append(shift[kept])
            weights.append(np.where(is_hard[kept], 1, 1 / self.recipe.easy_share))
            found += int(kept.sum())
            turn += 1
        return (
            np.concatenate(samples)[:n],
            np.concatenate(chosen)[:n],
            np.concatenate(weights)[:n].astype(np.float32),
        )

    def one_step(self) -> StepResult:
        step = self.stepper.steps
        sample, shift, weight = self.draw(step)
        x, y = self.images[shift, sample], self.labels[sample]
        if self.recipe.density_by_loss and self.recipe.method == "sampled":
            result = self.stepper.step(x, y, weight=weight, density=self.density)
            for bar, density in self.recipe.density_by_loss:
                if result.loss < bar:
                    self.density = min(self.density, density)
        else:
            result = self.stepper.step(x, y, weight=weight)
        self.hard[sample, shift] = result.hardness
        return result

    def go(
        self,
        total: int,
        compile_seconds: float,
        workers: int | None,
        progress: Callable[[Progress], None] | None,
    ) -> TrainResult:
        self.stepper.workers = workers
        begin, cpu = time.perf_counter(), time.process_time()
        if self.stepper.steps and self.recipe.easy_share < 1:
            self.measure_hardness(workers)
        first = self.stepper.steps
        work = np.cumsum([self.batch_size(t) for t in range(first, max(first, total))])
        pending: list[Any] = []  # steps from `begun` on that the log has not got yet
        begun = first
        seconds: list[float] = []
        loss, last_report, interrupted = float("nan"), begin, False
        try:
            while self.stepper.steps < total:
                start = time.perf_counter()
                result = self.one_step()
                pending.append(result.record)
                loss = result.loss
                now = time.perf_counter()
                seconds.append(now - start)
                if len(pending) == STEPS_PER_RECORD:
                    self.log.append(pending)
                    pending, begun = [], begun + STEPS_PER_RECORD
                if progress and (
                    now - last_report >= REPORT_SECONDS or self.stepper.steps == total
                ):
                    last_report, done = now, len(seconds)
                    left = float((now - begin) * (work[-1] / work[done - 1] - 1))
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
            interrupted = True
        self.log.append(pending[max(0, len(self.log) - begun) :])  # an interrupt may follow a write
        elapsed, used = time.perf_counter() - begin, time.process_time() - cpu
        return self._result(
            loss, elapsed, used, compile_seconds, np.array(seconds), first, interrupted
        )

    def _result(
        self,
        loss: float,
        seconds: float,
        cpu_seconds: float,
        compile_seconds: float,
        step_seconds: NDArray[np.float64],
        first: int,
        interrupted: bool,
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
            batch_sizes=np.array([self.batch_size(first + t) for t in range(done)], np.int64),
            interrupted=interrupted,
        )


def _stepper(
    model: MLP, params: dict[str, NDArray[np.int8]], plan: Plan, recipe: Preset
) -> NoiseStep:
    return NoiseStep(
        model,
        params,
        plan.seed,
        recipe.method,
        perturbations=max(1, plan.perturbations),
        density=geometric(*recipe.density, recipe.steps, every=STEPS_PER_RECORD),
        score=recipe.score,
        units=plan.units or 1,
        rate=geometric(*recipe.rate, recipe.steps),
        threshold=recipe.threshold,
        zeros=plan.zeros / 2**32,
    )


def _recipe_of(fields: dict[str, Any]) -> Preset:
    """Rebuild a preset from a log's header (lists become tuples)."""

    def frozen(value: Any) -> Any:
        return tuple(frozen(v) for v in value) if isinstance(value, list) else value

    try:
        return Preset(**{k: frozen(v) for k, v in fields.items() if k != "preset"})
    except (TypeError, ValueError) as error:
        raise ValueError(f"the log's recipe is no preset: {error}") from None


def _shifted(images: NDArray[Any], shifts: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Lay all samples out under each of the first `shifts` one-pixel shifts; new pixels are 0."""
    if shifts == 1:
        return images[None]
    square = images.reshape(-1, *shape)  # (samples, rows, columns)
    out = np.zeros((shifts, *square.shape), images.dtype)
    for moved, (down, right) in zip(out, SHIFTS[:shifts], strict=True):
        to_rows, from_rows = _overlap(down, shape[0])
        to_columns, from_columns = _overlap(right, shape[1])
        moved[:, to_rows, to_columns] = square[:, from_rows, from_columns]
    return out.reshape(shifts, *images.shape)


def _overlap(move: int, side: int) -> tuple[slice, slice]:
    """Where pixels go and where they come from."""
    return slice(max(move, 0), side + min(move, 0)), slice(max(-move, 0), side + min(-move, 0))
