"""What a log alone can do: blame, bisect, fork, merge, revert, snapshots.

``minibit history LOG blame ...`` is ``minibit blame LOG ...``, and so with each of them. None ever
changes the log that it reads.
"""

from __future__ import annotations

import time
from math import nan
from pathlib import Path
from typing import Annotated, Any

import typer

from minibit import plots
from minibit.cli import common
from minibit.cli.common import BadUse, Output, Plot, command, kilobytes, percent
from minibit.cli.logs import (
    SPLITS,
    Data,
    Log,
    Samples,
    accuracy_of,
    data_of,
    open_log,
    samples_of,
    sizes_of,
)
from minibit.steps import Change, StepLog, Verdict
from minibit.training import model_of, other_data, training_header

New = Annotated[Path, "--out", "The new log."]
Image = typer.Option("--image", min=0, help="Number of the image in its split.")
Split = Annotated[str, "--split", "test, validation or train."]
MOST_LINES = 40  # of changes that are printed; --json has all


@command
def blame(
    out: Output,
    log_path: Log,
    layer: Annotated[str | None, "[LAYER]", "Name or number of a layer."] = None,
    row: Annotated[int | None, "[ROW]", "Output unit, from 0."] = None,
    column: Annotated[int | None, "[COLUMN]", "Input, from 0."] = None,
    image: Annotated[int | None, Image] = None,
    split: Split = "test",
    data: Data = None,
    plot: Plot = None,
) -> dict[str, Any]:
    """Say which steps changed a weight, and how; or, with --image, an image's answer."""
    common.check_plot(plot)
    common.check_choice("--split", split, SPLITS)
    where = layer, row, column
    if (None in where) if image is None else any(part is not None for part in where):
        raise BadUse("blame takes either LAYER ROW COLUMN or --image N")
    log = open_log(out, log_path)
    if layer is not None and row is not None and column is not None:
        with common.bad_use():
            which = int(layer) if layer.isdecimal() else layer
            moved, name = log.blame(which, row, column), f"{layer}[{row}, {column}]"
        first = int(log.slice(which, row, 0).flat[column])
        fields: dict[str, Any] = {"layer": layer, "row": row, "column": column}
    else:
        verdict, label, first = _verdict(log, image or 0, split, data, None)
        moved, name = verdict.changes, f"answer to {split} image {image}"
        fields = {"image": image, "split": split, "label": label, "right": verdict.right}
        out.say(f"Its label is {label}.")
    final = moved[-1].after if moved else first
    out.say(f"{name}: {first} at first, {final} after {len(log)} steps, {len(moved)} changes")
    _tell(out, moved)
    _draw(out, plot, len(log), first, moved, name)
    return {**fields, "first": first, "last": final, "changes": [c._asdict() for c in moved]}


@command
def bisect(
    out: Output,
    log_path: Log,
    image: Annotated[int, Image],
    label: Annotated[int | None, "The label that is right; by default the image's own."] = None,
    split: Split = "test",
    data: Data = None,
    plot: Plot = None,
) -> dict[str, Any]:
    """Find the step after which the label of an image is right, or wrong, for good.

    The last weights decide which of the two. All steps are looked at, for answers go back and
    forth: a binary search would find any turn.
    """
    common.check_plot(plot)
    common.check_choice("--split", split, SPLITS)
    log = open_log(out, log_path)
    verdict, label, first = _verdict(log, image, split, data, label)
    word = "right" if verdict.right else "wrong"
    since = "from the first weights on"
    if verdict.step is not None:
        since = f"since step {verdict.step}, for good"
    out.say(f"{split} image {image}, label {label}: {word} {since}")
    out.say(f"Its answer was {first} at first, and changed {len(verdict.changes)} times.")
    _tell(out, verdict.changes)
    name = f"answer to {split} image {image}"
    _draw(out, plot, len(log), first, verdict.changes, name)
    fields = {"image": image, "split": split, "label": label, "right": verdict.right}
    changes = [change._asdict() for change in verdict.changes]
    return {**fields, "step": verdict.step, "first": first, "changes": changes}


