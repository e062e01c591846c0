"""The commands, gathered."""

from __future__ import annotations

from typing import Annotated

import typer

from minibit import __version__
from minibit.cli import chapters, conform, convert, language, logs, measure, train
from minibit.cli.common import ManyValues

__all__ = ["app"]

app = typer.Typer(
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
app.command("replay")(logs.replay)
app.command("evaluate")(logs.evaluate)
app.command("history")(logs.history)
app.command("info")(logs.info)
app.command("edit", cls=ManyValues)(logs.edit)
app.command("salvage")(logs.salvage)
app.command("export")(logs.export)
app.command("generate")(language.generate)
app.command("chat")(language.chat)
app.command("convert")(convert.convert)
app.command("chapters")(chapters.chapters)
app.command("conform")(conform.conform)
app.command("bench", cls=ManyValues)(measure.bench)
app.command("experiment", cls=ManyValues)(measure.experiment)
