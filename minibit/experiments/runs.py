"""The runs of an experiment: each in a process of its own, once, and kept in a folder.

    FOLDER/RUN.json                  what a run came to: while it is there, the run is not repeated
    FOLDER/SIZE_WEIGHTS_SEED.npz     a dense language model, which several experiments measure

A process has one thread, so that two runs side by side use two CPUs best and time the same alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minibit.bench import clean_environment
from minibit.language import Recipe, TrainedModel, recipe, train_language

__all__ = ["dense_model", "folder_of_runs", "in_own_process", "keep", "kept"]


@contextmanager
def folder_of_runs(folder: str | Path | None) -> Iterator[Path]:
    """Yield a folder that keeps runs, made if it is not there; None is a scratch folder."""
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    yield Path(folder)


def in_own_process(module: str, *arguments: str) -> None:
    """Run ``python -m module arguments`` with one thread; a RuntimeError if it fails."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=clean_environment(1), check=False)
    if done.returncode:
        raise RuntimeError(
            f"the run {' '.join(arguments)} of {module} ended with status {done.returncode}"
        )


def keep(path: Path, found: Mapping[str, Any]) -> None:
    """Write what a run came to, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(found), encoding="utf-8")
    part.replace(path)


def kept(path: Path) -> dict[str, Any]:
    """Read what a run came to."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def dense_model(
    size: str,
    weights: Any,
    seed: int,
    folder: Path,
    train: Callable[[Recipe, int], TrainedModel] = train_language,
) -> TrainedModel:
    """Return the dense model of a size and a seed: from its file, or trained now and kept."""
    path = folder / f"{size}_{weights}_{seed}.npz"
    if not path.exists():
        train(recipe(size, weights), seed).save(path)
    return TrainedModel.load(path)
