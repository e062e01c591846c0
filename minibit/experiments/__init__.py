"""Long measurements that pages draw: one JSON file each, and the command that repeats it.

A chapter draws ``chapters/results/NAME.json`` and recomputes its cheapest point; nothing is typed
in by hand. ``minibit experiment NAME`` writes the file again.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minibit.bench import environment

__all__ = ["EXPERIMENTS", "Experiment", "experiment"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Experiment:
    """A named experiment.

    Attributes
    ----------
    summary : str
        One line for the list.
    function : str
        ``"module:function"``, imported when it runs; the function takes the seeds and a callable
        that gets a line after every run, and returns the rows of the file: JSON types.
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
        "minibit.experiments.activations:compare_activations",
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
    name: str, out: str | Path, seeds: Sequence[int] = (0, 1, 2), say: Say = print
) -> dict[str, Any]:
    """Run an experiment and write ``out/NAME.json``, whole or not at all.

    Parameters
    ----------
    name : str
        A key of `EXPERIMENTS`.
    out : path
        A folder; made if it is not there.
    seeds : sequence of int
        One run each.
    say : callable
        Gets a line after every run.

    Returns
    -------
    dict
        What the file holds: ``experiment``, ``command``, ``seeds``, ``environment``, ``rows``.

    Raises
    ------
    ValueError
        If the name is unknown or there is no seed.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"name must be one of {', '.join(EXPERIMENTS)}, got {name!r}")
    if not seeds:
        raise ValueError("seeds must not be empty")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "experiment": name,
        "command": f"minibit experiment {name} --seeds {' '.join(map(str, seeds))}",
        "seeds": list(seeds),
        "environment": environment(2),
        "rows": _function(name)(seeds, say),
    }
    part = folder / f"{name}.json.part"
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / f"{name}.json")
    return found


def _function(name: str) -> Callable[[Sequence[int], Say], list[dict[str, Any]]]:
    """Import the function of an experiment."""
    module, _, function = EXPERIMENTS[name].function.partition(":")
    found: Callable[[Sequence[int], Say], list[dict[str, Any]]]
    found = getattr(importlib.import_module(module), function)
    return found
