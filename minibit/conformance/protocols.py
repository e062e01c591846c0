"""The meaning of a call that is no plain function of its arguments: classes, and their state.

Each takes the module that offers the name, and the arguments of the case.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

__all__ = ["PROTOCOLS"]


def step_log(offered: Any, file: Any) -> Any:
    """Weights before the first step and after each, and where the log is torn (-1: nowhere)."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run.steps"
        path.write_bytes(np.asarray(file, np.uint8).tobytes())
        log = offered.StepLog.open(path)
        log.verify()
        states = [log.weights_at(step) for step in range(len(log) + 1)]
    flat = [np.concatenate([w.reshape(-1) for w in state.values()]) for state in states]
    return np.stack(flat), -1 if log.torn_at is None else log.torn_at


PROTOCOLS: dict[str, Callable[..., Any]] = {
    "StepLog": step_log,
}
