"""The meaning of a call whose argument is the content of a file, uint8 (bytes,)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

__all__ = ["FILES", "file_of"]


@contextmanager
def file_of(content: Any, name: str) -> Iterator[Path]:
    """Write a file into a folder of its own, which goes with the block."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(np.asarray(content, np.uint8).tobytes())
        yield path


def open_gguf(offered: Any, file: Any) -> Any:
    """Metadata, an array as none; of each tensor ggml's type number, sides, first byte, bytes."""
    with file_of(file, "case.gguf") as path:
        header = offered.checkpoint.open_gguf(path)
        tensors = {
            name: {
                "type": tensor.kind,
                "shape": [*tensor.shape],
                "byte": tensor.offset,
                "bytes": header.bytes_of(tensor).copy(),
            }
            for name, tensor in header.tensors.items()
        }
        metadata = dict(header.metadata)
        header.mapped.close()
    return metadata, tensors


def log_of(question: Callable[..., Any]) -> Callable[..., Any]:
    """Return a call that opens the log in `file` and asks it."""

    def call(offered: Any, file: Any, **args: Any) -> Any:
        """Open, ask, close."""
        with file_of(file, "run.steps") as path, offered.StepLog.open(path) as log:
            return question(log, **args)

    return call


def copied(kind: str) -> Callable[..., Any]:
    """Return a call of an edit: the bytes of the log that it writes."""

    def call(offered: Any, file: Any, other: Any = None, workers: Any = None, **args: Any) -> Any:
        """Open the log, and another or the file of its contributors where the edit takes one."""
        with file_of(file, "run.steps") as path:
            log = offered.StepLog.open(path)
            if workers is not None:
                path.with_name("run.steps.workers").write_bytes(workers.tobytes())
            if other is not None:
                path.with_name("other.steps").write_bytes(other.tobytes())
                args["other"] = offered.StepLog.open(path.with_name("other.steps"))
            getattr(log, kind)(**args, out=path.with_name("out.steps"))
            return bytes_of(path.with_name("out.steps"))

    return call


def bytes_of(path: Path) -> Any:
    """Return the content of a file."""
    return np.frombuffer(path.read_bytes(), np.uint8)


def create(offered: Any, header: Any) -> Any:
    """Return the bytes of a log without steps."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run.steps"
        offered.StepLog.create(path, header).close()
        return bytes_of(path)


def append(offered: Any, file: Any, steps: Any) -> Any:
    """Return the bytes of a log with more steps."""
    with file_of(file, "run.steps") as path:
        with offered.StepLog.open(path) as log:
            log.append(steps)
        return bytes_of(path)


def recover(offered: Any, file: Any) -> Any:
    """Return the bytes that are left when a torn tail is cut off."""
    with file_of(file, "run.steps") as path:
        offered.StepLog.recover(path).close()
        return bytes_of(path)


def salvage(offered: Any, file: Any) -> Any:
    """Return the bytes of the copy."""
    with file_of(file, "run.steps") as path:
        offered.StepLog.salvage(path, path.with_name("out.steps"))
        return bytes_of(path.with_name("out.steps"))


def opened(log: Any) -> Any:
    """Return how many steps and records it has, its good bytes, and where it is torn, or -1."""
    return len(log), len(log.records), log.nbytes, -1 if log.torn_at is None else log.torn_at


def walked(log: Any, at: Any) -> Any:
    """Return the weights after some steps: (steps, weights)."""
    return np.stack(
        [np.concatenate([w.ravel() for w in params.values()]) for _, params in log.walk(at)]
    )


def verdict(log: Any, **args: Any) -> Any:
    """Whether the last answer is the label, since which step (-1: always), and all changes."""
    right, since, changes = log.bisect(**args)
    return right, -1 if since is None else since, table(changes)


def table(changes: Any) -> Any:
    """Return changes as rows of step, before, after."""
    return np.array([[*change] for change in changes], np.int64).reshape(-1, 3)


def choices(log: Any) -> Any:
    """Return every step as numerator and codes, or as positions and signs per layer."""
    return ([vars(step) for step in log.steps()],)


def shares(offered: Any, file: Any, workers: Any) -> Any:
    """Return who measured what in each step."""
    with file_of(file, "run.steps") as path:
        path.with_name("run.steps.workers").write_bytes(workers.tobytes())
        return ([[[*share] for share in own] for own in offered.StepLog.open(path).shares()],)


def compact(offered: Any, file: Any, step: int | None = None) -> Any:
    """Return the bytes of the compact form."""
    with file_of(file, "run.steps") as path:
        return np.frombuffer(offered.compact(offered.StepLog.open(path), step), np.uint8)


def expand(offered: Any, plan: Any, data: Any) -> Any:
    """Return the weights of the compact form."""
    return offered.expand(offered.Plan.from_dict(plan), data.tobytes())


FILES: dict[str, Callable[..., Any]] = {
    "checkpoint.open_gguf": open_gguf,
    "StepLog.answers": log_of(lambda log, **args: log.answers(**args)),
    "StepLog.append": append,
    "StepLog.bisect": log_of(verdict),
    "StepLog.blame": log_of(lambda log, **args: table(log.blame(**args))),
    "StepLog.create": create,
    "StepLog.diff": log_of(lambda log, a, b: log.diff(a, b)),
    "StepLog.digest": log_of(lambda log, at: ([log.digest(step) for step in at.tolist()],)),
    "StepLog.drawn_by": log_of(lambda log, step: log.drawn_by(step)),
    "StepLog.open": log_of(opened),
    "StepLog.recover": recover,
    "StepLog.replay": log_of(lambda log, until=None: log.replay(until)),
    "StepLog.salvage": salvage,
    "StepLog.seed_ahead": log_of(lambda log: log.seed_ahead()),
    "StepLog.shares": shares,
    "StepLog.slice": log_of(lambda log, **args: log.slice(**args)),
    "StepLog.snapshots": log_of(lambda log, every=32: bytes_of(log.snapshots(every))),
    "StepLog.steps": log_of(choices),
    "StepLog.verify": log_of(lambda log: log.verify()),
    "StepLog.walk": log_of(walked),
    "StepLog.weights_at": log_of(lambda log, step: log.weights_at(step)),
    "compact": compact,
    "expand": expand,
    **{
        f"StepLog.{kind}": copied(kind)
        for kind in ("concat", "fork", "mask", "merge", "negate", "revert")
    },
}