@command
def fork(
    out: Output,
    log_path: Log,
    at: Annotated[int, typer.Option("--at", min=0, help="Keep so many steps.")],
    out_path: New,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draws all steps to come; default: the log's.")
    ] = None,
    data: Annotated[Path | None, "Go on with the samples of this .npz file."] = None,
    split: Annotated[str | None, "final or validation, of --data; default final."] = None,
) -> dict[str, Any]:
    """Copy the first steps of a log, to be trained on with another seed or other data."""
    common.check_new_file(out_path, "--out")
    common.check_choice("--split", split, ("final", "validation"))
    if split and data is None:
        raise BadUse("--split is of the samples that --data names")
    log = open_log(out, log_path)
    if at > len(log):
        raise BadUse(f"{log_path} has {len(log)} steps, so no fork at {at}")
    entry = None
    if data is not None:
        dataset = common.own_data(data)
        with common.bad_use("--data: "):
            entry = other_data(log, at, dataset, split or "final")
    with common.bad_use():
        new = log.fork(at, out_path, seed, entry)
    with_data = f" --data {data}" if data is not None else ""
    out.say(f"{at} of {len(log)} steps: {out_path}")
    out.say(f"Go on with:  {common.this_command()} train --resume --out {out_path}{with_data}")
    digest = new.digest()
    out.facts({"digest": digest})
    fields = {"seed": new.seed_ahead(), "steps": at, "digest": digest}
    return {"out": str(out_path), **fields, **sizes_of(new)}


@command
def merge(
    out: Output,
    log_path: Log,
    other_path: Annotated[Path, "OTHER", "Another fork of the same parent."],
    out_path: New,
    data: Data = None,
    plot: Plot = None,
) -> dict[str, Any]:
    """Add the moves of two forks of one parent: its steps, the log's own, then the other's."""
    common.check_new_file(out_path, "--out")
    log, other = open_log(out, log_path), open_log(out, other_path)
    samples = _test_samples(log, data, plot)
    with common.bad_use():
        new = log.merge(other, out_path)
    shared = new.header["edits"][-1]["parent"]
    own = len(log) - shared, len(other) - shared
    out.say(f"{shared} steps of the parent, {own[0]} and {own[1]} of the forks: {out_path}")
    accuracies = _measured(out, {"log": log, "other": other, "merged": new}, samples, plot)
    out.facts({**{name: percent(a) for name, a in accuracies.items()}, "digest": new.digest()})
    fields = {"shared": shared, "own": own, "digest": new.digest(), **sizes_of(new)}
    return {"out": str(out_path), "test_accuracies": accuracies, **fields}


@command
def revert(
    out: Output,
    log_path: Log,
    name: Annotated[str | None, "[NAME]", "Worker or shard; without one, list them."] = None,
    out_path: Annotated[Path | None, "--out", "The new log."] = None,
    data: Data = None,
    plot: Plot = None,
) -> dict[str, Any]:
    """Leave out what a worker, or a shard of the data, put into a log."""
    if (name is None) != (out_path is None):
        raise BadUse("revert takes NAME and --out, or neither to list the contributors")
    if name is None and plot is not None:
        raise BadUse("--plot draws a log before and after: it goes with NAME and --out")
    if out_path is not None:
        common.check_new_file(out_path, "--out")
    log = open_log(out, log_path)
    if name is None or out_path is None:
        counts: dict[str, int] = {}
        for own in log.shares():
            for owner in {share.name for share in own}:
                counts[owner] = counts.get(owner, 0) + 1
        if not counts:
            out.say(f"No step of {log_path} names a contributor.")
            return {"contributors": counts}
        out.table(["contributor", "steps"], [[key, str(n)] for key, n in sorted(counts.items())])
        return {"contributors": counts}
    samples = _test_samples(log, data, plot)
    with common.bad_use():
        new = log.revert(name, out_path)
    touched = sum(b - a for a, b in new.header["edits"][-1]["steps"])
    out.say(f"{name} measured a part of {touched} of {len(log)} steps; without it: {out_path}")
    accuracies = _measured(out, {"before": log, "after": new}, samples, plot)
    out.facts({**{key: percent(a) for key, a in accuracies.items()}, "digest": new.digest()})
    fields = {"reverted": touched, "digest": new.digest(), **sizes_of(new)}
    return {"out": str(out_path), "test_accuracies": accuracies, **fields}


