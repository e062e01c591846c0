"""``minibit train``: the main job, with its progress, and a log that outlives it."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minibit import plots, training
from minibit.cli import common
from minibit.cli.common import BadUse, Force, Output, Plot, command, kilobytes, percent
from minibit.cli.crew import check_crew, crew
from minibit.cli.logs import along_the_run, open_log
from minibit.cli.progress import RunProgress, clock
from minibit.cluster import ClusterProgress, ClusterResult, train_on
from minibit.datasets import Dataset, load_mnist
from minibit.steps import StepLog

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = (  # of the line of progress
    (0, "loss {loss}"),
    (60, "batch accuracy {accuracy}"),
    (36, "{left} left"),
    (74, "log {log}"),
)
ON_WORKERS = (*PARTS, (120, "{traffic}"))


@command
def train(
    out: Output,
    preset: Annotated[str | None, f"{', '.join(training.PRESETS)}; default small."] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Decides all draws; default 0.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many; default: the preset's number.")
    ] = None,
    out_path: Annotated[
        Path | None, "--out", f"Log; default {common.OUT}, or the first free model-2.steps, ..."
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
        _check_resumed(out, path, asked, steps)
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
        traffic = fields.pop("traffic")
        fields["bytes_up"], fields["bytes_down"] = traffic.per_step
        fields["step_seconds_by_part"] = traffic.parts
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


class _TrainingProgress(RunProgress):
    """The progress of a training run, remembered for the plot.

    Half a second lies between two reports, or one long step. After a first Ctrl-C the step ends; at
    another, the step that is under way is lost. Steps that have ended are logged and measured, and
    their result is printed as at the end of a run, with status 1.
    """

    def __init__(self, on_workers: bool = False) -> None:
        begin = "starting workers, " if on_workers else ""
        begin += "reading data, compiling what is not compiled yet"
        super().__init__(begin, ON_WORKERS if on_workers else PARTS)
        self.points: list[training.Progress] = []

    def show(self, progress: training.Progress) -> None:
        """Show where the run stands; stop it if Ctrl-C was pressed."""
        self.points.append(progress)
        fields = {
            "loss": f"{progress.loss:.3f}",
            "accuracy": f"{100 * progress.accuracy:.1f}%",
            "left": clock(progress.remaining),
            "log": kilobytes(progress.log_bytes),
            "traffic": _traffic(progress),
        }
        self.report(progress.step, progress.steps, fields)

    def figure(self, result: training.TrainResult, path: Path, dataset: Dataset) -> Figure:
        """Draw the losses that were shown, and the accuracy along the run, out of the log."""
        judge = "validation" if result.split == "validation" else "test"
        steps, accuracies = along_the_run(StepLog.open(path), dataset, [judge])
        shown = [point.step for point in self.points], [point.loss for point in self.points]
        title = f"{result.preset}, seed {result.seed}"
        return plots.training_figure(*shown, steps, accuracies, title=title)


def _traffic(progress: training.Progress) -> str:
    """Say how many workers took the last step, and what a step sends."""
    if not isinstance(progress, ClusterProgress):
        return ""
    up, down = (kilobytes(round(count)) for count in progress.traffic.per_step)
    some = "1 worker" if progress.workers == 1 else f"{progress.workers} workers"
    return f"{some}, {up} up, {down} down"


def _log_path(path: Path | None, resume: bool, force: bool) -> Path:
    """Choose the log: the one of ``--out``, or the default name that is free (to resume: last)."""
    if resume and force:
        raise BadUse("--resume goes on with a log and --force overwrites it: choose one")
    if path is None:
        names = common.default_logs()
        path = names[-2:][0] if resume else names[0] if force else names[-1]
    if resume:
        if not path.is_file():
            raise BadUse(f"there is no log {path} to go on with; --out names another")
        return path
    if path.is_file() and force and not common.is_log(path):
        raise BadUse(f"{path} is no minibit log, so --force doesn't overwrite it")
    if not (force and common.is_log(path)):
        common.check_new_file(path, "--out", force=force)
    return path


def _check_resumed(out: Output, path: Path, options: dict[str, Any], steps: int | None) -> None:
    """Refuse options that a resumed log has settled otherwise; say what is cut off its end.

    A log that has all the steps it is to have is told, too.
    """
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
    if len(log) >= (wanted := steps or header["recipe"]["steps"]):
        all_of = "all of its" if wanted == len(log) == header["recipe"]["steps"] else "already"
        out.say(f"Nothing to do: {path} has {all_of} {len(log)} steps.", style="bold")


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
        out.say(f"Go on with:  {common.this_command()} train --resume --out {options}")
    out.say(f"Replay with: {common.this_command()} replay {options}")


def _shared(result: training.TrainResult) -> dict[str, str]:
    """Say what a run on workers sent, and where the time of its steps went."""
    if not isinstance(result, ClusterResult):
        return {}
    up, down = (kilobytes(round(count)) for count in result.traffic.per_step)
    parts = [f"{1000 * s:.0f} ms {part}" for part, s in result.traffic.parts.items()]
    return {
        "workers": f"{result.workers}; per step {up} up and {down} down, all of them together",
        "a step": f"{', '.join(parts)} (the slowest worker, messages and Dask, the client)",
    }
