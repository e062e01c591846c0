"""Tables of recorded results, put where a page says ``<!-- results NAME -->``.

MkDocs calls `on_page_markdown`.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from minibit.results import load_results


def presets() -> list[list[str]]:
    """Return the presets of training: accuracy on the test images and the bytes of the log."""
    rows = [["preset", "method", "steps", "test accuracy", "log", "weights, five per byte"]]
    for row in load_results("train")["rows"]:
        accuracy = f"{row['test_accuracy']:.2%} ± {100 * row['test_accuracy_std']:.2f}"
        sizes = [f"{row[name] / 1000:.1f} KB" for name in ("log_bytes", "packed_weight_bytes")]
        rows.append([f"`{row['preset']}`", row["method"], f"{row['steps']:,}", accuracy, *sizes])
    return rows


def baseline() -> list[list[str]]:
    """Return the same network by Adam and straight-through gradients."""
    rows = [["method", "steps", "test accuracy", "CPU time"]]
    for row in load_results("mlp")["rows"]:
        if row["shifts"] > 1:
            spread = f"± {100 * row['test_accuracy_std']:.2f}"
            accuracy = f"{row['test_accuracy']:.2%} {spread if row['runs'][1:] else '(1 seed)'}"
            seconds = f"{row['cpu_seconds']:.0f} s"
            rows.append([row["method"], f"{row['steps']:,}", accuracy, seconds])
    return rows


def language() -> list[list[str]]:
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
        pair = [np.array(losses[size, weights]) for weights in ("float", "b1.58")]
        told = [f"{runs.mean():.3f} ± {runs.std(ddof=1):.3f}" for runs in pair]
        gap = f"{pair[1].mean() / pair[0].mean() - 1:.1%}"
        rows.append([f"{size} weights", *told, gap])
    best = min(counts, key=counts.__getitem__)
    return [*rows, [best, f"{counts[best]:.3f}", "", ""]]


TABLES = {"train": presets, "mlp": baseline, "language": language}


def table(name: str) -> str:
    """Write a table as Markdown, with the command that measures it and the CPU that did."""
    head, *rows = TABLES[name]()
    results = load_results(name)
    lines = [head, ["---"] * len(head), *rows]
    written = "\n".join(f"| {' | '.join(row)} |" for row in lines)
    seeds = ", ".join(map(str, results["seeds"]))
    return (
        f"{written}\n\nMeans and standard deviations over seeds {seeds}; `{results['command']}` "
        f"measures it again. These were measured on one {results['environment']['cpu']}."
    )


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write the tables that a page asks for."""
    return re.sub(r"<!-- results (\w+) -->", lambda match: table(match[1]), markdown)
