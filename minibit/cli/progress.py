"""A training run's progress: one line that is kept up to date, and what Ctrl-C does."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.table import Column

Part = tuple[int, str]  # the width from which on a part of the line is there, and its template


class RunProgress:
    """The progress of a run: shown, and stopped by Ctrl-C.

    After the first report, a first Ctrl-C stops the run at the next one; any other stops it at
    once. Where standard error is no terminal, a line every ten seconds takes the bar's place. The
    `parts` are templates of the fields that a report has, such as ``loss {loss}``.
    """

    def __init__(self, begin: str, parts: Sequence[Part]) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = self._console.is_terminal
        self._parts = parts
        self._bar = Progress(
            *columns(self._console.width, parts),
            console=self._console,
            transient=True,
            expand=False,
        )
        self._status = self._console.status(begin)
        self._task: TaskID | None = None
        self._said = time.monotonic()
        self._begun = self._stop = False
        self._before: Any = None

    def __enter__(self) -> Self:
        """Take over Ctrl-C, and say that the work begins."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        if self._live:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Clear the line, and give Ctrl-C back."""
        self._status.stop()
        self._bar.stop()
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def report(self, step: int, steps: int, fields: Mapping[str, Any]) -> None:
        """Show where the run stands; stop it if Ctrl-C was pressed."""
        self._begun = True
        if self._stop:
            raise KeyboardInterrupt
        if self._live:
            if self._task is None:
                self._status.stop()
                self._bar.start()
                self._task = self._bar.add_task("", total=steps, **fields)
            self._bar.update(self._task, completed=step, **fields)
        elif time.monotonic() - self._said >= 10:
            self._said = time.monotonic()
            words = [f"step {step} of {steps}", *(text.format(**fields) for _, text in self._parts)]
            self._console.print(", ".join(filter(None, words)), soft_wrap=True)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._stop or not self._begun:
            raise KeyboardInterrupt
        self._stop = True


def columns(width: int, parts: Sequence[Part]) -> list[ProgressColumn]:
    """Choose what fits on one line of the terminal: the bar is the first to go."""
    known = [(0, "{task.completed}/{task.total}")]
    known += [
        (least, text.replace("{", "{task.fields[").replace("}", "]}")) for least, text in parts
    ]
    chosen: list[ProgressColumn] = [
        TextColumn(template, table_column=Column(no_wrap=True))
        for least, template in known
        if width >= least
    ]
    if width >= 84:
        taken = max(least for least, _ in known if width >= least)
        chosen.insert(1, BarColumn(bar_width=min(max(width - taken, 4), 40)))
    return chosen


def clock(seconds: float) -> str:
    """Write a duration for people: ``8 s``, ``1:23``, ``2:00:00`` or, if it is not known, ``?``."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(math.ceil(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
