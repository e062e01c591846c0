"""``minibit train``: the main job, with its progress, and a log that outlives it."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.table import Column

from minibit import plots, training
from minibit.cli import common
from minibit.cli.common import BadUse, Force, Output, Plot, command, kilobytes, percent
from minibit.cli.crew import check_crew, crew
from minibit.cli.logs import along_the_run, open_log
from minibit.cluster import ClusterProgress, ClusterResult, train_on
from minibit.datasets import Dataset, load_mnist
from minibit.steps import StepLog

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OUT = "model.steps"


@command
def train(
    out: Output,
    preset: Annotated[str | None, f"{', '.join(training.PRESETS)}; default small."] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Decides all draws; default 0.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many; default: the preset's number.")
    ] = None,
    out_path: Annotated[
        Path | None, "--out", f"Log; default {_OUT}, or the first free model-2.steps, ..."
    ] = None,
    resume: Annotated[bool, "Go on with a log that was interrupted."] = False,
    force: Force = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of this process; default: one for each CPU.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Take the steps on so many processes, a local Dask cluster."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Take the steps on a running Dask cluster's workers."),
    ] = None,
    check: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the parts of a step that two workers measure."),
    ] = None,
    cut: Annotated[
        str | None,
        "Workers share the batch's samples (the default) or the perturbations: moves have owners.",
    ] = None,
    plot: Plot = None,
    data: Annotated[
        Path | None, "Train on a .npz file: train_x, train_y, test_x, test_y; or x, y."
    ] = None,
    widths: Annotated[
        list[str] | None, "Widths of the hidden layers, e.g. --widths 256 256 256."
    ] = None,
    split: Annotated[
        str | None,
        "final (the default): train on all training samples; validation: keep some apart.",
    ] = None,
) -> dict[str, Any]:
    """Train a ternary network without backpropagation, and keep its steps.

    The log is the model: `minibit replay LOG` gives the weights back. Ctrl-C keeps every step that
    has ended, tells what they came to, and `--resume` goes on.
    """
    split_name = common.check_choice("--split", split or "final", ("final", "validation"))
    common.check_choice("--preset", preset, training.PRESETS)
    path = _log_path(out_path, resume, force)
    if seed is not None and seed >= 2**64:
        raise BadUse(f"--seed must be below 2**64, got {seed}")
    if resume:
        asked = {"--preset": preset, "--seed": seed, "--split": split, "--widths": widths}
        _check_resumed(out, path, asked)
    on_workers = check_crew(workers, scheduler, threads, check, cut)
    common.check_plot(plot)
    if plot is not None and plot.absolute() == path.absolute():
        raise BadUse(f"--plot and --out are both {path}")
    dataset = None if data is None else common.own_data(data)
    numbers = tuple(common.whole_numbers(widths, "--widths")) if widths else None
    if numbers and min(numbers) < 1:
        raise BadUse("--widths must be at least 1 each")
    begin = preset or "small", seed or 0, path
    options: dict[str, Any] = {"steps": steps, "resume": resume, "overwrite": force}
    options |= {"widths": numbers, "split_name": split_name}
    result: training.TrainResult
    with _TrainingProgress(on_workers) as run, _second_name(path, force) as old:
        options["progress"] = run.show
        if on_workers:
            with crew(out.note, workers, scheduler) as client:
                result = train_on(client, *begin, data=data, check=check or 0.0, cut=cut, **options)
        else:
            result = training.train(*begin, threads=threads, dataset=dataset, **options)
        if result.interrupted and _is_same(path, old):
            raise KeyboardInterrupt
        if not result.interrupted:
            old.unlink(missing_ok=True)
    if plot is not None:
        plots.save(run.figure(result, path, dataset or load_mnist()), plot)
    _summary(out, path, result, data, plot)
    if old.exists():
        out.say(f"The log that was there before is {old}.")
    out.status = int(result.interrupted)
    fields = {name: value for name, value in vars(result).items() if not hasattr(value, "shape")}
    if isinstance(result, ClusterResult):
        fields["bytes_up"], fields["bytes_down"] = fields.pop("traffic").per_step
    loss = result.loss if math.isfinite(result.loss) else None
    return {"log": str(path), **fields, "loss": loss}


@contextmanager
def _second_name(path: Path, force: bool) -> Iterator[Path]:
    """Give the log that is to be replaced a second name; it stays unless the new run ends well.

    An error says what is there after a full disk, or a Ctrl-C before there is a log, before the
    first record of one that replaces another, or after the last step.
    """
    old = path.with_name(f"{path.name}.{os.urandom(4).hex()}.old")
    try:
        if force and path.exists():
            with suppress(OSError):  # a file system without links
                os.link(path, old)
        yield old
    except (KeyboardInterrupt, OSError, RuntimeError) as error:
        if isinstance(error, FileExistsError) or (str(error) and not path.exists()):
            raise
        left = "no log yet"
        if _is_same(path, old):
            left = f"{path} is as it was"
        elif path.exists():
            left = f"{path} has {len(StepLog.open(path))} good steps, --resume goes on"
            left += f"; the log before is {old}" if old.exists() else ""
        raise RuntimeError(f"{str(error) or 'stopped'}; {left}") from None
    finally:
        if _is_same(path, old):  # nothing has taken its place
            old.unlink()


def _is_same(path: Path, old: Path) -> bool:
    """Whether the log that is to be replaced is still there."""
    return old.exists() and path.exists() and old.samefile(path)


class _TrainingProgress:
    """The progress of a training run: shown, remembered for the plot, and stopped by Ctrl-C.

    After the first report, a first Ctrl-C stops the run at the next one, half a second later or
    when a long step ends; any other stops it at once, and the step that is under way is lost. Steps
    that have ended are logged and measured, and their result is printed as at the end of a run,
    with status 1. Where standard error is no terminal, a line every ten seconds takes the bar's
    place.
    """

    def __init__(self, on_workers: bool = False) -> None:
        self.points: list[training.Progress] = []
        self._console = Console(stderr=True, highlight=False)
        self._live = self._console.is_terminal
        self._bar = Progress(
            *_columns(self._console.width, on_workers),
            console=self._console,
            transient=True,
            expand=False,
        )
        begin = "starting workers, " if on_workers else ""
        begin += "reading data, compiling what is not compiled yet"
        self._status = self._console.status(begin)
        self._task: TaskID | None = None
        self._said = time.monotonic()
        self._stop = False
        self._before: Any = None

    def __enter__(self) -> _TrainingProgress:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        if self._live:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()
        self._bar.stop()
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def show(self, progress: training.Progress) -> None:
        """Show where the run stands; stop it if Ctrl-C was pressed."""
        self.points.append(progress)
        if self._stop:
            raise KeyboardInterrupt
        if self._live:
            fields: dict[str, Any] = {
                "loss": f"{progress.loss:.3f}",
                "accuracy": f"{100 * progress.accuracy:.1f}%",
                "left": clock(progress.remaining),
                "log": kilobytes(progress.log_bytes),
                "traffic": _traffic(progress),
            }
            if self._task is None:
                self._status.stop()
                self._bar.start()
                self._task = self._bar.add_task("", total=progress.steps, **fields)
            self._bar.update(self._task, completed=progress.step, **fields)
        elif time.monotonic() - self._said >= 10:
            self._said = time.monotonic()
            self._console.print(
                f"step {progress.step} of {progress.steps}, loss {progress.loss:.3f}, "
                f"batch accuracy {percent(progress.accuracy)}, {clock(progress.remaining)} left, "
                f"log {kilobytes(progress.log_bytes)}"
                + (f", {traffic}" if (traffic := _traffic(progress)) else ""),
                soft_wrap=True,
            )

    def figure(self, result: training.TrainResult, path: Path, dataset: Dataset) -> Figure:
        """Draw the losses that were shown, and the accuracy along the run, out of the log."""
        judge = "validation" if result.split == "validation" else "test"
        steps, accuracies = along_the_run(StepLog.open(path), dataset, [judge])
        shown = [point.step for point in self.points], [point.loss for point in self.points]
        title = f"{result.preset}, seed {result.seed}"
        return plots.training_figure(*shown, steps, accuracies, title=title)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._stop or not self.points:
            raise KeyboardInterrupt
        self._stop = True


def _traffic(progress: training.Progress) -> str:
    """Say how many workers took the last step, and what a step sends."""
    if not isinstance(progress, ClusterProgress):
        return ""
    up, down = (kilobytes(round(count)) for count in progress.traffic.per_step)
    some = "1 worker" if progress.workers == 1 else f"{progress.workers} workers"
    return f"{some}, {up} up, {down} down"


def _columns(width: int, on_workers: bool = False) -> list[ProgressColumn]:
    """Choose what fits on one line of the terminal: the bar is the first to go."""
    texts = (  # the width from which on a column is there, and its template
        (0, "{task.completed}/{task.total}"),
        (0, "loss {task.fields[loss]}"),
        (60, "batch accuracy {task.fields[accuracy]}"),
        (36, "{task.fields[left]} left"),
        (74, "log {task.fields[log]}"),
        *([(120, "{task.fields[traffic]}")] if on_workers else []),
    )
    columns: list[ProgressColumn] = [
        TextColumn(template, table_column=Column(no_wrap=True))
        for least, template in texts
        if width >= least
    ]
    if width >= 84:
        taken = 118 if on_workers and width >= 120 else 74
        columns.insert(1, BarColumn(bar_width=min(max(width - taken, 4), 40)))
    return columns


def clock(seconds: float) -> str:
    """Write a duration for people: ``8 s``, ``1:23``, ``2:00:00`` or, if it is not known, ``?``."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(math.ceil(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _log_path(path: Path | None, resume: bool, force: bool) -> Path:
    """Choose the log: the one of ``--out``, or the default name that is free (to resume: last)."""
    if resume and force:
        raise BadUse("--resume goes on with a log and --force overwrites it: choose one")
    if path is None:
        names = [Path(_OUT)]
        while names[-1].exists():
            names.append(Path(f"model-{len(names) + 1}.steps"))
        path = names[-2:][0] if resume else names[0] if force else names[-1]
    if resume:
        if not path.is_file():
            raise BadUse(f"there is no log {path} to go on with; --out names another")
        return path
    if path.is_file() and force and not common.is_log(path):
        raise BadUse(f"{path} is no minibit log, so --force doesn't overwrite it")
    if not (force and common.is_log(path)):
        common.check_new_file(path, "--out")
    return path


