"""Commands on a log: replay, evaluate, history, info, edit, salvage, export.

None of them ever changes the log that it reads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from minibit import plots, training
from minibit.base import open_whole, shown
from minibit.checkpoint import write_safetensors
from minibit.cli import common
from minibit.cli.common import BadUse, Force, Output, Plot, command, kilobytes, percent
from minibit.cli.models import is_model, model_path, tell_about
from minibit.datasets import Dataset, load_mnist, split
from minibit.noise_step import digest as digest_of
from minibit.steps import StepLog, compact, draws

Log = Annotated[Path, "LOG", "A log that `minibit train` wrote."]
Data = Annotated[Path | None, "The .npz file that it was trained on, if not MNIST."]
Step = Annotated[
    int | None, typer.Option("--step", min=0, help="Weights after so many steps; default: all.")
]
Samples = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # inputs and labels
SPLITS = ("test", "validation", "train")
MOST_EDITS = 20  # that `info` lists
LONG_WEIGHTS, LONG_DRAWS = 1 << 23, 1 << 25  # what it does not replay


class NoData(BadUse):
    """A log was trained on data that the package does not carry and the caller did not give."""


@command
def replay(
    out: Output,
    log_path: Log,
    step: Step = None,
    out_path: Annotated[Path | None, "--out", "Write the weights to this .npz file, int8."] = None,
    data: Data = None,
    force: Force = False,
) -> dict[str, Any]:
    """Make the weights again from the log alone, check every digest, and measure the accuracy."""
    if out_path is not None:
        common.check_new_file(out_path, "--out", force=force)
    begin, cpu = time.perf_counter(), time.process_time()
    with common.compile_clock() as compiling:
        log = open_log(out, log_path, step)
        log.verify()  # raises where a record's digest differs
        params = log.replay(step)
        compile_seconds = compiling()
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    accuracy = None
    try:
        dataset = data_of(log, data)
        accuracy = accuracy_of(log, params, (dataset.test_x, dataset.test_y))
    except NoData as error:
        out.warn(f"no accuracy: {error}")
    steps = len(log) if step is None else step
    times = {"seconds": seconds - compile_seconds, "compile_seconds": compile_seconds}
    digest = digest_of(params)
    if out_path is not None:
        with open_whole(out_path, overwrite=force) as file:
            np.savez(file, **params)  # type: ignore[arg-type]
    out.facts(
        {
            "test accuracy": "not measured" if accuracy is None else percent(accuracy),
            "steps": f"{steps} of {len(log)}",
            "log": kilobytes(log.nbytes),
            "time": f"{times['seconds']:.2f} s, and {compile_seconds:.2f} s to compile",
            "digest": digest,
        }
    )
    out.say("The digest of every record is that at which it was written.")
    if out_path is not None:
        out.say(f"The weights are in {out_path}.")
    fields = {"test_accuracy": accuracy, "digest": digest, "steps": steps, **sizes_of(log)}
    return {**fields, **times, "cpu_seconds": cpu_seconds}


@command
def evaluate(
    out: Output,
    log_path: Log,
    split_name: Annotated[str, "--split", "test, validation or train."] = "test",
    step: Step = None,
    data: Data = None,
) -> dict[str, Any]:
    """Measure the accuracy of a log's weights on the test, validation or training samples."""
    common.check_choice("--split", split_name, SPLITS)
    log = open_log(out, log_path, step)
    samples = samples_of(log, data_of(log, data), split_name)
    accuracy = accuracy_of(log, log.replay(step), samples)
    name, count = _split_names(log)[split_name], len(samples[1])
    steps = len(log) if step is None else step
    out.say(f"{percent(accuracy)} of {count} {name} samples, after {steps} steps")
    if name == "training" and split_name == "validation":
        out.say("This run was trained on the validation samples, too.")
    fields = {"split": split_name, "seen_in_training": name == "training"}
    return {"accuracy": accuracy, **fields, "samples": count, "steps": steps}


@command
def history(
    out: Output,
    log_path: Log,
    plot: Plot = None,
    every: Annotated[
        int | None, typer.Option(min=1, help="Steps between two points; default: forty points.")
    ] = None,
    data: Data = None,
) -> dict[str, Any]:
    """Measure the accuracy along the run, on the validation and on the test samples.

    Where the run was trained on the validation samples, they are called training.
    """
    common.check_plot(plot)
    log = open_log(out, log_path)
    points, accuracies = along_the_run(log, data_of(log, data), ["validation", "test"], every)
    names = _split_names(log)
    lines = {names[name]: line for name, line in accuracies.items()}
    columns = [map(str, points), *(map(percent, line) for line in lines.values())]
    out.table(["step", *lines], list(map(list, zip(*columns, strict=True))))
    trained_on = names["validation"] == "training"
    if trained_on:
        out.say("training: the last twelfth of the samples that the run was trained on", "dim")
    if plot is not None:
        plots.save(plots.history_figure(points, lines, title=log_path.name), plot)
        out.say(f"Drawn in {plot}.")
    return {"steps": points, **accuracies, "validation_seen_in_training": trained_on}


