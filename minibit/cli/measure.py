"""``minibit bench`` and ``minibit experiment``: compare with a bar, or record for a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from minibit.bench import BENCHMARKS, Benchmark, Options, quantity, run
from minibit.cli.common import (
    BadUse,
    Output,
    Plot,
    check_choice,
    check_new_file,
    check_plot,
    command,
    whole_numbers,
)
from minibit.experiments import EXPERIMENTS, Experiment, cpu_seconds, kept_runs, write_json
from minibit.experiments import experiment as measure
from minibit.plots import roofline_figure, save

Name = Annotated[str, "[NAME|list]", "Which; without one, list them."]
Seeds = Annotated[list[str] | None, "Which seeds, e.g. --seeds 0 1 2."]


@command
def bench(
    out: Output,
    name: Name = "list",
    check: Annotated[bool, "Exit with status 1 if a figure misses its bar."] = False,
    peers: Annotated[bool, "Measure other libraries too, where installed."] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Default: one for costs, every CPU for training.")
    ] = None,
    preset: Annotated[str, "For train: which, default small; for step: one of its two."] = "",
    seeds: Seeds = None,
    plot: Plot = None,
    record: Annotated[Path | None, "--out", "Record the report in this .json file."] = None,
) -> dict[str, Any]:
    """Run a benchmark: figures beside their bars, and what they were measured on.

    `--plot` is for gemv and matmul: a roofline. `--out` records the report for a page to draw.
    """
    if name == "list":
        return {"benchmarks": _list(out, BENCHMARKS)}
    check_choice("NAME", name, BENCHMARKS)
    presets = BENCHMARKS[name].presets
    if preset and preset not in presets:
        takes = f"takes --preset {', '.join(presets)}" if presets else "takes no --preset"
        raise BadUse(f"bench {name} {takes}; got {preset!r}")
    if plot is not None and not BENCHMARKS[name].roofline:
        raise BadUse(f"bench {name} draws no plot")
    check_plot(plot)
    if record is not None:
        check_new_file(record, "--out", force=True)
    report = run(name, Options(threads, peers, preset, _numbers(seeds)))
    _show(out, report)
    if record is not None:
        write_json(record, report, indent=1)
        out.say(f"\nwrote {record}")
    if plot is not None:
        save(roofline_figure(**report["details"]["roofline"]), plot)
        out.say(f"wrote {plot}")
    out.status = int(check and not report["passed"])
    return report


@command
def experiment(
    out: Output,
    name: Name = "list",
    seeds: Seeds = None,
    folder: Annotated[Path, "--out", "Folder for NAME.json."] = Path("results"),
) -> dict[str, Any]:
    """Measure what a page draws, and write it with all that it takes to repeat it."""
    if name == "list":
        return {"experiments": _list(out, EXPERIMENTS)}
    check_choice("NAME", name, EXPERIMENTS)
    numbers, runs = _numbers(seeds), folder / f"{name}.runs"
    minutes = cpu_seconds(name, numbers) / 60
    some = "1 seed" if len(numbers) == 1 else f"{len(numbers)} seeds"
    out.say(f"{some}: about {minutes:.0f} minutes of CPU time, by the runs that are recorded.")
    if kept := kept_runs(name, folder):
        out.say(f"{len(kept)} runs are in {runs} from before; they are not repeated.")
    else:
        out.say(f"Each run is kept in {runs} as it ends.")
    try:
        results = measure(name, folder, numbers, out.say)
    except KeyboardInterrupt:
        count = len(kept_runs(name, folder))
        again = "the same command goes on from there"
        raise RuntimeError(f"stopped; {count} runs are kept in {runs}: {again}") from None
    out.say(f"wrote {folder / f'{name}.json'}")
    return results


def _list(out: Output, table: Mapping[str, Benchmark | Experiment]) -> list[str]:
    """Print what can be measured, and return the names in order."""
    names = sorted(table)
    out.facts({name: table[name].summary for name in names})
    return names


def _numbers(seeds: list[str] | None) -> tuple[int, ...]:
    """Read the seeds; by default there are three."""
    return tuple(whole_numbers(seeds, "--seeds")) if seeds else (0, 1, 2)


def _show(out: Output, report: dict[str, Any]) -> None:
    """Print the figures, and what they were measured on."""
    machine = report["environment"]
    facts = {
        "CPU": f"{machine['cpu']} ({machine['cpus']} available), {machine['system']}",
        "kernels": machine["kernel_path"],
        "threads": machine["threads"],
        "versions": ", ".join(f"{key} {value}" for key, value in machine["versions"].items()),
    }
    out.facts(facts)
    out.say()
    rows = []
    for figure in report["figures"]:
        row = [figure["name"], quantity(figure["value"], figure["unit"]), "", ""]
        if figure["bar"] is not None:
            sign = "at least" if figure["at_least"] else "at most"
            row[2] = f"{sign} {quantity(figure['bar'], figure['unit'])}"
            row[3] = "ok" if figure["passed"] else "MISSED"
        rows.append(row)
    out.table(["figure", "value", "bar", ""], rows)
    for note in report["notes"]:
        out.say(f"\n{note}")
