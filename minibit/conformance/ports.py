"""A port behind its command: one JSON line per case goes in, one comes out.

    to the port     {"id": "absmean/half-to-even", "call": "absmax_quantize", "args": {"x": ..}}
    from the port   {"id": .., "out": [..]} | {"id": .., "refused": ".."} | {"id": .., "skip": true}

A port is a stranger's program: it may print nonsense, die, hang, or answer another case. Each of
these is a fault of that case; the port is then ended and begun anew for the next one.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from minibit.conformance.cases import Case

__all__ = ["Port", "request_of"]

MOST_LINE = 1 << 26  # bytes of an answer
MOST_FAULTS_IN_A_ROW = 3  # then no further case is asked
MOST_FAULTS = 20
SHOWN = 200  # characters of a port's own words
STARTS_WITHIN = 60.0  # seconds until the first answer: a runtime is loaded, a kernel compiled


def request_of(case: Case) -> dict[str, Any]:
    """Return what a port is asked."""
    return {"id": case.id, "call": case.call, "args": dict(case.args)}


class Port:
    """A process that answers cases; a context manager that ends it.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments. A program that cannot start is an OSError at the first case.
    seconds : float
        Time limit per case; the first answer after a start has a minute, or `seconds` if that is
        more.
    """

    def __init__(self, command: Sequence[str], seconds: float = 10.0) -> None:
        self.command, self.seconds = list(command), seconds
        self.answers = 0
        self.faults = self.faults_in_a_row = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Port:
        """Start nothing yet: the first case does."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        self.close()

    def answer(self, case: Case) -> Mapping[str, Any]:
        """Ask one case: its answer, a ``{"fault": text}``, or ``{"lost": text}`` if not asked."""
        if self.faults_in_a_row >= MOST_FAULTS_IN_A_ROW or self.faults >= MOST_FAULTS:
            return {"lost": f"the port failed {self.faults} times, it is not asked again"}
        limit = self.seconds
        if self._process is None:
            self._start()
            limit = max(limit, STARTS_WITHIN)
        answer = self._exchange(case, limit)
        if isinstance(answer, str):
            ended = self._process is not None and self._process.poll() is not None
            self.close()
            words = self._last_words() if ended else ""
            self.faults, self.faults_in_a_row = self.faults + 1, self.faults_in_a_row + 1
            return {"fault": answer + words}
        self.answers, self.faults_in_a_row = self.answers + 1, 0
        return answer

    def close(self) -> None:
        """End the process and what it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()
        self._closed.set()
        with suppress(OSError):
            assert process.stdin is not None
            process.stdin.close()

    def _start(self) -> None:
        """Begin the process, and a thread for each of the two streams that it writes."""
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=hasattr(os, "killpg"),
        )
        self._lines: queue.Queue[bytes] = queue.Queue(maxsize=4)
        self._errors, self._closed = bytearray(), threading.Event()
        for target, sink in ((_read_lines, self._lines), (_read_errors, self._errors)):
            self._reader = threading.Thread(
                target=target, args=(self._process, sink, self._closed), daemon=True
            )
            self._reader.start()

    def _exchange(self, case: Case, limit: float) -> Mapping[str, Any] | str:
        """Send a case and take its answer, or say what is wrong with it."""
        request = (json.dumps(request_of(case)) + "\n").encode()
        threading.Thread(target=_send, args=(self._process, request), daemon=True).start()
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            return f"no answer within {limit:g} seconds"
        if not line:
            assert self._process is not None
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2)
            self._reader.join(timeout=2)  # what it wrote to standard error is read by then
            return f"the port ended, with status {self._process.poll()}, before it answered"
        if not line.endswith(b"\n"):
            return f"a line without an end, of {len(line)} bytes or more"
        text = line.decode("utf-8", "replace").strip()
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            return f"no JSON but {text[:SHOWN]!r}"
        if not isinstance(answer, dict) or "id" not in answer:
            return f"no object with an id but {text[:SHOWN]!r}"
        if answer["id"] != case.id:
            return f"an answer to {str(answer['id'])[:SHOWN]!r}, which was not asked"
        kinds = [kind for kind in ("out", "refused", "skip") if kind in answer]
        if len(kinds) != 1:
            return f"neither out nor refused nor skip alone, but {text[:SHOWN]!r}"
        return answer

    def _last_words(self) -> str:
        """Quote what the process wrote to standard error last."""
        lines = bytes(self._errors).decode("utf-8", "replace").strip().splitlines()
        return f"; its last words: {lines[-1][:SHOWN]!r}" if lines else ""


def _send(process: subprocess.Popen[bytes], request: bytes) -> None:
    """Write a request; a port that does not read is ended by the time limit."""
    with suppress(OSError, ValueError):
        assert process.stdin is not None
        process.stdin.write(request)
        process.stdin.flush()


def _read_lines(
    process: subprocess.Popen[bytes], lines: queue.Queue[bytes], closed: threading.Event
) -> None:
    """Pass on what the process prints, line by line, and at last an empty one."""
    assert process.stdout is not None
    line = b"-"
    while line and not closed.is_set():
        line = process.stdout.readline(MOST_LINE)
        while not closed.is_set():
            with suppress(queue.Full):
                lines.put(line, timeout=0.1)
                break
    process.stdout.close()


def _read_errors(
    process: subprocess.Popen[bytes], errors: bytearray, closed: threading.Event
) -> None:
    """Keep the last that the process writes to standard error."""
    assert process.stderr is not None
    while chunk := os.read(process.stderr.fileno(), 4096):
        errors += chunk
        del errors[:-4096]
    process.stderr.close()