def along_the_run(
    log: StepLog, dataset: Dataset, splits: list[str], every: int | None = None
) -> tuple[list[int], dict[str, list[float]]]:
    """Measure accuracies after every so many steps, from the first weights to the last.

    Returns the steps, and the accuracies by split; about forty points by default.
    """
    every = every or max(1, len(log) // 40)
    points = sorted({*range(0, len(log), every), len(log)})
    samples = {name: samples_of(log, dataset, name) for name in splits}
    accuracies: dict[str, list[float]] = {name: [] for name in splits}
    for _, params in log.walk(points):
        for name, line in accuracies.items():
            line.append(accuracy_of(log, params, samples[name]))
    return points, accuracies


@command
def info(
    out: Output,
    path: Annotated[
        Path, "FILE", "A log; or a model directory, a .gguf or a .npz file, or shipped."
    ],
) -> dict[str, Any]:
    """Say what a log holds and where its bytes are, or what a language model is."""
    if is_model(path):
        return tell_about(out, model_path(path))
    log = open_log(out, path)
    header, plan = log.header, log.plan
    is_long = plan.size > LONG_WEIGHTS or sum(draws(plan, s) for s in log.steps()) > LONG_DRAWS
    net, sizes = None if is_long else len(compact(log)), sizes_of(log)
    framing = log.nbytes - sum(len(record.payload) for record in log.records)
    recipe, source = (
        fields if isinstance(fields := header.get(part), dict) else {}
        for part in ("recipe", "data")
    )
    layers = ["x".join(map(str, shape)) for shape in plan.shapes]
    name, split_name = (_short(source.get(key, "unknown")) for key in ("name", "split"))
    facts: dict[str, object] = {
        "preset": _short(recipe.get("preset", "none")),
        "method": plan.method,
        "seed": plan.seed,
        "layers": _short(", ".join(layers)),
        "weights": f"{plan.size:,}",
        "activations": _short(recipe.get("activations", "float") if recipe else "unknown"),
        "steps": f"{len(log)} (records of up to 32: {len(log.records)})",
        "data": f"{name}, split {split_name}",
    }
    edits = header.get("edits", [])
    edits = edits if isinstance(edits, list) else [edits]
    for number, edit in enumerate(edits[:MOST_EDITS], start=1):
        facts[f"edit {number}"] = _short(_edit_line(edit))
    if len(edits) > MOST_EDITS:
        facts["edits"] = f"{len(edits)} in all"
    moves = "not counted: the replay is long"
    if net is not None:
        moves = f"{kilobytes(net)} from the seed's initial weights, without history"
    facts |= {
        "log": f"{kilobytes(log.nbytes)}, {kilobytes(framing)} of it header and framing",
        "net moves": moves,
        "packed weights": f"{kilobytes(sizes['packed_weight_bytes'])} at five trits per byte",
        "float32 weights": kilobytes(4 * plan.size),
    }
    out.facts(facts)
    return {
        "header": header,
        "steps": len(log),
        "records": len(log.records),
        **sizes,
        "framing_bytes": framing,
        "compact_bytes": net,
        "float32_bytes": 4 * plan.size,
        "torn_at": log.torn_at,
    }


@command
def edit(
    out: Output,
    log_path: Log,
    out_path: Annotated[Path, "--out", "The new log."],
    negate: Annotated[list[str] | None, "Turn these steps round, e.g. --negate 7 100-119."] = None,
    mask: Annotated[list[str] | None, "Leave these steps out, e.g. --mask 7 100-119."] = None,
) -> dict[str, Any]:
    """Write a copy of a log with some of its steps negated or masked. Steps count from 0."""
    if bool(negate) == bool(mask):
        raise BadUse("edit takes either --negate STEPS or --mask STEPS")
    numbers = common.whole_numbers(negate or mask or [], "--negate" if negate else "--mask")
    common.check_new_file(out_path, "--out")
    log = open_log(out, log_path)
    if max(numbers) >= len(log):
        has = f"steps 0 to {len(log) - 1}" if len(log) else "no steps"
        raise BadUse(f"{log_path} has {has}, there is no {max(numbers)}")
    edited = (log.negate if negate else log.mask)(numbers, out_path)
    count = len(set(numbers))
    out.say(f"{count} of {len(log)} steps {'negated' if negate else 'masked'}: {out_path}")
    out.facts({"digest before": log.digest(), "digest after": edited.digest()})
    return {"out": str(out_path), "edited": count, "digest": edited.digest(), **sizes_of(edited)}


@command
def salvage(
    out: Output,
    log_path: Log,
    out_path: Annotated[Path, "OUT", "The new log."],
) -> dict[str, Any]:
    """Copy a damaged log up to the damage: all steps that are good and replay as written."""
    _check_log(log_path)
    common.check_new_file(out_path, "OUT")
    log = StepLog.salvage(log_path, out_path)
    rest, digest = log_path.stat().st_size - log.nbytes, log.digest()
    out.say(f"{len(log)} good steps: {out_path}")
    out.facts({"digest": digest, "left out": f"the last {rest} bytes of {log_path}"})
    fields = {"steps": len(log), "digest": digest, "left_out": rest, **sizes_of(log)}
    return {"out": str(out_path), **fields}


@command
def export(
    out: Output,
    log_path: Log,
    file: Annotated[Path, "FILE.safetensors", "File to write."],
    step: Step = None,
    force: Force = False,
) -> dict[str, Any]:
    """Write a log's weights as a safetensors file: int8 codes, (n_out, n_in), with their digest."""
    if file.suffix != ".safetensors":
        raise BadUse(f"export writes a .safetensors file, got {file}")
    common.check_new_file(file, "FILE", force=force)
    log = open_log(out, log_path, step)
    params = log.replay(step)
    digest = digest_of(params)
    header = log.header
    about = {
        "format": "minibit ternary codes, int8, (n_out, n_in)",
        "digest": digest,
        "steps": str(len(log) if step is None else step),
        "plan": json.dumps(header["plan"]),
        "recipe": json.dumps(header.get("recipe", {})),
        "data": json.dumps(header.get("data", {})),
    }
    specs = {name: ("I8", codes.shape) for name, codes in params.items()}
    write_safetensors(file, specs, lambda name: [params[name]], metadata=about, overwrite=force)
    out.facts({"weights": str(file), "digest": digest})
    tensors = {name: list(codes.shape) for name, codes in params.items()}
    return {"file": str(file), "digest": digest, "tensors": tensors}


def _check_log(path: Path) -> None:
    """Refuse a name that no file has."""
    if not path.is_file():
        kind = ": it is a folder" if path.is_dir() else ""
        raise BadUse(f"there is no log {path}{kind}")


def open_log(out: Output, path: Path, step: int | None = None) -> StepLog:
    """Open a log; say so if its tail is torn, and refuse a step that it does not have."""
    _check_log(path)
    log = StepLog.open(path)
    if log.warning:
        out.warn(f"{path}: {log.warning}")
    if step is not None and step > len(log):
        raise BadUse(f"{path} has {len(log)} steps, so no weights after {step}")
    return log


def data_of(log: StepLog, path: Path | None) -> Dataset:
    """Load the data set that a log was trained on, and check that it is the one."""
    source = training.training_header(log)["data"]
    if path is None and source["name"] != "mnist":
        raise NoData(f"this log was trained on {source['name']}: give it with --data FILE.npz")
    dataset = load_mnist() if path is None else common.own_data(path)
    if dataset.digest != source["digest"]:
        raise BadUse(
            f"{dataset.name} is not the data that the log was trained on: its digest is "
            f"{dataset.digest}, the log names {source['digest']}"
        )
    return dataset


def samples_of(log: StepLog, dataset: Dataset, split_name: str) -> Samples:
    """Return samples and labels of a split; "train" is what the log was trained on."""
    if split_name == "test":
        return dataset.test_x, dataset.test_y
    if split_name == "train" and log.header["data"]["split"] == "final":
        return dataset.train_x, dataset.train_y
    parts = split(dataset)
    return parts[:2] if split_name == "train" else parts[2:]


def _split_names(log: StepLog) -> dict[str, str]:
    """Name the splits for people: what was trained on is training, whatever split it is of."""
    seen = log.header["data"]["split"] == "final"
    return {
        "test": "test",
        "validation": "training" if seen else "validation",
        "train": "training",
    }


def accuracy_of(log: StepLog, params: Mapping[str, NDArray[Any]], samples: Samples) -> float:
    """Return the share of samples that the log's model, with these weights, labels right."""
    return training.evaluate(params, training.model_of(log.header), *samples)


def _edit_line(edit: Any) -> str:
    """Write an entry of a header's ``edits`` as the command that makes it; others as they are."""
    try:
        spans = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in edit["steps"]]
        return f"{edit['edit']}, steps {', '.join(spans) or 'none'}"
    except (TypeError, ValueError, KeyError):
        return json.dumps(edit)


def _short(value: Any) -> str:
    """Write a value of a header, which may be anything, on a part of a line."""
    return value if isinstance(value, str) and len(value) <= 400 else shown(value)


def sizes_of(log: StepLog) -> dict[str, Any]:
    """Return the sizes that every command reports; weights are packed at five trits per byte."""
    return {"log_bytes": log.nbytes, "packed_weight_bytes": -(-log.plan.size // 5)}
