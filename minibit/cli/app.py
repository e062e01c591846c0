"""The commands, gathered."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from minibit import __version__
from minibit.cli import (
    chapters,
    conform,
    convert,
    doctor,
    language,
    logs,
    measure,
    past,
    predict,
    train,
    train_language,
)
from minibit.cli.common import ManyValues

__all__ = ["app"]

_OF_HISTORY = ("blame", "bisect", "edit", "fork", "merge", "revert", "snapshots")


class _Commands(TyperGroup):
    """Commands of which some may stand after ``history LOG``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Read ``history LOG blame ...`` as ``blame LOG ...``."""
        if args[:1] == ["history"] and args[2:3] and args[2] in _OF_HISTORY:
            args = [args[2], args[1], *args[3:]]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Commands,
    name="minibit",
    help="Train a ternary network without backpropagation, and bring it back from its steps.",
    epilog="Exit status: 0 done, 1 the work failed, 2 asked for wrongly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        print(f"minibit {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that belong to no command."""


app.command("train", cls=ManyValues)(train.train)
app.command("train-language")(train_language.train_language)
app.command("predict")(predict.predict)
app.command("replay")(logs.replay)
app.command("evaluate")(logs.evaluate)
app.command("history")(logs.history)
app.command("info")(logs.info)
app.command("edit", cls=ManyValues)(logs.edit)
app.command("blame")(past.blame)
app.command("bisect")(past.bisect)
app.command("fork")(past.fork)
app.command("merge")(past.merge)
app.command("revert")(past.revert)
app.command("snapshots")(past.snapshots)
app.command("salvage")(logs.salvage)
app.command("export")(logs.export)
app.command("generate")(language.generate)
app.command("chat")(language.chat)
app.command("convert")(convert.convert)
app.command("doctor")(doctor.doctor)
app.command("chapters")(chapters.chapters)
app.command("conform")(conform.conform)
app.command("bench", cls=ManyValues)(measure.bench)
app.command("experiment", cls=ManyValues)(measure.experiment)