def _check_resumed(out: Output, path: Path, options: dict[str, Any]) -> None:
    """Refuse options that a resumed log has settled otherwise; say what is cut off its end."""
    log = open_log(out, path)
    header = training.training_header(log)
    settled = {
        "--preset": header["recipe"]["preset"],
        "--seed": log.seed_ahead(),
        "--split": header["data"]["split"],
    }
    for option, value in settled.items():
        if options[option] not in (None, value):
            raise BadUse(f"{path} was begun with {option} {value}, not {options[option]}")
    if options["--widths"]:
        raise BadUse("--widths are settled by the log that --resume goes on with")
    if log.warning:
        rest = path.stat().st_size - log.nbytes
        out.warn(f"--resume cuts the last {rest} bytes off and goes on after step {len(log)}")


def _summary(
    out: Output, path: Path, result: training.TrainResult, data: Path | None, plot: Path | None
) -> None:
    """Print what the run came to, and how to go on from here."""
    options = shlex.quote(str(path)) + (f" --data {shlex.quote(str(data))}" if data else "")
    for name, why in getattr(result, "left_out", {}).items():
        out.warn(f"worker {name} got no more tasks: it {why}")
    if result.interrupted:
        out.say(f"Stopped after {result.steps} steps; all of them are in {path}.", style="bold")
    share = result.log_bytes / result.packed_weight_bytes
    validation = result.validation_accuracy
    facts = {
        "test accuracy": percent(result.test_accuracy),
        **({} if validation is None else {"validation accuracy": percent(validation)}),
        "log": f"{kilobytes(result.log_bytes)}, {result.steps} steps",
        "packed weights": f"{kilobytes(result.packed_weight_bytes)} at five trits per byte; "
        f"the log is {share:.2f} times that",
        **_shared(result),
        "time": f"{result.seconds:.1f} s, and {result.compile_seconds:.1f} s to compile",
        "digest": result.digest,
    }
    out.facts(facts)
    if plot:
        out.say(f"Loss and accuracy are drawn in {plot}.")
    if result.interrupted:
        out.say(f"Go on with:  {_command()} train --resume --out {options}")
    out.say(f"Replay with: {_command()} replay {options}")


def _shared(result: training.TrainResult) -> dict[str, str]:
    """Say what a run on workers sent, and who was left out."""
    if not isinstance(result, ClusterResult):
        return {}
    up, down = (kilobytes(round(count)) for count in result.traffic.per_step)
    return {"workers": f"{result.workers}; per step {up} up and {down} down, all of them together"}


def _command() -> str:
    """Return the command that this process was started with, as one would type it again."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py":
        return f"{shlex.quote(Path(sys.executable).name)} -m minibit"
    on_path = shutil.which(started.name)
    if on_path and started.exists() and started.samefile(on_path):  # argv[0] may be relative
        return started.name
    return shlex.quote(str(started))
