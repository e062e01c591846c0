"""Long measurements that pages draw: one JSON file each, and the command that repeats it.

A chapter draws ``chapters/results/NAME.json`` and recomputes its cheapest point; nothing is typed
in by hand. ``minibit experiment NAME`` writes the file again. Its runs are kept as they end (see
`minibit.experiments.runs`), so that an experiment that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minibit.bench.processes import call, environment
from minibit.experiments.runs import Runs, Say, write_json

__all__ = ["EXPERIMENTS", "Experiment", "experiment"]


@dataclass(frozen=True)
class Experiment:
    """A named experiment: a line for the list, and ``"module:function"``.

    The function takes the seeds and `Runs`, and returns the rows of the file: JSON types.
    """

    summary: str
    function: str


EXPERIMENTS: dict[str, Experiment] = {
    "train": Experiment(
        "every preset of noise_step on all training images, once a seed",
        "minibit.experiments.training:train_presets",
    ),
    "activations": Experiment(
        "presets of noise_step with float and with int8 activations, on the validation images",
        "minibit.experiments.training:compare_activations",
    ),
    "language": Experiment(
        "float and b1.58 language models of three sizes on the text of the package, once a seed",
        "minibit.experiments.language:language",
    ),
    "topk": Experiment(
        "language models with sparse inputs: how much, how trained, from what start",
        "minibit.experiments.topk:topk",
    ),
    "nf4": Experiment(
        "what NF4, FP4 and Int4 add to the loss of float language models, once a seed",
        "minibit.experiments.nf4:nf4",
    ),
    "lora": Experiment(
        "fine-tunes of a language model: in full, by LoRA and by QLoRA, once a seed",
        "minibit.experiments.lora:lora",
    ),
    "mlp": Experiment(
        "Adam with straight-through on noise_step's network, beside noise_step",
        "minibit.experiments.mlp:train_mlp",
    ),
}


def experiment(
    name: str,
    out: str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    say: Say = print,
    runs: str | Path | None = None,
) -> dict[str, Any]:
    """Run an experiment, write ``out/NAME.json``, whole or not at all, and return what it holds.

    That is ``experiment``, ``command``, ``seeds``, ``environment`` and ``rows``. The folder `out`
    is made if it is not there. `say` gets a line after every run. `runs` is a folder that keeps
    the runs and the models, for experiments that share them; by default ``out/NAME.runs``, which
    goes when the file is written. An unknown name, or no seed, is a ValueError.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"name must be one of {', '.join(EXPERIMENTS)}, got {name!r}")
    if not seeds:
        raise ValueError("seeds must not be empty")
    Path(out).mkdir(parents=True, exist_ok=True)
    folder = Path(out) / f"{name}.runs" if runs is None else Path(runs)
    content = {
        "experiment": name,
        "command": f"minibit experiment {name} --seeds {' '.join(map(str, seeds))}",
        "seeds": list(seeds),
        "environment": environment(2),
        "rows": call(EXPERIMENTS[name].function, [seeds, Runs(folder, name, say)]),
    }
    write_json(Path(out) / f"{name}.json", content, indent=1)
    if runs is None:
        shutil.rmtree(folder)
    return content
