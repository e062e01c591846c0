"""``minibit experiment``: run a long measurement and write its JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minibit.cli.common import BadUse, Json, Output, whole_numbers
from minibit.experiments import EXPERIMENTS
from minibit.experiments import experiment as measure


def experiment(
    name: Annotated[str, typer.Argument(help="Which; without a name, list them.")] = "",
    seeds: Annotated[
        list[str] | None, typer.Option(help="One run each, e.g. --seeds 0 1 2.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder for NAME.json.")] = Path("results"),
    as_json: Json = False,
) -> None:
    """Measure what a page draws, and write it with all that it takes to repeat it."""
    out = Output(as_json)
    with out.failures():
        if not name:
            out.facts({key: entry.summary for key, entry in EXPERIMENTS.items()})
            out.result({"experiments": sorted(EXPERIMENTS)})
            return
        if name not in EXPERIMENTS:
            raise BadUse(f"no experiment {name!r}; there are {', '.join(sorted(EXPERIMENTS))}")
        chosen = tuple(whole_numbers(seeds, "--seeds")) if seeds else (0, 1, 2)
        found = measure(name, folder, chosen, out.say)
        out.say(f"wrote {folder / f'{name}.json'}")
        out.result(found)
