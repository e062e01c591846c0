"""The runs of an experiment: each is done once, and its row is kept as soon as it is done.

FOLDER/NAME/SETTINGS.json       the row of a run: while it is there, the run is not repeated
FOLDER/SIZE_WEIGHTS_SEED.npz    a dense language model, which several experiments measure
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from minibit.base import open_whole
from minibit.bench.processes import in_own_process, keep_freed_memory
from minibit.language import TrainedModel, recipe, train_language

__all__ = ["Row", "Runs", "Say", "dense_model", "mean_and_std", "over_seeds", "write_json"]

Say = Callable[[str], None]
Row = dict[str, Any]


class Runs:
    """A runner: it does the runs of an experiment, or finds them done in its folder.

    `say` gets a line after every run. So many `processes` of one thread, one for each run, are
    there at a time; with 0 all runs are done here.
    """

    def __init__(self, folder: str | Path, name: str, say: Say, processes: int = 2) -> None:
        self.folder, self.say, self.processes = Path(folder), say, processes
        self._rows = self.folder / name
        self._rows.mkdir(parents=True, exist_ok=True)

    def rows(
        self,
        function: Callable[..., Row],
        settings: Iterable[Mapping[str, Any]],
        line: str,
        *,
        here: bool = False,
    ) -> list[Row]:
        """Return what ``function(folder, **fields)`` comes to for each of the settings.

        `function` is one of a module, its fields and its row are JSON types. `line` is a format
        string, filled in from fields and row. With `here` no run has a process of its own.
        """

        def finished(fields: Mapping[str, Any]) -> Row:
            words = [function.__name__.strip("_"), *map(str, fields.values())]
            path = self._rows / f"{'_'.join(words)}.json"
            if not path.exists():
                if here or not self.processes:
                    result = function(self.folder, **fields)
                else:
                    name = f"{function.__module__}:{function.__name__}"
                    arguments = [name, str(self.folder), dict(fields)]
                    title = f"run {path.stem} of {function.__module__}"
                    result = in_own_process(f"{__name__}:run_alone", arguments, 1, title)
                write_json(path, result)
            row: Row = json.loads(path.read_text(encoding="utf-8"))
            self.say(line.format(**{**fields, **row}))
            return row

        if here or not self.processes:
            return [finished(fields) for fields in settings]
        with ThreadPoolExecutor(self.processes) as pool:
            return list(pool.map(finished, settings))


def run_alone(function: str, folder: str, fields: Mapping[str, Any]) -> Row:
    """Do a run in this process, which has no other work."""
    keep_freed_memory()
    row: Row = pkgutil.resolve_name(function)(Path(folder), **fields)
    return row


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = None) -> None:
    """Write a file whole or not at all."""
    with open_whole(path, overwrite=True) as file:
        file.write((json.dumps(content, indent=indent) + "\n").encode())


def dense_model(folder: Path, size: str, weights: Any, seed: int) -> TrainedModel:
    """Return the dense model of a size and a seed: from its file, or trained now and kept."""
    path = folder / f"{size}_{weights}_{seed}.npz"
    if not path.exists():
        train_language(recipe(size, weights), seed).save(path)
    return TrainedModel.load(path)


def mean_and_std(rows: Sequence[Row], name: str) -> dict[str, float]:
    """Mean of a field, and its standard deviation over the rows, 0 for one row."""
    values = [row[name] for row in rows]
    spread = float(np.std(values, ddof=min(1, len(values) - 1)))
    return {name: float(np.mean(values)), f"{name}_std": spread}


def over_seeds(runs: Sequence[Row], score: str, *costs: str) -> Row:
    """Mean and deviation of the score of runs, the means of their costs, and the runs."""
    means = {name: float(np.mean([run[name] for run in runs])) for name in costs}
    return {**mean_and_std(runs, score), **means, "runs": list(runs)}
