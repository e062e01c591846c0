"""Long measurements that pages draw: one JSON file each, and the command that repeats it.

``minibit experiment NAME`` writes ``NAME.json``, which a chapter draws. Runs are kept as they end
(see `minibit.experiments.runs`), so that an interrupted experiment goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minibit.base import one_of
from minibit.bench.processes import call, environment
from minibit.experiments.price import cpu_seconds
from minibit.experiments.runs import Runs, Say, write_json

__all__ = ["EXPERIMENTS", "Experiment", "cpu_seconds", "experiment", "kept_runs", "write_json"]


@dataclass(frozen=True)
class Experiment:
    """A named experiment: a line for the list, and ``"module:function"``.

    The function takes the seeds and `Runs`, and returns the rows of the file: JSON types.
    """

    summary: str
    function: str


_SUMMARIES = {  # file and function to a line for the list
    "training:train": "every preset of noise_step on all training images, once a seed",
    "training:activations": "presets of noise_step with float and with int8 activations",
    "language:language": "float and b1.58 language models of three sizes, once a seed",
    "topk:topk": "language models with sparse inputs: how much, how trained, from what start",
    "nf4:nf4": "what NF4, FP4 and Int4 add to the loss of float language models, once a seed",
    "lora:lora": "fine-tunes of a language model: in full, by LoRA and by QLoRA, once a seed",
    "cluster:cluster": "many machines: a median each, data that lie apart, a worker that lies",
    "mlp:mlp": "Adam with straight-through on noise_step's network, beside noise_step",
}
EXPERIMENTS: dict[str, Experiment] = {
    function.partition(":")[2]: Experiment(summary, f"minibit.experiments.{function}")
    for function, summary in _SUMMARIES.items()
}


def experiment(
    name: str,
    out: str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    say: Say = print,
    runs: str | Path | None = None,
) -> dict[str, Any]:
    """Run an experiment, write ``out/NAME.json``, whole or not at all, and return what it holds.

    `say` gets a line after every run. `runs` is a folder that keeps the runs and the models, for
    experiments that share them; by default ``out/NAME.runs``, which goes when the file is written.
    An unknown name, or no seed, is a ValueError.
    """
    function = EXPERIMENTS[one_of("name", name, EXPERIMENTS)].function
    if not seeds:
        raise ValueError("seeds must not be empty")
    Path(out).mkdir(parents=True, exist_ok=True)
    folder = Path(out) / f"{name}.runs" if runs is None else Path(runs)
    content = {
        "experiment": name,
        "command": f"minibit experiment {name} --seeds {' '.join(map(str, seeds))}",
        "seeds": list(seeds),
        "environment": environment(2),
        "rows": call(function, [seeds, Runs(folder, name, say)]),
    }
    write_json(Path(out) / f"{name}.json", content, indent=1)
    if runs is None:
        shutil.rmtree(folder)
    return content


def kept_runs(name: str, out: str | Path) -> list[Path]:
    """List the runs that an interrupted experiment has kept, and will not repeat."""
    return sorted((Path(out) / f"{name}.runs" / name).glob("*.json"))