@command
def snapshots(
    out: Output,
    log_path: Log,
    every: Annotated[int, typer.Option(min=1, help="Steps between two of them.")] = 32,
) -> dict[str, Any]:
    """Write weights along the run beside a log, so that those of any step are at hand."""
    log = open_log(out, log_path)
    begin = time.perf_counter()
    path = log.snapshots(every)
    seconds, size = time.perf_counter() - begin, path.stat().st_size
    out.say(f"{path}: {kilobytes(size)} in {seconds:.2f} s")
    return {"file": str(path), "bytes": size, "seconds": seconds, "every": every}


def _verdict(
    log: StepLog, image: int, split: str, data: Path | None, label: int | None
) -> tuple[Verdict, int, int]:
    """Ask a log about an image: the verdict, the label that is right, and the first answer."""
    x, y = samples_of(log, data_of(log, data), split)
    if image >= len(x):
        raise BadUse(f"--image must be below {len(x)}, the images of split {split}, got {image}")
    classes = log.plan.shapes[-1][0]
    label = int(y[image]) if label is None else label
    if not 0 <= label < classes:
        raise BadUse(f"--label must lie in [0, {classes}), got {label}")
    model = model_of(training_header(log))
    verdict = log.bisect(model, x[image], label)
    if verdict.changes:
        return verdict, label, verdict.changes[0].before
    return verdict, label, int(model(log.weights_at(0), x[image : image + 1]).argmax())


def _test_samples(log: StepLog, data: Path | None, plot: Path | None) -> Samples | None:
    """Return the test samples of a log, where it is a run's and they are at hand.

    A plot needs them.
    """
    common.check_plot(plot)
    source = log.header.get("data", {})
    is_mnist = isinstance(source, dict) and source.get("name") == "mnist"
    if data is None and plot is None and not is_mnist:
        return None
    return samples_of(log, data_of(log, data), "test")


def _measured(
    out: Output, logs: dict[str, StepLog], samples: Samples | None, plot: Path | None
) -> dict[str, float]:
    """Measure each log's accuracy on samples, if there are any; draw it along the steps."""
    if samples is None:
        return {}
    if plot is not None:
        longest = max(map(len, logs.values()))
        points = sorted({*range(0, longest, max(1, longest // 40)), *map(len, logs.values())})
        lines = {}
        for name, log in logs.items():
            walk = log.walk([step for step in points if step <= len(log)])
            line = [accuracy_of(log, params, samples) for _, params in walk]
            lines[name] = line + [nan] * (len(points) - len(line))  # of a log that has ended
        plots.save(plots.history_figure(points, lines, title="test accuracy"), plot)
        out.say(f"Drawn in {plot}.")
    return {name: accuracy_of(log, log.replay(), samples) for name, log in logs.items()}


def _tell(out: Output, changes: list[Change]) -> None:
    """List changes, the first and the last of many."""
    if not changes:
        return
    rows = [[str(change.step), f"{change.before} -> {change.after}"] for change in changes]
    if len(rows) > MOST_LINES:
        left = len(rows) - MOST_LINES
        rows[MOST_LINES // 2 : -MOST_LINES // 2] = [["...", f"{left} more"]]
    out.table(["step", "change"], rows)


def _draw(
    out: Output, plot: Path | None, steps: int, first: int, changes: list[Change], name: str
) -> None:
    """Draw a value along the run."""
    if plot is None:
        return
    plots.save(plots.changes_figure(steps, first, changes, name=name), plot)
    out.say(f"Drawn in {plot}.")
