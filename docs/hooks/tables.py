"""Tables of recorded results, put where a page says ``<!-- results NAME -->``.

A number within a sentence is ``<!-- figure NAME -->``. All are drawn from
``chapters/results/NAME.json``, which the site offers, too, in ``results/``. MkDocs calls the
``on_*`` functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from minibit.results import chapters_folder, load_results
from minibit.steps import compact
from minibit.training import shipped_log

Rows = list[list[str]]


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Write a table as Markdown; the first row is its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def with_spread(values: Iterable[float], form: str) -> str:
    """Write mean and standard deviation of values over seeds; one alone is called so."""
    numbers = np.array(list(values))
    if numbers.size == 1:
        return f"{numbers[0]:{form}} (1 seed)"
    spread = numbers.std(ddof=1)
    mean = f"{numbers.mean():{form}}"
    return f"{mean} ± {100 * spread:.2f}" if form.endswith("%") else f"{mean} ± {spread:{form}}"


def presets() -> Rows:
    """Return the presets of training: accuracy on the test images and the bytes of the log."""
    rows = [["preset", "method", "steps", "test accuracy", "log", "weights, five per byte"]]
    for row in load_results("train")["rows"]:
        accuracy = with_spread([run["test_accuracy"] for run in row["runs"]], ".2%")
        sizes = [f"{row[name] / 1000:.1f} KB" for name in ("log_bytes", "packed_weight_bytes")]
        rows.append([f"`{row['preset']}`", row["method"], f"{row['steps']:,}", accuracy, *sizes])
    return rows


def baseline() -> Rows:
    """Return the same network by Adam and straight-through gradients."""
    rows = [["method", "steps", "test accuracy", "CPU time"]]
    for row in load_results("mlp")["rows"]:
        if row["shifts"] > 1:
            accuracy = with_spread([run["test_accuracy"] for run in row["runs"]], ".2%")
            seconds = f"{row['cpu_seconds']:.0f} s"
            rows.append([row["method"], f"{row['steps']:,}", accuracy, seconds])
    return rows


def activations() -> Rows:
    """Return what rounding activations to int8 does to accuracy and time."""
    rows = [["preset", "activations", "validation accuracy", "CPU time", "forward pass", "step"]]
    for row in load_results("activations")["rows"]:
        accuracy = with_spread([run["validation_accuracy"] for run in row["runs"]], ".2%")
        times = [f"{row['milliseconds'][name]:.1f} ms" for name in ("forward", "step")]
        cpu = f"{row['cpu_seconds']:.0f} s"
        rows.append([f"`{row['preset']}`", row["activations"], accuracy, cpu, *times])
    return rows


def language() -> Rows:
    """Return the language models: validation loss in nats per character, float and b1.58."""
    losses: dict[tuple[str, str], list[float]] = {}
    counts: dict[str, float] = {}
    for row in load_results("language")["rows"]:
        if row["kind"] == "run" and row["sub_norms"]:
            losses.setdefault((row["size"], row["weights"]), []).append(row["validation_loss"])
        elif row["kind"] == "count" and row["model"] == "kneser_ney":
            counts[f"Kneser-Ney, {row['context']} characters"] = row["validation_loss"]
    rows = [["model", "float", "b1.58", "b1.58 more by"]]
    for size in ("55k", "221k", "885k"):
        pair = [losses[size, weights] for weights in ("float", "b1.58")]
        gap = f"{np.mean(pair[1]) / np.mean(pair[0]) - 1:.1%}"
        rows.append([f"{size} weights", *(with_spread(runs, ".3f") for runs in pair), gap])
    best = min(counts, key=counts.__getitem__)
    return [*rows, [best, f"{counts[best]:.3f}", "", ""]]


def sparse() -> Rows:
    """Return language models of 221k weights whose inputs keep only their largest entries."""
    losses: dict[tuple[str, float], list[float]] = {}
    zeros: dict[float, list[float]] = {}
    for row in load_results("topk")["rows"]:
        if row["kind"] == "scratch" and row["size"] == "221k" and row["straight"]:
            losses.setdefault((row["weights"], row["sparsity"]), []).append(row["validation_loss"])
            zeros.setdefault(row["sparsity"], []).append(row["zeros"]["overall"])
    kinds = list(dict.fromkeys(weights for weights, _ in losses))
    rows = [["set to zero by top-K", "zeros in all", *kinds]]
    for share in sorted(zeros):
        told = [with_spread(losses[kind, share], ".3f") if (kind, share) in losses else ""
                for kind in kinds]  # fmt: skip
        rows.append([f"{share:.0%}", f"{np.mean(zeros[share]):.0%}", *told])
    return rows


def codebooks() -> Rows:
    """Return what four-bit codebooks add to the loss of float language models."""
    sizes = [row for row in load_results("nf4")["rows"] if row["kind"] == "size"]
    rows = [["codebook", *(f"{row['size']} weights" for row in sizes)]]
    for name in sizes[0]["added"]:
        told = [f"{row['added'][name]:.4f} ± {row['added_std'][name]:.4f}" for row in sizes]
        rows.append([name, *told])
    return rows


def adapters() -> Rows:
    """Return fine-tunes to other text: losses before and after, and the memory that it takes."""
    runs: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in load_results("lora")["rows"]:
        if row["kind"] == "run" and not row["choice"] and row["method"] in METHODS:
            runs.setdefault((row["task"], row["method"], row["rank"]), []).append(row)
    rows = [["text", "method", "loss before", "loss after", "weights that move", "memory"]]
    for (task, method, rank), several in runs.items():
        losses = (
            with_spread([row[when]["test"] for row in several], ".3f")
            for when in ("before", "after")
        )
        sizes = [f"{several[0]['moving']:,}", f"{several[0]['bytes'] / 1000:,.0f} KB"]
        method = METHODS[method] + (f", rank {rank}" if rank else "")
        rows.append([TEXTS[task], method, *losses, *sizes])
    return rows


def machines() -> Rows:
    """Return training on many machines: a median each, data that lie apart, a worker that lies."""
    names = {
        "alone": lambda row: f"a median for each of {row['workers']} workers",
        "liar": lambda row: f"one worker in four lies, {row['check']:.0%} of parts checked",
        "federated": lambda row: f"eight workers, data apart {LAID[row['kind']]}",
    }
    rows = [["training", "validation accuracy"]]
    for row in load_results("cluster")["rows"]:
        accuracy = with_spread([run["validation_accuracy"] for run in row["runs"]], ".2%")
        rows.append([names[row["experiment"]](row), accuracy])
    return rows


METHODS = {"full": "all weights", "lora": "LoRA", "qlora": "QLoRA"}
TEXTS = {"upper": "upper case", "plain": "as it is"}
LAID = {"label": "by label", "random": "at random"}
TABLES = {
    **{"train": presets, "mlp": baseline, "activations": activations, "language": language},
    **{"topk": sparse, "nf4": codebooks, "lora": adapters, "cluster": machines},
}


def preset(name: str) -> dict[str, Any]:
    """Return the recorded row of a preset."""
    return next(row for row in load_results("train")["rows"] if row["preset"] == name)


def kilobytes(size: float) -> str:
    """Write a size."""
    return f"{size / 1000:.1f} KB"


def adam() -> str:
    """Return the accuracy of Adam in as many steps as ``small`` takes."""
    steps = preset("small")["steps"]
    rows = [row for row in load_results("mlp")["rows"] if row["shifts"] > 1]
    row = next(row for row in rows if row["steps"] == steps and "Adam" in row["method"])
    return f"{row['test_accuracy']:.2%}"


FIGURES = {  # within a sentence, as ``<!-- figure NAME -->``
    **{
        f"{name}_{key}": form
        for name in ("small", "accurate")
        for key, form in (
            ("accuracy", lambda name=name: f"{preset(name)['test_accuracy']:.2%}"),
            ("log", lambda name=name: kilobytes(preset(name)["log_bytes"])),
        )
    },
    "small_compact": lambda: kilobytes(len(compact(shipped_log()))),
    "packed": lambda: kilobytes(preset("small")["packed_weight_bytes"]),
    "adam_accuracy": adam,
}


def machine(environment: dict[str, Any]) -> str:
    """Name what a measurement ran on."""
    versions = environment["versions"]
    names = ("python", "numpy", "numba", "blas")
    names += tuple(name for name in versions if name not in (*names, "minibit"))  # of peers
    told = ", ".join(f"{name} {versions[name]}" for name in names)
    cores = environment["cpus"]
    return (
        f"{environment['cpu']}, {cores} core{'s' * (cores != 1)}, {environment['system']}, kernels "
        f"`{environment['kernel_path']}`; {told}"
    )


def table(name: str) -> str:
    """Write a table with the command that measures it, the seeds and the machine."""
    results = load_results(name)
    seeds = ", ".join(map(str, results["seeds"]))
    return (
        f"{as_table(TABLES[name]())}\n\n"
        f'<p class="measured" markdown>Means and standard deviations over seeds {seeds}. '
        f"`{results['command']}` measures it again; [all runs](results/{name}.json). Measured on "
        f"{machine(results['environment'])}.</p>"
    )


def on_files(files: Any, config: Any) -> Any:
    """Offer the recorded results as files."""
    from mkdocs.structure.files import File

    for path in sorted((chapters_folder() / "results").glob("*.json")):
        files.append(File.generated(config, f"results/{path.name}", content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write the tables that a page asks for."""
    markdown = re.sub(r"<!-- results (\w+) -->", lambda match: table(match[1]), markdown)
    known = "|".join(FIGURES)
    return re.sub(rf"<!-- figure ({known}) -->", lambda match: FIGURES[match[1]](), markdown)
