"""The command line: ``minibit`` and ``python -m minibit``.

Only this file is imported without the ``[app]`` extra, so that its absence is a sentence and not a
traceback. The commands lie beside it, one file for each kind of work.

Exit status: 0 done, 1 the work failed, 2 it was asked for wrongly, 130 stopped by Ctrl-C where
nothing could be told of it. A reader that closes its end of a pipe ends the command without a word;
a disk that is full behind standard output is named.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

OLDEST = (3, 11)  # Python that pyproject.toml asks for
_EXTRA = ("typer", "rich", "click", "shellingham", "numpy")  # typer and what it stands on


def main() -> int:
    """Run the command that the process was started with, and return its exit status."""
    for number in range(3):  # a standard file that is closed would be the next that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    try:
        status = _run()
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"error: {error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still to be flushed
        return 1


def _run() -> int:
    """Run the command, and return its exit status."""
    if sys.argv[1:] == ["--version"]:  # works without the extra, too
        from minibit import __version__

        print(f"minibit {__version__}")
        return 0
    if sys.version_info[:2] < OLDEST:
        this = ".".join(map(str, sys.version_info[:3]))
        print(f"error: minibit needs Python 3.11 or newer; this is {this}", file=sys.stderr)
        return 2
    try:
        from minibit.cli.app import app
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        try:
            from minibit.base import install

            command = install("app")
        except ModuleNotFoundError:  # no NumPy either
            command = "pip install -e '.[app]' in the checkout"
        print(f"error: the command line needs {error.name}: {command}", file=sys.stderr)
        return 2
    try:
        app(prog_name="minibit")
    except KeyboardInterrupt:  # before a command was found
        return 130
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0
