"""Work that no signal can cut short.

Python runs the handlers of signals in its main thread only, between any two of its instructions. A
compiler or an import that is cut there leaves locks taken, for which every later call waits. Such
work runs in a thread of its own, and the main thread waits until it has ended.
"""

from __future__ import annotations

import _imp
import ctypes
import os
import threading
from _thread import start_new_thread
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")
LOOK = 0.5  # seconds after which a signal is seen that came as the wait for a lock began

# Python's own lock, taken without looking at signals, as no method of `threading.Lock` takes it.
_python = ctypes.CDLL(None, handle=ctypes.pythonapi._handle)
_allocate, _acquire = _python.PyThread_allocate_lock, _python.PyThread_acquire_lock
_allocate.restype = ctypes.c_void_p
_acquire.argtypes = ctypes.c_void_p, ctypes.c_int
_python.PyThread_release_lock.argtypes = (ctypes.c_void_p,)


class Stop:
    """Whether work was asked to end early, by what a signal's handler raised."""

    asked = False


class _End:
    """The end of some work: a wait for it that a signal ends, and one that no signal ends."""

    def __init__(self) -> None:
        self.heard = threading.Lock()
        self.heard.acquire()
        self.deaf = _spare.pop() if _spare else _allocate()
        _acquire(self.deaf, 0)

    def come(self) -> None:
        """Let the waiting thread go on; twice does no harm."""
        with suppress(RuntimeError):
            self.heard.release()
        _python.PyThread_release_lock(self.deaf)


_spare: list[int] = []  # locks that no one waits for
_waiting: set[_End] = set()


def uninterrupted(work: Callable[[], T], stop: Stop | None = None) -> T:
    """Return ``work()``, which no handler of a signal interrupts.

    What a handler raises meanwhile is raised when the work has ended. With `stop` it is not raised
    if it is a KeyboardInterrupt: ``stop.asked`` is true from then on, and the work should look at
    it. Where no thread can start, the caller does the work itself.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    outcome: list[tuple[list[T], BaseException | None]] = []
    end, interrupt, note = _End(), None, stop or Stop()

    def call() -> None:
        try:
            outcome.append(([work()], None))
        except BaseException as error:
            outcome.append(([], error))
        finally:
            end.come()
            _waiting.discard(end)  # now no child that is forked need let the caller go on

    with suppress(RuntimeError):  # an import that was interrupted may have left its lock to us
        while True:
            _imp.release_lock()
    context = copy_context()
    _waiting.add(end)
    try:
        try:
            try:
                start_new_thread(context.run, (call,))
            except RuntimeError:
                call()
            while not end.heard.acquire(timeout=LOOK):
                pass
        except BaseException:
            note.asked = True
            raise
        finally:  # nothing that a signal can interrupt stands between here and the call
            _acquire(end.deaf, 1)
    except BaseException as error:
        interrupt, note.asked = error, True
    _spare.append(end.deaf)
    if not outcome:
        raise ChildProcessError("the process forked in a signal's handler; its parent goes on")
    if outcome[0][1] is not None:
        raise outcome[0][1]
    if interrupt is not None and (stop is None or not isinstance(interrupt, KeyboardInterrupt)):
        raise interrupt
    return outcome[0][0][0]


def _forget() -> None:
    """Wait for no thread of the parent in a forked child."""
    while _waiting:
        _waiting.pop().come()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
