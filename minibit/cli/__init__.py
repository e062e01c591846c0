"""The command line: ``minibit`` and ``python -m minibit``.

Only this file is imported without the ``[app]`` extra, so that its absence is a sentence and not a
traceback. The commands lie beside it, one file for each kind of work.

Exit status: 0 done, 1 the work failed, 2 it was asked for wrongly, 130 stopped by Ctrl-C where
nothing could be told of it.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

_EXTRA = ("typer", "rich", "click", "shellingham")  # typer and what it stands on


def main() -> int:
    """Run the command that the process was started with, and return its exit status."""
    if sys.argv[1:] == ["--version"]:  # also without the extra
        from minibit import __version__

        print(f"minibit {__version__}")
        return 0
    try:
        from minibit.cli.app import app
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        print("error: the command line needs: pip install 'minibit[app]'", file=sys.stderr)
        return 2
    try:
        app(prog_name="minibit")
    except KeyboardInterrupt:  # before a command was found
        return 130
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0
